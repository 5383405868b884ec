"""Code generation for fused regions: a function with the loop over the blocks."""

from __future__ import annotations

from typing import Any

from mlp_xp._compiler.graph import Value
from mlp_xp._compiler.liveness import can_be_overwritten
from mlp_xp._compiler.program import BlockedArray
from mlp_xp._compiler.regions import Region
from mlp_xp._compiler.source import SourceBuilder, is_extremum, scalar_dtype


class RegionWriter:
    """Writes the loop of one region.

    Attributes
    ----------
    arrays : dict of str to BlockedArray
        By the names of their blocks in the loop's body.
    shape : tuple of int
        The rows and columns that the loop iterates over, as they lie in memory.
    """

    def __init__(self, builder: SourceBuilder, region: Region) -> None:
        self.builder = builder
        self.region = region
        self.locations = builder.plan.locations
        self.arrays: dict[str, BlockedArray] = {}
        self.names: dict[Any, str] = {}
        self.free_blocks: dict[int, list[str]] = {}
        """Names of scratch blocks that are not in use, by the size of an element."""
        self.transposed = self._is_transposed()
        self.shape = self._memory_shape()

    def write(self, name: str) -> list[str]:
        """Return the lines of a function ``name(blocks)`` that computes the region."""
        lines = []
        last_user = {id(operand): value for value in self.region.values for operand in value.arrays}
        for value in self.region.values:
            operands = [self._operand(value, operand) for operand in value.operands]
            # Blocks that are read here last are free before the result is placed: it may overwrite them.
            for operand in {id(operand): operand for operand in value.arrays}.values():
                if id(operand) in self.region.local and last_user[id(operand)] is value:
                    block = self.names[id(operand)]
                    if self.arrays[block].kind == "local":
                        self.free_blocks.setdefault(operand.dtype.itemsize, []).append(block)
            out = self._output_block(value)
            if value.kind == "reduce":
                lines.append(f"{self.builder.reduction(value.function)}({operands[0]}, 1, None, {out})")
            else:
                lines += self.builder.map_lines(value, operands, out)
        return [
            f"def {name}(blocks):",
            f"    for {', '.join(self.arrays)}, in blocks:",
            *(f"        {line}" for line in lines),
            "",
        ]

    def _is_transposed(self) -> bool:
        """Whether the region's arrays are stored transposed."""
        shape = self.region.loop_operand.shape
        arrays = [
            array
            for value in self.region.values
            for array in (value, *value.arrays)
            if array.shape == shape and id(array) in self.locations
        ]
        return any(self.locations[id(array)].transposed for array in arrays)

    def _memory_shape(self) -> tuple[int, int]:
        values, loop_operand = self.region.values, self.region.loop_operand
        broadcasts = any(
            operand.shape not in ((), value.shape)
            for value in values
            if value.kind == "map"
            for operand in value.arrays
        )
        if not broadcasts and all(value.kind == "map" for value in values):
            # Rows do not matter, so that blocks may end anywhere.
            return loop_operand.size, 1
        rows, columns = loop_operand.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def _block_of(self, key: Any, array: BlockedArray) -> str:
        """Return the name of an array's block; the array is added to the loop's if it is new."""
        if key not in self.names:
            self.names[key] = f"block{len(self.arrays)}"
            self.arrays[self.names[key]] = array
        return self.names[key]

    def _operand(self, value: Value, operand: Any) -> str:
        """Return the name of an operand's block, or of its array of shape ()."""
        if not isinstance(operand, Value) and is_extremum(value):
            dtype = scalar_dtype(value)
            return self._block_of((operand, str(dtype)), BlockedArray("constant", operand, dtype))
        if not isinstance(operand, Value) or operand.shape == ():
            return self.builder.zero_dim(operand, scalar_dtype(value))
        if id(operand) in self.region.local:
            return self.names[id(operand)]
        stored = operand.operands[0] if operand.kind == "transpose" else operand
        loop_operand = value.operands[0] if value.kind == "reduce" else value
        kind = "matrix"
        if operand.shape != loop_operand.shape:
            # One element per row of the array; if that is stored transposed, one per column of memory.
            is_column = operand.shape == (loop_operand.shape[0], 1)
            kind = "column" if is_column != self.transposed else "row"
        return self._block_of(id(operand), BlockedArray(kind, self.locations[id(stored)], operand.dtype))

    def _output_block(self, value: Value) -> str:
        """Return the name of the block that a value is written to."""
        if id(value) not in self.region.local:
            kind = "matrix" if value.kind == "map" else "sums"
            return self._block_of(id(value), BlockedArray(kind, self.locations[id(value)], value.dtype))
        overwritten = self._overwritable_operand(value)
        if overwritten is not None:
            self.names[id(value)] = self.names[id(overwritten)]
            return self.names[id(value)]
        free = self.free_blocks.get(value.dtype.itemsize, [])
        for name in free:
            if self.arrays[name].dtype == value.dtype:
                free.remove(name)
                self.names[id(value)] = name
                return name
        return self._block_of(id(value), BlockedArray("local", None, value.dtype))

    def _overwritable_operand(self, value: Value) -> Value | None:
        """Return an operand read here last, in a buffer not reassigned during the live range of `value`."""
        locations, index_of = self.locations, self.builder.index_of
        last_read, index = self.builder.plan.last_read, index_of[id(value)]
        for operand in value.arrays:
            if (
                id(operand) in locations
                and locations[id(operand)].buffer[0] == "pool"
                and can_be_overwritten(operand, value, index, last_read)
                and not any(
                    index < index_of[id(other)] < last_read[id(value)]
                    for other in self.region.values
                    if id(other) in locations and locations[id(other)].buffer == locations[id(operand)].buffer
                )
            ):
                return operand
        return None
