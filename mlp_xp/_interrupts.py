"""Deferral of Ctrl-C around work that must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """Context in which SIGTERM, which schedulers send, does what Ctrl-C does."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    terminated: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        terminated.append(number)
        signal.raise_signal(signal.SIGINT)

    def interrupt_if_terminated(number: int, frame: Any) -> None:
        if terminated:
            raise KeyboardInterrupt

    # Shells start what runs in the background with Ctrl-C ignored.
    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if is_ignored:
        signal.signal(signal.SIGINT, interrupt_if_terminated)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if is_ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class DeferredInterrupts:
    """The interrupts received in a context of `deferred_interrupts`.

    Attributes
    ----------
    received : list of int
        Their signals' numbers. A loop asks whether it is empty, which costs nothing.
    """

    def __init__(self, handler: Any, limit: int | None) -> None:
        self.handler = handler
        self.limit = limit
        self.received: list[int] = []

    def receive(self, number: int, frame: Any) -> None:
        """Handle a signal: remember it, or pass it on if the limit is exceeded."""
        self.received.append(number)
        if self.limit is not None and len(self.received) > self.limit:
            self.deliver()

    def deliver(self) -> None:
        """Pass the interrupts on to the handler that was there before, which raises `KeyboardInterrupt`."""
        if self.received:
            number = self.received[0]
            self.received.clear()
            self.handler(number, None)


@contextmanager
def deferred_interrupts(limit: int | None = None, *, deliver: bool = True) -> Iterator[DeferredInterrupts]:
    """Context in which Ctrl-C is deferred: `KeyboardInterrupt` is raised at its end.

    Parameters
    ----------
    limit : int, optional
        How many are deferred; the next one is raised at once, so that work that hangs can be ended.
    deliver : bool, default=True
        Raise at the end; if not, that is left to the caller.
    """
    handler = signal.getsignal(signal.SIGINT)
    deferred = DeferredInterrupts(handler, limit)
    # Only the main thread receives signals, and only a function handles them.
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield deferred
        return
    signal.signal(signal.SIGINT, deferred.receive)
    try:
        yield deferred
    finally:
        signal.signal(signal.SIGINT, handler)
    if deliver:
        deferred.deliver()
