"""Streams as the estimators take them: iterables of batches (X, y), or of tables with a column of targets."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from mlp_xp._arrays import type_name
from mlp_xp._streams import RawBatch, RawStream, as_batch, is_stream
from mlp_xp.estimators._interface import Estimator


def takes_stream(X: Any, y: Any) -> bool:
    """Whether a fit with these arguments takes batch after batch."""
    return (y is None or isinstance(y, str)) and is_stream(X)


def open_stream(estimator: Estimator, X: Any, y: Any, sample_weight: Any) -> RawStream | None:
    """Return the stream that `X` is, after a check of the parameters; None if it is an array or a table.

    The first batch is read.
    """
    by_column = isinstance(y, str)
    if not takes_stream(X, y):
        if by_column:
            raise TypeError(
                f"`y` must be labels or values, got {y!r}: it may be a column's name where `X` is an "
                f"iterable of tables, got `X` {type_name(X)}"
            )
        return None
    estimator._check_parameters()
    if estimator.solver == "lbfgs":
        raise ValueError("`solver` must be 'sgd' or 'adam' where `X` is a stream of batches, got 'lbfgs'")
    if by_column and isinstance(sample_weight, (str, type(None))):
        split = partial(_split_table, names=[y] if sample_weight is None else [y, sample_weight])
        return RawStream(X, estimator.max_iter, "max_iter", split)
    if sample_weight is not None:
        what = "the name of a column" if by_column else "in the batches (X, y, sample_weight)"
        raise TypeError(f"`sample_weight` must be {what} where `X` is a stream")
    return RawStream(X, estimator.max_iter, "max_iter", _as_batch)


def _as_batch(batch: Any) -> RawBatch:
    if hasattr(batch, "columns"):
        raise TypeError(
            f"it must be a tuple (X, y) or (X, y, sample_weight), got {type_name(batch)}: the "
            "argument `y` may be the name of the column of targets"
        )
    return as_batch(batch)


def _split_table(table: Any, names: list[str]) -> RawBatch:
    """Divide a table of polars, pandas or pyarrow into features, targets and weights."""
    if not hasattr(table, "columns"):
        raise TypeError(f"it must be a table with the column {names[0]!r}, got {type_name(table)}")
    if type_name(table) == "pyarrow.lib.RecordBatch":  # scikit-learn knows the columns' names of tables only
        table = sys.modules["pyarrow"].Table.from_batches([table])
    is_arrow = hasattr(table, "column_names")
    columns = list(table.column_names if is_arrow else table.columns)
    for name in names:
        if columns.count(name) != 1:
            raise ValueError(f"it must have one column {name!r}, got the columns {columns}")
    rest = [name for name in columns if name not in names]
    if is_arrow:
        return RawBatch(table.select(rest), *(table.column(name).to_numpy() for name in names))
    return RawBatch(table[rest], *(table[name] for name in names))
