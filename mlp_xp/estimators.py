"""MLPClassifier and MLPRegressor: scikit-learn's estimators around the network and its training.

This module validates, encodes labels and sets attributes. The network, its training and the arrays'
whereabouts are the other modules' business.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Real
from typing import Any, ClassVar, NamedTuple, TypeVar
from warnings import warn

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, get_scorer, get_scorer_names, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, column_or_1d, validate_data

from mlp_xp.activations import ACTIVATIONS, Activation
from mlp_xp.arrays import (
    BACKENDS,
    Array,
    Namespace,
    Placement,
    backend,
    check_finite,
    default_dtype,
    destination,
    is_elsewhere,
    is_sparse,
    placement,
    quiet_floating_point,
    to_host,
    without_autodiff,
)
from mlp_xp.early_stopping import EarlyStopping
from mlp_xp.fit_report import FitReport, shown
from mlp_xp.initializers import glorot_uniform
from mlp_xp.lbfgs import minimise
from mlp_xp.losses import Loss
from mlp_xp.metrics import METRICS, Metric
from mlp_xp.network import Network
from mlp_xp.optimizers import Optimizer, adam, decoupled_weight_decay, momentum
from mlp_xp.parameters import Layer, Parameters, copy_tree, flatten
from mlp_xp.samples import Samples
from mlp_xp.schedules import Schedule, inverse_scaling
from mlp_xp.training import (
    History,
    Progress,
    TrainingError,
    check_targets,
    check_weights,
    continue_training,
    measure,
    start_training,
)
from mlp_xp.validation import check_integer, check_real, lookup

DTYPES = [np.float64, np.float32, np.float16, *(np.dtype(code) for code in "?bBhHiIlLqQ")]
"""What an X on NumPy may hold as it is; anything else becomes the first of them."""

HOST = Placement(np, "cpu", np.float64)

LOSS_OF_OUTPUT = {
    "softmax": "categorical_cross_entropy",
    "logistic": "binary_cross_entropy",
    "identity": "squared_error",
    "exp": "poisson",
}
"""The network's loss, by scikit-learn's name for the output's activation."""

Self = TypeVar("Self", bound="_Perceptron")


class _Memory(NamedTuple):
    """What a fitted estimator keeps, beside what it shows, to go on training."""

    progress: Progress
    split: Any
    """State of the random generator that the validation part was drawn with; None if none was."""
    metric: str
    """Which score `validation_scores_` holds."""


class _Labels(NamedTuple):
    """The class labels as they were given: on the host, where they are encoded."""

    classes: np.ndarray[Any, Any]
    sparse: bool


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


