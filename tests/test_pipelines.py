"""From typed columns to a network and back: prepared, trained, scored as scikit-learn has it."""

import warnings

import numpy as np
import pytest

import mlp_xp

pl = pytest.importorskip("polars")
metrics = pytest.importorskip("sklearn.metrics")
dummy = pytest.importorskip("sklearn.dummy")
impute = pytest.importorskip("sklearn.impute")
preprocessing = pytest.importorskip("sklearn.preprocessing")
tables = pytest.importorskip("mlp_xp.tables")
networks = pytest.importorskip("mlp_xp.tables._networks")
pipelines = pytest.importorskip("mlp_xp.tables._pipelines")
ours = pytest.importorskip("mlp_xp.tables._preprocessing")
rows_of = pytest.importorskip("mlp_xp.tables._rows")
scores = pytest.importorskip("mlp_xp.tables._scores")

ColumnSchema, DataError, Schema, learn_schema = (
    tables.ColumnSchema,
    tables.DataError,
    tables.Schema,
    tables.learn_schema,
)
Encoding, Pipeline, Preprocessor, Scaling = (
    ours.Encoding,
    pipelines.Pipeline,
    ours.Preprocessor,
    ours.Scaling,
)
LabelledRows, hold_out, known_rows, prepare = (
    rows_of.LabelledRows,
    rows_of.hold_out,
    rows_of.known_rows,
    pipelines.prepare,
)
Training, average_of, best_epoch = networks.Training, networks.average_of, networks.best_epoch
Baseline, format_number, score = scores.Baseline, scores.format_number, scores.score

FRAME = pl.DataFrame({"size": [1.0, None, 3.0, 8.0], "kind": ["b", "a", None, "a"]})
SCHEMA = learn_schema(FRAME)


def schema_of(frame):
    """The schema of typed columns: numbers, and text as categories."""
    kinds = {
        name: ("number", tables.NumberFormat()) if dtype.is_numeric() else ("category",)
        for name, dtype in frame.schema.items()
    }
    return Schema(tuple(ColumnSchema(name, *kind) for name, kind in kinds.items()))


def fitted(frame, dtype="float64"):
    return Preprocessor.fit(schema_of(frame), frame, dtype)


def inputs(frame, dtype="float64"):
    return fitted(frame, dtype).transform(frame, dtype)


def numbers(*values, name="x"):
    return pl.DataFrame({name: pl.Series(values, dtype=pl.Float64)})


def text(values, name="kind"):
    return pl.DataFrame({name: pl.Series(values, dtype=pl.String)})


def prepared(y=(0, 1, 0, 1), task="classification", dtype="float64", **others):
    splits = {"training": LabelledRows(FRAME, np.array(y)), **others}
    return prepare(task, SCHEMA, splits, dtype)


# Numbers.


def test_holes_are_filled_numbers_scaled_and_categories_encoded():
    data = prepared()
    # The median of 1, 3, 8 is 3; the mean of 1, 3, 3, 8 is 3.75, its deviation sqrt(6.6875).
    size = (np.array([1.0, 3.0, 3.0, 8.0]) - 3.75) / np.sqrt(6.6875)
    expected = np.column_stack([size, [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    np.testing.assert_allclose(data.X["training"], expected, rtol=1e-12)
    assert data.preprocessor.input_names == ["size", "kind_a", "kind_b", "kind_(missing)"]
    assert data.preprocessor.filled() == {"size": 3.0, "kind": ""}


def sample(n_rows=200, *, seed=0):
    """Columns of numbers of many kinds, a tenth of them missing."""
    random = np.random.RandomState(seed)
    columns = {
        "normal": random.randn(n_rows),
        "skewed": np.exp(3.0 * random.randn(n_rows)),
        "far": 1e9 + random.randn(n_rows),
        "few": random.randint(3, size=n_rows).astype(float),
        "constant": np.full(n_rows, 0.1),
        "years": 1900.0 + random.randint(120, size=n_rows),
    }
    frame = pl.DataFrame(columns)
    holes = {name: random.rand(n_rows) < 0.1 for name in columns}
    return frame.with_columns(frame[name].set(pl.Series(hole), None) for name, hole in holes.items())


def test_numbers_are_filled_and_scaled_as_by_scikit_learn():
    frame, new = sample(), sample(50, seed=1)
    peer, scaler = impute.SimpleImputer(strategy="median"), preprocessing.StandardScaler()
    X = scaler.fit_transform(peer.fit_transform(frame.to_numpy()))
    made = fitted(frame)
    found = list(made.numbers.values())
    np.testing.assert_array_equal([each.fill for each in found], peer.statistics_)
    np.testing.assert_allclose([each.mean for each in found], scaler.mean_, rtol=1e-14)
    np.testing.assert_allclose([each.scale for each in found], scaler.scale_, rtol=1e-12)
    np.testing.assert_allclose(made.transform(frame, "float64"), X, rtol=1e-6, atol=1e-12)
    expected = scaler.transform(peer.transform(new.to_numpy()))
    np.testing.assert_allclose(made.transform(new, "float64"), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit", [1e-320, 1e-310, 1e-300, 1e-45, 1e-30, 1.0, 1e30, 1e200, 1e300])
def test_numbers_of_any_magnitude_are_scaled(unit, dtype):
    values = np.array([-3.0, 0.0, 1.0, 2.0, 6.0])
    # Subnormal numbers have few digits.
    tolerance = max(1e-6, 5e-324 / unit * 4.0)
    expected = (values - 1.2) / np.sqrt(np.mean((values - 1.2) ** 2))
    found = inputs(numbers(*(values * unit)), dtype)[:, 0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 5e-324],
        [5e-324, 1e-323, 5e-324],
        [2.2e-308, 2.3e-308],
        [0.0, 1e300],
        [-8.9e307, 8.9e307],
        [8.9e307, 8.8e307, 8.7e307],
        [1.0, 1.0 + 2**-52],
        [1e300, np.nextafter(1e300, 2e300)],
        [0.0],
        [1.1e300],
    ],
)
def test_extreme_numbers_become_moderate_inputs(values):
    found = inputs(numbers(*values))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 2.0
    assert np.isfinite(inputs(numbers(*values, None))).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e-300, 5e-324, 1e17, 1.1e300, -0.7e308])
