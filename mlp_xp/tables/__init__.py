"""Tables, and the trained runs that the command ``mlp-xp train --out`` writes.

They need polars, and runs scikit-learn and safetensors too: ``pip install 'mlp_xp[cli]'``.
"""

import typing as _typing
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec

from mlp_xp._functions import set_public_module as _set_public_module
from mlp_xp._messages import package_needed as _package_needed

with _package_needed("mlp_xp.tables", "polars", "cli"):
    from mlp_xp.tables._common import DataError
    from mlp_xp.tables._formats import DateFormat, NumberFormat
    from mlp_xp.tables._learning import learn_schema
    from mlp_xp.tables._reading import read_frame, write_frame
    from mlp_xp.tables._schema import ColumnSchema, Schema

if _typing.TYPE_CHECKING:
    from mlp_xp.tables._runs import Run as Run
    from mlp_xp.tables._runs import load_run as load_run
    from mlp_xp.tables._tabular import TabularClassifier as TabularClassifier
    from mlp_xp.tables._tabular import TabularRegressor as TabularRegressor

_MODULES = {
    "Run": "_runs",
    "load_run": "_runs",
    "TabularClassifier": "_tabular",
    "TabularRegressor": "_tabular",
}
"""Modules of names that are imported when asked for: they import scikit-learn, which takes a second."""

__all__ = [
    "ColumnSchema",
    "DataError",
    "DateFormat",
    "NumberFormat",
    "Run",
    "Schema",
    "TabularClassifier",
    "TabularRegressor",
    "learn_schema",
    "load_run",
    "read_frame",
    "write_frame",
]

_set_public_module(__name__, globals(), set(__all__).difference(_MODULES))


def __getattr__(name: str) -> _typing.Any:
    """Import what needs scikit-learn when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _package_needed(name, "scikit-learn", "cli"):
        return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *(_MODULES if _find_spec("sklearn") else ())])
