"""Named settings of networks of tables: what `mlp-xp train` trains where nothing else is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlp_xp.tables._networks import MIN_ROWS_TO_VALIDATE, N_FOLDS
from mlp_xp.tables._preprocessing import AS_THEY_ARE, NumberInputs

MIN_BATCH_SIZE, MAX_BATCH_SIZE = 16, 256
"""Limits of the batch size that is determined by the number of steps in an epoch; it is a power of two."""

MAX_STEPS_PER_EPOCH = 256
"""Number of steps from which on batches are larger than `MAX_BATCH_SIZE`: from some 65,000 rows."""


def _power_of_two(number: float) -> int:
    """Return the power of two next to a number, at least 1."""
    power: int = 2 ** round(math.log2(max(1.0, number)))
    return power


@dataclass(frozen=True)
class Settings:
    """How a network of a table is trained.

    Attributes
    ----------
    parameters : mapping
        Of the estimators, where they are not the estimators' own defaults.
    n_networks : int
        Number of networks of which the result is the average.
    leaves_rows_out : bool
        Whether each network stops early by a part of the rows that it leaves out.
    inputs : NumberInputs
    steps_per_epoch : int or None
        What determines the batch size, within limits; None leaves it to the estimators.
    """

    parameters: Mapping[str, Any]
    n_networks: int
    leaves_rows_out: bool
    inputs: NumberInputs
    steps_per_epoch: int | None = None

    def all_parameters(self, given: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
        """Return the parameters of the estimators for so many rows: those given, and these for the others."""
        chosen = {**self.parameters, **given}
        if self.steps_per_epoch is None:
            return chosen
        if chosen.get("solver", "adam") != "adam":  # the decay is for its steps
            chosen["weight_decay"] = 0.0
            return {**chosen, **given}
        most = max(MAX_BATCH_SIZE, _power_of_two(n_rows / MAX_STEPS_PER_EPOCH))
        wanted = max(MIN_BATCH_SIZE, _power_of_two(n_rows / self.steps_per_epoch))
        n_trained_on = n_rows * (N_FOLDS - 1) // N_FOLDS if n_rows >= MIN_ROWS_TO_VALIDATE else n_rows
        chosen["batch_size"] = min(wanted, most, n_trained_on)
        n_steps = n_rows / given.get("batch_size", chosen["batch_size"])
        # An epoch of more steps decays the weights as much as one of so many.
        chosen["weight_decay"] = self.parameters["weight_decay"] * min(1.0, self.steps_per_epoch / n_steps)
        return {**chosen, **given}


TABULAR = Settings(
    parameters={
        "hidden_layer_sizes": (128, 128),
        "activation": "relu",
        "alpha": 0.0,
        "learning_rate_init": 0.002,
        "weight_decay": 1.0,
        "max_iter": 200,
        "early_stopping": "loss",
        "n_iter_no_change": 20,
        "tol": 1e-5,
    },
    n_networks=5,
    leaves_rows_out=True,
    inputs=NumberInputs(limit=3.0, min_intervals=8, max_intervals=32, rows_per_interval=500),
    steps_per_epoch=16,
)

SCIKIT_LEARN = Settings(parameters={}, n_networks=1, leaves_rows_out=False, inputs=AS_THEY_ARE)

SETTINGS = {"tabular": TABULAR, "scikit-learn": SCIKIT_LEARN}
"""By name: settings that do well on tables without tuning, and scikit-learn's MLP."""
