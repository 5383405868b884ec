"""scikit-learn's `MLPClassifier` and `MLPRegressor`."""

from __future__ import annotations

from sklearn import neural_network

from benchmarks.participants import Prepared, Task
from benchmarks.participants.estimators import from_estimator


def fit(task: Task) -> Prepared:
    """Prepare scikit-learn's `fit`, a stream of its `partial_fit`, or its `predict_proba`."""
    return from_estimator(getattr(neural_network, task.workload.estimator), task)
