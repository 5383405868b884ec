"""Loading the data and making the estimator for the options of train and sweep."""

from __future__ import annotations

import argparse
import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlp_xp._arrays import HostArray
from mlp_xp._cli.options import ESTIMATOR_OPTIONS
from mlp_xp._cli.screen import Screen
from mlp_xp._processes import current_processes
from mlp_xp.datasets import DATASETS, load
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from mlp_xp.estimators._labels import classes_of
from mlp_xp.tables._common import AS_ASKED, IT_IS_EMPTY, DataError, RawTable, listed
from mlp_xp.tables._formats import MISSING_MARKERS, NumberFormat
from mlp_xp.tables._learning import learn_schema
from mlp_xp.tables._networks import Training
from mlp_xp.tables._parts import all_values
from mlp_xp.tables._pipelines import PreparedData, prepare
from mlp_xp.tables._preprocessing import check_magnitudes
from mlp_xp.tables._reading import STANDARD_INPUT, dataset_frame, is_folder, own_part, read_part, table_files
from mlp_xp.tables._rows import LabelledRows, hold_out, known_rows, labelled_rows
from mlp_xp.tables._runs import format_days, missing_in_words, missing_values
from mlp_xp.tables._schema import ColumnSchema, Schema
from mlp_xp.tables._scores import Baseline, class_counts, format_number
from mlp_xp.tables._settings import SETTINGS
from mlp_xp.tables._targets import Target, find_target

MAX_NUMBERS_LISTED = 6
"""Maximum number of numeric columns that the summary names; other lists have the limit of `listed`."""


class LoadedData(NamedTuple):
    """A table with its schema and target, split and preprocessed for training.

    Attributes
    ----------
    name : str
        Name of the data set or the file.
    target : Target
    target_summary : str
    classes : ndarray of shape (n_classes,) or None
        None for regression.
    schema : Schema
    prepared : PreparedData
    baseline : Baseline
        The baseline model of the training rows.
    n_rows : int
        Number of rows with a positive weight, also those without a target.
    n_without_target : int
        Number of rows left out because they have no target.
    missing : dict of int
        Number of missing values in each column that has any.
    days : dict of tuple of float
        The first and the last value of each column of dates.
    """

    name: str
    target: Target
    target_summary: str
    classes: HostArray | None
    schema: Schema
    prepared: PreparedData
    baseline: Baseline
    n_rows: int
    n_without_target: int
    missing: dict[str, int]
    days: dict[str, tuple[float, float]]

    @property
    def target_name(self) -> str:
        """Name of the target's column."""
        assert self.schema.target is not None
        return self.schema.target.name

    @property
    def report_split(self) -> str:
        """The split for the baseline's scores and the pictures: "test", else "validation" or "training"."""
        splits = self.prepared.splits
        return next(split for split in ("test", "validation", "training") if split in splits)


def load_data(options: argparse.Namespace) -> LoadedData:
    """Read, check, split and preprocess the data that the options name.

    Of several processes each reads a part of the rows.

    Raises
    ------
    DataError
    """
    name, table, target_name = _read(options)
    schema = learn_schema(
        table,
        target_name,
        task=options.task,
        categorical=options.categorical,
        drop=options.drop,
        keep=options.keep_column,
        sample_weight=options.sample_weight,
        missing=MISSING_MARKERS if options.na is None else options.na,
        decimal=options.decimal,
        day_first=None if options.dates is None else options.dates == "day-first",
    )
    known = known_rows(schema, table.frame)
    target = find_target(known.target, options.task)
    check_magnitudes(known.frame, schema.names("number"), options.dtype)
    rows = LabelledRows.of(known.frame, target.values, known.sample_weight)
    classes = classes_of(target.values).labels if target.task == "classification" else None
    training, test = hold_out(rows, target.task, options.test_fraction, options.random_state)
    splits = {"training": training}
    if options.val is not None:
        splits["validation"] = _validation_rows(options, schema, classes)
    if test is not None:
        splits["test"] = test
    fit_baseline = partial(Baseline.fit, target.task)
    return LoadedData(
        name,
        target,
        rows.compute("the target", partial(_describe_target, target.task), target.values),
        classes,
        schema,
        prepare(target.task, schema, splits, options.dtype, SETTINGS[options.settings].inputs),
        training.compute("the baseline", fit_baseline, training.y),
        rows.n_total + known.n_without_target,
        known.n_without_target,
        missing_values(known.frame),
        _first_and_last_days(schema, list(splits.values())),
    )


