"""Matrix products that segments compute (`mlp_xp._compiler.kernels`), without a call of a library.

A library's product takes a launch or two, and its operands and result are in memory. So small products, and
those with a vector, are rewritten as what segments compute:

- A product of one column is sums over the rows of its left factor. That of the output layer may have a few
  columns: it is split into them, and what follows element by element is computed of those, as numbers of a
  row: bias, softmax, loss, and the product with the same weights on the way back. All of it is one segment
  with the left factor. (If more products were split, the source of networks of many small layers would take
  seconds to compile.)
- A product with a column on the right of a transposed matrix is sums over the columns of that.
- A product of a column and a row is elementwise, and so is ("dot") one of few terms.
- Of other products of few elements the terms are elementwise ("outer"), and summed up.
"""

from __future__ import annotations

from itertools import accumulate, repeat
from typing import Any

import numpy as np

from mlp_xp._compiler.graph import SOURCE_KINDS, VIEW_KINDS, Value, reachable
from mlp_xp._compiler.kernels import is_number, matrix_shape
from mlp_xp._compiler.trace import TracedFunction

MAX_TERMS = 16
MAX_TERMS_OF_LARGE = 2
"""Number of terms of an element up to which a product is computed as "dot"; of a product of more than
`MAX_ELEMENTS_WITH_TERMS` elements only few, as each thread reads all."""

MAX_ELEMENTS_WITH_TERMS = 2**16

MAX_COLUMNS = 16
"""Number of columns up to which a product is split into them: each is a register of all threads."""

MAX_SPLIT_VALUES = 256
"""Number of columns of all matrices of that shape up to which the product is split: each is a statement of
the source, and as many as that take NVIDIA's compiler half a second."""

MAX_TERMS_OF_A_ROW = 512
MIN_ROWS_OF_MANY_TERMS = 2**11
"""Number of terms up to which a warp sums a row, if there are not rows enough to fill a GPU with warps: it
reads 128 at a time, which takes about half a microsecond, and a library's launches some five."""

MAX_ROWS_OF_FEW_TERMS = 2**14
"""Number of rows up to which warps sum rows of fewer terms than half their threads."""

MAX_ELEMENTS_TO_SUM = 2**12
MAX_TERMS_TO_SUM = 2**19
"""Number of elements, and of terms of all of them, up to which a product is computed as "outer": a library's
kernels compute so small results with a small part of a GPU."""


def move_products_into_segments(traced: TracedFunction) -> None:
    """Rewrite the products of a graph that segments compute, in place."""
    _Rewriter(traced).rewrite()


