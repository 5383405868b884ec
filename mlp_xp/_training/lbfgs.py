"""L-BFGS: SciPy's minimiser over the network's objective on all samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp._arrays import (
    Array,
    Placement,
    placement,
    row_slices,
    rows_per_block,
    to_host,
    without_autodiff,
)
from mlp_xp._devices import computing, is_out_of_memory
from mlp_xp._network import Network
from mlp_xp._parameters import Layer, Pair, Parameters, named, plain
from mlp_xp._samples import Samples
from mlp_xp._training.loop import (
    Callback,
    DivergenceError,
    History,
    Listener,
    TrainingError,
    TrainingInterruptedWarning,
    let_go,
    out_of_memory,
)

KEPT = "`.params` and `.history` of this error hold what was trained"

HUGE = 1e100
"""Losses above it, of trial steps far too long, count as this: SciPy's line search squares and divides
them, and would end at once, as if converged, where that overflows."""

STOPPED_BY_CALLBACK = 99
"""SciPy's status where the callback has raised StopIteration."""

HostVector: TypeAlias = "np.ndarray[Any, Any]"


class Minimised(NamedTuple):
    """What `minimise` returns.

    Attributes
    ----------
    params : tuple of Layer
    history : History
        The objective after each iteration.
    loss : float
        The objective at `params`.
    problem : str
        Why the minimiser stopped short of a minimum, "" if it did not.
    """

    params: Parameters
    history: History
    loss: float
    problem: str


def minimise(
    network: Network,
    params: Parameters,
    samples: Samples,
    *,
    max_iter: int,
    max_fun: int,
    tol: float,
    callback: Callback | None = None,
    on_progress: Listener | None = None,
) -> Minimised:
    """Minimise the objective on all samples; arguments are checked.

    The samples stay where they are and are passed over in blocks; only the flat parameters and
    gradients travel to the host and back, once for each evaluation.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
        Where to start from. Never modified.
    samples : Samples
    max_iter, max_fun : int
        The most iterations, and evaluations of the objective.
    tol : float
        The largest component of the gradient at a minimum.
    callback : callable ``(history, params) -> bool or None``, optional
        Called after each iteration; true stops.
    on_progress : callable ``(history) -> None``, optional
        Called after each iteration.

    Returns
    -------
    Minimised

    References
    ----------
    R. H. Byrd, P. Lu, J. Nocedal, "A limited memory algorithm for bound constrained optimization",
    SIAM Journal on Scientific and Statistical Computing 16 (1995).
    """
    from scipy.optimize import minimize

    history = History()
    objective = _make_objective(network, params, samples)
    latest = start = _to_host(_flat(params))
    loss = math.nan

    def iterated(intermediate_result: Any) -> None:
        nonlocal latest, loss
        latest, loss = intermediate_result.x.copy(), float(intermediate_result.fun)
        history.append({"epoch": len(history) + 1, "loss": loss})
        stop = callback is not None and callback(history, _from_flat(latest, params, samples.place))
        if on_progress is not None:
            on_progress(history)
        if stop:
            raise StopIteration

    def reached() -> tuple[int, Parameters, History]:
        return len(history) + 1, _from_flat(latest, params, samples.place), history

    problem = ""
    with computing(samples.place, network.matmul_precision), without_autodiff(samples.place.xp):
        try:
            options = {"maxfun": max_fun, "maxiter": max_iter, "gtol": tol}
            found = minimize(
                objective, start, jac=True, method="L-BFGS-B", options=options, callback=iterated
            )
            if not (found.fun < HUGE and np.all(np.isfinite(found.x))):
                raise FloatingPointError
            latest, loss = found.x, float(found.fun)
            problem = "" if found.status in (0, STOPPED_BY_CALLBACK) else str(found.message)
        except KeyboardInterrupt:
            message = f"training interrupted after {len(history)} iterations; returning what was trained"
            try:
                warnings.warn(message, TrainingInterruptedWarning, stacklevel=2)
            except TrainingInterruptedWarning as error:  # where warnings are errors
                raise TrainingError(message, *reached()) from error
        except FloatingPointError:
            message = (
                f"training diverged in iteration {len(history) + 1}: the loss is too large or NaN. Try "
                f"features of mean 0 and variance 1, or smaller initial weights; {KEPT}"
            )
            raise DivergenceError(message, *reached(), float(found.fun)) from None
        except Exception as error:
            if is_out_of_memory(error):
                let_go(error, samples.place)
                raise out_of_memory(error, *reached(), None) from error
            message = (
                f"training failed in iteration {len(history) + 1} ({type(error).__name__}: {error}); {KEPT}"
            )
            raise TrainingError(message, *reached()) from error
    return Minimised(_from_flat(latest, params, samples.place), history, loss, problem)


def _make_objective(
    network: Network, params: Parameters, samples: Samples
) -> Callable[[HostVector], tuple[float, HostVector]]:
    """Return the function of the flat parameters: the objective and its gradient, summed over blocks."""
    samples = samples.small_ones_cast()
    length = rows_per_block(samples.row_width(network.layer_sizes))
    shares = _shares(samples, length)
    # Each block that counts brings a part of the penalty along.
    n_counting = sum(share > 0.0 for share in shares)
    of_block = replace(network, alpha=network.alpha / n_counting)._make_objective(samples.xp)
    whole = samples.whole() if len(shares) == 1 else None

    def objective(flat: HostVector) -> tuple[float, HostVector]:
        layers = plain(_from_flat(flat, params, samples.place))
        loss: Any = 0.0
        sums: Any = 0.0
        for share, batch in zip(shares, samples.batches(length) if whole is None else [whole]):
            if share > 0.0:
                block_loss, gradients = of_block(layers, *batch)
                loss = loss + share * block_loss
                sums = sums + share * _flat(gradients)
        return min(float(loss), HUGE), _to_host(sums)

    return objective


def _shares(samples: Samples, length: int) -> list[float]:
    """Return the part of all sample weights that each block of so many rows has."""
    blocks = list(row_slices(len(samples), length))
    if samples.sample_weight is None:
        return [(block.stop - block.start) / len(samples) for block in blocks]
    weight = to_host(samples.sample_weight)
    weight = weight if samples.rows is None else weight[samples.rows]
    return [float(weight[block].sum() / weight.sum()) for block in blocks]


def _flat(params: Iterable[Pair]) -> Array:
    """Return the weights of all layers, then the biases, as one vector where they live."""
    weights, biases = zip(*params)
    xp = placement(array=weights[0]).xp
    return xp.concat([xp.reshape(array, (-1,)) for array in (*weights, *biases)])


def _to_host(flat: Array) -> HostVector:
    return to_host(flat).astype(np.float64)


def _from_flat(flat: HostVector, like: Parameters, place: Placement) -> tuple[Layer, ...]:
    """Undo `_flat`: layers shaped as those of `like`."""
    there = place.from_host(flat)
    shapes = [weight.shape for weight, _ in like] + [bias.shape for _, bias in like]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    arrays = [
        place.xp.reshape(there[end - math.prod(shape) : end], shape) for shape, end in zip(shapes, ends)
    ]
    return named(zip(arrays[: len(like)], arrays[len(like) :]))
