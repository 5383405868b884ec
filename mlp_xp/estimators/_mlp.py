"""`MLPClassifier` and `MLPRegressor`: scikit-learn's estimators around the network and its training."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.callback import with_callbacks
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if

from mlp_xp._arrays import (
    Array,
    HostArray,
    Placement,
    check_kind,
    is_non_numpy_array,
    is_sparse,
    placement,
    quiet_floating_point,
)
from mlp_xp._devices import current_device
from mlp_xp._functions import set_public_module
from mlp_xp._network import Network
from mlp_xp._parameters import all_finite
from mlp_xp._processes import Processes, together
from mlp_xp._samples import Shard
from mlp_xp._training.checkpoints import Checkpoint
from mlp_xp._training.measure import check_weights
from mlp_xp._validation import errors_naming, lookup
from mlp_xp._warnings import warn
from mlp_xp.estimators._base import BaseMLP
from mlp_xp.estimators._batches import takes_stream
from mlp_xp.estimators._documentation import fill_docstring
from mlp_xp.estimators._input import HOST, check_weight, checked_on_host, on_host
from mlp_xp.estimators._labels import (
    Classes,
    check_class_weight,
    check_classes,
    check_given_classes,
    class_weights,
    classes_of,
    labels_at,
    storable,
)


class _Labels(NamedTuple):
    """The former type of `_labels`, which run folders of earlier versions contain; now a plain tuple."""

    classes: HostArray
    sparse: bool


def _is_stochastic(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit needs a stochastic `solver`, 'sgd' or 'adam', got 'lbfgs'")
    return True


@fill_docstring
@dataclass(eq=False, repr=False)
class MLPClassifier(ClassifierMixin, BaseMLP):
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
    _is_classifier: ClassVar[bool] = True

    @with_callbacks
    @fill_docstring
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | bool = False,
        classes: Any = None,
    ) -> MLPClassifier:
        """Train on X and y, from the start or, with `warm_start`, from where the last fit ended.

        Parameters
        ----------
        {fit_parameters}
        classes : array of shape (n_classes,), optional
            All classes that there will be: needed for a stream, as by `partial_fit`.

        {fit_results}
        """
        if takes_stream(X, y):
            continues = self.warm_start and hasattr(self, "coefs_")
            if classes is None and not continues:
                raise ValueError(
                    "`classes` must be given where `X` is a stream, whose labels are not known yet"
                )
            classes = self._given_classes(classes, continues=continues)
        elif classes is not None:
            raise ValueError("`classes` must be None, but for a stream: they are those of `y`")
        data = {"validation_data": (X_val, y_val, sample_weight_val), "classes": classes}
        return self._fit(X, y, sample_weight, checkpoint=checkpoint, resume=resume, **data)

    @available_if(_is_stochastic)
    @fill_docstring
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train for one epoch on X and y, from the current weights.

        Parameters
        ----------
        {samples}
        classes : array of shape (n_classes,), optional
            All classes there will be; needed in the first call.

        Returns
        -------
        self
        """
        if classes is None and not hasattr(self, "classes_"):
            raise ValueError("`classes` must be passed on the first call to partial_fit")
        classes = self._given_classes(classes, continues=hasattr(self, "classes_"))
        return self._partial_fit(X, y, sample_weight, classes)

    def _given_classes(self, classes: Any, *, continues: bool) -> HostArray | None:
        """Return the argument `classes`, checked; a training that continues has classes already."""
        if classes is None:
            return None
        given = check_given_classes(on_host("classes", classes))
        if continues and not np.array_equal(given, self._labels[0]):
            raise ValueError(f"`classes` must be those of the first call, {self.classes_}, got {given}")
        return given

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
        with current_device(X):
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
        with current_device(X), quiet_floating_point():
            probabilities, home = self._probabilities(X, "predict_log_proba")
            logarithms = home.xp.log(probabilities)
            if all_finite(home.xp, probabilities) and not all_finite(home.xp, logarithms):
                message = "predict_log_proba is -inf where a probability is 0"
                warn(f"{message}: so small that {home.dtype_name} does not hold it", RuntimeWarning)
            return logarithms

    @fill_docstring
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; a sample of several labels counts where all are right.

        Parameters
        ----------
        {score}
        """
        return _score(self, accuracy_score, X, storable(on_host("y", y)), sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _check_parameters(self) -> list[int]:
        """Check all parameters; return the sizes of the hidden layers."""
        check_class_weight(self.class_weight)
        return super()._check_parameters()

    def _probabilities(self, X: Any, method: str) -> tuple[Array, Placement]:
        outputs, home = self._outputs(X, method)
        if self.n_outputs_ == 1:
            outputs = home.xp.concat([1.0 - outputs, outputs], axis=1)
        return outputs, home

    @property
    def _classes(self) -> Classes:
        return Classes.from_fitted(*self._labels, self.out_activation_, self.n_outputs_)

    def _check_y(self, y: Any, n_samples: int, home: Placement) -> Any:
        return checked_on_host(storable(on_host("y", y)), n_samples, self, numeric=False)

    def _learn_targets(self, y: Any, home: Placement, classes: Any, sparse: bool) -> None:
        learned = classes_of(y if classes is None or y.ndim == 2 else classes, sparse=sparse)
        if classes is not None and not np.array_equal(learned.labels, classes):
            raise ValueError(
                f"`classes` must be the numbers of the columns of `y`, {learned.labels}, got {classes}"
            )
        self._labels = learned.labels, learned.sparse
        self.classes_ = labels_at(home, learned.labels)
        self.out_activation_, self.n_outputs_ = learned.out_activation, learned.n_outputs
        if classes is not None:
            learned.check(y)

    def _check_learned_targets(self, y: Any, *, complete: bool) -> None:
        if complete:
            self._classes.check_complete(y)
        self._classes.check(y)

    def _encode(self, y: Any) -> Array:
        return self._classes.encode(y)

    def _decode(self, outputs: Array, home: Placement) -> Array:
        return self._classes.decode(outputs, home, self.classes_)

    def _class_weights(self, y: Any, sample_weight: Array | None, incremental: bool) -> HostArray | None:
        if self.class_weight is None:
            return None
        weights = self.class_weight
        if incremental and "balanced" in (weights if isinstance(weights, list) else [weights]):
            raise ValueError(
                "`class_weight` must be a dict, or a list of dicts, for partial_fit and streams, got "
                "'balanced': all of `y` is not known. If you know it, dict(zip(classes, "
                "compute_class_weight('balanced', classes=classes, y=y))) makes a dict"
            )
        return class_weights(weights, self._classes, y, sample_weight)

    def _move_labels(self, place: Placement) -> None:
        self.classes_ = labels_at(place, self._labels[0])

    def _label_state(self) -> dict[str, Any]:
        return dict(zip(("classes", "sparse"), self._labels))

    def _restore_labels(self, learned: dict[str, Any], network: Network, place: Placement) -> None:
        check_classes(learned["classes"], learned["sparse"], network)
        self._labels = learned["classes"], learned["sparse"]
        self._move_labels(place)


@fill_docstring
@dataclass(eq=False, repr=False)
class MLPRegressor(RegressorMixin, BaseMLP):
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
    _is_classifier: ClassVar[bool] = False

    @available_if(_is_stochastic)
    @fill_docstring
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train for one epoch on X and y, from the current weights.

        Parameters
        ----------
        {samples}

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, sample_weight)

    @fill_docstring
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R2, averaged over the outputs.

        Parameters
        ----------
        {score}
        """
        return _score(self, r2_score, X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _check_parameters(self) -> list[int]:
        lookup("loss", self.loss, dict.fromkeys(["squared_error", "poisson"]))
        return super()._check_parameters()

    def _check_y(self, y: Any, n_samples: int, home: Placement) -> Any:
        if is_sparse(y):
            raise TypeError("`y` must be a dense array of values, got a sparse one")
        check_kind("y", y)
        if not (is_non_numpy_array(y) and placement(y=y).same_as(home)):
            y = checked_on_host(y, n_samples, self, numeric=True)
            placement(y=y)
        if y.ndim not in (1, 2) or y.shape[0] != n_samples:
            raise ValueError(
                f"`y` must have shape (n_samples,) or (n_samples, n_outputs) with n_samples = {n_samples}, "
                f"got {tuple(y.shape)}"
            )
        return y

    def _learn_targets(self, y: Any, home: Placement, classes: Any, sparse: bool) -> None:
        self._set_output()

    def _set_output(self) -> None:
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"

    def _check_learned_targets(self, y: Any, *, complete: bool) -> None:
        self._set_output()  # `loss` may have changed

    def _encode(self, y: Any) -> Array:
        return y[:, None] if y.ndim == 1 else y

    def _decode(self, outputs: Array, home: Placement) -> Array:
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def _score(estimator: BaseMLP, metric: Any, X: Any, y: Any, sample_weight: Any) -> float:
    """Compute a metric of scikit-learn's for the predictions, on the host; arrays may be of any library."""
    with current_device(X), together("score") as processes:
        predictions = on_host("predictions", estimator._decode(*estimator._outputs(X, "score")))
        weight = check_weight("sample_weight", sample_weight, predictions.shape[0], HOST)
        check_weights(HOST, weight)
        if not estimator._is_classifier and not np.isfinite(predictions).all():
            raise ValueError("the predictions for `X` are infinite or NaN, which have no score")
        with errors_naming("y"):
            y = on_host("y", y)
            if not estimator._is_classifier and not is_sparse(y):
                y = np.asarray(y)
                if y.dtype.kind in "mMSUc":
                    raise TypeError(f"it must hold real numbers, got dtype {y.dtype}")
            if processes is not None:
                return _score_of_all(processes, metric, y, predictions, weight)
            return float(metric(y, predictions, sample_weight=weight))


def _score_of_all(processes: Processes, metric: Any, y: Any, predictions: Any, weight: Any) -> float:
    """Compute a metric for the predictions of all processes."""
    processes.check_same_presence(sample_weight=weight)
    arrays = (np.asarray(one.toarray() if is_sparse(one) else one) for one in (y, predictions))

    def measured(y: HostArray, predictions: HostArray, weight: HostArray | None) -> float:
        return float(metric(y, predictions, sample_weight=weight))

    return float(Shard.of(processes, y.shape[0]).compute("score", measured, *arrays, weight))


set_public_module("mlp_xp.estimators", globals(), ["MLPClassifier", "MLPRegressor", "_Labels"])
