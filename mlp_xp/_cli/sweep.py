"""``mlp-xp sweep``: train networks of several sizes on one table and compare them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from mlp_xp._cli.fitting import (
    Outcome,
    describe_machine,
    repeat_command,
    score_splits,
    split_outputs,
    train,
    undefined_scores,
    without_backend,
)
from mlp_xp._cli.loading import LoadedData, load_data, make_training, print_summary
from mlp_xp._cli.options import EXIT_INTERRUPTED
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp._disk.folders import NewFolder, write_json
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._messages import first_line
from mlp_xp._processes import current_processes, shared
from mlp_xp.backends import backend
from mlp_xp.files._models import save_model
from mlp_xp.plotting import plot_learning_curve
from mlp_xp.plotting._common import label_axes, legend_handles, title_figure
from mlp_xp.plotting._texts import fallback_fonts, fit_legend, fit_text, font_points
from mlp_xp.tables._common import DataError
from mlp_xp.tables._networks import Training
from mlp_xp.tables._pictures import has_two_features, plot_pipeline_boundary, shown_names
from mlp_xp.tables._scores import SCORE_TITLES

SWEEP_FILE = "sweep.json"


class Trial(NamedTuple):
    """One trained network of a sweep, with its outcome and scores; `name` is its sizes, as "64x32"."""

    name: str
    training: Training
    outcome: Outcome
    scores: dict[str, dict[str, Any]]

    @property
    def estimator(self) -> Any:
        """The trained network: the average, if several were trained."""
        return self.training.estimator

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases of all networks trained."""
        return sum(
            array.size
            for network in self.training.networks
            for array in (*network.coefs_, *network.intercepts_)
        )


def run(options: argparse.Namespace) -> int:
    """Train a network of each size; save the networks, and print and draw a comparison."""
    screen = Screen(options)
    if current_processes() is not None:
        raise shared(DataError("sweep is for one process: `mpiexec -n 1 mlp-xp sweep`, or without mpiexec"))
    if len(set(options.hidden)) < len(options.hidden):
        raise DataError("--hidden: must name each size once")
    out = Path(options.out or f"sweep-{Path(options.data).stem}")
    contents = ["network-*.safetensors", "*.png"]
    with NewFolder(out, overwrite=options.overwrite, mark=SWEEP_FILE, contents=contents) as folder:
        chosen = backend(options.backend)
        with screen.working(f"reading {options.data}"):
            loaded = load_data(options)
        untrained = {
            "x".join(map(str, sizes)): make_training(options, loaded, sizes) for sizes in options.hidden
        }
        screen.print(describe_machine(chosen, options))
        print_summary(loaded, screen)
        screen.print_notes(loaded.schema.notes)
        screen.print()
        trials: list[Trial] = []
        code = _train_all(untrained, loaded, screen, folder.partial, trials)
        with deferred_interrupts():
            document = _document(trials, loaded, repeat_command(options, loaded))
            write_json(folder.partial / SWEEP_FILE, document)
            folder.finish()
        _print_scores(trials, loaded, screen)
        try:
            with fallback_fonts(loaded.name, *shown_names(loaded.prepared.pipeline(trials[0].estimator))):
                draw(trials, loaded).savefig(out / "sweep.png", dpi=150)
        except Exception as error:  # an error in matplotlib must not lose trained networks
            (out / "sweep.png").unlink(missing_ok=True)
            screen.print_note(f"no sweep.png ({first_line(error)})")
        screen.print_saved(out)
        _print_best(trials, loaded, options, screen)
        screen.print_json({**document, "saved": str(out)})
        return code


