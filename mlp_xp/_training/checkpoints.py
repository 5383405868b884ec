"""`Checkpoint`: the file that a training writes its progress to, and how often."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import Any

from mlp_xp._validation import (
    check_bool,
    check_integer,
    check_path,
    check_real,
    errors_naming,
    shown,
)


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written, or is not as it was written; the training goes on.

    Examples
    --------
    To end a training whose checkpoints fail:

    >>> import warnings
    >>> from mlp_xp import CheckpointWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", CheckpointWarning)
    ...     # train here
    """


@dataclass(frozen=True)
class Checkpoint:
    """A file that a training writes its progress to, so that it can be resumed if its process dies.

    Parameters
    ----------
    path : str or path
        The file, in the format of `save_model`: `load_model` loads the network as it was then.
    every_seconds : float, optional
        Write it when an epoch ends, or a batch of a stream, and so many seconds have passed since the last
        one; 60 by default.
    every_epochs : int, optional
        Write it when so many epochs have passed, instead; of short epochs, of which some hundred run at once,
        when these are done.
    keep : int, default=2
        How many to keep: the last one under `path`, those before it with ".1", ".2", ... behind the name.
    overwrite : bool, default=False
        Whether a training that is not resumed may replace the checkpoints of another one.

    Notes
    -----
    A first one is written before the first step, a last one when the training ends, also by an error or
    Ctrl-C: that of the last whole epoch (of short ones one of the last tenth of a second), or batch of a
    stream. In between they are written by a thread of their own, from a copy of the state; one that takes
    longer than the time between two is not disturbed.

    A checkpoint is written under another name, forced to the disk and renamed, so that there is a whole one
    at any instant. It belongs to the process that writes it: another one that would write the same file gets
    an error. Where it cannot be written later, on a full disk say, a `CheckpointWarning` tells, the training
    goes on, and the next one is tried in its time.

    Inside `data_parallel` process 0 writes, and reads for all.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from mlp_xp import Checkpoint, Network, adam, train
    >>> X = np.linspace(-1.0, 1.0, 50)[:, None]
    >>> network = Network((1, 8, 1), activation="tanh", loss="squared_error")
    >>> params = network.init(seed=0, like=X)
    >>> def run(path, epochs):
    ...     return train(
    ...         network, params, X, X**2, optimizer=adam(0.01), epochs=epochs, batch_size=16, seed=0,
    ...         checkpoint=Checkpoint(path, every_epochs=5), resume=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = run(pathlib.Path(folder) / "run.mlpx", 10)  # and here the machine fails
    ...     second = run(pathlib.Path(folder) / "run.mlpx", 20)
    ...     never_stopped = run(pathlib.Path(folder) / "other.mlpx", 20)
    >>> len(first.history), len(second.history), second.history == never_stopped.history
    (10, 20, True)
    """

    path: str | os.PathLike[str]
    _: KW_ONLY
    every_seconds: float | None = None
    every_epochs: int | None = None
    keep: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not check_path(self.path).name.strip(".") or str(self.path).endswith("/"):
            raise ValueError(f"`path` must be that of a file, got {shown(str(self.path))}")
        if self.every_seconds is not None:
            check_real("every_seconds", self.every_seconds, at_least=0.0)
        if self.every_epochs is not None:
            check_integer("every_epochs", self.every_epochs, minimum=1)
            if self.every_seconds is not None:
                raise ValueError("`every_seconds` must be None where `every_epochs` is given, or the other")
        check_integer("keep", self.keep, minimum=1)
        check_bool("overwrite", self.overwrite)

    def _begun(self) -> None:
        """Do what is to be done when the first checkpoint of a training that is not resumed is written."""


def check_checkpoint(checkpoint: Any) -> Checkpoint | None:
    """Return the argument `checkpoint`, which may be a path."""
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, (str, os.PathLike)):
        with errors_naming("checkpoint", "path"):
            return Checkpoint(checkpoint)
    raise TypeError(f"`checkpoint` must be a Checkpoint, or a path, got {shown(checkpoint)}")
