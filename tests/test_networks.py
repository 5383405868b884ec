"""Networks of a table: the rows each is trained on, the epoch kept, and what their average predicts."""

import signal
import warnings
from collections import Counter

import numpy as np
import pytest

import mlp_xp
from mlp_xp import MLPClassifier, MLPRegressor

pl = pytest.importorskip("polars")
metrics = pytest.importorskip("sklearn.metrics")
optimize = pytest.importorskip("scipy.optimize")
special = pytest.importorskip("scipy.special")
dummy = pytest.importorskip("sklearn.dummy")
class_weight = pytest.importorskip("sklearn.utils.class_weight")
tables = pytest.importorskip("mlp_xp.tables")
networks = pytest.importorskip("mlp_xp.tables._networks")
pipelines = pytest.importorskip("mlp_xp.tables._pipelines")
rows_of = pytest.importorskip("mlp_xp.tables._rows")

Training, average_of, best_epoch = networks.Training, networks.average_of, networks.best_epoch
LabelledRows, assign_folds = rows_of.LabelledRows, rows_of.assign_folds

pytestmark = pytest.mark.filterwarnings("ignore:.*hasn't converged")

SETTINGS = {
    **{"hidden_layer_sizes": (8, 4), "max_iter": 12, "early_stopping": "loss", "tol": 0.0, "random_state": 0},
    **{"learning_rate_init": 0.03, "batch_size": 10},
}
FRAME = pl.DataFrame({"a": np.linspace(-2.0, 2.0, 60), "b": np.cos(np.arange(60.0))})
VALUES = 1000.0 + 30.0 * np.sin(2.0 * FRAME["a"].to_numpy()) + 10.0 * FRAME["b"].to_numpy()
LABELS = np.where(VALUES > 1010.0, "high", "low")


def prepared(y, frame=FRAME, weight=None, **others):
    task = "regression" if y.dtype.kind == "f" else "classification"
    splits = {"training": LabelledRows(frame, y, weight), **others}
    return pipelines.prepare(task, tables.learn_schema(frame), splits, "float64")


def training_of(y, n_networks=5, settings=None, weight=None, frame=FRAME, others=None, **chosen):
    kind = MLPRegressor if y.dtype.kind == "f" else MLPClassifier
    estimator = kind(**SETTINGS | (settings or {}))
    data = prepared(y, frame, weight, **(others or {}))
    return Training(estimator, data, n_networks, **{"leaves_rows_out": True} | chosen)


def trained(*arguments, **settings):
    training = training_of(*arguments, **settings)
    training.run()
    return training


# The rows left out.


def rows(y):
    return LabelledRows(pl.DataFrame({"a": np.zeros(len(y))}), np.asarray(y))


@pytest.mark.parametrize("seed", range(20))
def test_whichever_fold_is_left_out_each_class_is_trained_on(seed):
    random = np.random.RandomState(seed)
    y = random.choice(list("abcdefg"), p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02], size=random.randint(20, 90))
    folds = assign_folds(rows(y), 5, seed)
    for name, count in Counter(y.tolist()).items():
        found = folds[y == name]
        if count == 1:
            assert found.tolist() == [-1]
            continue
        assert len({*found.tolist()}) == min(5, count)
        assert np.ptp(np.bincount(found, minlength=5)) <= 1
    assert np.ptp(np.bincount(folds[folds >= 0], minlength=5)) <= len(set(y))


def test_values_are_dealt_so_that_folds_are_alike():
    y = np.random.RandomState(1).standard_cauchy(500)
    folds = assign_folds(rows(y), 5, 0)
    medians = [np.median(y[folds == fold]) for fold in range(5)]
    assert np.bincount(folds).tolist() == [100] * 5
    assert np.std(medians) < 0.05
    # Where they begin, and who of equals comes first, is drawn.
    equal = np.repeat([1.0, 2.0], 50)
    assert (assign_folds(rows(equal), 5, 0) != assign_folds(rows(equal), 5, 1)).any()


def seen_by_networks(training, monkeypatch):
    """Run a training; return the rows that each network is trained on and measured by, by their index."""
    seen = []
    index_of = {tuple(x): index for index, x in enumerate(training.data.X["training"].tolist())}

    def indices(X):
        return [index_of[tuple(x)] for x in X.tolist()]

    kind = type(training.estimator)
    fit = kind.fit

    def recorded(self, X, y, sample_weight=None, **validation):
        measured = indices(validation["X_val"]) if "X_val" in validation else None
        seen.append((indices(X), measured, self.random_state))
        return fit(self, X, y, sample_weight, **validation)

    monkeypatch.setattr(kind, "fit", recorded)
    training.run()
    return seen


