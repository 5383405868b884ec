"""Compiled loops: what they compute, when they are chosen, and the cache that they are kept in.

Most tests run the generated source by Python, which needs no Numba and no time to compile.
"""

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import numpy as np
import pytest
from conftest import need
from test_compiler import OPTIMIZERS, assert_equal_engines, both_engines, samples_of

from mlp_xp import (
    Activation,
    EarlyStopping,
    Network,
    Optimizer,
    TrainingInterruptedWarning,
    adam,
    datasets,
    decoupled_weight_decay,
    gradient_descent,
    momentum,
    train,
)
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import placement, quiet_floating_point
from mlp_xp._compiler import loop_programs
from mlp_xp._compiler.trace import ArraySpec
from mlp_xp._engines import compiled_loops, make_engine, numba_functions
from mlp_xp._engines import loops as choice
from mlp_xp._engines.recordable import StepSpec, compile_step
from mlp_xp._losses import LOSSES
from mlp_xp._parameters import leaves, plain
from mlp_xp._samples import Samples

KINDS = ("step", "epochs")


def by_python(source):
    """Return a program's functions as they are, not compiled."""
    names = dict.fromkeys(("compiled", "inlined"), lambda function: function)
    exec(numba_functions.HEADER + source.text, names)
    return {name: names[name] for name, _ in source.signatures}


