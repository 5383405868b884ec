"""Steps of several processes on CUDA GPUs: captured in two halves, with a sum over the processes between.

On the stand-ins for CUDA and for MPI; and on a real GPU, which shows whether the former is right:
``pytest -m cuda tests/test_cuda_processes.py``.
"""

# ruff: noqa: F811 - the fixture `gpu` is that of another file

import signal
import sys
import warnings
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import cuda_stand_in
import numpy as np
import pytest
import torch_stand_in
from conftest import may_run_call_by_call
from mpi import HERE, mpiexec, needs_mpi
from processes_stand_in import Communicator, within
from test_cuda import CAPTURING, assert_same, gpu, on, two_classes  # noqa: F401
from test_cuda_graph import OPTIMIZERS, REFUSED, graphs

from mlp_xp import (
    EagerFallbackWarning,
    Network,
    ProcessError,
    TrainingInterruptedWarning,
    adam,
    gradient_descent,
    to_host,
    train,
)
from mlp_xp._arrays import placement
from mlp_xp._engines import data_parallel, reductions
from mlp_xp._engines.data_parallel import DataParallelEngine
from mlp_xp._engines.graph_halves import GraphHalves
from mlp_xp._engines.graph_inputs import GraphInputs
from mlp_xp._parameters import leaves, plain
from mlp_xp._samples import Batch, Samples
from mlp_xp._training.footprint import Footprint

NETWORK = Network((30, 16, 1), activation="tanh", loss="binary_cross_entropy", alpha=1e-2)
ROUTES = {"nccl": "NCCL", "cuda-mpi": "CUDA-aware MPI", "host": "MPI through host memory"}


@pytest.fixture
def communicator(monkeypatch):
    """Two equal processes, whose NCCL is a stand-in if CUDA is."""
    communicator = Communicator()
    if isinstance(sys.modules.get("cupy"), cuda_stand_in.Functions):
        nccl = cuda_stand_in.Nccl(communicator.add_up)
        monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", nccl)
        monkeypatch.setattr(sys.modules["cupy.cuda"], "nccl", nccl, raising=False)
        communicator.shares_a_gpu = False
    return communicator


@pytest.fixture(params=ROUTES)
def route(request, gpu, monkeypatch):
    if request.param == "nccl" and gpu.machine is None:
        pytest.skip("NCCL takes processes with a GPU each")
    monkeypatch.setenv(reductions.VARIABLE, request.param)
    return request.param


def data(weighted=False, n_samples=200):
    X, y = two_classes()
    weight = np.random.RandomState(2).uniform(0.5, 2.0, n_samples) if weighted else None
    return X[:n_samples], y[:n_samples], weight


def of_both(arrays):
    """Return the rows of two equal processes."""
    return [None if array is None else np.concatenate([array, array]) for array in arrays]


def trained(arrays, gpu=None, network=NETWORK, **settings):
    """Train on a GPU, or on NumPy's arrays."""
    there = (lambda array: array) if gpu is None else gpu.array
    X, y, weight = (None if array is None else there(array) for array in arrays)
    settings = {"optimizer": adam(0.01), "epochs": 12, "batch_size": None, "seed": 0, **settings}
    return train(network, network.init(0, like=X), X, y, sample_weight=weight, **settings)


# Results.


@pytest.mark.sampled(4)
@on("stand-in")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_train_as_one_on_all_rows(gpu, communicator, route, weighted, optimizer):
    arrays, settings = data(weighted), {"optimizer": OPTIMIZERS[optimizer]}
    with within(communicator) as processes:
        both = trained(arrays, gpu, **settings)
    one = trained(of_both(arrays), **settings)
    assert both.history.engine == "cuda_graph"
    assert processes.reduction == ROUTES[route]
    assert_same(both, one, 1e-9)


