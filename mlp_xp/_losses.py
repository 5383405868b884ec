"""Losses of logits, each with link, derivative, decision and check of targets: `LOSSES`.

A new loss goes here: its functions and an entry of the table. For estimators that use it, an entry of
`LOSS_BY_OUT_ACTIVATION` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mlp_xp._activations import logistic
from mlp_xp._arrays import Array, Namespace
from mlp_xp._functions import repr_as_call
from mlp_xp._validation import check_callable, lookup


@dataclass(frozen=True)
class Loss:
    """A loss of logits and targets, both of shape ``(n_samples, n_outputs)``.

    Attributes
    ----------
    link : callable ``(xp, logits) -> predictions``
        What the network predicts: probabilities, rates, values.
    evaluate : callable ``(xp, logits, y) -> (losses, delta)``
        `losses` of shape ``(n_samples, k)`` with any k; the loss of a sample is the sum over its row.
        `delta`, of the logits' shape, is the derivative of each sample's loss by its logits. Both are new
        arrays.
    decide : callable ``(xp, predictions) -> bool array``, optional
        The hard decision for each output of a classifier; None, the default, for a regression loss.
    problem : callable ``(xp, y) -> str``, optional
        What targets must satisfy if `y` does not, to complete the sentence "`y` must ...", else "". By
        default all finite numbers are accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Loss, Network
    >>> def link(xp, logits):
    ...     return logits
    >>> def log_cosh(xp, logits, y):
    ...     error = logits - y
    ...     return xp.logaddexp(error, -error) - np.log(2.0), xp.tanh(error)
    >>> network = Network((2, 4, 1), loss=Loss(link, log_cosh))
    """

    link: Callable[[Namespace, Array], Array]
    evaluate: Callable[[Namespace, Array, Array], tuple[Array, Array]]
    decide: Callable[[Namespace, Array], Array] | None = None
    problem: Callable[[Namespace, Array], str] | None = None

    __repr__ = repr_as_call

    def __post_init__(self) -> None:
        check_callable("link", self.link)
        check_callable("evaluate", self.evaluate)
        check_callable("decide", self.decide, optional=True)
        check_callable("problem", self.problem, optional=True)


def resolve_loss(loss: str | Loss) -> Loss:
    """Return the loss of that name, or the one given."""
    return loss if isinstance(loss, Loss) else lookup("loss", loss, LOSSES)


# Each loss has its canonical link, for which the derivative by the logits is link(logits) - y (Bishop,
# "Pattern recognition and machine learning", 4.3.6).


def _logistic_link(xp: Namespace, logits: Array) -> Array:
    # exp(-log(1 + exp(-z))) is exact to rounding near 0 too, and never overflows.
    return xp.exp(-xp.logaddexp(xp.zeros_like(logits), -logits))


def _evaluate_binary_cross_entropy(xp: Namespace, logits: Array, y: Array) -> tuple[Array, Array]:
    # log(1 + exp(z)) - y z without overflow, and without cancellation at y = 0 and y = 1.
    yz = y * logits
    return xp.logaddexp(-yz, logits - yz), logistic(xp, logits) - y


def _decide_binary(xp: Namespace, predictions: Array) -> Array:
    return predictions > 0.5


def _binary_problem(xp: Namespace, y: Array) -> str:
    inside = bool(xp.all((y >= 0.0) & (y <= 1.0)))
    return "" if inside else f"lie between 0 and 1, got {_format_range(xp, y)}"


def _softmax_terms(xp: Namespace, logits: Array) -> tuple[Array, Array, Array]:
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    return shifted, exponentials, xp.sum(exponentials, axis=1, keepdims=True)


def _softmax(xp: Namespace, logits: Array) -> Array:
    _, exponentials, total = _softmax_terms(xp, logits)
    return exponentials / total


def _evaluate_categorical_cross_entropy(xp: Namespace, logits: Array, y: Array) -> tuple[Array, Array]:
    shifted, exponentials, total = _softmax_terms(xp, logits)
    return xp.log(total) - xp.sum(y * shifted, axis=1, keepdims=True), exponentials / total - y


def _decide_categorical(xp: Namespace, predictions: Array) -> Array:
    classes = xp.arange(predictions.shape[1], device=predictions.device)
    return classes == xp.argmax(predictions, axis=1, keepdims=True)


def _categorical_problem(xp: Namespace, y: Array) -> str:
    if y.shape[1] < 2:
        return "have a column for each class, at least 2; use 'binary_cross_entropy' for one column"
    if bool(xp.any(y < 0.0)):
        return f"hold probabilities of the classes, got {_format_range(xp, y)}"
    totals = xp.sum(y, axis=1)
    if bool(xp.any(xp.abs(totals - 1.0) > 1e-5)):
        return f"have rows that sum to 1 (one-hot classes), got sums {_format_range(xp, totals)}"
    return ""


def identity_link(xp: Namespace, logits: Array) -> Array:
    """Return the logits themselves."""
    return logits


def _evaluate_squared_error(xp: Namespace, logits: Array, y: Array) -> tuple[Array, Array]:
    share = 1.0 / y.shape[1]
    error = logits - y
    return (0.5 * share) * (error * error), share * error


def _no_problem(xp: Namespace, y: Array) -> str:
    return ""


def _exp(xp: Namespace, logits: Array) -> Array:
    return xp.exp(logits)


def _evaluate_poisson(xp: Namespace, logits: Array, y: Array) -> tuple[Array, Array]:
    # Above the cap, where the rate nears the largest number of the dtype, the loss is continued by its
    # tangent, so that it and its derivative stay finite.
    cap = 2.0 / 3.0 * math.log(float(xp.finfo(logits.dtype).max))
    capped = xp.minimum(logits, cap)
    rate = xp.exp(capped)
    constant = y * xp.log(xp.where(y > 0.0, y, 1.0)) - y
    return rate * (1.0 + (logits - capped)) - y * logits + constant, rate - y


def _poisson_problem(xp: Namespace, y: Array) -> str:
    return f"be >= 0, got {_format_range(xp, y)}" if bool(xp.any(y < 0.0)) else ""


def _format_range(xp: Namespace, values: Array) -> str:
    return f"values from {float(xp.min(values)):g} to {float(xp.max(values)):g}"


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy": Loss(
        _logistic_link, _evaluate_binary_cross_entropy, _decide_binary, _binary_problem
    ),
    "categorical_cross_entropy": Loss(
        _softmax, _evaluate_categorical_cross_entropy, _decide_categorical, _categorical_problem
    ),
    "squared_error": Loss(identity_link, _evaluate_squared_error, problem=_no_problem),
    "poisson": Loss(_exp, _evaluate_poisson, problem=_poisson_problem),
}
"""Losses by name. For a sample with logits z and targets y, summed over the outputs k unless said:

- binary_cross_entropy: ``log(1 + exp(z)) - y z``, y in [0, 1]; one column for two classes, a column
  a label for multi-label problems.
- categorical_cross_entropy: ``log(sum_k exp(z_k)) - sum_k y_k z_k``, rows of y one-hot, or else of
  sum 1; otherwise `delta` is not the derivative of the loss.
- squared_error: ``(z - y)^2 / 2``, *averaged* over the outputs, as in scikit-learn.
- poisson: half the Poisson deviance, ``exp(z) - y z + y log(y) - y``, y >= 0.
"""

LOSS_BY_OUT_ACTIVATION = {
    "softmax": "categorical_cross_entropy",
    "logistic": "binary_cross_entropy",
    "identity": "squared_error",
    "exp": "poisson",
}
"""The network's loss, by scikit-learn's name for the output's activation."""
