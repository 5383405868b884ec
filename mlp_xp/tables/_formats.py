"""How the cells of a text column are read: one format for the whole column, learnt from all of its rows.

`FORMS_OF_DATES` and `NUMBER_FORMATS` are the rules; `find_candidates` says which of them fit a column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias
from unicodedata import category

import polars as pl

MISSING_MARKERS = (
    *("NA", "N/A", "n/a", "<NA>", "#N/A", "#N/A N/A", "#NA", "NULL", "null", "None"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "?"),
    *("#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!"),
)
"""Words that mean a missing value: pandas' default markers, the "?" of the UCI data sets, Excel's errors."""

OTHER_SIGNS = "^(?:\u2212|\\(.*[0-9].*\\)$)"
"""Regular expression of negative numbers with the minus sign of typography, or as accountants write them."""

GROUPING_CLASSES = {"": "", ",": ",", ".": r"\.", " ": "[ \u00a0\u202f\u2009]", "'": "['\u2019]"}
"""Marks between groups of digits, and regular expressions of the characters that are written for them."""


@dataclass(frozen=True)
class NumberFormat:
    """How a column writes numbers.

    Attributes
    ----------
    decimal : {".", ","}
    grouping : {"", ",", ".", " ", "'"}
        The mark between groups of digits; " " and "'" stand for all characters that look like them.
    sign : str
        "%" or the sign of a currency, or "". A currency's may be absent from a cell, a "%" from a zero alone.
    """

    decimal: str = "."
    grouping: str = ""
    sign: str = ""

    def __post_init__(self) -> None:
        if (
            self.decimal not in (".", ",")
            or self.grouping not in GROUPING_CLASSES
            or self.grouping == self.decimal
            or not self._has_known_sign()
        ):
            raise ValueError(f"numbers cannot be written as {self}")

    def _has_known_sign(self) -> bool:
        return self.sign in ("", "%") or (len(self.sign) == 1 and category(self.sign) == "Sc")

    def read(self, cells: pl.Series) -> pl.Series:
        """Return the numbers in text cells, as int64 if all are whole, and null where a cell is none."""
        numbers = self._numbers(cells)
        if numbers.null_count() > cells.null_count() and cells.str.contains(OTHER_SIGNS).any():
            numbers = self._numbers(
                cells.str.replace("^\u2212", "-").str.replace(r"^\((.*[0-9].*)\)$", "-${1}")
            )
        return numbers

    def _numbers(self, cells: pl.Series) -> pl.Series:
        digits = cells if self == NumberFormat() else self._as_python_writes(cells)
        numbers = digits.cast(pl.Float64, strict=False).fill_nan(None)
        whole = digits.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == numbers.null_count() else numbers

    def _as_python_writes(self, cells: pl.Series) -> pl.Series:
        """Return cells without signs and groups and with a decimal point; null where they do not fit."""
        fits = cells.str.contains(self._pattern()).fill_null(False)
        if not fits.any():
            return cells.clear(len(cells))
        if self.sign == "%":
            fits &= cells.str.contains("%", literal=True) | cells.str.contains(r"^[+-]?0+(?:[.,]0*)?$")
        removed = rf"[\s{re.escape(self.sign)}]"
        if self.grouping:
            removed += f"|{GROUPING_CLASSES[self.grouping]}"
        digits = cells.str.replace_all(removed, "")
        if self.decimal == ",":
            digits = digits.str.replace(",", ".", literal=True)
        return digits.set(~fits, None)

    def _pattern(self) -> str:
        """Return the regular expression of a cell. A group of digits never begins with a zero."""
        mark, group = re.escape(self.decimal), GROUPING_CLASSES[self.grouping]
        # In India all groups but the last have two digits.
        whole = rf"(?:[1-9]\d{{0,2}}(?:{group}\d{{2,3}})*{group}\d{{3}}|\d+)" if group else r"\d+"
        body = rf"(?:{whole}(?:{mark}\d*)?|{mark}\d+)(?:[eE][+-]?\d+)?"
        before, after = (rf"(?:{re.escape(self.sign)}\s?)?", rf"(?:\s?{re.escape(self.sign)})?")
        return rf"^{before}[+-]?{before}{body}{after}$".replace(r"\d", "[0-9]")

    def words(self) -> str:
        """Return how numbers are written, by an example; "" if as usual."""
        if self == NumberFormat():
            return ""
        example = f"1{self.grouping}234{self.decimal}5"
        return f"{example} %" if self.sign == "%" else f"{self.sign}{example}"


NUMBER_FORMATS = tuple(
    NumberFormat(decimal, grouping)
    for decimal, grouping in (
        *((".", ""), (",", ""), (".", ","), (",", ".")),
        *((".", " "), (",", " "), (".", "'"), (",", "'")),
    )
)
"""Formats of numbers; where several fit all cells and nothing else decides, the first one is taken.

