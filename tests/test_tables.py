"""Tables of users: what is read from good files, said about bad ones, and written."""

import datetime as dt
import gc
import gzip
import re
import zipfile

import numpy as np
import pytest

pl = pytest.importorskip("polars")
pytest.importorskip("polars.testing")

tables = pytest.importorskip("mlp_xp.tables._reading")
datasets = pytest.importorskip("mlp_xp.datasets")
DataError, read_frame, write_frame = tables.DataError, tables.read_frame, tables.write_frame

X = np.array([[1.0, 2.5], [3.0, -4.0], [5.0, 6.25]])


def write(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npz(folder, **arrays):
    path = folder / "table.npz"
    np.savez(path, **arrays)
    return path


def assert_refused(path, problem):
    with pytest.raises(DataError) as raised:
        read_frame(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert re.search(problem, message.removeprefix(f"{path}: ")), message


# text files


@pytest.mark.parametrize(
    "text",
    [
        "a,b,y\r\n1,2.5,0\r\n3,-4,1\r\n5,6.25,0\r\n",
        "a,b,y\r1,2.5,0\r3,-4,1\r5,6.25,0\r",
        "a, b, y\n1, 2.5, 0\n3, -4, 1\n5, 6.25, 0\n",
        "\ufeffa,b,y\n1,2.5,0\n3,-4,1\n5,6.25,0\n",
        "\ufeffa;b;y\n1;2,5;0\n3;-4;1\n5;6,25;0\n",
        'a,b,y\n"1","2.5",0\n"3","-4",1\n"5","6.25",0\n',
        "a,b,y\n1e0,25e-1,0\n3.,-4,1\n5,+6.25,0",
        "a\tb\ty\n1\t2.5\t0\n3\t-4\t1\n5\t6.25\t0\n",
        "a|b|y\n1|2.5|0\n3|-4|1\n5|6.25|0\n",
        "\n\na;b;y\n1;2.5;0\n3;-4;1\n5;6.25;0\n",
        "a,b,y,\n1,2.5,0,\n3,-4,1,\n5,6.25,0,\n",
        "a,b,y,,\n1,2.5,0\n3,-4,1\n5,6.25,0\n",
        "a;b;y\n1;2,5;0\n3;-4;1\n5;6,25;0\n;;\n\n;;\n",
    ],
    ids=[
        "carriage returns and line feeds",
        "carriage returns",
        "spaces",
        "byte order mark",
        "German spreadsheet",
        "quotes",
        "exponents",
        "tabs",
        "bars",
        "empty lines first",
        "separators at the end of lines",
        "separators at the end of the header",
        "empty rows at the end",
    ],
)
def test_usual_ways_to_write_a_table(text, tmp_path):
    frame = read_frame(write(tmp_path, text, "TABLE.CSV"))
    assert frame.columns == ["a", "b", "y"]
    np.testing.assert_array_equal(frame.select("a", "b").cast(pl.Float64).to_numpy(), X)
    assert frame["y"].to_list() == [0, 1, 0]


# What is in the cells, and what is read from them, in commas and in semicolons.
CELLS = {
    "integers": (["7", "9", "-7"], [7, 9, -7]),
    "numbers": (["0.5", "-2", "3"], [0.5, -2.0, 3.0]),
    "large integers": ([str(2**62), "1", "2"], [2**62, 1, 2]),
    "beyond 64 bits": (["99999999999999999999", "1", "2"], [99999999999999999999, 1, 2]),
    "large numbers": (["1e20", "2.5e20", "7e20"], [1e20, 2.5e20, 7e20]),
    "infinity": (["inf", "-inf", "1e400"], [np.inf, -np.inf, np.inf]),
    "truth values": (["true", "false", "true"], [True, False, True]),
    "a spreadsheet's truth values": (["TRUE", "FALSE", "TRUE"], [True, False, True]),
    "Python's truth values": ([" True", "False", ""], [True, False, None]),
    "yes and no": (["yes", "no", "yes"], ["yes", "no", "yes"]),
    "text": ([" lemon ", "apple", "lemon"], ["lemon", "apple", "lemon"]),
    "text with numbers": (["10", "9", "x"], ["10", "9", "x"]),
    "digits in groups": (['"1,234"', '"12,345,678"', "9"], [1234, 12345678, 9], ["1,234", "12,345,678", "9"]),
    "groups and decimals": (
        ['"1,234"', '"1,234,567.5"', '"-5,000"'],
        [1234.0, 1234567.5, -5000.0],
        ["1,234", "1,234,567.5", "-5,000"],
    ),
    "German groups": (
        ['"1.234,5"', '"1.234.567"', '"0,25"'],
        ["1.234,5", "1.234.567", "0,25"],
        [1234.5, 1234567.0, 0.25],
    ),
    "points": (["1.234", "2.5", "12.345"], [1.234, 2.5, 12.345]),
    "French groups": (
        ['"1 234,5"', '"1\u202f234"', '"12\u00a0345"'],
        ["1 234,5", "1\u202f234", "12\u00a0345"],
        [1234.5, 1234.0, 12345.0],
    ),
    "Swiss groups": (["1'234.5", "12'345", "7"], [1234.5, 12345.0, 7.0], ["1'234.5", "12'345", "7"]),
    "decimal commas": (['"1,5"', '"2,25"', '"-3"'], ["1,5", "2,25", "-3"], [1.5, 2.25, -3.0]),
    "decimal commas and exponents": (
        ['"1,5E+05"', '"2,25E-01"', '"3"'],
        ["1,5E+05", "2,25E-01", "3"],
        [150000.0, 0.225, 3.0],
    ),
    "both marks": (['"1,5"', "0.5", "7"], ["1,5", "0.5", "7"], [1.5, 0.5, 7.0]),
    "percent": (["10%", "2.5 %", ""], [10.0, 2.5, None]),
    "percent of some": (["10%", "2.5", "3"], ["10%", "2.5", "3"]),
    "dollars": (['"$1,200.50"', "-$3", "$7"], [1200.5, -3.0, 7.0], ["$1,200.50", "-$3", "$7"]),
    "two currencies": (["$1", "€1", "$2"], ["$1", "€1", "$2"]),
    "underscores": (["1_000", "2_000", "3"], ["1_000", "2_000", "3"]),
    "lists": (['"1,2,3"', '"4,5"', '"6"'], ["1,2,3", "4,5", "6"]),
    "dates": (["2020-01-31", "2020-02-29", ""], [dt.date(2020, 1, 31), dt.date(2020, 2, 29), None]),
    "German dates": (["31.01.2020", "29.02.2020", "NA"], [dt.date(2020, 1, 31), dt.date(2020, 2, 29), None]),
    "times": (["10:00:00", "23:59:59", ""], [dt.time(10), dt.time(23, 59, 59), None]),
    "missing ones among numbers": (["NA", " NaN", "5"], [None, None, 5]),
    "missing ones among text": (["?", "#N/A", "x"], [None, None, "x"]),
    "nothing": (["", "NULL", "nan"], [None, None, None]),
    "UTF-8": (["Ünïcödé", "日本", "😀"], ["Ünïcödé", "日本", "😀"]),
    "line breaks": (['"two\nlines"', "one", '"say ""hi"""'], ["two\nlines", "one", 'say "hi"']),
}


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_of_a_text_file(name, separator, tmp_path):
    cells, *expected = CELLS[name]
    values = expected[-1 if separator == ";" else 0]
    text = f"id{separator}value\n" + "".join(f"{row}{separator}{cell}\n" for row, cell in enumerate(cells))
    found = read_frame(write(tmp_path, text))["value"].to_list()
    assert [type(value) for value in found] == [type(value) for value in values]
    assert found == values


def test_what_comes_late_in_a_file(tmp_path):
    lines = "".join(f"{row};2020-01-01;7;{row}\n" for row in range(2000))
    path = write(tmp_path, "a;day;b;c\n" + lines + "0,5;;ten;x\n")
    assert read_frame(path).dtypes == [pl.Float64, pl.Date, pl.String, pl.String]


def test_only_the_separator_tells_decimals_from_thousands(tmp_path):
    cells = '"1,250"', '"2,500"'
    commas = write(tmp_path, "a,y\n" + "".join(f"{cell},0\n" for cell in cells))
    assert read_frame(commas)["a"].to_list() == [1250, 2500]
    semicolons = write(tmp_path, "a;y\n" + "".join(f"{cell};0\n" for cell in cells))
    assert read_frame(semicolons)["a"].to_list() == [1.25, 2.5]


def test_every_missing_marker(tmp_path):
    lines = "".join(f"{marker},{marker},1\n" for marker in tables.MISSING_MARKERS)
    frame = read_frame(write(tmp_path, "number,text,y\n1.5,x,1\n" + lines))
    assert frame.null_count().row(0) == (len(tables.MISSING_MARKERS), len(tables.MISSING_MARKERS), 0)
    assert frame.dtypes == [pl.Float64, pl.String, pl.Int64]


def test_rows_without_cells_stay_but_at_the_end(tmp_path):
    frame = read_frame(write(tmp_path, "a,y\n,\n1,2\n\n3,4\n,\n"))
    assert frame.rows() == [(None, None), (1, 2), (None, None), (3, 4)]


@pytest.mark.parametrize("text", ["a,b,y\n", "a,b,y", "a,b,y\n,,\n"])
def test_tables_without_rows(text, tmp_path):
    frame = read_frame(write(tmp_path, text))
    assert (frame.columns, len(frame)) == (["a", "b", "y"], 0)


def test_column_names(tmp_path):
    header = '" sepal width (cm) ","a;b;c","say ""hi""","two\nlines",größe,a,A,2019\n'
    frame = read_frame(write(tmp_path, header + "1,2,3,4,5,6,7,8\n"))
    names = ["sepal width (cm)", "a;b;c", 'say "hi"', "two\nlines", "größe", "a", "A", "2019"]
    assert frame.columns == names
    assert frame.row(0) == tuple(range(1, 9))


def test_columns_without_a_name_are_called_as_by_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = write(tmp_path, ",a, ,y,\n0,1.5,x,0,\n1,2.5,,1,\n")
    frame = read_frame(path)
    assert frame.columns == ["Unnamed: 0", "a", "Unnamed: 2", "y"]
    assert frame.columns == pandas.read_csv(path, skipinitialspace=True).columns.to_list()[:-1]
    pandas.DataFrame({"a": [1.5], "y": [0]}).to_csv(path)
    assert read_frame(path).columns == ["Unnamed: 0", "a", "y"]


def test_very_long_text(tmp_path):
    text = "long " * 20_000
    frame = read_frame(write(tmp_path, f'a,{text.replace(" ", "_")}\n"{text}",1\nx,2\n'))
    assert frame["a"].to_list() == [text.strip(), "x"]
    assert len(frame.columns[1]) == 100_000


@pytest.mark.parametrize("name", ["t[1].csv", "t*.csv", "{a}.csv", "a b,c.csv", "ü.CSV", "x.csv.csv"])
def test_names_of_files_are_no_patterns(name, tmp_path):
    assert read_frame(write(tmp_path, "a,y\n1,2\n", name)).rows() == [(1, 2)]


@pytest.mark.parametrize("name", ["t.csv.gz", "t.CSV.GZ", "t.csv"])
def test_compressed_files(name, tmp_path):
    path = write(tmp_path, gzip.compress(b"a;y\n1,5;0\n2,5;1\n"), name)
    assert read_frame(path).rows() == [(1.5, 0), (2.5, 1)]
    path.write_bytes(path.read_bytes()[:-12])
    assert_refused(path, "not a readable .* file")


def test_commas_in_a_file_with_tabs(tmp_path):
    text = "a, b, c\ty\n1,500\t0\n2,500\t1\n"
    assert read_frame(write(tmp_path, text, "t.tsv")).rows() == [(1500, 0), (2500, 1)]
    packed = write(tmp_path, gzip.compress(text.encode()), "t.tsv.gz")
    assert read_frame(packed).columns == ["a, b, c", "y"]


def test_a_number_does_not_depend_on_its_neighbours(tmp_path):
    """A row predicted alone is read as it was among those trained on."""
    for separator, cells in ((";", ["1.234", "2,5", "1.234,5"]), (",", ['"1,234"', "2.5", '"1,234.5"'])):
        header = f"a{separator}y\n"
        together = read_frame(write(tmp_path, header + "".join(f"{cell}{separator}0\n" for cell in cells)))
        alone = [
            read_frame(write(tmp_path, f"{header}{cell}{separator}0\n", f"{number}.csv"))["a"].item()
            for number, cell in enumerate(cells)
        ]
        assert together["a"].to_list() == alone


BAD_CSV = {
    "one name twice": ("a,b,a\n1,2,0\n3,4,1\n", "two columns have the same name: a$"),
    "one name twice but for a space": ("a, a,y\n1,2,0\n3,4,1\n", "two columns have the same name: a$"),
    "two names twice": ('"a\nb",y,"a\nb",y\n1,2,0,1\n', "two columns have the same name: a b, y$"),
    "no header": ("1,2.5,0\n3,-4,1\n5,6.25,0\n", "the first line must name the columns, got 1, 2.5, 0$"),
    "whole numbers": ("1,2,0\n3,4,1\n", "the first line must name the columns, got 1, 2, 0$"),
    "no header but text": (
        "5.1,3.5,setosa\n4.9,3.0,setosa\n",
        "the first line must name the columns, got 5.1, 3.5, setosa$",
    ),
    "no header but one value twice": ("1.5,1.5,x\n1,2,y\n", "the first line must name the columns"),
    "empty": ("", "not a readable CSV file .*empty"),
    "empty lines": ("\n\n\n", "not a readable CSV file .*empty"),
    "a long row": ("a,b,y\n1,2,0\n1,2,3,4\n", "line 3 has 4 cells, but the first line names 3 columns$"),
    "a long row behind line breaks": (
        'a;y\n"x\nz";0\n1;2;3\n',
        "line 4 has 3 cells, but the first line names 2 columns$",
    ),
    "a remark": ("# by me\na,y\n1,2\n", "line 2 has 2 cells, but the first line names 1 columns$"),
    "a single quote": ('a,y\n"1,2\n3,4\n', "a quotation mark stands alone"),
    "inches": ('a,y\n5" pipe,2\n3,4\n', "a quotation mark stands alone, or inside a cell"),
    "noise": (np.random.RandomState(0).bytes(4000), "not text in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not text in UTF-8"),
    "UTF-16": ("a,b,y\n1,2,0\n3,4,1\n".encode("utf-16"), 'save that as "CSV UTF-8"'),
    "UTF-16 without a mark": ("a,b,y\n1,2,0\n3,4,1\n".encode("utf-16-le"), 'save that as "CSV UTF-8"'),
    "Latin-1": ("a,y\nMünchen,0\nKöln,1\n".encode("latin-1"), 'save that as "CSV UTF-8"'),
    "Latin-1 among numbers": ("a,y\n1,0\n5 €,1\n".encode("cp1252"), 'save that as "CSV UTF-8"'),
    "Latin-1 in the header": ("größe,y\n1,0\n2,1\n".encode("latin-1"), 'save that as "CSV UTF-8"'),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv_files(name, tmp_path):
    text, problem = BAD_CSV[name]
    assert_refused(write(tmp_path, text), problem)


def test_a_short_row_lacks_values(tmp_path):
    assert read_frame(write(tmp_path, "a,b,y\n1,2,0\n1,2\n")).rows() == [(1, 2, 0), (1, 2, None)]


SUFFIXES = r"a table must be a \.csv, \.tsv, \.parquet, .*\.npz, \.csv\.gz, \.tsv\.gz file, got "


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.csv", "no such file$"),
        ("missing.npz", "no such file$"),
        ("missing.parquet", "no such file$"),
        ("no/such/folder.csv", "no such file$"),
        ("x" * 300 + ".csv", "not a readable .* file .*too long"),
        ("table.txt", SUFFIXES + r"'\.txt'$"),
        ("table.xlsx", SUFFIXES + r"'\.xlsx'$"),
        ("table.gz", SUFFIXES + r"'\.gz'$"),
        ("table", SUFFIXES + "'no suffix'$"),
        (".csv", SUFFIXES + "'no suffix'$"),
    ],
)
def test_names_that_are_no_table(name, problem, tmp_path):
    assert_refused(tmp_path / name, problem)


@pytest.mark.parametrize("name", ["x.csv", "x.npz", "x.parquet", "x.arrow"])
def test_folders(name, tmp_path):
    (tmp_path / name).mkdir()
    assert_refused(tmp_path / name, "^a folder, not a file$")


def test_data_errors_are_one_line():
    assert str(DataError("one\ntwo\r\nthree")) == "one two three"


# files with types


TYPED = pl.DataFrame(
    {
        "flag": [True, None, False],
        "small": pl.Series([1, 2, 255], dtype=pl.UInt8),
        "large": pl.Series([2**64 - 1, 0, None], dtype=pl.UInt64),
        "real": pl.Series([0.5, None, -1.0], dtype=pl.Float32),
        "text": ["ä", None, "b c"],
        "day": [dt.date(2020, 1, 1), None, dt.date(1969, 12, 31)],
        "moment": pl.Series([dt.datetime(2020, 1, 1, 12), None, None], dtype=pl.Datetime("us", "Asia/Tokyo")),
        "clock": [dt.time(6), dt.time(18), None],
        "span": [dt.timedelta(hours=36), None, dt.timedelta(0)],
        "list": [[1], None, [2, 3]],
        "struct": [{"a": 1}, None, {"a": 2}],
        "bytes": [b"\xff", None, b""],
    }
)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather", "t.IPC"])
def test_types_survive(name, tmp_path):
    write_frame(tmp_path / name, TYPED)
    found = read_frame(tmp_path / name)
    pl.testing.assert_frame_equal(found, TYPED)


def test_arrow_files_in_the_form_of_a_stream(tmp_path):
    TYPED.write_ipc_stream(tmp_path / "t.arrow")
    pl.testing.assert_frame_equal(read_frame(tmp_path / "t.arrow"), TYPED)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_text_files_keep_values(name, tmp_path):
    frame = pl.DataFrame(
        {
            "a b": [1, None, -3],
            'c "d"': [0.1, None, 1e-300],
            "e,f\tg": ["x, y", "tab\there", 'quote " and\nline'],
            "flag": [True, None, False],
            "day": [dt.date(2020, 1, 1), None, dt.date(1969, 12, 31)],
        }
    )
    write_frame(tmp_path / name, frame)
    pl.testing.assert_frame_equal(read_frame(tmp_path / name), frame)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_typed_columns_are_cleaned(name, tmp_path):
    frame = pl.DataFrame(
        {
            " coded ": pl.Series(["a ", "b", "NA"], dtype=pl.Categorical),
            "enum": pl.Series(["1", "2", None], dtype=pl.Enum(["1", "2"])),
            "decimal": pl.Series(["1.50", "2.25", None]).cast(pl.Decimal(10, 2)),
            "holes": [1.0, np.nan, None],
            "numbers": [" 1", "2 ", "NA"],
            "large": pl.Series([2**100, 1, 0], dtype=pl.Int128),
            "nothing": pl.Series([None, None, None], dtype=pl.Null),
        }
    )
    frame.write_parquet(tmp_path / name) if name.endswith("parquet") else frame.write_ipc(tmp_path / name)
    assert read_frame(tmp_path / name).to_dict(as_series=False) == {
        "coded": ["a", "b", None],
        "enum": ["1", "2", None],  # text, because the file says so
        "decimal": [1.5, 2.25, None],
        "holes": [1.0, None, None],
        "numbers": [1, 2, None],
        "large": [2**100, 1, 0],
        "nothing": [None, None, None],
    }


def test_names_of_typed_columns(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"": [1], "  b\n": [2]}).write_parquet(path)
    assert read_frame(path).columns == ["Unnamed: 0", "b"]
    pl.DataFrame({"b": [1], "b ": [2]}).write_parquet(path)
    assert_refused(path, "^two columns have the same name: b$")


