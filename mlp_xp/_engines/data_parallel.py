"""The engine of several processes: each computes the gradients of its rows, and all add them up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from mlp_xp._arrays import (
    Array,
    HostArray,
    Namespace,
    Placement,
    is_jax,
    is_on_cuda,
    is_sparse,
    native_dtype,
    row_slices,
)
from mlp_xp._compiler import NotRecordableError
from mlp_xp._engines.base import EpochSettings, State
from mlp_xp._engines.graph_inputs import GraphInputs
from mlp_xp._engines.reductions import make_reduction
from mlp_xp._engines.step_halves import CompiledHalves, EagerHalves, StepHalves, Totals
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._processes import Processes
from mlp_xp._samples import Batch, Rows, RowTaker, Samples, Shard


class ShardSteps:
    """Runs steps in two halves, between which the processes add up their sums; see `Steps`.

    All processes run the same steps, and stop at the same step if one of them fails or is interrupted.
    Losses, and whether the state is finite, are what process 0 says: what the training decides from these
    must not depend on how a processor rounds.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        place: Placement,
        xp: Namespace,
        processes: Processes,
        state: State,
        *,
        is_weighted: bool = True,
    ) -> None:
        self.processes = processes
        self.is_weighted = is_weighted
        self.make_eager_halves = partial(EagerHalves, network, optimizer, place, xp)
        self.halves: StepHalves = self._make_halves(network, optimizer, place, xp, state)
        self.reduction = make_reduction(processes, self.halves.library)
        # The same in all steps, so that captured graphs need no number that changes.
        self.unit = 1.0
        self.state_is_finite = True
        self.failure: Exception | None = None

    def _make_halves(
        self, network: Network, optimizer: Optimizer, place: Placement, xp: Namespace, state: State
    ) -> StepHalves:
        if is_jax(xp):
            from mlp_xp._engines.jax_halves import JaxHalves

            return JaxHalves(network, optimizer, place, state)
        if is_on_cuda(place):
            from mlp_xp._engines.cuda_graph import graph_library, warn_of_fallback
            from mlp_xp._engines.graph_halves import GraphHalves

            try:
                library = graph_library(place, xp)
                return GraphHalves(library, network, optimizer, place, state, is_weighted=self.is_weighted)
            except ImportError as error:
                warn_of_fallback(f"{error}")
        if xp is np:  # not for sparse matrices, whose namespace is a wrapper
            with suppress(NotRecordableError):
                return CompiledHalves(network, optimizer, place.dtype, state)
        return self.make_eager_halves(state)

    @property
    def name(self) -> str:
        """The way in which the steps of a process run."""
        return self.halves.name

    @property
    def state(self) -> State:
        """The current state, in arrays that later steps write in."""
        return self.halves.state

    @state.setter
    def state(self, state: State) -> None:
        self.halves.state = state
        self.state_is_finite = True

    def copied_state(self) -> State:
        """Return a copy of the state."""
        return self.halves.copied_state()

    def is_finite(self) -> bool:
        """Whether the state is finite, and not left in the middle of an update."""
        return self.state_is_finite and self.halves.is_finite()

    def run_steps(self, samples: Samples, batch_size: int, order: Rows | None, rate: float) -> float:
        """Run steps on all samples of all processes, in an order; return their mean loss."""
        assert samples.shard is not None
        with self.processes.stepping(), self.halves.running():
            batches = ShardBatches(samples, samples.shard, batch_size, self.halves.pads, self.halves.inputs)
            mean = self.run_epoch(batches, order, rate)
        self.raise_failure()
        return mean

    def run_epoch(self, batches: ShardBatches, order: Rows | None, rate: float) -> float:
        """Run an epoch's steps; return their mean loss."""
        # The others learn of errors in the next step, where they wait for this process.
        try:
            self.halves.start_epoch()
        except Exception as error:
            self.failure = error
        for rows in batches.of_epoch(order):
            self._step(batches, rows, rate)
        try:
            return self.halves.mean_loss()
        except Exception as error:
            self.failure = error
            return math.nan

    def raise_failure(self) -> None:
        """Raise the error of the last step, if there was one."""
        if self.failure is not None:
            raise self.failure

    def agreed(self, losses: list[float]) -> list[float]:
        """Return the losses of process 0; whether the state is finite is what it says from here on."""
        losses, self.state_is_finite = self.processes.share(
            "the end of epochs", (losses, self.halves.is_finite())
        )
        return losses

    def _step(self, batches: ShardBatches, rows: _ShardRows, rate: float) -> None:
        """Run a step."""
        try:
            batch = None if self.failure is not None else batches.batch(rows)
            if batch is None:
                self.halves.buffer[:] = 0.0
            else:
                self._add_gradients(batch)
        except Exception as error:
            self.failure = error
        self.processes.add_up(self.halves.buffer, self.failure, self.reduction)
        self.state_is_finite = False
        totals = Totals(rows.n_total, self.is_weighted, self.unit, rows.n_total / batches.shard.n_total)
        try:
            self.halves.update(totals, rate)
        except Exception as error:
            self.failure = error  # the others learn of it in the next step, where they wait for this process
            return
        self.state_is_finite = True

    def _add_gradients(self, batch: Batch) -> None:
        with suppress(NotRecordableError):
            self.halves.add_gradients(batch, self.unit)
            return
        eager = self.make_eager_halves(self.halves.state)
        eager.mean = self.halves.mean_loss()
        self.halves = eager
        self.halves.add_gradients(batch, self.unit)


