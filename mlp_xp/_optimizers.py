"""Optimizers: an initial state, an update of the parameters, and a learning rate.

A new optimizer goes here: a public function that returns an `Optimizer`. Estimators choose by `solver`, in
`mlp_xp.estimators._hyperparameters`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from mlp_xp._arrays import Dtype, Namespace
from mlp_xp._functions import Call, HashablePartial, repr_as_call
from mlp_xp._parameters import Parameters, flatten, layers_like, unflatten_like, zeros_like
from mlp_xp._schedules import Schedule, check_learning_rate
from mlp_xp._validation import check_bool, check_callable, check_real, shown

OptimizerState: TypeAlias = Any
"""Nested tuples, lists and dicts of arrays and numbers."""

Update: TypeAlias = Callable[
    [Namespace, Parameters, Parameters, OptimizerState, float], tuple[Parameters, OptimizerState]
]
"""``(xp, params, gradients, state, learning_rate) -> (params, state)``: one step."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: how gradients change the parameters.

    Attributes
    ----------
    init : callable ``(xp, params) -> state``
    update : callable ``(xp, params, gradients, state, learning_rate) -> (params, state)``
        One step. It may modify the parameters, gradients and state in place, which belong to the
        training, and returns the new ones. It is compiled like an `Activation`, unless it branches on the
        values of arrays; Python numbers in the state may change from step to step.
    learning_rate : float or Schedule
        The training passes the rate of each epoch to `update`.

    Examples
    --------
    Gradient descent by the signs of the gradients:

    >>> from mlp_xp import Layer, Optimizer
    >>> def no_state(xp, params):
    ...     return ()
    >>> def sign_update(xp, params, gradients, state, learning_rate):
    ...     updated = tuple(
    ...         Layer(w - learning_rate * xp.sign(dw), b - learning_rate * xp.sign(db))
    ...         for (w, b), (dw, db) in zip(params, gradients)
    ...     )
    ...     return updated, state
    >>> optimizer = Optimizer(no_state, sign_update, learning_rate=0.01)
    """

    init: Callable[[Namespace, Parameters], OptimizerState]
    update: Update
    learning_rate: float | Schedule

    __repr__ = repr_as_call


def check_optimizer(optimizer: object) -> None:
    """Raise an error unless this is an optimizer, with a rate and functions."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be an Optimizer, as `adam()` makes one, got {shown(optimizer)}")
    check_learning_rate(optimizer.learning_rate)
    check_callable("optimizer.init", optimizer.init)
    check_callable("optimizer.update", optimizer.update)


def is_built_in(optimizer: Optimizer) -> bool:
    """Whether all functions of an optimizer are of this module."""
    functions = [optimizer.init, optimizer.update]
    for function in functions:
        functions += filter(callable, getattr(function, "keywords", {}).values())
    return all(getattr(getattr(x, "func", x), "__module__", "") == __name__ for x in functions)


def gradient_descent(learning_rate: float | Schedule) -> Optimizer:
    """Plain gradient descent: ``p <- p - learning_rate * g``.

    Parameters
    ----------
    learning_rate : float or Schedule

    Returns
    -------
    Optimizer

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Layer, gradient_descent
    >>> optimizer = gradient_descent(0.5)
    >>> params = (Layer(np.array([[1.0]]), np.array([0.0])),)
    >>> gradients = (Layer(np.array([[0.2]]), np.array([-4.0])),)
    >>> params, state = optimizer.update(np, params, gradients, optimizer.init(np, params), 0.5)
    >>> params[0].weight, params[0].bias
    (array([[0.9]]), array([2.]))
    """
    rate = check_learning_rate(learning_rate)
    call = Call(gradient_descent, learning_rate=rate)
    init, update = HashablePartial(_no_state), HashablePartial(_gradient_descent_update)
    return Optimizer(init.made_by(call, "init"), update.made_by(call, "update"), rate)


