"""Epochs of compiled steps: the way for NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._arrays import Array, HostArray, row_slices
from mlp_xp._compiler import NotRecordableError, Program, compile_function
from mlp_xp._compiler.passes import MIN_ELEMENTS_WITHOUT_BIAS_FUSION
from mlp_xp._compiler.rows import ArraySpec, cached_by_arguments
from mlp_xp._engines import Epoch, State, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, is_array, leaves, with_leaves
from mlp_xp._samples import Batch, Rows, Samples

MAX_BYTES_SHUFFLED_AT_ONCE = 2**20
"""Samples that take up to so many bytes are put in order once an epoch; of others each batch is."""


class StepBatch(NamedTuple):
    """One step of an epoch.

    Attributes
    ----------
    step : callable ``(X, y, sample_weight, learning_rate, *numbers) -> (loss, *numbers)``
        It changes the engine's parameters and arrays of optimizer state, and returns the numbers in it.
    share : float
        The part of the epoch's samples that it sees.
    batch : Batch
    """

    step: Any
    share: float
    batch: Batch


class CompiledEngine:
    """Runs steps as straight lines of NumPy calls; see `mlp_xp._engines.Engine` and `mlp_xp._compiler`."""

    name = "compiled"

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State
    ) -> None:
        self.losses: list[Array] = []
        self.structure = _state_like(state)
        self.layout = _groups(self.structure)
        self.groups = [np.empty(sum(leaf.size for leaf in group), group[0].dtype) for group in self.layout]
        self.state = state
        self.pool: list[HostArray] = []
        # The rate is an argument of a program, and no reason for another one.
        settings = network, replace(optimizer, learning_rate=0.0)
        # The largest first: the others find room in its memory.
        n_samples = len(samples)
        batch_size = min(batch_size, n_samples)
        rest = self.structure, _is_widened(samples, batch_size)
        steps = {
            length: self._bound(_compile_step(*settings, _batch_like(samples, length), *rest))
            for length in dict.fromkeys((batch_size, n_samples % batch_size or batch_size))
        }
        self.batches = _Batches(samples, batch_size, steps)

    @property
    def state(self) -> State:
        """The state now, in arrays that later steps write in."""
        return self._state_of(self.groups)

    @state.setter
    def state(self, state: State) -> None:
        values = leaves(state)
        self.numbers = list(filter(_is_number, values))
        arrays = (view for flat, group in zip(self.groups, self.layout) for view in _views(flat, group))
        for mine, given in zip(arrays, filter(is_array, values)):
            mine[...] = given

    def _state_of(self, groups: list[HostArray]) -> State:
        arrays = (view for flat, group in zip(groups, self.layout) for view in _views(flat, group))
        numbers = iter(self.numbers)
        state: State = with_leaves(
            self.structure,
            [
                next(arrays) if is_array(leaf) else next(numbers) if _is_number(leaf) else leaf
                for leaf in leaves(self.structure)
            ],
        )
        return state

    def is_finite(self) -> bool:
        """Whether all of the state is finite."""
        return all_finite(np, self.groups)

    def copied_state(self) -> State:
        """Return the state in arrays of its own."""
        return self._state_of([group.copy() for group in self.groups])

    def _bound(self, program: Program) -> Any:
        """Give a program its memory, most of it shared with the others: they never run at one time."""
        self.pool += [np.empty(nbytes, np.uint8) for nbytes in program.pool_nbytes[len(self.pool) :]]
        apart = {location.buffer[1] for location in program.ones}
        pool = [
            shared if len(shared) >= nbytes and index not in apart else np.empty(nbytes, np.uint8)
            for index, (shared, nbytes) in enumerate(zip(self.pool, program.pool_nbytes))
        ]
        return program.bind(self.groups, pool)

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs."""
        append, numbers = self.losses.append, self.numbers
        try:
            for rate, order in epochs:
                mean = 0.0
                for step, share, (X, y, sample_weight) in self.batches.of_epoch(order):
                    loss, *numbers = step(X, y, sample_weight, rate, *numbers)
                    mean = mean + share * loss
                append(mean)
        finally:
            # Also when interrupted: what is trained of an epoch is kept.
            self.numbers = numbers


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (int, float)) and not isinstance(leaf, bool)


def _keeps_its_kind(old: Any, new: Any) -> bool:
    """Whether an array stays one, a number a number, and nothing nothing."""
    if not _is_number(old):
        return is_array(old) == is_array(new) and (old is None) == (new is None)
    return _is_number(new) or (is_array(new) and new.shape == () and new.dtype in (None, np.float64))


def _batch_like(samples: Samples, length: int) -> tuple[ArraySpec | None, ...]:
    dtype = np.dtype(samples.place.dtype)
    return tuple(
        None if array is None else ArraySpec((length, *array.shape[1:]), dtype) for array in samples.arrays
    )


def _state_like(state: State) -> State:
    if any(type(leaf) is bool for leaf in leaves(state)):
        raise NotRecordableError("a decision by the state")
    like: State = with_leaves(
        state,
        [
            ArraySpec(leaf.shape, leaf.dtype)
            if is_array(leaf)
            else type(leaf)()
            if _is_number(leaf)
            else leaf
            for leaf in leaves(state)
        ],
    )
    return like


