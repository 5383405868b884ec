"""Comparison of mlp_xp with its peers and with the matrix products alone: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command_line import Parser, add_output_options, folder, need, slug, whole_number, write_json
from benchmarks.comparison import Comparison, measure, new_comparison
from benchmarks.machine import Gpu, describe, gpu
from benchmarks.participants import PARTICIPANTS, TORCH_COMPILE, base
from benchmarks.precision import TF32
from benchmarks.workers import available_cores, limit_threads
from benchmarks.workloads import WORKLOADS, Workload, default_workloads, quick_workloads, workloads_for

DESCRIPTION = """Train and predict with mlp_xp, its peers, and the matrix products alone: the same work from
the same start, in one run, by turns. `python -m benchmarks costs` measures the library's own costs,
`python -m benchmarks growth` how cost grows with the size of the work."""
QUICK_REPEATS = 3
COMPILED_IN_QUICK_RUNS = {"cpu": (), "cuda": ("adam-f32",)}
"""Workloads of quick runs that include torch.compile, which takes 10 to 20 s to compile each."""
MAX_SECONDS_OF_REPEATS = {"full": 6.0, "quick": 1.5}
"""Seconds of repeats after which a participant is not repeated on a GPU, where some are 100 times slower."""
PRECISION = "float32 products in full float32 for all, in TF32 where a workload's title says so"


def main(arguments: list[str]) -> None:
    """Measure the workloads that the options name; print each when it is done, and write all."""
    parser = _parser()
    options = parser.parse_args(arguments)
    need("rich", "the benchmark")
    if options.list:
        _list()
        return
    names = _participants(parser, options)
    workloads = _workloads(parser, options)
    found = _gpu(parser, options)
    path = folder(parser, options)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else 7)
    threads = options.threads or available_cores()
    limit_threads(threads)
    about = describe(
        device=options.device,
        gpu=found and found.name,
        cuda=found and found._asdict(),
        threads=threads,
        repeats=repeats,
        seconds_of_repeats=_max_seconds_of_repeats(options),
        quick=options.quick,
    )

    from rich.console import Console

    console = Console()
    console.print(_heading(about), highlight=False)
    if options.quick:
        console.print(_quick_run_note(options), highlight=False)
    start = time.perf_counter()
    comparisons = [
        new_comparison(workload, _names_in(workload, names, options), options.device)
        for workload in workloads
    ]
    comparisons = _measure_all(console, comparisons, threads, repeats, about["seconds_of_repeats"])
    console.print(f"\ntook {time.perf_counter() - start:.0f} s")
    if path is not None and comparisons:
        _write(path, about, comparisons)


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks", description=DESCRIPTION)
    parser.add_argument("--only", choices=list(WORKLOADS), nargs="+", metavar="NAME", help="these workloads")
    parser.add_argument(
        "--peers",
        choices=list(PARTICIPANTS),
        nargs="+",
        metavar="NAME",
        help=f"these, and {base('cpu')} (on a GPU {base('cuda')})",
    )
    parser.add_argument("--repeats", type=whole_number(1), help=f"of each (7; {QUICK_REPEATS} with --quick)")
    parser.add_argument(
        "--threads", type=whole_number(1, available_cores()), help="the same for all (as many as cores)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(cpu)")
    parser.add_argument(
        "--quick", action="store_true", help="less training, on a CPU fewer workloads: a minute or two"
    )
    parser.add_argument("--list", action="store_true", help="list workloads and participants, and exit")
    add_output_options(parser)
    return parser


def _participants(parser: Parser, options: argparse.Namespace) -> list[str]:
    if options.peers is None:
        return [name for name, one in PARTICIPANTS.items() if one.takes_part(options.device)]
    for name in options.peers:
        if options.device not in PARTICIPANTS[name].devices:
            parser.error(f"--peers: {name} does not run on {options.device}")
    wanted = {base(options.device), *options.peers}
    return [name for name in PARTICIPANTS if name in wanted]


def _workloads(parser: Parser, options: argparse.Namespace) -> list[Workload]:
    device = options.device
    quick = quick_workloads(device) if options.quick else {}
    if options.only is None:
        return list((quick or default_workloads(device)).values())
    known = {**workloads_for(device), **quick}
    chosen = [known[name] for name in dict.fromkeys(options.only)]
    for workload in chosen:
        if device == "cpu" and workload.matmul_precision == TF32:
            parser.error(f"--only: {workload.name} does not run on cpu: TF32 is a precision of GPUs")
        if device == "cuda" and workload.defaults:
            parser.error(f"--only: {workload.name} does not run on cuda: mlp_xp.train has no such defaults")
    return chosen


def _names_in(workload: Workload, names: list[str], options: argparse.Namespace) -> list[str]:
    """Return the participants that can do a workload; quick runs leave torch.compile out of most."""
    compiles = options.peers or not options.quick or workload.name in COMPILED_IN_QUICK_RUNS[options.device]
    return [
        name for name in names if PARTICIPANTS[name].does(workload) and (compiles or name != TORCH_COMPILE)
    ]


def _gpu(parser: Parser, options: argparse.Namespace) -> Gpu | None:
    if options.device == "cpu":
        return None
    found = gpu()
    if found is None:
        parser.error("--device cuda: the CUDA driver finds no GPU on this machine")
    return found


def _max_seconds_of_repeats(options: argparse.Namespace) -> float:
    if options.device == "cpu":
        return math.inf
    return MAX_SECONDS_OF_REPEATS["quick" if options.quick else "full"]


def _quick_run_note(options: argparse.Namespace) -> str:
    parts = ["--quick: less training in each workload"]
    quick = quick_workloads(options.device)
    left_out = [name for name in default_workloads(options.device) if name not in quick]
    if options.only is None and left_out:
        parts.append(f"without {', '.join(left_out)}")
    if options.peers is None:
        compiles = COMPILED_IN_QUICK_RUNS[options.device]
        parts.append(f"without {TORCH_COMPILE}{' except in ' if compiles else ''}{', '.join(compiles)}")
    return "; ".join(parts)


def _heading(about: dict[str, Any]) -> str:
    where = about["machine"] if about["cuda"] is None else Gpu(**about["cuda"]).title
    libraries = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    repeats = f"{about['repeats']} interleaved repeats after a warm-up; medians"
    if about["seconds_of_repeats"] < math.inf:
        repeats += f"; fewer where they take more than {about['seconds_of_repeats']:g} s"
    lines = [
        f"{where}; {about['threads']} threads each; {about['blas']}",
        f"Python {about['python']}, {libraries}",
        f"{repeats}; spread is the interquartile range",
    ]
    return "\n".join([*lines, f"{PRECISION}"] if about["cuda"] else lines)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in (
        ("workloads", [(name, f"{it.title} [{', '.join(it.devices)}]") for name, it in WORKLOADS.items()]),
        (
            "participants",
            [
                (name, f"{one.about} [{', '.join((*one.devices, *one.kinds))}]")
                for name, one in PARTICIPANTS.items()
            ],
        ),
    ):
        table = Table(title=title, title_justify="left", show_header=False)
        for name, about in rows:
            table.add_row(name, about.replace("[", r"\["))
        console.print(table)


def _measure_all(
    console: Any, planned: list[Comparison], threads: int, repeats: int, seconds: float
) -> list[Comparison]:
    """Measure and print the workloads in turn; on Ctrl-C return those measured until then."""
    from benchmarks.report import print_comparison, print_summary

    comparisons: list[Comparison] = []
    try:
        for comparison in planned:
            comparisons.append(comparison)
            name = comparison.workload.name
            with console.status(name) as status:
                measure(
                    comparison,
                    threads=threads,
                    repeats=repeats,
                    seconds=seconds,
                    say=partial(_say, status, name),
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

    stem = f"{about['date'][:10]}-{slug(about['gpu'] or about['device'])}{'-quick' if about['quick'] else ''}"
    results = [comparison.as_json() for comparison in comparisons]
    write_json(path / f"{stem}.json", {**about, "summary": as_json(comparisons), "results": results})
    try:
        from benchmarks.picture import draw

        title = f"{about['gpu'] or about['machine']}, {about['threads']} threads"
        title += f"; {PRECISION if about['gpu'] else about['blas']}"
        if draw(comparisons, title, path / f"{stem}.png"):
            print(f"written: {path / f'{stem}.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'mlp_xp[bench]')")
