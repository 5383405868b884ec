"""Training states in arrays that captured graphs read and write: their addresses must not change."""

from __future__ import annotations

from mlp_xp._arrays import Array, Namespace, Placement, copy_array
from mlp_xp._devices import current_device
from mlp_xp._engines.base import State
from mlp_xp._engines.capture import GraphLibrary
from mlp_xp._engines.step_numbers import numbers_of, with_numbers
from mlp_xp._parameters import is_array, leaves, map_tree, with_leaves


def contiguous_copy(place: Placement, state: State) -> State:
    """Return a copy of a state in arrays that are contiguous by rows, as fused kernels take them."""
    return assign_state(_empty_like(place, state), state)


def copy_for_caller(library: GraphLibrary, place: Placement, state: State) -> State:
    """Return a copy of a state, made on the engine's stream in memory of the caller's stream.

    Pools keep the memory of each stream apart, and on the caller's are the state that the training began with
    and earlier copies, whose memory can be used again.
    """
    with current_device(state[0][0][0]):
        copied = _empty_like(place, state)
    with library.own_stream():
        return assign_state(copied, state)


def _empty_like(place: Placement, state: State) -> State:
    """Return a state of the same structure in new arrays, contiguous by rows, whose values are arbitrary."""

    def empty(array: Array) -> Array:
        return place.xp.empty(tuple(array.shape), dtype=array.dtype, device=place.device)

    result: State = map_tree(empty, state)
    return result


def assign_state(old: State, new: State) -> State:
    """Copy a state of the same structure into the arrays of the old one; return it in these."""
    for target, source in zip(leaves(old), leaves(new)):
        if is_array(target):
            target[...] = source
    return with_numbers(old, numbers_of(new))


def copy_into_state_arrays(xp: Namespace, old: State, new: State) -> State:
    """Return the state that a step made of the old one, written into the arrays of that."""
    before, after = leaves(old), leaves(new)
    # All are copied before the first is written, because a new array may be a view of an old one.
    copies = [
        copy_array(xp, later) if is_array(earlier) and later is not earlier else later
        for earlier, later in zip(before, after)
    ]
    for earlier, later in zip(before, copies):
        if is_array(earlier) and later is not earlier:
            earlier[...] = later
    result: State = with_leaves(
        new, [earlier if is_array(earlier) else later for earlier, later in zip(before, after)]
    )
    return result
