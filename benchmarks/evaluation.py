"""The final loss of every participant, evaluated by the same code: in NumPy float64 on the training data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.workloads import Data, HostArray, Layers, Workload

MAX_ROWS_EVALUATED_AT_ONCE = 10_000
"""Maximum number of rows in a forward pass, which bounds the memory that it takes."""
MAX_PRODUCTS_EVALUATED = 5e10
"""Maximum number of multiplications in an evaluation, chosen so that it takes seconds."""

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda z: np.maximum(z, 0.0),
    "tanh": np.tanh,
    "logistic": lambda z: np.exp(-np.logaddexp(0.0, -z)),
}


def loss_of(workload: Workload, data: Data, outcome: Any) -> float | None:
    """Return the loss of a participant's final parameters or predictions; None if it has none."""
    if outcome is None:
        return None
    if workload.predicts:
        return loss_of_predictions(data, outcome)
    return loss_of_parameters(workload, data, outcome)


def loss_of_parameters(workload: Workload, data: Data, layers: Layers) -> float:
    """Return the mean loss of a network with these parameters, without a penalty on them."""
    layers = [(weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in layers]
    shapes = [weight.shape for weight, _ in layers]
    if shapes != list(zip(workload.sizes, workload.sizes[1:])):
        raise ValueError(f"the parameters must have the shapes of {workload.sizes}, got {shapes}")
    total, (X, _, y) = 0.0, rows_to_check(workload, data)
    for at in range(0, len(X), MAX_ROWS_EVALUATED_AT_ONCE):
        some = slice(at, at + MAX_ROWS_EVALUATED_AT_ONCE)
        logits = _logits(workload.activation, layers, X[some])
        losses = _sum_of_squared_errors if workload.regression else _sum_of_losses
        total += losses(logits, y[some])
    return total / len(X)


def rows_to_check(workload: Workload, data: Data) -> Data:
    """Return the data, or their first rows if all would exceed `MAX_PRODUCTS_EVALUATED`."""
    weights = sum(n_in * n_out for n_in, n_out in zip(workload.sizes, workload.sizes[1:]))
    n_rows = max(1, int(MAX_PRODUCTS_EVALUATED / weights))
    return data if n_rows >= len(data.X) else Data(*(array[:n_rows] for array in data))


def loss_of_predictions(data: Data, probabilities: HostArray) -> float:
    """Return the mean binary cross-entropy of probabilities of shape (n_samples, 1)."""
    if probabilities.shape != data.y.shape:
        raise ValueError(f"predictions must have shape {data.y.shape}, got {probabilities.shape}")
    right = np.where(data.y == 1, probabilities, 1.0 - probabilities.astype(np.float64))
    return -float(np.mean(np.log(right)))


def outliers(losses: Mapping[str, float], tolerance: float) -> set[str]:
    """Return the participants whose loss differs from the median by more than the relative tolerance."""
    if not losses:
        return set()
    middle = statistics.median_low(losses.values())
    return {name for name, loss in losses.items() if not math.isclose(loss, middle, rel_tol=tolerance)}


def _logits(hidden: str, layers: Layers, X: HostArray) -> HostArray:
    activation: HostArray = X.astype(np.float64)
    for weight, bias in layers[:-1]:
        activation = _ACTIVATIONS[hidden](activation @ weight + bias)
    weight, bias = layers[-1]
    return activation @ weight + bias


def _sum_of_squared_errors(predictions: HostArray, y: HostArray) -> float:
    """Return half the sum, as it is the loss."""
    return 0.5 * float(np.sum((predictions - y) ** 2))


def _sum_of_losses(logits: HostArray, y: HostArray) -> float:
    if logits.shape[1] == 1:
        return float(np.sum(np.logaddexp(0.0, logits) - y * logits))
    largest = logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return float(np.sum(log_total - np.sum(y * logits, axis=1)))
