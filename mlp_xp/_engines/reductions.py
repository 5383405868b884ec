"""How the processes of `data_parallel` add up buffers that are on CUDA devices.

By NCCL, as CuPy makes it accessible, where each process has a GPU of its own; else by an MPI library that
reads and writes the memory of GPUs (that is CUDA-aware); else in pinned memory on the host. All processes
take the same way, which they decide on together when a training begins, and again only if they have other
devices than before. A process with its buffer on the host, such as of NumPy arrays, can train with others on
GPUs: then all add up on the host.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import Any, NamedTuple

from mlp_xp._arrays import Array, to_host
from mlp_xp._engines.capture import GraphLibrary
from mlp_xp._processes import Processes, Reduction, shared

VARIABLE = "MLP_XP_REDUCTION"
"""The environment variable of process 0 that chooses how to add up."""

CHOICES = {"nccl": "NCCL", "cuda-mpi": "CUDA-aware MPI", "host": "MPI through host memory"}
"""The ways of adding up buffers on GPUs, the fastest first, and how they are called."""

_CUDA_AWARE_BY = ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA")
"""Variables that switch on the CUDA-aware MPI of HPE Cray and of MVAPICH, which have no function to ask."""


class _Offer(NamedTuple):
    """What a process says of itself, for all to decide.

    Attributes
    ----------
    device : tuple of str, or None
        The machine and the GPU where its buffer is; None if it is on the host.
    obstacles : dict of str to str
        By the names of `CHOICES`: why this one is not possible; "" if it is.
    wanted : str
        What the environment variable says.
    """

    device: tuple[str, str] | None
    obstacles: dict[str, str]
    wanted: str


def make_reduction(processes: Processes, library: GraphLibrary | None) -> Reduction | None:
    """Decide together with the other processes how to add up; return None for buffers on the host.

    Parameters
    ----------
    processes : Processes
        All of them must call this.
    library : GraphLibrary or None
        Of the device where the buffer is; None if it is on the host.
    """
    offers = processes.exchange("the choice of a reduction", _offer(library))
    if all(offer.device is None for offer in offers):
        return None
    decision: _Decision | None = processes.resources.get("reduction")
    if decision is None or decision.offers != offers:
        if decision is not None:
            decision.close()
        decision = processes.resources["reduction"] = _decide(processes, offers, library)
        processes.reduction = decision.text
    if library is None:
        return None
    if decision.nccl is not None:
        return _NcclReduction(decision.nccl, library)
    kind = _CudaAwareReduction if decision.way == "cuda-mpi" else _StagedReduction
    return kind(processes, library)


def _offer(library: GraphLibrary | None) -> _Offer:
    wanted = os.environ.get(VARIABLE, "")
    if library is None:
        return _Offer(None, {}, wanted)
    from socket import gethostname  # `import mlp_xp` is quick

    obstacles = {"nccl": _nccl_obstacle(), "cuda-mpi": _cuda_mpi_obstacle(), "host": ""}
    return _Offer((gethostname(), library.device_id()), obstacles, wanted)


class _Decision(NamedTuple):
    """How all processes add up, and what they said of themselves when they decided that."""

    offers: list[_Offer]
    way: str
    text: str
    nccl: _Nccl | None

    def close(self) -> None:
        """Free what NCCL takes; all processes do that together."""
        if self.nccl is not None:
            self.nccl.communicator.destroy()


def _decide(processes: Processes, offers: list[_Offer], library: GraphLibrary | None) -> _Decision:
    """Take the first way that has no obstacle; all processes come to the same decision."""
    wanted = offers[0].wanted
    if wanted and wanted not in CHOICES:
        raise shared(ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {wanted!r}"))
    reasons: list[str] = []
    for way, name in CHOICES.items():
        if wanted not in ("", way):
            continue
        nccl, why_not = None, _obstacle(offers, way, is_wanted=bool(wanted))
        if way == "nccl" and not why_not:
            assert library is not None
            nccl, why_not = _open_nccl(processes, library)
        if not why_not:
            return _Decision(offers, way, f"{name} ({'; '.join(reasons)})" if reasons else name, nccl)
        reasons.append(f"no {name}: {why_not}")
    raise shared(RuntimeError(f"{VARIABLE}={wanted} is not possible: {'; '.join(reasons)}"))


def _obstacle(offers: list[_Offer], way: str, *, is_wanted: bool) -> str:
    """Return why a way is not possible for the processes; "" if it is."""
    if way == "host":
        return ""
    devices = [offer.device for offer in offers]
    if None in devices:
        return f"process {devices.index(None)} has its sums on the host"
    # What a library says of CUDA-aware MPI may be wrong, and the user know better.
    if not (way == "cuda-mpi" and is_wanted):
        for offer in offers:
            if offer.obstacles[way]:
                return offer.obstacles[way]
    return "processes share a GPU" if way == "nccl" and len(set(devices)) < len(devices) else ""


# NCCL.


class _Nccl:
    """A communicator of NCCL."""

    def __init__(self, size: int, unique_id: tuple[int, ...], rank: int) -> None:
        self.module = _nccl()
        self.communicator = self.module.NcclCommunicator(size, unique_id, rank)


def _nccl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns where the library is missing
        from cupy.cuda import nccl
    return nccl


def _nccl_obstacle() -> str:
    try:
        return "" if _nccl().available else "CuPy does not find its library"
    except Exception as error:
        return f"it takes CuPy ({error})"


def _open_nccl(processes: Processes, library: GraphLibrary) -> tuple[_Nccl | None, str]:
    """Make the communicator of all processes; if that fails in one, return None and why."""
    unique_id, why_not = None, ""
    if processes.rank == 0:
        try:
            unique_id = _nccl().get_unique_id()
        except Exception as error:
            why_not = f"{error}"
    unique_id, why_not = processes.share("NCCL", (unique_id, why_not))
    if unique_id is None:
        return None, str(why_not)
    made = None
    try:
        with library.own_stream():  # NCCL takes the current device
            made = _Nccl(processes.size, unique_id, processes.rank)
    except Exception as error:
        why_not = f"{error}"
    problems = list(filter(None, processes.exchange("NCCL", why_not)))
    if problems and made is not None:
        made.communicator.abort()  # to free it together would wait for those that failed
    return (None, str(problems[0])) if problems else (made, "")


class _NcclReduction:
    """Adds up on the GPUs, on the engine's stream."""

    def __init__(self, nccl: _Nccl, library: GraphLibrary) -> None:
        self.nccl = nccl
        self.library = library

    def __call__(self, buffer: Array, interrupted: bool, failed: bool) -> tuple[bool, bool]:
        module = self.nccl.module
        _write_news(buffer, interrupted, failed)
        address, stream = self.library.addresses(buffer)
        kind = module.NCCL_FLOAT64 if "float64" in str(buffer.dtype) else module.NCCL_FLOAT32
        n_numbers = int(buffer.shape[0])
        self.nccl.communicator.allReduce(address, address, n_numbers, kind, module.NCCL_SUM, stream)
        return _read_news(buffer)


