"""Files of models: one safetensors file per model, which any safetensors reader opens and which runs no code.

The tensors are "layers.0.weight", "layers.0.bias", ... The file's metadata are the format and its version, a
JSON description of the model (see `mlp_xp._disk.json_codec`), and a SHA-256 of the description and of the
tensors' bytes in the order of the layers.

A file of version 2 has a section more: the progress of a training, to go on with. That is a second JSON
document under "progress", whose arrays are tensors with names that begin with "progress.", and "checksums" in
the place of the one: a SHA-256 of each document and of each tensor, so that what is damaged can be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlp_xp._arrays import HostArray, check_finite, to_host
from mlp_xp._disk.tensors import MAX_HEADER_BYTES, TensorFile
from mlp_xp._functions import set_public_module
from mlp_xp._messages import package_needed
from mlp_xp._network import Network
from mlp_xp._parameters import Parameters, flatten, named
from mlp_xp._validation import lookup

if TYPE_CHECKING:  # modules that only this one needs are imported in its functions: `import mlp_xp` is faster
    from pathlib import Path

FORMAT = "mlp_xp"
METADATA_KEYS = {
    "1": ("format", "format_version", "model", "sha256"),
    "2": ("format", "format_version", "model", "progress", "checksums"),
}
"""The metadata of each version of the format; files without progress are of version 1."""

PROGRESS = "progress"
"""The name of the section, and what the names of its tensors begin with."""

TEXTS = ("model", PROGRESS)
"""The entries of the metadata that are JSON documents."""

PARAMETER_DTYPES = ("float16", "float32", "float64")
"""Dtypes of parameters."""

MAX_MESSAGE_CHARACTERS = 600
"""Maximum length of an error's message, as it may quote the file, whose texts are of any length."""

ESTIMATORS = ("MLPClassifier", "MLPRegressor")


class ModelFileError(ValueError):
    """Raised if a file does not hold a model that can be loaded; the message names the file and the reason.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from mlp_xp import ModelFileError, load_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.safetensors"
    ...     _ = path.write_text("no model")
    ...     try:
    ...         load_model(path)
    ...     except ModelFileError as error:
    ...         print(str(error).partition("model.safetensors ")[2].partition(":")[0])
    is not a model that can be loaded
    """


class ModelContent(NamedTuple):
    """What the file of a model holds.

    Attributes
    ----------
    kind : str
        "Network" or the name of an estimator.
    network : Network
    params : tuple of Layer
        On any device to be written; read, they are on the host.
    parameters : dict
        Parameters of the estimator; empty for a network.
    learned : dict
        Fitted attributes of the estimator, without the weights; empty for a network.
    progress : dict or None
        That of a training, as nested plain values and arrays on the host.
    mlp_xp : str
        The version of mlp_xp that wrote the file.
    """

    kind: str
    network: Network
    params: Parameters
    parameters: dict[str, Any]
    learned: dict[str, Any]
    progress: dict[str, Any] | None = None
    mlp_xp: str = ""


class _Description(NamedTuple):
    """The JSON description of a model: everything but its weights and biases."""

    kind: str
    mlp_xp: str
    dtype: str
    network: dict[str, Any]
    parameters: dict[str, Any]
    learned: dict[str, Any]


# Write.


class PreparedFile(NamedTuple):
    """The content of a file, in a form in which nothing can be wrong any more but the disk."""

    metadata: dict[str, str]
    tensors: dict[str, HostArray]


