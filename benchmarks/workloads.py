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
"""Adam's epsilon in trainings, small enough that it does not matter where it is added, as libraries differ in
that.

In float32 it must be larger: there the square of a gradient of 1e-20 is 0, and dividing by 1e-30 overflows.
"""


class Defaults(NamedTuple):
    """The defaults of scikit-learn's estimators and ours, which the peers follow in fits and streams."""

    hidden: int = 100
    activation: str = "relu"
    rate: float = 1e-3
    batch_size: int = 200
    alpha: float = 1e-4
    epsilon: float = 1e-8
    max_iter: int = 200
    tol: float = 1e-4
    n_iter_no_change: int = 10
    validation_fraction: float = 0.1


DEFAULTS = Defaults()


@dataclass(frozen=True)
class Workload:
    """An amount of training, or of prediction with the start weights.

    Parameters
    ----------
    name : str
    sizes : tuple of int
        Layer sizes; one output is a binary classification, several are a softmax.
    rows : int
    batch_size : int, optional
        All rows by default. The last batch of an epoch may be smaller.
    epochs : int
        Number of epochs in one repeat; the maximum, if the estimators' defaults apply.
    calls : int
        Number of predictions of all rows in one repeat; 0 for a training.
    block : int
        Number of rows predicted at a time, by participants that do not choose it themselves.
    matmul_precision : {"highest", "tf32"}
        Precision of float32 matrix products: full, or TF32 (factors with 10 bits of mantissa) on a GPU.
    devices : tuple of str
        Devices on which it is measured by default.
    defaults : bool
        The estimators have their own defaults, `DEFAULTS`, but for `random_state`, `early_stopping` and
        `max_iter`: with a penalty on the weights, and a rule that may end a fit before `epochs`.
    stream : bool
        Each batch is a call of `partial_fit`, with the rows in their order.
    early_stopping : bool
        A part of the rows is held out and scored after each epoch.
    regression : bool
        The targets are values, and the loss is half the squared error.
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
    defaults: bool = False
    stream: bool = False
    early_stopping: bool = False
    regression: bool = False

    @property
    def kind(self) -> str:
        """What it is: "training", "prediction", "fit" with the estimators' defaults, or "stream"."""
        if self.predicts:
            return "prediction"
        if self.stream:
            return "stream"
        return "fit" if self.defaults else "training"

    @property
    def predicts(self) -> bool:
        """Whether this is a prediction, not a training."""
        return self.calls > 0

    @property
    def estimator(self) -> str:
        """Name of the estimator, scikit-learn's or ours."""
        return "MLPRegressor" if self.regression else "MLPClassifier"

    @property
    def chosen(self) -> dict[str, Any]:
        """The estimator's parameters that are not its defaults, if those apply, but for `random_state`."""
        chosen: dict[str, Any] = {"early_stopping": True} if self.early_stopping else {}
        if not self.stream and self.epochs != DEFAULTS.max_iter:
            chosen["max_iter"] = self.epochs
        return chosen

    @property
    def held_out(self) -> int:
        """Number of rows that are scored after each epoch, and never trained on."""
        return math.ceil(DEFAULTS.validation_fraction * self.rows) if self.early_stopping else 0

    @property
    def trained(self) -> int:
        """Number of rows that are trained on, or predicted."""
        return self.rows - self.held_out

    @property
    def batch(self) -> int:
        """Number of rows in a step, or in a block of a prediction."""
        return min(self.block if self.predicts else self.batch_size or self.trained, self.trained)

    @property
    def full_batch(self) -> bool:
        """Whether a step takes all rows, so that they need no shuffling."""
        return self.batch == self.trained

    @property
    def shuffles(self) -> bool:
        """Whether each epoch takes the rows in a new order."""
        return not self.full_batch and not self.stream

    @property
    def batches(self) -> list[slice]:
        """The rows of each step of an epoch, of each call of a stream, or of each block of a prediction."""
        return [slice(at, min(at + self.batch, self.trained)) for at in range(0, self.trained, self.batch)]

    @property
    def passes(self) -> list[list[slice]]:
        """The batches of each epoch; in a stream every call is an epoch of its own."""
        return [[some] for some in self.batches] if self.stream else [self.batches] * self.epochs

    @property
    def may_end_early(self) -> bool:
        """Whether the estimators' rule can end it before its last epoch."""
        return self.kind == "fit" and self.epochs > DEFAULTS.n_iter_no_change + 1

    @property
    def units(self) -> int:
        """Number of steps, calls, or fits in one repeat."""
        return 1 if self.kind == "fit" else self.calls or self.epochs * len(self.batches)

    @property
    def unit(self) -> str:
        """Name of the unit that times refer to: "step", "call" or "fit"."""
        return {"training": "step", "fit": "fit"}.get(self.kind, "call")

    @property
    def tolerance(self) -> float:
        """Maximum relative difference of final losses between participants.

        TF32 keeps 11 significant bits of each factor: an error of 5e-4 if the others are rounded, of twice
        that, all in one direction, if they are truncated. Libraries differ in that and in which factors are
        scaled before: losses of a network of 1024 units then differed by up to 2e-4 after 60 steps.

        With the estimators' defaults Adam steps as far along gradients that are hardly more than rounding
        errors as along others: losses in float32 then differed by up to 3e-4 after 600 steps.
        """
        if self.matmul_precision == "tf32":
            return 1e-2
        if self.dtype == "float64":
            return 1e-8
        return 1e-3 if self.defaults else 1e-4

    @property
    def alpha(self) -> float:
        """Factor of the penalty on the weights."""
        return DEFAULTS.alpha if self.defaults else 0.0

    @property
    def epsilon(self) -> float:
        """Adam's epsilon."""
        return DEFAULTS.epsilon if self.defaults else ADAM_EPSILON[self.dtype]

    @property
    def title(self) -> str:
        """Description in one line: estimator, network, batch, dtype, solver and amount."""
        network = f"{'-'.join(map(str, self.sizes))} {self.activation}"
        dtype = f"{self.dtype} as TF32" if self.matmul_precision == "tf32" else self.dtype
        if self.predicts:
            return f"predict {count(self.rows, 'row')} through {network}, {dtype}"
        steps = "full batch" if self.full_batch else f"batch {self.batch}"
        solver = "Adam" if self.solver == "adam" else "SGD"
        amount = f"{count(self.epochs, 'epoch')} of {count(self.trained, 'row')}"
        if self.may_end_early:
            amount = f"until tol ends it, at most {amount}"
        if self.held_out:
            amount += f", each with a score of {self.held_out:,} held out"
        if self.stream:
            amount = f"{count(self.units, 'call')} of {count(self.batch, 'row')}"
        work = f"{network}, {steps}, {dtype}, {solver}; {amount}"
        if not self.defaults:
            return work
        call = f"{self.estimator}({', '.join(f'{name}={value}' for name, value in self.chosen.items())})"
        return f"{call}{'.partial_fit' if self.stream else ''}; {work}"

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


