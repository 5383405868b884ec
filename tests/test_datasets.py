"""Data sets, and tables of users: what is read from good files and said about bad ones."""

import gc
import re
import zipfile

import numpy as np
import pytest

from mlp_xp.datasets import DATASETS, DataError, load, one_hot, planar, read_table, xor

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
    assert one_hot(np.array([], dtype=int), 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("classes", "n_classes", "message"),
    [
        ([0, 3], 3, r"`classes` must lie in \[0, 3\), got values from 0 to 3"),
        ([-1, 2], 3, r"`classes` must lie in \[0, 3\), got values from -1 to 2"),
        ([0.0, 1.0], 2, r"`classes` must be integers .*, got float64 of shape \(2,\)"),
        ([True, False], 2, r"`classes` must be integers .*, got bool of shape \(2,\)"),
        (["a", "b"], 2, r"`classes` must be integers .*, got <U1 of shape \(2,\)"),
        ([[0], [1]], 2, r"`classes` must be integers of shape \(n_samples,\), got int64 of shape \(2, 1\)"),
        (1, 2, r"`classes` must be integers of shape \(n_samples,\), got int64 of shape \(\)"),
    ],
)
def test_one_hot_of_bad_classes(classes, n_classes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        one_hot(np.array(classes), n_classes)


# tables


def csv(folder, text, name="table.csv"):
    pytest.importorskip("polars")
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def npz(folder, **arrays):
    path = folder / "table.npz"
    np.savez(path, **arrays)
    return path


X = np.array([[1.0, 2.5], [3.0, -4.0], [5.0, 6.25]])

GOOD_TARGETS = [
    (["7", "9", "7"], [0, 1, 0], ("7", "9")),
    (["2", "10", "-1"], [1, 2, 0], ("-1", "2", "10")),
    (["1.0", "0.0", "3.0"], [1, 0, 2], ("0", "1", "3")),
    (["lemon", "apple", "lemon"], [1, 0, 1], ("apple", "lemon")),
    (["10", "9", "x"], [0, 1, 2], ("10", "9", "x")),
    (["0.5", "-2", "3"], [0.5, -2.0, 3.0], None),
]


@pytest.mark.parametrize(("cells", "y", "class_names"), GOOD_TARGETS)
def test_targets_of_a_csv_file(cells, y, class_names, tmp_path):
    rows = [f"{a},{b},{cell}\n" for (a, b), cell in zip(X, cells, strict=True)]
    data = read_table(csv(tmp_path, "mass,width,kind\n" + "".join(rows)))
    np.testing.assert_array_equal(data.X, X, strict=True)
    np.testing.assert_array_equal(data.y, np.array(y), strict=True)
    assert data.class_names == class_names
    assert (data.name, data.feature_names, data.target_name) == ("table.csv", ("mass", "width"), "kind")


@pytest.mark.parametrize(
    ("target", "y", "class_names"),
    [
        (np.array([7, 9, 7]), [0, 1, 0], ("7", "9")),
        (np.array([200, 3, 200], dtype=np.uint8), [1, 0, 1], ("3", "200")),
        (np.array([1.0, 0.0, 3.0], dtype=np.float32), [1, 0, 2], ("0", "1", "3")),
        (np.array([[2], [1], [2]]), [1, 0, 1], ("1", "2")),
        (np.array(["lemon", "apple", "lemon"]), [1, 0, 1], ("apple", "lemon")),
        (np.array([0.5, -2.0, 3.0]), [0.5, -2.0, 3.0], None),
        (np.array([[0.5], [-2.0], [3.0]], dtype=np.float32), [0.5, -2.0, 3.0], None),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_targets_of_an_npz_file(target, y, class_names, dtype, tmp_path):
    data = read_table(str(npz(tmp_path, X=X.astype(dtype), y=target, other=np.ones(7))))
    np.testing.assert_array_equal(data.X, X, strict=True)
    np.testing.assert_array_equal(data.y, np.array(y), strict=True)
    assert data.class_names == class_names
    assert (data.name, data.feature_names, data.target_name) == ("table.npz", ("x0", "x1"), "y")


def test_bool_targets_are_two_classes(tmp_path):
    from_csv = read_table(csv(tmp_path, "a,y\n1,true\n2,false\n3,true\n"))
    from_npz = read_table(npz(tmp_path, X=X, y=np.array([True, False, True])))
    assert from_csv.y.tolist() == from_npz.y.tolist() == [1, 0, 1]
    assert len(from_csv.class_names) == len(from_npz.class_names) == 2


def test_large_whole_numbers_keep_their_digits_as_class_names(tmp_path):
    identifiers = np.array([2**63 + 1, 2**63, 5], dtype=np.uint64)
    data = read_table(npz(tmp_path, X=X, y=identifiers))
    assert [data.class_names[index] for index in data.y] == [str(number) for number in identifiers]


@pytest.mark.parametrize("task", ["auto", "regression"])
@pytest.mark.parametrize("cells", [("1e20", "2.5e20", "7e20"), ("99999999999999999999", "1", "2")])
def test_numbers_beyond_64_bits_are_targets(task, cells, tmp_path):
    path = csv(tmp_path, "a,y\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells)))
    data = read_table(path, task=task)
    if task == "regression":
        np.testing.assert_allclose(data.y, [float(cell) for cell in cells], rtol=1e-15)
    else:
        assert np.unique(data.y).size == 3


def test_whole_numbers_that_hardly_repeat_are_amounts(tmp_path):
    prices = np.arange(100, 130)
    path = npz(tmp_path, X=np.ones((30, 2)), y=prices)
    assert read_table(path).class_names is None
    assert len(read_table(path, task="classification").class_names) == 30
    codes = npz(tmp_path, X=np.ones((60, 2)), y=np.repeat(prices, 2))
    assert len(read_table(codes).class_names) == 30


def test_any_column_can_be_the_target(tmp_path):
    data = read_table(csv(tmp_path, "kind,mass,kept\nlemon,120,true\napple,150,false\n"), target="kind")
    np.testing.assert_array_equal(data.X, [[120.0, 1.0], [150.0, 0.0]], strict=True)
    assert (data.feature_names, data.target_name, data.y.tolist()) == (("mass", "kept"), "kind", [1, 0])
    data = read_table(npz(tmp_path, X=X, y=[0, 1, 0], label=[0, 1, 1]), target="label")
    assert (data.target_name, data.y.tolist()) == ("label", [0, 1, 1])


def test_the_task_can_be_chosen(tmp_path):
    whole = csv(tmp_path, "a,y\n1,10\n2,30\n3,20\n")
    regression = read_table(whole, task="regression")
    np.testing.assert_array_equal(regression.y, [10.0, 30.0, 20.0], strict=True)
    assert regression.class_names is None
    assert read_table(whole, task="auto").y.tolist() == [0, 2, 1]
    parts = csv(tmp_path, "a,y\n1,0.5\n2,2\n3,0.5\n")
    classification = read_table(parts, task="classification")
    np.testing.assert_array_equal(classification.y, [0, 1, 0], strict=True)
    assert [float(name) for name in classification.class_names] == [0.5, 2.0]
    constant = csv(tmp_path, "a,y\n1,5\n2,5\n")
    np.testing.assert_array_equal(read_table(constant, task="regression").y, [5.0, 5.0], strict=True)
    with pytest.raises(
        ValueError, match=r"^`task` must be one of \['auto', .*'regression'\], got 'ranking'$"
    ):
        read_table(whole, task="ranking")


@pytest.mark.parametrize(
    "text",
    [
        "a,b,y\r\n1,2.5,0\r\n3,-4,1\r\n5,6.25,0\r\n",
        "a, b, y\n1, 2.5, 0\n3, -4, 1\n5, 6.25, 0\n",
        "\ufeffa,b,y\n1,2.5,0\n3,-4,1\n5,6.25,0\n",
        'a,b,y\n"1","2.5",0\n"3","-4",1\n"5","6.25",0\n',
        "a,b,y\n1e0,25e-1,0\n3.,-4,1\n5,+6.25,0",
    ],
    ids=["carriage returns", "spaces", "byte order mark", "quotes", "exponents"],
)
def test_usual_ways_to_write_a_table(text, tmp_path):
    data = read_table(csv(tmp_path, text, "TABLE.CSV"))
    np.testing.assert_array_equal(data.X, X, strict=True)
    assert data.y.tolist() == [0, 1, 0]


def assert_refused(path, problem, **options):
    with pytest.raises(DataError) as raised:
        read_table(path, **options)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert re.search(problem, message.removeprefix(f"{path}: "))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.csv", "no such file"),
        ("missing.npz", "no such file"),
        ("no/such/folder.csv", "no such file"),
        ("table.txt", r"\.csv or \.npz file, got '\.txt'"),
        ("table.csv.gz", r"\.csv or \.npz file, got '\.gz'"),
        ("table", r"\.csv or \.npz file, got .*no suffix"),
        (".csv", r"\.csv or \.npz file, got .*no suffix"),
    ],
)
def test_names_that_are_no_table(name, problem, tmp_path):
    assert_refused(tmp_path / name, problem)


@pytest.mark.parametrize("name", ["x.csv", "x.npz"])
def test_folders(name, tmp_path):
    (tmp_path / name).mkdir()
    assert_refused(tmp_path / name, "director|folder|not a file")


BAD_CSV = {
    "no such target": ("a,b,y\n1,2,0\n3,4,1\n", {"target": "z"}, r"no column 'z'; the columns are a, b, y"),
    "a line break in a name": ('"a\nc",y\n1,2\n3,4\n', {"target": "z"}, "no column 'z'"),
    "text": ("a,b,y\n1,2,0\n3,red,1\n", {}, r"column 'b' must hold numbers, got 'red'"),
    "a date": ("a,b,y\n2020-01-31,2,0\n2020-02-29,3,1\n", {}, r"column 'a' .*numbers, got '2020-01-31'"),
    "NA": ("a,b,y\n1,2,0\n3,NA,1\n", {}, r"column 'b' must hold numbers, got 'NA'"),
    "one name twice but for a space": ("a, a,y\n1,2,0\n3,4,1\n", {}, "not a readable CSV file .*'a'"),
    "no header": ("1,2.5,0\n3,-4,1\n5,6.25,0\n", {}, "the first line must name the columns, got 1, 2.5, 0"),
    "a digit separator": ("a,b,y\n1,1_000,0\n3,2_000,1\n", {}, r"'b'.*1_000"),
    "an empty cell": ("a,b,y\n1,2,0\n3,,1\n", {}, r"1 missing .*column 'b', data row 2"),
    "an empty column": ("a,b,y\n1,,0\n3,,1\n", {}, r"missing.*'b'|'b'.*(missing|numbers)"),
    "an empty line": ("a,b,y\n1,2,0\n\n3,4,1\n", {}, r"missing .*column 'a', data row 2"),
    "NaN": ("a,b,y\n1,NaN,0\n3,4,1\n", {}, r"1 missing .*column 'b', data row 1"),
    "nan": ("a,b,y\n1,nan,0\n3,4,1\n", {}, r"'b'"),
    "inf": ("a,b,y\n1,2,0\n3,inf,1\ninf,-inf,1\n", {}, r"3 .*infinite values; .*column 'b', data row 2"),
    "Infinity": ("a,b,y\n1,2,0\n3,Infinity,1\n", {}, r"'b'"),
    "too large": ("a,b,y\n1,2,0\n3,1e400,1\n", {}, r"infinite values; .*column 'b', data row 2"),
    "target missing": ("a,y\n1,0\n2,\n3,1\n4,\n", {}, r"target 'y' is missing .*2 rows; the first is 2"),
    "text target missing": ("a,y\n1,dog\n2,\n3,cat\n", {}, r"target 'y' is missing .*1 rows; the first is 2"),
    "bool target missing": (
        "a,y\n1,true\n2,\n3,false\n",
        {},
        r"target 'y' is missing .*1 rows; the first is 2",
    ),
    "target infinite": ("a,y\n1,0.5\n2,1.5\n3,inf\n", {}, r"target 'y' .*infinite in 1 rows; the first is 3"),
    "one class": ("a,y\n1,4\n2,4\n", {}, r"target 'y' .*two classes, got only 4"),
    "one text class": ("a,y\n1,dog\n2,dog\n", {}, r"target 'y' .*two classes, got only '?dog"),
    "one class on two lines": ('a,y\n1,"d\nog"\n2,"d\nog"\n', {}, r"target 'y' .*two classes"),
    "one bool class": ("a,y\n1,true\n2,true\n", {}, r"target 'y' .*two classes"),
    "text for regression": ("a,y\n1,dog\n2,cat\n", {"task": "regression"}, r"'y' .*regression, got 'dog'"),
    "one column": ("a\n1\n2\n", {}, "one feature and the target"),
    "semicolons": ("a;b;y\n1;2;0\n3;4;1\n", {}, "one feature and the target"),
    "one row": ("a,y\n1,0\n", {}, "at least 2 rows are needed, got 1"),
    "header only": ("a,b,y\n", {}, "at least 2 rows are needed, got 0"),
    "header without an end": ("a,b,y", {}, "at least 2 rows are needed, got 0"),
    "empty": ("", {}, "not a readable CSV file .*empty"),
    "a long row": ("a,b,y\n1,2,0\n1,2,3,4\n", {}, "not a readable CSV file .*more fields"),
    "a short row": ("a,b,y\n1,2,0\n1,2\n", {}, "target 'y' is missing .*the first is 2"),
    "noise": (np.random.RandomState(0).bytes(4000), {}, "not a readable CSV file"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), {}, "."),
    "UTF-16": ("a,b,y\n1,2,0\n3,4,1\n".encode("utf-16"), {}, "."),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv_files(name, tmp_path):
    text, options, problem = BAD_CSV[name]
    assert_refused(csv(tmp_path, text), problem, **options)


def holed(value):
    values = X.copy()
    values[1, 0] = value
    return values


BAD_ARRAYS = {
    "no X": ({"Z": X, "y": [0, 1, 0]}, "no array 'X'; the arrays are Z, y"),
    "no y": ({"X": X, "z": [0, 1, 0]}, "no array 'y'; the arrays are X, z"),
    "nothing": ({}, "no array 'X'"),
    "flat X": ({"X": X[:, 0], "y": [0, 1, 0]}, r"X must be a table .* shape \(3,\)"),
    "deep X": ({"X": X[:, :, None], "y": [0, 1, 0]}, r"X must be a table .* shape \(3, 2, 1\)"),
    "no columns": ({"X": X[:, :0], "y": [0, 1, 0]}, r"X must be a table .* shape \(3, 0\)"),
    "no rows": ({"X": X[:0], "y": []}, "at least 2 rows are needed, got 0"),
    "text": ({"X": X.astype(str), "y": [0, 1, 0]}, "X must be a table of numbers, got <U"),
    "complex numbers": ({"X": X + 1j, "y": [0, 1, 0]}, "X must be a table of numbers, got complex128"),
    "dates": ({"X": X.astype("M8[D]"), "y": [0, 1, 0]}, "X must be a table of numbers, got datetime64"),
    "records": (
        {"X": np.zeros(3, dtype=[(f"feature_{index}", "f8") for index in range(600)]), "y": [0, 1, 0]},
        "not a readable npz file|X must be a table",
    ),
    "fewer y": ({"X": X, "y": [0, 1]}, r"y must have shape \(3,\).*got \(2,\)"),
    "one y": ({"X": X, "y": 0}, r"y must have shape \(3,\).*got \(\)"),
    "wide y": ({"X": X, "y": np.eye(3)}, r"y must have shape \(3,\).*got \(3, 3\)"),
    "NaN": ({"X": holed(np.nan), "y": [0, 1, 0]}, "1 missing .*column 'x0', data row 2"),
    "inf": ({"X": holed(-np.inf), "y": [0, 1, 0]}, "infinite values; .*column 'x0', data row 2"),
    "NaN in y": ({"X": X, "y": [0.5, np.nan, 2.0]}, "target 'y' is missing .*1 rows; the first is 2"),
    "inf in y": ({"X": X, "y": [0.0, 1.0, np.inf]}, "target 'y' .*infinite in 1 rows; the first is 3"),
    "no date in y": (
        {"X": X, "y": np.array(["2020-01-01", "NaT", "2021-01-01"], dtype="M8[D]")},
        r"\by\b",
    ),
    "complex y": ({"X": X, "y": [1j, 2.0, 1j]}, r"\by\b.*complex"),
    "bytes beyond ASCII": ({"X": X, "y": np.array([b"a", b"\xe9", b"a"])}, r"\by\b"),
    "one class": ({"X": X, "y": [1, 1, 1]}, "target 'y' .*two classes, got only 1"),
    "objects in X": ({"X": X.astype(object), "y": [0, 1, 0]}, "not a readable npz file .*[Oo]bject"),
    "objects in y": ({"X": X, "y": np.array([0, "a", None])}, "not a readable npz file .*[Oo]bject"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_in_npz_files(name, tmp_path):
    arrays, problem = BAD_ARRAYS[name]
    assert_refused(npz(tmp_path, **arrays), problem)


def test_targets_that_an_npz_file_lacks(tmp_path):
    path = npz(tmp_path, X=X, y=[0, 1, 0])
    assert_refused(path, "no array 'label'; the arrays are X, y", target="label")


def npy(folder):
    np.save(folder / "array.npy", X)
    return (folder / "array.npy").read_bytes()


def flipped(content):
    middle = content.index(X.tobytes())
    return content[:middle] + b"\xff" + content[middle + 1 :]


DAMAGED_NPZ = {
    "half": lambda folder: (content := npz(folder, X=X, y=[0, 1, 0]).read_bytes())[: len(content) // 2],
    "the beginning": lambda folder: npz(folder, X=X, y=[0, 1, 0]).read_bytes()[:50],
    "one byte": lambda folder: flipped(npz(folder, X=X, y=[0, 1, 0]).read_bytes()),
    "nothing": lambda folder: b"",
    "text": lambda folder: b"a,b,y\n1,2,0\n3,4,1\n",
    "noise": lambda folder: np.random.RandomState(0).bytes(1000),
    "one array": npy,
}


def test_damaged_npz_files(tmp_path):
    for name, content in DAMAGED_NPZ.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content(tmp_path))
        assert_refused(path, "not a readable npz file")
    # A file left open would otherwise be found in the middle of a later test.
    gc.collect()


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_pickles_are_never_run(tmp_path):
    path = npz(tmp_path, X=X, y=np.array([Bomb(), Bomb(), Bomb()], dtype=object))
    with pytest.raises(SystemExit, match="a pickle was run"):
        np.load(path, allow_pickle=True)["y"]
    assert_refused(path, "not a readable npz file")


def test_archives_of_other_things(tmp_path):
    path = tmp_path / "other.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X", "1 2 3")
        archive.writestr("y", "0 1 0")
    assert_refused(path, "X|not a readable npz file")
