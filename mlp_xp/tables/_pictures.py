"""Pictures in a run's folder: learning curve, confusion matrix or predicted values, decision boundary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, StrMethodFormatter
from sklearn.metrics import PredictionErrorDisplay

from mlp_xp._arrays import HostArray
from mlp_xp._messages import first_line
from mlp_xp.plotting import plot_decision_boundary, plot_learning_curve
from mlp_xp.plotting._common import label_axes, title_figure
from mlp_xp.plotting._confusion_matrix import draw_confusion_matrix, merged_confusion, write_counts
from mlp_xp.plotting._texts import fallback_fonts
from mlp_xp.tables._networks import Training, best_epoch
from mlp_xp.tables._pipelines import Pipeline
from mlp_xp.tables._rows import LabelledRows
from mlp_xp.tables._runs import Run


class ShownRows(NamedTuple):
    """Rows that pictures show, with what is predicted for them.

    Attributes
    ----------
    y, predicted : ndarray of shape (n_samples,)
    features : polars.DataFrame or None
        If there are two and both are numbers: without them no decision boundary is drawn.
    """

    y: HostArray
    predicted: HostArray
    features: pl.DataFrame | None


def two_features(pipeline: Pipeline, rows: LabelledRows) -> pl.DataFrame | None:
    """Return the features of rows if there are two; of several processes the first has those of all rows."""
    if not has_two_features(pipeline):
        return None
    names = list(pipeline.preprocessor.numbers)
    columns = rows.gather("the pictures", *(rows.frame[name].to_numpy() for name in names))
    return None if columns is None else pl.DataFrame(dict(zip(names, columns)), nan_to_null=True)


def save_pictures(folder: Path, run: Run, training: Training, rows: ShownRows, title: str) -> list[str]:
    """Draw a run's pictures into a folder; return a message for each picture that failed.

    An error in matplotlib must not lose a trained network, so none is raised. Pictures that are there stay.
    """
    problems = []
    for name, draw in picture_drawers(run, training, rows, title).items():
        if (folder / name).exists():
            continue
        try:
            with fallback_fonts(title, *shown_names(run.pipeline)):
                figure = Figure(figsize=(6.4, 4.8), layout="constrained")
                draw(figure.subplots())
                figure.savefig(folder / name, dpi=150)
        except Exception as error:
            (folder / name).unlink(missing_ok=True)
            problems.append(f"no {name} ({first_line(error)})")
    return problems


def shown_names(pipeline: Pipeline) -> list[str]:
    """Return the names that pictures of a pipeline show: of columns and of classes."""
    assert pipeline.schema.target is not None
    classes = [] if pipeline.classes is None else pipeline.classes.tolist()
    columns = pipeline.preprocessor.numbers if has_two_features(pipeline) else ()
    return [pipeline.schema.target.name, *columns, *map(str, classes)]


def picture_drawers(
    run: Run, training: Training, rows: ShownRows, title: str
) -> dict[str, Callable[[Any], None]]:
    """Return a function that draws on Axes for each picture of a run, by the picture's file name."""
    classes = run.classes
    drawers: dict[str, Callable[[Any], None]] = {}
    if any(training.histories):
        drawers["learning_curve.png"] = lambda axes: _draw_curves(training, axes)
    if classes is None:
        drawers["predicted_vs_true.png"] = lambda axes: _draw_predictions(run, rows, title, axes)
    else:
        drawers["confusion_matrix.png"] = lambda axes: _draw_confusion(run, rows, title, axes)
    if rows.features is not None:
        drawers["decision_boundary.png"] = lambda axes: _draw_boundary(run, rows, title, axes)
    return drawers


def has_two_features(pipeline: Pipeline) -> bool:
    """Return whether a pipeline takes exactly two numeric columns, which have a decision boundary."""
    return len(pipeline.preprocessor.numbers) == 2 and not pipeline.preprocessor.categories


def plot_pipeline_boundary(
    pipeline: Pipeline, frame: pl.DataFrame, y: HostArray, axes: Any, *, legend: bool = True
) -> None:
    """Draw the decision boundary of a pipeline with two numeric columns, with missing values filled in."""
    known = frame.select(
        pl.col(name).fill_null(scaling.fill) for name, scaling in pipeline.preprocessor.numbers.items()
    )
    plot_decision_boundary(pipeline, known, y, ax=axes, legend=legend)


def _label_axes(axes: Any, xlabel: str, ylabel: str) -> None:
    """Label the axes twice: the layout with the labels determines how long they may be."""
    for _ in range(2):
        label_axes(axes, xlabel, ylabel)
        axes.figure.draw_without_rendering()


def _draw_curves(training: Training, axes: Any) -> None:
    """Draw the learning curve of each network trained, and mark the epoch that is kept."""
    trained = [network for network in training.networks if network.loss_curve_]
    best = [best_epoch(network) for network in trained]
    if len(trained) == 1:
        plot_learning_curve(trained[0].history_, ax=axes, best_epoch=best[0])
    else:
        plot_learning_curve([network.history_ for network in trained], ax=axes, best_epoch=best)
    if trained[0].solver == "lbfgs":
        axes.set_xlabel("iteration")
    remarks = []
    if len(trained) > 1:
        remarks.append(f"{len(trained)} networks")
    if training.monitored is not None:
        left_out = training.monitored == "left out"
        remarks.append(f"validation: the {'rows left out' if left_out else f'{training.monitored} rows'}")
    if training.target_scaling:
        remarks.append(training.target_scaling)
    title_figure(axes.figure, "Learning curve" + (f" ({', '.join(remarks)})" if remarks else ""))


def _draw_boundary(run: Run, rows: ShownRows, title: str, axes: Any) -> None:
    """Draw the decision boundary and the rows."""
    assert rows.features is not None
    plot_pipeline_boundary(run.pipeline, rows.features, rows.y, axes)
    title_figure(axes.figure, title)
    _label_axes(axes, *run.pipeline.preprocessor.numbers)


def _draw_confusion(run: Run, rows: ShownRows, title: str, axes: Any) -> None:
    """Draw the confusion matrix."""
    assert run.classes is not None
    names, counts, merged = merged_confusion(run.classes, rows.y.tolist(), rows.predicted.tolist())
    draw_confusion_matrix(axes, names, counts, merged=merged)
    title_figure(axes.figure, title)
    _label_axes(axes, f"predicted {run.target}", f"true {run.target}")
    write_counts(axes, counts)


def _draw_predictions(run: Run, rows: ShownRows, title: str, axes: Any) -> None:
    """Draw the predicted values of a regression against the true ones."""
    PredictionErrorDisplay.from_predictions(
        rows.y,
        rows.predicted,
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
    title_figure(axes.figure, title)
    _label_axes(axes, f"predicted {run.target}", f"true {run.target}")
