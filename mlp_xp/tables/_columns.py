"""What the columns of a table are: numbers, categories, the target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._validation import lookup
from mlp_xp.tables._reading import DataError, listed, plain, spelt_numbers

MOST_CLASSES = 20
"""A target of more different whole numbers is an amount, unless the user says otherwise."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)

UNNAMED = re.compile(r"Unnamed: \d+$|__index_level_\d+__$")
"""How pandas calls the column that it numbers the rows with."""

MOST_CATEGORIES = 20
"""A text of more different values, most of which come only once, is a name or an identifier."""

TASKS = ("classification", "regression")


class Columns(NamedTuple):
    """What the columns of a table are.

    Attributes
    ----------
    numbers : tuple of str
        To be scaled. Dates are numbers of days since 1970, and truth values are 0 and 1.
    categories : tuple of str
        To be one-hot encoded.
    dates : tuple of str
        Those of the numbers that were dates or times.
    left_out : dict of str
        Why a column is none of them, by its name.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    dates: tuple[str, ...]
    left_out: dict[str, str]


class Target(NamedTuple):
    """What to predict.

    Attributes
    ----------
    values : ndarray of shape (n_samples,)
        Labels (text, int64 or bool) for classification, float64 for regression.
    task : {"classification", "regression"}
    reason : str
        Why it is that task, for people.
    """

    values: HostArray
    task: str
    reason: str


def find_columns(
    frame: pl.DataFrame,
    target: str | None = None,
    *,
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Columns:
    """Find out what the columns of a table are.

    Parameters
    ----------
    frame : polars.DataFrame
    target : str, optional
        The column to predict, which is none of them.
    categorical : sequence of str
        Columns of numbers that are codes of categories.
    drop : sequence of str
        Columns to leave out.

    Returns
    -------
    Columns

    Raises
    ------
    DataError
        If a name is unknown, a column holds neither numbers nor text, or nothing is left.

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import find_columns
    >>> find_columns(pl.DataFrame({"mass": [1.5, 2.0], "kind": ["a", "b"], "note": [None, None]})).left_out
    {'note': 'it is empty'}
    """
    features = [name for name in frame.columns if name != target]
    for option, names in (("--categorical", categorical), ("--drop", drop)):
        for name in names:
            if name not in features:
                raise DataError(f"{option}: no column {name!r} among the features {listed(features)}")
    kinds: dict[str, list[str]] = {"numbers": [], "categories": [], "dates": []}
    left_out = {}
    for column in frame.iter_columns():
        if column.name == target:
            continue
        asked = column.name in drop
        kind, reason = ("", "as asked") if asked else _kind(plain(column), column.name in categorical)
        if kind:
            kinds[kind].append(column.name)
        else:
            left_out[column.name] = reason
    if not any(kinds.values()):
        because = "; ".join(f"{name!r} is left out: {reason}" for name, reason in left_out.items())
        raise DataError(
            f"at least one feature and the target are needed ({because or 'there is no other column'})"
        )
    numbers = [name for name in frame.columns if name in kinds["numbers"] or name in kinds["dates"]]
    return Columns(tuple(numbers), tuple(kinds["categories"]), tuple(kinds["dates"]), left_out)


def _kind(column: pl.Series, categorical: bool) -> tuple[str, str]:
    """Return what a column is, or why it is left out."""
    name = column.name
    if not column.count():
        return "", "it is empty"
    if categorical:
        return "categories", ""
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        counts = UNNAMED.match(name) and column.dtype.is_integer() and column.is_unique().all()
        return ("", "it has no name and numbers the rows") if counts else ("numbers", "")
    if column.dtype.is_temporal():
        return "dates", ""
    if column.dtype != pl.String:
        raise DataError(
            f"the column {name!r} must hold numbers, text or dates, got {column.dtype}; it can be dropped"
        )
    stray = _stray(column)
    if stray:
        raise DataError(
            f"the column {name!r} holds numbers but for {stray}: "
            "correct that, or make it categorical, or drop it"
        )
    commas = column.drop_nulls().str.contains(r"^[+-]?[0-9]+,[0-9]+$")
    if 2 * commas.sum() > len(commas):
        raise DataError(
            f"the column {name!r} holds decimal commas, which are numbers only where semicolons separate the "
            "columns: write points, or make it categorical, or drop it"
        )
    too_many = _too_many(column)
    return ("", too_many) if too_many else ("categories", "")


def _stray(column: pl.Series) -> str:
    """Return the few cells of a text column that keep it from being numbers."""
    wrong = _not_numbers(column)
    few = len(wrong) <= column.count() / 10
    return listed(map(repr, wrong.unique(maintain_order=True).to_list()), most=5) if few else ""


def _too_many(column: pl.Series) -> str:
    """Return why a text column is no category, if so."""
    n_known, n_different = column.count(), column.drop_nulls().n_unique()
    if n_different <= max(MOST_CATEGORIES, n_known // 2):
        return ""
    return f"it is text with {n_different} different values in {n_known} rows"


def select(frame: pl.DataFrame, numbers: Iterable[str], categories: Iterable[str]) -> pl.DataFrame:
    """Return these columns, numbers as float64 and categories as text, with null where a value is missing.

    Raises
    ------
    DataError
        If a column is missing, or holds text or infinity where numbers are expected.
    """
    numbers, categories = list(numbers), list(categories)
    missing = [name for name in (*numbers, *categories) if name not in frame.columns]
    if missing:
        raise DataError(
            f"the column{'s' * (len(missing) > 1)} {listed(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing; the table has {listed(frame.columns)}"
        )
    return frame.select(
        *(_to_numbers(frame[name]) for name in numbers), *(_to_text(frame[name]) for name in categories)
    )


def _to_numbers(column: pl.Series) -> pl.Series:
    column = plain(column)
    if column.dtype == pl.String:
        wrong = _not_numbers(column)
        if len(wrong):
            raise DataError(
                f"the column {column.name!r} must hold numbers, got {listed(map(repr, wrong), 5)}"
            )
        column = spelt_numbers(column)
    elif column.dtype.is_temporal():
        column = _days(column)
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"the column {column.name!r} must hold numbers, got {column.dtype}")
    numbers = column.cast(pl.Float64).fill_nan(None)
    infinite = numbers.is_infinite().fill_null(False)
    if infinite.any():
        raise DataError(f"the column {column.name!r} holds {infinite.sum()} infinite values")
    return numbers


def _days(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Date:
        return column.cast(pl.Int32)
    if column.dtype == pl.Datetime:  # by the clock on the wall, wherever that was
        return column.dt.replace_time_zone(None).dt.epoch("us").cast(pl.Float64) / 86_400e6
    column = column.cast(pl.Duration("us")) if column.dtype == pl.Time else column
    return column.dt.total_microseconds().cast(pl.Float64) / 86_400e6


def _to_text(column: pl.Series) -> pl.Series:
    """Return names of categories, the same for 1, 1.0 and "1", and for true and "True"."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise DataError(f"the column {column.name!r} must hold text or numbers, got {column.dtype}")
    text = column.cast(pl.String)
    return text.replace({name: _canonical(name) for name in text.drop_nulls().unique().to_list()})


