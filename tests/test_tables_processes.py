"""Tables of which several processes have parts: results are those of one process."""

import contextlib
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mpi import environment, needs_mpi, started_by
from safetensors.numpy import load_file

from mlp_xp._cli import main
from mlp_xp._cli import processes as started
from mlp_xp.tables import DataError, load_run, read_frame
from mlp_xp.tables import _reading as reading

SECONDS = 240
"""After which a launch is ended; it takes a few."""

RUN_COMMANDS = """
import contextlib, io, json, os, pathlib
from mlp_xp._cli import main
for number, words in enumerate(json.loads(pathlib.Path("commands.json").read_text())):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    path = pathlib.Path(f"{number}-{os.environ['OMPI_COMM_WORLD_RANK']}.json")
    path.write_text(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def launch(n, script, folder, arguments=(), **settings):
    """Return the process of `mpiexec` that runs a script in so many processes."""
    words = [*started_by(n), "-c", script, *arguments]
    return subprocess.Popen(
        words, cwd=folder, env=environment(), text=True, start_new_session=True, **settings
    )


def run_script(n, script, folder):
    """Run a script in so many processes; it must succeed."""
    with launch(n, script, folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, output
    return output


def make_table(n=240):
    random = np.random.RandomState(0)
    x = random.normal(size=(n, 3))
    kind = random.choice(["a", "b", "c", None], n, p=[0.5, 0.3, 0.15, 0.05])
    gaps = np.where(random.rand(n) < 0.1, np.nan, 3.0 * x[:, 0])
    return pl.DataFrame(
        {
            "id": np.arange(n),
            "x": x[:, 0],
            "single": x[:, 1].astype("f4"),
            "gaps": gaps,
            "kind": kind,
            "city": [f"c{number % 60}" for number in random.zipf(1.6, n)],
            "day": [f"2020-{1 + row % 12:02d}-{1 + row % 28:02d}" for row in range(n)],
            "flag": random.rand(n) < 0.5,
            "weight": random.rand(n) + 0.5,
            "price": 1000.0 + 100.0 * (x[:, 0] + (kind == "a") + 0.3 * x[:, 2]),
            "grade": np.where(x[:, 0] > 0.5, "high", np.where(x[:, 0] > -0.5, "mid", "low")),
        },
        nan_to_null=True,
    )


def write_tables(folder):
    table = make_table()
    grades, prices = table.drop("price", "weight"), table.drop("grade")
    grades.write_parquet(folder / "grades.parquet", row_group_size=50)
    grades.write_csv(folder / "grades.csv")
    prices.write_ipc(folder / "prices.arrow")
    (folder / "parts").mkdir()
    # One process has rows of several files, and one file is for several processes.
    for number, (first, last) in enumerate([(0, 20), (20, 21), (21, 60), (60, 240)]):
        prices[first:last].write_parquet(folder / "parts" / f"part-{9 + number}.parquet")
    np.save(folder / "plane.npy", np.column_stack([table["x"], table["single"], table["x"] > 0.0]))
    shutil.copytree(folder / "parts", folder / "other")
    prices.rename({"flag": "flags"}).write_parquet(folder / "other" / "part-13.parquet")
    shutil.copytree(folder / "parts", folder / "damaged")
    damaged = folder / "damaged" / "part-12.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    grades.with_columns(x=pl.Series([*map(str, range(237)), "low", "2", "3"])).write_csv(folder / "wrong.csv")
    prices[:7].write_csv(folder / "few.csv")
    grades[:2].write_csv(folder / "two.csv")


FEW = ["--networks", "2", "--hidden", "6", "--epochs", "3", "--dtype", "float64", "--quiet"]

TRAININGS = {
    "classes": ["grades.parquet", "--target", "grade", *FEW, "--class-weight", "balanced"],
    "weights": ["parts", "--target", "price", *FEW, "--sample-weight", "weight"],
    "text": ["grades.csv", "--target", "grade", *FEW, "--val", "grades.parquet", "--test-fraction", "0.1"],
    "plane": ["plane.npy", *FEW],
    "minimum": ["plane.npy", *FEW, "--solver", "lbfgs"],
    "settings": ["prices.arrow", "--target", "price", "--settings", "scikit-learn", *FEW, "--early-stopping"],
}
"""Trainings of which the folders must be equal, by the folder's name."""

