"""`TabularClassifier` and `TabularRegressor`: from a DataFrame to predictions, by the tool's settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mlp_xp._arrays import HostArray, is_sparse
from mlp_xp._functions import set_public_module
from mlp_xp._processes import Processes, current_processes, together
from mlp_xp._training.checkpoints import Checkpoint
from mlp_xp._validation import check_integer, errors_naming, lookup, shown
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from mlp_xp.estimators._input import HOST
from mlp_xp.estimators._labels import Classes, classes_of
from mlp_xp.tables._checkpoints import NumberedCheckpoints
from mlp_xp.tables._common import plain_values
from mlp_xp.tables._frames import as_table
from mlp_xp.tables._learning import learn_schema
from mlp_xp.tables._networks import Training, best_epoch
from mlp_xp.tables._parts import any_part, with_equal_types
from mlp_xp.tables._pipelines import prepare
from mlp_xp.tables._preprocessing import check_magnitudes
from mlp_xp.tables._rows import LabelledRows
from mlp_xp.tables._settings import TABULAR

Self = TypeVar("Self", bound="_Tabular")

MAX_SEED = 2**32 - 1
"""The largest seed that NumPy's RandomState takes."""

OWN_PARAMETERS = (
    *("hidden_layer_sizes", "activation", "learning_rate_init"),
    *("max_iter", "n_iter_no_change", "backend", "matmul_precision"),
)
"""Parameters that each network has as they are."""


