"""What the columns of a table are, and what is said about those that are of no use."""

import datetime as dt
import re

import numpy as np
import pytest

pl = pytest.importorskip("polars")
columns = pytest.importorskip("mlp_xp.tables._columns")
tables = pytest.importorskip("mlp_xp.tables._reading")
DataError, find_columns, find_target = tables.DataError, columns.find_columns, columns.find_target


def refuses(message):
    return pytest.raises(DataError, match=f"^{message}$")


# what the columns are


KINDS = {
    "integers": ([1, 2, 3], "numbers"),
    "fractions": ([0.5, None, 3.0], "numbers"),
    "unsigned": (pl.Series([2**64 - 1, 0, 1], dtype=pl.UInt64), "numbers"),
    "128 bits": (pl.Series([2**100, 0, 1], dtype=pl.Int128), "numbers"),
    "decimals": (pl.Series(["1.5", "2", None]).cast(pl.Decimal(10, 2)), "numbers"),
    "truth values": ([True, False, None], "numbers"),
    "text": (["a", "b", None], "categories"),
    "text of digits": (["1", "2", None], "categories"),
    "coded": (pl.Series(["a", "b", "a"], dtype=pl.Categorical), "categories"),
    "enum": (pl.Series(["a", "b", "a"], dtype=pl.Enum(["a", "b"])), "categories"),
    "days": ([dt.date(2020, 1, 1), None, dt.date(2021, 1, 1)], "dates"),
    "moments": (pl.Series([dt.datetime(2020, 1, 1)] * 3, dtype=pl.Datetime("ns", "UTC")), "dates"),
    "times": ([dt.time(1), dt.time(2), None], "dates"),
    "spans": ([dt.timedelta(1), None, None], "dates"),
    "constant": ([1, 1, 1], "numbers"),
    "nothing": ([None, None, None], "left out"),
    "not a number": ([np.nan, np.nan, np.nan], "left out"),
    "no text": (pl.Series([None, None, None], dtype=pl.String), "left out"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_columns(name):
    values, kind = KINDS[name]
    frame = pl.DataFrame({"other": [1, 2, 3], name: values, "y": [0, 1, 0]})
    found = find_columns(frame, "y")
    assert (name in found.numbers) == (kind in ("numbers", "dates"))
    assert (name in found.dates) == (kind == "dates")
    assert (name in found.categories) == (kind == "categories")
    assert found.left_out == ({name: "it is empty"} if kind == "left out" else {})
    assert found.numbers[0] == "other"
    assert "y" not in found.numbers + found.categories


def test_columns_keep_their_order_and_choices_win():
    frame = pl.DataFrame({name: [1, 2] for name in "dcba"}).with_columns(a=pl.lit(dt.date(2020, 1, 1)))
    assert find_columns(frame).numbers == ("d", "c", "b", "a")
    found = find_columns(frame, "d", categorical=["b", "c"], drop=["c"])
    assert found == (("a",), ("b",), ("a",), {"c": "as asked"})
    assert find_columns(frame[["b", "a", "d"]], "d").numbers == ("b", "a")


def test_columns_named_alike():
    frame = pl.DataFrame({"mass": [1, 2], "Mass": ["a", "b"], "mass (kg)": [3, 4], 'm "\n': [5, 6]})
    assert find_columns(frame) == (("mass", "mass (kg)", 'm "\n'), ("Mass",), (), {})


@pytest.mark.parametrize("option", ["categorical", "drop"])
@pytest.mark.parametrize("name", ["z", "y", "A"])
def test_unknown_columns(option, name):
    frame = pl.DataFrame({"a": [1, 2], "y": [0, 1]})
    with refuses(f"`{option}`: no column '{name}' among the features a"):
        find_columns(frame, "y", **{option: [name]})


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"y": [1, 2]}, "there is no other column"),
        ({"a": [None, None], "y": [1, 2]}, "'a' is left out: it is empty"),
        ({"a": [], "y": []}, "'a' is left out: it is empty"),
    ],
)
def test_no_feature_is_left(frame, reason):
    with refuses(re.escape(f"at least one feature and the target are needed ({reason})")):
        find_columns(pl.DataFrame(frame), "y")


