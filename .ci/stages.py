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
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple, TextIO
from xml.etree import ElementTree

LINES = 60
"""Of the closing table, at most."""

WIDTH = 160
GRACE_SECONDS = 10.0
"""Between asking a stage to end, so that it writes what it has, and ending it."""

FAILED, MISSING = 1, 2
"""Exit codes."""

ONLY_BY_NAME = ("streaming", "full")
"""The stages that run only if they are named."""

NAMESPACES = ("cupy", "torch_cuda", "jax_cuda")


class Failure(NamedTuple):
    """What failed in a stage, and why, in one line."""

    name: str
    reason: str


class Counted(NamedTuple):
    """What a stage's results say; `problem` is what is wrong with the file itself, "" if nothing is."""

    passed: int = 0
    failures: Sequence[Failure] = ()
    problem: str = ""


class Result(NamedTuple):
    """What became of a stage."""

    stage: str
    passed: int
    failures: list[Failure]
    seconds: float

    def __str__(self) -> str:
        return f"{self.stage:<10}{self.passed:>8}{len(self.failures):>8}{self.seconds:>9.1f}"


class Stage(NamedTuple):
    """A command, and where it leaves what there is to count.

    Attributes
    ----------
    name : str
    command : list of str
    limit : float
        Seconds.
    out : Path
        The folder that it writes its results in.
    pattern : str
        Which of the files there are results.
    count : callable ``path -> Counted``
        Reads such a file.
    environment : mapping
    needs : list of str
        Modules.
    """

    name: str
    command: Sequence[str]
    limit: float
    out: Path
    pattern: str
    count: Callable[[Path], Counted]
    environment: Mapping[str, str] = {}
    needs: Sequence[str] = ()


def run_all(stages: Sequence[Stage], log: Path) -> int:
    """Run stages one after the other, whatever becomes of each; print the table, return the exit code."""
    results = []
    with log.open("w", encoding="utf-8") as file:
        for stage in stages:
            print(f"{stage.name}: at most {stage.limit:g} s; its output goes to {log} ...", flush=True)
            result = run(stage, file)
            results.append(result)
            counts = f"{result.passed} passed, {len(result.failures)} failed"
            print(f"{stage.name}: {counts}, {result.seconds:.0f} s", flush=True)
    print("\n".join(table(results)), flush=True)
    return FAILED if any(result.failures for result in results) else 0


def run(stage: Stage, log: TextIO) -> Result:
    """Run one stage; what it prints goes to the log as it comes."""
    start, before = time.monotonic(), _versions(stage)
    log.write(f"\n== {stage.name}: {' '.join(stage.command)}\n")
    log.flush()
    start_of_output = os.fstat(log.fileno()).st_size
    try:
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Unbuffered: what a stage said before it crashed or was killed is in the log.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
            start_new_session=True,
        )
    except OSError as error:
        return Result(stage.name, 0, [Failure(stage.name, f"it does not start: {error}")], 0.0)
    problem = _wait(process, stage.limit)
    counted = _count(stage, before)
    if not counted.failures and not problem and process.returncode:
        problem = f"exit code {process.returncode}"
    problem = "; ".join(filter(None, (problem, counted.problem)))
    failures = list(counted.failures)
    if problem:
        if not counted.passed:
            problem += f"; its last line: {_last_line(Path(log.name), start_of_output)}"
        failures.insert(0, Failure(stage.name, problem))
    return Result(stage.name, counted.passed, failures, time.monotonic() - start)


def _wait(process: subprocess.Popen[bytes], limit: float) -> str:
    """Wait until a process ends, or make it; return what was wrong with how it ended."""
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        # Like Ctrl-C: pytest then writes the results that it has, and so does the benchmark.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS / 2)
            return f"time limit of {limit:g} s"
        # pytest does that only when its workers have ended, one of which may hang on the GPU.
        _kill_others(process.pid)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS / 2)
        return f"time limit of {limit:g} s"
    finally:
        _end_group(process)
    # Python's own convention: a negative code is a signal's number.
    return f"exit code {code} ({signal.Signals(-code).name})" if code < 0 else ""


