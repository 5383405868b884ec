"""Stages of a GPU check: each a command under its own time limit, all of them counted in one table.

Run by ``.ci/gpu``, from a checkout's root.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO
from xml.etree import ElementTree

LINES = 60
"""Of the closing table, at most."""

WIDTH = 160
GRACE_SECONDS = 10.0
"""Between asking a stage to end, so that it writes what it has, and ending it."""

MISSING, FAILED = 2, 1
"""Exit codes."""


class Failure(NamedTuple):
    """What failed in a stage, and why, in one line."""

    name: str
    reason: str


class Result(NamedTuple):
    """What became of a stage."""

    stage: str
    passed: int
    failures: list[Failure]
    seconds: float


class Stage(NamedTuple):
    """A command, and where it leaves what there is to count.

    Attributes
    ----------
    name : str
    command : list of str
    limit : float
        Seconds.
    count : callable ``() -> (passed, failures)``
        Reads what the command wrote; raises an OSError or a ValueError where it wrote nothing readable.
    environment : mapping
    needs : list of str
        Modules.
    """

    name: str
    command: Sequence[str]
    limit: float
    count: Callable[[], tuple[int, list[Failure]]]
    environment: Mapping[str, str] = {}
    needs: Sequence[str] = ()


def run_all(stages: Sequence[Stage], log: Path) -> int:
    """Run stages one after the other, whatever becomes of each; print the table, return the exit code."""
    results = []
    with log.open("w", encoding="utf-8") as file:
        for stage in stages:
            print(f"{stage.name}: at most {stage.limit:.0f} s ...", flush=True)
            results.append(run(stage, file))
    print("\n".join(table(results)), flush=True)
    return FAILED if any(result.failures for result in results) else 0


def run(stage: Stage, log: TextIO) -> Result:
    """Run one stage; what it prints goes to the log as it comes."""
    start = time.monotonic()
    log.write(f"\n== {stage.name}: {' '.join(stage.command)}\n")
    log.flush()
    try:
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **stage.environment},
            start_new_session=True,
        )
    except OSError as error:
        return Result(stage.name, 0, [Failure(stage.name, f"it does not start: {error}")], 0.0)
    problem = _wait(process, stage.limit)
    try:
        passed, failures = stage.count()
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        passed, failures = 0, []
        problem = problem or f"it left no results ({type(error).__name__}: {error})"
    if not problem and process.returncode and not failures:
        problem = f"exit code {process.returncode}"
    if problem:
        failures = [Failure(stage.name, problem), *failures]
    return Result(stage.name, passed, failures, time.monotonic() - start)


def _wait(process: subprocess.Popen[bytes], limit: float) -> str:
    """Wait until a process ends, or make it; return what was wrong with how it ended."""
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        # Like Ctrl-C: pytest then writes the results that it has, and so does the benchmark.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        return f"time limit of {limit:g} s"
    finally:
        _end_group(process)
    # Python's own convention: a negative code is a signal's number.
    return f"ended by {signal.Signals(-code).name}" if code < 0 else ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started and left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# What stages leave.


def count_junit(path: Path) -> tuple[int, list[Failure]]:
    """Count the tests in pytest's junit file, also of one that breaks off."""
    passed, failures = 0, []
    for case in _cases(path):
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        if problem is not None:
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            failures.append(Failure(name, _one_line(problem.get("message"), problem.text)))
        elif case.find("skipped") is None:
            passed += 1
    if not passed and not failures:
        raise ValueError(f"no test in {path.name}")
    return passed, failures


def _cases(path: Path) -> Iterator[ElementTree.Element]:
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "testcase":
                yield element
    except ElementTree.ParseError:
        return  # cut short: what came before counts


def _one_line(message: str | None, text: str | None) -> str:
    """Return the last line that says something: of pytest's text the one with the error."""
    lines = [line for line in (message or text or "").splitlines() if line.strip()]
    errors = [line[1:].strip() for line in (text or "").splitlines() if line.startswith("E ")]
    return (errors or lines or ["no message"])[0 if errors else -1].strip()


def count_benchmark(folder: Path, before: set[Path]) -> tuple[int, list[Failure]]:
    """Count who was measured in the benchmark's results that are new, and who was not."""
    new = sorted(set(folder.glob("*.json")) - before, key=lambda path: path.stat().st_mtime)
    if not new:
        raise FileNotFoundError("no new results")
    passed, failures = 0, []
    for result in json.loads(new[-1].read_text(encoding="utf-8"))["results"]:
        for row in result["rows"]:
            if row["problem"]:
                failures.append(Failure(f"{result['workload']['name']}: {row['label']}", row["problem"]))
            else:
                passed += 1
    return passed, failures


