"""Published figures of small systems, reached from the published starting parameters."""

import numpy as np
import pytest

from mlp_xp import Layer, Network, gradient_descent, normal, to_host, train
from mlp_xp._activations import ACTIVATIONS
from mlp_xp.datasets import load, planar, xor


def xor_start():
    random = np.random.RandomState(42)
    weight_1, bias_1 = random.randn(2, 2).T, random.randn(2, 1).ravel()
    weight_2, bias_2 = random.randn(1, 2).T, random.randn(1, 1).ravel()
    return (Layer(weight_1, bias_1), Layer(weight_2, bias_2))


XOR_NETWORK = Network((2, 2, 1), activation="logistic", loss="binary_cross_entropy")


def test_xor_forward_pass_of_one_sample():
    params, x, y = xor_start(), np.array([[0.5, 0.1]]), np.array([[1.0]])
    z = x @ params[0].weight + params[0].bias
    np.testing.assert_allclose(z, [[0.00037727, 0.2420103]], rtol=1e-5)
    hidden = ACTIVATIONS["logistic"].forward(np, z)[0]
    np.testing.assert_allclose(hidden, [[0.50009432, 0.560209]], rtol=1e-7)
    np.testing.assert_allclose(XOR_NETWORK.logits(params, x), [[0.75020481]], rtol=1e-8)
    np.testing.assert_allclose(XOR_NETWORK.predict(params, x), [[0.67922332]], rtol=1e-8)
    loss, _ = XOR_NETWORK.loss_and_gradients(params, x, y)
    assert float(loss) == pytest.approx(0.3868053036181012, rel=1e-14)


@pytest.mark.slow
def test_xor_after_150_000_updates():
    data = xor()
    params, history = train(
        XOR_NETWORK,
        xor_start(),
        data.X,
        data.y[:, None],
        optimizer=gradient_descent(0.1),
        epochs=150_000,
    )
    probabilities = XOR_NETWORK.predict(params, data.X).ravel()
    expected = [6.21620551e-04, 4.99846111e-01, 9.99591612e-01, 5.00196568e-01]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-8)
    assert len(history) == 150_000


def planar_start(n_hidden):
    random = np.random.RandomState(42)
    weight_1, weight_2 = 0.01 * random.randn(n_hidden, 2).T, 0.01 * random.randn(1, n_hidden).T
    return (Layer(weight_1, np.zeros(n_hidden)), Layer(weight_2, np.zeros(1)))


@pytest.mark.parametrize(
    ("n_hidden", "rate", "updates", "loss", "accuracy"),
    [(3, 1.2, 10_000, 0.2521062353, 0.91), (4, 0.01, 5_000, 0.6503676182, 0.5925)],
)
def test_planar(n_hidden, rate, updates, loss, accuracy):
    data = planar()
    network = Network((2, n_hidden, 1), activation="tanh", loss="binary_cross_entropy")
    params, history = train(
        network,
        planar_start(n_hidden),
        data.X,
        data.y[:, None],
        optimizer=gradient_descent(rate),
        epochs=updates,
    )
    assert history[-1]["loss"] == pytest.approx(loss, abs=1e-8)
    decided = network.predict(params, data.X).ravel() > 0.5
    assert np.mean(decided == data.y) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("n_hidden", [1, 2])
def test_planar_needs_three_units(n_hidden):
    data = planar()
    network = Network((2, n_hidden, 1), activation="tanh", loss="binary_cross_entropy")
    params, _ = train(
        network, planar_start(n_hidden), data.X, data.y[:, None], optimizer=gradient_descent(1.2), epochs=5000
    )
    # A nearly linear boundary: two thirds right, against nine tenths with three units.
    assert np.mean((network.predict(params, data.X).ravel() > 0.5) == data.y) < 0.75


def test_breast_cancer_within_a_point():
    model_selection = pytest.importorskip("sklearn.model_selection")
    data = load("breast-cancer")
    X_train, X_test, y_train, y_test = model_selection.train_test_split(
        data.X, data.y, test_size=0.2, stratify=data.y, random_state=0
    )
    low, high = X_train.min(axis=0), X_train.max(axis=0)
    X_train, X_test = ((X - low) / (high - low) for X in (X_train, X_test))
    network = Network((30, 128, 1), loss="binary_cross_entropy")
    _, history = train(
        network,
        network.init(seed=0, like=X_train, weight=normal(0.01)),
        X_train,
        y_train[:, None],
        optimizer=gradient_descent(0.01),
        epochs=1000,
        batch_size=32,
        seed=0,
        metrics=["accuracy"],
        validation_data=(X_test, y_test[:, None]),
    )
    last = history[-1]
    assert last["accuracy"] == pytest.approx(0.98, abs=0.01)
    assert 0.95 <= last["val_accuracy"] <= 0.98
    assert last["val_loss"] < 0.5 * history[0]["val_loss"]


def test_zero_weights_keep_hidden_units_the_same():
    data = planar()
    y = data.y[:, None]
    network = Network((2, 5, 1), activation="tanh", loss="binary_cross_entropy")
    start = network.init(like=data.X, weight="zeros", bias="zeros")
    params, history = train(network, start, data.X, y, optimizer=gradient_descent(1.2), epochs=300)
    weight = params[0].weight
    assert np.array_equal(weight, np.repeat(weight[:, :1], 5, axis=1))
    assert history[-1]["loss"] > 0.69

    start = network.init(seed=0, like=data.X, weight=normal(0.01), bias="zeros")
    _, history = train(network, start, data.X, y, optimizer=gradient_descent(1.2), epochs=300)
    assert history[-1]["loss"] < 0.65


def test_affine_check_and_logistic_of_a_tenth():
    network = Network((2, 2), loss="squared_error")
    params = (Layer(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, 2.0])),)
    assert network.predict(params, np.array([[1.0, 1.0]])).tolist() == [[3.0, 6.0]]
    value = to_host(ACTIVATIONS["logistic"].forward(np, np.array([0.1]))[0])
    assert float(value[0]) == pytest.approx(0.52497918747894, rel=1e-14)