class DataParallelEngine(ShardSteps):
    """Runs epochs on the samples of all processes; see `mlp_xp._engines.Engine`."""

    release = None

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        samples: Samples,
        batch_size: int,
        state: State,
    ) -> None:
        assert samples.shard is not None
        super().__init__(
            network,
            optimizer,
            samples.place,
            samples.xp,
            samples.shard.processes,
            state,
            is_weighted=samples.sample_weight is not None,
        )
        self.batches = ShardBatches(samples, samples.shard, batch_size, self.halves.pads, self.halves.inputs)
        self.unit = 1.0 / self.batches.batch_size
        self.losses: list[float] = []

    def run(self, epochs: Sequence[EpochSettings]) -> None:
        """Run these epochs."""
        self.processes.exchange("the epochs of a training", len(epochs))
        with self.processes.stepping(), self.halves.running():
            for rate, order in epochs:
                self.losses.append(self.run_epoch(self.batches, order, rate))
        self.raise_failure()
        self.losses = self.agreed(self.losses)


class _ShardRows(NamedTuple):
    """The rows of a process in a batch.

    Attributes
    ----------
    n_total : int
        The number of rows of the batch, of all processes.
    rows : array of int, or None
        Their numbers among the process's rows; None for all of these.
    """

    n_total: int
    rows: Rows | None