def _is_stochastic(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit needs a stochastic `solver`, 'sgd' or 'adam', got 'lbfgs'")
    return True


@dataclass(eq=False, repr=False)
class _Perceptron(CallbackSupportMixin, BaseEstimator):
    """What the classifier and the regressor have in common."""

    _: KW_ONLY
    solver: str = "adam"
    alpha: float = 0.0001
    batch_size: int | str = "auto"
    learning_rate: str = "constant"
    learning_rate_init: float = 0.001
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: int | np.random.RandomState | None = None
    tol: float = 1e-4
    verbose: bool | int = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool | str = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    max_fun: int = 15000
    weight_decay: float = 0.0
    backend: str | None = None

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

        Warns
        -----
        ConvergenceWarning
            If `max_iter` ends the training.
        TrainingInterruptedWarning
            If Ctrl-C does; what was trained is kept.
        """
        with self._unchanged_on_error():
            task = self._prepare(X, y, sample_weight, (X_val, y_val, sample_weight_val))
            metadata = None if sample_weight is None else {"sample_weight": sample_weight}
            context = self._init_callback_context(max_subtasks=self.max_iter)
            report = FitReport(self, task.home, context, {"X": X, "y": y, "metadata": metadata})
            report.begin()
        self._run(task, report)
        report.end()
        return self

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
        place = destination(target, placement(coefs_=self.coefs_[0]))
        memory: _Memory | None = vars(self)["_memory"]
        if memory is not None:
            memory = memory._replace(progress=memory.progress.moved(place))
        self._show(self._fitted_params(place), place)
        self._memory = memory
        if isinstance(self, ClassifierMixin):
            self.classes_ = _labels_at(place, self._labels.classes)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.input_tags.sparse = True
        return tags

    def _partial_fit(self: Self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        with self._unchanged_on_error():
            if self.early_stopping:
                raise ValueError(
                    f"partial_fit does not support early_stopping=True: `early_stopping` must be False, got "
                    f"{self.early_stopping!r}"
                )
            task = self._prepare(X, y, sample_weight, incremental=True, classes=classes)
        self._run(task, FitReport(self, task.home), incremental=True)
        return self

    # What each of the two says for itself.

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
        raise NotImplementedError

    def _class_weights(self, labels: Any, sample_weight: Array | None, incremental: bool) -> Any:
        """Return what to multiply the sample weights by, on the host; None where there is no such thing."""
        return None

    def _decode(self, outputs: Array, home: Placement) -> Array:
        """Return what `predict` does, from the network's outputs."""
        raise NotImplementedError

    # From the user's input to a task.

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Leave the model as it was, if what is done fails."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
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
            hidden=self._activation(len(hidden_layer_sizes)),
            loss=LOSS_OF_OUTPUT[self.out_activation_],
            alpha=self.alpha,
        )
        if known:
            self._check_unchanged(network)
        self.n_outputs_, self.n_layers_ = targets.shape[1], len(network.layer_sizes)
        samples = self._samples(network, there, X, targets, sample_weight, labels, incremental)
        validation = self._check_validation(network, home, there, *validation_data)

        memory = self._memory if known else None
        try:
            random = check_random_state(self.random_state)
        except ValueError as error:
            raise ValueError(
                f"`random_state` must be an integer from 0 to 2**32 - 1, a RandomState or None, got "
                f"{self.random_state!r}"
            ) from error
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
                with quiet_floating_point(), without_autodiff(validation.place.xp):
                    measure(network, params, validation, [metric])
            except Exception as error:
                raise ValueError(
                    f"`early_stopping` must name a score that can be computed on the validation data, got "
                    f"{self.early_stopping!r} ({type(error).__name__}: {error})"
                ) from error

    def _batch_size(self, n_samples: int) -> int:
        if isinstance(self.batch_size, str):
            return min(200, n_samples)
        if self.batch_size > n_samples and self.solver != "lbfgs":
            message = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warn(message, stacklevel=5)
        return min(int(self.batch_size), n_samples)

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

    def _check_parameters(self) -> list[int]:
        """Check all parameters; return the sizes of the hidden layers."""
        lookup("solver", self.solver, dict.fromkeys(["lbfgs", "sgd", "adam"]))
        lookup("learning_rate", self.learning_rate, dict.fromkeys(["constant", "invscaling", "adaptive"]))
        for name in ("alpha", "power_t", "tol", "weight_decay"):
            check_real(name, getattr(self, name), at_least=0.0)
        for name in ("learning_rate_init", "epsilon"):
            check_real(name, getattr(self, name), above=0.0)
        for name in ("beta_1", "beta_2", "validation_fraction"):
            check_real(name, getattr(self, name), at_least=0.0, below=1.0)
        check_real("momentum", self.momentum, at_least=0.0, at_most=1.0)
        for name in ("max_iter", "max_fun"):
            check_integer(name, getattr(self, name), minimum=1)
        if self.batch_size != "auto":
            check_integer("batch_size", self.batch_size, minimum=1)
        if self.n_iter_no_change != np.inf:
            check_integer("n_iter_no_change", self.n_iter_no_change, minimum=1)
        for name in ("shuffle", "warm_start", "nesterovs_momentum"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"`{name}` must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.verbose, (bool, np.bool_)):
            check_integer("verbose", self.verbose, minimum=0)
        if not isinstance(self.early_stopping, (bool, np.bool_)):
            names = ["loss", "score", *get_scorer_names()]
            lookup("early_stopping", self.early_stopping, dict.fromkeys(names))
        if self.backend is not None:
            lookup("backend", self.backend, BACKENDS)
        if self.solver == "lbfgs" and self.weight_decay:
            raise ValueError(
                "`weight_decay` must be 0 with `solver` 'lbfgs', which takes no such steps, got "
                f"{self.weight_decay}"
            )
        sizes = self.hidden_layer_sizes
        if np.ndim(sizes) == 0:
            sizes = [sizes]
        sizes = [
            check_integer(f"hidden_layer_sizes[{index}]", size, minimum=1) for index, size in enumerate(sizes)
        ]
        self._activation(len(sizes))
        return sizes

    def _activation(self, n_hidden: int) -> Any:
        """Return the activation as `Network` takes it."""
        activation = self.activation
        if isinstance(activation, (str, Activation)) or not isinstance(activation, Iterable):
            each: Any = [activation]
        else:
            activation = each = tuple(activation)
            if len(each) != n_hidden:
                raise ValueError(
                    f"`activation` must be one, or one for each of the {n_hidden} hidden layers, "
                    f"got {len(each)}"
                )
        for one in each:
            if not isinstance(one, Activation):
                lookup("activation", one, ACTIVATIONS)
        return activation

    def _all_logistic(self) -> bool:
        activation = self.activation
        return activation == "logistic" or (
            isinstance(activation, (list, tuple)) and set(activation) == {"logistic"}
        )

    def _check_data(self, X: Any, *, reset: bool) -> tuple[Any, Placement]:
        """Check samples; return them and where they live."""
        if not is_elsewhere(X):
            X = validate_data(self, X, reset=reset, accept_sparse=["csr", "csc"], dtype=DTYPES)
            home = HOST._replace(dtype=np.float32 if X.dtype == np.float32 else np.float64)
            return X.tocsr() if is_sparse(X) else X, home  # batches are rows
        home = placement(X=X)
        if home.dtype_name not in ("float32", "float64"):
            home = home._replace(dtype=default_dtype(home.xp, home.device))
        if X.ndim != 2:
            raise ValueError(
                f"Expected 2D array, got {X.ndim}D array instead: `X` must have shape "
                f"(n_samples, n_features), got {tuple(X.shape)}"
            )
        if 0 in X.shape:
            raise ValueError(f"`X` must have at least one row and one column, got shape {tuple(X.shape)}")
        validate_data(self, X, reset=reset, skip_check_array=True)
        check_finite(home.xp, "X", X)
        return X, home

    def _check_same_place(self, place: Placement, method: str) -> Placement:
        """Return where the fitted model lives, with its dtype, if that is this place."""
        fitted = placement(coefs_=self.coefs_[0])
        if not fitted.same_as(place):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same "
                f"device as those passed to fit(): the model was fitted on {fitted}, `X` is {place}. "
                "`estimator.to(...)` moves a fitted model"
            )
        return fitted

    def _computing_place(self, home: Placement) -> Placement:
        """Return where to compute for data that live at `home`."""
        if self.backend is None or (self.backend == "auto" and home.xp is not np):
            return home
        there = backend(self.backend).place(home.dtype_name)
        return home if there.same_as(home) else there

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
        weight = _check_weight(name, sample_weight, X.shape[0], there)
        class_weights = self._class_weights(labels, weight, incremental)
        if class_weights is not None:
            class_weights = there.from_host(class_weights)
            weight = class_weights if weight is None else weight * class_weights
        samples = Samples(there, _rows_at(there, X), there.bring(targets), weight)
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
        self.n_iter_ = len(history)
        self.loss_curve_: list[float] = (vars(self)["loss_curve_"] if task.known else []) + history["loss"]
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else np.nan
        watched = metric is not None and bool(self.early_stopping)
        self.best_loss_ = None if watched else min(self.loss_curve_, default=np.inf)
        self.val_loss_curve_ = self._with_earlier("val_loss_curve_", "val_loss", task, history, metric)
        self.validation_scores_ = self._with_earlier("validation_scores_", "score", task, history, metric)
        scores = self.validation_scores_
        self.best_validation_score_ = None if scores is None else max(scores, default=-np.inf)

    def _with_earlier(
        self, name: str, column: str, task: _Task, history: History, metric: Metric | None
    ) -> list[float] | None:
        """Return a column of the history after what there is of it already; None without validation."""
        if metric is None or task.validation is None:
            return None
        goes_on = task.memory is not None and task.memory.metric == metric.name
        earlier = getattr(self, name) if goes_on else None
        return (earlier or []) + history[f"val_{metric.name}" if column == "score" else column]

    def _show(self, params: Parameters, home: Placement) -> None:
        """Set the weights that users see."""
        self.coefs_: list[Array]
        self.intercepts_: list[Array]
        self.coefs_, self.intercepts_ = shown(params, home)

    def _optimizer(self, n_seen: int, n_samples: int) -> Optimizer:
        """Return the optimizer of a training that begins when it has seen so many samples already."""
        rate: float | Schedule = self.learning_rate_init
        if self.solver == "adam":
            optimizer = adam(rate, self.beta_1, self.beta_2, self.epsilon)
        else:
            if self.learning_rate == "invscaling":
                falling = inverse_scaling(self.learning_rate_init, self.power_t)

                def rate(epoch: int) -> float:
                    return falling(n_seen + epoch * n_samples)

            optimizer = momentum(rate, self.momentum, self.nesterovs_momentum)
        return decoupled_weight_decay(optimizer, self.weight_decay) if self.weight_decay else optimizer

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
        return Network(
            (self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_)),
            hidden=self._activation(len(self.coefs_) - 1),
            loss=LOSS_OF_OUTPUT[self.out_activation_],
        )

    def _fitted_params(self, there: Placement) -> tuple[Layer, ...]:
        return tuple(
            Layer(there.bring(coef), there.bring(intercept))
            for coef, intercept in zip(self.coefs_, self.intercepts_)
        )

    def _outputs(self, X: Any, method: str) -> tuple[Array, Placement]:
        """Return the network's outputs for X, where X lives."""
        check_is_fitted(self)
        X, home = self._check_data(X, reset=False)
        fitted = self._check_same_place(home, method)
        there = self._computing_place(fitted)
        network = self._network()
        samples = Samples(there, _rows_at(there, X))
        params = self._fitted_params(there)
        with quiet_floating_point(), without_autodiff(there.xp):
            outputs = network.blockwise(samples, params, network.loss_entry.link)
        return fitted.bring(outputs), fitted


