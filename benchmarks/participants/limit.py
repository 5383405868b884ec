"""What no implementation on the same BLAS can undercut: the matrix products alone.

The shapes and transposes are those of forward and backward, the outputs are allocated once, and the
products for the derivative by the data are left out, as everyone leaves them out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import HostArray, Workload


def prepare(task: Task) -> Prepared:
    """Prepare the products of all steps, or of all blocks of the predictions."""
    workload = task.workload
    if task.device == "cuda":
        import cupy

        xp, finish = cupy, cupy.cuda.Device().synchronize
    else:
        xp, finish = np, _nothing
    weights = [xp.asarray(weight) for weight, _ in task.start.layers]
    lengths = [some.stop - some.start for some in workload.batches]
    random = np.random.default_rng(0)
    products_of = {
        length: _products(xp, workload, weights, random.standard_normal((length, max(workload.sizes))))
        for length in set(lengths)
    }
    steps = [product for length in lengths for product in products_of[length]]
    matmul = xp.matmul

    def repeat() -> None:
        for _ in range(workload.calls or workload.epochs):
            for left, right, out in steps:
                matmul(left, right, out=out)
        finish()

    return Prepared(repeat, None)


def _products(
    xp: Any, workload: Workload, weights: list[Any], numbers: HostArray
) -> list[tuple[Any, Any, Any]]:
    """Return (left, right, out) of each product of a step."""
    sizes, length = workload.sizes, len(numbers)

    def filled(width: int) -> Any:
        return xp.asarray(np.ascontiguousarray(numbers[:, :width], dtype=workload.dtype))

    def empty(*shape: int) -> Any:
        return xp.empty(shape, dtype=workload.dtype)

    activations = [filled(size) for size in sizes[:-1]]
    products = [
        (inputs, weight, empty(length, weight.shape[1])) for inputs, weight in zip(activations, weights)
    ]
    if workload.predicts:
        return products
    deltas = [filled(size) for size in sizes[1:]]
    for layer in reversed(range(len(weights))):
        inputs, delta, weight = activations[layer], deltas[layer], weights[layer]
        products.append((inputs.T, delta, empty(*weight.shape)))
        if layer:
            products.append((delta, weight.T, empty(length, weight.shape[0])))
    return products


def _nothing() -> None:
    return
