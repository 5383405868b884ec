"""Tracing: a function of NumPy arrays, run once on tracers, becomes a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlp_xp._compiler.graph import Graph, NotRecordableError, Tracer, Value


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array: what a function is traced with, and part of the keys of programs."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def group_target(group: int) -> int:
    """Return the target that is a whole group of state arrays: a negative number."""
    return -1 - group


@dataclass
class StateLayout:
    """Where the state arrays lie: each group of them is one flat array.

    A target of an update is a state array, by its index, or a whole group, by its `group_target`.
    """

    groups: list[list[int]]
    sizes: list[int]
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The group of each target, and the number of elements before it in the flat array."""

    def __post_init__(self) -> None:
        for group, members in enumerate(self.groups):
            self.offsets[group_target(group)] = (group, 0)
            offset = 0
            for member in members:
                self.offsets[member] = (group, offset)
                offset += self.sizes[member]

    def members(self, target: int) -> list[int]:
        """List the state arrays that a target consists of."""
        return [target] if target >= 0 else self.groups[-1 - target]  # inverts `group_target`

    def adjacent(self, first: Value, second: Value) -> bool:
        """Whether one state array begins where the other ends."""
        group, offset = self.offsets[first.detail]
        return self.offsets[second.detail] == (group, offset + first.size)


@dataclass
class TracedFunction:
    """A function as a graph; passes rewrite it in place.

    Attributes
    ----------
    graph : Graph
    layout : StateLayout
    state : list of Value
        The state arrays, as they are before a call.
    updates : dict of int to Value
        By target (see `StateLayout`), the new value of each state array or group that changes.
    results : list of Value or number
        What the call returns.
    inputs : list of Value or None
        The arrays that are arguments of a call.
    n_scalars : int
        How many numbers a call has as arguments.
    has_ones_column : bool
        Whether the array passed as the first input has one column more, which holds ones.
    """

    graph: Graph
    layout: StateLayout
    state: list[Value]
    updates: dict[int, Value]
    results: list[Any]
    inputs: list[Value | None]
    n_scalars: int
    has_ones_column: bool

    @property
    def computed_results(self) -> list[Value]:
        """The results that are no literals."""
        return [result for result in self.results if isinstance(result, Value)]

    @property
    def roots(self) -> list[Value]:
        """The values that have to be computed: updates and results."""
        return [*self.updates.values(), *self.computed_results]


def trace_function(
    function: Callable[..., tuple[Sequence[Any], Sequence[Any]]],
    state: Sequence[Sequence[Any]],
    inputs: Sequence[Any],
    n_scalars: int = 0,
    has_ones_column: bool = False,
) -> TracedFunction:
    """Return the graph of a function; `mlp_xp._compiler.compile_function` describes the arguments."""
    graph = Graph()
    arrays = [array for group in state for array in group]
    starts = [sum(len(group) for group in state[:index]) for index in range(len(state))]
    groups = [list(range(start, start + len(group))) for start, group in zip(starts, state)]
    if any(array.dtype != group[0].dtype for group in state for array in group):
        raise NotRecordableError("a group of state arrays of different dtypes")
    if any(array.shape == () for array in [*arrays, *inputs] if array is not None):
        raise NotRecordableError("an array without dimensions")
    before = [graph.add("state", array.shape, array.dtype, detail=i) for i, array in enumerate(arrays)]
    input_values = [
        None if array is None else graph.add("input", array.shape, array.dtype, detail=i)
        for i, array in enumerate(inputs)
    ]
    scalars = [graph.add("scalar_input", (), None, detail=i) for i in range(n_scalars)]

    def tracers(values: Sequence[Value | None]) -> list[Tracer | None]:
        return [None if value is None else Tracer(graph, value) for value in values]

    try:
        after, results = function(tracers(before), tracers(input_values), tracers(scalars))
    except NotRecordableError:
        raise
    except Exception as error:
        raise NotRecordableError(f"{type(error).__name__}: {error}") from error
    updates = {}
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        value = old if new is None else _value_or_number(new)
        if value is not old:
            if not isinstance(value, Value) or (value.shape, value.dtype) != (old.shape, old.dtype):
                raise NotRecordableError("a state array that changes its shape or dtype")
            updates[index] = value
    returned = list(map(_value_or_number, results))
    overwritten = [before[index] for index in updates]
    if any(isinstance(value, Value) and value.base in overwritten for value in returned):
        raise NotRecordableError("a result that is the old value of an updated state array")
    layout = StateLayout(groups, [value.size for value in before])
    return TracedFunction(graph, layout, before, updates, returned, input_values, n_scalars, has_ones_column)


def _value_or_number(result: Any) -> Value | float:
    if isinstance(result, Tracer):
        return result.current_value()
    if type(result) not in (int, float):
        raise NotRecordableError(f"a result of type {type(result).__name__}")
    number: float = result
    return number
