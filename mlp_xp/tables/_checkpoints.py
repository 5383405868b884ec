"""The checkpoints of several networks that are trained in turn: a file for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlp_xp._processes import current_processes
from mlp_xp._training.checkpoint_files import check_may_be_written
from mlp_xp._training.checkpoints import Checkpoint, check_checkpoint
from mlp_xp._training.resuming import find_source
from mlp_xp._validation import check_bool


class NumberedCheckpoints:
    """A checkpoint for each of several networks, with "-1", "-2", ... behind the stem of the file's name.

    A network is resumed if the one before it had ended: else its file is of another fit, which was to be
    replaced by this one.

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
        self._n_resumed = 0
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
                check_may_be_written(self._of(self._rule, number), resumes=resumes)
        while resumes and self._n_resumed < n_networks:
            source = find_source(True, self._of(self._rule, self._n_resumed + 1))
            if source is None:
                break
            assert source.model is not None
            self._n_resumed += 1
            seed = source.model.parameters.get("random_state")
            if self._n_resumed == 1 and isinstance(seed, (int, np.integer)):
                self.seed = int(seed)
            resumes = bool(source.progress["is_ended"])

    @staticmethod
    def _of(rule: Checkpoint, number: int) -> Checkpoint:
        path = Path(rule.path)
        return replace(rule, path=path.with_name(f"{path.stem}-{number}{path.suffix}"))

    def fit_arguments(self, number: int) -> dict[str, Any]:
        """Return the arguments of `fit` that name the checkpoint of a network, which are numbered from 1."""
        if self._rule is None:
            return {}
        checkpoint = self._of(self._rule, number)
        if number <= self._n_resumed:
            return {"checkpoint": checkpoint, "resume": True}
        return {"checkpoint": replace(checkpoint, overwrite=checkpoint.overwrite or self._resumes)}
