"""One evaluator for all: the loss that a participant ended at, in NumPy float64, on the training data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.workloads import Data, HostArray, Layers, Workload

ROWS_AT_A_TIME = 10_000
MOST_PRODUCTS = 5e10
"""Of a weight with a row's number: of more, some rows tell as well where a network is."""

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda z: np.maximum(z, 0.0),
    "tanh": np.tanh,
    "logistic": lambda z: np.exp(-np.logaddexp(0.0, -z)),
}


def loss_of(workload: Workload, data: Data, outcome: Any) -> float | None:
    """Return the loss of what a participant came to; None if there is nothing to check."""
    if outcome is None:
        return None
    if workload.predicts:
        return loss_of_predictions(data, outcome)
    return loss_of_parameters(workload, data, outcome)


def loss_of_parameters(workload: Workload, data: Data, layers: Layers) -> float:
    """Return the mean cross-entropy of a network with these parameters."""
    layers = [(weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in layers]
    shapes = [weight.shape for weight, _ in layers]
    if shapes != list(zip(workload.sizes, workload.sizes[1:])):
        raise ValueError(f"the parameters must have the shapes of {workload.sizes}, got {shapes}")
    total, (X, _, y) = 0.0, rows_to_check(workload, data)
    for at in range(0, len(X), ROWS_AT_A_TIME):
        some = slice(at, at + ROWS_AT_A_TIME)
        total += _sum_of_losses(_logits(workload.activation, layers, X[some]), y[some])
    return total / len(X)


def rows_to_check(workload: Workload, data: Data) -> Data:
    """Return the data, or so many of their first rows as are soon evaluated."""
    weights = sum(n_in * n_out for n_in, n_out in zip(workload.sizes, workload.sizes[1:]))
    n_rows = max(1, int(MOST_PRODUCTS / weights))
    return data if n_rows >= len(data.X) else Data(*(array[:n_rows] for array in data))


def loss_of_predictions(data: Data, probabilities: HostArray) -> float:
    """Return the mean binary cross-entropy of probabilities of shape (n_samples, 1)."""
    if probabilities.shape != data.y.shape:
        raise ValueError(f"predictions must have shape {data.y.shape}, got {probabilities.shape}")
    right = np.where(data.y == 1, probabilities, 1.0 - probabilities.astype(np.float64))
    return -float(np.mean(np.log(right)))


def odd_ones(losses: Mapping[str, float], tolerance: float) -> set[str]:
    """Return who did not end where the others did: further than the tolerance from the median loss."""
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


def _sum_of_losses(logits: HostArray, y: HostArray) -> float:
    if logits.shape[1] == 1:
        return float(np.sum(np.logaddexp(0.0, logits) - y * logits))
    largest = logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return float(np.sum(log_total - np.sum(y * logits, axis=1)))
