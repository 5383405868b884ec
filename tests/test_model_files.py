"""Models as files: what is saved comes back, and no file does harm."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import re
import stat
import subprocess
import sys
import tracemalloc
import warnings
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import need
from scipy.sparse import csr_matrix, issparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from mlp_xp import (
    Activation,
    DivergenceError,
    Layer,
    MLPClassifier,
    MLPRegressor,
    ModelFileError,
    Network,
    elu,
    leaky_relu,
    load_model,
    save_model,
    to_host,
)
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import placement
from mlp_xp._disk.tensors import TensorFile
from mlp_xp._losses import LOSSES, Loss
from mlp_xp.backends import BackendUnavailableError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).standard_normal((40, 3))
CLASSES = np.arange(40) % 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def plain(value):
    """What a value is, bit for bit: equal for two that nobody can tell apart."""
    if isinstance(value, np.random.RandomState):
        return plain(value.get_state(legacy=False))
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype.hasobject else value.tobytes()
        return value.dtype.str, value.shape, content
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, (Activation, Loss)):
        return type(value), [plain(item) for item in value]
    return type(value), value if value == value else "nan"


def everything(model):
    """All that makes a model, but for an optimizer's state."""
    if isinstance(model, tuple):
        network, params = model
        return network, [plain(to_host(array)) for layer in params for array in layer]
    state = {key: value for key, value in vars(model).items() if key != "_continuation"}
    for name in ("coefs_", "intercepts_"):
        state[name] = [to_host(array) for array in state[name]]
    if "classes_" in state:
        state["classes_"] = to_host(state["classes_"])
    return type(model), plain(state)


def small_network(dtype="float64", xp_array=None, **settings):
    settings = {"activation": "tanh", "loss": "squared_error"} | settings
    network = Network((3, 4, 2), **settings)
    return network, network.init(seed=0, like=(xp_array or np.array)(X.astype(dtype).tolist(), dtype))


def classifier(**parameters):
    labels = np.array(["red", "green", "blü"])[CLASSES]
    settings = {"hidden_layer_sizes": (4,), "max_iter": 2, "random_state": 0} | parameters
    return MLPClassifier(**settings).fit(X, labels)


def regressor(**parameters):
    settings = {"hidden_layer_sizes": 4, "max_iter": 2, "random_state": 0} | parameters
    return MLPRegressor(**settings).fit(X, X[:, 0])


# There and back.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_network_comes_back_bit_for_bit_in_every_library(library, dtype, path):
    if dtype == "float16" and not hasattr(library.xp, "float16"):
        pytest.skip("this library has no float16")
    network, params = small_network(dtype, library.array, alpha=0.25)
    save_model(path, (network, params))
    loaded, weights = load_model(path)
    assert loaded == network
    assert all(type(layer) is Layer for layer in weights)
    for mine, theirs in zip(params, weights):
        for array, copied in zip(mine, theirs):
            assert type(copied) is np.ndarray
            assert copied.dtype == dtype
            assert copied.tobytes() == to_host(array).tobytes()
            copied += 1.0  # it is the caller's own


