"""Trainings on NumPy that take over the memory of earlier ones, such as streams of `partial_fit`."""

import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import mlp_xp
from mlp_xp import (
    Activation,
    DivergenceError,
    Network,
    TrainingInterruptedWarning,
    adam,
    gradient_descent,
    train,
)
from mlp_xp._engines import compiled
from mlp_xp._parameters import flatten

pytest.importorskip("sklearn")
MLPClassifier, MLPRegressor = mlp_xp.MLPClassifier, mlp_xp.MLPRegressor

N_CALLS = 6


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """Yield the list of memories that trainings took over, None where they allocated; none at first."""
    found = []

    class Free(dict):
        def pop(self, key, default):
            found.append(super().pop(key, default))
            return found[-1]

    monkeypatch.setattr(compiled, "_FREE_MEMORIES", Free())
    return found


def without_reuse(monkeypatch):
    monkeypatch.setattr(compiled, "MAX_BYTES_KEPT", -1)


def batches(n_calls=N_CALLS, n_samples=20, dtype="float64"):
    source = np.random.default_rng(0)
    for _ in range(n_calls):
        yield source.standard_normal((n_samples, 3)).astype(dtype)


def problem(n_samples=20, n_hidden=4, activation="tanh"):
    X = next(batches(1, n_samples))
    network = Network((3, n_hidden, 1), activation=activation, loss="squared_error")
    return network, network.init(0, like=X), X, X[:, :1] * 2


def contents(params):
    return [array.tobytes() for array in flatten(params)]


def weights(model):
    return [array.tobytes() for array in (*model.coefs_, *model.intercepts_)]


SETTINGS = [
    {},
    {"batch_size": 7},
    {"batch_size": 7, "shuffle": False},
    {"solver": "sgd", "learning_rate": "invscaling"},
    {"solver": "sgd", "momentum": 0.0, "batch_size": 5},
    {"hidden_layer_sizes": (5, 4), "activation": "tanh", "alpha": 0.1},
]


def stream(make, dtype="float64", weighted=False):
    """Return the weights and losses after each call, and the pickle of the last model."""
    model, found = make(), []
    for number, X in enumerate(batches(dtype=dtype)):
        X.flags.writeable = number % 2 == 0
        weight = np.arange(len(X)) / 9.0 if weighted and number % 2 else None
        y = (X[:, 0] > 0).astype(int) if isinstance(model, MLPClassifier) else X[:, 0] * 2
        classes = {"classes": [0, 1]} if isinstance(model, MLPClassifier) else {}
        model.partial_fit(X, y, sample_weight=weight, **classes)
        found.append((weights(model), model.loss_))
    return found, pickle.dumps(model)


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize(
    ("kind", "dtype", "weighted"), [(MLPClassifier, "float32", False), (MLPRegressor, "float64", True)]
)
def test_a_stream_is_the_same_bit_by_bit(kind, dtype, weighted, settings, taken, monkeypatch):
    def make():
        return kind(random_state=0, **{"hidden_layer_sizes": 6, **settings})

    reused = stream(make, dtype, weighted)
    n_new = taken.count(None)
    assert n_new == (2 if weighted else 1)
    without_reuse(monkeypatch)
    compiled._FREE_MEMORIES.clear()
    taken.clear()
    assert stream(make, dtype, weighted) == reused
    assert taken == [None] * N_CALLS


