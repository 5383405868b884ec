"""Which engine a training of ours ran on, and what was warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from mlp_xp import EagerFallbackWarning

EXPECTED = "Maximum iterations"
"""How the warning begins that `max_iter` ended a training, as it is to."""


class Done(NamedTuple):
    """What a function returned, and why it ran on a slower engine, if it warned of that."""

    result: Any
    why: str


def watched(function: Callable[[], Any]) -> Done:
    """Call a function and keep the warning of a slower engine; other warnings are shown as ever."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    why = ""
    for warning in caught:
        message = str(warning.message)
        if issubclass(warning.category, EagerFallbackWarning):
            why = why or message
        elif EXPECTED not in message:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return Done(result, why)


def engine_of(history: Any) -> str:
    """Return the engine that a history names; "" where it names none."""
    return str(getattr(history, "engine", "") or "")
