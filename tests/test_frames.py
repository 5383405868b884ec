"""DataFrames are read as the same rows in a file: pandas' many types, polars, Arrow."""

import datetime as dt
import io
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

pl = pytest.importorskip("polars")
pd = pytest.importorskip("pandas")

frames = pytest.importorskip("mlp_xp.tables._frames")
tables = pytest.importorskip("mlp_xp.tables")
read_table = pytest.importorskip("mlp_xp.tables._reading").read_table
read_csv = pytest.importorskip("mlp_xp.tables._text_files").read_csv
DataError, learn_schema = tables.DataError, tables.learn_schema
read_frame, write_frame = tables.read_frame, tables.write_frame

as_table = frames.as_table

BERLIN = "Europe/Berlin"
NAN, NAT, NA = float("nan"), pd.NaT, pd.NA


def csv_table(frame, **options):
    return read_csv(frame.to_csv(index=False, **options).encode(), None)


def values_of(column, **options):
    """Return a column of pandas as it is taken."""
    return as_table(pd.DataFrame({"a": column})).frame["a"]


def objects(*values):
    return pd.Series(values, dtype=object)


def moments(*text, zone=None):
    return pd.Series(pd.to_datetime(list(text), format="ISO8601")).dt.tz_localize(zone)


NUMPY_DTYPES = [*np.typecodes["AllInteger"], "e", "f", "d", "g", "?"]

