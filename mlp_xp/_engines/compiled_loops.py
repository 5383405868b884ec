"""Steps on NumPy arrays as compiled loops: which kind of loops is faster, and how whole epochs run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlp_xp._arrays import HostArray
from mlp_xp._cache import cached_by_arguments
from mlp_xp._compiler import NotRecordableError
from mlp_xp._compiler.accumulate import fuse_updates_into_products
from mlp_xp._compiler.graph import Value, reachable
from mlp_xp._compiler.loop_programs import EpochProgram, LoopProgram, write_epochs, write_loops
from mlp_xp._compiler.loops import NumbaSource, is_slow_in_loops
from mlp_xp._compiler.trace import TracedFunction
from mlp_xp._engines.base import EpochSettings
from mlp_xp._engines.numba_functions import compile_functions, in_parallel
from mlp_xp._engines.recordable import StepSpec, compile_step
from mlp_xp._optimizers import is_built_in
from mlp_xp._samples import Samples
from mlp_xp._warnings import warn

MIN_SAVED = 0.1
"""What part of a step loops must save."""

MAX_BYTES_COPIED = 2**26
"""Size up to which samples that are not contiguous are copied, for epochs that are compiled as a whole."""

# Estimated seconds, from measurements on 2 cores: of a multiplication and an addition of a matrix product, of
# a call of NumPy or of a compiled function, and of an element that each of these computes.
_NUMPY_PRODUCT, _NUMPY_CALL, _NUMPY_ELEMENT, _NUMPY_SLOW_ELEMENT = 4e-11, 5e-7, 4e-10, 2e-9
_LOOP_CALL, _LOOP_ELEMENT, _LOOP_SLOW_ELEMENT = 2e-6, 1e-9, 1e-8
# And in epochs that are compiled as a whole; the second is for products of few columns.
_EPOCH_PRODUCT, _EPOCH_NARROW_PRODUCT, _EPOCH_ELEMENT, _EPOCH_LOOP = 2.5e-10, 1e-9, 5e-10, 1e-8
_NARROW = 8

MAX_SHARE = 0.75
"""Part of the time by NumPy's calls that epochs compiled as a whole may take; steps, which gain less, may
take all but `MIN_SAVED`."""


WRITERS = {"step": write_loops, "epochs": write_epochs}
"""Of programs of a step and of whole epochs."""


@dataclass(frozen=True)
class Loops:
    """Compiled programs of a training.

    Attributes
    ----------
    whole_epochs : bool
        Epochs are compiled as a whole, or else steps, whose products are NumPy's.
    programs : mapping of int to LoopProgram or EpochProgram
        By the length of a batch.
    """

    whole_epochs: bool
    programs: Mapping[int, Any]

    def epochs(self, samples: Samples, batch_size: int, state: Sequence[HostArray]) -> EpochRunner:
        """Return what runs epochs, which update these flat arrays."""
        return EpochRunner(self.programs, samples, batch_size, state)


def make_loops(steps: Mapping[int, StepSpec], bytes_to_copy: int) -> Loops | None:
    """Return compiled loops for a training, if there are any that are faster than NumPy's calls.

    See `mlp_xp._engines.loops.choose_loops`.

    Warns
    -----
    RuntimeWarning
        If the loops cannot be compiled.
    """
    try:
        kind = _kind(next(iter(steps.values())))
        if kind is None or (kind == "epochs" and bytes_to_copy > MAX_BYTES_COPIED):
            return None
        programs = {length: compile_step(WRITERS[kind], step) for length, step in steps.items()}
    except NotRecordableError:
        return None
    sources = [program.loops for program in programs.values()]
    if not _FAILED.isdisjoint(sources):
        return None
    try:
        for length, program in programs.items():
            functions = program.functions | compile_functions(program.loops) | {"in_parallel": in_parallel}
            programs[length] = replace(program, functions=functions)
    except Exception as error:  # whatever Numba or LLVM cannot do here
        _FAILED.update(sources)
        warn(
            "training runs by NumPy's calls, because Numba could not compile it: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
        )
        return None
    return Loops(kind == "epochs", programs)


_FAILED: set[NumbaSource] = set()
"""Programs that could not be compiled: neither tried again nor warned of."""


@cached_by_arguments
def _kind(step: StepSpec) -> str | None:
    """Return what is faster compiled than by NumPy's calls: "epochs", "step", or nothing."""
    traced = step.trace()
    whole_epochs = _seconds_in_epochs(traced) if _has_whole_epochs(traced, step) else math.inf
    fuse_updates_into_products(traced)
    products = sum(_NUMPY_CALL + _NUMPY_PRODUCT * size for size, _ in _products(traced))
    elements = sum(
        _NUMPY_CALL
        + _n_elements(value) * (_NUMPY_SLOW_ELEMENT if is_slow_in_loops(value) else _NUMPY_ELEMENT)
        for value in _elementwise(traced)
    )
    if whole_epochs < MAX_SHARE * (products + elements):
        return "epochs"
    loops = _seconds_in_loops(compile_step(write_loops, step))
    return "step" if elements - loops > MIN_SAVED * (products + elements) else None


