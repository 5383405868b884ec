"""The loop: batches, history, early stopping, divergence, interruption; the same in every namespace."""

import copy
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from conftest import assert_close, may_run_call_by_call, need

from mlp_xp import (
    Activation,
    DivergenceError,
    EarlyStopping,
    History,
    Layer,
    Loss,
    Network,
    Optimizer,
    TrainingError,
    adam,
    cosine,
    evaluate,
    gradient_descent,
    momentum,
    to_host,
    train,
)
from mlp_xp._arrays import is_on_cuda
from mlp_xp._parameters import flatten, unflatten_like
from mlp_xp._training.loop import Settings, run_training
from mlp_xp._training.metrics import Metric
from mlp_xp._training.progress import Progress, start_training
from mlp_xp.datasets import planar


def planar_problem(n_hidden=4, **network):
    data = planar()
    network = Network((2, n_hidden, 1), **{"activation": "tanh", "loss": "binary_cross_entropy", **network})
    return network, network.init(seed=3, like=data.X), data.X, data.y[:, None].astype(float)


def small_problem(n_samples=10, n_outputs=2, seed=0):
    random = np.random.RandomState(seed)
    X = random.standard_normal((n_samples, 3))
    y = X[:, :n_outputs] + 0.1 * random.standard_normal((n_samples, n_outputs))
    network = Network((3, 4, n_outputs), activation="tanh", loss="squared_error")
    return network, network.init(0, like=X), X, y


def arrays(params):
    return [to_host(array).copy() for array in flatten(params)]


