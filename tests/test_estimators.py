"""The estimators beyond scikit-learn's interface: namespaces, backends, validation, restarts, accidents."""

import copy
import math
import os
import pickle
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_close, may_run_call_by_call, need

import mlp_xp
from mlp_xp import Activation, DivergenceError, TrainingError, TrainingInterruptedWarning, elu, leaky_relu
from mlp_xp._arrays import placement, to_host
from mlp_xp.backends import BackendUnavailableError, backend

pytest.importorskip("sklearn", minversion="1.9")
metrics = pytest.importorskip("sklearn.metrics")
neural_network = pytest.importorskip("sklearn.neural_network")
NotFittedError = pytest.importorskip("sklearn.exceptions").NotFittedError
class_weights = pytest.importorskip("sklearn.utils.class_weight")
compute_class_weight, compute_sample_weight = (
    class_weights.compute_class_weight,
    class_weights.compute_sample_weight,
)
MLPClassifier, MLPRegressor = mlp_xp.MLPClassifier, mlp_xp.MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CLASSIFIED = ["binary", "multi-class", "multi-label"]
KINDS = [*CLASSIFIED, "regression", "multi-output", "poisson"]


def problem(kind, n_samples=40, seed=0):
    random = np.random.RandomState(seed)
    X = random.standard_normal((n_samples, 4))
    scores = X @ random.standard_normal((4, 3)) + 0.5 * random.standard_normal((n_samples, 3))
    targets = {
        "binary": (scores[:, 0] > 0.0).astype(np.int64),
        "multi-class": np.argmax(scores, axis=1),
        "multi-label": (scores > 0.0).astype(np.int64),
        "regression": scores[:, 0],
        "multi-output": scores,
        "poisson": random.poisson(np.exp(0.3 * scores[:, 0])).astype(float),
    }
    return X, targets[kind]


def estimator(kind, module=mlp_xp, **settings):
    """Make a small model for that kind of problem: ours, or scikit-learn's."""
    settings = {
        "hidden_layer_sizes": (5,),
        "activation": "tanh",
        "max_iter": 6,
        "random_state": 1,
        **settings,
    }
    if kind in CLASSIFIED:
        return module.MLPClassifier(**settings)
    return module.MLPRegressor(**({"loss": "poisson"} if kind == "poisson" else {}), **settings)


# Few shapes, for JAX's sake: it compiles each function for each of them.
HALVES = {"batch_size": 20, "validation_fraction": 0.5}


def arrays(model):
    return [*model.coefs_, *model.intercepts_]


def snapshot(model):
    return [to_host(array).copy() for array in arrays(model)]


def assert_same(model, other, rtol=0.0, atol=0.0):
    """Compare the parameters of two models, or of a model and an earlier snapshot."""
    others = other if isinstance(other, list) else snapshot(other)
    for one, another in zip(snapshot(model), others, strict=True):
        np.testing.assert_allclose(one, another, rtol=rtol, atol=atol)


def curves(model):
    return {
        name: getattr(model, name, None)
        for name in ("loss_curve_", "val_loss_curve_", "validation_scores_", "best_validation_score_", "t_")
    }


def assert_labels(actual, expected, like):
    """Compare labels, and where they are, with their dtype."""
    assert placement(actual=actual)[:2] == placement(like=like)[:2]
    assert actual.dtype == like.dtype
    np.testing.assert_array_equal(to_host(actual), expected)


def prediction_methods(model):
    return [name for name in ("predict", "predict_proba", "predict_log_proba") if hasattr(model, name)]


def foreign(values):
    """Return an array that lives elsewhere than those of every library: the strict one's other device."""
    return pytest.importorskip("array_api_strict").asarray(values)


# Every namespace.


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_numpys_in_every_namespace(kind, solver, dtype, library):
    X, y = problem(kind)
    peer = estimator(kind, solver=solver, **HALVES).fit(X.astype(dtype), y)
    X_here, y_here = library.array(X, dtype), library.array(y, y.dtype.name)
    model = estimator(kind, solver=solver, **HALVES).fit(X_here, y_here)

    assert isinstance(model.coefs_, list)
    assert isinstance(model.intercepts_, list)
    rtol = {"float64": 1e-8, "float32": 2e-3}[dtype]
    for ours, numpys in zip(arrays(model), arrays(peer), strict=True):
        assert_close(ours, numpys, X_here, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.loss_curve_, peer.loss_curve_, rtol=rtol)
    assert type(model.loss_curve_[0]) is float
    for method in prediction_methods(model):
        predicted, expected = getattr(model, method)(X_here), getattr(peer, method)(X.astype(dtype))
        if kind in CLASSIFIED and method == "predict":
            assert_labels(predicted, expected, y_here)
        else:
            assert_close(predicted, expected, X_here, rtol=10 * rtol, atol=rtol)
    if kind in CLASSIFIED:
        assert_labels(model.classes_, np.arange(3) if kind == "multi-label" else np.unique(y), y_here)
    score = model.score(X_here, y_here)
    assert type(score) is float
    assert score == pytest.approx(peer.score(X.astype(dtype), y), abs=10 * rtol)
    # What the caller passed is as it was.
    np.testing.assert_array_equal(to_host(X_here), X.astype(dtype))
    np.testing.assert_array_equal(to_host(y_here), y)


X_VAL, Y_VAL = problem("multi-class", 20, seed=5)


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"early_stopping": True, "class_weight": "balanced"}, False),
        ({"early_stopping": "loss", "class_weight": {0: 1.0, 1: 5.0, 2: 0.5}}, False),
        ({"early_stopping": "f1_macro", "solver": "sgd", "learning_rate": "adaptive"}, False),
        ({"early_stopping": "loss", "weight_decay": 0.1}, True),
        (
            {
                "early_stopping": "neg_log_loss",
                "hidden_layer_sizes": (5, 5),
                "activation": ["gelu", leaky_relu(0.2)],
            },
            True,
        ),
        ({"hidden_layer_sizes": (), "solver": "sgd", "learning_rate": "invscaling"}, True),
    ],
)
def test_everything_else_is_numpys_too(settings, given, library):
    X, y = problem("multi-class")
    weight = np.linspace(0.5, 2.0, len(X))
    weight_val = np.linspace(2.0, 1.0, len(X_VAL))
    settings = {"learning_rate_init": 0.02, **HALVES, **settings}

    def fit(array):
        validation = {
            "X_val": array(X_VAL, "float64"),
            "y_val": array(Y_VAL, "int64"),
            "sample_weight_val": array(weight_val, "float64"),
        }
        data = array(X, "float64"), array(y, "int64"), array(weight, "float64")
        return estimator("multi-class", **settings).fit(*data, **(validation if given else {}))

    model, peer = fit(library.array), fit(np.array)
    for ours, numpys in zip(arrays(model), arrays(peer), strict=True):
        assert_close(ours, numpys, library.array([1.0]), rtol=1e-8, atol=1e-12)
    for name in ("loss_curve_", "val_loss_curve_", "validation_scores_"):
        ours, numpys = getattr(model, name), getattr(peer, name)
        assert isinstance(ours, list)
        assert len(ours) == model.n_iter_
        assert all(type(value) is float for value in ours)
        np.testing.assert_allclose(ours, numpys, rtol=1e-8)


FORMS = {
    "list": lambda values, library: values.tolist(),
    "host": lambda values, library: values,
    "here": lambda values, library: library.array(values, values.dtype.name),
    "elsewhere": lambda values, library: foreign(values),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["multi-class", "multi-label", "regression"])