@pytest.mark.parametrize("n_rows", [1, 3, 10, 1003])
def test_constants_become_zeros_whatever_rounding_does(value, n_rows):
    made = fitted(numbers(*[value] * n_rows))
    assert np.abs(made.transform(numbers(*[value] * n_rows), "float64")).max() < 1e-7
    assert np.abs(made.transform(numbers(None), "float64")).max() < 1e-7
    if abs(value) < 2.0:  # one unit away is one, as with scikit-learn's StandardScaler
        assert made.transform(numbers(value + 1.0), "float64") == pytest.approx(1.0)


def test_a_column_without_known_training_values_is_zero():
    made = fitted(numbers(None, None))
    assert made.transform(numbers(None, 3.0), "float64").tolist() == [[0.0], [3.0]]


def test_what_is_learnt_is_of_the_training_rows_alone():
    new = pl.DataFrame({"size": [100.0, None], "kind": ["c", None]})
    data = prepared(test=LabelledRows(new, np.array([0, 1])))
    np.testing.assert_array_equal(data.X["training"], prepared().X["training"])
    assert data.preprocessor == prepared().preprocessor
    first, second = data.X["test"].tolist()
    assert first == [(100.0 - 3.75) / np.sqrt(6.6875), 0.0, 0.0, 0.0]  # no category is "c"
    assert second == [data.X["training"][1, 0], 0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_columns_of_one_kind_alone(dtype):
    for name, width in (("size", 1), ("kind", 3)):
        found = inputs(FRAME.select(name), dtype)
        assert (found.shape, found.dtype) == ((4, width), np.dtype(dtype))


def test_columns_are_found_by_name():
    made = fitted(FRAME)
    other = FRAME.select(pl.lit(1.0).alias("else"), "kind", "size")
    np.testing.assert_array_equal(made.transform(other, "float64"), inputs(FRAME))


def test_frames_of_read_only_memory():
    values = np.array([1.0, 2.0, 4.0])
    values.flags.writeable = False
    frame = pl.DataFrame({"x": values, "kind": ["a", None, "b"]})
    expected = inputs(pl.DataFrame({"x": [1.0, 2.0, 4.0], "kind": ["a", None, "b"]}))
    np.testing.assert_array_equal(inputs(frame), expected)
    assert values.tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "values",
    [(0.0, 0.0, 0.0), (0.0, 1.0, -1.0), (3.0, 0.0, 1.0), (1e308, -1e308, 1.0), (0.0, 1e308, 1e-9)],
)
def test_impossible_scalings(values):
    with pytest.raises(ValueError, match="cannot be filled and scaled by"):
        Scaling(*values)


# Limits and intervals.


INTERVALS = ours.NumberInputs(limit=3.0, min_intervals=8, max_intervals=32, rows_per_interval=500)


def interval_inputs(values, dtype="float64", new=None):
    frame = numbers(*values)
    made = Preprocessor.fit(schema_of(frame), frame, dtype, INTERVALS)
    return made, made.transform(frame if new is None else numbers(*new), dtype)


def test_limited_numbers_are_scaled_ones_near_the_mean_and_bounded_far_away():
    values = np.random.RandomState(0).randn(1000)
    far = [*np.linspace(-0.01, 0.01, 5), 1e3, -1e9, 1e308, -1e308]
    made, found = interval_inputs(values, new=far)
    (scaling,) = made.numbers.values()
    scaled = (np.array(far) - scaling.mean) / scaling.scale
    np.testing.assert_allclose(found[:5, 0], scaled[:5], rtol=1e-2)
    np.testing.assert_allclose(found[5:, 0], [3.0, -3.0, 3.0, -3.0], rtol=1e-4)
    ascending = made.transform(numbers(*np.linspace(-50.0, 50.0, 400)), "float64")[:, 0]
    assert (np.diff(ascending) > 0.0).all()


