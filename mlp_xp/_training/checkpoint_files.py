"""The checkpoints of a training under way: written beside it, by a thread of their own, and read again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlp_xp._disk.model_files import (
    ModelContent,
    ModelFileError,
    as_model_file_error,
    content_of,
    prepare,
    read_model,
    write_prepared,
)
from mlp_xp._disk.owned_file import OwnedFile
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._training.checkpoints import Checkpoint, CheckpointWarning
from mlp_xp._training.history import TrainingInterruptedWarning
from mlp_xp._training.progress import Progress, from_file_content
from mlp_xp._warnings import warn

SECONDS_BETWEEN = 60.0
"""Seconds between checkpoints unless the user says something else."""


class Checkpoints:
    """The checkpoints of a training under way.

    Parameters
    ----------
    rule : Checkpoint
    describe : callable ``(Progress) -> ModelContent``
        Returns what to write of a resume point; its arrays on the host may be those of the progress.

    Attributes
    ----------
    file : OwnedFile
    """

    def __init__(self, rule: Checkpoint, describe: Callable[[Progress], ModelContent]) -> None:
        self.rule = rule
        self.describe = describe
        self.file = OwnedFile(Path(rule.path), rule.keep)
        self._writer: threading.Thread | None = None
        self._problem = ""
        self._written: Any = None
        self._is_new = False
        self._n_epochs, self._time = 0, 0.0

    def begin(self, progress: Progress, resumed: Path | None) -> None:
        """Own the file, and write a first one unless the training was resumed from it.

        Parameters
        ----------
        progress : Progress
        resumed : Path or None
            The file that the progress was read from.

        Raises
        ------
        TypeError, ValueError
            If the network cannot be in a file.
        OSError
            If the file cannot be written, or exists and is that of another training.
        """
        content = prepare(self.describe(progress))
        progress_of(content_of(content))  # what cannot be read again should fail now
        kept, is_good = self.file.all_kept(), True
        goes_on = resumed is not None and resumed.resolve() in kept
        with _errors_named(self.file.path):
            if goes_on and self.file.path.exists():
                is_good = resumed is not None and resumed.resolve() == kept[0]
                self.file.take_over(is_good=is_good)
            else:
                self.file.create(
                    lambda path: write_prepared(path, content),
                    overwrite=self.rule.overwrite and not goes_on,
                    keeps_former=goes_on,
                )
                self._is_new = not goes_on
                if self._is_new:
                    self.rule._begun()
        self._n_epochs, self._time = len(progress.history), time.monotonic()
        self._written = _stage(progress) if is_good else None

    def is_due(self, n_epochs: int) -> bool:
        """Whether to write one now, at the end of an epoch; warn if the last one could not be written."""
        self._report()
        if self.rule.every_epochs is not None:
            return n_epochs - self._n_epochs >= self.rule.every_epochs and not self._is_writing
        return self.is_due_within_epoch()

    def is_due_within_epoch(self) -> bool:
        """Whether to write one now, in the middle of an epoch."""
        if self.rule.every_epochs is not None:
            return False
        seconds = SECONDS_BETWEEN if self.rule.every_seconds is None else self.rule.every_seconds
        return time.monotonic() - self._time >= seconds and not self._is_writing

    def write(self, progress: Progress) -> None:
        """Write one, in a thread of its own."""
        self._n_epochs, self._time = len(progress.history), time.monotonic()
        with self._problems_remembered():
            arguments = self.describe(progress), _stage(progress)
            writer = threading.Thread(target=self._write, args=arguments, daemon=True)
            writer.start()
            self._writer = writer

    def end(self, progress: Progress | None) -> None:
        """Write the last one, of a training that has ended, and own the file no longer.

        A file of a training that ended before the first step was done is removed: nothing is in it.
        """
        with deferred_interrupts(limit=1, deliver=False) as interrupts:
            try:
                if self._writer is not None:
                    self._writer.join()
                with self._problems_remembered():
                    if progress is not None and _stage(progress) != self._written:
                        self._write(self.describe(progress), _stage(progress))
                    if self._is_new and not any(self._written):
                        self.file.remove()
            finally:
                self.file.release()
        self._report()
        if interrupts.received:
            warn("interrupted when the training had ended", TrainingInterruptedWarning)

    @property
    def _is_writing(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def _write(self, content: ModelContent, stage: Any) -> None:
        """Write one."""
        with self._problems_remembered():
            prepared = prepare(content)
            progress_of(content_of(prepared))  # one that cannot be read must not replace one that can
            self._problem = self.file.replace(lambda path: write_prepared(path, prepared)) or self._problem
            self._written = stage

    @contextmanager
    def _problems_remembered(self) -> Iterator[None]:
        """Context whose errors are remembered: the training goes on, and only its own thread can warn."""
        try:
            yield
        except Exception as error:
            reason = (
                (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
            )
            self._problem = f"it could not be written ({reason}); the training goes on without"

    def _report(self) -> None:
        problem, self._problem = self._problem, ""
        if problem:
            warn(f"checkpoint {self.file.path}: {problem}", CheckpointWarning)


def _stage(progress: Progress) -> tuple[int, int, bool, str]:
    """Return how far a training has come."""
    n_batches = 0 if progress.position is None else progress.position.n_batches
    return len(progress.history), n_batches, progress.is_ended, progress.problem


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Context whose errors say that they are of the argument `checkpoint`."""
    try:
        yield
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "`checkpoint` must be a file of its own: another training writes it", str(path)
        ) from error
    except FileExistsError as error:
        raise FileExistsError(
            error.errno,
            "`checkpoint` exists already: `resume=True` goes on from it, "
            "`Checkpoint(path, overwrite=True)` replaces it",
            error.filename,
        ) from error
    except OSError as error:
        raise type(error)(
            error.errno, f"`checkpoint` must be a file that can be written: {error.strerror}", str(path)
        ) from error


