"""The training loop: runs epochs, watches for divergence, measures, and can be continued."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from mlp_xp._arrays import without_autodiff
from mlp_xp._devices import MemoryShortage, computing, is_out_of_memory, release_memory, to_floats
from mlp_xp._engines import Engine, EpochSettings, State, make_engine
from mlp_xp._engines.streamed import StreamEngine
from mlp_xp._interrupts import DeferredInterrupts, deferred_interrupts
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import Layer, copy_tree, named
from mlp_xp._samples import Rows, Samples, moved_if_they_fit
from mlp_xp._schedules import rates
from mlp_xp._streams import Stream, StreamPosition
from mlp_xp._training.early_stopping import EarlyStopping, EarlyStoppingState, start_early_stopping
from mlp_xp._training.history import Callback, DivergenceError, History, ProgressListener
from mlp_xp._training.measure import measure
from mlp_xp._training.metrics import Metric
from mlp_xp._training.progress import Progress, state_of, with_state
from mlp_xp._training.recovery import attach, out_of_memory, release_frames, run_with_recovery
from mlp_xp._uploads import streaming
from mlp_xp._validation import as_truth

if TYPE_CHECKING:
    from mlp_xp._training.checkpoint_files import Checkpoints
    from mlp_xp._training.footprint import Footprint

SECONDS_BETWEEN_BOUNDARIES = 0.01
"""Where an interrupted training can go on is remembered so often: to read the state of a generator takes as
long as a short epoch."""

SECONDS_PER_RUN = 0.1
"""Where nothing on the host happens between epochs, the engine runs as many at once as take about this
long: reading their losses, which waits for the device, then costs little, and progress is shown often."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training is to do: the checked arguments of `mlp_xp.train`, which explains them, and a limit.

    Attributes
    ----------
    max_resident_bytes : float, optional
        Samples on the host that take more on the device are streamed, others are moved there once. By default
        what is free there beside the training.
    is_resumable : bool
        Whether `Progress.resume_point` is wanted.
    checkpoints : Checkpoints, optional
        Writes resume points to a file now and then.
    """

    optimizer: Optimizer
    epochs: int
    batch_size: int
    shuffle: bool = True
    validation: Samples | None = None
    metrics: Sequence[Metric] = ()
    validation_metrics: Sequence[Metric] = ()
    early_stopping: EarlyStopping | None = None
    callback: Callback | None = None
    on_progress: ProgressListener | None = None
    max_resident_bytes: float | None = None
    is_resumable: bool = False
    checkpoints: Checkpoints | None = None

    @property
    def needs_host_each_epoch(self) -> bool:
        """Whether the host needs the parameters after each epoch: for metrics, early stopping, callbacks."""
        rule = self.early_stopping
        needs_losses_only = rule is None or (rule.monitor == "loss" and not rule.restore_best)
        measures = bool(self.metrics) or self.validation is not None
        return measures or self.callback is not None or not needs_losses_only


def run_training(
    network: Network, progress: Progress, samples: Samples | Stream, settings: Settings
) -> History:
    """Train from `progress`, which is updated in any case, also on errors; return these epochs' history.

    The arrays of `progress` are replaced, never written in. A progress whose history has epochs already is
    that of a training to go on with, of as many epochs in all as `settings` say. Two calls, of which the
    second begins with an empty history, train as one call of as many epochs does, except that a schedule of
    learning rates begins anew in each.
    """
    batch_size = settings.batch_size
    progress.early_stopping = _continued_early_stopping(progress, settings)
    if isinstance(samples, Stream) and progress.position is not None:
        samples.n_rows = progress.position.n_rows_of_all
    if _is_finished(progress, settings):
        progress.resume_point = progress
        return progress.history
    place = samples.place
    with computing(place, network.matmul_precision), without_autodiff(place.xp), streaming():
        samples, settings, footprint = _placed(network, samples, settings, progress)
        shortage = footprint.shortage_of(batch_size)
        if shortage is not None:
            raise out_of_memory(None, 1, named(progress.params), progress.history, shortage)
        try:
            # The rows of a stream's batches are shuffled in the batches, not in the epoch.
            plan = _plan(progress, settings, 0 if isinstance(samples, Stream) else samples.n_total)
            samples = samples.arranged(batch_size)
            # To compile an engine's steps may take seconds: Ctrl-C then ends the training before its first.
            with deferred_interrupts(limit=1, deliver=False) as interrupts:
                limit = math.inf if settings.max_resident_bytes is None else settings.max_resident_bytes
                engine = make_engine(
                    network, settings.optimizer, samples, batch_size, progress.state, settings.epochs, limit
                )
            if isinstance(engine, StreamEngine):
                engine.skip(progress.position)
        except BaseException as error:
            if not is_out_of_memory(error):
                attach(error, "epoch", 1, named(progress.params), progress.history)
                raise
            release_frames(error, samples.place)
            shortage = footprint.shortage_of(batch_size, after_failure=True)
            raise out_of_memory(error, 1, named(progress.params), progress.history, shortage) from error
        loop = _Loop(network, progress, samples, settings, engine, footprint, plan, interrupts)
        del engine  # so that the loop alone holds it, and can free its memory
        try:
            run_with_recovery(loop)
            if loop.is_complete:
                loop.release_engine()
        finally:
            if settings.is_resumable:
                progress.resume_point = loop.resume_point()
        return loop.history


def _is_finished(progress: Progress, settings: Settings) -> bool:
    """Whether a training to go on with has nothing left to do."""
    stopping = progress.early_stopping
    stopped = progress.is_ended or (stopping is not None and stopping.stopped)
    return bool(progress.history) and (stopped or len(progress.history) >= settings.epochs)


def _placed(
    network: Network, samples: Samples | Stream, settings: Settings, progress: Progress
) -> tuple[Samples | Stream, Settings, Footprint]:
    """Move samples on the host to the device if they fit; return all, and the footprint of the training."""
    from mlp_xp._training.footprint import Footprint  # imports the compiler, which `import mlp_xp` avoids

    known = samples.outline() if isinstance(samples, Stream) else samples
    footprint = Footprint(network, settings.optimizer, known, progress.state, settings.epochs)
    limit, validation = settings.max_resident_bytes, settings.validation
    if limit is None and (known.is_on_host or (validation is not None and validation.is_on_host)):
        limit = footprint.room_for_samples(settings.batch_size, validation)
    if isinstance(samples, Stream):
        if validation is not None:
            validation, _ = moved_if_they_fit(limit, validation)
    elif samples.is_on_host:
        samples, validation = moved_if_they_fit(limit, samples, validation)
        footprint.samples = samples
    return samples, replace(settings, validation=validation, max_resident_bytes=limit), footprint


def _continued_early_stopping(progress: Progress, settings: Settings) -> EarlyStoppingState | None:
    """Return the state of early stopping to begin with: the last training's if it monitored the same."""
    rule, former = settings.early_stopping, progress.early_stopping
    if rule is None:
        return None
    state = start_early_stopping(
        rule, settings.metrics, settings.validation_metrics, settings.validation is not None
    )
    if former is None or former.rule.monitor != rule.monitor:
        return state
    goes_on = bool(progress.history) and former.rule == rule
    return replace(former, rule=rule, sign=state.sign, event=former.event if goes_on else "")