@pytest.fixture
def interpreted(monkeypatch):
    """Run all trainings by loops of one kind, a few elements as if they were many; return how to set it."""
    monkeypatch.setattr(choice, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(choice, "can_compile", lambda: True)
    monkeypatch.setattr(compiled_loops, "compile_functions", by_python)
    monkeypatch.setattr(compiled_loops, "compile_step", compile_step.__wrapped__)
    for name in ("MIN_ELEMENTS_OF_A_CALL", "MIN_ELEMENTS_TO_SUM_BY_A_CALL", "MIN_ELEMENTS_TO_DIVIDE"):
        monkeypatch.setattr(loop_programs, name, 12)
    monkeypatch.setattr(loop_programs, "MAX_CALLS_IN_EPOCHS", 100)
    monkeypatch.setattr(numba_functions, "MIN_ELEMENTS_OF_A_PART", 5)
    with ThreadPoolExecutor(2) as executor:
        monkeypatch.setattr(numba_functions, "_team", numba_functions._Team(os.getpid(), 3, executor))
        yield lambda kind: monkeypatch.setattr(compiled_loops, "_kind", lambda *_: kind)


def run_both(engines, source, n_samples):
    epochs = [(0.03, None), (0.02, source.permutation(n_samples)), (0.01, source.permutation(n_samples))]
    with quiet_floating_point():
        for engine in engines:
            engine.run(epochs[:1])
            engine.run(epochs[1:])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", range(96))
def test_loops_equal_eager_steps(case, interpreted):
    interpreted(KINDS[case % 2])
    draw, source = random.Random(case), np.random.RandomState(case)
    depth = draw.randint(0, 3)
    sizes = (draw.randint(1, 6), *(draw.randint(1, 7) for _ in range(depth)), draw.randint(1, 3))
    # Every activation and every optimizer is among the cases of each kind.
    activation = [list(ACTIVATIONS)[(case // 2 + layer * 3) % 8] for layer in range(depth)] or "relu"
    network = Network(
        sizes, activation=activation, loss=list(LOSSES)[case // 2 % 4], alpha=draw.choice([0.0, 0.1])
    )
    samples = samples_of(draw, source, network, draw.choice([1, 2, 7, 25]))
    n_samples = len(samples)
    before = [array.copy() for array in (samples.X, samples.y)]
    batch_size = draw.choice([n_samples, (n_samples + 1) // 3 or 1, 5])
    engine, other = both_engines(network, OPTIMIZERS[case // 2 % 6], samples, batch_size, case)
    assert (engine.epochs is None) == (case % 2 == 0)
    run_both((engine, other), source, n_samples)
    assert_equal_engines(engine, other)
    for array, original in zip((samples.X, samples.y), before):
        np.testing.assert_array_equal(array, original)


OWN = {
    "softsign": Activation(
        lambda xp, z: (z / (1.0 + xp.abs(z)), 1.0 + xp.abs(z)), lambda xp, delta, scale: delta / scale**2
    ),
    "masked": Activation(lambda xp, z: (z * (z > 0.0), z > 0.0), lambda xp, delta, mask: delta * mask),
    "bump": Activation(
        lambda xp, z: (xp.where(z > 0.0, z / (1.0 + z * z), xp.expm1(z)), z),
        lambda xp, delta, z: (
            delta * xp.where(z > 0.0, (1.0 - z * z) / (1.0 + z * z) ** 2, xp.exp(xp.minimum(z, 0.0)))
        ),
    ),
    "logical": Activation(
        lambda xp, z: (z * xp.logical_and(z + 2.0, z - 3.0), z),
        lambda xp, delta, z: delta * xp.logical_or(z > 1.0, xp.logical_not(z + 0.5)),
    ),
    "sign": Activation(lambda xp, z: (xp.sign(z * 0.0) + z, z), lambda xp, delta, z: delta * xp.sign(z)),
    # A reduction over the units of a layer, which all of its elements wait for.
    "centred": Activation(
        lambda xp, z: (z - xp.max(z, axis=1, keepdims=True), None), lambda xp, delta, _: delta
    ),
    # There is no loop for its function: it runs by NumPy's calls.
    "asinh": Activation(lambda xp, z: (xp.asinh(z), z), lambda xp, delta, z: delta / xp.sqrt(1.0 + z * z)),
}


@pytest.mark.parametrize(("name", "kind"), list(product(OWN, KINDS)))
def test_a_users_own_activation(name, kind, interpreted):
    interpreted(kind)
    source = np.random.RandomState(0)
    X, y = source.standard_normal((24, 3)), source.standard_normal((24, 2))
    network = Network((3, 5, 4, 2), activation=OWN[name], loss="squared_error")
    engine, other = both_engines(network, adam(), Samples(placement(X=X), X, y), 7)
    run_both((engine, other), source, 24)
    assert (engine.epochs is None) == (kind == "step" or name == "asinh")
    assert_equal_engines(engine, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_elements_in_two_orders(kind, interpreted, monkeypatch):
    """A transpose of another shape is not in memory: where no loop can read it, NumPy copies it."""
    reordered = Activation(
        lambda xp, z: (z * xp.matmul(xp.reshape(z.T, (-1,)), xp.reshape(z, (-1,))), None),
        lambda xp, delta, _: 0.01 * delta,
    )
    X = np.random.RandomState(0).standard_normal((24, 3))
    network = Network((3, 5, 1), activation=reordered, loss="squared_error")
    settings = {"optimizer": adam(), "epochs": 3, "batch_size": 8, "seed": 0}
    interpreted(kind)
    params, history = train(network, network.init(0, like=X), X, X[:, :1], **settings)
    assert history.engine == "compiled"
    monkeypatch.setattr(choice, "MIN_SECONDS", np.inf)
    expected, history = train(network, network.init(0, like=X), X, X[:, :1], **settings)
    assert history.engine == "compiled"
    for ours, theirs in zip(leaves(params), leaves(expected)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_trainings_end_where_they_do_by_numpy(kind, interpreted, monkeypatch):
    """History, early stopping and the best parameters."""
    data = datasets.planar()
    X, y = data.X[::10], data.y[::10, None].astype(float)
    network = Network((2, 4, 1), activation="tanh", loss="binary_cross_entropy")

    def trained():
        return train(
            *(network, network.init(3, like=X), X, y),
            optimizer=adam(0.3),
            epochs=60,
            batch_size=16,
            seed=1,
            metrics=["accuracy"],
            validation_data=(X[::2], y[::2]),
            early_stopping=EarlyStopping("val_loss", n_iter_no_change=3),
        )

    interpreted(kind)
    params, history = trained()
    monkeypatch.setattr(choice, "MIN_SECONDS", np.inf)
    expected, by_numpy = trained()
    for ours, theirs in zip(leaves(params), leaves(expected)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11)
    assert len(history) == len(by_numpy) < 60
    assert history.engine == by_numpy.engine == "compiled"
    np.testing.assert_allclose(
        [list(record.values()) for record in history],
        [list(record.values()) for record in by_numpy],
        rtol=1e-11,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_chain_of_numbers_runs_by_numpy(kind, interpreted):
    def update(xp, params, gradients, state, rate):
        for _ in range(1500):
            rate = rate * 0.999 + 1e-5
        return tuple((w - rate * g, b - rate * d) for (w, b), (g, d) in zip(params, gradients)), state

    interpreted(kind)
    X = np.random.RandomState(0).standard_normal((24, 3))
    network = Network((3, 5, 1), activation="tanh", loss="squared_error")
    optimizer = Optimizer(lambda xp, params: (), update, 0.1)
    engine, other = both_engines(network, optimizer, Samples(placement(X=X), X, X[:, :1]), 8)
    run_both((engine, other), np.random.RandomState(1), 24)
    assert_equal_engines(engine, other)


def test_results_do_not_depend_on_the_number_of_threads(interpreted, monkeypatch):
    interpreted("step")
    states = []
    for n_threads in (1, 2, 3, 7):
        with ThreadPoolExecutor(n_threads) as executor:
            team = numba_functions._Team(os.getpid(), n_threads, executor)
            monkeypatch.setattr(numba_functions, "_team", team)
            X = np.random.RandomState(0).standard_normal((24, 6))
            network = Network((6, 9, 1), activation="silu", loss="squared_error")
            engine, _ = both_engines(network, adam(), Samples(placement(X=X), X, X[:, :1]), 10)
            run_both([engine], np.random.RandomState(1), 24)
            states.append([np.array(leaf) for leaf in leaves(engine.state)])
    for other in states[1:]:
        for one, another in zip(states[0], other):
            np.testing.assert_array_equal(one, another)


# The source.


def program_of(write, sizes, n_rows, optimizer, dtype="float64", alpha=1e-4, **network):
    network = Network(sizes, loss="categorical_cross_entropy", alpha=alpha, **network)
    dtype = np.dtype(dtype)
    params = [(np.zeros((m, n), dtype), np.zeros(n, dtype)) for m, n in pairwise(sizes)]
    batch = ArraySpec((n_rows, sizes[0]), dtype), ArraySpec((n_rows, sizes[-1]), dtype), None
    state = params, optimizer.init(np, params)
    return write(StepSpec.of(network, optimizer, state, batch).trace())


@pytest.mark.parametrize("write", [loop_programs.write_loops, loop_programs.write_epochs])
def test_the_source_depends_on_no_size_and_no_hyperparameter(write):
    one = program_of(write, (64, 100, 10), 200, adam(0.1))
    for other in (
        program_of(write, (784, 90, 7), 128, adam(0.1)),
        program_of(write, (100, 100, 10), 100, adam(0.1), alpha=0.3),
        program_of(write, (64, 100, 10), 200, adam(0.2, beta_1=0.8, beta_2=0.99, epsilon=1e-6)),
    ):
        assert other.loops == one.loops
    assert program_of(write, (64, 9, 10), 200, momentum(0.1)).loops.text != one.loops.text


def test_a_step_of_the_default_network_is_few_loops():
    """Each layer's activation, its derivative and the update of each array: one loop over each."""
    program = program_of(loop_programs.write_loops, (784, 100, 10), 200, adam())
    assert program.source.count("segment") - program.source.count("make(") <= 20
    assert program.source.count("dot(") + program.source.count("matmul(") == 7  # two are sums of squares


# When.


@pytest.fixture
def chosen(monkeypatch):
    """Return the kind of loops that a training gets, without compiling them."""
    monkeypatch.setattr(choice, "MIN_SECONDS", 2.0)
    monkeypatch.setattr(choice, "can_compile", lambda: True)

    def make_nothing(steps, bytes_to_copy):
        kinds.append(compiled_loops._kind(next(iter(steps.values()))))

    monkeypatch.setattr(compiled_loops, "make_loops", make_nothing)
    kinds = []

    def kind_of(sizes, n_samples, batch_size, optimizer, epochs, activation="relu"):
        network = Network(sizes, activation=activation, loss="squared_error")
        X, y = np.zeros((n_samples, sizes[0])), np.zeros((n_samples, sizes[-1]))
        params = plain(network.init(0, like=X))
        state = params, optimizer.init(np, params)
        make_engine(network, optimizer, Samples(placement(X=X), X, y), batch_size, state, epochs)
        return kinds.pop() if kinds else "not asked"

    return kind_of


def test_which_trainings_are_compiled(chosen):
    # As MLPClassifier() on scikit-learn's digits, of a third of a second.
    assert chosen((64, 100, 10), 1797, 200, adam(), 200) == "not asked"
    assert chosen((64, 100, 10), 20_000, 200, adam(), 200) == "step"
    assert chosen((2, 2, 1), 4, 4, gradient_descent(0.1), 150_000, "logistic") == "epochs"
    assert chosen((2, 2, 1), 4, 4, gradient_descent(0.1), 10_000, "logistic") == "not asked"
    # 1,600 times tanh: NumPy computes several at a time.
    assert chosen((2, 4, 1), 400, 400, gradient_descent(0.1), 150_000, "tanh") is None
    # Its updates are part of its products.
    pytest.importorskip("scipy")
    assert chosen((1024, 2048, 2048, 1), 4096, 4096, gradient_descent(0.1), 100) is None


def with_numbers(update, start):
    """Return an optimizer whose state is a number, which each step replaces."""

    def step(xp, params, gradients, state, learning_rate):
        factor, state = update(state, learning_rate)
        new = tuple(
            tuple(parameter - factor * gradient for parameter, gradient in zip(*pair))
            for pair in zip(params, gradients)
        )
        return new, state

    return Optimizer(lambda xp, params: start, step, 0.1)


def test_epochs_are_compiled_only_with_numbers_that_are_as_pythons(chosen):
    def kind_of(optimizer):
        return chosen((2, 2, 1), 4, 4, optimizer, 150_000, "logistic")

    assert kind_of(decoupled_weight_decay(adam(), 0.1)) == "epochs"
    assert kind_of(with_numbers(lambda state, rate: (0.5 * rate + 0.01, state), ())) == "epochs"
    # An integer that becomes a float, one beyond 2**53, a division by zero: by Python.
    for update in (
        lambda state, rate: (rate, state + 0.3),
        lambda state, rate: (rate, 3 * state + 1),
        lambda state, rate: (rate / state, state),
    ):
        assert kind_of(with_numbers(update, 0)) != "epochs"
    assert kind_of(with_numbers(lambda state, rate: (1.0 / rate, state), ())) != "epochs"


def test_deep_networks_are_not_compiled_as_whole_epochs(chosen):
    """The compiler takes too long."""
    assert chosen((4, 4, 4, 1), 12, 12, adam(), 1_000_000) == "epochs"
    assert chosen((4, *[4] * 8, 1), 12, 12, adam(), 1_000_000) != "epochs"


def test_the_choice_asks_no_clock_and_no_cache(chosen):
    kinds = {chosen((8, 16, 1), 1000, 32, adam(), epochs) for epochs in (5_000, 50_000, 5_000_000)}
    assert kinds == {"epochs"}


# Numba.


def test_numba_is_not_imported_before_it_is_needed():
    code = """
import sys, numpy as np
from mlp_xp import Network, adam, train
X = np.ones((40, 2))
network = Network((2, 3, 1), loss="squared_error")
train(network, network.init(0, like=X), X, X[:, :1], optimizer=adam(), epochs=20, batch_size=3)
print([name for name in ("numba", "platformdirs", "concurrent.futures") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split("\n")[0] == "[]"


@pytest.fixture
def numba(request, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "MIN_SECONDS", 0.0)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba_functions, "_in_memory", {})
    need("platformdirs", request)
    return need("numba", request)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "optimizer", "kind"),
    [((20, 100, 5), 200, adam(), "step"), ((3, 4, 2), 16, momentum(0.05), "epochs")],
    ids=KINDS,
)
def test_two_hundred_compiled_steps_end_where_numpys_do(
    sizes, batch_size, optimizer, kind, numba, monkeypatch
):
    source = np.random.RandomState(0)
    X = source.standard_normal((1000, sizes[0]))
    y = np.eye(sizes[-1])[source.randint(sizes[-1], size=1000)]
    network = Network(sizes, activation="relu", loss="categorical_cross_entropy", alpha=1e-3)
    kinds, kind_of = [], compiled_loops._kind
    monkeypatch.setattr(compiled_loops, "_kind", lambda *key: kinds.append(kind_of(*key)) or kinds[-1])

    def trained():
        return train(
            *(network, network.init(0, like=X), X, y),
            optimizer=optimizer,
            epochs=200 * batch_size // 1000,
            batch_size=batch_size,
            seed=0,
        )

    params, history = trained()
    again, _ = trained()
    assert kinds == [kind, kind]
    monkeypatch.setattr(choice, "MIN_SECONDS", np.inf)
    expected, by_numpy = trained()
    for ours, same, theirs in zip(leaves(params), leaves(again), leaves(expected)):
        np.testing.assert_array_equal(ours, same)
        assert np.max(np.abs(ours - theirs)) <= 1e-12 * np.max(np.abs(theirs))
    assert [record["loss"] for record in history] == pytest.approx(
        [record["loss"] for record in by_numpy], rel=1e-12
    )


SMALL = """
import warnings, numpy as np
warnings.simplefilter("error")
from mlp_xp import Network, gradient_descent, train
from mlp_xp._engines import loops, numba_functions
loops.MIN_SECONDS = 0.0
X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
network = Network((2, 2, 1), activation="relu", loss="squared_error")
params = network.init(0, like=X)
params, history = train(network, params, X, X[:, :1], optimizer=gradient_descent(0.1), epochs=9)
(functions,) = numba_functions._in_memory.values()
print(history[-1]["loss"])
print([sum(function.stats.cache_hits.values()) for function in functions.values()])
"""


def run_small(folder, **environment):
    """Train in a process of its own; return the loss and whether the functions came from the cache."""
    ran = subprocess.run(
        [sys.executable, "-c", SMALL],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    loss, hits = ran.stdout.splitlines()
    return float(loss), json.loads(hits) == [1]


def test_functions_are_compiled_once_a_machine(numba, tmp_path):
    loss, was_cached = run_small(tmp_path)
    assert not was_cached
    assert run_small(tmp_path) == (loss, True)
    # A damaged cache is made anew, whatever is damaged, and is good afterwards.
    for suffix in ("nbc", "nbi", "json"):
        for file in tmp_path.rglob(f"*.{suffix}"):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        assert run_small(tmp_path) == (loss, False)
    assert run_small(tmp_path) == (loss, True)


def test_a_folder_that_others_can_write_is_not_used(numba, tmp_path):
    loss, _ = run_small(tmp_path)
    (folder,) = (tmp_path / "mlp_xp_loops").iterdir()
    folder.chmod(0o777)
    before = sorted(file.stat().st_mtime_ns for file in folder.iterdir())
    assert run_small(tmp_path) == (loss, False)
    assert sorted(file.stat().st_mtime_ns for file in folder.iterdir()) == before


def test_without_a_place_to_write_functions_are_compiled_all_the_same(numba, tmp_path):
    (tmp_path / "file").write_text("")
    assert run_small(tmp_path / "file")[1] is False


def test_what_numba_cannot_compile_runs_by_numpy_and_says_so(numba, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(numba_functions, "_load", fail)
    X = np.ones((4, 2))
    network = Network((2, 2, 1), activation="relu", loss="squared_error")
    with pytest.warns(RuntimeWarning, match="could not compile it: RuntimeError: no such instruction"):
        params, _ = train(
            network, network.init(0, like=X), X, X[:, :1], optimizer=gradient_descent(0.1), epochs=2
        )
    assert np.all(np.isfinite(params[0].weight))


def test_what_failed_is_warned_of_once(numba, monkeypatch):
    monkeypatch.setattr(numba_functions, "_load", lambda source: 1 / 0)
    monkeypatch.setattr(compiled_loops, "_FAILED", set())
    X = np.ones((4, 2))
    network = Network((2, 2, 1), activation="relu", loss="squared_error")

    def train_thrice():
        for _ in range(3):
            train(network, network.init(0, like=X), X, X[:, :1], optimizer=gradient_descent(0.1), epochs=2)

    with pytest.warns(RuntimeWarning) as caught:
        train_thrice()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_functions_are_not_kept_without_bound(monkeypatch):
    monkeypatch.setattr(numba_functions, "_in_memory", {})
    monkeypatch.setattr(numba_functions, "_load", lambda source: {source.text: None})
    monkeypatch.setattr(numba_functions, "MAX_PROGRAMS", 3)
    sources = [numba_functions.NumbaSource(str(number), ()) for number in range(5)]
    for source in (*sources, sources[2]):
        assert numba_functions.compile_functions(source) == {source.text: None}
    assert list(numba_functions._in_memory) == [sources[3], sources[4], sources[2]]


IN_A_THREAD = """
import threading, time, numpy as np
from mlp_xp._engines import numba_functions
numba_functions.MIN_ELEMENTS_OF_A_PART = 2
class numba:
    class config: NUMBA_NUM_THREADS = 3
import sys; sys.modules["numba"] = numba
def halve(first, last, rows, columns, array): array[first:last] /= 2.0
def run(before):
    array = np.ones(90)
    if before: numba_functions.in_parallel(halve, 90, 90, 1, array)
    threading.main_thread().join()
    time.sleep(0.2)
    numba_functions.in_parallel(halve, 90, 90, 1, array)
    print(np.unique(array).tolist(), flush=True)
threading.Thread(target=run, args=({before},)).start()
"""


@pytest.mark.parametrize("before", [False, True])
def test_loops_run_in_a_thread_that_outlives_the_main_thread(before):
    code = IN_A_THREAD.replace("{before}", str(before))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.returncode) == (f"[{0.25 if before else 0.5}]\n", 0), ran.stderr


def test_ctrl_c_while_an_engine_is_made_ends_the_training_before_its_first_epoch(interpreted, monkeypatch):
    interpreted("step")

    def interrupted(source):
        os.kill(os.getpid(), signal.SIGINT)
        return by_python(source)

    monkeypatch.setattr(compiled_loops, "compile_functions", interrupted)
    X = np.random.RandomState(0).standard_normal((12, 2))
    network = Network((2, 3, 1), loss="squared_error")
    start = network.init(0, like=X)
    with pytest.warns(TrainingInterruptedWarning, match="after 0 epochs"):
        params, history = train(network, start, X, X[:, :1], optimizer=adam(), epochs=5)
    assert history == []
    for ours, given in zip(leaves(params), leaves(start)):
        np.testing.assert_array_equal(ours, given)