@pytest.mark.parametrize("y", [VALUES, LABELS])
def test_each_row_is_left_out_by_one_network_of_five(y, monkeypatch):
    seen = seen_by_networks(training_of(y, 7), monkeypatch)
    for trained_on, measured, _ in seen:
        assert sorted(trained_on + measured) == list(range(60))
        assert len(measured) == 12
    assert sorted(index for _, measured, _ in seen[:5] for index in measured) == list(range(60))
    # Of more networks the rows are divided anew, and each has a seed of its own.
    assert {*seen[5][1]} not in [{*measured} for _, measured, _ in seen[:5]]
    assert [seed for *_, seed in seen] == list(range(7))


def test_few_rows_are_all_trained_on(monkeypatch):
    few = FRAME[:9]
    training = training_of(VALUES[:9], 2, {"batch_size": 4}, frame=few)
    seen = seen_by_networks(training, monkeypatch)
    assert [(sorted(trained_on), measured) for trained_on, measured, _ in seen] == [([*range(9)], None)] * 2
    assert (training.monitored, training.stops_early, training.shrinkage) == (None, False, None)
    assert [network.n_iter_ for network in training.networks] == [12, 12]
    assert training_of(VALUES[:10], frame=FRAME[:10]).monitored == "left out"


def test_a_table_for_validation_stops_all_networks(monkeypatch):
    validation = LabelledRows(FRAME[::2], VALUES[::2])
    training = training_of(VALUES, 3, others={"validation": validation, "test": validation})
    seen = seen_by_networks(training, monkeypatch)
    assert [(sorted(trained_on), measured) for trained_on, measured, _ in seen] == [
        ([*range(60)], [*range(0, 60, 2)])
    ] * 3
    assert (training.monitored, training.shrinkage) == ("validation", None)


@pytest.mark.parametrize(
    ("settings", "chosen", "expected"),
    [
        ({}, {}, "left out"),
        ({"early_stopping": False}, {}, None),
        ({"solver": "lbfgs"}, {}, None),
        ({}, {"leaves_rows_out": False}, None),
        ({"early_stopping": False}, {"leaves_rows_out": False}, "test"),
    ],
)
def test_which_rows_are_monitored(settings, chosen, expected):
    test = LabelledRows(FRAME, VALUES)
    assert training_of(VALUES, settings=settings, others={"test": test}, **chosen).monitored == expected


# The epoch kept.


@pytest.mark.parametrize("y", [VALUES, LABELS])
def test_the_epoch_with_the_lowest_loss_on_the_rows_left_out_is_kept(y):
    training = trained(y, settings={"learning_rate_init": 0.1, "max_iter": 40})
    scaled = (VALUES - VALUES.mean()) / VALUES.std() if y is VALUES else y
    folds = assign_folds(training.data.splits["training"], 5, 0)
    for fold, network in enumerate(training.networks):
        X, target = training.data.X["training"][folds == fold], scaled[folds == fold]
        if y is VALUES:
            loss = metrics.mean_squared_error(target, network.predict(X)) / 2.0
        else:
            loss = metrics.log_loss(target, network.predict_proba(X))
        epoch = best_epoch(network)
        assert network.val_loss_curve_[epoch - 1] == pytest.approx(loss, rel=1e-9)
        assert loss <= min(network.val_loss_curve_) * (1.0 + 1e-9)
        record = network.history_[epoch - 1]
        assert record.keys() == {
            *("epoch", "loss", "val_loss"),
            *(("r2", "val_r2") if y is VALUES else ("accuracy", "val_accuracy")),
        }
        # The training's score is that of the rows trained on.
        X, target = training.data.X["training"][folds != fold], scaled[folds != fold]
        name = "r2" if y is VALUES else "accuracy"
        assert record[name] == pytest.approx(network.score(X, target), rel=1e-9)


