"""The XLA engine: one call of a function that JAX has compiled runs many epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlp_xp._arrays import Array, Placement
from mlp_xp._cache import cached_by_arguments
from mlp_xp._engines.base import Engine, EpochSettings, State, make_step
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import all_finite, plain
from mlp_xp._samples import Batch, Rows, Samples

MAX_EPOCHS_PER_CALL = 4096
"""Maximum number of epochs in one call of the compiled function: the length of its array of losses."""

EPOCHS_PER_INNER_LOOP = 64
"""Number of epochs in the inner of two nested loops.

XLA's CPU compiler makes slower code of a loop that updates a long array, as that of the losses. So the inner
loop updates a short one, which the outer loop copies into the long one. An epoch of 4 samples in a network
2-4-1 with Adam takes 2.1 microseconds on a CPU, and 3.4 in a single loop of 4096.
"""

MAX_BYTES_PER_STREAMED_CALL = 2**26
"""Maximum size of the mini-batches of samples on the host that one call takes, unless one batch is larger.
Chosen so that a call takes much longer than to start it, and that the few parts of the samples that are on
the device at a time are small beside its memory."""

MAX_ROW_INDICES_PER_CALL = 2**16
"""Maximum number of row indices, of all epochs of a call, that are copied to the device, unless one epoch has
more. Chosen so that they take at most 0.5 MiB."""


ONE = np.int32(1)
"""An argument of compiled functions: the length of loops that XLA is not to know."""


class _StateAndLosses(NamedTuple):
    """The state after the epochs done, and their losses: for each call an array, and how many epochs it has.

    Both are replaced at once, so that after an interrupt they are of the same epochs.
    """

    state: State
    losses: tuple[tuple[Array, int], ...] = ()


def make_jax_engine(
    network: Network,
    optimizer: Optimizer,
    samples: Samples,
    batch_size: int,
    state: State,
    max_sample_bytes: float = math.inf,
) -> Engine:
    """Make the engine for JAX arrays; it is the eager one if the step cannot be compiled."""
    is_streamed = samples.is_on_host and batch_size < len(samples)
    make = partial(StreamingJaxEngine, max_sample_bytes) if is_streamed else JaxEngine
    try:
        engine = make(network, optimizer, samples, batch_size, state)
        engine.trace()
    except Exception:
        # A function defined by the user may read values of arrays, which cannot be compiled. If it is wrong
        # in another way, the eager engine raises its error.
        return EagerEngine(network, optimizer, samples, batch_size, state)
    return engine


class JaxState:
    """The state that compiled functions take and return.

    Numbers in the optimizer's state are arrays of shape () inside, because JAX would compile again for each
    new value of a constant. The property `state` has them as numbers again.
    """

    def __init__(self, place: Placement, state: State) -> None:
        self.place = place
        self.state = state

    @property
    def state(self) -> State:
        """The state, in arrays that cannot be written in."""
        return with_number_types(self._state, self._number_types)

    @state.setter
    def state(self, state: State) -> None:
        self._number_types = [number_type(leaf) for leaf in jax.tree.leaves(state)]
        # Numbers become arrays of JAX's weak type, which adopts the dtype of the other operand. Arrays that
        # are on the device already are put there too, because JAX compiles again for arrays that are not
        # committed to a device. No copy is needed: JAX arrays cannot be written in.
        self._state: State = jax.device_put((plain(state[0]), state[1]), self.place.device)

    def copied_state(self) -> State:
        """Return the state, without a copy, as JAX arrays cannot be written in."""
        return self.state

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        return all_finite(jnp, self.state)


class JaxSteps(JaxState):
    """Runs steps in compiled functions, one call for some samples; see `mlp_xp._engines.base.Steps`."""

    name = "xla"

    def __init__(self, network: Network, optimizer: Optimizer, place: Placement, state: State) -> None:
        super().__init__(place, state)
        self.settings = network, replace(optimizer, learning_rate=0.0)
        self._under_way: tuple[State, Any] = self._state, None

    def trace(self, samples: Samples, batch_size: int) -> None:
        """Trace the function without running it; raise an error if it cannot be compiled."""
        shapes = _shapes(samples, len(samples), self.place.dtype)
        order, zero = np.arange(len(samples), dtype=np.int32), np.zeros((), self.place.dtype)
        self._compiled(samples, batch_size).eval_shape(self._state, zero, shapes, order, zero, ONE)

    def run_steps(self, samples: Samples, batch_size: int, order: Rows | None, rate: float) -> Array:
        """Run steps on all samples, in an order; return their mean loss."""
        n_samples, arrays = len(samples), samples.arrays
        if samples.is_on_host:
            (arrays,) = samples.batches(n_samples, order)
            order = None
        if order is None:
            order = np.arange(n_samples, dtype=np.int32)
        zero = jax.device_put(np.zeros((), self.place.dtype), self.place.device)
        arrays = jax.device_put(arrays, self.place.device)
        compiled, number = self._compiled(samples, batch_size), np.asarray(rate, self.place.dtype)
        state, loss = compiled(self._state, zero, arrays, order, number, ONE)
        state_before, loss_before = self._under_way
        try:
            # So that no more samples are on the device than those computed with and the next.
            jax.block_until_ready(loss_before)
        except Exception:  # of the call before, as JAX runs calls asynchronously
            self._state = state_before
            raise
        self._under_way, self._state = (self._state, loss), state
        return loss

    def _compiled(self, samples: Samples, batch_size: int) -> Any:
        return _compiled_part(*self.settings, min(batch_size, len(samples)), len(samples))


class JaxEngine:
    """Runs epochs in compiled functions; see `mlp_xp._engines.Engine`.

    Numbers in the optimizer's state are arrays of shape () inside the engine, because JAX would compile again
    for each new value of a constant. The property `state` has them as numbers again.
    """

    name = "xla"
    release = None

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, batch_size: int, state: State
    ) -> None:
        n_samples = len(samples)
        self.device, self.dtype = samples.place.device, samples.place.dtype
        self.state = state
        # The key of the cached functions. It leaves the learning rate out, which is an argument of the
        # compiled function. It has the number of samples, so that each function is compiled for one shape
        # only, and the least recently used ones can be freed.
        self.settings = network, replace(optimizer, learning_rate=0.0), min(batch_size, n_samples), n_samples
        self._set_samples(samples, batch_size)

    def _set_samples(self, samples: Samples, batch_size: int) -> None:
        n_samples = len(samples)
        self.samples = samples.arrays
        self.rows = samples.rows
        if self.rows is None:
            self.rows = np.arange(n_samples, dtype=np.int32 if n_samples < 2**31 else np.int64)
        n_epochs = min(MAX_EPOCHS_PER_CALL, max(1, MAX_ROW_INDICES_PER_CALL // n_samples))
        self.epochs_per_call = n_epochs - n_epochs % min(EPOCHS_PER_INNER_LOOP, n_epochs)
        if batch_size >= n_samples:
            self.samples, self.rows = samples.whole(), None
            self.epochs_per_call = MAX_EPOCHS_PER_CALL
        self.samples = jax.device_put(self.samples, self.device)
        self.compiled = _compiled(*self.settings)

    @property
    def state(self) -> State:
        """The state after the last call of the compiled function."""
        return with_number_types(self._latest.state, self._number_types)

    @state.setter
    def state(self, state: State) -> None:
        self._number_types = [number_type(leaf) for leaf in jax.tree.leaves(state)]
        # Numbers become arrays of JAX's weak type, which adopts the dtype of the other operand. Arrays that
        # are on the device already are put there too, because JAX compiles again for arrays that are not
        # committed to a device. No copy is needed: JAX arrays cannot be written in.
        self._latest = _StateAndLosses(jax.device_put(state, self.device))

    @property
    def losses(self) -> list[float]:
        """The losses of the epochs since the list was last emptied."""
        losses: list[float] = []
        for buffer, n_epochs in self._latest.losses:
            losses += np.asarray(buffer).reshape(-1)[:n_epochs].tolist()
        return losses

    @losses.setter
    def losses(self, losses: list[Array]) -> None:
        self._latest = self._latest._replace(losses=tuple((np.asarray(loss), 1) for loss in losses))

    def is_finite(self) -> bool:
        """Whether all arrays of the state are finite."""
        return all_finite(jnp, self.state)

    def copied_state(self) -> State:
        """Return the state, without a copy, as JAX arrays cannot be written in."""
        return self.state

    def trace(self) -> None:
        """Trace the function without running it; raise an error if it cannot be compiled."""
        self.compiled.eval_shape(*self._arguments([]))

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs."""
        before = self._latest
        try:
            self._run(epochs)
            jax.block_until_ready(self._latest.state)
        except Exception:
            # JAX runs calls asynchronously: each use of a result raises the error of the call that failed.
            self._latest = before
            raise

    def _run(self, epochs: Sequence[EpochSettings]) -> None:
        for start in range(0, len(epochs), self.epochs_per_call):
            part = epochs[start : start + self.epochs_per_call]
            state, losses = self.compiled(*self._arguments(part))
            self._store(state, losses, len(part))

    def _store(self, state: State, losses: Array, n_epochs: int) -> None:
        self._latest = _StateAndLosses(state, (*self._latest.losses, (losses, n_epochs)))

    def _arguments(self, epochs: Sequence[EpochSettings]) -> tuple[State, Batch, Rows, Rows | None, int, Any]:
        """Return the arguments of the compiled function, padded to `epochs_per_call` epochs."""
        rates = np.zeros(self.epochs_per_call, dtype=self.dtype)
        rates[: len(epochs)] = [rate for rate, _ in epochs]
        orders = None
        if self.rows is not None:
            orders = np.zeros((self.epochs_per_call, len(self.rows)), dtype=self.rows.dtype)
            for row, (_, order) in zip(orders, epochs):
                row[:] = self.rows if order is None else self.rows[order]
        return self._latest.state, self.samples, rates, orders, len(epochs), ONE


