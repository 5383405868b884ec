"""A folder with a trained pipeline and all there is to know about it: written, read, used."""

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
from mlp_xp._messages import first_line
from mlp_xp.files._folders import write_json
from mlp_xp.files._models import save_model
from mlp_xp.tables._columns import known_labels, select, without_missing
from mlp_xp.tables._pipelines import (
    Part,
    baseline_outputs,
    columns_of,
    fillings,
    is_ours,
    known_categories,
    network_of,
    outputs,
    rounded,
    score,
    task_of,
    typed,
)
from mlp_xp.tables._reading import DataError, as_frame, listed

FORMAT = 1
"""Of the folder; a newer one is refused."""

PIPELINE, NETWORK, DESCRIPTION, METRICS, HISTORY, COMMAND = (
    "pipeline.skops",
    "network.safetensors",
    "run.json",
    "metrics.json",
    "history.json",
    "command.txt",
)

TRUSTED = (
    "mlp_xp.estimators.MLPClassifier",
    "mlp_xp.estimators.MLPRegressor",
    "mlp_xp.estimators._Labels",
    "numpy.dtype",
)
"""What a pipeline holds beside what skops trusts anyway: types that only keep values."""


class Run(NamedTuple):
    """A trained pipeline from a folder.

    Attributes
    ----------
    path : Path
    pipeline : sklearn.pipeline.Pipeline
        From a table's columns to predictions.
    description : dict
        What `run.json` says: data, columns, settings, versions, the command.

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
        """The labels, in the order of the probabilities; None for regression."""
        network = network_of(self.pipeline)
        return np.asarray(network.classes_) if task_of(self.pipeline) == "classification" else None

    def predict(self, table: Any) -> pl.DataFrame:
        """Predict a row for each row: the class and each class's probability, or the value.

        Parameters
        ----------
        table : polars or pandas DataFrame, or path of a file
            The columns trained on, in any order, among others.

        Returns
        -------
        polars.DataFrame

        Raises
        ------
        DataError
            If a column is missing, or holds what it did not in training.
        """
        return self.predictions(typed(self.pipeline, as_frame(table)))

    def predictions(self, features: pl.DataFrame) -> pl.DataFrame:
        """Predict checked and typed rows."""
        target, classes = self.description["target"], self.classes
        if not len(features):
            raise DataError("there is no row to predict")
        found = outputs(self.pipeline, features)
        if classes is None:
            return pl.DataFrame({f"predicted {target}": found})
        columns = {f"probability {name}": found[:, place] for place, name in enumerate(classes.tolist())}
        return pl.DataFrame({f"predicted {target}": classes[np.argmax(found, axis=1)], **columns})

    def evaluate(self, table: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Score predictions against a table's target, and the trivial model's beside them.

        Parameters
        ----------
        table : polars or pandas DataFrame, or path of a file
            With the target; rows without it are left out.

        Returns
        -------
        scores, baseline : dict
            As `mlp_xp.tables._pipelines.score` returns them.

        Raises
        ------
        DataError
        """
        part = self.part(as_frame(table))
        return self.scores(part), self.baseline(part)

    def part(self, frame: pl.DataFrame) -> Part:
        """Return a table's rows with a target, checked and typed."""
        target, classes = self.description["target"], self.classes
        known, _ = without_missing(frame, target)
        if not len(known):
            raise DataError("there is no row to score")
        if classes is None:
            y = select(known, [target], []).to_series().to_numpy()
        else:
            y = known_labels(known[target], classes)
        return Part(typed(self.pipeline, known), y)

    def scores(self, part: Part) -> dict[str, Any]:
        """Score the predictions of checked rows."""
        return score(task_of(self.pipeline), part.y, outputs(self.pipeline, part.frame), self.classes)

    def baseline(self, part: Part) -> dict[str, Any]:
        """Score the trivial model of the training rows on checked rows."""
        found = baseline_outputs(self.description["baseline"], len(part.y))
        return score(task_of(self.pipeline), part.y, found, self.classes)

    def notes(self, frame: pl.DataFrame, features: pl.DataFrame) -> list[str]:
        """Say what a user should know of a table, and its typed rows, before he believes the predictions."""
        numbers, categories = columns_of(self.pipeline)
        surplus = [
            name for name in frame.columns if name not in {*numbers, *categories, self.description["target"]}
        ]
        known = {*self.description["columns"]["left_out"], self.description.get("sample_weight")}
        surplus = [name for name in surplus if name not in known]
        notes = [f"not used: {listed(surplus)}"] if surplus else []
        filled = fillings(self.pipeline)
        missing = {column.name: column.null_count() for column in features if column.null_count()}
        notes += [f"{name}: {n} missing, filled with {shown(filled[name])}" for name, n in missing.items()]
        for name, values in known_categories(self.pipeline).items():
            strange = features[name].filter(features[name].is_not_null() & ~features[name].is_in(values))
            if len(strange):
                named = listed(strange.unique(maintain_order=True), 5)
                notes.append(
                    f"{name}: {len(strange)} rows with values unseen in training, taken as none: {named}"
                )
        return notes


