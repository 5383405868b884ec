"""The command ``python -m benchmarks processes``: options, what is measured, and files."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.command_line import Parser, add_output_options, folder, whole_number, write_json
from benchmarks.machine import describe
from benchmarks.processes.group import Configuration, Group, mpiexec
from benchmarks.processes.markdown import markdown
from benchmarks.processes.projection import (
    ARITHMETIC,
    ASSUMED_LINK,
    Link,
    Measured,
    fit_link,
    project,
)
from benchmarks.processes.worker import Training
from benchmarks.timing import Timings
from benchmarks.workers import WorkerError, available_cores
from benchmarks.workloads import WORKLOADS, Workload

PROJECTED = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Numbers of processes to project."""

NETWORKS = {
    workload.name: workload
    for workload in (
        WORKLOADS["deep"],
        replace(WORKLOADS["adam-f32"], rows=25_600, epochs=1),
        replace(WORKLOADS["large"], rows=8_192),
        Workload("small", (30, 128, 1), "relu", 16_000, batch_size=32, epochs=4, rate=0.01),
    )
}
"""Networks of the comparison with the peers, all of whose batches have the same number of rows."""

N_ALONE = 3
"""Repeats of steps of processes by themselves, and of orders, of which the shortest counts."""

MIN_REPEATS, MAX_SECONDS_OF_REPEATS = 3, 40.0
"""A network has fewer repeats than asked for, but not fewer than this, if they would take longer."""

ALLREDUCE_SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
ORDER_SIZES = (100_000, 1_000_000, 10_000_000)
MAX_NUMBERS_ADDED_UP = 10**7
"""Of each size and type, so many numbers are added up in several Allreduces: 5 at least, 500 at most."""

DESCRIPTION = f"""Compare processes that train together, each with one thread, with one process of as many
threads: at fixed total work, and at fixed work a process (rows and batch are multiplied by the number of
processes). Measure the parts of a step, and Allreduce against its size; project {PROJECTED[0]} to
{PROJECTED[-1]} processes from these. Markdown is printed at the end. The machine must be idle else."""


def run(arguments: list[str]) -> None:
    """Measure what the options name, print Markdown, and write results and a picture."""
    parser = _parser()
    options = parser.parse_args(arguments)
    path = folder(parser, options)
    problem = ""
    if options.report is not None:
        content = _read(parser, options.report)
    else:
        content = describe(load_before=_load(), repeats=options.repeats, quick=options.quick, workloads=[])
        problem = _measure_or_say_why_not(options, content)
    print(markdown(content))
    if path is not None:
        _write(path, content, only_picture=options.report is not None)
    if problem:
        parser.exit(1, f"{parser.prog}: error: {problem}; what was measured before is kept\n")


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks processes", description=DESCRIPTION)
    parser.add_argument("--only", choices=list(NETWORKS), nargs="+", default=list(NETWORKS))
    parser.add_argument("--repeats", type=whole_number(1), default=7, help="interleaved repeats (7)")
    parser.add_argument("--quick", action="store_true", help="less work, to see that it runs: no figures")
    parser.add_argument(
        "--processes",
        type=whole_number(2),
        nargs="+",
        default=_counts(available_cores()),
        help="numbers of processes (2, 4, ... up to the number of cores)",
    )
    parser.add_argument(
        "--mpiexec", type=shlex.split, metavar="COMMAND", help="what starts processes, up to -n"
    )
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="measure nothing: Markdown and picture of these results"
    )
    add_output_options(parser)
    return parser


def _counts(cores: int) -> list[int]:
    """Return the powers of two up to the number of cores, from 2."""
    return [2**exponent for exponent in range(1, cores.bit_length()) if 2**exponent <= cores] or [2]


def _read(parser: Parser, path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"--report: cannot read {str(path)!r}: {error}")
    return content


