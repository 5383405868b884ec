"""The program: straight lines of NumPy calls, each writing into an array that is there already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp._arrays import HostArray, row_slices
from mlp_xp._compiler.accumulate import accumulate, calls
from mlp_xp._compiler.graph import OPERATORS, NotRecordableError, Value, weak
from mlp_xp._compiler.memory import BLOCK_BYTES, Memory, Region, Spec, plan_memory
from mlp_xp._compiler.passes import Record, optimised
from mlp_xp._compiler.schedule import SOURCES, VIEWS, base, schedule

Blocks: TypeAlias = "list[tuple[HostArray, ...]]"
"""Of each array of a region the part in each block."""

LONG = 2**10
"""Elements above which an extremum with a number is faster with an array of that number."""


class Column(NamedTuple):
    """One array of a region: how it comes by blocks.

    Attributes
    ----------
    kind : str
        "array": rows of it. "vector": an element for each row. "row": one that is the same for all rows.
        "sums": an element for each row, to be written. "local": room for a block. "constant": a block of
        one number.
    what : Spec, number or None
    dtype : dtype
    """

    kind: str
    what: Any
    dtype: Any

    @property
    def part(self) -> str:
        """Which part of it a block has: its rows, as many of the first rows, or all."""
        return {"local": "local", "constant": "local", "row": "same"}.get(self.kind, "rows")


@dataclass
class Program:
    """A function ready to be given memory: the code, and what arrays its names stand for."""

    code: CodeType
    source: str
    functions: dict[str, Any]
    pool: list[int]
    ones: list[Spec]
    arrays: dict[str, tuple[Spec, bool]]
    """Each name's array, and whether it is seen transposed."""
    numbers: dict[str, tuple[Any, Any]]
    """Each name's value and dtype."""
    fillings: dict[str, tuple[Any, Spec]]
    blocks: dict[str, tuple[tuple[int, int], list[Column]]]
    """Rows and columns of the array in memory, and the arrays of each region."""

    def bind(self, groups: Sequence[HostArray], pool: Sequence[HostArray]) -> Any:
        """Return the function at work on these owned arrays, and with these buffers.

        Parameters
        ----------
        groups : sequence of array of shape (n,)
        pool : sequence of array of bytes, at least as long as `self.pool` says
        """
        memory = {("group", i): group for i, group in enumerate(groups)}
        memory |= {("pool", i): buffer for i, buffer in enumerate(pool)}
        names: dict[str, Any] = {
            name: np.full((), value, dtype=dtype) for name, (value, dtype) in self.numbers.items()
        }
        for name, (spec, transposed) in self.arrays.items():
            array = _array(spec, memory)
            names[name] = array.T if transposed else array
        for name, (value, spec) in self.fillings.items():
            array = np.full(spec.shape, value, dtype=spec.dtype)
            names[name] = array.T if spec.flipped else array
        for spec in self.ones:
            _array(spec, memory)[...] = 1
        for name, (shape, columns) in self.blocks.items():
            names[name] = _blocks(shape, columns, memory)
        written: dict[str, Any] = {}
        exec(self.code, written)
        return written["make"](**names, **self.functions)


def _array(spec: Spec, memory: dict[tuple[str, int], HostArray]) -> HostArray:
    flat = memory[spec.buffer]
    size = math.prod(spec.shape)
    if spec.buffer[0] == "pool":
        flat = flat[: (spec.start + size) * spec.dtype.itemsize].view(spec.dtype)
    array = flat[spec.start : spec.start + size].reshape(spec.shape)
    return array.T if spec.flipped else array


