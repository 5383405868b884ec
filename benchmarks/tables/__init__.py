"""Comparison of errors on a folder of tables: ``python -m benchmarks tables FOLDER``."""

from __future__ import annotations

from benchmarks.command_line import need


def main(arguments: list[str]) -> None:
    """Run the command, if what it imports is installed."""
    for module in ("rich", "polars", "sklearn"):
        need(module, "the benchmark on tables")
    from benchmarks.tables.command import run

    run(arguments)
