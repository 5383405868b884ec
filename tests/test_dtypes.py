"""Dtypes of samples, targets, labels and weights: what each trains as, and what is refused by name.

All values are 0 and 1, which every dtype holds, so that each fit is that of float32 or float64.
"""

import re

import numpy as np
import pytest
from conftest import need

import mlp_xp
from mlp_xp import (
    EarlyStopping,
    Network,
    adam,
    evaluate,
    gradient_descent,
    load_model,
    momentum,
    save_model,
    to_host,
    train,
)

pytest.importorskip("sklearn", minversion="1.9")
pytest.importorskip("safetensors")
MLPClassifier, MLPRegressor = mlp_xp.MLPClassifier, mlp_xp.MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

random = np.random.RandomState(0)
X, LABELS, SEVERAL = random.randint(0, 2, (40, 3)), random.randint(0, 2, 40), random.randint(0, 2, (40, 2))
VALUES, WEIGHTS = random.randint(0, 2, 40), random.randint(0, 2, 40)
SETTINGS = {"hidden_layer_sizes": (4,), "max_iter": 2, "random_state": 0, "batch_size": 20}

INTEGERS = ["bool", "int8", "uint8", "int64"]
FLOATS = ["float16", "float32", "float64"]
DTYPES = {
    "numpy": [*INTEGERS, "uint64", *FLOATS, ">i2", ">i4", ">u8", ">f2", ">f4", ">f8"],
    "ml_dtypes": ["bfloat16", "float8_e4m3fn", "int4"],
    "torch": [*INTEGERS, "uint16", "bfloat16", *FLOATS],
    "jax": ["bool", "int4", "uint32", "bfloat16", "float16", "float32"],  # few: it compiles for each
}
ALL = [(package, dtype) for package, dtypes in DTYPES.items() for dtype in dtypes]


def maker(package, dtype, request):
    """Return the function that makes an array of that package and dtype."""
    if package == "numpy":
        return lambda values: np.asarray(values, dtype=dtype)
    module = need(package, request)
    if package == "ml_dtypes":
        return lambda values: np.asarray(values).astype(getattr(module, dtype))
    if package == "torch":
        return lambda values: module.tensor(values).to(getattr(module, dtype))
    return lambda values: module.numpy.asarray(values).astype(getattr(module.numpy, dtype))


def assert_same(model, peer):
    for ours, theirs in zip([*model.coefs_, *model.intercepts_], [*peer.coefs_, *peer.intercepts_]):
        np.testing.assert_allclose(to_host(ours), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("package", "dtype"), ALL)
def test_estimators_take_every_dtype_of_real_numbers(package, dtype, request, tmp_path):
    make = maker(package, dtype, request)
    here, weights = make(X), make(WEIGHTS)
    for y, kind in ((VALUES, MLPRegressor), (LABELS, MLPClassifier), (SEVERAL, MLPClassifier)):
        peer = kind(**SETTINGS).fit(X.astype(float), y, WEIGHTS)
        validation = {"X_val": here, "y_val": make(y), "sample_weight_val": weights}
        model = kind(**SETTINGS).fit(here, make(y), weights, **validation)
        assert_same(model, peer)
        assert type(model.predict(here)) is (np.ndarray if package == "ml_dtypes" else type(here))
        np.testing.assert_allclose(to_host(model.predict(here)), peer.predict(X), rtol=1e-3, atol=1e-4)
        score = peer.score(X, y, WEIGHTS)
        assert model.score(here, make(y), weights) == pytest.approx(score, abs=1e-4)
        for samples, targets in ((X.astype(float), make(y)), (here, y)):
            assert_same(kind(**SETTINGS).fit(samples, targets, weights), peer)
        assert_same(kind(backend="numpy", **SETTINGS).fit(here, make(y), weights), peer)
        save_model(tmp_path / "model", model)
        assert_same(load_model(tmp_path / "model"), peer)
        model.predict(here)
        assert_same(model.to("numpy"), peer)


@pytest.mark.parametrize("y", [LABELS, SEVERAL], ids=["binary", "several"])
@pytest.mark.parametrize(("package", "dtype"), ALL)
def test_partial_fit_takes_classes_and_labels_of_every_dtype(package, dtype, y, request):
    make = maker(package, dtype, request)
    peer = MLPClassifier(**SETTINGS).partial_fit(X.astype(float), y, classes=[0, 1])
    model = MLPClassifier(**SETTINGS)
    for classes in (make([0, 1]), None):
        model.partial_fit(make(X), make(y), classes=classes)
    assert_same(model, peer.partial_fit(X.astype(float), y))
    assert to_host(model.classes_).tolist() == [0, 1]


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize(
    ("package", "dtype"),
    [
        *[("numpy", dtype) for dtype in ("bool", "float16", ">i4", ">f8")],
        *[(package, "bfloat16") for package in ("ml_dtypes", "torch", "jax")],
    ],
)
def test_a_backend_computes_with_every_dtype(package, dtype, name, request):
    need(name, request)
    make = maker(package, dtype, request)
    model = MLPRegressor(backend=name, **SETTINGS).fit(make(X), make(VALUES), make(WEIGHTS))
    assert_same(model, MLPRegressor(**SETTINGS).fit(X.astype(float), VALUES, WEIGHTS))


def float8(values):
    torch = pytest.importorskip("torch")
    return torch.tensor(values).to(torch.float8_e4m3fn)


NO_NUMBERS = {
    "complex": lambda values: np.asarray(values) + 1j,
    "dates": lambda values: np.asarray(values).astype("M8[D]"),
    "durations": lambda values: np.asarray(values).astype("m8[s]"),
    "no time": lambda values: np.full(np.shape(values), "NaT", "M8[s]"),
    "float8": float8,
}


