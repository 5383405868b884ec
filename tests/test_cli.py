"""The installed command, driven as a user drives it."""

import datetime as dt
import gzip
import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import leave_pictures_empty, need

from mlp_xp import load_model
from mlp_xp.datasets import DATASETS

pl = pytest.importorskip("polars")
for module in ("rich", "sklearn", "matplotlib", "safetensors", "shtab"):
    pytest.importorskip(module)
cli = pytest.importorskip("mlp_xp._cli")
folders = pytest.importorskip("mlp_xp._disk.folders")
sklearn_datasets = pytest.importorskip("sklearn.datasets")

pytestmark = pytest.mark.usefixtures("empty_pictures")

COMMAND = str(Path(sys.executable).with_name("mlp-xp"))


words = shlex.split

PLAIN = ("--settings", "scikit-learn")
SMALL = ("--networks", "1", "--hidden", "8")
"""For tests that ask for any network: five of 128 and 128 units take most of their time."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


@pytest.fixture
def ask(run):
    """Call the command for its JSON document."""

    def call(*arguments, code=0):
        found, output, error = run(*arguments, "--json")
        assert found == code, error
        return json.loads(output)

    return call


def installed(*arguments):
    """Run the installed command in a process of its own; return its exit code and what it printed."""
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


# Four tables that ship with scikit-learn, with text columns and holes added: from train to predictions.

TABLES = {
    "iris": ("load_iris", "species", "classification", 0.8),
    "wine": ("load_wine", "cultivar", "classification", 0.85),
    "breast-cancer": ("load_breast_cancer", "diagnosis", "classification", 0.9),
    "diabetes": ("load_diabetes", "progression", "regression", 0.1),
}


def table(name):
    """Make a table with text columns and holes, and say what its target is called."""
    loader, target, task, _ = TABLES[name]
    bunch, random = getattr(sklearn_datasets, loader)(), np.random.RandomState(0)
    columns = dict(zip(bunch.feature_names, bunch.data.T.copy(), strict=True))
    size = np.where(bunch.data[:, 0] > np.median(bunch.data[:, 0]), "large", "small")
    columns |= {"size": size, "colour": random.choice(["red", "green", "dark blue"], len(size))}
    frame = pl.DataFrame(columns)
    holes = [
        pl.when(pl.Series(random.rand(len(size)) > 0.04)).then(pl.col(each)).alias(each) for each in columns
    ]
    frame = frame.select(holes).with_columns(pl.Series("id", [f"row {index}" for index in range(len(size))]))
    y = bunch.target if task == "regression" else np.array(bunch.target_names)[bunch.target]
    return frame.with_columns(pl.Series(target, y))[random.permutation(len(size))]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        pytest.param("iris", "csv", "here", marks=pytest.mark.pictures),
        ("wine", "parquet", "here"),
        ("breast-cancer", "parquet", "here"),
        ("diabetes", "csv", "installed"),
    ],
)
def test_from_a_table_to_predictions(name, kind, where, run, ask):
    call = installed if where == "installed" else run
    _, target, task, good = TABLES[name]
    frame = table(name)
    n_new = len(frame) // 5
    files = {"table": frame[n_new:], "new": frame[:n_new]}
    for file, part in files.items():
        getattr(part, f"write_{kind}")(f"{file}.{kind}")
    settings = ["--early-stopping", "loss", "--learning-rate", "0.01", "--random-state", "3"]
    settings += () if name == "iris" else SMALL

    code, output, error = call("train", f"table.{kind}", "--target", target, *settings, "--out", "run")
    assert (code, error) == (0, "")
    assert f"{task} (it " in output
    assert re.search(r"missing .*size \d+, colour \d+, a category of their own", output)
    assert "id: it is text with" in output
    written = {path.name for path in Path("run").iterdir()}
    picture = "predicted_vs_true.png" if task == "regression" else "confusion_matrix.png"
    assert written == {
        "pipeline.json",
        "network.safetensors",
        "run.json",
        "metrics.json",
        "history.json",
    } | {
        "command.txt",
        "learning_curve.png",
        picture,
    }
    metrics = json.loads(Path("run/metrics.json").read_text())
    first = "r2" if task == "regression" else "accuracy"
    assert metrics["test"][first] > max(good, metrics["baseline"][first])

    # The columns in another order, one more, and no target.
    new = files["new"].drop(target).with_columns(note=pl.lit("x"))
    getattr(new.select(reversed(new.columns)), f"write_{kind}")(f"rows.{kind}")
    code, _, error = call("predict", "run", f"rows.{kind}", "--keep", "id", "--out", f"predictions.{kind}")
    assert code == 0
    assert "mlp-xp: not used: note" in error
    predictions = getattr(pl, f"read_{kind}")(f"predictions.{kind}")
    assert predictions["id"].to_list() == files["new"]["id"].to_list()
    predicted, truth = predictions[f"predicted {target}"], files["new"][target]
    if task == "regression":
        residuals = (predicted - truth).to_numpy()
        score = 1.0 - np.sum(residuals**2) / np.sum((truth.to_numpy() - truth.mean()) ** 2)
    else:
        score = (predicted == truth).mean()
        shares = predictions.select(pl.col("^probability .*$")).to_numpy()
        np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
        classes = [column.removeprefix("probability ") for column in predictions.columns[2:]]
        assert [classes[index] for index in shares.argmax(axis=1)] == predicted.to_list()
    assert score > good - 0.1

    found = ask("evaluate", "run", f"new.{kind}")
    assert found["scores"]["network"][first] == pytest.approx(score, abs=1e-9)


# train


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_trains(name, ask):
    from mlp_xp.datasets import load

    data, found = load(name), ask("train", name, "--max-iter", 2, "--backend", "numpy")
    assert sum(found["rows"].values()) == len(data.y)
    assert set(found["rows"]) == ({"training"} if name == "xor" else {"training", "test"})
    sizes = found["network"]["layer_sizes"]
    assert set(data.feature_names) <= set(found["inputs"])
    assert (sizes[0], sizes[-1]) == (
        len(found["inputs"]),
        1 if len(data.class_names) == 2 else len(data.class_names),
    )
    assert (found["epochs"], found["task"]) == (2, "classification")


def test_the_default_backend_says_why(run):
    from mlp_xp.backends import backend

    _, output, _ = run("train", "xor", "--epochs", 1)
    assert output.splitlines()[0].endswith(f"in float32 ({backend('auto').reason})")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_it_is_the_estimator_on_scaled_columns(ask):
    """What scikit-learn's own scaling, split and this library's estimator give in a few lines of Python."""
    from mlp_xp import MLPClassifier

    preprocessing = pytest.importorskip("sklearn.preprocessing")
    selection = pytest.importorskip("sklearn.model_selection")
    bunch = sklearn_datasets.load_breast_cancer()
    X, y = bunch.data, bunch.target_names[bunch.target]
    X, X_test, y, y_test = selection.train_test_split(X, y, test_size=114, stratify=y, random_state=5)
    scaler = preprocessing.StandardScaler().fit(X)
    model = MLPClassifier((7, 3), random_state=5, max_iter=30, alpha=0.1, batch_size=20)
    model.fit(scaler.transform(X), y)
    found = ask(
        *words("train breast-cancer --seed 5 --hidden 7 3 --epochs 30 --alpha 0.1 --batch-size 20"),
        *["--dtype", "float64", *PLAIN],
    )
    assert found["scores"]["test"]["accuracy"] == pytest.approx(model.score(scaler.transform(X_test), y_test))
    probabilities = model.predict_proba(scaler.transform(X_test))[:, 1]
    metrics = pytest.importorskip("sklearn.metrics")
    assert found["scores"]["test"]["roc_auc"] == pytest.approx(
        metrics.roc_auc_score(y_test == model.classes_[1], probabilities)
    )
    assert found["scores"]["test"]["log_loss"] == pytest.approx(
        metrics.log_loss(y_test == model.classes_[1], probabilities)
    )


def test_the_settings_are_those_of_the_package():
    from mlp_xp._cli.options import SETTING_NAMES
    from mlp_xp.tables._settings import SETTINGS

    assert tuple(SETTINGS) == SETTING_NAMES


def noise(n_rows=200, seed=0):
    random = np.random.RandomState(seed)
    return pl.DataFrame({"a": random.randn(n_rows), "b": random.randn(n_rows)})


def test_it_says_which_epochs_are_kept(run):
    frame = noise().with_columns(
        y=pl.when(pl.col("a") > pl.col("b")).then(pl.lit("up")).otherwise(pl.lit("down"))
    )
    frame.write_csv("table.csv")
    code, output, _ = run("train", "table.csv", "--hidden", 8, "--learning-rate", 0.05, "--out", "run")
    assert code == 0
    assert re.search(r"network +the average of 5, each \d+-8-1, relu, adam, at most 200 epochs", output)
    found = re.search(r"Lowest validation loss at epochs (.*) of 200, which are kept\.", output)
    described = json.loads(Path("run/run.json").read_text())
    assert [int(epoch) for epoch in re.findall(r"\d+", found[1])] == described["best_epochs"]
    assert described["watched"] == "left out"
    history = json.loads(Path("run/history.json").read_text())
    for number, epoch in enumerate(described["best_epochs"], 1):
        losses = [record["val_loss"] for record in history if record["network"] == number]
        assert epoch == 1 + int(np.argmin(losses))
        assert len(losses) in (epoch + 21, 200)  # 20 epochs without an improvement, and one more
    assert "may help" not in output
    one = run("train", "table.csv", "--hidden", 8, "--learning-rate", 0.05, "--networks", 1)[1]
    assert re.search(r"network +\d+-8-1, relu", one)
    assert re.search(
        rf"Lowest validation loss at epoch {described['best_epochs'][0]} of 200, which is kept\.", one
    )


def test_more_epochs_are_advised_only_where_it_still_improved(run):
    x = np.linspace(-1.0, 1.0, 200)
    pl.DataFrame({"x": x, "y": np.sin(3.0 * x)}).write_csv("table.csv")
    _, output, _ = run("train", "table.csv", "--epochs", 3)
    expected = (
        "Lowest validation loss at epochs 3, 2, 3, 3 and 3 of 3, which are kept; at the last epoch it still "
    )
    assert expected + "improved in 4 networks: more may help (--epochs)." in output
    # Without validation rows by the settings of scikit-learn: by those of the test.
    settings = ["train", "table.csv", *PLAIN, "--tol", 0, "--n-iter-no-change", "inf"]
    assert "Trained for all 5 epochs; more may help (--epochs)." in run(*settings, "--epochs", 5)[1]
    frame = noise(60)
    frame.with_columns(y=pl.Series(np.random.RandomState(3).randn(60))).write_csv("table.csv")
    _, output, _ = run(*settings, "--epochs", 100)
    assert re.search(
        r"Trained for all 100 epochs, but the loss of the test rows was lowest at epoch \d+: "
        r"fewer may help, or --early-stopping loss\.",
        output,
    )


def test_a_network_that_learns_nothing_says_so(run, ask):
    random = np.random.RandomState(1)
    noise().with_columns(y=pl.Series(random.choice(["x", "y"], size=200, p=[0.7, 0.3]))).write_csv(
        "table.csv"
    )
    code, output, error = run("train", "table.csv")
    assert code == 0
    expected = (
        "On the rows left out the networks gained no more than chance on the class frequencies, which is "
    )
    assert expected + "predicted." in output
    assert (
        "test: the network is no better than the class frequencies of the training rows (log loss " in error
    )
    scores = ask("train", "table.csv")["scores"]
    assert scores["test"]["log_loss"] == pytest.approx(scores["baseline"]["log_loss"], rel=1e-6)
    noise().with_columns(y=pl.Series(random.randn(200))).write_csv("table.csv")
    code, output, error = run("train", "table.csv", *PLAIN)
    assert code == 0
    assert "test: the network is no better than the mean of the training rows (R2 -" in error


def test_few_rows_are_all_trained_on_and_said(run):
    _, output, _ = run("train", "xor", "--epochs", 5)
    assert "Trained for all 5 epochs: 4 rows are too few to leave some out." in output


@pytest.mark.slow
def test_an_interrupt_between_networks_keeps_those_finished():
    code, screen = in_terminal(
        words("train digits --epochs 40 --n-iter-no-change inf --out run"),
        interrupt_after=b"network 3 of 5",
    )
    assert code == 130
    expected = (
        r"mlp-xp: (network 3 of 5: interrupted after \d+ of 40 epochs|interrupted after 2 of 5 networks)"
    )
    assert re.search(expected, plain(screen))
    assert load_model("run/network.safetensors").hidden_layer_sizes == (256, 256)  # of the two finished
    assert json.loads(Path("run/metrics.json").read_text())["test"]["accuracy"] > 0.9


EACH_OPTION = {
    "--hidden": "4",
    "--activation": "relu",
    "--solver": "adam",
    "--learning-rate": "0.3",
    "--learning-rate-schedule": "invscaling",
    "--epochs": "3",
    "--batch-size": "100",
    "--seed": "4",
    "--alpha": "10",
    "--momentum": "0.5",
    "--weight-decay": "0.3",
    "--tol": "10",
    "--dtype": "float32",
    "--test-fraction": "0.3",
    "--class-weight": "balanced",
}


def test_every_option_reaches_the_training(ask, tmp_path):
    frame = pl.DataFrame({"x": np.linspace(-1.0, 1.0, 90), "y": np.cos(np.arange(90.0))})
    frame = frame.with_columns(
        label=pl.when(pl.col("x") * pl.col("y") > 0.1).then(pl.lit("a")).otherwise(pl.lit("b"))
    )
    frame.write_csv("table.csv")
    base = words(
        "train table.csv --hidden 8 5 --activation tanh --solver sgd --learning-rate 0.02 --epochs 40"
    )
    base += [*words("--batch-size 16 --seed 3 --backend numpy --dtype float64 --alpha 0.001"), *PLAIN]
    expected = ask(*base)
    assert expected["network"]["layer_sizes"] == [2, 8, 5, 1]
    assert ask(*base)["scores"] == expected["scores"]
    for option, value in EACH_OPTION.items():
        assert ask(*base, option, value)["scores"] != expected["scores"], option
    for flag in ("--no-shuffle", "--no-nesterovs-momentum"):
        assert ask(*base, flag)["scores"] != expected["scores"], flag
    adam = [*base, "--solver", "adam"]
    for option, value in {"--beta-1": "0.5", "--beta-2": "0.9", "--epsilon": "0.1"}.items():
        assert ask(*adam, option, value)["scores"] != ask(*adam)["scores"], option
    stopping = [*base, "--early-stopping", "--epochs", "300", "--tol", "0.001"]
    stopped = ask(*stopping)
    assert stopped["epochs"] < 300
    for options in (
        ["--n-iter-no-change", "2"],
        ["--validation-fraction", "0.5"],
        ["--early-stopping", "loss"],
    ):
        assert ask(*stopping, *options)["epochs"] != stopped["epochs"], options
    lbfgs = [*base, "--solver", "lbfgs", "--epochs", "50"]
    assert ask(*lbfgs, "--max-fun", "7")["epochs"] < ask(*lbfgs)["epochs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_other_backends_reach_the_same_scores(name, ask, request):
    need(name, request)
    settings = ["train", "planar", "--epochs", 3, "--dtype", "float64", "--backend"]
    expected, found = ask(*settings, "numpy"), ask(*settings, name)
    assert found["machine"]["library"] != expected["machine"]["library"]
    for part, scores in expected["scores"].items():
        assert found["scores"][part] == pytest.approx(scores)


def test_a_regression_predicts_in_the_targets_units(ask):
    X = np.linspace(-3.0, 3.0, 200)
    pl.DataFrame({"x": X, "price": 1e6 + 1e4 * np.sin(X)}).write_csv("table.csv")
    found = ask("train", "table.csv", "--solver", "lbfgs", "--dtype", "float64", *PLAIN, "--out", "run")
    assert found["task"] == "regression"
    assert found["scores"]["test"]["r2"] > 0.99
    assert found["scores"]["test"]["rmse"] < 1e3
    # The bare network does so too.
    model = load_model("run/network.safetensors")
    centre, spread = found_mean_and_scale("run")
    scaled = (np.array([[0.0], [1.5]]) - centre) / spread
    values = model.predict(scaled)
    np.testing.assert_allclose(values, 1e6 + 1e4 * np.sin([0.0, 1.5]), atol=2e3)


def found_mean_and_scale(folder):
    from mlp_xp.tables._runs import load_run

    (scaling,) = load_run(folder).pipeline.preprocessor.numbers.values()
    return scaling.mean, scaling.scale


def test_counts_can_have_a_loss_of_their_own(ask):
    random = np.random.RandomState(0)
    X = random.rand(300)
    pl.DataFrame({"x": X, "count": random.poisson(np.exp(3.0 * X))}).write_csv("table.csv")
    settings = ["train", "table.csv", "--task", "regression", "--solver", "lbfgs", "--hidden"]
    found = ask(*settings, "--loss", "poisson")
    assert found["scores"]["test"]["r2"] > 0.4
    assert found["scores"] != ask(*settings)["scores"]


def test_predictions_that_overflow_are_refused(run, ask):
    X = np.linspace(0.0, 1.0, 60)
    pl.DataFrame({"x": X, "count": np.round(np.exp(3.0 * X))}).write_csv("table.csv")
    settings = words("train table.csv --task regression --loss poisson --solver lbfgs --activation identity")
    settings += PLAIN
    assert ask(*settings, "--out", "run")["scores"]["test"]["r2"] > 0.9
    pl.DataFrame({"x": [0.5, 1e6, 1e7], "count": [4, 5, 6]}).write_csv("far.csv")
    for command in ("predict", "evaluate"):
        code, output, error = run(command, "run", "far.csv")
        assert (code, output) == (2, "")
        assert "the predictions of 2 rows overflow float32: in row 2 the column 'x' holds 1000000.0" in error
    pl.DataFrame({"x": [0.5, 0.7], "count": [4, 8]}).write_csv("near.csv")
    assert ask("evaluate", "run", "near.csv")["notes"] == []


def test_a_validation_table_is_watched_and_never_trained_on(ask):
    frame = table("iris")
    frame[:100].write_csv("table.csv")
    frame[100:].write_csv("val.csv")
    settings = ["train", "table.csv", "--epochs", 20, *PLAIN]
    alone, watched = ask(*settings), ask(*settings, "--val", "val.csv", "--out", "run")
    assert watched["rows"] == {"training": 80, "validation": 50, "test": 20}
    assert watched["scores"]["test"] == alone["scores"]["test"]
    history = json.loads(Path("run/history.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, 21))
    assert history[-1]["val_accuracy"] == pytest.approx(watched["scores"]["validation"]["accuracy"])
    lbfgs = ask(*settings, "--val", "val.csv", "--solver", "lbfgs")
    assert lbfgs["scores"]["validation"]["accuracy"] > 0.5
    stopped = ask(*settings, "--val", "val.csv", "--early-stopping", "--learning-rate", 0.1, "--epochs", 500)
    assert stopped["epochs"] < 500


def test_the_rows_of_the_test_are_looked_at_and_decide_nothing(ask):
    settings = ["train", "planar", "--epochs", 30, *PLAIN, "--out"]
    found = ask(*settings, "run")
    history = json.loads(Path("run/history.json").read_text())
    assert history[-1]["val_accuracy"] == pytest.approx(found["scores"]["test"]["accuracy"])
    # Those that stop a training early are of the training rows.
    ask(*settings, "other", "--early-stopping")
    history = json.loads(Path("other/history.json").read_text())
    shares = {round(record["val_accuracy"] * 32, 4) for record in history}  # a tenth of 320 rows
    assert all(share == int(share) for share in shares)


def test_sample_weights_are_no_feature_and_count(ask):
    frame = table("iris")
    settings = [*words("train table.csv --target species --sample-weight weight --epochs 30"), *SMALL]
    found = []
    for weight in (1.0, pl.when(pl.col("species") == "setosa").then(0.0).otherwise(1.0)):
        frame.with_columns(weight=weight).write_csv("table.csv")
        found.append(ask(*settings))
        assert "weight" not in found[-1]["columns"]["number"]
    alike, without = found
    frame.write_csv("table.csv")
    assert alike["scores"] == ask(*settings[:4], *settings[6:])["scores"]
    # A row without weight is as if it were not there.
    assert (sum(without["rows"].values()), len(without["baseline"]["counts"])) == (100, 2)
    frame.with_columns(weight=pl.lit(-1.0)).write_csv("table.csv")
    with pytest.raises(AssertionError, match="sample weights must hold numbers >= 0"):
        ask(*settings)


def test_the_command_can_be_repeated(ask, run):
    table("iris").write_csv("table.csv")
    first = ask("train", "table.csv", "--target", "species", "--hidden", 5, "--epochs", 10, "--out", "run")
    repeat = words(Path("run/command.txt").read_text())
    assert repeat[0] == "mlp-xp"
    assert run(*repeat[1:])[0] == 2  # the folder is there
    assert run(*repeat[1:], "--out", "again")[0] == 0
    for name in ("metrics.json", "history.json"):
        assert Path("again", name).read_bytes() == Path("run", name).read_bytes()
    former, latter = (load_model(f"{folder}/network.safetensors") for folder in ("run", "again"))
    for mine, theirs in zip(former.coefs_, latter.coefs_, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert first["command"] == "mlp-xp train table.csv --target species --hidden 5 --max-iter 10 --out run"


def test_a_task_is_said_to_be_asked_for_only_if_it_was(run):
    table("iris").write_csv("table.csv")
    for number, task in enumerate([[], ["--task", "classification"]]):
        code, output, _ = run("train", "table.csv", *SMALL, "--epochs", 2, *task, "--out", f"run{number}")
        repeat = words(Path(f"run{number}/command.txt").read_text())[1:]
        again = run(*repeat, "--out", "again", "--overwrite")[1]
        assert ("as asked" in output) == ("as asked" in again) == bool(task)


# Each as a user may write it; some twice, and the last one counts.
GIVEN = [
    ["--target", "the label"],
    ["--target=-y"],
    ["--target="],
    ["--task", "classification"],
    ["--categorical", "a", "b c"],
    ["--categorical=-5"],
    ["--drop", "it's", "$x"],
    ["--drop=--json", "--drop=-", "--drop", "z"],
    ["--sample-weight=-w w"],
    ["--na"],
    ["--na", "none yet", ""],
    ["--na=-200"],
    ["--keep-column", "id", "no"],
    ["--decimal", ","],
    ["--dates", "day-first"],
    ["--encoding=latin-1"],
    ["--test-fraction", "1e-1"],
    ["--val", "my val.csv"],
    ["--val=-val.csv"],
    ["--activation", "relu", "tanh"],
    ["--alpha=1e-05"],
    ["--epochs", "7"],
    ["--max-iter=8"],
    ["--learning-rate-init", "0.1"],
    ["--nesterovs-momentum"],
    ["--no-nesterovs-momentum"],
    ["--no-shuffle"],
    ["--early-stopping"],
    ["--early-stopping", "loss"],
    ["--n-iter-no-change", "inf"],
    ["--n-iter-no-change", "3"],
    ["--seed", "4"],
    ["--backend", "numpy"],
    ["--backend=auto"],
    ["--dtype", "float64"],
    ["--out", "my run"],
    ["--out=-run"],
    ["--overwrite"],
    ["--json"],
]
HIDDEN = {
    "train": [["--hidden"], ["--hidden", "3"], ["--hidden=4"], ["--hidden", "64", "32"]],
    "sweep": [["--hidden", "3"], ["--hidden=4"], ["--hidden", "64x32", "5"]],
}


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("data", ["xor", "my table.csv", "-t 1.csv", "folder/$a'b.csv"])
def test_the_words_of_a_command_are_parsed_to_the_same_options(command, data, monkeypatch):
    options = pytest.importorskip("mlp_xp._cli.options")
    monkeypatch.setattr(options, "make_parser", cache(options.make_parser))
    random = np.random.RandomState(0)
    for _ in range(30):
        chosen = [GIVEN[index] for index in random.permutation(len(GIVEN))[: random.randint(12)]]
        for _ in range(random.randint(command == "sweep", 3)):
            chosen.insert(random.randint(len(chosen) + 1), HIDDEN[command][random.randint(3)])
        given = [word for option in chosen for word in option]
        argv = [command, data, *given]
        if data.startswith("-"):
            argv = [command, *given, "--dtype", "float64", "--", data]
        elif random.rand() < 0.5:
            argv = [command, *given, "--solver", "sgd", data]
        expected = vars(options.parse(argv))
        repeat = words(shlex.join(options.command_words(options.parse(argv))))
        assert repeat[:3] == ["mlp-xp", command, f"./{data}" if data.startswith("-") else data]
        assert not {"--overwrite", "--json", "--quiet", "--backend=auto"} & set(repeat)
        found = vars(options.parse(repeat[1:]))
        assert found == {**expected, "data": repeat[2], "overwrite": False, "json": False}
        again = options.command_words(options.parse(repeat[1:]))
        assert again == repeat


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "given"),
    [
        ("iris 1.csv", "sweep --drop id 'sepal width (cm)' --hidden=4 --epochs 2 DATA --out 'my sizes'"),
        ("-iris.csv", "sweep --no-shuffle --drop=-kind --hidden 4 --seed 3 --epochs 2 -- DATA"),
    ],
)
def test_the_command_of_the_best_network_can_be_pasted(data, given, run):
    target = words(given)[words(given).index("--target") + 1] if "--target " in given else "species"
    frame = table("iris").rename({"species": target})
    if "-kind" in given:
        frame = frame.select(pl.col(target).alias("-kind"), *frame.columns)
    frame.write_csv(data)
    code, output, error = run(*(data if word == "DATA" else word for word in words(given)))
    assert code == 0
    assert error == "" or "the network is no better than" in error  # after two epochs
    pasted = output.splitlines()[-1]
    assert pasted.startswith("  mlp-xp train ")
    assert ("--task" in pasted) == ("--task" in given)
    assert pasted.count("--out") == pasted.count("--hidden") == 1
    assert "--overwrite" not in pasted
    shell = pasted.replace("mlp-xp", shlex.quote(COMMAND), 1)
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "" or "the network is no better than" in done.stderr
    (folder,) = Path().glob("*-best")
    document = json.loads(next(Path().glob("*/sweep.json")).read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics in [network["scores"] for network in document["networks"]]
    # The last line of train is one to paste too.
    frame.write_csv("new.csv")
    assert run(*words(done.stdout.splitlines()[-1].partition(":  mlp-xp ")[2]))[0] == 0
    assert len(pl.read_csv("predictions.csv")) == len(frame)


def test_a_folder_that_is_there_is_kept(run):
    settings = ["train", "xor", "--networks", 1, "--epochs", 2, "--out"]
    assert run(*settings, "run")[0] == 0
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    code, output, error = run(*settings, "run", "--epochs", 9)
    assert (code, output) == (2, "")
    assert error == "mlp-xp: run: it exists already; --overwrite replaces it\n"
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert run(*settings, "run", "--epochs", 9, "--overwrite")[0] == 0
    assert len(json.loads(Path("run/history.json").read_text())) == 9
    # Nothing is left of how it was replaced, and no other folder is ever replaced.
    assert [path.name for path in Path().iterdir()] == ["run"]
    Path("photos").mkdir()
    Path("photos/one.jpg").touch()
    code, _, error = run(*settings, "photos", "--overwrite")
    assert code == 2
    assert "only a folder that this command wrote can be replaced" in error
    assert Path("photos/one.jpg").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "command", ["train xor --networks 1 --epochs 3", "sweep xor --networks 1 --epochs 3 --hidden 2"]
)
def test_a_full_disk_after_it_was_saved_says_that_it_is(command, overwrite, run, monkeypatch):
    settings = [*words(command), "--out", "run", "--overwrite"]
    if overwrite:
        assert run(*settings)[0] == 0
    finish = folders.NewFolder.finish

    def finish_and_fill(self):
        finish(self)
        monkeypatch.setattr(Path, "write_text", full)
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
        monkeypatch.setattr("mlp_xp._cli.screen.Screen.print_saved", full)

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device", "run/file")

    monkeypatch.setattr(folders.NewFolder, "finish", finish_and_fill)
    code, _, error = run(*settings)
    assert code == 2
    assert error.endswith("No space left on device: 'run/file' (saved before that: run)\n") or (
        "No space left on device: 'run/metrics.json' (saved before that: run)\n" in error
    )
    # With what is left of a training --resume makes the scores and the pictures.
    left = ["run", "run.partial"] if command.startswith("train") else ["run"]
    assert sorted(path.name for path in Path().iterdir()) == left
    if command.startswith("train"):
        assert load_model("run/network.safetensors").n_iter_ == 3
        assert json.loads(Path("run/run.json").read_text())["epochs"] == 3
        assert not Path("run/metrics.json").exists()


def test_a_divergence_keeps_what_was_trained(run):
    settings = ["train", "planar", "--solver", "sgd", "--learning-rate", 1e30, "--out", "run"]
    code, output, error = run(*settings)
    assert code == 1
    assert re.match(
        r"mlp-xp: network 1 of 5: training diverged in epoch \d: .*Try a smaller learning rate", error
    )
    assert "test" in output
    assert run("evaluate", "run", written_table("planar"))[0] == 0
    assert json.loads(Path("run/run.json").read_text())["ended"] in error


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_what_diverged_is_kept_even_if_it_cannot_be_scored(name, run):
    table(name).write_csv("table.csv")
    settings = "train table.csv --solver sgd --learning-rate 1e25 --hidden 50 50 50 --out run"
    code, output, error = run(*words(settings))
    assert code == 1
    assert "training diverged" in error
    assert "│ test " in output
    assert {"network.safetensors", "pipeline.json", "metrics.json"} <= {
        path.name for path in Path("run").iterdir()
    }
    code, output, error = run("predict", "run", "table.csv")
    assert (code, output) in ((0, output), (2, ""))
    assert code == 0 or "overflow float32: the weights are that large" in error


def test_how_lbfgs_ended_is_said_as_it_was(ask):
    settings = ["train", "planar", "--solver", "lbfgs", "--hidden", 3]
    assert ask(*settings, "--max-fun", 5)["ended"].startswith("lbfgs failed to converge")
    assert ask(*settings, "--tol", 0.1)["ended"].endswith("iterations: at a minimum.")


def test_the_network_is_safe_before_it_is_scored(run, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlp_xp._cli.train.score_splits", interrupt)
    code, _, error = run("train", "xor", "--epochs", 3, "--out", "run")
    assert (code, error) == (130, "mlp-xp: interrupted (saved before that: run)\n")
    assert load_model("run/network.safetensors").n_iter_ == 3
    monkeypatch.setattr("mlp_xp._cli.sweep.score_splits", interrupt)
    code, _, error = run("sweep", "xor", "--epochs", 3, "--hidden", 2, 4)
    assert code == 130
    partial = Path(re.search(r"until then is in (.*)\)", error)[1])
    assert load_model(partial / "network-2.safetensors").n_iter_ == 3


def test_a_failing_picture_is_no_failing_run(run, monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("no font")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    code, output, error = run("train", "xor", "--epochs", 3, "--out", "run")
    assert code == 0
    assert "mlp-xp: no learning_curve.png (no font)" in error
    assert "Saved in run: " in output


@pytest.mark.pictures
def test_names_are_shown_as_they_are(run):
    """A dollar starts no mathematics in pictures, and nothing steers the terminal."""
    pl.DataFrame(
        {
            "a$": np.arange(40.0) * 2,
            "b\x1b[2J": np.arange(40.0) ** 2,
            "US$\\m2 in $": ["x$"] * 18 + ["y"] * 22,
        }
    ).write_csv("table.csv")
    code, output, error = run(
        "train", "table.csv", *SMALL, "--learning-rate", 0.1, "--epochs", 30, "--out", "run"
    )
    assert (code, error) == (0, "")
    assert "\x1b" not in output
    assert Path("run/confusion_matrix.png").exists()
    assert Path("run/decision_boundary.png").exists()


def test_float32_is_what_is_trained_in(ask):
    for dtype in ("float32", "float64"):
        ask("train", "xor", "--networks", 1, "--epochs", 3, "--dtype", dtype, "--out", dtype)
        assert load_model(f"{dtype}/network.safetensors").coefs_[0].dtype == dtype


def written_table(name):
    from mlp_xp.datasets import load
    from mlp_xp.tables._reading import dataset_frame

    dataset_frame(load(name)).write_csv(f"{name}.csv")
    return f"{name}.csv"


def written(text, name="table.csv"):
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, ["nothing"], "unknown data 'nothing': it is none of xor, planar"),
        (None, ["nothing.csv"], "nothing.csv: no such file"),
        (None, ["table.xlsx"], "table.xlsx: a table must be a .csv, .tsv, .parquet"),
        ("a,b\n1,x\n2,y\n", ["--target", "c"], "`target` must be one of the columns a, b, got 'c'"),
        ("a,b\n1,x\n2,y\n", ["--drop", "a"], "'a' is left out: as asked"),
        ("a,b\n1,x\n2,y\n", ["--drop", "q"], "`drop`: no column 'q' among the features a"),
        ("a,b\n1,x\n2,y\n", ["--categorical", "b"], "`categorical`: no column 'b' among the features a"),
        ("a,b\n1,x\n2,x\n", [], "the target 'b' must have at least two classes, got only x"),
        (
            "a,b\n1,x\n2,y\n",
            ["--task", "regression"],
            "the target 'b' must hold numbers for regression, got 'x'",
        ),
        ("a,b\n1,0.5\n2,1.5\n", ["--class-weight", "balanced"], "--class-weight is not for regression"),
        ("a,b\n1,x\n2,y\n", ["--loss", "poisson"], "--loss is not for classification"),
        (
            "a,b\n1,x\n2,y\n",
            ["--sample-weight", "w"],
            "`sample_weight` must be one of the columns a, b, got 'w'",
        ),
        ("a,b\n1,x\n2,y\n", ["--val", "val.csv"], "--val: val.csv: no such file"),
        ("a,b\n1,x\n2,y\n", ["--test-fraction", "0.1"], "a test fraction of 0.1 of 2 rows leaves nothing"),
        ("a,b\n1,x\n2,y\n", ["--out", "no/such/folder"], "no/such/folder: there is no folder no/such"),
        ("a,b\n1,x\n2,y\n", ["--early-stopping", "f2"], "`early_stopping` must be one of ["),
        (None, ["xor", "--learning-rate", "-0.1"], "must be a number > 0, got -0.1"),
        (None, ["xor", "--learning-rate", "fast"], "invalid number value: 'fast'"),
        (None, ["xor", "--learning-rate", "nan"], "must be a number > 0, got nan"),
        (None, ["xor", "--momentum", "1.5"], "--momentum: must be a number >= 0 and <= 1, got 1.5"),
        (None, ["xor", "--epochs", "0"], "--epochs: must be an integer >= 1, got 0"),
        (None, ["xor", "--hidden", "8", "-2"], "--hidden: must be an integer >= 1, got -2"),
        (None, ["xor", "--batch-size", "1.5"], "--batch-size: invalid integer value: '1.5'"),
        (None, ["xor", "--validation-fraction", "1"], "must be a number > 0 and < 1, got 1"),
        (None, ["xor", "--activation", "sigmoid"], "invalid choice: 'sigmoid'"),
        (
            None,
            ["xor", *words("--hidden 4 --activation relu tanh")],
            "`activation` must be one, or one for each of the 1",
        ),
        (None, ["xor", "--seed", "99999999999"], "--seed: must be an integer >= 0 and < 4294967296"),
        (None, ["xor", "--max"], "unrecognized arguments: --max (did you mean --max-"),
        (None, ["xor", "--learning-rate", "adaptive"], "'adaptive' is for --learning-rate-schedule"),
        (None, ["xor", "--json", "--quiet"], "not allowed with argument"),
        (None, [], "the following arguments are required: DATA"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(text, arguments, message, run):
    data = [] if text is None else [written(text)]
    code, output, error = run("train", *data, *arguments)
    assert (code, output) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert error.startswith("mlp-xp")


def test_a_backend_that_is_not_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, _, error = run("train", "xor", "--backend", "cupy")
    assert (code, error) == (
        2,
        "mlp-xp: CuPy is not installed: pip install 'mlp_xp[cuda12]' or 'mlp_xp[cuda13]', as your CUDA is\n",
    )


def test_missing_extras_say_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, _, error = run("train", "xor")
    assert (code, error) == (2, "mlp-xp: safetensors not installed: pip install 'mlp_xp[cli]'\n")
    assert run("train", "--help")[0] == 0


# predict and evaluate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on a small table of every kind of column."""
    here = tmp_path_factory.mktemp("made")
    frame = table("iris")
    frame = frame.with_columns(day=pl.date(2024, 1, 1) + pl.duration(days=pl.int_range(len(frame))))
    frame.write_parquet(here / "table.parquet")
    settings = ["--target", "species", *SMALL, "--epochs", "30", "--quiet", "--out", str(here / "run")]
    with pytest.MonkeyPatch.context() as patch:
        leave_pictures_empty(patch)
        assert cli.main(["train", str(here / "table.parquet"), *settings]) == 0
    return here


