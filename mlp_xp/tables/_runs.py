"""Run folders: a trained pipeline with its description, history and scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from mlp_xp._arrays import HostArray
from mlp_xp._functions import set_public_module
from mlp_xp._messages import first_line, package_needed
from mlp_xp._validation import check_path
from mlp_xp.files._folders import write_json
from mlp_xp.files._models import save_model, trusted_types
from mlp_xp.tables._pipelines import (
    LabelledRows,
    baseline_outputs,
    columns_of,
    estimator_of,
    format_number,
    imputed_values,
    is_table_pipeline,
    known_categories,
    labelled_rows,
    model_outputs,
    score,
    select_features,
    task_of,
)
from mlp_xp.tables._reading import DataError, as_frame, listed

FORMAT_VERSION = 1
"""Version of the folder's format, in its `run.json`; a newer one is refused."""

PIPELINE_FILE, NETWORK_FILE, DESCRIPTION_FILE, METRICS_FILE, HISTORY_FILE, COMMAND_FILE = (
    "pipeline.skops",
    "network.safetensors",
    "run.json",
    "metrics.json",
    "history.json",
    "command.txt",
)

RUN_FILES = (PIPELINE_FILE, NETWORK_FILE, METRICS_FILE, HISTORY_FILE, COMMAND_FILE, "*.png")
"""What there is in the folder of a run beside its description: names, and patterns of names."""

TRUSTED_TYPES = (*trusted_types, "mlp_xp.estimators._Labels", "numpy.dtype")
"""Types that skops may load beside those that it trusts by default; they hold values and run no code."""


class Run(NamedTuple):
    """A trained pipeline, loaded from the folder that ``mlp-xp train --out`` wrote.

    Attributes
    ----------
    path : Path
    pipeline : sklearn.pipeline.Pipeline
        From a table's columns to predictions.
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
    description: dict[str, Any]

    @property
    def classes(self) -> HostArray | None:
        """The class labels, in the order of the probabilities; None for regression."""
        network = estimator_of(self.pipeline)
        return np.asarray(network.classes_) if task_of(self.pipeline) == "classification" else None

    def predict(self, table: Any) -> pl.DataFrame:
        """Return the predictions for a table: the class and each class's probability, or the value.

        Parameters
        ----------
        table : polars or pandas DataFrame, or path of a file
            Must have the columns trained on, in any order; other columns are ignored.

        Returns
        -------
        polars.DataFrame
            One row for each row of the table.

        Raises
        ------
        DataError
            If a column is missing, or holds another type than in training.
        """
        return as_predictions(self, run_outputs(self, select_features(self.pipeline, as_frame(table))))

    def evaluate(self, table: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the scores of the predictions for a table with the target, and those of a baseline.

        Parameters
        ----------
        table : polars or pandas DataFrame, or path of a file
            Must have the columns trained on and the target; rows without a target are left out.

        Returns
        -------
        scores, baseline : dict
            For classification "accuracy", "balanced_accuracy", "roc_auc" and "log_loss"; for regression "r2",
            "mae" and "rmse". None where a score is not defined. The baseline predicts the class frequencies
            or the mean of the training rows.

        Raises
        ------
        DataError
            If a column is missing or of another type, or a label is unknown.
        """
        rows = run_rows(self, as_frame(table))
        return score_rows(self, rows, model_outputs(self.pipeline, rows.frame)), score_baseline(self, rows)


def run_outputs(run: Run, features: pl.DataFrame) -> HostArray:
    """Return the network's outputs for features that `select_features` returned."""
    if not len(features):
        raise DataError("there is no row to predict")
    return model_outputs(run.pipeline, features)


def as_predictions(run: Run, outputs: HostArray) -> pl.DataFrame:
    """Return a table of what the network's outputs predict."""
    target, classes = run.description["target"], run.classes
    if classes is None:
        return pl.DataFrame({f"predicted {target}": outputs})
    columns = {f"probability {name}": outputs[:, index] for index, name in enumerate(classes.tolist())}
    return pl.DataFrame({f"predicted {target}": classes[np.argmax(outputs, axis=1)], **columns})


def overflow_notes(outputs: HostArray) -> list[str]:
    """Return a note on outputs that are infinite or NaN, if there are some."""
    is_finite = np.isfinite(outputs)
    n_rows = int(np.sum(~(is_finite if outputs.ndim == 1 else is_finite.all(axis=1))))
    if not n_rows:
        return []
    return [
        f"{n_rows} of {len(outputs)} predictions are infinite or NaN, because their features are so far "
        "from those of the training (--dtype float64 holds larger numbers)"
    ]


def run_rows(run: Run, frame: pl.DataFrame) -> LabelledRows:
    """Return the rows of a table that have a target, typed as the run's training rows."""
    return labelled_rows(frame, run.description["target"], run.classes, columns_of(run.pipeline))


def score_rows(run: Run, rows: LabelledRows, outputs: HostArray) -> dict[str, Any]:
    """Return the scores of the network's outputs for labelled rows."""
    return score(task_of(run.pipeline), rows.y, outputs, run.classes)


def score_baseline(run: Run, rows: LabelledRows) -> dict[str, Any]:
    """Return the scores of the baseline, fitted on the training rows, on labelled rows."""
    outputs = baseline_outputs(run.description["baseline"], len(rows.y))
    return score(task_of(run.pipeline), rows.y, outputs, run.classes)


