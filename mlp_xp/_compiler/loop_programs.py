"""Steps as compiled loops, from the plan of their kernels (`mlp_xp._compiler.kernels`).

Each segment is a loop (`mlp_xp._compiler.loops`). Between loops a step calls NumPy, for the matrix products,
and for functions such as tanh of many elements, which NumPy computes several at a time where a compiled loop
computes them one by one. If all arrays are tiny, the products are loops too, and all steps of an epoch, or of
many epochs, are one compiled function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlp_xp._arrays import HostArray
from mlp_xp._compiler.elements import Argument
from mlp_xp._compiler.graph import NotRecordableError, Value, reachable
from mlp_xp._compiler.kernels import KernelPlan, is_number, is_transposed, plan_kernels
from mlp_xp._compiler.languages import NUMBA, SCALAR_EXPRESSIONS
from mlp_xp._compiler.loops import PLAIN_NUMBERS, LoopCall, LoopWriter, NumbaSource, is_slow_in_loops
from mlp_xp._compiler.memory import Location, MemoryPlan, place_reshaped, state_location
from mlp_xp._compiler.passes import expand_logaddexp
from mlp_xp._compiler.program import Program
from mlp_xp._compiler.source import SourceBuilder, indented, product_function
from mlp_xp._compiler.storage import Block, allocate, check_results, plan_blocks
from mlp_xp._compiler.trace import TracedFunction

MIN_ELEMENTS_TO_DIVIDE = 2**18
"""From this size on a loop is divided among the cores."""

MIN_ELEMENTS_TO_SUM_BY_A_CALL = 2**12
"""Sums of more elements are NumPy's: it adds in pairs, several at a time."""

MAX_CALLS_IN_EPOCHS = 30
MAX_CALLS_INLINED = 20
"""How many loops and products a step may have that is compiled with all others of an epoch, and how many are
inlined, which saves a tenth of a microsecond. More take the compiler too long: those of one hidden layer are
13, of each further one 7."""

MIN_ELEMENTS_OF_A_CALL = 2**9
"""From this size on, functions that NumPy computes several elements at a time are calls of NumPy's."""

PRELUDE = """@compiled
def product(m, n, k, a, rows_a, columns_a, b, rows_b, columns_b, out):
    if n < four:
        for i in range(m):
            for j in range(n):
                sum = a[i * rows_a] * b[j * columns_b]
                for l in range(one, k):
                    sum += a[i * rows_a + l * columns_a] * b[l * rows_b + j * columns_b]
                out[i * n + j] = sum
        return
    for at in range(m * n):
        out[at] = zero
    if k > m:
        for l in range(k):
            for i in range(m):
                factor = a[i * rows_a + l * columns_a]
                for j in range(n):
                    out[i * n + j] += factor * b[l * rows_b + j * columns_b]
    else:
        for i in range(m):
            for l in range(k):
                factor = a[i * rows_a + l * columns_a]
                for j in range(n):
                    out[i * n + j] += factor * b[l * rows_b + j * columns_b]

@compiled
def copy(source, target):
    for at in range(u8(target.size)):
        target[at] = source[at]

@compiled
def take(source, order, first, rows, columns, target):
    for i in range(rows):
        start = u8(order[first + i]) * columns
        for j in range(columns):
            target[i * columns + j] = source[start + j]
"""
"""Functions of matrices in flat arrays; `rows_a` and `columns_a` are the steps between rows and columns."""


@dataclass(eq=False, kw_only=True)
class LoopProgram(Program):
    """A step of NumPy calls and of calls of loops: bound like others when `functions` has these too.

    Attributes
    ----------
    plan : KernelPlan
    loops : NumbaSource
        The source of the loops. ``in_parallel(function, length, r, c, *arguments)`` is to call one of them
        for the parts of a range.
    """

    plan: KernelPlan
    loops: NumbaSource


@dataclass
class EpochProgram:
    """All steps of many epochs as one function, ``epochs``.

    Its arguments are the order of the rows and whether they are taken in it, the epochs' rates, where their
    losses are added, the first row and the number of batches, the weight of a batch's loss, `sizes`,
    `constants`, the samples, arrays for a batch of them, the state, the arrays that steps write, and the
    numbers of the state. It returns these.
    """

    loops: NumbaSource
    sizes: list[int]
    constants: list[float]
    plan: KernelPlan
    functions: dict[str, Any] = field(default_factory=dict)

    def memory(self) -> list[HostArray]:
        """Allocate the arrays that steps write, flat."""
        loss = self.plan.traced.results[0]
        arrays = {id(loss): np.empty((), loss.dtype)} | allocate(self.plan, np.empty)
        return [arrays[id(value)].reshape(-1) for value in self.plan.written]