# The average.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(), (5,), (5, 3), (4, 3, 2)])
@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_the_average_has_the_mean_of_the_logits(sizes, n_classes, dtype):
    random = np.random.RandomState(0)
    X = random.randn(40, 6).astype(dtype)
    y = X[:, 0] + X[:, 1] ** 2
    kind, settings = MLPRegressor, {"hidden_layer_sizes": sizes, "max_iter": 5, "activation": "tanh"}
    if n_classes > 1:
        kind, y = MLPClassifier, np.digitize(y, np.quantile(y, np.linspace(0, 1, n_classes + 1)[1:-1]))
    made = [kind(random_state=seed, **settings).fit(X, y) for seed in range(3)]
    average = average_of(made)
    assert average.coefs_[0].dtype == dtype
    assert average.hidden_layer_sizes == tuple(3 * size for size in sizes)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    if n_classes == 1:
        expected = np.mean([network.predict(X) for network in made], axis=0)
        np.testing.assert_allclose(average.predict(X), expected, rtol=tolerance, atol=tolerance)
        return
    logarithms = np.mean([network.predict_log_proba(X).astype("float64") for network in made], axis=0)
    expected = np.exp(logarithms) / np.exp(logarithms).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(average.predict_proba(X), expected, rtol=10 * tolerance)


def test_one_network_is_kept_as_it_was_trained():
    training = trained(VALUES, 1)
    (network,) = training.networks
    X = training.data.X["training"]
    scaled = training.shrinkage * network.predict(X)
    np.testing.assert_allclose(training.estimator.predict(X), VALUES.mean() + VALUES.std() * scaled)
    assert network.val_loss_curve_ == training.estimator.val_loss_curve_


def test_rows_left_out_again_count_once_for_the_shrinkage():
    five, ten = trained(VALUES, 5), trained(VALUES, 10)
    assert ten.shrinkage == five.shrinkage


def test_the_average_of_one_network_is_that_one():
    model = MLPRegressor(hidden_layer_sizes=(3,), max_iter=3, random_state=0).fit(FRAME.to_numpy(), VALUES)
    for found, expected in zip(average_of([model]).coefs_, model.coefs_):
        np.testing.assert_array_equal(found, expected)


def test_an_average_is_saved_and_loaded_as_one_network(tmp_path):
    pytest.importorskip("safetensors")
    training = trained(LABELS)
    mlp_xp.save_model(tmp_path / "model.safetensors", training.estimator)
    loaded = mlp_xp.load_model(tmp_path / "model.safetensors")
    X = training.data.X["training"]
    np.testing.assert_array_equal(loaded.predict_proba(X), training.estimator.predict_proba(X))
    assert loaded.hidden_layer_sizes == (40, 20)
    assert loaded.n_iter_ == max(network.n_iter_ for network in training.networks)


# The shrinkage.


def left_out(training):
    """The index of the rows that each network left out."""
    folds = assign_folds(training.data.splits["training"], 5, 0)
    return [np.flatnonzero(folds == fold) for fold in range(5)]


def test_values_are_shrunk_as_the_rows_left_out_ask_for():
    random = np.random.RandomState(0)
    noise, columns = 3.0 * random.randn(60), random.randn(2, 60)
    frame = FRAME.with_columns(pl.Series(f"noise {index}", column) for index, column in enumerate(columns))
    training = trained(VALUES + noise, frame=frame, settings={"max_iter": 60})
    data, y = training.data, VALUES + noise
    predicted, truth = [], []
    for network, index in zip(training.networks, left_out(training)):
        predicted.append(y.mean() + y.std() * network.predict(data.X["training"][index]))
        truth.append(y[index])
    predicted, truth = np.concatenate(predicted), np.concatenate(truth)
    candidates = np.linspace(0.0, 1.0, 1001)
    losses = [np.mean((truth - y.mean() - each * (predicted - y.mean())) ** 2) for each in candidates]
    best = candidates[np.argmin(losses)]
    gains = (truth - y.mean()) ** 2 - (truth - y.mean() - best * (predicted - y.mean())) ** 2
    t = gains.mean() / (gains.std() / np.sqrt(60))
    assert t > 1.0
    assert training.shrinkage == pytest.approx(best * (1.0 - 1.0 / t**2), abs=2e-3)
    plain = np.mean([network.predict(data.X["training"]) for network in training.networks], axis=0)
    np.testing.assert_allclose(
        training.estimator.predict(data.X["training"]), y.mean() + training.shrinkage * y.std() * plain
    )