def momentum(
    learning_rate: float | Schedule, momentum: float = 0.9, nesterovs_momentum: bool = False
) -> Optimizer:
    """Gradient descent with momentum: ``v <- momentum * v - learning_rate * g``, ``p <- p + v``.

    Parameters
    ----------
    learning_rate : float or Schedule
    momentum : float, default=0.9
        From 0 to 1; with 0 this is `gradient_descent`, which keeps no velocity.
    nesterovs_momentum : bool, default=False
        Look one step ahead: ``p <- p + momentum * v - learning_rate * g`` with the new ``v``.

    Returns
    -------
    Optimizer

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML
    2013, in the form where the parameters are those at the point looked ahead to.

    Examples
    --------
    >>> from mlp_xp import momentum
    >>> momentum(0.1, 0.95, nesterovs_momentum=True).learning_rate
    0.1
    """
    decay = check_real("momentum", momentum, at_least=0.0, at_most=1.0)
    if not decay:
        return gradient_descent(learning_rate)
    rate, nesterov = check_learning_rate(learning_rate), check_bool("nesterovs_momentum", nesterovs_momentum)
    call = Call(_momentum, learning_rate=rate, momentum=decay, nesterovs_momentum=nesterov)
    update = HashablePartial(_momentum_update, momentum=decay, nesterov=nesterov)
    init = HashablePartial(_momentum_init)
    return Optimizer(init.made_by(call, "init"), update.made_by(call, "update"), rate)


_momentum = momentum
"""The function itself, which its own parameter `momentum` shadows."""


class MomentumState(NamedTuple):
    """State of `momentum`: the velocity of each parameter."""

    velocity: Parameters


def adam(
    learning_rate: float | Schedule = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
) -> Optimizer:
    """Adam: steps scaled by running means of the gradient and of its square.

    ``m <- beta_1 m + (1 - beta_1) g``, ``v <- beta_2 v + (1 - beta_2) g^2``,
    ``p <- p - rate * m / (sqrt(v) + epsilon)`` with
    ``rate = learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)`` at step t = 1, 2, ...

    Parameters
    ----------
    learning_rate : float or Schedule, default=0.001
    beta_1, beta_2 : float, default=0.9, 0.999
        In [0, 1).
    epsilon : float, default=1e-8
        Greater than 0.

    Returns
    -------
    Optimizer

    Notes
    -----
    As in scikit-learn, and in the paper's more efficient form, `epsilon` is added to the uncorrected
    ``sqrt(v)``; PyTorch and optax add it after the bias correction.

    ``m`` and ``v`` have the dtype of the parameters. float16 and bfloat16 cannot hold the default `epsilon`
    or `beta_2`: `train` refuses them.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, end of section 2.

    Examples
    --------
    >>> from mlp_xp import adam, cosine
    >>> adam(cosine(0.01, epochs=100)).learning_rate(50)
    0.005
    """
    settings = {
        "beta_1": check_real("beta_1", beta_1, at_least=0.0, below=1.0),
        "beta_2": check_real("beta_2", beta_2, at_least=0.0, below=1.0),
        "epsilon": check_real("epsilon", epsilon, above=0.0),
    }
    rate = check_learning_rate(learning_rate)
    call = Call(adam, learning_rate=rate, **settings)
    init = HashablePartial(_adam_init, beta_2=settings["beta_2"], epsilon=settings["epsilon"])
    update = HashablePartial(_adam_update, **settings)
    return Optimizer(init.made_by(call, "init"), update.made_by(call, "update"), rate)


class AdamState(NamedTuple):
    """State of `adam`: the number of steps, the running means of each gradient and of its square."""

    steps: int
    mean: Parameters
    square: Parameters


def decoupled_weight_decay(optimizer: Optimizer, weight_decay: float) -> Optimizer:
    """Add decoupled weight decay: ``W <- (1 - learning_rate * weight_decay) W`` before each step.

    With `adam` it is AdamW. Unlike `Network`'s `alpha` it is not part of the objective, so that the
    optimizer does not scale it as it scales gradients. Biases do not decay.

    Parameters
    ----------
    optimizer : Optimizer
    weight_decay : float
        At least 0.

    Returns
    -------
    Optimizer

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> from mlp_xp import adam, decoupled_weight_decay
    >>> decoupled_weight_decay(adam(0.01), 0.1).learning_rate
    0.01
    """
    check_optimizer(optimizer)
    decay = check_real("weight_decay", weight_decay, at_least=0.0)
    update = HashablePartial(_decayed_update, update=optimizer.update, weight_decay=decay)
    call = Call(decoupled_weight_decay, optimizer=optimizer, weight_decay=decay)
    return replace(optimizer, update=update.made_by(call, "update"))


