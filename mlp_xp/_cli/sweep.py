"""``mlp-xp sweep``: networks of several sizes on one table, side by side."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from mlp_xp._arrays import to_host
from mlp_xp._cli.fitting import Outcome, machine, portable, repeatable, score_parts, train
from mlp_xp._cli.loading import Problem, describe, load_problem, make_estimator
from mlp_xp._cli.options import EXIT_INTERRUPTED
from mlp_xp._cli.screen import Screen, figure
from mlp_xp._interrupts import holding_interrupts
from mlp_xp._messages import first_line
from mlp_xp.backends import backend
from mlp_xp.files._folders import NewFolder, write_json
from mlp_xp.files._models import save_model
from mlp_xp.plotting import plot_learning_curve
from mlp_xp.plotting._common import literal
from mlp_xp.tables._pictures import draw_boundary, has_boundary
from mlp_xp.tables._pipelines import SCORES, Part, baseline_name
from mlp_xp.tables._reading import DataError

SWEEP = "sweep.json"


class Trial(NamedTuple):
    """One network of a sweep, trained."""

    name: str
    estimator: Any
    outcome: Outcome
    scores: dict[str, dict[str, Any]]

    @property
    def n_parameters(self) -> int:
        """How many weights and biases it has."""
        return sum(to_host(array).size for array in (*self.estimator.coefs_, *self.estimator.intercepts_))


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Train them all, and show what became of them."""
    screen = Screen(options)
    if len(set(options.hidden)) < len(options.hidden):
        raise DataError("--hidden: must name each size once")
    out = Path(options.out or f"sweep-{Path(options.data).stem}")
    with NewFolder(out, overwrite=options.overwrite, mark=SWEEP) as folder:
        chosen = backend(options.backend)
        problem = load_problem(options)
        untrained = {
            "x".join(map(str, sizes)): make_estimator(options, problem.data.task, sizes)
            for sizes in options.hidden
        }
        screen.say(machine(chosen, options))
        describe(problem, screen)
        screen.say()
        trials: list[Trial] = []
        code = _train_all(untrained, problem, screen, folder.partial, trials)
        with holding_interrupts():
            document = _document(trials, problem, shlex.join(repeatable(options, given, problem)))
            write_json(folder.partial / SWEEP, document)
            folder.finish()
    _report(trials, problem, screen)
    try:
        draw(trials, problem).savefig(out / "sweep.png", dpi=150)
    except Exception as error:  # what fails in matplotlib must not stand in the way of trained networks
        screen.note(f"no sweep.png ({first_line(error)})")
    screen.say(f"Saved in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    _say_best(trials, problem, options, given, screen)
    screen.answer({**document, "saved": str(out)})
    return code


def _train_all(
    untrained: dict[str, Any], problem: Problem, screen: Screen, folder: Path, trials: list[Trial]
) -> int:
    """Train one after the other, and keep each as soon as it is there; return the exit code."""
    code, width = 0, max(map(len, untrained))
    try:
        for place, (name, estimator) in enumerate(untrained.items(), 1):
            title = f"{place}/{len(untrained)} hidden {name:<{width}} epoch"
            outcome = train(estimator, problem, screen, title)
            with holding_interrupts(), portable(estimator):
                save_model(folder / f"network-{name}.safetensors", estimator)
            trials.append(Trial(name, estimator, outcome, score_parts(estimator, problem)))
            code = max(code, outcome.code)
            if outcome.code:
                screen.complain(f"hidden {name}: {outcome.said}")
            if outcome.code == EXIT_INTERRUPTED:
                break
    except KeyboardInterrupt:  # between trainings
        if not trials:
            raise
        screen.complain(f"interrupted after {len(trials)} of {len(untrained)} networks")
        code = EXIT_INTERRUPTED
    return code


def best_of(trials: list[Trial], problem: Problem) -> tuple[Trial, str]:
    """Return the trial with the best score, the smallest network of those, and the part it was scored on.

    Validation rows are there to choose by. Where there are none the test's must do.
    """
    name, _ = _leading_score(problem)
    part = next(use for use in ("validation", "test", "training") if use in problem.data.parts)

    def rank(trial: Trial) -> tuple[float, int]:
        value = trial.scores[part][name]
        return (-math.inf if value is None else value, -trial.n_parameters)

    return max(trials, key=rank), part


def _leading_score(problem: Problem) -> tuple[str, str]:
    """Return the score that networks are compared by, and how people call it."""
    return next(iter(SCORES[problem.data.task].items()))


def _say_best(
    trials: list[Trial], problem: Problem, options: argparse.Namespace, given: Sequence[str], screen: Screen
) -> None:
    """Say which network is best, and the command that trains it alone."""
    best, part = best_of(trials, problem)
    _, score = _leading_score(problem)
    caution = ": as it was chosen by them, expect a little less elsewhere" if part == "test" else ""
    screen.say(f"Best by {score} on the {part} rows: {best.name}{caution}.")
    words = repeatable(options, _without_sizes(given), problem)
    words[words.index("sweep")] = "train"
    words += ["--hidden", *best.name.split("x"), "--out", f"{Path(options.out or problem.name).stem}-best"]
    screen.say(f"  {shlex.join(words)}")


def _without_sizes(given: Sequence[str]) -> list[str]:
    """Leave out ``--hidden`` and the sizes that follow it."""
    kept, among_sizes = [], False
    for word in given:
        among_sizes = word.startswith("--hidden") or (among_sizes and not word.startswith("-"))
        if not among_sizes:
            kept.append(word)
    return kept


def _report(trials: list[Trial], problem: Problem, screen: Screen) -> None:
    names = {name: title for name, title in SCORES[problem.data.task].items() if name != "balanced_accuracy"}
    first, _ = _leading_score(problem)
    others = [use for use in problem.data.parts if use != problem.drawn]
    columns = ["hidden", "parameters", "epochs"]
    columns += [f"{use}\n{names[first]}" for use in others]
    columns += [f"{problem.drawn}\n{title}" for title in names.values()]
    rows = [
        [
            trial.name,
            f"{trial.n_parameters:,}",
            str(trial.estimator.n_iter_),
            *(figure(first, trial.scores[use][first]) for use in others),
            *(figure(name, trial.scores[problem.drawn][name]) for name in names),
        ]
        for trial in trials
    ]
    trivial = trials[0].scores["baseline"]
    rows.append(
        [
            baseline_name(problem.baseline),
            *[""] * (2 + len(others)),
            *(figure(name, trivial[name]) for name in names),
        ]
    )
    screen.table(columns, rows)


def _document(trials: list[Trial], problem: Problem, command: str) -> dict[str, Any]:
    """Return a sweep as JSON has it."""
    return {
        "command": command,
        "data": problem.name,
        "target": problem.target_name,
        "task": problem.data.task,
        "rows": {use: len(part.y) for use, part in problem.data.parts.items()},
        "networks": [
            {
                "hidden": [int(size) for size in trial.name.split("x")],
                "parameters": trial.n_parameters,
                "epochs": trial.estimator.n_iter_,
                "seconds": round(trial.outcome.seconds, 3),
                "ended": trial.outcome.said,
                "scores": trial.scores,
            }
            for trial in trials
        ],
    }


def draw(trials: list[Trial], problem: Problem) -> Figure:
    """Draw a panel for each network: its decision boundary for two features, else its learning curve."""
    n_columns = math.ceil(len(trials) / math.ceil(len(trials) / 4))
    n_rows = math.ceil(len(trials) / n_columns)
    size = (3.2 * n_columns, 2.9 * n_rows + 0.4)
    drawing = Figure(figsize=size if len(trials) > 1 else (6.4, 4.8), layout="constrained")
    flat = has_boundary(problem.data.pipeline(None))
    panels = drawing.subplots(n_rows, n_columns, squeeze=False, sharex=flat, sharey=flat).ravel()
    show = partial(_draw_boundary, problem) if flat else _draw_curve
    for panel, trial in zip(panels, trials):
        show(trial, panel)
        panel.set_title(_title(trial, problem), fontsize="medium")
    for panel in panels[len(trials) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(trials) - n_columns) : len(trials)]:
        panel.tick_params(labelbottom=True)  # there may be no panel below
    for panel in panels[: max(0, len(trials) - n_columns)]:
        panel.set_xlabel("")
    if not flat:
        _level(list(panels[: len(trials)]))
    points, names = panels[0].get_legend_handles_labels()
    if flat and names:  # the same in all panels
        drawing.legend(points, names, loc="outside lower center", ncols=min(len(names), 8), frameon=False)
    title = f"{problem.name}: {problem.target_name} by networks of several sizes ({_rows(problem)})"
    drawing.suptitle(literal(title))
    return drawing


