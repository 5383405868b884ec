"""The GPU check's runner of stages, on stages that need no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
import time
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
<testcase classname="tests.test_a" name="test_two[x]"><failure message="AssertionError: no">def test():
    assert False
E       AssertionError: no, not at all
E       and more of it
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
    junit = tmp_path / "tests.xml"

    def make(program, limit=20.0, name="fake"):
        head = f"import os, signal, subprocess, sys, time\nJUNIT = {str(junit)!r}\nTEXT = {JUNIT!r}\n"
        command = [sys.executable, "-c", head + program]
        return stages.Stage(name, command, limit, lambda: stages.count_junit(junit))

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


def test_a_crash_counts_what_came_before(stage, tmp_path):
    result = run(stage(WRITES + "os.kill(os.getpid(), signal.SIGSEGV)"), tmp_path)
    assert result.passed == 2
    assert result.failures[0].reason == "ended by SIGSEGV"
    assert len(result.failures) == 3


def test_results_that_are_missing_or_cut_short(stage, tmp_path):
    (failure,) = run(stage("print('nothing')"), tmp_path).failures
    assert "no results" in failure.reason
    (failure,) = run(stage("open(JUNIT, 'w').write('<testsuites/>')"), tmp_path).failures
    assert "no results" in failure.reason
    cut = (
        "open(JUNIT, 'w').write(TEXT[:TEXT.index('<testcase classname=\"tests.test_b\"') + 20])\nsys.exit(1)"
    )
    result = run(stage(cut), tmp_path)
    assert (result.passed, len(result.failures)) == (1, 1)
    (failure,) = run(stages.Stage("none", ["/no/such/program"], 1.0, dict), tmp_path).failures
    assert "does not start" in failure.reason


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
    assert result.failures == [("fake", "time limit of 1.5 s")]
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_running(int(pid))


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
    at = lines.index("stage       passed  failed  seconds")
    assert [line.split()[:3] for line in lines[at + 1 : at + 4]] == [
        ["first", "0", "1"],
        ["second", "0", "1"],
        ["third", "1", "0"],
    ]
    assert lines[at + 4 :] == ["first: first: ended by SIGKILL", "second: second: time limit of 0.3 s"]
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
    old = tmp_path / "old.json"
    old.write_text("{}")
    with pytest.raises(FileNotFoundError):
        stages.count_benchmark(tmp_path, {old})
    rows = [{"label": "mlp_xp", "problem": ""}, {"label": "PyTorch", "problem": "not installed"}]
    results = [
        {"workload": {"name": "planar"}, "rows": rows},
        {"workload": {"name": "adam"}, "rows": rows[:1]},
    ]
    (tmp_path / "new.json").write_text(json.dumps({"results": results}))
    assert stages.count_benchmark(tmp_path, {old}) == (2, [("planar: PyTorch", "not installed")])


def test_what_the_benchmark_writes_can_be_counted(tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("sklearn", minversion="1.9")
    from benchmarks.comparison import Outcome, new_comparison
    from benchmarks.workloads import WORKLOADS

    comparison = new_comparison(WORKLOADS["xor"], ["mlp_xp", "JAX"])
    comparison.outcomes["mlp_xp"] = Outcome("mlp_xp", [1.0], [5], 0.5)
    comparison.outcomes["JAX"] = Outcome("JAX", error="not installed")
    (tmp_path / "new.json").write_text(json.dumps({"results": [comparison.as_json()]}))
    assert stages.count_benchmark(tmp_path, set()) == (1, [("xor: JAX", "not installed")])


def test_all_stages_but_the_full_one_stay_under_five_minutes(tmp_path):
    known = stages.project_stages(tmp_path)
    assert list(known) == ["probe", "tests", "quick", "full"]
    assert sum(stage.limit for name, stage in known.items() if name != "full") < 300
    assert known["full"].limit < 600


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
    assert answer.stderr.splitlines()[-1:] == ["unknown stage 'sprint'; there are probe, tests, quick, full"]


def test_missing_modules_are_named():
    stage = stages.Stage("some", [], 1.0, dict, {}, ["json", "no_such_module"])
    assert stages.missing_for(stage, "no GPU") == ["no GPU", "not installed: no_such_module"]
    assert stages.missing_for(stage, "") == ["not installed: no_such_module"]
    assert stages.missing_for(stage._replace(needs=["json"]), "") == []


def test_wheels_are_used_before_what_is_installed(tmp_path):
    """Run a copy of the script beside a wheel, and a stand-in for the runner that imports what is in it."""
    import zipfile

    (tmp_path / ".ci").mkdir()
    (tmp_path / ".whl").mkdir()
    (tmp_path / ".ci" / "gpu").write_text((ROOT / ".ci" / "gpu").read_text())
    (tmp_path / ".ci" / "stages.py").write_text("import carried, sys; print(carried.VALUE, *sys.argv[1:])")
    with zipfile.ZipFile(tmp_path / ".whl" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 'from the wheel'")
        wheel.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    answer = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "gpu"), "probe"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert (answer.returncode, answer.stdout.strip()) == (0, "from the wheel probe"), answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ci", ".whl"]
