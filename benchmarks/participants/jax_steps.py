"""JAX as its users write it: one jitted step with automatic differentiation, parameters donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import ADAM_EPSILON, Workload, new_order

_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "logistic": jax.nn.sigmoid}


def prepare(task: Task) -> Prepared:
    """Prepare all epochs, or all predictions."""
    workload, start = task.workload, task.start
    logits = partial(_logits, _ACTIVATIONS[workload.hidden])
    if workload.predicts:
        params = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in start.layers]
        return Prepared(_predictor(task, logits, params), np.asarray)

    step = _make_step(workload, logits)
    # On the host a gather by NumPy is faster than one by JAX; on a GPU the data must be there.
    X, y = task.data.X, task.data.y
    if task.device == "cuda" or workload.full_batch:
        X, y = jnp.asarray(X), jnp.asarray(y)

    def repeat() -> Any:
        params = [(jnp.array(weight), jnp.array(bias)) for weight, bias in start.layers]
        zeros = jax.tree.map(jnp.zeros_like, params) if workload.solver == "adam" else None
        state = (params, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.int32))
        random, order, totals = start.random(), new_order(workload), []
        for _ in range(workload.epochs):
            total = np.zeros((), workload.dtype)
            if workload.full_batch:
                state, total = step(state, total, X, y)
            else:
                random.shuffle(order)
                rows = jnp.asarray(order) if task.device == "cuda" else order
                for some in workload.batches:
                    state, total = step(state, total, X[rows[some]], y[rows[some]])
            totals.append(total)
        jax.device_get(totals)
        return jax.block_until_ready(state[0])

    return Prepared(
        repeat, lambda layers: [(np.asarray(weight), np.asarray(bias)) for weight, bias in layers]
    )


def _predictor(task: Task, logits: Callable[..., Any], params: Any) -> Callable[[], Any]:
    workload = task.workload
    if task.device == "cuda" or len(workload.batches) == 1:
        blocks = [jnp.asarray(task.data.X)]
    else:
        # On the host blocks that caches hold are faster than all rows at once.
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


def _make_step(workload: Workload, logits: Callable[..., Any]) -> Callable[..., Any]:
    def loss_of(params: Any, X: Any, y: Any) -> Any:
        z = logits(params, X)
        if workload.sizes[-1] == 1:
            return jnp.mean(jnp.logaddexp(0.0, z) - y * z)
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(z), axis=1))

    def step(state: Any, total: Any, X: Any, y: Any) -> Any:
        params, mean, square, steps = state
        loss, gradients = jax.value_and_grad(loss_of)(params, X, y)
        total = total + loss * (X.shape[0] / workload.rows)
        if workload.solver == "sgd":
            params = jax.tree.map(lambda p, g: p - workload.rate * g, params, gradients)
            return (params, mean, square, steps), total
        steps = steps + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + (1 - 0.9) * g, mean, gradients)
        square = jax.tree.map(lambda v, g: 0.999 * v + (1 - 0.999) * g * g, square, gradients)
        rate = workload.rate * jnp.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
        params = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) + ADAM_EPSILON), params, mean, square
        )
        return (params, mean, square, steps), total

    compiled: Callable[..., Any] = jax.jit(step, donate_argnums=(0, 1))
    return compiled
