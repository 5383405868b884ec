"""Where arrays live: their namespace, device and dtype, and the way to the host and back.

Only this module, `mlp_xp.backends`, `mlp_xp._devices` and `mlp_xp._engines` know array libraries by name,
and each is imported only when its arrays come in or the user names it.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import array_api_compat
import numpy as np

Array: TypeAlias = Any
"""An array of any namespace of the Array API standard."""
Namespace: TypeAlias = Any
"""A module, or an object like one, with the functions of the Array API standard, 2024.12."""
Device: TypeAlias = Any
Dtype: TypeAlias = Any
HostArray: TypeAlias = "np.ndarray[Any, Any]"

ELEMENTS_PER_BLOCK = 2**22
"""Work that grows with the number of rows is done on blocks of about this many numbers."""

NEAR_BYTES = 2**20
"""As little is copied to the host sooner than JAX compiles a function."""

LIBRARY_NAMES = {"numpy": "NumPy", "cupy": "CuPy", "torch": "PyTorch", "jax": "JAX"}


class Placement(NamedTuple):
    """Where an array lives, and the floating dtype that computations on it have.

    Attributes
    ----------
    xp : namespace
    device : device of that namespace; None inside a `jax.jit`, where arrays have none
    dtype : real floating dtype; the namespace's default one where the array holds integers
    """

    xp: Namespace
    device: Device
    dtype: Dtype

    def from_host(self, values: Any) -> Array:
        """Copy numbers on the host into a new array here."""
        if is_jax(self.xp):  # its `asarray` would compile something
            return sys.modules["jax"].device_put(np.array(values, dtype=self.dtype), self.device)
        # Cast first: some devices cannot hold the float64 that the host draws.
        host = np.array(values, dtype=self.dtype_name)
        return self.xp.asarray(host, dtype=self.dtype, device=self.device)

    @property
    def dtype_name(self) -> str:
        """NumPy's name of the dtype."""
        return f"float{self.xp.finfo(self.dtype).bits}"

    def same_as(self, other: Placement) -> bool:
        """Whether these are one namespace and one device; the dtype may differ."""
        return self.xp is other.xp and bool(self.device == other.device)

    def bring(self, array: Array) -> Array:
        """Return an array of any library here, floating ones in this dtype; itself if it is here already."""
        if self.same_as(placement(array=array)):
            return array
        host = to_host(array)
        if host.dtype.kind == "f":
            return self.from_host(host)
        return self.xp.asarray(np.require(host, requirements=["C", "W"]), device=self.device)

    def cast(self, array: Array) -> Array:
        """Return `array` in this dtype, itself where it has it already."""
        return array if array.dtype == self.dtype else self.xp.astype(array, self.dtype)

    def __str__(self) -> str:
        return f"{library_name(self.xp)} on {'a traced device' if self.device is None else self.device}"


def placement(**arrays: Array) -> Placement:
    """Find the one place where all the named arrays live.

    Parameters
    ----------
    **arrays : array
        Arrays by the name of the argument they came in as.

    Returns
    -------
    Placement
        With the floating dtype of the first array.

    Raises
    ------
    TypeError
        If an argument is not an array, or does not hold real numbers.
    ValueError
        If two arrays live in different namespaces or on different devices; both are named.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp._arrays import placement
    >>> print(placement(X=np.ones((3, 2)), y=np.zeros((3, 1))))
    NumPy on cpu
    """
    places = {name: _placement_of_one(name, array) for name, array in arrays.items()}
    (first_name, first), *others = places.items()
    for name, other in others:
        devices_differ = None not in (first.device, other.device) and first.device != other.device
        if other.xp is not first.xp or devices_differ:
            raise ValueError(
                f"`{name}` must live where `{first_name}` does: "
                f"`{first_name}` is {first}, `{name}` is {other}"
            )
    return first


def _placement_of_one(name: str, array: Array) -> Placement:
    if type(array) is np.ndarray and array.dtype in _NUMPY_PLACES:
        return _NUMPY_PLACES[array.dtype]
    if isinstance(array, np.generic) or not array_api_compat.is_array_api_obj(array):
        raise TypeError(
            f"`{name}` must be an array of a library that follows the Array API standard "
            f"(NumPy, CuPy, PyTorch, JAX, ...), got {type(array).__module__}.{type(array).__qualname__}"
        )
    if _is_not_plain(array):
        raise TypeError(
            f"`{name}` must be a plain dense array, got {type(array).__module__}.{type(array).__qualname__}"
        )
    xp = _namespace(array)
    # Inside a jax.jit an array is on no device yet.
    device = None if _is_jax_tracer(array) else array_api_compat.device(array)
    return Placement(xp, device, _floating_dtype(name, xp, array.dtype, device))