def _with_defaults(name: str, sizes: tuple[int, ...], rows: int, dtype: str, **more: Any) -> Workload:
    """Return a fit, or a stream, of an estimator with its defaults."""
    settings = {"batch_size": DEFAULTS.batch_size, "epochs": DEFAULTS.max_iter, **more}
    return Workload(
        name,
        (sizes[0], DEFAULTS.hidden, sizes[-1]),
        DEFAULTS.activation,
        rows,
        dtype,
        rate=DEFAULTS.rate,
        solver="adam",
        defaults=True,
        **settings,
    )


def _and_regressor(workload: Workload) -> tuple[Workload, Workload]:
    """Return a workload of a classifier, and that of a regressor on the same rows."""
    regressor = replace(
        workload, name=f"{workload.name}-regressor", sizes=(*workload.sizes[:-1], 1), regression=True
    )
    return workload, regressor


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("xor", (2, 2, 1), "logistic", 4, "float64", "xor", epochs=150_000),
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
            epochs=12,
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
        *_and_regressor(_with_defaults("digits", (64, 10), 1_797, "float64", data="digits")),
        _with_defaults("images-f32", (784, 10), 60_000, "float32", epochs=5),
        _with_defaults("images-f64", (784, 10), 60_000, "float64", epochs=5),
        *_and_regressor(_with_defaults("table", (30, 1), 100_000, "float64", epochs=25, early_stopping=True)),
        *_and_regressor(
            _with_defaults("stream", (30, 1), 32_000, "float64", batch_size=32, epochs=1, stream=True)
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
        "digits": {"epochs": 10},
        "table": {"rows": 20_000, "epochs": 2},
        "stream": {"rows": 6_400},
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
    """Class indices, or values, of shape (n_samples,), for estimators."""
    y: HostArray
    """Targets of shape (n_samples, n_outputs), in X's dtype: 0 and 1, one-hot, or values."""

    def at(self, rows: Any) -> Data:
        """Return some of the rows."""
        return Data(*(array[rows] for array in self))


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


def _digits(workload: Workload) -> tuple[HostArray, HostArray]:
    data = load("digits")
    return data.X, data.y.astype(workload.dtype) if workload.regression else data.y


def _synthetic(workload: Workload) -> tuple[HostArray, HostArray]:
    """Return normally distributed points, with classes, or values, by a network of random weights."""
    random = np.random.default_rng(SEED)
    n_features, n_outputs = workload.sizes[0], workload.sizes[-1]
    X = random.standard_normal((workload.rows, n_features), dtype=np.float32)
    first = random.standard_normal((n_features, 16), dtype=np.float32) / np.float32(math.sqrt(n_features))
    second = random.standard_normal((16, n_outputs), dtype=np.float32)
    scores = np.tanh(X @ first) @ second
    if workload.regression:
        return X, scores[:, 0]
    return X, (scores[:, 0] > 0).astype(np.int64) if n_outputs == 1 else scores.argmax(axis=1)


_DATA: dict[str, Callable[[Workload], tuple[HostArray, HostArray]]] = {
    "xor": _xor,
    "planar": _planar,
    "cancer": _cancer,
    "digits": _digits,
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


def hold_out(workload: Workload, data: Data, start: Start) -> tuple[Data, Data, Start]:
    """Return the rows to train on, those held out, and the start after the draw of them, as in an estimator.

    Without early stopping none are held out.
    """
    if not workload.early_stopping:
        return data, data.at(slice(0, 0)), start
    from sklearn.model_selection import train_test_split

    random = start.random()
    trained, held_out = train_test_split(
        np.arange(workload.rows),
        test_size=DEFAULTS.validation_fraction,
        random_state=random,
        stratify=data.y if workload.sizes[-1] == 1 and not workload.regression else None,
    )
    return data.at(trained), data.at(held_out), Start(start.layers, random.get_state())


def new_order(workload: Workload) -> HostArray:
    """Return the initial order of the rows; each epoch shuffles it in place."""
    return np.arange(workload.trained)
