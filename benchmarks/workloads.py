"""The workloads: networks, data, start weights, and amounts of training or prediction."""

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
"""For each layer a weight of shape (n_in, n_out) and a bias of shape (n_out,), on the host."""

SEED = 0
ADAM_EPSILON = {"float64": 1e-30, "float32": 1e-12}
"""Adam's epsilon, small enough that it does not matter where it is added, as libraries differ in that.

In float32 it must be larger: there the square of a gradient of 1e-20 is 0, and dividing by 1e-30 overflows.
"""


@dataclass(frozen=True)
class Workload:
    """A fixed amount of training, or of prediction with the start weights.

    Parameters
    ----------
    name : str
    sizes : tuple of int
        Layer sizes; one output is a binary classification, several are a softmax.
    rows : int
    batch_size : int, optional
        All rows by default. The last batch of an epoch may be smaller.
    epochs : int
        Number of epochs in one repeat.
    calls : int
        Number of predictions of all rows in one repeat; 0 for a training.
    block : int
        Number of rows predicted at a time, by participants that do not choose it themselves.
    matmul_precision : {"highest", "tf32"}
        Precision of float32 matrix products: full, or TF32 (factors with 10 bits of mantissa) on a GPU.
    devices : tuple of str
        Devices on which it is measured by default.
    """

    name: str
    sizes: tuple[int, ...]
    activation: str
    rows: int
    dtype: str = "float32"
    data: str = "synthetic"
    batch_size: int | None = None
    epochs: int = 1
    rate: float = 0.1
    solver: str = "sgd"
    calls: int = 0
    block: int = 1_000_000
    matmul_precision: str = "highest"
    devices: tuple[str, ...] = ("cpu",)

    @property
    def predicts(self) -> bool:
        """Whether this is a prediction, not a training."""
        return self.calls > 0

    @property
    def batch(self) -> int:
        """Number of rows in a step, or in a block of a prediction."""
        return min(self.block if self.predicts else self.batch_size or self.rows, self.rows)

    @property
    def full_batch(self) -> bool:
        """Whether a step takes all rows, so that they need no shuffling."""
        return self.batch == self.rows

    @property
    def batches(self) -> list[slice]:
        """The rows of each step of an epoch, or of each block of a prediction."""
        return [slice(at, min(at + self.batch, self.rows)) for at in range(0, self.rows, self.batch)]

    @property
    def units(self) -> int:
        """Number of steps, or calls, in one repeat."""
        return self.calls or self.epochs * len(self.batches)

    @property
    def unit(self) -> str:
        """Name of the unit that times refer to: "step" or "call"."""
        return "call" if self.predicts else "step"

    @property
    def tolerance(self) -> float:
        """Maximum relative difference of final losses between participants.

        TF32 keeps 11 significant bits of each factor: an error of 5e-4 if the others are rounded, of twice
        that, all in one direction, if they are truncated. Libraries differ in that and in which factors are
        scaled before: losses of a network of 1024 units then differed by up to 2e-4 after 60 steps.
        """
        if self.matmul_precision == "tf32":
            return 1e-2
        return 1e-8 if self.dtype == "float64" else 1e-4

    @property
    def epsilon(self) -> float:
        """Adam's epsilon for the dtype."""
        return ADAM_EPSILON[self.dtype]

    @property
    def title(self) -> str:
        """Description in one line: network, batch, dtype, solver and amount."""
        network = f"{'-'.join(map(str, self.sizes))} {self.activation}"
        dtype = f"{self.dtype} as TF32" if self.matmul_precision == "tf32" else self.dtype
        if self.predicts:
            return f"predict {count(self.rows, 'row')} through {network}, {dtype}"
        steps = "full batch" if self.full_batch else f"batch {self.batch}"
        solver = "Adam" if self.solver == "adam" else "SGD"
        amount = f"{count(self.epochs, 'epoch')} of {count(self.rows, 'row')}"
        return f"{network}, {steps}, {dtype}, {solver}; {amount}"

    def bytes_needed(self) -> int:
        """Return the bytes needed for data, parameters, optimizer state and a batch's activations."""
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


