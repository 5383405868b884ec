"""Accuracy and r2 against scikit-learn's, and how metrics are chosen."""

import re
from functools import partial

import numpy as np
import pytest
from conftest import assert_close

from mlp_xp import Network, adam, evaluate, train
from mlp_xp._losses import LOSSES
from mlp_xp._training.metrics import METRICS, resolve_metrics

WEIGHTS = np.random.RandomState(0).randint(4, size=40).astype(float)


def score(name, library, loss, y, predictions, weights, dtype="float64"):
    value = METRICS[name].compute(
        library.xp,
        LOSSES[loss],
        library.array(y, dtype),
        library.array(predictions, dtype),
        None if weights is None else library.array(weights, dtype),
    )
    # NumPy's reductions return its scalars; they are arrays everywhere else.
    return np.asarray(value) if isinstance(value, np.generic) else value


def classification(loss, n_outputs):
    """Targets, and probabilities that lean to them; and both as scikit-learn's accuracy takes them."""
    random = np.random.RandomState(1)
    if loss == "categorical_cross_entropy":
        classes = random.randint(n_outputs, size=40)
        y = np.eye(n_outputs)[classes]
        probabilities = random.dirichlet(np.ones(n_outputs), size=40) + 0.4 * y
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return y, probabilities, classes, probabilities.argmax(axis=1)
    y = random.randint(2, size=(40, n_outputs)).astype(float)
    probabilities = np.clip(0.7 * random.uniform(size=y.shape) + 0.3 * y, 0.0, 1.0)
    return y, probabilities, y.astype(int), (probabilities > 0.5).astype(int)


@pytest.mark.parametrize(
    ("loss", "n_outputs"),
    [
        ("binary_cross_entropy", 1),
        ("binary_cross_entropy", 3),
        ("categorical_cross_entropy", 2),
        ("categorical_cross_entropy", 5),
    ],
    ids=["binary", "multi-label", "two classes", "five classes"],
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_accuracy_against_scikit_learn(loss, n_outputs, weights, library):
    metrics = pytest.importorskip("sklearn.metrics")
    y, probabilities, true, decided = classification(loss, n_outputs)
    expected = metrics.accuracy_score(true, decided, sample_weight=weights)
    assert 0.2 < expected < 0.95
    ours = score("accuracy", library, loss, y, probabilities, weights)
    assert_close(ours, expected, library.array([1.0]), rtol=1e-14)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 1.0]], ids=["unweighted", "weighted"])
def test_accuracy_has_the_dtype_of_the_predictions(weights, library):
    y, predictions = [[1.0], [0.0], [0.0], [1.0]], [[0.9], [0.2], [0.8], [0.1]]
    ours = score("accuracy", library, "binary_cross_entropy", y, predictions, weights, "float32")
    expected = 0.5 if weights is None else 0.75
    assert_close(ours, expected, library.array([1.0], "float32"), rtol=0)


def test_a_label_wrong_is_a_sample_wrong(library):
    y = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    predictions = [[0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [0.6, 0.9]]
    assert float(score("accuracy", library, "binary_cross_entropy", y, predictions, None)) == 0.5


@pytest.mark.parametrize(("n_outputs", "dtype"), [(1, "float64"), (4, "float64"), (4, "float32")])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_r2_against_scikit_learn(n_outputs, weights, dtype, library):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.RandomState(2)
    y = 3.0 + random.standard_normal((40, n_outputs))
    predictions = y + np.linspace(0.2, 1.2, n_outputs) * random.standard_normal(y.shape)
    expected = metrics.r2_score(y, predictions, sample_weight=weights)
    ours = score("r2", library, "squared_error", y, predictions, weights, dtype)
    tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype]
    assert_close(ours, expected, library.array([1.0], dtype), rtol=tolerance, atol=tolerance)


SLOPE = np.linspace(-1.0, 2.0, 8)
FLAT = np.full(8, 3.0)


@pytest.mark.parametrize(
    ("y", "predictions", "expected"),
    [
        ([FLAT], [FLAT], 1.0),
        ([FLAT], [FLAT + 0.5], 0.0),
        ([FLAT], [FLAT + SLOPE], 0.0),
        ([FLAT, SLOPE], [FLAT, SLOPE], 1.0),
        ([FLAT, SLOPE], [FLAT + 1.0, SLOPE], 0.5),
        ([SLOPE], [np.full(8, SLOPE.mean())], 0.0),
        ([SLOPE], [-SLOPE], None),
    ],
)
@pytest.mark.parametrize("weights", [None, WEIGHTS[:8] + 1.0], ids=["unweighted", "weighted"])
def test_r2_of_constant_targets_and_bad_predictions(y, predictions, expected, weights, library):
    metrics = pytest.importorskip("sklearn.metrics")
    y, predictions = np.column_stack(y), np.column_stack(predictions)
    theirs = metrics.r2_score(y, predictions, sample_weight=weights)
    if expected is not None and weights is None:
        assert theirs == pytest.approx(expected, abs=1e-12)
    ours = score("r2", library, "squared_error", y, predictions, weights)
    assert_close(ours, theirs, library.array([1.0]), rtol=1e-13, atol=1e-13)


