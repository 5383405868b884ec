"""Lossless encoding of Python values as JSON, for the description of a model in its file.

A value that JSON has no type for becomes an object with one key, a tag that begins with "$". Decoding makes
only the types in `_CODECS`, so that no text can run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._activations import ACTIVATIONS, Activation, make_activation, name_activation
from mlp_xp._arrays import HostArray, type_name
from mlp_xp._losses import LOSSES, Loss
from mlp_xp._validation import check_integer, lookup, shown

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "str", "object"),
)
"""Dtypes of the arrays that can be encoded; arrays of "object" must hold Python strings."""

MAX_TEXT_ARRAY_CHARACTERS = 2**22
"""Maximum size of all decoded text arrays: each one's length times its longest string, as NumPy stores it.

Without a limit a short file could fill the memory. Chosen so that they take at most 16 MiB.
"""


def encode_document(document: Any) -> str:
    """Return an encoded document as JSON text in ASCII."""
    return json.dumps(document, allow_nan=False)


def load_json(text: str) -> Any:
    """Return the values of a JSON text, not decoded; raise a ValueError if it is not valid."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None


def decode_document(document: Any) -> Any:
    """Return the decoded values of what `load_json` returned; raise a ValueError or TypeError if invalid."""
    try:
        if sum(_text_array_sizes(document)) > MAX_TEXT_ARRAY_CHARACTERS:
            raise ValueError(f"arrays of text must have {MAX_TEXT_ARRAY_CHARACTERS} characters at most")
        return decode(document)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None


def encode(name: str, value: Any) -> Any:
    """Return a value encoded for JSON; `name` is its name in error messages."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is list:
        return _encode_list(name, value)
    if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(f"{name}[{key!r}]", item) for key, item in value.items()}
    for tag, kind in _CODECS.items():
        if type(value) is kind.type:
            return {tag: kind.encode(name, value)}
    raise TypeError(
        f"`{name}` must be None, a truth value, a number, text, a list, tuple, dict or 1-D array of those, "
        f"or a RandomState to be in a file, got {type_name(value)}"
    )


def decode(value: Any) -> Any:
    """Return the value that was encoded; decodes lists and dicts in place, to save memory."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            value[index] = decode(item)
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        for key, item in value.items():
            value[key] = decode(item)
        return value
    if len(value) > 1:
        raise ValueError(f"{tag!r} must be the only key, got {sorted(value)}")
    return lookup("kind of value", tag, _CODECS).decode(value[tag])


def _text_array_sizes(value: Any) -> Iterator[int]:
    """Yield the number of characters of each array of text that decoding will make."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _text_array_sizes(item)
    if isinstance(value, dict) and isinstance(value.get("$array"), list):
        for texts in value["$array"]:
            if isinstance(texts, list) and _all_strings(texts):
                yield len(texts) * max(map(len, texts), default=0)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of a JSON object; raise a ValueError if a key is repeated."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


def _as_list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"a list of {'any length' if length is None else length} is needed")
    return value


def _encode_float(name: str, value: float) -> Any:
    return repr(value)


def _decode_float(text: Any) -> float:
    return float(lookup("$float", text, {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}))


def _encode_list(name: str, values: list[Any] | tuple[Any, ...]) -> Any:
    return [encode(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _decode_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(decode(_as_list(values)))


def _encode_dict(name: str, mapping: dict[Any, Any]) -> Any:
    return [
        [encode(f"a key of {name}", key), encode(f"{name}[{key!r}]", value)] for key, value in mapping.items()
    ]


def _decode_dict(pairs: Any) -> dict[Any, Any]:
    pairs = [decode(_as_list(pair, 2)) for pair in _as_list(pairs)]
    if not all(map(_is_key, (key for key, _ in pairs))):
        raise ValueError("keys must be text or numbers of 64 bits")
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key is repeated")
    return mapping


def _is_key(key: Any) -> bool:
    # Tuples and longer integers can be made to collide: a dict of many with one hash takes quadratic time.
    return (
        key is None or isinstance(key, (str, float)) or (type(key) in (bool, int) and -(2**63) <= key < 2**64)
    )


def _encode_array(name: str, array: HostArray) -> Any:
    values = array.tolist()
    dtype = "str" if array.dtype.kind == "U" else array.dtype.name
    if array.ndim != 1 or dtype not in DTYPES or (dtype == "object" and not _all_strings(values)):
        raise TypeError(
            f"`{name}` must be a 1-D array of truth values, numbers or text to be in a file, "
            f"got {array.ndim}-D of {array.dtype}"
        )
    return [dtype, [encode(name, value) for value in values]]


def _decode_array(described: Any) -> HostArray:
    dtype, values = _as_list(described, 2)
    lookup("dtype", dtype, dict.fromkeys(DTYPES))
    values = decode(_as_list(values))
    if dtype in ("str", "object"):
        if not _all_strings(values):
            raise ValueError("an array of text must hold text")
        return np.array(values, dtype=dtype)
    wanted = {"b": bool, "f": float}.get(np.dtype(dtype).kind, int)
    if any(type(value) is not wanted for value in values):
        raise TypeError(f"an array of {dtype} must hold values of type {wanted.__name__}")
    # NumPy rounds or overflows numbers that the dtype cannot hold; the comparison below refuses these.
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=dtype)
    if array.tolist() != values:
        raise ValueError(f"an array of {dtype} must hold numbers of that type")
    return array


def _all_strings(values: list[Any]) -> bool:
    return all(type(value) is str for value in values)


def _encode_random_state(name: str, random: np.random.RandomState) -> Any:
    state: Any = random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise TypeError(f"`{name}` must draw from MT19937 to be in a file, got {state['bit_generator']}")
    key, pos = state["state"]["key"].tolist(), int(state["state"]["pos"])
    return [key, pos, int(state["has_gauss"]), float(state["gauss"])]


def _decode_random_state(state: Any) -> np.random.RandomState:
    key, pos, has_gauss, gauss = _as_list(state, 4)
    key = _decode_array(["uint32", key])
    # NumPy does not check these, and would read beyond the key.
    if len(key) != 624 or not key.any() or check_integer("position", pos, minimum=0) > 624:
        raise ValueError("the state of a RandomState must be 624 numbers and a position in them")
    if check_integer("has_gauss", has_gauss, minimum=0) > 1 or type(gauss) is not float:
        raise ValueError("the state of a RandomState must end with 0 or 1, and a float")
    random = np.random.RandomState()
    random.set_state(("MT19937", key, pos, has_gauss, decode(gauss)))
    return random


BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
"""NumPy's sources of random bits, by which a `Generator` is described."""