_BOTH = ("cpu", "cuda")
_HUGE_WORKLOAD = Workload(
    "huge",
    (4096, 4096, 4096, 4096, 1),
    "relu",
    16_384,
    batch_size=8192,
    epochs=12,
    rate=3e-6,
    solver="adam",
    devices=("cuda",),
)
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
        Workload(
            "planar-f32",
            (2, 4, 1),
            "tanh",
            400,
            data="planar",
            epochs=10_000,
            rate=0.5,
            devices=("cuda",),
        ),
        Workload(
            "adam-f32",
            (784, 256, 10),
            "relu",
            51_200,
            batch_size=128,
            epochs=10,
            rate=1e-4,
            solver="adam",
            devices=("cuda",),
        ),
        _HUGE_WORKLOAD,
        replace(_HUGE_WORKLOAD, name="huge-tf32", epochs=30, matmul_precision="tf32"),
        Workload("deep", (28, 300, 300, 300, 1), "relu", 100_000, batch_size=1000, rate=0.05, devices=_BOTH),
        Workload("large", (1024, 2048, 2048, 1), "relu", 7_000, batch_size=4096, rate=0.01),
        Workload("predict-one", (30, 128, 1), "relu", 1, "float64", calls=1000),
        Workload(
            "predict-million",
            (28, 300, 300, 300, 1),
            "relu",
            1_000_000,
            calls=1,
            block=8192,
            devices=_BOTH,
        ),
    )
}


_OVERRIDES: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    # More epochs on a GPU, so that work done once per repeat matters little.
    ("cuda", "full"): {"deep": {"epochs": 20}, "predict-million": {"calls": 20}},
    ("cpu", "quick"): {
        "xor": {"epochs": 300},
        "cancer-f32": {"epochs": 5},
        "wide": {"rows": 3_000, "epochs": 1},
        "predict-one": {"calls": 200},
    },
    ("cuda", "quick"): {
        "planar-f32": {"epochs": 1_000},
        "adam-f32": {"rows": 12_800, "epochs": 5},
        "huge": {"epochs": 2},
        "huge-tf32": {"epochs": 3},
        "deep": {"epochs": 3},
        "predict-million": {"calls": 5},
    },
}


def workloads_for(device: str) -> dict[str, Workload]:
    """Return all workloads by name, with the amounts of work for a device."""
    return {**WORKLOADS, **_with_overrides(device, "full")}


def default_workloads(device: str) -> dict[str, Workload]:
    """Return the workloads that are measured on a device by default."""
    return {name: workload for name, workload in workloads_for(device).items() if device in workload.devices}


def quick_workloads(device: str) -> dict[str, Workload]:
    """Return the workloads of a quick run, with less training."""
    return _with_overrides(device, "quick")


def _with_overrides(device: str, how: str) -> dict[str, Workload]:
    cuts = _OVERRIDES.get((device, how), {})
    return {name: replace(WORKLOADS[name], **cut) for name, cut in cuts.items()}


class Data(NamedTuple):
    """Training data, on the host."""

    X: HostArray
    labels: HostArray
    """Class indices of shape (n_samples,), for estimators."""
    y: HostArray
    """Targets of shape (n_samples, n_outputs), in X's dtype: 0 and 1, or one-hot."""


def make_data(workload: Workload) -> Data:
    """Return a workload's data, which are deterministic."""
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
    """Return normally distributed points, with classes by a network of random weights."""
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
    """Start of a training: weights, and the random state that the orders of the rows are drawn from."""

    layers: Layers
    random_state: Any

    def random(self) -> np.random.RandomState:
        """Return the random generator in its state after the weights were drawn."""
        random = np.random.RandomState(0)
        random.set_state(self.random_state)
        return random


def make_start(workload: Workload) -> Start:
    """Return the weights that scikit-learn's estimators and ours draw for ``random_state=SEED``."""
    random = np.random.RandomState(SEED)
    factor = 2.0 if workload.activation == "logistic" else 6.0
    layers = []
    for n_in, n_out in zip(workload.sizes, workload.sizes[1:]):
        bound = math.sqrt(factor / (n_in + n_out))
        weight, bias = random.uniform(-bound, bound, (n_in, n_out)), random.uniform(-bound, bound, n_out)
        layers.append((weight.astype(workload.dtype), bias.astype(workload.dtype)))
    return Start(layers, random.get_state())


def new_order(workload: Workload) -> HostArray:
    """Return the initial order of the rows; each epoch shuffles it in place."""
    return np.arange(workload.rows)
