"""Objects as plain values of JSON and back: what a run keeps. Nothing but the classes named here is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

_Class = TypeVar("_Class")

_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def to_plain(value: Any) -> Any:
    """Return an object of dataclasses, tuples, mappings and plain values as JSON holds it."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[_Class], value: Any, name: str) -> _Class:
    """Return the object of a dataclass that `to_plain` made a plain value of.

    The values have exactly the types of the fields; the class itself checks what its types do not say.

    Raises
    ------
    ValueError
        Whatever the value is; `name` is its name in the message.
    """
    made: _Class = _decode(kind, value, name)
    return made


def _decode(kind: Any, value: Any, name: str) -> Any:
    """Return a plain value as the type that a hint says."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _decode(_member(arguments, value, name), value, name)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, name)
    if origin is tuple:
        items = _checked(value, list, "a list", name)
        return tuple(_decode(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        items = _checked(value, dict, "an object", name)
        return {
            _decode(str, key, f"a key of {name}"): _decode(arguments[1], item, f"{name}[{key!r:.60}]")
            for key, item in items.items()
        }
    if kind is NoneType:
        return _checked(value, NoneType, "null", name)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    _checked(value, kind, _KINDS[kind], name)
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if kind is str:
        value.encode()  # raises a ValueError if half of a character stands alone
    return value


def _member(members: tuple[Any, ...], value: Any, name: str) -> Any:
    """Return the member of a union that a value is of: null, or the class with the value's names."""
    if value is None and NoneType in members:
        return NoneType
    others = [member for member in members if member is not NoneType]
    if len(others) == 1:
        return others[0]
    for member in others:
        if isinstance(value, dict) and value.keys() == {field.name for field in dataclasses.fields(member)}:
            return member
    raise ValueError(f"{name} must be one of {[member.__name__ for member in others]}")


def _decode_fields(kind: Any, value: Any, name: str) -> Any:
    """Return an object of a dataclass from the values of its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ValueError(f"{name} must be an object with {', '.join(names)}")
    hints = _field_types(kind)
    return kind(**{field: _decode(hints[field], value[field], f"{name}.{field}") for field in names})


@lru_cache
def _field_types(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields; finding them takes longer than decoding a value."""
    return get_type_hints(kind)


def _checked(value: Any, kind: Any, what: str, name: str) -> Any:
    """Return a value that has exactly this type."""
    if type(value) is not kind:
        raise ValueError(f"{name} must be {what}, got {described_value(value)}")
    return value


def described_value(value: Any) -> str:
    """Return a plain value for a message; of lists and objects, which may be deep, the type alone."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return "a long number" if isinstance(value, int) and abs(value) >= 2**64 else f"{value!r:.60}"
