"""Learning curves: losses and scores by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mlp_xp._arrays import HostArray
from mlp_xp._validation import check_integer
from mlp_xp.plotting._common import COLOURS, add_legend, axes_or_new, darker, inner_estimator

MAX_PLOTTED_VALUE = 1e200
"""Maximum value that is drawn: matplotlib's axes overflow near the largest float, as after divergence."""

CURVE_STYLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("", "training", {"linestyle": "-"}),
    ("val_", "validation", {"linestyle": "--", "markerfacecolor": "white"}),
)
"""Prefix in the history, name in the legend, and line style of training and validation curves."""


def plot_learning_curve(
    history: Any, *, ax: Axes | None = None, best_epoch: int | Sequence[int | None] | None = None
) -> Axes:
    """Draw the losses and scores of a training by epoch, the scores on an axis of their own.

    Parameters
    ----------
    history : History, list of dict, list of these, or fitted MLPClassifier or MLPRegressor
        Also a fitted pipeline that ends in such an estimator, or a search or a
        TransformedTargetRegressor around one. Of a list of histories, as of networks that are averaged, there
        is a thin line for each, and a thick one for their mean, as far as all of them go.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    best_epoch : int or list of int or None, optional
        The epoch to mark as the one whose weights were kept, between the first and the last of the history.
        By default that of an estimator's `early_stopping`; none for a plain history. Of a list of histories
        a list, with None for those of which none is marked.

    Returns
    -------
    matplotlib Axes
        The Axes of the losses. If there are losses and scores, the scores are on its twin ("(right)" in the
        legend).

    Raises
    ------
    TypeError
        If `history` is none of these, or `best_epoch` is no integer, or not a list for a list of histories.
    ValueError
        If the history has no epoch, or no losses and scores, or if `best_epoch` is outside of it.

    Notes
    -----
    Validation curves are dashed. An epoch without a value is skipped; at a value that is not finite or beyond
    1e200 the curve has a gap. Losses above 0 are on a logarithmic axis if the largest is 100 times the
    smallest. For an estimator with `early_stopping`, the epoch that its weights come from is marked; another
    program that keeps the weights of an epoch names it as `best_epoch`.

    Examples
    --------
    >>> from mlp_xp.plotting import plot_learning_curve
    >>> history = [{"epoch": 1, "loss": 0.7, "val_loss": 0.8}, {"epoch": 2, "loss": 0.4, "val_loss": 0.6}]
    >>> ax = plot_learning_curve(history)
    >>> ax.get_xlabel(), ax.get_ylabel(), [line.get_label() for line in ax.lines]
    ('epoch', 'loss', ['training loss', 'validation loss'])
    """
    sources = _read_histories(history, best_epoch)
    curves = [_curves(source.records) for source in sources]
    best = [_checked_epoch(source.best, each.values()) for source, each in zip(sources, curves)]
    quantities = dict.fromkeys(name.removeprefix("val_") for each in curves for name in each)
    scores = [quantity for quantity in quantities if quantity != "loss"]
    ax = axes_or_new(ax)
    right = _right_axes(ax) if scores and "loss" in quantities else ax
    lines = []
    for colour, quantity in zip(cycle(COLOURS), ["loss", *scores]):
        side = ax if quantity == "loss" else right
        mark = " (right)" if side is not ax else ""
        for n_darker, (prefix, part, style) in enumerate(CURVE_STYLES):
            drawn = [each[prefix + quantity] for each in curves if prefix + quantity in each]
            style = {**style, "color": darker(colour, n_darker), "label": f"{part} {quantity}{mark}"}
            if len(drawn) > 1:
                for curve in drawn:
                    _draw_curve(side, *curve, **style | {"linewidth": 0.7, "alpha": 0.35, "label": "_"})
                drawn = [_mean_curve(drawn)]
            for curve in drawn:
                lines += _draw_curve(side, *curve, **style)
    unit, marks = sources[0].unit, [epoch for epoch in best if epoch is not None]
    if marks:
        several = len(marks) > 1
        label = f"best {unit}{'s' * several} ({', '.join(map(str, marks))})"
        for epoch in marks:
            style = {"color": "0.45", "linestyle": ":", "linewidth": 0.9 if several else 1.5, "label": label}
            lines.append(ax.axvline(epoch, **style))
            label = "_"
    if _spans_magnitudes([each[name][1] for each in curves for name in ("loss", "val_loss") if name in each]):
        ax.set_yscale("log")
    right.set_ylabel(scores[0] if len(scores) == 1 else "score")
    if "loss" in quantities:
        ax.set_ylabel("loss")
    ax.set_xlabel(unit)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    add_legend([line for line in lines if line.get_label() != "_"], *dict.fromkeys([ax, right]))
    return ax


class _CurveSource(NamedTuple):
    """A history's records, the name of its steps, and the epoch that early stopping chose."""

    records: Sequence[Mapping[str, Any]]
    unit: str = "epoch"
    best: int | None = None