@pytest.mark.parametrize(
    "values",
    [[[1], [2]], [{"a": 1}, {"a": 2}], [b"x", b"y"], pl.Series([object(), object()], dtype=pl.Object)],
)
def test_columns_of_other_things_can_only_be_dropped(values):
    frame = pl.DataFrame({"a": [1, 2]}).with_columns(pl.Series("odd", values))
    with refuses("the column 'odd' must hold numbers, text or dates, got .*; it can be dropped"):
        find_columns(frame)
    assert find_columns(frame, drop=["odd"]).left_out == {"odd": "as asked"}
    with refuses("the column 'odd' must hold numbers, got .*"):
        columns.select_typed(frame, ["odd"], [])
    with refuses("the column 'odd' must hold text or numbers, got .*"):
        columns.select_typed(frame, [], ["odd"])


@pytest.mark.parametrize(
    ("strays", "named"),
    [
        (["ten"], "'ten'"),
        (["ten", "-", "ten"], "'ten', '-'"),
        (["5" + mark for mark in "abcdef"], r"'5a', '5b', '5c', '5d', '5e', \.\.\. \(6 in all\)"),
        (["a\nb"], r"'a\\nb'"),
    ],
)
def test_stray_words_among_numbers(strays, named):
    numbers = [f"{number}.5" for number in range(60)]
    frame = pl.DataFrame({"a": [*numbers[:-1], None, *strays]})
    with refuses(f"the column 'a' holds numbers except for {named}: correct that, or make it .*, or drop it"):
        find_columns(frame)
    assert find_columns(frame, categorical=["a"]).categories == ("a",)


def test_decimal_commas_are_not_taken_for_categories():
    with refuses("the column 'a' holds decimal commas, which are numbers only where semicolons .*"):
        find_columns(pl.DataFrame({"a": ["1,5", "2,25", "0,5"]}))


def test_words_among_as_many_numbers_are_categories():
    assert find_columns(pl.DataFrame({"a": ["1", "2", "3+", "1", "2"]})).categories == ("a",)


def test_identifiers():
    names = [f"n{row}" for row in range(100)]
    frame = pl.DataFrame({"id": names, "half": names[:50] * 2, "most": names[:51] + names[:49]})
    found = find_columns(frame.with_columns(holes=pl.Series([*names[:30], *[None] * 70])))
    assert found.left_out == {
        "id": "it is text with 100 different values in 100 rows",
        "most": "it is text with 51 different values in 100 rows",
        "holes": "it is text with 30 different values in 30 rows",
    }
    assert found.categories == ("half",)
    assert find_columns(frame[:20]).categories == ("id", "half", "most")
    assert find_columns(frame, categorical=["id"]).categories == ("id", "half")


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 12", "__index_level_0__"])
def test_columns_without_a_name_that_number_the_rows(name):
    frame = pl.DataFrame({name: [3, 1, 2], "a": [1, 2, 3]})
    assert find_columns(frame).left_out == {name: "it has no name and numbers the rows"}
    for values in ([1, 1, 2], [0.5, 1.0, 2.0], ["x", "y", "z"]):
        assert find_columns(frame.with_columns(pl.Series(name, values))).left_out == {}
    assert find_columns(frame, categorical=[name]).categories == (name,)


# their values


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([1, None, 3], [1.0, None, 3.0]),
        ([1.5, np.nan, None], [1.5, None, None]),
        ([True, False, None], [1.0, 0.0, None]),
        ([None, None, None], [None, None, None]),
        (["1", "2.5", None], [1.0, 2.5, None]),
        (["1,500", "2.25", None], [1500.0, 2.25, None]),
        (pl.Series(["1.5", "2", None]).cast(pl.Decimal(10, 2)), [1.5, 2.0, None]),
        (pl.Series(["7", "5", None], dtype=pl.Categorical), [7.0, 5.0, None]),
        (pl.Series([2**64 - 1, 0, 1], dtype=pl.UInt64), [2.0**64, 0.0, 1.0]),
        (pl.Series([2**100, 0, 1], dtype=pl.Int128), [2.0**100, 0.0, 1.0]),
        ([dt.date(1970, 1, 2), dt.date(1969, 12, 31), None], [1.0, -1.0, None]),
        ([dt.datetime(1970, 1, 2, 12), dt.datetime(1969, 12, 31, 18), None], [1.5, -0.25, None]),
        ([dt.time(6), dt.time(18), None], [0.25, 0.75, None]),
        ([dt.timedelta(hours=36), dt.timedelta(-1), None], [1.5, -1.0, None]),
    ],
)
def test_numbers(values, numbers):
    found = columns.select_typed(pl.DataFrame({"a": values, "b": [1, 2, 3]}), ["a"], [])
    assert found.columns == ["a"]
    assert found.dtypes == [pl.Float64]
    assert found["a"].to_list() == numbers


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo", "America/New_York"])
def test_moments_are_days_by_the_clock_on_the_wall(unit, zone):
    moments = pl.Series("a", [dt.datetime(1970, 1, 3, 6)]).dt.cast_time_unit(unit).dt.replace_time_zone(zone)
    assert columns.select_typed(moments.to_frame(), ["a"], []).item() == 2.25
    spans = pl.Series("a", [dt.timedelta(hours=6)]).dt.cast_time_unit(unit)
    assert columns.select_typed(spans.to_frame(), ["a"], []).item() == 0.25


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["1", "ten", "x"], "must hold numbers, got 'ten', 'x'"),
        (["wide", None, "1"], "must hold numbers, got 'wide'"),
        ([1.0, np.inf, -np.inf], "holds 2 infinite values"),
        (["1", "inf", "2"], "holds 1 infinite values"),
    ],
)
def test_what_numbers_may_not_be(values, problem):
    with refuses(f"the column 'a' {problem}"):
        columns.select_typed(pl.DataFrame({"a": values}), ["a"], [])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["a", " b", None], ["a", " b", None]),
        (["True", "FALSE", "maybe"], ["true", "false", "maybe"]),
        (["1", "1.0", "01"], ["1", "1", "1"]),
        (["-2.50", "1e2", ".5"], ["-2.5", "100", "0.5"]),
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
def test_categories_are_the_same_however_the_file_has_them(values, names):
    found = columns.select_typed(pl.DataFrame({"a": values}), [], ["a"])
    assert found.dtypes == [pl.String]
    assert found["a"].to_list() == names


