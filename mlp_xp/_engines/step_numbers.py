"""Numbers that change from step to step, such as the learning rate, in steps that a CUDA graph replays.

A captured kernel reads the same memory in each replay. So a step is captured with a `StepNumber` for each
such number. What is computed from these numbers alone stays on the host, as a list of operations on the
numbers that the step starts with. A number that is an operand of an array operation is read from a table on
the device, which the host fills before each replay by running the operations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from mlp_xp._arrays import Array, HostArray
from mlp_xp._engines.base import State
from mlp_xp._parameters import leaves, with_leaves

MAX_NUMBERS_PER_STEP = 64
"""Maximum number of step numbers that are operands of array operations in one step: the table's width.

Chosen so that it exceeds what optimizers need (AdamW has two) and a table of 64 steps takes 32 KiB.
"""

Operation: TypeAlias = "tuple[Callable[..., float], tuple[int, ...]]"
"""A function of numbers, and the positions of its operands: see `TableRow`."""


class NotCapturableError(Exception):
    """The step does something that a replay cannot repeat."""


class StepNumber:
    """A symbolic number that changes from step to step.

    An operation with another number is recorded, for the host to run. One with an array reads the number
    from the table. Conditions and conversions raise `NotCapturableError`, because a replay cannot take
    another branch.

    Parameters
    ----------
    row : TableRow
    position : int
        Where `row` has it, among the numbers of the step.
    """

    __array_ufunc__ = None  # makes arrays of NumPy and CuPy leave binary operators to this class

    def __init__(self, row: TableRow, position: int) -> None:
        self.row = row
        self.position = position

    def __cupy_get_ndarray__(self) -> Array:
        return self.row.entry_of(self)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        # Without this method, ``tensor *= number`` would make another tensor instead of writing in place.
        arrays = [one.row.entry_of(one) if isinstance(one, StepNumber) else one for one in arguments]
        return function(*arrays, **(options or {}))

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotCapturableError("a condition or a conversion uses a number that changes from step to step")

    __bool__ = __float__ = __int__ = __index__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = object.__hash__

    def __neg__(self) -> StepNumber:
        return self.row.result(operator.neg, self)


def _binary_method(function: Callable[[Any, Any], Any], *, swapped: bool) -> Callable[[StepNumber, Any], Any]:
    """Return the method of `StepNumber` for a binary operator, or for its reflected (swapped) form."""

    def method(self: StepNumber, other: Any) -> Any:
        if isinstance(other, (StepNumber, int, float)):
            return self.row.result(function, *order(self, other))
        return function(*order(self.row.entry_of(self), other))

    def order(mine: Any, other: Any) -> tuple[Any, Any]:
        return (other, mine) if swapped else (mine, other)

    return method


OPERATORS: dict[Any, Callable[..., Any]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.divide: operator.truediv,
    np.power: operator.pow,
    np.floor_divide: operator.floordiv,
    np.remainder: operator.mod,
    np.negative: operator.neg,
}
"""The operators that a `StepNumber` has, by their ufuncs."""

for _operator in OPERATORS.values():
    if _operator is not operator.neg:
        setattr(StepNumber, f"__{_operator.__name__}__", _binary_method(_operator, swapped=False))
        setattr(StepNumber, f"__r{_operator.__name__}__", _binary_method(_operator, swapped=True))


class TableRow:
    """A row of the table on the device, for the numbers of one step.

    Parameters
    ----------
    entries : array of shape (MAX_NUMBERS_PER_STEP,)
        A view of the table.
    n_start : int
        How many numbers the step starts with: its learning rate, and those in the optimizer's state.

    Attributes
    ----------
    operations : list of Operation
        What the host computes, in order. The numbers that the step starts with have the first positions, the
        results of the operations the next.
    numbers : list of int
        The positions of the numbers that have entries, in the order of their first use.
    """

    def __init__(self, entries: Array, n_start: int) -> None:
        self.entries = entries
        self.n_start = n_start
        self.operations: list[Operation] = []
        self.numbers: list[int] = []

    def result(self, function: Callable[..., float], *operands: Any) -> StepNumber:
        """Record an operation; return its result."""
        self.operations.append((function, tuple(map(self.position_of, operands))))
        return StepNumber(self, self.n_start + len(self.operations) - 1)

    def position_of(self, number: Any) -> int:
        """Return the position of a `StepNumber`, or of a number that is the same in all steps."""
        known = number if isinstance(number, StepNumber) else self.result(lambda: number)
        return known.position

    def entry_of(self, number: StepNumber) -> Array:
        """Return the entry of a number, an array of shape (); a number that has none gets the next one."""
        if number.position not in self.numbers:
            if len(self.numbers) == MAX_NUMBERS_PER_STEP:
                raise NotCapturableError(f"more than {MAX_NUMBERS_PER_STEP} numbers change from step to step")
            self.numbers.append(number.position)
        return self.entries[self.numbers.index(number.position)]

    def values(self, start: Sequence[float]) -> list[float]:
        """Return the numbers of the step by their positions, from those that it starts with."""
        values = list(start)
        for function, operands in self.operations:
            values.append(function(*[values[position] for position in operands]))
        return values


class CapturedStep(NamedTuple):
    """What the host does for a step of a captured graph.

    Steps on batches of other lengths may record other operations, or in another order, as their programs
    differ.

    Attributes
    ----------
    row : TableRow
    numbers_after : list of int
        The positions of the numbers in the optimizer's state after the step.
    """

    row: TableRow
    numbers_after: list[int]


class CapturedSteps(NamedTuple):
    """A captured graph of steps.

    Attributes
    ----------
    replay : callable
        It launches the graph.
    steps : list of CapturedStep
    """

    replay: Callable[[], None]
    steps: list[CapturedStep]

    def table(self, rates: Sequence[float], numbers: list[float]) -> tuple[HostArray, list[float]]:
        """Return the table of the steps at these learning rates, and the numbers in the state after them."""
        table = np.zeros((len(rates), MAX_NUMBERS_PER_STEP))
        for entries, rate, (row, numbers_after) in zip(table, rates, self.steps, strict=True):
            values = row.values((rate, *numbers))
            entries[: len(row.numbers)] = [values[position] for position in row.numbers]
            numbers = [values[position] for position in numbers_after]
        return table, numbers


def learning_rate(row: TableRow) -> Any:
    """Return the learning rate of a step as a `StepNumber`."""
    return StepNumber(row, 0)


def with_step_numbers(state: State, row: TableRow) -> State:
    """Return the state with a `StepNumber` in place of each number."""
    new: list[Any] = leaves(state)
    count = 0
    for index, leaf in enumerate(new):
        if isinstance(leaf, (int, float)):
            count += 1  # 0 is the learning rate
            new[index] = StepNumber(row, count)
    result: State = with_leaves(state, new)
    return result


def positions_of(state: State, row: TableRow) -> list[int]:
    """List the positions of the numbers in a state that a captured step returned."""
    return [row.position_of(leaf) for leaf in leaves(state) if isinstance(leaf, (StepNumber, int, float))]


def numbers_of(state: State) -> list[float]:
    """List the numbers in a state."""
    return [leaf for leaf in leaves(state) if isinstance(leaf, (int, float))]


def with_numbers(state: State, numbers: Sequence[float]) -> State:
    """Return the state with its numbers replaced, in the order of `numbers_of`."""
    new = iter(numbers)
    result: State = with_leaves(
        state, [next(new) if isinstance(leaf, (int, float)) else leaf for leaf in leaves(state)]
    )
    return result


def same_structure(old: State, new: State) -> bool:
    """Whether two states agree in the shapes and dtypes of arrays, and in where numbers and Nones are."""
    before, after = leaves(old), leaves(new)
    return len(before) == len(after) and all(
        one is other or _leaf_spec(one) == _leaf_spec(other) for one, other in zip(before, after)
    )


def _leaf_spec(leaf: Any) -> Any:
    if isinstance(leaf, (StepNumber, int, float)):
        return "number"
    return None if leaf is None else (tuple(leaf.shape), str(leaf.dtype))
