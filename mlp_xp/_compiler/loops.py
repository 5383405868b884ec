"""Loops of segments (`mlp_xp._compiler.kernels`), as source that Numba compiles.

The source depends on the operations and dtypes of a step, but not on sizes: so it is compiled once for all
networks that differ in their sizes alone. `mlp_xp._compiler.loop_programs` makes steps of the loops.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._compiler.elements import Argument, Body, SegmentWriter
from mlp_xp._compiler.graph import Value
from mlp_xp._compiler.kernels import COLUMN, TOTAL, reduction_kind
from mlp_xp._compiler.languages import NUMBA, TRANSCENDENTAL
from mlp_xp._compiler.source import indented

PLAIN_NUMBERS = (0, 1, -1, 2, 0.5, math.inf, -math.inf)
"""Numbers that are in the source. Others depend on sizes or are hyperparameters: they are arguments."""


class NumbaSource(NamedTuple):
    """The source of functions, and the types of those that are called from Python.

    Attributes
    ----------
    text : str
        Each function is decorated with ``@compiled``, or with ``@inlined`` into those that call it.
    signatures : tuple of (str, tuple of str)
        For each function that is called its name and the kinds of its arguments: "f8", or "f8[]" for a flat
        array, maybe followed by " read-only".
    """

    text: str
    signatures: tuple[tuple[str, tuple[str, ...]], ...]


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

    def write(self) -> LoopCall:
        """Return the call of the segment's function."""
        form = self.form
        lines = {"rows": self._rows, "columns": self._columns, "flat": self._flat}[form]()
        names = [f"a{index}" for index in range(len(self.arguments))]
        head = f"({', '.join(['first', 'last', 'r', 'c', *names])}):"
        name = self.add_function("\n".join([head, *indented([*self.uniform_lines, *lines]), ""]))
        arguments = list(self.arguments.values())
        return LoopCall(name, self.domain, form != "flat", not self.combined_last(), arguments)

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
        body = self.body()
        return ["for e in range(first, last):", *indented([*body.lines(), *self.ends(body)])]

    def _columns(self) -> list[str]:
        sums, totals = self.segment.reductions(COLUMN), self.segment.reductions(TOTAL)
        body = self.body()
        starts = [*(["for j in range(c):"] if sums else []), *indented(map(self.start, sums))]
        of_element = [
            *body.define([*body.columns.values(), *body.loads.values()]),
            *body.statements,
            *self.ends(body),
        ]
        return [
            *map(self.start, totals),
            *starts,
            "for i in range(first, last):",
            *indented([*body.define(body.rows.values()), *_row_loop(of_element)]),
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

    def accumulator(self, value: Value) -> str:
        """Return the name of what a reduction has combined so far: sums of columns are in memory."""
        return f"{self.output(value)}[j]" if reduction_kind(value) == COLUMN else super().accumulator(value)

    def start(self, value: Value) -> str:
        """Return the statement that begins a reduction."""
        return f"{self.accumulator(value)} = {self.neutral(value)}"

    def row_loop(self, body: Body, ends: list[str]) -> list[str]:
        """Return a loop over the columns of a row that runs a body and, at the end, other statements."""
        return _row_loop([*body.lines(), *ends])

    def end_row(self, value: Value) -> list[str]:
        """Return nothing: one loop has combined the whole row."""
        return []

    def once_a_row(self, lines: list[str]) -> list[str]:
        """Return the statements as they are."""
        return lines


def _row_loop(lines: list[str]) -> list[str]:
    return ["for j in range(c):", *indented(["e = i * c + j", *lines])]


@lru_cache(maxsize=1024)
def literal_value(number: float) -> Value:
    """Return a number of the source of a step as a value, which can be an argument."""
    return Value("literal", (), None, detail=number)


def is_slow_in_loops(value: Value) -> bool:
    """Whether a value is computed several elements at a time by NumPy, but one by one in a loop."""
    return value.function in (*TRANSCENDENTAL, np.power, np.logaddexp)
