"""Column types of a table: numeric, categorical or date features, and the target with its task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._validation import is_iterable, lookup, shown
from mlp_xp.tables._reading import DataError, check_frame, listed, normalised, parse_numbers

MAX_INTEGER_CLASSES = 20
"""Maximum number of distinct integers in a target of classes; with more it is a regression target.

A convention, not a measurement: ten digits and school grades are classes, ages and counts are not.
"""

NUMBER_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)

INDEX_COLUMN_PATTERN = re.compile(r"Unnamed: \d+$|__index_level_\d+__$")
"""Names that pandas gives to its index when it writes a table."""

N_CATEGORIES_ALWAYS_ALLOWED = 20
"""Number of distinct values up to which a text column is categorical however few rows there are.

With more, and more than one distinct value for two rows, the text is taken for names or identifiers. A
convention, chosen so that small tables keep their categories.
"""

TASKS = ("classification", "regression")


class Columns(NamedTuple):
    """Names of a table's columns by type.

    Attributes
    ----------
    numbers : tuple of str
        Numeric columns, to be scaled. Dates become numbers of days since 1970, truth values 0 and 1.
    categories : tuple of str
        Categorical columns, to be one-hot encoded.
    dates : tuple of str
        The subset of `numbers` that holds dates or times.
    left_out : dict of str
        For each column that is not used, the reason.

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import find_columns
    >>> columns = find_columns(pl.DataFrame({"mass": [1.5, 2.0], "kind": ["a", "b"], "id": [None, None]}))
    >>> columns.numbers, columns.categories
    (('mass',), ('kind',))
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    dates: tuple[str, ...]
    left_out: dict[str, str]


class Target(NamedTuple):
    """Values of the target column, and the task they imply.

    Attributes
    ----------
    values : ndarray of shape (n_samples,)
        Labels (text, int64 or bool) for classification, float64 for regression.
    task : {"classification", "regression"}
    reason : str
        Why it is that task, in words, for example "it is text".

    Examples
    --------
    >>> import polars as pl
    >>> from mlp_xp.tables import find_target
    >>> target = find_target(pl.Series("kind", ["a", "b", "a"]))
    >>> target.task, target.reason
    ('classification', 'it is text')
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
    """Classify a table's columns as numeric, categorical, date or unused.

    Parameters
    ----------
    frame : polars.DataFrame
    target : str, optional
        The column to predict; it is not a feature.
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
    check_frame(frame)
    if target is not None and (not isinstance(target, str) or target not in frame.columns):
        raise DataError(f"`target` must be one of the columns {listed(frame.columns)}, got {shown(target)}")
    features = [name for name in frame.columns if name != target]
    for argument, names in (("categorical", categorical), ("drop", drop)):
        if not is_iterable(names) or isinstance(names, Mapping):
            raise TypeError(f"`{argument}` must be a list of columns, got {shown(names)}")
        for name in names:
            if not isinstance(name, str) or name not in features:
                raise DataError(
                    f"`{argument}`: no column {shown(name)} among the features {listed(features)}"
                )
    kinds: dict[str, list[str]] = {"numbers": [], "categories": [], "dates": []}
    left_out = {}
    for column in frame.iter_columns():
        if column.name == target:
            continue
        kind, reason = "", "as asked"
        if column.name not in drop:
            kind, reason = _classify_column(normalised(column), column.name in categorical)
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


def _classify_column(column: pl.Series, categorical: bool) -> tuple[str, str]:
    """Return the type of a column ("numbers", "categories", "dates"), or "" and why it is left out."""
    name = column.name
    if not column.count():
        return "", "it is empty"
    if categorical:
        return "categories", ""
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        index = INDEX_COLUMN_PATTERN.match(name) and column.dtype.is_integer() and column.is_unique().all()
        return ("", "it has no name and numbers the rows") if index else ("numbers", "")
    if column.dtype.is_temporal():
        return "dates", ""
    if column.dtype != pl.String:
        raise DataError(
            f"the column {name!r} must hold numbers, text or dates, got {column.dtype}; it can be dropped"
        )
    non_numbers = _format_few_non_numbers(column)
    if non_numbers:
        raise DataError(
            f"the column {name!r} holds numbers except for {non_numbers}: "
            "correct that, or make it categorical, or drop it"
        )
    # Most cells being decimal commas means numbers; a few may be part of categories' names.
    commas = column.drop_nulls().str.contains(r"^[+-]?[0-9]+,[0-9]+$")
    if 2 * commas.sum() > len(commas):
        raise DataError(
            f"the column {name!r} holds decimal commas, which are numbers only where semicolons separate the "
            "columns: write points, or make it categorical, or drop it"
        )
    too_many = _reason_not_categorical(column)
    return ("", too_many) if too_many else ("categories", "")


