"""A stand-in for an MPI communicator: this process, and others that have the same data and do the same."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import cuda_stand_in

from mlp_xp import _processes
from mlp_xp._engines import reductions
from mlp_xp._processes import Processes, _Failure


class Communicator:
    """What `Processes` uses of a communicator of mpi4py.

    Attributes
    ----------
    n_sums : int
        How many sums were made.
    kinds : set of type
        The types of the buffers that MPI was given.
    shares_a_gpu : bool
        Whether the other processes say that they have the same GPU; real NCCL would wait for others.
    fails_at, is_interrupted_at : int or None
        The sum in which another process says so.
    """

    def __init__(self, size=2):
        self.size = size
        self.n_sums = 0
        self.kinds = set()
        self.shares_a_gpu = True
        self.fails_at = self.is_interrupted_at = None
        self.is_told_of_a_failure = False

    def Get_rank(self):  # noqa: N802 - mpi4py's names
        return 0

    def Get_size(self):  # noqa: N802
        return self.size

    def Dup(self):  # noqa: N802
        return self

    def Free(self):  # noqa: N802
        pass

    def Abort(self, code):  # noqa: N802
        raise AssertionError("a process has ended all")

    def Ibarrier(self):  # noqa: N802
        return SimpleNamespace(Test=lambda: True)

    def allgather(self, mine):
        if self.is_told_of_a_failure:
            self.is_told_of_a_failure = False
            return [mine, _Failure("ValueError", "the disk is gone", True, False, False)]
        return [mine, *(self.of_other(mine, rank) for rank in range(1, self.size))]

    def of_other(self, mine, rank):
        value = getattr(mine, "value", None)
        if isinstance(value, reductions._Offer) and value.device and not self.shares_a_gpu:
            machine, gpu = value.device
            return mine._replace(value=value._replace(device=(machine, f"{gpu} of {rank}")))
        return mine

    def gather(self, mine):
        return [mine] * self.size

    def Allreduce(self, in_place, buffer):  # noqa: N802
        self.kinds.add(type(buffer))
        if isinstance(buffer, cuda_stand_in.ndarray):
            cuda_stand_in.add_up_on_host(buffer, self.add_up)
        else:
            self.add_up(buffer)

    def add_up(self, buffer):
        """Do what the others do: add the same numbers, but news of their own."""
        buffer *= self.size
        if self.n_sums == self.is_interrupted_at:
            buffer[-2:-1] += 1.0
        if self.n_sums == self.fails_at:
            buffer[-1:] += 1.0
            self.is_told_of_a_failure = True
        self.n_sums += 1


@contextmanager
def within(communicator):
    """Context like `data_parallel`; yields its `Processes`."""
    before, show = sys.modules.get("mpi4py.MPI"), sys.excepthook
    if before is None:
        sys.modules["mpi4py.MPI"] = SimpleNamespace(IN_PLACE=None, __file__="")
    processes = Processes(communicator)
    token = _processes._CURRENT.set(processes)
    try:
        yield processes
    except BaseException as error:
        processes.leave(error)
        raise
    else:
        processes.leave(None)
    finally:
        _processes._CURRENT.reset(token)
        sys.excepthook = show
        if before is None:
            del sys.modules["mpi4py.MPI"]
