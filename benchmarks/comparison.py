"""One workload, measured: participants by turns, each in a worker of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from benchmarks.evaluation import loss_of, odd_ones
from benchmarks.participants import OURS, PARTICIPANTS
from benchmarks.timing import Timings
from benchmarks.workers import Worker, WorkerError
from benchmarks.workloads import Workload, make_data

PAUSE_SECONDS = 0.06
"""Between turns: the threads of a BLAS or of OpenMP go on spinning for a while when they are done."""


@dataclass
class Outcome:
    """What one participant did in one workload."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    loss: float | None = None
    error: str = ""


class Row(NamedTuple):
    """What there is to say of one participant."""

    name: str
    label: str
    per_unit: float
    """Median seconds of a step or a call."""
    spread: float
    """Interquartile range of the same."""
    ratio: float | None
    """Time relative to ours: the median over the repeats; None where it would mislead."""
    peak_bytes: int | None
    loss: float | None
    problem: str
    """Why there is no ratio."""


@dataclass
class Comparison:
    """A workload and all that took part in it."""

    workload: Workload
    outcomes: dict[str, Outcome]

    def rows(self) -> list[Row]:
        """Return a row for each participant."""
        timings = Timings({name: outcome.seconds for name, outcome in self.outcomes.items()})
        losses = {name: one.loss for name, one in self.outcomes.items() if one.loss is not None}
        odd = odd_ones(losses, self.workload.tolerance)
        return [self._row(outcome, timings, odd) for outcome in self.outcomes.values()]

    def as_json(self) -> dict[str, Any]:
        """Return everything measured, and what follows from it."""
        return {
            "workload": asdict(self.workload),
            "title": self.workload.title,
            "units_per_repeat": self.workload.units,
            "unit": self.workload.unit,
            "bytes_needed": self.workload.bytes_needed(),
            "outcomes": [asdict(outcome) for outcome in self.outcomes.values()],
            "rows": [row._asdict() for row in self.rows()],
        }

    def _row(self, outcome: Outcome, timings: Timings, odd: set[str]) -> Row:
        workload, name = self.workload, outcome.name
        problem = outcome.error
        if name in odd:
            problem = f"different loss ({outcome.loss:.10g})"
        elif not outcome.seconds:
            problem = problem or "not measured"
        base = self.outcomes.get(OURS)
        comparable = not problem and base is not None and base.seconds and OURS not in odd
        measured = bool(outcome.seconds)
        return Row(
            name,
            PARTICIPANTS[name].label(workload),
            timings.median(name) / workload.units if measured else float("nan"),
            timings.spread(name) / workload.units if measured else float("nan"),
            timings.ratio(name, OURS) if comparable else None,
            max(outcome.peak_bytes, default=None),
            outcome.loss,
            problem,
        )


def new_comparison(workload: Workload, names: Iterable[str]) -> Comparison:
    """Return a comparison in which nothing is measured yet."""
    return Comparison(workload, {name: Outcome(name) for name in names})


def measure(
    comparison: Comparison,
    *,
    device: str,
    threads: int,
    repeats: int,
    say: Callable[[str], None] = lambda message: None,
) -> None:
    """Measure a comparison. What is measured is kept in it as it comes, also when Ctrl-C ends it."""
    workload, workers = comparison.workload, dict[str, Worker]()

    def check(worker: Worker, outcome: Outcome) -> None:
        outcome.loss = loss_of(workload, data, worker.outcome())

    def warm_up(worker: Worker, outcome: Outcome) -> None:
        worker.repeat()
        check(worker, outcome)  # and again after the last repeat, unless Ctrl-C comes first

    try:
        for name in comparison.outcomes:
            workers[name] = Worker(name, workload, device, threads)
        say("starting")
        data = make_data(workload)
        _all(workers, comparison, lambda worker, outcome: worker.prepare(data))
        say("warming up")
        _all(workers, comparison, warm_up)
        for number in range(repeats):
            say(f"repeat {number + 1} of {repeats}")
            _all(workers, comparison, _repeat)
        say("checking")
        _all(workers, comparison, check)
    except ImportError as error:
        for outcome in comparison.outcomes.values():
            outcome.error = f"no data: {error}"
    finally:
        for worker in workers.values():
            worker.end()


def _all(workers: dict[str, Worker], comparison: Comparison, act: Callable[[Worker, Outcome], None]) -> None:
    """Let all that are left act by turns; who fails is left out from then on."""
    names: Sequence[str] = list(workers)
    for name in names:
        outcome = comparison.outcomes[name]
        try:
            act(workers[name], outcome)
        except WorkerError as error:
            outcome.error = str(error)
            workers.pop(name).end()


def _repeat(worker: Worker, outcome: Outcome) -> None:
    time.sleep(PAUSE_SECONDS)
    repeat = worker.repeat()
    outcome.seconds.append(repeat.seconds)
    if repeat.peak_bytes is not None:
        outcome.peak_bytes.append(repeat.peak_bytes)
