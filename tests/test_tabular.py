"""`TabularClassifier` and `TabularRegressor`: DataFrames in, predictions out, as scikit-learn has it."""

import json
import pickle
import warnings

import numpy as np
import pytest

import mlp_xp

pl = pytest.importorskip("polars")
metrics = pytest.importorskip("sklearn.metrics")
base = pytest.importorskip("sklearn.base")
ensemble = pytest.importorskip("sklearn.ensemble")
neural_network = pytest.importorskip("sklearn.neural_network")
selection = pytest.importorskip("sklearn.model_selection")
tables = pytest.importorskip("mlp_xp.tables")
TabularClassifier, TabularRegressor = tables.TabularClassifier, tables.TabularRegressor

pytestmark = pytest.mark.filterwarnings("ignore:.*hasn't converged")

QUICK = {"n_networks": 2, "hidden_layer_sizes": (16,), "max_iter": 20, "random_state": 0}


def made(n_rows=300, seed=0):
    """A table of columns of all kinds, with a label and a value that depend on them."""
    random = np.random.RandomState(seed)
    mass = np.exp(random.randn(n_rows))
    kind = random.choice(["a", "b", "c"], size=n_rows)
    day = random.randint(0, 365, size=n_rows)
    score = np.log(mass) + 1.5 * (kind == "a") - 0.7 * (kind == "b") + np.cos(day / 58.0)
    frame = pl.DataFrame(
        {
            "mass": pl.Series(mass).set(pl.Series(random.rand(n_rows) < 0.1), None),
            "kind": pl.Series(kind).set(pl.Series(random.rand(n_rows) < 0.1), None),
            "day": pl.Series(np.datetime64("2025-01-01") + day),
            "wet": random.rand(n_rows) < 0.5,
            "number": np.arange(n_rows),
        }
    )
    return frame, np.where(score > 0.3, "high", "low"), 100.0 + 20.0 * score + random.randn(n_rows)


FRAME, LABELS, VALUES = made()
NEW, NEW_LABELS, NEW_VALUES = made(200, seed=1)
MODELS = {
    "classes": (TabularClassifier, LABELS, NEW_LABELS),
    "values": (TabularRegressor, VALUES, NEW_VALUES),
}


@pytest.fixture(scope="module", params=MODELS)
def fitted(request):
    kind, y, new = MODELS[request.param]
    return kind(**QUICK).fit(FRAME, y), y, new


def test_new_rows_are_predicted(fitted):
    model, _, truth = fitted
    assert model.score(NEW, truth) > 0.75
    name = "accuracy_score" if hasattr(model, "classes_") else "r2_score"
    assert model.score(NEW, truth) == getattr(metrics, name)(truth, model.predict(NEW))
    assert model.schema_.left_out == {"number": "it numbers the rows"}
    assert model.feature_names_in_.tolist() == FRAME.columns
    assert (len(model.histories_), len(model.best_epochs_)) == (2, 2)


def test_probabilities_are_those_of_the_classes():
    model = TabularClassifier(**QUICK).fit(FRAME, LABELS)
    probabilities = model.predict_proba(NEW)
    assert model.classes_.tolist() == ["high", "low"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(NEW)).all()
    assert metrics.log_loss(NEW_LABELS, probabilities) < 0.5


