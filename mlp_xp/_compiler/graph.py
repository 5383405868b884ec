"""What a function of NumPy arrays computes, written down by running it once on arrays without numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

Literal: TypeAlias = "int | float"
Operand: TypeAlias = "Value | Literal"


OPERATORS = {
    np.add: "({} + {})",
    np.subtract: "({} - {})",
    np.multiply: "({} * {})",
    np.divide: "({} / {})",
    np.power: "({} ** {})",
    np.floor_divide: "({} // {})",
    np.remainder: "({} % {})",
    np.negative: "(-{})",
    np.absolute: "abs({})",
    np.greater: "({} > {})",
    np.greater_equal: "({} >= {})",
    np.less: "({} < {})",
    np.less_equal: "({} <= {})",
    np.where: "({1} if {0} else {2})",
}
"""How numbers are computed with; arrays have ufuncs."""


class NotRecordableError(Exception):
    """The function does something that its record could not repeat; it is to be run as it is."""


@dataclass(eq=False)
class Value:
    """One array, or number, on the way from the arguments to the results.

    Attributes
    ----------
    kind : str
        Where it comes from. "owned": an array that the program keeps. "given": an array of the call.
        "host": a Python number of the call. "map": `function` on each element of the operands.
        "reduce": `function` along an axis. "matmul", "transpose", "reshape", "zeros". Passes add
        "affine", "affine_gradient", "part", "arena" and "joint", see `mlp_xp._compiler.passes`, and
        "accumulate", see `mlp_xp._compiler.accumulate`.
    shape : tuple of int
    dtype : dtype, or None for a Python number
    function : ufunc, optional
    operands : tuple of Value or number
    detail : object
        What else there is to say: the index of an argument, the axis of a reduction.
    order : float
        Values are computed in this order where nothing else speaks against it.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: Any
    function: Any = None
    operands: tuple[Any, ...] = ()
    detail: Any = None
    order: float = 0.0

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


@dataclass
class Graph:
    """Values in the order they were computed; the same computation is written down once."""

    values: list[Value] = field(default_factory=list)
    known: dict[Any, Value] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        shape: tuple[int, ...],
        dtype: Any,
        function: Any = None,
        operands: Iterable[Operand] = (),
        detail: Any = None,
    ) -> Value:
        """Return the value computed in this way."""
        operands = tuple(operands)
        key = (
            kind,
            shape,
            dtype,
            function,
            detail,
            *((type(x), x) if not isinstance(x, Value) else id(x) for x in operands),
        )
        if key not in self.known:
            self.known[key] = Value(kind, shape, dtype, function, operands, detail, len(self.values))
            self.values.append(self.known[key])
        return self.known[key]

    def trace(self, value: Value) -> Tracer:
        """Return what stands for a new array while a function is recorded."""
        return Tracer(self, value)

    def map(self, function: np.ufunc, operands: tuple[Operand, ...]) -> Value:
        """Return `function` of each element."""
        function, operands = _simplified(function, operands)
        full = {(x.shape, x.dtype) for x in operands if isinstance(x, Value) and x.kind != "zeros"}
        operands = tuple(
            0.0 if isinstance(x, Value) and x.kind == "zeros" and (x.shape, x.dtype) in full else x
            for x in operands
        )
        strong = [x for x in operands if isinstance(x, Value) and x.dtype is not None]
        shape = np.broadcast_shapes(*(x.shape for x in strong))
        dtype = None
        if strong:
            kinds = [x.dtype if isinstance(x, Value) and x.dtype is not None else weak(x) for x in operands]
            dtype = function.resolve_dtypes((*kinds, None))[-1]
        elif function not in OPERATORS:
            # NumPy's own number, which is no Python number any more.
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
            raise NotRecordableError("a product other than of two matrices or two vectors")
        if a.shape[-1] != b.shape[0]:
            raise NotRecordableError("a product of shapes that do not fit")
        return self.add("matmul", (*a.shape[:-1], *b.shape[1:]), a.dtype, np.matmul, (a, b))

    def reduce(self, function: np.ufunc, a: Value, axis: int | None, keepdims: bool) -> Value:
        """Return `function` applied along an axis, or to all elements."""
        if axis is None:
            shape: tuple[int, ...] = (1,) * len(a.shape) if keepdims else ()
        else:
            axis = range(len(a.shape))[axis]
            kept = (1,) if keepdims else ()
            shape = (*a.shape[:axis], *kept, *a.shape[axis + 1 :])
        dtype = a.dtype
        if function is np.add and dtype.kind not in "fc":
            raise NotRecordableError("a sum of something other than floats")
        return self.add("reduce", shape, dtype, function, (a,), (axis, keepdims))


