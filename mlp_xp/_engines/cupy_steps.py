"""Training steps on CuPy's arrays as a few fused kernels and matrix products."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import cupy
import numpy as np

from mlp_xp._arrays import Array, Namespace
from mlp_xp._compiler import NotRecordableError
from mlp_xp._compiler.cuda import CudaSource, Kernel, generate_cuda
from mlp_xp._compiler.elements import Argument
from mlp_xp._compiler.graph import Value
from mlp_xp._compiler.kernels import KernelPlan, plan_kernels
from mlp_xp._compiler.segments import LANES, THREADS, Call
from mlp_xp._compiler.storage import allocate, check_results
from mlp_xp._compiler.trace import ArraySpec, TracedFunction
from mlp_xp._engines.base import State, make_step
from mlp_xp._engines.capture import step_into
from mlp_xp._engines.recordable import StepSpec, compile_step
from mlp_xp._engines.recordable import is_number as is_state_number
from mlp_xp._engines.step_numbers import StepNumber
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import is_array, leaves, with_leaves
from mlp_xp._samples import Batch

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
"""Python's operators for the ufuncs of numbers, which the host computes."""


class FusedStep:
    """A step (see `mlp_xp._engines.capture.StepInto`) that launches fused kernels.

    Steps that the compiler cannot record run call by call. The parameters and arrays of optimizer state are
    overwritten.
    """

    def __init__(self, network: Network, optimizer: Optimizer, xp: Namespace) -> None:
        self.network = network
        self.optimizer = optimizer
        self.xp = xp
        self.call_by_call = step_into(make_step(network, optimizer, xp))
        self.programs: dict[Any, _BoundProgram | None] = {}

    def __call__(self, state: State, batch: Batch, learning_rate: float, loss: Array) -> State:
        """Do one step."""
        program = self._program(state, batch)
        run = self.call_by_call if program is None else program.run
        return run(state, batch, learning_rate, loss)

    def _program(self, state: State, batch: Batch) -> _BoundProgram | None:
        """Return the program for a state and a batch of these shapes; None if there is none."""
        specs = tuple(None if array is None else _spec(array) for array in batch)
        if specs not in self.programs:
            try:
                step = StepSpec.of(self.network, self.optimizer, _with_plain_numbers(state), specs)
                self.programs[specs] = _BoundProgram(compile_step(_compile_kernels, step), self.xp)
            except (NotRecordableError, cupy.cuda.compiler.CompileException):
                self.programs[specs] = None
        return self.programs[specs]


def _spec(array: Array) -> ArraySpec:
    return ArraySpec(tuple(array.shape), np.dtype(str(array.dtype)))


def _with_plain_numbers(state: State) -> State:
    """Return the state with a number in place of each `StepNumber`."""
    plain: State = with_leaves(
        state, [0.0 if isinstance(leaf, StepNumber) else leaf for leaf in leaves(state)]
    )
    return plain


class StepProgram(NamedTuple):
    """A compiled step: the plan of its kernels, their source, the compiled module, and the size of blocks."""

    plan: KernelPlan
    source: CudaSource
    module: Any
    threads: int


def _compile_kernels(traced: TracedFunction) -> StepProgram:
    check_results(traced, OPERATORS)
    plan = plan_kernels(traced)
    threads = min(THREADS, cupy.cuda.Device().attributes["MaxThreadsPerBlock"])
    source = generate_cuda(plan, threads)
    options = "--std=c++17", f"-DTHREADS={threads}", f"-DLANES={min(LANES, threads)}"
    return StepProgram(plan, source, cupy.RawModule(code=source.text, options=options), threads)


