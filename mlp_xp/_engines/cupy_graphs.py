"""CUDA graphs of CuPy's arrays, with matrix products that can be captured.

CuPy's own cannot: each sets the stream of CuPy's cuBLAS handle, which CuPy refuses while the stream
captures. cuBLAS itself can, on a handle whose stream is set beforehand (cuBLAS documentation, "CUDA
Graphs support"); NVIDIA's nvmath-python has the binding.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import array_api_compat.cupy
import cupy
import numpy as np

from mlp_xp._arrays import Array, Namespace
from mlp_xp._devices import MEMORY_RELEASE_HOOKS
from mlp_xp._engines.cuda_graph import CAPTURES
from mlp_xp._engines.gemm import factor

WORKSPACE_BYTES = 2**25
"""What NVIDIA advises for Hopper; cuBLAS must not allocate its own during a capture."""

OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, which CuPy has no name for."""

UPLOADS_UNDER_WAY = 32
"""Buffers for numbers on their way to the device, and so by how many graphs the host may be ahead."""

_KEPT = threading.local()
"""A thread's `CupyGraphs`, by device."""

_IDLE: dict[int, list[CupyGraphs]] = {}
"""Those of threads that have ended, by device."""


class CupyGraphs:
    """See `mlp_xp._engines.cuda_graph.Cuda`.

    One for each thread and device serves all trainings, one after the other. Streams and handles of cuBLAS
    take long to make; to destroy a handle waits for the device, which would end what another thread
    captures there. So none is ever destroyed, and those of a thread that has ended serve the next one.
    """

    @staticmethod
    def of_this_thread(device: Any) -> CupyGraphs:
        """Return the thread's own."""
        kept: dict[int, CupyGraphs] = vars(_KEPT).setdefault("by_device", {})
        if device.id not in kept:
            idle = _IDLE.setdefault(device.id, [])
            kept[device.id] = idle.pop() if idle else CupyGraphs(device)
            weakref.finalize(threading.current_thread(), idle.append, kept[device.id]).atexit = False
        return kept[device.id]

    def __init__(self, device: Any) -> None:
        self.device = device
        self.n_engines = 0
        with CAPTURES, device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            # A graph keeps no array alive: what it works on belongs to a pool that lives as long, and that
            # nothing but trainings of this thread, which run by turns, allocates from.
            self.pool = cupy.cuda.MemoryPool(_allocate)
            # At a limit, CUPY_GPU_MEMORY_LIMIT by default, it would give back what graphs work on.
            self.pool.set_limit(size=0)
            self.products = _Products(self.stream)
            self.uploads = cycle([_Upload(None, cupy.cuda.Event()) for _ in range(UPLOADS_UNDER_WAY)])

    def namespace(self, matmul_precision: str) -> Namespace:
        """Return functions that can be captured."""
        return _Capturable(self.products, matmul_precision)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Work on a stream of our own, after what the caller's does and before what it will do."""
        with self.device:
            caller = cupy.cuda.get_current_stream()
            self.stream.wait_event(caller.record())
            try:
                with self.stream:
                    yield
            finally:
                caller.wait_event(self.stream.record())

    def scratch(self) -> AbstractContextManager[None]:
        """Take memory from the graphs' pool."""
        context: AbstractContextManager[None] = cupy.cuda.using_allocator(self.pool.malloc)
        return context

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches; return what launches it all."""
        with self.scratch():
            try:
                self.stream.begin_capture()
                function()
                graph = self.stream.end_capture()
            except BaseException:
                # Whether it is valid or not: it must end, and until then the stream refuses all else.
                with suppress(Exception):
                    self.stream.end_capture()
                raise

        def replay() -> None:
            graph.launch(self.stream)

        return replay

    def upload(self, values: np.ndarray[Any, Any], out: Array) -> None:
        """Copy numbers from the host into an array."""
        upload = next(self.uploads)
        # From pageable memory the copy might wait for the stream; this waits for what came long before.
        upload.done.synchronize()
        numbers = upload.room(values.shape, out.dtype)
        numbers[...] = values
        out.set(numbers, stream=self.stream)
        upload.done.record(self.stream)

    def retain(self) -> None:
        """Keep memory for graphs from now on."""
        with CAPTURES:
            self.n_engines += 1

    def release(self) -> None:
        """Give memory back when there is no engine any more, and so no graph."""
        self.n_engines -= 1
        self.free()

    def free(self) -> None:
        """Give memory back, unless there is an engine, and so a graph that works on it."""
        # Where something captures, what is kept stays for the next training.
        if CAPTURES.acquire(blocking=False):
            try:
                if not self.n_engines:
                    with self.device:
                        self.pool.free_all_blocks()
            finally:
                CAPTURES.release()


@MEMORY_RELEASE_HOOKS.append
def _free_all_of_this_thread() -> None:
    for kept in vars(_KEPT).get("by_device", {}).values():
        kept.free()


class _Upload:
    """Pinned memory on the host, and the event after which it is free again."""

    def __init__(self, memory: Any, done: Any) -> None:
        self.memory = memory
        self.done = done

    def room(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array in it; it grows where it must."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.memory is None or self.memory.size() < n_bytes:
            self.memory = cupy.cuda.alloc_pinned_memory(n_bytes)
        return np.frombuffer(self.memory, dtype, int(np.prod(shape))).reshape(shape)


def _allocate(size: int) -> Any:
    """Allocate memory, with an error that is no reason for a pool to give back what graphs work on."""
    for last in (False, True):
        try:
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            if last:
                raise MemoryError(f"{error}") from error
            # What others have let go of is kept there.
            cupy.get_default_memory_pool().free_all_blocks()
    return None


class _Capturable:
    """CuPy's namespace, but for its products."""

    def __init__(self, products: _Products, matmul_precision: str) -> None:
        self.matmul = partial(products.matmul, precision=matmul_precision)

    def __getattr__(self, name: str) -> Any:
        return getattr(array_api_compat.cupy, name)


