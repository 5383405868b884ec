"""Training a network for the commands train and sweep: its description, outcome, scores and command line."""

from __future__ import annotations

import argparse
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from mlp_xp._arrays import HostArray, library_name
from mlp_xp._cli.loading import LoadedData
from mlp_xp._cli.options import EXIT_FAILED, EXIT_INTERRUPTED, command_words
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp._engines import EagerFallbackWarning
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._training.checkpoints import CheckpointWarning
from mlp_xp._training.history import TrainingError, TrainingInterruptedWarning
from mlp_xp.backends import Backend
from mlp_xp.tables._networks import Training, best_epoch
from mlp_xp.tables._pipelines import model_outputs
from mlp_xp.tables._scores import SCORE_TITLES, score, why_undefined

SHOWN_WARNINGS = (EagerFallbackWarning, CheckpointWarning)
"""Warnings of a training that are printed as they are."""

MIN_RELATIVE_GAIN = 1e-5
"""Relative difference from which on a network is better than the baseline: above the rounding of float32."""


SplitOutputs: TypeAlias = dict[str, tuple[HostArray, HostArray]]
"""Targets and the network's outputs of the rows of each split."""


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


def describe_network(training: Training, loaded: LoadedData) -> str:
    """Return a description of the network: layer sizes, activation, solver and maximum number of epochs."""
    estimator, n_networks = training.estimator, training.n_networks
    hidden = estimator.hidden_layer_sizes
    n_classes = 1 if loaded.classes is None else len(loaded.classes)
    sizes = [loaded.prepared.preprocessor.width, *hidden, 1 if n_classes == 2 else n_classes]
    activation = (
        estimator.activation if isinstance(estimator.activation, str) else ", ".join(estimator.activation)
    )
    middle = f", {activation}" if hidden else ""
    most = f"at most {estimator.max_iter} {_iteration_name(estimator)}"
    several = f"the average of {n_networks}, each " if n_networks > 1 else ""
    return f"{several}{'-'.join(map(str, sizes))}{middle}, {estimator.solver}, {most}"


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


def train(training: Training, screen: Screen, description: str = "epoch") -> Outcome:
    """Train; return how it ended. The estimator has what was trained, also after an error or Ctrl-C."""
    estimator, n_networks = training.estimator, training.n_networks

    def show_progress(number: int) -> None:
        of_network = f"network {number} of {n_networks} " if n_networks > 1 else ""
        bar = screen.progress(of_network + description)
        if bar is not None:
            estimator.set_callbacks(bar)

    training.on_begin = show_progress
    start, failure = time.perf_counter(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for category in (TrainingInterruptedWarning, ConvergenceWarning, *SHOWN_WARNINGS):
            warnings.simplefilter("always", category)
        try:
            training.run()
        except KeyboardInterrupt:  # at the very end
            if not training.networks:
                raise
            training.is_interrupted = True
            with deferred_interrupts(deliver=False):
                training.publish()
        except Exception as error:
            if not hasattr(estimator, "coefs_"):  # nothing was trained
                raise
            failure = str(error).partition("; `.params`")[0]
            if not isinstance(error, TrainingError):
                n_done = training.networks[-1].n_iter_ if len(training.networks) == training.n_begun else 0
                done = f"{n_done} {_iteration_name(estimator)}"
                failure = f"training failed after {done} ({type(error).__name__}: {error})"
    seconds = time.perf_counter() - start
    estimator.set_callbacks()
    for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, SHOWN_WARNINGS)):
        screen.print_note(text)
    of_network = f"network {training.n_begun} of {n_networks}: " if n_networks > 1 else ""
    if failure is not None:
        message = f"{of_network}{failure}. What was trained until then is scored and kept."
        return Outcome(message, EXIT_FAILED, seconds)
    if training.is_interrupted:
        done = training.networks[-1].n_iter_
        message = f"{of_network}interrupted after {done} of {estimator.max_iter} {_iteration_name(estimator)}"
        if training.n_finished == len(training.networks):
            message = f"interrupted after {training.n_finished} of {n_networks} networks"
        return Outcome(message, EXIT_INTERRUPTED, seconds)
    warned = [str(one.message) for one in caught if issubclass(one.category, ConvergenceWarning)]
    return Outcome(_stopping_message(training, warned), 0, seconds)


def _stopping_message(training: Training, warned: list[str]) -> str:
    """Return why a training without errors stopped, given its convergence warnings."""
    estimator, networks = training.estimator, training.networks
    what, most = _iteration_name(estimator), estimator.max_iter
    numbers = sorted({network.n_iter_ for network in networks})
    if training.stops_early:
        return _best_epochs_message(training)
    if numbers == [most]:
        return f"Trained for all {most} {what}{_past_its_best(training)}."
    if warned:  # L-BFGS stops for several reasons, which its warning names
        return " ".join(warned[0].split()).partition(" Features of mean")[0]
    reason = "at a minimum" if estimator.solver == "lbfgs" else "the loss no longer improved"
    return f"Stopped after {_and_listed(numbers)} {what}: {reason}."