def _groups(state: State) -> list[list[Any]]:
    """List the arrays of a state in groups: parameters, and what there is one of for each of them."""
    params, rest = leaves(state[0]), list(filter(is_array, leaves(state[1])))
    kinds = [(leaf.shape, leaf.dtype) for leaf in params]
    groups = [params]
    while rest:
        alike = [(leaf.shape, leaf.dtype) for leaf in rest[: len(params)]] == kinds
        groups.append(rest[: len(params) if alike else 1])
        rest = rest[len(groups[-1]) :]
    return groups


def _views(flat: HostArray, group: list[Any]) -> Iterator[HostArray]:
    start = 0
    for leaf in group:
        yield flat[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size


@cached_by_arguments
def _compile_step(
    network: Network, optimizer: Optimizer, batch: tuple[ArraySpec | None, ...], like: State, widened: bool
) -> Program:
    step = make_step(network, optimizer, np)
    old = leaves(like)

    def function(owned: list[Any], given: list[Any], numbers: list[Any]) -> tuple[list[Any], list[Any]]:
        rate, arrays, others = numbers[0], iter(owned), iter(numbers[1:])
        state = [
            next(arrays) if is_array(leaf) else next(others) if _is_number(leaf) else leaf for leaf in old
        ]
        params, optimizer_state = with_leaves(like, state)
        X, y, sample_weight = given
        params, optimizer_state, loss = step(params, optimizer_state, X, y, sample_weight, rate)
        new = leaves((params, optimizer_state))
        if len(new) != len(old):
            raise NotRecordableError("an optimizer's state of another structure")
        if not all(map(_keeps_its_kind, old, new)):
            raise NotRecordableError("an optimizer's state that holds something else than before")
        updated = [leaf for leaf, before in zip(new, old) if is_array(before)]
        return updated, [loss, *(leaf for leaf, before in zip(new, old) if _is_number(before))]

    return compile_function(function, _groups(like), batch, 1 + sum(map(_is_number, old)), widened)


def _is_small(samples: Samples) -> bool:
    """Whether there is room for a copy of the samples, in the order of an epoch."""
    return len(samples) * samples.row_bytes <= MAX_BYTES_SHUFFLED_AT_ONCE


def _is_widened(samples: Samples, batch_size: int) -> bool:
    """Whether a column of ones stands beside the samples, for products that add the bias."""
    return _is_small(samples) and batch_size * samples.X.shape[1] < MIN_ELEMENTS_WITHOUT_BIAS_FUSION


class _Batches:
    """The parts of an epoch: batches of the samples in any order, in arrays of the parameters' dtype.

    A few samples are put in order all at once, maybe beside a column of ones. Of many each batch is, by
    itself.
    """

    def __init__(self, samples: Samples, size: int, steps: dict[int, Any]) -> None:
        self.samples = samples
        self.steps = steps
        n_samples = len(samples)
        self.slices = partial(row_slices, n_samples, size)
        self.in_order = False
        self.fixed: list[StepBatch] | None = None
        self.is_small = _is_small(samples)
        if self.is_small:
            self.n_ones = int(_is_widened(samples, size))
            self.room = self._room(n_samples, self.n_ones)
            self.fixed = [self._part(rows, _some(self.room, rows)) for rows in self.slices()]
        elif size >= n_samples:
            self.fixed = [self._part(slice(0, n_samples), samples.whole())]
        else:
            self.room = self._room(size)

    def of_epoch(self, order: Rows | None) -> Iterable[StepBatch]:
        """Return the steps of an epoch that takes the samples in this order."""
        if self.fixed is None:
            order = self._rows(order)
            return (self._part(rows, self._take(order, rows)) for rows in self.slices())
        if self.is_small and not (order is None and self.in_order):
            self._take(self._rows(order), slice(0, len(self.samples)))
            self.in_order = order is None
        return self.fixed

    def _rows(self, order: Rows | None) -> Rows | None:
        rows = self.samples.rows
        if rows is None or order is None:
            return order if rows is None else rows
        return rows[order]

    def _part(self, rows: slice, batch: Batch) -> StepBatch:
        length = rows.stop - rows.start
        return StepBatch(self.steps[length], length / len(self.samples), batch)

    def _room(self, length: int, n_ones: int = 0) -> Batch:
        X, y, sample_weight = self.samples.arrays
        dtype = self.samples.place.dtype
        return Batch(
            np.ones((length, X.shape[1] + n_ones), dtype),
            np.empty((length, *y.shape[1:]), dtype),
            None if sample_weight is None else np.empty(length, dtype),
        )

    def _take(self, order: Rows | None, rows: slice) -> Batch:
        """Put these rows of the order where the steps look for them, or return them where they are."""
        room = _some(self.room, slice(0, rows.stop - rows.start))
        if self.is_small:
            room = room._replace(X=room.X[:, : room.X.shape[1] - self.n_ones])
        return Batch(
            *(
                None if array is None else _placed(array, order, rows, place, copy=self.is_small)
                for array, place in zip(self.samples.arrays, room)
            )
        )


def _some(batch: Batch, rows: slice) -> Batch:
    return Batch(*(None if array is None else array[rows] for array in batch))


def _placed(array: HostArray, order: Rows | None, rows: slice, place: HostArray, *, copy: bool) -> HostArray:
    same = array.dtype == place.dtype
    if order is None:
        if same and not copy:
            return array[rows]
        place[...] = array[rows]
    elif same and place.flags.c_contiguous:
        # Any mode but "raise" writes where it is told without a copy between.
        np.take(array, order[rows], axis=0, out=place, mode="clip")
    else:
        place[...] = array[order[rows]]
    return place
