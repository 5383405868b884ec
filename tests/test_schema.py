"""The schema of a table: the rules by which it is learnt, and how it reads the cells of later tables."""

import datetime as dt
import re

import numpy as np
import pytest

pl = pytest.importorskip("polars")
learning = pytest.importorskip("mlp_xp.tables._learning")
schemas = pytest.importorskip("mlp_xp.tables._schema")
RawTable = pytest.importorskip("mlp_xp.tables._common").RawTable
formats = pytest.importorskip("mlp_xp.tables._formats")
ColumnSchema, Schema, learn_schema = schemas.ColumnSchema, schemas.Schema, learning.learn_schema
DataError = learning.DataError
NUMBER, DATE, TIME = (
    formats.NumberFormat(),
    *(formats.DateFormat((form,)) for form in ("year-month-day", "hours:minutes")),
)


def refuses(message):
    return pytest.raises(DataError, match=f"^{message}$")


def kind_of(values, name="a", **settings):
    """Return the kind of a column beside others, or the reason why it is left out."""
    values = pl.Series(name, values)
    frame = pl.DataFrame({"other": [0.5] * len(values), "y": [0.5] * len(values)}).with_columns(values)
    schema = learn_schema(frame, "y", **settings)
    if name in schema.left_out:
        return schema.left_out[name]
    (column,) = [column for column in schema.features if column.name == name]
    return column.kind


# What the columns are.


KINDS = {
    "integers": ([1, 2, 3], "number"),
    "fractions": ([0.5, None, 3.0], "number"),
    "unsigned": (pl.Series([2**64 - 1, 0, 1], dtype=pl.UInt64), "number"),
    "128 bits": (pl.Series([2**100, 0, 1], dtype=pl.Int128), "number"),
    "decimals": (pl.Series(["1.5", "2", None]).cast(pl.Decimal(10, 2)), "number"),
    "truth values": ([True, False, None], "truth"),
    "truth in text": (["TRUE", "false", None], "truth"),
    "truth and more": (["true", "false", "maybe"], "category"),
    "one truth": (["True", "True", ""], "truth"),
    "yes and no": (["yes", "no", "yes"], "category"),
    "text": (["a", "b", None], "category"),
    "text of digits": (["1", "2", None], "number"),
    "text of numbers": (["1.5", "-2e3", " 7 "], "number"),
    "decimal commas": (["1,5", "2,25", "0,5"], "number"),
    "text of dates": (["2020-01-31", "2020-02-01", ""], "date"),
    "text of times": (["18:00:00", "19:30", ""], "date"),
    "coded": (pl.Series(["1", "2", "1"], dtype=pl.Categorical), "category"),
    "enum": (pl.Series(["1", "2", "1"], dtype=pl.Enum(["1", "2"])), "category"),
    "days": ([dt.date(2020, 1, 1), None, dt.date(2021, 1, 1)], "date"),
    "moments": (pl.Series([dt.datetime(2020, 1, 1)] * 3, dtype=pl.Datetime("ns", "UTC")), "date"),
    "times": ([dt.time(1), dt.time(2), None], "date"),
    "durations": ([dt.timedelta(1), None, None], "date"),
    "constant": ([1, 1, 1], "number"),
    "nothing": ([None, None, None], "it is empty"),
    "not a number": ([np.nan, np.nan, np.nan], "it is empty"),
    "no text": (pl.Series([None, "", "  "], dtype=pl.String), "it is empty"),
    "words for missing": (["NA", "?", None], "it is empty"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_columns(name):
    values, kind = KINDS[name]
    assert kind_of(values) == kind


@pytest.mark.parametrize("name", [name for name, (_, kind) in KINDS.items() if kind != "it is empty"])
def test_a_schema_reads_the_table_it_was_learnt_from(name):
    frame = pl.DataFrame({"a": KINDS[name][0]})
    typed = learn_schema(frame).read(frame)
    assert typed.dtypes == [pl.String if KINDS[name][1] == "category" else pl.Float64]
    assert typed["a"].null_count() == sum(value in (None, "") for value in frame["a"].to_list())


def test_columns_keep_their_order_and_choices_win():
    frame = pl.DataFrame({name: [1, 2] for name in "dcba"}).with_columns(a=pl.lit(dt.date(2020, 1, 1)))
    assert learn_schema(frame).names("number") == ["d", "c", "b"]
    assert learn_schema(frame).names("number", "date") == ["d", "c", "b", "a"]
    schema = learn_schema(frame, "d", categorical=["b", "c"], drop=["c"])
    assert [(column.name, column.kind) for column in schema.features] == [("b", "category"), ("a", "date")]
    assert schema.left_out == {"c": "as asked"}
    assert (schema.target.name, schema.target.kind) == ("d", "number")


def test_names_that_differ_little():
    frame = pl.DataFrame({"mass": [1, 2], "Mass": ["a", "b"], "mass (kg)": [3, 4], 'm "\n': [5, 6]})
    schema = learn_schema(frame)
    assert schema.names("number") == ["mass", "mass (kg)", 'm "\n']
    assert schema.names("category") == ["Mass"]


@pytest.mark.parametrize("option", ["categorical", "drop", "keep"])
@pytest.mark.parametrize("name", ["z", "y", "A", "w"])
def test_unknown_columns(option, name):
    frame = pl.DataFrame({"a": [1, 2], "y": [0, 1], "w": [1, 1]})
    with refuses(f"`{option}`: no column '{name}' among the features a"):
        learn_schema(frame, "y", sample_weight="w", **{option: [name]})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"target": "z"}, DataError, "`target` must be one of the columns a, y, got 'z'"),
        ({"sample_weight": "z"}, DataError, "`sample_weight` must be one of the columns a, y, got 'z'"),
        ({"target": "y", "sample_weight": "y"}, DataError, ".* must be different columns"),
        ({"task": "ranking"}, ValueError, r"`task` must be one of \['auto', .*\], got 'ranking'"),
        ({"decimal": ";"}, ValueError, r"`decimal` must be one of .*, got ';'"),
        ({"drop": "a"}, TypeError, "`drop` must be a list of text, got .*"),
        ({"missing": "NA"}, TypeError, "`missing` must be a list of text, got .*"),
        ({"keep": {"a": 1}}, TypeError, "`keep` must be a list of text, got .*"),
    ],
)
def test_wrong_arguments(settings, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        learn_schema(pl.DataFrame({"a": [1, 2], "y": [0, 1]}), **settings)
    with pytest.raises(TypeError, match="^`table` must be a polars DataFrame, got "):
        learn_schema({"a": [1]})


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"y": [1, 2]}, "there is no other column"),
        ({"a": [None, None], "y": [1, 2]}, "'a' is left out: it is empty"),
        ({"a": ["NA", ""], "y": [1, 2]}, "'a' is left out: it is empty"),
        (
            {"a": [f"n{row}" for row in range(30)], "y": range(30)},
            "'a' is left out: it is text with 30 different values in 30 rows",
        ),
    ],
)
def test_no_feature_is_left(frame, reason):
    with refuses(re.escape(f"at least one feature and the target are needed ({reason})")):
        learn_schema(pl.DataFrame(frame), "y")


