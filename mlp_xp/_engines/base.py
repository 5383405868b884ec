"""The interface of engines, the step that they run, and the warning of the eager fallback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from mlp_xp._arrays import Array, Namespace
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, OptimizerState
from mlp_xp._parameters import Parameters
from mlp_xp._samples import Rows, Samples

State: TypeAlias = "tuple[Parameters, OptimizerState]"
"""Parameters and optimizer state: what a step updates."""


EpochSettings: TypeAlias = "tuple[float, Rows | None]"
"""Settings of an epoch: the learning rate, and the order of the samples (None: as they are stored)."""


Step: TypeAlias = Callable[
    [Parameters, OptimizerState, Array, Array, "Array | None", float],
    tuple[Parameters, OptimizerState, Array],
]
"""``(params, optimizer_state, X, y, sample_weight, learning_rate) -> (params, optimizer_state, loss)``"""


class EagerFallbackWarning(RuntimeWarning):
    """A training on CUDA runs call by call, which is slower than captured CUDA graphs.

    Examples
    --------
    A benchmark can turn the warning into an error, so that it does not measure the slower engine:

    >>> import warnings
    >>> from mlp_xp import EagerFallbackWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", EagerFallbackWarning)
    ...     # train here
    """


class Engine(Protocol):
    """Interface of an engine: it runs epochs and owns the state that their steps update.

    Attributes
    ----------
    state : State
        The state after the last step, in the engine's own arrays, which later steps write in. A state
        assigned is copied, and the next epoch starts from it.
    losses : list of array, or NumPy array of shape (n,)
        The loss of each finished epoch: the mean of its steps' objectives, weighted by their numbers of rows,
        an array of shape () on the device. The training assigns an empty list.
    """

    state: State
    losses: Any

    @property
    def name(self) -> str:
        """The way in which the epochs so far ran: "eager", "compiled", "xla" or "cuda_graph"."""

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs, each as one step on all samples or as steps on mini-batches."""

    def is_finite(self) -> bool:
        """Whether the state is sound: finite, and not left by an error in the middle of a step's update."""

    def copied_state(self) -> State:
        """Return the state in arrays that no later step writes in."""

    @property
    def release(self) -> Callable[[], None] | None:
        """Gives the engine's memory, its state too, to a later engine; None if there is nothing to give.

        It is called last, and only when a training has ended as planned.
        """


class Steps(Protocol):
    """Interface of what runs steps on any samples: it owns the state that they update.

    Attributes
    ----------
    state : State
        As that of an engine.
    """

    state: State

    @property
    def name(self) -> str:
        """How the steps run, see `History.engine`."""

    def copied_state(self) -> State:
        """Return the state in arrays that no later step writes in."""

    def is_finite(self) -> bool:
        """Whether the state is finite, and not left by an error in the middle of a step's update."""

    def run_steps(self, samples: Samples, batch_size: int, order: Rows | None, rate: float) -> Any:
        """Run a step on each so many samples, in an order; return their mean loss.

        It is a number, or an array of shape () on the device.
        """


def make_step(network: Network, optimizer: Optimizer, xp: Namespace) -> Step:
    """Return the function that does one training step: loss and gradients, then the optimizer's update.

    The loss that the function returns is the objective before the update. The function never waits for the
    device, and ``jax.jit`` can compile it.
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
