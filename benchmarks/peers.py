"""Ours, its peers and the limit, side by side: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command_line import Parser, add_where_to_write, folder, need, whole_number, write_json
from benchmarks.comparison import Comparison, measure, new_comparison
from benchmarks.machine import describe, gpu_name
from benchmarks.participants import OURS, PARTICIPANTS
from benchmarks.workers import available_cores, limit_threads
from benchmarks.workloads import WORKLOADS, Workload, quick_ones

DESCRIPTION = """Train and predict with mlp_xp, its peers, and the matrix products alone: the same work from
the same start, in one run, by turns. `python -m benchmarks costs` measures the library's own costs,
`python -m benchmarks growth` how cost grows with the size of the work."""
QUICK_REPEATS = 3
SLOW_TO_START = "torch.compile"


def main(arguments: list[str]) -> None:
    """Measure what is asked for, print it as it comes, and write it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    need("rich", "the benchmark")
    if options.list:
        _list()
        return
    names = _participants(parser, options)
    workloads = _workloads(options)
    gpu = gpu_name() if options.device == "cuda" else None
    if options.device == "cuda" and gpu is None:
        parser.error("--device cuda: the CUDA driver finds no GPU on this machine")
    path = folder(parser, options)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else 7)
    threads = options.threads or available_cores()
    limit_threads(threads)
    about = describe(device=options.device, gpu=gpu, threads=threads, repeats=repeats, quick=options.quick)

    from rich.console import Console

    console = Console()
    console.print(_heading(about), highlight=False)
    if options.quick:
        console.print(_left_out(options))
    start = time.perf_counter()
    comparisons = _measure_all(console, workloads, names, options.device, threads, repeats)
    console.print(f"\ntook {time.perf_counter() - start:.0f} s")
    if path is not None and comparisons:
        _write(path, about, comparisons)


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks", description=DESCRIPTION)
    parser.add_argument("--only", choices=list(WORKLOADS), nargs="+", metavar="NAME", help="these workloads")
    parser.add_argument(
        "--peers", choices=list(PARTICIPANTS), nargs="+", metavar="NAME", help=f"these, and {OURS}"
    )
    parser.add_argument("--repeats", type=whole_number(1), help=f"of each (7; {QUICK_REPEATS} with --quick)")
    parser.add_argument(
        "--threads", type=whole_number(1, available_cores()), help="the same for all (as many as cores)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(cpu)")
    parser.add_argument("--quick", action="store_true", help="less training, fewer workloads: about a minute")
    parser.add_argument("--list", action="store_true", help="list workloads and participants, and exit")
    add_where_to_write(parser)
    return parser


def _participants(parser: Parser, options: argparse.Namespace) -> list[str]:
    if options.peers is None:
        names = [name for name, one in PARTICIPANTS.items() if one.takes_part(options.device)]
        return [name for name in names if not (options.quick and name == SLOW_TO_START)]
    for name in options.peers:
        if options.device not in PARTICIPANTS[name].devices:
            parser.error(f"--peers: {name} does not run on {options.device}")
    return [name for name in PARTICIPANTS if name == OURS or name in options.peers]


def _workloads(options: argparse.Namespace) -> list[Workload]:
    known = {**WORKLOADS, **quick_ones()} if options.quick else WORKLOADS
    if options.only is not None:
        return [known[name] for name in dict.fromkeys(options.only)]
    return list(quick_ones().values() if options.quick else known.values())


def _left_out(options: argparse.Namespace) -> str:
    parts = ["--quick: less training in each workload"]
    if options.only is None:
        parts.append(f"without {', '.join(name for name in WORKLOADS if name not in quick_ones())}")
    if options.peers is None:
        parts.append(f"without {SLOW_TO_START}")
    return "; ".join(parts)


def _heading(about: dict[str, Any]) -> str:
    where = about["gpu"] or about["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{where}; {about['threads']} threads each; {about['blas']}\n"
        f"Python {about['python']}, {libraries}\n"
        f"{about['repeats']} interleaved repeats after a warm-up; medians; spread is the interquartile range"
    )


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in (
        ("workloads", [(name, workload.title) for name, workload in WORKLOADS.items()]),
        (
            "participants",
            [(f"{name}", f"{one.about} [{', '.join(one.devices)}]") for name, one in PARTICIPANTS.items()],
        ),
    ):
        table = Table(title=title, title_justify="left", show_header=False)
        for name, about in rows:
            table.add_row(name, about.replace("[", r"\["))
        console.print(table)


def _measure_all(
    console: Any, workloads: list[Workload], names: list[str], device: str, threads: int, repeats: int
) -> list[Comparison]:
    """Measure and print one workload after the other; Ctrl-C ends it with what there is."""
    from benchmarks.report import print_comparison, print_summary

    comparisons: list[Comparison] = []
    try:
        for workload in workloads:
            comparison = new_comparison(workload, names)
            comparisons.append(comparison)
            with console.status(workload.name) as status:
                measure(
                    comparison,
                    device=device,
                    threads=threads,
                    repeats=repeats,
                    say=partial(_say, status, workload.name),
                )
            print_comparison(console, comparison)
    except KeyboardInterrupt:
        console.print("interrupted; what was measured is kept")
        comparisons = [one for one in comparisons if any(it.seconds for it in one.outcomes.values())]
        if comparisons:
            print_comparison(console, comparisons[-1])
    if comparisons:
        print_summary(console, comparisons)
    return comparisons


def _say(status: Any, workload: str, what: str) -> None:
    status.update(f"{workload}: {what}")


def _write(path: Path, about: dict[str, Any], comparisons: list[Comparison]) -> None:
    from benchmarks.summary import as_json

    stem = f"{about['date'][:10]}-{about['device']}{'-quick' if about['quick'] else ''}"
    results = [comparison.as_json() for comparison in comparisons]
    write_json(path / f"{stem}.json", {**about, "summary": as_json(comparisons), "results": results})
    try:
        from benchmarks.picture import draw

        title = f"{about['gpu'] or about['machine']}, {about['threads']} threads"
        if draw(comparisons, title, path / f"{stem}.png"):
            print(f"written: {path / f'{stem}.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'mlp_xp[bench]')")