def test_targets_and_weights_may_be_anywhere(kind, form, library):
    X, y = problem(kind)
    weight = np.linspace(0.5, 2.0, len(X))
    X_here, y_form, weight_form = library.array(X), FORMS[form](y, library), FORMS[form](weight, library)
    settings = {"early_stopping": True, **HALVES}
    model = estimator(kind, **settings).fit(X_here, y_form, sample_weight=weight_form)
    peer = estimator(kind, **settings).fit(X, y, sample_weight=weight)
    for ours, numpys in zip(arrays(model), arrays(peer), strict=True):
        assert_close(ours, numpys, X_here, rtol=1e-8, atol=1e-12)
    predicted = model.predict(X_here)
    assert placement(predicted=predicted)[:2] == placement(X=X_here)[:2]
    np.testing.assert_allclose(to_host(predicted), peer.predict(X), rtol=1e-8)
    expected = peer.score(X, y, weight)
    assert model.score(X_here, y_form, weight_form) == pytest.approx(expected, rel=1e-8)

    partial, partial_peer = estimator(kind, **HALVES), estimator(kind, **HALVES)
    first = {"classes": np.arange(3)} if kind in CLASSIFIED else {}
    first_form = {name: FORMS[form](values, library) for name, values in first.items()}
    partial.partial_fit(X_here, y_form, weight_form, **first_form)
    partial_peer.partial_fit(X, y, weight, **first)
    assert_same(partial, partial_peer, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_text_labels_stay_on_the_host(n_classes, as_list, library):
    X, y = problem("multi-class" if n_classes == 3 else "binary")
    names = np.array(["small", "large", "middle"])
    text = names[y].tolist() if as_list else names[y]
    X_here = library.array(X)
    model = estimator("multi-class", class_weight={"large": 2.0}, **HALVES).fit(X_here, text)
    assert type(model.classes_) is np.ndarray
    assert model.classes_.tolist() == sorted(names[:n_classes].tolist())
    peer = estimator("multi-class", neural_network, **HALVES)
    peer.fit(X, names[y], sample_weight=np.where(names[y] == "large", 2.0, 1.0))
    predicted = model.predict(X_here)
    assert type(predicted) is np.ndarray
    np.testing.assert_array_equal(predicted, peer.predict(X))
    assert_close(model.predict_proba(X_here), peer.predict_proba(X), X_here, rtol=1e-8)
    assert model.score(X_here, text) == pytest.approx(metrics.accuracy_score(names[y], predicted))


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_integers_become_the_default_floats(dtype, library):
    X = np.random.RandomState(0).randint(0, 5, (40, 4))
    y = (X[:, 0] > X[:, 1]).astype(np.int64)
    X_here = library.array(X, dtype)
    model = estimator("binary", **HALVES).fit(X_here, y)
    like = library.xp.zeros((1,), device=library.device)
    peer = estimator("binary", **HALVES).fit(X.astype(float), y)
    for ours, numpys in zip(arrays(model), arrays(peer), strict=True):
        assert_close(ours, numpys, like, rtol=1e-3, atol=1e-4)
    assert_close(model.predict_proba(X_here), peer.predict_proba(X), like, rtol=1e-3)
    assert_same(estimator("binary", **HALVES).fit(X.astype(dtype), y), peer)


def test_half_precision_becomes_the_default_floats(library):
    if library.name == "strict":
        pytest.skip("the standard has no float16")
    X, y = problem("binary")
    X_here = library.array(X, "float16")
    model = estimator("binary", **HALVES).fit(X_here, y)
    like = library.xp.zeros((1,), device=library.device)
    peer = estimator("binary", **HALVES).fit(to_host(X_here).astype(float), y)
    assert_close(model.predict_proba(X_here), peer.predict_proba(X), like, rtol=1e-2)


def test_values_beyond_32_bits_of_integer_labels(library):
    X, y = problem("binary")
    labels = np.array([2**40, 2**40 + 1])
    model = estimator("binary", **HALVES).fit(library.array(X), library.array(labels[y], "int64"))
    assert to_host(model.classes_).tolist() == labels.tolist()
    assert set(to_host(model.predict(library.array(X))).tolist()) <= set(labels.tolist())


DISPATCH = """
import numpy as np
from conftest import LIBRARIES
from sklearn import config_context, metrics
from mlp_xp import MLPClassifier, MLPRegressor
from mlp_xp._arrays import to_host

X = np.random.RandomState(0).standard_normal((40, 4))
labels = (X[:, 0] > X[:, 1]).astype(np.int64)
settings = {"hidden_layer_sizes": (5,), "random_state": 0, "max_iter": 5, "early_stopping": True}
for name in LIBRARIES.keys() - {"jax"}:  # which takes long to start
    try:
        library = LIBRARIES[name]()
    except ModuleNotFoundError:
        continue
    for cls, y in ((MLPClassifier, labels), (MLPRegressor, X[:, 0])):
        expected = cls(**settings).fit(X, y)
        X_here, y_here = library.array(X), library.array(y, y.dtype.name)
        with config_context(array_api_dispatch=True):
            model = cls(**settings).fit(X_here, y_here)
            predicted = model.predict(X_here)
            score = model.score(X_here, y_here)
        assert type(predicted) is type(X_here), name
        assert type(model.coefs_[0]) is type(X_here), name
        np.testing.assert_allclose(to_host(model.coefs_[0]), expected.coefs_[0], rtol=1e-6, atol=1e-9)
        assert type(score) is float
        assert abs(score - expected.score(X, y)) < 1e-8
    print(name)
"""


@pytest.mark.slow
@pytest.mark.installed
def test_with_array_api_dispatch_switched_on():
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(mlp_xp.__file__).parents[1])])
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": here}
    command = [sys.executable, "-W", "ignore", "-c", DISPATCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"numpy", "numpy_read_only"} <= set(done.stdout.split())


# Another namespace or device than fit's.


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "score", "partial_fit"])
@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_arrays_from_elsewhere_are_refused(kind, method, library):
    X, y = problem(kind)
    X_here = library.array(X)
    model = estimator(kind, **HALVES)
    if not hasattr(model, method):
        return
    model.fit(X_here, y)
    before, call = snapshot(model), getattr(model, method)
    name = type(model).__name__
    message = (
        rf"^Inputs passed to {name}\.{method}\(\) must use the same namespace and the same device as "
        r"those passed to fit\(\)"
    )
    with pytest.raises(ValueError, match=message):
        call(foreign(X)) if method.startswith("predict") else call(foreign(X), y)
    assert_same(model, before)
    model.predict(X_here)
    if library.name.startswith("numpy"):
        elsewhere = estimator(kind, **HALVES).fit(foreign(X), y)
        call = getattr(elsewhere, method)
        for host in (X, X.tolist()):
            with pytest.raises(ValueError, match=message):
                call(host) if method.startswith("predict") else call(host, y)


def test_a_warm_start_from_elsewhere_is_refused(library):
    X, y = problem("binary")
    settings = {"warm_start": True, **HALVES}
    model = estimator("binary", **settings).fit(library.array(X), y)
    before = snapshot(model)
    with pytest.raises(ValueError, match="same namespace and the same device"):
        model.fit(foreign(X), y)
    assert_same(model, before)
    twin = estimator("binary", **settings).fit(X, y).fit(X, y)
    assert_same(model.fit(library.array(X), y), twin, rtol=1e-8, atol=1e-12)
    # Without a warm start nothing of the old place matters.
    model = estimator("binary", **HALVES).fit(library.array(X), y).fit(foreign(X), y)
    twin = estimator("binary", **HALVES).fit(X, y)
    assert_close(model.coefs_[0], twin.coefs_[0], foreign(X), rtol=1e-8)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("kind", ["binary", "multi-output"])
def test_a_moved_model_is_the_same_model(kind, solver, library):
    X, y = problem(kind)
    settings = {"solver": solver, "warm_start": True, "early_stopping": solver == "adam", **HALVES}
    X_here = library.array(X)
    model = estimator(kind, **settings).fit(X_here, y)
    before, score, history = snapshot(model), model.score(X_here, y), curves(model)
    predictions = {name: to_host(getattr(model, name)(X_here)) for name in prediction_methods(model)}
    assert model.to("numpy") is model
    assert_same(model, before)
    for name, expected in predictions.items():
        actual = getattr(model, name)(X)
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert model.score(X, y) == pytest.approx(score)
    assert curves(model) == history
    # It goes on from where it was, there and back again.
    twin = estimator(kind, **settings).fit(X, y)
    tolerance = {"rtol": 1e-6, "atol": 1e-8} if solver == "lbfgs" else {"rtol": 1e-8, "atol": 1e-12}
    assert_same(model.fit(X, y), twin.fit(X, y), **tolerance)
    name = library.name.removesuffix("_cuda")
    if name in ("torch", "jax", "cupy"):
        model.to(name)
        X_there = placement(like=model.coefs_[0]).from_host(X)
        assert placement(like=model.coefs_[0]).xp is library.xp
        assert_same(model.fit(X_there, y), twin.fit(X, y), **tolerance)
        for method in prediction_methods(model):
            assert placement(like=getattr(model, method)(X_there))[:2] == placement(like=X_there)[:2]


def test_a_device_moves_within_its_namespace():
    strict = pytest.importorskip("array_api_strict")
    X, y = problem("multi-class")
    there = strict.asarray(X, device=strict.Device("device1"))
    model = estimator("multi-class", warm_start=True).fit(there, y)
    expected = to_host(model.predict_proba(there))
    cpu = strict.Device("CPU_DEVICE")
    assert model.to(cpu) is model
    like = strict.asarray(X, device=cpu)
    assert_close(model.predict_proba(like), expected, like, rtol=1e-12)
    assert placement(classes=model.classes_).device == cpu
    with pytest.raises(ValueError, match="same device"):
        model.predict(there)
    twin = estimator("multi-class", max_iter=12).fit(X, y)
    for ours, numpys in zip(arrays(model.fit(like, y)), arrays(twin), strict=True):
        assert_close(ours, numpys, like, rtol=1e-8, atol=1e-12)


def test_moving_needs_a_fit_and_a_place():
    X, y = problem("binary")
    with pytest.raises(NotFittedError):
        estimator("binary").to("numpy")
    model = estimator("binary").fit(X, y)
    before = snapshot(model)
    with pytest.raises((TypeError, ValueError), match="numpy.*torch.*'tensorflow'"):
        model.to("tensorflow")
    assert_same(model, before)


# Backends.


def skip_without(name, request):
    if name not in ("auto", "numpy"):
        need(name, request)
        try:
            backend(name)
        except BackendUnavailableError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("name", ["auto", "numpy", "torch", "jax", "cupy"])
@pytest.mark.parametrize("kind", ["multi-class", "regression"])
def test_a_backend_computes_and_gives_back(kind, name, library, request):
    skip_without(name, request)
    X, y = problem(kind)
    X_here, y_here = library.array(X), library.array(y, y.dtype.name)
    settings = {"early_stopping": True, **HALVES}
    model = estimator(kind, backend=name, **settings).fit(X_here, y_here)
    peer = estimator(kind, **settings).fit(X, y)
    for ours, numpys in zip(arrays(model), arrays(peer), strict=True):
        assert_close(ours, numpys, X_here, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.validation_scores_, peer.validation_scores_, rtol=1e-8)
    if kind == "multi-class":
        assert_labels(model.classes_, peer.classes_, y_here)
        assert_labels(model.predict(X_here), peer.predict(X), y_here)
        assert_close(model.predict_proba(X_here), peer.predict_proba(X), X_here, rtol=1e-8)
    else:
        assert_close(model.predict(X_here), peer.predict(X), X_here, rtol=1e-8)
    assert model.score(X_here, y_here) == pytest.approx(peer.score(X, y), rel=1e-8)


@pytest.mark.parametrize("name", ["torch", "jax", "cupy"])
def test_a_model_from_a_backend_is_loaded_without_it(name, request):
    skip_without(name, request)
    X, y = problem("multi-class")
    settings = {"warm_start": True, "early_stopping": True, **HALVES}
    model = estimator("multi-class", backend=name, **settings).fit(X, y)
    stored = pickle.dumps(model.set_params(backend=None))
    assert name.encode() not in stored
    twin = estimator("multi-class", max_iter=12, **settings).fit(X, y)
    assert_same(pickle.loads(stored).fit(X, y), twin, rtol=1e-8, atol=1e-12)