def test_empty_typed_tables(tmp_path):
    for frame in (pl.DataFrame(), TYPED.head(0)):
        frame.write_parquet(tmp_path / "t.parquet")
        pl.testing.assert_frame_equal(read_frame(tmp_path / "t.parquet"), frame)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", bytes(50), "half"])
def test_damaged_typed_files(name, content, tmp_path):
    write_frame(tmp_path / name, TYPED)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    assert_refused(path, f"^not a readable {path.suffix} file")


# NumPy's archives


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (np.array([7, 9, 7]), [7, 9, 7]),
        (np.array([200, 3, 200], dtype=np.uint8), [200, 3, 200]),
        (np.array([1, 2, 3], dtype=">i4"), [1, 2, 3]),
        (np.array([2**63 + 1, 2**63, 5], dtype=np.uint64), [2**63 + 1, 2**63, 5]),
        (np.array([0.5, -2.0, np.nan], dtype=np.float16), [0.5, -2.0, None]),
        (np.array([0.5, -2.0, 3.0], dtype=np.longdouble), [0.5, -2.0, 3.0]),
        (np.array([[2], [1], [2]]), [2, 1, 2]),
        (np.array([True, False, True]), [True, False, True]),
        (np.array(["lemon", " apple", "NA"]), ["lemon", "apple", None]),
        (np.array(["ä", "b", "c"], dtype=">U1"), ["ä", "b", "c"]),
        (np.array(["ä".encode(), b"b", b"c"]), ["ä", "b", "c"]),
        (
            np.array(["2020-01", "1969-12", "NaT"], "M8[M]"),
            [dt.datetime(2020, 1, 1), dt.datetime(1969, 12, 1), None],
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", ">f8"])
def test_arrays_of_an_npz_file(array, values, dtype, tmp_path):
    frame = read_frame(str(npz(tmp_path, X=X.astype(dtype), y=array, other=np.ones(7))))
    assert frame.columns == ["x0", "x1", "y"]
    np.testing.assert_array_equal(frame.select("x0", "x1").to_numpy(), X, strict=True)
    assert frame["y"].to_list() == values


def test_npz_files_without_y(tmp_path):
    assert read_frame(npz(tmp_path, X=X > 2.0)).rows() == [(False, True), (True, False), (True, True)]
    assert read_frame(npz(tmp_path, X=X[:0], y=[])).shape == (0, 3)


BAD_ARRAYS = {
    "no X": ({"Z": X, "y": [0, 1, 0]}, "no array 'X'; the arrays are Z, y$"),
    "nothing": ({}, "no array 'X'"),
    "flat X": ({"X": X[:, 0], "y": [0, 1, 0]}, r"X must be a table .* shape \(3,\)"),
    "deep X": ({"X": X[:, :, None], "y": [0, 1, 0]}, r"X must be a table .* shape \(3, 2, 1\)"),
    "no columns": ({"X": X[:, :0], "y": [0, 1, 0]}, r"X must be a table .* shape \(3, 0\)"),
    "text": ({"X": X.astype(str), "y": [0, 1, 0]}, "X must be a table of numbers, got <U"),
    "complex numbers": ({"X": X + 1j, "y": [0, 1, 0]}, "X must be a table of numbers, got complex128"),
    "dates": ({"X": X.astype("M8[D]"), "y": [0, 1, 0]}, "X must be a table of numbers, got datetime64"),
    "records": (
        {"X": np.zeros(3, dtype=[(f"feature_{index}", "f8") for index in range(600)]), "y": [0, 1, 0]},
        r"not a readable \.npz file|X must be a table",
    ),
    "fewer y": ({"X": X, "y": [0, 1]}, r"y must have shape \(3,\).*got \(2,\)$"),
    "one y": ({"X": X, "y": 0}, r"y must have shape \(3,\).*got \(\)$"),
    "wide y": ({"X": X, "y": np.eye(3)}, r"y must have shape \(3,\).*got \(3, 3\)$"),
    "complex y": ({"X": X, "y": [1j, 2.0, 1j]}, "y must hold numbers or text, got complex128"),
    "spans": ({"X": X, "t": np.array([1, 2, 3], "m8[s]")}, "t must hold numbers or text, got timedelta64"),
    "bytes beyond ASCII": ({"X": X, "y": np.array([b"a", b"\xe9", b"a"])}, "y must hold text in UTF-8"),
    "a column of X again": ({"X": X, "x1": [1, 2, 3]}, "x1 must have another name"),
    "objects in X": ({"X": X.astype(object), "y": [0, 1, 0]}, r"not a readable \.npz file .*[Oo]bject"),
    "objects in y": ({"X": X, "y": np.array([0, "a", None])}, r"not a readable \.npz file .*[Oo]bject"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_in_npz_files(name, tmp_path):
    arrays, problem = BAD_ARRAYS[name]
    assert_refused(npz(tmp_path, **arrays), problem)


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
        assert_refused(write(tmp_path, content(tmp_path), f"{name}.npz"), r"not a readable \.npz file")
    # A file left open would otherwise be found in the middle of a later test.
    gc.collect()


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_pickles_are_never_run(tmp_path):
    path = npz(tmp_path, X=X, y=np.array([Bomb(), Bomb(), Bomb()], dtype=object))
    with pytest.raises(SystemExit, match="a pickle was run"):
        np.load(path, allow_pickle=True)["y"]
    assert_refused(path, r"not a readable \.npz file")


def test_archives_of_other_things(tmp_path):
    path = tmp_path / "other.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X", "1 2 3")
        archive.writestr("y", "0 1 0")
    assert_refused(path, r"X|not a readable \.npz file")


# writing


@pytest.mark.parametrize("name", tables.WRITERS)
def test_a_failing_write_leaves_what_was_there(name, tmp_path, monkeypatch):
    path = write(tmp_path, "old", f"t{name}")

    def fail(frame, path):
        path.write_text("half of it")
        raise OSError("No space left on device")

    monkeypatch.setitem(tables.WRITERS, name, fail)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: it cannot be written .*No space left"):
        write_frame(path, pl.DataFrame({"a": [1]}))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(frame, path):
        path.write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setitem(tables.WRITERS, ".csv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_frame(tmp_path / "t.csv", pl.DataFrame({"a": [1]}))
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv: it cannot be written \(.*nested"):
        write_frame(tmp_path / "t.csv", TYPED)
    assert not list(tmp_path.iterdir())


def test_writing_replaces(tmp_path):
    path = write(tmp_path, "old")
    write_frame(str(path), pl.DataFrame({"a": [1, 2]}))
    assert path.read_text() == "a\n1\n2\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["t.npz", "t.xlsx", "t", ".csv", "t.csv.gz"])
def test_formats_that_are_not_written(name, tmp_path):
    problem = rf"{name}: a table must be a \.csv, \.tsv, \.parquet, \.arrow, \.feather, \.ipc file, got '"
    with pytest.raises(DataError, match=problem):
        write_frame(tmp_path / name, TYPED)
    with pytest.raises(DataError, match=problem):
        tables.check_writable(tmp_path / name, True)
    assert not list(tmp_path.iterdir())


def test_places_to_write_to(tmp_path):
    old = write(tmp_path, "old")
    tables.check_writable(tmp_path / "new.csv", False)
    tables.check_writable(str(old), True)
    (tmp_path / "folder.csv").mkdir()
    for path, overwrite, problem in (
        (old, False, "it exists already; --overwrite replaces it"),
        (tmp_path / "folder.csv", True, "a folder, not a file"),
        (tmp_path / "no" / "t.csv", True, "there is no such folder"),
        (old / "t.csv", True, "there is no such folder"),
    ):
        with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {problem}')}$"):
            tables.check_writable(path, overwrite)
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "table.csv"]


# data sets


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_frames_of_data_sets(name, tmp_path):
    pytest.importorskip("sklearn")
    data = datasets.load(name)
    frame = tables.dataset_frame(data)
    assert frame.columns == [*data.feature_names, data.target_name]
    np.testing.assert_array_equal(frame.drop(data.target_name).to_numpy(), data.X, strict=True)
    assert frame[data.target_name].to_list() == [data.class_names[index] for index in data.y]
    write_frame(tmp_path / "t.csv", frame)
    again = read_frame(tmp_path / "t.csv")
    assert again.columns == frame.columns
    np.testing.assert_array_equal(again.drop(data.target_name).to_numpy(), data.X)


def test_frames_of_values():
    data = datasets.Dataset("d", X, np.array([0.5, 1.0, 2.0]), ("a", "b"), "y", None)
    assert tables.dataset_frame(data).rows() == [(1.0, 2.5, 0.5), (3.0, -4.0, 1.0), (5.0, 6.25, 2.0)]


# what messages are made of


def test_lists_of_names():
    assert tables.listed(["a", 1]) == "a, 1"
    assert tables.listed("abcd", limit=2) == "a, b, ... (4 in all)"
    assert tables.listed([]) == ""
