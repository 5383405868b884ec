"""The engine of CUDA graphs: the kernels of many steps are captured once and replayed with one launch."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mlp_xp._arrays import Array, Namespace, Placement, is_cupy, row_slices
from mlp_xp._devices import free_bytes
from mlp_xp._engines.base import EagerFallbackWarning, Engine, EpochSettings, State
from mlp_xp._engines.capture import GraphLibrary, exclusive_capture
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._engines.graph_state import (
    assign_state,
    contiguous_copy,
    copy_for_caller,
    copy_into_state_arrays,
)
from mlp_xp._engines.step_numbers import (
    MAX_NUMBERS_PER_STEP,
    CapturedStep,
    CapturedSteps,
    NotCapturableError,
    TableRow,
    learning_rate,
    numbers_of,
    positions_of,
    same_structure,
    with_numbers,
    with_step_numbers,
)
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, map_tree
from mlp_xp._samples import Batch, Samples
from mlp_xp._warnings import warn

MAX_STEPS_PER_GRAPH = 64
"""Maximum number of steps in a graph. The overhead of a replay, shared by so many steps, is small beside
their kernels, while each further step takes time to capture."""

CAPTURE_COST_IN_REPLAYS = 3
"""Time that the host needs to capture one step, in units of one replay.

Chosen between what was measured on an H100's host: a replay took 100 microseconds (to fill the table of
numbers and to launch), a capture 100 to 250 with fused kernels and 300 to 600 call by call.
"""

MIN_REPLAYS = 3
"""Minimum number of planned replays for a capture: fewer save less time than it takes to capture and
instantiate the graph."""

MAX_INPUT_BUFFER_BYTES = 2**28
"""Maximum size of the buffers for the samples of a graph's mini-batches, unless one batch takes more. Chosen
so that they are small beside the memory of a GPU."""


def make_cuda_engine(
    network: Network,
    optimizer: Optimizer,
    samples: Samples,
    batch_size: int,
    state: State,
    epochs: int,
    max_sample_bytes: float = math.inf,
) -> Engine:
    """Make the engine for arrays on a CUDA device.

    It is the eager engine for a training too short to pay for a capture and, with a warning, if a library
    that captures need is missing.
    """
    settings = network, optimizer, samples, batch_size, state
    if epochs * math.ceil(len(samples) / batch_size) <= MIN_REPLAYS:
        return EagerEngine(*settings)  # before the libraries for captures are imported
    try:
        library = graph_library(samples.place, samples.xp)
    except ImportError as error:
        warn_of_fallback(f"{error}")
        return EagerEngine(*settings)
    return CudaGraphEngine(library, *settings, epochs, max_sample_bytes)


def graph_library(place: Placement, xp: Namespace) -> GraphLibrary:
    """Return what captures graphs of a placement's library; it is imported here."""
    if is_cupy(place.xp):
        from mlp_xp._engines.cupy_graphs import CupyGraphs

        return CupyGraphs.of_this_thread(place.device)
    from mlp_xp._engines.torch_graphs import TorchGraphs

    return TorchGraphs(place, xp)


def warn_of_fallback(why: str) -> None:
    """Warn that the training falls back to calls one by one."""
    warn(
        f"training runs call by call, which is slower, and not as a captured CUDA graph: {why}",
        EagerFallbackWarning,
    )


def why_not_captured(error: Exception) -> str:
    """Return the reason to say for a capture that raised an error."""
    if isinstance(error, NotCapturableError):
        return str(error)
    return f"the capture failed ({type(error).__name__}: {error})"


