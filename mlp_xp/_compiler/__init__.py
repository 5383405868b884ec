"""A compiler for steps on NumPy arrays: the math as it stands, as straight lines of calls without allocation.

NumPy runs each array call as it comes. On small networks the calls themselves take the time, on large
ones the passes over memory beside the matrix products. So a step is recorded once, on arrays without
numbers (`graph`), rewritten to fewer calls (`passes`), put in order (`schedule`), given memory that it
reuses (`memory`), and written out as Python source (`code`). What cannot be recorded runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlp_xp._compiler.codegen import Program, compiled
from mlp_xp._compiler.graph import Graph, NotRecordableError, Tracer, Value
from mlp_xp._compiler.passes import Layout, Record
from mlp_xp._compiler.schedule import base

__all__ = ["NotRecordableError", "Program", "compile_function"]


def compile_function(
    function: Callable[..., tuple[Sequence[Any], Sequence[Any]]],
    owned: Sequence[Sequence[Any]],
    given: Sequence[Any],
    n_numbers: int = 0,
    widened: bool = False,
) -> Program:
    """Record a function and write its program.

    Parameters
    ----------
    function : callable ``(owned, given, numbers) -> (updated, results)``
        Pure, on NumPy arrays. `updated` lists what the owned arrays hold afterwards, None where they
        stay as they are; `results` are arrays or numbers.
    owned : sequence of sequences of array
        The arrays that the program keeps, in groups: each group will be one flat array. Their shapes
        and dtypes count alone, as do those of `given`.
    given : sequence of array or None
        Arrays that come with each call.
    n_numbers : int, default=0
        How many Python numbers come with each call.
    widened : bool, default=False
        The first of `given`, a matrix, will come with a column of ones behind its own.

    Returns
    -------
    Program
        Bound to memory, a function ``(*given, *numbers) -> results``.

    Raises
    ------
    NotRecordableError
        If the function does what a program cannot.
    """
    graph = Graph()
    arrays = [array for group in owned for array in group]
    starts = [sum(len(group) for group in owned[:index]) for index in range(len(owned))]
    groups = [list(range(start, start + len(group))) for start, group in zip(starts, owned)]
    if any(array.dtype != group[0].dtype for group in owned for array in group):
        raise NotRecordableError("owned arrays of different dtypes")
    if any(array.shape == () for array in [*arrays, *given] if array is not None):
        raise NotRecordableError("an array without dimensions")
    kept = [graph.add("owned", array.shape, array.dtype, detail=i) for i, array in enumerate(arrays)]
    come = [
        None if array is None else graph.add("given", array.shape, array.dtype, detail=i)
        for i, array in enumerate(given)
    ]
    numbers = [graph.add("host", (), None, detail=i) for i in range(n_numbers)]

    def traced(values: Sequence[Value | None]) -> list[Tracer | None]:
        return [None if value is None else Tracer(graph, value) for value in values]

    try:
        updated, results = function(traced(kept), traced(come), traced(numbers))
    except NotRecordableError:
        raise
    except Exception as error:
        raise NotRecordableError(f"{type(error).__name__}: {error}") from error
    updates = {}
    for index, (before, after) in enumerate(zip(kept, updated, strict=True)):
        value = before if after is None else _asked(after)
        if value is not before:
            if not isinstance(value, Value) or (value.shape, value.dtype) != (before.shape, before.dtype):
                raise NotRecordableError("an owned array that changes its shape or dtype")
            updates[index] = value
    layout = Layout(groups, [value.size for value in kept])
    asked = list(map(_asked, results))
    overwritten = [kept[index] for index in updates]
    if any(isinstance(value, Value) and base(value) in overwritten for value in asked):
        raise NotRecordableError("an owned array as it was before it changed")
    return compiled(Record(graph, layout, kept, updates, asked, widened), len(given), n_numbers)


def _asked(result: Any) -> Value | float:
    if isinstance(result, Tracer):
        return result.read()
    if type(result) not in (int, float):
        raise NotRecordableError(f"a result that is {type(result).__name__}, known to nobody")
    number: float = result
    return number
