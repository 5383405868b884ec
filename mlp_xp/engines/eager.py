"""Epochs as a Python loop of steps: the way that works in every namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import array_api_compat

from mlp_xp.arrays import Array, Namespace, row_slices
from mlp_xp.engines import Batch, Epoch, State, make_step
from mlp_xp.network import Network
from mlp_xp.optimizers import Optimizer


@dataclass
class EagerEngine:
    """Runs each array call as it comes; see `mlp_xp.engines.Engine`."""

    network: Network
    optimizer: Optimizer
    xp: Namespace
    state: State
    data: Batch
    batch_size: int
    losses: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step = make_step(self.network, self.optimizer, self.xp)

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs."""
        if self.batch_size < self.data.X.shape[0]:
            self._run_mini_batches(epochs)
        else:
            self._run_full_batch(epochs)

    def _run_full_batch(self, epochs: Sequence[Epoch]) -> None:
        X, y, sample_weight = self.data
        step, append = self.step, self.losses.append
        params, state = self.state
        try:
            for rate, _ in epochs:
                params, state, loss = step(params, state, X, y, sample_weight, rate)
                append(loss)
        finally:
            self.state = params, state

    def _run_mini_batches(self, epochs: Sequence[Epoch]) -> None:
        step, n_samples = self.step, self.data.X.shape[0]
        params, state = self.state
        try:
            for rate, order in epochs:
                mean = 0.0
                for X, y, sample_weight in self._batches(order):
                    params, state, loss = step(params, state, X, y, sample_weight, rate)
                    mean = mean + loss * (X.shape[0] / n_samples)
                self.losses.append(mean)
        finally:
            # Also when interrupted: what is trained of an epoch is kept.
            self.state = params, state

    def _batches(self, order: Any) -> Iterator[Batch]:
        X, y, sample_weight = self.data
        if order is not None:
            # On the host's clock one copy of the order an epoch is cheaper than one a batch.
            order = self.xp.asarray(order, device=array_api_compat.device(X))
        for rows in row_slices(X.shape[0], self.batch_size):
            if order is None:
                weight = None if sample_weight is None else sample_weight[rows]
                yield Batch(X[rows, :], y[rows, :], weight)
            else:
                chosen = order[rows]
                weight = None if sample_weight is None else self.xp.take(sample_weight, chosen, axis=0)
                yield Batch(self.xp.take(X, chosen, axis=0), self.xp.take(y, chosen, axis=0), weight)