def _load() -> float | None:
    """Return the number of processes that ran in the last minute; None if the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


# What is measured.


def _measure_or_say_why_not(options: argparse.Namespace, content: dict[str, Any]) -> str:
    """Measure; return what ended it early, or ""."""
    try:
        _measure(options, content)
    except KeyboardInterrupt:
        return "interrupted"
    except WorkerError as error:
        return str(error)
    return ""


def _measure(options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Measure, adding to the content at each step, so that Ctrl-C loses none."""
    console = Console(stderr=True, highlight=False)
    counts = sorted(set(options.processes))
    configurations = [Configuration(1, 1)]
    configurations += [Configuration(*pair) for k in counts for pair in ((1, k), (k, 1))]
    launcher = options.mpiexec or mpiexec()
    with _groups(configurations, launcher) as groups:
        together = groups[Configuration(counts[-1], 1)]
        content["mpi"] = together.ask("library")[0]
        content["processes"] = counts
        with console.status("Allreduce"):
            content["allreduce"] = _allreduce(together, counts[-1], quick=options.quick)
        link = fit_link(
            f"shared memory of one machine, as measured with {counts[-1]} processes",
            {one["bytes"]: one["seconds"] for one in content["allreduce"]},
            counts[-1],
        )
        for one in content["allreduce"]:
            one["fitted_seconds"] = link.allreduce(one["bytes"], counts[-1])
        links = [link, ASSUMED_LINK]
        content["links"], content["arithmetic"] = [one._asdict() for one in links], ARITHMETIC
        with console.status("orders of rows"):
            order = _order(together, quick=options.quick)
        content["order"] = [{"rows": rows, "seconds_a_row": each} for rows, each in order.items()]
        for name in dict.fromkeys(options.only):
            workload = _quick(NETWORKS[name]) if options.quick else NETWORKS[name]
            with console.status(f"{name}: {workload.title}"):
                measured = _network(workload, groups, options.repeats)
                _check_losses(measured["measured"], workload)
                measured["projected"] = _projections(measured, order, links, counts)
            content["workloads"].append(measured)


@contextmanager
def _groups(
    configurations: Sequence[Configuration], launcher: list[str]
) -> Iterator[dict[Configuration, Group]]:
    with ExitStack() as stack:
        groups = {}
        for configuration in configurations:
            groups[configuration] = Group(configuration, launcher)
            stack.callback(groups[configuration].end)
        yield groups


def _quick(workload: Workload) -> Workload:
    """Return a workload of the same kind that takes almost no time."""
    sizes = tuple(min(size, 64) for size in workload.sizes)
    batch_size = min(workload.batch, 64)
    return replace(workload, sizes=sizes, rows=4 * batch_size, batch_size=batch_size, epochs=1)