_NUMPY_PLACES = {np.dtype(name): Placement(np, "cpu", np.dtype(name)) for name in ("float32", "float64")}
"""Where nearly all arrays live: not worth asking again for each."""


def _is_not_plain(array: Array) -> bool:
    if isinstance(array, np.ndarray):
        # A mask would be passed over in silence, and a matrix multiplies where an array does not.
        return type(array) not in (np.ndarray, np.memmap)
    if array_api_compat.is_torch_array(array):
        return bool(array.layout != sys.modules["torch"].strided)
    return bool(array_api_compat.is_pydata_sparse_array(array) or array_api_compat.is_dask_array(array))


def _namespace(array: Array) -> Namespace:
    # NumPy is a namespace of the standard itself; array_api_compat.numpy wraps its matmul in Python,
    # and imports f2py and unittest. For JAX's it would compile something.
    if isinstance(array, np.ndarray):
        return np
    if array_api_compat.is_jax_array(array):
        return sys.modules["jax"].numpy
    return array_api_compat.array_namespace(array)


def _is_jax_tracer(array: Array) -> bool:
    return array_api_compat.is_jax_array(array) and isinstance(array, sys.modules["jax"].core.Tracer)


def _floating_dtype(name: str, xp: Namespace, dtype: Dtype, device: Device) -> Dtype:
    if xp.isdtype(dtype, "real floating"):
        return dtype
    if xp.isdtype(dtype, ("bool", "integral")):
        return default_dtype(xp, device)
    raise TypeError(f"`{name}` must hold real numbers, got dtype {dtype}")


def default_dtype(xp: Namespace, device: Device = None) -> Dtype:
    """Return the floating dtype that the namespace makes when none is asked for."""
    if is_jax(xp):
        return xp.result_type(float)  # compiles nothing
    return xp.empty((0,), device=device).dtype


def library_name(xp: Namespace) -> str:
    """Return the name by which people know the namespace's library."""
    module: str = xp.__name__.removeprefix("array_api_compat.").split(".")[0]
    return LIBRARY_NAMES.get(module, module)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return an array of any namespace as a NumPy array, without a copy where it is one.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp._arrays import to_host
    >>> to_host(np.array([1.0, 2.0]))
    array([1., 2.])
    """
    if isinstance(array, np.ndarray):
        return array
    if array_api_compat.is_cupy_array(array):
        return array.get()  # type: ignore[no-any-return]
    if array_api_compat.is_torch_array(array):
        return array.detach().cpu().numpy()  # type: ignore[no-any-return]
    if array_api_compat.is_jax_array(array):
        return np.asarray(array)
    return np.from_dlpack(array, device="cpu")


def is_jax(xp: Namespace) -> bool:
    """Whether this is JAX's namespace, whose functions can be compiled."""
    return bool(array_api_compat.is_jax_namespace(xp))


def is_cupy(xp: Namespace) -> bool:
    """Whether this is CuPy's namespace."""
    return bool(array_api_compat.is_cupy_namespace(xp))


def is_on_cuda(place: Placement) -> bool:
    """Whether arrays of CuPy or PyTorch live on a CUDA device."""
    on_torch_cuda = array_api_compat.is_torch_namespace(place.xp) and place.device.type == "cuda"
    return is_cupy(place.xp) or on_torch_cuda


def for_inspection(xp: Namespace, *arrays: Array) -> tuple[Any, ...]:
    """Return the namespace and the arrays to look at their values with, once.

    JAX compiles each function for each shape. That takes far longer than looking at the values on the
    host, where they are already if the device is the CPU, and where a few are fast.
    """
    if is_jax(xp) and arrays:
        on_cpu = all(device.platform == "cpu" for device in arrays[0].devices())
        if on_cpu or sum(array.nbytes for array in arrays) <= NEAR_BYTES:
            return np, *map(to_host, arrays)
    return xp, *arrays


def copy_array(xp: Namespace, array: Array) -> Array:
    """Copy an array; a PyTorch tensor's copy stands outside autograd."""
    if array_api_compat.is_torch_namespace(xp):
        return array.detach().clone()
    if is_jax(xp):
        return sys.modules["jax"].device_put(array, may_alias=False)  # compiles nothing
    return xp.asarray(array, copy=True)


