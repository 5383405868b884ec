"""Streams: batches to train on that come one after the other, for data that never are one array.

A `Stream` takes the place of `Samples` in a training. It reads its iterable once an epoch, and checks each
batch as it comes, so that no more than two of them are in memory: the one to train on, and the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._arrays import Array, HostArray, copy_array, is_sparse, type_name
from mlp_xp._processes import alone, current_processes, is_shared
from mlp_xp._samples import Rows, Samples
from mlp_xp._validation import RandomSource, is_iterable

ATTRIBUTES_OF_DATA = ("shape", "dtype", "columns", "__array__", "__dataframe__")
"""What arrays and tables have, which can be iterated over too, and iterables of batches have not."""


class RawBatch(NamedTuple):
    """A batch as a stream yields it, or the parts of a table, not yet checked."""

    X: Any
    y: Any
    sample_weight: Any = None


def is_stream(X: Any) -> bool:
    """Whether this may be an iterable of batches: it is no array, table, text or mapping."""
    if not is_iterable(X) or isinstance(X, (dict, set)) or is_sparse(X):
        return False
    return not any(hasattr(X, name) for name in ATTRIBUTES_OF_DATA)


def as_batch(batch: Any) -> RawBatch:
    """Return a tuple (X, y) or (X, y, sample_weight) by its names."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        what = f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else None
        raise TypeError(f"it must be a tuple (X, y) or (X, y, sample_weight), got {what or type_name(batch)}")
    return RawBatch(*batch)


