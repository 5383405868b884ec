"""The installed command, driven as a user drives it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlp_xp import cli
from mlp_xp.datasets import DATASETS

pytest.importorskip("rich")
pytest.importorskip("sklearn")

COMMAND = str(Path(sys.executable).with_name("mlp-xp"))


@pytest.fixture
def run(capsys):
    """Call the command within this process; return its exit code and what it printed."""

    def call(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def scores(output):
    """Loss and score by kind of rows, from the closing table."""
    rows = re.findall(r"│ (training|validation|test) +│ +(\d+) │ +([\d.]+) │ +(-?[\d.]+)", output)
    return {name: (int(count), float(loss), float(score)) for name, count, loss, score in rows}


@pytest.mark.parametrize(
    ("data", "rows", "score"),
    [("xor", {"training": 4}, 100.0), ("breast-cancer", {"training": 455, "test": 114}, 94.0)],
)
def test_the_installed_command(data, rows, score):
    done = subprocess.run([COMMAND, "train", data], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = scores(done.stdout)
    assert {name: count for name, (count, _, _) in found.items()} == rows
    assert all(accuracy >= score for _, _, accuracy in found.values())
    # No progress bar, no colours and no folded lines where no terminal is.
    assert "━━━━ loss" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("data", DATASETS)
def test_every_data_set_says_what_it_is(data, run):
    code, output, error = run("train", data, "--epochs", 2, "--backend", "numpy")
    assert (code, error) == (0, "")
    lines = output.splitlines()
    assert lines[0] == "Training on NumPy (CPU) in float32 (asked for)"
    n_rows, n_features, n_classes = map(
        int, re.match(rf"{data}: (\d+) rows, (\d+) features, (\d+) classes", lines[1]).groups()
    )
    assert sum(count for count, _, _ in scores(output).values()) == n_rows
    assert f"network {n_features}-64-{1 if n_classes == 2 else n_classes}, relu, adam, 2 epochs" in output


def test_the_default_backend_says_why(run):
    from mlp_xp.backends import backend

    _, output, _ = run("train", "xor", "--epochs", 1)
    assert backend("auto").reason in output.splitlines()[0]


def test_every_option_reaches_the_training(run):
    arguments = ["train", "planar", "--hidden", 8, 5, "--activation", "tanh", "--solver", "nesterov"]
    arguments += ["--learning-rate", 0.02, "--epochs", 40, "--batch-size", 16, "--validation-fraction", 0.25]
    arguments += ["--seed", 3, "--backend", "numpy", "--dtype", "float64", "--alpha", 0.001]
    code, output, _ = run(*arguments)
    assert code == 0
    assert "in float64" in output
    assert "network 2-8-5-1, tanh, nesterov, 40 epochs" in output
    assert {name: count for name, (count, _, _) in scores(output).items()} == {
        "training": 240,
        "validation": 80,
        "test": 80,
    }
    assert run(*arguments)[1] == output
    changed = {
        "--hidden": 4,
        "--activation": "relu",
        "--solver": "sgd",
        "--learning-rate": 0.3,
        "--epochs": 3,
        "--batch-size": 100,
        "--seed": 4,
        "--alpha": 10,
    }
    for option, value in changed.items():
        at = arguments.index(option)
        width = 3 if option == "--hidden" else 2
        other = [*arguments[:at], *arguments[at + width :], option, value]
        assert scores(run(*other)[1]) != scores(output), option


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_other_backends_reach_the_same_scores(name, run, request):
    from conftest import need

    need(name, request)
    settings = ["train", "planar", "--epochs", 3, "--dtype", "float64", "--backend"]
    expected = scores(run(*settings, "numpy")[1])
    code, output, _ = run(*settings, name)
    assert code == 0
    assert scores(output) == expected


@pytest.fixture
def iris(tmp_path):
    from sklearn.datasets import load_iris

    bunch = load_iris()
    lines = ["sepal length,sepal width,petal length,petal width,species"]
    names = bunch.target_names[bunch.target]
    lines += [",".join(map(str, row)) + f",{name}" for row, name in zip(bunch.data, names, strict=True)]
    path = tmp_path / "iris.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_table_with_text_classes(iris, run):
    code, output, _ = run("train", iris, "--target", "species", "--learning-rate", 0.01)
    assert code == 0
    assert "3 classes of species: setosa 50 (33%), versicolor 50 (33%), virginica 50 (33%)" in output
    assert scores(output)["test"][2] >= 90.0


def test_a_table_for_regression(tmp_path, run):
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    path = tmp_path / "diabetes.npz"
    np.savez(path, X=bunch.data, y=bunch.target)
    code, output, _ = run("train", path, "--task", "regression", "--epochs", 30, "--hidden", 10)
    assert code == 0
    assert "y is a number: mean 152.1, from 25 to 346" in output
    # scikit-learn's linear regression explains 0.45 or so of the variance.
    assert 0.3 < scores(output)["test"][2] < 0.6


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (None, ["nothing"], "unknown data 'nothing': it is none of xor, planar"),
        (None, ["nothing.csv"], "nothing.csv: no such file"),
        (None, ["table.xlsx"], "table.xlsx: a table must be a .csv or .npz file, got '.xlsx'"),
        ("a,b\n1,x\n2,y\n", ["--target", "c"], "no column 'c'; the columns are a, b"),
        ("a,b\n1,x\nten,y\n", [], "the column 'a' must hold numbers, got 'ten'"),
        ("a,b\n1,x\nnan,y\n", [], "1 missing or infinite values; the first is in column 'a', data row 2"),
        ("a,b\n1,x\n,y\n", [], "1 missing or infinite values; the first is in column 'a', data row 2"),
        ("a,b\n1,x\n2,x\n", [], "the target 'b' must have at least two classes, got only x"),
        (None, ["xor", "--learning-rate", "-0.1"], "--learning-rate: must be a number > 0, got -0.1"),
        (None, ["xor", "--learning-rate", "fast"], "--learning-rate: invalid number value: 'fast'"),
        (None, ["xor", "--learning-rate", "nan"], "--learning-rate: must be a number > 0, got nan"),
        (None, ["xor", "--epochs", "0"], "--epochs: must be an integer >= 1, got 0"),
        (None, ["xor", "--hidden", "8", "-2"], "--hidden: must be an integer >= 1, got -2"),
        (None, ["xor", "--batch-size", "1.5"], "--batch-size: invalid integer value: '1.5'"),
        (None, ["xor", "--validation-fraction", "1"], "must be a number >= 0 and < 1, got 1"),
        (None, ["xor", "--validation-fraction", "0.1"], "--validation-fraction 0.1 of 4 rows leaves nothing"),
        (None, ["xor", "--target", "a"], "--target is for tables"),
        (None, ["xor", "--activation", "sigmoid"], "invalid choice: 'sigmoid'"),
        (None, ["xor", "--seed", "99999999999"], "--seed: must be an integer >= 0 and < 4294967296"),
        (None, [], "the following arguments are required: DATA"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(table, arguments, message, tmp_path, run):
    data = [] if table is None else [write(tmp_path, "table.csv", table)]
    code, _, error = run("train", *data, *arguments)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert error.startswith("mlp-xp")


def test_a_backend_that_is_not_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, _, error = run("train", "xor", "--backend", "cupy")
    assert (code, error) == (2, "mlp-xp: CuPy is not installed\n")


def test_missing_extras_say_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    code, _, error = run("train", "xor")
    assert (code, error) == (2, "mlp-xp: rich is not installed: pip install 'mlp_xp[cli]'\n")


def test_divergence_is_one_line_and_exit_code_1(run):
    code, _, error = run("train", "planar", "--solver", "sgd", "--learning-rate", 1e30)
    assert code == 1
    assert re.fullmatch(r"mlp-xp: training diverged in epoch 1: .*Try a smaller learning rate.*\n", error)


def in_terminal(arguments, interrupt_after=None, columns=100):
    """Run the command in a terminal of its own; return its exit code and everything on the screen."""
    main, other = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [COMMAND, *arguments], stdin=other, stdout=other, stderr=other, env=environment, close_fds=True
    )
    os.close(other)
    screen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.1)[0]:
            try:
                screen += os.read(main, 65536)
            except OSError:
                break
        if interrupt_after and interrupt_after in screen:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    os.close(main)
    return process.wait(10), re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.decode())


def test_a_terminal_shows_progress():
    code, screen = in_terminal(["train", "digits", "--epochs", "30"])
    assert code == 0
    assert "30/30" in screen
    assert re.search(r"loss \d\.\d{4}", screen)
    assert re.search(r"\d:\d\d:\d\d left", screen)


def test_an_interrupt_reports_what_was_trained():
    code, screen = in_terminal(["train", "digits", "--epochs", "100000"], interrupt_after=b"loss")
    assert code == 130
    interrupted = re.search(r"mlp-xp: interrupted after (\d+) of 100000 epochs", screen)
    assert interrupted
    assert int(interrupted[1]) >= 1
    assert scores(screen)["test"][2] > 50.0
    assert "Traceback" not in screen
