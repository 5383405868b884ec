"""Captured steps: CuPy's on a stand-in for CUDA, PyTorch's on the CPU; and operands of gemm."""

import gc
import operator
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from itertools import product

import cuda_stand_in
import numpy as np
import pytest
import torch_stand_in
from numpy.lib.stride_tricks import as_strided

from mlp_xp import (
    Activation,
    Checkpoint,
    EagerFallbackWarning,
    Network,
    Optimizer,
    _arrays,
    adam,
    decoupled_weight_decay,
    gradient_descent,
    momentum,
    train,
)
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import computing_namespace, placement, quiet_floating_point
from mlp_xp._engines import capture, cuda_graph, make_step
from mlp_xp._engines.cuda_graph import CudaGraphEngine
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._engines.gemm import gemm_operand
from mlp_xp._engines.step_numbers import MAX_NUMBERS_PER_STEP, NotCapturableError, TableRow
from mlp_xp._losses import LOSSES
from mlp_xp._parameters import is_array, leaves, map_tree, plain
from mlp_xp._samples import Samples

# Trainings.

OPTIMIZERS = {
    "sgd": gradient_descent(0.1),
    "momentum": momentum(0.05),
    "nesterov": momentum(0.05, 0.9, nesterovs_momentum=True),
    "adam": adam(0.01),
    "adamw": decoupled_weight_decay(adam(0.01), 0.1),
}


@pytest.fixture
def device():
    with cuda_stand_in.installed() as machine:
        yield machine


def on(tree):
    return map_tree(sys.modules["cupy"].asarray, tree)


def to_host(tree):
    return map_tree(lambda array: array.get() if isinstance(array, cuda_stand_in.ndarray) else array, tree)


def graphs(device=None):
    """Return the graphs of this thread on a device, by default on the stand-in's."""
    device = cuda_stand_in.Device() if device is None else device
    return import_module("mlp_xp._engines.cupy_graphs").CupyGraphs.of_this_thread(device)


def data(loss, n_samples=23, n_outputs=2, weighted=False, dtype="float64"):
    source = np.random.RandomState(0)
    X = source.standard_normal((n_samples, 3)).astype(dtype)
    y = np.eye(n_outputs)[source.randint(n_outputs, size=n_samples)].astype(dtype)
    return X, y, source.uniform(0.5, 2.0, n_samples).astype(dtype) if weighted else None


def engines(device, network, optimizer, batch_size, weighted=False, rows=None, dtype="float64"):
    """Return the engine of CUDA graphs on the stand-in, and the eager engine on NumPy."""
    X, y, weight = data(network.loss, n_outputs=network.layer_sizes[-1], weighted=weighted, dtype=dtype)
    params = plain(network.init(0, like=X, bias="normal"))
    state = (params, optimizer.init(np, params))
    arrays = on((X, y, weight))
    there = Samples(placement(X=arrays[0]), *arrays, rows)
    here = Samples(placement(like=X), X, y, weight, rows)
    return (
        CudaGraphEngine(graphs(), network, optimizer, there, batch_size, on(state)),
        EagerEngine(network, optimizer, here, batch_size, state),
    )


def test_a_copy_of_the_state_is_on_its_device_whichever_is_current(device):
    with sys.modules["cupy"].cuda.Device(1):
        engine, _ = engines(device, Network((3, 4, 2), loss="squared_error"), OPTIMIZERS["adam"], 8)
    copied = [leaf for leaf in leaves(engine.copied_state()) if is_array(leaf)]
    assert {array.device.id for array in copied} == {1}


def assert_equal(engine, other, rtol=1e-10):
    ours, theirs = leaves(to_host(engine.state)), leaves(other.state)
    for one, another in zip(ours, theirs, strict=True):
        assert type(one) is type(another)
        if is_array(another):
            assert (one.shape, one.dtype) == (another.shape, another.dtype)
        np.testing.assert_allclose(one, another, rtol=rtol, atol=rtol)
    losses = [float(loss) for loss in engine.losses]
    np.testing.assert_allclose(losses, other.losses, rtol=rtol)