def assert_same(params, others, rtol=0.0):
    for one, other in zip(arrays(params), arrays(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=0)


# One seed, one result.


def test_adam_on_planar_is_the_same_in_every_namespace(library):
    network, params, X, y = planar_problem()
    settings = {"optimizer": adam(0.01), "epochs": 200, "batch_size": 64, "seed": 5}
    expected, expected_history = train(network, params, X, y, **settings)
    start = network.init(seed=3, like=library.array(X))
    X_here, y_here = library.array(X), library.array(y)
    before = arrays(start)
    trained, history = train(network, start, X_here, y_here, **settings)

    for ours, theirs in zip(flatten(trained), flatten(expected), strict=True):
        assert_close(ours, theirs, X_here, rtol=1e-8)
    np.testing.assert_allclose(history["loss"], expected_history["loss"], rtol=1e-10)
    # What the caller passed is as it was.
    assert all(np.array_equal(a, b) for a, b in zip(arrays(start), before, strict=True))
    np.testing.assert_array_equal(to_host(X_here), X)
    np.testing.assert_array_equal(to_host(y_here), y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_at_once_in_every_namespace(dtype, library):
    network, _, X, y = planar_problem(activation="leaky_relu", alpha=0.01)
    weight = np.linspace(0.5, 2.0, len(X))
    here = [library.array(part, dtype) for part in (X, y, weight)]
    settings = {
        "optimizer": momentum(cosine(0.2, epochs=8), nesterovs_momentum=True),
        "epochs": 8,
        "batch_size": 90,
        "seed": 1,
        "metrics": ["accuracy"],
        "early_stopping": EarlyStopping("val_accuracy", n_iter_no_change=3),
    }
    params, history = train(
        network,
        network.init(0, like=here[0]),
        here[0],
        here[1],
        sample_weight=here[2],
        validation_data=(here[0][:50, :], here[1][:50, :], here[2][:50]),
        **settings,
    )
    expected, expected_history = train(
        network,
        network.init(0, like=X),
        X,
        y,
        sample_weight=weight,
        validation_data=(X[:50], y[:50], weight[:50]),
        **settings,
    )
    tolerance = {"float32": 2e-3, "float64": 1e-9}[dtype]
    for ours, theirs in zip(flatten(params), flatten(expected), strict=True):
        assert_close(ours, theirs, here[0], rtol=tolerance, atol=tolerance)
    assert [set(record) for record in history] == [set(record) for record in expected_history]
    np.testing.assert_allclose(history["val_loss"], expected_history["val_loss"], rtol=tolerance)
    assert json.loads(json.dumps(history)) == history


# A training in parts.


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("optimizer", [adam(0.01), momentum(0.1)], ids=["adam", "momentum"])
def test_trainings_in_parts_are_one_training(library, optimizer, observed):
    network, _, X, y = planar_problem(alpha=0.01)
    X, y = library.array(X), library.array(y)
    start = network.init(0, like=X)
    rule = EarlyStopping("loss", n_iter_no_change=1, tol=0.05, divide_rate=5.0) if observed else None
    settings = {"optimizer": optimizer, "batch_size": 90, "early_stopping": rule}
    whole, history = train(network, start, X, y, epochs=12, seed=5, **settings)

    samples = network._check(start, X, y, None)
    progress = start_training(library.xp, start, optimizer, np.random.RandomState(5))
    parts = History()
    for epochs in (1, 4, 0, 1, 6):
        before = progress
        again = start_training(library.xp, start, optimizer, before.random)
        resumed = Progress.from_dict(before.to_dict(), again)
        kept = arrays(before.params)
        parts += run_training(network, resumed, samples, Settings(epochs=epochs, **settings))
        # What was there before can be gone on from again.
        assert all(np.array_equal(a, b) for a, b in zip(arrays(before.params), kept, strict=True))
        progress = resumed
    assert_same(progress.best_params, whole)
    if is_on_cuda(library.place()):
        # An epoch's loss is added up by captured graphs, of as many steps as pay for the epochs planned: in
        # another order, though the parameters are the same bit for bit.
        np.testing.assert_allclose(parts["loss"], history["loss"], rtol=1e-14)
    else:
        assert parts["loss"] == history["loss"]
    if observed:
        assert progress.early_stopping.n_divisions > 0


def test_early_stopping_remembers_between_parts():
    network, params, X, y = small_problem()
    scores = iter([1.0, 3.0, 2.0, 2.0, 2.0, 2.0])
    score = Metric("score", lambda *_: next(scores), greater_is_better=True)
    progress = start_training(np, params, adam(), np.random.RandomState(0))
    seen = []
    for _ in range(2):
        progress.history = History()
        history = run_training(
            network,
            progress,
            network._check(params, X, y, None),
            Settings(
                optimizer=adam(),
                epochs=3,
                batch_size=10,
                metrics=[score],
                early_stopping=EarlyStopping("score", n_iter_no_change=2, tol=0.0),
                callback=lambda history, params: seen.append(params),
            ),
        )
    assert len(history) == 2
    assert progress.early_stopping.stopped
    assert_same(progress.best_params, seen[1])
    assert_same(progress.params, seen[4])


# Batches.


def test_batches_against_scikit_learn():
    neural_network = pytest.importorskip("sklearn.neural_network")
    network, _, X, y = small_problem(n_samples=50, n_outputs=1)
    settings = {"hidden_layer_sizes": (4,), "activation": "tanh", "alpha": 0.1, "batch_size": 16}
    peer = neural_network.MLPRegressor(
        **settings, solver="adam", max_iter=7, tol=0.0, random_state=2, n_iter_no_change=100
    )
    with pytest.warns(match="Maximum iterations"):
        peer.fit(X, y.ravel())
    network = Network((3, 4, 1), activation="tanh", loss="squared_error", alpha=0.1)
    random = np.random.RandomState(2)
    start = network.init(random, like=X, weight="glorot_uniform", bias="glorot_uniform")
    params, history = train(network, start, X, y, optimizer=adam(), epochs=7, batch_size=16, seed=random)
    for ours, theirs in zip(params, zip(peer.coefs_, peer.intercepts_), strict=True):
        np.testing.assert_allclose(ours.weight, theirs[0], rtol=1e-10)
        np.testing.assert_allclose(ours.bias, theirs[1], rtol=1e-10)
    np.testing.assert_allclose(history["loss"], peer.loss_curve_, rtol=1e-12)


def recording_optimizer():
    """Plain gradient descent that keeps the gradients it saw."""
    seen = []

    def update(xp, params, gradients, state, rate):
        seen.append(float(gradients[-1][1][0]))
        return params, state

    return Optimizer(lambda xp, params: (), update, 0.1), seen


def test_every_row_is_used_once_an_epoch_and_the_last_batch_is_smaller():
    # A linear model at zero: the gradient by the bias is minus the batch's mean target.
    network = Network((1, 1), loss="squared_error")
    X, y = np.ones((10, 1)), 2.0 ** np.arange(10)[:, None]
    params = (Layer(np.zeros((1, 1)), np.zeros(1)),)
    optimizer, seen = recording_optimizer()
    train(network, params, X, y, optimizer=optimizer, epochs=2, batch_size=4, seed=0)
    assert len(seen) == 6
    sums = [-seen[i] * size for i, size in enumerate([4, 4, 2, 4, 4, 2])]
    # Sums of distinct powers of two tell the rows: each epoch has all of them, in batches of its own.
    assert sum(sums[:3]) == sum(sums[3:]) == pytest.approx(1023)
    assert [bin(round(total)).count("1") for total in sums] == [4, 4, 2, 4, 4, 2]
    assert sums[:3] != sums[3:]


def test_without_shuffling_rows_come_in_order(library):
    network = Network((1, 1), loss="squared_error")
    X, y = library.array(np.ones((5, 1))), library.array([[1.0], [2.0], [4.0], [8.0], [16.0]])
    params = (Layer(library.array([[0.0]]), library.array([0.0])),)
    optimizer, seen = recording_optimizer()
    train(network, params, X, y, optimizer=optimizer, epochs=1, batch_size=2, shuffle=False)
    assert seen == [-1.5, -6.0, -16.0]


def test_a_batch_size_above_the_number_of_rows_is_the_full_batch():
    network, params, X, y = small_problem()
    full, _ = train(network, params, X, y, optimizer=adam(), epochs=5)
    large, _ = train(network, params, X, y, optimizer=adam(), epochs=5, batch_size=1000, seed=0)
    assert_same(full, large)


def test_sample_weights_are_repeated_rows():
    network, params, X, y = small_problem()
    counts = np.array([1, 2, 0, 3, 1, 1, 0, 2, 1, 4])
    weighted, history = train(
        network, params, X, y, optimizer=gradient_descent(0.1), epochs=30, sample_weight=counts
    )
    repeated, repeated_history = train(
        network,
        params,
        np.repeat(X, counts, axis=0),
        np.repeat(y, counts, axis=0),
        optimizer=gradient_descent(0.1),
        epochs=30,
    )
    assert_same(weighted, repeated, rtol=1e-12)
    np.testing.assert_allclose(history["loss"], repeated_history["loss"], rtol=1e-13)


def test_epochs_seen_one_by_one_are_epochs_run_together():
    network, params, X, y = planar_problem()
    settings = {"optimizer": adam(cosine(0.05, epochs=300)), "epochs": 300, "batch_size": 150, "seed": 9}
    together, history = train(network, params, X, y, **settings)
    one_by_one, observed = train(network, params, X, y, callback=lambda history, params: None, **settings)
    assert_same(together, one_by_one)
    assert history == observed
    assert history["epoch"] == list(range(1, 301))


def test_a_float_schedule_reaches_the_updates():
    network, params, X, y = small_problem()

    def update(xp, params, gradients, state, rate):
        return tuple((weight, 10.0 * bias + rate) for weight, bias in params), state

    optimizer = Optimizer(lambda xp, p: (), update, lambda epoch: 0.5**epoch)
    zero = tuple(Layer(weight, 0.0 * bias) for weight, bias in params)
    trained, _ = train(network, zero, X, y, optimizer=optimizer, epochs=4)
    assert trained[0].bias.tolist() == [1000.0 + 50.0 + 2.5 + 0.125] * 4


# History.


def test_history_is_json_and_has_columns():
    network, params, X, y = small_problem()
    _, history = train(
        network,
        params,
        X,
        y,
        optimizer=adam(),
        epochs=3,
        metrics=["r2"],
        validation_data=(X[:4], y[:4]),
    )
    assert isinstance(history, History)
    assert list(history[0]) == ["epoch", "loss", "r2", "val_loss", "val_r2"]
    assert all(type(value) in (int, float) for record in history for value in record.values())
    assert json.loads(json.dumps(history)) == list(history)
    assert isinstance(history[1:], History)
    assert history[1:]["epoch"] == [2, 3]
    with pytest.raises(KeyError):
        history["accuracy"]


def test_metrics_are_those_of_the_parameters_after_the_epoch():
    metrics = pytest.importorskip("sklearn.metrics")
    network, params, X, y = planar_problem()

    def brier(y, predictions):
        return float(((y - predictions) ** 2).mean())

    trained, history = train(
        network,
        params,
        X,
        y,
        optimizer=adam(0.05),
        epochs=20,
        metrics=["accuracy", brier],
        validation_data=(X[100:300], y[100:300]),
    )
    probability = network.predict(trained, X).ravel()
    last, truth = history[-1], y.ravel()
    assert last["accuracy"] == pytest.approx(metrics.accuracy_score(truth, probability > 0.5))
    assert last["brier"] == pytest.approx(metrics.brier_score_loss(truth, probability))
    assert last["val_loss"] == pytest.approx(
        metrics.log_loss(truth[100:300], probability[100:300]), rel=1e-12
    )
    assert last["val_brier"] == pytest.approx(metrics.brier_score_loss(truth[100:300], probability[100:300]))


def test_validation_loss_leaves_the_penalty_out():
    network, params, X, y = small_problem()
    penalised = Network((3, 4, 2), activation="tanh", loss="squared_error", alpha=5.0)
    trained, history = train(
        penalised, params, X, y, optimizer=gradient_descent(0.01), epochs=2, validation_data=(X, y)
    )
    expected, _ = network.loss_and_gradients(trained, X, y)
    assert history[-1]["val_loss"] == pytest.approx(float(expected), rel=1e-14)
    with_penalty, _ = penalised.loss_and_gradients(trained, X, y)
    assert float(with_penalty) > 1.1 * float(expected)


def test_no_epochs_change_nothing():
    network, params, X, y = small_problem()
    trained, history = train(network, params, X, y, optimizer=adam(), epochs=0)
    assert_same(trained, params)
    assert trained[0].weight is not params[0].weight
    assert history == []


# Early stopping.


def scripted(values):
    """A metric that returns the given values, epoch by epoch."""
    iterator = iter(values)

    def score(y, predictions):
        return next(iterator)

    return score


@pytest.mark.parametrize(
    ("values", "greater", "n_epochs", "best"),
    [
        ([1, 2, 3, 2, 2, 2, 2, 2], True, 6, 3),
        ([5, 4, 3, 3.5, 3.5, 3.5, 9, 9], False, 6, 3),
        # 0.05 better than the best is less than tol: no improvement, yet the new best.
        ([1, 2, 2.05, 2.09, 2, 2, 2], True, 5, 4),
        ([1, 2, 1, 1, 2.1, 1, 1, 1], True, 8, 5),
    ],
)
def test_early_stopping_by_scikit_learns_rule(values, greater, n_epochs, best):
    network, params, X, y = small_problem()
    seen = []

    def keep(history, params):
        seen.append(arrays(params))

    trained, history = train(
        network,
        params,
        X,
        y,
        optimizer=adam(),
        epochs=50,
        metrics=[scripted(values)],
        early_stopping=EarlyStopping("score", n_iter_no_change=2, tol=0.1, greater_is_better=greater),
        callback=keep,
    )
    assert len(history) == n_epochs
    for ours, theirs in zip(arrays(trained), seen[best - 1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_infinite_score_is_no_improvement():
    network, params, X, y = small_problem()
    infinite = scripted([math.inf] * 50)
    rule = EarlyStopping("score", n_iter_no_change=2, greater_is_better=False)
    _, history = train(
        network, params, X, y, optimizer=adam(), epochs=50, metrics=[infinite], early_stopping=rule
    )
    assert len(history) == 3


def test_early_stopping_ends_a_training_of_any_number_of_epochs():
    network, params, X, y = planar_problem()
    rule = EarlyStopping("loss", n_iter_no_change=2, tol=1.0, restore_best=False)
    optimizer = gradient_descent(0.5)
    few, many = (
        train(network, params, X, y, optimizer=optimizer, epochs=epochs, early_stopping=rule)
        for epochs in (10, 10**15)  # the rates of all of them would not fit into memory
    )
    assert many.history == few.history
    assert len(many.history) == 4


def test_early_stopping_can_keep_the_last_parameters():
    network, params, X, y = small_problem()
    rule = EarlyStopping("score", n_iter_no_change=1, tol=0.0, restore_best=False, greater_is_better=True)
    settings = {"optimizer": adam(), "metrics": [scripted([3, 2, 1, 0])]}
    trained, history = train(network, params, X, y, epochs=50, early_stopping=rule, **settings)
    expected, _ = train(network, params, X, y, optimizer=adam(), epochs=3)
    assert len(history) == 3
    assert_same(trained, expected)


def test_early_stopping_on_validation_loss_stops_overfitting():
    random = np.random.RandomState(0)
    X = random.standard_normal((60, 8))
    y = X[:, :1] + random.standard_normal((60, 1))
    network = Network((8, 50, 1), loss="squared_error")
    start = network.init(0, like=X)
    settings = {"optimizer": adam(0.01), "epochs": 500, "validation_data": (X[40:], y[40:])}
    long, _ = train(network, start, X[:40], y[:40], **settings)
    stopped, history = train(
        network, start, X[:40], y[:40], early_stopping=EarlyStopping(n_iter_no_change=20), **settings
    )

    def validation_loss(params):
        return float(network.loss_and_gradients(params, X[40:], y[40:])[0])

    assert len(history) < 500
    assert validation_loss(stopped) == pytest.approx(min(history["val_loss"]), rel=1e-12)
    assert validation_loss(stopped) < 0.9 * validation_loss(long)


# Callbacks.


def test_a_callback_stops_the_training_and_keeps_what_it_got():
    network, params, X, y = small_problem()
    kept = []

    def stop_at_five(history, params):
        kept.append(params)
        for array in flatten(params):
            assert array.flags.owndata or array.base is not None
        return len(history) == 5

    trained, history = train(network, params, X, y, optimizer=adam(), epochs=50, callback=stop_at_five)
    assert len(history) == len(kept) == 5
    assert_same(kept[-1], trained)
    three, _ = train(network, params, X, y, optimizer=adam(), epochs=3)
    assert_same(kept[2], three)


def test_what_a_callback_does_to_its_parameters_stays_with_it():
    network, params, X, y = small_problem()

    def vandalise(history, params):
        for array in flatten(params):
            array[...] = 0.0

    settings = {"optimizer": adam(), "epochs": 5, "early_stopping": EarlyStopping("loss")}
    trained, _ = train(network, params, X, y, callback=vandalise, **settings)
    expected, _ = train(network, params, X, y, **settings)
    assert_same(trained, expected)


@may_run_call_by_call
@pytest.mark.parametrize("state", [None, {"t": 0}, [0, 1.5]])
def test_an_optimizers_state_is_its_own_affair(state, library):
    """Divergence goes back to a copy of the state, whatever that is made of."""
    seen, at_first = [], copy.deepcopy(state)

    def update(xp, params, gradients, state, rate):
        seen.append(state == at_first)
        return [(weight * 1e3, bias) for weight, bias in params], state

    X, y = library.array(np.ones((4, 1)), "float32"), library.array(np.ones((4, 1)), "float32")
    network = Network((1, 1), loss="squared_error")
    start = (Layer(library.array([[1.0]], "float32"), library.array([0.0], "float32")),)
    with pytest.raises(DivergenceError) as caught:
        train(network, start, X, y, optimizer=Optimizer(lambda xp, p: state, update, 0.1), epochs=99)
    assert all(seen)
    assert isinstance(caught.value.params[0], Layer)
    # 1e3^n overflows float32 at n = 13, and the loss, its square, at the 8th epoch.
    assert caught.value.epoch == 8


@pytest.mark.parametrize("observed", [False, True])
def test_a_schedule_that_fails(observed):
    network, params, X, y = small_problem()

    def schedule(epoch):
        if epoch == 5:
            raise OSError("no more rates")
        return 0.1

    settings = {"optimizer": gradient_descent(schedule), "epochs": 20}
    if not observed:
        # All of it can be read before training, and is.
        with pytest.raises(OSError, match="no more rates"):
            train(network, params, X, y, **settings)
        return
    with pytest.raises(OSError, match="no more rates") as caught:
        train(network, params, X, y, callback=lambda history, params: None, **settings)
    assert caught.value.epoch == 6
    expected, _ = train(network, params, X, y, optimizer=gradient_descent(0.1), epochs=5)
    assert_same(caught.value.params, expected)


def test_a_schedule_without_more_rates_does_not_end_the_training():
    network, params, X, y = small_problem()
    remaining = iter([0.1, 0.1])
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        train(
            network,
            params,
            X,
            y,
            optimizer=gradient_descent(lambda epoch: next(remaining)),
            epochs=9,
            metrics=["r2"],
        )
    assert len(caught.value.history) == 2


# Errors of the user's own functions.


class Pruned(Exception):  # noqa: N818 - as Optuna's TrialPruned
    """An error as a library of its own has it, with arguments that its class alone knows."""

    def __init__(self, code, *, why):
        super().__init__(code)
        self.why = why


def in_callback(fail):
    return {"callback": lambda history, params: fail()}


def in_listener(fail):
    return {"on_progress": lambda history: fail(), "metrics": ["r2"]}


def in_metric(fail):
    def score(y, predictions):
        fail()
        return 0.0

    return {"metrics": [score]}


def in_schedule(fail):
    def schedule(epoch):
        fail()
        return 0.001

    return {"optimizer": adam(schedule), "metrics": ["r2"]}


def in_optimizer(fail):
    def update(xp, *arguments):
        float(xp.sum(arguments[0][0][0]))  # not compiled
        fail()
        return adam().update(xp, *arguments)

    # With metrics the state is saved after each epoch: an update that fails may have left it half changed.
    return {"optimizer": Optimizer(adam().init, update, 0.001), "metrics": ["r2"]}


def in_activation(fail):
    def forward(xp, z):
        float(z[0, 0])  # not compiled
        fail()
        return xp.tanh(z), xp.tanh(z)

    return {"activation": Activation(forward, lambda xp, delta, a: delta * (1.0 - a * a))}


def in_loss(fail):
    def evaluate(xp, logits, y):
        float(logits[0, 0])  # not compiled
        fail()
        return 0.25 * (logits - y) ** 2, 0.5 * (logits - y)

    return {"loss": Loss(lambda xp, logits: logits, evaluate)}


PLACES = [in_callback, in_listener, in_metric, in_schedule, in_optimizer, in_activation, in_loss]
ERRORS = [Pruned(3, why="worse"), ValueError("no"), SystemExit(2), StopIteration("enough")]
ERRORS_BY_NAME = {type(error).__name__: error for error in ERRORS}


@pytest.mark.parametrize("name", ERRORS_BY_NAME)
@pytest.mark.parametrize("place", PLACES)
def test_errors_of_the_users_functions_come_as_they_are_with_what_was_trained(place, name):
    network, params, X, y = small_problem()
    error, calls = ERRORS_BY_NAME[name], []

    def fail():
        calls.append(1)
        if len(calls) == 5:
            raise error

    settings = place(fail)
    parts = {name: settings.pop(name) for name in ("activation", "loss") if name in settings}
    settings = {"optimizer": adam(), "epochs": 50, **settings}
    expected_type = RuntimeError if (place, name) == (in_schedule, "StopIteration") else type(error)
    with pytest.raises(expected_type) as caught:
        train(replace(network, **parts), params, X, y, **settings)
    raised = caught.value
    assert raised is error or raised.__cause__ is error
    assert not isinstance(raised, TrainingError)
    n_done = len(raised.history)
    assert n_done >= 3
    expected, expected_history = train(network, params, X, y, optimizer=adam(), epochs=n_done)
    done = n_done + 1 if place is in_metric else n_done  # an epoch that is trained but not measured
    expected, _ = train(network, params, X, y, optimizer=adam(), epochs=done)
    assert_same(raised.params, expected, rtol=1e-12)
    np.testing.assert_allclose(raised.history["loss"], expected_history["loss"], rtol=1e-12)
    assert any("`.params`" in note for note in raised.__notes__)


def test_an_error_with_such_attributes_keeps_them():
    network, params, X, y = small_problem()
    error = OSError("no such table")
    error.params = {"table": "t"}

    def fail(history, params):
        raise error

    with pytest.raises(OSError, match="no such table") as caught:
        train(network, params, X, y, optimizer=adam(), epochs=2, callback=fail)
    assert caught.value.params == {"table": "t"}
    assert caught.value.history is caught.value.training.history
    assert caught.value.__notes__ == [
        "raised in epoch 1 of a training; `.training` of this error hold what was trained"
    ]


def test_an_error_made_of_a_memory_error_is_what_its_class_says():
    network, params, X, y = small_problem()

    def fail(history, params):
        raise Pruned(1, why="too large") from MemoryError()

    with pytest.raises(Pruned):
        train(network, params, X, y, optimizer=adam(), epochs=2, callback=fail)


# Divergence.


@pytest.mark.parametrize("observed", [False, True])
def test_divergence_says_when_and_keeps_the_last_finite_parameters(observed, library):
    _, _, X, y = small_problem()
    X, y = library.array(X), library.array(y)
    linear = Network((3, 2), loss="squared_error")
    start = linear.init(0, like=X)
    settings = {"optimizer": gradient_descent(1e5), "epochs": 10_000}
    callback = (lambda history, params: None) if observed else None
    with pytest.raises(DivergenceError) as caught:
        train(linear, start, X, y, callback=callback, **settings)
    error = caught.value
    # The epoch before is sound, and one more is not.
    n_sound = error.epoch - 1
    assert len(error.history) == n_sound > 1
    assert all(math.isfinite(loss) for loss in error.history["loss"])
    sound, sound_history = train(linear, start, X, y, optimizer=gradient_descent(1e5), epochs=n_sound)
    assert_same(error.params, sound)
    assert error.history == sound_history
    assert all(np.isfinite(array).all() for array in arrays(error.params))
    for part in (f"epoch {error.epoch}", "smaller learning rate", "100000", "`.params`"):
        assert part in str(error)


def test_divergence_of_a_parameter_alone():
    network = Network((1, 1), loss="squared_error")
    params = (Layer(np.array([[1e150]]), np.array([0.0])),)
    X, y = np.array([[1.0]]), np.array([[0.0]])
    with pytest.raises(DivergenceError, match="epoch 1: a parameter or .* is not finite") as caught:
        train(network, params, X, y, optimizer=gradient_descent(1e200), epochs=5)
    assert math.isfinite(caught.value.loss)
    assert caught.value.history == []
    assert_same(caught.value.params, params)


def test_divergence_with_mini_batches_goes_back_to_the_epochs_start():
    _, _, X, y = small_problem(n_samples=100)
    linear = Network((3, 2), loss="squared_error")
    start = linear.init(0, like=X)
    settings = {"optimizer": momentum(50.0), "batch_size": 30, "seed": 4}
    with pytest.raises(DivergenceError) as caught:
        train(linear, start, X, y, epochs=1000, **settings)
    sound, _ = train(linear, start, X, y, epochs=caught.value.epoch - 1, **settings)
    assert_same(caught.value.params, sound)


def test_adam_that_stands_still_has_diverged():
    # The square of the gradient overflows float32: without a look at the state nothing would happen at all.
    X = np.full((4, 1), 1e15, dtype=np.float32)
    network = Network((1, 1), loss="squared_error")
    start = (Layer(np.ones((1, 1), dtype=np.float32), np.zeros(1, dtype=np.float32)),)
    with pytest.raises(DivergenceError, match="epoch 1: a parameter or the optimizer's state"):
        train(network, start, X, np.zeros_like(X), optimizer=adam(), epochs=5)


def test_errors_can_be_pickled():
    params = (Layer(np.ones((1, 1)), np.zeros(1)),)
    error = DivergenceError("diverged", 3, params, History([{"epoch": 1, "loss": 0.5}]), float("inf"))
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.epoch, again.history, again.loss) == (
        "diverged",
        3,
        error.history,
        float("inf"),
    )
    assert_same(again.params, params)


# Ctrl-C.


def interrupting(n_calls):
    """An activation that raises KeyboardInterrupt at its n-th forward pass, and never again."""
    calls = [0]

    def forward(xp, z):
        float(z[0, 0])  # what looks at a value is not compiled, but called in each step
        calls[0] += 1
        if calls[0] == n_calls:
            raise KeyboardInterrupt
        a = xp.tanh(z)
        return a, a

    return Activation(forward, lambda xp, delta, a: delta * (1.0 - a * a))


@may_run_call_by_call
def test_an_interrupt_returns_what_was_trained(library):
    _, _, X, y = small_problem()
    X, y = library.array(X), library.array(y)
    network = Network((3, 4, 2), activation=interrupting(101), loss="squared_error")
    start = network.init(0, like=X)
    with pytest.warns(UserWarning, match="interrupted after 100 epochs"):
        trained, history = train(network, start, X, y, optimizer=adam(), epochs=10_000)
    twin = Network((3, 4, 2), activation="tanh", loss="squared_error")
    expected, expected_history = train(twin, start, X, y, optimizer=adam(), epochs=100)
    np.testing.assert_allclose(history["loss"], expected_history["loss"], rtol=1e-13)
    assert_same(trained, expected, rtol=1e-12)


def test_an_interrupt_within_an_epoch_keeps_its_steps():
    _, _, X, y = small_problem(n_samples=100)
    network = Network((3, 4, 2), activation=interrupting(26), loss="squared_error")
    start = network.init(0, like=X)
    with pytest.warns(UserWarning, match="interrupted after 2 epochs"):
        trained, history = train(
            network, start, X, y, optimizer=gradient_descent(0.1), epochs=9, batch_size=10, shuffle=False
        )
    twin = Network((3, 4, 2), activation="tanh", loss="squared_error")
    two, _ = train(twin, start, X, y, optimizer=gradient_descent(0.1), epochs=2, batch_size=10, shuffle=False)
    rest, _ = train(
        twin, two, X[:50], y[:50], optimizer=gradient_descent(0.1), epochs=1, batch_size=10, shuffle=False
    )
    assert len(history) == 2
    assert_same(trained, rest, rtol=1e-12)


def test_an_interrupt_where_warnings_are_errors_loses_nothing():
    _, _, X, y = small_problem()
    network = Network((3, 4, 2), activation=interrupting(8), loss="squared_error")
    start = network.init(0, like=X)
    with pytest.raises(TrainingError, match="interrupted after 7 epochs") as caught:
        train(network, start, X, y, optimizer=adam(), epochs=50)
    twin = Network((3, 4, 2), activation="tanh", loss="squared_error")
    expected, expected_history = train(twin, start, X, y, optimizer=adam(), epochs=7)
    assert_same(caught.value.params, expected, rtol=1e-12)
    assert caught.value.history["loss"] == pytest.approx(expected_history["loss"])


def test_an_interrupt_in_a_callback():
    network, params, X, y = small_problem()

    def interrupt_at_three(history, params):
        if len(history) == 3:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 3 epochs"):
        trained, history = train(
            network, params, X, y, optimizer=adam(), epochs=50, callback=interrupt_at_three
        )
    expected, expected_history = train(network, params, X, y, optimizer=adam(), epochs=3)
    assert history == expected_history
    assert_same(trained, expected)


# Bad input is named before any training.


def bad(**parts):
    network, params, X, y = small_problem()
    return {"network": network, "params": params, "X": X, "y": y, "optimizer": adam(), "epochs": 1, **parts}


def with_value(array, row, column, value):
    array = np.array(array)
    array[row, column] = value
    return array


def val_score(y, predictions):
    return 1.0


_, _, GOOD_X, GOOD_Y = small_problem()
LINEAR = Network((3, 2), loss="squared_error")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"epochs": -1}, "`epochs` must be an integer >= 0, got -1"),
        ({"epochs": 2.5}, "`epochs` must be an integer >= 0, got 2.5"),
        ({"epochs": True}, "`epochs` must be an integer"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        ({"optimizer": 0.1}, "`optimizer` must be an Optimizer, .* got 0.1"),
        ({"optimizer": gradient_descent(lambda epoch: -1.0)}, r"`learning_rate\(0\)` must be .* >= 0"),
        ({"optimizer": Optimizer(None, None, -1.0)}, "`learning_rate` must be .* > 0, got -1.0"),
        ({"network": "2-4-1"}, "`network` must be a Network, got '2-4-1'"),
        ({"callback": 5}, "`callback` must be a function .* got 5"),
        (
            {"params": (Layer(np.full((3, 2), np.nan), np.zeros(2)),), "network": LINEAR},
            "`params` must hold finite",
        ),
        ({"metrics": [val_score]}, "none 'epoch', 'loss' or beginning with 'val_', got .*'val_score'"),
        ({"seed": "x", "batch_size": 2}, "`seed` must be an integer"),
        ({"X": with_value(GOOD_X, 3, 1, np.nan)}, "`X` must hold finite numbers, got nan in row 3, column 1"),
        ({"y": with_value(GOOD_Y, 2, 0, np.inf)}, "`y` must hold finite numbers, got inf in row 2, column 0"),
        ({"y": GOOD_Y[:, 0]}, r"`y` must have shape .*\(10, 2\), got \(10,\)"),
        ({"sample_weight": -np.ones(10)}, "`sample_weight` must be >= 0 and not all zero, .* from -1 to -1"),
        ({"sample_weight": np.zeros(10)}, "`sample_weight` must be >= 0 and not all zero"),
        ({"sample_weight": np.full(10, np.nan)}, "`sample_weight` must hold finite numbers"),
        ({"validation_data": GOOD_X}, r"`validation_data` must be a tuple \(X, y\)"),
        ({"validation_data": (GOOD_X, GOOD_Y[:3])}, "in `validation_data`: `y` must have shape"),
        ({"metrics": ["accuracy"]}, "'accuracy' needs a loss of classification"),
        ({"metrics": "r2"}, "`metrics` must be a list"),
        ({"early_stopping": True}, "`early_stopping` must be an EarlyStopping, got True"),
        (
            {"early_stopping": EarlyStopping()},
            r"`early_stopping` must monitor one of .*'loss'.*, got 'val_loss'",
        ),
        (
            {"early_stopping": EarlyStopping("score"), "metrics": [scripted([])]},
            "`early_stopping` needs `greater_is_better` for the metric 'score'",
        ),
    ],
)
def test_bad_arguments(parts, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        train(**bad(**parts))
    assert not isinstance(caught.value, TrainingError)


@pytest.mark.parametrize("value", [None, "0.5", b"3", [1.0], 1j, np.ma.masked, np.ones(2), 10**400], ids=repr)
def test_a_metric_that_is_no_number_is_named(value):
    def score(y, predictions):
        return value

    network, params, X, y = small_problem()
    for call in (
        lambda: train(network, params, X, y, optimizer=adam(), epochs=1, metrics=[score]),
        lambda: evaluate(network, params, X, y, metrics=[score]),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^`metrics\['score'\]` must be a real number"):
            call()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_of_another_shape_is_refused(weighted):
    def of_rows(xp, logits, y):
        return xp.sum((logits - y) ** 2, axis=1), 2.0 * (logits - y)

    network, params, X, y = small_problem()
    network = replace(network, loss=Loss(lambda xp, logits: logits, of_rows))
    weights = np.ones(len(X)) if weighted else None
    for call in (
        lambda: train(network, params, X, y, sample_weight=weights, optimizer=adam(), epochs=1),
        lambda: evaluate(network, params, X, y, sample_weight=weights),
        lambda: network.loss_and_gradients(params, X, y, weights),
    ):
        with pytest.raises(ValueError, match="`evaluate` of a Loss must return losses of shape"):
            call()


def test_the_loss_of_many_rows_in_float16():
    network, _, X, y = small_problem()
    X, y = np.resize(X, (100_000, X.shape[1])), np.resize(y, (100_000, y.shape[1]))
    params = network.init(0, like=X)
    expected = evaluate(network, params, X, y)["loss"]
    half = network.init(0, like=X.astype("float16"))
    for weights in (None, np.full(len(X), 0.5, "float16")):
        found = evaluate(network, half, X.astype("float16"), y.astype("float16"), sample_weight=weights)[
            "loss"
        ]
        assert found == pytest.approx(expected, rel=2e-2)


class RefusingError(Exception):
    """Has attributes that raise, and takes no notes."""

    @property
    def params(self):
        raise LookupError("params")

    def add_note(self, note):
        raise LookupError(note)


class AnsweringError(Exception):
    def __getattr__(self, name):
        return None


class NestedError(TrainingError):
    """Of a training inside of the callback, say."""


@pytest.mark.parametrize(
    "error",
    [
        RefusingError("no"),
        AnsweringError("no"),
        NestedError("no", 7, (), History()),
        DivergenceError("no", 7, (), History(), 1.0),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", ["callback", "on_progress"])
def test_errors_of_callbacks_come_as_they_are(name, error):
    network, params, X, y = small_problem()

    def fail(history, params=None):
        if len(history) >= 3:
            raise error

    more = {"metrics": ["r2"], name: fail}  # so that `on_progress` is called after each epoch
    with pytest.raises(type(error)) as caught:
        train(network, params, X, y, optimizer=adam(), epochs=5, **more)
    assert caught.value is error
    if isinstance(error, TrainingError):
        assert error.epoch == 7
        assert [len(error.training.history), len(error.history)] == [3, 0]


def test_bad_early_stopping():
    with pytest.raises(ValueError, match="`n_iter_no_change` must be an integer >= 1, got 0"):
        EarlyStopping(n_iter_no_change=0)
    with pytest.raises(ValueError, match="`tol` must be a finite number and >= 0, got -1.0"):
        EarlyStopping(tol=-1.0)


def test_mixed_namespaces_are_refused():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(ValueError, match="`X` must live where `params` does"):
        train(**bad(X=strict.asarray(GOOD_X)))
    with pytest.raises(ValueError, match=r"`validation_data\[0\]` must live where `X` does"):
        train(**bad(validation_data=(strict.asarray(GOOD_X), GOOD_Y)))


def test_torch_inputs_that_require_gradients_build_no_graph():
    torch = pytest.importorskip("torch")
    network, params, X, y = small_problem()
    X_torch = torch.tensor(X, requires_grad=True)
    start = unflatten_like(params, map(torch.tensor, flatten(params)))
    trained, _ = train(network, start, X_torch, torch.tensor(y), optimizer=adam(), epochs=3)
    expected, _ = train(network, params, X, y, optimizer=adam(), epochs=3)
    assert not trained[0].weight.requires_grad
    assert_same(trained, expected, rtol=1e-12)


@pytest.mark.parametrize("library_name", ["numpy", "torch", "jax"])
def test_a_step_on_many_rows_in_float16(library_name, request):
    library = need(library_name, request)
    asarray = getattr(library, "numpy", library).asarray if library_name == "jax" else library.asarray
    network, _, X, y = small_problem()
    X, y = np.resize(X, (100_000, X.shape[1])), np.resize(y, (100_000, y.shape[1]))
    X, y = asarray(X.astype("float16")), asarray(y.astype("float16"))
    history = train(network, network.init(0, like=X), X, y, optimizer=gradient_descent(0.1), epochs=2).history
    assert 0.0 < history[1]["loss"] < history[0]["loss"] < 10.0


@pytest.mark.parametrize("returned", [np.ones(2), np.ma.array([1, 2])])
def test_what_a_callback_returns_has_a_truth_value(returned):
    network, params, X, y = small_problem()
    with pytest.raises(TypeError, match="what `callback` returns must be None or a truth value, got "):
        train(network, params, X, y, optimizer=adam(), epochs=2, callback=lambda history, params: returned)
