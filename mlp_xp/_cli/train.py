"""``mlp-xp train``: from a table to a trained, tested and saved network."""

from __future__ import annotations

import argparse
import platform
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlp_xp._arrays import library_name
from mlp_xp._cli.fitting import Outcome, describe_network, machine, portable, repeatable, score_parts, train
from mlp_xp._cli.loading import Problem, describe, digest, load_problem, make_estimator
from mlp_xp._cli.screen import Screen, figure
from mlp_xp._interrupts import holding_interrupts
from mlp_xp._version import __version__
from mlp_xp.backends import Backend, backend
from mlp_xp.files._folders import NewFolder, write_json
from mlp_xp.tables._pipelines import SCORES, baseline_name, watched_part
from mlp_xp.tables._runs import DESCRIPTION, FORMAT, METRICS, Run, write_run


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Train a network, keep it, and score it."""
    screen = Screen(options)
    folder = None
    if options.out is not None:
        folder = NewFolder(Path(options.out), overwrite=options.overwrite, mark=DESCRIPTION)
    with folder or nullcontext():
        chosen = backend(options.backend)
        problem = load_problem(options)
        hidden = None if options.hidden is None else tuple(options.hidden)
        estimator = make_estimator(options, problem.data.task, hidden)
        description = _describe(options, given, problem, estimator, chosen)
        screen.say(machine(chosen, options))
        describe(problem, screen)
        screen.list([("network", describe_network(estimator, problem))])
        screen.say()
        outcome = train(estimator, problem, screen)
        with holding_interrupts():
            description |= _said_of(estimator, outcome)
            trained = Run(Path(options.out or ""), problem.data.pipeline(estimator), description)
            if folder is not None:
                with portable(estimator):
                    write_run(folder.partial, trained)
                folder.finish()
    scores = score_parts(estimator, problem)
    report(problem, scores, screen)
    (screen.say if outcome.code == 0 else screen.complain)(outcome.said)
    answer = {**description, "scores": scores}
    if folder is None:
        screen.say("Nothing was saved; --out FOLDER keeps the network.")
    else:
        write_json(folder.path / METRICS, scores)
        answer["saved"] = str(folder.path)
        _draw(trained, problem, screen)
        _say_saved(folder.path, screen)
    screen.answer(answer)
    return outcome.code


def report(problem: Problem, scores: dict[str, dict[str, Any]], screen: Screen) -> None:
    """Print the scores of each part, and those of a trivial model."""
    names, parts = SCORES[problem.data.task], problem.data.parts
    rows = []
    for use, found in scores.items():
        rows_of = problem.drawn if use == "baseline" else use
        title = baseline_name(problem.baseline) if use == "baseline" else use
        rows.append([title, str(len(parts[rows_of].y)), *(figure(name, found[name]) for name in names)])
    screen.table(["", "rows", *names.values()], rows)


def _draw(trained: Run, problem: Problem, screen: Screen) -> None:
    """Draw the pictures of a run that is safe by now."""
    from mlp_xp.tables._pictures import draw_pictures  # and with it matplotlib

    for missing in draw_pictures(trained.path, trained, problem.data.parts[problem.drawn], _rows_of(problem)):
        screen.note(missing)


def _rows_of(problem: Problem) -> str:
    part = problem.data.parts[problem.drawn]
    return f"{problem.name}: {len(part.y)} rows {_USE[problem.drawn]}"


_USE = {"test": "held out for the test", "validation": "of the validation table", "training": "trained on"}


def _describe(
    options: argparse.Namespace, given: Sequence[str], problem: Problem, estimator: Any, chosen: Backend
) -> dict[str, Any]:
    """Return what there is to know of a run before it begins, as JSON has it."""
    return {
        "format": FORMAT,
        "command": shlex.join(repeatable(options, given, problem)),
        "data": {"name": problem.name, "sha256": digest(options.data), "rows": len(problem.target.values)},
        "target": problem.target_name,
        "task": problem.data.task,
        "reason": problem.target.reason,
        "columns": problem.columns._asdict(),
        "sample_weight": options.sample_weight,
        "missing": problem.missing,
        "rows_without_target": problem.n_without_target,
        "rows": {use: len(part.y) for use, part in problem.data.parts.items()},
        "watched": watched_part(estimator, problem.data),
        "baseline": problem.baseline,
        "machine": {
            "library": library_name(chosen.xp),
            "device": str(chosen.device),
            "dtype": options.dtype,
            "system": platform.platform(),
        },
        "versions": {
            "mlp_xp": __version__,
            **dict(map(_version, ("numpy", "scikit-learn", "polars", "skops"))),
        },
    }


def _version(package: str) -> tuple[str, str | None]:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, None


def _said_of(estimator: Any, outcome: Outcome) -> dict[str, Any]:
    """Return what there is to know of a training that ended."""
    return {
        "network": {
            "layer_sizes": [estimator.coefs_[0].shape[0], *(weight.shape[1] for weight in estimator.coefs_)],
            "activation": estimator.activation,
            "solver": estimator.solver,
        },
        "engine": estimator.history_.engine,
        "epochs": estimator.n_iter_,
        "seconds": round(outcome.seconds, 3),
        "ended": outcome.said,
        "exit_code": outcome.code,
    }


def _say_saved(folder: Path, screen: Screen) -> None:
    files = sorted(path.name for path in folder.iterdir())
    screen.say(f"Saved in {folder}: {', '.join(files)}")
    table = shlex.join(["mlp-xp", "predict", str(folder)]) + " new.csv --out predictions.csv"
    screen.say(f"Predict new rows:  {table}")
