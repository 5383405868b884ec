"""Models as files: one safetensors file for each, which any safetensors reader opens and which runs no code.

The tensors are "layers.0.weight", "layers.0.bias", ... Beside them stand a format and its version, a JSON
text that says what they are the weights of (see `mlp_xp.files._json_codec`), and a SHA-256 of that text
and of the tensors' bytes in the order of the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlp_xp._arrays import HostArray, check_finite, to_host
from mlp_xp._network import Network
from mlp_xp._parameters import Parameters, flatten, named
from mlp_xp._validation import lookup
from mlp_xp.backends import backend as find_backend

if TYPE_CHECKING:  # what only files need is imported when there is one
    import os
    from pathlib import Path

FORMAT = "mlp_xp"
VERSION = 1
METADATA = ("format", "format_version", "model", "sha256")

HEADER_LIMIT = 2**26
"""Bytes of a file's header, which is read as a whole before anything in it can be checked."""

MESSAGE_LIMIT = 600
"""Characters of an error's message; what it tells of a file may be of any length."""

DTYPES = {"float16": "F16", "float32": "F32", "float64": "F64"}
"""What parameters may have, and what safetensors calls it."""

ESTIMATORS = ("MLPClassifier", "MLPRegressor")


class ModelFileError(ValueError):
    """No model can be loaded from a file; the message names it and says what is wrong."""


class _Description(NamedTuple):
    """A model without its parameters, as its JSON text has it."""

    kind: str
    """"Network" or the name of an estimator."""
    mlp_xp: str
    """The version that wrote it, for people."""
    dtype: str
    network: dict[str, Any]
    parameters: dict[str, Any]
    """Of the estimator; none for a network."""
    learned: dict[str, Any]
    """What the estimator learned beside its weights."""


def save_model(path: str | os.PathLike[str], model: Any) -> None:
    """Save a fitted estimator, or a network with its parameters, in a file.

    Parameters
    ----------
    path : str or path
        The file, by convention with the suffix ".safetensors". One that is there already is replaced in
        one go: whatever happens, it holds the old model or the new one, whole.
    model : MLPClassifier, MLPRegressor or tuple ``(network, params)``
        On any device. Its parameters must be float16, float32 or float64, and finite.

    Raises
    ------
    TypeError, ValueError
        If `model` is something else, or holds what no file can: an activation or a loss of your own (which
        is code: pickle such a model), another dtype, a parameter that `fit` would refuse. No file is
        written.
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
    Everything that predicts, tells of the training and goes on with it is kept, but for the optimizer's
    state and what early stopping remembers: `partial_fit` and `warm_start` go on from the weights, as after
    "lbfgs". Callbacks and metadata requests of scikit-learn's are not kept either.

    Numbers of NumPy's in parameters come back as Python's.

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
    from pathlib import Path

    from mlp_xp.files._folders import replacing
    from mlp_xp.files._json_codec import write_json

    library = _safetensors()
    description, network, params = _describe(model)
    tensors = dict(zip(dict(_shapes(network)), map(to_host, flatten(params))))
    text = write_json(description._asdict())
    checksum = sha256(text.encode())
    for name, array in tensors.items():
        _add(checksum, name, array)
    # What could not be loaded must be known while the model is still there.
    _make(*_parse(text), params)
    metadata = dict(zip(METADATA, (FORMAT, str(VERSION), text, checksum.hexdigest())))
    data = library.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata
    )
    if int.from_bytes(data[:8], "little") > HEADER_LIMIT:
        raise ValueError(
            f"`model` must be described, its weights aside, in {HEADER_LIMIT} bytes, it takes more"
        )
    with replacing(Path(path)) as file:
        file.write_bytes(data)


def load_model(path: str | os.PathLike[str], backend: str | None = None) -> Any:
    """Load what `save_model` saved; no file, whoever made it, runs code.

    Parameters
    ----------
    path : str or path
    backend : {None, "auto", "numpy", "cupy", "torch", "jax"}, default=None
        Where the arrays go, on whatever device they were trained. None is NumPy. "jax" with a float64
        model switches `jax_enable_x64` on for the whole process.

    Returns
    -------
    MLPClassifier, MLPRegressor or tuple ``(network, params)``
        As it was saved, its numbers bit for bit. An estimator's parameter `backend` is None, unless it was
        "auto": the library it names may not be here.

    Raises
    ------
    ModelFileError
        If the file is no model of ours, damaged, altered, or of a newer format. A checksum finds damage; it
        does not prove who made the file.
    FileNotFoundError
        If there is no such file.
    BackendUnavailableError
        If that library cannot be used here.
    ImportError
        If safetensors is not installed or, for an estimator, scikit-learn.

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
    from pathlib import Path

    library = _safetensors()
    found = find_backend("numpy" if backend is None else backend)
    path, arrays = Path(path), []
    with _telling_of(path):
        _check_header(path)
        with library.safe_open(path, framework="np") as file:
            text, expected = _check_metadata(file.metadata() or {})
            description, network = _parse(text)
            _check_tensors(file, network, description.dtype)
            place, checksum = found.place(description.dtype), sha256(text.encode())
            for name, _ in _shapes(network):
                array = file.get_tensor(name)
                _add(checksum, name, array)
                arrays.append(place.from_host(array))
        if checksum.hexdigest() != expected:
            raise ValueError("it is damaged or was altered: its checksum is not that of its content")
        return _make(description, network, named(zip(arrays[::2], arrays[1::2])))


