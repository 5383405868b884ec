"""Namespace, device and dtype of arrays, and transfers between host and device.

Only this module, `mlp_xp.backends`, `mlp_xp._devices` and `mlp_xp._engines` refer to array libraries by name.
A library is imported only if the user names it; for arrays passed in, it is imported already.
"""

from __future__ import annotations

import math
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
"""A device of a namespace, as its arrays' attribute ``device`` has it; array libraries share no type."""
Dtype: TypeAlias = Any
"""A dtype of a namespace, as its arrays' attribute ``dtype`` has it."""
HostArray: TypeAlias = np.ndarray[Any, Any]
"""A NumPy array."""

ELEMENTS_PER_BLOCK = 2**22
"""Number of elements in a block of rows, where many rows are processed block by block.

Chosen so that a temporary array of a block takes 32 MiB in float64, however many rows there are.
"""

BLOCKS_AT_ONCE_ON_GPU = 4
"""How many times as many elements a block of rows has that a GPU computes with. The host launches a kernel in
about 12 microseconds, in which a GPU of 4 TB/s reads and writes 6 million float32."""

ROWS_ALIGNED = 64
"""Blocks of so many rows begin at multiples of 256 bytes, as arrays do: libraries choose among kernels of
matrix products by the alignment of the factors."""

MAX_BYTES_INSPECTED_ON_HOST = 2**20
"""Maximum size of JAX arrays on a GPU that are copied to the host to check their values.

JAX compiles each function for each shape, which takes it 60 ms for ``isfinite(sum(x))`` (measured on a CPU);
chosen so that the copy takes much less than that.
"""

STANDARD = "2024.12"
"""The version of the Array API standard that namespaces must follow at least."""

LIBRARY_NAMES = {"numpy": "NumPy", "cupy": "CuPy", "torch": "PyTorch", "jax": "JAX"}
"""Names of the libraries to show to users, by the name of their top-level module."""


class Placement(NamedTuple):
    """Namespace and device of an array, and the floating dtype to compute in.

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
        """Return a new array with this placement that holds values on the host, contiguous by rows."""
        if is_jax(self.xp):  # unlike JAX's `asarray`, `device_put` compiles nothing
            return sys.modules["jax"].device_put(np.array(values, dtype=self.dtype, order="C"), self.device)
        # The cast is on the host, because some devices have no float64, which `values` may be in.
        host = np.array(values, dtype=self.host_dtype, order="C")
        return host if self.xp is np else self.xp.asarray(host, dtype=self.dtype, device=self.device)

    @property
    def dtype_name(self) -> str:
        """The dtype's name: "float32" or "float64"."""
        return f"float{self.xp.finfo(self.dtype).bits}"

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """NumPy's dtype for the values, in native byte order; float32 for bfloat16, which NumPy lacks."""
        name = str(self.xp.finfo(self.dtype).dtype).rpartition(".")[2]
        return np.dtype(getattr(np, name, np.float32))

    def same_as(self, other: Placement) -> bool:
        """Whether both have the same namespace and device; the dtype may differ."""
        return self.xp is other.xp and bool(self.device == other.device)

    def transfer(self, array: Array) -> Array:
        """Transfer an array of any library to this namespace and device; floating arrays get this dtype.

        An array that has this namespace and device already is returned as it is.
        """
        if self.same_as(placement(array=array)):
            return array
        host = to_host(array)
        if host.dtype.kind == "f":
            return self.from_host(host)
        # PyTorch warns of a read-only array and refuses negative strides, other byte orders and one of C's
        # two types of 64 bits, so such arrays are copied.
        host = np.require(host, native_dtype(host), requirements=["C", "W"])
        if min(host.strides, default=0) < 0:  # of an axis of length 1, which counts as contiguous
            host = host.copy()
        return self.xp.asarray(host, device=self.device)

    def cast(self, array: Array) -> Array:
        """Return `array` in this dtype, without a copy if it has this dtype already."""
        return array if array.dtype == self.dtype else self.xp.astype(array, self.dtype)

    def __str__(self) -> str:
        return f"{library_name(self.xp)} on {'a traced device' if self.device is None else self.device}"