def test_tables_without_rows():
    with refuses("the target 'y' has no values"):
        learn_schema(pl.DataFrame({"a": [], "y": []}), "y")
    with refuses(r"at least one feature .* \('a' is left out: it is empty\)"):
        learn_schema(pl.DataFrame({"a": []}, schema={"a": pl.String}))


ODD = {
    "lists": [[1], [2]],
    "structures": [{"a": 1}, {"a": 2}],
    "bytes": [b"x", b"y"],
    "objects": pl.Series([object(), object()], dtype=pl.Object),
}


@pytest.mark.parametrize("name", ODD)
def test_columns_of_other_things_can_only_be_dropped(name):
    frame = pl.DataFrame({"a": [1, 2]}).with_columns(pl.Series("odd", ODD[name]))
    with refuses("the column 'odd' must hold numbers, text or dates, got .*; --drop leaves it out"):
        learn_schema(frame)
    schema = learn_schema(frame, drop=["odd"])
    assert schema.left_out == {"odd": "as asked"}
    assert schema.read(frame).rows() == [(1.0,), (2.0,)]


@pytest.mark.parametrize("weights", [[None, None], ["", ""], ["a", "b"], [dt.date(2020, 1, 1)] * 2])
def test_weights_are_numbers(weights):
    frame = pl.DataFrame({"a": [1.5, 2.0], "w": weights})
    with refuses("the sample weights 'w' must hold numbers"):
        learn_schema(frame, sample_weight="w")
    for numbers in (["1", "0.5"], [1, 2], [True, False]):
        assert learn_schema(pl.DataFrame({"a": [1.5, 2.0], "w": numbers}), sample_weight="w").sample_weight


# Text with many different values: each rule on both sides of its limit.


def names(counts):
    """Return text in which the k-th name comes counts[k] times."""
    return [f"name {index}" for index, count in enumerate(counts) for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "n_rows", "is_used"),
    [
        ([1] * 20, 20, True),  # few names are always allowed
        ([1] * 21, 21, False),
        ([2] * 25 + [1] * 50, 100, True),  # half the rows have names that come twice
        ([2] * 24 + [1] * 52, 100, False),
        ([1] * 50 + [2] * 25, 100, True),  # in any order
        ([3] * 25, 300, True),  # rows without a name make a name rarer, but do not count as rare
        ([2] * 25, 300, False),
        ([10] * 50 + [1] * 500, 1000, True),  # 1 % of the rows
        ([9] * 60 + [1] * 460, 1000, False),
        ([10] * 100 + [1] * 1000, 2000, True),  # but never more than 10 rows
        ([9] * 120 + [1] * 920, 2000, False),
        ([10] * 200, 2000, True),  # a hundred names have half the rows
        ([10] * 201, 2010, False),
        ([10] * 150 + [1000], 2500, True),  # the most frequent ones are kept, wherever they are
    ],
)
def test_text_of_many_values(counts, n_rows, is_used):
    cells = names(counts)
    n_known = len(cells)
    cells += [None] * (n_rows - n_known)
    reason = f"it is text with {len(counts)} different values in {n_known} rows"
    assert kind_of(cells) == ("category" if is_used else reason)
    assert kind_of(cells, keep=["a"]) == "category"
    assert kind_of(cells, categorical=["a"]) == "category"


@pytest.mark.parametrize(
    ("n_rows", "least"), [(1, 2), (299, 2), (300, 3), (999, 9), (1000, 10), (1100, 10), (10**6, 10)]
)
def test_the_rows_that_make_a_category_frequent(n_rows, least):
    assert learning.min_frequency(n_rows) == least


def test_choices_of_categories_may_have_many_values():
    assert kind_of(range(500), categorical=["a"]) == "category"
    assert kind_of([f"{row}.5" for row in range(500)], categorical=["a"]) == "category"
    assert kind_of(["2020-01-01", "1"], categorical=["a"]) == "category"
    assert kind_of([None, ""], categorical=["a"]) == "it is empty"


# Numbers of the rows.


NAMES_OF_ROW_NUMBERS = [
    *("id", "ID", "Id", "ids", "PassengerId", "customerID", "order_id", "Player ID", "ID:", "id_client"),
    *("Row", "row", "instant", "no", "No.", "Serial No.", "OrderNo", "Nr", "index", "idx", "Index"),
    *("EmployeeNumber", "number", "key", "uuid", "record", "Table2Id"),
    *("Unnamed: 0", "Unnamed: 12", "Unnamed: 0.1", "__index_level_0__", "level_0"),
]


@pytest.mark.parametrize("name", NAMES_OF_ROW_NUMBERS)
def test_numbers_of_the_rows_by_their_name(name):
    for values in ([30, 1, 2], [30.0, 1.0, 2.0], ["30", "1", "2"], ["1,030", "1,001", "2"]):
        assert kind_of(values, name) == "it numbers the rows"
        assert kind_of(values, name, keep=[name]) == "number"
        assert kind_of(values, name, categorical=[name]) == "category"
    for values in ([1, 1, 2], [0.5, 1.0, 2.0], [None, 1, 2], ["1", "", "2"]):
        assert kind_of(values, name) == "number"
    assert kind_of(["x", "y", "z"], name) == "category"


@pytest.mark.parametrize(
    "name",
    [
        *("paid", "grid", "covid", "PAID", "acid", "hybrid", "Grid", "idea", "video", "identity score"),
        *("piano", "nowhere", "no of rooms", "row width", "number of rooms", "indexed", "monkey", "arrow"),
        *("Unnamed: x", "unnamed", "numbers", "recording"),
    ],
)
def test_names_that_only_look_like_those_of_row_numbers(name):
    assert kind_of([30, 1, 2], name) == "number"


