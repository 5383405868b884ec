"""The folder of a training under way: its checkpoints, and what it was begun with."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mlp_xp._arrays import library_name
from mlp_xp._cli.loading import LoadedData, file_sha256
from mlp_xp._cli.options import option_name
from mlp_xp._cli.processes import is_first
from mlp_xp._disk.folders import final_name, leftovers, temporary_name, write_json_text
from mlp_xp._disk.owned_file import OwnedFile
from mlp_xp._processes import current_processes
from mlp_xp._training.checkpoints import Checkpoint
from mlp_xp._version import __version__
from mlp_xp.backends import Backend
from mlp_xp.tables._common import DataError
from mlp_xp.tables._parts import all_values
from mlp_xp.tables._runs import PARTIAL_FILE, load_object

MAY_DIFFER = ("data", "val", "out", "resume", "overwrite", "json", "quiet", "backend", "max_iter")
"""Options that a resumed training may have other values of; the data are compared by what is in them."""

SAVED_FILE = "saved"
"""An empty file: the run that there is was saved by this training, after an interrupt say."""


class PartialFolder:
    """The folder ``run.partial`` beside ``run``, from the first step of a training until its run is saved.

    As a context manager it lets others have the folder at its end.

    Parameters
    ----------
    options : Namespace
        With `out`, `resume` and `overwrite`.

    Attributes
    ----------
    path : Path
    resumes : bool
        Whether there is a training in it, to go on with.

    Raises
    ------
    DataError
        If there is one, and it is neither to be resumed nor to be replaced, or the folder is something else.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        out = Path(options.out).resolve()
        self.options = options
        self.path = out.with_name(f"{out.name}.partial")
        self._shown = f"{str(options.out).rstrip('/')}.partial"
        self._file = OwnedFile(self.path / PARTIAL_FILE, keep=1)
        if is_first():
            with suppress(OSError):
                for removed in leftovers(self.path):
                    shutil.rmtree(removed, ignore_errors=True)
        exists = self.path.exists() and not (
            self.path.is_dir() and all(map(_is_leftover, self.path.iterdir()))
        )
        self._exists = exists
        if exists and not (self.path / PARTIAL_FILE).is_file():
            raise DataError(
                f"{self._shown}: it must be the folder of a training that has not ended; remove it, or "
                "choose another --out"
            )
        self.resumes = exists and bool(options.resume)
        if options.resume and not exists and out.exists() and not options.overwrite:
            raise DataError(f"{options.out}: it is complete: there is no training to go on with")
        if exists and not (options.resume or options.overwrite):
            raise DataError(
                f"{self._shown}: a training that has not ended; --resume goes on with it, --overwrite begins "
                "anew"
            )

    def __enter__(self) -> PartialFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.release()

    @property
    def replaces_run(self) -> bool:
        """Whether the run that exists may be replaced: it is what this training had saved at an interrupt."""
        return self.resumes and (self.path / SAVED_FILE).exists()

    def begin(self, loaded: LoadedData, chosen: Backend) -> list[str]:
        """Make the folder, or check that it is of the same training; return notes for the user.

        Of several processes the first one does; all take part.

        Raises
        ------
        DataError
            The message says what differs, or that another process is training there.
        """
        found = _describe(self.options, loaded, chosen)
        if not is_first():
            return []
        if self.resumes:
            self._own()
            return [*self._differences(found), f"going on with the training in {self._shown}"]
        if (self.path / PARTIAL_FILE).exists():
            if not self._exists:
                raise DataError(f"{self._shown}: another process has begun to train there")
            self._own()
        if self.path.exists():
            self.remove()
        try:
            self.path.mkdir()
            self._file.create(lambda path: write_json_text(path, found))
        except OSError as error:
            raise DataError(f"{self._shown}: it cannot be made ({error.strerror})") from error
        return []

    def fit_arguments(self, number: int) -> dict[str, Any]:
        """Return the arguments of `fit` that name the checkpoint of a network, which are numbered from 1."""
        return {"checkpoint": Checkpoint(self.path / f"network-{number}.safetensors"), "resume": True}

    def may_replace_run(self) -> None:
        """Remember that the run that is saved now is of this training, which may replace it when resumed."""
        (self.path / SAVED_FILE).touch()

    def remove(self) -> None:
        """Remove the folder: the run is saved, with its scores and pictures.

        It is renamed before, so that a process that is killed here leaves none that is half removed; what is
        left the next training removes.
        """
        removed = temporary_name(self.path)
        with suppress(OSError):
            self.path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    def _own(self) -> None:
        try:
            self._file.take_over()
        except BlockingIOError as error:
            raise DataError(f"{self._shown}: another process is training there") from error

    def _differences(self, now: dict[str, Any]) -> list[str]:
        """Raise a DataError that says what is another than when the training was begun; return notes."""
        try:
            before = load_object(self.path / PARTIAL_FILE)
            options, data, data_now = before["options"], before["data"], now["data"]
            differing = [
                f"{option_name(name)} was {options.get(name)} and is {value}"
                for name, value in now["options"].items()
                if options.get(name) != value
            ]
            # Of another number of processes each has other rows.
            what = "arrays" if data["processes"] == data_now["processes"] else "files"
            if data["rows"] != data_now["rows"]:
                differing.append(f"there were {_listed(data['rows'])}, and are {_listed(data_now['rows'])}")
            elif data[what] != data_now[what]:
                differing.append("there are other values in the data")
            notes = [
                f"{name} was {before['versions'][name]} and is {version}: numbers may differ a little"
                for name, version in now["versions"].items()
                if before["versions"][name] != version
            ]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            what = f"its {PARTIAL_FILE} is damaged; --overwrite without --resume begins anew"
            raise DataError(f"{self._shown}: {what}") from error
        if differing:
            raise DataError(
                f"{self._shown}: it was begun with something else: {'; '.join(differing)}. The same command "
                "goes on with it; --overwrite without --resume begins anew"
            )
        return notes


