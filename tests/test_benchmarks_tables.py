"""The benchmark on tables: that all train on the same rows, and what errors, ranks and ratios are of."""

import json
import os
import signal
import time
from contextlib import suppress
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("polars")
pytest.importorskip("rich")
pytest.importorskip("sklearn", minversion="1.9")

import polars as pl
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, r2_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import __main__ as benchmarks_main
from benchmarks.tables import command, learners, results
from benchmarks.tables.data import Rows, load_table
from benchmarks.tables.learners import LEARNERS, OURS, TRIVIAL, Learner, why_missing
from benchmarks.tables.markdown import markdown
from benchmarks.tables.results import Fit, TableResult, error_of
from benchmarks.tables.summary import BETTER_MLP, better_mlp, compare, ranks, summarise
from benchmarks.tables.target_lists import Entry, read_list
from mlp_xp._cli.loading import load_data

pytestmark = pytest.mark.installed

LIST = """file,target,task,drop
fruit.csv,kind,,note colour
sizes.csv,size,regression,
"""
N_ROWS, N_WITHOUT_TARGET = 100, 3


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a table of classes, which has gaps and text, and one of numbers."""
    source = np.random.default_rng(0)
    mass, width = source.normal(100.0, 20.0, N_ROWS).round(2), source.normal(5.0, 1.0, N_ROWS).round(2)
    taste = np.where(mass > 100.0, "sweet", "sour")
    kind = np.where(mass > 100.0, np.where(width > 5.0, "apple", "pear"), "lemon")
    fruit = pl.DataFrame({"mass": mass, "taste": taste, "kind": kind, "note": taste, "colour": taste})
    fruit = fruit.with_columns(
        pl.when(pl.int_range(N_ROWS) < N_WITHOUT_TARGET).then(None).otherwise(pl.col("kind")).alias("kind"),
        pl.when(pl.int_range(N_ROWS) % 10 == 5).then(None).otherwise(pl.col("mass")).alias("mass"),
        pl.when(pl.int_range(N_ROWS) % 10 == 7).then(None).otherwise(pl.col("taste")).alias("taste"),
        pl.Series("width", width),
    )
    fruit.write_csv(tmp_path / "fruit.csv")
    size = 3.0 * mass + 10.0 * width + source.normal(0.0, 1.0, N_ROWS)
    pl.DataFrame({"mass": mass, "width": width, "size": size}).write_csv(tmp_path / "sizes.csv")
    (tmp_path / "targets.csv").write_text(LIST)
    return tmp_path


def table(folder, name):
    (entry,) = [entry for entry in read_list(folder / "targets.csv", folder) if entry.name == name]
    return load_table(entry)


def run(folder, *arguments):
    command.run([str(folder), "--out", str(folder / "out"), *arguments])


def written(folder):
    (path,) = (folder / "out").glob("*.json")
    return json.loads(path.read_text())


# The rows.


def test_a_list_and_its_tables(folder):
    fruit, sizes = read_list(folder / "targets.csv", folder)
    assert fruit == Entry("fruit", folder / "fruit.csv", "kind", "auto", ("note", "colour"))
    assert sizes == Entry("sizes", folder / "sizes.csv", "size", "regression")
    loaded = load_table(fruit)
    assert (loaded.task, len(loaded.rows.y)) == ("classification", N_ROWS - N_WITHOUT_TARGET)
    assert loaded.rows.raw.columns == loaded.rows.typed.columns == ["mass", "taste", "width"]
    assert set(loaded.rows.raw.dtypes) == {pl.String}, "as it is in the file"
    assert loaded.rows.typed.dtypes == [pl.Float64, pl.String, pl.Float64]
    assert loaded.rows.raw["mass"].cast(pl.Float64).to_list() == loaded.rows.typed["mass"].to_list()


@pytest.mark.parametrize("name", ["fruit", "sizes"])
def test_the_rows_held_out_are_those_of_the_tool(folder, name):
    asked = {"data": str(folder / f"{name}.csv"), "target": table(folder, name).target, "drop": []}
    given = {"task": "auto", "test_fraction": None, "random_state": 3, "dtype": "float32"}
    given["settings"] = "tabular"
    names = ("categorical", "keep_column")
    others = ("sample_weight", "na", "decimal", "dates", "val", "encoding")
    options = SimpleNamespace(**asked, **given, **dict.fromkeys(names, ()), **dict.fromkeys(others))
    splits = load_data(options).prepared.splits
    for rows, split in zip(table(folder, name).split(3), ("training", "test")):
        assert splits[split].frame.select(rows.typed.columns).equals(rows.typed)
        assert splits[split].y.tolist() == rows.y.tolist()


def test_all_train_and_are_scored_on_the_same_rows(folder, monkeypatch):
    seen = {}

    def recording(name, train):
        def recorded(task, seed, rows):
            model = train(task, seed, rows)

            def predict(others):
                seen[name, seed] = (rows, others)
                return model(others)

            return predict

        return recorded

    for name, one in LEARNERS.items():
        monkeypatch.setitem(LEARNERS, name, one._replace(train=recording(name, LEARNERS[TRIVIAL].train)))
    names = [name for name in LEARNERS if name != "realmlp"]
    run(folder, "--only", "fruit", "--seeds", "2", "--participants", *names)
    assert seen.keys() == {(name, seed) for name in names for seed in (0, 1)}
    whole = table(folder, "fruit").rows
    for (_, seed), (training, held) in seen.items():
        first_training, first_held = seen[OURS, seed]
        for rows, first in ((training, first_training), (held, first_held)):
            assert rows.raw.equals(first.raw)
            assert rows.typed.equals(first.typed)
            assert rows.y.tolist() == first.y.tolist()
        assert len(held.y) == round(0.2 * len(whole.y))
        both = [*training.raw.with_columns(y=training.y).rows(), *held.raw.with_columns(y=held.y).rows()]
        assert sorted(map(str, both)) == sorted(map(str, whole.raw.with_columns(y=whole.y).rows()))
        for name in set(whole.y):
            assert abs(np.mean(held.y == name) - np.mean(whole.y == name)) < 0.05, "not stratified"
    assert not seen[OURS, 0][1].raw.equals(seen[OURS, 1][1].raw), "each seed holds out other rows"


# Errors.


def test_errors_are_those_of_scikit_learn():
    y_train, y = np.array(["c", "a", "b"]), np.array(["b", "a", "a"])
    outputs = np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0]], dtype=np.float32)
    expected = log_loss(y, outputs, labels=["a", "b", "c"])
    assert expected == pytest.approx(-np.log([0.7, 0.6, 1.0]).mean(), rel=1e-6)
    assert error_of("classification", y_train, y, outputs) == pytest.approx(expected, rel=1e-6)
    y, outputs = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    assert error_of("regression", y, y, outputs) == pytest.approx(1.0 - r2_score(y, outputs))
    with pytest.raises(ValueError, match="its error is nan|NaN"):
        error_of("regression", y, y, np.array([1.0, np.nan, 2.0]))


def references(task, seed):
    """Return estimators for numbers without gaps, as one would write them."""
    classes = task == "classification"
    scaled = [
        make_pipeline(StandardScaler(), MLPClassifier(random_state=seed, early_stopping=early))
        if classes
        else make_pipeline(
            StandardScaler(),
            TransformedTargetRegressor(
                MLPRegressor(random_state=seed, early_stopping=early), transformer=StandardScaler()
            ),
        )
        for early in (False, True)
    ]
    boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    return dict(zip(("sklearn", "sklearn-early", "boosting"), [*scaled, boosting(random_state=seed)]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_peers_are_scikit_learns_with_defaults(folder, task):
    training, held = table(folder, "sizes").split(3)
    if task == "classification":
        training, held = (
            rows._replace(y=np.where(rows.y > 350.0, "large", "small")) for rows in (training, held)
        )
    for name, model in references(task, 3).items():
        model.fit(training.typed.to_numpy(), training.y)
        X = held.typed.to_numpy()
        if task == "classification":
            expected = log_loss(held.y, model.predict_proba(X), labels=["large", "small"])
        else:
            expected = 1.0 - r2_score(held.y, model.predict(X))
        fit = results.train(name, task, 3, training, held)
        assert fit.error == pytest.approx(expected, rel=1e-9), name
        assert fit.seconds > 0.0


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != TRIVIAL])
def test_participants_learn_from_gaps_and_text(folder, name):
    if why := why_missing(name):
        pytest.skip(why)
    training, held = table(folder, "fruit").split(0)
    unknown = pl.when(pl.int_range(len(held.y)) == 0).then(pl.lit("bitter")).otherwise(pl.col("taste"))
    held = held._replace(
        **{kind: getattr(held, kind).with_columns(unknown.alias("taste")) for kind in ("raw", "typed")}
    )
    fit, trivial = (results.train(one, "classification", 0, training, held) for one in (name, TRIVIAL))
    assert not fit.problem
    assert fit.error < trivial.error


def test_the_trivial_model_knows_the_training_rows_alone():
    rows = Rows(pl.DataFrame(), pl.DataFrame(), np.array(["b", "a", "b", "b"]))
    others = rows._replace(y=np.array(["a", "a"]))
    assert LEARNERS[TRIVIAL].train("classification", 0, rows)(others).tolist() == [[0.25, 0.75]] * 2
    rows = rows._replace(y=np.array([1.0, 2.0]))
    assert LEARNERS[TRIVIAL].train("regression", 0, rows)(others).tolist() == [1.5, 1.5]


def test_boosting_takes_the_commonest_categories():
    names = [f"c{number:03}" for number in range(300)]
    frame = pl.DataFrame({"code": [*names, *names[100:], "c299"]})
    rows = Rows(frame, frame, np.arange(len(frame), dtype=float))
    kept = learners._commonest(frame["code"], 255)
    assert kept == [*names[:55], *names[100:]]
    assert LEARNERS["boosting"].train("regression", 0, rows)(rows).shape == (len(frame),)


def test_probabilities_are_in_the_order_of_sorted_classes():
    model = SimpleNamespace(classes_=[2, 0, 1], predict_proba=lambda X: np.array([[0.5, 0.2, 0.3]]))
    assert learners._outputs(model, None, np.array([1, 0, 2, 0])).tolist() == [[0.2, 0.3, 0.5]]


# The summary.


def result(name, **errors):
    """Return a result with these errors by seed; names have "_" for "-"."""
    names = [learner.replace("_", "-") if learner != OURS else learner for learner in errors]
    made = TableResult(name, "y", "classification", 100, 3, names)
    for learner, values in zip(names, errors.values()):
        for seed, error in enumerate(values):
            made.fits.append(
                Fit(learner, seed, error, None if error is None else 2.0, "" if error else "ValueError: no")
            )
    return made


MADE = [
    result(
        "one",
        mlp_xp=[0.1, 0.2, 0.3],
        sklearn=[0.2, 0.3, 0.401],  # the differences hardly vary, the errors do
        sklearn_early=[0.8, 0.8, 0.8],
        trivial=[0.7, 0.7, 0.7],
    ),
    result(
        "two",
        mlp_xp=[0.4, 0.4, 0.1],
        sklearn=[0.5, 0.5, 0.5],
        sklearn_early=[0.3, 0.3, 0.4],
        trivial=[0.7, 0.7, 0.7],
    ),
    result(
        "nil",
        mlp_xp=[1e-5, 1e-5, 1e-5],
        sklearn=[1e-7, 1e-7, 1e-7],
        sklearn_early=[4e-3, 4e-3, 4e-3],
        trivial=[0.5, 0.5, 0.5],
    ),
    result(
        "bad",
        mlp_xp=[0.9, 0.8, 0.9],
        sklearn=[0.3, 0.3, 0.3],
        sklearn_early=[None, 0.1, 0.1],
        trivial=[0.6, 0.6, 0.6],
    ),
]


def test_ratios_of_a_made_result():
    summary = summarise(MADE)
    means = np.array([0.2, 0.3, 1e-3, 2.6 / 3])
    ratios = means / np.array([0.901 / 3, 0.5, 1e-3, 0.3])
    versus = summary.versus["sklearn"]
    assert versus.median_ratio == pytest.approx(np.median(ratios))
    assert versus.geometric_mean_ratio == pytest.approx(np.exp(np.log(ratios).mean()))
    assert (versus.better, versus.worse) == (["one"], ["bad"])
    early = summary.versus["sklearn-early"]
    assert early.n_tables == 3, "without the table where it failed"
    assert early.median_ratio == pytest.approx(0.25)
    assert summary.versus.keys() == {"sklearn", "sklearn-early", TRIVIAL, BETTER_MLP}


def test_the_better_of_two_networks():
    assert [better_mlp(made) for made in MADE] == ["sklearn", "sklearn-early", "sklearn", "sklearn"]
    versus = summarise(MADE).versus[BETTER_MLP]
    assert (versus.n_tables, versus.better, versus.worse) == (4, ["one"], ["bad"])
    ratios = np.array([0.6 / 0.901, 0.9, 1.0, 2.6 / 0.9])
    assert versus.median_ratio == pytest.approx(np.median(ratios))


def test_differences_larger_than_the_spread():
    assert compare([0.1, 0.2, 0.3], [0.2, 0.3, 0.4001]) == "better"
    assert compare([0.2, 0.3, 0.4001], [0.1, 0.2, 0.3]) == "worse"
    # Mean 1, standard error 0.5: exactly two.
    assert compare([2.0, 2.0, 3.0, 1.0], [2.0, 2.0, 0.0, 0.0]) == ""
    assert compare([1.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]) == "worse"
    assert compare([1e-5, 1e-5], [1e-7, 1e-7]) == "", "both count as 0.001"
    assert compare([0.1], [0.9]) == "", "one seed has no spread"


def test_ranks():
    assert ranks(MADE[0]) == {OURS: 1.0, "sklearn": 2.0, "sklearn-early": 4.0, TRIVIAL: 3.0}
    assert ranks(MADE[2]) == {OURS: 1.5, "sklearn": 1.5, "sklearn-early": 3.0, TRIVIAL: 4.0}
    assert ranks(MADE[3]) == {OURS: 3.0, "sklearn": 1.0, "sklearn-early": 4.0, TRIVIAL: 2.0}, "failed is last"
    summary = summarise(MADE)
    assert summary.learners[OURS].mean_rank == pytest.approx((1.0 + 1.0 + 1.5 + 3.0) / 4)
    assert summary.learners[OURS].worse_than_trivial == ["bad"]
    assert summary.learners["sklearn-early"].worse_than_trivial == ["one"]
    assert summary.learners["sklearn-early"].failed == ["bad"]


def test_an_unfinished_seed_does_not_count():
    made = result("one", mlp_xp=[0.1, 0.2, 0.9], trivial=[0.5, 0.6])
    assert (made.seeds(), made.errors(OURS)) == ([0, 1], [0.1, 0.2])
    assert made.spread(OURS) == pytest.approx(0.1 / np.sqrt(2.0))
    assert summarise([made, result("none", mlp_xp=[0.1], trivial=[])]).versus[TRIVIAL].n_tables == 1


def test_markdown_of_a_made_result():
    text = markdown(MADE)
    assert (
        "| one | 100 | 3 | log loss | **0.200** ± 0.100 | 0.300 ± 0.101 | 0.800 ± 0.000 | 0.700 ± 0.000 |"
        in text
    )
    assert "| nil | 100 | 3 | log loss | 0.0000 ± 0.0000 | **0.0000** ± 0.0000 | 0.0040 ± 0.0000 |" in text
    assert "| 0.867 ± 0.058 | **0.300** ± 0.000 | failed | 0.600 ± 0.000 |" in text
    assert "| mlp_xp | 1.62 | 2 s |  |  |  | 1 |" in text
    assert "mlp_xp is worse than the better of the two MLPs on 1 (bad), better on 1 (one)." in text
    assert "scikit-learn MLP, early stopping failed on bad (ValueError: no)." in text
    assert "of 3 seeds" in text
    assert markdown([result("one", trivial=[])]) == ""


# The command.


def test_a_run_is_written_and_printed(folder, capsys, monkeypatch):
    arguments = ["tables", str(folder), "--out", str(folder / "out"), "--name", "My tables"]
    chosen = ["--seeds", "2", "--participants", TRIVIAL, "boosting"]
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments, *chosen])
    benchmarks_main.main()
    content = written(folder)
    (path,) = (folder / "out").glob("*.json")
    assert path.stem == f"{content['date'][:10]}-my-tables"
    assert {"machine", "blas", "versions", "python", "threads", "errors", "summary"} <= content.keys()
    assert [one["table"] for one in content["results"]] == ["fruit", "sizes"]
    fits = content["results"][1]["fits"]
    assert [(fit["learner"], fit["seed"]) for fit in fits] == [
        ("boosting", 0),
        (TRIVIAL, 0),
        ("boosting", 1),
        (TRIVIAL, 1),
    ], "participants take turns"
    expected = np.mean([fit["error"] for fit in fits if fit["learner"] == "boosting"])
    assert content["results"][1]["means"]["boosting"] == pytest.approx(expected)
    printed = capsys.readouterr()
    assert f"| sizes | 100 | 2 | 1 - R2 | **{expected:.3f}** ±" in printed.out
    assert printed.out.startswith("| table |"), "progress is on standard error"
    assert bool(list((folder / "out").glob("*.png"))) == bool(find_spec("matplotlib"))


def test_results_are_written_after_each_training_and_when_interrupted(folder, capsys, monkeypatch):
    trained = []

    def train(name, task, seed, training, held):
        if trained:
            kept = [fit for one in written(folder)["results"] for fit in one["fits"]]
            assert [Fit(**fit) for fit in kept] == trained
        if len(trained) == 7:
            raise KeyboardInterrupt
        trained.append(Fit(name, seed, 0.5, 1.0))
        return trained[-1]

    monkeypatch.setattr(command, "train", train)
    run(folder, "--seeds", "2", "--participants", TRIVIAL, "sklearn")
    content = written(folder)
    assert [len(one["fits"]) for one in content["results"]] == [4, 3]
    printed = capsys.readouterr()
    assert "interrupted" in printed.err
    assert "| sizes | 100 | 2 | 1 - R2 | **0.500** | 0.500 |" in printed.out, "one seed is complete"


def test_an_interrupted_training_does_not_count(folder, capsys, monkeypatch):
    def swallow(task, seed, rows):  # as scikit-learn's networks do
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10.0)
        return LEARNERS[TRIVIAL].train(task, seed, rows)

    monkeypatch.setitem(LEARNERS, "boosting", LEARNERS["boosting"]._replace(train=swallow))
    handler = signal.getsignal(signal.SIGINT)
    run(folder, "--participants", "sklearn", "boosting", TRIVIAL)
    assert "interrupted" in capsys.readouterr().err
    assert [fit["learner"] for one in written(folder)["results"] for fit in one["fits"]] == ["sklearn"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_participant_that_fails_is_one_line(folder, capsys, monkeypatch):
    def fail(task, seed, rows):
        raise ValueError("it does not\nwork")

    monkeypatch.setitem(LEARNERS, "sklearn", LEARNERS["sklearn"]._replace(train=fail))
    run(folder, "--only", "sizes", "--seeds", "1", "--participants", TRIVIAL, "sklearn")
    printed = capsys.readouterr()
    assert "sklearn ValueError: it does not; trivial 1, " in printed.err
    assert "scikit-learn MLP failed on sizes (ValueError: it does not)." in printed.out
    assert written(folder)["results"][0]["fits"][0]["problem"] == "ValueError: it does not"


def test_what_is_not_installed_is_left_out(folder, capsys, monkeypatch):
    nobody = Learner("nobody", "nothing", "no_such_module", None)
    monkeypatch.setattr(command, "LEARNERS", {"nobody": nobody, TRIVIAL: LEARNERS[TRIVIAL]})
    monkeypatch.setitem(LEARNERS, "nobody", nobody)
    run(folder, "--only", "sizes", "--seeds", "1")
    assert "without nobody: not installed (No module named 'no_such_module')" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(folder, "--participants", "nobody")
    assert "--participants: nobody is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,target\nfruit.csv,kind\n", "the header must be file,target,task,drop, got 'file,target'"),
        ("", "the header must be file,target,task,drop, got ''"),
        ("file,target,task,drop\n", "targets.csv: it names no table"),
        (f"{LIST}frut.csv,kind,,\n", "targets.csv, line 4: FOLDER/frut.csv: no such file"),
        (f"{LIST}fruit.csv,mass,,\n", "targets.csv: it names fruit twice"),
        (f"{LIST}few.csv,,,\n", "line 4: the target is empty"),
        (f"{LIST}few.csv,y\n", "line 4: expected 4 cells, got 2"),
        (f"{LIST}few.csv,y,guess,\n", "line 4: the task must be empty or one of auto, classification,"),
        (f"{LIST}few.csv,z,,\n", "few.csv: `target` must be one of the columns x, y, got 'z'"),
        (f"{LIST}few.csv,y,,xx\n", "few.csv: `drop`: no column 'xx' among the features x"),
        (f"{LIST}few.csv,y,,\n", "few.csv: a test fraction of 0.2 of 2 rows leaves nothing on one side"),
        (LIST.replace("kind,", "kind,regression"), "the target 'kind' must hold numbers for regression"),
    ],
)
def test_bad_lists_are_one_line_before_any_training(folder, text, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "train", None)
    (folder / "few.csv").write_text("x,y\n1,2.5\n3,4.5\n")
    (folder / "targets.csv").write_text(text)
    assert message.replace("FOLDER", str(folder)) in error_line(capsys, folder)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["fruit.csv"], "fruit.csv: not a folder"),
        (["empty"], "empty/targets.csv: no such file; it lists the tables: file,target,task,drop"),
        ([".", "--targets", "none.csv"], "none.csv: no such file"),
        ([".", "--only", "fruits"], "no table fruits (did you mean fruit?); there are fruit, sizes"),
        ([".", "--participants", "nobody"], "argument --participants: invalid choice: 'nobody'"),
        ([".", "--seeds", "0"], "argument --seeds: must be a whole number >= 1, got '0'"),
        ([".", "--name", "--/"], "--name: "),
        ([], "the following arguments are required: FOLDER"),
    ],
)
def test_bad_arguments_are_one_line(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "train", None)
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    assert message in error_line(capsys, *arguments)


def error_line(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        command.run([*map(str, arguments)])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m benchmarks tables: error: ")
    return line


def test_a_list_may_be_elsewhere(folder, tmp_path_factory, capsys):
    path = tmp_path_factory.mktemp("lists") / "mine.csv"
    path.write_text("\ufefffile,target,task,drop\r\nsizes.csv,size,,\r\n\r\n", encoding="utf-8")
    (folder / "targets.csv").unlink()
    run(folder, "--targets", str(path), "--seeds", "1", "--participants", TRIVIAL)
    assert [one["table"] for one in written(folder)["results"]] == ["sizes"]
    assert written(folder)["folder"] == folder.name
