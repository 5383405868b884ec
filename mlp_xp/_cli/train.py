"""``mlp-xp train``: train, score and save a network on a table."""

from __future__ import annotations

import argparse
import platform
import shlex
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from mlp_xp._cli.options import EXIT_INTERRUPTED, path_word
from mlp_xp._cli.processes import Survivor, is_first
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._processes import current_processes
from mlp_xp._version import __version__
from mlp_xp.backends import Backend, backend
from mlp_xp.files._folders import NewFolder, write_json
from mlp_xp.tables._networks import Training, best_epoch
from mlp_xp.tables._plain_values import to_plain
from mlp_xp.tables._runs import DESCRIPTION_FILE, METRICS_FILE, RUN_FILES, Run, write_run
from mlp_xp.tables._schema import KINDS
from mlp_xp.tables._scores import SCORE_TITLES

if TYPE_CHECKING:
    from mlp_xp.tables._pictures import ShownRows


def run(options: argparse.Namespace) -> int:
    """Train a network, save it if a folder is given, and print its scores."""
    screen, processes = Screen(options), current_processes()
    folder = None
    if options.out is not None and is_first():
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
        description = _describe_run(options, loaded, training, chosen) if is_first() else {}
        screen.print(describe_machine(chosen, options))
        print_summary(loaded, screen)
        screen.print_fields([("network", describe_network(training, loaded))])
        screen.print_notes(loaded.schema.notes)
        screen.print()
        outcome = train(training, screen)
        survivor = None
        with deferred_interrupts():
            description |= _describe_outcome(training, outcome)
            trained = Run(
                Path(options.out or ""), loaded.prepared.pipeline(estimator), loaded.baseline, description
            )
            if folder is not None:
                save = partial(_save, folder, trained, training)
                if processes is not None and outcome.exit_code == EXIT_INTERRUPTED:
                    survivor = Survivor(save, partial(_add_results, trained, training, _title(loaded)))
                else:
                    save()
        scores = score_splits(estimator, loaded)
        shown = _shown_rows(trained, loaded) if options.out is not None else None
        if survivor is not None:
            survivor.send((scores, shown))
        _print_scores(loaded, scores, screen)
        (screen.print if outcome.exit_code == 0 else screen.print_error)(outcome.message)
        answer = {**description, "scores": scores}
        if options.out is None:
            screen.print("Nothing was saved; --out FOLDER keeps the network.")
        elif shown is not None:
            answer["saved"] = options.out
            screen.print_notes(_finish(survivor, trained, training, _title(loaded), (scores, shown)))
            _print_saved(trained.path, screen)
        screen.print_json(answer)
        return outcome.exit_code


def _save(folder: NewFolder, trained: Run, training: Training) -> None:
    """Write the run's folder, but for scores and pictures."""
    with without_backend(training.estimator):
        write_run(folder.partial, trained, training.histories)
    folder.finish()


def _shown_rows(trained: Run, loaded: LoadedData) -> ShownRows | None:
    """Return what pictures show; None if another process draws them."""
    from mlp_xp.tables._pictures import shown_rows  # imports matplotlib: only if a run is saved

    return shown_rows(trained, loaded.prepared.splits[loaded.report_split])


def _finish(
    survivor: Survivor | None,
    trained: Run,
    training: Training,
    title: str,
    results: tuple[dict[str, Any], ShownRows],
) -> list[str]:
    """Add scores and pictures to a run that is saved already; return what is said of pictures that failed."""
    if survivor is not None and not survivor.wait():
        raise OSError(f"{trained.path}: the run could not be saved")
    return _add_results(trained, training, title, results, is_forked=False)


def _add_results(
    trained: Run,
    training: Training,
    title: str,
    results: tuple[dict[str, Any], ShownRows],
    is_forked: bool = True,
) -> list[str]:
    from mlp_xp.tables._pictures import save_pictures

    scores, shown = results
    write_json(trained.path / METRICS_FILE, scores)
    return save_pictures(trained.path, trained, training, shown, title, is_forked=is_forked)


def _title(loaded: LoadedData) -> str:
    """Return the title of pictures, which names the rows shown."""
    split = loaded.report_split
    use = {"test": "held out for the test", "validation": "of the validation table"}.get(split, "trained on")
    return f"{loaded.name}: {loaded.prepared.splits[split].n_total} rows {use}"


def _print_scores(loaded: LoadedData, scores: dict[str, dict[str, Any]], screen: Screen) -> None:
    """Print the scores of each split, and those of the baseline."""
    titles, splits = SCORE_TITLES[loaded.prepared.task], loaded.prepared.splits
    lines = []
    for key, values in scores.items():
        split = loaded.report_split if key == "baseline" else key
        first_cell = loaded.baseline.title if key == "baseline" else key
        cells = (format_score(name, values[name]) for name in titles)
        lines.append([first_cell, str(splits[split].n_total), *cells])
    screen.print_table(["", "rows", *titles.values()], lines)
    screen.print_notes([*undefined_scores(loaded, scores), *no_better_than_baseline(loaded, scores)])


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