LABELS_OF_MANY_TYPES = {
    "truth values": LABELS == "high",
    "numbers": np.where(LABELS == "high", 7, -2),
    "large numbers": np.where(LABELS == "high", 2**63 + 5, 1).astype(np.uint64),
    "text as objects": LABELS.astype(object),
    "numbers in text": np.where(LABELS == "high", "01", "1"),
    "decimal commas": np.where(LABELS == "high", "1,5", "2,5"),
    "spaces": np.where(LABELS == "high", " a", "a "),
    "words for missing values": np.where(LABELS == "high", "NA", ""),
    "truth in text": np.where(LABELS == "high", "True", "False"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("y", LABELS_OF_MANY_TYPES.values(), ids=LABELS_OF_MANY_TYPES)
def test_labels_of_any_type_are_predicted_as_they_are(y):
    model = TabularClassifier(**QUICK).fit(FRAME, y)
    assert model.classes_.tolist() == np.unique(y).tolist()
    assert model.score(FRAME, y) > 0.8
    weights = dict.fromkeys(model.classes_.tolist(), 2)
    assert TabularClassifier(**QUICK, class_weight=weights).fit(FRAME, y).score(FRAME, y) > 0.8
    scores = selection.cross_val_score(TabularClassifier(**QUICK | {"n_networks": 1}), FRAME, y, cv=2)
    assert scores.min() > 0.6


def test_targets_and_weights_may_be_series():
    expected = TabularRegressor(**QUICK).fit(FRAME, VALUES, np.ones(300)).predict(NEW)
    series = pl.Series("value", VALUES)
    found = TabularRegressor(**QUICK).fit(FRAME, series, pl.Series(np.ones(300))).predict(NEW)
    np.testing.assert_array_equal(found, expected)
    pandas = pytest.importorskip("pandas")
    column = pandas.DataFrame({"value": VALUES})
    with pytest.warns(match="column-vector"):
        found = TabularRegressor(**QUICK).fit(FRAME, column, np.ones(300)).predict(NEW)
    np.testing.assert_array_equal(found, expected)
    labels = TabularClassifier(**QUICK).fit(FRAME, LABELS).predict(NEW)
    categorical = pl.Series(LABELS, dtype=pl.Categorical), pandas.Series(LABELS, dtype="category")
    for y in (*categorical, LABELS.tolist()):
        assert (TabularClassifier(**QUICK).fit(FRAME, y).predict(NEW) == labels).all()


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_labels_are_refused(missing):
    y = LABELS.astype(object)
    y[3] = missing
    with pytest.raises((ValueError, TypeError), match="`y`|Input y"):
        TabularClassifier().fit(FRAME, y)


def test_numbers_are_labels_of_a_classifier_and_values_of_a_regressor():
    grades = np.digitize(VALUES, [90.0, 110.0])
    assert TabularClassifier(**QUICK).fit(FRAME, grades).classes_.tolist() == [0, 1, 2]
    predicted = TabularRegressor(**QUICK).fit(FRAME, grades).predict(NEW)
    assert predicted.dtype == np.float64
    assert len(np.unique(predicted)) > 100


@pytest.mark.usefixtures("empty_pictures")
def test_it_is_the_network_that_the_command_trains(tmp_path, monkeypatch, capsys):
    cli = pytest.importorskip("mlp_xp._cli")
    monkeypatch.chdir(tmp_path)
    for name, (kind, y, _) in MODELS.items():
        FRAME.with_columns(y=y).write_parquet(f"{name}.parquet")
        settings = ["--test-fraction", "0", "--seed", "3", "--epochs", "5", "--json", "--out", name]
        assert cli.main(["train", f"{name}.parquet", *settings]) == 0
        described = json.loads(capsys.readouterr().out)
        model = kind(random_state=3, max_iter=5).fit(FRAME, y)
        loaded = mlp_xp.load_model(f"{name}/network.safetensors")
        for found, expected in zip(loaded.coefs_, model.network_.coefs_):
            np.testing.assert_array_equal(found, expected)
        assert described["best_epochs"] == model.best_epochs_
        assert (len(model.histories_), len(model.best_epochs_)) == (5, 5)
        expected = tables.load_run(name).predict(NEW)
        np.testing.assert_array_equal(model.predict(NEW), expected["predicted y"].to_numpy())


def test_tables_of_other_libraries(fitted):
    pandas = pytest.importorskip("pandas")
    model, _, _ = fitted
    expected = model.predict(NEW)
    frames = {
        "pandas": pandas.DataFrame(NEW.to_dict(as_series=False)),
        "another order, another column": NEW.select(reversed(NEW.columns)).with_columns(more=1),
        "arrow": NEW.to_arrow() if hasattr(NEW, "to_arrow") and pytest.importorskip("pyarrow") else NEW,
    }
    for name, frame in frames.items():
        np.testing.assert_array_equal(model.predict(frame), expected, err_msg=name)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda X: X[::1], lambda X: X.tolist()])
