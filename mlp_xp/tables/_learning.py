"""Learning the schema of a table from all of its rows: the rules that say what a column is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from mlp_xp._processes import current_processes
from mlp_xp._validation import check_bool, is_iterable, lookup, shown
from mlp_xp.tables._common import (
    AS_ASKED,
    IT_IS_EMPTY,
    DataError,
    RawTable,
    check_frame,
    clean,
    did_you_mean,
    listed,
)
from mlp_xp.tables._formats import (
    DAY_FIRST,
    MISSING_MARKERS,
    N_FIRST_CELLS,
    TIME_ALONE,
    Candidates,
    Conventions,
    DateFormat,
    Format,
    NumberFormat,
    find_candidates,
    find_conventions,
)
from mlp_xp.tables._parts import all_values, any_part, map_columns
from mlp_xp.tables._schema import ColumnSchema, Schema, WrongCells

TASKS = ("classification", "regression")

N_CATEGORIES_ALWAYS_ALLOWED = 20
"""Number of different values up to which a text column is categorical however few rows there are.

A convention, chosen so that small tables keep their categories.
"""

MAX_CATEGORIES = 100
"""Maximum number of categories of a column that have columns of their own."""

MAX_MIN_FREQUENCY = 10
"""Number of rows above which a category is never rare, however many rows the table has."""

MIN_SHARE_OF_KEPT_CATEGORIES = 0.5
"""Minimum share of rows whose category is frequent enough to be kept; with less the text is left out.

Names of people and of streets, comments and other text of many values are below it.
"""

MAX_SHARE_OF_TYPOS = 0.2
"""Maximum share of cells that are no numbers in a column of numbers, for them to be called mistakes.

With more it is text in which numbers occur, such as the numbers of tickets.
"""

MAX_WORDS_FOR_MISSING = 3
"""Maximum number of different words in a column of numbers that are taken to mean a missing value."""

MIN_ROWS_PER_NUMBER = 5
"""Minimum number of rows for each different value of a column of few numbers and words, to be categorical."""

MIN_ROWS_THAT_RISE = 20
"""Minimum number of rows of a column that rises by one, to be taken for a number of the rows."""

REMEDY = "correct them, or name those that mean a missing value with --na, or "
REMEDY_FOR_FEATURES = "make the column --categorical, or --drop it"

REMEDY_FOR_TARGETS = "ask for --task classification"
"""What a message says of cells that are no numbers, beside correcting them: a target cannot be dropped."""

NAME_OF_A_ROW_NUMBER = re.compile(
    r"(^|[\W_])(id|ids|no|nr|num|number|idx|row|key|uuid|guid|record)[\W_]*$|^(index|instant|serial)[\W_]*$"
    r"|^id[\W_]|^unnamed: \d+(\.\d+)*$|^level_\d+$|^__index_level_\d+__$",
    re.IGNORECASE,
)
"""Names of columns that identify the rows, such as those that pandas gives to its index."""

NAME_IN_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
"""Where words begin in a name such as PassengerId."""

MARK_FOR_MISSING = re.compile(r"[-\u2013\u2014_.*/\u2026]+")
"""Words that mean a missing value even among few numbers, where others name a category."""

NAME_OF_A_TIME = re.compile(
    "year|yr|quarter|month|week|day|date|hour|minute|second|time|period|season|decade|age", re.IGNORECASE
)
"""Names of columns that may rise by one and mean something."""


def min_frequency(n_rows: int) -> int:
    """Return in how many rows a category must be to have a column of its own, among many others."""
    return max(2, min(MAX_MIN_FREQUENCY, n_rows // 100))


class _Decision(NamedTuple):
    """What a column is, or why it is not used, or what is wrong with it; and a note on what was left open."""

    column: ColumnSchema | None = None
    left_out: str = ""
    problem: str = ""
    note: str = ""
    """Without the column's name, as several columns may have the same."""


