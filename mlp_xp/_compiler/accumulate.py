"""Updates that a product does itself: ``p <- beta p + alpha a @ b`` in one call of the BLAS.

NumPy has no such call, SciPy has. Where it is installed, large arrays are updated so: gradients that
are used for nothing else are never in memory, and no pass over them is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlp_xp._compiler.graph import Graph, Value
from mlp_xp._compiler.passes import Record, live, users
from mlp_xp._compiler.schedule import base

ACCUMULATED_ELEMENTS = 2**17
"""Of an updated array, from where on a pass over it takes longer than all else that this changes."""

Blas = dict[str, Callable[..., Any]]


def accumulate(record: Record) -> None:
    """Let products do the updates that are sums of the old array and the product, each times a number."""
    of = users(live(record.roots))
    asked = {id(value) for value in record.results if isinstance(value, Value)}
    for target, value in record.updates.items():
        if value.kind != "map" or value.dtype not in (np.float32, np.float64):
            continue
        if value.size < ACCUMULATED_ELEMENTS or len(value.shape) != 2 or not _blas():
            continue
        sums = _Sums(record.graph, of, asked)
        terms = sums.terms(value)
        products = [term for term in terms if term.kind == "matmul" and sums.is_passing(term)]
        if len(terms) != 2 or record.owned[target] not in terms or len(products) != 1:
            continue
        factors = products[0].operands
        if not any(base(factor) is record.owned[target] for factor in factors):
            numbers = terms[record.owned[target]], terms[products[0]]
            value.kind, value.function = "accumulate", None
            value.operands = (record.owned[target], *factors, *numbers)


class _Sums:
    """Takes sums of arrays apart."""

    def __init__(self, graph: Graph, of: dict[int, list[Value]], asked: set[int]) -> None:
        self.graph = graph
        self.users = of
        self.asked = asked

    def terms(self, value: Value, *, whole: bool = True) -> dict[Value, Any]:
        """Return the arrays that the value is the sum of, and what number each is times."""
        parts = self._parts(value) if whole or self.is_passing(value) else None
        if parts is None:
            return {value: 1.0}
        terms: dict[Value, Any] = {}
        for factor, part in parts:
            for term, number in self.terms(part, whole=False).items():
                number = self._computed(np.multiply, factor, number)
                terms[term] = self._computed(np.add, terms[term], number) if term in terms else number
        return terms

    def is_passing(self, value: Value) -> bool:
        """Whether nothing else needs the value."""
        return len(self.users.get(id(value), [])) == 1 and id(value) not in self.asked

    def _parts(self, value: Value) -> list[tuple[Any, Value]] | None:
        if value.kind != "map" or any(_shape(x) not in ((), value.shape) for x in value.operands):
            return None
        arrays = [x for x in value.operands if _shape(x) != ()]
        numbers = [x for x in value.operands if _shape(x) == ()]
        if any(isinstance(x, Value) and x.dtype is not None for x in numbers):
            return None
        if value.function in (np.add, np.subtract) and len(arrays) == 2:
            return [(1.0, arrays[0]), (1.0 if value.function is np.add else -1.0, arrays[1])]
        if value.function is np.multiply and len(arrays) == 1:
            return [(numbers[0], arrays[0])]
        return [(-1.0, arrays[0])] if value.function is np.negative else None

    def _computed(self, function: np.ufunc, x: Any, y: Any) -> Any:
        if not isinstance(x, Value) and not isinstance(y, Value):
            return float(function(x, y))
        if function is np.multiply and 1.0 in (x, y):
            return y if x == 1.0 else x
        return self.graph.map(function, (x, y))


def _shape(operand: Any) -> tuple[int, ...]:
    return operand.shape if isinstance(operand, Value) else ()


def calls() -> Blas:
    """Return the calls of a program with such updates: SciPy's, for all of its products.

    Two libraries at work in turn, each with threads of its own, would get in each other's way.
    """
    blas = _blas()
    gemm = {np.dtype(np.float32): blas["sgemm"], np.dtype(np.float64): blas["dgemm"]}
    inner = {np.dtype(np.float32): blas["sdot"], np.dtype(np.float64): blas["ddot"]}

    def accumulated(beta: float, out: Any, alpha: float, a: Any, b: Any) -> None:
        # What is stored row by row is, for a BLAS that counts column by column, the transpose.
        left, left_turned = _by_columns(b.T)
        right, right_turned = _by_columns(a.T)
        gemm[out.dtype](alpha, left, right, beta, out.T, left_turned, right_turned, 1)

    def product(a: Any, b: Any, out: Any = None) -> Any:
        if out is None:
            return inner[a.dtype](a, b)
        if a.ndim == 1:
            a, out = a[None], out[None]
        if a.flags.forc and b.flags.forc and out.flags.c_contiguous and a.dtype in gemm:
            accumulated(0.0, out, 1.0, a, b)
        else:
            np.matmul(a, b, out)
        return None

    return {"dot": product, "matmul": product, "accumulated": accumulated}


def _by_columns(array: Any) -> tuple[Any, bool]:
    return (array, False) if array.flags.f_contiguous else (array.T, True)


def _blas() -> Blas:
    try:
        from scipy.linalg import blas
    except ImportError:
        return {}
    return {name: getattr(blas, name) for name in ("sgemm", "dgemm", "sdot", "ddot")}
