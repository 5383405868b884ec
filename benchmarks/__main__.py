"""Run the benchmarks: ``python -m benchmarks --help``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

COMMANDS = ("costs", "growth", "processes", "tables")


def main() -> None:
    """Run a command, or the comparison with the peers."""
    command, arguments = ("peers", sys.argv[1:])
    if arguments and arguments[0] in COMMANDS:
        command, *arguments = arguments
    run: Callable[[list[str]], None] = import_module(f"benchmarks.{command}").main
    run(arguments)


if __name__ == "__main__":
    main()