@pytest.mark.parametrize(
    ("n_rows", "n_intervals"), [(50, 8), (4499, 8), (4500, 9), (16_000, 32), (40_000, 32)]
)
def test_intervals_have_equally_many_rows(n_rows, n_intervals):
    values = np.random.RandomState(1).standard_cauchy(n_rows)
    made, _ = interval_inputs(values[:10])
    made, _ = interval_inputs(values)
    (scaling,) = made.numbers.values()
    assert (scaling.knots[0], scaling.knots[-1]) == (values.min(), values.max())
    counts, _ = np.histogram(values, scaling.knots)
    assert len(counts) == n_intervals
    assert np.ptp(counts) <= 2


@pytest.mark.parametrize("unit", [1e-320, 1e-300, 1.0, 1e300])
def test_each_interval_is_gone_through_once(unit):
    values = unit * np.random.RandomState(2).rand(300)
    new = np.concatenate([values, unit * np.array([-5.0, 5.0])])
    made, found = interval_inputs(values, new=new)
    (scaling,) = made.numbers.values()
    for column, (low, high) in enumerate(zip(scaling.knots[:-1], scaling.knots[1:]), 1):
        expected = np.interp(new / unit, [low / unit, high / unit], [-0.5, 0.5])
        np.testing.assert_allclose(found[:, column], expected, atol=1e-9 if unit > 1e-310 else 0.51)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("values", "n_intervals"),
    [
        ([0.0] * 40, 0),
        ([0.0, 1.0] * 20, 0),
        ([0.0, 1.0, 2.0] * 20, 2),
        ([0.0] * 90 + [1.0, 2.0, 3.0, 4.0, 5.0] * 2, 0),
        ([5e-324, 1e-323, 0.0] * 20, 1),
        ([-1.7e308, 0.0, 1.7e308] * 20, 2),
        ([None] * 20, 0),
    ],
)
def test_columns_of_few_different_numbers_have_few_intervals(values, n_intervals):
    made, found = interval_inputs(values)
    (scaling,) = made.numbers.values()
    assert max(0, len(scaling.knots) - 1) in (n_intervals, 0)
    assert found.shape[1] == made.width == len(made.input_names) == scaling.width
    assert np.isfinite(found).all()


def test_many_rows_have_fewer_intervals_before_they_take_too_much_memory(monkeypatch):
    values = np.random.RandomState(3).randn(20_000)
    frame = pl.DataFrame({f"x{index}": values for index in range(5)})
    widths = []
    for n_bytes in (2**29, 20_000 * 100 * 4, 20_000 * 30 * 4, 1):
        monkeypatch.setattr(ours, "MAX_ENCODED_BYTES", n_bytes)
        widths.append(Preprocessor.fit(schema_of(frame), frame, "float32", INTERVALS).width)
    assert widths == [165, 85, 25, 5]


@pytest.mark.parametrize(
    ("limit", "knots"),
    [(0.0, ()), (-1.0, ()), (3.0, (1.0,)), (3.0, (1.0, 1.0)), (None, (2.0, 1.0)), (None, (0.0, 5e-324))],
)
def test_impossible_limits_and_intervals(limit, knots):
    with pytest.raises(ValueError, match="a limit must be|the ends of intervals must be"):
        Scaling(0.0, 0.0, 1.0, limit, knots)


# Categories.