def table_notes(run: Run, frame: pl.DataFrame, features: pl.DataFrame) -> list[str]:
    """Return notes on what predictions ignore or replace: unused columns, missing values, new categories.

    Parameters
    ----------
    run : Run
    frame : polars.DataFrame
        The table as it was read.
    features : polars.DataFrame
        Its features, as `select_features` returns them.
    """
    numbers, categories = columns_of(run.pipeline)
    expected = {*numbers, *categories, run.description["target"], run.description.get("sample_weight")}
    expected |= {*run.description["columns"]["left_out"]}
    unused = [name for name in frame.columns if name not in expected]
    notes = [f"not used: {listed(unused)}"] if unused else []
    filled = imputed_values(run.pipeline)
    missing = {column.name: column.null_count() for column in features if column.null_count()}
    notes += [f"{name}: {n} missing, filled with {format_value(filled[name])}" for name, n in missing.items()]
    for name, values in known_categories(run.pipeline).items():
        unseen = features[name].filter(features[name].is_not_null() & ~features[name].is_in(values))
        if len(unseen):
            examples = listed(unseen.unique(maintain_order=True), 5)
            notes.append(
                f"{name}: {len(unseen)} rows with values unseen in training, encoded as zeros: {examples}"
            )
    return notes


def format_value(value: Any) -> str:
    """Format a value that replaces missing ones: a number rounded, text in quotes."""
    return format_number(value) if isinstance(value, float) else repr(value)


# Write.


def write_run(folder: Path, run: Run) -> None:
    """Write a run into an existing folder.

    The weights come first: if a later file fails, they are not lost.

    Parameters
    ----------
    folder : Path
    run : Run
    """
    network = estimator_of(run.pipeline)
    save_model(folder / NETWORK_FILE, network)
    write_json(folder / DESCRIPTION_FILE, run.description)
    (folder / COMMAND_FILE).write_text(run.description["command"] + "\n", encoding="utf-8")
    write_json(folder / HISTORY_FILE, _without_non_finite(network.history_))
    _skops().dump(run.pipeline, folder / PIPELINE_FILE)


def _without_non_finite(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace NaN and infinity by None, as JSON cannot hold them."""
    return [
        {name: value if np.isfinite(value) else None for name, value in record.items()} for record in history
    ]


# Read.


def load_run(path: str | Path) -> Run:
    """Load a run from its folder, without running any code that may be in it.

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
        If the path is not the folder of a run, or the run is damaged, has a newer format, or holds a type
        that no run has.
    ImportError
        If scikit-learn or skops is not installed.

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
    _skops()  # here, because errors below are those of a damaged file
    path = check_path(path)
    for name in (DESCRIPTION_FILE, PIPELINE_FILE):
        if not (path / name).is_file():
            raise DataError(f"{path}: not the folder of a run: it has no {name}")
    try:
        description = json.loads((path / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        version = description["format"]
        if version > FORMAT_VERSION:
            known = f"this version of mlp_xp reads {FORMAT_VERSION} and below"
            raise DataError(f"{path}: format {version} is too new: {known}")
        pipeline = _load_pipeline(path / PIPELINE_FILE)
        run = Run(path, pipeline, description)
        _check_description(run)
        return run
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged archive may raise in zipfile, zlib, json, NumPy or scikit-learn
        raise DataError(f"{path}: damaged ({type(error).__name__}: {first_line(error)})") from error


def _skops() -> Any:
    with package_needed("a run", "skops", "cli"):
        import skops.io  # imported late because it imports all of scikit-learn
    return skops.io


def _load_pipeline(path: Path) -> Pipeline:
    """Load a pipeline from a file that may be untrusted."""
    skops = _skops()
    with ZipFile(path) as archive:
        # A small compressed file can expand to more than the memory.
        if any(member.compress_type != ZIP_STORED for member in archive.infolist()):
            raise DataError(f"{path}: it is compressed and not loaded; runs are never compressed")
    untrusted = sorted(set(skops.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
    if untrusted:
        raise DataError(f"{path}: it holds types that no run has, and is not loaded: {listed(untrusted)}")
    pipeline: Any = skops.load(path, trusted=list(TRUSTED_TYPES))
    # skops trusts all estimators of scikit-learn, and some of them open files that a table names.
    if not is_table_pipeline(pipeline):
        raise DataError(f"{path}: it does not hold a trained pipeline of this command")
    trained: Pipeline = pipeline
    return trained


def _check_description(run: Run) -> None:
    """Raise a ValueError if the description lacks what predictions and scores read, or does not fit."""
    description, classes = run.description, run.classes
    baseline = description["baseline"]
    if classes is None:
        fits = math.isfinite(baseline["mean"])
    else:
        counts = baseline["counts"]
        fits = len(counts) == len(classes) and all(type(count) is int and count > 0 for count in counts)
        fits = fits and isinstance(baseline["commonest"], str)
    if not (
        fits
        and isinstance(description["target"], str)
        and isinstance(description["columns"]["left_out"], dict)
    ):
        raise ValueError(f"{DESCRIPTION_FILE} does not fit the pipeline")


set_public_module("mlp_xp.tables", globals(), ("Run", "load_run"))
