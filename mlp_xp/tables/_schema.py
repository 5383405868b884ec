"""The schema of a table: what each column is, and how its cells are read. Learnt once, kept with a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from types import NoneType
from typing import Any, NamedTuple

import polars as pl

from mlp_xp._processes import current_processes, shared
from mlp_xp.tables._common import DataError, clean, did_you_mean, listed
from mlp_xp.tables._formats import MISSING_MARKERS, TIME_ALONE, DateFormat, Format, NumberFormat

KINDS = ("number", "date", "truth", "category")

TRUTHS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
"""Truth values in lower case, also as libraries write those of a column with gaps."""

N_CELLS_NAMED = 5
"""Maximum number of cells of a column that an error names."""

NUMBER_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)


class WrongCells(NamedTuple):
    """Cells of a column that do not fit: what is expected, the first cells with their rows, the count."""

    name: str
    expected: str
    first: list[tuple[int, Any]]
    n_cells: int

    @classmethod
    def of(cls, cells: pl.Series, wrong: pl.Series, expected: str) -> WrongCells:
        """Return the cells of a column that are marked as wrong."""
        rows = wrong.arg_true()
        first = [(row + 1, cells[row]) for row in rows[:N_CELLS_NAMED].to_list()]
        return cls(cells.name, expected, first, len(rows))

    @classmethod
    def of_parts(cls, found: Sequence[WrongCells | None], n_rows: int) -> list[WrongCells]:
        """Return those that there are of some columns, from the parts of a table that processes have.

        `n_rows` is the number of rows of this process's part: rows are numbered in the whole table.
        """
        processes = current_processes()
        if processes is None:
            return [cells for cells in found if cells is not None]
        parts = processes.exchange("cells that do not fit", (list(found), n_rows))
        merged: dict[int, WrongCells] = {}
        start = 0
        for one, length in parts:
            for index, cells in enumerate(one):
                if cells is not None:
                    before = merged.get(index, cells._replace(first=[], n_cells=0))
                    first = [*before.first, *((row + start, cell) for row, cell in cells.first)]
                    n_cells = before.n_cells + cells.n_cells
                    merged[index] = before._replace(first=first[:N_CELLS_NAMED], n_cells=n_cells)
            start += length
        return [merged[index] for index in sorted(merged)]

    def __str__(self) -> str:
        return f"{self.name!r} must hold {self.expected}, got {self.listed()}"

    def listed(self) -> str:
        """Return the first cells with their rows, and the number of all."""
        named = ", ".join(f"{_shown_cell(cell)} in row {row}" for row, cell in self.first)
        return named + (f", ... ({self.n_cells} in all)" if self.n_cells > len(self.first) else "")


@dataclass(frozen=True)
class ColumnSchema:
    """What a column is, and how its cells are read if they are text.

    Attributes
    ----------
    name : str
    kind : {"number", "date", "truth", "category"}
        Numbers, dates (which become days since 1970) and truth values (0 and 1) are features as they are;
        categories are names.
    format : NumberFormat, DateFormat or None
        Of the text of numbers and dates. None for truth values, categories and spans of time.
    missing : tuple of str
        Words that mean a missing value in this column, beside those of the table.
    """

    name: str
    kind: str
    format: Format | None = None
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        formats: tuple[type, ...] = (NoneType,)
        if self.kind in ("number", "date"):
            formats = (NumberFormat,) if self.kind == "number" else (DateFormat, NoneType)
        elif self.kind == "category":
            formats = (NumberFormat, NoneType)
        if self.kind not in KINDS or not isinstance(self.format, formats):
            raise ValueError(f"a column cannot be {self.kind!r:.20} written as {self.format!r:.80}")

    def read(self, column: pl.Series, missing: Iterable[str]) -> tuple[pl.Series, WrongCells | None]:
        """Return the column as float64, or for a category as text, and the cells that do not fit.

        Parameters
        ----------
        column : polars.Series
            Text, or values of any type.
        missing : iterable of str
            Words that mean a missing value in the table.
        """
        words = [*missing, *self.missing]
        cells = clean(column, words)
        read = {
            "number": self._numbers,
            "date": self._days,
            "truth": self._truths,
            "category": self._names,
        }[self.kind]
        values = read(cells)
        if meant := self._values_of_words(values, tuple(words)):
            named = values.is_in(meant).fill_null(False)  # "-200.0" and the number are what "-200" means
            if named.any():
                cells, values = cells.set(named, None), values.set(named, None)
        infinite = values.is_infinite() if values.dtype.is_float() else None
        has_infinite = infinite is not None and bool(infinite.any())
        if cells.null_count() == values.null_count() and not has_infinite:
            return values, None
        wrong = cells.is_not_null() & values.is_null()
        if infinite is not None:
            wrong |= infinite.fill_null(False)
        return values, WrongCells.of(cells, wrong, self._expected(cells))

    def _values_of_words(self, values: pl.Series, words: tuple[str, ...]) -> list[Any]:
        """Return the values that words for missing ones have in the column."""
        if self.kind == "category":
            return self._names(pl.Series(words, dtype=pl.String)).to_list()
        return _numbers_of_words(self.format, words) if isinstance(self.format, NumberFormat) else []

    def _names(self, cells: pl.Series) -> pl.Series:
        return names_of_categories(cells, are_numbers=self.format is not None)

    def _numbers(self, cells: pl.Series) -> pl.Series:
        if cells.dtype == pl.String and isinstance(self.format, NumberFormat):
            return self.format.read(cells).cast(pl.Float64)
        if cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null):
            return cells.cast(pl.Float64)
        return _nothing(cells)

    def _days(self, cells: pl.Series) -> pl.Series:
        if cells.dtype == pl.String and isinstance(self.format, DateFormat):
            return _to_days(self.format.read(cells))
        if cells.dtype.base_type() in self._types_of_dates():
            return _to_days(cells)
        return _nothing(cells)

    def _types_of_dates(self) -> tuple[Any, ...]:
        """Return the types of values that are what the format writes: a time of day is no date."""
        if isinstance(self.format, DateFormat):
            return (pl.Time,) if self.format.forms == (TIME_ALONE,) else (pl.Date, pl.Datetime)
        return (pl.Duration,)

    def _truths(self, cells: pl.Series) -> pl.Series:
        if cells.dtype == pl.String:
            text = cells.str.to_lowercase()
            return text.replace_strict(TRUTHS, default=None, return_dtype=pl.Float64)
        if cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null):
            values = cells.cast(pl.Float64)
            return values.set(~values.is_in([0.0, 1.0]), None)
        return _nothing(cells)

    def _expected(self, cells: pl.Series) -> str:
        """Return in words what the column must hold."""
        written = self.format.words() if self.format is not None and cells.dtype == pl.String else ""
        times = {pl.Time: "times of day", pl.Duration: "durations"}.get(self._types_of_dates()[0], "dates")
        plural = {
            "number": "numbers",
            "date": times,
            "truth": "true or false",
            "category": "text or numbers",
        }
        return plural[self.kind] + (f" written as {written}" if written else "")


@lru_cache(maxsize=16)
def _numbers_of_words(written: NumberFormat, words: tuple[str, ...]) -> list[float]:
    """Return the numbers that words write; most columns of a table share both."""
    return written.read(pl.Series(words, dtype=pl.String)).cast(pl.Float64).drop_nulls().to_list()


def _nothing(cells: pl.Series, dtype: Any = pl.Float64) -> pl.Series:
    return pl.Series(cells.name, [None], dtype=dtype).new_from_index(0, len(cells))


def _shown_cell(cell: Any) -> str:
    cell = cell.to_list() if isinstance(cell, pl.Series) else cell
    return f"{cell!r:.40}" if isinstance(cell, (str, bytes)) else f"{cell!s:.40}"


def _to_days(column: pl.Series) -> pl.Series:
    """Return dates and times as days since 1970, durations and times of day as days."""
    if column.dtype == pl.Date:
        return column.cast(pl.Int32).cast(pl.Float64)
    if column.dtype == pl.Datetime:  # a moment with a zone in UTC, as libraries that read text convert it
        return column.dt.epoch("us").cast(pl.Float64) / 86_400e6
    column = column.cast(pl.Duration("us")) if column.dtype == pl.Time else column
    return column.dt.total_microseconds().cast(pl.Float64) / 86_400e6


def names_of_categories(column: pl.Series, are_numbers: bool) -> pl.Series:
    """Return a column as names of categories: values of types in canonical spelling, and text as it is.

    Text of numbers is in canonical spelling too: 1, 1.0 and "1" get one name. What has no name, such as a
    list, is null.
    """
    if column.dtype == pl.String and not are_numbers:
        return column
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object, pl.Duration):
        return _nothing(column, pl.String)
    if column.dtype == pl.Time:
        column = column.dt.to_string("%H:%M:%S%.f")
    text = column.cast(pl.String)
    if column.dtype == pl.Datetime:
        text = text.str.replace(r" 00:00:00(\.0+)?$", "")  # a day, as in a text file
    names = {name: canonical_spelling(name) for name in text.drop_nulls().unique().to_list()}
    changed = {old: new for old, new in names.items() if old != new}
    return text.replace(changed) if changed else text


def find_names(different: Iterable[str], known: Sequence[str]) -> dict[str, int]:
    """Return the indices of known names for different ones: 1, 1.0 and "1" are the same, True and "true".

    An exact spelling takes precedence: there may be both "1" and "1.0". Unknown names are left out.
    """
    exact = {name: index for index, name in enumerate(known)}
    canonical = {canonical_spelling(name): index for name, index in exact.items()}
    found = {name: exact.get(name, canonical.get(canonical_spelling(name))) for name in different}
    return {name: index for name, index in found.items() if index is not None}


def canonical_spelling(text: str) -> str:
    """Return the canonical spelling of a number or truth value, and other text unchanged."""
    if not NUMBER_PATTERN.fullmatch(text):
        return text.lower() if text.lower() in ("true", "false") else text
    digits = f"{Decimal(text):f}" if float(text) else "0"  # Decimal, because a float would round
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


@dataclass(frozen=True)
class Schema:
    """What the columns of a table are, and how their cells are read.

    A run applies the schema of the table that it was trained on to each later one, file or DataFrame alike:
    what a cell means depends neither on its neighbours nor on its file.

    Attributes
    ----------
    features : tuple of ColumnSchema
        The columns that are used, in the table's order.
    target : ColumnSchema or None
        The column to predict.
    sample_weight : ColumnSchema or None
    missing : tuple of str
        Words that mean a missing value in any column; an empty cell always does.
    left_out : dict of str
        For each other column, why it is not used.
    notes : tuple of str
        What was decided where the cells leave it open.

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import learn_schema
    >>> schema = learn_schema(pl.DataFrame({"day": ["1/31/2020", "2/29/2020"], "size": ["1,5", "1.000,5"]}))
    >>> [(column.kind, column.format.words()) for column in schema.features]
    [('date', 'month/day/year'), ('number', '1.234,5')]
    >>> schema.read(pl.DataFrame({"size": ["2.000", "3,25"], "day": ["1/1/1970", None]})).rows()
    [(0.0, 2000.0), (None, 3.25)]
    """

    features: tuple[ColumnSchema, ...]
    target: ColumnSchema | None = None
    sample_weight: ColumnSchema | None = None
    missing: tuple[str, ...] = MISSING_MARKERS
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        roles = [role for role in (self.target, self.sample_weight) if role is not None]
        names = [column.name for column in (*self.features, *roles)]
        if len(set(names)) < len(names):
            raise ValueError("the columns of a schema must have different names")

    def names(self, *kinds: str) -> list[str]:
        """Return the names of the features of some kinds."""
        return [column.name for column in self.features if column.kind in kinds]

    def read(self, frame: pl.DataFrame, *, together: bool = False) -> pl.DataFrame:
        """Return the features of a table: float64, text for categories, null for missing values.

        Parameters
        ----------
        frame : polars.DataFrame
            With the features in any order, and others.
        together : bool, default=False
            Whether all processes of `mlp_xp.data_parallel` read their parts of one table, which the message
            of an error is of then.

        Raises
        ------
        DataError
            If columns are missing, or hold cells that do not fit. The message names all of them.
        """
        return pl.DataFrame(self.read_columns(frame, self.features, together=together))

    def read_columns(
        self, frame: pl.DataFrame, columns: Sequence[ColumnSchema], *, together: bool = False
    ) -> list[pl.Series]:
        """Return some columns, as `read` does."""
        found_names = set(frame.columns)
        missing = [column.name for column in columns if column.name not in found_names]
        if missing:
            raise DataError(
                f"the column{'s' * (len(missing) > 1)} {listed(missing)} "
                f"{'are' if len(missing) > 1 else 'is'} missing; the table has {listed(frame.columns)}"
                f"{did_you_mean(missing, frame.columns)}"
            )
        found = [column.read(frame[column.name], self.missing) for column in columns]
        wrong = [cells for _, cells in found if cells is not None]
        if together:
            wrong = WrongCells.of_parts([cells for _, cells in found], len(frame))
        if wrong:
            message = f"the column{'s' * (len(wrong) > 1)} {'; '.join(map(str, wrong))}"
            raise shared(DataError(message)) if together else DataError(message)
        return [values for values, _ in found]

    def read_target(self, frame: pl.DataFrame, *, together: bool = False) -> pl.Series:
        """Return the target: numbers, truth values or text, null where a row has none.

        Parameters
        ----------
        frame, together
            As of `read`.

        Raises
        ------
        DataError
            If there is no such column, or cells do not fit.
        """
        assert self.target is not None
        name = self.target.name
        if name not in frame.columns:
            known = f"the columns are {listed(frame.columns)}{did_you_mean([name], frame.columns)}"
            raise DataError(f"no column {name!r}; {known}")
        (values,) = self.read_columns(
            frame, [self.target], together=together
        )  # raises if a cell does not fit
        if self.target.kind == "truth":
            return values == 1.0
        cells = clean(frame[name], ())
        if self.target.kind == "number" and cells.dtype == pl.String:
            assert isinstance(self.target.format, NumberFormat)
            cells = self.target.format.read(cells.set(values.is_null(), None))  # int64 if all are whole
        return cells.set(values.is_null(), None)
