"""Checks of arguments; errors name the argument, what was expected and what was given."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, ForwardRef, TypeAlias, TypeGuard, TypeVar

import numpy as np

from mlp_xp._functions import without_addresses
from mlp_xp._processes import current_processes

if TYPE_CHECKING:
    from pathlib import Path

    Seed: TypeAlias = int | np.random.RandomState | np.random.Generator | None
    RandomSource: TypeAlias = np.random.RandomState | np.random.Generator
else:  # evaluated when they are asked for: `np.random` is imported at its first use
    Seed = ForwardRef("int | np.random.RandomState | np.random.Generator | None", module=__name__)
    RandomSource = ForwardRef("np.random.RandomState | np.random.Generator", module=__name__)

Entry = TypeVar("Entry")


MAX_INTEGER = 2**63 - 1
"""The largest integer that counters and sizes of arrays can be."""


def check_integer(name: str, value: object, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`."""
    try:
        if isinstance(value, bool) or getattr(value, "ndim", 0) > 0:
            raise TypeError
        integer = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"`{name}` must be an integer >= {minimum}, got {shown(value)}") from None
    if not minimum <= integer <= MAX_INTEGER:
        above = "" if integer < minimum else " and < 2**63"
        raise ValueError(f"`{name}` must be an integer >= {minimum}{above}, got {shown(integer)}")
    return integer


def check_integer_or_infinity(name: str, value: object, minimum: int) -> None:
    """Raise an error unless `value` is infinity, or an integer of at least `minimum`."""
    if not (isinstance(value, Real) and value == math.inf):
        check_integer(name, value, minimum)


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
    if type(value) is float and above < value < below and at_least <= value <= at_most:
        return value  # without the text for an error, because schedules are checked in each epoch
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
        if math.isfinite(bound)
    ]
    expected = " and ".join(["a finite number", *bounds])
    try:
        number = _real(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"`{name}` must be {expected}, got {shown(value)}") from None
    if not (math.isfinite(number) and above < number < below and at_least <= number <= at_most):
        raise ValueError(f"`{name}` must be {expected}, got {number!r}")
    return number


def _real(value: Any) -> float:
    """Return a real number, or an array of shape () of one, as a float; else raise a TypeError."""
    scalar = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    # NumPy's durations are integers too; the constant `numpy.ma.masked` counts as 0.0.
    no_number = isinstance(value, (np.timedelta64, np.ma.MaskedArray))
    if isinstance(scalar, bool) or not isinstance(scalar, Real) or no_number:
        raise TypeError
    return float(scalar)


def as_float(name: str, value: object) -> float:
    """Return a real number, finite or not, or an array of shape () of one, as a float."""
    try:
        return _real(value)
    except OverflowError:
        raise ValueError(f"`{name}` must be a real number that a float can hold") from None
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a real number, got {shown(value)}") from None


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value can be iterated over, which arrays of shape () and text are not meant for."""
    is_one = isinstance(value, (str, bytes)) or getattr(value, "ndim", None) == 0
    return isinstance(value, Iterable) and not is_one


def check_bool(name: str, value: object) -> bool:
    """Return `value` as a bool; other values, such as "False", have a truth value but are none."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}")
    return bool(value)


def as_truth(name: str, value: Any) -> bool:
    """Return the truth of a value; arrays of several have none."""
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be None or a truth value, got {shown(value)}") from None


def check_callable(name: str, value: object, kind: str = "a function", *, optional: bool = False) -> None:
    """Raise a TypeError unless `value` can be called; an optional one may be None."""
    if not (callable(value) or (optional and value is None)):
        raise TypeError(f"`{name}` must be {kind}, got {shown(value)}")


def check_path(value: Any) -> Path:
    """Return the argument `path` as a path."""
    from pathlib import Path

    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"`path` must be text or a path, got {shown(value)}") from None


@contextmanager
def errors_naming(argument: str, inner: str | None = None) -> Iterator[None]:
    """Have errors of checks, also of scikit-learn's, name the argument; the checks may call it `inner`.

    Messages that name it stay as they are.
    """
    try:
        yield
    except Exception as error:
        of_polars = type(error).__module__.startswith("polars.")
        if not (isinstance(error, (TypeError, ValueError, OverflowError)) or of_polars):
            raise
        message = str(error) if inner is None else str(error).replace(f"`{inner}`", f"`{argument}`")
        message = message if re.search(rf"\b{argument}\b", message) else f"`{argument}`: {message}"
        if message == str(error):
            raise
        raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from error


def shown(value: object) -> str:
    """Return the representation of a value for an error message, of bounded length."""
    try:
        return f"{without_addresses(repr(value)):.{MAX_SHOWN}}"
    except Exception:  # an integer of thousands of digits, or a broken object
        return f"a {type(value).__name__}"


MAX_SHOWN = 200
"""Maximum number of characters of a value in an error message."""


def lookup(argument: str, name: object, table: Mapping[str, Entry]) -> Entry:
    """Return the entry of `table` called `name`; an unknown name lists the valid ones."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"`{argument}` must be one of {sorted(table)}, got {shown(name)}")
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
    every version of NumPy, and the same as in scikit-learn. Inside `data_parallel` all processes get the same
    one for None too, if they ask for as many.
    """
    if isinstance(seed, (np.random.RandomState, np.random.Generator)):
        return seed
    if seed is None:
        processes = current_processes()
        return np.random.RandomState() if processes is None else processes.random_state()
    integer = check_integer("seed", seed, minimum=0)
    if integer >= 2**32:
        raise ValueError(f"`seed` must be an integer < 2**32, got {integer}")
    return seeded(integer)


def seeded(seed: int) -> np.random.RandomState:
    """Return ``RandomState(seed)``, which would be seeded with the system's entropy first, a slow way."""
    random = np.random.RandomState(np.random.MT19937(_no_entropy()))
    random.seed(seed)
    return random


@lru_cache
def _no_entropy() -> Any:
    class NoEntropy(np.random.bit_generator.ISeedSequence):
        def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray[Any, Any]:
            return np.zeros(n_words, dtype)

    return NoEntropy()
