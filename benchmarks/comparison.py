"""Measuring one workload: participants take turns, each in a worker process of its own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from benchmarks.evaluation import outliers
from benchmarks.memory import DeviceMemory, device_memory
from benchmarks.participants import PARTICIPANTS, EngineReport, base
from benchmarks.timing import Timings
from benchmarks.workers import Worker, WorkerError
from benchmarks.workloads import Workload, count, make_data

PAUSE_SECONDS = 0.06
"""Pause between turns, as the threads of a BLAS or of OpenMP keep spinning for a while after their work."""


@dataclass
class Outcome:
    """The measurements of one participant in one workload."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    loss: float | None = None
    error: str = ""
    engine: str = ""
    """The engine that its training ran on, as the history names it."""
    why: str = ""
    """The library's warning about a fallback to a slower engine."""
    epochs: int | None = None
    """The number of epochs that it trained; None if it keeps no losses."""


class Row(NamedTuple):
    """The figures of one participant in a table."""

    name: str
    label: str
    per_unit: float
    """Median seconds of a step or a call."""
    spread: float
    """Interquartile range of the seconds of a step or a call."""
    ratio: float | None
    """Median over the repeats of its time divided by ours; None if `problem` is not empty."""
    peak_bytes: int | None
    loss: float | None
    problem: str
    """The reason for no ratio."""
    engine: str = ""


@dataclass
class Comparison:
    """A workload and the outcome of each participant."""

    workload: Workload
    outcomes: dict[str, Outcome]
    device: str = "cpu"
    memory: str = ""
    """How `Outcome.peak_bytes` was measured."""

    @property
    def base(self) -> str:
        """The name of the participant that ratios refer to."""
        return base(self.device)

    def refused(self, name: str) -> str:
        """Return why a participant's figures are not shown: it ran on another engine; "" if it did not."""
        outcome, claimed = self.outcomes[name], PARTICIPANTS[name].engine(self.device)
        if not claimed or (outcome.engine in ("", claimed) and not outcome.why):
            return ""
        ran = f"on the engine {outcome.engine!r}" if outcome.engine not in ("", claimed) else "call by call"
        return f"ran {ran}, not on {claimed!r}: {outcome.why or 'no warning says why'}"

    def rows(self) -> list[Row]:
        """Return a row for each participant."""
        timings = Timings({name: outcome.seconds for name, outcome in self.outcomes.items()})
        odd = self._odd()
        return [self._row(outcome, timings, odd) for outcome in self.outcomes.values()]

    @property
    def epochs(self) -> int | None:
        """The number of epochs that most participants trained; None if none keeps losses."""
        epochs = [one.epochs for one in self.outcomes.values() if one.epochs is not None]
        return statistics.median_low(epochs) if epochs else None

    def as_json(self) -> dict[str, Any]:
        """Return the measurements and the rows of the table."""
        return {
            "workload": asdict(self.workload),
            "title": self.workload.title,
            "units_per_repeat": self.workload.units,
            "unit": self.workload.unit,
            "bytes_needed": self.workload.bytes_needed(),
            "ratios_refer_to": self.base,
            "memory": self.memory,
            "outcomes": [asdict(outcome) for outcome in self.outcomes.values()],
            "rows": [row._asdict() for row in self.rows()],
        }

    def _odd(self) -> dict[str, str]:
        """Return what is different in the work of participants that differ from the others, by name."""
        losses = {name: one.loss for name, one in self.outcomes.items() if one.loss is not None}
        epochs = {name: one.epochs for name, one in self.outcomes.items() if one.epochs is not None}
        odd = {
            name: f"different loss ({losses[name]:.10g})"
            for name in outliers(losses, self.workload.tolerance)
        }
        return odd | {
            name: f"{count(epochs[name], 'epoch')}, not {self.epochs}" for name in outliers(epochs, 0.0)
        }

    def _row(self, outcome: Outcome, timings: Timings, odd: dict[str, str]) -> Row:
        workload, name = self.workload, outcome.name
        problem, refused = outcome.error, self.refused(name)
        if refused:
            problem = refused
        elif name in odd:
            problem = odd[name]
        elif not outcome.seconds:
            problem = problem or "not measured"
        measured = bool(outcome.seconds) and not refused
        return Row(
            name,
            PARTICIPANTS[name].label(workload),
            timings.median(name) / workload.units if measured else float("nan"),
            timings.spread(name) / workload.units if measured else float("nan"),
            timings.ratio(name, self.base) if not problem and self._has_base(odd) else None,
            max(outcome.peak_bytes, default=None) if not refused else None,
            outcome.loss,
            problem,
            outcome.engine,
        )

    def _has_base(self, odd: dict[str, str]) -> bool:
        """Return whether the participant that ratios refer to has valid figures."""
        base = self.outcomes.get(self.base)
        return (
            base is not None and bool(base.seconds) and self.base not in odd and not self.refused(self.base)
        )


