"""Epochs captured as CUDA graphs: what their steps launch is recorded once, and replayed with one launch."""

from __future__ import annotations

import gc
import math
import operator
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from mlp_xp._arrays import Array, Namespace, copy_array, is_cupy, row_slices
from mlp_xp._devices import free_bytes
from mlp_xp._engines import EagerFallbackWarning, Engine, Epoch, State, make_step
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._interrupts import holding_interrupts
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, copy_tree, is_array, leaves, map_tree, with_leaves
from mlp_xp._samples import Batch, Samples

MAX_STEPS_PER_GRAPH = 64
"""Longer graphs save nothing, and each step takes its time to capture."""

LAUNCHES_PER_CAPTURED_STEP = 6
"""How many launches of a graph take the host as long as the capture of one step: about 600 microseconds of
calls against 100 of filling a table and launching (CuPy's overhead of a call, 10 microseconds, times 60)."""

MIN_REPLAYS = 3
"""A graph that is launched fewer times takes longer to capture and instantiate than it saves."""

ROOM_BYTES = 2**28
"""At most, unless one batch takes more: for the samples of a graph's steps, in the order of the epoch."""

NUMBERS_PER_STEP = 64
"""Numbers that change from step to step and meet arrays, at most."""


class Cuda(Protocol):
    """What the engine asks of a library whose arrays live on a CUDA device."""

    def namespace(self, matmul_precision: str) -> Namespace:
        """Return functions that can be captured."""

    def session(self) -> AbstractContextManager[None]:
        """Work on a stream of our own, after what the caller's stream does and before what it will do."""

    def scratch(self) -> AbstractContextManager[None]:
        """Take memory from where captures take theirs, so that it serves both.

        Nothing in it outlives the next replay of any graph of this thread.
        """

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches, on memory that nothing else gets; return what launches it all.

        If that fails, the capture is over all the same, and the stream as usable as before.
        """

    def upload(self, values: np.ndarray[Any, Any], out: Array) -> None:
        """Copy numbers from the host into an array, without waiting for what is under way."""

    def retain(self) -> None:
        """Keep memory for graphs from now on: there is an engine."""

    def release(self) -> None:
        """Give memory back that no graph needs any more: an engine is gone."""


class NotCapturableError(Exception):
    """The step does something that cannot be replayed."""


class Number:
    """A number that changes from step to step, such as the learning rate: known to the host, step by step.

    What is computed with it and other numbers stays on the host, an expression of what the step begins
    with. Where it meets an array it is an array itself: a place in a table on the device, which the host
    fills before each replay.
    """

    __array_ufunc__ = None  # arrays of NumPy and CuPy leave operators to this class

    def __init__(self, row: Row, compute: Callable[[Start], float]) -> None:
        self.row = row
        self.compute = compute

    def __cupy_get_ndarray__(self) -> Array:
        return self.row.place_of(self)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        # Without it ``tensor *= number`` would make another tensor.
        arrays = [one.row.place_of(one) if isinstance(one, Number) else one for one in arguments]
        return function(*arrays, **(options or {}))

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotCapturableError("something decides by a number that changes from step to step")

    __bool__ = __float__ = __int__ = __index__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = object.__hash__

    def __neg__(self) -> Number:
        return Number(self.row, lambda start: -self.compute(start))


def _with(function: Callable[[Any, Any], Any], *, swapped: bool) -> Callable[[Number, Any], Any]:
    def method(self: Number, other: Any) -> Any:
        if isinstance(other, Number):
            return Number(self.row, lambda start: function(*order(self.compute(start), other.compute(start))))
        if isinstance(other, (int, float)):
            return Number(self.row, lambda start: function(*order(self.compute(start), other)))
        return function(*order(self.row.place_of(self), other))

    def order(mine: Any, other: Any) -> tuple[Any, Any]:
        return (other, mine) if swapped else (mine, other)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod"):
    _function = getattr(operator, _name)
    setattr(Number, f"__{_name}__", _with(_function, swapped=False))
    setattr(Number, f"__r{_name}__", _with(_function, swapped=True))


Start = tuple[float, ...]
"""What a step begins with: its learning rate, and the numbers of the optimizer's state."""


