"""Cost of checkpoints: the workload `large` with one after each epoch, against the same without.

What they add, divided by how many are written, is the cost of one; at one a minute it is that in 60 seconds.
The state is that of Adam, three times the parameters, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import interleave
from benchmarks.workloads import WORKLOADS
from mlp_xp import Checkpoint, Network, adam, gradient_descent, train

EPOCHS = 3
SECONDS_BETWEEN = 60.0
TARGET_RATIO = 0.02


def measure(repeats: int) -> dict[str, Any]:
    """Return the seconds of trainings, and the part of a minute that a checkpoint takes."""
    workload = replace(WORKLOADS["large"], epochs=EPOCHS)
    if repeats == 1:  # to see that it runs
        workload = replace(workload, rows=workload.rows // 10)
    random = np.random.default_rng(0)
    X = random.standard_normal((workload.rows, workload.sizes[0]), dtype=np.float32)
    y = (X[:, :1] > 0.0).astype(np.float32)
    network = Network(workload.sizes, activation=workload.activation, loss="binary_cross_entropy")
    params = network.init(0, like=X)
    optimizers = {"gradient descent": gradient_descent(workload.rate), "adam": adam(1e-4)}
    functions: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, optimizer in optimizers.items():

            def run(checkpoint: Checkpoint | None, optimizer: Any = optimizer) -> object:
                return train(
                    network,
                    params,
                    X,
                    y,
                    optimizer=optimizer,
                    epochs=EPOCHS,
                    batch_size=workload.batch_size,
                    seed=0,
                    callback=lambda history, params: None,  # each epoch by itself, also without checkpoints
                    checkpoint=checkpoint,
                )

            rule = Checkpoint(Path(folder, name), every_epochs=1, overwrite=True)
            functions[_without(name)] = partial(run, None)
            functions[_with(name)] = partial(run, rule)
        timings = interleave(functions, min(repeats, 7))
        sizes = {name: Path(folder, name).stat().st_size for name in optimizers}
    # One is written before the first epoch too.
    added = {name: timings.difference(_with(name), _without(name)) / (EPOCHS + 1) for name in optimizers}
    return {
        "name": f"checkpoints: network {workload.sizes}",
        "unit": "ms",
        "medians": {label: timings.median(label) * 1e3 for label in functions}
        | {
            f"added by one, {name} ({sizes[name] / 1e6:.0f} MB)": seconds * 1e3
            for name, seconds in added.items()
        },
        "result": max(added.values()) / SECONDS_BETWEEN,
        "result_is": "of the time, at one a minute",
        "target": TARGET_RATIO,
    }


def _without(name: str) -> str:
    return f"{name}: {EPOCHS} epochs"


def _with(name: str) -> str:
    return f"{name}: with a checkpoint each"
