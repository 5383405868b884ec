"""Epochs compiled by JAX: one call of a compiled function runs many of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlp_xp._arrays import Array
from mlp_xp._engines import Engine, Epoch, State, make_step
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, plain
from mlp_xp._samples import Batch, Rows, Samples

EPOCHS_PER_CALL = 4096
"""At most: the length of the buffer that a call writes its epochs' losses in."""

EPOCHS_PER_LOOP = 64
"""A loop of loops: XLA's CPU compiler makes fast code of a loop only if no array in it is long."""

INDICES_PER_CALL = 2**16
"""About so many rows are put in order for a call, or those of one epoch where it has more."""

FUNCTIONS_KEPT = 64
"""How many compiled functions wait for another training like the one they were compiled for."""


class _Done(NamedTuple):
    """What is done, replaced as a whole: an interrupt never finds one part of it without the other."""

    state: State
    losses: tuple[tuple[Array, int], ...] = ()


def make_jax_engine(
    network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State
) -> Engine:
    """Make the engine for JAX arrays: the eager one where something cannot be compiled."""
    try:
        engine = JaxEngine(network, optimizer, samples, batch_size, state)
        engine.trace()
    except Exception:
        # Functions of the user's own may look at values. If they are wrong, running them will say so.
        return EagerEngine(network, optimizer, samples, batch_size, state)
    return engine


