"""``mlp-xp train``: train, score and save a network on a table."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlp_xp._arrays import library_name
from mlp_xp._cli.fitting import (
    Outcome,
    SplitOutputs,
    describe_machine,
    describe_network,
    no_better_than_baseline,
    repeat_command,
    score_splits,
    split_outputs,
    train,
    undefined_scores,
    without_backend,
)
from mlp_xp._cli.loading import LoadedData, file_sha256, load_data, make_training, print_summary
from mlp_xp._cli.options import EXIT_INTERRUPTED, path_word
from mlp_xp._cli.partial import PartialFolder
from mlp_xp._cli.processes import Survivor, is_first
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp._disk.folders import NewFolder, write_json
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._processes import current_processes
from mlp_xp._version import __version__
from mlp_xp.backends import Backend, backend
from mlp_xp.tables._common import DataError
from mlp_xp.tables._networks import Training, best_epoch
from mlp_xp.tables._plain_values import to_plain
from mlp_xp.tables._runs import DESCRIPTION_FILE, METRICS_FILE, RUN_FILES, Run, write_run
from mlp_xp.tables._schema import KINDS
from mlp_xp.tables._scores import SCORE_TITLES


def run(options: argparse.Namespace) -> int:
    """Train a network, save it if a folder is given, and print its scores."""
    screen, processes = Screen(options), current_processes()
    if options.resume and options.out is None:
        raise DataError("--resume needs --out: it goes on with the training in FOLDER.partial")
    partial_folder = None if options.out is None else PartialFolder(options)
    folder = None
    if partial_folder is not None and is_first():
        folder = NewFolder(
            Path(options.out),
            overwrite=options.overwrite or partial_folder.replaces_run,
            mark=DESCRIPTION_FILE,
            contents=RUN_FILES,
            within=partial_folder.path,
        )
    with folder or nullcontext(), partial_folder or nullcontext():
        chosen = backend(options.backend)
        with screen.working(f"reading {options.data}"):
            loaded = load_data(options)
        hidden = None if options.hidden is None else tuple(options.hidden)
        training = make_training(options, loaded, hidden)
        estimator = training.estimator
        description = _describe_run(options, loaded, training, chosen) if is_first() else {}
        screen.print(describe_machine(chosen, options))
        print_summary(loaded, screen)
        screen.print_fields([("network", describe_network(training, loaded))])
        screen.print_notes(loaded.schema.notes)
        if partial_folder is not None:
            screen.print_notes(partial_folder.begin(loaded, chosen))
            training.fit_arguments = partial_folder.fit_arguments
        screen.print()
        outcome = train(training, screen)
        survivor = None
        with deferred_interrupts():
            description |= _describe_outcome(training, outcome)
            trained = Run(
                Path(options.out or ""), loaded.prepared.pipeline(estimator), loaded.baseline, description
            )
            if folder is not None:
                assert partial_folder is not None
                save = partial(_save, folder, partial_folder, trained, training)
                if processes is not None and outcome.exit_code == EXIT_INTERRUPTED and hasattr(os, "fork"):
                    survivor = Survivor(save, partial(_add_results, trained, training, loaded))
                else:
                    save()
        outputs = split_outputs(estimator, loaded)
        if survivor is not None:
            survivor.send(outputs)
        shown = None if options.out is None else _features_to_draw(trained, loaded)
        if outputs is None:  # the first process has them, and does the rest
            return outcome.exit_code
        scores = score_splits(estimator, loaded, outputs)
        _print_scores(loaded, scores, outputs, screen)
        (screen.print if outcome.exit_code == 0 else screen.print_error)(outcome.message)
        answer = {**description, "scores": scores}
        if folder is None or partial_folder is None:
            screen.print("Nothing was saved; --out FOLDER keeps the network.")
        else:
            if survivor is not None and not survivor.wait():
                raise OSError(f"{options.out}: the run could not be saved")
            answer["saved"] = str(folder.path)
            write_json(folder.path / METRICS_FILE, scores)
            screen.print_notes(_draw(trained, training, loaded, outputs, shown))
            _print_saved(folder.path, screen)
            if outcome.exit_code == 0:
                partial_folder.remove()
            elif outcome.exit_code == EXIT_INTERRUPTED:
                screen.print_command("Go on with the training:", f"{description['command']} --resume")
        screen.print_json(answer)
        return outcome.exit_code


def _save(folder: NewFolder, partial_folder: PartialFolder, trained: Run, training: Training) -> None:
    """Write the run's folder, but for scores and pictures."""
    with without_backend(training.estimator):
        write_run(folder.partial, trained, training.histories)
    partial_folder.may_replace_run()
    folder.finish()


def _features_to_draw(trained: Run, loaded: LoadedData) -> pl.DataFrame | None:
    """Return the features of the rows that pictures show, if there are two; None in other processes."""
    from mlp_xp.tables._pictures import two_features

    return two_features(trained.pipeline, loaded.prepared.splits[loaded.report_split])


def _draw(
    trained: Run,
    training: Training,
    loaded: LoadedData,
    outputs: SplitOutputs,
    features: pl.DataFrame | None,
) -> list[str]:
    """Draw the pictures of a run that is saved already; return what is said of those that failed."""
    from mlp_xp.tables._pictures import ShownRows, save_pictures  # imports matplotlib: only if a run is saved

    y, found = outputs[loaded.report_split]
    predicted = found if trained.classes is None else trained.classes[np.argmax(found, axis=1)]
    return save_pictures(trained.path, trained, training, ShownRows(y, predicted, features), _title(loaded))


def _add_results(trained: Run, training: Training, loaded: LoadedData, outputs: SplitOutputs) -> None:
    """Add scores and pictures to a run that is saved already, in a forked process."""
    scores = score_splits(training.estimator, loaded, outputs)
    write_json(trained.path / METRICS_FILE, scores)
    _draw(trained, training, loaded, outputs, None)


def _title(loaded: LoadedData) -> str:
    """Return the title of pictures, which names the rows shown."""
    split = loaded.report_split
    use = {"test": "held out for the test", "validation": "of the validation table"}.get(split, "trained on")
    return f"{loaded.name}: {loaded.prepared.splits[split].n_total} rows {use}"


def _print_scores(
    loaded: LoadedData, scores: dict[str, dict[str, Any]], outputs: SplitOutputs, screen: Screen
) -> None:
    """Print the scores of each split, and those of the baseline."""
    titles, splits = SCORE_TITLES[loaded.prepared.task], loaded.prepared.splits
    lines = []
    for key, values in scores.items():
        split = loaded.report_split if key == "baseline" else key
        first_cell = loaded.baseline.title if key == "baseline" else key
        cells = (format_score(name, values[name]) for name in titles)
        lines.append([first_cell, str(splits[split].n_total), *cells])
    screen.print_table(["", "rows", *titles.values()], lines)
    targets = {split: y for split, (y, _) in outputs.items()}
    screen.print_notes([*undefined_scores(loaded, scores, targets), *no_better_than_baseline(loaded, scores)])


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
        "rows": {split: rows.n_total for split, rows in loaded.prepared.splits.items()},
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
