"""Resuming a training: from what it returned, or from the file of its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._arrays import is_sparse, quiet_floating_point, to_host
from mlp_xp._disk.model_files import ModelContent
from mlp_xp._network import Network
from mlp_xp._parameters import map_tree, named
from mlp_xp._processes import current_processes
from mlp_xp._samples import Samples
from mlp_xp._streams import Stream
from mlp_xp._training.checkpoint_files import Checkpoints, read_checkpoint, read_last
from mlp_xp._training.checkpoints import Checkpoint
from mlp_xp._training.early_stopping import EarlyStoppingState
from mlp_xp._training.history import Trained
from mlp_xp._training.progress import Progress, to_file_content
from mlp_xp._validation import shown

N_ROWS_LOOKED_AT = 64
"""How many rows are compared with those of the training that is resumed."""


class Source(NamedTuple):
    """What a training is resumed from.

    Attributes
    ----------
    path : Path or None
        The file, None if it is none.
    model : ModelContent or None
        What was in it.
    progress : dict
        See `Progress.to_full_dict`; its arrays may be anywhere.
    """

    path: Path | None
    model: ModelContent | None
    progress: dict[str, Any]

    def is_finished(self, epochs: int) -> bool:
        """Whether a training of so many epochs has nothing left to do."""
        stopping, history = self.progress["early_stopping"], self.progress["history"]
        stopped = stopping is not None and EarlyStoppingState.from_dict(stopping).stopped
        n_epochs = 0 if history is None else history["n_epochs"]
        return bool(self.progress["is_ended"] or stopped or n_epochs >= epochs)


def find_source(resume: Any, checkpoint: Checkpoint | None) -> Source | None:
    """Return what the argument `resume` names; None to begin.

    Of several processes the first one reads the file.
    """
    processes = current_processes()
    if processes is None or isinstance(resume, Trained):
        return _find_source(resume, checkpoint)
    found = _find_source(resume, checkpoint) if processes.rank == 0 else None
    source: Source | None = processes.share("the checkpoint", found)
    return source


def _find_source(resume: Any, checkpoint: Checkpoint | None) -> Source | None:
    if isinstance(resume, Trained):
        if resume.progress is None:
            raise ValueError("`resume` must be what `train` has returned, got a Trained without progress")
        return Source(None, None, resume.progress)
    if isinstance(resume, (str, os.PathLike)):
        return Source(Path(resume), *read_checkpoint(Path(resume)))
    if resume is None or resume is False:
        return None
    if resume is not True:
        raise TypeError(
            f"`resume` must be what `train` has returned, a path, or a truth value, got {shown(resume)}"
        )
    if checkpoint is None:
        raise ValueError(
            "`checkpoint` must be given where `resume` is True: it says which file to resume from"
        )
    last = read_last(checkpoint)
    return None if last is None else Source(*last)


def resumed(
    resume: Any,
    checkpoint: Checkpoint | None,
    network: Network,
    start: Progress,
    samples: Samples | Stream,
    epochs: int,
    columns: Sequence[str],
) -> tuple[Progress, Path | None]:
    """Return the progress to begin with, `start` or that of the training to resume, and the file it is from.

    Raises
    ------
    ValueError
        If the training cannot go on with these samples and arguments.
    """
    source = find_source(resume, checkpoint)
    if source is None:
        start.data = digest_of(samples) if checkpoint is not None else ""
        return start, None
    if source.model is not None:
        if source.model.kind != "Network":
            raise ValueError(f"`resume` must be the checkpoint of `train`, got that of a {source.model.kind}")
        if source.model.network != network:
            raise ValueError(
                f"`network` must be that of the checkpoint, {source.model.network}, got {network}"
            )
    progress = Progress.resumed(source.progress, start, samples.place)
    check_goes_on(progress, samples, epochs, "epochs", columns)
    return progress, source.path


def check_goes_on(
    progress: Progress, samples: Samples | Stream, epochs: int, epochs_name: str, columns: Sequence[str]
) -> None:
    """Raise a ValueError unless a training can go on with these samples and arguments."""
    n_done = len(progress.history)
    if n_done > epochs:
        raise ValueError(
            f"`{epochs_name}` must be at least {n_done}, the epochs done before, and counts all, got {epochs}"
        )
    if n_done and list(progress.history[0])[1:] != list(columns):
        found = list(progress.history[0])[1:]
        raise ValueError(
            f"the history must have the columns {found} as before, got arguments for {[*columns]}"
        )
    position = progress.position
    has_steps = n_done or (position is not None and position.n_batches)
    if has_steps and isinstance(samples, Stream) != (position is not None):
        raise ValueError("`X` must be a stream if it was one before, else arrays")
    data = digest_of(samples)
    if n_done and progress.data and data and progress.data != data:
        raise ValueError(
            "`X`, `y` and `sample_weight` must be those of the training to resume, got other values in some "
            f"of {N_ROWS_LOOKED_AT} rows"
        )
    progress.data = data
    order = progress.order
    if order is not None and isinstance(samples, Samples) and len(order) != samples.n_total:
        raise ValueError(f"`X` must have {len(order)} rows as before, got {samples.n_total}")


def digest_of(samples: Samples | Stream) -> str:
    """Return a SHA-256 of some rows, evenly spaced, as they are computed with: the same on every device.

    It is "" for a stream, and for one of several processes.
    """
    if isinstance(samples, Stream) or samples.shard is not None:
        return ""
    n_rows = len(samples)
    rows = np.unique(np.linspace(0, n_rows - 1, min(n_rows, N_ROWS_LOOKED_AT)).astype(np.int64))
    some = replace(samples, rows=rows if samples.rows is None else samples.rows[rows])
    checksum = sha256(f"{n_rows}".encode())
    with quiet_floating_point():
        for array in next(some.batches(N_ROWS_LOOKED_AT)):
            host = array if array is None else to_host(array.toarray() if is_sparse(array) else array)
            host = None if host is None else host.astype(host.dtype.newbyteorder("<"))
            checksum.update(b"none" if host is None else host.tobytes())
    return checksum.hexdigest()


@contextmanager
def checkpoints_of(
    checkpoint: Checkpoint | None,
    network: Network,
    progress: Progress,
    source: Path | None,
    describe: Callable[[Progress], ModelContent] | None = None,
) -> Iterator[Checkpoints | None]:
    """Context in which a training writes checkpoints, of several processes in the first one.

    At its end the last one is written, of `progress.resume_point`.
    """
    processes = current_processes()
    if checkpoint is None or (processes is not None and processes.rank):
        yield None
        return

    def describe_network(progress: Progress) -> ModelContent:
        params = named(map_tree(to_host, progress.best_params))
        return ModelContent(
            "Network", network, params, {}, {}, to_file_content(progress.to_full_dict(), params)
        )

    checkpoints = Checkpoints(checkpoint, describe or describe_network)
    try:
        checkpoints.begin(progress, source)
    except BaseException:
        checkpoints.file.release()
        raise
    try:
        yield checkpoints
    finally:
        checkpoints.end(progress.resume_point)
