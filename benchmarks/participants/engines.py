"""The engine that a training of ours ran on, and the warning about a fallback to a slower one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from mlp_xp import EagerFallbackWarning

EXPECTED_WARNING = "Maximum iterations"
"""Start of the warning that `max_iter` was reached, as it is in every benchmark."""


class Done(NamedTuple):
    """The result of a function, and its warning about a fallback to a slower engine, or ""."""

    result: Any
    why: str


def catch_fallback(function: Callable[[], Any]) -> Done:
    """Call a function; return its fallback warning with the result, and issue other warnings as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    why = ""
    for warning in caught:
        message = str(warning.message)
        if issubclass(warning.category, EagerFallbackWarning):
            why = why or message
        elif EXPECTED_WARNING not in message:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return Done(result, why)


def engine_of(history: Any) -> str:
    """Return the engine that a history names; "" if it names none."""
    return str(getattr(history, "engine", "") or "")
