"""How the cells of a text column are read: formats of numbers and dates, and what decides between them."""

import datetime as dt
import itertools
import warnings

import numpy as np
import pytest

pl = pytest.importorskip("polars")

formats = pytest.importorskip("mlp_xp.tables._formats")
DateFormat, NumberFormat = formats.DateFormat, formats.NumberFormat
DAY_FIRST, MONTH_FIRST = formats.DAY_FIRST, formats.MONTH_FIRST


def column(cells, name="cells"):
    return pl.Series(name, cells, dtype=pl.String)


def found_in(cells):
    return formats.find_candidates(column(cells))


def learnt(cells, others=(), decimal=None, day_first=None, separator=","):
    """Return the format of a column among others, and whether it was decided by default."""
    found = [found_in(each) for each in (cells, *others)]
    return formats.find_conventions(found, decimal, day_first, separator).choose(found[0])


# numbers

POINT, COMMA = NumberFormat(), NumberFormat(",")
GROUPED = {
    "1,234.5": NumberFormat(".", ","),
    "1.234,5": NumberFormat(",", "."),
    "1 234.5": NumberFormat(".", " "),
    "1 234,5": NumberFormat(",", " "),
    "1'234.5": NumberFormat(".", "'"),
    "1'234,5": NumberFormat(",", "'"),
}


@pytest.mark.parametrize(
    ("written", "cells", "values"),
    [
        (POINT, ["1.5", "-2", "+5", ".5", "5.", "007", "1e5", "1E-2"], [1.5, -2, 5, 0.5, 5, 7, 1e5, 0.01]),
        (
            POINT,
            ["1_000", "\uff11\uff12", "one", "0x10", "1,5", "1 000", "--5", "-", "", "1.2.3"],
            [None] * 10,
        ),
        (POINT, ["inf", "-inf", "1e400", "nan"], [np.inf, -np.inf, np.inf, None]),
        (POINT, ["0.1", "1e-300", "123456789012345678"], [0.1, 1e-300, 123456789012345678.0]),
        (COMMA, ["1,5", "-2", "+5", ",5", "5,", "007", "1,5e5"], [1.5, -2, 5, 0.5, 5, 7, 1.5e5]),
        (COMMA, ["1.5", "1_000", "\uff11\uff12", "1,2,3", "eins", "inf", ","], [None] * 7),
        (GROUPED["1,234.5"], ["1,234", "12,345,678.5", "-999", "1234"], [1234, 12345678.5, -999, 1234]),
        (GROUPED["1,234.5"], ["1,23", "0,123", "1,2345", "1234,567", "1,234,5", ",123"], [None] * 6),
        (GROUPED["1,234.5"], ["12,34,567", "1,23,456.5", "1,00,00,000"], [1234567, 123456.5, 10_000_000]),
        (GROUPED["1.234,5"], ["1.234", "0,25", "1.894.767", "1.234,5"], [1234, 0.25, 1894767, 1234.5]),
        (GROUPED["1.234,5"], ["0.234", "1.5", "01.234", "1,234.5"], [None] * 4),
        (
            GROUPED["1 234,5"],
            ["1 234,5", "1\u00a0234", "1\u202f234", "1\u2009234"],
            [1234.5, 1234, 1234, 1234],
        ),
        (GROUPED["1 234,5"], ["1  234", "1 23", "1 2345", "12 3 456"], [None] * 4),
        (GROUPED["1'234.5"], ["1'234.5", "1\u2019234", "1\u2019234'567"], [1234.5, 1234, 1234567]),
        (GROUPED["1'234,5"], ["1'234,5", "1'23"], [1234.5, None]),
        (
            NumberFormat(sign="%"),
            ["5%", "2.5 %", "-1%", "0", "0.00", "5", "%", "5%%"],
            [5, 2.5, -1, 0, 0] + [None] * 3,
        ),
        (NumberFormat(",", sign="%"), ["5,5%", "0", "0,0", "0.0"], [5.5, 0, 0, None]),
        (
            NumberFormat(sign="$"),
            ["$5", "-$5", "$-5", "5 $", "5", "$ 5", "€5", "$"],
            [5, -5, -5, 5, 5, 5, None, None],
        ),
        (NumberFormat(",", ".", "€"), ["1.234,50 €", "€ 7", "-3€"], [1234.5, 7, -3]),
        (NumberFormat(".", ",", "₹"), ["₹12,34,567.50", "₹5"], [1234567.5, 5]),
    ],
)
def test_numbers(written, cells, values):
    assert written.read(column([*cells, None])).to_list() == [*values, None]