COMMANDS = {
    "predict csv": ["predict", "weights", "prices.arrow", "--keep", "id", "--out", "out/predicted.csv"],
    "predict parquet": ["predict", "classes", "grades.csv", "--out", "out/predicted.parquet"],
    "predict print": ["predict", "classes", "grades.parquet"],
    "predict json": ["predict", "weights", "few.csv", "--json"],
    "evaluate": ["evaluate", "classes", "grades.csv", "--json"],
    "predict two": ["predict", "classes", "two.csv"],
    "evaluate text": ["evaluate", "weights", "parts"],
    "spoken": ["train", "grades.parquet", "--target", "grade", *FEW[:-1]],
    "existing": ["train", "grades.parquet", "--out", "classes", *FEW],
    "nowhere": ["train", "nowhere.parquet"],
    "option": ["train", "grades.parquet", "--hiden", "3"],
    "target": ["train", "parts", "--target", "cost"],
    "cell": ["predict", "classes", "wrong.csv"],
    "columns": ["train", "other", "--target", "price"],
    "damaged": ["train", "damaged", "--target", "price"],
    "task": ["train", "grades.csv", "--target", "grade", "--task", "regression"],
}
"""Commands that must print the same, by what they show."""


ALONE = {
    "sweep": ["sweep", "plane.npy", "--hidden", "2"],
    "standard input": ["train", "-", "--target", "y"],
}
"""Commands for one process alone."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return folders of what one process wrote and three, with the outputs of the commands."""
    outputs = []
    one, three = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("three")
    commands = [["train", *words, "--out", name] for name, words in TRAININGS.items()]
    commands += COMMANDS.values()
    for folder in (one, three):
        write_tables(folder)
        (folder / "out").mkdir()
    (three / "commands.json").write_text(json.dumps([*commands, *ALONE.values()]))
    run_script(3, RUN_COMMANDS, three)
    with contextlib.chdir(one), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMPI_COMM_WORLD_RANK", "0")
        patch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
        Path("commands.json").write_text(json.dumps(commands))
        exec(RUN_COMMANDS, {})
    for folder, ranks in ((one, 1), (three, 3)):
        found = [
            [json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in range(ranks)]
            for number in range(len(commands) + len(ALONE) * (folder is three))
        ]
        outputs.append(dict(zip([*TRAININGS, *COMMANDS, *ALONE], found)))
    return one, three, *outputs


