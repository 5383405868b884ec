"""mlp_xp itself: the estimators, and `mlp_xp.train` on arrays of several libraries."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.participants import EngineReport, Prepared, Task
from benchmarks.participants.engines import Done, catch_fallback, engine_of
from benchmarks.participants.estimators import from_estimator
from benchmarks.workloads import Workload
from mlp_xp import Layer, Network, adam, gradient_descent, to_host, train

with suppress(ImportError):  # a training imports it, and that would count as the training's memory
    import_module("numba")


def fit(task: Task) -> Prepared:
    """Prepare our estimator's `fit`, a stream of its `partial_fit`, or its `predict_proba`."""
    if task.device == "cpu":
        return _fit(task, np.asarray, lambda result: result)
    return _fit(task, _cupy_array, _wait_for_cupy)


def train_arrays(task: Task) -> Prepared:
    """Prepare `mlp_xp.train` on NumPy arrays, or on CuPy arrays on a GPU."""
    if task.device == "cpu":
        return _train(task, lambda array: array, lambda result: result)
    return _train(task, _cupy_array, _wait_for_cupy)


def train_on_jax(task: Task) -> Prepared:
    """Prepare `mlp_xp.train` on JAX arrays, or the estimator with its defaults."""
    import jax

    if task.workload.defaults:
        return _fit(task, jax.numpy.asarray, _wait_for_weights)
    return _train(task, jax.numpy.asarray, jax.block_until_ready)


def train_on_torch(task: Task) -> Prepared:
    """Prepare `mlp_xp.train` on PyTorch tensors, or the estimator with its defaults."""
    import torch

    def finish(result: Any) -> Any:
        if task.device == "cuda":
            torch.cuda.synchronize()
        return result

    prepare = _fit if task.workload.defaults else _train
    return prepare(task, lambda array: torch.asarray(array, device=task.device), finish)


def _fit(task: Task, array: Any, finish: Any) -> Prepared:
    import mlp_xp

    estimator = getattr(mlp_xp, task.workload.estimator)
    task = task._replace(data=task.data._replace(X=array(task.data.X)))
    more = {"matmul_precision": task.workload.matmul_precision}
    return from_estimator(estimator, task, finish=finish, to_host=to_host, more=more)


def _train(task: Task, array: Any, finish: Any) -> Prepared:
    workload, start = task.workload, task.start
    network = Network(
        workload.sizes,
        activation=workload.activation,
        loss=_loss(workload),
        matmul_precision=workload.matmul_precision,
    )
    params = tuple(Layer(array(weight), array(bias)) for weight, bias in start.layers)
    X = array(task.data.X)

    if workload.predicts:

        def predict() -> Any:
            for _ in range(workload.calls):
                probability = finish(network.predict(params, X))
            return probability

        return Prepared(predict, to_host)

    y = array(task.data.y)
    optimizer = (
        adam(workload.rate, epsilon=workload.epsilon)
        if workload.solver == "adam"
        else gradient_descent(workload.rate)
    )

    def all_epochs() -> Any:
        trained = train(
            network,
            params,
            X,
            y,
            optimizer=optimizer,
            epochs=workload.epochs,
            batch_size=workload.batch_size,
            seed=start.random(),
        )
        finish(trained.params)
        return trained

    def outcome(done: Done) -> Any:
        return [(to_host(weight), to_host(bias)) for weight, bias in done.result.params]

    def ran(done: Done) -> EngineReport:
        return EngineReport(engine_of(done.result.history), done.why)

    return Prepared(lambda: catch_fallback(all_epochs), outcome, ran)


def _wait_for_weights(model: Any) -> Any:
    """Wait for the weights of an estimator in JAX."""
    import jax

    jax.block_until_ready(model.coefs_)
    return model


def _loss(workload: Workload) -> str:
    return "binary_cross_entropy" if workload.sizes[-1] == 1 else "categorical_cross_entropy"


def _cupy_array(array: np.ndarray[Any, Any]) -> Any:
    import cupy

    return cupy.asarray(array)


def _wait_for_cupy(result: Any) -> Any:
    import cupy

    cupy.cuda.Device().synchronize()
    return result
