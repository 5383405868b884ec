"""JAX as its users write it: autodiff, donated parameters, a jitted step or jitted epochs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.participants.stopping import Stopping
from benchmarks.workloads import Layers, Workload, hold_out, new_order

_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "logistic": jax.nn.sigmoid}


def prepare(task: Task) -> Prepared:
    """Prepare all epochs by a jitted step, what the estimators do by default, or all predictions."""
    workload = task.workload
    logits = partial(_logits, _ACTIVATIONS[workload.activation])
    initial = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in task.start.layers]
    if workload.predicts:
        return Prepared(_predictor(task, logits, initial), np.asarray)

    on_gpu = task.device == "cuda"
    step = _make_step(workload, logits)
    whole = jax.jit(step, donate_argnums=(0, 1))
    gathered = jax.jit(_step_on_gathered_rows(step), donate_argnums=(0, 1), static_argnums=6)
    # On the CPU, NumPy gathers rows faster than JAX does; on a GPU the data must be on the device.
    data, held_out, start = hold_out(workload, task.data, task.start)
    X, y = data.X, data.y
    if on_gpu or workload.full_batch:
        X, y = jnp.asarray(X), jnp.asarray(y)
    X_held_out, y_held_out = jnp.asarray(held_out.X), jnp.asarray(held_out.y)
    errors_of = jax.jit(partial(_errors, workload, logits))

    def repeat() -> Any:
        state = _new_state(workload, initial)
        stopping = Stopping(
            workload,
            held_out,
            lambda: errors_of(state[0], X_held_out, y_held_out),
            lambda: jax.tree.map(jnp.copy, state[0]),
        )
        random, order, totals = start.random(), new_order(workload), []
        for batches in workload.passes:
            total = np.zeros((), workload.dtype)
            if workload.full_batch:
                state, total = whole(state, total, X, y)
            elif workload.stream:
                (some,) = batches
                state, total = whole(state, total, X[some], y[some])
            else:
                random.shuffle(order)
                # A copy: the next shuffle may come before the transfer is done.
                rows = jnp.asarray(order.copy()) if on_gpu else order
                for some in batches:
                    if on_gpu:
                        state, total = gathered(state, total, X, y, rows, some.start, some.stop - some.start)
                    else:
                        state, total = whole(state, total, X[rows[some]], y[rows[some]])
            totals.append(float(total) if workload.defaults else total)
            if stopping.ends(totals[-1]):
                break
        jax.device_get(totals)
        best = state[0] if stopping.best_params is None else stopping.best_params
        return jax.block_until_ready(best), totals

    return Prepared(repeat, lambda done: _layers(done[0]), curve=lambda done: [float(one) for one in done[1]])


def prepare_scanned(task: Task) -> Prepared:
    """Prepare the same by `lax.scan` over the batches of an epoch, or over all epochs of the whole batch."""
    workload, start = task.workload, task.start
    if workload.predicts:
        return prepare(task)
    step = _make_step(workload, partial(_logits, _ACTIVATIONS[workload.activation]))
    initial = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in start.layers]
    X, y = jnp.asarray(task.data.X), jnp.asarray(task.data.y)
    all_epochs = jax.jit(partial(_all_epochs, step, workload.epochs), donate_argnums=0)
    epoch = jax.jit(partial(_epoch, step, workload.batch), donate_argnums=0)

    def repeat() -> Any:
        state = _new_state(workload, initial)
        if workload.full_batch:
            state, losses = all_epochs(state, X, y)
        else:
            random, order, losses = start.random(), new_order(workload), []
            for _ in range(workload.epochs):
                random.shuffle(order)
                # A copy: the next shuffle may come before the transfer is done.
                state, total = epoch(state, X, y, jnp.asarray(order.copy()))
                losses.append(total)
        jax.device_get(losses)
        return jax.block_until_ready(state[0])

    return Prepared(repeat, _layers)


def _all_epochs(step: Callable[..., Any], epochs: int, state: Any, X: Any, y: Any) -> Any:
    """Run full-batch steps in a scan; return the last state and all losses."""
    zero = jnp.zeros((), X.dtype)
    return jax.lax.scan(lambda state, _: step(state, zero, X, y), state, length=epochs)


def _epoch(step: Callable[..., Any], batch: int, state: Any, X: Any, y: Any, order: Any) -> Any:
    """Run an epoch: a scan over the full-size batches, then the last batch if it is smaller."""
    n_whole = len(order) // batch
    total = jnp.zeros((), X.dtype)

    def on_rows(carried: Any, rows: Any) -> Any:
        return step(*carried, X[rows], y[rows]), None

    carried = (state, total)
    carried, _ = jax.lax.scan(on_rows, carried, order[: n_whole * batch].reshape(n_whole, batch))
    if len(order) % batch:
        carried, _ = on_rows(carried, order[n_whole * batch :])
    return carried


def _step_on_gathered_rows(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that gathers its batch on the device: `length` rows of the order, from index `at` on."""

    def gathered(state: Any, total: Any, X: Any, y: Any, order: Any, at: Any, length: int) -> Any:
        rows = jax.lax.dynamic_slice_in_dim(order, at, length)
        return step(state, total, X[rows], y[rows])

    return gathered


