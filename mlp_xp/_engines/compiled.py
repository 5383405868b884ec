"""The engine for NumPy: epochs of compiled steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlp_xp._arrays import Array, HostArray, row_slices
from mlp_xp._compiler import Program, write_calls
from mlp_xp._compiler.passes import MIN_ELEMENTS_TO_KEEP_BIAS_SEPARATE
from mlp_xp._compiler.trace import ArraySpec
from mlp_xp._devices import MEMORY_RELEASE_HOOKS
from mlp_xp._engines.base import EpochSettings, State
from mlp_xp._engines.loops import choose_loops
from mlp_xp._engines.recordable import BatchSpecs, StepSpec, array_groups, compile_step, filled, is_number
from mlp_xp._interrupts import DeferredInterrupts, deferred_interrupts
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, is_array, leaves
from mlp_xp._samples import Batch, Rows, RowTaker, Samples

if TYPE_CHECKING:
    from mlp_xp._engines.compiled_loops import EpochRunner

MAX_BYTES_SHUFFLED_AT_ONCE = 2**20
"""Samples of up to this size are copied in their shuffled order once an epoch, larger ones batch by batch.
Chosen so that the copy about fits a core's second-level cache."""

MAX_LENGTHS_KEPT = 16
"""For how many numbers of rows that a stream's batches have the bound programs are kept."""

MAX_MEMORIES_KEPT = 8
MAX_BYTES_KEPT = 2**20
"""How many trainings' memory, each of up to this size, is kept for later ones. To allocate and bind it takes
longer than a step of a small network, of which a stream of `partial_fit` makes one a call."""


class StepBatch(NamedTuple):
    """A batch, and the compiled step for batches of its length.

    Attributes
    ----------
    step : callable ``(X, y, sample_weight, learning_rate, *numbers) -> (loss, *numbers)``
        It updates the engine's parameters and arrays of optimizer state in place; numbers in the optimizer
        state are arguments and results.
    share : float
        The fraction of the epoch's samples that is in the batch: the weight of its loss.
    batch : Batch
    """

    step: Any
    share: float
    batch: Batch


class CompiledState:
    """The state that compiled programs update in place, in the arrays of a `Memory`.

    Attributes
    ----------
    structure : State
        See `mlp_xp._engines.recordable.state_structure`.
    memory : Memory
    numbers : list of int or float
        Those in the optimizer's state.
    is_within_step : bool
        Whether a step was left in the middle, by an error or an interrupt.
    """

    def __init__(self, structure: State, memory: Memory, state: State) -> None:
        self.structure = structure
        self.memory = memory
        self.state = state

    @property
    def state(self) -> State:
        """The current state, as views of arrays that later steps overwrite."""
        return filled(self.structure, self.memory.views, self.numbers)

    @state.setter
    def state(self, state: State) -> None:
        values = leaves(state)
        self.numbers = list(filter(is_number, values))
        for target, source in zip(self.memory.views, filter(is_array, values)):
            target[...] = source
        self.is_within_step = False

    def is_finite(self) -> bool:
        """Whether the state is finite, and not left in the middle of a step."""
        return not self.is_within_step and all_finite(np, self.memory.groups)

    def copied_state(self) -> State:
        """Return a copy of the state."""
        return filled(self.structure, [view.copy() for view in self.memory.views], self.numbers)

    def run_batches(
        self, steps: Iterable[StepBatch], rate: float, interrupts: DeferredInterrupts | None = None
    ) -> Any:
        """Run steps; return the sum of their losses, each times its share. Ctrl-C takes effect in between."""
        mean: Any = 0.0
        for step, share, (X, y, sample_weight) in steps:
            if interrupts is not None and interrupts.received:
                interrupts.deliver()
            self.is_within_step = True
            loss, *self.numbers = step(X, y, sample_weight, rate, *self.numbers)
            self.is_within_step = False
            mean = mean + share * loss
        return mean


