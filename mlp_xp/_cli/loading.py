"""Loading the data and making the estimator for the options of train and sweep."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlp_xp._cli.options import ESTIMATOR_OPTIONS
from mlp_xp._cli.screen import Screen
from mlp_xp.datasets import DATASETS, load
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from mlp_xp.tables._columns import (
    Columns,
    Target,
    drop_unlabelled,
    find_columns,
    find_target,
    select_typed,
)
from mlp_xp.tables._pipelines import (
    LabelledRows,
    PreparedData,
    class_counts,
    format_number,
    hold_out,
    imputed_values,
    labelled_rows,
    make_baseline,
    prepare,
    sample_weights,
)
from mlp_xp.tables._reading import DataError, dataset_frame, listed, read_frame
from mlp_xp.tables._runs import format_value

MAX_NUMBERS_LISTED = 6
"""Maximum number of numeric columns that the summary names; other lists have the limit of `listed`."""


class LoadedData(NamedTuple):
    """A table with its target and column types, split and preprocessed for training.

    Attributes
    ----------
    name : str
        Name of the data set or the file.
    target_name : str
    target : Target
    columns : Columns
    prepared : PreparedData
    n_without_target : int
        Number of rows left out because they have no target.
    missing : dict of int
        Number of missing values in each column that has any.
    """

    name: str
    target_name: str
    target: Target
    columns: Columns
    prepared: PreparedData
    n_without_target: int
    missing: dict[str, int]

    @property
    def baseline(self) -> dict[str, Any]:
        """The baseline model's parameters, from the training rows."""
        return make_baseline(self.prepared.task, self.prepared.splits["training"].y)

    @property
    def report_split(self) -> str:
        """The split for the baseline's scores and the pictures: "test", else "validation" or "training"."""
        splits = self.prepared.splits
        return next(split for split in ("test", "validation", "training") if split in splits)


def load_data(options: argparse.Namespace) -> LoadedData:
    """Read, check, split and preprocess the data that the options name.

    Raises
    ------
    DataError
    """
    name, frame, target_name = _read(options)
    frame, n_without = drop_unlabelled(frame, target_name)
    weight = sample_weights(frame, options.sample_weight)
    if weight is not None:  # rows of weight 0 must not affect the scaling, the split or the classes either
        frame, weight = frame.filter(weight > 0.0), weight[weight > 0.0]
    target = find_target(frame[target_name], options.task)
    features = frame.drop(options.sample_weight) if options.sample_weight else frame
    columns = find_columns(features, target_name, categorical=options.categorical, drop=options.drop)
    rows = LabelledRows(select_typed(features, columns.numbers, columns.categories), target.values, weight)
    training, test = hold_out(rows, target.task, options.test_fraction, options.random_state)
    splits = {"training": training}
    if options.val is not None:
        splits["validation"] = _validation_rows(options, target_name, target, columns)
    if test is not None:
        splits["test"] = test
    missing = {column.name: column.null_count() for column in rows.frame if column.null_count()}
    prepared = prepare(target.task, columns, splits, options.dtype)
    return LoadedData(name, target_name, target, columns, prepared, n_without, missing)


def _validation_rows(
    options: argparse.Namespace, target_name: str, target: Target, columns: Columns
) -> LabelledRows:
    """Return the rows of the table that ``--val`` names."""
    classes = np.unique(target.values) if target.task == "classification" else None
    features = columns.numbers, columns.categories
    try:
        return labelled_rows(read_frame(options.val), target_name, classes, features, options.sample_weight)
    except DataError as error:
        raise DataError(f"--val: {error}") from error


def _read(options: argparse.Namespace) -> tuple[str, pl.DataFrame, str]:
    """Return the name of the data, the table, and the name of its target column."""
    if options.data in DATASETS:
        data = load(options.data)
        return data.name, dataset_frame(data), options.target or data.target_name
    if "." not in options.data:  # a mistyped data set, as tables are recognised by their suffix
        raise DataError(
            f"unknown data {options.data!r}: it is none of {', '.join(DATASETS)}, nor a table's file"
        )
    path = Path(options.data)
    frame = read_frame(path)
    if frame.width < 2:
        raise DataError(
            f"{path}: at least one feature and the target are needed, got {frame.width} column(s)"
        )
    last = "y" if path.suffix.lower() == ".npz" else frame.columns[-1]
    return path.name, frame, options.target or last


def print_summary(loaded: LoadedData, screen: Screen) -> None:
    """Print the task, the target, the columns by type, the missing values and the rows of each split."""
    splits, columns, target = loaded.prepared.splits, loaded.columns, loaded.target
    n_features, n_without = len(columns.numbers) + len(columns.categories), loaded.n_without_target
    about = f"{len(target.values)} rows, {n_features} features, to predict {loaded.target_name}"
    screen.print(f"{loaded.name}: {about}")
    numbers = [name for name in columns.numbers if name not in columns.dates]
    training = splits["training"].frame
    n_categories = {name: training[name].drop_nulls().n_unique() for name in columns.categories}
    screen.print_fields(
        [
            ("task", f"{target.task} ({target.reason}; --task overrides this)"),
            ("target", _describe_target(target)),
            ("no target", f"in {n_without} rows, left out" if n_without else ""),
            ("numbers", listed(numbers, MAX_NUMBERS_LISTED)),
            ("dates", listed(columns.dates) + " (in days)" if columns.dates else ""),
            ("categories", listed(f"{name} ({count})" for name, count in n_categories.items())),
            ("missing", _describe_missing(loaded)),
            ("left out", "; ".join(f"{name}: {why}" for name, why in columns.left_out.items())),
            ("rows", ", ".join(f"{len(rows.y)} for {split}" for split, rows in splits.items())),
        ]
    )


def _describe_missing(loaded: LoadedData) -> str:
    filled = imputed_values(loaded.prepared.pipeline(None))
    return "; ".join(
        f"{name} {n}, filled with {format_value(filled[name])}" for name, n in loaded.missing.items()
    )


def _describe_target(target: Target) -> str:
    y = target.values
    if target.task == "regression":
        return f"mean {format_number(y.mean())}, from {format_number(y.min())} to {format_number(y.max())}"
    return listed((f"{name} {n} ({n / len(y):.0%})" for name, n in class_counts(y).items()))


def make_estimator(options: argparse.Namespace, task: str, hidden: tuple[int, ...] | None) -> Any:
    """Return an untrained estimator with the parameters given as options, and defaults for the others.

    Raises
    ------
    DataError, ValueError
        If an option does not apply to the task, or a value is invalid.
    """
    given = {option.parameter: getattr(options, option.parameter) for option in ESTIMATOR_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if hidden is not None:
        given["hidden_layer_sizes"] = hidden
    if len(given.get("activation", "")) == 1:
        given["activation"] = given["activation"][0]
    inapplicable = {"classification": "loss", "regression": "class_weight"}[task]
    if inapplicable in given:
        raise DataError(f"--{inapplicable.replace('_', '-')} is not for {task}")
    kind = MLPClassifier if task == "classification" else MLPRegressor
    estimator = kind(random_state=options.random_state, backend=options.backend, **given)
    estimator._check_parameters()
    return estimator


def file_sha256(data: str) -> str | None:
    """Return the SHA-256 of a table's file; None for a built-in data set."""
    if data in DATASETS:
        return None
    with Path(data).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
