"""The precision of float32 matrix products, set for all libraries of a process: their defaults differ.

For float32 on a GPU JAX's default is TF32; CuPy's and PyTorch's is full precision.
"""

from __future__ import annotations

import os
import sys

HIGHEST, TF32 = "highest", "tf32"


def pin_before_import(precision: str) -> None:
    """Set what libraries read from the environment, when they are imported or first used."""
    tf32 = precision == TF32
    os.environ["CUPY_TF32"] = "1" if tf32 else "0"
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "tensorfloat32" if tf32 else "highest"
    # It would overrule what libraries ask cuBLAS for.
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


def pin_after_import(precision: str) -> None:
    """Set what is set by a call, in libraries that are loaded."""
    if torch := sys.modules.get("torch"):
        # It sets `torch.backends.cuda.matmul.fp32_precision` too, in versions that have that. The other way
        # round `torch.compile` fails, which still reads this setting: PyTorch raises where they differ.
        torch.set_float32_matmul_precision("high" if precision == TF32 else "highest")