def test_columns_are_selected_in_order():
    frame = pl.DataFrame({"c": [1], "b": ["x"], "a": [2]})
    assert columns.select_typed(frame, ["a", "c"], ["b"]).rows() == [(2.0, 1.0, "x")]
    assert columns.select_typed(frame[:0], ["a"], ["b"]).shape == (0, 2)
    assert columns.select_typed(frame, (name for name in "a"), ()).columns == ["a"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["z"], "the column z is missing; the table has a, b"),
        (["z", "b", "A"], "the columns z, A are missing; the table has a, b"),
    ],
)
def test_columns_that_are_missing(names, message):
    frame = pl.DataFrame({"a": [1], "b": [2]})
    for numbers, categories in ((names, []), ([], names)):
        with refuses(message):
            columns.select_typed(frame, numbers, categories)


# the target


TARGETS = {
    "integers": ([7, 9, 7], [7, 9, 7], "it has only 2 different numbers, all whole"),
    "negative": ([2, 10, -1] * 2, [2, 10, -1] * 2, "it has only 3 different numbers, all whole"),
    "whole numbers": ([1.0, 0.0, 1.0], [1, 0, 1], "it has only 2 different numbers, all whole"),
    "small": (pl.Series([200, 3, 200], dtype=pl.UInt8), [200, 3, 200], "it has only 2 .*"),
    "decimal": (pl.Series(["1.00", "2", "1"]).cast(pl.Decimal(9, 2)), [1, 2, 1], "it has only 2 .*"),
    "text": (["lemon", "apple", "lemon"], ["lemon", "apple", "lemon"], "it is text"),
    "text of digits": (["10", "9", "9"], ["10", "9", "9"], "it is text"),
    "text with digits": (["10", "9", "x"], ["10", "9", "x"], "it is text"),
    "coded": (pl.Series(["b", "a", "b"], dtype=pl.Categorical), ["b", "a", "b"], "it is text"),
    "truth": ([True, False, True], [True, False, True], "it is true or false"),
    "large": (
        pl.Series([2**64 - 1, 2**63, 2**63], dtype=pl.UInt64),
        [str(2**64 - 1), str(2**63), str(2**63)],
        "it has only 2 .*",
    ),
    "larger": (
        pl.Series([2**100, 2**100 + 1, 5, 5], dtype=pl.Int128),
        [str(2**100), str(2**100 + 1), "5", "5"],
        None,
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_are_classes(name):
    values, labels, reason = TARGETS[name]
    column = pl.Series("y", values)
    found = find_target(column, "auto" if reason else "classification")
    assert found.task == "classification"
    assert re.fullmatch(reason or "as asked", found.reason)
    np.testing.assert_array_equal(found.values, np.array(labels), strict=not isinstance(labels[0], str))
    assert found.values.dtype.kind in "Uib"
    # A model with these classes knows them again.
    again = columns.match_classes(column, np.unique(found.values))
    np.testing.assert_array_equal(again, found.values, strict=True)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5, -2.0, 3.0], "it has fractions"),
        (pl.Series([0.5, 0.5, 0.5], dtype=pl.Float32), "it has fractions"),
        (pl.Series(["1.50", "2"]).cast(pl.Decimal(9, 2)), "it has fractions"),
        ([3, 1, 2], "it has 3 different numbers"),
        ([1e20, 2.5e20, 7e20], "it has 3 different numbers"),
        (pl.Series([2**100, 1, 0], dtype=pl.Int128), "it has 3 different numbers"),
        (list(range(21)) * 5, "it has 21 different numbers"),
    ],
)
def test_targets_that_are_values(values, reason):
    column = pl.Series("y", values)
    found = find_target(column)
    assert (found.task, found.reason) == ("regression", reason)
    np.testing.assert_array_equal(found.values, column.cast(pl.Float64).to_numpy(), strict=True)