# Columns of pandas whose CSV text has the same values.
COLUMNS = {
    **{f"numpy {np.dtype(code).name}": pd.Series(np.array([0, 1, 1], dtype=code)) for code in NUMPY_DTYPES},
    **{
        f"fractions in {name}": pd.Series([0.1, -2.7, 1e-4, None], dtype=name)
        for name in ("float16", "float32", "float64", "Float32", "Float64")
    },
    "float32 beyond float16": pd.Series([16777216.0, 3.4e38, 1e-38, 123456.79], dtype="float32"),
    "longdouble": pd.Series(np.array([0.1, 1 / 3, 2.5e300], dtype="longdouble")),
    **{
        f"nullable {name}": pd.Series([0, 1, None], dtype=name)
        for name in (*(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)), "boolean")
    },
    "large Int64": pd.Series([2**62 + 1, None, -(2**62)], dtype="Int64"),
    "large uint64": pd.Series([2**64 - 1, 0, 2**63 + 5], dtype="uint64"),
    "integers and NaN": pd.Series([1, None, 3]),
    "infinite parts of nullable floats": pd.Series([1.5, None, NAN], dtype="Float64"),
    "truth values": pd.Series([True, False, True]),
    "truth values and None": objects(True, None, False),
    "NumPy's truth values": objects(np.True_, NA, np.False_),
    "text": pd.Series(["x", None, "y z", ' "q", ; ', "NA", ""]),
    "text of objects": objects("x", NAN, "y"),
    "text with line breaks": pd.Series(["two\nlines", "one", "a\tb"]),
    "Unicode": pd.Series(["Ünïcödé", "日本", "😀"]),
    **{
        f"{dtype} text": pd.Series(["x", None, "z"], dtype=dtype)
        for dtype in ("string[python]", "str", "string")
    },
    "text of numbers": pd.Series(["1,5", "2,25", None]),
    "text of dates": pd.Series(["1/31/2020", "2/1/2020", None]),
    "text of truth values": pd.Series(["TRUE", "false", None]),
    "text that means missing": pd.Series(["?", "NA", "1.5", " 2 "]),
    "categories of text": pd.Series(["x", None, "y"], dtype="category"),
    "ordered categories": pd.Series(pd.Categorical(["low", "high"], ["low", "mid", "high"], ordered=True)),
    "categories of integers": pd.Series([3, None, 1], dtype="category"),
    "categories of floats": pd.Series([0.5, None, 1e-7], dtype="category"),
    "categories of truth values": pd.Series([True, False], dtype="category"),
    "categories of dates": moments("2020-01-31", None, "2020-02-29").astype("category"),
    "mixed NumPy scalars": objects(np.int8(1), np.float32(0.1), np.float64(0.3), np.uint64(7), None),
    "Python's numbers": objects(1, 2.5, None, NAN),
    "decimals": objects(Decimal("0.10"), Decimal("1E+3"), Decimal("NaN"), None),
    "decimals and numbers": objects(Decimal("0.1"), 1, 2.5, NA),
    "large integers": objects(2**70, 1, -(10**30)),
    "large integers and fractions": objects(2**70, 0.5, 10**30),
    "truth values and numbers": objects(True, 1, 0, None),
    "numbers and text": objects(1, "x", 2.5, None),
    "numbers and text of numbers": objects(1, "2.5", np.float32(0.1), 1e-7),
    "dates and text of dates": objects(dt.date(2020, 1, 31), "2020-02-29"),
    "everything": objects(1, "x", True, dt.date(2020, 1, 1), pd.Timestamp("2020-01-01"), 0.5, None, NAT),
    "days": objects(dt.date(2020, 1, 31), None, dt.date(1969, 12, 31)),
    "Python's moments": objects(dt.datetime(2020, 1, 31, 12, 30), None, dt.datetime(9999, 1, 1)),
    "days and moments": objects(dt.date(2020, 1, 31), dt.datetime(2020, 1, 31, 12), NAT),
    "timestamps of objects": objects(pd.Timestamp("2020-01-31 12:00:00.25"), NAT),
    "NumPy's moments": objects(np.datetime64("2020-01-31"), np.datetime64("NaT")),
    "moments": moments("2020-01-31 12:00", None, "1969-12-31 23:59:59.999999"),
    "midnights": moments("2020-01-31", "2020-02-29", None),
    "nanoseconds": moments("2020-01-31 12:00:00.123456789", "1969-12-31 23:59:59.999999999"),
    **{
        f"moments in {unit}": moments("2020-01-31 12:00", None).astype(f"M8[{unit}]")
        for unit in ("s", "ms", "ns")
    },
    "moments in a zone": moments("2020-01-31 23:30", "2020-07-01 00:30", None, zone=BERLIN),
    "moments in UTC": moments("2020-01-31 23:30", None, zone="UTC"),
    "objects with zones": objects(pd.Timestamp("2020-01-31 23:30", tz=BERLIN), None),
    "two zones": objects(pd.Timestamp("2020-01-31", tz=BERLIN), pd.Timestamp("2020-01-31", tz="UTC")),
    "Python's zones": objects(dt.datetime(2020, 1, 31, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5)))),
    "times of day": objects(dt.time(6, 30), None, dt.time(23, 59, 59, 250_000)),
    "sparse": pd.Series(pd.arrays.SparseArray([0, 0, 1.5])),
    "one missing value": objects("x", None),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_pandas_are_read_as_their_csv_file(name):
    """By the schema of either, to the bit."""
    frame = pd.DataFrame({"x": np.arange(len(COLUMNS[name])) / 7, "a": COLUMNS[name]})
    frame.index = [f"row {index}" for index in range(len(frame))]
    text, table = csv_table(frame), as_table(frame)
    for learnt_from in (text, table):
        schema = learn_schema(learnt_from, keep=["a"])
        values = schema.read(table.frame)["a"]
        assert values.equals(schema.read(text.frame)["a"])
        assert values.count() >= 1


