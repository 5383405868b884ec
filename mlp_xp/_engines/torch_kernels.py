"""Kernels on PyTorch's tensors; see `mlp_xp._engines.fused_steps.KernelLibrary`.

PyTorch has no public function that compiles kernels and launches them in a captured graph. NVIDIA's
cuda-bindings has the functions of NVRTC and of the CUDA driver, and PyTorch's own wheels for CUDA on Linux
require it (since 2.10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from cuda.bindings import driver, nvrtc

from mlp_xp._arrays import Array
from mlp_xp._engines.capture import CAPTURE_LOCK
from mlp_xp._engines.fused_steps import KernelError, Launch


class TorchKernels:
    """Kernels that NVRTC compiles, once a process by their source."""

    max_threads = 1024  # of all devices that PyTorch supports

    def __init__(self, device: Any) -> None:
        self.device = device

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[[str], Launch]:
        """Compile source, unless it has been, and load it; return the function that finds a kernel."""
        major, minor = torch.cuda.get_device_capability(self.device)
        loaded = _load(source, options, 10 * major + minor)
        if isinstance(loaded, KernelError):
            raise loaded
        return partial(_find, loaded)

    def counters(self, count: int) -> Array:
        """Return zeros of 32 bits; only during a capture does PyTorch allocate from the graphs' pool."""
        return torch.zeros(count, dtype=torch.int32, device=self.device)

    def contiguous(self, array: Array) -> Array:
        """Return a tensor if it is contiguous by rows, or else a copy that is."""
        return array.contiguous()


@cache
def _load(source: str, options: tuple[str, ...], capability: int) -> Any:
    """Compile source for devices of a compute capability; return it as a library of the driver.

    A failure is returned too, so that it is not tried again. To load a library may wait for the device, which
    invalidates the captures of other threads; so may unloading it, and it is never unloaded.
    """
    try:
        return _load_or_raise(source, options, capability)
    except KernelError as error:
        return error


def _load_or_raise(source: str, options: tuple[str, ...], capability: int) -> Any:
    known = _call(nvrtc, "nvrtcGetSupportedArchs")
    if capability in known:
        kind, architecture = "CUBIN", f"sm_{capability}"
    elif capability > max(known):  # a newer device, which NVRTC does not know: the driver compiles PTX
        kind, architecture = "PTX", f"compute_{max(known)}"
    else:
        raise KernelError(f"NVRTC compiles for no devices of compute capability {capability / 10}")
    arguments = [option.encode() for option in (*options, f"--gpu-architecture={architecture}")]
    program = _call(nvrtc, "nvrtcCreateProgram", source.encode(), b"kernels.cu", 0, None, None)
    try:
        _call(nvrtc, "nvrtcCompileProgram", program, len(arguments), arguments)
        code = bytearray(_call(nvrtc, f"nvrtcGet{kind}Size", program))
        _call(nvrtc, f"nvrtcGet{kind}", program, code)
    finally:
        _call(nvrtc, "nvrtcDestroyProgram", program)
    with CAPTURE_LOCK:
        return _call(driver, "cuLibraryLoadData", bytes(code), [], [], 0, [], [], 0)


def _find(library: Any, name: str) -> Launch:
    """Find a kernel, and load it on the current device."""
    with CAPTURE_LOCK:
        kernel = _call(driver, "cuLibraryGetKernel", library, name.encode())
        return partial(_launch, _call(driver, "cuKernelGetFunction", kernel))


def _launch(function: Any, n_blocks: int, n_threads: int, arguments: Sequence[Any]) -> None:
    """Launch a kernel on PyTorch's current stream."""
    # The driver copies as many bytes of each value as the parameter has, from the first one on: CUDA runs on
    # little-endian machines only.
    values = np.array([_value(argument) for argument in arguments], np.uint64)
    addresses = values.ctypes.data + values.itemsize * np.arange(len(values), dtype=np.uint64)
    grid, block = (n_blocks, 1, 1), (n_threads, 1, 1)
    stream = torch.cuda.current_stream().cuda_stream
    _call(driver, "cuLaunchKernel", function, *grid, *block, 0, stream, addresses.ctypes.data, 0)


def _value(argument: Any) -> int:
    return int(argument.data_ptr() if isinstance(argument, torch.Tensor) else argument)


def _call(module: Any, name: str, *arguments: Any) -> Any:
    """Return the result of a function of cuda-bindings; its answer begins with a status."""
    try:
        status, *results = getattr(module, name)(*arguments)
    except Exception as error:  # such as of a library that is missing, or too old for the function
        raise KernelError(f"{error}") from error
    if int(status):
        raise KernelError(f"{name} answers {status.name}")
    return results[0] if results else None