def placement(**arrays: Array) -> Placement:
    """Return the placement that all the named arrays share.

    Parameters
    ----------
    **arrays : array
        Arrays, by the name of the argument to use in error messages.

    Returns
    -------
    Placement
        With the floating dtype of the first array.

    Raises
    ------
    TypeError
        If an argument is not an array, or does not hold real numbers.
    ValueError
        If two arrays are of different namespaces or on different devices; both are named.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp._arrays import placement
    >>> print(placement(X=np.ones((3, 2)), y=np.zeros((3, 1))))
    NumPy on cpu
    """
    places = {name: _array_placement(name, array) for name, array in arrays.items()}
    (first_name, first), *others = places.items()
    for name, other in others:
        devices_differ = None not in (first.device, other.device) and first.device != other.device
        if other.xp is not first.xp or devices_differ:
            raise ValueError(
                f"`{name}` must live where `{first_name}` does: "
                f"`{first_name}` is {first}, `{name}` is {other}"
            )
    return first


def _array_placement(name: str, array: Array) -> Placement:
    if type(array) is np.ndarray and array.dtype in _NUMPY_PLACEMENTS:
        return _NUMPY_PLACEMENTS[array.dtype]
    check_kind(name, array)
    if isinstance(array, np.generic) or not array_api_compat.is_array_api_obj(array):
        raise TypeError(
            f"`{name}` must be an array of a library that follows the Array API standard "
            f"(NumPy, CuPy, PyTorch, JAX, ...), got {type_name(array)}"
        )
    if isinstance(array, np.ndarray) and type(array) not in (np.ndarray, np.memmap):
        raise TypeError(
            f"`{name}` must be a plain dense array, got {type_name(array)}: `numpy.asarray` makes one"
        )
    xp = _namespace(array)
    version = getattr(xp, "__array_api_version__", "")
    if version and version < STANDARD and library_name(xp) not in LIBRARY_NAMES.values():
        raise TypeError(
            f"`{name}` must be an array of a library that follows the Array API standard of {STANDARD} or "
            f"later, {library_name(xp)} follows that of {version}"
        )
    # Inside a jax.jit an array is on no device yet.
    device = None if _is_jax_tracer(array) else array_api_compat.device(array)
    return Placement(xp, device, _floating_dtype(name, xp, array.dtype, device))


_NUMPY_PLACEMENTS = {np.dtype(name): Placement(np, "cpu", np.dtype(name)) for name in ("float32", "float64")}
"""Placement of NumPy arrays by dtype, as a shortcut for the most frequent case."""


def check_kind(name: str, array: Any) -> None:
    """Raise a TypeError that says what to do, if an array or a table is masked, sparse or still to compute.

    SciPy's sparse matrices pass: the estimators take them.
    """
    if isinstance(array, (list, tuple)):  # of rows
        array = next((row for row in array if isinstance(row, np.ma.MaskedArray)), None)
    advice = _advice_on_kind(array)
    if advice:
        raise TypeError(f"`{name}` must be a plain dense array, got {type_name(array)} ({advice})")


def _advice_on_kind(array: Any) -> str:
    """Return how to make a plain dense array of one that is none, "" if nothing is wrong with its kind."""
    if isinstance(array, (np.ma.MaskedArray, np.matrix)):
        # It would lose its mask; a matrix has another meaning of `*`.
        return "`.filled(value)`, or the rows without a mask" if np.ma.isMA(array) else "`numpy.asarray`"
    if array_api_compat.is_torch_array(array):
        return _advice_on_tensor(array)
    if array_api_compat.is_pydata_sparse_array(array) or type_name(array).startswith(
        "jax.experimental.sparse."
    ):
        return "a sparse array: `.todense()`"
    if array_api_compat.is_jax_array(array) and "key" in str(array.dtype):
        return "keys of random numbers"
    if getattr(array, "__dask_graph__", lambda: None)() is not None:
        return "not yet computed: `.compute()`"
    if hasattr(type(array), "collect"):  # polars' LazyFrame
        return "not yet computed: `.collect()`"
    return ""


