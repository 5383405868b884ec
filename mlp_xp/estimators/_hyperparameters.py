"""Hyperparameters of the estimators: defaults, checks, and the activation and optimizer made of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer_names
from sklearn.utils import check_random_state

from mlp_xp._activations import Activation, resolve_activation
from mlp_xp._devices import MATMUL_PRECISIONS
from mlp_xp._optimizers import Optimizer, adam, decoupled_weight_decay, momentum
from mlp_xp._processes import current_processes
from mlp_xp._schedules import Schedule, inverse_scaling
from mlp_xp._validation import (
    check_bool,
    check_integer,
    check_integer_or_infinity,
    check_real,
    is_iterable,
    lookup,
    random_source,
    seeded,
    shown,
)
from mlp_xp._warnings import warn
from mlp_xp.backends import _BACKENDS


@dataclass(eq=False, repr=False)
class Hyperparameters(BaseEstimator):
    """Parameters that classifier and regressor have in common; see the documentation of the estimators."""

    _: KW_ONLY
    solver: str = "adam"
    alpha: float = 0.0001
    batch_size: int | str = "auto"
    learning_rate: str = "constant"
    learning_rate_init: float = 0.001
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: int | np.random.RandomState | None = None
    tol: float = 1e-4
    verbose: bool | int = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool | str = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    max_fun: int = 15000
    weight_decay: float = 0.0
    backend: str | None = None
    matmul_precision: str = "highest"

    def _random(self) -> Any:
        if type(self.random_state) is int and 0 <= self.random_state < 2**32:
            return seeded(self.random_state)
        if self.random_state is None and current_processes() is not None:
            return random_source(None)  # scikit-learn's is another in each process
        try:
            return check_random_state(self.random_state)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`random_state` must be an integer from 0 to 2**32 - 1, a RandomState or None, got "
                f"{shown(self.random_state)}"
            ) from error

    def _batch_size(self, n_samples: int) -> int:
        if isinstance(self.batch_size, str):
            return min(200, n_samples)
        if self.batch_size > n_samples and self.solver != "lbfgs":
            message = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warn(message)
        return min(int(self.batch_size), n_samples)

    def _check_parameters(self) -> list[int]:
        """Check all parameters; return the sizes of the hidden layers."""
        lookup("solver", self.solver, dict.fromkeys(["lbfgs", "sgd", "adam"]))
        lookup("learning_rate", self.learning_rate, dict.fromkeys(["constant", "invscaling", "adaptive"]))
        for name in ("alpha", "power_t", "tol", "weight_decay"):
            check_real(name, getattr(self, name), at_least=0.0)
        for name in ("learning_rate_init", "epsilon"):
            check_real(name, getattr(self, name), above=0.0)
        for name in ("beta_1", "beta_2", "validation_fraction"):
            check_real(name, getattr(self, name), at_least=0.0, below=1.0)
        check_real("momentum", self.momentum, at_least=0.0, at_most=1.0)
        for name in ("max_iter", "max_fun"):
            check_integer(name, getattr(self, name), minimum=1)
        if not (isinstance(self.batch_size, str) and self.batch_size == "auto"):
            check_integer("batch_size", self.batch_size, minimum=1)
        check_integer_or_infinity("n_iter_no_change", self.n_iter_no_change, minimum=1)
        for name in ("shuffle", "warm_start", "nesterovs_momentum"):
            check_bool(name, getattr(self, name))
        if not isinstance(self.verbose, (bool, np.bool_)):
            check_integer("verbose", self.verbose, minimum=0)
        if not isinstance(self.early_stopping, (bool, np.bool_)):
            names = ["loss", "score", *get_scorer_names()]
            lookup("early_stopping", self.early_stopping, dict.fromkeys(names))
        if self.backend is not None:
            lookup("backend", self.backend, _BACKENDS)
        lookup("matmul_precision", self.matmul_precision, dict.fromkeys(MATMUL_PRECISIONS))
        if self.solver == "lbfgs" and self.weight_decay:
            raise ValueError(
                "`weight_decay` must be 0 with `solver` 'lbfgs', which takes no such steps, got "
                f"{self.weight_decay}"
            )
        sizes = self.hidden_layer_sizes
        # np.ndim would copy a list into an array, which a crafted file could make huge: a list of strings
        # takes the length of the longest for each.
        if not isinstance(sizes, (list, tuple)) and np.ndim(sizes) == 0:
            sizes = [sizes]
        sizes = [
            check_integer(f"hidden_layer_sizes[{index}]", size, minimum=1) for index, size in enumerate(sizes)
        ]
        self._activation(len(sizes))
        return sizes

    def _activation(self, n_hidden: int) -> Any:
        """Return the activation as `Network` takes it."""
        activation = self.activation
        if isinstance(activation, Activation) or not is_iterable(activation):
            each: Any = [activation]
        else:
            activation = each = tuple(activation)
            if len(each) != n_hidden:
                raise ValueError(
                    f"`activation` must be one, or one for each of the {n_hidden} hidden layers, "
                    f"got {len(each)}"
                )
        for one in each:
            resolve_activation(one)
        return activation

    def _all_logistic(self) -> bool:
        activation = self.activation
        return activation == "logistic" or (
            isinstance(activation, (list, tuple)) and set(activation) == {"logistic"}
        )

    def _optimizer(self, n_seen: int, n_samples: int) -> Optimizer:
        """Return the optimizer; `n_seen` samples were trained on before, which "invscaling" counts."""
        rate: float | Schedule = self.learning_rate_init
        if self.solver == "adam":
            optimizer = adam(rate, self.beta_1, self.beta_2, self.epsilon)
        else:
            if self.learning_rate == "invscaling":
                schedule = inverse_scaling(self.learning_rate_init, self.power_t)

                def rate(epoch: int) -> float:
                    return schedule(n_seen + epoch * n_samples)

            optimizer = momentum(rate, self.momentum, self.nesterovs_momentum)
        return decoupled_weight_decay(optimizer, self.weight_decay) if self.weight_decay else optimizer