@contextmanager
def errors_in_batch(number: int) -> Iterator[None]:
    """Have errors of checks say in which batch of a stream they are."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if is_shared(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"in batch {number} of `X`: {error}") from error


class RawStream:
    """The batches of a stream as they come.

    Parameters
    ----------
    batches : iterable
        Passed over once an epoch.
    epochs : int
    epochs_name : str
        The argument that `epochs` is, for the error that an iterator cannot be passed over so often.
    split : callable ``(batch) -> RawBatch``
        Raises a TypeError or ValueError if a batch is something else.

    Attributes
    ----------
    first : RawBatch
        The first batch of the first epoch.
    is_iterator : bool
        Whether the batches can be passed over once only.
    number : int
        Of the batch read last, from 1.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        epochs: int,
        epochs_name: str = "epochs",
        split: Callable[[Any], RawBatch] = as_batch,
    ) -> None:
        self.batches = batches
        self.split = split
        iterator = iter(batches)
        self.is_iterator = iterator is batches
        if self.is_iterator and epochs > 1:
            raise ValueError(
                f"`{epochs_name}` must be 1 where `X` is an iterator, which can be passed over once, got "
                f"{epochs} and a {type(batches).__name__}. A list, a PyTorch DataLoader, or an object whose "
                "`__iter__` makes a new iterator each time can be passed over again"
            )
        self._iterator: Iterator[Any] | None = iterator
        self.number = 0
        for first in islice(iterator, 1):
            self.first = self._split(first)
            return
        raise ValueError("`X` must yield at least one batch, got none")

    def rest_of_epoch(self) -> Iterator[RawBatch]:
        """Yield the batches of an epoch, of the first one those behind the first batch."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            iterator, self.number = iter(self.batches), 0
        return map(self._split, iterator)  # unlike a loop here, it refers to no batch while the next is made

    def _split(self, batch: Any) -> RawBatch:
        self.number += 1
        with errors_in_batch(self.number):
            return self.split(batch)


class StreamPosition(NamedTuple):
    """How far a training on a stream has come in the epoch under way.

    Attributes
    ----------
    n_batches : int
        Those that steps were run on.
    n_rows : int
        Their rows.
    mean_loss : float
    n_rows_of_all : int
        Rows of all epochs, as `Stream.n_rows`.
    """

    n_batches: int
    n_rows: int
    mean_loss: float
    n_rows_of_all: int


class Stream:
    """Batches to train on, as checked samples; in the place of `Samples` in a training.

    Parameters
    ----------
    raw : RawStream
        Its `first` is taken away.
    first : Samples
        Its first batch.
    check : callable ``(RawBatch) -> Samples``
        Raises a TypeError or ValueError if a later batch does not fit.
    randoms : iterator of RandomState or Generator, optional
        For each batch the source of the order of its rows, if it is divided into several steps. By default
        they are taken as they come.
    rate : callable ``(n_rows) -> float``, optional
        The learning rate after so many rows, in place of that of the epoch.

    Attributes
    ----------
    place : Placement
    xp : namespace
        To compute in.
    processes : Processes or None
        Those that train together, each on a stream of its own.
    n_rows : int
        How many rows, of all processes, steps were run on.
    """

    def __init__(
        self,
        raw: RawStream,
        first: Samples,
        check: Callable[[RawBatch], Samples],
        *,
        randoms: Iterator[RandomSource] | None = None,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        del raw.first
        self.raw = raw
        self.check = check
        self.randoms = randoms
        self.rate = rate
        self.place, self.xp = first.place, first.xp
        self.processes = current_processes()
        self.n_rows = 0
        self._is_on_host = first.is_on_host
        self._floats = _floating_dtype(first)
        self._pending = [first]
        self._no_rows = None if self.processes is None else _no_rows(first)

    @property
    def first(self) -> Samples:
        """The first batch of the first epoch, until that begins."""
        return self._pending[0]

    def outline(self) -> Samples:
        """Return arrays on the host like those of the first batch, which take no memory."""

        def zeros(array: Array | None) -> HostArray | None:
            return None if array is None else np.broadcast_to(np.zeros((), np.float32), array.shape)

        X, y, sample_weight = map(zeros, self.first.arrays)
        return Samples(self.place, X, y, sample_weight)

    def epoch(self, n_skipped: int = 0) -> Iterator[Samples]:
        """Yield the batches of an epoch behind some that are read only."""
        if n_skipped:
            n_skipped -= len(self._pending)
            self._pending.clear()
        while self._pending:
            yield self._pending.pop()
        yield from map(self._checked, islice(self.raw.rest_of_epoch(), n_skipped, None))

    def arranged(self, batch_size: int) -> Stream:
        """Return this: batches are arranged one by one."""
        return self

    def joined(self, samples: Samples | None) -> Samples | None:
        """Return a batch as the part that it is of what the streams of all processes yield now.

        A stream that has ended yields no rows; None if all have ended.
        """
        processes = self.processes
        if processes is None:
            return samples
        if not processes.any("a batch of the streams", samples is not None):
            return None
        samples = self._no_rows if samples is None else samples
        assert samples is not None
        return samples.sharded(processes)

    def order(self, n_rows: int, batch_size: int) -> Rows | None:
        """Return the order of a batch's rows; None for that in which they came."""
        if self.randoms is None:
            return None
        random = next(self.randoms)
        if batch_size >= n_rows:
            return None
        order = np.arange(n_rows, dtype=np.int32 if n_rows < 2**31 else np.int64)
        random.shuffle(order)
        return order

    def _checked(self, batch: RawBatch) -> Samples:
        if self.processes is not None:
            with alone():
                return self._check(batch)
        return self._check(batch)

    def _check(self, batch: RawBatch) -> Samples:
        with errors_in_batch(self.raw.number):
            samples = self.check(batch)
            if samples.xp is not self.xp or samples.is_on_host != self._is_on_host:
                raise ValueError("`X` must be of the same kind as in the batches before, dense or sparse")
            floats = _floating_dtype(samples)
            if self._floats is None:
                self._floats = floats
            if floats is not None and floats != self._floats:  # None equals NumPy's float64
                raise ValueError(f"`X` must have dtype {self._floats} as the batches before, got {floats}")
            return samples


def _floating_dtype(samples: Samples) -> Any:
    """Return the dtype of X if it holds floating numbers, else None: integers are cast."""
    dtype = samples.X.dtype
    if isinstance(dtype, np.dtype):
        return None if dtype.kind in "biu" else dtype
    return dtype if samples.place.xp.isdtype(dtype, "real floating") else None


def _no_rows(samples: Samples) -> Samples:
    """Return samples of the same width without rows."""
    X, y = (
        array[:0] if is_sparse(array) else _copied_start(samples, array) for array in (samples.X, samples.y)
    )
    return replace(samples, X=X, y=y, sample_weight=None, shard=None)


def _copied_start(samples: Samples, array: Array) -> Array:
    xp = np if isinstance(array, np.ndarray) else samples.place.xp
    return copy_array(xp, array[:0, ...])