@dataclass(frozen=True)
class _Scorer:
    """A scikit-learn scorer as a metric: it asks a copy of the estimator, which answers from outputs."""

    estimator: _Perceptron

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


def _check_weight(name: str, weight: Any, n_samples: int, there: Placement) -> Array | None:
    if weight is None:
        return None
    if not is_elsewhere(weight):
        weight = np.full(n_samples, float(weight)) if isinstance(weight, Real) else weight
        weight = check_array(weight, ensure_2d=False, dtype=[np.float64, np.float32], input_name=name)
    placement(**{name: weight})
    if tuple(weight.shape) != (n_samples,):
        raise ValueError(f"`{name}` must have shape (n_samples,) = {(n_samples,)}, got {tuple(weight.shape)}")
    return there.cast(there.bring(weight))


def _on_host(y: Any, n_samples: int, estimator: Any, *, numeric: bool) -> Any:
    """Check targets as scikit-learn does, wherever they come from."""
    rows = np.broadcast_to(np.float32(0.0), (n_samples, 1))
    y = to_host(y) if is_elsewhere(y) else y
    _, y = check_X_y(rows, y, multi_output=True, y_numeric=numeric, estimator=estimator)
    y = y.toarray() if is_sparse(y) else y
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y


def _balanced(labels: Any, weight: Any) -> Any:
    """Return weights that give each class the same part of the whole; rows without weight do not count."""
    counted = weight > 0.0
    classes = np.unique(labels[counted])
    each = compute_class_weight("balanced", classes=classes, y=labels[counted], sample_weight=weight[counted])
    return each[np.minimum(np.searchsorted(classes, labels), len(classes) - 1)]


