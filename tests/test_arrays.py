"""Placement of arrays, transfers to and from the host, blocks of rows, and backends."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import assert_close, need

from mlp_xp import _arrays as arrays
from mlp_xp._arrays import Placement, check_finite, is_non_numpy_array, placement, row_blocks, to_host
from mlp_xp.backends import BackendUnavailableError, _destination, backend


def default_floating(library):
    info = library.xp.__array_namespace_info__()
    return info.default_dtypes(device=library.device)["real floating"]


def device_without_float64(strict):
    info = strict.__array_namespace_info__()
    for device in info.devices():
        if "float64" not in info.dtypes(device=device):
            return device
    pytest.skip("this version has no device without float64")
    return None


# placement


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floating_dtypes_stay(library, dtype):
    found = placement(X=library.array([[1.0, 2.0]], dtype))
    assert found.xp is library.xp
    assert found.device == library.device
    assert found.dtype == getattr(library.xp, dtype)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_integers_and_bools_become_the_default_float(library, dtype):
    assert placement(X=library.array([[1, 0]], dtype)).dtype == default_floating(library)


def test_integers_on_a_device_without_float64_become_float32(request):
    strict = need("array_api_strict", request)
    device = device_without_float64(strict)
    found = placement(X=strict.asarray([1, 0], dtype=strict.int32, device=device))
    assert (found.device, found.dtype) == (device, strict.float32)


def test_placement_has_the_dtype_of_the_first_array_and_checks_all(library):
    single, double = library.array([1.0], "float32"), library.array([1.0], "float64")
    assert placement(y=single, z=double).dtype == library.xp.float32
    assert placement(y=double, z=single).dtype == library.xp.float64


def test_complex_numbers_are_refused(library):
    with pytest.raises(TypeError, match=r"`y` must hold real numbers, got dtype .*complex64"):
        placement(X=library.array([1.0]), y=library.array([1.0], "complex64"))


@pytest.mark.parametrize(
    ("values", "came"),
    [
        (np.array(["a"]), "<U1"),
        (np.array([b"a"]), "|S1"),
        (np.array([None, 1.0]), "object"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "datetime64[D]"),
        (np.array([1], dtype="timedelta64[s]"), "timedelta64[s]"),
        (np.zeros(2, dtype=[("a", "f8")]), "[('a', '<f8')]"),
    ],
)
def test_numpy_arrays_that_hold_no_numbers_are_refused(values, came):
    message = f"`labels` must hold real numbers, got dtype {came}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        placement(labels=values)


@pytest.mark.parametrize(
    ("value", "came"),
    [
        ([[1.0, 2.0]], "builtins.list"),
        ((1.0, 2.0), "builtins.tuple"),
        (1.0, "builtins.float"),
        (np.float64(1.0), "numpy.float64"),
        ("text", "builtins.str"),
    ],
)
def test_other_objects_than_arrays_are_refused(value, came):
    with pytest.raises(TypeError, match=rf"`X` must be an array .*NumPy, CuPy.* got {re.escape(came)}$"):
        placement(X=value)


@pytest.mark.parametrize("module", ["pandas", "polars"])
def test_data_frames_are_refused(module):
    frame = pytest.importorskip(module).DataFrame({"a": [1.0, 2.0]})
    for table in (frame, frame["a"]):
        with pytest.raises(TypeError, match=rf"`X` must be an array .*, got {module}\."):
            placement(X=table)


@pytest.mark.parametrize("make", ["csr_array", "coo_matrix"])
def test_scipy_sparse_matrices_are_refused(make):
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"`X` must be .*array.* got scipy\.sparse"):
        placement(X=getattr(sparse, make)(np.eye(2)))


@pytest.mark.parametrize(
    ("module", "name"),
    [("torch", "PyTorch"), ("jax.numpy", "JAX"), ("array_api_strict", "array_api_strict")],
)
def test_mixed_namespaces_are_refused(module, name, request):
    need(module.partition(".")[0], request)
    other = pytest.importorskip(module).asarray([1.0])
    ours = np.ones(1)
    with pytest.raises(ValueError, match=rf"`y` .*`X` is NumPy on cpu, `y` is {name} on ") as raised:
        placement(X=ours, y=other)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=rf"`y` .*`X` is {name} on .*, `y` is NumPy on cpu"):
        placement(X=other, y=ours)
    with pytest.raises(ValueError, match=r"`weights` must live where `X` does"):
        placement(X=ours, y=ours, weights=other)


def test_mixed_devices_are_refused(request):
    strict = need("array_api_strict", request)
    first = strict.ones((2, 1), device=strict.Device("device1"))
    second = strict.ones((2, 1), device=strict.Device("CPU_DEVICE"))
    with pytest.raises(
        ValueError, match=r"`X` is array_api_strict on .*device1.*, `y` is .* on .*CPU_DEVICE"
    ):
        placement(X=first, y=second)
    assert placement(X=first, y=first).device == strict.Device("device1")


def test_arrays_inside_a_jit_have_no_device(request):
    jax = need("jax", request)
    found = []

    def traced(X):
        found.append(placement(X=X, y=jax.numpy.ones(3)))
        return X

    jax.jit(traced)(jax.numpy.ones(3, dtype="float32"))
    assert found == [Placement(jax.numpy, None, jax.numpy.dtype("float32"))]
    assert str(found[0]) == "JAX on a traced device"


# to and from the host


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)])
def test_to_host(library, dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = to_host(library.array(values, dtype))
    assert isinstance(found, np.ndarray)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values, strict=True)


def test_to_host_does_not_copy_numpy_arrays():
    values = np.ones((2, 2))
    assert to_host(values) is values


def test_to_host_of_a_tensor_that_requires_a_gradient(request):
    torch = need("torch", request)
    found = to_host(torch.tensor([1.5, 2.5], requires_grad=True) * 2.0)
    np.testing.assert_array_equal(found, np.array([3.0, 5.0], dtype=np.float32), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", [[[0.1, 1.0], [2.0, -3.5]], [1, 2, 3], [True, False], np.float64(0.1)])
def test_from_host(library, dtype, values):
    found = library.place(dtype).from_host(values)
    assert_close(found, np.asarray(values).astype(dtype), library.array([1.0], dtype), rtol=0)


def test_from_host_copies(library):
    values = np.array([1.0, 2.0])
    found = library.place().from_host(values)
    values[0] = 7.0
    assert to_host(found).tolist() == [1.0, 2.0]
    found += 1.0
    assert values.tolist() == [7.0, 2.0]


def test_from_host_to_a_device_without_float64(request):
    strict = need("array_api_strict", request)
    device = device_without_float64(strict)
    found = Placement(strict, device, strict.float32).from_host(np.array([[0.1, 2.0]]))
    assert (found.device, found.dtype) == (device, strict.float32)
    np.testing.assert_array_equal(to_host(found), np.array([[0.1, 2.0]], dtype=np.float32), strict=True)


def test_cast(library):
    single = library.array([0.1, 2.0], "float32")
    assert library.place("float32").cast(single) is single
    double = library.place("float64").cast(single)
    assert_close(double, [float(np.float32(0.1)), 2.0], library.array([1.0]), rtol=0)
    assert_close(library.place().cast(library.array([3, 4], "int32")), [3.0, 4.0], double, rtol=0)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "uint8", "bool"])
def test_bring_moves_arrays_and_casts_floating_ones(library, dtype):
    host = np.array([[0.0, 1.0], [3.0, 2.0]]).astype(dtype)
    host.flags.writeable = False
    brought = library.place("float32").transfer(host)
    kept = "float32" if "float" in dtype and library.xp is not np else dtype
    assert brought.dtype == library.array([1.0], kept).dtype
    assert placement(brought=brought).same_as(library.place())
    np.testing.assert_array_equal(to_host(brought), host)


def test_bring_returns_an_array_that_needs_no_move(library):
    array = library.array([1.0, 2.0])
    assert library.place("float32").transfer(array) is array


def test_bring_to_the_host(library):
    place = placement(like=np.ones(1))
    for array in (library.array([1.0, 2.0], "float32"), library.array([3, 4], "int64")):
        brought = place.transfer(array)
        assert isinstance(brought, np.ndarray)
        np.testing.assert_array_equal(brought, to_host(array))


def test_is_non_numpy_array(library):
    assert is_non_numpy_array(library.array([1.0])) == (library.xp is not np)
    sparse = pytest.importorskip("scipy.sparse")
    for here in ([1.0], (1.0,), 1.0, np.float64(1.0), "text", None, sparse.csr_array([[1.0]])):
        assert not is_non_numpy_array(here)


def test_destinations_are_backends_or_devices(request):
    here = placement(like=np.ones(1, dtype="float32"))
    assert _destination("numpy", here) == here
    assert _destination("cpu", here) == here
    with pytest.raises(
        ValueError, match=r"`target` must be one of .*'cupy'.* or a device of NumPy, got 'gpu'"
    ):
        _destination("gpu", here)
    torch = need("torch", request)
    assert _destination("torch", here).dtype == torch.float32
    tensors = placement(like=torch.ones(1))
    assert _destination("meta", tensors).device == torch.device("meta")
    assert _destination("numpy", tensors) == here
    with pytest.raises(ValueError, match="or a device of PyTorch, got 'nowhere'"):
        _destination("nowhere", tensors)


# blocks of rows


@pytest.mark.parametrize(
    ("n_rows", "row_width"), [(10, 3), (12, 3), (1, 100), (7, 25), (5, 1), (0, 3), (4, 0)]
)
def test_row_blocks_cover_every_row_once(n_rows, row_width, monkeypatch):
    monkeypatch.setattr(arrays, "ELEMENTS_PER_BLOCK", 12)
    blocks = list(row_blocks(n_rows, row_width))
    rows = [row for block in blocks for row in range(block.start, block.stop)]
    assert rows == list(range(n_rows))
    assert all((block.stop - block.start) * row_width <= max(12, row_width) for block in blocks)
    assert len(blocks) == {(10, 3): 3, (12, 3): 3, (1, 100): 1, (7, 25): 7, (0, 3): 0}.get(
        (n_rows, row_width), 1
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 2), (9, 1)])
def test_check_finite_names_position_and_value(library, value, row, column, monkeypatch):
    monkeypatch.setattr(arrays, "ELEMENTS_PER_BLOCK", 6)
    values = np.arange(30.0).reshape(10, 3)
    values[row, column] = value
    message = f"`features` must hold finite numbers, got {value} in row {row}, column {column}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_finite(library.xp, "features", library.array(values))


def test_check_finite_names_the_first_of_many(library):
    values = np.zeros((4, 3), dtype=np.float32)
    values[2, 0], values[1, 2], values[3, 1] = np.nan, np.inf, np.nan
    with pytest.raises(ValueError, match=r"got inf in row 1, column 2$"):
        check_finite(library.xp, "X", library.array(values, "float32"))


# backends

PROBE = """
import json
import numpy as np
from mlp_xp._arrays import placement
from mlp_xp.backends import BackendUnavailableError, backend

