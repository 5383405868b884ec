"""Tables of users: what is read from good files, said about bad ones, and written."""

import csv
import datetime as dt
import gc
import gzip
import io
import re
import zipfile

import numpy as np
import pytest

pl = pytest.importorskip("polars")
pytest.importorskip("polars.testing")

tables = pytest.importorskip("mlp_xp.tables._reading")
text_files = pytest.importorskip("mlp_xp.tables._text_files")
datasets = pytest.importorskip("mlp_xp.datasets")
DataError, read_frame, write_frame = tables.DataError, tables.read_frame, tables.write_frame
read_table = tables.read_table

X = np.array([[1.0, 2.5], [3.0, -4.0], [5.0, 6.25]])


def write(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npz(folder, **arrays):
    path = folder / "table.npz"
    np.savez(path, **arrays)
    return path


def assert_refused(path, problem, encoding=None):
    with pytest.raises(DataError) as raised:
        read_frame(path, encoding)
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
    "beyond 64 bits": (["99999999999999999999", "1", "2"], [1e20, 1.0, 2.0]),
    "large numbers": (["1e20", "2.5e20", "7e20"], [1e20, 2.5e20, 7e20]),
    "infinity": (["inf", "-inf", "1e400"], [np.inf, -np.inf, np.inf]),
    "truth values": (["true", "false", "true"], [True, False, True]),
    "a spreadsheet's truth values": (["TRUE", "FALSE", "TRUE"], [True, False, True]),
    "Python's truth values": ([" True", "False", ""], [True, False, None]),
    "yes and no": (["yes", "no", "yes"], ["yes", "no", "yes"]),
    "text": ([" lemon ", "apple", "lemon"], ["lemon", "apple", "lemon"]),
    "text with numbers": (["10", "9", "x"], ["10", "9", "x"]),
    "digits in groups": (['"1,234"', '"12,345,678"', "9"], [1234, 12345678, 9]),
    "groups and decimals": (['"1,234"', '"1,234,567.5"', '"-5,000"'], [1234.0, 1234567.5, -5000.0]),
    "groups or decimals": (['"1,234"', '"2,500"', "9"], [1234, 2500, 9], [1.234, 2.5, 9.0]),
    "German groups": (['"1.234,5"', '"1.234.567"', '"0,25"'], [1234.5, 1234567.0, 0.25]),
    "German groups alone": (["1.234", "1.894.767", "-5"], [1234, 1894767, -5]),
    "points": (["1.234", "2.5", "12.345"], [1.234, 2.5, 12.345]),
    "points before three digits": (["1.234", "2.345", "7"], [1.234, 2.345, 7.0]),
    "French groups": (['"1 234,5"', '"1\u202f234"', '"12\u00a0345"'], [1234.5, 1234.0, 12345.0]),
    "Swiss groups": (["1'234.5", "12'345", "7"], [1234.5, 12345.0, 7.0]),
    "decimal commas": (['"1,5"', '"2,25"', '"-3"'], [1.5, 2.25, -3.0]),
    "decimal commas after a zero": (['"0,500"', '"1,250"', '"-3"'], [0.5, 1.25, -3.0]),
    "decimal commas and exponents": (['"1,5E+05"', '"2,25E-01"', '"3"'], [150000.0, 0.225, 3.0]),
    "both marks": (['"1,5"', "0.5", "7"], ["1,5", "0.5", "7"]),
    "both marks, most of them points": (['"1,5"', *["0.5"] * 9], ["1,5", *["0.5"] * 9]),
    "percent": (["10%", "2.5 %", ""], [10.0, 2.5, None]),
    "percent but for zeros": (["10%", "0", "0.00"], [10.0, 0.0, 0.0]),
    "percent of some": (["10%", "2.5", "3"], ["10%", "2.5", "3"]),
    "percent of one": (["10%", *["2.5"] * 9], ["10%", *["2.5"] * 9]),
    "dollars": (['"$1,200.50"', "-$3", "$7"], [1200.5, -3.0, 7.0]),
    "dollars of some": (["$1200.50", "3", "NA"], [1200.5, 3.0, None]),
    "euros": (['"1.200,50 €"', '"-3 €"', '"7,00 €"'], [1200.5, -3.0, 7.0]),
    "two currencies": (["$1", "€1", "$2"], ["$1", "€1", "$2"]),
    "underscores": (["1_000", "2_000", "3"], ["1_000", "2_000", "3"]),
    "lists": (['"1,2,3"', '"4,5"', '"6"'], ["1,2,3", "4,5", "6"]),
    "dates": (["2020-01-31", "2020-02-29", ""], [dt.date(2020, 1, 31), dt.date(2020, 2, 29), None]),
    "German dates": (["31.01.2020", "29.02.2020", "NA"], [dt.date(2020, 1, 31), dt.date(2020, 2, 29), None]),
    "US dates": (["1/31/2020", "02/29/20", "NA"], [dt.date(2020, 1, 31), dt.date(2020, 2, 29), None]),
    "two forms of dates": (["2020-01-31", "29 Feb 2020"], [dt.date(2020, 1, 31), dt.date(2020, 2, 29)]),
    "dates and a moment": (
        ["2020-01-31", "2020-02-29 06:30"],
        [dt.datetime(2020, 1, 31), dt.datetime(2020, 2, 29, 6, 30)],
    ),
    "dates and one that does not exist": (["2020-01-31", "2020-02-30"], ["2020-01-31", "2020-02-30"]),
    "times": (["10:00:00", "23:59:59", ""], [dt.time(10), dt.time(23, 59, 59), None]),
    "times with seconds and without": (
        ["10:00", "23:59:59", "1:30 PM"],
        [dt.time(10), dt.time(23, 59, 59), dt.time(13, 30)],
    ),
    "dates and times": (["10:00", "2020-01-31"], ["10:00", "2020-01-31"]),
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
    lines = "".join(f"{row};2020-01-01;;7;{row};01/02/2020;1.234\n" for row in range(2000))
    path = write(tmp_path, "a;day;late;b;c;us;e\n" + lines + "0,5;;2020-01-31;ten;x;1/31/2020;1.234.567\n")
    frame = read_frame(path)
    assert frame.dtypes == [pl.Float64, pl.Date, pl.Date, pl.String, pl.String, pl.Date, pl.Int64]
    assert frame.rows()[-2:] == [
        (1999.0, dt.date(2020, 1, 1), None, "7", "1999", dt.date(2020, 1, 2), 1234),
        (0.5, None, dt.date(2020, 1, 31), "ten", "x", dt.date(2020, 1, 31), 1234567),
    ]


def test_the_separator_tells_decimals_from_thousands_if_no_column_does(tmp_path):
    cells = '"1,250"', '"2,500"'
    commas = write(tmp_path, "a,y\n" + "".join(f"{cell},0\n" for cell in cells))
    assert read_frame(commas)["a"].to_list() == [1250, 2500]
    semicolons = write(tmp_path, "a;y\n" + "".join(f"{cell};0\n" for cell in cells))
    assert read_frame(semicolons)["a"].to_list() == [1.25, 2.5]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a\tb\ty\n1,250\t0,5\t1.250\n", (1.25, 0.5, 1250)),
        ("a\tb\ty\n1,250\t0.5\t1.250\n", (1250, 0.5, 1.25)),
        ("a;b;y\n1,250;0.5;1.250\n", (1250, 0.5, 1.25)),
        ("a;b;y\n1.250;1.250,5;2\n", (1250, 1250.5, 2)),
        ("a;b\n1/2/2020;13/2/2020\n", (dt.date(2020, 2, 1), dt.date(2020, 2, 13))),
        ("a;b\n1/2/2020;2/13/2020\n", (dt.date(2020, 1, 2), dt.date(2020, 2, 13))),
        (
            "a;b;c\n1/2/2020;2/13/2020;13/2/2020\n",
            (dt.date(2020, 1, 2), dt.date(2020, 2, 13), dt.date(2020, 2, 13)),
        ),
        ("a;b\n1.2.2020;x\n", (dt.date(2020, 2, 1), "x")),
    ],
)
def test_other_columns_decide(text, row, tmp_path):
    assert read_frame(write(tmp_path, text)).row(0) == row