@pytest.mark.parametrize(
    ("values", "name", "is_used"),
    [
        (range(20), "x", False),
        (range(19), "x", True),
        (range(500, 520), "X", False),
        ([float(row) for row in range(24)], "x", False),
        ([str(row) for row in range(24)], "x", False),
        (range(0, 48, 2), "x", True),
        (range(24, 0, -1), "x", True),
        ([*range(24), 23], "x", True),
        ([*range(23), None], "x", True),
        ([row + 0.5 for row in range(24)], "x", True),
        (range(1990, 2010), "year", True),
        (range(1990, 2010), "YearBuilt", True),
        (range(1, 13), "Month", True),
        (range(1, 13), "quarter", True),
        (range(1, 32), "day", True),
        (range(24), "hour", True),
        (range(20, 60), "Age", True),
        ([dt.date(2020, 1, day) for day in range(1, 20)], "x", True),
    ],
)
def test_numbers_of_the_rows_by_their_values(values, name, is_used):
    kind = kind_of(values, name)
    assert (kind != "it numbers the rows") == is_used
    assert kind_of(values, name, keep=[name]) in ("number", "date")


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"empty": [None] * 30},
        {"dropped": [0.5] * 30},
        {"name": [f"n{row}" for row in range(30)]},
        {"Row": [*range(7, 37)]},
    ],
)
def test_numbers_of_the_rows_stay_if_nothing_else_is_left(others):
    frame = pl.DataFrame({"id": range(30), "y": [0.5] * 30, **others})
    schema = learn_schema(frame, "y", drop=[name for name in others if name == "dropped"])
    assert [column.name for column in schema.features] == ["id", *(name for name in others if name == "Row")]
    assert learn_schema(frame.with_columns(used=pl.lit(0.5)), "y").left_out["id"] == "it numbers the rows"


# Words among numbers.


def cells_of_numbers(n_rows, strays=(), n_different=None):
    numbers = [f"{row % (n_different or n_rows)}.5" for row in range(n_rows - len(strays))]
    return [*numbers, *strays]


@pytest.mark.parametrize(
    "words", [["none yet"] * 15, ["-"], ["x", "y", "z"], ["unknown"] * 40, ["n.v.", "-"] * 7]
)
def test_few_words_among_numbers_stand_for_missing_values(words):
    frame = pl.DataFrame({"a": cells_of_numbers(100, words)})
    schema = learn_schema(frame)
    (column,) = schema.features
    assert (column.kind, column.missing) == ("number", tuple(dict.fromkeys(words)))
    listed = ", ".join(repr(word) for word in column.missing)
    where = " (row 100)" if len(words) == 1 else ""
    assert schema.notes == (f"a: {listed}{where} counts as a missing value",)
    typed = schema.read(frame)["a"]
    assert typed.null_count() == len(words)
    assert typed[:3].to_list() == [0.5, 1.5, 2.5]
    # Only these words do.
    with refuses("the column 'a' must hold numbers, got 'other' in row 2"):
        schema.read(pl.DataFrame({"a": [words[0], "other", "7"]}))


@pytest.mark.parametrize(
    ("strays", "named"),
    [
        (["1o", "l5"], "'1o' in row 99, 'l5' in row 100"),
        (["w", "x", "y", "z"], "'w' in row 97, 'x' in row 98, 'y' in row 99, 'z' in row 100"),
        (
            ["5" + mark for mark in "abcdef"],
            "'5a' in row 95, '5b' in row 96, '5c' in row 97, '5d' in row 98, '5e' in row 99, ... (6 in all)",
        ),
        (["a\nb7"], "'a\\nb7' in row 100"),
        (["7" * 30 + "x" * 70], f"'{'7' * 30}{'x' * 9} in row 100"),
    ],
)
def test_stray_cells_among_numbers_are_named(strays, named):
    frame = pl.DataFrame({"a": cells_of_numbers(100, strays)})
    with pytest.raises(DataError) as caught:
        learn_schema(frame)
    assert str(caught.value) == (
        f"the column 'a' holds numbers except for {named}: correct them, or name those "
        "that mean a missing value with --na, or make the column --categorical, or --drop it"
    )
    assert kind_of(frame["a"], categorical=["a"]) == "category"
    assert kind_of(frame["a"], drop=["a"]) == "as asked"
    assert kind_of(frame["a"], missing=strays) == "number"


def test_stray_cells_of_all_columns_are_named_at_once():
    frame = pl.DataFrame(
        {
            "a": cells_of_numbers(50, ["1o"]),
            "b": cells_of_numbers(50),
            "day": [f"2020-03-{1 + row % 31:02}" for row in range(49)] + ["2020-02-30"],
            "odd": [[1]] * 50,
        }
    )
    with refuses(
        "the column 'a' holds numbers except for '1o' in row 50: .*; "
        "the column 'day' holds dates except for '2020-02-30' in row 50: .*; "
        "the column 'odd' must hold .*"
    ):
        learn_schema(frame)


@pytest.mark.parametrize(("n_strays", "is_text"), [(20, False), (21, True)])
def test_many_stray_cells_make_text(n_strays, is_text):
    cells = cells_of_numbers(100, [f"A{row}" for row in range(n_strays)])
    if is_text:
        assert kind_of(cells) == "it is text with 100 different values in 100 rows"
    else:
        with refuses(r"the column 'a' holds numbers except for 'A0' in row 81, .* \(20 in all\): .*"):
            kind_of(cells)


def test_any_name_will_do():
    for name in ("count", "value", "cell", "len", "literal"):
        assert kind_of([f"n{row}" for row in range(99)], name).startswith("it is text")
        assert kind_of([f"{2 * row}%" for row in range(99)], name) == "number"
        assert kind_of(["2020-01-01", "31.1.2020"] * 9, name) == "date"


def test_mostly_words_are_text():
    assert kind_of([f"none {row}" for row in range(60)] + [f"{row}.5" for row in range(40)]).startswith(
        "it is text"
    )
    assert kind_of(["none"] * 60 + [f"{row}.5" for row in range(40)]) == "number"
    assert kind_of(["1", "2", "3+", "1", "2", "\N{EN DASH}", "4-5"]) == "category"


