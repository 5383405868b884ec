"""Training on CUDA GPUs: on the stand-in, and on real GPUs, which show whether the stand-in is right.

``pytest -m cuda tests/test_cuda.py`` runs what needs a GPU.
"""

import os
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import conftest
import cuda_stand_in
import numpy as np
import pytest
from test_cuda_graph import LAYOUTS, REFUSED, graphs

from mlp_xp import (
    Activation,
    EagerFallbackWarning,
    Network,
    OutOfMemoryError,
    TrainingInterruptedWarning,
    adam,
    decoupled_weight_decay,
    evaluate,
    gradient_descent,
    momentum,
    to_host,
    train,
)
from mlp_xp._arrays import placement
from mlp_xp._compiler import NotRecordableError
from mlp_xp._devices import computing, free_bytes
from mlp_xp._engines import fused_steps, make_engine
from mlp_xp._engines.fused_steps import FusedStep
from mlp_xp._parameters import plain
from mlp_xp._samples import Samples
from mlp_xp._training.footprint import Footprint
from mlp_xp.datasets import planar


class Gpu(NamedTuple):
    """The library that makes arrays on a GPU, and the stand-in's machine."""

    name: str
    library: Any
    machine: Any = None

    def array(self, values, dtype="float64"):
        if self.machine is not None:
            return sys.modules["cupy"].asarray(np.asarray(values, dtype))
        return self.library.array(values, dtype)

    @property
    def module(self):
        return sys.modules[
            {"stand-in": "cupy", "torch_cuda": "torch", "jax_cuda": "jax"}.get(self.name, "cupy")
        ]

    def wait(self):
        if self.name == "torch_cuda":
            self.module.cuda.synchronize()
        elif self.name == "jax_cuda":
            self.module.effects_barrier()
        else:
            self.module.cuda.Device().synchronize()


def on(*names):
    """Run a test on these GPUs; the real ones get the marker `cuda`."""
    marks = {"stand-in": ()}
    params = [pytest.param(name, marks=marks.get(name, (pytest.mark.cuda,))) for name in names]
    return pytest.mark.parametrize("gpu", params, indirect=True)


CUPY = ("stand-in", "cupy")
CAPTURING = (*CUPY, "torch_cuda")
ALL = (*CAPTURING, "jax_cuda")


@pytest.fixture
def gpu(request):
    if request.param == "stand-in":
        with cuda_stand_in.installed() as machine:
            yield Gpu("stand-in", None, machine)
        return
    try:
        library = conftest.LIBRARIES[request.param]()
    except ModuleNotFoundError as error:
        if request.param in conftest.required(request.config):
            raise
        pytest.skip(str(error))
    if request.param == "cupy" and "cupy" not in conftest.required(request.config):
        pytest.importorskip("nvmath")
    yield Gpu(request.param, library)


def two_classes(dtype="float64"):
    """Return 569 points and their classes, which are hard to tell apart for a tenth of them."""
    source = np.random.RandomState(1)
    X = source.standard_normal((569, 30))
    scores = np.tanh(X @ source.standard_normal(30)) + 0.3 * source.standard_normal(569)
    return X.astype(dtype), (scores > 0)[:, None].astype(dtype)


def classifier(network, gpu, data=two_classes, dtype="float64", **settings):
    """Train on the GPU; return what `train` does."""
    X, y = data(dtype) if callable(data) else data
    settings = {"optimizer": adam(0.01), "epochs": 20, "batch_size": 64, "seed": 0, **settings}
    X, y = (X, y) if gpu is None else (gpu.array(X, dtype), gpu.array(y, dtype))
    return train(network, network.init(0, like=X), X, y, **settings)


def assert_same(trained, expected, rtol):
    np.testing.assert_allclose(trained.history["loss"], expected.history["loss"], rtol=rtol, atol=rtol)
    for one, other in zip(trained.params, expected.params, strict=True):
        for array, wanted in zip(one, other, strict=True):
            np.testing.assert_allclose(to_host(array), to_host(wanted), rtol=rtol, atol=rtol)


NETWORK = Network((30, 16, 1), activation="relu", loss="binary_cross_entropy", alpha=1e-3)


@on(*ALL)
def test_it_answers(gpu, record_property):
    X = gpu.array(np.eye(3))
    place = placement(X=X)
    free = free_bytes(place)
    record_property("free_bytes", free)
    record_property("version", str(getattr(gpu.module, "__version__", "")))
    assert free > 2**20
    np.testing.assert_array_equal(to_host(place.xp.matmul(X, X)), np.eye(3))


# Products.


@on(*CUPY)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-12)])
def test_products_of_all_layouts_are_cupys(gpu, dtype, rtol, captured):
    cupy = gpu.module
    cuda = graphs(cupy.cuda.Device())
    product = cuda.namespace("highest").matmul
    sizes = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1)]
    for m, k, n in sizes if gpu.machine else [*sizes, (33, 64, 17), (128, 784, 256)]:
        for left in LAYOUTS:
            for right in LAYOUTS:
                a, b = laid_out(gpu, m, k, left, 0, dtype), laid_out(gpu, k, n, right, 1, dtype)
                expected, results = cupy.matmul(a, b), []
                with cuda.own_stream():
                    if captured:
                        cuda.capture(lambda: results.append(product(a, b)))()  # noqa: B023
                    else:
                        results.append(product(a, b))
                    found = results[0].get()
                error = np.abs(found - expected.get()).max()
                assert error <= rtol * max(1.0, np.abs(expected.get()).max()), (m, k, n, left, right)