def _advice_on_tensor(tensor: Any) -> str:
    if type_name(tensor).startswith("torch.masked."):
        return "`.to_tensor(value)`"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != sys.modules["torch"].strided:
        return "a sparse tensor: `.to_dense()`"
    if tensor.is_meta:
        return "without data, on the meta device"
    if tensor.is_quantized:
        return "quantized: `.dequantize()`"
    return ""


def type_name(thing: object) -> str:
    """Return the full name of an object's type."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _namespace(array: Array) -> Namespace:
    # NumPy's own namespace follows the standard; array_api_compat.numpy would add a Python call to each
    # matmul, and import f2py and unittest. For JAX arrays, `array_namespace` would compile a function.
    if isinstance(array, np.ndarray):
        return np
    if array_api_compat.is_jax_array(array):
        return sys.modules["jax"].numpy
    return array_api_compat.array_namespace(array)


def _is_jax_tracer(array: Array) -> bool:
    return array_api_compat.is_jax_array(array) and isinstance(array, sys.modules["jax"].core.Tracer)


def _floating_dtype(name: str, xp: Namespace, dtype: Dtype, device: Device) -> Dtype:
    if xp is np and dtype.isbuiltin == 2:  # of another package, such as bfloat16
        raise TypeError(f"`{name}` must have a dtype of NumPy's own, got {dtype}: `.astype('float32')`")
    if xp.isdtype(dtype, "real floating"):
        if xp.finfo(dtype).bits < 16:
            raise TypeError(f"`{name}` must hold numbers of 16 bits at least, got dtype {dtype}")
        return dtype
    if xp.isdtype(dtype, ("bool", "integral")):
        return default_dtype(xp, device)
    raise TypeError(f"`{name}` must hold real numbers, got dtype {dtype}")


def default_dtype(xp: Namespace, device: Device = None) -> Dtype:
    """Return the namespace's default floating dtype on a device."""
    if is_jax(xp):
        return xp.result_type(float)  # unlike `empty`, this compiles nothing
    return xp.empty((0,), device=device).dtype


def library_name(xp: Namespace) -> str:
    """Return the name of the namespace's library to show to users, such as "PyTorch"."""
    module: str = xp.__name__.removeprefix("array_api_compat.").split(".")[0]
    return LIBRARY_NAMES.get(module, module)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return an array of any namespace as a NumPy array; a NumPy array is not copied.

    Numbers that NumPy has no dtype for become larger ones: bfloat16 becomes float32, which holds its values.

    Parameters
    ----------
    array : array
        Of any namespace and device.

    Returns
    -------
    ndarray
        Of the same shape and, where NumPy has it, dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import to_host
    >>> to_host(np.array([1.0, 2.0]))
    array([1., 2.])
    """
    if type(array) is not np.ndarray:
        check_kind("array", array)
    host: HostArray
    if isinstance(array, np.ndarray):
        host = array
    elif array_api_compat.is_torch_array(array):
        torch, array = sys.modules["torch"], array.detach().cpu()
        numpys = (torch.float16, torch.float32, torch.float64)
        widened = array.dtype.is_floating_point and array.dtype not in numpys
        host = (array.float() if widened else array).numpy()
    elif array_api_compat.is_cupy_array(array):
        host = array.get()
    elif array_api_compat.is_jax_array(array):
        host = np.asarray(array)
    elif not hasattr(array, "__dlpack__"):
        raise TypeError(f"`array` must be an array of a library, got {type_name(array)}")
    else:
        host = np.from_dlpack(array, device="cpu")
    if host.dtype.isbuiltin == 2:  # of another package, such as bfloat16
        host = host.astype(np.int8 if np.can_cast(host.dtype, np.int8) else np.float32)
    return host


def native_dtype(array: HostArray) -> np.dtype[Any]:
    """Return the dtype of an array of numbers in the native order of bytes."""
    return np.dtype(f"{array.dtype.kind}{array.dtype.itemsize}")


def is_jax(xp: Namespace) -> bool:
    """Whether this is JAX's namespace."""
    return bool(array_api_compat.is_jax_namespace(xp))