def weak(operand: Operand) -> type:
    """Return the type of a Python number, whose dtype follows the arrays it meets."""
    return type(operand) if not isinstance(operand, Value) else float


def _simplified(function: np.ufunc, operands: tuple[Operand, ...]) -> tuple[np.ufunc, tuple[Operand, ...]]:
    if function is np.power and isinstance(operands[0], Value) and operands[0].dtype is not None:
        exponent = operands[1]
        if not isinstance(exponent, Value) and exponent in (2, 0.5):
            return (np.square if exponent == 2 else np.sqrt), operands[:1]
    return function, operands


class Tracer(NDArrayOperatorsMixin):
    """Stands for an array, or a Python number, while a function is recorded."""

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
            raise NotRecordableError("a transposed array that is no matrix")
        return self._view("transpose", self.shape[::-1])

    T = property(_transposed, doc="The transposed matrix.")

    def _view(self, kind: str, shape: tuple[int, ...]) -> Tracer:
        view = Tracer(self._graph, self._graph.add(kind, shape, self.dtype, operands=(self.value,)))
        view._viewed = self
        return view

    def read(self) -> Value:
        """Return the value, which a view has only as long as nobody writes in what it looks at."""
        if self._viewed is not None and self._viewed.read() is not self.value.operands[0]:
            raise NotRecordableError("an array that changes while something else looks at it")
        return self.value

    def _refuse(self, *_: Any) -> Any:
        raise NotRecordableError("a decision by the numbers in an array")

    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = __complex__ = __array__ = _refuse

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        (target,) = options.pop("out", (None,))
        known = ufunc.signature is None or ufunc is np.matmul
        if method != "__call__" or options or ufunc.nout != 1 or not known:
            raise NotRecordableError(f"{ufunc.__name__}.{method} with {options}")
        if all(x.dtype == np.float64 for x in inputs if isinstance(x, Tracer)):
            # Among arrays of its own dtype a NumPy number is like Python's.
            inputs = tuple(float(x) if type(x) is np.float64 else x for x in inputs)
        operands = tuple(map(_operand, inputs))
        graph = self._graph
        value = graph.matmul(*operands) if ufunc is np.matmul else graph.map(ufunc, operands)
        if target is None:
            return graph.trace(value)
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
        return x.read()
    if type(x) in (int, float, bool):
        return x
    raise NotRecordableError(f"an operand that is {type(x).__name__}, known to nobody")


def _reduction(function: np.ufunc) -> Callable[..., Tracer]:
    def reduce(graph: Graph, a: Any, axis: Any = None, *, keepdims: bool = False) -> Tracer:
        if axis is not None and type(axis) is not int:
            raise NotRecordableError("a reduction along several axes")
        value = _operand(a)
        if value.shape == ():
            raise NotRecordableError("a reduction of a number")
        return graph.trace(graph.reduce(function, value, axis, keepdims))

    return reduce


def _where(graph: Graph, condition: Any, x: Any, y: Any) -> Tracer:
    return graph.trace(graph.where(*map(_operand, (condition, x, y))))


def _reshape(graph: Graph, a: Tracer, shape: Any) -> Tracer:
    known = np.broadcast_to(0, a.shape).reshape(shape).shape
    return a._view("reshape", known)


def _zeros_like(graph: Graph, a: Tracer) -> Tracer:
    if a.shape == () or a.dtype.kind != "f":
        raise NotRecordableError("zeros other than an array of floats")
    return graph.trace(graph.add("zeros", a.shape, a.dtype))


_FUNCTIONS: dict[Any, Callable[..., Tracer]] = {
    np.sum: _reduction(np.add),
    np.max: _reduction(np.maximum),
    np.min: _reduction(np.minimum),
    np.where: _where,
    np.reshape: _reshape,
    np.zeros_like: _zeros_like,
}