class JaxEngine:
    """Runs compiled epochs; see `mlp_xp._engines.Engine`.

    Numbers in the optimizer's state are arrays in here, which can change without a compilation, and
    numbers for whoever asks for the state.
    """

    name = "xla"

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State
    ) -> None:
        n_samples = len(samples)
        self.device, self.dtype = samples.place.device, samples.place.dtype
        self.state = state
        self.samples = samples.arrays
        self.rows = samples.rows
        if self.rows is None:
            self.rows = np.arange(n_samples, dtype=np.int32 if n_samples < 2**31 else np.int64)
        self.epochs_per_call = _whole_loops(min(EPOCHS_PER_CALL, max(1, INDICES_PER_CALL // n_samples)))
        if batch_size >= n_samples:
            self.samples, self.rows = samples.whole(), None
            self.epochs_per_call = EPOCHS_PER_CALL
        self.samples = jax.device_put(self.samples, self.device)
        # The rate is an argument of the compiled function, and no reason for another one. The number of
        # samples is one, so that the functions that are kept are not many times as many.
        settings = (network, replace(optimizer, learning_rate=0.0), min(batch_size, n_samples), n_samples)
        try:
            self.compiled = _compiled(*settings)
        except TypeError:  # something is not hashable
            self.compiled = _compiled.__wrapped__(*settings)

    @property
    def state(self) -> State:
        """The state after the last call."""
        leaves, structure = jax.tree.flatten(self._done.state)
        state: State = structure.unflatten(
            leaf if kind is None else kind(leaf) for leaf, kind in zip(leaves, self._kinds)
        )
        return state

    @state.setter
    def state(self, state: State) -> None:
        self._kinds = [_number_type(leaf) for leaf in jax.tree.leaves(state)]
        # Numbers get the type that they have in JAX: it takes any array's dtype. And all are put there
        # by name, even if they are there: JAX compiles again where some of them were not.
        self._done = _Done(jax.device_put(state, self.device))

    @property
    def losses(self) -> list[float]:
        """The epochs' losses since they were last emptied."""
        losses: list[float] = []
        for buffer, n_epochs in self._done.losses:
            losses += np.asarray(buffer)[:n_epochs].tolist()
        return losses

    @losses.setter
    def losses(self, losses: list[Array]) -> None:
        self._done = self._done._replace(losses=tuple((np.reshape(loss, 1), 1) for loss in losses))

    def is_finite(self) -> bool:
        """Whether all of the state is finite."""
        return all_finite(jnp, self.state)

    def copied_state(self) -> State:
        """Return the state: nobody writes in arrays of JAX."""
        return self.state

    def trace(self) -> None:
        """Raise the error that compiling would end in, before anything runs."""
        self.compiled.eval_shape(*self._arguments([]))

    def run(self, epochs: Sequence[Epoch]) -> None:
        """Run these epochs."""
        before = self._done
        try:
            for start in range(0, len(epochs), self.epochs_per_call):
                some = epochs[start : start + self.epochs_per_call]
                state, losses = self.compiled(*self._arguments(some))
                self._done = _Done(state, (*self._done.losses, (losses, len(some))))
            jax.block_until_ready(self._done.state)
        except Exception:
            # What failed on the device would fail again for whoever looks at it.
            self._done = before
            raise

    def _arguments(self, epochs: Sequence[Epoch]) -> tuple[State, Batch, Rows, Rows | None, int]:
        rates = np.zeros(self.epochs_per_call, dtype=self.dtype)
        rates[: len(epochs)] = [rate for rate, _ in epochs]
        orders = None
        if self.rows is not None:
            orders = np.zeros((self.epochs_per_call, len(self.rows)), dtype=self.rows.dtype)
            for row, (_, order) in zip(orders, epochs):
                row[:] = self.rows if order is None else self.rows[order]
        return self._done.state, self.samples, rates, orders, len(epochs)


def _number_type(leaf: Any) -> Callable[[Array], float] | None:
    return type(leaf) if isinstance(leaf, (int, float)) else None


def _whole_loops(n_epochs: int) -> int:
    return n_epochs - n_epochs % min(EPOCHS_PER_LOOP, n_epochs)


@lru_cache(maxsize=FUNCTIONS_KEPT)
def _compiled(network: Network, optimizer: Optimizer, batch_size: int, n_samples: int) -> Any:
    """Return ``(state, samples, rates, orders, n_epochs) -> (state, losses)``, compiled.

    As many of the rates, orders and losses count as there are epochs. Their lengths do not vary, so that
    one compilation serves all calls.
    """
    update_once = make_step(network, optimizer, jnp)

    def step(state: State, batch: Batch, rate: Array) -> tuple[State, Array]:
        params, optimizer_state, loss = update_once(*state, *batch, rate)
        return (plain(params), optimizer_state), loss

    def mini_batches(state: State, samples: Batch, order: Array, rate: Array) -> tuple[State, Array]:
        def mini_batch(start: Any, size: int, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, mean = carry
            rows = lax.dynamic_slice_in_dim(order, start, size)
            state, loss = step(state, _take(samples, rows, rate.dtype), rate)
            return state, mean + loss * (size / n_samples)

        n_full, n_left = divmod(n_samples, batch_size)
        carry = (state, jnp.zeros_like(rate))
        carry = lax.fori_loop(
            0, n_full, lambda i, carry: mini_batch(i * batch_size, batch_size, carry), carry
        )
        return mini_batch(n_full * batch_size, n_left, carry) if n_left else carry

    def run(
        state: State, samples: Batch, rates: Array, orders: Array | None, n_epochs: int
    ) -> tuple[State, Array]:
        n_each = min(EPOCHS_PER_LOOP, rates.shape[0])

        def few(k: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            start = k * n_each
            their_rates = lax.dynamic_slice_in_dim(rates, start, n_each)

            def epoch(i: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
                state, losses = carry
                rate = lax.dynamic_index_in_dim(their_rates, i, keepdims=False)
                if orders is None:
                    state, loss = step(state, samples, rate)
                else:
                    order = lax.dynamic_index_in_dim(orders, start + i, keepdims=False)
                    state, loss = mini_batches(state, samples, order, rate)
                return state, lax.dynamic_update_index_in_dim(losses, loss, i, 0)

            state, losses = carry
            their_losses = jnp.zeros_like(their_rates)
            n_of_them = jnp.minimum(n_each, n_epochs - start)
            state, their_losses = lax.fori_loop(0, n_of_them, epoch, (state, their_losses))
            return state, lax.dynamic_update_slice_in_dim(losses, their_losses, start, 0)

        n_loops = (n_epochs + n_each - 1) // n_each
        result: tuple[State, Array] = lax.fori_loop(0, n_loops, few, (state, jnp.zeros_like(rates)))
        return result

    return jax.jit(run)


def _take(samples: Batch, rows: Array, dtype: Any) -> Batch:
    return Batch(
        *(
            None if array is None else array.at[rows].get(mode="promise_in_bounds").astype(dtype)
            for array in samples
        )
    )