def _flat(array: HostArray) -> HostArray:
    """Return an array as a flat one that is contiguous and aligned."""
    flat = array.reshape(-1)
    return flat if flat.flags.aligned else flat.copy()


def write_loops(traced: TracedFunction) -> LoopProgram:
    """Return the program of a traced step as loops, with NumPy's products and functions between them.

    Raises
    ------
    NotRecordableError
        If there is something that has no compiled form.
    """
    plan = plan_kernels(traced, _leave_to_numpy, max_elements_to_update_last=0)
    check_results(traced, SCALAR_EXPRESSIONS)
    return _StepSource(plan).program()


def write_epochs(traced: TracedFunction) -> EpochProgram:
    """Return the program of all epochs of a traced step as one function; see `write_loops`."""
    plan = plan_kernels(traced, lambda _: None, max_elements_to_update_last=0)
    check_results(traced, SCALAR_EXPRESSIONS)
    return _EpochSource(plan).program()


def _leave_to_numpy(traced: TracedFunction) -> None:
    """Rewrite as calls what NumPy computes faster than a compiled loop."""
    expand_logaddexp(traced)
    for value in reachable(traced.roots):
        if value.kind == "map" and is_slow_in_loops(value) and len(value.operands) == 1:
            is_call = value.size >= MIN_ELEMENTS_OF_A_CALL and value.operands[0].shape == value.shape
        else:
            is_sum = value.kind == "reduce" and value.function is np.add and value.shape == ()
            is_call = is_sum and value.operands[0].size >= MIN_ELEMENTS_TO_SUM_BY_A_CALL
        if is_call:
            value.kind = "call"


class _Source(ABC):
    """The lines of a step, from its plan; subclasses spell products and where the arrays are."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.functions: dict[str, str] = {}
        """Names of the segments' functions, by their parameters and body."""
        self.signatures: dict[str, tuple[str, ...]] = {}
        self.calls = [
            [LoopWriter(plan, segment, self.functions).write() for segment in stage.segments]
            for stage in plan.stages
        ]

    def step_lines(self) -> list[str]:
        """List the lines that do a step."""
        lines = []
        for stage, calls in zip(self.plan.stages, self.calls):
            for call in calls:
                self.signatures.setdefault(call.function, self._signature(call))
                lines.append(self.call_line(call, [self._argument(x) for x in call.arguments]))
            lines += map(self.product_line, stage.products)
        lines += [self.copy_line(value, self.plan.traced.state[target]) for target, value in self.plan.copies]
        return lines

    @abstractmethod
    def call_line(self, call: LoopCall, arguments: list[str]) -> str:
        """Return the call of a segment's function for all of its elements."""

    @abstractmethod
    def product_line(self, value: Value) -> str:
        """Return the call that computes a product, or another value of a library."""

    @abstractmethod
    def copy_line(self, source: Value, target: Value) -> str:
        """Return the copy of a value that could not be written over the state."""

    def _signature(self, call: LoopCall) -> tuple[str, ...]:
        kinds = ["u8"] * 4
        for argument in call.arguments:
            assert argument.value is not None
            if argument.kind == "number":
                kinds.append("f8")
            else:
                read_only = " read-only" if argument.value.kind == "input" else ""
                kinds.append(f"{NUMBA.dtypes[argument.value.dtype]}[]{read_only}")
        return tuple(kinds)

    def _argument(self, argument: Argument) -> str:
        assert argument.value is not None
        return self.number(argument.value) if argument.kind == "number" else self.flat(argument.value)

    @abstractmethod
    def flat(self, value: Value) -> str:
        """Return the name of a value's flat array."""

    @abstractmethod
    def number(self, operand: Any) -> str:
        """Return the expression of a number of the host."""

    def functions_source(self) -> str:
        """Return the source of the segments' functions."""
        return "\n".join(f"@compiled\ndef {name}{text}" for text, name in self.functions.items())