@dataclass(eq=False, repr=False)
class _Tabular(BaseEstimator):
    """What classifier and regressor have in common."""

    _: KW_ONLY
    n_networks: int = TABULAR.n_networks
    categorical: Sequence[str] = ()
    hidden_layer_sizes: Any = TABULAR.parameters["hidden_layer_sizes"]
    activation: Any = TABULAR.parameters["activation"]
    learning_rate_init: float = TABULAR.parameters["learning_rate_init"]
    weight_decay: float | str = "auto"
    batch_size: int | str = "auto"
    max_iter: int = TABULAR.parameters["max_iter"]
    n_iter_no_change: float = TABULAR.parameters["n_iter_no_change"]
    random_state: int | np.random.RandomState | None = None
    backend: str | None = None
    matmul_precision: str = "highest"
    dtype: str = "float32"

    def _fit(self: Self, *arguments: Any, **parameters: Any) -> Self:
        with together("fit"):
            return self._fit_together(*arguments, **parameters)

    def _fit_together(
        self: Self,
        X: Any,
        y: Any,
        sample_weight: Any,
        network: type[Any],
        checkpoint: Any,
        resume: Any,
        **parameters: Any,
    ) -> Self:
        n_networks = check_integer("n_networks", self.n_networks, minimum=1)
        lookup("dtype", self.dtype, dict.fromkeys(("float32", "float64")))
        frame, task = _as_frame(X), "classification" if network is MLPClassifier else "regression"
        chosen = {name: getattr(self, name) for name in OWN_PARAMETERS} | parameters
        for name in ("batch_size", "weight_decay"):
            given = getattr(self, name)
            if not isinstance(given, str) or given != "auto":
                chosen[name] = given
        unfitted = network(**chosen)
        unfitted._check_parameters()
        y = _checked_targets(unfitted, y, len(frame))
        weights = None if sample_weight is None else _checked_weights(sample_weight, len(frame))
        if weights is not None:
            kept = weights > 0.0
            frame, y, weights = frame.filter(kept), y[kept], weights[kept]
        processes = current_processes()
        if processes is not None:
            given = {"sample_weight": "None" if sample_weight is None else "given"}
            own = {name: value for name, value in self.get_params(deep=False).items() if name != "backend"}
            processes.check_same("fit", {**own, **given})
            frame = with_equal_types(frame)
            y = _of_common_type(y, processes)
        if task == "classification" and len(labels := classes_of(y).labels) < 2:
            raise ValueError(f"`y` must have at least 2 classes, got 1 class: {labels[0]!r:.60}")
        schema = learn_schema(frame, categorical=self.categorical)
        rows = LabelledRows.of(schema.read(frame, together=True), y, weights)
        check_magnitudes(rows.frame, schema.names("number"), self.dtype)
        prepared = prepare(task, schema, {"training": rows}, self.dtype, TABULAR.inputs)
        parameters = TABULAR.all_parameters(chosen, rows.n_total)
        checkpoints = NumberedCheckpoints(checkpoint, resume, n_networks)
        estimator = network(random_state=_seed(self.random_state, checkpoints), **parameters)
        training = Training(
            estimator, prepared, n_networks, leaves_rows_out=True, fit_arguments=checkpoints.fit_arguments
        )
        try:
            training.run()
        finally:
            if training.networks:
                self.__dict__.update(
                    n_features_in_=frame.width,
                    feature_names_in_=np.array(frame.columns, dtype=object),
                    schema_=schema,
                    network_=training.estimator,
                    pipeline_=prepared.pipeline(training.estimator),
                    histories_=training.histories,
                    best_epochs_=[best_epoch(each) for each in training.networks],
                    n_iter_=max(each.n_iter_ for each in training.networks),
                    shrinkage_=training.shrinkage,
                )
        return self

    def _outputs(self, X: Any) -> HostArray:
        check_is_fitted(self)
        pipeline, frame = self.pipeline_, _as_frame(X)
        if not hasattr(X, "columns") and frame.width != self.n_features_in_:
            raise ValueError(
                f"X has {frame.width} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        outputs: HostArray = pipeline.checked_outputs(pipeline.read(frame))
        return outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        return tags


@dataclass(eq=False, repr=False)
class TabularClassifier(ClassifierMixin, _Tabular):
    """Classifier of the rows of DataFrames: text, numbers and dates in, classes out, with nothing to tune.

    It is the network that ``mlp-xp train`` makes of a table. Columns are read by a schema that is learnt (see
    `learn_schema`); numbers are scaled, limited, and split into intervals, text is one-hot encoded. The
    network is the average of several, each of which stops at its best; its logits are
    shrunk towards those of the class frequencies as far as rows left out ask for it.

    Parameters
    ----------
    n_networks : int, default=5
        Number of networks whose average is the result, itself one network. Each is trained without another
        fifth of the rows (of six networks and more, of another division), and keeps the epoch with the lowest
        loss there. Fewer than 10 rows are all trained on, for all epochs.
    categorical : sequence of str, default=()
        Columns of numbers that are codes of categories.
    hidden_layer_sizes, activation, learning_rate_init, max_iter, n_iter_no_change
        Of each network, as of `mlp_xp.MLPClassifier`.
    weight_decay : float or "auto", default="auto"
        As of `mlp_xp.MLPClassifier`. "auto" is 1, or where an epoch has more than 16 steps as much less.
    batch_size : int or "auto", default="auto"
        "auto" is a sixteenth of the rows, as a power of two from 16 to 256; of more than 65,000 rows a 256th.
    random_state : int, RandomState or None, default=None
    backend : {None, "auto", "numpy", "cupy", "torch", "jax"}, default=None
        Where to compute; None is the host, "auto" a CUDA GPU with CuPy if there is one.
    matmul_precision : {"highest", "tf32"}, default="highest"
    dtype : {"float32", "float64"}, default="float32"
    class_weight : dict, "balanced" or None, default=None
        As of `mlp_xp.MLPClassifier`; here it holds for the rows left out, too.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    network_ : MLPClassifier
        The average, of the columns as numbers.
    schema_ : Schema
        How the columns are read; `schema_.notes` and `schema_.left_out` say what is unusual.
    histories_ : list of History
        Losses and scores of each network by epoch, on the rows trained on and those left out.
    best_epochs_ : list of int or None
        The epoch that is kept of each network.
    shrinkage_ : float or None
        The factor of the logits; 1 leaves them as they are.
    n_iter_ : int
        The most epochs that a network was trained for.
    n_features_in_, feature_names_in_ : int, array of str

    See Also
    --------
    TabularRegressor, mlp_xp.MLPClassifier

    References
    ----------
    Smooth limits of robustly scaled numbers: D. Holzmueller et al., "Better by default: strong pre-tuned MLPs
    and boosted trees on tabular data", NeurIPS 2024. Intervals: Y. Gorishniy et al., "On embeddings for
    numerical features in tabular deep learning", NeurIPS 2022.

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import TabularClassifier
    >>> X = pl.DataFrame({"mass": [3.1, None, 5.2, 4.9] * 25, "island": ["a", "a", "b", None] * 25})
    >>> model = TabularClassifier(random_state=0).fit(X, ["gull", "gull", "tern", "tern"] * 25)
    >>> model.predict(pl.DataFrame({"island": ["a", "b"], "mass": [3.0, 5.1]}))
    array(['gull', 'tern'], dtype='<U4')
    """

    _: KW_ONLY
    class_weight: Any = None

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> TabularClassifier:
        """Learn how the columns are read, and train.

        Parameters
        ----------
        X : DataFrame of polars or pandas, table of Arrow, or array of shape (n_samples, n_features)
        y : array or list of shape (n_samples,)
            Labels: text, numbers or truth values.
        sample_weight : array of shape (n_samples,), optional
            At least 0; rows of weight 0 are left out.
        checkpoint : Checkpoint or path, optional
            Where to write the progress of the training. Each network has a file of its own: those of
            "table.mlpx" are "table-1.mlpx", "table-2.mlpx", ...
        resume : bool, default=False
            Go on with a fit whose process has died, from the files of `checkpoint`, as far as there are some.
            The fit ends as if it had never ended, to the bit.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If columns or labels cannot be used; the message names them.
        ValueError, TypeError
            If a parameter, `y` or `sample_weight` is wrong, before any training, or what is to be resumed was
            another fit.
        ModelFileError, OSError
            If a checkpoint is damaged, cannot be written, exists already, or is written by another training.
        """
        return self._fit(
            X, y, sample_weight, MLPClassifier, checkpoint, resume, class_weight=self.class_weight
        )

    @property
    def classes_(self) -> HostArray:
        """The labels, in the order of the probabilities."""
        check_is_fitted(self)
        return np.asarray(self.network_.classes_)

    def predict_proba(self, X: Any) -> HostArray:
        """Predict the probability of each class.

        Parameters
        ----------
        X : DataFrame, table or array
            With the columns of the training, in any order; other columns are not looked at.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)

        Raises
        ------
        DataError
            If columns are missing, or hold cells that do not fit, all of which are named.
        """
        probabilities = self._outputs(X)  # whose sums are 1 but for the rounding of the network's dtype
        normalised: HostArray = probabilities / probabilities.sum(axis=1, keepdims=True)
        return normalised

    def predict(self, X: Any) -> HostArray:
        """Predict the class of each row.

        Parameters
        ----------
        X : DataFrame, table or array
            As of `predict_proba`.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        predicted: HostArray = self.classes_[np.argmax(self._outputs(X), axis=1)]
        return predicted


@dataclass(eq=False, repr=False)
class TabularRegressor(RegressorMixin, _Tabular):
    """Regressor of the rows of DataFrames: text, numbers and dates in, values out, with nothing to tune.

    It is the network that ``mlp-xp train`` makes of a table; see `TabularClassifier`. The squared error is
    that of the target scaled to mean 0 and variance 1; predictions are in the target's own units.

    Parameters
    ----------
    n_networks, categorical, hidden_layer_sizes, activation, learning_rate_init, weight_decay, batch_size
        As of `TabularClassifier`, as are `max_iter`, `n_iter_no_change`, `random_state`, `backend`,
        `matmul_precision` and `dtype`.
    loss : {"squared_error", "poisson"}, default="squared_error"
        As of `mlp_xp.MLPRegressor`.

    Attributes
    ----------
    network_, schema_, histories_, best_epochs_, shrinkage_, n_iter_, n_features_in_, feature_names_in_
        As of `TabularClassifier`.

    See Also
    --------
    TabularClassifier, mlp_xp.MLPRegressor

    Examples
    --------
    >>> import numpy as np
    >>> import polars as pl
    >>> from mlp_xp.tables import TabularRegressor
    >>> X = pl.DataFrame({"size": np.linspace(0.0, 1.0, 200), "kind": ["a", "b"] * 100})
    >>> price = 1000.0 * X["size"] ** 2 + 500.0 * (X["kind"] == "b")
    >>> model = TabularRegressor(random_state=0).fit(X, price)
    >>> model.score(X, price) > 0.99
    True
    """

    _: KW_ONLY
    loss: str = "squared_error"

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> TabularRegressor:
        """Learn how the columns are read, and train.

        Parameters
        ----------
        X : DataFrame of polars or pandas, table of Arrow, or array of shape (n_samples, n_features)
        y : array or list of shape (n_samples,)
            Numbers.
        sample_weight : array of shape (n_samples,), optional
            At least 0; rows of weight 0 are left out.
        checkpoint, resume : Checkpoint or path, bool
            As of `TabularClassifier.fit`.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If columns or values cannot be used; the message names them.
        ValueError, TypeError
            If a parameter, `y` or `sample_weight` is wrong, before any training, or what is to be resumed was
            another fit.
        ModelFileError, OSError
            If a checkpoint is damaged, cannot be written, exists already, or is written by another training.
        """
        return self._fit(X, y, sample_weight, MLPRegressor, checkpoint, resume, loss=self.loss)

    def predict(self, X: Any) -> HostArray:
        """Predict the value of each row, in the units of `y`.

        Parameters
        ----------
        X : DataFrame, table or array
            With the columns of the training, in any order; other columns are not looked at.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        DataError
            If columns are missing, or hold cells that do not fit, all of which are named.
        """
        return self._outputs(X)


def _as_frame(X: Any) -> pl.DataFrame:
    """Return a table, or an array with columns x0, x1 and so on, as a polars DataFrame."""
    if is_sparse(X):
        raise TypeError("`X` must be a DataFrame or a dense array, got a sparse one, which is not supported")
    is_array = hasattr(X, "__array__") and not hasattr(X, "columns") and not hasattr(X, "__arrow_c_stream__")
    if is_array or isinstance(X, (list, tuple)):
        X = np.asarray(X)
        if X.ndim != 2:
            raise ValueError(
                f"`X` must be a DataFrame, or an array of 2 dimensions, got {X.ndim}. Reshape your data: "
                "X.reshape(-1, 1) is one column, X.reshape(1, -1) one row"
            )
        columns = X.T.tolist() if X.dtype.kind == "O" else X.T
        X = pl.DataFrame({f"x{index}": column for index, column in enumerate(columns)}, strict=False)
    frame = as_table(X).frame
    if not frame.width:
        raise ValueError(f"`X`: 0 feature(s) (shape=({len(frame)}, 0)) while a minimum of 1 is required.")
    return frame


def _checked_targets(network: Any, y: Any, n_rows: int) -> HostArray:
    """Return labels as they are, or values, of shape (n_samples,), checked as the network checks them."""
    if isinstance(y, pl.Series):
        y = plain_values(y).to_numpy()
    checked: HostArray = np.asarray(network._check_y(y, n_rows, HOST))
    if checked.ndim != 1:
        raise ValueError(f"`y` must have one dimension, got shape {checked.shape}")
    if network._is_classifier:
        if len(checked):  # of a process
            with errors_naming("y"):
                Classes.of(checked, sparse=False)  # raises if these are no labels
        return checked
    return checked.astype(np.float64, copy=False)


def _of_common_type(y: HostArray, processes: Processes) -> HostArray:
    """Return targets in the type that holds those of all processes."""
    dtypes = [dtype for dtype, n_rows in processes.exchange("`y`", (y.dtype, len(y))) if n_rows]
    return y.astype(np.result_type(*dtypes)) if dtypes and y.dtype.kind != "O" else y


def _checked_weights(sample_weight: Any, n_rows: int) -> HostArray:
    """Return sample weights, at least 0 and some above."""
    try:
        weights = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`sample_weight` must hold numbers, got {shown(sample_weight)}") from error
    if weights.shape != (n_rows,):
        raise ValueError(f"`sample_weight` must have the shape ({n_rows},), got {weights.shape}")
    are_some = any_part("sample weights", (weights > 0.0).any())
    if not (np.isfinite(weights).all() and (weights >= 0.0).all() and are_some):
        raise ValueError("`sample_weight` must hold finite numbers >= 0, not all zero")
    return weights


def _seed(random_state: Any, checkpoints: NumberedCheckpoints) -> int:
    """Return the seed of the first network: an integer as it is, else that resumed, or one drawn."""
    is_integer = isinstance(random_state, (int, np.integer)) and not isinstance(random_state, np.timedelta64)
    if is_integer and 0 <= random_state <= MAX_SEED:
        return int(random_state)
    if checkpoints.seed is not None:
        return checkpoints.seed
    try:
        processes = current_processes()
        if random_state is None and processes is not None:
            random_state = processes.random_state()
        return int(check_random_state(random_state).randint(MAX_SEED, dtype=np.int64))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`random_state` must be an integer from 0 to 2**32 - 1, a RandomState or None, got "
            f"{shown(random_state)}"
        ) from error


set_public_module("mlp_xp.tables", globals(), ("TabularClassifier", "TabularRegressor"))