@pytest.fixture
def trained(made):
    """The folder `run` of a trained network, and the table it was trained on."""
    shutil.copytree(made / "run", "run")
    return pl.read_parquet(made / "table.parquet")


def test_predictions_go_to_standard_output(trained, run):
    trained[:3].write_csv("new.csv")
    code, output, _ = run("predict", "run", "new.csv", "--backend", "numpy")
    assert code == 0
    predictions = pl.read_csv(output.encode())
    assert predictions.columns == [
        "predicted species",
        *(f"probability {name}" for name in ("setosa", "versicolor", "virginica")),
    ]
    document = json.loads(run("predict", "run", "new.csv", "--json")[1])
    assert pl.DataFrame(document["predictions"]).equals(predictions)


def test_text_is_read_once(run):
    """Whole numbers in groups are known again in predictions of the same file."""
    text = "code;x;y\n" + "".join(
        f"{code};{row};{code}\n" for row, code in enumerate(["1,234,567", "7,654,321"] * 30)
    )
    Path("table.csv").write_text(text)
    settings = words("train table.csv --solver lbfgs --quiet --out run")
    assert run(*settings, *SMALL)[0] == 0
    code, output, error = run("predict", "run", "table.csv")
    assert (code, error) == (0, "")
    assert pl.read_csv(output.encode())["predicted y"].to_list() == [1_234_567, 7_654_321] * 30


