"""Starts scripts on several processes, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or util.find_spec("mpi4py") is None, reason="mpi4py, or mpiexec, is not installed"
)


class Finished(NamedTuple):
    """What a started program has said, and how it has ended."""

    code: int
    said: str
    errors: str
    seconds: float


def started_by(n_processes: int) -> list[str]:
    """Return the command that starts Python in so many processes."""
    assert MPIEXEC is not None
    return [MPIEXEC, "--allow-run-as-root", "--oversubscribe", "-n", str(n_processes), sys.executable]


def environment() -> dict[str, str]:
    """Return the environment of processes that share the cores with other tests."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    jax = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    # Those that wait leave the core to others.
    known = {**os.environ, **threads, **jax, "OMPI_MCA_mpi_yield_when_idle": "1"}
    known.pop("PYTEST_XDIST_WORKER", None)
    return known


def mpiexec(
    n_processes: int,
    *command: str,
    timeout: float = 120.0,
    interrupt_at: str = "",
    by: int = signal.SIGINT,
    **variables: str,
) -> Finished:
    """Run ``python *command`` on so many processes; `interrupt_at` is what it says when a signal is sent."""
    started = time.monotonic()
    process = subprocess.Popen(
        [*started_by(n_processes), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
        env=environment() | {"PYTHONPATH": str(HERE.parent)} | variables,
        start_new_session=True,
    )
    try:
        said = ""
        if interrupt_at:
            assert process.stdout is not None
            while interrupt_at not in said:
                line = process.stdout.readline()
                assert line, f"it ended before it said {interrupt_at!r}: {said}"
                said += line
            process.send_signal(by)
        rest, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Finished(process.returncode, said + rest, errors, time.monotonic() - started)
