"""What the scikit-learn estimators have in common: from the user's input to a training, and back."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from types import NoneType
from typing import Any, NamedTuple, TypeVar
from warnings import warn
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted

from mlp_xp._arrays import (
    Array,
    Namespace,
    Placement,
    placement,
    to_host,
    without_autodiff,
)
from mlp_xp._devices import MEMORY_RELEASE_HOOKS, computing, current_device
from mlp_xp._initializers import glorot_uniform
from mlp_xp._losses import LOSS_OF_OUTPUT, Loss
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import Layer, Parameters, copy_tree, flatten
from mlp_xp._samples import Samples
from mlp_xp._training.early_stopping import EarlyStopping
from mlp_xp._training.lbfgs import minimise
from mlp_xp._training.loop import (
    History,
    OutOfMemoryError,
    Progress,
    TrainingError,
    check_targets,
    check_weights,
    continue_training,
    measure,
    start_training,
    without_frames,
)
from mlp_xp._training.metrics import METRICS, Metric
from mlp_xp._validation import lookup
from mlp_xp.backends import _destination
from mlp_xp.estimators._hyperparameters import Hyperparameters
from mlp_xp.estimators._input import HOST, InputChecks, check_weight, rows_at
from mlp_xp.estimators._report import FitReport, shown

OUTPUT_OF_LOSS = {loss: output for output, loss in LOSS_OF_OUTPUT.items()}
"""scikit-learn's name for the output's activation, by the network's loss."""

LEARNED: dict[str, tuple[type, ...]] = {
    "n_iter_": (int,),
    "t_": (int,),
    "loss_": (float,),
    "best_loss_": (float, NoneType),
    "best_validation_score_": (float, NoneType),
    "loss_curve_": (list,),
    "val_loss_curve_": (list, NoneType),
    "validation_scores_": (list, NoneType),
    "_score_name": (str, NoneType),
}
"""What a fitted model tells of its training: counts, numbers and curves."""

Self = TypeVar("Self", bound="BasePerceptron")


class _Memory(NamedTuple):
    """What a fitted estimator keeps, beside what it shows, to go on training."""

    progress: Progress
    split: Any
    """State of the random generator that the validation part was drawn with; None if none was."""
    metric: str
    """Which score `validation_scores_` holds."""


class _Task(NamedTuple):
    """Checked input, and where a training begins."""

    home: Placement
    """Where X lives, and with it all that the user sees."""
    known: bool
    """Whether a fitted model trains on."""
    network: Network
    params: Parameters
    samples: Samples
    batch_size: int
    validation: Samples | None
    random: np.random.RandomState
    split: Any
    memory: _Memory | None
    """Of the training to go on with."""


