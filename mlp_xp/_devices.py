"""What a device is told and asked while it computes: who is current, how exact products are, its memory.

Beside `mlp_xp._arrays`, `mlp_xp.backends` and the engines, this module knows array libraries by name.
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

from mlp_xp._arrays import Array, Placement, is_cupy, is_jax, is_on_cuda, quiet_floating_point, to_host

MATMUL_PRECISIONS = ("highest", "tf32")
"""How float32 matrix products are computed: in float32, or on factors rounded to NVIDIA's TensorFloat-32,
whose fraction has 10 bits where float32's has 23. Sums are in float32 in both."""

JAX_PRECISIONS = {"highest": "highest", "tf32": "tensorfloat32"}
TORCH_PRECISIONS = {"highest": ("ieee", "highest"), "tf32": ("tf32", "high")}
"""By PyTorch's present and by its older interface."""


def current_device(*arrays: Any) -> AbstractContextManager[Any]:
    """Return a context in which the device of these arrays is current, as CuPy demands of its own.

    CuPy makes new arrays, and runs kernels, on the current device. Other libraries follow the arrays.
    """
    for array in arrays:
        if array_api_compat.is_cupy_array(array):
            device: AbstractContextManager[Any] = array.device
            return device
    return nullcontext()


@contextmanager
def computing(place: Placement, matmul_precision: str = "highest") -> Iterator[None]:
    """Context that everything on arrays of a place is computed in.

    Its device is current, float32 products are as exact as asked for whatever the process's own settings
    are, and NumPy does not warn of overflow.
    """
    with quiet_floating_point():
        if place.xp is np:
            yield
        elif is_jax(place.xp):
            with sys.modules["jax"].default_matmul_precision(JAX_PRECISIONS[matmul_precision]):
                yield
        elif is_cupy(place.xp):
            with place.device, _cupy_precision(matmul_precision, place.device):
                yield
        elif is_on_cuda(place):
            with _torch_precision(matmul_precision):
                yield
        else:
            yield


class _Setting:
    """A setting of the whole process that several threads want to be one way or another for a while.

    The last to come decides; when all have gone, it is as it was before the first came.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.read = read
        self.write = write
        self.lock = threading.Lock()
        self.wishes: list[list[Any]] = []
        self.before: Any = None

    @contextmanager
    def at(self, value: Any) -> Iterator[None]:
        """Context in which the setting has this value."""
        wish = [value]
        with self.lock:
            if not self.wishes:
                self.before = self.read()
            self.wishes.append(wish)
            self._apply(value)
        try:
            yield
        finally:
            with self.lock:
                self.wishes = [one for one in self.wishes if one is not wish]
                self._apply(self.wishes[-1][0] if self.wishes else self.before)

    def _apply(self, value: Any) -> None:
        if self.read() != value:
            self.write(value)


def _cupy_precision(wanted: str, device: Any) -> AbstractContextManager[None]:
    """Context in which CuPy's own products have this precision."""
    linalg = sys.modules["cupy"]._core._routines_linalg
    tf32 = wanted == "tf32" and int(device.compute_capability) >= 80
    return _setting("cupy").at(linalg.COMPUTE_TYPE_TF32 if tf32 else linalg.COMPUTE_TYPE_DEFAULT)


def _torch_precision(wanted: str) -> AbstractContextManager[None]:
    """Context in which PyTorch's products on CUDA have this precision."""
    present, older = TORCH_PRECISIONS[wanted]
    has_present = hasattr(sys.modules["torch"].backends.cuda.matmul, "fp32_precision")  # from PyTorch 2.9 on
    return _setting("torch").at(present if has_present else older)


_SETTINGS: dict[Any, _Setting] = {}


def _setting(library: str) -> _Setting:
    """Return the process's setting of a library's precision."""
    module = sys.modules[library]
    if module not in _SETTINGS:
        _SETTINGS[module] = {"cupy": _setting_of_cupy, "torch": _setting_of_torch}[library](module)
    return _SETTINGS[module]


def _setting_of_cupy(cupy: Any) -> _Setting:
    linalg = cupy._core._routines_linalg
    return _Setting(
        lambda: linalg.get_compute_type("float32"), lambda kind: linalg.set_compute_type("float32", kind)
    )


