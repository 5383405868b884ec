"""Statistics of a table of which several processes have parts, one after the other in their order.

What is learnt of a column, such as how its cells are read, its median or its categories, depends on all of
its cells. So each process gets whole columns in turn, one at a time, and tells the others what it has learnt
of them (`map_columns`): results are those of one process, whatever is learnt, and a process holds its own
rows and one column. Without `data_parallel` the functions here compute with what they get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import polars as pl

from mlp_xp._processes import current_processes, shared
from mlp_xp.tables._common import DataError, listed

T = TypeVar("T")
U = TypeVar("U")


def map_columns(
    point: str, columns: Mapping[str, pl.Series], function: Callable[[str, pl.Series], T]
) -> dict[str, T]:
    """Return ``function(name, column)`` for each whole column; each process computes some of them."""
    processes = current_processes()
    if processes is None:
        return {name: function(name, column) for name, column in columns.items()}
    names, found = list(columns), {}
    for start in range(0, len(names), processes.size):
        whole = None
        for owner, name in enumerate(names[start : start + processes.size]):
            parts = processes.gather(point, columns[name], owner)
            if parts is not None:
                whole = name, pl.concat(parts)
        if whole is not None:
            found[whole[0]] = function(*whole)
    merged = {name: value for each in processes.exchange(point, found) for name, value in each.items()}
    return {name: merged[name] for name in names}


def total(point: str, value: Any) -> Any:
    """Return the sum of numbers or arrays over the parts."""
    processes = current_processes()
    return value if processes is None else processes.sum(point, value)


def compute_of_parts(point: str, function: Callable[[list[T]], U], value: T) -> U:
    """Return ``function(values)`` of the values of all parts, which the first process computes."""
    processes = current_processes()
    if processes is None:
        return function([value])
    values = processes.gather(point, value)
    found: U = processes.share(point, None if values is None else function(values))
    return found


def any_part(point: str, value: object) -> bool:
    """Return whether a value is true for one of the parts."""
    processes = current_processes()
    return bool(value) if processes is None else processes.any(point, value)


def all_values(point: str, value: T) -> list[T]:
    """Return the values of all parts, in their order."""
    processes = current_processes()
    return [value] if processes is None else processes.exchange(point, value)


def parts_in_order(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the parts of a table in the first process, which gets one after the other; none in others.

    All processes must iterate.
    """
    processes = current_processes()
    if processes is None:
        yield frame
        return
    for part in processes.in_turn("the rows of a table", frame):
        if part is not None:
            yield part


def with_equal_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a part of a table with the columns, in the order and of the types that all parts have together.

    Raises
    ------
    DataError
        If parts have different columns, or a column has types that no type has in common.
    """
    processes = current_processes()
    if processes is None:
        return frame
    schemas = processes.exchange("the columns of a table", dict(frame.schema))
    first = schemas[0]
    for rank, schema in enumerate(schemas):
        if set(schema) != set(first):
            message = (
                f"process {rank} of {processes.size} has the columns {listed(schema)}, process 0 has "
                f"{listed(first)}: they must be the same"
            )
            raise shared(DataError(message))
    types = {name: _common_type(name, [schema[name] for schema in schemas]) for name in first}
    return frame.select(list(first)).cast(types)


def _common_type(name: str, dtypes: list[Any]) -> Any:
    """Return the type that holds the values of a column in all processes."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    found: Any = pl.Null
    for rank, dtype in enumerate(dtypes):
        try:
            both = [pl.Series(name, [], dtype=each).to_frame() for each in (found, dtype)]
            found = pl.concat(both, how="vertical_relaxed").dtypes[0]
        except pl.exceptions.PolarsError as error:
            message = f"the column {name!r} is of {dtype} in process {rank}, but of {found}"
            raise shared(DataError(f"{message} in those before")) from error
    return found