def test_arrays_are_tables_of_numbers(layout):
    random = np.random.RandomState(0)
    X = random.randn(200, 3)
    y = X[:, 0] * X[:, 1]
    given = layout(X)
    model = TabularRegressor(random_state=0, max_iter=40).fit(given, y)
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2"]
    frame = pl.DataFrame({f"x{index}": column for index, column in enumerate(X.T)})
    np.testing.assert_array_equal(model.predict(given), model.predict(frame))
    assert model.score(X, y) > 0.8


def test_scikit_learns_tools_take_them():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(FRAME.to_dict(as_series=False))
    scores = selection.cross_val_score(TabularClassifier(**QUICK), X, LABELS, cv=3)
    assert scores.min() > 0.7
    search = selection.GridSearchCV(TabularRegressor(**QUICK), {"n_networks": [1, 2]}, cv=2).fit(X, VALUES)
    assert search.best_params_["n_networks"] in (1, 2)
    voting = ensemble.VotingClassifier([("one", TabularClassifier(**QUICK))], voting="soft").fit(X, LABELS)
    assert voting.score(X, LABELS) > 0.7


def test_a_clone_is_unfitted_and_a_pickle_predicts_the_same(fitted):
    model, _, _ = fitted
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(NEW), model.predict(NEW))
    clone = base.clone(model)
    assert clone.get_params() == model.get_params()
    with pytest.raises(Exception, match="not fitted yet"):
        clone.predict(NEW)


@pytest.mark.parametrize(
    ("n_rows", "given", "batch_size", "weight_decay"),
    [
        (5, {}, 5, 1.0),
        (16, {}, 12, 1.0),
        (100, {}, 16, 1.0),
        (1000, {}, 64, 1.0),
        (4096, {}, 256, 1.0),
        (16_384, {}, 256, 0.25),
        (262_144, {}, 1024, 0.0625),
        (1000, {"batch_size": 10}, 10, 0.16),
        (1000, {"weight_decay": 0.5}, 64, 0.5),
        (1000, {"solver": "sgd"}, None, 0.0),
    ],
)
def test_batches_and_decay_depend_on_the_number_of_rows(n_rows, given, batch_size, weight_decay):
    from mlp_xp.tables._settings import SCIKIT_LEARN, TABULAR

    chosen = TABULAR.all_parameters(given, n_rows)
    assert (chosen.get("batch_size"), chosen["weight_decay"]) == (batch_size, pytest.approx(weight_decay))
    assert SCIKIT_LEARN.all_parameters(given, n_rows) == given


def test_seeds_decide(fitted):
    model, y, _ = fitted
    kind = type(model)
    again, other = (kind(**QUICK | {"random_state": seed}).fit(FRAME, y) for seed in (0, 1))
    np.testing.assert_array_equal(again.network_.coefs_[0], model.network_.coefs_[0])
    assert (other.network_.coefs_[0] != model.network_.coefs_[0]).any()
    drawn = [kind(**QUICK | {"random_state": np.random.RandomState(4)}).fit(FRAME, y) for _ in range(2)]
    np.testing.assert_array_equal(drawn[0].network_.coefs_[0], drawn[1].network_.coefs_[0])


def test_rows_of_weight_0_are_not_there(fitted):
    model, y, _ = fitted
    weight = np.arange(300) % 3 / 2.0
    kept = weight > 0.0
    one = type(model)(**QUICK).fit(FRAME.drop("number"), y, weight)
    changed = np.where(kept, y, y[0])
    other = type(model)(**QUICK).fit(FRAME.drop("number"), changed, weight)
    np.testing.assert_array_equal(one.predict(NEW), other.predict(NEW))
    even = type(model)(**QUICK).fit(FRAME.drop("number"), y)
    assert (one.network_.coefs_[0] != even.network_.coefs_[0]).any()


def test_names_of_columns_are_never_taken():
    frame = FRAME.rename({"mass": "target", "wet": "weight"})
    one = TabularRegressor(**QUICK).fit(frame, VALUES, np.ones(300))
    other = TabularRegressor(**QUICK).fit(FRAME, VALUES, np.ones(300))
    np.testing.assert_array_equal(
        one.predict(NEW.rename({"mass": "target", "wet": "weight"})), other.predict(NEW)
    )


