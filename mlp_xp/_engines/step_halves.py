"""The two halves of a training step, between which processes add up their gradients.

The first half computes sums over the rows of one process: the gradients, the losses and the weights, in one
flat buffer on the host or on a CUDA device. The second takes the sums over all processes, adds the penalty
on the weights, and updates the state. Each kind of array library has its own `StepHalves`, as it has an
engine of its own.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlp_xp._arrays import Array, HostArray, Namespace, Placement, to_host
from mlp_xp._compiler import NotRecordableError, write_calls
from mlp_xp._compiler.trace import TracedFunction, trace_function
from mlp_xp._engines.base import State
from mlp_xp._engines.capture import GraphLibrary
from mlp_xp._engines.compiled import CompiledState, Memory
from mlp_xp._engines.graph_inputs import GraphInputs
from mlp_xp._engines.recordable import (
    BatchSpecs,
    StepSpec,
    array_groups,
    array_spec,
    compile_step,
    flat_step,
    is_number,
)
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, OptimizerState
from mlp_xp._parameters import (
    Parameters,
    all_finite,
    copy_tree,
    flatten,
    leaves,
    unflatten_like,
)
from mlp_xp._samples import Batch

N_EXTRA = 4
"""Numbers behind the gradients in the buffer: the loss, the weight, and two for `Processes.add_up`."""


class Totals(NamedTuple):
    """What the second half of a step knows of its whole batch.

    Attributes
    ----------
    n_rows : int
    is_weighted : bool
        Whether its rows have weights.
    unit : float
        What the sums in the buffer were multiplied by.
    share : float
        The part of the epoch's rows that these are.
    """

    n_rows: int
    is_weighted: bool
    unit: float
    share: float

    def numbers(self, buffer: HostArray, smallest: float) -> tuple[float, float, float]:
        """Return the sum of the losses, 1 over that of the weights, and what the gradients lack of that.

        A batch without weight, whose sum has no inverse, has the gradient 0.
        """
        loss, weight = map(float, buffer[-N_EXTRA:-2])
        total = weight / self.unit if self.is_weighted else float(self.n_rows)
        scale = 1.0 / total if total >= smallest else 0.0
        return loss / self.unit, scale, scale / self.unit


class StepHalves(Protocol):
    """Interface of the two halves; they own the state that the second one updates.

    Attributes
    ----------
    name : str
        How the steps run: "eager", "compiled", "xla" or "cuda_graph".
    pads : float
        Batches are padded to one of a few lengths, which are so many standard deviations of their lengths
        apart, because for each the first half is compiled; 0 if batches of any length run.
    buffer : array of shape (n_parameters + N_EXTRA,)
        On the host, unless there is a library.
    library : GraphLibrary or None
        Of the buffer's device, if it is on a CUDA device.
    inputs : GraphInputs or None
        The arrays that batches are copied to.
    """

    pads: float
    buffer: Array

    @property
    def name(self) -> str: ...

    @property
    def library(self) -> GraphLibrary | None: ...

    @property
    def inputs(self) -> GraphInputs | None: ...

    @property
    def state(self) -> State:
        """The state, in arrays that later steps write in."""

    @state.setter
    def state(self, state: State) -> None: ...

    def copied_state(self) -> State:
        """Return the state in arrays that no later step writes in."""

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""

    def running(self) -> AbstractContextManager[None]:
        """Context of steps."""

    def add_gradients(self, batch: Batch, unit: float) -> None:
        """Write the sums over a batch to the buffer, times a number that is the same in all steps."""

    def update(self, totals: Totals, rate: float) -> None:
        """Update the state by the buffer, which has the sums over all processes."""

    def start_epoch(self) -> None:
        """Set the mean loss to 0."""

    def mean_loss(self) -> float:
        """Return the sum of the objectives of the epoch's steps, times the shares of their batches."""