def _format_few_non_numbers(column: pl.Series) -> str:
    """Return the non-numeric cells of a text column in which at least 90 % are numbers, else ""."""
    wrong = _non_numbers(column)
    few = len(wrong) <= column.count() / 10
    return listed(map(repr, wrong.unique(maintain_order=True).to_list()), limit=5) if few else ""


def _reason_not_categorical(column: pl.Series) -> str:
    """Return why a text column has too many distinct values to be categorical, or ""."""
    n_known, n_different = column.count(), column.drop_nulls().n_unique()
    if n_different <= max(N_CATEGORIES_ALWAYS_ALLOWED, n_known // 2):
        return ""
    return f"it is text with {n_different} different values in {n_known} rows"


def select_typed(frame: pl.DataFrame, numbers: Iterable[str], categories: Iterable[str]) -> pl.DataFrame:
    """Return the named columns, numbers as float64 and categories as text, with null for missing values.

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
    """Return a column as float64, or raise a DataError if it holds text or infinity."""
    column = normalised(column)
    if column.dtype == pl.String:
        wrong = _non_numbers(column)
        if len(wrong):
            raise DataError(
                f"the column {column.name!r} must hold numbers, got {listed(map(repr, wrong), 5)}"
            )
        column = parse_numbers(column)
    elif column.dtype.is_temporal():
        column = _to_days(column)
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"the column {column.name!r} must hold numbers, got {column.dtype}")
    numbers = column.cast(pl.Float64).fill_nan(None)
    infinite = numbers.is_infinite().fill_null(False)
    if infinite.any():
        raise DataError(f"the column {column.name!r} holds {infinite.sum()} infinite values")
    return numbers


def _to_days(column: pl.Series) -> pl.Series:
    """Return dates and times as days since 1970, durations and times of day as days."""
    if column.dtype == pl.Date:
        return column.cast(pl.Int32)
    if column.dtype == pl.Datetime:  # local time, so that the time of day is comparable across zones
        return column.dt.replace_time_zone(None).dt.epoch("us").cast(pl.Float64) / 86_400e6
    column = column.cast(pl.Duration("us")) if column.dtype == pl.Time else column
    return column.dt.total_microseconds().cast(pl.Float64) / 86_400e6


def _to_text(column: pl.Series) -> pl.Series:
    """Return a column as category names: 1, 1.0 and "1" get one name, and so do true and "True"."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise DataError(f"the column {column.name!r} must hold text or numbers, got {column.dtype}")
    text = column.cast(pl.String)
    return text.replace({name: _canonical_spelling(name) for name in text.drop_nulls().unique().to_list()})


def _canonical_spelling(text: str) -> str:
    """Return the canonical spelling of a number or truth value, and other text unchanged."""
    if not NUMBER_PATTERN.fullmatch(text):
        return text.lower() if text.lower() in ("true", "false") else text
    digits = f"{Decimal(text):f}" if float(text) else "0"  # Decimal, because a float would round
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _non_numbers(column: pl.Series) -> pl.Series:
    """Return the cells of a text column that are not numbers."""
    return column.filter(column.is_not_null() & parse_numbers(column).is_null())


# Target.


def find_target(column: pl.Series, task: str = "auto") -> Target:
    """Return a target column's values, and whether it asks for classification or regression.

    Parameters
    ----------
    column : polars.Series
        Without missing values.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto" is classification for text, for truth values, and for whole numbers with at most
        `MAX_INTEGER_CLASSES` distinct values, at most half as many as there are rows. It is regression for
        other numbers.

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
    if not isinstance(column, pl.Series):
        raise TypeError(f"`column` must be a polars Series, got {shown(column)}")
    column, what = normalised(column), f"the target {column.name!r}"
    if len(column) < 2:
        raise DataError(f"at least 2 rows are needed, got {len(column)}")
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean)):
        raise DataError(f"{what} must hold numbers or names of classes, got {column.dtype}")
    if column.dtype.is_numeric():
        _to_numbers(column)  # raises if a value is infinite
    chosen, reason = _choose_task(column)
    # An explicit task also accepts text that looks like mistyped numbers or identifiers.
    if task != "auto":
        chosen, reason = task, "as asked"
    elif column.dtype == pl.String:
        _check_class_names(column, what)
    if chosen == "regression":
        wrong = _non_numbers(column) if column.dtype == pl.String else column
        if len(wrong) and not column.dtype.is_numeric():
            raise DataError(f"{what} must hold numbers for regression, got {wrong[0]!r}")
        return Target(_to_numbers(column).to_numpy(), chosen, reason)
    labels = _labels(column)
    if len(np.unique(labels)) < 2:
        raise DataError(f"{what} must have at least two classes, got only {labels[0]!s}")
    return Target(labels, chosen, reason)


def _check_class_names(column: pl.Series, what: str) -> None:
    """Raise a DataError if a text target holds mostly numbers, or too many distinct values for classes."""
    if non_numbers := _format_few_non_numbers(column):
        raise DataError(
            f"{what} holds numbers except for {non_numbers}: correct that, or ask for classification"
        )
    if too_many := _reason_not_categorical(column):
        raise DataError(f"{what} does not name classes: {too_many}")


def _choose_task(column: pl.Series) -> tuple[str, str]:
    """Return the task that a target column implies, and the reason in words."""
    if not column.dtype.is_numeric():
        return "classification", "it is text" if column.dtype == pl.String else "it is true or false"
    if column.dtype.is_float() and not (column == column.round()).all():
        return "regression", "it has fractions"
    n_different = column.n_unique()
    if n_different > min(MAX_INTEGER_CLASSES, max(2, len(column) // 2)):
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
            pass  # a number does not fit in 64 bits
    return _to_text(column).to_numpy().astype(str)


def match_classes(column: pl.Series, classes: HostArray) -> HostArray:
    """Return a column's labels as elements of a model's `classes`; none may be missing.

    1, 1.0 and "1" are the same label. True equals "True", and 1 where the column or the classes are numbers.

    Raises
    ------
    DataError
        If a label is not one of the classes.
    """
    truths_are_numbers = classes.dtype.kind == "i" or normalised(column).dtype.is_numeric()
    # Compared with numbers, True is written "1".
    known = classes.astype(np.int8) if truths_are_numbers and classes.dtype == np.bool else classes
    names = {str(name): index for index, name in enumerate(known.tolist())}
    # An exact spelling takes precedence: classes may hold both "1" and "1.0".
    indices = {_canonical_spelling(name): index for name, index in names.items()} | names
    labels = column.cast(pl.Int8) if truths_are_numbers and column.dtype == pl.Boolean else column
    text = labels.cast(pl.String)
    different = text.unique().to_list()
    index_of = {label: indices.get(label, indices.get(_canonical_spelling(label))) for label in different}
    unknown = sorted(label for label, index in index_of.items() if index is None)
    if unknown:
        raise DataError(
            f"the target {column.name!r} has classes the model does not know: {listed(unknown)}; "
            f"it knows {listed(classes.tolist())}"
        )
    matched: HostArray = classes[np.array([index_of[label] for label in text.to_list()], dtype=np.int64)]
    return matched


def drop_unlabelled(frame: pl.DataFrame, target: str) -> tuple[pl.DataFrame, int]:
    """Return the rows that have a target, and the number of rows dropped.

    Raises
    ------
    DataError
        If there is no column of that name.
    """
    if target not in frame.columns:
        raise DataError(f"no column {target!r}; the columns are {listed(frame.columns)}")
    known = frame.filter(normalised(frame[target]).is_not_null())
    if len(frame) and not len(known):
        raise DataError(f"the target {target!r} has no values")
    return known, len(frame) - len(known)
