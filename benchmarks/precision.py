"""Setting the precision of float32 matrix products in all libraries of a process, as their defaults differ.

For float32 on a GPU JAX's default is TF32; CuPy's and PyTorch's is full precision.
"""

from __future__ import annotations

import os
import sys

HIGHEST, TF32 = "highest", "tf32"


def pin_before_import(precision: str) -> None:
    """Set the environment variables that libraries read when they are imported or first used."""
    tf32 = precision == TF32
    os.environ["CUPY_TF32"] = "1" if tf32 else "0"
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "tensorfloat32" if tf32 else "highest"
    # This variable would override the precision that libraries request from cuBLAS.
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


def pin_after_import(precision: str) -> None:
    """Set the precision by a call, in imported libraries that need one."""
    if torch := sys.modules.get("torch"):
        # This also sets `torch.backends.cuda.matmul.fp32_precision`. Setting that one alone makes
        # `torch.compile` fail: it reads the older setting, and PyTorch raises if the two differ.
        torch.set_float32_matmul_precision("high" if precision == TF32 else "highest")
