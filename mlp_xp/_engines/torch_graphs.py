"""CUDA graphs of PyTorch's tensors; see `mlp_xp._engines.capture.GraphLibrary`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch

from mlp_xp._arrays import Array, HostArray, Namespace, Placement
from mlp_xp._engines.base import make_step
from mlp_xp._engines.capture import StepInto, step_into
from mlp_xp._engines.fused_steps import FusedStep, KernelLibrary
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._uploads import PinnedBuffer, allocate_by_torch

MIN_STEPS_TO_COMPILE = 4000
"""Minimum number of planned steps for which kernels are compiled.

NVRTC took 0.3 seconds for the kernels of 784-256-10 with Adam, and as long again for those of a shorter last
batch. On an H200 a captured step took 0.13 ms longer call by call than with fused kernels on CuPy's arrays.
"""

_THREAD_LOCAL = threading.local()
"""The streams of each thread, by device. They are reused, because PyTorch never frees the cuBLAS workspace
that it allocates for a stream."""


class TorchGraphs:
    """Captures graphs with `torch.cuda.graph`, for one engine."""

    def __init__(self, place: Placement, xp: Namespace) -> None:
        self._xp = xp
        self.device = place.device
        self.stream = _stream(place.device)
        self.pool = torch.cuda.graph_pool_handle()

    def namespace(self, matmul_precision: str) -> Namespace:
        """Return a namespace whose functions can be captured.

        A capture uses the process-wide precision, which `mlp_xp._devices.computing` sets.
        """
        return self._xp

    def make_step(self, network: Network, optimizer: Optimizer, n_steps: int) -> StepInto:
        """Return a step that can be captured: fused kernels, if so many steps pay for compiling them.

        Otherwise, or if cuda-bindings is missing, it is captured call by call.
        """
        xp = self.namespace(network.matmul_precision)
        kernels = _kernels(self.device) if n_steps >= MIN_STEPS_TO_COMPILE else None
        if kernels is None:
            return step_into(make_step(network, optimizer, xp))
        return FusedStep(network, optimizer, xp, kernels)

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Context that makes the engine's stream current, ordered with the caller's stream by events."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            caller.wait_stream(self.stream)

    def graph_pool(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: no pool is shared, PyTorch frees its cache before captures."""
        return nullcontext()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that a function launches; return the function that replays them."""
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # calls of other threads do not invalidate the capture
        failure: list[BaseException] = []

        def recorded() -> None:
            try:
                function()
            except BaseException as error:
                failure.append(error)
                raise

        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode):
                recorded()
        except BaseException as error:
            self._release_pool()
            # The end of an invalid capture raises an error too, which does not tell the cause.
            raise (failure[0] if failure else error) from None
        replay: Callable[[], None] = graph.replay
        return replay

    def _release_pool(self) -> None:
        """End allocation to the pool of a failed capture: PyTorch does not when it ends an invalid one."""
        with suppress(Exception):
            # This raises if the end of the capture has done it already; then the graph releases the pool.
            torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
            torch._C._cuda_releasePool(self.device.index, self.pool)
        self.pool = torch.cuda.graph_pool_handle()

    def upload(self, values: HostArray, out: Array) -> None:
        """Copy values from the host into a tensor, without waiting for the stream."""
        # They are cast and copied to pinned memory first: otherwise the host would wait for the stream.
        out.copy_(torch.from_numpy(values).to(out.dtype).pin_memory(), non_blocking=True)

    def gather(self, array: Array, indices: Array, out: Array) -> None:
        """Write the rows of an array that have these indices into another one of its dtype."""
        torch.index_select(array, 0, indices, out=out)

    def new_staging(self) -> PinnedBuffer:
        """Return pinned memory on the host."""
        return PinnedBuffer(allocate_by_torch, torch.cuda.Event())

    def download(self, array: Array, staging: PinnedBuffer) -> HostArray:
        """Copy a tensor to pinned memory; return it there, when the copy is done."""
        host = staging.array(tuple(array.shape), str(array.dtype).removeprefix("torch."))
        torch.from_numpy(host).copy_(array, non_blocking=True)
        self.stream.synchronize()
        return host

    def send_back(self, values: HostArray, staging: PinnedBuffer, out: Array) -> None:
        """Copy what `download` returned into a tensor, without waiting for the stream."""
        out.copy_(torch.from_numpy(values), non_blocking=True)
        staging.copied.record(self.stream)

    def synchronize(self) -> None:
        """Wait for the engine's stream."""
        self.stream.synchronize()

    def addresses(self, array: Array) -> tuple[int, int]:
        """Return the addresses of a tensor's memory and of the engine's stream."""
        return array.data_ptr(), self.stream.cuda_stream

    def device_id(self) -> str:
        """Return the device's UUID, or where PyTorch does not know it, its number among the visible ones."""
        properties = torch.cuda.get_device_properties(self.device)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        return str(getattr(properties, "uuid", f"{self.device.index} of {visible}"))

    def retain(self) -> None:
        """Do nothing: PyTorch counts the graphs that use a pool."""

    def release(self) -> None:
        """Do nothing: PyTorch frees a graph's memory with the graph."""


def _kernels(device: Any) -> KernelLibrary | None:
    """Return kernels on a device; None if cuda-bindings is missing."""
    try:
        from mlp_xp._engines.torch_kernels import TorchKernels
    except ImportError:
        return None
    return TorchKernels(device)


def _stream(device: Any) -> Any:
    """Return this thread's stream on a device; it is made at the first call."""
    streams = vars(_THREAD_LOCAL).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]