@pytest.mark.parametrize(
    ("n_rows", "n_numbers", "kind"),
    [
        (25, 4, "category"),  # five rows for each of five values
        (24, 4, "number"),
        (100, 19, "category"),  # twenty values at most
        (110, 20, "number"),
        (4000, 20, "number"),
    ],
)
@pytest.mark.parametrize("n_empty", [0, 3])
def test_a_word_among_few_numbers_names_a_category(n_rows, n_numbers, kind, n_empty):
    cells = cells_of_numbers(n_rows, ["rotary"], n_numbers) + [None] * n_empty
    assert kind_of(cells) == kind
    digits = [None if cell is None else cell.replace("rotary", "5+") for cell in cells]
    if kind == "category":  # whatever the word is
        assert kind_of(digits) == kind
    else:
        with refuses(f"the column 'a' holds numbers except for '5\\+' in row {n_rows}: .*"):
            kind_of(digits)


@pytest.mark.parametrize("mark", ["-", "--", "\u2014", ".", "*", "n/a", "\u2026"])
def test_a_dash_among_few_numbers_names_no_category(mark):
    assert kind_of(cells_of_numbers(200, [mark, mark], 4)) == "number"
    assert kind_of(["a", "b", mark]) == "category"
    assert kind_of(cells_of_numbers(200, ["+", "+"], 4)) == "category"


def test_words_among_dates():
    days = [f"{1 + row % 28}.{1 + row % 12}.2020" for row in range(90)]
    schema = learn_schema(pl.DataFrame({"a": [*days, "never", "never"]}))
    assert schema.features[0].missing == ("never",)
    assert schema.read(pl.DataFrame({"a": ["never", "2.1.1970"]}))["a"].to_list() == [None, 1.0]


def test_a_note_says_what_no_cell_decides():
    frame = pl.DataFrame({"day": ["1/2/2020", "3/4/2021", "5/6/2020"], "size": ["1.234", "2.345", "7.899"]})
    assert len(learn_schema(frame).notes) == 2
    for note, option in zip(learn_schema(frame).notes, ("--dates day-first", "--decimal ,")):
        assert option in note
    chosen = learn_schema(frame, day_first=True, decimal=",")
    assert chosen.notes == ()
    assert chosen.read(frame).row(0) == ((dt.date(2020, 2, 1) - dt.date(1970, 1, 1)).days, 1234.0)
    # Another column may decide.
    more = frame.with_columns(other=pl.Series(["31/1/2020"] * 3), price=pl.Series(["1,5", "2,25", "0,5"]))
    assert learn_schema(more).notes == ()
    assert (
        learn_schema(more).read(frame.with_columns(more)).rows()
        == learn_schema(more, day_first=True, decimal=",").read(more).rows()
    )


# Words that mean a missing value.


@pytest.mark.parametrize("word", formats.MISSING_MARKERS)
def test_words_for_missing_values(word):
    frame = pl.DataFrame({"a": ["1.5", word, f" {word} "], "b": ["x", word, ""], "day": ["1/31/2020"] * 3})
    frame = frame.with_columns(day=pl.Series([word, "1/31/2020", ""]))
    schema = learn_schema(frame)
    assert [column.kind for column in schema.features] == ["number", "category", "date"]
    assert schema.read(frame).null_count().row(0) == (2, 2, 2)


def test_only_the_words_given_mean_a_missing_value():
    frame = pl.DataFrame({"a": ["NA", "b", "", " "], "b": ["NA", "absent", "x", None]})
    schema = learn_schema(frame, missing=["absent"])
    assert schema.read(frame).rows() == [("NA", "NA"), ("b", None), (None, "x"), (None, None)]
    assert learn_schema(frame, missing=()).read(frame)["b"].to_list() == ["NA", "absent", "x", None]
    # Words that Python would read as no number are no numbers.
    numbers = pl.DataFrame({"a": [*cells_of_numbers(60), "nan", "NA1"]})
    with refuses("the column 'a' holds numbers except for 'nan' in row 61, 'NA1' in row 62: .*"):
        learn_schema(numbers, missing=())


@pytest.mark.parametrize(
    "values",
    [
        ["-200", "1.5", "-200.0", "2"],
        [" -200 ", "1.5", "-2e2", "2"],
        [-200.0, 1.5, -200.0, 2.0],
        pl.Series([-200.0, 1.5, -200.0, 2.0], dtype=pl.Float32),
        pl.Series(["-200", "1.5", "-200.00", "2"]).cast(pl.Decimal(9, 2)),
    ],
)
def test_a_number_that_means_a_missing_value(values):
    frame = pl.DataFrame({"a": values})
    assert learn_schema(frame, missing=["-200"]).read(frame)["a"].to_list() == [None, 1.5, None, 2.0]
    assert learn_schema(frame, missing=["-200.00"]).read(frame)["a"].to_list() == [None, 1.5, None, 2.0]
    assert learn_schema(frame).read(frame)["a"].null_count() == 0
    codes = learn_schema(frame, missing=["-200"], categorical=["a"])
    assert codes.read(frame)["a"].to_list() == [None, "1.5", None, "2"]


def test_a_number_that_means_a_missing_value_in_other_columns():
    schema = Schema((ColumnSchema("a", "number", formats.NumberFormat(",", ".")),), missing=("-1.000", "x"))
    text, typed = (
        pl.DataFrame({"a": ["-1000", "-1.000,0", "-1", "x"]}),
        pl.DataFrame({"a": [-1000, -1, None]}),
    )
    assert schema.read(text)["a"].to_list() == [None, None, -1.0, None]
    assert schema.read(typed)["a"].to_list() == [None, -1.0, None]
    assert kind_of([-200, -200], missing=["-200"]) == "it is empty"
    assert kind_of([-200, 3, 5], name="id", missing=["-200"]) == "number"
    with refuses("the column 'a' must hold numbers, got 'x' in row 1"):
        Schema((ColumnSchema("a", "number", NUMBER),), missing=("-200",)).read(pl.DataFrame({"a": ["x"]}))


# Reading later tables.