def assert_close(one, other, tolerance=1e-9):
    """Assert that two JSON documents are equal but for rounding."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_close(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_close(*pair)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    else:
        assert one == other


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_is_that_of_one_process(name, folders):
    one, three, _, outputs = folders
    assert outputs[name] == [[0, "", ""]] * 3
    files = sorted(path.name for path in (one / name).iterdir())
    assert files == sorted(path.name for path in (three / name).iterdir())
    for file in [file for file in files if file.endswith(".json")]:
        documents = [json.loads((folder / name / file).read_text()) for folder in (one, three)]
        for document in documents:
            if isinstance(document, dict):
                document.pop("sha256", None), document.pop("seconds", None)
        assert_close(*documents)
    weights = [load_file(folder / name / "network.safetensors") for folder in (one, three)]
    assert weights[0].keys() == weights[1].keys()
    for key, weight in weights[0].items():
        np.testing.assert_allclose(weights[1][key], weight, rtol=1e-9, atol=1e-9)
    assert (one / name / "command.txt").read_text() == (three / name / "command.txt").read_text()
    for picture in one.glob(f"{name}/*.png"):
        assert picture.read_bytes() == (three / name / picture.name).read_bytes()


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_says_in_one_process(name, folders):
    _, _, [(code, out, err)], outputs = (*folders[:2], folders[2][name], folders[3][name])
    assert [each[0] for each in outputs] == [code] * 3
    speaking = [each for each in outputs if each[1] or each[2]]
    assert len(speaking) == 1, "one process tells the user"
    _, said, noted = speaking[0]
    assert noted.partition(" (raised in process")[0].rstrip() == err.rstrip()
    if out.startswith("{"):
        assert_close(*map(json.loads, (said, out)))
    elif out.startswith("predicted"):
        assert_close(*(pl.read_csv(text.encode()).to_dict(as_series=False) for text in (said, out)))
    else:
        assert said == out


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("name", ["predicted.csv", "predicted.parquet"])
def test_predictions_are_in_the_order_of_the_rows(name, folders):
    one, three = (read_frame(folder / "out" / name) for folder in folders[:2])
    assert one.columns == three.columns
    assert one.height == three.height == 240
    for column in one:
        if column.dtype.is_float():
            np.testing.assert_allclose(three[column.name], column, rtol=1e-9)
        else:
            assert three[column.name].equals(column)


@pytest.mark.slow
@needs_mpi
def test_what_one_process_alone_finds_names_the_process(folders):
    [[code, _, err]] = [each for each in folders[3]["damaged"] if each[2]]
    assert code == 2
    assert "damaged/part-12.parquet: not a readable .parquet file" in err
    assert "(raised in process 0 of 3)" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("name", ALONE)
def test_what_is_for_one_process(name, folders):
    (code, out, err), *others = folders[3][name]
    assert (code, out) == (2, "")
    assert err.startswith(f"mlp-xp: {name} is for one process")
    assert others == [[2, "", ""]] * 2


TABULAR = """
    import pickle
    import pandas, polars as pl
    from mlp_xp import data_parallel
    from mlp_xp.tables import TabularClassifier, TabularRegressor, learn_schema
    table = pl.read_parquet("grades.parquet")
    X, y = table.drop("grade"), table["grade"]
    prices = pl.read_ipc("prices.arrow")
    with data_parallel() as processes:
        bounds = [0, 0, 100, len(y)] if processes.size == 3 else [0, len(y)]  # the first has no rows
        mine = slice(bounds[processes.rank], bounds[processes.rank + 1])
        few = dict(n_networks=2, hidden_layer_sizes=(6,), max_iter=3, random_state=0, dtype="float64")
        model = TabularClassifier(**few, class_weight="balanced").fit(X[mine], y[mine])
        other = TabularRegressor(**few, loss="poisson")
        columns = prices.drop("price")[mine].to_dict(as_series=False)
        other.fit(pandas.DataFrame(columns), prices["price"][mine], prices["weight"][mine])
        drawn = TabularClassifier(n_networks=1, hidden_layer_sizes=(2,), max_iter=1).fit(X[mine], y[mine])
        message = ""
        if processes.size > 1:
            try:
                TabularClassifier().fit(X[mine] if processes.rank else X[mine].drop("x"), y[mine])
            except ValueError as error:
                message = str(error)
        results = model.predict_proba(X), other.predict(prices), model.schema_, message, drawn.random_state
        everyone = processes.exchange("results", (results, drawn.predict_proba(X)))
        if processes.rank == 0:
            with open(f"{processes.size}.pickle", "wb") as file:
                pickle.dump(everyone, file)