@pytest.mark.parametrize(
    ("X", "y", "weight", "message"),
    [
        (FRAME, VALUES[:5], None, r"`y`: .*\[300, 5\]"),
        (FRAME, VALUES, [1.0], r"`sample_weight` must have the shape \(300,\), got \(1,\)"),
        (FRAME, np.where(VALUES > 100.0, np.nan, VALUES), None, "Input y contains NaN"),
        (FRAME, np.stack([VALUES] * 2, axis=1), None, r"`y` must have one dimension, got shape \(300, 2\)"),
        (FRAME, LABELS, None, "`y` must hold real numbers"),
        (FRAME, None, None, "`y`|requires y"),
        (FRAME, VALUES, -np.ones(300), "`sample_weight` must hold finite numbers >= 0, not all zero"),
        (FRAME, VALUES, ["heavy"] * 300, "`sample_weight` must hold numbers"),
        (np.ones((3, 2, 2)), VALUES, None, "`X` must be a DataFrame, or an array of 2 dimensions, got 3"),
        (FRAME.select([]), VALUES, None, "`X`: 0 feature"),
        ("table.csv", VALUES, None, "table.csv"),
    ],
)
def test_wrong_data_are_refused_before_training(X, y, weight, message, monkeypatch):
    monkeypatch.setattr(mlp_xp.MLPRegressor, "fit", None)
    with pytest.raises((ValueError, TypeError), match=message):
        TabularRegressor().fit(X, y, weight)


