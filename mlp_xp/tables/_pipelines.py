"""Pipelines from the columns of a table to predictions: preprocessing, training, predicting."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp.tables._common import DataError, listed
from mlp_xp.tables._preprocessing import Preprocessor, mean_and_scale
from mlp_xp.tables._rows import LabelledRows
from mlp_xp.tables._schema import Schema

MAX_MEAN_ROUNDING_ERROR = 1e-4
"""Maximum rounding error of a target's mean, in standard deviations of the target, before float64 is used.

Undoing the scaling of the target puts its mean into the output bias. Where that dtype would round it by more
than this (a mean of 1e9 with deviation 1 in float32), parameters become float64. Chosen well below the error
of any fit.
"""

MAX_EXPONENT_IN_FLOAT32 = 60
"""Maximum absolute value of the binary exponent of a target's scale before float64 is used, as above.

Half of what float32 has, because the output layer's weights are multiplied by the scale.
"""

FAR_FROM_TRAINING = 1e3
"""Number of standard deviations from which on a number is blamed for predictions that overflow."""

N_BYTES_OF_A_BLOCK = 2**26
"""Size of the inputs that are encoded at once to predict the rows of a table."""


@dataclass(frozen=True)
class Pipeline:
    """From the columns of a table to predictions; an estimator of typed columns for plots and metrics.

    Attributes
    ----------
    schema : Schema
    preprocessor : Preprocessor
    estimator : MLPClassifier or MLPRegressor
        The fitted network.
    """

    schema: Schema
    preprocessor: Preprocessor
    estimator: Any

    @property
    def classes_(self) -> HostArray:
        """The class labels, in the order of the probabilities."""
        return np.asarray(self.estimator.classes_)

    @property
    def classes(self) -> HostArray | None:
        """The class labels; None for regression."""
        return self.classes_ if self.task == "classification" else None

    @property
    def task(self) -> str:
        """The task: "classification" or "regression"."""
        return "classification" if hasattr(self.estimator, "classes_") else "regression"

    @property
    def dtype(self) -> Any:
        """The dtype of the network's inputs."""
        return self.estimator.coefs_[0].dtype

    def __sklearn_tags__(self) -> Any:
        return self.estimator.__sklearn_tags__()

    def read(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the columns of a table, typed as the methods below take them.

        Raises
        ------
        DataError
            As `Schema.read`, and where truth values stand for categories with other names.
        """
        self.check_types(frame)
        return self.schema.read(frame)

    def check_types(self, frame: pl.DataFrame) -> None:
        """Raise a DataError where truth values stand for categories, such as yes and no, with other names."""
        types = frame.schema
        for name, encoding in self.preprocessor.categories.items():
            if types.get(name) == pl.Boolean and {"true", "false"}.isdisjoint(encoding.values):
                raise DataError(
                    f"the column {name!r} must hold names as in training, such as "
                    f"{listed(encoding.values, 3)}, got true and false"
                )

    def predict(self, frame: pl.DataFrame) -> HostArray:
        """Return the class or the value of each row of typed columns."""
        outputs = self.outputs(frame)
        return outputs if self.classes is None else self.classes[np.argmax(outputs, axis=1)]

    def predict_proba(self, frame: pl.DataFrame) -> HostArray:
        """Return the probability of each class for each row of typed columns."""
        return self.outputs(frame)

    def outputs(self, frame: pl.DataFrame) -> HostArray:
        """Return the probabilities or values for typed columns, encoded block by block, as float64."""
        n_bytes = max(1, self.preprocessor.width) * np.dtype(self.dtype).itemsize
        n_rows = max(1, N_BYTES_OF_A_BLOCK // n_bytes)
        return np.concatenate(
            [
                model_outputs(self.estimator, self.preprocessor.transform(block, self.dtype))
                for block in frame.iter_slices(n_rows)
            ]
        )

    def checked_outputs(self, frame: pl.DataFrame) -> HostArray:
        """Return `outputs`, all finite.

        Raises
        ------
        DataError
            If there is no row, or numbers are so large that they overflow, there or within the network.
        """
        if not len(frame):
            raise DataError("there is no row to predict")
        self.preprocessor.check(frame, self.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of the overflow that is an error below
            outputs = self.outputs(frame)
        overflows = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
        if overflows.any():
            raise DataError(self._explain_overflow(frame, np.flatnonzero(overflows)))
        return outputs

    def _explain_overflow(self, frame: pl.DataFrame, rows: HostArray) -> str:
        """Return what is said of rows whose predictions overflow: the number farthest from the training's."""
        row = int(rows[0])
        distances = {
            name: abs((frame[name].fill_null(scaling.fill)[row] - scaling.mean) / scaling.scale)
            for name, scaling in self.preprocessor.numbers.items()
        }
        what = f"the predictions of {len(rows)} rows overflow {np.dtype(self.dtype).name}"
        name = max(distances, key=lambda name: distances[name], default="")
        if not distances or distances[name] < FAR_FROM_TRAINING:
            return f"{what}: the weights are that large, as after a training that diverged"
        return (
            f"{what}: in row {row + 1} the column {name!r} holds {frame[name][row]}, which is "
            f"{distances[name]:.3g} standard deviations from the mean of the training"
        )


@dataclass
class PreparedData:
    """Training, validation and test splits of a table, and the preprocessor fitted on the first.

    Attributes
    ----------
    task : {"classification", "regression"}
    schema : Schema
    preprocessor : Preprocessor
        Fitted on the split "training".
    splits : dict of LabelledRows
        "training", and optionally "validation" and "test".
    X : dict of ndarray of shape (n_samples, width)
        The network's inputs of each split, in the dtype to train in.
    """

    task: str
    schema: Schema
    preprocessor: Preprocessor
    splits: dict[str, LabelledRows]
    X: dict[str, HostArray]

    def pipeline(self, estimator: Any) -> Pipeline:
        """Return the pipeline of the preprocessor and an estimator: from a table's columns to predictions."""
        return Pipeline(self.schema, self.preprocessor, estimator)


def prepare(task: str, schema: Schema, splits: dict[str, LabelledRows], dtype: Any) -> PreparedData:
    """Fit the preprocessor on the training rows, and apply it to all splits."""
    preprocessor = Preprocessor.fit(schema, splits["training"].frame, dtype)
    X = {split: preprocessor.transform(rows.frame, dtype) for split, rows in splits.items()}
    return PreparedData(task, schema, preprocessor, splits, X)


def fit(estimator: Any, data: PreparedData) -> None:
    """Train an estimator on the training split; its predictions are in the target's own units.

    For the squared error it is trained on the target scaled to mean 0 and variance 1.

    Raises
    ------
    ValueError, TypeError
        If a parameter or the data are wrong, before any training.
    Exception
        If training failed; the estimator keeps the parameters trained until then.
    """
    scaled = data.task == "regression" and estimator.loss == "squared_error"
    training = data.splits["training"]
    mean, scale = mean_and_scale(training.y, training.sample_weight) if scaled else (0.0, 1.0)
    targets = {split: rows.y for split, rows in data.splits.items()}
    if scaled:
        targets = {split: (y - mean) / scale for split, y in targets.items()}
    validation: dict[str, Any] = {}
    split = monitored_split(estimator, data)
    if split is not None:
        validation = {"X_val": data.X[split], "y_val": targets[split]}
        validation["sample_weight_val"] = data.splits[split].sample_weight
    try:
        estimator.fit(data.X["training"], targets["training"], training.sample_weight, **validation)
    finally:
        if scaled and hasattr(estimator, "coefs_"):
            _undo_target_scaling(estimator, mean, scale)
        estimator._forget_progress()  # drops the optimizer's state, which a saved run cannot use


def monitored_split(estimator: Any, data: PreparedData) -> str | None:
    """Return the split measured after each epoch: "validation", else "test", or None.

    The test split is never measured with early stopping, which would choose the epoch by it.
    """
    if estimator.solver == "lbfgs":
        return None
    candidates = ("validation",) if estimator.early_stopping else ("validation", "test")
    return next((split for split in candidates if split in data.splits), None)


def _undo_target_scaling(estimator: Any, mean: float, scale: float) -> None:
    """Fold the inverse of the target's scaling into the output layer, in float64 where that is needed."""
    weights, biases = list(estimator.coefs_), list(estimator.intercepts_)
    is_rounded = abs(mean) / scale * np.finfo(weights[0].dtype).eps > MAX_MEAN_ROUNDING_ERROR
    if is_rounded or abs(math.frexp(scale)[1]) > MAX_EXPONENT_IN_FLOAT32:
        weights, biases = ([array.astype(np.float64) for array in arrays] for arrays in (weights, biases))
    weights[-1] = weights[-1] * scale
    biases[-1] = biases[-1] * scale + mean
    estimator.coefs_, estimator.intercepts_ = weights, biases


def model_outputs(model: Any, X: Any) -> HostArray:
    """Return a classifier's probabilities or a regressor's predictions, as float64 on the host."""
    outputs = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    return np.asarray(outputs, dtype=np.float64)
