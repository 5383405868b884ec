"""The pictures that a run's folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, StrMethodFormatter
from sklearn.metrics import ConfusionMatrixDisplay, PredictionErrorDisplay
from sklearn.pipeline import Pipeline

from mlp_xp._messages import first_line
from mlp_xp.plotting import plot_decision_boundary, plot_learning_curve
from mlp_xp.plotting._common import literal
from mlp_xp.tables._pipelines import Part, columns_of, fillings, network_of, outputs
from mlp_xp.tables._runs import Run

MOST_CLASSES_IN_PICTURE = 30


def draw_pictures(folder: Path, run: Run, part: Part, of: str) -> list[str]:
    """Draw what a run learnt, and its predictions for some rows; return why a picture is not there.

    What fails in matplotlib must not stand in the way of a trained network.
    """
    problems = []
    for name, draw in pictures(run, part, of).items():
        try:
            figure = Figure(figsize=(6.4, 4.8), layout="constrained")
            draw(figure.subplots())
            figure.savefig(folder / name, dpi=150)
        except Exception as error:
            (folder / name).unlink(missing_ok=True)
            problems.append(f"no {name} ({first_line(error)})")
    return problems


def pictures(run: Run, part: Part, of: str) -> dict[str, Callable[[Any], None]]:
    """Return what draws each picture of a run, by the name of its file."""
    model, classes = network_of(run.pipeline), run.classes
    chosen: dict[str, Callable[[Any], None]] = {}
    if model.loss_curve_:
        title = f"Learning curve{_said_of_curves(run)}"
        chosen["learning_curve.png"] = lambda axes: _titled(plot_learning_curve(model, ax=axes), title)
    if classes is None:
        chosen["predicted_vs_true.png"] = lambda axes: _draw_predictions(run, part, of, axes)
    elif len(classes) <= MOST_CLASSES_IN_PICTURE:
        chosen["confusion_matrix.png"] = lambda axes: _draw_confusion(run, part, of, axes)
    if has_boundary(run.pipeline):
        chosen["decision_boundary.png"] = lambda axes: _draw_boundary(run, part, of, axes)
    return chosen


def has_boundary(pipeline: Pipeline) -> bool:
    """Whether a pipeline takes two columns of numbers, around which what it predicts can be drawn."""
    numbers, categories = columns_of(pipeline)
    return len(numbers) == 2 and not categories


def _said_of_curves(run: Run) -> str:
    """Say what the validation rows are, and that a value was trained on in another unit."""
    watched, model = run.description["watched"], network_of(run.pipeline)
    said = [] if watched is None else [f"validation: the {watched} rows"]
    if run.classes is None and model.loss == "squared_error":
        said.append("target scaled to variance 1")
    return f" ({', '.join(said)})" if said else ""


def draw_boundary(pipeline: Pipeline, part: Part, axes: Any, *, legend: bool = True) -> None:
    """Draw what a pipeline of two columns of numbers predicts where."""
    filled = fillings(pipeline)
    known = part.frame.select(pl.col(name).fill_null(filled[name]) for name in part.frame.columns)
    plot_decision_boundary(pipeline, known, part.y, ax=axes, legend=legend)


def _titled(axes: Any, title: str) -> None:
    axes.set_title(literal(title))


def _compare(run: Run, of: str, axes: Any) -> None:
    """Say that what was predicted stands against what is true."""
    axes.set_xlabel(literal(f"predicted {run.description['target']}"))
    axes.set_ylabel(literal(f"true {run.description['target']}"))
    _titled(axes, of)


def _draw_boundary(run: Run, part: Part, of: str, axes: Any) -> None:
    draw_boundary(run.pipeline, part, axes)
    _titled(axes, of)


def _draw_confusion(run: Run, part: Part, of: str, axes: Any) -> None:
    classes = run.classes
    assert classes is not None
    named = classes[np.argmax(outputs(run.pipeline, part.frame), axis=1)]
    few = len(classes) <= 12
    ConfusionMatrixDisplay.from_predictions(
        part.y,
        named,
        labels=classes,
        display_labels=[literal(str(name)) for name in classes.tolist()],
        cmap="Blues",
        ax=axes,
        include_values=few,
        xticks_rotation="horizontal" if sum(len(str(name)) for name in classes) < 40 else "vertical",
    )
    _compare(run, of, axes)


def _draw_predictions(run: Run, part: Part, of: str, axes: Any) -> None:
    PredictionErrorDisplay.from_predictions(
        part.y,
        outputs(run.pipeline, part.frame),
        kind="actual_vs_predicted",
        subsample=5000,
        random_state=0,
        scatter_kwargs={"alpha": 0.6, "color": "#0072B2", "edgecolor": "white", "linewidth": 0.5},
        line_kwargs={"color": "black"},
        ax=axes,
    )
    axes.set_aspect("equal", adjustable="box")
    for axis in (axes.xaxis, axes.yaxis):  # the display's ticks are at five odd numbers
        axis.set_major_locator(AutoLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    _compare(run, of, axes)
