"""The checkpoints of several networks that are trained in turn: a file for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlp_xp._processes import current_processes
from mlp_xp._training.checkpoint_files import check_may_be_written, remove_checkpoint
from mlp_xp._training.checkpoints import Checkpoint, check_checkpoint
from mlp_xp._training.resuming import find_source
from mlp_xp._validation import check_bool


@dataclass(frozen=True)
class _Numbered(Checkpoint):
    """One of several checkpoints; when it begins, those after it are removed, which are of another fit."""

    those_after: tuple[Path, ...] = ()

    def _begun(self) -> None:
        for path in self.those_after:
            remove_checkpoint(path)


class NumberedCheckpoints:
    """A checkpoint for each of several networks, with "-1", "-2", ... behind the stem of the file's name.

    A network is resumed if the one before it had ended: else its file is of a fit that was to be replaced.

    Parameters
    ----------
    checkpoint : Checkpoint, path or None
    resume : bool
        Whether to go on from those that there are.
    n_networks : int

    Attributes
    ----------
    seed : int or None
        The seed of the first network of the training to resume; None if there is no such training.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a file damaged.
    OSError
        If another process writes one of the files, or there are some of another fit, which must not be
        replaced.
    """

    def __init__(self, checkpoint: Any, resume: Any, n_networks: int) -> None:
        self._rule = check_checkpoint(checkpoint)
        self._n_networks, self._n_resumed = n_networks, 0
        self.seed: int | None = None
        self._resumes = resumes = check_bool("resume", resume)
        if self._rule is None:
            if resumes:
                raise ValueError(
                    "`checkpoint` must be given where `resume` is True: it says which files to resume from"
                )
            return
        processes = current_processes()
        if processes is None or processes.rank == 0:
            for number in range(1, n_networks + 1):
                check_may_be_written(self._of(number), resumes=resumes)
        while resumes and self._n_resumed < n_networks:
            source = find_source(True, self._of(self._n_resumed + 1))
            if source is None:
                break
            assert source.model is not None
            self._n_resumed += 1
            before = source.model.parameters
            if self._n_resumed == 1:
                self.seed = _integer(before.get("random_state"))
            resumes = source.is_finished(_integer(before.get("max_iter")) or 0)

    def _of(self, number: int) -> Checkpoint:
        assert self._rule is not None
        path = Path(self._rule.path)
        own, *others = (
            path.with_name(f"{path.stem}-{each}{path.suffix}") for each in range(number, self._n_networks + 1)
        )
        changed = {"overwrite": self._rule.overwrite or self._resumes, "those_after": tuple(others)}
        return _Numbered(**{**vars(self._rule), "path": own, **changed})

    def fit_arguments(self, number: int) -> dict[str, Any]:
        """Return the arguments of `fit` that name the checkpoint of a network, which are numbered from 1."""
        if self._rule is None:
            return {}
        return {"checkpoint": self._of(number), "resume": number <= self._n_resumed}


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) else None
