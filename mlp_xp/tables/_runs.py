"""Run folders: a trained pipeline as plain values, with its description, history and scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._disk.folders import write_json
from mlp_xp._disk.json_codec import load_json
from mlp_xp._functions import set_public_module
from mlp_xp._messages import first_line
from mlp_xp._processes import together
from mlp_xp._training.history import History
from mlp_xp._validation import check_path
from mlp_xp.files._models import ModelFileError, load_model, save_model
from mlp_xp.tables._common import DataError, listed
from mlp_xp.tables._formats import TIME_ALONE, DateFormat
from mlp_xp.tables._frames import as_table
from mlp_xp.tables._parts import all_values, total
from mlp_xp.tables._pipelines import Pipeline
from mlp_xp.tables._plain_values import described_value, from_plain, to_plain
from mlp_xp.tables._preprocessing import Preprocessor
from mlp_xp.tables._reading import read_part
from mlp_xp.tables._rows import LabelledRows, labelled_rows
from mlp_xp.tables._schema import ColumnSchema, Schema
from mlp_xp.tables._scores import Baseline, format_number, score

FORMAT_VERSION = 3
"""Version of the folder's format, in its `pipeline.json`; a newer one is refused."""

FORMER_VERSION = 2
"""The version before, in which numbers have one input each; it is read too."""

PIPELINE_FILE, NETWORK_FILE, DESCRIPTION_FILE, METRICS_FILE, HISTORY_FILE, COMMAND_FILE = (
    "pipeline.json",
    "network.safetensors",
    "run.json",
    "metrics.json",
    "history.json",
    "command.txt",
)

FORMER_PIPELINE_FILE = "pipeline.skops"
"""The pipeline of the folder's first format: an object graph, which cannot be loaded safely."""

PARTIAL_FILE = "unfinished-training.json"
"""What there is in the folder of a training under way: what it was begun with."""

RUN_FILES = (
    *(PIPELINE_FILE, NETWORK_FILE, METRICS_FILE, HISTORY_FILE, COMMAND_FILE, "*.png"),
    FORMER_PIPELINE_FILE,
)
"""What there is in the folder of a run beside its description: names, and patterns of names."""

MAX_DAYS_OF_A_DATE = 2_900_000
"""Largest number of days since 1970 that is written as a date, whose year has four digits."""

MAX_JSON_BYTES = 2**26
"""Maximum size of a JSON file of a run, which takes a multiple of it in memory."""


@dataclass(frozen=True)
class _Document:
    """The content of `pipeline.json`: all of a run but its network, and a checksum of both."""

    format: int
    sha256: str
    schema: Schema
    preprocessor: Preprocessor
    baseline: Baseline