class StreamingJaxEngine(JaxEngine):
    """Runs epochs on samples on the host: each call runs the steps on a part of them.

    Three parts are on the device at a time, of no more than `max_sample_bytes` together: that of the call,
    the last one, and one on its way.
    """

    def __init__(self, max_sample_bytes: float, *settings: Any) -> None:
        self.max_part_bytes = min(MAX_BYTES_PER_STREAMED_CALL, max_sample_bytes / 3)
        super().__init__(*settings)

    def _set_samples(self, samples: Samples, batch_size: int) -> None:
        self.streamed = samples
        n_batches = max(1, int(self.max_part_bytes / (batch_size * samples.row_bytes)))
        self.rows_per_call = min(n_batches * batch_size, len(samples))
        self.order = np.arange(self.rows_per_call, dtype=np.int32)
        self.compiled = _compiled_part(*self.settings)

    def trace(self) -> None:
        """Trace the function without running it; raise an error if it cannot be compiled."""
        shapes, zero = _shapes(self.streamed, self.rows_per_call, self.dtype), np.zeros((), self.dtype)
        self.compiled.eval_shape(self._latest.state, zero, shapes, self.order, zero, ONE)

    def _run(self, epochs: Sequence[EpochSettings]) -> None:
        for number, order in epochs:
            rate = np.asarray(number, self.dtype)
            # On the device, as in later calls: JAX compiles again for arrays that are not.
            state, loss = self._latest.state, jax.device_put(np.zeros((), self.dtype), self.device)
            for part in self.streamed.batches(self.rows_per_call, order):
                before = loss
                rows = self.order[: part.X.shape[0]]
                state, loss = self.compiled(state, loss, part, rows, rate, ONE)
                # So that no more parts are on the device than the one that is computed with, and the next.
                jax.block_until_ready(before)
            self._store(state, loss, 1)