def check_may_be_written(checkpoint: Checkpoint, *, resumes: bool) -> None:
    """Raise an OSError if another process writes the file, or if it exists and must not be replaced."""
    file = OwnedFile(Path(checkpoint.path), checkpoint.keep)
    with _errors_named(file.path):
        if not (resumes or checkpoint.overwrite):
            file.check_absent()
        elif file.path.exists():
            file.take_over()
            file.release()


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if there is one, and those before it, which go first.

    Raises
    ------
    OSError
        If another process writes it, or it cannot be removed.
    """
    file = OwnedFile(path, keep=1)
    former = re.compile(re.escape(path.name) + r"\.\d+")
    with _errors_named(path):
        try:
            if path.exists():
                file.take_over()
            for each in [*(each for each in path.parent.iterdir() if former.fullmatch(each.name)), path]:
                each.unlink(missing_ok=True)
        finally:
            file.release()


def read_checkpoint(path: Path) -> tuple[ModelContent, dict[str, Any]]:
    """Return the model in a file, and its progress, checked.

    Raises
    ------
    ModelFileError
    FileNotFoundError
    """
    model = read_model(path)
    with as_model_file_error(path):
        if model.progress is None:
            raise ValueError("it has no progress to resume from: it is a model alone")
        return model, progress_of(model)


def progress_of(model: ModelContent) -> dict[str, Any]:
    """Return the progress in a model's file, checked; raise a TypeError or ValueError if it is no such."""
    assert model.progress is not None
    known = {name: value for name, value in model.progress.items() if name != "estimator"}
    return from_file_content(known, model.params)


def read_last(checkpoint: Checkpoint) -> tuple[Path, ModelContent, dict[str, Any]] | None:
    """Return the path of the last file that is whole, its model and its progress; None if there is no file.

    A warning names those that are damaged.

    Raises
    ------
    ModelFileError
        If all are damaged.
    """
    found = OwnedFile(Path(checkpoint.path), checkpoint.keep).all_kept()
    for path in found:
        try:
            return path, *read_checkpoint(path)
        except (ModelFileError, OSError) as error:
            if path == found[-1]:
                raise
            warn(f"{error}; the one before it is taken", CheckpointWarning)
    return None
