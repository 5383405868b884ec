"""Stand-ins for CuPy, array_api_compat.cupy and nvmath's cuBLAS that compute on the host.

They raise the errors that CUDA raises. The library runs on them unchanged: `installed` puts the modules into
`sys.modules`. Kernels launched on a stream that captures are recorded and not run. Memory that is freed is
filled with NaN and reused for the next allocation. It is an error to read on one stream what another one has
not written yet, or to use an array of a device that is not current. Modelled on the sources of CuPy 14 and
the manuals of CUDA and cuBLAS.
"""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, ModuleType, SimpleNamespace

import array_api_compat
import numpy as np
import pytest
from array_api_compat.common import _helpers
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided

OUT_OF_MEMORY, ILLEGAL_STATE, UNSUPPORTED, INVALIDATED, ISOLATION = 2, 401, 900, 901, 905
NAMES = {
    2: "cudaErrorMemoryAllocation: out of memory",
    401: "cudaErrorIllegalState: the operation cannot be performed in the present state",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    905: "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another stream",
}
ROUNDING = 512
"""CuPy's pool rounds sizes up to a multiple of so many bytes."""


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        self.status = status
        super().__init__(NAMES[status])


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


class OutOfMemoryError(MemoryError):
    """CuPy's error for exhausted memory."""


class RaceError(AssertionError):
    """A stream reads or writes memory that another one may still be writing."""


class Machine:
    """The devices with their streams and memory, and counts of the calls to them."""

    def __init__(self, n_devices=2, n_bytes=2**28, n_threads=1):
        self.counts = Counter()
        self.n_threads = n_threads
        self.total = [n_bytes] * n_devices
        self.used, self.peak = [0] * n_devices, [0] * n_devices
        self.local = threading.local()
        self.memories = weakref.WeakSet()
        self._streams = weakref.WeakSet()
        self.lock = threading.RLock()
        self.host_knows = {}
        self.null = [Stream(device=number, null=True, machine=self) for number in range(n_devices)]
        self.handles = {}
        self.pinned = weakref.WeakSet()
        self.compute_type = {"float32": 1}
        self.default_pool = MemoryPool(machine=self)

    @property
    def device(self):
        return getattr(self.local, "device", 0)

    @property
    def stream(self):
        streams = getattr(self.local, "streams", {})
        return streams.get(self.device, self.null[self.device])

    @property
    def streams(self):
        with self.lock:
            return list(self._streams)

    def add_stream(self, stream):
        with self.lock:
            self._streams.add(stream)

    def memory_at(self, pointer):
        with self.lock:
            for memory in list(self.memories):
                start = memory.bytes.ctypes.data
                if start <= pointer < start + memory.bytes.size:
                    return memory
        raise AssertionError("a pointer to memory that is not allocated")

    def refuse_where_captured(self, device):
        """Raise CUDA's error, and invalidate the captures, if a stream of the device captures."""
        capturing = [one for one in self.streams if one.device == device and one.work is not None]
        for stream in capturing:
            stream.invalid = True
        if capturing:
            raise CUDARuntimeError(UNSUPPORTED)

    def synchronize(self, stream=None):
        self.counts["synchronisations"] += 1
        if stream is not None and stream.work is not None:
            stream.invalid = True
            raise CUDARuntimeError(INVALIDATED if stream.invalid and not stream.work else UNSUPPORTED)
        if stream is None:
            self.refuse_where_captured(self.device)
        for one in [stream] if stream is not None else self.streams:
            if one.device == self.device or stream is not None:
                _join(self.host_knows, one.known)


MACHINE: Machine


def _join(known, more):
    for key, count in list(more.items()):
        known[key] = max(known.get(key, 0), count)


# Devices, streams, events, graphs.


class Device:
    def __init__(self, device=None):
        if isinstance(device, Device):
            device = device.id
        self.id = MACHINE.device if device is None else device

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    __hash__ = None  # as CuPy's

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        self._stack().append(MACHINE.device)
        MACHINE.local.device = self.id
        return self

    def __exit__(self, *_):
        MACHINE.local.device = self._stack().pop()

    def _stack(self):
        return vars(MACHINE.local).setdefault("stack", [])

    def synchronize(self):
        with self:
            MACHINE.synchronize()

    @property
    def mem_info(self):
        return MACHINE.total[self.id] - MACHINE.used[self.id], MACHINE.total[self.id]

    @property
    def pci_bus_id(self):
        return f"0000:{self.id:02x}:00.0"

    compute_capability = "90"

    @property
    def attributes(self):
        return MappingProxyType({"MaxThreadsPerBlock": MACHINE.n_threads})


