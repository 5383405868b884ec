"""Decision boundaries: the predictions of a model with two features around its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.ticker import MaxNLocator

from mlp_xp._arrays import HostArray, is_non_numpy_array, placement
from mlp_xp._network import Network
from mlp_xp._validation import check_bool, check_integer
from mlp_xp.plotting._common import (
    COLOURS,
    add_legend,
    axes_or_new,
    checked_names,
    checked_on_host,
    darker,
    is_network_pair,
    label_axes,
    on_host,
    pixels_per_point,
    placement_of,
)
from mlp_xp.plotting._texts import fit_names, font_points

CLASS_COLOURS = (COLOURS[1], COLOURS[0], *COLOURS[2:])
MARKERS = "os^DvPX<p*>"

MAX_GRID_RESOLUTION = 5_000
"""More points are finer than any picture, and take too much memory."""


def plot_decision_boundary(
    model: Any,
    X: Any,
    y: Any = None,
    *,
    ax: Axes | None = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    grid_resolution: int = 200,
    legend: bool = True,
) -> Axes:
    """Draw the predictions of a model with two features on a grid around the samples, and the samples.

    Parameters
    ----------
    model : fitted estimator, or (network, params)
        A classifier or a regressor of one value, of this library or with scikit-learn's interface; or a
        `Network` and its parameters. Only its predictions are used.
    X : array or DataFrame of shape (n_samples, 2)
        In any library, on any device. The model gets the points of the grid as such a container, or as arrays
        on the device of its weights.
    y : array of shape (n_samples,) or (n_samples, n_outputs), optional
        Labels or values of the samples, as in fitting; for classes also one-hot rows. Without it the samples
        are not drawn.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    feature_names : sequence of two str, optional
        By default the names of a DataFrame's columns, or those that the model was fitted with.
    class_names : sequence of str, optional
        Names in the order of the model's classes; by default the class labels.
    grid_resolution : int, default=200
        Number of grid points along each axis.
    legend : bool, default=True
        Whether to add a legend of the classes above the samples, or a colour bar for a regressor.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError
        If `model` is neither an estimator nor such a pair.
    ValueError
        If X does not have two features, the model predicts several labels or values for a sample, or y or the
        names do not fit.

    Notes
    -----
    A region has the colour of its class, deeper where the class is more probable; lines are drawn where the
    predicted class changes. If a model has no probabilities, or its predictions do not follow them (as with a
    tuned threshold), each region has one shade. Names that are longer than their place are wrapped or
    shortened; a legend of more classes than fit tells how many it leaves out.

    scikit-learn's DecisionBoundaryDisplay leaves white gaps between several classes, and no line between
    two.

    Examples
    --------
    >>> from mlp_xp import MLPClassifier
    >>> from mlp_xp.datasets import planar
    >>> from mlp_xp.plotting import plot_decision_boundary
    >>> data = planar()
    >>> model = MLPClassifier((8,), "tanh", solver="lbfgs", tol=0.01, random_state=0).fit(data.X, data.y)
    >>> ax = plot_decision_boundary(
    ...     model, data.X, data.y, feature_names=data.feature_names, class_names=data.class_names)
    >>> ax.get_xlabel(), [text.get_text() for text in ax.get_legend().texts]
    ('x', ['A', 'B'])
    """
    check_bool("legend", legend)
    samples = _numbers("X", X)
    if samples.ndim != 2 or samples.shape[1] != 2:
        raise ValueError(f"`X` must have two features, shape (n_samples, 2), got {samples.shape}")
    resolution = check_integer("grid_resolution", grid_resolution, minimum=2)
    if resolution > MAX_GRID_RESOLUTION:
        raise ValueError(f"`grid_resolution` must be <= {MAX_GRID_RESOLUTION}, got {resolution}")
    grid = _grid(samples, resolution)
    values, classes = _predict_points(model, X, grid.reshape(-1, 2))
    targets = None if y is None else _targets(y, len(samples), classes)
    given = [feature_names, getattr(X, "columns", None), getattr(model, "feature_names_in_", None)]
    labels = checked_names("feature_names", next((names for names in given if names is not None), None), 2)
    values = values.reshape(*grid.shape[:2], *values.shape[1:])
    if classes is None:
        ax = axes_or_new(ax)
        _draw_values(ax, grid, values, samples, targets, legend)
    else:
        names = checked_names("class_names", classes if class_names is None else class_names, len(classes))
        names = fit_names(names, math.inf, font_points("medium"))
        codes = np.full(len(samples), -1) if targets is None else targets
        ax = axes_or_new(ax)
        _draw_regions(ax, grid, values)
        handles = [
            _draw_points(
                ax,
                samples[codes == code],
                len(samples),
                color=_colour(code),
                label=name,
                marker=MARKERS[code % len(MARKERS)],
            )
            for code, name in enumerate(names)
        ]
    ax.set_xlim(grid[0, 0, 0], grid[0, -1, 0])
    ax.set_ylim(grid[0, 0, 1], grid[-1, 0, 1])
    if classes is not None and legend:
        add_legend(handles, ax)
    if labels:
        label_axes(ax, *labels)
    return ax


def _numbers(name: str, values: Any) -> HostArray:
    """Return an array or a table of any library as numbers on the host."""
    host = checked_on_host(name, values)
    try:
        return host.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"`{name}` must hold numbers ({error})") from None


def _grid(samples: HostArray, resolution: int) -> HostArray:
    """Return a grid of points around the samples, of shape (resolution, resolution, 2), lowest row first."""
    axes = []
    for column in samples.T:
        column = column[np.isfinite(column)]
        if not column.size:
            raise ValueError("`X` must have finite values in each column, got none")
        low, high = column.min(), column.max()
        margin = 0.1 * (high - low) or 1.0
        axes.append(np.linspace(low - margin, high + margin, resolution))
    return np.stack(np.meshgrid(*axes), axis=-1)


def _predict_points(model: Any, X: Any, coordinates: HostArray) -> tuple[HostArray, HostArray | None]:
    """Return each point's class probabilities, and the classes; or each point's value, and None."""
    if is_network_pair(model):
        return _predict_by_network(model[0], model[1], coordinates)
    if not hasattr(model, "predict") or isinstance(model, type):
        raise TypeError(
            f"`model` must be a fitted estimator or a pair (network, params), got {type(model).__name__}"
        )
    from sklearn.base import is_regressor

    points = _as_model_input(getattr(model, "coefs_", [X])[0], X, coordinates)
    predicted = _as_1d(on_host(model.predict(points)))
    classes = getattr(model, "classes_", None)
    if classes is None and is_regressor(model):
        return predicted, None
    classes = np.unique(predicted) if classes is None else on_host(classes)
    chosen = predicted[:, None] == classes
    if hasattr(model, "predict_proba"):
        probabilities = on_host(model.predict_proba(points))
        if probabilities.shape == chosen.shape:
            of_chosen = np.where(chosen, probabilities, 0.0).max(axis=1)
            # Predictions follow the probabilities, up to rounding in float32.
            if np.all(of_chosen >= probabilities.max(axis=1) - 1e-6):
                return probabilities, classes
    return chosen.astype(np.float64), classes


def _predict_by_network(
    network: Network, params: Any, coordinates: HostArray
) -> tuple[HostArray, HostArray | None]:
    """Return the same as `_predict_points`, for a network and its parameters."""
    outputs: HostArray = on_host(network.predict(params, placement_of(params).from_host(coordinates)))
    n_outputs, decide = outputs.shape[1], network._resolved_loss.decide
    if decide is None:
        return _as_1d(outputs), None
    if n_outputs == 1:
        return np.hstack([1.0 - outputs, outputs]), np.arange(2)
    if np.sum(decide(np, np.ones((1, n_outputs)))) > 1:  # a multilabel network, which `_as_1d` refuses
        _as_1d(outputs)
    return outputs, np.arange(n_outputs)


def _as_1d(predictions: HostArray) -> HostArray:
    """Return predictions as a 1-D array; raise a ValueError if there are several for each sample."""
    if predictions.ndim == 2 and predictions.shape[1] == 1:
        return predictions[:, 0]
    if predictions.ndim != 1:
        raise ValueError(
            f"`model` must predict one label or value for each sample, got {predictions.shape[1]}"
        )
    return predictions


def _as_model_input(weights: Any, X: Any, coordinates: HostArray) -> Any:
    """Return points as the model takes them: on the device of its weights, or in the container of X."""
    if is_non_numpy_array(weights):
        return placement(X=weights).from_host(coordinates)
    return type(X)(dict(zip(X.columns, coordinates.T))) if hasattr(X, "columns") else coordinates


def _targets(y: Any, n_samples: int, classes: HostArray | None) -> HostArray:
    """Return the index of each sample's class, or its value."""
    host = checked_on_host("y", y)
    if host.ndim == 2 and host.shape[1] == 1:
        host = host[:, 0]
    if classes is not None and host.shape == (n_samples, len(classes)):
        host = classes[np.argmax(host, axis=1)]
    if host.shape != (n_samples,):
        raise ValueError(f"`y` must have shape (n_samples,) = {(n_samples,)}, got {host.shape}")
    if classes is None:
        return _numbers("y", host)
    matches = host[:, None] == classes
    known = matches.any(axis=1)
    if not known.all():
        raise ValueError(
            f"`y` must hold classes of the model, {classes.tolist()}, got {host[~known].tolist()[0]!r}"
        )
    codes: HostArray = np.argmax(matches, axis=1)
    return codes


