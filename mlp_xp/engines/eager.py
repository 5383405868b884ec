"""Epochs as a Python loop of steps: the way that works in every namespace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlp_xp.arrays import Array
from mlp_xp.engines import Epoch, State, make_step
from mlp_xp.network import Network
from mlp_xp.optimizers import Optimizer
from mlp_xp.samples import Samples


@dataclass
class EagerEngine:
    """Runs each array call as it comes; see `mlp_xp.engines.Engine`."""

    network: Network
    optimizer: Optimizer
    samples: Samples
    batch_size: int
    state: State
    losses: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step = make_step(self.network, self.optimizer, self.samples.xp)
        self.whole = self.samples.whole() if self.batch_size >= len(self.samples) else None

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs."""
        if self.whole is None:
            self._run_mini_batches(epochs)
        else:
            self._run_full_batch(epochs, *self.whole)

    def _run_full_batch(self, epochs: Sequence[Epoch], X: Array, y: Array, sample_weight: Array) -> None:
        step, append = self.step, self.losses.append
        params, state = self.state
        try:
            for rate, _ in epochs:
                params, state, loss = step(params, state, X, y, sample_weight, rate)
                append(loss)
        finally:
            self.state = params, state

    def _run_mini_batches(self, epochs: Sequence[Epoch]) -> None:
        step, n_samples = self.step, len(self.samples)
        params, state = self.state
        try:
            for rate, order in epochs:
                mean = 0.0
                for X, y, sample_weight in self.samples.batches(self.batch_size, order):
                    params, state, loss = step(params, state, X, y, sample_weight, rate)
                    mean = mean + loss * (X.shape[0] / n_samples)
                self.losses.append(mean)
        finally:
            # Also when interrupted: what is trained of an epoch is kept.
            self.state = params, state
