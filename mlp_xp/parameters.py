"""The parameters of a network: a tuple of layers, each a weight and a bias."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar

from mlp_xp.arrays import Array, Namespace, copy_array

Tree = TypeVar("Tree")


class Layer(NamedTuple):
    """One affine map, ``inputs @ weight + bias``.

    Attributes
    ----------
    weight : array of shape (n_in, n_out)
    bias : array of shape (n_out,)
    """

    weight: Array
    bias: Array


Pair: TypeAlias = "tuple[Array, Array]"
"""A weight and a bias, or their gradients. A `Layer` is one; inside a training layers are plain pairs,
because making and unpacking named ones costs a twentieth of a step on small networks."""

Parameters: TypeAlias = Sequence[Pair]
"""The layers, as a tuple of `Layer` wherever users meet them."""


def plain(params: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return the layers as plain pairs."""
    return tuple((weight, bias) for weight, bias in params)


def named(params: Iterable[Pair]) -> tuple[Layer, ...]:
    """Return the layers with their names."""
    return tuple(Layer(weight, bias) for weight, bias in params)


def layers_like(params: Parameters, pairs: Iterable[Pair]) -> Parameters:
    """Return plain pairs as layers of the kind that `params` has."""
    return tuple(pairs) if type(params[0]) is tuple else named(pairs)


def flatten(params: Parameters) -> list[Array]:
    """List the arrays of all layers: weight, bias, weight, bias, ..."""
    return list(chain.from_iterable(params))


def unflatten_like(params: Parameters, arrays: Iterable[Array]) -> Parameters:
    """Make layers of arrays in the order of `flatten`, of the kind that `params` has."""
    iterator = iter(arrays)
    return layers_like(params, zip(iterator, iterator))


def zeros_like(xp: Namespace, params: Parameters) -> Parameters:
    """Zeros in the structure of `params`."""
    return unflatten_like(params, (xp.zeros_like(array) for array in flatten(params)))


def all_finite(xp: Namespace, params: Parameters) -> bool:
    """Whether every parameter is a finite number; waits for the device once."""
    return bool(xp.all(xp.stack([xp.all(xp.isfinite(array)) for array in flatten(params)])))


def copy_tree(xp: Namespace, tree: Tree) -> Tree:
    """Copy the arrays in nested tuples (parameters, optimizer state); numbers stay as they are."""
    return _copy(xp, tree)  # type: ignore[no-any-return]


def _copy(xp: Namespace, node: Any) -> Any:
    if isinstance(node, tuple):
        children = [_copy(xp, child) for child in node]
        return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
    return node if isinstance(node, (int, float)) else copy_array(xp, node)