def one_hot(frame, **settings):
    encoder = preprocessing.OneHotEncoder(
        sparse_output=False, handle_unknown="infrequent_if_exist", **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encoder.fit(frame.to_numpy())


def transformed(encoder, frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown categories
        return encoder.transform(frame.to_numpy())


def skewed_text(n_rows, n_different, *, seed=0):
    """Text of which some values are frequent and many are rare."""
    codes = np.random.RandomState(seed).zipf(1.4, size=n_rows) % n_different
    return text([f"v{code:03d}" for code in codes])


@pytest.mark.parametrize(
    ("n_rows", "n_different", "min_frequency"),
    [
        (100, 20, 1),  # so few that all are kept
        (100, 60, 2),
        (600, 60, 6),
        (3000, 100, 10),  # ten rows are never rare
    ],
)
def test_categories_are_encoded_as_by_scikit_learn(n_rows, n_different, min_frequency):
    frame = skewed_text(n_rows, n_different)
    peer = one_hot(frame, min_frequency=min_frequency)
    made = fitted(frame)
    np.testing.assert_array_equal(made.transform(frame, "float64"), transformed(peer, frame))
    new = pl.concat([skewed_text(100, n_different, seed=1), text(["never", "V001", ""])])
    np.testing.assert_array_equal(made.transform(new, "float64"), transformed(peer, new))
    assert made.width == transformed(peer, frame).shape[1]


def counted_text(n_different, *, least=10):
    """Text of which the value number i comes `least` + i times."""
    return text([f"v{i:03d}" for i in range(n_different) for _ in range(least + i)])


def test_a_column_has_a_limited_number_of_categories():
    frame = counted_text(130)
    peer = one_hot(frame, max_categories=101)
    made = fitted(frame)
    assert made.categories["kind"].values == tuple(f"v{i:03d}" for i in range(30, 130))
    np.testing.assert_array_equal(made.transform(frame, "float64"), transformed(peer, frame))
    assert fitted(counted_text(100)).categories["kind"].has_rare is False


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("limit", "n_kept"), [(1.0, 60), (0.99, 50), (0.8, 25), (0.1, 3), (1e-9, 2)])
def test_there_are_fewer_categories_where_all_rows_would_be_too_large(limit, n_kept, dtype, monkeypatch):
    """`limit` is a share of the size with all of the 60 categories."""
    frame = counted_text(60)
    n_bytes = int(np.dtype(dtype).itemsize) * len(frame) * 60
    monkeypatch.setattr(ours, "MAX_ENCODED_BYTES", int(limit * n_bytes))
    made = fitted(frame, dtype)
    encoded = made.transform(frame, dtype)
    assert len(made.categories["kind"].values) == n_kept
    assert encoded.nbytes <= limit * n_bytes or n_kept == 2
    if n_kept < 60:
        np.testing.assert_array_equal(encoded, transformed(one_hot(frame, max_categories=n_kept + 1), frame))


@pytest.mark.parametrize(
    ("training", "value", "expected"),
    [
        # Missing text is a category of its own if the training has some.
        (["a", "a", "b", None], None, "k_(missing)"),
        # Else the commonest stands for it, of equal ones the first by name.
        (["a", "b", "b"], None, "k_b"),
        (["b", "a"], None, "k_a"),
        (["b", "a"], "c", None),
        (["b", "a", None], "c", None),
        ([None, None], "c", None),
        ([None, None], None, "k_(missing)"),
        # Twenty different values are all kept, of more those that come once are together.
        ([f"v{i}" for i in range(20)], "v7", "k_v7"),
        ([f"v{i}" for i in range(20)], "w", None),
        (["a", "a", *(f"v{i}" for i in range(20))], "v7", "k_(rare)"),
        (["a", "a", *(f"v{i}" for i in range(20))], "w", "k_(rare)"),
        (["a", "a", *(f"v{i}" for i in range(20))], None, "k_a"),
        (["a", "a", None, *(f"v{i}" for i in range(20))], None, "k_(missing)"),
        # Where all are rare, none is the commonest.
        ([f"v{i}" for i in range(21)], "v7", "k_v7"),
        ([f"v{i}" for i in range(21)], None, "k_v0"),
    ],
)
def test_which_input_a_value_has(training, value, expected):
    made = fitted(text(training, "k"))
    row = made.transform(text([value], "k"), "float64")[0]
    assert [name for name, one in zip(made.input_names, row) if one] == ([expected] if expected else [])
    assert set(row) <= {0.0, 1.0}


def test_odd_names_of_categories():
    values = ["a", "A", "a b", "\u00e4", "\U0001f600", "1", "true", "(rare)", "x" * 1000, "a\nb"]
    np.testing.assert_array_equal(inputs(text(sorted(values))), np.eye(len(values)))


@pytest.mark.parametrize("values", [(("a", "a"), "a"), (("a",), "b"), ((), "b")])
def test_impossible_encodings(values):
    with pytest.raises(ValueError, match="the categories of a column must differ"):
        Encoding(values[0], has_rare=False, has_missing=False, commonest=values[1])


# Training.


REGRESSOR = {"hidden_layer_sizes": (8,), "activation": "tanh", "solver": "lbfgs", "random_state": 0}


def regression(frame, y, dtype="float64", weight=None, **others):
    return prepare(
        "regression", schema_of(frame), {"training": LabelledRows(frame, y, weight), **others}, dtype
    )


def trained(frame, y, dtype="float64", weight=None):
    data, model = regression(frame, y, dtype, weight), mlp_xp.MLPRegressor(**REGRESSOR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lbfgs|.*hasn't converged")
        Training(model, data).run()
    return data.pipeline(model)


LINE = np.linspace(-1.0, 1.0, 60)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-45, 1e-20, 1.0, 1e20, 1e44, 1e200, 1e290])
def test_targets_of_any_scale_are_fitted_in_float32_as_in_float64(unit):
    y = unit * (0.5 + np.sin(3.0 * LINE))
    frame = pl.DataFrame({"x": LINE})
    found = []
    for dtype in ("float32", "float64"):
        pipeline = trained(frame, y, dtype)
        outputs = pipeline.checked_outputs(frame)
        found.append(score("regression", y, outputs, None)["r2"])
        # Undone by hand, far from the limits of floats.
        assert metrics.r2_score(y / unit, outputs / unit) == pytest.approx(found[-1], abs=1e-9)
    assert found[1] > 0.99
    assert found[0] == pytest.approx(found[1], abs=0.005)