def test_what_is_strange_in_new_rows_is_said(trained, run):
    new = trained[:5].with_columns(
        colour=pl.Series(["red", "pink", None, "pink", "teal"]), surplus=pl.lit(1.0)
    )
    new = new.with_columns(
        pl.when(pl.col("id") == new["id"][0]).then(None).otherwise(pl.col("day")).alias("day")
    )
    new.write_csv("new.csv")
    code, _, error = run("predict", "run", "new.csv")
    assert code == 0
    lines = error.splitlines()
    assert "mlp-xp: not used: surplus" in lines
    assert "mlp-xp: colour: in 3 rows values unseen in training: pink, teal" in lines
    assert re.search(r"^mlp-xp: missing: .*day 1, filled with 2024-0\d-\d\d", error, re.MULTILINE)
    assert re.search(r"^mlp-xp: missing: .*colour 1, a category of their own", error, re.MULTILINE)
    assert run("predict", "run", "new.csv", "--quiet")[2] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop("size", "colour"), "the columns size, colour are missing; the table has"),
        (
            lambda frame: frame.with_columns(pl.lit("wide").alias("sepal width (cm)")),
            "the column 'sepal width (cm)' must hold numbers, got 'wide' in row 1, 'wide' in row 2",
        ),
        (lambda frame: frame[:0], "there is no row to predict"),
    ],
)
def test_tables_that_cannot_be_predicted(change, message, trained, run):
    change(trained[:4]).write_csv("new.csv")
    code, output, error = run("predict", "run", "new.csv")
    assert (code, output) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1