class ShardBatches:
    """The parts of batches that a process has.

    They have different lengths. If `pads` is not 0, rows without weight are added, so that there are only a
    few lengths.
    """

    def __init__(
        self,
        samples: Samples,
        shard: Shard,
        batch_size: int,
        pads: float,
        inputs: GraphInputs | None = None,
    ) -> None:
        self.samples = samples
        self.shard = shard
        self.batch_size = min(batch_size, shard.n_total)
        self.whole = samples.whole() if self.batch_size == shard.n_total and len(samples) else None
        self.in_order: list[_ShardRows] | None = None
        is_sparse_X = is_sparse(samples.X)
        self.multiple = 1 if is_sparse_X else self._multiple(pads)
        self.is_padded = bool(pads) and not is_sparse_X
        is_host = isinstance(samples.X, np.ndarray)
        self.takers = (
            [RowTaker(array) if array is not None else None for array in samples.arrays] if is_host else None
        )
        self.buffers: dict[int, Batch] = {}
        self.inputs = inputs

    def _multiple(self, pads: float) -> int:
        """Return the power of two that the lengths of batches are multiples of."""
        share = len(self.samples) / self.shard.n_total
        # Rows are drawn without replacement, so that their number is about binomial.
        deviation = math.sqrt(self.batch_size * share * (1.0 - share))
        return 1 << math.floor(math.log2(max(1.0, pads * deviation)))

    def of_epoch(self, order: Rows | None) -> Iterator[_ShardRows]:
        """Yield the process's rows in each batch of an epoch that takes all rows in this order."""
        n_total, size = self.shard.n_total, self.batch_size
        if size == n_total:
            yield _ShardRows(n_total, None)
            return
        if order is None:
            if self.in_order is None:
                dtype = np.int32 if n_total < 2**31 else np.int64
                self.in_order = list(self._divided(np.arange(n_total, dtype=dtype)))
            yield from self.in_order
            return
        yield from self._divided(order)

    def _divided(self, order: Rows) -> Iterator[_ShardRows]:
        numbers = self.shard.own_rows(order, len(self.samples))
        is_own = numbers >= 0
        own = numbers[is_own]
        slices = list(row_slices(self.shard.n_total, self.batch_size))
        counts = np.add.reduceat(is_own, [some.start for some in slices], dtype=np.int64)
        start = 0
        for some, count in zip(slices, counts.tolist()):
            yield _ShardRows(some.stop - some.start, own[start : start + count])
            start += count

    def batch(self, part: _ShardRows) -> Batch | None:
        """Return the process's part of a batch; None if it has no rows."""
        rows = part.rows
        if rows is None:
            return self.whole
        if not len(rows):
            return None
        n_rows = len(rows)
        n_padded = -(-n_rows // self.multiple) * self.multiple
        if n_padded > n_rows:
            rows = np.concatenate([rows, np.full(n_padded - n_rows, rows[0], rows.dtype)])
        if self.samples.rows is not None:
            rows = self.samples.rows[rows]
        if self.takers is not None:
            return self._from_host(rows, n_rows)
        return self._from_device(rows, n_rows)

    def _from_host(self, rows: Rows, n_rows: int) -> Batch:
        """Return a batch of these rows of NumPy arrays, of which the first `n_rows` count."""
        assert self.takers is not None
        place, length = self.samples.place, len(rows)
        if length not in self.buffers:
            self.buffers[length] = self._allocate(length)
        buffers = self.buffers[length]
        rows = rows.astype(np.intp, copy=False)
        for taker, buffer in zip(self.takers, buffers):
            if taker is not None:
                taker.take_into(buffer, rows)
        if buffers.sample_weight is not None:
            if self.takers[2] is None:
                buffers.sample_weight[:n_rows] = 1.0
            buffers.sample_weight[n_rows:] = 0.0
        if place.xp is np:
            return buffers
        X, y, sample_weight = (
            None if buffer is None else place.cast(place.transfer(buffer)) for buffer in buffers
        )
        return Batch(X, y, sample_weight)

    def _allocate(self, length: int) -> Batch:
        X, y, sample_weight = self.samples.arrays
        place = self.samples.place

        def empty(array: HostArray) -> HostArray:
            # What is moved to a device is cast there, as far as it is of integers.
            as_is = place.xp is not np and array.dtype.kind != "f"
            return np.empty((length, *array.shape[1:]), native_dtype(array) if as_is else place.host_dtype)

        has_weight = self.is_padded or sample_weight is not None
        return Batch(empty(X), empty(y), np.empty(length, place.host_dtype) if has_weight else None)

    def _from_device(self, rows: Rows, n_rows: int) -> Batch:
        """Return a batch of these rows of arrays in the place to compute; the first `n_rows` count."""
        if self.inputs is not None:
            return self.inputs.gather(self.samples.arrays, rows, n_rows)
        samples, place = self.samples, self.samples.place
        xp = samples.xp
        indices = place.xp.asarray(rows, device=place.device) if place.xp is not np else rows

        def take(array: Array) -> Array:
            taken = xp.take(array, indices, axis=0)
            return taken if taken.dtype == place.dtype else xp.astype(taken, place.dtype)

        sample_weight = None if samples.sample_weight is None else take(samples.sample_weight)
        if self.is_padded:
            counts = np.zeros(len(rows))
            counts[:n_rows] = 1.0
            there = place.from_host(counts)
            sample_weight = there if sample_weight is None else sample_weight * there
        return Batch(take(samples.X), take(samples.y), sample_weight)
