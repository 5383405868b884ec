"""Memory of the arrays that kernels and loops write (`mlp_xp._compiler.kernels`), shared where it can be."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

from mlp_xp._arrays import Array
from mlp_xp._compiler.graph import NotRecordableError, Value, reachable
from mlp_xp._compiler.kernels import KernelPlan, is_computed, is_number, is_scalar
from mlp_xp._compiler.trace import TracedFunction


def check_results(traced: TracedFunction, host_functions: Container[Any]) -> None:
    """Raise an error unless the loss is an array, and the host can compute the other results."""
    loss, *numbers = traced.results
    is_computed_loss = isinstance(loss, Value) and (is_computed(loss) or loss.kind == "call")
    if not is_computed_loss or loss.dtype != traced.state[0].dtype:
        raise NotRecordableError("a loss that no kernel computes in the parameters' dtype")
    if any(isinstance(number, Value) and not is_number(number) for number in numbers):
        raise NotRecordableError("a number in the optimizer's state that becomes an array")
    for value in reachable(traced.roots):
        if is_number(value) and value.kind == "map" and value.function not in host_functions:
            raise NotRecordableError(f"{value.function.__name__} of numbers")


class Block(NamedTuple):
    """Memory for arrays of one dtype."""

    number: int
    size: int
    dtype: Any


def plan_blocks(plan: KernelPlan) -> dict[int, Block]:
    """Return the blocks of the arrays that a plan's kernels and products write, by their values' ids.

    Arrays that are not needed at the same time share a block. The loss has none, nor has what is written over
    the state.
    """
    free: list[Block] = []
    blocks: dict[int, Block] = {}
    n_blocks = 0
    steps = _steps(plan)
    for step, dead in zip(steps, _last_used(plan, steps)):
        for value in step.written:
            if id(value) in plan.in_place or value is plan.traced.results[0]:
                continue
            fitting = [
                block
                for block in free
                if block.dtype == value.dtype and value.size <= block.size <= 2 * value.size
            ]
            block = min(fitting, key=lambda block: block.size, default=None)
            if block is None:
                block = Block(n_blocks, value.size, value.dtype)
                n_blocks += 1
            free = [other for other in free if other is not block]
            blocks[id(value)] = block
        free += [blocks[value] for value in dead if value in blocks]
    return blocks


def allocate(plan: KernelPlan, empty: Callable[..., Array]) -> dict[int, Array]:
    """Allocate the blocks of a plan; return the arrays in them, by their values' ids."""
    block_of = plan_blocks(plan)
    memory = {block: empty(block.size, dtype=block.dtype) for block in dict.fromkeys(block_of.values())}
    return {
        id(value): memory[block_of[id(value)]][: value.size].reshape(value.shape)
        for value in plan.written
        if id(value) in block_of
    }


class _Step(NamedTuple):
    """What runs at a time: the segments of a stage together, then each product."""

    computed: list[Value]
    written: list[Value]


def _steps(plan: KernelPlan) -> list[_Step]:
    steps = []
    for stage in plan.stages:
        computed = [value for segment in stage.segments for value in segment.values]
        written = [value for segment in stage.segments for value in segment.outputs]
        steps += [_Step(computed, written), *(_Step([product], [product]) for product in stage.products)]
    return steps


def _last_used(plan: KernelPlan, steps: list[_Step]) -> list[list[int]]:
    """List for each step the ids of values that it computes or reads, and no later one reads."""
    last: dict[Value, int] = {}
    for number, step in enumerate(steps):
        last.update(dict.fromkeys(step.written, number))
        read = {operand.base for value in step.computed for operand in _read(value)}
        last.update((value, number) for value in read & last.keys())
    for root in plan.traced.roots:
        last.pop(root.base, None)
    return [[id(value) for value in last if last[value] == number] for number in range(len(steps))]


def _read(value: Value) -> Iterator[Value]:
    """Yield the operands of a value, also those of numbers that are computed with it."""
    seen: set[int] = set()
    stack = list(value.arrays)
    while stack:
        operand = stack.pop()
        if id(operand) not in seen:
            seen.add(id(operand))
            yield operand
            stack += operand.arrays if is_scalar(operand) else ()