def is_cupy(xp: Namespace) -> bool:
    """Whether this is CuPy's namespace."""
    return bool(array_api_compat.is_cupy_namespace(xp))


def is_on_cuda(place: Placement) -> bool:
    """Whether the placement is CuPy, or PyTorch on a CUDA device; JAX on a GPU is not included."""
    on_torch_cuda = array_api_compat.is_torch_namespace(place.xp) and place.device.type == "cuda"
    return is_cupy(place.xp) or on_torch_cuda


def for_value_checks(xp: Namespace, *arrays: Array) -> tuple[Any, ...]:
    """Return a namespace and the arrays in it to check their values with, as ``(xp, *arrays)``.

    JAX arrays on the CPU and small ones on a GPU become NumPy arrays, because JAX would compile each check
    for each shape, which takes longer than the check. All other arrays are returned as they are.
    """
    if is_jax(xp) and arrays:
        on_cpu = all(device.platform == "cpu" for device in arrays[0].devices())
        if on_cpu or sum(array.nbytes for array in arrays) <= MAX_BYTES_INSPECTED_ON_HOST:
            return np, *map(to_host, arrays)
    return xp, *arrays


def is_on_gpu(place: Placement) -> bool:
    """Whether the placement is another device than a CPU, of CuPy, PyTorch or JAX."""
    if array_api_compat.is_torch_namespace(place.xp):
        return bool(place.device.type != "cpu")
    return is_cupy(place.xp) or (is_jax(place.xp) and getattr(place.device, "platform", "cpu") != "cpu")


def copy_array(xp: Namespace, array: Array) -> Array:
    """Return a copy of an array; the copy of a PyTorch tensor is detached from autograd."""
    if array_api_compat.is_torch_namespace(xp):
        return array.detach().clone()
    if is_jax(xp):
        return sys.modules["jax"].device_put(array, may_alias=False)  # `asarray` would compile
    return xp.asarray(array, copy=True)