def test_samples_too_large_for_the_buffer_are_the_new_ones(taken, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_BYTES_SHUFFLED_AT_ONCE", 0)  # batches are views of the samples

    def run(batch_size):
        network, params, *_ = problem()
        found = []
        for X in batches():
            params, history = train(
                network, params, X, X[:, :1] * 2, optimizer=adam(0.1), epochs=2, batch_size=batch_size, seed=0
            )
            found.append((contents(params), history))
        return found

    reused = run(None), run(8)
    assert taken.count(None) == 2
    without_reuse(monkeypatch)
    assert (run(None), run(8)) == reused


def test_results_of_earlier_trainings_stay(taken):
    network, params, X, y = problem()
    settings = {"optimizer": adam(0.1), "epochs": 3}
    results = [train(network, params, X, number * y, **settings) for number in range(4)]
    before = [contents(result.params) for result in results]
    assert len({tuple(one) for one in before}) == 4
    for array in flatten(results[-1].params):
        array[...] = np.nan
    train(network, params, X, -y, **settings)
    assert [contents(result.params) for result in results[:-1]] == before[:-1]
    assert taken.count(None) == 1
    model = MLPRegressor(hidden_layer_sizes=6, random_state=0)
    kept = []
    for X in batches():
        model.partial_fit(X, X[:, 0])
        kept.append((model.coefs_, weights(model), pickle.dumps(model)))
    for coefs, before, saved in kept:
        assert [array.tobytes() for array in coefs] == before[: len(coefs)]
        assert weights(pickle.loads(saved)) == before


def test_models_of_the_same_shape_do_not_mix(monkeypatch):
    def run(n_models, order):
        models = [MLPRegressor(hidden_layer_sizes=6, random_state=seed) for seed in range(n_models)]
        data = list(batches())
        for model, call in order:
            models[model].partial_fit(data[call] * (model + 1), data[call][:, 0])
        return list(map(weights, models))

    one_by_one = [(model, call) for model in range(2) for call in range(N_CALLS)]
    by_turns = sorted(one_by_one, key=lambda each: each[1])
    together = run(2, by_turns)
    assert run(2, one_by_one) == together
    without_reuse(monkeypatch)
    assert run(2, by_turns) == together


def test_threads_do_not_share_memory():
    network, params, X, y = problem(n_hidden=50)
    settings = {"optimizer": adam(0.01), "epochs": 3, "batch_size": 6, "seed": 0}
    expected = [contents(train(network, params, X, number * y, **settings).params) for number in range(4)]
    failed = []

    def work(number):
        for _ in range(40):
            result = train(network, params, X, number * y, **settings)
            if contents(result.params) != expected[number]:
                failed.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_training_within_a_training_has_its_own_memory(taken):
    network, params, X, y = problem()
    settings = {"optimizer": adam(0.1), "epochs": 3}
    expected = contents(train(network, params, X, y, **settings).params)

    def nested(history, now):
        assert contents(train(network, params, X, y, **settings).params) == expected

    assert contents(train(network, params, X, y, callback=nested, **settings).params) == expected
    assert taken[1] is not None
    assert taken[2] is None


@pytest.mark.parametrize("ending", ["error", "interrupt", "divergence", "stop"])
def test_only_a_training_that_ended_as_planned_gives_its_memory(ending, taken):
    network, params, X, y = problem(activation="identity")
    settings = {"optimizer": gradient_descent(0.01), "epochs": 4}
    expected = contents(train(network, params, X, y, **settings).params)

    def callback(history, now):
        if len(history) == 2:
            if ending == "stop":
                return True
            raise KeyboardInterrupt if ending == "interrupt" else OSError
        return False

    if ending == "divergence":
        with pytest.raises(DivergenceError) as error:
            train(network, params, X * 1e4, y, optimizer=gradient_descent(1e3), epochs=200)
        result = error.value.params
    elif ending == "error":
        with pytest.raises(OSError) as error:  # noqa: PT011
            train(network, params, X, y, callback=callback, **settings)
        result = error.value.params
    elif ending == "interrupt":
        with pytest.warns(TrainingInterruptedWarning):
            result = train(network, params, X, y, callback=callback, **settings).params
    else:
        result = train(network, params, X, y, callback=callback, **settings).params
    assert len(compiled._FREE_MEMORIES) == (ending == "stop")
    before = contents(result)
    for _ in range(2):
        assert contents(train(network, params, X, y, **settings).params) == expected
    assert contents(result) == before


def test_an_interrupt_after_the_last_step_leaves_the_memory(monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    model = MLPRegressor(hidden_layer_sizes=6, random_state=0)
    X = next(batches(1))
    with monkeypatch.context() as patch:
        patch.setattr(compiled.CompiledEngine, "copied_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(X, X[:, 0])
    assert not compiled._FREE_MEMORIES
    again = MLPRegressor(hidden_layer_sizes=6, random_state=0).partial_fit(X, X[:, 0])
    assert weights(model) == weights(again)


@pytest.mark.parametrize("at_once", [True, False])
def test_samples_are_not_kept_alive(at_once, monkeypatch):
    if not at_once:
        monkeypatch.setattr(compiled, "MAX_BYTES_SHUFFLED_AT_ONCE", 0)
    network, params, X, y = problem()
    train(network, params, X, y, optimizer=adam(0.1), epochs=1)
    assert compiled._FREE_MEMORIES
    gone = weakref.ref(X), weakref.ref(y)
    del X, y
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_few_and_small_memories_are_kept():
    for n_samples in range(1, 20):
        network, params, X, y = problem(n_samples)
        train(network, params, X, y, optimizer=adam(0.1), epochs=1)
    assert len(compiled._FREE_MEMORIES) == compiled.MAX_MEMORIES_KEPT
    assert [key[-1] for key in compiled._FREE_MEMORIES] == list(range(12, 20))
    network, params, X, y = problem(12)
    train(network, params, X, y, optimizer=adam(0.1), epochs=1)
    assert [key[-1] for key in compiled._FREE_MEMORIES] == [*range(13, 20), 12]
    compiled._FREE_MEMORIES.clear()
    network, params, X, y = problem(20, n_hidden=2**16)
    train(network, params, X, y, optimizer=adam(0.1), epochs=1)
    assert not compiled._FREE_MEMORIES


class Unhashable:
    __hash__ = None

    def __call__(self, xp, z):
        return (xp.maximum(z, 0.0),) * 2


def test_an_unhashable_activation_allocates_each_time(taken):
    unhashable = Activation(Unhashable(), lambda xp, gradient, kept: gradient * (kept > 0.0))
    for _ in range(3):
        network, params, X, y = problem(activation=unhashable)
        train(network, params, X, y, optimizer=adam(0.1), epochs=2)
    assert taken == [None] * 3