def test_an_unknown_backend():
    X, y = problem("binary")
    model = estimator("binary", backend="tensorflow")
    with pytest.raises((TypeError, ValueError), match="`backend` must be .*'cupy'.*'tensorflow'"):
        model.fit(X, y)
    assert not hasattr(model, "coefs_")


def counting():
    """Tanh that counts its forward passes."""
    calls = []

    def forward(xp, z):
        calls.append(z.shape)
        a = xp.tanh(z)
        return a, a

    return Activation(forward, lambda xp, delta, a: delta * (1.0 - a * a)), calls


def test_a_backend_that_is_not_there_is_an_error_before_any_training():
    if util.find_spec("cupy"):
        pytest.skip("CuPy is installed")
    X, y = problem("binary")
    activation, calls = counting()
    random = np.random.RandomState(0)
    model = estimator("binary", activation=activation, backend="cupy", random_state=random)
    with pytest.raises(BackendUnavailableError, match="CuPy is not installed"):
        model.fit(X, y)
    assert calls == []
    assert not hasattr(model, "coefs_")
    assert random.randint(2**31) == np.random.RandomState(0).randint(2**31)


def test_sparse_data_need_numpy(request):
    need("torch", request)
    sparse = pytest.importorskip("scipy.sparse")
    X, y = problem("binary")
    with pytest.raises((TypeError, ValueError), match="(?i)sparse"):
        estimator("binary", backend="torch").fit(sparse.csr_matrix(X), y)
    with pytest.raises((TypeError, ValueError), match=r"(?i)sparse") as caught:
        estimator("binary", backend="torch").fit(X, y, X_val=sparse.csr_matrix(X), y_val=y)
    assert not isinstance(caught.value, TrainingError)
    assert_same(
        estimator("binary", backend="numpy").fit(sparse.csr_matrix(X), y),
        estimator("binary").fit(X, y),
        rtol=1e-8,
        atol=1e-12,
    )


# Weights of classes and samples.


@pytest.mark.parametrize(
    ("solver", "weighted", "early_stopping"),
    [("adam", False, True), ("adam", True, False), ("adam", True, True), ("lbfgs", True, False)],
)
@pytest.mark.parametrize(
    ("kind", "class_weight"),
    [
        ("binary", {0: 0.2, 1: 3.0}),
        ("binary", {1: 4}),
        ("multi-class", "balanced"),
        ("multi-label", "balanced"),
        ("multi-label", [{0: 1.0, 1: 5.0}, {0: 2.0, 1: 1.0}, {0: 1.0, 1: 0.1}]),
    ],
)
def test_class_weights_are_sample_weights(kind, class_weight, solver, weighted, early_stopping):
    X, y = problem(kind)
    weight = np.linspace(0.1, 2.0, len(X)) if weighted else None
    settings = {"solver": solver, "batch_size": 16, "early_stopping": early_stopping}
    model = estimator(kind, class_weight=class_weight, **settings).fit(X, y, weight)
    equivalent = compute_sample_weight(class_weight, y)
    if weighted and class_weight == "balanced":  # by the classes' weights, not by their rows
        columns = y.T if y.ndim == 2 else [y]
        equivalent = np.prod(
            [
                compute_class_weight("balanced", classes=np.unique(c), y=c, sample_weight=weight)[c]
                for c in columns
            ],
            axis=0,
        )
    equivalent = equivalent * (weight if weighted else 1.0)
    peer = estimator(kind, **settings).fit(X, y, equivalent)
    assert_same(model, peer, rtol=1e-10)
    assert curves(model) == curves(peer)
    unweighted = estimator(kind, **settings).fit(X, y, weight)
    assert np.abs(snapshot(model)[0] - snapshot(unweighted)[0]).max() > 1e-4


def test_class_weights_by_text_and_in_partial_fit():
    X, y = problem("binary")
    names = np.array(["no", "yes"])
    model = estimator("binary", class_weight={"yes": 3.0}, batch_size=16)
    model.partial_fit(X, names[y], classes=names).partial_fit(X, names[y])
    peer = estimator("binary", neural_network, batch_size=16)
    for _ in range(2):
        peer.partial_fit(X, y, sample_weight=np.where(y == 1, 3.0, 1.0), classes=[0, 1])
    assert_same(model, peer, rtol=1e-10)


def test_class_weights_for_a_class_that_is_not_there():
    X, y = problem("binary")
    with pytest.raises(ValueError, match="class_weight"):
        estimator("binary", class_weight={0: 1.0, 7: 2.0}).fit(X, y)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("kind", KINDS)
def test_sample_weights_are_repeated_rows(kind, solver):
    X, y = problem(kind)
    counts = np.random.RandomState(3).randint(0, 3, len(X))
    settings = {"solver": solver, "alpha": 0.1, "learning_rate_init": 0.05}
    weighted = estimator(kind, **settings).fit(X, y, sample_weight=counts)
    repeated = estimator(kind, **settings).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts, axis=0))
    rtol = 1e-5 if solver == "lbfgs" else 1e-9
    assert_same(weighted, repeated, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=rtol)
    unweighted = estimator(kind, **settings).fit(X, y)
    assert_same(estimator(kind, **settings).fit(X, y, np.ones(len(X))), unweighted, rtol=1e-9, atol=1e-12)


# Validation data.


def losses_by_scikit_learn(kind, model, X, y, weight):
    """Compute the mean loss from the model's predictions alone."""
    if kind == "multi-label":
        probability = model.predict_proba(X)
        each = [
            metrics.log_loss(y[:, label], probability[:, label], sample_weight=weight, labels=[0, 1])
            for label in range(3)
        ]
        return sum(each)
    if kind in CLASSIFIED:
        return metrics.log_loss(y, model.predict_proba(X), sample_weight=weight, labels=model.classes_)
    loss = metrics.mean_poisson_deviance if kind == "poisson" else metrics.mean_squared_error
    return loss(y, model.predict(X), sample_weight=weight) / 2.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_validation_losses_and_scores_are_scikit_learns(kind, weighted):
    X, y = problem(kind)
    X_val, y_val = problem(kind, 25, seed=7)
    weight = np.linspace(0.1, 2.0, 25) if weighted else None
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": weight}
    settings = {"alpha": 2.0, "batch_size": 16, "learning_rate_init": 0.02, "max_iter": 1, "warm_start": True}
    model = estimator(kind, **settings)
    losses, scores = [], []
    for _ in range(4):
        model.fit(X, y, **validation)
        losses.append(losses_by_scikit_learn(kind, model, X_val, y_val, weight))
        scores.append(model.score(X_val, y_val, weight))
        predicted = model.predict(X_val)
        score = metrics.accuracy_score if kind in CLASSIFIED else metrics.r2_score
        assert scores[-1] == pytest.approx(score(y_val, predicted, sample_weight=weight), abs=1e-12)
    np.testing.assert_allclose(model.val_loss_curve_, losses, rtol=1e-9)
    np.testing.assert_allclose(model.validation_scores_, scores, rtol=1e-9)
    assert model.best_validation_score_ == max(model.validation_scores_)
    # They are only looked at.
    peer = estimator(kind, **{**settings, "max_iter": 4}).fit(X, y)
    assert_same(model, peer)
    assert peer.val_loss_curve_ is None
    assert peer.validation_scores_ is None


def test_the_history_is_the_curves_as_one_table():
    X, y = problem("binary")
    model = estimator("binary", max_iter=2, warm_start=True)
    assert not hasattr(model, "history_")
    model.fit(X, y)
    assert model.history_ == [
        {"epoch": 1, "loss": model.loss_curve_[0]},
        {"epoch": 2, "loss": model.loss_curve_[1]},
    ]
    model.fit(X, y, X_val=X[:9], y_val=y[:9])  # only the later epochs have been measured
    first, _, third, fourth = model.history_
    assert set(first) == {"epoch", "loss"}
    assert (third["val_accuracy"], fourth["val_accuracy"]) == tuple(model.validation_scores_)
    assert (third["val_loss"], fourth["val_loss"]) == tuple(model.val_loss_curve_)
    assert model.history_["loss"] == model.loss_curve_
    named = estimator("binary", early_stopping="f1").fit(X, y)
    assert named.history_["val_f1"] == named.validation_scores_


OVERFITTING = {
    "hidden_layer_sizes": (30,),
    "learning_rate_init": 0.1,
    "max_iter": 60,
    "n_iter_no_change": 8,
    "alpha": 0.0,
}


