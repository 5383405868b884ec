"""Speed of several processes that train together: ``python -m benchmarks processes``."""

from __future__ import annotations

from benchmarks.command_line import need


def main(arguments: list[str]) -> None:
    """Run the command, if what it imports is installed."""
    for module in ("rich", "mpi4py"):
        need(module, "the benchmark of processes")
    from benchmarks.processes.command import run

    run(arguments)
