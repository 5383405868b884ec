"""PyTorch as its users write it, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import ADAM_EPSILON, Layers, Workload, new_order

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


def eager(task: Task) -> Prepared:
    """Prepare each operation as it comes."""
    return _prepare(task, lambda function: function)


def compiled(task: Task) -> Prepared:
    """Prepare the same with the network and its loss compiled, once for each size of batch."""
    return _prepare(task, lambda function: torch.compile(function, dynamic=False))


def _prepare(task: Task, compiler: Callable[[Any], Any]) -> Prepared:
    workload = task.workload
    model = _network(workload).to(task.device, getattr(torch, workload.dtype))
    wait = torch.cuda.synchronize if task.device == "cuda" else _nothing
    X = torch.asarray(task.data.X, device=task.device)
    if workload.predicts:
        _load(model, task.start.layers)
        return Prepared(_predictor(task, compiler(model), X, wait), lambda result: result.cpu().numpy())
    return Prepared(_trainer(task, model, X, compiler, wait), _layers)


def _predictor(task: Task, model: Any, X: Any, wait: Callable[[], None]) -> Callable[[], Any]:
    workload = task.workload
    blocks = [slice(None)] if task.device == "cuda" else workload.batches

    def predict_all() -> Any:
        with torch.inference_mode():
            for _ in range(workload.calls):
                # On the host blocks that caches hold are faster than all rows at once, and one array for
                # all results leaves no holes in memory.
                probability = torch.empty((len(X), 1), dtype=X.dtype, device=X.device)
                for some in blocks:
                    probability[some] = torch.sigmoid(model(X[some]))
                wait()
        return probability

    return predict_all


def _trainer(
    task: Task, model: Any, X: Any, compiler: Callable[[Any], Any], wait: Callable[[], None]
) -> Callable[[], Any]:
    workload, start = task.workload, task.start
    binary = workload.sizes[-1] == 1
    y = torch.asarray(task.data.y if binary else task.data.labels, device=task.device)
    criterion = nn.BCEWithLogitsLoss() if binary else nn.CrossEntropyLoss()
    loss_of = compiler(lambda inputs, targets: criterion(model(inputs), targets))
    shares = torch.tensor([some.stop - some.start for some in workload.batches], device=task.device)
    shares = shares.to(X.dtype) / workload.rows

    def repeat() -> Any:
        _load(model, start.layers)
        optimizer = _optimizer(workload, model)
        random, order, curve = start.random(), new_order(workload), []
        for _ in range(workload.epochs):
            if not workload.full_batch:
                random.shuffle(order)
                rows = torch.from_numpy(order).to(task.device)
            losses = []
            for some in workload.batches:
                inputs, targets = X, y
                if not workload.full_batch:
                    inputs, targets = X.index_select(0, rows[some]), y.index_select(0, rows[some])
                optimizer.zero_grad()
                loss = loss_of(inputs, targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            curve.append(losses[0].item() if len(losses) == 1 else (torch.stack(losses) @ shares).item())
        wait()
        return model

    return repeat


def _optimizer(workload: Workload, model: Any) -> Any:
    if workload.solver == "adam":
        return torch.optim.Adam(model.parameters(), lr=workload.rate, eps=ADAM_EPSILON, fused=True)
    return torch.optim.SGD(model.parameters(), lr=workload.rate)


def _network(workload: Workload) -> Any:
    modules: list[Any] = []
    for n_in, n_out in zip(workload.sizes, workload.sizes[1:]):
        modules += [nn.Linear(n_in, n_out), _ACTIVATIONS[workload.hidden]()]
    return nn.Sequential(*modules[:-1])


def _linear_ones(model: Any) -> list[Any]:
    return [module for module in model if isinstance(module, nn.Linear)]


def _load(model: Any, layers: Layers) -> None:
    with torch.no_grad():
        for module, (weight, bias) in zip(_linear_ones(model), layers):
            module.weight.copy_(torch.from_numpy(weight).T)
            module.bias.copy_(torch.from_numpy(bias))


def _layers(model: Any) -> Layers:
    return [
        (module.weight.detach().cpu().numpy().T, module.bias.detach().cpu().numpy())
        for module in _linear_ones(model)
    ]


def _nothing() -> None:
    return