class CompiledEngine(CompiledState):
    """Runs compiled steps; see `mlp_xp._engines.Engine` and `mlp_xp._compiler`."""

    name = "compiled"

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        samples: Samples,
        batch_size: int,
        state: State,
        epochs: int = 1,
    ) -> None:
        self.losses: list[Array] | HostArray = []
        n_samples = len(samples)
        batch_size = min(batch_size, n_samples)
        step = StepSpec.of(network, optimizer, state, ())
        steps = _steps_by_length(step, samples, batch_size)
        n_steps = epochs * -(-n_samples // batch_size)
        loops = choose_loops(steps, n_steps, _bytes_to_copy(samples))
        ones = loops is None and _has_ones_column(samples, batch_size)
        programs: Mapping[int, Program] = {}
        if loops is None:
            programs = {
                length: compile_step(write_calls, step._replace(has_ones_column=ones))
                for length, step in steps.items()
            }
        elif not loops.whole_epochs:
            programs = loops.programs
        key = (*programs.values(), n_samples)
        free = _FREE_MEMORIES.pop(key, None)
        super().__init__(step.structure, free or Memory(array_groups(step.structure), programs), state)
        self.epochs: EpochRunner | None = None
        self.batches: _Batches | None = None
        self.release: Callable[[], None] | None = None
        if loops is not None and loops.whole_epochs:
            self.epochs = loops.epochs(samples, batch_size, [view.reshape(-1) for view in self.memory.views])
            return
        self.batches = _Batches(samples, batch_size, self.memory, ones=ones)
        if loops is None and self.memory.nbytes <= MAX_BYTES_KEPT:
            self.release = partial(_keep, key, self.memory)

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs; Ctrl-C takes effect between steps, or between calls that take little time."""
        if self.epochs is not None:
            self._run_whole(self.epochs, epochs)
            return
        assert self.batches is not None
        assert isinstance(self.losses, list)
        with deferred_interrupts(limit=1) as interrupts:
            for rate, order in epochs:
                self.losses.append(self.run_batches(self.batches.of_epoch(order), rate, interrupts))

    def _run_whole(self, runner: EpochRunner, epochs: Sequence[EpochSettings]) -> None:
        losses, n_done = np.zeros(len(epochs)), 0
        at_once = len(epochs) if runner.has_one_batch else 1
        try:
            with deferred_interrupts(limit=1) as interrupts:
                for some in row_slices(len(epochs), at_once):
                    if interrupts.received:
                        interrupts.deliver()
                    self.numbers = runner.run(epochs[some], losses[some], self.numbers)
                    n_done = some.stop
        finally:
            self.losses = np.concatenate([self.losses, losses[:n_done]])


class CompiledSteps(CompiledState):
    """Runs compiled steps on any samples; see `mlp_xp._engines.base.Steps`.

    They are those that `CompiledEngine` runs on these samples, to the bit.
    """

    name = "compiled"

    def __init__(self, network: Network, optimizer: Optimizer, state: State) -> None:
        self.step = StepSpec.of(network, optimizer, state, ())
        structure = self.step.structure
        super().__init__(structure, Memory(array_groups(structure), {}), state)
        self.batches: dict[tuple[int, bool], _Batches] = {}

    def run_steps(self, samples: Samples, batch_size: int, order: Rows | None, rate: float) -> Any:
        """Run steps on all samples, in an order; return their mean loss."""
        batches = self.compile(samples, batch_size)
        batches.set_samples(samples)
        mean = self.run_batches(batches.of_epoch(order), rate)
        batches.forget_samples()
        return mean

    def compile(self, samples: Samples, batch_size: int) -> _Batches:
        """Return the batches of so many samples, with their steps, compiled unless they are known."""
        key = len(samples), samples.sample_weight is None
        if key not in self.batches:
            for oldest in list(self.batches)[: 1 - MAX_LENGTHS_KEPT]:
                del self.batches[oldest]
            size = min(batch_size, len(samples))
            steps = _steps_by_length(self.step, samples, size)
            ones = _has_ones_column(samples, size)
            workspace = Workspace(
                {
                    length: self.memory.bind(compile_step(write_calls, step._replace(has_ones_column=ones)))
                    for length, step in steps.items()
                }
            )
            self.batches[key] = _Batches(samples, size, workspace, ones=ones)
            self.batches[key].forget_samples()
        return self.batches[key]


class Workspace:
    """What steps on batches of a few lengths need beside the state.

    Attributes
    ----------
    steps : mapping of int to callable
        The step, by the length of a batch.
    buffer : Batch or None
        Where `_Batches` copies samples to; it allocates that.
    """

    def __init__(self, steps: Mapping[int, Any]) -> None:
        self.steps = steps
        self.buffer: Batch | None = None


class Memory(Workspace):
    """The arrays that a training's steps work in, and the steps bound to them; it refers to no samples.

    Attributes
    ----------
    groups : list of array of shape (n,)
        The state, as `array_groups` groups it.
    views : list of array
        The arrays of the state.
    """

    def __init__(self, layout: list[list[Any]], programs: Mapping[int, Program]) -> None:
        self.groups = [np.empty(sum(leaf.size for leaf in group), group[0].dtype) for group in layout]
        self.views = [view for flat, group in zip(self.groups, layout) for view in _views(flat, group)]
        self.pool: list[HostArray] = []
        self.pool_nbytes = sum(sum(program.pool_nbytes) for program in programs.values())  # some are shared
        super().__init__({length: self.bind(program) for length, program in programs.items()})

    @property
    def nbytes(self) -> int:
        """The size of the arrays."""
        arrays = (*self.groups, *(self.buffer or ()))
        return self.pool_nbytes + sum(int(array.nbytes) for array in arrays if array is not None)

    def bind(self, program: Program) -> Any:
        """Bind a program to the state and to a pool that all programs share: only one runs at a time."""
        self.pool += [np.empty(nbytes, np.uint8) for nbytes in program.pool_nbytes[len(self.pool) :]]
        # Rows of ones are written once: no other program may overwrite them.
        private = {location.buffer[1] for location in program.ones_rows}
        pool = [
            shared if len(shared) >= nbytes and index not in private else np.empty(nbytes, np.uint8)
            for index, (shared, nbytes) in enumerate(zip(self.pool, program.pool_nbytes))
        ]
        return program.bind(self.groups, pool)


_FREE_MEMORIES: dict[tuple[Any, ...], Memory] = {}
"""Memory of trainings that have ended, by their programs and number of samples, the last one released at the
end. A training takes it out, so that no two share one. Each call on this is atomic: it needs no lock."""

MEMORY_RELEASE_HOOKS.append(_FREE_MEMORIES.clear)


def _keep(key: tuple[Any, ...], memory: Memory) -> None:
    """Keep memory for the next training with this key."""
    _FREE_MEMORIES[key] = memory
    for oldest in list(_FREE_MEMORIES)[:-MAX_MEMORIES_KEPT]:
        _FREE_MEMORIES.pop(oldest, None)


def _steps_by_length(step: StepSpec, samples: Samples, batch_size: int) -> dict[int, StepSpec]:
    """Return the steps of an epoch on these samples, by the lengths of their batches.

    The longer one is the first: the buffers of its program are large enough for the other one.
    """
    size = min(batch_size, len(samples))
    lengths = dict.fromkeys((size, len(samples) % size or size))
    return {length: step._replace(batch=_batch_specs(samples, length)) for length in lengths}


def _batch_specs(samples: Samples, length: int) -> BatchSpecs:
    """Return shapes and dtypes of the arrays of a batch."""
    dtype = np.dtype(samples.place.dtype)
    return tuple(
        None if array is None else ArraySpec((length, *array.shape[1:]), dtype) for array in samples.arrays
    )


def _views(flat: HostArray, group: list[Any]) -> Iterator[HostArray]:
    """Yield the arrays of a group as views of its flat array."""
    start = 0
    for leaf in group:
        yield flat[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size


def _bytes_to_copy(samples: Samples) -> int:
    """Return the size of the arrays that are not contiguous, or of another dtype than batches."""
    return sum(
        array.nbytes
        for array in samples.arrays
        if array is not None and not (array.flags.c_contiguous and array.dtype == samples.place.dtype)
    )


def _fits_shuffle_buffer(samples: Samples) -> bool:
    """Whether the samples are few enough to be copied once an epoch, in its order."""
    return len(samples) * samples.row_bytes <= MAX_BYTES_SHUFFLED_AT_ONCE


def _has_ones_column(samples: Samples, batch_size: int) -> bool:
    """Whether the copy of the samples has a column of ones, for products that add the bias."""
    return (
        _fits_shuffle_buffer(samples) and batch_size * samples.X.shape[1] < MIN_ELEMENTS_TO_KEEP_BIAS_SEPARATE
    )


class _Batches:
    """Batches of the samples in any order, in arrays of the parameters' dtype that all epochs use.

    Few samples are copied in the order of an epoch all at once, maybe beside a column of ones. Of many
    samples each batch is copied to the same arrays, unless it can be a view.
    """

    def __init__(self, samples: Samples, size: int, workspace: Workspace, *, ones: bool) -> None:
        self.steps = workspace.steps
        n_samples = len(samples)
        self.slices = partial(row_slices, n_samples, size)
        self.reused_batches: list[StepBatch] | None = None
        self.shuffles_at_once = _fits_shuffle_buffer(samples)
        self.is_whole = size >= n_samples and not self.shuffles_at_once
        self.set_samples(samples)
        if self.shuffles_at_once:
            self.n_ones = int(ones)
            self.buffer = workspace.buffer = workspace.buffer or self._allocate(n_samples, self.n_ones)
            self.reused_batches = [
                self._step_batch(rows, _row_views(self.buffer, rows)) for rows in self.slices()
            ]
        elif not self.is_whole:
            self.buffer = workspace.buffer = workspace.buffer or self._allocate(size)

    def set_samples(self, samples: Samples) -> None:
        """Take batches from these samples, as many as before."""
        self.samples = samples
        self.takers = [None if array is None else RowTaker(array) for array in samples.arrays]
        self.buffer_is_in_order = False
        if self.is_whole:
            self.reused_batches = [self._step_batch(slice(0, len(samples)), samples.whole())]

    def forget_samples(self) -> None:
        """Refer to no samples any more."""
        del self.samples, self.takers
        if self.is_whole:
            self.reused_batches = None

    def of_epoch(self, order: Rows | None) -> Iterable[StepBatch]:
        """Return the steps of an epoch that takes the samples in this order (None: as they are)."""
        if self.reused_batches is None:
            order = self._row_indices(order)
            return (self._step_batch(rows, self._take(order, rows)) for rows in self.slices())
        if self.shuffles_at_once and not (order is None and self.buffer_is_in_order):
            self._take(self._row_indices(order), slice(0, len(self.samples)))
            self.buffer_is_in_order = order is None
        return self.reused_batches

    def _row_indices(self, order: Rows | None) -> Rows | None:
        """Return the rows of the sample arrays in this order; None if these are all, in theirs."""
        rows = self.samples.rows
        if rows is not None:
            order = rows if order is None else rows[order]
        # The type that indices have, so that they are not converted batch by batch.
        return None if order is None else order.astype(np.intp, copy=False)

    def _step_batch(self, rows: slice, batch: Batch) -> StepBatch:
        length = rows.stop - rows.start
        return StepBatch(self.steps[length], length / len(self.samples), batch)

    def _allocate(self, length: int, n_ones: int = 0) -> Batch:
        X, y, sample_weight = self.samples.arrays
        dtype = self.samples.place.dtype
        return Batch(
            np.ones((length, X.shape[1] + n_ones), dtype),
            np.empty((length, *y.shape[1:]), dtype),
            None if sample_weight is None else np.empty(length, dtype),
        )

    def _take(self, order: Rows | None, rows: slice) -> Batch:
        """Return these rows of the order: copied to the buffer, or as views of the samples."""
        buffer = _row_views(self.buffer, slice(0, rows.stop - rows.start))
        if self.shuffles_at_once:
            buffer = buffer._replace(X=buffer.X[:, : buffer.X.shape[1] - self.n_ones])
        return Batch(
            *(
                None if taker is None else _rows_into(taker, order, rows, target, copy=self.shuffles_at_once)
                for taker, target in zip(self.takers, buffer)
            )
        )


def _row_views(batch: Batch, rows: slice) -> Batch:
    return Batch(*(None if array is None else array[rows] for array in batch))


def _rows_into(
    taker: RowTaker, order: Rows | None, rows: slice, target: HostArray, *, copy: bool
) -> HostArray:
    """Return these rows of an array, copied to `target`; without `copy` a view if that is possible."""
    if order is None and taker.array.dtype == target.dtype and not copy:
        return taker.array[rows]
    taker.read(rows, order, target)
    return target
