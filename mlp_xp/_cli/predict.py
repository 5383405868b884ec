"""``mlp-xp predict``: from a trained network and new rows to predictions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mlp_xp._cli.screen import Screen
from mlp_xp.backends import backend
from mlp_xp.tables._pipelines import network_of, typed
from mlp_xp.tables._reading import DataError, check_writable, listed, read_frame, write_frame
from mlp_xp.tables._runs import Run, load_run


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Predict, and write what was predicted."""
    screen = Screen(options)
    if options.out is not None:
        check_writable(options.out, options.overwrite)
    trained = load(options)
    frame = read_frame(options.table)
    unknown = [name for name in options.keep if name not in frame.columns]
    if unknown:
        raise DataError(f"--keep: no column {listed(unknown)}; the columns are {listed(frame.columns)}")
    features = typed(trained.pipeline, frame)
    notes, predicted = trained.notes(frame, features), trained.predictions(features)
    both = sorted(set(options.keep) & set(predicted.columns))
    if both:
        raise DataError(f"--keep: the predictions have a column {listed(both)} too")
    answer = frame.select(options.keep).hstack(predicted) if options.keep else predicted
    for note in notes:
        screen.note(note)
    return _write(answer, notes, options, screen)


def load(options: argparse.Namespace) -> Run:
    """Read a run, and let it compute where it was asked to."""
    backend(options.backend)
    trained = load_run(options.run)
    network_of(trained.pipeline).set_params(backend=options.backend)
    return trained


def _write(answer: pl.DataFrame, notes: list[str], options: argparse.Namespace, screen: Screen) -> int:
    document = {"rows": len(answer), "notes": notes}
    if options.out is not None:
        write_frame(options.out, answer)
        screen.say(f"{len(answer)} predictions in {Path(options.out)}: {listed(answer.columns)}")
        screen.answer({**document, "saved": options.out})
    elif options.json:
        screen.answer({**document, "predictions": answer.to_dicts()})
    else:
        sys.stdout.write(answer.write_csv())
    return 0
