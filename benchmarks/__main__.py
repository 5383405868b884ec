"""Run the benchmarks, print a table and keep the figures: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import import_time, loop_cost

BENCHMARKS = {"loop-cost": loop_cost.measure, "import-time": import_time.measure}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what mlp_xp costs.")
    parser.add_argument("--only", choices=list(BENCHMARKS), nargs="+", default=list(BENCHMARKS))
    parser.add_argument(
        "--repeats", type=int, default=41, help="interleaved repeats; medians are printed (41)"
    )
    parser.add_argument("--save", action="store_true", help=f"write a JSON file to {RESULTS.name}/")
    options = parser.parse_args()
    results = [BENCHMARKS[name](options.repeats) for name in options.only]
    _print(results)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        about = _about(options.repeats)
        path = RESULTS / f"{about['date'][:10]}-costs.json"
        path.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
        print(f"written: {path}")


def _about(repeats: int) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mlp_xp", "numpy", "array-api-compat")},
        "repeats": repeats,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "median", "", "result", "", "target", title="interleaved; medians")
    for result in results:
        for name, median in result["medians"].items():
            table.add_row(result["name"], f"{median:.1f}", f"{result['unit']}: {name}")
        table.add_row("", "", "", f"{result['result']:.3g}", result["result_is"], f"<= {result['target']:g}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