# A model and its description.


def _describe(model: Any) -> tuple[_Description, Network, Parameters]:
    """Return the description, in what stands for it in JSON, with the network and the parameters."""
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
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    place = network._check_params(params)
    if place.dtype_name not in DTYPES or place.dtype != getattr(place.xp, place.dtype_name):
        raise TypeError(f"`model` must have parameters of one of {list(DTYPES)}, got {place.dtype}")
    parameters = {name: encode(name, value) for name, value in parameters.items()}
    learned = {name: encode(name, value) for name, value in learned.items()}
    each = network.activation
    architecture = {
        "layer_sizes": list(network.layer_sizes),
        "hidden": encode("activation", list(each) if type(each) is tuple else each),
        "loss": encode("loss", network.loss),
        "alpha": network.alpha,
    }
    if network.matmul_precision != "highest":  # as files have it that say nothing of it
        architecture["matmul_precision"] = network.matmul_precision
    described = _Description(kind, __version__, place.dtype_name, architecture, parameters, learned)
    return described, network, params


def _parse(text: str) -> tuple[_Description, Network]:
    """Return what a description says, and the network in it."""
    from mlp_xp.files._json_codec import read_json

    document = read_json(text)
    kinds = {
        name: dict if name in ("network", "parameters", "learned") else str for name in _Description._fields
    }
    if not isinstance(document, dict) or {key: type(value) for key, value in document.items()} != kinds:
        raise ValueError(f"its description must have {', '.join(kinds)}, each of its type")
    description = _Description(**document)
    lookup("kind", description.kind, dict.fromkeys(("Network", *ESTIMATORS)))
    lookup("dtype", description.dtype, DTYPES)
    if description.network.keys() - {"matmul_precision"} != {"layer_sizes", "hidden", "loss", "alpha"}:
        raise ValueError(
            f"`network` must have layer_sizes, hidden, loss, alpha, got {list(description.network)}"
        )
    architecture = dict(description.network)
    return description, Network(activation=architecture.pop("hidden"), **architecture)


def _make(description: _Description, network: Network, params: Parameters) -> Any:
    """Return the described model, after all checks that its own code makes."""
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


def _shapes(network: Network) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name the tensors of the layers, in order, with their shapes."""
    for index, (n_in, n_out) in enumerate(pairwise(network.layer_sizes)):
        yield f"layers.{index}.weight", (n_in, n_out)
        yield f"layers.{index}.bias", (n_out,)


def _add(checksum: Any, name: str, array: HostArray) -> None:
    """Add an array to the checksum; training ends with finite numbers, so others are damage."""
    check_finite(np, name, np.atleast_2d(array))
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    checksum.update(little_endian.reshape(-1).view(np.uint8))


# A file.


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ImportError("models are saved with safetensors: pip install 'mlp_xp[files]'") from error
    return safetensors


@contextmanager
def _telling_of(path: Path) -> Iterator[None]:
    """Turn what is wrong with the content of a file into one error that names the file."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, _safetensors().SafetensorError) as error:
        words = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ModelFileError(f"{path} is not a model that can be loaded: {words:.{MESSAGE_LIMIT}}") from error


def _check_header(path: Path) -> None:
    """Check how long the header says it is, before anything reads it."""
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"it is {'a folder' if path.is_dir() else 'no file'}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"its header would be {length} bytes long, it has {size}: cut short, or no safetensors"
        )
    if length > HEADER_LIMIT:
        raise ValueError(f"its header must be {HEADER_LIMIT} bytes long at most, got {length}")


def _check_metadata(metadata: dict[str, str]) -> tuple[str, str]:
    """Check that this is our format; return the description and the checksum."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format must be {FORMAT!r}, got {metadata.get('format')!r}")
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        advice = ": a newer mlp_xp may know it" if version.isdecimal() else ""
        raise ValueError(f"its format must be of version {VERSION}, got {version!r}{advice}")
    if metadata.keys() != set(METADATA):
        raise ValueError(f"its metadata must be {', '.join(METADATA)}, got {', '.join(sorted(metadata))}")
    return metadata["model"], metadata["sha256"]


def _check_tensors(file: Any, network: Network, dtype: str) -> None:
    """Check that the file has the tensors of this network, and no others."""
    expected, found = dict(_shapes(network)), set(file.keys())
    if found != expected.keys():
        missing, surplus = sorted(expected.keys() - found), sorted(found - expected.keys())
        raise ValueError(f"its tensors must be those of the layers, missing are {missing}, surplus {surplus}")
    for name, shape in expected.items():
        tensor = file.get_slice(name)
        got = tensor.get_dtype(), tuple(tensor.get_shape())
        if got != (DTYPES[dtype], shape):
            raise ValueError(
                f"{name!r} must be {DTYPES[dtype]} of shape {shape}, got {got[0]} of shape {got[1]}"
            )
