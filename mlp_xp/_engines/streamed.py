"""The engine of streams: it runs steps on each batch as it comes.

The steps are those of `partial_fit`, to the bit: on NumPy compiled programs, one for each length of a batch,
in memory that all share; on JAX a compiled function for each length; else call by call, on CUDA too, where
graphs would need to know how many steps there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

import numpy as np

from mlp_xp._arrays import Placement, is_jax
from mlp_xp._compiler import NotRecordableError
from mlp_xp._devices import to_floats
from mlp_xp._engines.base import EpochSettings, State, Steps
from mlp_xp._engines.compiled import CompiledSteps
from mlp_xp._engines.data_parallel import ShardSteps
from mlp_xp._engines.eager import EagerSteps
from mlp_xp._interrupts import DeferredInterrupts, deferred_interrupts
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._streams import Stream, StreamPosition

LOSSES_PER_FETCH = 64
"""How many losses are fetched from a device at once: fetching them waits for their steps."""


class StreamEngine:
    """Runs epochs on the batches of a stream; see `mlp_xp._engines.Engine`."""

    release = None

    def __init__(
        self, network: Network, optimizer: Optimizer, stream: Stream, batch_size: int, state: State
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.losses: list[Any] = []
        self.steps = _make_steps(network, optimizer, stream, batch_size, state)
        self.after_batch: Callable[[], None] | None = None
        self._under_way: _MeanLoss | None = None
        self._begun: StreamPosition | None = None

    @property
    def name(self) -> str:
        """The way in which the steps run."""
        return self.steps.name

    @property
    def state(self) -> State:
        """The current state, in arrays that later steps write in."""
        return self.steps.state

    @state.setter
    def state(self, state: State) -> None:
        self.steps.state = state

    def copied_state(self) -> State:
        """Return the state in arrays that no later step writes in."""
        return self.steps.copied_state()

    def is_finite(self) -> bool:
        """Whether the state is finite, and not left in the middle of an update."""
        return self.steps.is_finite()

    def skip(self, position: StreamPosition | None) -> None:
        """Begin the first epoch behind a batch, as a training did that is to go on."""
        self._begun = position

    def start_of_epoch(self) -> StreamPosition:
        """Return the position before the first batch of the next epoch."""
        return StreamPosition(0, 0, 0.0, self.stream.n_rows)

    def position(self) -> StreamPosition | None:
        """Return how far the epoch under way has come; None if it has not begun, or a batch is under way."""
        under_way = self._under_way
        if under_way is None or not under_way.n_batches:
            return None
        return under_way.position(self.stream.n_rows)

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs. Ctrl-C takes effect before a batch is read, so that none is lost."""
        with deferred_interrupts(limit=1) as interrupts:
            for rate, _ in epochs:
                self.losses.append(self._run_epoch(rate, interrupts))
        if isinstance(self.steps, ShardSteps):
            self.losses = self.steps.agreed(self.losses)

    def _run_epoch(self, rate: float, interrupts: DeferredInterrupts) -> float:
        """Run an epoch, or its beginning if that diverges; return the mean loss of its rows."""
        stream, begun = self.stream, self._begun
        mean, self._begun = _MeanLoss(stream.place, begun), None
        batches = stream.epoch(0 if begun is None else begun.n_batches)
        self._under_way = mean
        while mean.is_finite:
            if interrupts.received:
                interrupts.deliver()
            samples = stream.joined(next(batches, None))
            if samples is None:
                break
            n_rows = samples.n_total
            self._under_way = None
            order = stream.order(n_rows, self.batch_size)
            now = rate if stream.rate is None else stream.rate(stream.n_rows)
            mean.add(
                self.steps.run_steps(samples.arranged(self.batch_size), self.batch_size, order, now), n_rows
            )
            stream.n_rows += n_rows
            self._under_way = mean
            del samples  # before the next one is made
            if self.after_batch is not None:
                self.after_batch()
        self._under_way = None
        return mean.value()


class _MeanLoss:
    """The mean of losses, weighted by their numbers of rows; it fetches some of them at a time."""

    def __init__(self, place: Placement, begun: StreamPosition | None) -> None:
        self.place = place
        self.mean, self.n_rows, self.n_batches = 0.0, 0, 0
        if begun is not None:
            self.mean, self.n_rows, self.n_batches = begun.mean_loss, begun.n_rows, begun.n_batches
        self.losses: list[Any] = []
        self.counts: list[int] = []

    @property
    def is_finite(self) -> bool:
        """Whether the losses fetched so far are finite."""
        return math.isfinite(self.mean)

    def add(self, loss: Any, n_rows: int) -> None:
        """Add the mean loss of so many rows."""
        self.losses.append(loss)
        self.counts.append(n_rows)
        self.n_batches += 1
        if len(self.losses) >= LOSSES_PER_FETCH:
            self._fetch()

    def position(self, n_rows_of_all: int) -> StreamPosition | None:
        """Return the position behind the last batch; None if the losses are not finite.

        Of several processes one may ask alone: what `is_finite` says, which ends the epoch in all, stays.
        """
        fetched = copy(self)
        fetched._fetch()
        if not fetched.is_finite:
            return None
        return StreamPosition(fetched.n_batches, fetched.n_rows, fetched.mean, n_rows_of_all)

    def value(self) -> float:
        """Return the mean."""
        self._fetch()
        if not self.n_rows:
            raise ValueError("`X` must yield at least one batch in each epoch, got none in this one")
        return self.mean

    def _fetch(self) -> None:
        for loss, n_rows in zip(to_floats(self.place, self.losses), self.counts):
            self.n_rows += n_rows
            self.mean += (loss - self.mean) * (n_rows / self.n_rows)
        self.losses, self.counts = [], []


def _make_steps(
    network: Network, optimizer: Optimizer, stream: Stream, batch_size: int, state: State
) -> Steps:
    """Make what runs the steps on a stream's batches, where they live; the module's docstring says which."""
    place, xp, processes = stream.place, stream.xp, stream.processes
    if processes is not None:
        return ShardSteps(network, optimizer, place, xp, processes, state)
    if is_jax(xp):
        from mlp_xp._engines.jax import JaxSteps

        with suppress(Exception):  # of a function that cannot be compiled, or one that call by call fails too
            steps = JaxSteps(network, optimizer, place, state)
            steps.trace(stream.first, batch_size)
            return steps
    if xp is np:  # not for sparse matrices, whose namespace is a wrapper
        with suppress(NotRecordableError):
            compiled = CompiledSteps(network, optimizer, state)
            compiled.compile(stream.first, batch_size)
            return compiled
    return EagerSteps(network, optimizer, place, xp, state)
