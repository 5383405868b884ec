"""The array libraries that can compute here: found, chosen by name, listed with their devices."""

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
from mlp_xp._validation import lookup


class Backend(NamedTuple):
    """A namespace that arrays can be made in, and why it was chosen.

    Attributes
    ----------
    xp : namespace
    device : device to put arrays on
    reason : str
        One line for people: what was found, and what was not.
    """

    xp: Namespace
    device: Device
    reason: str

    def place(self, dtype: str) -> Placement:
        """Where arrays of `dtype` ("float32" or "float64") live on this backend."""
        if array_api_compat.is_jax_namespace(self.xp) and dtype == "float64":
            # JAX holds float64 only after this switch, which is the whole process's.
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
    return lookup("backend", name, BACKENDS)()


def destination(target: Any, here: Placement) -> Placement:
    """Return the place called `target`: a backend, or a device of the namespace that `here` is in.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot be used on this machine.
    ValueError
        If there is no backend and no device of that name.
    """
    if isinstance(target, str) and target in BACKENDS:
        return backend(target).place(here.dtype_name)
    probe = here.from_host([0.0])
    try:
        moved = array_api_compat.to_device(probe, target)
    except Exception as error:
        raise ValueError(
            f"`target` must be one of {sorted(BACKENDS)} or a device of {library_name(here.xp)}, "
            f"got {target!r} ({_first_line(error)})"
        ) from error
    return here._replace(device=array_api_compat.device(moved))


def _auto() -> Backend:
    try:
        return _cupy()._replace(reason="a CUDA GPU was found")
    except BackendUnavailableError as error:
        return _numpy()._replace(reason=f"no GPU: {error}")


def _numpy() -> Backend:
    return Backend(np, "cpu", "asked for")


def _cupy() -> Backend:
    cupy = _import_library("cupy", "CuPy")
    try:
        _check_that_it_computes(cupy)
        device = cupy.cuda.Device()
        name = _name_of_cupy_device(cupy, device.id)
    except Exception as error:
        raise BackendUnavailableError(
            f"CuPy is installed, but no CUDA device answers ({_first_line(error)})"
        ) from error
    return Backend(import_module("array_api_compat.cupy"), device, f"asked for; it runs on {name}")


# Each `predict` of an estimator with ``backend="auto"`` asks for the backend; the device is asked once.


@lru_cache
def _check_that_it_computes(cupy: Any) -> None:
    """Raise what an unusable device raises at the first computation: to count devices is not enough."""
    if float(cupy.ones(2).sum()) != 2.0:
        raise RuntimeError("it returned a wrong sum")


@lru_cache
def _name_of_cupy_device(cupy: Any, number: int) -> str:
    name: str = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    return name


def _torch() -> Backend:
    torch = _import_library("torch", "PyTorch")
    gpu = torch.cuda.is_available()
    reason = f"asked for; {'a CUDA GPU was found' if gpu else 'PyTorch finds no CUDA GPU'}"
    return Backend(import_module("array_api_compat.torch"), torch.device("cuda:0" if gpu else "cpu"), reason)


def _jax() -> Backend:
    jax = _import_library("jax", "JAX")
    try:
        device = jax.devices()[0]
    except Exception as error:
        raise BackendUnavailableError(f"JAX has no device ({_first_line(error)})") from error
    return Backend(jax.numpy, device, f"asked for; JAX's default device is {device}")


def _import_library(module: str, library: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # a CUDA build without its CUDA libraries fails in many ways
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise BackendUnavailableError(f"{library} is not installed") from None
        raise BackendUnavailableError(f"{library} does not import ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """Return the first line of the message that has words in it; CuPy frames its own with rules."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
    return lines[0].rstrip(".") if lines else type(error).__name__


BACKENDS: dict[str, Callable[[], Backend]] = {
    "auto": _auto,
    "numpy": _numpy,
    "cupy": _cupy,
    "torch": _torch,
    "jax": _jax,
}


class Found(NamedTuple):
    """An array library and what it can compute on, or why it cannot.

    Attributes
    ----------
    name : str
        By which `backend` takes it.
    library : str
        As people call it.
    version : str
        "" where it is not installed.
    devices : tuple of str
        Described for people; none where it cannot be used.
    problem : str
        Why it cannot be used; "" where it can.
    """

    name: str
    library: str
    version: str
    devices: tuple[str, ...]
    problem: str


def find_libraries() -> list[Found]:
    """Import each library and ask it for its devices.

    Returns
    -------
    list of Found
        In the order of `BACKENDS`, without "auto".

    Examples
    --------
    >>> from mlp_xp.backends import find_libraries
    >>> find_libraries()[0].library
    'NumPy'
    """
    return [_find(name, list_devices) for name, list_devices in DEVICES.items()]


def _find(name: str, list_devices: Callable[[Any], list[str]]) -> Found:
    devices, problem = [], ""
    try:
        backend(name)
        devices = list_devices(sys.modules[name])
    except BackendUnavailableError as error:
        problem = str(error)
    except Exception as error:  # it imports, but a driver does not answer
        problem = f"its devices do not answer ({_first_line(error)})"
    version = str(getattr(sys.modules.get(name), "__version__", ""))
    return Found(name, LIBRARY_NAMES[name], version, tuple(devices), problem)


def _host(numpy: Any) -> list[str]:
    return [f"CPU, {os.cpu_count()} cores"]


def _cupy_devices(cupy: Any) -> list[str]:
    runtime = cupy.cuda.runtime
    found = []
    for number in range(runtime.getDeviceCount()):
        properties = runtime.getDeviceProperties(number)
        found.append(_gpu(number, properties["name"].decode(), properties["totalGlobalMem"]))
    return found


def _torch_devices(torch: Any) -> list[str]:
    found = [f"CPU, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(_gpu(number, properties.name, properties.total_memory))
    return found


def _jax_devices(jax: Any) -> list[str]:
    return [f"{device} ({device.device_kind})" for device in jax.devices()]


def _gpu(number: int, name: str, n_bytes: int) -> str:
    return f"GPU {number}: {name}, {n_bytes / 2**30:.0f} GiB"


DEVICES: dict[str, Callable[[Any], list[str]]] = {
    "numpy": _host,
    "cupy": _cupy_devices,
    "torch": _torch_devices,
    "jax": _jax_devices,
}
