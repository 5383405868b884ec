"""Tests of ``mlp-xp train --resume``: of trainings that were cut, and of the folder that they leave."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlp_xp import load_model
from mlp_xp._training import checkpoint_files

pl = pytest.importorskip("polars")
pytest.importorskip("sklearn")
pytest.importorskip("rich")
cli = pytest.importorskip("mlp_xp._cli")
tables = pytest.importorskip("mlp_xp.tables")

WITHOUT_PAUSES = """
import sys
from mlp_xp._cli import main
from mlp_xp._training import checkpoint_files
checkpoint_files.SECONDS_BETWEEN = 0.0
sys.exit(main(sys.argv[1:]))
"""
COMMAND = [sys.executable, "-m", "mlp_xp"]
TRAIN = "train table.csv --target y --hidden 6 --networks 3 --epochs 12 --learning-rate 0.05 --out run"
PARTIAL, UNFINISHED = Path("run.partial"), "unfinished-training.json"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlp_xp._cli.train._draw", lambda *arguments: [])  # pictures take most of the time
    random = np.random.RandomState(0)
    X = random.standard_normal((80, 2))
    write_table(X)


def write_table(X, path="table.csv"):
    names = np.where(X[:, 0] + 0.3 * X[:, 1] ** 2 > 0.0, "more", "less")
    pl.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": names}).write_csv(path)


@pytest.fixture(autouse=True)
def _each_epoch_is_remembered(monkeypatch):
    monkeypatch.setattr("mlp_xp._training.loop.SECONDS_BETWEEN_BOUNDARIES", 0.0)


@pytest.fixture
def run(capfd):
    """Call the command within this process; return its exit code and what it printed."""

    def call(*arguments):
        try:
            code = cli.main([word for each in arguments for word in shlex.split(each)])
        except SystemExit as error:
            code = error.code
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def cut(run, monkeypatch):
    """Train until an epoch of a network, at whose end something happens; return what was printed."""

    def call(network, epoch, happens, *arguments):
        is_due = checkpoint_files.Checkpoints.is_due

        def is_due_then(self, n_epochs):
            if (self.file.path.name, n_epochs) == (f"network-{network}.safetensors", epoch):
                happens()
            return is_due(self, n_epochs)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_files.Checkpoints, "is_due", is_due_then)
            return run(TRAIN, *arguments)

    return call


def interrupt():
    signal.raise_signal(signal.SIGINT)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def content(folder):
    """Return what a run has learned and says, but for times and its name."""
    network = tables.load_run(folder).pipeline.estimator
    weights = [weight.tobytes() for weight in [*network.coefs_, *network.intercepts_]]
    files = [json.loads(Path(folder, name).read_text()) for name in ("history.json", "metrics.json")]
    description = json.loads(Path(folder, "run.json").read_text())
    return weights, *files, {**description, "command": "", "seconds": 0}


@pytest.mark.parametrize("end", [interrupt, terminate])
@pytest.mark.parametrize("network", [1, 3])
def test_a_training_that_is_cut_is_saved_and_goes_on(network, end, cut, run):
    assert run(TRAIN.replace("run", "whole"))[0] == 0
    assert not Path("whole.partial").exists()
    code, output, error = cut(network, 5, end)
    assert code == 130
    assert "interrupted after" in error
    assert tables.load_run("run").description["exit_code"] == 130
    # The command that it prints goes on.
    title, _, command = output.splitlines()[-1].partition("  mlp-xp ")
    assert title == "Go on with the training:"
    code, output, error = run(command)
    assert code == 0, error
    assert "mlp-xp: going on with the training in run.partial\n" in error
    assert content("run") == content("whole")
    assert sorted(each.name for each in Path().iterdir()) == ["run", "table.csv", "whole"]
    # What is shown is what is shown of a training that was not cut.
    assert output.splitlines()[-3].startswith("Lowest validation loss at epochs ")


def test_it_goes_on_as_often_as_it_is_cut(cut, run):
    run(TRAIN.replace("run", "whole"))
    assert cut(1, 3, interrupt)[0] == 130
    assert cut(1, 7, terminate, "--resume")[0] == 130
    assert cut(2, 1, interrupt, "--resume --quiet")[0] == 130
    assert cut(2, 12, interrupt, "--resume --json")[0] == 130
    assert run(TRAIN, "--resume")[0] == 0
    assert content("run") == content("whole")


def test_more_epochs_and_other_paths_of_the_same_data_do(cut, run):
    run(TRAIN.replace("run", "whole").replace("12", "20"))
    cut(1, 5, interrupt)
    Path("table.csv").rename("moved.csv")
    command = TRAIN.replace("12", "20").replace("table", "moved")
    code, _, error = run(command, "--resume --backend numpy")
    assert code == 0, error
    assert content("run")[0] == content("whole")[0]


def changed_table():
    frame = pl.read_csv("table.csv")
    frame.with_columns(a=frame["a"] + (frame["a"] == frame["a"][3]) * 1e-3).write_csv("table.csv")


def longer_table():
    write_table(np.random.RandomState(0).standard_normal((90, 2)))


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (None, "--alpha 0.5", "--alpha was not given and is 0.5"),
        (None, "--hidden 6 5 --lr 0.1", r"--hidden was [6] and is [6, 5]; --learning-rate"),
        (None, "--networks 2", "--networks was 3 and is 2"),
        (None, "--epochs 3", "`max_iter` must be at least 4, the epochs done before"),
        (changed_table, "", "there are other values in the data"),
        (longer_table, "", "there were 64 rows for training, 16 rows for test, and are 72 rows for training"),
    ],
)
def test_what_differs_is_said(change, arguments, said, cut, run):
    assert cut(1, 5, interrupt)[0] == 130
    before = {path.name: path.read_bytes() for path in PARTIAL.iterdir()}
    if change is not None:
        change()
    code, _, error = run(TRAIN, "--resume", arguments.replace("--lr", "--learning-rate"))
    assert code == 2
    assert said in error
    assert {path.name: path.read_bytes() for path in PARTIAL.iterdir()} == before
    # It can begin anew.
    assert run(TRAIN, "--overwrite", arguments.replace("--lr", "--learning-rate"))[0] == 0
    assert not PARTIAL.exists()


def test_what_is_left_is_neither_lost_nor_taken_for_a_run(cut, run):
    cut(1, 5, interrupt)
    shutil.rmtree("run")
    code, _, error = run(TRAIN)
    words = "run.partial: a training that has not ended; --resume goes on with it, --overwrite begins anew"
    assert (code, error) == (2, f"mlp-xp: {words}\n")
    for command in ("predict run.partial table.csv", "evaluate run.partial table.csv"):
        code, _, error = run(command)
        assert code == 2
        assert error.startswith("mlp-xp: run.partial: a training that has not ended, not the folder of a run")
    # Also if what is inside looks like one.
    assert run(TRAIN.replace("run", "whole"))[0] == 0
    Path("whole").rename(PARTIAL / "inside")
    with pytest.raises(tables.DataError, match="a training that has not ended"):
        tables.load_run(PARTIAL / "inside")
    # A network of it can be looked at.
    assert load_model(PARTIAL / "network-1.safetensors").n_iter_ == 4


def test_resume_without_a_training_begins_or_says_that_there_is_none(run):
    assert run(TRAIN, "--resume")[0] == 0
    code, _, error = run(TRAIN, "--resume")
    assert (code, error) == (2, "mlp-xp: run: it is complete: there is no training to go on with\n")
    code, _, error = run("train xor --resume")
    assert (code, error) == (
        2,
        "mlp-xp: --resume needs --out: it goes on with the training in FOLDER.partial\n",
    )


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_path_that_is_something_else_stays(what, run):
    if what == "file":
        PARTIAL.write_text("mine")
    else:
        PARTIAL.mkdir()
        (PARTIAL / "mine").write_text("mine")
    for more in ("", "--resume", "--overwrite"):
        code, _, error = run(TRAIN, more)
        assert code == 2
        assert error.startswith(
            "mlp-xp: run.partial: it must be the folder of a training that has not ended;"
        )
    assert (PARTIAL if what == "file" else PARTIAL / "mine").read_text() == "mine"


def test_a_folder_is_not_removed_in_parts(cut, run, monkeypatch):
    cut(1, 5, interrupt)
    removed = []
    monkeypatch.setattr("mlp_xp._cli.partial.shutil.rmtree", lambda path, **_: removed.append(path))
    assert run(TRAIN, "--resume")[0] == 0
    assert not PARTIAL.exists()
    assert removed[-1].name.startswith(".run.partial.")


def test_a_folder_whose_removal_was_cut_is_removed_later(run):
    removed, other = Path(".run.partial.0123456789abcdef.partial"), Path(".run.partial.mine")
    for folder in (removed, other):
        folder.mkdir()
        (folder / "network-1.safetensors").write_text("")
    assert run(TRAIN)[0] == 0
    assert not removed.exists()
    assert (other / "network-1.safetensors").exists()


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_run_whose_scores_were_being_written_is_replaced(option, cut, run):
    cut(1, 5, interrupt)
    leftover = Path("run", ".metrics.json.0123456789abcdef.partial")
    leftover.write_text("{")
    assert run(TRAIN, option)[0] == 0
    assert Path("run", "metrics.json").exists()
    assert not leftover.exists()


def test_an_empty_folder_is_taken(run):
    PARTIAL.mkdir()
    assert run(TRAIN)[0] == 0
    assert not PARTIAL.exists()


def test_a_folder_whose_making_was_cut_is_taken(run):
    PARTIAL.mkdir()
    (PARTIAL / f".{UNFINISHED}.0123456789abcdef.partial").write_text("{")
    assert run(TRAIN)[0] == 0
    assert not PARTIAL.exists()


def test_errors_before_the_training_leave_no_folder(run):
    assert run(TRAIN, "--drop nothing")[0] == 2
    assert run(TRAIN.replace("table.csv", "none.csv"))[0] == 2
    assert not PARTIAL.exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"options": 3}', "no JSON"])
def test_a_damaged_description_is_an_error(text, cut, run):
    cut(1, 5, interrupt)
    (PARTIAL / UNFINISHED).write_text(text)
    code, _, error = run(TRAIN, "--resume")
    assert code == 2
    assert f"run.partial: its {UNFINISHED} is damaged; --overwrite without --resume begins anew" in error


def test_damaged_checkpoints_are_an_error_or_left_for_good_ones(cut, run, monkeypatch):
    run(TRAIN.replace("run", "whole"))
    write = checkpoint_files.Checkpoints.write

    def write_and_wait(self, progress):
        write(self, progress)
        self._writer.join()

    monkeypatch.setattr(checkpoint_files.Checkpoints, "write", write_and_wait)
    monkeypatch.setattr(checkpoint_files, "SECONDS_BETWEEN", 0.0)
    cut(1, 5, interrupt)
    last, former = PARTIAL / "network-1.safetensors", PARTIAL / "network-1.safetensors.1"
    damaged = last.read_bytes()[:-1]
    last.write_bytes(damaged)
    code, _, error = run(TRAIN, "--resume")
    assert code == 0
    assert "network-1.safetensors is not a model" in error
    assert "the one before it is taken" in error
    assert content("run") == content("whole")

    shutil.rmtree("run")
    cut(1, 5, interrupt)
    for path in (last, former):
        path.write_bytes(damaged)
    code, _, error = run(TRAIN, "--resume")
    assert code == 2
    assert "network-1.safetensors.1 is not a model that can be loaded" in error


@pytest.mark.slow
def test_two_processes_do_not_train_in_one_folder(cut):
    said = []

    def another():
        for more in ([], ["--resume"], ["--overwrite"]):
            done = subprocess.run([*COMMAND, *shlex.split(TRAIN), *more], capture_output=True, text=True)
            said.append((done.returncode, done.stderr.splitlines()[-1]))

    assert cut(2, 3, another)[0] == 0
    assert [code for code, _ in said] == [2, 2, 2]
    assert said[0][1].startswith("mlp-xp: run.partial: a training that has not ended; --resume goes on")
    assert {error for _, error in said[1:]} == {"mlp-xp: run.partial: another process is training there"}


def test_a_failing_disk_is_said_and_the_run_is_saved(run, monkeypatch):
    write = checkpoint_files.write_prepared

    def failing(path, file):
        if json.loads(file.metadata["progress"])["history"]["n_epochs"] > 3:
            raise OSError(28, "No space left on device")
        write(path, file)

    monkeypatch.setattr(checkpoint_files, "write_prepared", failing)
    monkeypatch.setattr(checkpoint_files, "SECONDS_BETWEEN", 0.0)
    code, _, error = run(TRAIN)
    assert code == 0
    assert "could not be written (No space left on device); the training goes on" in error
    assert tables.load_run("run").description["exit_code"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it is about signals of Unix")
def test_sigterm_ends_as_ctrl_c_does():
    """From outside, in a process of its own."""
    command = [
        sys.executable,
        "-c",
        WITHOUT_PAUSES,
        *shlex.split(TRAIN.replace("--epochs 12", "--epochs 100000")),
    ]
    command += ["--n-iter-no-change", "inf", "--networks", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "network " not in process.stdout.readline():
        pass
    while not (PARTIAL / "network-1.safetensors.1").exists():  # the second one comes after an epoch
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Go on with the training:  mlp-xp train table.csv" in output
    assert tables.load_run("run").description["exit_code"] == 130
    assert checkpoint_files.read_checkpoint(PARTIAL / "network-1.safetensors")