def _draw_regions(ax: Axes, grid: HostArray, probabilities: HostArray) -> None:
    """Fill the region of each class with its colour, and draw the lines between the regions."""
    n_classes = probabilities.shape[-1]
    chance = 1.0 / n_classes
    certainty = (probabilities.max(axis=-1) - chance) / max(1.0 - chance, chance)
    colours = np.array([to_rgb(_colour(code)) for code in range(n_classes)])
    depth = (0.15 + 0.4 * certainty)[..., None]
    image = 1.0 - depth * (1.0 - colours[np.argmax(probabilities, axis=-1)])
    low, high = grid[0, 0], grid[-1, -1]
    half = 0.5 * (high - low) / (len(grid) - 1)  # grid points are the centres of pixels
    (left, bottom), (right, top) = low - half, high + half
    ax.imshow(
        image,
        extent=(left, right, bottom, top),
        origin="lower",
        aspect=ax.get_aspect(),
        interpolation="bilinear",
    )
    # Contours interpolate linearly, which fits logarithms better than steep probabilities.
    scores = np.log(np.maximum(probabilities, 1e-12))
    for code in range(n_classes - 1):  # the boundary of the last class is part of the others' boundaries
        lead = scores[..., code] - np.delete(scores, code, axis=-1).max(axis=-1)
        if lead.min() < 0.0 < lead.max():
            ax.contour(grid[..., 0], grid[..., 1], lead, levels=[0.0], colors="black", linewidths=1.3)


