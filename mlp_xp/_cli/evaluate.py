"""``mlp-xp evaluate``: a trained network's scores on a table with the target."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from mlp_xp._cli.predict import load
from mlp_xp._cli.screen import Screen, format_score
from mlp_xp.tables._parts import total
from mlp_xp.tables._reading import read_part
from mlp_xp.tables._runs import run_rows, score_baseline, score_rows, table_notes
from mlp_xp.tables._scores import SCORE_TITLES, why_undefined


def run(options: argparse.Namespace) -> int:
    """Print the scores of a run on a table, beside those of the baseline."""
    screen = Screen(options)
    trained = load(options)
    with screen.working(f"reading {options.table}"):
        frame = read_part(options.table, options.encoding).frame
        rows = run_rows(trained, frame)
    notes = table_notes(trained, frame, rows.frame)
    if left_out := total("rows left out", len(frame)) - rows.n_total:
        notes.append(f"{left_out} rows without {trained.target} left out")
    outputs = trained.pipeline.checked_outputs(rows.frame, together=True)
    scores = {"network": score_rows(trained, rows, outputs), "baseline": score_baseline(trained, rows)}
    explain = partial(why_undefined, scores["network"], classes=trained.classes)
    if reason := rows.compute("undefined scores", explain, rows.y):
        notes.append(reason)
    screen.print_notes(notes)
    task = trained.pipeline.task
    baseline_title = trained.baseline.title
    screen.print(f"{Path(options.table).name}: {rows.n_total} rows, {trained.target} by {options.run}")
    screen.print_table(
        ["", *SCORE_TITLES[task].values()],
        [
            [title, *(format_score(name, scores[key][name]) for name in SCORE_TITLES[task])]
            for title, key in (("network", "network"), (baseline_title, "baseline"))
        ],
    )
    screen.print_json({"rows": rows.n_total, "notes": notes, "scores": scores})
    return 0
