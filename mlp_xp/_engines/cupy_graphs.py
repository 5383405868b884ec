"""CUDA graphs of CuPy's arrays, with matrix products that can be captured; see `capture.GraphLibrary`.

CuPy's own products cannot be captured: each sets the stream of CuPy's cuBLAS handle, and CuPy raises an error
for that while the stream captures. cuBLAS permits captures on a handle whose stream was set before (cuBLAS
documentation, "CUDA Graphs support"), and NVIDIA's nvmath-python makes such a handle accessible.
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

from mlp_xp._arrays import Array, HostArray, Namespace
from mlp_xp._devices import MEMORY_RELEASE_HOOKS
from mlp_xp._engines.capture import CAPTURE_LOCK, StepInto
from mlp_xp._engines.cupy_kernels import CupyKernels
from mlp_xp._engines.fused_steps import FusedStep
from mlp_xp._engines.gemm import GemmOperand, gemm_operand
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._uploads import PinnedBuffer, allocate_by_cupy

WORKSPACE_BYTES = 2**25
"""Size of cuBLAS's workspace, which cannot allocate one during a capture; NVIDIA advises this for Hopper."""

CUDA_ERROR_MEMORY_ALLOCATION = 2
"""The status cudaErrorMemoryAllocation, which CuPy has no name for."""

MAX_PENDING_UPLOADS = 32
"""Number of pinned buffers for uploads, and so of replays that the host may be ahead of the device."""

_THREAD_LOCAL = threading.local()
"""The `CupyGraphs` of each thread, by device."""

_INSTANCES_OF_ENDED_THREADS: dict[int, list[CupyGraphs]] = {}
"""The `CupyGraphs` of threads that have ended, by device."""