class _Rewriter:
    """Rewrites values in place, operands first.

    A matrix that is split becomes a "join" of its columns: where it is used as a whole, it is in memory.
    """

    def __init__(self, traced: TracedFunction) -> None:
        self.traced = traced
        self.graph = traced.graph
        self.columns: dict[int, list[Value]] = {}
        """The columns, of shape (n, 1), of the matrices that are split."""
        self.widths: dict[int, int] = {}
        """For each of those, the number of columns of its segment's domain: the terms of a sum over a row."""
        self.of_output_layer: Value | None = None
        """The last product with weights that the loss depends on, unless too much depends on it."""

    def rewrite(self) -> None:
        """Rewrite all values that the graph's results depend on."""
        values = reachable(self.traced.roots)
        self.of_output_layer = self._output_layer(values)
        for value in values:
            if value.kind == "matmul":
                self._rewrite_product(value)
            elif value.kind == "map" and len(value.shape) == 2:
                self._split_map(value)
            elif value.kind == "reduce" and id(value.operands[0]) in self.columns:
                self._rewrite_reduction(value)

    # Products

    def _output_layer(self, values: list[Value]) -> Value | None:
        with_weights = [
            value
            for value in reachable(self.traced.computed_results[:1])
            if value.kind == "matmul" and value.operands[1].kind in SOURCE_KINDS
        ]
        if not with_weights:
            return None
        last = with_weights[-1]
        n_alike = sum(value.kind == "map" and value.shape == last.shape for value in values)
        return last if n_alike * last.shape[-1] <= MAX_SPLIT_VALUES else None

    def _rewrite_product(self, value: Value) -> None:
        left, right = value.operands
        n_terms = left.shape[-1]
        if value.shape == ():
            terms = self.graph.map(np.multiply, (left, right))
            _become(value, "reduce", np.add, (terms,), (None, False))
        elif n_terms == 1:
            _become(value, "map", np.multiply, (left, right))
        elif self.widths.get(id(left)) == value.shape[1] and _is_given(right):
            _become(value, "map", np.add, self._terms_of_columns(left, right))
        elif left.kind == "transpose" and value.shape[1] == 1:
            terms = self.graph.map(np.multiply, (left.operands[0], right))
            self._become_reshaped(value, self.graph.reduce(np.add, terms, 0, keepdims=False))
        elif self._is_summed_by_rows(value):
            self._split_product(value)
        elif n_terms <= (MAX_TERMS if value.size <= MAX_ELEMENTS_WITH_TERMS else MAX_TERMS_OF_LARGE):
            value.kind = "dot"
        elif value.size <= MAX_ELEMENTS_TO_SUM and value.size * n_terms <= MAX_TERMS_TO_SUM:
            terms = self.graph.add("outer", (n_terms, value.size), value.dtype, operands=value.operands)
            self._become_reshaped(value, self.graph.reduce(np.add, terms, 0, keepdims=False))

    def _is_summed_by_rows(self, value: Value) -> bool:
        left, right = value.operands
        (n_rows, n_terms), n_columns = left.shape, value.shape[1]
        most = MAX_COLUMNS if n_rows * n_terms <= MAX_ELEMENTS_WITH_TERMS else MAX_TERMS_OF_LARGE
        if n_columns > (most if value is self.of_output_layer else 1):
            return False
        if left.kind == "transpose" or not _is_given(right):
            return False
        if n_terms <= MAX_TERMS and (n_rows > MAX_ROWS_OF_FEW_TERMS or left.base.kind in SOURCE_KINDS):
            return False  # "dot" reads as much
        return bool(n_terms <= MAX_TERMS_OF_A_ROW or n_rows >= MIN_ROWS_OF_MANY_TERMS)

    def _split_product(self, value: Value) -> None:
        left, right = value.operands
        columns = []
        for number in range(value.shape[1]):
            terms = self.graph.map(np.multiply, (left, self._column_as_row(right, number)))
            columns.append(self.graph.reduce(np.add, terms, 1, keepdims=True))
        if len(columns) == 1:
            _become(value, "reduce", np.add, columns[0].operands, columns[0].detail)
        else:
            self._become_joined(value, columns, left.shape[1])

    def _terms_of_columns(self, left: Value, right: Value) -> tuple[Value, Value]:
        """Return two values whose sum is the product: all but the last of its terms, and that one."""
        products = [
            self.graph.map(np.multiply, (column, self._row(right, number)))
            for number, column in enumerate(self.columns[id(left)])
        ]
        *first, last = products
        *_, sum_of_first = accumulate(first, lambda a, b: self.graph.map(np.add, (a, b)))
        return sum_of_first, last

    def _row(self, matrix: Value, number: int) -> Value:
        """Return a row of a matrix in memory, of shape (1, n)."""
        if matrix.kind == "transpose":
            return self._column_as_row(matrix.operands[0], number)
        n = matrix.shape[1]
        return self._strided(matrix, (1, n), number * n, 1)

    def _column_as_row(self, matrix: Value, number: int) -> Value:
        """Return a column of a matrix in memory, as a row, of shape (1, n)."""
        if matrix.kind == "transpose":
            return self._row(matrix.operands[0], number)
        n, n_columns = matrix.shape
        return self._strided(matrix, (1, n), number, n_columns)

    def _strided(self, matrix: Value, shape: tuple[int, int], offset: int, stride: int) -> Value:
        return self.graph.add("strided", shape, matrix.dtype, operands=(matrix,), detail=(offset, stride))

    # What follows products that are split

    def _split_map(self, value: Value) -> None:
        widths = {
            self.widths[id(x)] for x in value.arrays if id(x) in self.columns and x.shape == value.shape
        }
        if widths and not any(_is_matrix(x) and x.kind in VIEW_KINDS for x in value.operands):
            columns = [
                self.graph.add("map", (value.shape[0], 1), value.dtype, value.function, operands)
                for operands in zip(*map(self._columns_of, value.operands, repeat(value.shape[1])))
            ]
            self._become_joined(value, columns, widths.pop())

    def _columns_of(self, operand: Any, count: int) -> list[Any]:
        """Return the columns of an operand, of shape (n, 1) or (1, 1); for one that has none itself."""
        if not _is_matrix(operand):
            return [operand] * count
        if id(operand) in self.columns:
            return self.columns[id(operand)]
        n_rows, n_columns = matrix_shape(operand.shape)
        return [self._strided(operand, (n_rows, 1), number, n_columns) for number in range(n_columns)]

    def _rewrite_reduction(self, value: Value) -> None:
        axis, keepdims = value.detail
        columns = self.columns[id(value.operands[0])]
        if axis == 0:
            return  # of the matrix in memory
        *_, before_last = accumulate(columns[:-1], lambda a, b: self.graph.map(value.function, (a, b)))
        if axis == 1 and keepdims:
            _become(value, "map", value.function, (before_last, columns[-1]))
            return
        combined = self.graph.map(value.function, (before_last, columns[-1]))
        if axis is None:
            value.operands = (combined,)
        else:
            self._become_reshaped(value, combined)

    def _become_joined(self, value: Value, columns: list[Value], width: int) -> None:
        _become(value, "join", None, tuple(columns))
        self.columns[id(value)], self.widths[id(value)] = columns, width

    def _become_reshaped(self, value: Value, other: Value) -> None:
        _become(value, "reshape", None, (other,))


def _become(value: Value, kind: str, function: Any, operands: tuple[Any, ...], detail: Any = None) -> None:
    """Change what a value is computed by; its shape and dtype stay."""
    value.kind, value.function, value.operands, value.detail = kind, function, operands, detail


def _is_matrix(operand: Any) -> bool:
    """Whether an operand is an array of several columns."""
    is_array = isinstance(operand, Value) and not is_number(operand) and operand.shape != ()
    return is_array and matrix_shape(operand.shape)[1] > 1


def _is_given(matrix: Value) -> bool:
    """Whether a matrix is one of the state or the inputs, or the transpose of one."""
    return (matrix.operands[0] if matrix.kind == "transpose" else matrix).kind in SOURCE_KINDS
