"""The benchmark of processes that train together: its arithmetic, and that it runs. No timings here."""

import json

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn", minversion="1.9")

from benchmarks.processes import command, markdown
from benchmarks.processes.group import Configuration, Group, mpiexec
from benchmarks.processes.projection import (
    Link,
    Measured,
    expected_max,
    fit_link,
    length_multiple,
    project,
)
from benchmarks.workers import WorkerError
from mlp_xp._arrays import placement
from mlp_xp._engines.data_parallel import ShardBatches
from mlp_xp._engines.step_halves import CompiledHalves
from mlp_xp._samples import Samples, Shard

LINK = Link("by hand", latency=0.01, bandwidth=1e8)
MEASURED = Measured(
    batch_size=2,
    n_bytes=1_000_000,
    step=1.0,
    local={1: 0.2, 2: 0.4},
    order={10: 0.01, 1000: 0.03},
    rows=100,
)


def test_an_allreduce_is_bytes_and_latencies():
    # 4 processes: 2 * 3/4 of the bytes, and 2 latencies.
    assert Link("", latency=1e-6, bandwidth=1e9).allreduce(1_000_000, 4) == pytest.approx(0.001502)
    assert LINK.allreduce(1_000_000, 1) == 0.0


@pytest.mark.parametrize("n_processes", [2, 8])
def test_a_fit_finds_the_link(n_processes):
    seconds = {n_bytes: LINK.allreduce(n_bytes, n_processes) for n_bytes in (1000, 1_000_000, 100_000_000)}
    found = fit_link("fitted", seconds, n_processes)
    assert (found.latency, found.bandwidth) == pytest.approx((LINK.latency, LINK.bandwidth))


def test_expected_maximum_of_binomials():
    # One coin each of two: the maximum is 0 in one case of four.
    assert expected_max(1, 2) == pytest.approx(0.75)
    # Two coins each: P(max > 0) = 15/16, P(max > 1) = 1 - (3/4)^2 = 7/16.
    assert expected_max(2, 2) == pytest.approx(22 / 16)
    assert expected_max(100, 1) == 100.0


@pytest.mark.parametrize(("n", "k"), [(1000, 8), (128, 1024), (100_000, 64)])
def test_expected_maximum_is_that_of_batches(n, k):
    drawn = np.random.default_rng(0).multinomial(n, np.full(k, 1 / k), size=2000)
    assert expected_max(n, k) == pytest.approx(drawn.max(axis=1).mean(), rel=0.01)


def test_a_projection_by_hand():
    strong = project(MEASURED, LINK, 2, weak=False)
    # 0.2 s for a row, 0.2 s for each further one; 1 MB at 100 MB/s and a latency; 2 rows at 0.02 s a row,
    # as 100 is in the middle between 10 and 1000 on a logarithm.
    assert strong.rows == pytest.approx(1.375)
    assert strong.local == pytest.approx(0.275)
    assert strong.communication == pytest.approx(0.02)
    assert strong.order == pytest.approx(0.04)
    assert strong.step == pytest.approx(0.335)
    assert strong.speedup == pytest.approx(1 / 0.335)
    assert strong.efficiency == pytest.approx(0.5 / 0.335)


def test_a_projection_of_fixed_work_a_process_by_hand():
    weak = project(MEASURED, LINK, 2, weak=True)
    # Batches of 4: P(max <= 0, 1, 2, 3) = (1/16)^2, (5/16)^2, (11/16)^2, (15/16)^2; more rows than measured.
    assert weak.rows == pytest.approx(4 - 372 / 256)
    assert weak.local == pytest.approx(0.4 + 0.2 * (2 - 372 / 256))
    assert weak.communication == pytest.approx(0.02)
    assert weak.order == pytest.approx(4 * (0.01 + 0.02 * np.log10(20) / 2))
    assert weak.speedup == pytest.approx(2 / (weak.local + weak.communication + weak.order))


def test_one_process_has_neither_messages_nor_padding():
    alone = project(MEASURED._replace(batch_size=1, step=0.23), LINK, 1, weak=False)
    assert (alone.rows, alone.local, alone.communication) == (1.0, 0.2, 0.0)
    assert alone.speedup == pytest.approx(0.23 / 0.22)


