"""Shared by the pictures: Axes, colours, legends that cover no data, access to models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from mlp_xp._arrays import HostArray, Placement, check_kind, is_non_numpy_array, placement, to_host
from mlp_xp._network import Network
from mlp_xp._parameters import leaves
from mlp_xp._validation import errors_naming, shown
from mlp_xp.plotting._texts import fit_legend, fit_text, font_points

MAX_HANDLES_TRIED = 40
"""Maximum number of handles for which legends are tried until one fits, 15 at most that take 20 ms each."""

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

    It fits if it is at most as wide as the Axes and a quarter as high. If none fits, labels are shortened,
    and the last ones left out if there are too many.
    """
    labels = [handle.get_label() for handle in handles]
    layouts = product(("small", "x-small", "xx-small"), range(1, min(5, len(handles)) + 1))
    for fontsize, n_rows in layouts if len(handles) <= MAX_HANDLES_TRIED else ():
        n_columns = math.ceil(len(handles) / n_rows)
        extent = _draw_legend(ax, handles, labels, n_columns, fontsize, settings)
        if extent.width <= ax.bbox.width and 4.0 * extent.height <= ax.bbox.height:
            break
    else:
        width, height = (size / pixels_per_point(ax) for size in (ax.bbox.width, 0.25 * ax.bbox.height))
        names = [label.replace(r"\$", "$") for label in labels]
        labels, n_columns = fit_legend(names, 0.98 * width, height, font_points("x-small"))
        extent = _draw_legend(ax, legend_handles(handles, labels), labels, n_columns, "x-small", settings)
    return float(extent.height) + 3.0 * pixels_per_point(ax)


def legend_handles(handles: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    """Return the handles of a legend by `fit_legend`, whose last label may stand for those left out."""
    if len(labels) == len(handles):
        return list(handles)
    return [*handles[: len(labels) - 1], Line2D([], [], linestyle="")]


def _draw_legend(
    ax: Axes,
    handles: Sequence[Any],
    labels: Sequence[str],
    n_columns: int,
    fontsize: str,
    settings: Mapping[str, Any],
) -> Any:
    """Draw a legend, replacing the former one; return its extent in pixels."""
    legend = ax.legend(
        handles,
        labels,
        loc="upper center",
        ncols=n_columns,
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


def title_figure(figure: Any, title: str) -> None:
    """Write a title above all Axes, in up to two lines, shortened if necessary."""
    size = font_points(rcParams["figure.titlesize"])
    margins = 2.0 * size
    figure.suptitle(fit_text(title, 72.0 * figure.get_figwidth() - margins, size, n_lines=2))


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


def label_axes(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label the axes, in lines that are as long as the axes are now, shortened if necessary."""
    n_lines = 1 if ax.figure.get_layout_engine() is None else 2  # a layout makes room for the second line
    size = font_points(rcParams["axes.labelsize"])
    extent = ax.get_window_extent()
    width, height = (pixels / pixels_per_point(ax) for pixels in (extent.width, extent.height))
    ax.set_xlabel(fit_text(xlabel, width, size, n_lines))
    ax.set_ylabel(fit_text(ylabel, height, size, n_lines))


def checked_names(argument: str, names: Any, *n_names: int) -> list[str]:
    """Return names as text, [] for None; raise a ValueError unless their number is one of these."""
    if names is None:
        return []
    with errors_naming(argument):
        each = np.array([names]) if isinstance(names, str) else on_host(names)
        if each.ndim != 1:
            raise TypeError(f"it must be a list of names, got {shown(names)}")
    given = [str(name) for name in each]
    if len(given) not in n_names:
        count = " or ".join(map(str, n_names))
        raise ValueError(f"`{argument}` must have {count} names, got {len(given)}: {shown(given)}")
    return given
