"""What the modules of tables share: their error, columns without missing words, and names of columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

import polars as pl

from mlp_xp._validation import shown

AS_ASKED = "as asked"
"""The reason of what users chose themselves."""

IT_IS_EMPTY = "it is empty"
"""Why a column without values is not used."""

MAX_MESSAGE_CHARACTERS = 2000
"""Maximum length of an error's message."""


def printable(text: str) -> str:
    """Return a text with control characters replaced, so that names in a file cannot control a terminal."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class DataError(ValueError):
    """Raised for a table that cannot be used; the message is one line.

    Examples
    --------
    >>> from mlp_xp.tables import DataError, read_frame
    >>> try:
    ...     read_frame("nowhere.csv")
    ... except DataError as error:
    ...     print(error)
    nowhere.csv: no such file
    """

    def __init__(self, message: str) -> None:
        text = printable(" ".join(message.splitlines()))
        if len(text) > MAX_MESSAGE_CHARACTERS:  # a table's cells and names are of any length
            text = f"{text[: MAX_MESSAGE_CHARACTERS - 400]} ... {text[-400:]}"
        super().__init__(text)


class RawTable(NamedTuple):
    """A table as it is in a file: text, or typed where the file has types.

    Attributes
    ----------
    frame : polars.DataFrame
    separator : str or None
        What separates the cells of a text file.
    """

    frame: pl.DataFrame
    separator: str | None = None


def clean(column: pl.Series, missing: Iterable[str]) -> pl.Series:
    """Return a column with text stripped, and null for missing values: empty cells, NaN and some words."""
    column = plain_values(column)
    if column.dtype != pl.String:
        return column
    column = column.str.strip_chars()
    return column.set(column.is_in(["", *missing]), None)


def plain_values(column: pl.Series) -> pl.Series:
    """Return a column with categorical dtypes as text, decimals as floats, and NaN as null.

    Decimals and floats of less than 64 bits have the value that their text has, as in a text file.
    """
    if column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if column.dtype == pl.Decimal or (column.dtype.is_float() and column.dtype != pl.Float64):
        column = column.cast(pl.String).cast(pl.Float64)
    return column.fill_nan(None) if column.dtype.is_float() else column


def with_unique_names(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table with `unique_names`."""
    frame = frame.clone()
    frame.columns = unique_names(frame.columns)
    return frame


def unique_names(names: Iterable[str]) -> list[str]:
    """Return column names stripped, empty ones replaced; raise a DataError if two are equal."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(names)]  # as in pandas
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"two columns have the same name: {listed(repeated)}")
    return names


def check_frame(name: str, frame: Any) -> pl.DataFrame:
    """Return a table of polars; raise a TypeError if it is something else."""
    if not isinstance(frame, pl.DataFrame):
        what = type(frame).__name__ if hasattr(frame, "columns") else shown(frame)
        raise TypeError(f"`{name}` must be a polars DataFrame, got {what}")
    return frame


def listed(names: Iterable[object], limit: int = 12) -> str:
    """Return names joined by commas; if there are more than `limit`, the first ones and the count."""
    each = [str(name) for name in names]
    return ", ".join(each[:limit]) + (f", ... ({len(each)} in all)" if len(each) > limit else "")


def did_you_mean(names: Iterable[str], known: Iterable[str]) -> str:
    """Return a question for the end of a message, if known names are like unknown ones; else ""."""
    lower = {name.lower(): name for name in known}
    found = (get_close_matches(name.lower(), lower, 1) for name in islice(names, 5))
    close = [lower[match] for matches in found for match in matches]
    return f" (did you mean {', '.join(close)}?)" if close else ""