def test_predictions_never_replace_a_file_unasked(trained, run):
    trained[:3].write_csv("new.csv")
    assert run("predict", "run", "new.csv", "--out", "new.csv")[0] == 2
    assert pl.read_csv("new.csv").columns == trained.columns
    assert run("predict", "run", "new.csv", "--out", "p.tsv")[0] == 0
    assert len(pl.read_csv("p.tsv", separator="\t")) == 3
    for arguments, message in (
        (["--out", "p.xlsx"], "p.xlsx: a table must be a .csv"),
        (["--out", "no/p.csv"], "no/p.csv: there is no such folder"),
        (["--keep", "nothing"], "--keep: no column nothing; the columns are"),
    ):
        code, _, error = run("predict", "run", "new.csv", *arguments)
        assert code == 2
        assert message in error


def test_an_evaluation_knows_only_the_classes_it_was_trained_on(trained, run, ask):
    with_a_stranger = trained[:4].with_columns(species=pl.Series(["setosa", "tulip", None, "setosa"]))
    with_a_stranger.write_csv("new.csv")
    code, _, error = run("evaluate", "run", "new.csv")
    assert code == 2
    assert "the target 'species' has classes the model does not know: tulip; it knows setosa, " in error
    with_a_stranger.filter(pl.col("species").ne_missing("tulip")).write_csv("new.csv")
    found = ask("evaluate", "run", "new.csv")
    assert found["rows"] == 2
    assert "1 rows without species left out" in found["notes"]
    # One class alone has no ROC.
    assert found["scores"]["network"]["roc_auc"] is None


