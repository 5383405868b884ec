"""A process for each participant of a workload: told by turns to run one repeat.

So thread pools of different libraries do not fight, what one allocates is not counted for another, and
one that is missing or dies takes nobody along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.memory import DeviceMemory, HostMemory
from benchmarks.participants import PARTICIPANTS, Prepared, Task
from benchmarks.workloads import Data, Workload, make_data, make_start

PATIENCE_SECONDS = 900.0
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class Repeat(NamedTuple):
    """One repeat."""

    seconds: float
    peak_bytes: int | None


class WorkerError(RuntimeError):
    """A participant cannot go on; the message is one line."""


def limit_threads(threads: int) -> None:
    """Let this process, and those it starts, use so many threads and cores: before libraries start."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """A participant's process, seen from outside."""

    def __init__(self, name: str, workload: Workload, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, name, workload, device, threads)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        # Ctrl-C is for the parent: children inherit that they are to ignore it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()

    def prepare(self, data: Data) -> None:
        """Wait until its library is imported, and give it its data."""
        self._answer()
        self._ask(data)

    def repeat(self) -> Repeat:
        """Let it run one repeat."""
        return Repeat(*self._ask("repeat"))

    def outcome(self) -> Any:
        """Return what its last repeat came to: see `Prepared.outcome`."""
        return self._ask("outcome")

    def end(self) -> None:
        """End its process."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _ask(self, message: Any) -> Any:
        try:
            self.connection.send(message)
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> Any:
        if not self.connection.poll(PATIENCE_SECONDS):
            raise WorkerError(f"no answer in {PATIENCE_SECONDS:.0f} s")
        try:
            answer, problem = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if problem:
            raise WorkerError(problem)
        return answer

    def _ended(self) -> WorkerError:
        self.process.join(timeout=5.0)
        return WorkerError(f"its process ended with exit code {self.process.exitcode}")


def _serve(connection: Connection, name: str, workload: Workload, device: str, threads: int) -> None:
    """Do what the parent says, in a process of its own, until there is no parent."""
    try:
        served = Served(name, workload, device, threads)
        connection.send((None, ""))
        served.prepare(connection.recv())
        connection.send((None, ""))
        while True:
            command = connection.recv()
            connection.send((served.repeat() if command == "repeat" else served.outcome(), ""))
    except EOFError:
        return
    except ModuleNotFoundError as error:
        connection.send((None, f"not installed ({error})"))
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        connection.send((None, f"{type(error).__name__}: {first_line}"))


class Served:
    """A participant at work, in the process it is in."""

    def __init__(self, name: str, workload: Workload, device: str, threads: int) -> None:
        os.environ["JAX_PLATFORMS"] = device
        os.environ["JAX_ENABLE_X64"] = "1" if workload.dtype == "float64" else "0"
        self._prepare = PARTICIPANTS[name].load()
        _limit_torch(threads)
        self.workload, self.device = workload, device
        if name != "torch.compile":  # it would go on to compile for any number of rows
            self._warm_up()
        self.memory = DeviceMemory() if device == "cuda" else HostMemory()
        self.prepared: Prepared
        self.result: Any = None

    def _warm_up(self) -> None:
        """Do a little of the same, so that what libraries load and keep is there before memory is watched."""
        w = self.workload
        little = replace(
            w, rows=min(w.rows, 64), batch_size=w.batch_size and 32, epochs=1, calls=min(w.calls, 1)
        )
        self._prepare(Task(little, make_data(little), make_start(little), self.device)).repeat()

    def prepare(self, data: Data) -> None:
        """Bring the data where they are needed; beyond this nobody here keeps them."""
        self.prepared = self._prepare(Task(self.workload, data, make_start(self.workload), self.device))

    def repeat(self) -> Repeat:
        """Run one repeat."""
        self.result = None
        self.memory.reset()
        start = time.perf_counter()
        self.result = self.prepared.repeat()
        seconds = time.perf_counter() - start
        return Repeat(seconds, self.memory.peak())

    def outcome(self) -> Any:
        """Return what the last repeat came to, on the host."""
        return self.prepared.outcome and self.prepared.outcome(self.result)


def _limit_torch(threads: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
