"""Output of the commands: text and tables, or one JSON document, or nothing but errors."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlp_xp._training.progress_bar import ProgressBar
from mlp_xp.tables._common import printable
from mlp_xp.tables._scores import format_number

SCORES_WITH_4_DECIMALS = ("roc_auc", "log_loss", "r2")

REDIRECTED_WIDTH = 200
"""Width in characters of output that does not go to a terminal; chosen so that score tables do not wrap."""

MIN_FIELD_NAME_WIDTH = len("categories")
"""Minimum width of the names of fields; the longest name in a summary, so that all parts of one align."""


class Screen:
    """Writes a command's output: text, or with ``--json`` one document, or with ``--quiet`` errors only.

    Results go to stdout, notes and progress to stderr, so that a pipe receives the results alone.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.quiet, self.json = options.quiet, options.json
        self.out, self.err = Console(highlight=False), Console(highlight=False, stderr=True)
        for console in (self.out, self.err):
            if not console.is_terminal:  # lines and tables in files must not be wrapped
                console.soft_wrap, console.width = True, REDIRECTED_WIDTH

    @property
    def prints_text(self) -> bool:
        """Whether text is printed: neither ``--quiet`` nor ``--json``."""
        return not (self.quiet or self.json)

    def print(self, line: str = "") -> None:
        """Print a line."""
        if self.prints_text:
            self.out.print(Text(printable(line)))

    def print_command(self, title: str, command: str) -> None:
        """Print a command in one line, which the terminal wraps: with line breaks it could not be pasted."""
        if self.prints_text:
            self.out.print(Text(printable(f"{title}  {command}")), soft_wrap=True)

    def print_fields(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print pairs of a name and a text in two columns; pairs with an empty text are skipped."""
        rows = [(name, text) for name, text in rows if text]
        width = max([MIN_FIELD_NAME_WIDTH, *(len(name) for name, _ in rows)])
        for name, text in rows:
            if not self.out.is_terminal:
                self.print(f"  {name:<{width}}  {text}")
                continue
            # On a terminal long texts are wrapped in their own column.
            grid = Table.grid(padding=(0, 2))
            grid.add_column(min_width=width + 2, no_wrap=True)
            grid.add_column(overflow="fold")
            grid.add_row(Text(f"  {name}"), Text(printable(text)))
            if self.prints_text:
                self.out.print(grid)

    def print_table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        justify: Literal["left", "right"] = "right",
    ) -> None:
        """Print a table; `justify` aligns all columns but the first, which is aligned left.

        Where the terminal is too narrow, first headers and the first column are wrapped. Then the table is
        split into several, which all have the first column: numbers are never cut.
        """
        if not self.prints_text:
            return
        cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
        for part in _split_columns(cells, self.out.width):
            table = Table()
            for index, width in part.items():
                name, align = Text(cells[0][index]), justify if index else "left"
                table.add_column(name, justify=align, width=width, overflow="fold")
            for row in cells[1:]:
                table.add_row(*(Text(row[index]) for index in part))
            self.out.print(table)

    def print_note(self, line: str) -> None:
        """Print a note on the results to stderr."""
        if self.prints_text:
            self.err.print(Text(printable(f"mlp-xp: {line}")))

    def print_notes(self, lines: Iterable[str]) -> None:
        """Print notes, a line each."""
        for line in lines:
            self.print_note(line)

    def print_error(self, line: str) -> None:
        """Print an error to stderr, also with ``--quiet`` or ``--json``."""
        print(printable(f"mlp-xp: {line}"), file=sys.stderr)

    def print_json(self, document: Any) -> None:
        """Print the JSON document of ``--json``, the only one of a command."""
        if self.json:
            text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
            # JSON escapes some control characters only; terminals obey others too.
            print(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show in a terminal that something is being done, such as reading a large table."""
        if not (self.prints_text and self.err.is_terminal):
            yield
            return
        with self.err.status(Text(printable(f"{what} ..."))):
            yield

    def progress(self, description: str = "epoch") -> ProgressBar | None:
        """Return a progress bar; None with ``--quiet`` or ``--json``."""
        return ProgressBar(console=self.err, description=description) if self.prints_text else None

    def print_saved(self, folder: Path) -> None:
        """Print a folder and the files in it."""
        self.print(f"Saved in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _split_columns(cells: Sequence[Sequence[str]], available: int) -> list[dict[int, int]]:
    """Return the tables that a table is split into to fit a width: the widths of their columns, by index."""
    border = 3  # a line and two spaces beside each column, and one line more
    natural = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in zip(*cells)]
    if sum(natural) + border * len(natural) < available:
        return [dict(enumerate(natural))]
    names = [word for row in cells for word in row[0].split()]
    narrow_first = min(max(map(cell_len, names), default=0), available // 3)
    headers = [max(map(cell_len, name.split()), default=0) for name in cells[0][1:]]
    values = [max((cell_len(row[index]) for row in cells[1:]), default=0) for index in range(1, len(natural))]
    parts: list[dict[int, int]] = []
    room = 0
    for index, width in enumerate(map(max, headers, values), 1):
        if not parts or room < width + border:
            parts.append({0: 0})
            room = available - 1 - border - narrow_first
        parts[-1][index] = width
        room -= width + border
        parts[-1][0] = min(natural[0], narrow_first + max(room, 0))
    return parts or [{0: min(natural[0], available)}]


def format_score(name: str, value: float | None) -> str:
    """Format a score: accuracies in per cent, errors in the target's units with four significant digits."""
    if value is None:
        return "-"
    if "accuracy" in name:
        return f"{value:.2%}"
    return f"{value:.4f}" if name in SCORES_WITH_4_DECIMALS and abs(value) < 1e4 else format_number(value)