def prepare(content: ModelContent) -> PreparedFile:
    """Return a model as the content of a file; arrays on the host are not copied.

    Raises
    ------
    TypeError, ValueError
        If it cannot be in a file.
    ImportError
        If safetensors is not installed.
    """
    from mlp_xp._disk.json_codec import encode_document
    from mlp_xp._version import __version__

    check_can_write()
    network, params = content.network, content.params
    place = network._check_params(params)
    host = place.host_dtype
    if host.name not in PARAMETER_DTYPES or host.name != place.dtype_name:  # bfloat16 is float32 on the host
        raise TypeError(f"`model` must have parameters of one of {list(PARAMETER_DTYPES)}, got {place.dtype}")
    tensors = dict(zip(_tensor_shapes(network), map(to_host, flatten(params))))
    for name, array in tensors.items():
        _check_finite(name, array)
    described = _Description(
        content.kind,
        __version__,
        place.dtype_name,
        _describe_network(network),
        _encoded(content.parameters),
        _encoded(content.learned),
    )
    text = encode_document(described._asdict())
    if content.progress is None:
        return PreparedFile(dict(zip(METADATA_KEYS["1"], (FORMAT, "1", text))), tensors)
    packed = _pack(content.progress, PROGRESS, tensors)
    texts = text, encode_document(_encoded(packed))
    return PreparedFile(dict(zip(METADATA_KEYS["2"], (FORMAT, "2", *texts))), tensors)


def content_of(file: PreparedFile) -> ModelContent:
    """Return what will be read from a file, but for its tensors, which stay as they are."""
    description, network = _parse(file.metadata["model"], _names_of_layers(file.tensors))
    arrays = [file.tensors[name] for name in _tensor_shapes(network)]
    progress = None
    if PROGRESS in file.metadata:
        progress = _read_progress(file.metadata[PROGRESS], dict(file.tensors))
    return _content(description, network, arrays, progress)


def write_prepared(path: Path, file: PreparedFile) -> None:
    """Write what `prepare` has made; raise a ValueError if the texts are too long for the format."""
    from safetensors.numpy import save

    tensors = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        for name, array in file.tensors.items()
    }
    data = save(tensors, {**file.metadata, **_checksums(file.metadata, tensors)})
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError(
            f"`model` must have a description, its weights aside, of at most {MAX_HEADER_BYTES} bytes"
        )
    path.write_bytes(data)


def check_can_write() -> None:
    """Raise an ImportError if the library that writes the files is missing."""
    with package_needed("a model file", "safetensors", "files"):
        import_module("safetensors.numpy")


def _describe_network(network: Network) -> dict[str, Any]:
    """Return a network's architecture, encoded for JSON."""
    from mlp_xp._disk.json_codec import encode

    activation = network.activation
    architecture = {
        "layer_sizes": list(network.layer_sizes),
        # The former name of `activation`, which the format keeps.
        "hidden": encode("activation", list(activation) if type(activation) is tuple else activation),
        "loss": encode("loss", network.loss),
        "alpha": network.alpha,
    }
    if network.matmul_precision != "highest":  # the default, also of files from before this parameter
        architecture["matmul_precision"] = network.matmul_precision
    return architecture


def _encoded(values: dict[str, Any]) -> dict[str, Any]:
    from mlp_xp._disk.json_codec import encode

    return {name: encode(name, value) for name, value in values.items()}


