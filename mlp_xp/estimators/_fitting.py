"""Runs a task: trains by epochs or by L-BFGS, and sets the fitted attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import Parameters, are_equal, copy_tree, plain
from mlp_xp._samples import Samples
from mlp_xp._streams import Stream
from mlp_xp._training.checkpoints import Checkpoint
from mlp_xp._training.history import DivergenceError, History, OutOfMemoryError
from mlp_xp._training.lbfgs import Minimised, minimise
from mlp_xp._training.loop import Settings, run_training
from mlp_xp._training.metrics import Metric
from mlp_xp._training.progress import Progress, move_progress, start_training
from mlp_xp._training.resuming import check_goes_on, checkpoints_of, digest_of
from mlp_xp._warnings import warn
from mlp_xp.estimators._draft import Draft
from mlp_xp.estimators._fitted import forget_device_copy, set_weights
from mlp_xp.estimators._interface import Estimator
from mlp_xp.estimators._report import FitReport
from mlp_xp.estimators._resuming import describe_fit
from mlp_xp.estimators._task import Task, early_stopping_of

if TYPE_CHECKING:
    from pathlib import Path

LAST_ENGINE_NAMES: WeakKeyDictionary[Estimator, str] = WeakKeyDictionary()
"""The engine of each model's last training in this process; not an attribute, nor saved with the model."""


def run(
    draft: Draft[Any],
    task: Task,
    report: FitReport,
    checkpoint: Checkpoint | None = None,
    source: Path | None = None,
) -> None:
    """Train, and publish the fitted attributes; before an error too, if something was trained.

    `source` is the file that the fit is resumed from.
    """
    if draft.copy.solver == "lbfgs":
        _run_lbfgs(draft, task, report, checkpoint, source)
    else:
        _run_epochs(draft, task, report, checkpoint, source)


@contextmanager
def _stored(store: Callable[[BaseException | None], None]) -> Iterator[None]:
    """Call `store` at the end of the context, also after an error, with that error."""
    try:
        yield
    except BaseException as error:
        store(error)
        raise
    store(None)


def _replaces_former_weights(
    draft: Draft[Any], task: Task, params: Parameters, history: History, error: BaseException | None
) -> bool:
    """Whether the estimator gets these parameters: an epoch was finished, or nothing better is known."""
    if history:
        return True
    is_trained = not are_equal(task.samples.place.xp, params, task.params)
    if hasattr(draft.estimator, "coefs_"):
        # A few steps of a new training are no better than the former one; those of the same go on from it.
        return task.continues and is_trained and not isinstance(error, OutOfMemoryError)
    # An interrupt, or divergence, of the first epoch: the parameters may be those to begin with.
    return is_trained or error is None or isinstance(error, DivergenceError)


def _publish(draft: Draft[Any], history: History) -> None:
    draft.publish()
    LAST_ENGINE_NAMES[draft.estimator] = history.engine
    forget_device_copy(draft.estimator)


def _run_lbfgs(
    draft: Draft[Any], task: Task, report: FitReport, checkpoint: Checkpoint | None, source: Path | None
) -> None:
    estimator, samples = draft.copy, task.samples
    assert isinstance(samples, Samples)
    progress = Progress(plain(task.params), (), None)
    if task.resumed and task.continuation is not None:
        progress = Progress.resumed(task.continuation["progress"], progress, samples.place)
        check_goes_on(progress, samples, estimator.max_iter, "max_iter", ["loss"])
    elif checkpoint is not None:
        progress.data = digest_of(samples)
    found = Minimised(
        progress.params,
        progress.history,
        progress.loss,
        progress.problem,
        progress.is_ended,
        progress.data,
    )

    def set_result(estimator: Estimator, progress: Progress) -> None:
        estimator._continuation = None
        _set_attributes(estimator, task, progress.params, progress.history)
        estimator.loss_, estimator.t_ = progress.loss, 0

    def store(error: BaseException | None) -> None:
        progress.resume_point = found.to_progress()
        if _replaces_former_weights(draft, task, found.params, found.history, error):
            set_result(estimator, progress.resume_point)
            _publish(draft, found.history)

    described = describe_fit(copy.copy(vars(estimator)), type(estimator), set_result, 0, None, None)
    with (
        checkpoints_of(checkpoint, task.network, progress, source, described) as checkpoints,
        _stored(store),
    ):
        minimise(
            task.network,
            task.params,
            samples,
            max_iter=estimator.max_iter,
            max_fun=estimator.max_fun,
            tol=estimator.tol,
            callback=report.callback,
            on_progress=report.on_progress,
            found=found,
            checkpoints=checkpoints,
        )
    if found.problem:
        all_iterations = estimator.n_iter_ >= estimator.max_iter
        advice = f" Increase `max_iter` ({estimator.max_iter})." if all_iterations else ""
        warn(
            f"lbfgs failed to converge after {estimator.n_iter_} iteration(s): {found.problem}.{advice} "
            "Features of mean 0 and variance 1 make it easier.",
            ConvergenceWarning,
        )


