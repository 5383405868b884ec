"""scikit-learn pipelines on tables: splitting, preprocessing, training, prediction and scores.

Preprocessing is a ColumnTransformer; scores are scikit-learn's metrics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from sklearn import metrics
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlp_xp._arrays import HostArray
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from mlp_xp.tables._columns import Columns, drop_unlabelled, match_classes, select_typed
from mlp_xp.tables._reading import DataError

MIN_ROWS_TO_HOLD_OUT = 20
"""Minimum number of rows for which a test split is made by default; chosen so that it has at least 4 rows."""

MAX_MEAN_ROUNDING_ERROR = 1e-4
"""Maximum rounding error of a target's mean, in standard deviations of the target, before float64 is used.

Undoing the scaling of the target puts its mean into the output bias. Where that dtype would round it by more
than this (a mean of 1e9 with deviation 1 in float32), parameters become float64. Chosen well below the error
of any fit.
"""

SCORE_TITLES = {
    "classification": {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "roc_auc": "ROC AUC",
        "log_loss": "log loss",
    },
    "regression": {"r2": "R2", "mae": "MAE", "rmse": "RMSE"},
}
"""Scores of each task: their keys in JSON, and their titles in printed tables. A sweep ranks by the first."""


class LabelledRows(NamedTuple):
    """Typed features of some rows of a table, with their targets and weights.

    Attributes
    ----------
    frame : polars.DataFrame
        The features, as `select_typed` returns them.
    y : ndarray of shape (n_samples,)
    sample_weight : ndarray of shape (n_samples,) or None
    """

    frame: pl.DataFrame
    y: HostArray
    sample_weight: HostArray | None = None

    def take(self, indices: HostArray) -> LabelledRows:
        """Return the rows at these indices."""
        weight = None if self.sample_weight is None else self.sample_weight[indices]
        return LabelledRows(self.frame[indices], self.y[indices], weight)


def sample_weights(frame: pl.DataFrame, name: str | None) -> HostArray | None:
    """Return the column of sample weights, checked; None if `name` is None."""
    if name is None:
        return None
    weight = select_typed(frame, [name], []).to_series()
    if weight.null_count():
        raise DataError(f"the column {name!r} of sample weights lacks {weight.null_count()} values")
    if not (weight >= 0.0).all() or not (weight > 0.0).any():
        raise DataError(f"the column {name!r} of sample weights must hold numbers >= 0, some above 0")
    return weight.to_numpy()


def labelled_rows(
    frame: pl.DataFrame,
    target: str,
    classes: HostArray | None,
    columns: tuple[Iterable[str], Iterable[str]],
    sample_weight: str | None = None,
) -> LabelledRows:
    """Return the rows of another table that have a target, with columns converted as those of training.

    Parameters
    ----------
    frame : polars.DataFrame
    target : str
    classes : ndarray of shape (n_classes,), or None for regression
        The labels trained on.
    columns : tuple of iterables of str
        The numeric and the categorical features.
    sample_weight : str, optional
        The column of weights.

    Raises
    ------
    DataError
        If no row has a target, a column is missing or of another type, or a label is unknown.
    """
    known, _ = drop_unlabelled(frame, target)
    if not len(known):
        raise DataError("there is no row to score")
    if classes is None:
        y = select_typed(known, [target], []).to_series().to_numpy()
    else:
        y = match_classes(known[target], classes)
    return LabelledRows(select_typed(known, *columns), y, sample_weights(known, sample_weight))


def hold_out(
    rows: LabelledRows, task: str, fraction: float | None, seed: int
) -> tuple[LabelledRows, LabelledRows | None]:
    """Split rows into training and test rows, stratified by class where each class has enough rows.

    Raises
    ------
    DataError
        If nothing would be left on one side.
    """
    n_rows = len(rows.y)
    if fraction is None:
        fraction = 0.2 if n_rows >= MIN_ROWS_TO_HOLD_OUT else 0.0
    if fraction == 0.0:
        return rows, None
    n_held = round(fraction * n_rows)
    if not 1 <= n_held < n_rows:
        raise DataError(f"a test fraction of {fraction:g} of {n_rows} rows leaves nothing on one side")
    labels = rows.y if task == "classification" else np.zeros(n_rows, dtype=np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    # train_test_split refuses to stratify if a class has one row, or a side fewer rows than classes.
    possible = counts.min() >= 2 and min(n_held, n_rows - n_held) >= len(classes)
    kept, held = train_test_split(
        np.arange(n_rows), test_size=n_held, stratify=labels if possible else None, random_state=seed
    )
    if task == "classification" and len(np.unique(rows.y[kept])) < len(classes):
        missing = sorted(set(classes.tolist()) - set(rows.y[kept].tolist()))
        raise DataError(f"the class {missing[0]!r} has so few rows that none is left to train on")
    return rows.take(kept), rows.take(held)


def make_preprocessor(columns: Columns) -> ColumnTransformer:
    """Return a transformer that scales numbers to mean 0 and variance 1 and one-hot encodes categories.

    It replaces missing numbers by the column's median, missing categories by the most frequent one.
    """
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    categories = make_pipeline(
        SimpleImputer(strategy="most_frequent", missing_values=None, keep_empty_features=True),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    preprocessor = ColumnTransformer(
        [
            (name, transformer, list(chosen))
            for name, transformer, chosen in (
                ("numbers", numbers, columns.numbers),
                ("categories", categories, columns.categories),
            )
            if chosen
        ],
        verbose_feature_names_out=False,
    )
    return preprocessor.set_output(transform="polars")


@dataclass
class PreparedData:
    """Training, validation and test splits of a table, and the preprocessor fitted on the first.

    Attributes
    ----------
    task : {"classification", "regression"}
    preprocessor : ColumnTransformer
        Fitted on the split "training".
    splits : dict of LabelledRows
        "training", and optionally "validation" and "test".
    X : dict of polars.DataFrame
        The preprocessed features of each split, in the dtype to train in.
    """

    task: str
    preprocessor: ColumnTransformer
    splits: dict[str, LabelledRows]
    X: dict[str, pl.DataFrame]

    def pipeline(self, estimator: Any) -> Pipeline:
        """Return the pipeline of the preprocessor and an estimator: from a table's columns to predictions."""
        return Pipeline([("columns", self.preprocessor), ("network", estimator)])


