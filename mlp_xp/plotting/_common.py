"""Shared by the pictures: Axes, colours, legends that cover no data, access to models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from mlp_xp._arrays import HostArray, Placement, check_kind, is_non_numpy_array, placement, to_host
from mlp_xp._network import Network
from mlp_xp._parameters import leaves
from mlp_xp._validation import errors_naming, shown

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the Axes given, or those of a new figure."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(layout="constrained")
    if not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be a matplotlib Axes, got {type(ax).__name__}")
    return ax


def pixels_per_point(ax: Axes) -> float:
    """Return the number of pixels in a point, the unit of text, lines and markers."""
    return float(ax.figure.dpi) / 72.0


def darker(colour: str, times: int) -> tuple[float, ...]:
    """Return a colour darkened `times` times, each time to 60 % of its RGB values."""
    return tuple(0.6**times * part for part in to_rgb(colour))


def legend_at_top(ax: Axes, handles: Sequence[Any], **settings: Any) -> float:
    """Put a legend at the top of the Axes, with the largest font and fewest rows that fit; return its height.

    It fits if it is at most as wide as the Axes and a quarter as high. If none fits, the closest is drawn.
    """
    excess: dict[tuple[str, int], float] = {}
    for layout in product(("small", "x-small", "xx-small"), range(1, min(5, len(handles)) + 1)):
        extent = _draw_legend(ax, handles, *layout, settings)
        excess[layout] = max(1.0, extent.width / ax.bbox.width, 4.0 * extent.height / ax.bbox.height)
        if excess[layout] == 1.0:
            break
    else:
        extent = _draw_legend(ax, handles, *min(excess, key=excess.__getitem__), settings)
    return float(extent.height) + 3.0 * pixels_per_point(ax)


def _draw_legend(
    ax: Axes, handles: Sequence[Any], fontsize: str, n_rows: int, settings: Mapping[str, Any]
) -> Any:
    """Draw a legend, replacing the former one; return its extent in pixels."""
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
    """Put a legend at the top of Axes that lie on each other, and extend their y limits by its height."""
    height = legend_at_top(axes[0], handles)
    for ax in axes:  # in the coordinates of its scale, which may be logarithmic
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(np.array(ax.get_ylim()))
        ax.set_ylim(*scale.inverted().transform(padded_limits(low, high, 0.0, height, ax.bbox.height)))


def padded_limits(low: float, high: float, before: float, after: float, pixels: float) -> HostArray:
    """Return axis limits that leave `before` and `after` pixels free outside of [low, high]."""
    scale = (high - low) / max(pixels - before - after, 0.3 * pixels)
    return np.array([low - before * scale, high + after * scale])


def inner_estimator(model: Any) -> Any:
    """Return the estimator at the end of a pipeline, or inside a search or a TransformedTargetRegressor."""
    if hasattr(model, "steps"):
        return inner_estimator(model.steps[-1][1])
    for name in ("best_estimator_", "regressor_"):
        if hasattr(model, name):
            return inner_estimator(getattr(model, name))
    return model


def is_network_pair(model: Any) -> bool:
    """Return whether this is a pair of a Network and its parameters."""
    return isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], Network)


def placement_of(params: Any) -> Placement:
    """Return the namespace, device and dtype of parameters."""
    return placement(params=next(iter(leaves(params)), None))


def checked_on_host(name: str, values: Any) -> HostArray:
    """Return samples or targets as a NumPy array; an error names them if they are no plain array."""
    check_kind(name, values)
    with errors_naming(name):
        host = on_host(values)
        if host.dtype.kind in "mMc":
            raise TypeError(f"it must hold real numbers or names, got dtype {host.dtype}")
        return host


def on_host(array: Any) -> HostArray:
    """Return an array of any library, a list or a DataFrame's column as a NumPy array."""
    return to_host(array) if is_non_numpy_array(array) else np.asarray(array)


def escape_mathtext(text: str) -> str:
    """Return a text with "$" escaped, so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def checked_names(argument: str, names: Any, *n_names: int) -> list[str]:
    """Return names as escaped text, [] for None; raise a ValueError unless their number is one of these."""
    if names is None:
        return []
    with errors_naming(argument):
        each = np.array([names]) if isinstance(names, str) else on_host(names)
        if each.ndim != 1:
            raise TypeError(f"it must be a list of names, got {shown(names)}")
    given = [escape_mathtext(str(name)) for name in each]
    if len(given) not in n_names:
        count = " or ".join(map(str, n_names))
        raise ValueError(f"`{argument}` must have {count} names, got {len(given)}: {shown(given)}")
    return given