def _decayed_update(
    xp: Namespace,
    params: Parameters,
    gradients: Parameters,
    state: OptimizerState,
    learning_rate: float,
    *,
    update: Update,
    weight_decay: float,
) -> tuple[Parameters, OptimizerState]:
    factor = 1.0 - learning_rate * weight_decay
    decayed = []
    for weight, bias in params:
        weight *= factor
        decayed.append((weight, bias))
    return update(xp, layers_like(params, decayed), gradients, state, learning_rate)


def _no_state(xp: Namespace, params: Parameters) -> OptimizerState:
    return ()


def _gradient_descent_update(
    xp: Namespace, params: Parameters, gradients: Parameters, state: OptimizerState, learning_rate: float
) -> tuple[Parameters, OptimizerState]:
    updated = []
    for (weight, bias), (weight_gradient, bias_gradient) in zip(params, gradients):
        weight -= learning_rate * weight_gradient
        bias -= learning_rate * bias_gradient
        updated.append((weight, bias))
    return layers_like(params, updated), state


def _momentum_init(xp: Namespace, params: Parameters) -> MomentumState:
    return MomentumState(zeros_like(xp, params))


def _momentum_update(
    xp: Namespace,
    params: Parameters,
    gradients: Parameters,
    state: MomentumState,
    learning_rate: float,
    *,
    momentum: float,
    nesterov: bool,
) -> tuple[Parameters, MomentumState]:
    updated, velocities = [], []
    arrays = zip(flatten(params), flatten(gradients), flatten(state.velocity))
    for parameter, gradient, velocity in arrays:
        gradient *= learning_rate
        velocity *= momentum
        velocity -= gradient
        parameter += momentum * velocity - gradient if nesterov else velocity
        updated.append(parameter)
        velocities.append(velocity)
    return unflatten_like(params, updated), MomentumState(unflatten_like(params, velocities))


def _adam_init(xp: Namespace, params: Parameters, *, beta_2: float, epsilon: float) -> AdamState:
    check_adam_dtype(xp, params[0][0].dtype, beta_2, epsilon)
    return AdamState(0, zeros_like(xp, params), zeros_like(xp, params))


def check_adam_dtype(xp: Namespace, dtype: Dtype, beta_2: float, epsilon: float) -> None:
    """Raise a ValueError if Adam's state, which has the parameters' dtype, cannot be computed in that.

    Where `epsilon` is 0 a gradient of 0 becomes 0 / 0; where `beta_2` is 1 the squares' mean only grows.
    """
    info = xp.finfo(dtype)
    for name, value, least in (
        ("epsilon", epsilon, float(info.smallest_normal) * float(info.eps)),
        ("1 - beta_2", 1.0 - beta_2, float(info.eps)),
    ):
        if value < least:
            raise ValueError(
                f"`{name}` of Adam must be >= {least:.2g} to train in {info.dtype}, got {value:g}: "
                "take float32, or `momentum`"
            )


def _adam_update(
    xp: Namespace,
    params: Parameters,
    gradients: Parameters,
    state: AdamState,
    learning_rate: float,
    *,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> tuple[Parameters, AdamState]:
    count = state.steps + 1
    # `** 0.5` and not math.sqrt, because under jax.jit the count is an array.
    rate = learning_rate * (1.0 - beta_2**count) ** 0.5 / (1.0 - beta_1**count)
    updated, means, squares = [], [], []
    arrays = zip(flatten(params), flatten(gradients), flatten(state.mean), flatten(state.square))
    for parameter, gradient, mean, square in arrays:
        mean *= beta_1
        mean += (1.0 - beta_1) * gradient
        gradient *= gradient
        gradient *= 1.0 - beta_2
        square *= beta_2
        square += gradient
        step = xp.sqrt(square)
        step += epsilon
        parameter -= rate * (mean / step)
        updated.append(parameter)
        means.append(mean)
        squares.append(square)
    return unflatten_like(params, updated), AdamState(
        count, unflatten_like(params, means), unflatten_like(params, squares)
    )
