"""From columns to a network and back: prepared, trained, scored as scikit-learn has it."""

import numpy as np
import pytest

import mlp_xp

pl = pytest.importorskip("polars")
metrics = pytest.importorskip("sklearn.metrics")
dummy = pytest.importorskip("sklearn.dummy")
pipelines = pytest.importorskip("mlp_xp.tables._pipelines")
DataError = pytest.importorskip("mlp_xp.tables._reading").DataError

LabelledRows, hold_out, prepare, score = (
    pipelines.LabelledRows,
    pipelines.hold_out,
    pipelines.prepare,
    pipelines.score,
)
columns = pytest.importorskip("mlp_xp.tables._columns")

FRAME = pl.DataFrame({"size": [1.0, None, 3.0, 8.0], "kind": ["b", "a", None, "a"]})
KINDS = columns.find_columns(FRAME)


def prepared(y=(0, 1, 0, 1), task="classification", dtype="float64", **others):
    parts = {"training": LabelledRows(FRAME, np.array(y)), **others}
    return prepare(task, KINDS, parts, dtype)


def test_holes_are_filled_numbers_scaled_and_categories_encoded():
    data = prepared()
    # The median of 1, 3, 8 is 3; the mean of 1, 3, 3, 8 is 3.75, its deviation sqrt(6.6875); "a" comes most.
    size = (np.array([1.0, 3.0, 3.0, 8.0]) - 3.75) / np.sqrt(6.6875)
    expected = np.column_stack([size, [0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(data.X["training"].to_numpy(), expected, rtol=1e-12)
    assert data.X["training"].columns == ["size", "kind_a", "kind_b"]


def test_what_is_learnt_of_the_columns_is_of_the_training_rows_alone():
    new = pl.DataFrame({"size": [100.0, None], "kind": ["c", None]})
    data = prepared(test=LabelledRows(new, np.array([0, 1])))
    np.testing.assert_array_equal(data.X["training"].to_numpy(), prepared().X["training"].to_numpy())
    first, second = data.X["test"].rows()
    assert first[1:] == (0.0, 0.0)  # none of the categories known
    assert second == (data.X["training"]["size"][1], 1.0, 0.0)


def test_labelled_rows_of_a_further_table():
    frame = pl.DataFrame({"size": [1.0, 2.0, 3.0], "y": [2, None, 1], "w": [1.0, 2.0, 0.5]})
    rows = pipelines.labelled_rows(frame, "y", np.array(["1", "2"]), (["size"], []), "w")
    assert rows.frame.rows() == [(1.0,), (3.0,)]
    assert (rows.y.tolist(), rows.sample_weight.tolist()) == (["2", "1"], [1.0, 0.5])
    values = pipelines.labelled_rows(frame[2:], "y", None, (["size"], []))
    assert (values.y.tolist(), values.sample_weight) == ([1.0], None)
    with pytest.raises(DataError, match="^there is no row to score$"):
        pipelines.labelled_rows(frame[:0], "y", None, (["size"], []))


def test_columns_of_one_kind_alone():
    numbers, categories = (columns.find_columns(FRAME.select(name)) for name in ("size", "kind"))
    for kinds, width in ((numbers, 1), (categories, 2)):
        data = prepare(
            "classification", kinds, {"training": LabelledRows(FRAME, np.array([0, 1, 0, 1]))}, "float32"
        )
        assert data.X["training"].width == width
        assert set(data.X["training"].dtypes) == {pl.Float32}


def test_a_pipeline_predicts_raw_columns_as_the_network_does_prepared_ones():
    data = prepared(("x", "y", "x", "y"))
    model = mlp_xp.MLPClassifier((3,), max_iter=5, random_state=0)
    with pytest.warns(match="hasn't converged"):
        pipelines.fit(model, data)
    pipeline = data.pipeline(model)
    np.testing.assert_array_equal(
        pipeline.predict_proba(FRAME.select(reversed(FRAME.columns))), model.predict_proba(data.X["training"])
    )
    assert pipelines.imputed_values(pipeline) == {"size": 3.0, "kind": "a"}
    assert pipelines.known_categories(pipeline) == {"kind": ["a", "b"]}
    assert pipelines.columns_of(pipeline) == (["size"], ["kind"])


def test_values_are_predicted_in_their_own_units():
    """As scikit-learn's TransformedTargetRegressor predicts them."""
    compose = pytest.importorskip("sklearn.compose")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X = np.linspace(-1.0, 1.0, 40)
    y = 1e5 + 300.0 * X**3
    frame = pl.DataFrame({"x": X})
    parts = {"training": LabelledRows(frame, y), "validation": LabelledRows(frame[::3], y[::3])}
    data = prepare("regression", columns.find_columns(frame), parts, "float64")
    model = mlp_xp.MLPRegressor(
        hidden_layer_sizes=(5,), max_iter=300, random_state=0, tol=0.0, learning_rate_init=0.01
    )
    peer = compose.TransformedTargetRegressor(model, transformer=preprocessing.StandardScaler())
    with pytest.warns(match="hasn't converged"):
        peer.fit(data.X["training"], y)
    with pytest.warns(match="hasn't converged"):
        pipelines.fit(model, data)
    np.testing.assert_allclose(
        model.predict(data.X["training"]), peer.predict(data.X["training"]), rtol=1e-11
    )
    # The validation part is measured in the same units as the loss.
    scaled = (y[::3] - y.mean()) / y.std()
    predicted = (model.predict(data.X["validation"]) - y.mean()) / y.std()
    assert model.val_loss_curve_[-1] == pytest.approx(metrics.mean_squared_error(scaled, predicted) / 2.0)


def test_a_row_of_weight_2_counts_as_two_for_the_scale_too():
    X, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 5.0, 100.0])
    weight = np.array([1.0, 1.0, 1.0, 2.0])
    twice = np.array([0, 1, 2, 3, 3])
    frame = pl.DataFrame({"x": X})
    settings = {"hidden_layer_sizes": (3,), "solver": "lbfgs", "random_state": 0, "alpha": 0.0, "tol": 1e-9}
    kinds = columns.find_columns(frame)
    found = []
    for part in (LabelledRows(frame, y, weight), LabelledRows(frame[twice], y[twice])):
        data = prepare("regression", kinds, {"training": part}, "float64")
        data.X["training"] = part.frame  # the columns' own scale is not weighted
        model = mlp_xp.MLPRegressor(**settings)
        pipelines.fit(model, data)
        found.append(model.predict(frame))
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_target_far_from_zero_keeps_its_digits():
    X = np.linspace(-1.0, 1.0, 60)
    y = 1e9 + np.sin(3.0 * X)
    frame = pl.DataFrame({"x": X})
    data = prepare("regression", columns.find_columns(frame), {"training": LabelledRows(frame, y)}, "float32")
    model = mlp_xp.MLPRegressor(hidden_layer_sizes=(8,), activation="tanh", solver="lbfgs", random_state=0)
    pipelines.fit(model, data)
    np.testing.assert_allclose(model.predict(data.X["training"]) - 1e9, np.sin(3.0 * X), atol=0.1)
    near = prepare(
        "regression", columns.find_columns(frame), {"training": LabelledRows(frame, np.sin(X))}, "float32"
    )
    pipelines.fit(model, near)
    assert {coef.dtype.name for coef in model.coefs_} == {"float32"}


def test_a_part_is_held_out_by_class():
    y = np.repeat(["a", "b", "c"], [60, 30, 10])
    whole = LabelledRows(pl.DataFrame({"row": np.arange(100.0)}), y, np.arange(100.0))
    kept, held = hold_out(whole, "classification", None, seed=3)
    assert sorted(held.y.tolist()) == ["a"] * 12 + ["b"] * 6 + ["c"] * 2
    rows = np.concatenate([kept.frame["row"], held.frame["row"]])
    assert sorted(rows.tolist()) == list(range(100))
    np.testing.assert_array_equal(y[rows.astype(int)], np.concatenate([kept.y, held.y]))
    np.testing.assert_array_equal(rows, np.concatenate([kept.sample_weight, held.sample_weight]))
    again = hold_out(whole, "classification", 0.2, seed=3)[1]
    assert again.frame.equals(held.frame)
    assert not hold_out(whole, "classification", 0.2, seed=4)[1].frame.equals(held.frame)


def test_few_rows_are_all_trained_on():
    few = LabelledRows(pl.DataFrame({"x": np.arange(19.0)}), np.arange(19) % 2)
    assert hold_out(few, "classification", None, seed=0) == (few, None)
    assert len(hold_out(few, "classification", 0.5, seed=0)[1].y) == 10
    with pytest.raises(DataError, match=r"0\.01 of 19 rows leaves nothing"):
        hold_out(few, "classification", 0.01, seed=0)


def test_no_class_is_only_tested():
    y = np.array(["common"] * 30 + ["rare"])
    part = LabelledRows(pl.DataFrame({"x": np.arange(31.0)}), y)
    results = []
    for seed in range(20):
        try:
            kept, _ = hold_out(part, "classification", 0.3, seed)
            results.append(set(kept.y.tolist()))
        except DataError as error:
            results.append(str(error))
    assert {"common", "rare"} in results
    assert "the class 'rare' has so few rows that none is left to train on" in results
    assert all(result != {"common"} for result in results)


CLASSES = np.array(["a", "b", "c"])


def test_scores_of_known_answers():
    found = score("classification", CLASSES, np.eye(3), CLASSES)
    assert found == pytest.approx(
        {"accuracy": 1.0, "balanced_accuracy": 1.0, "roc_auc": 1.0, "log_loss": 0.0}
    )
    # Two of three rows of "a" right, none of "b"; probabilities of the truth 0.5, 0.5, 0.25 and 0.25.
    shares = np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    found = score("classification", np.array(["a", "a", "a", "b"]), shares, CLASSES)
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((2.0 / 3.0 + 0.0) / 2.0)
    assert found["log_loss"] == pytest.approx(1.5 * np.log(2.0))
    assert found["roc_auc"] is None  # there is no "c"
    found = score("regression", np.array([1.0, 3.0]), np.array([2.0, 5.0]), None)
    assert found == pytest.approx({"r2": 1.0 - 5.0 / 2.0, "mae": 1.5, "rmse": np.sqrt(2.5)})
    assert score("regression", np.array([1.0]), np.array([2.0]), None)["r2"] is None


def test_two_classes_are_ranked_by_the_second():
    y, shares = np.array(["no", "yes", "yes", "no"]), np.array([0.1, 0.4, 0.9, 0.6])
    found = score("classification", y, np.column_stack([1.0 - shares, shares]), np.array(["no", "yes"]))
    assert found["roc_auc"] == 0.75  # of four pairs, "yes" ahead in three


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_trivial_model_is_scikit_learns(task):
    random = np.random.RandomState(0)
    training, y = random.randint(3, size=50), random.randint(3, size=20)
    X, X_test = np.zeros((50, 1)), np.zeros((20, 1))
    if task == "classification":
        expected = dummy.DummyClassifier(strategy="prior").fit(X, training).predict_proba(X_test)
    else:
        expected = dummy.DummyRegressor().fit(X, training).predict(X_test)
    baseline = pipelines.make_baseline(task, training)
    np.testing.assert_allclose(pipelines.baseline_outputs(baseline, len(y)), expected)


def test_outputs_that_are_not_finite_have_no_scores():
    found = score("classification", CLASSES, np.full((3, 3), np.nan), CLASSES)
    assert set(found.values()) == {None}
    assert set(score("regression", np.ones(2), np.array([1.0, np.inf]), None).values()) == {None}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (209_912.3, "209,900"),
        (0.012361, "0.01236"),
        (7.0, "7"),
        (-1.5e6, "-1,500,000"),
        (3.2e147, "3.2e+147"),
        (0, "0"),
    ],
)
def test_numbers_for_people(value, text):
    assert pipelines.format_number(value) == text
