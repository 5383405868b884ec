"""The target of a table: what it is, the task it implies, and its classes known again in later tables."""

import datetime as dt
import re

import numpy as np
import pytest

pl = pytest.importorskip("polars")
schemas = pytest.importorskip("mlp_xp.tables._schema")
targets = pytest.importorskip("mlp_xp.tables._targets")
formats = pytest.importorskip("mlp_xp.tables._formats")
learn_schema = pytest.importorskip("mlp_xp.tables._learning").learn_schema
Schema, ColumnSchema, DataError = schemas.Schema, schemas.ColumnSchema, targets.DataError
find_target, match_classes = targets.find_target, targets.match_classes


def refuses(message):
    return pytest.raises(DataError, match=f"^{message}$")


def table(values):
    values = pl.Series("y", values)
    return pl.DataFrame({"a": [0.5] * len(values)}).with_columns(values)


def read(values, task="auto", **settings):
    """Return a target as a schema that was learnt from it reads it."""
    frame = table(values)
    return learn_schema(frame, "y", task=task, **settings).read_target(frame)


TARGETS = {
    "integers": ([7, 9, 7], [7, 9, 7], "it has only 2 different numbers, all whole"),
    "negative": ([2, 10, -1] * 2, [2, 10, -1] * 2, "it has only 3 different numbers, all whole"),
    "whole numbers": ([1.0, 0.0, 1.0], [1, 0, 1], "it has only 2 different numbers, all whole"),
    "small": (pl.Series([200, 3, 200], dtype=pl.UInt8), [200, 3, 200], "it has only 2 .*"),
    "decimal": (pl.Series(["1.00", "2", "1"]).cast(pl.Decimal(9, 2)), [1, 2, 1], "it has only 2 .*"),
    "text": (["lemon", "apple", "lemon"], ["lemon", "apple", "lemon"], "it is text"),
    "text of digits": (["10", "9", "9"], [10, 9, 9], "it has only 2 .*"),
    "text with digits": (["10", "9", "x", "y"], ["10", "9", "x", "y"], "it is text"),
    "with zeros": (["01", "02.0", "1"], [1, 2, 1], "it has only 2 .*"),
    "coded": (pl.Series(["b", "a", "b"], dtype=pl.Categorical), ["b", "a", "b"], "it is text"),
    "coded digits": (pl.Series(["2", "1", "2"], dtype=pl.Categorical), ["2", "1", "2"], "it is text"),
    "truth": ([True, False, True], [True, False, True], "it is true or false"),
    "truth in text": (["TRUE", "false", "True"], [True, False, True], "it is true or false"),
    "truth and text": (["True", "no", "True"], ["True", "no", "True"], "it is text"),
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
    "a class that comes once": (
        ["a"] * 30 + ["b"] * 30 + ["c"],
        ["a"] * 30 + ["b"] * 30 + ["c"],
        "it is text",
    ),
    "ranges": (["< 0 DM", "1 - 200 DM", "< 0 DM"], ["< 0 DM", "1 - 200 DM", "< 0 DM"], "it is text"),
    "a word among few numbers": (["4", "6"] * 9 + ["x"], ["4", "6"] * 9 + ["x"], "it is text"),
    "a word among numbers": (["1", "2", "3", "?!"] * 2, ["1", "2", "3", "?!"] * 2, "it is text"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_are_classes(name):
    values, labels, reason = TARGETS[name]
    column = read(values, "auto" if reason else "classification")
    found = find_target(column, "auto" if reason else "classification")
    assert found.task == "classification"
    assert re.fullmatch(reason or "as asked", found.reason)
    np.testing.assert_array_equal(found.values, np.array(labels), strict=not isinstance(labels[0], str))
    assert found.values.dtype.kind in "Uib"
    # A model with these classes knows them again.
    again = match_classes(column, np.unique(found.values))
    np.testing.assert_array_equal(again, found.values, strict=True)


@pytest.mark.parametrize(
    ("values", "numbers", "reason"),
    [
        ([0.5, -2.0, 3.0], None, "it has fractions"),
        (pl.Series([0.5, 0.25, 0.5], dtype=pl.Float32), None, "it has fractions"),
        (pl.Series(["1.50", "2"]).cast(pl.Decimal(9, 2)), None, "it has fractions"),
        (["$1,200.50 ", "$2.00", "$7.00"], [1200.5, 2.0, 7.0], "it has fractions"),
        (["1,5", "2,0", "-3"], [1.5, 2.0, -3.0], "it has fractions"),
        ([3, 1, 2], None, "it has 3 different numbers"),
        (["3", "1", "2"], [3.0, 1.0, 2.0], "it has 3 different numbers"),
        ([1e20, 2.5e20, 7e20], None, "it has 3 different numbers"),
        (pl.Series([2**100, 1, 0], dtype=pl.Int128), None, "it has 3 different numbers"),
        (list(range(21)) * 5, None, "it has 21 different numbers"),
    ],
)
def test_targets_that_are_values(values, numbers, reason):
    found = find_target(read(values))
    assert (found.task, found.reason) == ("regression", reason)
    numbers = pl.Series(values).cast(pl.Float64).to_list() if numbers is None else numbers
    np.testing.assert_array_equal(found.values, np.array(numbers), strict=True)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([*range(10)] * 2, "classification"),  # ten digits, each twice
        ([*range(11)] * 20, "regression"),
        ([*range(10)] * 2 + [0], "classification"),
        ([*range(10), *range(9)], "regression"),  # more than half as many as rows
        ([0, 1, 2] * 2, "classification"),
        ([0, 1, 2, 1, 2], "regression"),
        ([0, 1], "classification"),
        ([1, 2, 1], "classification"),
        ([*range(0, 21)] * 19, "regression"),  # grades
        (["0", "1.0"] * 5, "classification"),
        (["0", "1.5"] * 5, "regression"),
    ],
)
def test_few_whole_numbers_are_classes(values, task):
    assert find_target(read(values)).task == task