@pytest.mark.parametrize("rule", ["loss", "score"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_weights_come_back(kind, rule):
    X, y = problem(kind, 30)
    X_val, y_val = problem(kind, 60, seed=11)
    settings = {**OVERFITTING, "learning_rate_init": 0.01} if kind == "poisson" else OVERFITTING
    model = estimator(kind, early_stopping=rule, **settings).fit(X, y, X_val=X_val, y_val=y_val)
    last = estimator(kind, **{**settings, "max_iter": model.n_iter_}).fit(X, y)
    if rule == "loss":
        best = int(np.argmin(model.val_loss_curve_))
        loss = losses_by_scikit_learn(kind, model, X_val, y_val, None)
        assert loss == pytest.approx(model.val_loss_curve_[best], rel=1e-9)
        assert loss < losses_by_scikit_learn(kind, last, X_val, y_val, None)
    else:
        best = int(np.argmax(model.validation_scores_))
        score = model.score(X_val, y_val)
        assert score == pytest.approx(max(model.validation_scores_), rel=1e-9)
        assert score == pytest.approx(model.best_validation_score_, rel=1e-9)
        assert score >= last.score(X_val, y_val)
    # The rule stopped it, and the weights are those of the best epoch.
    assert best + 1 < model.n_iter_ < settings["max_iter"]
    assert_same(model, estimator(kind, **{**settings, "max_iter": best + 1}).fit(X, y))


@pytest.mark.parametrize(
    ("kind", "scorer"),
    [
        ("binary", "f1"),
        ("binary", "roc_auc"),
        ("multi-class", "neg_log_loss"),
        ("multi-class", "balanced_accuracy"),
        ("multi-label", "f1_macro"),
        ("regression", "neg_mean_absolute_error"),
        ("multi-output", "explained_variance"),
        ("poisson", "neg_mean_poisson_deviance"),
    ],
)
def test_scorers_of_scikit_learn(kind, scorer):
    X, y = problem(kind)
    X_val, y_val = problem(kind, 60, seed=11)
    settings = {**OVERFITTING, "learning_rate_init": 0.02}
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": np.linspace(0.5, 2.0, 60)}
    model = estimator(kind, early_stopping=scorer, **settings).fit(X, y, **validation)
    score = metrics.get_scorer(scorer)(model, X_val, y_val, sample_weight=validation["sample_weight_val"])
    assert score == pytest.approx(model.best_validation_score_, rel=1e-9)
    assert model.best_validation_score_ == max(model.validation_scores_)
    # After each epoch.
    follower = estimator(kind, early_stopping=scorer, **{**settings, "max_iter": 1})
    follower.fit(X, y, **validation)
    score = metrics.get_scorer(scorer)(follower, X_val, y_val, sample_weight=validation["sample_weight_val"])
    assert model.validation_scores_[0] == pytest.approx(score, rel=1e-9)


class MacroF1(neural_network.MLPClassifier):
    """Scikit-learn's, with another score on its validation part."""

    def _score(self, X, y, sample_weight=None):
        return metrics.f1_score(y, self._predict(X, check_input=False), average="macro")


class MeanAbsoluteError(neural_network.MLPRegressor):
    """Scikit-learn's, with another score on its validation part."""

    def _score(self, X, y, sample_weight=None):
        return -metrics.mean_absolute_error(y, self._predict(X, check_input=False))


@pytest.mark.parametrize(
    ("kind", "rule", "peer"),
    [
        ("multi-class", "accuracy", neural_network.MLPClassifier),
        ("multi-class", "score", neural_network.MLPClassifier),
        ("multi-class", "f1_macro", MacroF1),
        ("regression", "r2", neural_network.MLPRegressor),
        ("regression", "neg_mean_absolute_error", MeanAbsoluteError),
    ],
)
def test_scorers_on_the_part_split_off(kind, rule, peer):
    X, y = problem(kind, 100)
    settings = {**OVERFITTING, "validation_fraction": 0.3, "activation": "tanh", "random_state": 1}
    model = estimator(kind, early_stopping=rule, **settings).fit(X, y)
    peer = peer(early_stopping=True, **settings).fit(X, y)
    np.testing.assert_allclose(model.validation_scores_, peer.validation_scores_, rtol=1e-9)
    assert model.best_validation_score_ == pytest.approx(peer.best_validation_score_, rel=1e-9)
    assert model.n_iter_ == peer.n_iter_
    assert_same(model, peer, rtol=1e-7, atol=1e-10)


BINARY_X, BINARY_Y = problem("binary")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"X_val": BINARY_X}, "`y_val`"),
        ({"y_val": BINARY_Y}, "`X_val`"),
        ({"sample_weight_val": np.ones(40)}, "`X_val`"),
        ({"X_val": BINARY_X[:, :3], "y_val": BINARY_Y}, "X_val.*3 features|3 features.*4"),
        ({"X_val": BINARY_X[:10], "y_val": BINARY_Y}, "X_val|y_val|inconsistent"),
        ({"X_val": BINARY_X, "y_val": BINARY_Y + 5}, "`y_val` has classes"),
        ({"X_val": BINARY_X, "y_val": BINARY_Y, "sample_weight_val": np.ones(3)}, "sample_weight"),
        ({"X_val": np.full((40, 4), np.nan), "y_val": BINARY_Y}, "`X_val`: Input X contains NaN"),
        ({"X_val": np.empty((0, 4)), "y_val": np.empty(0)}, "X_val|0 sample"),
    ],
)
def test_bad_validation_data(validation, message):
    model = estimator("binary", warm_start=True).fit(BINARY_X, BINARY_Y)
    before, history = snapshot(model), copy.deepcopy(curves(model))
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(BINARY_X, BINARY_Y, **validation)
    assert_same(model, before)
    assert curves(model) == history


def test_validation_data_live_where_the_data_do(library):
    with pytest.raises(ValueError, match="X_val"):
        estimator("binary").fit(library.array(BINARY_X), BINARY_Y, X_val=foreign(BINARY_X), y_val=BINARY_Y)


# Activations, against PyTorch's own derivatives.


def softsign_forward(xp, z):
    scale = 1.0 / (1.0 + xp.abs(z))
    return z * scale, scale


def softsign_backward(xp, delta, scale):
    return delta * scale * scale


SOFTSIGN = Activation(softsign_forward, softsign_backward)


def start_of(model, X, y):
    """Return copies of the weights that a fit starts from, and of the biases."""
    still = {"solver": "sgd", "learning_rate_init": 1e-300, "max_iter": 1, "weight_decay": 0.0}
    start = copy.deepcopy(model).set_params(**still).fit(X, y)
    return [array.copy() for array in start.coefs_], [array.copy() for array in start.intercepts_]


def torch_training(torch, model, X, y, activations, step, epochs):
    """Train on all rows in PyTorch; return the weights and biases and each epoch's loss."""
    weights, biases = (
        [torch.tensor(array, requires_grad=True) for array in part] for part in start_of(model, X, y)
    )
    X, target = torch.tensor(X), torch.tensor(y)
    losses = []
    step = step(weights, biases)
    for _ in range(epochs):
        a = X
        for activation, weight, bias in zip(activations, weights, biases, strict=False):
            a = activation(a @ weight + bias)
        output = a @ weights[-1] + biases[-1]
        if output.shape[1] == 1:
            loss = 0.5 * torch.nn.functional.mse_loss(output[:, 0], target)
        else:
            loss = torch.nn.functional.cross_entropy(output, target)
        loss = loss + 0.5 * model.alpha * sum((weight**2).sum() for weight in weights) / len(X)
        for parameter in (*weights, *biases):
            parameter.grad = None
        loss.backward()
        step()
        losses.append(float(loss.detach()))
    return [array.detach().numpy() for array in (*weights, *biases)], losses


PEERS = {
    "leaky_relu": lambda torch: torch.nn.LeakyReLU(0.01),
    "elu": lambda torch: torch.nn.ELU(),
    "silu": lambda torch: torch.nn.SiLU(),
    "gelu": lambda torch: torch.nn.GELU(approximate="tanh"),
    "tanh": lambda torch: torch.tanh,
    leaky_relu(0.3): lambda torch: torch.nn.LeakyReLU(0.3),
    elu(0.5): lambda torch: torch.nn.ELU(0.5),
    SOFTSIGN: lambda torch: torch.nn.Softsign(),
}


@pytest.mark.parametrize("kind", ["multi-class", "regression"])
@pytest.mark.parametrize(
    "activation", [*PEERS, ("silu", SOFTSIGN), ["gelu", leaky_relu(0.3)]], ids=lambda value: str(value)[:12]
)
def test_activations_against_pytorch(activation, kind, request):
    torch = need("torch", request)
    X, y = problem(kind)
    each = activation if type(activation) in (tuple, list) else [activation, activation]
    model = estimator(
        kind,
        hidden_layer_sizes=(6, 5),
        activation=activation,
        solver="sgd",
        learning_rate_init=0.2,
        momentum=0.0,
        alpha=0.5,
        max_iter=20,
    )

    def sgd(weights, biases):
        return torch.optim.SGD([*weights, *biases], lr=0.2).step

    expected, losses = torch_training(torch, model, X, y, [PEERS[one](torch) for one in each], sgd, 20)
    model.fit(X, y)
    assert_same(model, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.loss_curve_, losses, rtol=1e-10)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_one_activation_for_each_layer_is_that_activation(activation, solver):
    X, y = problem("multi-class")
    settings = {"hidden_layer_sizes": (6, 5), "solver": solver}
    for each in ([activation, activation], (activation, activation)):
        model = estimator("multi-class", activation=each, **settings).fit(X, y)
        peer = estimator("multi-class", neural_network, activation=activation, **settings).fit(X, y)
        assert_same(model, peer, rtol=1e-6, atol=1e-8)
        assert model.activation is each


# Weight decay, against PyTorch's.


