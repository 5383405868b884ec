"""One multilayer perceptron for every array library.

Build a `Network`, draw parameters where your data live with `Network.init`, and `train` it: on the CPU
for NumPy arrays, on the GPU for CuPy arrays, and in the same way for PyTorch and JAX.

The network: `Network`, `Layer`; its parts: `Activation`, `leaky_relu`, `elu`, `Loss`, `normal`.
Training: `train`, `evaluate`, `History`, `EarlyStopping`, `TrainingError`, `DivergenceError`,
`TrainingInterruptedWarning`.
Optimizers: `Optimizer`, `gradient_descent`, `momentum`, `adam`.
Learning rates: a number, `inverse_scaling`, `step_decay`, `cosine`.
Arrays: `to_host`, `one_hot`; data sets are in `mlp_xp.datasets`.
"""

from mlp_xp.activations import Activation, elu, leaky_relu
from mlp_xp.arrays import to_host
from mlp_xp.datasets import one_hot
from mlp_xp.initializers import normal
from mlp_xp.losses import Loss
from mlp_xp.network import Network
from mlp_xp.optimizers import Optimizer, adam, gradient_descent, momentum
from mlp_xp.parameters import Layer
from mlp_xp.schedules import cosine, inverse_scaling, step_decay
from mlp_xp.training import (
    DivergenceError,
    EarlyStopping,
    History,
    TrainingError,
    TrainingInterruptedWarning,
    evaluate,
    train,
)

__all__ = [
    "Activation",
    "DivergenceError",
    "EarlyStopping",
    "History",
    "Layer",
    "Loss",
    "Network",
    "Optimizer",
    "TrainingError",
    "TrainingInterruptedWarning",
    "adam",
    "cosine",
    "elu",
    "evaluate",
    "gradient_descent",
    "inverse_scaling",
    "leaky_relu",
    "momentum",
    "normal",
    "one_hot",
    "step_decay",
    "to_host",
    "train",
]
__version__ = "0.1.0"
