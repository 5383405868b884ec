"""The lower limit for implementations on the same BLAS: the matrix products alone.

They have the shapes and transposes of the forward and backward pass, without the gradient by the data, which
no participant computes. The outputs are allocated once. On a GPU the products are captured as a CUDA graph:
launched one by one, those of a small network would take longer than a captured training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import HostArray, Workload

Products = list[tuple[Any, Any, Any]]
"""Operands and output of each product."""
WORKSPACE_BYTES = 2**25
"""Size of cuBLAS's workspace, NVIDIA's advice for Hopper; it must not be allocated during a capture."""
MAX_EPOCHS_PER_GRAPH = 100
"""Maximum number of full-batch epochs in a CUDA graph, which bounds the time of its capture."""


def prepare(task: Task) -> Prepared:
    """Prepare the products of all steps and scores, or of all blocks of the predictions."""
    return _prepare_on_cupy(task) if task.device == "cuda" else _prepare_on_numpy(task)


def _prepare_on_numpy(task: Task) -> Prepared:
    times, products, matmul = task.workload.calls or task.workload.epochs, _all_products(np, task), np.matmul

    def repeat() -> None:
        for _ in range(times):
            for left, right, out in products:
                matmul(left, right, out=out)

    return Prepared(repeat, None)


def _prepare_on_cupy(task: Task) -> Prepared:
    import cupy

    workload = task.workload
    products = _all_products(cupy, task)
    stream = cupy.cuda.Stream(non_blocking=True)
    multiply, kept = cublas_products(cupy, products, workload, stream)
    times = workload.calls or workload.epochs
    at_once = 1 if workload.predicts or not workload.full_batch else epochs_per_graph(times)
    cupy.cuda.Device().synchronize()
    with stream:
        multiply()  # cuBLAS chooses its kernels now
        stream.begin_capture()
        for _ in range(at_once):
            multiply()
        graph = stream.end_capture()

    def repeat() -> None:
        for _ in range(times // at_once):
            graph.launch(stream)
            if workload.predicts:
                stream.synchronize()  # as all participants do after a prediction
        stream.synchronize()

    # A graph holds no references to its arrays, so they are kept alive here.
    repeat.kept = (products, kept)  # type: ignore[attr-defined]
    return Prepared(repeat, None)


def epochs_per_graph(epochs: int) -> int:
    """Return the largest divisor of `epochs` up to `MAX_EPOCHS_PER_GRAPH`."""
    return max(number for number in range(1, MAX_EPOCHS_PER_GRAPH + 1) if epochs % number == 0)


class Factor(NamedTuple):
    """A matrix's transposition and leading dimension, as cuBLAS takes them."""

    transposed: bool
    leading: int


def factor(array: Any) -> Factor:
    """Return an array's transposition and leading dimension for cuBLAS, which is column-major."""
    if array.flags.c_contiguous:
        return Factor(False, array.shape[1])
    return Factor(True, array.shape[0])


def cublas_products(
    cupy: Any, products: Products, workload: Workload, stream: Any
) -> tuple[Callable[[], None], Any]:
    """Return a function that launches all products on a stream, and objects that must live as long as it.

    It uses nvmath-python, NVIDIA's binding, as CuPy's own handle refuses to launch during a capture.
    """
    import nvmath
    from nvmath.bindings import cublas

    handle = cublas.create()
    workspace = cupy.empty(WORKSPACE_BYTES, dtype=cupy.uint8)
    cublas.set_stream(handle, stream.ptr)
    # Set after the stream, because setting the stream resets the workspace.
    cublas.set_workspace(handle, workspace.data.ptr, WORKSPACE_BYTES)
    types, compute = nvmath.CudaDataType, cublas.ComputeType
    data_type, compute_type = {
        ("float64", "highest"): (types.CUDA_R_64F, compute.COMPUTE_64F),
        ("float32", "highest"): (types.CUDA_R_32F, compute.COMPUTE_32F),
        ("float32", "tf32"): (types.CUDA_R_32F, compute.COMPUTE_32F_FAST_TF32),
    }[workload.dtype, workload.matmul_precision]
    numbers = np.array([1.0, 0.0], dtype=workload.dtype)
    calls = [
        _gemm_arguments(product, int(data_type), int(compute_type), int(cublas.GemmAlgo.DEFAULT), numbers)
        for product in products
    ]

    def multiply() -> None:
        for arguments in calls:
            cublas.gemm_ex(handle, *arguments)

    return multiply, (workspace, numbers)


def _gemm_arguments(
    product: tuple[Any, Any, Any], data_type: int, compute_type: int, algorithm: int, numbers: HostArray
) -> tuple[int, ...]:
    """Return cublasGemmEx's arguments: row-major C = A B is column-major C' = B' A'."""
    left, right, out = product
    a, b = factor(left), factor(right)
    return (
        int(b.transposed),
        int(a.transposed),
        out.shape[1],
        out.shape[0],
        left.shape[1],
        numbers.ctypes.data,
        right.data.ptr,
        data_type,
        b.leading,
        left.data.ptr,
        data_type,
        a.leading,
        numbers.ctypes.data + numbers.itemsize,
        out.data.ptr,
        data_type,
        out.shape[1],
        compute_type,
        algorithm,
    )


def _all_products(xp: Any, task: Task) -> Products:
    """Return the products of an epoch and its score, of a stream, or of one prediction of all rows."""
    workload = task.workload
    weights = [xp.asarray(weight) for weight, _ in task.start.layers]
    lengths = [workload.rows]
    if not (workload.predicts and task.device == "cuda"):  # a GPU takes all rows at once
        lengths = [some.stop - some.start for some in workload.batches]
    random, dtype = np.random.default_rng(0), np.float64 if workload.dtype == "float64" else np.float32

    def products(length: int, *, backward: bool) -> Products:
        numbers = random.standard_normal((length, max(workload.sizes)), dtype)
        return _products(xp, workload, weights, numbers, backward=backward)

    products_of = {length: products(length, backward=not workload.predicts) for length in set(lengths)}
    scoring = products(workload.held_out, backward=False) if workload.held_out else []
    return [product for length in lengths for product in products_of[length]] + scoring


def _products(
    xp: Any, workload: Workload, weights: list[Any], numbers: HostArray, *, backward: bool
) -> Products:
    """Return (left, right, out) of each product of a step, or of a forward pass."""
    sizes, length = workload.sizes, len(numbers)

    def filled(width: int) -> Any:
        return xp.asarray(np.ascontiguousarray(numbers[:, :width], dtype=workload.dtype))

    def empty(*shape: int) -> Any:
        return xp.empty(shape, dtype=workload.dtype)

    activations = [filled(size) for size in sizes[:-1]]
    products = [
        (inputs, weight, empty(length, weight.shape[1])) for inputs, weight in zip(activations, weights)
    ]
    if not backward:
        return products
    deltas = [filled(size) for size in sizes[1:]]
    for layer in reversed(range(len(weights))):
        inputs, delta, weight = activations[layer], deltas[layer], weights[layer]
        products.append((inputs.T, delta, empty(*weight.shape)))
        if layer:
            products.append((delta, weight.T, empty(length, weight.shape[0])))
    return products