def _train_all(
    untrained: dict[str, Training], loaded: LoadedData, screen: Screen, folder: Path, trials: list[Trial]
) -> int:
    """Train the networks in turn, appending each to `trials` and saving it at once; return the exit code."""
    code, width = 0, max(map(len, untrained))
    try:
        for number, (name, training) in enumerate(untrained.items(), 1):
            title = f"{number}/{len(untrained)} {name:<{width}} hidden epoch"
            outcome, estimator = train(training, screen, title), training.estimator
            with deferred_interrupts(), without_backend(estimator):
                save_model(folder / f"network-{name}.safetensors", estimator)
            outputs = split_outputs(estimator, loaded)
            assert outputs is not None
            trials.append(Trial(name, training, outcome, score_splits(estimator, loaded, outputs)))
            code = max(code, outcome.exit_code)
            if outcome.exit_code:
                screen.print_error(f"hidden {name}: {outcome.message}")
            if outcome.exit_code == EXIT_INTERRUPTED:
                break
    except KeyboardInterrupt:  # between trainings
        if not trials:
            raise
        screen.print_error(f"interrupted after {len(trials)} of {len(untrained)} networks")
        code = EXIT_INTERRUPTED
    return code


def best_of(trials: list[Trial], loaded: LoadedData) -> tuple[Trial, str]:
    """Return the trial with the best score, of equal ones the smallest network, and the split of the score.

    The split is "validation" if there is one, because the score that a choice was made by is optimistic.
    """
    name, _ = _main_score(loaded)
    split = next(split for split in ("validation", "test", "training") if split in loaded.prepared.splits)

    def rank(trial: Trial) -> tuple[float, int]:
        value = trial.scores[split][name]
        return (-math.inf if value is None else value, -trial.n_parameters)

    return max(trials, key=rank), split


def _main_score(loaded: LoadedData) -> tuple[str, str]:
    """Return the name and the title of the score that networks are compared by."""
    return next(iter(SCORE_TITLES[loaded.prepared.task].items()))


def _print_best(trials: list[Trial], loaded: LoadedData, options: argparse.Namespace, screen: Screen) -> None:
    """Print which network is best, and the command that trains it alone."""
    best, split = best_of(trials, loaded)
    _, score = _main_score(loaded)
    caution = ". It was chosen by them: expect a little less on other rows" if split == "test" else ""
    screen.print(f"Best by {score} on the {split} rows: {best.name}{caution}.")
    name = Path(options.out).name if options.out else Path(loaded.name).stem
    hidden = [int(size) for size in best.name.split("x")]
    screen.print_command(
        "", repeat_command(options, loaded, command="train", hidden=hidden, out=f"{name}-best")
    )


def _print_scores(trials: list[Trial], loaded: LoadedData, screen: Screen) -> None:
    """Print a row for each network: all scores on the reported split, the main score on the others."""
    titles = SCORE_TITLES[loaded.prepared.task]
    names = {name: title for name, title in titles.items() if name != "balanced_accuracy"}
    first, _ = _main_score(loaded)
    others = [split for split in loaded.prepared.splits if split != loaded.report_split]
    columns = ["hidden", "parameters", "epochs"]
    columns += [f"{split}\n{names[first]}" for split in others]
    columns += [f"{loaded.report_split}\n{title}" for title in names.values()]
    rows = [
        [
            trial.name,
            f"{trial.n_parameters:,}",
            str(trial.estimator.n_iter_),
            *(format_score(first, trial.scores[split][first]) for split in others),
            *(format_score(name, trial.scores[loaded.report_split][name]) for name in names),
        ]
        for trial in trials
    ]
    baseline = trials[0].scores["baseline"]
    rows.append(
        [
            loaded.baseline.title,
            *[""] * (2 + len(others)),
            *(format_score(name, baseline[name]) for name in names),
        ]
    )
    screen.print_table(columns, rows)
    targets = {split: each.y for split, each in loaded.prepared.splits.items()}
    screen.print_notes(
        dict.fromkeys(note for trial in trials for note in undefined_scores(loaded, trial.scores, targets))
    )


def _document(trials: list[Trial], loaded: LoadedData, command: str) -> dict[str, Any]:
    """Return the content of `sweep.json`."""
    return {
        "command": command,
        "data": loaded.name,
        "target": loaded.target_name,
        "task": loaded.prepared.task,
        "rows": {split: len(rows.y) for split, rows in loaded.prepared.splits.items()},
        "networks": [
            {
                "hidden": [int(size) for size in trial.name.split("x")],
                "parameters": trial.n_parameters,
                "epochs": trial.estimator.n_iter_,
                "seconds": round(trial.outcome.seconds, 3),
                "ended": trial.outcome.message,
                "scores": trial.scores,
            }
            for trial in trials
        ],
    }


