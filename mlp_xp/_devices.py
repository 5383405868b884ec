"""State of devices: the current device, the precision of matrix products, free memory and its release.

Like `mlp_xp._arrays`, `mlp_xp.backends` and the engines, this module refers to array libraries by name.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from mlp_xp._arrays import (
    Array,
    HostArray,
    Placement,
    is_cupy,
    is_jax,
    is_on_cuda,
    quiet_floating_point,
    to_host,
)

MATMUL_PRECISIONS = ("highest", "tf32")
"""Precisions of float32 matrix products: "highest" multiplies in float32, "tf32" rounds the factors to
NVIDIA's TensorFloat-32, which has 10 bits of fraction where float32 has 23. Both add in float32."""

_JAX_PRECISIONS = {"highest": "highest", "tf32": "tensorfloat32"}
"""JAX's name of each precision."""
_TORCH_PRECISIONS = {"highest": ("ieee", "highest"), "tf32": ("tf32", "high")}
"""PyTorch's names of each precision: for ``fp32_precision`` (from 2.9 on), and for its older functions."""


def current_device(*arrays: Any) -> AbstractContextManager[Any]:
    """Return a context that makes the device of these arrays CuPy's current device.

    CuPy allocates and runs kernels on the current device. Other libraries use the device of the operands, so
    that the context does nothing for their arrays.
    """
    for array in arrays:
        if array_api_compat.is_cupy_array(array):
            device: AbstractContextManager[Any] = array.device
            return device
    return nullcontext()


@contextmanager
def computing(place: Placement, matmul_precision: str = "highest") -> Iterator[None]:
    """Context for all computations on arrays of a placement.

    It makes the device current, sets the precision of float32 products, whatever the settings of the process
    are, and turns off NumPy's warnings of overflow.
    """
    with quiet_floating_point():
        if place.xp is np:
            yield
        elif is_jax(place.xp):
            with sys.modules["jax"].default_matmul_precision(_JAX_PRECISIONS[matmul_precision]):
                yield
        elif is_cupy(place.xp):
            with place.device, _cupy_precision(matmul_precision, place.device):
                yield
        elif is_on_cuda(place):
            with _torch_precision(matmul_precision):
                yield
        else:
            yield


class _ProcessSetting:
    """A setting that is global to the process, and that several threads change for the time of a context.

    The context entered last determines its value. When all contexts have been left, the setting is restored
    to the value that it had before the first one.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.read = read
        self.write = write
        self.lock = threading.Lock()
        # The values that active contexts have set, each in a list, which tells equal values apart.
        self.active: list[list[Any]] = []
        self.original: Any = None

    @contextmanager
    def at(self, value: Any) -> Iterator[None]:
        """Context in which the setting has this value."""
        entry = [value]
        with self.lock:
            if not self.active:
                self.original = self.read()
            self.active.append(entry)
            self._apply(value)
        try:
            yield
        finally:
            with self.lock:
                self.active = [one for one in self.active if one is not entry]
                self._apply(self.active[-1][0] if self.active else self.original)

    def _apply(self, value: Any) -> None:
        if self.read() != value:
            self.write(value)


def _cupy_precision(wanted: str, device: Any) -> AbstractContextManager[None]:
    """Return a context in which CuPy's matrix products have this precision."""
    linalg = sys.modules["cupy"]._core._routines_linalg
    tf32 = wanted == "tf32" and int(device.compute_capability) >= 80  # older GPUs have no TF32
    return _precision_setting("cupy").at(linalg.COMPUTE_TYPE_TF32 if tf32 else linalg.COMPUTE_TYPE_DEFAULT)


def _torch_precision(wanted: str) -> AbstractContextManager[None]:
    """Return a context in which PyTorch's matrix products on CUDA have this precision."""
    precision, legacy_precision = _TORCH_PRECISIONS[wanted]
    is_new = hasattr(sys.modules["torch"].backends.cuda.matmul, "fp32_precision")  # PyTorch 2.9
    return _precision_setting("torch").at(precision if is_new else legacy_precision)


_SETTINGS: dict[Any, _ProcessSetting] = {}
"""The settings of precision in use, by the library's module: all threads must share one."""


def _precision_setting(library: str) -> _ProcessSetting:
    """Return the process-wide precision setting of a library."""
    module = sys.modules[library]
    if module not in _SETTINGS:
        make = {"cupy": _cupy_precision_setting, "torch": _torch_precision_setting}[library]
        _SETTINGS[module] = make(module)
    return _SETTINGS[module]


def _cupy_precision_setting(cupy: Any) -> _ProcessSetting:
    linalg = cupy._core._routines_linalg
    return _ProcessSetting(
        lambda: linalg.get_compute_type("float32"), lambda kind: linalg.set_compute_type("float32", kind)
    )


def _torch_precision_setting(torch: Any) -> _ProcessSetting:
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):
        return _ProcessSetting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)

    def write(precision: str) -> None:
        # "none" inherits the precision from more general settings. Where it inherits the one to restore, it
        # stays "none", because that is what it was.
        products.fp32_precision = "none"
        if products.fp32_precision != precision:
            products.fp32_precision = precision

    return _ProcessSetting(lambda: products.fp32_precision, write)


# Memory


