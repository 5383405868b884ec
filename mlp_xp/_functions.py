"""Partial functions that compare by value, and objects that pickle as the call that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, TypeVar

T = TypeVar("T")


def renamed(**names: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: a renamed argument raises a TypeError that names its new name."""

    def decorate(cls: Any) -> Any:
        initialise = cls.__init__

        @wraps(initialise)
        def init(self: Any, *args: Any, **settings: Any) -> None:
            for former in settings.keys() & names:
                raise TypeError(f"`{former}` is now called `{names[former]}`")
            initialise(self, *args, **settings)

        cls.__init__ = init
        return cls

    return decorate


class PickledAsCall:
    """Base of objects that public functions make: they pickle as a call of that function.

    So a pickle names ``mlp_xp.leaky_relu``, not the private function that computes it, which may move.
    """

    _call: tuple[Callable[..., Any], dict[str, Any]] | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._call is None:
            return super().__reduce_ex__(protocol)
        function, arguments = self._call
        return partial(function, **arguments), ()


def pickled_as_call(function: Callable[..., Any], made: T, **arguments: Any) -> T:
    """Set the call that `made`, a `PickledAsCall`, is pickled as; return `made`."""
    object.__setattr__(made, "_call", (function, arguments))
    return made


class HashablePartial(PickledAsCall, partial[Any]):
    """`functools.partial` with keywords that is equal to another by value, and hashable.

    An object that holds one is hashable, so that it can be the key of a cache, also after unpickling.

    Examples
    --------
    >>> from mlp_xp._functions import HashablePartial
    >>> HashablePartial(round, ndigits=2) == HashablePartial(round, ndigits=2)
    True
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashablePartial) and (self.func, self.keywords) == (
            other.func,
            other.keywords,
        )

    def __hash__(self) -> int:
        return hash((self.func, *sorted(self.keywords.items())))


def set_public_module(module: str, namespace: dict[str, Any], names: Iterable[str]) -> None:
    """Set `__module__` of objects that private modules define to the public module: pickles name it."""
    for name in names:
        if "._" in namespace[name].__module__:
            namespace[name].__module__ = module