def read(values, kind, format=None, missing=()):
    return Schema((ColumnSchema("a", kind, format),), missing=missing).read(pl.DataFrame({"a": values}))["a"]


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([1, None, 3], [1.0, None, 3.0]),
        ([1.5, np.nan, None], [1.5, None, None]),
        ([True, False, None], [1.0, 0.0, None]),
        ([None, None, None], [None, None, None]),
        (["1", "2.5", None], [1.0, 2.5, None]),
        ([" 1e3", "-.5", ""], [1000.0, -0.5, None]),
        (pl.Series(["1.5", "2", None]).cast(pl.Decimal(10, 2)), [1.5, 2.0, None]),
        (pl.Series(["7", "5", None], dtype=pl.Categorical), [7.0, 5.0, None]),
        (pl.Series([2**64 - 1, 0, 1], dtype=pl.UInt64), [2.0**64, 0.0, 1.0]),
        (pl.Series([2**100, 0, 1], dtype=pl.Int128), [2.0**100, 0.0, 1.0]),
        (pl.Series([0.1, 2, None], dtype=pl.Float32), [0.1, 2.0, None]),
    ],
)
def test_numbers(values, numbers):
    found = read(values, "number", NUMBER)
    assert found.dtype == pl.Float64
    assert found.to_list() == numbers


@pytest.mark.parametrize(
    ("values", "format", "days"),
    [
        ([dt.date(1970, 1, 2), dt.date(1969, 12, 31), None], DATE, [1.0, -1.0, None]),
        ([dt.datetime(1970, 1, 2, 12), dt.datetime(1969, 12, 31, 18), None], DATE, [1.5, -0.25, None]),
        (["1970-01-02", "1969-12-31T18:00", ""], DATE, [1.0, -0.25, None]),
        ([dt.time(6), dt.time(18), None], TIME, [0.25, 0.75, None]),
        (["06:00", "6:00 pm", ""], TIME, [0.25, 0.75, None]),
        ([dt.timedelta(hours=36), dt.timedelta(-1), None], None, [1.5, -1.0, None]),
        ([None, None], DATE, [None, None]),
    ],
)
def test_dates_are_days_since_1970(values, format, days):
    found = read(values, "date", format)
    assert found.dtype == pl.Float64
    assert found.to_list() == days


def test_dates_are_the_same_in_text_and_typed():
    days = [dt.date(1999, 12, 31), dt.date(2000, 2, 29), dt.date(2024, 11, 5)]
    expected = [(day - dt.date(1970, 1, 1)).days for day in days]
    for pattern, form in [("%Y/%m/%d", "year-month-day"), ("%d.%m.%Y", "day/month/year"), ("%m/%d/%y", None)]:
        text = pl.DataFrame({"a": [day.strftime(pattern) for day in days]})
        schema = learn_schema(text)
        assert schema.features[0].format.forms == (form or "month/day/year",)
        assert schema.read(text)["a"].to_list() == expected
        assert schema.read(pl.DataFrame({"a": days}))["a"].to_list() == expected
    typed = learn_schema(pl.DataFrame({"a": days}))
    assert typed.read(pl.DataFrame({"a": [f"{day}" for day in days]}))["a"].to_list() == expected


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo", "America/New_York"])
def test_moments_are_days_in_utc(unit, zone):
    moments = pl.Series("a", [dt.datetime(1970, 1, 3, 6)]).dt.cast_time_unit(unit).dt.replace_time_zone(zone)
    hours = {"Asia/Tokyo": 9, "America/New_York": -5}.get(zone, 0)
    assert read(moments, "date", DATE).item() == pytest.approx(2.25 - hours / 24, abs=1e-12)
    text = f"1970-01-03 06:00:00{hours:+03}:00"
    assert read(pl.Series("a", [text]), "date", DATE).equals(read(moments, "date", DATE))
    spans = pl.Series("a", [dt.timedelta(hours=6)]).dt.cast_time_unit(unit)
    assert read(spans, "date").item() == 0.25


@pytest.mark.parametrize(
    "values",
    [
        ["true", "false", None],
        ["TRUE", " False", ""],
        ["1", "0", None],
        [True, False, None],
        [1, 0, None],
        [1.0, -0.0, np.nan],
        pl.Series([1, 0, None], dtype=pl.UInt8),
        pl.Series(["True", "False", None], dtype=pl.Categorical),
    ],
)
def test_truth_values(values):
    assert read(values, "truth").to_list() == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["a", " b", None], ["a", "b", None]),
        (["True", "FALSE", "maybe"], ["true", "false", "maybe"]),
        (["1", "1.0", "01"], ["1", "1", "1"]),
        (["-2.50", "1e2", ".5"], ["-2.5", "100", "0.5"]),
        (["+5", "-0", "0.000"], ["5", "0", "0"]),
        (["12345678901234567890.10", "0.1", "1e-3"], ["12345678901234567890.1", "0.1", "0.001"]),
        (["1e999999", "1_0", "nan"], ["1e999999", "1_0", "nan"]),
        ([True, False, None], ["true", "false", None]),
        ([1, 2, None], ["1", "2", None]),
        ([1.0, 2.5, None], ["1", "2.5", None]),
        (pl.Series([0.1, 2, None], dtype=pl.Float32), ["0.1", "2", None]),
        ([1e20, 1e-7, 100.0], ["100000000000000000000", "0.0000001", "100"]),
        (pl.Series([2**100, 10, 0], dtype=pl.Int128), [str(2**100), "10", "0"]),
        (pl.Series(["1.50", "2", None]).cast(pl.Decimal(10, 2)), ["1.5", "2", None]),
        (pl.Series(["b", "a", None], dtype=pl.Categorical), ["b", "a", None]),
        ([dt.date(2020, 1, 1), None, None], ["2020-01-01", None, None]),
        ([None, None, None], [None, None, None]),
    ],
)
def test_categories_of_codes_are_the_same_however_the_table_has_them(values, found):
    values = read(values, "category", formats.NumberFormat())
    assert values.dtype == pl.String
    assert values.to_list() == found


def test_categories_of_text_are_told_apart_as_they_are_written():
    versions = ["1.1", "1.10", "0E5", "007", "TRUE", " true ", "2.0-beta", "b", "c", "x1", "x1.0"]
    assert learn_schema(pl.DataFrame({"a": versions})).features[0].format is None
    assert read(versions, "category").to_list() == [version.strip() for version in versions]
    assert read([1.0, 2.5], "category").to_list() == ["1", "2.5"]
    codes = learn_schema(pl.DataFrame({"a": ["1", "1.0", "2"]}), categorical=["a"]).features[0]
    assert codes == ColumnSchema("a", "category", formats.NumberFormat())


def wrong(kind, format=None):
    return {"name": "a", "kind": kind, "format": format}


