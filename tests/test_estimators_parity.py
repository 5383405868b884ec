"""The estimators against scikit-learn's, value for value; then against finite differences and linear ones."""

import copy
import warnings
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

from scipy import sparse
from sklearn import linear_model, neural_network
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning

from mlp_xp import MLPClassifier, MLPRegressor


class Data(NamedTuple):
    """Rows to fit on, and new ones to predict; all read-only."""

    X: Any
    y: Any
    weight: Any
    X_new: Any
    y_new: Any
    weight_new: Any


CLASSIFIERS = (MLPClassifier, neural_network.MLPClassifier)
REGRESSORS = (MLPRegressor, neural_network.MLPRegressor)
PROBLEMS = ["binary", "multiclass", "multilabel", "regression", "poisson"]
RATES = {"sgd": 0.03, "adam": 0.01}
# Neither all 67 rows nor the 53 that early stopping leaves are a whole number of batches.
BASE = {"activation": "tanh", "hidden_layer_sizes": (5, 4), "batch_size": 40, "max_iter": 6, "alpha": 0.01}
EARLY = {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 5}


@cache
def problem(name, n_samples=67, n_new=23):
    """Return noisy data, so that no probability comes near 0 or 1, where scikit-learn clips it."""
    random = np.random.RandomState(0)
    X = random.standard_normal((n_samples + n_new, 4))
    latent = np.tanh(X @ random.standard_normal((4, 3))) + 0.6 * random.standard_normal((len(X), 3))
    y = {
        "binary": (latent[:, 0] > 0).astype(int),
        "multiclass": latent.argmax(axis=1),
        "multilabel": (latent > 0).astype(int),
        "regression": latent[:, 0],
        "regression_three": latent,
        "poisson": random.poisson(np.exp(latent[:, 0] / 2)).astype(float),
        "poisson_two": random.poisson(np.exp(latent[:, :2] / 2)).astype(float),
    }[name]
    weight = random.uniform(0.2, 3.0, len(X))
    parts = [part[rows].copy() for rows in (np.s_[:n_samples], np.s_[n_samples:]) for part in (X, y, weight)]
    for part in parts:
        part.flags.writeable = False
    return Data(*parts)


def estimators(name, settings, *, peer=None):
    """Make ours and scikit-learn's; `peer`: settings of scikit-learn's alone."""
    classes = CLASSIFIERS if name in ("binary", "multiclass", "multilabel") else REGRESSORS
    loss = {"loss": "poisson"} if name.startswith("poisson") else {}
    changes = ({}, peer or {})
    settings = {**BASE, "random_state": 7, **loss, **settings}
    return [new(**copy.deepcopy({**settings, **change})) for new, change in zip(classes, changes)]


def both(name, settings, steps, *, peer=None):
    """Take both through the same steps, in which they must warn of the same and return the same."""
    made = estimators(name, settings, peer=peer)
    warned, returned = [], []
    for estimator in made:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            returned.append(steps(estimator))
        warned.append({warning.category for warning in caught})
    assert warned[0] == warned[1]
    assert (returned[0] is made[0] and returned[1] is made[1]) or returned[0] == returned[1]
    return made


def fit(estimator, data, weighted=False):
    return estimator.fit(data.X, data.y, data.weight) if weighted else estimator.fit(data.X, data.y)


def dense(array):
    return array.toarray() if sparse.issparse(array) else array


