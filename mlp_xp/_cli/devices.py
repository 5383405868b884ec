"""``mlp-xp devices``: the array libraries and devices found on this machine.

It needs none of the packages that the other commands do, and says which of them are missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from mlp_xp._cli import missing_packages
from mlp_xp.backends import Found, backend, find_libraries


def run(options: argparse.Namespace) -> int:
    """List the libraries, print which one ``--backend auto`` takes, and what the other commands lack."""
    found, taken, missing = find_libraries(), backend("auto"), missing_packages()
    default = next(one for one in found if one.name == taken.xp.__name__.rpartition(".")[2])
    if options.json:
        libraries = [one._asdict() for one in found]
        document = {"auto": default.name, "reason": taken.reason, "libraries": libraries, "missing": missing}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif not options.quiet:
        _print_table(found)
        print(f"--backend auto takes {default.library} ({taken.reason}).")
        if missing:
            print(f"The other commands need {', '.join(missing)}: pip install 'mlp_xp[cli]'")
    return 0


def _print_table(found: Sequence[Found]) -> None:
    rows = [("backend", "library", "version", "devices")]
    for one in found:
        first, *more = one.devices or [f"none: {one.problem}"]
        rows += [(one.name, one.library, one.version or "-", first), *(("", "", "", other) for other in more)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
