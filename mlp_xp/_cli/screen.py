"""What a command says: lines and tables for people, one JSON document for machines, or nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlp_xp._training.progress_bar import ProgressBar
from mlp_xp.tables._pipelines import rounded
from mlp_xp.tables._reading import printable

WIDTH_OF_FILES = 200


class Screen:
    """Where a command speaks.

    Text goes to stdout and notes and progress to stderr, so that what is piped on is the answer alone.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.quiet, self.json = options.quiet, options.json
        self.out, self.err = Console(highlight=False), Console(highlight=False, stderr=True)
        for console in (self.out, self.err):
            if not console.is_terminal:  # a file gets its lines and tables whole
                console.soft_wrap, console.width = True, WIDTH_OF_FILES

    @property
    def speaks(self) -> bool:
        """Whether there is text for people."""
        return not (self.quiet or self.json)

    def say(self, line: str = "") -> None:
        """Print a line."""
        if self.speaks:
            self.out.print(Text(printable(line)))

    def list(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print names and what belongs to them, which may take more than a line."""
        rows = [(name, text) for name, text in rows if text]
        width = max((len(name) for name, _ in rows), default=0)
        for name, text in rows:
            if not self.out.is_terminal:
                self.say(f"  {name:<{width}}  {text}")
                continue
            grid = Table.grid(padding=(0, 2))
            grid.add_column(min_width=width + 2, no_wrap=True)
            grid.add_column(overflow="fold")
            grid.add_row(Text(f"  {name}"), Text(printable(text)))
            if self.speaks:
                self.out.print(grid)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        justify: Literal["left", "right"] = "right",
    ) -> None:
        """Print a table; `justify` is for all columns but the first, which hold numbers as a rule."""
        table = Table()
        for place, name in enumerate(columns):
            table.add_column(name, justify=justify if place else "left")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        if self.speaks:
            self.out.print(table)

    def note(self, line: str) -> None:
        """Print what a user should know of the answer."""
        if self.speaks:
            self.err.print(Text(printable(f"mlp-xp: {line}")))

    def complain(self, line: str) -> None:
        """Print what went wrong, whatever was asked for."""
        print(printable(f"mlp-xp: {line}"), file=sys.stderr)

    def answer(self, document: Any) -> None:
        """Print the one JSON document, where that is asked for."""
        if self.json:
            print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))

    def progress(self, description: str = "epoch") -> ProgressBar | None:
        """Return a progress bar, if there is somebody to look at it."""
        return ProgressBar(console=self.err, description=description) if self.speaks else None


def figure(name: str, value: float | None) -> str:
    """Write a score by its name."""
    if value is None:
        return "-"
    if "accuracy" in name:
        return f"{value:.2%}"
    return f"{value:.4f}" if name in FRACTIONS and abs(value) < 1e4 else rounded(value)


FRACTIONS = ("roc_auc", "log_loss", "r2")
"""Scores with a fixed number of digits; the others are in the target's units."""
