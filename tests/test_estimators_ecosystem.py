"""The estimators inside scikit-learn: what works with its MLP works with these, and gives the same."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import inspect
import pickle
import re
import warnings
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO

import joblib
import numpy as np
import pytest
from scipy import sparse
from sklearn import config_context, neural_network
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_classification, make_multilabel_classification, make_regression
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.exceptions import ConvergenceWarning, NotFittedError, UnsetMetadataPassedError
from sklearn.feature_selection import SelectFromModel, SequentialFeatureSelector
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, get_scorer, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, learning_curve
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr, get_tags
from threadpoolctl import threadpool_limits

import mlp_xp
from mlp_xp import (
    DivergenceError,
    MLPClassifier,
    MLPRegressor,
    TrainingInterruptedWarning,
    elu,
    leaky_relu,
)

# Few epochs, so that nothing converges: what is compared is what happens on the way.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
SETTINGS = {"hidden_layer_sizes": (6,), "max_iter": 8, "random_state": 0, "batch_size": 16}
NAMES = ["MLPClassifier", "MLPRegressor"]
both = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Keep small matrices to one thread; more cost more than they give."""
    with threadpool_limits(1):
        yield


def ours(name, **parameters):
    return getattr(mlp_xp, name)(**{**SETTINGS, **parameters})


def theirs(name, **parameters):
    return getattr(neural_network, name)(**{**SETTINGS, **parameters})


def data(name, n_samples=60):
    """Return three classes or one real target, and features that want scaling."""
    X, labels = make_classification(n_samples, 4, n_informative=3, n_redundant=0, n_classes=3, random_state=0)
    y = labels if name == "MLPClassifier" else X @ np.array([1.0, -2.0, 0.5, 0.0])
    return 3.0 * X + 1.0, y


