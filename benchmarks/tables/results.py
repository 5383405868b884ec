"""Results on tables: trainings, their errors on the rows held out, and the statistics of a table's seeds."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tables.data import Rows, Table
from benchmarks.tables.learners import LEARNERS
from mlp_xp._arrays import HostArray
from mlp_xp._messages import first_line


class Fit(NamedTuple):
    """One training."""

    learner: str
    seed: int
    error: float | None
    """On the rows held out: log loss, or 1 - R2; None if there is a problem."""
    seconds: float | None
    """Of the training, preprocessing included."""
    problem: str = ""


def train(learner: str, task: str, seed: int, training: Rows, held: Rows) -> Fit:
    """Train a participant and return its error on the rows held out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those of trainings that end at max_iter
            start = time.perf_counter()
            model = LEARNERS[learner].train(task, seed, training)
            seconds = time.perf_counter() - start
            error = error_of(task, training.y, held.y, model(held))
    except Exception as problem:
        return Fit(learner, seed, None, None, f"{type(problem).__name__}: {first_line(problem)}")
    return Fit(learner, seed, error, seconds)


def error_of(task: str, y_train: HostArray, y: HostArray, outputs: HostArray) -> float:
    """Return the log loss in nats of probabilities, or 1 - R2 of values.

    Raises
    ------
    ValueError
        If it is not a finite number.
    """
    from sklearn.metrics import log_loss, r2_score

    # Probabilities of zero count as the smallest positive number of their dtype: the same for all.
    outputs = np.asarray(outputs, dtype=np.float64)
    if task == "regression":
        error = 1.0 - r2_score(y, outputs)
    else:
        error = log_loss(y, outputs / outputs.sum(axis=1, keepdims=True), labels=np.unique(y_train))
    if not math.isfinite(error):
        raise ValueError(f"its error is {error}")
    return float(error)


@dataclass
class TableResult:
    """The trainings of all participants on one table."""

    name: str
    target: str
    task: str
    n_rows: int
    n_features: int
    """The columns that the table's schema keeps."""
    learners: Sequence[str]
    fits: list[Fit] = field(default_factory=list)

    @classmethod
    def of(cls, table: Table, learners: Sequence[str]) -> TableResult:
        """Return a result without trainings."""
        return cls(
            table.name, table.target, table.task, len(table.rows.y), table.rows.typed.width, list(learners)
        )

    def seeds(self) -> list[int]:
        """Return the seeds that all participants were trained with: not that of an interruption."""
        seeds = dict.fromkeys(fit.seed for fit in self.fits)
        return [
            seed for seed in seeds if {*self.learners} <= {it.learner for it in self.fits if it.seed == seed}
        ]

    def errors(self, learner: str) -> list[float] | None:
        """Return a participant's errors by seed; None if a training failed, or none is there."""
        errors = [fit.error for fit in self._fits_of(learner)]
        return [error for error in errors if error is not None] if errors and None not in errors else None

    def mean(self, learner: str) -> float | None:
        """Return the mean of a participant's errors."""
        errors = self.errors(learner)
        return statistics.fmean(errors) if errors else None

    def spread(self, learner: str) -> float | None:
        """Return the standard deviation of a participant's errors; None with a single seed."""
        errors = self.errors(learner) or []
        return statistics.stdev(errors) if len(errors) > 1 else None

    def seconds(self, learner: str) -> float | None:
        """Return the median seconds of a participant's trainings."""
        seconds = [fit.seconds for fit in self._fits_of(learner) if fit.seconds is not None]
        return statistics.median(seconds) if seconds else None

    def problem(self, learner: str) -> str:
        """Return why a participant has no figures, by its first training that failed; "" if none did."""
        return next((fit.problem for fit in self._fits_of(learner) if fit.problem), "")

    def as_json(self) -> dict[str, Any]:
        """Return the figures and the trainings."""
        return {
            "table": self.name,
            "target": self.target,
            "task": self.task,
            "rows": self.n_rows,
            "features": self.n_features,
            "means": {name: self.mean(name) for name in self.learners},
            "spreads": {name: self.spread(name) for name in self.learners},
            "seconds": {name: self.seconds(name) for name in self.learners},
            "fits": [fit._asdict() for fit in self.fits],
        }

    def _fits_of(self, learner: str) -> list[Fit]:
        seeds = self.seeds()
        return [fit for fit in self.fits if fit.learner == learner and fit.seed in seeds]
