"""What both libraries' estimators are asked to do: one interface, one set of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.participants import Prepared, Ran, Task
from benchmarks.participants.engines import Done, engine_of, watched
from benchmarks.workloads import SEED, Workload

TOO_SMALL_TO_TRAIN = 1e-300
"""A learning rate that leaves every weight as it is: what is fitted with it predicts with the start's."""


def from_estimator(
    estimator: Callable[..., Any],
    task: Task,
    finish: Callable[[Any], Any] = lambda result: result,
    to_host: Callable[[Any], Any] = np.asarray,
    more: dict[str, Any] | None = None,
) -> Prepared:
    """Prepare the whole `fit` of an estimator, or its `predict_proba`.

    `finish` waits for a GPU; `more` are parameters that only one library knows.
    """
    workload, (X, labels, _) = task.workload, task.data
    settings = {**_settings(workload), **(more or {})}

    if workload.predicts:
        some, both = np.r_[0:2] % len(X), np.array([0, 1])
        fitted = watched(lambda: estimator(**settings).fit(X[some], both)).result

        def predict() -> Any:
            for _ in range(workload.calls):
                probability = finish(fitted.predict_proba(X))
            return probability

        return Prepared(predict, lambda probability: to_host(probability)[:, 1:])

    def repeat() -> Done:
        return watched(lambda: finish(estimator(**settings).fit(X, labels)))

    def outcome(done: Done) -> Any:
        fitted = done.result
        return [(to_host(weight), to_host(bias)) for weight, bias in zip(fitted.coefs_, fitted.intercepts_)]

    def ran(done: Done) -> Ran:
        return Ran(engine_of(getattr(done.result, "history_", None)), done.why)

    return Prepared(repeat, outcome, ran)


def _settings(workload: Workload) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": workload.sizes[1:-1],
        "activation": workload.activation,
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
        "epsilon": workload.epsilon,
    }
