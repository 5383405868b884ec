"""How a BLAS that counts column by column sees arrays: which product it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Factor(NamedTuple):
    """A matrix as the BLAS is told of it.

    Attributes
    ----------
    transposed : bool
        Whether the BLAS, which reads columns, finds the rows of the transpose of what is asked for.
    leading : int
        Elements from one of these columns to the next.
    """

    transposed: bool
    leading: int


def factor(shape: Sequence[int], strides: Sequence[int]) -> Factor | None:
    """Describe a matrix as a factor of a product computed as ``C' = B' A'``.

    An array stored row by row is, read column by column, its own transpose. So the BLAS, asked for the
    transposed product, writes the rows of C, and needs to turn the factors that are *not* stored so.

    Parameters
    ----------
    shape : (int, int)
    strides : (int, int)
        In elements.

    Returns
    -------
    Factor, or None
        None for a matrix whose rows and columns both have gaps between elements: it must be copied.

    Examples
    --------
    >>> from mlp_xp._engines.gemm import factor
    >>> factor((3, 4), (4, 1)), factor((3, 4), (1, 3)), factor((3, 4), (8, 2))
    (Factor(transposed=False, leading=4), Factor(transposed=True, leading=3), None)
    """
    (n_rows, n_columns), (down, along) = shape, strides
    # The stride of an axis of one element says nothing.
    if (along == 1 or n_columns == 1) and (down >= n_columns or n_rows == 1):
        return Factor(False, max(down, n_columns) if n_rows > 1 else n_columns)
    if (down == 1 or n_rows == 1) and (along >= n_rows or n_columns == 1):
        return Factor(True, max(along, n_rows) if n_columns > 1 else n_rows)
    return None