def test_a_folder_that_is_no_run(run, trained):
    Path("empty").mkdir()
    trained.write_csv("new.csv")
    for folder in ("empty", "nowhere"):
        code, _, error = run("predict", folder, "new.csv")
        assert (code, error) == (2, f"mlp-xp: {folder}: not the folder of a run: it has no run.json\n")


# sweep


@pytest.mark.pictures
def test_a_sweep_compares_sizes(run):
    settings = words("sweep planar --settings scikit-learn --solver lbfgs --activation tanh --epochs 50")
    settings += words("--hidden 1 4 6x3")
    code, output, error = run(*settings)
    assert (code, error) == (0, "")
    rows = re.findall(r"│ (1|4|6x3) +│ +(\d+) │ +(\d+) │", output)
    # Weights and biases: 2 + 1 + 1 + 1, 4 (2 + 1 + 1) + 1, 6 (2 + 1) + 3 (6 + 1) + 3 + 1
    assert [(name, count) for name, count, _ in rows] == [("1", "5"), ("4", "17"), ("6x3", "43")]
    folder = Path("sweep-planar")
    names = {f"network-{name}.safetensors" for name in ("1", "4", "6x3")}
    assert {path.name for path in folder.iterdir()} == {"sweep.json", "sweep.png", *names}
    document = json.loads((folder / "sweep.json").read_text())
    scores = [network["scores"]["test"]["accuracy"] for network in document["networks"]]
    assert scores[0] < scores[1]
    best = document["networks"][int(np.argmax(scores))]["hidden"]
    words_of_best = f"--target petal --hidden {' '.join(map(str, best))} --settings scikit-learn"
    words_of_best += " --activation tanh --solver lbfgs --max-iter 50"
    assert output.endswith(f"  mlp-xp train planar {words_of_best} --out planar-best\n")
    assert run(*settings)[0] == 2
    assert run(*settings, "--overwrite", "--quiet") == (0, "", "")


