"""Reading and writing tables: CSV, Parquet, Arrow and npz files, as polars DataFrames."""

from __future__ import annotations

import datetime as dt
import io
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._messages import first_line
from mlp_xp._validation import check_path, shown
from mlp_xp.datasets import Dataset
from mlp_xp.files._folders import atomic_write
from mlp_xp.tables._common import DataError, RawTable, check_frame, clean, listed, with_unique_names
from mlp_xp.tables._formats import MISSING_MARKERS, DateFormat, find_candidates, find_conventions
from mlp_xp.tables._text_files import read_csv

_Function = TypeVar("_Function")

Reader: TypeAlias = Callable[[bytes, str | None], RawTable]
"""Function of a file's bytes and the encoding of its text."""

STANDARD_INPUT = "-"
"""Name of a table that is read from standard input."""

MAGIC_BYTES = {
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"\xff\xff\xff\xff": ".arrow",
    b"PK\x03\x04": ".npz",
}
"""First bytes of standard input, and the format that they stand for; other input is CSV."""


def read_frame(path: str | Path, encoding: str | None = None) -> pl.DataFrame:
    r"""Read a table from a file.

    Parameters
    ----------
    path : str or Path
        ``.csv`` with a header, separated by commas, semicolons, tabs or bars, or ``.tsv``, both also
        ``.gz``; ``.parquet``; ``.arrow``, ``.feather`` or ``.ipc``; or ``.npz`` with an array ``X`` of shape
        (n_samples, n_features), whose columns are called x0, x1, ..., and others of shape (n_samples,).
    encoding : str, optional
        Of a text file without a byte order mark, by Python's name, such as "cp1252". UTF-8 by default.

    Returns
    -------
    polars.DataFrame
        Text is stripped of surrounding spaces. A text column in which all cells are numbers, dates, times or
        truth values has that type; the format of numbers and dates is found from the whole column. Missing
        values are null: empty cells, NaN, and words such as NA or "?". A column without a name is called
        "Unnamed: " and its index.

    Raises
    ------
    DataError
        If the file cannot be read in the format of its suffix.

    See Also
    --------
    learn_schema : What else is found about the columns.

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
    if not (encoding is None or isinstance(encoding, str)):
        raise TypeError(f"`encoding` must be the name of an encoding, got {shown(encoding)}")
    raw = read_table(path, encoding)
    columns = [clean(column, MISSING_MARKERS) for column in raw.frame.iter_columns()]
    found = {
        column.name: find_candidates(column.drop_nulls())
        for column, given in zip(columns, raw.frame.dtypes)
        if column.dtype == pl.String and given == pl.String and column.count()
    }
    conventions = find_conventions(found.values(), None, None, raw.separator)
    typed = []
    for column in columns:
        written = conventions.choose(found[column.name])[0] if column.name in found else None
        if written is not None:
            values = written.read(column)
            if values.null_count() == column.null_count():
                column = values
        elif column.name in found and column.str.to_lowercase().is_in(["true", "false"]).all():
            column = column.str.to_lowercase() == "true"
        if column.dtype == pl.Datetime and isinstance(written, DateFormat) and _are_days(column):
            column = column.cast(pl.Date)
        typed.append(column)
    return pl.DataFrame(typed)


def _are_days(moments: pl.Series) -> bool:
    return bool((moments.dt.time() == dt.time()).all())


def read_table(path: str | Path, encoding: str | None = None) -> RawTable:
    """Read a table from a file, or from standard input, as it is.

    Raises
    ------
    DataError
        If it cannot be read in the format of its suffix.
    """
    if str(path) == STANDARD_INPUT:
        data = sys.stdin.buffer.read()
        kind = next((kind for magic, kind in MAGIC_BYTES.items() if data.startswith(magic)), ".csv")
        return _read("standard input", kind, READERS[kind], lambda: data, encoding)
    path = Path(path)
    kind, read = _entry_for_suffix(path, READERS)
    return _read(str(path), kind, read, path.read_bytes, encoding)


def _read(name: str, kind: str, read: Reader, load: Callable[[], bytes], encoding: str | None) -> RawTable:
    """Return the table in the bytes that `load` returns; `name` and `kind` are for messages."""
    try:
        raw = read(load(), encoding)
        return raw._replace(frame=with_unique_names(raw.frame))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except MemoryError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # a damaged file may raise in many libraries
        what = f"not a readable {kind} file ({first_line(error)})"
        folder = isinstance(error, IsADirectoryError | PermissionError) and Path(name).is_dir()
        raise DataError(f"{name}: {'a folder, not a file' if folder else what}") from error


def _entry_for_suffix(path: Path, table: Mapping[str, _Function]) -> tuple[str, _Function]:
    """Return the suffix of a file's name, and its entry in a table by suffix."""
    for suffix, entry in table.items():
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return suffix, entry
    raise DataError(f"{path}: a table must be a {listed(table)} file, got {path.suffix or 'no suffix'!r}")


