"""Training steps on a CUDA device as a few fused kernels and matrix products.

The kernels are the same for all libraries. A `KernelLibrary` compiles and launches them on a library's
arrays; all else that a step needs is in the library's namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from mlp_xp._arrays import Array, Device, Namespace, copy_array
from mlp_xp._compiler import NotRecordableError
from mlp_xp._compiler.cuda import Kernel, KernelProgram, write_kernels
from mlp_xp._compiler.elements import Argument
from mlp_xp._compiler.graph import Value, reachable
from mlp_xp._compiler.kernels import is_number
from mlp_xp._compiler.segments import LANES, THREADS, Call
from mlp_xp._compiler.storage import allocate, plan_blocks
from mlp_xp._engines.base import State, make_step
from mlp_xp._engines.capture import step_into
from mlp_xp._engines.recordable import BatchSpecs, StepSpec, array_spec, compile_step, filled
from mlp_xp._engines.recordable import is_number as is_state_number
from mlp_xp._engines.step_numbers import OPERATORS, StepNumber
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._parameters import is_array, leaves, with_leaves
from mlp_xp._samples import Batch

Launch: TypeAlias = Callable[[int, int, Sequence[Any]], None]
"""``(number of blocks, number of threads of a block, arguments)``

It launches a kernel on the current stream. The arguments are contiguous arrays, and NumPy's uint32.
"""


class KernelError(RuntimeError):
    """Kernels cannot be compiled, loaded or launched."""


class KernelLibrary(Protocol):
    """Kernels on the arrays of a library that are on one device, which is the current one.

    Attributes
    ----------
    device : Device
    max_threads : int
        Maximum number of threads of a block.
    """

    device: Device
    max_threads: int

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[[str], Launch]:
        """Compile C++ source, and load it; return the function that finds a kernel by its name.

        They raise a `KernelError` if that fails. They are not called during a capture; a kernel that was
        found can be captured.
        """

    def counters(self, count: int) -> Array:
        """Return zeros of 32 bits, in memory that no captured graph writes in unless it is told to."""

    def contiguous(self, array: Array) -> Array:
        """Return an array if it is contiguous by rows, or else a copy that is."""


class FusedStep:
    """A step (see `mlp_xp._engines.capture.StepInto`) that launches fused kernels.

    Steps that the compiler cannot record, and those whose kernels do not run, run call by call. The
    parameters and arrays of optimizer state are overwritten.
    """

    def __init__(self, network: Network, optimizer: Optimizer, xp: Namespace, kernels: KernelLibrary) -> None:
        self.network = network
        self.optimizer = optimizer
        self.xp = xp
        self.kernels = kernels
        self.call_by_call = step_into(make_step(network, optimizer, xp))
        self.programs: dict[Any, _BoundProgram | None] = {}
        self.pool: list[Array] = []

    def __call__(self, state: State, batch: Batch, learning_rate: float, loss: Array) -> State:
        """Do one step."""
        key = tuple(None if array is None else (tuple(array.shape), array.dtype) for array in batch)
        if key not in self.programs:
            self.programs[key] = self._make_program(state, batch)
        program = self.programs[key]
        if program is not None:
            try:
                return program.run(state, batch, learning_rate, loss)
            except KernelError:
                if program.has_launched:
                    raise  # kernels may have overwritten a part of the state
                self.programs[key] = None
        return self.call_by_call(state, batch, learning_rate, loss)

    def _make_program(self, state: State, batch: Batch) -> _BoundProgram | None:
        """Return the program for a state and a batch of these shapes; None if there is none."""
        try:
            specs = tuple(None if array is None else array_spec(array) for array in batch)
            plain = _with_plain_numbers(state)
            program = _compile(self.network, self.optimizer, plain, specs, self.kernels.max_threads)
            return _BoundProgram(program, self.xp, self.kernels, self.pool)
        except (NotRecordableError, KernelError):
            return None


def _compile(
    network: Network, optimizer: Optimizer, state: State, batch: BatchSpecs, max_threads: int
) -> KernelProgram:
    step = StepSpec.of(network, optimizer, state, batch)
    program: KernelProgram = compile_step(write_kernels, step, min(THREADS, max_threads), tuple(OPERATORS))
    return program


def bytes_of_fused_step(
    network: Network, optimizer: Optimizer, state: State, batch: BatchSpecs, max_threads: int
) -> int | None:
    """Return the number of bytes that a fused step allocates; None if it runs call by call.

    Of the state it reads shapes and dtypes only, which the leaves may be.
    """
    try:
        program = _compile(network, optimizer, state, batch, max_threads)
    except NotRecordableError:
        return None
    return sum(block.size * int(block.dtype.itemsize) for block in set(plan_blocks(program.plan).values()))


def _with_plain_numbers(state: State) -> State:
    """Return the state with a number in place of each `StepNumber`."""
    plain: State = with_leaves(
        state, [0.0 if isinstance(leaf, StepNumber) else leaf for leaf in leaves(state)]
    )
    return plain


class _BoundProgram:
    """A step's compiled kernels with the memory that they share, which one stream uses at a time.

    Parameters
    ----------
    program : KernelProgram
    xp : namespace
    kernels : KernelLibrary
    pool : list of array
        Vectors that programs for batches of other lengths use too; it gets more where these do not suffice.
    """

    def __init__(
        self, program: KernelProgram, xp: Namespace, kernels: KernelLibrary, pool: list[Array]
    ) -> None:
        self.plan, self.threads = program.plan, program.threads
        self.xp = xp
        self.kernels = kernels
        self.has_launched = False
        self.host_numbers = [
            value for value in reachable(self.plan.traced.roots) if is_number(value) and value.kind == "map"
        ]
        options = "--std=c++17", f"-DTHREADS={self.threads}", f"-DLANES={min(LANES, self.threads)}"
        self.find_kernel = kernels.compile(program.source, options)
        self.pool = pool
        self.unused = list(pool)
        self.arrays = allocate(self.plan, self.empty)
        calls = [call for stage in program.kernels for kernel in stage for call in kernel.calls]
        # Counters are zero before and after each launch.
        counters = kernels.counters(sum(call.n_counters for call in calls))
        self.counters = dict(zip(map(id, calls), _parts(counters, [call.n_counters for call in calls])))
        self.launches = [[self._launch(kernel) for kernel in stage] for stage in program.kernels]

    def empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        """Return a vector of the pool that this program has no other use of."""
        own = getattr(self.xp, dtype.name)
        fitting = [vector for vector in self.unused if vector.dtype == own and vector.shape[0] >= size]
        if fitting:
            vector = min(fitting, key=lambda vector: int(vector.shape[0]))
            self.unused = [other for other in self.unused if other is not vector]
            return vector[:size]
        self.pool.append(self.xp.empty(size, dtype=own, device=self.kernels.device))
        return self.pool[-1]

    def number(self, value: float) -> Array:
        """Return a number in the parameters' dtype as an array of shape ()."""
        dtype = getattr(self.xp, self.plan.traced.state[0].dtype.name)
        return self.xp.full((), value, dtype=dtype, device=self.kernels.device)

    def _launch(self, kernel: Kernel) -> _Launch:
        """Return how to launch a kernel: with arguments that are the same for all steps, and others."""
        arguments: list[Any] = []
        others: list[tuple[int, Argument]] = []
        for call in kernel.calls:
            arguments += map(np.uint32, (call.n_blocks, *call.sizes))
            for argument in call.arguments:
                fixed = self._fixed_argument(call, argument)
                if fixed is None:
                    others.append((len(arguments), argument))
                arguments.append(fixed)
        n_blocks = sum(call.n_blocks for call in kernel.calls)
        return _Launch(self.find_kernel(kernel.name), n_blocks, arguments, others)

    def _fixed_argument(self, call: Call, argument: Argument) -> Array | None:
        value = argument.value
        if value is None:
            return self.counters[id(call)]
        if argument.kind == "parts":
            return self.empty(call.n_parts[id(value)], value.dtype)
        return self.arrays.get(id(value)) if argument.kind != "number" else None

    def run(self, state: State, batch: Batch, learning_rate: float, loss: Array) -> State:
        """Launch the kernels and products of a step."""
        traced, old = self.plan.traced, leaves(state)
        scalars = [learning_rate, *filter(_is_number_leaf, old)]
        run = _Run(self, list(filter(_is_array_leaf, old)), batch, scalars, loss)
        for stage, launches in zip(self.plan.stages, self.launches):
            for launch in launches:
                arguments = list(launch.arguments)
                for position, argument in launch.others:
                    arguments[position] = run.argument(argument)
                launch.function(launch.n_blocks, self.threads, arguments)
                self.has_launched = True
            for product in stage.products:
                left, right = map(run.array, product.operands)
                self.xp.matmul(left, right, out=self.arrays[id(product)])
        arrays = list(run.state)
        for target, value in self.plan.copies:
            # A copy, because the next step writes in the program's arrays.
            arrays[target] = copy_array(self.xp, run.array(value))
        return filled(_with_plain_numbers(state), arrays, map(run.number, traced.results[1:]))


