"""How epochs of steps run: one way for each kind of array library, one result for all.

An engine is made once for a training and owns its state: parameters and optimizer state that no
caller sees until they are asked for. It runs epochs and says what each one's loss was; deciding
anything from that is the training's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from mlp_xp.arrays import Array, Namespace
from mlp_xp.network import Network
from mlp_xp.optimizers import Optimizer, OptimizerState
from mlp_xp.parameters import Parameters

State: TypeAlias = "tuple[Parameters, OptimizerState]"
"""What a step changes."""


class Batch(NamedTuple):
    """Samples in the parameters' namespace, device and dtype: a mini-batch, or all there are."""

    X: Array
    y: Array
    sample_weight: Array | None


Epoch: TypeAlias = "tuple[float, np.ndarray[Any, Any] | None]"
"""One pass over the data: its learning rate, and the order of its rows, None for as they are."""


Step: TypeAlias = Callable[
    [Parameters, OptimizerState, Array, Array, "Array | None", float],
    tuple[Parameters, OptimizerState, Array],
]


class Engine(Protocol):
    """What the training asks of a way to run epochs.

    Attributes
    ----------
    state : State
        The state after the last step begun; assigning one goes back to it.
    losses : list of array
        One is appended for each epoch that is finished: the mean of its steps' objectives, weighted by
        their rows, an array of shape () on the device. The training empties it.
    """

    state: State
    losses: list[Array]

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs, the whole batch or mini-batches in each."""


def make_step(network: Network, optimizer: Optimizer, xp: Namespace) -> Step:
    """Return the function that updates the parameters once.

    It returns the new parameters, the new optimizer state and the objective before the update. It
    never waits for the device, and ``jax.jit`` can compile it as it is.
    """
    objective_and_gradients, update = network.make_objective(xp), optimizer.update

    def step(
        params: Parameters,
        optimizer_state: OptimizerState,
        X: Array,
        y: Array,
        sample_weight: Array | None,
        learning_rate: float,
    ) -> tuple[Parameters, OptimizerState, Array]:
        loss, gradients = objective_and_gradients(params, X, y, sample_weight)
        params, optimizer_state = update(xp, params, gradients, optimizer_state, learning_rate)
        return params, optimizer_state, loss

    return step


def make_engine(
    network: Network, optimizer: Optimizer, xp: Namespace, state: State, data: Batch, batch_size: int
) -> Engine:
    """Make the engine for this namespace. It takes `state` over, and never writes in `data`."""
    from mlp_xp.engines.eager import EagerEngine

    return EagerEngine(network, optimizer, xp, state, data, batch_size)