def _is_leftover(path: Path) -> bool:
    """Whether this is what a process left that was killed when it began to make the folder."""
    return final_name(path) == PARTIAL_FILE


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def _listed(rows: dict[str, int]) -> str:
    return ", ".join(f"{number} rows for {split}" for split, number in rows.items())


def _describe(options: argparse.Namespace, loaded: LoadedData, chosen: Backend) -> dict[str, Any]:
    """Return what must be the same when the training is resumed, as plain values."""
    processes = current_processes()
    digests = all_values("the data", _digest(loaded))
    given = {**vars(options), "target": loaded.target_name}
    return {
        "format": 1,
        "options": {name: _shown(value) for name, value in sorted(given.items()) if name not in MAY_DIFFER},
        "data": {
            "rows": {split: rows.n_total for split, rows in loaded.prepared.splits.items()},
            "files": [file_sha256(path) for path in (options.data, options.val) if path is not None],
            "arrays": list(digests),
            "processes": 1 if processes is None else processes.size,
        },
        "versions": {"mlp_xp": __version__, "numpy": np.__version__, "library": _library(chosen)},
    }


def _library(chosen: Backend) -> str:
    return f"{library_name(chosen.xp)} {getattr(chosen.xp, '__version__', '')} on {chosen.device}".strip()


def _digest(loaded: LoadedData) -> str:
    """Return a SHA-256 of the arrays that are trained and measured on."""
    checksum = hashlib.sha256()
    for split, rows in loaded.prepared.splits.items():
        weight: Sequence[Any] = [] if rows.sample_weight is None else [rows.sample_weight]
        for array in (loaded.prepared.X[split], rows.y, *weight):
            checksum.update(f"{split} {array.dtype} {array.shape} ".encode())
            checksum.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()