def epochs_of(n_epochs, n_samples, shuffled, seed=0):
    source = np.random.RandomState(seed)
    return [
        (0.1 / (1 + epoch), source.permutation(n_samples) if shuffled else None) for epoch in range(n_epochs)
    ]


def run_both(both, epochs):
    with quiet_floating_point():
        for engine in both:
            engine.run(epochs)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("batch_size", "shuffled"), [(23, False), *product([5, 8, 1], [False, True])])
def test_captured_epochs_are_those_run_call_by_call(optimizer, batch_size, shuffled, device, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_STEPS_PER_GRAPH", 4)
    network = Network((3, 4, 2), activation="tanh", loss="categorical_cross_entropy", alpha=0.1)
    both = engine, other = engines(device, network, OPTIMIZERS[optimizer], batch_size)
    for n_epochs in (1, 9, 4, 2):
        run_both(both, epochs_of(n_epochs, 23, shuffled, seed=n_epochs))
        assert_equal(engine, other)
    assert device.counts["replays"] > 0
    assert not engine.fell_back


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("activation", "loss"), list(product(["relu", "logistic", "gelu", "elu"], LOSSES)))
def test_all_functions_can_be_captured(activation, loss, device):
    network = Network((3, 5, 4, 2), activation=activation, loss=loss, alpha=0.01)
    both = engine, other = engines(device, network, adam(), 8, weighted=True, rows=np.arange(0, 23, 2))
    for seed in range(3):
        run_both(both, epochs_of(3, 12, shuffled=True, seed=seed))
    assert_equal(engine, other)
    assert device.counts["replays"] == 8
    assert not engine.fell_back


def _swapping(xp, params, gradients, state, learning_rate):
    """Swap two arrays of the state in each step."""
    one, other = state
    (weight, bias), *rest = params
    (weight_gradient, bias_gradient), *_ = gradients
    first = weight - learning_rate * weight_gradient, bias - learning_rate * (bias_gradient + one)
    return (first, *rest), (other + bias_gradient, one)