def laid_out(gpu, n_rows, n_columns, layout, seed, dtype):
    """Return a matrix on the device in one of `LAYOUTS`."""
    copy = gpu.module.ascontiguousarray
    values = gpu.array(
        np.random.RandomState(seed).standard_normal((2 * n_rows + 1, 2 * n_columns + 3)), dtype
    )
    return {
        "rows": lambda: copy(values[:n_rows, :n_columns]),
        "columns": lambda: copy(values[:n_rows, :n_columns].T).T,
        "part_of_rows": lambda: values[:n_rows, 1 : n_columns + 1],
        "part_of_columns": lambda: copy(values.T).T[1 : n_rows + 1, :n_columns],
        "each_other": lambda: values[: 2 * n_rows : 2, :n_columns],
        "with_gaps": lambda: values[:n_rows, : 2 * n_columns : 2],
        "backwards": lambda: values[:n_rows, :n_columns][::-1],
        "repeated": lambda: gpu.module.broadcast_to(values[:1, :n_columns], (n_rows, n_columns)),
    }[layout]()


@on(*ALL)
@pytest.mark.parametrize("asked_by_the_process", ["highest", "tf32"])
def test_products_have_the_requested_precision(gpu, asked_by_the_process):
    source = np.random.RandomState(0)
    X, weight = source.standard_normal((64, 512)), source.standard_normal((512, 32))
    exact, scale = X @ weight, np.abs(X) @ np.abs(weight)
    errors = {}
    with process_setting(gpu, asked_by_the_process):
        for precision in ("highest", "tf32"):
            network = Network((512, 32), loss="squared_error", matmul_precision=precision)
            params = network.init(0, like=gpu.array(X, "float32"))
            params = (params[0]._replace(weight=gpu.array(weight, "float32")),)
            found = to_host(network.predict(params, gpu.array(X, "float32")))
            errors[precision] = np.max(np.abs(found - exact) / scale)
            # Captured steps see the same factors: one step of gradient descent on targets of 0.
            y = gpu.array(np.zeros(exact.shape), "float32")
            stepped = train(
                network, params, gpu.array(X, "float32"), y, optimizer=gradient_descent(1e-9), epochs=40
            )
            loss = float(np.mean(exact**2) / 2)
            assert abs(stepped.history["loss"][-1] / loss - 1) < 1e-2
            errors[f"{precision} loss"] = abs(stepped.history["loss"][-1] / loss - 1)
    assert errors["highest"] < 1e-6
    assert 3e-6 < errors["tf32"] < 2e-3
    assert errors["highest loss"] < 1e-6 < errors["tf32 loss"]


@contextmanager
def process_setting(gpu, precision):
    """Set the precision of the whole process, as a user may do for other computations."""
    if gpu.name == "torch_cuda":
        gpu.module.set_float32_matmul_precision({"highest": "highest", "tf32": "high"}[precision])
        yield
        gpu.module.set_float32_matmul_precision("highest")
    elif gpu.name == "jax_cuda":
        with gpu.module.default_matmul_precision({"highest": "highest", "tf32": "tensorfloat32"}[precision]):
            yield
    else:
        linalg = gpu.module._core._routines_linalg
        linalg.set_compute_type("float32", {"highest": 1, "tf32": 7}[precision])
        yield
        assert linalg.get_compute_type("float32") == {"highest": 1, "tf32": 7}[precision]
        linalg.set_compute_type("float32", 1)


# Captured trainings.


@on(*ALL)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 1e-3)])
@pytest.mark.parametrize("optimizer", [adam(0.001), gradient_descent(0.05)], ids=["adam", "sgd"])
def test_two_hundred_epochs_end_where_they_do_on_the_cpu(gpu, dtype, rtol, optimizer):
    epochs = 200 if gpu.machine is None else 40
    trained = classifier(NETWORK, gpu, dtype=dtype, optimizer=optimizer, epochs=epochs)
    assert trained.history.engine == ("xla" if gpu.name == "jax_cuda" else "cuda_graph")
    assert_same(trained, classifier(NETWORK, None, dtype=dtype, optimizer=optimizer, epochs=epochs), rtol)


@pytest.fixture
def programs(gpu, monkeypatch, request):
    """Compile steps however few are planned; return the list of their programs, None for calls one by one."""
    if gpu.name == "torch_cuda":
        if "torch_cuda" not in conftest.required(request.config):
            pytest.importorskip("cuda.bindings")
        monkeypatch.setattr(import_module("mlp_xp._engines.torch_graphs"), "MIN_STEPS_TO_COMPILE", 0)
    made = []

    def make_and_list(self, *arguments):
        made.append(make_program(self, *arguments))
        return made[-1]

    make_program = FusedStep._make_program
    monkeypatch.setattr(FusedStep, "_make_program", make_and_list)
    return made


