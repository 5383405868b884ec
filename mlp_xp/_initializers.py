"""Initializers: they draw weights and biases on the host, for the same numbers in every namespace."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from mlp_xp._arrays import HostArray
from mlp_xp._functions import Call, HashablePartial
from mlp_xp._validation import RandomSource, check_called, check_real, lookup


class Initializer(Protocol):
    """Where a network's weights or biases start: a function that draws an array on the host.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Network
    >>> def lecun_normal(random, shape, fan_in, fan_out):
    ...     return random.standard_normal(shape) / np.sqrt(fan_in)
    >>> network = Network((4, 3, 1), loss="squared_error")
    >>> params = network.init(seed=0, like=np.ones((1, 4)), weight=lecun_normal)
    """

    def __call__(
        self, random: RandomSource, shape: tuple[int, ...], fan_in: int, fan_out: int, /
    ) -> HostArray:
        """Return float64 numbers of this shape.

        Parameters
        ----------
        random : RandomState or Generator
        shape : tuple of int
            ``(n_in, n_out)`` for a weight, ``(n_out,)`` for a bias.
        fan_in, fan_out : int
            ``n_in`` and ``n_out`` of the layer, also where a bias is drawn.
        """


def resolve_initializer(argument: str, initializer: str | Initializer) -> Initializer:
    """Return the initializer of that name, or the one given."""
    check_called(argument, initializer, (normal, glorot_uniform, he_normal, zeros))
    return initializer if callable(initializer) else lookup(argument, initializer, INITIALIZERS)


def normal(scale: float = 0.01) -> Initializer:
    """Draw from a normal distribution of mean 0 and standard deviation `scale`.

    Parameters
    ----------
    scale : float, default=0.01

    Returns
    -------
    Initializer

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import normal
    >>> draw = normal(0.01)(np.random.RandomState(0), (1000, 10), 1000, 10)
    >>> bool(0.009 < draw.std() < 0.011)
    True
    """
    scale = check_real("scale", scale, at_least=0.0)
    return HashablePartial(_normal, scale=scale).made_by(Call(normal, scale=scale))


def glorot_uniform(factor: float = 6.0) -> Initializer:
    """Draw from ``U(-b, b)`` with ``b = sqrt(factor / (fan_in + fan_out))``.

    Parameters
    ----------
    factor : float, default=6.0
        scikit-learn takes 2 where the activation is logistic.

    Returns
    -------
    Initializer

    References
    ----------
    X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 16.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import glorot_uniform
    >>> draw = glorot_uniform(2.0)(np.random.RandomState(0), (100, 100), 100, 100)
    >>> bool(0.099 < abs(draw).max() <= 0.1)
    True
    """
    factor = check_real("factor", factor, above=0.0)
    return HashablePartial(_glorot_uniform, factor=factor).made_by(Call(glorot_uniform, factor=factor))


def he_normal() -> Initializer:
    """Draw from a normal distribution of mean 0 and variance ``2 / fan_in``, which suits "relu".

    Returns
    -------
    Initializer

    References
    ----------
    K. He et al., "Delving deep into rectifiers", ICCV 2015, equation 10.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import he_normal
    >>> draw = he_normal()(np.random.RandomState(0), (200, 50), 200, 50)
    >>> bool(0.098 < draw.std() < 0.102)
    True
    """
    return HashablePartial(_he_normal).made_by(Call(he_normal))


def zeros() -> Initializer:
    """Start from zeros: the usual start of biases; a network whose weights are all zero does not learn.

    Returns
    -------
    Initializer

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import zeros
    >>> zeros()(np.random.RandomState(0), (3,), 2, 3)
    array([0., 0., 0.])
    """
    return HashablePartial(_zeros).made_by(Call(zeros))


def _normal(
    random: RandomSource, shape: tuple[int, ...], fan_in: int, fan_out: int, *, scale: float
) -> HostArray:
    return scale * random.standard_normal(shape)


def _glorot_uniform(
    random: RandomSource, shape: tuple[int, ...], fan_in: int, fan_out: int, *, factor: float
) -> HostArray:
    bound = math.sqrt(factor / (fan_in + fan_out))
    return random.uniform(-bound, bound, shape)


def _he_normal(random: RandomSource, shape: tuple[int, ...], fan_in: int, fan_out: int) -> HostArray:
    return math.sqrt(2.0 / fan_in) * random.standard_normal(shape)


def _zeros(random: RandomSource, shape: tuple[int, ...], fan_in: int, fan_out: int) -> HostArray:
    return np.zeros(shape)


INITIALIZERS: dict[str, Initializer] = {
    "normal": normal(),
    "glorot_uniform": glorot_uniform(),
    "he_normal": he_normal(),
    "zeros": zeros(),
}
"""Initializers by name, each with its default parameters."""