def test_a_sweep_chooses_by_validation_rows_where_there_are_some(run, ask):
    frame = table("wine")
    frame[:120].write_csv("table.csv")
    frame[120:].write_csv("val.csv")
    settings = [
        "sweep",
        "table.csv",
        "--networks",
        1,
        "--epochs",
        25,
        "--hidden",
        1,
        3,
        9,
        "--val",
        "val.csv",
    ]
    code, output, _ = run(*settings)
    assert code == 0
    trials = json.loads(Path("sweep-table/sweep.json").read_text())["networks"]
    best = max(trials, key=lambda trial: trial["scores"]["validation"]["accuracy"])
    assert f"Best by accuracy on the validation rows: {best['hidden'][0]}.\n" in output
    assert run(*settings[:-2], "--overwrite")[1].count("It was chosen by them") == 1
    assert run("sweep", "xor", "--hidden", 2, 2)[0] == 2


def test_a_sweep_is_what_train_does(ask):
    settings = ["wine.csv", "--target", "cultivar", "--epochs", 15, "--seed", 2]
    table("wine").write_csv("wine.csv")
    swept = ask("sweep", *settings, "--hidden", "3", "5x2", "--out", "sizes")
    for network, hidden in zip(swept["networks"], (["3"], ["5", "2"]), strict=True):
        assert ask("train", *settings, "--hidden", *hidden)["scores"] == network["scores"]


# devices


def test_devices_say_what_is_there_and_why_not_the_rest(run, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, output, _ = run("devices")
    assert code == 0
    assert re.search(rf"^numpy +NumPy +{re.escape(np.__version__)} +CPU, \d+ cores$", output, re.M)
    assert re.search(
        r"^cupy +CuPy +- +none: CuPy is not installed: pip install 'mlp_xp\[cuda12", output, re.M
    )
    assert "--backend auto takes NumPy (no GPU: CuPy is not installed)." in output
    document = ask("devices")
    assert [one["name"] for one in document["libraries"]] == ["numpy", "cupy", "torch", "jax"]
    assert document["auto"] == "numpy"
    assert document["missing"] == []


# speech


def test_json_is_all_there_is_on_standard_output(run):
    code, output, error = run("train", "xor", *SMALL, "--epochs", 3, "--json", "--out", "run")
    assert (code, error) == (0, "")
    document = json.loads(output)
    assert document["saved"] == "run"
    assert document["scores"] == json.loads(Path("run/metrics.json").read_text())
    assert {"mlp_xp", "numpy", "scikit-learn"} <= set(document["versions"])


FIELDS = "task|target|numbers|categories|missing|left out|rows|network"


def test_the_fields_of_a_summary_are_aligned(run):
    table("iris").write_csv("iris.csv")
    for data in ("iris.csv", "xor"):
        output = run("train", data, "--epochs", 2)[1]
        shown = re.findall(rf"^  ({FIELDS})( +)\S", output, re.M)
        assert "network" in dict(shown)
        assert {len(name + gap) for name, gap in shown} == {12}


def test_quiet_is_quiet(run):
    assert run("train", "xor", "--epochs", 3, "--quiet") == (0, "", "")


@pytest.mark.parametrize("command", [[], ["train"], ["predict"], ["evaluate"], ["sweep"], ["devices"]])
def test_help_fits_a_terminal(command, run):
    code, output, _ = run(*command, "--help")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 110
    assert output.startswith("usage: mlp-xp")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell, run):
    code, output, _ = run("--print-completion", shell)
    assert code == 0
    assert "--early-stopping" in output or "early-stopping" in output
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=output, text=True, check=True)


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{shlex.quote(COMMAND)} --help | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def shell(command):
    """Run a shell command, where `mlp-xp` is the installed command."""
    return subprocess.run(
        ["bash", "-c", command.replace("mlp-xp", shlex.quote(COMMAND), 1)], capture_output=True, text=True
    )


def on_a_full_disk(command, run, monkeypatch):
    """Call the command where standard output cannot be written; return its exit code and errors."""
    with suppress(OSError), Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        code, _, error = run(*words(command))
    return code, error


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
FULL = "mlp-xp: standard output cannot be written (No space left on device)"


@needs_full
@pytest.mark.parametrize(
    "command",
    [
        "train xor --networks 1 --epochs 2",
        "train xor --networks 1 --epochs 2 --json",
        "sweep xor --networks 1 --epochs 2 --hidden 2",
        "predict run xor.csv",
        "predict run xor.csv --json",
        "evaluate run xor.csv",
        "devices",
        "devices --json",
        "--help",
        "--version",
        "--print-completion bash",
    ],
)
def test_a_full_disk_is_an_error(command, run, monkeypatch):
    if "run" in command:
        written_table("xor")
        assert run("train", "xor", *SMALL, "--epochs", 2, "--out", "run", "--quiet")[0] == 0
    assert on_a_full_disk(command, run, monkeypatch) == (2, f"{FULL}\n")


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("command", ["--help", "devices"])
def test_a_full_disk_behind_a_redirect_is_an_error(command):
    done = shell(f"mlp-xp {command} > /dev/full")
    assert (done.returncode, done.stderr) == (2, f"{FULL}\n")


@pytest.mark.slow
@needs_full
def test_a_network_is_saved_before_its_scores_meet_a_full_disk():
    done = shell("mlp-xp train xor --epochs 2 --out run --json > /dev/full")
    assert (done.returncode, done.stderr) == (2, f"{FULL} (saved before that: run)\n")
    assert load_model("run/network.safetensors").n_iter_ == 2


@pytest.mark.slow
@needs_full
def test_what_standard_error_cannot_take_is_lost_and_nothing_else():
    def without_stderr(command):
        done = shell(f"mlp-xp {command} 2> /dev/full")
        return done.returncode, done.stdout

    assert without_stderr("train xor --epochs 0") == (2, "")
    code, output = without_stderr("train planar --solver sgd --learning-rate 1e30 --epochs 3")
    assert code == 1
    assert "│ test " in output
    code, output = without_stderr("--version")
    assert code == 0
    assert output.startswith("mlp_xp ")


@pytest.mark.slow
def test_closed_streams_are_no_crash():
    done = shell("mlp-xp train xor --epochs 2 >&-")
    assert (done.returncode, done.stderr) == (
        2,
        "mlp-xp: standard output cannot be written (Bad file descriptor)\n",
    )
    done = shell("mlp-xp train nothing 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train --help", "train digits --epochs 2 --json"])
def test_a_closed_pipe_says_nothing(command):
    done = shell(f"mlp-xp {command} | true")
    assert (done.returncode, done.stderr) == (0, "")


def in_terminal(arguments, interrupt_after=None, columns=100, **environment):
    """Run the command in a terminal of its own; return its exit code and everything on the screen."""
    main, other = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **environment}
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
    return process.wait(10), screen.decode()


def plain(screen):
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen)


