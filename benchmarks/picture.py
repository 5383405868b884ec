"""Bar charts of a run: a panel for each workload, a bar for each participant."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, Row
from benchmarks.participants import LIMIT, OURS, PARTICIPANTS
from benchmarks.report import duration

MAX_TITLE_WIDTH = 72
"""Number of characters in a line of a panel's title."""

# Okabe and Ito's colours, which colour-blind people can tell apart.
OWN, OTHERS, REFERENCE = "#0072B2", "#E69F00", "#D55E00"


def draw(comparisons: Sequence[Comparison], title: str, path: Path) -> bool:
    """Draw the times relative to ours to a file; return False if there are none."""
    from matplotlib.figure import Figure

    shown = [one for one in comparisons if _bars(one)]
    if not shown:
        return False
    n_columns = min(2, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    most = max(len(_bars(one)) for one in shown)
    height = n_rows * (0.9 + 0.27 * most) + 1.2
    figure = Figure(figsize=(6.4 * n_columns, height), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    limits = _x_limits(shown)
    for panel, comparison in zip(panels, shown):
        _draw_panel(panel, comparison, limits, most)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    legend = "blue: mlp_xp, orange: its peers; dashed: the matrix products alone"
    base = shown[0].base
    whose = "mlp_xp's estimator" if base == OURS else base
    figure.suptitle(f"Time relative to that of {whose} ({legend})\n{title}", fontsize=11)
    figure.savefig(path, dpi=130)
    return True


def _bars(comparison: Comparison) -> list[Row]:
    """Return the rows that have a bar, the fastest last, as the last bar is at the top."""
    rows = [row for row in comparison.rows() if row.ratio is not None and row.name != LIMIT]
    return sorted(rows, key=lambda row: row.ratio or 0.0, reverse=True)


def _limit(comparison: Comparison) -> float | None:
    return next((row.ratio for row in comparison.rows() if row.name == LIMIT), None)


def _x_limits(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    ratios = [row.ratio for one in comparisons for row in one.rows() if row.ratio is not None]
    return min(0.5, 0.8 * min(ratios)), max(2.0, 1.2 * max(ratios))


def _draw_panel(panel: Any, comparison: Comparison, limits: tuple[float, float], most: int) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    rows, limit = _bars(comparison), _limit(comparison)
    left = limits[0]
    for place, row in enumerate(rows, start=most - len(rows)):
        ratio = row.ratio or math.nan
        colour = OWN if PARTICIPANTS[row.name].ours else OTHERS
        panel.barh(place, ratio - left, left=left, height=0.72, color=colour)
        text = f"{ratio:.2f}" if row.name != comparison.base else f"1  ({_time(row, comparison)})"
        panel.text(1.02, place, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8)
    panel.axvline(1.0, color="black", linewidth=0.8)
    if limit is not None:
        panel.axvline(limit, color=REFERENCE, linewidth=1.4, linestyle="--")
        panel.text(
            limit, most - 0.4, f"limit {limit:.2f}", color=REFERENCE, fontsize=8, ha="center", va="bottom"
        )
    panel.set_xscale("log")
    panel.set_xlim(limits)
    panel.set_ylim(most - len(rows) - 0.6, most - 0.4)
    panel.set_yticks(range(most - len(rows), most), [row.label for row in rows], fontsize=9)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(_wrapped(comparison), fontsize=9, loc="left", pad=16)
    panel.set_xlabel(f"time relative to {comparison.base} (logarithmic; left is faster)", fontsize=8)


def _time(row: Row, comparison: Comparison) -> str:
    return f"{duration(row.per_unit)} a {comparison.workload.unit}"


def _wrapped(comparison: Comparison) -> str:
    parts = f"{comparison.workload.name}: {comparison.workload.title}".split("; ")
    return "\n".join(textwrap.fill(part, MAX_TITLE_WIDTH) for part in parts)
