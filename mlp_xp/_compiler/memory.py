"""Where values lie in memory: which are stored transposed, which share a buffer, which are never whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlp_xp._compiler.graph import NotRecordableError, Value
from mlp_xp._compiler.passes import Record, users
from mlp_xp._compiler.schedule import SOURCES, VIEWS, Schedule, base

BLOCKED_ELEMENTS = 2**15
"""Elementwise work on more elements than this goes through them block by block, all calls on a block before
the next one, so that what one call wrote is still in the cache when the next one reads it."""

SMALL_BYTES = 2**14
"""Buffers up to this size are anybody's."""

BLOCK_BYTES = 2**17
"""Of each array; a few of them fit the cache of a core."""


class Spec(NamedTuple):
    """An array to be made of a buffer: elements from `start` on, in this shape, then transposed or not."""

    buffer: tuple[str, int]
    start: int
    shape: tuple[int, ...]
    dtype: Any
    flipped: bool = False


@dataclass
class Region:
    """Neighbouring elementwise work on arrays of one shape, to be done block by block."""

    values: list[Value]
    local: set[int] = field(default_factory=set)
    """Values of which only a block is ever needed."""


@dataclass
class Memory:
    """All that is known of where values lie.

    Attributes
    ----------
    specs : dict of int to Spec
        By the value's id; none for numbers, given arrays and local values.
    regions : list of Region
    region_of : dict of int to int
    pool : list of int
        Sizes of the buffers in bytes.
    ones : list of Spec
        Rows that hold ones, from the start and for ever.
    copied : dict of int to list of (Value, Spec)
        By a joint value's id, the values to be copied into their places in it.
    last : dict of int to int
        Where in the schedule a value is read last.
    """

    specs: dict[int, Spec]
    regions: list[Region]
    region_of: dict[int, int]
    pool: list[int]
    ones: list[Spec]
    copied: dict[int, list[tuple[Value, Spec]]]
    last: dict[int, int]


def plan_memory(record: Record, plan: Schedule) -> Memory:
    """Find a place for every value."""
    return _Planner(record, plan).plan()


