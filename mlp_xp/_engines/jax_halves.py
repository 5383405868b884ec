"""The halves of a training step on JAX arrays, each compiled by `jax.jit`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mlp_xp._arrays import Array, Placement
from mlp_xp._cache import cached_by_arguments
from mlp_xp._engines.base import State
from mlp_xp._engines.jax import JaxState
from mlp_xp._engines.step_halves import N_EXTRA, HostHalves, Totals, buffer_for, split
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import Parameters, flatten, plain, unflatten_like
from mlp_xp._samples import Batch


class JaxHalves(HostHalves, JaxState):
    """Runs compiled functions; see `mlp_xp._engines.step_halves.StepHalves`."""

    name = "xla"
    pads = 2.0

    def __init__(self, network: Network, optimizer: Optimizer, place: Placement, state: State) -> None:
        super().__init__(place, state)
        self.first = _compiled_first(replace(network, alpha=0.0))
        self.second = _compiled_second(network, replace(optimizer, learning_rate=0.0))
        self.buffer = buffer_for(state[0], place.host_dtype)
        self.smallest = float(jnp.finfo(place.dtype).smallest_normal)

    def add_gradients(self, batch: Batch, unit: float) -> None:
        """Write the sums over a batch to the buffer, times a number."""
        self.buffer[:-2] = self.first(self._state[0], *batch, self._number(unit))

    def update(self, totals: Totals, rate: float) -> None:
        """Update the state by the buffer."""
        losses, scale, factor = totals.numbers(self.buffer, self.smallest)
        numbers = map(self._number, (rate, losses, scale))
        flat = self.place.from_host(self.buffer[:-N_EXTRA] * self.buffer.dtype.type(factor))
        state, objective = self.second(self._state, flat, *numbers)
        self.mean += float(objective) * totals.share  # waits, and raises an error of the call
        self._state = state

    def _number(self, value: float) -> Any:
        return np.asarray(value, self.place.dtype)


@cached_by_arguments
def _compiled_first(network: Network) -> Any:
    """Return the compiled function ``(params, X, y, sample_weight, scale) -> sums``, one flat array."""
    sums = network._make_sums(jnp)

    def first(params: Parameters, X: Array, y: Array, sample_weight: Array | None, scale: Array) -> Array:
        summed, gradients = sums(params, X, y, sample_weight, scale)
        weight = X.shape[0] if sample_weight is None else jnp.sum(sample_weight)
        wide = jnp.promote_types(scale.dtype, jnp.float32)
        parts = [
            *(jnp.reshape(one, (-1,)) for one in flatten(gradients)),
            jnp.stack([summed * scale, weight * scale]),
        ]
        return jnp.concat([part.astype(wide) for part in parts])

    return jax.jit(first)


@cached_by_arguments
def _compiled_second(network: Network, optimizer: Optimizer) -> Any:
    """Return the compiled function ``(state, gradients, rate, losses, scale) -> (state, objective)``."""
    complete = network._make_completion(jnp)

    def second(state: State, flat: Array, rate: Array, losses: Array, scale: Array) -> tuple[State, Array]:
        params, optimizer_state = state
        gradients = unflatten_like(params, split(jnp, flat, params))
        objective, completed = complete(params, losses, list(gradients), scale)
        new, optimizer_state = optimizer.update(jnp, params, completed, optimizer_state, rate)
        return (plain(new), optimizer_state), objective

    return jax.jit(second)
