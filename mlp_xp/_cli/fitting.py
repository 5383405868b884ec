"""Training a network for the commands train and sweep: its description, outcome, scores and command line."""

from __future__ import annotations

import argparse
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from mlp_xp._arrays import library_name
from mlp_xp._cli.loading import LoadedData
from mlp_xp._cli.options import EXIT_FAILED, EXIT_INTERRUPTED, command_words
from mlp_xp._cli.screen import Screen
from mlp_xp._engines import EagerFallbackWarning
from mlp_xp._training.history import TrainingError, TrainingInterruptedWarning
from mlp_xp.backends import Backend
from mlp_xp.tables._pipelines import fit, model_outputs
from mlp_xp.tables._scores import score, why_undefined


class Outcome(NamedTuple):
    """How a training ended.

    Attributes
    ----------
    message : str
        Why it stopped, to be printed.
    exit_code : int
        The exit code of the command.
    seconds : float
    """

    message: str
    exit_code: int
    seconds: float


def describe_machine(chosen: Backend, options: argparse.Namespace) -> str:
    """Return the line that names the library, the device and the dtype, and why they were chosen."""
    device = "CPU" if "cpu" in str(chosen.device).lower() else str(chosen.device)
    products = ", TF32 in products" if options.matmul_precision == "tf32" else ""
    return f"Training on {library_name(chosen.xp)} ({device}) in {options.dtype}{products} ({chosen.reason})"


def describe_network(estimator: Any, loaded: LoadedData) -> str:
    """Return a description of the network: layer sizes, activation, solver and maximum number of epochs."""
    hidden = estimator.hidden_layer_sizes
    n_classes = len(np.unique(loaded.target.values)) if loaded.prepared.task == "classification" else 1
    sizes = [loaded.prepared.preprocessor.width, *hidden, 1 if n_classes == 2 else n_classes]
    activation = (
        estimator.activation if isinstance(estimator.activation, str) else ", ".join(estimator.activation)
    )
    middle = f", {activation}" if hidden else ""
    most = f"at most {estimator.max_iter} {_iteration_name(estimator)}"
    return f"{'-'.join(map(str, sizes))}{middle}, {estimator.solver}, {most}"


def _iteration_name(estimator: Any) -> str:
    return "iterations" if estimator.solver == "lbfgs" else "epochs"


@contextmanager
def without_backend(estimator: Any) -> Iterator[None]:
    """Set an estimator's `backend` to None while it is saved: it may be loaded on another machine."""
    backend = estimator.backend
    estimator.set_params(backend=None)
    try:
        yield
    finally:
        estimator.set_params(backend=backend)


def train(estimator: Any, loaded: LoadedData, screen: Screen, description: str = "epoch") -> Outcome:
    """Train an estimator; return how it ended. It keeps what was trained, also after an error or Ctrl-C."""
    bar = screen.progress(description)
    if bar is not None:
        estimator.set_callbacks(bar)
    start, failure = time.perf_counter(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for category in (TrainingInterruptedWarning, ConvergenceWarning, EagerFallbackWarning):
            warnings.simplefilter("always", category)
        try:
            fit(estimator, loaded.prepared)
        except Exception as error:
            if not hasattr(estimator, "coefs_"):  # nothing was trained
                raise
            failure = str(error).partition("; `.params`")[0]
            if not isinstance(error, TrainingError):
                done = f"{estimator.n_iter_} {_iteration_name(estimator)}"
                failure = f"training failed after {done} ({type(error).__name__}: {error})"
    seconds = time.perf_counter() - start
    estimator.set_callbacks()
    for warning in caught:
        if issubclass(warning.category, EagerFallbackWarning):
            screen.print_note(str(warning.message))
    if failure is not None:
        message = f"{failure}. What was trained until then is scored and kept."
        return Outcome(message, EXIT_FAILED, seconds)
    if any(issubclass(warning.category, TrainingInterruptedWarning) for warning in caught):
        message = (
            f"interrupted after {estimator.n_iter_} of {estimator.max_iter} {_iteration_name(estimator)}"
        )
        return Outcome(message, EXIT_INTERRUPTED, seconds)
    warned = [str(one.message) for one in caught if issubclass(one.category, ConvergenceWarning)]
    return Outcome(_stopping_message(estimator, warned), 0, seconds)


def _stopping_message(estimator: Any, warned: list[str]) -> str:
    """Return why a training without errors stopped, given its convergence warnings."""
    what = _iteration_name(estimator)
    if estimator.n_iter_ >= estimator.max_iter:
        return f"Trained for all {estimator.n_iter_} {what}; more may help (--epochs)."
    if warned:  # L-BFGS stops for several reasons, which its warning names
        return " ".join(warned[0].split()).partition(" Features of mean")[0]
    if estimator.solver == "lbfgs":
        return f"Stopped after {estimator.n_iter_} {what}: at a minimum."
    measure = "the validation result" if estimator.early_stopping else "the loss"
    return f"Stopped after {estimator.n_iter_} {what}: {measure} no longer improved."


def score_splits(estimator: Any, loaded: LoadedData) -> dict[str, dict[str, Any]]:
    """Return the scores of each split, and under "baseline" the baseline's on the reported split."""
    data, reported = loaded.prepared, loaded.prepared.splits[loaded.report_split]
    classes = np.asarray(estimator.classes_) if data.task == "classification" else None
    scores = {
        split: score(data.task, rows.y, model_outputs(estimator, data.X[split]), classes)
        for split, rows in data.splits.items()
    }
    outputs = loaded.baseline.outputs(len(reported.y))
    scores["baseline"] = score(data.task, reported.y, outputs, classes)
    return scores


def undefined_scores(loaded: LoadedData, scores: dict[str, dict[str, Any]]) -> list[str]:
    """Return notes on the splits of which some scores are not defined."""
    notes = []
    classes = np.unique(loaded.target.values) if loaded.target.task == "classification" else None
    for split, rows in loaded.prepared.splits.items():
        if reason := why_undefined(scores[split], rows.y, classes):
            notes.append(f"{split}: {reason}")
    return notes


def repeat_command(options: argparse.Namespace, loaded: LoadedData, **changed: Any) -> str:
    """Return the command that does the same again, for a shell, with options changed by name.

    It names the target, which may be the last column by default. The task is not named unless the user gave
    it: the summary says that a task given was asked for.
    """
    repeated = {**vars(options), "target": loaded.target_name, **changed}
    return shlex.join(command_words(argparse.Namespace(**repeated)))
