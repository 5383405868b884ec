"""The estimators' rule for ending a fit, for peers that have none: as in scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.workloads import DEFAULTS, Data, Workload


class Stopping:
    """Ends a fit when its loss, or the score of the rows held out, no longer improves; other workloads never.

    Parameters
    ----------
    workload : Workload
    held_out : Data
        The rows that are scored in early stopping: by their accuracy, or by R2.
    errors : callable
        Return the number of these rows whose class is wrong, or the sum of their squared errors.
    copy : callable
        Return a copy of the parameters, to keep the best.

    Attributes
    ----------
    best_params
        What `copy` returned after the epoch with the best score; None without early stopping.
    """

    def __init__(
        self, workload: Workload, held_out: Data, errors: Callable[[], Any], copy: Callable[[], Any]
    ) -> None:
        self.workload, self.errors, self.copy = workload, errors, copy
        self.most_errors = float(len(held_out.y))
        if workload.early_stopping and workload.regression:
            self.most_errors = float(((held_out.y - held_out.y.mean()) ** 2).sum())
        self.best, self.n_no_change = -math.inf, 0
        self.best_params: Any = None

    def ends(self, loss: Any) -> bool:
        """Take an epoch's loss, a number or an array of one, into account; return whether it is the last."""
        if self.workload.kind != "fit":
            return False
        early = self.workload.early_stopping
        value = (self.most_errors - float(self.errors())) / self.most_errors if early else -float(loss)
        self.n_no_change = self.n_no_change + 1 if value < self.best + DEFAULTS.tol else 0
        if value > self.best:
            self.best = value
            self.best_params = self.copy() if early else None
        return self.n_no_change > DEFAULTS.n_iter_no_change