def _rows(problem: Problem) -> str:
    return {"test": "scores of test rows", "validation": "scores of validation rows"}.get(
        problem.drawn, "scores of the rows trained on"
    )


def _draw_boundary(problem: Problem, trial: Trial, panel: Any) -> None:
    parts = [part for use, part in problem.data.parts.items() if use != "validation"]
    rows = Part(pl.concat([part.frame for part in parts]), np.concatenate([part.y for part in parts]))
    draw_boundary(problem.data.pipeline(trial.estimator), rows, panel, legend=False)


def _draw_curve(trial: Trial, panel: Any) -> None:
    names = ("epoch", "loss", "val_loss")
    history = [
        {name: record[name] for name in names if name in record} for record in trial.estimator.history_
    ]
    if history:
        plot_learning_curve(history, ax=panel)


def _level(panels: Sequence[Any]) -> None:
    """Give panels one scale, from the lowest of their ends to the highest, where they are of one kind."""
    if len({panel.get_yscale() for panel in panels}) == 1:
        low, high = zip(*(panel.get_ylim() for panel in panels))
        for panel in panels:
            panel.set_ylim(min(low), max(high))


def _title(trial: Trial, problem: Problem) -> str:
    name, title = _leading_score(problem)
    value = figure(name, trial.scores[problem.drawn][name])
    units = f"{trial.name} units" if trial.name != "1" else "1 unit"
    return f"{units}: {title} {value}"