def test_metrics_by_name():
    chosen = resolve_metrics(["r2", "accuracy"], LOSSES["binary_cross_entropy"])
    assert [metric.name for metric in chosen] == ["r2", "accuracy"]
    assert [metric.greater_is_better for metric in chosen] == [True, True]
    assert resolve_metrics([], LOSSES["squared_error"]) == ()


def mean_error(y, predictions):
    return float(abs(y - predictions).mean())


class Bias:
    def __call__(self, y, predictions):
        return float((predictions - y).mean())


def test_functions_of_a_user_have_their_own_name():
    chosen = resolve_metrics([mean_error, Bias(), "r2"], LOSSES["squared_error"])
    assert [metric.name for metric in chosen] == ["mean_error", "Bias", "r2"]
    assert [metric.greater_is_better for metric in chosen] == [None, None, True]
    y, predictions = np.array([[1.0], [2.0]]), np.array([[1.5], [4.0]])
    values = [metric.compute(np, LOSSES["squared_error"], y, predictions, None) for metric in chosen[:2]]
    assert values == [1.25, 1.25]
    y_first = chosen[1].compute(np, LOSSES["squared_error"], predictions, y, np.array([1.0, 3.0]))
    assert y_first == -1.25


def test_a_users_accuracy_goes_with_any_loss():
    def accuracy(y, predictions):
        return float((abs(y - predictions) < 0.1).mean())

    (chosen,) = resolve_metrics([accuracy], LOSSES["squared_error"])
    y, predictions = np.array([[1.0], [2.0]]), np.array([[1.05], [2.5]])
    assert chosen.name == "accuracy"
    assert chosen.compute(np, LOSSES["squared_error"], y, predictions, None) == 0.5


@pytest.mark.parametrize("name", ["f1", "Accuracy", "", None, 3])
def test_unknown_metrics_list_the_valid_ones(name):
    message = f"`metrics` must be one of ['accuracy', 'r2'], got {name!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resolve_metrics(["accuracy", name], LOSSES["binary_cross_entropy"])


def named(name):
    def function(y, predictions):
        return 0.0

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    "metrics",
    [
        ["r2", "r2"],
        [mean_error, mean_error],
        ["r2", named("r2")],
        [partial(mean_error), partial(mean_error)],
        [named("loss")],
        ["r2", named("epoch")],
    ],
)
def test_names_that_would_share_a_column_are_refused(metrics):
    with pytest.raises(
        ValueError,
        match=r"^`metrics` must have different names, none 'epoch', 'loss' .*, got \[",
    ):
        resolve_metrics(metrics, LOSSES["squared_error"])


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_accuracy_needs_a_loss_of_classification(loss):
    with pytest.raises(ValueError, match=r"^`metrics` must fit the loss: 'accuracy' needs .*classification"):
        resolve_metrics(["r2", "accuracy"], LOSSES[loss])


@pytest.mark.parametrize("text", ["accuracy", "r2"])
def test_a_name_is_no_list(text):
    with pytest.raises(TypeError, match=rf"^`metrics` must be a list of names or functions, got '{text}'$"):
        resolve_metrics(text, LOSSES["binary_cross_entropy"])


def weighted_error(y, predictions, sample_weight):
    return float(np.average(np.abs(y - predictions)[:, 0], weights=sample_weight))


def unweighted_error(y, predictions):
    return float(np.mean(np.abs(y - predictions)))


def test_metrics_of_the_users_own_take_the_weights_or_are_refused():
    metrics = pytest.importorskip("sklearn.metrics")
    X = np.linspace(-1.0, 1.0, 40)[:, None]
    network = Network((1, 1), loss="squared_error")
    params = network.init(0, like=X)
    own = [weighted_error, metrics.mean_absolute_error]
    for weights in (None, WEIGHTS):
        expected = metrics.mean_absolute_error(X, network.predict(params, X), sample_weight=weights)
        found = evaluate(network, params, X, X, sample_weight=weights, metrics=own)
        assert found["weighted_error"] == pytest.approx(expected)
        assert found["mean_absolute_error"] == pytest.approx(expected)
    assert evaluate(network, params, X, X, metrics=[unweighted_error])["unweighted_error"] > 0.0

    message = "`metrics` must take the sample weights .*'unweighted_error' needs a parameter `sample_weight`"
    settings = {"optimizer": adam(), "epochs": 1, "metrics": [unweighted_error]}
    with pytest.raises(TypeError, match=message):
        evaluate(network, params, X, X, sample_weight=WEIGHTS, metrics=[unweighted_error])
    with pytest.raises(TypeError, match=message):
        train(network, params, X, X, sample_weight=WEIGHTS, **settings)
    with pytest.raises(TypeError, match=message):
        train(network, params, X, X, validation_data=(X, X, WEIGHTS), **settings)
    train(network, params, X, X, **settings)