def _read_histories(history: Any, best_epoch: Any) -> list[_CurveSource]:
    """Return what is to be drawn of a history, of each of a list of them, or of a fitted estimator."""
    if not (isinstance(history, (list, tuple)) and history and all(map(_is_plain_history, history))):
        source = _read_history(history)
        return [source if best_epoch is None else source._replace(best=best_epoch)]
    if best_epoch is None:
        best_epoch = [None] * len(history)
    if not isinstance(best_epoch, (list, tuple)) or len(best_epoch) != len(history):
        raise TypeError(
            f"`best_epoch` must be a list with an epoch or None for each of {len(history)} histories, got "
            f"{best_epoch!r:.60}"
        )
    return [_read_history(each)._replace(best=best) for each, best in zip(history, best_epoch)]


def _is_plain_history(history: Any) -> bool:
    """Return whether this is a list of records."""
    return isinstance(history, list) and all(isinstance(record, Mapping) for record in history)


def _read_history(history: Any) -> _CurveSource:
    """Return what is to be drawn of a history or a fitted estimator."""
    if _is_plain_history(history):
        source = _CurveSource(history)
    else:
        model = inner_estimator(history)
        if not hasattr(type(model), "history_"):
            raise TypeError(
                "`history` must be a History, a list of dicts, or a fitted MLPClassifier or MLPRegressor, "
                f"got {type(history).__name__}"
            )
        source = _CurveSource(model.history_)
        if model.solver == "lbfgs":
            source = source._replace(unit="iteration")
        elif model.early_stopping:
            source = source._replace(best=_best_epoch(source.records, by_loss=model.early_stopping == "loss"))
    if not source.records:
        raise ValueError("`history` must have at least one epoch, got none")
    return source


def _checked_epoch(best_epoch: Any, curves: Iterable[tuple[HostArray, HostArray]]) -> int | None:
    """Return `best_epoch`; raise an error unless it is between the first and the last epoch of the curves."""
    if best_epoch is None:
        return None
    epochs = np.concatenate([epochs for epochs, _ in curves])
    first, last = int(epochs.min()), int(epochs.max())
    epoch = check_integer("best_epoch", best_epoch, minimum=first)
    if epoch > last:
        raise ValueError(f"`best_epoch` must be <= {last}, the last epoch of `history`, got {epoch}")
    return epoch


def _best_epoch(records: Sequence[Mapping[str, Any]], *, by_loss: bool) -> int | None:
    """Return the first epoch with the best validation loss or score."""
    scores = [
        (-value if by_loss else value, -record["epoch"])
        for record in records
        for name, value in record.items()
        if name.startswith("val_") and (name == "val_loss") == by_loss and math.isfinite(value)
    ]
    return -max(scores)[1] if scores else None


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[HostArray, HostArray]]:
    """Return the epochs and values of each loss and score, with NaN for values that cannot be drawn."""
    names = dict.fromkeys(name for record in records for name in record if name != "epoch")
    if not names:
        raise ValueError("`history` must have a loss or a score, got nothing but epochs")
    curves = {}
    for name in names:
        measured = [
            (record.get("epoch", number), record[name])
            for number, record in enumerate(records, 1)
            if name in record
        ]
        try:
            epochs, values = np.array(measured, dtype=np.float64).T
        except (TypeError, ValueError):
            raise TypeError(f"`history` must hold numbers, got {measured[0][1]!r} as {name!r}") from None
        curves[name] = epochs, np.where(np.abs(values) < MAX_PLOTTED_VALUE, values, np.nan)
    return curves


def _right_axes(ax: Axes) -> Axes:
    """Return twin Axes with a y axis on the right; pyplot's current Axes stay the same."""
    current = ax.figure.gca()
    twin = ax.twinx()
    twin.margins(y=0.12)  # another margin than the left Axes', so that short curves do not hide each other
    ax.figure.sca(current)
    return twin


def _draw_curve(ax: Axes, epochs: HostArray, values: HostArray, **style: Any) -> Any:
    """Draw a curve, with a marker at each value without neighbours, which a line would not show."""
    finite = np.concatenate([[False], np.isfinite(values), [False]])
    isolated = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])
    return ax.plot(epochs, values, marker="o" if len(isolated) else "", markevery=isolated.tolist(), **style)


def _mean_curve(curves: Sequence[tuple[HostArray, HostArray]]) -> tuple[HostArray, HostArray]:
    """Return the mean of curves at the epochs that all of them have."""
    common = reduce(np.intersect1d, [epochs for epochs, _ in curves])
    return common, np.mean([values[np.isin(epochs, common)] for epochs, values in curves], axis=0)


def _spans_magnitudes(curves: Sequence[HostArray]) -> bool:
    """Return whether the curves are positive and span two orders of magnitude, for a logarithmic axis."""
    values = np.concatenate([[], *curves])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0.0 and values.max() >= 100.0 * values.min())