def _canonical(text: str) -> str:
    """Return one way to write a number or a truth value, and other text as it is."""
    if not NUMBER.fullmatch(text):
        return text.lower() if text.lower() in ("true", "false") else text
    digits = f"{Decimal(text):f}" if float(text) else "0"  # which rounds nothing
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _not_numbers(column: pl.Series) -> pl.Series:
    """Return what in a column of text is not a number."""
    return column.filter(column.is_not_null() & spelt_numbers(column).is_null())


# The target.


def find_target(column: pl.Series, task: str = "auto") -> Target:
    """Find out what a column asks for: classes, or values.

    Parameters
    ----------
    column : polars.Series
        Without missing values.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto" is classification for text, truth values and at most `MOST_CLASSES` different whole numbers
        of which each comes twice on average; regression for other numbers.

    Returns
    -------
    Target

    Raises
    ------
    DataError
        If the column does not fit the task, or has a single class.

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import find_target
    >>> find_target(pl.Series("price", [1.5, 2.0, 7.0])).task
    'regression'
    """
    lookup("task", task, dict.fromkeys(("auto", *TASKS)))
    column, what = plain(column), f"the target {column.name!r}"
    if len(column) < 2:
        raise DataError(f"at least 2 rows are needed, got {len(column)}")
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean)):
        raise DataError(f"{what} must hold numbers or names of classes, got {column.dtype}")
    if column.dtype.is_numeric():
        _to_numbers(column)  # which refuses infinite ones
    chosen, reason = _choose_task(column)
    if task != "auto":
        chosen, reason = task, "as asked"
    elif column.dtype == pl.String:
        _refuse_strange_names(column, what)
    if chosen == "regression":
        wrong = _not_numbers(column) if column.dtype == pl.String else column
        if len(wrong) and not column.dtype.is_numeric():
            raise DataError(f"{what} must hold numbers for regression, got {wrong[0]!r}")
        return Target(_to_numbers(column).to_numpy(), chosen, reason)
    labels = _labels(column)
    if len(np.unique(labels)) < 2:
        raise DataError(f"{what} must have at least two classes, got only {labels[0]!s}")
    return Target(labels, chosen, reason)


