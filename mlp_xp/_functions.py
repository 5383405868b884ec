"""Partial functions that compare by value, and objects that pickle and print as the call that made them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
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
    """A call of a public function, which pickles and prints as that call: of the name and arguments."""

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return partial(self.function, **self.arguments), ()

    def __repr__(self) -> str:
        return _format(self.function.__name__, self.arguments)


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

    def __repr__(self) -> str:
        if self._call is None:
            return without_addresses(super().__repr__())
        return repr(self._call) + ("" if self._attribute is None else f".{self._attribute}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashablePartial) and (self.func, self.keywords) == (
            other.func,
            other.keywords,
        )

    def __hash__(self) -> int:
        return hash((self.func, *sorted(self.keywords.items())))


def repr_as_call(self: Any) -> str:
    """Return, as a dataclass's `__repr__`, the call that made it or else its fields, without addresses."""
    values = {field.name: getattr(self, field.name) for field in fields(self)}
    calls = (value._call for value in values.values() if isinstance(value, HashablePartial))
    for call in calls:
        # A field may have been replaced since.
        if call is not None and call.function(**call.arguments) == self:
            return repr(call)
    return _format(type(self).__name__, values)


def _format(name: str, arguments: dict[str, Any]) -> str:
    shown = (f"{key}={without_addresses(repr(value))}" for key, value in arguments.items())
    return f"{name}({', '.join(shown)})"


def without_addresses(text: str) -> str:
    """Return a repr without memory addresses, which differ from process to process.

    Examples
    --------
    >>> from mlp_xp._functions import without_addresses
    >>> without_addresses(repr(without_addresses))
    '<function without_addresses>'
    """
    return re.sub(r"( at)? 0x[0-9a-fA-F]{6,}", "", text)


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
