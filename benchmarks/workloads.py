"""The workloads: how much of what is trained or predicted, on which data, from which start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp import one_hot
from mlp_xp.datasets import load, planar, xor

HostArray: TypeAlias = "np.ndarray[Any, Any]"
Layers: TypeAlias = "list[tuple[HostArray, HostArray]]"
"""A weight of shape (n_in, n_out) and a bias of shape (n_out,) for each layer, on the host."""

SEED = 0
ADAM_EPSILON = 1e-30
"""So small that it does not matter where it is added: PyTorch adds it elsewhere than scikit-learn."""


@dataclass(frozen=True)
class Workload:
    """A fixed amount of training, or of prediction with the start weights.

    Parameters
    ----------
    name : str
    sizes : tuple of int
        Of the layers; one output is a binary classification, several a softmax.
    rows : int
    batch_size : int, optional
        All rows by default. The last batch of an epoch takes the rows that are left.
    epochs : int
        In one repeat.
    calls : int
        Predictions of all rows in one repeat; 0 for a training.
    block : int
        Rows that a participant without blocks of its own predicts at a time.
    """

    name: str
    sizes: tuple[int, ...]
    hidden: str
    rows: int
    dtype: str = "float32"
    data: str = "synthetic"
    batch_size: int | None = None
    epochs: int = 1
    rate: float = 0.1
    solver: str = "sgd"
    calls: int = 0
    block: int = 1_000_000

    @property
    def predicts(self) -> bool:
        """Whether this is a prediction."""
        return self.calls > 0

    @property
    def batch(self) -> int:
        """Rows in a step, or in a block of a prediction."""
        return min(self.block if self.predicts else self.batch_size or self.rows, self.rows)

    @property
    def full_batch(self) -> bool:
        """Whether a step takes all rows, in no particular order."""
        return self.batch == self.rows

    @property
    def batches(self) -> list[slice]:
        """The rows of each step of an epoch, or of each block of a prediction."""
        return [slice(at, min(at + self.batch, self.rows)) for at in range(0, self.rows, self.batch)]

    @property
    def units(self) -> int:
        """How many steps, or calls, one repeat takes."""
        return self.calls or self.epochs * len(self.batches)

    @property
    def unit(self) -> str:
        """What a time is divided by."""
        return "call" if self.predicts else "step"

    @property
    def tolerance(self) -> float:
        """How far, relatively, the losses of two that did the same work may lie apart."""
        return 1e-8 if self.dtype == "float64" else 1e-4

    @property
    def title(self) -> str:
        """What is done, in one line."""
        network = f"{'-'.join(map(str, self.sizes))} {self.hidden}"
        if self.predicts:
            return f"predict {count(self.rows, 'row')} through {network}, {self.dtype}"
        steps = "full batch" if self.full_batch else f"batch {self.batch}"
        solver = "Adam" if self.solver == "adam" else "SGD"
        amount = f"{count(self.epochs, 'epoch')} of {count(self.rows, 'row')}"
        return f"{network}, {steps}, {self.dtype}, {solver}; {amount}"

    def bytes_needed(self) -> int:
        """Return what must be in memory: data, parameters, optimizer state, a batch's activations."""
        item = np.dtype(self.dtype).itemsize
        parameters = sum((n_in + 1) * n_out for n_in, n_out in zip(self.sizes, self.sizes[1:]))
        if self.predicts:
            return item * (self.rows * (self.sizes[0] + self.sizes[-1]) + parameters)
        state = 2 * parameters if self.solver == "adam" else 0
        data = self.rows * (self.sizes[0] + self.sizes[-1])
        return item * (data + parameters + state + self.batch * sum(self.sizes[1:]))


