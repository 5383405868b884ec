"""Arrays that captured graphs read batches from: those of one length are always in the same arrays."""

from __future__ import annotations

import math

import numpy as np

from mlp_xp._arrays import Array, Dtype, Placement
from mlp_xp._engines.capture import GraphLibrary
from mlp_xp._samples import Batch, Rows

MARGIN = 1.25
"""How much longer than the first batch the arrays are: chosen so that large batches of a process fit as well,
whose lengths differ by a few standard deviations."""


class GraphInputs:
    """The arrays that graphs read, by the lengths of their batches, which share their memory."""

    def __init__(self, library: GraphLibrary, place: Placement) -> None:
        self.library = library
        self.place = place
        self.capacity = 0
        self.memory: list[Array] = []
        self.indices: Array
        self.ones_then_zeros: Array
        self.own: dict[tuple[int, bool], tuple[Batch, Array]] = {}
        self.read: dict[int, Batch] = {}

    def holding(self, batch: Batch) -> tuple[Batch, bool]:
        """Return a batch in arrays to read it from; and whether those before it were read from others.

        The first batch of a length is read where it is, such as all samples. If there are more, they are
        copied to arrays of our own.
        """
        length = int(batch.X.shape[0])
        before = self.read.setdefault(length, batch)
        if batch is before:
            return batch, False
        inputs, _ = self._own(length, batch, has_weight=batch.sample_weight is not None)
        if batch is not inputs:
            for source, target in zip(batch, inputs):
                if source is not None:
                    target[...] = source
        self.read[length] = inputs
        return inputs, before is not inputs

    def gather(self, arrays: Batch, rows: Rows, n_rows: int) -> Batch:
        """Copy rows of arrays on the device to our own; those behind the first `n_rows` weigh nothing."""
        length = len(rows)
        inputs, indices = self._own(length, arrays, has_weight=True)
        self.library.upload(rows, indices)
        for array, out in zip(arrays, inputs):
            if array is not None:
                self._gather(array, indices, out)
        weights: Array = inputs.sample_weight
        start = self.ones_then_zeros.shape[0] // 2 - n_rows
        counts = self.ones_then_zeros[start : start + length]
        if arrays.sample_weight is None:
            weights[...] = counts
        elif n_rows < length:
            weights *= counts
        return inputs

    def _gather(self, array: Array, indices: Array, out: Array) -> None:
        if array.dtype == out.dtype:
            self.library.gather(array, indices, out)
        else:
            out[...] = self.place.cast(self.place.xp.take(array, indices, axis=0))

    def _own(self, length: int, arrays: Batch, *, has_weight: bool) -> tuple[Batch, Array]:
        """Return our own arrays for batches of this length, made of such arrays, and of their indices."""
        key = length, has_weight
        if key not in self.own:
            if length > self.capacity:
                self._allocate(math.ceil(MARGIN * length), arrays)
            X, y, weights = (array[:length, ...] for array in self.memory)
            batch = Batch(X, y, weights if has_weight else None)
            self.own[key] = batch, self.indices[:length]
        return self.own[key]

    def _allocate(self, capacity: int, arrays: Batch) -> None:
        """Allocate longer arrays; graphs go on with those that they have read so far."""
        place = self.place

        def empty(*shape: int, dtype: Dtype = place.dtype) -> Array:
            return place.xp.empty((capacity, *shape), dtype=dtype, device=place.device)

        self.capacity = capacity
        self.memory = [empty(*arrays.X.shape[1:]), empty(*arrays.y.shape[1:]), empty()]
        self.indices = empty(dtype=place.xp.int64)
        self.ones_then_zeros = place.from_host(np.repeat([1.0, 0.0], capacity))