def _allreduce(group: Group, n_processes: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return the seconds of Allreduces of several sizes: medians of those of the slowest process."""
    measured = []
    for dtype, size in (("float32", 4), ("float64", 8)):
        for n in ALLREDUCE_SIZES[:3] if quick else ALLREDUCE_SIZES:
            answers = group.ask("allreduce", n, dtype, min(500, max(5, MAX_NUMBERS_ADDED_UP // n)))
            seconds = statistics.median(map(max, zip(*answers)))
            measured.append({"dtype": dtype, "parameters": n, "bytes": n * size, "seconds": seconds})
    return measured


def _order(group: Group, *, quick: bool) -> dict[int, float]:
    """Return the seconds a row that an order takes, by the number of rows."""
    return {
        n_rows: statistics.median(map(min, group.ask("order", n_rows, N_ALONE)))
        for n_rows in (ORDER_SIZES[:1] if quick else ORDER_SIZES)
    }


class Case(NamedTuple):
    """A training that is timed: at fixed total work ("strong") or fixed work a process ("weak")."""

    scaling: str
    configuration: Configuration
    workload: Workload

    @property
    def title(self) -> str:
        """Name among the timings."""
        return f"{self.scaling}: {self.configuration.title}"


def _network(workload: Workload, groups: Mapping[Configuration, Group], repeats: int) -> dict[str, Any]:
    """Measure a network: trainings, the parts of their steps, and steps of processes by themselves."""
    counts = [configuration.processes for configuration in groups if configuration.processes > 1]
    last = groups[Configuration(counts[-1], 1)]
    alone = {
        rows: statistics.median(map(min, last.ask("alone", workload, rows, N_ALONE)))
        for rows in _row_counts(workload.batch)
    }
    return {
        "name": workload.name,
        "title": workload.title,
        "sizes": workload.sizes,
        "rows": workload.rows,
        "batch_size": workload.batch,
        "bytes_of_parameters": _bytes_of_parameters(workload),
        "measured": _trainings(_cases(workload, groups), groups, repeats),
        "parts": [
            {"processes": k, "ranks": groups[Configuration(k, 1)].ask("parts", workload)} for k in counts
        ],
        "alone": [{"rows": rows, "seconds": seconds} for rows, seconds in alone.items()],
    }


def _cases(workload: Workload, configurations: Iterable[Configuration]) -> list[Case]:
    """Return the trainings to compare; of fixed work a process there is one process before: the same."""
    cases = []
    for configuration in configurations:
        cases.append(Case("strong", configuration, workload))
        k = max(configuration)
        if k > 1:
            larger = replace(workload, rows=k * workload.rows, batch_size=k * workload.batch)
            cases.append(Case("weak", configuration, larger))
    return cases


def _trainings(
    cases: Sequence[Case], groups: Mapping[Configuration, Group], repeats: int
) -> list[dict[str, Any]]:
    """Train in turn, once to warm up and then several times; return the seconds of the slowest process."""
    slowest: dict[str, list[Training]] = {case.title: [] for case in cases}

    def once() -> float:
        start = time.perf_counter()
        for case in cases:
            slowest[case.title].append(max(groups[case.configuration].ask("train", case.workload)))
        return time.perf_counter() - start

    once()
    seconds = once()
    for _ in range(1, min(repeats, max(MIN_REPEATS, int(MAX_SECONDS_OF_REPEATS / seconds)))):
        once()
    timings = Timings({title: [one.seconds for one in all_[1:]] for title, all_ in slowest.items()})
    return [
        {
            "scaling": case.scaling,
            **case.configuration._asdict(),
            "engine": slowest[case.title][-1].engine,
            "loss": slowest[case.title][-1].loss,
            "seconds_a_step": timings.median(case.title) / case.workload.units,
            "spread_a_step": timings.spread(case.title) / case.workload.units,
            "all_seconds": timings.seconds[case.title],
        }
        for case in cases
    ]


def _check_losses(trainings: Sequence[dict[str, Any]], workload: Workload) -> None:
    """Raise a WorkerError if trainings of the same work ended at different losses."""
    losses: dict[Any, list[float]] = {}
    for one in trainings:
        times = max(one["processes"], one["threads"]) if one["scaling"] == "weak" else 1
        losses.setdefault(times, []).append(one["loss"])
    for found in losses.values():
        if not all(math.isclose(found[0], loss, rel_tol=workload.tolerance) for loss in found):
            raise WorkerError(f"{workload.name}: different losses: {', '.join(map(repr, found))}")


def _row_counts(batch_size: int) -> list[int]:
    """Return the batch's rows and its halves, down to one row."""
    counts = [batch_size]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // 2))
    return counts


def _bytes_of_parameters(workload: Workload) -> int:
    n_parameters = sum((n_in + 1) * n_out for n_in, n_out in zip(workload.sizes, workload.sizes[1:]))
    return n_parameters * {"float32": 4, "float64": 8}[workload.dtype]


def _projections(
    network: dict[str, Any], order: Mapping[int, float], links: Sequence[Link], counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Return projections, of the numbers of processes that were measured too."""
    (single,) = (
        one["seconds_a_step"] for one in network["measured"] if one["processes"] == one["threads"] == 1
    )
    measured = Measured(
        batch_size=network["batch_size"],
        n_bytes=network["bytes_of_parameters"],
        step=single,
        local={one["rows"]: one["seconds"] for one in network["alone"]},
        order=order,
        rows=network["rows"],
    )
    return [
        {
            "scaling": scaling,
            "link": link.about,
            "steps": [
                project(measured, link, k, weak=scaling == "weak")._asdict()
                for k in dict.fromkeys((*counts, *PROJECTED))
            ],
        }
        for link in links
        for scaling in ("strong", "weak")
    ]


# Files.


def _write(path: Path, content: dict[str, Any], *, only_picture: bool) -> None:
    stem = f"{content['date'][:10]}-processes{'-quick' if content['quick'] else ''}"
    if not only_picture:
        write_json(path / f"{stem}.json", content)
    if not content["workloads"]:
        return
    try:
        from benchmarks.processes.picture import draw

        draw(content, path / f"{stem}.png")
        print(f"written: {path / f'{stem}.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'mlp_xp[bench]')")
