"""Model files: one safetensors file per model, which any safetensors reader opens and which runs no code.

The tensors are "layers.0.weight", "layers.0.bias", ... The file's metadata are the format and its version, a
JSON description of the model (see `mlp_xp.files._json_codec`), and a SHA-256 of the description and of the
tensors' bytes in the order of the layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlp_xp._arrays import HostArray, check_finite, to_host, type_name
from mlp_xp._messages import package_needed
from mlp_xp._network import Network
from mlp_xp._parameters import Parameters, flatten, named
from mlp_xp._validation import check_path, lookup
from mlp_xp.backends import backend as find_backend
from mlp_xp.files._tensors import DTYPES, MAX_HEADER_BYTES, TensorFile

if TYPE_CHECKING:  # modules that only this one needs are imported in its functions: `import mlp_xp` is faster
    from pathlib import Path

FORMAT = "mlp_xp"
VERSION = 1
METADATA_KEYS = ("format", "format_version", "model", "sha256")

MAX_MESSAGE_CHARACTERS = 600
"""Maximum length of an error's message, as it may quote the file, whose texts are of any length."""

ESTIMATORS = ("MLPClassifier", "MLPRegressor")

trusted_types = ["mlp_xp.Activation", "mlp_xp.ProgressBar", *map("mlp_xp.estimators.{}".format, ESTIMATORS)]
"""Types of this library in a fitted estimator, for `skops.io.load` and others that ask which to trust.

They hold values and functions; a function of your own, as in an activation, has to be trusted by its name.
"""


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


class _Description(NamedTuple):
    """The JSON description of a model: everything but its weights and biases."""

    kind: str
    """"Network" or the name of an estimator."""
    mlp_xp: str
    """The version of mlp_xp that wrote the file."""
    dtype: str
    network: dict[str, Any]
    parameters: dict[str, Any]
    """Parameters of the estimator; empty for a network."""
    learned: dict[str, Any]
    """Fitted attributes of the estimator, without the weights; empty for a network."""


def save_model(path: str | os.PathLike[str], model: Any) -> None:
    """Save a fitted estimator, or a network with its parameters, in a file.

    Parameters
    ----------
    path : str or path
        The file, by convention with the suffix ".safetensors". An existing file is replaced atomically: it
        holds either the old model or the new one.
    model : MLPClassifier, MLPRegressor or tuple ``(network, params)``
        On any device. Its parameters must be float16, float32 or float64, and finite.

    Raises
    ------
    TypeError, ValueError
        If `model` is something else, or cannot be in a file: an activation or a loss of your own (which is
        code: pickle such a model), another dtype, a parameter that `fit` would refuse. No file is written.
    NotFittedError
        If the estimator has not been fitted.
    OSError
        If the file cannot be written.
    ImportError
        If safetensors is not installed.

    See Also
    --------
    load_model

    Notes
    -----
    All parameters and fitted attributes are saved, except the optimizer's state and that of early stopping:
    `partial_fit` and `warm_start` continue from the weights alone, as they do after "lbfgs". Callbacks and
    scikit-learn's metadata requests are not saved either.

    NumPy scalars in parameters are loaded as Python numbers.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from mlp_xp import Network, load_model, save_model
    >>> network = Network((2, 3, 1), activation="tanh", loss="squared_error")
    >>> params = network.init(seed=0, like=np.ones((1, 2), dtype=np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.safetensors"
    ...     save_model(path, (network, params))
    ...     loaded, weights = load_model(path)
    >>> loaded == network, np.array_equal(weights[0].weight, params[0].weight)
    (True, True)
    """
    from hashlib import sha256

    from mlp_xp.files._folders import atomic_write
    from mlp_xp.files._json_codec import encode_document

    target = check_path(path)
    with package_needed("a model file", "safetensors", "files"):
        from safetensors.numpy import save
    description, network, params = _describe(model)
    tensors = dict(zip(dict(_tensor_shapes(network)), map(to_host, flatten(params))))
    text = encode_document(description._asdict())
    checksum = sha256(text.encode())
    for name, array in tensors.items():
        _update_checksum(checksum, name, array)
    # Check that the file can be loaded while the model is still in memory.
    _build_model(*_parse(text, tensors.keys()), params)
    metadata = dict(zip(METADATA_KEYS, (FORMAT, str(VERSION), text, checksum.hexdigest())))
    data = save(
        {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in tensors.items()},
        metadata,
    )
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError(
            f"`model` must have a description, its weights aside, of at most {MAX_HEADER_BYTES} bytes"
        )
    with atomic_write(target) as file:
        file.write_bytes(data)


