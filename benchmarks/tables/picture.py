"""Picture of the ranks of a run on tables: a row for each participant, a point for each table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.picture import OTHERS, OWN
from benchmarks.tables.learners import LEARNERS, OURS, TRIVIAL
from benchmarks.tables.results import TableResult
from benchmarks.tables.summary import ranks

COLOURS = {OURS: OWN, TRIVIAL: "0.6"}

MAX_LINES = 6
"""Maximum number of lines of points of a participant, which are 1 apart."""

STEPS = (0.085, 0.105)
"""Distances of points with the same rank, to the right and upwards, at which they do not overlap."""


def draw(results: Sequence[TableResult], title: str, path: Path) -> bool:
    """Draw the ranks to a file; return False if there are none."""
    from matplotlib.figure import Figure

    found = [ranks(result) for result in results if result.seeds()]
    if not found:
        return False
    names = sorted(found[0], key=lambda name: statistics.fmean(one[name] for one in found), reverse=True)
    counts = {name: Counter(one[name] for one in found) for name in names}
    n_abreast = max(5, math.ceil(max(max(count.values()) for count in counts.values()) / MAX_LINES))
    figure = Figure(figsize=(8.6, 1.7 + 0.72 * len(names)), layout="constrained")
    panel = figure.subplots()
    for place, name in enumerate(names):
        colour = COLOURS.get(name, OTHERS)
        for rank, count in counts[name].items():
            points = [_offset(number, count, n_abreast) for number in range(count)]
            x, y = [rank + right for right, _ in points], [place + up for _, up in points]
            panel.scatter(x, y, s=20, color=colour, linewidths=0.0)
        mean = statistics.fmean(one[name] for one in found)
        panel.plot([mean, mean], [place - 0.24, place - 0.07], color="black", linewidth=2.2)
        panel.text(mean, place - 0.26, f"{mean:.2f}", va="top", ha="center", fontsize=8)
    panel.set_yticks(range(len(names)), [LEARNERS[name].label for name in names], fontsize=9)
    panel.set_ylim(-0.55, len(names) - 0.2)
    panel.set_xlim(0.7, len(names) + 0.3)
    panel.set_xticks(range(1, len(names) + 1))
    panel.set_xlabel("rank by the mean error on the rows held out (1 is the smallest error)", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    n_tables = f"{len(found)} table{'s' * (len(found) > 1)}"
    figure.suptitle(f"Ranks on {n_tables}: a point for each, black the mean\n{title}", fontsize=10)
    figure.savefig(path, dpi=130)
    return True


def _offset(number: int, count: int, n_abreast: int) -> tuple[float, float]:
    """Return the place of one of `count` points with the same rank, in centred lines of `n_abreast`."""
    line, index = divmod(number, n_abreast)
    in_line = min(n_abreast, count - line * n_abreast)
    return STEPS[0] * (index - (in_line - 1) / 2), STEPS[1] * line