@pytest.mark.parametrize("name", ["auto", "numpy", "cupy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_arrays_go_where_the_caller_says(name, dtype, path, request):
    if name in ("torch", "jax"):
        need(name, request)
    network, params = small_network(dtype)
    save_model(path, (network, params))
    try:
        _, weights = load_model(path, backend=name)
    except BackendUnavailableError as error:
        assert name == "cupy"
        pytest.skip(str(error))
    library = placement(loaded=weights[0].weight).xp.__name__.removeprefix("array_api_compat.").split(".")[0]
    assert library == name or (name == "auto" and library in ("numpy", "cupy"))
    for mine, theirs in zip(params, weights):
        assert [array.tobytes() for array in mine] == [to_host(array).tobytes() for array in theirs]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_estimator_fitted_anywhere_predicts_on_numpy(library, dtype, path):
    model = MLPClassifier((4,), max_iter=3, random_state=0, early_stopping=True)
    model.fit(library.array(X, dtype), library.array(CLASSES, "int64"))
    save_model(path, model)
    loaded = load_model(path)
    assert everything(loaded) == everything(copy.deepcopy(model).to("numpy"))
    assert loaded.coefs_[0].dtype == dtype
    assert loaded.score(X, CLASSES) == pytest.approx(model.score(library.array(X, dtype), CLASSES))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_an_estimator_loads_into_another_library_and_goes_on(name, path, request):
    need(name, request)
    save_model(path, MLPClassifier((4,), max_iter=3, random_state=0).fit(X, CLASSES))
    here, there = load_model(path), load_model(path, backend=name)
    X_there = placement(like=there.coefs_[0]).from_host(X)
    assert placement(classes=there.classes_).same_as(placement(X=X_there))
    for model, samples in ((here, X), (there, X_there)):
        model.partial_fit(samples, CLASSES)
    np.testing.assert_allclose(to_host(there.predict_proba(X_there)), here.predict_proba(X), rtol=1e-9)


LABELS = (X > 0.0).astype(int)
WORDS = np.array(["b", "a", "cc"])[CLASSES]
A_CLASSIFIER = MLPClassifier((4,), max_iter=3, random_state=0)
A_REGRESSOR = MLPRegressor(hidden_layer_sizes=4, max_iter=3, random_state=0)


def like(estimator, **parameters):
    return clone(estimator).set_params(**parameters)


FITS = {
    "int": (A_CLASSIFIER, X, CLASSES * 7 - 3, {}),
    "int8": (A_CLASSIFIER, X, LABELS[:, 0].astype("int8"), {}),
    "bool": (like(A_CLASSIFIER, hidden_layer_sizes=()), X, X[:, 0] > 0, {}),
    "float": (A_CLASSIFIER, X, CLASSES.astype("float32") * 3.0, {}),
    "str": (A_CLASSIFIER, X, WORDS, {}),
    "object": (A_CLASSIFIER, X, WORDS.astype(object), {}),
    "one class": (A_CLASSIFIER, X, np.full(40, "only"), {}),
    "labels": (like(A_CLASSIFIER, hidden_layer_sizes=[4, 3]), X, LABELS, {}),
    "sparse labels": (A_CLASSIFIER, X, csr_matrix(LABELS), {}),
    "names": (A_CLASSIFIER, lambda: frame(X, ["a", "b b", "ç"]), CLASSES, {}),
    "partly": (A_CLASSIFIER, X, CLASSES, {"classes": [0, 1, 2, 9]}),
    "lbfgs": (like(A_CLASSIFIER, solver="lbfgs"), X, CLASSES, {}),
    "score": (like(A_CLASSIFIER, early_stopping=True), X, CLASSES, {}),
    "f1": (like(A_CLASSIFIER, early_stopping="f1_macro"), X, CLASSES, {}),
    "measured": (A_CLASSIFIER, X, CLASSES, {"X_val": X, "y_val": CLASSES}),
    "regression": (A_REGRESSOR, X, X[:, 0], {}),
    "outputs": (like(A_REGRESSOR, hidden_layer_sizes=(4, 3), activation=["tanh", elu(0.5)]), X, X[:, :2], {}),
    "poisson": (like(A_REGRESSOR, loss="poisson"), X.astype("float32"), CLASSES, {}),
    "warm": (like(A_REGRESSOR, warm_start=True, early_stopping="loss"), X, X[:, 0], {}),
}


def frame(rows, names):
    """Return a table whose columns have names."""
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(rows, columns=pandas.Index(names, dtype=object))


def rows_of(name):
    rows = FITS[name][1]
    return rows() if callable(rows) else rows


def fitted(name):
    estimator, _, y, more = FITS[name]
    estimator, rows = clone(estimator), rows_of(name)
    return estimator.partial_fit(rows, y, **more) if "classes" in more else estimator.fit(rows, y, **more)


@pytest.mark.parametrize("name", FITS)
def test_an_estimator_comes_back_as_it_was(name, path):
    model, rows = fitted(name), rows_of(name)
    save_model(path, model)
    loaded = load_model(path)
    assert everything(loaded) == everything(model)
    assert loaded.get_params() == model.get_params()
    assert loaded.history_ == model.history_
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(model, method):
            found, wanted = getattr(loaded, method)(rows), getattr(model, method)(rows)
            assert type(found) is type(wanted)
            assert plain(dense(found)) == plain(dense(wanted))


def dense(array):
    return array.toarray() if issparse(array) else array


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("warm_start", [False, True])
def test_training_goes_on_as_without_an_optimizers_state(name, warm_start, path):
    model, rows, y = fitted(name), rows_of(name), FITS[name][2]
    save_model(path, model)
    loaded = load_model(path)
    model._continuation = None
    for one in (model, loaded):
        one.set_params(warm_start=warm_start)
        if warm_start and name != "partly":
            one.fit(rows, y)
        elif one.solver != "lbfgs" and not one.early_stopping:
            one.partial_fit(rows, y)
    assert everything(loaded) == everything(model)


@pytest.mark.parametrize(
    "parameters",
    [
        {"class_weight": {"red": 2, "green": 0.5, "blü": np.float32(0.1)}},
        {"class_weight": "balanced", "n_iter_no_change": np.inf},
        {
            "alpha": np.float32(0.1),
            "max_iter": np.int64(2),
            "shuffle": np.bool_(False),
            "verbose": np.int8(0),
        },
        {"hidden_layer_sizes": [4, 3], "activation": ("relu", leaky_relu(0.2))},
        {"hidden_layer_sizes": np.array([4, 3]), "activation": "tanh"},
        {"hidden_layer_sizes": np.int16(4), "activation": elu(0.5)},
        {"hidden_layer_sizes": (), "activation": "gelu", "tol": 1e-300, "epsilon": 5e-324},
        {"activation": ACTIVATIONS["silu"], "random_state": None, "batch_size": 7},
        {"backend": "auto", "random_state": 2**32 - 1, "learning_rate": "adaptive", "solver": "sgd"},
    ],
)
def test_parameters_come_back(parameters, path):
    model = classifier(**parameters)
    save_model(path, model)
    found, wanted = load_model(path).get_params(), model.get_params()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_equal(found[name], value)
        if not isinstance(value, np.generic):
            assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    "weights",
    [
        {-3: 1, np.int64(4): 2.5},
        {False: 1.0, np.True_: 2.0},
        {1.0: 1.0, np.float32(2.0): 3.0},
        {"$tuple": 1.0, np.str_("b"): 2.0},
    ],
)
def test_class_weights_of_any_labels_come_back(weights, path):
    labels = np.array(list(weights))[LABELS[:, 0]]
    model = like(A_CLASSIFIER, class_weight=weights).fit(X, labels)
    save_model(path, model)
    loaded = load_model(path)
    assert loaded.class_weight == weights
    assert everything(loaded.fit(X, labels)) == everything(model.fit(X, labels))


def test_a_random_state_goes_on_where_it_was(path):
    drawn = np.random.RandomState(5)
    drawn.standard_normal(3)  # an odd number: it keeps one
    model = classifier(random_state=drawn)
    save_model(path, model)
    loaded = load_model(path)
    np.testing.assert_array_equal(loaded.random_state.standard_normal(1500), drawn.standard_normal(1500))


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_a_backend_that_may_not_be_there_is_forgotten(name, path, request):
    need(name, request)
    save_model(path, classifier(backend=name))
    assert load_model(path).backend is None


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": [leaky_relu(0.2)], "loss": LOSSES["poisson"]},
        {"activation": ACTIVATIONS["tanh"], "loss": "binary_cross_entropy", "alpha": 5e-324},
    ],
)
def test_a_network_of_any_built_in_parts_comes_back_equal(settings, path):
    save_model(path, small_network(**settings))
    assert load_model(path)[0] == small_network(**settings)[0]


