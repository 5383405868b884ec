"""Access to a fitted estimator: its network and parameters, its outputs, its state for a model file."""

from __future__ import annotations

from dataclasses import replace
from types import NoneType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.utils.validation import check_is_fitted

from mlp_xp._arrays import Array, HostArray, Placement, placement, to_host, without_autodiff
from mlp_xp._cache import cached_by_arguments
from mlp_xp._devices import MEMORY_RELEASE_HOOKS, computing, room_beside
from mlp_xp._disk.model_files import ModelContent
from mlp_xp._losses import LOSS_BY_OUT_ACTIVATION
from mlp_xp._network import Network
from mlp_xp._parameters import Layer, Parameters, all_finite, are_equal, copy_tree, plain
from mlp_xp._samples import Samples, moved_if_they_fit
from mlp_xp._training.checkpoint_files import progress_of
from mlp_xp._training.progress import CONTINUED, move_progress, to_file_content
from mlp_xp._uploads import streaming
from mlp_xp._validation import check_integer, lookup
from mlp_xp._warnings import warn
from mlp_xp.estimators._input import check_same_place, check_samples, computing_place, samples_at
from mlp_xp.estimators._interface import Estimator

OUT_ACTIVATION_BY_LOSS = {loss: output for output, loss in LOSS_BY_OUT_ACTIVATION.items()}
"""scikit-learn's name for the output's activation, by the network's loss."""

FITTED_ATTRIBUTE_TYPES: dict[str, tuple[type, ...]] = {
    "n_iter_": (int,),
    "t_": (int,),
    "loss_": (float,),
    "best_loss_": (float, NoneType),
    "best_validation_score_": (float, NoneType),
    "loss_curve_": (list,),
    "val_loss_curve_": (list, NoneType),
    "validation_scores_": (list, NoneType),
    "_score_name": (str, NoneType),
}
"""Attributes that model files contain, and their types: numbers, curves, and which score was measured."""


def network_of(estimator: Estimator) -> Network:
    """Return the network that the fitted weights belong to."""
    sizes = (estimator.coefs_[0].shape[0], *(coef.shape[1] for coef in estimator.coefs_))
    return _network(
        sizes,
        estimator._activation(len(sizes) - 2),
        LOSS_BY_OUT_ACTIVATION[estimator.out_activation_],
        estimator.matmul_precision,
    )


@cached_by_arguments
def _network(layer_sizes: tuple[int, ...], activation: Any, loss: str, matmul_precision: str) -> Network:
    return Network(layer_sizes, activation=activation, loss=loss, matmul_precision=matmul_precision)


def outputs(estimator: Estimator, X: Any, method: str) -> tuple[Array, Placement]:
    """Return the network's outputs for samples, in the place where X lives, and that place."""
    check_is_fitted(estimator)
    X, home = check_samples(estimator, X, reset=False)
    fitted = check_same_place(estimator, home, method)
    there = computing_place(estimator.backend, fitted)
    network = network_of(estimator)
    samples = Samples(there, samples_at(there, X))
    params = params_at(estimator, there)
    with computing(there, estimator.matmul_precision), without_autodiff(there.xp), streaming():
        if samples.is_on_host:
            samples = _moved_if_room(network, samples)
        found = network._blockwise(samples, params, network._resolved_loss.link, fetch=samples.is_on_host)
        if not all_finite(placement(outputs=found).xp, found):
            _warn_of_overflow(there, found, method)
    return fitted.transfer(found), fitted


def _moved_if_room(network: Network, samples: Samples) -> Samples:
    """Return samples on the device if it has room for them beside the outputs, of which it makes a copy."""
    place, n_outputs = samples.place, len(samples) * network.layer_sizes[-1]
    n_bytes = 2 * n_outputs * int(place.xp.finfo(place.dtype).bits) // 8
    samples, _ = moved_if_they_fit(room_beside(place, n_bytes + network._bytes_of_block(samples)), samples)
    return samples


