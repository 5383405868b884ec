"""Reading and writing tables: CSV, Parquet, Arrow and npz files, as polars DataFrames."""

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
from mlp_xp._validation import check_path, shown
from mlp_xp.datasets import Dataset
from mlp_xp.files._folders import atomic_write

_Function = TypeVar("_Function")

MISSING_MARKERS = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "None", "NaN", "nan", "?"]
"""Text that means a missing value: pandas' default markers, and the "?" of the UCI data sets."""

GROUPED_NUMBER_PATTERNS = {
    ".": r"^[+-]?[0-9]{1,3}(~[0-9]{3})+(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
    # A single point is a decimal point: many files with semicolons have decimal points.
    ",": r"^[+-]?([0-9]{1,3}(~[0-9]{3})+|[0-9]+),[0-9]+([eE][+-]?[0-9]+)?$"
    r"|^[+-]?[0-9]{1,3}((\.[0-9]{3}){2,}|([^0-9.][0-9]{3})+)$",
}
"""Regular expressions of numbers with thousands separators or a decimal comma, by the file's decimal mark.

``~`` stands for the class of separators between groups of three digits.
"""

N_ROWS_SEARCHED_FOR_DATES = 1000
"""Number of rows searched for dates, to decide whether polars parses dates in the whole file."""

