"""From the columns of a table to a network and back: preparing, training, predicting, scoring.

scikit-learn's ColumnTransformer does the preparing, and its metrics the scoring.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
from mlp_xp.tables._columns import Columns, select
from mlp_xp.tables._reading import DataError

FEWEST_ROWS_TO_HOLD_OUT = 20
"""With fewer rows than these nothing is held out, unless the user asks for it."""

LARGEST_ROUNDING = 1e-4
"""In standard deviations of a target: where its mean would be rounded by more, weights become float64."""

SCORES = {
    "classification": {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "roc_auc": "ROC AUC",
        "log_loss": "log loss",
    },
    "regression": {"r2": "R2", "mae": "MAE", "rmse": "RMSE"},
}
"""What is scored, by task, and how people call it."""


class Part(NamedTuple):
    """Rows of a table for one use, checked and typed.

    Attributes
    ----------
    frame : polars.DataFrame
        The features, as `select` returns them.
    y : ndarray of shape (n_samples,)
    sample_weight : ndarray of shape (n_samples,) or None
    """

    frame: pl.DataFrame
    y: HostArray
    sample_weight: HostArray | None = None

    def rows(self, chosen: HostArray) -> Part:
        """Return these rows."""
        weight = None if self.sample_weight is None else self.sample_weight[chosen]
        return Part(self.frame[chosen], self.y[chosen], weight)


def hold_out(part: Part, task: str, fraction: float | None, seed: int) -> tuple[Part, Part | None]:
    """Split rows off for the test, each class in its share where there are rows enough for that.

    Raises
    ------
    DataError
        If nothing would be left on one side.
    """
    n_rows = len(part.y)
    if fraction is None:
        fraction = 0.2 if n_rows >= FEWEST_ROWS_TO_HOLD_OUT else 0.0
    if fraction == 0.0:
        return part, None
    n_held = round(fraction * n_rows)
    if not 1 <= n_held < n_rows:
        raise DataError(f"a test fraction of {fraction:g} of {n_rows} rows leaves nothing on one side")
    labels = part.y if task == "classification" else np.zeros(n_rows, dtype=np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    possible = counts.min() >= 2 and min(n_held, n_rows - n_held) >= len(classes)
    kept, held = train_test_split(
        np.arange(n_rows), test_size=n_held, stratify=labels if possible else None, random_state=seed
    )
    if task == "classification" and len(np.unique(part.y[kept])) < len(classes):
        missing = sorted(set(classes.tolist()) - set(part.y[kept].tolist()))
        raise DataError(f"the class {missing[0]!r} has so few rows that none is left to train on")
    return part.rows(kept), part.rows(held)


def make_preprocessor(columns: Columns) -> ColumnTransformer:
    """Return what makes numbers of mean 0 and variance 1, and one-hot codes, of typed columns.

    Missing numbers become the column's median, missing categories its most frequent one.
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
class Prepared:
    """Parts of a table as the network takes them, by what they are for.

    Attributes
    ----------
    task : {"classification", "regression"}
    preprocessor : ColumnTransformer
        Fitted on the part "training".
    parts : dict of Part
        "training", and where there are such "validation" and "test".
    X : dict of polars.DataFrame
        What the preprocessor makes of them, in the dtype to train in.
    """

    task: str
    preprocessor: ColumnTransformer
    parts: dict[str, Part]
    X: dict[str, pl.DataFrame]

    def pipeline(self, estimator: Any) -> Pipeline:
        """Return the whole way from a table's columns to predictions, for a fitted estimator."""
        return Pipeline([("columns", self.preprocessor), ("network", estimator)])


def prepare(task: str, columns: Columns, parts: dict[str, Part], dtype: str) -> Prepared:
    """Fit the preprocessor on the rows to train on, and apply it to all."""
    preprocessor = make_preprocessor(columns).fit(parts["training"].frame)
    to = {"float32": pl.Float32, "float64": pl.Float64}[dtype]
    X = {use: preprocessor.transform(part.frame).cast(to) for use, part in parts.items()}
    return Prepared(task, preprocessor, parts, X)