def _validation_rows(options: argparse.Namespace, schema: Schema, classes: HostArray | None) -> LabelledRows:
    """Return the rows of the table that ``--val`` names."""
    try:
        rows = labelled_rows(schema, read_part(options.val, options.encoding).frame, classes)
        check_magnitudes(rows.frame, schema.names("number"), options.dtype)
    except DataError as error:
        raise DataError(f"--val: {error}") from error
    return rows


def _read(options: argparse.Namespace) -> tuple[str, RawTable, str]:
    """Return the name of the data, the table, and the name of its target column."""
    if options.data in DATASETS:
        data, processes = load(options.data), current_processes()
        raw = RawTable(dataset_frame(data))
        raw = raw if processes is None else own_part(raw, processes)
        return data.name, raw, options.target or data.target_name
    path = Path(options.data)
    if "." not in options.data and options.data != STANDARD_INPUT and not is_folder(path):
        # A mistyped data set, as tables are recognised by their suffix.
        raise DataError(
            f"unknown data {options.data!r}: it is none of {', '.join(DATASETS)}, nor a table's file"
        )
    table = read_part(path, options.encoding)
    frame = table.frame
    if frame.width < 2:
        raise DataError(
            f"{path}: at least one feature and the target are needed, got {listed(map(repr, frame.columns))}"
            " alone: a text file's first line must name the columns, separated by ; or tab or | or ,"
        )
    last = "y" if path.suffix.lower() == ".npz" else frame.columns[-1]
    return path.name if path.name != STANDARD_INPUT else "standard input", table, options.target or last


def print_summary(loaded: LoadedData, screen: Screen) -> None:
    """Print the task, the target, the columns by kind, the missing values and the rows of each split."""
    splits, schema, target = loaded.prepared.splits, loaded.schema, loaded.target
    asked = target.reason == AS_ASKED
    about = f"{loaded.n_rows} rows, {len(schema.features)} features, to predict {loaded.target_name}"
    screen.print(f"{loaded.name}: {about}")
    screen.print_fields(
        [
            ("task", f"{target.task} ({target.reason}{'' if asked else '; --task overrides this'})"),
            ("target", loaded.target_summary + _describe_format(schema.target)),
            ("no target", f"in {loaded.n_without_target} rows, left out" if loaded.n_without_target else ""),
            ("numbers", _describe_numbers(schema)),
            ("dates", "; ".join(_describe_dates(loaded))),
            ("categories", listed(_describe_categories(loaded))),
            ("missing", "; ".join(missing_in_words(loaded.prepared.pipeline(None), loaded.missing))),
            ("left out", _describe_left_out(schema)),
            ("rows", ", ".join(f"{rows.n_total} for {split}" for split, rows in splits.items())),
        ]
    )


def _describe_numbers(schema: Schema) -> str:
    """Return the columns of numbers, those first that are written in an unusual way."""
    columns = [column for column in schema.features if column.kind in ("number", "truth")]
    written = {
        column.name: column.format.words() if isinstance(column.format, NumberFormat) else ""
        for column in columns
    }
    unusual = [f"{name} (read as {words})" for name, words in written.items() if words]
    return listed([*unusual, *(name for name, words in written.items() if not words)], MAX_NUMBERS_LISTED)


def _describe_dates(loaded: LoadedData) -> list[str]:
    """Return for each column of dates how they are read, the first and the last one."""
    described = []
    for column in loaded.schema.features:
        if column.kind != "date":
            continue
        first, last = (format_days(day, column) for day in loaded.days[column.name])
        read = f", read as {column.format.words()}" if column.format is not None else ""
        described.append(f"{column.name}{read}, {first} to {last}")
    return described


