"""Shared by the commands: the parser and its checks, the output folder, names of files, and JSON files."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

RESULTS = Path(__file__).parent / "results"


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the options)\n")


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for whole numbers in a range."""

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


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--save`` and ``--out``."""
    parser.add_argument(
        "--save", action="store_true", help=f"write the results to benchmarks/{RESULTS.name}/"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the results to this folder")


def folder(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Path | None:
    """Return the folder to write to, creating it if it does not exist; None if nothing is to be written."""
    path: Path | None = options.out or (RESULTS if options.save else None)
    if path is not None:
        make_folder(parser, path)
    return path


def make_folder(parser: argparse.ArgumentParser, path: Path) -> None:
    """Create the folder of the option ``--out`` if it does not exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot write to {str(path)!r}: {error.strerror}")


def slug(name: str) -> str:
    """Return a name as it is used in file names: "NVIDIA H100 80GB HBM3" is "nvidia-h100-80gb-hbm3"."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of results, and print its path."""
    save_json(path, content)
    print(f"written: {path}")


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of results; an interruption leaves the former file as it was."""
    text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False) + "\n"
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _without_nan(content: Any) -> Any:
    """Return the content with None for NaN and infinity, which JSON cannot hold."""
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
