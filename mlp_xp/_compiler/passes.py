"""What makes a recorded step cheaper, but no other step: fewer calls, fewer passes over memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlp_xp._compiler.graph import Graph, Value

JOIN_BYTES = 2**20
"""Arrays owned together are updated as one where they take up to so many bytes: larger ones each right
after their gradient, so that no two gradients are needed at once."""

FUSED_ELEMENTS = 2**15
"""Inputs of a layer below which the product does the addition of the bias too: larger products suffer more
from a size that is odd than they gain."""

OUTER = 2**15
"""Elements from where on products of a column and a row are no business of the BLAS."""

WIDE = 256
"""Above so many elements NumPy's exp and log1p, which are vectorised, beat its logaddexp, which is not."""


@dataclass
class Layout:
    """How owned arrays lie in memory: in groups, each one flat array."""

    groups: list[list[int]]
    sizes: list[int]
    place: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The group of each owned array, and the number of elements before it."""

    def __post_init__(self) -> None:
        for number, members in enumerate(self.groups):
            offset = 0
            for member in members:
                self.place[member] = (number, offset)
                offset += self.sizes[member]

    def adjacent(self, first: Value, second: Value) -> bool:
        """Whether one owned array begins where the other ends."""
        group, offset = self.place[first.detail]
        return self.place[second.detail] == (group, offset + first.size)


@dataclass
class Record:
    """A function as it was recorded.

    Attributes
    ----------
    graph : Graph
    layout : Layout
    owned : list of Value
        The arrays that the program keeps, as they are before a call.
    updates : dict of int to Value
        What each owned array that changes holds after it; after `joined`, of groups too, as -1 - group.
    results : list of Value or number
        What the call returns.
    widened : bool
        Whether the first array given has a column of ones behind its own.
    """

    graph: Graph
    layout: Layout
    owned: list[Value]
    updates: dict[int, Value]
    results: list[Any]
    widened: bool = False

    @property
    def roots(self) -> list[Value]:
        """The values that are asked for."""
        return [*self.updates.values(), *(value for value in self.results if isinstance(value, Value))]


def live(roots: Iterable[Value]) -> list[Value]:
    """List the values that the roots are made of, each after its operands."""
    found: set[int] = set()
    sorted_values: list[Value] = []
    stack = [(root, False) for root in roots]
    while stack:
        value, done = stack.pop()
        if done:
            sorted_values.append(value)
        elif id(value) not in found:
            found.add(id(value))
            stack.append((value, True))
            stack.extend((operand, False) for operand in value.arrays)
    return sorted_values


def users(values: Iterable[Value]) -> dict[int, list[Value]]:
    """Say which of the values each is an operand of, by its id."""
    of: dict[int, list[Value]] = {}
    for value in values:
        for operand in value.arrays:
            of.setdefault(id(operand), []).append(value)
    return of


def optimised(record: Record) -> Record:
    """Apply all passes."""
    widen(record)
    multiply_outer(record)
    for value in live(record.roots):
        if value.kind == "reduce":
            # While what is summed is in the cache.
            value.order = value.operands[0].order + 0.5
    fuse_affine(record)
    join(record)
    return record


def widen(record: Record) -> None:
    """Write logaddexp of many elements as ``max(x, y) + log1p(exp(-|x - y|))``."""
    graph = record.graph
    for value in live(record.roots):
        if value.function is np.logaddexp and value.size >= WIDE:
            x, y = value.operands
            distance = graph.map(np.negative, (graph.map(np.absolute, (graph.map(np.subtract, (x, y)),)),))
            rest = graph.map(np.log1p, (graph.map(np.exp, (distance,)),))
            value.function, value.operands = np.add, (graph.map(np.maximum, (x, y)), rest)


def multiply_outer(record: Record) -> None:
    """Write the product of a column and a row as a multiplication, which goes by blocks with what follows."""
    for value in live(record.roots):
        if value.kind == "matmul" and value.size >= OUTER and value.operands[0].shape[1:] == (1,):
            value.kind, value.function = "map", np.multiply


def fuse_affine(record: Record) -> None:
    """Let the products do the additions of biases, and the sums that are the biases' gradients.

    Where a bias follows its weight in memory, the two are one matrix with a row more, and with a column
    of ones beside the inputs ``inputs @ weight + bias`` is one product; so is the gradient of both. It
    takes two calls from each layer after the first.
    """
    values = live(record.roots)
    of = users(values)
    widened: set[int] = set()
    updated = set(map(id, record.updates.values()))
    for value in values:
        parts = _affine(record, value, of)
        if parts is not None and id(parts[0]) not in updated:
            value.kind, value.function, value.operands = "affine", None, parts
            widened.add(id(parts[0]))
    sums = {
        id(value.operands[0]): value
        for value in values
        if value.kind == "reduce" and value.function is np.add and value.detail == (0, False)
    }
    for value in values:
        if value.kind != "matmul" or value.operands[0].kind != "transpose":
            continue
        inputs, delta = value.operands[0].operands[0], value.operands[1]
        bias_gradient = sums.get(id(delta))
        if id(inputs) in widened and bias_gradient is not None:
            rows, columns = value.shape
            both = Value(
                "affine_gradient", (rows + 1, columns), value.dtype, None, (inputs, delta), None, value.order
            )
            for part, detail in ((value, slice(0, rows)), (bias_gradient, rows)):
                part.kind, part.function, part.operands, part.detail = "part", None, (both,), detail


def _affine(record: Record, value: Value, of: dict[int, list[Value]]) -> tuple[Value, ...] | None:
    """Return inputs, weight and bias, if the value is made of them and they allow it."""
    if value.function is not np.add or len(value.arrays) != 2:
        return None
    product, bias = value.arrays
    if product.kind != "matmul" or len(product.shape) != 2 or bias.kind != "owned" or len(bias.shape) != 1:
        return None
    inputs, weight = product.operands
    fits = (
        len(of[id(product)]) == 1
        and weight.kind == "owned"
        and weight.shape[1] == bias.shape[0]
        and record.layout.adjacent(weight, bias)
        and (inputs.kind in ("map", "affine") or (inputs.kind == "given" and record.widened))
        and inputs.size < FUSED_ELEMENTS
    )
    return (inputs, weight, bias) if fits else None


def join(record: Record) -> None:
    """Update small arrays that are owned together by the same calls: one for all instead of one for each."""
    layout, joiner = record.layout, _Joiner(record)
    for number, members in enumerate(layout.groups):
        values = [record.updates.get(member) for member in members]
        if len(members) < 2 or None in values:
            continue
        if sum(value.nbytes for value in values if value is not None) > JOIN_BYTES:
            continue
        try:
            joined = joiner.join(tuple(value for value in values if value is not None))
        except (RecursionError, _ApartError):  # of a chain of hundreds of calls
            continue
        if joined.kind == "map":
            for member in members:
                del record.updates[member]
            record.updates[-1 - number] = joined


class _ApartError(Exception):
    """Some of the values stay where they are."""


class _Joiner:
    """Makes one flat value of several that are computed alike; others are laid side by side."""

    def __init__(self, record: Record) -> None:
        self.layout = record.layout
        self.made: dict[tuple[int, ...], Value] = {}

    def join(self, values: tuple[Value, ...]) -> Value:
        """Return the values as one."""
        key = tuple(map(id, values))
        if key not in self.made:
            self.made[key] = self._arena(values) or self._map(values) or self._side_by_side(values)
        return self.made[key]

    def _arena(self, values: tuple[Value, ...]) -> Value | None:
        if any(value.kind != "owned" for value in values):
            return None
        members = [value.detail for value in values]
        if members not in self.layout.groups:
            return None
        return self._flat("arena", values, detail=self.layout.groups.index(members))

    def _map(self, values: tuple[Value, ...]) -> Value | None:
        first = values[0]
        alike = all(value.kind == "map" and value.function is first.function for value in values)
        if not alike or first.function is np.where:
            return None
        operands = []
        for position in range(len(first.operands)):
            column = [value.operands[position] for value in values]
            if all(operand is column[0] or _same_literal(operand, column[0]) for operand in column):
                if isinstance(column[0], Value) and column[0].shape != ():
                    return None
                operands.append(column[0])
            elif all(
                isinstance(operand, Value) and operand.shape == value.shape and operand.dtype == value.dtype
                for operand, value in zip(column, values)
            ):
                operands.append(self.join(tuple(column)))
            else:
                return None
        return self._flat("map", values, first.function, tuple(operands))

    def _side_by_side(self, values: tuple[Value, ...]) -> Value:
        if any(value.kind == "accumulate" for value in values):
            raise _ApartError
        return self._flat("joint", values, operands=values)

    def _flat(
        self,
        kind: str,
        values: tuple[Value, ...],
        function: Any = None,
        operands: tuple[Any, ...] = (),
        detail: Any = None,
    ) -> Value:
        length, order = sum(value.size for value in values), max(value.order for value in values)
        return Value(kind, (length,), values[0].dtype, function, operands, detail, order)


def _same_literal(one: Any, other: Any) -> bool:
    return not isinstance(one, Value) and type(one) is type(other) and one == other