def _rows_at(place: Placement, X: Any) -> Any:
    if not is_sparse(X):
        return place.bring(X)
    if place.xp is not np:
        raise TypeError(f"a sparse `X` can be computed with on NumPy only, and `backend` is {place}")
    return X


def _labels_at(place: Placement, labels: Any) -> Array:
    """Bring class labels to a place; what it cannot hold as it is, such as text, stays on the host."""
    if place.xp is np or labels.dtype.kind not in "biuf":
        return labels
    cast = {"f": place.dtype_name, "u": "int64"}.get(labels.dtype.kind, labels.dtype)
    there = place.xp.asarray(labels.astype(cast), device=place.device)
    return there if np.array_equal(to_host(there), labels) else labels


PARAMETERS = """
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Units of each hidden layer; ``()`` makes a linear model.
    activation : str, Activation or sequence of them, default="relu"
        "identity", "logistic", "tanh", "relu", "leaky_relu", "elu", "silu", "gelu", or an
        `mlp_xp.Activation`: one for all hidden layers, or one for each.
    solver : {"lbfgs", "sgd", "adam"}, default="adam"
        "sgd" is gradient descent with momentum, "lbfgs" SciPy's quasi-Newton method on all rows at
        once, which suits small data.
    alpha : float, default=0.0001
        Strength of the L2 penalty on the weights, divided by the number of samples in the objective.
    batch_size : int or "auto", default="auto"
        Rows in a step of "sgd" and "adam"; "auto" is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}, default="constant"
        With "sgd": the rate stays, falls as ``learning_rate_init / (t_ + 1) ** power_t``, or is divided
        by 5 each time training would stop for want of progress, until it is at most 1e-6.
    learning_rate_init : float, default=0.001
        The rate of the first epoch, with "sgd" and "adam".
    power_t : float, default=0.5
        Exponent of "invscaling".
    max_iter : int, default=200
        The most epochs, or iterations of "lbfgs".
    shuffle : bool, default=True
        Take the rows in a new order in each epoch.
    random_state : int, RandomState or None, default=None
        Draws the first weights, the validation part and the orders, on the host: the same in every
        array library, and the same as in scikit-learn.
    tol : float, default=1e-4
        By how much the loss, or the validation score, must improve to count as progress.
    verbose : bool, default=False
        Print the loss of each epoch.
    warm_start : bool, default=False
        Let `fit` go on where the last one ended: weights, optimizer, orders, learning rate, validation
        part and what early stopping has seen. Fits of 1 epoch are then one fit of as many epochs,
        until early stopping stops; after that each fit trains until it is seen again that nothing
        improves. (scikit-learn keeps the weights alone.) With "lbfgs" the weights alone.
    momentum : float, default=0.9
        Of "sgd", from 0 to 1.
    nesterovs_momentum : bool, default=True
        Let the momentum of "sgd" look one step ahead; see `mlp_xp.momentum`.
    early_stopping : bool or str, default=False
        Split a validation part off, stop when it shows no progress, and take the best epoch's
        weights. True or "score" watch the score (accuracy, or R2), "loss" the loss, any other name of a
        scikit-learn scorer ("f1_macro", "neg_median_absolute_error") that score. Ignored by "lbfgs".
    validation_fraction : float, default=0.1
        The validation part, drawn by class where there are two.
    beta_1, beta_2, epsilon : float, default=0.9, 0.999, 1e-8
        Of "adam"; see `mlp_xp.adam`.
    n_iter_no_change : int or inf, default=10
        Training stops when more than so many epochs in a row made no progress.
    max_fun : int, default=15000
        The most evaluations of the objective by "lbfgs".
    weight_decay : float, default=0.0
        Decoupled decay of the weights before each step of "sgd" or "adam" (AdamW), beside `alpha`.
    backend : {None, "auto", "numpy", "cupy", "torch", "jax"}, default=None
        Where to compute. None: where X lives. "auto": on a CUDA GPU with CuPy if there is one, for an X
        on the host. X is copied there; weights and predictions come back to where X lives. "jax" with
        float64 data switches `jax_enable_x64` on for the whole process.
"""

