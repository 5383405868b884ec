"""Initial weights and biases, drawn on the host so that every namespace starts from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from mlp_xp.validation import RandomSource, check_real, lookup

HostArray: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Initializer: TypeAlias = Callable[[RandomSource, tuple[int, ...], int, int], HostArray]
"""``(random, shape, fan_in, fan_out) -> float64 array of shape``; `random` is a NumPy RandomState or
Generator, the fans are those of the layer's weight also when a bias is drawn."""


def resolve_initializer(argument: str, initializer: str | Initializer) -> Initializer:
    """Return the initializer of that name, or the one given."""
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
    return partial(_normal, scale=check_real("scale", scale, at_least=0.0))


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
    return partial(_glorot_uniform, factor=check_real("factor", factor, above=0.0))


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
    "he_normal": _he_normal,
    "zeros": _zeros,
}
"""Initializers by name.

- normal: ``N(0, 0.01^2)``; `normal(scale)` for another standard deviation.
- glorot_uniform: ``U(-b, b)`` with ``b = sqrt(6 / (fan_in + fan_out))``; `glorot_uniform(factor)` for
  another factor than 6.
- he_normal: ``N(0, 2 / fan_in)`` (K. He et al., "Delving deep into rectifiers", ICCV 2015).
- zeros: a network whose weights are all zero does not learn; for biases it is the usual start.
"""
