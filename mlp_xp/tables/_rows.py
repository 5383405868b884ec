"""Rows of a table with their targets and weights, and how some of them are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from sklearn.model_selection import train_test_split

from mlp_xp._arrays import HostArray
from mlp_xp._processes import current_processes, shared
from mlp_xp._samples import Shard
from mlp_xp.tables._common import DataError
from mlp_xp.tables._parts import any_part, total
from mlp_xp.tables._schema import Schema
from mlp_xp.tables._targets import match_classes

MIN_ROWS_TO_HOLD_OUT = 20
"""Minimum number of rows for which a test split is made by default; chosen so that it has at least 4 rows."""


class LabelledRows(NamedTuple):
    """Typed features of some rows of a table, with their targets and weights.

    Attributes
    ----------
    frame : polars.DataFrame
        The features, as `Schema.read` returns them.
    y : ndarray of shape (n_samples,)
    sample_weight : ndarray of shape (n_samples,) or None
    shard : Shard or None
        Which rows of the whole these are, if other processes have the others.
    """

    frame: pl.DataFrame
    y: HostArray
    sample_weight: HostArray | None = None
    shard: Shard | None = None

    @classmethod
    def of(cls, frame: pl.DataFrame, y: HostArray, sample_weight: HostArray | None) -> LabelledRows:
        """Return rows, of several processes as parts of one table; all must call this."""
        processes = current_processes()
        shard = None if processes is None else Shard.of(processes, len(y))
        return cls(frame, y, sample_weight, shard)

    @property
    def n_total(self) -> int:
        """The number of rows, of all processes."""
        return len(self.y) if self.shard is None else self.shard.n_total

    def choose(self, numbers: HostArray) -> tuple[HostArray, Shard | None]:
        """Return the indices of rows with these numbers in the whole, of those that are here; their shard."""
        return (numbers, None) if self.shard is None else self.shard.choose(numbers, len(self.y))

    def take(self, numbers: HostArray) -> LabelledRows:
        """Return the rows with these numbers in the whole."""
        indices, shard = self.choose(numbers)
        weight = None if self.sample_weight is None else self.sample_weight[indices]
        return LabelledRows(self.frame[indices], self.y[indices], weight, shard)

    def gather(self, point: str, *arrays: HostArray) -> Sequence[HostArray] | None:
        """Return arrays of the rows; of several processes the first has those of all, and the others None."""
        return arrays if self.shard is None else self.shard.gather(point, *arrays)

    def compute(self, point: str, function: Callable[..., Any], *arrays: HostArray | None) -> Any:
        """Return ``function(*arrays)``, which of several processes the first computes of all their rows."""
        return function(*arrays) if self.shard is None else self.shard.compute(point, function, *arrays)


class KnownRows(NamedTuple):
    """The rows of a table that have a target, and a positive weight.

    Attributes
    ----------
    frame : polars.DataFrame
        The features.
    target : polars.Series
        As it is in the table.
    sample_weight : ndarray of shape (n_samples,) or None
    n_without_target : int
        Number of rows left out because they have no target, in the tables of all processes.
    """

    frame: pl.DataFrame
    target: pl.Series
    sample_weight: HostArray | None
    n_without_target: int


def known_rows(schema: Schema, frame: pl.DataFrame) -> KnownRows:
    """Return the rows of a table that have a target, read by its schema; of several processes a part each.

    Raises
    ------
    DataError
        If a column is missing, cells do not fit, weights are missing or negative, or no row has a target.
    """
    target = schema.read_target(frame, together=True)
    features = schema.read(frame, together=True)
    is_known = target.is_not_null()
    n_without, n_rows = total("rows without a target", np.array([(~is_known).sum(), len(target)])).tolist()
    if 0 < n_rows == n_without:
        raise shared(DataError(f"the target {target.name!r} has no values"))
    if schema.sample_weight is None:
        return KnownRows(features.filter(is_known), target.filter(is_known), None, n_without)
    (weight,) = schema.read_columns(frame, [schema.sample_weight], together=True)
    _check_weights(weight.filter(is_known))
    # Rows of weight 0 must not affect the scaling, the split or the classes either.
    chosen = is_known & (weight > 0.0).fill_null(False)
    weights = weight.filter(chosen).to_numpy()
    return KnownRows(features.filter(chosen), target.filter(chosen), weights, n_without)


def _check_weights(weight: pl.Series) -> None:
    """Raise a DataError if weights are missing or negative, or there are some and all are zero."""
    n_missing = total("sample weights", weight.null_count())
    if n_missing:
        raise shared(DataError(f"the column {weight.name!r} of sample weights lacks {n_missing} values"))
    are_negative = any_part("sample weights", not (weight >= 0.0).all())
    are_zero = any_part("sample weights", len(weight)) and not any_part(
        "sample weights", (weight > 0.0).any()
    )
    if are_negative or are_zero:
        message = f"the column {weight.name!r} of sample weights must hold numbers >= 0, some above 0"
        raise shared(DataError(message))


def labelled_rows(schema: Schema, frame: pl.DataFrame, classes: HostArray | None) -> LabelledRows:
    """Return the rows of another table that have a target.

    Parameters
    ----------
    schema : Schema
    frame : polars.DataFrame
    classes : ndarray of shape (n_classes,), or None for regression
        The labels trained on.

    Raises
    ------
    DataError
        If no row has a target, a column is missing, cells do not fit, or a label is unknown.
    """
    known = known_rows(schema, frame)
    if not total("rows to score", len(known.target)):
        raise shared(DataError("there is no row to score"))
    target = known.target
    y = target.cast(pl.Float64).to_numpy() if classes is None else match_classes(target, classes)
    return LabelledRows.of(known.frame, y, known.sample_weight)


def hold_out(
    rows: LabelledRows, task: str, fraction: float | None, seed: int
) -> tuple[LabelledRows, LabelledRows | None]:
    """Split rows into training and test rows, stratified by class where each class has enough rows.

    Each class is trained on: one with a single row is never tested. Where there are too few rows for all
    classes to be tested, the rows held out are drawn from all but one row of each class.

    Raises
    ------
    DataError
        If nothing would be left on one side, or too few rows to train on all classes.
    """
    if fraction is None:
        fraction = 0.2 if rows.n_total >= MIN_ROWS_TO_HOLD_OUT else 0.0
    if fraction == 0.0:
        return rows, None
    labels = rows.y if task == "classification" else np.zeros(len(rows.y), dtype=np.int8)
    kept, held = rows.compute("the test rows", partial(_divided, fraction=fraction, seed=seed), labels)
    return rows.take(kept), rows.take(held)


def _divided(labels: HostArray, *, fraction: float, seed: int) -> tuple[HostArray, HostArray]:
    """Return the numbers of the rows kept and held."""
    n_rows = len(labels)
    n_held = round(fraction * n_rows)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not 1 <= n_held < n_rows:
        raise DataError(f"a test fraction of {fraction:g} of {n_rows} rows leaves nothing on one side")
    if n_held > n_rows - len(counts):
        raise DataError(
            f"a test fraction of {fraction:g} of {n_rows} rows leaves too few for {len(counts)} classes"
        )
    return _stratified(codes, counts, n_held, seed) or _one_of_each_kept(codes, n_held, seed)


def assign_folds(rows: LabelledRows, n_folds: int, seed: int) -> HostArray:
    """Return the fold of each row, from 0, stratified by class, or by value; of the rows of all processes.

    The rows of each class are dealt to the folds in turn. So whichever fold is left out, each class is among
    the others; the only row of a class is in no fold: its number is -1. Of values, from the smallest on, as
    many as there are folds are dealt at once, one to each.
    """
    folds: HostArray = rows.compute("the folds", partial(_dealt, n_folds=n_folds, seed=seed), rows.y)
    return folds


def _dealt(y: HostArray, *, n_folds: int, seed: int) -> HostArray:
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(codes))
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    folds = np.empty(len(codes), dtype=np.int8)
    if y.dtype.kind == "f":
        rounds = random.random_sample((-(-len(codes) // n_folds), n_folds))
        folds[order] = np.argsort(rounds, axis=1).ravel()[: len(codes)]
    else:
        folds[order] = (np.arange(len(codes)) + random.randint(n_folds)) % n_folds
        folds[counts[codes] == 1] = -1
    return folds


def _stratified(
    codes: HostArray, counts: HostArray, n_held: int, seed: int
) -> tuple[HostArray, HostArray] | None:
    """Return the rows kept and held, with equal shares of classes; None if there are too few rows."""
    others, n_classes = np.flatnonzero(counts[codes] > 1), int(np.sum(counts > 1))
    if min(n_held, len(others) - n_held) < n_classes:
        return None
    kept, held = train_test_split(others, test_size=n_held, stratify=codes[others], random_state=seed)
    kept = np.concatenate([kept, np.flatnonzero(counts[codes] == 1)])
    return (kept, held) if len(np.unique(codes[kept])) == len(counts) else None


def _one_of_each_kept(codes: HostArray, n_held: int, seed: int) -> tuple[HostArray, HostArray]:
    """Return the rows kept, among them one of each class, and the rows held, drawn from the others."""
    order = np.random.RandomState(seed).permutation(len(codes))
    first = np.unique(codes[order], return_index=True)[1]
    others = np.delete(order, first)
    return np.concatenate([order[first], others[n_held:]]), others[:n_held]