class Row:
    """The row of a table on the device that holds a step's numbers, in the order they meet arrays."""

    def __init__(self, places: Array) -> None:
        self.places = places
        self.numbers: list[Number] = []
        self.index: dict[int, int] = {}

    def place_of(self, number: Number) -> Array:
        """Return the place of a number, an array of shape ()."""
        if id(number) not in self.index:
            if len(self.numbers) == NUMBERS_PER_STEP:
                raise NotCapturableError(f"more than {NUMBERS_PER_STEP} numbers change from step to step")
            self.index[id(number)] = len(self.numbers)
            self.numbers.append(number)
        return self.places[self.index[id(number)]]


class _Graph(NamedTuple):
    """Captured steps.

    Attributes
    ----------
    replay : callable
    numbers : list of callable
        By the place in a row, how a step's number follows from what it begins with.
    numbers_after : list of callable
        The same for the numbers of the state that it ends with.
    """

    replay: Callable[[], None]
    numbers: list[Callable[[Start], float]]
    numbers_after: list[Callable[[Start], float]]


def make_cuda_engine(
    network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State, epochs: int
) -> Engine:
    """Make the engine for arrays on a CUDA device: with a warning the eager one, if a library is missing."""
    settings = network, optimizer, samples, batch_size, state
    if epochs * math.ceil(len(samples) / batch_size) <= MIN_REPLAYS:
        return EagerEngine(*settings)  # and no library is imported for it
    try:
        cuda = _cuda(samples)
    except ImportError as error:
        _warn(f"{error}", stacklevel=5)
        return EagerEngine(*settings)
    return CudaGraphEngine(cuda, *settings, epochs)


def _cuda(samples: Samples) -> Cuda:
    if is_cupy(samples.place.xp):
        from mlp_xp._engines.cupy_graphs import CupyGraphs

        return CupyGraphs.of_this_thread(samples.place.device)
    from mlp_xp._engines.torch_graphs import TorchGraphs

    return TorchGraphs(samples.place, samples.xp)


def _warn(why: str, stacklevel: int) -> None:
    warnings.warn(
        f"training runs call by call, which is slower, and not as a captured CUDA graph: {why}",
        EagerFallbackWarning,
        stacklevel=stacklevel + 1,
    )


CAPTURES = threading.Lock()
"""Held by the one thread of the process that captures, whatever it captures with, and by those that do what
waits for the device, which no capture on it survives."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let nobody else capture, and keep the garbage collector from freeing what a capture does not allow."""
    with CAPTURES:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


