"""DataFrames of other libraries, as polars has them, so that a run reads them as the same rows in a file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import polars as pl

from mlp_xp._messages import first_line
from mlp_xp.tables._common import DataError, RawTable, unique_names, with_unique_names
from mlp_xp.tables._reading import from_numpy, read_table

DTYPES_OF_OBJECTS: dict[tuple[type, ...], Any] = {
    (bool, np.bool_): pl.Boolean,
    (dt.timedelta, np.timedelta64): pl.Duration("us"),  # before whole numbers: NumPy's spans are some
    (Integral,): pl.Int64,
    (float, np.floating, Decimal): pl.Float64,
    (str,): pl.String,
    (dt.datetime, np.datetime64): pl.Datetime("us"),
    (dt.date,): pl.Date,
    (dt.time,): pl.Time,
}
"""Types of polars by the Python types of the values in a column of objects."""


def as_table(table: Any, encoding: str | None = None) -> RawTable:
    """Return a polars or pandas DataFrame, a table of Arrow, or a file's table, with stripped names.

    Raises
    ------
    DataError
        If a column holds what no table has, or two have the same name.
    TypeError
        If it is none of these.
    """
    if isinstance(table, (str, Path)):
        return read_table(table, encoding)
    if isinstance(table, pl.DataFrame):
        frame = table
    elif hasattr(table, "iloc") and hasattr(table, "columns"):
        names = unique_names(str(name) for name in table.columns)
        frame = pl.DataFrame([_from_pandas(name, table.iloc[:, index]) for index, name in enumerate(names)])
    elif hasattr(table, "__arrow_c_stream__"):
        try:
            frame = pl.DataFrame(table)
        except pl.exceptions.PolarsError as error:
            raise DataError(first_line(error)) from error
        except (TypeError, ValueError) as error:  # a single column of pandas or polars
            raise TypeError(f"`table` must be a DataFrame, got {type(table).__name__}") from error
    else:
        raise TypeError(f"`table` must be a DataFrame or the path of a file, got {type(table).__name__}")
    return RawTable(with_unique_names(frame))


def _from_pandas(name: str, column: Any) -> pl.Series:
    """Return a column of pandas, of any of its many types, with null for all that it takes for missing."""
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert(None)  # in UTC
    dtype = getattr(column.dtype, "numpy_dtype", column.dtype)  # nullable numbers have the former
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        known = pl.Series(column.notna().to_numpy())
        filled = {} if dtype is column.dtype else {"dtype": dtype, "na_value": dtype.type(0)}
        return pl.Series(name, from_numpy(name, column.to_numpy(**filled))).set(~known, None)
    if isinstance(column.dtype, np.dtype) and dtype.kind == "M":
        return pl.Series(name, from_numpy(name, column.to_numpy()))
    objects = column.astype(object)
    return _from_objects(name, objects.where(column.notna(), None).to_list())


def _from_objects(name: str, values: list[Any]) -> pl.Series:
    """Return a column of Python objects: typed if all are of one kind, text if not, as in a file."""
    dtypes = {_dtype_for(kind) for kind in {*map(type, values)} - {NoneType}}
    if pl.Object in dtypes:
        return pl.Series(name, values, dtype=pl.Object)  # refused if the column is used
    if dtypes == {pl.Int64, pl.Float64}:
        dtypes = {pl.Float64}
    elif dtypes == {pl.Date, pl.Datetime("us")}:
        dtypes = {pl.Datetime("us")}
    dtype = dtypes.pop() if len(dtypes) == 1 else pl.String if dtypes else pl.Null
    convert = CONVERSIONS.get(dtype, lambda value: value)
    try:
        return pl.Series(name, [None if value is None else convert(value) for value in values], dtype=dtype)
    except (OverflowError, TypeError):  # integers of more than 64 bits
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)


def _dtype_for(kind: type) -> Any:
    """Return the type of polars for a Python type, that of objects if there is none."""
    dtypes = (dtype for kinds, dtype in DTYPES_OF_OBJECTS.items() if issubclass(kind, kinds))
    return next(dtypes, pl.Object)


def _moment(value: Any) -> Any:
    """Return a date or a moment, in UTC where it has a zone."""
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        value = value.astimezone(dt.UTC).replace(tzinfo=None)
    return np.datetime64(value, "us").item()


CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    pl.Boolean: bool,
    pl.Int64: int,
    pl.Float64: lambda value: float(str(value)),  # 0.1 of float32 is 0.1, as in a file
    pl.String: str,
    pl.Datetime("us"): _moment,
    pl.Duration("us"): lambda value: np.timedelta64(value, "us").item(),
}
"""Functions from Python values to those that a type of polars takes."""
