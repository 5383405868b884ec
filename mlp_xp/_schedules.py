"""Learning-rate schedules: functions of the epoch's index, called on the host once an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Protocol

from mlp_xp._functions import Call, HashablePartial
from mlp_xp._validation import check_integer, check_real


class Schedule(Protocol):
    """A learning rate that changes from epoch to epoch: a function of the epoch's index, from 0.

    Examples
    --------
    >>> from mlp_xp import gradient_descent
    >>> def halved(epoch):
    ...     return 0.5**epoch
    >>> gradient_descent(halved).learning_rate(3)
    0.125
    """

    def __call__(self, epoch: int, /) -> float:
        """Return the learning rate of the epoch with this index."""


def check_learning_rate(learning_rate: float | Schedule) -> float | Schedule:
    """Return the schedule given, or the constant rate as a float."""
    return learning_rate if callable(learning_rate) else _rate(learning_rate)


def rates(learning_rate: float | Schedule, n_epochs: int, first: int = 0) -> Iterator[float]:
    """Return an iterator over the learning rates of the epochs, from that with the index `first` on."""
    if not callable(learning_rate):
        return repeat(learning_rate, n_epochs - first)
    return (
        check_real(f"learning_rate({epoch})", learning_rate(epoch), at_least=0.0)
        for epoch in range(first, n_epochs)
    )


def inverse_scaling(learning_rate: float, power_t: float = 0.5, n_samples: int = 1) -> Schedule:
    """Decay the learning rate as ``learning_rate / (1 + epoch * n_samples) ** power_t``.

    Parameters
    ----------
    learning_rate : float
        The rate of the first epoch, greater than 0.
    power_t : float, default=0.5
        At least 0.
    n_samples : int, default=1
        The number of training samples gives scikit-learn's ``learning_rate="invscaling"``; with 1 the rate
        depends on the number of epochs only.

    Returns
    -------
    Schedule

    Examples
    --------
    >>> from mlp_xp import inverse_scaling
    >>> inverse_scaling(0.1)(3)
    0.05
    """
    settings = {
        "learning_rate": _rate(learning_rate),
        "power_t": check_real("power_t", power_t, at_least=0.0),
        "n_samples": check_integer("n_samples", n_samples, minimum=1),
    }
    return HashablePartial(_inverse_scaling, **settings).made_by(Call(inverse_scaling, **settings))


def step_decay(learning_rate: float, every: int, factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by `factor` after every `every` epochs.

    Parameters
    ----------
    learning_rate : float
        The rate of the first epoch, greater than 0.
    every : int
        Epochs with the same rate.
    factor : float, default=0.1
        Greater than 0.

    Returns
    -------
    Schedule

    Examples
    --------
    >>> from mlp_xp import step_decay
    >>> [step_decay(0.8, every=10, factor=0.5)(epoch) for epoch in (0, 9, 10, 20)]
    [0.8, 0.8, 0.4, 0.2]
    """
    settings = {
        "learning_rate": _rate(learning_rate),
        "every": check_integer("every", every, minimum=1),
        "factor": check_real("factor", factor, above=0.0),
    }
    return HashablePartial(_step_decay, **settings).made_by(Call(step_decay, **settings))


def cosine(learning_rate: float, epochs: int, final: float = 0.0) -> Schedule:
    """Decay the learning rate along half a cosine wave; afterwards it stays constant.

    Parameters
    ----------
    learning_rate : float
        The rate of the first epoch, greater than 0.
    epochs : int
        The number of epochs over which the rate decays.
    final : float, default=0.0
        The rate from the epoch with index `epochs` on, at least 0.

    Returns
    -------
    Schedule

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017,
    equation 5 without restarts.

    Examples
    --------
    >>> from mlp_xp import cosine
    >>> [round(cosine(0.1, epochs=4)(epoch), 4) for epoch in (0, 2, 4, 5)]
    [0.1, 0.05, 0.0, 0.0]
    """
    settings = {
        "learning_rate": _rate(learning_rate),
        "epochs": check_integer("epochs", epochs, minimum=1),
        "final": check_real("final", final, at_least=0.0),
    }
    return HashablePartial(_cosine, **settings).made_by(Call(cosine, **settings))


def _rate(learning_rate: float) -> float:
    return check_real("learning_rate", learning_rate, above=0.0)


def _inverse_scaling(epoch: int, *, learning_rate: float, power_t: float, n_samples: int) -> float:
    return float(learning_rate / (1 + epoch * n_samples) ** power_t)


def _step_decay(epoch: int, *, learning_rate: float, every: int, factor: float) -> float:
    return float(learning_rate * factor ** (epoch // every))


def _cosine(epoch: int, *, learning_rate: float, epochs: int, final: float) -> float:
    progress = min(epoch / epochs, 1.0)
    return final + 0.5 * (learning_rate - final) * (1.0 + math.cos(math.pi * progress))