def test_a_model_that_diverged_comes_back(path):
    model = clone(A_REGRESSOR)
    with pytest.raises(DivergenceError):
        model.fit(X, 1e200 * X[:, 0])
    assert math.isnan(model.loss_)
    save_model(path, model)
    assert everything(load_model(path)) == everything(model)


def test_a_reader_of_safetensors_understands_the_file(path):
    model = regressor(activation="logistic")
    save_model(path, model)
    with safetensors.safe_open(path, framework="np") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata()
    assert (metadata["format"], metadata["format_version"]) == ("mlp_xp", "1")
    network = json.loads(metadata["model"])["network"]
    assert network == {
        "layer_sizes": [3, 4, 1],
        "hidden": "logistic",
        "loss": "squared_error",
        "alpha": 0.0001,
    }
    hidden = 1.0 / (1.0 + np.exp(-(X @ tensors["layers.0.weight"] + tensors["layers.0.bias"])))
    outputs = hidden @ tensors["layers.1.weight"] + tensors["layers.1.bias"]
    np.testing.assert_allclose(outputs[:, 0], model.predict(X), rtol=1e-12)


# What no file can hold.


def own_forward(xp, z):
    return z, None


def own_backward(xp, delta, kept):
    return delta


OWN = Activation(own_forward, own_backward)
LIKE_LEAKY = Activation(leaky_relu(0.1).forward, leaky_relu(0.2).backward)


class Mine(MLPRegressor):
    pass


def bfloat16():
    torch = pytest.importorskip("torch")
    network = Network((3, 2), loss="squared_error")
    return network, network.init(0, like=torch.zeros(1, dtype=torch.bfloat16))


def without_finite_weights(value):
    network, params = small_network()
    params[1].weight[2, 1] = value
    return network, params


def damaged(**attributes):
    model = regressor()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


