"""Liveness: where in the schedule each value is read last."""

from __future__ import annotations

from mlp_xp._compiler.graph import VIEW_KINDS, Value
from mlp_xp._compiler.schedule import Schedule
from mlp_xp._compiler.trace import TracedFunction


def last_reads(traced: TracedFunction, schedule: Schedule) -> dict[int, int]:
    """Return the index of the last read of each base value, by its id: the end of its live range.

    Reads through a view count for its base. What is read at the end of the call has the index
    ``len(schedule.values)``.
    """
    last: dict[int, int] = {}
    for index, value in enumerate(schedule.values):
        if value.kind not in VIEW_KINDS:
            last.update({id(operand.base): index for operand in value.arrays})
    at_end = [*traced.computed_results, *(value for _, value in schedule.copies)]
    last.update({id(value.base): len(schedule.values) for value in at_end})
    # The operands of a concatenation lie in its buffer, and live as long as it does.
    for value in reversed(schedule.values):
        if value.kind == "concatenation":
            for operand in value.arrays:
                key = id(operand.base)
                last[key] = max(last[key], last[id(value)])
    return last


def can_be_overwritten(operand: Value, value: Value, index: int, last_read: dict[int, int]) -> bool:
    """Whether the elements of a value, which has this index, can replace those of an operand of its own."""
    return (
        operand.kind in ("map", "matmul", "affine")
        and (operand.shape, operand.dtype) == (value.shape, value.dtype)
        and last_read[id(operand)] == index
    )