@pytest.mark.sampled(5)
@on("stand-in")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [7, 64, 150, 399])
def test_parts_of_batches_are_those_of_numpy(gpu, communicator, route, weighted, batch_size, dtype):
    arrays = [None if array is None else array.astype(dtype) for array in data(weighted)]
    settings = {"batch_size": batch_size, "optimizer": adam(0.001), "epochs": 1 if batch_size == 7 else 6}
    # 200 rows are a tenth of what several processes have: their parts of batches have many lengths.
    communicator.size = 10 if batch_size == 7 else 2
    there = SimpleNamespace(array=partial(gpu.array, dtype=dtype))
    with within(communicator):
        on_gpu = trained(arrays, there, **settings)
    with within(Communicator(communicator.size)):
        on_host = trained(arrays, **settings)
    assert on_gpu.history.engine == "cuda_graph"
    assert_same(on_gpu, on_host, 1e-9 if dtype == "float64" else 1e-3)


@on("cupy", "torch_cuda")
@pytest.mark.parametrize(("batch_size", "weighted"), [(None, False), (64, False), (64, True)])
def test_captured_halves_are_those_of_numpy(gpu, communicator, route, batch_size, weighted):
    results = []
    for there, others in ((gpu, communicator), (None, Communicator())):
        with within(others):
            results.append(trained(data(weighted), there, batch_size=batch_size, epochs=20))
    assert results[0].history.engine == "cuda_graph"
    assert_same(*results, 1e-9)


@on("stand-in")
def test_batches_without_weight_change_nothing(gpu, communicator, route):
    settings = {"batch_size": 50, "shuffle": False}  # the other process has the rows of half the batches
    results = []
    for there, others in ((gpu, communicator), (None, Communicator())):
        with within(others):
            results.append(trained(data(weighted=True), there, **settings))
    assert_same(*results, 1e-9)


@on("stand-in")
@pytest.mark.parametrize("batch_size", [None, 64])
def test_replayed_halves_are_to_the_bit_those_run_call_by_call(gpu, communicator, batch_size, monkeypatch):
    results = []
    for is_captured in (True, False):
        if not is_captured:
            monkeypatch.setattr(GraphHalves, "_captured", lambda self, function: None)
        with within(communicator):
            results.append(trained(data(weighted=True), gpu, batch_size=batch_size))
    replayed, called = results
    assert (replayed.history.engine, called.history.engine) == ("cuda_graph", "eager")
    assert replayed.history["loss"] == called.history["loss"]
    assert_same(replayed, called, 0.0)