def _draw_values(
    ax: Axes, grid: HostArray, values: HostArray, samples: HostArray, targets: HostArray | None, bar: bool
) -> None:
    """Fill the Axes with the colours of the predictions, and draw the samples in those of their targets."""
    shown = np.concatenate([values.ravel(), [] if targets is None else targets])
    shown = shown[np.isfinite(shown)]
    # One scale for predictions and samples, so that a sample's colour can be compared with its surroundings.
    levels = MaxNLocator(14).tick_values(shown.min(), shown.max())
    style: dict[str, Any] = {"cmap": "cividis", "norm": Normalize(levels[0], levels[-1])}
    surface = ax.contourf(grid[..., 0], grid[..., 1], values, levels=levels, **style)
    if targets is not None:
        _draw_points(ax, samples, len(samples), c=targets, **style)
    if bar:
        ax.figure.colorbar(surface, ax=ax, label="predicted value")


def _draw_points(ax: Axes, coordinates: HostArray, n_points: int, **style: Any) -> Any:
    """Draw points, smaller the more there are, so that they cover about a tenth of the Axes."""
    area = ax.bbox.width * ax.bbox.height / pixels_per_point(ax) ** 2
    size = float(np.clip(0.1 * area / n_points, 4.0, 36.0))
    x, y = coordinates.T
    return ax.scatter(
        x,
        y,
        s=size,
        edgecolors="black",
        linewidths=0.1 * math.sqrt(size),
        zorder=3,
        **style,
    )


def _colour(code: int) -> tuple[float, ...]:
    """Return the colour of a class; after the last colour the palette starts again, darker."""
    return darker(CLASS_COLOURS[code % len(COLOURS)], code // len(COLOURS))
