"""Tables of users, read and written by polars."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._messages import first_line
from mlp_xp.datasets import Dataset
from mlp_xp.files._folders import replacing

_Function = TypeVar("_Function")

MISSING = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "None", "NaN", "nan", "?"]
"""What stands for a missing value in text, as pandas has it, and the question mark of old data sets."""

GROUPED = {
    ".": r"^[+-]?[0-9]{1,3}(~[0-9]{3})+(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
    # One point alone is a decimal point: many files with semicolons have those.
    ",": r"^[+-]?([0-9]{1,3}(~[0-9]{3})+|[0-9]+),[0-9]+([eE][+-]?[0-9]+)?$"
    r"|^[+-]?[0-9]{1,3}((\.[0-9]{3}){2,}|([^0-9.][0-9]{3})+)$",
}
"""Numbers in groups of three digits, or with a decimal comma, by the decimal mark; ~ is between groups."""

NOT_UTF8 = 'it is not text in UTF-8: spreadsheets save that as "CSV UTF-8"'


def printable(text: str) -> str:
    """Return a text without what would steer a terminal, as a file's names of columns may."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class DataError(ValueError):
    """Data that cannot be used; the message is one line that says why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


def read_frame(path: str | Path) -> pl.DataFrame:
    r"""Read a table from a file.

    Parameters
    ----------
    path : str or Path
        ``.csv`` with a header, separated by commas, semicolons, tabs or bars, or ``.tsv``, both also
        ``.gz``; ``.parquet``; ``.arrow``, ``.feather`` or ``.ipc``; or ``.npz`` with an array ``X`` of shape
        (n_samples, n_features), whose columns are called x0, x1, ..., and others of shape (n_samples,).

    Returns
    -------
    polars.DataFrame
        Text without spaces around it; numbers where all of a column spells numbers (`spelt_numbers`);
        null where a value is missing: an empty cell, NaN, or one of `MISSING`. A column without a name is
        called "Unnamed: " and its place.

    Raises
    ------
    DataError
        If the file cannot be read as what its name says.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from mlp_xp.tables import read_frame
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "fruit.csv"
    ...     _ = path.write_text("mass;kind\n150,5;apple\nNA;lemon\n")
    ...     read_frame(path).rows()
    [(150.5, 'apple'), (None, 'lemon')]
    """
    path = Path(path)
    kind, read = _by_name(path, READERS)
    try:
        with path.open("rb") as file:
            frame, decimal = read(file)
        frame.columns = _names(frame.columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except MemoryError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # damage shows in many libraries
        what = f"not a readable {kind} file ({first_line(error)})"
        folder = isinstance(error, IsADirectoryError | PermissionError) and path.is_dir()
        raise DataError(f"{path}: {'a folder, not a file' if folder else what}") from error
    return frame.select(_cleaned(column, decimal) for column in frame.iter_columns())


def _by_name(path: Path, table: Mapping[str, _Function]) -> tuple[str, _Function]:
    """Return the entry for the end of a file's name."""
    for end, entry in table.items():
        if path.name.lower().endswith(end) and len(path.name) > len(end):
            return end, entry
    raise DataError(f"{path}: a table must be a {listed(table)} file, got {path.suffix or 'no suffix'!r}")


def _names(names: Iterable[str]) -> list[str]:
    """Return the names without spaces around them, all different, none empty."""
    names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(names)]  # as pandas has it
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"two columns have one name: {listed(twice)}")
    return names


def _read_csv(file: BinaryIO, separators: str = ",;\t|") -> tuple[pl.DataFrame, str]:
    """Return what is in the cells, and which mark stands before decimals."""
    header, end = _first_record(file)
    bare = re.sub('"[^"]*"', "", header)
    separator = max(separators, key=bare.count)
    names = next(csv.reader(io.StringIO(header, newline=""), delimiter=separator), [])
    numbers = [name for name in names if _is_number(name)]
    if names and (len(numbers) == len(names) or not all(name.strip().isdigit() for name in numbers)):
        raise DataError(f"the first line must name the columns, got {listed(names)}")
    try:
        read = partial(
            pl.read_csv,
            file,
            null_values=MISSING,
            separator=separator,
            eol_char=end,
        )
        # Looking for dates in all text takes fifteen times as long as all else.
        sample = read(n_rows=1000, infer_schema_length=1000, try_parse_dates=True, ignore_errors=True)
        file.seek(0)
        dated = any(dtype.is_temporal() for dtype in sample.dtypes)
        frame = read(infer_schema_length=None, try_parse_dates=dated)
    except pl.exceptions.PolarsError as error:
        raise DataError(_trouble(file, separator, error)) from error
    frame.columns = _names(names)
    frame = frame.drop(
        name for name, given in zip(frame.columns, names) if not given.strip() and not frame[name].count()
    )
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
    frame = frame.head(filled[-1] + 1 if len(filled) else 0)  # spreadsheets leave empty rows at the end
    return frame, "," if separator == ";" else "."  # where semicolons are needed, commas are in the numbers


