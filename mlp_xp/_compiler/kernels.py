"""Partition of a graph into kernels: stages of fused elementwise work, with products between them.

A GPU runs one kernel after the other, and each takes a few microseconds however little it computes. So all
values that depend on no result of each other's kernels are computed in one launch, a *stage*; after it come
the matrix products that read what it wrote. A stage consists of *segments*, whose values have one domain: a
matrix of elements, each computed by one thread. What a segment alone uses is never in memory.

Reductions are part of segments. Sums over the rows of a matrix (`ROW` reductions, along axis 1) are known to
all threads of the row, and later values of the segment may use them. Sums over the columns, and of all
elements, are complete when the segment is, and used in later stages only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from mlp_xp._compiler.graph import SOURCE_KINDS, VIEW_KINDS, NotRecordableError, Value, find_users, reachable
from mlp_xp._compiler.languages import KERNEL_DTYPES
from mlp_xp._compiler.trace import TracedFunction

Domain: TypeAlias = "tuple[int, int]"

ELEMENTWISE_KINDS = ("map", "zeros", "dot", "outer")
"""Kinds of values with an element for each thread. Of "dot" and "outer" it reads others of their operands."""

COMBINED_KINDS = ("map", "reduce", "join")
"""Kinds of values whose operands may be known to the thread, and not be in memory. A "join" is a matrix in
memory whose columns are computed one by one."""

LIBRARY_KINDS = ("matmul", "call")
"""Kinds of values that a library computes from whole arrays; "call" is its `function` of the operands."""

ROW, COLUMN, TOTAL = "row", "column", "total"
"""Reductions along axis 1, along axis 0, and of all elements."""

MAX_ELEMENTS_TO_UPDATE_LAST = 2**20
"""Arrays of up to this size are updated all in the last stage. The gradients of larger ones are not kept so
long: they are updated as soon as they can be."""


@dataclass(eq=False)
class Segment:
    """Values that one thread for each element of a domain computes.

    Attributes
    ----------
    domain : (int, int)
    values : list of Value
        In topological order.
    outputs : list of Value
        Those of them that are written to memory.
    """

    domain: Domain
    values: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def reductions(self, kind: str) -> list[Value]:
        """List the reductions of a kind."""
        return [value for value in self.values if value.kind == "reduce" and reduction_kind(value) == kind]


@dataclass
class Stage:
    """Segments that one kernel computes, and the products and other library calls that run after it."""

    segments: list[Segment] = field(default_factory=list)
    products: list[Value] = field(default_factory=list)

    @property
    def written(self) -> list[Value]:
        """The values that the stage writes to memory."""
        return [*(value for segment in self.segments for value in segment.outputs), *self.products]


@dataclass
class KernelPlan:
    """The kernels of a traced function.

    Attributes
    ----------
    stages : list of Stage
    in_place : dict of int to int
        By the id of an update that is written over the state array: the array's index.
    """

    traced: TracedFunction
    stages: list[Stage]
    in_place: dict[int, int]

    @property
    def copies(self) -> list[tuple[int, Value]]:
        """Updates that are copied over their state array in the end, as it is read when they are computed."""
        updates = self.traced.updates.items()
        return [(target, value) for target, value in updates if self.in_place.get(id(value)) != target]

    @property
    def written(self) -> list[Value]:
        """The values that are written to memory of their own, not over the state."""
        return [value for stage in self.stages for value in stage.written if id(value) not in self.in_place]

    def storage(self, base: Value) -> Value:
        """Return the value whose array holds a value that is no view: that of the state if it is in place."""
        target = self.in_place.get(id(base))
        return base if target is None else self.traced.state[target]


def plan_kernels(
    traced: TracedFunction,
    rewrite: Callable[[TracedFunction], None],
    max_elements_to_update_last: int = MAX_ELEMENTS_TO_UPDATE_LAST,
) -> KernelPlan:
    """Partition the graph of a traced function; it is rewritten in place.

    Parameters
    ----------
    traced : TracedFunction
    rewrite : callable
        What is done with the graph before.
    max_elements_to_update_last : int, optional

    Raises
    ------
    NotRecordableError
        If it holds something that kernels cannot compute.
    """
    rewrite(traced)
    return _Partition(traced, max_elements_to_update_last).plan()


def matrix_shape(shape: tuple[int, ...]) -> Domain:
    """Return the shape of a matrix with the same elements: vectors are rows."""
    if len(shape) > 2:
        raise NotRecordableError("an array of more than two dimensions")
    rows, columns = (1, 1, *shape)[-2:]
    return rows, columns


def is_transposed(operand: Value) -> bool:
    """Whether an operand is the transpose of what is in memory."""
    transposed = reshaped = False
    while operand.kind in VIEW_KINDS:
        if operand.kind == "transpose":
            if reshaped:
                raise NotRecordableError("a reshaped transpose")
            transposed = not transposed
        reshaped = reshaped or operand.kind != "transpose"
        operand = operand.operands[0]
    return transposed


def is_number(operand: Any) -> bool:
    """Whether an operand is a number that the host computes."""
    return isinstance(operand, Value) and operand.dtype is None


def is_computed(value: Value) -> bool:
    """Whether the value is computed in a segment."""
    return value.kind in (*ELEMENTWISE_KINDS, "reduce", "join") and value.dtype is not None


def is_scalar(value: Value) -> bool:
    """Whether each segment that uses the value computes it anew."""
    return value.kind == "map" and value.shape == () and value.dtype is not None


def reduction_kind(value: Value) -> str:
    """Return `ROW`, `COLUMN` or `TOTAL`."""
    axis, n_dimensions = value.detail[0], len(value.operands[0].shape)
    if axis is None or n_dimensions < 2:
        return TOTAL
    return COLUMN if axis == 0 else ROW


def _own_domain(value: Value) -> Domain:
    """Return the domain of a value that is computed with no other: an element a thread, of a "join" a row."""
    rows, columns = matrix_shape(value.shape)
    return rows, 1 if value.kind == "join" else columns


class _Partition:
    """Decides on the stage and the domain of each value, in topological order."""

    def __init__(self, traced: TracedFunction, max_elements_to_update_last: int) -> None:
        self.traced = traced
        self.max_elements_to_update_last = max_elements_to_update_last
        self.values = [value for value in reachable(traced.roots) if not is_number(value)]
        self.users = find_users(self.values)
        self.stage: dict[int, int] = {}
        self.domain: dict[int, Domain] = {}
        self.rows_reduced: set[tuple[int, Domain]] = set()
        self.columns_reduced: set[tuple[int, Domain]] = set()

    def plan(self) -> KernelPlan:
        for value in self.values:
            self._check(value)
            if value.kind in LIBRARY_KINDS:
                self.stage[id(value)] = max(self._when_written(operand.base) for operand in value.arrays)
            elif is_computed(value):
                self._place_reduction(value) if value.kind == "reduce" else self._place_map(value)
        self._update_last()
        self._sink()
        return KernelPlan(self.traced, self._stages(), self._updates_in_place())

    def _check(self, value: Value) -> None:
        if value.kind not in (
            *SOURCE_KINDS,
            "transpose",
            "reshape",
            "reduce",
            "join",
            "strided",
            *LIBRARY_KINDS,
            *ELEMENTWISE_KINDS,
        ):
            raise NotRecordableError(f"a value of kind {value.kind}")
        if value.dtype not in KERNEL_DTYPES:
            raise NotRecordableError(f"an array of dtype {value.dtype}")
        if value.kind in VIEW_KINDS and (is_scalar(value.base) or value.shape == ()):
            raise NotRecordableError("a view that is a number, or of one")
        matrix_shape(value.shape)

    def _when_written(self, base: Value) -> int:
        """Return the first stage after whose kernel an array is in memory."""
        return self.stage.get(id(base), 0)

    def _when_readable(self, base: Value) -> int:
        """Return the first stage whose kernel can read an array from memory."""
        return 0 if base.kind in SOURCE_KINDS else self.stage[id(base)] + 1

    def _fuses(self, operand: Value) -> bool:
        """Whether an operand is known to its thread as soon as it is computed."""
        if operand.kind == "reduce":
            return reduction_kind(operand) == ROW and bool(operand.detail[1])
        return operand.kind in ELEMENTWISE_KINDS

    def _stage_after(self, value: Value) -> tuple[int, list[Value]]:
        """Return the earliest stage of a value, and those of its operands that this stage computes too."""
        operands = [operand for operand in value.arrays if not is_number(operand)]
        fusable = [operand for operand in operands if value.kind in COMBINED_KINDS and self._fuses(operand)]
        known = [self.stage[id(operand)] for operand in fusable]
        read = [self._when_readable(operand.base) for operand in operands if operand not in fusable]
        stage = max([*known, *read], default=0)
        fused = [x for x in fusable if not is_scalar(x) and self.stage[id(x)] == stage]
        return stage, fused

    def _place_map(self, value: Value) -> None:
        stage, fused = self._stage_after(value)
        domain = own = _own_domain(value)
        if own[1] == 1 and value.shape != ():
            # A value for each row may be computed with the rows of a matrix.
            of_fused = [self.domain[id(operand)] for operand in fused]
            domain = next((one for one in of_fused if one[0] == own[0]), own)
        if any(self.domain[id(operand)] != domain for operand in fused):
            stage, domain = stage + 1, own
        self._place(value, stage, domain)

    def _place_reduction(self, value: Value) -> None:
        kind, (operand,) = reduction_kind(value), value.operands
        stage, fused = self._stage_after(value)
        if is_scalar(operand) or operand.dtype == np.dtype(bool):
            raise NotRecordableError("a reduction of a number, or of truth values")
        domain = own = matrix_shape(operand.shape)
        if fused:
            domain = self.domain[id(operand)]
            if kind != TOTAL and domain != own:
                stage, domain = stage + 1, own
        other = {ROW: self.columns_reduced, COLUMN: self.rows_reduced, TOTAL: set()}[kind]
        while (stage, domain) in other:
            stage, domain = stage + 1, own
        mine = {ROW: self.rows_reduced, COLUMN: self.columns_reduced, TOTAL: set()}[kind]
        mine.add((stage, domain))
        self._place(value, stage, domain)

    def _place(self, value: Value, stage: int, domain: Domain) -> None:
        self.stage[id(value)], self.domain[id(value)] = stage, domain

    def _update_last(self) -> None:
        """Move the updates of small arrays, and what only they use, to the last stage."""
        last = max(self.stage.values(), default=0)
        roots = {id(value): target for target, value in self.traced.updates.items()}
        results = set(map(id, self.traced.computed_results))
        moved: set[int] = set()
        for value in reversed(self.values):
            users = self.users.get(id(value), [])
            if (
                value.kind == "map"
                and not is_scalar(value)
                and value.size <= self.max_elements_to_update_last
                and id(value) not in results
                and (users or id(value) in roots)
                and self.domain[id(value)] == matrix_shape(value.shape)
                and all(id(user) in moved and user.shape == value.shape for user in users)
            ):
                moved.add(id(value))
                self.stage[id(value)] = last

    def _sink(self) -> None:
        """Move values of one array to the stage that uses them, if that reads no more than it would.

        So derivatives such as 1 - a^2 are not written to memory: a is there for the products anyway.
        """
        roots = set(map(id, self.traced.roots))
        for value in reversed(self.values):
            users = self.users.get(id(value), [])
            if value.kind != "map" or is_scalar(value) or id(value) in roots or not users:
                continue
            if any(user.kind not in ("map", "reduce") for user in users):
                continue
            domain, stage = self.domain[id(value)], min(self.stage[id(user)] for user in users)
            first = [user for user in users if self.stage[id(user)] == stage]
            read = {x.base for x in value.arrays if not is_number(x) and x.size == value.size}
            if (
                stage > self.stage[id(value)]
                and domain == matrix_shape(value.shape)
                and len(read) == 1
                and all(x.dtype.itemsize <= value.dtype.itemsize for x in read)
                and all(self.domain[id(user)] == domain for user in first)
            ):
                self.stage[id(value)] = stage

    # Segments

    def _stages(self) -> list[Stage]:
        stages = [Stage() for _ in range(1 + max(self.stage.values(), default=0))]
        together: dict[tuple[int, Domain], list[Value]] = {}
        roots = set(map(id, self.traced.roots))
        for value in self.values:
            if value.kind in LIBRARY_KINDS:
                stages[self.stage[id(value)]].products.append(value)
            elif is_computed(value) and (not is_scalar(value) or id(value) in roots):
                together.setdefault((self.stage[id(value)], self.domain[id(value)]), []).append(value)
        segment_of: dict[int, Segment] = {}
        for (stage, domain), values in together.items():
            for part in self._connected(values):
                segment = Segment(domain, part)
                stages[stage].segments.append(segment)
                segment_of.update((id(value), segment) for value in part)
        for value in self.values:
            if id(value) in segment_of and (id(value) in roots or self._is_read(value, segment_of)):
                segment_of[id(value)].outputs.append(value)
        return [stage for stage in stages if stage.segments or stage.products]

    def _connected(self, values: list[Value]) -> list[list[Value]]:
        """Split values into parts that share nothing: no value, and no array in memory."""
        parts: list[list[Value]] = []
        used: list[set[int]] = []
        targets = {id(value): target for target, value in self.traced.updates.items()}
        for value in values:
            uses = {id(value), *(id(x.base) for x in value.arrays if not is_number(x) and x.shape != ())}
            if id(value) in targets:
                uses.add(id(self.traced.state[targets[id(value)]]))
            joined = [index for index, others in enumerate(used) if others & uses]
            if not joined:
                parts.append([value])
                used.append(uses)
                continue
            first, *others = joined
            parts[first].append(value)
            used[first] |= uses
            for index in reversed(others):
                parts[first] += parts.pop(index)
                used[first] |= used.pop(index)
        order = {id(value): index for index, value in enumerate(values)}
        return [sorted(part, key=lambda value: order[id(value)]) for part in parts]

    def _is_read(self, value: Value, segment_of: dict[int, Segment]) -> bool:
        """Whether a value is read from memory."""
        return any(
            segment_of.get(id(user)) is not segment_of[id(value)]
            or user.kind not in COMBINED_KINDS
            or not self._fuses(value)
            for user in self.users.get(id(value), [])
        )

    def _updates_in_place(self) -> dict[int, int]:
        in_place: dict[int, int] = {}
        for target, value in self.traced.updates.items():
            # A value that is the new one of several arrays is written over the first.
            if is_computed(value) and id(value) not in in_place and self._can_overwrite(value, target):
                in_place[id(value)] = target
        return in_place

    def _can_overwrite(self, value: Value, target: int) -> bool:
        """Whether all that read the state array have read it when the value is written there."""
        array, stage, domain = self.traced.state[target], self.stage[id(value)], self.domain[id(value)]
        if not self._fuses(value) or domain != matrix_shape(array.shape):
            return False
        readers: list[Value] = []
        stack = [array]
        while stack:
            for user in self.users.get(id(stack.pop()), []):
                (stack if user.kind in VIEW_KINDS else readers).append(user)
        for reader in readers:
            # In one segment a thread reads the element before it writes it; of views it may read others.
            place = self.stage[id(reader)], self.domain.get(id(reader))
            in_segment = is_computed(reader) and place == (stage, domain)
            by_elements = reader.kind in ("map", "reduce") and all(
                operand is array or operand.base is not array for operand in reader.arrays
            )
            if self.stage[id(reader)] >= stage and not (in_segment and by_elements):
                return False
        # The old array may be a result, or the new value of another state array.
        return not any(root.base is array for root in self.traced.roots)
