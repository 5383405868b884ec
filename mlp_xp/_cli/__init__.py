"""The command ``mlp-xp``: train networks on tables, evaluate them and predict, from a terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from mlp_xp._cli.options import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, parse
from mlp_xp._cli.streams import checked_streams
from mlp_xp.backends import BackendUnavailableError

REQUIRED_PACKAGES = {
    "rich": "rich",
    "sklearn": "scikit-learn",
    "polars": "polars",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
}
"""Packages that all commands but ``devices`` need, by the module they are imported as."""


def missing_packages() -> list[str]:
    """Return which of `REQUIRED_PACKAGES` are not installed.

    They are looked up, not imported: ``--help`` and a mistyped option need not wait for scikit-learn.
    """
    return [package for module, package in REQUIRED_PACKAGES.items() if find_spec(module) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    with checked_streams() as flush:
        try:
            try:
                return _run(argv)
            finally:
                flush()
        except BrokenPipeError:  # the reader of the pipe has gone, as in `mlp-xp ... | head`
            return EXIT_FAILED
        except (ImportError, ValueError, BackendUnavailableError, OSError) as error:
            return _fail(error, EXIT_BAD_INPUT)
        except MemoryError as error:
            return _fail(error, EXIT_FAILED)
        except KeyboardInterrupt as error:
            error.args = ("interrupted",)
            return _fail(error, EXIT_INTERRUPTED)


def _run(argv: list[str]) -> int:
    """Run the command; return its exit code, or raise an error."""
    options = parse(argv)
    missing = missing_packages()
    if missing and options.command != "devices":
        print(f"mlp-xp: {', '.join(missing)} not installed: pip install 'mlp_xp[cli]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    command = import_module(f"mlp_xp._cli.{options.command}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # commands print the warnings that concern users themselves
        code: int = command.run(options)
        return code


def _fail(error: BaseException, code: int) -> int:
    """Print an error in one line; return the exit code."""
    message = " ".join(str(error).split()) or type(error).__name__
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    print(f"mlp-xp: {message}{notes}", file=sys.stderr)
    return code
