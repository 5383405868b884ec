"""``mlp-xp train``: train, score and save a network on a table."""

from __future__ import annotations

import argparse
import platform
import shlex
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlp_xp._arrays import library_name
from mlp_xp._cli.fitting import (
    Outcome,
    describe_machine,
    describe_network,
    no_better_than_baseline,
    repeat_command,
    score_splits,
    train,
    undefined_scores,
    without_backend,
)
from mlp_xp._cli.loading import LoadedData, file_sha256, load_data, make_training, print_summary
from mlp_xp._cli.options import path_word
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._version import __version__
from mlp_xp.backends import Backend, backend
from mlp_xp.files._folders import NewFolder, write_json
from mlp_xp.tables._networks import Training, best_epoch
from mlp_xp.tables._plain_values import to_plain
from mlp_xp.tables._runs import DESCRIPTION_FILE, METRICS_FILE, RUN_FILES, Run, write_run
from mlp_xp.tables._schema import KINDS
from mlp_xp.tables._scores import SCORE_TITLES


def run(options: argparse.Namespace) -> int:
    """Train a network, save it if a folder is given, and print its scores."""
    screen = Screen(options)
    folder = None
    if options.out is not None:
        folder = NewFolder(
            Path(options.out), overwrite=options.overwrite, mark=DESCRIPTION_FILE, contents=RUN_FILES
        )
    with folder or nullcontext():
        chosen = backend(options.backend)
        with screen.working(f"reading {options.data}"):
            loaded = load_data(options)
        hidden = None if options.hidden is None else tuple(options.hidden)
        training = make_training(options, loaded, hidden)
        estimator = training.estimator
        description = _describe_run(options, loaded, training, chosen)
        screen.print(describe_machine(chosen, options))
        print_summary(loaded, screen)
        screen.print_fields([("network", describe_network(training, loaded))])
        screen.print_notes(loaded.schema.notes)
        screen.print()
        outcome = train(training, screen)
        with deferred_interrupts():
            description |= _describe_outcome(training, outcome)
            trained = Run(
                Path(options.out or ""), loaded.prepared.pipeline(estimator), loaded.baseline, description
            )
            if folder is not None:
                with without_backend(estimator):
                    write_run(folder.partial, trained, training.histories)
                folder.finish()
        scores = score_splits(estimator, loaded)
        _print_scores(loaded, scores, screen)
        (screen.print if outcome.exit_code == 0 else screen.print_error)(outcome.message)
        answer = {**description, "scores": scores}
        if folder is None:
            screen.print("Nothing was saved; --out FOLDER keeps the network.")
        else:
            write_json(folder.path / METRICS_FILE, scores)
            answer["saved"] = str(folder.path)
            _draw(trained, training, loaded, screen)
            _print_saved(folder.path, screen)
        screen.print_json(answer)
        return outcome.exit_code


def _print_scores(loaded: LoadedData, scores: dict[str, dict[str, Any]], screen: Screen) -> None:
    """Print the scores of each split, and those of the baseline."""
    titles, splits = SCORE_TITLES[loaded.prepared.task], loaded.prepared.splits
    lines = []
    for key, values in scores.items():
        split = loaded.report_split if key == "baseline" else key
        first_cell = loaded.baseline.title if key == "baseline" else key
        cells = (format_score(name, values[name]) for name in titles)
        lines.append([first_cell, str(len(splits[split].y)), *cells])
    screen.print_table(["", "rows", *titles.values()], lines)
    screen.print_notes([*undefined_scores(loaded, scores), *no_better_than_baseline(loaded, scores)])


def _draw(trained: Run, training: Training, loaded: LoadedData, screen: Screen) -> None:
    """Draw the pictures of a run that is saved already."""
    from mlp_xp.tables._pictures import save_pictures  # imports matplotlib: only if a run is saved

    rows = loaded.prepared.splits[loaded.report_split]
    for message in save_pictures(trained.path, trained, training, rows, _pictures_title(loaded)):
        screen.print_note(message)


def _pictures_title(loaded: LoadedData) -> str:
    """Return the title that names the rows shown."""
    split = loaded.report_split
    use = {"test": "held out for the test", "validation": "of the validation table"}.get(split, "trained on")
    return f"{loaded.name}: {len(loaded.prepared.splits[split].y)} rows {use}"


def _describe_run(
    options: argparse.Namespace, loaded: LoadedData, training: Training, chosen: Backend
) -> dict[str, Any]:
    """Return the part of `run.json` that is known before training."""
    return {
        "command": repeat_command(options, loaded),
        "data": {"name": loaded.name, "sha256": file_sha256(options.data), "rows": loaded.n_rows},
        "target": loaded.target_name,
        "task": loaded.prepared.task,
        "reason": loaded.target.reason,
        "columns": {kind: loaded.schema.names(kind) for kind in KINDS},
        "left_out": loaded.schema.left_out,
        "inputs": loaded.prepared.preprocessor.input_names,
        "sample_weight": options.sample_weight,
        "missing": loaded.missing,
        "rows_without_target": loaded.n_without_target,
        "rows": {split: len(rows.y) for split, rows in loaded.prepared.splits.items()},
        "watched": training.monitored,
        "baseline": to_plain(loaded.baseline),
        "machine": {
            "library": library_name(chosen.xp),
            "device": str(chosen.device),
            "dtype": options.dtype,
            "system": platform.platform(),
        },
        "versions": {
            "mlp_xp": __version__,
            **dict(map(_version, ("numpy", "scikit-learn", "polars"))),
        },
    }


def _version(package: str) -> tuple[str, str | None]:
    """Return a package's name and its version, None if it is not installed."""
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, None


def _describe_outcome(training: Training, outcome: Outcome) -> dict[str, Any]:
    """Return the part of `run.json` that is known after training."""
    networks = training.networks
    first = networks[0]
    return {
        "network": {
            "networks": len(networks),
            "layer_sizes": [first.coefs_[0].shape[0], *(weight.shape[1] for weight in first.coefs_)],
            "activation": first.activation,
            "solver": first.solver,
        },
        "engine": first.history_.engine,
        "epochs": max(network.n_iter_ for network in networks),
        "best_epochs": [best_epoch(network) for network in networks],
        "shrinkage": training.shrinkage,
        "seconds": round(outcome.seconds, 3),
        "ended": outcome.message,
        "exit_code": outcome.exit_code,
    }


def _print_saved(folder: Path, screen: Screen) -> None:
    """Print the files of a run's folder, and a command that predicts with it."""
    screen.print_saved(folder)
    words = ["mlp-xp", "predict", path_word(str(folder)), "new.csv", "--out", "predictions.csv"]
    screen.print_command("Predict new rows:", shlex.join(words))
