"""One multilayer perceptron for every array library.

Build a `Network`, draw parameters where your data live with `Network.init`, and `train` it: on the CPU
for NumPy arrays, on the GPU for CuPy arrays, and in the same way for PyTorch and JAX.

scikit-learn's estimators: `MLPClassifier`, `MLPRegressor` (need scikit-learn).
The network: `Network`, `Layer`; its parts: `Activation`, `leaky_relu`, `elu`, `Loss`, and for its first
weights `Initializer`, `normal`, `glorot_uniform`, `he_normal`, `zeros`.
Training: `train`, `Trained`, `evaluate`, `History`, `Callback`, `EarlyStopping`, `Checkpoint`, `ProgressBar`.
What may go wrong: `TrainingError`, `DivergenceError`, `OutOfMemoryError`, `TrainingInterruptedWarning`,
`CheckpointWarning`, `EagerFallbackWarning`.
Optimizers: `Optimizer`, `gradient_descent`, `momentum`, `adam`, `decoupled_weight_decay`.
Several processes: `data_parallel`, `Processes`, `ProcessError` (need mpi4py).
Learning rates: a number or a `Schedule`: `inverse_scaling`, `step_decay`, `cosine`.
Files: `save_model` (needs safetensors), `load_model`, `ModelFileError`, `trusted_types` (of files of skops).
Arrays: `to_host`, `one_hot`, `backend`, `BackendUnavailableError`.

Modules: `mlp_xp.backends` (array libraries and devices found here), `mlp_xp.datasets`, `mlp_xp.estimators`,
`mlp_xp.files` (models), `mlp_xp.plotting` (needs matplotlib), `mlp_xp.tables` (tables, and the runs that the
command ``mlp-xp`` keeps). What has an underscore is not public, and may move.
"""

import typing as _typing
from importlib.util import find_spec as _find_spec

from mlp_xp._activations import Activation, elu, leaky_relu
from mlp_xp._arrays import to_host
from mlp_xp._engines import EagerFallbackWarning
from mlp_xp._functions import set_public_module as _set_public_module
from mlp_xp._initializers import Initializer, glorot_uniform, he_normal, normal, zeros
from mlp_xp._losses import Loss
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, adam, decoupled_weight_decay, gradient_descent, momentum
from mlp_xp._parameters import Layer
from mlp_xp._processes import ProcessError, Processes, data_parallel
from mlp_xp._schedules import Schedule, cosine, inverse_scaling, step_decay
from mlp_xp._training.checkpoints import Checkpoint, CheckpointWarning
from mlp_xp._training.early_stopping import EarlyStopping
from mlp_xp._training.history import (
    Callback,
    DivergenceError,
    History,
    OutOfMemoryError,
    Trained,
    TrainingError,
    TrainingInterruptedWarning,
)
from mlp_xp._training.measure import evaluate
from mlp_xp._training.progress_bar import ProgressBar
from mlp_xp._training.train import train
from mlp_xp._version import __version__ as __version__
from mlp_xp.backends import BackendUnavailableError, backend
from mlp_xp.datasets import one_hot
from mlp_xp.files import ModelFileError, load_model, save_model, trusted_types

if _typing.TYPE_CHECKING:
    from mlp_xp.estimators import MLPClassifier as MLPClassifier
    from mlp_xp.estimators import MLPRegressor as MLPRegressor

_ESTIMATORS = ("MLPClassifier", "MLPRegressor")
"""Not in `__all__`, because ``from mlp_xp import *`` must not need scikit-learn."""

__all__ = [
    "Activation",
    "BackendUnavailableError",
    "Callback",
    "Checkpoint",
    "CheckpointWarning",
    "DivergenceError",
    "EagerFallbackWarning",
    "EarlyStopping",
    "History",
    "Initializer",
    "Layer",
    "Loss",
    "ModelFileError",
    "Network",
    "Optimizer",
    "OutOfMemoryError",
    "ProcessError",
    "Processes",
    "ProgressBar",
    "Schedule",
    "Trained",
    "TrainingError",
    "TrainingInterruptedWarning",
    "adam",
    "backend",
    "cosine",
    "data_parallel",
    "decoupled_weight_decay",
    "elu",
    "evaluate",
    "glorot_uniform",
    "gradient_descent",
    "he_normal",
    "inverse_scaling",
    "leaky_relu",
    "load_model",
    "momentum",
    "normal",
    "one_hot",
    "save_model",
    "step_decay",
    "to_host",
    "train",
    "trusted_types",
    "zeros",
]

_set_public_module(__name__, globals(), __all__)


def __getattr__(name: str) -> _typing.Any:
    """Import the estimators when they are asked for, because they need scikit-learn."""
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlp_xp import estimators

    return getattr(estimators, name)


def __dir__() -> list[str]:
    # `help` reads all that is listed here, and must not need scikit-learn.
    return sorted([*globals(), *(_ESTIMATORS if _find_spec("sklearn") else ())])
