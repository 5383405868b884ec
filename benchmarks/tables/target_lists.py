"""Lists of tables with their targets, as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlp_xp.tables import DataError
from mlp_xp.tables._common import did_you_mean, listed

HEADER = ("file", "target", "task", "drop")
TASKS = ("auto", "classification", "regression")


class Entry(NamedTuple):
    """A table to learn from, as a list names it."""

    name: str
    """The file's name without its suffix."""
    path: Path
    target: str
    task: str = "auto"
    drop: tuple[str, ...] = ()
    """Columns to leave out."""


def read_list(path: Path, folder: Path) -> list[Entry]:
    """Return the entries of a list whose files are in a folder.

    Parameters
    ----------
    path : Path
        CSV with the header ``file,target,task,drop``. The task may be empty, which means "auto"; the columns
        to drop are separated by spaces.
    folder : Path

    Raises
    ------
    DataError
        If the list cannot be read, a cell is wrong, or two tables have the same name.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; it lists the tables: {','.join(HEADER)}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: it cannot be read ({error})") from error
    header = tuple(cell.strip() for cell in lines[0]) if lines else ()
    if header != HEADER:
        raise DataError(f"{path}: the header must be {','.join(HEADER)}, got {','.join(header)!r}")
    entries = []
    for number, cells in enumerate(lines[1:], start=2):
        if cells:
            try:
                entries.append(_entry(cells, folder))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    names = [entry.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not entries:
        raise DataError(f"{path}: {f'it names {repeated[0]} twice' if repeated else 'it names no table'}")
    return entries


def _entry(cells: list[str], folder: Path) -> Entry:
    if len(cells) != len(HEADER):
        raise DataError(f"expected {len(HEADER)} cells, got {len(cells)}")
    file, target, task, drop = (cell.strip() for cell in cells)
    if not file or not target:
        raise DataError(f"the {'target' if file else 'file'} is empty")
    if task not in ("", *TASKS):
        raise DataError(f"the task must be empty or one of {', '.join(TASKS)}, got {task!r}")
    path = folder / file
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return Entry(path.stem, path, target, task or "auto", tuple(drop.split()))


def chosen(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the entries with these names, in the order of the list.

    Raises
    ------
    DataError
        If there is no table of a name.
    """
    known = [entry.name for entry in entries]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"no table {listed(unknown)}{did_you_mean(unknown, known)}; there are {listed(known)}"
        )
    return [entry for entry in entries if entry.name in names]
