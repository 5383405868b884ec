"""MLPClassifier and MLPRegressor: scikit-learn's estimators around the network and its training.

What they have in common is `mlp_xp.estimators._base`'s; here are labels and values, and what users read.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from mlp_xp._arrays import (
    Array,
    Placement,
    is_non_numpy_array,
    is_sparse,
    placement,
    quiet_floating_point,
    to_host,
)
from mlp_xp._devices import current_device
from mlp_xp._network import Network
from mlp_xp._parameters import Layer, Parameters
from mlp_xp._validation import check_real, lookup
from mlp_xp.estimators._base import BasePerceptron
from mlp_xp.estimators._input import on_host


class _Labels(NamedTuple):
    """The class labels as they were given: on the host, where they are encoded."""

    classes: np.ndarray[Any, Any]
    sparse: bool


def _is_stochastic(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit needs a stochastic `solver`, 'sgd' or 'adam', got 'lbfgs'")
    return True


def _balanced(labels: Any, weight: Any) -> Any:
    """Return weights that give each class the same part of the whole; rows without weight do not count."""
    counted = weight > 0.0
    classes = np.unique(labels[counted])
    each = compute_class_weight("balanced", classes=classes, y=labels[counted], sample_weight=weight[counted])
    return each[np.minimum(np.searchsorted(classes, labels), len(classes) - 1)]


def _check_labels(classes: Any, sparse: Any, network: Network) -> _Labels:
    """Check that these are classes to predict from the network's outputs."""
    if not isinstance(classes, np.ndarray) or type(sparse) is not bool:
        raise TypeError("`classes` must be an array and `sparse` True or False")
    values, n_outputs = classes.tolist(), network.layer_sizes[-1]
    counts = (1, 2) if n_outputs == 1 else (n_outputs,)
    if len(values) not in counts or not all(low < high for low, high in pairwise(values)):
        raise ValueError(f"`classes` must be {counts[-1]} in rising order, got {len(values)}")
    if n_outputs > 1 and network.loss == "binary_cross_entropy" and values != list(range(n_outputs)):
        raise ValueError("`classes` of several labels must be their numbers")
    return _Labels(classes, sparse)


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
    matmul_precision : {"highest", "tf32"}, default="highest"
        How float32 matrix products are computed on a CUDA GPU: "tf32" rounds their factors to 11
        significant bits, which is several times as fast; see `mlp_xp.Network`.
"""

ATTRIBUTES = """
    coefs_, intercepts_ : list of array
        Weights ``(n_in, n_out)`` and biases ``(n_out,)`` of each layer, in X's library, dtype and device.
    loss_curve_ : list of float
        The objective of each epoch or iteration; `loss_` is the last one, `best_loss_` the smallest (None
        with early stopping).
    history_ : History
        The same as a list of dicts: "epoch", "loss", and with validation data "val_loss" and the score, as
        "val_accuracy", "val_r2", or "val_" with the name that `early_stopping` has.
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
class MLPClassifier(ClassifierMixin, BasePerceptron):
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
            classes = unique_labels(to_host(classes) if is_non_numpy_array(classes) else classes)
            if fitted and not np.array_equal(classes, self._labels.classes):
                raise ValueError(f"`classes` must be those of the first call, {self.classes_}, got {classes}")
        return self._partial_fit(X, y, sample_weight, classes)

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
        with current_device(X):
            return _score(accuracy_score, y, self._decode(*self._outputs(X, "score")), sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _check_parameters(self) -> list[int]:
        """Check all parameters; return the sizes of the hidden layers."""
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
        labels = on_host(y, n_samples, self, numeric=False)
        if not known:
            named = labels if classes is None or labels.ndim == 2 else classes
            self._define_classes(named, home, is_sparse(y))
        if known or classes is not None:  # else the classes are those of `y` itself
            self._check_known(labels, whole)
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

    def _move_labels(self, place: Placement) -> None:
        self.classes_ = _labels_at(place, self._labels.classes)

    def _fitted_state(self) -> tuple[Network, tuple[Layer, ...], dict[str, Any]]:
        network, params, learned = super()._fitted_state()
        return network, params, learned | {"classes": self._labels.classes, "sparse": self._labels.sparse}

    def _restore(self, network: Network, params: Parameters, learned: dict[str, Any]) -> MLPClassifier:
        super()._restore(network, params, learned)
        self._labels = _check_labels(learned["classes"], learned["sparse"], network)
        self._move_labels(placement(coefs_=self.coefs_[0]))
        return self

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
class MLPRegressor(RegressorMixin, BasePerceptron):
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
        with current_device(X):
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
        if not (is_non_numpy_array(y) and placement(y=y).same_as(home)):
            y = on_host(y, n_samples, self, numeric=True)
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
        to_host(array) if is_non_numpy_array(array) else array for array in (y, predictions, sample_weight)
    )
    return float(metric(y, predictions, sample_weight=sample_weight))