def test_arrays_of_the_state_that_are_swapped(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    zeros = Optimizer(lambda xp, params: tuple(xp.zeros_like(params[0][1]) for _ in "ab"), _swapping, 0.1)
    both = engine, other = engines(device, network, zeros, 8)
    run_both(both, epochs_of(7, 23, shuffled=True))
    assert_equal(engine, other)
    assert device.counts["replays"] == 6


def _growing(xp, params, gradients, state, learning_rate):
    """Store gradients in the state, which is empty at first."""
    params = tuple(
        (w - learning_rate * g, b - learning_rate * d) for (w, b), (g, d) in zip(params, gradients)
    )
    return params, (gradients[0][1] * 1.0,)


def _remembering(xp, params, gradients, state, learning_rate):
    """Store a view of the parameters in the state, which the next update uses."""
    (weight, bias), *rest = params
    (weight_gradient, _), *_ = gradients
    (before,) = state
    new = weight - learning_rate * weight_gradient + 0.1 * before
    return ((new, bias), *rest), (xp.reshape(weight, weight.shape),)


def test_a_state_of_another_structure_runs_call_by_call(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    growing = Optimizer(lambda xp, params: (), _growing, 0.1)
    both = engine, other = engines(device, network, growing, 8)
    start = engine.copied_state(), other.copied_state()
    with pytest.warns(EagerFallbackWarning, match="call by call.*structure") as caught:
        run_both(both, epochs_of(5, 23, shuffled=True))
    assert len(caught) == 1
    assert_equal(engine, other)
    for each, state in zip(both, start):
        each.state, each.losses = state, []
    run_both(both, epochs_of(5, 23, shuffled=True))
    assert_equal(engine, other)
    assert device.counts["replays"] == 0


def test_a_state_that_is_a_view_of_the_old_one(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    remembering = Optimizer(lambda xp, params: (xp.zeros_like(params[0][0]),), _remembering, 0.1)
    both = engine, other = engines(device, network, remembering, 8)
    run_both(both, epochs_of(7, 23, shuffled=True))
    assert_equal(engine, other)
    assert device.counts["replays"] == 6


def test_single_precision(device):
    network = Network((3, 4, 1), activation="relu", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8, dtype="float32")
    run_both(both, epochs_of(20, 23, shuffled=True))
    assert_equal(engine, other, rtol=1e-4)


def test_a_replayed_epoch_launches_little_and_reads_nothing(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    engine, _ = engines(device, network, adam(), 2)
    engine.run(epochs_of(3, 23, shuffled=True))
    before = device.counts["launches"], device.counts["replays"], device.counts["reads"]
    engine.run(epochs_of(5, 23, shuffled=True))
    # One graph for twelve steps; beside it, samples are copied in order and the losses are added.
    assert device.counts["replays"] - before[1] == 5
    assert device.counts["launches"] - before[0] <= 5 * 8
    assert device.counts["reads"] == before[2]


def test_a_full_batch_is_not_copied(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    engine, _ = engines(device, network, adam(), 23)
    assert engine.inputs.X is engine.samples.X
    engine.run(epochs_of(200, 23, shuffled=False))
    # The first step runs call by call, the others 64 at a time, and the rest one by one.
    assert device.counts["replays"] == 3 + (200 - 1) % 64
    assert len(engine.losses) == 200


def test_the_buffers_for_samples_are_bounded(device, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_INPUT_BUFFER_BYTES", 400)
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 5)
    assert engine.inputs.X.shape == (10, 3)  # two batches of 5 rows of 4 numbers take 320 bytes
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)


def test_training_goes_on_from_an_assigned_state(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8)
    run_both(both, epochs_of(3, 23, shuffled=True))
    saved = engine.copied_state(), other.copied_state()
    kept = to_host(saved[0])
    run_both(both, epochs_of(3, 23, shuffled=True, seed=1))
    np.testing.assert_array_equal(leaves(to_host(saved[0]))[0], leaves(kept)[0])
    for each, state in zip(both, saved):
        each.state = state
        each.losses = []
    run_both(both, epochs_of(5, 23, shuffled=True, seed=2))
    assert_equal(engine, other)


def test_divergence_is_detected(device):
    network = Network((3, 4, 1), activation="relu", loss="squared_error")
    engine, _ = engines(device, network, gradient_descent(1.0), 8)
    assert engine.is_finite()
    engine.run([(1e30, None)] * 20)
    assert not engine.is_finite()
    assert not np.isfinite(float(engine.losses[-1]))


def test_losses_are_not_overwritten_by_later_epochs(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8)
    kept = []
    for seed in range(6):
        run_both(both, epochs_of(2, 23, shuffled=True, seed=seed))
        kept += engine.losses
        engine.losses = []
        gc.collect()
    np.testing.assert_allclose([float(loss) for loss in kept], other.losses, rtol=1e-10)


# What cannot be captured runs call by call, with one warning.


def reading(xp, z):
    return (z * 0.5 if float(xp.sum(z)) > 0.0 else z), z


def reading_backward(xp, delta, kept):
    return delta * 0.5 if float(xp.sum(kept)) > 0.0 else delta


def _warmed(xp, params, gradients, state, learning_rate):
    """Take short steps at first, by a condition that a graph cannot evaluate."""
    count = state[0] + 1
    rate = learning_rate * (0.1 if count < 10 else 1.0)
    return tuple((w - rate * g, b - rate * d) for (w, b), (g, d) in zip(params, gradients)), (count,)


REFUSED = {
    "reads": (
        Activation(reading, reading_backward),
        gradient_descent(0.1),
        "not permitted when stream is capturing",
    ),
    "branches": (
        "tanh",
        Optimizer(lambda xp, params: (0,), _warmed, 0.1),
        "a condition or a conversion uses a number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("batch_size", [23, 8])
def test_a_step_that_cannot_be_captured_runs_call_by_call(case, batch_size, device):
    activation, optimizer, why = REFUSED[case]
    network = Network((3, 4, 1), activation=activation, loss="binary_cross_entropy")
    both = engine, other = engines(device, network, optimizer, batch_size)
    with pytest.warns(EagerFallbackWarning, match=f"call by call.*{why}") as caught:
        run_both(both, epochs_of(70, 23, shuffled=batch_size < 23))
    run_both(both, epochs_of(3, 23, shuffled=batch_size < 23, seed=1))
    assert len(caught) == 1
    assert device.counts["replays"] == 0
    assert_equal(engine, other)


def test_an_interrupt_call_by_call_is_between_two_epochs(device):
    calls = []

    def forward(xp, z):
        float(xp.sum(z))
        calls.append(None)
        if len(calls) == 31:
            raise KeyboardInterrupt
        return z * 1.0, None

    activation = Activation(forward, lambda xp, delta, kept: delta * 1.0)
    network = Network((3, 4, 2), activation=activation, loss="categorical_cross_entropy")
    engine, other = engines(device, network, adam(0.01), 23)
    with pytest.warns(EagerFallbackWarning), pytest.raises(KeyboardInterrupt):
        engine.run(epochs_of(100, 23, shuffled=False))
    assert len(engine.losses) == 30
    calls.clear()
    other.run(epochs_of(100, 23, shuffled=False)[:30])
    assert_equal(engine, other)


def test_a_missing_library_warns_once(monkeypatch):
    def missing(place, xp):
        raise ImportError("no nvmath here; `pip install nvmath-python[cu13]`")

    monkeypatch.setattr(cuda_graph, "graph_library", missing)
    X, y, _ = data("squared_error")
    network = Network((3, 4, 2), loss="squared_error")
    params = plain(network.init(0, like=X))
    with pytest.warns(EagerFallbackWarning, match="call by call.*pip install nvmath") as caught:
        engine = cuda_graph.make_cuda_engine(
            network, gradient_descent(0.1), Samples(placement(X=X), X, y), 23, (params, ()), 100
        )
    assert type(engine) is EagerEngine
    assert len(caught) == 1


REFUSALS = {
    "a read": lambda cupy, array: float(array[0]),
    "a copy from the host": lambda cupy, array: cupy.asarray(1.0),
    "the device is waited for": lambda cupy, array: cupy.cuda.runtime.deviceSynchronize(),
    "the stream is waited for": lambda cupy, array: cupy.cuda.get_current_stream().synchronize(),
}


@pytest.mark.parametrize("refused", REFUSALS)
def test_the_stream_is_usable_after_a_failed_capture(refused, device):
    cupy, cuda = sys.modules["cupy"], graphs()
    array = cupy.asarray([1.0, 2.0])

    def refused_and_more():
        with suppress(Exception):  # as a user's activation may do
            REFUSALS[refused](cupy, array)
        with pytest.raises(cuda_stand_in.CUDARuntimeError, match="Invalidated"):
            array * 2.0
        with pytest.raises(RuntimeError, match="invalidated"):
            cuda.stream.is_capturing()

    result = []
    with cuda.own_stream():
        with pytest.raises(cuda_stand_in.CUDARuntimeError, match="StreamCapture"):
            cuda.capture(lambda: REFUSALS[refused](cupy, array))
        assert not cuda.stream.is_capturing()
        # The end of the capture reports the error that was suppressed.
        with pytest.raises(cuda_stand_in.CUDARuntimeError, match="Invalidated"):
            cuda.capture(refused_and_more)
        assert not cuda.stream.is_capturing()
        np.testing.assert_array_equal((array * 2.0).get(), [2.0, 4.0])
        replay = cuda.capture(lambda: result.append(array * 3.0))
        assert np.isnan(result[0].view).all()
        replay()
        np.testing.assert_array_equal(result[0].get(), [3.0, 6.0])


def test_cupys_own_products_raise_an_error_that_does_not_end_the_capture(device):
    cupy, cuda = sys.modules["cupy"], graphs()
    array, result = cupy.asarray([[1.0, 2.0], [3.0, 4.0]]), []

    def capture():
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            cupy.matmul(array, array)
        result.append(cuda.namespace("highest").matmul(array, array))

    with cuda.own_stream():
        cuda.capture(capture)()
        np.testing.assert_array_equal(result[0].get(), [[7.0, 10.0], [15.0, 22.0]])


def test_a_graph_keeps_no_array_alive(device):
    cupy, cuda = sys.modules["cupy"], graphs()
    array, result = cupy.asarray([1.0, 2.0]), []
    with cuda.own_stream():
        cuda.capture(lambda: result.append(array * 2.0))()
        np.testing.assert_array_equal(result[0].get(), [2.0, 4.0])
        del result[:]
        replay = cuda.capture(lambda: result.append(array * 3.0))
        # The pool reuses the memory of the array that was deleted.
        replay()
        np.testing.assert_array_equal(result[0].get(), [3.0, 6.0])
        with pytest.raises(TypeError, match="Implicit conversion"):
            np.asarray(array)


# Numbers.


def number_of(value, places):
    return TableRow(places, 0).result(lambda: value)


OPERATIONS = [
    lambda n, x: n * x,
    lambda n, x: x * n,
    lambda n, x: x - n,
    lambda n, x: n - x,
    lambda n, x: x / n,
    lambda n, x: n / x,
    lambda n, x: x + (1.0 - 0.9**n) ** 0.5 / (2 * -n),
    lambda n, x: x**n,
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_step_numbers_are_arrays_in_operations_with_arrays(operation, module):
    xp = pytest.importorskip(module)
    x, places = xp.asarray([1.0, 2.0]), xp.ones(MAX_NUMBERS_PER_STEP)
    number = number_of(3, places)
    operation(number, x)
    # The first call has given the number an entry; now the entry gets its value.
    (position,) = number.row.numbers
    places[...] = number.row.values(())[position]
    np.testing.assert_allclose(np.asarray(operation(number, x)), operation(3, np.asarray([1.0, 2.0])))


IN_PLACE = {
    "add": (operator.iadd, [4.0, 5.0]),
    "subtract": (operator.isub, [-2.0, -1.0]),
    "multiply": (operator.imul, [3.0, 6.0]),
    "divide": (operator.itruediv, [1.0 / 3.0, 2.0 / 3.0]),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("module", ["cupy", "torch"])
def test_in_place_operations_with_step_numbers_write_in_place(name, module, device):
    xp = sys.modules["cupy"] if module == "cupy" else pytest.importorskip(module)
    operation, expected = IN_PLACE[name]
    x, places = xp.asarray([1.0, 2.0]), xp.ones(MAX_NUMBERS_PER_STEP) * 3.0
    changed = operation(x, number_of(3, places))
    assert changed is x
    np.testing.assert_allclose(_arrays.to_host(x), expected)


@pytest.mark.parametrize(("activation", "loss"), list(product(ACTIVATIONS, LOSSES)))
def test_steps_of_pytorch_copy_nothing_from_the_host(activation, loss, monkeypatch):
    torch = pytest.importorskip("torch")
    tensors = [torch.asarray(array) for array in data(loss, weighted=True)]
    network = Network((3, 4, 2), activation=activation, loss=loss, alpha=0.1)
    xp = placement(X=tensors[0]).xp

    def after_a_step(of):
        params = plain(network.init(0, like=tensors[0], bias="normal"))
        state = adam().init(xp, params)
        return lambda: make_step(network, adam(), of)(params, state, *tensors, 0.1)

    expected, step = after_a_step(xp)(), after_a_step(computing_namespace(xp, tensors[0]))

    def refused(*_, **__):
        raise AssertionError("a copy from the host")

    for name in ("asarray", "tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refused)
        monkeypatch.setattr(xp, name, refused, raising=False)
    for one, another in zip(leaves(step()), leaves(expected), strict=True):
        torch.testing.assert_close(one, another)


def test_conditions_and_conversions_of_step_numbers_are_refused():
    number = number_of(3, np.zeros(8))
    for decide in (bool, float, int, lambda n: n < 4, lambda n: n == 3, range):
        with pytest.raises(NotCapturableError, match="changes from step to step"):
            decide(number)


def test_step_numbers_have_entries_until_there_are_too_many():
    row = TableRow(np.zeros(MAX_NUMBERS_PER_STEP), 0)
    numbers = [row.result(lambda: 0.0) for _ in range(MAX_NUMBERS_PER_STEP)]
    for number in [*numbers, *numbers]:
        row.entry_of(number)
    with pytest.raises(NotCapturableError, match=str(MAX_NUMBERS_PER_STEP)):
        row.entry_of(row.result(lambda: 0.0))


# PyTorch on the CPU: a replay calls the captured function again.


@pytest.fixture
def torch_cuda():
    pytest.importorskip("torch")
    with torch_stand_in.installed() as cuda:
        yield cuda


def torch_engine(network, optimizer, batch_size):
    torch, graphs = sys.modules["torch"], import_module("mlp_xp._engines.torch_graphs")
    X, y, _ = data(network.loss, n_outputs=network.layer_sizes[-1])
    params = plain(network.init(0, like=X, bias="normal"))
    state = params, optimizer.init(np, params)
    there = Samples(placement(X=torch.asarray(X)), torch.asarray(X), torch.asarray(y))
    cuda = graphs.TorchGraphs(there.place, there.xp)
    on_torch = map_tree(lambda array: torch.asarray(array.copy()), state)
    other = EagerEngine(network, optimizer, Samples(placement(X=X), X, y), batch_size, state)
    return CudaGraphEngine(cuda, network, optimizer, there, batch_size, on_torch, 10), other


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [23, 8])
def test_pytorchs_epochs_are_those_run_call_by_call(optimizer, batch_size, torch_cuda):
    network = Network((3, 4, 2), activation="elu", loss="categorical_cross_entropy", alpha=0.1)
    both = engine, other = torch_engine(network, OPTIMIZERS[optimizer], batch_size)
    # Here a capture runs the steps, so that the state before it must be restored.
    run_both(both, epochs_of(1, 23, shuffled=batch_size < 23))
    before = engine.copied_state(), other.copied_state()
    lengths = (23,) if batch_size == 23 else (8, 8, 7)
    engine._graph(lengths, 100)
    for each, state in zip(both, before):
        each.state, each.losses = state, []
    run_both(both, epochs_of(5, 23, shuffled=batch_size < 23, seed=1))
    for one, another in zip(leaves(engine.state), leaves(other.state), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(another), rtol=1e-9, atol=1e-12)
    assert "replay" in torch_cuda.calls
    assert torch_cuda.calls.count("stream") == 1
    waits = [call for call in torch_cuda.calls if isinstance(call, tuple)]
    assert waits[::2] == [("own", "waits for", "caller")] * (len(waits) // 2)
    assert waits[1::2] == [("caller", "waits for", "own")] * (len(waits) // 2)


def test_a_failed_capture_of_pytorch_says_why_and_releases_the_pool(torch_cuda):
    torch, graphs = sys.modules["torch"], import_module("mlp_xp._engines.torch_graphs")
    x = torch.ones(2)
    cuda = graphs.TorchGraphs(placement(x=x), placement(x=x).xp)
    pool = cuda.pool

    def fails():
        raise ValueError("what the user did")

    with cuda.own_stream(), capture.exclusive_capture(), pytest.raises(ValueError, match="what the user did"):
        cuda.capture(fails)
    assert cuda.pool != pool
    assert gc.isenabled()
    assert not capture.CAPTURE_LOCK.locked()


# Layouts.


def matrix(n_rows, n_columns, layout, seed):
    """Return a matrix, and whether it must be copied first."""
    values = np.random.RandomState(seed).standard_normal((2 * n_rows + 1, 2 * n_columns + 3))
    return {
        "rows": lambda: values[:n_rows, :n_columns].copy(),
        "columns": lambda: values[:n_rows, :n_columns].copy(order="F"),
        "part_of_rows": lambda: values[:n_rows, 1 : n_columns + 1],
        "part_of_columns": lambda: values.copy(order="F")[1 : n_rows + 1, :n_columns],
        "each_other": lambda: values[: 2 * n_rows : 2, :n_columns],
        "with_gaps": lambda: values[:n_rows, : 2 * n_columns : 2],
        "backwards": lambda: values[:n_rows, :n_columns][::-1],
        "repeated": lambda: np.broadcast_to(values[:1, :n_columns], (n_rows, n_columns)),
    }[layout]()


LAYOUTS = [
    "rows",
    "columns",
    "part_of_rows",
    "part_of_columns",
    "each_other",
    "with_gaps",
    "backwards",
    "repeated",
]


def blas_reads(array, found, n_rows, n_columns):
    """Return the matrix that a column-major BLAS reads: the transpose, or the matrix if it transposes."""
    stored = (n_rows, n_columns) if found.transposed else (n_columns, n_rows)
    assert found.leading_dimension >= max(1, stored[0])
    by_columns = as_strided(array, stored, (array.itemsize, found.leading_dimension * array.itemsize))
    return by_columns.T if found.transposed else by_columns


@pytest.mark.parametrize(("left", "right"), list(product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize(
    "sizes", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 4, 1), (2, 2, 2)], ids=str
)
def test_products_of_all_layouts(left, right, sizes):
    m, k, n = sizes
    a, b = matrix(m, k, left, 0), matrix(k, n, right, 1)
    factors = []
    for array in (a, b):
        found = gemm_operand(array.shape, [stride // array.itemsize for stride in array.strides])
        if found is None:
            array = np.ascontiguousarray(array)
            found = gemm_operand(array.shape, (array.shape[1], 1))
        factors.append(blas_reads(array, found, *array.shape))
    # C' = B' A' written column by column is C row by row.
    np.testing.assert_allclose((factors[1] @ factors[0]).T, a @ b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_matrices_with_gaps_are_copied(layout):
    array = matrix(3, 4, layout, 0)
    found = gemm_operand(array.shape, [stride // array.itemsize for stride in array.strides])
    assert (found is None) == (layout in ("with_gaps", "backwards", "repeated"))


def test_captured_epochs_warn_of_nothing(device):
    network = Network((3, 4, 1), activation="tanh", loss="binary_cross_entropy")
    engine, _ = engines(device, network, adam(), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.run(epochs_of(4, 23, shuffled=True))
    assert device.counts["replays"] == 3


# Checkpoints.


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
@pytest.mark.parametrize(
    ("epochs", "settings"),
    [
        (4400, {}),
        (1400, {"batch_size": 8}),
        (60, {"batch_size": 1, "callback": lambda history, params: False}),
    ],
)
def test_a_training_goes_on_from_its_checkpoint(optimizer, epochs, settings, device, tmp_path):
    pytest.importorskip("safetensors")
    network = Network((3, 4, 2), activation="tanh", loss="categorical_cross_entropy", alpha=0.1)
    X, y, _ = data(network.loss, n_outputs=2)
    there = on((X, y))
    params = network.init(0, like=there[0])

    def run(epochs, arrays=there, params=params, **files):
        given = {"optimizer": OPTIMIZERS[optimizer], "seed": 1, **settings, **files}
        return train(network, params, *arrays, epochs=epochs, **given)

    whole = run(epochs)
    path = tmp_path / "run.mlpx"
    first = run(epochs // 2, checkpoint=Checkpoint(path, every_seconds=0.01))
    for resumed in (run(epochs, resume=path), run(epochs, resume=first)):
        assert resumed.history == whole.history
        assert resumed.history.engine == whole.history.engine
        assert epochs < 1000 or whole.history.engine == "cuda_graph"
        for one, other in zip(to_host(resumed.params), to_host(whole.params), strict=True):
            np.testing.assert_array_equal(one.weight, other.weight)
            np.testing.assert_array_equal(one.bias, other.bias)
    here = run(epochs // 2 + 20, (X, y), network.init(0, like=X), resume=path)
    np.testing.assert_allclose(here.history["loss"], whole.history["loss"][: len(here.history)], rtol=1e-9)
