"""C++ functions of segments (`mlp_xp._compiler.kernels`): what one thread does for its elements.

There are three forms, for three kinds of work:

- *flat*: elementwise, of arrays of one shape; an element has an index only.
- *columns*: a block of threads takes a strip of neighbouring columns and some of their rows. For operands
  that are a row or a column, transposed matrices, and reductions over columns or of all elements.
- *rows*: a warp takes a row, and combines its elements before it goes on with what depends on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from mlp_xp._compiler.elements import Argument, Body, SegmentWriter
from mlp_xp._compiler.graph import NotRecordableError, Value
from mlp_xp._compiler.kernels import COLUMN, TOTAL
from mlp_xp._compiler.languages import CXX, OPERATIONS
from mlp_xp._compiler.source import indented

_indented = partial(indented, by="  ")

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


@dataclass
class Call:
    """A call of a segment's function in a kernel: its domain, grid and arguments.

    Attributes
    ----------
    sizes : list of int
        What the function takes after its block's number and its shared memory.
    n_blocks : int
    arguments : list of Argument
    types : list of str
        The arguments' types in C++.
    n_parts : dict of int to int
        Length of the memory for a reduction's parts, by the reduction's id.
    n_counters : int
    """

    function: str
    sizes: list[int]
    n_blocks: int
    arguments: list[Argument]
    types: list[str]
    n_parts: dict[int, int]
    n_counters: int


class CudaSegmentWriter(SegmentWriter):
    """Writes the function of one segment, and adds it to `functions`: names by parameters and body."""

    language = CXX

    def write(self, threads: int) -> Call:
        """Return the call of the segment's function, in blocks of so many threads."""
        rows, columns = self.domain
        if max(rows * columns * UNROLLED, rows * LANES) >= 2**31:
            raise NotRecordableError("an array of more elements than kernels can index")
        write = {"rows": self._write_rows, "columns": self._write_columns, "flat": self._write_flat}
        lines, sizes, n_blocks = write[self.form](threads)
        n_counters, n_parts = 0, {}
        if self.combined_last():
            width = sizes[2] if len(sizes) > 2 else 1
            n_counters = 1 + -(-columns // width)
            for value in self.segment.reductions(COLUMN):
                n_parts[id(value)] = columns * sizes[3]
            for value in self.segment.reductions(TOTAL):
                n_parts[id(value)] = n_blocks
        arguments = list(self.arguments.values())
        names = [f"{self.ctype(argument)} a{index}" for index, argument in enumerate(arguments)]
        head = ["Index block", "void* shared", *self._size_names(len(sizes)), *names]
        body = "\n".join(_indented([*self.uniform_lines, *lines]))
        text = f"({', '.join(head)}) {{\n{body}\n}}"
        types = [self.ctype(argument) for argument in arguments]
        return Call(self.add_function(text), sizes, n_blocks, arguments, types, n_parts, n_counters)

    def ctype(self, argument: Argument) -> str:
        """Return the C++ type of an argument."""
        if argument.value is None:
            return "unsigned int*"
        dtype = argument.value.dtype
        ctype = CXX.dtypes[self.plan.traced.state[0].dtype if dtype is None else dtype]
        return {"output": f"{ctype}*", "parts": f"volatile {ctype}*"}.get(argument.kind, f"const {ctype}*")

    def _size_names(self, count: int) -> list[str]:
        return [f"const Index {name}" for name in ("r", "c", "width", "chunks", "height")[:count]]

    def _write_flat(self, threads: int) -> tuple[list[str], list[int], int]:
        rows, columns = self.domain
        body = self.body()
        lines = [
            "const Index first = block * (THREADS * UNROLLED) + threadIdx.x, n = r * c;",
            *self._unrolled(body, self.ends(body), "first + u * THREADS", "e", "e < n"),
        ]
        return lines, [rows, columns], max(1, -(-rows * columns // (threads * UNROLLED)))

    def _write_columns(self, threads: int) -> tuple[list[str], list[int], int]:
        sums, totals = self.segment.reductions(COLUMN), self.segment.reductions(TOTAL)
        body = self.body()
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
        elements = self._unrolled(body, self.ends(body), "first + u * step", "i", "i < end", "i * c + j")
        lines = [
            "const Index strips = (c + width - 1) / width, strip = block % strips, chunk = block / strips;",
            "const Index j = strip * width + threadIdx.x % width, step = THREADS / width;",
            *(self.start(value) for value in (*sums, *totals)),
            "if (j < c) {",
            *_indented(body.define(body.columns.values())),
            "  const Index end = (chunk + 1) * height < r ? (chunk + 1) * height : r;",
            "  for (Index first = chunk * height + threadIdx.x / width; first < end;"
            " first += step * UNROLLED) {",
            *_indented(_indented(elements)),
            "  }",
            "}",
            *self._column_ends(sums),
            *self._total_ends(totals, "strips * chunks"),
        ]
        return lines, [rows, columns, width, chunks, per_chunk], strips * chunks

    def start(self, value: Value) -> str:
        """Return the statement that begins a reduction."""
        return f"{CXX.dtypes[value.dtype]} {self.accumulator(value)} = {self.neutral(value)};"

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
            name, ctype = self.accumulator(value), CXX.dtypes[value.dtype]
            operation = OPERATIONS[value.function]
            parts, out = self.argument("parts", value), self.output(value)
            combine = f"{name} = of_block<{operation}>(shared, {name}, {ending.width});"
            lines += [
                combine,
                f"{ending.write} {{",
                f"  if ({ending.n_blocks} > 1) {parts}[{ending.part}] = {name};",
                f"  else {out}[{ending.out}] = {name};",
                "}",
            ]
            ends += [
                f"  {name} = {self.neutral(value)};",
                f"  if ({ending.condition})",
                f"    for (Index part = threadIdx.x / {ending.width}; part < {ending.n_blocks};"
                f" part += THREADS / {ending.width})",
                f"      {name} = {operation}()({name}, {ctype}({parts}[{ending.each}]));",
                f"  {combine}",
                f"  {ending.write} {out}[{ending.out}] = {name};",
            ]
        counter = self.argument("counters", None) + ending.counter
        is_last = f"{ending.n_blocks} > 1 && is_last_of({ending.n_blocks}, {counter})"
        return [*lines, f"if ({is_last}) {{", *ends, "}"]

    def _write_rows(self, threads: int) -> tuple[list[str], list[int], int]:
        rows, columns = self.domain
        totals = self.segment.reductions(TOTAL)
        lines = [
            "const Index i = (block * THREADS + threadIdx.x) / LANES, lane = threadIdx.x % LANES;",
            *map(self.start, totals),
            "if (i < r) {",
            *_indented(self.row_body(totals)),
            "}",
            *self._total_ends(totals, "(r * LANES + THREADS - 1) / THREADS"),
        ]
        return lines, [rows, columns], -(-rows * min(LANES, threads) // threads)

    def _unrolled(
        self, body: Body, ends: list[str], first: str, index: str, condition: str, element: str = ""
    ) -> list[str]:
        """List the statements for `UNROLLED` elements: all are read before the first is computed."""
        setup = [f"const Index {index} = {first};"] + ([f"const Index e = {element};"] if element else [])
        loads = [*(body.columns if index == "j" else body.rows).values(), *body.loads.values()]
        read = [f"x_{load.name}[u] = {load.text};" for load in loads]
        compute = [
            *body.define(load._replace(text=f"x_{load.name}[u]") for load in loads),
            *body.statements,
            *ends,
        ]
        lines = [f"{CXX.dtypes[load.dtype]} x_{load.name}[UNROLLED];" for load in loads]
        for each in (read, compute):
            guarded = [*setup, f"if ({condition}) {{", *_indented(each), "}"]
            lines += ["#pragma unroll", "for (Index u = 0; u < UNROLLED; ++u) {", *_indented(guarded), "}"]
        return lines

    def row_loop(self, body: Body, ends: list[str]) -> list[str]:
        """Return a loop of a row's lanes that runs a body and, at the end, other statements."""
        elements = self._unrolled(body, ends, "first + u * LANES", "j", "j < c", "i * c + j")
        head = "for (Index first = lane; first < c; first += LANES * UNROLLED) {"
        return [*body.define(body.rows.values()), head, *_indented(elements), "}"]

    def end_row(self, value: Value) -> list[str]:
        """List the statements that combine what the lanes of a row have."""
        name = self.accumulator(value)
        return [f"{name} = of_row<{OPERATIONS[value.function]}>({name});"]

    def once_a_row(self, lines: list[str]) -> list[str]:
        """Return statements that one lane of a row runs."""
        return ["if (lane == 0) {", *_indented(lines), "}"]


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
