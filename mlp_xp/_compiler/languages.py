"""What ufuncs, dtypes and statements are in the languages that steps are written in.

Numbers of the host are computed by Python. What is computed for each element of an array is written in the
Python that Numba compiles, or in the C++ of CUDA; a ufunc that has no expression in both is not recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

OPERATORS: dict[Any, str] = {
    np.add: "{} + {}",
    np.subtract: "{} - {}",
    np.multiply: "{} * {}",
    np.divide: "{} / {}",
    np.negative: "-{}",
    np.positive: "{}",
    np.square: "{0} * {0}",
    np.greater: "{} > {}",
    np.greater_equal: "{} >= {}",
    np.less: "{} < {}",
    np.less_equal: "{} <= {}",
    np.equal: "{} == {}",
    np.not_equal: "{} != {}",
}
"""Expressions of ufuncs that are spelt alike in all languages."""

SCALAR_EXPRESSIONS: dict[Any, str] = {
    function: f"({OPERATORS[function]})"
    for function in (
        *(np.add, np.subtract, np.multiply, np.divide, np.negative),
        *(np.greater, np.greater_equal, np.less, np.less_equal),
    )
} | {
    np.power: "({} ** {})",
    np.floor_divide: "({} // {})",
    np.remainder: "({} % {})",
    np.absolute: "abs({})",
    np.where: "({1} if {0} else {2})",
}
"""Python expressions for ufuncs of Python numbers: a ufunc call takes thirty times as long (NumPy 2.4)."""

KERNEL_DTYPES = (np.dtype("float32"), np.dtype("float64"), np.dtype("bool"))
"""The dtypes of elements that loops and kernels compute."""

TRANSCENDENTAL = (
    *(np.exp, np.expm1, np.log, np.log1p, np.log2, np.log10, np.sin, np.cos, np.tan, np.arctan),
    *(np.sinh, np.cosh, np.tanh),
)
"""Functions of one number that take many operations."""

FUNCTIONS = (*TRANSCENDENTAL, np.sqrt, np.floor, np.ceil, np.isfinite, np.isnan)

OF_TRUTH_VALUES = (np.logical_and, np.logical_or, np.logical_not, np.equal, np.not_equal)
"""The ufuncs of truth values alone."""

EXPRESSIONS: dict[Any, tuple[str, str]] = {
    **{function: (text, text) for function, text in OPERATORS.items()},
    **{f: (f"np.{f.__name__}({{}})", f"{f.__name__}({{}})") for f in FUNCTIONS},
    np.arctan: ("np.arctan({})", "atan({})"),
    np.reciprocal: ("np.reciprocal({})", "1 / {}"),
    np.absolute: ("abs({})", "fabs({})"),
    np.sign: ("(np.sign({0}) if {0} != 0 else abs({0}))", "sign_of({})"),
    np.power: ("{} ** {}", "pow({}, {})"),
    np.logaddexp: ("np.logaddexp({}, {})", "log_of_sum({}, {})"),
    np.maximum: ("({0} if {0} != {0} or {0} > {1} else {1})", "larger({}, {})"),
    np.minimum: ("({0} if {0} != {0} or {0} < {1} else {1})", "smaller({}, {})"),
    np.logical_and: ("(bool({}) and bool({}))", "{} && {}"),
    np.logical_or: ("(bool({}) or bool({}))", "{} || {}"),
    np.logical_not: ("not {}", "!{}"),
    np.where: ("({1} if {0} else {2})", "{} ? {} : {}"),
}
"""The expressions of ufuncs in Numba's Python and in C++, also of NaN."""


@dataclass(frozen=True)
class Language:
    """How statements are spelt.

    Attributes
    ----------
    dtypes : dict of dtype to str
        Names of types, which also convert.
    expressions : dict of ufunc to str
        Also of NaN; what has none is not recorded.
    reductions : dict of ufunc to (str, str)
        The expression that combines two numbers, and what to start with.
    truth_values, nan, infinity : str
        "false true", and two numbers.
    definition, assignment : str
        Statements, with ``{type}``, ``{name}`` and ``{text}``.
    number : str
        How the argument with a number of the host is read.
    """

    dtypes: Mapping[Any, str]
    expressions: Mapping[Any, str]
    reductions: Mapping[Any, tuple[str, str]]
    truth_values: tuple[str, str]
    nan: str
    infinity: str
    definition: str
    assignment: str
    number: str

    def define(self, dtype: Any, name: str, text: str) -> str:
        """Return the statement that gives a name to a number."""
        return self.definition.format(type=self.dtypes[dtype], name=name, text=text)

    def assign(self, name: str, text: str) -> str:
        """Return the statement that changes a variable or an element."""
        return self.assignment.format(name=name, text=text)

    def cast(self, dtype: Any, text: str) -> str:
        """Return the expression of a number converted to a dtype."""
        return f"{self.dtypes[dtype]}({text})"

    def literal(self, number: Any, dtype: Any) -> str:
        """Return the expression of a Python number."""
        if isinstance(number, bool):
            return self.truth_values[number]
        if math.isfinite(number):
            return self.cast(dtype, repr(float(number)))
        sign = "-" if number < 0 else ""
        return self.cast(dtype, self.nan if number != number else f"{sign}{self.infinity}")


NUMBA = Language(
    dtypes=dict(zip(KERNEL_DTYPES, ("f4", "f8", "bool"))),
    expressions={function: text for function, (text, _) in EXPRESSIONS.items()},
    reductions={
        function: (EXPRESSIONS[function][0], start)
        for function, start in ((np.add, "0"), (np.maximum, "-np.inf"), (np.minimum, "np.inf"))
    },
    truth_values=("False", "True"),
    nan="np.nan",
    infinity="np.inf",
    definition="{name} = {text}",
    assignment="{name} = {text}",
    number="{type}({name})",
)

OPERATIONS: dict[Any, str] = {np.add: "Sum", np.maximum: "Larger", np.minimum: "Smaller"}
"""The C++ types of the operations of ufuncs that reduce."""

CXX = Language(
    dtypes=dict(zip(KERNEL_DTYPES, ("float", "double", "bool"))),
    expressions={function: text for function, (_, text) in EXPRESSIONS.items()},
    reductions={
        function: (f"{OPERATIONS[function]}()({{}}, {{}})", start)
        for function, start in ((np.add, "0"), (np.maximum, "-INFINITY"), (np.minimum, "INFINITY"))
    },
    truth_values=("false", "true"),
    nan="NAN",
    infinity="INFINITY",
    definition="const {type} {name} = {text};",
    assignment="{name} = {text};",
    number="*{name}",
)