def test_arrays_of_another_width_are_refused():
    X = np.random.RandomState(0).randn(50, 3)
    model = TabularRegressor(**QUICK).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="X has 2 features, but TabularRegressor is expecting 3"):
        model.predict(X[:, :2])
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="sparse"):
        model.predict(sparse.csr_matrix(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [TabularClassifier, TabularRegressor])
def test_scikit_learns_checks(kind):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    model = kind(n_networks=1, max_iter=100, hidden_layer_sizes=(32,), random_state=0)
    results = checks.check_estimator(model, on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    # A row of weight 2 is in one part of the rows, two rows of weight 1 may be in two.
    assert failed == {"check_sample_weight_equivalence_on_dense_data"}
    assert sum(result["status"] == "passed" for result in results) > 40


def test_one_class_is_refused():
    weight = np.where(LABELS == "high", 1.0, 0.0)
    for arguments in ((FRAME, ["a"] * 300), (FRAME, LABELS, weight)):
        with pytest.raises(ValueError, match="`y` must have at least 2 classes, got 1 class"):
            TabularClassifier().fit(*arguments)


def test_columns_that_lack_or_do_not_fit_are_named(fitted):
    model, _, _ = fitted
    with pytest.raises(tables.DataError, match="mass"):
        model.predict(NEW.drop("mass"))
    with pytest.raises(tables.DataError, match="'heavy'"):
        model.predict(NEW.with_columns(mass=pl.lit("heavy")))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_libraries_compute_the_same(backend, request):
    from conftest import need

    need(backend, request)
    settings = {**QUICK, "max_iter": 5, "dtype": "float64"}
    expected = TabularClassifier(**settings).fit(FRAME, LABELS)
    found = TabularClassifier(backend=backend, **settings).fit(FRAME, LABELS)
    assert isinstance(found.network_.coefs_[0], np.ndarray)
    np.testing.assert_allclose(found.predict_proba(NEW), expected.predict_proba(NEW), rtol=1e-9)


def test_no_worse_than_the_mean_where_nothing_can_be_learnt():
    """Values with a few enormous ones, on columns of noise: the error of networks alone is far above 1."""
    random = np.random.RandomState(0)
    X, y = random.randn(300, 8), np.exp(3.0 * random.randn(300))
    model = TabularRegressor(random_state=0).fit(X[:200], y[:200])
    peer = neural_network.MLPRegressor(random_state=0, max_iter=300)
    scale = y[:200].std()
    assert 1.0 - peer.fit(X[:200], y[:200] / scale).score(X[200:], y[200:] / scale) > 1.1
    assert 1.0 - model.score(X[200:], y[200:]) < 1.05


@pytest.mark.parametrize("n_rows", [2, 3, 5, 9, 10, 11, 15, 19, 20, 25])
@pytest.mark.parametrize("name", MODELS)
def test_few_rows_are_fitted_without_a_word(name, n_rows):
    kind, y, _ = MODELS[name]
    y = y[:n_rows].copy()
    if name == "classes":
        y[:2] = "low", "high"
    frame = FRAME[:n_rows].drop("number")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*hasn't converged")
        predicted = kind(random_state=0, max_iter=3).fit(frame, y).predict(NEW)
    assert len(predicted) == len(NEW)


# Checkpoints.


def assert_same_fit(one, other):
    """Assert that two fits ended with the same, bit for bit."""
    assert one.histories_ == other.histories_
    for name in ("best_epochs_", "n_iter_", "shrinkage_"):
        assert getattr(one, name) == getattr(other, name), name
    for left, right in zip(
        (*one.network_.coefs_, *one.network_.intercepts_),
        (*other.network_.coefs_, *other.network_.intercepts_),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [({"max_iter": 7}, []), ({"n_networks": 1}, ["fit-1.mlpx"]), ({}, ["fit-1.mlpx", "fit-2.mlpx"])],
)
@pytest.mark.parametrize("task", MODELS)
def test_a_fit_that_was_cut_ends_where_it_would_have(task, cut, kept, tmp_path):
    kind, y, _ = MODELS[task]
    kind(**QUICK | cut).fit(FRAME, y, checkpoint=tmp_path / "fit.mlpx")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    resumed = kind(**QUICK).fit(FRAME, y, checkpoint=tmp_path / "fit.mlpx", resume=True)
    assert_same_fit(resumed, kind(**QUICK).fit(FRAME, y))
    # What had ended is not trained again.
    names = ("fit-1.mlpx", "fit-2.mlpx")
    assert [name for name in names if (tmp_path / name).stat().st_mtime_ns == before.get(name)] == kept
    former = {f"fit-{number}.mlpx.1" for number in (1, 2)}
    assert {path.name for path in tmp_path.iterdir()} - former == {"fit-1.mlpx", "fit-2.mlpx"}


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(3)])
def test_a_seed_that_was_drawn_is_resumed(random_state, tmp_path):
    model = TabularClassifier(**QUICK | {"random_state": random_state})
    first = base.clone(model).fit(FRAME, LABELS, checkpoint=tmp_path / "fit")
    assert_same_fit(model.fit(FRAME, LABELS, checkpoint=tmp_path / "fit", resume=True), first)


def cut_at(where, patch):
    """Let trainings fail in the first network, or before the second."""
    if where == "network":
        training = pytest.importorskip("mlp_xp.tables._networks").Training
        train = training._train

        def fail_at_second(self, index):
            if index == 1:
                raise ZeroDivisionError
            train(self, index)

        patch.setattr(training, "_train", fail_at_second)
    else:
        loop = pytest.importorskip("mlp_xp._training.loop")
        run_epochs = loop._Loop._reach_boundary

        def fail_at_fifth(self):
            if len(self.history) >= 5:
                raise ZeroDivisionError
            run_epochs(self)

        patch.setattr(loop._Loop, "_reach_boundary", fail_at_fifth)