@pytest.mark.parametrize("written", [*formats.NUMBER_FORMATS, NumberFormat(sign="%"), NumberFormat(sign="$")])
def test_a_cell_is_read_alone_as_among_others(written):
    cells = [
        "1.5",
        "1,5",
        "1.234",
        "1,234",
        "1 234",
        "1'234",
        "007",
        "5%",
        "$5",
        "0",
        "1e5",
        "inf",
        "x",
        "1.234,5",
    ]
    together = written.read(column(cells)).to_list()
    for cell, value in zip(cells, together):
        assert written.read(column([cell])).to_list() == [value]


def test_whole_numbers_are_integers():
    assert POINT.read(column(["1", None, "x"])).dtype == pl.Int64
    assert NumberFormat(",", ".").read(column(["1.234", "5"])).dtype == pl.Int64
    assert POINT.read(column(["1", "1.0"])).dtype == pl.Float64
    assert POINT.read(column([str(2**62 + 1)])).to_list() == [2**62 + 1]


@pytest.mark.parametrize(
    "fields", [(";",), (".", ";"), (".", ",", "EUR"), (".", "", "x"), ("",), (".", ".."), (".", "", "%%")]
)
def test_formats_of_numbers_that_do_not_exist(fields):
    with pytest.raises(ValueError, match="numbers cannot be written as"):
        NumberFormat(*fields)


def test_formats_of_numbers_in_words():
    assert [each.words() for each in formats.NUMBER_FORMATS[:4]] == ["", "1234,5", "1,234.5", "1.234,5"]
    assert (NumberFormat(sign="%").words(), NumberFormat(",", ".", "€").words()) == ("1234.5 %", "€1.234,5")


@pytest.mark.parametrize(
    ("cells", "written", "values"),
    [
        (["1.5", "2"], POINT, [1.5, 2]),
        (["1.234", "1.894.767"], GROUPED["1.234,5"], [1234, 1894767]),
        (["1.234", "2.345,5"], GROUPED["1.234,5"], [1234, 2345.5]),
        (["1,234", "1,894,767"], GROUPED["1,234.5"], [1234, 1894767]),
        (["1,234", "2,345.5"], GROUPED["1,234.5"], [1234, 2345.5]),
        (["1,234", "0,500"], COMMA, [1.234, 0.5]),
        (["1,234", "2,5"], COMMA, [1.234, 2.5]),
        (["1.234", "0.500"], POINT, [1.234, 0.5]),
        (["12,34,567.5", "1"], GROUPED["1,234.5"], [1234567.5, 1]),
        (["1 234,5", "7"], GROUPED["1 234,5"], [1234.5, 7]),
        (["1'234.5", "7"], GROUPED["1'234.5"], [1234.5, 7]),
        (["$1,234.50", "7"], NumberFormat(".", ",", "$"), [1234.5, 7]),
        (["5%", "0", "7 %"], NumberFormat(sign="%"), [5, 0, 7]),
        (["5,5%", "7,25%"], NumberFormat(",", sign="%"), [5.5, 7.25]),
        (["1e5", "2"], POINT, [1e5, 2]),
        (["007", "010"], POINT, [7, 10]),
        (["1.234", "inf"], POINT, [1.234, np.inf]),
        # Most cells decide; the others do not fit.
        (["1.5"] * 9 + ["5%"], POINT, [1.5] * 9 + [None]),
        (["5"] * 9 + ["5%"], POINT, [5] * 9 + [None]),
        (["$5"] * 9 + ["€5"], NumberFormat(sign="$"), [5] * 9 + [None]),
        (["€5"] * 9 + ["$5"], NumberFormat(sign="€"), [5] * 9 + [None]),
        (["1.5"] * 9 + ["2,5"], POINT, [1.5] * 9 + [None]),
        (["2,5"] * 9 + ["1.5"], COMMA, [2.5] * 9 + [None]),
        (["1.5", "x"], POINT, [1.5, None]),
    ],
)
def test_formats_that_are_learnt(cells, written, values):
    chosen, by_default = learnt(cells)
    assert (chosen, by_default) == (written, False)
    assert chosen.read(column(cells)).to_list() == values