def test_the_task_can_be_chosen():
    whole = pl.Series("y", [10, 30, 20, 10])
    found = find_target(whole, "regression")
    assert found[1:] == ("regression", "as asked")
    np.testing.assert_array_equal(found.values, [10.0, 30.0, 20.0, 10.0], strict=True)
    assert find_target(read(["1.5", "2"], "regression"), "regression").values.tolist() == [1.5, 2.0]
    parts = find_target(pl.Series("y", [0.5, 2.0, 0.5]), "classification")
    assert parts.values.tolist() == ["0.5", "2", "0.5"]
    many = find_target(pl.Series(range(100)), "classification")
    assert many.values.tolist() == list(range(100))


NAMES = [f"n{row}" for row in range(50)]
NUMBERS = [f"{row}.5" for row in range(50)]
DAYS = [f"2020-01-{day:02}" for day in range(1, 21)]


@pytest.mark.parametrize(
    ("values", "task", "problem"),
    [
        ([4, 4], "auto", "the target 'y' must have at least two classes, got only 4"),
        (["4", "4.0"], "auto", "the target 'y' must have at least two classes, got only 4.0"),
        ([5.5, 5.5], "auto", "the target 'y' must have different values, got only 5.5"),
        ([5, 5], "regression", "the target 'y' must have different values, got only 5"),
        (["dog", "dog"], "auto", "the target 'y' must have at least two classes, got only dog"),
        (["d\nog", "d\nog"], "auto", "the target 'y' must have at least two classes, got only d og"),
        ([True, True], "auto", "the target 'y' must have at least two classes, got only True"),
        (["true", "TRUE"], "auto", "the target 'y' must have at least two classes, got only True"),
        ([1], "auto", "at least 2 rows are needed, got 1"),
        ([None, None], "auto", "the target 'y' has no values"),
        (["", "NA"], "auto", "the target 'y' has no values"),
        ([], "auto", "the target 'y' has no values"),
        ([0.5, np.inf, 1.0], "auto", "the column 'y' must hold numbers, got inf in row 2"),
        (["0.5", "7", "inf"], "auto", "the column 'y' must hold numbers, got 'inf' in row 3"),
        (["1", "dog", "2"], "regression", "the target 'y' holds numbers except for 'dog': .*--na.*"),
        (["cat", "dog"], "regression", "the target 'y' must hold numbers for regression, got 'cat'"),
        (["1", "2"] * 9 + ["x"], "regression", "the target 'y' must hold numbers for regression, got 'x'"),
        ([True, False], "regression", "the target 'y' must hold numbers for regression, got True"),
        ([[1], [2]], "auto", r"the target 'y' must hold numbers or names of classes, got List\(Int64\)"),
        ([[1], [2]], "classification", "the target 'y' must hold numbers or .*"),
        ([dt.date(2020, 1, 1)] * 2, "auto", "the target 'y' must hold numbers or .*, got dates"),
        (DAYS, "auto", "the target 'y' must hold numbers or .*, got dates"),
        (
            [*NUMBERS, "ten"],
            "auto",
            "the target 'y' holds numbers except for 'ten': .* --na, or .* --task .*",
        ),
        (
            [*NUMBERS, "1o"],
            "auto",
            "the target 'y' holds numbers except for '1o' in row 51: .* or ask for --task classification",
        ),
        (
            [*NUMBERS, "1o"],
            "regression",
            "the target 'y' holds numbers except for '1o' in row 51: correct .*",
        ),
        (
            NAMES,
            "auto",
            "the target 'y' does not name classes: it is text with 50 different values in 50 rows",
        ),
        (NAMES, "regression", "the target 'y' does not name classes: .*"),
    ],
)
def test_bad_targets(values, task, problem):
    with refuses(problem):
        find_target(read(values, task), task)


