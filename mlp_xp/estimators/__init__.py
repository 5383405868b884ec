"""scikit-learn's estimators around the network and its training: `MLPClassifier` and `MLPRegressor`."""

import typing
from importlib.util import find_spec as _find_spec

from mlp_xp._messages import package_needed as _package_needed

if typing.TYPE_CHECKING:
    from mlp_xp.estimators._mlp import MLPClassifier as MLPClassifier
    from mlp_xp.estimators._mlp import MLPRegressor as MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]


def __getattr__(name: str) -> typing.Any:
    """Import the estimators when they are asked for, because they need scikit-learn."""
    if name not in (*__all__, "_Labels"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _package_needed(name, "scikit-learn 1.9 or later", "sklearn"):
        from mlp_xp.estimators import _mlp
    return getattr(_mlp, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *(__all__ if _find_spec("sklearn") else ())])