ATTRIBUTES = """
    coefs_, intercepts_ : list of array
        Weights ``(n_in, n_out)`` and biases ``(n_out,)`` of each layer, in X's library, dtype and device.
    loss_curve_ : list of float
        The objective of each epoch or iteration; `loss_` is the last one, `best_loss_` the smallest (None
        with early stopping).
    validation_scores_, val_loss_curve_ : list of float or None
        Score and loss (without the penalty) on validation data after each epoch;
        `best_validation_score_` is the highest score.
    n_iter_, t_ : int
        Epochs of the last fit, and samples seen in training.
    n_features_in_, n_layers_, n_outputs_ : int
    out_activation_ : str
        "logistic", "softmax", "identity" or "exp".
    feature_names_in_ : array of str
        Where X was a DataFrame.
"""


def _documented(cls: type) -> type:
    """Fill in what the two estimators' documentation has in common."""
    text = (cls.__doc__ or "").replace("    {parameters}\n", PARAMETERS[1:])
    cls.__doc__ = text.replace("    {attributes}\n", ATTRIBUTES[1:])
    return cls


@_documented
@dataclass(eq=False, repr=False)
class MLPClassifier(ClassifierMixin, _Perceptron):
    """Multilayer perceptron for two classes, more classes, or several labels; trains where X lives.

    scikit-learn's `MLPClassifier`, with its parameters, attributes and results, on arrays of any library.

    Parameters
    ----------
    {parameters}
    class_weight : dict, "balanced", list of dict or None, default=None
        Weights of the classes, multiplied with `sample_weight`, also in a validation part split off
        (but not in `X_val`). "balanced" is ``n_samples / (n_classes * count)``, by sample weights where
        there are some; a list has a dict for each label of a multi-label problem.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        In X's library, or on the host if they are text.
    {attributes}

    See Also
    --------
    MLPRegressor

    Notes
    -----
    The objective is the cross-entropy plus ``alpha / 2`` times the sum of squared weights, over the sum
    of sample weights of the batch. Labels are encoded on the host.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import MLPClassifier
    >>> from mlp_xp.datasets import planar
    >>> X, y = planar().X, np.where(planar().y == 1, "blue", "red")
    >>> model = MLPClassifier((16,), "tanh", solver="lbfgs", tol=0.01, random_state=0).fit(X, y)
    >>> model.predict([[3.0, 0.5], [0.0, 0.1]])
    array(['blue', 'red'], dtype='<U4')
    >>> round(model.score(X, y), 1)
    0.9
    """

    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"
    _: KW_ONLY
    class_weight: Any = None
    loss: ClassVar[str] = "log_loss"

    @available_if(_is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train for one epoch on X and y, from where the model stands.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : array of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), optional
        classes : array of shape (n_classes,), optional
            All classes there will be; needed in the first call.

        Returns
        -------
        self
        """
        fitted = hasattr(self, "classes_")
        if classes is None and not fitted:
            raise ValueError("`classes` must be passed on the first call to partial_fit")
        if classes is not None:
            classes = unique_labels(to_host(classes) if is_elsewhere(classes) else classes)
            if fitted and not np.array_equal(classes, self._labels.classes):
                raise ValueError(f"`classes` must be those of the first call, {self.classes_}, got {classes}")
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X: Any) -> Array:
        """Predict labels.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            In the library and on the device of the data fitted with.

        Returns
        -------
        array of shape (n_samples,) or (n_samples, n_outputs)
            There too; on the host if labels are text.

        Raises
        ------
        ValueError
            If X lives elsewhere; `to` moves the model.
        """
        return self._decode(*self._outputs(X, "predict"))

    def predict_proba(self, X: Any) -> Array:
        """Predict the probability of each class, or of each label.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_classes)
            In the order of `classes_`, where X lives.
        """
        return self._probabilities(X, "predict_proba")[0]

    def predict_log_proba(self, X: Any) -> Array:
        """Predict the logarithm of each class's probability.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_classes)
        """
        probabilities, home = self._probabilities(X, "predict_log_proba")
        with quiet_floating_point():
            return home.xp.log(probabilities)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; a sample of several labels counts where all are right.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : array of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        float
        """
        return _score(accuracy_score, y, self._decode(*self._outputs(X, "score")), sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _check_parameters(self) -> list[int]:
        weights = self.class_weight
        if isinstance(weights, str) or not isinstance(weights, (dict, list, type(None))):
            lookup("class_weight", weights, dict.fromkeys(["balanced"]))
        for one in weights if isinstance(weights, list) else [weights]:
            for label, weight in one.items() if isinstance(one, dict) else ():
                check_real(f"class_weight[{label!r}]", weight, at_least=0.0)
        return super()._check_parameters()

    def _probabilities(self, X: Any, method: str) -> tuple[Array, Placement]:
        outputs, home = self._outputs(X, method)
        if self.n_outputs_ == 1:
            outputs = home.xp.concat([1.0 - outputs, outputs], axis=1)
        return outputs, home

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
        labels = _on_host(y, n_samples, self, numeric=False)
        if known:
            self._check_known(labels, whole)
        else:
            self._define_classes(
                labels if classes is None or labels.ndim == 2 else classes, home, is_sparse(y)
            )
            self._check_known(labels, whole=False)
        if labels.ndim == 2:
            return labels != 0, labels
        codes = np.searchsorted(self._labels.classes, labels)[:, None]
        softmax = self.out_activation_ == "softmax"
        return (codes == np.arange(self.n_outputs_) if softmax else codes == 1), labels

    def _define_classes(self, labels: Any, home: Placement, sparse: bool) -> None:
        check_classification_targets(labels)
        kind = type_of_target(labels)
        if kind == "multiclass-multioutput":
            raise ValueError(
                "Multioutput target data is not supported: `y` must be 1-D, or hold 0 and 1 only"
            )
        classes = unique_labels(labels)
        self._labels = _Labels(classes, sparse)
        self.classes_ = _labels_at(home, classes)
        self.out_activation_ = "softmax" if kind == "multiclass" else "logistic"
        self.n_outputs_ = 1 if kind == "binary" else len(classes)

    def _check_known(self, labels: Any, whole: bool) -> None:
        """Check labels against the classes; `whole` asks for all of them."""
        given, classes = unique_labels(labels), self._labels.classes
        multilabel = self.out_activation_ == "logistic" and self.n_outputs_ > 1
        if whole and set(given) != set(classes):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {classes}, `y` has {given}"
            )
        if multilabel != (labels.ndim == 2):
            raise ValueError(f"`y` must have {2 if multilabel else 1} dimension(s), got {labels.ndim}")
        if not set(given) <= set(classes):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {classes}. `y` has {given}."
            )

    def _class_weights(self, labels: Any, sample_weight: Array | None, incremental: bool) -> Any:
        if self.class_weight is None or labels is None:
            return None
        if not isinstance(self.class_weight, str):
            return compute_sample_weight(self.class_weight, labels)
        if incremental:
            raise ValueError(
                "`class_weight` must be a dict for partial_fit, got 'balanced': all of `y` is not known "
                "(compute_class_weight('balanced', classes=classes, y=y) makes one)"
            )
        columns = labels.T if labels.ndim == 2 else [labels]
        weight = np.ones(len(labels)) if sample_weight is None else to_host(sample_weight)
        return np.prod([_balanced(column, weight) for column in columns], axis=0)

    def _decode(self, outputs: Array, home: Placement) -> Array:
        xp = home.xp
        integer = xp.arange(1, device=home.device).dtype
        if self.out_activation_ == "softmax":
            codes = xp.argmax(outputs, axis=1)
        elif self.n_outputs_ > 1:
            labels = xp.astype(outputs > 0.5, integer)
            return csr_matrix(labels) if self._labels.sparse and xp is np else labels
        else:
            codes = xp.astype(outputs[:, 0] > 0.5, integer)
        if self.classes_.shape[0] == 1:
            codes = xp.zeros_like(codes)
        if isinstance(self.classes_, np.ndarray):
            return self.classes_[to_host(codes)]
        return xp.take(self.classes_, codes, axis=0)


