"""Partial functions that compare by value, and objects that pickle as the call that made them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, TypeVar

Class = TypeVar("Class")


def renamed(**names: str) -> Callable[[type[Class]], type[Class]]:
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


class Call:
    """A call of a public function, which pickles as that call: of the function's name and arguments."""

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return partial(self.function, **self.arguments), ()


class HashablePartial(partial[Any]):
    """`functools.partial` with keywords that is equal to another by value, and hashable.

    An object that holds one is hashable, so that it can be the key of a cache, also after unpickling.

    Examples
    --------
    >>> from mlp_xp._functions import HashablePartial
    >>> HashablePartial(round, ndigits=2) == HashablePartial(round, ndigits=2)
    True
    """

    _call: Call | None = None
    _attribute: str | None = None

    def made_by(self, call: Call, attribute: str | None = None) -> HashablePartial:
        """Pickle this as what `call` returns, or as an attribute of that; return it.

        So a pickle names ``mlp_xp.leaky_relu``, not the private function here, which may move.
        """
        self._call, self._attribute = call, attribute
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._call is None:
            return super().__reduce_ex__(protocol)
        return (
            self._call.__reduce__() if self._attribute is None else (getattr, (self._call, self._attribute))
        )

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
        thing = namespace[name]
        if "._" in getattr(thing, "__module__", ""):  # a list has none
            if isinstance(thing, type):
                # Evaluated now: `typing.get_type_hints` would look for their names in the public module.
                known = vars(sys.modules[thing.__module__])
                for key, hint in vars(thing).get("__annotations__", {}).items():
                    text = getattr(hint, "__forward_arg__", hint)  # a named tuple has references
                    thing.__annotations__[key] = eval(text, known) if isinstance(text, str) else hint
            thing.__module__ = module
