"""Trainings that end early, by Ctrl-C, divergence, lack of memory or another error, keep what was trained."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Protocol

from mlp_xp._arrays import Placement
from mlp_xp._devices import MemoryShortage, is_out_of_memory, release_memory
from mlp_xp._parameters import Layer
from mlp_xp._training.history import History, OutOfMemoryError, TrainingError, TrainingInterruptedWarning
from mlp_xp._warnings import warn


class Run(Protocol):
    """A training under way, as `run_to_the_end` needs it: the training loop, or L-BFGS.

    Attributes
    ----------
    unit : {"epoch", "iteration"}
    history : History
        The finished epochs.
    """

    unit: str
    history: History

    @property
    def number(self) -> int:
        """The epoch under way, from 1."""

    @property
    def params(self) -> tuple[Layer, ...]:
        """The parameters last saved."""

    def run(self) -> None:
        """Train to the end; raise a `TrainingError` on divergence."""

    def salvage(self) -> None:
        """Recover what was trained since the state was last saved, where that is finite."""

    def restore(self) -> None:
        """Go back to the state last saved, which is finite."""

    def release(self, error: BaseException) -> MemoryShortage | None:
        """Free the memory that the training took, keep what was trained; return what was lacking."""


def run_to_the_end(training: Run) -> None:
    """Run a training; where it is cut short, keep what was trained.

    Ctrl-C becomes a `TrainingInterruptedWarning`, every other error a `TrainingError` that carries
    parameters and history.
    """
    try:
        training.run()
    except KeyboardInterrupt:
        training.salvage()
        n_done = len(training.history)
        message = f"training interrupted after {n_done} {training.unit}s; returning what was trained"
        try:
            warn(message, TrainingInterruptedWarning)
        except TrainingInterruptedWarning as error:  # a filter makes errors of warnings
            raise TrainingError(message, n_done + 1, training.params, training.history) from error
    except TrainingError:
        training.restore()
        raise
    except Exception as error:
        number = training.number
        if is_out_of_memory(error):
            shortage = training.release(error)
            raise out_of_memory(error, number, training.params, training.history, shortage) from error
        training.salvage()
        message = (
            f"training failed in {training.unit} {number} ({type(error).__name__}: {error}); "
            "`.params` and `.history` of this error hold what was trained"
        )
        raise TrainingError(message, number, training.params, training.history) from error


def release_frames(error: BaseException, place: Placement) -> None:
    """Free the arrays that the frames of a failed call still hold, and the memory that libraries pool."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)
    release_memory(place)


def out_of_memory(
    error: BaseException | None,
    epoch: int,
    params: tuple[Layer, ...],
    history: History,
    shortage: MemoryShortage | None,
) -> OutOfMemoryError:
    """Make the error to raise; `error` is what was caught, None if the training was not begun."""
    where = f"in epoch {epoch}" if history else "before its first epoch"
    message = f"the device's memory does not hold the training ({where})"
    if error is not None:
        message = f"memory ran out {where.replace('its', 'the')} ({type(error).__name__}: {error})"
    shortage = shortage or MemoryShortage(None, None, None)
    if shortage.needed is not None and shortage.free is not None:
        message += f": {shortage}"
    return OutOfMemoryError(message, epoch, params, history, *shortage)


def without_frames(error: OutOfMemoryError) -> OutOfMemoryError:
    """Drop the error's tracebacks, whose frames would keep arrays alive as long as the error; return it."""
    for one in _chain(error):
        one.__traceback__ = None
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