def _has_whole_epochs(traced: TracedFunction, step: StepSpec) -> bool:
    """Whether epochs can be compiled as a whole, with numbers in the state that are as Python's.

    Those of a user's own optimizer may be integers that become floats, or raise Python's errors: in steps
    they are computed by Python. Other numbers are sums and products of the rate, which raise none.
    """
    numbers = [x for x in reachable(traced.roots) if x.kind == "map" and x.dtype is None]
    if not is_built_in(step.optimizer) and (
        traced.n_scalars > 1 or any(x.function not in (np.add, np.subtract, np.multiply) for x in numbers)
    ):
        return False
    try:
        compile_step(write_epochs, step)
    except NotRecordableError:
        return False
    return True


def _elementwise(traced: TracedFunction) -> list[Value]:
    return [x for x in reachable(traced.roots) if x.kind in ("map", "reduce") and x.dtype is not None]


def _n_elements(value: Value) -> int:
    return value.operands[0].size if value.kind == "reduce" else value.size


def _products(traced: TracedFunction) -> list[tuple[int, int]]:
    """List for each matrix product the number of its multiplications, and that of its columns."""
    return [
        (x.size * x.operands[0 if x.kind == "matmul" else 1].shape[-1], 1 if x.shape == () else x.shape[-1])
        for x in reachable(traced.roots)
        if x.kind in ("matmul", "accumulate")
    ]


def _seconds_in_epochs(traced: TracedFunction) -> float:
    """Estimate the time of a step of an epoch that is compiled as a whole."""
    elements = sum(
        _n_elements(value) * (_LOOP_SLOW_ELEMENT if is_slow_in_loops(value) else _EPOCH_ELEMENT)
        for value in _elementwise(traced)
    )
    return elements + sum(
        _EPOCH_LOOP + size * (_EPOCH_PRODUCT if n_columns >= _NARROW else _EPOCH_NARROW_PRODUCT)
        for size, n_columns in _products(traced)
    )


def _seconds_in_loops(program: LoopProgram) -> float:
    """Estimate the time of a step's loops and of NumPy's functions between them."""
    seconds = 0.0
    for stage in program.plan.stages:
        for segment in stage.segments:
            slow = sum(_n_elements(value) for value in segment.values if is_slow_in_loops(value))
            seconds += _LOOP_CALL + math.prod(segment.domain) * _LOOP_ELEMENT + slow * _LOOP_SLOW_ELEMENT
        calls = [value for value in stage.products if value.kind == "call"]
        seconds += sum(_NUMPY_CALL + _n_elements(value) * _NUMPY_SLOW_ELEMENT for value in calls)
    return seconds


class EpochRunner:
    """Runs epochs that are compiled as a whole.

    Parameters
    ----------
    programs : mapping of int to EpochProgram
        By the length of a batch.
    samples : Samples
    batch_size : int
    state : sequence of array of shape (n,)
        Each state array, flat; they are updated.
    """

    def __init__(
        self,
        programs: Mapping[int, EpochProgram],
        samples: Samples,
        batch_size: int,
        state: Sequence[HostArray],
    ) -> None:
        n_samples = len(samples)
        n_full, rest = divmod(n_samples, batch_size)
        self.rows = None if samples.rows is None else samples.rows.astype(np.int64)
        self.in_order = np.arange(n_samples) if self.rows is None else self.rows
        dtype = np.dtype(samples.place.dtype)
        stored = [np.ascontiguousarray(array, dtype) for array in samples.arrays if array is not None]
        self.calls = []
        for first, length, count in ((0, batch_size, n_full), (n_full * batch_size, rest, 1)):
            if not length * count:
                continue
            program = programs[length]
            batch = [np.empty((length, *array.shape[1:]), dtype) for array in stored]
            arguments = (
                *(first, count, length / n_samples, np.array(program.sizes, np.uint64)),
                *(np.array(program.constants, float), *_flat(stored), *_flat(batch), *state),
                *program.memory(),
            )
            self.calls.append((program.functions["epochs"], arguments))
        self.has_one_batch = n_full == 1 and not rest
        if self.has_one_batch:
            for array, target in zip(stored, batch):
                np.take(array, self.in_order, axis=0, out=target, mode="clip")

    def run(self, epochs: Sequence[EpochSettings], losses: HostArray, numbers: list[float]) -> list[float]:
        """Run epochs, all in one order of the samples; return the numbers of the state.

        Parameters
        ----------
        epochs : sequence of EpochSettings
        losses : array of shape (n_epochs,), float64
            Zeros, to which the losses of the epochs are added.
        numbers : list of float
        """
        rate, order = epochs[0]
        if epochs.count(epochs[0]) == len(epochs):
            rates = np.full(len(epochs), rate)
        else:
            rates = np.array([rate for rate, _ in epochs])
        indices = self.in_order if order is None else order if self.rows is None else self.rows[order]
        indices = indices.astype(np.int64, copy=False)
        new: Any = numbers
        for function, arguments in self.calls:
            new = function(indices, not self.has_one_batch, rates, losses, *arguments, *new)
        # The count of Adam's steps is a float inside.
        return [type(old)(number) for old, number in zip(numbers, new)]


def _flat(arrays: Sequence[HostArray]) -> list[HostArray]:
    return [array.reshape(-1) for array in arrays]
