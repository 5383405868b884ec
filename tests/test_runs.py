"""Folders of runs: what is read from them is what was written, and what no run can be is refused."""

import copy
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlp_xp import MLPClassifier, MLPRegressor, Network, load_model, save_model

pl = pytest.importorskip("polars")
for module in ("sklearn", "safetensors"):
    pytest.importorskip(module)

damaged_runs = pytest.importorskip("damaged_runs")
tables = pytest.importorskip("mlp_xp.tables")
runs = pytest.importorskip("mlp_xp.tables._runs")

TABLE, description_of, make_checksum_fit, make_run, training_table, with_description = (
    damaged_runs.TABLE,
    damaged_runs.description_of,
    damaged_runs.make_checksum_fit,
    damaged_runs.make_run,
    damaged_runs.training_table,
    damaged_runs.with_description,
)
ColumnSchema, DataError, DateFormat, NumberFormat, Schema, load_run = (
    tables.ColumnSchema,
    tables.DataError,
    tables.DateFormat,
    tables.NumberFormat,
    tables.Schema,
    tables.load_run,
)

NAMES = ("classes", "two", "values")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of runs, and the runs as they were before they were written, by name."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, damaged_runs.write_runs(folder)


@pytest.fixture
def folder(made, tmp_path):
    """The folder of a run, to be changed."""
    return Path(shutil.copytree(made[0] / "classes", tmp_path / "run"))


def change(folder, function, *, fit=True):
    """Change the document of a run, and have its checksum fit."""
    path = folder / "pipeline.json"
    document = json.loads(path.read_text())
    document = function(document) or document
    path.write_text(json.dumps(document))
    if fit:
        make_checksum_fit(folder)