def _kill_others(leader: int) -> None:
    """End the processes of a group but for its leader."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # The name, in parentheses, may hold anything; after it come state, parent and group.
            group = int(path.read_text().rpartition(")")[2].split()[2])
            if group == leader != int(path.parent.name):
                os.kill(int(path.parent.name), signal.SIGKILL)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started and left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # what waits in the kernel cannot be ended, nor waited for
        process.wait(GRACE_SECONDS)


def _last_line(log: Path, start: int) -> str:
    lines = log.read_bytes()[start:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "none")


# What stages leave.


def _versions(stage: Stage) -> dict[Path, int]:
    """Return the results that there are, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in stage.out.glob(stage.pattern)}


def _count(stage: Stage, before: Mapping[Path, int]) -> Counted:
    """Count what the stage has written since; an earlier run's results are not its own."""
    new = {path: when for path, when in _versions(stage).items() if before.get(path) != when}
    if not new:
        return Counted(problem=f"no results ({stage.pattern})")
    try:
        return stage.count(max(new, key=new.__getitem__))
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Counted(problem=f"no results that can be read ({type(error).__name__}: {error})")


def count_junit(namespaces: Sequence[str], path: Path) -> Counted:
    """Count the tests in pytest's junit file, also in one that breaks off.

    That no test of one of the namespaces passed or failed is a failure: a library that cannot be used
    must not go unnoticed. What was under way when pytest was interrupted counts as passed: pytest writes
    it down like that, and the time limit is a failure anyway.
    """
    passed, failures, seen = 0, [], set()
    problem = ""
    try:
        for case in _cases(path):
            trouble = next((child for child in case if child.tag in ("failure", "error")), None)
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            if trouble is not None:
                failures.append(Failure(name, _one_line(trouble)))
            elif case.find("skipped") is None:
                passed += 1
            else:
                continue
            parameters = name.partition("[")[2]
            seen.update(namespace for namespace in namespaces if namespace in parameters)
    except ElementTree.ParseError as error:
        problem = f"{path.name} breaks off ({error})"
    failures += [Failure(each, "no test of it ran") for each in namespaces if each not in seen]
    if not passed and not failures:
        problem = problem or f"no test in {path.name}"
    return Counted(passed, failures, problem)


def _cases(path: Path) -> Iterator[ElementTree.Element]:
    for _, element in ElementTree.iterparse(path):
        if element.tag == "testcase":
            yield element


def _one_line(trouble: ElementTree.Element) -> str:
    """Return a message's lines as one; of what failed outside of a test, the error's, which pytest marks."""
    text = trouble.text or ""
    marked = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
    said = (trouble.get("message") or text).splitlines()
    lines = marked[-1:] if marked and trouble.tag == "error" else said
    return " ".join(" ".join(lines).split()) or "no message"


def count_benchmark(path: Path) -> Counted:
    """Count who was measured in the benchmark's results, and who was not."""
    passed, failures = 0, []
    for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
        for row in result["rows"]:
            if row["problem"]:
                failures.append(Failure(f"{result['workload']['name']}: {row['label']}", row["problem"]))
            else:
                passed += 1
    return Counted(passed, failures, "" if passed or failures else f"nothing in {path.name}")


def count_costs(path: Path) -> Counted:
    """Count what was measured; a target that is missed is a failure."""
    passed, failures = 0, []
    for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
        passed += len(result["medians"])
        if not result["result"] <= result["target"]:  # nan where nothing was measured
            reason = f"{result['result']:.3g} {result['result_is']}, more than {result['target']:.3g}"
            failures.append(Failure(result["name"], reason))
    return Counted(passed, failures, "" if passed or failures else f"nothing in {path.name}")


# The table.


def table(results: Sequence[Result]) -> list[str]:
    """Return what became of all stages, and the first failures, in at most `LINES` lines."""
    lines = [f"{'stage':<10}{'passed':>8}{'failed':>8}{'seconds':>9}", *map(str, results)]
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
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "xdist"),
        # In place of the project's own options, which are for machines of a few cores.
        *("-o", "addopts=--strict-markers", "-o", "faulthandler_timeout=60", "-n", str(n_workers)),
        # What newer libraries find old in one another says nothing about the GPU.
        *("-W", "default::DeprecationWarning", "-W", "default::PendingDeprecationWarning"),
        *(f"--junitxml={out / name}.xml", *arguments),
    ]
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_PLATFORMS": "cuda,cpu",
        "JAX_ENABLE_X64": "1",
        # A warning of another plugin that the machine has would end pytest: here warnings are errors.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    needs = ("cupy", "torch", "jax", "nvmath", "array_api_compat", "pytest", "xdist")
    count = partial(count_junit, NAMESPACES)
    return Stage(name, command, limit, out, f"{name}.xml", count, environment, needs)


