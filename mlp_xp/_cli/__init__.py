"""The command ``mlp-xp``: train networks on tables, evaluate them and predict, from a terminal."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mlp_xp._cli.options import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, parse
from mlp_xp._cli.processes import is_first_started, processes_started
from mlp_xp._cli.streams import checked_streams
from mlp_xp._interrupts import terminations_as_interrupts
from mlp_xp._processes import ProcessError, Processes, reporter_of
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
            with processes_started() as processes:
                return _guarded(argv, flush, processes)
        except ImportError as error:
            return _fail(error, EXIT_BAD_INPUT) if is_first_started() else EXIT_BAD_INPUT
        except ProcessError:  # another process has failed, and says so
            return EXIT_FAILED


def _guarded(argv: list[str], flush: Callable[[], None], processes: Processes | None) -> int:
    """Run the command; return its exit code, after the message of an error."""
    try:
        try:
            return _run(argv, processes)
        finally:
            flush()
    except BrokenPipeError:  # the reader of the pipe has gone, as in `mlp-xp ... | head`
        return EXIT_FAILED
    except (ImportError, ValueError, BackendUnavailableError, OSError) as error:
        return _fail(error, EXIT_BAD_INPUT, processes)
    except (MemoryError, ProcessError) as error:
        return _fail(error, EXIT_FAILED, processes)
    except KeyboardInterrupt as error:
        error.args = ("interrupted",)
        return _fail(error, EXIT_INTERRUPTED, processes)


def _run(argv: list[str], processes: Processes | None) -> int:
    """Run the command; return its exit code, or raise an error."""
    if processes is None:
        return _run_command(parse(argv))
    with _silence() if processes.rank else nullcontext():
        options = parse(argv)
        if processes.rank:
            vars(options).update(quiet=True, json=False)
        with processes.together(f"mlp-xp {options.command}"):
            return _run_command(options)


@contextmanager
def _silence() -> Iterator[None]:
    """Context in which nothing is printed."""
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def _run_command(options: argparse.Namespace) -> int:
    missing = missing_packages()
    if missing and options.command != "devices":
        print(f"mlp-xp: {', '.join(missing)} not installed: pip install 'mlp_xp[cli]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    command = import_module(f"mlp_xp._cli.{options.command}")
    with warnings.catch_warnings(), terminations_as_interrupts():
        warnings.simplefilter("ignore")  # commands print the warnings that concern users themselves
        code: int = command.run(options)
        return code


def _fail(error: BaseException, code: int, processes: Processes | None = None) -> int:
    """Print an error in one line, of several processes only one of them; return the exit code."""
    if processes is not None and reporter_of(error) != processes.rank:
        return code
    message = " ".join(str(error).split()) or type(error).__name__
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    print(f"mlp-xp: {message}{notes}", file=sys.stderr)
    return code
