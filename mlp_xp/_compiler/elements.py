"""The statements of a segment (`mlp_xp._compiler.kernels`): what is computed for one element of its domain.

They are the same in every language that segments are written in; a `Language` says how it spells them.
`mlp_xp._compiler.segments` puts them into the functions of CUDA kernels, `mlp_xp._compiler.loops` into loops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mlp_xp._compiler.graph import NotRecordableError, Value
from mlp_xp._compiler.kernels import (
    COLUMN,
    COMBINED_KINDS,
    ROW,
    TOTAL,
    KernelPlan,
    Segment,
    is_computed,
    is_number,
    is_scalar,
    is_transposed,
    matrix_shape,
    reduction_kind,
)
from mlp_xp._compiler.languages import OF_TRUTH_VALUES, Language


class Argument(NamedTuple):
    """An argument of a segment's function.

    Attributes
    ----------
    kind : str
        "array": an array that is read. "output": one that is written. "number": the number of a step.
        "parts": memory for a reduction's parts. "counters": zeros, for the numbers of finished blocks.
    value : Value
        The array, the number or the reduction; of counters None.
    """

    kind: str
    value: Value | None


class SegmentWriter(ABC):
    """Writes the statements of one segment; subclasses write its function around them.

    Names: ``v3`` is a value, ``a2`` an argument, ``i`` and ``j`` row and column of an element, ``e`` its
    index, ``r`` and ``c`` numbers of rows and columns of the domain. All arrays are flat.
    """

    language: ClassVar[Language]

    def __init__(self, plan: KernelPlan, segment: Segment, functions: dict[str, str]) -> None:
        self.plan = plan
        self.segment = segment
        self.functions = functions
        """Names of functions, by their parameters and body; that of the segment is added."""
        self.domain = segment.domain
        self.inside = set(map(id, segment.values))
        self.arguments: dict[Any, Argument] = {}
        self.numbers: dict[int, int] = {}
        self.uniform: dict[int, str] = {}
        self.uniform_lines: list[str] = []

    @property
    def form(self) -> str:
        """The form of the function: "rows", "columns" or "flat".

        With "rows", elements are combined over each row before what depends on that; with "columns", over
        columns or altogether, or rows and columns of elements are needed. With "flat", indices are enough.
        """
        if self.segment.reductions(ROW):
            return "rows"
        return "columns" if self.combined_last() or self._needs_positions() else "flat"

    def combined_last(self) -> list[Value]:
        """List the reductions that are complete when the segment is."""
        return [*self.segment.reductions(COLUMN), *self.segment.reductions(TOTAL)]

    def add_function(self, text: str) -> str:
        """Return the name of a function with these parameters and this body."""
        return self.functions.setdefault(text, f"segment{len(self.functions)}")

    # Names

    def argument(self, kind: str, value: Value | None) -> str:
        """Return the name of an argument, which is added unless it is there."""
        key = kind, id(value)
        if key not in self.arguments:
            self.arguments[key] = Argument(kind, value)
        return f"a{list(self.arguments).index(key)}"

    def array(self, value: Value) -> str:
        """Return the argument for the array that owns a value's memory; one that is written too is one."""
        stored = self.plan.storage(value.base)
        is_written = stored in map(self.plan.storage, self.segment.outputs)
        return self.argument("output" if is_written else "array", stored)

    def output(self, value: Value) -> str:
        """Return the argument for the array that a value is written to."""
        return self.argument("output", self.plan.storage(value))

    def number_of(self, value: Value) -> str:
        """Return the name of a value."""
        return f"v{self.numbers.setdefault(id(value), len(self.numbers))}"

    # Where elements are.

    def index(self, operand: Value) -> str:
        """Return the index of the element of an operand that belongs to an element of the domain."""
        position = self._position(operand)
        if operand.kind != "strided":
            return position
        offset, stride = operand.detail
        return f"{offset}u" if position == "0" else f"{offset}u + {position} * {stride}u"

    def _position(self, operand: Value) -> str:
        """Return the number of that element among those of the operand."""
        own, domain = matrix_shape(operand.shape), self.domain
        transposed = is_transposed(operand)
        if own == (1, 1):
            return "0"
        if own == domain:
            return "j * r + i" if transposed and 1 not in own else "e"
        if own == (1, domain[1]):
            return "j"
        if own == (domain[0], 1):
            return "i"
        raise NotRecordableError(f"an operand of shape {own} in a domain {domain}")

    def level(self, value: Value) -> str:
        """Return which index a value varies with: "uniform", "row", "column" or "element"."""
        own = matrix_shape(value.shape)
        if own == (1, 1) and self.domain != (1, 1):
            return "uniform"
        if own == self.domain:
            return "element"
        return "row" if own == (self.domain[0], 1) else "column"

    def _needs_positions(self) -> bool:
        """Whether rows and columns of elements are needed."""
        return any(
            value.kind in ("dot", "outer")
            or any(
                id(operand) not in self.inside and self._position(operand) not in ("0", "e")
                for operand in _arrays_of(value)
            )
            for value in self.segment.values
        )

    # Expressions

    def uniform_name(self, operand: Any, dtype: Any) -> str:
        """Return the name of what is the same for all elements, which is computed once; of a literal it."""
        if not isinstance(operand, Value):
            return self.language.literal(operand, dtype)
        if id(operand) not in self.uniform:
            name = self.number_of(operand)
            if is_number(operand):
                own = self.plan.traced.state[0].dtype
                text = self.language.number.format(
                    type=self.language.dtypes[own], name=self.argument("number", operand)
                )
            elif is_scalar(operand):
                own = operand.dtype
                text = self.expression(operand, partial(self.uniform_name, dtype=self.dtype_of(operand)))
            else:
                own, text = operand.dtype, f"{self.array(operand)}[{self.index(operand)}]"
            self.uniform_lines.append(self.language.define(own, name, text))
            self.uniform[id(operand)] = name
        return self.uniform[id(operand)]

    def dtype_of(self, value: Value) -> Any:
        """Return the dtype that a value is computed with, which its operands are cast to."""
        dtypes = [operand.dtype for operand in value.arrays if operand.dtype is not None]
        dtypes = [dtype for dtype in dtypes if dtype != np.dtype(bool)]
        return np.result_type(*dtypes) if dtypes else value.dtype

    def expression(self, value: Value, name_of: Callable[[Any], str]) -> str:
        """Return the expression of a value; its operands have these names."""
        if value.function not in self.language.expressions:
            raise NotRecordableError(f"{value.function.__name__} in a kernel")
        dtype, operands = self.dtype_of(value), value.operands
        if dtype == np.dtype(bool):
            numbers = [x for x in operands if is_number(x) or not isinstance(x, (Value, bool))]
            if numbers or value.function not in (*OF_TRUTH_VALUES, np.where):
                raise NotRecordableError(f"{value.function.__name__} of truth values")
        names = [
            self.language.cast(dtype, name_of(x))
            if isinstance(x, bool) or (isinstance(x, Value) and x.dtype != dtype)
            else name_of(x)
            for x in operands
        ]
        if value.function is np.where:
            names[0] = name_of(operands[0])
        return self.language.expressions[value.function].format(*names)

    # Statements

    def stored(self) -> list[Value]:
        """List the outputs that are no reductions."""
        return [value for value in self.segment.outputs if value.kind != "reduce"]

    def body(self) -> Body:
        """Return what computes the segment for an element, where no element waits for others."""
        return Body(self, [*self.stored(), *(value.operands[0] for value in self.combined_last())], {})

    def ends(self, body: Body) -> list[str]:
        """List the statements that write an element of the outputs, and combine it with others."""
        combine = [self.combine(value, body.name(value.operands[0])) for value in self.combined_last()]
        return [*self.stores(self.stored(), "e", body.name), *combine]

    def stores(self, values: Iterable[Value], index: str, name: Callable[[Value], str]) -> list[str]:
        """List the statements that write an element of each value, of a "join" a row of elements."""
        lines = []
        for value in values:
            parts, output = value.operands if value.kind == "join" else (value,), self.output(value)
            for number, part in enumerate(parts):
                at = index if len(parts) == 1 else f"{index} * {len(parts)}u + {number}u"
                lines.append(self.language.assign(f"{output}[{at}]", name(part)))
        return lines

    def accumulator(self, value: Value) -> str:
        """Return the name of what a reduction has combined so far."""
        return f"sum_{self.number_of(value)}"

    def neutral(self, value: Value) -> str:
        """Return what a reduction starts with."""
        return self.language.cast(value.dtype, self.language.reductions[value.function][1])

    def combine(self, value: Value, name: str) -> str:
        """Return the statement that adds a number to a reduction."""
        accumulator, expression = self.accumulator(value), self.language.reductions[value.function][0]
        return self.language.assign(accumulator, expression.format(accumulator, name))

    # Rows, which all elements wait for.

    @abstractmethod
    def row_loop(self, body: Body, ends: list[str]) -> list[str]:
        """Return a loop over the columns of a row that runs a body and, at the end, other statements."""

    @abstractmethod
    def start(self, value: Value) -> str:
        """Return the statement that begins a reduction."""

    @abstractmethod
    def end_row(self, value: Value) -> list[str]:
        """List the statements that make a reduction's accumulator complete after the loop over a row."""

    def row_body(self, totals: list[Value]) -> list[str]:
        """List the statements for a row of a domain with row reductions.

        Loops over the columns, between which the row's reductions are complete, then one that stores values.
        """
        known: dict[int, str] = {}
        lines = [*self._row_loads(known), *self._row_reductions(known)]
        elements = [value for value in self.stored() if not self._is_of_row(value)]
        of_elements = [value for value in totals if not self._is_of_row(value.operands[0])]
        if elements or of_elements:
            lines += self._reduce_or_store(elements, of_elements, known)
        once = [
            *self.stores(filter(self._is_of_row, self.segment.outputs), "i", lambda x: known[id(x)]),
            *(
                self.combine(value, known[id(value.operands[0])])
                for value in totals
                if self._is_of_row(value.operands[0])
            ),
        ]
        return [*lines, *(self.once_a_row(once) if once else [])]

    @abstractmethod
    def once_a_row(self, lines: list[str]) -> list[str]:
        """Return statements that are for the row as a whole."""

    def _row_reductions(self, known: dict[int, str]) -> list[str]:
        """Return what computes the values for a whole row, which are added to the known names."""
        lines: list[str] = []
        phase = self._phases()
        for number in range(1 + max(phase.values())):
            for value in self.segment.values:
                if phase[id(value)] == number and self._is_of_row(value) and value.kind == "map":
                    name = known[id(value)] = self.number_of(value)
                    text = self.expression(value, partial(self._known_name, known, self.dtype_of(value)))
                    lines.append(self.language.define(value.dtype, name, text))
            reduced = [x for x in self.segment.reductions(ROW) if phase[id(x.operands[0])] == number]
            if reduced:
                lines += [*map(self.start, reduced), *self._reduce_or_store([], reduced, known)]
            for value in reduced:
                known[id(value)] = self.accumulator(value)
                lines += self.end_row(value)
        return lines

    def _reduce_or_store(self, stored: list[Value], reduced: list[Value], known: dict[int, str]) -> list[str]:
        """Return a loop over the columns of a row that stores values, and combines operands of reductions."""
        body = Body(self, [*stored, *(value.operands[0] for value in reduced)], known)
        ends = [
            *self.stores(stored, "e", body.name),
            *(self.combine(value, body.name(value.operands[0])) for value in reduced),
        ]
        return self.row_loop(body, ends)

    def _is_of_row(self, value: Value) -> bool:
        """Whether a value of the segment is known for a whole row."""
        if value.kind == "reduce":
            return reduction_kind(value) == ROW
        of_row = value.kind == "join" or matrix_shape(value.shape) == (self.domain[0], 1)
        return of_row and self.domain[1] != 1

    def _phases(self) -> dict[int, int]:
        """Map each value to the number of loops over a row's columns that must precede it."""
        phase: dict[int, int] = {}
        for value in self.segment.values:
            of_operands = [phase[id(operand)] for operand in value.arrays if id(operand) in self.inside]
            phase[id(value)] = max(of_operands, default=0)
            if value.kind == "reduce" and reduction_kind(value) == ROW:
                operand = value.operands[0]
                phase[id(operand)] = phase.get(id(operand), 0)
                phase[id(value)] = phase[id(operand)] + 1
        return phase

    def _row_loads(self, known: dict[int, str]) -> list[str]:
        lines: list[str] = []
        if self.domain[1] == 1:
            return lines
        for value in self.segment.values:
            for operand in _arrays_of(value):
                if id(operand) in self.inside or id(operand) in known:
                    continue
                if self.level(operand) == "row" and value.kind in COMBINED_KINDS:
                    known[id(operand)] = self.number_of(operand)
                    element = f"{self.array(operand)}[{self.index(operand)}]"
                    lines.append(self.language.define(operand.dtype, known[id(operand)], element))
        return lines

    def _known_name(self, known: dict[int, str], dtype: Any, operand: Any) -> str:
        if isinstance(operand, Value) and id(operand) in known:
            return known[id(operand)]
        return self.uniform_name(operand, dtype)


