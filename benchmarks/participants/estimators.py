"""What both libraries' estimators are asked to do: one interface, one set of parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import ADAM_EPSILON, SEED, Workload

TOO_SMALL_TO_TRAIN = 1e-300
"""A learning rate that leaves every weight as it is: what is fitted with it predicts with the start's."""


def from_estimator(
    estimator: Callable[..., Any],
    task: Task,
    finish: Callable[[Any], Any] = lambda result: result,
    to_host: Callable[[Any], Any] = np.asarray,
) -> Prepared:
    """Prepare the whole `fit` of an estimator, or its `predict_proba`.

    `finish` waits for a GPU.
    """
    workload, (X, labels, _) = task.workload, task.data
    settings = _settings(workload)

    if workload.predicts:
        some, both = np.r_[0:2] % len(X), np.array([0, 1])
        fitted = _fit(estimator(**settings), X[some], both)

        def predict() -> Any:
            for _ in range(workload.calls):
                probability = finish(fitted.predict_proba(X))
            return probability

        return Prepared(predict, lambda probability: to_host(probability)[:, 1:])

    def repeat() -> Any:
        return finish(_fit(estimator(**settings), X, labels))

    def outcome(fitted: Any) -> Any:
        return [(to_host(weight), to_host(bias)) for weight, bias in zip(fitted.coefs_, fitted.intercepts_)]

    return Prepared(repeat, outcome)


def _settings(workload: Workload) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": workload.sizes[1:-1],
        "activation": workload.hidden,
        "solver": workload.solver,
        "alpha": 0.0,
        "batch_size": min(workload.batch, 2) if workload.predicts else workload.batch,
        "learning_rate_init": TOO_SMALL_TO_TRAIN if workload.predicts else workload.rate,
        "max_iter": workload.epochs,
        "shuffle": not workload.full_batch,
        "random_state": SEED,
        # It must not stop before its last epoch.
        "tol": 0.0,
        "n_iter_no_change": workload.epochs + 1,
        "momentum": 0.0,
        "nesterovs_momentum": False,
        "epsilon": ADAM_EPSILON,
    }


def _fit(estimator: Any, X: Any, labels: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that `max_iter` ended the training
        return estimator.fit(X, labels)
