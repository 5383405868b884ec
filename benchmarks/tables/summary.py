"""Summary over tables: ranks, ratios of errors, and differences that are larger than the seeds' spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.tables.learners import OURS, SCIKIT_LEARN_MLPS, TRIVIAL
from benchmarks.tables.results import TableResult

MIN_ERROR = 1e-3
"""Errors below this count as this in ranks, ratios and differences: among them all are as good as perfect."""

N_STANDARD_ERRORS = 2.0
"""Standard errors of a mean difference from which on it is more than the seeds' spread.

The seeds' rows overlap, so that the standard error is too small for a test of significance.
"""

BETTER_MLP = "better of the two MLPs"
"""On each table the one of scikit-learn's networks that has the smaller mean error on the rows held out.

It is chosen by the errors that it is compared by, which favours it.
"""

DEFINITIONS = (
    f"Errors below {MIN_ERROR} count as {MIN_ERROR} in ranks, ratios and differences; a training that failed "
    "ranks last. Better and worse: the mean of the differences by seed is more than "
    f"{N_STANDARD_ERRORS:g} of its standard errors."
)


class Versus(NamedTuple):
    """Our errors against those of one participant, over the tables where neither failed."""

    n_tables: int
    median_ratio: float | None
    """Of our mean error divided by theirs; below 1 is better."""
    geometric_mean_ratio: float | None
    better: list[str]
    """Tables on which ours is better by more than the seeds' spread."""
    worse: list[str]


class LearnerSummary(NamedTuple):
    """The figures of one participant over all tables."""

    mean_rank: float
    seconds: float | None
    """Median over the tables of the median seconds of a training."""
    worse_than_trivial: list[str]
    """Tables on which its mean error is larger than that of the trivial model."""
    failed: list[str]


class Summary(NamedTuple):
    """The summary of a run."""

    learners: dict[str, LearnerSummary]
    versus: dict[str, Versus]
    """By participant, and for `BETTER_MLP`; empty if ours does not take part."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures, and how they are defined."""
        return {
            "smallest_error": MIN_ERROR,
            "standard_errors": N_STANDARD_ERRORS,
            "learners": {name: one._asdict() for name, one in self.learners.items()},
            f"{OURS}_versus": {name: one._asdict() for name, one in self.versus.items()},
        }


def summarise(results: Sequence[TableResult]) -> Summary:
    """Return the summary of tables that have the same participants."""
    results = [result for result in results if result.seeds()]
    if not results:
        return Summary({}, {})
    names = list(results[0].learners)
    learners = {name: _summary_of(name, results) for name in names}
    if OURS not in names:
        return Summary(learners, {})
    peers = [name for name in names if name != OURS]
    versus = {name: _versus([(result, name) for result in results]) for name in peers}
    if {*SCIKIT_LEARN_MLPS} <= {*peers}:
        pairs = [(result, better) for result in results if (better := better_mlp(result))]
        versus[BETTER_MLP] = _versus(pairs)
    return Summary(learners, versus)


def ranks(result: TableResult) -> dict[str, float]:
    """Return the rank of each participant by its mean error on a table, 1 for the smallest.

    Equal errors share the mean of their ranks.
    """
    from scipy.stats import rankdata

    means = [result.mean(name) for name in result.learners]
    found = rankdata([math.inf if mean is None else max(mean, MIN_ERROR) for mean in means])
    return dict(zip(result.learners, map(float, found)))


def better_mlp(result: TableResult) -> str | None:
    """Return which of scikit-learn's networks has the smaller mean error; None if both failed."""
    means = {name: mean for name in SCIKIT_LEARN_MLPS if (mean := result.mean(name)) is not None}
    return min(means, key=lambda name: means[name], default=None)


def compare(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return whether errors with the same seeds are "better" or "worse" than others, or "" if neither.

    They are if the mean of the differences is more than `N_STANDARD_ERRORS` of its standard errors, which a
    single seed does not have.
    """
    if len(ours) < 2:
        return ""
    differences = [max(one, MIN_ERROR) - max(other, MIN_ERROR) for one, other in zip(ours, theirs)]
    mean = statistics.fmean(differences)
    if abs(mean) <= N_STANDARD_ERRORS * statistics.stdev(differences) / math.sqrt(len(differences)):
        return ""
    return "worse" if mean > 0.0 else "better"


def _versus(pairs: Sequence[tuple[TableResult, str]]) -> Versus:
    """Return our errors against those of a participant, which may be another one on each table."""
    ratios: list[float] = []
    tables: dict[str, list[str]] = {"better": [], "worse": [], "": []}
    for result, name in pairs:
        ours, theirs = result.errors(OURS), result.errors(name)
        if ours is None or theirs is None:
            continue
        ratios.append(max(statistics.fmean(ours), MIN_ERROR) / max(statistics.fmean(theirs), MIN_ERROR))
        tables[compare(ours, theirs)].append(result.name)
    return Versus(
        len(ratios),
        statistics.median(ratios) if ratios else None,
        statistics.geometric_mean(ratios) if ratios else None,
        tables["better"],
        tables["worse"],
    )


def _summary_of(name: str, results: Sequence[TableResult]) -> LearnerSummary:
    seconds = [found for result in results if (found := result.seconds(name)) is not None]
    return LearnerSummary(
        statistics.fmean(ranks(result)[name] for result in results),
        statistics.median(seconds) if seconds else None,
        [result.name for result in results if _is_worse_than_trivial(result, name)],
        [result.name for result in results if result.problem(name)],
    )


def _is_worse_than_trivial(result: TableResult, name: str) -> bool:
    mean, trivial = result.mean(name), result.mean(TRIVIAL)
    return mean is not None and trivial is not None and mean > trivial
