"""Arguments of a wrong kind, in each parameter of each public function: refused by name, before any work.

A parameter's annotation says what it takes; every other value must raise a TypeError or a ValueError with the
parameter's name. A new function or parameter without a valid call here fails the first test.
"""

import inspect
import math
import os
import re
import typing
import warnings
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from numbers import Integral, Real
from types import NoneType, UnionType

import numpy as np
import pytest
from matplotlib import pyplot

import mlp_xp
from mlp_xp import EarlyStopping, Layer, Network, adam, datasets, plotting, tables

pl = pytest.importorskip("polars")

X = np.linspace(-1.0, 1.0, 12).reshape(6, 2)
Y = X[:, :1]
NETWORK = Network((2, 3, 1), loss="squared_error")
PARAMS = NETWORK.init(0, like=X)


def function(*args):
    """Return the first argument: a stand-in for what users write."""
    return args[0]


VALUES = np.tile(X[:, 0], 5)
LABELS = VALUES > 0.0
FEW = {"X": np.tile(X, (5, 1)), "y": VALUES, "sample_weight": np.ones(30)}
SAMPLES = FEW | {"X_val": FEW["X"], "y_val": VALUES, "sample_weight_val": np.ones(30)}
SAMPLES |= {"checkpoint": None, "resume": False}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # one epoch does not converge
    CLASSIFIER = mlp_xp.MLPClassifier((2,), max_iter=1).fit(FEW["X"], LABELS)
    REGRESSOR = mlp_xp.MLPRegressor("squared_error", (2,), max_iter=1).fit(FEW["X"], VALUES)
