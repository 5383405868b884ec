"""The halves of a training step as two captured CUDA graphs, between which the processes add up."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from mlp_xp._arrays import Array, HostArray, Placement
from mlp_xp._engines.base import State
from mlp_xp._engines.capture import GraphLibrary, exclusive_capture
from mlp_xp._engines.cuda_graph import warn_of_fallback, why_not_captured
from mlp_xp._engines.graph_inputs import GraphInputs
from mlp_xp._engines.graph_state import (
    assign_state,
    contiguous_copy,
    copy_for_caller,
    copy_into_state_arrays,
)
from mlp_xp._engines.step_halves import N_EXTRA, Totals, buffer_for, split
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
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, flatten, unflatten_like
from mlp_xp._samples import Batch


class GraphHalves:
    """Replays the captured halves; see `StepHalves`, and `CudaGraphEngine`, which has whole steps.

    A half runs call by call once, because libraries compile and choose kernels then. For its next run it is
    captured: the first half for each length of batches, from the arrays of which it reads. What differs from
    step to step is read from arrays on the device:

    - The learning rate and numbers in the optimizer's state are in `table`.
    - `totals` has 1 over the number of rows, that in units of the buffer, and the share of the epoch. The
      weights of rows are added up with the gradients; 1 over their sum is computed on the device.

    Both are copied to the device when they change. The objectives are added up there as well, in `mean`, so
    that only the news in the buffer's last two numbers is waited for.
    """

    pads = 2.0

    def __init__(
        self,
        library: GraphLibrary,
        network: Network,
        optimizer: Optimizer,
        place: Placement,
        state: State,
        *,
        is_weighted: bool,
    ) -> None:
        self.library = library
        self.place = place
        self.xp = library.namespace(network.matmul_precision)
        self.sums, self.complete = network._make_sums(self.xp), network._make_completion(self.xp)
        self.optimizer_update = optimizer.update
        self.is_weighted = is_weighted
        self.smallest = float(self.place.xp.finfo(self.place.dtype).smallest_normal)
        self.inputs = GraphInputs(library, place)
        self.unit = 1.0
        self.firsts: dict[int, Callable[[], None]] = {}
        self.second: CapturedSteps | None = None
        self.warmed_up_lengths: set[int] = set()
        self.second_is_warmed_up = False
        self.fell_back = False
        self.n_replays = 0
        library.retain()
        # No finalizer at interpreter exit: in a forked child it would call CUDA, which is unusable there.
        weakref.finalize(self, library.release).atexit = False
        with library.own_stream():
            self._state: State = contiguous_copy(self.place, state)
            buffer = buffer_for(state[0], self.place.host_dtype)
            self.wide = getattr(self.place.xp, buffer.dtype.name)
            self.buffer = self._zeros(len(buffer), self.wide)
            self.totals = self._zeros(3, self.wide)
            self.mean = self._zeros(1, self.wide)
            self.table = self._zeros(MAX_NUMBERS_PER_STEP, self.place.dtype)
        self.uploaded: dict[int, bytes] = {}

    def _zeros(self, length: int, dtype: object) -> Array:
        return self.place.xp.zeros((length,), dtype=dtype, device=self.place.device)

    @property
    def name(self) -> str:
        """The way in which the steps so far ran."""
        return "cuda_graph" if self.n_replays else "eager"

    @property
    def state(self) -> State:
        """The state, in arrays that later steps write in."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        with self.library.own_stream():
            if same_structure(self._state, state):
                self._state = assign_state(self._state, state)
            else:
                self._replace_state(state)

    def _replace_state(self, state: State) -> None:
        """Go on from a copy of a state of another structure, of whose arrays no graph knows."""
        self._state = contiguous_copy(self.place, state)
        self.firsts.clear()
        self.second = None
        self.second_is_warmed_up = False

    def copied_state(self) -> State:
        """Return a copy of the state."""
        return copy_for_caller(self.library, self.place, self._state)

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        with self.library.own_stream():
            return all_finite(self.place.xp, self._state)

    def running(self) -> AbstractContextManager[None]:
        """Return the context of the stream that steps run on."""
        return self.library.own_stream()

    def start_epoch(self) -> None:
        """Set the mean loss to 0."""
        self.mean[...] = 0.0

    def mean_loss(self) -> float:
        """Return the mean loss of the epoch; waits for the device."""
        return float(self.mean[0])

    # The first half.

    def add_gradients(self, batch: Batch, unit: float) -> None:
        """Write the sums over a batch to the buffer, times a number that is the same in all steps."""
        length = int(batch.X.shape[0])
        batch, is_moved = self.inputs.holding(batch)
        if is_moved or unit != self.unit:
            self.unit = unit
            self.firsts.pop(length, None)
        replay = self._first(length, batch)
        if replay is not None:
            replay()
            self.n_replays += 1
            return
        with self.library.graph_pool():
            self._write_sums(batch)
        self.warmed_up_lengths.add(length)

    def _first(self, length: int, batch: Batch) -> Callable[[], None] | None:
        """Return the graph of the first half; None if it must run call by call."""
        if self.fell_back or length not in self.warmed_up_lengths:
            return None
        if length not in self.firsts:
            replay = self._captured(lambda: self._write_sums(batch))
            if replay is None:
                return None
            self.firsts[length] = replay
        return self.firsts[length]

    def _write_sums(self, batch: Batch) -> None:
        xp, buffer = self.xp, self.buffer
        summed, gradients = self.sums(self._state[0], *batch, self.unit)
        start = 0
        for gradient in flatten(gradients):
            flat = xp.reshape(gradient, (-1,))
            stop = start + int(flat.shape[0])
            buffer[start:stop] = flat
            start = stop
        # To parts of length 1: numbers assigned to tensors of shape () would be copied from the host.
        buffer[-4:-3] = summed * self.unit
        buffer[-3:-2] = self._weight(batch) * self.unit
        buffer[-2:] = 0.0

    def _weight(self, batch: Batch) -> Array | int:
        weights = batch.sample_weight
        if weights is None:
            return int(batch.X.shape[0])
        return self.xp.sum(weights if weights.dtype == self.wide else self.xp.astype(weights, self.wide))

    # The second half.

    def update(self, totals: Totals, rate: float) -> None:
        """Update the state by the buffer."""
        inverse = 1.0 / totals.n_rows
        self._upload(np.array([inverse, inverse / totals.unit, totals.share]), self.totals)
        captured = self._second()
        if captured is None:
            self._update_call_by_call(rate)
            return
        (entries,), numbers = captured.table([rate], numbers_of(self._state))
        self._upload(entries, self.table)
        try:
            captured.replay()
            self.n_replays += 1
        finally:
            self._state = with_numbers(self._state, numbers)

    def _upload(self, values: HostArray, out: Array) -> None:
        """Copy numbers to the device, unless they are there."""
        if self.uploaded.get(id(out)) != values.tobytes():
            self.library.upload(values, out)
            self.uploaded[id(out)] = values.tobytes()

    def _update_call_by_call(self, rate: float) -> None:
        with self.library.graph_pool():
            state = self._updated(self._state, rate)
        if same_structure(self._state, state):
            self._state = copy_into_state_arrays(self.place.xp, self._state, state)
            self.second_is_warmed_up = True
            return
        self._replace_state(state)
        self._fall_back("the optimizer's state changes its structure")

    def _updated(self, state: State, rate: float) -> State:
        """Return the state after a step, by the sums in the buffer; add to the mean loss."""
        xp, buffer, mean = self.xp, self.buffer, self.mean
        params, optimizer_state = state
        scale, factor, share = (self.totals[index, ...] for index in range(3))
        if self.is_weighted:
            weight = buffer[-3, ...]
            # A batch without weight, whose sum has no inverse, has the gradient 0.
            has_inverse = weight >= self.smallest * self.unit
            factor = xp.where(has_inverse, 1.0 / xp.where(has_inverse, weight, 1.0), 0.0)
            scale = factor * self.unit
        flat = buffer[:-N_EXTRA] * factor
        if self.wide != self.place.dtype:
            flat, scale = xp.astype(flat, self.place.dtype), xp.astype(scale, self.place.dtype)
        losses = buffer[-4, ...] / self.unit
        gradients = unflatten_like(params, split(xp, flat, params))
        objective, completed = self.complete(params, losses, list(gradients), scale)
        mean += objective * share
        return self.optimizer_update(xp, params, completed, optimizer_state, rate)

    def _second(self) -> CapturedSteps | None:
        """Return the graph of the second half; None if it must run call by call."""
        if self.fell_back or not self.second_is_warmed_up:
            return None
        if self.second is None:
            captured: list[CapturedStep] = []

            def update() -> None:
                row = TableRow(self.table, 1 + len(numbers_of(self._state)))
                state = self._updated(with_step_numbers(self._state, row), learning_rate(row))
                if not same_structure(self._state, state):
                    raise NotCapturableError("the optimizer's state changes its structure")
                state = copy_into_state_arrays(self.place.xp, self._state, state)
                captured[:] = [CapturedStep(row, positions_of(state, row))]

            replay = self._captured(update)
            if replay is None:
                return None
            self.second = CapturedSteps(replay, captured)
        return self.second

    # Capture.

    def _captured(self, function: Callable[[], None]) -> Callable[[], None] | None:
        """Capture a function; return what replays it, None if it cannot be captured."""
        try:
            with exclusive_capture():
                return self.library.capture(function)
        except Exception as error:
            self._fall_back(why_not_captured(error))
            return None

    def _fall_back(self, why: str) -> None:
        """Run call by call from now on, and warn once."""
        if not self.fell_back:
            self.fell_back = True
            self.firsts.clear()
            self.second = None
            warn_of_fallback(why)