found = backend("auto")
try:
    message = f"no error, but {backend('cupy')}"
except BackendUnavailableError as error:
    message = str(error)
print(json.dumps({
    "namespace": found.xp.__name__,
    "device": str(found.device),
    "reason": found.reason,
    "sum": float(found.xp.sum(found.place("float32").from_host([1.0, 2.0]))),
    "place": str(placement(X=np.ones(2))),
    "message": message,
}))
"""

BANNER = """
================================================================
Failed to import CuPy.

If you installed CuPy via wheels, make sure that the package matches with the version of CUDA.

Original error:
  ImportError: libnvrtc.so.12: cannot open shared object file
================================================================
"""

FAKE_CUPY = {
    "no device": (
        "class ndarray: pass\n"
        "def ones(n): raise RuntimeError('cudaErrorNoDevice: no CUDA-capable device\\nis detected')",
        r"no CUDA device answers \(cudaErrorNoDevice",
    ),
    "RuntimeError at import": (
        "raise RuntimeError('CUDA driver is too old\\nfor this runtime')",
        r"does not import \(CUDA driver is too old",
    ),
    "OSError at import": (
        "raise OSError('libcudart.so.12: cannot open shared object file')",
        r"does not import \(libcudart\.so\.12",
    ),
    "wrong sum": (
        "import numpy\nfrom numpy import ndarray\ndef ones(n): return numpy.zeros(n)",
        r"no CUDA device answers \(.*wrong sum",
    ),
    "no message": ("raise ImportError", r"does not import \(ImportError\)"),
    "a banner at import": (f"raise ImportError({BANNER!r})", "Failed to import CuPy|libnvrtc"),
    "a banner at the first use": (
        f"class ndarray: pass\ndef ones(n): raise RuntimeError({BANNER!r})",
        "Failed to import CuPy|libnvrtc",
    ),
    "something it needs is missing": ("import package_that_cupy_needs", "package_that_cupy_needs"),
}


def run_python(code, folder, **environment):
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.mark.parametrize("fault", FAKE_CUPY)
def test_auto_is_numpy_where_cupy_does_not_work(fault, tmp_path):
    source, why = FAKE_CUPY[fault]
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(source)
    found = json.loads(run_python(PROBE, tmp_path))
    assert found["namespace"] in ("numpy", "array_api_compat.numpy")
    assert found["device"] == "cpu"
    assert found["sum"] == 3.0
    assert found["place"] == "NumPy on cpu"
    assert re.match("no GPU: .*CuPy", found["reason"])
    for line in (found["reason"], found["message"]):
        assert re.search(why, line)
        assert "\n" not in line


def test_auto_is_numpy_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = backend("auto")
    assert found.xp.asarray([1.0]).__class__ is np.ndarray
    assert found.device == "cpu"
    assert found.reason == "no GPU: CuPy is not installed"
    with pytest.raises(
        BackendUnavailableError,
        match=r"^CuPy is not installed: pip install 'mlp_xp\[cuda12\]' or '",
    ):
        backend("cupy")


@pytest.mark.parametrize(("module", "name"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_libraries_that_are_not_installed(module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=rf"^{name} is not installed: pip install {module}$"):
        backend(module)


FAILS_WITH_ONE_LINE = """
from mlp_xp.backends import BackendUnavailableError, backend
try:
    backend({name!r})