class CupyGraphs:
    """A stream, a cuBLAS handle and a memory pool for graphs: one of each for each thread and device.

    All trainings of the thread use them, one after the other, because streams and handles take long to make.
    They are never destroyed, because destroying a handle waits for the device, which invalidates the captures
    of other threads on it. When a thread has ended, the next new thread takes them over.
    """

    @staticmethod
    def of_this_thread(device: Any) -> CupyGraphs:
        """Return the instance of the current thread for a device."""
        by_device: dict[int, CupyGraphs] = vars(_THREAD_LOCAL).setdefault("by_device", {})
        if device.id not in by_device:
            unused = _INSTANCES_OF_ENDED_THREADS.setdefault(device.id, [])
            by_device[device.id] = unused.pop() if unused else CupyGraphs(device)
            weakref.finalize(threading.current_thread(), unused.append, by_device[device.id]).atexit = False
        return by_device[device.id]

    def __init__(self, device: Any) -> None:
        self.device = device
        self.n_engines = 0
        with CAPTURE_LOCK, device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            # A graph does not keep the arrays alive that it works on. Their memory belongs to this pool,
            # which lives as long as the graph, and only trainings of this thread allocate from it, one at a
            # time.
            self.pool = cupy.cuda.MemoryPool(_allocate)
            # No limit (by default CUPY_GPU_MEMORY_LIMIT): at a limit, the pool would free unused blocks, on
            # which graphs work.
            self.pool.set_limit(size=0)
            self.products = _CublasMatmul(self.stream)
            self.buffers = cycle(
                [PinnedBuffer(allocate_by_cupy, cupy.cuda.Event()) for _ in range(MAX_PENDING_UPLOADS)]
            )

    def namespace(self, matmul_precision: str) -> Namespace:
        """Return a namespace whose functions can be captured."""
        return _CapturableNamespace(self.products, matmul_precision)

    def make_step(self, network: Network, optimizer: Optimizer, n_steps: int) -> StepInto:
        """Return a step that can be captured: fused kernels, if the step can be recorded.

        However few steps are planned: CuPy keeps what it compiles on disk.
        """
        xp = self.namespace(network.matmul_precision)
        return FusedStep(network, optimizer, xp, CupyKernels(self.device))

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Context that makes the engine's stream current, ordered with the caller's stream by events."""
        with self.device:
            caller = cupy.cuda.get_current_stream()
            self.stream.wait_event(caller.record())
            try:
                with self.stream:
                    yield
            finally:
                caller.wait_event(self.stream.record())

    def graph_pool(self) -> AbstractContextManager[None]:
        """Return a context in which CuPy allocates from the graphs' pool."""
        context: AbstractContextManager[None] = cupy.cuda.using_allocator(self.pool.malloc)
        return context

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that a function launches; return the function that replays them."""
        with self.graph_pool():
            try:
                self.stream.begin_capture()
                function()
                graph = self.stream.end_capture()
            except BaseException:
                # An invalid capture must be ended too: until then the stream raises errors for all calls.
                with suppress(Exception):
                    self.stream.end_capture()
                raise

        def replay() -> None:
            graph.launch(self.stream)

        return replay

    def upload(self, values: HostArray, out: Array) -> None:
        """Copy values from the host into an array, without waiting for the stream."""
        # They are copied to pinned memory first, because a copy from pageable memory may wait for the stream.
        # This only waits for the buffer's last upload, which began `MAX_PENDING_UPLOADS` uploads ago.
        buffer = next(self.buffers)
        pinned = buffer.array(values.shape, out.dtype)
        pinned[...] = values
        out.set(pinned, stream=self.stream)
        buffer.copied.record(self.stream)

    def gather(self, array: Array, indices: Array, out: Array) -> None:
        """Write the rows of an array that have these indices into another one of its dtype."""
        cupy.take(array, indices, axis=0, out=out)

    def new_staging(self) -> PinnedBuffer:
        """Return pinned memory on the host."""
        return PinnedBuffer(allocate_by_cupy, cupy.cuda.Event())

    def download(self, array: Array, staging: PinnedBuffer) -> HostArray:
        """Copy an array to pinned memory; return it there, when the copy is done."""
        host = staging.array(array.shape, array.dtype)
        array.get(stream=self.stream, out=host)
        self.stream.synchronize()  # for which some versions of `get` do not wait
        return host

    def send_back(self, values: HostArray, staging: PinnedBuffer, out: Array) -> None:
        """Copy what `download` returned into an array, without waiting for the stream."""
        out.set(values, stream=self.stream)
        staging.copied.record(self.stream)

    def synchronize(self) -> None:
        """Wait for the engine's stream."""
        self.stream.synchronize()

    def addresses(self, array: Array) -> tuple[int, int]:
        """Return the addresses of an array's memory and of the engine's stream."""
        return array.data.ptr, self.stream.ptr

    def device_id(self) -> str:
        """Return the address of the device on the PCI bus."""
        return str(self.device.pci_bus_id)

    def retain(self) -> None:
        """Increment the number of engines that use the pool: its memory is kept until `release`."""
        with CAPTURE_LOCK:
            self.n_engines += 1

    def release(self) -> None:
        """Decrement the number of engines; free the pool's memory if none is left."""
        self.n_engines -= 1
        self.free_unused()

    def free_unused(self) -> None:
        """Free the pool's memory, unless there is an engine, whose graphs may work on it."""
        # During a capture, nothing is freed, and the memory is there for the next training.
        if CAPTURE_LOCK.acquire(blocking=False):
            try:
                if not self.n_engines:
                    with self.device:
                        self.pool.free_all_blocks()
            finally:
                CAPTURE_LOCK.release()


@MEMORY_RELEASE_HOOKS.append
def _free_unused_of_this_thread() -> None:
    for graphs in vars(_THREAD_LOCAL).get("by_device", {}).values():
        graphs.free_unused()


def _allocate(size: int) -> Any:
    """Allocate device memory for a pool of graphs.

    If there is none left, it raises a MemoryError: at CuPy's own error, the pool would free blocks that
    graphs work on.
    """
    for is_last_try in (False, True):
        try:
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status != CUDA_ERROR_MEMORY_ALLOCATION:
                raise
            if is_last_try:
                raise MemoryError(f"{error}") from error
            # CuPy's default pool caches memory that arrays outside of graphs no longer use.
            cupy.get_default_memory_pool().free_all_blocks()
    return None


class _CapturableNamespace:
    """CuPy's namespace with a `matmul` that can be captured."""

    def __init__(self, products: _CublasMatmul, matmul_precision: str) -> None:
        self.matmul = partial(products.matmul, precision=matmul_precision)

    def __getattr__(self, name: str) -> Any:
        return getattr(array_api_compat.cupy, name)


