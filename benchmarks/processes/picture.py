"""Picture of a run: speeds that were measured, parts of a step, Allreduce, and the projection."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.processes.markdown import mean_parts, speed
from benchmarks.processes.parts import PARTS

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the results of a run to a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 12.5), layout="constrained")
    panels = figure.subplots(3, 2)
    _draw_speeds(panels[0, 0], content)
    _draw_parts(panels[0, 1], content)
    _draw_allreduce(panels[1, 0], content)
    panels[1, 1].set_axis_off()
    panels[1, 1].text(0.0, 0.5, _explanation(content), va="center", fontsize=9)
    for panel, scaling, title in zip(
        panels[2], ("strong", "weak"), ("at fixed total work", "at fixed work a process")
    ):
        _draw_projection(panel, content, scaling)
        panel.set_title(f"PROJECTION, {title}: times the rows a second of one process", fontsize=10)
    for panel in (*panels[0], panels[1, 0], *panels[2]):
        panel.grid(color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Processes that train together: {content['machine']}, {content['mpi']}, {content['date'][:10]}",
        fontsize=12,
    )
    figure.savefig(path, dpi=110)


def _explanation(content: dict[str, Any]) -> str:
    links = "\n".join(
        f"{style}: {link['about']}: {link['latency'] * 1e6:.3g} µs, {link['bandwidth'] / 1e9:.2g} GB/s"
        for style, link in zip(("solid", "dashed"), content["links"])
    )
    arithmetic = "\n".join(textwrap.fill(part, 90) for part in content["arithmetic"].split("; "))
    return f"Projection below:\n{arithmetic}\n\nLinks:\n{links}\ngrey: as many times as processes"


def _draw_speeds(panel: Any, content: dict[str, Any]) -> None:
    """Draw a bar for each network, way to scale and configuration."""
    k = content["processes"][-1]
    labels, places = [], []
    for place, (network, scaling) in enumerate(
        (network, scaling) for network in content["workloads"] for scaling in ("strong", "weak")
    ):
        for offset, pair, colour in ((-0.2, (1, k), COLOURS[1]), (0.2, (k, 1), COLOURS[0])):
            panel.bar(place + offset, speed(network, scaling, *pair), width=0.38, color=colour)
        labels.append(f"{network['name']}\n{'total' if scaling == 'strong' else 'a process'}")
        places.append(place)
    panel.axhline(k, color="0.5", linewidth=0.8)
    panel.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":")
    panel.set_xticks(places, labels, fontsize=8)
    panel.set_title(
        f"Measured: times the rows a second of one thread, fixed work in total or a process\n"
        f"(orange: 1 process of {k} threads; blue: {k} processes)",
        fontsize=10,
    )


def _draw_parts(panel: Any, content: dict[str, Any]) -> None:
    """Draw the shares of the parts of a step."""
    k = content["processes"][-1]
    for place, network in enumerate(content["workloads"]):
        parts = mean_parts(network, k)
        left, total = 0.0, sum(parts.values())
        for part, colour in zip(PARTS, COLOURS):
            width = max(0.0, parts[part]) / total
            panel.barh(place, width, left=left, color=colour, label=part if not place else None)
            left += width
    panel.set_yticks(range(len(content["workloads"])), [one["name"] for one in content["workloads"]])
    panel.invert_yaxis()
    panel.set_title(f"Measured: parts of a step of {k} processes", fontsize=10)
    panel.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.06))


def _draw_allreduce(panel: Any, content: dict[str, Any]) -> None:
    for dtype, colour in (("float32", COLOURS[0]), ("float64", COLOURS[1])):
        points = [one for one in content["allreduce"] if one["dtype"] == dtype]
        sizes = [one["parameters"] for one in points]
        panel.plot(sizes, [one["seconds"] for one in points], "o", color=colour, label=dtype)
        panel.plot(sizes, [one["fitted_seconds"] for one in points], color=colour, linewidth=1.0)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("parameters")
    panel.set_ylabel("seconds")
    panel.legend(frameon=False)
    panel.set_title("Measured: Allreduce (lines: latency + bytes/bandwidth, fitted)", fontsize=10)


def _draw_projection(panel: Any, content: dict[str, Any], scaling: str) -> None:
    links = [link["about"] for link in content["links"]]
    counts = [step["processes"] for step in content["workloads"][0]["projected"][0]["steps"]]
    for network, colour in zip(content["workloads"], COLOURS):
        for one in network["projected"]:
            if one["scaling"] == scaling:
                speedups = [step["speedup"] for step in one["steps"]]
                is_measured = one["link"] == links[0]
                label = network["name"] if is_measured else None
                panel.plot(
                    counts, speedups, color=colour, linestyle="-" if is_measured else "--", label=label
                )
        for k in content["processes"]:
            panel.plot([k], [speed(network, scaling, k, 1)], "o", color=colour)
    panel.plot(counts, counts, color="0.6", linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xticks(counts)
    panel.set_xlabel("processes (dots: measured)")
    panel.legend(frameon=False, fontsize=8)
