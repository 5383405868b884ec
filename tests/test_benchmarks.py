"""The benchmark suite: that all who take part do the same work. No timings here."""

import json
import math
import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import need

pytest.importorskip("rich")
pytest.importorskip("sklearn", minversion="1.9")

from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import comparison as comparing
from benchmarks import evaluation, growth, memory, participants, peers, report, summary, workers
from benchmarks.comparison import Comparison, Outcome, new_comparison
from benchmarks.timing import Timings
from benchmarks.workloads import SEED, WORKLOADS, Workload, make_data, make_start, quick_ones

# Each kind of workload; 67 rows are no whole number of batches.
TINY = {
    "logistic": replace(WORKLOADS["xor"], epochs=5),
    "tanh": replace(WORKLOADS["planar"], epochs=5),
    "float64": replace(WORKLOADS["cancer-f64"], sizes=(30, 8, 1), rows=67, epochs=3),
    "float32": replace(WORKLOADS["cancer-f32"], sizes=(30, 8, 1), rows=67, epochs=3),
    "adam": replace(WORKLOADS["adam"], sizes=(12, 8, 6, 3), rows=67, batch_size=20, epochs=3),
    "deep": replace(WORKLOADS["deep"], sizes=(8, 9, 9, 9, 1), rows=67, batch_size=30, epochs=2),
    "predict_one": replace(WORKLOADS["predict-one"], calls=2),
    "predict_many": replace(WORKLOADS["predict-million"], sizes=(8, 9, 9, 1), rows=67, block=20),
}
FEW = {"mlp_xp on JAX": ["float64"], "JAX": ["tanh", "float32", "adam", "predict_one"]}
"""Kinds for those who compile each of them."""
WITH_OUTCOME = [name for name in participants.PARTICIPANTS if name != participants.LIMIT]
NEEDS = {"mlp_xp on JAX": "jax", "JAX": "jax", "mlp_xp on PyTorch": "torch", "PyTorch": "torch"}


def loss(name, workload):
    prepare = participants.PARTICIPANTS[name].load()
    task = participants.Task(workload, make_data(workload), make_start(workload), "cpu")
    prepared = prepare(task)
    first = evaluation.loss_of(workload, task.data, prepared.outcome(prepared.repeat()))
    # The second repeat starts where the first one did, not where it ended.
    assert evaluation.loss_of(workload, task.data, prepared.outcome(prepared.repeat())) == first
    return first


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in WITH_OUTCOME if name != "torch.compile" for kind in FEW.get(name, TINY)],
)
def test_all_end_at_the_same_loss(name, kind, request):
    if name in NEEDS:
        need(NEEDS[name], request)
    workload = TINY[kind]
    reference = loss("scikit-learn", workload)
    assert loss(name, workload) == pytest.approx(reference, rel=workload.tolerance, abs=0)
    if not workload.predicts:
        start = evaluation.loss_of_parameters(workload, make_data(workload), make_start(workload).layers)
        assert not math.isclose(reference, start, rel_tol=10 * workload.tolerance), "nothing was learned"


def test_compiled_differs_from_eager_in_the_compiler_alone(request, monkeypatch):
    torch = need("torch", request)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    workload = TINY["float64"]
    assert loss("torch.compile", workload) == loss("PyTorch", workload)
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", TINY)
def test_the_limit_makes_the_products_of_each_step(kind, monkeypatch):
    workload = TINY[kind]
    task = participants.Task(workload, make_data(workload), make_start(workload), "cpu")
    prepared = participants.PARTICIPANTS[participants.LIMIT].load()(task)
    shapes = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: shapes.append((a.shape, b.shape, out.shape)))
    prepared = participants.PARTICIPANTS[participants.LIMIT].load()(task)
    prepared.repeat()
    n_layers = len(workload.sizes) - 1
    each = n_layers if workload.predicts else 3 * n_layers - 1
    assert len(shapes) == each * len(workload.batches) * (workload.calls or workload.epochs)
    assert all((a[0], b[1]) == out and a[1] == b[0] for a, b, out in shapes)
    rows = sum(b[0] for a, b, _ in shapes if a[0] == workload.sizes[0] and b[1] == workload.sizes[1])
    if not workload.predicts and workload.sizes[0] not in workload.sizes[1:]:
        assert rows == workload.rows * workload.epochs


def test_the_start_is_the_estimators():
    from sklearn.neural_network import MLPClassifier

    for workload in (TINY["logistic"], TINY["float32"]):
        data, start = make_data(workload), make_start(workload)
        model = MLPClassifier(
            workload.sizes[1:-1],
            activation=workload.hidden,
            solver="sgd",
            learning_rate_init=1e-300,
            max_iter=1,
            batch_size=4,
            random_state=SEED,
        )
        with pytest.warns(match="Maximum iterations"):
            model.fit(data.X, data.labels)
        for (weight, bias), coefs, intercepts in zip(start.layers, model.coefs_, model.intercepts_):
            np.testing.assert_array_equal(weight, coefs, strict=True)
            np.testing.assert_array_equal(bias, intercepts, strict=True)


