"""Training steps as functions that the compiler can trace, and their programs.

All engines that compile steps go the same way: a `StepSpec` says what a step is; `compile_step` traces it,
lets a writer of `mlp_xp._compiler` make a program of the trace, and keeps that for the next training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp._arrays import Array
from mlp_xp._cache import cached_by_arguments
from mlp_xp._compiler import NotRecordableError
from mlp_xp._compiler.trace import ArraySpec, TracedFunction, trace_function
from mlp_xp._engines.base import State, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, OptimizerState
from mlp_xp._parameters import Parameters, is_array, leaves, with_leaves

FlatStep: TypeAlias = Callable[[list[Any], list[Any], list[Any]], tuple[list[Any], list[Any]]]

BatchSpecs: TypeAlias = "tuple[ArraySpec | None, ...]"
"""Shapes and dtypes of a batch's ``X, y, sample_weight``."""


class StepSpec(NamedTuple):
    """A training step, but for the elements of its arrays and its numbers: equal steps have one program.

    Attributes
    ----------
    network : Network
    optimizer : Optimizer
        Without its learning rate, which is an argument of the programs.
    structure : State
        See `state_structure`.
    batch : BatchSpecs
    has_ones_column : bool
        See `mlp_xp._compiler.compile_function`.
    """

    network: Network
    optimizer: Optimizer
    structure: State
    batch: BatchSpecs
    has_ones_column: bool = False

    @classmethod
    def of(cls, network: Network, optimizer: Optimizer, state: State, batch: BatchSpecs) -> StepSpec:
        """Return the spec of the steps that begin with a state."""
        return cls(network, replace(optimizer, learning_rate=0.0), state_structure(state), batch)

    def trace(self) -> TracedFunction:
        """Record the step; its arguments are a batch, the learning rate and the numbers of the state."""
        function = flat_step(make_step(self.network, self.optimizer, np), self.structure)
        n_scalars = 1 + sum(map(is_number, leaves(self.structure)))
        groups = array_groups(self.structure)
        return trace_function(function, groups, self.batch, n_scalars, self.has_ones_column)


@cached_by_arguments
def compile_step(write: Callable[..., Any], step: StepSpec, *options: Any) -> Any:
    """Return ``write(traced step, *options)``, which is kept: the program of the step by a writer.

    Raises
    ------
    NotRecordableError
        If the step does something that the compiler or the writer does not support.
    """
    try:
        return write(step.trace(), *options)
    except RecursionError as error:
        raise NotRecordableError("a chain of hundreds of numbers that depend on each other") from error


def is_number(leaf: Any) -> bool:
    """Whether a leaf of a state is a number that may change from step to step."""
    return isinstance(leaf, (int, float)) and not isinstance(leaf, bool)


def array_spec(array: Array) -> ArraySpec:
    """Return the shape and dtype of an array of any library."""
    if isinstance(array, np.ndarray):
        return ArraySpec(array.shape, array.dtype)
    name = str(array.dtype).rpartition(".")[2]  # PyTorch writes "torch.float32"
    try:
        return ArraySpec(tuple(array.shape), np.dtype(name))
    except TypeError:
        raise NotRecordableError(f"an array of dtype {name}") from None


def state_structure(state: State) -> State:
    """Return the state with specs for its arrays and zeros for its numbers."""
    values = leaves(state)
    if bool in map(type, values):
        raise NotRecordableError("a bool in the optimizer's state")
    structure: State = with_leaves(
        state,
        [
            array_spec(leaf) if is_array(leaf) else type(leaf)() if is_number(leaf) else leaf
            for leaf in values
        ],
    )
    return structure


def filled(structure: State, arrays: Iterable[Any], numbers: Iterable[Any]) -> State:
    """Return a state of this structure with these arrays and numbers."""
    arrays, numbers = iter(arrays), iter(numbers)
    state: State = with_leaves(
        structure,
        [
            next(arrays) if is_array(leaf) else next(numbers) if is_number(leaf) else leaf
            for leaf in leaves(structure)
        ],
    )
    return state


def flat_step(step: Callable[..., tuple[Parameters, OptimizerState, Any]], structure: State) -> FlatStep:
    """Return a step as a function ``(arrays of the state, inputs, rate and numbers) -> (arrays, results)``.

    The step is ``(params, optimizer_state, *inputs, rate) -> (params, optimizer_state, loss)``. The results
    are the loss and the numbers of the new state.
    """
    old = leaves(structure)

    def function(state: list[Any], inputs: list[Any], scalars: list[Any]) -> tuple[list[Any], list[Any]]:
        rate, *numbers = scalars
        params, optimizer_state = filled(structure, state, numbers)
        params, optimizer_state, loss = step(params, optimizer_state, *inputs, rate)
        new = leaves((params, optimizer_state))
        if len(new) != len(old):
            raise NotRecordableError("an optimizer's state whose structure changes")
        if not all(map(_same_kind, old, new)):
            raise NotRecordableError("an optimizer's state with a leaf that changes its type")
        updated = [leaf for leaf, before in zip(new, old) if is_array(before)]
        return updated, [loss, *(leaf for leaf, before in zip(new, old) if is_number(before))]

    return function


def _same_kind(old: Any, new: Any) -> bool:
    """Whether the old and the new leaf of a state are both an array, both a number or both None."""
    if not is_number(old):
        return is_array(old) == is_array(new) and (old is None) == (new is None)
    # Reductions to float64 are scalars of NumPy, which promote as Python's do.
    return is_number(new) or (is_array(new) and new.shape == () and new.dtype in (None, np.float64))


def array_groups(state: State) -> list[list[Any]]:
    """List the arrays of a state in groups: the parameters, arrays shaped like all of them, single others.

    One call can update all arrays of a group such as the velocities.
    """
    params, rest = leaves(state[0]), list(filter(is_array, leaves(state[1])))
    specs = [(leaf.shape, leaf.dtype) for leaf in params]
    groups = [params]
    while rest:
        like_params = [(leaf.shape, leaf.dtype) for leaf in rest[: len(params)]] == specs
        groups.append(rest[: len(params) if like_params else 1])
        rest = rest[len(groups[-1]) :]
    return groups