def refused(folder, words=None):
    """Return the message with which a run is refused."""
    with pytest.raises(DataError, match=words) as caught:
        load_run(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    return message


# Round trips.


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_run_is_the_one_that_was_written(name, made):
    folder, before = made[0] / name, made[1][name]
    after = load_run(folder)
    assert after.pipeline.schema == before.pipeline.schema
    assert after.pipeline.preprocessor == before.pipeline.preprocessor
    assert (after.baseline, after.description) == (before.baseline, before.description)
    assert (after.path, after.target, after.pipeline.task) == (folder, before.target, before.pipeline.task)
    assert after.pipeline.dtype == before.pipeline.dtype
    if name != "values":
        np.testing.assert_array_equal(after.classes, before.classes)
        assert after.classes.dtype == before.classes.dtype
    for table in (TABLE, training_table()):
        assert after.read(table).equals(before.read(table))
        assert after.predict(table).equals(before.predict(table))
        assert after.evaluate(table) == before.evaluate(table)


def test_the_runs_have_columns_of_every_kind(made):
    schema = made[1]["classes"].pipeline.schema
    assert {column.kind for column in schema.features} == {"number", "date", "truth", "category"}
    formats = {column.name: column.format for column in schema.features}
    assert formats["price"] == NumberFormat(",", ".")
    assert formats["clock"] == DateFormat(("hours:minutes",))
    encodings = made[1]["classes"].pipeline.preprocessor.categories
    assert encodings["kind"].has_missing
    assert encodings["town"].has_rare


RUNS = {
    "whole numbers": {"y": [3, 5, 7] * 20},
    "truth values": {"y": [True, False] * 30},
    "truth in text": {"y": ["true", "False"] * 30},
    "odd classes": {"y": ['a"b', "\u00e4, \U0001f600", "a\nb", "x" * 500] * 15},
    "values": {"y": [0.1 + 0.2 * row for row in range(60)]},
    "values far away": {"y": [1e9 + row / 7.0 for row in range(60)]},
    "large values": {"y": [1e200 * (row % 13 - 6) for row in range(60)]},
    "counts": {"y": [row % 13 for row in range(60)], "loss": "poisson"},
    "euros": {"y": [f"\u20ac {row}.000,50" for row in range(1, 61)]},
    "numbers alone": {"y": ["p", "q"] * 30, "drop": ["k", "d"]},
    "categories alone": {"y": ["p", "q"] * 30, "drop": ["x", "d"]},
    "lbfgs": {"y": ["p", "q"] * 30, "solver": "lbfgs"},
    "more layers": {"y": ["p", "q"] * 30, "hidden_layer_sizes": (3, 2), "activation": ["tanh", "elu"]},
    "no layer": {"y": ["p", "q"] * 30, "hidden_layer_sizes": ()},
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RUNS)
def test_runs_of_every_target_and_network(name, dtype, tmp_path):
    settings = RUNS[name]
    frame = pl.DataFrame(
        {
            "x": np.linspace(-1.0, 1.0, 60),
            "k": ["a", "b, c", None, "d\n", '"', " e"] * 10,
            "d": [f"{1 + row % 12}/{1 + row % 28}/2020" for row in range(60)],
            "y": settings["y"],
        }
    )
    others = {key: value for key, value in settings.items() if key != "y"}
    if name != "lbfgs":
        before = make_run(tmp_path / "run", frame, "y", dtype=dtype, **others)
    else:
        with warnings.catch_warnings(action="ignore"):
            before = make_run(tmp_path / "run", frame, "y", dtype=dtype, **others)
    after = load_run(tmp_path / "run")
    assert after.predict(frame).equals(before.predict(frame))
    assert after.evaluate(frame) == before.evaluate(frame)
    assert after.pipeline.preprocessor == before.pipeline.preprocessor
    expected = settings["y"] if before.classes is not None else None
    if expected is not None:
        predicted = after.predict(frame)["predicted y"]
        assert set(map(str, predicted)) <= {str(value).strip() for value in expected} | {"True", "False"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_files_and_frames_of_all_kinds_are_predicted_alike(name, made, tmp_path):
    pandas = pytest.importorskip("pandas")
    run = load_run(made[0] / name)
    expected, scores = run.predict(TABLE), run.evaluate(TABLE)
    TABLE.write_csv(tmp_path / "table.csv")
    TABLE.write_csv(tmp_path / "table.tsv", separator="\t")
    TABLE.write_parquet(tmp_path / "table.parquet")
    tables = {
        "csv": str(tmp_path / "table.csv"),
        "tsv": tmp_path / "table.tsv",
        "parquet": tmp_path / "table.parquet",
        "pandas": pandas.read_csv(tmp_path / "table.csv"),
        "pandas' text": pandas.read_csv(tmp_path / "table.csv", dtype=str),
        "pandas' own types": pandas.read_csv(tmp_path / "table.csv").convert_dtypes(),
        "pandas' categories": pandas.read_csv(tmp_path / "table.csv").astype(
            {"kind": "category", "town": "category"}
        ),
        "days": TABLE.with_columns(pl.col("day").str.to_date()),
        "moments": TABLE.with_columns(pl.col("day").str.to_datetime("%Y-%m-%d")),
        "numbers": TABLE.with_columns(pl.col("size").cast(pl.Float64, strict=False)),
        "order": TABLE.select(reversed(TABLE.columns)),
    }
    if pytest.importorskip("importlib.util").find_spec("pyarrow"):
        tables["arrow"] = TABLE.to_arrow()
    for kind, table in tables.items():
        assert run.predict(table).equals(expected), kind
        assert run.evaluate(table) == scores, kind
    assert run.evaluate(TABLE)[0].keys() == run.evaluate(TABLE)[1].keys()


def test_predictions_are_classes_with_probabilities_or_values(made):
    run, values = (load_run(made[0] / name) for name in ("classes", "values"))
    predicted = run.predict(TABLE)
    assert predicted.columns == [
        "predicted y",
        *(f"probability {name}" for name in ("high", "low", "mid")),
    ]
    shares = predicted.drop("predicted y").to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-6)
    names = np.array(["high", "low", "mid"])
    assert predicted["predicted y"].to_list() == names[shares.argmax(axis=1)].tolist()
    scores, baseline = run.evaluate(TABLE)
    # The row of weight 0 is left out; of the others, three are "low".
    kept = np.array([0, 1, 2, 4, 5])
    assert scores["accuracy"] == (predicted["predicted y"] == TABLE["y"]).to_numpy()[kept].mean()
    assert baseline["accuracy"] == 0.0  # the commonest of the training, the first of equals, is "high"
    assert values.predict(TABLE).schema == {"predicted value": pl.Float64}
    assert values.classes is None


@pytest.mark.usefixtures("empty_pictures")
def test_a_run_predicts_in_python_as_in_the_terminal(tmp_path, capsys, monkeypatch):
    cli = pytest.importorskip("mlp_xp._cli")
    monkeypatch.chdir(tmp_path)
    frame = training_table().drop("two", "value", "w")
    frame.write_csv("table.csv")
    settings = ["--networks", "1", "--hidden", "3", "--epochs", "3", "--quiet", "--out", "run"]
    assert cli.main(["train", "table.csv", "--target", "y", *settings]) == 0
    assert {path.name for path in Path("run").iterdir()} == {
        *("pipeline.json", "network.safetensors", "run.json", "metrics.json", "history.json", "command.txt"),
        *("confusion_matrix.png", "learning_curve.png"),
    }
    run = load_run("run")
    predicted = run.predict(frame)
    assert cli.main(["predict", "run", "table.csv"]) == 0
    written = pl.read_csv(capsys.readouterr().out.encode())
    assert predicted.equals(written)
    scores, baseline = run.evaluate(frame)
    assert scores["accuracy"] == (predicted["predicted y"] == frame["y"]).mean()
    assert cli.main(["evaluate", "run", "table.csv", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["scores"]
    assert printed == {"network": scores, "baseline": baseline}


def test_the_bare_network_is_the_pipelines(made):
    run = load_run(made[0] / "two")
    model = load_model(made[0] / "two" / "network.safetensors")
    features = run.read(TABLE)
    prepared = run.pipeline.preprocessor.transform(features, "float64")
    np.testing.assert_array_equal(model.predict_proba(prepared), run.pipeline.predict_proba(features))
    history = json.loads((made[0] / "two" / "history.json").read_text())
    assert [record["loss"] for record in history] == model.loss_curve_


def is_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_holds_plain_values_only(name, made):
    folder = made[0] / name
    names = {path.name for path in folder.iterdir()}
    assert names == {"pipeline.json", "network.safetensors", "run.json", "history.json", "command.txt"}
    for path in folder.glob("*.json"):
        assert is_plain(json.loads(path.read_text())), path
    document = json.loads((folder / "pipeline.json").read_text())
    assert document.keys() == {"format", "sha256", "schema", "preprocessor", "baseline"}
    assert document["format"] == 3


def test_a_loaded_run_computes_where_its_caller_says(made):
    assert load_run(made[0] / "two").pipeline.estimator.backend is None


# Tables that do not fit.


@pytest.fixture(scope="module")
def run(made):
    return load_run(made[0] / "classes")


def test_all_cells_that_do_not_fit_are_named(run):
    wrong = TABLE.with_columns(
        size=pl.Series(["1.5", "tall", "1", "1", "1,5", "0"]),
        day=pl.Series(["2020-02-30", *["2020-02-29"] * 5]),
        flag=pl.Series([2, 1, 0, 1, 1, 1]),
    )
    expected = (
        "the columns 'size' must hold numbers, got 'tall' in row 2, '1,5' in row 5; 'day' must hold dates "
        "written as year-month-day, got '2020-02-30' in row 1; 'flag' must hold true or false, got 2 in row 1"
    )
    for use_table in (run.predict, run.read, run.evaluate):
        with pytest.raises(DataError) as caught:
            use_table(wrong)
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.drop("size", "kind"), "the columns size, kind are missing; the table has price, "),
        (TABLE.head(0), "there is no row to predict"),
        ("nowhere.csv", "nowhere.csv: no such file"),
        ("nowhere.xyz", "nowhere.xyz: "),
        (TABLE.with_columns(size=pl.lit("1e39")), "'size' must hold smaller numbers, got 1e.39 in row 1, "),
        (TABLE.with_columns(size=pl.lit("1e999")), "'size' must hold numbers.*, got '1e999' in row 1"),
        (TABLE.with_columns(size=pl.lit([1.0])), "'size' must hold numbers, got "),
        (TABLE.with_columns(kind=pl.lit([1.0])), "'kind' must hold text or numbers, got "),
    ],
)
def test_tables_that_cannot_be_predicted(table, message, run):
    with pytest.raises(DataError, match=message):
        run.predict(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.drop("y"), "no column 'y'; the columns are size, "),
        (TABLE.drop("w"), "the column w is missing"),
        (
            TABLE.with_columns(y=pl.lit("tiny")),
            "classes the model does not know: tiny; it knows high, low, mid",
        ),
        (TABLE.with_columns(y=pl.lit(None, dtype=pl.String)), "the target 'y' has no values"),
        (TABLE.head(0), "there is no row to score"),
        (TABLE.with_columns(w=pl.lit("-1")), "of sample weights must hold numbers >= 0"),
    ],
)
def test_tables_that_cannot_be_scored(table, message, run):
    with pytest.raises(DataError, match=message):
        run.evaluate(table)


