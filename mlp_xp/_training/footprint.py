"""Peak memory of a training, computed before it begins, by tracing one step on arrays without data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlp_xp._arrays import is_cupy, is_jax
from mlp_xp._compiler.graph import Graph, Tracer, Value
from mlp_xp._compiler.trace import ArraySpec
from mlp_xp._devices import MIN_SHARE_LEFT_FREE, MemoryShortage, free_bytes, room_beside
from mlp_xp._engines import State, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import is_array, leaves, map_tree
from mlp_xp._samples import Samples


class Footprint:
    """The peak memory of a training, by its batch size.

    Parameters
    ----------
    network : Network
    optimizer : Optimizer
    samples : Samples
        As they are passed to the engine.
    state : State
        The state that the training begins with.
    epochs : int
    """

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, state: State, epochs: int
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.samples = samples
        # Shapes only: an error's traceback may keep this object, which must not keep arrays alive.
        self.state = map_tree(_Shape, state)
        self.epochs = epochs
        self.step_bytes: dict[int, int] = {}

    def shortage_of(self, batch_size: int, *, after_failure: bool = False) -> MemoryShortage | None:
        """Return needed and free memory if the training does not fit, else None.

        `after_failure` says that memory has run out; then the result is never None. XLA fuses elementwise
        calls, so that for JAX the traced step gives an upper bound only: it is no reason to refuse a
        training, but good enough for advice.
        """
        free = free_bytes(self.samples.place)
        if not after_failure and (free is None or is_jax(self.samples.place.xp)):
            return None
        needed = self.bytes_needed(batch_size)
        fits = needed is not None and free is not None and needed <= free
        if fits and not after_failure:
            return None
        if needed is None:
            return MemoryShortage(None, free, None) if after_failure else None
        # If memory ran out although it should suffice, part of it was fragmented or another process's.
        below = batch_size // 2 if fits else batch_size - 1
        return MemoryShortage(
            needed,
            free,
            None if free is None else self._largest(below, int((1.0 - MIN_SHARE_LEFT_FREE) * free)),
        )

    def room_for_samples(self, batch_size: int, validation: Samples | None) -> int | None:
        """Return how many bytes of samples the device can hold beside the training; None if not known.

        To validate takes the arrays of a block, and the targets, logits, outputs and losses of all rows.
        """
        place = self.samples.place
        room = room_beside(place, 0)
        if room is None:  # without a trace of the step
            return None
        n_bytes = self.bytes_needed(batch_size, are_moved=True) or 0
        if validation is not None:
            n_outputs = 4 * len(validation) * self.network.layer_sizes[-1]
            n_bytes += n_outputs * place.xp.finfo(place.dtype).bits // 8
            n_bytes += self.network._bytes_of_block(validation)
        return max(0, room - n_bytes)

    def bytes_needed(self, batch_size: int, *, are_moved: bool = False) -> int | None:
        """Return the peak number of bytes that a training allocates; None if its step cannot be traced.

        `are_moved` is for samples on the host once they are moved.
        """
        samples, state_bytes = self.samples, self._bytes(self.state)
        # Of a batch, a process gets about the part that it has of all rows.
        n_rows = min(len(samples), math.ceil(batch_size * len(samples) / samples.n_total))
        try:
            step = self._step_bytes(max(1, n_rows))
        except Exception:  # a user's own functions may do what cannot be traced
            return None
        # The engine's state and, if there are several epochs, a copy of the last finite one.
        copies = state_bytes * (2 if self.epochs > 1 else 1)
        # A batch is gathered from the samples and, for CUDA graphs, copied to a fixed buffer. If samples are
        # streamed, there are three batches: that of the step, the last one, and one on its way.
        are_streamed = samples.is_on_host and not are_moved
        gathered = 0
        if batch_size < samples.n_total:
            gathered = (4 if are_streamed else 2) * n_rows * samples.row_bytes
        elif samples.rows is not None or are_streamed:
            gathered = len(samples) * samples.row_bytes
        # Between the halves of a step, the gradients are in a buffer.
        buffer = 0 if samples.shard is None else self._bytes(self.state[0])
        return copies + gathered + buffer + step

    def _largest(self, below: int, free: int) -> int:
        """Return the largest batch size up to `below` that fits, 0 if none does: by bisection."""
        low, high = 0, below
        while low < high:
            middle = (low + high + 1) // 2
            if (self.bytes_needed(middle) or 0) <= free:
                low = middle
            else:
                high = middle - 1
        return low

    def _step_bytes(self, n_rows: int) -> int:
        """Return the peak number of bytes that a step on this many rows allocates."""
        if n_rows not in self.step_bytes:
            fused = self._fused_bytes(n_rows)
            self.step_bytes[n_rows] = self._trace_bytes(n_rows) if fused is None else fused
        return self.step_bytes[n_rows]

    def _fused_bytes(self, n_rows: int) -> int | None:
        """Return the number of bytes that a step of fused kernels allocates; None if no such steps run."""
        place = self.samples.place
        # PyTorch's steps may run call by call, which takes more, and so do steps in two halves.
        if not is_cupy(place.xp) or self.samples.shard is not None:
            return None
        from mlp_xp._engines.cuda_graph import MIN_REPLAYS
        from mlp_xp._engines.fused_steps import bytes_of_fused_step

        if self.epochs * math.ceil(len(self.samples) / n_rows) <= MIN_REPLAYS:
            return None

        dtype = np.dtype(place.dtype_name)
        state = map_tree(lambda array: ArraySpec(array.shape, dtype), self.state)
        batch = map_tree(lambda array: ArraySpec((n_rows, *array.shape[1:]), dtype), self.samples.arrays)
        max_threads = place.device.attributes["MaxThreadsPerBlock"]
        return bytes_of_fused_step(self.network, self.optimizer, state, tuple(batch), max_threads)

    def _trace_bytes(self, n_rows: int) -> int:
        graph, dtype = _MemoryCountingGraph(), np.dtype(self.samples.place.dtype_name)
        state = map_tree(lambda array: graph.given(array.shape, dtype), self.state)
        X, y, sample_weight = map_tree(
            lambda array: graph.given((n_rows, *array.shape[1:]), dtype), self.samples.arrays
        )
        params, optimizer_state = state
        step = make_step(self.network, self.optimizer, np)
        step(params, optimizer_state, X, y, sample_weight, 0.1)
        return graph.peak

    def _bytes(self, tree: Any) -> int:
        n_elements = sum(int(np.prod(leaf.shape)) for leaf in leaves(tree) if is_array(leaf))
        return n_elements * np.dtype(self.samples.place.dtype_name).itemsize


class _Shape:
    """The shape of an array, without the array."""

    def __init__(self, array: Any) -> None:
        self.shape = tuple(array.shape)


class _MemoryCountingGraph(Graph):
    """A graph that adds up the bytes of the arrays alive while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak = self.n_given = 0

    def given(self, shape: tuple[int, ...], dtype: Any) -> Tracer:
        """Return a tracer for an array that exists before the step and takes no new memory."""
        self.n_given += 1
        return Tracer(self, self.add("input", shape, dtype, detail=self.n_given))

    def new_tracer(self, value: Value) -> Tracer:
        """Return a tracer for a new array, whose bytes count while it is alive."""
        return _CountedTracer(self, value)


class _CountedTracer(Tracer):
    """A tracer whose bytes count until it is garbage-collected."""

    def __init__(self, graph: _MemoryCountingGraph, value: Value) -> None:
        super().__init__(graph, value)
        self.n_bytes = value.nbytes
        graph.live_bytes += self.n_bytes
        graph.peak = max(graph.peak, graph.live_bytes)

    def __del__(self) -> None:
        meter: Any = self._graph
        meter.live_bytes -= self.n_bytes