# The table.


def table(results: Sequence[Result]) -> list[str]:
    """Return what became of all stages, and the first failures, in at most `LINES` lines."""
    lines = [f"{'stage':<10}{'passed':>8}{'failed':>8}{'seconds':>9}"]
    for result in results:
        failed = len(result.failures)
        lines.append(f"{result.stage:<10}{result.passed:>8}{failed:>8}{result.seconds:>9.1f}")
    failures = [(result.stage, failure) for result in results for failure in result.failures]
    room = LINES - len(lines)
    shown = failures if len(failures) <= room else failures[: room - 1]
    lines += [f"{stage}: {failure.name}: {failure.reason}"[:WIDTH] for stage, failure in shown]
    if len(shown) < len(failures):
        lines.append(f"and {len(failures) - len(shown)} more")
    return lines


# The stages of this project.


def pytest_stage(name: str, limit: float, out: Path, n_workers: int, arguments: Sequence[str]) -> Stage:
    """Return a stage of tests."""
    junit = out / f"{name}.xml"
    junit.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"),
        *("-o", "addopts=", "-o", "faulthandler_timeout=60", "-n", str(n_workers)),
        *(f"--junitxml={junit}", *arguments),
    ]
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_PLATFORMS": "cuda,cpu",
        "JAX_ENABLE_X64": "1",
    }
    needs = ("cupy", "torch", "jax", "nvmath", "array_api_compat", "pytest", "xdist")
    return Stage(name, command, limit, lambda: count_junit(junit), environment, needs)


def benchmark_stage(name: str, limit: float, out: Path, arguments: Sequence[str]) -> Stage:
    """Return a stage of measurements."""
    before = set(out.glob("*.json"))
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--out", str(out), *arguments]
    needs = ("cupy", "torch", "jax", "nvmath", "array_api_compat", "rich", "sklearn")
    return Stage(name, command, limit, lambda: count_benchmark(out, before), {}, needs)


def project_stages(out: Path) -> dict[str, Stage]:
    """Return the stages by name, in the order they run. All but `full` together stay under five minutes."""
    namespaces = "cupy,torch_cuda,jax_cuda"
    all_cores = min(16, len(os.sched_getaffinity(0)))
    require = ["--require", namespaces]
    stages = [
        pytest_stage("probe", 60, out, 4, [*require, "-m", "cuda", "tests/test_cuda.py"]),
        pytest_stage("tests", 120, out, all_cores, [*require, "--libraries", namespaces, "tests"]),
        benchmark_stage("quick", 110, out, ["--quick"]),
        benchmark_stage("full", 540, out, []),
    ]
    return {stage.name: stage for stage in stages}


def missing_for(stage: Stage, gpu_problem: str) -> list[str]:
    """Return what keeps a stage from running on this machine."""
    modules = [name for name in stage.needs if importlib.util.find_spec(name) is None]
    found = [gpu_problem] if gpu_problem else []
    return [*found, f"not installed: {', '.join(modules)}"] if modules else found


def gpu_problem() -> str:
    """Return why no CUDA GPU answers, "" if one does."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no CUDA driver (libcuda.so.1)"
    count = ctypes.c_int()
    code = driver.cuInit(0)
    if code or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"the CUDA driver does not answer (error {code})"
    return "" if count.value else "the CUDA driver finds no GPU"


def describe_machine() -> str:
    """Return what figures mean nothing without: GPU, driver, versions."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "nvidia-smi does not answer"
    from importlib.metadata import distributions

    wanted = ("cupy", "torch", "jax", "numpy", "nvmath-python", "array-api-compat", "scikit-learn")
    found = {one.metadata["Name"].lower(): one.version for one in distributions() if one.metadata["Name"]}
    versions = [f"{name} {version}" for name, version in sorted(found.items()) if name.startswith(wanted)]
    return f"{gpu}\nPython {sys.version.split()[0]}, {', '.join(versions)}"


def main(names: Sequence[str]) -> int:
    """Run the stages of these names, by default all but `full`."""
    out = Path(os.environ.get("OUT") or "benchmarks/results")
    out.mkdir(parents=True, exist_ok=True)
    known = project_stages(out)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown stage {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return MISSING
    chosen = [known[name] for name in (names or [name for name in known if name != "full"])]
    problem = gpu_problem()
    missing = {stage.name: missing_for(stage, problem) for stage in chosen}
    if any(missing.values()):
        for name, what in missing.items():
            print(f"{name}: {'; '.join(what) or 'nothing is missing'}")
        return MISSING
    print(describe_machine(), flush=True)
    return run_all(chosen, out / "gpu.log")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
