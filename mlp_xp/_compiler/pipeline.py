"""The pipeline of the writer of NumPy calls, from a Python function to a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlp_xp._compiler.accumulate import fuse_updates_into_products
from mlp_xp._compiler.codegen import generate_program
from mlp_xp._compiler.memory import plan_memory
from mlp_xp._compiler.passes import optimise
from mlp_xp._compiler.program import Program
from mlp_xp._compiler.schedule import make_schedule
from mlp_xp._compiler.trace import TracedFunction, trace_function


def write_calls(traced: TracedFunction) -> Program:
    """Return the program of a traced function, as NumPy calls.

    Raises
    ------
    NotRecordableError
        If there is something that cannot be compiled.
    """
    # Before the other passes, which rewrite the products and updates that it looks for.
    fuse_updates_into_products(traced)
    optimise(traced)
    schedule = make_schedule(traced)
    # This also computes the live ranges (`liveness`), and fuses elementwise values into loops (`regions`).
    plan = plan_memory(traced, schedule)
    return generate_program(traced, schedule, plan)


def compile_function(
    function: Callable[..., tuple[Sequence[Any], Sequence[Any]]],
    state: Sequence[Sequence[Any]],
    inputs: Sequence[Any],
    n_scalars: int = 0,
    has_ones_column: bool = False,
) -> Program:
    """Trace a function and compile it to NumPy calls.

    Parameters
    ----------
    function : callable ``(state, inputs, scalars) -> (new_state, results)``
        Pure, on NumPy arrays. `state` is one list of all arrays; `new_state` has None for arrays that do
        not change; `results` are arrays or numbers.
    state : sequence of sequences of array
        The arrays that the program updates, in groups: each group will be one flat array. Only their
        shapes and dtypes matter, as do those of `inputs`.
    inputs : sequence of array or None
        Arrays that are arguments of each call.
    n_scalars : int, default=0
        The number of Python numbers that are arguments of each call.
    has_ones_column : bool, default=False
        The first input, a matrix, will be passed with one more column, which holds ones.

    Returns
    -------
    Program
        Bound to memory, a function ``(*inputs, *scalars) -> results``.

    Raises
    ------
    NotRecordableError
        If the function does something that the compiler does not support.
    """
    return write_calls(trace_function(function, state, inputs, n_scalars, has_ones_column))