@pytest.mark.parametrize(
    "name",
    [
        *(
            "numpy int8",
            "numpy bool",
            "fractions in float32",
            "fractions in Float64",
            "nullable Int8",
            "text",
        ),
        *(
            "nullable boolean",
            "large uint64",
            "integers and NaN",
            "truth values and None",
            "decimals",
            "days",
        ),
        *("categories of integers", "categories of floats", "Python's numbers", "numbers and text"),
        *("large integers", "everything", "text of truth values", "text of dates"),
    ],
)
def test_categories_of_pandas_are_named_as_in_their_csv_file(name):
    frame = pd.DataFrame({"a": COLUMNS[name]})
    text, table = csv_table(frame), as_table(frame)
    schema = learn_schema(text, categorical=["a"])
    assert schema.read(table.frame)["a"].equals(schema.read(text.frame)["a"])


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        (pd.Series([1, 2], dtype="int8"), pl.Int8, [1, 2]),
        (pd.Series([1, None], dtype="Int16"), pl.Int16, [1, None]),
        (pd.Series([2**63, None], dtype="UInt64"), pl.UInt64, [2**63, None]),
        (pd.Series([True, None], dtype="boolean"), pl.Boolean, [True, None]),
        (pd.Series([0.5, None], dtype="float64"), pl.Float64, [0.5, None]),
        (pd.Series([0.1], dtype="float16"), pl.Float64, [0.1]),
        (pd.Series(["x", None]), pl.String, ["x", None]),
        (pd.Series(["x", None], dtype="category"), pl.String, ["x", None]),
        (pd.Series([2, None], dtype="category"), pl.Int64, [2, None]),
        (objects(None, NAN, NAT, NA), pl.Null, [None] * 4),
        (objects(), pl.Null, []),
        (objects(1, True, None), pl.String, ["1", "True", None]),
        (objects(1, np.float32(0.1)), pl.Float64, [1.0, 0.1]),
        (objects(2**70), pl.String, [str(2**70)]),
        (objects(10**400, 1), pl.String, [str(10**400), "1"]),
        (objects("x", 1.0, 2**70), pl.String, ["x", "1.0", str(2**70)]),
        (objects(dt.date(2020, 1, 1), NAT), pl.Date, [dt.date(2020, 1, 1), None]),
        (moments("2020-01-01 00:30", zone=BERLIN), pl.Datetime("us"), [dt.datetime(2019, 12, 31, 23, 30)]),
        (pd.Series(pd.to_timedelta(["36h", None])), pl.Duration("us"), [dt.timedelta(days=1.5), None]),
        (objects(np.timedelta64(90, "s"), None), pl.Duration("us"), [dt.timedelta(seconds=90), None]),
        (
            objects(dt.timedelta(1), pd.Timedelta(2, "D")),
            pl.Duration("us"),
            [dt.timedelta(1), dt.timedelta(2)],
        ),
        (objects(dt.time(6)), pl.Time, [dt.time(6)]),
    ],
)
def test_types_of_columns(column, dtype, values):
    found = values_of(column)
    assert (found.dtype, found.to_list()) == (dtype, values)


# Columns that hold what a table does not.
ODD = {
    "dictionaries": objects({}, {"a": 1}),
    "lists": objects([1], [2, 3]),
    "arrays": objects(np.zeros(2), np.ones(2)),
    "bytes": objects(b"x", b"y"),
    "complex numbers": pd.Series([1j, 2.0]),
    "complex objects": objects(1j, None),
    "fractions": objects(Fraction(1, 3), Fraction(1, 2)),
    "periods": pd.Series(pd.period_range("2020-01", periods=2, freq="M")),
    "intervals": pd.Series(pd.cut([1, 5], [0, 2, 6])),
    "functions": objects(len, print),
    "types": objects(int, str),
    "one odd value": objects("x", {}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_columns_matter_only_if_they_are_used(name):
    frame = pd.DataFrame({"x": [0.5, 1.5], "kind": ["u", "v"], "a": ODD[name]})
    table = as_table(frame)
    schema = learn_schema(frames.RawTable(table.frame.drop("a")))
    assert schema.read(table.frame).rows() == [(0.5, "u"), (1.5, "v")]
    with pytest.raises(
        DataError, match="the column 'a' must hold numbers, text or dates, got Object; --drop"
    ):
        learn_schema(table)
    assert learn_schema(table, drop=["a"]).names("number", "category") == ["x", "kind"]
    for cells in (["1.5", "2"], ["2020-01-31", "2020-02-29"], ["true", "false"], ["p", "q"]):
        used = learn_schema(pl.DataFrame({"x": [0.5, 1.5], "a": cells}))
        with pytest.raises(DataError, match=r"^the column 'a' must hold .*, got .* in row (1|2)"):
            used.read(table.frame)


def test_spans_are_no_text():
    spans = as_table(pd.DataFrame({"a": pd.to_timedelta(["36h", "1h"])}))
    schema = learn_schema(spans)
    assert schema.read(spans.frame)["a"].to_list() == [1.5, 1 / 24]
    with pytest.raises(DataError, match="'a' must hold durations"):
        schema.read(pl.DataFrame({"a": ["1 days 12:00:00", "0 days 01:00:00"]}))


# names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([" a ", "b\n"], ["a", "b"]),
        ([0, 1], ["0", "1"]),
        ([1.5, True], ["1.5", "True"]),
        (["", " "], ["Unnamed: 0", "Unnamed: 1"]),
        ([("a", "b"), ("a", "c")], ["('a', 'b')", "('a', 'c')"]),
        (["ä", "日"], ["ä", "日"]),
    ],
)
def test_names_of_columns(names, expected):
    assert as_table(pd.DataFrame([[1, 2]], columns=names)).frame.columns == expected


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a "], [1, "1"], [" x", "x\t"]])
def test_names_that_are_equal(names):
    problem = f"^two columns have the same name: {str(names[0]).strip()}$"
    with pytest.raises(DataError, match=problem):
        as_table(pd.DataFrame([[1, 2]], columns=names))
    if len({*map(str, names)}) == 2:
        with pytest.raises(DataError, match=problem):
            as_table(pl.DataFrame([[1], [2]], schema=[*map(str, names)]))


