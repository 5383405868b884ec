"""Folders of runs: what is read from them, and what is refused."""

import json
import shutil
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from mlp_xp import load_model

pl = pytest.importorskip("polars")
skops = pytest.importorskip("skops.io")
pytest.importorskip("safetensors")
runs = pytest.importorskip("mlp_xp.tables._runs")
cli = pytest.importorskip("mlp_xp._cli")

DataError = pytest.importorskip("mlp_xp.tables._reading").DataError

load_run = runs.load_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small run, and the table it was trained on."""
    here = tmp_path_factory.mktemp("made")
    frame = pl.DataFrame({"x": np.linspace(0.0, 1.0, 60), "kind": ["p", "q", "q"] * 20})
    frame = frame.with_columns(label=pl.when(pl.col("x") > 0.5).then(pl.lit("high")).otherwise(pl.lit("low")))
    frame.write_csv(here / "table.csv")
    settings = ["--hidden", "3", "--epochs", "40", "--learning-rate", "0.1", "--quiet"]
    assert cli.main(["train", str(here / "table.csv"), *settings, "--out", str(here / "run")]) == 0
    return here


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """The folder of a small run, to be changed."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("run")


def test_a_run_predicts_in_python_as_in_the_terminal(folder, capsys):
    run, frame = load_run(folder), pl.read_csv("table.csv")
    predicted = run.predict(frame)
    assert cli.main(["predict", "run", "table.csv"]) == 0
    written = pl.read_csv(capsys.readouterr().out.encode())
    assert predicted.equals(written)
    scores, baseline = run.evaluate(frame)
    assert scores["accuracy"] == (predicted["predicted label"] == frame["label"]).mean()
    assert scores["accuracy"] > baseline["accuracy"]


def test_the_bare_network_is_the_pipelines(folder):
    run, frame = load_run(folder), pl.read_csv("table.csv")
    model = load_model(folder / "network.safetensors")
    prepared = run.pipeline[0].transform(frame)
    np.testing.assert_array_equal(model.predict_proba(prepared), run.pipeline.predict_proba(frame))
    assert model.feature_names_in_.tolist() == prepared.columns
    assert model.history_ == json.loads((folder / "history.json").read_text())


def test_runs_of_the_versions_before_load(folder):
    """Their pipelines have labels of a private class, and the former name of the training's continuation."""
    run, frame = load_run(folder), pl.read_csv("table.csv")
    expected, model = run.predict(frame), run.pipeline[-1]
    model._labels = import_module("mlp_xp.estimators")._Labels(*model._labels)
    model._memory = vars(model).pop("_continuation")
    skops.dump(run.pipeline, folder / "pipeline.skops")
    with zipfile.ZipFile(folder / "pipeline.skops") as archive:
        schema = archive.read("schema.json").decode()
    assert "_Labels" in schema
    assert "_continuation" not in schema
    former = load_run(folder)
    assert former.predict(frame).equals(expected)
    # It trains on from its weights, as any loaded model does.
    former.pipeline[-1].partial_fit(former.pipeline[0].transform(frame), frame["label"].to_numpy())
    assert former.pipeline[-1].t_ > model.t_


def test_a_type_that_no_run_holds_is_not_loaded(folder):
    """The type is named, and nothing of it runs."""
    skops.dump({"pipeline": np.random.RandomState(0), "else": _Stranger()}, folder / "pipeline.skops")
    with pytest.raises(
        DataError, match=r"pipeline\.skops: it holds types that no run has, and is not loaded: .*Stranger"
    ):
        load_run(folder)


class _Stranger:
    def __setstate__(self, state):
        raise SystemExit("code from a file was run")

    def __getstate__(self):
        return {"a": 1}


def test_files_of_other_things(folder):
    skops.dump({"a": 1}, folder / "pipeline.skops")
    with pytest.raises(
        DataError, match=r"pipeline\.skops: it does not hold a trained pipeline of this command"
    ):
        load_run(folder)


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"not an archive",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["pipeline.skops", "run.json"])
def test_damaged_files_are_named(name, damage, folder):
    path = folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=r"^run") as caught:
        load_run(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_every_member_of_the_archive_is_checked(folder):
    """skops keeps arrays as members of a zip archive, which has a checksum of each."""
    path = folder / "pipeline.skops"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.compress_size)
    middle = largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2
    content[middle] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load_run(folder)


def test_a_newer_run_is_refused(folder):
    description = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**description, "format": 2}))
    with pytest.raises(DataError, match="run: format 2 is too new: this version of mlp_xp reads 1 and below"):
        load_run(folder)


def test_pandas_and_files_are_predicted_too(folder):
    pandas = pytest.importorskip("pandas")
    run = load_run(folder)
    expected = run.predict(pl.read_csv("table.csv"))
    assert run.predict("table.csv").equals(expected)
    assert run.predict(pandas.read_csv("table.csv")).equals(expected)
    assert run.evaluate("table.csv") == run.evaluate(pandas.read_csv("table.csv"))
    with pytest.raises(TypeError, match="`table` must be a DataFrame or the path of a file, got ndarray"):
        run.predict(np.zeros((3, 2)))


def test_an_estimator_that_opens_files_is_not_loaded(folder):
    """scikit-learn has some that read the files which their samples name."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    compose = pytest.importorskip("sklearn.compose")
    pipeline = load_run(folder).pipeline
    reader = compose.ColumnTransformer([("numbers", text.CountVectorizer(input="filename"), "kind")])
    (folder / "secret").write_text("password")
    reader.fit(pl.DataFrame({"kind": [str(folder / "secret")]}))
    pipeline.steps[0] = ("columns", reader)
    skops.dump(pipeline, folder / "pipeline.skops")
    with pytest.raises(DataError, match="it does not hold a trained pipeline of this command"):
        load_run(folder)


def test_a_compressed_pipeline_is_not_unpacked(folder):
    skops.dump(load_run(folder).pipeline, folder / "pipeline.skops", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="it is compressed and not loaded; runs are never compressed"):
        load_run(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"baseline": {}},
        {"baseline": {"counts": [1, 2, 3], "commonest": "low"}},
        {"baseline": {"counts": [0, 2], "commonest": "low"}},
        {"baseline": {"mean": 1.0}},
        {"columns": []},
        {"target": 3},
        {"format": "one"},
    ],
)
def test_descriptions_that_do_not_fit(change, folder):
    description = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**description, **change}))
    with pytest.raises(DataError, match="^run: damaged"):
        load_run(folder)