@pytest.mark.parametrize("table", [np.zeros((3, 2)), None, 3, [[1.0]], {"size": [1.0]}])
def test_what_is_no_table(table, run):
    with pytest.raises(
        TypeError, match=f"`table` must be a DataFrame or the path of a file, got {type(table).__name__}"
    ):
        run.predict(table)


def test_values_that_are_no_numbers_are_named(made):
    values = load_run(made[0] / "values")
    with pytest.raises(DataError, match="'value' must hold numbers, got 'many' in row 1"):
        values.evaluate(TABLE.with_columns(value=pl.lit("many")))


# What is said of a table.


def test_notes_on_a_table(run):
    table = TABLE.with_columns(extra=pl.lit(1))
    unused, unseen, missing = runs.table_notes(run, table, run.read(table))
    assert unused == "not used: extra"
    assert unseen == "kind: in 1 rows values unseen in training: never"
    *numbers, categories = missing.removeprefix("missing: ").split("; ")
    assert categories == "kind 1, town 1, a category of their own"
    filled = dict(number.split(" 1, filled with ") for number in numbers)
    assert filled.keys() == {"size", "price", "day", "clock", "flag"}
    assert filled["price"].startswith("3")
    assert filled["day"].startswith("20")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", filled["clock"])


def test_notes_on_values_unseen_in_training(made):
    frame = pl.DataFrame({"kind": ["new", "a", "b", "new", "c", "d", "e", "f", "g"]})
    run = replace_columns(made[1]["values"], kind=("a", "b"))
    notes = runs.table_notes(run, frame, frame)
    examples = "new, c, d, e, f, ... (6 in all)"
    assert notes == [f"kind: in 7 rows values unseen in training: {examples}"]


