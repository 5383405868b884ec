"""Summary of a run: our time against the fastest peer, the limit, and scikit-learn over all workloads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.comparison import Comparison, Row
from benchmarks.participants import LIMIT, PARTICIPANTS, REFERENCE_PEER


class Summary(NamedTuple):
    """Our time in one workload, compared with others."""

    workload: str
    ours: float
    """Median seconds of a step or a call."""
    fastest_peer: str
    against_fastest_peer: float | None
    """Our time divided by that of the fastest peer: ratio of medians."""
    against_limit: float | None


def summarise(comparison: Comparison) -> Summary | None:
    """Return the summary of a workload; None if ours has no valid figures."""
    rows = {row.name: row for row in comparison.rows() if row.ratio is not None}
    if comparison.base not in rows:
        return None
    ours = rows[comparison.base].per_unit
    peers = [row for name, row in rows.items() if name != LIMIT and not PARTICIPANTS[name].ours]
    fastest = min(peers, key=lambda row: row.per_unit, default=None)
    return Summary(
        comparison.workload.name,
        ours,
        fastest.name if fastest else "",
        ours / fastest.per_unit if fastest else None,
        ours / rows[LIMIT].per_unit if LIMIT in rows else None,
    )


def speedup_over(name: str, comparisons: Sequence[Comparison]) -> float | None:
    """Return the geometric mean of a participant's times divided by ours."""
    ratios = [row.ratio for row in _rows_of(name, comparisons) if row.ratio is not None]
    return statistics.geometric_mean(ratios) if ratios else None


def as_json(comparisons: Sequence[Comparison]) -> dict[str, object]:
    """Return the summary of a run, for JSON."""
    summaries = [summary for one in comparisons if (summary := summarise(one)) is not None]
    return {
        "workloads": [summary._asdict() for summary in summaries],
        f"times as fast as {REFERENCE_PEER}, geometric mean": speedup_over(REFERENCE_PEER, comparisons),
    }


def _rows_of(name: str, comparisons: Sequence[Comparison]) -> list[Row]:
    return [row for one in comparisons for row in one.rows() if row.name == name]