def test_every_missing_marker(tmp_path):
    lines = "".join(f"{marker},{marker},1\n" for marker in tables.MISSING_MARKERS)
    frame = read_frame(write(tmp_path, "number,text,y\n1.5,x,1\n" + lines))
    assert frame.null_count().row(0) == (len(tables.MISSING_MARKERS), len(tables.MISSING_MARKERS), 0)
    assert frame.dtypes == [pl.Float64, pl.String, pl.Int64]


def test_rows_without_cells_stay_but_at_the_end(tmp_path):
    frame = read_frame(write(tmp_path, "a,y\n,\n1,2\n\n3,4\n,\n"))
    assert frame.rows() == [(None, None), (1, 2), (3, 4)]
    frame = read_frame(write(tmp_path, "a,y\n,\n1,2\n,\n3,4\n,\n"))
    assert frame.rows() == [(None, None), (1, 2), (None, None), (3, 4)]


@pytest.mark.parametrize("cell", ["3", '3" pipe', '"3\n\n4"'])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\r\r\n"])
def test_empty_lines_are_no_rows(ends, cell, tmp_path):
    lines = ["a,y", "1,x", "", f"{cell},z", "", "", "2,w", "", ""]
    rows = read_table(write(tmp_path, ends.join(lines))).frame.rows()
    assert rows == [("1", "x"), (cell.strip('"') if cell != '3" pipe' else cell, "z"), ("2", "w")]