def test_few_whole_numbers_are_classes():
    assert find_target(pl.Series(list(range(20)) * 2)).task == "classification"
    assert find_target(pl.Series([*range(20)] * 2)[:-1]).task == "regression"
    assert find_target(pl.Series([0, 1])).task == "classification"


def test_the_task_can_be_chosen():
    whole = pl.Series("y", [10, 30, 20, 10])
    found = find_target(whole, "regression")
    assert found[1:] == ("regression", "as asked")
    np.testing.assert_array_equal(found.values, [10.0, 30.0, 20.0, 10.0], strict=True)
    np.testing.assert_array_equal(
        find_target(pl.Series([5, 5]), "regression").values, [5.0, 5.0], strict=True
    )
    assert find_target(pl.Series(["1.5", "2"]), "regression").values.tolist() == [1.5, 2.0]
    parts = find_target(pl.Series("y", [0.5, 2.0, 0.5]), "classification")
    assert parts.values.tolist() == ["0.5", "2", "0.5"]
    many = find_target(pl.Series(range(100)), "classification")
    assert many.values.tolist() == list(range(100))
    with pytest.raises(ValueError, match=r"^`task` must be one of \['auto', .*\], got 'ranking'$"):
        find_target(whole, "ranking")


IDS = [f"n{row}" for row in range(50)]


@pytest.mark.parametrize(
    ("values", "task", "problem"),
    [
        ([4, 4], "auto", "the target 'y' must have at least two classes, got only 4"),
        (["dog", "dog"], "auto", "the target 'y' must have at least two classes, got only dog"),
        (["d\nog", "d\nog"], "auto", "the target 'y' must have at least two classes, got only d og"),
        ([True, True], "auto", "the target 'y' must have at least two classes, got only True"),
        ([1], "auto", "at least 2 rows are needed, got 1"),
        ([], "auto", "at least 2 rows are needed, got 0"),
        ([0.5, np.inf, 1.0], "auto", "the column 'y' holds 1 infinite values"),
        ([0.0, np.inf, 1.0], "classification", "the column 'y' holds 1 infinite values"),
        (["1", "dog"], "regression", "the target 'y' must hold numbers for regression, got 'dog'"),
        ([True, False], "regression", "the target 'y' must hold numbers for regression, got True"),
        ([[1], [2]], "auto", r"the target 'y' must hold numbers or names of classes, got List\(Int64\)"),
        ([dt.date(2020, 1, 1)] * 2, "auto", "the target 'y' must hold numbers or .*, got Date"),
        (
            ["1.5"] * 20 + ["ten"],
            "auto",
            "the target 'y' holds numbers except for 'ten': correct that, or .*",
        ),
        (IDS, "auto", "the target 'y' does not name classes: it is text with 50 different values in 50 rows"),
    ],
)
def test_bad_targets(values, task, problem):
    with refuses(problem):
        find_target(pl.Series("y", values), task)


def test_names_that_look_wrong_are_classes_where_asked():
    assert len(np.unique(find_target(pl.Series(IDS), "classification").values)) == 50
    assert find_target(pl.Series(["1"] * 20 + ["3+"]), "classification").values[-1] == "3+"


