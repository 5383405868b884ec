"""The loop of a textbook: samples in columns, dictionaries of parameters and caches, new arrays throughout.

On a GPU NumPy is replaced by CuPy; the cost is read after each step there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import HostArray, Layers, Workload, new_order

Arrays = dict[str, HostArray]


def prepare(task: Task) -> Prepared:
    """Prepare all epochs, or all predictions, with NumPy."""
    return prepare_with(np, task, _no_wait, np.asarray)


def prepare_on_cupy(task: Task) -> Prepared:
    """Prepare the same with CuPy."""
    import cupy

    return prepare_with(cupy, task, cupy.cuda.Device().synchronize, cupy.asnumpy)


def prepare_with(xp: Any, task: Task, wait: Callable[[], None], to_host: Callable[[Any], Any]) -> Prepared:
    """Prepare all epochs, or all predictions, with a namespace of functions."""
    workload, start = task.workload, task.start
    X = xp.asarray(np.ascontiguousarray(task.data.X.T))
    initial = [(xp.asarray(weight), xp.asarray(bias)) for weight, bias in start.layers]

    if workload.predicts:
        fixed = initialize(initial)

        def predict_all() -> HostArray:
            for _ in range(workload.calls):
                probability, _ = forward(xp, X, fixed, workload.activation)
                wait()
            return probability

        return Prepared(predict_all, lambda probability: to_host(probability).T)

    Y = xp.asarray(np.ascontiguousarray(task.data.y.T))

    def repeat() -> Arrays:
        with np.errstate(all="ignore"):
            parameters = train(xp, X, Y, initialize(initial), workload, start.random())
        wait()
        return parameters

    return Prepared(
        repeat,
        lambda parameters: [(to_host(weight), to_host(bias)) for weight, bias in layers_of(parameters)],
    )


def train(
    xp: Any, X: HostArray, Y: HostArray, parameters: Arrays, workload: Workload, random: np.random.RandomState
) -> Arrays:
    """Train by mini-batches, or by the whole batch."""
    m = X.shape[1]
    order, costs = new_order(workload), []
    state: dict[str, Any] = {"t": 0, "m": {}, "v": {}}
    for _ in range(workload.epochs):
        if workload.full_batch:
            shuffled_X, shuffled_Y = X, Y
        else:
            random.shuffle(order)
            rows = xp.asarray(order)
            shuffled_X, shuffled_Y = X[:, rows], Y[:, rows]
        cost = 0.0
        for some in workload.batches:
            batch_X, batch_Y = shuffled_X[:, some], shuffled_Y[:, some]
            output, caches = forward(xp, batch_X, parameters, workload.activation)
            cost += compute_cost(xp, output, batch_Y) * batch_X.shape[1] / m
            gradients = backward(xp, output, batch_Y, caches, parameters, workload.activation)
            if workload.solver == "adam":
                parameters = update_with_adam(xp, parameters, gradients, state, workload)
            else:
                parameters = update(parameters, gradients, workload.rate)
        costs.append(cost)
    return parameters


def initialize(layers: Layers) -> Arrays:
    """Return the start weights in a dictionary, with the names W1, b1, ... that textbooks use."""
    parameters = {}
    for number, (weight, bias) in enumerate(layers, start=1):
        parameters[f"W{number}"] = weight.T.copy()
        parameters[f"b{number}"] = bias[:, None].copy()
    return parameters


def layers_of(parameters: Arrays) -> Layers:
    """Return the parameters in the dictionary as layers."""
    numbers = range(1, len(parameters) // 2 + 1)
    return [(parameters[f"W{number}"].T, parameters[f"b{number}"][:, 0]) for number in numbers]


def activation(xp: Any, z: Any, name: str) -> Any:
    """Compute an activation."""
    if name == "logistic":
        result = 1 / (1 + xp.exp(-z))
    elif name == "softmax":
        exponentials = xp.exp(z - xp.max(z, axis=0, keepdims=True))
        result = exponentials / xp.sum(exponentials, axis=0, keepdims=True)
    elif name == "tanh":
        result = xp.tanh(z)
    else:
        result = xp.maximum(0, z)
    return result


def derivative(xp: Any, a: Any, name: str) -> Any:
    """Compute an activation's derivative, from its value."""
    if name == "logistic":
        return a * (1 - a)
    if name == "tanh":
        return 1 - xp.power(a, 2)
    return (a > 0).astype(a.dtype)


def forward(xp: Any, X: HostArray, parameters: Arrays, hidden: str) -> tuple[HostArray, Arrays]:
    """Return the output and the caches."""
    n_layers = len(parameters) // 2
    output_name = "logistic" if parameters[f"b{n_layers}"].shape[0] == 1 else "softmax"
    caches = {"A0": X}
    for number in range(1, n_layers + 1):
        Z = xp.dot(parameters[f"W{number}"], caches[f"A{number - 1}"]) + parameters[f"b{number}"]
        caches[f"Z{number}"] = Z
        caches[f"A{number}"] = activation(xp, Z, hidden if number < n_layers else output_name)
    return caches[f"A{n_layers}"], caches


def compute_cost(xp: Any, A: HostArray, Y: HostArray) -> float:
    """Return the cross-entropy."""
    if A.shape[0] == 1:
        return float(-xp.mean(Y * xp.log(A) + (1 - Y) * xp.log(1 - A)))
    return float(-xp.sum(Y * xp.log(A)) / Y.shape[1])


def backward(
    xp: Any, output: HostArray, Y: HostArray, caches: Arrays, parameters: Arrays, hidden: str
) -> Arrays:
    """Return the gradients."""
    m = Y.shape[1]
    gradients = {}
    dZ = output - Y
    for number in range(len(parameters) // 2, 0, -1):
        gradients[f"W{number}"] = 1 / m * xp.dot(dZ, caches[f"A{number - 1}"].T)
        gradients[f"b{number}"] = 1 / m * xp.sum(dZ, axis=1, keepdims=True)
        if number > 1:
            dA = xp.dot(parameters[f"W{number}"].T, dZ)
            dZ = dA * derivative(xp, caches[f"A{number - 1}"], hidden)
    return gradients


def update(parameters: Arrays, gradients: Arrays, rate: float) -> Arrays:
    """Return the parameters after a step of gradient descent."""
    return {name: parameters[name] - rate * gradients[name] for name in parameters}


def update_with_adam(
    xp: Any, parameters: Arrays, gradients: Arrays, state: dict[str, Any], workload: Workload
) -> Arrays:
    """Return the parameters after a step of Adam."""
    state["t"] += 1
    t, mean, square = state["t"], state["m"], state["v"]
    updated = {}
    for name, gradient in gradients.items():
        mean[name] = 0.9 * mean.get(name, xp.zeros_like(gradient)) + (1 - 0.9) * gradient
        square[name] = 0.999 * square.get(name, xp.zeros_like(gradient)) + (1 - 0.999) * xp.power(gradient, 2)
        corrected_mean = mean[name] / (1 - 0.9**t)
        corrected_square = square[name] / (1 - 0.999**t)
        scale = corrected_mean / (xp.sqrt(corrected_square) + workload.epsilon)
        updated[name] = parameters[name] - workload.rate * scale
    return updated


def _no_wait() -> None:
    return