class _Planner:
    def __init__(self, record: Record, plan: Schedule) -> None:
        self.record = record
        self.schedule = plan
        self.values = plan.values
        self.of = users(plan.values)
        self.position = {id(value): index for index, value in enumerate(plan.values)}
        self.specs: dict[int, Spec] = {}
        self.pool: list[int] = []
        self.ones: list[Spec] = []
        self.copied: dict[int, list[tuple[Value, Spec]]] = {}
        self.widened = {
            id(base(value.operands[0]))
            for value in self.values
            if value.kind in ("affine", "affine_gradient")
        }
        self.flipped = self._flipped()
        self.last = self._last_uses()

    def plan(self) -> Memory:
        self._place_owned()
        self._place_side_by_side()
        self._place_widened()
        regions = self._regions()
        region_of = {id(value): index for index, region in enumerate(regions) for value in region.values}
        self._place_rest(regions)
        reshaped(self.specs, self.values)
        return Memory(self.specs, regions, region_of, self.pool, self.ones, self.copied, self.last)

    # Which are stored transposed.

    def _flipped(self) -> set[int]:
        """Store widened inputs, and what is computed with them element by element, column by column.

        Then the column of ones is a row in memory, and what goes before it is contiguous. (All others lie
        row by row: the first layer's product is a third faster so.)
        """
        stack = [value for value in self.values if id(value) in self.widened and value.kind != "given"]
        flipped: set[int] = set()
        while stack:
            value = stack.pop()
            if id(value) in flipped:
                continue
            flipped.add(id(value))
            around = [other for other in self.of.get(id(value), []) if other.kind == "map"]
            around += value.arrays if value.kind == "map" else ()
            stack.extend(
                other
                for other in around
                if other.shape == value.shape and other.kind in ("map", "matmul", "affine")
            )
        return flipped

    def _last_uses(self) -> dict[int, int]:
        """Say, for each base, where it is read last."""
        last: dict[int, int] = {}
        for value in self.values:
            for operand in value.arrays:
                key = id(base(operand))
                where = self.position[id(value)]
                if value.kind in VIEWS:
                    continue
                last[key] = max(last.get(key, -1), where)
        end = len(self.values)
        for result in self.record.results:
            if isinstance(result, Value):
                last[id(base(result))] = end
        for _, value in self.schedule.copies:
            last[id(base(value))] = end
        # What is laid side by side is read where the whole is.
        for value in reversed(self.values):
            if value.kind == "joint":
                for member in value.arrays:
                    key = id(base(member))
                    last[key] = max(last[key], last[id(value)])
        return last

    # Where arrays are that are known beforehand.

    def _place_owned(self) -> None:
        layout = self.record.layout
        for value in self.values:
            if value.kind == "owned":
                group, start = layout.place[value.detail]
                self.specs[id(value)] = Spec(("group", group), start, value.shape, value.dtype)
            elif value.kind == "arena":
                self.specs[id(value)] = Spec(("group", value.detail), 0, value.shape, value.dtype)
            elif id(value) in self.schedule.in_place:
                target = self.schedule.in_place[id(value)]
                if id(value) in self.flipped:
                    self.flipped.discard(id(value))
                place = layout.place[target] if target >= 0 else (-1 - target, 0)
                self.specs[id(value)] = Spec(("group", place[0]), place[1], value.shape, value.dtype)

    def _place_side_by_side(self) -> None:
        """Let the parts of a whole be computed where they belong, and copy those that cannot be."""
        for value in self.values:
            if value.kind != "joint":
                continue
            number = self._new_buffer(value.nbytes)
            self.specs[id(value)] = Spec(("pool", number), 0, value.shape, value.dtype)
            start = 0
            for member in value.operands:
                self._place_member(value, member, Spec(("pool", number), start, member.shape, member.dtype))
                start += member.size

    def _place_member(self, joint: Value, member: Value, spec: Spec) -> None:
        if member.kind == "part":
            both = member.operands[0]
            first = spec if isinstance(member.detail, slice) else None
            if first is not None and id(both) not in self.specs and self._next_is_bias(joint, member):
                self.specs[id(both)] = spec._replace(shape=both.shape)
            if id(both) in self.specs and self._part(member) == spec:
                return
        elif (
            member.kind in ("map", "matmul", "reduce")
            and id(member) not in self.specs
            and id(member) not in self.flipped
            and id(member) not in self.widened
        ):
            self.specs[id(member)] = spec
            return
        self.copied.setdefault(id(joint), []).append((member, spec))

    def _next_is_bias(self, joint: Value, weight: Value) -> bool:
        after = joint.operands[joint.operands.index(weight) + 1 :]
        return bool(after) and after[0].kind == "part" and after[0].operands == weight.operands

    def _part(self, part: Value) -> Spec:
        whole = self.specs[id(part.operands[0])]
        row = 0 if isinstance(part.detail, slice) else part.detail
        return whole._replace(start=whole.start + row * whole.shape[1], shape=part.shape)

    def _place_widened(self) -> None:
        """Give inputs that are followed by ones a buffer of their own, and let them be made in it."""
        for value in self.values:
            if id(value) not in self.widened or value.kind == "given":
                continue
            rows, columns = value.shape
            itemsize = value.dtype.itemsize
            number = self._new_buffer((columns + 1) * rows * itemsize)
            spec = Spec(("pool", number), 0, (columns, rows), value.dtype, flipped=True)
            self.ones.append(Spec(("pool", number), columns * rows, (rows,), value.dtype))
            maker: Value | None = value
            while maker is not None:
                self.specs[id(maker)] = spec
                maker = self._turned_into(maker)

    def _turned_into(self, value: Value) -> Value | None:
        """Return an operand that the value may overwrite, for it is not needed any more."""
        if value.kind != "map":
            return None
        for operand in value.arrays:
            if (
                operand.kind in ("map", "matmul", "affine")
                and (operand.shape, operand.dtype) == (value.shape, value.dtype)
                and id(operand) in self.flipped
                and id(operand) not in self.specs
                and self.last[id(operand)] == self.position[id(value)]
            ):
                return operand
        return None

    # Work in blocks.

    def _regions(self) -> list[Region]:
        regions: list[Region] = []
        current: list[Value] = []
        for value in self.values:
            if value.kind in (*SOURCES, *VIEWS) or value.shape == ():
                if value.shape == () and value.kind in ("reduce", "matmul"):
                    current = []
                continue
            if not self._can_go_by_blocks(value):
                current = []
            elif current and self._same_space(current[-1], value):
                current.append(value)
            else:
                current = [value]
                regions.append(Region(current))
        for region in regions:
            inside = {id(value) for value in region.values}
            region.local = {
                id(value)
                for value in region.values
                if value.kind == "map"
                and id(value) not in self.specs
                and id(value) not in self.widened
                and self.of.get(id(value))
                and all(id(user) in inside for user in self.of[id(value)])
                and self.last[id(value)] < len(self.values)
            }
        return regions

    def _space(self, value: Value) -> tuple[tuple[int, ...], bool]:
        """Return shape and direction of the array that work on the value goes through."""
        through = value.operands[0] if value.kind == "reduce" else value
        return through.shape, id(through) in self.flipped

    def _same_space(self, one: Value, other: Value) -> bool:
        return self._space(one) == self._space(other)

    def _can_go_by_blocks(self, value: Value) -> bool:
        shape, flipped = self._space(value)
        if math.prod(shape) < BLOCKED_ELEMENTS:
            return False
        if value.kind == "reduce":
            return flipped and value.detail == (0, False) and value.operands[0].kind in ("map", "matmul")
        if value.kind != "map" or (id(value) in self.flipped) != flipped:
            return False
        for operand in value.arrays:
            root = base(operand)
            if operand.shape == () or (root.kind != "given" and _goes_along(operand.shape, shape)):
                continue
            if operand.shape != shape or operand.kind in ("transpose", "reshape") or root.kind == "given":
                return False
            if root.kind not in ("owned", "arena", "joint") and (id(operand) in self.flipped) != flipped:
                return False
            if flipped and root.kind in ("owned", "arena", "affine_gradient"):
                return False
        return True

    # All the rest.

    def _new_buffer(self, nbytes: int) -> int:
        self.pool.append(nbytes)
        return len(self.pool) - 1

    def _spec(self, value: Value, number: int) -> Spec:
        flipped = id(value) in self.flipped
        shape = value.shape[::-1] if flipped else value.shape
        return Spec(("pool", number), 0, shape, value.dtype, flipped)

    def _place_rest(self, regions: list[Region]) -> None:
        """Give each value a buffer from its first use to its last, and the buffer to others afterwards."""
        local = {key for region in regions for key in region.local}
        # What a region reads on its way is free after its last block.
        until = {
            self.position[id(value)]: self.position[id(region.values[-1])]
            for region in regions
            for value in region.values
        }
        read: dict[int, list[Value]] = {}
        for region in regions:
            together = [operand for value in region.values for operand in value.arrays]
            read |= {id(value): together for value in region.values}
        free: list[int] = []
        held: dict[int, list[int]] = {}
        owner: dict[int, int] = {}
        for where, value in enumerate(self.values):
            computed = value.kind not in (*SOURCES, *VIEWS) and value.shape != ()
            if computed and id(value) not in self.specs and id(value) not in local:
                overwritten = self._overwritten(value, where, owner, read.get(id(value), value.arrays))
                if overwritten is None:
                    number = self._take(free, value.nbytes)
                else:
                    number = owner.pop(overwritten)
                    for numbers in held.values():
                        if number in numbers:
                            numbers.remove(number)
                owner[id(value)] = number
                self.specs[id(value)] = self._spec(value, number)
                last = self.last.get(id(value), where)
                held.setdefault(until.get(last, last), []).append(number)
            free.extend(held.pop(where, []))
        for value in self.values:
            if value.kind == "part":
                self.specs[id(value)] = self._part(value)

    def _overwritten(
        self, value: Value, where: int, owner: dict[int, int], read: Iterable[Value]
    ) -> int | None:
        """Return the id of an array read on the way that is not needed any more, where the value fits it."""
        if value.kind != "map":
            return None
        for operand in read:
            if (
                id(operand) in owner
                and operand.kind not in VIEWS
                and self.last[id(operand)] <= where
                and (operand.shape, operand.nbytes) == (value.shape, value.nbytes)
                and (id(operand) in self.flipped) == (id(value) in self.flipped)
            ):
                return id(operand)
        return None

    def _take(self, free: list[int], nbytes: int) -> int:
        """Return the smallest free buffer that is large enough, or the largest there is, enlarged.

        One that is far too large is left to values that need it.
        """
        most = max(SMALL_BYTES, 4 * nbytes)
        fitting = [number for number in free if self.pool[number] <= most]
        if not fitting:
            return self._new_buffer(nbytes)
        enough = [number for number in fitting if self.pool[number] >= nbytes]
        size = self.pool.__getitem__
        number = min(enough, key=size) if enough else max(fitting, key=size)
        free.remove(number)
        self.pool[number] = max(self.pool[number], nbytes)
        return number


def _goes_along(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether this is one row or one column, contiguous in any case, beside a matrix."""
    rows, columns = whole if len(whole) == 2 else (1, 1)
    return rows > 1 and columns > 1 and part in ((columns,), (1, columns), (rows, 1))


def reshaped(specs: dict[int, Spec], values: Iterable[Value]) -> None:
    """Add the specs of arrays seen in another shape."""
    for value in values:
        if value.kind == "reshape" and id(value.operands[0]) in specs:
            whole = specs[id(value.operands[0])]
            if whole.flipped:
                raise NotRecordableError("another shape of an array that is stored transposed")
            specs[id(value)] = whole._replace(shape=value.shape)
