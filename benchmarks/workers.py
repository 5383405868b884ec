"""Worker processes, one for each participant of a workload, which run a repeat when the parent tells them to.

Separate processes keep thread pools of different libraries from competing, memory from being counted for
another participant, and a missing library or a crash from ending the run.
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
from benchmarks.participants import PARTICIPANTS, TORCH_COMPILE, EngineReport, Prepared, Task
from benchmarks.precision import pin_after_import, pin_before_import
from benchmarks.workloads import Data, Start, Workload, make_data, make_start

WORKER_TIMEOUT_SECONDS = 900.0
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class Repeat(NamedTuple):
    """The measurements of one repeat."""

    seconds: float
    peak_bytes: int | None
    """Peak of the host's memory above that before the data were made; None on a GPU."""
    ran: EngineReport | None
    epochs: int | None = None
    """The number of epochs that were trained; None if it keeps no losses."""


class WorkerError(RuntimeError):
    """Raised if a participant failed; the message is one line."""


def limit_threads(threads: int) -> None:
    """Limit threads and cores of this process and its children; call it before libraries are imported."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """The parent's handle of a participant's process."""

    def __init__(self, name: str, workload: Workload, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.workload, self.device = workload, device
        self.connection, theirs = context.Pipe()
        arguments = (theirs, name, workload, device, threads)
        self.process = context.Process(target=_run_worker, args=arguments, daemon=True)
        # Only the parent handles Ctrl-C; children inherit the handler that ignores it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()

    def wait(self) -> None:
        """Wait until its library is imported and warmed up."""
        self._answer()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.process.pid or 0

    def prepare(self, data: Data) -> None:
        """Send it its data."""
        self._ask(data)

    def repeat(self) -> Repeat:
        """Run one repeat in the worker."""
        return Repeat(*self._ask("repeat"))

    def outcome(self) -> Any:
        """Return the outcome of its last repeat: see `Prepared.outcome`."""
        return self._ask("outcome")

    def loss(self, data: Data) -> float | None:
        """Return the final loss of its last repeat."""
        if self.device == "cpu" or self.workload.predicts:
            return loss_of(self.workload, data, self.outcome())
        # On a GPU the worker evaluates a part of the data itself, because sending large weights is slow. On
        # the CPU that would add to the memory that is measured.
        loss: float | None = self._ask(rows_to_check(self.workload, data))
        return loss

    def end(self) -> None:
        """Kill its process."""
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
        if not self.connection.poll(WORKER_TIMEOUT_SECONDS):
            raise WorkerError(f"no answer in {WORKER_TIMEOUT_SECONDS:.0f} s")
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


def _run_worker(connection: Connection, name: str, workload: Workload, device: str, threads: int) -> None:
    """Serve the parent's requests until the connection is closed; the entry point of a worker process."""
    try:
        served = WorkerServer(name, workload, device, threads)
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


class WorkerServer:
    """A participant in its worker process."""

    def __init__(self, name: str, workload: Workload, device: str, threads: int) -> None:
        os.environ["JAX_PLATFORMS"] = device
        os.environ["JAX_ENABLE_X64"] = "1" if workload.dtype == "float64" else "0"
        # All workers share the GPU, so JAX must not preallocate most of its memory.
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
        """Return the start weights on a GPU; on the CPU they are drawn later, as they count as memory."""
        return None if self.device == "cpu" else make_start(self.workload)

    def _warm_up(self, name: str) -> None:
        """Run a small workload, so that memory that libraries keep is allocated before it is measured."""
        prepare = self._prepare
        if name == TORCH_COMPILE:  # after a first size it would compile for any number of rows
            if self.device == "cpu":
                return
            prepare = PARTICIPANTS["PyTorch"].load()
        little = scaled_down(self.workload, self.device)
        prepare(Task(little, make_data(little), make_start(little), self.device)).repeat()

    def do(self, what: Any) -> Any:
        """Return the answer to a request: "repeat", "outcome", or data to evaluate the loss on."""
        if what == "repeat":
            return self.repeat()
        return self.outcome() if what == "outcome" else self.loss(what)

    def prepare(self, data: Data) -> None:
        """Prepare the participant with the data, without keeping another reference to them."""
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
        epochs = len(self.prepared.curve(self.result)) if self.prepared.curve else None
        return Repeat(seconds, peak, ran and ran(self.result), epochs)

    def outcome(self) -> Any:
        """Return the outcome of the last repeat, on the host."""
        return self.prepared.outcome and self.prepared.outcome(self.result)

    def loss(self, data: Data) -> float | None:
        """Return the final loss of the last repeat, evaluated on `data`."""
        return loss_of(self.workload, data, self.outcome())


def scaled_down(workload: Workload, device: str) -> Workload:
    """Return a workload of the same kind that takes almost no time."""
    rows, batch_size = min(workload.rows, 64), workload.batch_size and 32
    little = replace(workload, rows=rows, batch_size=batch_size, epochs=1, calls=min(workload.calls, 1))
    if device == "cpu":
        return little
    # Small layers, too: a pool that never frees memory, as JAX's, must not grow before memory is measured.
    return replace(little, sizes=tuple(min(size, 64) for size in workload.sizes))


def _limit_torch(threads: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