def _first_and_last_days(schema: Schema, splits: list[LabelledRows]) -> dict[str, tuple[float, float]]:
    """Return the first and the last value of each column of dates."""
    names = schema.names("date")
    own = [
        [(column.min(), column.max()) for column in rows.frame.select(names).iter_columns()]
        for rows in splits
    ]
    found = zip(*(columns for parts in all_values("dates", own) for columns in parts))
    ends = [[float(day) for pair in pairs for day in pair if day is not None] for pairs in found]
    return {name: (min(days), max(days)) for name, days in zip(names, ends)}


def _describe_categories(loaded: LoadedData) -> list[str]:
    """Return each column of categories with the number of them, of the training rows."""
    described = []
    for name, encoding in loaded.prepared.preprocessor.categories.items():
        rare = ", rare ones together" if encoding.has_rare else ""
        described.append(f"{name} ({len(encoding.values)}{rare})")
    return described


def _describe_left_out(schema: Schema) -> str:
    """Return the columns that are not used, with the reasons."""
    reasons = schema.left_out
    advice = " (--keep-column uses them)" if {*reasons.values()} - {IT_IS_EMPTY, AS_ASKED} else ""
    return "; ".join(f"{name}: {why}" for name, why in reasons.items()) + advice


def _describe_format(column: ColumnSchema | None) -> str:
    """Return how the numbers of a column are read, if that is unusual."""
    words = column.format.words() if column is not None and column.format is not None else ""
    return f", read as {words}" if words else ""


def _describe_target(task: str, y: HostArray) -> str:
    if task == "regression":
        return f"mean {format_number(y.mean())}, from {format_number(y.min())} to {format_number(y.max())}"
    return listed((f"{name} {n} ({n / len(y):.0%})" for name, n in class_counts(y).items()))


def make_training(
    options: argparse.Namespace, loaded: LoadedData, hidden: tuple[int, ...] | None
) -> Training:
    """Return a training with the parameters given as options, and for the others those of the settings.

    Raises
    ------
    DataError, ValueError
        If an option does not apply to the task, or a value is invalid.
    """
    task, settings = loaded.prepared.task, SETTINGS[options.settings]
    given = {option.parameter: getattr(options, option.parameter) for option in ESTIMATOR_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if hidden is not None:
        given["hidden_layer_sizes"] = hidden
    if len(given.get("activation", "")) == 1:
        given["activation"] = given["activation"][0]
    if given.get("early_stopping") == "none":
        given["early_stopping"] = False
    if settings.leaves_rows_out and "validation_fraction" in given:
        raise DataError(
            "--validation-fraction is for --settings scikit-learn; by the tabular ones each network leaves a "
            "fifth of the rows out"
        )
    inapplicable = {"classification": "loss", "regression": "class_weight"}[task]
    if inapplicable in given:
        raise DataError(f"--{inapplicable.replace('_', '-')} is not for {task}")
    parameters = settings.all_parameters(given, loaded.prepared.splits["training"].n_total)
    kind = MLPClassifier if task == "classification" else MLPRegressor
    estimator = kind(random_state=options.random_state, backend=options.backend, **parameters)
    estimator._check_parameters()
    n_networks = settings.n_networks if options.networks is None else options.networks
    return Training(estimator, loaded.prepared, n_networks, settings.leaves_rows_out)


def file_sha256(data: str) -> str | None:
    """Return the SHA-256 of a table's file, or of those of the files of a folder; None if it is none."""
    if data in DATASETS or data == STANDARD_INPUT:
        return None
    each = []
    for path in table_files(data):
        with path.open("rb") as file:
            each.append(hashlib.file_digest(file, "sha256").hexdigest())
    return each[0] if not is_folder(Path(data)) else hashlib.sha256("\n".join(each).encode()).hexdigest()