def count(number: int, what: str) -> str:
    """Return a number with its noun: ``1 row``, ``1,000 rows``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("xor", (2, 2, 1), "logistic", 4, "float64", "xor", epochs=4000),
        Workload("planar", (2, 4, 1), "tanh", 400, "float64", "planar", epochs=2000, rate=0.5),
        Workload("cancer-f64", (30, 128, 1), "relu", 569, "float64", "cancer", 32, epochs=100, rate=0.01),
        Workload("cancer-f32", (30, 128, 1), "relu", 569, "float32", "cancer", 32, epochs=100, rate=0.01),
        Workload("wide", (784, 256, 1), "relu", 12_000, batch_size=128, epochs=5, rate=0.01),
        Workload(
            "adam",
            (784, 256, 128, 10),
            "relu",
            6_000,
            "float64",
            batch_size=128,
            epochs=4,
            rate=1e-3,
            solver="adam",
        ),
        Workload("deep", (28, 300, 300, 300, 1), "relu", 100_000, batch_size=1000, rate=0.05),
        Workload("large", (1024, 2048, 2048, 1), "relu", 7_000, batch_size=4096, rate=0.01),
        Workload("predict-one", (30, 128, 1), "relu", 1, "float64", calls=1000),
        Workload("predict-million", (28, 300, 300, 300, 1), "relu", 1_000_000, calls=1, block=8192),
    )
}


def quick_ones() -> dict[str, Workload]:
    """Return the workloads of a quick run, cut to less training."""
    cuts: dict[str, dict[str, Any]] = {
        "xor": {"epochs": 300},
        "cancer-f32": {"epochs": 5},
        "wide": {"rows": 3_000, "epochs": 1},
        "predict-one": {"calls": 200},
    }
    return {name: replace(WORKLOADS[name], **cut) for name, cut in cuts.items()}


class Data(NamedTuple):
    """What is trained on, on the host."""

    X: HostArray
    labels: HostArray
    """Classes, shape (n_samples,): what estimators take."""
    y: HostArray
    """Targets of shape (n_samples, n_outputs), in X's dtype: 0 and 1, or one-hot."""


def make_data(workload: Workload) -> Data:
    """Make a workload's data; the same each time."""
    X, labels = _DATA[workload.data](workload)
    X = np.ascontiguousarray(X[: workload.rows], dtype=workload.dtype)
    labels = labels[: workload.rows]
    n_outputs = workload.sizes[-1]
    y = labels[:, None] if n_outputs == 1 else one_hot(labels, n_outputs)
    return Data(X, labels, y.astype(workload.dtype))


def _xor(workload: Workload) -> tuple[HostArray, HostArray]:
    data = xor()
    return data.X, data.y


def _planar(workload: Workload) -> tuple[HostArray, HostArray]:
    data = planar()
    return data.X, data.y


def _cancer(workload: Workload) -> tuple[HostArray, HostArray]:
    data = load("breast-cancer")
    return (data.X - data.X.mean(axis=0)) / data.X.std(axis=0), data.y


def _synthetic(workload: Workload) -> tuple[HostArray, HostArray]:
    """Draw points, and let a network of random weights say their classes."""
    random = np.random.default_rng(SEED)
    n_features, n_outputs = workload.sizes[0], workload.sizes[-1]
    X = random.standard_normal((workload.rows, n_features), dtype=np.float32)
    first = random.standard_normal((n_features, 16), dtype=np.float32) / np.float32(math.sqrt(n_features))
    second = random.standard_normal((16, n_outputs), dtype=np.float32)
    scores = np.tanh(X @ first) @ second
    return X, (scores[:, 0] > 0).astype(np.int64) if n_outputs == 1 else scores.argmax(axis=1)


_DATA: dict[str, Callable[[Workload], tuple[HostArray, HostArray]]] = {
    "xor": _xor,
    "planar": _planar,
    "cancer": _cancer,
    "synthetic": _synthetic,
}


class Start(NamedTuple):
    """Where a training begins: weights, and the random state that the orders are drawn from."""

    layers: Layers
    random_state: Any

    def random(self) -> np.random.RandomState:
        """Return the generator of the orders, as it is after the weights were drawn."""
        random = np.random.RandomState(0)
        random.set_state(self.random_state)
        return random


def make_start(workload: Workload) -> Start:
    """Draw what scikit-learn's estimators and ours draw from ``random_state=SEED``."""
    random = np.random.RandomState(SEED)
    factor = 2.0 if workload.hidden == "logistic" else 6.0
    layers = []
    for n_in, n_out in zip(workload.sizes, workload.sizes[1:]):
        bound = math.sqrt(factor / (n_in + n_out))
        weight, bias = random.uniform(-bound, bound, (n_in, n_out)), random.uniform(-bound, bound, n_out)
        layers.append((weight.astype(workload.dtype), bias.astype(workload.dtype)))
    return Start(layers, random.get_state())


def new_order(workload: Workload) -> HostArray:
    """Return the rows as they are; each epoch shuffles the order of the last one in place."""
    return np.arange(workload.rows)