def learn_schema(
    table: pl.DataFrame | RawTable,
    target: str | None = None,
    *,
    task: str = "auto",
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    sample_weight: str | None = None,
    missing: Sequence[str] = MISSING_MARKERS,
    decimal: str | None = None,
    day_first: bool | None = None,
) -> Schema:
    """Learn from all rows of a table what its columns are, and how their cells are read.

    Inside `mlp_xp.data_parallel` these are the rows of the tables of all processes.

    Parameters
    ----------
    table : polars.DataFrame
        Text, or values of other types; text is read as numbers, dates or truth values if all cells allow it.
    target : str, optional
        The column to predict; it is not a feature.
    task : {"auto", "classification", "regression"}, default="auto"
        For classification the target may also be text that looks like mistyped numbers.
    categorical : sequence of str
        Columns of numbers that are codes of categories.
    drop : sequence of str
        Columns to leave out. They are not looked at.
    keep : sequence of str
        Columns to use although they number the rows, or are text of many different values.
    sample_weight : str, optional
        The column of weights; it is not a feature.
    missing : sequence of str
        Words that mean a missing value. An empty cell always does.
    decimal : {".", ","}, optional
        The decimal mark, where the cells allow both.
    day_first : bool, optional
        Whether the day comes before the month, where the cells allow both.

    Returns
    -------
    Schema

    Raises
    ------
    DataError
        If a name is unknown, a column holds numbers except for some cells, which are named, or neither
        numbers nor text, or no feature is left.

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import learn_schema
    >>> frame = pl.DataFrame({"mass": ["1.5", "2"], "kind": ["a", "b"], "note": [None, None], "y": [0, 1]})
    >>> schema = learn_schema(frame, "y")
    >>> schema.names("number"), schema.names("category"), schema.left_out
    (['mass'], ['kind'], {'note': 'it is empty'})
    """
    raw = table if isinstance(table, RawTable) else RawTable(check_frame("table", table))
    lookup("task", task, dict.fromkeys(("auto", *TASKS)))
    if decimal is not None:
        lookup("decimal", decimal, dict.fromkeys((".", ",")))
    lists = {"categorical": categorical, "drop": drop, "keep": keep}
    for argument, words in {**lists, "missing": missing}.items():
        if not is_iterable(words) or isinstance(words, Mapping):
            raise TypeError(f"`{argument}` must be a list of text, got {shown(words)}")
    if not all(isinstance(word, str) for word in missing):
        raise TypeError(f"`missing` must be a list of text, got {shown(missing)}")
    if day_first is not None:
        check_bool("day_first", day_first)
    features = _feature_names(raw.frame, {"target": target, "sample_weight": sample_weight}, lists)
    known = {name: _known_cells(raw.frame[name], missing) for name in raw.frame.columns if name not in drop}
    cells = _deciding_cells(known)
    text = {
        name: column
        for name, column in cells.items()
        if column.dtype == pl.String and name not in categorical and not _is_coded(raw.frame[name])
    }
    found = map_columns(
        "the formats of columns", text, lambda _, column: find_candidates(column.drop_nulls())
    )
    conventions = find_conventions(found.values(), decimal, day_first, raw.separator)
    may_be_useless = set(features).difference(keep, categorical)

    def decide(name: str, column: pl.Series) -> tuple[_Decision, str]:
        decision = _decide(column, found.get(name), conventions, is_category=name in categorical)
        if name == target:
            decision = _decide_target(column, decision, task)
        return decision, _useless(column, decision) if name in may_be_useless else ""

    decided = map_columns("the kinds of columns", cells, decide)
    decisions = {name: decision for name, (decision, _) in decided.items()}
    useless = {name: reason for name, (_, reason) in decided.items() if reason}
    if not any(name in cells and decisions[name].column and name not in useless for name in features):
        # Numbers of the rows are better than nothing, but text that is different in each row is not.
        useless = {name: reason for name, reason in useless.items() if _is_category(decisions[name])}
    decisions |= {name: _Decision(left_out=reason) for name, reason in useless.items()}
    if sample_weight is not None and not decisions[sample_weight].problem:
        decisions[sample_weight] = _decide_weight(sample_weight, decisions[sample_weight])
    problems = [decision.problem for decision in decisions.values() if decision.problem]
    if problems:
        raise DataError(_with_usual_words("; ".join(problems), raw.frame.select(list(cells)), missing))
    chosen = [decisions[name].column for name in features if name in decisions]
    left_out = {name: decisions[name].left_out if name in decisions else AS_ASKED for name in features}
    left_out = {name: reason for name, reason in left_out.items() if reason}
    if not any(chosen):
        because = "; ".join(f"{name!r} is left out: {reason}" for name, reason in left_out.items())
        raise DataError(
            f"at least one feature and the target are needed ({because or 'there is no other column'})"
        )
    return Schema(
        tuple(column for column in chosen if column is not None),
        target=None if target is None else decisions[target].column,
        sample_weight=None if sample_weight is None else decisions[sample_weight].column,
        missing=tuple(missing),
        left_out=left_out,
        notes=_notes(decisions),
    )