class Stream:
    def __init__(self, null=False, non_blocking=False, *, device=None, machine=None):
        machine = machine or MACHINE
        self.machine = machine
        self.device = machine.device if device is None else device
        self.known = {}
        self.work = None
        self.invalid = False
        self.is_null = null
        self.non_blocking = non_blocking
        self.ptr = 0 if null else id(self)
        machine.add_stream(self)
        machine.counts["streams"] += not null

    def __enter__(self):
        if self.device != MACHINE.device:
            raise RuntimeError("a stream of another device than the current one")
        streams = vars(MACHINE.local).setdefault("streams", {})
        vars(MACHINE.local).setdefault("outer", []).append(streams.get(self.device))
        streams[self.device] = self
        return self

    def __exit__(self, *_):
        before = MACHINE.local.outer.pop()
        if before is None:
            del MACHINE.local.streams[self.device]
        else:
            MACHINE.local.streams[self.device] = before

    def launch(self, function):
        """Call a function, or record it if the stream captures."""
        if self.device != MACHINE.device:
            raise CUDARuntimeError(ILLEGAL_STATE)
        if self.invalid:
            raise CUDARuntimeError(INVALIDATED)
        if self.work is not None:
            self.work.append(function)
            return
        function(self)

    def step(self):
        """Return the number of the next piece of work; it follows all that the host has waited for."""
        _join(self.known, self.machine.host_knows)
        self.known[self.ptr] = self.known.get(self.ptr, 0) + 1
        return self.known[self.ptr]

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        if self.work is not None and not event.captured:
            self.invalid = True
            raise CUDARuntimeError(ISOLATION)
        _join(self.known, event.known)

    def synchronize(self):
        self.machine.synchronize(self)

    def begin_capture(self, mode=None):
        if self.is_null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.work is not None:
            raise CUDARuntimeError(ILLEGAL_STATE)
        self.work, self.invalid = [], False
        self.machine.counts["captures"] += 1

    def is_capturing(self):
        if self.invalid:
            raise RuntimeError("the stream was capturing, but an error has invalidated the capture sequence")
        return self.work is not None

    def end_capture(self):
        work, self.work = self.work, None
        invalid, self.invalid = self.invalid, False
        if work is None:
            raise CUDARuntimeError(ILLEGAL_STATE)
        if invalid:
            raise CUDARuntimeError(INVALIDATED)
        return Graph(work)


class Event:
    def __init__(self, *_, **__):
        self.known, self.captured = {}, False

    def record(self, stream=None):
        stream = MACHINE.stream if stream is None else stream
        if stream.invalid:
            raise CUDARuntimeError(INVALIDATED)
        self.captured = stream.work is not None
        self.known = dict(stream.known)

    def synchronize(self):
        if self.captured:
            raise CUDARuntimeError(UNSUPPORTED)
        _join(MACHINE.host_knows, self.known)


class Graph:
    def __init__(self, work):
        self.work = work

    def launch(self, stream=None):
        stream = MACHINE.stream if stream is None else stream
        MACHINE.counts["replays"] += 1
        for function in self.work:
            stream.launch(function)


def get_current_stream():
    return MACHINE.stream


# Memory.


def _forget(memory):
    """Fill it with NaN, as floats. What is as large as cuBLAS's workspace is read by nobody."""
    if memory.size < 2**24:
        memory[:] = 255


class Memory:
    """Memory allocated by cudaMalloc, filled with NaN at first and once it is freed."""

    def __init__(self, size):
        machine = self.machine = MACHINE
        self.device = machine.device
        if machine.used[self.device] + size > machine.total[self.device]:
            raise CUDARuntimeError(OUT_OF_MEMORY)
        machine.counts["allocations"] += 1
        machine.used[self.device] += size
        machine.peak[self.device] = max(machine.peak[self.device], machine.used[self.device])
        self.bytes = np.empty(size, np.uint8)
        _forget(self.bytes)
        self.size = size
        self.writers = {}
        self.former = []  # spans that were in use, and the writers and readers of each

    def __del__(self):
        if hasattr(self, "bytes") and _forget is not None:  # which is None when the interpreter ends
            _forget(self.bytes)
            self.machine.used[self.device] -= self.size


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.offset = mem, offset
        self.ptr = mem.bytes.ctypes.data + offset

    def view(self, shape, dtype):
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.mem.bytes[self.offset : self.offset + n_bytes].view(dtype).reshape(shape)


class Chunk:
    """A part of a pool's memory, free or in use, and its neighbours."""

    def __init__(self, mem, offset, size):
        self.mem, self.offset, self.size = mem, offset, size
        self.free, self.before, self.after = False, None, None


class PooledMemory:
    """A chunk in use, which arrays reference."""

    def __init__(self, pool, arena, chunk):
        self.pool, self.arena, self.chunk = pool, arena, chunk
        self.bytes = chunk.mem.bytes[chunk.offset : chunk.offset + chunk.size]
        self.span = chunk.offset, chunk.offset + chunk.size
        self.writers = {}
        # What may still read or write the memory that is used again.
        for (start, stop), former in chunk.mem.former:
            if start < self.span[1] and self.span[0] < stop:
                _join(self.writers, former)
        with MACHINE.lock:
            MACHINE.memories.add(self)

    def __del__(self):
        if _forget is None:  # the interpreter ends
            return
        _forget(self.bytes)
        start, stop = self.span
        former = self.chunk.mem.former
        former[:] = [one for one in former if not (start <= one[0][0] and one[0][1] <= stop)]
        former.append((self.span, self.writers))
        self.pool.take_back(self.arena, self.chunk)


