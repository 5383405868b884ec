"""Graph passes that make a step cheaper: fewer calls and fewer passes over memory, same results."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlp_xp._compiler.graph import Value, find_users, reachable
from mlp_xp._compiler.trace import StateLayout, TracedFunction, group_target

MAX_GROUP_BYTES_TO_FUSE = 2**20
"""Size of a state group up to which one call updates all of its arrays. Arrays of larger groups are updated
each right after their gradient, so that only one gradient has to be in memory at a time."""

MIN_ELEMENTS_TO_KEEP_BIAS_SEPARATE = 2**15
"""Minimum size of a layer's inputs whose bias is added by a call of its own: in larger products the odd size
that the column of ones gives costs more than the saved calls. Measured with NumPy 2.4 on 2 cores for 128
inputs and 64 units, a column of ones saved a tenth of the products' time with 256 rows, and nothing with 512.
"""

MIN_ELEMENTS_TO_MULTIPLY_OUTER = 2**15
"""Outer products with at least this many elements are computed by `np.multiply`, not BLAS: it is as fast, and
from this size on part of a fused region (see `mlp_xp._compiler.regions.MIN_ELEMENTS_TO_BLOCK`)."""

MIN_ELEMENTS_TO_EXPAND_LOGADDEXP = 2**8
"""From this size on NumPy's exp and log1p, which are vectorised, beat its logaddexp, which is not: measured
with NumPy 2.4, the calls of both take as long between 128 and 256 elements of float64."""


def optimise(traced: TracedFunction) -> None:
    """Apply all passes of this module.

    `multiply_outer_products` precedes `fuse_bias`, which would take these products too, and
    `fuse_group_updates` is last, because `fuse_bias` looks up the updates of single arrays. All follow
    `mlp_xp._compiler.accumulate`, which does not find products and updates that they have rewritten.
    """
    expand_logaddexp(traced)
    multiply_outer_products(traced)
    reduce_early(traced)
    fuse_bias(traced)
    fuse_group_updates(traced)


def expand_logaddexp(traced: TracedFunction) -> None:
    """Rewrite logaddexp of many elements as ``max(x, y) + log1p(exp(-|x - y|))``."""
    graph = traced.graph
    for value in reachable(traced.roots):
        if value.function is np.logaddexp and value.size >= MIN_ELEMENTS_TO_EXPAND_LOGADDEXP:
            x, y = value.operands
            distance = graph.map(np.absolute, (graph.map(np.subtract, (x, y)),))
            correction = graph.map(np.log1p, (graph.map(np.exp, (graph.map(np.negative, (distance,)),)),))
            value.function, value.operands = np.add, (graph.map(np.maximum, (x, y)), correction)


def multiply_outer_products(traced: TracedFunction) -> None:
    """Rewrite large products of a column and a row as elementwise products, which fuse with what follows."""
    for value in reachable(traced.roots):
        is_outer = value.kind == "matmul" and value.operands[0].shape[1:] == (1,)
        if is_outer and value.size >= MIN_ELEMENTS_TO_MULTIPLY_OUTER:
            value.kind, value.function = "map", np.multiply


def reduce_early(traced: TracedFunction) -> None:
    """Schedule each reduction right after its operand, while that is in the cache."""
    for value in reachable(traced.roots):
        if value.kind == "reduce":
            value.priority = value.operands[0].priority + 0.5


def fuse_bias(traced: TracedFunction) -> None:
    """Fuse ``inputs @ weight + bias`` into one product ("affine"), and the two gradients likewise.

    Where a bias follows its weight in memory, the two are one matrix with one row more. Multiplied by the
    inputs with a column of ones, it gives the layer's output; the transposed inputs, with a row of ones,
    times delta give both gradients ("affine_gradient", of which weight's and bias's are slices). This saves
    two calls in each layer after the first.
    """
    values = reachable(traced.roots)
    users = find_users(values)
    with_ones: set[int] = set()
    updated = set(map(id, traced.updates.values()))
    for value in values:
        operands = _affine_operands(traced, value, users)
        # In an updated state array there is no room for the ones.
        if operands is not None and id(operands[0]) not in updated:
            value.kind, value.function, value.operands = "affine", None, operands
            with_ones.add(id(operands[0]))
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
        if id(inputs) in with_ones and bias_gradient is not None:
            rows, columns = value.shape
            # Values made past `Graph.add`, here and in `_HorizontalFusion`, are not in `graph.values`: after
            # the passes only `reachable` lists all values.
            shape, operands = (rows + 1, columns), (inputs, delta)
            gradients = Value("affine_gradient", shape, value.dtype, None, operands, None, value.priority)
            for gradient, detail in ((value, slice(0, rows)), (bias_gradient, rows)):
                gradient.kind, gradient.function = "slice", None
                gradient.operands, gradient.detail = (gradients,), detail


def _affine_operands(
    traced: TracedFunction, value: Value, users: dict[int, list[Value]]
) -> tuple[Value, ...] | None:
    """Return inputs, weight and bias if the value is an affine map that can be fused."""
    if value.function is not np.add or len(value.arrays) != 2:
        return None
    product, bias = value.arrays
    if product.kind != "matmul" or len(product.shape) != 2 or bias.kind != "state" or len(bias.shape) != 1:
        return None
    inputs, weight = product.operands
    can_fuse = (
        len(users[id(product)]) == 1
        and weight.kind == "state"
        and weight.shape[1] == bias.shape[0]
        and traced.layout.adjacent(weight, bias)
        and (inputs.kind in ("map", "affine") or (inputs.kind == "input" and traced.has_ones_column))
        and inputs.size < MIN_ELEMENTS_TO_KEEP_BIAS_SEPARATE
    )
    return (inputs, weight, bias) if can_fuse else None


def fuse_group_updates(traced: TracedFunction) -> None:
    """Fuse the updates of a group's arrays, if alike, into one of the flat group (horizontal fusion)."""
    layout, fusion = traced.layout, _HorizontalFusion(traced.layout)
    for group, members in enumerate(layout.groups):
        values = [traced.updates[member] for member in members if member in traced.updates]
        if len(members) < 2 or len(values) < len(members):
            continue
        if sum(value.nbytes for value in values) > MAX_GROUP_BYTES_TO_FUSE:
            continue
        try:
            fused = fusion.fuse(tuple(values))
        except (RecursionError, _NotFusableError):  # recursion: chains of hundreds of operations
            continue
        # A concatenation of new values would only add copies.
        if fused.kind == "map":
            for member in members:
                del traced.updates[member]
            traced.updates[group_target(group)] = fused