def _pack(value: Any, name: str, tensors: dict[str, HostArray]) -> Any:
    """Return a value with the names of tensors in the place of its arrays, which become these tensors."""
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _pack(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    return value


# Checksums.


def _checksums(metadata: dict[str, str], tensors: dict[str, HostArray]) -> dict[str, str]:
    """Return the entry of the metadata that holds checksums."""
    from hashlib import sha256

    from mlp_xp._disk.json_codec import encode_document

    if PROGRESS not in metadata:
        checksum = sha256(metadata["model"].encode())
        for array in tensors.values():
            checksum.update(_bytes_of(array).data)
        return {"sha256": checksum.hexdigest()}
    found = {name: sha256(metadata[name].encode()).hexdigest() for name in TEXTS}
    found |= {name: _checksum_of_tensor(array) for name, array in tensors.items()}
    return {"checksums": encode_document(found)}


def _checksum_of_tensor(array: HostArray) -> str:
    from hashlib import sha256

    checksum = sha256(f"{array.dtype.name} {array.shape} ".encode())
    checksum.update(_bytes_of(array).data)
    return checksum.hexdigest()


def _bytes_of(array: HostArray) -> HostArray:
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little_endian.reshape(-1).view(np.uint8)


def _check_finite(name: str, array: HostArray) -> None:
    """Raise a ValueError if a parameter is not finite, which a trained one always is."""
    check_finite(np, name, np.atleast_2d(array))


# Read.


def read_model(path: Path) -> ModelContent:
    """Return what a file holds, checked, without running any code that may be in it.

    Raises
    ------
    ModelFileError
    FileNotFoundError
    """
    with as_model_file_error(path), TensorFile(path) as file:
        metadata = _check_metadata(file.metadata)
        has_progress = PROGRESS in metadata
        names = _names_of_layers(file.tensors) if has_progress else set(file.tensors)
        expected = _parse_checksums(metadata, file.tensors.keys()) if has_progress else {}
        description, network = _parse(metadata["model"], names)
        shapes = _tensor_shapes(network)
        file.check({name: (description.dtype, shape) for name, shape in shapes.items()})
        tensors = {}
        for name in file.tensors:
            tensors[name] = array = file.read(name)
            if has_progress and _checksum_of_tensor(array) != expected[name]:
                raise ValueError(f"it is damaged or was altered: the checksum of {name!r} is another one")
            if name in shapes:
                _check_finite(name, array)
        layers = {name: tensors[name] for name in shapes}
        if not has_progress and _checksums(metadata, layers)["sha256"] != metadata["sha256"]:
            raise ValueError("it is damaged or was altered: its checksum is not that of its content")
        progress = _read_progress(metadata[PROGRESS], tensors) if has_progress else None
        return _content(description, network, list(layers.values()), progress)


def _names_of_layers(tensors: Iterable[str]) -> set[str]:
    return {name for name in tensors if not name.startswith(f"{PROGRESS}.")}


def _content(
    description: _Description, network: Network, arrays: list[HostArray], progress: dict[str, Any] | None
) -> ModelContent:
    return ModelContent(
        description.kind,
        network,
        named(zip(arrays[::2], arrays[1::2])),
        description.parameters,
        description.learned,
        progress,
        description.mlp_xp,
    )


@contextmanager
def as_model_file_error(path: Path) -> Iterator[None]:
    """Turn errors about the content of a file into a ModelFileError that names the file."""
    try:
        yield
    except ModelFileError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ModelFileError(
            f"{path} is not a model that can be loaded: {reason:.{MAX_MESSAGE_CHARACTERS}}"
        ) from error


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Check the format and its version, and that the texts of the version are there; return them."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format must be {FORMAT!r}, got {metadata.get('format')!r}")
    version = metadata.get("format_version", "")
    if version not in METADATA_KEYS:
        advice = ": a newer mlp_xp may know it" if version.isdecimal() else ""
        raise ValueError(f"its format must be of version {max(METADATA_KEYS)}, got {version!r}{advice}")
    if metadata.keys() != set(METADATA_KEYS[version]):
        raise ValueError(
            f"its metadata must be {', '.join(METADATA_KEYS[version])}, got {', '.join(sorted(metadata))}"
        )
    return metadata


def _parse_checksums(metadata: dict[str, str], tensors: Set[str]) -> dict[str, str]:
    """Return the checksums of texts and tensors by their names, after those of the texts are checked."""
    from hashlib import sha256

    checksums = _load_object(metadata["checksums"], "checksums")
    if checksums.keys() != {*TEXTS, *tensors}:
        raise ValueError("`checksums` must be those of the texts and of each tensor")
    for name in TEXTS:
        if sha256(metadata[name].encode()).hexdigest() != checksums[name]:
            raise ValueError(
                f"it is damaged or was altered: the checksum of its text {name!r} is another one"
            )
    return checksums


def _load_object(text: str, name: str) -> dict[str, Any]:
    from mlp_xp._disk.json_codec import load_json

    document = load_json(text)
    if not isinstance(document, dict):
        raise ValueError(f"`{name}` must be a JSON object")
    return document


