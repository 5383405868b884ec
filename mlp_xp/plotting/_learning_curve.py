"""The learning curve: what was measured after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mlp_xp._arrays import HostArray
from mlp_xp.plotting._common import COLOURS, add_legend, axes_of, darker, innermost

HUGE = 1e200
"""matplotlib's axes fail next to the largest number, where trainings that diverge go."""

PARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("", "training", {"linestyle": "-"}),
    ("val_", "validation", {"linestyle": "--", "markerfacecolor": "white"}),
)
"""Each half of a quantity's history: its prefix there, its name, and how it is drawn."""


def plot_learning_curve(history: Any, *, ax: Axes | None = None) -> Axes:
    """Draw what was measured after each epoch: losses, and scores on an axis of their own.

    Parameters
    ----------
    history : History, list of dict, or fitted MLPClassifier or MLPRegressor
        Also a fitted pipeline that ends in such an estimator, or a search or a
        TransformedTargetRegressor around one.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        That of the losses. Scores ("(right)" in the legend) are on its twin, if there are both.

    Raises
    ------
    TypeError
        If `history` is none of these.
    ValueError
        If nothing was measured.

    Notes
    -----
    Validation curves are dashed. What an epoch lacks is skipped; where it is not finite, or beyond 1e200, the
    curve has a gap. Losses above 0 are on a logarithmic axis if the largest is 100 times the smallest. For an
    estimator with `early_stopping` the epoch that its weights come from is marked.

    Examples
    --------
    >>> from mlp_xp.plotting import plot_learning_curve
    >>> history = [{"epoch": 1, "loss": 0.7, "val_loss": 0.8}, {"epoch": 2, "loss": 0.4, "val_loss": 0.6}]
    >>> ax = plot_learning_curve(history)
    >>> ax.get_xlabel(), ax.get_ylabel(), [line.get_label() for line in ax.lines]
    ('epoch', 'loss', ['training loss', 'validation loss'])
    """
    told = _told(history)
    curves = _curves(told.records)
    quantities = dict.fromkeys(name.removeprefix("val_") for name in curves)
    scores = [quantity for quantity in quantities if quantity != "loss"]
    ax = axes_of(ax)
    right = _twin(ax) if scores and "loss" in quantities else ax
    lines = []
    for colour, quantity in zip(cycle(COLOURS), ["loss", *scores]):
        side = ax if quantity == "loss" else right
        mark = " (right)" if side is not ax else ""
        for n_darker, (prefix, part, look) in enumerate(PARTS):
            curve = curves.get(prefix + quantity)
            if curve is not None:
                look = {**look, "color": darker(colour, n_darker), "label": f"{part} {quantity}{mark}"}
                lines += _draw_curve(side, *curve, **look)
    if told.best is not None:
        label = f"best epoch ({told.best})"
        lines.append(ax.axvline(told.best, color="0.45", linestyle=":", linewidth=1.5, label=label))
    if _spans_magnitudes([curves[name][1] for name in ("loss", "val_loss") if name in curves]):
        ax.set_yscale("log")
    right.set_ylabel(scores[0] if len(scores) == 1 else "score")
    if "loss" in quantities:
        ax.set_ylabel("loss")
    ax.set_xlabel(told.unit)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    add_legend(lines, *dict.fromkeys([ax, right]))
    return ax


class _Told(NamedTuple):
    """A history, what its steps are called, and the one that training went back to."""

    records: Sequence[Mapping[str, Any]]
    unit: str = "epoch"
    best: int | None = None


def _told(history: Any) -> _Told:
    """Return the records of a history, or of what was fitted."""
    if isinstance(history, list) and all(isinstance(record, Mapping) for record in history):
        told = _Told(history)
    else:
        model = innermost(history)
        if not hasattr(type(model), "history_"):
            raise TypeError(
                "`history` must be a History, a list of dicts, or a fitted MLPClassifier or MLPRegressor, "
                f"got {type(history).__name__}"
            )
        told = _Told(model.history_)
        if model.solver == "lbfgs":
            told = told._replace(unit="iteration")
        elif model.early_stopping:
            told = told._replace(best=_best_epoch(told.records, by_loss=model.early_stopping == "loss"))
    if not told.records:
        raise ValueError("`history` must have at least one epoch, got none")
    return told


def _best_epoch(records: Sequence[Mapping[str, Any]], *, by_loss: bool) -> int | None:
    """Return the first of the epochs with the best validation loss, or score."""
    scores = [
        (-value if by_loss else value, -record["epoch"])
        for record in records
        for name, value in record.items()
        if name.startswith("val_") and (name == "val_loss") == by_loss and math.isfinite(value)
    ]
    return -max(scores)[1] if scores else None


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[HostArray, HostArray]]:
    """Return epochs and values of each quantity, with NaN where a value cannot be drawn."""
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
        curves[name] = epochs, np.where(np.abs(values) < HUGE, values, np.nan)
    return curves


def _twin(ax: Axes) -> Axes:
    """Return Axes with a scale of their own on the right; pyplot goes on where it was."""
    current = ax.figure.gca()
    twin = ax.twinx()
    twin.margins(y=0.12)  # a few points on either side would else hide each other
    ax.figure.sca(current)
    return twin


def _draw_curve(ax: Axes, epochs: HostArray, values: HostArray, **look: Any) -> Any:
    """Draw a line, and a point where no line leads to or from an epoch."""
    there = np.concatenate([[False], np.isfinite(values), [False]])
    alone = np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:])
    return ax.plot(epochs, values, marker="o" if len(alone) else "", markevery=alone.tolist(), **look)


def _spans_magnitudes(curves: Sequence[HostArray]) -> bool:
    """Whether a logarithmic axis shows these better, and all of them."""
    values = np.concatenate([[], *curves])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0.0 and values.max() >= 100.0 * values.min())
