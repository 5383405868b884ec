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

from benchmarks.evaluation import loss_of, rows_to_check
from benchmarks.memory import HostMemory, empty_pools
from benchmarks.participants import COMPILED, PARTICIPANTS, Prepared, Ran, Task
from benchmarks.precision import pin_after_import, pin_before_import
from benchmarks.workloads import Data, Start, Workload, make_data, make_start

PATIENCE_SECONDS = 900.0
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class Repeat(NamedTuple):
    """One repeat."""

    seconds: float
    peak_bytes: int | None
    """Of the host's memory, above what there was before the data were made; None on a GPU."""
    ran: Ran | None


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
        self.workload, self.device = workload, device
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

    def wait(self) -> None:
        """Wait until its library is imported and warm."""
        self._answer()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid or 0

    def prepare(self, data: Data) -> None:
        """Give it its data."""
        self._ask(data)

    def repeat(self) -> Repeat:
        """Let it run one repeat."""
        return Repeat(*self._ask("repeat"))

    def outcome(self) -> Any:
        """Return what its last repeat came to: see `Prepared.outcome`."""
        return self._ask("outcome")

    def loss(self, data: Data) -> float | None:
        """Return the loss that its last repeat came to."""
        if self.device == "cpu" or self.workload.predicts:
            return loss_of(self.workload, data, self.outcome())
        # It computes that itself, from a part of the data: large weights take a while to be sent. On the
        # CPU that would change how much memory it has.
        loss: float | None = self._ask(rows_to_check(self.workload, data))
        return loss

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
            connection.send((served.do(connection.recv()), ""))
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
        # All participants are there at once: none may take most of the GPU's memory for itself.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        pin_before_import(workload.matmul_precision)
        self._prepare = PARTICIPANTS[name].load()
        _limit_torch(threads)
        pin_after_import(workload.matmul_precision)
        self.workload, self.device = workload, device
        self._warm_up(name)
        self.memory, self.start = HostMemory() if device == "cpu" else None, self._start_on_gpu()
        empty_pools()
        self.prepared: Prepared
        self.result: Any = None

    def _start_on_gpu(self) -> Start | None:
        """Draw the weights while others do; on the CPU they are memory that is needed, and come later."""
        return None if self.device == "cpu" else make_start(self.workload)

    def _warm_up(self, name: str) -> None:
        """Do a little of the same, so that what libraries load and keep is there before memory is watched."""
        prepare = self._prepare
        if name == COMPILED:  # it would go on to compile for any number of rows
            if self.device == "cpu":
                return
            prepare = PARTICIPANTS["PyTorch"].load()
        little = a_little(self.workload, self.device)
        prepare(Task(little, make_data(little), make_start(little), self.device)).repeat()

    def do(self, what: Any) -> Any:
        """Do what the parent says."""
        if what == "repeat":
            return self.repeat()
        return self.outcome() if what == "outcome" else self.loss(what)

    def prepare(self, data: Data) -> None:
        """Bring the data where they are needed; beyond this nobody here keeps them."""
        start, self.start = self.start or make_start(self.workload), None
        self.prepared = self._prepare(Task(self.workload, data, start, self.device))

    def repeat(self) -> Repeat:
        """Run one repeat."""
        self.result = None
        if self.memory:
            self.memory.reset()
        start = time.perf_counter()
        self.result = self.prepared.repeat()
        seconds = time.perf_counter() - start
        peak, ran = self.memory.peak() if self.memory else None, self.prepared.ran
        return Repeat(seconds, peak, ran and ran(self.result))

    def outcome(self) -> Any:
        """Return what the last repeat came to, on the host."""
        return self.prepared.outcome and self.prepared.outcome(self.result)

    def loss(self, data: Data) -> float | None:
        """Return the loss that the last repeat came to, on some of the data."""
        return loss_of(self.workload, data, self.outcome())


def a_little(workload: Workload, device: str) -> Workload:
    """Return a workload of the same kind that is done at once."""
    rows, batch_size = min(workload.rows, 64), workload.batch_size and 32
    little = replace(workload, rows=rows, batch_size=batch_size, epochs=1, calls=min(workload.calls, 1))
    if device == "cpu":
        return little
    # A pool that never gives memory back, as JAX's, must not have grown before memory is watched.
    return replace(little, sizes=tuple(min(size, 64) for size in workload.sizes))


def _limit_torch(threads: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
