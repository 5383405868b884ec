"""Training steps as functions that the compiler can trace: of flat lists of arrays and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlp_xp._arrays import Array
from mlp_xp._compiler import NotRecordableError
from mlp_xp._compiler.rows import ArraySpec
from mlp_xp._engines.base import State, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import is_array, leaves, with_leaves

FlatStep = Callable[[list[Any], list[Any], list[Any]], tuple[list[Any], list[Any]]]


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


def flat_step(network: Network, optimizer: Optimizer, structure: State) -> FlatStep:
    """Return a step as a function ``(arrays of the state, batch, rate and numbers) -> (arrays, results)``.

    The results are the loss and the numbers of the new state.
    """
    step = make_step(network, optimizer, np)
    old = leaves(structure)

    def function(state: list[Any], inputs: list[Any], scalars: list[Any]) -> tuple[list[Any], list[Any]]:
        rate, arrays, numbers = scalars[0], iter(state), iter(scalars[1:])
        tracers = [
            next(arrays) if is_array(leaf) else next(numbers) if is_number(leaf) else leaf for leaf in old
        ]
        params, optimizer_state = with_leaves(structure, tracers)
        X, y, sample_weight = inputs
        params, optimizer_state, loss = step(params, optimizer_state, X, y, sample_weight, rate)
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