def draw(trials: list[Trial], loaded: LoadedData) -> Figure:
    """Return a figure with a panel for each network: decision boundary or learning curve."""
    n_columns = math.ceil(len(trials) / math.ceil(len(trials) / 4))
    n_rows = math.ceil(len(trials) / n_columns)
    size = (3.2 * n_columns, 2.9 * n_rows + 0.4)
    figure = Figure(figsize=size if len(trials) > 1 else (6.4, 4.8), layout="constrained")
    boundaries = has_two_features(loaded.prepared.pipeline(None))
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex=boundaries, sharey=boundaries).ravel()
    draw_panel = partial(_draw_boundary, loaded) if boundaries else _draw_curve
    for panel, trial in zip(panels, trials):
        draw_panel(trial, panel)
        room, points = 60.0 * figure.get_figwidth() / n_columns, font_points("medium")
        panel.set_title(fit_text(_title(trial, loaded), room, points, n_lines=2), fontsize=points)
    for panel in panels[len(trials) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(trials) - n_columns) : len(trials)]:
        panel.tick_params(labelbottom=True)  # shared axes label the last row only, which may be incomplete
    if not boundaries:
        _share_y_limits(list(panels[: len(trials)]))
    classes = loaded.prepared.pipeline(trials[0].estimator).classes
    if boundaries and classes is not None:
        _add_legend(figure, panels[0], classes.tolist())
    title = f"{loaded.name}: {loaded.target_name} by networks of several sizes ({_scored_rows(loaded)})"
    title_figure(figure, title)
    if boundaries:
        figure.draw_without_rendering()  # for the sizes of the panels, which bound the labels
        for panel in panels[: len(trials)]:
            label_axes(panel, *loaded.prepared.preprocessor.numbers)
    for panel in panels[: max(0, len(trials) - n_columns)]:
        panel.set_xlabel("")
    return figure


def _add_legend(figure: Figure, panel: Any, classes: list[Any]) -> None:
    """Add a legend of the classes below the panels, in which their points look the same."""
    size = font_points("small")
    width, height = 72.0 * figure.get_size_inches()
    labels, n_columns = fit_legend([str(name) for name in classes], 0.95 * width, 0.3 * height, size)
    handles = legend_handles(panel.collections[-len(classes) :], labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, fontsize=size, frameon=False)


def _scored_rows(loaded: LoadedData) -> str:
    """Return which rows the scores in the panels' titles are of."""
    return {"test": "scores of test rows", "validation": "scores of validation rows"}.get(
        loaded.report_split, "scores of the rows trained on"
    )


def _draw_boundary(loaded: LoadedData, trial: Trial, panel: Any) -> None:
    """Draw a network's decision boundary with the training and test rows."""
    shown = [rows for split, rows in loaded.prepared.splits.items() if split != "validation"]
    y = np.concatenate([rows.y for rows in shown])
    frame = pl.concat([rows.frame for rows in shown])
    plot_pipeline_boundary(loaded.prepared.pipeline(trial.estimator), frame, y, panel, legend=False)


def _draw_curve(trial: Trial, panel: Any) -> None:
    """Draw a network's training and validation loss."""
    names = ("epoch", "loss", "val_loss")
    histories = [
        [{name: record[name] for name in names if name in record} for record in history]
        for history in trial.training.histories
        if history
    ]
    if histories:
        plot_learning_curve(histories if len(histories) > 1 else histories[0], ax=panel)


def _share_y_limits(panels: Sequence[Any]) -> None:
    """Set the same y limits on all panels, unless some have logarithmic axes and others linear ones."""
    if len({panel.get_yscale() for panel in panels}) == 1:
        low, high = zip(*(panel.get_ylim() for panel in panels))
        for panel in panels:
            panel.set_ylim(min(low), max(high))


def _title(trial: Trial, loaded: LoadedData) -> str:
    """Return a panel's title: the network's size and score."""
    name, title = _main_score(loaded)
    value = format_score(name, trial.scores[loaded.report_split][name])
    units = f"{trial.name} units" if trial.name != "1" else "1 unit"
    return f"{units}: {title} {value}"
