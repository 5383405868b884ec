"""The training loop: epochs, history, early stopping, and what happens when it goes wrong."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, overload

import numpy as np

from mlp_xp._arrays import (
    Array,
    Namespace,
    Placement,
    check_finite,
    for_inspection,
    placement,
    without_autodiff,
)
from mlp_xp._devices import (
    MemoryShortage,
    computing,
    current_device,
    is_out_of_memory,
    release_memory,
    to_floats,
)
from mlp_xp._engines import Engine, Epoch, State, make_engine
from mlp_xp._network import Network, logits_themselves
from mlp_xp._optimizers import Optimizer, OptimizerState
from mlp_xp._parameters import Layer, Parameters, all_finite, copy_tree, map_tree, named, plain
from mlp_xp._samples import Rows, Samples
from mlp_xp._schedules import check_learning_rate, rates
from mlp_xp._training.early_stopping import EarlyStopping, Watch, make_watch
from mlp_xp._training.metrics import Metric, UserMetric, resolve_metrics
from mlp_xp._validation import RandomSource, Seed, check_integer, random_source

if TYPE_CHECKING:
    from mlp_xp._training.footprint import Footprint

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

    Attributes
    ----------
    engine : {"", "eager", "compiled", "xla", "cuda_graph"}
        How the epochs ran: call by call, as a program of NumPy's calls, as loops compiled by JAX's XLA, or
        as captured CUDA graphs.
    """

    engine = ""

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
        if not isinstance(key, slice):
            return item
        part = History(item)
        part.engine = self.engine
        return part


class Callback(Protocol):
    """What `train` calls after each epoch: ``(history, params) -> stop``.

    Examples
    --------
    >>> def stop_at_a_hundredth(history, params):
    ...     return history[-1]["loss"] < 0.01
    """

    def __call__(self, history: History, params: tuple[Layer, ...], /) -> bool | None:
        """Look at the last epoch; return true to stop the training.

        Parameters
        ----------
        history : History
            Up to and with that epoch.
        params : tuple of Layer
            A copy, which may be kept or changed.
        """


Listener: TypeAlias = Callable[[History], None]
"""Told of a history as soon as more of it is known: after one epoch, or some hundred short ones at once."""


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