FRAME = pl.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "c": [0.0, 1.0, 2.0, 3.0], "b": ["x", "y", "x", "y"]})
DATA = {"network": NETWORK, "params": PARAMS, "X": X, "y": Y, "sample_weight": np.ones(6)}
VALID = {
    mlp_xp.Activation: {"forward": function, "backward": function},
    mlp_xp.Checkpoint: {
        **{"path": "nowhere", "every_seconds": 1.0, "every_epochs": None, "keep": 2, "overwrite": False},
    },
    mlp_xp.EarlyStopping: {
        **{"monitor": "loss", "n_iter_no_change": 10, "tol": 0.1, "restore_best": True},
        **{"greater_is_better": None, "divide_rate": 2.0, "min_rate": 0.1},
    },
    mlp_xp.Loss: {"link": function, "evaluate": function, "decide": None, "problem": None},
    mlp_xp.Network: {
        **{"layer_sizes": (2, 3, 1), "activation": "relu", "loss": "squared_error", "alpha": 0.1},
        "matmul_precision": "highest",
    },
    mlp_xp.Network.init: {"self": NETWORK, "seed": 0, "like": X, "weight": "zeros", "bias": "zeros"},
    mlp_xp.Network.logits: {"self": NETWORK, "params": PARAMS, "X": X},
    mlp_xp.Network.loss_and_gradients: {"self": NETWORK, **{k: v for k, v in DATA.items() if k != "network"}},
    mlp_xp.Network.predict: {"self": NETWORK, "params": PARAMS, "X": X},
    mlp_xp.adam: {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.9, "epsilon": 1e-8},
    mlp_xp.backend: {"name": "numpy"},
    mlp_xp.cosine: {"learning_rate": 0.1, "epochs": 3, "final": 0.01},
    mlp_xp.decoupled_weight_decay: {"optimizer": adam(), "weight_decay": 0.1},
    mlp_xp.elu: {"alpha": 1.0},
    mlp_xp.evaluate: {**DATA, "metrics": ["r2"]},
    mlp_xp.glorot_uniform: {"factor": 2.0},
    mlp_xp.gradient_descent: {"learning_rate": 0.1},
    mlp_xp.he_normal: {},
    mlp_xp.inverse_scaling: {"learning_rate": 0.1, "power_t": 0.5, "n_samples": 3},
    mlp_xp.leaky_relu: {"slope": 0.1},
    mlp_xp.load_model: {"path": "nowhere", "backend": None},
    mlp_xp.momentum: {"learning_rate": 0.1, "momentum": 0.5, "nesterovs_momentum": True},
    mlp_xp.normal: {"scale": 0.1},
    mlp_xp.save_model: {"path": "nowhere", "model": (NETWORK, PARAMS), "with_progress": False},
    mlp_xp.step_decay: {"learning_rate": 0.1, "every": 3, "factor": 0.5},
    mlp_xp.to_host: {"array": X},
    mlp_xp.train: {
        **DATA,
        **{"optimizer": adam(), "epochs": 1, "batch_size": 3, "shuffle": True, "seed": 0, "metrics": ["r2"]},
        **{"validation_data": (X, Y), "early_stopping": EarlyStopping("loss"), "callback": None},
        **{"on_progress": None, "checkpoint": None, "resume": False},
    },
    mlp_xp.zeros: {},
    mlp_xp.data_parallel: {"comm": None},
    datasets.load: {"name": "xor"},
    datasets.planar: {"n_samples": 10, "noise": 0.1, "seed": 0},
    datasets.xor: {},
    mlp_xp.ProgressBar: {"epochs": 3, "console": None, "description": "epoch"},
    mlp_xp.one_hot: {"classes": np.arange(3), "n_classes": 3, "like": X},
    CLASSIFIER.fit: SAMPLES | {"y": LABELS, "y_val": LABELS, "classes": None},
    CLASSIFIER.partial_fit: FEW | {"y": LABELS, "classes": [False, True]},
    CLASSIFIER.predict: {"X": SAMPLES["X"]},
    CLASSIFIER.predict_proba: {"X": SAMPLES["X"]},
    CLASSIFIER.predict_log_proba: {"X": SAMPLES["X"]},
    CLASSIFIER.score: FEW | {"y": LABELS},
    CLASSIFIER.to: {"target": "numpy"},
    REGRESSOR.fit: SAMPLES,
    REGRESSOR.partial_fit: FEW,
    REGRESSOR.predict: {"X": SAMPLES["X"]},
    REGRESSOR.score: FEW,
    plotting.plot_decision_boundary: {
        **{"model": CLASSIFIER, "X": SAMPLES["X"], "y": LABELS, "ax": None},
        **{"feature_names": ["a", "b"], "class_names": ["no", "yes"], "grid_resolution": 3, "legend": True},
    },
    plotting.plot_learning_curve: {"history": [{"epoch": 1, "loss": 0.5}], "ax": None, "best_epoch": 1},
    plotting.plot_network: {
        **{"model": (NETWORK, PARAMS), "ax": None, "feature_names": ["a", "b"], "class_names": ["y"]},
    },
    tables.learn_schema: {
        **{"table": FRAME, "target": "b", "task": "auto", "categorical": (), "drop": (), "keep": ()},
        **{"sample_weight": None, "missing": ("NA",), "decimal": None, "day_first": None},
    },
    tables.load_run: {"path": "nowhere"},
    tables.read_frame: {"path": "nowhere.csv", "encoding": None},
    tables.write_frame: {"path": "table.csv", "frame": FRAME},
}
EXEMPT = {
    "trusted_types",
    *("BackendUnavailableError", "Callback", "CheckpointWarning", "DivergenceError", "EagerFallbackWarning"),
    "History",
    *("Initializer", "Layer", "ModelFileError", "Optimizer", "OutOfMemoryError"),
    *("ProcessError", "Processes", "Schedule"),
    *("Trained", "TrainingError", "TrainingInterruptedWarning"),
    *("ColumnSchema", "DataError", "DateFormat", "NumberFormat", "Run", "Schema"),
    *("TabularClassifier", "TabularRegressor"),
}
"""Errors, results and protocols, which users do not construct; and estimators, which check when they fit."""