class _NotFusableError(Exception):
    """One of the values cannot be part of a concatenation."""


class _HorizontalFusion:
    """Fuses values that are computed alike into one flat value; concatenates values that are not."""

    def __init__(self, layout: StateLayout) -> None:
        self.layout = layout
        self.fused: dict[tuple[int, ...], Value] = {}

    def fuse(self, values: tuple[Value, ...]) -> Value:
        """Return one flat value that holds the elements of all."""
        key = tuple(map(id, values))
        if key not in self.fused:
            self.fused[key] = self._state_group(values) or self._map(values) or self._concatenation(values)
        return self.fused[key]

    def _state_group(self, values: tuple[Value, ...]) -> Value | None:
        if any(value.kind != "state" for value in values):
            return None
        members = [value.detail for value in values]
        if members not in self.layout.groups:
            return None
        return self._flat("state_group", values, detail=self.layout.groups.index(members))

    def _map(self, values: tuple[Value, ...]) -> Value | None:
        first = values[0]
        alike = all(value.kind == "map" and value.function is first.function for value in values)
        if not alike or first.function is np.where:
            return None
        operands = []
        for position in range(len(first.operands)):
            at_position = [value.operands[position] for value in values]
            one = at_position[0]
            if all(operand is one or _same_literal(operand, one) for operand in at_position):
                if isinstance(one, Value) and one.shape != ():
                    return None  # an array that broadcasts differently to each value
                operands.append(one)
            elif all(
                isinstance(operand, Value) and operand.shape == value.shape and operand.dtype == value.dtype
                for operand, value in zip(at_position, values)
            ):
                operands.append(self.fuse(tuple(at_position)))
            else:
                return None
        return self._flat("map", values, first.function, tuple(operands))

    def _concatenation(self, values: tuple[Value, ...]) -> Value:
        if any(value.kind == "accumulate" for value in values):
            raise _NotFusableError
        return self._flat("concatenation", values, operands=values)

    def _flat(
        self,
        kind: str,
        values: tuple[Value, ...],
        function: Any = None,
        operands: tuple[Any, ...] = (),
        detail: Any = None,
    ) -> Value:
        length, priority = sum(value.size for value in values), max(value.priority for value in values)
        return Value(kind, (length,), values[0].dtype, function, operands, detail, priority)


def _same_literal(one: Any, other: Any) -> bool:
    return not isinstance(one, Value) and type(one) is type(other) and one == other