NOT_UTF8 = 'it is not text in UTF-8: spreadsheets save that as "CSV UTF-8"'


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
        Text is stripped of surrounding spaces. A column in which all cells are numbers, also with thousands
        separators or a currency sign, is numeric. Missing values are null: empty cells, NaN, and markers
        such as NA or "?". A column without a name is called "Unnamed: " and its index.

    Raises
    ------
    DataError
        If the file cannot be read in the format of its suffix.

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
    path = check_path(path)
    kind, read = _entry_for_suffix(path, READERS)
    try:
        with path.open("rb") as file:
            frame, decimal = read(file)
        frame.columns = _unique_names(frame.columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except MemoryError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # a damaged file may raise in many libraries
        what = f"not a readable {kind} file ({first_line(error)})"
        folder = isinstance(error, IsADirectoryError | PermissionError) and path.is_dir()
        raise DataError(f"{path}: {'a folder, not a file' if folder else what}") from error
    return frame.select(_parse_text(column, decimal) for column in frame.iter_columns())


def _entry_for_suffix(path: Path, table: Mapping[str, _Function]) -> tuple[str, _Function]:
    """Return the suffix of a file's name, and its entry in a table by suffix."""
    for suffix, entry in table.items():
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return suffix, entry
    raise DataError(f"{path}: a table must be a {listed(table)} file, got {path.suffix or 'no suffix'!r}")


def _unique_names(names: Iterable[str]) -> list[str]:
    """Return column names stripped, empty ones replaced; raise a DataError if two are equal."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(names)]  # as in pandas
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"two columns have the same name: {listed(repeated)}")
    return names


def _read_csv(file: BinaryIO, separators: str = ",;\t|") -> tuple[pl.DataFrame, str]:
    """Return a CSV file's table, and its decimal mark."""
    header, line_end = _header_record(file)
    unquoted = re.sub('"[^"]*"', "", header)
    separator = max(separators, key=unquoted.count)
    names = next(csv.reader(io.StringIO(header, newline=""), delimiter=separator), [])
    # Names may be whole numbers, such as years, but not all of them: then the header is missing.
    numbers = [name for name in names if _is_number(name)]
    if names and (len(numbers) == len(names) or not all(name.strip().isdigit() for name in numbers)):
        raise DataError(f"the first line must name the columns, got {listed(names)}")
    try:
        read = partial(
            pl.read_csv,
            file,
            null_values=MISSING_MARKERS,
            separator=separator,
            eol_char=line_end,
        )
        # Parsing dates in all text columns takes fifteen times as long as the rest, so a sample decides.
        n_rows = N_ROWS_SEARCHED_FOR_DATES
        sample = read(n_rows=n_rows, infer_schema_length=n_rows, try_parse_dates=True, ignore_errors=True)
        file.seek(0)
        dated = any(dtype.is_temporal() for dtype in sample.dtypes)
        frame = read(infer_schema_length=None, try_parse_dates=dated)
    except pl.exceptions.PolarsError as error:
        raise DataError(_explain_csv_error(file, separator, error)) from error
    frame.columns = _unique_names(names)
    # A separator at the end of each line makes a column without name and values.
    frame = frame.drop(
        name for name, given in zip(frame.columns, names) if not given.strip() and not frame[name].count()
    )
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
    frame = frame.head(filled[-1] + 1 if len(filled) else 0)  # spreadsheets leave empty rows at the end
    return frame, "," if separator == ";" else "."  # semicolons are used where the decimal mark is a comma


def _decompressed(file: BinaryIO) -> BinaryIO:
    """Return the file, or a reader of its content if it is gzipped."""
    file.seek(0)
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file


def _header_record(file: BinaryIO) -> tuple[str, str]:
    """Return a CSV file's first record, which may have line breaks in quotes, and the line ending."""
    sample = _decompressed(file).read(1 << 20)
    file.seek(0)
    if b"\0" in sample:  # as in UTF-16 text and binary files
        raise DataError(NOT_UTF8)
    line_end = "\n" if b"\n" in sample else "\r"
    found = re.match(rb'(?:"[^"]*"|[^\r\n])*', sample.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"))
    try:
        return (found.group() if found else b"").decode(), line_end
    except UnicodeDecodeError as error:
        raise DataError(NOT_UTF8) from error


def _explain_csv_error(file: BinaryIO, separator: str, error: Exception) -> str:
    """Return in the user's terms why polars could not read a CSV file."""
    if "utf-8" in str(error):
        return NOT_UTF8
    if "not properly escaped" in str(error) or "malformed" in str(error):
        return "not a readable CSV file (a quotation mark stands alone, or inside a cell)"
    if "more fields" in str(error):
        rows = csv.reader((line.decode() for line in _decompressed(file)), delimiter=separator)
        width = len(next((row for row in rows if row), []))
        for row in rows:
            if len(row) > width:
                return f"line {rows.line_num} has {len(row)} cells, but the first line names {width} columns"
    return f"not a readable CSV file ({first_line(error)})"


def _with_decimal_point(
    read: Callable[[BinaryIO], pl.DataFrame],
) -> Callable[[BinaryIO], tuple[pl.DataFrame, str]]:
    """Return a reader that also returns ".", the decimal mark of numbers in its text columns."""
    return lambda file: (read(file), ".")


def _read_arrow(file: BinaryIO) -> pl.DataFrame:
    try:
        return pl.read_ipc(file)
    except pl.exceptions.PolarsError:
        file.seek(0)
        return pl.read_ipc_stream(file)  # Arrow has a file format and a stream format


def _read_npz(file: BinaryIO) -> pl.DataFrame:
    """Return the columns of the array X, and the 1-D arrays beside it."""
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
    """Return an array as polars takes it: contiguous, in native byte order, bytes as text."""
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
    ".parquet": _with_decimal_point(pl.read_parquet),
    ".arrow": _with_decimal_point(_read_arrow),
    ".feather": _with_decimal_point(_read_arrow),
    ".ipc": _with_decimal_point(_read_arrow),
    ".npz": _with_decimal_point(_read_npz),
    ".csv.gz": _read_csv,
    ".tsv.gz": partial(_read_csv, separators="\t"),
}
"""Functions that read a table and its decimal mark from an open file, by the suffix of the file's name."""


def write_frame(path: str | Path, frame: pl.DataFrame) -> None:
    """Write a table to a file atomically, in the format of the file's suffix.

    Parameters
    ----------
    path : str or Path
        ``.csv``, ``.tsv``, ``.parquet``, ``.arrow``, ``.feather`` or ``.ipc``. An existing file is replaced.
    frame : polars.DataFrame

    Raises
    ------
    DataError
        If the suffix is unknown, the format cannot hold a column, or the disk is full. An existing file is
        unchanged then.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import polars as pl
    >>> from mlp_xp.tables import read_frame, write_frame
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "fruit.parquet"
    ...     write_frame(path, pl.DataFrame({"mass": [150.5], "kind": ["apple"]}))
    ...     read_frame(path).rows()
    [(150.5, 'apple')]
    """
    path = check_path(path)
    check_frame(frame)
    _, write = _entry_for_suffix(path, WRITERS)
    try:
        with atomic_write(path) as file:
            write(frame, file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: it cannot be written ({first_line(error)})") from error


def check_frame(frame: Any) -> None:
    """Raise a TypeError unless this is a table of polars."""
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"`frame` must be a polars DataFrame, got {shown(frame)}")


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Check that a table can be written to a path, before the work that makes it.

    Raises
    ------
    DataError
        If the suffix is unknown, the folder does not exist, or a file exists and `overwrite` is False.
    """
    path = Path(path)
    _entry_for_suffix(path, WRITERS)
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
"""Functions that write a table, by the suffix of the file's name."""


def as_frame(table: Any) -> pl.DataFrame:
    """Return a polars or pandas DataFrame, or a file's table, as `read_frame` would.

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
    return frame.select(_parse_text(column) for column in frame.iter_columns())


def dataset_frame(data: Dataset) -> pl.DataFrame:
    """Return a data set as a table: its features, then its target as the last column, with class names."""
    target = data.y if data.class_names is None else np.array(data.class_names)[data.y]
    columns = {name: np.ascontiguousarray(column) for name, column in zip(data.feature_names, data.X.T)}
    return pl.DataFrame({**columns, data.target_name: target})


def _parse_text(column: pl.Series, decimal: str = ".") -> pl.Series:
    """Return a text column stripped, with null for missing values, as numbers or truth values if all are."""
    coded, column = column.dtype in (pl.Categorical, pl.Enum), normalised(column)
    if column.dtype != pl.String:
        return column
    column = column.str.strip_chars()
    column = column.set(column.is_in(MISSING_MARKERS), None)
    if coded or not column.count():  # a categorical dtype is kept as text even if it looks like numbers
        return column
    if column.str.to_lowercase().is_in(["true", "false"]).all():
        return column.str.to_lowercase() == "true"
    digits = _normalise_numbers(column, decimal)
    if digits.count() < column.count():
        return column
    whole = digits.cast(pl.Int64, strict=False)
    return whole if whole.count() == digits.count() else normalised(digits.cast(pl.Float64))


def normalised(column: pl.Series) -> pl.Series:
    """Return a column with categorical dtypes as text, decimals as floats, and NaN as null."""
    if column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if column.dtype == pl.Decimal:
        return column.cast(pl.Float64)
    return column.fill_nan(None) if column.dtype.is_float() else column


def parse_numbers(column: pl.Series) -> pl.Series:
    """Return the numbers in a text column, and null for cells that are not numbers.

    Commas, spaces and apostrophes may separate thousands ("1,234.5"). A percent or currency sign is removed
    if all cells have the same one.
    """
    return _normalise_numbers(column).cast(pl.Float64)


def _normalise_numbers(column: pl.Series, decimal: str = ".") -> pl.Series:
    """Return cells rewritten as Python writes numbers, and null for cells that are not numbers.

    Each cell is read by itself (but for the shared sign), so that it means the same in every table.
    """
    signs = column.str.extract(r"([%\p{Sc}])")
    if signs.count() == column.count() and signs.drop_nulls().n_unique() == 1:
        column = column.str.replace(r"^([+-]?)\p{Sc}\s?", "${1}").str.replace(r"\s?[%\p{Sc}]$", "")
    marks = {".": "[, '\u2019\u00a0\u202f]", ",": "[. '\u2019\u00a0\u202f]"}[decimal]
    grouped = column.str.contains(GROUPED_NUMBER_PATTERNS[decimal].replace("~", marks))
    rewritten = column.str.replace_all(marks, "").str.replace(",", ".", literal=True)
    column = column.zip_with(~grouped.fill_null(False), rewritten)
    return column.set(column.cast(pl.Float64, strict=False).is_null(), None)


def listed(names: Iterable[object], limit: int = 12) -> str:
    """Return names joined by commas; if there are more than `limit`, the first ones and the count."""
    each = [str(name) for name in names]
    return ", ".join(each[:limit]) + (f", ... ({len(each)} in all)" if len(each) > limit else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
