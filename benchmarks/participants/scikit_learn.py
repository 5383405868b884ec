"""scikit-learn's `MLPClassifier`."""

from __future__ import annotations

from sklearn.neural_network import MLPClassifier

from benchmarks.participants import Prepared, Task
from benchmarks.participants.estimators import from_estimator


def fit(task: Task) -> Prepared:
    """Prepare scikit-learn's `fit`, or its `predict_proba`."""
    return from_estimator(MLPClassifier, task)