def test_a_missing_value_in_quotes_is_a_row(tmp_path):
    """As pandas writes the only column of a table."""
    assert read_frame(write(tmp_path, 'a\n1.5\n""\n2\n""\n\n')).rows() == [(1.5,), (None,), (2.0,), (None,)]
    for cell in ("1", '5" pipe'):  # whichever reader
        text = f'a\n{cell}\n""\n2\n""\n'
        assert read_table(write(tmp_path, text)).frame["a"].to_list() == [cell, None, "2", None]
        assert len(read_table(write(tmp_path, f'a,y\n{cell},2\n"",\n,\n')).frame) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "Sales 2020,,\nx,c,y\n1,red,yes\n",
            "the first line must name the columns, got Sales 2020, , : put a",
        ),
        ("Sales 2020,,\n,,\nx,c,y\n1,red,yes\n", "the first line must name the columns, got Sales 2020"),
        ("k,x\n1,2\nk,x\n3,4\n", "row 2 repeats the first line, as where tables were joined"),
    ],
)
def test_lines_that_are_neither_header_nor_row(text, problem, tmp_path):
    assert_refused(write(tmp_path, text), problem)


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


BAD_CSV = {
    "one name twice": ("a,b,a\n1,2,0\n3,4,1\n", "two columns have the same name: a$"),
    "one name twice but for a space": ("a, a,y\n1,2,0\n3,4,1\n", "two columns have the same name: a$"),
    "two names twice": ('"a\nb",y,"a\nb",y\n1,2,0,1\n', "two columns have the same name: a b, y$"),
    "no header": (
        "1,2.5,0\n3,-4,1\n5,6.25,0\n",
        "the first line must name the columns, got 1, 2.5, 0: put a line of names",
    ),
    "whole numbers": ("1,2,0\n3,4,1\n", "the first line must name the columns, got 1, 2, 0:"),
    "no header but text": (
        "5.1,3.5,setosa\n4.9,3.0,setosa\n",
        "the first line must name the columns, got 5.1, 3.5, setosa:",
    ),
    "no header but one value twice": ("1.5,1.5,x\n1,2,y\n", "the first line must name the columns"),
    "no header, decimal commas": (
        "5,1;3,5;setosa\n4,9;3,0;virginica\n",
        "the first line must name the columns, got 5,1, 3,5, setosa:",
    ),
    "no header, whole numbers and text": ("5;3;setosa\n4;3;setosa\n", "the first line must name the columns"),
    "no header, text alone": ("red,x,u\nblue,x,u\nred,z,v\n", "the first line must name the columns"),
    "no header, and a separator at the end": ("1,2,\n3,4,\n", "the first line must name the columns"),
    "no names at all": (",\n1,2\n", "the first line must name the columns"),
    "empty": ("", "not a readable CSV file .*empty"),
    "empty lines": ("\n\n\n", "not a readable CSV file .*empty"),
    "a long row": ("a,b,y\n1,2,0\n1,2,3,4\n", "line 3 has 4 cells, but the first line names 3 columns$"),
    "a long row behind line breaks": (
        'a;y\n"x\nz";0\n1;2;3\n',
        "line 4 has 3 cells, but the first line names 2 columns$",
    ),
    "a long row behind an empty line": ("\n\na,y\n1,2,3\n", "line 4 has 3 cells, but the first line names 2"),
    "a long row behind a separator": ("sep=,\na,y\n1,2,3\n", "line 3 has 3 cells"),
    "a single quote": ('a,y\n5,6\n"1,2\n3,4\n', r"not a readable CSV file \(line 3: a quotation mark alone"),
    "two single quotes": ('a,y\n5,6\n"1,2\n3,"4\n', r"line 3: a quotation mark alone or inside a cell"),
    "a single quote at the end": ('a,y\n1,2\n3,"\n', "line 3: a quotation mark alone"),
    "text behind a quote": ('a,y\n1,2\n"3" cm,4\n', "line 3: a quotation mark alone or inside a cell"),
    "a single quote in the header": ('"a,y\n1,2\n', "line 1: a quotation mark alone"),
    "noise": (np.random.RandomState(0).bytes(4000), "not text in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not text in UTF-8"),
    "UTF-16 without a mark": ("a,b,y\n1,2,0\n3,4,1\n".encode("utf-16-le"), r"null characters\).* or utf-16;"),
    "half a letter of UTF-16": ("a,y\n1,0\n".encode("utf-16") + b"x", r"not text in UTF-16 \(see line"),
    "Latin-1": (
        "a,y\nMünchen,0\nKöln,1\n".encode("latin-1"),
        r"not text in UTF-8 \(see line 2\): --encoding names .*cp1252.*\"CSV UTF-8\"$",
    ),
    "Latin-1 among numbers": ("a,y\n1,0\n5 €,1\n".encode("cp1252"), r"\(see line 3\): --encoding names"),
    "Latin-1 in the header": ("größe,y\n1,0\n2,1\n".encode("latin-1"), r"\(see line 1\): --encoding names"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv_files(name, tmp_path):
    text, problem = BAD_CSV[name]
    assert_refused(write(tmp_path, text), problem)


def test_a_short_row_lacks_values(tmp_path):
    assert read_frame(write(tmp_path, "a,b,y\n1,2,0\n1,2\n")).rows() == [(1, 2, 0), (1, 2, None)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a,y\n5" pipe,2\n3,4\n', [('5" pipe', 2), ("3", 4)]),
        ('a,y\n5" pipe,"2"\n3" pipe,4\n', [('5" pipe', 2), ('3" pipe', 4)]),
        ('a,y\nsay "x","u,v"\nb,w\n', [('say "x"', "u,v"), ("b", "w")]),
        ('a,y\n"u,v", "x; y"\n', [("u,v", "x; y")]),
        ('a,y\n"say ""x""",""""\n', [('say "x"', '"')]),
        ('a,5" pipe\nx,1\n', [("x", 1)]),
        ('a,y\n"x",1\n\'z,2\n', [("x", 1), ("'z", 2)]),
    ],
)
def test_quotes(text, rows, tmp_path):
    assert read_frame(write(tmp_path, text)).rows() == rows


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("2019,2020,country", "1,2,x"),
        ("a,b,c", "1,2,3"),
        ("a,b,c", "a,2,3"),  # one name may come again
        ("yes,no,maybe", "no,yes,no"),
        ("nan,inf,infinity", "1,2,3"),
        ("1e,-,+", "1,2,3"),
        ("1st,2nd,2020-01-31", "1,2,3"),
    ],
)
def test_headers(header, cells, tmp_path):
    assert read_frame(write(tmp_path, f"{header}\n{cells}\n")).columns == header.split(",")