def prepare(task: str, columns: Columns, splits: dict[str, LabelledRows], dtype: str) -> PreparedData:
    """Fit the preprocessor on the training rows, and apply it to all splits."""
    preprocessor = make_preprocessor(columns).fit(splits["training"].frame)
    to = {"float32": pl.Float32, "float64": pl.Float64}[dtype]
    X = {split: preprocessor.transform(rows.frame).cast(to) for split, rows in splits.items()}
    return PreparedData(task, preprocessor, splits, X)


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
    scaler = (
        StandardScaler().fit(training.y[:, None], sample_weight=training.sample_weight) if scaled else None
    )
    targets = {split: rows.y for split, rows in data.splits.items()}
    if scaler is not None:
        targets = {split: scaler.transform(y[:, None])[:, 0] for split, y in targets.items()}
    validation, split = {}, monitored_split(estimator, data)
    if split is not None:
        validation = {"X_val": data.X[split], "y_val": targets[split]}
        validation["sample_weight_val"] = data.splits[split].sample_weight
    try:
        estimator.fit(data.X["training"], targets["training"], training.sample_weight, **validation)
    finally:
        if scaler is not None and hasattr(estimator, "coefs_"):
            _undo_target_scaling(estimator, scaler)
        estimator._forget_progress()  # drops the optimizer's state, which a saved run cannot use


def monitored_split(estimator: Any, data: PreparedData) -> str | None:
    """Return the split measured after each epoch: "validation", else "test", or None.

    The test split is never measured with early stopping, which would choose the epoch by it.
    """
    if estimator.solver == "lbfgs":
        return None
    candidates = ("validation",) if estimator.early_stopping else ("validation", "test")
    return next((split for split in candidates if split in data.splits), None)


def _undo_target_scaling(estimator: Any, scaler: StandardScaler) -> None:
    """Fold the inverse of the target's scaling into the output layer."""
    scale, mean = float(scaler.scale_[0]), float(scaler.mean_[0])
    weights, biases = list(estimator.coefs_), list(estimator.intercepts_)
    if abs(mean) / scale * np.finfo(weights[0].dtype).eps > MAX_MEAN_ROUNDING_ERROR:
        weights, biases = ([array.astype(np.float64) for array in arrays] for arrays in (weights, biases))
    weights[-1] = weights[-1] * scale
    biases[-1] = biases[-1] * scale + mean
    estimator.coefs_, estimator.intercepts_ = weights, biases


# Fitted pipelines.


def is_table_pipeline(pipeline: Any) -> bool:
    """Return whether this has exactly the steps that `PreparedData.pipeline` makes, and a trained network."""
    if type(pipeline) is not Pipeline or [name for name, _ in pipeline.steps] != ["columns", "network"]:
        return False
    preprocessor, network = pipeline[0], pipeline[1]
    if type(preprocessor) is not ColumnTransformer or type(network) not in (MLPClassifier, MLPRegressor):
        return False
    kinds = {"numbers": (SimpleImputer, StandardScaler), "categories": (SimpleImputer, OneHotEncoder)}
    # scikit-learn adds ("remainder", "drop") for columns of a table that the pipeline does not use.
    return hasattr(network, "coefs_") and all(
        type(steps) is Pipeline and tuple(type(step) for _, step in steps.steps) == kinds.get(name)
        for name, steps, _ in preprocessor.transformers_
        if (name, steps) != ("remainder", "drop")
    )


def estimator_of(pipeline: Pipeline) -> Any:
    """Return the fitted estimator of a pipeline."""
    return pipeline[-1]


def task_of(pipeline: Pipeline) -> str:
    """Return the task of a pipeline: "classification" or "regression"."""
    return "classification" if hasattr(estimator_of(pipeline), "classes_") else "regression"