class _StepSource(_Source):
    """A step whose products are NumPy's."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan)
        traced = plan.traced
        self.values = list(dict.fromkeys((*traced.state, *reachable(traced.roots))))
        index_of = {id(value): index for index, value in enumerate(self.values)}
        self.memory = _plan_memory(plan, self.values)
        self.builder = SourceBuilder(traced, self.memory, index_of)

    def program(self) -> LoopProgram:
        """Return the program."""
        builder = self.builder
        lines = self.step_lines()
        loss, *numbers = self.plan.traced.results
        results = [f"{self.flat(loss)}[0]", *map(self.number, numbers)]
        builder.body += [
            *(
                f"{builder.number(value)} = {builder.scalar_expression(value)}"
                for value in self.values
                if is_number(value) and value.kind == "map"
            ),
            *lines,
            f"return ({', '.join(results)},)",
        ]
        return LoopProgram(
            builder.source([*self.signatures, "in_parallel"]),
            builder.functions,
            self.memory.pool_nbytes,
            builder.arrays,
            plan=self.plan,
            loops=NumbaSource(self.functions_source(), tuple(self.signatures.items())),
        )

    def call_line(self, call: LoopCall, arguments: list[str]) -> str:
        """Return a call for all of a segment's elements, at once or in parts."""
        rows, columns = call.domain
        rest = f"{', '.join([str(call.length), str(rows), str(columns), *arguments])})"
        if call.is_divisible and rows * columns >= MIN_ELEMENTS_TO_DIVIDE:
            return f"in_parallel({call.function}, {rest}"
        return f"{call.function}(0, {rest}"

    def flat(self, value: Value) -> str:
        """Return the name of a value's flat array."""
        base = value.base
        if base.kind == "input":
            self.builder.functions["flat"] = _flat
            self.builder.add_to_prologue(f"flat{base.detail} = flat(input{base.detail})")
            return f"flat{base.detail}"
        location = self.memory.locations[id(base)]._replace(shape=(base.size,))
        return self.builder.name_array(f"v{self.builder.index_of[id(base)]}_flat", location)

    def number(self, operand: Any) -> str:
        """Return the expression of a number of the host."""
        is_literal = isinstance(operand, Value) and operand.kind == "literal"
        return self.builder.number(operand.detail if is_literal else operand)

    def _argument(self, argument: Argument) -> str:
        text = super()._argument(argument)
        is_literal = argument.value is not None and argument.value.kind == "literal"
        return f"float({text})" if argument.kind == "number" and not is_literal else text

    def product_line(self, value: Value) -> str:
        """Return the call of a library's function."""
        out, *operands = map(self.builder.array, (value, *value.operands))
        if value.kind == "matmul":
            return f"{product_function(value.operands)}({', '.join([*operands, out])})"
        if value.detail is not None:
            return f"{self.builder.reduction(value.function)}({operands[0]}, None, None, {out})"
        return f"{self.builder.function(value.function)}({operands[0]}, {out})"

    def copy_line(self, source: Value, target: Value) -> str:
        """Return the copy of a value that could not be written over the state."""
        return f"copyto({self.builder.array(target)}, {self.builder.array(source)})"


def _plan_memory(plan: KernelPlan, values: list[Value]) -> MemoryPlan:
    """Find locations for the arrays of a step that are no inputs."""
    traced, loss, block_of = plan.traced, plan.traced.results[0], plan_blocks(plan)
    nbytes = {block.number: block.size * block.dtype.itemsize for block in block_of.values()}
    block_of[id(loss)] = Block(len(nbytes), 1, loss.dtype)
    locations = {
        id(value): Location(("pool", block_of[id(value)].number), 0, value.shape, value.dtype)
        for value in plan.written
    }
    locations |= {id(value): state_location(traced, i, value) for i, value in enumerate(traced.state)}
    locations |= {key: locations[id(traced.state[target])] for key, target in plan.in_place.items()}
    place_reshaped(values, locations)
    return MemoryPlan(locations, [*nbytes.values(), loss.nbytes])


