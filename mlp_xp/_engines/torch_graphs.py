"""CUDA graphs of PyTorch's tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch

from mlp_xp._arrays import Array, Namespace, Placement

_KEPT = threading.local()
"""A thread's streams, by device: for each stream PyTorch keeps a workspace of cuBLAS for good."""


class TorchGraphs:
    """See `mlp_xp._engines.cuda_graph.Cuda`."""

    def __init__(self, place: Placement, xp: Namespace) -> None:
        self._xp = xp
        self.device = place.device
        self.stream = _stream(place.device)
        self.pool = torch.cuda.graph_pool_handle()

    def namespace(self, matmul_precision: str) -> Namespace:
        """Return functions that can be captured; their precision is the process's while they are."""
        return self._xp

    @contextmanager
    def session(self) -> Iterator[None]:
        """Work on a stream of our own, after what the caller's does and before what it will do."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            caller.wait_stream(self.stream)

    def scratch(self) -> AbstractContextManager[None]:
        """Do nothing: before a capture PyTorch gives back what it has kept."""
        return nullcontext()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches; return what launches it all."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on, whatever they do.
        mode = "thread_local"
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
            self._forget_capture()
            # What ends a capture that is invalid says no more than that it is.
            raise (failure[0] if failure else error) from None
        replay: Callable[[], None] = graph.replay
        return replay

    def _forget_capture(self) -> None:
        """Let the allocator know that the capture is over, which an invalid one's end does not tell it."""
        with suppress(Exception):
            # If the end of the capture has done so, this raises, and the pool is the graph's to give up.
            torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
            torch._C._cuda_releasePool(self.device.index, self.pool)
        self.pool = torch.cuda.graph_pool_handle()

    def upload(self, values: np.ndarray[Any, Any], out: Array) -> None:
        """Copy numbers from the host into a tensor."""
        # From pageable memory, or from another dtype, the copy would wait for the stream.
        out.copy_(torch.from_numpy(values).to(out.dtype).pin_memory(), non_blocking=True)

    def retain(self) -> None:
        """Do nothing: PyTorch counts its graphs."""

    def release(self) -> None:
        """Do nothing: a graph's memory goes with it."""


def _stream(device: Any) -> Any:
    streams = vars(_KEPT).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]
