"""What the three commands have in common: options that are checked before anything starts, and files."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

RESULTS = Path(__file__).parent / "results"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the options)\n")


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number in a range."""

    def read(text: str) -> int:
        bounds = f"a whole number >= {minimum}" if maximum is None else f"{minimum} to {maximum}"
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum or (maximum is not None and number > maximum):
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text!r}")
        return number

    return read


def add_where_to_write(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go."""
    parser.add_argument(
        "--save", action="store_true", help=f"write the results to benchmarks/{RESULTS.name}/"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the results to this folder")


def folder(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Path | None:
    """Return the folder to write to, made if need be; None if nothing is to be written."""
    path: Path | None = options.out or (RESULTS if options.save else None)
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: cannot write to {str(path)!r}: {error.strerror}")
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of results, and say so."""
    path.write_text(json.dumps(_without_nan(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")


def _without_nan(content: Any) -> Any:
    """Return the same with None for what JSON has no word for."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def need(module: str, why: str) -> None:
    """Exit with one line if a module is missing."""
    try:
        __import__(module)
    except ImportError:
        sys.exit(f"python -m benchmarks: error: {why} needs {module}: pip install 'mlp_xp[bench]'")