def _new_state(workload: Workload, initial: Any) -> Any:
    """Return a copy of the parameters, as donation destroys them, and the optimizer's state."""
    params = jax.tree.map(jnp.copy, initial)
    zeros = jax.tree.map(jnp.zeros_like, params) if workload.solver == "adam" else None
    return (params, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.int32))


def _layers(params: Any) -> Layers:
    return [(np.asarray(weight), np.asarray(bias)) for weight, bias in params]


def _predictor(task: Task, logits: Callable[..., Any], params: Any) -> Callable[[], Any]:
    workload = task.workload
    if task.device == "cuda" or len(workload.batches) == 1:
        blocks = [jnp.asarray(task.data.X)]
    else:
        # On the CPU, blocks that fit in the cache are faster than all rows at once.
        blocks = [task.data.X[some] for some in workload.batches]
    predict = jax.jit(lambda params, X: jax.nn.sigmoid(logits(params, X)))

    def predict_all() -> Any:
        for _ in range(workload.calls):
            parts = [predict(params, block) for block in blocks]
            probability = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
            jax.block_until_ready(probability)
        return probability

    return predict_all


def _logits(activation: Callable[[Any], Any], params: Any, X: Any) -> Any:
    for weight, bias in params[:-1]:
        X = activation(X @ weight + bias)
    weight, bias = params[-1]
    return X @ weight + bias


def _errors(workload: Workload, logits: Callable[..., Any], params: Any, X: Any, y: Any) -> Any:
    """Return the number of rows with a wrong class, or the sum of squared errors."""
    z = logits(params, X)
    if workload.regression:
        return jnp.sum((z - y) ** 2)
    if workload.sizes[-1] == 1:
        return jnp.sum((z > 0) != (y == 1))
    return jnp.sum(jnp.argmax(z, axis=1) != jnp.argmax(y, axis=1))


def _make_step(workload: Workload, logits: Callable[..., Any]) -> Callable[..., Any]:
    rows_of_an_epoch = workload.batch if workload.stream else workload.trained

    def mean_loss(params: Any, X: Any, y: Any) -> Any:
        z = logits(params, X)
        if workload.regression:
            return 0.5 * jnp.mean((z - y) ** 2)
        if workload.sizes[-1] == 1:
            return jnp.mean(jnp.logaddexp(0.0, z) - y * z)
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(z), axis=1))

    def loss_of(params: Any, X: Any, y: Any) -> Any:
        if not workload.alpha:
            return mean_loss(params, X, y)
        squares = sum(jnp.sum(weight * weight) for weight, _ in params)
        return mean_loss(params, X, y) + (0.5 * workload.alpha / len(X)) * squares

    def step(state: Any, total: Any, X: Any, y: Any) -> Any:
        params, mean, square, steps = state
        loss, gradients = jax.value_and_grad(loss_of)(params, X, y)
        total = total + loss * (X.shape[0] / rows_of_an_epoch)
        if workload.solver == "sgd":
            params = jax.tree.map(lambda p, g: p - workload.rate * g, params, gradients)
            return (params, mean, square, steps), total
        steps = steps + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + (1 - 0.9) * g, mean, gradients)
        square = jax.tree.map(lambda v, g: 0.999 * v + (1 - 0.999) * g * g, square, gradients)
        rate = workload.rate * jnp.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
        params = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) + workload.epsilon), params, mean, square
        )
        return (params, mean, square, steps), total

    return step
