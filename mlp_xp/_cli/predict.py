"""``mlp-xp predict``: predict the rows of a table with a trained network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import polars as pl

from mlp_xp._cli.screen import Screen
from mlp_xp.backends import backend
from mlp_xp.tables._common import DataError, listed, printable
from mlp_xp.tables._parts import parts_in_order, total
from mlp_xp.tables._reading import check_writable, read_part, write_frames
from mlp_xp.tables._runs import Run, as_predictions, load_run, table_notes


def run(options: argparse.Namespace) -> int:
    """Predict the rows of a table, and write the predictions to a file or stdout."""
    screen = Screen(options)
    if options.out is not None:
        check_writable(options.out, options.overwrite)
        if Path(options.out).resolve() == Path(options.table).resolve():
            raise DataError(f"{options.out}: the table to predict cannot be replaced by its predictions")
    trained = load(options)
    with screen.working(f"reading {options.table}"):
        frame = read_part(options.table, options.encoding).frame
    unknown = [name for name in options.keep if name not in frame.columns]
    if unknown:
        raise DataError(f"--keep: no column {listed(unknown)}; the columns are {listed(frame.columns)}")
    features = trained.pipeline.read(frame, together=True)
    outputs = trained.pipeline.checked_outputs(features, together=True)
    notes, predictions = table_notes(trained, frame, features), as_predictions(trained, outputs)
    both = sorted(set(options.keep) & set(predictions.columns))
    if both:
        raise DataError(f"--keep: the predictions have a column {listed(both)} too")
    if options.keep:
        predictions = frame.select(options.keep).hstack(predictions)
    screen.print_notes(notes)
    return _write(predictions, notes, options, screen)


def load(options: argparse.Namespace) -> Run:
    """Load a run, and set its estimator to the chosen backend."""
    backend(options.backend)  # raises if it is not available, before the run is read
    trained = load_run(options.run)
    trained.pipeline.estimator.set_params(backend=options.backend)
    return trained


def _write(predictions: pl.DataFrame, notes: list[str], options: argparse.Namespace, screen: Screen) -> int:
    """Write the predictions to the file given, or to stdout as JSON or CSV."""
    parts, n_rows = parts_in_order(predictions), total("predictions", len(predictions))
    document = {"rows": n_rows, "notes": notes}
    if options.out is not None:
        write_frames(options.out, parts)
        screen.print(f"{n_rows} predictions in {Path(options.out)}: {listed(predictions.columns)}")
        screen.print_json({**document, "saved": options.out})
    elif options.json:
        screen.print_json({**document, "predictions": [row for part in parts for row in part.to_dicts()]})
    else:
        for index, part in enumerate(parts):
            text = part.write_csv(include_header=index == 0)
            sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    return 0