class OutOfMemoryError(TrainingError, MemoryError):
    """The memory of the device does not hold the training; what it took is given back.

    Attributes
    ----------
    needed : int or None
        Bytes that the training takes beside what is there already; None where that cannot be known.
    free : int or None
        Bytes that were free; None where nobody can tell.
    batch_size : int or None
        The largest that fits; 0 if none does, None where it is not known.

    Examples
    --------
    >>> from mlp_xp import OutOfMemoryError
    >>> def fit(model, X, y):
    ...     try:
    ...         return model.fit(X, y)
    ...     except OutOfMemoryError as error:
    ...         if not error.batch_size:
    ...             raise
    ...         return model.set_params(batch_size=error.batch_size).fit(X, y)
    """

    def __init__(
        self,
        message: str,
        epoch: int,
        params: Parameters,
        history: History,
        needed: int | None = None,
        free: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(message, epoch, params, history)
        self.needed = needed
        self.free = free
        self.batch_size = batch_size

    def __reduce__(self) -> Any:
        shortage = self.needed, self.free, self.batch_size
        return type(self), (*self.args, self.epoch, self.params, self.history, *shortage)


class TrainingInterruptedWarning(UserWarning):
    """Ctrl-C ended a training before its last epoch."""


class Trained(NamedTuple):
    """What `train` returns.

    Attributes
    ----------
    params : tuple of Layer
    history : History

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Network, adam, train
    >>> X = np.array([[0.0], [1.0]])
    >>> network = Network((1, 1), loss="squared_error")
    >>> result = train(network, network.init(0, like=X), X, 3.0 * X, optimizer=adam(0.1), epochs=300)
    >>> result.params[0].weight.round(1), len(result.history)
    (array([[3.]]), 300)
    """

    params: tuple[Layer, ...]
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
    on_progress: Listener | None = None,
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
    on_progress : callable ``(history) -> None``, optional
        A `ProgressBar`, or anything else that only listens: called as soon as epochs are known, one or, where
        they are short and nothing else watches them, some hundred at once. It costs next to no time.

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
    OutOfMemoryError
        If the device's memory does not hold the training: before it begins, where that can be known.
    TrainingError
        If anything else fails on the way, such as a callback: raised from that error, it carries what
        was trained.

    Warns
    -----
    EagerFallbackWarning
        If the training cannot run as captured CUDA graphs where it should; it says why.
    TrainingInterruptedWarning
        If Ctrl-C interrupts the training; what was trained until then is returned.

    Examples
    --------
    >>> from mlp_xp import Network, gradient_descent, train
    >>> from mlp_xp.datasets import planar
    >>> data = planar()
    >>> network = Network((2, 4, 1), activation="tanh", loss="binary_cross_entropy")
    >>> params = network.init(seed=3, like=data.X)
    >>> params, history = train(
    ...     network, params, data.X, data.y[:, None], optimizer=gradient_descent(1.2), epochs=500,
    ...     metrics=["accuracy"])
    >>> history[-1]["accuracy"] > 0.85
    True
    """
    with current_device(X):
        epochs = check_integer("epochs", epochs, minimum=0)
        if not isinstance(network, Network):
            raise TypeError(f"`network` must be a Network, got {network!r}")
        samples = _check_samples(network, params, X, y, sample_weight)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise TypeError("`validation_data` must be a tuple (X, y) or (X, y, sample_weight)")
            placement(X=X, **{"validation_data[0]": validation_data[0]})
            try:
                validation = _check_samples(network, params, *validation_data)
            except (TypeError, ValueError) as error:
                raise type(error)(f"in `validation_data`: {error}") from None
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` must be an Optimizer, as `adam()` makes one, got {optimizer!r}")
        check_learning_rate(optimizer.learning_rate)
        if callback is not None and not callable(callback):
            raise TypeError(
                f"`callback` must be a function of the history and the parameters, got {callback!r}"
            )
        if on_progress is not None and not callable(on_progress):
            raise TypeError(f"`on_progress` must be a function of the history, got {on_progress!r}")
        measured = resolve_metrics(metrics, network._loss_entry)
        if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"`early_stopping` must be an EarlyStopping, got {early_stopping!r}")
        xp = samples.place.xp
        if not all_finite(xp, params):
            raise ValueError("`params` must hold finite numbers, got NaN or infinity")
        progress = start_training(xp, params, optimizer, random_source(seed))
        n_each = len(samples) if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
        try:
            history = continue_training(
                network,
                progress,
                samples,
                optimizer=optimizer,
                epochs=epochs,
                batch_size=n_each,
                shuffle=shuffle,
                validation=validation,
                metrics=measured,
                validation_metrics=measured,
                early_stopping=early_stopping,
                callback=callback,
                on_progress=on_progress,
            )
        except OutOfMemoryError as error:
            del progress
            raise without_frames(error) from error.__cause__
        trained = named(progress.best_params)
        return Trained(trained if history else copy_tree(xp, trained), history)


@dataclass
class Progress:
    """How far a training has come: beside the samples and the settings, all it takes to go on with it.

    Attributes
    ----------
    params : tuple of pairs
        After the last step.
    optimizer_state : OptimizerState
    random : RandomState or Generator
        Where the next epoch's order is drawn from.
    order : array of int or None
        The order of the last epoch; the next shuffles it.
    watch : Watch or None
        What early stopping has seen.
    """

    params: Parameters
    optimizer_state: OptimizerState
    random: RandomSource
    order: Rows | None = None
    watch: Watch | None = None

    @property
    def state(self) -> State:
        """What the next step begins with."""
        return self.params, self.optimizer_state

    @property
    def best_params(self) -> Parameters:
        """The parameters of the best epoch if early stopping asks for them, else the last ones."""
        best = None if self.watch is None else self.watch.best_params
        return self.params if best is None else best

    def resumed(self) -> Progress:
        """Return a progress that goes on from here while this one stays as it is."""
        order = None if self.order is None else self.order.copy()
        return replace(self, order=order)

    def moved(self, place: Placement) -> Progress:
        """Return the progress with its arrays in another place."""
        params, optimizer_state = map_tree(place.bring, (self.params, self.optimizer_state))
        watch = self.watch
        if watch is not None:
            watch = replace(watch, best_params=map_tree(place.bring, watch.best_params))
        return replace(self, params=params, optimizer_state=optimizer_state, watch=watch)


def start_training(xp: Namespace, params: Parameters, optimizer: Optimizer, random: RandomSource) -> Progress:
    """Return the progress of a training that has not begun; it holds the very arrays of `params`."""
    layers = plain(params)
    return Progress(layers, optimizer.init(xp, layers), random)


def continue_training(
    network: Network,
    progress: Progress,
    samples: Samples,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    shuffle: bool = True,
    validation: Samples | None = None,
    metrics: Sequence[Metric] = (),
    validation_metrics: Sequence[Metric] = (),
    early_stopping: EarlyStopping | None = None,
    callback: Callback | None = None,
    on_progress: Listener | None = None,
) -> History:
    """Do what `train` does, on checked arguments, from wherever a training stands.

    `progress` is brought up to date, whatever happens. Its arrays are never written in: new ones take
    their place. Two calls train as one of as many epochs does, if the schedule of learning rates goes
    on too: it is read from 0 in each.
    """
    watch = None
    if early_stopping is not None:
        watch = make_watch(early_stopping, metrics, validation_metrics, validation is not None)
        if progress.watch is not None and progress.watch.rule.monitor == early_stopping.monitor:
            watch = replace(progress.watch, rule=early_stopping, sign=watch.sign, event="")
    progress.watch = watch
    # A watch on the loss alone can be told of several epochs at once.
    patient = early_stopping is None or (early_stopping.monitor == "loss" and not early_stopping.restore_best)
    observed = bool(metrics) or validation is not None or callback is not None or not patient
    planned = rates(optimizer.learning_rate, epochs)
    # A schedule that fails should fail here. Where nobody looks between epochs nobody can change it,
    # and all of it can be read; else its first rate must do.
    planned = chain(list(islice(planned, 1 if observed else None)), planned)
    if watch is not None:
        planned = map(watch.rate, planned)
    shuffled = shuffle and batch_size < len(samples)

    samples = samples.by_rows() if batch_size < len(samples) else samples
    from mlp_xp._training.footprint import Footprint  # not before there is a training: imports stay quick

    with computing(samples.place, network.matmul_precision), without_autodiff(samples.place.xp):
        memory = Footprint(network, optimizer, samples, progress.state, epochs)
        shortage = memory.shortage_of(batch_size)
        if shortage is not None:
            raise out_of_memory(None, 1, named(progress.params), History(), shortage)
        try:
            samples = samples.small_ones_cast()
            engine = make_engine(network, optimizer, samples, batch_size, progress.state, epochs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            let_go(error, samples.place)
            shortage = memory.shortage_of(batch_size, happened=True)
            raise out_of_memory(error, 1, named(progress.params), History(), shortage) from error
        loop = _Loop(
            network=network,
            progress=progress,
            samples=samples,
            validation=validation,
            metrics=metrics,
            validation_metrics=validation_metrics,
            callback=callback,
            on_progress=on_progress,
            engine=engine,
            observed=observed,
            memory=memory,
            batch_size=batch_size,
        )
        del engine
        return loop.run(zip(planned, _orders(progress, len(samples)) if shuffled else repeat(None)))


def let_go(error: BaseException, place: Placement) -> None:
    """Give back what the calls that failed still hold, and what libraries keep."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)
    release_memory(place)


def out_of_memory(
    error: BaseException | None,
    epoch: int,
    params: Parameters,
    history: History,
    shortage: MemoryShortage | None,
) -> OutOfMemoryError:
    """Return the error to raise; `error` is what came, None where it is known before anything fails."""
    found = f"in epoch {epoch}" if history else "before its first epoch"
    message = f"the device's memory does not hold the training ({found})"
    if error is not None:
        message = f"memory ran out {found.replace('its', 'the')} ({type(error).__name__}: {error})"
    shortage = shortage or MemoryShortage(None, None, None)
    if shortage.needed is not None and shortage.free is not None:
        message += f": {shortage}"
    return OutOfMemoryError(message, epoch, params, history, *shortage)


def without_frames(error: OutOfMemoryError) -> OutOfMemoryError:
    """Return the error without the frames it came through: who keeps it must not keep what they hold."""
    for one in _chain(error):
        one.__traceback__ = None
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
    with current_device(X):
        measured = resolve_metrics(metrics, network._loss_entry)
        samples = _check_samples(network, params, X, y, sample_weight)
        with computing(samples.place, network.matmul_precision), without_autodiff(samples.place.xp):
            return measure(network, params, samples, measured)


def measure(
    network: Network, params: Parameters, samples: Samples, metrics: Sequence[Metric]
) -> dict[str, float]:
    """Do what `evaluate` does, on checked arguments."""
    xp, loss = samples.xp, network._loss_entry
    logits = network._blockwise(samples, params, logits_themselves)
    y, sample_weight = samples.targets()
    values: dict[str, Any] = {"loss": network._data_loss(xp, logits, y, sample_weight)}
    predictions = loss.link(xp, logits)
    for metric in metrics:
        values[metric.name] = metric.compute(xp, loss, y, predictions, sample_weight)
    return dict(zip(values, to_floats(samples.place, list(values.values()))))


def _check_samples(
    network: Network, params: Parameters, X: Array, y: Array, sample_weight: Array | None = None
) -> Samples:
    samples = network._check(params, X, y, sample_weight)
    check_finite(samples.place.xp, "X", X)
    check_targets(network, samples)
    check_weights(samples)
    return samples


def check_targets(network: Network, samples: Samples) -> None:
    """Raise a ValueError that says what keeps these from being targets for the network's loss."""
    xp, y = samples.place.xp, samples.y
    check_finite(xp, "y", y)
    # Batches of targets alone: those of samples that are to be cast would be copies.
    for batch in replace(samples, X=y, sample_weight=None).blocks(y.shape[1]):
        problem = network._loss_entry.problem(*for_inspection(xp, batch.y))
        if problem:
            loss = f"the loss {network.loss!r}" if isinstance(network.loss, str) else "the loss"
            raise ValueError(f"`y` must, for {loss}, {problem}")


def check_weights(samples: Samples) -> None:
    """Raise a ValueError if these cannot be the samples' weights."""
    xp, sample_weight = samples.place.xp, samples.sample_weight
    if sample_weight is not None:
        xp, sample_weight = for_inspection(xp, samples.place.cast(sample_weight))
        check_finite(xp, "sample_weight", xp.reshape(sample_weight, (-1, 1)))
        if not bool(xp.all(sample_weight >= 0.0)) or not bool(xp.any(sample_weight > 0.0)):
            raise ValueError(
                "`sample_weight` must be >= 0 and not all zero, got values from "
                f"{float(xp.min(sample_weight)):g} to {float(xp.max(sample_weight)):g}"
            )


def _orders(progress: Progress, n_samples: int) -> Iterator[Rows]:
    while True:
        if progress.order is None or len(progress.order) != n_samples:
            progress.order = np.arange(n_samples, dtype=np.int32 if n_samples < 2**31 else np.int64)
        # Each order shuffles the last one, which makes the batches scikit-learn's.
        progress.random.shuffle(progress.order)
        yield progress.order.copy()


class _Loop:
    """One training under way.

    `safe` is a copy of the state after the last epoch known to be sound, `n_before_run` the number of
    epochs in the history when the engine's current run began.
    """

    def __init__(
        self,
        network: Network,
        progress: Progress,
        samples: Samples,
        validation: Samples | None,
        metrics: Sequence[Metric],
        validation_metrics: Sequence[Metric],
        callback: Callback | None,
        on_progress: Listener | None,
        engine: Engine,
        observed: bool,
        memory: Footprint,
        batch_size: int,
    ) -> None:
        self.network = network
        self.progress = progress
        self.samples = samples
        self.validation = validation
        self.metrics = metrics
        self.validation_metrics = validation_metrics
        self.callback = callback
        self.on_progress = on_progress
        self.engine = engine
        self.xp = samples.place.xp
        self.safe: State = progress.state
        self.safe_until_next_run = False
        self.history = History()
        self.n_before_run = 0
        self.under_way: list[Epoch] = []
        self.observed = observed
        self.memory = memory
        self.batch_size = batch_size

    def run(self, plan: Iterator[Epoch]) -> History:
        """Run the planned epochs, or fewer; keep what is trained whatever happens."""
        try:
            if self.observed:
                self._run_observed(plan)
            else:
                self._run_unobserved(plan)
        except KeyboardInterrupt:
            self._keep(self._salvage())
            message = f"training interrupted after {len(self.history)} epochs; returning what was trained"
            try:
                warnings.warn(message, TrainingInterruptedWarning, stacklevel=4)
            except TrainingInterruptedWarning as error:  # where warnings are errors, nothing is lost either
                raise self._error(message, len(self.history) + 1) from error
        except TrainingError:
            self._keep(self.safe)
            raise
        except Exception as error:
            epoch = self.n_before_run + (1 if self.observed else len(self.engine.losses) + 1)
            if is_out_of_memory(error):
                raise self._out_of_memory(error, epoch) from error
            self._keep(self._salvage())
            raise self._error(
                f"training failed in epoch {epoch} ({type(error).__name__}: {error}); "
                "`.params` and `.history` of this error hold what was trained",
                epoch,
            ) from error
        return self.history

    def _out_of_memory(self, error: Exception, epoch: int) -> OutOfMemoryError:
        """Keep what was trained, and nothing else; return the error to raise."""
        let_go(error, self.samples.place)
        try:
            self._keep(self._salvage())
        except Exception:  # to look at it takes memory too
            self._keep(self.safe)
        del self.engine
        release_memory(self.samples.place)
        shortage = self.memory.shortage_of(self.batch_size, happened=True)
        return out_of_memory(error, epoch, named(self.progress.params), self.history, shortage)

    def _keep(self, state: State) -> None:
        self.progress.params, self.progress.optimizer_state = state

    def _error(self, message: str, epoch: int) -> TrainingError:
        return TrainingError(message, epoch, named(self.progress.params), self.history)

    def _run_observed(self, plan: Iterator[Epoch]) -> None:
        while epochs := self._next(plan, 1):
            losses = self._run_epochs(epochs)
            if losses is None:
                raise self._divergence(epochs[0])
            stop = self._look(losses[0], rate=epochs[0][0])
            self._tell()
            if stop:
                return

    def _run_unobserved(self, plan: Iterator[Epoch]) -> None:
        length, watch = 1, self.progress.watch
        while epochs := self._next(plan, length if watch is None else int(min(length, watch.patience))):
            start = time.perf_counter()
            losses = self._run_epochs(epochs)
            if losses is None:
                self._find_divergence(epochs)
                continue
            stop = self._record(losses)
            self._tell()
            if stop:
                return
            seconds = time.perf_counter() - start
            # At most ten times as many: a few epochs say little about how long more of them take.
            length = max(1, min(10 * len(epochs), int(len(epochs) * SECONDS_PER_RUN / seconds)))

    def _next(self, plan: Iterator[Epoch], length: int) -> list[Epoch]:
        # In this order: an interrupt between any two lines finds no epoch twice.
        self.engine.losses = []
        self.n_before_run = len(self.history)
        self.under_way = list(islice(plan, length))
        return self.under_way

    def _run_epochs(self, epochs: list[Epoch]) -> list[float] | None:
        """Run epochs; return their losses, or None if something is not finite after them."""
        if self.safe_until_next_run:
            self._copy_safe()
        try:
            self.engine.run(epochs)
        finally:
            self.history.engine = self.engine.name
        losses = self._losses()
        if not (all(map(math.isfinite, losses)) and self.engine.is_finite()):
            return None
        # The last copy goes before the next comes. That of the last run's state is never made.
        self.safe, self.safe_until_next_run = self.engine.state, True
        self._keep(self.safe)
        if self.observed:  # by somebody who may keep what he is shown
            self._copy_safe()
        return losses

    def _losses(self) -> list[float]:
        """Return the losses of the epochs of the current run that are finished."""
        return to_floats(self.samples.place, self.engine.losses)

    def _copy_safe(self) -> None:
        self.safe, self.safe_until_next_run = self.engine.copied_state(), False
        self._keep(self.safe)

    def _find_divergence(self, epochs: list[Epoch]) -> None:
        """Go back to before these epochs and run them one by one, up to the one that diverges."""
        self.engine.state = self.safe
        plan = iter(epochs)
        while one := self._next(plan, 1):
            losses = self._run_epochs(one)
            if losses is None:
                raise self._divergence(one[0])
            self._record(losses)

    def _record(self, losses: list[float]) -> bool:
        """Take note of the losses of the next epochs under way; return whether to stop."""
        watch, n_known = self.progress.watch, len(self.history)
        records = [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses, start=n_known + 1)]
        if watch is None:
            self.history += records
            return False
        for (rate, _), record in zip(self.under_way[n_known - self.n_before_run :], records):
            self.history.append(record)
            watch.sees(record, (), rate)
        return watch.stopped

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.history)

    def _look(self, loss: float, rate: float) -> bool:
        """Measure and record the epoch that ended, show it to who asked; return whether to stop."""
        params = named(self.safe[0])
        record: dict[str, Any] = {"epoch": len(self.history) + 1, "loss": loss}
        if self.metrics:
            measured = measure(self.network, params, self.samples, self.metrics)
            record |= {metric.name: measured[metric.name] for metric in self.metrics}
        if self.validation is not None:
            measured = measure(self.network, params, self.validation, self.validation_metrics)
            record |= {f"val_{name}": value for name, value in measured.items()}
        self.history.append(record)
        watch = self.progress.watch
        stop = watch is not None and watch.sees(record, params, rate)
        if self.callback is not None:
            own = named(copy_tree(self.xp, params))
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

    def _salvage(self) -> State:
        """Return what was trained when the run under way broke off, and bring the history up to it."""
        losses = self._losses()
        if not (all(map(math.isfinite, losses)) and self.engine.is_finite()):
            return self.safe
        if not self.observed:
            self._record(losses[len(self.history) - self.n_before_run :])
        return self.engine.state  # which nobody writes in any more
