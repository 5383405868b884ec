"""The GPU check's runner of stages, on stages that need no GPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "stages.py"
if not SCRIPT.exists():
    pytest.skip("a checkout has it, what is installed has not", allow_module_level=True)

spec = importlib.util.spec_from_file_location("stages", SCRIPT)
stages = importlib.util.module_from_spec(spec)
sys.modules["stages"] = stages
spec.loader.exec_module(stages)

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_one" time="0.1"></testcase>
<testcase classname="tests.test_a" name="test_two[x]">
<failure message="AssertionError: no,&#10;  not at all">def test():
    assert False
E       AssertionError: no,
E         not at all
</failure></testcase>
<testcase classname="tests.test_a" name="test_three"><skipped message="none here"/></testcase>
<testcase classname="tests.test_b" name="test_four"><error message="failed on setup">
E   OSError: gone</error></testcase>
<testcase classname="tests.test_b" name="test_five"/>
</testsuite></testsuites>"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Return what makes a stage of a Python program, and of the junit file that it writes."""
    monkeypatch.setattr(stages, "GRACE_SECONDS", 0.5)

    def make(program, limit=20.0, name="fake", namespaces=()):
        junit = tmp_path / f"{name}.xml"
        head = f"import os, signal, subprocess, sys, time\nJUNIT = {str(junit)!r}\nTEXT = {JUNIT!r}\n"
        command = [sys.executable, "-c", head + program]
        count = partial(stages.count_junit, namespaces)
        return stages.Stage(name, command, limit, tmp_path, junit.name, count)

    return make


def run(stage, tmp_path):
    with (tmp_path / "log").open("w") as log:
        return stages.run(stage, log)


WRITES = "open(JUNIT, 'w').write(TEXT)\n"
ONLY_PASSES = (
    "open(JUNIT, 'w').write(TEXT.split('<testcase')[0] + '<testcase name=\"a\"/></testsuite></testsuites>')\n"
)


def test_tests_are_counted(stage, tmp_path):
    result = run(stage(WRITES + "print('said'); sys.exit(1)"), tmp_path)
    assert (result.passed, len(result.failures)) == (2, 2)
    assert result.failures[0] == ("tests.test_a::test_two[x]", "AssertionError: no, not at all")
    assert result.failures[1] == ("tests.test_b::test_four", "OSError: gone")
    assert "said" in (tmp_path / "log").read_text()
    assert run(stage(ONLY_PASSES), tmp_path)[1:3] == (1, [])


def test_an_exit_code_alone_is_a_failure(stage, tmp_path):
    result = run(stage(ONLY_PASSES + "sys.exit(3)"), tmp_path)
    assert result[1:3] == (1, [("fake", "exit code 3")])
    (failure,) = run(stage("print('wrong option')\nprint()\nsys.exit(4)", name="other"), tmp_path).failures
    assert failure.reason == "exit code 4; no results (other.xml); its last line: wrong option"


def test_a_crash_counts_what_came_before(stage, tmp_path):
    result = run(stage(WRITES + "os.kill(os.getpid(), signal.SIGSEGV)"), tmp_path)
    assert result.passed == 2
    assert result.failures[0].reason == "exit code -11 (SIGSEGV)"
    assert len(result.failures) == 3


def test_results_that_are_missing_or_cut_short(stage, tmp_path):
    (failure,) = run(stage("print('nothing')"), tmp_path).failures
    assert failure.reason == "no results (fake.xml); its last line: nothing"
    (failure,) = run(stage("open(JUNIT, 'w').write('<testsuites/>')"), tmp_path).failures
    assert "no test in fake.xml" in failure.reason
    (failure,) = run(stage("open(JUNIT, 'w')"), tmp_path).failures
    assert "fake.xml breaks off" in failure.reason
    cut = "open(JUNIT, 'w').write(TEXT[:TEXT.index('<testcase classname=\"tests.test_b\"') + 20])"
    result = run(stage(cut), tmp_path)
    assert (result.passed, len(result.failures)) == (1, 2)
    assert result.failures[0].reason.startswith("fake.xml breaks off (")
    (failure,) = run(stage("")._replace(command=["/no/such/program"]), tmp_path).failures
    assert "does not start" in failure.reason


def test_results_of_an_earlier_run_do_not_count(stage, tmp_path):
    assert run(stage(ONLY_PASSES), tmp_path)[1:3] == (1, [])
    (failure,) = run(stage(""), tmp_path).failures
    assert failure.reason.startswith("no results")
    assert run(stage(ONLY_PASSES), tmp_path)[1:3] == (1, [])


def test_a_namespace_that_nothing_ran_in_is_a_failure(stage, tmp_path):
    passes = ONLY_PASSES.replace('name="a"', 'name="test_cupy[torch_cuda-1]"')
    result = run(stage(passes, namespaces=["cupy", "torch_cuda"]), tmp_path)
    assert result[1:3] == (1, [("cupy", "no test of it ran")])


