"""Data-parallel training on MPI: the answers of one process, and how faults end all processes."""

from __future__ import annotations

import re
import signal
from importlib import util

import pytest
from conftest import required
from mpi import HERE, mpiexec, needs_mpi

import mlp_xp

pytestmark = needs_mpi

EQUALITY, FAULTS = str(HERE / "processes_equality.py"), str(HERE / "processes_faults.py")


def assert_equal(n_processes, *checks):
    done = mpiexec(n_processes, EQUALITY, *checks)
    assert done.code == 0, done.errors
    assert [line.split()[0] for line in done.said.splitlines()] == list(checks)


def test_two_processes_train_as_one():
    assert_equal(2, "layouts", "seeds")


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_several_processes_train_as_one(n_processes):
    assert_equal(n_processes, "functions", "layouts", "decisions", "eager_steps", "seeds")


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_estimators_learn_from_several_processes_as_from_one(n_processes):
    assert_equal(n_processes, "estimators", "continued_fits")


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_trainings_of_several_processes_go_on(n_processes):
    assert_equal(n_processes, "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_streams_of_several_processes_are_one(n_processes):
    assert_equal(n_processes, "streams")


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 4])
def test_any_number_of_processes_trains_as_one(n_processes):
    assert_equal(n_processes, "functions", "decisions", "seeds", "estimators", "continued_fits")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_processes"), [("strict", 3), ("torch", 3), ("jax", 2)])
def test_every_library_trains_on_several_processes_as_on_one(name, n_processes, request):
    module = {"strict": "array_api_strict"}.get(name, name)
    if util.find_spec(module) is None:
        assert name not in required(request.config), f"{name} is missing"
        pytest.skip(f"{name} is not installed")
    assert_equal(n_processes, name)


# Faults.


def tracebacks(done):
    return done.errors.count("Traceback (most recent call last)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("callback", "KeyError: 'from a callback'\n"),
        ("width", "ValueError: `X` must have shape (n_samples, 5), got (200, 4)\n"),
        ("epochs", "`epochs` must be the same in all processes, got 3 in process 1 and 50 in process 0\n"),
        ("stream", "OSError: from a stream\n"),
        ("batch", "RuntimeError: from a step\n"),
        ("update", "RuntimeError: from an update\n"),
        ("nan", "ValueError: `X` must hold finite numbers, got nan in row 3, column 2\n"),
        ("dtype", "ValueError: `dtype` must be the same in all processes"),
        ("params", "ValueError: `params[0]` must be the same in all"),
        ("labels", "ValueError: Unknown label type: continuous"),
        ("columns", "ValueError: `X.shape[1]` must be the same in all"),
        (
            "elsewhere",
            "process 1 of 2 is at the arguments of evaluate while process 0 is at the arguments of train",
        ),
        (
            "absent",
            "process 1 of 2 is at the end of data_parallel while process 0 is at the arguments of train",
        ),
        ("scipy", "ZeroDivisionError: from a callback of L-BFGS\n"),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_message(fault, message):
    # One of them with a process that neither fails nor collects what the others say.
    n_processes = 3 if fault == "callback" else 2
    done = mpiexec(n_processes, FAULTS, fault)
    assert done.code != 0
    assert message in done.errors
    assert len(re.findall(r"^[\w.]*Error", done.errors, re.M)) - done.errors.count("direct cause") == 1, (
        done.errors
    )
    # All raise where they are, and know why; what was trained is theirs.
    told = done.said.count(f"process 1 of {n_processes}") + done.said.count("the same in all processes")
    assert told >= n_processes - 1, done.said
    if fault in ("callback", "stream", "batch"):
        assert len(set(re.findall(r"history of (\d+)", done.said))) == 1, done.said


@pytest.mark.slow
def test_an_error_outside_of_trainings_ends_all():
    done = mpiexec(2, FAULTS, "outside")
    assert done.code != 0
    assert done.errors.count("OSError: no such file") == 1
    assert "process 1 of 2 has failed, which ends all" in done.errors
    assert done.seconds < 20.0


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all():
    done = mpiexec(2, FAULTS, "killed")
    assert done.code != 0
    assert re.search(r"rank 1 with PID \d+ .*exited on\s+signal 9", done.errors), done.errors
    assert tracebacks(done) == 0
    assert done.seconds < 20.0


@pytest.mark.slow
def test_a_slow_process_is_waited_for():
    done = mpiexec(2, FAULTS, "slow")
    assert (done.code, done.errors) == (0, "")
    assert done.said.splitlines().count("trained 50 epochs") == 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["interrupted", "terminated"])
def test_an_interrupt_ends_all_after_the_same_step(fault):
    done = mpiexec(2, FAULTS, fault)
    assert done.code == 0, done.errors
    assert done.said.splitlines().count("trained 20 epochs") == 2, done.said
    assert "training interrupted after 20 epochs; returning what was trained" in done.errors


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_mpiexec_interrupted_leaves_time_to_keep_what_was_trained(by, tmp_path):
    done = mpiexec(2, FAULTS, "long", str(tmp_path), interrupt_at="training", by=by)
    assert done.code != 0
    kept = [(tmp_path / f"epochs-{rank}").read_text() for rank in range(2)]
    assert kept[0] == kept[1]
    assert int(kept[0]) > 0


# One process.


def test_one_process_needs_no_mpiexec():
    from mpi4py import MPI

    with mlp_xp.data_parallel(MPI.COMM_WORLD) as processes:
        assert (processes.rank, processes.size, processes.rows(7)) == (0, 1, slice(0, 7))
        from mlp_xp._processes import current_processes

        assert current_processes() is None  # everything is as outside


def test_arguments_of_data_parallel():
    from mpi4py import MPI

    for comm, name in (("world", "str"), (MPI.COMM_NULL, "Comm")):
        message = f"`comm` must be an intracommunicator of mpi4py, got {name}"
        with pytest.raises(TypeError, match=message), mlp_xp.data_parallel(comm):
            pass
    twice = pytest.raises(RuntimeError, match="must not be entered a second time")
    with mlp_xp.data_parallel(), twice, mlp_xp.data_parallel():
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