@on(*CAPTURING)
def test_samples_on_the_host_are_moved_or_streamed(gpu, communicator, monkeypatch):
    pytest.importorskip("sklearn")
    from mlp_xp import MLPRegressor

    monkeypatch.setenv(reductions.VARIABLE, "host")
    X, _, _ = data()
    settings = {"hidden_layer_sizes": (8,), "max_iter": 4, "tol": 0.0, "batch_size": 32, "random_state": 0}
    backend = "torch" if gpu.name == "torch_cuda" else "cupy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with within(Communicator()):
            expected = MLPRegressor(**settings).fit(X, X[:, 0])
        for is_streamed in (False, True):
            if is_streamed:
                monkeypatch.setattr("mlp_xp._samples._moved_if_it_fits", lambda limit, one, known: one)
            with within(communicator):
                model = MLPRegressor(backend=backend, **settings).fit(X, X[:, 0])
            assert model.history_.engine == "cuda_graph"
            for one, other in zip(model.coefs_, expected.coefs_, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_arrays_that_are_not_copied_implicitly_go_through_the_host(library, monkeypatch):
    """In every namespace, such as array-api-strict's on a device that is not its default."""
    monkeypatch.setenv(reductions.VARIABLE, "host")
    arrays = data(weighted=True, n_samples=60)
    communicator = Communicator()
    for batch_size in (None, 16):
        with within(communicator) as processes:
            there = trained(arrays, library, batch_size=batch_size)
        with within(Communicator()):
            here = trained(arrays, batch_size=batch_size)
        assert_same(there, here, 1e-9)
        place = placement(weight=there.params[0].weight)
        assert (place.xp, place.device) == (placement(like=library.array([1.0])).xp, library.device)
    assert communicator.kinds <= {np.ndarray}
    assert processes.reduction in ("MPI", "MPI through host memory")


@on("stand-in")
def test_a_process_trains_on_the_device_of_its_arrays(gpu, communicator, route):
    cupy = gpu.module
    with within(communicator), cupy.cuda.Device(1):
        arrays = [None if array is None else gpu.array(array) for array in data(weighted=True)]
    with within(communicator):
        both = trained(arrays, SimpleNamespace(array=lambda array: array), batch_size=64)
    assert both.params[0].weight.device.id == 1
    assert cupy.cuda.Device().id == 0
    with within(Communicator()):
        assert_same(both, trained(data(weighted=True), batch_size=64), 1e-9)


# How steps run.


@on("stand-in")
def test_a_step_is_two_replays_and_one_sum(gpu, communicator, route):
    counts = gpu.machine.counts
    with within(communicator):
        trained(data(), gpu, epochs=2)
        before = counts.copy()
        assert counts["captures"] == counts["replays"] == 2
        trained(data(), gpu, epochs=30)
    assert counts["captures"] - before["captures"] == 2
    assert counts["replays"] - before["replays"] == 2 * 29
    assert communicator.n_sums == 32
    assert counts["pageable uploads"] == 0
    assert counts["NCCL"] == (32 if route == "nccl" else 0)
    expected = {"nccl": set(), "cuda-mpi": {cuda_stand_in.ndarray}, "host": {np.ndarray}}
    assert communicator.kinds == expected[route]


@on("stand-in")
def test_a_replayed_step_launches_little_and_reads_the_news_alone(gpu, communicator, route):
    counts = gpu.machine.counts
    with within(communicator):
        samples = Samples(*place_and_arrays(gpu)).sharded(current())
        engine = DataParallelEngine(NETWORK, gradient_descent(0.1), samples, 40, state_of(samples))
        orders = [np.random.RandomState(seed).permutation(400).astype(np.int32) for seed in range(20)]
        engine.run([(0.1, order) for order in orders])
        before = counts.copy()
        engine.run([(0.1, order) for order in orders])
    done = counts - before
    n_steps = 20 * 10
    assert done["captures"] <= 1  # of a length that is rare
    assert done["replays"] >= 2 * n_steps - 1
    # Rows of X and y are gathered, and their weights written.
    assert done["launches"] <= 3 * n_steps + 20 * 2 + 200
    # One read of each step, and the losses and whether all is finite at the end.
    assert done["reads"] <= n_steps + 20 + 2
    assert done["uploads"] <= n_steps * (2 if route == "host" else 1) + 4


def place_and_arrays(gpu):
    X, y, _ = data()
    X, y = gpu.array(X), gpu.array(y)
    return placement(X=X), X, y


def state_of(samples, network=NETWORK, optimizer=None):
    params = plain(network.init(0, like=samples.X))
    return params, () if optimizer is None else optimizer.init(samples.place.xp, params)


def current():
    return import_module("mlp_xp._processes").current_processes()


@on("stand-in")
def test_lengths_of_batches_are_few(gpu, communicator):
    with within(communicator):
        trained(data(), gpu, batch_size=64, epochs=100)
    # The second half, and the first half of batches of 64 and of 16 rows.
    assert gpu.machine.counts["captures"] <= 1 + 6 + 3


@on("stand-in")
def test_a_state_that_is_assigned_is_what_graphs_go_on_from(gpu, communicator):
    optimizer = adam(0.01)
    with within(communicator):
        samples = Samples(*place_and_arrays(gpu)).sharded(current())
        start = state_of(samples, optimizer=optimizer)
        engine = DataParallelEngine(NETWORK, optimizer, samples, 400, start)
        engine.run([(0.01, None)] * 5)
        first, losses = engine.copied_state(), engine.losses
        engine.state, engine.losses = start, []
        engine.run([(0.01, None)] * 5)
    for one, other in zip(leaves(engine.state), leaves(first), strict=True):
        np.testing.assert_array_equal(*(x.get() if hasattr(x, "get") else x for x in (one, other)))
    assert engine.losses == losses
    assert engine.is_finite()


def test_arrays_of_the_caller_are_read_in_place_and_never_written():
    with cuda_stand_in.installed():
        cupy = sys.modules["cupy"]
        inputs = GraphInputs(None, placement(X=cupy.asarray(np.ones(1))))
        values = [(np.full((4, 2), number), np.full((4, 1), number)) for number in (1.0, 2.0, 3.0)]
        blocks = [Batch(*map(cupy.asarray, each), None) for each in values]
        assert inputs.holding(blocks[0]) == (blocks[0], False)
        assert inputs.holding(blocks[0]) == (blocks[0], False)
        own, is_moved = inputs.holding(blocks[1])
        assert is_moved
        assert inputs.holding(blocks[2]) == (own, False)
        inputs.holding(Batch(blocks[2].X[:3, :], blocks[2].y[:3, :], None))
        inputs.holding(Batch(blocks[0].X[:3, :], blocks[0].y[:3, :], None))
        np.testing.assert_array_equal(blocks[2].X.get(), np.full((4, 2), 3.0))
        inputs.holding(blocks[2])
        np.testing.assert_array_equal(own.X.get(), np.full((4, 2), 3.0))
        for n, block in enumerate(blocks, 1):
            np.testing.assert_array_equal(block.X.get(), np.full((4, 2), n))


@on("stand-in")
@pytest.mark.parametrize("batch_size", [200, 2000])
def test_a_footprint_is_the_memory_that_a_training_takes(gpu, communicator, batch_size, monkeypatch):
    monkeypatch.setenv(reductions.VARIABLE, "host")
    X, y = gpu.array(np.ones((1000, 60)), "float32"), gpu.array(np.ones((1000, 1)), "float32")
    network = Network((60, 200, 100, 1), activation="relu", loss="squared_error")
    params, optimizer, pool = network.init(0, like=X), adam(), gpu.machine.default_pool
    with within(communicator):
        samples = Samples(placement(X=X), X, y).sharded(current())
        needed = Footprint(network, optimizer, samples, state_of(samples, network, optimizer), epochs=6)
        cuda, before = graphs(), pool.used_bytes()
        pool.peak = cuda.pool.peak = 0
        train(network, params, X, y, optimizer=optimizer, epochs=6, batch_size=batch_size)
    taken = pool.peak - before + cuda.pool.peak
    assert 0.7 * taken <= needed.bytes_needed(batch_size) <= 1.4 * taken


# What cannot be captured.


@on("stand-in")
@pytest.mark.parametrize("case", REFUSED)
def test_halves_that_cannot_be_captured_run_call_by_call(gpu, communicator, route, case):
    activation, optimizer, why = REFUSED[case]
    network = Network((30, 4, 1), activation=activation, loss="binary_cross_entropy")
    settings = {"network": network, "optimizer": optimizer, "epochs": 15}
    with within(communicator), pytest.warns(EagerFallbackWarning, match=f"call by call.*{why}") as caught:
        both = trained(data(), gpu, **settings)
    assert len(caught) == 1
    assert_same(both, trained(of_both(data()), **settings), 1e-9)
    assert communicator.n_sums == 15


@on("stand-in")
@may_run_call_by_call
def test_without_the_library_for_captures_all_add_up_on_the_host(gpu, communicator, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvmath", None)
    vars(vars(import_module("mlp_xp._engines.cupy_graphs"))["_THREAD_LOCAL"]).clear()
    with within(communicator) as processes, pytest.warns(EagerFallbackWarning, match="pip install nvmath"):
        both = trained(data(), gpu)
    assert both.history.engine == "eager"
    assert (processes.reduction, communicator.kinds) == ("MPI", {np.ndarray})
    assert_same(both, trained(of_both(data())), 1e-9)


# The end of a training.


@pytest.fixture
def at_step(gpu, monkeypatch):
    """Return a function that has another function called in a step of mini-batches."""

    def call(number, function):
        numbers = iter(range(1000))

        def gather_and_call(self, *arguments):
            if next(numbers) == number:
                function()
            return gather(self, *arguments)

        gather = GraphInputs.gather
        monkeypatch.setattr(GraphInputs, "gather", gather_and_call)

    return call


SETTINGS = {"batch_size": 100, "epochs": 6, "optimizer": adam(0.001)}


@on(*CAPTURING)
def test_an_interrupt_of_this_process_ends_all_at_the_same_step(gpu, communicator, route, at_step):
    at_step(13, lambda: signal.raise_signal(signal.SIGINT))
    with within(communicator), pytest.warns(TrainingInterruptedWarning):
        result = trained(data(), gpu, **SETTINGS)
    assert (communicator.n_sums, len(result.history)) == (14, 3)


@on(*CAPTURING)
def test_an_interrupt_of_another_process_ends_all_at_the_same_step(gpu, communicator, route):
    communicator.is_interrupted_at = 13
    with within(communicator), pytest.warns(TrainingInterruptedWarning):
        result = trained(data(), gpu, **SETTINGS)
    assert (communicator.n_sums, len(result.history)) == (14, 3)


@on(*CAPTURING)
@pytest.mark.parametrize("step", [0, 13])
def test_a_failure_of_this_process_is_told_in_the_same_step(gpu, communicator, route, at_step, step):
    def fail():
        raise OSError("the disk is gone")

    at_step(step, fail)
    with pytest.raises(OSError, match="the disk is gone") as caught, within(communicator):
        trained(data(), gpu, **SETTINGS)
    assert communicator.n_sums == step + 1
    assert len(caught.value.history) == step // 4


@on(*CAPTURING)
def test_a_failure_of_another_process_is_raised_in_the_same_step(gpu, communicator, route):
    communicator.fails_at = 13
    message = "process 1 of 2 has failed: ValueError: the disk is gone"
    with pytest.raises(ProcessError, match=message) as caught, within(communicator):
        trained(data(), gpu, **SETTINGS)
    assert isinstance(caught.value, ValueError)
    assert communicator.n_sums == 14
    assert len(caught.value.history) == 3


@on("stand-in")
def test_a_failed_update_is_told_in_the_next_step(gpu, communicator, route, monkeypatch):
    update, numbers = GraphHalves.update, iter(range(100))

    def fail(self, *arguments):
        if next(numbers) == 5:
            raise OSError("the disk is gone")
        update(self, *arguments)

    monkeypatch.setattr(GraphHalves, "update", fail)
    with pytest.raises(OSError, match="the disk is gone"), within(communicator):
        trained(data(), gpu, **SETTINGS)
    assert communicator.n_sums == 7


# Decisions.


@on("stand-in")
def test_the_fastest_way_is_taken_and_said(gpu, communicator, monkeypatch):
    monkeypatch.delenv(reductions.VARIABLE, raising=False)
    monkeypatch.setattr(reductions, "_cuda_mpi_obstacle", lambda: "MPI is not CUDA-aware")
    nccl = sys.modules["cupy.cuda"].nccl
    with within(communicator) as processes:
        assert (processes.reduction, repr(processes)) == ("MPI", "<process 0 of 2>")
        for _ in range(3):
            trained(data(), gpu, epochs=1)
        assert repr(processes) == "<process 0 of 2, which add up by NCCL>"
        (made,) = nccl.communicators  # for the first training
        assert (made.size, made.rank, made.is_open) == (2, 0, True)
    assert not made.is_open


WITHOUT_NCCL = {
    "they share a GPU": (lambda nccl, others: vars(others).update(shares_a_gpu=True), "share a GPU"),
    "it is missing": (lambda nccl, others: vars(nccl).update(available=False), "does not find its library"),
    "it fails": (lambda nccl, others: vars(nccl).update(problem="no network"), "no network"),
}


@on("stand-in")
@pytest.mark.parametrize("case", WITHOUT_NCCL)
@pytest.mark.parametrize("is_cuda_aware", [False, True])
def test_without_nccl_mpi_adds_up(gpu, communicator, case, is_cuda_aware, monkeypatch):
    monkeypatch.delenv(reductions.VARIABLE, raising=False)
    obstacle = "" if is_cuda_aware else "MPI is not CUDA-aware"
    monkeypatch.setattr(reductions, "_cuda_mpi_obstacle", lambda: obstacle)
    spoil, why = WITHOUT_NCCL[case]
    spoil(sys.modules["cupy.cuda"].nccl, communicator)
    with within(communicator) as processes:
        trained(data(), gpu, epochs=3)
    name = "CUDA-aware MPI" if is_cuda_aware else "MPI through host memory"
    assert processes.reduction.startswith(f"{name} (no NCCL: ")
    assert why in processes.reduction
    assert ("no CUDA-aware MPI: MPI is not CUDA-aware" in processes.reduction) == (not is_cuda_aware)
    assert communicator.kinds == {cuda_stand_in.ndarray if is_cuda_aware else np.ndarray}


@on("stand-in")
def test_what_the_variable_asks_for_is_done_or_refused(gpu, communicator, monkeypatch):
    nccl = sys.modules["cupy.cuda"].nccl
    nccl.available = False
    monkeypatch.setenv(reductions.VARIABLE, "nccl")
    refused = pytest.raises(RuntimeError, match="MLP_XP_REDUCTION=nccl is not possible: no NCCL: ")
    with refused, within(communicator):
        trained(data(), gpu)
    monkeypatch.setenv(reductions.VARIABLE, "pigeons")
    with pytest.raises(ValueError, match="one of nccl, cuda-mpi, host, got 'pigeons'"), within(communicator):
        trained(data(), gpu)


def test_processes_with_arrays_on_the_host_and_on_gpus_add_up_on_the_host(monkeypatch):
    monkeypatch.delenv(reductions.VARIABLE, raising=False)

    class Mixed(Communicator):
        def of_other(self, mine, rank):
            is_offer = isinstance(getattr(mine, "value", None), reductions._Offer)
            return mine._replace(value=reductions._Offer(None, {}, "")) if is_offer else mine

    with cuda_stand_in.installed():
        communicator = Mixed()
        there = SimpleNamespace(array=sys.modules["cupy"].asarray)
        with within(communicator) as processes:
            both = trained(data(), there)
        assert processes.reduction.startswith("MPI through host memory (no NCCL: process 1 has its sums")
        assert communicator.kinds == {np.ndarray}
        assert_same(both, trained(of_both(data())), 1e-9)


def test_whether_mpi_is_cuda_aware_is_asked(monkeypatch):
    for name in reductions._CUDA_AWARE_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", SimpleNamespace(__file__="libmpi.so"))
    for answer, obstacle in ((1, ""), (0, "MPI is not CUDA-aware")):
        library = SimpleNamespace(MPIX_Query_cuda_support=lambda answer=answer: answer)
        monkeypatch.setattr("ctypes.CDLL", lambda name, library=library: library)
        assert reductions._cuda_mpi_obstacle() == obstacle
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    assert "does not say" in reductions._cuda_mpi_obstacle()
    monkeypatch.setenv("MPICH_GPU_SUPPORT_ENABLED", "1")
    assert reductions._cuda_mpi_obstacle() == ""


# PyTorch on the CPU: a replay calls the captured function again.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("way", ["cuda-mpi", "host"])
def test_pytorchs_halves_are_those_of_numpy(weighted, optimizer, way, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv(reductions.VARIABLE, way)
    monkeypatch.setattr(data_parallel, "is_on_cuda", lambda place: place.xp is not np)
    optimizer = OPTIMIZERS[optimizer]
    arrays = data(weighted)
    with torch_stand_in.installed() as cuda:
        graphs = import_module("mlp_xp._engines.torch_graphs")

        def library(place, xp):
            return graphs.TorchGraphs(place, xp)

        monkeypatch.setattr("mlp_xp._engines.cuda_graph.graph_library", library)
        monkeypatch.setattr(graphs, "allocate_by_torch", lambda n_bytes: np.empty(n_bytes, np.uint8))
        engines = []
        for there in (torch.asarray, np.asarray):
            with within(Communicator()):
                X, y, weight = (None if array is None else there(array) for array in arrays)
                samples = Samples(placement(X=X), X, y, weight).sharded(current())
                state = state_of(samples, optimizer=optimizer)
                engine = DataParallelEngine(NETWORK, optimizer, samples, 64, state)
                order = np.random.RandomState(0).permutation(400)
                # Here a capture runs the steps, so that the state before it is assigned again.
                engine.run([(0.01, order)])
                engine.state, engine.losses = state, []
                engine.run([(0.01, order)] * 3)
                engines.append(engine)
    ours, theirs = engines
    assert ours.name == "cuda_graph"
    assert "replay" in cuda.calls
    assert cuda.calls.count("stream") == 1
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-9)
    for one, other in zip(leaves(ours.state), leaves(theirs.state), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-9, atol=1e-12)


# Real libraries.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mpi_reads_and_writes_arrays_of_other_libraries(dtype):
    torch = pytest.importorskip("torch")
    MPI = pytest.importorskip("mpi4py.MPI", exc_type=(ImportError, RuntimeError))
    calls = []
    library = SimpleNamespace(synchronize=lambda: calls.append("synchronised"))
    processes = import_module("mlp_xp._processes").Processes(MPI.COMM_SELF)
    reduction = reductions._CudaAwareReduction(processes, library)
    buffer = torch.arange(10, dtype=getattr(torch, dtype))
    buffer[-2:] = 0.0
    assert reduction(buffer, True, False) == (True, False)
    assert buffer.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1.0, 0.0]
    assert calls == ["synchronised"]


@on("cupy", "torch_cuda")
def test_nccl_adds_up_one_process(gpu, monkeypatch):
    library, buffer = one_process(gpu)
    nccl = pytest.importorskip("cupy.cuda.nccl")
    if not nccl.available:
        pytest.skip("CuPy does not find NCCL")
    with library.own_stream():
        made = reductions._Nccl(1, nccl.get_unique_id(), 0)
        reduction = reductions._NcclReduction(made, library)
        for news in ((False, False), (True, False), (False, True)):
            buffer[-2:] = 0.0
            assert reduction(buffer, *news) == news
        np.testing.assert_array_equal(to_host(buffer)[:-2], np.arange(1000.0))
        made.communicator.destroy()


@on("cupy", "torch_cuda")
def test_mpi_adds_up_one_process(gpu):
    MPI = pytest.importorskip("mpi4py.MPI", exc_type=(ImportError, RuntimeError))
    library, buffer = one_process(gpu)
    processes = import_module("mlp_xp._processes").Processes(MPI.COMM_SELF)
    ways = [reductions._StagedReduction]
    if not reductions._cuda_mpi_obstacle():
        ways.append(reductions._CudaAwareReduction)
    with library.own_stream():
        for way in ways:
            reduction = way(processes, library)
            for news in ((False, False), (True, False), (False, True)):
                buffer[-2:] = 0.0
                assert reduction(buffer, *news) == news
            np.testing.assert_array_equal(to_host(buffer)[:-2], np.arange(1000.0))


def one_process(gpu):
    buffer = gpu.array(np.append(np.arange(1000.0), [0.0, 0.0]), "float32")
    samples = Samples(placement(X=buffer), buffer)
    library = import_module("mlp_xp._engines.cuda_graph").graph_library(samples.place, samples.xp)
    return library, buffer


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import cuda_stand_in, numpy as np
from test_cuda_processes import NETWORK, data
from mlp_xp import adam, data_parallel, train
with cuda_stand_in.installed():
    cupy = sys.modules["cupy"]
    X, y, weight = data(weighted=True)
    with data_parallel() as processes:
        mine = processes.rows(len(X))
        arrays = [cupy.asarray(array[mine]) for array in (X, y, weight)]
        params = NETWORK.init(0, like=arrays[0])
        result = train(NETWORK, params, *arrays[:2], sample_weight=arrays[2], optimizer=adam(0.01), epochs=5,
                       batch_size=32, seed=0)
    loss = result.history["loss"][-1]
    print(result.history.engine, processes.reduction.split(" (")[0], loss.hex(), sep=";")
"""


@needs_mpi
@pytest.mark.slow
def test_real_processes_train_on_the_stand_in():
    done = mpiexec(2, "-c", PROGRAM.format(tests=str(HERE)))
    assert done.code == 0, done.errors
    one, other = (line.split(";") for line in done.said.splitlines())
    assert one == other
    assert one[:2] == ["cuda_graph", "MPI through host memory"]
    alone = trained(data(weighted=True), optimizer=adam(0.01), epochs=5, batch_size=32)
    assert float.fromhex(one[2]) == pytest.approx(alone.history["loss"][-1], rel=1e-9)
