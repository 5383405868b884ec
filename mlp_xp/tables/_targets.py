"""The target of a table: the task that its values imply, labels, and classes known again in another table."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._processes import shared
from mlp_xp.tables._common import AS_ASKED, DataError, listed, plain_values
from mlp_xp.tables._parts import all_values, map_columns, with_equal_types
from mlp_xp.tables._schema import find_names, names_of_categories

MAX_INTEGER_CLASSES = 10
"""Maximum number of distinct integers in a target of classes; with more it is a regression target.

A convention, not a measurement: ten digits are classes, grades from 0 to 20, ages and counts are not.
"""


class Target(NamedTuple):
    """Values of the target column, and the task they imply.

    Attributes
    ----------
    values : ndarray of shape (n_samples,)
        Labels (text, int64 or bool) for classification, float64 for regression. Of several processes each
        has those of its rows.
    task : {"classification", "regression"}
    reason : str
        Why it is that task, in words, for example "it is text".
    """

    values: HostArray
    task: str
    reason: str


def find_target(column: pl.Series, task: str = "auto") -> Target:
    """Return a target's values, and whether it asks for classification or regression.

    Parameters
    ----------
    column : polars.Series
        As `Schema.read_target` returns it, without missing values.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto" is classification for text, for truth values, and for whole numbers with at most
        `MAX_INTEGER_CLASSES` distinct values, at most half as many as there are rows. It is regression for
        other numbers.

    Raises
    ------
    DataError
        If the column does not fit the task, or holds one value in all rows.
    """
    column = with_equal_types(column.to_frame()).to_series()  # one part may have whole numbers only
    (found,) = map_columns(
        "the target", {column.name: column}, lambda _, whole: _find_target(whole, task)
    ).values()
    chosen, reason, dtype = found
    return Target(_values(column, dtype), chosen, reason)


def _find_target(column: pl.Series, task: str) -> tuple[str, str, Any]:
    """Return the task of a whole target, the reason, and the dtype of its values, after checks."""
    what = f"the target {column.name!r}"
    if len(column) < 2:
        raise DataError(f"at least 2 rows are needed, got {len(column)}")
    is_number, is_text = column.dtype.is_numeric(), column.dtype == pl.String
    if is_number and column.cast(pl.Float64).is_infinite().any():
        raise DataError(f"{what} holds infinite values, the first in row {_first_infinite(column)}")
    chosen, reason = _choose_task(column) if task == "auto" else (task, AS_ASKED)
    if chosen == "regression" and not is_number:
        wrong = column.filter(column.cast(pl.Float64, strict=False).is_null()) if is_text else column
        raise DataError(f"{what} must hold numbers for regression, got {[*wrong, *column][0]!r}")
    dtype = pl.Float64 if chosen == "regression" else _label_type(column)
    values = _values(column, dtype)
    if (values == values[0]).all():
        least = "different values" if chosen == "regression" else "at least two classes"
        raise DataError(f"{what} must have {least}, got only {column[0]}")
    return chosen, reason, dtype


def _first_infinite(column: pl.Series) -> int:
    return int(column.cast(pl.Float64).is_infinite().arg_true()[0]) + 1


def _choose_task(column: pl.Series) -> tuple[str, str]:
    """Return the task that a target column implies, and the reason in words."""
    if not column.dtype.is_numeric():
        return "classification", "it is text" if column.dtype == pl.String else "it is true or false"
    if not column.dtype.is_integer() and not (column == column.round()).all():
        return "regression", "it has fractions"
    n_different = column.n_unique()
    if n_different > min(MAX_INTEGER_CLASSES, max(2, len(column) // 2)):
        return "regression", f"it has {n_different} different numbers"
    return "classification", f"it has only {n_different} different numbers, all whole"


def _label_type(column: pl.Series) -> Any:
    """Return the type of class labels: truth values, integers, or text."""
    if column.dtype in (pl.Boolean, pl.String):
        return column.dtype
    if column.dtype.is_integer() or (column == column.round()).all():
        try:
            return column.cast(pl.Int64).dtype
        except pl.exceptions.PolarsError:
            pass  # a number does not fit in 64 bits
    return pl.String


def _values(column: pl.Series, dtype: Any) -> HostArray:
    """Return targets as an array: numbers, or labels of some type."""
    if dtype != pl.String:
        return column.cast(dtype).to_numpy()
    names = column if column.dtype == pl.String else names_of_categories(column, are_numbers=True)
    return names.to_numpy().astype(str)


def match_classes(column: pl.Series, classes: HostArray) -> HostArray:
    """Return a column's labels as elements of a model's `classes`; none may be missing.

    1, 1.0 and "1" are the same label. True equals "True", and 1 where the column or the classes are numbers.

    Raises
    ------
    DataError
        If a label is not one of the classes.
    """
    truths_are_numbers = classes.dtype.kind == "i" or plain_values(column).dtype.is_numeric()
    # Compared with numbers, True is written "1".
    known = classes.astype(np.int8) if truths_are_numbers and classes.dtype == np.bool else classes
    labels = column.cast(pl.Int8) if truths_are_numbers and column.dtype == pl.Boolean else column
    text = labels.cast(pl.String)
    different = text.unique().to_list()
    index_of = find_names(different, [str(name) for name in known.tolist()])
    unknown = sorted(set().union(*all_values("unknown classes", set(different) - index_of.keys())))
    if unknown:
        message = (
            f"the target {column.name!r} has classes the model does not know: {listed(unknown)}; "
            f"it knows {listed(classes.tolist())}"
        )
        raise shared(DataError(message))
    matched: HostArray = classes[np.array([index_of[label] for label in text.to_list()], dtype=np.int64)]
    return matched
