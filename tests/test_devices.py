"""Precision of matrix products, memory of devices, and functions that copy nothing from the host."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from conftest import may_run_call_by_call, need

import mlp_xp._training.footprint
from mlp_xp import (
    Activation,
    DivergenceError,
    Network,
    OutOfMemoryError,
    adam,
    evaluate,
    gradient_descent,
    train,
)
from mlp_xp._arrays import Placement, computing_namespace, placement, to_host
from mlp_xp._devices import (
    MemoryShortage,
    _torch_precision,
    computing,
    free_bytes,
    is_out_of_memory,
    to_floats,
)
from mlp_xp._engines import make_engine
from mlp_xp._parameters import plain
from mlp_xp._samples import Samples
from mlp_xp._training.footprint import Footprint


def problem(library, n_samples=64, dtype="float32"):
    source = np.random.RandomState(0)
    X = library.array(source.standard_normal((n_samples, 5)), dtype)
    y = library.array(source.uniform(size=(n_samples, 1)) < 0.5, dtype)
    return X, y


NETWORK = Network((5, 32, 1), activation="tanh", loss="binary_cross_entropy")

# Precision.


def test_a_bad_precision_is_refused():
    with pytest.raises(
        ValueError, match=r"`matmul_precision` must be one of \['highest', 'tf32'\], got 'tf16'"
    ):
        Network((2, 1), loss="squared_error", matmul_precision="tf16")


@pytest.mark.parametrize("precision", ["highest", "tf32"])
def test_precision_changes_nothing_on_a_cpu(precision, library):
    X, y = problem(library, dtype="float32")
    network = replace(NETWORK, matmul_precision=precision)
    params = network.init(0, like=X)
    trained = train(network, params, X, y, optimizer=adam(), epochs=5, batch_size=16, seed=0)
    expected = train(NETWORK, params, X, y, optimizer=adam(), epochs=5, batch_size=16, seed=0)
    if library.name in ("numpy", "numpy_read_only", "strict", "torch", "jax"):
        assert trained.history == expected.history
    else:
        np.testing.assert_allclose(trained.history["loss"], expected.history["loss"], rtol=3e-3)


IN_JAX = {"highest": "HIGHEST", "tf32": "HIGH"}


@pytest.mark.parametrize("precision", IN_JAX)
@pytest.mark.parametrize("asked_by_the_process", [None, "bfloat16", "highest"])
def test_jax_computes_with_the_requested_precision(precision, asked_by_the_process, request):
    jax = need("jax", request)
    X, y = jax.numpy.ones((8, 5), "float32"), jax.numpy.ones((8, 1), "float32")
    network = replace(NETWORK, matmul_precision=precision)
    params = network.init(0, like=X)
    with jax.default_matmul_precision(asked_by_the_process):
        programs = [
            jax.jit(network.predict).lower(params, X),
            jax.jit(network.loss_and_gradients).lower(params, X, y),
        ]
        place = placement(X=X)
        samples = Samples(place, X, y)
        state = plain(params), adam().init(place.xp, plain(params))
        with computing(place, precision):
            engine = make_engine(network, adam(), samples, 4, state)
            programs.append(engine.compiled.lower(*engine._arguments([(0.1, np.arange(8))])))
    for program in programs:
        products = [line for line in program.as_text().splitlines() if "dot_general" in line]
        assert len(products) >= 2
        assert all(f"precision = [{IN_JAX[precision]}, {IN_JAX[precision]}]" in line for line in products)


def test_a_training_pins_the_precision_while_it_traces(request):
    jax = need("jax", request)
    seen = []

    def forward(xp, z):
        seen.append(jax.config.jax_default_matmul_precision)
        return z * 1.0, None

    network = Network(
        (5, 3, 1), activation=Activation(forward, lambda xp, delta, _: delta), loss="squared_error"
    )
    X, y = jax.numpy.ones((8, 5)), jax.numpy.ones((8, 1))
    train(network, network.init(0, like=X), X, y, optimizer=adam(), epochs=2, validation_data=(X, y))
    evaluate(network, network.init(0, like=X), X, y)
    assert set(seen) == {"highest"}
    assert len(seen) >= 3


SETUPS = {
    "untouched": lambda torch: None,
    "legacy high": lambda torch: torch.set_float32_matmul_precision("high"),
    "legacy highest": lambda torch: torch.set_float32_matmul_precision("highest"),
    "allowed": lambda torch: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "tf32": lambda torch: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "ieee": lambda torch: setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    "all tf32": lambda torch: setattr(torch.backends, "fp32_precision", "tf32"),
}


def said(read):
    try:
        return read()
    except RuntimeError as error:
        return str(error)[:60]


def precision_state(torch):
    backends = torch.backends
    readers = (
        lambda: backends.cuda.matmul.fp32_precision,
        lambda: backends.fp32_precision,
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
    )
    return [said(read) for read in readers]


@pytest.mark.parametrize("wanted", ["highest", "tf32"])
@pytest.mark.parametrize("setup", SETUPS)
def test_pytorchs_precision_is_restored(wanted, setup, request):
    torch = need("torch", request)
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):
        pytest.skip("this PyTorch has the older interface alone")
    try:
        SETUPS[setup](torch)
        before = precision_state(torch)
        with _torch_precision(wanted):
            assert (products.fp32_precision == "tf32") == (wanted == "tf32")
        assert precision_state(torch) == before
        with pytest.raises(ZeroDivisionError), _torch_precision(wanted):
            raise ZeroDivisionError
        assert precision_state(torch) == before
        # The precision is still inherited.
        torch.backends.fp32_precision = "ieee"
        assert (products.fp32_precision == "ieee") == (
            setup in ("untouched", "all tf32", "ieee", "legacy highest")
        )
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        products.fp32_precision = "none"


@pytest.mark.parametrize("order", [("tf32", "highest"), ("highest", "tf32")])
def test_the_precision_is_restored_after_overlapping_threads(order, request):
    """The context entered first is left first, while the other is still active."""
    torch = need("torch", request)
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):
        pytest.skip("this PyTorch has the older interface alone")
    first, second = map(_torch_precision, order)
    before = precision_state(torch)
    first.__enter__()
    second.__enter__()
    assert (products.fp32_precision == "tf32") == (order[1] == "tf32")
    first.__exit__(None, None, None)
    assert (products.fp32_precision == "tf32") == (order[1] == "tf32")
    second.__exit__(None, None, None)
    assert precision_state(torch) == before


# Numbers beside tensors.


CALLS = {
    "maximum": lambda xp, x: (xp.maximum(x, 0.5), xp.maximum(0.5, x), xp.maximum(x, x * 2)),
    "minimum": lambda xp, x: (xp.minimum(x, 0.5), xp.minimum(0.5, x), xp.minimum(x, x * 2)),
    "where": lambda xp, x: (xp.where(x > 0, x, 0.0), xp.where(x > 0, 1.0, x), xp.where(x > 0, x, x * 2)),
    "logaddexp": lambda xp, x: (xp.logaddexp(x, 0.0), xp.logaddexp(0.0, x), xp.logaddexp(x, x)),
    "hypot": lambda xp, x: (xp.hypot(x, 2.0), xp.hypot(2.0, x)),
    "copysign": lambda xp, x: (xp.copysign(x, -1.0), xp.copysign(1.0, x)),
    "atan2": lambda xp, x: (xp.atan2(x, 2.0), xp.atan2(2.0, x)),
    "less": lambda xp, x: (xp.less(x, 0.5), xp.less(0.5, x), xp.greater_equal(0.5, x)),
    "equal": lambda xp, x: (xp.equal(x, -1.0), xp.not_equal(-1.0, x)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CALLS)
def test_functions_of_tensors_and_numbers_copy_nothing_from_the_host(name, dtype, request, monkeypatch):
    torch = need("torch", request)
    values = [-1.0, -0.0, 0.5, 3.0, float("nan"), float("inf")]
    x = torch.asarray(values, dtype=getattr(torch, dtype))
    place = placement(x=x)
    xp = computing_namespace(place.xp, x)
    with np.errstate(invalid="ignore"):
        expected = CALLS[name](np, np.asarray(values, dtype))

    def refused(*_, **__):
        raise AssertionError("a number that is made into a tensor on the host")

    for maker in ("asarray", "tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, maker, refused)
        monkeypatch.setattr(place.xp, maker, refused, raising=False)
    for found, wanted in zip(CALLS[name](xp, x), expected):
        assert str(found.dtype).removeprefix("torch.") == str(wanted.dtype)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_floats_with_integer_tensors_are_promoted(request):
    torch = need("torch", request)
    x = torch.asarray([1, 2])
    xp = computing_namespace(placement(x=x).xp, x)
    np.testing.assert_array_equal(xp.maximum(x, 1.5), [1.5, 2.0])
    np.testing.assert_array_equal(xp.where(x > 1, x, 0.5), [0.5, 2.0])
    np.testing.assert_array_equal(xp.where(x > 1, 1.0, 0.0), [0.0, 1.0])


def test_one_namespace_for_all_tensors(request):
    torch = need("torch", request)
    xp = placement(x=torch.ones(1)).xp
    one, other = (computing_namespace(xp, torch.ones(n)) for n in (1, 2))
    assert one is other
    assert computing_namespace(np, np.ones(1)) is np


def test_to_floats_of_arrays_and_numbers(library):
    values = [1.5, library.array([2.5], "float32")[0], np.float64(3.5), library.array([4.5], "float32")[0]]
    numbers = to_floats(library.place("float32"), values)
    assert numbers == [1.5, 2.5, 3.5, 4.5]
    assert {type(number) for number in numbers} == {float}
    assert to_floats(library.place(), []) == []
    many = to_floats(library.place(), np.array([0.25, 0.5], dtype=np.float32))
    assert many == [0.25, 0.5]
    assert {type(number) for number in many} == {float}


# Memory.


def test_is_out_of_memory(request):
    def raised(call):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which, depends on the library
            call()
        return caught.value

    assert is_out_of_memory(raised(lambda: np.empty(2**50)))
    wrapped = raised(lambda: (_ for _ in ()).throw(RuntimeError("in a step"))).with_traceback(None)
    assert not is_out_of_memory(wrapped)
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
    assert not is_out_of_memory(None)


def test_jax_and_pytorch_running_out_of_memory(request):
    jax, torch = need("jax", request), need("torch", request)
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED|[Oo]ut of memory") as caught:
        jax.block_until_ready(jax.numpy.zeros((2**45,), "float32"))
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("some other trouble"))


def test_free_memory_of_a_cpu_is_unknown(library):
    if library.name in ("cupy", "torch_cuda", "jax_cuda"):
        assert 0 < free_bytes(library.place()) < 2**42
    else:
        assert free_bytes(library.place()) is None


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 70), (0.5, 30), (0.1, 0)])
def test_free_memory_within_the_share_that_pytorch_may_use(fraction, expected, monkeypatch):
    torch = pytest.importorskip("torch")
    for name, value in {
        "mem_get_info": (60, 100),
        "memory_allocated": 20,
        "memory_reserved": 30,
        "get_per_process_memory_fraction": fraction,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value, raising=False)
    xp = pytest.importorskip("array_api_compat.torch")
    assert free_bytes(Placement(xp, torch.device("cuda:0"), torch.float32)) == expected


@pytest.fixture
def room(monkeypatch):
    """Make devices report this much memory."""

    def has(n_bytes):
        monkeypatch.setattr(mlp_xp._training.footprint, "free_bytes", lambda place: n_bytes)

    return has


def test_a_training_that_does_not_fit_is_refused_before_it_starts(library, room):
    if library.name.startswith("jax"):
        pytest.skip("XLA joins calls: what they take by themselves says nothing")
    X, y = problem(library, n_samples=4096)
    params = NETWORK.init(0, like=X)
    began = []
    settings = {"optimizer": adam(), "epochs": 3, "on_progress": began.append}
    room(300_000)
    with pytest.raises(
        OutOfMemoryError, match="does not hold the training.*before its first epoch"
    ) as caught:
        train(NETWORK, params, X, y, **settings)
    error = caught.value
    assert not began
    assert error.needed > 300_000 == error.free
    assert f"the largest `batch_size` that fits is {error.batch_size}" in str(error)
    assert error.params[0].weight is params[0].weight
    assert (error.epoch, error.history) == (1, [])
    # This batch size fits with a margin, and none that is much larger fits.
    assert len(train(NETWORK, params, X, y, batch_size=error.batch_size, **settings).history) == 3
    with pytest.raises(OutOfMemoryError) as larger:
        train(NETWORK, params, X, y, batch_size=int(1.5 * error.batch_size), **settings)
    assert larger.value.batch_size == error.batch_size
    room(1_000)
    with pytest.raises(OutOfMemoryError, match="no `batch_size` fits") as hopeless:
        train(NETWORK, params, X, y, **settings)
    assert hopeless.value.batch_size == 0


def test_memory_errors_are_memory_errors_and_can_be_pickled():
    error = OutOfMemoryError("none left", 3, (), [], 10, 5, 2)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(one, MemoryError)
        assert (str(one), one.epoch, one.needed, one.free, one.batch_size) == ("none left", 3, 10, 5, 2)
    assert not issubclass(DivergenceError, MemoryError)


def test_text_of_a_memory_shortage():
    words = {
        MemoryShortage(
            3_210_000_000, 1_100_000, 256
        ): "3.21 GB needed, 1.1 MB free; the largest `batch_size` that fits is 256",
        MemoryShortage(999_900, 5, 0): "1000 kB needed, 5 bytes free; no `batch_size` fits",
        MemoryShortage(None, None, None): "an amount not known beforehand needed, an unknown amount free",
    }
    assert {str(shortage): text for shortage, text in words.items()} == {
        text: text for text in words.values()
    }


def greedy(limit):
    """Return an activation that raises a MemoryError in its `limit`-th forward pass."""
    calls = []

    def forward(xp, z):
        calls.append(1)
        if len(calls) >= limit:
            raise MemoryError("no more")
        # Reading a value prevents compilation, so that the function is called in each step.
        return (z * 1.0 if float(z[0, 0]) == float(z[0, 0]) else z), None

    return Activation(forward, lambda xp, delta, _: delta)


@pytest.mark.sampled(4)
@may_run_call_by_call
@pytest.mark.parametrize("observed", [False, True])
def test_running_out_of_memory_keeps_the_trained_parameters(library, observed, room):
    X, y = problem(library, n_samples=40, dtype="float64")
    more = {"callback": lambda history, params: None} if observed else {}
    network = replace(NETWORK, activation=greedy(8))
    params = network.init(0, like=X)
    with pytest.raises(OutOfMemoryError, match="in epoch") as caught:
        train(network, params, X, y, optimizer=gradient_descent(0.1), epochs=50, **more)
    error, n_epochs = caught.value, len(caught.value.history)
    assert 2 <= n_epochs <= 7
    assert error.epoch == n_epochs + 1
    assert isinstance(error.__cause__, MemoryError)
    fine = replace(NETWORK, activation="identity")
    expected = train(fine, params, X, y, optimizer=gradient_descent(0.1), epochs=n_epochs)
    np.testing.assert_allclose(error.history["loss"], expected.history["loss"], rtol=1e-12)
    for one, other in zip(error.params, expected.params):
        np.testing.assert_allclose(to_host(one.weight), to_host(other.weight), rtol=1e-10)


def test_a_memory_error_names_its_source():
    def fails(history, params):
        raise MemoryError("mine")

    X = np.ones((8, 5))
    with pytest.raises(OutOfMemoryError, match=r"memory ran out in epoch 1 \(MemoryError: mine\)$"):
        train(NETWORK, NETWORK.init(0, like=X), X, X[:, :1], optimizer=adam(), epochs=2, callback=fails)


def test_a_part_of_a_history_knows_the_engine():
    X = np.ones((8, 5))
    history = train(NETWORK, NETWORK.init(0, like=X), X, X[:, :1], optimizer=adam(), epochs=3).history
    assert history[:2].engine == history.engine == "compiled"


def test_an_out_of_memory_error_keeps_no_arrays_alive(library):
    """An error that is kept does not keep the arrays alive that the failed step allocated."""
    import gc
    import weakref

    held = []

    class Marked:
        pass

    def forward(xp, z):
        mark = Marked()
        held.append(weakref.ref(mark))
        raise MemoryError("no more")

    X, y = problem(library, n_samples=40)
    network = replace(NETWORK, activation=Activation(forward, lambda xp, delta, _: delta))
    with pytest.raises(OutOfMemoryError) as caught:
        train(network, network.init(0, like=X), X, y, optimizer=adam(), epochs=2)
    gc.collect()
    assert held
    # Recording or tracing the step fails first, and the frames are freed with those errors.
    assert all(mark() is None for mark in held)
    assert caught.value.history == []


@pytest.mark.parametrize("optimizer", [gradient_descent(0.1), adam()])
def test_a_footprint_grows_with_the_batch_by_the_size_of_a_row(optimizer):
    X = np.ones((1000, 20))
    network = Network((20, 50, 30, 3), activation="relu", loss="squared_error")
    params = plain(network.init(0, like=X))
    samples = Samples(placement(X=X), X, np.ones((1000, 3)))
    footprint = Footprint(network, optimizer, samples, (params, optimizer.init(np, params)), epochs=2)
    few, more = footprint.bytes_needed(100), footprint.bytes_needed(600)
    per_row = (more - few) / 500 / 8
    # Two times the batch; at least the activations of both hidden layers, at most ten times the widest.
    assert 2 * 23 + 80 <= per_row <= 2 * 23 + 500
    once = Footprint(network, optimizer, samples, (params, optimizer.init(np, params)), epochs=1)
    n_parameters = sum(array.size for layer in params for array in layer)
    n_state = n_parameters * (3 if len(optimizer.init(np, params)) else 1)
    assert few - once.bytes_needed(100) == 8 * n_state


def test_a_step_that_cannot_be_recorded_has_no_footprint():
    network = replace(NETWORK, activation=greedy(100))
    X = np.ones((10, 5))
    params = plain(network.init(0, like=X))
    samples = Samples(placement(X=X), X, np.ones((10, 1)))
    footprint = Footprint(network, gradient_descent(0.1), samples, (params, ()), epochs=2)
    assert footprint.bytes_needed(5) is None
    assert footprint.shortage_of(5) is None
