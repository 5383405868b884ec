"""Timing an estimator, ours or scikit-learn's: same interface, same parameters, or its own defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.participants import EngineReport, Prepared, Task
from benchmarks.participants.engines import Done, catch_fallback, engine_of
from benchmarks.workloads import SEED, Workload

NEGLIGIBLE_LEARNING_RATE = 1e-300
"""A learning rate that leaves all weights unchanged, so that `fit` keeps the start weights."""


def from_estimator(
    estimator: Callable[..., Any],
    task: Task,
    finish: Callable[[Any], Any] = lambda result: result,
    to_host: Callable[[Any], Any] = np.asarray,
    more: dict[str, Any] | None = None,
) -> Prepared:
    """Prepare an estimator's `fit`, or its `partial_fit`, from its construction on, or its `predict_proba`.

    `finish` waits for a GPU; `more` are parameters that only one of the libraries has.
    """
    workload, (X, labels, _) = task.workload, task.data
    settings = {**(_defaults if workload.defaults else _settings)(workload), **(more or {})}

    if workload.predicts:
        some, both = np.r_[0:2] % len(X), np.array([0, 1])
        fitted = catch_fallback(lambda: estimator(**settings).fit(X[some], both)).result

        def predict() -> Any:
            for _ in range(workload.calls):
                probability = finish(fitted.predict_proba(X))
            return probability

        return Prepared(predict, lambda probability: to_host(probability)[:, 1:])

    def fit() -> Any:
        return finish(estimator(**settings).fit(X, labels))

    def fit_stream() -> Any:
        model, classes = estimator(**settings), {} if workload.regression else {"classes": np.unique(labels)}
        for some in workload.batches:
            finish(model.partial_fit(X[some], labels[some], **classes))
            classes = {}  # needed in the first call alone
        return model

    def repeat() -> Done:
        return catch_fallback(fit_stream if workload.stream else fit)

    def outcome(done: Done) -> Any:
        fitted = done.result
        return [(to_host(weight), to_host(bias)) for weight, bias in zip(fitted.coefs_, fitted.intercepts_)]

    def ran(done: Done) -> EngineReport:
        return EngineReport(engine_of(getattr(done.result, "history_", None)), done.why)

    return Prepared(repeat, outcome, ran, lambda done: done.result.loss_curve_)


def _defaults(workload: Workload) -> dict[str, Any]:
    return {**workload.chosen, "random_state": SEED}


def _settings(workload: Workload) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": workload.sizes[1:-1],
        "activation": workload.activation,
        "solver": workload.solver,
        "alpha": 0.0,
        "batch_size": min(workload.batch, 2) if workload.predicts else workload.batch,
        "learning_rate_init": NEGLIGIBLE_LEARNING_RATE if workload.predicts else workload.rate,
        "max_iter": workload.epochs,
        "shuffle": not workload.full_batch,
        "random_state": SEED,
        # These two keep training from stopping before its last epoch.
        "tol": 0.0,
        "n_iter_no_change": workload.epochs + 1,
        "momentum": 0.0,
        "nesterovs_momentum": False,
        "epsilon": workload.epsilon,
    }
