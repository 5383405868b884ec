"""From what was asked for to checked rows and an untrained network; for training one or several."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._cli.options import ESTIMATOR_OPTIONS
from mlp_xp._cli.screen import Screen
from mlp_xp.datasets import DATASETS, load
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from mlp_xp.tables._columns import (
    Columns,
    Target,
    find_columns,
    find_target,
    known_labels,
    select,
    without_missing,
)
from mlp_xp.tables._pipelines import (
    Part,
    Prepared,
    class_counts,
    fillings,
    hold_out,
    make_baseline,
    prepare,
    rounded,
)
from mlp_xp.tables._reading import DataError, frame_of, listed, read_frame
from mlp_xp.tables._runs import shown

MOST_SHOWN = 6


class Problem(NamedTuple):
    """A table, ready to train on.

    Attributes
    ----------
    name : str
        Of the data.
    target_name : str
    target : Target
    columns : Columns
    data : Prepared
    n_without_target : int
        Rows that were left out.
    missing : dict of int
        How many values each column lacks, where it lacks any.
    """

    name: str
    target_name: str
    target: Target
    columns: Columns
    data: Prepared
    n_without_target: int
    missing: dict[str, int]

    @property
    def baseline(self) -> dict[str, Any]:
        """What a trivial model knows of the rows trained on."""
        return make_baseline(self.data.task, self.data.parts["training"].y)

    @property
    def drawn(self) -> str:
        """The part whose predictions tell most: what was trained on least."""
        return next(use for use in ("test", "validation", "training") if use in self.data.parts)


def load_problem(options: argparse.Namespace) -> Problem:
    """Read, check, split and prepare the data that the options name.

    Raises
    ------
    DataError
    """
    name, frame, target_name = _read(options)
    frame, n_without = without_missing(frame, target_name)
    weight = _weights(frame, options.sample_weight)
    if weight is not None:  # a row without weight is as if it were not there
        frame, weight = frame.filter(weight > 0.0), weight[weight > 0.0]
    target = find_target(frame[target_name], options.task)
    features = frame.drop(options.sample_weight) if options.sample_weight else frame
    columns = find_columns(features, target_name, categorical=options.categorical, drop=options.drop)
    whole = Part(select(features, columns.numbers, columns.categories), target.values, weight)
    training, test = hold_out(whole, target.task, options.test_fraction, options.random_state)
    parts = {"training": training}
    if options.val is not None:
        parts["validation"] = _validation(options, target_name, target, columns)
    if test is not None:
        parts["test"] = test
    missing = {column.name: column.null_count() for column in whole.frame if column.null_count()}
    data = prepare(target.task, columns, parts, options.dtype)
    return Problem(name, target_name, target, columns, data, n_without, missing)


def _read(options: argparse.Namespace) -> tuple[str, pl.DataFrame, str]:
    """Return the name of the data, the table, and its column to predict."""
    if options.data in DATASETS:
        data = load(options.data)
        return data.name, frame_of(data), options.target or data.target_name
    if "." not in options.data:
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


def _weights(frame: pl.DataFrame, name: str | None) -> HostArray | None:
    if name is None:
        return None
    weight = select(frame, [name], []).to_series()
    if weight.null_count():
        raise DataError(f"the column {name!r} of sample weights lacks {weight.null_count()} values")
    if not (weight >= 0.0).all() or not (weight > 0.0).any():
        raise DataError(f"the column {name!r} of sample weights must hold numbers >= 0, some above 0")
    return weight.to_numpy()


def _validation(options: argparse.Namespace, name: str, target: Target, columns: Columns) -> Part:
    try:
        frame, _ = without_missing(read_frame(options.val), name)
        if target.task == "classification":
            y = known_labels(frame[name], np.unique(target.values))
        else:
            y = find_target(frame[name], "regression").values
        weight = _weights(frame, options.sample_weight)
        return Part(select(frame, columns.numbers, columns.categories), y, weight)
    except DataError as error:
        raise DataError(f"--val: {error}") from error


def describe(problem: Problem, screen: Screen) -> None:
    """Say what was found in the table, and what is made of it."""
    parts, columns, target = problem.data.parts, problem.columns, problem.target
    n_rows = len(target.values)
    kinds = f"{len(columns.numbers) + len(columns.categories)} features"
    screen.say(f"{problem.name}: {n_rows} rows, {kinds}, to predict {problem.target_name}")
    known = dict(zip(columns.categories, _n_categories(problem)))
    screen.list(
        [
            ("task", f"{target.task} ({target.reason}; --task decides otherwise)"),
            ("target", _describe_target(target)),
            (
                "no target",
                f"in {problem.n_without_target} rows, left out" if problem.n_without_target else "",
            ),
            ("numbers", listed((name for name in columns.numbers if name not in columns.dates), MOST_SHOWN)),
            ("dates", listed(columns.dates) + " (in days)" if columns.dates else ""),
            ("categories", listed(f"{name} ({count})" for name, count in known.items())),
            ("missing", _describe_missing(problem)),
            ("left out", "; ".join(f"{name}: {why}" for name, why in columns.left_out.items())),
            ("rows", ", ".join(f"{len(part.y)} for {use}" for use, part in parts.items())),
        ]
    )


def _n_categories(problem: Problem) -> list[int]:
    return [
        problem.data.parts["training"].frame[name].drop_nulls().n_unique()
        for name in problem.columns.categories
    ]


def _describe_missing(problem: Problem) -> str:
    filled = fillings(problem.data.pipeline(None))
    return "; ".join(f"{name} {n}, filled with {shown(filled[name])}" for name, n in problem.missing.items())


def _describe_target(target: Target) -> str:
    y = target.values
    if target.task == "regression":
        return f"mean {rounded(y.mean())}, from {rounded(y.min())} to {rounded(y.max())}"
    return listed((f"{name} {n} ({n / len(y):.0%})" for name, n in class_counts(y).items()))


def make_estimator(options: argparse.Namespace, task: str, hidden: tuple[int, ...] | None) -> Any:
    """Return the estimator with what was asked for, and its own defaults for the rest.

    Raises
    ------
    DataError, ValueError
        If an option is for the other task, or does not fit.
    """
    given = {option.parameter: getattr(options, option.parameter) for option in ESTIMATOR_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if hidden is not None:
        given["hidden_layer_sizes"] = hidden
    if len(given.get("activation", "")) == 1:
        given["activation"] = given["activation"][0]
    foreign = {"classification": "loss", "regression": "class_weight"}[task]
    if foreign in given:
        raise DataError(f"--{foreign.replace('_', '-')} is not for {task}")
    kind = MLPClassifier if task == "classification" else MLPRegressor
    estimator = kind(random_state=options.random_state, backend=options.backend, **given)
    estimator._check_parameters()
    return estimator


def digest(data: str) -> str | None:
    """Return the SHA-256 of a table's file; None for data that come along."""
    if data in DATASETS:
        return None
    with Path(data).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