def replace_columns(run, **values):
    """A run with columns of categories alone."""
    encodings = {
        name: replace(run.pipeline.preprocessor.categories[name], values=each, commonest=each[0])
        for name, each in values.items()
    }
    schema = Schema(tuple(ColumnSchema(name, "category") for name in values))
    made = replace(run.pipeline.preprocessor, numbers={}, categories=encodings)
    return run._replace(pipeline=replace(run.pipeline, schema=schema, preprocessor=made))


DAY, CLOCK = DateFormat(("year-month-day",)), DateFormat(("hours:minutes",))


@pytest.mark.parametrize(
    ("days", "format", "text"),
    [
        (0.0, DAY, "1970-01-01"),
        (18_321.0, DAY, "2020-02-29"),
        (-1.0, DAY, "1969-12-31"),
        (0.5, DAY, "1970-01-01 12:00:00"),
        (18_321.0 + 1.0 / 3.0, DAY, "2020-02-29 08:00:00"),
        (1e-9, DAY, "1970-01-01"),
        (0.4375, CLOCK, "10:30:00"),
        (0.0, CLOCK, "00:00:00"),
        (2.5, None, "2.5 days"),
        (1e300, DAY, "1e+300 days"),
        (-3e6, DAY, "-3e+06 days"),
    ],
)
def test_days_for_people(days, format, text):
    assert runs.format_days(days, ColumnSchema("d", "date", format)) == text


# Folders that are no runs.


def test_what_is_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for path in ("nowhere", "file", "empty", ".", ""):
        assert refused(path).endswith("not the folder of a run: it has no run.json")
    with pytest.raises(DataError, match="it cannot be read"):
        load_run("a" * 5000)
    refused("a\0b")
    for path in (None, 3):
        with pytest.raises(TypeError, match="`path` must be text or a path"):
            load_run(path)


@pytest.mark.parametrize("name", ["pipeline.json", "network.safetensors", "run.json"])
def test_missing_files_are_named(name, folder):
    (folder / name).unlink()
    assert refused(folder) == f"{folder}: not the folder of a run: it has no {name}"
    (folder / name).mkdir()
    assert refused(folder) == f"{folder}: not the folder of a run: it has no {name}"


@contextmanager
def within_seconds(limit):
    """Fail if something waits for longer, as for a writer into a pipe."""

    def fail(*_):
        raise AssertionError(f"it waited for {limit} seconds")

    former = signal.signal(signal.SIGALRM, fail)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@pytest.mark.skipif(os.name != "posix", reason="there are no such files")
@pytest.mark.parametrize("name", ["pipeline.json", "network.safetensors", "run.json"])
@pytest.mark.parametrize(
    "kind", ["pipe", "/dev/zero", "/dev/tty", "/dev/stdin", "itself", "nothing", "/proc/kmsg", "/etc"]
)
def test_special_files_are_not_read(kind, name, folder):
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"itself": name, "nothing": "nowhere"}.get(kind, kind))
    with within_seconds(20):
        refused(folder)