@pytest.mark.parametrize("argument", ["X", "y", "sample_weight", "X_val", "sample_weight_val"])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_holds_no_real_numbers_is_refused(kind, argument):
    data = {"X": X, "y": VALUES, "sample_weight": WEIGHTS}
    data |= {"X_val": X, "y_val": VALUES, "sample_weight_val": WEIGHTS}
    data[argument] = NO_NUMBERS[kind](data[argument])
    model = MLPRegressor(**SETTINGS)
    with pytest.raises((TypeError, ValueError), match=rf"`{argument}`"):
        model.fit(**data)
    assert not hasattr(model, "coefs_")


# Functions.

LOW = [(package, dtype) for package in ("numpy", "torch", "jax") for dtype in ("float16", "bfloat16")]
LOW.remove(("numpy", "bfloat16"))


@pytest.mark.parametrize("optimizer", [gradient_descent(0.1), momentum(0.1)], ids=["sgd", "momentum"])
@pytest.mark.parametrize(("package", "dtype"), [*LOW, ("numpy", ">f4"), ("numpy", ">f8")])
def test_functions_train_in_that_dtype(package, dtype, optimizer, request, tmp_path):
    make = maker(package, dtype, request)
    network = Network((3, 4, 1), activation="tanh", loss="squared_error")
    data = {"X": make(X), "y": make(VALUES[:, None])}
    start = network.init(0, like=data["X"])
    settings = {"optimizer": optimizer, "epochs": 20, "batch_size": 20, "seed": 0, "metrics": ["r2"]}
    stop = EarlyStopping("val_loss")
    params, history = train(
        network, start, **data, **settings, validation_data=tuple(data.values()), early_stopping=stop
    )
    wide = {"X": X.astype(float), "y": VALUES[:, None].astype(float)}
    peer = train(network, network.init(0, like=wide["X"]), **wide, **settings)
    assert history[-1]["loss"] == pytest.approx(peer.history[-1]["loss"], rel=0.1)
    assert str(params[0].weight.dtype).endswith(
        dtype if dtype[0] != ">" else {"4": "32", "8": "64"}[dtype[2]]
    )
    assert evaluate(network, params, **data)["loss"] == pytest.approx(history[-1]["val_loss"], rel=0.1)
    if dtype != "bfloat16":
        save_model(tmp_path / "model", (network, params))
        for ours, loaded in zip(params, load_model(tmp_path / "model")[1]):
            np.testing.assert_array_equal(to_host(ours.weight), loaded.weight)


def test_parameters_in_another_byte_order_train_and_are_saved(tmp_path):
    network, data = Network((3, 1), loss="squared_error"), X.astype(float)
    start = network.init(0, like=data)
    swapped = tuple(mlp_xp.Layer(*(array.astype(">f8") for array in layer)) for layer in start)
    settings = {"optimizer": gradient_descent(0.1), "epochs": 3, "seed": 0}
    expected = train(network, start, data, VALUES[:, None], **settings).params
    params = train(network, swapped, data, VALUES[:, None], **settings).params
    save_model(tmp_path / "model", (network, params))
    np.testing.assert_allclose(load_model(tmp_path / "model")[1][0].weight, expected[0].weight, rtol=1e-12)


@pytest.mark.parametrize(("package", "dtype"), LOW)
def test_adam_is_refused_where_the_dtype_cannot_hold_its_state(package, dtype, request):
    make = maker(package, dtype, request)
    network = Network((3, 4, 1), loss="squared_error")
    start = network.init(0, like=make(X))
    settings = {"epochs": 20, "batch_size": 20, "seed": 0}
    name = {"float16": "epsilon", "bfloat16": "1 - beta_2"}[dtype]
    message = f"`{name}` of Adam must be >= .* to train in {dtype}, got .*: take float32"
    with pytest.raises(ValueError, match=message):
        train(network, start, make(X), make(VALUES[:, None]), optimizer=adam(), **settings)
    wide = adam(0.01, beta_2=0.98, epsilon=1e-3)
    params, history = train(network, start, make(X), make(VALUES[:, None]), optimizer=wide, **settings)
    assert history[-1]["loss"] < history[0]["loss"]


def test_an_epsilon_that_is_0_in_float32_leaves_a_fitted_model_alone():
    model = MLPRegressor(**SETTINGS).fit(X.astype(np.float32), VALUES)
    before = vars(model) | {"epsilon": 1e-50}
    with pytest.raises(
        ValueError, match="`epsilon` of Adam must be >= 1.4e-45 to train in float32, got 1e-50"
    ):
        model.set_params(epsilon=1e-50).fit(X.astype(np.float32), VALUES)
    assert vars(model) == before
    model.fit(X.astype(float), VALUES)


@pytest.mark.parametrize(("package", "dtype"), ALL)
def test_values_come_to_the_host_as_they_are(package, dtype, request):
    array = maker(package, dtype, request)([[0, 1], [1, 0]])
    found = to_host(array)
    assert type(found) is np.ndarray
    assert found.dtype.isbuiltin != 2  # a dtype of NumPy's own
    assert found.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4"])
def test_functions_refuse_dtypes_of_other_packages(dtype, request):
    like = maker("ml_dtypes", dtype, request)(X)
    message = re.escape(f"`like` must have a dtype of NumPy's own, got {dtype}")
    with pytest.raises(TypeError, match=message):
        Network((3, 1), loss="squared_error").init(0, like=like)