@_documented
@dataclass(eq=False, repr=False)
class MLPRegressor(RegressorMixin, _Perceptron):
    """Multilayer perceptron for one value or several; trains where X lives.

    scikit-learn's `MLPRegressor`, with its parameters, attributes and results, on arrays of any library.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}, default="squared_error"
        Half the squared error, averaged over the outputs, or half the Poisson deviance of
        ``exp(logits)``, for counts.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    MLPClassifier

    Notes
    -----
    With several outputs the gradient of the squared error is that of the loss reported, which
    averages over them. scikit-learn's is the number of outputs times as large (its issue 8349), so
    that results differ there.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import MLPRegressor
    >>> X = np.linspace(-1.0, 1.0, 50)[:, None]
    >>> model = MLPRegressor(hidden_layer_sizes=5, activation="tanh", solver="lbfgs", random_state=0)
    >>> model.fit(X, np.sin(3.0 * X[:, 0])).predict([[0.5]]).round(1)  # sin(1.5) = 0.997
    array([1.])
    """

    loss: str = "squared_error"
    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"

    @available_if(_is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train for one epoch on X and y, from where the model stands.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : array of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """Predict values.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            In the library and on the device of the data fitted with.

        Returns
        -------
        array of shape (n_samples,) or (n_samples, n_outputs)
            There too.

        Raises
        ------
        ValueError
            If X lives elsewhere; `to` moves the model.
        """
        return self._decode(*self._outputs(X, "predict"))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R2, averaged over the outputs.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : array of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        float
        """
        return _score(r2_score, y, self._decode(*self._outputs(X, "score")), sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

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
        lookup("loss", self.loss, dict.fromkeys(["squared_error", "poisson"]))
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
        if is_sparse(y):
            raise TypeError("`y` must be a dense array of values, got a sparse one")
        if not (is_elsewhere(y) and placement(y=y).same_as(home)):
            y = _on_host(y, n_samples, self, numeric=True)
            placement(y=y)
        if y.ndim not in (1, 2) or y.shape[0] != n_samples:
            raise ValueError(
                f"`y` must have shape (n_samples,) or (n_samples, n_outputs) with n_samples = {n_samples}, "
                f"got {tuple(y.shape)}"
            )
        return (y[:, None] if y.ndim == 1 else y), None

    def _decode(self, outputs: Array, home: Placement) -> Array:
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def _score(metric: Any, y: Any, predictions: Array, sample_weight: Any) -> float:
    """Compute a metric of scikit-learn's, on the host, whatever library the arrays are of."""
    y, predictions, sample_weight = (
        to_host(array) if is_elsewhere(array) else array for array in (y, predictions, sample_weight)
    )
    return float(metric(y, predictions, sample_weight=sample_weight))