class Run(NamedTuple):
    """A trained pipeline, loaded from the folder that ``mlp-xp train --out`` wrote.

    Attributes
    ----------
    path : Path
    pipeline : Pipeline
        From a table's columns to predictions: its `schema`, `preprocessor` and `estimator`.
    baseline : Baseline
        The class frequencies or the mean of the training rows.
    description : dict
        The content of `run.json`: data, columns, settings, versions, the command.

    See Also
    --------
    load_run

    Examples
    --------
    >>> from mlp_xp.tables import load_run
    >>> run = load_run("run/")  # doctest: +SKIP
    >>> run.predict("new.csv")  # doctest: +SKIP
    """

    path: Path
    pipeline: Pipeline
    baseline: Baseline
    description: dict[str, Any]

    @property
    def classes(self) -> HostArray | None:
        """The class labels, in the order of the probabilities; None for regression."""
        return self.pipeline.classes

    @property
    def target(self) -> str:
        """The name of the column that is predicted."""
        assert self.pipeline.schema.target is not None
        return self.pipeline.schema.target.name

    def predict(self, table: Any, encoding: str | None = None) -> pl.DataFrame:
        """Return the predictions for a table: the class and each class's probability, or the value.

        Parameters
        ----------
        table : DataFrame of polars or pandas, table of Arrow, or path of a file
            Must have the columns trained on, in any order; other columns are not looked at. Its cells are
            read as those of the training were: text is a number or a date if it is written as there.
        encoding : str, optional
            Of a text file; UTF-8 by default.

        Returns
        -------
        polars.DataFrame
            One row for each row of the table.

        Raises
        ------
        DataError
            If columns are missing, or hold cells that do not fit, all of which are named; or if numbers are
            so large that predictions overflow.
        """
        return as_predictions(self, self.pipeline.checked_outputs(self.read(table, encoding)))

    def read(self, table: Any, encoding: str | None = None) -> pl.DataFrame:
        """Return the columns trained on of a table, typed as `predict` uses them.

        Parameters
        ----------
        table, encoding
            As of `predict`.

        Returns
        -------
        polars.DataFrame
            Numbers, dates as days since 1970 and truth values as float64, categories as text, missing values
            as null.
        """
        return self.pipeline.read(as_table(table, encoding).frame)

    def evaluate(self, table: Any, encoding: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the scores of the predictions for a table with the target, and those of a baseline.

        Parameters
        ----------
        table, encoding
            As of `predict`, with the target; rows without a target are left out. Inside
            `mlp_xp.data_parallel` the scores are of the rows of all processes: each passes its own, or all
            the same path, of whose table each reads a part.

        Returns
        -------
        scores, baseline : dict
            For classification "accuracy", "balanced_accuracy", "roc_auc" and "log_loss"; for regression "r2",
            "mae" and "rmse". None where a score is not defined. The baseline predicts the class frequencies
            or the mean of the training rows.

        Raises
        ------
        DataError
            As of `predict`, or if a label is unknown.
        """
        with together("evaluate"):
            is_path = isinstance(table, (str, Path))
            frame = (read_part(table, encoding) if is_path else as_table(table, encoding)).frame
            rows = run_rows(self, frame)
            outputs = self.pipeline.checked_outputs(rows.frame, together=True)
            return score_rows(self, rows, outputs), score_baseline(self, rows)


def as_predictions(run: Run, outputs: HostArray) -> pl.DataFrame:
    """Return a table of what the network's outputs predict."""
    target, classes = run.target, run.classes
    if classes is None:
        return pl.DataFrame({f"predicted {target}": outputs})
    columns = {f"probability {name}": outputs[:, index] for index, name in enumerate(classes.tolist())}
    return pl.DataFrame({f"predicted {target}": classes[np.argmax(outputs, axis=1)], **columns})


def run_rows(run: Run, frame: pl.DataFrame) -> LabelledRows:
    """Return the rows of a table that have a target, read as the run's training rows."""
    run.pipeline.check_types(frame)
    return labelled_rows(run.pipeline.schema, frame, run.classes)


def score_rows(run: Run, rows: LabelledRows, outputs: HostArray) -> dict[str, Any]:
    """Return the scores of the network's outputs for labelled rows, of all processes."""
    rate = partial(score, run.pipeline.task, classes=run.classes)
    scores: dict[str, Any] = rows.compute("the scores", rate, rows.y, outputs)
    return scores


def score_baseline(run: Run, rows: LabelledRows) -> dict[str, Any]:
    """Return the scores of the baseline, fitted on the training rows, on labelled rows."""
    return score_rows(run, rows, run.baseline.outputs(len(rows.y)))


def table_notes(run: Run, frame: pl.DataFrame, features: pl.DataFrame) -> list[str]:
    """Return notes on what predictions ignore or replace: unused columns, missing values, new categories.

    Parameters
    ----------
    run : Run
    frame : polars.DataFrame
        The table as it was read.
    features : polars.DataFrame
        Its features, as `Schema.read` returns them.
    """
    schema, preprocessor = run.pipeline.schema, run.pipeline.preprocessor
    roles = [role.name for role in (schema.target, schema.sample_weight) if role is not None]
    expected = {*features.columns, *roles, *schema.left_out}
    unused = [name for name in frame.columns if name not in expected]
    notes = [f"not used: {listed(unused)}"] if unused else []
    for name, encoding in preprocessor.categories.items():
        if encoding.has_rare:
            continue
        column = features[name]
        unseen = column.filter(column.is_not_null() & ~column.is_in(list(encoding.values)))
        found = all_values("unseen values", (len(unseen), unseen.unique(maintain_order=True)))
        if n_unseen := sum(count for count, _ in found):
            examples = listed(pl.concat(values for _, values in found).unique(maintain_order=True), 5)
            notes.append(f"{name}: in {n_unseen} rows values unseen in training: {examples}")
    missing = missing_values(features)
    if missing:
        notes.append("missing: " + "; ".join(missing_in_words(run.pipeline, missing)))
    return notes


def missing_values(features: pl.DataFrame) -> dict[str, int]:
    """Return the numbers of missing values in the columns that have any, in the tables of all processes."""
    counts = total("missing values", np.array([column.null_count() for column in features]))
    return {name: count for name, count in zip(features.columns, counts.tolist()) if count}


def missing_in_words(pipeline: Pipeline, missing: dict[str, int]) -> list[str]:
    """Return columns with their numbers of missing values, by what stands for them."""
    by_filling: dict[str, list[str]] = {}
    filled = pipeline.preprocessor.filled()
    columns = {column.name: column for column in pipeline.schema.features}
    for name, count in missing.items():
        what = _filling(filled[name], columns[name])
        by_filling.setdefault(what, []).append(f"{name} {count}")
    return [f"{listed(counted)}, {what}" for what, counted in by_filling.items()]


def _filling(value: float | str, column: ColumnSchema) -> str:
    """Return in words what stands for a missing value of a column: dates as dates."""
    if isinstance(value, str):
        return f"filled with {value!r}" if value else "a category of their own"
    written = format_days(value, column) if column.kind == "date" else format_number(value)
    return f"filled with {written}"


def format_days(days: float, column: ColumnSchema) -> str:
    """Format a value of a column of dates: a date with its time unless it is midnight, or a time of day."""
    if abs(days) > MAX_DAYS_OF_A_DATE or not isinstance(column.format, DateFormat):
        return f"{days:.4g} days"
    moment = np.datetime64(round(days * 86_400), "s")
    date, _, clock = str(moment).partition("T")
    if column.format.forms == (TIME_ALONE,):
        return clock
    return date if clock == "00:00:00" else f"{date} {clock}"


# Write.


def write_run(folder: Path, run: Run, histories: Sequence[History]) -> None:
    """Write a run into an existing folder.

    The weights come first: if a later file fails, they are not lost.

    Parameters
    ----------
    folder : Path
    run : Run
    histories : sequence of History
        Of each network of which the run's is the average, or of that one.
    """
    network = run.pipeline.estimator
    save_model(folder / NETWORK_FILE, network)
    document = _Document(FORMAT_VERSION, "", run.pipeline.schema, run.pipeline.preprocessor, run.baseline)
    plain = to_plain(document)
    plain["sha256"] = _checksum(plain, folder / NETWORK_FILE)
    write_json(folder / PIPELINE_FILE, plain)
    write_json(folder / DESCRIPTION_FILE, run.description)
    (folder / COMMAND_FILE).write_text(run.description["command"] + "\n", encoding="utf-8")
    records = [
        {"network": number, **record} if len(histories) > 1 else record
        for number, history in enumerate(histories, 1)
        for record in history
    ]
    write_json(folder / HISTORY_FILE, _without_non_finite(records))


def _without_non_finite(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace NaN and infinity by None, as JSON cannot hold them."""
    return [
        {name: value if np.isfinite(value) else None for name, value in record.items()} for record in records
    ]


def _checksum(document: dict[str, Any], network: Path) -> str:
    """Return the SHA-256 of a document of plain values, itself left out, and of its network's file."""
    with network.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256")
    checksum.update(json.dumps({**document, "sha256": ""}, sort_keys=True).encode())
    return checksum.hexdigest()


# Read.


def load_run(path: str | Path) -> Run:
    """Load a run from its folder. It holds plain values only: no code in it can run, and no file is opened.

    Parameters
    ----------
    path : str or Path
        The folder.

    Returns
    -------
    Run

    Raises
    ------
    DataError
        If the path is not the folder of a run, or the run is damaged or altered, or has another format. The
        checksum detects damage; it does not prove who made the run.
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import subprocess, sys, tempfile
    >>> import polars as pl
    >>> from mlp_xp.tables import load_run
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     command = [sys.executable, "-m", "mlp_xp", "train", "xor", "--quiet", "--out", f"{folder}/run"]
    ...     _ = subprocess.run(command, check=True)
    ...     run = load_run(f"{folder}/run")
    >>> run.predict(pl.DataFrame({"a": [0.0, 1.0], "b": [1.0, 1.0]})).columns
    ['predicted a xor b', 'probability false', 'probability true']
    """
    path = check_path(path)
    try:
        return _load_run(path)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror})") from error
    except ModelFileError as error:
        raise DataError(first_line(error)) from error
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DataError(f"{path}: damaged or altered ({first_line(error):.300})") from error


