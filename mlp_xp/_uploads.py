"""Copies of host memory on a device, made while the device computes: how samples larger than it are streamed.

A copy to a CUDA device overlaps the kernels of other streams only if it has a stream of its own and comes
from pinned memory, which the driver can read without copying it first. The arrays are allocated on the
current stream, the one that computes. So the copy first waits for what this stream has been given, which may
still read the same memory under another array's name; and this stream waits for the copy before it reads it.

Like `mlp_xp._arrays`, this module refers to array libraries by name.
"""

from __future__ import annotations

import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlp_xp._arrays import Array, HostArray, Placement, is_cupy, is_jax, is_on_cuda, row_slices

MAX_THREADS = 4
"""Maximum number of threads that gather rows for a copy. One gathers scattered rows of 3 kB at 6 GB/s, two at
11 (measured on 2 cores of an AMD EPYC); a PCIe bus copies 25 to 50."""

MIN_BYTES_PER_THREAD = 2**20
"""Minimum number of bytes that a thread gathers: chosen so that it takes much longer than to start it."""

N_PINNED_BUFFERS = 2
"""Number of pinned buffers in turn for each of a batch's arrays: rows are gathered in one while another is
copied."""


class HostRows(NamedTuple):
    """Rows on the host, to be gathered for a copy.

    Attributes
    ----------
    shape : tuple of int
        Its first entry is the number of rows.
    dtype : dtype
        Of the copy.
    gather : callable ``(slice, out)``
        Writes this part of the rows into an array; other threads may write other parts at the same time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    gather: Callable[[slice, HostArray], None]


class Upload(NamedTuple):
    """Arrays on a device, whose elements may still be on their way.

    Attributes
    ----------
    arrays : list of array or None
    wait : callable
        Makes the stream that was current when the upload began wait for the elements; the host does not
        wait. To be called before the arrays are used or freed.
    """

    arrays: list[Array | None]
    wait: Callable[[], None]


class _Transfer(Protocol):
    """Copies of host memory by one array library."""

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        """Return host memory to gather rows in, which nothing reads or writes."""

    def send(self, buffers: Sequence[HostArray]) -> tuple[list[Array], Callable[[], None]]:
        """Begin to copy the buffers returned last; return the arrays, and `Upload.wait`."""


@contextmanager
def uploading(place: Placement) -> Iterator[Callable[[Sequence[HostRows | None]], Upload]]:
    """Context for uploads to a placement: yields the function that gathers rows and begins to copy them.

    Arrays have the dtype that the rows are gathered in, which may be another than the placement's.
    """
    transfer = _make_transfer(place)
    with ThreadPoolExecutor(min(MAX_THREADS, _n_cpus())) as threads:

        def upload(each: Sequence[HostRows | None]) -> Upload:
            buffers = []
            for rows in each:
                if rows is not None:
                    buffers.append(transfer.buffer(rows.shape, rows.dtype))
                    _gather(rows, buffers[-1], threads)
            arrays, wait = transfer.send(buffers)
            sent = iter(arrays)
            return Upload([None if rows is None else next(sent) for rows in each], wait)

        yield upload


def _n_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gather(rows: HostRows, out: HostArray, threads: ThreadPoolExecutor) -> None:
    n_parts = min(MAX_THREADS, _n_cpus(), out.nbytes // MIN_BYTES_PER_THREAD)
    if n_parts < 2:
        rows.gather(slice(0, len(out)), out)
        return
    parts = row_slices(len(out), -(-len(out) // n_parts))
    for _ in threads.map(lambda part: rows.gather(part, out[part]), parts):
        pass  # an error of a thread is raised here


def _make_transfer(place: Placement) -> _Transfer:
    if is_cupy(place.xp):
        return _CupyTransfer()
    if is_on_cuda(place):
        return _TorchTransfer(place)
    return _PlainTransfer(place)


class _PlainTransfer:
    """Copies by the library's own function: JAX's returns before the copy is done, others may wait for it."""

    def __init__(self, place: Placement) -> None:
        self.place = place

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        """Return new memory: the array may be a view of it."""
        return np.empty(shape, dtype)

    def send(self, buffers: Sequence[HostArray]) -> tuple[list[Array], Callable[[], None]]:
        """Copy the buffers."""
        xp, device = self.place.xp, self.place.device
        if is_jax(xp):  # unlike JAX's `asarray`, `device_put` compiles nothing
            return [sys.modules["jax"].device_put(buffer, device) for buffer in buffers], _do_nothing
        return [xp.asarray(buffer, device=device) for buffer in buffers], _do_nothing


def _do_nothing() -> None:
    pass


class PinnedBuffer:
    """Pinned memory on the host, and the event after which the last copy of it is done.

    Parameters
    ----------
    allocate : callable ``(n_bytes) -> array of uint8``
    event : event of CuPy or PyTorch
    """

    def __init__(self, allocate: Callable[[int], HostArray], event: Any) -> None:
        self.allocate = allocate
        self.copied = event
        self.memory = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: Any) -> HostArray:
        """Return an array in the memory, which is allocated again if it is too small; waits for its copy."""
        self.copied.synchronize()
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self.memory.size < n_bytes:
            self.memory = np.empty(0, np.uint8)  # freed first
            self.memory = self.allocate(n_bytes)
        array: HostArray = self.memory[:n_bytes].view(dtype).reshape(shape)
        return array


def allocate_by_cupy(n_bytes: int) -> HostArray:
    """Return pinned memory."""
    return np.frombuffer(sys.modules["cupy"].cuda.alloc_pinned_memory(n_bytes), np.uint8, n_bytes)


class _PinnedTransfer(ABC):
    """Copies from pinned memory on a stream of their own.

    The host waits where the memory is still read. So it is ahead of the device by a few copies at most.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.pinned: list[Iterator[PinnedBuffer]] = []  # for the first array of each batch, the second, ...
        self.filled: list[PinnedBuffer] = []

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        """Return pinned memory, once the copy that has read it last is done."""
        position = len(self.filled)
        if position == len(self.pinned):
            self.pinned.append(cycle([self.new_buffer() for _ in range(N_PINNED_BUFFERS)]))
        self.filled.append(next(self.pinned[position]))
        return self.filled[-1].array(shape, dtype)

    def send(self, buffers: Sequence[HostArray]) -> tuple[list[Array], Callable[[], None]]:
        """Begin to copy the buffers."""
        filled, self.filled = self.filled, []
        computing = self.current_stream()
        arrays = list(map(self.empty_like, buffers))
        self.stream.wait_event(self.event_after(computing))
        for array, buffer, pinned in zip(arrays, buffers, filled):
            self.copy(array, buffer)
            pinned.copied.record(self.stream)
        sent = self.event_after(self.stream)
        return arrays, lambda: computing.wait_event(sent)

    def event_after(self, stream: Any) -> Any:
        """Return an event after what a stream has been given."""
        event = self.new_event()
        event.record(stream)
        return event

    @abstractmethod
    def new_event(self) -> Any:
        """Return a new event."""

    @abstractmethod
    def new_buffer(self) -> PinnedBuffer:
        """Return a new buffer."""

    @abstractmethod
    def current_stream(self) -> Any:
        """Return the stream that computes."""

    @abstractmethod
    def empty_like(self, buffer: HostArray) -> Array:
        """Allocate an array on the device, on the current stream."""

    @abstractmethod
    def copy(self, array: Array, buffer: HostArray) -> None:
        """Begin to copy a buffer, on the stream for copies."""