def benchmark_stage(
    name: str,
    limit: float,
    out: Path,
    arguments: Sequence[str],
    count: Callable[[Path], Counted] = count_benchmark,
) -> Stage:
    """Return a stage of measurements."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--out", str(out)]
    needs = ("cupy", "torch", "jax", "nvmath", "array_api_compat", "rich", "sklearn")
    # JAX shares the GPU with other libraries, and takes what it needs.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Stage(name, command, limit, out, "*.json", count, environment, needs)


def project_stages(out: Path) -> dict[str, Stage]:
    """Return the stages by name, in the order they run. Those by default stay under five minutes together."""
    all_cores = min(16, len(os.sched_getaffinity(0)))
    files = ["tests/test_cuda.py", "tests/test_cuda_processes.py"]
    probes = ["--require", "cupy,torch_cuda", "-m", "cuda", *files]
    # What carries the marker has been run by the probe.
    on_gpus = ["--libraries", ",".join(NAMESPACES), "-m", "not cuda", "tests"]
    stages = [
        # One worker: some of these tests take all of the memory, or look at how much is free.
        pytest_stage("probe", 90, out, 1, probes),
        pytest_stage("tests", 98, out, all_cores, on_gpus),
        benchmark_stage("quick", 110, out, ["--device", "cuda", "--quick"]),
        benchmark_stage("streaming", 90, out, ["costs", "--only", "streaming"], count_costs),
        benchmark_stage("full", 500, out, ["--device", "cuda"]),
    ]
    return {stage.name: stage for stage in stages}


def missing_for(stage: Stage, problems: Sequence[str]) -> list[str]:
    """Return what keeps a stage from running on this machine."""
    modules = [name for name in stage.needs if importlib.util.find_spec(name) is None]
    return [*problems, f"not installed: {', '.join(modules)}"] if modules else list(problems)


def gpu_problem() -> str:
    """Return why no CUDA GPU answers, "" if one does."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver answers (there is no libcuda.so.1)"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the CUDA driver does not answer (error {code})"
    return "" if count.value else "the CUDA driver finds no GPU"


def describe_machine() -> str:
    """Return what figures mean nothing without: GPU, driver, versions."""
    wanted = ("cupy", "torch", "jax", "numpy", "nvmath", "cuda-", "array-api", "scikit-learn", "pytest")
    # The first of a name is the one that is imported.
    found: dict[str, str] = {}
    for one in distributions():
        found.setdefault((one.metadata["Name"] or "").lower().replace("_", "-"), one.version)
    versions = [f"{name} {version}" for name, version in sorted(found.items()) if name.startswith(wanted)]
    return f"{_gpu()}\nPython {sys.version.split()[0]}, {', '.join(versions)}"


def _gpu() -> str:
    fields = "name,memory.total,memory.used,driver_version"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        from benchmarks.machine import gpu

        found = gpu()
        return found.title if found else "the driver describes no GPU"


def main(names: Sequence[str]) -> int:
    """Run the stages of these names."""
    # A shell's job in the background ignores Ctrl-C, and what it starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = Path(os.environ.get("OUT") or "benchmarks/results")
    known = project_stages(out)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown stage {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return MISSING
    chosen = [known[name] for name in names or [name for name in known if name not in ONLY_BY_NAME]]
    problems = list(filter(None, (gpu_problem(), os.environ.get("WHEELS_PROBLEM"))))
    missing = {stage.name: missing_for(stage, problems) for stage in chosen}
    for name, what in missing.items():
        if what:
            print(f"{name}: {'; '.join(what)}")
    possible = [stage for stage in chosen if not missing[stage.name]]
    code = 0
    if possible:
        out.mkdir(parents=True, exist_ok=True)
        print(describe_machine(), flush=True)
        code = run_all(possible, out / "gpu.log")
    return code or (MISSING if len(possible) < len(chosen) else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