def _load_run(path: Path) -> Run:
    """Load a run; raise all kinds of errors."""
    if (path / FORMER_PIPELINE_FILE).is_file() and not (path / PIPELINE_FILE).is_file():
        raise DataError(
            f"{path}: format 1 cannot be loaded safely, and is not: train again, as {COMMAND_FILE} says"
        )
    if any((each / PARTIAL_FILE).is_file() for each in (path, path.resolve().parent)):
        raise DataError(
            f"{path}: a training that has not ended, not the folder of a run; the command that began it "
            "goes on with it, with --resume"
        )
    for name in (DESCRIPTION_FILE, PIPELINE_FILE, NETWORK_FILE):
        if not (path / name).is_file():
            raise DataError(f"{path}: not the folder of a run: it has no {name}")
        if not (path / name).stat().st_size:  # as have files of the system, of which some have no end
            raise DataError(f"{path}: damaged: its {name} is empty")
    description, document = (load_object(path / name) for name in (DESCRIPTION_FILE, PIPELINE_FILE))
    version = document.get("format")
    if type(version) is int and version > FORMAT_VERSION:
        raise DataError(
            f"{path}: format {described_value(version)} is too new: this mlp_xp reads {FORMAT_VERSION}"
        )
    if type(version) is not int or version not in (FORMER_VERSION, FORMAT_VERSION):
        raise ValueError(f"`format` must be {FORMAT_VERSION}, got {described_value(version)}")
    checksum = _checksum(document, path / NETWORK_FILE)
    described = from_plain(_Document, _upgraded(document), PIPELINE_FILE)
    if described.sha256 != checksum:
        raise ValueError(f"the checksum in {PIPELINE_FILE} is not that of its content and {NETWORK_FILE}")
    pipeline = Pipeline(described.schema, described.preprocessor, load_model(path / NETWORK_FILE))
    _check_fit(pipeline, described.baseline)
    pipeline.estimator.backend = None  # where to compute is the caller's choice
    return Run(path, pipeline, described.baseline, description)


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a run of the former format as one of today: its numbers are scaled only."""
    preprocessor = document.get("preprocessor")
    if document["format"] == FORMAT_VERSION or not isinstance(preprocessor, dict):
        return document
    numbers = preprocessor.get("numbers")
    if not isinstance(numbers, dict):
        return document
    upgraded = {
        name: {**scaling, "limit": None, "knots": []} if isinstance(scaling, dict) else scaling
        for name, scaling in numbers.items()
    }
    return {**document, "preprocessor": {**preprocessor, "numbers": upgraded}}


def load_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{path.name} must have {MAX_JSON_BYTES} bytes at most, got {size}")
        content = file.read(size)
    document = load_json(content.decode())
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} must be an object")
    return document


def _check_fit(pipeline: Pipeline, baseline: Baseline) -> None:
    """Raise a ValueError unless schema, preprocessor, network and baseline fit each other."""
    schema, preprocessor, estimator = pipeline.schema, pipeline.preprocessor, pipeline.estimator
    if type(estimator).__name__ not in ("MLPClassifier", "MLPRegressor"):
        raise ValueError(f"{NETWORK_FILE} must hold a classifier or a regressor")
    target, weight = schema.target, schema.sample_weight
    fits = (
        target is not None
        and target.kind in ("number", *["truth", "category"] * (pipeline.task == "classification"))
        and (weight is None or weight.kind in ("number", "truth"))
        and list(preprocessor.numbers) == schema.names("number", "date", "truth")
        and list(preprocessor.categories) == schema.names("category")
        and preprocessor.width == estimator.coefs_[0].shape[0]
        and not hasattr(estimator, "feature_names_in_")  # inputs have none
    )
    if pipeline.task == "regression":
        fits = fits and estimator.n_outputs_ == 1 and baseline.mean is not None
    else:
        names = [str(name) for name in pipeline.classes_.tolist()]
        output = (1, "logistic") if len(names) == 2 else (len(names), "softmax")
        fits = (
            fits
            and pipeline.classes_.dtype.kind in "biU"
            and (estimator.n_outputs_, estimator.out_activation_) == output
            and len(baseline.counts) == len(names)
            and baseline.commonest in names
        )
        "".join(names).encode()  # raises a ValueError if half of a character stands alone
    if not fits:
        raise ValueError(f"{PIPELINE_FILE} and {NETWORK_FILE} do not fit each other")


set_public_module("mlp_xp.tables", globals(), ("Run", "load_run"))