class MemoryPool:
    """CuPy's pool: best fit, with chunks split and merged, and an arena for each device and stream."""

    def __init__(self, allocator=None, *, machine=None):
        self.machine = machine or MACHINE
        self.allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self.arenas = {}
        self.limit = {}
        self.in_use = Counter()
        self.total = Counter()
        self.peak = 0
        # One lock for all: memory is freed at any time, also while its machine is locked.
        self.lock = self.machine.lock

    def malloc(self, size):
        with self.lock:
            return self._malloc(size)

    def _malloc(self, size):
        size = max(1, -(-size // ROUNDING)) * ROUNDING
        device = self.machine.device
        key = device, self.machine.stream.ptr
        arena = self.arenas.setdefault(key, [])
        fitting = [chunk for chunk in arena if chunk.size >= size]
        if fitting:
            chunk = min(fitting, key=lambda one: one.size)
            arena.remove(chunk)
            if chunk.size > size:
                self._split(arena, chunk, size)
        else:
            chunk = Chunk(self._allocate(size).mem, 0, size)
            self.total[device] += size
        chunk.free = False
        self.in_use[device] += size
        self.peak = max(self.peak, self.in_use[device])
        return MemoryPointer(PooledMemory(self, key, chunk), 0)

    def _split(self, arena, chunk, size):
        rest = Chunk(chunk.mem, chunk.offset + size, chunk.size - size)
        rest.free, rest.before, rest.after = True, chunk, chunk.after
        if chunk.after is not None:
            chunk.after.before = rest
        chunk.after, chunk.size = rest, size
        arena.append(rest)

    def _allocate(self, size):
        device = self.machine.device
        limit = self.limit.get(device, DEFAULT_LIMIT[0])
        if limit and self.total[device] + size > limit:
            self.free_all_blocks()
            if self.total[device] + size > limit:
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (limit {limit:,})")
        for _ in range(3):
            try:
                return self.allocator(size)
            except CUDARuntimeError as error:
                if error.status != OUT_OF_MEMORY:
                    raise
            self.free_all_blocks()
            gc.collect()
        raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")

    def take_back(self, key, chunk):
        with self.lock:
            self._take_back(key, chunk)

    def _take_back(self, key, chunk):
        self.in_use[key[0]] -= chunk.size
        arena = self.arenas.setdefault(key, [])
        if chunk.after is not None and chunk.after.free:
            arena.remove(chunk.after)
            chunk = self._merged(chunk, chunk.after)
        if chunk.before is not None and chunk.before.free:
            arena.remove(chunk.before)
            chunk = self._merged(chunk.before, chunk)
        chunk.free = True
        arena.append(chunk)

    def _merged(self, one, next_one):
        one.size += next_one.size
        one.after = next_one.after
        if one.after is not None:
            one.after.before = one
        return one

    def free_all_blocks(self, stream=None):
        with self.lock:
            self._free_all_blocks()

    def _free_all_blocks(self):
        for (device, _), arena in self.arenas.items():
            if device == self.machine.device:
                self.total[device] -= sum(chunk.size for chunk in arena if chunk.size == chunk.mem.size)
                arena[:] = [chunk for chunk in arena if chunk.size != chunk.mem.size]

    def set_limit(self, size=None, fraction=None):
        self.limit[self.machine.device] = size

    def get_limit(self):
        return self.limit.get(self.machine.device, DEFAULT_LIMIT[0])

    def used_bytes(self):
        return self.in_use[self.machine.device]

    def total_bytes(self):
        return self.total[self.machine.device]

    def free_bytes(self):
        return self.total_bytes() - self.used_bytes()


DEFAULT_LIMIT = [0]
"""The limit of new pools, as set by CUPY_GPU_MEMORY_LIMIT."""


class PinnedMemoryPointer(bytearray):
    def size(self):
        return len(self)


def alloc_pinned_memory(size):
    memory = PinnedMemoryPointer(size)
    MACHINE.counts["pinned"] += 1
    return memory


@contextmanager
def using_allocator(allocator=None):
    before = getattr(MACHINE.local, "allocator", None)
    MACHINE.local.allocator = allocator
    try:
        yield
    finally:
        MACHINE.local.allocator = before


# Arrays.


class ndarray(NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
    """CuPy's array, with NumPy's rules for shapes and dtypes; only `get` copies it to the host."""

    def __init__(self, data, view, device):
        self.data, self.view, self.device = data, view, Device(device)

    shape = property(lambda self: self.view.shape)
    ndim = property(lambda self: self.view.ndim)
    dtype = property(lambda self: self.view.dtype)
    size = property(lambda self: self.view.size)
    nbytes = property(lambda self: self.view.nbytes)
    itemsize = property(lambda self: self.view.itemsize)
    strides = property(lambda self: self.view.strides)
    flags = property(lambda self: self.view.flags)
    T = property(lambda self: self._of(self.view.T))

    def __len__(self):
        return len(self.view)

    def _of(self, view):
        data = SimpleNamespace(mem=self.data.mem, ptr=view.ctypes.data)
        return ndarray(data, view, self.device)

    def get(self, stream=None, out=None):
        machine, current = MACHINE, MACHINE.stream
        if current.work is not None:
            current.invalid = True
            raise CUDARuntimeError(UNSUPPORTED)
        machine.counts["reads"] += 1
        with self.device:
            stream = MACHINE.stream if stream is None else stream
            result = np.empty(self.shape, self.dtype) if out is None else out
            stream.launch(
                lambda on: (_check_reading(on, [self.data.mem.writers]), np.copyto(result, self.view))
            )
            _join(machine.host_knows, stream.known)
        return result

    def set(self, array, stream=None):
        stream = MACHINE.stream if stream is None else stream
        assert (array.dtype, array.shape) == (self.dtype, self.shape)
        if stream.work is not None:
            stream.invalid = True
            raise CUDARuntimeError(UNSUPPORTED)
        base = array
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        pinned = isinstance(base, PinnedMemoryPointer) or isinstance(
            getattr(base, "obj", None), PinnedMemoryPointer
        )
        MACHINE.counts["uploads" if pinned else "pageable uploads"] += 1
        self._write(stream, lambda out: np.copyto(out, array))

    def _write(self, stream, function):
        view, writers = self.view, self.data.mem.writers

        def work(on):
            _check_writing(on, [writers])
            function(view)

        stream.launch(work)

    def reshape(self, *shape):
        view = self.view.reshape(*shape)
        if np.shares_memory(view, self.view):
            return self._of(view)
        return run(lambda x: x.reshape(*shape), self)

    def astype(self, dtype, copy=True):
        return run(lambda x: x.astype(dtype), self)

    def copy(self):
        return run(np.positive, self)

    def sum(self, axis=None):
        return run(lambda x: np.sum(x, axis=axis), self)

    def _read(self):
        return self.get()[()]

    def __float__(self):
        return float(self._read())

    def __int__(self):
        return int(self._read())

    def __bool__(self):
        return bool(self._read())

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def _part(self, key):
        key = key if isinstance(key, tuple) else (key,)
        return self.view[key if Ellipsis in key else (*key, ...)]

    def __getitem__(self, key):
        view = self._part(key)
        assert np.shares_memory(view, self.view) or not view.size, "an index that copies"
        return self._of(view)

    def __setitem__(self, key, value):
        place = self._of(self._part(key))
        if isinstance(value, ndarray):
            run(np.positive, value, out=place)
        else:
            _check_devices([self])
            place._write(MACHINE.stream, lambda out: np.copyto(out, value))

    def __array_ufunc__(self, ufunc, method, *inputs, out=(None,), **options):
        assert (method, options) == ("__call__", {})
        if ufunc is np.matmul:
            return matmul(*inputs)
        return run(ufunc, *inputs, out=out[0])


ndarray.__module__ = "cupy"


def _in_place(ufunc):
    return lambda self, other: run(ufunc, self, other, out=self)


for _name, _ufunc in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide}.items():
    setattr(ndarray, f"__i{_name}__", _in_place(_ufunc))


def _new(shape, dtype):
    allocate = getattr(MACHINE.local, "allocator", None) or MACHINE.default_pool.malloc
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    data = allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return ndarray(data, data.view(shape, dtype) if hasattr(data, "view") else None, MACHINE.device)


def _check_devices(arrays):
    for array in arrays:
        if array.device.id != MACHINE.device:
            raise ValueError(
                f"The device where the array resides ({array.device.id}) is different from the current one "
                f"({MACHINE.device}). Peer access is unavailable between these devices."
            )


READ = "read"
"""What the keys of a memory's readers begin with; those of its writers are streams."""


def _check_reading(stream, read):
    number = stream.step()
    for of_memory in read:
        for other, count in list(of_memory.items()):
            is_writer = not isinstance(other, tuple)
            if is_writer and other != stream.ptr and stream.known.get(other, 0) < count:
                raise RaceError("a stream reads what another one may still be writing")
        of_memory[READ, stream.ptr] = number
    return number


def _check_writing(stream, written, read=()):
    # Closures reference these views, not the memory, because a graph keeps no array alive.
    number = _check_reading(stream, read)
    for of_memory in written:
        for key, count in list(of_memory.items()):
            other = key[1] if isinstance(key, tuple) else key
            if other != stream.ptr and stream.known.get(other, 0) < count:
                raise RaceError("a stream writes what another one may still be reading or writing")
        of_memory[stream.ptr] = number


def run(function, *inputs, out=None, **options):
    """Launch a NumPy function on arrays of the stand-in."""
    inputs = [x.__cupy_get_ndarray__() if hasattr(x, "__cupy_get_ndarray__") else x for x in inputs]
    if not all(isinstance(x, (ndarray, int, float, np.generic)) for x in inputs):
        return NotImplemented
    arrays = [x for x in inputs if isinstance(x, ndarray)]
    _check_devices(arrays if out is None else [*arrays, out])
    samples = [np.ones(x.shape, x.dtype) if isinstance(x, ndarray) else x for x in inputs]
    with np.errstate(all="ignore"):
        like = np.asarray(function(*samples, **options))
    if out is None:
        out = _new(like.shape, like.dtype)
    assert np.can_cast(like.dtype, out.dtype, "same_kind")
    assert like.shape == out.shape or out.shape == np.broadcast_shapes(like.shape, out.shape)
    views = [x.view if isinstance(x, ndarray) else x for x in inputs]
    read, place, writers = [x.data.mem.writers for x in arrays], out.view, out.data.mem.writers

    def work(on):
        _check_writing(on, [writers], read)
        with np.errstate(all="ignore"):
            np.copyto(place, function(*views, **options))

    MACHINE.counts["launches"] += 1
    MACHINE.stream.launch(work)
    return out


def _rounded_to_tf32(x):
    bits = np.ascontiguousarray(x).view(np.uint32)
    bits = (bits + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return bits.view(np.float32)


def _product(a, b, tf32):
    return np.matmul(_rounded_to_tf32(a), _rounded_to_tf32(b)) if tf32 else np.matmul(a, b)


def matmul(a, b):
    if MACHINE.stream.work is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    tf32 = a.dtype == np.float32 and MACHINE.compute_type["float32"] == 7
    return run(lambda x, y: _product(x, y, tf32), a, b)


class Functions(ModuleType):
    """The module array_api_compat.cupy; only the functions that take a `device` there take one here."""

    isdtype, finfo = staticmethod(np.isdtype), staticmethod(np.finfo)
    float16, float32, float64, bool, uint8 = np.float16, np.float32, np.float64, np.bool_, np.uint8
    int32, int64, uint32 = np.int32, np.int64, np.uint32
    matmul = staticmethod(matmul)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *inputs, **options: run(getattr(np, name), *inputs, **options)

    def asarray(self, values, dtype=None, device=None, copy=None):
        if isinstance(values, ndarray):
            return run(np.positive if dtype is None else lambda x: x.astype(dtype), values)
        with Device(device):
            host = np.asarray(values)
            host = host.astype(dtype or host.dtype)
            array = _new(host.shape, host.dtype)
            if MACHINE.stream.work is not None:
                MACHINE.stream.invalid = True
                raise CUDARuntimeError(UNSUPPORTED)
            MACHINE.counts["arrays from the host"] += 1
            array._write(MACHINE.stream, lambda out: np.copyto(out, host))
            return array

    def empty(self, shape, dtype=np.float64, device=None):
        return _new(shape, dtype or np.float64)

    def full(self, shape, value, dtype=None, device=None):
        array = _new(shape, dtype or np.asarray(value).dtype)
        array[...] = value
        return array

    def zeros(self, shape, dtype=None, device=None):
        return self.full(shape, 0, dtype or np.float64)

    def ones(self, shape, dtype=None, device=None):
        return self.full(shape, 1, dtype or np.float64)

    def zeros_like(self, array):
        return self.zeros(array.shape, array.dtype)

    def arange(self, *bounds, dtype=None, device=None):
        host = np.arange(*bounds, dtype=dtype)
        array = _new(host.shape, host.dtype)
        array._write(MACHINE.stream, lambda out: np.copyto(out, host))
        return array

    def astype(self, array, dtype, copy=True):
        return array.astype(dtype)

    def ascontiguousarray(self, array):
        return run(np.positive, array)

    def broadcast_to(self, array, shape):
        return array._of(np.broadcast_to(array.view, shape))

    def stack(self, arrays):
        return run(lambda *each: np.stack(each), *arrays)

    def concat(self, arrays, axis=0):
        return run(lambda *each: np.concatenate(each, axis=axis), *arrays)

    def take(self, array, indices, axis, out=None):
        assert out is None or (out.dtype, out.shape[1:]) == (array.dtype, array.shape[1:])
        return run(lambda x, rows: np.take(x, rows, axis=axis), array, indices, out=out)

    def reshape(self, array, shape):
        return array.reshape(shape)

    def all(self, array, axis=None):
        return run(lambda x: np.all(x, axis=axis), array)


# cuBLAS.


class Cublas(ModuleType):
    """nvmath.bindings.cublas: column-major products of matrices given by pointers."""

    ComputeType = SimpleNamespace(COMPUTE_32F=68, COMPUTE_64F=70, COMPUTE_32F_FAST_TF32=77)
    GemmAlgo = SimpleNamespace(DEFAULT=-1)

    def create(self):
        MACHINE.refuse_where_captured(MACHINE.device)
        MACHINE.counts["handles"] += 1
        handle = len(MACHINE.handles) + 1
        MACHINE.handles[handle] = SimpleNamespace(device=MACHINE.device, stream=None, workspace=0)
        return handle

    def destroy(self, handle):
        MACHINE.refuse_where_captured(MACHINE.handles.pop(handle).device)
        MACHINE.counts["handles destroyed"] += 1

    def set_stream(self, handle, pointer):
        MACHINE.handles[handle].stream = next(one for one in MACHINE.streams if one.ptr == pointer)
        MACHINE.handles[handle].workspace = 0

    def set_workspace(self, handle, pointer, size):
        MACHINE.memory_at(pointer)
        MACHINE.handles[handle].workspace = size

    def gemm_ex(self, handle, transa, transb, m, n, k, alpha, a, atype, lda, *rest):
        b, btype, ldb, beta, c, ctype, ldc, kind, _ = rest
        settings = MACHINE.handles[handle]
        assert settings.device == MACHINE.device
        if settings.stream.work is not None and not settings.workspace:
            settings.stream.invalid = True
            raise CUDARuntimeError(UNSUPPORTED)
        dtype = np.dtype({2: np.float16, 0: np.float32, 1: np.float64}[atype])
        assert atype == btype == ctype
        scalar = np.float64 if kind == 70 else np.float32
        one, zero = (
            float(np.ctypeslib.as_array((_ctype(scalar) * 1).from_address(at))[0]) for at in (alpha, beta)
        )
        left = _by_columns(a, dtype, (k, m) if transa else (m, k), lda)
        right = _by_columns(b, dtype, (n, k) if transb else (k, n), ldb)
        out = _by_columns(c, dtype, (m, n), ldc)
        read, writers = [MACHINE.memory_at(at).writers for at in (a, b)], MACHINE.memory_at(c).writers

        def work(on):
            _check_writing(on, [writers], read)
            x, y = left.T if transa else left, right.T if transb else right
            with np.errstate(all="ignore"):
                result = one * _product(x, y, kind == 77)
                out[...] = result if zero == 0.0 else result + zero * out

        MACHINE.counts["products"] += 1
        settings.stream.launch(work)


def _ctype(dtype):
    return np.ctypeslib.as_ctypes_type(dtype)


def _by_columns(pointer, dtype, shape, leading):
    n_rows, n_columns = shape
    assert leading >= max(1, n_rows)
    length = leading * (n_columns - 1) + n_rows
    raw = _ctype(np.uint8) * (length * dtype.itemsize)
    flat = np.ctypeslib.as_array(raw.from_address(pointer)).view(dtype)
    return as_strided(flat, shape, (dtype.itemsize, leading * dtype.itemsize))


# Kernels.


HOST = """
#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(n)
#define __threadfence()
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
static unsigned int atomicAdd(unsigned int* at, unsigned int more) { return (*at += more) - more; }
static thread_local struct { unsigned int x; } threadIdx, blockIdx;
// Not from a header, which takes longer to read than the rest to compile.
#define FUNCTION(name) \\
  static inline double name(double x) { return __builtin_##name(x); } \\
  static inline float name(float x) { return __builtin_##name##f(x); }
FUNCTION(fabs) FUNCTION(sqrt) FUNCTION(exp) FUNCTION(expm1) FUNCTION(log) FUNCTION(log1p) FUNCTION(log2)
FUNCTION(log10) FUNCTION(sin) FUNCTION(cos) FUNCTION(tan) FUNCTION(atan) FUNCTION(sinh) FUNCTION(cosh)
FUNCTION(tanh) FUNCTION(floor) FUNCTION(ceil)
static inline double pow(double x, double y) { return __builtin_pow(x, y); }
static inline float pow(float x, float y) { return __builtin_powf(x, y); }
static inline bool isfinite(double x) { return __builtin_isfinite(x); }
static inline bool isnan(double x) { return __builtin_isnan(x); }
"""

ONE_THREAD = """
#define __syncthreads()
#define __shfl_xor_sync(mask, x, offset) (x)
template <typename Kernel> static bool run_block(Kernel kernel) { kernel(); return true; }
"""
"""How a block runs that has one thread."""

THREADS = """
#include <ucontext.h>
enum { RUNS, WAITS_FOR_WARP, WAITS_FOR_BLOCK, ENDED };
static thread_local struct { ucontext_t context; char stack[1 << 16]; int state; } fibers[THREADS];
static thread_local ucontext_t scheduler;
static thread_local double exchanged[THREADS];

static void leave(int state) {
  auto& fiber = fibers[threadIdx.x];
  fiber.state = state;
  swapcontext(&fiber.context, &scheduler);
}
#define __syncthreads() leave(WAITS_FOR_BLOCK)
template <typename T> static T __shfl_xor_sync(unsigned int mask, T x, unsigned int offset) {
  exchanged[threadIdx.x] = x;
  leave(WAITS_FOR_WARP);
  const T other = exchanged[threadIdx.x ^ offset];
  leave(WAITS_FOR_WARP);
  return other;
}

// Whether threads from the first to the last one, of which some wait for that, all do or have ended.
static bool release(unsigned int first, unsigned int last, int state) {
  bool some = false;
  for (unsigned int i = first; i < last; ++i) {
    if (fibers[i].state != state && fibers[i].state != ENDED) return false;
    some = some || fibers[i].state == state;
  }
  for (unsigned int i = first; i < last; ++i)
    if (fibers[i].state == state) fibers[i].state = RUNS;
  return some;
}

template <typename Kernel> static void run_thread(unsigned int high, unsigned int low) {
  (*reinterpret_cast<Kernel*>((unsigned long)high << 32 | low))();
  exchanged[threadIdx.x] = NAN;
  leave(ENDED);
}

// Run the threads in turns, each until it waits or ends; return whether none waits for ever.
template <typename Kernel> static bool run_block(Kernel kernel) {
  const unsigned long at = (unsigned long)&kernel;
  for (auto& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = sizeof(fiber.stack);
    makecontext(&fiber.context, (void (*)())run_thread<Kernel>, 2, unsigned(at >> 32), unsigned(at));
    fiber.state = RUNS;
  }
  for (bool some = true; some;) {
    some = false;
    for (unsigned int i = THREADS; i-- > 0;) {
      if (fibers[i].state != RUNS) continue;
      some = true;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
    for (unsigned int first = 0; first < THREADS; first += LANES)
      some = release(first, first + LANES, WAITS_FOR_WARP) || some;
    some = release(0, THREADS, WAITS_FOR_BLOCK) || some;
  }
  for (auto& fiber : fibers)
    if (fiber.state != ENDED) return false;
  return true;
}
"""
"""How a block runs that has several threads: one after the other, the last one first."""

_compiled = {}
"""The libraries of sources that were compiled, by source and options."""


class CUDADriverError(RuntimeError):
    """CuPy's error for a kernel that cannot be launched."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """CuPy's error for a source that does not compile."""


class RawModule:
    """Kernels compiled by the host's compiler; a launch runs their blocks one after the other."""

    def __init__(self, code, options=()):
        self.library = compiled_for_host(code, options)
        MACHINE.counts["modules"] += 1

    def get_function(self, name):
        function = getattr(self.library, f"launch_{name}")

        def launch(grid, block, arguments):
            assert block == (MACHINE.n_threads,)
            arrays = [x for x in arguments if isinstance(x, ndarray)]
            _check_devices(arrays)
            assert all(x.flags.c_contiguous for x in arrays)
            assert all(isinstance(x, (ndarray, np.uint32)) for x in arguments), [
                type(x) for x in arguments if not isinstance(x, (ndarray, np.uint32))
            ]
            values = [
                ctypes.c_void_p(x.view.ctypes.data) if isinstance(x, ndarray) else ctypes.c_uint32(x)
                for x in arguments
            ]
            writers = [x.data.mem.writers for x in arrays]

            def work(on):
                _check_writing(on, writers)
                if not function(ctypes.c_uint32(grid[0]), *values):
                    raise AssertionError("threads of a block wait for each other")

            MACHINE.counts["launches"] += 1
            MACHINE.stream.launch(work)

        return launch


def compiled_for_host(code, options):
    """Return a library with a function ``launch_name(grid, *arguments)`` for each kernel of the source."""
    if (code, options) not in _compiled:
        _compiled[code, options] = _compile_for_host(code, options)
    return _compiled[code, options]


def parameters_of_kernels(code):
    """Return the parameters of the source's kernels by their names."""
    return dict(re.findall(r"__global__ void __launch_bounds__\(THREADS\) (\w+)\((.*)\)", code))


def _compile_for_host(code, options):
    calls = {
        name: f"{name}({', '.join(each.split()[-1] for each in parameters.split(','))})"
        for name, parameters in parameters_of_kernels(code).items()
    }
    launches = [
        f'extern "C" bool launch_{name}(Index grid, {parameters}) {{\n'
        "  for (blockIdx.x = grid; blockIdx.x-- > 0;)\n"
        f"    if (!run_block([=] {{ {calls[name]}; }})) return false;\n"
        "  return true;\n}"
        for name, parameters in parameters_of_kernels(code).items()
    ]
    if shutil.which("g++") is None:
        pytest.skip("kernels of the stand-in need a C++ compiler, g++")
    with TemporaryDirectory() as folder:
        source, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        one_thread = "-DTHREADS=1" in options
        source.write_text("\n".join([HOST, ONE_THREAD if one_thread else THREADS, code, *launches]))
        # Without the other libraries of C++, which take a fifth of the time to link.
        command = ["g++", "-O0", "-w", "-shared", "-fPIC", "-nostdlib", *options]
        command += [str(source), "-lm", "-o", str(library)]
        if subprocess.run(command, capture_output=True).returncode:
            raise CompileException
        return ctypes.CDLL(str(library))


# Processes.


def add_up_on_host(array, function):
    """Let the host read and write the memory of an array, as an MPI library that is CUDA-aware does."""
    for writer, count in list(array.data.mem.writers.items()):
        other = writer[1] if isinstance(writer, tuple) else writer
        if MACHINE.host_knows.get(other, 0) < count:
            raise RaceError("the host reads what a stream may still be writing")
    function(array.view)


class Nccl(ModuleType):
    """The module cupy.cuda.nccl; `partner` has the function that makes the sum of a buffer in place.

    Attributes
    ----------
    problem : str
        An error of each communicator that is made.
    """

    available = True
    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0
    problem = ""

    def __init__(self, partner):
        super().__init__("cupy.cuda.nccl")
        self.partner = partner
        self.communicators = []

    def get_unique_id(self):
        return (1,) * 128

    def NcclCommunicator(self, size, unique_id, rank):  # noqa: N802 - CuPy's name
        if self.problem:
            raise RuntimeError(self.problem)
        assert unique_id == (1,) * 128
        self.communicators.append(NcclCommunicator(self, size, rank))
        return self.communicators[-1]


class NcclCommunicator:
    def __init__(self, module, size, rank):
        self.module, self.size, self.rank = module, size, rank
        self.is_open = True
        self.device = MACHINE.device

    def allReduce(self, source, target, count, kind, operation, stream):  # noqa: N802 - NCCL's name
        assert (source, operation, self.device, self.is_open) == (target, 0, MACHINE.device, True)
        memory = MACHINE.memory_at(source)
        start, dtype = source - memory.bytes.ctypes.data, {7: np.float32, 8: np.float64}[kind]
        view = memory.bytes[start : start + count * np.dtype(dtype).itemsize].view(dtype)
        writers = memory.writers

        def work(on):
            _check_writing(on, [writers])
            self.module.partner(view)

        MACHINE.counts["NCCL"] += 1
        (on,) = [one for one in MACHINE.streams if one.ptr == stream]
        on.launch(work)

    def destroy(self):
        self.is_open = False

    abort = destroy


# Modules.


def _modules():
    functions = Functions("array_api_compat.cupy")
    cuda = ModuleType("cupy.cuda")
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: len(MACHINE.total),
        getDeviceProperties=_properties,
        memGetInfo=lambda: Device().mem_info,
        deviceSynchronize=lambda: MACHINE.synchronize(),
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    )
    for name, value in {
        "Device": Device, "Stream": Stream, "Event": Event, "Memory": Memory, "MemoryPointer": MemoryPointer,
        "MemoryPool": MemoryPool, "using_allocator": using_allocator, "runtime": runtime,
        "get_current_stream": get_current_stream, "alloc_pinned_memory": alloc_pinned_memory,
        "driver": SimpleNamespace(CUDADriverError=CUDADriverError),
    }.items():  # fmt: skip
        setattr(cuda, name, value)
    linalg = ModuleType("cupy._core._routines_linalg")
    linalg.COMPUTE_TYPE_DEFAULT, linalg.COMPUTE_TYPE_TF32 = 1, 7
    linalg.get_compute_type = lambda dtype: MACHINE.compute_type[str(np.dtype(dtype))]
    linalg.set_compute_type = lambda dtype, kind: MACHINE.compute_type.update({str(np.dtype(dtype)): kind})
    core = ModuleType("cupy._core")
    core._routines_linalg = linalg
    cupy = Functions("cupy")
    for name, value in {
        "ndarray": ndarray, "cuda": cuda, "_core": core, "__version__": "14.2.0",
        "RawModule": RawModule, "get_default_memory_pool": lambda: MACHINE.default_pool,
    }.items():  # fmt: skip
        setattr(cupy, name, value)
    cublas = Cublas("nvmath.bindings.cublas")
    bindings, nvmath = ModuleType("nvmath.bindings"), ModuleType("nvmath")
    bindings.cublas, nvmath.bindings, nvmath.__version__ = cublas, bindings, "1.0.0"
    nvmath.CudaDataType = SimpleNamespace(CUDA_R_16F=2, CUDA_R_32F=0, CUDA_R_64F=1)
    return {
        "cupy": cupy,
        "cupy.cuda": cuda,
        "cupy._core": core,
        "cupy._core._routines_linalg": linalg,
        "array_api_compat.cupy": functions,
        "nvmath": nvmath,
        "nvmath.bindings": bindings,
        "nvmath.bindings.cublas": cublas,
    }


def _properties(number):
    MACHINE.counts["properties"] += 1
    return {"name": b"a stand-in", "totalGlobalMem": MACHINE.total[number]}


RELOADED = ("mlp_xp._engines.cupy_graphs", "mlp_xp._engines.cupy_kernels")


@contextmanager
def installed(n_devices=2, n_bytes=2**28, n_threads=1):
    """Context in which `import cupy` finds the stand-in; yields its `Machine`.

    Kernels are compiled for the host, where a block has one thread, unless `n_threads` says otherwise.
    """
    import mlp_xp._engines

    global MACHINE
    MACHINE = Machine(n_devices, n_bytes, n_threads)
    modules = _modules()
    replaced = {name: sys.modules.get(name) for name in (*modules, *RELOADED)}
    compat_before = vars(array_api_compat).get("cupy")
    sys.modules.update(modules)
    for name in RELOADED:
        sys.modules.pop(name, None)
    array_api_compat.cupy = modules["array_api_compat.cupy"]
    _clear_caches()
    try:
        yield MACHINE
    finally:
        for name, module in replaced.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        vars(array_api_compat).pop("cupy")
        if compat_before is not None:
            array_api_compat.cupy = compat_before
        for name in RELOADED:
            vars(mlp_xp._engines).pop(name.rpartition(".")[2], None)
        _clear_caches()


def _clear_caches():
    vars(sys.modules["mlp_xp._uploads"]._THREAD_LOCAL).clear()
    for function in vars(_helpers).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
