"""Data sets: made here, and from scikit-learn."""

import re

import numpy as np
import pytest
from conftest import assert_close

from mlp_xp.datasets import DATASETS, load, one_hot, planar, xor

# made data


def test_xor():
    data = xor()
    np.testing.assert_array_equal(data.X, [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], strict=True)
    np.testing.assert_array_equal(data.y, data.X[:, 0] != data.X[:, 1])
    assert data.y.dtype == np.int64
    assert [data.class_names[index] for index in data.y] == ["false", "true", "true", "false"]


# Computed from the recipe with Python's own sine and cosine, a point at a time.
PLANAR_POINTS = {
    0: (1.204442292254319, 3.5761141481288448),
    1: (0.15870990398255372, -1.4821709003683443),
    2: (0.09524719604502052, -1.2799553276531797),
    199: (-0.5858464101358456, -3.091259938950624),
    200: (-1.0704958072229525, 3.682524609580073),
    201: (-0.0023290599370240955, -0.24877516456411744),
    399: (0.7307808250007513, 3.0683292081876545),
}


def test_planar_is_the_textbooks():
    data = planar()
    assert (data.X.shape, data.X.dtype) == ((400, 2), np.float64)
    for row, point in PLANAR_POINTS.items():
        np.testing.assert_allclose(data.X[row], point, rtol=1e-11)
    np.testing.assert_allclose(data.X.sum(axis=0), [-17.338363670404433, 27.426346947846028], rtol=1e-11)
    assert data.y.tolist() == [0] * 200 + [1] * 200


def test_planar_without_noise_is_a_flower_of_four_petals_a_class():
    data = planar(n_samples=2000, noise=0.0)
    radius, angle = np.hypot(*data.X.T), np.arctan2(data.X[:, 0], data.X[:, 1])
    assert radius.max() == pytest.approx(4.0, abs=1e-4)
    np.testing.assert_allclose(radius, np.abs(4.0 * np.sin(4.0 * angle)), atol=1e-9)
    for petals in (radius[:1000], radius[1000:]):
        assert np.sum(np.diff(np.sign(np.diff(petals))) < 0) == 4


def test_planar_takes_seeds_sizes_and_noise():
    assert planar(10).X.shape == (10, 2)
    assert planar(10).y.tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(planar(10, seed=np.random.RandomState(3)).X, planar(10, seed=3).X)
    assert not np.any(planar(10, seed=3).X == planar(10, seed=4).X)
    moved = [np.abs(planar(400, noise=noise).X - planar(400, noise=0.0).X).mean() for noise in (0.01, 0.1)]
    assert 0.0 < 5.0 * moved[0] < moved[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n_samples": 7}, "`n_samples` must be even, got 7"),
        ({"n_samples": 0}, "`n_samples` must be an integer >= 2, got 0"),
        ({"n_samples": 8.0}, "`n_samples` must be an integer >= 2, got 8.0"),
        ({"noise": -0.1}, "`noise` must be a finite number and >= 0, got -0.1"),
        ({"noise": float("nan")}, "`noise` must be a finite number and >= 0, got nan"),
        ({"seed": "one"}, "`seed` must be an integer >= 0, got 'one'"),
    ],
)
def test_bad_arguments_of_planar(arguments, named):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(named)}$"):
        planar(**arguments)


# data sets by name


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("xor", (4, 2), [2, 2]),
        ("planar", (400, 2), [200, 200]),
        ("moons", (500, 2), [250, 250]),
        ("breast-cancer", (569, 30), [212, 357]),
        ("digits", (1797, 64), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
    ],
)
def test_data_sets_by_name(name, shape, counts):
    pytest.importorskip("sklearn")
    data = load(name)
    assert (data.name, data.X.shape, data.X.dtype) == (name, shape, np.float64)
    assert np.bincount(data.y).tolist() == counts
    assert data.y.dtype == np.int64
    assert len(data.feature_names) == shape[1]
    assert len(data.class_names) == len(counts)
    assert np.isfinite(data.X).all()


def test_every_name_is_tested():
    assert sorted(DATASETS) == ["breast-cancer", "digits", "moons", "planar", "xor"]


