"""Copies of host memory on a device, made while the device computes: how samples larger than it are streamed.

A copy to a CUDA device overlaps the kernels of other streams only if it has a stream of its own and comes
from pinned memory, which the driver can read without copying it first. The stream that computes waits for
the copy before it reads the array. The array is allocated on the stream for copies, so that only later copies
use its memory again, whenever it is freed; and each copy first waits for what the other stream has been
given, which may still read that memory.

Like `mlp_xp._arrays`, this module refers to array libraries by name.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlp_xp._arrays import (
    Array,
    HostArray,
    Placement,
    is_cupy,
    is_jax,
    is_on_cuda,
    native_dtype,
    row_slices,
)
from mlp_xp._devices import MEMORY_RELEASE_HOOKS

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
        wait. To be called before the arrays are read.
    """

    arrays: list[Array]
    wait: Callable[[], None]


class _Transfer(Protocol):
    """Copies of host memory by one array library."""

    def buffers(self, each: Sequence[HostRows]) -> list[HostArray]:
        """Return host memory to gather rows in, which nothing reads or writes."""

    def send(self, buffers: Sequence[HostArray]) -> tuple[list[Array], Callable[[], None]]:
        """Begin to copy the buffers returned last; return the arrays, and `Upload.wait`."""


@contextmanager
def uploading(place: Placement) -> Iterator[Callable[[Sequence[HostRows | None]], Upload]]:
    """Context for uploads to a placement: yields the function that gathers rows and begins to copy them.

    Arrays have the dtype that the rows are gathered in, which may be another than the placement's.
    """
    transfer, gatherer = _transfer_to(place), _Gatherer()

    def upload(each: Sequence[HostRows | None]) -> Upload:
        to_send = [rows for rows in each if rows is not None]
        buffers = transfer.buffers(to_send)
        for rows, buffer in zip(to_send, buffers):
            gatherer.gather(rows, buffer)
        arrays, wait = transfer.send(buffers)
        sent = iter(arrays)
        return Upload([None if rows is None else next(sent) for rows in each], wait)

    try:
        yield upload
    finally:
        gatherer.close()


def moved_dtype(place: Placement, array: HostArray) -> np.dtype[Any]:
    """Return the dtype that an array on the host is moved in, see `Placement.transfer`."""
    return place.host_dtype if array.dtype.kind == "f" else native_dtype(array)


def put(place: Placement, host: HostArray) -> Array:
    """Return an array on the host in a place by the library's function; it may be a view of that array."""
    if is_jax(place.xp):  # unlike JAX's `asarray`, `device_put` compiles nothing
        return sys.modules["jax"].device_put(host, place.device)
    return place.xp.asarray(host, device=place.device)


