"""A compiler for steps on NumPy arrays: traced once, optimised, and run as straight lines of calls."""

from mlp_xp._compiler.graph import NotRecordableError
from mlp_xp._compiler.pipeline import compile_function
from mlp_xp._compiler.program import Program

__all__ = ["NotRecordableError", "Program", "compile_function"]
