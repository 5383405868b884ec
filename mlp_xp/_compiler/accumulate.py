"""Pass that fuses updates into products: ``p <- beta p + alpha a @ b`` is one call of BLAS's gemm.

NumPy has no such call, SciPy has. Where it is installed, large arrays are updated so: gradients that
are used for nothing else are never in memory, and no pass over them is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlp_xp._compiler.graph import Graph, Value, find_users, reachable
from mlp_xp._compiler.trace import TracedFunction

MIN_ELEMENTS_TO_FUSE_INTO_GEMM = 2**17
"""Minimum size of a state array whose update is fused into gemm: chosen so that the saved pass over the
gradient (1 MiB of float64) takes longer than the change to SciPy's BLAS costs in all other calls."""

BlasFunctions = dict[str, Callable[..., Any]]
"""Functions, by the names that BLAS or the generated source has for them."""


def fuse_updates_into_products(traced: TracedFunction) -> None:
    """Rewrite updates ``beta p + alpha a @ b``, with numbers alpha and beta, as "accumulate" values."""
    users = find_users(reachable(traced.roots))
    results = set(map(id, traced.computed_results))
    for target, value in traced.updates.items():
        if value.kind != "map" or value.dtype not in (np.float32, np.float64):
            continue
        if value.size < MIN_ELEMENTS_TO_FUSE_INTO_GEMM or len(value.shape) != 2 or not _scipy_blas():
            continue
        before = traced.state[target]
        combinations = _LinearCombinations(traced.graph, users, results)
        terms = combinations.terms(value)
        products = [term for term in terms if term.kind == "matmul" and combinations.used_once(term)]
        if len(terms) != 2 or before not in terms or len(products) != 1:
            continue
        factors = products[0].operands
        # gemm must not read what it overwrites.
        if not any(factor.base is before for factor in factors):
            value.kind, value.function = "accumulate", None
            value.operands = (before, *factors, terms[before], terms[products[0]])


class _LinearCombinations:
    """Decomposes values into sums of arrays, each times a number."""

    def __init__(self, graph: Graph, users: dict[int, list[Value]], results: set[int]) -> None:
        self.graph = graph
        self.users = users
        self.results = results

    def terms(self, value: Value, *, is_root: bool = True) -> dict[Value, Any]:
        """Return the coefficient of each array in the sum; a value used elsewhere too is not decomposed."""
        parts = self._parts(value) if is_root or self.used_once(value) else None
        if parts is None:
            return {value: 1.0}
        terms: dict[Value, Any] = {}
        for factor, part in parts:
            for term, coefficient in self.terms(part, is_root=False).items():
                coefficient = self._fold(np.multiply, factor, coefficient)
                terms[term] = self._fold(np.add, terms[term], coefficient) if term in terms else coefficient
        return terms

    def used_once(self, value: Value) -> bool:
        """Whether the value is an operand of one other, and no result."""
        return len(self.users.get(id(value), [])) == 1 and id(value) not in self.results

    def _parts(self, value: Value) -> list[tuple[Any, Value]] | None:
        if value.kind != "map" or any(_shape(x) not in ((), value.shape) for x in value.operands):
            return None
        arrays = [x for x in value.operands if _shape(x) != ()]
        scalars = [x for x in value.operands if _shape(x) == ()]
        # The coefficients of gemm have to be Python numbers.
        if any(isinstance(x, Value) and x.dtype is not None for x in scalars):
            return None
        if value.function in (np.add, np.subtract) and len(arrays) == 2:
            return [(1.0, arrays[0]), (1.0 if value.function is np.add else -1.0, arrays[1])]
        if value.function is np.multiply and len(arrays) == 1:
            return [(scalars[0], arrays[0])]
        return [(-1.0, arrays[0])] if value.function is np.negative else None

    def _fold(self, function: np.ufunc, x: Any, y: Any) -> Any:
        """Return a number for numbers (constant folding), else a value that the graph computes."""
        if not isinstance(x, Value) and not isinstance(y, Value):
            return float(function(x, y))
        if function is np.multiply and 1.0 in (x, y):
            return y if x == 1.0 else x
        return self.graph.map(function, (x, y))


def _shape(operand: Any) -> tuple[int, ...]:
    return operand.shape if isinstance(operand, Value) else ()


def scipy_blas_functions() -> BlasFunctions:
    """Return what `dot`, `matmul` and `gemm` are in the source of a program with "accumulate" values.

    All are SciPy's, because two BLAS libraries in turn would compete with their threads.
    """
    blas = _scipy_blas()
    gemms = {np.dtype(np.float32): blas["sgemm"], np.dtype(np.float64): blas["dgemm"]}
    dots = {np.dtype(np.float32): blas["sdot"], np.dtype(np.float64): blas["ddot"]}

    def gemm(beta: float, out: Any, alpha: float, a: Any, b: Any) -> None:
        # BLAS is column-major, where a row-major array is its transpose: out.T = b.T @ a.T.
        left, left_transposed = _column_major(b.T)
        right, right_transposed = _column_major(a.T)
        gemms[out.dtype](alpha, left, right, beta, out.T, left_transposed, right_transposed, 1)

    def product(a: Any, b: Any, out: Any = None) -> Any:
        if out is None:
            return dots[a.dtype](a, b)
        if a.ndim == 1:
            a, out = a[None], out[None]
        if a.flags.forc and b.flags.forc and out.flags.c_contiguous and a.dtype in gemms:
            gemm(0.0, out, 1.0, a, b)
        else:
            np.matmul(a, b, out)
        return None

    return {"dot": product, "matmul": product, "gemm": gemm}


def _column_major(array: Any) -> tuple[Any, bool]:
    """Return the array, or its transpose and True, so that it is column-major."""
    return (array, False) if array.flags.f_contiguous else (array.T, True)


def _scipy_blas() -> BlasFunctions:
    """Return functions of SciPy's BLAS; an empty dict without SciPy."""
    try:
        from scipy.linalg import blas
    except ImportError:
        return {}
    return {name: getattr(blas, name) for name in ("sgemm", "dgemm", "sdot", "ddot")}
