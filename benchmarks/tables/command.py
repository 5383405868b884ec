"""The command ``python -m benchmarks tables``: options, the loop over tables and seeds, and files."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks.command_line import RESULTS, Parser, make_folder, save_json, slug, whole_number
from benchmarks.machine import describe, versions
from benchmarks.report import duration
from benchmarks.tables.data import HELD_OUT, Table, load_table
from benchmarks.tables.learners import LEARNERS, why_missing
from benchmarks.tables.markdown import markdown
from benchmarks.tables.results import TableResult, train
from benchmarks.tables.summary import DEFINITIONS, summarise
from benchmarks.tables.target_lists import HEADER, chosen, read_list
from benchmarks.workers import THREAD_VARIABLES
from mlp_xp.tables import DataError

TARGETS = "targets.csv"

VERSIONS = ("mlp_xp", "numpy", "scikit-learn", "scipy", "polars", "numba", "pytabkit", "torch")

DESCRIPTION = f"""Train mlp_xp and others, all with their defaults, on the same rows of each table of a
folder, and score them on the same rows held out: a fifth, another one for each seed. {TARGETS} in the folder
lists the tables: {",".join(HEADER)} (the task may be empty, columns to drop are separated by spaces).
Results are written after each training, Markdown is printed at the end. Trainings run in this process, one
after the other: set OPENBLAS_NUM_THREADS and OMP_NUM_THREADS to limit their threads."""


def run(arguments: list[str]) -> None:
    """Measure what the options name, print Markdown, and write results and a picture."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console(stderr=True, highlight=False)  # standard output is for the Markdown
    try:
        tables = _tables(options)
    except DataError as error:
        parser.error(str(error))
    learners = _learners(parser, options, console)
    name = slug(options.name if options.name is not None else options.folder.resolve().name)
    if not name:
        parser.error("--name: must have a letter or digit")
    make_folder(parser, options.out)
    about = describe(
        versions=versions(VERSIONS),
        folder=options.folder.resolve().name,
        threads={variable: os.environ.get(variable) for variable in THREAD_VARIABLES},
        seeds=options.seeds,
        held_out=HELD_OUT,
        errors=f"log loss in nats, or 1 - R2. {DEFINITIONS}",
        learners={name: f"{LEARNERS[name].label}: {LEARNERS[name].about}" for name in learners},
    )
    stem = options.out / f"{about['date'][:10]}-{name}"
    results: list[TableResult] = []

    def save() -> None:
        content = {
            "summary": summarise(results).as_json(),
            "results": [result.as_json() for result in results],
        }
        save_json(stem.with_name(f"{stem.name}.json"), {**about, **content})

    try:
        _measure(console, tables, learners, options.seeds, results, save)
    except KeyboardInterrupt:
        console.print("interrupted; what was measured is kept")
    if any(result.fits for result in results):
        save()
        console.print(f"written: {stem}.json", soft_wrap=True)
        _draw(
            console, results, f"{about['machine']}; {about['date'][:10]}", stem.with_name(f"{stem.name}.png")
        )
    sys.stdout.write(markdown(results))


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks tables", description=DESCRIPTION)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the tables")
    parser.add_argument("--targets", type=Path, metavar="FILE", help=f"the list (FOLDER/{TARGETS})")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these tables: names of files without their suffixes"
    )
    parser.add_argument(
        "--participants",
        choices=list(LEARNERS),
        nargs="+",
        metavar="NAME",
        help=f"these of {', '.join(LEARNERS)} (all that are installed)",
    )
    parser.add_argument("--seeds", type=whole_number(1), default=5, metavar="N", help="seeds 0 to N - 1 (5)")
    parser.add_argument("--name", help="of the files, after the date; they are replaced (the folder's name)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help=f"of the files (benchmarks/{RESULTS.name}/)"
    )
    return parser


def _tables(options: argparse.Namespace) -> list[Table]:
    """Return all tables that the options name, read and checked.

    Raises
    ------
    DataError
        If one cannot be used.
    """
    folder: Path = options.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    entries = read_list(options.targets or folder / TARGETS, folder)
    return [load_table(entry) for entry in chosen(entries, options.only or [one.name for one in entries])]


def _learners(parser: Parser, options: argparse.Namespace, console: Console) -> list[str]:
    """Return the participants that the options name, or all that are installed."""
    missing = {name: why for name in options.participants or LEARNERS if (why := why_missing(name))}
    for name, why in missing.items():
        if options.participants:
            parser.error(f"--participants: {name} is not installed ({why})")
        console.print(f"without {name}: not installed ({why})", markup=False)
    return [name for name in LEARNERS if name in (options.participants or LEARNERS) and name not in missing]


def _measure(
    console: Console,
    tables: Sequence[Table],
    learners: Sequence[str],
    n_seeds: int,
    results: list[TableResult],
    save: Callable[[], None],
) -> None:
    """Train on all tables, adding to `results`; participants take turns with each seed."""
    with console.status("") as status:
        for table in tables:
            result = TableResult.of(table, learners)
            results.append(result)
            for seed in range(n_seeds):
                training, held = table.split(seed)
                for name in learners:
                    status.update(f"{table.name}, seed {seed}: {LEARNERS[name].label}")
                    with unswallowed_interrupts():
                        fit = train(name, table.task, seed, training, held)
                    result.fits.append(fit)
                    save()
            console.print(_line(result), markup=False, soft_wrap=True)


@contextmanager
def unswallowed_interrupts() -> Iterator[None]:
    """Context that raises `KeyboardInterrupt` at its end if Ctrl-C was pressed and something caught it.

    scikit-learn's networks do: they warn, and return as if the training were complete.
    """
    handler, received = signal.getsignal(signal.SIGINT), False
    assert callable(handler)

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        handler(number, frame)

    signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


def _line(result: TableResult) -> str:
    """Return the errors on one table in a line."""
    each = []
    for name in result.learners:
        mean, seconds = result.mean(name), result.seconds(name)
        figures = (
            result.problem(name) if mean is None or seconds is None else f"{mean:.4g}, {duration(seconds)}"
        )
        each.append(f"{name} {figures}")
    return f"{result.name}: {'; '.join(each)}"


def _draw(console: Console, results: Sequence[TableResult], title: str, path: Path) -> None:
    try:
        from benchmarks.tables.picture import draw

        if draw(results, title, path):
            console.print(f"written: {path}", soft_wrap=True)
    except ImportError:
        console.print("no picture: it needs matplotlib (pip install 'mlp_xp[bench]')", markup=False)