@pytest.mark.parametrize(
    ("name", "loader"), [("breast-cancer", "load_breast_cancer"), ("digits", "load_digits")]
)
def test_bundled_data_are_scikit_learns(name, loader):
    bunch = getattr(pytest.importorskip("sklearn.datasets"), loader)()
    data = load(name)
    np.testing.assert_array_equal(data.X, bunch.data)
    np.testing.assert_array_equal(data.y, bunch.target)
    assert list(data.feature_names) == list(bunch.feature_names)
    assert list(data.class_names) == [str(target) for target in bunch.target_names]
    assert {type(text) for text in data.feature_names + data.class_names} == {str}


def test_moons_lie_along_two_half_circles():
    pytest.importorskip("sklearn")
    data = load("moons")
    for label, centre, side in ((0, (0.0, 0.0), 1.0), (1, (1.0, 0.5), -1.0)):
        offset = data.X[data.y == label] - centre
        assert np.hypot(*offset.T).mean() == pytest.approx(1.0, abs=0.05)
        assert (side * offset[:, 1]).mean() == pytest.approx(2.0 / np.pi, abs=0.05)


@pytest.mark.parametrize("name", ["iris", "XOR", "", None])
def test_unknown_data_sets_list_the_known_ones(name):
    names = "['breast-cancer', 'digits', 'moons', 'planar', 'xor']"
    with pytest.raises(ValueError, match=f"^{re.escape(f'`name` must be one of {names}, got {name!r}')}$"):
        load(name)


# one-hot


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 7])
def test_one_hot_against_scikit_learn(n_classes, dtype):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    classes = np.random.RandomState(0).randint(n_classes, size=50).astype(dtype)
    encoder = preprocessing.OneHotEncoder(categories=[list(range(n_classes))], sparse_output=False)
    np.testing.assert_array_equal(
        one_hot(classes, n_classes), encoder.fit_transform(classes[:, None]), strict=True
    )


def test_one_hot_leaves_columns_for_classes_that_do_not_come():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    expected = preprocessing.LabelBinarizer().fit(range(5)).transform([4, 1, 1])
    np.testing.assert_array_equal(one_hot(np.array([4, 1, 1]), 5), expected)
    np.testing.assert_array_equal(one_hot([4, 1, 1], 5), expected)
    assert one_hot(np.array([], dtype=int), 3).shape == one_hot([], 3).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("like_dtype", ["float32", "float64"])
def test_one_hot_lives_where_it_should(library, dtype, like_dtype):
    classes, expected = [1, 0, 1], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    there, X = library.array(classes, dtype), library.array(np.ones((3, 2)), like_dtype)
    for given in (there, np.array(classes, dtype), classes):
        assert_close(one_hot(given, 2, like=X), expected, X, rtol=0.0)
    assert_close(one_hot(there, 2, like=np.ones(1, like_dtype)), expected, np.ones(1, like_dtype), rtol=0.0)
    default = there if dtype.startswith("float") else library.xp.ones(1, device=library.device)
    assert_close(one_hot(there, 2), expected, default, rtol=0.0)


@pytest.mark.parametrize(
    ("classes", "n_classes", "message"),
    [
        ([0, 3], 3, r"`classes` must lie in \[0, 3\), got values from 0 to 3"),
        ([-1, 2], 3, r"`classes` must lie in \[0, 3\), got values from -1 to 2"),
        ([0.5, 1.0], 2, "`classes` must be whole numbers, got some that are not"),
        ([0.0, np.nan], 2, "`classes` must be whole numbers, got some that are not"),
        ([0.0, np.inf], 2, r"`classes` must lie in \[0, 2\), got values from 0 to inf"),
        ([True, False], 1, r"`classes` must lie in \[0, 1\), got values from 0 to 1"),
        ([0, 1], 0, "`n_classes` must be an integer >= 1, got 0"),
        (["a", "b"], 2, r"`classes` must be whole numbers .*, got <U1 of shape \(2,\)"),
        (
            [[0], [1]],
            2,
            r"`classes` must be whole numbers .*, got int64 of shape \(2, 1\)",
        ),
        (1, 2, r"`classes` must be whole numbers of shape \(n_samples,\), got int64 of shape \(\)"),
    ],
)
def test_one_hot_of_bad_classes(classes, n_classes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        one_hot(np.array(classes), n_classes)