@pytest.mark.parametrize("kind", ["multi-class", "regression"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "nesterov"])
def test_weight_decay_against_pytorch(solver, kind, request):
    torch = need("torch", request)
    X, y = problem(kind)
    settings = {"solver": "sgd", "momentum": 0.9 * (solver == "nesterov"), "learning_rate_init": 0.1}
    if solver == "adam":
        # PyTorch adds epsilon after the correction; so small a one it does not matter where.
        settings = {"solver": "adam", "epsilon": 1e-30, "learning_rate_init": 0.02}
    model = estimator(kind, weight_decay=0.3, max_iter=15, alpha=0.2, **settings)

    def decaying(weights, biases):
        groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        if solver == "adam":
            return torch.optim.AdamW(groups, lr=0.02, eps=1e-30, weight_decay=0.3).step
        if solver == "sgd":
            return torch.optim.SGD(groups, lr=0.1, weight_decay=0.3).step
        optimizer = torch.optim.SGD([*weights, *biases], lr=0.1, momentum=0.9, nesterov=True)

        def step():
            with torch.no_grad():
                for weight in weights:
                    weight.mul_(1.0 - 0.1 * 0.3)
            optimizer.step()

        return step

    expected, losses = torch_training(torch, model, X, y, [torch.tanh], decaying, 15)
    model.fit(X, y)
    assert_same(model, expected, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(model.loss_curve_, losses, rtol=1e-9)
    without = estimator(kind, max_iter=15, alpha=0.2, **settings).fit(X, y)
    assert np.abs(without.coefs_[0] - model.coefs_[0]).max() > 1e-3


def test_weight_decay_follows_the_learning_rate():
    """With a gradient of zero only the decay is left: the product of ``1 - rate * weight_decay``."""
    X, y = np.zeros((6, 2)), np.zeros(6)
    settings = {"activation": "relu", "momentum": 0.0, "alpha": 0.0, "max_iter": 5}
    rate = {"learning_rate_init": 0.5, "learning_rate": "invscaling", "power_t": 0.5}
    model = estimator("regression", solver="sgd", weight_decay=0.4, **settings, **rate)
    weights, _ = start_of(model, X, y)
    model.fit(X, y)
    # Rows of X are zero, and so are the gradients of the first weights.
    rates = [0.5, *(0.5 / math.sqrt(6 * epoch + 1) for epoch in range(1, 5))]
    shrunk = weights[0] * np.prod([1.0 - 0.4 * rate for rate in rates])
    np.testing.assert_allclose(model.coefs_[0], shrunk, rtol=1e-12)


def test_weight_decay_is_for_gradient_descent():
    X, y = problem("binary")
    with pytest.raises(ValueError, match="`weight_decay`.*lbfgs"):
        estimator("binary", solver="lbfgs", weight_decay=0.1).fit(X, y)


# Warm starts.

RESTARTS = {
    "sgd with momentum": {"solver": "sgd", "learning_rate_init": 0.1},
    "invscaling": {"solver": "sgd", "learning_rate_init": 0.5, "learning_rate": "invscaling", "power_t": 0.3},
    "adaptive": {
        "solver": "sgd",
        "learning_rate_init": 0.3,
        "learning_rate": "adaptive",
        "n_iter_no_change": 1,
        "tol": 0.05,
    },
    "adam": {"learning_rate_init": 0.05, "weight_decay": 0.01},
    "in order": {"learning_rate_init": 0.05, "shuffle": False},
    "early stopping": {"learning_rate_init": 0.1, "early_stopping": True, "n_iter_no_change": 30},
    "on the loss": {"learning_rate_init": 0.1, "early_stopping": "loss", "n_iter_no_change": 30},
    "adaptive and early": {
        "solver": "sgd",
        "learning_rate_init": 0.3,
        "learning_rate": "adaptive",
        "n_iter_no_change": 1,
        "early_stopping": True,
    },
    "scorer": {"learning_rate_init": 0.1, "early_stopping": "f1_macro", "class_weight": "balanced"},
}


def identity(model):
    return model


def unpickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("between", "generator", "given"),
    [
        (identity, False, False),
        (identity, True, False),
        (copy.deepcopy, False, True),
        (unpickled, True, True),
        (unpickled, False, False),
    ],
)
@pytest.mark.parametrize("name", RESTARTS)
def test_fits_of_one_epoch_are_one_fit(name, between, generator, given):
    X, y = problem("multi-class", 60)
    settings = {"warm_start": True, "batch_size": 16, **RESTARTS[name]}
    validation = {"X_val": X_VAL, "y_val": Y_VAL} if given else {}

    def seed():
        return {"random_state": np.random.RandomState(3) if generator else 3}

    whole = estimator("multi-class", max_iter=12, **settings, **seed()).fit(X, y, **validation)
    parts = estimator("multi-class", max_iter=1, **settings, **seed())
    for _ in range(whole.n_iter_):
        parts = between(parts.fit(X, y, **validation))
    assert_same(parts, whole)
    assert curves(parts) == curves(whole)
    assert len(parts.loss_curve_) == whole.n_iter_
    in_two = estimator("multi-class", max_iter=5, **settings, **seed()).fit(X, y, **validation)
    in_two = between(in_two).set_params(max_iter=max(1, whole.n_iter_ - 5)).fit(X, y, **validation)
    assert_same(in_two, whole)
    assert curves(in_two) == curves(whole)


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_changed_between_fits_are_the_new_start(in_place):
    """Without momentum and on all rows a restart of scikit-learn's is the same as going on."""
    X, y = problem("multi-class")
    settings = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.3, "warm_start": True}

    def train_change_train(model):
        model.fit(X, y)
        if in_place:
            model.coefs_[0][...] *= -0.5
            model.intercepts_[1][0] = 2.0
        else:
            model.coefs_ = [-0.5 * array for array in model.coefs_]
            model.intercepts_ = [array + 1.0 for array in model.intercepts_]
        return model.fit(X, y)

    ours = train_change_train(estimator("multi-class", **settings))
    theirs = train_change_train(estimator("multi-class", neural_network, **settings))
    assert_same(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("between", [identity, unpickled])
def test_what_does_not_fit_a_warm_start_is_refused(between, solver):
    X, y = problem("multi-class")
    model = estimator("multi-class", warm_start=True, solver=solver)
    twin = copy.deepcopy(model)
    model, before = between(model.fit(X, y)), snapshot(twin.fit(X, y))
    history = copy.deepcopy(curves(model))
    refused = [
        ({"hidden_layer_sizes": (7,)}, X, y, "hidden_layer_sizes"),
        ({"hidden_layer_sizes": (5, 5)}, X, y, "hidden_layer_sizes"),
        ({}, X[:, :3], y, "3 features"),
        ({}, X, y % 2, "classes"),
        ({}, X, y + 1, "classes"),
        ({}, X, np.stack([y % 2, y % 2], axis=1), "classes|multi|label"),
        ({}, X, y[:-1], "inconsistent"),
        ({}, np.full_like(X, np.inf), y, "(?i)inf"),
    ]
    for settings, X_bad, y_bad, message in refused:
        model.set_params(**settings)
        with pytest.raises(ValueError, match=message):
            model.fit(X_bad, y_bad)
        model.set_params(hidden_layer_sizes=(5,))
        assert_same(model, before)
        assert curves(model) == history
        model.predict_proba(X)
    assert_same(model.fit(X, y), twin.fit(X, y))


def test_a_regressions_number_of_outputs_stays():
    X, y = problem("multi-output")
    model = estimator("multi-output", warm_start=True).fit(X, y)
    before = snapshot(model)
    for other in (y[:, 0], y[:, :2]):
        with pytest.raises(ValueError, match="`y` must have 3 columns"):
            model.fit(X, other)
    assert_same(model, before)
    assert model.predict(X).shape == y.shape


@pytest.mark.parametrize("before", CLASSIFIED)
@pytest.mark.parametrize("after", CLASSIFIED)
def test_a_new_fit_forgets_the_last_problem(before, after):
    X, y = problem(after)
    model = estimator(before, early_stopping=True).fit(*problem(before, 30))
    model.set_params(early_stopping=False).fit(X[:, :3], y)
    fresh = estimator(after).fit(X[:, :3], y)
    assert_same(model, fresh)
    assert curves(model) == curves(fresh)
    np.testing.assert_array_equal(model.predict_proba(X[:, :3]), fresh.predict_proba(X[:, :3]))
    np.testing.assert_array_equal(model.predict(X[:, :3]), fresh.predict(X[:, :3]))


# Divergence.


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(("kind", "rate"), [("regression", 1e3), ("multi-class", 1e120), ("poisson", 1e100)])
def test_divergence_keeps_the_last_finite_weights(kind, rate, observed):
    X, y = problem(kind)
    settings = {"solver": "sgd", "activation": "identity", "momentum": 0.0, "learning_rate_init": rate}
    validation = {"X_val": X, "y_val": y} if observed else {}
    model = estimator(kind, max_iter=200, **settings)
    with pytest.raises(DivergenceError, match="diverged in epoch") as caught:
        model.fit(X, y, **validation)
    n_sound = caught.value.epoch - 1
    assert n_sound >= 1
    assert len(model.loss_curve_) == n_sound
    assert all(map(math.isfinite, model.loss_curve_))
    assert all(np.isfinite(array).all() for array in arrays(model))
    # One epoch fewer is fine, here and in scikit-learn, and no more.
    assert_same(estimator(kind, **{**settings, "max_iter": n_sound}).fit(X, y, **validation), model)
    if kind != "poisson":
        peer = estimator(kind, neural_network, **{**settings, "max_iter": n_sound}).fit(X, y)
        assert_same(model, peer, rtol=1e-6)
        peer = estimator(kind, neural_network, **{**settings, "max_iter": n_sound + 1})
        with suppress(ValueError):
            peer.fit(X, y)
        assert not all(np.isfinite(array).all() for array in [*arrays(peer), peer.loss_curve_])
    model.predict(X)
    unpickled(model)
    model.set_params(learning_rate_init=1e-3, max_iter=3).fit(X, y)
    assert_same(model, estimator(kind, **{**settings, "learning_rate_init": 1e-3, "max_iter": 3}).fit(X, y))


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize(("dtype", "weight"), [("float32", 1e38), ("float64", 1e308)])
def test_weights_whose_sum_overflows_are_refused(dtype, weight, solver, library):
    X, y = problem("binary")
    X, weights = library.array(X, dtype), library.array(np.full(len(X), weight), dtype)
    model = estimator("binary", solver=solver).fit(X, y)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=f"`sample_weight` must have a sum that {dtype} can hold, got .*up to 1e"
    ):
        model.fit(X[:, :2], y, sample_weight=weights)
    assert_same(model, before)
    with pytest.raises(ValueError, match="`class_weight` must have a sum"):
        model.set_params(class_weight={0: weight, 1: weight}).fit(X, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_what_catches_scikit_learns_divergence_catches_ours(solver):
    X, y = problem("regression")
    settings = {"solver": solver, "activation": "identity", "learning_rate_init": 1e200, "max_iter": 50}
    for one in (estimator("regression", neural_network, **settings), estimator("regression", **settings)):
        with pytest.raises(ValueError, match=r"non-finite parameter weights|diverged in epoch"):
            one.fit(X, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_in_a_warm_start_and_in_partial_fit():
    X, y = problem("regression")
    model = estimator("regression", warm_start=True, solver="sgd", momentum=0.0).fit(X, y)
    before, history = snapshot(model), list(model.loss_curve_)
    model.set_params(learning_rate_init=1e300)
    with pytest.raises(DivergenceError):
        model.fit(X, y)
    assert model.loss_curve_[: len(history)] == history
    assert all(np.isfinite(array).all() for array in arrays(model))
    model = estimator("regression", solver="sgd", activation="identity", learning_rate_init=1e200)
    for _ in range(10):
        before = snapshot(model) if hasattr(model, "coefs_") else None
        try:
            model.partial_fit(X, y)
        except DivergenceError:
            break
    else:
        pytest.fail("partial_fit did not diverge")
    assert all(np.isfinite(array).all() for array in arrays(model))
    if before is not None:
        assert_same(model, before)


# Ctrl-C, and callbacks that fail.


def raising(error, at):
    """Tanh that raises at its n-th forward pass."""
    calls = []

    def forward(xp, z):
        float(z[0, 0])  # what looks at a value is not compiled, but called in each step
        calls.append(None)
        if len(calls) == at:
            raise error
        a = xp.tanh(z)
        return a, a

    return Activation(forward, lambda xp, delta, a: delta * (1.0 - a * a))


class Hook:
    """A callback of scikit-learn's that raises, or stops, at the end of the n-th epoch."""

    def __init__(self, error=None, at=math.inf):
        self.error, self.at, self.n, self.log = error, at, 0, []

    def setup(self, estimator, context):
        self.log.append("setup")

    def teardown(self, estimator, context):
        self.log.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.log.append(("begin", context.parent is None))

    def on_fit_task_end(self, estimator, context):
        self.log.append(("end", context.parent is None))
        self.n += context.parent is not None
        if context.parent is not None and self.n == self.at:
            if self.error:
                raise self.error
            return True
        return False


@may_run_call_by_call
@pytest.mark.parametrize(("kind", "solver"), [("regression", "sgd"), ("binary", "adam"), ("binary", "lbfgs")])
def test_an_interrupt_keeps_what_was_trained(kind, solver, library):
    X, y = problem(kind, 20)
    X_here = library.array(X)
    settings = {"solver": solver, "max_iter": 50, "tol": 0.0}
    model = estimator(kind, activation=raising(KeyboardInterrupt, at=12), **settings)
    with pytest.warns(TrainingInterruptedWarning, match="interrupted"):
        assert model.fit(X_here, y) is model
    n_trained = len(model.loss_curve_)
    # On all rows an epoch is one forward pass, and an iteration of L-BFGS at least one.
    assert n_trained == 11 if solver != "lbfgs" else 1 < n_trained < 12
    assert model.n_iter_ == n_trained
    peer = estimator(kind, **{**settings, "max_iter": n_trained}).fit(X_here, y)
    assert_same(model, peer, rtol=1e-12)
    assert model.loss_curve_ == pytest.approx(peer.loss_curve_)
    assert_close(model.coefs_[0], to_host(peer.coefs_[0]), X_here, rtol=1e-12)
    model.score(X_here, y)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupt_in_a_callback(early_stopping, solver):
    X, y = problem("multi-class")
    settings = {"solver": solver, "max_iter": 50, "tol": 0.0, "early_stopping": early_stopping}
    hook = Hook(KeyboardInterrupt, at=4)
    model = estimator("multi-class", **settings).set_callbacks(hook)
    with pytest.warns(TrainingInterruptedWarning, match="interrupted"):
        model.fit(X, y)
    peer = estimator("multi-class", **{**settings, "max_iter": 4}).fit(X, y)
    assert len(model.loss_curve_) == 4
    assert_same(model, peer)
    assert model.loss_curve_ == peer.loss_curve_
    assert hook.log[-1] == "teardown"


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_an_interrupt_where_warnings_are_errors_loses_nothing(solver):
    X, y = problem("multi-class")
    settings = {"solver": solver, "max_iter": 50, "tol": 0.0}
    model = estimator("multi-class", activation=raising(KeyboardInterrupt, at=12), **settings)
    with pytest.raises((TrainingError, TrainingInterruptedWarning), match="interrupted"):
        model.fit(X, y)
    n_trained = len(model.loss_curve_)
    assert n_trained > 1
    assert_same(model, estimator("multi-class", **{**settings, "max_iter": n_trained}).fit(X, y), rtol=1e-12)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_an_interrupted_fit_goes_on_by_warm_start(solver):
    X, y = problem("multi-class")
    settings = {"solver": solver, "max_iter": 10, "tol": 0.0, "warm_start": True}
    model = estimator("multi-class", **settings).set_callbacks(Hook(KeyboardInterrupt, at=4))
    with pytest.warns(TrainingInterruptedWarning):
        model.fit(X, y)
    model.set_callbacks().set_params(max_iter=6).fit(X, y)
    if solver != "lbfgs":
        assert_same(model, estimator("multi-class", **settings).fit(X, y))
        assert len(model.loss_curve_) == 10


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_a_callback_that_fails_loses_nothing(solver):
    X, y = problem("multi-class")
    settings = {"solver": solver, "max_iter": 20, "tol": 0.0}
    hook = Hook(OSError("disk full"), at=4)
    model = estimator("multi-class", **settings).set_callbacks(hook)
    with pytest.raises(OSError, match="disk full") as caught:
        model.fit(X, y)
    assert caught.value is hook.error
    assert hook.log[-1] == "teardown"
    peer = estimator("multi-class", **{**settings, "max_iter": 4}).fit(X, y)
    assert_same(model, peer)
    assert model.loss_curve_ == peer.loss_curve_
    assert model.loss_ == peer.loss_
    model.set_callbacks()
    unpickled(model).predict(X)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_an_activation_that_fails_loses_nothing(solver):
    X, y = problem("multi-class")
    settings = {"solver": solver, "max_iter": 20, "tol": 0.0}
    model = estimator("multi-class", activation=raising(OSError("gone"), at=8), **settings)
    with pytest.raises(OSError, match="gone"):
        model.fit(X, y)
    n_trained = len(model.loss_curve_)
    assert n_trained > 1
    peer = estimator("multi-class", **{**settings, "max_iter": n_trained}).fit(X, y)
    assert_same(model, peer, rtol=1e-12)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_a_callback_sees_one_task_with_its_epochs_and_can_stop_it(solver):
    X, y = problem("multi-class")
    settings = {"solver": solver, "max_iter": 9, "tol": 0.0}
    hook = Hook(at=4)
    model = estimator("multi-class", **settings).set_callbacks(hook).fit(X, y)
    epochs = [("begin", False), ("end", False)] * 4
    assert hook.log == ["setup", ("begin", True), *epochs, ("end", True), "teardown"]
    assert model.n_iter_ == 4
    assert_same(model, estimator("multi-class", **{**settings, "max_iter": 4}).fit(X, y))
    # It also ends where training itself finds an end.
    hook = Hook()
    model.set_params(max_iter=500, tol=0.01).set_callbacks(hook).fit(X, y)
    assert model.n_iter_ < 500
    assert hook.log.count(("begin", False)) == hook.log.count(("end", False)) == model.n_iter_


@pytest.mark.parametrize("moment", ["setup", "on_fit_task_begin", "teardown"])
def test_callbacks_that_fail_elsewhere(moment):
    X, y = problem("multi-class")

    def fail(estimator, context):
        raise OSError("no such luck")

    hook = Hook()
    setattr(hook, moment, fail)
    model = estimator("multi-class").set_callbacks(hook)
    with pytest.raises(OSError, match="no such luck"):
        model.fit(X, y)
    if moment != "teardown":
        with pytest.raises(NotFittedError):
            model.predict(X)
        # An earlier fit stays whole.
        X_before, y_before = problem("binary")
        fitted = estimator("binary").fit(X_before[:, :3], y_before)
        before, predicted = snapshot(fitted), fitted.predict_proba(X_before[:, :3])
        with pytest.raises(OSError, match="no such luck"):
            fitted.set_callbacks(hook).fit(X, y)
        assert_same(fitted, before)
        np.testing.assert_array_equal(fitted.predict_proba(X_before[:, :3]), predicted)
    model.set_callbacks().fit(X, y)
    assert_same(model, estimator("multi-class").fit(X, y))


def test_a_warning_that_is_an_error_leaves_an_earlier_fit_alone():
    X, y = problem("binary")
    model = estimator("binary").fit(X[:, :3], y)
    before = snapshot(model)
    with pytest.raises(UserWarning, match="batch_size"):
        model.set_params(batch_size=1000).fit(*problem("multi-class"))
    assert_same(model, before)
    assert model.predict_proba(X[:, :3]).shape == (40, 2)


# Messages.


@pytest.mark.parametrize("kind", ["multi-class", "regression"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tol": 10.0, "n_iter_no_change": 2},
        {"early_stopping": True, "n_iter_no_change": 3, "tol": 0.2},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 1, "max_iter": 60},
        {"solver": "sgd", "learning_rate": "adaptive", "early_stopping": True, "n_iter_no_change": 1},
    ],
)
def test_verbose_prints_what_scikit_learn_prints(settings, kind, capsys):
    X, y = problem(kind, 60)
    settings = {"verbose": True, "max_iter": 20, **settings}
    estimator(kind, **settings).fit(X, y)
    ours = capsys.readouterr().out
    estimator(kind, neural_network, **settings).fit(X, y)
    theirs = capsys.readouterr().out
    assert theirs.count("\n") > 3
    assert ours == theirs
    estimator(kind, **{**settings, "verbose": False}).fit(X, y)
    assert capsys.readouterr().out == ""


def test_verbose_in_partial_fit_and_warm_starts(capsys):
    X, y = problem("regression")

    def train(module):
        model = estimator("regression", module, verbose=1)
        for _ in range(3):
            model.partial_fit(X, y)
        return capsys.readouterr().out

    assert train(mlp_xp) == train(neural_network) != ""
    assert estimator("regression", verbose=0).fit(X, y)
    assert capsys.readouterr().out == ""


# Bad input.

BAD = {
    "hidden_layer_sizes": [(0,), (5, -1), 0, (2.5,), "5", None],
    "activation": ["softplus", 5, ["relu", "tanh"], [], ["swish"]],
    "solver": ["rmsprop", None],
    "alpha": [-1e-3, math.nan, "1"],
    "batch_size": [0, "all", 2.5, None],
    "learning_rate": ["cosine"],
    "learning_rate_init": [0.0, math.inf, "0.1"],
    "power_t": [-0.5],
    "max_iter": [0, 2.5, True],
    "shuffle": ["yes"],
    "random_state": ["x", -1, 1.5],
    "tol": [-1e-3, math.nan],
    "verbose": ["loud", -1],
    "warm_start": ["yes"],
    "momentum": [-0.1, 1.5],
    "nesterovs_momentum": ["yes"],
    "early_stopping": ["no_such_scorer", 3, None],
    "validation_fraction": [1.0, -0.1],
    "beta_1": [1.0, -0.1],
    "beta_2": [1.0],
    "epsilon": [0.0],
    "n_iter_no_change": [0, 2.5],
    "max_fun": [0],
    "weight_decay": [-0.1, math.nan, "0.1"],
    "backend": ["tensorflow", 3],
    "class_weight": ["even", 2.0, {0: -1.0}],
    "loss": ["log_loss", None],
}


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=str
)
def test_bad_parameters_are_named_before_any_work(name, value, method):
    kind = "regression" if name == "loss" else "binary"
    X, y = problem(kind)
    activation, calls = counting()
    random = np.random.RandomState(0)
    settings = {"activation": activation, "random_state": random, name: value}
    first = {"classes": [0, 1]} if method == "partial_fit" and kind == "binary" else {}
    fresh = estimator(kind, **settings)
    message = rf"`{name}(\[\d\])?` must "
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        getattr(fresh, method)(X, y, **first)
    assert not isinstance(caught.value, TrainingError)
    assert calls == []
    assert not [attribute for attribute in vars(fresh) if attribute.endswith("_")]
    assert random.randint(2**31) == np.random.RandomState(0).randint(2**31)

    model = estimator(kind).fit(X, y)
    before, history = snapshot(model), copy.deepcopy(curves(model))
    model.set_params(**{name: value})
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(model, method)(X, y, **first)
    assert_same(model, before)
    assert curves(model) == history
    model.set_params(**{name: getattr(estimator(kind), name)}).predict(X)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"X": np.full((40, 4), np.nan)}, "(?i)nan"),
        ({"X": BINARY_X[:30]}, "inconsistent"),
        ({"X": BINARY_X[:, 0]}, "2D|shape"),
        ({"X": BINARY_X + 1j}, "(?i)complex|real"),
        ({"X": BINARY_X[:0], "y": BINARY_Y[:0]}, "0 sample"),
        ({"y": BINARY_Y + 0.5}, "(?i)unknown label type|continuous"),
        ({"y": np.full(40, np.nan)}, "(?i)nan"),
        ({"y": None}, "y"),
        ({"sample_weight": np.ones(39)}, "sample_weight"),
        ({"sample_weight": -np.ones(40)}, "sample_weight"),
        ({"sample_weight": np.zeros(40)}, "sample_weight"),
        ({"sample_weight": np.full(40, np.nan)}, "(?i)sample_weight|nan"),
    ],
)
def test_bad_data_leave_an_earlier_fit_alone(data, message):
    model = estimator("binary").fit(BINARY_X, BINARY_Y)
    before, history, score = snapshot(model), copy.deepcopy(curves(model)), model.score(BINARY_X, BINARY_Y)
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(**{"X": BINARY_X, "y": BINARY_Y, **data})
    assert_same(model, before)
    assert curves(model) == history
    assert model.score(BINARY_X, BINARY_Y) == score


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_values_of_every_namespace(bad, library):
    X, y = problem("regression")
    X_bad, y_bad = X.copy(), y.copy()
    X_bad[3, 1] = y_bad[2] = bad
    model = estimator("regression", **HALVES).fit(library.array(X), y)
    before = snapshot(model)
    calls = [("fit", (X_bad, y)), ("fit", (X, y_bad)), ("predict", (X_bad,)), ("score", (X_bad, y))]
    for method, data in calls:
        with pytest.raises(ValueError, match="(?i)nan|inf|finite"):
            getattr(model, method)(*map(library.array, data))
    assert_same(model, before)