class Load(NamedTuple):
    """An element that is read from memory."""

    name: str
    dtype: Any
    text: str


class Body:
    """The statements that compute values for one element of a domain."""

    def __init__(self, writer: SegmentWriter, targets: Iterable[Value], known: dict[int, str]) -> None:
        self.writer = writer
        self.known = known
        self.loads: dict[int, Load] = {}
        """Of each element; `rows` and `columns` have what is the same in all of a row, or of a column."""
        self.rows: dict[int, Load] = {}
        self.columns: dict[int, Load] = {}
        self.statements: list[str] = []
        self.names: dict[int, str] = {}
        for value in targets:
            self._need(value)

    def name(self, value: Value) -> str:
        """Return the name of a value that is computed."""
        return self.known.get(id(value)) or self.names[id(value)]

    def define(self, loads: Iterable[Load]) -> list[str]:
        """List the statements that read elements."""
        return [self.writer.language.define(load.dtype, load.name, load.text) for load in loads]

    def lines(self) -> list[str]:
        """List the statements for one element."""
        loads = [*self.columns.values(), *self.rows.values(), *self.loads.values()]
        return [*self.define(loads), *self.statements]

    def _need(self, root: Value) -> None:
        """Add the statements of a value, after those of its operands."""
        stack = [(root, False)]
        while stack:
            value, operands_done = stack.pop()
            if id(value) in self.names or id(value) in self.known:
                continue
            if id(value) not in self.writer.inside or not is_computed(value):
                self._load(value)
            elif operands_done or value.kind in ("dot", "outer", "zeros"):
                self._compute(value)
            else:
                stack.append((value, True))
                stack += [(operand, False) for operand in _arrays_of(value)]

    def _load(self, value: Value) -> None:
        writer = self.writer
        level = writer.level(value)
        if level == "uniform":
            self.names[id(value)] = writer.uniform_name(value, value.dtype)
            return
        name = self.names[id(value)] = writer.number_of(value)
        loads = {"column": self.columns, "row": self.rows}.get(level, self.loads)
        loads[id(value)] = Load(name, value.dtype, f"{writer.array(value)}[{writer.index(value)}]")

    def _compute(self, value: Value) -> None:
        writer = self.writer
        name = self.names[id(value)] = writer.number_of(value)
        if value.kind == "join":
            return  # its columns are computed
        if value.kind == "zeros":
            text = writer.language.literal(0.0, value.dtype)
        elif value.kind == "dot":
            text = self._dot(value)
        elif value.kind == "outer":
            text = self._outer(value)
        else:
            dtype = writer.dtype_of(value)
            text = writer.expression(value, lambda x: self._operand(x, dtype))
        self.statements.append(writer.language.define(value.dtype, name, text))

    def _operand(self, operand: Any, dtype: Any) -> str:
        return self.name(operand) if _is_array(operand) else self.writer.uniform_name(operand, dtype)

    def _dot(self, value: Value) -> str:
        left, right = value.operands
        return " + ".join(
            f"{self._at(left, 'i', str(k))} * {self._at(right, str(k), 'j')}" for k in range(left.shape[1])
        )

    def _outer(self, value: Value) -> str:
        # Row k of the domain holds the terms of all elements (p, q) of the product, at column p n + q.
        left, right = value.operands
        n = right.shape[1]
        return f"{self._at(left, f'(j / {n}u)', 'i')} * {self._at(right, 'i', f'(j % {n}u)')}"

    def _at(self, operand: Value, row: str, column: str) -> str:
        """Return the expression of an element of a matrix in memory."""
        rows, columns = matrix_shape(operand.shape)
        array = self.writer.array(operand)
        if is_transposed(operand):
            return f"{array}[{column} * {rows}u + {row}]"
        return f"{array}[{row} * {columns}u + {column}]"


def _is_array(operand: Any) -> bool:
    """Whether an operand is no number, of the host or of a device."""
    return isinstance(operand, Value) and not is_number(operand) and not is_scalar(operand)


def _arrays_of(value: Value) -> list[Value]:
    return list(filter(_is_array, value.arrays))