def new_comparison(workload: Workload, names: Iterable[str], device: str = "cpu") -> Comparison:
    """Return a comparison without measurements."""
    return Comparison(workload, {name: Outcome(name) for name in names}, device)


def measure(
    comparison: Comparison,
    *,
    threads: int,
    repeats: int,
    seconds: float = math.inf,
    say: Callable[[str], None] = lambda message: None,
) -> None:
    """Measure a comparison, adding to it as results come in, so that Ctrl-C loses none.

    A participant whose repeats have taken `seconds` in all is not repeated any more.
    """
    workload, workers = comparison.workload, dict[str, Worker]()
    watch = device_memory() if comparison.device == "cuda" else None
    comparison.memory = (
        watch.about if watch else "of the process" if comparison.device == "cpu" else "unknown"
    )

    def check(worker: Worker, outcome: Outcome) -> None:
        outcome.loss = worker.loss(data)

    def prepare(worker: Worker, outcome: Outcome) -> None:
        with _turn(watch, worker):
            worker.prepare(data)

    def warm_up(worker: Worker, outcome: Outcome) -> None:
        with _turn(watch, worker) as peak:
            first = worker.repeat()
        outcome.peak_bytes += peak
        outcome.engine, outcome.why = first.ran or EngineReport("", "")
        outcome.epochs = first.epochs
        check(worker, outcome)  # done again after the last repeat, which Ctrl-C may prevent

    def repeat(worker: Worker, outcome: Outcome) -> None:
        if sum(outcome.seconds) < seconds:
            _repeat(worker, outcome)

    try:
        for name in comparison.outcomes:
            workers[name] = Worker(name, workload, comparison.device, threads)
        say("starting")
        data = make_data(workload)
        # Start all workers first, so that GPU memory changes in a turn by one worker's use alone.
        _for_each_worker(workers, comparison, lambda worker, outcome: worker.wait())
        _for_each_worker(workers, comparison, prepare)
        say("warming up")
        _for_each_worker(workers, comparison, warm_up)
        for number in range(repeats):
            say(f"repeat {number + 1} of {repeats}")
            _for_each_worker(workers, comparison, repeat)
        say("checking")
        _for_each_worker(workers, comparison, check)
    except ImportError as error:
        for outcome in comparison.outcomes.values():
            outcome.error = f"no data: {error}"
    finally:
        for worker in workers.values():
            worker.end()


def _for_each_worker(
    workers: dict[str, Worker], comparison: Comparison, act: Callable[[Worker, Outcome], None]
) -> None:
    """Call `act` for each worker in turn; remove a worker that fails."""
    names: Sequence[str] = list(workers)
    for name in names:
        outcome = comparison.outcomes[name]
        try:
            act(workers[name], outcome)
        except WorkerError as error:
            outcome.error = str(error)
            workers.pop(name).end()


def _turn(watch: DeviceMemory | None, worker: Worker) -> AbstractContextManager[list[int]]:
    """Return a context that samples GPU memory during a worker's turn, if there is a sampler."""
    return nullcontext([]) if watch is None else watch.turn(worker.pid)


def _repeat(worker: Worker, outcome: Outcome) -> None:
    time.sleep(PAUSE_SECONDS)
    repeat = worker.repeat()
    outcome.seconds.append(repeat.seconds)
    if repeat.ran and repeat.ran.why:
        outcome.engine, outcome.why = repeat.ran
    if repeat.peak_bytes is not None:
        outcome.peak_bytes.append(repeat.peak_bytes)