@pytest.mark.parametrize(
    ("values", "column", "problem"),
    [
        (["1", "ten", None, "x"], wrong("number", NUMBER), "numbers, got 'ten' in row 2, 'x' in row 4"),
        (["1", "True"], wrong("number", NUMBER), "numbers, got 'True' in row 2"),
        (
            ["1,5", "2.5"],
            wrong("number", formats.NumberFormat(",")),
            "numbers written as 1234,5, got '2.5' .*",
        ),
        ([1.0, np.inf, -np.inf], wrong("number", NUMBER), "numbers, got inf in row 2, -inf in row 3"),
        (["1", "inf"], wrong("number", NUMBER), "numbers, got 'inf' in row 2"),
        ([dt.date(2020, 1, 2)], wrong("number", NUMBER), "numbers, got 2020-01-02 in row 1"),
        ([None, 7], wrong("date", DATE), "dates, got 7 in row 2"),
        (["1/31/2020"], wrong("date", DATE), "dates written as year-month-day, got '1/31/2020' in row 1"),
        (["2020-02-30"], wrong("date", DATE), "dates written as year-month-day, got '2020-02-30' in row 1"),
        ([dt.time(6)], wrong("date", DATE), "dates, got 06:00:00 in row 1"),
        ([dt.timedelta(1)], wrong("date", DATE), "dates, got 1 day, 0:00:00 in row 1"),
        ([dt.date(2020, 1, 2)], wrong("date", TIME), "times of day, got 2020-01-02 in row 1"),
        (["x"], wrong("date", TIME), "times of day written as hours:minutes, got 'x' in row 1"),
        ([dt.time(6)], wrong("date"), "durations, got 06:00:00 in row 1"),
        (["1:00"], wrong("date"), "durations, got '1:00' in row 1"),
        (["yes", "true"], wrong("truth"), "true or false, got 'yes' in row 1"),
        ([2, 1, 0], wrong("truth"), "true or false, got 2 in row 1"),
        ([dt.date(2020, 1, 2)], wrong("truth"), "true or false, got 2020-01-02 in row 1"),
        ([dt.timedelta(1)], wrong("category"), "text or numbers, got 1 day, 0:00:00 in row 1"),
        ([None, [1, 2]], wrong("category"), r"text or numbers, got \[1, 2\] in row 2"),
    ],
)
def test_cells_that_do_not_fit(values, column, problem):
    with refuses(f"the column 'a' must hold {problem}"):
        Schema((ColumnSchema(**column),)).read(pl.DataFrame({"a": values}))


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "column", [wrong("number", NUMBER), wrong("date", DATE), wrong("date"), wrong("truth"), wrong("category")]
)
def test_things_that_no_column_holds(name, column):
    schema = Schema((ColumnSchema(**column),), missing=("1", "x"))
    with refuses("the column 'a' must hold .*, got .* in row 1, .* in row 2"):
        schema.read(pl.DataFrame({"a": pl.Series(ODD[name])}))


def test_all_wrong_cells_of_all_columns_are_named():
    schema = Schema(
        (ColumnSchema("a", "number", NUMBER), ColumnSchema("b", "date", DATE), ColumnSchema("c", "truth"))
    )
    frame = pl.DataFrame(
        {"c": ["true", "x"] * 4, "a": ["1", "t\ten", *"23456", "-"], "b": ["2020-01-01"] * 8}
    )
    with refuses(
        r"the columns 'a' must hold numbers, got 't\\ten' in row 2, '-' in row 8; "
        "'c' must hold true or false, got 'x' in row 2, 'x' in row 4, 'x' in row 6, 'x' in row 8"
    ):
        schema.read(frame)
    with refuses(r"the column 'a' must hold numbers, got .* in row 5, \.\.\. \(9 in all\)"):
        schema.read(pl.DataFrame({"c": ["true"] * 9, "a": [*"abcdefghi"], "b": [None] * 9}))


def test_columns_are_selected_in_any_order():
    schema = learn_schema(pl.DataFrame({"a": [1.5], "c": ["x"], "y": [0]}), "y")
    frame = pl.DataFrame({"odd": [[1]], "c": ["x"], "b": ["ten"], "a": [2]})
    assert schema.read(frame).rows() == [(2.0, "x")]
    assert schema.read(frame).columns == ["a", "c"]
    empty = schema.read(frame[:0])
    assert (empty.shape, empty.dtypes) == ((0, 2), [pl.Float64, pl.String])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("z", "the column z is missing; the table has a, b"),
        ("zbA", r"the columns z, A are missing; the table has a, b \(did you mean a\?\)"),
    ],
)
def test_columns_that_are_missing(features, message):
    for kind, format in (("number", NUMBER), ("category", None)):
        schema = Schema(tuple(ColumnSchema(name, kind, format) for name in features))
        with refuses(message):
            schema.read(pl.DataFrame({"a": [1], "b": [[2]]}))  # what else is wrong can wait


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("numbers", None),
        ("number", None),
        ("number", DATE),
        ("date", NUMBER),
        ("truth", NUMBER),
        ("category", DATE),
    ],
)
def test_schemas_that_make_no_sense(kind, format):
    with pytest.raises(ValueError, match="^a column cannot be "):
        ColumnSchema("a", kind, format)


def test_names_in_a_schema_differ():
    column = ColumnSchema("a", "truth")
    for roles in ({"target": column}, {"sample_weight": column}):
        with pytest.raises(ValueError, match="^the columns of a schema must have different names$"):
            Schema((column,), **roles)


# What a cell means depends on nothing but the schema.


def random_column(rng, n_rows):
    """Return text in a random format, and what it says, as computed from the values that were written."""
    missing = rng.random(n_rows) < 0.1
    kind = rng.choice(["number", "date", "category", "truth"])
    if kind == "number":
        cents = rng.integers(-(10**8), 10**8, n_rows)
        decimal, grouping = [(".", ""), (",", "."), (".", ","), (",", " "), (",", "")][rng.integers(5)]
        marks = str.maketrans({",": grouping, ".": decimal})
        text = [f"{cent / 100:,.2f}".translate(marks) for cent in cents.tolist()]
        values = [float(f"{cent / 100:.2f}") for cent in cents.tolist()]
    elif kind == "date":
        values = rng.integers(0, 15_000, n_rows).astype(float).tolist()
        pattern = rng.choice(["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%d %b %Y", "%B %d, %Y", "%d.%m.%y"])
        text = [(dt.date(1970, 1, 1) + dt.timedelta(day)).strftime(pattern) for day in values]
    elif kind == "truth":
        values = rng.integers(0, 2, n_rows).astype(float).tolist()
        text = [rng.choice([["False", "FALSE"], ["true", "TRUE"]][int(value)]) for value in values]
    else:
        values = text = rng.choice(["red", "dark red", "+", "a1"], n_rows).tolist()
    words = rng.choice(["", "NA", "?"], n_rows)
    text = [word if hole else cell for word, hole, cell in zip(words.tolist(), missing, text)]
    return pl.Series(text, dtype=pl.String), [None if hole else value for hole, value in zip(missing, values)]