def test_headers_of_more_than_a_mebibyte(tmp_path):
    names = [f"a name, {'very ' * 200}long {index}" for index in range(1200)]
    lines = (",".join(f'"{name}"' for name in names), ",".join(str(index) for index in range(1200)))
    path = write(tmp_path, "\n".join(lines))
    assert path.stat().st_size > 1 << 20
    frame = tables.read_table(path).frame
    assert (frame.columns, frame.row(0)[-1]) == (names, "1199")
    name = "long" * (1 << 18)
    assert read_frame(write(tmp_path, f"{name};y\n1,5;2\n")).to_dicts() == [{name: 1.5, "y": 2}]


ENCODED = "größe;y\n1,5;Köln\n2,5;Łódź €\n"


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_are_found(name, tmp_path):
    path = write(tmp_path, ENCODED.encode(name))
    assert read_frame(path).to_dicts() == [{"größe": 1.5, "y": "Köln"}, {"größe": 2.5, "y": "Łódź €"}]
    assert read_frame(path, "utf-8").height == 2  # a mark says more than an option


@pytest.mark.parametrize("name", ["cp1250", "iso8859-16", "utf-16-le", "utf-16-be", "UTF8"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_encodings_that_are_given(name, pack, tmp_path):
    path = write(tmp_path, pack(ENCODED.encode(name)))
    assert read_frame(path, encoding=name).rows() == [(1.5, "Köln"), (2.5, "Łódź €")]


def test_encodings_that_do_not_fit(tmp_path):
    path = write(tmp_path, ENCODED.replace("Łódź ", "").encode("cp1252"))
    assert_refused(path, r"not text in UTF-8 \(see line 1\): --encoding names another one, such as cp1252")
    assert read_frame(path, encoding="cp1252")["y"].to_list() == ["Köln", "€"]
    assert_refused(path, r"not text in ASCII \(see line 1\)", encoding="ascii")
    for name in ("no-such", "hex"):
        assert_refused(path, f"`encoding` must be the name of an encoding.*'{name}'", encoding=name)


@pytest.mark.parametrize(
    ("line", "separator"),
    [("sep=;", ";"), ("SEP=,", ","), ('"sep=|"', "|"), ("sep=\t", "\t"), ("sep=:", ":"), ("\nsep=;\n", ";")],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_first_line_that_names_the_separator(line, separator, end, tmp_path):
    text = f"{line}\na{separator}y\n1{separator}x;y,z\n".replace("\n", end)
    text = text.replace("x;y,z", "2") if separator in ";," else text
    raw = tables.read_table(write(tmp_path, text))
    assert (raw.separator, raw.frame.columns) == (separator, ["a", "y"])


def test_ends_of_lines_of_more_than_one_kind(tmp_path):
    path = write(tmp_path, 'a,y\r\n1,2\n3,4\r5,"6\r7"\r\n')
    assert tables.read_table(path).frame.rows() == [("1", "2"), ("3", "4"), ("5", "6\r7")]


# A file, what separates its cells, and their number in the first line.
DIALECTS = {
    "commas": ("a,b\n1,2\n", ",", 2),
    "semicolons": ("a;b\n1;2\n", ";", 2),
    "tabs": ("a\tb\n1\t2\n", "\t", 2),
    "bars": ("a|b\n1|2\n", "|", 2),
    "semicolons and decimal commas": ("a;b\n1,5;2,5\n", ";", 2),
    "semicolons and a decimal comma": ("a;b;c\n1,5;2;3\n", ";", 3),
    "tabs and decimal commas": ("a\tb\n1,5\t2,5\n", "\t", 2),
    "bars and decimal commas": ("a|b\n1,5|2,5\n", "|", 2),
    "semicolons and groups": ("a;b\n1,234,567;2\n", ";", 2),
    "semicolons and text with commas": ("name;text\nx;hello, world, again\ny;no\n", ";", 2),
    "a name with a comma": ("size, cm;y\n1;2\n3;4\n", ";", 2),
    "names with commas as often as decimals": ("size, cm;weight, kg\n1,5;2,5\n3,0;4,5\n", ";", 2),
    "names and text with commas": ("last, first;y\nDoe, J;1\nRoe, R;2\n", ";", 2),
    "more commas in names than separators": ("a, b, c and d;y\n1;2\n3;4\n", ";", 2),
    "quoted names with semicolons": ('"a;b","c;d"\n1,2\n', ",", 2),
    "quoted text with semicolons": ('a,b\n"x;y;z",2\n"u;v;w",3\n', ",", 2),
    "text with semicolons": ("a,b\nx;y,2\nz;u,3\n", ",", 2),
    "text with bars": ("a,b,c\nx|y,2,3\nz|u|v,3,4\n", ",", 3),
    "text with tabs": ('a,b\n"x\ty",2\n', ",", 2),
    "a name with a semicolon": ("a;b,c,d\n1,2,3\n4,5,6\n", ",", 3),
    "one column": ("a\n1\n2\n", ";", 1),
    "one column of decimal commas": ("a\n1,5\n2,5\n", ";", 1),
    "one quoted column": ('"a,b"\n"1,5"\n', ";", 1),
    "short rows": ("a,b,c\n1\n1,2\n1\n", ",", 3),
    "short rows in a file with decimal commas": ("a;b;c\n1,5\n1,5;2\n0,5\n", ";", 3),
    "a long row": ("a,b\n1,2\n3,4;5,6\n", ",", 2),
    "no rows": ("a;b;c", ";", 3),
    "empty lines": ("a,b\n\n\n1,2\n", ",", 2),
    "separators at the end": ("a,b,\n1,2,\n", ",", 3),
    "line breaks": ('a;"b\n,c"\n"x\n,y";2\n', ";", 2),
    "German moments": ("day;value\n01.02.2020 10:00;1,5\n02.02.2020 11:00;2,5\n", ";", 2),
    "lists": ("id|tags\n1|a,b,c\n2|d\n", "|", 2),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_separators(name, tmp_path):
    text, separator, width = DIALECTS[name]
    assert text_files._find_separator(text, text_files.SEPARATORS) == separator
    if name != "a long row":
        raw = tables.read_table(write(tmp_path, text))
        assert raw.separator == separator
        assert raw.frame.width == width - (name == "separators at the end")


NASTY_PIECES = ["a", "1", ",", ";", " ", '"', '""', "'", "\n", "\r", "\r\n", "ä", "", "#", "\\", "\t", "NA"]


def nasty_cell(random, separator):
    """Return a cell as a careless or a careful program writes it, mostly the latter."""
    text = "".join(random.choice(NASTY_PIECES, random.randint(0, 5)))
    if random.rand() < 0.1:
        return text
    if random.rand() < 0.3 and not set(text) & {separator, '"', "\n", "\r"}:
        return text
    return '"' + text.replace('"', '""') + '"'


def expected_table(text, separator):
    """Return names and rows as Python's csv module reads them; None if it refuses or a row is long."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    try:
        names, *rows = filter(None, reader)
    except csv.Error:
        return None
    if any(len(row) > len(names) for row in rows):
        return None
    rows = [tuple(cell or None for cell in row) + (None,) * (len(names) - len(row)) for row in rows]
    while len(names) > 1 and rows and not any(rows[-1]):
        rows.pop()
    return names, rows


def without_leading_spaces(rows):
    return [tuple(cell and (cell.lstrip(" ") or None) for cell in row) for row in rows]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(8))
def test_tables_of_nasty_cells_are_read_as_by_python(seed):
    random = np.random.RandomState(seed)
    n_read = 0
    for _ in range(60):
        separator = str(random.choice([",", ";", "\t"]))
        end = str(random.choice(["\n", "\r\n", "\r"]))
        width = random.randint(2, 5)
        lines = [separator.join(f"name{index}" for index in range(width))]
        for _ in range(random.randint(1, 6)):
            n_cells = width if random.rand() < 0.9 else random.randint(1, width + 1)
            lines.append(separator.join(nasty_cell(random, separator) for _ in range(n_cells)))
        text = end.join(lines) + (end if random.rand() < 0.8 else "")
        expected = expected_table(text, separator)
        try:
            raw = text_files.read_csv(text.encode(), None, separator)
        except DataError:
            assert expected is None, text
            continue
        assert expected is not None, text
        assert raw.frame.columns == expected[0]
        found = without_leading_spaces(raw.frame.rows())
        wanted = without_leading_spaces(expected[1])
        while wanted and not any(wanted[-1]):
            wanted.pop()
        while found and not any(found[-1]):
            found.pop()
        assert found == wanted, text
        n_read += 1
    assert n_read > 20


def test_polars_and_python_read_the_same(tmp_path, monkeypatch):
    """What is fed to polars could be read row by row as well."""
    text = 'a,"b ""c""",d\n"x\ny",1, 5\n\n,"",z\n"u,v",\'w,\n'
    path = write(tmp_path, text)
    assert text_files._rows_are_plain(text.encode(), ",")
    raw = tables.read_table(path).frame
    monkeypatch.setattr(text_files, "_rows_are_plain", lambda data, separator: False)
    slow = tables.read_table(path).frame
    assert raw.with_columns(pl.all().str.strip_chars()).equals(slow)


# standard input


class FakeInput:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def parquet_bytes():
    file = io.BytesIO()
    pl.DataFrame({"a": [1.5], "y": ["x"]}).write_parquet(file)
    return file.getvalue()


def arrow_bytes(write):
    file = io.BytesIO()
    getattr(pl.DataFrame({"a": [1.5], "y": ["x"]}), write)(file)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"a,y\n1.5,x\n",
        b"a;y\n1,5;x\n",
        gzip.compress(b"a\ty\n1.5\tx\n"),
        "a,y\n1.5,x\n".encode("utf-16"),
        parquet_bytes(),
        arrow_bytes("write_ipc"),
        arrow_bytes("write_ipc_stream"),
    ],
    ids=["commas", "semicolons", "compressed", "UTF-16", "Parquet", "Arrow", "a stream of Arrow"],
)
def test_standard_input(data, monkeypatch):
    monkeypatch.setattr("sys.stdin", FakeInput(data))
    assert read_frame("-").rows() == [(1.5, "x")]


def test_arrays_on_standard_input(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", FakeInput(npz(tmp_path, X=X).read_bytes()))
    np.testing.assert_array_equal(read_frame("-").to_numpy(), X)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", r"not a readable CSV file \(it is empty\)"),
        (b"a,y\n1,2,3\n", "line 2 has 3 cells"),
        (parquet_bytes()[:40], r"not a readable \.parquet file"),
        (b"PK\x03\x04", r"not a readable \.npz file"),
    ],
)
def test_bad_standard_input(data, problem, monkeypatch):
    monkeypatch.setattr("sys.stdin", FakeInput(data))
    with pytest.raises(DataError, match=f"^standard input: {problem}"):
        read_frame("-")


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
    assert_refused(tmp_path / name, "^a folder without files$")


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


READ = TYPED.with_columns(pl.col("real").cast(pl.Float64))


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather", "t.IPC"])
def test_types_survive(name, tmp_path):
    write_frame(tmp_path / name, TYPED)
    pl.testing.assert_frame_equal(read_frame(tmp_path / name), READ)


def test_arrow_files_in_the_form_of_a_stream(tmp_path):
    TYPED.write_ipc_stream(tmp_path / "t.arrow")
    pl.testing.assert_frame_equal(read_frame(tmp_path / "t.arrow"), READ)


def test_numbers_of_little_precision_are_their_decimal_text(tmp_path):
    """As they are in a text file."""
    numbers = [0.1, -2.7, 1e-7, 123456.7]
    narrow = pl.Series("a", numbers, dtype=pl.Float32)
    decimals = pl.Series("b", ["0.1234567890123456789", "12345678901.2345678901", "0.3", None])
    frame = pl.DataFrame([narrow, decimals.cast(pl.Decimal(38, 19))])
    frame.write_parquet(tmp_path / "t.parquet")
    found = read_frame(tmp_path / "t.parquet")
    assert found["a"].to_list() == numbers
    assert found["b"].to_list() == [float(text) if text else None for text in decimals]
    for dtype in ("float32", ">f4", "float64"):
        path = npz(tmp_path, X=np.array([numbers], dtype=dtype), h=np.array([0.1], "float16"))
        assert read_frame(path).row(0) == (*numbers, 0.1)


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
    for frame, expected in ((pl.DataFrame(), pl.DataFrame()), (TYPED.head(0), READ.head(0))):
        frame.write_parquet(tmp_path / "t.parquet")
        pl.testing.assert_frame_equal(read_frame(tmp_path / "t.parquet"), expected)


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
