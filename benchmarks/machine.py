"""Where a benchmark ran: what its figures mean nothing without."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

LIBRARIES = (
    "mlp_xp",
    "numpy",
    "array-api-compat",
    "scikit-learn",
    "scipy",
    "torch",
    "jax",
    "jaxlib",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


def describe(**more: Any) -> dict[str, Any]:
    """Return date, machine and versions, and what else is given."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions(LIBRARIES),
        "blas": blas(),
        **more,
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return the processor's name, as well as this system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def blas() -> str:
    """Return NumPy's BLAS: as loaded if threadpoolctl is there, else as built."""
    import numpy as np

    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        with redirect_stdout(StringIO()):
            built = np.show_config(mode="dicts") or {}
        found = built.get("Build Dependencies", {}).get("blas", {})
        return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
    loaded = [entry for entry in threadpool_info() if entry["user_api"] == "blas"]
    return ", ".join(
        f"{entry['internal_api']} {entry['version']} ({entry.get('architecture', '?')})" for entry in loaded
    )


def gpu_name() -> str | None:
    """Return the name of the first CUDA GPU, asked of the driver; None if there is none."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        count, name = ctypes.c_int(), ctypes.create_string_buffer(100)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return None
        driver.cuDeviceGetName(name, len(name), 0)
        return name.value.decode()
    return None
