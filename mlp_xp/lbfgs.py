"""L-BFGS: SciPy's minimiser over the network's objective on all samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp.arrays import (
    Placement,
    block_length,
    placement,
    quiet_floating_point,
    row_slices,
    to_host,
    without_autodiff,
)
from mlp_xp.network import Network
from mlp_xp.parameters import Layer, Pair, Parameters, named, plain
from mlp_xp.samples import Samples
from mlp_xp.training import (
    Callback,
    DivergenceError,
    History,
    TrainingError,
    TrainingInterruptedWarning,
)

KEPT = "`.params` and `.history` of this error hold what was trained"

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
    latest = start = _to_flat(params)
    loss = tried = math.nan
    stopped = False

    def evaluate(flat: HostVector) -> tuple[float, HostVector]:
        nonlocal tried
        tried, gradient = objective(flat)
        return tried, gradient

    def iterated(flat: HostVector) -> None:
        nonlocal latest, loss, stopped
        # The line search ends with the point it takes.
        latest, loss = flat.copy(), tried
        history.append({"epoch": len(history) + 1, "loss": loss})
        if callback is not None and callback(history, _from_flat(latest, params, samples.place)):
            stopped = True
            raise StopIteration

    def reached() -> tuple[int, Parameters, History]:
        return len(history) + 1, _from_flat(latest, params, samples.place), history

    problem = ""
    with quiet_floating_point(), without_autodiff(samples.place.xp):
        try:
            options = {"maxfun": max_fun, "maxiter": max_iter, "gtol": tol}
            found = minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options, callback=iterated)
            finite = math.isfinite(found.fun) and bool(np.all(np.isfinite(found.x)))
            if not finite:
                raise FloatingPointError(f"the loss is {found.fun}")
            latest, loss = found.x, float(found.fun)
            problem = "" if found.status == 0 or stopped else str(found.message)
        except StopIteration:  # SciPy before 1.11 lets it through
            pass
        except KeyboardInterrupt:
            message = f"training interrupted after {len(history)} iterations; returning what was trained"
            try:
                warnings.warn(message, TrainingInterruptedWarning, stacklevel=2)
            except TrainingInterruptedWarning as error:  # where warnings are errors
                raise TrainingError(message, *reached()) from error
        except FloatingPointError as error:
            message = (
                f"training diverged in iteration {len(history) + 1}: {error}. Try features of mean 0 and "
                f"variance 1, or smaller initial weights; {KEPT}"
            )
            raise DivergenceError(message, *reached(), tried) from None
        except Exception as error:
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
    length = block_length(max(network.layer_sizes))
    shares = _shares(samples, length)
    # Each block that counts brings a part of the penalty along.
    n_counting = sum(share > 0.0 for share in shares)
    of_block = replace(network, alpha=network.alpha / n_counting).make_objective(samples.xp)
    whole = samples.whole() if len(shares) == 1 else None

    def objective(flat: HostVector) -> tuple[float, HostVector]:
        layers = plain(_from_flat(flat, params, samples.place))
        if whole is not None:
            loss, gradients = of_block(layers, *whole)
            return float(loss), _to_flat(gradients)
        loss, sums = 0.0, np.zeros_like(flat)
        for share, batch in zip(shares, samples.batches(length)):
            if share > 0.0:
                block_loss, gradients = of_block(layers, *batch)
                loss += share * float(block_loss)
                sums += share * _to_flat(gradients)
        return loss, sums

    return objective


def _shares(samples: Samples, length: int) -> list[float]:
    """Return the part of all sample weights that each block of so many rows has."""
    xp, (_, sample_weight) = samples.place.xp, samples.targets()
    blocks = list(row_slices(len(samples), length))
    if sample_weight is None:
        return [(block.stop - block.start) / len(samples) for block in blocks]
    total = float(xp.sum(sample_weight))
    return [float(xp.sum(sample_weight[block])) / total for block in blocks]


def _to_flat(params: Iterable[Pair]) -> HostVector:
    """Weights of all layers, then biases, as one float64 vector on the host: one transfer."""
    weights, biases = zip(*params)
    arrays = [*weights, *biases]
    xp = placement(array=arrays[0]).xp
    return to_host(xp.concat([xp.reshape(array, (-1,)) for array in arrays])).astype(np.float64)


def _from_flat(flat: HostVector, like: Parameters, place: Placement) -> tuple[Layer, ...]:
    """Undo `_to_flat`: layers shaped as those of `like`."""
    there = place.from_host(flat)
    shapes = [weight.shape for weight, _ in like] + [bias.shape for _, bias in like]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    arrays = [
        place.xp.reshape(there[end - math.prod(shape) : end], shape) for shape, end in zip(shapes, ends)
    ]
    return named(zip(arrays[: len(like)], arrays[len(like) :]))
