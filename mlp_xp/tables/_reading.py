"""Reading and writing tables: CSV, Parquet, Arrow and NumPy files, as polars DataFrames.

A table may be a folder of files too. Of several processes each reads a part of the rows (`read_part`): of
Parquet files the row groups that have them, of Arrow and ``.npy`` files, which are mapped into memory, no
other rows. Other files have to be read as a whole to find some of their rows.
"""

from __future__ import annotations

import datetime as dt
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._disk.folders import atomic_write
from mlp_xp._messages import first_line
from mlp_xp._processes import Processes, current_processes, shared
from mlp_xp._validation import check_path, shown
from mlp_xp.datasets import Dataset
from mlp_xp.tables._common import (
    DataError,
    RawTable,
    check_frame,
    clean,
    listed,
    unique_names,
    with_unique_names,
)
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


DTYPES_OF_NUMBERS = ("bool", "integral", "real floating")
"""What the array of a table may hold, in words of the Array API standard."""


def read_frame(path: str | Path, encoding: str | None = None) -> pl.DataFrame:
    r"""Read a table from a file.

    Parameters
    ----------
    path : str or Path
        ``.csv`` with a header, separated by commas, semicolons, tabs or bars, or ``.tsv``, both also
        ``.gz``; ``.parquet``; ``.arrow``, ``.feather`` or ``.ipc``; ``.npz`` with an array ``X`` of shape
        (n_samples, n_features), whose columns are called x0, x1, ..., and others of shape (n_samples,); or
        ``.npy`` with such an X alone, or with a structured array, whose fields are the columns. Or a folder
        of such files with the same columns: their rows follow each other in the order of the files' names,
        in which numbers count as such.
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
    files = table_files(path)
    tables = [_read_file(file, encoding) for file in files]
    _check_columns(files, [table.frame.schema for table in tables])
    names = tables[0].frame.columns
    return tables[0]._replace(frame=pl.concat([table.frame.select(names) for table in tables]))


def _read_file(path: Path, encoding: str | None) -> RawTable:
    kind, read = _entry_for_suffix(path, READERS)
    return _read(str(path), kind, read, path.read_bytes, encoding)


def table_files(path: str | Path) -> list[Path]:
    """Return the files of a table: itself, or those of a folder, in the order of their names.

    Raises
    ------
    DataError
        If a folder has none, or files of several kinds. Names that begin with "." or "_" are those of other
        things.
    """
    path = Path(path)
    if not is_folder(path):
        return [path]
    try:
        files = [file for file in path.iterdir() if file.name[0] not in "._" and file.is_file()]
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror})") from error
    if not files:
        raise DataError(f"{path}: a folder without files")
    kinds = {_entry_for_suffix(file, READERS)[0] for file in files}
    if len(kinds) > 1:
        raise DataError(f"{path}: the files of a folder must be of one kind, got {listed(sorted(kinds))}")
    return sorted(files, key=lambda file: (_name_key(file.name), file.name))


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; what cannot be a path is none."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _name_key(name: str) -> list[tuple[int, str]]:
    """Return the key by which part-2 comes before part-10."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _check_columns(files: Sequence[Path], schemas: Sequence[Mapping[str, Any]]) -> None:
    """Raise a DataError that names the first file with other columns than the first one."""
    first = schemas[0]
    for file, schema in zip(files, schemas):
        if set(schema) != set(first):
            raise DataError(
                f"{file}: its columns are {listed(schema)}, but those of {files[0].name} are {listed(first)}"
            )
        for name, dtype in first.items():
            if schema[name] != dtype:
                raise DataError(
                    f"{file}: the column {name!r} is of {schema[name]}, but of {dtype} in {files[0].name}"
                )


def read_part(path: str | Path, encoding: str | None = None) -> RawTable:
    """Read this process's part of the rows of a table, which is equal parts; without others all of it.

    Raises
    ------
    DataError
        As `read_table`.
    """
    processes = current_processes()
    if processes is None:
        return read_table(path, encoding)
    if str(path) == STANDARD_INPUT:  # not all of MPI's launchers pass it on, nor its end
        raise shared(DataError("standard input is for one process: name a file"))
    files = table_files(path)
    kind, _ = _entry_for_suffix(files[0], READERS)
    if kind not in PART_READERS:
        return own_part(read_table(path, encoding), processes)
    own = range(processes.rank, len(files), processes.size)
    found = {index: _describe_file(files[index]) for index in own}
    described: dict[int, Any] = {}
    for each in processes.exchange("the files of a table", found):
        described |= each
    schemas, lengths = zip(*(described[index] for index in range(len(files))))
    _check_columns(files, schemas)
    wanted = processes.rows(sum(lengths))
    frames: list[pl.DataFrame] = []
    start = 0
    for file, length in zip(files, lengths):
        first, last = max(wanted.start - start, 0), min(wanted.stop - start, length)
        if first < last or (file is files[-1] and not frames):
            frames.append(_read_rows(file, min(first, length), max(last - first, 0)))
        start += length
    return RawTable(pl.concat([frame.select(list(schemas[0])) for frame in frames]))


def own_part(table: RawTable, processes: Processes) -> RawTable:
    """Return the rows of a whole table that fall to this process."""
    rows = processes.rows(len(table.frame))
    return table._replace(frame=table.frame[rows])