def test_files_may_be_links(folder, made):
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to(made[0] / "classes" / "run.json")
    assert load_run(folder).predict(TABLE).equals(made[1]["classes"].predict(TABLE))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read(folder):
    (folder / "pipeline.json").chmod(0)
    refused(folder, "it cannot be read")


def test_runs_of_the_first_format_are_refused(folder):
    """Their pipeline was an object graph, of which nothing is read."""
    (folder / "pipeline.skops").write_bytes(b"PK\x03\x04")
    assert load_run(folder)  # it is of the new format as well
    (folder / "pipeline.json").unlink()
    expected = f"{folder}: format 1 cannot be loaded safely, and is not: train again, as command.txt says"
    assert refused(folder) == expected


def test_runs_of_the_former_format_load(made, tmp_path):
    """Their numbers have one input each, and say nothing of limits and intervals."""
    folder = Path(shutil.copytree(made[0] / "two", tmp_path / "run"))

    def as_it_was(document):
        document["format"] = 2
        for scaling in document["preprocessor"]["numbers"].values():
            assert (scaling.pop("limit"), scaling.pop("knots")) == (None, [])

    change(folder, as_it_was)
    assert load_run(folder).predict(TABLE).equals(made[1]["two"].predict(TABLE))
    change(folder, lambda document: document["preprocessor"].update(numbers=[1.0]))
    refused(folder, "damaged or altered")


@pytest.mark.parametrize("version", [4, 10**6, 10**300])
def test_newer_formats_are_refused(version, folder):
    path = folder / "pipeline.json"
    path.write_text(json.dumps({"format": version, "something": "new"}))
    shown = version if version < 10**9 else "a long number"
    assert refused(folder) == f"{folder}: format {shown} is too new: this mlp_xp reads 3"


@pytest.mark.parametrize("version", [1, 0, -1, True, 2.0, "2", None, [2], {}, [[]]])
def test_formats_that_never_were(version, folder):
    change(folder, lambda document: document.update(format=version))
    refused(folder, "damaged or altered")


# Damage.


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"no JSON",
    "zeros": lambda content: bytes(len(content)),
    "a list": lambda content: b"[]",
    "a number": lambda content: b"3",
    "Latin-1": lambda content: content[:40] + b"\xe4" + content[41:],
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "twice": lambda content: content + content,
    "NaN": lambda content: b'{"format": NaN}',
    "a key twice": lambda content: b'{"format": 3, "format": 3}',
    "nested": lambda content: b"[" * 100_000,
    "a long number": lambda content: b'{"format": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["pipeline.json", "network.safetensors", "run.json"])
def test_damaged_files_are_named(name, damage, folder):
    path = folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert refused(folder).startswith(str(folder))


@pytest.mark.parametrize("name", ["pipeline.json", "network.safetensors"])
def test_every_byte_has_a_checksum(name, folder):
    path = folder / name
    content = path.read_bytes()
    for at in np.linspace(0, len(content) - 1, 100).astype(int):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        try:
            load_run(folder)
        except DataError:
            continue
        assert content[at : at + 1].isspace(), (at, content[at - 20 : at + 20])  # outside of values


@pytest.mark.parametrize("other", ["two", "values"])
@pytest.mark.parametrize("name", ["pipeline.json", "network.safetensors"])
@pytest.mark.parametrize("fit", [False, True])
def test_parts_of_another_run_are_refused(name, other, fit, folder, made):
    shutil.copy(made[0] / other / name, folder / name)
    if fit:
        make_checksum_fit(folder)
    refused(
        folder, "do not fit each other" if fit else "the checksum in pipeline.json is not that of its content"
    )


def test_a_network_trained_on_the_same_columns_is_another_one(folder, tmp_path):
    """It fits, but its run is not this one."""
    frame = training_table()
    make_run(tmp_path / "other", frame, "y", drop=["two", "value"], weight="w", activation="tanh")
    shutil.copy(tmp_path / "other" / "network.safetensors", folder)
    refused(folder, "the checksum in pipeline.json is not that of its content and network.safetensors")


# Runs made by an attacker, with checksums that fit.