def shown(value: Any) -> str:
    """Write a value for people."""
    return rounded(value) if isinstance(value, float) else repr(value)


# Writing.


def write_run(folder: Path, run: Run) -> None:
    """Write what a training ended with into a folder that is there: first what cannot be had again.

    Parameters
    ----------
    folder : Path
    run : Run
    """
    from skops.io import dump  # it imports all of scikit-learn: only runs that are kept wait for it

    network = network_of(run.pipeline)
    save_model(folder / NETWORK, network)
    write_json(folder / DESCRIPTION, run.description)
    (folder / COMMAND).write_text(run.description["command"] + "\n", encoding="utf-8")
    write_json(folder / HISTORY, _finite(network.history_))
    dump(run.pipeline, folder / PIPELINE)


def _finite(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace what JSON has no number for."""
    return [
        {name: value if np.isfinite(value) else None for name, value in record.items()} for record in history
    ]


# Reading.


def load_run(path: str | Path) -> Run:
    """Read the pipeline of a run's folder; no code that is in it is run.

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
        If it is no such folder, is of a newer version, is damaged, or holds a type that a pipeline of ours
        does not.
    """
    path = Path(path)
    for name in (DESCRIPTION, PIPELINE):
        if not (path / name).is_file():
            raise DataError(f"{path}: not the folder of a run: it has no {name}")
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        version = description["format"]
        if version > FORMAT:
            raise DataError(f"{path}: of format {version}, this version of mlp_xp knows {FORMAT} and below")
        pipeline = _load_pipeline(path / PIPELINE)
        run = Run(path, pipeline, description)
        _check_description(run)
        return run
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged archive fails in zipfile, zlib, json, NumPy or scikit-learn
        raise DataError(f"{path}: damaged ({type(error).__name__}: {first_line(error)})") from error


def _load_pipeline(path: Path) -> Pipeline:
    """Read a pipeline; the file may be anybody's."""
    from skops.io import get_untrusted_types, load

    with ZipFile(path) as archive:
        if any(member.compress_type != ZIP_STORED for member in archive.infolist()):
            raise DataError(f"{path}: it is compressed, which no run is, and not loaded")
    strange = sorted(set(get_untrusted_types(file=path)) - set(TRUSTED))
    if strange:
        raise DataError(f"{path}: it holds what no run does, and is not loaded: {listed(strange)}")
    pipeline = load(path, trusted=list(TRUSTED))
    # skops trusts all estimators of scikit-learn; some of them open files that a table names.
    if not is_ours(pipeline):
        raise DataError(f"{path}: it holds no trained pipeline of this command")
    found: Pipeline = pipeline
    return found


def _check_description(run: Run) -> None:
    """Check what predictions and scores need of a description."""
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
        raise ValueError(f"{DESCRIPTION} does not fit the pipeline")