class _EpochSource(_Source):
    """Epochs of steps that are compiled as a whole."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan)
        names = {id(value): f"state{index}" for index, value in enumerate(plan.traced.state)}
        self.names = names | {id(value): f"t{index}" for index, value in enumerate(plan.written)}
        self.number_lines: list[str] = []
        self.number_names: dict[int, str] = {}
        self.sizes: list[int] = []
        self.constants: dict[float, str] = {}

    def program(self) -> EpochProgram:
        """Return the program."""
        traced = self.plan.traced
        n_calls = sum(len(stage.segments) + len(stage.products) for stage in self.plan.stages)
        if n_calls > MAX_CALLS_IN_EPOCHS:
            raise NotRecordableError("more loops than are compiled as one function")
        inputs = {i: value for i, value in enumerate(traced.inputs) if value is not None}
        lines = self.step_lines()
        loss, *numbers = traced.results
        new_numbers = list(map(self.number, numbers))
        gather = [
            f"take(samples{i}, order, first + batch * {rows}, {rows}, {columns}, input{i})"
            for i, value in inputs.items()
            for rows, columns in [map(self.size, (value.shape[0], value.size // value.shape[0]))]
        ]
        numbers_in = [f"number{i}" for i in range(1, traced.n_scalars)]
        arguments = [
            *("order", "gathers", "rates", "losses", "first", "n_batches", "share", "sizes", "constants"),
            *(f"samples{i}" for i in inputs),
            *(f"input{i}" for i in inputs),
            *self.names.values(),
            *numbers_in,
        ]
        own = NUMBA.dtypes[traced.state[0].dtype]
        kinds = (
            *("i8[]", "bool", "f8[]", "f8[]", "u8", "u8", "f8", "u8[]", "f8[]"),
            *(f"{own}[] read-only" for _ in inputs),
            *(f"{own}[]" for _ in inputs),
            *(f"{NUMBA.dtypes[value.dtype]}[]" for value in (*traced.state, *self.plan.written)),
            *("f8" for _ in numbers_in),
        )
        update = [f"{', '.join(numbers_in)} = {', '.join(new_numbers)}"] if numbers_in else []
        step = [
            *(["if gathers:", *indented(gather)] if gather else []),
            *self.number_lines,
            *lines,
            f"mean += {self.flat(loss)}[0]",
            *update,
        ]
        body = [
            *(f"size{index} = sizes[{index}]" for index in range(len(self.sizes))),
            *(f"{name} = constants[{index}]" for index, name in enumerate(self.constants.values())),
            "for epoch in range(rates.size):",
            "    number0 = rates[epoch]",
            "    mean = 0.0",
            "    for batch in range(n_batches):",
            *indented(indented(step)),
            "    losses[epoch] += share * mean",
            f"return ({', '.join(numbers_in)},)" if numbers_in else "return ()",
        ]
        head = f"@compiled\ndef epochs({', '.join(arguments)}):"
        parts = "\n".join([PRELUDE, self.functions_source()])
        if n_calls <= MAX_CALLS_INLINED:
            parts = parts.replace("@compiled", "@inlined")
        functions = "\n".join([parts, head, *indented(body), ""])
        loops = NumbaSource(functions, (("epochs", kinds),))
        return EpochProgram(loops, self.sizes, list(self.constants), self.plan)

    def flat(self, value: Value) -> str:
        """Return the name of a value's flat array."""
        base = self.plan.storage(value.base)
        return f"input{base.detail}" if base.kind == "input" else self.names[id(base)]

    def number(self, operand: Any) -> str:
        """Return the expression of a number of the host."""
        if not isinstance(operand, Value):
            return self.literal(operand)
        if operand.kind == "literal":
            return self.literal(operand.detail)
        if operand.kind == "scalar_input":
            return f"number{operand.detail}"
        if id(operand) not in self.number_names:
            text = SCALAR_EXPRESSIONS[operand.function].format(*map(self.number, operand.operands))
            self.number_names[id(operand)] = f"n{len(self.number_names)}"
            self.number_lines.append(f"{self.number_names[id(operand)]} = {text}")
        return self.number_names[id(operand)]

    def size(self, number: int) -> str:
        """Return a new name for a size: one for equal sizes would make the source depend on them."""
        self.sizes.append(number)
        return f"size{len(self.sizes) - 1}"

    def literal(self, number: float) -> str:
        """Return the name of a number, all of which are floats here."""
        if number in PLAIN_NUMBERS:
            return NUMBA.literal(number, np.dtype(float))
        return self.constants.setdefault(number, f"constant{len(self.constants)}")

    def call_line(self, call: LoopCall, arguments: list[str]) -> str:
        """Return the call for all of a segment's elements."""
        sizes = map(self.size, (call.length, *call.domain))
        return f"{call.function}({', '.join(['zero', *sizes, *arguments])})"

    def product_line(self, value: Value) -> str:
        """Return the call of a product."""
        left, right = value.operands
        n_terms = left.shape[-1]
        rows, columns = (1, 1) if value.shape == () else value.shape
        a, b = self._matrix(left, rows, n_terms), self._matrix(right, n_terms, columns)
        return f"product({', '.join([*map(self.size, (rows, columns, n_terms)), *a, *b, self.flat(value)])})"

    def _matrix(self, value: Value, rows: int, columns: int) -> tuple[str, str, str]:
        """Return a matrix's flat array, and the distances between its rows and its columns."""
        if is_transposed(value):
            return self.flat(value), "one", self.size(rows)
        return self.flat(value), self.size(columns), "one"

    def copy_line(self, source: Value, target: Value) -> str:
        """Return the copy of a value that could not be written over the state."""
        return f"copy({self.flat(source)}, {self.flat(target)})"