def test_names_that_are_equal_in_arrow():
    pa = pytest.importorskip("pyarrow")
    for names in (["a", "a"], ["a", " a"]):
        with pytest.raises(DataError, match=r"a"):
            as_table(pa.table([pa.array([1]), pa.array([2])], names=names))


# frames


@pytest.mark.parametrize(
    "index",
    [
        [5, 5],
        ["x", "y"],
        pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
        pd.date_range("2020", periods=2),
        [1, 0],
    ],
)
def test_the_index_does_not_matter(index):
    frame = pd.DataFrame(
        {"a": [1.5, 2.5], "b": ["x", None], "c": pd.Series([1, None], dtype="Int64").array}, index
    )
    assert as_table(frame).frame.rows() == [(1.5, "x", 1), (2.5, None, None)]


def test_parts_of_frames():
    frame = pd.DataFrame({"a": np.arange(6.0), "b": list("uvwxyz"), "c": pd.array([1, None] * 3)})
    assert as_table(frame.iloc[::-2]).frame.rows() == [(5, "z", None), (3, "x", None), (1, "v", None)]
    assert as_table(frame.loc[[True, False] * 3, ["c", "a"]]).frame.rows() == [(1, 0), (1, 2), (1, 4)]


def test_empty_frames():
    assert as_table(pd.DataFrame()).frame.shape == (0, 0)
    assert as_table(pd.DataFrame({"a": [], "b": []})).frame.shape == (0, 2)
    for name, column in COLUMNS.items():
        assert values_of(column.head(0)).len() == 0, name
    schema = learn_schema(pl.DataFrame({"a": ["1.5"], "b": ["x"]}))
    assert schema.read(as_table(pd.DataFrame({"a": [], "b": []})).frame).shape == (0, 2)


def test_frames_are_not_changed():
    frame = pd.DataFrame({" a ": [0.1, NAN], "b": objects(1, "x"), "c": moments("2020", "2021", zone="UTC")})
    before = frame.copy(deep=True)
    as_table(frame)
    pd.testing.assert_frame_equal(frame, before)
    other = pl.DataFrame({" a ": [1]})
    assert (as_table(other).frame.columns, other.columns) == (["a"], [" a "])


@pytest.mark.parametrize("thing", [None, 1, [[1, 2]], {"a": [1]}, np.zeros((2, 2)), pl.LazyFrame({"a": [1]})])
def test_what_is_no_frame(thing):
    with pytest.raises(
        TypeError, match=f"`table` must be a DataFrame or the path of a file, got {type(thing).__name__}"
    ):
        as_table(thing)


def test_paths(tmp_path):
    (tmp_path / "t.csv").write_text("größe;y\n1,5;x\n", encoding="cp1252")
    for path in (tmp_path / "t.csv", str(tmp_path / "t.csv")):
        assert as_table(path, "cp1252").frame.rows() == [("1,5", "x")]
    assert as_table(tmp_path / "t.csv", "cp1252").separator == ";"


