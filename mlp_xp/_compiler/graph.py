"""The graph of a traced function (the compiler's IR), and the tracers that build it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from mlp_xp._compiler.languages import SCALAR_EXPRESSIONS

Literal: TypeAlias = "int | float"
Operand: TypeAlias = "Value | Literal"

VIEW_KINDS = ("transpose", "reshape", "slice", "strided")
"""Kinds of values that share the memory of their operand, and need no call."""

SOURCE_KINDS = ("state", "state_group", "input", "scalar_input")
"""Kinds of values that exist when a call begins."""

KINDS_WITHOUT_CALL = (*SOURCE_KINDS, *VIEW_KINDS)


class NotRecordableError(Exception):
    """The function does something that the compiler does not support; run it uncompiled.

    Mostly raised while the function is recorded, but later stages raise it too: `schedule`, `memory` and
    `source`, for graphs that they cannot compile.
    """


@dataclass(eq=False)  # compared by identity: passes change values in place
class Value:
    """A node of the graph: an array or a scalar, and the operation that computes it.

    Attributes
    ----------
    kind : str
        The operation. "state": an array that the program owns and updates. "input": an array argument of
        the call. "scalar_input": a Python number that is an argument. "map": the ufunc `function` of the
        operands. "reduce": the ufunc `function` along an axis. "matmul", "transpose", "reshape", "zeros".
        Passes add "affine", "affine_gradient", "slice", "state_group" and "concatenation", see
        `mlp_xp._compiler.passes`, "accumulate", see `mlp_xp._compiler.accumulate`, and "dot", "outer",
        "join" and "strided", see `mlp_xp._compiler.products`.
    shape : tuple of int
    dtype : dtype, or None for a Python number
    function : ufunc, optional
    operands : tuple of Value or number
    detail : object
        Parameters of the operation: the index of an argument, the axis of a reduction.
    priority : float
        The priority in the schedule: of values that are ready, the one with the lowest comes first.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: Any
    function: Any = None
    operands: tuple[Any, ...] = ()
    detail: Any = None
    priority: float = 0.0

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of its elements."""
        return self.size * (0 if self.dtype is None else int(self.dtype.itemsize))

    @property
    def arrays(self) -> tuple[Value, ...]:
        """The operands that are not literals."""
        return tuple(operand for operand in self.operands if isinstance(operand, Value))

    @property
    def base(self) -> Value:
        """The value that owns the memory: itself, or the one that it is a view of."""
        value = self
        while value.kind in VIEW_KINDS:
            value = value.operands[0]
        return value


@dataclass
class Graph:
    """Values in the order of their computation, after common subexpression elimination (see `add`)."""

    values: list[Value] = field(default_factory=list)
    interned: dict[Any, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        names = {id(value): f"%{index}" for index, value in enumerate(self.values)}
        lines = []
        for value in self.values:
            parts = [value.kind, *([value.function.__name__] if value.kind in ("map", "reduce") else [])]
            parts += [names.get(id(operand), str(operand)) for operand in value.operands]
            parts += [] if value.detail is None else [f"[{value.detail}]"]
            dtype = "number" if value.dtype is None else value.dtype
            lines.append(f"{names[id(value)]}: {dtype} {value.shape} = {' '.join(parts)}")
        return "\n".join(lines)

    def add(
        self,
        kind: str,
        shape: tuple[int, ...],
        dtype: Any,
        function: Any = None,
        operands: Iterable[Operand] = (),
        detail: Any = None,
    ) -> Value:
        """Return the value of this operation, which is added unless an equal one is in the graph.

        So equal operations on equal operands are one value (common subexpression elimination).
        """
        operands = tuple(operands)
        # The literals 1, 1.0 and True are equal, but of different types.
        key = (
            kind,
            shape,
            dtype,
            function,
            detail,
            *((type(x), x) if not isinstance(x, Value) else id(x) for x in operands),
        )
        if key not in self.interned:
            self.interned[key] = Value(kind, shape, dtype, function, operands, detail, len(self.values))
            self.values.append(self.interned[key])
        return self.interned[key]

    def new_tracer(self, value: Value) -> Tracer:
        """Return the tracer of a newly allocated array; subclasses may return their own."""
        return Tracer(self, value)

    def map(self, function: np.ufunc, operands: tuple[Operand, ...]) -> Value:
        """Return `function` of each element."""
        function, operands = _reduce_strength(function, operands)
        # An array of zeros beside an operand of the same shape and dtype is as good as the literal 0.0.
        full = {(x.shape, x.dtype) for x in operands if isinstance(x, Value) and x.kind != "zeros"}
        operands = tuple(
            0.0 if isinstance(x, Value) and x.kind == "zeros" and (x.shape, x.dtype) in full else x
            for x in operands
        )
        arrays = [x for x in operands if isinstance(x, Value) and x.dtype is not None]
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        dtype = None
        if arrays:
            types = [dtype_or_python_type(x) for x in operands]
            dtype = function.resolve_dtypes((*types, None))[-1]
        elif function not in SCALAR_EXPRESSIONS:
            # A ufunc of Python numbers returns a NumPy scalar.
            dtype = np.dtype(float)
        return self.add("map", shape, dtype, function, operands)

    def where(self, condition: Value, x: Operand, y: Operand) -> Value:
        """Return the elements of `x` where the condition holds, else of `y`."""
        arrays = [v for v in (x, y) if isinstance(v, Value) and v.dtype is not None]
        shape = np.broadcast_shapes(condition.shape, *(v.shape for v in arrays))
        if condition.dtype != np.dtype(bool) or len({v.dtype for v in arrays}) != 1:
            raise NotRecordableError("where of different dtypes")
        return self.add("map", shape, arrays[0].dtype, np.where, (condition, x, y))

    def matmul(self, a: Value, b: Value) -> Value:
        """Return the matrix product of matrices, or the inner product of vectors."""
        if (len(a.shape), len(b.shape)) not in ((2, 2), (1, 1)) or a.dtype != b.dtype:
            raise NotRecordableError("a product other than of two matrices or two vectors of one dtype")
        if a.shape[-1] != b.shape[0]:
            raise NotRecordableError("a product of shapes that do not fit")
        return self.add("matmul", (*a.shape[:-1], *b.shape[1:]), a.dtype, np.matmul, (a, b))

    def reduce(self, function: np.ufunc, a: Value, axis: int | None, keepdims: bool) -> Value:
        """Return `function` applied along an axis, or to all elements."""
        if axis is None:
            shape: tuple[int, ...] = (1,) * len(a.shape) if keepdims else ()
        else:
            axis = range(len(a.shape))[axis]
            reduced = (1,) if keepdims else ()
            shape = (*a.shape[:axis], *reduced, *a.shape[axis + 1 :])
        dtype = a.dtype
        if function is np.add and dtype.kind not in "fc":
            raise NotRecordableError("a sum of something other than floats")
        return self.add("reduce", shape, dtype, function, (a,), (axis, keepdims))


def dtype_or_python_type(operand: Operand) -> Any:
    """Return an operand's dtype; of a number its Python type, which NumPy promotes weakly (NEP 50)."""
    if not isinstance(operand, Value):
        return type(operand)
    return float if operand.dtype is None else operand.dtype