def _describe_file(path: Path) -> tuple[dict[str, Any], int]:
    """Return the columns of a file and its number of rows, without reading these."""
    kind, scan = _entry_for_suffix(path, PART_READERS)
    with _errors_naming(str(path), kind):
        frame, n_rows = scan(path)
        schema = frame.collect_schema()
        names = unique_names(schema.names())
        return dict(zip(names, schema.dtypes())), n_rows


def _read_rows(path: Path, start: int, length: int) -> pl.DataFrame:
    """Return some rows of a file."""
    kind, scan = _entry_for_suffix(path, PART_READERS)
    with _errors_naming(str(path), kind):
        return with_unique_names(scan(path)[0].slice(start, length).collect())


def _read(name: str, kind: str, read: Reader, load: Callable[[], bytes], encoding: str | None) -> RawTable:
    """Return the table in the bytes that `load` returns; `name` and `kind` are for messages."""
    with _errors_naming(name, kind):
        raw = read(load(), encoding)
        return raw._replace(frame=with_unique_names(raw.frame))


@contextmanager
def _errors_naming(name: str, kind: str) -> Iterator[None]:
    """Context that raises a DataError with the file's name for what goes wrong in reading it."""
    try:
        yield
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


class _Rows(NamedTuple):
    """The rows of an array that are read when they are asked for, as polars does it with its files."""

    array: HostArray

    def collect_schema(self) -> pl.Schema:
        return _columns_of(self.array[:1]).schema

    def slice(self, start: int, length: int) -> _Rows:
        return _Rows(self.array[start : start + length])

    def collect(self) -> pl.DataFrame:
        return _columns_of(self.array)


def _scan_parquet(path: Path) -> tuple[Any, int]:
    frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    return frame, frame.select(pl.len()).collect().item()


def _scan_arrow(path: Path) -> tuple[Any, int]:
    try:
        frame = pl.scan_ipc(path, glob=False, hive_partitioning=False)
        return frame, frame.select(pl.len()).collect().item()
    except pl.exceptions.PolarsError:
        whole = pl.read_ipc_stream(path)
        return whole.lazy(), len(whole)


def _scan_npy(path: Path) -> tuple[Any, int]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_array("it", array)
    return _Rows(array), len(array)


def _read_npy(file: io.BytesIO) -> pl.DataFrame:
    array = np.load(file, allow_pickle=False)
    _check_array("it", array)
    return _columns_of(array)


def _check_array(name: str, array: HostArray) -> None:
    """Raise a DataError unless an array is a table of numbers, or has named columns."""
    if array.dtype.names is not None and array.ndim == 1:
        return
    if array.ndim != 2 or array.shape[1] == 0 or not np.isdtype(array.dtype, DTYPES_OF_NUMBERS):
        raise DataError(f"{name} must be a table of numbers, got {array.dtype} of shape {array.shape}")


def _columns_of(array: HostArray) -> pl.DataFrame:
    """Return the columns of an array: its fields, or x0, x1, ..."""
    if array.dtype.names is not None:
        columns = {name: array[name] for name in array.dtype.names}
    else:
        columns = {f"x{index}": column for index, column in enumerate(array.T)}
    return pl.DataFrame({name: from_numpy(name, column) for name, column in columns.items()})


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
    if X.dtype.names is not None:
        raise DataError(f"X must be a table of numbers, got {X.dtype} of shape {X.shape}")
    _check_array("X", X)
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
    ".npy": _typed(_read_npy),
    ".npz": _typed(_read_npz),
    ".csv.gz": read_csv,
    ".tsv.gz": partial(read_csv, separators="\t"),
}
"""Functions that read a table from the bytes of a file, by the suffix of the file's name."""


PART_READERS: dict[str, Callable[[Path], tuple[Any, int]]] = {
    ".parquet": _scan_parquet,
    ".arrow": _scan_arrow,
    ".feather": _scan_arrow,
    ".ipc": _scan_arrow,
    ".npy": _scan_npy,
}
"""Functions that return the rows of a file to be read in parts, as a lazy frame, and their number."""


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


def write_frames(path: str | Path, parts: Iterator[pl.DataFrame]) -> None:
    """Write the parts of a table to one file, as `write_frame` does; a few are in memory at a time.

    Nothing is written where there are no parts, as in processes other than the first.
    """
    path = Path(path)
    first = next(parts, None)
    if first is None:
        return
    second = next(parts, None)
    if second is None:
        write_frame(path, first)
        return
    suffix, _ = _entry_for_suffix(path, WRITERS)
    try:
        with atomic_write(path) as file, TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            _write_parts(suffix, chain([first, second], parts), file, Path(folder))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: it cannot be written ({first_line(error)})") from error


def _write_parts(suffix: str, parts: Iterator[pl.DataFrame], path: Path, folder: Path) -> None:
    """Write parts to one file: text one after the other, others by way of files in a folder."""
    if suffix in (".csv", ".tsv"):
        with path.open("wb") as file:
            for index, part in enumerate(parts):
                part.write_csv(file, include_header=index == 0, separator="\t" if suffix == ".tsv" else ",")
        return
    files = []
    for index, part in enumerate(parts):
        files.append(folder / f"{index}.arrow")
        part.write_ipc(files[-1])
    rows = pl.scan_ipc(files, glob=False)
    (rows.sink_parquet if suffix == ".parquet" else rows.sink_ipc)(path)


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