def _warn_of_overflow(place: Placement, found: Array, method: str) -> None:
    n_finite = int(np.isfinite(to_host(found)).all(axis=1).sum())
    warn(
        f"{method} overflows {place.dtype_name} for {found.shape[0] - n_finite} of {found.shape[0]} samples, "
        "which get infinity or NaN. Scale `X` as the samples of the training were scaled, or fit in float64",
        RuntimeWarning,
    )


# Weights, copied to another device once.


class _DeviceCopy:
    """Weights on the host, and their copies in the place to compute."""

    def __init__(self, host: list[Array], there: Placement) -> None:
        self.host = host
        self.there = there
        self.arrays = list(map(there.transfer, host))

    def is_of(self, host: list[Array], there: Placement) -> bool:
        """Whether these weights are the ones copied, to that place: users may have changed them since."""
        return self.there == there and len(host) == len(self.host) and all(map(_equal, host, self.host))


def _equal(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


_DEVICE_COPIES: WeakKeyDictionary[Estimator, _DeviceCopy] = WeakKeyDictionary()
"""By estimator. Not an attribute: the estimator's pickle must not need the other array library."""

MEMORY_RELEASE_HOOKS.append(_DEVICE_COPIES.clear)


def params_at(estimator: Estimator, there: Placement) -> tuple[Layer, ...]:
    """Return the fitted weights in the place to compute; copies of weights on the host are cached."""
    here = placement(coefs_=estimator.coefs_[0])
    arrays = [*estimator.coefs_, *estimator.intercepts_]
    if here.xp is np and not here.same_as(there):
        copy = _DEVICE_COPIES.get(estimator)
        if copy is None or not copy.is_of(arrays, there):
            copy = _DEVICE_COPIES[estimator] = _DeviceCopy([array.copy() for array in arrays], there)
        arrays = copy.arrays
    elif not here.same_as(there):
        arrays = list(map(there.transfer, arrays))
    n_layers = len(estimator.coefs_)
    return tuple(map(Layer, arrays[:n_layers], arrays[n_layers:]))


def as_lists(params: Parameters, home: Placement) -> tuple[list[Array], list[Array]]:
    """Return weights and biases as the lists `coefs_` and `intercepts_`, where X lives."""
    weights, biases = zip(*params)
    return [home.transfer(weight) for weight in weights], [home.transfer(bias) for bias in biases]


def set_weights(estimator: Estimator, params: Parameters, home: Placement) -> None:
    """Set the weights that users see."""
    estimator.coefs_, estimator.intercepts_ = as_lists(params, home)


def forget_device_copy(estimator: Estimator) -> None:
    """Free the cached copy of the weights, which have changed."""
    _DEVICE_COPIES.pop(estimator, None)


# Model files.


def describe(estimator: Estimator, *, with_progress: bool = False) -> ModelContent:
    """Return what the file of a fitted estimator holds: its parameters, weights and attributes.

    Raises
    ------
    NotFittedError
    ValueError
        If it has no progress, and one is asked for.
    """
    check_is_fitted(estimator)
    learned = {name: vars(estimator)[name] for name in FITTED_ATTRIBUTE_TYPES}
    learned["feature_names"] = list(vars(estimator).get("feature_names_in_", ())) or None
    params = tuple(map(Layer, estimator.coefs_, estimator.intercepts_))
    return ModelContent(
        type(estimator).__name__,
        replace(network_of(estimator), alpha=estimator.alpha),
        params,
        estimator.get_params(deep=False),
        learned | estimator._label_state(),
        _progress_to_save(estimator, params) if with_progress else None,
    )


def _progress_to_save(estimator: Estimator, params: Parameters) -> dict[str, Any]:
    continuation = estimator._continuation
    if continuation is None:
        raise ValueError(
            '`model` must have been trained by epochs, "sgd" or "adam", where `with_progress` is True: '
            f"solver={estimator.solver!r}, or the file that it was loaded from, left nothing to continue"
        )
    progress, stopping = continuation["progress"], continuation["progress"]["early_stopping"]
    best = None if stopping is None else stopping["best_params"]
    place = placement(coefs_=params[0][0])
    if not are_equal(place.xp, move_progress(progress, place)["params"] if best is None else best, params):
        # The user has changed the weights: what was best before is no longer.
        progress = {**progress, "params": plain(params), "early_stopping": None}
    further = continuation_to_file(continuation["validation_random_state"], continuation["metric"])
    return to_file_content(progress, params) | {"estimator": further}


def continuation_to_file(validation_random_state: Any, metric: Any, t_before: int = 0) -> dict[str, Any]:
    """Return what a file holds of a continuation beside the progress; `t_before` is `t_` before the fit."""
    random = None
    if validation_random_state is not None:
        random = np.random.RandomState()
        random.set_state(validation_random_state)
    return {"validation_random": random, "metric": metric, "t_before": t_before}


def continuation_from_file(content: ModelContent) -> dict[str, Any]:
    """Return the continuation in a file, after checks; its arrays are on the host."""
    assert content.progress is not None
    found = content.progress["estimator"]
    if not isinstance(found, dict) or found.keys() != {"validation_random", "metric", "t_before"}:
        raise ValueError("`progress.estimator` must have validation_random, metric, t_before")
    check_integer("progress.estimator.t_before", found["t_before"], minimum=0)
    kind = type(None) if content.parameters.get("solver") == "lbfgs" else np.random.RandomState
    if type(content.progress["random"]) is not kind:
        raise TypeError(f"`progress.random` must be {kind.__name__}")
    random, metric = found["validation_random"], found["metric"]
    if type(random) not in (np.random.RandomState, type(None)) or type(metric) not in (str, type(None)):
        raise TypeError("`progress.estimator` must have a RandomState and a name")
    return {
        # Without the history: a training that continues has one of its own.
        "progress": {name: value for name, value in progress_of(content).items() if name in CONTINUED},
        "validation_random_state": None if random is None else random.get_state(),
        "metric": metric,
    }


def restore(estimator: Estimator, content: ModelContent, place: Placement) -> Estimator:
    """Make an estimator the fitted model that `describe` described, in a place, after checks; return it."""
    network, learned = content.network, content.learned
    params = tuple(Layer(*map(place.transfer, layer)) for layer in content.params)
    estimator._check_parameters()
    estimator._random()
    estimator.out_activation_ = lookup("loss", network.loss, OUT_ACTIVATION_BY_LOSS)
    if estimator._is_classifier != (estimator.out_activation_ in ("softmax", "logistic")):
        raise ValueError(f"`loss` must be one of {type(estimator).__name__}, got {network.loss!r}")
    n_features, *_, estimator.n_outputs_ = network.layer_sizes
    estimator.n_features_in_, estimator.n_layers_ = n_features, len(network.layer_sizes)
    if learned["feature_names"] is not None:
        estimator.feature_names_in_ = _feature_names(learned["feature_names"], n_features)
    for name in FITTED_ATTRIBUTE_TYPES:
        setattr(estimator, name, _check_learned(name, learned[name]))
    estimator._continuation = None
    if content.progress is not None and estimator.solver != "lbfgs":
        params = copy_tree(place.xp, params)  # users may write in `coefs_`, but not in what is remembered
        continuation = continuation_from_file(content)
        progress = move_progress(continuation["progress"], place)
        estimator._continuation = {**continuation, "progress": progress}
    set_weights(estimator, params, place)
    if replace(network_of(estimator), alpha=estimator.alpha) != network:
        raise ValueError("`network` must be the one that the parameters make")
    estimator._restore_labels(learned, network, place)
    return estimator


def _check_learned(name: str, value: Any) -> Any:
    kinds, items = FITTED_ATTRIBUTE_TYPES[name], value if isinstance(value, list) else []
    if type(value) not in kinds or any(type(item) is not float for item in items):
        raise TypeError(f"`{name}` must be {' or '.join(kind.__name__ for kind in kinds)}, got {value!r:.60}")
    if type(value) is int and not 0 <= value < 2**63:
        raise ValueError(f"`{name}` must be an integer from 0 to 2**63 - 1, got {value}")
    return value


def _feature_names(names: Any, n_features: int) -> HostArray:
    if not isinstance(names, list) or [type(name) for name in names] != [str] * n_features:
        raise ValueError(f"`feature_names` must be {n_features} names")
    return np.array(names, dtype=object)
