"""Standard output and standard error of the command, for which the system may have no room."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from errno import EBADF
from os import strerror
from typing import Any, TextIO, cast


class OutputError(OSError):
    """Raised where standard output cannot be written; without it a full disk would not say which file."""


class _Output:
    """Standard output that raises an `OutputError`; again in `flush`, because argparse ignores errors.

    `stream` is None where the command was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        return self._attempt(lambda stream: stream.write(text))

    def flush(self) -> None:
        if self.error is not None:
            raise self.error
        if self._stream is not None:
            self._attempt(lambda stream: stream.flush())

    def _attempt(self, action: Callable[[TextIO], Any]) -> Any:
        """Call a function of the stream; keep its error."""
        try:
            if self._stream is None:
                raise OSError(EBADF, strerror(EBADF))
            return action(self._stream)
        except BrokenPipeError as error:
            self.error = error
            raise
        except OSError as error:
            self.error = OutputError(f"standard output cannot be written ({error.strerror or error})")
            raise self.error from error


class _ErrorOutput(_Output):
    """Standard error that drops what cannot be written: there is no other place to report that."""

    def flush(self) -> None:
        if self._stream is not None:
            self._attempt(lambda stream: stream.flush())

    def _attempt(self, action: Callable[[TextIO], Any]) -> Any:
        try:
            return super()._attempt(action)
        except OSError:
            return None


@contextmanager
def checked_streams() -> Iterator[Callable[[], None]]:
    """Raise an `OutputError` or BrokenPipeError where standard output cannot be written; yield its `flush`.

    Standard error raises nothing.
    """
    out, err = _Output(sys.stdout), _ErrorOutput(sys.stderr)
    try:
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
            yield out.flush
    finally:
        # At exit the interpreter would flush again what could not be written, and change the exit code.
        if out.error is not None:
            sys.stdout = None
        if err.error is not None:
            sys.stderr = None