class Lazy:
    """An array that is still to compute, with the protocol of dask's."""

    def __init__(self, values):
        self.shape, self.dtype = values.shape, values.dtype

    def __dask_graph__(self):
        return {}


def sparse_tensor(values):
    return pytest.importorskip("torch").tensor(values).to_sparse()


def masked(values):
    return np.ma.masked_array(values, values > 0.5)


def rows_masked(values):
    return [np.ma.masked_array(row, mask=True) for row in np.asarray(values, "float64")]


def without_data(values):
    return pytest.importorskip("torch").empty(np.shape(values), device="meta")


def sparse_of_jax(values):
    return pytest.importorskip("jax.experimental.sparse").BCOO.fromdense(np.asarray(values, "float32"))


@pytest.mark.parametrize("make", [masked, rows_masked, sparse_tensor, Lazy, without_data, sparse_of_jax])
@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_arrays_that_are_not_plain_are_refused_in_every_argument(kind, make):
    X, y = problem(kind)
    model, data = estimator(kind).fit(X, y), {"X": X, "y": y, "sample_weight": np.ones(40)}
    validation = {"X_val": X, "y_val": y, "sample_weight_val": np.ones(40)}
    calls = [(method, data, name) for method in ("fit", "partial_fit", "score") for name in data]
    calls += [("fit", data | validation, name) for name in validation] + [("predict", {"X": X}, "X")]
    calls += [("partial_fit", data | {"classes": np.arange(2)}, "classes")] if kind == "binary" else []
    before = snapshot(model)
    for method, given, name in calls:
        with pytest.raises(TypeError, match=f"`{name}` must be a plain dense array, got .*\\("):
            getattr(model, method)(**given | {name: make(given[name])})
    assert_same(model, before)


