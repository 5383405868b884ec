"""C++ functions of segments (`mlp_xp._compiler.kernels`): what one thread does for its elements.

There are three forms, for three kinds of work:

- *flat*: elementwise, of arrays of one shape; an element has an index only.
- *columns*: a block of threads takes a strip of neighbouring columns and some of their rows. For operands
  that are a row or a column, transposed matrices, and reductions over columns or of all elements.
- *rows*: a warp takes a row, and combines its elements before it goes on with what depends on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._compiler.cxx import DTYPES, EXPRESSIONS, OF_TRUTH_VALUES, REDUCTIONS
from mlp_xp._compiler.graph import VIEW_KINDS, NotRecordableError, Value
from mlp_xp._compiler.kernels import (
    COLUMN,
    ROW,
    TOTAL,
    KernelPlan,
    Segment,
    is_computed,
    is_number,
    is_scalar,
    matrix_shape,
    reduction_kind,
)

THREADS = 256
LANES = 32
"""Threads that share a row of a domain with row reductions: a warp."""

UNROLLED = 4
"""Elements of a thread whose operands are read at a time: so many reads are under way."""

MAX_BLOCKS = 2048
"""Number of blocks above which a segment with sums over columns gives its blocks more rows instead: enough
for all multiprocessors of a GPU."""

MAX_ELEMENTS_OF_ONE_BLOCK = 4096
"""Size of a domain up to which one block reduces it: several would have to wait for each other."""


class Argument(NamedTuple):
    """An argument of a segment's function.

    Attributes
    ----------
    kind : str
        "array": an array that is read. "output": one that is written. "number": the number of a step.
        "parts": memory for a reduction's parts. "counters": zeros, for the numbers of finished blocks.
    value : Value
        The array, the number or the reduction; of counters None.
    ctype : str
    """

    kind: str
    value: Value | None
    ctype: str


@dataclass
class Call:
    """A call of a segment's function in a kernel: its domain, grid and arguments.

    Attributes
    ----------
    sizes : list of int
        What the function takes after its block's number and its shared memory.
    n_blocks : int
    n_parts : dict of int to int
        Length of the memory for a reduction's parts, by the reduction's id.
    n_counters : int
    """

    function: str
    sizes: list[int]
    n_blocks: int
    arguments: list[Argument]
    n_parts: dict[int, int]
    n_counters: int


class SegmentWriter:
    """Writes the function of one segment, and adds it to `functions`: names by parameters and body.

    Names: ``v3`` is a value, ``a2`` an argument, ``i`` and ``j`` row and column of an element, ``e`` its
    index; a name with ``[u]`` is one of the elements that are read at a time.
    """

    def __init__(self, plan: KernelPlan, segment: Segment, functions: dict[str, str]) -> None:
        self.plan = plan
        self.segment = segment
        self.functions = functions
        self.domain = segment.domain
        self.inside = set(map(id, segment.values))
        self.arguments: dict[Any, Argument] = {}
        self.numbers: dict[int, int] = {}
        self.uniform: dict[int, str] = {}
        self.uniform_lines: list[str] = []

    def write(self, threads: int) -> Call:
        rows, columns = self.domain
        if max(rows * columns * UNROLLED, rows * LANES) >= 2**31:
            raise NotRecordableError("an array of more elements than kernels can index")
        if self.segment.reductions(ROW):
            lines, sizes, n_blocks = self._write_rows(threads)
        elif self._needs_columns():
            lines, sizes, n_blocks = self._write_columns(threads)
        else:
            lines, sizes, n_blocks = self._write_flat(threads)
        reduced = [*self.segment.reductions(COLUMN), *self.segment.reductions(TOTAL)]
        n_counters, n_parts = 0, {}
        if reduced:
            width = sizes[2] if len(sizes) > 2 else 1
            n_counters = 1 + -(-columns // width)
            for value in self.segment.reductions(COLUMN):
                n_parts[id(value)] = columns * sizes[3]
            for value in self.segment.reductions(TOTAL):
                n_parts[id(value)] = n_blocks
        names = [f"{argument.ctype} a{index}" for index, argument in enumerate(self.arguments.values())]
        head = ["Index block", "void* shared", *self._size_names(len(sizes)), *names]
        body = "\n".join(f"  {line}" for line in [*self.uniform_lines, *lines])
        text = f"({', '.join(head)}) {{\n{body}\n}}"
        name = self.functions.setdefault(text, f"segment{len(self.functions)}")
        return Call(name, sizes, n_blocks, list(self.arguments.values()), n_parts, n_counters)

    def _size_names(self, count: int) -> list[str]:
        return [f"const Index {name}" for name in ("r", "c", "width", "chunks", "height")[:count]]

    # Names

    def _argument(self, kind: str, value: Value | None, ctype: str) -> str:
        key = kind, id(value)
        if key not in self.arguments:
            self.arguments[key] = Argument(kind, value, ctype)
        return f"a{list(self.arguments).index(key)}"

    def _array(self, value: Value) -> str:
        """Return the argument for the array that owns a value's memory; one that is written too is one."""
        base = value.base
        written = self._storage(base) in {self._storage(output) for output in self.segment.outputs}
        if written:
            return self._argument("output", self._storage_value(base), f"{DTYPES[base.dtype]}*")
        return self._argument("array", self._storage_value(base), f"const {DTYPES[base.dtype]}*")

    def _output(self, value: Value) -> str:
        return self._argument("output", self._storage_value(value), f"{DTYPES[value.dtype]}*")

    def _storage_value(self, value: Value) -> Value:
        """Return the value whose array holds a value: for updates in place that is the state."""
        target = self.plan.in_place.get(id(value))
        return value if target is None else self.plan.traced.state[target]

    def _storage(self, value: Value) -> int:
        return id(self._storage_value(value))

    def _number_of(self, value: Value) -> str:
        return f"v{self.numbers.setdefault(id(value), len(self.numbers))}"

    # Where elements are.

    def _index(self, operand: Value) -> str:
        """Return the index of the element of an operand that belongs to an element of the domain."""
        own, domain = matrix_shape(operand.shape), self.domain
        transposed = self._is_transposed(operand)
        if own == (1, 1):
            return "0"
        if own == domain:
            return "j * r + i" if transposed and 1 not in own else "e"
        if own == (1, domain[1]):
            return "j"
        if own == (domain[0], 1):
            return "i"
        raise NotRecordableError(f"an operand of shape {own} in a domain {domain}")

    def _is_transposed(self, operand: Value) -> bool:
        transposed = reshaped = False
        while operand.kind in VIEW_KINDS:
            if operand.kind == "transpose":
                if reshaped:
                    raise NotRecordableError("a reshaped transpose")
                transposed = not transposed
            reshaped = reshaped or operand.kind != "transpose"
            operand = operand.operands[0]
        return transposed

    def _level(self, value: Value) -> str:
        """Return which index a value varies with: "uniform", "row", "column" or "element"."""
        own = matrix_shape(value.shape)
        if own == (1, 1) and self.domain != (1, 1):
            return "uniform"
        if own == self.domain:
            return "element"
        return "row" if own == (self.domain[0], 1) else "column"

    def _needs_columns(self) -> bool:
        """Whether a function needs rows and columns of elements, or combines elements."""
        if self.segment.reductions(COLUMN) or self.segment.reductions(TOTAL):
            return True
        return any(
            value.kind in ("dot", "outer")
            or any(
                id(operand) not in self.inside and self._index(operand) not in ("0", "e")
                for operand in _arrays_of(value)
            )
            for value in self.segment.values
        )

    # Expressions

    def _literal(self, operand: Any, dtype: Any) -> str:
        if isinstance(operand, bool):
            return "true" if operand else "false"
        if not math.isfinite(operand):
            sign = "-" if operand < 0 else ""
            return f"{DTYPES[dtype]}({'NAN' if operand != operand else sign + 'INFINITY'})"
        return f"{DTYPES[dtype]}({float(operand)!r})"

    def _uniform(self, operand: Any, dtype: Any) -> str:
        """Return the name of a value that is the same for all elements; it is computed once a thread."""
        if not isinstance(operand, Value):
            return self._literal(operand, dtype)
        if id(operand) not in self.uniform:
            name = self._number_of(operand)
            if is_number(operand):
                kind = DTYPES[self.plan.traced.state[0].dtype]
                expression = f"*{self._argument('number', operand, f'const {kind}*')}"
                ctype = kind
            elif is_scalar(operand):
                expression = self._expression(operand, lambda x: self._uniform(x, self._dtype_of(operand)))
                ctype = DTYPES[operand.dtype]
            else:
                expression, ctype = f"{self._array(operand)}[0]", DTYPES[operand.dtype]
            self.uniform_lines.append(f"const {ctype} {name} = {expression};")
            self.uniform[id(operand)] = name
        return self.uniform[id(operand)]

    def _dtype_of(self, value: Value) -> Any:
        """Return the dtype that a value is computed with, which its operands are cast to."""
        dtypes = [operand.dtype for operand in value.arrays if operand.dtype is not None]
        dtypes = [dtype for dtype in dtypes if dtype != np.dtype(bool)]
        return np.result_type(*dtypes) if dtypes else value.dtype

    def _expression(self, value: Value, name_of: Callable[[Any], str]) -> str:
        """Return the expression of a value; its operands have these names."""
        if value.function not in EXPRESSIONS:
            raise NotRecordableError(f"{value.function.__name__} in a kernel")
        dtype, operands = self._dtype_of(value), value.operands
        if dtype == np.dtype(bool):
            numbers = [x for x in operands if is_number(x) or not isinstance(x, (Value, bool))]
            if numbers or value.function not in (*OF_TRUTH_VALUES, np.where):
                raise NotRecordableError(f"{value.function.__name__} of truth values")
        names = [f"{DTYPES[dtype]}({name_of(operand)})" for operand in operands]
        if value.function is np.where:
            names[0] = f"({name_of(operands[0])})"
        return f"{DTYPES[value.dtype]}({EXPRESSIONS[value.function].format(*names)})"

    # Bodies

    def _write_flat(self, threads: int) -> tuple[list[str], list[int], int]:
        body = _Body(self, self.segment.outputs, {})
        rows, columns = self.domain
        lines = [
            "const Index first = block * (THREADS * UNROLLED) + threadIdx.x, n = r * c;",
            *body.unrolled("first + u * THREADS", "e", "e < n", self._stores(body, self._stored())),
        ]
        return lines, [rows, columns], max(1, -(-rows * columns // (threads * UNROLLED)))

    def _stored(self) -> list[Value]:
        """List the outputs that are no reductions."""
        return [value for value in self.segment.outputs if value.kind != "reduce"]

    def _stores(self, body: _Body, values: Iterable[Value]) -> list[str]:
        return [f"{self._output(value)}[e] = {body.name(value)};" for value in values]

    def _write_columns(self, threads: int) -> tuple[list[str], list[int], int]:
        sums, totals = self.segment.reductions(COLUMN), self.segment.reductions(TOTAL)
        reduced = [value.operands[0] for value in (*sums, *totals)]
        body = _Body(self, [*self._stored(), *reduced], {})
        rows, columns = self.domain
        width = min(LANES, threads, 1 << (columns - 1).bit_length())
        height = threads // width
        strips = -(-columns // width)
        most = -(-rows // (height * UNROLLED))
        chunks = most
        if sums or totals:
            one_block = rows * columns <= MAX_ELEMENTS_OF_ONE_BLOCK
            chunks = 1 if one_block and strips == 1 else max(1, min(most, MAX_BLOCKS // strips))
        # Whole passes of the block over its rows.
        per_chunk = -(-rows // (chunks * height)) * height
        chunks = -(-rows // per_chunk)
        accumulate = [self._combine(value, body.name(value.operands[0])) for value in (*sums, *totals)]
        lines = [
            "const Index strips = (c + width - 1) / width, strip = block % strips, chunk = block / strips;",
            "const Index j = strip * width + threadIdx.x % width, step = THREADS / width;",
            *(self._start(value) for value in (*sums, *totals)),
            "if (j < c) {",
            *_indented(body.column_lines()),
            "  const Index end = (chunk + 1) * height < r ? (chunk + 1) * height : r;",
            "  for (Index first = chunk * height + threadIdx.x / width; first < end;"
            " first += step * UNROLLED) {",
            *(
                f"    {line}"
                for line in body.unrolled(
                    "first + u * step",
                    "i",
                    "i < end",
                    [*self._stores(body, self._stored()), *accumulate],
                    "i * c + j",
                )
            ),
            "  }",
            "}",
            *self._column_ends(sums),
            *self._total_ends(totals, "strips * chunks"),
        ]
        return lines, [rows, columns, width, chunks, per_chunk], strips * chunks

    def _accumulator(self, value: Value) -> str:
        return f"sum_{self._number_of(value)}"

    def _operation(self, value: Value) -> str:
        return REDUCTIONS[value.function][0]

    def _neutral(self, value: Value) -> str:
        return f"{DTYPES[value.dtype]}({REDUCTIONS[value.function][1]})"

    def _start(self, value: Value) -> str:
        return f"{DTYPES[value.dtype]} {self._accumulator(value)} = {self._neutral(value)};"

    def _combine(self, value: Value, name: str) -> str:
        return f"{self._accumulator(value)} = {self._operation(value)}()({self._accumulator(value)}, {name});"

    def _column_ends(self, sums: list[Value]) -> list[str]:
        write = "if (threadIdx.x < width && j < c)"
        return self._ends(
            sums,
            _Ending("width", write, "chunks", "chunk * c + j", "part * c + j", "j", "j < c", " + 1 + strip"),
        )

    def _total_ends(self, totals: list[Value], n_blocks: str) -> list[str]:
        write, ending = "if (threadIdx.x == 0)", ("n_blocks", "block", "part", "0", "true", "")
        return [
            *([f"const Index n_blocks = {n_blocks};"] if totals else []),
            *self._ends(totals, _Ending("1", write, *ending)),
        ]

    def _ends(self, reductions: list[Value], ending: _Ending) -> list[str]:
        """Return what combines the values of a block's threads, and at last those of the blocks."""
        if not reductions:
            return []
        lines, ends = [], []
        for value in reductions:
            name, ctype, operation = self._accumulator(value), DTYPES[value.dtype], self._operation(value)
            parts, out = self._argument("parts", value, f"volatile {ctype}*"), self._output(value)
            combine = f"{name} = of_block<{operation}>(shared, {name}, {ending.width});"
            lines += [
                combine,
                f"{ending.write} {{",
                f"  if ({ending.n_blocks} > 1) {parts}[{ending.part}] = {name};",
                f"  else {out}[{ending.out}] = {name};",
                "}",
            ]
            ends += [
                f"  {name} = {self._neutral(value)};",
                f"  if ({ending.condition})",
                f"    for (Index part = threadIdx.x / {ending.width}; part < {ending.n_blocks};"
                f" part += THREADS / {ending.width})",
                f"      {name} = {operation}()({name}, {ctype}({parts}[{ending.each}]));",
                f"  {combine}",
                f"  {ending.write} {out}[{ending.out}] = {name};",
            ]
        counter = self._argument("counters", None, "unsigned int*") + ending.counter
        is_last = f"{ending.n_blocks} > 1 && is_last_of({ending.n_blocks}, {counter})"
        return [*lines, f"if ({is_last}) {{", *ends, "}"]

    def _write_rows(self, threads: int) -> tuple[list[str], list[int], int]:
        rows, columns = self.domain
        totals = self.segment.reductions(TOTAL)
        known: dict[int, str] = {}
        lines = [*self._row_loads(known), *self._row_reductions(known)]
        elements = [value for value in self._stored() if not self._is_of_row(value)]
        of_elements = [value for value in totals if not self._is_of_row(value.operands[0])]
        if elements or of_elements:
            lines += self._row_loop(elements, of_elements, known)
        once = [
            *(f"{self._output(x)}[i] = {known[id(x)]};" for x in self.segment.outputs if self._is_of_row(x)),
            *(
                self._combine(value, known[id(value.operands[0])])
                for value in totals
                if self._is_of_row(value.operands[0])
            ),
        ]
        if once:
            lines += ["if (lane == 0) {", *_indented(once), "}"]
        lines = [
            "const Index i = (block * THREADS + threadIdx.x) / LANES, lane = threadIdx.x % LANES;",
            *map(self._start, totals),
            "if (i < r) {",
            *_indented(lines),
            "}",
            *self._total_ends(totals, "(r * LANES + THREADS - 1) / THREADS"),
        ]
        return lines, [rows, columns], -(-rows * min(LANES, threads) // threads)

    def _row_reductions(self, known: dict[int, str]) -> list[str]:
        """Return what computes the values for a whole row, which are added to the known names."""
        lines: list[str] = []
        phase = self._phases()
        for number in range(1 + max(phase.values())):
            for value in self.segment.values:
                if phase[id(value)] == number and self._is_of_row(value) and value.kind != "reduce":
                    name = known[id(value)] = self._number_of(value)
                    text = self._expression(value, partial(self._known_name, known, self._dtype_of(value)))
                    lines.append(f"const {DTYPES[value.dtype]} {name} = {text};")
            reduced = [x for x in self.segment.reductions(ROW) if phase[id(x.operands[0])] == number]
            if reduced:
                lines += [*map(self._start, reduced), *self._row_loop([], reduced, known)]
            for value in reduced:
                name = known[id(value)] = self._accumulator(value)
                lines.append(f"{name} = of_row<{self._operation(value)}>({name});")
        return lines

    def _row_loop(self, stored: list[Value], reduced: list[Value], known: dict[int, str]) -> list[str]:
        """Return a loop over the columns of a row that stores values, and combines operands of reductions."""
        body = _Body(self, [*stored, *(value.operands[0] for value in reduced)], known)
        ends = [
            *self._stores(body, stored),
            *(self._combine(value, body.name(value.operands[0])) for value in reduced),
        ]
        return [
            "for (Index j = lane; j < c; j += LANES) {",
            "  const Index e = i * c + j;",
            *_indented([*body.lines(), *ends]),
            "}",
        ]

    def _is_of_row(self, value: Value) -> bool:
        """Whether a value of the segment is known for a whole row."""
        if value.kind == "reduce":
            return reduction_kind(value) == ROW
        return matrix_shape(value.shape) == (self.domain[0], 1) and self.domain[1] != 1

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
                if self._level(operand) == "row" and value.kind in ("map", "reduce"):
                    known[id(operand)] = self._number_of(operand)
                    ctype = DTYPES[operand.dtype]
                    lines.append(f"const {ctype} {known[id(operand)]} = {self._array(operand)}[i];")
        return lines

    def _known_name(self, known: dict[int, str], dtype: Any, operand: Any) -> str:
        if isinstance(operand, Value) and id(operand) in known:
            return known[id(operand)]
        return self._uniform(operand, dtype)


class _Ending(NamedTuple):
    """How the blocks that share a reduction combine their parts.

    Attributes
    ----------
    width : str
        Number of results of a block.
    write : str
        The condition for the threads that have a result.
    n_blocks : str
        Number of blocks that share the reduction.
    part, each, out : str
        The index of the block's part, of the other blocks' parts, and of the result.
    condition : str
        The condition for the threads that combine parts.
    counter : str
        Where the blocks are counted, from the first counter.
    """

    width: str
    write: str
    n_blocks: str
    part: str
    each: str
    out: str
    condition: str
    counter: str


def _is_array(operand: Any) -> bool:
    """Whether an operand is no number, of the host or of a device."""
    return isinstance(operand, Value) and not is_number(operand) and not is_scalar(operand)


def _arrays_of(value: Value) -> list[Value]:
    return list(filter(_is_array, value.arrays))


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


class _Body:
    """The statements that compute values for one element of a domain."""

    def __init__(self, writer: SegmentWriter, targets: Iterable[Value], known: dict[int, str]) -> None:
        self.writer = writer
        self.known = known
        self.loads: dict[int, tuple[str, str, str]] = {}
        """Of operands that are read for each element: name, C++ type and expression."""
        self.columns: dict[int, tuple[str, str, str]] = {}
        self.statements: list[str] = []
        self.names: dict[int, str] = {}
        for value in targets:
            self._need(value)

    def name(self, value: Value) -> str:
        """Return the name of a value that is computed."""
        return self.known.get(id(value)) or self.names[id(value)]

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
        level = writer._level(value)
        if level == "uniform":
            self.names[id(value)] = writer._uniform(value, value.dtype)
            return
        name, ctype = writer._number_of(value), DTYPES[value.dtype]
        expression = f"{writer._array(value)}[{writer._index(value)}]"
        if level == "column":
            self.columns[id(value)] = name, ctype, expression
        else:
            self.loads[id(value)] = f"x_{name}", ctype, expression
        self.names[id(value)] = name

    def _compute(self, value: Value) -> None:
        writer = self.writer
        name, ctype = writer._number_of(value), DTYPES[value.dtype]
        if value.kind == "zeros":
            text = f"{ctype}(0)"
        elif value.kind == "dot":
            text = self._dot(value)
        elif value.kind == "outer":
            text = self._outer(value)
        else:
            dtype = writer._dtype_of(value)
            text = writer._expression(value, lambda x: self._operand(x, dtype))
        self.statements.append(f"const {ctype} {name} = {text};")
        self.names[id(value)] = name

    def _operand(self, operand: Any, dtype: Any) -> str:
        if _is_array(operand):
            return self.name(operand)
        return self.writer._uniform(operand, dtype)

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
        array = self.writer._array(operand)
        if self.writer._is_transposed(operand):
            return f"{array}[{column} * {rows}u + {row}]"
        return f"{array}[{row} * {columns}u + {column}]"

    def column_lines(self) -> list[str]:
        """List the statements that read what is the same in all rows."""
        return [f"const {ctype} {name} = {expression};" for name, ctype, expression in self.columns.values()]

    def lines(self) -> list[str]:
        """List the statements for one element."""
        return [
            *self.column_lines(),
            *(f"const {ctype} {name[2:]} = {text};" for name, ctype, text in self.loads.values()),
            *self.statements,
        ]

    def unrolled(
        self, position: str, index: str, condition: str, ends: list[str], element: str = ""
    ) -> list[str]:
        """List the statements for `UNROLLED` elements: all are read before the first is computed."""
        setup = [f"const Index {index} = {position};"] + ([f"const Index e = {element};"] if element else [])
        return [
            *(f"{ctype} {name}[UNROLLED];" for name, ctype, _ in self.loads.values()),
            "#pragma unroll",
            "for (Index u = 0; u < UNROLLED; ++u) {",
            *(f"  {line}" for line in setup),
            f"  if ({condition}) {{",
            *(f"    {name}[u] = {text};" for name, _, text in self.loads.values()),
            "  }",
            "}",
            "#pragma unroll",
            "for (Index u = 0; u < UNROLLED; ++u) {",
            *(f"  {line}" for line in setup),
            f"  if ({condition}) {{",
            *(f"    const {ctype} {name[2:]} = {name}[u];" for name, ctype, _ in self.loads.values()),
            *(f"    {line}" for line in (*self.statements, *ends)),
            "  }",
            "}",
        ]