def test_a_target_is_checked_as_it_is_found_too():
    with refuses("at least 2 rows are needed, got 0"):
        find_target(pl.Series("y", [], dtype=pl.String))
    with refuses("the target 'y' holds infinite values, the first in row 2"):
        find_target(pl.Series("y", [1.0, np.inf, -np.inf]), "classification")
    with refuses("the target 'y' must hold numbers for regression, got 'dog'"):
        find_target(pl.Series("y", ["1", "dog"]), "regression")


@pytest.mark.parametrize(
    "values", [NAMES, DAYS, [*NUMBERS, "1o"], [*NUMBERS, "ten"], ["1"] * 20 + ["3+"], ["2020-01", "2020-02"]]
)
def test_text_that_looks_wrong_names_classes_where_asked(values):
    found = find_target(read(values, "classification"), "classification")
    assert found.values.tolist() == values


def test_a_target_may_number_the_rows():
    frame = pl.DataFrame({"id": range(30), "a": [0.5] * 30})
    schema = learn_schema(frame, "id")
    assert schema.target.kind == "number"
    assert schema.left_out == {}


# Reading the target of later tables.


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1.5, None, np.nan], [1.5, None, None]),
        (["1.5", "NA", ""], [1.5, None, None]),
        (["a", " ", " b "], ["a", None, "b"]),
        ([True, None, False], [True, None, False]),
        (["true", "?", "FALSE"], [True, None, False]),
        (["7", None, "8"], [7, None, 8]),
        (pl.Series(["a", None, "b"], dtype=pl.Categorical), ["a", None, "b"]),
    ],
)
def test_rows_without_a_target(values, found):
    assert read(values).to_list() == found
    assert read(values).name == "y"
    frame = table(values)
    assert learn_schema(frame, "y").read_target(frame[:0]).to_list() == []


