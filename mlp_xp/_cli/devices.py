"""``mlp-xp devices``: the array libraries and devices found on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mlp_xp._cli.screen import Screen
from mlp_xp.backends import backend, find_libraries


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """List the libraries, and print which one ``--backend auto`` takes."""
    screen = Screen(options)
    found, taken = find_libraries(), backend("auto")
    screen.print_table(
        ["backend", "library", "version", "devices"],
        [
            [one.name, one.library, one.version or "-", "\n".join(one.devices) or f"none: {one.problem}"]
            for one in found
        ],
        justify="left",
    )
    default = next(one for one in found if one.name == taken.xp.__name__.rpartition(".")[2])
    screen.print(f"--backend auto takes {default.library} ({taken.reason}).")
    screen.print_json(
        {"auto": default.name, "reason": taken.reason, "libraries": [one._asdict() for one in found]}
    )
    return 0