WRONG = {
    **{"None": None, "False in text": "False", "bytes": b"3", "empty text": "", "an object": object()},
    **{"a dict": {}, "an empty list": [], "an empty array": np.empty(0), "a bool": True},
    **{"nan": math.nan, "inf": math.inf, "minus inf": -math.inf, "a negative number": -1, "half": 0.5},
    **{"2**70": 2**70, "10**5000": 10**5000, "1e300": 1e300, "complex": 1j, "Decimal": Decimal("0.1")},
    **{"NaT": np.datetime64("NaT"), "a duration": np.timedelta64(3, "ns"), "numpy.bool": np.bool_(True)},
    **{"an array of text": np.array(["a"]), "an array of objects": np.array([None]), "ragged": [[1], [1, 2]]},
    **{"dates": np.full((6, 2), "NaT", "M8[s]"), "NaN in an array": np.full((6, 2), np.nan)},
    **{"three dimensions": np.ones((6, 2, 1)), "a matrix": np.ones((6, 2)).view(np.matrix)},
    **{"masked": np.ma.masked_array(X, X > 0.5), "a layer": Layer(X, Y), "a tuple": (1, 2, 3, 4)},
}


def takes(hint, value):
    """Whether a parameter with this annotation may take a value without an error."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (UnionType, typing.Union) else (hint,)
    for kind in kinds:
        plain = isinstance(value, (bool, np.bool_, np.timedelta64))
        if kind is NoneType and value is None:
            return True
        if kind is bool and isinstance(value, (bool, np.bool_)):
            return True
        if kind is int and isinstance(value, Integral) and not plain:
            return True
        if kind is float and isinstance(value, Real) and not plain and math.isfinite(min(value, 2**1000)):
            return True
        if kind is str and isinstance(value, str):
            return True
        if typing.get_origin(kind) is os.PathLike and isinstance(value, os.PathLike):
            return True
        if typing.get_origin(kind) is Callable and callable(value):
            return True
    return False


def valid_calls():
    for thing, arguments in VALID.items():
        hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
        for name in arguments:
            if name == "self":
                continue
            yield pytest.param(thing, name, hints.get(name), id=f"{thing.__qualname__}-{name}")


def test_each_public_function_and_parameter_has_a_valid_call():
    for module in (mlp_xp, plotting, tables):
        assert set(VALID) >= {getattr(module, name) for name in module.__all__ if name not in EXEMPT}
    for thing, arguments in VALID.items():
        assert set(inspect.signature(thing).parameters) == set(arguments), thing


ACCEPTED = {
    "layer_sizes": {"a tuple"},
    "hidden_layer_sizes": {"a tuple", "a dict", "an empty list", "an empty array"},
    "like": {"an empty array", "NaN in an array", "three dimensions"},  # only its place and dtype matter
    "array": {"an empty array", "an array of text", "an array of objects", "dates", "NaN in an array"}
    | {"three dimensions"},
    "X": {"NaN in an array"},  # of `Network.predict`, where looking for it would wait for the device
    (plotting.plot_decision_boundary, "y"): {"None", "NaN in an array"},
    (plotting.plot_network, "class_names"): {
        "empty text",
        "False in text",
        "an array of text",
        "an array of objects",
    },
    "sample_weight_val": {"None", "a bool", "half", "2**70", "1e300"},  # also one number for all
    "classes": {"None", "an empty list", "an empty array"},
    "console": {"None"},
    "comm": {"None"},
    "ax": {"None"},
    "best_epoch": {"None"},
    "feature_names": {"None"},
    "class_names": {"None"},
    "categorical": {"an empty list", "an empty array", "an array of text"},
    "drop": {"an empty list", "an empty array", "an array of text"},
    "keep": {"an empty list", "an empty array", "an array of text"},
    "missing": {"an empty list", "an empty array", "an array of text"},
    "metrics": {"a dict", "an empty list", "an empty array"},
    "n_iter_no_change": {"inf"},
    "batch_size": {"a bool"},
    "verbose": {"a bool", "numpy.bool"},
    "checkpoint": {"None"},
    "resume": {"None"},
    "early_stopping": {"a bool", "numpy.bool"},
    "class_weight": {"a dict"},
    "random_state": {"a bool"},
    "validation_data": {"a layer"},  # a tuple of two arrays
}
"""What parameters take, of all functions or of one, beside what their annotations say."""
for each in (CLASSIFIER, REGRESSOR):
    for method in (each.fit, each.partial_fit, each.score):
        ACCEPTED[method, "sample_weight"] = ACCEPTED["sample_weight_val"]

SHOWN_AS = {(mlp_xp.backend, "name"): "backend"}


def assert_refused_by_name(call, name, label, accepted):
    """Call, and check that an error names the argument; without one the value must be accepted."""
    try:
        call()
    except (OSError, mlp_xp.ModelFileError, mlp_xp.TrainingError) as error:
        message = "" if accepted else f"{error}"  # of the right kind, and no file, or too large
    except (TypeError, ValueError) as error:
        message = str(error)
        # The latter three are scikit-learn's.
        shown = rf"`{name}\b|^Input {name} |^{name} has | requires {name} to be passed"
        found = re.search(shown, message) and len(message) < 2000
        message = "" if found or (accepted and isinstance(error, tables.DataError)) else message
    else:
        message = "" if accepted or label in ACCEPTED.get(name, ()) else "is taken"
    assert not message, label


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("thing", "name", "hint"), list(valid_calls()))
def test_wrong_arguments_are_refused_by_name(thing, name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = SHOWN_AS.get((thing, name), name)
    for label, wrong in WRONG.items():
        arguments = VALID[thing] | {name: wrong}
        accepted = takes(hint, wrong) or label in ACCEPTED.get((thing, name), ())
        assert_refused_by_name(lambda given=arguments: thing(**given), shown, label, accepted)
    pyplot.close("all")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name"),
    [(mlp_xp.MLPRegressor, "loss")]
    + [(mlp_xp.MLPClassifier, name) for name in sorted(mlp_xp.MLPClassifier().get_params())],
)
def test_wrong_parameters_of_estimators_are_refused_by_name(kind, name):
    samples = FEW["X"]
    hint = typing.get_type_hints(kind)[name]
    for label, wrong in WRONG.items():
        model = kind(**{"hidden_layer_sizes": (2,), "max_iter": 1, "max_fun": 1} | {name: wrong})
        accepted = takes(hint, wrong) or (hint is typing.Any and wrong is None)
        assert_refused_by_name(lambda fit=model.fit: fit(samples, samples[:, 0] > 0.0), name, label, accepted)


TABULAR = [tables.TabularClassifier, tables.TabularRegressor]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in TABULAR for name in kind().get_params()])
def test_wrong_parameters_of_tabular_estimators_are_refused_by_name(kind, name):
    frame = pl.DataFrame({"a": np.arange(8.0), "b": list("xyxyxyxy")})
    y = np.arange(8) % 2
    for label, wrong in WRONG.items():
        model = kind(**{"n_networks": 1, "hidden_layer_sizes": (2,), "max_iter": 1} | {name: wrong})
        accepted = takes(typing.get_type_hints(kind)[name], wrong) or (
            name == "class_weight" and wrong is None
        )
        assert_refused_by_name(lambda fit=model.fit: fit(frame, y), name, label, accepted)


@pytest.mark.parametrize("name", ["init", "update", "learning_rate"])
def test_an_optimizer_without_functions_is_refused_before_training(name):
    wrong = replace(adam(), **{name: "0.1"})
    for call in (
        lambda: mlp_xp.train(NETWORK, PARAMS, X, Y, optimizer=wrong, epochs=1),
        lambda: mlp_xp.decoupled_weight_decay(wrong, 0.1),
    ):
        with pytest.raises(TypeError, match=rf"^`(optimizer\.)?{name}` must be "):
            call()