def _run_epochs(
    draft: Draft[Any], task: Task, report: FitReport, checkpoint: Checkpoint | None, source: Path | None
) -> None:
    estimator, samples = draft.copy, task.samples
    stream = samples if isinstance(samples, Stream) else None
    n_samples = samples.n_total if isinstance(samples, Samples) else 1
    n_seen = estimator.t_ if task.continues else 0
    optimizer = estimator._optimizer(n_seen, n_samples)
    if stream is not None and callable(optimizer.learning_rate):
        stream.rate = optimizer.learning_rate  # of rows, one of which is counted for an epoch
    progress = _starting_progress(task, optimizer)
    rule, metric = early_stopping_of(estimator)
    if task.resumed:
        columns = ["loss", *([metric.name] if estimator._scores_training else [])]
        if task.validation is not None:
            columns += ["val_loss", f"val_{metric.name}"]
        check_goes_on(progress, samples, estimator.max_iter, "max_iter", columns)
    elif checkpoint is not None:
        progress.data = digest_of(samples)
    report.progress = progress
    settings = Settings(
        optimizer=optimizer,
        epochs=1 if task.incremental else estimator.max_iter,
        batch_size=task.batch_size,
        shuffle=estimator.shuffle,
        validation=task.validation,
        metrics=[metric] if estimator._scores_training else [],
        validation_metrics=[metric],
        early_stopping=rule,
        callback=report.callback,
        on_progress=report.on_progress,
        is_resumable=checkpoint is not None,
    )

    def set_result(estimator: Estimator, point: Progress) -> None:
        _set_attributes(estimator, task, point.best_params, point.history, metric)
        n_rows = n_samples * len(point.history)
        if stream is not None:
            n_rows = 0 if point.position is None else point.position.n_rows_of_all
        estimator.t_ = n_seen + n_rows

    def store(error: BaseException | None) -> None:
        history = progress.history
        shared = isinstance(estimator.random_state, np.random.RandomState)
        if shared and estimator.shuffle and stream is None and task.batch_size == n_samples:
            # A whole batch needs no order, but a generator that the user shares must be left where
            # scikit-learn would leave it.
            assert progress.random is not None
            for _ in history:
                progress.random.shuffle(np.arange(n_samples))
        if _replaces_former_weights(draft, task, progress.params, history, error):
            _store_result(estimator, task, progress, history, metric)
            estimator.t_ = n_seen + (n_samples * len(history) if stream is None else stream.n_rows)
            _publish(draft, history)

    state = task.validation_random_state
    described = describe_fit(
        copy.copy(vars(estimator)), type(estimator), set_result, n_seen, state, metric.name
    )
    with (
        checkpoints_of(checkpoint, task.network, progress, source, described) as checkpoints,
        _stored(store),
    ):
        run_training(task.network, progress, samples, replace(settings, checkpoints=checkpoints))
    stopped = progress.early_stopping is not None and progress.early_stopping.stopped
    ended = task.incremental or (stream is not None and stream.raw.is_iterator)
    if not ended and not stopped and len(progress.history) == estimator.max_iter:
        warn(
            f"Stochastic Optimizer: Maximum iterations ({estimator.max_iter}) reached and the optimization "
            "hasn't converged yet.",
            ConvergenceWarning,
        )


def _starting_progress(task: Task, optimizer: Optimizer) -> Progress:
    """Return the progress of a new training, or that of the last one, to continue it."""
    place = task.samples.place
    new = start_training(place.xp, task.params, optimizer, task.random)
    if task.continuation is None:
        return new
    if task.resumed:
        return Progress.resumed(task.continuation["progress"], new, place)
    progress = Progress.from_dict(move_progress(task.continuation["progress"], place), new)
    progress.random = task.random
    if task.incremental:
        # As in scikit-learn: each call begins with the rows in their order, and with the best weights.
        progress.order, progress.params = None, task.params
    if not are_equal(place.xp, task.params, progress.best_params):
        # The user has changed the weights: what was best before is no longer.
        progress.params, progress.early_stopping = task.params, None
    return progress


def _store_result(
    estimator: Estimator, task: Task, progress: Progress, history: History, metric: Metric
) -> None:
    """Set the attributes, and remember what continues the training."""
    params = progress.best_params
    if params is not progress.params:
        # A copy: users may write in `coefs_`, but not in what early stopping remembers.
        params = copy_tree(task.samples.place.xp, params)
    _set_attributes(estimator, task, params, history, metric)
    if not estimator.warm_start:
        progress.order = None  # as long as the samples, and only a warm start needs it
    estimator._continuation = {
        # Where X lives: a pickle of the model should need no library but that of its weights.
        "progress": move_progress(progress.to_dict(), task.home),
        "validation_random_state": task.validation_random_state,
        "metric": metric.name,
    }


def _set_attributes(
    estimator: Estimator, task: Task, params: Parameters, history: History, metric: Metric | None = None
) -> None:
    """Set the weights, and the attributes that tell of the training."""
    set_weights(estimator, params, task.home)
    former = vars(estimator)
    estimator.n_iter_ = len(history)
    curve_before = former["loss_curve_"] if task.continues else []
    best_before = former["best_loss_"] if task.continues else None
    curve = curve_before + history["loss"]
    estimator.loss_curve_ = curve
    estimator.loss_ = curve[-1] if curve else np.nan
    by_validation = metric is not None and bool(estimator.early_stopping)
    # The former best loss is known, and the curve may be that of many calls of `partial_fit`.
    candidates = curve if best_before is None else [best_before, *history["loss"]]
    estimator.best_loss_ = None if by_validation else min(candidates, default=np.inf)
    losses = scores = None
    estimator._score_name = None if metric is None else metric.name
    if metric is not None and task.validation is not None:
        losses, scores = history["val_loss"], history[f"val_{metric.name}"]
        if task.continuation is not None and task.continuation["metric"] == metric.name:
            losses = (former["val_loss_curve_"] or []) + losses
            scores = (former["validation_scores_"] or []) + scores
    estimator.val_loss_curve_, estimator.validation_scores_ = losses, scores
    estimator.__dict__.pop("_training_scores", None)
    if metric is not None and estimator._scores_training:
        estimator._training_scores = history[metric.name]
    estimator.best_validation_score_ = None if scores is None else max(scores, default=-np.inf)
