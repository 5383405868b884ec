"""The parameters of a network: a tuple of layers, each a weight and a bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp._arrays import Array, Namespace, copy_array, for_value_checks, quiet_floating_point


class Layer(NamedTuple):
    """One affine map, ``inputs @ weight + bias``.

    Attributes
    ----------
    weight : array of shape (n_in, n_out)
    bias : array of shape (n_out,)

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Layer
    >>> weight, bias = Layer(np.ones((2, 3)), np.zeros(3))
    >>> weight.shape, bias.shape
    ((2, 3), (3,))
    """

    weight: Array
    bias: Array


Pair: TypeAlias = tuple[Array, Array]
"""A weight and a bias, or their gradients: a `Layer`, or a plain tuple. Inside a training layers are plain
tuples, because making and unpacking named ones takes a twentieth of a step on small networks."""

Parameters: TypeAlias = Sequence[Pair]
"""The layers; in public results always a tuple of `Layer`."""


def plain(params: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return the layers as plain tuples."""
    return tuple((weight, bias) for weight, bias in params)


def named(params: Iterable[Pair]) -> tuple[Layer, ...]:
    """Return the layers as `Layer`, with named fields."""
    return tuple(Layer(weight, bias) for weight, bias in params)


def layers_like(params: Parameters, pairs: Iterable[Pair]) -> Parameters:
    """Return pairs as the type that the layers of `params` have: `Layer` or plain tuples."""
    return tuple(pairs) if type(params[0]) is tuple else named(pairs)


def flatten(params: Parameters) -> list[Array]:
    """List the arrays of all layers: weight, bias, weight, bias, ..."""
    return list(chain.from_iterable(params))


def unflatten_like(params: Parameters, arrays: Iterable[Array]) -> Parameters:
    """Undo `flatten`: return layers of the type that the layers of `params` have."""
    iterator = iter(arrays)
    return layers_like(params, zip(iterator, iterator))


def zeros_like(xp: Namespace, params: Parameters) -> Parameters:
    """Return zeros in the structure of `params`."""
    return unflatten_like(params, (xp.zeros_like(array) for array in flatten(params)))


_CONTAINERS = (tuple, list, dict)


def leaves(tree: Any) -> list[Any]:
    """Return the arrays and numbers in nested tuples, lists and dicts, such as an optimizer's state.

    Those of a dict come in the order of its sorted keys: libraries, such as JAX, return dicts in that order.
    """
    if isinstance(tree, dict):
        tree = [tree[key] for key in sorted(tree, key=str)]
    elif not isinstance(tree, (tuple, list)):
        return [tree]
    found = []
    for child in tree:
        if isinstance(child, _CONTAINERS):
            found += leaves(child)
        else:  # without a call, because most children are leaves
            found.append(child)
    return found


def with_leaves(tree: Any, new: Iterable[Any]) -> Any:
    """Return a tree of the same structure with new leaves, in the order of `leaves`."""
    new = iter(new)
    if not isinstance(tree, _CONTAINERS):
        return next(new)
    keys = sorted(tree, key=str) if isinstance(tree, dict) else range(len(tree))
    children = [
        with_leaves(child, new) if isinstance(child, _CONTAINERS) else next(new)
        for child in map(tree.__getitem__, keys)
    ]
    if isinstance(tree, dict):
        found = dict(zip(keys, children))
        return {key: found[key] for key in tree}
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, not a number or None."""
    return not isinstance(leaf, (int, float, NoneType))


def all_finite(xp: Namespace, tree: Any) -> bool:
    """Whether all arrays in nested tuples, lists and dicts are finite; synchronises with the device."""
    xp, *arrays = for_value_checks(xp, *filter(is_array, leaves(tree)))
    if not arrays:
        return True
    # Fast path: a finite sum has finite terms. A sum may overflow where all terms are finite, which is
    # rare; only then each element is checked, which takes longer.
    with quiet_floating_point():
        if _all_true(xp, [xp.isfinite(xp.sum(array)) for array in arrays]):
            return True
    return _all_true(xp, [xp.all(xp.isfinite(array)) for array in arrays])


def _all_true(xp: Namespace, found: list[Any]) -> bool:
    """Whether all of these arrays of shape () are true; a device is read once."""
    return all(found) if xp is np else bool(found[0] if len(found) == 1 else xp.all(xp.stack(found)))


def are_equal(xp: Namespace, params: Parameters, others: Parameters) -> bool:
    """Whether the arrays of two networks are the same, or equal."""
    pairs = zip(flatten(params), flatten(others))
    return all(one is other or bool(xp.all(one == other)) for one, other in pairs)


def map_tree(function: Callable[[Array], Array], tree: Any) -> Any:
    """Apply a function to the arrays in nested tuples, lists and dicts."""
    return with_leaves(tree, [function(leaf) if is_array(leaf) else leaf for leaf in leaves(tree)])


def copy_tree(xp: Namespace, tree: Any) -> Any:
    """Copy the arrays in nested tuples, lists and dicts."""
    return map_tree(partial(copy_array, xp), tree)