class _CupyTransfer(_PinnedTransfer):
    def __init__(self) -> None:
        self.cupy = sys.modules["cupy"]
        super().__init__(self.cupy.cuda.Stream(non_blocking=True))

    def new_event(self) -> Any:
        return self.cupy.cuda.Event()

    def new_buffer(self) -> PinnedBuffer:
        return PinnedBuffer(allocate_by_cupy, self.new_event())

    def current_stream(self) -> Any:
        return self.cupy.cuda.get_current_stream()

    def empty_like(self, buffer: HostArray) -> Array:
        return self.cupy.empty(buffer.shape, dtype=buffer.dtype)

    def copy(self, array: Array, buffer: HostArray) -> None:
        array.set(buffer, stream=self.stream)


class _TorchTransfer(_PinnedTransfer):
    def __init__(self, place: Placement) -> None:
        self.torch = sys.modules["torch"]
        self.device = place.device
        super().__init__(self.torch.cuda.Stream(self.device))

    def new_event(self) -> Any:
        return self.torch.cuda.Event()

    def new_buffer(self) -> PinnedBuffer:
        return PinnedBuffer(self._allocate, self.new_event())

    def _allocate(self, n_bytes: int) -> HostArray:
        memory: HostArray = self.torch.empty(n_bytes, dtype=self.torch.uint8, pin_memory=True).numpy()
        return memory

    def current_stream(self) -> Any:
        return self.torch.cuda.current_stream(self.device)

    def empty_like(self, buffer: HostArray) -> Array:
        return self.torch.empty_like(self.torch.from_numpy(buffer), device=self.device)

    def copy(self, array: Array, buffer: HostArray) -> None:
        with self.torch.cuda.stream(self.stream):
            array.copy_(self.torch.from_numpy(buffer), non_blocking=True)