COLOUR = r"\x1b\[[\d;]*3[0-7][\d;]*m|\x1b\[38;"


def test_a_terminal_shows_progress_in_colours():
    code, screen = in_terminal(words("train digits --networks 1 --epochs 30 --early-stopping"))
    assert code == 0
    assert re.search(COLOUR, screen)
    assert "30/30" in plain(screen)
    assert re.search(r"loss \d\.\d{4} val \d\.\d{4} accuracy \d\.\d{3} [\d,.]+ epochs/s", plain(screen))
    assert re.search(r"\d:\d\d left", plain(screen))


@pytest.mark.slow
def test_colours_can_be_forbidden_and_commands_are_not_broken_into_lines():
    settings = words(
        "sweep xor --networks 1 --hidden 2 3 --epochs 2 --activation tanh --solver sgd --momentum 0.5"
    )
    code, screen = in_terminal(settings, columns=50, NO_COLOR="1")
    assert code == 0
    assert "2/2" in plain(screen)
    assert not re.search(COLOUR, screen)
    assert re.search(
        r"\r\n  mlp-xp train xor .* --max-iter 2 --momentum 0.5 --out xor-best\r\n", plain(screen)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "columns"),
    [
        ("train wine.csv", 60),
        ("sweep wine.csv --hidden 8 64x32 128x64x32", 40),
    ],
)
def test_narrow_terminals_show_all_numbers(command, columns):
    from mlp_xp._cli.screen import format_score

    table("wine").with_columns(pl.col("cultivar").str.replace("class", "a rather long name")).write_csv(
        "wine.csv"
    )
    code, screen = in_terminal(words(f"{command} --epochs 30 --out run"), columns=columns)
    assert code == 0
    lines = [line.rpartition("\r")[2] for line in plain(screen).split("\r\n")]
    commands = [line for line in lines if "mlp-xp " in line]
    assert max(len(line) for line in lines if line not in commands) <= columns
    assert "…" not in screen
    shown = re.findall(rf"^  ({FIELDS})( +)\S", "\n".join(lines), re.M)
    assert {len(name + gap) for name, gap in shown} == {12}
    cells = {cell.strip() for line in lines for cell in line.strip("│").split("│")}
    if command.startswith("train"):
        documents = [json.loads(Path("run/metrics.json").read_text())]
    else:
        networks = json.loads(Path("run/sweep.json").read_text())["networks"]
        documents = [each["scores"] for each in networks]
        assert {"128x64x32", f"{networks[-1]['parameters']:,}", "30"} <= cells
    for scores in documents:
        for name in ("accuracy", "roc_auc", "log_loss"):
            assert format_score(name, scores["test"][name]) in cells
        assert format_score("accuracy", scores["training"]["accuracy"]) in cells
        assert format_score("log_loss", scores["baseline"]["log_loss"]) in cells


@pytest.mark.slow
def test_an_interrupt_reports_and_keeps_what_was_trained():
    code, screen = in_terminal(
        words("train digits --networks 1 --batch-size 16 --epochs 100000 --n-iter-no-change inf --out run"),
        interrupt_after=b"loss",
    )
    assert code == 130
    interrupted = re.search(r"mlp-xp: interrupted after (\d+) of 100000 epochs", plain(screen))
    assert interrupted
    assert "Traceback" not in screen
    assert len(json.loads(Path("run/history.json").read_text())) == int(interrupted[1]) >= 1
    assert json.loads(Path("run/metrics.json").read_text())["test"]["accuracy"] > 0.5