def test_a_target_far_from_zero_keeps_its_digits():
    frame, y = pl.DataFrame({"x": LINE}), np.sin(3.0 * LINE)
    for dtype in ("float32", "float64"):
        outputs = trained(frame, 1e9 + y, dtype).checked_outputs(frame)
        np.testing.assert_allclose(outputs - 1e9, y, atol=0.1)
    near = trained(frame, y, "float32")
    assert {weight.dtype.name for weight in near.estimator.coefs_} == {"float32"}
    assert near.dtype == np.float32


def test_a_target_that_is_constant_but_for_rounding():
    y = np.where(np.arange(60) % 2, 1e300, np.nextafter(1e300, 2e300))
    outputs = trained(pl.DataFrame({"x": LINE}), y, "float32").checked_outputs(pl.DataFrame({"x": LINE}))
    np.testing.assert_allclose(outputs, 1e300, rtol=1e-3)


def test_values_are_predicted_in_their_own_units():
    """As scikit-learn's TransformedTargetRegressor predicts them."""
    compose = pytest.importorskip("sklearn.compose")
    X = np.linspace(-1.0, 1.0, 40)
    y = 1e5 + 300.0 * X**3
    frame = pl.DataFrame({"x": X})
    data = regression(frame, y, validation=LabelledRows(frame[::3], y[::3]))
    model = mlp_xp.MLPRegressor(
        hidden_layer_sizes=(5,), max_iter=300, random_state=0, tol=0.0, learning_rate_init=0.01
    )
    peer = compose.TransformedTargetRegressor(model, transformer=preprocessing.StandardScaler())
    with pytest.warns(match="hasn't converged"):
        peer.fit(data.X["training"], y)
    with pytest.warns(match="hasn't converged"):
        Training(model, data).run()
    np.testing.assert_allclose(
        model.predict(data.X["training"]), peer.predict(data.X["training"]), rtol=1e-11
    )
    # The validation split is measured in the same units as the loss.
    scaled = (y[::3] - y.mean()) / y.std()
    predicted = (model.predict(data.X["validation"]) - y.mean()) / y.std()
    assert model.val_loss_curve_[-1] == pytest.approx(metrics.mean_squared_error(scaled, predicted) / 2.0)


@pytest.mark.parametrize("unit", [1.0, 1e-300, 1e300])
def test_a_row_of_weight_2_counts_as_two_for_the_scale_too(unit):
    y, weight = np.array([0.0, 1.0, 5.0, 100.0]), np.array([1.0, 1.0, 1.0, 2.0])
    found = ours.mean_and_scale(y, weight * unit)
    twice = y[[0, 1, 2, 3, 3]]
    assert found == pytest.approx((twice.mean(), twice.std()), rel=1e-12)


def test_a_row_of_weight_2_is_trained_on_as_two():
    X, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 5.0, 100.0])
    weight, twice = np.array([1.0, 1.0, 1.0, 2.0]), np.array([0, 1, 2, 3, 3])
    frame = pl.DataFrame({"x": X})
    settings = {"hidden_layer_sizes": (3,), "solver": "lbfgs", "random_state": 0, "alpha": 0.0, "tol": 1e-9}
    found = []
    for chosen, weights in ((np.arange(4), weight), (twice, None)):
        data = regression(frame[chosen], y[chosen], weight=weights)
        data.X["training"] = X[chosen, None]  # the columns' own scale is not weighted
        model = mlp_xp.MLPRegressor(**settings)
        Training(model, data).run()
        found.append(model.predict(X[:, None]))
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_count_is_not_scaled():
    """The Poisson deviance is of the counts themselves."""
    y = np.exp(1.0 + LINE).round()
    model = mlp_xp.MLPRegressor("poisson", **(REGRESSOR | {"max_iter": 5000}))
    Training(model, regression(pl.DataFrame({"x": LINE}), y)).run()
    outputs = model.predict(inputs(numbers(*LINE)))
    assert metrics.d2_tweedie_score(y, outputs, power=1) > 0.8


@pytest.mark.parametrize(
    ("settings", "splits", "expected"),
    [
        ({}, ["training"], None),
        ({}, ["training", "test"], "test"),
        ({}, ["training", "test", "validation"], "validation"),
        ({"early_stopping": True}, ["training", "test"], None),
        ({"early_stopping": True}, ["training", "test", "validation"], "validation"),
        ({"solver": "lbfgs"}, ["training", "test", "validation"], None),
    ],
)
def test_which_split_is_monitored(settings, splits, expected):
    data = prepare("regression", SCHEMA, dict.fromkeys(splits, LabelledRows(FRAME, LINE[:4])), "float64")
    assert Training(mlp_xp.MLPRegressor(**settings), data).monitored == expected


# Predicting.


