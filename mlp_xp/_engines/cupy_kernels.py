"""Kernels on CuPy's arrays; see `mlp_xp._engines.fused_steps.KernelLibrary`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cupy

from mlp_xp._arrays import Array
from mlp_xp._engines.capture import CAPTURE_LOCK
from mlp_xp._engines.fused_steps import KernelError, Launch


class CupyKernels:
    """Kernels that CuPy compiles, and keeps in memory and on disk, for each device by their source."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.max_threads: int = device.attributes["MaxThreadsPerBlock"]

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[[str], Launch]:
        """Return the function that finds a kernel by its name."""
        module = cupy.RawModule(code=source, options=options)

        def find(name: str) -> Launch:
            try:
                with CAPTURE_LOCK:  # to load kernels may wait for the device
                    function = module.get_function(name)  # the first call compiles, and loads them
            except Exception as error:
                raise KernelError(f"{error}") from error

            def launch(n_blocks: int, n_threads: int, arguments: Sequence[Any]) -> None:
                try:
                    function((n_blocks,), (n_threads,), tuple(arguments))
                except cupy.cuda.driver.CUDADriverError as error:
                    raise KernelError(f"{error}") from error

            return launch

        return find

    def counters(self, count: int) -> Array:
        """Return zeros of 32 bits.

        They are not in the graphs' pool, where a graph captured before may write in memory that is free for
        the next.
        """
        with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
            return cupy.zeros(count, dtype=cupy.uint32)

    def contiguous(self, array: Array) -> Array:
        """Return an array if it is contiguous by rows, or else a copy that is."""
        return cupy.ascontiguousarray(array)