def test_what_a_stage_says_is_in_the_log_as_it_comes(stage, tmp_path):
    """Also where it has no time to write what it holds back."""
    run(stage("print('said')\nos.kill(os.getpid(), signal.SIGKILL)"), tmp_path)
    assert "said" in (tmp_path / "log").read_text()


def test_time_is_limited_and_what_was_written_counts(stage, tmp_path):
    polite = (
        "def end(*_):\n    open(JUNIT, 'w').write(TEXT)\n    sys.exit(2)\n"
        "signal.signal(signal.SIGINT, end)\ntime.sleep(60)"
    )
    start = time.monotonic()
    result = run(stage(polite, limit=1.0), tmp_path)
    assert time.monotonic() - start < 10
    assert (result.passed, result.failures[0].reason) == (2, "time limit of 1 s")
    assert len(result.failures) == 3


@pytest.mark.slow
def test_who_does_not_listen_is_ended_with_all_that_it_started(stage, tmp_path):
    stubborn = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    result = run(stage(stubborn, limit=1.5), tmp_path)
    assert time.monotonic() - start < 10
    assert result.failures == [("fake", "time limit of 1.5 s; no results (fake.xml); its last line: none")]
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_running(int(pid))


HANGS = """
import signal
import time
import pytest

@pytest.mark.parametrize("number", range(3))
def test_passes(number):
    pass

def test_hangs():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    time.sleep(60)
"""


@pytest.mark.slow
def test_what_pytest_knows_counts_though_a_worker_hangs(tmp_path, monkeypatch):
    pytest.importorskip("xdist")
    monkeypatch.setattr(stages, "GRACE_SECONDS", 2.0)
    (tmp_path / "test_hangs.py").write_text(HANGS)
    stage = stages.pytest_stage("tests", 5.0, tmp_path, 1, [str(tmp_path / "test_hangs.py")])
    result = run(stage._replace(count=partial(stages.count_junit, ())), tmp_path)
    assert result.passed == 3 + 1  # the one under way too
    assert result.failures == [("tests", "time limit of 5 s")]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_stage_stops_no_other(stage, tmp_path, capsys):
    these = [
        stage("os.kill(os.getpid(), signal.SIGKILL)", name="first"),
        stage("time.sleep(60)", limit=0.3, name="second"),
        stage(ONLY_PASSES, name="third"),
    ]
    assert stages.run_all(these, tmp_path / "log") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("third: ")][1].startswith("third: 1 passed, 0 failed, ")
    at = lines.index("stage       passed  failed  seconds")
    assert [line.split()[:3] for line in lines[at + 1 : at + 4]] == [
        ["first", "0", "1"],
        ["second", "0", "1"],
        ["third", "1", "0"],
    ]
    assert [line.partition(";")[0] for line in lines[at + 4 :]] == [
        "first: first: exit code -9 (SIGKILL)",
        "second: second: time limit of 0.3 s",
    ]
    assert stages.run_all(these[2:], tmp_path / "log") == 0


def test_the_table_has_sixty_lines_at_most():
    failures = [stages.Failure(f"tests::test_{number}", "x" * 500) for number in range(100)]
    results = [stages.Result(name, 5, failures, 1.0) for name in ("probe", "tests", "quick")]
    lines = stages.table(results)
    assert len(lines) == 60
    assert max(map(len, lines)) <= 160
    shown = len(lines) - 5
    assert lines[-1] == f"and {300 - shown} more"
    assert len(stages.table([stages.Result("probe", 5, failures[:3], 1.0)])) == 5


def test_measurements_are_counted(tmp_path):
    rows = [{"label": "mlp_xp", "problem": ""}, {"label": "PyTorch", "problem": "not installed"}]
    results = [
        {"workload": {"name": "planar"}, "rows": rows},
        {"workload": {"name": "adam"}, "rows": rows[:1]},
    ]
    content = json.dumps({"results": results})
    (tmp_path / "old.json").write_text("{}")
    stage = stages.benchmark_stage("quick", 20.0, tmp_path, [])._replace(
        command=[sys.executable, "-c", f"open({str(tmp_path / 'new.json')!r}, 'w').write({content!r})"]
    )
    for _ in range(2):  # the second run writes the file of the same day again
        result = run(stage, tmp_path)
        assert result[1:3] == (2, [("planar: PyTorch", "not installed")])
    (failure,) = run(stage._replace(command=[sys.executable, "-c", ""]), tmp_path).failures
    assert failure.reason.startswith("no results")


