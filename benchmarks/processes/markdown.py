"""Markdown of a run, for a README: what was measured, and the projection."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.processes.parts import PARTS
from benchmarks.report import duration, markdown_table


def markdown(content: dict[str, Any]) -> str:
    """Return the tables of a run's results, as they are in its JSON file; "" if there are none."""
    if not content["workloads"]:
        return ""
    parts = [_where(content), _measured(content), _parts(content), _allreduce(content), _projected(content)]
    return "\n\n".join(parts)


def speed(network: dict[str, Any], scaling: str, processes: int, threads: int) -> float:
    """Return the rows a second of a configuration, divided by those of one process with one thread."""
    times = max(processes, threads) if scaling == "weak" else 1
    single = seconds(network, "strong", 1, 1)
    return times * single / seconds(network, scaling, processes, threads)


def seconds(network: dict[str, Any], scaling: str, processes: int, threads: int) -> float:
    """Return the median seconds of a step of a configuration."""
    asked = {"scaling": scaling, "processes": processes, "threads": threads}
    (found,) = (one for one in network["measured"] if asked.items() <= one.items())
    value: float = found["seconds_a_step"]
    return value


def _where(content: dict[str, Any]) -> str:
    numpy, mpi4py = (content["versions"].get(name, "?") for name in ("numpy", "mpi4py"))
    counts = [len(one["all_seconds"]) for network in content["workloads"] for one in network["measured"]]
    repeats = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return (
        f"Medians of {repeats} interleaved repeats on {content['machine']}; BLAS: "
        f"{content['blas']}; {content['mpi']}, mpi4py {mpi4py}, NumPy {numpy}, {content['date'][:10]}."
    )


def _measured(content: dict[str, Any]) -> str:
    blocks = []
    for k in content["processes"]:
        heading = [
            "a step of",
            "1 process, 1 thread",
            f"1 process, {k} threads",
            f"{k} processes, 1 thread each",
            "speed of processes / of threads",
            "efficiency of processes",
            "of threads",
        ]
        lines = []
        for network in content["workloads"]:
            for scaling, what in (("strong", network["title"]), ("weak", f"rows and batch x {k}")):
                pair = [(k, 1), (1, k)]
                processes, threads = (speed(network, scaling, *one) for one in pair)
                lines.append(
                    [
                        f"{network['name']}: {what}" if scaling == "strong" else f"{network['name']}, {what}",
                        duration(seconds(network, "strong", 1, 1)) if scaling == "strong" else "",
                        duration(seconds(network, scaling, 1, k)),
                        duration(seconds(network, scaling, k, 1)),
                        f"{processes / threads:.2f}",
                        f"{processes / k:.2f}",
                        f"{threads / k:.2f}",
                    ]
                )
        blocks.append(markdown_table(heading, lines))
    return "\n\n".join(blocks)


def mean_parts(network: dict[str, Any], processes: int) -> dict[str, float]:
    """Return the seconds of the parts of a step: means over the processes."""
    (ranks,) = (one["ranks"] for one in network["parts"] if one["processes"] == processes)
    return {part: statistics.fmean(rank[part] for rank in ranks) for part in PARTS}


def _parts(content: dict[str, Any]) -> str:
    lines = [
        [f"{network['name']}, {k} processes", *map(duration, mean_parts(network, k).values())]
        for network in content["workloads"]
        for k in content["processes"]
    ]
    return f"Parts of a step, at fixed total work:\n\n{markdown_table(['', *PARTS], lines)}"


def _allreduce(content: dict[str, Any]) -> str:
    measured, link = content["allreduce"], content["links"][0]
    dtypes = list(dict.fromkeys(one["dtype"] for one in measured))
    by_size: dict[int, dict[str, str]] = {}
    for one in measured:
        by_size.setdefault(one["parameters"], {})[one["dtype"]] = duration(one["seconds"])
    lines = [[dtype, *(cells.get(dtype, "") for cells in by_size.values())] for dtype in dtypes]
    off = max(_times_off(one["fitted_seconds"], one["seconds"]) for one in measured)
    words = (
        f"Fitted: {duration(link['latency'])} and {link['bandwidth'] / 1e9:.2g} GB/s ({link['about']}), "
        f"which are off by a factor of up to {off:.1f}."
    )
    table = markdown_table(["", *(f"{n:,}" for n in by_size)], lines)
    return f"Allreduce, by the number of parameters:\n\n{table}\n\n{words}"


def _times_off(one: float, other: float) -> float:
    return max(one / other, other / one)


def _projected(content: dict[str, Any]) -> str:
    shown = [k for k in _projected_counts(content) if k not in content["processes"]]
    lines = []
    for network in content["workloads"]:
        for scaling in dict.fromkeys(one["scaling"] for one in network["projected"]):
            of_links = [
                {step["processes"]: f"{step['speedup']:.3g}" for step in one["steps"]}
                for one in network["projected"]
                if one["scaling"] == scaling
            ]
            cells = (" / ".join(speedups[k] for speedups in of_links) for k in shown)
            lines.append([f"{network['name']}, {_work(scaling)}", *cells])
    first, second = (link["about"] for link in content["links"])
    words = (
        f"**A projection, not a measurement**: how many times the rows a second of one process {shown[0]} to "
        f"{shown[-1]} processes would train, if each had a core as fast as here. {content['arithmetic']}. "
        f"Latency and bandwidth before the stroke: {first}; after it: {second}."
    )
    return f"{words}\n\n{markdown_table(['', *map(str, shown)], lines)}\n\n{_check(content)}"


def _projected_counts(content: dict[str, Any]) -> list[int]:
    return [step["processes"] for step in content["workloads"][0]["projected"][0]["steps"]]


def _check(content: dict[str, Any]) -> str:
    """Return how the arithmetic does where there are measurements."""
    lines = [
        [
            f"{network['name']}, {_work(one['scaling'])}",
            f"{step['processes']}",
            f"{speed(network, one['scaling'], step['processes'], 1):.2f}",
            f"{step['speedup']:.2f}",
        ]
        for network in content["workloads"]
        for one in network["projected"]
        if one["link"] == content["links"][0]["about"]
        for step in one["steps"]
        if step["processes"] in content["processes"]
    ]
    table = markdown_table(["", "processes", "measured", "by the same arithmetic"], lines)
    return f"The same number where it was measured:\n\n{table}"


def _work(scaling: str) -> str:
    return "fixed total work" if scaling == "strong" else "fixed work a process"
