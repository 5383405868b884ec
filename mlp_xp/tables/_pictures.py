"""Pictures in a run's folder: learning curve, confusion matrix or predicted values, decision boundary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, StrMethodFormatter
from sklearn.metrics import ConfusionMatrixDisplay, PredictionErrorDisplay

from mlp_xp._messages import first_line
from mlp_xp.plotting import plot_decision_boundary, plot_learning_curve
from mlp_xp.plotting._common import escape_mathtext
from mlp_xp.tables._pipelines import Pipeline
from mlp_xp.tables._rows import LabelledRows
from mlp_xp.tables._runs import Run

MAX_CLASSES_IN_CONFUSION_MATRIX = 30
"""Maximum number of classes for which the confusion matrix is drawn; with more its labels are unreadable."""

MAX_CLASSES_WITH_COUNTS = 12
"""Maximum number of classes for which the cells of the confusion matrix show counts."""


def save_pictures(folder: Path, run: Run, rows: LabelledRows, title: str) -> list[str]:
    """Draw a run's pictures into a folder; return a message for each picture that failed.

    An error in matplotlib must not lose a trained network, so none is raised.
    """
    problems = []
    for name, draw in picture_drawers(run, rows, title).items():
        try:
            figure = Figure(figsize=(6.4, 4.8), layout="constrained")
            draw(figure.subplots())
            figure.savefig(folder / name, dpi=150)
        except Exception as error:
            (folder / name).unlink(missing_ok=True)
            problems.append(f"no {name} ({first_line(error)})")
    return problems


def picture_drawers(run: Run, rows: LabelledRows, title: str) -> dict[str, Callable[[Any], None]]:
    """Return a function that draws on Axes for each picture of a run, by the picture's file name."""
    model, classes = run.pipeline.estimator, run.classes
    drawers: dict[str, Callable[[Any], None]] = {}
    if model.loss_curve_:
        curve_title = f"Learning curve{_curve_remarks(run)}"
        drawers["learning_curve.png"] = lambda axes: _titled(plot_learning_curve(model, ax=axes), curve_title)
    if classes is None:
        drawers["predicted_vs_true.png"] = lambda axes: _draw_predictions(run, rows, title, axes)
    elif len(classes) <= MAX_CLASSES_IN_CONFUSION_MATRIX:
        drawers["confusion_matrix.png"] = lambda axes: _draw_confusion(run, rows, title, axes)
    if has_two_features(run.pipeline):
        drawers["decision_boundary.png"] = lambda axes: _draw_boundary(run, rows, title, axes)
    return drawers


def has_two_features(pipeline: Pipeline) -> bool:
    """Return whether a pipeline takes exactly two numeric columns, which have a decision boundary."""
    return len(pipeline.preprocessor.numbers) == 2 and not pipeline.preprocessor.categories


def _curve_remarks(run: Run) -> str:
    """Return the title's remarks: which split was monitored, and whether the loss is of the scaled target."""
    monitored, model = run.description["watched"], run.pipeline.estimator
    remarks = [] if monitored is None else [f"validation: the {monitored} rows"]
    if run.classes is None and model.loss == "squared_error":
        remarks.append("target scaled to variance 1")
    return f" ({', '.join(remarks)})" if remarks else ""


def plot_pipeline_boundary(pipeline: Pipeline, rows: LabelledRows, axes: Any, *, legend: bool = True) -> None:
    """Draw the decision boundary of a pipeline with two numeric columns, with missing values filled in."""
    known = rows.frame.select(
        pl.col(name).fill_null(scaling.fill) for name, scaling in pipeline.preprocessor.numbers.items()
    )
    plot_decision_boundary(pipeline, known, rows.y, ax=axes, legend=legend)


def _titled(axes: Any, title: str) -> None:
    axes.set_title(escape_mathtext(title))


def _label_axes(run: Run, title: str, axes: Any) -> None:
    """Label the axes "predicted" and "true", and set the title."""
    axes.set_xlabel(escape_mathtext(f"predicted {run.target}"))
    axes.set_ylabel(escape_mathtext(f"true {run.target}"))
    _titled(axes, title)


def _draw_boundary(run: Run, rows: LabelledRows, title: str, axes: Any) -> None:
    plot_pipeline_boundary(run.pipeline, rows, axes)
    _titled(axes, title)


def _draw_confusion(run: Run, rows: LabelledRows, title: str, axes: Any) -> None:
    """Draw the confusion matrix."""
    classes = run.classes
    assert classes is not None
    predicted = run.pipeline.predict(rows.frame)
    ConfusionMatrixDisplay.from_predictions(
        rows.y,
        predicted,
        labels=classes,
        display_labels=[escape_mathtext(str(name)) for name in classes.tolist()],
        cmap="Blues",
        ax=axes,
        include_values=len(classes) <= MAX_CLASSES_WITH_COUNTS,
        xticks_rotation="horizontal" if sum(len(str(name)) for name in classes) < 40 else "vertical",
    )
    _label_axes(run, title, axes)


def _draw_predictions(run: Run, rows: LabelledRows, title: str, axes: Any) -> None:
    """Draw the predicted values of a regression against the true ones."""
    PredictionErrorDisplay.from_predictions(
        rows.y,
        run.pipeline.predict(rows.frame),
        kind="actual_vs_predicted",
        subsample=5000,
        random_state=0,
        scatter_kwargs={"alpha": 0.6, "color": "#0072B2", "edgecolor": "white", "linewidth": 0.5},
        line_kwargs={"color": "black"},
        ax=axes,
    )
    axes.set_aspect("equal", adjustable="box")
    for axis in (axes.xaxis, axes.yaxis):  # scikit-learn sets five ticks at unrounded values
        axis.set_major_locator(AutoLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    _label_axes(run, title, axes)
