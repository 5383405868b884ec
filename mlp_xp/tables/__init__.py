"""Tables, and the trained runs that the command ``mlp-xp train --out`` writes.

They need polars, and runs scikit-learn, skops and safetensors too: ``pip install 'mlp_xp[cli]'``.
"""

import typing as _typing

from mlp_xp._functions import set_public_module as _set_public_module

try:
    from mlp_xp.tables._columns import Columns, Target, find_columns, find_target
    from mlp_xp.tables._reading import DataError, read_frame, write_frame
except ModuleNotFoundError as error:
    raise ImportError(f"mlp_xp.tables needs more packages ({error}): pip install 'mlp_xp[cli]'") from None

if _typing.TYPE_CHECKING:
    from mlp_xp.tables._runs import Run as Run
    from mlp_xp.tables._runs import load_run as load_run

_RUNS = ("Run", "load_run")

__all__ = [
    "Columns",
    "DataError",
    "Run",
    "Target",
    "find_columns",
    "find_target",
    "load_run",
    "read_frame",
    "write_frame",
]

_set_public_module(__name__, globals(), set(__all__).difference(_RUNS))


def __getattr__(name: str) -> _typing.Any:
    """Import runs when they are asked for: they import scikit-learn, which takes a second."""
    if name not in _RUNS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from mlp_xp.tables import _runs
    except ImportError as error:
        raise ImportError(f"{name} needs more packages ({error}): pip install 'mlp_xp[cli]'") from None
    return getattr(_runs, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_RUNS])