NEVER = {
    "activation": (
        lambda: regressor(activation=OWN),
        TypeError,
        "`activation` must be a built-in Activation .*own_forward.*pickle",
    ),
    "one activation": (
        lambda: regressor(hidden_layer_sizes=(2, 3), activation=["relu", OWN]),
        TypeError,
        r"`activation\[1\]` must be a built-in",
    ),
    "mixed": (
        lambda: small_network(activation=LIKE_LEAKY),
        TypeError,
        "`activation` must be a built-in Activation",
    ),
    "loss": (
        lambda: small_network(loss=replace(LOSSES["poisson"], link=own_forward)),
        TypeError,
        "`loss` must be a built-in Loss .*poisson.*pickle",
    ),
    "bfloat16": (bfloat16, TypeError, r"'float16', 'float32', 'float64'\], got torch.bfloat16"),
    "longdouble": (lambda: small_network(np.longdouble), TypeError, "got float128"),
    "nan": (
        lambda: without_finite_weights(np.nan),
        ValueError,
        "`layers.1.weight` must hold finite .* row 2, column 1",
    ),
    "inf": (lambda: without_finite_weights(np.inf), ValueError, "`layers.1.weight` must hold finite"),
    "class": (
        lambda: MLPClassifier,
        TypeError,
        "`model` must be an MLPClassifier, .*, got builtins.type|got abc.ABCMeta",
    ),
    "not fitted": (MLPClassifier, NotFittedError, "not fitted"),
    "derived": (lambda: Mine(max_iter=1).fit(X, X[:, 0]), TypeError, "got test_model_files.Mine"),
    "pipeline": (lambda: make_pipeline(MLPClassifier()), TypeError, "got sklearn.pipeline.Pipeline"),
    "network": (
        lambda: small_network()[0],
        TypeError,
        r"tuple \(network, params\), got mlp_xp.Network",
    ),
    "list": (lambda: list(small_network()), TypeError, "got builtins.list"),
    "params": (
        lambda: (small_network()[0], small_network()[1][:1]),
        ValueError,
        "`params` must have 2 layers, got 1",
    ),
    "generator": (
        lambda: damaged(random_state=np.random.default_rng(0)),
        ValueError,
        "`random_state` must be .*Generator",
    ),
    "philox": (
        lambda: damaged(random_state=np.random.RandomState(np.random.PCG64(0))),
        TypeError,
        "`random_state` must draw from MT19937",
    ),
    "parameter": (lambda: damaged(alpha=-1.0), ValueError, "`alpha` must be a finite number and >= 0"),
    "solver": (lambda: damaged(solver="newton"), ValueError, "`solver` must be one of"),
    "seed": (lambda: damaged(random_state=-1), ValueError, "`random_state` must be an integer from 0"),
    "function": (lambda: damaged(tol=abs), TypeError, "`tol` must be None, .* got builtins.builtin_function"),
    "table": (
        lambda: damaged(hidden_layer_sizes=np.ones((2, 2))),
        TypeError,
        "1-D array .*got 2-D of float64",
    ),
    "epochs": (lambda: damaged(n_iter_="many"), TypeError, "`n_iter_` must be int, got 'many'"),
    "large": (
        lambda: damaged(val_loss_curve_=None, feature_names_in_=["a", "b", "c" * 2**26]),
        ValueError,
        "67108864 bytes",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_no_file_can_hold_is_refused_before_anything_is_written(name, path):
    make, kind, words = NEVER[name]
    path.write_bytes(b"what was there")
    model = make()
    with pytest.raises(kind, match=words):
        save_model(path, model)
    assert path.read_bytes() == b"what was there"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


# Writing.


def test_a_file_is_replaced_and_keeps_its_rights(path):
    save_model(path, small_network())
    path.chmod(0o640)
    model = regressor()
    save_model(str(path), model)
    assert everything(load_model(str(path))) == everything(model)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_rights_of_other_new_files(path):
    save_model(path, small_network())
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_link_stays_and_what_it_points_at_is_replaced(path):
    path.symlink_to("elsewhere")
    save_model(path, small_network())
    assert path.is_symlink()
    assert everything(load_model(path.with_name("elsewhere"))) == everything(small_network())


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whatever_fails_the_old_file_stays(function, error, path, monkeypatch):
    def fail(*arguments):
        raise error

    model = small_network()
    save_model(path, model)
    before = path.read_bytes()
    monkeypatch.setattr(function, fail)
    with pytest.raises(type(error)) as caught:
        save_model(path, regressor())
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)


def test_a_full_disk_leaves_the_old_file(path):
    save_model(path, small_network())
    code = f"""
import resource
import numpy as np
from mlp_xp import Network, save_model
network = Network((100, 100), loss="squared_error")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_model({str(path)!r}, (network, network.init(0, like=np.ones(1))))
except OSError as error:
    print(error.filename)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == str(path)
    assert everything(load_model(path)) == everything(small_network())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    for path, kind in ((tmp_path, FileExistsError), (tmp_path / "no" / "model", FileNotFoundError)):
        with pytest.raises(kind, match=str(path)):
            save_model(path, small_network())
    assert list(tmp_path.iterdir()) == []


# Reading what is no model.


class Boom:
    def __reduce__(self):
        return os.abort, ()


FOREIGN = {
    "empty": (b"", "cut short, or no safetensors"),
    "short": (b"\x02\0\0", "cut short"),
    "text": (b"a table of numbers\n" * 20, "no safetensors"),
    "pickle": (pickle.dumps(Boom()), "no safetensors"),
    "npz": (b"PK\x03\x04" + bytes(200), "no safetensors"),
    "long header": ((2**40).to_bytes(8, "little") + bytes(100), "header claims 1099511627776 bytes"),
    "zeros": (bytes(1000), "header"),
    "other model": (safetensors.numpy.save({"a": np.ones(3)}), "format must be 'mlp_xp', got None"),
    "other format": (
        safetensors.numpy.save({"a": np.ones(3)}, {"format": "pt"}),
        "format must be 'mlp_xp', got 'pt'",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_by_name(name, path):
    content, words = FOREIGN[name]
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="it is a folder"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="it is no file"):
        load_model(tmp_path / "pipe")
    with pytest.raises(ValueError, match="`backend` must be one of"):
        load_model(tmp_path / "nothing", backend="tensorflow")


def test_a_sparse_file_of_a_header_alone_is_not_read(path):
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**31)
    with peak_below(2**20), pytest.raises(ModelFileError, match="header must be 67108864 bytes long at most"):
        load_model(path)


# Files with a right checksum, made by somebody else.


def parts(content):
    """Take a file apart: the JSON of its header, and what follows."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def assembled(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def forged(content, text, tensors=None):
    """Return a file with another description, and tensors, and a checksum that is right."""
    tensors = safetensors.numpy.load(content) if tensors is None else tensors
    order = sorted(tensors, key=lambda name: (name.split(".")[:2], not name.endswith("weight")))
    checksum = sha256(text.encode() + b"".join(tensors[name].tobytes() for name in order)).hexdigest()
    metadata = {"format": "mlp_xp", "format_version": "1", "model": text, "sha256": checksum}
    return safetensors.numpy.save(tensors, metadata)


def description(content):
    return json.loads(parts(content)[0]["__metadata__"]["model"])


def saved(path, model):
    save_model(path, model)
    return path.read_bytes()


def test_a_forged_file_loads_where_it_says_what_is_true(path):
    content = saved(path, classifier())
    path.write_bytes(forged(content, json.dumps(description(content), indent=1)))
    assert everything(load_model(path)) == everything(classifier())


def put(document, where, value):
    *to, last = where.split(".")
    for key in to:
        document = document[key]
    document[last] = value
    return document


BOMB = ["a" * 10**5, *["b"] * 10**5]
SEED, SIZES = "parameters.random_state", "parameters.hidden_layer_sizes"
STATE = [[1] * 624, 624, 0, 0.0]
CRAFTED = {
    "kind": ("kind", "Pipeline", "`kind` must be one of"),
    "other kind": ("kind", "MLPRegressor", "unknown here: .'class_weight'"),
    "no network": ("network", None, "its description must have kind, mlp_xp, dtype"),
    "surplus": ("more", 1, "its description must have kind, mlp_xp, dtype"),
    "dtype": ("dtype", "float32", "'layers.0.weight' must be F32 of shape .3, 4., got F64 of shape .3, 4."),
    "bad dtype": ("dtype", "int64", "`dtype` must be one of"),
    "sizes": ("network.layer_sizes", [3, 5, 3], "must be F64 of shape .3, 5., got F64 of shape .3, 4."),
    "more sizes": ("network.layer_sizes", [3, 4, 3, 3], "missing are .'layers.2.bias', 'layers.2.weight'"),
    "fewer sizes": ("network.layer_sizes", [3, 4], "surplus .'layers.1.bias', 'layers.1.weight'"),
    "huge sizes": ("network.layer_sizes", [3, 10**400, 3], "`layer_sizes.1.` must be .* >= 1 and < 2..63"),
    "negative sizes": ("network.layer_sizes", [3, -4, 3], "must be an integer >= 1, got -4"),
    "float sizes": ("network.layer_sizes", [3.0, 4, 3], "must be an integer >= 1, got 3.0"),
    "no sizes": ("network.layer_sizes", "345", "`layer_sizes` must be a sequence of integers"),
    "hidden": ("network.hidden", "tanh", "`network` must be the one that the parameters make"),
    "alpha": ("network.alpha", 0.5, "`network` must be the one that the parameters make"),
    "loss": ("network.loss", "squared_error", "`loss` must be one of MLPClassifier"),
    "no loss": ("network.loss", ["x"], "`loss` must be one of"),
    "network more": ("network.more", 1, "`network` must have layer_sizes, hidden, loss, alpha"),
    "unknown": ("parameters.dropout", 0.5, "wrote it with parameters unknown here: .'dropout'"),
    "parameter": ("parameters.beta_1", 1.5, "`beta_1` must be a finite number and >= 0 and < 1, got 1.5"),
    "seed": (SEED, 2**32, "`random_state` must be an integer from 0"),
    "state": (SEED, {"$random_state": [*STATE[:1], 10**6, 0, 0.0]}, "and a position in them"),
    "short state": (SEED, {"$random_state": [[1] * 623, 0, 0, 0.0]}, "must be 624 numbers"),
    "zero state": (SEED, {"$random_state": [[0] * 624, 0, 0, 0.0]}, "must be 624 numbers"),
    "odd state": (SEED, {"$random_state": [*STATE[:2], 7, 0.0]}, "end with 0 or 1"),
    "word": ("parameters.tol", {"$eval": "1"}, "`kind of value` must be one of"),
    "two words": ("parameters.tol", {"$float": "inf", "$tuple": []}, "must be the only key"),
    "float": ("parameters.tol", {"$float": "1_0"}, "must be one of .'-inf', 'inf', 'nan'"),
    "array": (SIZES, {"$array": ["int8", [300]]}, "out of bounds|of that type"),
    "half": (SIZES, {"$array": ["float16", [1e9]]}, "numbers of that type"),
    "objects": (SIZES, {"$array": ["object", [1]]}, "must hold text"),
    "record": (SIZES, {"$array": ["V1000000000", []]}, "`dtype` must be one of"),
    "activation": (
        "parameters.activation",
        {"$activation": ["leaky_relu", {"alpha": 1.0}]},
        "have the parameters",
    ),
    "slope": ("parameters.activation", {"$activation": ["leaky_relu", {"slope": "1"}]}, "`slope` must"),
    "keys": ("parameters.class_weight", {"$dict": [[[1], 1.0]]}, "keys must be text or numbers"),
    "one hash": (
        "parameters.class_weight",
        {"$dict": [[index * (2**61 - 1), 1.0] for index in range(10**5)]},
        "keys must be text or numbers of 64 bits",
    ),
    "same keys": ("parameters.class_weight", {"$dict": [[1, 1.0], [1, 2.0]]}, "a key is repeated"),
    "padded classes": ("learned.classes", {"$array": ["str", BOMB]}, "characters at most"),
    "padded sizes": (SIZES, BOMB, r"hidden_layer_sizes\[0\]` must be an integer"),
    "classes": (
        "learned.classes",
        {"$array": ["str", ["a", "b"]]},
        "`classes` must be 3 in rising order, got 2",
    ),
    "order": ("learned.classes", {"$array": ["int64", [1, 0, 2]]}, "`classes` must be 3 in rising order"),
    "no classes": ("learned.classes", [1, 2, 3], "`classes` must be an array"),
    "names": ("learned.feature_names", ["a", "b"], "`feature_names` must be 3 names"),
    "number names": ("learned.feature_names", [1, 2, 3], "`feature_names` must be 3 names"),
    "epochs": ("learned.n_iter_", -1, "`n_iter_` must be an integer from 0 .*, got -1"),
    "samples": ("learned.t_", 10**400, "`t_` must be an integer from 0 to 2..63 - 1, got 1000"),
    "true epochs": ("learned.n_iter_", True, "`n_iter_` must be int, got True"),
    "curve": ("learned.loss_curve_", [0.5, "x"], "`loss_curve_` must be list"),
    "loss_": ("learned.loss_", "small", "`loss_` must be float, got 'small'"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_description_is_refused_by_what_is_wrong(name, path):
    where, value, words = CRAFTED[name]
    content = saved(path, classifier())
    document = description(content)
    put(document, where, value)
    path.write_bytes(forged(content, json.dumps(document)))
    with peak_below(20 * 2**20), pytest.raises(ModelFileError, match=words) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_many_short_texts_take_little_memory(path):
    """Each array is as small as may be: it is their sum that counts."""
    content = saved(path, classifier())
    document = description(content)
    array = {"$array": ["str", ["a" * 2048] + [""] * 2047]}
    document["parameters"]["hidden_layer_sizes"] = [array] * 100
    path.write_bytes(forged(content, json.dumps(document)))
    with (
        peak_below(2**20 + 12 * path.stat().st_size),
        pytest.raises(ModelFileError, match="characters at most"),
    ):
        load_model(path)


@pytest.mark.parametrize("section", ["parameters", "learned"])
def test_a_network_has_nothing_but_its_architecture(section, path):
    network = Network((3, 2), loss="squared_error")
    content = saved(path, (network, network.init(0, like=X)))
    document = description(content)
    document[section]["x"] = 1
    path.write_bytes(forged(content, json.dumps(document)))
    with pytest.raises(ModelFileError, match="must be empty for a network"):
        load_model(path)


@pytest.mark.parametrize("section", ["network", "parameters", "learned"])
@pytest.mark.parametrize("value", [{"$tuple": []}, {"$array": ["str", []]}, {"$float": "inf"}], ids=str)
def test_sections_that_decode_to_another_type_are_refused(section, value, path):
    content = saved(path, classifier())
    document = description(content) | {section: value}
    path.write_bytes(forged(content, json.dumps(document)))
    with pytest.raises(ModelFileError, match="each of its type"):
        load_model(path)


@pytest.mark.parametrize("section", ["network", "learned"])
def test_a_description_without_a_part_is_refused_by_its_name(section, path):
    content = saved(path, classifier())
    for key in description(content)[section]:
        document = description(content)
        del document[section][key]
        path.write_bytes(forged(content, json.dumps(document)))
        with pytest.raises(ModelFileError, match=key):
            load_model(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"t_": 80', '"t_": 80, "t_": 80', "a key is repeated"),
        ('"t_": 80', '"t_": NaN', "NaN is not valid JSON"),
        ('"t_": 80', '"t_": ' + "9" * 5000, "(?i)limit|digits"),
        ('"t_": 80', '"t_": ' + "[" * 10**5 + "]" * 10**5, "nested too deeply"),
        ('"t_": 80', '"t_": ' + '{"$tuple":[' * 400 + "]}" * 400, "nested too deeply|must be int"),
        ('"t_": 80', '"t_": 1e999', "a number is too large"),
        ('"t_": 80', '"t_": 80 80', "delimiter"),
        ('"kind"', "kind", "property name"),
    ],
)
def test_text_that_is_no_json_of_ours_is_refused(old, new, words, path):
    content = saved(path, classifier())
    text = json.dumps(description(content))
    assert old in text
    path.write_bytes(forged(content, text.replace(old, new, 1)))
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


def test_tensors_that_are_not_those_of_the_network_are_refused(path):
    content = saved(path, small_network())
    text, right = json.dumps(description(content)), safetensors.numpy.load(content)
    others = {
        "must be F64 of shape .2,., got I64 of shape .2,.": {"layers.1.bias": np.arange(2)},
        "must be F64 of shape .2,., got F64 of shape .1, 2.": {"layers.1.bias": np.ones((1, 2))},
        "surplus .'layers.2.bias'": {"layers.2.bias": np.ones(2)},
        "`layers.1.bias` must hold finite numbers, got nan": {"layers.1.bias": np.array([1.0, np.nan])},
    }
    for words, change in others.items():
        path.write_bytes(forged(content, text, right | change))
        with pytest.raises(ModelFileError, match=words):
            load_model(path)
    del right["layers.0.bias"]
    path.write_bytes(forged(content, text, right))
    with pytest.raises(ModelFileError, match="missing are .'layers.0.bias'"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format_version", "3", "version 2, got '3': a newer mlp_xp may know it"),
        ("format_version", "2", "metadata must be format, format_version, model, progress, checksums"),
        ("format_version", "one", "version 2, got 'one'"),
        ("format", "pt", "format must be 'mlp_xp', got 'pt'"),
        ("sha256", "0" * 64, "checksum"),
        ("more", "", "metadata must be"),
    ],
)
def test_other_metadata_is_refused(key, value, words, path):
    header, body = parts(saved(path, small_network()))
    header["__metadata__"][key] = value
    path.write_bytes(assembled(header, body))
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


# Memory.


@contextmanager
def peak_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_loading_takes_little_more_memory_than_the_model(path):
    network = Network((1000, *[1000] * 5), loss="squared_error")
    model = network, network.init(0, like=np.ones(1, dtype="float32"))
    save_model(path, model)
    size = path.stat().st_size
    assert size > 20e6
    with peak_below(1.5 * size):
        loaded = load_model(path)
    assert everything(loaded) == everything(model)


N, ELU = 30_000, {"$activation": ["elu", {"alpha": 0.5}]}
LARGE = {
    "layers": ("network.layer_sizes", [1] * N, None),
    "layers as a tuple": ("network.layer_sizes", {"$tuple": [1] * N}, None),
    "activations": ("network.hidden", [ELU] * N, None),
    "activations as a tuple": (
        "network.hidden",
        {"$tuple": [ELU] * N},
        None,
    ),
    "tensors": ("dtype", "float64", {f"layers.{index}.bias": np.ones(0) for index in range(N)}),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", LARGE)
def test_refusing_a_large_description_takes_little_more_memory_than_reading_it(name, path):
    content = saved(path, classifier())
    where, value, tensors = LARGE[name]
    document = description(content)
    put(document, where, value)
    path.write_bytes(forged(content, json.dumps(document), tensors))
    with peak_below(2**20 + 12 * path.stat().st_size), pytest.raises(ModelFileError) as caught:
        load_model(path)
    assert len(str(caught.value)) < 1000


def test_a_file_copied_over_in_its_place_while_it_loads_ends_no_process(path):
    network = Network((300, 2000, 300, 10), loss="squared_error")
    others = [saved(path, (network, network.init(seed, like=X))) for seed in range(2)]
    code = """
import sys, time
from mlp_xp import ModelFileError, load_model
print("ready", flush=True)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        load_model(sys.argv[1])
    except ModelFileError:
        pass
"""
    loading = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    loading.stdout.readline()
    while loading.poll() is None:
        for content in others:
            with path.open("r+b") as file:
                file.truncate(0)
                file.write(content)
    loading.stdout.close()
    assert loading.returncode == 0


def test_a_file_that_becomes_shorter_is_refused(path, monkeypatch):
    network = Network((100, 100), loss="squared_error")
    content = saved(path, (network, network.init(0, like=X)))
    check = TensorFile.check

    def check_and_cut(self, *arguments):
        check(self, *arguments)
        os.truncate(path, len(content) - 8)

    monkeypatch.setattr(TensorFile, "check", check_and_cut)
    with pytest.raises(ModelFileError, match="it became shorter"):
        load_model(path)


ENTRIES = {
    "no object": ([], "must have dtype, shape and data_offsets"),
    "more": ({"more": 1}, "must have dtype, shape and data_offsets"),
    "text": ({"data_offsets": "ab"}, "two integers as data_offsets"),
    "truth": ({"data_offsets": [False, 8]}, "two integers as data_offsets"),
    "three": ({"data_offsets": [0, 8, 16]}, "two integers as data_offsets"),
    "size": ({"data_offsets": [0, 4]}, "must have data_offsets of its size"),
    "negative": ({"data_offsets": [-8, 8]}, "must fill the file"),
    "overlap": ({"data_offsets": [8, 24]}, "must fill the file"),
    "beyond": ({"data_offsets": [10**30, 10**30 + 16]}, "must fill the file"),
    "shape": ({"shape": "2"}, "must be F64 of shape .2,., got F64 of shape 2"),
    "dtype": ({"dtype": ["F64"]}, "must be F64 of shape"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_tensor_that_is_not_where_it_should_be_is_refused(name, path):
    change, words = ENTRIES[name]
    header, body = parts(saved(path, small_network()))
    header["layers.1.bias"] = header["layers.1.bias"] | change if isinstance(change, dict) else change
    path.write_bytes(assembled(header, body))
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


@pytest.mark.parametrize(("body", "words"), [(bytes(8), "must fill the file"), (b"", "header claims")])
def test_bytes_after_the_tensors_or_missing_are_refused(body, words, path):
    content = saved(path, small_network())
    path.write_bytes(content + body if body else content[:40])
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


# Damage of every kind. What loads must be what was saved, or where the checksum was made to fit, a model.


def originals():
    drawn = like(A_CLASSIFIER, random_state=np.random.RandomState(0), class_weight={0: 1.0, 1: 2.0, 2: 0.5})
    yield small_network("float32", activation=[leaky_relu(0.2)])
    yield drawn.fit(X, CLASSES)
    yield from map(fitted, ("names", "sparse labels", "outputs", "f1"))


def cut(dice, content, other):
    return content[: dice.randrange(len(content))]


def flip_bits(dice, content, other):
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def change_bytes(dice, content, other):
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 16))):
        changed[dice.randrange(len(changed))] = dice.choice((0, 255, 34, 48, 57, 123, dice.randrange(256)))
    return bytes(changed)


def insert(dice, content, other):
    at = dice.randrange(len(content) + 1)
    return content[:at] + dice.choice((dice.randbytes(dice.randrange(1, 64)), b" ", bytes(8))) + content[at:]


def delete(dice, content, other):
    start = dice.randrange(len(content))
    return content[:start] + content[start + dice.choice((1, 2, 8, dice.randrange(1, 200))) :]


def swap(dice, content, other):
    a, b, c, d = sorted(dice.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def splice(dice, content, other):
    if dice.random() < 0.5:
        (mine, _), (_, body) = parts(content), parts(other)
        return assembled(mine, body)
    at = dice.randrange(len(content))
    return content[:at] + other[dice.choice((at, dice.randrange(len(other)))) :]


def change_length(dice, content, other):
    length = int.from_bytes(content[:8], "little")
    near = length + dice.choice((-8, -1, 1, 8, dice.randrange(-length, len(content))))
    length = dice.choice((near, 0, 2**26, 2**63, 2**64 - 1, dice.getrandbits(dice.randrange(1, 64))))
    return length.to_bytes(8, "little") + content[8:]


def change_header(dice, content, other):
    header, body = parts(content)
    change_somewhere(dice, header)
    text = json.dumps(header)
    if dice.random() < 0.2:  # the same key twice
        name = dice.choice([key for key in header if key != "__metadata__"] or ["a"])
        twice = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header.get(name, twice))}" + "}"
    return assembled(text.encode(), body)