def classifier(frame=FRAME, y=("x", "y", "x", "y"), dtype="float64"):
    data = prepare("classification", schema_of(frame), {"training": LabelledRows(frame, np.array(y))}, dtype)
    model = mlp_xp.MLPClassifier((3,), max_iter=5, random_state=0)
    with pytest.warns(match="hasn't converged"):
        Training(model, data).run()
    return data.pipeline(model), data


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_pipeline_predicts_columns_as_the_network_does_inputs(dtype):
    pipeline, data = classifier(dtype=dtype)
    outputs = pipeline.checked_outputs(FRAME.select(reversed(FRAME.columns)))
    np.testing.assert_array_equal(outputs, pipeline.estimator.predict_proba(data.X["training"]))
    np.testing.assert_array_equal(pipeline.predict_proba(FRAME), outputs)
    np.testing.assert_array_equal(pipeline.predict(FRAME), pipeline.estimator.predict(data.X["training"]))
    assert (pipeline.task, pipeline.dtype, outputs.dtype) == ("classification", dtype, np.float64)
    assert pipeline.classes.tolist() == pipeline.classes_.tolist() == ["x", "y"]


@pytest.mark.parametrize("n_bytes", [1, 100, 1000, 4095, 2**20])
def test_blocks_of_rows_are_predicted_as_all_at_once(n_bytes, monkeypatch):
    frame = pl.concat([sample(101), text(["a", None, "b", "c"] * 25 + ["a"])], how="horizontal")
    pipeline, _ = classifier(frame, ["x", "y", "z"] * 33 + ["x", "y"])
    expected = pipeline.outputs(frame)
    monkeypatch.setattr(pipelines, "N_BYTES_OF_A_BLOCK", n_bytes)
    found = pipeline.outputs(frame)
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # a BLAS may round rows alone in another way
    assert found.shape == (101, 3)


def test_there_must_be_rows():
    with pytest.raises(DataError, match="^there is no row to predict$"):
        classifier()[0].checked_outputs(FRAME.head(0))


TOO_LARGE = [
    ("float32", 3.5e38, "3.5e.38", "train with --dtype float64 for larger ones; --na names"),
    ("float32", -1e300, "-1e.300", "train with --dtype float64 for larger ones; --na names"),
    ("float64", 1.5e308, "1.5e.308", r"\(--na names"),
]


@pytest.mark.parametrize(("dtype", "value", "shown", "advice"), TOO_LARGE)
def test_numbers_that_the_dtype_cannot_hold_are_named(dtype, value, shown, advice):
    frame = pl.DataFrame({"a": LINE, "b": LINE[::-1] ** 2, "c": LINE + 1.0})
    pipeline = trained(frame, LINE, dtype)
    rows = pl.DataFrame({"a": [0.0, value, 0.1, value], "b": [value, 1.0, None, 0.0], "c": [0.0] * 4})
    expected = (
        f"'a' must hold smaller numbers, got {shown} in row 2, {shown} in row 4; 'b' .*{shown} in row 1"
    )
    for check in (
        lambda: pipeline.checked_outputs(rows),
        lambda: ours.check_magnitudes(rows, ["a", "b", "c"], dtype),
    ):
        with pytest.raises(DataError, match=f"^the columns {expected}, too large for {dtype}.*{advice}"):
            check()
    with pytest.raises(DataError, match="^the column 'b' must hold smaller numbers, got"):
        pipeline.checked_outputs(rows.with_columns(a=0.0))
    ours.check_magnitudes(rows.select("c"), ["c"], dtype)


def test_many_cells_are_counted():
    pipeline = trained(pl.DataFrame({"x": LINE}), LINE, "float32")
    with pytest.raises(DataError, match=r"in row 5, \.\.\. \(9 in all\), too large"):
        pipeline.checked_outputs(numbers(*[1e39] * 9))


def test_numbers_too_large_once_they_are_scaled():
    """A column whose numbers differ by 1e-30 takes 1e10 to what float32 cannot hold."""
    pipeline = trained(pl.DataFrame({"x": LINE * 1e-30}), LINE, "float32")
    with pytest.raises(
        DataError, match=r"^the column 'x' must hold smaller numbers, got 10000000000.0 in row 2"
    ):
        pipeline.checked_outputs(numbers(0.0, 1e10))
    pipeline = trained(pl.DataFrame({"x": [0.0, 5e-324] * 30}), LINE)
    with pytest.raises(
        DataError, match=r"'x' must hold smaller numbers, got 1\.0 in row 1, too large for float64"
    ):
        pipeline.checked_outputs(numbers(1.0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "value"), [("float32", 3e38), ("float64", 8e307)])
def test_predictions_that_overflow_name_the_number(dtype, value):
    frame = pl.DataFrame({"a": LINE, "b": 9.0 * LINE[::-1] ** 2, "kind": ["p", None, "q"] * 20})
    pipeline = trained(frame, LINE, dtype)
    model = pipeline.estimator
    model.activation = "relu"
    model.coefs_ = [np.full_like(weight, 1.5) for weight in model.coefs_]
    rows = pl.DataFrame({"a": [0.0, 0.5, 0.1], "b": [1.0, value, None], "kind": ["p", "p", None]})
    with pytest.raises(
        DataError, match=f"^the predictions of 1 rows overflow {dtype}: in row 2 the column 'b' "
    ):
        pipeline.checked_outputs(rows)


# Rows.


ROWS = pl.DataFrame({"size": [1.0, 2.0, 3.0, 4.0], "y": [2, None, 1, 2], "w": [1.0, 2.0, 0.5, 0.0]})