def test_what_the_benchmark_writes_can_be_counted(tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("sklearn", minversion="1.9")
    from benchmarks.comparison import Outcome, new_comparison
    from benchmarks.workloads import WORKLOADS

    comparison = new_comparison(WORKLOADS["xor"], ["mlp_xp", "JAX"])
    comparison.outcomes["mlp_xp"] = Outcome("mlp_xp", [1.0], [5], 0.5)
    comparison.outcomes["JAX"] = Outcome("JAX", error="not installed")
    path = tmp_path / "new.json"
    path.write_text(json.dumps({"results": [comparison.as_json()]}))
    assert stages.count_benchmark(path) == (1, [("xor: JAX", "not installed")], "")


def test_what_the_costs_write_can_be_counted(tmp_path):
    path = tmp_path / "costs.json"

    def result(value):
        about = {"name": "streaming", "result_is": "of epochs", "target": 1.43}
        return {**about, "medians": {"on the device": 1.0, "streamed": 1.0}, "result": value}

    path.write_text(json.dumps({"results": [result(1.2)]}))
    assert stages.count_costs(path) == (2, [], "")
    path.write_text(json.dumps({"results": [result(1.5), result(float("nan"))]}))
    measured, failures, _ = stages.count_costs(path)
    assert measured == 4
    assert failures == [
        ("streaming", "1.5 of epochs, more than 1.43"),
        ("streaming", "nan of epochs, more than 1.43"),
    ]
    path.write_text(json.dumps({"results": []}))
    assert stages.count_costs(path).problem == "nothing in costs.json"


def test_stages_stay_under_five_minutes_by_default_and_all_measurements_under_ten(tmp_path):
    known = stages.project_stages(tmp_path)
    assert list(known) == ["probe", "tests", "quick", "streaming", "full"]
    by_name = [known[name].limit for name in stages.ONLY_BY_NAME]
    assert sum(stage.limit for stage in known.values()) - sum(by_name) < 300
    assert sum(by_name) < 600


# The command itself.


def ask(*names, **environment):
    return subprocess.run(
        ["bash", str(ROOT / ".ci" / "gpu"), *names],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        check=False,
    )


@pytest.mark.skipif(not stages.gpu_problem(), reason="there is a GPU here")
def test_without_a_gpu_each_stage_says_what_is_missing(tmp_path):
    answer = ask(OUT=str(tmp_path))
    assert answer.returncode == 2
    lines = answer.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["probe", "tests", "quick"]
    assert all("CUDA driver" in line for line in lines)
    assert [line.partition(":")[0] for line in ask("full", OUT=str(tmp_path)).stdout.splitlines()] == ["full"]
    assert not list(tmp_path.iterdir())


def test_an_unknown_stage_is_one_line(tmp_path):
    answer = ask("probe", "sprint", OUT=str(tmp_path))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.splitlines()[-1:] == [
        "unknown stage 'sprint'; there are probe, tests, quick, streaming, full"
    ]


def test_missing_modules_are_named():
    stage = stages.Stage("some", [], 1.0, Path(), "", dict, {}, ["json", "no_such_module"])
    assert stages.missing_for(stage, ["no GPU"]) == ["no GPU", "not installed: no_such_module"]
    assert stages.missing_for(stage, []) == ["not installed: no_such_module"]
    assert stages.missing_for(stage._replace(needs=["json"]), []) == []


def test_stages_that_can_run_do(stage, tmp_path, monkeypatch, capsys):
    able, other = stage(ONLY_PASSES, name="able"), stage("", name="other")._replace(needs=["no_such_module"])
    monkeypatch.setattr(stages, "project_stages", lambda out: {"able": able, "other": other})
    monkeypatch.setattr(stages, "gpu_problem", lambda: "")
    monkeypatch.setenv("OUT", str(tmp_path))
    before = signal.getsignal(signal.SIGINT)
    assert [stages.main(names) for names in ([], ["able"], ["other"])] == [2, 0, 2]
    signal.signal(signal.SIGINT, before)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == "other: not installed: no_such_module"
    assert "able: 1 passed, 0 failed, 0 s" in lines


def run_copy(tmp_path, tag):
    """Run a copy of the script beside a wheel, and a stand-in for the runner that imports what is in it."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".whl").mkdir()
    (tmp_path / ".ci" / "gpu").write_text((ROOT / ".ci" / "gpu").read_text())
    (tmp_path / ".ci" / "stages.py").write_text(
        "import os, sys\n"
        "print(os.environ.get('WHEELS_PROBLEM') or __import__('carried').VALUE, *sys.argv[1:])"
    )
    with zipfile.ZipFile(tmp_path / ".whl" / f"carried-1.0-{tag}.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 'from the wheel'")
        information = {
            "METADATA": "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n",
            "WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
            "RECORD": "",
        }
        for name, content in information.items():
            wheel.writestr(f"carried-1.0.dist-info/{name}", content)
    answer = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "gpu"), "probe"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_wheels_are_used_before_what_is_installed(tmp_path):
    assert run_copy(tmp_path, "py3-none-any") == "from the wheel probe"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ci", ".whl"]


def test_a_wheel_that_does_not_fit_is_one_of_the_things_missing(tmp_path):
    said = run_copy(tmp_path, "cp35-cp35m-win32")
    assert said.startswith("the wheels in .whl/ do not install: ERROR: carried-1.0-cp35-cp35m-win32.whl ")
    assert len(said.splitlines()) == 1
