"""Operands of a column-major matrix product (gemm) that reads row-major arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class GemmOperand(NamedTuple):
    """The arguments of gemm that describe how a matrix is stored.

    Attributes
    ----------
    transposed : bool
        Whether gemm has to transpose the matrix that it reads, column by column.
    leading_dimension : int
        Distance between the columns that gemm reads, in elements.
    """

    transposed: bool
    leading_dimension: int


def gemm_operand(shape: Sequence[int], strides: Sequence[int]) -> GemmOperand | None:
    """Return how to pass a matrix to gemm as a factor of ``C' = B' A'``, the transpose of ``C = A B``.

    BLAS reads and writes column by column, and a row-major array read so is its own transpose. So the
    product ``B' A'`` writes a row-major C, from row-major factors as they are; column-major factors must be
    transposed.

    Parameters
    ----------
    shape : (int, int)
    strides : (int, int)
        In elements.

    Returns
    -------
    GemmOperand or None
        None if neither rows nor columns are contiguous, so that the matrix must be copied first.

    Examples
    --------
    >>> from mlp_xp._engines.gemm import gemm_operand
    >>> gemm_operand((3, 4), (4, 1)), gemm_operand((3, 4), (1, 3))
    (GemmOperand(transposed=False, leading_dimension=4), GemmOperand(transposed=True, leading_dimension=3))
    >>> gemm_operand((3, 4), (8, 2))
    """
    (n_rows, n_columns), (row_stride, column_stride) = shape, strides
    # The stride of an axis of length 1 may be any number, and must not be used.
    if (column_stride == 1 or n_columns == 1) and (row_stride >= n_columns or n_rows == 1):
        return GemmOperand(False, max(row_stride, n_columns) if n_rows > 1 else n_columns)
    if (row_stride == 1 or n_rows == 1) and (column_stride >= n_rows or n_columns == 1):
        return GemmOperand(True, max(column_stride, n_rows) if n_columns > 1 else n_rows)
    return None