def _reduce_strength(
    function: np.ufunc, operands: tuple[Operand, ...]
) -> tuple[np.ufunc, tuple[Operand, ...]]:
    """Replace powers by square and sqrt, which are faster (strength reduction)."""
    if function is np.power and isinstance(operands[0], Value) and operands[0].dtype is not None:
        exponent = operands[1]
        if not isinstance(exponent, Value) and exponent in (2, 0.5):
            return (np.square if exponent == 2 else np.sqrt), operands[:1]
    return function, operands


def reachable(roots: Iterable[Value]) -> list[Value]:
    """List the values that the roots depend on, in topological order; all others are dead code."""
    found: set[int] = set()
    sorted_values: list[Value] = []
    stack = [(root, False) for root in roots]
    while stack:
        value, operands_done = stack.pop()
        if operands_done:
            sorted_values.append(value)
        elif id(value) not in found:
            found.add(id(value))
            stack.append((value, True))
            stack.extend((operand, False) for operand in value.arrays)
    return sorted_values


def find_users(values: Iterable[Value]) -> dict[int, list[Value]]:
    """Map the id of each value to the values that have it as an operand."""
    users: dict[int, list[Value]] = {}
    for value in values:
        for operand in value.arrays:
            users.setdefault(id(operand), []).append(value)
    return users


