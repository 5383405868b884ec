"""PyTorch as its users write it: eager, compiled, and a step captured by hand as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.participants import Prepared, Task
from benchmarks.workloads import Layers, Workload, new_order

WARM_UPS = 3
"""Number of steps before a capture, as in PyTorch's documentation."""

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


def eager(task: Task) -> Prepared:
    """Prepare training or prediction in eager mode."""
    return _prepare(task, lambda function: function)


def compiled(task: Task) -> Prepared:
    """Prepare the same with the network and its loss compiled, once for each batch size."""
    mode = compile_mode(task.device)
    return _prepare(task, lambda function: torch.compile(function, dynamic=False, mode=mode), compiled=True)


def compile_mode(device: str) -> str | None:
    """Return torch.compile's mode, which uses CUDA graphs on a GPU."""
    return "reduce-overhead" if device == "cuda" else None


def captured(task: Task) -> Prepared:
    """Prepare a step captured by hand (untimed): see "CUDA Graphs" in PyTorch's documentation."""
    workload = task.workload
    model = _model(task)
    X = torch.asarray(task.data.X, device=task.device)
    if workload.predicts:
        return Prepared(_captured_predictor(task, model, X), lambda result: result.cpu().numpy())
    return Prepared(_captured_trainer(task, model, X), _layers)


