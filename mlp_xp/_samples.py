"""Samples to train on: arrays, a choice of their rows, and batches of them.

The arrays may take most of the memory, or be memory maps larger than that. So they are copied batch by
batch, and whole only where that pays off: small arrays, to cast them once (`with_small_arrays_cast`), and an
X in memory that is stored by columns (`with_contiguous_rows`). Rows of other arrays that are not contiguous,
such as ``data[:, :-1]``, are gathered by `RowTaker`.

NumPy arrays may be samples for a device too. `moved_if_they_fit` moves them there once, or leaves them on
the host, from where `Samples.batches` streams: it copies one batch to the device while the one before is
computed with. Blocks and batches are the same either way, and so are all results, bit for bit.

`Samples.batches` copies what has to be gathered (chosen or shuffled rows) or cast; other batches are views.
The engines copy batches as follows; if all samples are one batch, that is made once.

- eager: as `Samples.batches` does
- compiled (`_Batches`): to buffers that its programs reuse, small samples all at once for each epoch; a batch
  of other samples is not copied if it can be a view
- xla (`_take`): the compiled function gathers and casts each batch, of all samples or of those streamed
- halves of steps on CUDA (`GraphInputs`): rows are gathered in the arrays that captured graphs read
- cuda_graph (`inputs`): what `Samples.batches` yields, to the arrays that captured graphs read in each replay
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
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
    is_jax,
    is_sparse,
    row_slices,
    rows_per_block,
    to_host,
)
from mlp_xp._devices import is_out_of_memory, release_memory
from mlp_xp._processes import Processes, shared
from mlp_xp._uploads import HostRows, Upload, moved_dtype, put, uploading

MAX_COLUMN_STEP = 4
"""Rows of every n-th number in memory, such as those of ``data[:, ::2]``, are copied with what lies between,
up to this n; above it, copying number by number is about as fast (50 columns of float64)."""

MAX_ROWS_STRIDE = 1.25
"""How far apart rows may begin, in lengths of a row, to be copied with what lies between them."""

MAX_BYTES_COPIED_ON_HOST = 2**24
"""Maximum size of arrays that are moved to a device by way of a copy on the host; larger ones are moved part
by part, because they may be memory maps."""

MAX_BYTES_OF_MOVED_MAP = 2**28
"""Maximum size of a memory map that is moved to a device whose free memory is not known, such as a CPU: it
may be larger than memory."""

Rows: TypeAlias = "np.ndarray[Any, Any]"
"""Indices of rows, on the host."""


class Batch(NamedTuple):
    """Samples in the parameters' namespace, device and dtype: a mini-batch, or all there are."""

    X: Array
    y: Array
    sample_weight: Array | None