class _SparseNumPy:
    """NumPy, with the functions that touch a SciPy sparse matrix of samples able to do so."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def matmul(a: Any, b: Any) -> Any:
        return operator.matmul(a, b)  # NumPy's own knows no sparse matrices

    @staticmethod
    def take(array: Any, indices: Any, *, axis: int) -> Any:
        return array[indices] if is_sparse(array) else np.take(array, indices, axis=axis)

    @staticmethod
    def astype(array: Any, dtype: Any) -> Any:
        return array.astype(dtype)


_SPARSE_NUMPY = _SparseNumPy()


_ARITHMETIC = ("maximum", "minimum", "logaddexp", "atan2", "hypot", "copysign", "nextafter")
_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_OF_TENSORS_ALONE = frozenset((*_ARITHMETIC, *_COMPARISONS))
"""Functions of two operands, either of which may be a number in the standard, and not in PyTorch."""


class _TorchOnDevice:
    """PyTorch's namespace, with functions of a tensor and a Python number that stay on the device.

    Elsewhere the number becomes a tensor on the host that is copied to the device; the host waits for
    that, and no CUDA graph can capture it.
    """

    def __init__(self, xp: Namespace) -> None:
        self._xp = xp
        self._torch = sys.modules["torch"]

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)
        if name not in _OF_TENSORS_ALONE:
            return function
        return lambda *operands: function(*self._tensors(operands))

    def maximum(self, x1: Any, x2: Any) -> Array:
        return self._torch.clamp(x1, min=x2) if _is_number(x2) else self._xp.maximum(*self._tensors((x1, x2)))

    def minimum(self, x1: Any, x2: Any) -> Array:
        return self._torch.clamp(x1, max=x2) if _is_number(x2) else self._xp.minimum(*self._tensors((x1, x2)))

    def _tensors(self, operands: tuple[Any, ...]) -> list[Array]:
        """Return the operands as tensors; the device itself writes the numbers."""
        like = next(one for one in operands if not _is_number(one))
        return [
            self._torch.full((), one, dtype=self._torch.result_type(like, one), device=like.device)
            if _is_number(one)
            else one
            for one in operands
        ]


def _is_number(operand: Any) -> bool:
    return isinstance(operand, (int, float))


@lru_cache
def _torch_on_device(xp: Namespace) -> Namespace:
    return _TorchOnDevice(xp)


def is_sparse(array: Any) -> bool:
    """Whether this is a sparse matrix or array of SciPy's."""
    return "scipy.sparse" in sys.modules and bool(sys.modules["scipy.sparse"].issparse(array))


def computing_namespace(xp: Namespace, X: Array) -> Namespace:
    """Return the namespace to compute in with these samples: `xp`, or one that can what `xp` cannot.

    Its products take SciPy's sparse matrices, or its functions leave PyTorch's tensors on their device.
    """
    if is_sparse(X):
        return _SPARSE_NUMPY
    return _torch_on_device(xp) if array_api_compat.is_torch_namespace(xp) else xp


def is_non_numpy_array(array: Any) -> bool:
    """Whether this is an array of another library than NumPy, on whatever device."""
    return (
        not isinstance(array, (np.ndarray, np.generic))
        and array_api_compat.is_array_api_obj(array)
        and not is_sparse(array)
    )


def row_slices(n_rows: int, n_each: int) -> Iterator[slice]:
    """Slices of `n_each` rows, the last with those that are left."""
    for start in range(0, n_rows, n_each):
        yield slice(start, min(start + n_each, n_rows))


def rows_per_block(row_width: int) -> int:
    """Return how many rows of so many numbers hold about `ELEMENTS_PER_BLOCK` numbers."""
    return max(1, ELEMENTS_PER_BLOCK // max(1, row_width))


def row_blocks(n_rows: int, row_width: int) -> Iterator[slice]:
    """Slices of rows that hold about `ELEMENTS_PER_BLOCK` numbers each."""
    return row_slices(n_rows, rows_per_block(row_width))


def check_finite(xp: Namespace, name: str, array: Array) -> None:
    """Raise a ValueError that says where the 2-D `array` holds NaN or infinity."""
    if not xp.isdtype(array.dtype, "real floating"):
        return
    xp, array = for_inspection(xp, array)
    for block in row_blocks(*array.shape):
        # A sum is one pass over memory, and finite only if all is; if it overflows, that says nothing.
        with quiet_floating_point():
            if bool(xp.isfinite(xp.sum(array[block, :]))):
                continue
        finite = xp.isfinite(array[block, :])
        if not bool(xp.all(finite)):
            row, column = np.argwhere(~to_host(finite))[0]
            value = float(array[block.start + int(row), int(column)])
            raise ValueError(
                f"`{name}` must hold finite numbers, got {value} in row {block.start + row}, column {column}"
            )


@contextmanager
def quiet_floating_point() -> Iterator[None]:
    """Keep NumPy from warning of overflow: activations saturate by it, and training looks for NaN itself."""
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        yield


def without_autodiff(xp: Namespace) -> Any:
    """Context in which PyTorch records nothing for its own backward pass; elsewhere it does nothing."""
    if array_api_compat.is_torch_namespace(xp):
        return sys.modules["torch"].no_grad()
    return nullcontext()