# Files with types.


def _typed(read: Callable[[io.BytesIO], pl.DataFrame]) -> Reader:
    """Return a reader of files that have types, from a function of an open file."""
    return lambda data, encoding: RawTable(read(io.BytesIO(data)))


def _read_arrow(file: io.BytesIO) -> pl.DataFrame:
    try:
        return pl.read_ipc(file)
    except pl.exceptions.PolarsError:
        file.seek(0)
        return pl.read_ipc_stream(file)  # Arrow has a file format and a stream format


def _read_npz(file: io.BytesIO) -> pl.DataFrame:
    """Return the columns of the array X, and the 1-D arrays beside it."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive}
    if "X" not in arrays:
        raise DataError(f"no array 'X'; the arrays are {listed(arrays)}")
    X = arrays.pop("X")
    if X.ndim != 2 or X.shape[1] == 0 or not np.isdtype(X.dtype, ("bool", "integral", "real floating")):
        raise DataError(f"X must be a table of numbers, got {X.dtype} of shape {X.shape}")
    columns = {f"x{index}": from_numpy("X", column) for index, column in enumerate(X.T)}
    for name, array in arrays.items():
        if array.shape in (X.shape[:1], (X.shape[0], 1)):
            if name in columns:
                raise DataError(f"{name} must have another name: the columns of X are called x0, x1, ...")
            columns[name] = from_numpy(name, array.ravel())
        elif name == "y":
            raise DataError(f"y must have shape {X.shape[:1]} as X has rows, got {array.shape}")
    return pl.DataFrame(columns)


def from_numpy(name: str, array: HostArray) -> HostArray:
    """Return an array as polars takes it: contiguous, in native byte order, bytes as text."""
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} must hold text in UTF-8 ({error})") from error
    if array.dtype.kind not in "biufUM":
        raise DataError(f"{name} must hold numbers or text, got {array.dtype}")
    if array.dtype == np.float16:  # 0.1 is 0.1, as in a text file; `plain_values` does so for float32
        array = array.astype(str).astype("f8")
    dtypes = {"f": "f4" if array.dtype.itemsize == 4 else "f8", "M": "M8[us]"}
    return np.ascontiguousarray(array, dtype=dtypes.get(array.dtype.kind, array.dtype.newbyteorder("=")))


READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": partial(read_csv, separators="\t"),
    ".parquet": _typed(pl.read_parquet),
    ".arrow": _typed(_read_arrow),
    ".feather": _typed(_read_arrow),
    ".ipc": _typed(_read_arrow),
    ".npz": _typed(_read_npz),
    ".csv.gz": read_csv,
    ".tsv.gz": partial(read_csv, separators="\t"),
}
"""Functions that read a table from the bytes of a file, by the suffix of the file's name."""


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
    check_frame("frame", frame)
    _, write = _entry_for_suffix(path, WRITERS)
    try:
        with atomic_write(path) as file:
            write(frame, file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: it cannot be written ({first_line(error)})") from error


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


def dataset_frame(data: Dataset) -> pl.DataFrame:
    """Return a data set as a table: its features, then its target as the last column, with class names."""
    target = data.y if data.class_names is None else np.array(data.class_names)[data.y]
    columns = {name: np.ascontiguousarray(column) for name, column in zip(data.feature_names, data.X.T)}
    return pl.DataFrame({**columns, data.target_name: target})