class HostHalves:
    """What halves with their buffer on the host have in common: each step waits for its objective."""

    library = None
    inputs = None
    mean = 0.0

    def running(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def start_epoch(self) -> None:
        """Set the mean loss to 0."""
        self.mean = 0.0

    def mean_loss(self) -> float:
        """Return the mean loss of the epoch."""
        return self.mean


def buffer_for(params: Parameters, dtype: np.dtype[Any]) -> HostArray:
    """Allocate the buffer of sums: in float32 at least, which MPI and NCCL can add up."""
    n_params = sum(math.prod(array.shape) for array in flatten(params))
    return np.zeros(n_params + N_EXTRA, np.float64 if dtype == np.float64 else np.float32)


def split(xp: Namespace, flat: Array, params: Parameters) -> list[Array]:
    """Return the parts of a flat array in the shapes of the parameters."""
    shapes = [tuple(array.shape) for array in flatten(params)]
    ends = list(accumulate(map(math.prod, shapes)))
    return [xp.reshape(flat[end - math.prod(shape) : end], shape) for shape, end in zip(shapes, ends)]


class EagerHalves(HostHalves):
    """Runs array calls one by one, in any namespace."""

    name = "eager"
    pads = 0.0

    def __init__(
        self, network: Network, optimizer: Optimizer, place: Placement, xp: Namespace, state: State
    ) -> None:
        self.place = place
        self.xp = xp
        self.sums, self.complete = network._make_sums(xp), network._make_completion(xp)
        self.optimizer_update = optimizer.update
        self.buffer = buffer_for(state[0], place.host_dtype)
        self.smallest = float(place.xp.finfo(place.dtype).smallest_normal)
        self.state = state

    @property
    def state(self) -> State:
        """The state, in arrays that later steps write in."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state: State = copy_tree(self.place.xp, state)

    def copied_state(self) -> State:
        """Return a copy of the state."""
        state: State = copy_tree(self.place.xp, self._state)
        return state

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        return all_finite(self.place.xp, self._state)

    def add_gradients(self, batch: Batch, unit: float) -> None:
        """Write the sums over a batch to the buffer, times a number."""
        xp = self.xp
        summed, gradients = self.sums(self._state[0], *batch, unit)
        flat = xp.concat([xp.reshape(gradient, (-1,)) for gradient in flatten(gradients)])
        weight = batch.X.shape[0] if batch.sample_weight is None else float(xp.sum(batch.sample_weight))
        self.buffer[:-N_EXTRA] = to_host(flat)
        self.buffer[-N_EXTRA:-2] = float(summed) * unit, weight * unit

    def update(self, totals: Totals, rate: float) -> None:
        """Update the state by the buffer."""
        params, optimizer_state = self._state
        losses, scale, factor = totals.numbers(self.buffer, self.smallest)
        there = self.place.from_host(self.buffer[:-N_EXTRA] * self.buffer.dtype.type(factor))
        gradients = unflatten_like(params, split(self.xp, there, params))
        objective, completed = self.complete(params, losses, list(gradients), scale)
        self._state = self.optimizer_update(self.xp, params, completed, optimizer_state, rate)
        self.mean += float(objective) * totals.share


class _GradientsSpec(NamedTuple):
    """The first half of a step, but for the elements of its arrays: the key of its program."""

    network: Network
    structure: State
    batch: BatchSpecs

    def trace(self) -> TracedFunction:
        """Record ``(X, y, sample_weight, scale) -> (loss, weight)``, which overwrites the gradients."""
        sums, like = self.network._make_sums(np), self.structure[0]
        n_params = len(flatten(like))

        def function(state: list[Any], inputs: list[Any], scalars: list[Any]) -> tuple[list[Any], list[Any]]:
            X, y, sample_weight = inputs
            (scale,) = scalars
            summed, gradients = sums(unflatten_like(like, state[:n_params]), X, y, sample_weight, scale)
            weight = X.shape[0] if sample_weight is None else np.sum(sample_weight)
            unchanged = [None] * (len(state) - n_params)
            return [*unchanged, *flatten(gradients)], [summed * scale, weight * scale]

        return trace_function(function, _groups(self.structure), self.batch, 1)


class _UpdateSpec(NamedTuple):
    """The second half of a step, but for the elements of its arrays: the key of its program."""

    network: Network
    optimizer: Optimizer
    structure: State

    def trace(self) -> TracedFunction:
        """Record ``(rate, losses, scale, factor, *numbers) -> (objective, *numbers)``.

        It updates the state by the gradients, which are multiplied by the factor.
        """
        complete, like = self.network._make_completion(np), self.structure[0]
        n_params = len(flatten(like))

        def function(state: list[Any], inputs: list[Any], scalars: list[Any]) -> tuple[list[Any], list[Any]]:
            rate, losses, scale, factor, *numbers = scalars

            def update(params: Parameters, optimizer_state: OptimizerState, rate: float) -> Any:
                gradients = unflatten_like(like, [total * factor for total in state[-n_params:]])
                objective, completed = complete(params, losses, list(gradients), scale)
                return *self.optimizer.update(np, params, completed, optimizer_state, rate), objective

            updated, results = flat_step(update, self.structure)(state[:-n_params], [], [rate, *numbers])
            return [*updated, *[None] * n_params], results

        n_numbers = sum(map(is_number, leaves(self.structure)))
        return trace_function(function, _groups(self.structure), [], 4 + n_numbers)


def _groups(structure: State) -> list[list[Any]]:
    """List the arrays that the programs of both halves work in: those of the state, then the gradients."""
    return [*array_groups(structure), flatten(structure[0])]


class CompiledHalves(HostHalves, CompiledState):
    """Runs compiled programs, on NumPy arrays; see `mlp_xp._compiler`."""

    name = "compiled"
    pads = 0.5

    def __init__(self, network: Network, optimizer: Optimizer, dtype: Any, state: State) -> None:
        self.network = network
        self.dtype = np.dtype(dtype)
        step = StepSpec.of(network, optimizer, state, ())
        super().__init__(step.structure, Memory(_groups(step.structure), {}), state)
        # The penalty on the weights is no part of the first half, which has the same program without it.
        self.first = _GradientsSpec(replace(network, alpha=0.0), self.structure, ())
        self.buffer = buffer_for(state[0], self.dtype)
        if self.buffer.dtype != self.dtype:
            raise NotRecordableError("gradients in another dtype than their sums")
        self.memory.groups[-1] = self.buffer[:-N_EXTRA]
        self.second = self.memory.bind(
            compile_step(write_calls, _UpdateSpec(network, step.optimizer, self.structure))
        )
        self.firsts: dict[BatchSpecs, Any] = {}
        self.smallest = float(np.finfo(self.dtype).smallest_normal)

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        return all_finite(np, self.memory.groups[:-1])

    def add_gradients(self, batch: Batch, unit: float) -> None:
        """Write the sums over a batch to the buffer, times a number."""
        specs = tuple(None if array is None else array_spec(array) for array in batch)
        if specs not in self.firsts:
            program = compile_step(write_calls, self.first._replace(batch=specs))
            self.firsts[specs] = self.memory.bind(program)
        self.buffer[-N_EXTRA:-2] = self.firsts[specs](*batch, unit)

    def update(self, totals: Totals, rate: float) -> None:
        """Update the state by the buffer."""
        losses, scale, factor = totals.numbers(self.buffer, self.smallest)
        objective, *self.numbers = self.second(rate, losses, scale, factor, *self.numbers)
        self.mean += float(objective) * totals.share
