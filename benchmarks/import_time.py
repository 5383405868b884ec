"""Time that ``import mlp_xp`` takes beyond ``import numpy``, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.timing import interleave

TARGET_MILLISECONDS = 50.0


def _start(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], check=True)


def measure(repeats: int) -> dict[str, Any]:
    """Return the median milliseconds of both processes, and their difference."""
    timings = interleave(
        {
            "import numpy": lambda: _start("import numpy"),
            "import mlp_xp": lambda: _start("import mlp_xp"),
        },
        repeats,
    )
    return {
        "name": "import",
        "unit": "ms a process",
        "medians": {name: 1e3 * timings.median(name) for name in timings.seconds},
        "result": 1e3 * timings.difference("import mlp_xp", "import numpy"),
        "result_is": "added by mlp_xp, in ms",
        "target": TARGET_MILLISECONDS,
    }
