"""The array libraries installed on this machine: choose one by name, list them with their devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from mlp_xp._arrays import LIBRARY_NAMES, Device, Namespace, Placement, library_name
from mlp_xp._messages import first_line
from mlp_xp._validation import lookup, shown

__all__ = ["Backend", "BackendUnavailableError", "Found", "backend", "find_libraries"]


class Backend(NamedTuple):
    """An array library's namespace, the device to use, and why both were chosen.

    Attributes
    ----------
    xp : namespace
    device : device to put arrays on
    reason : str
        One line to show to users: which device was found, or why none was.

    Examples
    --------
    >>> from mlp_xp.backends import backend
    >>> xp = backend("numpy").xp
    >>> xp.sum(xp.ones(3)) == 3.0
    np.True_
    """

    xp: Namespace
    device: Device
    reason: str

    def place(self, dtype: str) -> Placement:
        """Return the placement of arrays of `dtype` ("float32" or "float64") on this backend."""
        if array_api_compat.is_jax_namespace(self.xp) and dtype == "float64":
            # Without this setting, which is global to the process, JAX makes float32 of float64.
            sys.modules["jax"].config.update("jax_enable_x64", True)
        return Placement(self.xp, self.device, getattr(self.xp, dtype))


class BackendUnavailableError(RuntimeError):
    """An array library cannot be used on this machine; the message says why.

    Examples
    --------
    >>> from mlp_xp import BackendUnavailableError, backend
    >>> def on_gpu_if_there_is_one():
    ...     try:
    ...         return backend("cupy")
    ...     except BackendUnavailableError:
    ...         return backend("numpy")
    """


def backend(name: str) -> Backend:
    """Return the backend called `name`.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy", "torch", "jax"}
        "auto" is CuPy where it imports and a CUDA device answers, otherwise NumPy. PyTorch and JAX
        use a GPU where they have one.

    Returns
    -------
    Backend

    Raises
    ------
    BackendUnavailableError
        If the library is not installed or, for CuPy, no CUDA device answers.

    Examples
    --------
    >>> from mlp_xp.backends import backend
    >>> backend("numpy").reason
    'asked for'
    """
    return lookup("backend", name, _BACKENDS)()


def _destination(target: Any, here: Placement) -> Placement:
    """Return the placement that `target` names: a backend, or a device of the namespace of `here`.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot be used on this machine.
    ValueError
        If there is no backend and no device of that name.
    """
    if isinstance(target, str) and target in _BACKENDS:
        return backend(target).place(here.dtype_name)
    probe = here.from_host([0.0])
    try:
        # Only the library itself knows which devices it has and how they are named.
        moved = array_api_compat.to_device(probe, target)
    except Exception as error:
        raise ValueError(
            f"`target` must be one of {sorted(_BACKENDS)} or a device of {library_name(here.xp)}, "
            f"got {shown(target)} ({first_line(error)})"
        ) from error
    return here._replace(device=array_api_compat.device(moved))


def _auto_backend() -> Backend:
    try:
        return _cupy_backend()._replace(reason="a CUDA GPU was found")
    except BackendUnavailableError as error:
        problem, *_ = str(error).split(": pip install")  # who asks for no library need not install one
        return _numpy_backend()._replace(reason=f"no GPU: {problem}")


def _numpy_backend() -> Backend:
    return Backend(np, "cpu", "asked for")


def _cupy_backend() -> Backend:
    cupy = _import_library("cupy", "'mlp_xp[cuda12]' or 'mlp_xp[cuda13]', as your CUDA is")
    try:
        _check_cupy_computes(cupy)
        device = cupy.cuda.Device()
        name = _cupy_device_name(cupy, device.id)
    except Exception as error:
        raise BackendUnavailableError(
            f"CuPy is installed, but no CUDA device answers ({first_line(error)})"
        ) from error
    return Backend(import_module("array_api_compat.cupy"), device, f"asked for; it runs on {name}")


# Each `predict` of an estimator with ``backend="auto"`` looks up the backend. The next two functions query
# the device, so they are cached, by CuPy's module and the device's number; errors are not cached.


@lru_cache
def _check_cupy_computes(cupy: Any) -> None:
    """Raise an error if CuPy cannot compute; it may count a device that it has no working driver for."""
    if float(cupy.ones(2).sum()) != 2.0:
        raise RuntimeError("it returned a wrong sum")


@lru_cache
def _cupy_device_name(cupy: Any, number: int) -> str:
    """Return the name that the CUDA runtime gives a device."""
    name: str = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    return name


def _torch_backend() -> Backend:
    torch = _import_library("torch")
    gpu = torch.cuda.is_available()
    reason = f"asked for; {'a CUDA GPU was found' if gpu else 'PyTorch finds no CUDA GPU'}"
    return Backend(import_module("array_api_compat.torch"), torch.device("cuda:0" if gpu else "cpu"), reason)


def _jax_backend() -> Backend:
    jax = _import_library("jax")
    try:
        device = jax.devices()[0]
    except Exception as error:
        raise BackendUnavailableError(f"JAX has no device ({first_line(error)})") from error
    return Backend(jax.numpy, device, f"asked for; JAX's default device is {device}")


def _import_library(module: str, requirement: str | None = None) -> Any:
    """Import an array library; raise `BackendUnavailableError`, with what to install, if that fails."""
    library = LIBRARY_NAMES[module]
    try:
        return import_module(module)
    except Exception as error:  # a CUDA build without its CUDA libraries fails in many ways
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            message = f"{library} is not installed: pip install {requirement or module}"
            raise BackendUnavailableError(message) from None
        raise BackendUnavailableError(f"{library} does not import ({first_line(error)})") from error


_BACKENDS: dict[str, Callable[[], Backend]] = {
    "auto": _auto_backend,
    "numpy": _numpy_backend,
    "cupy": _cupy_backend,
    "torch": _torch_backend,
    "jax": _jax_backend,
}
"""Functions that make each backend, by the name that users choose it by."""


class Found(NamedTuple):
    """An array library and the devices it can compute on, or why it cannot be used.

    Attributes
    ----------
    name : str
        The argument of `backend` that chooses it.
    library : str
        Its name as its project writes it, such as "PyTorch".
    version : str
        "" if it is not installed.
    devices : tuple of str
        A description of each device, to show to users; empty if the library cannot be used.
    problem : str
        Why it cannot be used; "" if it can.

    Examples
    --------
    >>> from mlp_xp.backends import find_libraries
    >>> [found.library for found in find_libraries() if found.devices][0]
    'NumPy'
    """

    name: str
    library: str
    version: str
    devices: tuple[str, ...]
    problem: str


def find_libraries() -> list[Found]:
    """List all array libraries that are supported, with their devices; this imports those installed.

    Returns
    -------
    list of Found
        NumPy, CuPy, PyTorch, JAX, in this order.

    Examples
    --------
    >>> from mlp_xp.backends import find_libraries
    >>> find_libraries()[0].library
    'NumPy'
    """
    return [_found(name, list_devices) for name, list_devices in _DEVICE_LISTERS.items()]


def _found(name: str, list_devices: Callable[[Any], list[str]]) -> Found:
    devices, problem = [], ""
    try:
        backend(name)
        devices = list_devices(sys.modules[name])
    except BackendUnavailableError as error:
        problem = str(error)
    except Exception as error:  # it imports, but its driver fails
        problem = f"its devices do not answer ({first_line(error)})"
    version = str(getattr(sys.modules.get(name), "__version__", ""))
    return Found(name, LIBRARY_NAMES[name], version, tuple(devices), problem)


def _numpy_devices(numpy: Any) -> list[str]:
    return [f"CPU, {os.cpu_count()} cores"]


def _cupy_devices(cupy: Any) -> list[str]:
    runtime = cupy.cuda.runtime
    found = []
    for number in range(runtime.getDeviceCount()):
        properties = runtime.getDeviceProperties(number)
        found.append(_describe_gpu(number, properties["name"].decode(), properties["totalGlobalMem"]))
    return found


def _torch_devices(torch: Any) -> list[str]:
    found = [f"CPU, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(_describe_gpu(number, properties.name, properties.total_memory))
    return found


def _jax_devices(jax: Any) -> list[str]:
    return [f"{device} ({device.device_kind})" for device in jax.devices()]


def _describe_gpu(number: int, name: str, n_bytes: int) -> str:
    return f"GPU {number}: {name}, {n_bytes / 2**30:.0f} GiB"


_DEVICE_LISTERS: dict[str, Callable[[Any], list[str]]] = {
    "numpy": _numpy_devices,
    "cupy": _cupy_devices,
    "torch": _torch_devices,
    "jax": _jax_devices,
}
"""Functions that describe the devices of an imported library, by the name of its backend."""