TYPED = pl.DataFrame(
    {
        "number": [0.1, None, 2.5],
        "small": pl.Series([0.1, 2.7, None], dtype=pl.Float32),
        "decimal": pl.Series(["0.10", "2.75", None]).cast(pl.Decimal(10, 2)),
        "whole": [1, None, -3],
        "flag": [True, None, False],
        "text": ["x", None, "y"],
        "coded": pl.Series(["u", "v", None], dtype=pl.Categorical),
        "enum": pl.Series(["u", "v", None], dtype=pl.Enum(["u", "v"])),
        "day": [dt.date(2020, 1, 31), None, dt.date(1969, 12, 31)],
        "moment": pl.Series([dt.datetime(2020, 1, 31, 12), None, dt.datetime(1960, 1, 1)]),
        "zone": pl.Series([dt.datetime(2020, 1, 31, 12), None, None], dtype=pl.Datetime("us", BERLIN)),
        "clock": [dt.time(6), None, dt.time(18, 30)],
        "nothing": pl.Series([None] * 3, dtype=pl.Null),
    }
)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_frames_of_polars_are_read_as_their_files(suffix, tmp_path):
    path = tmp_path / f"t.{suffix}"
    write_frame(path, TYPED)
    for learnt_from in (read_table(path), as_table(TYPED), read_frame(path)):
        schema = learn_schema(learnt_from)
        expected = schema.read(as_table(TYPED).frame)
        assert expected.width == TYPED.width - 1  # nothing is left out but what is empty
        assert schema.read(read_table(path).frame).equals(expected)
        assert schema.read(read_frame(path)).equals(expected)
        in_pandas = pd.DataFrame(TYPED.select(pl.exclude("small", "decimal")).to_dicts())
        in_pandas["small"] = pd.Series(TYPED["small"].to_list(), dtype="Float32")
        in_pandas["decimal"] = objects(*TYPED["decimal"])
        assert schema.read(as_table(in_pandas).frame).equals(expected)


def test_tables_of_arrow():
    pytest.importorskip("pyarrow")
    schema = learn_schema(TYPED)
    expected = schema.read(TYPED)
    assert schema.read(as_table(TYPED.to_arrow()).frame).equals(expected)
    for options in ({}, {"use_pyarrow_extension_array": True}):
        assert schema.read(as_table(TYPED.to_pandas(**options)).frame).equals(expected)


def test_columns_of_pandas_backed_by_arrow():
    pa = pytest.importorskip("pyarrow")
    types = {
        "number": pa.float64(),
        "small": pa.float32(),
        "decimal": pa.decimal128(20, 2),
        "whole": pa.int8(),
        "flag": pa.bool_(),
        "text": pa.large_string(),
        "day": pa.date32(),
        "moment": pa.timestamp("ns"),
        "zone": pa.timestamp("us", BERLIN),
        "clock": pa.time64("us"),
        "nothing": pa.null(),
    }
    columns = {
        name: pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([TYPED[name].to_arrow().cast(kind)])))
        for name, kind in types.items()
    }
    schema = learn_schema(TYPED.select(*types))
    assert schema.read(as_table(pd.DataFrame(columns)).frame).equals(schema.read(TYPED.select(*types)))


def test_what_pandas_reads_from_a_file(tmp_path):
    """Dates stay text there, columns with holes become floats, and words for missing values NaN."""
    text = "day,when,n,x,kind,flag,note\n"
    for row in range(40):
        text += f"{row % 28 + 1}/{row % 12 + 1}/2020,2020-01-{row % 28 + 1:02} 10:00,"
        text += f"{row % 7 if row % 5 else ''},"
        text += f"{row * 0.1},{'abc'[row % 3]},{'TRUE' if row % 2 else 'FALSE'},{'NA' if row % 3 else '?'}\n"
    path = tmp_path / "t.csv"
    path.write_text(text)
    schema = learn_schema(read_table(path), day_first=True)
    expected = schema.read(read_table(path).frame)
    assert dict(zip(expected.columns, expected.dtypes))["kind"] == pl.String
    for options in ({}, {"dtype": str}, {"dtype_backend": "numpy_nullable"}, {"parse_dates": ["when"]}):
        assert schema.read(as_table(pd.read_csv(path, **options)).frame).equals(expected), options
    polars = pl.read_csv(path), pl.read_csv(path, try_parse_dates=True, null_values=["?", "NA"])
    for frame in polars:
        assert schema.read(as_table(frame).frame).equals(expected)
    one = pd.read_csv(io.StringIO("\n".join(text.splitlines()[:2])))
    assert schema.read(as_table(one).frame).equals(expected.head(1))
