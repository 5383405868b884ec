"""The eager engine: epochs as a Python loop of steps, which works in every namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlp_xp._arrays import Array, Namespace, Placement
from mlp_xp._engines.base import EpochSettings, State
from mlp_xp._interrupts import DeferredInterrupts, deferred_interrupts
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, copy_tree
from mlp_xp._samples import Batch, Rows, Samples


class EagerSteps:
    """Runs the array calls of each step one by one; see `mlp_xp._engines.base.Steps`."""

    name = "eager"

    def __init__(
        self, network: Network, optimizer: Optimizer, place: Placement, xp: Namespace, state: State
    ) -> None:
        self.place = place
        self.xp = xp
        self.state = state
        self.objective_and_gradients = network._make_objective(xp)
        self.update = optimizer.update

    @property
    def state(self) -> State:
        """The current state, in arrays that later steps write in."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        # A copy, because steps update arrays in place, and the caller keeps the ones given.
        self._state: State = copy_tree(self.place.xp, state)
        self.is_within_update = False

    def is_finite(self) -> bool:
        """Whether the state is finite, and not left in the middle of an update."""
        return not self.is_within_update and all_finite(self.place.xp, self._state)

    def copied_state(self) -> State:
        """Return a copy of the state."""
        state: State = copy_tree(self.place.xp, self._state)
        return state

    def step(self, batch: Batch, rate: float) -> Array:
        """Run a step; return its loss."""
        params, optimizer_state = self._state
        loss, gradients = self.objective_and_gradients(params, *batch)
        self.is_within_update = True
        self._state = self.update(self.xp, params, gradients, optimizer_state, rate)
        self.is_within_update = False
        return loss

    def run_steps(self, samples: Samples, batch_size: int, order: Rows | None, rate: float) -> Any:
        """Run steps on all samples, in an order; return their mean loss."""
        if batch_size >= len(samples):
            return self.step(samples.whole(), rate)
        return self.mean_loss(samples, batch_size, order, rate)

    def mean_loss(
        self,
        samples: Samples,
        batch_size: int,
        order: Rows | None,
        rate: float,
        interrupts: DeferredInterrupts | None = None,
    ) -> Any:
        """Run steps on mini-batches; return their mean loss. Ctrl-C takes effect in between."""
        n_samples, mean = len(samples), 0.0
        for batch in samples.batches(batch_size, order):
            if interrupts is not None and interrupts.received:
                interrupts.deliver()
            mean = mean + self.step(batch, rate) * (batch.X.shape[0] / n_samples)
        return mean


class EagerEngine(EagerSteps):
    """Runs epochs call by call; see `mlp_xp._engines.Engine`."""

    release = None

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State
    ) -> None:
        super().__init__(network, optimizer, samples.place, samples.xp, state)
        self.samples = samples
        self.batch_size = batch_size
        self.losses: list[Array] = []
        # Where all samples are one batch, it is cast and put in order once, not in each epoch.
        self.full_batch = samples.whole() if batch_size >= len(samples) else None

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs; Ctrl-C takes effect between steps."""
        with deferred_interrupts(limit=1) as interrupts:
            if self.full_batch is None:
                self._run_mini_batches(epochs, interrupts)
            else:
                self._run_full_batch(epochs, self.full_batch, interrupts)

    def _run_full_batch(
        self, epochs: Sequence[EpochSettings], batch: Batch, interrupts: DeferredInterrupts
    ) -> None:
        for rate, _ in epochs:
            if interrupts.received:
                interrupts.deliver()
            self.losses.append(self.step(batch, rate))

    def _run_mini_batches(self, epochs: Sequence[EpochSettings], interrupts: DeferredInterrupts) -> None:
        for rate, order in epochs:
            self.losses.append(self.mean_loss(self.samples, self.batch_size, order, rate, interrupts))
