"""Loop fusion: neighbouring elementwise values become regions that are computed block by block."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from mlp_xp._compiler.graph import KINDS_WITHOUT_CALL, Value

MIN_ELEMENTS_TO_BLOCK = 2**15
"""Size of an array from which on elementwise operations on it are fused into a loop over blocks, so that what
one call wrote is still in the cache when the next one reads it. Chosen so that the few arrays of such an
operation (256 KiB each in float64) no longer fit a second-level cache of 1 MiB."""


@dataclass
class Region:
    """Consecutive elementwise values, and sums, of arrays of one shape: computed by one loop over blocks."""

    values: list[Value]
    local: set[int] = field(default_factory=set)
    """Ids of the values that are used in the region alone: of these only one block is in memory at a time."""

    @property
    def loop_operand(self) -> Value:
        """A value whose shape is that of the arrays that the loop runs over."""
        return _loop_operand(self.values[0])


def find_regions(
    values: Sequence[Value],
    users: dict[int, list[Value]],
    transposed: Container[int],
    placed: Container[int],
    last_read: dict[int, int],
) -> list[Region]:
    """Return the regions of a schedule.

    `transposed` has the ids of values that are stored transposed, `placed` of those that have a location.
    """
    regions: list[Region] = []
    current: list[Value] = []
    for value in values:
        if value.kind in KINDS_WITHOUT_CALL or value.shape == ():
            # Scalars computed from scalars move before the loop; one computed from an array may depend on it.
            if value.shape == () and value.kind in ("reduce", "matmul"):
                current = []
            continue
        if not _can_be_blocked(value, transposed):
            current = []
        elif current and _loop_shape(current[-1], transposed) == _loop_shape(value, transposed):
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
            and id(value) not in placed
            and users.get(id(value))
            and all(id(user) in inside for user in users[id(value)])
            and last_read[id(value)] < len(values)
        }
    return regions


def _loop_operand(value: Value) -> Value:
    """Return the value whose elements an operation loops over."""
    return value.operands[0] if value.kind == "reduce" else value


def _loop_shape(value: Value, transposed: Container[int]) -> tuple[tuple[int, ...], bool]:
    """Return the shape that an operation loops over, and whether it does so column by column."""
    return _loop_operand(value).shape, id(_loop_operand(value)) in transposed


def _can_be_blocked(value: Value, transposed: Container[int]) -> bool:
    """Whether a value can be computed from blocks of contiguous memory of all its operands."""
    shape, by_columns = _loop_shape(value, transposed)
    if math.prod(shape) < MIN_ELEMENTS_TO_BLOCK:
        return False
    if value.kind == "reduce":
        # A block has whole rows of memory: sums of these are sums over samples if stored transposed.
        return by_columns and value.detail == (0, False) and value.operands[0].kind in ("map", "matmul")
    if value.kind != "map" or (id(value) in transposed) != by_columns:
        return False
    for operand in value.arrays:
        base = operand.base
        if operand.shape == () or (base.kind != "input" and _is_row_or_column_of(operand.shape, shape)):
            continue
        # The blocks are made when the program is bound; inputs come later, with each call.
        if operand.shape != shape or operand.kind in ("transpose", "reshape") or base.kind == "input":
            return False
        if base.kind not in ("state", "state_group", "concatenation") and (
            (id(operand) in transposed) != by_columns
        ):
            return False
        if by_columns and base.kind in ("state", "state_group", "affine_gradient"):
            return False
    return True


def _is_row_or_column_of(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether the shape is that of one row or column of a matrix, which broadcasts over its blocks."""
    rows, columns = whole if len(whole) == 2 else (1, 1)
    return rows > 1 and columns > 1 and part in ((columns,), (1, columns), (rows, 1))