except BackendUnavailableError as error:
    print(error)
"""


def test_a_broken_pytorch_is_unavailable(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudnn.so.9: cannot open shared object file')")
    lines = run_python(FAILS_WITH_ONE_LINE.format(name="torch"), tmp_path).splitlines()
    assert len(lines) == 1
    assert "libcudnn.so.9" in lines[0]


def test_jax_without_its_device_is_unavailable(tmp_path, request):
    need("jax", request)
    code = FAILS_WITH_ONE_LINE.format(name="jax")
    lines = run_python(code, tmp_path, JAX_PLATFORMS="no_such_platform").splitlines()
    assert len(lines) == 1
    assert "no_such_platform" in lines[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "title"), [("numpy", "NumPy"), ("torch", "PyTorch"), ("jax", "JAX")])
def test_backends_by_name(name, title, dtype, request):
    need(name, request)
    found = backend(name)
    array = found.place(dtype).from_host([1.0, 2.0])
    assert str(placement(X=array)).startswith(f"{title} on ")
    assert array.dtype == getattr(found.xp, dtype)
    assert found.reason.startswith("asked for")
    assert "\n" not in found.reason


@pytest.mark.parametrize("name", ["tensorflow", "CuPy", "", None, 3])
def test_unknown_backends_list_the_valid_ones(name):
    message = f"`backend` must be one of ['auto', 'cupy', 'jax', 'numpy', 'torch'], got {name!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        backend(name)


@pytest.mark.parametrize("thing", [None, "text", [1.0], 1.0])
def test_only_arrays_come_to_the_host(thing):
    with pytest.raises(TypeError, match="`array` must be an array of a library, got builtins"):
        arrays.to_host(thing)


def masked():
    return np.ma.masked_array([1.0, 2.0], mask=[False, True])


def torch_sparse():
    torch = pytest.importorskip("torch")
    return torch.ones(2, 2).to_sparse()


class Lazy:
    """An array that is still to compute, with the protocol of dask's."""

    def __dask_graph__(self):
        return {}


