"""Time that ``import mlp_xp`` takes beyond ``import numpy``, each in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from typing import Any

from benchmarks.timing import interleave

TARGET_MILLISECONDS = 50.0


STATEMENTS = ("import numpy", "import mlp_xp")


def measure(repeats: int) -> dict[str, Any]:
    """Return the median milliseconds of both processes, and their difference.

    Modules are loaded from bytecode, as those of an installed package are, whatever the environment says.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}

        def start(statement: str) -> None:
            subprocess.run([sys.executable, "-c", statement], check=True, env=environment)

        for statement in STATEMENTS:
            start(statement)
        timings = interleave({each: partial(start, each) for each in STATEMENTS}, repeats)
    return {
        "name": "import",
        "unit": "ms a process",
        "medians": {name: 1e3 * timings.median(name) for name in timings.seconds},
        "result": 1e3 * timings.difference("import mlp_xp", "import numpy"),
        "result_is": "added by mlp_xp, in ms",
        "target": TARGET_MILLISECONDS,
    }