@dataclass(eq=False, repr=False)
class BasePerceptron(Hyperparameters, CallbackSupportMixin, InputChecks, ABC):
    """What the classifier and the regressor have in common."""

    # What users call.

    @with_callbacks
    def fit(
        self: Self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Train on X and y, from the start or, with `warm_start`, from where the last fit ended.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            An array of NumPy, CuPy, PyTorch, JAX or any library of the Array API standard: training
            happens where it lives. On the host also a list, a DataFrame, or a CSR or CSC matrix.
        y : array of shape (n_samples,) or (n_samples, n_outputs)
            Labels, which may be text, or values; in X's library or on the host. They follow X.
        sample_weight : array of shape (n_samples,), optional
            At least 0. A weight of 2 counts as the row repeated, a weight of 0 as the row left out. They
            follow X, as y does.
        X_val : array of shape (n_validation, n_features), optional
            Validation data, in X's library. Then no part of X is split off for `early_stopping`.
            Without `early_stopping` they are measured after each epoch, and nothing more.
        y_val, sample_weight_val : array, optional
            Targets and weights of `X_val`.

        Returns
        -------
        self
            Fitted.

        Raises
        ------
        ValueError, TypeError
            Before any training, if a parameter or an argument does not fit. A model fitted before
            stays as it was.
        DivergenceError
            At the epoch in which the loss or a weight stops being finite. The estimator keeps the
            last finite weights.
        OutOfMemoryError
            If the device's memory does not hold the training: before it begins, where that can be known.
            Unless an epoch was finished the model stays as it was.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` ends the training.
        EagerFallbackWarning
            If it cannot run as captured CUDA graphs where it should; it says why.
        TrainingInterruptedWarning
            If Ctrl-C does; what was trained is kept.
        """
        with current_device(X):
            with self._unchanged_on_error():
                task = self._prepare(X, y, sample_weight, (X_val, y_val, sample_weight_val))
                metadata = None if sample_weight is None else {"sample_weight": sample_weight}
                context = self._init_callback_context(max_subtasks=self.max_iter)
                report = FitReport(self, task.home, context, {"X": X, "y": y, "metadata": metadata})
                report.begin()
            try:
                self._run(task, report)
            except OutOfMemoryError as error:
                del task
                raise without_frames(error) from error.__cause__
            report.end()
        return self

    def predict(self, X: Any) -> Array:
        """Predict labels, or values.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            In the library and on the device of the data fitted with.

        Returns
        -------
        array of shape (n_samples,) or (n_samples, n_outputs)
            There too; labels that are text are on the host.

        Raises
        ------
        ValueError
            If X lives elsewhere; `to` moves the model.
        """
        with current_device(X):
            return self._decode(*self._outputs(X, "predict"))

    def to(self: Self, target: Any) -> Self:
        """Move the fitted model to another array library or device, and return it.

        Parameters
        ----------
        target : str or device
            "numpy", "cupy", "torch", "jax", "auto", or a device of the library it is in.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
        BackendUnavailableError
            If that library cannot be used here.
        ValueError
            If there is no such library or device.
        """
        check_is_fitted(self)
        place = _destination(target, placement(coefs_=self.coefs_[0]))
        memory: _Memory | None = vars(self)["_memory"]
        if memory is not None:
            memory = memory._replace(progress=memory.progress.moved(place))
        self._show(self._fitted_params(place), place)
        self._memory = memory
        self._move_labels(place)
        return self

    def _forget_progress(self) -> None:
        """Let go of the optimizer's state and what else only a training that goes on would need."""
        self._memory = None

    @property
    def history_(self) -> History:
        """What was measured after each epoch, or iteration: `loss_curve_` and its companions as one table."""
        check_is_fitted(self)
        history = History({"epoch": epoch, "loss": loss} for epoch, loss in enumerate(self.loss_curve_, 1))
        history.engine = _ENGINES.get(self, "")
        columns = {
            "val_loss": self.val_loss_curve_,
            f"val_{self._score_name}": self.validation_scores_,
        }
        for name, values in columns.items():
            # Only the last fit of a warm start may have had validation data.
            for record, value in zip(reversed(history), reversed(values or [])):
                record[name] = value
        return history

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.input_tags.sparse = True
        return tags

    def _partial_fit(self: Self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        with current_device(X), self._unchanged_on_error():
            if self.early_stopping:
                raise ValueError(
                    f"partial_fit does not support early_stopping=True: `early_stopping` must be False, got "
                    f"{self.early_stopping!r}"
                )
            task = self._prepare(X, y, sample_weight, incremental=True, classes=classes)
        with current_device(X):
            try:
                self._run(task, FitReport(self, task.home), incremental=True)
            except OutOfMemoryError as error:
                del task
                raise without_frames(error) from error.__cause__
        return self

    # What each of the two says for itself.

    @abstractmethod
    def _targets(
        self,
        y: Any,
        n_samples: int,
        home: Placement,
        *,
        known: bool,
        classes: Any = None,
        whole: bool = False,
    ) -> tuple[Any, Any]:
        """Return the targets as a 2-D array, and what has class weights; learn from them if not `known`."""

    def _class_weights(self, labels: Any, sample_weight: Array | None, incremental: bool) -> Any:
        """Return what to multiply the sample weights by, on the host; None where there is no such thing."""
        return None

    @abstractmethod
    def _decode(self, outputs: Array, home: Placement) -> Array:
        """Return what `predict` does, from the network's outputs."""

    def _move_labels(self, place: Placement) -> None:
        """Bring class labels along, where there are some."""
        return

    # From the user's input to a task.

    @contextmanager
    def _unchanged_on_error(self, unless: Callable[[BaseException], bool] | None = None) -> Iterator[None]:
        """Leave the model as it was, if what is done fails, but for errors after which it is to stay."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException as error:
            if unless is not None and unless(error):
                raise
            callbacks = {
                key: value for key, value in self.__dict__.items() if key.startswith(("_callback", "_skl"))
            }
            self.__dict__.clear()
            # Callbacks that were set up are still to be torn down.
            self.__dict__.update(before | callbacks)
            raise

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation_data: tuple[Any, Any, Any] = (None, None, None),
        *,
        incremental: bool = False,
        classes: Any = None,
    ) -> _Task:
        """Check everything; from here on only the training itself can fail."""
        hidden_layer_sizes = self._check_parameters()
        known = hasattr(self, "coefs_") and (incremental or self.warm_start)
        X, home = self._check_data(X, reset=not known)
        if known:
            home = self._check_same_place(home, "partial_fit" if incremental else "fit")
        there = self._computing_place(home)
        targets, labels = self._targets(
            y, X.shape[0], home, known=known, classes=classes, whole=known and not incremental
        )
        network = Network(
            (X.shape[1], *hidden_layer_sizes, targets.shape[1]),
            activation=self._activation(len(hidden_layer_sizes)),
            loss=LOSS_OF_OUTPUT[self.out_activation_],
            alpha=self.alpha,
            matmul_precision=self.matmul_precision,
        )
        if known:
            self._check_unchanged(network)
        self.n_outputs_, self.n_layers_ = targets.shape[1], len(network.layer_sizes)
        samples = self._samples(network, there, X, targets, sample_weight, labels, incremental)
        validation = self._check_validation(network, home, there, *validation_data)

        memory = self._memory if known else None
        random = self._random()
        if known:
            params: Parameters = self._fitted_params(there)
            if memory is not None and not incremental:
                shared = memory.progress.random is random
                random = random if shared else copy.deepcopy(memory.progress.random)
        else:
            draw = glorot_uniform(2.0 if self._all_logistic() else 6.0)
            params = network.init(random, like=there.from_host([0.0]), weight=draw, bias=draw)
        split = None if memory is None else memory.split
        if self.early_stopping and self.solver != "lbfgs" and validation is None:
            drawing = random
            if split is not None:
                drawing = np.random.RandomState()
                drawing.set_state(split)
            split = drawing.get_state()
            samples, validation = self._split(samples, targets, drawing)
        if validation is not None:
            self._check_score(network, params, validation)
        batch_size = self._batch_size(len(samples))
        return _Task(home, known, network, params, samples, batch_size, validation, random, split, memory)

    def _check_score(self, network: Network, params: Parameters, validation: Samples) -> None:
        """Try a scorer of scikit-learn's on what it will be asked."""
        _, metric = self._early_stopping()
        if isinstance(metric.compute, _Scorer):
            try:
                place = validation.place
                with computing(place, self.matmul_precision), without_autodiff(place.xp):
                    measure(network, params, validation, [metric])
            except Exception as error:
                raise ValueError(
                    f"`early_stopping` must name a score that can be computed on the validation data, got "
                    f"{self.early_stopping!r} ({type(error).__name__}: {error})"
                ) from error

    def _check_unchanged(self, network: Network) -> None:
        """Check that a training can go on: the network must be the fitted one."""
        fitted = self._network().layer_sizes
        if network.layer_sizes == fitted:
            return
        if network.layer_sizes[-1] != fitted[-1]:
            raise ValueError(
                f"`y` must have {fitted[-1]} columns as in the last fit, got {network.layer_sizes[-1]}"
            )
        raise ValueError(
            f"`hidden_layer_sizes` must stay {list(fitted[1:-1])} where a fitted model trains on, got "
            f"{list(network.layer_sizes[1:-1])}"
        )

    def _check_validation(
        self, network: Network, home: Placement, there: Placement, X: Any, y: Any, sample_weight: Any
    ) -> Samples | None:
        if X is None and y is None and sample_weight is None:
            return None
        if X is None or y is None:
            raise ValueError("`X_val` and `y_val` must be given together")
        if self.solver == "lbfgs":
            raise ValueError("`X_val` must come with `solver` 'sgd' or 'adam', got 'lbfgs'")
        try:
            X, place = self._check_data(X, reset=False)
            if not place.same_as(home):
                raise ValueError(f"it must live where `X` does: `X` is {home}, `X_val` is {place}")
            targets, _ = self._targets(y, X.shape[0], home, known=True)
            if targets.shape[1] != self.n_outputs_:
                raise ValueError(
                    f"`y_val` must have {self.n_outputs_} columns as `y`, got {targets.shape[1]}"
                )
            samples = self._samples(network, there, X, targets, sample_weight, name="sample_weight_val")
        except (TypeError, ValueError) as error:
            raise type(error)(f"in the validation data: {error}") from error
        return samples

    def _samples(
        self,
        network: Network,
        there: Placement,
        X: Any,
        targets: Any,
        sample_weight: Any,
        labels: Any = None,
        incremental: bool = False,
        name: str = "sample_weight",
    ) -> Samples:
        """Bring checked samples to where to compute, and check their weights."""
        weight = check_weight(name, sample_weight, X.shape[0], there)
        class_weights = self._class_weights(labels, weight, incremental)
        if class_weights is not None:
            class_weights = there.from_host(class_weights)
            weight = class_weights if weight is None else weight * class_weights
        samples = Samples(there, rows_at(there, X), there.bring(targets), weight)
        check_weights(samples)
        if not isinstance(self, ClassifierMixin):
            check_targets(network, samples)
        return samples

    def _split(
        self, samples: Samples, targets: Any, random: np.random.RandomState
    ) -> tuple[Samples, Samples]:
        """Choose the rows to train on and those to validate on; no row is copied."""
        if not self.validation_fraction:
            raise ValueError("`validation_fraction` must be > 0 for `early_stopping` without `X_val`, got 0")
        train, validation = train_test_split(
            np.arange(len(samples)),
            random_state=random,
            test_size=self.validation_fraction,
            stratify=targets[:, 0] if isinstance(self, ClassifierMixin) and self.n_outputs_ == 1 else None,
        )
        if len(validation) < 2:
            raise ValueError(
                "The validation set is too small. Increase `validation_fraction` or the size of your dataset."
            )
        if samples.sample_weight is not None:
            weight = to_host(samples.sample_weight)
            if not (weight[train].any() and weight[validation].any()):
                raise ValueError(
                    "`sample_weight` must not be all zero in the rows to train on, nor in the validation "
                    "part that is split off (another `random_state` splits otherwise)"
                )
        return replace(samples, rows=train), replace(samples, rows=validation)

    # From a task to a fitted model.

    def _run(self, task: _Task, report: FitReport, *, incremental: bool = False) -> None:
        with self._unchanged_on_error(unless=_something_was_trained):
            if self.solver == "lbfgs":
                self._minimise(task, report)
            else:
                self._train(task, report, incremental)

    def _minimise(self, task: _Task, report: FitReport) -> None:
        params, history, loss, problem = task.params, History(), np.nan, ""
        try:
            params, history, loss, problem = minimise(
                task.network,
                task.params,
                task.samples,
                max_iter=self.max_iter,
                max_fun=self.max_fun,
                tol=self.tol,
                callback=report.callback,
                on_progress=report.on_progress,
            )
        except TrainingError as error:
            params, history = error.params, error.history
            loss = history[-1]["loss"] if history else np.nan
            raise
        finally:
            self._memory = None
            self._show_training(task, params, history)
            self.loss_, self.t_ = loss, 0
        if problem:
            advice = f" Increase `max_iter` ({self.max_iter})." if self.n_iter_ >= self.max_iter else ""
            warn(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s): {problem}.{advice} "
                "Features of mean 0 and variance 1 make it easier.",
                ConvergenceWarning,
                stacklevel=5,
            )

    def _train(self, task: _Task, report: FitReport, incremental: bool) -> None:
        n_samples = len(task.samples)
        n_seen = self.t_ if task.known else 0
        optimizer = self._optimizer(n_seen, n_samples)
        progress = self._progress(task, optimizer, incremental)
        rule, metric = self._early_stopping()
        report.progress = progress
        history = History()
        try:
            history = continue_training(
                task.network,
                progress,
                task.samples,
                optimizer=optimizer,
                epochs=1 if incremental else self.max_iter,
                batch_size=task.batch_size,
                shuffle=self.shuffle,
                validation=task.validation,
                validation_metrics=[metric],
                early_stopping=rule,
                callback=report.callback,
                on_progress=report.on_progress,
            )
        except TrainingError as error:
            history = error.history
            raise
        finally:
            shared = isinstance(self.random_state, np.random.RandomState)
            if shared and self.shuffle and task.batch_size == n_samples:
                # A whole batch needs no order, but who shares the generator goes on after scikit-learn's.
                for _ in history:
                    progress.random.shuffle(np.arange(n_samples))
            self._keep(task, progress, history, metric)
            self.t_ = n_seen + n_samples * len(history)
        stopped = progress.watch is not None and progress.watch.stopped
        if not incremental and not stopped and len(history) == self.max_iter:
            warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                "hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=5,
            )

    def _keep(self, task: _Task, progress: Progress, history: History, metric: Metric) -> None:
        """Keep what a training ends with, to show it and to go on from it."""
        params = progress.best_params
        if params is not progress.params:
            # What the user may write in must not be what early stopping remembers.
            params = copy_tree(task.samples.place.xp, params)
        self._show_training(task, params, history, metric)
        if not self.warm_start:
            progress.order = None  # as long as the samples, and never asked for
        # What is pickled with the model should need no library but the one the model is in.
        self._memory = _Memory(progress.moved(task.home), task.split, metric.name)

    def _show_training(
        self, task: _Task, params: Parameters, history: History, metric: Metric | None = None
    ) -> None:
        """Set the attributes that tell of a training."""
        self._show(params, task.home)
        _ENGINES[self] = history.engine
        self.n_iter_ = len(history)
        self.loss_curve_: list[float] = (vars(self)["loss_curve_"] if task.known else []) + history["loss"]
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else np.nan
        watched = metric is not None and bool(self.early_stopping)
        self.best_loss_ = None if watched else min(self.loss_curve_, default=np.inf)
        losses = scores = None
        self._score_name = None if metric is None else metric.name
        if metric is not None and task.validation is not None:
            goes_on = task.memory is not None and task.memory.metric == metric.name
            earlier = (
                (vars(self)["val_loss_curve_"], vars(self)["validation_scores_"]) if goes_on else ([], [])
            )
            losses = (earlier[0] or []) + history["val_loss"]
            scores = (earlier[1] or []) + history[f"val_{metric.name}"]
        self.val_loss_curve_, self.validation_scores_ = losses, scores
        self.best_validation_score_ = None if scores is None else max(scores, default=-np.inf)

    def _show(self, params: Parameters, home: Placement) -> None:
        """Set the weights that users see."""
        self.coefs_: list[Array]
        self.intercepts_: list[Array]
        self.coefs_, self.intercepts_ = shown(params, home)
        _COPIED.pop(self, None)

    def _progress(self, task: _Task, optimizer: Optimizer, incremental: bool) -> Progress:
        """Return where the training begins: anew, or where the last one ended."""
        xp = task.samples.place.xp
        new = start_training(xp, task.params, optimizer, task.random)
        if task.memory is None:
            return new
        progress = task.memory.progress.moved(task.samples.place).resumed()
        progress.random = task.random
        if incremental:
            # As in scikit-learn, each call begins with the rows as they are, and goes on from what is seen.
            progress.order, progress.params = None, task.params
        if type(new.optimizer_state) is not type(progress.optimizer_state):
            progress.optimizer_state = new.optimizer_state
        kept = zip(flatten(task.params), flatten(progress.best_params))
        if not all(mine is theirs or bool(xp.all(mine == theirs)) for mine, theirs in kept):
            # The user has changed them; what was best before is no longer.
            progress.params, progress.watch = task.params, None
        return progress

    def _early_stopping(self) -> tuple[EarlyStopping, Metric]:
        """Return the rule, and the score of the validation part."""
        metric = METRICS["accuracy" if isinstance(self, ClassifierMixin) else "r2"]
        monitor = "loss"
        if isinstance(self.early_stopping, str) and self.early_stopping not in ("loss", "score"):
            metric = Metric(self.early_stopping, _Scorer(self), greater_is_better=True)
        if self.early_stopping:
            monitor = "val_loss" if self.early_stopping == "loss" else f"val_{metric.name}"
        adaptive = self.solver == "sgd" and self.learning_rate == "adaptive"
        rule = EarlyStopping(
            monitor,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            restore_best=bool(self.early_stopping),
            divide_rate=5.0 if adaptive else None,
        )
        return rule, metric

    # From a fitted model to predictions.

    def _network(self) -> Network:
        """Return the network that the fitted weights make."""
        sizes = (self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_))
        activation, loss = self._activation(len(sizes) - 2), LOSS_OF_OUTPUT[self.out_activation_]
        settings = sizes, activation, loss, self.matmul_precision
        try:
            return _network(*settings)
        except TypeError:  # an activation of the user's own that has no hash
            return _network.__wrapped__(*settings)

    def _fitted_params(self, there: Placement) -> tuple[Layer, ...]:
        """Return the fitted weights where to compute; from the host they are copied there once."""
        here = placement(coefs_=self.coefs_[0])
        arrays = [*self.coefs_, *self.intercepts_]
        if here.xp is np and not here.same_as(there):
            copied = _COPIED.get(self)
            if copied is None or not copied.is_of(arrays, there):
                copied = _COPIED[self] = _Copied([array.copy() for array in arrays], there)
            arrays = copied.arrays
        elif not here.same_as(there):
            arrays = list(map(there.bring, arrays))
        return tuple(map(Layer, arrays[: len(self.coefs_)], arrays[len(self.coefs_) :]))

    def _outputs(self, X: Any, method: str) -> tuple[Array, Placement]:
        """Return the network's outputs for X, where X lives."""
        check_is_fitted(self)
        X, home = self._check_data(X, reset=False)
        fitted = self._check_same_place(home, method)
        there = self._computing_place(fitted)
        network = self._network()
        samples = Samples(there, rows_at(there, X))
        params = self._fitted_params(there)
        with computing(there, self.matmul_precision), without_autodiff(there.xp):
            outputs = network._blockwise(samples, params, network._loss_entry.link)
        return fitted.bring(outputs), fitted

    # To a file and back, for `mlp_xp.files._models`.

    def _fitted_state(self) -> tuple[Network, tuple[Layer, ...], dict[str, Any]]:
        """Return the network, its parameters, and what else was learned: plain values, arrays on the host."""
        check_is_fitted(self)
        learned = {name: vars(self)[name] for name in LEARNED}
        learned["feature_names"] = list(vars(self).get("feature_names_in_", ())) or None
        return (
            replace(self._network(), alpha=self.alpha),
            tuple(map(Layer, self.coefs_, self.intercepts_)),
            learned,
        )

    def _restore(self: Self, network: Network, params: Parameters, learned: dict[str, Any]) -> Self:
        """Become the model whose `_fitted_state` this is, but for its `_memory`; everything is checked."""
        self._check_parameters()
        self._random()
        self.out_activation_ = lookup("loss", network.loss, OUTPUT_OF_LOSS)
        if isinstance(self, ClassifierMixin) != (self.out_activation_ in ("softmax", "logistic")):
            raise ValueError(f"`loss` must be one of {type(self).__name__}, got {network.loss!r}")
        n_features, *_, self.n_outputs_ = network.layer_sizes
        self.n_features_in_, self.n_layers_ = n_features, len(network.layer_sizes)
        if learned["feature_names"] is not None:
            self.feature_names_in_ = _feature_names(learned["feature_names"], n_features)
        for name in LEARNED:
            setattr(self, name, _check_learned(name, learned[name]))
        self._memory = None
        self._show(params, placement(coefs_=params[0][0]))
        if replace(self._network(), alpha=self.alpha) != network:
            raise ValueError("`network` must be the one that the parameters make")
        return self


def _something_was_trained(error: BaseException) -> bool:
    """Whether there may be something in the model that was not there before, however a training ended."""
    return not isinstance(error, OutOfMemoryError) or bool(error.history)


class _Copied:
    """Weights on the host, and what they are where to compute."""

    def __init__(self, host: list[Array], there: Placement) -> None:
        self.host = host
        self.there = there
        self.arrays = list(map(there.bring, host))

    def is_of(self, host: list[Array], there: Placement) -> bool:
        """Whether these weights, which users may write in, are the ones that were copied, and to there."""
        return self.there == there and len(host) == len(self.host) and all(map(_equal, host, self.host))


def _equal(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


_COPIED: WeakKeyDictionary[BasePerceptron, _Copied] = WeakKeyDictionary()
"""By the estimator, and not in it: what is pickled with it needs no library but the one it is in."""

MEMORY_RELEASE_HOOKS.append(_COPIED.clear)

_ENGINES: WeakKeyDictionary[BasePerceptron, str] = WeakKeyDictionary()
"""How a model that was trained in this process was trained. It is no part of what the model is."""


@lru_cache
def _network(layer_sizes: tuple[int, ...], activation: Any, loss: str, matmul_precision: str) -> Network:
    return Network(layer_sizes, activation=activation, loss=loss, matmul_precision=matmul_precision)


@dataclass(frozen=True)
class _Scorer:
    """A scikit-learn scorer as a metric: it asks a copy of the estimator, which answers from outputs."""

    estimator: BasePerceptron

    def __call__(
        self, xp: Namespace, loss: Loss, y: Array, predictions: Array, sample_weight: Array | None
    ) -> float:
        answering = copy.copy(self.estimator)
        if isinstance(answering, ClassifierMixin):
            answering.classes_ = answering._labels.classes
        outputs = to_host(predictions)
        answering.__dict__["_outputs"] = lambda X, method: (outputs, HOST)
        weights = {} if sample_weight is None else {"sample_weight": to_host(sample_weight)}
        scorer = get_scorer(self.estimator.early_stopping)
        return float(scorer(answering, outputs, answering._decode(to_host(y), HOST), **weights))


def _check_learned(name: str, value: Any) -> Any:
    kinds, items = LEARNED[name], value if isinstance(value, list) else []
    if type(value) not in kinds or any(type(item) is not float for item in items):
        raise TypeError(f"`{name}` must be {' or '.join(kind.__name__ for kind in kinds)}, got {value!r:.60}")
    if type(value) is int and not 0 <= value < 2**63:
        raise ValueError(f"`{name}` must be an integer from 0 to 2**63 - 1, got {value}")
    return value


def _feature_names(names: Any, n_features: int) -> Any:
    if not isinstance(names, list) or [type(name) for name in names] != [str] * n_features:
        raise ValueError(f"`feature_names` must be {n_features} names")
    return np.array(names, dtype=object)
