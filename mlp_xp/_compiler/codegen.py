"""Code generation: the schedule as straight-line source, one NumPy call into existing memory per value."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlp_xp._compiler.accumulate import scipy_blas_functions
from mlp_xp._compiler.fused_loops import RegionWriter
from mlp_xp._compiler.graph import KINDS_WITHOUT_CALL, Value
from mlp_xp._compiler.memory import Location, MemoryPlan, state_location
from mlp_xp._compiler.program import BlockedArray, Program
from mlp_xp._compiler.regions import Region
from mlp_xp._compiler.schedule import Schedule
from mlp_xp._compiler.source import (
    SourceBuilder,
    is_extremum,
    product_function,
    scalar_dtype,
)
from mlp_xp._compiler.trace import TracedFunction

MIN_ELEMENTS_FOR_FILLED_ARRAYS = 2**10
"""Minimum size from which a number is passed as a filled array, not as a 0-d one. Measured with NumPy 2.4 on
2 cores: `np.maximum` of 1,024 elements takes half as long with an array of zeros as with a 0-d zero, and the
BLAS's product with a vector of ones sums 1,024 elements in a third of the time of `np.add.reduce`."""


def generate_program(traced: TracedFunction, schedule: Schedule, plan: MemoryPlan) -> Program:
    """Generate the source of a scheduled function, and compile it to a program."""
    writer = _StepWriter(traced, schedule, plan)
    writer.write()
    builder = writer.builder
    return Program(
        builder.source(writer.blocks, writer.loops),
        builder.functions,
        plan.pool_nbytes,
        builder.arrays,
        plan.ones_rows,
        builder.scalars,
        builder.filled,
        writer.blocks,
    )


