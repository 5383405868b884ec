"""Pipelines from the columns of a table to predictions: preprocessing, training, predicting."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._processes import shared
from mlp_xp.tables._common import DataError, listed
from mlp_xp.tables._parts import all_values
from mlp_xp.tables._preprocessing import AS_THEY_ARE, NumberInputs, Preprocessor
from mlp_xp.tables._rows import LabelledRows
from mlp_xp.tables._schema import Schema

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

    def read(self, frame: pl.DataFrame, *, together: bool = False) -> pl.DataFrame:
        """Return the columns of a table, typed as the methods below take them.

        `together` is as of `Schema.read`.

        Raises
        ------
        DataError
            As `Schema.read`, and where truth values stand for categories with other names.
        """
        self.check_types(frame)
        return self.schema.read(frame, together=together)

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
                for block in [*frame.iter_slices(n_rows)] or [frame]
            ]
        )

    def checked_outputs(self, frame: pl.DataFrame, *, together: bool = False) -> HostArray:
        """Return `outputs`, all finite. `together` is as of `Schema.read`.

        Raises
        ------
        DataError
            If there is no row, or numbers are so large that they overflow, there or within the network.
        """
        n_rows = all_values("the rows to predict", len(frame)) if together else [len(frame)]
        if not sum(n_rows):
            raise shared(DataError("there is no row to predict"))
        self.preprocessor.check(frame, self.dtype, together=together)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of the overflow that is an error below
            outputs = self.outputs(frame)
        overflows = ~np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))
        rows = np.flatnonzero(overflows)
        counts = all_values("predictions that overflow", len(rows)) if together else [len(rows)]
        if not any(counts):
            return outputs
        first = next(rank for rank, count in enumerate(counts) if count)
        message = ""
        if len(rows):
            message = self._explain_overflow(frame, int(rows[0]), sum(n_rows[:first]), sum(counts))
        if together:
            message = all_values("predictions that overflow", message)[first]
        raise shared(DataError(message))

    def _explain_overflow(self, frame: pl.DataFrame, row: int, n_before: int, n_overflows: int) -> str:
        """Return what is said of rows whose predictions overflow: the number farthest from the training's.

        `n_before` is the number of rows of the table before this part of it.
        """
        distances = {
            name: abs((frame[name].fill_null(scaling.fill)[row] - scaling.mean) / scaling.scale)
            for name, scaling in self.preprocessor.numbers.items()
        }
        what = f"the predictions of {n_overflows} rows overflow {np.dtype(self.dtype).name}"
        name = max(distances, key=lambda name: distances[name], default="")
        if not distances or distances[name] < FAR_FROM_TRAINING:
            return f"{what}: the weights are that large, as after a training that diverged"
        return (
            f"{what}: in row {n_before + row + 1} the column {name!r} holds {frame[name][row]}, which is "
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


def prepare(
    task: str,
    schema: Schema,
    splits: dict[str, LabelledRows],
    dtype: Any,
    inputs: NumberInputs = AS_THEY_ARE,
) -> PreparedData:
    """Fit the preprocessor on the training rows, and apply it to all splits."""
    preprocessor = Preprocessor.fit(schema, splits["training"].frame, dtype, inputs)
    X = {split: preprocessor.transform(rows.frame, dtype) for split, rows in splits.items()}
    return PreparedData(task, schema, preprocessor, splits, X)


def model_outputs(model: Any, X: Any) -> HostArray:
    """Return a classifier's probabilities or a regressor's predictions, as float64 on the host."""
    outputs = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    return np.asarray(outputs, dtype=np.float64)
