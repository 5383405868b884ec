"""``mlp-xp evaluate``: a trained network's scores on a table with the target."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlp_xp._cli.predict import load
from mlp_xp._cli.screen import Screen, figure
from mlp_xp.tables._pipelines import SCORES, baseline_name, task_of, typed
from mlp_xp.tables._reading import read_frame


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Score, and say so."""
    screen = Screen(options)
    trained = load(options)
    frame = read_frame(options.table)
    part = trained.part(frame)
    notes = trained.notes(frame, typed(trained.pipeline, frame))
    if left_out := len(frame) - len(part.y):
        notes.append(f"{left_out} rows without {trained.description['target']} left out")
    scores = {"network": trained.scores(part), "baseline": trained.baseline(part)}
    for note in notes:
        screen.note(note)
    task = task_of(trained.pipeline)
    trivial = baseline_name(trained.description["baseline"])
    screen.say(
        f"{Path(options.table).name}: {len(part.y)} rows, {trained.description['target']} by {options.run}"
    )
    screen.table(
        ["", *SCORES[task].values()],
        [
            [title, *(figure(name, scores[key][name]) for name in SCORES[task])]
            for title, key in (("network", "network"), (trivial, "baseline"))
        ],
    )
    screen.answer({"rows": len(part.y), "notes": notes, "scores": scores})
    return 0
