"""Losses and metrics of a network on data, and the checks of samples, targets and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mlp_xp._arrays import (
    Array,
    HostArray,
    Placement,
    check_finite,
    for_value_checks,
    quiet_floating_point,
    rows_per_block,
    to_host,
    without_autodiff,
)
from mlp_xp._devices import computing, current_device, is_scalar_of, to_floats
from mlp_xp._losses import identity_link
from mlp_xp._network import Network
from mlp_xp._parameters import Parameters
from mlp_xp._processes import Processes, current_processes, shared, together
from mlp_xp._samples import Samples, Shard
from mlp_xp._training.metrics import Metric, UserMetric, check_weighted, mean_of_shards, resolve_metrics
from mlp_xp._validation import as_float, shown


def evaluate(
    network: Network,
    params: Parameters,
    X: Array,
    y: Array,
    *,
    sample_weight: Array | None = None,
    metrics: Iterable[str | UserMetric] = (),
) -> dict[str, float]:
    """Measure a network on data: its mean loss, without the penalty on the weights, and its metrics.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
    X : array of shape (n_samples, n_features)
    y : array of shape (n_samples, n_outputs)
    sample_weight : array of shape (n_samples,), optional
    metrics : list of str or callable, default=()
        As for `train`.

    Returns
    -------
    dict of str to float
        "loss" and each metric under its name: what `train` records with "val_" before it.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Layer, Network, evaluate
    >>> network = Network((1, 1), loss="squared_error")
    >>> params = (Layer(np.array([[2.0]]), np.array([0.0])),)
    >>> evaluate(network, params, np.array([[1.0], [2.0]]), np.array([[2.0], [5.0]]), metrics=["r2"])
    {'loss': 0.25, 'r2': 0.777...}
    """
    with current_device(X), together("evaluate") as processes:
        check_network(network)
        resolved_metrics = resolve_metrics(metrics, network._resolved_loss)
        if processes is not None:
            names = [metric.name for metric in resolved_metrics]
            processes.check_same("the arguments", {"network": network, "metrics": names})
        samples = check_samples(network, params, X, y, sample_weight)
        check_weighted(resolved_metrics, samples)
        with computing(samples.place, network.matmul_precision), without_autodiff(samples.place.xp):
            return measure(network, params, samples, resolved_metrics)


def check_network(network: object) -> None:
    """Raise a TypeError unless this is a network."""
    if not isinstance(network, Network):
        raise TypeError(f"`network` must be a Network, got {shown(network)}")


def measure(
    network: Network, params: Parameters, samples: Samples, metrics: Sequence[Metric]
) -> dict[str, float]:
    """Do what `evaluate` does, on checked arguments."""
    xp, loss = samples.xp, network._resolved_loss
    logits = network._blockwise(samples, params, identity_link)
    y, sample_weight = samples.targets()
    values: dict[str, Any] = {"loss": network._data_loss(xp, logits, y, sample_weight)}
    if samples.shard is not None:
        values["loss"] = mean_of_shards(samples.place, values["loss"], y, sample_weight)
    predictions = loss.link(xp, logits)
    for metric in metrics:
        compute = partial(metric.compute, xp, loss)
        if samples.shard is not None and not metric.is_of_means:
            compute = partial(_compute_on_all, samples.shard, samples.place, metric.name, compute)
        value = compute(y, predictions, sample_weight)
        # Metrics of users may return other numbers too: Python's, NumPy's, or arrays of another dtype.
        is_ours = is_scalar_of(samples.place, value)
        values[metric.name] = value if is_ours else as_float(f"metrics[{metric.name!r}]", value)
    return dict(zip(values, to_floats(samples.place, list(values.values()))))


def _compute_on_all(
    shard: Shard, place: Placement, name: str, compute: Callable[..., Any], *arrays: Array | None
) -> float:
    """Compute a metric in process 0 from the targets, predictions and weights of all processes."""

    def computed(*gathered: HostArray | None) -> float:
        there = (None if array is None else place.from_host(array) for array in gathered)
        return as_float(f"metrics[{name!r}]", compute(*there))

    on_host = (None if array is None else to_host(array) for array in arrays)
    return float(shard.compute("metrics", computed, *on_host))


def check_samples(
    network: Network, params: Parameters, X: Array, y: Array, sample_weight: Array | None = None
) -> Samples:
    """Check shapes, places and values of data for a network; return them as `Samples`."""
    return check_values(network, network._check(params, X, y, sample_weight))


def check_values(network: Network, samples: Samples) -> Samples:
    """Check the values of samples whose shapes and place are checked; return them as one process's."""
    sample_weight = samples.sample_weight
    check_finite(samples.place.xp, "X", samples.X)
    check_targets(network, samples)
    processes = current_processes()
    if processes is not None:
        processes.check_same_presence(sample_weight=sample_weight)
        processes.check_same("the checks of samples", {"dtype": samples.place.dtype_name})
    check_weights(samples.place, samples.sample_weight)
    return samples.sharded(processes)


def check_targets(network: Network, samples: Samples) -> None:
    """Raise a ValueError if the targets are invalid for the network's loss."""
    xp, y = samples.place.xp, samples.y
    check_finite(xp, "y", y)
    find_problem = network._resolved_loss.problem
    if find_problem is None:
        return
    for block in _blocks_of_targets(samples):
        problem = find_problem(*for_value_checks(xp, block))
        if problem:
            loss = f"the loss {network.loss!r}" if isinstance(network.loss, str) else "the loss"
            raise ValueError(f"`y` must, for {loss}, {problem}")


def _blocks_of_targets(samples: Samples) -> Iterator[Array]:
    """Yield the targets in the dtype to compute in, block by block."""
    y = samples.y
    if samples.rows is None and y.dtype == samples.place.dtype and y.shape[0] <= rows_per_block(y.shape[1]):
        yield y
        return
    # With `y` as X, because batches of the real X might be cast, which copies them.
    for batch in replace(samples, X=y, sample_weight=None).blocks(y.shape[1]):
        yield batch.y


def check_weights(place: Placement, sample_weight: Array | None) -> None:
    """Raise a ValueError if these cannot be the samples' weights."""
    if sample_weight is not None:
        xp, sample_weight = for_value_checks(place.xp, place.cast(sample_weight))
        check_finite(xp, "sample_weight", xp.reshape(sample_weight, (-1, 1)))
        processes = current_processes()
        if not sample_weight.shape[0]:  # of one of several processes
            _check_positive(processes, 0.0)
            return
        positive = bool(xp.any(sample_weight > 0.0)) or processes is not None
        if not bool(xp.all(sample_weight >= 0.0)) or not positive:
            raise ValueError(
                "`sample_weight` must be >= 0 and not all zero, got values from "
                f"{float(xp.min(sample_weight)):g} to {float(xp.max(sample_weight)):g}"
            )
        with quiet_floating_point():
            total = xp.sum(sample_weight)
            is_positive = processes is None or bool(total > 0.0)
            holds, divides = bool(xp.isfinite(total)), not is_positive or bool(xp.isfinite(1.0 / total))
        if not (holds and divides):
            able = "divide by" if holds else "hold"
            raise ValueError(
                f"`sample_weight` must have a sum that {place.dtype_name} can {able}, got values up to "
                f"{float(xp.max(sample_weight)):g}"
            )
        _check_positive(processes, float(total))


def _check_positive(processes: Processes | None, total: float) -> None:
    """Raise a ValueError if the weights of all processes are zero."""
    if processes is not None and not processes.any("the checks of weights", total > 0.0):
        raise shared(ValueError("`sample_weight` must not be all zero in all processes"))