def _with_usual_words(problem: str, frame: pl.DataFrame, missing: Sequence[str]) -> str:
    """Return a message with what to know of --na if it names it: the words that it is instead of."""
    texts = [column.str.strip_chars() for column in frame.iter_columns() if column.dtype == pl.String]
    words = [
        word
        for word in missing
        if any_part("words for missing values", any((text == word).any() for text in texts))
    ]
    if "--na" not in problem or not words:
        return problem
    return f"{problem} (--na is instead of {', '.join(words)}: name what stays missing too)"


def _notes(decisions: Mapping[str, _Decision]) -> tuple[str, ...]:
    """Return the notes on columns, one for all that have the same."""
    names: dict[str, list[str]] = {}
    for name, decision in decisions.items():
        if decision.note:
            names.setdefault(decision.note, []).append(name)
    return tuple(f"{listed(columns, 6)}: {note}" for note, columns in names.items())


def _feature_names(
    frame: pl.DataFrame, roles: Mapping[str, str | None], lists: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the names of the columns without a role, after checking that all names are those of columns."""
    for argument, name in roles.items():
        if name is not None and (not isinstance(name, str) or name not in frame.columns):
            raise DataError(
                f"`{argument}` must be one of the columns {listed(frame.columns)}, got {shown(name)}"
                f"{did_you_mean([name], frame.columns) if isinstance(name, str) else ''}"
            )
    if None not in roles.values() and len(set(roles.values())) < len(roles):
        raise DataError(f"{' and '.join(f'`{argument}`' for argument in roles)} must be different columns")
    features = [name for name in frame.columns if name not in roles.values()]
    for argument, names in lists.items():
        for name in names:
            if not isinstance(name, str) or name not in features:
                raise DataError(
                    f"`{argument}`: no column {shown(name)} among the features {listed(features)}"
                )
    return features


def _deciding_cells(cells: Mapping[str, pl.Series]) -> Mapping[str, pl.Series]:
    """Return what of columns decides what they are: of several processes not all cells that are no text.

    The kind of a column of numbers is its type. Whether it numbers the rows depends on all of its cells only
    if none is missing, none is a fraction and none comes twice; other columns keep some that show this.
    """
    if current_processes() is None:
        return cells
    typed = [name for name, column in cells.items() if column.dtype != pl.String]
    may_number = [cells[name].dtype.is_numeric() and _may_number_rows(cells[name]) for name in typed]
    parts = all_values("numbers of rows", may_number)
    all_may = {name: all(each) for name, each in zip(typed, zip(*parts))}
    return {
        name: column if all_may.get(name, True) else _telling_cells(column) for name, column in cells.items()
    }


def _may_number_rows(numbers: pl.Series) -> bool:
    return not numbers.null_count() and _are_whole(numbers) and numbers.n_unique() == len(numbers)


def _telling_cells(column: pl.Series) -> pl.Series:
    """Return a few cells: a known one, and if there are, a missing one, a fraction and two equal ones."""
    known = column.drop_nulls()
    told = [known.head(1), column.filter(column.is_null()).head(1)]
    if column.dtype.is_numeric():
        told.append(known.filter(known != known.round()).head(1) if known.dtype.is_float() else known.head(0))
        twice = known.filter(known.is_duplicated())
        told.append(twice.filter(twice == twice[0]).head(2) if len(twice) else twice)
    return pl.concat(told)


def _known_cells(column: pl.Series, missing: Sequence[str]) -> pl.Series:
    """Return a column with null for missing values, also for numbers that mean one."""
    cells = clean(column, missing)
    if not cells.dtype.is_numeric():
        return cells
    values, _ = ColumnSchema(column.name, "number", NumberFormat()).read(cells, missing)
    return cells.set(values.is_null(), None)


def _is_category(decision: _Decision) -> bool:
    return decision.column is not None and decision.column.kind == "category"


def _is_coded(column: pl.Series) -> bool:
    """Return whether a column's type says that it is a category, even if its names look like numbers."""
    return column.dtype in (pl.Categorical, pl.Enum)


def _decide(
    cells: pl.Series, found: Candidates | None, conventions: Conventions, *, is_category: bool
) -> _Decision:
    """Return what a column is, by its cells alone; `found` is None for what is not read from text."""
    name, dtype = cells.name, cells.dtype
    if not cells.count():
        return _Decision(left_out=IT_IS_EMPTY)
    if is_category or (dtype == pl.String and found is None):
        return _Decision(ColumnSchema(name, "category", NumberFormat() if _are_codes(cells) else None))
    if found is not None:
        return _decide_text(cells, found, conventions)
    if dtype == pl.Boolean:
        return _Decision(ColumnSchema(name, "truth"))
    if dtype.is_temporal():
        forms = {pl.Time: (TIME_ALONE,), pl.Duration: ()}.get(dtype.base_type(), ("year-month-day",))
        return _Decision(ColumnSchema(name, "date", DateFormat(forms) if forms else None))
    if dtype.is_numeric():
        return _Decision(ColumnSchema(name, "number", NumberFormat()))
    return _Decision(
        problem=f"the column {name!r} must hold numbers, text or dates, got {dtype}; --drop leaves it out"
    )


def _decide_text(cells: pl.Series, found: Candidates, conventions: Conventions) -> _Decision:
    """Return what a column of text is."""
    name, category = cells.name, _Decision(ColumnSchema(cells.name, "category"))
    lower = cells.str.to_lowercase()
    if lower.is_in(["true", "false"]).any() and lower.is_in(["true", "false", "1", "0"]).all():
        return _Decision(ColumnSchema(name, "truth"))
    written, by_default = conventions.choose(found)
    if written is None:
        return category
    kind, plural = ("number", "numbers") if isinstance(written, NumberFormat) else ("date", "dates")
    note = _note_of_default(written) if by_default else ""
    if found.n_fitting == cells.count():
        return _Decision(ColumnSchema(name, kind, written), note=note)
    stray = cells.is_not_null() & written.read(cells).is_null()
    words = cells.filter(stray).unique(maintain_order=True)
    are_marks, has_digits = _are_marks(words), bool(words.str.contains("[0-9]").any())
    few = WrongCells.of(cells, stray, plural)
    problem = f"the column {name!r} holds {plural} except for {few.listed()}"
    if few.n_cells == 1 and few.first[0][0] == 1 and not are_marks:
        return _Decision(problem=f"{problem} (does that row name units?): {REMEDY}{REMEDY_FOR_FEATURES}")
    n_different = cells.drop_nulls().n_unique()
    if n_different <= min(N_CATEGORIES_ALWAYS_ALLOWED, cells.count() / MIN_ROWS_PER_NUMBER) and not are_marks:
        return category
    if are_marks or (len(words) <= MAX_WORDS_FOR_MISSING and not has_digits):
        where = f" (row {few.first[0][0]})" if few.n_cells == 1 else ""
        note = f"{listed(map(repr, words))}{where} counts as a missing value"
        return _Decision(ColumnSchema(name, kind, written, tuple(words)), note=note)
    if stray.sum() > MAX_SHARE_OF_TYPOS * cells.count():
        return category
    return _Decision(problem=f"{problem}: {REMEDY}{REMEDY_FOR_FEATURES}")


def _are_codes(cells: pl.Series) -> bool:
    """Return whether categories are numbers or truth values, which may be written in several ways."""
    if cells.dtype != pl.String:
        return cells.dtype.is_numeric() or cells.dtype == pl.Boolean
    is_number = NumberFormat().read(cells).is_not_null()
    return bool((is_number | cells.str.to_lowercase().is_in(["true", "false"])).all())


def _are_marks(words: Iterable[str]) -> bool:
    """Return whether words mean a missing value wherever they are."""
    return all(MARK_FOR_MISSING.fullmatch(word) for word in words)


def _note_of_default(written: Format) -> str:
    """Return a note on a column of which neither its cells nor others say how it is to be read."""
    if isinstance(written, NumberFormat):
        other = "," if written.decimal == "." else "."
        words = written.words() or "1234.5"
        return f"read as {words}, as no cell decides (--decimal {other} reads it the other way)"
    other = "month-first" if DAY_FIRST in written.forms else "day-first"
    return f"read as {written.words()}, as no cell decides (--dates {other} reads it the other way)"


def _useless(cells: pl.Series, decision: _Decision) -> str:
    """Return why a column says nothing about rows that are not in the table; "" if it may."""
    if decision.column is None:
        return ""
    if _is_category(decision):
        return _why_no_categories(cells)
    if decision.column.kind != "number" or cells.null_count():
        return ""
    numbers = cells
    if cells.dtype == pl.String:
        written = decision.column.format
        assert isinstance(written, NumberFormat)
        if not _are_whole(written.read(cells.head(N_FIRST_CELLS))):
            return ""
        numbers = written.read(cells)
    if numbers.null_count() or numbers.n_unique() < len(numbers) or not _are_whole(numbers):
        return ""
    name = NAME_IN_CAPITALS.sub("_", cells.name)
    if NAME_OF_A_ROW_NUMBER.search(name):
        return "it numbers the rows"
    rises = len(numbers) >= MIN_ROWS_THAT_RISE and bool((numbers.diff().drop_nulls() == 1).all())
    return "it numbers the rows" if rises and not NAME_OF_A_TIME.search(name) else ""


def _are_whole(numbers: pl.Series) -> bool:
    return numbers.dtype.is_integer() or bool((numbers == numbers.round()).all())


def _why_no_categories(cells: pl.Series) -> str:
    """Return why a column has too many different values to be categorical; "" if it has not."""
    n_known, n_different = cells.count(), cells.drop_nulls().n_unique()
    if n_different <= N_CATEGORIES_ALWAYS_ALLOWED:
        return ""
    counts = cells.drop_nulls().rename("value").value_counts(sort=True, name="count")["count"]
    frequent = counts.filter(counts >= min_frequency(len(cells))).head(MAX_CATEGORIES)
    if frequent.sum() >= MIN_SHARE_OF_KEPT_CATEGORIES * n_known:
        return ""
    return f"it is text with {n_different} different values in {n_known} rows"


def _decide_target(cells: pl.Series, decision: _Decision, task: str) -> _Decision:
    """Return what the target is: as a feature, but what is no number is a class, or a mistake."""
    what = f"the target {cells.name!r}"
    column, classes = decision.column, _Decision(ColumnSchema(cells.name, "category"))
    if not cells.count():
        return _Decision(problem=f"{what} has no values")
    is_date = column is not None and column.kind == "date"
    if (decision.problem or is_date) and cells.dtype == pl.String and task == "classification":
        return classes
    if decision.problem and cells.dtype == pl.String:
        problem = decision.problem.replace(f"the column {cells.name!r}", what, 1)
        return _Decision(problem=problem.replace(REMEDY_FOR_FEATURES, REMEDY_FOR_TARGETS))
    if decision.problem or is_date:
        return _Decision(problem=f"{what} must hold numbers or names of classes, got {_type_in_words(cells)}")
    too_many = _why_no_categories(cells)
    if column is not None and not _are_marks(column.missing):  # such rows would be left out without a word
        if task == "regression" or (task == "auto" and too_many):
            words = listed(map(repr, column.missing))
            return _Decision(
                problem=f"{what} holds numbers except for {words}: if that means a missing value, name it "
                f"with --na, or {REMEDY_FOR_TARGETS}"
            )
        return classes
    if _is_category(decision) and too_many and task != "classification":
        return _Decision(problem=f"{what} does not name classes: {too_many}")
    return decision


def _decide_weight(name: str, decision: _Decision) -> _Decision:
    """Return what the column of weights is."""
    if decision.column is not None and decision.column.kind in ("number", "truth"):
        return decision
    return _Decision(problem=f"the sample weights {name!r} must hold numbers")


def _type_in_words(cells: pl.Series) -> str:
    return "dates" if cells.dtype == pl.String or cells.dtype.is_temporal() else str(cells.dtype)
