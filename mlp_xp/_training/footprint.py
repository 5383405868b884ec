"""How much memory a training takes on a device, known before it begins from one recorded step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlp_xp._arrays import is_jax
from mlp_xp._compiler.graph import Graph, Tracer, Value
from mlp_xp._devices import Shortage, free_bytes
from mlp_xp._engines import State, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import is_array, leaves, map_tree
from mlp_xp._samples import Samples

MARGIN = 4
"""The batch size that is advised leaves a quarter of the memory free: pools split blocks, and what is left of
one, beside a mask of a byte an element, holds no other array (a fifth, measured on a best-fit pool)."""


class Footprint:
    """The memory of a training, by its batch size.

    Parameters
    ----------
    network : Network
    optimizer : Optimizer
    samples : Samples
        As the engine gets them.
    state : State
        Where the training begins.
    epochs : int
    """

    def __init__(
        self, network: Network, optimizer: Optimizer, samples: Samples, state: State, epochs: int
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.samples = samples
        # Shapes alone: whoever keeps an error keeps this, and should keep no memory of the device.
        self.state = map_tree(lambda array: _Shape(tuple(array.shape)), state)
        self.epochs = epochs

    def shortage_of(self, batch_size: int, *, happened: bool = False) -> Shortage | None:
        """Return what is lacking, None if nothing is known to be; `happened` says that memory ran out.

        Where XLA allocates, which joins elementwise calls, the recorded step says only the most that may
        be needed: no reason to refuse, but good enough for advice.
        """
        free = free_bytes(self.samples.place)
        if not happened and (free is None or is_jax(self.samples.place.xp)):
            return None
        needed = self.bytes_needed(batch_size)
        fits = needed is not None and free is not None and needed <= free
        if fits and not happened:
            return None
        if needed is None:
            return Shortage(None, free, None) if happened else None
        # What runs out where it should fit was not all to be had: fragments, or another process's.
        below = batch_size // 2 if fits else batch_size - 1
        return Shortage(needed, free, None if free is None else self._largest(below, free - free // MARGIN))

    def bytes_needed(self, batch_size: int) -> int | None:
        """Return the bytes that a training allocates at most at a time; None if that is not known."""
        samples, state_bytes = self.samples, self._bytes(self.state)
        try:
            step = self._step_bytes(min(batch_size, len(samples)))
        except Exception:  # functions of the user's own may do what cannot be recorded
            return None
        # The engine's own, and where epochs follow the last state that is known to be finite.
        copies = state_bytes * (2 if self.epochs > 1 else 1)
        # A batch of chosen rows is taken from the samples and, to be captured, laid in a place of its own.
        gathered = 0
        if batch_size < len(samples):
            gathered = 2 * batch_size * samples.row_bytes
        elif samples.rows is not None:
            gathered = len(samples) * samples.row_bytes
        return copies + gathered + step

    def _largest(self, below: int, free: int) -> int:
        """Return the largest batch size up to `below` that fits, 0 if none does."""
        low, high = 0, below
        while low < high:
            middle = (low + high + 1) // 2
            if (self.bytes_needed(middle) or 0) <= free:
                low = middle
            else:
                high = middle - 1
        return low

    def _step_bytes(self, n_rows: int) -> int:
        """Return the most bytes that a step on so many rows holds at a time."""
        graph, dtype = _MeteredGraph(), np.dtype(self.samples.place.dtype_name)
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


@dataclass(frozen=True)
class _Shape:
    """What is left of an array."""

    shape: tuple[int, ...]


class _MeteredGraph(Graph):
    """A record of what a function computes that knows how much memory its arrays take while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = self.n_given = 0

    def given(self, shape: tuple[int, ...], dtype: Any) -> Tracer:
        """Return an array that is there already."""
        self.n_given += 1
        return Tracer(self, self.add("input", shape, dtype, detail=self.n_given))

    def trace(self, value: Value) -> Tracer:
        """Return a new array."""
        return _Metered(self, value)


class _Metered(Tracer):
    """An array whose memory counts for as long as somebody holds it."""

    def __init__(self, graph: _MeteredGraph, value: Value) -> None:
        super().__init__(graph, value)
        self.n_bytes = value.nbytes
        graph.held += self.n_bytes
        graph.peak = max(graph.peak, graph.held)

    def __del__(self) -> None:
        meter: Any = self._graph
        meter.held -= self.n_bytes
