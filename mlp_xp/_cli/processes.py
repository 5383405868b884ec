"""Several processes of the command, which `mpiexec` has started: whether there are, and what each does."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mlp_xp._processes import Processes, current_processes, data_parallel

SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which MPI's launchers say how many processes they have started."""

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")
"""Environment variables in which they say which one a process is."""

SECONDS_FOR_FIRST_TO_REPORT = 2.0
"""How long others wait for the first process to report an error, which ends all, if they cannot ask it."""


def number_started() -> int:
    """Return how many processes an MPI launcher has started, of which this is one; 1 without one.

    Slurm's `srun` starts processes that MPI connects, or does not: only those have a rank by PMIx.
    """
    sizes = [os.environ[name] for name in SIZES if name in os.environ]
    if not sizes and "PMIX_RANK" in os.environ:
        sizes = [os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "2"))]
    return int(sizes[0]) if sizes and sizes[0].isdecimal() else 1


@contextmanager
def processes_started() -> Iterator[Processes | None]:
    """Enter `data_parallel` if an MPI launcher has started several processes; else None, without mpi4py.

    Raises
    ------
    ImportError
        If mpi4py or an MPI library is missing, or does not know of the other processes.
    """
    n_started = number_started()
    if n_started == 1 or current_processes() is not None:
        yield None
        return
    if problem := _why_not_connected():
        if not is_first_started():
            time.sleep(SECONDS_FOR_FIRST_TO_REPORT)
        raise ImportError(f"{n_started} processes were started, {problem}")
    with data_parallel() as processes:
        yield processes


def _why_not_connected() -> str:
    """Return why processes that were started cannot work together; "" if they can."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a RuntimeError if there is no MPI library
        return f"which need mpi4py ({error}): pip install 'mlp_xp[mpi]', or start one process"
    if MPI.COMM_WORLD.Get_size() == 1:
        return "but mpi4py finds one: its MPI library is another one than that which has started them"
    return ""


def is_first_started() -> bool:
    """Return whether this is the first process, as the launcher says."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def is_first() -> bool:
    """Return whether this process speaks and writes: the only one, or the first one."""
    processes = current_processes()
    return processes is None or processes.rank == 0


class Survivor:
    """A forked process that goes on when `mpiexec` ends the others, a moment after Ctrl-C.

    It calls ``begin()``, then ``go_on(value)`` with what `send` sends, if that comes; then it exits. It must
    use neither MPI nor the threads of libraries, which are not in a forked process.
    """

    def __init__(self, begin: Callable[[], object], go_on: Callable[[Any], object]) -> None:
        reading, self._writing = os.pipe()
        sys.stdout.flush()
        self._process = os.fork()
        if self._process == 0:
            code = 1
            with suppress(BaseException):
                os.setsid()
                os.close(self._writing)
                begin()
                code = 0
                with suppress(EOFError), os.fdopen(reading, "rb") as file:
                    go_on(pickle.load(file))
            os._exit(code)
        os.close(reading)

    def send(self, value: Any) -> None:
        """Send the value that the process goes on with."""
        with os.fdopen(self._writing, "wb") as file:
            pickle.dump(value, file)

    def wait(self) -> bool:
        """Wait until the process has ended; return whether `begin` has returned."""
        _, status = os.waitpid(self._process, 0)
        return os.waitstatus_to_exitcode(status) == 0
