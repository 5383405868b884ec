"""The eager engine: epochs as a Python loop of steps, which works in every namespace."""

from __future__ import annotations

from collections.abc import Sequence

from mlp_xp._arrays import Array
from mlp_xp._engines.base import EpochSettings, State, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, copy_tree
from mlp_xp._samples import Samples


class EagerEngine:
    """Runs the array calls of each step one by one; see `mlp_xp._engines.Engine`."""

    name = "eager"

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.losses: list[Array] = []
        self.state = state
        self.step = make_step(network, optimizer, samples.xp)
        # Where all samples are one batch, it is cast and put in order once, not in each epoch.
        self.full_batch = samples.whole() if batch_size >= len(samples) else None

    @property
    def state(self) -> State:
        """The current state, in arrays that later steps write in."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        # A copy, because steps update arrays in place, and the caller keeps the ones given.
        self._state: State = copy_tree(self.samples.place.xp, state)

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        return all_finite(self.samples.place.xp, self._state)

    def copied_state(self) -> State:
        """Return a copy of the state."""
        state: State = copy_tree(self.samples.place.xp, self._state)
        return state

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs."""
        if self.full_batch is None:
            self._run_mini_batches(epochs)
        else:
            self._run_full_batch(epochs, *self.full_batch)

    def _run_full_batch(
        self, epochs: Sequence[EpochSettings], X: Array, y: Array, sample_weight: Array
    ) -> None:
        step, append = self.step, self.losses.append
        params, state = self._state
        try:
            for rate, _ in epochs:
                params, state, loss = step(params, state, X, y, sample_weight, rate)
                append(loss)
        finally:
            self._state = params, state

    def _run_mini_batches(self, epochs: Sequence[EpochSettings]) -> None:
        step, n_samples = self.step, len(self.samples)
        params, state = self._state
        try:
            for rate, order in epochs:
                mean = 0.0
                for X, y, sample_weight in self.samples.batches(self.batch_size, order):
                    params, state, loss = step(params, state, X, y, sample_weight, rate)
                    mean = mean + loss * (X.shape[0] / n_samples)
                self.losses.append(mean)
        finally:
            # After an interrupt too: the steps done of an unfinished epoch count.
            self._state = params, state