MIN_SHARE_LEFT_FREE = 0.25
"""Share of the free memory that is left unused by samples that are moved to a device, and by a training with
the advised batch size. Pools split blocks, and the rest of a block may be too small for any other array: a
fifth was lost so, measured on a best-fit pool."""


class MemoryShortage(NamedTuple):
    """Memory that a training needs and that is free, where the training does not fit on the device.

    Attributes
    ----------
    needed : int or None
        Bytes needed in addition to the memory in use; None if the step cannot be recorded.
    free : int or None
        Bytes free on the device; None if the library does not report it.
    batch_size : int or None
        The largest batch size that fits; 0 if none does, None if it is not known.
    """

    needed: int | None
    free: int | None
    batch_size: int | None

    def __str__(self) -> str:
        needed = "an amount not known beforehand" if self.needed is None else _size(self.needed)
        amounts = f"{needed} needed, {'an unknown amount' if self.free is None else _size(self.free)} free"
        if self.batch_size is None:
            return amounts
        fits = f"the largest `batch_size` that fits is {self.batch_size}"
        return f"{amounts}; {fits if self.batch_size else 'no `batch_size` fits'}"


def free_bytes(place: Placement) -> int | None:
    """Return the number of bytes that new arrays can take on the device; None if it is not reported.

    Memory that the library's pool keeps and no array uses counts as free.
    """
    if is_cupy(place.xp):
        cupy = sys.modules["cupy"]
        with place.device:
            pool = cupy.get_default_memory_pool()
            free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
            limit = int(pool.get_limit())  # 0 is none
            return min(free, limit - int(pool.used_bytes())) if limit else free
    if is_on_cuda(place):
        cuda = sys.modules["torch"].cuda
        used = cuda.memory_allocated(place.device)
        free, total = cuda.mem_get_info(place.device)
        free += cuda.memory_reserved(place.device) - used
        if hasattr(cuda, "get_per_process_memory_fraction"):
            free = min(free, int(cuda.get_per_process_memory_fraction(place.device) * total) - used)
        return max(0, int(free))
    if is_jax(place.xp) and place.device is not None:
        stats = getattr(place.device, "memory_stats", lambda: None)() or {}
        if stats.get("bytes_limit", 0) > 0:
            return int(stats["bytes_limit"] - stats["bytes_in_use"])
    return None


def room_beside(place: Placement, n_bytes: int) -> int | None:
    """Return how much the device can hold beside so many bytes and what is there; None if not reported."""
    free = free_bytes(place)
    return None if free is None else max(0, int((1.0 - MIN_SHARE_LEFT_FREE) * free) - n_bytes)


_OUT_OF_MEMORY = {
    "jax": ("RESOURCE_EXHAUSTED",),
    "jaxlib": ("RESOURCE_EXHAUSTED",),
    "cupy_backends": ("cudaErrorMemoryAllocation", "ALLOC_FAILED"),
    "torch": ("ALLOC_FAILED",),
    "nvmath": ("ALLOC_FAILED",),
}
"""Texts of out-of-memory errors that libraries raise as a general class, by the package of that class."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is a lack of memory on the host or the device, or a library's that one caused."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        module = type(error).__module__.split(".")[0]
        if module in _OUT_OF_MEMORY and any(words in str(error) for words in _OUT_OF_MEMORY[module]):
            return True
        # An error of any other class, such as a callback raises to stop, is what its class says.
        error = error.__cause__ if module in ("builtins", "mlp_xp", *_OUT_OF_MEMORY) else None
    return False


MEMORY_RELEASE_HOOKS: list[Callable[[], None]] = []
"""Functions that free device memory cached for later; modules that cache such memory add theirs."""


def release_memory(place: Placement) -> None:
    """Return memory that libraries and engines cache to the device."""
    gc.collect()
    with suppress(Exception):  # it is called while another error is handled, which must not be replaced
        for release in MEMORY_RELEASE_HOOKS:
            release()
        if is_cupy(place.xp):
            with place.device:
                sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
        elif is_on_cuda(place):
            sys.modules["torch"].cuda.empty_cache()


def to_floats(place: Placement, values: HostArray | Sequence[Array | float]) -> list[float]:
    """Return numbers and arrays of shape () as Python floats; arrays on a GPU are fetched by one copy."""
    if isinstance(values, np.ndarray):
        floats: list[float] = values.tolist()
        return floats
    if not is_on_cuda(place):
        return list(map(float, values))
    arrays = [value for value in values if is_scalar_of(place, value)]
    fetched = iter(to_host(place.xp.stack(arrays)).tolist() if arrays else [])
    return [next(fetched) if is_scalar_of(place, value) else float(value) for value in values]


def is_scalar_of(place: Placement, value: Any) -> bool:
    """Whether a value is an array of shape () with this placement and its dtype."""
    if isinstance(value, (float, int, np.generic, np.ndarray)):
        return False
    return bool(array_api_compat.is_array_api_obj(value) and value.shape == () and value.dtype == place.dtype)


def _size(n_bytes: int) -> str:
    """Return a number of bytes as text with three significant digits and a unit.

    Examples
    --------
    >>> _size(1_234_000_000), _size(5_000)
    ('1.23 GB', '5 kB')
    """
    factor, unit = next((each for each in _UNITS if n_bytes >= each[0]), _UNITS[-1])
    number = n_bytes / factor
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
"""Units of sizes, the largest first."""