def _setting_of_torch(torch: Any) -> _Setting:
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):
        return _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)

    def write(precision: str) -> None:
        products.fp32_precision = "none"  # what it inherits, which it had before unless it now differs
        if products.fp32_precision != precision:
            products.fp32_precision = precision

    return _Setting(lambda: products.fp32_precision, write)


# Memory.


class MemoryShortage(NamedTuple):
    """A training that does not fit.

    Attributes
    ----------
    needed : int or None
        Bytes it takes beside what is there already; None if its step cannot be recorded.
    free : int or None
        Bytes; None where nobody can tell.
    batch_size : int or None
        The largest that fits; 0 if none does, None where it is not known.
    """

    needed: int | None
    free: int | None
    batch_size: int | None

    def __str__(self) -> str:
        needed = "an amount not known beforehand" if self.needed is None else _size(self.needed)
        said = f"{needed} needed, {'an unknown amount' if self.free is None else _size(self.free)} free"
        if self.batch_size is None:
            return said
        fits = f"the largest `batch_size` that fits is {self.batch_size}"
        return f"{said}; {fits if self.batch_size else 'no `batch_size` fits'}"


def free_bytes(place: Placement) -> int | None:
    """Return how many more bytes arrays can take on the device; None where nobody can tell."""
    if is_cupy(place.xp):
        cupy = sys.modules["cupy"]
        with place.device:
            pool = cupy.get_default_memory_pool()
            free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
            limit = int(pool.get_limit())
            return min(free, limit - int(pool.used_bytes())) if limit else free
    if is_on_cuda(place):
        cuda = sys.modules["torch"].cuda
        cached = cuda.memory_reserved(place.device) - cuda.memory_allocated(place.device)
        return int(cuda.mem_get_info(place.device)[0] + cached)
    if is_jax(place.xp) and place.device is not None:
        stats = getattr(place.device, "memory_stats", lambda: None)() or {}
        if stats.get("bytes_limit", 0) > 0:
            return int(stats["bytes_limit"] - stats["bytes_in_use"])
    return None


_OUT_OF_MEMORY = {
    "jax": ("RESOURCE_EXHAUSTED",),
    "jaxlib": ("RESOURCE_EXHAUSTED",),
    "cupy_backends": ("cudaErrorMemoryAllocation", "ALLOC_FAILED"),
    "torch": ("ALLOC_FAILED",),
    "nvmath": ("ALLOC_FAILED",),
}
"""What errors say that have no class of their own for it, by the package of their class."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory has run out."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        module = type(error).__module__.split(".")[0]
        if module in _OUT_OF_MEMORY and any(words in str(error) for words in _OUT_OF_MEMORY[module]):
            return True
        error = error.__cause__
    return False


MEMORY_RELEASE_HOOKS: list[Callable[[], None]] = []
"""What engines that keep memory for the next training add, to give it back."""


def release_memory(place: Placement) -> None:
    """Give memory that a library, or an engine, keeps for later back to the device."""
    gc.collect()
    with suppress(Exception):  # on the way to an error that matters more
        for release in MEMORY_RELEASE_HOOKS:
            release()
        if is_cupy(place.xp):
            with place.device:
                sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
        elif is_on_cuda(place):
            sys.modules["torch"].cuda.empty_cache()


def to_floats(place: Placement, values: Sequence[Array | float]) -> list[float]:
    """Return numbers and arrays of shape () as numbers: from a GPU with one copy, which waits once."""
    if not is_on_cuda(place):
        return list(map(float, values))
    arrays = [value for value in values if _is_scalar_of(place, value)]
    fetched = iter(to_host(place.xp.stack(arrays)).tolist() if arrays else [])
    # What users' own metrics return may be anything that is a number.
    return [next(fetched) if _is_scalar_of(place, value) else float(value) for value in values]


def _is_scalar_of(place: Placement, value: Any) -> bool:
    """Whether this is an array of shape () of the place, in its dtype."""
    if isinstance(value, (float, int, np.generic, np.ndarray)):
        return False
    return bool(array_api_compat.is_array_api_obj(value) and value.shape == () and value.dtype == place.dtype)


def _size(n_bytes: int) -> str:
    """Return a size in three figures.

    Examples
    --------
    >>> _size(1_234_000_000), _size(5_000)
    ('1.23 GB', '5 kB')
    """
    factor, unit = next((each for each in _UNITS if n_bytes >= each[0]), _UNITS[-1])
    number = n_bytes / factor
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