def test_known_rows():
    known = known_rows(learn_schema(ROWS, "y", sample_weight="w"), ROWS)
    # Neither the row without a target, nor that of weight zero.
    assert known.frame.rows() == [(1.0,), (3.0,)]
    assert (known.target.to_list(), known.sample_weight.tolist()) == ([2, 1], [1.0, 0.5])
    assert known.n_without_target == 1
    without = known_rows(learn_schema(ROWS, "y", drop=["w"]), ROWS)
    assert (without.target.to_list(), without.sample_weight) == ([2, 1, 2], None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w": pl.Series([1.0, 1.0, None, 1.0])}, "the column 'w' of sample weights lacks 1 values"),
        ({"w": pl.Series([1.0, 1.0, -1.0, 1.0])}, "of sample weights must hold numbers >= 0, some above 0"),
        ({"w": pl.Series([0.0, 1.0, 0.0, 0.0])}, "of sample weights must hold numbers >= 0, some above 0"),
        ({"w": pl.Series(["a", "1", "1", "1"])}, "'w' must hold numbers, got 'a' in row 1"),
        ({"y": pl.Series([None] * 4, dtype=pl.Float64)}, "the target 'y' has no values"),
    ],
)
def test_rows_that_cannot_be_used(changed, message):
    schema = learn_schema(ROWS, "y", sample_weight="w")
    with pytest.raises(DataError, match=message):
        known_rows(schema, ROWS.with_columns(**changed))


@pytest.mark.parametrize("weights", [["a", "b", "a", "b"], ["2020-01-01"] * 4])
def test_weights_must_be_numbers(weights):
    frame = ROWS.with_columns(w=pl.Series(weights))
    with pytest.raises(DataError, match="^the sample weights 'w' must hold numbers$"):
        known_rows(learn_schema(frame, "y", sample_weight="w"), frame)


def test_a_weight_may_be_missing_where_the_target_is():
    changed = ROWS.with_columns(w=pl.Series([1.0, None, 1.0, 1.0]))
    assert len(known_rows(learn_schema(ROWS, "y", sample_weight="w"), changed).target) == 3


def test_labelled_rows_of_another_table():
    schema = learn_schema(ROWS, "y", sample_weight="w")
    rows = rows_of.labelled_rows(schema, ROWS, np.array(["1", "2"]))
    assert rows.frame.rows() == [(1.0,), (3.0,)]
    assert (rows.y.tolist(), rows.sample_weight.tolist()) == (["2", "1"], [1.0, 0.5])
    values = rows_of.labelled_rows(learn_schema(ROWS, "y", drop=["w"]), ROWS[2:], None)
    assert (values.y.tolist(), values.y.dtype, values.sample_weight) == ([1.0, 2.0], np.float64, None)
    with pytest.raises(DataError, match="^there is no row to score$"):
        rows_of.labelled_rows(schema, ROWS[:0], None)
    with pytest.raises(DataError, match="classes the model does not know: 1; it knows 2, 3"):
        rows_of.labelled_rows(schema, ROWS, np.array([2, 3]))


def labelled(y):
    return LabelledRows(pl.DataFrame({"row": np.arange(float(len(y)))}), np.asarray(y))


def test_a_part_is_held_out_by_class():
    y = np.repeat(["a", "b", "c"], [60, 30, 10])
    whole = labelled(y)._replace(sample_weight=np.arange(100.0))
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
    few = labelled(np.arange(19) % 2)
    assert hold_out(few, "classification", None, seed=0) == (few, None)
    assert len(hold_out(few, "classification", 0.5, seed=0)[1].y) == 10
    assert len(hold_out(labelled(np.arange(20) % 2), "classification", None, seed=0)[1].y) == 4


SPLITS = [
    # Numbers of rows of the classes, the fraction, and how many of each are held out, if that is certain.
    ([60, 39, 1], 0.2, [12, 8, 0]),
    ([50, 48, 1, 1], 0.5, [26, 24, 0, 0]),
    ([98, 2], 0.9, None),  # shares alone would leave no row of the second class to train on
    ([30, 2], 0.6, None),
    ([2] * 50, 0.2, None),  # more classes than rows held
    ([2] * 5, 0.5, [1] * 5),
    ([2] * 5, 0.4, None),
    ([2, 1], 1 / 3, [1, 0]),
    ([1, 1, 2], 0.25, [0, 0, 1]),
    ([4, 1], 0.6, [3, 0]),
    ([3, 3], 0.66, [2, 2]),
    ([1] * 9 + [2], 0.1, [0] * 9 + [1]),
]


@pytest.mark.parametrize(("counts", "fraction", "expected"), SPLITS)
def test_every_class_is_trained_on(counts, fraction, expected):
    y = np.repeat(np.arange(len(counts)), counts)
    for seed in range(20):
        kept, held = hold_out(labelled(y), "classification", fraction, seed)
        assert sorted([*kept.frame["row"], *held.frame["row"]]) == list(range(len(y)))
        assert len(held.y) == round(fraction * len(y))
        assert set(kept.y) == set(y)
        if expected is not None:
            assert [int(np.sum(held.y == label)) for label in range(len(counts))] == expected