class _StepWriter:
    """Writes the lines of a step, value by value."""

    def __init__(self, traced: TracedFunction, schedule: Schedule, plan: MemoryPlan) -> None:
        self.traced = traced
        self.schedule = schedule
        self.plan = plan
        self.builder = SourceBuilder(traced, plan, schedule.index_of)
        self.loops: list[str] = []
        """The lines of the regions' functions."""
        self.blocks: dict[str, tuple[tuple[int, int], list[BlockedArray]]] = {}
        self.written_scalars: set[int] = set()

    def write(self) -> None:
        """Write all lines into the builder."""
        written_regions: set[int] = set()
        for index, value in enumerate(self.schedule.values):
            region = self.plan.region_of.get(id(value))
            if region is None:
                self._write(value)
            elif region not in written_regions:
                written_regions.add(region)
                self._hoist_scalars(self.plan.regions[region], index)
                self._write_region(region)
        for target, value in self.schedule.copies:
            location = state_location(self.traced, target, value)
            name = f"state{target}" if target >= 0 else f"group{location.buffer[1]}"
            self.builder.name_array(name, location)
            self._add(f"copyto({name}, {self.builder.array(value)})")
        results = "".join(f"{self._result(result)}, " for result in self.traced.results)
        self._add(f"return ({results})")

    def _add(self, line: str) -> None:
        self.builder.body.append(line)

    def _result(self, result: Any) -> str:
        if isinstance(result, Value) and result.shape != ():
            return self.builder.array(result)
        return self.builder.number(result)

    def _write(self, value: Value) -> None:
        if value.kind in KINDS_WITHOUT_CALL:
            return
        if value.kind == "concatenation":
            for operand, location in self.plan.copied_operands.get(id(value), []):
                name = self.builder.name_array(f"part{len(self.builder.arrays)}", location)
                self._add(f"copyto({name}, {self.builder.array(operand)})")
        elif value.shape == ():
            self._write_scalar(value)
        elif value.kind == "map":
            operands = [self._map_operand(value, operand) for operand in value.operands]
            self.builder.body += self.builder.map_lines(value, operands, self.builder.array(value))
        else:
            line_of_kind = {
                "zeros": self._zeros_line,
                "reduce": self._reduce_line,
                "matmul": self._matmul_line,
                "accumulate": self._accumulate_line,
                "affine": self._affine_line,
                "affine_gradient": self._affine_gradient_line,
            }
            self._add(line_of_kind[value.kind](value))

    def _write_scalar(self, value: Value) -> None:
        if id(value) not in self.written_scalars:
            self.written_scalars.add(id(value))
            self._add(f"{self.builder.number(value)} = {self.builder.scalar_expression(value)}")

    def _map_operand(self, value: Value, operand: Any) -> str:
        if isinstance(operand, Value) and operand.shape != ():
            return self.builder.array(operand)
        is_large = value.size >= MIN_ELEMENTS_FOR_FILLED_ARRAYS
        if not isinstance(operand, Value) and is_extremum(value) and is_large:
            return self.builder.filled_array(operand, self.plan.locations[id(value)])
        return self.builder.zero_dim(operand, scalar_dtype(value))

    def _zeros_line(self, value: Value) -> str:
        return f"copyto({self.builder.array(value)}, 0)"

    def _reduce_line(self, value: Value) -> str:
        axis, keepdims = value.detail
        operand = value.operands[0]
        name, out = self.builder.array(operand), self.builder.array(value)
        sums_rows = value.function is np.add and value.detail == (0, False) and len(operand.shape) == 2
        if sums_rows and operand.size >= MIN_ELEMENTS_FOR_FILLED_ARRAYS:
            ones = self.builder.filled_array(1, Location(("none", 0), 0, operand.shape[:1], operand.dtype))
            return f"dot({ones}, {name}, {out})"
        return f"{self.builder.reduction(value.function)}({name}, {axis}, None, {out}, {keepdims})"

    def _matmul_line(self, value: Value) -> str:
        return self._product(value, *map(self._with_transpose, value.operands))

    def _accumulate_line(self, value: Value) -> str:
        before, a, b, *coefficients = value.operands
        self.builder.functions |= scipy_blas_functions()
        out, (beta, alpha) = self.builder.array(value), map(self.builder.number, coefficients)
        if self.plan.locations[id(value)] != self.plan.locations[id(before)]:
            self._add(f"copyto({out}, {self.builder.array(before)})")
        return f"gemm({beta}, {out}, {alpha}, {self.builder.array(a)}, {self.builder.array(b)})"

    def _affine_line(self, value: Value) -> str:
        inputs, weight, _ = value.operands
        return self._product(value, self._with_ones(inputs), self._with_extra_row(weight))

    def _affine_gradient_line(self, value: Value) -> str:
        inputs, delta = value.operands
        with_ones, transpose = self._with_ones(inputs)
        return self._product(value, (transpose, with_ones), self._with_transpose(delta))

    def _with_transpose(self, value: Value) -> tuple[str, str]:
        """Return the names of a value's array and of its transpose."""
        return self.builder.array(value), self.builder.transposed(value)

    def _with_ones(self, inputs: Value) -> tuple[str, str]:
        """Return the names of a layer's inputs with the column of ones, and of the transpose."""
        if inputs.kind == "input":
            self.builder.add_to_prologue("input0_T = input0.T")
            return "input0", "input0_T"
        return self._with_extra_row(inputs)

    def _with_extra_row(self, value: Value) -> tuple[str, str]:
        """Return the names of an array with the row stored after it, bias or ones, and of the transpose."""
        location = self.plan.locations[id(value)]
        rows, columns = location.shape
        location = location._replace(shape=(rows + 1, columns))
        name = f"v{self.builder.index_of[id(value)]}_and_row"
        return self.builder.name_array(name, location), self.builder.name_array(
            f"{name}_T", location.transpose
        )

    def _product(self, value: Value, a: tuple[str, str], b: tuple[str, str]) -> str:
        # Inputs with a column of ones are the engine's own array.
        function = product_function(value.arrays if value.kind == "matmul" else ())
        location = self.plan.locations[id(value)]
        if location.transposed:
            # The transpose of a product is the product of the transposes, and contiguous here.
            out = self.builder.name_array(f"v{self.builder.index_of[id(value)]}_T", location.transpose)
            return f"{function}({b[1]}, {a[1]}, {out})"
        return f"{function}({a[0]}, {b[0]}, {self.builder.array(value)})"

    def _hoist_scalars(self, region: Region, start: int) -> None:
        """Write the scalars scheduled inside a region before its loop: they do not depend on its values."""
        last = self.builder.index_of[id(region.values[-1])]
        for value in self.schedule.values[start:last]:
            if value.shape == () and value.kind not in KINDS_WITHOUT_CALL:
                self._write_scalar(value)

    def _write_region(self, index: int) -> None:
        loop = RegionWriter(self.builder, self.plan.regions[index])
        self.loops += loop.write(f"region{index}")
        self.blocks[f"blocks{index}"] = (loop.shape, list(loop.arrays.values()))
        self._add(f"region{index}(blocks{index})")
