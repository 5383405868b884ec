"""Trainings that end early become a warning or an error that carries what was trained, in one place."""

import pickle
import warnings

import numpy as np
import pytest

from mlp_xp import (
    DivergenceError,
    History,
    Layer,
    OutOfMemoryError,
    TrainingError,
    TrainingInterruptedWarning,
)
from mlp_xp._devices import MemoryShortage
from mlp_xp._training.recovery import run_with_recovery

TRAINED = (Layer(np.ones((2, 1)), np.zeros(1)),)


class Training:
    """A training of which two epochs are finished when it ends as told."""

    unit = "epoch"
    number = 3

    def __init__(self, error):
        self.error = error
        self.history = History({"epoch": epoch, "loss": 1.0} for epoch in (1, 2))
        self.params = ()
        self.calls = []

    def run(self):
        if self.error is not None:
            raise self.error

    def keep_finite_state(self):
        self.calls.append("keep")
        self.params = TRAINED

    def revert(self):
        self.calls.append("revert")

    def release(self, error):
        self.calls.append("release")
        self.params = TRAINED
        return MemoryShortage(2_000_000, 1_000_000, 5)


def test_a_training_that_ends_is_left_alone():
    training = Training(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_with_recovery(training)
    assert training.calls == []


def test_an_interrupt_is_a_warning_at_the_callers_line():
    training = Training(KeyboardInterrupt())
    with pytest.warns(TrainingInterruptedWarning, match="^training interrupted after 2 epochs") as caught:
        run_with_recovery(training)
    assert training.calls == ["keep"]
    assert caught[0].filename == __file__


def test_an_interrupt_is_an_error_where_warnings_are():
    training = Training(KeyboardInterrupt())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TrainingError, match="interrupted after 2 epochs") as caught:
            run_with_recovery(training)
    assert (caught.value.epoch, caught.value.params) == (3, TRAINED)
    assert caught.value.history == training.history


def test_divergence_goes_back_to_the_last_finite_state():
    training = Training(None)
    diverged = training.error = DivergenceError("diverged", 3, TRAINED, training.history, np.inf)
    with pytest.raises(DivergenceError) as caught:
        run_with_recovery(training)
    assert caught.value is diverged
    assert training.calls == ["revert"]


@pytest.mark.parametrize("n_times", [1, 2])
def test_any_other_error_is_raised_as_it_is_with_what_was_trained(n_times):
    error = ZeroDivisionError("in a callback")
    for _ in range(n_times):  # an error raised again belongs to the later training
        training = Training(error)
        with pytest.raises(ZeroDivisionError) as caught:
            run_with_recovery(training)
    assert caught.value is error
    assert training.calls == ["keep"]
    assert (error.epoch, error.params) == (3, TRAINED)
    assert error.history is training.history
    assert error.__notes__ == [
        "raised in epoch 3 of a training; `.params` and `.history` of this error hold what was trained"
    ]
    assert pickle.loads(pickle.dumps(error)).history == training.history


def test_an_error_of_another_training_carries_what_this_one_trained():
    """Such as one inside a callback."""
    foreign = DivergenceError("the other diverged", 7, (), History(), np.inf)
    training = Training(foreign)
    with pytest.raises(DivergenceError, match="the other diverged") as caught:
        run_with_recovery(training)
    assert caught.value is foreign
    assert (foreign.epoch, foreign.params) == (7, ())
    assert foreign.training.params == TRAINED
    assert foreign.training.history is training.history


def test_lack_of_memory_says_what_is_needed():
    training = Training(MemoryError("no room"))
    expected = r"^memory ran out in epoch 3 \(MemoryError: no room\): 2 MB needed, 1 MB free; .* is 5$"
    with pytest.raises(OutOfMemoryError, match=expected) as caught:
        run_with_recovery(training)
    assert training.calls == ["release"]
    assert (caught.value.needed, caught.value.free, caught.value.batch_size) == (2_000_000, 1_000_000, 5)
    assert (caught.value.epoch, caught.value.params) == (3, TRAINED)