A point alone is a decimal point, also where three digits follow it.
"""

MIN_SHARE_OF_A_FORMAT = 0.5
"""Minimum share of the different cells that a format must fit; with less the column is text.

Of the different ones, because one word may stand in most of the rows, for a missing number.
"""

N_FIRST_CELLS = 1000
"""Number of cells looked at first, only to save the time of looking at all."""

_TIME = (
    r"(?P<H>[0-9]{1,2}):(?P<M>[0-9]{2})(?::(?P<S>[0-5][0-9])(?P<f>\.[0-9]{1,9})?)?"
    r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?"
)
_ZONE = r"(?: ?(?P<zone>Z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?))?"
_YEAR = r"(?P<y>[0-9]{4}|[0-9]{2})"
_MONTH = r"(?P<name>[A-Za-z]{3,9})\.?"

FORMS_OF_DATES = {
    "year-month-day": r"(?P<y>[0-9]{4})[-/.](?P<m>[0-9]{1,2})[-/.](?P<d>[0-9]{1,2})",
    "day/month/year": rf"(?P<d>[0-9]{{1,2}})[-/.](?P<m>[0-9]{{1,2}})[-/.]{_YEAR}",
    "month/day/year": rf"(?P<m>[0-9]{{1,2}})[-/.](?P<d>[0-9]{{1,2}})[-/.]{_YEAR}",
    "day month year": rf"(?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?[-. ]? ?{_MONTH}[-, ] ?{_YEAR}",
    "month day, year": rf"{_MONTH}[- ](?P<d>[0-9]{{1,2}})(?:st|nd|rd|th)?,? (?P<y>[0-9]{{4}})",
    "year-month": r"(?P<y>[0-9]{4})-(?P<m>[0-9]{2})",
    "month year": rf"{_MONTH}[-, ] ?(?P<y>[0-9]{{4}})",
    "hours:minutes": "",
}
"""Forms of dates and their regular expressions; a time of day and a zone may follow. The last is time alone.

