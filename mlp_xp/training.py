"""The training loop: epochs, history, early stopping, and what happens when it goes wrong."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np

from mlp_xp.arrays import (
    Array,
    Placement,
    check_finite,
    placement,
    quiet_floating_point,
    without_autodiff,
)
from mlp_xp.engines import Batch, Engine, Epoch, make_engine
from mlp_xp.metrics import Metric, UserMetric, resolve_metrics
from mlp_xp.network import Network
from mlp_xp.optimizers import Optimizer
from mlp_xp.parameters import Parameters, all_finite, copy_tree, named, plain
from mlp_xp.schedules import check_learning_rate, rates
from mlp_xp.validation import RandomSource, Seed, check_integer, check_real, random_source

SECONDS_PER_RUN = 0.1
"""Epochs that nobody looks at run together, about so long at a time, before their losses are read."""


class History(list[dict[str, Any]]):
    """What was measured after each epoch: a list of plain dicts of Python numbers, JSON as it stands.

    Each has "epoch" (from 1) and "loss" (the mean of the epoch's objectives, each taken before its
    step); each metric under its name; and for validation data "val_loss" (without the penalty on the
    weights) and "val_" before each metric.

    Examples
    --------
    >>> from mlp_xp import History
    >>> history = History([{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.4}])
    >>> history[-1]
    {'epoch': 2, 'loss': 0.4}
    >>> history["loss"]
    [0.7, 0.4]
    """

    @overload  # type: ignore[override]
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> History: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    def __getitem__(self, key: Any) -> Any:
        """Return an epoch's record by its index, a slice of epochs, or a column by its name."""
        if isinstance(key, str):
            return [record[key] for record in self]
        item = super().__getitem__(key)
        return History(item) if isinstance(key, slice) else item


Callback: TypeAlias = Callable[[History, Parameters], "bool | None"]
"""``(history, params) -> stop``: called after each epoch, with parameters that are its own to keep."""


class TrainingError(RuntimeError):
    """Training could not go on; what was trained until then is kept here.

    Attributes
    ----------
    epoch : int
        The epoch it happened in, from 1.
    params : tuple of Layer
        The parameters as they were, all of them finite.
    history : History
        The epochs finished until then.
    """

    def __init__(self, message: str, epoch: int, params: Parameters, history: History) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.params = params
        self.history = history

    def __reduce__(self) -> Any:
        # By default an exception is rebuilt from its message alone, and then from nothing at all.
        return type(self), (*self.args, self.epoch, self.params, self.history)


class DivergenceError(TrainingError, ArithmeticError):
    """The loss or a parameter became NaN or infinite.

    Attributes
    ----------
    loss : float
        The loss of that epoch.
    """

    def __init__(self, message: str, epoch: int, params: Parameters, history: History, loss: float) -> None:
        super().__init__(message, epoch, params, history)
        self.loss = loss

    def __reduce__(self) -> Any:
        return type(self), (*self.args, self.epoch, self.params, self.history, self.loss)


