"""Printed tables of a run: one for each workload, and a summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.comparison import Comparison, Row
from benchmarks.participants import LIMIT, PARTICIPANTS, REFERENCE_PEER, base
from benchmarks.summary import speedup_over, summarise
from benchmarks.workloads import count

MIN_BYTES_FOR_MEMORY_RATIO = 10_000_000
"""Minimum memory needed for which the peak is also shown as a multiple of it; with less, the library's own
memory dominates."""


def comparison_table(comparison: Comparison) -> Table:
    """Return the table of one workload."""
    workload, rows = comparison.workload, comparison.rows()
    losses = [row.loss for row in rows if row.loss is not None and row.ratio is not None]
    needed = f"{workload.bytes_needed() / 1e6:,.1f} MB needed"
    if comparison.device != "cpu":
        needed += f"; peak {comparison.memory}"
    caption = f"{needed}; loss {losses[0]:.6g}" if losses else needed
    if workload.may_end_early and comparison.epochs is not None:
        caption += f" after {count(comparison.epochs, 'epoch')}"
    table = Table(
        title=f"[bold]{workload.name}[/bold]: {workload.title}", caption=caption, title_justify="left"
    )
    table.add_column("")
    table.add_column(f"a {workload.unit}", justify="right")
    table.add_column("spread", justify="right")
    table.add_column(f"/ {comparison.base}", justify="right")
    table.add_column("peak MB", justify="right")
    table.add_column("/ needed", justify="right")
    table.add_column("loss")
    for row in rows:
        if not math.isnan(row.per_unit):
            table.add_row(*_cells(row, workload.bytes_needed()), style=_style(row.name, comparison.base))
    return table


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the table of one workload, and a line for each participant that has no figures."""
    rows = comparison.rows()
    if not all(math.isnan(row.per_unit) for row in rows):
        console.print(comparison_table(comparison))
    # A problem that several participants share is printed once.
    labels_of: dict[str, list[str]] = {}
    for row in rows:
        if math.isnan(row.per_unit):
            labels_of.setdefault(row.problem, []).append(row.label)
    for problem, labels in labels_of.items():
        line = f"{comparison.workload.name}: {', '.join(labels)}: {problem}"
        console.print(line, markup=False, highlight=False)
    console.print()


def summary_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the table of our time in each workload, divided by that of the fastest peer and of the limit."""
    ours = base(comparisons[0].device if comparisons else "cpu")
    table = Table(title=f"[bold]{ours}'s time divided by[/bold]", title_justify="left")
    for heading in ("", ours, "the fastest peer's", "which is", "the limit"):
        table.add_column(heading, justify="left" if heading in ("", "which is") else "right")
    for comparison in comparisons:
        summary = summarise(comparison)
        if summary is None:
            table.add_row(comparison.workload.name, "nothing to compare")
            continue
        table.add_row(
            summary.workload,
            duration(summary.ours),
            _ratio(summary.against_fastest_peer),
            summary.fastest_peer,
            _ratio(summary.against_limit),
        )
    return table


def print_summary(console: Console, comparisons: Sequence[Comparison]) -> None:
    """Print the summary of a run."""
    console.print(summary_table(comparisons))
    mean = speedup_over(REFERENCE_PEER, comparisons)
    if mean is not None:
        console.print(f"{REFERENCE_PEER} takes {mean:.2f} times as long as mlp_xp (geometric mean)")


def duration(seconds: float) -> str:
    """Return a time with three figures and its unit.

    Examples
    --------
    >>> duration(0.00123), duration(2.5), duration(9.9999e-4)
    ('1.23 ms', '2.5 s', '1000 µs')
    """
    if math.isnan(seconds):
        return "-"
    factor, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    number = seconds / factor
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def markdown_table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [heading, ["---"] * len(heading), *lines]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _cells(row: Row, needed: int) -> list[str]:
    memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.1f}"
    shown = (
        row.peak_bytes is not None and PARTICIPANTS[row.name].ours and needed >= MIN_BYTES_FOR_MEMORY_RATIO
    )
    times = f"{row.peak_bytes / needed:.1f}" if shown and row.peak_bytes is not None else ""
    check = row.problem or ("same" if row.loss is not None else "has none")
    return [
        row.label,
        duration(row.per_unit),
        duration(row.spread),
        _ratio(row.ratio),
        memory,
        times,
        escape(check),
    ]


def _style(name: str, base: str) -> str:
    if name == LIMIT:
        return "dim"
    return "bold" if name == base else ""


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
