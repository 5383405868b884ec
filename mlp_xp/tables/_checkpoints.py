"""The checkpoints of several networks that are trained in turn: a file for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlp_xp._processes import current_processes
from mlp_xp._training.checkpoint_files import begin_anew
from mlp_xp._training.checkpoints import Checkpoint, check_checkpoint
from mlp_xp._training.resuming import find_source
from mlp_xp._validation import check_bool


class NumberedCheckpoints:
    """A checkpoint for each of several networks, with "-1", "-2", ... behind the stem of the file's name.

    Parameters
    ----------
    checkpoint : Checkpoint, path or None
    resume : bool
        Whether to go on from those that there are.
    n_networks : int

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    OSError
        If there are some of another training, which must not be replaced.
    """

    def __init__(self, checkpoint: Any, resume: Any, n_networks: int) -> None:
        self._rule = check_checkpoint(checkpoint)
        self._resume = check_bool("resume", resume)
        if self._rule is None and resume:
            raise ValueError(
                "`checkpoint` must be given where `resume` is True: it says which files to resume from"
            )
        processes = current_processes()
        if self._rule is not None and not resume and (processes is None or processes.rank == 0):
            begin_anew([self._of(self._rule, number + 1) for number in range(n_networks)])

    @staticmethod
    def _of(rule: Checkpoint, number: int) -> Checkpoint:
        path = Path(rule.path)
        return replace(rule, path=path.with_name(f"{path.stem}-{number}{path.suffix}"))

    def fit_arguments(self, number: int) -> dict[str, Any]:
        """Return the arguments of `fit` that name the checkpoint of a network, which are numbered from 1."""
        if self._rule is None:
            return {}
        return {"checkpoint": self._of(self._rule, number), "resume": self._resume}

    def seed(self) -> int | None:
        """Return the seed of the training to resume, None if there is none."""
        if self._rule is None:
            return None
        source = find_source(self._resume, self._of(self._rule, 1))
        seed = None if source is None or source.model is None else source.model.parameters.get("random_state")
        return int(seed) if isinstance(seed, (int, np.integer)) else None
