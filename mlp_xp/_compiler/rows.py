"""Functions of rows, such as predictions: compiled for a block of rows, and run block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlp_xp._arrays import Array, Namespace
from mlp_xp._cache import cached_by_arguments
from mlp_xp._compiler.graph import NotRecordableError
from mlp_xp._compiler.pipeline import compile_function
from mlp_xp._compiler.program import Program
from mlp_xp._compiler.trace import ArraySpec

MIN_ELEMENTS_TO_COMPILE = 2**19
"""Minimum number of intermediate elements for which compiling pays off."""

MAX_BLOCK_ELEMENTS = 2**19
"""Maximum number of intermediate elements of a block of rows: 4 MiB of float64, about the size of caches."""


def map_rows(
    function: Callable[[Namespace, Any, Array], Array],
    params: Any,
    take_rows: Callable[[slice], Array],
    n_rows: int,
    width: int,
) -> Array | None:
    """Compute a function of rows on NumPy's arrays by a compiled program, where compiling pays off.

    Parameters
    ----------
    function : callable ``(xp, params, X) -> array of shape (n, k)``
        Each row of the result depends on the same row of `X` only.
    params : tuple of pairs of array
    take_rows : callable ``(slice) -> X``
    n_rows : int
    width : int
        The largest number of elements that a row takes at a time in an intermediate array.

    Returns
    -------
    array of shape (n_rows, k)
        None for few elements and for functions that cannot be compiled.
    """
    length = min(n_rows, max(1, MAX_BLOCK_ELEMENTS // width))
    if n_rows * width < MIN_ELEMENTS_TO_COMPILE:
        return None
    first = take_rows(slice(0, length))
    arrays = [array for layer in params for array in layer]
    try:
        program = _compile_row_function(
            function,
            tuple(ArraySpec(array.shape, array.dtype) for array in arrays),
            ArraySpec(first.shape, first.dtype),
        )
    except NotRecordableError:
        return None
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    pool = [np.empty(nbytes, np.uint8) for nbytes in program.pool_nbytes]
    run_block = program.bind([flat], pool)
    (block,) = run_block(first)
    results = np.empty((n_rows, block.shape[1]), block.dtype)
    results[:length] = block
    for stop in range(2 * length, n_rows + length, length):
        # The program is for blocks of one length: the last one overlaps the one before.
        block_rows = slice(min(stop, n_rows) - length, min(stop, n_rows))
        (results[block_rows],) = run_block(take_rows(block_rows))
    return results


@cached_by_arguments
def _compile_row_function(function: Any, params: tuple[ArraySpec, ...], X: ArraySpec) -> Program:
    def outputs(state: list[Any], inputs: list[Any], scalars: list[Any]) -> tuple[list[Any], list[Any]]:
        return state, [function(np, list(zip(state[::2], state[1::2])), inputs[0])]

    return compile_function(outputs, [params], [X])