class _Launch(NamedTuple):
    """A kernel's function, its grid and arguments; `others` are those that differ from step to step."""

    function: Launch
    n_blocks: int
    arguments: list[Any]
    others: list[tuple[int, Argument]]


def _is_number_leaf(leaf: Any) -> bool:
    return isinstance(leaf, StepNumber) or is_state_number(leaf)


def _is_array_leaf(leaf: Any) -> bool:
    return is_array(leaf) and not isinstance(leaf, StepNumber)


def _parts(array: Array, lengths: list[int]) -> list[Array]:
    ends = list(accumulate(lengths))
    return [array[end - length : end] for end, length in zip(ends, lengths)]


class _Run:
    """The arrays and numbers of one run of a program."""

    def __init__(
        self,
        program: _BoundProgram,
        state: list[Array],
        batch: Batch,
        scalars: list[Any],
        loss: Array,
    ) -> None:
        self.program = program
        self.state = state
        self.batch = batch
        self.scalars = scalars
        self.loss = loss
        self.numbers: dict[int, Any] = {}
        for value in program.host_numbers:
            self.numbers[id(value)] = OPERATORS[value.function](*map(self.number, value.operands))

    def array(self, value: Value) -> Array:
        """Return the array of a value that is in memory."""
        fixed = self.program.arrays.get(id(value))
        if fixed is not None:
            return fixed
        if value.kind == "transpose":
            return self.array(value.operands[0]).T
        if value.kind == "reshape":
            return self.array(value.operands[0]).reshape(value.shape)
        if value.kind == "state":
            return self.state[value.detail]
        if value.kind == "input":
            return self.batch[value.detail]
        if value is self.program.plan.traced.results[0]:
            return self.loss
        return self.state[self.program.plan.in_place[id(value)]]

    def number(self, value: Any) -> Any:
        """Return a number of the host: one that changes from step to step during a capture."""
        if not isinstance(value, Value):
            return value
        if value.kind == "scalar_input":
            return self.scalars[value.detail]
        return self.numbers[id(value)]

    def argument(self, argument: Argument) -> Array:
        """Return an argument of a kernel."""
        assert argument.value is not None
        if argument.kind != "number":
            array = self.array(argument.value)
            # Arrays of the state and computed ones are contiguous.
            return self.program.kernels.contiguous(array) if argument.value.kind == "input" else array
        number = self.number(argument.value)
        if isinstance(number, StepNumber):
            return number.row.entry_of(number)
        return self.program.number(number)