# What follows from given seconds and losses.


def given(**outcomes):
    workload = Workload("given", (2, 2, 1), "tanh", 4, "float64", epochs=10)
    names = {"ours": "mlp_xp", "sklearn": "scikit-learn", "torch": "PyTorch", "limit": "limit"}
    made = {names[key]: Outcome(names[key], *values) for key, values in outcomes.items()}
    return Comparison(workload, made)


def test_ratios_of_given_seconds():
    comparison = given(
        ours=([1.0, 2.0, 4.0], [5], 0.5),
        sklearn=([3.0, 4.0, 4.0], [7], 0.5),
        torch=([0.5, 0.5, 9.0], [], 0.5),
        limit=([0.1, 0.2, 0.4], [], None),
    )
    rows = {row.name: row for row in comparison.rows()}
    assert [row.ratio for row in rows.values()] == [1.0, 2.0, 0.5, pytest.approx(0.1)]
    assert (rows["mlp_xp"].per_unit, rows["mlp_xp"].spread) == (0.2, pytest.approx(0.15))
    assert (rows["mlp_xp"].peak_bytes, rows["PyTorch"].peak_bytes) == (5, None)
    said = summary.summarise(comparison)
    assert (said.fastest_peer, said.against_fastest_peer, said.against_limit) == (
        "PyTorch",
        4.0,
        pytest.approx(10.0),
    )
    other = given(ours=([1.0], [], 0.5), sklearn=([8.0], [], 0.5))
    assert summary.speedup_over("scikit-learn", [comparison, other]) == pytest.approx(4.0)
    assert json.loads(json.dumps(comparison.as_json()))["rows"][1]["ratio"] == 2.0


def test_a_different_loss_has_no_ratio():
    comparison = given(
        ours=([1.0], [], 0.5), sklearn=([1.0], [], 0.5 * (1 + 3e-8)), torch=([1.0], [], 0.5 * (1 + 3e-9))
    )
    ours, sklearn, torch = comparison.rows()
    assert (ours.ratio, sklearn.ratio, torch.ratio) == (1.0, None, 1.0)
    assert sklearn.problem == "different loss (0.500000015)"
    assert summary.summarise(comparison).fastest_peer == "PyTorch"
    assert "different loss (0.500000015)" in shown(report.comparison_table(comparison))


def test_nothing_is_compared_with_ours_if_its_loss_is_the_odd_one():
    comparison = given(ours=([1.0], [], 0.6), sklearn=([1.0], [], 0.5), torch=([1.0], [], 0.5))
    assert [row.ratio for row in comparison.rows()] == [None, None, None]
    assert summary.summarise(comparison) is None
    assert "nothing to compare" in shown(report.summary_table([comparison]))


def test_nan_is_no_loss():
    losses = {"a": 0.5, "b": 0.5, "c": math.nan}
    assert evaluation.odd_ones(losses, 1e-4) == {"c"}


def test_spread():
    assert Timings({"one": [1.0, 2.0, 3.0, 4.0, 5.0]}).spread("one") == 2.0
    assert Timings({"one": [1.0]}).spread("one") == 0.0


# Workers.


def test_missing_and_failing_participants_are_one_line_each(monkeypatch):
    missing = participants.Participant("missing", "no_such_library", "prepare", ("cpu",), "")
    failing = participants.Participant("failing", "json", "loads", ("cpu",), "")
    monkeypatch.setitem(participants.PARTICIPANTS, "missing", missing)
    monkeypatch.setitem(participants.PARTICIPANTS, "failing", failing)
    monkeypatch.setattr(comparing, "Worker", InProcess)
    comparison = new_comparison(TINY["logistic"], ["mlp_xp", "missing", "failing"])
    comparing.measure(comparison, device="cpu", threads=1, repeats=2)
    ours, missing, failing = comparison.rows()
    assert len(comparison.outcomes["mlp_xp"].seconds) == 2
    assert ours.ratio == 1.0
    assert (missing.ratio, missing.problem) == (None, "not installed (No module named 'no_such_library')")
    assert failing.problem.startswith("TypeError: ")
    console = Console(width=200)
    with console.capture() as capture:
        report.print_comparison(console, comparison)
    lines = capture.get().splitlines()
    assert "xor: missing: not installed (No module named 'no_such_library')" in "\n".join(lines)


