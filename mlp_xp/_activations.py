"""Activation functions of hidden layers, each a pair of forward and backward function: `ACTIVATIONS`.

A new activation goes here: two functions and an entry of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mlp_xp._arrays import Array, Namespace
from mlp_xp._functions import Call, HashablePartial, repr_as_call
from mlp_xp._validation import check_callable, check_called, check_real, lookup

Saved: TypeAlias = Any
"""What a forward function saves for the backward function: an array or a tuple of arrays."""


@dataclass(frozen=True)
class Activation:
    """An activation function and its derivative, elementwise on ``(n_samples, n_units)``.

    Attributes
    ----------
    forward : callable ``(xp, z) -> (activation, saved)``
        The activation of the pre-activation `z`, and whatever `backward` needs.
    backward : callable ``(xp, delta, saved) -> dJ/dz``
        The derivative of the loss by `z`, given its derivative `delta` by the activation.

    Notes
    -----
    Both call functions of the namespace `xp` only, and do not modify their arguments. With module-level
    functions a network stays hashable and picklable. With JAX and NumPy they are compiled, and the compiled
    step is cached for later trainings: what they return must depend on their arguments only. Functions that
    branch on the values of arrays are not compiled.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Activation, Network
    >>> def softsign_forward(xp, z):
    ...     scale = 1.0 / (1.0 + xp.abs(z))
    ...     return z * scale, scale
    >>> def softsign_backward(xp, delta, scale):
    ...     return delta * scale * scale
    >>> softsign = Activation(softsign_forward, softsign_backward)
    >>> Network((2, 3, 1), activation=softsign, loss="squared_error").layer_sizes
    (2, 3, 1)
    """

    forward: Callable[[Namespace, Array], tuple[Array, Saved]]
    backward: Callable[[Namespace, Array, Saved], Array]

    __repr__ = repr_as_call

    def __post_init__(self) -> None:
        check_callable("forward", self.forward)
        check_callable("backward", self.backward)

    def __getstate__(self) -> dict[str, Any]:
        """Return the name and the parameters of a built-in activation, the functions of another."""
        known = name_activation(self)
        return dict(vars(self)) if known is None else dict(zip(("name", "parameters"), known))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(make_activation(**state)) if "name" in state else state)


def resolve_activation(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the one given."""
    if isinstance(activation, Activation):
        return activation
    check_called("activation", activation, _PARAMETRIC_ACTIVATIONS.values())
    return lookup("activation", activation, ACTIVATIONS)


def logistic(xp: Namespace, z: Array) -> Array:
    """Compute ``1 / (1 + exp(-z))`` as ``tanh(z / 2) / 2 + 1 / 2``, which cannot overflow.

    For very negative z its relative error is large, as that of ``1 - 1``; predictions use the link of the
    binary cross-entropy, which is accurate there.
    """
    return 0.5 * xp.tanh(0.5 * z) + 0.5


def _identity_forward(xp: Namespace, z: Array) -> tuple[Array, Saved]:
    return z, None


def _identity_backward(xp: Namespace, delta: Array, saved: Saved) -> Array:
    return delta


def _logistic_forward(xp: Namespace, z: Array) -> tuple[Array, Saved]:
    a = logistic(xp, z)
    return a, a


def _logistic_backward(xp: Namespace, delta: Array, a: Saved) -> Array:
    return delta * (a * (1.0 - a))


def _tanh_forward(xp: Namespace, z: Array) -> tuple[Array, Saved]:
    a = xp.tanh(z)
    return a, a


def _tanh_backward(xp: Namespace, delta: Array, a: Saved) -> Array:
    return delta * (1.0 - a * a)


def _relu_forward(xp: Namespace, z: Array) -> tuple[Array, Saved]:
    a = xp.maximum(z, 0.0)
    return a, a


def _relu_backward(xp: Namespace, delta: Array, a: Saved) -> Array:
    return xp.where(a > 0.0, delta, 0.0)


def _leaky_relu_forward(xp: Namespace, z: Array, *, slope: float) -> tuple[Array, Saved]:
    positive = z > 0.0
    return xp.where(positive, z, slope * z), positive


def _leaky_relu_backward(xp: Namespace, delta: Array, positive: Saved, *, slope: float) -> Array:
    return xp.where(positive, delta, slope * delta)


def _elu_forward(xp: Namespace, z: Array, *, alpha: float) -> tuple[Array, Saved]:
    positive = z > 0.0
    a = xp.where(positive, z, alpha * xp.expm1(xp.minimum(z, 0.0)))
    return a, (positive, a)


def _elu_backward(xp: Namespace, delta: Array, saved: Saved, *, alpha: float) -> Array:
    positive, a = saved
    return xp.where(positive, delta, delta * (a + alpha))