class _GemmTypes(NamedTuple):
    """The arguments of gemm that describe the product of matrices of a dtype.

    Attributes
    ----------
    data : int
        cuBLAS's number of the matrices' dtype.
    compute : dict of int
        cuBLAS's compute type, by `matmul_precision`.
    scalar : dtype
        Of the factors alpha and beta.
    """

    data: int
    compute: dict[str, int]
    scalar: np.dtype[Any]


class _CublasMatmul:
    """Matrix products by a cuBLAS handle whose stream is fixed."""

    def __init__(self, stream: Any) -> None:
        try:
            import nvmath
            from nvmath.bindings import cublas
        except ImportError as error:
            raise ImportError(
                "CuPy's matrix products cannot be captured; those of nvmath-python can, but it is not "
                f"installed ({error}); `pip install nvmath-python[cu13]` (or `[cu12]`, as your CUDA is)"
            ) from error
        try:
            self.handle = cublas.create()
        except Exception as error:
            raise ImportError(f"nvmath-python finds no cuBLAS ({error})") from error
        self.cublas = cublas
        self.workspace = cupy.empty(WORKSPACE_BYTES, dtype=cupy.uint8)
        cublas.set_stream(self.handle, stream.ptr)
        # In this order, because `set_stream` resets the workspace.
        cublas.set_workspace(self.handle, self.workspace.data.ptr, WORKSPACE_BYTES)
        types, compute = nvmath.CudaDataType, cublas.ComputeType
        single = {"highest": int(compute.COMPUTE_32F), "tf32": int(compute.COMPUTE_32F_FAST_TF32)}
        half = dict.fromkeys(single, int(compute.COMPUTE_32F))
        double = dict.fromkeys(single, int(compute.COMPUTE_64F))
        self.types: dict[Any, _GemmTypes] = {
            np.dtype("float16"): _GemmTypes(int(types.CUDA_R_16F), half, np.dtype("float32")),
            np.dtype("float32"): _GemmTypes(int(types.CUDA_R_32F), single, np.dtype("float32")),
            np.dtype("float64"): _GemmTypes(int(types.CUDA_R_64F), double, np.dtype("float64")),
        }
        # Alpha and beta on the host: cuBLAS reads them when a call is made or captured, not when it runs.
        self.scalars = {one.scalar: np.array([1.0, 0.0], one.scalar) for one in self.types.values()}

    def matmul(self, a: Array, b: Array, *, out: Array | None = None, precision: str = "highest") -> Array:
        """Return the product of two matrices, or of two vectors; `out` may be an array for that of matrices.

        It must be contiguous and of the product's dtype.
        """
        if not (a.ndim == b.ndim and a.dtype == b.dtype in self.types and a.shape[-1] == b.shape[0]):
            return cupy.matmul(a, b)  # which cannot be captured, but is right for all operands
        if a.ndim == 1:
            return self.matmul(a.reshape(1, -1), b.reshape(-1, 1), precision=precision).reshape(())
        if a.ndim != 2:
            return cupy.matmul(a, b)
        if out is None:
            out = cupy.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
        a, left = _as_operand(a)
        b, right = _as_operand(b)
        types = self.types[a.dtype]
        alpha_beta = self.scalars[types.scalar]
        # C' = B' A', because cuBLAS writes column by column: so the rows of C are contiguous.
        self.cublas.gemm_ex(
            self.handle,
            int(right.transposed),
            int(left.transposed),
            b.shape[1],
            a.shape[0],
            a.shape[1],
            alpha_beta.ctypes.data,
            b.data.ptr,
            types.data,
            right.leading_dimension,
            a.data.ptr,
            types.data,
            left.leading_dimension,
            alpha_beta.ctypes.data + types.scalar.itemsize,
            out.data.ptr,
            types.data,
            out.shape[1],
            types.compute[precision],
            int(self.cublas.GemmAlgo.DEFAULT),
        )
        return out


def _as_operand(array: Array) -> tuple[Array, GemmOperand]:
    """Return a matrix, copied if gemm cannot read it, and how to pass it to gemm."""
    operand = gemm_operand(array.shape, [stride // array.itemsize for stride in array.strides])
    if operand is None:
        array = cupy.ascontiguousarray(array)
        operand = GemmOperand(False, array.shape[1])
    return array, operand
