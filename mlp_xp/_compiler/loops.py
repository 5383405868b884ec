"""Loops of segments (`mlp_xp._compiler.kernels`), as source that Numba compiles.

The source depends on the operations and dtypes of a step, but not on sizes: so it is compiled once for all
networks that differ in their sizes alone. `mlp_xp._compiler.loop_programs` makes steps of the loops.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._compiler.elements import OPERATORS, Argument, Body, Language, SegmentWriter
from mlp_xp._compiler.graph import Value
from mlp_xp._compiler.kernels import COLUMN, ROW, TOTAL
from mlp_xp._compiler.source import indented

PLAIN_NUMBERS = (0, 1, -1, 2, 0.5, math.inf, -math.inf)
"""Numbers that are in the source. Others depend on sizes or are hyperparameters: they are arguments."""

FAST_EXPRESSIONS: dict[Any, str] = OPERATORS | {
    np.reciprocal: "np.reciprocal({})",
    np.absolute: "abs({})",
    np.sign: "(np.sign({0}) if {0} != 0 else abs({0}))",
    np.sqrt: "np.sqrt({})",
    np.floor: "np.floor({})",
    np.ceil: "np.ceil({})",
    np.maximum: "({0} if {0} != {0} or {0} > {1} else {1})",
    np.minimum: "({0} if {0} != {0} or {0} < {1} else {1})",
    np.isfinite: "np.isfinite({})",
    np.isnan: "np.isnan({})",
    np.logical_and: "(bool({}) and bool({}))",
    np.logical_or: "(bool({}) or bool({}))",
    np.logical_not: "not {}",
    np.where: "({1} if {0} else {2})",
}
SLOW_EXPRESSIONS: dict[Any, str] = {
    **{
        function: f"np.{function.__name__}({{}})"
        for function in (
            *(np.exp, np.expm1, np.log, np.log1p, np.log2, np.log10, np.sin, np.cos, np.tan, np.arctan),
            *(np.sinh, np.cosh, np.tanh),
        )
    },
    np.power: "{} ** {}",
    np.logaddexp: "np.logaddexp({}, {})",
}
"""Of functions that a loop computes one by one, by calls."""

NUMBA = Language(
    dtypes={np.dtype("float32"): "f4", np.dtype("float64"): "f8", np.dtype("bool"): "bool"},
    expressions=FAST_EXPRESSIONS | SLOW_EXPRESSIONS,
    reductions={
        np.add: ("{} + {}", "0"),
        np.maximum: (FAST_EXPRESSIONS[np.maximum], "-np.inf"),
        np.minimum: (FAST_EXPRESSIONS[np.minimum], "np.inf"),
    },
    truth_values=("False", "True"),
    nan="np.nan",
    infinity="np.inf",
    definition="{name} = {text}",
    assignment="{name} = {text}",
    number="{type}({name})",
)


class LoopCall(NamedTuple):
    """A call of a segment's function ``(first, last, r, c, *arguments)``.

    Attributes
    ----------
    function : str
    domain : (int, int)
    by_rows : bool
        `first` and `last` are rows of the domain, not elements.
    is_divisible : bool
        The parts of a range may be computed in any order, or at the same time.
    arguments : list of Argument
    """

    function: str
    domain: tuple[int, int]
    by_rows: bool
    is_divisible: bool
    arguments: list[Argument]

    @property
    def length(self) -> int:
        """The number of rows or elements."""
        rows, columns = self.domain
        return rows if self.by_rows else rows * columns


class LoopWriter(SegmentWriter):
    """Writes the function of one segment, and adds it to `functions`: names by parameters and body."""

    language = NUMBA

    def write(self, functions: dict[str, str]) -> LoopCall:
        """Return the call of the segment's function."""
        by_rows = True
        if self.segment.reductions(ROW):
            lines = self._rows()
        elif self.needs_positions():
            lines = self._columns()
        else:
            by_rows, lines = False, self._flat()
        names = [f"a{index}" for index in range(len(self.arguments))]
        text = "\n".join(
            [
                f"({', '.join(['first', 'last', 'r', 'c', *names])}):",
                *indented([*self.uniform_lines, *lines]),
                "",
            ]
        )
        name = functions.setdefault(text, f"segment{len(functions)}")
        combines = self.segment.reductions(COLUMN) or self.segment.reductions(TOTAL)
        return LoopCall(name, self.domain, by_rows, not combines, list(self.arguments.values()))

    def uniform_name(self, operand: Any, dtype: Any) -> str:
        """Return the name of what is the same for all elements; most literals are arguments."""
        if isinstance(operand, (Value, bool)) or operand in PLAIN_NUMBERS:
            return super().uniform_name(operand, dtype)
        name = f"{self.argument('number', literal_value(operand))}_{NUMBA.dtypes[dtype]}"
        line = NUMBA.define(dtype, name, NUMBA.cast(dtype, name.partition("_")[0]))
        if line not in self.uniform_lines:
            self.uniform_lines.append(line)
        return name

    def _flat(self) -> list[str]:
        body = Body(self, self.segment.outputs, {})
        return [
            "for e in range(first, last):",
            *indented([*body.lines(), *self.stores(body, self.stored())]),
        ]

    def _columns(self) -> list[str]:
        sums, totals = self.segment.reductions(COLUMN), self.segment.reductions(TOTAL)
        body = Body(self, [*self.stored(), *(value.operands[0] for value in (*sums, *totals))], {})
        added = [
            f"{self.output(x)}[j] = {self.combined(x, f'{self.output(x)}[j]', body.name(x.operands[0]))}"
            for x in sums
        ]
        of_element = [
            *body.define([*body.columns.values(), *body.loads.values()]),
            *body.statements,
            *self.stores(body, self.stored()),
            *added,
            *(self.combine(value, body.name(value.operands[0])) for value in totals),
        ]
        return [
            *map(self.start, totals),
            *(["for j in range(c):"] if sums else []),
            *indented(f"{self.output(value)}[j] = {self.neutral(value)}" for value in sums),
            "for i in range(first, last):",
            *indented([*body.define(body.rows.values()), *self.row_loop(of_element)]),
            *self._end_totals(totals),
        ]

    def _rows(self) -> list[str]:
        totals = self.segment.reductions(TOTAL)
        return [
            *map(self.start, totals),
            "for i in range(first, last):",
            *indented(self.row_body(totals)),
            *self._end_totals(totals),
        ]

    def _end_totals(self, totals: list[Value]) -> list[str]:
        return [f"{self.output(value)}[0] = {self.accumulator(value)}" for value in totals]

    def start(self, value: Value) -> str:
        """Return the statement that begins a reduction."""
        return f"{self.accumulator(value)} = {self.neutral(value)}"

    def row_loop(self, lines: list[str]) -> list[str]:
        """Return a loop over the columns of a row around statements for an element."""
        return ["for j in range(c):", *indented(["e = i * c + j", *lines])]

    def end_row(self, value: Value) -> list[str]:
        """Return nothing: one loop has combined the whole row."""
        return []

    def once_a_row(self, lines: list[str]) -> list[str]:
        """Return the statements as they are."""
        return lines


@lru_cache(maxsize=1024)
def literal_value(number: float) -> Value:
    """Return a number of the source of a step as a value, which can be an argument."""
    return Value("literal", (), None, detail=number)


def is_slow_in_loops(value: Value) -> bool:
    """Whether a value is computed several elements at a time by NumPy, but one by one in a loop."""
    return value.function in SLOW_EXPRESSIONS