"""


@pytest.mark.slow
@needs_mpi
def test_tabular_estimators_fit_the_rows_of_all(folders):
    pytest.importorskip("pandas")
    folder = folders[1]
    script = textwrap.dedent(TABULAR)
    run_script(3, script, folder)
    run_script(1, script, folder)
    one, three = (pickle.loads((folder / f"{n}.pickle").read_bytes()) for n in (1, 3))
    ((probabilities, values, schema, _, _), _) = one[0]
    for (found, *others), drawn in three:
        np.testing.assert_allclose(found, probabilities, rtol=1e-9)
        np.testing.assert_allclose(others[0], values, rtol=1e-9)
        assert others[1] == schema
        assert "process 1 of 3 has the columns" in others[2]
        np.testing.assert_array_equal(drawn, three[0][1])


# Interrupts.

ENDLESS = ["--networks", "2", "--hidden", "16", "--epochs", "1000000", "--n-iter-no-change", "inf"]

INTERRUPT = """
import os, signal, sys
from mlp_xp._cli import main
from mlp_xp._engines.data_parallel import DataParallelEngine
run, calls = DataParallelEngine.run, []
def interrupted(self, epochs):
    calls.append(epochs)
    if len(calls) == 5 and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        os.kill(os.getppid() if sys.argv[1] == "mpiexec" else os.getpid(), int(sys.argv[2]))
    return run(self, epochs)
DataParallelEngine.run = interrupted
sys.exit(main(sys.argv[3:]))
"""
"""Command that is interrupted in the second process, or by way of `mpiexec`."""


def interrupted(n, folder, *words):
    """Run that command in so many processes; return the exit code and what was printed."""
    for name in ("run", "run.partial"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with launch(
        n, INTERRUPT, folder, map(str, words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        output, error = process.communicate(timeout=SECONDS)
    return process.returncode, output, error


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_mpiexec_keeps_what_was_trained(number, tmp_path):
    write_tables(tmp_path)
    words = ["train", "grades.parquet", "--target", "grade", *ENDLESS, "--out", "run"]
    for _ in range(3):  # on a busy machine `mpiexec` may kill all before one has forked
        code, _, _ = interrupted(2, tmp_path, "mpiexec", int(number), *words)
        assert code != 0
        start = time.monotonic()
        while not (tmp_path / "run").exists() and time.monotonic() < start + 5.0:
            time.sleep(0.1)
        if (tmp_path / "run").exists():
            break
    run = load_run(tmp_path / "run")
    assert re.match("network 1 of 2: interrupted after [0-9]+ of 1000000 epochs", run.description["ended"])
    assert run.predict(tmp_path / "grades.parquet").height == 240


@needs_mpi
@pytest.mark.slow
def test_an_interrupt_of_one_process_ends_all(tmp_path):
    write_tables(tmp_path)
    words = ["train", "plane.npy", *ENDLESS, "--out", "run"]
    code, output, error = interrupted(3, tmp_path, "itself", int(signal.SIGINT), *words)
    assert code == 130
    assert len(re.findall("network 1 of 2: interrupted after [0-9]+ of 1000000 epochs", error)) == 1
    assert output.count("Saved in run: ") == 1
    pictures = ["confusion_matrix.png", "decision_boundary.png", "learning_curve.png"]
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == pictures
    assert load_run(tmp_path / "run").description["exit_code"] == 130
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(scores) == ["training", "test", "baseline"]


# Large values.

LARGE = """
import numpy as np
import mlp_xp._processes as processes_module
from mlp_xp import data_parallel
processes_module.MAX_BYTES_OF_A_MESSAGE = 1000
with data_parallel() as processes, processes.together("a test"):
    own, others = (np.arange(5000) + rank for rank in (processes.rank, 0))
    assert (processes.share("shared", own) == others).all()
    gathered = processes.gather("gathered", own, 1)
    assert (gathered is None) == (processes.rank != 1)
    assert all((each == others + rank).all() for rank, each in enumerate(gathered or ()))
    firsts = [None if each is None else each[0] for each in processes.in_turn("in turn", own)]
    assert firsts == ([0, 1] if processes.rank == 0 else [None, None])
