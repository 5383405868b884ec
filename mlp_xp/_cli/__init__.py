"""The command ``mlp-xp``: from a table to a trained network, and on to predictions, from a terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from mlp_xp._cli.options import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, parse
from mlp_xp.backends import BackendUnavailableError

NEEDED = {"rich": "rich", "sklearn": "scikit-learn", "polars": "polars", "matplotlib": "matplotlib"}
NEEDED |= {"skops": "skops", "safetensors": "safetensors"}
"""What the commands stand on: modules, and the packages they come in."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    # Found, not imported: --help and a mistyped option should not wait for scikit-learn.
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(f"mlp-xp: {', '.join(missing)} not installed: pip install 'mlp_xp[cli]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        command = import_module(f"mlp_xp._cli.{options.command}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # commands say themselves what users should know
            code: int = command.run(options, given)
            sys.stdout.flush()
            return code
    except (ImportError, ValueError, BackendUnavailableError, OSError) as error:
        return _fail(error, EXIT_BAD_INPUT)
    except MemoryError as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt as error:
        error.args = ("interrupted",)
        return _fail(error, EXIT_INTERRUPTED)


def _fail(error: BaseException, code: int) -> int:
    """Say in one line what went wrong."""
    if isinstance(error, BrokenPipeError):
        # Who reads has seen enough; Python would complain once more when it closes stdout.
        sys.stdout = None
        return EXIT_FAILED
    message = " ".join(str(error).split()) or type(error).__name__
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    print(f"mlp-xp: {message}{notes}", file=sys.stderr)
    return code