def _columns_and_steps(pipeline: Pipeline, kind: str) -> tuple[list[str], Any]:
    """Return the columns of a kind ("numbers", "categories") and their preprocessing steps."""
    for name, transformer, columns in pipeline[0].transformers_:
        if name == kind:
            return list(columns), transformer
    return [], None


def columns_of(pipeline: Pipeline) -> tuple[list[str], list[str]]:
    """Return the numeric and the categorical columns that a pipeline takes."""
    return _columns_and_steps(pipeline, "numbers")[0], _columns_and_steps(pipeline, "categories")[0]


def imputed_values(pipeline: Pipeline) -> dict[str, Any]:
    """Return the value that replaces missing ones in each column."""
    filled: dict[str, Any] = {}
    for kind in ("numbers", "categories"):
        columns, steps = _columns_and_steps(pipeline, kind)
        if columns:
            filled |= dict(zip(columns, np.asarray(steps[0].statistics_).tolist()))
    return filled


def known_categories(pipeline: Pipeline) -> dict[str, list[str]]:
    """Return the categories of each categorical column in the training rows."""
    columns, steps = _columns_and_steps(pipeline, "categories")
    return {name: list(values) for name, values in zip(columns, steps[1].categories_)} if columns else {}


def select_features(pipeline: Pipeline, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns that a pipeline takes, with the types that it expects.

    Raises
    ------
    DataError
        If a column is missing, or is of another type.
    """
    return select_typed(frame, *columns_of(pipeline))


def model_outputs(model: Any, X: Any) -> HostArray:
    """Return a classifier's probabilities or a regressor's predictions, as float64 on the host."""
    outputs = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    return np.asarray(outputs, dtype=np.float64)


def make_baseline(task: str, y: HostArray) -> dict[str, Any]:
    """Return the baseline model's parameters: the mean of the training targets, or their class counts."""
    if task == "regression":
        return {"mean": float(y.mean())}
    counts = class_counts(y)
    return {"commonest": str(max(counts, key=lambda name: counts[name])), "counts": list(counts.values())}


def baseline_outputs(baseline: dict[str, Any], n_rows: int) -> HostArray:
    """Return the baseline's outputs for each row: the class frequencies in training, or the mean."""
    if "mean" in baseline:
        return np.full(n_rows, baseline["mean"])
    counts = np.asarray(baseline["counts"], dtype=np.float64)
    return np.tile(counts / counts.sum(), (n_rows, 1))


def baseline_name(baseline: dict[str, Any]) -> str:
    """Return the baseline's title in printed tables, such as "always benign"."""
    return f"always {format_number(baseline['mean']) if 'mean' in baseline else baseline['commonest']}"


def format_number(value: float) -> str:
    """Format a number with four significant digits, in scientific notation only if very small or large."""
    if not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    return f"{float(f'{value:.4g}'):,.10g}"


def score(task: str, y: HostArray, outputs: HostArray, classes: HostArray | None) -> dict[str, float | None]:
    """Return the scores of a model's outputs against the targets.

    Parameters
    ----------
    task : {"classification", "regression"}
    y : ndarray of shape (n_samples,)
    outputs : ndarray of shape (n_samples, n_classes) or (n_samples,)
        Probabilities, or predicted values.
    classes : ndarray of shape (n_classes,), or None for regression

    Returns
    -------
    dict
        Accuracy, balanced accuracy, ROC AUC (of each class against the others, averaged), log loss in
        nats; or R2, and the mean absolute and root mean squared error in the target's units. None where a
        score is not defined for these rows; all None if an output is not finite, as after a training that
        diverged.
    """
    scores: dict[str, Any]
    if not np.isfinite(outputs).all():
        return dict.fromkeys(SCORE_TITLES[task])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of undefined scores, which become None below
        if classes is None:
            scores = {
                "r2": metrics.r2_score(y, outputs) if len(y) > 1 else np.nan,
                "mae": metrics.mean_absolute_error(y, outputs),
                "rmse": metrics.root_mean_squared_error(y, outputs),
            }
        else:
            predicted = classes[np.argmax(outputs, axis=1)]
            scores = {
                "accuracy": metrics.accuracy_score(y, predicted),
                "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
                "roc_auc": _roc_auc(y, outputs, classes),
                "log_loss": metrics.log_loss(y, outputs, labels=classes),
            }
    return {name: float(value) if np.isfinite(value) else None for name, value in scores.items()}


def _roc_auc(y: HostArray, outputs: HostArray, classes: HostArray) -> float:
    """Return the ROC AUC, one class against the rest; NaN if a class is absent from `y`."""
    if len(np.unique(y)) < len(classes):
        return np.nan
    if len(classes) == 2:
        return float(metrics.roc_auc_score(y == classes[1], outputs[:, 1]))
    return float(metrics.roc_auc_score(y, outputs, multi_class="ovr", labels=classes))


def class_counts(y: HostArray) -> Mapping[Any, int]:
    """Return the number of rows of each class."""
    classes, counts = np.unique(y, return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist()))