def _shapes(samples: Samples, n_rows: int, dtype: Any) -> Batch:
    """Return the shapes and dtype of so many rows of samples, in place of the arrays."""
    return Batch(
        *(
            None if array is None else jax.ShapeDtypeStruct((n_rows, *array.shape[1:]), dtype)
            for array in samples.arrays
        )
    )


def with_number_types(state: State, types: Sequence[Callable[[Array], float] | None]) -> State:
    """Return a state with its numbers as they were, see `number_type`."""
    leaves, structure = jax.tree.flatten(state)
    result: State = structure.unflatten(
        leaf if kind is None else kind(leaf) for leaf, kind in zip(leaves, types)
    )
    return result


def number_type(leaf: Any) -> Callable[[Array], float] | None:
    """Return the type of a number, which converts an array of shape () back to it; None for an array."""
    return type(leaf) if isinstance(leaf, (int, float)) else None


@cached_by_arguments
def _compiled(network: Network, optimizer: Optimizer, batch_size: int, n_samples: int) -> Any:
    """Return the compiled function ``(state, samples, rates, orders, n_epochs, one) -> (state, losses)``.

    Only the first `n_epochs` entries of `rates`, `orders` and `losses` are used. Their lengths are the same
    in all calls, so that JAX compiles once. `one` is 1.
    """
    step = _array_step(network, optimizer)
    mini_batches = _mini_batches(step, batch_size, n_samples)

    def mini_batch_epoch(
        state: State, samples: Batch, order: Array, rate: Array, one: Array
    ) -> tuple[State, Array]:
        return mini_batches(state, jnp.zeros_like(rate), samples, order, rate, one)

    def run(
        state: State, samples: Batch, rates: Array, orders: Array | None, n_epochs: int, one: Array
    ) -> tuple[State, Array]:
        n_inner = min(EPOCHS_PER_INNER_LOOP, rates.shape[0])

        def inner_loop(k: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            start = k * n_inner
            inner_rates = lax.dynamic_slice_in_dim(rates, start, n_inner)

            def epoch(i: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
                state, losses = carry
                rate = lax.dynamic_index_in_dim(inner_rates, i, keepdims=False)
                if orders is None:
                    state, loss = step(state, samples, rate)
                else:
                    order = lax.dynamic_index_in_dim(orders, start + i, keepdims=False)
                    state, loss = mini_batch_epoch(state, samples, order, rate, one)
                return state, lax.dynamic_update_index_in_dim(losses, loss, i, 0)

            state, losses = carry
            inner_losses = jnp.zeros_like(inner_rates)
            n_left = jnp.minimum(n_inner, n_epochs - start)
            state, inner_losses = lax.fori_loop(0, n_left, epoch, (state, inner_losses))
            return state, lax.dynamic_update_slice_in_dim(losses, inner_losses, start, 0)

        n_loops = (n_epochs + n_inner - 1) // n_inner
        result: tuple[State, Array] = lax.fori_loop(0, n_loops, inner_loop, (state, jnp.zeros_like(rates)))
        return result

    return jax.jit(run)


@cached_by_arguments
def _compiled_part(network: Network, optimizer: Optimizer, batch_size: int, n_samples: int) -> Any:
    """Return the compiled function of `_mini_batches`, for a part of the samples."""
    return jax.jit(_mini_batches(_array_step(network, optimizer), batch_size, n_samples))


_ArrayStep: TypeAlias = Callable[[State, Batch, Array], tuple[State, Array]]
"""``(state, batch, rate) -> (state, loss)``"""


def _array_step(network: Network, optimizer: Optimizer) -> _ArrayStep:
    array_step = make_step(network, optimizer, jnp)

    def step(state: State, batch: Batch, rate: Array) -> tuple[State, Array]:
        params, optimizer_state, loss = array_step(*state, *batch, rate)
        return (plain(params), optimizer_state), loss

    return step


def _mini_batches(
    step: _ArrayStep, batch_size: int, n_samples: int
) -> Callable[[State, Array, Batch, Array, Array, Array], tuple[State, Array]]:
    """Return the function ``(state, mean, samples, order, rate, one) -> (state, mean)``; `one` is 1.

    It runs a step on each mini-batch of the samples in this order, and adds the losses to the epoch's mean,
    each weighted by its share of `n_samples`.
    """

    def run(
        state: State, mean: Array, samples: Batch, order: Array, rate: Array, one: Array
    ) -> tuple[State, Array]:
        def mini_batch(start: Any, size: int, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, mean = carry
            rows = lax.dynamic_slice_in_dim(order, start, size)
            state, loss = step(state, _take(samples, rows, rate.dtype), rate)
            return state, mean + loss * (size / n_samples)

        n_full, n_left = divmod(order.shape[0], batch_size)
        carry = state, mean
        # A loop of a known length of 1 would be computed together with what is around it, and so round in
        # another way than the same batch in a longer loop. Other loops are as fast if their length is known.
        n_loops = one if n_full == 1 else n_full
        if n_full:
            carry = lax.fori_loop(
                0, n_loops, lambda i, carry: mini_batch(i * batch_size, batch_size, carry), carry
            )
        if n_left:
            start = n_full * batch_size
            carry = lax.fori_loop(0, one, lambda _, carry: mini_batch(start, n_left, carry), carry)
        return carry

    return run


def _take(samples: Batch, rows: Array, dtype: Any) -> Batch:
    """Return the batch of these rows, cast to the dtype to compute in."""
    return Batch(
        *(
            None if array is None else array.at[rows].get(mode="promise_in_bounds").astype(dtype)
            for array in samples
        )
    )