# MPI.


class _CudaAwareReduction:
    """Has MPI read and write the memory of the GPU."""

    def __init__(self, processes: Processes, library: GraphLibrary) -> None:
        self.processes = processes
        self.library = library

    def __call__(self, buffer: Array, interrupted: bool, failed: bool) -> tuple[bool, bool]:
        _write_news(buffer, interrupted, failed)
        self.library.synchronize()  # MPI knows nothing of streams
        self.processes.allreduce(buffer)
        return _read_news(buffer)


class _StagedReduction:
    """Adds up on the host, in pinned memory."""

    def __init__(self, processes: Processes, library: GraphLibrary) -> None:
        self.processes = processes
        self.library = library
        self.staging = library.new_staging()

    def __call__(self, buffer: Array, interrupted: bool, failed: bool) -> tuple[bool, bool]:
        host = self.library.download(buffer, self.staging)
        news = self.processes.reduce_on_host(host, interrupted, failed)
        self.library.send_back(host, self.staging, buffer)
        return news


def _cuda_mpi_obstacle() -> str:
    if any(os.environ.get(name, "0") not in ("", "0") for name in _CUDA_AWARE_BY):
        return ""
    try:
        # The functions of the MPI library that mpi4py is linked with.
        library = ctypes.CDLL(sys.modules["mpi4py.MPI"].__file__)
        return "" if library.MPIX_Query_cuda_support() else "MPI is not CUDA-aware"
    except (KeyError, OSError, AttributeError):
        return "MPI does not say whether it is CUDA-aware"


# The last two numbers of a buffer.


def _write_news(buffer: Array, interrupted: bool, failed: bool) -> None:
    """Write the news; without any, nothing is launched, because the first half of a step writes zeros."""
    if interrupted or failed:
        buffer[-2:-1] = float(interrupted)
        buffer[-1:] = float(failed)


def _read_news(buffer: Array) -> tuple[bool, bool]:
    """Read the news, which waits for the buffer."""
    interrupted, failed = to_host(buffer[-2:])
    return bool(interrupted), bool(failed)