@dataclass(frozen=True, eq=False, repr=False)
class Shard:
    """Which rows of the whole a process has, the whole being those of all processes.

    Parameters
    ----------
    processes : Processes
    n_total : int
        The number of rows of the whole.
    start : int
        Where this process's rows begin in the whole, if it has a part of it.
    numbers : array of int of shape (n_total,), optional
        For each row of the whole the number that it has among this process's rows, -1 if another has it; for
        rows that do not lie one after the other.
    """

    processes: Processes
    n_total: int
    start: int = 0
    numbers: Rows | None = None

    @classmethod
    def of(cls, processes: Processes, n_rows: int) -> Shard:
        """Return the shard of a process with so many rows, which follow those of the one before."""
        lengths = processes.exchange("the numbers of rows", n_rows)
        return cls(processes, sum(lengths), sum(lengths[: processes.rank]))

    def choose(self, rows: Rows, n_rows: int) -> tuple[Rows, Shard]:
        """Return which of this process's `n_rows` rows are among rows of the whole, and their shard."""
        rows = rows.astype(np.int32 if self.n_total < 2**31 else np.int64, copy=False)
        own = self.own_rows(rows, n_rows)
        is_own = own >= 0
        numbers = np.where(is_own, np.cumsum(is_own) - 1, -1)
        return own[is_own], Shard(self.processes, len(rows), numbers=numbers.astype(rows.dtype))

    def compute(self, point: str, function: Callable[..., Any], *arrays: HostArray | None) -> Any:
        """Return ``function(*arrays)`` of the rows of all processes, in the order of the whole.

        Process 0 computes it. An array must be None in all processes or in none.
        """
        wholes, value = self.gather(point, *arrays), None
        with self.processes.together(point):
            if wholes is not None:
                value = function(*wholes)
        return self.processes.share(point, value)

    def gather(self, point: str, *arrays: HostArray | None) -> list[Any] | None:
        """Return arrays of the rows of all processes, in the order of the whole, at process 0; else None."""
        own = None
        if self.numbers is not None:
            places = np.flatnonzero(self.numbers >= 0)
            own = np.empty_like(self.numbers, shape=len(places))
            own[self.numbers[places]] = places
        parts = self.processes.gather(point, (own, arrays))
        if parts is None:
            return None
        order = None if own is None else np.argsort(np.concatenate([numbers for numbers, _ in parts]))
        wholes: list[Any] = []
        for each in zip(*(own_arrays for _, own_arrays in parts)):
            whole = None if each[0] is None else np.concatenate(each)
            wholes.append(whole if whole is None or order is None else whole[order])
        return wholes

    def own_rows(self, order: Rows, n_rows: int) -> Rows:
        """Return the numbers, among this process's `n_rows` rows, of rows of the whole; -1 for others."""
        if self.numbers is not None:
            own: Rows = self.numbers[order]
            return own
        own = order - order.dtype.type(self.start)
        own[(own < 0) | (own >= n_rows)] = -1
        return own


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth value to compare by
class Samples:
    """Samples to train on, or to measure on.

    Parameters
    ----------
    place : Placement
        Where to compute, and in which dtype.
    X : array of shape (n, n_features)
        There, or all arrays on the host, as NumPy's. Of any real dtype; for NumPy also a SciPy CSR matrix.
        Batches are in `place`, and cast to its dtype.
    y : array of shape (n, n_outputs), optional
        Of any real dtype or bool.
    sample_weight : array of shape (n,), optional
    rows : array of int, optional
        Indices of the rows to use, on the host; all by default.
    shard : Shard, optional
        Which rows of the whole these are, if other processes have the others.
    """

    place: Placement
    X: Array
    y: Array = None
    sample_weight: Array | None = None
    rows: Rows | None = None
    shard: Shard | None = None

    def __len__(self) -> int:
        return int(self.X.shape[0]) if self.rows is None else len(self.rows)

    @property
    def n_total(self) -> int:
        """The number of rows that all processes have together."""
        return len(self) if self.shard is None else self.shard.n_total

    def sharded(self, processes: Processes | None, shard: Shard | None = None) -> Samples:
        """Return the samples as those of one of these processes; all must call this.

        `shard` says which rows of the whole they are, if not those that follow the process before.
        """
        if processes is None:
            return self
        shard = Shard.of(processes, len(self)) if shard is None else shard
        if not shard.n_total:
            raise shared(ValueError("`X` must have at least one row in one of the processes, got none"))
        return replace(self, shard=shard)

    def choose(self, rows: Rows) -> Samples:
        """Return some rows: those with these numbers in the whole, of which a process gets its own."""
        if self.shard is None:
            return replace(self, rows=rows)
        own, shard = self.shard.choose(rows, len(self))
        return replace(self, rows=own, shard=shard)

    @property
    def xp(self) -> Namespace:
        """The namespace to compute in; see `mlp_xp._arrays.computing_namespace`."""
        return computing_namespace(self.place.xp, self.X)

    @property
    def is_on_host(self) -> bool:
        """Whether the arrays are on the host, and computed with elsewhere."""
        return self.place.xp is not np and isinstance(self.X, np.ndarray)

    @property
    def arrays(self) -> Batch:
        """The arrays as they were given, with all rows."""
        return Batch(self.X, self.y, self.sample_weight)

    @property
    def row_bytes(self) -> int:
        """The number of bytes of a row in a batch."""
        numbers = sum(math.prod(array.shape[1:]) for array in self.arrays if array is not None)
        return int(numbers * self.place.xp.finfo(self.place.dtype).bits // 8)

    @property
    def processes(self) -> Processes | None:
        """The processes that have the other rows."""
        return None if self.shard is None else self.shard.processes

    def arranged(self, batch_size: int) -> Samples:
        """Return the samples with arrays copied as far as that makes batches of this size faster to take."""
        samples = self.with_contiguous_rows() if batch_size < self.n_total else self
        return samples.with_small_arrays_cast()

    def with_small_arrays_cast(self) -> Samples:
        """Return the samples with arrays of up to a block's size cast once, so that batches need no cast.

        NumPy arrays of that size are made contiguous too. Arrays that are streamed stay as they are.
        """
        if self.is_on_host or all(map(self._is_as_batches_are, self.arrays)):
            return self
        X, y, sample_weight = (
            array
            if array is None or array.shape[0] > rows_per_block(math.prod(array.shape[1:]))
            else self._contiguous(self._cast(array))
            for array in self.arrays
        )
        return replace(self, X=X, y=y, sample_weight=sample_weight)

    def _is_as_batches_are(self, array: Array | None) -> bool:
        """Whether an array is None, or needs no cast and is contiguous, as far as that matters."""
        if isinstance(array, np.ndarray):
            return array.dtype == self.place.dtype and array.flags.c_contiguous
        return array is None or (self.xp is not np and array.dtype == self.place.dtype)

    def with_contiguous_rows(self) -> Samples:
        """Return the samples with an X that is stored by columns, as tables are, copied to C order.

        Taking scattered rows of such an array misses the cache once for each number: ten times as slow and
        more. A memory map, which may be larger than memory, is not copied.
        """
        is_numpy = isinstance(self.X, np.ndarray)
        is_copied = is_numpy and _is_by_columns(self.X) and not _is_memory_map(self.X)
        return replace(self, X=np.ascontiguousarray(self.X)) if is_copied else self

    def whole(self) -> Batch:
        """Return all samples as one batch."""
        return Batch(*self._all_rows(self.arrays))

    def targets(self) -> tuple[Array, Array | None]:
        """Return all of `y` and of the sample weights, in the place to compute."""
        y, sample_weight = self._all_rows((self.y, self.sample_weight))
        return y, sample_weight

    def _all_rows(self, arrays: Sequence[Array | None]) -> list[Array | None]:
        """Return all rows of arrays, in the place to compute and its dtype."""
        indices, everything = self._row_indices(None), slice(0, len(self))
        if self.is_on_host:
            return [
                None if array is None else self._cast(moved(self.place, array, indices)) for array in arrays
            ]
        take = self._row_getter(indices)
        return [take(array, everything) for array in arrays]

    def batches(self, size: int, order: Rows | None = None) -> Iterator[Batch]:
        """Yield batches of `size` samples, the last one smaller, in the given order or that of the rows."""
        if self.is_on_host:
            for arrays in self._uploaded(size, self._row_indices(order)):
                yield Batch(*(None if array is None else self._cast(array) for array in arrays))
            return
        take = self._row_getter(self._row_indices(order))
        for some in row_slices(len(self), size):
            yield Batch(take(self.X, some), take(self.y, some), take(self.sample_weight, some))

    def _uploaded(self, size: int, indices: Rows | None) -> Iterator[list[Any]]:
        """Yield batches of arrays on the host, not cast; the next one comes while one is computed with."""
        takers = {id(array): RowTaker(array) for array in self.arrays if array is not None}

        def rows_of(array: HostArray, some: slice) -> HostRows:
            def gather(part: slice, out: HostArray) -> None:
                rows = slice(some.start + part.start, some.start + part.stop)
                takers[id(array)].read(rows, indices, out)

            return HostRows(
                (some.stop - some.start, *array.shape[1:]), moved_dtype(self.place, array), gather
            )

        with uploading(self.place) as upload:

            def begin(some: slice) -> Upload:
                return upload([None if array is None else rows_of(array, some) for array in self.arrays])

            slices = row_slices(len(self), size)
            coming = deque(map(begin, islice(slices, 1)))
            while coming:
                coming.extend(map(begin, islice(slices, 1)))
                here = coming.popleft()
                here.wait()
                yield here.arrays
                del here

    def moved_bytes(self, apart_from: Container[int] = ()) -> int:
        """Return what arrays on the host take in the place to compute, apart from those with these ids."""
        n_bits = self.place.xp.finfo(self.place.dtype).bits
        return sum(
            int(array.size) * (n_bits // 8 if array.dtype.kind == "f" else array.itemsize)
            for array in self.arrays
            if array is not None and id(array) not in apart_from
        )

    def map(
        self,
        function: Callable[[Namespace, Any, Array], Array],
        params: Any,
        row_width: int,
        *,
        fetch: bool = False,
    ) -> Array:
        """Apply ``function(xp, params, X)`` to all rows, in blocks that bound the memory.

        `row_width` is the largest number of elements that a row becomes, see `row_width()`. With `fetch` the
        result is a NumPy array, and only a few blocks are on the device at a time.
        """
        if not len(self):  # of a process
            return function(self.xp, params, self.whole().X)
        if self.xp is np:
            from mlp_xp._compiler.rows import map_rows  # not at the top: `import mlp_xp` imports no compiler

            take = self._row_getter(self._row_indices(None))
            mapped = map_rows(function, params, lambda rows: take(self.X, rows), len(self), row_width)
            if mapped is not None:
                return mapped
        inputs = replace(self, y=None, sample_weight=None)
        blocks = (function(self.xp, params, batch.X) for batch in inputs.blocks(row_width))
        if fetch:
            return _fetched(blocks, len(self))
        computed = list(blocks)
        return computed[0] if len(computed) == 1 else self.xp.concat(computed, axis=0)

    def row_width(self, layer_sizes: Sequence[int]) -> int:
        """Return the largest number of elements that a row becomes on its way through these layers."""
        is_view = self.xp is np and self.rows is None and self.X.dtype == self.place.dtype
        # Blocks of other libraries are the same whether they are streamed or not.
        return max(layer_sizes[1:] if is_view or is_sparse(self.X) else layer_sizes)

    def blocks(self, row_width: int) -> Iterator[Batch]:
        """Yield batches in the order of the rows, of so many rows that a block has a bounded size."""
        return self.batches(self.rows_per_block(row_width))

    def rows_per_block(self, row_width: int) -> int:
        """Return the number of rows of a block."""
        return rows_per_block(row_width, self.place)

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
        if order is None or self.place.xp is np or self.is_on_host:
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


def _fetched(blocks: Iterator[Array], n_rows: int) -> HostArray:
    """Return blocks of rows from a device as one NumPy array.

    A block is fetched, which waits for it, only when the next one has been given to the device.
    """
    results: HostArray | None = None
    start, before = 0, None
    for block in chain(blocks, [None]):
        if before is not None:
            host = to_host(before)
            if results is None:
                results = np.empty((n_rows, *host.shape[1:]), host.dtype)
            results[start : start + len(host)] = host
            start += len(host)
        before = block
    assert results is not None
    return results


def moved_if_they_fit(
    n_bytes: float | None, samples: Samples, validation: Samples | None = None
) -> tuple[Samples, Samples | None]:
    """Return samples with their arrays moved from the host to the place to compute, if they fit there.

    Those that do not fit are returned as they are, to be streamed. Arrays that both share are moved once.

    Parameters
    ----------
    n_bytes : float or None
        What the device has for them. None if that is not known: then all are moved but large memory maps.
    samples : Samples
    validation : Samples, optional
    """
    known: dict[int, Array] = {}
    placed = _moved_if_it_fits(n_bytes, samples, known)
    if validation is None:
        return placed, None
    if n_bytes is not None and placed is not samples:
        n_bytes -= samples.moved_bytes()
    return placed, _moved_if_it_fits(n_bytes, validation, known)


def _moved_if_it_fits(n_bytes: float | None, samples: Samples, known: dict[int, Array]) -> Samples:
    """Return samples moved if they fit; `known` has arrays moved before, by the ids of those on the host."""
    if not samples.is_on_host:
        return samples
    arrays = [array for array in samples.arrays if array is not None]
    if n_bytes is None:
        fits = not any(_is_memory_map(array) and array.nbytes > MAX_BYTES_OF_MOVED_MAP for array in arrays)
    else:
        fits = samples.moved_bytes(apart_from=known) <= n_bytes
    if not fits:
        return samples
    try:
        new = {
            id(array): known[id(array)] if id(array) in known else moved(samples.place, array)
            for array in arrays
        }
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_memory(samples.place)
        return samples
    known |= new
    X, y, sample_weight = (None if array is None else new[id(array)] for array in samples.arrays)
    return replace(samples, X=X, y=y, sample_weight=sample_weight)


def moved(place: Placement, array: HostArray, order: Rows | None = None) -> Array:
    """Return an array on the host, or its rows in an order, in a place; that takes little memory here.

    See `Placement.transfer`. JAX's may be a view of the array on a CPU.
    """
    if array.nbytes <= MAX_BYTES_COPIED_ON_HOST:
        return place.transfer(array if order is None else array[order])
    dtype = moved_dtype(place, array)
    if is_jax(place.xp):  # its arrays cannot be written in part by part
        rows = array if order is None else array[order]
        return put(place, np.asarray(rows, dtype, order="C"))
    samples = Samples(place, array, rows=order)
    n_each = max(1, MAX_BYTES_COPIED_ON_HOST * len(array) // array.nbytes)
    whole: Array = None
    for some, (part, *_) in zip(row_slices(len(samples), n_each), samples._uploaded(n_each, order)):
        part = place.cast(part) if dtype.kind == "f" else part
        if whole is None:
            shape = (len(samples), *array.shape[1:])
            whole = place.xp.empty(shape, dtype=part.dtype, device=place.device)
        whole[some, ...] = part
    return whole


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

    def read(self, rows: slice, order: Rows | None, target: HostArray) -> None:
        """Write this part of the rows, in an order or as they are stored, to another array."""
        if order is None:
            target[...] = self.array[rows]
        else:
            self.take_into(target, order[rows])

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