def shrunk_logits(kind, logits, constant, factor):
    """What a loss predicts of logits that are shrunk."""
    shrunk = factor * logits + (1.0 - factor) * constant
    if kind == "categorical_cross_entropy":
        return special.softmax(shrunk, axis=1)
    return {
        "squared_error": lambda: shrunk,
        "poisson": lambda: np.exp(shrunk),
        "binary_cross_entropy": lambda: special.expit(shrunk),
    }[kind]()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "kind", ["squared_error", "poisson", "binary_cross_entropy", "categorical_cross_entropy"]
)
def test_logits_that_are_too_certain_are_shrunk_to_the_lowest_loss(kind, weighted):
    from mlp_xp._losses import resolve_loss

    random = np.random.RandomState(5)
    weight = random.rand(8000) + 0.1 if weighted else np.ones(8000)
    n_columns = 3 if kind == "categorical_cross_entropy" else 1
    truth = 0.7 * random.randn(8000, n_columns)
    y = {
        "squared_error": lambda: truth + 0.3 * random.randn(8000, 1),
        "poisson": lambda: random.poisson(np.exp(truth)),
        "binary_cross_entropy": lambda: 1.0 * (random.rand(8000, 1) < special.expit(truth)),
        "categorical_cross_entropy": lambda: np.eye(3)[
            np.argmax(truth + random.gumbel(size=(8000, 3)), axis=1)
        ],
    }[kind]()
    loss = {
        "squared_error": metrics.mean_squared_error,
        "poisson": metrics.mean_poisson_deviance,
        "binary_cross_entropy": metrics.log_loss,
        "categorical_cross_entropy": metrics.log_loss,
    }[kind]
    logits, constant = 1.6 * truth, np.zeros(n_columns)

    def loss_of(factor):
        return loss(y, shrunk_logits(kind, logits, constant, factor), sample_weight=weight)

    expected = optimize.minimize_scalar(loss_of, bounds=(0.0, 1.0), method="bounded").x
    evaluate, parts = resolve_loss(kind).evaluate, np.array_split(np.arange(8000), 5)
    judged = [networks._Judged(evaluate, logits[part], y[part] * 1.0, weight[part]) for part in parts]
    found = networks._shrinkage(judged, constant)
    # The second factor is next to 1: the gain is many standard errors.
    assert 0.4 < expected < 0.9
    assert expected * 0.98 < found < expected


@pytest.mark.parametrize("n_classes", [2, 3])
def test_labels_by_chance_are_predicted_by_their_frequencies(n_classes):
    random = np.random.RandomState(4)
    frame = pl.DataFrame({"a": random.randn(300), "b": random.randn(300)})
    y = random.choice(list("xyz")[:n_classes], size=300, p=[0.7, 0.3] if n_classes == 2 else [0.6, 0.3, 0.1])
    training = trained(y, frame=frame, settings={"max_iter": 30})
    assert training.shrinkage == 0.0
    X = training.data.X["training"]
    expected = dummy.DummyClassifier(strategy="prior").fit(X, y).predict_proba(X)
    np.testing.assert_allclose(training.estimator.predict_proba(X), expected, rtol=1e-9)


def test_what_is_certain_is_not_shrunk():
    x = np.linspace(-1.0, 1.0, 400)
    training = trained(3.0 * x, frame=pl.DataFrame({"x": x}), settings={"max_iter": 60})
    assert 0.99 < training.shrinkage <= 1.0


# Weights.


def test_balanced_classes_are_weighted_among_the_rows_left_out_too():
    weight = class_weight.compute_sample_weight("balanced", LABELS)
    one = trained(LABELS, settings={"class_weight": "balanced"})
    other = trained(LABELS, weight=weight)
    for found, expected in zip(one.estimator.coefs_, other.estimator.coefs_):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert one.estimator.class_weight == "balanced"
    assert one.networks[0].val_loss_curve_ == pytest.approx(other.networks[0].val_loss_curve_)
    assert one.networks[0].val_loss_curve_ != pytest.approx(trained(LABELS).networks[0].val_loss_curve_)


# Trainings that end early.


class Stopping:
    """A callback for the progress of a training that raises in a network's first report."""

    def __init__(self, error):
        self.error = error

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        pass

    def on_progress(self, history):
        raise self.error


@pytest.mark.parametrize(("number", "kept"), [(1, [0]), (3, [0, 1]), (5, [0, 1, 2, 3])])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_was_trained_before_the_end_is_kept(number, kept, error):
    training = training_of(VALUES)

    def begin(index):
        if index == number:
            training.estimator.set_callbacks(Stopping(error()))

    training.on_begin = begin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if error is OSError:
            with pytest.raises(OSError):  # noqa: PT011  # it has no message
                training.run()
        else:
            training.run()
    assert training.is_interrupted == (error is KeyboardInterrupt)
    assert len(training.networks) == number
    X = training.data.X["training"]
    plain = np.mean([training.networks[index].predict(X) for index in kept], axis=0)
    found = (training.estimator.predict(X) - VALUES.mean()) / VALUES.std()
    # Shrunk by what is known of the networks kept: all values by the same factor.
    assert np.ptp(found / plain) < 1e-6