def _silu_forward(xp: Namespace, z: Array) -> tuple[Array, Saved]:
    s = logistic(xp, z)
    a = z * s
    return a, (s, a)


def _silu_backward(xp: Namespace, delta: Array, saved: Saved) -> Array:
    s, a = saved
    return delta * (s + a * (1.0 - s))


_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu_forward(xp: Namespace, z: Array) -> tuple[Array, Saved]:
    t = xp.tanh(_GELU_SCALE * z * (1.0 + _GELU_CUBIC * z * z))
    return 0.5 * z * (1.0 + t), (z, t)


def _gelu_backward(xp: Namespace, delta: Array, saved: Saved) -> Array:
    z, t = saved
    # (1 - t^2) first: it is 0 where the polynomial would overflow.
    inner = (1.0 - t * t) * z * _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * z * z)
    return delta * (0.5 * (1.0 + t + inner))


def leaky_relu(slope: float = 0.01) -> Activation:
    """Leaky rectified linear unit: ``z`` for ``z > 0``, else ``slope * z``.

    Parameters
    ----------
    slope : float, default=0.01
        Slope for negative `z`. The derivative at 0 is `slope`.

    Returns
    -------
    Activation

    References
    ----------
    A. L. Maas, A. Y. Hannun, A. Y. Ng, "Rectifier nonlinearities improve neural network acoustic
    models", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import leaky_relu
    >>> leaky_relu(0.1).forward(np, np.array([-2.0, 3.0]))[0]
    array([-0.2,  3. ])
    """
    slope = check_real("slope", slope)
    call = Call(leaky_relu, slope=slope)
    return Activation(
        HashablePartial(_leaky_relu_forward, slope=slope).made_by(call, "forward"),
        HashablePartial(_leaky_relu_backward, slope=slope).made_by(call, "backward"),
    )


def elu(alpha: float = 1.0) -> Activation:
    """Exponential linear unit: ``z`` for ``z > 0``, else ``alpha * (exp(z) - 1)``.

    Parameters
    ----------
    alpha : float, default=1.0
        The activation tends to ``-alpha`` for large negative `z`.

    Returns
    -------
    Activation

    References
    ----------
    D.-A. Clevert, T. Unterthiner, S. Hochreiter, "Fast and accurate deep network learning by
    exponential linear units (ELUs)", ICLR 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import elu
    >>> elu().forward(np, np.array([-1e4, 3.0]))[0]
    array([-1.,  3.])
    """
    alpha = check_real("alpha", alpha)
    call = Call(elu, alpha=alpha)
    return Activation(
        HashablePartial(_elu_forward, alpha=alpha).made_by(call, "forward"),
        HashablePartial(_elu_backward, alpha=alpha).made_by(call, "backward"),
    )


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(_identity_forward, _identity_backward),
    "logistic": Activation(_logistic_forward, _logistic_backward),
    "tanh": Activation(_tanh_forward, _tanh_backward),
    "relu": Activation(_relu_forward, _relu_backward),
    "leaky_relu": leaky_relu(),
    "elu": elu(),
    "silu": Activation(_silu_forward, _silu_backward),
    "gelu": Activation(_gelu_forward, _gelu_backward),
}
"""Activations by name. "gelu" is the tanh approximation of Hendrycks and Gimpel, "Gaussian error linear
units", arXiv:1606.08415, because the Array API standard has no erf."""


_PARAMETRIC_ACTIVATIONS = {"leaky_relu": leaky_relu, "elu": elu}
"""The functions that make activations with parameters; a new one has an entry here too."""


def name_activation(activation: Activation) -> tuple[str, dict[str, float]] | None:
    """Return the name and the parameters of a built-in activation, or None."""
    (forward, parameters), (backward, backward_parameters) = (
        _split(activation.forward),
        _split(activation.backward),
    )
    for name, entry in ACTIVATIONS.items():
        (known, defaults), (known_backward, _) = _split(entry.forward), _split(entry.backward)
        same = (forward, backward) == (known, known_backward)
        if same and parameters == backward_parameters and parameters.keys() == defaults.keys():
            return name, parameters
    return None


def make_activation(name: str, parameters: Mapping[str, float]) -> Activation:
    """Return the built-in activation with this name and these parameters."""
    entry = lookup("activation", name, ACTIVATIONS)
    _, defaults = _split(entry.forward)
    if parameters.keys() != defaults.keys():
        raise ValueError(f"{name!r} must have the parameters {sorted(defaults)}, got {sorted(parameters)}")
    return _PARAMETRIC_ACTIVATIONS[name](**parameters) if parameters else entry


def _split(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, float]]:
    return (function.func, function.keywords) if isinstance(function, HashablePartial) else (function, {})
