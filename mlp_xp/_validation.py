"""Checks of arguments; errors name the argument, what was expected and what was given."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ForwardRef, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    Seed: TypeAlias = int | np.random.RandomState | np.random.Generator | None
    RandomSource: TypeAlias = np.random.RandomState | np.random.Generator
else:  # evaluated when they are asked for: `np.random` is imported at its first use
    Seed = ForwardRef("int | np.random.RandomState | np.random.Generator | None", module=__name__)
    RandomSource = ForwardRef("np.random.RandomState | np.random.Generator", module=__name__)

Entry = TypeVar("Entry")


def check_integer(name: str, value: object, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        integer = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"`{name}` must be an integer >= {minimum}, got {value!r}") from None
    if integer < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}, got {integer}")
    return integer


def check_real(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """Return `value` as a finite float between the given bounds."""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
        if math.isfinite(bound)
    ]
    expected = " and ".join(["a finite number", *bounds])
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"`{name}` must be {expected}, got {value!r}") from None
    if not (math.isfinite(number) and above < number < below and at_least <= number <= at_most):
        raise ValueError(f"`{name}` must be {expected}, got {number!r}")
    return number


def lookup(argument: str, name: object, table: Mapping[str, Entry]) -> Entry:
    """Return the entry of `table` called `name`; an unknown name lists the valid ones."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"`{argument}` must be one of {sorted(table)}, got {name!r}")
    return table[name]


def check_called(argument: str, given: object, functions: Iterable[Callable[..., object]]) -> None:
    """Raise a TypeError if `given` is one of these functions itself, and not what a call of it returns."""
    for function in functions:
        if given is function:
            name = function.__name__
            raise TypeError(f"`{argument}` must be what `{name}()` returns, got the function `{name}` itself")


def random_source(seed: Seed) -> RandomSource:
    """Return the NumPy generator for a seed.

    An integer seeds NumPy's ``RandomState``, whose streams never change: a seed gives the same network in
    every version of NumPy, and the same as in scikit-learn.
    """
    if isinstance(seed, (np.random.RandomState, np.random.Generator)):
        return seed
    if seed is None:
        return np.random.RandomState()
    integer = check_integer("seed", seed, minimum=0)
    if integer >= 2**32:
        raise ValueError(f"`seed` must be an integer < 2**32, got {integer}")
    return np.random.RandomState(integer)
