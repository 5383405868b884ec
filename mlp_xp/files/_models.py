"""`save_model` and `load_model`: from models to what their files hold, and back."""

from __future__ import annotations

import os
from typing import Any

from mlp_xp._arrays import Placement, placement, to_host, type_name
from mlp_xp._disk.model_files import (
    ESTIMATORS,
    ModelContent,
    ModelFileError,
    as_model_file_error,
    check_can_write,
    content_of,
    prepare,
    read_model,
    write_prepared,
)
from mlp_xp._network import Network
from mlp_xp._parameters import map_tree, named
from mlp_xp._training.history import Trained
from mlp_xp._validation import check_bool, check_path
from mlp_xp.backends import backend as find_backend

__all__ = ["ModelFileError", "load_model", "save_model", "trusted_types"]

trusted_types = ["mlp_xp.Activation", "mlp_xp.ProgressBar", *map("mlp_xp.estimators.{}".format, ESTIMATORS)]
"""Types of this library in a fitted estimator, for `skops.io.load` and others that ask which to trust.

They hold values and functions; a function of your own, as in an activation, has to be trusted by its name.
"""


def save_model(path: str | os.PathLike[str], model: Any, *, with_progress: bool = False) -> None:
    """Save a fitted estimator, or a network with its parameters, in a file.

    Parameters
    ----------
    path : str or path
        The file, by convention with the suffix ".safetensors". An existing file is replaced atomically: it
        holds either the old model or the new one.
    model : MLPClassifier, MLPRegressor or tuple ``(network, params)``
        On any device. Its parameters must be float16, float32 or float64, and finite.
    with_progress : bool, default=False
        Save what continues the training too: the optimizer's state, the order of the rows, the generator and
        early stopping. After loading, `partial_fit` and `warm_start` go on as they would have. Of a network
        the tuple must be ``(network, trained)``, with what `train` returned, and ``train(..., resume=path)``
        goes on from the file.

    Raises
    ------
    TypeError, ValueError
        If `model` is something else or has no progress to save, or cannot be in a file: an activation or a
        loss of your own (which is code: pickle such a model), another dtype, a parameter that `fit` would
        refuse. No file is written.
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
    All parameters and fitted attributes are saved. Without `with_progress`, or after "lbfgs", `partial_fit`
    and `warm_start` continue from the weights alone. Callbacks and scikit-learn's metadata requests are not
    saved.

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
    from mlp_xp._disk.folders import atomic_write

    target, with_progress = check_path(path), check_bool("with_progress", with_progress)
    check_can_write()
    content = _describe(model, with_progress=with_progress)
    prepared = prepare(content)
    # Check that the file can be loaded while the model is still in memory.
    _build_model(content_of(prepared), placement(weight=prepared.tensors["layers.0.weight"]))
    with atomic_write(target) as file:
        write_prepared(file, prepared)


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
    found = find_backend("numpy" if backend is None else backend)
    path = check_path(path)
    content = read_model(path)
    with as_model_file_error(path):
        place = found.place(placement(weight=content.params[0][0]).dtype_name)
        return _build_model(content, place)


def _describe(model: Any, *, with_progress: bool) -> ModelContent:
    """Return what the file of a model is to hold."""
    kind = type(model).__name__
    if isinstance(model, tuple) and len(model) == 2 and type(model[0]) is Network:
        from mlp_xp._training.progress import to_file_content

        network, params = model
        progress = None
        if isinstance(params, Trained):
            progress = params.progress if with_progress else None
            params = params.params
        if with_progress and progress is None:
            raise ValueError(
                "`model` must be a tuple (network, trained), with what `train` returned, where "
                "`with_progress` is True"
            )
        host = named(map_tree(to_host, params)) if progress is not None else params
        file_content = None if progress is None else to_file_content(progress, host)
        return ModelContent("Network", network, host, {}, {}, file_content)
    if type(model).__module__ == "mlp_xp.estimators" and kind in ESTIMATORS:
        from mlp_xp.estimators._fitted import describe

        return describe(model, with_progress=with_progress)
    raise TypeError(
        "`model` must be an MLPClassifier, an MLPRegressor or a tuple (network, params), got "
        f"{type_name(model)}"
    )


def _build_model(content: ModelContent, place: Placement) -> Any:
    """Return the described model, in a place; its constructor checks the values."""
    if content.kind == "Network":
        return content.network, named(map_tree(place.transfer, content.params))
    from mlp_xp import estimators

    estimator = getattr(estimators, content.kind)  # raises an ImportError if scikit-learn is missing
    from mlp_xp.estimators._fitted import restore

    parameters = dict(content.parameters)
    unknown = sorted(parameters.keys() - estimator().get_params().keys())
    if unknown:
        raise ValueError(f"mlp_xp {content.mlp_xp} wrote it with parameters unknown here: {unknown}")
    if parameters.get("backend") != "auto":
        parameters["backend"] = None
    return restore(estimator(**parameters), content, place)
