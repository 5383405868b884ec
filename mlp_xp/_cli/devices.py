"""``mlp-xp devices``: which array libraries and devices there are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mlp_xp._cli.screen import Screen
from mlp_xp.backends import backend, find_libraries


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """List them, and say what is taken where nothing is asked for."""
    screen = Screen(options)
    found, taken = find_libraries(), backend("auto")
    screen.table(
        ["backend", "library", "version", "devices"],
        [
            [one.name, one.library, one.version or "-", "\n".join(one.devices) or f"none: {one.problem}"]
            for one in found
        ],
        justify="left",
    )
    default = next(one for one in found if one.name == taken.xp.__name__.rpartition(".")[2])
    screen.say(f"--backend auto takes {default.library} ({taken.reason}).")
    screen.answer(
        {"auto": default.name, "reason": taken.reason, "libraries": [one._asdict() for one in found]}
    )
    return 0