def capture(step: Callable[[], Any], clear: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """Capture a step and return its replay; `clear` is called before each warm-up step and the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            clear()
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    clear()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def wait_for(device: str) -> Callable[[], None]:
    """Return a function that waits until a device is done."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else _no_wait
    return wait


def _prepare(task: Task, compiler: Callable[[Any], Any], *, compiled: bool = False) -> Prepared:
    workload = task.workload
    model, wait = _model(task), wait_for(task.device)
    X = torch.asarray(task.data.X, device=task.device)
    if workload.predicts:
        return Prepared(_predictor(task, compiler(model), X, wait), lambda result: result.cpu().numpy())
    # The output of a CUDA graph of torch.compile is overwritten by the next call, so it is copied.
    keep = torch.clone if compiled and task.device == "cuda" else _identity
    return Prepared(_trainer(task, model, X, compiler, wait, keep), _layers)


def _model(task: Task) -> Any:
    """Return the network with the start weights, on the device."""
    model = _network(task.workload).to(task.device, getattr(torch, task.workload.dtype))
    _load(model, _on_device(task))
    return model


def _on_device(task: Task) -> list[tuple[Any, Any]]:
    """Return the start weights on the device, so that no repeat transfers them."""
    return [
        (torch.asarray(weight, device=task.device), torch.asarray(bias, device=task.device))
        for weight, bias in task.start.layers
    ]


def _predictor(task: Task, model: Any, X: Any, wait: Callable[[], None]) -> Callable[[], Any]:
    workload = task.workload
    blocks = [slice(None)] if task.device == "cuda" else workload.batches

    def predict_all() -> Any:
        with torch.inference_mode():
            for _ in range(workload.calls):
                # On the CPU, blocks that fit in the cache are faster than all rows at once, and one array for
                # all results does not fragment memory.
                probability = torch.empty((len(X), 1), dtype=X.dtype, device=X.device)
                for some in blocks:
                    probability[some] = torch.sigmoid(model(X[some]))
                wait()
        return probability

    return predict_all


def _trainer(
    task: Task,
    model: Any,
    X: Any,
    compiler: Callable[[Any], Any],
    wait: Callable[[], None],
    keep: Callable[[Any], Any],
) -> Callable[[], Any]:
    workload, start, initial = task.workload, task.start, _on_device(task)
    y, criterion = _targets_and_criterion(task)
    loss_of = compiler(lambda inputs, targets: criterion(model(inputs), targets))
    shares = _shares(task, X.dtype)

    def repeat() -> Any:
        _load(model, initial)
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
                losses.append(keep(loss.detach()))
            curve.append(losses[0].item() if len(losses) == 1 else (torch.stack(losses) @ shares).item())
        wait()
        return model

    return repeat


def _captured_trainer(task: Task, model: Any, X: Any) -> Callable[[], Any]:
    """Train by replays of a graph for each batch length; losses stay on the device until the last epoch."""
    workload, start, initial = task.workload, task.start, _on_device(task)
    y, criterion = _targets_and_criterion(task)
    wait, shares = wait_for(task.device), _shares(task, X.dtype)
    optimizer = _optimizer(workload, model, capturable=True)
    losses = torch.zeros(max(workload.units, WARM_UPS), dtype=X.dtype, device=task.device)
    place = torch.zeros(1, dtype=torch.int64, device=task.device)

    def prepared(length: int) -> tuple[Any, Any, Callable[[], None]]:
        inputs = X if workload.full_batch else torch.zeros((length, X.shape[1]), dtype=X.dtype).to(X.device)
        targets = (
            y if workload.full_batch else torch.zeros((length, *y.shape[1:]), dtype=y.dtype).to(y.device)
        )

        def step() -> None:
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.index_copy_(0, place, loss.detach().view(1))
            place.add_(1)

        place.zero_()
        # Captured with gradients None, a graph overwrites them; else it would add to the last replay's.
        return inputs, targets, capture(step, optimizer.zero_grad)

    batches = workload.batches
    graphs = {length: prepared(length) for length in {some.stop - some.start for some in batches}}

    def repeat() -> Any:
        _load(model, initial)
        _set_to_zero(optimizer)
        place.zero_()
        random, order = start.random(), new_order(workload)
        for _ in range(workload.epochs):
            if not workload.full_batch:
                random.shuffle(order)
                rows = torch.from_numpy(order).to(task.device)
            for some in batches:
                inputs, targets, replay = graphs[some.stop - some.start]
                if not workload.full_batch:
                    torch.index_select(X, 0, rows[some], out=inputs)
                    torch.index_select(y, 0, rows[some], out=targets)
                replay()
        (losses[: workload.units].view(workload.epochs, -1) @ shares).tolist()
        wait()
        return model

    return repeat


def _captured_predictor(task: Task, model: Any, X: Any) -> Callable[[], Any]:
    wait = wait_for(task.device)
    probability = torch.zeros((len(X), 1), dtype=X.dtype, device=X.device)

    def step() -> None:
        with torch.no_grad():
            probability.copy_(torch.sigmoid(model(X)))

    replay = capture(step)

    def predict_all() -> Any:
        for _ in range(task.workload.calls):
            replay()
            wait()
        return probability

    return predict_all


def _set_to_zero(optimizer: Any) -> None:
    """Reset an optimizer's state to zero in place, in the tensors that the graphs read."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def _targets_and_criterion(task: Task) -> tuple[Any, Any]:
    if task.workload.sizes[-1] == 1:
        return torch.asarray(task.data.y, device=task.device), nn.BCEWithLogitsLoss()
    return torch.asarray(task.data.labels, device=task.device), nn.CrossEntropyLoss()


def _shares(task: Task, dtype: Any) -> Any:
    """Return the fraction of an epoch's rows in each batch."""
    lengths = torch.tensor([some.stop - some.start for some in task.workload.batches], device=task.device)
    return lengths.to(dtype) / task.workload.rows


def _optimizer(workload: Workload, model: Any, *, capturable: bool = False) -> Any:
    if workload.solver == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=workload.rate, eps=workload.epsilon, fused=True, capturable=capturable
        )
    return torch.optim.SGD(model.parameters(), lr=workload.rate)


def _network(workload: Workload) -> Any:
    modules: list[Any] = []
    for n_in, n_out in zip(workload.sizes, workload.sizes[1:]):
        modules += [nn.Linear(n_in, n_out), _ACTIVATIONS[workload.activation]()]
    return nn.Sequential(*modules[:-1])


def _linear_modules(model: Any) -> list[Any]:
    return [module for module in model if isinstance(module, nn.Linear)]


def _load(model: Any, layers: list[tuple[Any, Any]]) -> None:
    with torch.no_grad():
        for module, (weight, bias) in zip(_linear_modules(model), layers):
            module.weight.copy_(weight.T)
            module.bias.copy_(bias)


def _layers(model: Any) -> Layers:
    return [
        (module.weight.detach().cpu().numpy().T, module.bias.detach().cpu().numpy())
        for module in _linear_modules(model)
    ]


def _identity(tensor: Any) -> Any:
    return tensor


def _no_wait() -> None:
    return