def test_checkpoints_of_another_fit_are_kept_or_replaced_before_any_training(tmp_path, monkeypatch):
    path = tmp_path / "fit.mlpx"
    TabularClassifier(**QUICK).fit(FRAME, LABELS, checkpoint=path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    model = TabularClassifier(**QUICK | {"hidden_layer_sizes": (3,)})
    with pytest.raises(FileExistsError, match="`checkpoint` exists already: `resume=True` goes on") as caught:
        model.fit(FRAME, LABELS, checkpoint=path)
    assert caught.value.filename == str(tmp_path / "fit-1.mlpx")
    for name in ("fit-1.mlpx", "fit-1.mlpx.1"):
        (tmp_path / name).unlink()
    with pytest.raises(FileExistsError, match="`checkpoint` exists already: `resume=True` goes on") as caught:
        model.fit(FRAME, LABELS, checkpoint=path)
    assert caught.value.filename == str(tmp_path / "fit-2.mlpx")
    assert before.items() >= {each.name: each.read_bytes() for each in tmp_path.iterdir()}.items()
    # What is left of the other fit is not gone on with, however early this one is cut.
    rule = mlp_xp.Checkpoint(path, overwrite=True)
    for cut in ("step", "network"):
        TabularClassifier(**QUICK).fit(FRAME, LABELS, checkpoint=rule)
        with monkeypatch.context() as patch:
            cut_at(cut, patch)
            with pytest.raises(ZeroDivisionError):
                model.fit(FRAME, LABELS, checkpoint=rule)
        (tmp_path / "fit-9.mlpx").write_text("mine")
        resumed = base.clone(model).fit(FRAME, LABELS, checkpoint=path, resume=True)
        assert (tmp_path / "fit-9.mlpx").read_text() == "mine"
        assert_same_fit(resumed, base.clone(model).fit(FRAME, LABELS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"random_state": -1},
        {"activation": mlp_xp.Activation(lambda xp, z: z, lambda xp, delta, a: delta)},
        {"n_networks": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_fit_that_cannot_begin_replaces_no_checkpoints(wrong, tmp_path):
    rule = mlp_xp.Checkpoint(tmp_path / "fit.mlpx", overwrite=True)
    TabularClassifier(**QUICK).fit(FRAME, LABELS, checkpoint=rule)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises((TypeError, ValueError)):
        TabularClassifier(**QUICK | wrong).fit(FRAME, LABELS, checkpoint=rule)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_files_that_another_process_writes_are_left_alone(resume, tmp_path):
    rule = mlp_xp.Checkpoint(tmp_path / "fit.mlpx", overwrite=True)
    TabularClassifier(**QUICK).fit(FRAME, LABELS, checkpoint=rule)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    owned = pytest.importorskip("mlp_xp._disk.owned_file").OwnedFile(tmp_path / "fit-2.mlpx", 2)
    owned.take_over()
    try:
        with pytest.raises(BlockingIOError, match="`checkpoint` must be a file of its own"):
            TabularClassifier(**QUICK).fit(FRAME, LABELS, checkpoint=rule, resume=resume)
    finally:
        owned.release()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_other_data_and_parameters_are_not_gone_on_with(tmp_path):
    path = tmp_path / "fit.mlpx"
    model = TabularClassifier(**QUICK).fit(FRAME, LABELS, checkpoint=path)
    with pytest.raises(ValueError, match=r"`X`, `y` and `sample_weight` must be those of the training to"):
        model.fit(FRAME, LABELS[::-1], checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="other parameters: `hidden_layer_sizes` must be"):
        model.set_params(hidden_layer_sizes=(3,)).fit(FRAME, LABELS, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"resume": True}, ValueError, "`checkpoint` must be given where `resume` is True"),
        ({"resume": "fit.mlpx"}, TypeError, "`resume` must be True or False, got 'fit.mlpx'"),
        ({"checkpoint": ""}, ValueError, "`checkpoint` must be that of a file, got ''"),
        ({"checkpoint": "fits/"}, ValueError, "`checkpoint` must be that of a file, got 'fits/'"),
        ({"checkpoint": ".."}, ValueError, "`checkpoint` must be that of a file, got '..'"),
        ({"checkpoint": 3}, TypeError, "`checkpoint` must be a Checkpoint, or a path, got 3"),
        (
            {"checkpoint": "none/fit.mlpx"},
            FileNotFoundError,
            "`checkpoint` must be a file that can be written",
        ),
    ],
)
def test_wrong_checkpoints_are_refused(arguments, error, words):
    model = TabularClassifier(**QUICK)
    with pytest.raises(error, match=words):
        model.fit(FRAME, LABELS, **arguments)
    assert not hasattr(model, "network_")