def _read_progress(text: str, tensors: dict[str, HostArray]) -> dict[str, Any]:
    """Return the progress, with the arrays that it refers to, each of them once."""
    from mlp_xp._disk.json_codec import decode_document

    rest = {name: array for name, array in tensors.items() if name.startswith(f"{PROGRESS}.")}
    progress = _unpack(decode_document(_load_object(text, PROGRESS)), rest)
    if rest:
        raise ValueError(f"`progress` must refer to each of its tensors, not to {sorted(rest)[:4]}")
    if not isinstance(progress, dict):
        raise ValueError("`progress` must be an object of names and values")
    return progress


def _unpack(value: Any, tensors: dict[str, HostArray]) -> Any:
    """Undo `_pack`; tensors are taken away."""
    if isinstance(value, dict):
        name = value.get("tensor")
        if len(value) == 1 and isinstance(name, str):
            return tensors.pop(name)
        return {key: _unpack(item, tensors) for key, item in value.items()}
    return [_unpack(item, tensors) for item in value] if isinstance(value, list) else value


def _parse(text: str, tensors: Set[str]) -> tuple[_Description, Network]:
    """Return the description in a JSON text, checked, and its network, which has these tensors."""
    from mlp_xp._disk.json_codec import decode_document, load_json

    document = load_json(text)
    _check_names(document, tensors)
    document = decode_document(document)
    kinds = {
        name: dict if name in ("network", "parameters", "learned") else str for name in _Description._fields
    }
    if not isinstance(document, dict) or {key: type(value) for key, value in document.items()} != kinds:
        raise ValueError(f"its description must have {', '.join(kinds)}, each of its type")
    description = _Description(**document)
    lookup("kind", description.kind, dict.fromkeys(("Network", *ESTIMATORS)))
    if description.kind == "Network" and (description.parameters or description.learned):
        raise ValueError("`parameters` and `learned` must be empty for a network")
    lookup("dtype", description.dtype, dict.fromkeys(PARAMETER_DTYPES))
    if description.network.keys() - {"matmul_precision"} != {"layer_sizes", "hidden", "loss", "alpha"}:
        raise ValueError(
            f"`network` must have layer_sizes, hidden, loss, alpha, got {list(description.network)}"
        )
    architecture = dict(description.network)
    return description, Network(activation=architecture.pop("hidden"), **architecture)


def _check_names(document: Any, found: Set[str]) -> None:
    """Check that there are two tensors for each layer, before anything is made of a number of layers."""
    network = document.get("network") if isinstance(document, dict) else None
    if not isinstance(network, dict) or not {"layer_sizes", "hidden"} <= network.keys():
        return  # `_parse` says what it must have
    sizes, hidden = network["layer_sizes"], network["hidden"]
    if not isinstance(sizes, list):
        raise ValueError(f"`layer_sizes` must be a sequence of integers, got {sizes!r:.60}")
    if isinstance(hidden, dict) and "$activation" not in hidden:
        raise ValueError("`hidden` must be an activation, or a list of them")
    if isinstance(hidden, list) and len(hidden) != len(sizes) - 2:
        raise ValueError(f"`hidden` must be one for each of {len(sizes) - 2} layers, got {len(hidden)}")
    n_layers = min(len(sizes) - 1, len(found) // 2 + 1)
    expected = {name for layer in range(n_layers) for name in _tensor_names(layer)}
    if found != expected:
        missing, surplus = sorted(expected - found)[:4], sorted(found - expected)[:4]
        raise ValueError(f"its tensors must be those of the layers, missing are {missing}, surplus {surplus}")


def _tensor_names(layer: int) -> tuple[str, str]:
    return f"layers.{layer}.weight", f"layers.{layer}.bias"


def _tensor_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the layers' tensors, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (n_in, n_out) in enumerate(pairwise(network.layer_sizes)):
        weight, bias = _tensor_names(index)
        shapes |= {weight: (n_in, n_out), bias: (n_out,)}
    return shapes


set_public_module("mlp_xp.files", globals(), ("ModelFileError",))