class Tracer(NDArrayOperatorsMixin):
    """Stands for an array or a Python number while a function is traced; adds each operation to the graph."""

    def __init__(self, graph: Graph, value: Value) -> None:
        self._graph = graph
        self.value = value
        self._viewed: Tracer | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.value.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.value.size

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        return self.value.dtype

    def _transposed(self) -> Tracer:
        if self.ndim != 2:
            raise NotRecordableError("the transpose of an array that is no matrix")
        return self._view("transpose", self.shape[::-1])

    T = property(_transposed, doc="The transposed matrix.")

    def _view(self, kind: str, shape: tuple[int, ...]) -> Tracer:
        view = Tracer(self._graph, self._graph.add(kind, shape, self.dtype, operands=(self.value,)))
        view._viewed = self
        return view

    def current_value(self) -> Value:
        """Return the current value; views of an array that has since been written to are refused."""
        # The graph has no aliasing: a view's value would still be of the array before the write.
        if self._viewed is not None and self._viewed.current_value() is not self.value.operands[0]:
            raise NotRecordableError("a view of an array that was written to in the meantime")
        return self.value

    def _raise_data_dependent(self, *_: Any) -> Any:
        raise NotRecordableError("control flow that depends on elements of an array")

    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = __complex__ = __array__ = (
        _raise_data_dependent
    )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        (target,) = options.pop("out", (None,))
        supported = ufunc.signature is None or ufunc is np.matmul
        if method != "__call__" or options or ufunc.nout != 1 or not supported:
            raise NotRecordableError(f"{ufunc.__name__}.{method} with {options}")
        if all(x.dtype == np.float64 for x in inputs if isinstance(x, Tracer)):
            # Among float64 arrays alone, a float64 scalar promotes as a Python float does.
            inputs = tuple(float(x) if type(x) is np.float64 else x for x in inputs)
        operands = tuple(map(_operand, inputs))
        graph = self._graph
        value = graph.matmul(*operands) if ufunc is np.matmul else graph.map(ufunc, operands)
        if target is None:
            return graph.new_tracer(value)
        if not isinstance(target, Tracer) or target._viewed is not None:
            raise NotRecordableError("writing through a view")
        if (target.shape, target.dtype) != (value.shape, value.dtype):
            raise NotRecordableError("writing into an array of another shape or dtype")
        target.value = value
        return target

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function not in _FUNCTIONS:
            raise NotRecordableError(f"{function.__name__}")
        return _FUNCTIONS[function](self._graph, *args, **options)


def _operand(x: Any) -> Any:
    if isinstance(x, Tracer):
        return x.current_value()
    if type(x) in (int, float, bool):
        return x
    raise NotRecordableError(f"an operand of type {type(x).__name__}")


def _reduction(function: np.ufunc) -> Callable[..., Tracer]:
    def reduce(graph: Graph, a: Any, axis: Any = None, *, keepdims: bool = False) -> Tracer:
        if axis is not None and type(axis) is not int:
            raise NotRecordableError("a reduction along several axes")
        value = _operand(a)
        if value.shape == ():
            raise NotRecordableError("a reduction of a number")
        return graph.new_tracer(graph.reduce(function, value, axis, keepdims))

    return reduce


def _where(graph: Graph, condition: Any, x: Any, y: Any) -> Tracer:
    return graph.new_tracer(graph.where(*map(_operand, (condition, x, y))))


def _reshape(graph: Graph, a: Tracer, shape: Any) -> Tracer:
    # NumPy resolves a -1 in the shape, and raises where the sizes differ.
    resolved = np.broadcast_to(0, a.shape).reshape(shape).shape
    return a._view("reshape", resolved)


def _zeros_like(graph: Graph, a: Tracer) -> Tracer:
    if a.shape == () or a.dtype.kind != "f":
        raise NotRecordableError("zeros other than an array of floats")
    return graph.new_tracer(graph.add("zeros", a.shape, a.dtype))


_FUNCTIONS: dict[Any, Callable[..., Tracer]] = {
    np.sum: _reduction(np.add),
    np.max: _reduction(np.maximum),
    np.min: _reduction(np.minimum),
    np.where: _where,
    np.reshape: _reshape,
    np.zeros_like: _zeros_like,
}
