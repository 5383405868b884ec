"""The memory plan: buffer and offset of each value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlp_xp._compiler.graph import KINDS_WITHOUT_CALL, VIEW_KINDS, Value, find_users
from mlp_xp._compiler.liveness import can_be_overwritten, last_reads
from mlp_xp._compiler.regions import Region, find_regions
from mlp_xp._compiler.schedule import Schedule
from mlp_xp._compiler.trace import TracedFunction, group_target

MAX_BYTES_TO_REUSE_FREELY = 2**14
"""Maximum size of a free buffer that a value of any size may reuse. A larger one is given only to values of
at least a quarter of its size, so that it stays free for those that need it; 16 KiB are not worth that."""


class Location(NamedTuple):
    """Buffer, offset in elements, shape and storage order of an array.

    Buffers are ``("state", group)`` and ``("pool", index)``. The shape is that of the rows in memory; if
    `transposed`, the array is the transpose of these: it is stored column by column.
    """

    buffer: tuple[str, int]
    offset: int
    shape: tuple[int, ...]
    dtype: Any
    transposed: bool = False

    @property
    def transpose(self) -> Location:
        """The location of the transposed array."""
        return self._replace(transposed=not self.transposed)


@dataclass
class MemoryPlan:
    """Where the values of a schedule lie.

    Attributes
    ----------
    locations : dict of int to Location
        By the value's id; scalars, inputs and values local to a region have none.
    pool_nbytes : list of int
        Sizes of the pool's buffers in bytes.
    regions : list of Region
    region_of : dict of int to int
        By the value's id, the index of its region.
    ones_rows : list of Location
        Rows of ones, written once, when the program is bound to its memory.
    copied_operands : dict of int to list of (Value, Location)
        By a concatenation's id, the operands that have to be copied into it.
    last_read : dict of int to int
        See `mlp_xp._compiler.liveness.last_reads`.
    """

    locations: dict[int, Location]
    pool_nbytes: list[int]
    regions: list[Region] = field(default_factory=list)
    region_of: dict[int, int] = field(default_factory=dict)
    ones_rows: list[Location] = field(default_factory=list)
    copied_operands: dict[int, list[tuple[Value, Location]]] = field(default_factory=dict)
    last_read: dict[int, int] = field(default_factory=dict)


def plan_memory(traced: TracedFunction, schedule: Schedule) -> MemoryPlan:
    """Find a location for every array: first those with a fixed one, then the others in free buffers."""
    values, users = schedule.values, find_users(schedule.values)
    with_ones = {
        id(value.operands[0].base) for value in values if value.kind in ("affine", "affine_gradient")
    }
    transposed = _values_stored_transposed(values, users, with_ones) - schedule.in_place.keys()
    last_read = last_reads(traced, schedule)
    pool = _Pool()
    fixed = _FixedLocations(schedule, with_ones, transposed, last_read, pool)
    fixed.place_state(traced)
    fixed.place_concatenations()
    fixed.place_inputs_with_ones()
    locations = fixed.locations
    regions = find_regions(values, users, transposed, locations, last_read)
    _BufferAllocator(schedule, regions, transposed, last_read, locations, pool).allocate()
    for value in values:
        if value.kind == "slice":
            locations[id(value)] = _slice_location(value, locations)
    place_reshaped(values, locations)
    region_of = {id(value): index for index, region in enumerate(regions) for value in region.values}
    return MemoryPlan(
        locations, pool.nbytes, regions, region_of, fixed.ones_rows, fixed.copied_operands, last_read
    )


def state_location(traced: TracedFunction, target: int, value: Value) -> Location:
    """Return the location of a target of an update, with the shape and dtype of a value."""
    group, start = traced.layout.offsets[target]
    return Location(("state", group), start, value.shape, value.dtype)


def _values_stored_transposed(
    values: Sequence[Value], users: dict[int, list[Value]], with_ones: set[int]
) -> set[int]:
    """Choose the storage order: return the ids of values to store transposed (column by column).

    These are the layer inputs with a column of ones, and what is computed elementwise from or to them. Stored
    transposed, the column of ones is a row of memory, and the array before it is contiguous. (All others are
    stored row by row: the first layer's product is a third faster so.)
    """
    stack = [value for value in values if id(value) in with_ones and value.kind != "input"]
    transposed: set[int] = set()
    while stack:
        value = stack.pop()
        if id(value) in transposed:
            continue
        transposed.add(id(value))
        neighbours = [user for user in users.get(id(value), []) if user.kind == "map"]
        neighbours += value.arrays if value.kind == "map" else ()
        stack.extend(
            other
            for other in neighbours
            if other.shape == value.shape and other.kind in ("map", "matmul", "affine")
        )
    return transposed


def _slice_location(value: Value, locations: dict[int, Location]) -> Location:
    """Return the location of rows (the weight's gradient) or one row (the bias's) of a matrix."""
    whole = locations[id(value.operands[0])]
    row = 0 if isinstance(value.detail, slice) else value.detail
    return whole._replace(offset=whole.offset + row * whole.shape[1], shape=value.shape)


def place_reshaped(values: Iterable[Value], locations: dict[int, Location]) -> None:
    """Add the locations of arrays that are placed ones in another shape; others are copied when read."""
    for value in values:
        whole = locations.get(id(value.operands[0])) if value.kind == "reshape" else None
        if whole is not None and not whole.transposed:
            locations[id(value)] = whole._replace(shape=value.shape)


@dataclass
class _Pool:
    """The buffers that values share, and which of them are free."""

    nbytes: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)

    def new(self, nbytes: int) -> int:
        """Return the index of a new buffer."""
        self.nbytes.append(nbytes)
        return len(self.nbytes) - 1

    def take(self, nbytes: int) -> int:
        """Return the smallest free buffer that is large enough; else enlarge the largest, or make one."""
        limit = max(MAX_BYTES_TO_REUSE_FREELY, 4 * nbytes)
        candidates = [index for index in self.free if self.nbytes[index] <= limit]
        if not candidates:
            return self.new(nbytes)
        large_enough = [index for index in candidates if self.nbytes[index] >= nbytes]
        size = self.nbytes.__getitem__
        index = min(large_enough, key=size) if large_enough else max(candidates, key=size)
        self.free.remove(index)
        self.nbytes[index] = max(self.nbytes[index], nbytes)
        return index


@dataclass
class _FixedLocations:
    """Places arrays whose location follows from their use: state, concatenations, inputs with ones."""

    schedule: Schedule
    with_ones: set[int]
    transposed: set[int]
    last_read: dict[int, int]
    pool: _Pool
    locations: dict[int, Location] = field(default_factory=dict)
    ones_rows: list[Location] = field(default_factory=list)
    copied_operands: dict[int, list[tuple[Value, Location]]] = field(default_factory=dict)

    def place_state(self, traced: TracedFunction) -> None:
        """Place the state arrays, and what is computed in them."""
        for value in self.schedule.values:
            target = self.schedule.in_place.get(id(value))
            if value.kind == "state":
                target = value.detail
            elif value.kind == "state_group":
                target = group_target(value.detail)
            if target is not None:
                self.locations[id(value)] = state_location(traced, target, value)

    def place_concatenations(self) -> None:
        """Give each concatenation a buffer; operands that cannot be computed in it will be copied."""
        for value in self.schedule.values:
            if value.kind != "concatenation":
                continue
            buffer = ("pool", self.pool.new(value.nbytes))
            self.locations[id(value)] = Location(buffer, 0, value.shape, value.dtype)
            start = 0
            for operand in value.operands:
                location = Location(buffer, start, operand.shape, operand.dtype)
                if not self._try_place_at(location, value, operand):
                    self.copied_operands.setdefault(id(value), []).append((operand, location))
                start += operand.size

    def _try_place_at(self, location: Location, concatenation: Value, operand: Value) -> bool:
        """Place an operand of a concatenation at a location in it; return False if it must be copied."""
        if operand.kind == "slice":
            gradients = operand.operands[0]
            is_weight = isinstance(operand.detail, slice)
            if is_weight and id(gradients) not in self.locations and _bias_follows(concatenation, operand):
                self.locations[id(gradients)] = location._replace(shape=gradients.shape)
            return id(gradients) in self.locations and _slice_location(operand, self.locations) == location
        can_compute = (
            operand.kind in ("map", "matmul", "reduce")
            and id(operand) not in self.locations
            and id(operand) not in self.transposed
            and id(operand) not in self.with_ones
        )
        if can_compute:
            self.locations[id(operand)] = location
        return can_compute

    def place_inputs_with_ones(self) -> None:
        """Give layer inputs that a row of ones follows a buffer of their own, and compute them in it."""
        for value in self.schedule.values:
            if id(value) not in self.with_ones or value.kind == "input":
                continue
            rows, columns = value.shape
            buffer = ("pool", self.pool.new((columns + 1) * rows * value.dtype.itemsize))
            location = Location(buffer, 0, (columns, rows), value.dtype, transposed=True)
            self.ones_rows.append(Location(buffer, columns * rows, (rows,), value.dtype))
            computed: Value | None = value
            while computed is not None:
                self.locations[id(computed)] = location
                computed = self._overwritable_operand(computed)

    def _overwritable_operand(self, value: Value) -> Value | None:
        """Return an operand of the same shape and dtype that is read by this value last."""
        if value.kind != "map":
            return None
        for operand in value.arrays:
            if (
                id(operand) in self.transposed
                and id(operand) not in self.locations
                and can_be_overwritten(operand, value, self.schedule.index_of[id(value)], self.last_read)
            ):
                return operand
        return None


def _bias_follows(concatenation: Value, weight: Value) -> bool:
    """Whether the gradient of the bias comes right after that of its weight."""
    following = concatenation.operands[concatenation.operands.index(weight) + 1 :]
    return bool(following) and following[0].kind == "slice" and following[0].operands == weight.operands


@dataclass
class _BufferAllocator:
    """Gives each remaining value a buffer of the pool for its live range (a linear scan of the schedule)."""

    schedule: Schedule
    regions: list[Region]
    transposed: set[int]
    last_read: dict[int, int]
    locations: dict[int, Location]
    pool: _Pool
    buffer_of: dict[int, int] = field(default_factory=dict)
    """By the value's id, the buffer that was taken for it and that no other value has overwritten."""

    def allocate(self) -> None:
        """Add the locations of the values that have none."""
        local = {key for region in self.regions for key in region.local}
        values, index_of = self.schedule.values, self.schedule.index_of
        # What is read in a region is needed until its last block.
        end_of_region = {
            index_of[id(value)]: index_of[id(region.values[-1])]
            for region in self.regions
            for value in region.values
        }
        operands_in_region: dict[int, Sequence[Value]] = {}
        for region in self.regions:
            in_region = [operand for value in region.values for operand in value.arrays]
            operands_in_region |= {id(value): in_region for value in region.values}
        released_at: dict[int, list[int]] = {}
        for index, value in enumerate(values):
            is_computed = value.kind not in KINDS_WITHOUT_CALL and value.shape != ()
            if is_computed and id(value) not in self.locations and id(value) not in local:
                operands = operands_in_region.get(id(value), value.arrays)
                overwritten = self._overwritable_operand(value, index, operands)
                if overwritten is None:
                    buffer = self.pool.take(value.nbytes)
                else:
                    # The buffer is released with the new value, not with the overwritten one.
                    buffer = self.buffer_of.pop(overwritten)
                    for buffers in released_at.values():
                        if buffer in buffers:
                            buffers.remove(buffer)
                self.buffer_of[id(value)] = buffer
                self.locations[id(value)] = self._location(value, buffer)
                last = self.last_read.get(id(value), index)
                released_at.setdefault(end_of_region.get(last, last), []).append(buffer)
            self.pool.free.extend(released_at.pop(index, []))

    def _location(self, value: Value, buffer: int) -> Location:
        transposed = id(value) in self.transposed
        shape = value.shape[::-1] if transposed else value.shape
        return Location(("pool", buffer), 0, shape, value.dtype, transposed)

    def _overwritable_operand(self, value: Value, index: int, operands: Iterable[Value]) -> int | None:
        """Return the id of an operand that is not read after this index and whose buffer the value fits."""
        # Products and reductions cannot write to an array that they read.
        if value.kind != "map":
            return None
        for operand in operands:
            if (
                id(operand) in self.buffer_of
                and operand.kind not in VIEW_KINDS
                and self.last_read[id(operand)] <= index
                and (operand.shape, operand.nbytes) == (value.shape, value.nbytes)
                and (id(operand) in self.transposed) == (id(value) in self.transposed)
            ):
                return id(operand)
        return None