def output(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


def assert_same(model, peer, X):
    assert model.predict(X).shape == peer.predict(X).shape
    np.testing.assert_allclose(output(model, X), output(peer, X), rtol=1e-7)


def outcome(function, *arguments):
    """Return what a call gave: its value or its error, and its warnings, as they can be compared."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = function(*arguments)
        except Exception as error:
            # The argument's name comes before scikit-learn's words where these do not contain it.
            value = (type(error), re.sub(r"^`\w+`: ", "", str(error)))
    shown = [str(one.message) for one in caught if one.category is not ConvergenceWarning]
    return value, shown


# Parameters.


@both
def test_signatures_begin_with_scikit_learns(name):
    model, peer = getattr(mlp_xp, name), getattr(neural_network, name)
    for method in ("__init__", "fit", "partial_fit", "predict", "score"):
        here = list(inspect.signature(getattr(model, method)).parameters.values())
        there = list(inspect.signature(getattr(peer, method)).parameters.values())
        if method == "fit":  # a stream has its targets in its batches
            there = [one.replace(default=None) if one.name == "y" else one for one in there]
        assert [(one.name, one.kind, one.default) for one in here[: len(there)]] == [
            (one.name, one.kind, one.default) for one in there
        ]
        assert all(one.kind is one.KEYWORD_ONLY for one in here[len(there) :])
    public = {attribute for attribute in dir(peer) if not attribute.startswith("_")}
    assert public <= set(dir(model))


PARAMETERS = {
    "named": {"activation": "gelu"},
    "object": {"activation": leaky_relu(0.2)},
    "per layer": {"activation": ["tanh", elu(0.5)], "hidden_layer_sizes": [5, 4]},
    "tuple": {"activation": (leaky_relu(0.3), "silu"), "hidden_layer_sizes": (5, 4)},
    "all else": {"weight_decay": 0.1, "backend": "numpy", "early_stopping": "loss"},
}


@both
@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=list(PARAMETERS))
def test_parameters_and_clones(name, parameters):
    X, y = data(name)
    model = ours(name, **parameters)
    for key, value in parameters.items():
        assert model.get_params()[key] is value
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    other = ours(name, activation="relu", hidden_layer_sizes=(7,))
    assert other.set_params(**model.get_params()) is other
    expected = output(model.fit(X, y), X)
    np.testing.assert_array_equal(output(twin.fit(X, y), X), expected)
    np.testing.assert_array_equal(output(other.fit(X, y), X), expected)
    # A clone of a fitted model is not fitted.
    with pytest.raises(NotFittedError):
        clone(model).predict(X)
    # And the parameter is used.
    assert not np.allclose(output(ours(name).fit(X, y), X), expected)


CARRY = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "copy": copy.deepcopy}


@both
@pytest.mark.parametrize("carry", CARRY.values(), ids=list(CARRY))
@pytest.mark.parametrize(
    "parameters",
    [
        {"solver": "adam", "activation": leaky_relu(0.2)},
        {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.01},
        {"solver": "adam", "early_stopping": True, "validation_fraction": 0.3},
    ],
    ids=["adam", "sgd", "early stopping"],
)
def test_a_model_that_was_carried_elsewhere_goes_on(name, carry, parameters):
    X, y = data(name)
    model = ours(name, warm_start=True, max_iter=3, **parameters).fit(X, y)
    carried = carry(model)
    np.testing.assert_array_equal(output(carried, X), output(model, X))
    assert carried.loss_curve_ == model.loss_curve_
    together = ours(name, max_iter=6, **parameters).fit(X, y)
    for goes_on in (carried, model):
        goes_on.fit(X, y)
        np.testing.assert_allclose(output(goes_on, X), output(together, X), rtol=1e-9)
    np.testing.assert_array_equal(output(carried, X), output(model, X))


@both
@pytest.mark.parametrize("carry", CARRY.values(), ids=list(CARRY))
def test_partial_fit_goes_on_elsewhere_as_scikit_learns_does(name, carry):
    X, y = data(name)
    model, peer = ours(name), theirs(name)
    first = {"classes": [0, 1, 2]} if name == "MLPClassifier" else {}
    for step in range(3):
        rows = slice(20 * step, 20 * step + 20)
        for estimator in (model, peer):
            estimator.partial_fit(X[rows], y[rows], **(first if step == 0 else {}))
        model = carry(model)
    assert_same(model, peer, X)
    assert model.t_ == peer.t_


# scikit-learn's tools.


@both
def test_pipeline_and_scores(name):
    X, y = data(name)
    models = [make_pipeline(StandardScaler(), make(name)) for make in (ours, theirs)]
    assert_same(*[model.fit(X, y) for model in models], X)
    assert models[0].score(X, y) == pytest.approx(models[1].score(X, y), rel=1e-9)
    for tool in (cross_val_score, cross_val_predict):
        here, there = [tool(model, X, y, cv=3) for model in models]
        np.testing.assert_allclose(here, there, rtol=1e-7)
    here, there = [learning_curve(model, X, y, cv=2, train_sizes=[0.6, 1.0]) for model in models]
    np.testing.assert_allclose(here[2], there[2], rtol=1e-7)


@both
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search(name, n_jobs):
    X, y = data(name)
    grid = {"mlp__hidden_layer_sizes": [(3,), (8, 4)], "mlp__alpha": [1e-4, 10.0]}
    searches = []
    for make in (ours, theirs):
        pipeline = Pipeline([("scale", StandardScaler()), ("mlp", make(name, solver="lbfgs"))])
        searches.append(GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs))
        with joblib.parallel_config("threading"):
            searches[-1].fit(X, y)
    here, there = searches
    np.testing.assert_allclose(
        here.cv_results_["mean_test_score"], there.cv_results_["mean_test_score"], rtol=1e-5
    )
    assert len(set(here.cv_results_["mean_test_score"])) > 1
    assert here.best_params_ == there.best_params_
    np.testing.assert_allclose(output(here, X), output(there, X), rtol=1e-4)


def test_grid_search_over_what_is_new():
    X, y = data("MLPClassifier")
    grid = {"activation": ["silu", leaky_relu(0.2), ["elu"]], "weight_decay": [0.0, 0.5]}
    search = GridSearchCV(ours("MLPClassifier"), grid, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 6
    best = ours("MLPClassifier", **search.best_params_).fit(X, y)
    np.testing.assert_array_equal(best.predict_proba(X), search.predict_proba(X))


META = {
    "calibrated": ("MLPClassifier", lambda model: CalibratedClassifierCV(model, cv=2)),
    "calibrated once": ("MLPClassifier", lambda model: CalibratedClassifierCV(model, cv=2, ensemble=False)),
    "bagging": ("MLPClassifier", lambda model: BaggingClassifier(model, 3, random_state=0)),
    "bagged regressors": ("MLPRegressor", lambda model: BaggingRegressor(model, 3, random_state=0)),
    "boosting": (
        "MLPClassifier",
        lambda model: AdaBoostClassifier(model.set_params(max_iter=30), n_estimators=2, random_state=0),
    ),
    "boosted regressors": ("MLPRegressor", lambda model: AdaBoostRegressor(model, random_state=0)),
    "one vs rest": ("MLPClassifier", OneVsRestClassifier),
    "voting": ("MLPClassifier", lambda model: VotingClassifier([("a", model)], voting="soft")),
    "stacking": ("MLPClassifier", lambda model: StackingClassifier([("a", model)], cv=2)),
    "transformed target": (
        "MLPRegressor",
        lambda model: TransformedTargetRegressor(model, transformer=StandardScaler()),
    ),
}


@pytest.mark.parametrize(("name", "wrap"), META.values(), ids=list(META))
def test_inside_other_estimators(name, wrap):
    X, y = data(name)
    assert_same(wrap(ours(name)).fit(X, y), wrap(theirs(name)).fit(X, y), X)


def test_one_vs_one():
    X, y = data("MLPClassifier")
    here, there = [
        OneVsOneClassifier(make("MLPClassifier")).fit(X, y).decision_function(X) for make in (ours, theirs)
    ]
    np.testing.assert_allclose(here, there, rtol=1e-6)


@pytest.mark.parametrize("wrap", [MultiOutputClassifier, ClassifierChain, lambda model: model])
def test_many_labels(wrap):
    X, Y = make_multilabel_classification(50, 5, n_classes=3, random_state=0)
    here, there = [wrap(make("MLPClassifier")).fit(X, Y) for make in (ours, theirs)]
    np.testing.assert_allclose(here.predict_proba(X), there.predict_proba(X), rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(here.predict(X), there.predict(X))
    assert here.score(X, Y) == there.score(X, Y)


def test_many_targets():
    X, Y = make_regression(50, 5, n_targets=2, random_state=0)
    here, there = [MultiOutputRegressor(make("MLPRegressor")).fit(X, Y) for make in (ours, theirs)]
    np.testing.assert_allclose(here.predict(X), there.predict(X), rtol=1e-7)


@both
def test_inspection_and_selection(name):
    X, y = data(name)
    models = [make(name).fit(X, y) for make in (ours, theirs)]
    here, there = [permutation_importance(model, X, y, n_repeats=2, random_state=0) for model in models]
    np.testing.assert_allclose(here.importances, there.importances, rtol=1e-7, atol=1e-12)
    selected = [
        SequentialFeatureSelector(make(name, max_iter=2), n_features_to_select=1, cv=2).fit(X, y)
        for make in (ours, theirs)
    ]
    np.testing.assert_array_equal(selected[0].get_support(), selected[1].get_support())
    weights = [
        SelectFromModel(model, prefit=True, importance_getter=lambda mlp: abs(mlp.coefs_[0]).sum(axis=1))
        for model in models
    ]
    np.testing.assert_array_equal(weights[0].transform(X), weights[1].transform(X))


# Metadata routing.


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_validation_data_in_a_pipeline_are_scaled_by_transform_input(kind):
    """Tensors on the CPU become NumPy arrays in the scaler; the estimator follows X, and y comes along."""
    random = np.random.RandomState(0)
    X = 5.0 + 100.0 * random.standard_normal((60, 3))
    y = (X[:, 0] > 5.0).astype(int)
    scaler = StandardScaler().fit(X[:40])
    settings = {"hidden_layer_sizes": (3,), "max_iter": 5, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        by_hand = MLPClassifier(**settings).fit(
            scaler.transform(X[:40]), y[:40], X_val=scaler.transform(X[40:]), y_val=y[40:]
        )
        if kind == "torch":
            torch = pytest.importorskip("torch")
            X, y = torch.tensor(X), torch.tensor(y)
        curves = []
        with config_context(enable_metadata_routing=True):
            model = MLPClassifier(**settings).set_fit_request(X_val=True, y_val=True)
            for transform_input in (["X_val"], None):
                pipeline = Pipeline(
                    [("scale", StandardScaler()), ("mlp", clone(model))], transform_input=transform_input
                )
                pipeline.fit(
                    X[:40], y[:40], X_val=X[40:] if transform_input else np.asarray(X[40:]), y_val=y[40:]
                )
                curves.append(pipeline[-1].val_loss_curve_)
                assert type(pipeline.predict(X)) is np.ndarray
                assert pipeline.score(X, y) == accuracy_score(y, pipeline.predict(X))
    scaled, raw = curves
    assert scaled == by_hand.val_loss_curve_
    assert raw != scaled


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


@both
def test_sample_weights_are_routed(name, routing):
    X, y = data(name)
    weight = np.linspace(0.1, 3.0, len(X))
    fitted = []
    for make in (ours, theirs):
        model = make(name).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=True), model)
        search = GridSearchCV(pipeline, {f"{name.lower()}__alpha": [1e-4, 5.0]}, cv=2, error_score="raise")
        fitted.append((pipeline.fit(X, y, sample_weight=weight), search.fit(X, y, sample_weight=weight)))
    (pipeline, search), (their_pipeline, their_search) = fitted
    assert_same(pipeline, their_pipeline, X)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], their_search.cv_results_["mean_test_score"], rtol=1e-7
    )
    unweighted = make_pipeline(StandardScaler(), ours(name)).fit(X, y)
    assert not np.allclose(output(unweighted, X), output(pipeline, X))


def test_metadata_requests_are_scikit_learns_and_the_validation_data(routing):
    for name in NAMES:
        here, there = [make(name).get_metadata_routing()._serialize() for make in (ours, theirs)]
        assert set(here) == set(there)
        assert {method: set(request) for method, request in here.items() if method != "fit"} == {
            method: set(request) for method, request in there.items() if method != "fit"
        }
        own = {"X_val", "y_val", "sample_weight_val", "checkpoint", "resume"}
        own |= {"classes"} if name == "MLPClassifier" else set()
        assert set(here["fit"]) == {"sample_weight", *own}
        X, y = data(name)
        with pytest.raises(UnsetMetadataPassedError, match="X_val"):
            make_pipeline(StandardScaler(), ours(name)).fit(X, y, X_val=X, y_val=y)


@both
def test_validation_data_through_a_pipeline_is_transformed(name, routing):
    X, y = data(name)
    X, X_val, y, y_val = X[:40], X[40:], y[:40], y[40:]
    model = ours(name).set_fit_request(X_val=True, y_val=True)
    pipeline = make_pipeline(StandardScaler(), model, transform_input=["X_val"])
    pipeline.fit(X, y, X_val=X_val, y_val=y_val)
    recorded = pipeline[-1].val_loss_curve_
    assert len(recorded) == SETTINGS["max_iter"]
    if name == "MLPClassifier":
        by_hand = log_loss(y_val, pipeline.predict_proba(X_val))
    else:
        by_hand = 0.5 * np.mean((y_val - pipeline.predict(X_val)) ** 2)
    assert recorded[-1] == pytest.approx(by_hand, rel=1e-9)
    assert pipeline[-1].validation_scores_[-1] == pytest.approx(pipeline.score(X_val, y_val), rel=1e-9)
    # What is only recorded changes nothing.
    assert_same(pipeline, make_pipeline(StandardScaler(), theirs(name)).fit(X, y), X_val)


# What is shown.


@pytest.mark.parametrize("parameters", [{}, {"alpha": 1.0, "hidden_layer_sizes": (3, 2), "solver": "sgd"}])
@both
def test_repr_is_scikit_learns(name, parameters):
    model, peer = getattr(mlp_xp, name)(**parameters), getattr(neural_network, name)(**parameters)
    assert repr(model) == str(model) == repr(peer)
    with config_context(print_changed_only=False):
        shown = repr(model)
    assert all(f"{key}=" in shown for key in model.get_params())
    assert repr(make_pipeline(StandardScaler(), model)) == repr(make_pipeline(StandardScaler(), peer))


def test_repr_of_what_is_new():
    assert repr(MLPClassifier(class_weight="balanced", weight_decay=0.1, backend="numpy")) == (
        "MLPClassifier(backend='numpy', class_weight='balanced', weight_decay=0.1)"
    )
    shown = repr(MLPRegressor(activation=[leaky_relu(0.2), "tanh"]))
    assert shown.startswith("MLPRegressor(activation=[")
    assert "0.2" in shown


@both
def test_html(name):
    X, y = data(name)
    model, peer = ours(name, activation=leaky_relu(0.2)), theirs(name)
    assert "Not fitted" in model._repr_html_()
    page, their_page = [estimator_html_repr(fitted.fit(X, y)) for fitted in (model, peer)]
    assert "<span>Fitted</span>" in page
    # The table of parameters has each of them, and those that were changed are marked.
    row = re.compile(r"<tr class=\"([\w-]+)\">\s*<td><button[^>]*copyToClipboard\('(\w+)'")
    marks, their_marks = [{key: mark for mark, key in row.findall(text)} for text in (page, their_page)]
    assert set(marks) == set(model.get_params())
    assert {key: marks[key] for key in their_marks} == {**their_marks, "activation": "user-set"}
    assert list(their_marks.values()).count("user-set") == len(SETTINGS)
    assert f"<div>{name}</div>" in make_pipeline(StandardScaler(), model)._repr_html_()


@both
def test_tags_say_what_is_new_and_nothing_else(name):
    here, there = [dataclasses.asdict(get_tags(make(name))) for make in (ours, theirs)]
    there["array_api_support"] = True
    if name == "MLPRegressor":
        there["target_tags"]["multi_output"] = True  # as it does in scikit-learn, which does not say so
    assert here == there


@both
@pytest.mark.parametrize("frames", ["default", "pandas", "polars"])
def test_transform_output_reaches_fit_and_not_predict(name, frames):
    if frames != "default":
        pytest.importorskip(frames)
    X, y = data(name)
    assert not hasattr(ours(name), "set_output")
    expected = make_pipeline(StandardScaler(), theirs(name)).fit(X, y).predict(X)
    with config_context(transform_output=frames):
        pipeline = make_pipeline(StandardScaler(), ours(name)).fit(X, y)
        predicted = pipeline.predict(X)
    assert type(predicted) is np.ndarray
    np.testing.assert_allclose(predicted, expected, rtol=1e-7)
    assert hasattr(pipeline[-1], "feature_names_in_") is (frames != "default")


# Tables and labels.


def table(frames, X, names=("a", "b", "c", "d")):
    module = pytest.importorskip(frames)
    return module.DataFrame(dict(zip(names, X.T)))


@both
@pytest.mark.parametrize("frames", ["pandas", "polars"])
def test_tables(name, frames):
    X, y = data(name)
    frame = table(frames, X)
    model, peer = ours(name).fit(frame, y), theirs(name).fit(frame, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(output(model, frame), output(ours(name).fit(X, y), X))
    assert_same(model, peer, frame)
    # Other columns, other orders, no names, and names where there were none: as scikit-learn says it.
    unnamed, their_unnamed = ours(name).fit(X, y), theirs(name).fit(X, y)
    wrong = [
        table(frames, X, ("b", "a", "c", "d")),
        table(frames, X, ("a", "b", "c", "e")),
        table(frames, X[:, :3]),
        X,
    ]
    for other in wrong:
        seen, expected = [outcome(fitted.predict, other) for fitted in (model, peer)]
        assert seen[1] == expected[1]
        if isinstance(expected[0], tuple):
            assert seen[0] == expected[0]
            assert issubclass(seen[0][0], ValueError)
        else:
            assert "does not have valid feature names" in seen[1][0]
            np.testing.assert_allclose(seen[0], expected[0], rtol=1e-7)
    seen, expected = [outcome(fitted.predict, frame) for fitted in (unnamed, their_unnamed)]
    np.testing.assert_allclose(seen[0], expected[0], rtol=1e-7)
    assert seen[1] == expected[1] != []
    # Names are those of the first call, in partial_fit too.
    step = {"classes": [0, 1, 2]} if name == "MLPClassifier" else {}
    started = ours(name).partial_fit(frame, y, **step)
    with pytest.raises(ValueError, match="feature names should match"):
        started.partial_fit(wrong[0], y)


@both
def test_tables_of_mixed_types_and_early_stopping(name):
    pandas = pytest.importorskip("pandas")
    X, y = data(name)
    frame = table("pandas", X).assign(b=np.arange(60), c=pandas.array([True, False] * 30, dtype="boolean"))
    frame["d"] = frame["d"].astype("float32")
    model, peer = [make(name, early_stopping=True).fit(frame, y) for make in (ours, theirs)]
    assert_same(model, peer, frame)
    np.testing.assert_allclose(model.validation_scores_, peer.validation_scores_, rtol=1e-7)


LABELS = {
    "list": list,
    "NumPy": np.array,
    "objects": lambda labels: np.array(labels, dtype=object),
    "pandas": lambda labels: pytest.importorskip("pandas").Series(labels),
    "pandas objects": lambda labels: pytest.importorskip("pandas").Series(labels, dtype=object),
    "categories": lambda labels: pytest.importorskip("pandas").Series(labels, dtype="category"),
    "polars": lambda labels: pytest.importorskip("polars").Series(labels),
    "polars categories": lambda labels: (
        pytest.importorskip("polars").Series(labels).cast(pytest.importorskip("polars").Categorical)
    ),
}


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("make_labels", LABELS.values(), ids=list(LABELS))
def test_text_labels(make_labels, early_stopping):
    X, y = data("MLPClassifier")
    labels = make_labels(np.array(["pear", "apple", "fig"])[y].tolist())
    model, peer = [
        make("MLPClassifier", early_stopping=early_stopping).fit(X, labels) for make in (ours, theirs)
    ]
    assert model.classes_.tolist() == ["apple", "fig", "pear"]
    assert model.classes_.dtype == peer.classes_.dtype
    predicted = model.predict(X)
    assert predicted.dtype == peer.predict(X).dtype
    np.testing.assert_array_equal(predicted, peer.predict(X))
    np.testing.assert_allclose(model.predict_proba(X), peer.predict_proba(X), rtol=1e-7)
    assert model.score(X, labels) == peer.score(X, labels)
    weighted = ours("MLPClassifier", class_weight={"apple": 5.0, "fig": 1.0, "pear": 1.0}).fit(X, labels)
    by_hand = theirs("MLPClassifier").fit(X, labels, sample_weight=np.array([1.0, 5.0, 1.0])[y])
    np.testing.assert_allclose(weighted.predict_proba(X), by_hand.predict_proba(X), rtol=1e-7)


# Sparse matrices.

FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


@pytest.mark.sampled(4)
@both
@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
def test_sparse(name, kind, form):
    X, y = data(name)
    X = np.where(abs(X) > 2.0, X, 0.0)
    thin = getattr(sparse, f"{form}_{kind}")(X)
    for parameters in ({}, {"solver": "lbfgs"}, {"early_stopping": True, "shuffle": False}):
        here, there = [outcome(make(name, **parameters).fit, thin, y) for make in (ours, theirs)]
        assert here[1] == there[1] == []
        assert_same(here[0], there[0], thin)
        np.testing.assert_allclose(output(here[0], thin), output(here[0], X), rtol=1e-9)
    step = {"classes": [0, 1, 2]} if name == "MLPClassifier" else {}
    here, there = [make(name).partial_fit(thin, y, **step).partial_fit(thin, y) for make in (ours, theirs)]
    assert_same(here, there, thin)
    np.testing.assert_allclose(output(here, X), output(there, X), rtol=1e-7)
    assert here.coefs_[0].dtype == there.coefs_[0].dtype


def test_sparse_validation_data_and_weights():
    X, y = data("MLPClassifier")
    thin, weight = sparse.csr_array(X), np.linspace(0.5, 2.0, len(X))
    model = ours("MLPClassifier", class_weight="balanced")
    kept = [
        clone(model).fit(part, y, weight, X_val=part[:20], y_val=y[:20], sample_weight_val=weight[:20])
        for part in (X, thin)
    ]
    np.testing.assert_allclose(kept[0].val_loss_curve_, kept[1].val_loss_curve_, rtol=1e-9)
    assert kept[0].val_loss_curve_[-1] == pytest.approx(
        log_loss(y[:20], kept[0].predict_proba(X[:20]), sample_weight=weight[:20]), rel=1e-9
    )


# Callbacks.


class Recorder:
    """A callback that keeps what it is told, and does something at the end of one subtask."""

    def __init__(self, at=None, act=lambda: True):
        self.events, self.at, self.act = [], at, act

    def setup(self, estimator, context):
        self.events.append(("setup",))

    def teardown(self, estimator, context):
        self.events.append(("teardown",))

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.parent is None, context.task_id))

    def on_fit_task_end(self, estimator, context):
        self.events.append(("end", context.parent is None, context.task_id))
        return self.act() if context.parent is not None and context.task_id + 1 == self.at else None


def fit_events(n_subtasks):
    subtasks = [(event, False, task) for task in range(n_subtasks) for event in ("begin", "end")]
    return [("setup",), ("begin", True, 0), *subtasks, ("end", True, 0), ("teardown",)]


@both
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_callbacks_see_every_epoch(name, solver):
    X, y = data(name)
    recorder = Recorder()
    model = ours(name, solver=solver).set_callbacks(recorder).fit(X, y)
    assert model.n_iter_ == SETTINGS["max_iter"]
    assert recorder.events == fit_events(SETTINGS["max_iter"])
    # Being watched changes nothing.
    assert_same(model, theirs(name, solver=solver).fit(X, y), X)


@both
@pytest.mark.parametrize(
    "parameters",
    [{"tol": 1e9}, {"early_stopping": True}, {"solver": "lbfgs"}],
    ids=["no progress", "early stopping", "lbfgs"],
)
def test_callbacks_when_the_training_ends_by_itself(name, parameters):
    X, y = data(name)
    recorder, settings = Recorder(), {"max_iter": 500, "alpha": 100.0, "n_iter_no_change": 2}
    model = ours(name, **settings, **parameters).set_callbacks(recorder).fit(X, y)
    peer = theirs(name, **settings, **parameters).fit(X, y)
    assert model.n_iter_ == peer.n_iter_ < 500
    assert recorder.events == fit_events(model.n_iter_)


@both
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_callback_that_returns_true_stops_the_training(name, solver):
    X, y = data(name)
    recorder = Recorder(at=3)
    model = ours(name, solver=solver).set_callbacks(recorder).fit(X, y)
    peer = theirs(name, solver=solver, max_iter=3).fit(X, y)
    assert model.n_iter_ == peer.n_iter_ == len(model.loss_curve_) == 3
    assert recorder.events == fit_events(3)
    assert_same(model, peer, X)


@both
def test_scoring_monitor_is_scoring_by_hand(name):
    X, y = data(name)
    scoring = "neg_log_loss" if name == "MLPClassifier" else "r2"
    monitor = ScoringMonitor(scoring=scoring)
    ours(name, max_iter=4).set_callbacks(monitor).fit(X, y)
    rows = [row for row in monitor.get_logs().data if len(row["task_id_path"]) == 2]
    assert [row["task_id"] for row in rows] == [0, 1, 2, 3]
    by_hand = [get_scorer(scoring)(theirs(name, max_iter=epoch).fit(X, y), X, y) for epoch in (1, 2, 3, 4)]
    np.testing.assert_allclose([row[scoring] for row in rows], by_hand, rtol=1e-7)
    assert len(set(by_hand)) == 4
    # The whole fit is a task too, and is scored as it ended.
    [whole] = [row for row in monitor.get_logs().data if len(row["task_id_path"]) == 1]
    assert whole[scoring] == pytest.approx(by_hand[-1], rel=1e-7)


def test_scoring_monitor_of_a_batched_fit_with_labels_of_text_and_weights():
    X, y = data("MLPClassifier")
    labels, weight = np.array(["pear", "apple", "fig"])[y], np.linspace(0.1, 2.0, len(X))
    monitor = ScoringMonitor(scoring="accuracy")
    ours("MLPClassifier", max_iter=3).set_callbacks(monitor).fit(X, labels, sample_weight=weight)
    rows = [row for row in monitor.get_logs().data if len(row["task_id_path"]) == 2]
    # As in scikit-learn, the fit's weights are the scorer's.
    by_hand = [
        theirs("MLPClassifier", max_iter=epoch).fit(X, labels, weight).score(X, labels, weight)
        for epoch in (1, 2, 3)
    ]
    np.testing.assert_allclose([row["accuracy"] for row in rows], by_hand, rtol=1e-9)


def test_scoring_monitor_of_a_second_fit_on_other_features_and_classes():
    pytest.importorskip("pandas")
    X, y = data("MLPClassifier")
    monitor = ScoringMonitor(scoring="accuracy")
    model = ours("MLPClassifier", max_iter=2).fit(table("pandas", X), y)
    model.set_callbacks(monitor).fit(X[:, :2], y == 0)
    by_hand = [
        theirs("MLPClassifier", max_iter=n).fit(X[:, :2], y == 0).score(X[:, :2], y == 0) for n in (1, 2)
    ]
    rows = [row for row in monitor.get_logs().data if len(row["task_id_path"]) == 2]
    np.testing.assert_allclose([row["accuracy"] for row in rows], by_hand, rtol=1e-9)


def test_scoring_monitor_inside_a_grid_search():
    X, y = data("MLPRegressor")
    monitor = ScoringMonitor(scoring="r2")
    model = ours("MLPRegressor", max_iter=4).set_callbacks(monitor)
    search = GridSearchCV(model, {"alpha": [1e-4, 1.0], "max_iter": [2, 4]}, cv=3).fit(X, y)
    rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    epochs = Counter(row["parent_task_id_path"] for row in rows)
    assert sorted(epochs.values()) == sorted([2] * 6 + [4] * 6 + [search.best_params_["max_iter"]])
    refit = min(epochs, key=len)  # it is a task of the search itself, not of a candidate's split
    last = [row["r2"] for row in rows if row["parent_task_id_path"] == refit][-1]
    assert last == pytest.approx(search.score(X, y), rel=1e-9)


@pytest.mark.parametrize("depth", [0, None])
def test_progress_bar(depth, capsys):
    pytest.importorskip("rich")
    X, y = data("MLPClassifier")
    ours("MLPClassifier").set_callbacks(ProgressBar()).fit(X, y)
    shown = capsys.readouterr().out
    assert re.search(r"MLPClassifier - fit.* 100%", shown)
    search = GridSearchCV(ours("MLPClassifier", max_iter=2), {"alpha": [0.1, 1.0]}, cv=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=depth)).fit(X, y)
    shown = capsys.readouterr().out
    assert re.search(r"GridSearchCV - fit.* 100%", shown)
    assert len(re.findall(r"MLPClassifier - fit.* 100%", shown)) == (5 if depth is None else 0)


def raise_(error):
    raise error


FAILURES = {
    "bad data": ({}, None, np.nan, ValueError, 0),
    "divergence": ({"solver": "sgd", "learning_rate_init": 1e30}, None, 0.0, DivergenceError, 1),
    "callback": ({}, 2, 0.0, OSError, 1),
}


@pytest.mark.parametrize(
    ("parameters", "at", "added", "error", "n_setups"), FAILURES.values(), ids=list(FAILURES)
)
def test_callbacks_are_torn_down_when_fit_fails(parameters, at, added, error, n_setups):
    X, y = data("MLPRegressor")
    recorder = Recorder(at, lambda: raise_(OSError("disk full")))
    model = ours("MLPRegressor", **parameters).set_callbacks(recorder)
    with pytest.raises(error):
        model.fit(X + added, y)
    count = Counter(event[0] for event in recorder.events)
    assert count["setup"] == count["teardown"] == n_setups
    # The next fit begins anew.
    recorder.events, recorder.at = [], None
    model.set_params(solver="adam", learning_rate_init=0.001).fit(X, y)
    assert recorder.events == fit_events(SETTINGS["max_iter"])
    assert_same(model, theirs("MLPRegressor").fit(X, y), X)


def test_an_interrupt_in_a_callback_keeps_what_was_trained():
    X, y = data("MLPClassifier")
    recorder = Recorder(at=3, act=lambda: raise_(KeyboardInterrupt()))
    model = ours("MLPClassifier").set_callbacks(recorder)
    with pytest.warns(TrainingInterruptedWarning, match="3 epochs"):
        model.fit(X, y)
    assert model.n_iter_ == 3
    assert_same(model, theirs("MLPClassifier", max_iter=3).fit(X, y), X)
    assert recorder.events[-1] == ("teardown",)


# Scripts, with the line of the import changed and nothing else.

SCRIPTS = {
    "regularisation": """
import warnings
import numpy as np
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X, y = make_moons(noise=0.3, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=42)
for alpha in np.logspace(-1, 1, 3):
    clf = make_pipeline(StandardScaler(), MLPClassifier(
        solver="lbfgs", alpha=alpha, random_state=1, max_iter=50, hidden_layer_sizes=[8, 8]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf.fit(X_train, y_train)
    print(f"alpha {alpha:.2f}: {clf.score(X_test, y_test):.3f}", clf[-1].n_layers_, clf[-1].out_activation_)
print(clf)
""",
    "training curves": """
import warnings
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import MinMaxScaler

X, y = load_iris(return_X_y=True)
X = MinMaxScaler().fit_transform(X)
for params in [
    {"solver": "sgd", "learning_rate": "constant", "momentum": 0, "learning_rate_init": 0.2},
    {"solver": "sgd", "learning_rate": "invscaling", "momentum": 0.9, "nesterovs_momentum": False,
     "learning_rate_init": 0.2},
    {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.3, "tol": 0.05,
     "n_iter_no_change": 2},
    {"solver": "adam", "learning_rate_init": 0.01, "early_stopping": True, "n_iter_no_change": 3},
]:
    mlp = MLPClassifier(random_state=0, max_iter=25, hidden_layer_sizes=(10,), verbose=True, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mlp.fit(X, y)
    print("Training set score: %f" % mlp.score(X, y), "loss: %f" % mlp.loss_, mlp.n_iter_, mlp.t_)
    print(len(mlp.loss_curve_), mlp.best_loss_, mlp.validation_scores_, [w.shape for w in mlp.coefs_])
""",
    "minibatches": """
import numpy as np
from sklearn.datasets import make_regression
from sklearn.neural_network import MLPRegressor

X, y = make_regression(n_samples=80, n_features=4, noise=1.0, random_state=0)
reg = MLPRegressor(hidden_layer_sizes=(7,), random_state=3)
for start in range(0, 80, 20):
    reg.partial_fit(X[start:start + 20], y[start:start + 20])
    print(start, reg.loss_, reg.n_iter_, reg.t_, reg.predict(X[:2]))
print(np.round(reg.coefs_[0][:2], 6).tolist(), reg.get_params()["alpha"], hasattr(reg, "partial_fit"))
""",
}


def printed(script, module):
    shown = StringIO()
    with redirect_stdout(shown), np.printoptions(precision=6):
        exec(compile(script.replace("sklearn.neural_network", module), "<script>", "exec"), {})
    return re.split(r"(-?\d+\.\d*(?:e[-+]?\d+)?)", shown.getvalue())


def example(name):
    """Return the example of scikit-learn's own documentation, as a script that prints its values."""
    steps = doctest.DocTestParser().get_examples(getattr(neural_network, name).__doc__)
    assert len(steps) > 6
    return "\n".join(f"print({step.source.strip()})" if step.want else step.source for step in steps)


@pytest.mark.parametrize("script", [*SCRIPTS, *NAMES])
def test_scripts_print_the_same(script):
    source = SCRIPTS.get(script) or example(script)
    here, there = [printed(source, module) for module in ("mlp_xp", "sklearn.neural_network")]
    assert here[::2] == there[::2]
    assert len(here) > 6
    # Numbers to six digits.
    np.testing.assert_allclose(np.array(here[1::2], float), np.array(there[1::2], float), rtol=1e-6)


# What a user in a hurry does. Each line: parameters, what is done, and the message; None is
# scikit-learn's own, to the letter.

ERRORS = {
    "y is None": ({}, lambda model, X, y: model.fit(X, None), "requires y to be passed, but .* y is None"),
    "NaN in X": ({}, lambda model, X, y: model.fit(np.where(X > 3, np.nan, X), y), None),
    "infinity in X": ({}, lambda model, X, y: model.fit(np.where(X > 3, np.inf, X), y), None),
    "NaN in predict": ({}, lambda model, X, y: model.fit(X, y).predict(np.where(X > 3, np.nan, X)), None),
    "X of one dimension": ({}, lambda model, X, y: model.fit(X[:, 0], y), None),
    "X of three dimensions": ({}, lambda model, X, y: model.fit(X[None], y), None),
    "X of text": ({}, lambda model, X, y: model.fit(np.full(X.shape, "a"), y), None),
    "lengths": ({}, lambda model, X, y: model.fit(X, y[:-1]), None),
    "no rows": ({}, lambda model, X, y: model.fit(X[:0], y[:0]), None),
    "features of predict": ({}, lambda model, X, y: model.fit(X, y).predict(X[:, :2]), None),
    "one sample to predict": ({}, lambda model, X, y: model.fit(X, y).predict(X[0]), None),
    "not fitted": ({}, lambda model, X, y: model.predict(X), None),
    "solver": ({"solver": "adamm"}, lambda model, X, y: model.fit(X, y), "`solver`.*'adam'.*got 'adamm'"),
    "alpha": ({"alpha": -1.0}, lambda model, X, y: model.fit(X, y), "`alpha`.*got -1.0"),
    "epochs": ({"max_iter": 10.0}, lambda model, X, y: model.fit(X, y), "`max_iter`.*integer.*got 10.0"),
    "hidden layer of none": (
        {"hidden_layer_sizes": (5, 0)},
        lambda model, X, y: model.fit(X, y),
        r"`hidden_layer_sizes.*got 0",
    ),
    "random_state": ({"random_state": "zero"}, lambda model, X, y: model.fit(X, y), "random_state.*'zero'"),
    "length of weights": ({}, lambda model, X, y: model.fit(X, y, np.ones(3)), r"sample_weight.*60.*\(3,\)"),
    "partial_fit and early_stopping": (
        {"early_stopping": True},
        lambda model, X, y: model.partial_fit(X, y, **first_classes(model)),
        "partial_fit does not support early_stopping=True",
    ),
    "too little to validate": (
        {"early_stopping": True, "validation_fraction": 0.01},
        lambda model, X, y: model.fit(X, y),
        "validation set is too small. Increase .validation_fraction",
    ),
    "large batches": ({"batch_size": 1000}, lambda model, X, y: model.fit(X, y).loss_, None),
    "column of y": ({}, lambda model, X, y: model.fit(X, y[:, None]).loss_, None),
}
CLASSIFIER_ERRORS = {
    "real y": ({}, lambda model, X, y: model.fit(X, y + 0.5), "Unknown label type: continuous"),
    "no classes": ({}, lambda model, X, y: model.partial_fit(X, y), "classes.* first"),
    "unseen class": (
        {},
        lambda model, X, y: model.partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y + 1),
        "`y` has classes not in `self.classes_`.*3",
    ),
    "other classes": ({"warm_start": True}, lambda model, X, y: model.fit(X, y).fit(X, y % 2), None),
    "lbfgs in parts": (
        {"solver": "lbfgs"},
        lambda model, X, y: model.partial_fit(X, y, classes=[0, 1, 2]),
        "has no attribute 'partial_fit'",
    ),
}
REGRESSOR_ERRORS = {
    "text y": ({}, lambda model, X, y: model.fit(X, np.full(len(X), "a")), "must hold real numbers"),
    "NaN in y": ({}, lambda model, X, y: model.fit(X, np.where(y > 0, np.nan, y)), None),
}


def first_classes(model):
    return {"classes": [0, 1, 2]} if hasattr(model, "predict_proba") else {}


@pytest.mark.parametrize(
    ("name", "parameters", "act", "message"),
    [
        pytest.param(name, *case, id=f"{name}-{label}")
        for name, more in zip(NAMES, (CLASSIFIER_ERRORS, REGRESSOR_ERRORS))
        for label, case in {**ERRORS, **more}.items()
    ],
)
def test_errors_and_warnings(name, parameters, act, message):
    X, y = data(name)
    here, there = [outcome(act, make(name, **parameters), X, y) for make in (ours, theirs)]
    if not isinstance(there[0], tuple):
        assert here[1] == there[1] != []
        assert here[0] == pytest.approx(there[0], rel=1e-7)
    elif message is None:
        assert here == there
    else:
        # Whoever catches scikit-learn's error catches ours.
        assert isinstance(here[0], tuple), "no error"
        assert issubclass(there[0][0], here[0][0])
        assert re.search(message, here[0][1])


ERRORS_OF_WHAT_IS_NEW = {
    "activation": ({"activation": "rleu"}, {}, "`activation`.*'relu'.*got 'rleu'"),
    "activation of a layer": ({"activation": ["rleu"]}, {}, "`activation`.*'relu'.*got 'rleu'"),
    "activations and layers": ({"activation": ["tanh"] * 2}, {}, "`activation`.* 1 hidden layers?, got 2"),
    "backend": ({"backend": "cuda"}, {}, "`backend`.*'cupy'.*got 'cuda'"),
    "scorer": ({"early_stopping": "acuracy"}, {}, "`early_stopping`.*'accuracy'.*got 'acuracy'"),
    "weight_decay": ({"weight_decay": -1.0}, {}, "`weight_decay`.* 0.*got -1.0"),
    "class_weight": ({"class_weight": "balance"}, {}, "class_weight.*balanced.*got 'balance'"),
    "X_val alone": ({}, {"X_val": "X"}, "`X_val` and `y_val` must be given together"),
    "y_val alone": ({}, {"y_val": "y"}, "`X_val` and `y_val` must be given together"),
    "weights alone": ({}, {"sample_weight_val": "weight"}, "`X_val` and `y_val` must be given together"),
    "features of X_val": ({}, {"X_val": "narrow", "y_val": "y"}, "`X_val`: X has 3 features.*expecting 4"),
    "NaN in X_val": ({}, {"X_val": "nan", "y_val": "y"}, "`X_val`: Input X contains NaN"),
    "lengths of validation": ({}, {"X_val": "X", "y_val": "short"}, "`y_val`: .*inconsistent numbers"),
    "class of y_val": ({}, {"X_val": "X", "y_val": "unseen"}, "`y_val` has classes not in.*7"),
}


@pytest.mark.parametrize(
    ("parameters", "given", "message"), ERRORS_OF_WHAT_IS_NEW.values(), ids=list(ERRORS_OF_WHAT_IS_NEW)
)
def test_errors_of_what_is_new(parameters, given, message):
    X, y = data("MLPClassifier")
    parts = {
        "X": X,
        "y": y,
        "weight": np.ones(60),
        "narrow": X[:, :3],
        "nan": np.where(X > 3, np.nan, X),
        "short": y[:-1],
        "unseen": np.where(y == 0, 7, y),
    }
    model = ours("MLPClassifier").fit(X, y)
    expected, before = model.predict_proba(X), model.get_params()
    model.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, **{key: parts[part] for key, part in given.items()})
    # What was fitted before still is.
    np.testing.assert_array_equal(model.set_params(**before).predict_proba(X), expected)


def test_class_weight_for_a_class_that_is_not_there():
    X, y = data("MLPClassifier")
    weights = {0: 1.0, 1: 2.0, 5: 3.0}
    here, there = [
        outcome(model.fit, X, y)
        for model in (ours("MLPClassifier", class_weight=weights), LogisticRegression(class_weight=weights))
    ]
    assert here == there
    assert here[0][0] is ValueError


def test_partial_fit_cannot_balance():
    X, y = data("MLPClassifier")
    with pytest.raises(ValueError, match="class_weight.*partial_fit.*'balanced'"):
        ours("MLPClassifier", class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tables", ["pandas", "polars"])
def test_the_dtype_of_a_dataframe_is_the_models(tables, dtype):
    frames = pytest.importorskip(tables)
    X = np.random.RandomState(0).standard_normal((30, 2)).astype(dtype)
    frame = frames.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    model = mlp_xp.MLPRegressor(hidden_layer_sizes=3, solver="lbfgs", max_iter=20, random_state=0)
    model.fit(frame, X[:, 0])
    assert {coef.dtype.name for coef in model.coefs_} == {dtype}
    assert model.predict(frame).dtype == dtype
    plain = mlp_xp.MLPRegressor(hidden_layer_sizes=3, solver="lbfgs", max_iter=20, random_state=0)
    rtol = 1e-2 if dtype == "float32" else 1e-8  # their rows are laid out differently
    np.testing.assert_allclose(plain.fit(X, X[:, 0]).coefs_[0], model.coefs_[0], rtol=rtol)
    assert model.feature_names_in_.tolist() == ["a", "b"]