def bits(frame):
    return [
        column.to_list() if column.dtype == pl.String else column.to_numpy().tobytes() for column in frame
    ]


@pytest.mark.parametrize("seed", range(15))
def test_rows_mean_the_same_in_any_part_of_the_table(seed):
    rng = np.random.default_rng(seed)
    columns = {f"column {index}": random_column(rng, 150) for index in range(6)}
    frame = pl.DataFrame({name: text for name, (text, _) in columns.items()})
    schema = learn_schema(frame)
    whole = schema.read(frame)
    assert {name: whole[name].to_list() for name in whole.columns} == {
        name: values for name, (_, values) in columns.items()
    }
    for n_rows in (0, 1, 2, 10, 150):
        rows = rng.choice(150, n_rows, replace=bool(n_rows % 2))
        names = rng.permutation(frame.columns).tolist()
        assert bits(schema.read(frame[rows].select(names))) == bits(whole[rows])
    values = schema.read(frame.select(pl.all().shuffle(seed))[:20])  # columns do not depend on each other
    assert values.equals(whole.select(pl.all().shuffle(seed))[:20])


# Tables as they are found, with the kinds that a person would give their columns.

RNG = np.random.default_rng(0)
N_ROWS = 240


def numbers(low, high, digits=0):
    return [f"{value:.{digits}f}" for value in RNG.uniform(low, high, N_ROWS)]


def choices(*names):
    return RNG.choice(names, N_ROWS).tolist()


def with_words(cells, word, share):
    return [word if hole else cell for hole, cell in zip(RNG.random(N_ROWS) < share, cells)]


def days(pattern):
    return [(dt.date(2011, 1, 1) + dt.timedelta(row)).strftime(pattern).lstrip("0") for row in range(N_ROWS)]


def running(text="{}"):
    return [text.format(row + 1) for row in range(N_ROWS)]