def _blocks(
    shape: tuple[int, int], columns: list[Column], memory: dict[tuple[str, int], HostArray]
) -> Blocks:
    n_rows, width = shape
    itemsize = max(column.dtype.itemsize for column in columns)
    step = min(n_rows, max(1, BLOCK_BYTES // (width * itemsize)))
    whole = [_column(column, shape, step, memory) for column in columns]
    blocks: Blocks = []
    for rows in row_slices(n_rows, step):
        part = {"local": slice(0, rows.stop - rows.start), "same": slice(None)}
        blocks.append(tuple(array[part.get(column.part, rows)] for column, array in zip(columns, whole)))
    return blocks


def _column(
    column: Column, shape: tuple[int, int], step: int, memory: dict[tuple[str, int], HostArray]
) -> HostArray:
    """Return an array whose rows are those of the array that a region goes through."""
    if column.kind == "local":
        return np.empty((step, shape[1]), dtype=column.dtype)
    if column.kind == "constant":
        return np.full((step, shape[1]), column.what, dtype=column.dtype)
    of_kind = {"array": shape, "vector": (shape[0], 1), "row": (1, shape[1]), "sums": shape[:1]}
    return _array(column.what._replace(shape=of_kind[column.kind], flipped=False), memory)


FUNCTIONS = {"copyto": np.copyto, "where": np.where, "dot": np.dot, "matmul": np.matmul}


def compiled(record: Record, n_given: int, n_numbers: int) -> Program:
    """Write the program of a record."""
    accumulate(record)
    optimised(record)
    plan = schedule(record)
    arguments = [*(f"g{i}" for i in range(n_given)), *(f"h{i}" for i in range(n_numbers))]
    return _Writer(record, arguments, plan.values, plan.copies, plan_memory(record, plan)).program()


@dataclass
class _Writer:
    record: Record
    arguments: list[str]
    values: list[Value]
    copies: list[tuple[int, Value]]
    memory: Memory
    head: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    regions: list[str] = field(default_factory=list)
    arrays: dict[str, tuple[Spec, bool]] = field(default_factory=dict)
    numbers: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    fillings: dict[str, tuple[Any, Spec]] = field(default_factory=dict)
    blocks: dict[str, tuple[tuple[int, int], list[Column]]] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=lambda: dict(FUNCTIONS))
    written: set[int] = field(default_factory=set)
    """Numbers that there is a line for."""

    def program(self) -> Program:
        self.number = {id(value): index for index, value in enumerate(self.values)}
        self.slots: dict[tuple[int, Any], str] = {}
        done: set[int] = set()
        for index, value in enumerate(self.values):
            region = self.memory.region_of.get(id(value))
            if region is None:
                self._write(value)
            elif region not in done:
                done.add(region)
                self._numbers_before(self.memory.regions[region], index)
                self._write_region(region)
        for target, value in self.copies:
            group, start = self.record.layout.place[target] if target >= 0 else (-1 - target, 0)
            name = f"home{target}" if target >= 0 else f"homes{-target}"
            self.arrays[name] = (Spec(("group", group), start, value.shape, value.dtype), False)
            self.lines.append(f"copyto({name}, {self._array(value)})")
        results = "".join(f"{self._result(result)}, " for result in self.record.results)
        body = [*self.head, *self.lines, f"return ({results})"]
        names = [*self.arrays, *self.numbers, *self.fillings, *self.blocks, *self.functions]
        # Arrays are in cells, not among the globals: these and the functions would keep each other alive.
        lines = [*self.regions, f"def step({', '.join(self.arguments)}):", *(f"    {line}" for line in body)]
        source = "\n".join(
            [f"def make({', '.join(names)}):", *(f"    {line}" for line in lines), "    return step", ""]
        )
        return Program(
            compile(source, "<step>", "exec"),
            source,
            self.functions,
            self.memory.pool,
            self.memory.ones,
            self.arrays,
            self.numbers,
            self.fillings,
            self.blocks,
        )

    # Names.

    def _result(self, result: Any) -> str:
        if isinstance(result, Value) and result.shape != ():
            return self._array(result)
        return self._number(result)

    def _function(self, function: Any) -> str:
        name = str(function.__name__)
        self.functions[name] = function
        return name

    def _array(self, value: Value) -> str:
        """Return the name of a value's array."""
        if value.kind == "transpose":
            return self._transposed(value.operands[0])
        if value.kind == "reshape" and id(value) not in self.memory.specs:
            whole = value.operands[0]
            if whole.kind != "given":
                raise NotRecordableError("another shape of something computed")
            name = f"g{whole.detail}r{self.number[id(value)]}"
            self._say_first(f"{name} = g{whole.detail}.reshape({value.shape})")
            return name
        if value.kind == "given":
            if value.detail == 0 and self.record.widened:
                self._say_first("g0x = g0[:, :-1]")
                return "g0x"
            return f"g{value.detail}"
        name = f"v{self.number[id(value)]}"
        if id(value) not in self.memory.specs:
            raise NotRecordableError(f"a {value.kind} without a place")
        self.arrays[name] = (self.memory.specs[id(value)], False)
        return name

    def _transposed(self, value: Value) -> str:
        if value.kind == "transpose":
            return self._array(value.operands[0])
        if value.kind in ("given", "reshape"):
            plain = self._array(value)
            self._say_first(f"{plain}t = {plain}.T")
            return f"{plain}t"
        name = f"v{self.number[id(value)]}t"
        self.arrays[name] = (self.memory.specs[id(value)], True)
        return name

    def _say_first(self, line: str) -> None:
        if line not in self.head:
            self.head.append(line)

    def _number(self, operand: Any) -> str:
        """Return an expression for a number."""
        if not isinstance(operand, Value):
            if isinstance(operand, float) and not math.isfinite(operand):
                return f"float('{operand}')"
            return repr(operand)
        if operand.kind == "host":
            return f"h{operand.detail}"
        return f"s{self.number[id(operand)]}"

    def _zero_dim(self, operand: Any, dtype: Any) -> str:
        """Return the name of an array of shape () with a number, which ufuncs take sooner than the number."""
        if not isinstance(operand, Value):
            name = f"c{len(self.numbers)}"
            for known, (value, of_dtype) in self.numbers.items():
                if known[0] == "c" and type(value) is type(operand) and (value, of_dtype) == (operand, dtype):
                    return known
            self.numbers[name] = (operand, dtype)
            return name
        dtype = dtype if operand.dtype is None else operand.dtype
        key = id(operand), dtype
        if key not in self.slots:
            name = self.slots[key] = f"z{len(self.slots)}"
            self.numbers[name] = (0, dtype)
            line = f"{name}[...] = {self._number(operand)}"
            (self.head if operand.kind == "host" else self.lines).append(line)
        return self.slots[key]

    # Lines.

    def _write(self, value: Value) -> None:
        if value.kind in (*SOURCES, *VIEWS):
            return
        if value.kind == "joint":
            for member, spec in self.memory.copied.get(id(value), []):
                name = f"beside{len(self.arrays)}"
                self.arrays[name] = (spec, False)
                self.lines.append(f"copyto({name}, {self._array(member)})")
        elif value.shape == ():
            self._write_number(value)
        elif value.kind == "map":
            operands = [self._map_operand(value, operand) for operand in value.operands]
            self.lines += self._map_lines(value, operands, self._array(value))
        else:
            self.lines.append(getattr(self, f"_{value.kind}_line")(value))

    def _write_number(self, value: Value) -> None:
        if id(value) not in self.written:
            self.written.add(id(value))
            self.lines.append(f"s{self.number[id(value)]} = {self._expression(value)}")

    def _expression(self, value: Value) -> str:
        if value.kind == "reduce":
            return f"{self._reduction(value.function)}({self._array(value.operands[0])}, None)"
        if value.kind == "matmul":
            return f"dot({', '.join(map(self._array, value.operands))})"
        operands = [self._number(operand) for operand in value.operands]
        if value.function in OPERATORS:
            return OPERATORS[value.function].format(*operands)
        return f"{self._function(value.function)}({', '.join(operands)})"

    def _map_operand(self, value: Value, operand: Any) -> str:
        if isinstance(operand, Value) and operand.shape != ():
            return self._array(operand)
        if not isinstance(operand, Value) and _is_extremum(value) and value.size >= LONG:
            name = f"f{len(self.fillings)}"
            spec = self.memory.specs[id(value)]
            self.fillings[name] = (operand, spec)
            return name
        return self._zero_dim(operand, _working_dtype(value))

    def _map_lines(self, value: Value, operands: list[str], out: str) -> list[str]:
        if value.function is not np.where:
            call = self._function(value.function)
            # NumPy wants the third argument of these by its name.
            last = f"out={out}" if _is_extremum(value) else out
            return [f"{call}({', '.join(operands)}, {last})"]
        condition, x, y = value.operands
        full = isinstance(x, Value) and condition.shape == x.shape == value.shape
        if full and not isinstance(y, Value) and y == 0:
            # The same for finite x, and four times as fast.
            return [f"{self._function(np.multiply)}({operands[1]}, {operands[0]}, {out})"]
        return [f"copyto({out}, where({', '.join(operands)}))"]

    def _reduction(self, function: Any) -> str:
        name = f"{function.__name__}_reduce"
        self.functions[name] = function.reduce
        return name

    def _zeros_line(self, value: Value) -> str:
        return f"copyto({self._array(value)}, 0)"

    def _reduce_line(self, value: Value) -> str:
        axis, keepdims = value.detail
        of = value.operands[0]
        operand = self._array(of)
        if value.function is np.add and value.detail == (0, False) and of.size >= LONG and len(of.shape) == 2:
            # The BLAS sums on all its threads.
            name = f"f{len(self.fillings)}"
            self.fillings[name] = (1, Spec(("none", 0), 0, of.shape[:1], of.dtype))
            return f"dot({name}, {operand}, {self._array(value)})"
        return f"{self._reduction(value.function)}({operand}, {axis}, None, {self._array(value)}, {keepdims})"

    def _matmul_line(self, value: Value) -> str:
        a, b = value.operands
        return self._product(
            value, (self._array(a), self._transposed(a)), (self._array(b), self._transposed(b))
        )

    def _accumulate_line(self, value: Value) -> str:
        before, a, b, *numbers = value.operands
        self.functions |= calls()
        out, (beta, alpha) = self._array(value), map(self._number, numbers)
        if self.memory.specs[id(value)] != self.memory.specs[id(before)]:
            self.lines.append(f"copyto({out}, {self._array(before)})")
        return f"accumulated({beta}, {out}, {alpha}, {self._array(a)}, {self._array(b)})"

    def _affine_line(self, value: Value) -> str:
        inputs, weight, _ = value.operands
        spec = self.memory.specs[id(weight)]
        rows, columns = spec.shape
        return self._product(
            value, self._widened(inputs), self._matrix(weight, spec._replace(shape=(rows + 1, columns)))
        )

    def _affine_gradient_line(self, value: Value) -> str:
        inputs, delta = value.operands
        wide, wide_t = self._widened(inputs)
        return self._product(value, (wide_t, wide), (self._array(delta), self._transposed(delta)))

    def _widened(self, inputs: Value) -> tuple[str, str]:
        if inputs.kind == "given":
            self._say_first("g0t = g0.T")
            return "g0", "g0t"
        spec = self.memory.specs[id(inputs)]
        columns, rows = spec.shape
        return self._matrix(inputs, spec._replace(shape=(columns + 1, rows)))

    def _matrix(self, value: Value, spec: Spec) -> tuple[str, str]:
        """Return the names of an array that is a value with a row more, and of its transpose."""
        name = f"w{self.number[id(value)]}"
        self.arrays[name], self.arrays[f"{name}t"] = (spec, False), (spec, True)
        return name, f"{name}t"

    def _product(self, value: Value, a: tuple[str, str], b: tuple[str, str]) -> str:
        # By `dot`, which hands to the BLAS what `matmul` does itself: vectors, a column times a row. But it
        # copies what is not contiguous, as arrays of the user's may be.
        strange = any(base(operand).kind == "given" for operand in value.arrays) and value.kind == "matmul"
        function = "matmul" if strange else "dot"
        spec = self.memory.specs[id(value)]
        if spec.flipped:
            # The product's transpose is the product of the transposes, and contiguous.
            name = f"v{self.number[id(value)]}t"
            self.arrays[name] = (spec, True)
            return f"{function}({b[1]}, {a[1]}, {name})"
        return f"{function}({a[0]}, {b[0]}, {self._array(value)})"

    # Regions.

    def _numbers_before(self, region: Region, start: int) -> None:
        """Compute the numbers that the schedule has among a region's values: they do not depend on these."""
        last = self.number[id(region.values[-1])]
        for value in self.values[start:last]:
            if value.shape == () and value.kind not in VIEWS and value.kind != "host":
                self._write_number(value)

    def _write_region(self, index: int) -> None:
        region = self.memory.regions[index]
        writer = _RegionWriter(self, region)
        names, lines, columns = writer.write()
        through = region.values[0]
        through = through.operands[0] if through.kind == "reduce" else through
        shape = _memory_shape(through, region, writer.flipped)
        self.blocks[f"blocks{index}"] = (shape, columns)
        self.regions += [
            f"def region{index}(blocks):",
            f"    for {', '.join(names)}, in blocks:",
            *(f"        {line}" for line in lines),
            "",
        ]
        self.lines.append(f"region{index}(blocks{index})")


class _RegionWriter:
    """Writes the loop over the blocks of a region."""

    def __init__(self, writer: _Writer, region: Region) -> None:
        self.writer = writer
        self.region = region
        self.flipped = _is_flipped(writer.memory, region)
        self.columns: list[Column] = []
        self.names: dict[Any, str] = {}
        self.free: dict[int, list[str]] = {}

    def write(self) -> tuple[list[str], list[str], list[Column]]:
        lines = []
        last = {id(operand): value for value in self.region.values for operand in value.arrays}
        for value in self.region.values:
            operands = [self._operand(value, operand) for operand in value.operands]
            done = {
                id(operand): operand
                for operand in value.arrays
                if id(operand) in self.region.local and last[id(operand)] is value
            }
            for operand in done.values():
                name = self.names[id(operand)]
                if self.columns[int(name[1:])].kind == "local":
                    self.free.setdefault(operand.dtype.itemsize, []).append(name)
            out = self._out(value)
            if value.kind == "reduce":
                lines.append(f"{self.writer._reduction(value.function)}({operands[0]}, 1, None, {out})")
            else:
                lines += self.writer._map_lines(value, operands, out)
        return [f"b{index}" for index in range(len(self.columns))], lines, self.columns

    def _new(self, key: Any, column: Column) -> str:
        if key not in self.names:
            self.names[key] = f"b{len(self.columns)}"
            self.columns.append(column)
        return self.names[key]

    def _operand(self, value: Value, operand: Any) -> str:
        if not isinstance(operand, Value):
            if _is_extremum(value):
                dtype = _working_dtype(value)
                return self._new((operand, str(dtype)), Column("constant", operand, dtype))
            return self.writer._zero_dim(operand, _working_dtype(value))
        if operand.shape == ():
            return self.writer._zero_dim(operand, _working_dtype(value))
        if id(operand) in self.region.local:
            return self.names[id(operand)]
        seen = operand.operands[0] if operand.kind == "transpose" else operand
        spec = self.writer.memory.specs[id(seen)]
        through = value.operands[0] if value.kind == "reduce" else value
        kind = "array"
        if operand.shape != through.shape:
            # An element for each row in memory, or for each column.
            of_a_sample = operand.shape == (through.shape[0], 1)
            kind = "vector" if of_a_sample != self.flipped else "row"
        return self._new(id(operand), Column(kind, spec, operand.dtype))

    def _out(self, value: Value) -> str:
        if id(value) not in self.region.local:
            spec = self.writer.memory.specs[id(value)]
            return self._new(id(value), Column("array" if value.kind == "map" else "sums", spec, value.dtype))
        overwritten = self._overwritten(value)
        if overwritten is not None:
            self.names[id(value)] = self.names[id(overwritten)]
            return self.names[id(value)]
        rooms = self.free.get(value.dtype.itemsize, [])
        for name in rooms:
            if self.columns[int(name[1:])].dtype == value.dtype:
                rooms.remove(name)
                self.names[id(value)] = name
                return name
        return self._new(id(value), Column("local", None, value.dtype))

    def _overwritten(self, value: Value) -> Value | None:
        """Return an operand that nobody reads any more, in memory that is free while the value is needed."""
        specs, last, number = self.writer.memory.specs, self.writer.memory.last, self.writer.number
        for operand in value.arrays:
            if (
                operand.kind in ("map", "matmul", "affine")
                and (operand.shape, operand.dtype) == (value.shape, value.dtype)
                and id(operand) in specs
                and specs[id(operand)].buffer[0] == "pool"
                and last[id(operand)] == number[id(value)]
                and not any(
                    number[id(value)] < number[id(other)] < last[id(value)]
                    for other in self.region.values
                    if id(other) in specs and specs[id(other)].buffer == specs[id(operand)].buffer
                )
            ):
                return operand
        return None


def _is_extremum(value: Value) -> bool:
    return value.function in (np.maximum, np.minimum)


def _working_dtype(value: Value) -> Any:
    """Return the dtype that a number has where it meets arrays."""
    if value.function is np.where:
        return value.dtype
    kinds = [
        operand.dtype if isinstance(operand, Value) and operand.dtype is not None else weak(operand)
        for operand in value.operands
    ]
    dtypes = value.function.resolve_dtypes((*kinds, None))
    return next((dtype for dtype, kind in zip(dtypes, kinds) if isinstance(kind, type)), value.dtype)


def _memory_shape(value: Value, region: Region, flipped: bool) -> tuple[int, int]:
    """Return the shape of what a region goes through, row by row as it lies in memory."""
    uneven = any(
        operand.shape not in ((), other.shape)
        for other in region.values
        for operand in other.arrays
        if other.kind == "map"
    ) or any(other.kind == "reduce" for other in region.values)
    if not uneven:
        return value.size, 1
    rows, columns = value.shape
    return (columns, rows) if flipped else (rows, columns)


def _is_flipped(memory: Memory, region: Region) -> bool:
    """Whether a region goes through arrays that are stored transposed."""
    first = region.values[0]
    shape = first.operands[0].shape if first.kind == "reduce" else first.shape
    touched = [other for value in region.values for other in (value, *value.arrays) if other.shape == shape]
    return any(memory.specs[id(other)].flipped for other in touched if id(other) in memory.specs)