Names of months are English. Of a year's two digits 69 to 99 are 1969 to 1999, as in POSIX.
"""

DAY_FIRST, MONTH_FIRST, TIME_ALONE = "day/month/year", "month/day/year", "hours:minutes"

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

MONTH_PATTERN = (
    "(?i)^(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    "|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)$"
)


@dataclass(frozen=True)
class DateFormat:
    """How a column writes dates or times of day.

    Attributes
    ----------
    forms : tuple of str
        Names of `FORMS_OF_DATES`; each cell is read by the one that fits it. Of the two that differ in the
        order of day and month alone, at most one.
    """

    forms: tuple[str, ...]

    def __post_init__(self) -> None:
        if (
            not self.forms
            or len(set(self.forms)) < len(self.forms)
            or not set(self.forms) <= set(FORMS_OF_DATES)
        ):
            raise ValueError(f"dates cannot be written as {self.forms!r:.60}")
        if len(self.forms) > 1 and (TIME_ALONE in self.forms or {DAY_FIRST, MONTH_FIRST} <= set(self.forms)):
            raise ValueError(f"dates cannot be written as {self.forms!r:.60} in one column")

    def read(self, cells: pl.Series) -> pl.Series:
        """Return the moments in text cells, in UTC where they have a zone, or times; null for others."""
        different = cells.drop_nulls().unique()  # the same dates come often
        moments = _read_form(different, self.forms[0])
        for form in self.forms[1:]:
            moments = moments.zip_with(moments.is_not_null(), _read_form(different, form))
        if self.forms == (TIME_ALONE,):
            moments = moments.dt.time()
        return cells.replace_strict(different, moments, default=None, return_dtype=moments.dtype)

    def words(self) -> str:
        """Return how dates are written."""
        return " or ".join(self.forms)


Format: TypeAlias = NumberFormat | DateFormat


def _read_form(cells: pl.Series, form: str) -> pl.Series:
    """Return the moments in cells of a form of dates, and null where a cell is none."""
    date = FORMS_OF_DATES[form]
    pattern = f"^{date}(?:(?:T| +|, ?){_TIME}{_ZONE})?$" if date else f"^{_TIME}$"
    fits = cells.str.contains(pattern)
    if not fits.any():
        return cells.clear(len(cells)).cast(pl.Datetime("us"))
    parts = cells.str.extract_groups(pattern).struct.unnest()

    def part(name: str, default: str) -> pl.Expr:
        return pl.col(name).fill_null(default) if name in parts.columns else pl.lit(default)

    year = part("y", "1970")
    century = pl.when(year < "69").then(pl.lit("20")).otherwise(pl.lit("19"))
    year = pl.when(year.str.len_chars() == 2).then(century + year).otherwise(year)
    month = part("m", "1")
    if "name" in parts.columns:
        valid = pl.when(pl.col("name").str.contains(MONTH_PATTERN)).then(pl.col("name"))
        month = (
            valid.str.to_lowercase()
            .str.slice(0, 3)
            .replace_strict(MONTHS, [str(number) for number in range(1, 13)], default=None)
        )
    hour, half = part("H", "0").cast(pl.Int64), part("half", "").str.to_lowercase()
    hour = pl.when(half == "").then(hour).when(hour.is_between(1, 12)).then(hour % 12 + 12 * (half == "p"))
    day = pl.concat_str([year, month, part("d", "1")], separator="-")
    clock = pl.concat_str([hour.cast(pl.String), part("M", "0"), part("S", "0")], separator=":")
    zone = part("zone", "")
    offset = zone.str.slice(1, 2).cast(pl.Int64, strict=False).fill_null(0) * 60
    offset += zone.str.slice(3).str.strip_chars(":").cast(pl.Int64, strict=False).fill_null(0)
    offset *= pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    text = pl.concat_str([day, pl.lit(" "), clock, part("f", ".0")])
    moments = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    return parts.select(moments - pl.duration(minutes=offset)).to_series().set(~fits, None)


class Candidates(NamedTuple):
    """The formats that fit most cells of a text column.

    Attributes
    ----------
    formats : tuple of formats
        All that fit as many cells; the first is the choice if nothing else decides.
    n_fitting : int
        The number of cells that they fit.
    are_open : bool
        Whether they read different values, so that the cells alone do not decide.
    """

    formats: tuple[Format, ...] = ()
    n_fitting: int = 0
    are_open: bool = False


def find_candidates(cells: pl.Series) -> Candidates:
    """Return the formats of numbers or dates that fit most of the cells, which have no nulls."""
    plain = NumberFormat()
    if _holds_for_all(cells, lambda part: not plain.read(part).null_count()):
        formats = _number_formats_like(cells)
        return Candidates(formats, len(cells), are_open=len(formats) == 2)
    counted = cells.alias("cell").value_counts(name="count")
    least = max(1, MIN_SHARE_OF_A_FORMAT * len(counted))
    if counted["cell"].str.contains("[0-9]").sum() < least:
        return Candidates()
    best = _number_candidates(counted)
    if best.n_fitting < len(cells):
        best = max(best, _date_candidates(counted), key=lambda found: found.n_fitting)
    return best if best.n_fitting and best.formats[0].read(counted["cell"]).count() >= least else Candidates()


def _holds_for_all(cells: pl.Series, holds: Callable[[pl.Series], bool]) -> bool:
    """Return whether a condition holds for all cells, after trying the first ones."""
    return holds(cells.head(N_FIRST_CELLS)) and (len(cells) <= N_FIRST_CELLS or holds(cells))


def _number_formats_like(cells: pl.Series) -> tuple[Format, ...]:
    """Return the formats by which cells are numbers that Python reads as numbers too."""
    if not cells.str.contains(r"[.eEnN]").any():
        return NUMBER_FORMATS  # whole numbers say nothing about marks
    in_groups = r"^[+-]?(?:[1-9][0-9]{0,2}\.[0-9]{3}|[0-9]+)$"
    ambiguous = _holds_for_all(cells, lambda part: bool(part.str.contains(in_groups).all()))
    return (NumberFormat(), NumberFormat(",", ".")) if ambiguous else (NumberFormat(),)


def _number_candidates(counted: pl.DataFrame) -> Candidates:
    """Return the formats of numbers that fit most of the different cells, which have counts."""
    cells, n_cells = counted["cell"], counted["count"]
    signs = ("", *cells.str.extract(r"([%\p{Sc}])").drop_nulls().unique(maintain_order=True))
    has = {mark: bool(cells.str.contains(mark_class).any()) for mark, mark_class in GROUPING_CLASSES.items()}
    formats = (
        replace(each, sign=sign)
        for sign in signs
        for each in NUMBER_FORMATS
        # Without any mark all decimal marks are possible.
        if has[each.grouping] and not (each == NumberFormat(",") and has["."] and not has[","])
    )
    counts = {each: int(n_cells.filter(each.read(cells).is_not_null()).sum()) for each in formats}
    most = max(counts.values())
    best = tuple(each for each, n in counts.items() if n == most)
    has_marks = cells.filter(best[0].read(cells).is_not_null()).str.contains("[.,]").any()
    return Candidates(best, most, are_open=has_marks and len({each.decimal for each in best}) > 1)


def _date_candidates(counted: pl.DataFrame) -> Candidates:
    """Return the formats of dates that fit most of the different cells, which have counts.

    There are two if no cell tells the day from the month: see `_day_seems_first`.
    """
    cells, n_cells = counted["cell"], counted["count"]
    if not cells.str.contains(r"[-/:A-Za-z]|[0-9]\.[0-9]+\.[0-9]").any():  # as in decimal commas
        return Candidates()
    moments = {form: _read_form(cells, form).is_not_null() for form in FORMS_OF_DATES}
    counts = {form: int(n_cells.filter(fits).sum()) for form, fits in moments.items() if fits.any()}
    if "year-month" in counts and _are_spans_of_years(cells.filter(moments["year-month"])):
        del counts["year-month"]
    n_times = counts.pop(TIME_ALONE, 0)
    orders = {form: counts.pop(form) for form in (MONTH_FIRST, DAY_FIRST) if form in counts}
    best = [form for form, n in orders.items() if n == max(orders.values())]
    if len(best) == 2 and _day_seems_first(cells.filter(moments[DAY_FIRST])):
        best.reverse()
    n_dates = sum(counts.values()) + max(orders.values(), default=0)
    if not n_times and not n_dates:
        return Candidates()
    if n_times >= n_dates:  # a time of day is no date: they are never read in one column
        return Candidates((DateFormat((TIME_ALONE,)),), n_times)
    formats = tuple(DateFormat((*counts, form)) for form in best) or (DateFormat(tuple(counts)),)
    return Candidates(formats, n_dates, are_open=len(formats) == 2)


def _are_spans_of_years(cells: pl.Series) -> bool:
    """Return whether cells such as 2001-02 are years that end in the next one, as those of schools."""
    begin, end = (cells.str.slice(start, 2).cast(pl.Int64) for start in (2, 5))
    return len(cells) > 1 and bool((end == (begin + 1) % 100).all())


def _day_seems_first(cells: pl.Series) -> bool:
    """Return whether the first number of dates is the day, where both numbers could be.

    It is where it is the same in all cells, as in dates of months, or where points separate the numbers.
    Otherwise the month is the first one, as for pandas.
    """
    pattern = r"^([0-9]{1,2})([-/.])([0-9]{1,2})[-/.]"
    first, mark, second = (cells.str.extract(pattern, group) for group in (1, 2, 3))
    n_first, n_second = first.cast(pl.Int64).n_unique(), second.cast(pl.Int64).n_unique()
    if min(n_first, n_second) == 1 and max(n_first, n_second) > 2:
        return n_first == 1
    return bool((mark == ".").all())


class Conventions(NamedTuple):
    """What decides between formats that fit all cells of a column: the other columns of its table.

    Attributes
    ----------
    decimals : set of str
        Decimal marks of the columns in which one alone fits.
    orders : set of str
        Forms of dates, with the day or the month first, of the columns in which one alone fits.
    default : str or None
        The decimal mark where no column decides.
    """

    decimals: set[str]
    orders: set[str]
    default: str | None

    def choose(self, found: Candidates) -> tuple[Format | None, bool]:
        """Return the format of a column, None if it is text; and whether it was decided by default."""
        fitting = [each for each in found.formats if _mark_of(each) in self.decimals | self.orders]
        decided = len({_mark_of(each) for each in fitting}) == 1
        if not decided:  # other columns do not say, or not the same
            fitting = [each for each in found.formats if _mark_of(each) == self.default]
        return next(iter((*fitting, *found.formats)), None), found.are_open and not decided


def find_conventions(
    found: Iterable[Candidates], decimal: str | None, day_first: bool | None, separator: str | None
) -> Conventions:
    """Return the conventions of a table: those given, else those of the columns in which one alone fits.

    Parameters
    ----------
    found : iterable of Candidates
        Those of all columns.
    decimal : {".", ","} or None
    day_first : bool or None
    separator : str or None
        What separates the columns of a file. Where semicolons do, commas are decimal marks.
    """
    marks = ({_mark_of(each) for each in one.formats} for one in found)
    agreed = {mark for first in marks if len(first) == 1 for mark in first if mark is not None}
    decimals = agreed & {".", ","} if decimal is None else {decimal}
    orders = agreed & {DAY_FIRST, MONTH_FIRST}
    if day_first is not None:
        orders = {DAY_FIRST if day_first else MONTH_FIRST}
    return Conventions(decimals, orders, None if separator == ";" else ".")


def _mark_of(each: Format) -> str | None:
    """Return what conventions decide: a decimal mark, or the form with the day or the month first."""
    if isinstance(each, NumberFormat):
        return each.decimal
    return next((form for form in each.forms if form in (DAY_FIRST, MONTH_FIRST)), None)
