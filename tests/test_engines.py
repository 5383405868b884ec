"""The interface of engines, and the compilation of steps by JAX."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import need

from mlp_xp import (
    Activation,
    DivergenceError,
    EarlyStopping,
    Network,
    Optimizer,
    TrainingInterruptedWarning,
    adam,
    cosine,
    decoupled_weight_decay,
    gradient_descent,
    momentum,
    step_decay,
    train,
)
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import placement
from mlp_xp._engines import make_engine, make_step
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._losses import LOSSES
from mlp_xp._parameters import flatten, plain
from mlp_xp._samples import Samples
from mlp_xp.datasets import planar

OPTIMIZERS = {"gradient_descent": gradient_descent(0.1), "momentum": momentum(0.1), "adam": adam(0.01)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_compiled_step_gives_the_same_numbers(optimizer, request):
    jax = need("jax", request)
    optimizer = OPTIMIZERS[optimizer]
    data = planar()
    X, y = data.X, data.y[:, None].astype(float)
    network = Network((2, 5, 1), activation="silu", loss="binary_cross_entropy", alpha=0.01)
    params = plain(network.init(0, like=X))
    expected, _ = train(network, params, X, y, optimizer=optimizer, epochs=20)

    compilations = []
    step = make_step(network, optimizer, jax.numpy)

    def traced(*arguments):
        compilations.append(1)
        return step(*arguments)

    compiled = jax.jit(traced)
    params, X, y = jax.tree.map(jax.numpy.asarray, (params, X, y))
    state = optimizer.init(jax.numpy, params)
    for _ in range(20):
        params, state, loss = compiled(params, state, X, y, None, optimizer.learning_rate)
    for ours, theirs in zip(flatten(params), flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert len(compilations) == 1


def test_an_engine_keeps_its_state_and_counts_epochs(library):
    data = planar()
    X, y = library.array(data.X), library.array(data.y[:, None].astype(float))
    network = Network((2, 3, 1), activation="tanh", loss="binary_cross_entropy")
    params = plain(network.init(0, like=X))
    optimizer = adam(0.01)
    state = (params, optimizer.init(library.xp, params))
    order = np.random.RandomState(0).permutation(400)
    engine = make_engine(network, optimizer, Samples(library.place(), X, y), 150, state)
    engine.run([(0.01, order), (0.02, order[::-1].copy())])
    engine.run([(0.01, None)])
    assert len(engine.losses) == 3
    assert engine.state[1].steps == 9
    losses = [float(loss) for loss in engine.losses]
    assert losses[0] > losses[1] > losses[2]


# Compiled epochs: results as NumPy's, with one compilation


def problem(activation="tanh", loss="squared_error", n_samples=23, **network):
    random = np.random.RandomState(1)
    X = random.standard_normal((n_samples, 3))
    y = np.eye(2)[random.randint(2, size=n_samples)]
    network = Network((3, 4, 2), activation=activation, loss=loss, **network)
    return network, network.init(0, like=X), X, y


def on(jax, tree):
    return jax.tree.map(jax.numpy.asarray, tree)


def train_on_both(jax, monkeypatch, network, params, X, y, **settings):
    """Train with NumPy, and with JAX while the eager engine is disabled."""
    expected = train(network, params, X, y, **settings)
    monkeypatch.setattr(EagerEngine, "run", None)
    settings |= {
        name: on(jax, settings[name]) for name in ("sample_weight", "validation_data") if name in settings
    }
    return train(network, on(jax, params), *on(jax, (X, y)), **settings), expected


def assert_equal_trainings(one, other):
    assert one.history["epoch"] == other.history["epoch"]
    for column in other.history[0]:
        np.testing.assert_allclose(one.history[column], other.history[column], rtol=1e-10)
    assert_equal_params(one.params, other.params)


def assert_equal_params(params, others):
    for one, other in zip(flatten(params), flatten(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


BATCHES = [
    {},
    {"batch_size": 7, "seed": 0},
    {"batch_size": 5, "shuffle": False},
    {"batch_size": 23, "sample_weight": np.linspace(0.0, 2.0, 23)},
    {"batch_size": 10, "seed": 1, "sample_weight": np.linspace(0.0, 2.0, 23)},
]
UPDATES = [
    gradient_descent(0.1),
    momentum(0.05, nesterovs_momentum=True),
    adam(0.02),
    decoupled_weight_decay(momentum(0.05), 0.1),
]


# 4 and 5 have no common factor: each optimizer meets each kind of batches.
@pytest.mark.parametrize("case", range(20))
def test_compiled_epochs_are_numpys(case, request, monkeypatch):
    jax = need("jax", request)
    network, params, X, y = problem(
        activation=list(ACTIVATIONS)[case % 8],
        loss=list(LOSSES)[case // 5],
        alpha=0.05 * (case % 3),
    )
    settings = {"optimizer": UPDATES[case % 4], "epochs": 70, **BATCHES[case % 5]}
    assert_equal_trainings(*train_on_both(jax, monkeypatch, network, params, X, y, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": adam(0.05), "early_stopping": EarlyStopping("loss", tol=1e-3, restore_best=False)},
        {
            "optimizer": gradient_descent(0.5),
            "early_stopping": EarlyStopping(
                "loss", n_iter_no_change=3, tol=1e-2, restore_best=False, divide_rate=5.0, min_rate=1e-3
            ),
            "batch_size": 10,
            "seed": 0,
        },
        {"optimizer": adam(0.1), "early_stopping": EarlyStopping(), "validation_data": problem()[2:]},
        {"optimizer": momentum(cosine(0.1, epochs=100)), "batch_size": 10, "seed": 3},
        {"optimizer": gradient_descent(step_decay(0.5, every=7, factor=0.7))},
    ],
    ids=["patience", "adaptive", "validation", "cosine", "step_decay"],
)
def test_compiled_epochs_stop_and_change_rates_as_numpys_do(settings, request, monkeypatch):
    jax = need("jax", request)
    network, params, X, y = problem()
    if "validation_data" in settings:
        X, y = X[:12], y[:12]
    compiled, expected = train_on_both(jax, monkeypatch, network, params, X, y, epochs=300, **settings)
    assert len(expected.history) < 300 or "early_stopping" not in settings
    assert_equal_trainings(compiled, expected)


def test_compiled_epochs_diverge_where_numpys_do(request, monkeypatch):
    jax = need("jax", request)
    network, params, X, y = problem(activation="identity")
    settings = {"optimizer": gradient_descent(1.5), "epochs": 500, "batch_size": 6, "seed": 0}
    with pytest.raises(DivergenceError) as expected:
        train(network, params, X, y, **settings)
    monkeypatch.setattr(EagerEngine, "run", None)
    with pytest.raises(DivergenceError) as caught:
        train(network, on(jax, params), *on(jax, (X, y)), **settings)
    assert caught.value.epoch == expected.value.epoch > 2
    np.testing.assert_allclose(caught.value.history["loss"], expected.value.history["loss"], rtol=1e-8)
    for ours, theirs in zip(flatten(caught.value.params), flatten(expected.value.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.fixture
def engines(request, monkeypatch):
    """A compiled engine that needs many calls, NumPy's one for the same samples, and epochs for both."""
    jax = need("jax", request)
    from mlp_xp._engines import jax as jax_engine

    monkeypatch.setattr(jax_engine, "MAX_EPOCHS_PER_CALL", 4)
    network, params, X, y = problem()
    made = []
    for xp, arrays in ((jax.numpy, on(jax, (plain(params), X, y))), (np, (plain(params), X, y))):
        params, X, y = arrays
        samples = Samples(placement(X=X), X, y, rows=np.arange(1, 21))
        made.append(make_engine(network, adam(), samples, 6, (params, adam().init(xp, params))))
    assert type(made[0]) is jax_engine.JaxEngine
    random = np.random.RandomState(0)
    return *made, [(0.01 * epoch, random.permutation(20)) for epoch in range(30)]


