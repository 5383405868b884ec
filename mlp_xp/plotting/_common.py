"""What the pictures have in common: Axes, colours, legends that cover nothing, and looks into models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from mlp_xp._arrays import HostArray, Placement, is_non_numpy_array, placement, to_host
from mlp_xp._network import Network
from mlp_xp._parameters import leaves

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")


def axes_of(ax: Axes | None) -> Axes:
    """Return the Axes given, or those of a new figure."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(layout="constrained")
    if not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be a matplotlib Axes, got {type(ax).__name__}")
    return ax


def pixels_per_point(ax: Axes) -> float:
    """Return how many pixels are a point, the unit of text, lines and markers."""
    return float(ax.figure.dpi) / 72.0


def darker(colour: str, times: int) -> tuple[float, ...]:
    """Return a colour made darker so many times."""
    return tuple(0.6**times * part for part in to_rgb(colour))


def legend_at_top(ax: Axes, handles: Sequence[Any], **settings: Any) -> float:
    """Put a legend at the top, in as few rows and as large as there is room for; return its height."""
    misfits: dict[tuple[str, int], float] = {}
    for shape in product(("small", "x-small", "xx-small"), range(1, min(5, len(handles)) + 1)):
        extent = _draw_legend(ax, handles, *shape, settings)
        misfits[shape] = max(1.0, extent.width / ax.bbox.width, 4.0 * extent.height / ax.bbox.height)
        if misfits[shape] == 1.0:
            break
    else:
        extent = _draw_legend(ax, handles, *min(misfits, key=misfits.__getitem__), settings)
    return float(extent.height) + 3.0 * pixels_per_point(ax)


def _draw_legend(
    ax: Axes, handles: Sequence[Any], fontsize: str, n_rows: int, settings: Mapping[str, Any]
) -> Any:
    """Draw a legend in place of the last one; return where it is."""
    legend = ax.legend(
        handles=handles,
        loc="upper center",
        ncols=math.ceil(len(handles) / n_rows),
        fontsize=fontsize,
        title_fontsize=fontsize,
        facecolor=ax.get_facecolor(),
        edgecolor="none",
        framealpha=1.0,
        borderaxespad=0.1,
        columnspacing=1.2,
        **settings,
    )
    return legend.get_window_extent()


def add_legend(handles: Sequence[Any], *axes: Axes) -> None:
    """Put a legend at the top of Axes that share their place, where nothing is drawn any more."""
    height = legend_at_top(axes[0], handles)
    for ax in axes:
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(np.array(ax.get_ylim()))
        ax.set_ylim(*scale.inverted().transform(limits(low, high, 0.0, height, ax.bbox.height)))


def limits(low: float, high: float, before: float, after: float, pixels: float) -> HostArray:
    """Return limits for an axis that leave so many pixels free on either side of what is to be seen."""
    scale = (high - low) / max(pixels - before - after, 0.3 * pixels)
    return np.array([low - before * scale, high + after * scale])


def innermost(model: Any) -> Any:
    """Return the estimator that does the work: the end of a pipeline, or what a search has found."""
    if hasattr(model, "steps"):
        return innermost(model.steps[-1][1])
    for name in ("best_estimator_", "regressor_"):
        if hasattr(model, name):
            return innermost(getattr(model, name))
    return model


def is_pair(model: Any) -> bool:
    """Whether this is a network with its parameters."""
    return isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], Network)


def place_of(params: Any) -> Placement:
    """Return where parameters live."""
    return placement(params=next(iter(leaves(params)), None))


def on_host(array: Any) -> HostArray:
    """Return an array of any library, a list or a column of a table as a NumPy array."""
    return to_host(array) if is_non_numpy_array(array) else np.asarray(array)


def literal(text: str) -> str:
    """Return a text in which matplotlib finds no mathematics."""
    return text.replace("$", r"\$")


def checked_names(argument: str, names: Any, n_names: int) -> list[str]:
    """Return names as text, after a look at how many there are; none for None."""
    if names is None:
        return []
    given = [names] if isinstance(names, str) else [literal(str(name)) for name in on_host(names)]
    if len(given) != n_names:
        raise ValueError(f"`{argument}` must have {n_names} names, got {len(given)}: {given}")
    return given
