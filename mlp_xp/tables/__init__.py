"""Tables, and the trained runs that the command ``mlp-xp train --out`` writes.

`read_frame` and `write_frame` read and write tables, `find_columns` and `find_target` find out the types of
their columns, and `load_run` loads a trained run, which predicts and evaluates tables. It needs polars,
scikit-learn, skops and safetensors: ``pip install 'mlp_xp[cli]'``.
"""

from mlp_xp._functions import set_public_module as _set_public_module

try:
    from mlp_xp.tables._columns import Columns, Target, find_columns, find_target
    from mlp_xp.tables._reading import DataError, read_frame, write_frame
    from mlp_xp.tables._runs import Run, load_run
except ModuleNotFoundError as error:
    raise ImportError(f"mlp_xp.tables needs more packages ({error}): pip install 'mlp_xp[cli]'") from None

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

_set_public_module(__name__, globals(), __all__)