class _SparseNumPy:
    """NumPy's namespace, with `matmul`, `take` and `astype` that accept SciPy's sparse matrices too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def matmul(a: Any, b: Any) -> Any:
        return operator.matmul(a, b)  # `np.matmul` refuses sparse matrices

    @staticmethod
    def take(array: Any, indices: Any, *, axis: int) -> Any:
        return array[indices] if is_sparse(array) else np.take(array, indices, axis=axis)

    @staticmethod
    def astype(array: Any, dtype: Any) -> Any:
        return array.astype(dtype)


_SPARSE_NUMPY = _SparseNumPy()


_ARITHMETIC = ("maximum", "minimum", "logaddexp", "atan2", "hypot", "copysign", "nextafter")
_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_TENSOR_ONLY_FUNCTIONS = frozenset((*_ARITHMETIC, *_COMPARISONS))
"""Binary functions that accept a Python number in the standard, but only tensors in PyTorch."""


class _TorchWithoutHostCopies:
    """PyTorch's namespace, with functions of a tensor and a Python number that copy nothing from the host.

    array_api_compat makes the number a tensor on the host and copies that to the device. The host waits for
    the copy, and a CUDA graph cannot capture it.
    """

    def __init__(self, xp: Namespace) -> None:
        self._xp = xp
        self._torch = sys.modules["torch"]

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)
        if name not in _TENSOR_ONLY_FUNCTIONS:
            return function
        return lambda *operands: function(*self._tensors(operands))

    def maximum(self, x1: Any, x2: Any) -> Array:
        return self._torch.clamp(x1, min=x2) if _is_number(x2) else self._xp.maximum(*self._tensors((x1, x2)))

    def minimum(self, x1: Any, x2: Any) -> Array:
        return self._torch.clamp(x1, max=x2) if _is_number(x2) else self._xp.minimum(*self._tensors((x1, x2)))

    def _tensors(self, operands: tuple[Any, ...]) -> list[Array]:
        """Return the operands as tensors; `full` writes a number by a kernel, without a copy."""
        like = next(one for one in operands if not _is_number(one))
        return [
            self._torch.full((), one, dtype=self._torch.result_type(like, one), device=like.device)
            if _is_number(one)
            else one
            for one in operands
        ]


def _is_number(operand: Any) -> bool:
    return isinstance(operand, (int, float))


@lru_cache  # one entry: PyTorch has one namespace
def _torch_without_host_copies(xp: Namespace) -> Namespace:
    return _TorchWithoutHostCopies(xp)


def is_sparse(array: Any) -> bool:
    """Whether this is a sparse matrix or sparse array of SciPy."""
    return "scipy.sparse" in sys.modules and bool(sys.modules["scipy.sparse"].issparse(array))


def computing_namespace(xp: Namespace, X: Array) -> Namespace:
    """Return the namespace to compute in: `xp`, or a wrapper with functions that `xp` lacks.

    If `X` is sparse, the wrapper accepts SciPy's sparse matrices. For PyTorch, its functions of a tensor and
    a number copy nothing from the host.
    """
    if is_sparse(X):
        return _SPARSE_NUMPY
    return _torch_without_host_copies(xp) if array_api_compat.is_torch_namespace(xp) else xp


def is_non_numpy_array(array: Any) -> bool:
    """Whether this is an array of another library than NumPy, on any device; sparse matrices are not."""
    return (
        not isinstance(array, (np.ndarray, np.generic))
        and array_api_compat.is_array_api_obj(array)
        and not is_sparse(array)
    )


def row_slices(n_rows: int, n_each: int) -> Iterator[slice]:
    """Yield consecutive slices of `n_each` rows; the last one may be shorter."""
    for start in range(0, n_rows, n_each):
        yield slice(start, min(start + n_each, n_rows))


def rows_per_block(row_width: int, place: Placement | None = None) -> int:
    """Return the number of rows of this width in a block of about `ELEMENTS_PER_BLOCK` elements.

    On a GPU it is `BLOCKS_AT_ONCE_ON_GPU` times as many, and a multiple of `ROWS_ALIGNED`.
    """
    if place is None or not is_on_gpu(place):
        return max(1, ELEMENTS_PER_BLOCK // max(1, row_width))
    n_rows = BLOCKS_AT_ONCE_ON_GPU * ELEMENTS_PER_BLOCK // max(1, row_width)
    return max(ROWS_ALIGNED, n_rows - n_rows % ROWS_ALIGNED)


def row_blocks(n_rows: int, row_width: int) -> Iterator[slice]:
    """Yield consecutive slices of rows with about `ELEMENTS_PER_BLOCK` elements each."""
    return row_slices(n_rows, rows_per_block(row_width))


def check_finite(xp: Namespace, name: str, array: Array) -> None:
    """Raise a ValueError that names the position of the first NaN or infinity in the 2-D `array`."""
    if not xp.isdtype(array.dtype, "real floating"):
        return
    xp, array = for_value_checks(xp, array)
    if isinstance(array, np.ndarray) and array.size <= ELEMENTS_PER_BLOCK:  # the quickest way
        with quiet_floating_point():
            if math.isfinite(np.add.reduce(array, axis=None)):
                return
    for block in row_blocks(*array.shape):
        # The sum takes one pass over memory and no temporary array. If it is finite, so are all elements; if
        # it is not, it may have overflowed.
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
    """Context without NumPy's floating-point warnings.

    Activations overflow where they saturate, which is correct, and training checks for NaN itself.
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        yield


def without_autodiff(xp: Namespace) -> Any:
    """Return a context in which PyTorch's autograd records nothing; it does nothing for other namespaces."""
    if array_api_compat.is_torch_namespace(xp):
        return sys.modules["torch"].no_grad()
    return nullcontext()