def assert_equal_engines(compiled, other):
    np.testing.assert_allclose(compiled.losses, other.losses, rtol=1e-10)
    assert type(compiled.state[1].steps) is int
    assert compiled.state[1].steps == other.state[1].steps
    assert_equal_params(compiled.state[0], other.state[0])


def test_many_calls_are_one_run(engines):
    compiled, other, epochs = engines
    for run in (epochs[:9], epochs[9:10], epochs[10:]):
        compiled.run(run)
        other.run(run)
    assert len(compiled.losses) == 30
    assert_equal_engines(compiled, other)


def test_an_interrupt_between_calls_keeps_those_before(engines):
    engine, other, epochs = engines
    compiled, calls = engine.compiled, []

    def interrupted(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return compiled(*arguments)

    engine.compiled = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.run(epochs)
    other.run(epochs[:12])
    assert_equal_engines(engine, other)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_in_a_compiled_training_loses_nothing(error, request, monkeypatch):
    jax = need("jax", request)
    from mlp_xp._engines.jax import JaxEngine

    run, calls = JaxEngine.run, []

    def broken(self, epochs):
        if len(calls) == 3:
            raise error("pulled the plug")
        calls.append(len(epochs))
        run(self, epochs)

    network, params, X, y = problem()
    params, X, y = on(jax, (params, X, y))
    monkeypatch.setattr(JaxEngine, "run", broken)
    if error is KeyboardInterrupt:
        with pytest.warns(TrainingInterruptedWarning):
            trained, history = train(network, params, X, y, optimizer=gradient_descent(0.1), epochs=10_000)
    else:
        with pytest.raises(OSError, match="pulled the plug") as caught:
            train(network, params, X, y, optimizer=gradient_descent(0.1), epochs=10_000)
        trained, history = caught.value.params, caught.value.history
    assert len(history) == sum(calls)
    monkeypatch.setattr(JaxEngine, "run", run)
    expected, expected_history = train(
        network, params, X, y, optimizer=gradient_descent(0.1), epochs=len(history)
    )
    assert history == expected_history
    assert_equal_params(trained, expected)


@pytest.fixture(scope="module")
def compilations(request):
    """Record the names of the functions that JAX compiles from now on."""
    jax = need("jax", request)
    names = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    return names


@pytest.mark.parametrize("batches", [{}, {"batch_size": 11, "seed": 0}], ids=["full", "mini"])
def test_a_similar_training_compiles_nothing(batches, compilations, request):
    jax = need("jax", request)
    # Sizes that no other test has.
    network, params, X, y = problem(n_samples=29, activation="elu")
    params, X, y = on(jax, (params, X, y))
    compilations.clear()
    # One call for one epoch, then calls for more epochs, then calls with trained parameters.
    trained, _ = train(network, params, X, y, optimizer=momentum(0.1), epochs=700, **batches)
    assert [name for name in compilations if "run" in name] == ["jit(run)"]
    compilations.clear()
    for epochs, rate in ((3, 0.02), (301, cosine(0.1, epochs=9))):
        network = Network((3, 4, 2), activation="elu", loss="squared_error")
        train(network, trained, X, y, optimizer=momentum(rate), epochs=epochs, **batches)
    # Epochs with a callback use the same function.
    train(network, trained, X, y, optimizer=momentum(0.2), epochs=3, callback=lambda *_: None, **batches)
    assert compilations == []
    # Another optimizer needs another function.
    train(network, trained, X, y, optimizer=momentum(0.1, momentum=0.8), epochs=3, **batches)
    assert compilations == ["jit(run)"]


def test_a_first_training_compiles_one_function(compilations, request):
    jax = need("jax", request)
    network, _, X, y = problem(n_samples=31, activation="silu")
    X, y, sample_weight = on(jax, (X, y, np.ones(31)))
    compilations.clear()
    params = network.init(0, like=X)
    train(network, params, X, y, optimizer=gradient_descent(0.1), epochs=30, sample_weight=sample_weight)
    assert compilations == ["jit(run)"]


def test_a_step_that_cannot_be_compiled_runs_call_by_call(request):
    jax = need("jax", request)

    def forward(xp, z):
        a = xp.tanh(z) if bool(xp.any(z > 0.0)) else xp.zeros_like(z)
        return a, a

    branching = Activation(forward, lambda xp, delta, a: delta * (1.0 - a * a))
    network, params, X, y = problem(activation=branching)
    settings = {"optimizer": gradient_descent(0.1), "epochs": 5}
    expected, history = train(network, params, X, y, **settings)
    trained, trained_history = train(network, on(jax, params), *on(jax, (X, y)), **settings)
    np.testing.assert_allclose(trained_history["loss"], history["loss"], rtol=1e-10)
    assert_equal_params(trained, expected)


def test_errors_in_the_users_functions_are_raised(request):
    jax = need("jax", request)
    wrong = Activation(lambda xp, z: (xp.no_such_function(z), z), lambda xp, delta, kept: delta)
    network, params, X, y = problem(activation=wrong)
    with pytest.raises(AttributeError, match="no_such_function"):
        train(network, on(jax, params), *on(jax, (X, y)), optimizer=adam(), epochs=3)


class Halving:
    """An unhashable update function, with a state."""

    __hash__ = None

    def __eq__(self, other):
        return self is other

    def __call__(self, xp, params, gradients, state, rate):
        scale = rate * state["scale"]
        params = [(w - scale * dw, b - scale * db) for (w, b), (dw, db) in zip(params, gradients)]
        return params, {"scale": state["scale"] * 0.5, "mean": state["mean"]}


def test_an_optimizer_that_cannot_be_hashed_is_compiled_too(request, monkeypatch):
    jax = need("jax", request)
    network, params, X, y = problem()
    optimizer = Optimizer(lambda xp, params: {"scale": 1.0, "mean": None}, Halving(), 0.5)
    settings = {"optimizer": optimizer, "epochs": 12}
    compiled, expected = train_on_both(jax, monkeypatch, network, params, X, y, **settings)
    assert_equal_trainings(compiled, expected)


SINGLE_PRECISION = """
import numpy as np, jax
from mlp_xp import Network, adam, train
from mlp_xp.datasets import planar
from mlp_xp._engines.eager import EagerEngine
data = planar()
X, y = data.X.astype("float32"), data.y[:, None].astype("float32")
network = Network((2, 5, 1), activation="tanh", loss="binary_cross_entropy")
params = network.init(0, like=X)
settings = {"optimizer": adam(0.01), "epochs": 20, "batch_size": 150, "seed": 0}
expected, history = train(network, params, X, y, **settings)
EagerEngine.run = None
params, X, y = jax.tree.map(jax.numpy.asarray, (params, X, y))
trained, trained_history = train(network, params, X, y, **settings)
assert trained[0].weight.dtype == "float32" and not jax.config.jax_enable_x64
np.testing.assert_allclose(trained_history["loss"], history["loss"], rtol=1e-5)
for ours, theirs in zip(trained, expected):
    np.testing.assert_allclose(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)
"""


def test_single_precision_without_x64(request, monkeypatch):
    need("jax", request)
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    done = subprocess.run([sys.executable, "-c", SINGLE_PRECISION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
