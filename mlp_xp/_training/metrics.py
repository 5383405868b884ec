"""Metrics of predictions, by name or of the user's own, computed where the predictions live."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp._arrays import Array, Namespace, Placement, placement, to_host
from mlp_xp._losses import Loss
from mlp_xp._processes import current_processes
from mlp_xp._samples import Samples
from mlp_xp._validation import is_iterable, lookup, shown

UserMetric: TypeAlias = Callable[..., float]
"""``(y, predictions) -> float``, both arrays of shape (n_samples, n_outputs) in the data's namespace.

A function with a parameter `sample_weight`, as scikit-learn's have it, is passed the weights, or None.
"""


class Metric(NamedTuple):
    """A metric.

    Attributes
    ----------
    name : str
        Its column in the history.
    compute : callable ``(xp, loss, y, predictions, sample_weight) -> float or array of shape ()``
    greater_is_better : bool or None
        None for a metric of the user's own.
    takes_weight : bool
        Whether `compute` uses the sample weights.
    is_of_means : bool
        Whether it is computed from means over rows, which several processes take together. For others process
        0 gathers the targets and predictions of all.
    """

    name: str
    compute: Callable[[Namespace, Loss, Array, Array, Array | None], float | Array]
    greater_is_better: bool | None
    takes_weight: bool = True
    is_of_means: bool = False


def resolve_metrics(metrics: Iterable[str | UserMetric], loss: Loss) -> tuple[Metric, ...]:
    """Look up each metric and check that it fits the loss."""
    if not is_iterable(metrics):
        raise TypeError(f"`metrics` must be a list of names or functions, got {shown(metrics)}")
    resolved = tuple(
        _user_metric(metric) if callable(metric) else lookup("metrics", metric, METRICS) for metric in metrics
    )
    names = [metric.name for metric in resolved]
    taken = [name for name in names if name in ("epoch", "loss") or name.startswith("val_")]
    if len(set(names)) < len(names) or taken:
        raise ValueError(
            f"`metrics` must have different names, none 'epoch', 'loss' or beginning with 'val_', got {names}"
        )
    if METRICS["accuracy"] in resolved and loss.decide is None:
        raise ValueError("`metrics` must fit the loss: 'accuracy' needs a loss of classification")
    return resolved


def check_weighted(metrics: Iterable[Metric], *samples: Samples | None) -> None:
    """Raise a TypeError if some of the samples have weights that a metric would ignore."""
    if any(some is not None and some.sample_weight is not None for some in samples):
        for metric in metrics:
            if not metric.takes_weight:
                raise TypeError(
                    f"`metrics` must take the sample weights that the data have: {metric.name!r} needs a "
                    "parameter `sample_weight` beside `y` and `predictions`"
                )


def _user_metric(function: UserMetric) -> Metric:
    takes_weight = _has_parameter(function, "sample_weight")

    def compute(
        xp: Namespace, loss: Loss, y: Array, predictions: Array, sample_weight: Array | None
    ) -> float | Array:
        return function(y, predictions, **({"sample_weight": sample_weight} if takes_weight else {}))

    return Metric(getattr(function, "__name__", type(function).__name__), compute, None, takes_weight)


def _has_parameter(function: Callable[..., object], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def _accuracy(xp: Namespace, loss: Loss, y: Array, predictions: Array, sample_weight: Array | None) -> Array:
    assert loss.decide is not None
    correct = xp.all(loss.decide(xp, predictions) == loss.decide(xp, y), axis=1)
    return _mean(xp, xp.astype(correct, predictions.dtype), sample_weight)


def _r2(xp: Namespace, loss: Loss, y: Array, predictions: Array, sample_weight: Array | None) -> Array:
    centre = _mean(xp, y, sample_weight)
    residual = _mean(xp, (y - predictions) ** 2, sample_weight)
    spread = _mean(xp, (y - centre) ** 2, sample_weight)
    # For a constant target the score is 1 if it is predicted exactly, else 0, as in scikit-learn.
    constant = spread == 0.0
    score = 1.0 - residual / xp.where(constant, 1.0, spread)
    exact = xp.astype(residual == 0.0, y.dtype)
    return xp.mean(xp.where(constant, exact, score))


def _mean(xp: Namespace, values: Array, sample_weight: Array | None) -> Array:
    """Return the mean over the rows, of all processes."""
    if sample_weight is None:
        mean = xp.mean(values, axis=0) if values.shape[0] else xp.sum(values, axis=0)
    else:
        weight = sample_weight if values.ndim == 1 else xp.reshape(sample_weight, (-1, 1))
        mean = xp.sum(values * weight, axis=0) / xp.sum(sample_weight)
    if current_processes() is None:
        return mean
    place = placement(values=values)
    return place.from_host(mean_of_shards(place, mean, values, sample_weight))


def mean_of_shards(place: Placement, mean: Array, values: Array, sample_weight: Array | None) -> Any:
    """Return the mean over the rows of all processes, on the host, of the mean over those of this one.

    Parameters
    ----------
    place : Placement
    mean : array of shape () or (n,)
    values : array of shape (n_rows, ...)
    sample_weight : array of shape (n_rows,) or None
    """
    processes = current_processes()
    assert processes is not None
    if sample_weight is None:
        total = float(values.shape[0])
    else:
        total = float(np.sum(to_host(sample_weight), dtype=np.float64))
    # NumPy's reductions are scalars.
    there = np.asarray(mean if isinstance(mean, np.generic) else to_host(mean), np.float64)
    weighted = total * there if total else np.zeros_like(there)
    *sums, all_total = processes.sum("a mean", np.append(weighted, total))
    return np.reshape(sums, there.shape) / (all_total or 1.0)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", _accuracy, greater_is_better=True, is_of_means=True),
    "r2": Metric("r2", _r2, greater_is_better=True, is_of_means=True),
}
"""Metrics by name.

- accuracy: the fraction of samples whose every decision is right: probability above 0.5 for each
  label, or the most probable class.
- r2: the coefficient of determination, averaged over the outputs.
"""