def _refuse_strange_names(column: pl.Series, what: str) -> None:
    if stray := _stray(column):
        raise DataError(f"{what} holds numbers but for {stray}: correct that, or ask for classification")
    if too_many := _too_many(column):
        raise DataError(f"{what} names no classes: {too_many}")


def _choose_task(column: pl.Series) -> tuple[str, str]:
    if not column.dtype.is_numeric():
        return "classification", "it is text" if column.dtype == pl.String else "it is true or false"
    if column.dtype.is_float() and not (column == column.round()).all():
        return "regression", "it has fractions"
    n_different = column.n_unique()
    if n_different > min(MOST_CLASSES, max(2, len(column) // 2)):
        return "regression", f"it has {n_different} different numbers"
    return "classification", f"it has only {n_different} different numbers, all whole"


def _labels(column: pl.Series) -> HostArray:
    """Return class labels as an array: truth values, integers, or text."""
    if column.dtype == pl.Boolean:
        return column.to_numpy()
    if column.dtype == pl.String:
        return column.to_numpy().astype(str)
    if column.dtype.is_integer() or (column == column.round()).all():
        try:
            return column.cast(pl.Int64).to_numpy()
        except pl.exceptions.PolarsError:
            pass  # beyond 64 bits
    return _to_text(column).to_numpy().astype(str)


def known_labels(column: pl.Series, classes: HostArray) -> HostArray:
    """Return a column's labels, of which none is missing, as a model with these classes knows them.

    1, 1.0 and "1" are the same, as are true, "True" and, where the other side has numbers, 1.

    Raises
    ------
    DataError
        If there are others.
    """
    truths_are_numbers = classes.dtype.kind == "i" or plain(column).dtype.is_numeric()
    known = classes.astype(np.int8) if truths_are_numbers and classes.dtype == np.bool else classes
    names = {str(name): place for place, name in enumerate(known.tolist())}
    # A name as it stands goes before another way to write it.
    places = {_canonical(name): place for name, place in names.items()} | names
    labels = column.cast(pl.Int8) if truths_are_numbers and column.dtype == pl.Boolean else column
    text = labels.cast(pl.String)
    found = {label: places.get(label, places.get(_canonical(label))) for label in text.unique().to_list()}
    strange = sorted(label for label, place in found.items() if place is None)
    if strange:
        raise DataError(
            f"the target {column.name!r} has classes the model does not know: {listed(strange)}; "
            f"it knows {listed(classes.tolist())}"
        )
    chosen: HostArray = classes[np.array([found[label] for label in text.to_list()], dtype=np.int64)]
    return chosen


def without_missing(frame: pl.DataFrame, target: str) -> tuple[pl.DataFrame, int]:
    """Leave out the rows whose target is missing; return how many they are, too.

    Raises
    ------
    DataError
        If there is no column of that name.
    """
    if target not in frame.columns:
        raise DataError(f"no column {target!r}; the columns are {listed(frame.columns)}")
    known = frame.filter(plain(frame[target]).is_not_null())
    if len(frame) and not len(known):
        raise DataError(f"the target {target!r} has no values")
    return known, len(frame) - len(known)