def test_a_training_that_fails_keeps_what_was_trained(run, monkeypatch):
    from mlp_xp._engines.compiled import CompiledEngine

    engine_run, calls = CompiledEngine.run, []

    def fails(self, epochs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("pulled the plug")
        engine_run(self, epochs)

    monkeypatch.setattr(CompiledEngine, "run", fails)
    code, _, error = run("train", "xor", "--epochs", 500, "--out", "run")
    assert code == 1
    n_done = load_model("run/network.safetensors").n_iter_
    assert n_done >= 2
    assert f"training failed after {n_done} epochs (OSError: pulled the plug). What was trained" in error


# Tables as people have them: from a file to the words on the screen.


def lines_of(names, rows, separator=","):
    return "".join(separator.join(map(str, row)) + "\n" for row in [names, *rows])


def test_a_running_number_predicts_nothing(ask, run):
    """Rows sorted by class, numbered: with the number a network knows the test rows, and no others."""
    random = np.random.RandomState(0)
    points = [(k + random.randn(), random.randn() - k, "abc"[k]) for k in range(3) for _ in range(100)]
    written(lines_of(["id", "x", "y", "kind"], [(i, *point) for i, point in enumerate(points, 1)]))
    found = ask(
        "train", "table.csv", "--networks", 1, "--epochs", 60, "--learning-rate", 0.01, "--out", "run"
    )
    assert found["left_out"] == {"id": "it numbers the rows"}
    new = [points[index] for index in random.permutation(300)]
    written(lines_of(["id", "x", "y", "kind"], [(i, *point) for i, point in enumerate(new, 301)]), "new.csv")
    accuracy = ask("evaluate", "run", "new.csv")["scores"]["network"]["accuracy"]
    assert accuracy > found["scores"]["test"]["accuracy"] - 0.1 > 0.4
    kept = ask("train", "table.csv", "--networks", 1, "--epochs", 2, "--keep-column", "id")
    assert (kept["columns"]["number"], kept["left_out"]) == (["id", "x", "y"], {})


def test_months_of_the_united_states(run, ask):
    months = [dt.date(2019 + i // 12, 1 + i % 12, 1) for i in range(36)]
    settings = ["--solver", "lbfgs", "--networks", 1, "--hidden", 4]
    us = [f"{month.month}/{month.day}/{month.year}" for month in months]
    written(lines_of(["month", "value"], zip(us, (f"{i}.5" for i in range(36)))), "us.csv")
    written(lines_of(["month", "value"], zip(months, (f"{i}.5" for i in range(36)))), "iso.csv")
    found = ask("train", "us.csv", *settings, "--out", "run")
    assert found["scores"] == ask("train", "iso.csv", *settings)["scores"]
    assert found["scores"]["test"]["r2"] > 0.99
    code, output, error = run("train", "us.csv", *settings)
    assert "month, read as month/day/year, 2019-01-01 to 2021-12-01" in output
    assert "mlp-xp: month: read as month/day/year, as no cell decides (--dates day-first " in error
    assert (
        "day/month/year, 2019-01-01 to 2021-01-12"
        in run("train", "us.csv", *settings, "--dates", "day-first")[1]
    )
    # A row alone is read as it was among the others.
    written("month\n" + us[14] + "\n", "new.csv")
    assert float(run("predict", "run", "new.csv")[1].splitlines()[1]) == pytest.approx(14.5, abs=1.0)


def test_german_numbers(ask, run):
    random = np.random.RandomState(0)
    people = random.randint(1_000, 3_000_000, 200)
    rows = [
        (f"{n:,}".replace(",", "."), f"{n / 1e6:.6f}".replace(".", ","), "big" if n > 1e6 else "small")
        for n in people
    ]
    written(lines_of(["people", "share", "label"], rows, ";"))
    found = ask("train", "table.csv", *PLAIN, "--solver", "lbfgs", "--out", "run")
    assert found["scores"]["test"]["accuracy"] > 0.95
    scaling = json.loads(Path("run/pipeline.json").read_text())["preprocessor"]["numbers"]
    assert scaling["people"]["mean"] / scaling["share"]["mean"] == pytest.approx(1e6, rel=1e-5)
    pl.DataFrame({"people": [2_500_000, 5_000], "share": [2.5, 0.005]}).write_parquet("new.parquet")
    assert [line.split(",")[0] for line in run("predict", "run", "new.parquet")[1].splitlines()[1:]] == [
        "big",
        "small",
    ]
    written("people;share\n1.234;1.5\n", "new.csv")
    code, _, error = run("predict", "run", "new.csv")
    assert code == 2
    assert "the column 'share' must hold numbers written as 1234,5, got '1.5' in row 1" in error


def test_words_that_mean_a_missing_value(ask, run):
    random = np.random.RandomState(0)
    scores = np.round(random.normal(4.0, 1.0, 1000), 2)
    rows = [("none yet" if i % 7 == 0 else x, round(3.0 * x, 2)) for i, x in enumerate(scores)]
    written(lines_of(["score", "value"], rows))
    code, output, error = run("train", "table.csv", *PLAIN, "--solver", "lbfgs", "--out", "run")
    assert code == 0
    assert "mlp-xp: score: 'none yet' counts as a missing value" in error
    assert re.search(r"missing     score 143, filled with \d", output)
    assert "mlp-xp: missing: score 143, filled with " in run("predict", "run", "table.csv")[2]
    assert (
        ask("train", "table.csv", *PLAIN, "--solver", "lbfgs", "--na", "none yet")["scores"]["test"]["r2"]
        > 0.75
    )
    # "NA" as a class.
    written(lines_of(["x", "kind"], [(i % 10, "NA" if i % 10 > 5 else "EU") for i in range(100)]))
    assert run("train", "table.csv")[0] == 2
    assert ask("train", "table.csv", *PLAIN, "--epochs", 2, "--na")["rows"] == {"training": 80, "test": 20}


def test_what_does_not_fit_is_named_at_once(trained, run):
    new = trained[:4].with_columns(
        pl.Series("sepal length (cm)", ["5.1", "wide", "4.9", "x"]),
        pl.Series("day", ["2024-01-01", "soon", "", None]),
    )
    new.write_csv("new.csv")
    code, output, error = run("predict", "run", "new.csv")
    assert (code, output) == (2, "")
    assert (
        "the columns 'sepal length (cm)' must hold numbers, got 'wide' in row 2, 'x' in row 4; 'day' must "
        in error
    )
    assert "hold dates written as year-month-day, got 'soon' in row 2\n" in error


@pytest.mark.parametrize("cell", ["1.7976931348623157e308", "-3.4028235e38", "1e40"])
def test_cells_that_overflow_are_named(cell, run):
    cells = [(cell if i == 5 else i % 7, i % 3, "x" if i % 7 > 3 else "y") for i in range(100)]
    written(lines_of("abk", [(i % 7, i % 3, "x" if i % 7 > 3 else "y") for i in range(100)]))
    written(lines_of("abk", cells), "far.csv")
    assert run("train", "table.csv", "--networks", 1, "--epochs", 2, "--out", "run")[0] == 0
    for command in (["train", "far.csv"], ["predict", "run", "far.csv"], ["evaluate", "run", "far.csv"]):
        code, output, error = run(*command)
        assert (code, output) == (2, "")
        assert re.search(
            r"the column 'a' must hold smaller numbers, got \S+ in row 6, too large for float32", error
        )
    assert run("train", "far.csv", "--networks", 1, "--epochs", 2, f"--na={cell}")[0] == 0


@pytest.mark.parametrize("value", ["3.5", "7"])
def test_a_constant_target_is_refused(value, run):
    written(lines_of("ay", [(i * i, value) for i in range(40)]))
    for task in ([], ["--task", "regression"]):
        code, _, error = run("train", "table.csv", *task)
        assert code == 2
        assert "the target 'y' must have " in error
        assert f"got only {value}" in error


@pytest.mark.parametrize("scale", [1e44, 1e-45, 1e200, 1e-200])
def test_targets_of_any_magnitude(scale, ask):
    random = np.random.RandomState(0)
    a, b = random.randn(200), random.randn(200)
    pl.DataFrame({"a": a, "b": b, "y": (2.0 * a - b) * scale}).write_csv("table.csv")
    found = ask("train", "table.csv", *PLAIN, "--solver", "lbfgs", "--out", "run")
    assert found["scores"]["test"]["r2"] > 0.9
    assert ask("evaluate", "run", "table.csv")["scores"]["network"]["r2"] > 0.9


def test_a_class_that_comes_once(ask, run):
    random = np.random.RandomState(0)
    kinds = ["once" if i == 77 else "seldom" if i % 50 == 0 else "ab"[i % 2] for i in range(1000)]
    written(lines_of(["x", "label"], zip(random.randn(1000).round(2), kinds)))
    code, output, error = run("train", "table.csv", *SMALL, "--epochs", 2, "--out", "run")
    assert code == 0
    assert "mlp-xp: test: no ROC AUC, as no row has the class once" in error
    assert json.loads(Path("run/pipeline.json").read_text())["baseline"]["counts"] == [384, 399, 1, 16]


def test_grades_are_numbers(ask):
    written(lines_of(["hours", "grade"], [(i % 20 + i % 3, i % 20) for i in range(400)]))
    settings = ["train", "table.csv", *SMALL, "--epochs", 2]
    found = ask(*settings)
    assert (found["task"], found["reason"]) == ("regression", "it has 20 different numbers")
    assert ask(*settings, "--task", "classification")["task"] == "classification"


def test_years_and_dates_are_written_as_such(run):
    rows = [
        (
            "" if i % 9 == 0 else dt.date(2015, 1, 1) + dt.timedelta(i),
            "" if i % 8 == 0 else 1900 + i,
            "ab"[i > 50],
        )
        for i in range(100)
    ]
    written(lines_of(["day", "built", "label"], rows))
    output = run("train", "table.csv", *SMALL, "--epochs", 2)[1]
    assert "day, read as year-month-day, 2015-01-02 to 2015-04-09" in output
    assert re.search(
        r"missing     day 12, filled with 2015-0\d-\d\d(?: 12:00:00)?; built 13, filled with 19\d\d(\.5)?\n",
        output,
    )


@pytest.mark.slow
def test_text_of_many_values_takes_little_memory(ask):
    random = np.random.RandomState(0)
    x = random.randn(8_000)
    users = [f"u{number:05d}" for number in random.randint(4_000, size=8_000)]
    written(lines_of(["user", "x", "label"], zip(users, x.round(3), np.where(x > 0, "yes", "no"))))
    found = ask("train", "table.csv", "--epochs", 1)
    assert list(found["left_out"]) == ["user"]
    tracemalloc.start()
    kept = ask("train", "table.csv", "--epochs", 1, "--keep-column", "user")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept["network"]["layer_sizes"][0] <= 102 + 13  # x has 12 intervals
    assert peak < 60e6


def test_tables_in_a_pipe(run, monkeypatch):
    text = lines_of("xyk", [(i % 5, i % 7, "ab"[i % 5 > 2]) for i in range(60)])
    written(text)
    for command in (["train", "-"], ["train", "table.csv", "--out", "run"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(*command, *SMALL, "--epochs", 2)[0] == 0
    expected = run("predict", "run", "table.csv")[1]
    for content in (text.encode(), gzip.compress(text.encode()), text.encode("utf-16")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run("predict", "run", "-")[:2] == (0, expected)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, error = run("predict", "run", "-")
    assert (code, error) == (2, "mlp-xp: standard input: not a readable CSV file (it is empty)\n")


def test_text_in_other_encodings(run):
    text = lines_of(["größe", "art"], [(i % 9, "süß" if i % 9 > 4 else "herb") for i in range(60)])
    Path("table.csv").write_bytes(text.encode("cp1252"))
    code, _, error = run("train", "table.csv")
    assert code == 2
    assert "--encoding names another one, such as cp1252" in error
    settings = [*SMALL, "--epochs", "2", "--out", "run"]
    assert run("train", "table.csv", "--encoding", "cp1252", *settings)[0] == 0
    assert "--encoding cp1252" in Path("run/command.txt").read_text()
    written(text, "new.csv")
    assert run("predict", "run", "new.csv") == run("predict", "run", "table.csv", "--encoding", "cp1252")
    assert run("predict", "run", "table.csv")[0] == 2


def test_a_header_is_never_a_row(run):
    written(
        lines_of(
            ["20", "public", "1000", "low"],
            [(20 + i % 50, ("public", "self")[i % 2], 1000 + i, ("low", "high")[i % 2]) for i in range(200)],
        )
    )
    code, _, error = run("train", "table.csv")
    assert code == 2
    assert (
        "the first line must name the columns, got 20, public, 1000, low: put a line of names before it"
        in error
    )


def test_predictions_never_replace_what_is_predicted(trained, run):
    trained[:3].write_csv("new.csv")
    code, _, error = run("predict", "run", "new.csv", "--out", "./new.csv", "--overwrite")
    assert code == 2
    assert "the table to predict cannot be replaced by its predictions" in error
    assert len(pl.read_csv("new.csv")) == 3


def test_mistyped_columns_are_recognised(trained, run):
    trained[:3].rename({"sepal width (cm)": "Sepal_width (cm)"}).write_csv("new.csv")
    assert "(did you mean Sepal_width (cm)?)" in run("predict", "run", "new.csv")[2]
    trained.write_csv("table.csv")
    assert "got 'spceies' (did you mean species?)" in run("train", "table.csv", "--target", "spceies")[2]