STEPS = {
    "adam": (NETWORK, adam(0.001), 64, "float64"),
    "single": (NETWORK, adam(0.001), None, "float32"),
    "deep": (
        Network((30, 40, 33, 20, 1), activation="gelu", loss="squared_error", alpha=1e-3),
        momentum(0.01, 0.9, nesterovs_momentum=True),
        64,
        "float64",
    ),
    "wide": (
        Network((30, 300, 1), activation="elu", loss="binary_cross_entropy"),
        decoupled_weight_decay(adam(0.001), 0.1),
        None,
        "float64",
    ),
}


@on(*CAPTURING)
@pytest.mark.parametrize("name", STEPS)
def test_steps_are_kernels(gpu, name, programs):
    network, optimizer, batch_size, dtype = STEPS[name]
    settings = {"dtype": dtype, "optimizer": optimizer, "batch_size": batch_size, "epochs": 20}
    trained = classifier(network, gpu, **settings)
    assert trained.history.engine == "cuda_graph"
    # Of batches of 64 and the last one of 57, or of all samples.
    assert [program is not None for program in programs] == [True] * (2 if batch_size else 1)
    assert all(program.has_launched for program in programs)
    assert_same(trained, classifier(network, None, **settings), 1e-3 if dtype == "float32" else 1e-6)


@on("torch_cuda")
def test_training_uses_the_device_of_the_tensors(gpu, programs):
    torch = gpu.module
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    X, y = two_classes()
    tensors = [torch.asarray(array, device="cuda:1") for array in (X, y)]
    settings = {"optimizer": adam(0.01), "epochs": 10, "batch_size": 64, "seed": 0}
    trained = train(NETWORK, NETWORK.init(0, like=tensors[0]), *tensors, **settings)
    assert trained.params[0].weight.device == torch.device("cuda:1")
    assert {program is None for program in programs} == {False}
    assert_same(trained, classifier(NETWORK, None, **settings), 1e-6)
    assert torch.cuda.current_device() == 0


@pytest.mark.slow
@on(*CAPTURING)
def test_a_thousand_replays_under_pressure_are_a_thousand_steps(gpu, programs):
    """Other code allocates, fills with NaN and frees memory of all sizes between steps."""
    source, held = np.random.RandomState(0), []
    xp = placement(X=gpu.array([1.0])).xp

    def press(history, params):
        held.append(xp.full((int(source.randint(1, 20_000)),), float("nan"), **where))
        if len(held) > 5:
            held.pop(int(source.randint(5)))

    where = {} if gpu.name != "torch_cuda" else {"device": gpu.library.device}
    data = planar().X, planar().y[:, None]
    network = Network((2, 4, 1), activation="tanh", loss="binary_cross_entropy")
    settings = {"data": data, "optimizer": gradient_descent(0.5), "epochs": 1000, "batch_size": None}
    trained = classifier(network, gpu, callback=press, **settings)
    assert trained.history.engine == "cuda_graph"
    assert {program is None for program in programs} == {False}
    assert_same(trained, classifier(network, None, **settings), 1e-6)


@on(*CAPTURING)
def test_streams_of_the_callers_are_waited_for(gpu, programs):
    expected = classifier(NETWORK, None)
    for _ in range(2):
        with a_stream(gpu):
            # The stream is still computing the data, and reads the results.
            assert_same(classifier(NETWORK, gpu), expected, 1e-6)
    assert {program is None for program in programs} == {False}


def a_stream(gpu):
    if gpu.name == "torch_cuda":
        return gpu.module.cuda.stream(gpu.module.cuda.Stream())
    return gpu.module.cuda.Stream(non_blocking=True)


