"""Recovery of trainings from Ctrl-C, divergence, lack of memory and other errors."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from mlp_xp._arrays import Placement
from mlp_xp._devices import MemoryShortage, is_out_of_memory, release_memory
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._parameters import Layer
from mlp_xp._training.history import (
    History,
    OutOfMemoryError,
    Trained,
    TrainingError,
    TrainingInterruptedWarning,
)
from mlp_xp._warnings import warn


class RecoverableTraining(Protocol):
    """Interface of a training to `run_with_recovery`: that of the training loop and of L-BFGS.

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

    def keep_finite_state(self) -> None:
        """Keep what was trained since the state was last saved, if that is finite."""

    def revert(self) -> None:
        """Return to the state last saved, which is finite."""

    def release(self, error: BaseException) -> MemoryShortage | None:
        """Free the memory that the training took, keep what was trained; return the shortage, if known."""


def run_with_recovery(training: RecoverableTraining) -> None:
    """Run a training; if it ends early, keep what was trained.

    Ctrl-C becomes a `TrainingInterruptedWarning` and lack of memory an `OutOfMemoryError`. Other errors are
    raised as they are, with what was trained attached: nothing tells a user's function that failed, inside a
    compiled step say, from a library's.
    """
    try:
        training.run()
    except KeyboardInterrupt:
        with deferred_interrupts():
            training.keep_finite_state()
        n_done = len(training.history)
        message = f"training interrupted after {n_done} {training.unit}s; returning what was trained"
        try:
            warn(message, TrainingInterruptedWarning)
        except TrainingInterruptedWarning as error:  # a filter makes errors of warnings
            raise TrainingError(message, n_done + 1, training.params, training.history) from error
    except BaseException as error:  # such as the SystemExit of a callback
        if (
            isinstance(error, TrainingError) and error.history is training.history
        ):  # it is this training's own
            training.revert()
            raise
        number = training.number
        if is_out_of_memory(error):
            shortage = training.release(error)
            raise out_of_memory(error, number, training.params, training.history, shortage) from error
        with deferred_interrupts():
            training.keep_finite_state()
        attach(error, training.unit, number, training.params, training.history)
        raise


def attach(error: BaseException, unit: str, number: int, params: tuple[Layer, ...], history: History) -> None:
    """Attach what was trained to an error that is raised as it is, and a note that says so.

    Attributes of these names that the error has itself stay; then `.training` has what they leave out.
    """
    note = f"raised in {unit} {number} of a training"
    with suppress(Exception):  # whatever an error does when it is asked for attributes, it is raised
        is_ours = isinstance(error, TrainingError)
        attached_before = not is_ours and isinstance(getattr(error, "history", None), History)
        wanted = {"epoch": number, "params": params, "history": history}
        free = {name for name in wanted if attached_before or not hasattr(error, name)}
        if not {"params", "history"} <= free:
            wanted["training"] = Trained(params, history)
            free |= {"training"} - vars(error).keys()
        for name in free:
            setattr(error, name, wanted[name])
        where = "`.params` and `.history`" if {"params", "history"} <= free else "`.training`"
        note += f"; {where} of this error hold what was trained"
    with suppress(Exception):
        if note not in (getattr(error, "__notes__", None) or ()):
            error.add_note(note)


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
    if error is not None:
        where = f"in epoch {epoch}" if history else "before the first epoch"
        message = f"memory ran out {where} ({type(error).__name__}: {error})"
    else:
        where = f"in epoch {epoch}" if history else "before its first epoch"
        message = f"the device's memory does not hold the training ({where})"
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