@pytest.mark.parametrize(
    "cells",
    [
        ["a", "b"],
        ["1.5", "x", "y"],
        ["1,2,3", "4,5,6"],
        ["1_000", "2_000"],
        ["$", "%"],
        ["\uff11\uff12", "\uff13"],
        ["A1", "B2"],
        ["12:75", "25:00"],
        ["-", "."],
    ],
)
def test_text(cells):
    assert found_in(cells) == ((), 0, False)
    assert learnt(cells) == (None, False)


@pytest.mark.parametrize("name", ["count", "cell", "", "a b"])
def test_names_of_columns_do_not_matter(name):
    for cells in (["1,5", "2"], ["a1", "b2"], ["2020-01-31"], ["1"]):
        assert formats.find_candidates(column(cells, name)) == found_in(cells)


# Text of ambiguous columns, and what they mean with either decimal mark.
AMBIGUOUS = {
    "commas": (["1,234", "5,678"], [1.234, 5.678], [1234, 5678]),
    "commas and whole numbers": (["1,234", "5"], [1.234, 5], [1234, 5]),
    "points": (["1.234", "5.678"], [1234, 5678], [1.234, 5.678]),
    "dollars": (["$1,234", "$7"], [1.234, 7], [1234, 7]),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_other_columns_decide_between_decimals_and_groups(name):
    cells, if_comma, if_point = AMBIGUOUS[name]
    for others, values in (
        ([["0,5"]], if_comma),
        ([["0.5"], ["7"]], if_point),
        ([["1.234,5"], ["x"]], if_comma),
    ):
        written, by_default = learnt(cells, others)
        assert (written.read(column(cells)).to_list(), by_default) == (values, False)
    for decimal, values in ((",", if_comma), (".", if_point)):
        for others in ([], [["0,5"]], [["0.5"]]):
            written, by_default = learnt(cells, others, decimal=decimal)
            assert (written.read(column(cells)).to_list(), by_default) == (values, False)


@pytest.mark.parametrize("others", [[], [["7"]], [["x"]], [["0,5"], ["0.5"]], [["2020-01-31"]]])
def test_what_decides_between_decimals_and_groups_by_default(others):
    for separator, commas in ((",", [1234]), ("\t", [1234]), (None, [1234]), (";", [1.234])):
        for cell, values in (("1,234", commas), ("1.234", [1.234])):
            written, by_default = learnt([cell], others, separator=separator)
            assert (written.read(column([cell])).to_list(), by_default) == (values, True)


def test_whole_numbers_are_written_as_other_columns():
    """Whole numbers alone say nothing about marks, so later cells may have those of the table."""
    for others, cell, value in (
        ([["0,5"]], "2,5", 2.5),
        ([["0.5"]], "2.5", 2.5),
        ([["1.234,5"]], "2,5", 2.5),
    ):
        written, by_default = learnt(["1", "2"], others)
        assert (written.read(column([cell])).to_list(), by_default) == ([value], False)
    assert learnt(["1", "2"]) == (POINT, False)
    assert learnt(["1", "2"], separator=";") == (POINT, False)


def test_a_given_mark_does_not_change_what_cells_decide():
    assert learnt(["1.5"], decimal=",") == (POINT, False)
    assert learnt(["1,5"], decimal=".") == (COMMA, False)


def written_in(value, each, random):
    """Return a number as it is written in a format, by Python's own formatting."""
    text = f"{value:,.3f}" if each.grouping and random.rand() < 0.9 else f"{value:.3f}"
    group = random.choice(
        list({" ": " \u00a0\u202f", "'": "'\u2019"}.get(each.grouping, each.grouping)) or [""]
    )
    marks = {",": str(group), ".": each.decimal}
    text = "".join(marks.get(character, character) for character in text)
    if each.sign == "%":
        return text + str(random.choice(["%", " %"]))
    return str(random.choice([each.sign, ""])) + text if each.sign and value >= 0 else text


@pytest.mark.parametrize("sign", ["", "%", "$", "€"])
@pytest.mark.parametrize("each", formats.NUMBER_FORMATS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_read_as_they_were_written(each, sign, seed):
    random = np.random.RandomState(seed)
    each = formats.replace(each, sign=sign)
    values = [round(float(value), 3) for value in random.randn(50) * 10.0 ** random.randint(0, 8, size=50)]
    values += [0.125, 1234567.125]  # these tell decimals from groups
    cells = [written_in(value, each, random) for value in values]
    chosen, by_default = learnt(cells)
    assert not by_default
    assert chosen.read(column(cells)).to_list() == values
    assert chosen.read(column(cells[:1])).to_list() == values[:1]


# dates


@pytest.mark.parametrize(
    ("form", "cell", "moment"),
    [
        ("year-month-day", "2020-02-29", dt.datetime(2020, 2, 29)),
        ("year-month-day", "2020/2/9", dt.datetime(2020, 2, 9)),
        ("year-month-day", "1969.12.31", dt.datetime(1969, 12, 31)),
        ("year-month-day", "2020-02-29T06:30", dt.datetime(2020, 2, 29, 6, 30)),
        ("year-month-day", "2020-02-29 06:30:59", dt.datetime(2020, 2, 29, 6, 30, 59)),
        ("year-month-day", "2020-02-29 06:30:59.25", dt.datetime(2020, 2, 29, 6, 30, 59, 250_000)),
        ("year-month-day", "2020-02-29 06:30:59.123456789", dt.datetime(2020, 2, 29, 6, 30, 59, 123456)),
        ("year-month-day", "1969-12-31 23:59:59.9999999", dt.datetime(1969, 12, 31, 23, 59, 59, 999_999)),
        ("year-month-day", "2020-02-29T06:30:59Z", dt.datetime(2020, 2, 29, 6, 30, 59)),
        ("year-month-day", "2020-02-29 06:30:59+02:00", dt.datetime(2020, 2, 29, 4, 30, 59)),
        ("year-month-day", "2020-02-29 06:30:59 -0530", dt.datetime(2020, 2, 29, 12, 0, 59)),
        ("year-month-day", "2020-01-01 00:30+01", dt.datetime(2019, 12, 31, 23, 30)),
        ("year-month-day", "2020-02-29 06:30 UTC", dt.datetime(2020, 2, 29, 6, 30)),
        ("year-month-day", "2020-02-29, 6:30 pm", dt.datetime(2020, 2, 29, 18, 30)),
        ("year-month-day", "2021-02-29", None),
        ("year-month-day", "2020-02-30", None),
        ("year-month-day", "2020-13-01", None),
        ("year-month-day", "2020-00-10", None),
        ("year-month-day", "2020-02-29 24:00", None),
        ("year-month-day", "2020-02-29 06:60", None),
        ("year-month-day", "2020-02-29 06:30:60", None),
        ("year-month-day", "20-02-29", None),
        ("year-month-day", "2020-02-29x", None),
        ("year-month-day", "20200229", None),
        (DAY_FIRST, "29/02/2020", dt.datetime(2020, 2, 29)),
        (DAY_FIRST, "9.2.2020", dt.datetime(2020, 2, 9)),
        (DAY_FIRST, "29-02-20 6:30 AM", dt.datetime(2020, 2, 29, 6, 30)),
        (DAY_FIRST, "1.1.68", dt.datetime(2068, 1, 1)),
        (DAY_FIRST, "1.1.69", dt.datetime(1969, 1, 1)),
        (DAY_FIRST, "1.1.00", dt.datetime(2000, 1, 1)),
        (DAY_FIRST, "2/29/2020", None),
        (DAY_FIRST, "31.4.2020", None),
        (DAY_FIRST, "1.2.3", None),
        (MONTH_FIRST, "02/29/2020", dt.datetime(2020, 2, 29)),
        (MONTH_FIRST, "2/29/99 12:00 AM", None),
        (MONTH_FIRST, "2/28/99 12:00 AM", dt.datetime(1999, 2, 28)),
        (MONTH_FIRST, "2/28/1999 12:30 p.m.", dt.datetime(1999, 2, 28, 12, 30)),
        (MONTH_FIRST, "2/28/1999 13:30 PM", None),
        (MONTH_FIRST, "2/28/1999 0:30 PM", None),
        (MONTH_FIRST, "29/2/2020", None),
        ("day month year", "29 February 2020", dt.datetime(2020, 2, 29)),
        ("day month year", "29-Feb-20", dt.datetime(2020, 2, 29)),
        ("day month year", "3rd sept. 2020", dt.datetime(2020, 9, 3)),
        ("day month year", "1. MAY 2020 18:00", dt.datetime(2020, 5, 1, 18)),
        ("day month year", "30 Feb 2020", None),
        ("day month year", "1 Foo 2020", None),
        ("day month year", "1 Marchy 2020", None),
        ("month day, year", "February 29, 2020", dt.datetime(2020, 2, 29)),
        ("month day, year", "Jul 4th 2020", dt.datetime(2020, 7, 4)),
        ("month day, year", "Jan 1, 2020, 9:05 PM", dt.datetime(2020, 1, 1, 21, 5)),
        ("month day, year", "February 30, 2020", None),
        ("year-month", "2020-02", dt.datetime(2020, 2, 1)),
        ("year-month", "2020-13", None),
        ("month year", "Feb 2020", dt.datetime(2020, 2, 1)),
        ("month year", "December-1999", dt.datetime(1999, 12, 1)),
        ("hours:minutes", "06:30", dt.time(6, 30)),
        ("hours:minutes", "23:59:59.5", dt.time(23, 59, 59, 500_000)),
        ("hours:minutes", "12:05 am", dt.time(0, 5)),
        ("hours:minutes", "1:05 PM", dt.time(13, 5)),
        ("hours:minutes", "24:00", None),
        ("hours:minutes", "6", None),
    ],
)
def test_dates(form, cell, moment):
    assert DateFormat((form,)).read(column([cell, None, cell])).to_list() == [moment, None, moment]


@pytest.mark.parametrize("name", ["%b", "%B"])
def test_names_of_months(name):
    days = [dt.datetime(2019, month, 28) for month in range(1, 13)]
    for form, pattern in (("day month year", f"%d {name} %Y"), ("month day, year", f"{name} %d, %Y")):
        cells = [day.strftime(pattern) for day in days]
        for change in (str, str.upper, str.lower):
            assert DateFormat((form,)).read(column(map(change, cells))).to_list() == days


def test_several_forms_in_one_column():
    written = DateFormat(("year-month-day", "month day, year", DAY_FIRST))
    cells = ["2020-01-31", "Feb 1, 2020", "2/1/2020", "5", None]
    assert written.read(column(cells)).to_list() == [
        dt.datetime(2020, 1, 31),
        dt.datetime(2020, 2, 1),
        dt.datetime(2020, 1, 2),
        None,
        None,
    ]
    assert written.words() == "year-month-day or month day, year or day/month/year"
    assert written.read(column([None, None])).to_list() == [None, None]
    assert written.read(column([])).to_list() == []


@pytest.mark.parametrize(
    "forms",
    [(), ("year",), ("year-month",) * 2, (DAY_FIRST, MONTH_FIRST), ("year-month-day", "hours:minutes")],
)
def test_formats_of_dates_that_do_not_exist(forms):
    with pytest.raises(ValueError, match="dates cannot be written as"):
        DateFormat(forms)


@pytest.mark.parametrize(
    ("cells", "forms", "by_default"),
    [
        (["2020-01-31", "2020-02-29"], ("year-month-day",), False),
        (["2020-01-31", "2020-02-29 10:00"], ("year-month-day",), False),
        (["31/1/2020", "1/2/2020"], (DAY_FIRST,), False),
        (["1/31/2020", "1/2/2020"], (MONTH_FIRST,), False),
        (["1/2/2020"] * 99 + ["1/31/2020"], (MONTH_FIRST,), False),
        (["1/2/2020"] * 99 + ["31/1/2020"], (DAY_FIRST,), False),
        (["2020-01-31", "1/31/2020"], ("year-month-day", MONTH_FIRST), False),
        (["10:00", "10:00:30"], ("hours:minutes",), False),
        (["Jan 2020", "2020-02"], ("year-month", "month year"), False),
        (["2020-01-31", "2020-02-30"], ("year-month-day",), False),
        # No cell decides: the number that is the same in all of them is the day, else the month comes first.
        (["1/2/2020", "3/4/2020"], (MONTH_FIRST,), True),
        (["1/1/2020", "1/2/2020", "1/3/2020"], (DAY_FIRST,), True),
        (["1/1/2020", "2/1/2020", "3/1/2020"], (MONTH_FIRST,), True),
        (["1/2/2020"], (MONTH_FIRST,), True),
        (["1.2.2020"], (DAY_FIRST,), True),
        (["1.2.2020", "3/4/2020"], (MONTH_FIRST,), True),
        (["1.1.2020", "2.1.2020", "3.1.2020"], (MONTH_FIRST,), True),
        (["1.1.2020", "1.2.2020"], (DAY_FIRST,), True),
    ],
)
def test_forms_that_are_learnt(cells, forms, by_default):
    assert learnt(cells) == (DateFormat(forms), by_default)


def test_other_columns_decide_between_days_and_months():
    cells, day, month = (
        ["1/2/2020", "3/4/2020"],
        (DateFormat((DAY_FIRST,)), False),
        (DateFormat((MONTH_FIRST,)), False),
    )
    assert learnt(cells, [["13/2/2020"]]) == day
    assert learnt(cells, [["2/13/2020"]]) == month
    assert learnt(cells, [["2/13/2020"]], day_first=True) == day
    assert learnt(cells, [["13/2/2020"]], day_first=False) == month
    assert learnt(cells, day_first=True) == day
    assert learnt(cells, [["2020-01-31"], ["x"], ["0,5"]]) == (month[0], True)
    assert learnt(cells, [["2/13/2020"], ["13/2/2020"]]) == (month[0], True)
    assert learnt(["1.2.2020"], [["2/13/2020"], ["13/2/2020"]]) == (day[0], True)
    assert learnt(["13/2/2020"], day_first=False) == day
    assert learnt(["2/13/2020"], day_first=True) == month


def test_dates_that_fit_some_cells():
    assert found_in(["2020-01-31", "soon"]).n_fitting == 1
    assert found_in(["2020-01-31", "soon", "later"]) == ((), 0, False)
    assert found_in(["10:00", "2020-01-31", "2020-02-01"]).n_fitting == 2


STRFTIME = {
    "year-month-day": ["%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d"],
    DAY_FIRST: ["%d/%m/%Y", "%d.%m.%Y", "%d-%m-%y"],
    MONTH_FIRST: ["%m/%d/%Y", "%m-%d-%y"],
    "day month year": ["%d %B %Y", "%d-%b-%y", "%d. %b %Y"],
    "month day, year": ["%B %d, %Y", "%b %d %Y"],
    "year-month": ["%Y-%m"],
    "month year": ["%B %Y", "%b-%Y"],
    "hours:minutes": [""],
}
CLOCKS = ["", " %H:%M", "T%H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", ", %I:%M:%S %p", " %H:%M:%S+01:00"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", STRFTIME)
@pytest.mark.parametrize("clock", CLOCKS)
def test_dates_are_read_as_they_were_written(form, clock):
    random = np.random.RandomState(0)
    if form == "hours:minutes" and (not clock or "+" in clock):
        return
    for date in STRFTIME[form]:
        pattern = date + clock if date else clock.lstrip(" T,")
        seconds = random.randint(0, 60 * 365 * 86400, size=60)  # up to 2029
        moments = [
            dt.datetime(1970, 1, 1) + dt.timedelta(seconds=int(each), microseconds=250) for each in seconds
        ]
        cells = [moment.strftime(pattern) for moment in moments]
        expected = [dt.datetime.strptime(cell, pattern) for cell in cells]
        if "+01:00" in clock:  # a literal text for Python; read as UTC
            expected = [each - dt.timedelta(hours=1) for each in expected]
        if not date:
            expected = [each.time() for each in expected]
        chosen, by_default = learnt(cells)
        assert (chosen, by_default) == (DateFormat((form,)), False)
        assert chosen.read(column(cells)).to_list() == expected
        assert chosen.read(column(cells[:1])).to_list() == expected[:1]


def test_dates_are_those_of_pandas():
    pandas = pytest.importorskip("pandas")
    pieces = itertools.product(
        [
            "2020-02-29",
            "1999-1-3",
            "02/29/2020",
            "3/4/2020",
            "29 Feb 2020",
            "Feb 29, 2020",
            "February 2020",
            "1/31/99",
        ],
        ["", " 06:30", "T06:30:15", " 6:30 PM", " 06:30:15.5", " 12:00 AM"],
    )
    forms = ("year-month-day", "month/day/year", "day month year", "month day, year", "month year")
    for date, clock in pieces:
        cell = date + clock
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas guesses a format
            try:
                expected = pandas.to_datetime(cell).to_pydatetime()
            except ValueError:
                continue
        assert DateFormat(forms).read(column([cell])).to_list() == [expected], cell


def test_missing_markers_are_those_of_pandas():
    parsers = pytest.importorskip("pandas._libs.parsers")
    errors_of_excel = {"#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!"}
    assert {*parsers.STR_NA_VALUES} - {""} == {*formats.MISSING_MARKERS} - {"?"} - errors_of_excel