@on(*CAPTURING)
def test_threads_train_at_the_same_time(gpu, programs):
    networks = [
        Network((30, width, 1), activation="tanh", loss="binary_cross_entropy") for width in (8, 12, 16)
    ]
    expected = [classifier(network, None) for network in networks]
    results, failures = {}, []

    def work(index):
        try:
            for _ in range(3):
                results[index] = classifier(networks[index], gpu)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(networks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {program is None for program in programs} == {False}
    for index, wanted in enumerate(expected):
        assert results[index].history.engine == "cuda_graph"
        assert_same(results[index], wanted, 1e-6)


@on(*CUPY)
def test_training_uses_the_device_of_the_arrays(gpu):
    cupy = gpu.module
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    X, y = two_classes()
    with cupy.cuda.Device(1):
        Xc, yc = gpu.array(X), gpu.array(y)
    assert cupy.cuda.Device().id == 0
    params = NETWORK.init(0, like=Xc)
    settings = {"optimizer": adam(0.01), "epochs": 10, "batch_size": 64, "seed": 0, "metrics": ["accuracy"]}
    more = {"validation_data": (Xc, yc), **settings}
    trained = train(NETWORK, params, Xc, yc, **more)
    assert trained.params[0].weight.device.id == 1
    host = train(NETWORK, NETWORK.init(0, like=X), X, y, validation_data=(X, y), **settings)
    assert_same(trained, host, 1e-6)
    loss, gradients = NETWORK.loss_and_gradients(params, Xc, yc)
    expected, wanted = NETWORK.loss_and_gradients(NETWORK.init(0, like=X), X, y)
    np.testing.assert_allclose(to_host(loss), expected, rtol=1e-9)
    np.testing.assert_allclose(to_host(gradients[0].weight), wanted[0].weight, rtol=1e-6, atol=1e-9)
    assert NETWORK.predict(params, Xc).device.id == NETWORK.logits(params, Xc).device.id == 1
    assert evaluate(NETWORK, trained.params, Xc, yc, metrics=["accuracy"])["accuracy"] > 0.9
    assert cupy.cuda.Device().id == 0


@on("stand-in", "cupy")
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_estimators_compute_where_the_arrays_are(gpu, solver):
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPClassifier

    cupy = gpu.module
    number = cupy.cuda.runtime.getDeviceCount() - 1
    X, y = two_classes()
    settings = {"solver": solver, "max_iter": 10, "random_state": 0, "early_stopping": solver == "adam"}
    with cupy.cuda.Device(number):
        Xc = gpu.array(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = MLPClassifier((8,), **settings).fit(Xc, y[:, 0])
        host = MLPClassifier((8,), **settings).fit(X, y[:, 0])
    assert model.coefs_[0].device.id == number
    np.testing.assert_allclose(to_host(model.coefs_[0]), host.coefs_[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(to_host(model.predict(Xc)), host.predict(X))
    np.testing.assert_allclose(to_host(model.predict_proba(Xc)), host.predict_proba(X), atol=1e-5)
    # The logarithm of a probability near the rounding error of 1 has few digits.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of those that are 0
        log_proba = to_host(model.predict_log_proba(Xc))
        np.testing.assert_allclose(log_proba, host.predict_log_proba(X), rtol=1e-2, atol=1e-4)
    assert model.score(Xc, y[:, 0]) == pytest.approx(host.score(X, y[:, 0]))
    if solver == "adam":
        assert model.set_params(early_stopping=False).partial_fit(Xc, y[:, 0]).coefs_[0].device.id == number
    np.testing.assert_array_equal(model.to("numpy").predict(X), to_host(model.to("numpy").predict(X)))
    assert cupy.cuda.Device().id == 0


# What the host does meanwhile.


def an_engine(gpu, network, n_rows, batch_size, dtype="float32", epochs=100):
    source = np.random.RandomState(0)
    X = gpu.array(source.standard_normal((n_rows, network.layer_sizes[0])), dtype)
    y = gpu.array(source.uniform(size=(n_rows, 1)) < 0.5, dtype)
    params = plain(network.init(0, like=X))
    optimizer = adam()
    samples = Samples(placement(X=X), X, y)
    state = params, optimizer.init(samples.place.xp, params)
    return samples.place, make_engine(network, optimizer, samples, batch_size, state, epochs)


@on(*CAPTURING)
@pytest.mark.parametrize("batch_size", [32, 256])
def test_epochs_read_nothing(gpu, batch_size, monkeypatch):
    place, engine = an_engine(gpu, NETWORK, 256, batch_size)
    order = np.random.RandomState(0).permutation(256) if batch_size < 256 else None
    with computing(place):
        engine.run([(0.01, order)] * 4)
        before = gpu.machine and gpu.machine.counts.copy()

        def refused(*_, **__):
            raise AssertionError("the host reads")

        if gpu.name == "torch_cuda":
            for name in ("item", "cpu", "numpy", "tolist", "__float__", "__bool__"):
                monkeypatch.setattr(gpu.module.Tensor, name, refused)
        elif gpu.name == "cupy":
            monkeypatch.setattr(gpu.module.ndarray, "get", refused)
        engine.run([(0.01, order)] * 20)
    monkeypatch.undo()
    assert engine.name == "cuda_graph"
    if gpu.machine is not None:
        done = gpu.machine.counts - before
        assert done["replays"] > 0
        assert not done["reads"]
        assert not done["synchronisations"]
        assert not done["pageable uploads"]
    with computing(place):
        assert engine.is_finite()


@pytest.mark.cuda
@pytest.mark.parametrize("gpu", CAPTURING[1:], indirect=True)
def test_the_host_is_done_long_before_the_device(gpu):
    network = Network((1024, 4096, 4096, 1), activation="relu", loss="binary_cross_entropy")
    place, engine = an_engine(gpu, network, 8192, 2048)
    order = np.random.RandomState(0).permutation(8192)
    with computing(place):
        engine.run([(1e-4, order)] * 3)
        gpu.wait()
        start = time.perf_counter()
        engine.run([(1e-4, order)])
        returned = time.perf_counter() - start
        gpu.wait()
        finished = time.perf_counter() - start
    assert engine.name == "cuda_graph"
    assert returned < 0.5 * finished


@on("stand-in")
def test_losses_are_fetched_once_a_run_and_streams_are_made_once(gpu, monkeypatch):
    monkeypatch.setattr("mlp_xp._training.loop.SECONDS_PER_RUN", 60.0)  # 1, 10 and 89 epochs, however slow
    counts = gpu.machine.counts
    classifier(NETWORK, gpu, epochs=100, batch_size=None)
    first = counts.copy()
    assert first["reads"] < 30
    for _ in range(5):
        classifier(NETWORK, gpu, epochs=20)
    assert (counts["streams"], counts["handles"], counts["handles destroyed"]) == (1, 1, 0)
    thread_results = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: thread_results.append(classifier(NETWORK, gpu, epochs=10)))
        thread.start()
        thread.join()
        del thread
    assert len(thread_results) == 3
    # The stream and the handle of a thread that has ended are reused by the next.
    assert counts["streams"] == counts["handles"] == 2


@on("stand-in")
def test_short_trainings_are_not_captured(gpu):
    counts = gpu.machine.counts
    classifier(NETWORK, gpu, epochs=3, batch_size=None)
    classifier(NETWORK, gpu, epochs=1, batch_size=300)
    assert counts["captures"] == counts["streams"] == 0
    trained = classifier(NETWORK, gpu, epochs=11, batch_size=None)
    assert (counts["captures"], counts["replays"], trained.history.engine) == (1, 10, "cuda_graph")


@on("stand-in")
@pytest.mark.parametrize(("epochs", "steps_per_graph"), [(24, 2), (200, 8), (6000, 44), (10**6, 64)])
def test_few_steps_make_short_graphs_and_many_long_ones(gpu, epochs, steps_per_graph):
    place, engine = an_engine(gpu, NETWORK, 16, 16, epochs=epochs)
    counts = gpu.machine.counts
    with computing(place):
        engine.run([(0.01, None)])  # call by call
        engine.run([(0.01, None)] * (7 * steps_per_graph))
    assert (counts["captures"], counts["replays"]) == (1, 7)
    assert len(engine.losses) == 1 + 7 * steps_per_graph


# When something goes wrong.


def _reads(xp, z):
    return (z * 0.5 if float(xp.sum(z)) > 0.0 else z), z


def _reads_backward(xp, delta, z):
    return delta * 0.5 if float(xp.sum(z)) > 0.0 else delta


@on(*CAPTURING)
def test_an_activation_that_reads_runs_call_by_call_and_spoils_nothing(gpu):
    network = Network((30, 8, 1), activation=Activation(_reads, _reads_backward), loss="binary_cross_entropy")
    with pytest.warns(EagerFallbackWarning, match="call by call") as caught:
        trained = classifier(network, gpu)
    assert [warning.category for warning in caught] == [EagerFallbackWarning]
    assert trained.history.engine == "eager"
    assert_same(trained, classifier(network, None), 1e-6)
    again = classifier(NETWORK, gpu)
    assert again.history.engine == "cuda_graph"
    assert_same(again, classifier(NETWORK, None), 1e-6)


@on(*CAPTURING)
def test_a_capture_that_the_library_gives_up_spoils_nothing(gpu):
    """The optimizer branches on its count: the capture fails with an error, although it is valid for CUDA."""
    _, optimizer, why = REFUSED["branches"]
    for _ in range(2):
        with pytest.warns(EagerFallbackWarning, match=f"call by call.*{why}"):
            trained = classifier(NETWORK, gpu, optimizer=optimizer)
        assert trained.history.engine == "eager"
        assert_same(trained, classifier(NETWORK, None, optimizer=optimizer), 1e-6)
        again = classifier(NETWORK, gpu)
        assert again.history.engine == "cuda_graph"
        assert_same(again, classifier(NETWORK, None), 1e-6)


@on(*CUPY)
def test_a_limit_on_memory_does_not_reach_graphs(gpu, monkeypatch):
    cupy = gpu.module
    monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", "20000000")
    monkeypatch.setattr(cuda_stand_in, "DEFAULT_LIMIT", [20_000_000])
    pool = cupy.get_default_memory_pool()

    def press(history, params):
        with pytest.raises(MemoryError):
            cupy.zeros(pool.used_bytes() // 8 + 100_000_000)
        pool.free_all_blocks()

    before = pool.get_limit()
    pool.set_limit(size=pool.used_bytes() + 50_000_000)
    try:
        trained = classifier(NETWORK, gpu, callback=press)
    finally:
        pool.set_limit(size=before)
    assert trained.history.engine == "cuda_graph"
    assert_same(trained, classifier(NETWORK, None), 1e-6)


@on(*CAPTURING)
def test_ctrl_c_between_graphs_keeps_what_was_trained(gpu, monkeypatch):
    name, owner = {"torch_cuda": ("torch_graphs", "TorchGraphs")}.get(gpu.name, ("cupy_graphs", "CupyGraphs"))
    graphs_class = vars(import_module(f"mlp_xp._engines.{name}"))[owner]
    upload, calls = graphs_class.upload, []

    def interrupted(self, values, out):
        calls.append(1)
        if len(calls) == 100:
            raise KeyboardInterrupt
        upload(self, values, out)

    monkeypatch.setattr(graphs_class, "upload", interrupted)
    with pytest.warns(TrainingInterruptedWarning, match="interrupted after"):
        trained = classifier(NETWORK, gpu, epochs=10_000)
    monkeypatch.undo()
    n_epochs = len(trained.history)
    assert 5 < n_epochs < 1000
    expected = classifier(NETWORK, None, epochs=n_epochs)
    np.testing.assert_allclose(trained.history["loss"], expected.history["loss"], rtol=1e-6)
    assert all(np.isfinite(to_host(layer.weight)).all() for layer in trained.params)
    assert_same(classifier(NETWORK, gpu), classifier(NETWORK, None), 1e-6)


@on(*ALL)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_process_that_forks_after_a_training_goes_on(gpu):
    expected = classifier(NETWORK, None, epochs=2)
    classifier(NETWORK, gpu)
    child = os.fork()
    if not child:
        status = 1
        try:
            assert_same(classifier(NETWORK, None, epochs=2), expected, 1e-12)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert_same(classifier(NETWORK, gpu), classifier(NETWORK, None), 1e-6)


# Memory.


def wide(gpu, n_rows=None):
    """Return data and a network that need more memory than there is, with all samples as one batch."""
    free = free_bytes(placement(X=gpu.array([1.0])))
    width = 2**15 if gpu.machine is None else 2**9
    n_rows = n_rows or free // (4 * width)
    X, y = gpu.array(np.ones((n_rows, 4)), "float32"), gpu.array(np.ones((n_rows, 1)), "float32")
    return X, y, Network((4, width, 1), activation="relu", loss="binary_cross_entropy")


SMALL = 2**25 + 2**24
"""Memory of a stand-in in bytes: 1.5 times the workspace of cuBLAS."""


@contextmanager
def with_little_memory(gpu):
    if gpu.machine is None:
        yield gpu
        return
    gpu.machine.total = [SMALL] * 2
    yield gpu


@on(*CAPTURING)
def test_a_batch_that_does_not_fit_is_refused_and_the_advised_one_fits(gpu):
    with with_little_memory(gpu):
        classifier(NETWORK, gpu)  # what libraries keep is there
        X, y, network = wide(gpu)
        params = network.init(0, like=X)
        before = free_bytes(placement(X=X))
        with pytest.raises(OutOfMemoryError, match="before its first epoch") as caught:
            train(network, params, X, y, optimizer=adam(), epochs=2)
        error = caught.value
        assert error.needed > error.free
        assert 0 < error.batch_size < X.shape[0]
        assert free_bytes(placement(X=X)) >= before
        history = train(
            network, params, X, y, optimizer=adam(), epochs=2, batch_size=error.batch_size, shuffle=False
        ).history
        assert len(history) == 2


@on(*CAPTURING)
@pytest.mark.filterwarnings("ignore::mlp_xp.EagerFallbackWarning")
def test_memory_is_freed_after_running_out_in_a_step(gpu):
    """The activation cannot be recorded, so that the memory needed is not known beforehand."""
    with with_little_memory(gpu):
        free = free_bytes(placement(X=gpu.array([1.0])))

        def forward(xp, z):
            if float(z[0, 0]) == float(z[0, 0]):
                kept.append(xp.full((free // 16,), 1.0, **where))
            return z * 1.0, None

        kept = []
        where = (
            {} if gpu.name != "torch_cuda" else {"device": gpu.library.device, "dtype": gpu.module.float64}
        )
        network = Network(
            (30, 4, 1), activation=Activation(forward, lambda xp, d, _: d), loss="squared_error"
        )
        classifier(NETWORK, gpu)
        place = placement(X=gpu.array([1.0]))
        before = free_bytes(place)
        with pytest.raises(OutOfMemoryError) as caught:
            classifier(network, gpu, batch_size=None)
        kept.clear()
        assert caught.value.batch_size is None
        assert isinstance(caught.value.__cause__, (MemoryError, RuntimeError))
        del caught
        assert free_bytes(place) >= 0.99 * before
        assert_same(classifier(NETWORK, gpu), classifier(NETWORK, None), 1e-6)


@on("stand-in")
def test_an_estimator_that_runs_out_of_memory_is_unchanged(gpu):
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPRegressor

    with with_little_memory(gpu):
        X, y, _ = wide(gpu)
        model = MLPRegressor(hidden_layer_sizes=(2**9,), batch_size=len(X), max_iter=2)
        with pytest.raises(OutOfMemoryError):
            model.fit(X, y)
        assert not hasattr(model, "coefs_")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.set_params(batch_size=16).fit(X[:64], y[:64])
        coefs, state = model.coefs_, model.loss_curve_
        with pytest.raises(OutOfMemoryError):
            model.set_params(batch_size=len(X), warm_start=True).fit(X, y)
        assert model.coefs_ is coefs
        assert model.loss_curve_ is state


@on("stand-in")
def test_the_advised_batch_size_works_as_documented(gpu):
    """The data is on the host, and the error is still referenced."""
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPRegressor

    classifier(NETWORK, gpu)  # what libraries keep is there
    gpu.machine.total = [SMALL] * 2
    X = np.random.RandomState(0).standard_normal((100_000, 8)).astype("float32")
    model = MLPRegressor(hidden_layer_sizes=(64,), batch_size=len(X), max_iter=2, backend="cupy")
    with pytest.raises(OutOfMemoryError) as caught:
        model.fit(X, X[:, 0])
    assert caught.value.batch_size
    # The error keeps none of the data alive on the device; only the workspace of cuBLAS may be left there.
    assert gpu.machine.default_pool.used_bytes() <= 2**25 + 2**16
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.set_params(batch_size=caught.value.batch_size).fit(X, X[:, 0])
    assert len(model.loss_curve_) == 2


@on("stand-in")
def test_out_of_memory_is_raised_even_if_no_memory_can_be_freed(gpu, monkeypatch):
    """There is not even enough memory to check the trained parameters."""
    trained = classifier(NETWORK, gpu, epochs=3, batch_size=None)
    kept = []

    def full(history, params):
        if len(history) == 2:
            gpu.machine.total = [gpu.machine.used[0]] * 2
            monkeypatch.setattr(gpu.machine.default_pool, "free_all_blocks", lambda: None)
            kept.append(gpu.module.empty((10**6,)))

    with pytest.raises(OutOfMemoryError, match="memory ran out in epoch") as caught:
        classifier(NETWORK, gpu, epochs=5, batch_size=None, callback=full)
    assert len(caught.value.history) == 2
    np.testing.assert_allclose(caught.value.history["loss"], trained.history["loss"][:2])
    assert np.isfinite(to_host(caught.value.params[0].weight)).all()


@on("stand-in")
def test_integer_samples_are_not_cast_as_a_whole(gpu):
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPClassifier

    classifier(NETWORK, gpu)  # what libraries keep is there
    gpu.machine.total = [SMALL] * 2
    X = np.random.RandomState(0).randint(256, size=(5000, 1000)).astype("uint8")  # 5 MB, 40 in float64
    model = MLPClassifier(hidden_layer_sizes=(4,), max_iter=2, batch_size=50, backend="cupy")
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(X, X[:, 0] > 127)
    assert len(model.loss_curve_) == 2


@on("stand-in")
def test_memory_of_a_thread_that_trains_is_not_freed(gpu, monkeypatch):
    """The finalizer of one engine runs while another engine starts."""
    cuda, module = graphs(), import_module("mlp_xp._engines.cupy_graphs")
    cuda.retain()

    class Lock:
        def acquire(self, blocking):
            cuda.n_engines += 1  # another thread was faster
            return True

        def release(self):
            cuda.n_engines -= 1

    with cuda.own_stream(), cuda.graph_pool():
        gpu.module.empty((1000,))
    before = cuda.pool.total_bytes()
    assert before
    monkeypatch.setattr(module, "CAPTURE_LOCK", Lock())
    cuda.release()
    assert cuda.pool.total_bytes() == before
    monkeypatch.undo()
    cuda.free_unused()
    assert not cuda.pool.total_bytes()


@on(*CAPTURING)
def test_metrics_of_the_users_own_may_be_any_numbers(gpu):
    def host_array(y, predictions):
        return np.array(0.5)

    def device_array(y, predictions):
        return y[0, 0] * 0.0 + 7.0

    def integer(y, predictions):
        return 2**40

    trained = classifier(NETWORK, gpu, dtype="float32", metrics=[host_array, device_array, integer], epochs=2)
    last = trained.history[-1]
    assert (last["host_array"], last["device_array"], last["integer"]) == (0.5, 7.0, 2.0**40)


@pytest.mark.sampled(2)
@on("stand-in")
@pytest.mark.parametrize("batch_size", [None, 64])
def test_an_interrupt_at_any_line_leaves_whole_steps(gpu, batch_size):
    """After Ctrl-C at any line of the engine, parameters and losses are of the same epochs."""
    import signal

    names = ("cuda_graph", "graph_state", "step_numbers", "capture")
    engine_files = {import_module(f"mlp_xp._engines.{name}").__file__ for name in names}
    working = ("_run", "_store", "copy_into", "with_", "_capture", "steps", "exclusive", "_graph", "method")
    expected = classifier(NETWORK, None, epochs=40, batch_size=batch_size)
    for at in range(40, 1600, 170):
        lines = [0]

        def trace(frame, event, argument, lines=lines, at=at):
            if frame.f_code.co_filename in engine_files and frame.f_code.co_name.startswith(working):
                lines[0] += 1
                if lines[0] == at:
                    signal.raise_signal(signal.SIGINT)
            return trace

        before = sys.gettrace()
        try:
            sys.settrace(trace)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TrainingInterruptedWarning)
                trained = classifier(NETWORK, gpu, epochs=40, batch_size=batch_size)
        except KeyboardInterrupt:  # before the training began
            continue
        finally:
            sys.settrace(before)
        n_epochs = len(trained.history)
        np.testing.assert_allclose(trained.history["loss"], expected.history["loss"][:n_epochs], rtol=1e-9)
        if batch_size is None:
            assert_same(trained, classifier(NETWORK, None, epochs=n_epochs, batch_size=None), 1e-9)
        else:
            assert all(np.isfinite(to_host(layer.weight)).all() for layer in trained.params)


@pytest.mark.sampled(3)
@on("stand-in")
@pytest.mark.parametrize("batch_size", [100, 1000])
@pytest.mark.parametrize(
    ("activation", "optimizer"),
    [
        ("relu", adam()),
        ("gelu", adam()),
        ("logistic", adam()),
        ("elu", gradient_descent(1e-5)),
        ("gelu", gradient_descent(1e-5)),
    ],
    ids=["relu-adam", "gelu-adam", "logistic-adam", "elu-sgd", "gelu-sgd"],
)
def test_a_footprint_is_the_memory_that_a_training_takes(gpu, activation, optimizer, batch_size):
    needed, taken = needed_and_taken(gpu, activation, optimizer, batch_size)
    assert 0.85 * taken <= needed <= 1.05 * taken


@on("stand-in")
@pytest.mark.parametrize("batch_size", [100, 1000])
def test_the_footprint_of_steps_call_by_call(gpu, batch_size, monkeypatch):
    def refuse(*_):
        raise NotRecordableError

    monkeypatch.setattr(fused_steps, "_compile", refuse)
    needed, taken = needed_and_taken(gpu, "gelu", adam(), batch_size)
    assert 0.75 * taken <= needed <= 1.3 * taken


def needed_and_taken(gpu, activation, optimizer, batch_size):
    X, y = gpu.array(np.ones((1000, 60)), "float32"), gpu.array(np.ones((1000, 1)), "float32")
    network = Network((60, 200, 100, 1), activation=activation, loss="squared_error")
    params = network.init(0, like=X)
    samples = Samples(placement(X=X), X, y)
    state = plain(params), optimizer.init(samples.place.xp, plain(params))
    needed = Footprint(network, optimizer, samples, state, epochs=6).bytes_needed(batch_size)
    del state
    cuda = graphs()
    here = gpu.machine.default_pool.used_bytes()
    gpu.machine.default_pool.peak = cuda.pool.peak = 0
    train(network, params, X, y, optimizer=optimizer, epochs=6, batch_size=batch_size, shuffle=False)
    return needed, gpu.machine.default_pool.peak - here + cuda.pool.peak


@on("stand-in")
def test_copies_of_the_state_use_memory_that_is_free_again(gpu):
    X, y = gpu.array(np.ones((64, 200)), "float32"), gpu.array(np.ones((64, 1)), "float32")
    network = Network((200, 300, 1), loss="squared_error")
    params = network.init(0, like=X)
    n_bytes = 4 * (200 * 300 + 300 + 300 + 1)
    graphs()  # with cuBLAS's workspace
    before = gpu.machine.used[0]
    train(network, params, X, y, optimizer=adam(1e-4), epochs=10, batch_size=16, shuffle=False)
    # Adam's state is three times the parameters: in the engine, and in the copy of the last finite state.
    # The batches, gradients and activations of this network are smaller than its parameters.
    assert 6 * n_bytes < gpu.machine.peak[0] - before < 7.7 * n_bytes


# On the whole.


@on("stand-in")
def test_weights_are_copied_once_for_predictions(gpu):
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPRegressor

    source = np.random.RandomState(0)
    X = source.standard_normal((50, 4))
    model = MLPRegressor(hidden_layer_sizes=(8,), max_iter=5, tol=0.0, backend="auto", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.fit(X, X[:, 0])
    expected = model.predict(X)
    counts = gpu.machine.counts
    before = counts.copy()
    for _ in range(5):
        np.testing.assert_array_equal(model.predict(X), expected)
    done = counts - before
    assert done["arrays from the host"] == 5  # X, and X alone
    assert not done["properties"]
    model.coefs_[0][0, 0] += 1.0  # as users may
    assert not np.array_equal(model.predict(X), expected)
    model.coefs_[0][0, 0] -= 1.0
    np.testing.assert_allclose(model.predict(X), expected)


@on("stand-in")
def test_the_command_says_what_it_runs_on(gpu, capsys, monkeypatch):
    pytest.importorskip("polars")
    pytest.importorskip("safetensors")
    from mlp_xp._cli import main

    arguments = ["train", "breast-cancer", "--networks", "1", "--hidden", "4", "--epochs", "5"]
    arguments += ["--backend", "auto"]
    assert main([*arguments, "--matmul-precision", "tf32"]) == 0
    said = capsys.readouterr()
    assert "Training on CuPy" in said.out
    assert "in float32, TF32 in products (a CUDA GPU was found" in said.out
    assert "call by call" not in said.err
    monkeypatch.setitem(sys.modules, "nvmath", None)
    vars(vars(import_module("mlp_xp._engines.cupy_graphs"))["_THREAD_LOCAL"]).clear()
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "mlp-xp: training runs call by call" in " ".join(said.err.split())
    assert "pip install nvmath-python" in " ".join(said.err.split())
    assert main([*arguments, "--json"]) == 0
    assert '"engine": "eager"' in capsys.readouterr().out


@on("stand-in", "cupy", "torch_cuda", "jax_cuda")
def test_model_files_go_from_the_gpu_to_the_host_and_back(gpu, tmp_path):
    pytest.importorskip("safetensors")
    from mlp_xp import load_model, save_model

    trained = classifier(NETWORK, gpu, dtype="float32")
    save_model(tmp_path / "model.safetensors", (NETWORK, trained.params))
    network, params = load_model(tmp_path / "model.safetensors")
    backend = {"torch_cuda": "torch", "jax_cuda": "jax"}.get(gpu.name, "cupy")
    _, back = load_model(tmp_path / "model.safetensors", backend=backend)
    assert network == NETWORK
    for one, host, there in zip(trained.params, params, back, strict=True):
        np.testing.assert_array_equal(to_host(one.weight), host.weight)
        np.testing.assert_array_equal(to_host(there.weight), host.weight)
    assert placement(there=back[0].weight).same_as(placement(one=trained.params[0].weight))