def table(library, **columns):
    return pytest.importorskip(library).DataFrame(columns)


def test_values_of_a_type_that_numpy_does_not_have_are_refused_by_name():
    polars = pytest.importorskip("polars")
    X, y = problem("binary")
    long = polars.Series("y", y.tolist(), dtype=polars.Int128)
    with pytest.raises(ValueError, match="^`y`: cannot convert"):
        estimator("binary").fit(X, long)


@pytest.mark.parametrize("frames", ["pandas", "polars"])
@pytest.mark.parametrize(
    "values", [["x", "y"] * 20, np.arange(40).astype("M8[D]"), np.arange(40).astype("m8[ms]")]
)
def test_columns_that_hold_no_numbers_are_named(values, frames):
    X, y = problem("regression")
    numbers = {"a": X[:, 0], "b": X[:, 1]}
    model = estimator("regression").fit(table(frames, **numbers), y)
    for columns in (numbers | {"town": values}, {"town": values, "b": X[:, 1]}, {"town": values}):
        for call in (lambda given: model.fit(given, y), model.predict):
            with pytest.raises((TypeError, ValueError), match=r"`X` must hold real numbers, .*\['town'\]"):
                call(table(frames, **columns))


def test_torch_data_that_require_gradients_build_no_graph(request):
    torch = need("torch", request)
    X, y = problem("regression")
    X_here = torch.tensor(X, requires_grad=True)
    model = estimator("regression").fit(X_here, torch.tensor(y, requires_grad=True))
    assert not any(array.requires_grad for array in arrays(model))
    assert not model.predict(X_here).requires_grad
    assert_same(model, estimator("regression").fit(X, y), rtol=1e-8, atol=1e-12)


# What one fit leaves to the next.


def test_balanced_classes_do_not_count_rows_without_weight():
    X, y = problem("multi-class", n_samples=60)
    weight = np.where(np.arange(60) % 3 == 0, 0.0, 1.0 + np.arange(60) % 4)
    kept = weight > 0.0
    settings = {"hidden_layer_sizes": (), "solver": "lbfgs", "max_iter": 300, "tol": 1e-9}
    model = estimator("multi-class", class_weight="balanced", **settings).fit(X, y, weight)
    fewer = estimator("multi-class", class_weight="balanced", **settings).fit(X[kept], y[kept], weight[kept])
    assert_same(model, fewer, rtol=1e-5, atol=1e-7)


def test_partial_fit_goes_on_from_the_weights_shown():
    X, y = problem("multi-class")
    model = estimator("multi-class", early_stopping=True, learning_rate_init=0.1, max_iter=20).fit(X, y)
    shown = snapshot(model)
    model.set_params(early_stopping=False, learning_rate_init=1e-12).partial_fit(X, y)
    assert_same(model, shown, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_best_loss_is_that_of_all_calls(early_stopping):
    X, y = problem("multi-class")
    model = estimator("multi-class", early_stopping=early_stopping, max_iter=3).fit(X, y)
    model.set_params(early_stopping=False)
    for rate in (0.01, 0.5, 1e-12, 0.01):
        model.set_params(learning_rate_init=rate).partial_fit(X, y)
        assert model.best_loss_ == min(model.loss_curve_)
    model.set_params(early_stopping=early_stopping, warm_start=True).fit(X, y)
    assert model.best_loss_ == (None if early_stopping else min(model.loss_curve_))


def test_early_stopping_forgets_weights_that_the_user_has_replaced():
    X, y = problem("multi-class")
    settings = {"early_stopping": "loss", "warm_start": True, "learning_rate_init": 0.1, "max_iter": 30}
    model = estimator("multi-class", **settings).fit(X, y)
    model.coefs_ = [np.zeros_like(coef) for coef in model.coefs_]
    model.set_params(max_iter=1, learning_rate_init=1e-12).fit(X, y)
    assert max(np.abs(coef).max() for coef in model.coefs_) < 1e-6


@pytest.mark.parametrize(
    ("kind", "scorer", "weighted"),
    [
        ("multi-class", "f1", False),
        ("regression", "accuracy", False),
        ("regression", "neg_max_error", True),
    ],
)
def test_a_score_that_does_not_fit_is_refused_before_training(kind, scorer, weighted):
    X, y = problem(kind)
    model = estimator(kind).fit(X, y)
    before = snapshot(model)
    weight = np.ones(40) if weighted else None
    with pytest.raises(ValueError, match=f"`early_stopping` must name a score .* got '{scorer}'"):
        model.set_params(early_stopping=scorer).fit(X, y, weight)
    assert_same(model, before)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([16777216.0, 16777217.0, 3.0]),
        np.array([2**40, 2**40 + 1, -1]),
        np.array([1, 2, 65535], dtype=np.uint16),
        np.array([-1.0, 2.0, 7.0], dtype=np.float32),
    ],
    ids=["beyond float32", "beyond int32", "unsigned", "floats"],
)
def test_labels_are_what_they_were_whatever_the_library_can_hold(labels, library):
    X, y = problem("multi-class")
    X_here = library.array(X, "float32")
    model = estimator("multi-class", learning_rate_init=0.1, max_iter=40).fit(X_here, labels[y])
    assert to_host(model.classes_).tolist() == sorted(labels.tolist())
    predicted = to_host(model.predict(X_here))
    assert (predicted == labels[y]).mean() > 0.8
    assert model.score(X_here, labels[y]) == pytest.approx((predicted == labels[y]).mean())