def paths_in(value, prefix=()):
    """The place of everything in a JSON value but the checksum."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key != "sha256":
            yield (*prefix, key)
        yield from paths_in(item, (*prefix, key))


def container_at(document, path):
    for key in path[:-1]:
        document = document[key]
    return document


SMALL_VALUES = [
    *(None, True, 0, -1, 1.5, 1e300, 2**64, 10**400, "", "a", "\ud800", "\x1b[31m", [], [[]], {}, {"a": 1}),
    *(float("nan"), float("inf")),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run with few fields."""
    folder = tmp_path_factory.mktemp("small") / "run"
    frame = pl.DataFrame({"x": ["1,5", "2", "3"] * 8, "k": ["a", None, "b"] * 8, "y": ["p", "q", "p"] * 8})
    frame = frame.with_columns(d=pl.Series(["2020-01-01", "2021-01-01"] * 12))
    run = make_run(folder, frame.select("x", "k", "d", "y"), "y")
    change(folder, lambda document: document["schema"].update(missing=["NA"]))
    assert not load_run(folder).predict(frame).equals(run.predict(frame.reverse()))
    return folder, frame


def refused_or_predicts(folder, frame):
    """A run that loads predicts a table or refuses it, without an error of another kind or a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            run = load_run(folder)
        except DataError:
            return False
        for function in (run.predict, run.evaluate):
            try:
                function(frame)
            except DataError as error:
                damaged_runs.assert_message(error)
        return True


@pytest.mark.sampled(4)
@pytest.mark.parametrize("value", SMALL_VALUES, ids=lambda value: ascii(value)[:12])
def test_every_field_may_be_any_value(value, small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    original = json.loads((folder / "pipeline.json").read_text())
    for path in paths_in(original):
        document = copy.deepcopy(original)
        container_at(document, path)[path[-1]] = value
        (folder / "pipeline.json").write_text(json.dumps(document))
        make_checksum_fit(folder)
        loaded = refused_or_predicts(folder, small[1])
        assert not (loaded and isinstance(value, (dict, list)) and value), path


def test_every_field_is_needed_and_there_are_no_others(small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    original = json.loads((folder / "pipeline.json").read_text())
    lists = ("features", "values", "counts", "missing", "notes", "forms")
    for path in paths_in(original):
        for kind in ("removed", "added"):
            document = copy.deepcopy(original)
            container = container_at(document, path)
            if kind == "removed":
                del container[path[-1]]
            elif isinstance(container, dict):
                container["more"] = container[path[-1]]
            else:
                continue
            (folder / "pipeline.json").write_text(json.dumps(document))
            make_checksum_fit(folder)
            loaded = refused_or_predicts(folder, small[1])
            assert not loaded or (len(path) > 1 and path[-2] in lists), (kind, path)


CHANGES = {
    "a target of dates": lambda d: d["schema"]["target"].update(kind="date"),
    "a target of numbers": (
        lambda d: d["schema"]["target"].update(
            kind="number", format={"decimal": ".", "grouping": "", "sign": ""}
        )
    ),
    "weights of text": (
        lambda d: d["schema"].update(
            sample_weight={"name": "w", "kind": "category", "format": None, "missing": []}
        )
    ),
    "no target": lambda d: d["schema"].update(target=None),
    "no features": lambda d: d["schema"].update(features=[]),
    "a column twice": lambda d: d["schema"]["features"].append(d["schema"]["features"][0]),
    "the target as a feature": lambda d: d["schema"]["features"].append(d["schema"]["target"]),
    "another order": lambda d: d["schema"]["features"].reverse(),
    "a category twice": lambda d: d["preprocessor"]["categories"]["k"].update(values=["a", "a"]),
    "a category more": lambda d: d["preprocessor"]["categories"]["k"].update(values=["a", "b", "c"]),
    "an unknown commonest": lambda d: d["preprocessor"]["categories"]["k"].update(commonest="c"),
    "one more input": lambda d: d["preprocessor"]["categories"]["k"].update(has_rare=True),
    "a scale of zero": lambda d: d["preprocessor"]["numbers"]["x"].update(scale=0.0),
    "a scale below zero": lambda d: d["preprocessor"]["numbers"]["x"].update(scale=-1.0),
    "a tiny scale": lambda d: d["preprocessor"]["numbers"]["x"].update(scale=5e-324),
    "an impossible median": lambda d: d["preprocessor"]["numbers"]["x"].update(fill=1e308),
    "an infinite mean": lambda d: d["preprocessor"]["numbers"]["x"].update(mean=float("inf")),
    "a mean beside counts": lambda d: d["baseline"].update(mean=1.0),
    "another number of counts": lambda d: d["baseline"].update(counts=[1, 2, 3]),
    "a huge count": lambda d: d["baseline"].update(counts=[1, 10**400]),
    "a count of zero": lambda d: d["baseline"].update(counts=[0, 2]),
    "an unknown commonest class": lambda d: d["baseline"].update(commonest="\x1b[2J"),
    "dates in two orders": (
        lambda d: d["schema"]["features"][2].update(format={"forms": ["day/month/year", "month/day/year"]})
    ),
    "a mark that is a pattern": (
        lambda d: d["schema"]["features"][0].update(format={"decimal": ".", "grouping": "(a+)+$", "sign": ""})
    ),
    "a sign that is a pattern": (
        lambda d: d["schema"]["features"][0].update(format={"decimal": ".", "grouping": "", "sign": "(a+)+$"})
    ),
}


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "a target of numbers"])
def test_documents_that_no_training_makes_are_refused(name, small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    change(folder, CHANGES[name])
    refused(folder, f"^{folder}: damaged or altered ")


def test_classes_may_be_written_as_numbers(small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    change(folder, CHANGES["a target of numbers"])
    assert refused_or_predicts(folder, small[1])


def fitted(kind, n_inputs, y, names=None):
    X = np.eye(6, n_inputs)
    return kind(hidden_layer_sizes=(2,), max_iter=1).fit(X if names is None else pl.DataFrame(X, names), y)


SIX = np.arange(6)

NETWORKS = {
    "another width": lambda: fitted(MLPClassifier, 4, SIX % 2),
    "more classes": lambda: fitted(MLPClassifier, 5, SIX % 3),
    "several labels": lambda: fitted(MLPClassifier, 5, np.eye(6, 2, dtype=int)),
    "fractions": lambda: fitted(MLPClassifier, 5, (SIX % 2).astype(float)),
    "unsigned": lambda: fitted(MLPClassifier, 5, (SIX % 2).astype(np.uint8)),
    "values": lambda: fitted(MLPRegressor, 5, SIX * 1.0),
    "several values": lambda: fitted(MLPRegressor, 5, np.eye(6, 2)),
    "named inputs": lambda: fitted(MLPClassifier, 5, SIX % 2, list("abcde")),
}


@pytest.mark.filterwarnings("ignore:.*hasn't converged")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_things_are_refused(name, small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    save_model(folder / "network.safetensors", NETWORKS[name]())
    classes = getattr(load_model(folder / "network.safetensors"), "classes_", np.array(["p"]))
    change(folder, lambda document: document["baseline"].update(commonest=str(classes[0])))
    refused(folder, "do not fit each other")


def test_a_network_without_an_estimator_is_refused(folder):
    network = Network((5, 2), loss="categorical_cross_entropy")
    params = network.init(0, like=np.ones((1, 5)))
    save_model(folder / "network.safetensors", (network, params))
    make_checksum_fit(folder)
    refused(folder, "must hold a classifier or a regressor")


@pytest.mark.parametrize(
    "classes",
    [
        {"$array": ["str", ["a", "\ud800"]]},
        {"$array": ["object", ["a", "b"]]},
        {"$array": ["float16", [0.5, 1.0]]},
        {"$array": ["str", ["b", "a"]]},
        {"$array": ["str", ["a", "a"]]},
    ],
)
def test_labels_that_no_table_has_are_refused(classes, small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    path = folder / "network.safetensors"
    document = json.loads(description_of(path.read_bytes()))
    document["learned"]["classes"] = classes
    path.write_bytes(with_description(path.read_bytes(), json.dumps(document)))
    name = classes["$array"][1][0]
    change(folder, lambda document: document["baseline"].update(commonest=str(name)))
    refused(folder)


def test_where_to_compute_is_not_the_files_choice(small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    path = folder / "network.safetensors"
    document = json.loads(description_of(path.read_bytes()))
    document["parameters"]["backend"] = "auto"
    path.write_bytes(with_description(path.read_bytes(), json.dumps(document)))
    make_checksum_fit(folder)
    assert load_run(folder).pipeline.estimator.backend is None


@pytest.mark.parametrize("place", ['"format": 3', '"notes": []', '"p"', '"baseline": {'])
def test_values_nested_as_deep_as_they_load(place, small, tmp_path):
    """A message that showed them would be nested too deeply."""
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    path = folder / "pipeline.json"
    text = path.read_text()
    assert place in text
    name, colon, value = place.rpartition(": ")
    for depth in (1, 100, *range(700, 1000), 5000):
        nested = "[" * depth + "]" * depth
        new = f'"more": {nested}, {place}' if value == "{" else f"{name}{colon}{nested}"
        path.write_text(text.replace(place, new, 1))
        make_checksum_fit(folder)
        if (depth, value) != (1, "[]"):
            refused(folder)


def test_a_description_nested_deeply(small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    for depth in (1, 100, *range(700, 1000, 3), 5000):
        (folder / "run.json").write_text(f'{{"command": {"[" * depth + "]" * depth}}}')
        try:
            load_run(folder)
        except DataError:
            assert depth > 100


LONG = {
    "empty lists": lambda d, n: d["schema"].update(notes=[[]] * n),
    "notes": lambda d, n: d["schema"].update(notes=[""] * n),
    "words": lambda d, n: d["schema"].update(missing=["a"] * n),
    "columns left out": lambda d, n: d["schema"].update(left_out={f"{i}": "" for i in range(n)}),
    "features": lambda d, n: d["schema"].update(
        features=[{"name": f"{i}", "kind": "truth", "format": None, "missing": []} for i in range(n // 10)]
    ),
    "categories": lambda d, n: d["preprocessor"]["categories"]["k"].update(values=[f"{i}" for i in range(n)]),
    "numbers": lambda d, n: d["preprocessor"].update(
        numbers={f"{i}": {"fill": 0, "mean": 0, "scale": 1} for i in range(n // 10)}
    ),
    "counts": lambda d, n: d["baseline"].update(counts=[1] * n),
    "forms": lambda d, n: d["schema"]["features"][2]["format"].update(forms=["year-month-day"] * n),
    "a long name": lambda d, n: d["schema"]["features"][0].update(name="x" * n),
    "a long kind": lambda d, n: d["schema"]["features"][0].update(kind="x" * n),
    "long numbers": lambda d, n: d["baseline"].update(counts=[10**4000] * (n // 4000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_documents_take_time_and_memory_as_their_length(name, small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    change(folder, lambda document: LONG[name](document, 20_000))
    size = (folder / "pipeline.json").stat().st_size
    assert size > 15_000
    begin = time.process_time()
    refused_or_predicts(folder, small[1])
    assert time.process_time() - begin < 2.0
    tracemalloc.start()
    try:
        refused_or_predicts(folder, small[1])
        assert tracemalloc.get_traced_memory()[1] < 50 * size + 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["pipeline.json", "run.json"])
def test_a_file_of_gigabytes_is_not_read(name, folder):
    with (folder / name).open("r+b") as file:
        file.truncate(2**40)  # a sparse file
    refused(folder, f"{name} must have 67108864 bytes at most, got 1099511627776")


def test_names_cannot_control_a_terminal(small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "run"))
    change(folder, lambda document: _rename(document, 0, "\x1b[2J"))
    change(folder, lambda document: _rename(document, 1, "\x9b2J"))
    run = load_run(folder)
    with pytest.raises(DataError) as caught:
        run.predict(small[1])
    assert not set("\x1b\x9b") & set(str(caught.value))


def _rename(document, column, name):
    feature = document["schema"]["features"][column]
    for group in document["preprocessor"].values():
        for old in list(group):
            group[name if old == feature["name"] else old] = group.pop(old)
    feature["name"] = name


@pytest.mark.slow
def test_random_damage_is_refused_or_harmless(tmp_path, request):
    """Nothing but a DataError, no warning, no file opened outside, no process, little time and memory."""
    count = request.config.getoption("--mutations") * 3 // 8
    script = Path(__file__).with_name("damaged_runs.py")
    answer = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(count), "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = json.loads(answer.stdout)
    assert sum(found.values()) == count
    assert found["refused"] > count // 2  # the damage is damage
    assert found["scored"] > count // 20  # and the checksums fit


@pytest.mark.usefixtures("empty_pictures")
def test_truth_values_are_no_yes_and_no(tmp_path, monkeypatch):
    """A library that reads yes and no as truth values would have all rows predicted as unknown ones."""
    cli = pytest.importorskip("mlp_xp._cli")
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame({"flag": ["yes", "no"] * 30, "x": np.arange(60.0) % 7, "y": ["a", "b"] * 30})
    frame.write_csv("table.csv")
    settings = ["--networks", "1", "--hidden", "8", "--epochs", "2", "--quiet", "--out", "run"]
    assert cli.main(["train", "table.csv", *settings]) == 0
    run = load_run("run")
    truths = frame.with_columns(pl.col("flag") == "yes")
    message = "^the column 'flag' must hold names as in training, such as no, yes, got true and false$"
    for use in (run.predict, run.evaluate, run.read):
        use(frame)
        with pytest.raises(DataError, match=message):
            use(truths)