def fit(estimator: Any, data: Prepared) -> None:
    """Train an estimator; a value is predicted in the target's own units, whatever it was trained in.

    Raises
    ------
    ValueError, TypeError
        Before any training.
    TrainingError
        If it went wrong on the way; the estimator keeps what was trained.
    """
    parts = data.parts
    scaled = data.task == "regression" and estimator.loss == "squared_error"
    training = parts["training"]
    scaler = (
        StandardScaler().fit(training.y[:, None], sample_weight=training.sample_weight) if scaled else None
    )
    targets = {use: part.y for use, part in parts.items()}
    if scaler is not None:
        targets = {use: scaler.transform(y[:, None])[:, 0] for use, y in targets.items()}
    watched, use = {}, watched_part(estimator, data)
    if use is not None:
        watched = {"X_val": data.X[use], "y_val": targets[use]}
        watched["sample_weight_val"] = parts[use].sample_weight
    try:
        estimator.fit(data.X["training"], targets["training"], training.sample_weight, **watched)
    finally:
        if scaler is not None and hasattr(estimator, "coefs_"):
            _unscale(estimator, scaler)
        estimator._forget_progress()  # the optimizer's state is of no use without the rows


def watched_part(estimator: Any, data: Prepared) -> str | None:
    """Return which rows are measured after each epoch: those for validation, else those of the test.

    The test's rows decide nothing: where training stops early, it asks others.
    """
    if estimator.solver == "lbfgs":
        return None
    uses = ("validation",) if estimator.early_stopping else ("validation", "test")
    return next((use for use in uses if use in data.parts), None)


def _unscale(estimator: Any, scaler: StandardScaler) -> None:
    """Let the output layer undo the scaling of the target."""
    scale, mean = float(scaler.scale_[0]), float(scaler.mean_[0])
    weights, biases = list(estimator.coefs_), list(estimator.intercepts_)
    if abs(mean) / scale * np.finfo(weights[0].dtype).eps > LARGEST_ROUNDING:
        weights, biases = ([array.astype(np.float64) for array in arrays] for arrays in (weights, biases))
    weights[-1] = weights[-1] * scale
    biases[-1] = biases[-1] * scale + mean
    estimator.coefs_, estimator.intercepts_ = weights, biases


# What a fitted pipeline knows.


def is_ours(pipeline: Any) -> bool:
    """Whether this is what `Prepared.pipeline` makes of a trained network, and nothing else."""
    if type(pipeline) is not Pipeline or [name for name, _ in pipeline.steps] != ["columns", "network"]:
        return False
    preprocessor, network = pipeline[0], pipeline[1]
    if type(preprocessor) is not ColumnTransformer or type(network) not in (MLPClassifier, MLPRegressor):
        return False
    kinds = {"numbers": (SimpleImputer, StandardScaler), "categories": (SimpleImputer, OneHotEncoder)}
    return hasattr(network, "coefs_") and all(
        type(steps) is Pipeline and tuple(type(step) for _, step in steps.steps) == kinds.get(name)
        for name, steps, _ in preprocessor.transformers_
        if (name, steps) != ("remainder", "drop")
    )


def network_of(pipeline: Pipeline) -> Any:
    """Return the fitted estimator of a pipeline."""
    return pipeline[-1]


def task_of(pipeline: Pipeline) -> str:
    """Return what a pipeline does: "classification" or "regression"."""
    return "classification" if hasattr(network_of(pipeline), "classes_") else "regression"


def _steps(pipeline: Pipeline, kind: str) -> tuple[list[str], Any]:
    """Return the columns of a kind and what is done to them."""
    for name, transformer, columns in pipeline[0].transformers_:
        if name == kind:
            return list(columns), transformer
    return [], None


def columns_of(pipeline: Pipeline) -> tuple[list[str], list[str]]:
    """Return the columns of numbers and those of categories that a pipeline takes."""
    return _steps(pipeline, "numbers")[0], _steps(pipeline, "categories")[0]