def load_model(path: str | os.PathLike[str], backend: str | None = None) -> Any:
    """Load a model that `save_model` saved, without running any code that may be in the file.

    Parameters
    ----------
    path : str or path
    backend : {None, "auto", "numpy", "cupy", "torch", "jax"}, default=None
        The library of the loaded arrays, whatever they were trained in. None is NumPy. "jax" with a float64
        model switches `jax_enable_x64` on for the whole process.

    Returns
    -------
    MLPClassifier, MLPRegressor or tuple ``(network, params)``
        The model, its numbers identical to the bit. An estimator's parameter `backend` is None, unless it was
        "auto", as the library that it names may not be installed.

    Raises
    ------
    ModelFileError
        If the file is not a model of this library, is damaged, altered, or has a newer format. The checksum
        detects damage; it does not prove who made the file.
    FileNotFoundError
        If there is no such file.
    BackendUnavailableError
        If the library of `backend` is not available.
    ImportError
        If it is an estimator, and scikit-learn is not installed.

    See Also
    --------
    save_model

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from mlp_xp import MLPRegressor, load_model, save_model
    >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
    >>> model = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0.0, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "line.safetensors"
    ...     save_model(path, model)
    ...     load_model(path).predict([[10.0]]).round(1)
    array([21.])
    """
    from hashlib import sha256

    found = find_backend("numpy" if backend is None else backend)
    path, arrays = check_path(path), []
    with _as_model_file_error(path):
        with TensorFile(path) as file:
            text, expected = _check_metadata(file.metadata)
            description, network = _parse(text, file.tensors.keys())
            shapes = dict(_tensor_shapes(network))
            file.check(shapes, description.dtype)
            place, checksum = found.place(description.dtype), sha256(text.encode())
            for name, shape in shapes.items():
                array = file.read(name, shape, description.dtype)
                _update_checksum(checksum, name, array)
                arrays.append(place.from_host(array))
        if checksum.hexdigest() != expected:
            raise ValueError("it is damaged or was altered: its checksum is not that of its content")
        return _build_model(description, network, named(zip(arrays[::2], arrays[1::2])))


# Model and description.


def _describe(model: Any) -> tuple[_Description, Network, Parameters]:
    """Return the description, its values encoded for JSON, and the network and the parameters."""
    from mlp_xp._version import __version__
    from mlp_xp.files._json_codec import encode

    kind = type(model).__name__
    parameters: dict[str, Any] = {}
    learned: dict[str, Any] = {}
    if isinstance(model, tuple) and len(model) == 2 and type(model[0]) is Network:
        kind, (network, params) = "Network", model
    elif type(model).__module__ == "mlp_xp.estimators" and kind in ESTIMATORS:
        from mlp_xp.estimators._fitted import fitted_state

        network, params, learned = fitted_state(model)
        parameters = model.get_params(deep=False)
    else:
        raise TypeError(
            "`model` must be an MLPClassifier, an MLPRegressor or a tuple (network, params), got "
            f"{type_name(model)}"
        )
    place = network._check_params(params)
    host = place.host_dtype
    if host.name not in DTYPES or host.name != place.dtype_name:  # bfloat16 is float32 on the host
        raise TypeError(f"`model` must have parameters of one of {list(DTYPES)}, got {place.dtype}")
    parameters = {name: encode(name, value) for name, value in parameters.items()}
    learned = {name: encode(name, value) for name, value in learned.items()}
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
    described = _Description(kind, __version__, place.dtype_name, architecture, parameters, learned)
    return described, network, params


def _parse(text: str, tensors: Set[str]) -> tuple[_Description, Network]:
    """Return the description in a JSON text, checked, and its network, which has these tensors."""
    from mlp_xp.files._json_codec import decode_document, load_json

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
    lookup("dtype", description.dtype, DTYPES)
    if description.network.keys() - {"matmul_precision"} != {"layer_sizes", "hidden", "loss", "alpha"}:
        raise ValueError(
            f"`network` must have layer_sizes, hidden, loss, alpha, got {list(description.network)}"
        )
    architecture = dict(description.network)
    return description, Network(activation=architecture.pop("hidden"), **architecture)


def _build_model(description: _Description, network: Network, params: Parameters) -> Any:
    """Return the described model; its constructor checks the values."""
    if description.kind == "Network":
        return network, params
    from mlp_xp import estimators

    estimator = getattr(estimators, description.kind)  # raises an ImportError if scikit-learn is missing
    from mlp_xp.estimators._fitted import restore

    parameters = dict(description.parameters)
    unknown = sorted(parameters.keys() - estimator().get_params().keys())
    if unknown:
        raise ValueError(f"mlp_xp {description.mlp_xp} wrote it with parameters unknown here: {unknown}")
    if parameters.get("backend") != "auto":
        parameters["backend"] = None
    return restore(estimator(**parameters), network, params, description.learned)


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


def _tensor_shapes(network: Network) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the layers' tensors, in order."""
    for index, (n_in, n_out) in enumerate(pairwise(network.layer_sizes)):
        weight, bias = _tensor_names(index)
        yield weight, (n_in, n_out)
        yield bias, (n_out,)


def _update_checksum(checksum: Any, name: str, array: HostArray) -> None:
    """Add an array to the checksum; raise a ValueError if it is not finite, which a trained one always is."""
    check_finite(np, name, np.atleast_2d(array))
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    checksum.update(little_endian.reshape(-1).view(np.uint8))


# File.


@contextmanager
def _as_model_file_error(path: Path) -> Iterator[None]:
    """Turn errors about the content of a file into a ModelFileError that names the file."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ModelFileError(
            f"{path} is not a model that can be loaded: {reason:.{MAX_MESSAGE_CHARACTERS}}"
        ) from error


def _check_metadata(metadata: dict[str, str]) -> tuple[str, str]:
    """Check the format and its version; return the description and the checksum."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format must be {FORMAT!r}, got {metadata.get('format')!r}")
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        advice = ": a newer mlp_xp may know it" if version.isdecimal() else ""
        raise ValueError(f"its format must be of version {VERSION}, got {version!r}{advice}")
    if metadata.keys() != set(METADATA_KEYS):
        raise ValueError(
            f"its metadata must be {', '.join(METADATA_KEYS)}, got {', '.join(sorted(metadata))}"
        )
    return metadata["model"], metadata["sha256"]
