"""The loop of a course: samples in columns, dictionaries of parameters and caches, new arrays throughout."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import ADAM_EPSILON, HostArray, Layers, Workload, new_order

Arrays = dict[str, HostArray]


def prepare(task: Task) -> Prepared:
    """Prepare all epochs, or all predictions."""
    workload, start = task.workload, task.start
    X = np.ascontiguousarray(task.data.X.T)

    if workload.predicts:
        fixed = initialize(start.layers)

        def predict_all() -> HostArray:
            for _ in range(workload.calls):
                probability, _ = forward(X, fixed, workload.hidden)
            return probability

        return Prepared(predict_all, lambda probability: probability.T)

    Y = np.ascontiguousarray(task.data.y.T)

    def repeat() -> Arrays:
        with np.errstate(all="ignore"):
            return train(X, Y, initialize(start.layers), workload, start.random())

    return Prepared(repeat, layers_of)


def train(
    X: HostArray, Y: HostArray, parameters: Arrays, workload: Workload, random: np.random.RandomState
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
            shuffled_X, shuffled_Y = X[:, order], Y[:, order]
        cost = 0.0
        for some in workload.batches:
            batch_X, batch_Y = shuffled_X[:, some], shuffled_Y[:, some]
            output, caches = forward(batch_X, parameters, workload.hidden)
            cost += compute_cost(output, batch_Y) * batch_X.shape[1] / m
            gradients = backward(output, batch_Y, caches, parameters, workload.hidden)
            if workload.solver == "adam":
                parameters = update_with_adam(parameters, gradients, state, workload.rate)
            else:
                parameters = update(parameters, gradients, workload.rate)
        costs.append(cost)
    return parameters


def initialize(layers: Layers) -> Arrays:
    """Name the start weights as courses do."""
    parameters = {}
    for number, (weight, bias) in enumerate(layers, start=1):
        parameters[f"W{number}"] = weight.T.copy()
        parameters[f"b{number}"] = bias[:, None].copy()
    return parameters


def layers_of(parameters: Arrays) -> Layers:
    """Return the parameters as layers."""
    numbers = range(1, len(parameters) // 2 + 1)
    return [(parameters[f"W{number}"].T, parameters[f"b{number}"][:, 0]) for number in numbers]


def activation(z: Any, name: str) -> Any:
    """Compute an activation."""
    if name == "logistic":
        result = 1 / (1 + np.exp(-z))
    elif name == "softmax":
        exponentials = np.exp(z - np.max(z, axis=0, keepdims=True))
        result = exponentials / np.sum(exponentials, axis=0, keepdims=True)
    elif name == "tanh":
        result = np.tanh(z)
    else:
        result = np.maximum(0, z)
    return result


def derivative(a: Any, name: str) -> Any:
    """Compute an activation's derivative, from its value."""
    if name == "logistic":
        return a * (1 - a)
    if name == "tanh":
        return 1 - np.power(a, 2)
    return (a > 0).astype(a.dtype)


def forward(X: HostArray, parameters: Arrays, hidden: str) -> tuple[HostArray, Arrays]:
    """Return the output and the caches."""
    n_layers = len(parameters) // 2
    output_name = "logistic" if parameters[f"b{n_layers}"].shape[0] == 1 else "softmax"
    caches = {"A0": X}
    for number in range(1, n_layers + 1):
        Z = np.dot(parameters[f"W{number}"], caches[f"A{number - 1}"]) + parameters[f"b{number}"]
        caches[f"Z{number}"] = Z
        caches[f"A{number}"] = activation(Z, hidden if number < n_layers else output_name)
    return caches[f"A{n_layers}"], caches


def compute_cost(A: HostArray, Y: HostArray) -> float:
    """Return the cross-entropy."""
    if A.shape[0] == 1:
        return float(-np.mean(Y * np.log(A) + (1 - Y) * np.log(1 - A)))
    return float(-np.sum(Y * np.log(A)) / Y.shape[1])


def backward(output: HostArray, Y: HostArray, caches: Arrays, parameters: Arrays, hidden: str) -> Arrays:
    """Return the gradients."""
    m = Y.shape[1]
    gradients = {}
    dZ = output - Y
    for number in range(len(parameters) // 2, 0, -1):
        gradients[f"W{number}"] = 1 / m * np.dot(dZ, caches[f"A{number - 1}"].T)
        gradients[f"b{number}"] = 1 / m * np.sum(dZ, axis=1, keepdims=True)
        if number > 1:
            dA = np.dot(parameters[f"W{number}"].T, dZ)
            dZ = dA * derivative(caches[f"A{number - 1}"], hidden)
    return gradients


def update(parameters: Arrays, gradients: Arrays, rate: float) -> Arrays:
    """Return the parameters after a step of gradient descent."""
    return {name: parameters[name] - rate * gradients[name] for name in parameters}


def update_with_adam(parameters: Arrays, gradients: Arrays, state: dict[str, Any], rate: float) -> Arrays:
    """Return the parameters after a step of Adam."""
    state["t"] += 1
    t, mean, square = state["t"], state["m"], state["v"]
    updated = {}
    for name, gradient in gradients.items():
        mean[name] = 0.9 * mean.get(name, np.zeros_like(gradient)) + (1 - 0.9) * gradient
        square[name] = 0.999 * square.get(name, np.zeros_like(gradient)) + (1 - 0.999) * np.power(gradient, 2)
        corrected_mean = mean[name] / (1 - 0.9**t)
        corrected_square = square[name] / (1 - 0.999**t)
        updated[name] = parameters[name] - rate * corrected_mean / (np.sqrt(corrected_square) + ADAM_EPSILON)
    return updated