def test_words_for_missing_targets():
    assert read(["NA", "a", "b"], missing=()).to_list() == ["NA", "a", "b"]
    assert read(["NA", "a", "none"], missing=["none"]).to_list() == ["NA", "a", None]
    for values in (["-200", "1.5", "-200.0"], [-200.0, 1.5, -200.0]):
        assert read(values, missing=["-200"]).to_list() == [None, 1.5, None]
    assert read([*NUMBERS, "ten"], missing=["ten"]).null_count() == 1
    coded = Schema((), ColumnSchema("y", "category"), missing=("-1",))
    assert coded.read_target(pl.DataFrame({"y": [-1, 2]})).to_list() == [None, 2]


def test_the_same_target_in_another_table():
    schema = learn_schema(table(["1,5", "2", "3,25"]), "y")
    assert schema.read_target(pl.DataFrame({"y": ["1000", None, "0,5"]})).to_list() == [1000.0, None, 0.5]
    assert schema.read_target(pl.DataFrame({"y": [1000.0, None, 0.5]})).to_list() == [1000.0, None, 0.5]
    assert schema.read_target(pl.DataFrame({"y": [1, 2]})).to_list() == [1, 2]
    with refuses(r"no column 'y'; the columns are Y, a \(did you mean Y\?\)"):
        schema.read_target(pl.DataFrame({"Y": [1], "a": [2]}))


@pytest.mark.parametrize(
    ("learnt", "values", "problem"),
    [
        (["1", "2.5"], ["1", "x", "2"], "numbers, got 'x' in row 2"),
        ([1.0, 2.5], [1.0, np.inf], "numbers, got inf in row 2"),
        ([1.0, 2.5], [dt.date(2020, 1, 1)], "numbers, got 2020-01-01 in row 1"),
        ([True, False], ["true", "maybe"], "true or false, got 'maybe' in row 2"),
        (["true", "false"], [1, 2], "true or false, got 2 in row 2"),
        (["a", "b"], [[1], None], r"text or numbers, got \[1\] in row 1"),
        (["a", "b"], [b"a"], "text or numbers, got b'a' in row 1"),
        (["a", "b"], pl.Series([object()], dtype=pl.Object), "text or numbers, got <object .* in row 1"),
        (["a", "b"], [dt.timedelta(1)], "text or numbers, got 1 day, 0:00:00 in row 1"),
    ],
)
def test_targets_that_do_not_fit(learnt, values, problem):
    schema = learn_schema(table(learnt), "y")
    with refuses(f"the column 'y' must hold {problem}"):
        schema.read_target(table(values))


# What a model learned as its classes, and how another table may have the second and the first of them.
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
        np.testing.assert_array_equal(match_classes(variant, classes), classes[[1, 0]], strict=True)


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
        match_classes(pl.Series("y", values), np.array(classes))


def test_no_labels():
    assert match_classes(pl.Series("y", [], dtype=pl.Int64), np.array([1, 2])).shape == (0,)


# The same classes in a file's text and typed: what one table teaches, the other's rows are known by.
AS_WRITTEN = {
    "integers": (["1", "2", "1"], [1, 2, 1]),
    "whole numbers": (["1.0", "2.0", "1.0"], [1.0, 2.0, 1.0]),
    "truth": (["True", "False", "True"], [True, False, True]),
    "text": (["a", "b ", "a"], ["a", "b", "a"]),
    "coded": (["a", "b", "a"], pl.Series(["a", "b", "a"], dtype=pl.Categorical)),
    "coded digits": (["1", "2", "1"], pl.Series(["1", "2", "1"], dtype=pl.Categorical)),
    "missing": (["1", "", "2"], [1.0, np.nan, 2.0]),
}


@pytest.mark.parametrize("name", AS_WRITTEN)
@pytest.mark.parametrize("text_first", [True, False])
def test_classes_of_a_file_are_those_of_a_frame(name, text_first):
    learnt, other = AS_WRITTEN[name] if text_first else AS_WRITTEN[name][::-1]
    schema = learn_schema(table(learnt), "y", task="classification")
    labels = find_target(schema.read_target(table(learnt)).drop_nulls(), "classification").values
    again = match_classes(schema.read_target(table(other)).drop_nulls(), np.unique(labels))
    np.testing.assert_array_equal(again, labels, strict=True)