def fillings(pipeline: Pipeline) -> dict[str, Any]:
    """Return what a missing value in each column is replaced by."""
    filled: dict[str, Any] = {}
    for kind in ("numbers", "categories"):
        columns, steps = _steps(pipeline, kind)
        if columns:
            filled |= dict(zip(columns, np.asarray(steps[0].statistics_).tolist()))
    return filled


def known_categories(pipeline: Pipeline) -> dict[str, list[str]]:
    """Return the values that each column of categories had in training."""
    columns, steps = _steps(pipeline, "categories")
    return {name: list(values) for name, values in zip(columns, steps[1].categories_)} if columns else {}


def typed(pipeline: Pipeline, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns that a pipeline takes, typed as it takes them.

    Raises
    ------
    DataError
        If one is missing or holds what it cannot.
    """
    numbers, categories = columns_of(pipeline)
    return select(frame, numbers, categories)


def outputs(model: Any, X: Any) -> HostArray:
    """Return a model's probabilities of the classes, or values, on the host."""
    found = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    return np.asarray(found, dtype=np.float64)


def make_baseline(task: str, y: HostArray) -> dict[str, Any]:
    """Return what a trivial model knows of the training rows: the mean, or the classes and their counts."""
    if task == "regression":
        return {"mean": float(y.mean())}
    counts = class_counts(y)
    return {"commonest": str(max(counts, key=lambda name: counts[name])), "counts": list(counts.values())}


def baseline_outputs(baseline: dict[str, Any], n_rows: int) -> HostArray:
    """Return what a trivial model gives for each row: the classes' shares in training, or the mean."""
    if "mean" in baseline:
        return np.full(n_rows, baseline["mean"])
    counts = np.asarray(baseline["counts"], dtype=np.float64)
    return np.tile(counts / counts.sum(), (n_rows, 1))


def baseline_name(baseline: dict[str, Any]) -> str:
    """Name a trivial model by what it answers."""
    return f"always {rounded(baseline['mean']) if 'mean' in baseline else baseline['commonest']}"


def rounded(value: float) -> str:
    """Write a number for people: four digits that tell, and powers of ten only where they must be."""
    if not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    return f"{float(f'{value:.4g}'):,.10g}"


def score(task: str, y: HostArray, found: HostArray, classes: HostArray | None) -> dict[str, float | None]:
    """Score outputs against what is true; None where a score is not defined for these rows.

    Parameters
    ----------
    task : {"classification", "regression"}
    y : ndarray of shape (n_samples,)
    found : ndarray of shape (n_samples, n_classes) or (n_samples,)
        Probabilities, or values.
    classes : ndarray of shape (n_classes,), or None for regression

    Returns
    -------
    dict
        Accuracy, balanced accuracy, ROC AUC (of each class against the others, averaged), log loss in
        nats; or R2, and the mean absolute and root mean squared error in the target's units. All None if an
        output is not finite, as after a training that diverged.
    """
    scores: dict[str, Any]
    if not np.isfinite(found).all():
        return dict.fromkeys(SCORES[task])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores that are not defined, which are None below
        if classes is None:
            scores = {
                "r2": metrics.r2_score(y, found) if len(y) > 1 else np.nan,
                "mae": metrics.mean_absolute_error(y, found),
                "rmse": metrics.root_mean_squared_error(y, found),
            }
        else:
            named = classes[np.argmax(found, axis=1)]
            scores = {
                "accuracy": metrics.accuracy_score(y, named),
                "balanced_accuracy": metrics.balanced_accuracy_score(y, named),
                "roc_auc": _roc_auc(y, found, classes),
                "log_loss": metrics.log_loss(y, found, labels=classes),
            }
    return {name: float(value) if np.isfinite(value) else None for name, value in scores.items()}


def _roc_auc(y: HostArray, found: HostArray, classes: HostArray) -> float:
    if len(np.unique(y)) < len(classes):
        return np.nan
    if len(classes) == 2:
        return float(metrics.roc_auc_score(y == classes[1], found[:, 1]))
    return float(metrics.roc_auc_score(y, found, multi_class="ovr", labels=classes))


def class_counts(y: HostArray) -> Mapping[Any, int]:
    """Return how many rows each class has."""
    classes, counts = np.unique(y, return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist()))