def test_a_split_is_found_wherever_there_is_one():
    random = np.random.RandomState(0)
    for _ in range(300):
        y = random.randint(random.randint(1, 8), size=random.randint(1, 25))
        fraction = random.uniform(0.02, 0.98)
        n_held, n_classes = round(fraction * len(y)), len(np.unique(y))
        try:
            kept, held = hold_out(labelled(y), "classification", fraction, random.randint(100))
        except DataError:
            # A row of each class must be left, and one held.
            assert not 1 <= n_held <= len(y) - n_classes
        else:
            assert (len(held.y), set(kept.y)) == (n_held, set(y))


@pytest.mark.parametrize(
    ("task", "y", "fraction", "message"),
    [
        ("classification", np.arange(19) % 2, 0.01, "0.01 of 19 rows leaves nothing on one side"),
        ("regression", np.arange(19.0), 0.99, "0.99 of 19 rows leaves nothing on one side"),
        ("classification", np.arange(10), 0.2, "0.2 of 10 rows leaves too few for 10 classes"),
        ("classification", np.arange(6) % 3, 0.6, "0.6 of 6 rows leaves too few for 3 classes"),
    ],
)
def test_no_split_is_possible(task, y, fraction, message):
    with pytest.raises(DataError, match=f"^a test fraction of {message}$"):
        hold_out(labelled(y), task, fraction, seed=0)


def test_different_values_are_no_classes():
    kept, held = hold_out(labelled(np.arange(50.0)), "regression", 0.3, seed=0)
    assert (len(kept.y), len(held.y)) == (35, 15)


# Scores.

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


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_scores_of_values_of_any_magnitude(unit):
    found = score("regression", np.array([1.0, 3.0]) * unit, np.array([2.0, 5.0]) * unit, None)
    assert found["r2"] == pytest.approx(-1.5)
    assert found["mae"] / unit == pytest.approx(1.5)
    assert found["rmse"] / unit == pytest.approx(np.sqrt(2.5))


def test_errors_that_no_float_holds_have_no_score():
    found = score("regression", np.array([1.7e308, -1.7e308]), np.array([-1.7e308, 1.7e308]), None)
    assert (found["mae"], found["rmse"], found["r2"]) == (None, None, pytest.approx(-3.0))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_baseline_is_scikit_learns(task):
    random = np.random.RandomState(0)
    training, X, X_test = random.randint(3, size=50), np.zeros((50, 1)), np.zeros((20, 1))
    if task == "classification":
        expected = dummy.DummyClassifier(strategy="prior").fit(X, training).predict_proba(X_test)
    else:
        expected = dummy.DummyRegressor().fit(X, training).predict(X_test)
    np.testing.assert_allclose(Baseline.fit(task, training).outputs(20), expected)


@pytest.mark.parametrize(
    ("task", "y", "title", "baseline"),
    [
        ("classification", ["b", "a", "b"], "always b", (None, (1, 2), "b")),
        ("classification", [3, 3, 2], "always 3", (None, (1, 2), "3")),
        ("classification", [True, False, True], "always True", (None, (1, 2), "True")),
        ("regression", [1980.0, 1982.0], "always 1981", (1981.0, (), "")),
        ("regression", [1.5e308, 1.5e308], "always 1.5e+308", (1.5e308, (), "")),
        ("regression", [12_344.0, 12_347.0], "always 12,350", (12_345.5, (), "")),
    ],
)
def test_titles_of_baselines(task, y, title, baseline):
    made = Baseline.fit(task, np.array(y))
    assert (made.title, made) == (title, Baseline(*baseline))


@pytest.mark.parametrize(
    "values", [(None,), (None, ()), (1.0, (1, 2)), (None, (0, 2)), (None, (-1,)), (None, (2**53, 1))]
)
def test_impossible_baselines(values):
    with pytest.raises(ValueError, match="a baseline must have a mean, or numbers of rows of classes"):
        Baseline(*values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_have_no_scores(bad):
    assert set(score("classification", CLASSES, np.full((3, 3), bad), CLASSES).values()) == {None}
    assert set(score("regression", np.ones(2), np.array([1.0, bad]), None).values()) == {None}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (209_912.3, "209,900"),
        (12_345, "12,340"),
        (12_355.0, "12,360"),
        (10_000, "10,000"),
        (9_999.6, "10,000"),
        (9_999.4, "9999"),
        (1981, "1981"),
        (-1981.0, "-1981"),
        (0.012361, "0.01236"),
        (7.0, "7"),
        (-1.5e6, "-1,500,000"),
        (12_344_000_000, "12,340,000,000"),
        (9.9996e11, "1,000,000,000,000"),
        (1e12, "1e+12"),
        (3.2e147, "3.2e+147"),
        (1e-4, "0.0001"),
        (9.9e-5, "9.9e-05"),
        (-5e-324, "-4.941e-324"),
        (0, "0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_for_people(value, text):
    assert format_number(value) == text