class CudaGraphEngine:
    """Replays captured steps; see `mlp_xp._engines.Engine`.

    Batches of each length run call by call once: libraries compile and choose their kernels then, which
    they could not during a capture. Then up to `MAX_STEPS_PER_GRAPH` steps are captured together, fewer
    where fewer are planned. They read their samples from a room that these are put in beforehand, in the
    order of the epoch, and their numbers from a table; they write in the state, whose arrays stay where
    they are.
    """

    def __init__(
        self,
        cuda: Cuda,
        network: Network,
        optimizer: Optimizer,
        samples: Samples,
        batch_size: int,
        state: State,
        epochs: int = sys.maxsize,
    ) -> None:
        self.cuda = cuda
        self.samples = samples
        self.losses: list[Array] = []
        self.step = make_step(network, optimizer, cuda.namespace(network.matmul_precision))
        self.batch_size = min(batch_size, len(samples))
        self.in_whole = self.batch_size == len(samples)
        self.graphs: dict[tuple[int, ...], _Graph] = {}
        self.lengths_seen: set[int] = set()
        self.refused = False
        self.n_replays = 0
        self.epochs_left = epochs
        self.n_steps = self._steps_per_graph()
        cuda.retain()
        # Not at the end of the process, where a child that was forked would speak to the device.
        weakref.finalize(self, cuda.release).atexit = False
        with cuda.session():
            self._state: State = copy_tree(samples.place.xp, state)
            self.room = samples.whole() if self.in_whole else self._make_room()
            self.table = self._zeros(self.n_steps, NUMBERS_PER_STEP)
            self.step_losses = self._zeros(self.n_steps)

    @property
    def name(self) -> str:
        """How the epochs ran."""
        return "cuda_graph" if self.n_replays else "eager"

    def _steps_per_graph(self) -> int:
        """Return the number of steps that makes captures and launches together take the least time."""
        steps_per_epoch = math.ceil(len(self.samples) / self.batch_size)
        total = self.epochs_left * steps_per_epoch
        best = min(MAX_STEPS_PER_GRAPH, math.isqrt(total // LAUNCHES_PER_CAPTURED_STEP))
        if not self.in_whole:
            free = free_bytes(self.samples.place)
            room = ROOM_BYTES if free is None else min(ROOM_BYTES, free // 4)
            best = min(best, steps_per_epoch, room // (self.batch_size * self.samples.row_bytes))
        return max(1, best)

    def _zeros(self, *shape: int) -> Array:
        place = self.samples.place
        return place.xp.zeros(shape, dtype=place.dtype, device=place.device)

    def _make_room(self) -> Batch:
        n_rows = min(len(self.samples), self.n_steps * self.batch_size)
        room: Batch = map_tree(lambda array: self._zeros(n_rows, *array.shape[1:]), self.samples.arrays)
        return room

    @property
    def state(self) -> State:
        """The state now, in arrays that later steps write in."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        with self.cuda.session():
            if not _alike(self._state, state):
                self._state = copy_tree(self.samples.place.xp, state)
                self.graphs.clear()
                return
            for mine, given in zip(leaves(self._state), leaves(state)):
                if is_array(mine):
                    mine[...] = given
            self._set_numbers(_numbers(state))

    def _set_numbers(self, numbers: Sequence[float]) -> None:
        new = iter(numbers)
        self._state = with_leaves(
            self._state,
            [next(new) if isinstance(leaf, (int, float)) else leaf for leaf in leaves(self._state)],
        )

    def is_finite(self) -> bool:
        """Whether all of the state is finite."""
        with self.cuda.session():
            return all_finite(self.samples.place.xp, self._state)

    def copied_state(self) -> State:
        """Return the state in arrays of its own."""
        with self.cuda.session():
            state: State = copy_tree(self.samples.place.xp, self._state)
        return state

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs."""
        with self.cuda.session():
            if self.in_whole:
                self._run_whole([rate for rate, _ in epochs])
            else:
                for rate, order in epochs:
                    self._run_in_batches(rate, order)

    def _run_whole(self, rates: list[float]) -> None:
        while rates:
            # Of either many steps or one: a graph for each number of them would be too many graphs. And many
            # only of a graph: what runs call by call can be interrupted after any of its epochs.
            with holding_interrupts():  # parameters and losses are of the same epochs
                n_now = self.n_steps if len(rates) >= self.n_steps else 1
                if self._graph((len(self.samples),) * n_now, self.epochs_left // n_now) is None:
                    n_now = 1
                now = rates[:n_now]
                rates = rates[len(now) :]
                losses = self._run_steps((len(self.samples),) * len(now), now, self.epochs_left // len(now))
                self.losses += [losses[index] for index in range(len(now))]
                self.epochs_left -= len(now)

    def _run_in_batches(self, rate: float, order: Any) -> None:
        mean, n_samples = 0.0, len(self.samples)
        for some in self.samples.batches(self.n_steps * self.batch_size, order):
            n_rows = some.X.shape[0]
            for place, rows in zip(self.room, some):
                if rows is not None:
                    place[:n_rows, ...] = rows
            lengths = tuple(part.stop - part.start for part in row_slices(n_rows, self.batch_size))
            n_uses = self.epochs_left * max(1, n_samples // n_rows)
            with holding_interrupts():  # no step is done by half
                losses = self._run_steps(lengths, [rate] * len(lengths), n_uses)
            mean = mean + self.samples.place.xp.sum(losses)
        self.losses.append(mean)
        self.epochs_left -= 1

    def _run_steps(self, lengths: tuple[int, ...], rates: Sequence[float], n_uses: int) -> Array:
        """Run a step for each batch of the room; return their losses, each times its part of an epoch.

        `n_uses` is how many times such steps are planned from now on.
        """
        graph = self._graph(lengths, n_uses)
        if graph is None:
            return self._run_call_by_call(lengths, rates)
        numbers = _numbers(self._state)
        table = np.zeros((len(rates), NUMBERS_PER_STEP))
        for row, rate in zip(table, rates):
            start = (rate, *numbers)
            row[: len(graph.numbers)] = [compute(start) for compute in graph.numbers]
            numbers = [compute(start) for compute in graph.numbers_after]
        self.cuda.upload(table, self.table[: len(rates), ...])
        try:
            graph.replay()
            self.n_replays += 1
        finally:
            # Also when interrupted: what is launched will be done.
            self._set_numbers(numbers)
        return copy_array(self.samples.place.xp, self.step_losses[: len(rates)])

    def _run_call_by_call(self, lengths: tuple[int, ...], rates: Sequence[float]) -> Array:
        losses = []
        params, optimizer_state = self._state
        try:
            for (X, y, sample_weight), rate in zip(self._batches(lengths), rates):
                with self.cuda.scratch():
                    params, optimizer_state, loss = self.step(
                        params, optimizer_state, X, y, sample_weight, rate
                    )
                losses.append(loss * (X.shape[0] / len(self.samples)))
        finally:
            self._adopt((params, optimizer_state))
        self.lengths_seen.update(lengths)
        return self.samples.place.xp.stack(losses)

    def _batches(self, lengths: tuple[int, ...]) -> list[Batch]:
        if self.in_whole:
            return [self.room] * len(lengths)
        return [_part(self.room, rows) for rows in row_slices(sum(lengths), self.batch_size)]

    def _adopt(self, state: State) -> None:
        """Take a state over, into the arrays of the old one where it is of the same structure."""
        if _alike(self._state, state):
            self._state = self._in_place(state)
            return
        self._state = copy_tree(self.samples.place.xp, state)
        self._refuse("the optimizer's state changes its structure")

    def _in_place(self, state: State) -> State:
        """Return a new state in the arrays of the old one, which captured steps know."""
        old, new = leaves(self._state), leaves(state)
        # All copies first: what is new may be a view of what is old.
        moved = [
            copy_array(self.samples.place.xp, after) if is_array(before) and after is not before else after
            for before, after in zip(old, new)
        ]
        for before, after in zip(old, moved):
            if is_array(before) and after is not before:
                before[...] = after
        kept: State = with_leaves(
            state, [before if is_array(before) else after for before, after in zip(old, new)]
        )
        return kept

    # Capture.

    def _graph(self, lengths: tuple[int, ...], n_uses: int) -> _Graph | None:
        """Return the graph of steps on batches of these lengths; None where they run call by call."""
        if self.refused or not self.lengths_seen.issuperset(lengths):
            return None
        if lengths not in self.graphs:
            if n_uses < MIN_REPLAYS:
                return None
            try:
                self.graphs[lengths] = self._captured(lengths)
            except NotCapturableError as error:
                self._refuse(str(error))
                return None
            except Exception as error:
                self._refuse(f"the capture failed ({type(error).__name__}: {error})")
                return None
        return self.graphs[lengths]

    def _refuse(self, why: str) -> None:
        if not self.refused:
            self.refused = True
            self.graphs.clear()
            _warn(why, stacklevel=8)

    def _captured(self, lengths: tuple[int, ...]) -> _Graph:
        rows: list[Row] = []
        after: list[Callable[[Start], float]] = []

        def steps() -> None:
            for index, (X, y, sample_weight) in enumerate(self._batches(lengths)):
                row = Row(self.table[index, ...])
                params, optimizer_state = self._state_of_numbers(row)
                rate: Any = Number(row, lambda start: start[0])
                params, optimizer_state, loss = self.step(params, optimizer_state, X, y, sample_weight, rate)
                self.step_losses[index] = loss * (X.shape[0] / len(self.samples))
                if not _alike(self._state, (params, optimizer_state)):
                    raise NotCapturableError("the optimizer's state changes its structure")
                state = self._in_place((params, optimizer_state))
                rows.append(row)
                after[:] = [
                    leaf.compute if isinstance(leaf, Number) else _constant(leaf)
                    for leaf in leaves(state)
                    if isinstance(leaf, (Number, int, float))
                ]

        with undisturbed():
            replay = self.cuda.capture(steps)
        return _Graph(replay, [number.compute for number in rows[0].numbers], after)

    def _state_of_numbers(self, row: Row) -> State:
        """Return the state with a `Number` for each number."""
        known: list[Any] = leaves(self._state)
        count = 0
        for index, leaf in enumerate(known):
            if isinstance(leaf, (int, float)):
                count += 1
                known[index] = Number(row, operator.itemgetter(count))
        state: State = with_leaves(self._state, known)
        return state


def _alike(old: State, new: State) -> bool:
    """Whether arrays stay arrays of one shape, numbers numbers, and nothing nothing."""
    return list(map(_kind, leaves(old))) == list(map(_kind, leaves(new)))


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, (Number, int, float)):
        return "number"
    return None if leaf is None else (tuple(leaf.shape), str(leaf.dtype))


def _part(room: Batch, rows: slice) -> Batch:
    part: Batch = map_tree(lambda array: array[rows, ...], room)
    return part


def _numbers(state: State) -> list[float]:
    return [leaf for leaf in leaves(state) if isinstance(leaf, (int, float))]


def _constant(number: float) -> Callable[[Start], float]:
    return lambda start: number