def _unzipped(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file


def _first_record(file: BinaryIO) -> tuple[str, str]:
    """Return the names' line, which may have line breaks in quotes, and what the lines end with."""
    sample = _unzipped(file).read(1 << 20)
    file.seek(0)
    if b"\0" in sample:  # as in UTF-16, and pictures
        raise DataError(NOT_UTF8)
    end = "\n" if b"\n" in sample else "\r"
    found = re.match(rb'(?:"[^"]*"|[^\r\n])*', sample.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"))
    try:
        return (found.group() if found else b"").decode(), end
    except UnicodeDecodeError as error:
        raise DataError(NOT_UTF8) from error


def _trouble(file: BinaryIO, separator: str, error: Exception) -> str:
    """Say what polars did not like."""
    if "utf-8" in str(error):
        return NOT_UTF8
    if "not properly escaped" in str(error) or "malformed" in str(error):
        return "not a readable CSV file (a quotation mark stands alone, or inside a cell)"
    if "more fields" in str(error):
        rows = csv.reader((line.decode() for line in _unzipped(file)), delimiter=separator)
        width = len(next((row for row in rows if row), []))
        for row in rows:
            if len(row) > width:
                return f"line {rows.line_num} has {len(row)} cells, but the first line names {width} columns"
    return f"not a readable CSV file ({first_line(error)})"


def _by_point(read: Callable[[BinaryIO], pl.DataFrame]) -> Callable[[BinaryIO], tuple[pl.DataFrame, str]]:
    """Say of a reader that numbers in its text have a decimal point."""
    return lambda file: (read(file), ".")


def _read_arrow(file: BinaryIO) -> pl.DataFrame:
    try:
        return pl.read_ipc(file)
    except pl.exceptions.PolarsError:
        file.seek(0)
        return pl.read_ipc_stream(file)  # the format's other form


def _read_npz(file: BinaryIO) -> pl.DataFrame:
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive}
    if "X" not in arrays:
        raise DataError(f"no array 'X'; the arrays are {listed(arrays)}")
    X = arrays.pop("X")
    if X.ndim != 2 or X.shape[1] == 0 or not np.isdtype(X.dtype, ("bool", "integral", "real floating")):
        raise DataError(f"X must be a table of numbers, got {X.dtype} of shape {X.shape}")
    columns = {f"x{index}": _from_numpy("X", column) for index, column in enumerate(X.T)}
    for name, array in arrays.items():
        if array.shape in (X.shape[:1], (X.shape[0], 1)):
            if name in columns:
                raise DataError(f"{name} must have another name: the columns of X are called x0, x1, ...")
            columns[name] = _from_numpy(name, array.ravel())
        elif name == "y":
            raise DataError(f"y must have shape {X.shape[:1]} as X has rows, got {array.shape}")
    return pl.DataFrame(columns)


def _from_numpy(name: str, array: HostArray) -> HostArray:
    """Return an array in a dtype, and a place in memory, that polars knows."""
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} must hold text in UTF-8 ({error})") from error
    if array.dtype.kind not in "biufUM":
        raise DataError(f"{name} must hold numbers or text, got {array.dtype}")
    dtype = {"f": "f8", "M": "M8[us]"}.get(array.dtype.kind, array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array, dtype=dtype)


READERS: dict[str, Callable[[BinaryIO], tuple[pl.DataFrame, str]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, separators="\t"),
    ".parquet": _by_point(pl.read_parquet),
    ".arrow": _by_point(_read_arrow),
    ".feather": _by_point(_read_arrow),
    ".ipc": _by_point(_read_arrow),
    ".npz": _by_point(_read_npz),
    ".csv.gz": _read_csv,
    ".tsv.gz": partial(_read_csv, separators="\t"),
}
"""How to read a table from an open file, by the end of its name."""