def _n_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Gatherer:
    """Gathers rows, many by several threads."""

    def __init__(self) -> None:
        self.threads: Any = None

    def gather(self, rows: HostRows, out: HostArray) -> None:
        """Write rows into an array."""
        n_parts = min(MAX_THREADS, _n_cpus(), out.nbytes // MIN_BYTES_PER_THREAD)
        parts = list(row_slices(len(out), -(-len(out) // max(1, n_parts))))
        futures = []
        try:
            if n_parts > 1:
                if self.threads is None:
                    from concurrent.futures import ThreadPoolExecutor  # its import takes milliseconds

                    self.threads = ThreadPoolExecutor(MAX_THREADS)
                futures = [self.threads.submit(rows.gather, part, out[part]) for part in parts[1:]]
        except RuntimeError:  # the main thread has ended: there are no new threads
            parts[1:] = []
            parts[0] = slice(0, len(out))
        rows.gather(parts[0], out[parts[0]])
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads."""
        if self.threads is not None:
            self.threads.shutdown()


_THREAD_LOCAL = threading.local()
"""The transfers of each thread, by library and device. They are reused, as libraries have few streams; and
their pinned memory may still be read by the last copies when a use of them ends."""


def _transfer_to(place: Placement) -> _Transfer:
    if not is_on_cuda(place):
        return _PlainTransfer(place)
    kind = _CupyTransfer if is_cupy(place.xp) else _TorchTransfer
    transfers: dict[Any, _Transfer] = vars(_THREAD_LOCAL).setdefault("transfers", {})
    key = kind, str(place.device)
    if key not in transfers:
        transfers[key] = kind(place)
    return transfers[key]


def _free_pinned_memory() -> None:
    vars(_THREAD_LOCAL).pop("transfers", None)


MEMORY_RELEASE_HOOKS.append(_free_pinned_memory)


@contextmanager
def streaming() -> Iterator[None]:
    """Context of a training or of predictions, after which this thread's pinned memory is freed."""
    try:
        yield
    finally:
        _free_pinned_memory()


class _PlainTransfer:
    """Copies by the library's own function: JAX's returns before the copy is done, others may wait for it."""

    def __init__(self, place: Placement) -> None:
        self.place = place

    def buffers(self, each: Sequence[HostRows]) -> list[HostArray]:
        """Return new memory: the arrays may be views of it."""
        return [np.empty(rows.shape, rows.dtype) for rows in each]

    def send(self, buffers: Sequence[HostArray]) -> tuple[list[Array], Callable[[], None]]:
        """Copy the buffers."""
        return [put(self.place, buffer) for buffer in buffers], _do_nothing


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
        # CuPy's pool would hand the memory out again while it is still copied.
        weakref.finalize(self, _synchronize, event).atexit = False

    def array(self, shape: tuple[int, ...], dtype: Any) -> HostArray:
        """Return an array in the memory, which is allocated again if it is too small; waits for its copy."""
        self.copied.synchronize()
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self.memory.size < n_bytes:
            self.memory = np.empty(0, np.uint8)  # freed first
            # Powers of two, because pools keep what is freed for requests of the same size alone.
            self.memory = self.allocate(1 << (n_bytes - 1).bit_length())
        array: HostArray = self.memory[:n_bytes].view(dtype).reshape(shape)
        return array


def _synchronize(event: Any) -> None:
    with suppress(Exception):  # a device that is shut down, or a forked process that has none
        event.synchronize()


def allocate_by_cupy(n_bytes: int) -> HostArray:
    """Return pinned memory."""
    return np.frombuffer(sys.modules["cupy"].cuda.alloc_pinned_memory(n_bytes), np.uint8, n_bytes)


def allocate_by_torch(n_bytes: int) -> HostArray:
    """Return pinned memory."""
    torch = sys.modules["torch"]
    memory: HostArray = torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True).numpy()
    return memory


class _PinnedTransfer(ABC):
    """Copies from pinned memory on a stream of their own.

    The host waits where the memory is still read. So it is ahead of the device by a few copies at most.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.pinned: list[Iterator[PinnedBuffer]] = []  # for the first array of each batch, the second, ...
        self.filled: list[PinnedBuffer] = []

    def buffers(self, each: Sequence[HostRows]) -> list[HostArray]:
        """Return pinned memory, once the copies that have read it last are done."""
        while len(self.pinned) < len(each):
            self.pinned.append(cycle([self.new_buffer() for _ in range(N_PINNED_BUFFERS)]))
        self.filled = [next(ring) for ring, _ in zip(self.pinned, each)]
        return [pinned.array(rows.shape, rows.dtype) for pinned, rows in zip(self.filled, each)]

    def send(self, buffers: Sequence[HostArray]) -> tuple[list[Array], Callable[[], None]]:
        """Begin to copy the buffers."""
        computing = self.current_stream()
        self.stream.wait_event(self.event_after(computing))
        arrays = []
        for buffer, pinned in zip(buffers, self.filled):
            arrays.append(self.copy(buffer))
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
    def copy(self, buffer: HostArray) -> Array:
        """Allocate an array on the stream for copies, and begin to copy a buffer there."""


class _CupyTransfer(_PinnedTransfer):
    def __init__(self, place: Placement) -> None:
        self.cupy = sys.modules["cupy"]
        super().__init__(self.cupy.cuda.Stream(non_blocking=True))

    def new_event(self) -> Any:
        return self.cupy.cuda.Event()

    def new_buffer(self) -> PinnedBuffer:
        return PinnedBuffer(allocate_by_cupy, self.new_event())

    def current_stream(self) -> Any:
        return self.cupy.cuda.get_current_stream()

    def copy(self, buffer: HostArray) -> Array:
        with self.stream:
            array = self.cupy.empty(buffer.shape, dtype=buffer.dtype)
        array.set(buffer, stream=self.stream)
        return array


class _TorchTransfer(_PinnedTransfer):
    def __init__(self, place: Placement) -> None:
        self.torch = sys.modules["torch"]
        self.device = place.device
        # Of a high priority: PyTorch takes these from another pool than the streams of engines, in turn.
        super().__init__(self.torch.cuda.Stream(self.device, priority=-1))

    def new_event(self) -> Any:
        return self.torch.cuda.Event()

    def new_buffer(self) -> PinnedBuffer:
        return PinnedBuffer(allocate_by_torch, self.new_event())

    def current_stream(self) -> Any:
        return self.torch.cuda.current_stream(self.device)

    def copy(self, buffer: HostArray) -> Array:
        source = self.torch.from_numpy(buffer)
        with self.torch.cuda.stream(self.stream):
            array = self.torch.empty_like(source, device=self.device)
            array.copy_(source, non_blocking=True)
        return array
