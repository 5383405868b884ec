"""How epochs of steps run: one way for each kind of array library, one result for all.

An engine is made once for a training and owns its state: parameters and optimizer state that no
caller sees until they are asked for. It runs epochs and says what each one's loss was; deciding
anything from that is the training's business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from mlp_xp._arrays import Array, Namespace, is_jax, is_on_cuda
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, OptimizerState
from mlp_xp._parameters import Parameters
from mlp_xp._samples import Rows, Samples

State: TypeAlias = "tuple[Parameters, OptimizerState]"
"""What a step changes."""


Epoch: TypeAlias = "tuple[float, Rows | None]"
"""One pass over the samples: its learning rate, and their order, None for as they are."""


Step: TypeAlias = Callable[
    [Parameters, OptimizerState, Array, Array, "Array | None", float],
    tuple[Parameters, OptimizerState, Array],
]


class EagerFallbackWarning(RuntimeWarning):
    """A training runs call by call, which is slower, where it should run as captured CUDA graphs.

    Examples
    --------
    A script that measures had better stop than measure the wrong thing:

    >>> import warnings
    >>> from mlp_xp import EagerFallbackWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", EagerFallbackWarning)
    ...     # train here
    """


class Engine(Protocol):
    """What the training asks of a way to run epochs.

    Attributes
    ----------
    state : State
        The state after the last step begun, in arrays that the engine writes in; assigning one, which
        is copied, goes back to it.
    losses : list of array
        One is appended for each epoch that is finished: the mean of its steps' objectives, weighted by
        their rows, an array of shape () on the device. The training empties it.
    """

    state: State
    losses: list[Array]

    @property
    def name(self) -> str:
        """How the epochs so far ran: "eager", "compiled", "xla" or "cuda_graph"."""

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs, the whole batch or mini-batches in each."""

    def is_finite(self) -> bool:
        """Whether all of the state is finite."""

    def copied_state(self) -> State:
        """Return the state in arrays that the engine never writes in."""


def make_step(network: Network, optimizer: Optimizer, xp: Namespace) -> Step:
    """Return the function that updates the parameters once.

    It returns the new parameters, the new optimizer state and the objective before the update. It
    never waits for the device, and ``jax.jit`` can compile it as it is.
    """
    objective_and_gradients, update = network._make_objective(xp), optimizer.update

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
    network: Network,
    optimizer: Optimizer,
    samples: Samples,
    batch_size: int,
    state: State,
    epochs: int = sys.maxsize,
) -> Engine:
    """Make the engine for the samples' namespace. It copies `state`, and never writes in the samples.

    `epochs` is how many there will be at most: what only pays in a long training is left out of a short one.
    """
    from mlp_xp._engines.eager import EagerEngine

    if is_jax(samples.xp):
        from mlp_xp._engines.jax import make_jax_engine

        return make_jax_engine(network, optimizer, samples, batch_size, state)
    if is_on_cuda(samples.place):
        from mlp_xp._engines.cuda_graph import make_cuda_engine

        return make_cuda_engine(network, optimizer, samples, batch_size, state, epochs)
    if samples.xp is np:
        from mlp_xp._compiler import NotRecordableError
        from mlp_xp._engines.compiled import CompiledEngine

        try:
            return CompiledEngine(network, optimizer, samples, batch_size, state)
        except NotRecordableError:
            return EagerEngine(network, optimizer, samples, batch_size, state)
    return EagerEngine(network, optimizer, samples, batch_size, state)