def _best_epochs_message(training: Training) -> str:
    """Return which epochs were best on the rows not trained on, and are kept."""
    most, constant = training.estimator.max_iter, "the class frequencies"
    if training.shrinkage == 0.0:
        if training.data.task == "regression":
            constant = "the mean"
        return (
            f"On the rows left out the networks gained no more than chance on {constant}, which is predicted."
        )
    best = [best_epoch(network) for network in training.networks]
    if None in best:
        return f"No score could be computed on the validation rows ({training.estimator.early_stopping})."
    several = len(best) > 1
    by_loss = training.estimator.early_stopping == "loss"
    message = (
        f"{'Lowest validation loss' if by_loss else 'Best validation score'} at epoch{'s' * several} "
        f"{_and_listed(best)} of {most}, which {'are' if several else 'is'} kept"
    )
    if n_last := best.count(most):
        networks = f" in {n_last} network{'s' * (n_last > 1)}" if several else ""
        message += f"; at the last epoch it still improved{networks}: more may help (--epochs)"
    return f"{message}."


def _past_its_best(training: Training) -> str:
    """Return what is said of a training that ran for all epochs: whether more or fewer may help."""
    n_rows, estimator = training.data.splits["training"].n_total, training.estimator
    losses = [network.val_loss_curve_ for network in training.networks]
    if training.monitored is None or not all(losses):
        if training.leaves_rows_out and estimator.early_stopping and estimator.solver != "lbfgs":
            return f": {n_rows} rows are too few to leave some out"
        return "; more may help (--epochs)"
    best = [1 + int(np.argmin(np.nan_to_num(curve, nan=np.inf))) for curve in losses]
    n_last = best.count(estimator.max_iter)
    if n_last == len(best):
        return "; more may help (--epochs)"
    message = f", but the loss of the {training.monitored} rows was lowest at epoch"
    advice = "" if n_last else ": fewer may help, or --early-stopping loss"
    return f"{message}{'s' * (len(best) > 1)} {_and_listed(best)}{advice}"


def _and_listed(numbers: Sequence[int | None]) -> str:
    """Return numbers as "1, 2 and 3"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def split_outputs(estimator: Any, loaded: LoadedData) -> SplitOutputs | None:
    """Return targets and outputs of the rows of each split; None in processes other than the first."""
    found = {}
    for split, rows in loaded.prepared.splits.items():
        gathered = rows.gather("the scores", rows.y, model_outputs(estimator, loaded.prepared.X[split]))
        if gathered is not None:
            found[split] = gathered[0], gathered[1]
    return found or None


def score_splits(
    estimator: Any, loaded: LoadedData, outputs: SplitOutputs
) -> dict[str, dict[str, float | None]]:
    """Return the scores of each split, and under "baseline" the baseline's on the reported split."""
    task = loaded.prepared.task
    classes = np.asarray(estimator.classes_) if task == "classification" else None
    scores = {split: score(task, y, found, classes) for split, (y, found) in outputs.items()}
    reported, _ = outputs[loaded.report_split]
    scores["baseline"] = score(task, reported, loaded.baseline.outputs(len(reported)), classes)
    return scores


def undefined_scores(
    loaded: LoadedData, scores: dict[str, dict[str, Any]], targets: Mapping[str, HostArray]
) -> list[str]:
    """Return notes on the splits of which some scores are not defined."""
    reasons = {split: why_undefined(scores[split], y, loaded.classes) for split, y in targets.items()}
    return [f"{split}: {reason}" for split, reason in reasons.items() if reason]


def no_better_than_baseline(loaded: LoadedData, scores: dict[str, dict[str, Any]]) -> list[str]:
    """Return a note if the network's loss is not below that of the baseline, on the reported split."""
    network, baseline = scores[loaded.report_split], scores["baseline"]
    name, sign, constant = ("log_loss", 1.0, "the class frequencies")
    if loaded.prepared.task == "regression":
        name, sign, constant = ("r2", -1.0, "the mean")
    ours, its = network[name], baseline[name]
    if ours is None or its is None or sign * (its - ours) > MIN_RELATIVE_GAIN * abs(its):
        return []
    title = SCORE_TITLES[loaded.prepared.task][name]
    return [
        f"{loaded.report_split}: the network is no better than {constant} of the training rows "
        f"({title} {format_score(name, ours)} against {format_score(name, its)})"
    ]


def repeat_command(options: argparse.Namespace, loaded: LoadedData, **changed: Any) -> str:
    """Return the command that does the same again, for a shell, with options changed by name.

    It names the target, which may be the last column by default. The task is not named unless the user gave
    it: the summary says that a task given was asked for.
    """
    repeated = {**vars(options), "target": loaded.target_name, **changed}
    return shlex.join(command_words(argparse.Namespace(**repeated)))
