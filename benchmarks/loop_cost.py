"""Overhead of the training loop over its array calls: XOR, 2-2-1, full batch, NumPy float64.

The bare version makes the array calls in a straight line: no functions, no layers, no history. `train` makes
fewer calls, as its steps are compiled. Both must end at the same parameters, up to rounding, or no ratio is
printed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.timing import interleave
from mlp_xp import Layer, Network, gradient_descent, train
from mlp_xp._parameters import Parameters, copy_tree, flatten
from mlp_xp.datasets import xor

UPDATES = 5_000
LEARNING_RATE = 0.1
TARGET_RATIO = 1.15


def start() -> Parameters:
    """Return the published starting parameters."""
    random = np.random.RandomState(42)
    weight_1, bias_1 = random.standard_normal((2, 2)).T.copy(), random.standard_normal(2)
    weight_2, bias_2 = random.standard_normal((1, 2)).T.copy(), random.standard_normal(1)
    return (Layer(weight_1, bias_1), Layer(weight_2, bias_2))


def bare_updates(params: Parameters, X: Any, y: Any, n_updates: int) -> Parameters:
    """Return the parameters after `n_updates` updates made of bare array calls."""
    (weight_1, bias_1), (weight_2, bias_2) = copy_tree(np, params)
    scale, rate = 1.0 / X.shape[0], LEARNING_RATE
    for _ in range(n_updates):
        z = np.matmul(X, weight_1)
        z += bias_1
        a = 0.5 * np.tanh(0.5 * z) + 0.5
        logits = np.matmul(a, weight_2)
        logits += bias_2
        yz = y * logits
        losses = np.logaddexp(-yz, logits - yz)
        delta = 0.5 * np.tanh(0.5 * logits) + 0.5 - y
        total = np.sum(losses)
        delta = delta * scale
        weight_gradient_2, bias_gradient_2 = np.matmul(a.T, delta), np.sum(delta, axis=0)
        delta = np.matmul(delta, weight_2.T)
        delta = delta * (a * (1.0 - a))
        weight_gradient_1, bias_gradient_1 = np.matmul(X.T, delta), np.sum(delta, axis=0)
        total * scale
        weight_1 -= rate * weight_gradient_1
        bias_1 -= rate * bias_gradient_1
        weight_2 -= rate * weight_gradient_2
        bias_2 -= rate * bias_gradient_2
    return (Layer(weight_1, bias_1), Layer(weight_2, bias_2))


def measure(repeats: int) -> dict[str, Any]:
    """Return the microseconds per update of `train` and of the bare calls, and their ratio."""
    data = xor()
    X, y = data.X, data.y[:, None].astype(np.float64)
    network = Network((2, 2, 1), activation="logistic", loss="binary_cross_entropy")
    params = start()

    def loop() -> Parameters:
        return train(network, params, X, y, optimizer=gradient_descent(LEARNING_RATE), epochs=UPDATES).params

    def bare() -> Parameters:
        return bare_updates(params, X, y, UPDATES)

    for ours, theirs in zip(flatten(loop()), flatten(bare()), strict=True):
        if not np.allclose(ours, theirs, rtol=1e-10, atol=0.0):
            raise AssertionError("train and the bare calls end at different parameters; nothing to compare")
    timings = interleave({"train": loop, "bare array calls": bare}, repeats)
    return {
        "name": "XOR 2-2-1, full batch, NumPy float64",
        "unit": "µs an update",
        "medians": {name: timings.median(name) / UPDATES * 1e6 for name in timings.seconds},
        "result": timings.ratio("train", "bare array calls"),
        "result_is": "train / bare array calls",
        "target": TARGET_RATIO,
    }