def change_description(dice, content, other):
    document = description(content)
    for _ in range(dice.choice((1, 1, 2))):
        change_somewhere(dice, document)
    text = json.dumps(document)
    if dice.random() < 0.05:
        text = change_bytes(dice, text.encode("ascii"), b"").decode("latin-1")
    return forged(content, text)


def places(value):
    """All containers in a JSON value."""
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from places(item)


def change_somewhere(dice, document):
    """Delete, rename, move, repeat or change something in a JSON value."""
    container = dice.choice([place for place in places(document) if place] or [{"": 0}])
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key = dice.choice(keys)
    value = container[key]
    kind = dice.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other = dice.choice(keys)
        container[key], container[other] = container[other], value
    elif kind == 2 and isinstance(container, dict):
        container[dice.choice(("", "$", "$tuple", key + "_", key.upper()))] = container.pop(key)
    elif kind == 2:
        container.insert(key, copy.deepcopy(value))
    elif kind in (3, 4) and type(value) in (int, float) and abs(value) < 1e300:
        factor = dice.choice((-1, 0, 2, 0.5, 1e300, 10**30))
        container[key] = dice.choice((value + 1, value - 1, value * factor, float(value), str(value)))
    elif kind == 5:
        container[key] = nested(dice, value)
    else:
        container[key] = copy.deepcopy(dice.choice(VALUES))


VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", "relu", "auto", "score", "F16", "float16", "\ud800", "\0", [], {}, [[]], [1, 2], ["relu"]),
    *({"$tuple": [2]}, {"$tuple": 2}, {"$float": "nan"}, {"$float": "-inf"}, {"a": 1}, {"$loss": "poisson"}),
    *({"$dict": [[0, 1.0]]}, {"$dict": [[]]}, {"$array": ["int8", [4]]}, {"$array": ["float16", [1e9]]}),
    *({"$array": ["str", ["a", "b", "c"]]}, {"$random_state": [[1] * 624, 3, 0, 0.0]}),
    *({"$activation": ["elu", {"alpha": 2.0}]}, {"$activation": ["tanh", {}]}),
]


def nested(dice, value):
    for _ in range(dice.choice((1, 2, 70, 350))):
        value = dice.choice(([value], {"a": value}, {"$tuple": [value]}))
    return value


DAMAGES = {
    damage.__name__: (damage, share)
    for damage, share in [
        *((cut, 0.05), (flip_bits, 0.1), (change_bytes, 0.1), (insert, 0.05), (delete, 0.05), (swap, 0.1)),
        *((splice, 0.05), (change_length, 0.05), (change_header, 0.15), (change_description, 0.3)),
    ]
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_or_loads_as_it_was(name, path, request):
    damage, share = DAMAGES[name]
    dice = random.Random(name)
    files = [(saved(path, model), everything(model)) for model in originals()]
    for count in range(int(share * request.config.getoption("--mutations"))):
        (content, wanted), (other, _) = dice.choice(files), dice.choice(files)
        path.write_bytes(damage(dice, content, other))
        try:
            loaded = load_model(path)
        except ModelFileError:
            continue
        if everything(loaded) != wanted:
            # A checksum made to fit, or a file made of another as it was.
            assert name == "change_description" or everything(loaded) in [made for _, made in files], count
            predicts(loaded)


def predicts(model):
    if isinstance(model, tuple):
        network, params = model
        network.predict(params, np.ones((2, network.layer_sizes[0]), params[0].weight.dtype))
        return
    names = getattr(model, "feature_names_in_", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of columns that are odd
        model.predict(np.ones((2, model.n_features_in_)) if names is None else frame(X[:2], names))
    assert len(model.history_) == len(model.loss_curve_)


# Without the libraries.


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def test_without_safetensors_models_load_and_saving_says_what_to_install(path):
    save_model(path, small_network())
    code = """
import sys
sys.modules["safetensors"] = None
from mlp_xp import load_model, save_model
model = load_model(sys.argv[1])
try:
    save_model(sys.argv[1], model)
except ImportError as error:
    print(error)
"""
    said = r"a model file needs safetensors \(.*\): pip install 'mlp_xp\[files\]'\n"
    assert re.fullmatch(said, run(code, path))


def test_networks_need_no_scikit_learn_and_estimators_say_so(path):
    save_model(path, regressor())
    code = """
import sys
sys.modules["sklearn"] = None
import numpy as np
from mlp_xp import Network, load_model, save_model
network = Network((2, 1), loss="poisson")
save_model(sys.argv[1] + "2", (network, network.init(0, like=np.ones(1))))
print(load_model(sys.argv[1] + "2")[0] == network)
try:
    load_model(sys.argv[1])
except ImportError as error:
    print(error)
"""
    first, second = run(code, path).splitlines()
    assert first == "True"
    assert second.startswith("MLPRegressor needs scikit-learn 1.9 or later (")