class InProcess(workers.Worker):
    """A worker without a process, which answers before it is asked."""

    def __init__(self, name, workload, device, threads):
        self.answers = []
        commands = iter([make_data(workload), "repeat", "outcome", "repeat", "repeat", "outcome"])
        self.connection = self
        self.commands = commands
        workers._serve(self, name, workload, device, threads)

    def send(self, answer):
        if isinstance(answer, tuple) and len(answer) == 2:
            self.answers.append(answer)

    def recv(self):
        command = next(self.commands, None)
        if command is None:
            raise EOFError
        return command

    def _answer(self):
        answer, problem = self.answers.pop(0)
        if problem:
            raise workers.WorkerError(problem)
        return answer

    def end(self):
        pass


def test_a_worker_in_a_process():
    worker = workers.Worker("textbook", TINY["logistic"], "cpu", 1)
    try:
        data = make_data(TINY["logistic"])
        worker.prepare(data)
        assert worker.repeat().seconds > 0
        found = evaluation.loss_of(TINY["logistic"], data, worker.outcome())
        assert found == pytest.approx(loss("textbook", TINY["logistic"]))
        worker.process.kill()
        with pytest.raises(workers.WorkerError, match="ended with exit code"):
            worker.repeat()
    finally:
        worker.end()


def test_peak_memory_is_that_of_a_repeat():
    watch = memory.HostMemory()
    if not watch.resets:
        pytest.skip("peaks cannot be reset on this system")
    np.ones(4_000_000).sum()
    assert watch.peak() > 30e6
    watch.reset()
    assert watch.peak() < 30e6


# The command.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "argument --only: invalid choice: 'nonsense'"),
        (["--peers", "nobody"], "argument --peers: invalid choice: 'nobody'"),
        (["--repeats", "0"], "argument --repeats: must be a whole number >= 1, got '0'"),
        (["--threads", "0"], "argument --threads: must be 1 to"),
        (["--device", "cuda", "--peers", "textbook"], "--peers: textbook does not run on cuda"),
        (["--out", __file__], "--out: cannot write to"),
        (["costs", "--repeats", "few"], "argument --repeats: must be a whole number >= 1, got 'few'"),
        (["growth", "--only", "sideways"], "argument --only: invalid choice: 'sideways'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    monkeypatch.setattr(peers, "measure", None)
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_no_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(peers, "gpu_name", lambda: None)
    with pytest.raises(SystemExit):
        peers.main(["--device", "cuda"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "the CUDA driver finds no GPU" in line


def test_a_run_writes_what_was_measured_also_when_interrupted(monkeypatch, capsys, tmp_path):
    def measure(comparison, **_):
        if comparison.workload.name == "cancer-f32":
            raise KeyboardInterrupt
        for number, outcome in enumerate(comparison.outcomes.values(), start=1):
            outcome.seconds, outcome.loss, outcome.peak_bytes = [float(number)] * 3, 0.5, [1_000_000]
        comparison.outcomes["PyTorch"] = Outcome("PyTorch", error="not installed")

    monkeypatch.setattr(peers, "measure", measure)
    monkeypatch.setattr(peers, "limit_threads", lambda threads: None)
    peers.main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "interrupted" in printed
    (written,) = tmp_path.glob("*-cpu-quick.json")
    content = json.loads(written.read_text())
    assert [result["workload"]["name"] for result in content["results"]] == ["xor"]
    assert content["results"][0]["outcomes"][0]["seconds"] == [1.0, 1.0, 1.0]
    assert content["results"][0]["rows"][4]["per_unit"] is None
    assert content["summary"]["workloads"][0]["workload"] == "xor"
    assert {"versions", "machine", "blas", "threads", "python", "date"} <= content.keys()
    assert re.search("torch.compile", printed), "what is left out must be said"
    assert bool(list(tmp_path.glob("*-cpu-quick.png"))) == bool(find_spec("matplotlib"))


def test_the_list_names_all(capsys):
    peers.main(["--list"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*WORKLOADS, *participants.PARTICIPANTS])
    assert quick_ones().keys() < WORKLOADS.keys()


def test_a_picture_of_growth(tmp_path):
    pytest.importorskip("matplotlib")
    points = [growth.Point("mlp_xp.train", 10, 0.1, 1000), growth.Point("scikit-learn", 10, 0.2, None)]
    about = {"around": "this", "machine": "a machine", "threads": 1}
    growth.draw("rows", points, about, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", growth.AXES)
def test_growth_changes_one_thing(name):
    axis = growth.AXES[name]
    assert growth.BASE in [axis.at(value) for value in (*axis.values, 2, 256, 8000)]
    assert len({axis.at(value) for value in axis.values}) == len(axis.values)


def shown(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