class CudaGraphEngine:
    """Replays graphs of captured steps; see `mlp_xp._engines.Engine`.

    The first batch of each length runs call by call, because libraries compile and choose kernels at the
    first call, and cannot do that during a capture. Then up to `MAX_STEPS_PER_GRAPH` steps are captured as
    one graph, fewer if fewer are planned. A replay uses the same memory each time:

    - Samples are read from the arrays `inputs`. Before each replay, mini-batches are copied there, in the
      order of the epoch, from samples on the host by way of the device. A full batch is read where it is.
    - Numbers such as the learning rate are read from `table`, which the host fills before each replay.
    - Parameters and optimizer state are read from and written to the arrays of the state.
    """

    release = None

    def __init__(
        self,
        library: GraphLibrary,
        network: Network,
        optimizer: Optimizer,
        samples: Samples,
        batch_size: int,
        state: State,
        epochs: int = sys.maxsize,
        max_sample_bytes: float = math.inf,
    ) -> None:
        self.library = library
        self.samples = samples
        self.losses: list[Array] = []
        self.batch_size = min(batch_size, len(samples))
        self.is_full_batch = self.batch_size == len(samples)
        # By the lengths of their batches: a graph depends on nothing else, as it reads all inputs at replay.
        self.graphs: dict[tuple[int, ...], CapturedSteps] = {}
        self.warmed_up_lengths: set[int] = set()
        self.shares: dict[tuple[int, ...], Array] = {}
        self.fell_back = False
        self.n_replays = 0
        self.epochs_left = epochs
        self.steps_per_epoch = math.ceil(len(samples) / self.batch_size)
        self.make_step = partial(library.make_step, network, optimizer, epochs * self.steps_per_epoch)
        self.step = self.make_step()
        self.n_steps = self._steps_per_graph(max_sample_bytes)
        library.retain()
        # No finalizer at interpreter exit: in a forked child it would call CUDA, which is unusable there.
        weakref.finalize(self, library.release).atexit = False
        with library.own_stream():
            # A copy, because steps write in it, and the caller keeps the state given.
            self._state: State = contiguous_copy(self.samples.place, state)
            self.inputs = samples.whole() if self.is_full_batch else self._make_inputs()
            self.table = self._zeros(self.n_steps, MAX_NUMBERS_PER_STEP)
            self.step_losses = self._zeros(self.n_steps)
            self.epoch_losses = self._zeros(self.steps_per_epoch)

    @property
    def name(self) -> str:
        """The way in which the epochs so far ran."""
        return "cuda_graph" if self.n_replays else "eager"

    def _steps_per_graph(self, max_sample_bytes: float) -> int:
        """Return the number of steps per graph for which capture and replays together take the least time.

        Their batches take at most a quarter of the free memory. Streamed ones take an eighth, as four parts
        of that size are there: in the arrays that graphs read, and on the way to it the last one and the
        next two.
        """
        total = self.epochs_left * self.steps_per_epoch
        # With n steps per graph, captures cost c n and replays total / n: least at n = sqrt(total / c).
        best = min(MAX_STEPS_PER_GRAPH, math.isqrt(total // CAPTURE_COST_IN_REPLAYS))
        if not self.is_full_batch:
            free = free_bytes(self.samples.place)
            n_bytes = MAX_INPUT_BUFFER_BYTES if free is None else min(MAX_INPUT_BUFFER_BYTES, free / 4)
            if self.samples.is_on_host:
                n_bytes = min(n_bytes / 2, max_sample_bytes / 4)
            best = min(best, self.steps_per_epoch, int(n_bytes / (self.batch_size * self.samples.row_bytes)))
        return max(1, best)

    def _zeros(self, *shape: int) -> Array:
        place = self.samples.place
        return place.xp.zeros(shape, dtype=place.dtype, device=place.device)

    def _make_inputs(self) -> Batch:
        """Allocate the arrays that graphs read the samples of their mini-batches from."""
        n_rows = min(len(self.samples), self.n_steps * self.batch_size)
        inputs: Batch = map_tree(lambda array: self._zeros(n_rows, *array.shape[1:]), self.samples.arrays)
        return inputs

    @property
    def state(self) -> State:
        """The current state, in arrays that later steps write in."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        with self.library.own_stream():
            if not same_structure(self._state, state):
                self._replace_state(state)
                self.graphs.clear()  # they use the arrays of the old state
                return
            self._state = assign_state(self._state, state)

    def _replace_state(self, state: State) -> None:
        """Go on from a copy of a state of another structure, which needs another step."""
        self._state, self.step = contiguous_copy(self.samples.place, state), self.make_step()
        self.warmed_up_lengths.clear()  # the new step compiles kernels

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        with self.library.own_stream():
            return all_finite(self.samples.place.xp, self._state)

    def copied_state(self) -> State:
        """Return a copy of the state."""
        return copy_for_caller(self.library, self.samples.place, self._state)

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs."""
        with self.library.own_stream():
            if self.is_full_batch:
                self._run_full_batch([rate for rate, _ in epochs])
            else:
                for rate, order in epochs:
                    self._run_mini_batches(rate, order)

    def _run_full_batch(self, rates: list[float]) -> None:
        while rates:
            # Either `n_steps` epochs or one, so that at most two graphs are captured. If there is no graph,
            # one epoch at a time, so that Ctrl-C takes effect after each.
            with deferred_interrupts():  # parameters and losses must be of the same epochs
                n_epochs = self.n_steps if len(rates) >= self.n_steps else 1
                if self._graph((len(self.samples),) * n_epochs, self.epochs_left // n_epochs) is None:
                    n_epochs = 1
                now, rates = rates[:n_epochs], rates[n_epochs:]
                losses = self._run_steps((len(self.samples),) * n_epochs, now, self.epochs_left // n_epochs)
                self.losses += [losses[index] for index in range(n_epochs)]
                self.epochs_left -= n_epochs

    def _run_mini_batches(self, rate: float, order: Any) -> None:
        # One sum for the epoch: so it does not depend on how many steps a graph has.
        n_samples, n_done = len(self.samples), 0
        for n_rows in self._fill_inputs(order):
            lengths = tuple(part.stop - part.start for part in row_slices(n_rows, self.batch_size))
            planned_replays = self.epochs_left * max(1, n_samples // n_rows)
            with deferred_interrupts():  # no step must be left half done
                losses = self._run_steps(lengths, [rate] * len(lengths), planned_replays)
            self.epoch_losses[n_done : n_done + len(lengths)] = losses
            n_done += len(lengths)
        self.losses.append(self.samples.place.xp.sum(self.epoch_losses))
        self.epochs_left -= 1

    def _fill_inputs(self, order: Any) -> Iterator[int]:
        """Copy the batches of one graph after the other to `inputs`; yield their number of rows."""
        n_at_once = self.n_steps * self.batch_size
        if self.samples.is_on_host:
            for part in self.samples.batches(n_at_once, order):
                n_rows = part.X.shape[0]
                for array, buffer in zip(part, self.inputs):
                    if array is not None:
                        buffer[:n_rows, ...] = array
                yield n_rows
            return
        write = self.samples.row_writer(order, self.library.gather)
        for rows in row_slices(len(self.samples), n_at_once):
            n_rows = rows.stop - rows.start
            for array, buffer in zip(self.samples.arrays, self.inputs):
                if array is not None:
                    write(array, rows, buffer[:n_rows, ...])
            yield n_rows

    def _run_steps(self, lengths: tuple[int, ...], rates: Sequence[float], planned_replays: int) -> Array:
        """Run a step on each batch of `inputs`; return their losses, weighted by the share of the samples.

        `planned_replays` is the number of times that such steps will run, this one included.
        """
        graph = self._graph(lengths, planned_replays)
        if graph is None:
            return self._run_call_by_call(lengths, rates)
        table, numbers = graph.table(rates, numbers_of(self._state))
        self.library.upload(table, self.table[: len(rates), ...])
        try:
            graph.replay()
            self.n_replays += 1
        finally:
            # After an interrupt too: kernels that are launched will run.
            self._state = with_numbers(self._state, numbers)
        return self._weighted_losses(lengths)

    def _weighted_losses(self, lengths: tuple[int, ...]) -> Array:
        """Return the losses of the last steps, weighted by their shares of the samples, in a new array."""
        if lengths not in self.shares:
            shares = [length / len(self.samples) for length in lengths]
            self.shares[lengths] = self.samples.place.from_host(shares)
        return self.step_losses[: len(lengths)] * self.shares[lengths]

    def _run_call_by_call(self, lengths: tuple[int, ...], rates: Sequence[float]) -> Array:
        state = self._state
        try:
            for index, (batch, rate) in enumerate(zip(self._batches(lengths), rates)):
                with self.library.graph_pool():
                    state = self.step(state, batch, rate, self.step_losses[index, ...])
        finally:
            self._store_state(state)
        self.warmed_up_lengths.update(lengths)
        return self._weighted_losses(lengths)

    def _batches(self, lengths: tuple[int, ...]) -> list[Batch]:
        if self.is_full_batch:
            return [self.inputs] * len(lengths)
        return [_rows_of(self.inputs, rows) for rows in row_slices(sum(lengths), self.batch_size)]

    def _store_state(self, state: State) -> None:
        """Store the state after steps, in the arrays of the old one if the structure is the same."""
        if same_structure(self._state, state):
            self._state = copy_into_state_arrays(self.samples.place.xp, self._state, state)
            return
        self._replace_state(state)
        self._fall_back("the optimizer's state changes its structure")

    # Capture

    def _graph(self, lengths: tuple[int, ...], planned_replays: int) -> CapturedSteps | None:
        """Return the graph of steps on batches of these lengths; None if they must run call by call."""
        if self.fell_back or not self.warmed_up_lengths.issuperset(lengths):
            return None
        if lengths not in self.graphs:
            if planned_replays < MIN_REPLAYS:
                return None
            try:
                self.graphs[lengths] = self._capture(lengths)
            except Exception as error:
                self._fall_back(why_not_captured(error))
                return None
        return self.graphs[lengths]

    def _fall_back(self, why: str) -> None:
        """Run call by call from now on, and warn once."""
        if not self.fell_back:
            self.fell_back = True
            self.graphs.clear()
            warn_of_fallback(why)

    def _capture(self, lengths: tuple[int, ...]) -> CapturedSteps:
        """Capture steps on batches of these lengths."""
        captured: list[CapturedStep] = []

        def steps() -> None:
            captured.clear()
            for index, batch in enumerate(self._batches(lengths)):
                row = TableRow(self.table[index, ...], 1 + len(numbers_of(self._state)))
                before = with_step_numbers(self._state, row)
                state = self.step(before, batch, learning_rate(row), self.step_losses[index, ...])
                if not same_structure(self._state, state):
                    raise NotCapturableError("the optimizer's state changes its structure")
                state = copy_into_state_arrays(self.samples.place.xp, self._state, state)
                captured.append(CapturedStep(row, positions_of(state, row)))

        with exclusive_capture():
            replay = self.library.capture(steps)
        return CapturedSteps(replay, captured)


def _rows_of(batch: Batch, rows: slice) -> Batch:
    result: Batch = map_tree(lambda array: array[rows, ...], batch)
    return result
