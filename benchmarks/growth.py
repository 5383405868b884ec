"""Time and memory of an epoch against rows, width, depth and batch size: ``python -m benchmarks growth``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command_line import Parser, add_output_options, folder, need, whole_number, write_json
from benchmarks.comparison import Comparison, measure, new_comparison
from benchmarks.machine import describe
from benchmarks.participants import REFERENCE_PEER
from benchmarks.workers import available_cores, limit_threads
from benchmarks.workloads import Workload

PARTICIPANTS = ("mlp_xp.train", REFERENCE_PEER)
BASE = Workload("growth", (20, 128, 128, 1), "relu", 8_000, batch_size=256, rate=0.01)


class Axis(NamedTuple):
    """A property of the workload that is varied, all others being those of `BASE`."""

    label: str
    values: tuple[int, ...]
    at: Callable[[int], Workload]


AXES = {
    "rows": Axis(
        "rows of the data", (1_000, 4_000, 16_000, 64_000, 256_000), lambda value: replace(BASE, rows=value)
    ),
    "width": Axis(
        "units of each hidden layer",
        (8, 32, 128, 512, 2048),
        lambda value: replace(BASE, sizes=(20, value, value, 1)),
    ),
    "depth": Axis(
        "hidden layers", (1, 2, 4, 8, 16), lambda value: replace(BASE, sizes=(20, *[128] * value, 1))
    ),
    "batch": Axis("rows of a batch", (8, 32, 128, 512, 2048), lambda value: replace(BASE, batch_size=value)),
}


class Point(NamedTuple):
    """The measurements of one participant at one value of an axis."""

    name: str
    value: int
    seconds: float
    """Median seconds of an epoch."""
    peak_bytes: int | None


def main(arguments: list[str]) -> None:
    """Measure along each axis, print the figures and draw them."""
    parser = Parser(
        prog="python -m benchmarks growth",
        description=f"Time and peak memory of an epoch of {' and '.join(PARTICIPANTS)} against rows, width, "
        f"depth and batch size, around {BASE.title}.",
    )
    parser.add_argument("--only", choices=list(AXES), nargs="+", default=list(AXES), help="these axes")
    parser.add_argument("--repeats", type=whole_number(1), default=5, help="interleaved repeats (5)")
    parser.add_argument("--threads", type=whole_number(1, available_cores()), help="(as many as cores)")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    need("rich", "the benchmark")
    path = folder(parser, options)
    threads = options.threads or available_cores()
    limit_threads(threads)
    about = describe(threads=threads, repeats=options.repeats, around=BASE.title)
    measured: dict[str, list[Point]] = {}
    try:
        for name in dict.fromkeys(options.only):
            measured[name] = []
            _measure_axis(name, measured[name], options, threads)
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept")
    if path is not None:
        _write(path, about, {name: points for name, points in measured.items() if points})


def points_of(comparison: Comparison, value: int) -> list[Point]:
    """Return the points of a comparison at one value of an axis, without participants that failed."""
    epoch = comparison.workload.units / comparison.workload.epochs
    return [
        Point(row.name, value, row.per_unit * epoch, row.peak_bytes)
        for row in comparison.rows()
        if not row.problem
    ]


def _measure_axis(name: str, points: list[Point], options: argparse.Namespace, threads: int) -> None:
    """Measure along one axis, appending to `points` at each value, so that Ctrl-C loses none."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.report import duration

    console, axis = Console(), AXES[name]
    table = Table(axis.label, "", "an epoch", "peak MB", title=f"against {name}", title_justify="left")
    for value in axis.values:
        comparison = new_comparison(axis.at(value), PARTICIPANTS)
        with console.status(f"{name} {value:,}"):
            measure(comparison, threads=threads, repeats=options.repeats)
        found = points_of(comparison, value)
        points += found
        for point in found:
            memory = "-" if point.peak_bytes is None else f"{point.peak_bytes / 1e6:,.1f}"
            table.add_row(f"{value:,}", point.name, duration(point.seconds), memory)
        for row in comparison.rows():
            if row.problem:
                table.add_row(f"{value:,}", row.name, row.problem)
    console.print(table)


def _write(path: Path, about: dict[str, Any], measured: dict[str, list[Point]]) -> None:
    stem = f"{about['date'][:10]}-growth"
    results = {name: [point._asdict() for point in points] for name, points in measured.items()}
    write_json(path / f"{stem}.json", {**about, "results": results})
    try:
        for name, points in measured.items():
            draw(name, points, about, path / f"{stem}-{name}.png")
            print(f"written: {path / f'{stem}-{name}.png'}")
    except ImportError:
        print("no pictures: they need matplotlib (pip install 'mlp_xp[bench]')")


def draw(name: str, points: list[Point], about: dict[str, Any], path: Path) -> None:
    """Draw time and memory against one axis, and write the picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    looks = {PARTICIPANTS[0]: ("#0072B2", "o", "-"), PARTICIPANTS[1]: ("#E69F00", "s", "--")}
    for panel, quantity in zip(panels, ("time of an epoch [s]", "peak memory [MB]")):
        for participant, (colour, marker, line) in looks.items():
            own = [point for point in points if point.name == participant]
            if quantity.startswith("time"):
                pairs = [(point.value, point.seconds) for point in own]
            else:
                pairs = [(point.value, point.peak_bytes / 1e6) for point in own if point.peak_bytes]
            if pairs:
                panel.plot(*zip(*pairs), color=colour, marker=marker, linestyle=line, label=participant)
        panel.set_xscale("log")
        panel.set_yscale("log")
        values = sorted({point.value for point in points})
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.xaxis.set_minor_formatter(NullFormatter())
        bottom, top = panel.get_ylim()
        panel.set_ylim(10 ** math.floor(math.log10(bottom)), 10 ** math.ceil(math.log10(top)))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(AXES[name].label)
        panel.set_ylabel(quantity)
        panel.grid(color="0.9", linewidth=0.6, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(f"around {about['around']}\n{about['machine']}, {about['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=130)
