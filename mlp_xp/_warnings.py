"""Warnings that name the line of the user's code."""

from __future__ import annotations

import sys
import warnings

_INTERNAL = {"mlp_xp", "sklearn", "joblib", "contextlib"}
"""Packages whose frames stand between the user's line and the warning."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line that is in none of the packages `_INTERNAL`."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