def _plan(progress: Progress, settings: Settings, n_samples: int) -> Iterator[EpochSettings]:
    """Return an iterator over the settings of the epochs.

    A schedule that fails should fail before the training: all of it is read at once if nothing can change
    it between epochs, else its first rate.
    """
    rate = settings.optimizer.learning_rate
    n_done, stopping = len(progress.history), progress.early_stopping
    planned = rates(rate, settings.epochs, n_done)
    shuffled = settings.shuffle and settings.batch_size < n_samples
    divided = stopping is not None and stopping.rule.divide_rate is not None
    if not (callable(rate) or divided or shuffled):
        return repeat(
            (rate, None), settings.epochs - n_done
        )  # short epochs would take longer to plan than to run
    if callable(rate):
        read_now = list(islice(planned, 1 if settings.needs_host_each_epoch else None))
        planned = chain(read_now, planned)
    if stopping is not None and divided:
        planned = map(stopping.rate, planned)
    return zip(planned, _orders(progress, n_samples) if shuffled else repeat(None))


def _orders(progress: Progress, n_samples: int) -> Iterator[Rows]:
    """Yield the order of the rows in each epoch."""
    while True:
        # Each order is a shuffle of the last one, as in scikit-learn, so that the batches are the same. The
        # last one itself stays as it is: a checkpoint may be writing it.
        if progress.order is None or len(progress.order) != n_samples:
            order = np.arange(n_samples, dtype=np.int32 if n_samples < 2**31 else np.int64)
        else:
            order = progress.order.copy()
        assert progress.random is not None
        progress.random.shuffle(order)
        progress.order = order
        yield order