class _Kind(NamedTuple):
    """How cuBLAS is asked for products of a dtype."""

    data: int
    compute: dict[str, int]
    """By precision."""
    scalar: np.dtype[Any]


class _Products:
    """Matrix products by a cuBLAS handle of our own, on one stream."""

    def __init__(self, stream: Any) -> None:
        try:
            import nvmath
            from nvmath.bindings import cublas
        except ImportError as error:
            raise ImportError(
                "CuPy's matrix products cannot be captured, and nvmath-python, whose can, is not installed "
                f"({error}); `pip install nvmath-python[cu13]` (or `[cu12]`, as your CUDA is)"
            ) from error
        try:
            self.handle = cublas.create()
        except Exception as error:
            raise ImportError(f"nvmath-python finds no cuBLAS ({error})") from error
        self.cublas = cublas
        self.workspace = cupy.empty(WORKSPACE_BYTES, dtype=cupy.uint8)
        cublas.set_stream(self.handle, stream.ptr)
        # After the stream: setting that takes the workspace away.
        cublas.set_workspace(self.handle, self.workspace.data.ptr, WORKSPACE_BYTES)
        types, compute = nvmath.CudaDataType, cublas.ComputeType
        single = {"highest": int(compute.COMPUTE_32F), "tf32": int(compute.COMPUTE_32F_FAST_TF32)}
        half = dict.fromkeys(single, int(compute.COMPUTE_32F))
        double = dict.fromkeys(single, int(compute.COMPUTE_64F))
        self.kinds: dict[Any, _Kind] = {
            np.dtype("float16"): _Kind(int(types.CUDA_R_16F), half, np.dtype("float32")),
            np.dtype("float32"): _Kind(int(types.CUDA_R_32F), single, np.dtype("float32")),
            np.dtype("float64"): _Kind(int(types.CUDA_R_64F), double, np.dtype("float64")),
        }
        # Read when a call is made or captured, not when it runs: the handle points to the host's memory.
        self.one_and_zero = {kind.scalar: np.array([1.0, 0.0], kind.scalar) for kind in self.kinds.values()}

    def matmul(self, a: Array, b: Array, *, precision: str = "highest") -> Array:
        """Return the product of two matrices, or of two vectors."""
        if not (a.ndim == b.ndim and a.dtype == b.dtype in self.kinds and a.shape[-1] == b.shape[0]):
            return cupy.matmul(a, b)  # no capture, and no wrong numbers
        if a.ndim == 1:
            return self.matmul(a.reshape(1, -1), b.reshape(-1, 1), precision=precision).reshape(())
        if a.ndim != 2:
            return cupy.matmul(a, b)
        out = cupy.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
        a, left = _as_factor(a)
        b, right = _as_factor(b)
        kind = self.kinds[a.dtype]
        numbers = self.one_and_zero[kind.scalar]
        self.cublas.gemm_ex(
            self.handle,
            int(right.transposed),
            int(left.transposed),
            b.shape[1],
            a.shape[0],
            a.shape[1],
            numbers.ctypes.data,
            b.data.ptr,
            kind.data,
            right.leading,
            a.data.ptr,
            kind.data,
            left.leading,
            numbers.ctypes.data + kind.scalar.itemsize,
            out.data.ptr,
            kind.data,
            out.shape[1],
            kind.compute[precision],
            int(self.cublas.GemmAlgo.DEFAULT),
        )
        return out


def _as_factor(array: Array) -> tuple[Array, Any]:
    strides = [stride // array.itemsize for stride in array.strides]
    found = factor(array.shape, strides)
    if found is None:
        array = cupy.ascontiguousarray(array)
        found = factor(array.shape, (array.shape[1], 1))
    return array, found