# What a model learned as its classes, and how another file may have the second and the first of them.
KNOWN = {
    "integers": (np.array([1, 2]), [[2, 1], [2.0, 1.0], ["2", "1"], ["2.0", "01"]]),
    "zero and one": (np.array([0, 1]), [[1, 0], [1.0, 0.0], [True, False], ["1", "0"]]),
    "truth": (
        np.array([False, True]),
        [[True, False], ["True", "false"], ["TRUE", "FALSE"], [1, 0], [1.0, -0.0]],
    ),
    "numbers": (np.array(["0.5", "2"]), [[2.0, 0.5], ["2.00", ".5"]]),
    "text": (np.array(["A", "a"]), [["a", "A"]]),
    "digits": (np.array(["1", "2"]), [[2, 1], [2.0, 1.0], ["2", "1"]]),
    "long digits": (np.array(["1.0", "2.0"]), [[2, 1], [2.0, 1.0], ["2", "1"], ["2.0", "1.0"]]),
    "zeros before": (np.array(["01", "1"]), [["1", "01"]]),
    "truth and text": (
        np.array(["False", "True", "maybe"]),
        [[True, False], ["True", "False"], ["true", "false"]],
    ),
    "large": (np.array(["18446744073709551614", "18446744073709551615"]), [[2**64 - 1, 2**64 - 2]]),
}
KNOWN_PAIRS = [(name, other) for name, (_, others) in KNOWN.items() for other in others]


@pytest.mark.parametrize(("name", "other"), KNOWN_PAIRS)
def test_labels_are_known_again(name, other):
    classes, _ = KNOWN[name]
    column = pl.Series("y", other, dtype=pl.UInt64 if name == "large" else None)
    variants = [column]
    if column.dtype == pl.Float64:
        variants += [column.cast(pl.Float32), column.cast(pl.Decimal(10, 3))]
    if column.dtype == pl.Int64:
        variants += [column.cast(pl.UInt8), column.cast(pl.Int128)]
    if column.dtype == pl.String:
        variants.append(column.cast(pl.Categorical))
    for variant in variants:
        np.testing.assert_array_equal(columns.match_classes(variant, classes), classes[[1, 0]], strict=True)


@pytest.mark.parametrize(
    ("classes", "values", "strange"),
    [
        ([1, 2], [1, 3, 2, 7], "3, 7"),
        ([1, 2], [1.0, 1.5], "1.5"),
        ([1, 2], [True, False], "0"),
        ([2, 3], ["2", "two"], "two"),
        ([False, True], [0, 1, 2], "2"),
        ([False, True], ["true", "no"], "no"),
        (["a", "b"], ["A", "b"], "A"),
        (["a", "b"], [1, 2], "1, 2"),
        (["a", "b"], [True, False], "false, true"),
    ],
)
def test_labels_that_are_not_known(classes, values, strange):
    known = ", ".join(map(str, classes))
    with refuses(f"the target 'y' has classes the model does not know: {strange}; it knows {known}"):
        columns.match_classes(pl.Series("y", values), np.array(classes))


def test_no_labels():
    assert columns.match_classes(pl.Series("y", [], dtype=pl.Int64), np.array([1, 2])).shape == (0,)


def test_rows_without_a_target():
    frame = pl.DataFrame({"a": [1, None, 3, 4], "y": [0.5, np.nan, None, 1.0], "kind": ["x", None, "", "z"]})
    assert [len(part) if n else n for part, n in [columns.drop_unlabelled(frame, "a")]] == [3]
    known, n_missing = columns.drop_unlabelled(frame, "y")
    assert (known["a"].to_list(), n_missing) == ([1, 4], 2)
    assert columns.drop_unlabelled(frame, "kind")[1] == 1
    assert columns.drop_unlabelled(frame[:1], "y")[1] == 0
    assert columns.drop_unlabelled(frame[:0], "y")[0].shape == (0, 3)
    with refuses(r"no column 'Y'; the columns are a, y, kind"):
        columns.drop_unlabelled(frame, "Y")


def test_a_table_from_end_to_end(tmp_path):
    path = tmp_path / "fruit.csv"
    rows = "".join(f"{row};{row % 7},5;{'red' if row % 3 else ''};n{row};;{row % 2}\n" for row in range(40))
    path.write_text(";mass;colour;name;note;kind\n" + rows + ";;;;;\n")
    frame, n_missing = columns.drop_unlabelled(tables.read_frame(path), "kind")
    found = find_columns(frame, "kind")
    assert (found.numbers, found.categories, found.dates) == (("mass",), ("colour",), ())
    assert list(found.left_out) == ["Unnamed: 0", "name", "note"]
    typed = columns.select_typed(frame, found.numbers, found.categories)
    assert typed["mass"].to_list() == [row % 7 + 0.5 for row in range(40)]
    assert typed["colour"].null_count() == 14
    target = find_target(frame["kind"])
    assert (target.task, target.values.tolist(), n_missing) == ("classification", [0, 1] * 20, 0)
