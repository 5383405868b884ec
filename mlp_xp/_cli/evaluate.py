"""``mlp-xp evaluate``: a trained network's scores on a table with the target."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlp_xp._cli.predict import load
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp.tables._pipelines import SCORE_TITLES, baseline_name, task_of
from mlp_xp.tables._reading import read_frame
from mlp_xp.tables._runs import (
    overflow_notes,
    run_outputs,
    run_rows,
    score_baseline,
    score_rows,
    table_notes,
)


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Print the scores of a run on a table, beside those of the baseline."""
    screen = Screen(options)
    trained = load(options)
    frame = read_frame(options.table)
    rows = run_rows(trained, frame)
    notes = table_notes(trained, frame, rows.frame)
    if left_out := len(frame) - len(rows.y):
        notes.append(f"{left_out} rows without {trained.description['target']} left out")
    outputs = run_outputs(trained, rows.frame)
    notes += overflow_notes(outputs)
    scores = {"network": score_rows(trained, rows, outputs), "baseline": score_baseline(trained, rows)}
    for note in notes:
        screen.print_note(note)
    task = task_of(trained.pipeline)
    baseline_title = baseline_name(trained.description["baseline"])
    screen.print(
        f"{Path(options.table).name}: {len(rows.y)} rows, {trained.description['target']} by {options.run}"
    )
    screen.print_table(
        ["", *SCORE_TITLES[task].values()],
        [
            [title, *(format_score(name, scores[key][name]) for name in SCORE_TITLES[task])]
            for title, key in (("network", "network"), (baseline_title, "baseline"))
        ],
    )
    screen.print_json({"rows": len(rows.y), "notes": notes, "scores": scores})
    return 0