LARGEST_IN_STATE = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "uinteger": 2**32 - 1}
"""The largest integers in their states: NumPy would use some as they are, and read elsewhere.

Others have 128 bits.
"""


def _encode_generator(name: str, random: np.random.Generator) -> Any:
    state: Any = random.bit_generator.state
    if state["bit_generator"] not in BIT_GENERATORS:
        raise TypeError(
            f"`{name}` must draw from one of {BIT_GENERATORS} to be in a file, got {state['bit_generator']}"
        )
    return encode(name, state)


def _decode_generator(described: Any) -> np.random.Generator:
    state = decode(described)
    kind = state.get("bit_generator") if isinstance(state, dict) else None
    lookup("bit_generator", kind, dict.fromkeys(BIT_GENERATORS))
    bits = getattr(np.random, str(kind))(0)
    _check_state(state, bits.state, "state")
    if kind == "MT19937" and not state["state"]["key"].any():
        raise ValueError("the state of MT19937 must have numbers that are not zero")
    bits.state = state
    return np.random.Generator(bits)


def _check_state(found: Any, wanted: Any, name: str) -> None:
    """Check that the state of a source of random bits has the structure of another one."""
    if type(found) is not type(wanted):
        raise TypeError(f"`{name}` must be {type_name(wanted)}, got {type_name(found)}")
    if isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            raise ValueError(f"`{name}` must have {list(wanted)}, got {list(found)}")
        for key, value in wanted.items():
            _check_state(found[key], value, key)
    elif isinstance(wanted, np.ndarray) and (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(f"`{name}` must be {wanted.dtype} of shape {wanted.shape}")
    elif isinstance(wanted, int) and not 0 <= found <= LARGEST_IN_STATE.get(name, 2**128 - 1):
        raise ValueError(f"`{name}` is out of its range")


def _encode_activation(name: str, activation: Activation) -> Any:
    known = name_activation(activation)
    if known is None:
        raise TypeError(_custom_code_message(name, "Activation", activation.forward, ACTIVATIONS))
    return [known[0], dict(known[1])]


def _decode_activation(described: Any) -> Activation:
    name, parameters = _as_list(described, 2)
    if not isinstance(parameters, dict):
        raise TypeError("the parameters of an activation must be an object")
    return make_activation(name, parameters)


def _encode_loss(name: str, loss: Loss) -> Any:
    for known, entry in LOSSES.items():
        if loss == entry:
            return known
    raise TypeError(_custom_code_message(name, "Loss", loss.evaluate, LOSSES))


def _custom_code_message(name: str, kind: str, function: Callable[..., Any], table: dict[str, Any]) -> str:
    function_name = getattr(function, "__qualname__", shown(function))
    return (
        f"`{name}` must be a built-in {kind} to be in a file, which holds no code, got one of your own "
        f"({function_name}): pickle the model instead, or use one of {sorted(table)}"
    )


class _Codec(NamedTuple):
    """A Python type, and the functions that encode and decode its values."""

    type: type
    encode: Callable[[str, Any], Any]
    decode: Callable[[Any], Any]


_CODECS: dict[str, _Codec] = {
    "$float": _Codec(float, _encode_float, _decode_float),
    "$tuple": _Codec(tuple, _encode_list, _decode_tuple),
    "$dict": _Codec(dict, _encode_dict, _decode_dict),
    "$array": _Codec(np.ndarray, _encode_array, _decode_array),
    "$random_state": _Codec(np.random.RandomState, _encode_random_state, _decode_random_state),
    "$generator": _Codec(np.random.Generator, _encode_generator, _decode_generator),
    "$activation": _Codec(Activation, _encode_activation, _decode_activation),
    "$loss": _Codec(Loss, _encode_loss, lambda name: lookup("loss", name, LOSSES)),
}
