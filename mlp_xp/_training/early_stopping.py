"""Early stopping: the rule that users set, and its state during a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlp_xp._parameters import Parameters, plain
from mlp_xp._training.metrics import Metric
from mlp_xp._validation import check_bool, check_integer_or_infinity, check_real, shown


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a column of the history no longer improves.

    Parameters
    ----------
    monitor : str, default="val_loss"
        "loss", "val_loss", or a metric's name, with "val_" before it for validation data.
    n_iter_no_change : int or inf, default=10
        Training stops after more than `n_iter_no_change` consecutive epochs without an improvement.
    tol : float, default=1e-4
        By how much an epoch must improve the best value to count.
    restore_best : bool, default=True
        Return the parameters of the best epoch rather than those of the last.
    greater_is_better : bool, optional
        Which way the monitored value improves; needed for a metric of the user's own only.
    divide_rate : float, optional
        Instead of stopping, divide the learning rate by this number, greater than 1, and go on; stop
        only if the rate is not above `min_rate`. With 5 it is scikit-learn's
        ``learning_rate="adaptive"``.
    min_rate : float, default=1e-6
        Used with `divide_rate`.

    Examples
    --------
    >>> from mlp_xp import EarlyStopping
    >>> EarlyStopping("val_accuracy", n_iter_no_change=5).tol
    0.0001
    """

    monitor: str = "val_loss"
    n_iter_no_change: float = field(default=10, kw_only=True)
    tol: float = field(default=1e-4, kw_only=True)
    restore_best: bool = field(default=True, kw_only=True)
    greater_is_better: bool | None = field(default=None, kw_only=True)
    divide_rate: float | None = field(default=None, kw_only=True)
    min_rate: float = field(default=1e-6, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str):
            raise TypeError(f"`monitor` must be the name of a column, got {shown(self.monitor)}")
        check_bool("restore_best", self.restore_best)
        if self.greater_is_better is not None:
            check_bool("greater_is_better", self.greater_is_better)
        check_integer_or_infinity("n_iter_no_change", self.n_iter_no_change, minimum=1)
        check_real("tol", self.tol, at_least=0.0)
        if self.divide_rate is not None:
            check_real("divide_rate", self.divide_rate, above=1.0)
        check_real("min_rate", self.min_rate, at_least=0.0)


@dataclass(eq=False, repr=False)
class EarlyStoppingState:
    """State of an early-stopping rule during a training.

    The best weights are restored by reading `best_params`: see `Progress.best_params`.

    Attributes
    ----------
    rule : EarlyStopping
    sign : float
        1 if the monitored value is to grow, -1 if it is to fall.
    best : float
        The best value so far, times `sign`.
    best_params : tuple of Layer or None
        The parameters of the best epoch, if `rule.restore_best`.
    n_no_change : int
        Epochs in a row without an improvement.
    n_divisions : int
        How often the learning rate was divided.
    event : str
        What the last epoch led to: "stopped", "divided", or "".
    """

    rule: EarlyStopping
    sign: float
    best: float = -math.inf
    best_params: Parameters | None = None
    n_no_change: int = 0
    n_divisions: int = 0
    event: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the state in dicts and tuples, so that pickles of it name no class."""
        best = None if self.best_params is None else plain(self.best_params)
        return {**vars(self), "rule": dict(vars(self.rule)), "best_params": best}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EarlyStoppingState:
        """Return the state that `to_dict` described."""
        return cls(**{**content, "rule": EarlyStopping(**content["rule"])})

    @property
    def stopped(self) -> bool:
        """Whether the rule has ended the training."""
        return self.event == "stopped"

    @property
    def epochs_before_next_event(self) -> float:
        """The number of epochs that can run before the rule may stop or divide."""
        return max(1, self.rule.n_iter_no_change + 1 - self.n_no_change)

    def rate(self, planned: float) -> float:
        """Return an epoch's learning rate: the planned one, divided as often as the rule asked for."""
        for _ in range(self.n_divisions):
            planned /= self.rule.divide_rate or 1.0
        return planned

    def update(self, record: dict[str, Any], params: Parameters, rate: float) -> bool:
        """Take an epoch into account; return whether to stop."""
        rule, score = self.rule, self.sign * record[self.rule.monitor]
        finite = math.isfinite(score)
        improved = finite and score >= self.best + rule.tol
        self.n_no_change = 0 if improved else self.n_no_change + 1
        if finite and score > self.best:
            self.best = score
            self.best_params = params if rule.restore_best else None
        self.event = ""
        if self.n_no_change > rule.n_iter_no_change:
            self.event = "stopped" if rule.divide_rate is None or rate <= rule.min_rate else "divided"
        if self.event == "divided":
            self.n_no_change = 0
            self.n_divisions += 1
        return self.stopped


def start_early_stopping(
    rule: EarlyStopping, metrics: Sequence[Metric], validation_metrics: Sequence[Metric], validation: bool
) -> EarlyStoppingState:
    """Check that the history will have the monitored column; return the state before the first epoch."""
    directions: dict[str, bool | None] = {"loss": False}
    directions |= {metric.name: metric.greater_is_better for metric in metrics}
    if validation:
        directions["val_loss"] = False
        directions |= {f"val_{metric.name}": metric.greater_is_better for metric in validation_metrics}
    if rule.monitor not in directions:
        raise ValueError(f"`early_stopping` must monitor one of {list(directions)}, got {rule.monitor!r}")
    greater = directions[rule.monitor] if rule.greater_is_better is None else rule.greater_is_better
    if greater is None:
        raise ValueError(f"`early_stopping` needs `greater_is_better` for the metric {rule.monitor!r}")
    return EarlyStoppingState(rule, 1.0 if greater else -1.0)