@pytest.mark.parametrize(("n", "k"), [(1000, 2), (128, 8), (4096, 4), (5, 2)])
def test_padding_is_the_engines(n, k):
    X = np.zeros((10 * n // k, 1))
    shard = Shard(None, 10 * n)
    batches = ShardBatches(Samples(placement(X=X), X), shard, n, CompiledHalves.pads)
    assert length_multiple(n, k) == batches.multiple


def test_numbers_of_processes_and_rows_to_measure():
    assert command._counts(1) == command._counts(2) == command._counts(3) == [2]
    assert command._counts(16) == [2, 4, 8, 16]
    assert command._row_counts(1000) == [1000, 500, 250, 125, 63, 32, 16, 8, 4, 2, 1]
    assert all(workload.rows % workload.batch == 0 for workload in command.NETWORKS.values())


def test_each_case_has_its_work():
    workload = command.NETWORKS["deep"]
    cases = command._cases(workload, [Configuration(1, 1), Configuration(1, 4), Configuration(4, 1)])
    found = [(one.scaling, *one.configuration, one.workload.rows, one.workload.batch) for one in cases]
    assert found == [
        ("strong", 1, 1, 100_000, 1000),
        ("strong", 1, 4, 100_000, 1000),
        ("weak", 1, 4, 400_000, 4000),
        ("strong", 4, 1, 100_000, 1000),
        ("weak", 4, 1, 400_000, 4000),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "argument --only: invalid choice: 'nonsense'"),
        (["--processes", "1"], "argument --processes: must be a whole number >= 2, got '1'"),
        (["--report", "no.json"], "--report: cannot read 'no.json'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.run(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_process_that_does_not_start_is_an_error():
    with pytest.raises(WorkerError, match="a process ended; exit code 1"):
        Group(Configuration(2, 1), ["false"])


def test_speeds_refer_to_one_thread():
    def measured(scaling, processes, threads, seconds):
        return {"scaling": scaling, "processes": processes, "threads": threads, "seconds_a_step": seconds}

    network = {"measured": [measured("strong", 1, 1, 3.0), measured("strong", 2, 1, 2.0)]}
    network["measured"].append(measured("weak", 2, 1, 4.0))
    assert markdown.speed(network, "strong", 2, 1) == 1.5
    assert markdown.speed(network, "weak", 2, 1) == 1.5  # twice the rows


@pytest.mark.slow
def test_a_quick_run(monkeypatch, capsys, tmp_path):
    pytest.importorskip("mpi4py")
    try:
        mpiexec()
    except WorkerError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(command, "MAX_NUMBERS_ADDED_UP", 1000)
    command.run(
        ["--quick", "--repeats", "1", "--only", "small", "deep", "--processes", "2", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "A projection, not a measurement" in printed
    (written,) = tmp_path.glob("*-processes-quick.json")
    content = json.loads(written.read_text())
    assert {"versions", "machine", "blas", "mpi", "load_before", "date", "arithmetic"} <= content.keys()
    for network in content["workloads"]:
        losses = [one["loss"] for one in network["measured"] if one["scaling"] == "strong"]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-4), "the same work"
        assert [one["engine"] for one in network["measured"]] == ["compiled"] * 5
        assert [len(one["steps"]) for one in network["projected"]] == [9] * 4
    assert len(list(tmp_path.glob("*.png"))) == 1
    # The tables can be made again from the file.
    command.run(["--report", str(written)])
    assert capsys.readouterr().out in printed


def test_different_losses_are_an_error():
    def training(scaling, processes, threads, loss):
        return {"scaling": scaling, "processes": processes, "threads": threads, "loss": loss}

    workload = command.NETWORKS["deep"]
    same = [training("strong", 1, 1, 0.5), training("strong", 2, 1, 0.500001), training("weak", 2, 1, 0.7)]
    command._check_losses(same, workload)
    with pytest.raises(WorkerError, match=r"deep: different losses: 0\.7, 0\.71"):
        command._check_losses([*same, training("weak", 1, 2, 0.71)], workload)
    command._check_losses([*same, training("weak", 1, 4, 0.71)], workload)
