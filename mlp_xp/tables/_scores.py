"""Scores of predictions, and those of a baseline that does not look at the features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics

from mlp_xp._arrays import HostArray
from mlp_xp.tables._preprocessing import magnitude

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


@dataclass(frozen=True)
class Baseline:
    """The model that predicts the mean of the training targets, or their class frequencies.

    Attributes
    ----------
    mean : float or None
        None for classification.
    counts : tuple of int
        Number of training rows of each class; empty for regression.
    commonest : str
    """

    mean: float | None
    counts: tuple[int, ...] = ()
    commonest: str = ""

    def __post_init__(self) -> None:
        if (self.mean is None) != bool(self.counts) or not all(0 < count < 2**53 for count in self.counts):
            raise ValueError("a baseline must have a mean, or numbers of rows of classes")

    @classmethod
    def fit(cls, task: str, y: HostArray) -> Baseline:
        """Return the baseline of training targets."""
        if task == "regression":
            unit = magnitude(y)
            return cls(float(np.mean(y / unit)) * unit)
        counts = class_counts(y)
        return cls(None, tuple(counts.values()), str(max(counts, key=lambda name: counts[name])))

    def outputs(self, n_rows: int) -> HostArray:
        """Return the outputs for each row: the class frequencies in training, or the mean."""
        if self.mean is not None:
            return np.full(n_rows, self.mean)
        counts = np.asarray(self.counts, dtype=np.float64)
        return np.tile(counts / counts.sum(), (n_rows, 1))

    @property
    def title(self) -> str:
        """Title in printed tables, such as "always benign"."""
        return f"always {self.commonest if self.mean is None else format_number(self.mean)}"


def format_number(value: float) -> str:
    """Format a number with four significant digits, in scientific notation only if very small or large.

    Thousands are separated from 10,000 on: years and other numbers of four digits are not.
    """
    if not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.13g}" if abs(rounded) >= 10_000 else f"{rounded:.13g}"


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
            unit = magnitude(np.concatenate([y, outputs]))  # their squares may overflow
            y, outputs = y / unit, outputs / unit
            scores = {
                "r2": metrics.r2_score(y, outputs) if len(y) > 1 else np.nan,
                "mae": metrics.mean_absolute_error(y, outputs) * unit,
                "rmse": metrics.root_mean_squared_error(y, outputs) * unit,
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


def why_undefined(scores: Mapping[str, float | None], y: HostArray, classes: HostArray | None) -> str:
    """Return why some scores of rows are None; "" if none is."""
    if None not in scores.values():
        return ""
    if not any(score is not None for score in scores.values()):
        return "no scores, as outputs are infinite or NaN"
    absent = [] if classes is None else np.setdiff1d(classes, y).tolist()
    titles = SCORE_TITLES["regression" if classes is None else "classification"]
    names = " and ".join(titles[name] for name, score in scores.items() if score is None)
    if absent:
        others = f" or {len(absent) - 5} others" if len(absent) > 5 else ""
        return f"no {names}, as no row has the class {' or '.join(map(str, absent[:5]))}{others}"
    return f"no {names}, as {'there is one row' if len(y) == 1 else 'all rows are alike'}"
