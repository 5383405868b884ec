"""``mlp-xp predict``: predict the rows of a table with a trained network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mlp_xp._cli.screen import Screen
from mlp_xp.backends import backend
from mlp_xp.tables._pipelines import estimator_of, select_features
from mlp_xp.tables._reading import DataError, check_writable, listed, read_frame, write_frame
from mlp_xp.tables._runs import Run, as_predictions, load_run, overflow_notes, run_outputs, table_notes


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Predict the rows of a table, and write the predictions to a file or stdout."""
    screen = Screen(options)
    if options.out is not None:
        check_writable(options.out, options.overwrite)
    trained = load(options)
    frame = read_frame(options.table)
    unknown = [name for name in options.keep if name not in frame.columns]
    if unknown:
        raise DataError(f"--keep: no column {listed(unknown)}; the columns are {listed(frame.columns)}")
    features = select_features(trained.pipeline, frame)
    outputs = run_outputs(trained, features)
    notes, predictions = table_notes(trained, frame, features), as_predictions(trained, outputs)
    notes += overflow_notes(outputs)
    both = sorted(set(options.keep) & set(predictions.columns))
    if both:
        raise DataError(f"--keep: the predictions have a column {listed(both)} too")
    if options.keep:
        predictions = frame.select(options.keep).hstack(predictions)
    for note in notes:
        screen.print_note(note)
    return _write(predictions, notes, options, screen)


def load(options: argparse.Namespace) -> Run:
    """Load a run, and set its estimator to the chosen backend."""
    backend(options.backend)  # raises if it is not available, before the run is read
    trained = load_run(options.run)
    estimator_of(trained.pipeline).set_params(backend=options.backend)
    return trained


def _write(predictions: pl.DataFrame, notes: list[str], options: argparse.Namespace, screen: Screen) -> int:
    """Write the predictions to the file given, or to stdout as JSON or CSV."""
    document = {"rows": len(predictions), "notes": notes}
    if options.out is not None:
        write_frame(options.out, predictions)
        screen.print(f"{len(predictions)} predictions in {Path(options.out)}: {listed(predictions.columns)}")
        screen.print_json({**document, "saved": options.out})
    elif options.json:
        screen.print_json({**document, "predictions": predictions.to_dicts()})
    else:
        sys.stdout.write(predictions.write_csv())
    return 0