"""


@pytest.mark.slow
@needs_mpi
def test_large_values_are_sent_in_parts(tmp_path):
    run_script(2, LARGE, tmp_path)


# Rows of a file.


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy"])
def test_other_rows_of_a_file_are_not_read(suffix, tmp_path):
    table, path = pl.DataFrame({"x0": np.arange(4000.0), "x1": np.random.RandomState(0).rand(4000)}), tmp_path
    path = tmp_path / f"table{suffix}"
    if suffix == ".npy":
        np.save(path, table.to_numpy())
    elif suffix == ".arrow":
        table.write_ipc(path, record_batch_size=1000)
    else:
        table.write_parquet(path, row_group_size=1000, compression="uncompressed", statistics=False)
    schema, n_rows = reading._describe_file(path)
    assert (list(schema), n_rows) == (["x0", "x1"], 4000)
    expected = table[1000:1500]
    assert reading._read_rows(path, 1000, 500).equals(expected)
    content = bytearray(path.read_bytes())
    position = content.find(np.float64(2500.0).tobytes())
    content[position - 1000 : position + 1000] = b"\xff" * 2000  # the rows of other processes
    path.write_bytes(content)
    assert reading._read_rows(path, 1000, 500).equals(expected)


def test_the_files_of_a_folder_are_one_table(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in (10, 9, 1):
        (folder / f"part-{number}.csv").write_text(f"a,b\n{number},x\n")
    (folder / "_SUCCESS").touch()
    assert read_frame(folder).rows() == [(1, "x"), (9, "x"), (10, "x")]
    (folder / "part-2.csv").write_text("b,a\nz,5\n")
    assert read_frame(folder)["a"].to_list() == [1, 5, 9, 10]
    (folder / "part-3.csv").write_text("a,c\n1,2\n")
    with pytest.raises(
        DataError, match=r"part-3\.csv: its columns are a, c, but those of part-1\.csv are a, b"
    ):
        read_frame(folder)
    (folder / "part-4.parquet").touch()
    with pytest.raises(
        DataError, match=r"folder: the files of a folder must be of one kind, got \.csv, \.parquet"
    ):
        read_frame(folder)


def test_types_of_the_files_of_a_folder_must_be_equal(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"a": ["1"]}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(
        DataError, match=r"2\.parquet: the column 'a' is of String, but of Int64 in 1\.parquet"
    ):
        read_frame(tmp_path)


def test_arrays_are_tables(tmp_path):
    np.save(tmp_path / "plain.npy", np.array([[1, 2], [3, 4]], "<i2"))
    assert read_frame(tmp_path / "plain.npy").to_dict(as_series=False) == {"x0": [1, 3], "x1": [2, 4]}
    np.save(tmp_path / "named.npy", np.array([(1.5, b"a"), (2.5, b"b")], [("size", ">f8"), ("kind", "S1")]))
    assert read_frame(tmp_path / "named.npy").rows() == [(1.5, "a"), (2.5, "b")]
    np.save(tmp_path / "flat.npy", np.arange(3.0))
    with pytest.raises(
        DataError, match=r"flat\.npy: it must be a table of numbers, got float64 of shape \(3,\)"
    ):
        read_frame(tmp_path / "flat.npy")


# Launchers.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, 1),
        ({"PMI_SIZE": "3", "PMI_RANK": "2"}, 3),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1),  # srun without MPI, or the script of a job
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "PMIX_RANK": "1"}, 4),
        ({"SLURM_NTASKS": "1", "PMIX_RANK": "0"}, 1),
        ({"PMIX_RANK": "0"}, 2),
    ],
)
def test_how_many_processes_were_started(environment, expected, monkeypatch):
    for name in [*started.SIZES, *started.RANKS, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started.number_started() == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_without_mpi4py_the_first_process_says_so(rank, monkeypatch, capsys):
    monkeypatch.setattr(started, "SECONDS_FOR_FIRST_TO_REPORT", 0.0)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert main(["train", "xor"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 - rank
    if rank == 0:
        assert err.startswith("mlp-xp: 2 processes were started, which need mpi4py (")
        assert "pip install 'mlp_xp[mpi]'" in err