def write_frame(path: str | Path, frame: pl.DataFrame) -> None:
    """Write a table to a file, in the format its name says; all of it or nothing.

    Raises
    ------
    DataError
        If the name has none of the known ends, or the format cannot hold a column, or the disk is full.
    """
    path = Path(path)
    _, write = _by_name(path, WRITERS)
    try:
        with replacing(path) as file:
            write(frame, file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: it cannot be written ({first_line(error)})") from error


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Check, before any work, that a table can be written there.

    Raises
    ------
    DataError
        If the name has none of the known ends, or something is there that may not be replaced.
    """
    path = Path(path)
    _by_name(path, WRITERS)
    if path.is_dir() or not path.parent.is_dir():
        raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'there is no such folder'}")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: it exists already; --overwrite replaces it")


WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    ".csv": pl.DataFrame.write_csv,
    ".tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    ".parquet": pl.DataFrame.write_parquet,
    ".arrow": pl.DataFrame.write_ipc,
    ".feather": pl.DataFrame.write_ipc,
    ".ipc": pl.DataFrame.write_ipc,
}
"""How to write a table, by the end of its name."""


def as_frame(table: Any) -> pl.DataFrame:
    """Return a table of polars or pandas, or that of a file, as `read_frame` has it.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if isinstance(table, (str, Path)):
        return read_frame(table)
    if isinstance(table, pl.DataFrame):
        frame = table
    elif hasattr(table, "columns") and hasattr(table, "items"):
        columns = {str(name): column.to_list() for name, column in table.items()}
        frame = pl.DataFrame(columns, strict=False)
    else:
        raise TypeError(f"`table` must be a DataFrame or the path of a file, got {type(table).__name__}")
    return frame.select(_cleaned(column) for column in frame.iter_columns())


def frame_of(data: Dataset) -> pl.DataFrame:
    """Make a table of a data set: its features, and as the last column its target, classes by name."""
    target = data.y if data.class_names is None else np.array(data.class_names)[data.y]
    columns = {name: np.ascontiguousarray(column) for name, column in zip(data.feature_names, data.X.T)}
    return pl.DataFrame({**columns, data.target_name: target})


def _cleaned(column: pl.Series, decimal: str = ".") -> pl.Series:
    """Strip text, make numbers and truth values of what is nothing else, and null of what is missing."""
    coded, column = column.dtype in (pl.Categorical, pl.Enum), plain(column)
    if column.dtype != pl.String:
        return column
    column = column.str.strip_chars()
    column = column.set(column.is_in(MISSING), None)
    if coded or not column.count():
        return column
    if column.str.to_lowercase().is_in(["true", "false"]).all():
        return column.str.to_lowercase() == "true"
    digits = _digits(column, decimal)
    if digits.count() < column.count():
        return column
    whole = digits.cast(pl.Int64, strict=False)
    return whole if whole.count() == digits.count() else plain(digits.cast(pl.Float64))


def plain(column: pl.Series) -> pl.Series:
    """Return a column with coded text as text, decimals as floats, and NaN as null."""
    if column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if column.dtype == pl.Decimal:
        return column.cast(pl.Float64)
    return column.fill_nan(None) if column.dtype.is_float() else column


def spelt_numbers(column: pl.Series) -> pl.Series:
    """Return the numbers that cells of text spell, null where they spell none.

    Commas, spaces or apostrophes may stand before each three digits ("1,234.5"). A sign of percent or a
    currency may stand at all of them, if they share it.
    """
    return _digits(column).cast(pl.Float64)


def _digits(column: pl.Series, decimal: str = ".") -> pl.Series:
    """Rewrite numbers the way a computer does, each cell by itself: what it is must not depend on others."""
    signs = column.str.extract(r"([%\p{Sc}])")
    if signs.count() == column.count() and signs.drop_nulls().n_unique() == 1:
        column = column.str.replace(r"^([+-]?)\p{Sc}\s?", "${1}").str.replace(r"\s?[%\p{Sc}]$", "")
    marks = {".": "[, '\u2019\u00a0\u202f]", ",": "[. '\u2019\u00a0\u202f]"}[decimal]
    grouped = column.str.contains(GROUPED[decimal].replace("~", marks))
    rewritten = column.str.replace_all(marks, "").str.replace(",", ".", literal=True)
    column = column.zip_with(~grouped.fill_null(False), rewritten)
    return column.set(column.cast(pl.Float64, strict=False).is_null(), None)


def listed(names: Iterable[object], most: int = 12) -> str:
    """Name them, the first ones if they are many."""
    each = [str(name) for name in names]
    return ", ".join(each[:most]) + (f", ... ({len(each)} in all)" if len(each) > most else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
