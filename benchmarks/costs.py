"""Overheads: of training, import, layouts of X, streaming, checkpoints: ``python -m benchmarks costs``."""

from __future__ import annotations

from typing import Any

from benchmarks import checkpoints, import_time, layouts, loop_cost, streaming
from benchmarks.command_line import Parser, add_output_options, folder, need, slug, whole_number, write_json
from benchmarks.machine import describe, gpu

BENCHMARKS = {
    "loop-cost": loop_cost.measure,
    "import-time": import_time.measure,
    "layouts": layouts.measure,
    "streaming": streaming.measure,
    "checkpoints": checkpoints.measure,
}


def main(arguments: list[str]) -> None:
    """Measure, print and optionally write the overheads that the options name."""
    parser = Parser(
        prog="python -m benchmarks costs",
        description="Compare the training loop with bare array calls, the import with NumPy's, layouts of X, "
        "samples streamed from the host with samples on the device, trainings that write checkpoints with "
        "others.",
    )
    parser.add_argument("--only", choices=list(BENCHMARKS), nargs="+", default=list(BENCHMARKS))
    parser.add_argument("--repeats", type=whole_number(1), default=41, help="interleaved repeats (41)")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    need("rich", "the benchmark")
    path = folder(parser, options)
    results = [BENCHMARKS[name](options.repeats) for name in options.only]
    _print(results)
    if path is not None:
        found = gpu()
        about = describe(
            gpu=found and found.name,
            cuda=found and found._asdict(),
            repeats=options.repeats,
            only=options.only,
        )
        on = f"-{slug(found.name)}" if found else ""
        write_json(path / f"{about['date'][:10]}-costs{on}.json", {**about, "results": results})


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "median", "", "result", "", "target", title="interleaved; medians")
    for result in results:
        title = result["name"]
        for name, median in result["medians"].items():
            ratio = f"{result['ratios'][name]:.2f}" if "ratios" in result else ""
            table.add_row(title, f"{median:.1f}", f"{result['unit']}: {name}", ratio)
            title = ""
        table.add_row("", "", "", f"{result['result']:.3g}", result["result_is"], f"<= {result['target']:g}")
        table.add_section()
    Console().print(table)
