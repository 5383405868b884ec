"""One training of the command: what is said of it, how it ended, how good it is, how to do it again."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from mlp_xp._arrays import library_name
from mlp_xp._cli.loading import Problem
from mlp_xp._cli.options import EXIT_FAILED, EXIT_INTERRUPTED
from mlp_xp._cli.screen import Screen
from mlp_xp._engines import EagerFallbackWarning
from mlp_xp._training.history import TrainingError, TrainingInterruptedWarning
from mlp_xp.backends import Backend
from mlp_xp.tables._pipelines import baseline_outputs, fit, outputs, score


class Outcome(NamedTuple):
    """How a training ended.

    Attributes
    ----------
    said : str
        For people.
    code : int
        Of the command.
    seconds : float
    """

    said: str
    code: int
    seconds: float


def machine(chosen: Backend, options: argparse.Namespace) -> str:
    """Say where the training happens, and why there."""
    device = "CPU" if "cpu" in str(chosen.device).lower() else str(chosen.device)
    products = ", TF32 in products" if options.matmul_precision == "tf32" else ""
    return f"Training on {library_name(chosen.xp)} ({device}) in {options.dtype}{products} ({chosen.reason})"


def describe_network(estimator: Any, problem: Problem) -> str:
    """Say what will be trained, and for how long."""
    hidden = estimator.hidden_layer_sizes
    n_classes = len(np.unique(problem.target.values)) if problem.data.task == "classification" else 1
    sizes = [problem.data.X["training"].width, *hidden, 1 if n_classes == 2 else n_classes]
    activation = (
        estimator.activation if isinstance(estimator.activation, str) else ", ".join(estimator.activation)
    )
    middle = f", {activation}" if hidden else ""
    most = f"at most {estimator.max_iter} {_unit(estimator)}"
    return f"{'-'.join(map(str, sizes))}{middle}, {estimator.solver}, {most}"


def _unit(estimator: Any) -> str:
    return "iterations" if estimator.solver == "lbfgs" else "epochs"


@contextmanager
def portable(estimator: Any) -> Iterator[None]:
    """Let an estimator be saved without where it computes: whoever loads it may have another machine."""
    asked = estimator.backend
    estimator.set_params(backend=None)
    yield
    estimator.set_params(backend=asked)


def train(estimator: Any, problem: Problem, screen: Screen, description: str = "epoch") -> Outcome:
    """Train an estimator, and say how it ended; what was trained is kept in any case."""
    bar = screen.progress(description)
    if bar is not None:
        estimator.set_callbacks(bar)
    start, failure = time.perf_counter(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for category in (TrainingInterruptedWarning, ConvergenceWarning, EagerFallbackWarning):
            warnings.simplefilter("always", category)
        try:
            fit(estimator, problem.data)
        except TrainingError as error:
            if not hasattr(estimator, "coefs_"):  # memory ran out before anything was trained
                raise
            failure = str(error).partition("; `.params`")[0]
    seconds = time.perf_counter() - start
    estimator.set_callbacks()
    for warning in caught:
        if issubclass(warning.category, EagerFallbackWarning):
            screen.note(str(warning.message))
    if failure is not None:
        said = f"{failure}. What was trained until then is what is scored and kept."
        return Outcome(said, EXIT_FAILED, seconds)
    if any(issubclass(warning.category, TrainingInterruptedWarning) for warning in caught):
        said = f"interrupted after {estimator.n_iter_} of {estimator.max_iter} {_unit(estimator)}"
        return Outcome(said, EXIT_INTERRUPTED, seconds)
    warned = [str(one.message) for one in caught if issubclass(one.category, ConvergenceWarning)]
    return Outcome(_how_it_ended(estimator, warned), 0, seconds)


def _how_it_ended(estimator: Any, warned: list[str]) -> str:
    what = _unit(estimator)
    if estimator.n_iter_ >= estimator.max_iter:
        return f"Trained for all {estimator.n_iter_} {what}, and might go on; --epochs sets how many."
    if warned:  # by lbfgs, whose reasons are many
        return " ".join(warned[0].split()).partition(" Features of mean")[0]
    if estimator.solver == "lbfgs":
        return f"Stopped after {estimator.n_iter_} {what}: at a minimum."
    watched = "the rows held back" if estimator.early_stopping else "the loss"
    return f"Stopped after {estimator.n_iter_} {what}: {watched} showed no more progress."


def score_parts(estimator: Any, problem: Problem) -> dict[str, dict[str, Any]]:
    """Score each part, and a trivial model on the part that tells most."""
    data, drawn = problem.data, problem.data.parts[problem.drawn]
    classes = np.asarray(estimator.classes_) if data.task == "classification" else None
    scores = {
        use: score(data.task, part.y, outputs(estimator, data.X[use]), classes)
        for use, part in data.parts.items()
    }
    trivial = baseline_outputs(problem.baseline, len(drawn.y))
    scores["baseline"] = score(data.task, drawn.y, trivial, classes)
    return scores


def repeatable(options: argparse.Namespace, given: Sequence[str], problem: Problem) -> list[str]:
    """Return the words of the command that does the same again, with what it found out for itself.

    What was asked for comes later, and goes before.
    """
    found = {
        "target": problem.target_name,
        "task": problem.data.task,
        "random-state": options.random_state,
        "backend": options.backend,
    }
    place = given.index(options.command) + 1
    return ["mlp-xp", *given[:place], *(f"--{name}={value}" for name, value in found.items()), *given[place:]]