class TrainingInterruptedWarning(UserWarning):
    """Ctrl-C ended a training before its last epoch."""


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a column of the history no longer improves.

    Parameters
    ----------
    monitor : str, default="val_loss"
        "loss", "val_loss", or a metric's name, with "val_" before it for validation data.
    n_iter_no_change : int, default=10
        Training stops when more than so many epochs in a row have not improved the best value.
    tol : float, default=1e-4
        By how much an epoch must improve the best value to count.
    restore_best : bool, default=True
        Return the parameters of the best epoch rather than those of the last.
    greater_is_better : bool, optional
        Which way the monitored value improves; needed for a metric of the user's own only.

    Examples
    --------
    >>> from mlp_xp import EarlyStopping
    >>> EarlyStopping("val_accuracy", n_iter_no_change=5).tol
    0.0001
    """

    monitor: str = "val_loss"
    n_iter_no_change: int = field(default=10, kw_only=True)
    tol: float = field(default=1e-4, kw_only=True)
    restore_best: bool = field(default=True, kw_only=True)
    greater_is_better: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_integer("n_iter_no_change", self.n_iter_no_change, minimum=1)
        check_real("tol", self.tol, at_least=0.0)


class _Watch:
    """Follows the monitored column through the epochs."""

    def __init__(self, rule: EarlyStopping, metrics: Sequence[Metric], validation: bool) -> None:
        directions: dict[str, bool | None] = {"loss": False}
        directions |= {metric.name: metric.greater_is_better for metric in metrics}
        columns = list(directions) + [f"val_{name}" for name in directions if validation]
        if rule.monitor not in columns:
            raise ValueError(f"`early_stopping` must monitor one of {columns}, got {rule.monitor!r}")
        greater = rule.greater_is_better
        if greater is None:
            greater = directions[rule.monitor if rule.monitor in directions else rule.monitor[4:]]
        if greater is None:
            raise ValueError(f"`early_stopping` needs `greater_is_better` for the metric {rule.monitor!r}")
        self.rule = rule
        self.sign = 1.0 if greater else -1.0
        self.best = -math.inf
        self.best_params: Parameters | None = None
        self.n_no_change = 0

    def sees(self, record: dict[str, Any], params: Parameters) -> bool:
        """Take note of an epoch; return whether to stop."""
        score = self.sign * record[self.rule.monitor]
        finite = math.isfinite(score)
        improved = finite and score >= self.best + self.rule.tol
        self.n_no_change = 0 if improved else self.n_no_change + 1
        if finite and score > self.best:
            self.best, self.best_params = score, params
        return self.n_no_change > self.rule.n_iter_no_change


class Trained(NamedTuple):
    """What `train` returns.

    Attributes
    ----------
    params : tuple of Layer
    history : History
    """

    params: Parameters
    history: History


def train(
    network: Network,
    params: Parameters,
    X: Array,
    y: Array,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: Seed = None,
    sample_weight: Array | None = None,
    validation_data: tuple[Array, ...] | None = None,
    metrics: Iterable[str | UserMetric] = (),
    early_stopping: EarlyStopping | None = None,
    callback: Callback | None = None,
) -> Trained:
    """Train a network on the device where its parameters and the data live.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
        Where to start from, as `Network.init` returns it. Never modified.
    X : array of shape (n_samples, n_features)
        In the namespace and on the device of `params`; cast to their dtype if it has another.
    y : array of shape (n_samples, n_outputs)
        Targets: 0 and 1 for "binary_cross_entropy", one-hot classes for
        "categorical_cross_entropy", values or counts otherwise.
    optimizer : Optimizer
        `gradient_descent`, `momentum`, `adam`, or one of your own.
    epochs : int
        Passes over the data.
    batch_size : int, optional
        Rows in a step; the last step of an epoch takes those that are left. All rows by default.
    shuffle : bool, default=True
        Take the rows in a new order in each epoch. Without mini-batches the order does not matter.
    seed : int, RandomState, Generator or None
        For the orders; drawn on the host, the same in every namespace.
    sample_weight : array of shape (n_samples,), optional
        At least 0. Each step divides by the sum of its batch's weights.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Measured after each epoch, never trained on.
    metrics : list of str or callable, default=()
        "accuracy", "r2", or functions ``(y, predictions) -> float`` whose name becomes the column;
        measured after each epoch on the training data, and on the validation data.
    early_stopping : EarlyStopping, optional
    callback : callable ``(history, params) -> bool or None``, optional
        Called after each epoch; true stops the training. The parameters it gets are a copy.

    Returns
    -------
    params : tuple of Layer
        In the namespace, dtype and device of those given; the best ones if `early_stopping` says so.
    history : History

    Raises
    ------
    TypeError, ValueError
        Before any training, if an argument does not fit.
    DivergenceError
        If the loss or a parameter is not finite after an epoch. It carries the last finite
        parameters and the history.
    TrainingError
        If anything else fails on the way, a callback or the device's memory: raised from that
        error, it carries what was trained.

    Warns
    -----
    TrainingInterruptedWarning
        If Ctrl-C interrupts the training; what was trained until then is returned.

    Examples
    --------
    >>> from mlp_xp import Network, gradient_descent, train
    >>> from mlp_xp.datasets import planar
    >>> data = planar()
    >>> network = Network((2, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    >>> params = network.init(seed=3, like=data.X)
    >>> params, history = train(
    ...     network, params, data.X, data.y[:, None], optimizer=gradient_descent(1.2), epochs=500,
    ...     metrics=["accuracy"])
    >>> history[-1]["accuracy"] > 0.85
    True
    """
    epochs = check_integer("epochs", epochs, minimum=0)
    if not isinstance(network, Network):
        raise TypeError(f"`network` must be a Network, got {network!r}")
    place, data = _check_data(network, params, X, y, sample_weight)
    validation = None
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise TypeError("`validation_data` must be a tuple (X, y) or (X, y, sample_weight)")
        placement(X=X, **{"validation_data[0]": validation_data[0]})
        try:
            _, validation = _check_data(network, params, *validation_data)
        except (TypeError, ValueError) as error:
            raise type(error)(f"in `validation_data`: {error}") from None
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be an Optimizer, as `adam()` makes one, got {optimizer!r}")
    check_learning_rate(optimizer.learning_rate)
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be a function of the history and the parameters, got {callback!r}")
    n_samples = data.X.shape[0]
    batch_size = n_samples if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    measured = resolve_metrics(metrics, network.loss_entry)
    watch = None
    if early_stopping is not None:
        if not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"`early_stopping` must be an EarlyStopping, got {early_stopping!r}")
        watch = _Watch(early_stopping, measured, validation is not None)

    parts = (validation, watch, callback)
    observed = bool(measured) or any(part is not None for part in parts)
    planned = rates(optimizer.learning_rate, epochs)
    # A schedule that fails should fail here. Where nobody looks between epochs nobody can change it,
    # and all of it can be read; else its first rate must do.
    planned = chain(list(islice(planned, 1 if observed else None)), planned)

    xp = place.xp
    if not all_finite(xp, params):
        raise ValueError("`params` must hold finite numbers, got NaN or infinity")
    layers = plain(copy_tree(xp, params))
    start = (layers, optimizer.init(xp, layers))
    loop = _Loop(
        network=network,
        place=place,
        data=data,
        validation=validation,
        metrics=measured,
        watch=watch,
        callback=callback,
        engine=make_engine(network, optimizer, xp, start, data, batch_size),
        observed=observed,
    )
    orders = _orders(random_source(seed), n_samples) if shuffle and batch_size < n_samples else repeat(None)
    plan = zip(planned, orders)
    with quiet_floating_point(), without_autodiff(xp):
        return loop.run(plan)


def evaluate(
    network: Network,
    params: Parameters,
    X: Array,
    y: Array,
    *,
    sample_weight: Array | None = None,
    metrics: Iterable[str | UserMetric] = (),
) -> dict[str, float]:
    """Measure a network on data: its mean loss, without the penalty on the weights, and its metrics.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
    X : array of shape (n_samples, n_features)
    y : array of shape (n_samples, n_outputs)
    sample_weight : array of shape (n_samples,), optional
    metrics : list of str or callable, default=()
        As for `train`.

    Returns
    -------
    dict of str to float
        "loss" and each metric under its name: what `train` records with "val_" before it.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Layer, Network, evaluate
    >>> network = Network((1, 1), loss="squared_error")
    >>> params = (Layer(np.array([[2.0]]), np.array([0.0])),)
    >>> evaluate(network, params, np.array([[1.0], [2.0]]), np.array([[2.0], [5.0]]), metrics=["r2"])
    {'loss': 0.25, 'r2': 0.777...}
    """
    measured = resolve_metrics(metrics, network.loss_entry)
    place, data = _check_data(network, params, X, y, sample_weight)
    with quiet_floating_point(), without_autodiff(place.xp):
        return _measure(network, place, params, data, measured)


def _measure(
    network: Network, place: Placement, params: Parameters, batch: Batch, metrics: tuple[Metric, ...]
) -> dict[str, float]:
    xp, loss = place.xp, network.loss_entry
    logits = network.blockwise_logits(place, params, batch.X)
    values: dict[str, Any] = {"loss": network.data_loss(xp, logits, batch.y, batch.sample_weight)}
    predictions = loss.link(xp, logits)
    for metric in metrics:
        values[metric.name] = metric.compute(xp, loss, batch.y, predictions, batch.sample_weight)
    return {name: float(value) for name, value in values.items()}


def _check_data(
    network: Network, params: Parameters, X: Array, y: Array, sample_weight: Array | None = None
) -> tuple[Placement, Batch]:
    place, X, y, sample_weight = network.check(params, X, y, sample_weight)
    xp = place.xp
    check_finite(xp, "X", X)
    check_finite(xp, "y", y)
    problem = network.loss_entry.problem(xp, y)
    if problem:
        loss = f"the loss {network.loss!r}" if isinstance(network.loss, str) else "the loss"
        raise ValueError(f"`y` must, for {loss}, {problem}")
    if sample_weight is not None:
        check_finite(xp, "sample_weight", xp.reshape(sample_weight, (-1, 1)))
        if not bool(xp.all(sample_weight >= 0.0)) or not bool(xp.any(sample_weight > 0.0)):
            raise ValueError(
                "`sample_weight` must be >= 0 and not all 0, got values from "
                f"{float(xp.min(sample_weight)):g} to {float(xp.max(sample_weight)):g}"
            )
    return place, Batch(X, y, sample_weight)


def _orders(random: RandomSource, n_samples: int) -> Iterator[np.ndarray[Any, Any]]:
    order = np.arange(n_samples)
    while True:
        # Each order shuffles the last one, which makes the batches scikit-learn's.
        order = order[random.permutation(n_samples)]
        yield order


class _Loop:
    """One training under way.

    `safe` is a copy of the state after the last epoch known to be sound, `n_before_run` the number of
    epochs in the history when the engine's current run began.
    """

    def __init__(
        self,
        network: Network,
        place: Placement,
        data: Batch,
        validation: Batch | None,
        metrics: tuple[Metric, ...],
        watch: _Watch | None,
        callback: Callback | None,
        engine: Engine,
        observed: bool,
    ) -> None:
        self.network = network
        self.place = place
        self.data = data
        self.validation = validation
        self.metrics = metrics
        self.watch = watch
        self.callback = callback
        self.engine = engine
        self.safe = copy_tree(place.xp, engine.state)
        self.history = History()
        self.n_before_run = 0
        self.observed = observed

    def run(self, plan: Iterator[Epoch]) -> Trained:
        """Run the planned epochs, or fewer; keep what is trained whatever happens."""
        try:
            if self.observed:
                self._run_observed(plan)
            else:
                self._run_unobserved(plan)
        except KeyboardInterrupt:
            params = self._salvage()
            message = f"training interrupted after {len(self.history)} epochs; returning what was trained"
            try:
                warnings.warn(message, TrainingInterruptedWarning, stacklevel=3)
            except TrainingInterruptedWarning as error:  # where warnings are errors, nothing is lost either
                raise TrainingError(message, len(self.history) + 1, params, self.history) from error
        except TrainingError:
            raise
        except Exception as error:
            epoch = self.n_before_run + (1 if self.observed else len(self.engine.losses) + 1)
            raise TrainingError(
                f"training failed in epoch {epoch} ({type(error).__name__}: {error}); "
                "`.params` and `.history` of this error hold what was trained",
                epoch,
                self._salvage(),
                self.history,
            ) from error
        else:
            params = named(self.engine.state[0])
        if self.watch and self.watch.rule.restore_best and self.watch.best_params is not None:
            params = self.watch.best_params
        return Trained(params, self.history)

    def _run_observed(self, plan: Iterator[Epoch]) -> None:
        while epochs := self._next(plan, 1):
            losses = self._run_epochs(epochs)
            if losses is None:
                raise self._divergence(epochs[0])
            if self._look(losses[0]):
                return

    def _run_unobserved(self, plan: Iterator[Epoch]) -> None:
        length = 1
        while epochs := self._next(plan, length):
            start = time.perf_counter()
            losses = self._run_epochs(epochs)
            if losses is None:
                self._find_divergence(epochs)
                continue
            self._record(losses)
            seconds = time.perf_counter() - start
            # At most ten times as many: a few epochs say little about how long more of them take.
            length = max(1, min(10 * len(epochs), int(len(epochs) * SECONDS_PER_RUN / seconds)))

    def _next(self, plan: Iterator[Epoch], length: int) -> list[Epoch]:
        # In this order: an interrupt between any two lines finds no epoch twice.
        self.engine.losses = []
        self.n_before_run = len(self.history)
        return list(islice(plan, length))

    def _run_epochs(self, epochs: list[Epoch]) -> list[float] | None:
        """Run epochs; return their losses, or None if something is not finite after them."""
        self.engine.run(epochs)
        losses = list(map(float, self.engine.losses))
        if not (all(map(math.isfinite, losses)) and all_finite(self.place.xp, self.engine.state)):
            return None
        self.safe = copy_tree(self.place.xp, self.engine.state)
        return losses

    def _find_divergence(self, epochs: list[Epoch]) -> None:
        """Go back to before these epochs and run them one by one, up to the one that diverges."""
        self.engine.state = copy_tree(self.place.xp, self.safe)
        plan = iter(epochs)
        while one := self._next(plan, 1):
            losses = self._run_epochs(one)
            if losses is None:
                raise self._divergence(one[0])
            self._record(losses)

    def _record(self, losses: list[float]) -> None:
        first = len(self.history) + 1
        self.history += [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses, first)]

    def _look(self, loss: float) -> bool:
        """Measure and record the epoch that ended, show it to who asked; return whether to stop."""
        params = named(self.safe[0])
        record: dict[str, Any] = {"epoch": len(self.history) + 1, "loss": loss}
        if self.metrics:
            measured = _measure(self.network, self.place, params, self.data, self.metrics)
            record |= {metric.name: measured[metric.name] for metric in self.metrics}
        if self.validation is not None:
            measured = _measure(self.network, self.place, params, self.validation, self.metrics)
            record |= {f"val_{name}": value for name, value in measured.items()}
        self.history.append(record)
        stop = self.watch is not None and self.watch.sees(record, params)
        if self.callback is not None:
            own = named(copy_tree(self.place.xp, params))
            stop = bool(self.callback(self.history, own)) or stop
        return stop

    def _divergence(self, epoch: Epoch) -> DivergenceError:
        number, loss = len(self.history) + 1, float(self.engine.losses[0])
        what = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else f"a parameter or the optimizer's state is not finite, the loss {loss:g}"
        )
        before = f" after {self.history[-1]['loss']:g} in the epoch before" if self.history else ""
        return DivergenceError(
            f"training diverged in epoch {number}: {what}{before}. Try a smaller learning rate "
            f"(it is {epoch[0]:g}), features of mean 0 and variance 1, or smaller initial weights; "
            "`.params` and `.history` of this error hold the last finite ones",
            number,
            named(self.safe[0]),
            self.history,
            loss,
        )

    def _salvage(self) -> Parameters:
        """Return what was trained when the run under way broke off, and bring the history up to it."""
        params = self.engine.state[0]
        losses = list(map(float, self.engine.losses))
        if not (all(map(math.isfinite, losses)) and all_finite(self.place.xp, params)):
            return named(self.safe[0])
        if not self.observed:
            self._record(losses[len(self.history) - self.n_before_run :])
        return named(params)