class _BoundProgram:
    """A compiled step with the memory that its kernels share, which one stream uses at a time."""

    def __init__(self, program: StepProgram, xp: Namespace) -> None:
        self.plan, source, self.module, self.threads = program
        self.xp = xp
        self.arrays = allocate(self.plan, cupy.empty)
        calls = [call for kernels in source.kernels for kernel in kernels for call in kernel.calls]
        # Counters are zero before and after each launch. They are not in the graphs' pool, where a graph
        # captured before may write in memory that is free for the next.
        with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
            counters = cupy.zeros(sum(call.n_counters for call in calls), dtype=cupy.uint32)
        self.counters = dict(zip(map(id, calls), _parts(counters, [call.n_counters for call in calls])))
        self.launches = [[self._launch(kernel) for kernel in kernels] for kernels in source.kernels]

    def _launch(self, kernel: Kernel) -> _Launch:
        """Return how to launch a kernel: with arguments that are the same for all steps, and others."""
        arguments: list[Any] = []
        others: list[tuple[int, Argument]] = []
        for call in kernel.calls:
            arguments += map(np.uint32, (call.n_blocks, *call.sizes))
            for argument in call.arguments:
                fixed = self._fixed_argument(call, argument)
                if fixed is None:
                    others.append((len(arguments), argument))
                arguments.append(fixed)
        n_blocks = sum(call.n_blocks for call in kernel.calls)
        return _Launch(self.module.get_function(kernel.name), n_blocks, arguments, others)

    def _fixed_argument(self, call: Call, argument: Argument) -> Array | None:
        value = argument.value
        if value is None:
            return self.counters[id(call)]
        if argument.kind == "parts":
            return cupy.empty(call.n_parts[id(value)], dtype=value.dtype)
        return self.arrays.get(id(value)) if argument.kind != "number" else None

    def run(self, state: State, batch: Batch, learning_rate: float, loss: Array) -> State:
        """Launch the kernels and products of a step."""
        traced, old = self.plan.traced, leaves(state)
        scalars = [learning_rate, *filter(_is_number_leaf, old)]
        run = _Run(self, list(filter(_is_array_leaf, old)), batch, scalars, loss)
        for stage, launches in zip(self.plan.stages, self.launches):
            for launch in launches:
                arguments = list(launch.arguments)
                for position, argument in launch.others:
                    arguments[position] = run.argument(argument)
                launch.function((launch.n_blocks,), (self.threads,), tuple(arguments))
            for product in stage.products:
                left, right = map(run.array, product.operands)
                self.xp.matmul(left, right, out=self.arrays[id(product)])
        arrays = list(run.state)
        for target, value in self.plan.copies:
            # A copy, because the next step writes in the program's arrays.
            arrays[target] = run.array(value).copy()
        new_arrays, new_numbers = iter(arrays), map(run.number, traced.results[1:])
        new_state: State = with_leaves(
            state,
            [
                next(new_numbers) if _is_number_leaf(leaf) else next(new_arrays) if is_array(leaf) else leaf
                for leaf in old
            ],
        )
        return new_state


class _Launch(NamedTuple):
    """A kernel's function, its grid and arguments; `others` are those that differ from step to step."""

    function: Any
    n_blocks: int
    arguments: list[Any]
    others: list[tuple[int, Argument]]


def _is_number_leaf(leaf: Any) -> bool:
    return isinstance(leaf, StepNumber) or is_state_number(leaf)


def _is_array_leaf(leaf: Any) -> bool:
    return is_array(leaf) and not isinstance(leaf, StepNumber)


def _parts(array: Array, lengths: list[int]) -> list[Array]:
    ends = list(accumulate(lengths))
    return [array[end - length : end] for end, length in zip(ends, lengths)]


class _Run:
    """The arrays and numbers of one run of a program."""

    def __init__(
        self,
        program: _BoundProgram,
        state: list[Array],
        batch: Batch,
        scalars: list[Any],
        loss: Array,
    ) -> None:
        self.program = program
        self.state = state
        self.batch = batch
        self.scalars = scalars
        self.loss = loss
        self.numbers: dict[int, Any] = {}

    def array(self, value: Value) -> Array:
        """Return the array of a value that is in memory."""
        fixed = self.program.arrays.get(id(value))
        if fixed is not None:
            return fixed
        if value.kind == "transpose":
            return self.array(value.operands[0]).T
        if value.kind == "reshape":
            return self.array(value.operands[0]).reshape(value.shape)
        if value.kind == "state":
            return self.state[value.detail]
        if value.kind == "input":
            return self.batch[value.detail]
        if value is self.program.plan.traced.results[0]:
            return self.loss
        return self.state[self.program.plan.in_place[id(value)]]

    def number(self, value: Any) -> Any:
        """Return a number of the host: one that changes from step to step during a capture."""
        if not isinstance(value, Value):
            return value
        if value.kind == "scalar_input":
            return self.scalars[value.detail]
        if id(value) not in self.numbers:
            self.numbers[id(value)] = OPERATORS[value.function](*map(self.number, value.operands))
        return self.numbers[id(value)]

    def argument(self, argument: Argument) -> Array:
        """Return an argument of a kernel."""
        assert argument.value is not None
        if argument.kind != "number":
            array = self.array(argument.value)
            # Arrays of the state and computed ones are contiguous.
            return cupy.ascontiguousarray(array) if argument.value.kind == "input" else array
        number = self.number(argument.value)
        if isinstance(number, StepNumber):
            return number.row.entry_of(number)
        return cupy.asarray(number, dtype=self.program.plan.traced.state[0].dtype)