@dataclass
class _Boundary:
    """Where a training can go on exactly: after an epoch, before the orders of the next ones are drawn.

    Attributes
    ----------
    saved : State
    random_state : dict or None
    order : array of int or None
    early_stopping : EarlyStoppingState or None
    n_epochs : int
    is_ended : bool
    position : StreamPosition or None
    time : float
        When it was reached, in seconds.
    """

    saved: State
    random_state: Any
    order: Rows | None
    early_stopping: EarlyStoppingState | None
    n_epochs: int
    is_ended: bool
    position: StreamPosition | None = None
    time: float = field(default_factory=time.perf_counter)


class _Loop:
    """A training under way; `run_with_recovery` runs it.

    The engine updates its state in place, so a copy of the last finite one is kept to go back to when an
    epoch diverges. The copy is made as late as possible: after the last run none is needed.

    Attributes
    ----------
    unit : str
    history : History
    saved : State
        The state after the last epoch that is known to be finite; the engine's own arrays until the next
        run begins, if `saved_is_alias`, else a copy.
    epochs : list of EpochSettings
        Those that the engine runs now.
    n_before : int
        The number of epochs in the history when the engine's run began.
    is_complete : bool
        Whether all epochs ran, or as many as a callback or early stopping wanted.
    """

    unit = "epoch"

    def __init__(
        self,
        network: Network,
        progress: Progress,
        samples: Samples | Stream,
        settings: Settings,
        engine: Engine,
        footprint: Footprint,
        plan: Iterator[EpochSettings],
        interrupts: DeferredInterrupts,
    ) -> None:
        self.network = network
        self.progress = progress
        self.samples = samples
        self.settings = settings
        self.engine = engine
        self.footprint = footprint
        self.plan = plan
        self.interrupts = interrupts
        self.processes = samples.processes
        # A stream cannot be read again, to find the epoch in which several at once diverged.
        self.needs_host_each_epoch = self._any(settings.needs_host_each_epoch or isinstance(samples, Stream))
        self.history = progress.history
        self.saved: State = progress.state
        self.saved_is_alias = False
        self.random_state = None if progress.random is None else state_of(progress.random)
        self.boundary = self._boundary(progress.position)
        if settings.checkpoints is not None and isinstance(engine, StreamEngine):
            engine.after_batch = self._after_batch
        self.epochs: list[EpochSettings] = []
        self.n_before = 0
        self.is_complete = False

    def run(self) -> None:
        """Run the planned epochs, or fewer if a callback or early stopping says so."""
        self.interrupts.deliver()
        if self.needs_host_each_epoch:
            self._run_one_by_one()
        else:
            self._run_several_at_once()
        if self.settings.is_resumable:
            self._remember_epoch()
        self.is_complete = True

    # Processes that train together must do the same.

    def _any(self, value: bool) -> bool:
        return value if self.processes is None else self.processes.any("the end of an epoch", value)

    def _agreed(self, value: float) -> float:
        return value if self.processes is None else float(self.processes.share("the end of epochs", value))

    def release_engine(self) -> None:
        """Give the engine's memory to the next training, after a copy of the state."""
        release = self.engine.release
        if release is not None:
            self._save_copy()  # an error or interrupt in it leaves the engine its memory
            release()

    def _run_one_by_one(self) -> None:
        while epochs := self._next_epochs(self.plan, 1):
            losses = self._run_epochs(epochs)
            if losses is None:
                raise self._divergence(epochs[0])
            stop = self._finish_epoch(losses[0], rate=epochs[0][0])
            self._reach_boundary()
            self._report_progress()
            if stop:
                return

    def _run_several_at_once(self) -> None:
        n_epochs, stopping = 1, self.progress.early_stopping
        while epochs := self._next_epochs(
            self.plan,
            n_epochs if stopping is None else int(min(n_epochs, stopping.epochs_before_next_event)),
        ):
            start = time.perf_counter()
            losses = self._run_epochs(epochs)
            if losses is None:
                self._find_divergence(epochs)
                continue
            stop = self._record_losses(losses)
            self._reach_boundary()
            self._report_progress()
            if stop:
                return
            seconds = self._agreed(time.perf_counter() - start)
            # At most ten times as many: a few epochs are a poor estimate of how long more of them take.
            n_epochs = max(1, min(10 * len(epochs), int(len(epochs) * SECONDS_PER_RUN / seconds)))

    def _next_epochs(self, plan: Iterator[EpochSettings], n_epochs: int) -> list[EpochSettings]:
        # In this order, so that an interrupt between any two statements records no loss twice.
        self.engine.losses = []
        self.n_before = len(self.history)
        self.epochs = list(islice(plan, n_epochs))
        return self.epochs

    def _run_epochs(self, epochs: list[EpochSettings]) -> list[float] | None:
        """Run epochs; return their losses, or None if something is not finite after them."""
        if self.saved_is_alias:
            self._save_copy()
        try:
            self.engine.run(epochs)
        finally:
            self.history.engine = self.engine.name
        losses = self._losses()
        if not self._is_finite(losses):
            return None
        # The last copy is freed before the next is made.
        self.saved, self.saved_is_alias = self.engine.state, True
        self._update_progress()
        if self.needs_host_each_epoch:  # early stopping may keep these parameters
            self._save_copy()
        return losses

    def _losses(self) -> list[float]:
        """Return the losses of the finished epochs of the engine's run; waits for the device."""
        return to_floats(self.samples.place, self.engine.losses)

    def _is_finite(self, losses: list[float]) -> bool:
        # A finite sum has finite terms.
        finite = math.isfinite(sum(losses)) or all(map(math.isfinite, losses))
        return finite and self.engine.is_finite()

    def _save_copy(self) -> None:
        former = self.saved
        self.saved, self.saved_is_alias = self.engine.copied_state(), False
        if self.boundary.saved is former:
            self.boundary.saved = self.saved
        self._update_progress()

    def _update_progress(self) -> None:
        self.progress.params, self.progress.optimizer_state = self.saved

    def _find_divergence(self, epochs: list[EpochSettings]) -> None:
        """Go back to before these epochs and run them one by one, up to the one that diverges."""
        self.engine.state = self.saved
        plan = iter(epochs)
        while one := self._next_epochs(plan, 1):
            losses = self._run_epochs(one)
            if losses is None:
                raise self._divergence(one[0])
            self._record_losses(losses)

    def _divergence(self, epoch: EpochSettings) -> DivergenceError:
        number, loss = len(self.history) + 1, float(self.engine.losses[0])
        what = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else f"a parameter or the optimizer's state is not finite, the loss {loss:g}"
        )
        before = f" after {self.history[-1]['loss']:g} in the epoch before" if self.history else ""
        return DivergenceError(
            f"training diverged in epoch {number}: {what}{before}. Try a smaller learning rate "
            f"(it is {epoch[0]:g}), features of mean 0 and variance 1, or smaller initial weights; "
            "`.params` and `.history` of this error hold the last finite ones",
            number,
            named(self.saved[0]),
            self.history,
            loss,
        )

    # After an epoch.

    def _record_losses(self, losses: list[float]) -> bool:
        """Append the next epochs of the engine's run to the history; return whether to stop."""
        stopping, n_known = self.progress.early_stopping, len(self.history)
        records = [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses, start=n_known + 1)]
        if stopping is None:
            self.history += records
            return False
        for (rate, _), record in zip(self.epochs[n_known - self.n_before :], records):
            self.history.append(record)
            stopping.update(record, (), rate)
        return stopping.stopped

    def _finish_epoch(self, loss: float, rate: float) -> bool:
        """Measure and record an epoch, update early stopping, call the callback; return whether to stop."""
        params, settings = named(self.saved[0]), self.settings
        record: dict[str, Any] = {"epoch": len(self.history) + 1, "loss": loss}
        if settings.metrics:
            assert isinstance(self.samples, Samples)
            measured = measure(self.network, params, self.samples, settings.metrics)
            record |= {metric.name: measured[metric.name] for metric in settings.metrics}
        if settings.validation is not None:
            measured = measure(self.network, params, settings.validation, settings.validation_metrics)
            record |= {f"val_{name}": value for name, value in measured.items()}
        self.history.append(record)
        stopping = self.progress.early_stopping
        stop = stopping is not None and stopping.update(record, params, rate)
        if settings.callback is not None:
            # A copy: callbacks may keep or change the parameters they receive.
            copied = named(copy_tree(self.samples.place.xp, params))
            stop = as_truth("what `callback` returns", settings.callback(self.history, copied)) or stop
        self.progress.is_ended = self._any(stop) and not (stopping is not None and stopping.stopped)
        return self.progress.is_ended or (stopping is not None and stopping.stopped)

    def _report_progress(self) -> None:
        if self.settings.on_progress is not None:
            self.settings.on_progress(self.history)

    # Where it can go on.

    def _boundary(self, position: StreamPosition | None = None) -> _Boundary:
        progress = self.progress
        stopping = progress.early_stopping
        # Where all rows are one batch, nothing is drawn.
        if progress.random is not None and (progress.order is not None or position is not None):
            self.random_state = state_of(progress.random)
        return _Boundary(
            self.saved,
            self.random_state,
            progress.order,
            None if stopping is None else replace(stopping),
            len(self.history),
            progress.is_ended,
            position,
        )

    def _reach_boundary(self) -> None:
        """Write a checkpoint after an epoch if it is time; remember where the training can go on."""
        if not self.settings.is_resumable:
            return
        checkpoints, now = self.settings.checkpoints, time.perf_counter()
        if checkpoints is not None and checkpoints.is_due(len(self.history)):
            self._remember_epoch()
            if self.saved_is_alias:
                self._save_copy()
            checkpoints.write(self.resume_point())
        elif self.processes is not None or now - self.boundary.time >= SECONDS_BETWEEN_BOUNDARIES:
            self._remember_epoch()  # several processes must remember the same one

    def _remember_epoch(self) -> None:
        """Remember the end of the last epoch as the place where the training can go on."""
        if self.boundary.n_epochs < len(self.history):
            engine = self.engine
            position = engine.start_of_epoch() if isinstance(engine, StreamEngine) else None
            self.boundary = self._boundary(position)

    def _after_batch(self) -> None:
        """Write a checkpoint between two batches of a stream if it is time."""
        checkpoints = self.settings.checkpoints
        assert checkpoints is not None
        if checkpoints.is_due_within_epoch() and self._reach_position():
            checkpoints.write(self.resume_point())

    def _reach_position(self) -> bool:
        """Remember the end of a batch of a stream; return whether there is one, and all is finite."""
        engine = self.engine
        if not (self.settings.is_resumable and isinstance(engine, StreamEngine)):
            return False
        position = engine.position()
        if position is None or not engine.is_finite():
            return False
        self.boundary = replace(self._boundary(position), saved=engine.copied_state())
        return True

    def resume_point(self) -> Progress:
        """Return the progress to go on from."""
        found, live = self.boundary, self.progress
        params, optimizer_state = found.saved
        random = live.random
        return Progress(
            params,
            optimizer_state,
            None if random is None else with_state(random, found.random_state),
            found.order,
            found.early_stopping,
            self.history[: found.n_epochs],
            found.is_ended,
            found.position,
            data=live.data,
        )

    # When it is cut short: see `mlp_xp._training.recovery.RecoverableTraining`.

    @property
    def number(self) -> int:
        """The epoch under way, from 1."""
        n_finished = 0 if self.needs_host_each_epoch else len(self.engine.losses)
        return self.n_before + n_finished + 1

    @property
    def params(self) -> tuple[Layer, ...]:
        """The parameters last saved."""
        return named(self.progress.params)

    def revert(self) -> None:
        """Go back to the last state known to be finite."""
        self._update_progress()

    def keep_finite_state(self) -> None:
        """Keep the engine's state if it is finite, with the losses of its finished epochs."""
        self._reach_position()
        losses = self._losses()
        if self._is_finite(losses):
            if not self.needs_host_each_epoch:
                self._record_losses(losses[len(self.history) - self.n_before :])
            self.saved = self.engine.state  # nothing writes in it any more
        self._update_progress()

    def release(self, error: BaseException) -> MemoryShortage | None:
        """Free the memory that the training took; return what was lacking."""
        place = self.samples.place
        release_frames(error, place)
        try:
            self.keep_finite_state()
        except Exception:  # looking at the state takes memory too
            self.revert()
        del self.engine
        release_memory(place)
        return self.footprint.shortage_of(self.settings.batch_size, after_failure=True)
