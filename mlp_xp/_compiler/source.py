"""Source text of a step of NumPy calls: its lines, and the arrays, scalars and functions that they name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlp_xp._compiler.graph import NotRecordableError, Value, dtype_or_python_type
from mlp_xp._compiler.languages import SCALAR_EXPRESSIONS
from mlp_xp._compiler.memory import Location, MemoryPlan
from mlp_xp._compiler.trace import TracedFunction


def indented(lines: Iterable[str], by: str = "    ") -> list[str]:
    """Return lines one level deeper."""
    return [f"{by}{line}" for line in lines]


def product_function(operands: Iterable[Value]) -> str:
    """Return the function of a matrix product: `dot`, which passes to the BLAS what `matmul` computes itself.

    These are vectors, and a column times a row. But `dot` copies operands that are not contiguous, as arrays
    of the user's may be.
    """
    return "matmul" if any(operand.base.kind == "input" for operand in operands) else "dot"


@dataclass
class SourceBuilder:
    """Collects the lines of a program and gives names to what they use.

    ``v3`` is the array of the schedule's value 3, ``v3_T`` its transpose, ``s3`` a value that is a number;
    ``input0`` and ``number0`` are arguments; ``const0`` and ``zero_dim0`` are arrays of shape () that hold a
    literal and a number of the call; ``filled0`` is an array full of one number.
    """

    traced: TracedFunction
    plan: MemoryPlan
    index_of: dict[int, int]
    """By the value's id, its index in the schedule."""
    prologue: list[str] = field(default_factory=list)
    """Lines that precede the body: views and conversions of the arguments."""
    body: list[str] = field(default_factory=list)
    arrays: dict[str, Location] = field(default_factory=dict)
    scalars: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    filled: dict[str, tuple[Any, Location]] = field(default_factory=dict)
    functions: dict[str, Any] = field(
        default_factory=lambda: {"copyto": np.copyto, "where": np.where, "dot": np.dot, "matmul": np.matmul}
    )
    zero_dim_names: dict[Any, str] = field(default_factory=dict)

    def source(self, names: Iterable[str], functions: Iterable[str] = ()) -> str:
        """Return the source of ``make(...)``, which returns the step.

        Its parameters are what the lines name, and `names`; the `functions` are defined before the step.
        """
        arguments = [
            *(f"input{i}" for i in range(len(self.traced.inputs))),
            *(f"number{i}" for i in range(self.traced.n_scalars)),
        ]
        head = f"def step({', '.join(arguments)}):"
        step = [*functions, head, *indented([*self.prologue, *self.body]), "return step"]
        # What they name are variables of a closure: as globals, they and the step would be a reference cycle.
        names = [*self.arrays, *self.scalars, *self.filled, *names, *self.functions]
        return "\n".join([f"def make({', '.join(names)}):", *indented(step), ""])

    def array(self, value: Value) -> str:
        """Return the name of a value's array."""
        if value.kind == "transpose":
            return self.transposed(value.operands[0])
        if value.kind == "reshape" and id(value) not in self.plan.locations:
            whole = value.operands[0]
            if whole.kind != "input":  # a transpose, of which each call makes a copy
                return f"{self.array(whole)}.reshape({value.shape})"
            name = f"v{self.index_of[id(value)]}"
            self.add_to_prologue(f"{name} = input{whole.detail}.reshape({value.shape})")
            return name
        if value.kind == "input":
            if value.detail == 0 and self.traced.has_ones_column:
                self.add_to_prologue("input0_no_ones = input0[:, :-1]")
                return "input0_no_ones"
            return f"input{value.detail}"
        if id(value) not in self.plan.locations:
            raise NotRecordableError(f"an array of kind {value.kind} without a location")
        return self.name_array(f"v{self.index_of[id(value)]}", self.plan.locations[id(value)])

    def transposed(self, value: Value) -> str:
        """Return the name of the transpose of a value's array."""
        if value.kind == "transpose":
            return self.array(value.operands[0])
        if value.kind in ("input", "reshape"):
            plain = self.array(value)
            if not plain.isidentifier():
                return f"{plain}.T"
            self.add_to_prologue(f"{plain}_T = {plain}.T")
            return f"{plain}_T"
        return self.name_array(f"v{self.index_of[id(value)]}_T", self.plan.locations[id(value)].transpose)

    def name_array(self, name: str, location: Location) -> str:
        """Bind a name to the array at a location; return the name."""
        self.arrays[name] = location
        return name

    def filled_array(self, number: Any, location: Location) -> str:
        """Return the name of an array full of one number; it has the location's shape and order."""
        name = f"filled{len(self.filled)}"
        self.filled[name] = (number, location)
        return name

    def add_to_prologue(self, line: str) -> None:
        """Add a line unless it is there."""
        if line not in self.prologue:
            self.prologue.append(line)

    def number(self, operand: Any) -> str:
        """Return an expression for a scalar as a Python number."""
        if not isinstance(operand, Value):
            return repr(operand) if math.isfinite(operand) else f"float('{operand}')"
        if operand.kind == "scalar_input":
            return f"number{operand.detail}"
        return f"s{self.index_of[id(operand)]}"

    def scalar_expression(self, value: Value) -> str:
        """Return the expression of a value that is a number."""
        if value.kind == "reduce":
            return f"{self.reduction(value.function)}({self.array(value.operands[0])}, None)"
        if value.kind == "matmul":
            return f"dot({', '.join(map(self.array, value.operands))})"
        operands = map(self.number, value.operands)
        if value.function in SCALAR_EXPRESSIONS:
            return SCALAR_EXPRESSIONS[value.function].format(*operands)
        return f"{self.function(value.function)}({', '.join(operands)})"

    def zero_dim(self, operand: Any, dtype: Any) -> str:
        """Return the name of an array of shape () with a scalar: ufuncs convert Python numbers slowly."""
        if isinstance(operand, Value):
            dtype = dtype if operand.dtype is None else operand.dtype
            key: Any = (id(operand), dtype)
        else:
            key = (type(operand), operand, dtype)
        if key not in self.zero_dim_names:
            prefix = "zero_dim" if isinstance(operand, Value) else "const"
            name = self.zero_dim_names[key] = f"{prefix}{len(self.scalars)}"
            self.scalars[name] = (0 if isinstance(operand, Value) else operand, dtype)
            if isinstance(operand, Value):
                lines = self.prologue if operand.kind == "scalar_input" else self.body
                lines.append(f"{name}[...] = {self.number(operand)}")
        return self.zero_dim_names[key]

    def function(self, function: Any) -> str:
        """Return the name of a function."""
        name = str(function.__name__)
        self.functions[name] = function
        return name

    def reduction(self, function: Any) -> str:
        """Return the name of a ufunc's `reduce`."""
        name = f"{function.__name__}_reduce"
        self.functions[name] = function.reduce
        return name

    def map_lines(self, value: Value, operands: list[str], out: str) -> list[str]:
        """Return the lines that compute an elementwise value from these operands into `out`."""
        if value.function is not np.where:
            call = self.function(value.function)
            # np.maximum and np.minimum accept `out` as a keyword only (NumPy deprecates the third position).
            last = f"out={out}" if is_extremum(value) else out
            return [f"{call}({', '.join(operands)}, {last})"]
        condition, x, y = value.operands
        same_shape = isinstance(x, Value) and condition.shape == x.shape == value.shape
        if same_shape and not isinstance(y, Value) and y == 0:
            # The same for finite x, and four times as fast.
            return [f"{self.function(np.multiply)}({operands[1]}, {operands[0]}, {out})"]
        return [f"copyto({out}, where({', '.join(operands)}))"]


def is_extremum(value: Value) -> bool:
    """Whether a value is an elementwise maximum or minimum."""
    return value.function in (np.maximum, np.minimum)


def scalar_dtype(value: Value) -> Any:
    """Return the dtype that NumPy converts a Python number to among the operands of a value."""
    if value.function is np.where:
        return value.dtype
    types = [dtype_or_python_type(operand) for operand in value.operands]
    dtypes = value.function.resolve_dtypes((*types, None))
    return next((dtype for dtype, given in zip(dtypes, types) if isinstance(given, type)), value.dtype)
