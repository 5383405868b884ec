"""PyTorch as its users write it: eager, compiled, and a step captured by hand as a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.participants import Prepared, Task
from benchmarks.participants.stopping import Stopping
from benchmarks.workloads import DEFAULTS, Data, Layers, Workload, hold_out, new_order

WARM_UPS = 3
"""Number of steps before a capture, as in PyTorch's documentation."""

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


def eager(task: Task) -> Prepared:
    """Prepare training or prediction in eager mode, or what the estimators do by default."""
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
    if workload.predicts:
        X = torch.asarray(task.data.X, device=task.device)
        return Prepared(_predictor(task, compiler(model), X, wait), lambda result: result.cpu().numpy())
    # The output of a CUDA graph of torch.compile is overwritten by the next call, so it is copied.
    keep = torch.clone if compiled and task.device == "cuda" else _identity
    repeat = _trainer(task, model, compiler, wait, keep)
    return Prepared(repeat, lambda done: _layers(done[0]), curve=lambda done: done[1])


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
    compiler: Callable[[Any], Any],
    wait: Callable[[], None],
    keep: Callable[[Any], Any],
) -> Callable[[], tuple[Any, list[float]]]:
    """Return a function that trains, and returns the network and the loss of each epoch."""
    workload, initial = task.workload, _on_device(task)
    data, held_out, start = hold_out(workload, task.data, task.start)
    X, y = _on(task, data)
    criterion, shares = _criterion(workload), _shares(task, X.dtype)
    if workload.defaults:
        loss_of = compiler(lambda inputs, targets: _loss_and_objective(model, criterion, inputs, targets))
    else:
        loss_of = compiler(lambda inputs, targets: criterion(model(inputs), targets))
    errors = _errors_of_held_out(task, model, held_out, compiler) if workload.early_stopping else _no_wait

    def repeat() -> tuple[Any, list[float]]:
        _load(model, initial)
        optimizer, n_steps = _optimizer(workload, model), 0
        stopping = Stopping(
            workload, held_out, errors, lambda: [one.detach().clone() for one in model.parameters()]
        )
        random, order, curve = start.random(), new_order(workload), []
        for batches in workload.passes:
            if workload.shuffles:
                random.shuffle(order)
                rows = torch.from_numpy(order).to(task.device)
            losses = []
            for some in batches:
                inputs, targets = X, y
                if workload.shuffles:
                    inputs, targets = X.index_select(0, rows[some]), y.index_select(0, rows[some])
                elif workload.stream:
                    inputs, targets = X[some], y[some]
                optimizer.zero_grad()
                if workload.defaults:
                    n_steps += 1
                    _follow_defaults(optimizer, n_steps, len(inputs))
                    loss, objective = loss_of(inputs, targets)
                else:
                    loss = objective = loss_of(inputs, targets)
                loss.backward()
                optimizer.step()
                losses.append(keep(objective.detach()))
            curve.append(losses[0].item() if len(losses) == 1 else (torch.stack(losses) @ shares).item())
            if stopping.ends(curve[-1]):
                break
        if stopping.best_params is not None:
            with torch.no_grad():
                for one, best in zip(model.parameters(), stopping.best_params):
                    one.copy_(best)
        wait()
        return model, curve

    return repeat


def _loss_and_objective(model: Any, criterion: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Return the loss, and the objective without gradients: the optimizer's weight decay is the penalty's."""
    loss = criterion(model(inputs), targets)
    weights = [module.weight.detach().view(-1) for module in _linear_modules(model)]
    squares = sum(torch.dot(weight, weight) for weight in weights)
    return loss, loss.detach() + (0.5 * DEFAULTS.alpha / len(inputs)) * squares


def _follow_defaults(optimizer: Any, n_steps: int, n_rows: int) -> None:
    """Let Adam add epsilon where the estimators do, and decay weights as their penalty on a batch does."""
    # PyTorch adds it to the root of the corrected mean square, they to that of the uncorrected one.
    epsilon = DEFAULTS.epsilon / math.sqrt(1.0 - 0.999**n_steps)
    weights, biases = optimizer.param_groups
    weights["eps"] = biases["eps"] = epsilon
    weights["weight_decay"] = DEFAULTS.alpha / n_rows


def _errors_of_held_out(
    task: Task, model: Any, held_out: Data, compiler: Callable[[Any], Any]
) -> Callable[[], Any]:
    X, y = _on(task, held_out)
    errors = compiler(lambda: _errors(task.workload, model(X), y))

    def without_gradients() -> Any:
        with torch.no_grad():
            return errors().item()

    return without_gradients


def _errors(workload: Workload, outputs: Any, targets: Any) -> Any:
    """Return the number of rows with a wrong class, or the sum of squared errors."""
    if workload.regression:
        return ((outputs - targets) ** 2).sum()
    if workload.sizes[-1] == 1:
        return ((outputs > 0) != (targets == 1)).sum()
    return (outputs.argmax(dim=1) != targets).sum()


def _captured_trainer(task: Task, model: Any, X: Any) -> Callable[[], Any]:
    """Train by replays of a graph for each batch length; losses stay on the device until the last epoch."""
    workload, start, initial = task.workload, task.start, _on_device(task)
    (_, y), criterion = _on(task, task.data), _criterion(workload)
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


def _on(task: Task, data: Data) -> tuple[Any, Any]:
    """Return samples and targets on the device."""
    targets = data.y if task.workload.sizes[-1] == 1 else data.labels
    return torch.asarray(data.X, device=task.device), torch.asarray(targets, device=task.device)


def _criterion(workload: Workload) -> Any:
    if workload.regression:
        return lambda outputs, targets: 0.5 * nn.functional.mse_loss(outputs, targets)
    return nn.BCEWithLogitsLoss() if workload.sizes[-1] == 1 else nn.CrossEntropyLoss()


def _shares(task: Task, dtype: Any) -> Any:
    """Return the fraction of an epoch's rows in each batch."""
    lengths = torch.tensor([some.stop - some.start for some in task.workload.batches], device=task.device)
    return lengths.to(dtype) / task.workload.trained


def _optimizer(workload: Workload, model: Any, *, capturable: bool = False) -> Any:
    parameters = model.parameters()
    if workload.defaults:  # the penalty is one on the weights alone
        modules = _linear_modules(model)
        parameters = [{"params": [getattr(one, name) for one in modules]} for name in ("weight", "bias")]
    if workload.solver == "adam":
        return torch.optim.Adam(
            parameters, lr=workload.rate, eps=workload.epsilon, fused=True, capturable=capturable
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