def test_the_history_of_an_average_is_the_mean_of_those():
    training = trained(LABELS, settings={"n_iter_no_change": 2})
    lengths = [len(history) for history in training.histories]
    assert len({*lengths}) > 1
    history = training.estimator.history_
    assert len(history) == max(lengths)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        for epoch in (0, min(lengths) - 1, max(lengths) - 1):
            known = [each[epoch][name] for each in training.histories if len(each) > epoch]
            assert history[epoch][name] == pytest.approx(np.mean(known))


def test_an_estimator_keeps_its_parameters():
    training = training_of(VALUES, settings={"random_state": 7})
    before = training.estimator.get_params()
    training.run()
    after = training.estimator.get_params()
    assert after == before | {"hidden_layer_sizes": (40, 20)}


def test_an_interrupt_between_networks_ends_the_training(monkeypatch):
    training = training_of(VALUES)

    def begin(number):
        if number == 3:
            raise KeyboardInterrupt

    training.on_begin = begin
    with pytest.warns(mlp_xp.TrainingInterruptedWarning, match="several networks was interrupted"):
        training.run()
    assert (training.is_interrupted, training.n_finished, len(training.networks)) == (True, 2, 2)
    assert training.estimator.hidden_layer_sizes == (16, 8)
    training = training_of(VALUES, on_begin=lambda number: begin(3))
    with pytest.raises(KeyboardInterrupt):  # nothing was trained
        training.run()


# Odd tables and weights.


def test_classes_of_one_row_each_are_trained_on_without_validation():
    random = np.random.RandomState(0)
    y = np.array([f"class {index}" for index in range(18)] + ["class 0", "class 1"])
    training = trained(y, frame=pl.DataFrame({"a": random.randn(20)}), settings={"batch_size": 5})
    assert training.monitored is None  # four rows are in classes of two
    assert training.n_finished == 5
    assert training.estimator.classes_.tolist() == sorted({*y.tolist()})


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e30, 1e300])
def test_weights_count_in_proportion(factor):
    weight = 1.0 + np.arange(60) % 3
    one, other = trained(VALUES, weight=weight), trained(VALUES, weight=weight * factor)
    X = one.data.X["training"]
    np.testing.assert_allclose(other.estimator.predict(X), one.estimator.predict(X), rtol=1e-9)


@pytest.mark.parametrize("ratio", [1e-20, 1e16, 1e25])
def test_a_class_that_outweighs_the_others_leaves_probabilities(ratio):
    training = trained(LABELS, weight=np.where(LABELS == "high", ratio, 1.0))
    probabilities = training.estimator.predict_proba(training.data.X["training"])
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("unit", [1e-150, 1e-10, 1.0, 1e20, 1e150])
def test_counts_of_any_unit_are_learnt(unit):
    """The Poisson deviance is that of counts in another unit, but for a factor."""
    x = np.linspace(-1.0, 1.0, 200)
    y = np.round(np.exp(2.0 + 1.5 * x))
    settings = {"loss": "poisson", "max_iter": 40}
    training = trained(unit * y, settings=settings, frame=pl.DataFrame({"x": x}))
    predicted = training.estimator.predict(training.data.X["training"]) / unit
    assert metrics.d2_tweedie_score(y, predicted, power=1) > 0.9


def test_whole_weights_of_classes():
    one = trained(LABELS, settings={"class_weight": {"high": 1, "low": 3}})
    other = trained(LABELS, settings={"class_weight": {"high": 1.0, "low": 3.0}})
    for found, expected in zip(one.estimator.coefs_, other.estimator.coefs_):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_a_score_that_no_epoch_has_keeps_the_last_epoch():
    y = np.array(["often"] * 57 + ["rare"] * 3)
    training = trained(y, settings={"early_stopping": "roc_auc", "max_iter": 3})
    assert len(training.networks) == 5
    assert None in [best_epoch(network) for network in training.networks]


@pytest.mark.parametrize("name", ["average_of", "_shrinkage", "_undo_target_scaling"])
def test_an_interrupt_while_averaging_loses_nothing(name, monkeypatch):
    training, function, expected = training_of(VALUES), getattr(networks, name), trained(VALUES).estimator

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    monkeypatch.setattr(networks, name, interrupted)
    with pytest.warns(mlp_xp.TrainingInterruptedWarning):
        training.run()
    assert training.is_interrupted
    X = training.data.X["training"]
    np.testing.assert_array_equal(training.estimator.predict(X), expected.predict(X))