MANY = f"it is text with {N_ROWS} different values in {N_ROWS} rows"
ROW_NUMBER = "it numbers the rows"
TABLES = {
    "air quality": {
        "Date": (days("%m/%d/%Y"), "date"),
        "Time": ([f"{row % 24}:00:00" for row in range(N_ROWS)], "date"),
        "CO(GT)": (with_words(numbers(0, 9, 1), "-200", 0.2), "number"),
        "NOx(GT)": (with_words(numbers(20, 1400), "-200", 0.2), "number"),
        "AH": (numbers(0.2, 2.2, 4), "number"),
        "Unnamed: 15": ([None] * N_ROWS, "it is empty"),
        "Unnamed: 16": ([""] * N_ROWS, "it is empty"),
    },
    "orders": {
        "order_id": ([str(1 + row // 2) for row in range(N_ROWS)], "number"),
        "quantity": (choices("1", "2", "3"), "number"),
        "item_name": (choices("Burrito", "Bowl", "Chips and Salsa"), "category"),
        "choice_description": (
            [f"[Salsa, [Rice {row}]]" for row in range(N_ROWS - 9)] + ["NULL"] * 9,
            f"it is text with {N_ROWS - 9} different values in {N_ROWS - 9} rows",
        ),
        "item_price": ([f"${price} " for price in numbers(1, 44, 2)], "number"),
    },
    "planets": {
        "method": ([*choices("Radial Velocity", "Transit")[1:], "Pulsation"], "category"),
        "number": (choices("1", "2", "5"), "number"),
        "orbital_period": (with_words(numbers(1, 900, 3), "", 0.1), "number"),
        "mass": (with_words(numbers(0, 9, 2), "", 0.5), "number"),
        "year": (numbers(1989, 2014), "number"),
    },
    "cars": {
        "rownames": (running(), ROW_NUMBER),
        "Model": (running("model {}"), MANY),
        "Cylinders": ([*choices("4", "6", "8")[1:], "rotary"], "category"),
        "AirBags": (choices("None", "Driver only"), "category"),
        "Luggage.room": (with_words(numbers(6, 22), "NA", 0.1), "number"),
        "Man.trans.avail": (choices("Yes", "No"), "category"),
    },
    "bank": {
        "age": (numbers(18, 88), "number"),
        "job": (choices("blue-collar", "admin.", "unknown"), "category"),
        "education": (choices("basic.4y", "basic.9y", "high.school"), "category"),
        "month": (choices("may", "jun", "nov"), "category"),
        "emp.var.rate": (choices("-1.8", "1.1", "1.4"), "number"),
        "cons.price.idx": (choices("92.893", "93.994", "94.465"), "number"),
        "nr.employed": (choices("5099.1", "5191", "5228.1"), "number"),
    },
    "telecom": {
        "customerID": ([f"{row:04}-QXVEG" for row in range(N_ROWS)], MANY),
        "SeniorCitizen": (choices("0", "1"), "number"),
        "Partner": (choices("Yes", "No"), "category"),
        "MultipleLines": (choices("Yes", "No", "No phone service"), "category"),
        "tenure": (numbers(0, 72), "number"),
        "TotalCharges": (with_words(numbers(18, 8000, 2), " ", 0.02), "number"),
    },
    "students": {
        "school": (choices("GP", "MS"), "category"),
        "famsize": (choices("GT3", "LE3"), "category"),
        "traveltime": (choices("1", "2", "3", "4"), "number"),
        "G3": (numbers(0, 20), "number"),
    },
    "houses": {
        "Id": (running(), ROW_NUMBER),
        "MSSubClass": (choices("20", "60", "120"), "number"),
        "LotFrontage": (with_words(numbers(20, 200), "NA", 0.2), "number"),
        "Alley": (with_words(choices("Grvl", "Pave"), "NA", 0.9), "category"),
        "BldgType": (choices("1Fam", "2fmCon", "Twnhs"), "category"),
        "MasVnrType": (choices("None", "BrkFace", "NA"), "category"),
        "YearBuilt": (numbers(1872, 2010), "number"),
        "PoolQC": (["NA"] * (N_ROWS - 1) + ["Ex"], "category"),
        "SalePrice": (numbers(34_900, 755_000), "number"),
    },
    "mushrooms": {
        "cap": (choices("x", "b", "s"), "category"),
        "bruises": (choices("t", "f"), "category"),
        "odor": (choices("n", "?", "e"), "category"),
        "veil_type": (["p"] * N_ROWS, "category"),
    },
    "penguins": {
        "species": (choices("Adelie", "Gentoo"), "category"),
        "bill_length_mm": (with_words(numbers(32, 60, 1), "", 0.01), "number"),
        "body_mass_g": (with_words(numbers(2700, 6300), "NA", 0.01), "number"),
        "sex": (with_words(choices("MALE", "FEMALE"), "", 0.03), "category"),
    },
    "insurance": {
        "age": (numbers(18, 64), "number"),
        "bmi": (numbers(16, 53, 3), "number"),
        "smoker": (choices("yes", "no"), "category"),
        "charges": (numbers(1100, 64_000, 4), "number"),
    },
    "bike rentals": {
        "instant": (running(), ROW_NUMBER),
        "dteday": (days("%Y-%m-%d"), "date"),
        "season": (choices("1", "2", "3", "4"), "number"),
        "temp": (numbers(0, 1, 6), "number"),
        "cnt": (numbers(22, 8714), "number"),
    },
    "housing": {
        "longitude": (numbers(-124, -114, 2), "number"),
        "total_bedrooms": (with_words([f"{cell}.0" for cell in numbers(1, 6445)], "", 0.01), "number"),
        "ocean_proximity": (choices("NEAR BAY", "<1H OCEAN", "INLAND"), "category"),
    },
    "credit": {
        "checking_balance": (choices("< 0 DM", "1 - 200 DM", "> 200 DM", "unknown"), "category"),
        "employment_length": (choices("> 7 yrs", "1 - 4 yrs", "unemployed"), "category"),
        "amount": (numbers(250, 18_424), "number"),
        "telephone": (choices("yes", "none"), "category"),
        "default": (choices("1", "2"), "number"),
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_they_are_found(name):
    frame = pl.DataFrame({column: cells for column, (cells, _) in TABLES[name].items()}, strict=False)
    schema = learn_schema(RawTable(frame, ";" if name == "bank" else ","))
    found = {column.name: column.kind for column in schema.features} | dict(schema.left_out)
    assert found == {column: kind for column, (_, kind) in TABLES[name].items()}
    assert schema.notes == ()
    typed = schema.read(frame)
    for column in schema.names("number"):
        floats = [
            float(cell) if cell not in ("", " ", "NA") else None
            for cell in frame[column].str.strip_chars("$ ")
        ]
        assert typed[column].to_list() == floats


def test_a_file_from_end_to_end(tmp_path):
    reading = pytest.importorskip("mlp_xp.tables._reading")
    rows = "".join(f"{row};{row % 7},5;{'red' if row % 3 else ''};n{row};;{row % 2}\n" for row in range(40))
    (tmp_path / "fruit.csv").write_text(";mass;colour;name;note;kind\n" + rows)
    raw = reading.read_table(tmp_path / "fruit.csv")
    schema = learn_schema(raw, "kind")
    assert [(column.name, column.kind) for column in schema.features] == [
        ("mass", "number"),
        ("colour", "category"),
    ]
    assert list(schema.left_out) == ["Unnamed: 0", "name", "note"]
    typed = schema.read(raw.frame)
    assert typed["mass"].to_list() == [row % 7 + 0.5 for row in range(40)]
    assert typed["colour"].null_count() == 14
    assert schema.read_target(raw.frame).to_list() == [0, 1] * 20


# What people write.


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["\N{MINUS SIGN}5.5", "3", "-1"], [-5.5, 3.0, -1.0]),
        (["(1,234)", "5,678", "(9)"], [-1234.0, 5678.0, -9.0]),
        (["$(1,234.50)", "$7", "($3)"], None),
        (["($1,234.50)", "$7", "\N{MINUS SIGN}$3"], [-1234.5, 7.0, -3.0]),
        (["#DIV/0!", "5", "#REF!"], [None, 5.0, None]),
    ],
)
def test_signs_of_accountants_and_typographers(cells, numbers):
    schema = learn_schema(pl.DataFrame({"a": cells * 9}))
    if numbers is None:
        assert schema.features[0].kind == "category"
        return
    assert schema.read(pl.DataFrame({"a": cells}))["a"].to_list() == numbers


def test_years_of_schools_are_no_months():
    years = [f"{year}-{(year + 1) % 100:02}" for year in range(1998, 2010)]
    assert kind_of(years) == "category"
    assert kind_of([f"2001-{month:02}" for month in range(1, 13)]) == "date"


def test_a_row_of_units_is_no_missing_value():
    numbers = [f"{row}.5" for row in range(99)]
    with refuses(
        r"the column 'a' holds numbers except for '\[kg\]' in row 1 \(does that row name units\?\): .*"
    ):
        learn_schema(pl.DataFrame({"a": ["[kg]", *numbers]}))
    notes = learn_schema(pl.DataFrame({"a": [*numbers, "Total"], "b": [*numbers, "Total"]})).notes
    assert notes == ("a, b: 'Total' (row 100) counts as a missing value",)


def test_marks_for_missing_values_count_in_targets_and_in_any_number():
    cells = ["-", "--", "\N{EM DASH}", ".", *map(str, range(60))]
    assert learn_schema(pl.DataFrame({"a": cells})).features[0].missing == ("-", "--", "\N{EM DASH}", ".")
    target = pl.DataFrame({"a": [0.5, 1.5] * 20, "y": ["0", "1", "-", "1"] * 10})
    schema = learn_schema(target, "y")
    assert schema.read_target(target).null_count() == 10


def test_truth_values_may_be_written_as_numbers():
    schema = learn_schema(pl.DataFrame({"a": ["TRUE", "1", "0", "false"]}))
    assert (schema.features[0].kind, schema.read(pl.DataFrame({"a": ["1", "False"]}))["a"].to_list()) == (
        "truth",
        [1.0, 0.0],
    )


def test_words_that_na_replaces_are_named():
    frame = pl.DataFrame({"a": [*(f"{row}.5" for row in range(98)), "1o", "l5"], "b": ["NA", "x"] * 50})
    with refuses(r".* with --na, or .* \(--na is instead of NA: name what stays missing too\)"):
        learn_schema(frame)
    with refuses("[^(]*"):
        learn_schema(frame.drop("b"))
