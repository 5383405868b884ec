"""Samples to train on: arrays, a choice of their rows, and batches of them.

The arrays may take most of the memory, or be memory maps larger than that. So they are copied batch by
batch, and whole only where that pays off: small arrays, to cast them once (`with_small_arrays_cast`), and an
X in memory that is stored by columns (`with_contiguous_rows`). Rows of other arrays that are not contiguous,
such as ``data[:, :-1]``, are gathered by `RowTaker`.

`Samples.batches` copies what has to be gathered (chosen or shuffled rows) or cast; other batches are views.
The engines copy batches as follows; if all samples are one batch, that is made once.

- eager: as `Samples.batches` does
- compiled (`_Batches`): to buffers that its programs reuse, small samples all at once for each epoch; a batch
  of other samples is not copied if it can be a view
- xla (`_take`): the compiled function gathers and casts each batch
- cuda_graph (`inputs`): what `Samples.batches` yields, to the arrays that captured graphs read in each replay
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.lib.stride_tricks import as_strided

from mlp_xp._arrays import (
    Array,
    HostArray,
    Namespace,
    Placement,
    computing_namespace,
    is_sparse,
    row_slices,
    rows_per_block,
)

MAX_COLUMN_STEP = 4
"""Rows of every n-th number in memory, such as those of ``data[:, ::2]``, are copied with what lies between,
up to this n; above it, copying number by number is about as fast (50 columns of float64)."""

MAX_ROWS_STRIDE = 1.25
"""How far apart rows may begin, in lengths of a row, to be copied with what lies between them."""

Rows: TypeAlias = "np.ndarray[Any, Any]"
"""Indices of rows, on the host."""


class Batch(NamedTuple):
    """Samples in the parameters' namespace, device and dtype: a mini-batch, or all there are."""

    X: Array
    y: Array
    sample_weight: Array | None


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth value to compare by
class Samples:
    """Samples to train on, or to measure on.

    Parameters
    ----------
    place : Placement
        Their namespace and device, and the dtype to compute in.
    X : array of shape (n, n_features)
        Of any real dtype; on NumPy also a SciPy CSR matrix. Batches are cast to the dtype of `place`.
    y : array of shape (n, n_outputs), optional
        Of any real dtype or bool.
    sample_weight : array of shape (n,), optional
    rows : array of int, optional
        Indices of the rows to use, on the host; all by default.
    """

    place: Placement
    X: Array
    y: Array = None
    sample_weight: Array | None = None
    rows: Rows | None = None

    def __len__(self) -> int:
        return int(self.X.shape[0]) if self.rows is None else len(self.rows)

    @property
    def xp(self) -> Namespace:
        """The namespace to compute in; see `mlp_xp._arrays.computing_namespace`."""
        return computing_namespace(self.place.xp, self.X)

    @property
    def arrays(self) -> Batch:
        """The arrays as they were given, with all rows."""
        return Batch(self.X, self.y, self.sample_weight)

    @property
    def row_bytes(self) -> int:
        """The number of bytes of a row in a batch."""
        numbers = sum(math.prod(array.shape[1:]) for array in self.arrays if array is not None)
        return int(numbers * self.place.xp.finfo(self.place.dtype).bits // 8)

    def with_small_arrays_cast(self) -> Samples:
        """Return the samples with arrays of up to a block's size cast once, so that batches need no cast.

        NumPy arrays of that size are made contiguous too.
        """
        X, y, sample_weight = (
            array
            if array is None or array.shape[0] > rows_per_block(math.prod(array.shape[1:]))
            else self._contiguous(self._cast(array))
            for array in self.arrays
        )
        return replace(self, X=X, y=y, sample_weight=sample_weight)

    def with_contiguous_rows(self) -> Samples:
        """Return the samples with an X that is stored by columns, as tables are, copied to C order.

        Taking scattered rows of such an array misses the cache once for each number: ten times as slow and
        more. A memory map, which may be larger than memory, is not copied.
        """
        is_copied = self.xp is np and _is_by_columns(self.X) and not _is_memory_map(self.X)
        return replace(self, X=np.ascontiguousarray(self.X)) if is_copied else self

    def whole(self) -> Batch:
        """Return all samples as one batch."""
        (batch,) = self.batches(len(self))
        return batch

    def targets(self) -> tuple[Array, Array | None]:
        """Return all of `y` and of the sample weights."""
        take = self._row_getter(self._row_indices(None))
        everything = slice(0, len(self))
        return take(self.y, everything), take(self.sample_weight, everything)

    def batches(self, size: int, order: Rows | None = None) -> Iterator[Batch]:
        """Yield batches of `size` samples, the last one smaller, in the given order or that of the rows."""
        take = self._row_getter(self._row_indices(order))
        for some in row_slices(len(self), size):
            yield Batch(take(self.X, some), take(self.y, some), take(self.sample_weight, some))

    def map(self, function: Callable[[Namespace, Any, Array], Array], params: Any, row_width: int) -> Array:
        """Apply ``function(xp, params, X)`` to all rows, in blocks that bound the memory.

        `row_width` is the largest number of elements that a row becomes, see `row_width()`.
        """
        from mlp_xp._compiler.rows import map_rows  # not at the top: `import mlp_xp` imports no compiler

        take = self._row_getter(self._row_indices(None))
        mapped = map_rows(self.xp, function, params, lambda rows: take(self.X, rows), len(self), row_width)
        if mapped is not None:
            return mapped
        blocks = [function(self.xp, params, batch.X) for batch in self.blocks(row_width)]
        return blocks[0] if len(blocks) == 1 else self.xp.concat(blocks, axis=0)

    def row_width(self, layer_sizes: Sequence[int]) -> int:
        """Return the largest number of elements that a row becomes on its way through these layers."""
        copied = self.rows is not None or self.X.dtype != self.place.dtype
        return max(layer_sizes if copied and not is_sparse(self.X) else layer_sizes[1:])

    def blocks(self, row_width: int) -> Iterator[Batch]:
        """Yield batches in the order of the rows, of so many rows that a block has a bounded size."""
        return self.batches(rows_per_block(row_width))

    def row_writer(
        self, order: Rows | None, gather: Callable[[Array, Array, Array], None]
    ) -> Callable[[Array, slice, Array], None]:
        """Return the function ``(array, slice, out)`` that writes this part of the order to another array.

        ``gather(array, indices, out)`` writes the rows with these indices into an array of the same dtype.
        """
        indices = self._row_indices(order)
        take = self._row_getter(indices)

        def write(array: Array, some: slice, out: Array) -> None:
            if indices is not None and array.dtype == out.dtype:
                gather(array, indices[some], out)
            else:
                out[...] = take(array, some)

        return write

    def _row_indices(self, order: Rows | None) -> Array | None:
        """Return the rows of the arrays in this order, on their device; None if these are all, in theirs."""
        if self.rows is not None:
            order = self.rows if order is None else self.rows[order]
        # The order is copied to the device once an epoch: a copy for each batch would take longer.
        if order is None or self.place.xp is np:
            return order
        return self.place.xp.asarray(order, device=self.place.device)

    def _row_getter(self, indices: Array | None) -> Callable[[Array, slice], Array]:
        """Return the function ``(array, slice) -> array`` that takes this part of the rows of an array."""
        xp, cast = self.xp, self._cast
        takers = {}
        if xp is np and indices is not None:
            takers = {id(array): RowTaker(array) for array in self.arrays if array is not None}

        def take(array: Array, some: slice) -> Array:
            if array is None:
                return None
            if indices is None and some == slice(0, array.shape[0]):
                return cast(array)
            if indices is None:
                return cast(array[some, :] if array.ndim == 2 else array[some])
            if takers:
                return cast(takers[id(array)].take(indices[some]))
            return cast(xp.take(array, indices[some], axis=0))

        return take

    def _contiguous(self, array: Array) -> Array:
        return np.ascontiguousarray(array) if self.xp is np else array

    def _cast(self, array: Array) -> Array:
        dtype = self.place.dtype
        return array if array.dtype == dtype else self.xp.astype(array, dtype)


class RowTaker:
    """Takes rows of a NumPy array of any layout, in any order, without a copy of the whole array.

    `np.take` makes such a copy of each array that is not contiguous, and indexing copies number by number. So
    rows are taken with what lies between their numbers, or between them and the next row, where that is
    little.
    """

    def __init__(self, array: HostArray) -> None:
        self.array = array
        self.whole: HostArray | None = array if array.flags.c_contiguous else None
        self.columns: slice | None = None
        self.direction = 1
        self.spans: HostArray | None = None
        if self.whole is not None or array.ndim != 2 or array.shape[1] < 2 or not len(array):
            return
        step, rest = divmod(abs(array.strides[1]), array.itemsize)
        if rest or not 1 <= step <= MAX_COLUMN_STEP:
            return
        self.direction = 1 if array.strides[1] > 0 else -1
        forward, n_spanned = array[:, :: self.direction], (array.shape[1] - 1) * step + 1
        self.whole, first = _surrounding_rows(forward, n_spanned)
        self.columns = slice(first, first + n_spanned, step)
        if self.whole is not None:
            return
        # From its first to its last number each row is one element, so that it is copied at once.
        strides = forward.strides[0], array.itemsize
        spans = as_strided(forward, (len(array), n_spanned), strides, writeable=False)
        self.spans = spans.view(np.dtype((np.void, n_spanned * array.itemsize)))[:, 0]

    def take(self, indices: Rows) -> HostArray:
        """Return rows, in this order."""
        if self.whole is not None:
            taken = self.whole.take(indices, axis=0)
        elif self.spans is not None:
            taken = self.spans[indices][:, None].view(self.array.dtype)
        else:
            return self.array[indices]
        return self._own_columns(taken)

    def take_into(self, target: HostArray, indices: Rows) -> None:
        """Write rows, in this order, to another array."""
        whole = self.whole
        if whole is None or whole.dtype != target.dtype:
            target[...] = self.take(indices)
            return
        direct = self.columns is None and target.flags.c_contiguous
        out = target if direct else np.empty((len(indices), *whole.shape[1:]), whole.dtype)
        # In mode "raise" NumPy would copy by way of a buffer, to leave `out` as it is if an index is wrong.
        whole.take(indices, axis=0, out=out, mode="clip")
        if not direct:
            target[...] = self._own_columns(out)

    def _own_columns(self, taken: HostArray) -> HostArray:
        """Return the columns of the array, of rows that were taken with what lies between."""
        return taken if self.columns is None else taken[:, self.columns][:, :: self.direction]


def _surrounding_rows(array: HostArray, n_spanned: int) -> tuple[HostArray | None, int]:
    """Return the contiguous array whose columns are those of `array` and others, and the first one's number.

    Parts of tables lie so in memory, such as ``data[:, :-1]``. None if more would be taken than pays off, or
    if it does not lie within the array that this is a view of.
    """
    stride, rest = divmod(array.strides[0], array.itemsize)
    if rest or not n_spanned <= stride <= MAX_ROWS_STRIDE * n_spanned:
        return None, 0
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    low, high = byte_bounds(root)
    start = array.__array_interface__["data"][0]
    n_before = max(0, len(array) * stride - (high - start) // array.itemsize)
    start -= n_before * array.itemsize
    if n_before + n_spanned > stride or start < low:
        return None, 0
    layout = {"data": (start, True), "shape": (len(array), stride), "typestr": array.dtype.str, "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=layout, root=root)), n_before


def _is_by_columns(array: HostArray) -> bool:
    """Whether the numbers of a column are closer together in memory than those of a row."""
    return array.ndim == 2 and 0 < abs(array.strides[0]) < abs(array.strides[1])


def _is_memory_map(array: Any) -> bool:
    """Whether an array is a memory map, or a view of one."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False
