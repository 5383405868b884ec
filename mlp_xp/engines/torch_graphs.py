"""CUDA graphs of PyTorch's tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mlp_xp.arrays import Array, Namespace, Placement

_CAPTURES = threading.Lock()
"""PyTorch can do one at a time."""


class TorchGraphs:
    """See `mlp_xp.engines.cuda_graph.Cuda`."""

    def __init__(self, place: Placement) -> None:
        self.xp = Capturable(place.xp)
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
        # Other threads may go on, whatever they do.
        mode = "thread_local"
        with (
            _CAPTURES,
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode),
        ):
            function()
        replay: Callable[[], None] = graph.replay
        return replay

    def upload(self, values: np.ndarray[Any, Any], out: Array) -> None:
        """Copy numbers from the host into a tensor."""
        out.copy_(torch.from_numpy(values), non_blocking=True)


class Capturable:
    """PyTorch's namespace, but for functions that would copy a number to the device."""

    def __init__(self, xp: Namespace) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def maximum(self, x1: Any, x2: Any) -> Array:
        """Return the larger ones, element by element."""
        if isinstance(x2, (int, float)):
            return torch.clamp(x1, min=x2)
        return torch.clamp(x2, min=x1) if isinstance(x1, (int, float)) else self._xp.maximum(x1, x2)

    def minimum(self, x1: Any, x2: Any) -> Array:
        """Return the smaller ones, element by element."""
        if isinstance(x2, (int, float)):
            return torch.clamp(x1, max=x2)
        return torch.clamp(x2, max=x1) if isinstance(x1, (int, float)) else self._xp.minimum(x1, x2)
