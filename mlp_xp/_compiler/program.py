"""The compiled program, and how it is bound to memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp._arrays import HostArray, row_slices
from mlp_xp._compiler.memory import Location

MAX_BLOCK_BYTES = 2**17
"""Size of a block of the widest array of a region: a few of them fit the cache of a core."""

Memory: TypeAlias = "dict[tuple[str, int], HostArray]"
"""The buffers that a program is bound to, by the names that locations give them."""


class BlockedArray(NamedTuple):
    """An array of a region, of which the loop takes one block in each iteration.

    Attributes
    ----------
    kind : str
        "matrix": some of its rows. "column": an element for each of these rows. "row": the same row in
        all blocks. "sums": as "column", but one-dimensional, and written. "local": scratch memory of one
        block. "constant": a block full of one number.
    content : Location, the number of a constant, or None for scratch memory
    dtype : dtype
    """

    kind: str
    content: Any
    dtype: Any


@dataclass(eq=False)  # so that it can be a key
class Program:
    """A compiled function: its code, and what the names in it stand for.

    Attributes
    ----------
    source : str
        Of ``make(*names)``, which returns the function.
    functions : dict of str to callable
    pool_nbytes : list of int
        Sizes of the buffers that `bind` needs.
    arrays : dict of str to Location
    ones_rows : list of Location
        Rows that `bind` fills with ones.
    scalars : dict of str to (number, dtype)
        Arrays of shape ().
    filled : dict of str to (number, Location)
        Arrays full of one number, in memory of their own.
    blocks : dict of str to (tuple of int, list of BlockedArray)
        For each loop the shape that it iterates over, as it lies in memory, and its arrays.
    """

    source: str
    functions: dict[str, Any]
    pool_nbytes: list[int]
    arrays: dict[str, Location]
    ones_rows: list[Location] = field(default_factory=list)
    scalars: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    filled: dict[str, tuple[Any, Location]] = field(default_factory=dict)
    blocks: dict[str, tuple[tuple[int, int], list[BlockedArray]]] = field(default_factory=dict)

    @cached_property
    def code(self) -> CodeType:
        """The compiled source."""
        return compile(self.source, "<step>", "exec")

    def bind(self, groups: Sequence[HostArray], pool: Sequence[HostArray]) -> Any:
        """Return the function ``(*inputs, *scalars) -> results``, which works in this memory.

        Parameters
        ----------
        groups : sequence of array of shape (n,)
            The groups of state arrays, each flat; the function updates them.
        pool : sequence of array of bytes
            Each at least as long as `pool_nbytes` says.
        """
        memory = {("state", i): group for i, group in enumerate(groups)}
        memory |= {("pool", i): buffer for i, buffer in enumerate(pool)}
        names: dict[str, Any] = {
            name: np.full((), value, dtype=dtype) for name, (value, dtype) in self.scalars.items()
        }
        for name, location in self.arrays.items():
            names[name] = _array_at(location, memory)
        for name, (value, location) in self.filled.items():
            array = np.full(location.shape, value, dtype=location.dtype)
            names[name] = array.T if location.transposed else array
        for location in self.ones_rows:
            _array_at(location, memory)[...] = 1
        for name, (shape, arrays) in self.blocks.items():
            names[name] = _blocks(shape, arrays, memory)
        namespace: dict[str, Any] = {}
        exec(self.code, namespace)
        return namespace["make"](**names, **self.functions)


def _array_at(location: Location, memory: Memory) -> HostArray:
    flat = memory[location.buffer]
    size = math.prod(location.shape)
    if location.buffer[0] == "pool":
        flat = flat[: (location.offset + size) * location.dtype.itemsize].view(location.dtype)
    array = flat[location.offset : location.offset + size].reshape(location.shape)
    return array.T if location.transposed else array


def _blocks(
    shape: tuple[int, int], arrays: list[BlockedArray], memory: Memory
) -> list[tuple[HostArray, ...]]:
    """List for each block of rows the views of all arrays."""
    n_rows, n_columns = shape
    itemsize = max(array.dtype.itemsize for array in arrays)
    length = min(n_rows, max(1, MAX_BLOCK_BYTES // (n_columns * itemsize)))
    whole = [_full_array(array, shape, length, memory) for array in arrays]
    blocks = []
    for rows in row_slices(n_rows, length):
        first_rows = slice(0, rows.stop - rows.start)
        part = {"local": first_rows, "constant": first_rows, "row": slice(None)}
        blocks.append(tuple(view[part.get(array.kind, rows)] for array, view in zip(arrays, whole)))
    return blocks


def _full_array(array: BlockedArray, shape: tuple[int, int], block_length: int, memory: Memory) -> HostArray:
    """Return the array that blocks are views of."""
    if array.kind == "local":
        return np.empty((block_length, shape[1]), dtype=array.dtype)
    if array.kind == "constant":
        return np.full((block_length, shape[1]), array.content, dtype=array.dtype)
    shapes = {"matrix": shape, "column": (shape[0], 1), "row": (1, shape[1]), "sums": shape[:1]}
    return _array_at(array.content._replace(shape=shapes[array.kind], transposed=False), memory)
