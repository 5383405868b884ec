"""A process of a group that trains together; `Group` starts it and sends it requests.

Between requests it waits without using its core, which it would not in MPI's own messages.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from typing import NamedTuple

import numpy as np

from benchmarks.participants import Prepared, Task
from benchmarks.participants.ours import train_arrays
from benchmarks.processes.parts import timed_parts
from benchmarks.timing import interleave
from benchmarks.workloads import Workload, make_data, make_start
from mlp_xp import data_parallel
from mlp_xp._arrays import placement
from mlp_xp._engines.data_parallel import ShardBatches
from mlp_xp._engines.step_halves import CompiledHalves
from mlp_xp._processes import _CURRENT, Processes
from mlp_xp._samples import Samples, Shard

N_SHARDS_OF_ORDER = 8
"""Number of processes that an order is divided among when that is timed: the fewest of the projection."""


MAX_STEPS_ALONE = 50


class Training(NamedTuple):
    """A training, as one of the processes saw it.

    Attributes
    ----------
    seconds : float
    loss : float
        Of the last epoch.
    engine : str
    """

    seconds: float
    loss: float
    engine: str


class Worker:
    """Answers requests: the methods with public names.

    Parameters
    ----------
    processes : Processes, optional
        Those that train together, if there are several.
    """

    def __init__(self, processes: Processes | None) -> None:
        self.processes = processes
        self.prepared: dict[Workload, Prepared] = {}

    def train(self, workload: Workload) -> Training:
        """Train once, on this process's rows."""
        if any(one.name != workload.name for one in self.prepared):
            self.prepared.clear()
        if workload not in self.prepared:
            self.prepared[workload] = self._prepare(workload)
        prepared = self.prepared[workload]
        self._meet()
        start = time.perf_counter()
        done = prepared.repeat()
        seconds = time.perf_counter() - start
        engine = prepared.ran(done).engine if prepared.ran else ""
        return Training(seconds, float(done.result.history[-1]["loss"]), engine)

    def parts(self, workload: Workload) -> dict[str, float]:
        """Train once; return the seconds of the parts of a step."""
        with timed_parts() as parts:
            seconds = parts.finish(self.train(workload).seconds)
        return {part: of_all / workload.units for part, of_all in seconds.items()}

    def alone(self, workload: Workload, n_rows: int, repeats: int) -> list[float]:
        """Return the seconds of a step of so many rows of this process by itself: see `Parts.of_steps`.

        All processes of a group do so at the same time, as they do in a training. The first repeat compiles.
        """
        steps = min(MAX_STEPS_ALONE, max(2, workload.rows // (2 * n_rows)))
        little = replace(workload, rows=n_rows * steps, batch_size=n_rows, epochs=1)
        prepared, seconds = train_arrays(_task(little)), []
        with _by_itself():
            for _ in range(repeats):
                self._meet()
                with timed_parts() as parts:
                    prepared.repeat()
                seconds.append(parts.of_steps() / steps)
        return seconds

    def order(self, n_rows: int, repeats: int) -> list[float]:
        """Return the seconds a row that an order of so many rows takes."""
        X = np.broadcast_to(np.float32(0.0), (n_rows // N_SHARDS_OF_ORDER, 1))
        with _by_itself() as processes:
            shard = Shard(processes, n_rows)
            batches = ShardBatches(Samples(placement(X=X), X), shard, 1000, CompiledHalves.pads)
        random, order = np.random.RandomState(0), np.arange(n_rows, dtype=np.int32)

        def draw_and_divide() -> None:
            random.shuffle(order)
            list(batches.of_epoch(order.copy()))

        self._meet()
        timings = interleave({"order": draw_and_divide}, repeats)
        return [seconds / n_rows for seconds in timings.seconds["order"]]

    def allreduce(self, n: int, dtype: str, repeats: int) -> list[float]:
        """Return the seconds of each of several Allreduces of n numbers, as a step does them."""
        from mpi4py import MPI

        buffer, seconds = np.zeros(n, dtype), []
        for _ in range(repeats + 1):
            MPI.COMM_WORLD.Barrier()
            start = time.perf_counter()
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, buffer)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def library(self) -> str:
        """Return the name and version of the MPI library."""
        from mpi4py import MPI

        return str(MPI.Get_library_version()).partition(",")[0].strip()

    def _prepare(self, workload: Workload) -> Prepared:
        task = _task(workload)
        if self.processes is None:
            return train_arrays(task)
        mine = self.processes.rows(workload.rows)
        data = task.data._replace(**{name: array[mine].copy() for name, array in task.data._asdict().items()})
        return train_arrays(task._replace(data=data))

    def _meet(self) -> None:
        if self.processes is not None:
            self.processes._messages.Barrier()


@contextmanager
def _by_itself() -> Iterator[Processes]:
    """Context in which this process trains in the engine of several processes, the only one of them."""
    from mpi4py import MPI

    alone = Processes(MPI.COMM_SELF)
    alone.size = 2  # as one of several: a process that is alone trains in the engine of one
    token = _CURRENT.set(alone)
    try:
        yield alone
    finally:
        _CURRENT.reset(token)


def _task(workload: Workload) -> Task:
    return Task(workload, make_data(workload), make_start(workload), "cpu")


def _serve(connection: Connection, worker: Worker) -> None:
    """Answer requests ``(method, arguments)`` by pairs ``(answer, problem)`` until one of None."""
    while (request := connection.recv()) is not None:
        method, arguments = request
        try:
            connection.send((getattr(worker, method)(*arguments), ""))
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            connection.send((None, f"{type(error).__name__}: {first_line}"))
            raise


def main() -> None:
    """Connect to the address in the arguments, and serve."""
    address, n_processes = sys.argv[1], int(sys.argv[2])
    with Client(address) as connection, data_parallel() if n_processes > 1 else nullcontext() as processes:
        connection.send(processes.rank if processes is not None else 0)
        _serve(connection, Worker(processes))


if __name__ == "__main__":
    main()