def test_attributes_tell_of_the_last_fit_whatever_its_solver():
    X, y = problem("binary")
    model = estimator("binary", early_stopping=True).fit(X, y)
    model.set_params(solver="lbfgs").fit(X, y)
    assert (model.validation_scores_, model.val_loss_curve_, model.best_validation_score_) == (None,) * 3
    assert model.best_loss_ == min(model.loss_curve_)
    assert model.t_ == 0


def test_scores_of_two_kinds_are_not_mixed():
    X, y = problem("binary")
    settings = {"warm_start": True, "max_iter": 3}
    model = estimator("binary", early_stopping="neg_log_loss", **settings).fit(X, y)
    assert max(model.validation_scores_) < 0.0
    model.set_params(early_stopping="score").fit(X, y)
    assert len(model.validation_scores_) == 3
    assert len(model.loss_curve_) == 6
    assert min(model.validation_scores_) >= 0.0


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_warnings_point_at_the_users_line(solver):
    X, y = problem("binary")
    with pytest.warns(UserWarning, match="converge|batch_size") as caught:
        estimator("binary", solver=solver, max_iter=2, batch_size=1000, tol=0.0).fit(X, y)
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(UserWarning, match="batch_size") as caught:
        estimator("binary", batch_size=1000).partial_fit(X, y, classes=[0, 1])
    assert caught[0].filename == __file__


def test_verbose_tells_of_a_division_once(capsys):
    X, y = problem("regression")
    settings = {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 10.0}
    model = estimator("regression", warm_start=True, verbose=True, max_iter=3, **settings).fit(X, y)
    assert capsys.readouterr().out.count("Setting learning rate") == 1
    model.set_params(max_iter=1).fit(X, y)
    assert (
        capsys.readouterr().out.count("Setting learning rate") == 0
        or model._continuation["progress"]["early_stopping"]["event"]
    )


def test_copies_train_on_apart():
    X, y = problem("binary")
    model = estimator("binary", warm_start=True, batch_size=16).fit(X, y)
    others = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.fit(X, y)
    for other in others:
        assert_same(other.fit(X, y), model)


def test_a_validation_part_without_weight_is_refused():
    X, y = problem("regression")
    weight = np.zeros(40)
    weight[0] = 1.0
    with pytest.raises(ValueError, match="`sample_weight` must not be all zero in the rows to train on"):
        estimator("regression", early_stopping=True).fit(X, y, weight)
    with pytest.raises(ValueError, match="`validation_fraction` must be > 0"):
        estimator("regression", early_stopping=True, validation_fraction=0.0).fit(X, y)


# Overflow.


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_that_overflow_are_told_of(kind, library):
    X, y = problem(kind)
    X = library.array(X, "float32")
    model = estimator(kind, activation="identity").fit(X, y)
    large = np.ones((3, X.shape[1]))
    large[0] = 3e38
    large = library.array(large, "float32")
    for layer, (coef, intercept) in enumerate(zip(model.coefs_, model.intercepts_)):
        model.coefs_[layer], model.intercepts_[layer] = library.xp.ones_like(coef), intercept
    for method in prediction_methods(model):
        if kind not in ("binary", "multi-label"):
            message = f"^{method} overflows float32 for 1 of 3 samples"
            with pytest.warns(RuntimeWarning, match=message) as caught:
                getattr(model, method)(large)
            assert len(caught) == 1
            assert caught[0].filename == __file__
        elif (kind, method) == ("binary", "predict_log_proba"):  # a probability is 1, and the other one 0
            with pytest.warns(RuntimeWarning, match="^predict_log_proba is -inf"):
                getattr(model, method)(large)
            continue
        else:
            getattr(model, method)(large)
        getattr(model, method)(X)
    if kind == "regression":
        with (
            pytest.warns(RuntimeWarning, match="^score overflows"),
            pytest.raises(ValueError, match="predictions for `X` are infinite"),
        ):
            model.score(large, np.ones(3))


def test_what_are_no_numbers_has_no_score():
    X, y = problem("regression")
    model = estimator("regression").fit(X, y)
    for wrong in (np.full(40, "NaT", "M8[s]"), np.full(40, 3, "m8[s]"), ["1", "2"] * 20, y + 1j):
        with pytest.raises((TypeError, ValueError), match="`y`|Complex"):
            model.score(X, wrong)


def test_samples_that_only_numpy_can_read_are_taken():
    class Readable:
        def __array__(self, dtype=None, copy=None):
            return np.asarray(X, dtype)

        def __len__(self):
            return len(X)

    X, y = problem("binary")
    model = estimator("binary").fit(Readable(), y)
    np.testing.assert_array_equal(model.predict(X), estimator("binary").fit(X, y).predict(X))


@pytest.mark.parametrize("dtype", ["S8", "U8"])
def test_numbers_as_text_are_refused(dtype):
    X, y = problem("binary")
    with pytest.raises(TypeError, match="`X` must hold real numbers"):
        estimator("binary").fit(X.astype(dtype), y)


def test_a_batch_without_a_class_of_positive_weight_changes_nothing():
    X, y = problem("binary")
    model = mlp_xp.MLPClassifier((3,), class_weight={0: 0, 1: 1}, alpha=0.0, random_state=0, solver="sgd")
    model.partial_fit(X, y, classes=[0, 1])
    before = [coef.copy() for coef in model.coefs_]
    model.set_params(momentum=0.0).partial_fit(X[y == 0], y[y == 0])
    for one, other in zip(model.coefs_, before):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="`class_weight` must be >= 0 and not all zero"):
        model.set_params(class_weight={0: 0, 1: 0}).fit(X, y)


@pytest.mark.parametrize("weight", [1e-311, 1e-320])
def test_weights_whose_sum_has_no_inverse_are_refused(weight):
    X, y = problem("regression")
    with pytest.raises(ValueError, match="`sample_weight` must have a sum that float64 can divide by"):
        estimator("regression").fit(X, y, np.full(40, weight / 40))


@pytest.mark.parametrize("early_stopping", [False, "loss"])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_memory_that_runs_out_in_the_first_epoch_leaves_a_model_alone(solver, early_stopping):
    calls = [0, 10**9]

    def forward(xp, z):
        calls[0] += 1
        if calls[0] > calls[1]:
            raise MemoryError("no room")
        z = z if float(xp.max(z)) > 1e9 else xp.tanh(z)
        return z, z

    X, y = problem("regression")
    activation = mlp_xp.Activation(forward, lambda xp, delta, a: delta * (1.0 - a * a))
    model = estimator("regression", activation=activation, solver=solver, batch_size=4)
    if solver != "lbfgs":
        model.set_params(early_stopping=early_stopping)
    model.fit(X, y)
    before = snapshot(model)
    calls[:] = 0, 3 if solver == "lbfgs" else 5
    with pytest.raises(mlp_xp.OutOfMemoryError) as caught:
        model.fit(X, y)
    if not caught.value.history:
        calls[1] = 10**9
        assert_same(model, before)
    else:
        assert solver == "lbfgs"


# Memory.


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("rows", "uint8"), ("rows", ">f8"), ("columns", "uint8"), ("columns", "float32"), ("columns", ">i2")],
)
def test_no_method_casts_or_copies_the_whole_of_the_samples(layout, dtype, monkeypatch):
    monkeypatch.setattr("mlp_xp._arrays.ELEMENTS_PER_BLOCK", 2**14)
    monkeypatch.setattr("mlp_xp._compiler.rows.MAX_BLOCK_ELEMENTS", 2**14)
    X = (np.random.RandomState(0).rand(30_000, 201) * 2).astype(dtype)
    X, y = X[:, :-1] if layout == "columns" else X[:, :-1].copy(), X[:, -1] / 2.0
    labels, y = y > 0.4, y.astype("float64")
    network = mlp_xp.Network((200, 4, 1), loss="squared_error")
    params, column = network.init(0, like=np.ones(1)), y[:, None]
    settings = {"hidden_layer_sizes": (4,), "max_iter": 1, "batch_size": 1000}
    regressor, classifier = mlp_xp.MLPRegressor(**settings), mlp_xp.MLPClassifier(**settings)
    calls = [
        lambda: regressor.fit(X, y),
        lambda: regressor.predict(X),
        lambda: regressor.score(X, y),
        lambda: regressor.partial_fit(X, y),
        lambda: mlp_xp.MLPRegressor(**settings, early_stopping=True).fit(X, y),
        lambda: mlp_xp.MLPRegressor("poisson", **settings).fit(X, y),
        lambda: mlp_xp.MLPRegressor(**settings).set_params(solver="lbfgs").fit(X, y),
        lambda: classifier.fit(X, labels),
        lambda: classifier.predict_proba(X),
        lambda: mlp_xp.train(network, params, X, column, optimizer=mlp_xp.adam(), epochs=1, batch_size=1000),
        lambda: mlp_xp.evaluate(network, params, X, column),
        lambda: network.predict(params, X),
    ]
    for index, call in enumerate(calls):
        call()  # imports and compiles
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5_000_000 < X.nbytes, index
