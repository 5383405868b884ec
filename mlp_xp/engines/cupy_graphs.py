"""CUDA graphs of CuPy's arrays, with matrix products that can be captured.

CuPy's own cannot: each sets the stream of CuPy's cuBLAS handle, which CuPy refuses while the stream
captures. cuBLAS itself can, on a handle whose stream is set beforehand (cuBLAS documentation, "CUDA
Graphs support"); NVIDIA's nvmath-python has the binding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import array_api_compat.cupy
import cupy
import numpy as np

from mlp_xp.arrays import Array
from mlp_xp.engines.gemm import factor

WORKSPACE_BYTES = 2**25
"""What NVIDIA advises for Hopper; cuBLAS must not allocate its own during a capture."""


class CupyGraphs:
    """See `mlp_xp.engines.cuda_graph.Cuda`."""

    def __init__(self, device: Any) -> None:
        self.device = device
        with device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            # A graph keeps no array alive: what it works on belongs to a pool that lives as long, and that
            # nothing else allocates from.
            self.pool = cupy.cuda.MemoryPool(_allocate)
            self.xp = _Capturable(_Products(self.stream))
        # A pool does not give its memory back by itself.
        weakref.finalize(self, self.pool.free_all_blocks)

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

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches; return what launches it all."""
        with cupy.cuda.using_allocator(self.pool.malloc):
            try:
                self.stream.begin_capture()
                function()
                graph = self.stream.end_capture()
            except BaseException:
                if self.stream.is_capturing():
                    with suppress(Exception):  # the error above is the one to tell of
                        self.stream.end_capture()
                raise

        def replay() -> None:
            graph.launch(self.stream)

        return replay

    def upload(self, values: np.ndarray[Any, Any], out: Array) -> None:
        """Copy numbers from the host into an array."""
        out.set(values.astype(out.dtype), stream=self.stream)


def _allocate(size: int) -> Any:
    """Allocate memory, with an error that is no reason for a pool to give back what graphs work on."""
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"{error}") from error


class _Capturable:
    """CuPy's namespace, but for its products."""

    def __init__(self, products: _Products) -> None:
        self.matmul = products.matmul

    def __getattr__(self, name: str) -> Any:
        return getattr(array_api_compat.cupy, name)


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
        weakref.finalize(self, cublas.destroy, self.handle)
        self.cublas = cublas
        self.workspace = cupy.empty(WORKSPACE_BYTES, dtype=cupy.uint8)
        cublas.set_stream(self.handle, stream.ptr)
        # After the stream: setting that takes the workspace away.
        cublas.set_workspace(self.handle, self.workspace.data.ptr, WORKSPACE_BYTES)
        types, compute = nvmath.CudaDataType, cublas.ComputeType
        self.kinds: dict[Any, tuple[Any, Any, Any]] = {
            np.dtype("float16"): (types.CUDA_R_16F, compute.COMPUTE_32F, np.dtype("float32")),
            np.dtype("float32"): (types.CUDA_R_32F, compute.COMPUTE_32F, np.dtype("float32")),
            np.dtype("float64"): (types.CUDA_R_64F, compute.COMPUTE_64F, np.dtype("float64")),
        }
        # Read when a call is made or captured, not when it runs: the handle points to the host's memory.
        self.one_and_zero = {dtype: np.array([1.0, 0.0], dtype) for _, _, dtype in self.kinds.values()}

    def matmul(self, a: Array, b: Array) -> Array:
        """Return the product of two matrices, or of two vectors."""
        if not (a.ndim == b.ndim and a.dtype == b.dtype in self.kinds and a.shape[-1] == b.shape[0]):
            return cupy.matmul(a, b)  # no capture, and no wrong numbers
        if a.ndim == 1:
            return self.matmul(a.reshape(1, -1), b.reshape(-1, 1)).reshape(())
        if a.ndim != 2:
            return cupy.matmul(a, b)
        out = cupy.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
        a, left = _as_factor(a)
        b, right = _as_factor(b)
        data_type, compute_type, scalar_type = self.kinds[a.dtype]
        numbers = self.one_and_zero[scalar_type]
        self.cublas.gemm_ex(
            self.handle,
            int(right.transposed),
            int(left.transposed),
            b.shape[1],
            a.shape[0],
            a.shape[1],
            numbers.ctypes.data,
            b.data.ptr,
            int(data_type),
            right.leading,
            a.data.ptr,
            int(data_type),
            left.leading,
            numbers.ctypes.data + scalar_type.itemsize,
            out.data.ptr,
            int(data_type),
            out.shape[1],
            int(compute_type),
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
