"""Reading text files: the encoding, the separator and the header are found; all cells stay text."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from mlp_xp.tables._common import DataError, RawTable, listed, unique_names
from mlp_xp.tables._formats import NUMBER_FORMATS

SEPARATORS = ";\t|,"
"""What separates the cells of a line. Of several that fit a file equally well, the first is taken."""

N_BYTES_TO_FIND_SEPARATOR = 1 << 16
"""Number of bytes behind the first line that are searched for the separator."""

MAX_ROWS_TO_FIND_SEPARATOR = 100
"""Maximum number of rows that are searched for the separator."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""First bytes of a text file, and the encoding that they stand for."""


def read_csv(data: bytes, encoding: str | None, separators: str = SEPARATORS) -> RawTable:
    """Return the table in a CSV file, all of its cells as text."""
    data = _as_utf8(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data, encoding)
    before = re.match(rb'[\r\n]*(?:"?sep=(.)"?[\r\n]+)?', data, re.IGNORECASE)  # a line for spreadsheets
    assert before is not None
    if before[1]:
        separators = before[1].decode()
    n_lines_before = len(before.group().splitlines())
    data = data[before.end() :]
    if not data:
        raise DataError("not a readable CSV file (it is empty)")
    first_line = re.match(rb"[^\r\n]*", data)
    assert first_line is not None
    sample = data[: first_line.end() + N_BYTES_TO_FIND_SEPARATOR].decode(errors="ignore")
    separator = _find_separator(sample, separators)
    names = next(_csv_rows(sample, separator))
    frame = None
    if _rows_are_plain(data, separator):
        with suppress(pl.exceptions.PolarsError):
            frame = pl.read_csv(
                _without_empty_lines(data),
                infer_schema=False,
                separator=separator,
                quote_char='"' if b'"' in data else None,
                eol_char="\n" if b"\n" in data else "\r",
            )
    if frame is None or frame.width != len(names):
        frame = _read_row_by_row(data.decode(), separator, len(names), n_lines_before)
    frame = frame.with_columns(pl.all().replace("", None))
    if frame.width > 1:  # spreadsheets leave rows of separators at the end
        filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
        frame = frame.head(filled[-1] + 1 if len(filled) else 0)
    names = [name.strip() for name in names]
    _check_header(names, frame)
    frame.columns = unique_names(names)
    # A separator at the end of each line makes a column without name and values.
    frame = frame.drop(
        name for name, given in zip(frame.columns, names) if not given and not frame[name].count()
    )
    return RawTable(frame, separator)


def _as_utf8(data: bytes, encoding: str | None) -> bytes:
    """Return text in UTF-8, without a byte order mark."""
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    name = marked or encoding or "utf-8"
    try:
        text = data.decode(name)
    except LookupError as error:
        raise DataError(
            f"`encoding` must be the name of an encoding, such as cp1252, got {name!r}"
        ) from error
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise DataError(_not_text(name, f"see line {line}")) from error
    if "\0" in text:  # as in UTF-16 text read as UTF-8, and in binary files
        raise DataError(_not_text(name, "it has null characters"))
    return text.removeprefix("\ufeff").encode()


def _not_text(encoding: str, reason: str) -> str:
    return (
        f"it is not text in {encoding.upper()} ({reason}): --encoding names another one, such as cp1252 or "
        'utf-16; spreadsheets save UTF-8 as "CSV UTF-8"'
    )


def _find_separator(sample: str, separators: str) -> str:
    """Return what separates the cells: what most rows have as often as the first one, which has some."""

    def n_rows_like_first(separator: str) -> int:
        rows = islice(_csv_rows(sample, separator), MAX_ROWS_TO_FIND_SEPARATOR)
        widths = [len(row) for row in rows]
        return widths.count(widths[0]) if widths[0] > 1 else 0

    return max(separators, key=n_rows_like_first)


def _csv_rows(text: str, separator: str, *, strict: bool = False) -> Any:
    """Return a reader of the rows of a text, each a list of cells."""
    csv.field_size_limit(2**31 - 1)  # by default long texts are an error
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict
    )


def _rows_are_plain(data: bytes, separator: str) -> bool:
    """Return whether polars reads the rows as they are.

    All quotation marks must stand at both ends of cells, or be doubled inside them: polars misreads others,
    as in the cell 5" pipe. Lines must have one kind of ends.
    """
    n_returns = data.count(b"\r")
    if n_returns and b"\n" in data and n_returns != data.count(b"\r\n"):
        return False
    characters = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(characters == ord('"'))
    if len(quotes) % 2:
        return False
    neighbours = np.zeros(256, dtype=bool)
    neighbours[[ord(character) for character in f'{separator}\r\n"']] = True
    first, last = quotes[::2], quotes[1::2]
    before = neighbours[characters[first[first > 0] - 1]]
    behind = neighbours[characters[last[last < len(data) - 1] + 1]]
    return bool(before.all() and behind.all())


def _without_empty_lines(data: bytes) -> bytes:
    """Return text without lines that have no characters, which are no rows, outside of quotes."""
    if not any(ends in data for ends in (b"\n\n", b"\n\r", b"\r\r")):
        return data
    text_or_ends = rb'"[^"]*"|(\r\n|\n|\r)[\r\n]+'
    return re.sub(text_or_ends, lambda found: found[1] or found[0], data)


def _read_row_by_row(text: str, separator: str, width: int, n_lines_before: int) -> pl.DataFrame:
    """Return the table in a text that polars cannot read, or raise a DataError that names the line."""
    rows: list[list[str | None]] = []
    reader = _csv_rows(text, separator, strict=True)
    line = n_lines_before + 1  # where a row begins
    try:
        for row in reader:
            if len(row) > width:
                raise DataError(f"line {line} has {len(row)} cells, but the first line names {width} columns")
            if row:  # an empty line is none
                rows.append([*row, *[None] * (width - len(row))])
            line = n_lines_before + reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"not a readable CSV file (line {line}: a quotation mark alone or inside a cell)"
        ) from error
    schema = {f"{index}": pl.String for index in range(width)}
    return pl.DataFrame(rows[1:], schema=schema, orient="row")


def _check_header(names: list[str], frame: pl.DataFrame) -> None:
    """Raise a DataError if the first line seems to be a row: numbers, or text that comes again below it.

    Names may be whole numbers, such as years, if there are others.
    """
    is_name = [pl.col(column).str.strip_chars() == name for column, name in zip(frame.columns, names)]
    repeated = frame.select(pl.all_horizontal(is_name).fill_null(False)).to_series()
    given = pl.Series(filter(None, names), dtype=pl.String)
    are_numbers = pl.select(pl.any_horizontal([each.read(given).is_finite() for each in NUMBER_FORMATS]))
    numbers = set(given.filter(are_numbers.to_series().fill_null(False)))
    occurs = frame.filter(~repeated).select(each.any() for each in is_name).row(0)
    again = [name for name, found in zip(names, occurs) if found and name and name not in numbers]
    if (
        numbers.issuperset(given)
        or not all(name.isdigit() for name in numbers)
        or (numbers and again)
        or (len(given) == 1 and names[0] and any(frame[name].count() for name in frame.columns[1:]))
        or len(again) > max(1, len(names) // 2)
    ):
        raise DataError(
            f"the first line must name the columns, got {listed(names)}: put a line of names before it"
        )
    if repeated.any() and len(names) > 1:
        row = repeated.arg_true()[0] + 1
        raise DataError(f"row {row} repeats the first line, as where tables were joined")