def lazy_table():
    return pytest.importorskip("polars").LazyFrame({"a": [1.0]})


@pytest.mark.parametrize(
    ("make", "name", "advice"),
    [
        (masked, "MaskedArray", ".filled(value)"),
        (lambda: np.ones((1, 1)).view(np.matrix), "matrix", "numpy.asarray"),
        (torch_sparse, "Tensor", ".to_dense()"),
        (Lazy, "Lazy", ".compute()"),
        (lazy_table, "LazyFrame", ".collect()"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_masked_sparse_and_lazy_arrays_are_refused_with_what_to_do(make, name, advice):
    array = make()
    for argument, call in (("X", lambda: placement(X=array)), ("array", lambda: arrays.to_host(array))):
        message = rf"^`{argument}` must be a plain dense array, got .*{name} .*`{re.escape(advice)}"
        with pytest.raises(TypeError, match=message):
            call()


def test_namespaces_of_an_older_standard_are_refused():
    xp = pytest.importorskip("array_api_strict")
    array, flags = xp.asarray([[1.0]]), xp.get_array_api_strict_flags()
    try:
        xp.set_array_api_strict_flags(api_version="2022.12")
        with pytest.raises(TypeError, match="`X` must .* of 2024.12 or later, array_api_strict .* 2022.12"):
            placement(X=array)
    finally:
        xp.set_array_api_strict_flags(**flags)


def test_memory_maps_are_accepted(tmp_path):
    array = np.memmap(tmp_path / "numbers", dtype="float32", mode="w+", shape=(3, 2))
    assert placement(X=array).dtype == np.float32


def test_for_value_checks_moves_arrays_of_jax_to_the_host(library):
    one, other = library.array([[1.0, 2.0]]), library.array([3.0])
    xp, *seen = arrays.for_value_checks(library.xp, one, other)
    of_jax = library.name in ("jax", "jax_cuda")
    assert xp is (np if of_jax else library.xp)
    for array, original in zip(seen, (one, other), strict=True):
        assert of_jax or array is original
        np.testing.assert_array_equal(arrays.to_host(array), arrays.to_host(original))
    assert arrays.for_value_checks(library.xp) == (library.xp,)
