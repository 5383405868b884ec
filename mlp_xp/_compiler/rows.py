"""The same function of many rows, block after block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import numpy as np

from mlp_xp._arrays import Array, Namespace
from mlp_xp._compiler import Program, compile_function
from mlp_xp._compiler.graph import NotRecordableError

WORTH_IT = 2**21
"""Numbers that rows become on their way below which writing a program takes longer than it saves."""

BLOCK_NUMBERS = 2**19
"""Numbers that the rows of a block become at a time: about as many as the caches hold."""


@dataclass(frozen=True)
class ArraySpec:
    """An array but for its numbers: what equal ones are computed with is one program."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def kept(make: Callable[..., Program], maxsize: int = 64) -> Callable[..., Program]:
    """Let programs wait for another call with equal arguments; where these have no hash, make them anew."""
    cached = lru_cache(maxsize)(make)

    @wraps(make)
    def find(*settings: Any) -> Program:
        try:
            hash(settings)
        except TypeError:  # something of the user's own
            return make(*settings)
        return cached(*settings)

    return find


def map_rows(
    xp: Namespace,
    function: Callable[[Namespace, Any, Array], Array],
    params: Any,
    rows: Callable[[slice], Array],
    n_rows: int,
    width: int,
) -> Array | None:
    """Compute a function of rows by a program; None elsewhere than on NumPy, and where it is not worth it.

    Parameters
    ----------
    xp : namespace
    function : callable ``(xp, params, X) -> array of shape (n, k)``
        Of each row by itself.
    params : tuple of pairs of array
    rows : callable ``(slice) -> X``
    n_rows : int
    width : int
        How many numbers a row becomes on its way, at a time.

    Returns
    -------
    array of shape (n_rows, k), or None
    """
    length = min(n_rows, max(1, BLOCK_NUMBERS // width))
    if xp is not np or n_rows * width < WORTH_IT:
        return None
    first = rows(slice(0, length))
    arrays = [array for layer in params for array in layer]
    try:
        program = _row_program(
            function,
            tuple(ArraySpec(array.shape, array.dtype) for array in arrays),
            ArraySpec(first.shape, first.dtype),
        )
    except NotRecordableError:
        return None
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    pool = [np.empty(nbytes, np.uint8) for nbytes in program.pool]
    step = program.bind([flat], pool)
    (block,) = step(first)
    results = np.empty((n_rows, block.shape[1]), block.dtype)
    results[:length] = block
    for stop in range(2 * length, n_rows + length, length):
        # The last block is as long as the others, and does some rows again.
        some = slice(min(stop, n_rows) - length, min(stop, n_rows))
        (results[some],) = step(rows(some))
    return results


@kept
def _row_program(function: Any, params: tuple[ArraySpec, ...], X: ArraySpec) -> Program:
    def outputs(owned: list[Any], given: list[Any], numbers: list[Any]) -> tuple[list[Any], list[Any]]:
        return owned, [function(np, list(zip(owned[::2], owned[1::2])), given[0])]

    return compile_function(outputs, [params], [X])
