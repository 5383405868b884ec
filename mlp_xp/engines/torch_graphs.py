"""CUDA graphs of PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mlp_xp.arrays import Array, Placement


class TorchGraphs:
    """See `mlp_xp.engines.cuda_graph.Cuda`."""

    def __init__(self, place: Placement) -> None:
        self.xp = place.xp
        self.device = place.device
        self.stream = torch.cuda.Stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()

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

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches; return what launches it all."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            function()
        return graph.replay  # type: ignore[no-any-return]

    def upload(self, values: np.ndarray[Any, Any], out: Array) -> None:
        """Copy numbers from the host into a tensor."""
        out.copy_(torch.from_numpy(values), non_blocking=True)
