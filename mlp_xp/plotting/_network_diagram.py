"""Network diagrams: units, weights and biases of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from mlp_xp._activations import Activation
from mlp_xp._arrays import HostArray
from mlp_xp._losses import LOSS_BY_OUT_ACTIVATION
from mlp_xp.plotting._common import (
    COLOURS,
    axes_or_new,
    checked_names,
    inner_estimator,
    is_network_pair,
    legend_at_top,
    on_host,
    padded_limits,
    pixels_per_point,
    placement_of,
)
from mlp_xp.plotting._texts import fit_names, font_points

POSITIVE, NEGATIVE = COLOURS[0], COLOURS[3]

MAX_UNITS_DRAWN = 12
"""Maximum number of units of a layer that are all drawn; of a wider layer, only its ends are."""
END_UNITS_DRAWN = 5
"""Number of units drawn at either end of a layer that is too wide."""

MAX_NAME_WIDTH = 0.3
"""Maximum width of the names of inputs and of outputs, as a part of the Axes'."""


def plot_network(
    model: Any,
    *,
    ax: Axes | None = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Axes:
    """Draw the layers of a network, with its weights as lines between the units.

    Parameters
    ----------
    model : fitted estimator, or (network, params)
        An MLPClassifier or MLPRegressor, also at the end of a pipeline or inside a search or a
        TransformedTargetRegressor; or a `Network` and its parameters.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default. Its axis lines are switched off.
    feature_names : sequence of str, optional
        Names of the inputs; by default those that the estimator was fitted with.
    class_names : sequence of str, optional
        Names of the outputs; by default the estimator's classes. A single output of a classifier is the
        second class.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError
        If `model` is neither such an estimator nor such a pair.
    ValueError
        If the names do not fit.

    Notes
    -----
    A line is as wide as its weight is large, solid if it is above 0 and dashed if below. The rim of a
    unit shows its bias in the same way. Of a layer with more than 12 units the first and the last 5 are
    drawn, and weights of the others do not count for the scale. Names longer than 0.3 of the Axes are
    shortened.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Network
    >>> from mlp_xp.plotting import plot_network
    >>> network = Network((2, 3, 1), activation="tanh", loss="binary_cross_entropy")
    >>> params = network.init(seed=0, like=np.ones((1, 2)))
    >>> ax = plot_network((network, params), feature_names=["x", "y"])
    >>> ax.texts[1].get_text().split()
    ['tanh', '3', 'units']
    """
    view = _network_view(model)
    sizes = [len(view.weights[0]), *map(len, view.biases)]
    inputs = view.inputs if feature_names is None else feature_names
    inputs = checked_names("feature_names", inputs, sizes[0])
    outputs = view.outputs if class_names is None else class_names
    # Of two classes one output is the probability of the second.
    n_names = (1, 2) if sizes[-1] == 1 else (sizes[-1],)
    outputs = checked_names("class_names", outputs, *n_names)[-sizes[-1] :]
    ax = axes_or_new(ax)
    ax.set_axis_off()
    layers = [_layout(size) for size in sizes]
    values = [np.zeros(len(layers[0].indices))]
    for source, layer, weight, bias in zip(layers, layers[1:], view.weights, view.biases):
        values += [weight[np.ix_(source.indices, layer.indices)], bias[layer.indices]]
    pixel = pixels_per_point(ax)
    tallest = max(0.5, *(layer.heights[0] for layer in layers))
    room = ax.bbox.height / pixel - 60.0  # beside the legend and the captions
    diameter = float(np.clip(0.6 * room / (2.0 * tallest + 1.0), 3.0, 20.0))
    style = _LineStyle(max(float(np.abs(each).max()) for each in values) or 1.0, min(4.0, 0.3 * diameter))
    captions = _write_captions(ax, layers, -tallest, diameter, view.activations)
    legend = legend_at_top(ax, style.samples(), title="weight (line) or bias (rim)")
    rim = diameter * pixel
    ax.set_ylim(*padded_limits(-tallest, tallest, captions, legend + rim, ax.bbox.height))
    before = _write_names(ax, 0, layers[0], inputs, -diameter)
    after = _write_names(ax, len(layers) - 1, layers[-1], outputs, diameter)
    ax.set_xlim(*padded_limits(0.0, len(layers) - 1.0, before + rim, after + rim, ax.bbox.width))
    for index, layer in enumerate(layers):
        if index:
            _draw_weights(ax, index, layers[index - 1], layer, values[2 * index - 1], style)
        _draw_units(ax, index, layer, values[2 * index], diameter, style)
    return ax


class _NetworkView(NamedTuple):
    """The parts of a network that are drawn, as NumPy arrays."""

    weights: list[HostArray]
    biases: list[HostArray]
    activations: list[str]
    inputs: Any = None
    outputs: Any = None


def _network_view(model: Any) -> _NetworkView:
    """Return the parts to draw of an estimator, or of a network and its parameters."""
    if is_network_pair(model):
        network, params = model
        sample = np.zeros((1, network.layer_sizes[0]))
        network.predict(params, placement_of(params).from_host(sample))  # raises if params do not fit
        weights, biases = zip(*params)
        names = {loss: output for output, loss in LOSS_BY_OUT_ACTIVATION.items()}
        hidden, output = network.activation, names.get(network.loss, "output")
        inputs = outputs = None
    else:
        inner = inner_estimator(model)
        if not hasattr(inner, "coefs_"):
            raise TypeError(
                "`model` must be a fitted MLPClassifier or MLPRegressor, or a pair (network, params), "
                f"got {type(inner).__name__}"
            )
        weights, biases, hidden, output = (
            inner.coefs_,
            inner.intercepts_,
            inner.activation,
            inner.out_activation_,
        )
        inputs, outputs = getattr(inner, "feature_names_in_", None), getattr(inner, "classes_", None)
    n_hidden = len(weights) - 1
    each = [hidden] * n_hidden if isinstance(hidden, (str, Activation)) else hidden
    activations = [*map(_activation_name, each), output]
    return _NetworkView(
        [on_host(weight) for weight in weights],
        [on_host(bias) for bias in biases],
        activations,
        inputs,
        outputs,
    )


def _activation_name(activation: str | Activation) -> str:
    """Return an activation's name; for a custom one, the name of its forward function."""
    if isinstance(activation, str):
        return activation
    function = getattr(activation.forward, "func", activation.forward)
    return getattr(function, "__name__", "activation").strip("_").removesuffix("_forward")


class _Layer(NamedTuple):
    """A layer's number of units, the indices of those drawn, and their y coordinates."""

    size: int
    indices: HostArray
    heights: HostArray


def _layout(size: int) -> _Layer:
    """Return the layout of a layer's units, centred at 0, the first ones at the top."""
    if size <= MAX_UNITS_DRAWN:
        return _Layer(size, np.arange(size), 0.5 * (size - 1) - np.arange(size))
    ends = np.concatenate([np.arange(END_UNITS_DRAWN), np.arange(-END_UNITS_DRAWN, 0)])
    return _Layer(size, ends % size, np.where(ends < 0, -END_UNITS_DRAWN - 1 - ends, END_UNITS_DRAWN - ends))


class _LineStyle(NamedTuple):
    """Line style of weights and biases: as wide as they are large, solid if positive, dashed if negative."""

    largest: float
    widest: float

    def width(self, value: float) -> float:
        """Return the width in points."""
        return self.widest * abs(value) / self.largest

    def properties(self, values: HostArray) -> dict[str, Any]:
        """Return the properties of a collection of lines."""
        widths = [self.width(value) for value in values]
        return {
            "linewidths": widths,
            "edgecolors": [POSITIVE if value >= 0.0 else NEGATIVE for value in values],
            # matplotlib scales dashes by the width; dividing by it makes them equally long on all lines.
            "linestyles": [
                "-" if value >= 0.0 else (0, (4.0 / max(width, 0.2), 2.5 / max(width, 0.2)))
                for value, width in zip(values, widths)
            ],
        }

    def samples(self) -> list[Line2D]:
        """Return sample lines for the legend."""
        largest = float(f"{self.largest:.2g}")
        values = np.array([largest, 0.25 * largest, -0.25 * largest, -largest])
        styles = zip(*self.properties(values).values())
        return [
            Line2D([], [], linewidth=width, color=colour, linestyle=line, label=_format_signed(value))
            for value, (width, colour, line) in zip(values, styles)
        ]


def _format_signed(value: float) -> str:
    """Format a number with its sign, also if it is positive."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def _draw_weights(
    ax: Axes, index: int, source: _Layer, layer: _Layer, weights: HostArray, style: _LineStyle
) -> None:
    """Draw the weights into a layer as lines, the largest last, so that they are on top."""
    rows, columns = np.unravel_index(np.argsort(np.abs(weights), axis=None), weights.shape)
    starts = np.column_stack([np.full(len(rows), index - 1.0), source.heights[rows]])
    ends = np.column_stack([np.full(len(rows), float(index)), layer.heights[columns]])
    segments = list(np.stack([starts, ends], axis=1))
    lines = LineCollection(segments, zorder=1, **style.properties(weights[rows, columns]))
    ax.add_collection(lines, autolim=False)


def _draw_units(
    ax: Axes, index: int, layer: _Layer, biases: HostArray, diameter: float, style: _LineStyle
) -> None:
    """Draw the units of a layer, each with its bias as its rim, and an ellipsis for units left out."""
    centres = np.full(len(layer.heights), index), layer.heights
    plain: dict[str, Any] = {"facecolors": [ax.get_facecolor()], "edgecolors": "0.5", "linewidths": 0.6}
    ax.scatter(*centres, s=diameter**2, zorder=2, **plain)
    ax.scatter(*centres, s=diameter**2, zorder=3, facecolors="none", **style.properties(biases))
    if len(layer.indices) < layer.size:
        ax.text(index, 0.0, "\N{VERTICAL ELLIPSIS}", ha="center", va="center", fontsize=max(8.0, diameter))


def _write_captions(
    ax: Axes, layers: Sequence[_Layer], bottom: float, diameter: float, activations: Sequence[str]
) -> float:
    """Write activation and size under each layer; return the height of the text in pixels."""
    n_layers, texts = len(layers), []
    for index, (layer, activation) in enumerate(zip(layers, ["", *activations])):
        unit = "input" if index == 0 else "output" if index == n_layers - 1 else "unit"
        text = f"{activation}\n{layer.size} {unit}{'s' if layer.size > 1 else ''}"
        offset: dict[str, Any] = {"xytext": (0.0, -diameter), "textcoords": "offset points"}
        texts.append(
            ax.annotate(
                text,
                (index, bottom),
                ha="center",
                va="top",
                fontsize="small",
                annotation_clip=False,
                **offset,
            )
        )
    height = max(text.get_window_extent().height for text in texts)
    return height + 1.5 * diameter * pixels_per_point(ax)


def _write_names(ax: Axes, index: int, layer: _Layer, names: Sequence[str], distance: float) -> float:
    """Write names beside the units of a layer, shortened; return the width of the longest in pixels."""
    widths = [0.0]
    room = MAX_NAME_WIDTH * ax.bbox.width / pixels_per_point(ax)
    names = fit_names([names[unit] for unit in layer.indices] if names else [], room, font_points("small"))
    offset: dict[str, Any] = {"xytext": (distance, 0.0), "textcoords": "offset points", "va": "center"}
    side = "right" if distance < 0.0 else "left"
    for name, height in zip(names, layer.heights):
        text = ax.annotate(name, (index, height), ha=side, fontsize="small", annotation_clip=False, **offset)
        widths.append(text.get_window_extent().width)
    return max(widths)