def assert_alike(ours, peer, data, *, rtol=1e-7, atol=1e-12, dtypes=True, skip=()):
    """Compare all that was fitted, and all predictions."""
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(peer, name), name
    for name in ("coefs_", "intercepts_"):
        arrays, expected = getattr(ours, name), getattr(peer, name)
        assert isinstance(arrays, list)
        for array, wanted in zip(arrays, expected, strict=True):
            assert array.shape == wanted.shape
            assert array.dtype == wanted.dtype or not dtypes
            close(array, wanted, err_msg=name)
    for name in ("loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
        if hasattr(peer, name) and name not in skip:
            value, wanted = getattr(ours, name), getattr(peer, name)
            assert type(value) is type(wanted) or isinstance(value, float), name
            if wanted is not None:
                close(value, wanted, err_msg=name)

    predicted, expected = ours.predict(data.X_new), peer.predict(data.X_new)
    assert (type(predicted), predicted.shape) == (type(expected), expected.shape)
    assert predicted.dtype == expected.dtype or not dtypes
    if hasattr(peer, "classes_"):
        np.testing.assert_array_equal(ours.classes_, peer.classes_, strict=True)
        np.testing.assert_array_equal(dense(predicted), dense(expected))
        probability = peer.predict_proba(data.X_new)
        assert 1e-11 < probability.min() < probability.max() < 1 - 1e-11, "scikit-learn may clip"
        close(ours.predict_proba(data.X_new), probability)
        close(ours.predict_log_proba(data.X_new), peer.predict_log_proba(data.X_new))
    else:
        close(predicted, expected)
    for weight in (None, data.weight_new):
        found, wanted = (each.score(data.X_new, data.y_new, sample_weight=weight) for each in (ours, peer))
        close(found, wanted)


# Every solver, activation, problem and way to train.

MODES = {
    "plain": ({}, False),
    "in_order": ({"shuffle": False}, False),
    "early_stopping": (EARLY, False),
    "weighted": ({}, True),
    "early_stopping_weighted": (EARLY, True),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("solver", RATES)
def test_stochastic_grid(solver, activation, name, mode):
    data, (settings, weighted) = problem(name), MODES[mode]
    settings = {"solver": solver, "activation": activation, "max_iter": 20, **settings}
    settings["learning_rate_init"] = RATES[solver]
    ours, peer = both(name, settings, partial(fit, data=data, weighted=weighted))
    assert_alike(ours, peer, data)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_lbfgs_grid(activation, name, weighted):
    data = problem(name)
    settings = {"solver": "lbfgs", "activation": activation, "max_iter": 15}
    # No trial step of the line search goes to where scikit-learn clips probabilities.
    settings |= {"hidden_layer_sizes": 5, "alpha": 2.0}
    ours, peer = both(name, settings, partial(fit, data=data, weighted=weighted))
    assert_alike(ours, peer, data, rtol=1e-5, atol=1e-8)
    assert len(ours.loss_curve_) == ours.n_iter_
    np.testing.assert_allclose(ours.loss_curve_[-1], ours.loss_, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "before_max_iter"),
    [
        ({"max_iter": 500, "hidden_layer_sizes": ()}, True),
        ({"max_iter": 500, "alpha": 20.0}, True),
        ({"max_iter": 500, "tol": 0.05}, True),
        ({"max_iter": 500, "max_fun": 9}, True),
        ({"max_iter": 1}, False),
        ({"early_stopping": True, "batch_size": 1000, "learning_rate": "adaptive"}, False),
    ],
    ids=["linear", "strong_penalty", "coarse", "max_fun", "one_iteration", "others_settings"],
)
@pytest.mark.parametrize("name", ["multiclass", "regression"])
def test_how_lbfgs_ends(name, settings, before_max_iter):
    data = problem(name)
    ours, peer = both(name, {"solver": "lbfgs", **settings}, partial(fit, data=data))
    assert (peer.n_iter_ < peer.max_iter) == before_max_iter
    assert_alike(ours, peer, data, rtol=1e-5, atol=1e-8)


def test_lbfgs_goes_on_after_a_trial_step_far_too_long():
    # With this start a step of the line search makes rates that overflow.
    data = problem("poisson")
    settings = {"solver": "lbfgs", "hidden_layer_sizes": 1, "activation": "identity", "alpha": 1.0}
    both_of_them = estimators("poisson", {**settings, "max_iter": 300, "random_state": 38})
    with np.errstate(all="ignore"):
        ours, peer = (fit(estimator, data) for estimator in both_of_them)
    np.testing.assert_allclose(ours.loss_, peer.loss_, rtol=1e-4)


# One setting at a time, with and without early stopping. What scikit-learn's estimator does without early
# stopping is checked, so that a case is what its name says.


def stops(peer):
    return peer.n_iter_ < peer.max_iter


def runs_on(peer):
    return peer.n_iter_ == peer.max_iter


SGD = {"solver": "sgd", "learning_rate_init": 0.05}
# With this tolerance no epoch after the first improves: the rate is divided by five every second epoch.
IDLE = {**SGD, "learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 1, "learning_rate_init": 0.1}
# Too fast for a loss that falls in every epoch.
FAST = {**SGD, "learning_rate_init": 0.8, "n_iter_no_change": 1, "max_iter": 20}
ADAM = {"solver": "adam", "learning_rate_init": 0.01}
CASES = {
    "constant": (SGD, None),
    "invscaling": ({**SGD, "learning_rate": "invscaling"}, runs_on),
    "invscaling_slow": ({**SGD, "learning_rate": "invscaling", "power_t": 0.1}, runs_on),
    "invscaling_power_0": ({**SGD, "learning_rate": "invscaling", "power_t": 0}, runs_on),
    "constant_stops": (FAST, stops),
    "adaptive_goes_on": ({**FAST, "learning_rate": "adaptive"}, runs_on),
    "adaptive_divides_often": ({**IDLE, "max_iter": 10}, runs_on),
    "adaptive_never_divides": ({**SGD, "learning_rate": "adaptive", "tol": 0}, runs_on),
    "adaptive_until_too_small": ({**IDLE, "max_iter": 40}, lambda peer: peer.n_iter_ == 19),
    "adaptive_adam": ({**ADAM, "learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 2}, stops),
    "invscaling_adam": ({**ADAM, "learning_rate": "invscaling"}, runs_on),
    "classical_momentum": ({**SGD, "nesterovs_momentum": False}, None),
    "no_momentum": ({**SGD, "momentum": 0}, None),
    "no_momentum_nesterov_off": ({**SGD, "momentum": 0.0, "nesterovs_momentum": False}, None),
    "momentum_1": ({**SGD, "momentum": 1.0, "learning_rate_init": 0.002}, None),
    "momentum_1_classical": (
        {**SGD, "momentum": 1.0, "learning_rate_init": 0.002, "nesterovs_momentum": False},
        None,
    ),
    "betas": ({**ADAM, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}, runs_on),
    "beta_1_is_0": ({**ADAM, "beta_1": 0}, runs_on),
    "beta_2_is_0": ({**ADAM, "beta_2": 0.0, "epsilon": 1e-2}, None),
    "no_improvement_1": ({**ADAM, "n_iter_no_change": 1, "tol": 0.02, "max_iter": 60}, stops),
    "no_improvement_inf": ({**ADAM, "n_iter_no_change": np.inf, "tol": 10.0}, runs_on),
    "tol_0": ({**ADAM, "tol": 0, "n_iter_no_change": 2, "learning_rate_init": 0.2, "max_iter": 60}, stops),
    "converges": ({**ADAM, "max_iter": 400, "learning_rate_init": 0.1, "tol": 0.01}, stops),
    "batch_too_large": ({**ADAM, "batch_size": 68}, runs_on),
    "batch_of_all": ({**SGD, "batch_size": 67}, runs_on),
    "batch_of_one": ({**SGD, "batch_size": 1, "max_iter": 4, "learning_rate_init": 0.01}, runs_on),
    "batch_numpy_integer": ({**SGD, "batch_size": np.int32(20)}, None),
    "batch_auto": ({**ADAM, "batch_size": "auto"}, runs_on),
    "batch_auto_in_order": ({**ADAM, "batch_size": "auto", "shuffle": False}, runs_on),
    "in_order_batch_too_large": ({**SGD, "batch_size": 500, "shuffle": False}, runs_on),
    "no_hidden_layer": ({**ADAM, "hidden_layer_sizes": ()}, runs_on),
    "no_hidden_layer_list": ({**SGD, "hidden_layer_sizes": []}, None),
    "hidden_int": ({**ADAM, "hidden_layer_sizes": 6}, runs_on),
    "hidden_list": ({**SGD, "hidden_layer_sizes": [6]}, None),
    "hidden_array": ({**SGD, "hidden_layer_sizes": np.array([6, 3])}, None),
    "hidden_three": ({**ADAM, "hidden_layer_sizes": (3, 1, 4)}, runs_on),
    "hidden_logistic_one": ({**ADAM, "hidden_layer_sizes": (1,), "activation": "logistic"}, runs_on),
    "no_penalty": ({**ADAM, "alpha": 0}, runs_on),
    "strong_penalty": ({**SGD, "alpha": 3.0}, None),
    "validation_small": ({**ADAM, "validation_fraction": 0.05}, runs_on),
    "validation_large": ({**ADAM, "validation_fraction": 0.6}, runs_on),
    "warm_start_first_fit": ({**ADAM, "warm_start": True}, runs_on),
    "one_epoch": ({**SGD, "max_iter": 1}, runs_on),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "early_stopping"), [("multiclass", False), ("regression", True)])
@pytest.mark.parametrize("case", CASES)
def test_settings(case, name, early_stopping):
    settings, did = CASES[case]
    settings = {"early_stopping": early_stopping, "validation_fraction": 0.2, "max_iter": 10, **settings}
    data = problem(name)
    ours, peer = both(name, settings, partial(fit, data=data, weighted=name == "regression"))
    assert early_stopping or did is None or did(peer)
    assert_alike(ours, peer, data)


@pytest.mark.parametrize("name", ["multiclass", "regression"])
def test_all_defaults(name):
    data = problem(name)
    classes = CLASSIFIERS if name == "multiclass" else REGRESSORS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours, peer = (new(random_state=0).fit(data.X, data.y) for new in classes)
    assert_alike(ours, peer, data)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_rows_without_weight(name, solver):
    data = problem(name)
    data = data._replace(weight=np.where(np.arange(67) % 5 == 2, 0, data.weight))
    settings = {"solver": solver, "shuffle": False, "alpha": 1.0}
    ours, peer = both(name, settings, partial(fit, data=data, weighted=True))
    assert_alike(ours, peer, data, **({"rtol": 1e-5, "atol": 1e-8} if solver == "lbfgs" else {}))


# Random numbers: as many are taken, from the same source.


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_a_random_state_of_the_callers(solver, early_stopping):
    data = problem("multiclass")
    settings = {"solver": solver, "random_state": np.random.RandomState(3), "early_stopping": early_stopping}

    def steps(estimator):
        fit(estimator, data)
        following = estimator.random_state.random_sample()
        fit(estimator, data)  # Starts where the first one ended.
        return following, estimator.random_state.random_sample()

    ours, peer = both("multiclass", settings, steps)
    assert_alike(ours, peer, data, **({"rtol": 1e-5, "atol": 1e-8} if solver == "lbfgs" else {}))


def test_numpys_global_random_state():
    data = problem("regression")
    before = np.random.get_state()

    def steps(estimator):
        np.random.seed(11)
        fit(estimator, data)
        following = np.random.random_sample()
        np.random.set_state(before)
        return following

    ours, peer = both("regression", {**EARLY, "random_state": None}, steps)
    assert_alike(ours, peer, data)


# partial_fit.

CHUNKS = [np.s_[:17], np.s_[17:20], np.s_[20:50], np.s_[50:], np.s_[:]]


def partial_fits(estimator, name, data, weighted, times=2):
    """In chunks of sizes of their own; the classes are named once, and the first chunks lack some."""
    for i, chunk in enumerate(CHUNKS * times):
        arguments = {"sample_weight": data.weight[chunk]} if weighted else {}
        if i == 0 and not hasattr(estimator, "classes_") and "Classifier" in type(estimator).__name__:
            arguments["classes"] = np.arange(3 if name == "multilabel" else data.y.max() + 1)
        assert estimator.partial_fit(data.X[chunk], data.y[chunk], **arguments) is estimator
        assert estimator.n_iter_ == 1
        assert len(estimator.loss_curve_) >= i + 1
    return estimator


PARTIAL = {
    "constant": SGD,
    "invscaling": {**SGD, "learning_rate": "invscaling"},
    "adaptive": IDLE,
    "adam": ADAM,
    "adam_auto": {**ADAM, "batch_size": "auto"},
    "in_order": {**SGD, "shuffle": False, "batch_size": 200, "nesterovs_momentum": False},
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("case", "weighted"), [*product(PARTIAL, [True]), ("adam", False)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_partial_fit(name, case, weighted):
    data = problem(name)
    if name == "multiclass":
        order = np.argsort(data.y, kind="stable")
        data = data._replace(X=data.X[order], y=data.y[order])
    settings = {"activation": "relu", **PARTIAL[case]}
    ours, peer = both(name, settings, partial(partial_fits, name=name, data=data, weighted=weighted))
    assert_alike(ours, peer, data)


@pytest.mark.parametrize("case", PARTIAL)
@pytest.mark.parametrize("name", ["multiclass", "regression"])
def test_fit_and_partial_fit_in_turn(name, case):
    data = problem(name)

    def fit_first(estimator):
        return partial_fits(fit(estimator, data), name, data, True, times=1)

    def fit_last(estimator):
        return fit(partial_fits(estimator, name, data, True, times=1), data)

    for steps in (fit_first, fit_last):
        ours, peer = both(name, PARTIAL[case], steps)
        assert_alike(ours, peer, data)


def test_partial_fit_is_told_the_classes_once():
    data = problem("multiclass")
    for estimator in estimators("multiclass", {}):
        with pytest.raises(ValueError, match="classes"):
            estimator.partial_fit(data.X, data.y)
        estimator.partial_fit(data.X, data.y, classes=[0, 1, 2, 3])
        estimator.partial_fit(data.X, data.y, classes=[0, 1, 2, 3])
        with pytest.raises(ValueError, match="classes"):
            estimator.partial_fit(data.X, data.y, classes=[0, 1, 2])
        with pytest.raises(ValueError, match="classes"):
            estimator.partial_fit(data.X, data.y + 2)


def test_partial_fit_with_a_random_state_of_the_callers():
    data = problem("binary")
    settings = {**ADAM, "random_state": np.random.RandomState(5)}
    ours, peer = both("binary", settings, partial(partial_fits, name="binary", data=data, weighted=False))
    assert_alike(ours, peer, data)
    assert ours.random_state.random_sample() == peer.random_state.random_sample()


# Labels, targets and rows in other forms.

LABELS = {
    "text": ("binary", np.array(["no", "yes"]).take),
    "text_multiclass": ("multiclass", np.array(["salt", "pepper", "a longer name"]).take),
    "text_objects": ("multiclass", np.array(["b", "a", "c"], dtype=object).take),
    "text_list": ("multiclass", lambda y: np.array(["b", "a", "c"]).take(y).tolist()),
    "booleans": ("binary", lambda y: y.astype(bool)),
    "floats": ("multiclass", lambda y: y * 2.0 - 1),
    "int8": ("multiclass", lambda y: y.astype(np.int8)),
    "negative": ("binary", lambda y: 2 * y - 1),
    "gaps": ("multiclass", np.array([40, -3, 7]).take),
    "list": ("multiclass", lambda y: y.tolist()),
    "one_class": ("binary", lambda y: np.full(len(y), 4)),
    "multilabel_bool": ("multilabel", lambda y: y.astype(bool)),
    "multilabel_floats": ("multilabel", lambda y: y.astype(float)),
    "multilabel_list": ("multilabel", lambda y: y.tolist()),
    "multilabel_sparse": ("multilabel", sparse.csr_matrix),
    "multilabel_one_sided": ("multilabel", lambda y: np.where(np.arange(3) == 1, 0, y)),
    "counts": ("poisson", lambda y: y.astype(int)),
    "float32_targets": ("regression", lambda y: y.astype(np.float32)),
    "integer_targets": ("regression", lambda y: np.round(4 * y).astype(int)),
    "list_of_targets": ("regression", lambda y: y.tolist()),
}


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("case", LABELS)
def test_labels(case, early_stopping):
    name, change = LABELS[case]
    data = problem(name)
    data = data._replace(y=change(data.y), y_new=change(data.y_new))
    settings = {**SGD, **EARLY, "early_stopping": early_stopping}
    ours, peer = both(name, settings, partial(fit, data=data, weighted=True))
    assert_alike(ours, peer, data)


def test_text_labels_in_partial_fit():
    data = problem("multiclass")
    names = np.array(["salt", "pepper", "a longer name"])
    data = data._replace(y=names[data.y], y_new=names[data.y_new])

    def steps(estimator):
        estimator.partial_fit(data.X[:9], data.y[:9], classes=names)
        estimator.partial_fit(data.X[9:], data.y[9:], classes=names)
        return estimator.partial_fit(data.X, data.y)

    ours, peer = both("multiclass", SGD, steps)
    assert_alike(ours, peer, data)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("name", ["binary", "multiclass", "regression", "poisson"])
def test_a_column_of_targets(name, early_stopping):
    data = problem(name)
    column = data._replace(y=data.y[:, None])
    with pytest.warns(DataConversionWarning):
        fit(estimators(name, {"solver": "lbfgs", "hidden_layer_sizes": (), "max_iter": 500})[0], column)
    settings = {**ADAM, "early_stopping": early_stopping}
    ours, peer = both(name, settings, partial(fit, data=column))
    assert_alike(ours, peer, data)


ROWS = {
    "list": np.ndarray.tolist,
    "integers": lambda X: np.round(2 * X).astype(int),
    "fortran": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=0)[::2],
    "big_endian": lambda X: X.astype(">f8"),
    "csr": lambda X: sparse.csr_matrix(np.where(X > 0.3, X, 0)),
    "csc": lambda X: sparse.csc_matrix(np.where(X > 0.3, X, 0)),
    "csr_array": lambda X: sparse.csr_array(np.where(X > 0.3, X, 0)),
    "csc_array": lambda X: sparse.csc_array(np.where(X > 0.3, X, 0)),
    "coo": lambda X: sparse.coo_matrix(np.where(X > 0.3, X, 0)),
    "csr_integers": lambda X: sparse.csr_matrix(np.round(X).astype(int)),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [("multiclass", "plain"), ("regression", "early_stopping_weighted"), ("multiclass", "lbfgs")],
)
@pytest.mark.parametrize("rows", ROWS)
def test_rows(rows, name, mode):
    data = problem(name)
    data = data._replace(X=ROWS[rows](data.X), X_new=ROWS[rows](data.X_new))
    settings, weighted = ({"solver": "lbfgs", "alpha": 1.0}, True) if mode == "lbfgs" else MODES[mode]
    ours, peer = both(name, settings, partial(fit, data=data, weighted=weighted))
    assert_alike(ours, peer, data, **({"rtol": 1e-5, "atol": 1e-8} if mode == "lbfgs" else {}))


@pytest.mark.parametrize("rows", ["csr", "csc"])
def test_sparse_rows_in_partial_fit(rows):
    data = problem("binary")
    data = data._replace(X=ROWS[rows](data.X), X_new=ROWS[rows](data.X_new))
    ours, peer = both("binary", ADAM, partial(partial_fits, name="binary", data=data, weighted=True))
    assert_alike(ours, peer, data)


@pytest.mark.parametrize("solver", [*RATES, "lbfgs"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_float32(name, form, solver):
    data = problem(name)
    data = data._replace(X=form(data.X.astype(np.float32)), X_new=form(data.X_new.astype(np.float32)))
    settings = {"solver": solver, "alpha": 1.0, "learning_rate_init": 0.01, "early_stopping": solver == "sgd"}
    ours, peer = both(name, settings, partial(fit, data=data, weighted=True))
    assert {array.dtype for array in ours.coefs_ + ours.intercepts_} == {np.dtype("float32")}
    # scikit-learn's parameters are of float64 after lbfgs.
    tolerance = 1e-2 if solver == "lbfgs" else 1e-4
    assert_alike(ours, peer, data, rtol=tolerance, atol=tolerance, dtypes=solver != "lbfgs")
    dtype = np.float32 if name not in ("binary", "multiclass", "multilabel") else problem(name).y.dtype
    assert ours.predict(data.X_new).dtype == dtype


# Several outputs.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", [*RATES, "lbfgs"])
def test_several_counts(solver, mode):
    data, (settings, weighted) = problem("poisson_two"), MODES[mode]
    settings = {"solver": solver, "learning_rate_init": 0.01, **settings}
    ours, peer = both("poisson_two", settings, partial(fit, data=data, weighted=weighted))
    assert_alike(ours, peer, data, **({"rtol": 1e-5, "atol": 1e-8} if solver == "lbfgs" else {}))


# Under the squared error ours is the gradient of the loss, and scikit-learn's is that of the
# loss times the number of outputs. Its penalty is not multiplied.

THREE = {
    "constant": {},
    "classical_momentum": {"nesterovs_momentum": False},
    "no_momentum": {"momentum": 0.0, "batch_size": 67},
    "invscaling": {"learning_rate": "invscaling"},
    "early_stopping": {**EARLY, "max_iter": 20},
    "adaptive": {"learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 1, "max_iter": 8},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("case", THREE)
def test_several_outputs_with_a_rate_per_output(case, alpha, weighted):
    data = problem("regression_three")
    settings = {"solver": "sgd", "alpha": alpha, "learning_rate_init": 0.03, **THREE[case]}
    theirs = {"learning_rate_init": 0.01, "alpha": 3 * alpha}
    ours, peer = both("regression_three", settings, partial(fit, data=data, weighted=weighted), peer=theirs)
    assert_alike(ours, peer, data, skip=("loss_", "loss_curve_", "best_loss_") if alpha else ())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["plain", "early_stopping"])
def test_several_outputs_with_adam(mode, weighted):
    # Adam's step is that of a gradient times three when epsilon is three times as large.
    data = problem("regression_three")
    settings = {**ADAM, "epsilon": 0.01, "alpha": 0.5, **MODES[mode][0]}
    theirs = {"epsilon": 0.03, "alpha": 1.5}
    ours, peer = both("regression_three", settings, partial(fit, data=data, weighted=weighted), peer=theirs)
    assert_alike(ours, peer, data, skip=("loss_", "loss_curve_", "best_loss_"))


# Without scikit-learn's networks.


def mean_loss(name, parameters, data, weight, alpha, activation):
    """Compute the loss as it is defined: a weighted mean, and the penalty over the sum of the weights."""
    *hidden, (last, bias) = parameters
    act = {"identity": lambda z: z, "tanh": np.tanh, "logistic": lambda z: 1 / (1 + np.exp(-z))}[activation]
    values, y = data.X, data.y
    for coef, intercept in hidden:
        values = act(values @ coef + intercept)
    z = values @ last + bias
    y = np.eye(3)[y] if name == "multiclass" else y.reshape(len(y), -1)
    losses = {
        "binary": lambda: np.logaddexp(0, z) - y * z,
        "multilabel": lambda: np.logaddexp(0, z) - y * z,
        "multiclass": lambda: np.logaddexp.reduce(z, axis=1)[:, None] / 3 - y * z,
        "poisson": lambda: np.exp(z) - y * z + np.where(y > 0, y * np.log(np.maximum(y, 1)), 0) - y,
        "regression": lambda: (y - z) ** 2 / 2,
        "regression_three": lambda: (y - z) ** 2 / 6,
    }[name.removesuffix("_two")]()
    penalty = sum((coef**2).sum() for coef, _ in parameters)
    return ((weight[:, None] * losses).sum() + alpha / 2 * penalty) / weight.sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("activation", ["identity", "tanh", "logistic"])
@pytest.mark.parametrize("name", [*PROBLEMS, "poisson_two", "regression_three"])
def test_the_step_is_the_finite_difference_of_the_loss(name, activation, weighted):
    data, rates = problem(name), (0.5, 1.0)
    settings = {"solver": "sgd", "momentum": 0.0, "batch_size": 67, "activation": activation, "alpha": 2.0}
    made = []
    for rate in rates:
        estimator, _ = estimators(name, {**settings, "learning_rate_init": rate, "max_iter": 1})
        with pytest.warns(ConvergenceWarning):
            made.append(fit(estimator, data, weighted))
    # Two steps from the same point by different rates: the gradient, and the point.
    short, long = ([*estimator.coefs_, *estimator.intercepts_] for estimator in made)
    gradient = [(a - b) / (rates[1] - rates[0]) for a, b in zip(short, long)]
    start = [a + rates[0] * g for a, g in zip(short, gradient)]
    n_layers = len(start) // 2

    def loss():
        weight = data.weight if weighted else np.ones(len(data.y))
        return mean_loss(name, list(zip(start[:n_layers], start[n_layers:])), data, weight, 2.0, activation)

    np.testing.assert_allclose([made[0].loss_, made[0].loss_curve_[0]], loss(), rtol=1e-12)
    for array, found in zip(start, gradient):
        for at in np.ndindex(array.shape):
            here, differences = array[at], []
            for offset in (1e-5, -1e-5):
                array[at] = here + offset
                differences.append(loss())
            array[at] = here
            slope = (differences[0] - differences[1]) / 2e-5
            np.testing.assert_allclose(found[at], slope, rtol=1e-5, atol=1e-8)


ALPHA = 4.0
LINEAR = {
    "binary": lambda n: linear_model.LogisticRegression(C=1 / ALPHA, tol=1e-10, max_iter=1000),
    "multiclass": lambda n: linear_model.LogisticRegression(C=1 / ALPHA, tol=1e-10, max_iter=1000),
    "regression": lambda n: linear_model.Ridge(alpha=ALPHA),
    "regression_three": lambda n: linear_model.Ridge(alpha=3 * ALPHA),
    "poisson": lambda n: linear_model.PoissonRegressor(alpha=ALPHA / n, tol=1e-10, max_iter=1000),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
@pytest.mark.parametrize("name", LINEAR)
def test_without_hidden_layers_the_optimum_is_that_of_a_linear_model(name, solver, weighted):
    data = problem(name)
    settings = {"solver": solver, "hidden_layer_sizes": (), "alpha": ALPHA, "max_iter": 400, "tol": 1e-9}
    full_batches = {"batch_size": 67, "learning_rate_init": 0.1, "n_iter_no_change": np.inf}
    ours, _ = estimators(name, {**settings, **full_batches})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit(ours, data, weighted)
    peer = LINEAR[name](data.weight.sum() if weighted else len(data.y)).fit(
        data.X, data.y, sample_weight=data.weight if weighted else None
    )
    np.testing.assert_allclose(ours.coefs_[0].T.squeeze(), peer.coef_.squeeze(), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(ours.predict(data.X_new), peer.predict(data.X_new), rtol=1e-3, atol=2e-4)
