"""Batches of samples against NumPy's indexing: any dtype, rows chosen, orders, sparse matrices."""

import tracemalloc
from functools import cache

import numpy as np
import pytest
from conftest import assert_close

import mlp_xp._arrays as arrays_module
from mlp_xp import Network, adam, to_host, train
from mlp_xp._arrays import placement
from mlp_xp._samples import RowTaker, Samples

N, WIDTH = 23, 4
RANDOM = np.random.RandomState(0)
X, Y, WEIGHT = RANDOM.randn(N, WIDTH) * 50, RANDOM.rand(N, 2) > 0.5, RANDOM.rand(N)
ROWS = np.array([3, 20, 7, 7, 0, 15, 22, 1])
DTYPES = ["float64", "float32", "uint8", "int32", "bool"]


def assert_batch(batch, host, library):
    like = library.array([1.0])
    for array, expected in zip(batch, host, strict=True):
        assert_close(array, np.asarray(expected, dtype="float64"), like, rtol=0.0)


@pytest.mark.parametrize("rows", [None, ROWS], ids=["all rows", "chosen rows"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ordered", [False, True])
def test_batches_are_rows_of_the_arrays_in_the_dtype_of_the_place(library, dtype, rows, ordered):
    x = (X % 200).astype(dtype)
    samples = Samples(
        library.place(), library.array(x, dtype), library.array(Y, "bool"), library.array(WEIGHT), rows
    )
    chosen = np.arange(N) if rows is None else rows
    assert len(samples) == len(chosen)
    order = np.random.RandomState(1).permutation(len(chosen)).astype(np.int32) if ordered else None
    expected = chosen if order is None else chosen[order]
    batches = list(samples.batches(5, order))
    assert [len(expected[i : i + 5]) for i in range(0, len(expected), 5)] == [b.X.shape[0] for b in batches]
    for start, batch in zip(range(0, len(expected), 5), batches, strict=True):
        some = expected[start : start + 5]
        assert_batch(batch, (x[some], Y[some], WEIGHT[some]), library)
    assert_batch(samples.whole(), (x[chosen], Y[chosen], WEIGHT[chosen]), library)
    assert_batch(samples.targets(), (Y[chosen], WEIGHT[chosen]), library)


def test_without_weights_and_targets_batches_have_none(library):
    batch = Samples(library.place(), library.array(X)).whole()
    assert batch.y is None
    assert batch.sample_weight is None


def test_small_arrays_are_cast_at_once_and_large_ones_by_the_batch(monkeypatch, library):
    monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", 50)
    x = library.array(X, "float32")
    samples = Samples(library.place(), x, library.array(Y, "bool")).with_small_arrays_cast()
    assert samples.X is x
    assert samples.y.dtype == library.xp.float64
    np.testing.assert_array_equal(to_host(samples.y), Y)


def test_batches_of_numpy_arrays_are_views_where_rows_follow_each_other():
    batch = next(Samples(arrays_module.placement(X=X), X, Y, WEIGHT).batches(5))
    assert np.shares_memory(batch.X, X)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix"])
def test_sparse_batches_multiply_as_dense_ones_do(kind, dtype):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.where(X > 20.0, X, 0.0).astype(dtype)
    samples = Samples(arrays_module.placement(X=WEIGHT), getattr(sparse, kind)(dense), Y, WEIGHT, ROWS)
    order = np.arange(len(ROWS))[::-1]
    right = np.random.RandomState(2).randn(WIDTH, 3)
    for start, batch in zip(range(0, 8, 3), samples.batches(3, order), strict=True):
        some = dense[ROWS[::-1][start : start + 3]].astype("float64")
        assert batch.X.dtype == np.float64
        np.testing.assert_allclose(samples.xp.matmul(batch.X, right), some @ right, rtol=1e-12)
        left = np.ones((2, len(some)))
        np.testing.assert_allclose(samples.xp.matmul(batch.X.T, left.T), some.T @ left.T, rtol=1e-12)
        assert isinstance(samples.xp.matmul(batch.X.T, left.T), np.ndarray)


def test_blocks_are_as_long_as_what_is_made_of_their_rows_allows():
    sparse = pytest.importorskip("scipy.sparse")
    wide, place = np.ones((6, 1000), dtype="float32"), arrays_module.placement(X=WEIGHT)
    as_it_is = Samples(place, wide.astype("float64"))
    assert as_it_is.row_width((1000, 10, 3)) == 10
    for copied in (Samples(place, wide), Samples(place, as_it_is.X, rows=np.arange(3))):
        assert copied.row_width((1000, 10, 3)) == 1000
    assert Samples(place, sparse.csr_array(wide), rows=np.arange(3)).row_width((1000, 10, 3)) == 10


def test_all_rows_of_a_sparse_matrix_are_the_matrix():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_array(np.eye(4))
    assert Samples(arrays_module.placement(X=WEIGHT), matrix).whole().X is matrix


def test_rows_of_a_table_are_laid_side_by_side_once():
    X = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    samples = Samples(placement(X=X), X)
    laid = samples.with_contiguous_rows()
    assert laid.X.flags.c_contiguous
    np.testing.assert_array_equal(laid.X, X)
    assert laid.with_contiguous_rows() is laid
    column = np.zeros((4, 1))
    assert Samples(placement(X=column), column).with_contiguous_rows().X is column


LAYOUTS = {
    "columns": lambda x: np.repeat(x, 2, axis=1)[:, : x.shape[1]],
    "later columns": lambda x: np.repeat(x, 2, axis=1)[:, x.shape[1] :],
    "last column": lambda x: np.repeat(x, 2, axis=1)[:, -1:],
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "every ninth column": lambda x: np.repeat(x, 9, axis=1)[:, ::9],
    "rows reversed": lambda x: x[::-1],
    "columns reversed": lambda x: x[:, ::-1],
    "all reversed": lambda x: x[::-1, ::-2],
    "broadcast row": lambda x: np.broadcast_to(x[:1], x.shape),
    "broadcast column": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "Fortran order": np.asfortranarray,
    "columns in Fortran order": lambda x: np.asfortranarray(x)[:, 1:],
    "a transpose of columns": lambda x: np.ascontiguousarray(np.repeat(x, 2, axis=0).T)[:, : len(x)].T,
    "contiguous": np.ascontiguousarray,
    "packed fields": lambda x: np.rec.fromarrays(
        [x, np.zeros(len(x), "i1")], dtype=[("x", x.dtype, x.shape[1]), ("more", "i1")]
    )["x"],
}


def mapped(array, folder):
    """Return the same layout of a memory map."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if base.dtype.fields or 0 in array.strides:
        pytest.skip("not in files")
    order = "C" if base.flags.c_contiguous else "F"
    file = np.memmap(folder / "X", base.dtype, "w+", shape=base.shape, order=order)
    file[...] = base
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    flat = np.memmap(folder / "X", np.uint8, "r", shape=(base.nbytes,))
    return np.ndarray(array.shape, array.dtype, flat, offset, array.strides)


@pytest.mark.parametrize("dtype", ["float64", "float32", ">f8", "uint8", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_any_layout_are_taken(layout, dtype):
    array = LAYOUTS[layout]((X % 200).astype(dtype))
    for indices in (ROWS.astype(np.int32), ROWS, ROWS[:0], np.arange(len(array))):
        taker = RowTaker(array)
        taken = taker.take(indices)
        np.testing.assert_array_equal(taken, np.array(array)[indices])
        assert taken.dtype == array.dtype
        assert not np.shares_memory(taken, array)
        for target in (np.empty(taken.shape), np.empty(taken.shape[::-1]).T, np.empty(taken.shape, dtype)):
            taker.take_into(target, indices)
            np.testing.assert_array_equal(target, taken)
    column = array[:, 0]
    np.testing.assert_array_equal(RowTaker(column).take(ROWS), np.array(column)[ROWS])


@cache
def large(dtype):
    return (np.random.RandomState(0).rand(20_000, 64) * 100).astype(dtype)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", ["float64", "float32", ">f8", "uint8"])
@pytest.mark.parametrize("is_map", [False, True], ids=["in memory", "map"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_is_copied_whole(layout, is_map, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", 2**12)
    x = large(dtype)
    array = LAYOUTS[layout](x)
    array = mapped(array, tmp_path) if is_map else array
    network = Network((array.shape[1], 2, 1), loss="squared_error")
    y, start = np.ones((len(x), 1)), network.init(0, like=np.ones(1))
    settings = {"optimizer": adam(), "epochs": 1, "batch_size": 400, "seed": 0}
    expected, _ = train(network, start, np.array(array, order="C"), y, **settings)
    tracemalloc.start()
    trained, _ = train(network, start, array, y, **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    is_copied = not is_map and layout in (
        "Fortran order",
        "columns in Fortran order",
        "a transpose of columns",
    )
    # Beside it the order of the rows, the batches, and what is compiled.
    assert peak < (array.nbytes if is_copied else 0) + 1_100_000
    for one, other in zip(trained, expected):
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-9)


def test_a_memory_map_is_never_copied_whole(tmp_path):
    X = np.memmap(tmp_path / "X", dtype="float64", mode="w+", shape=(4, 3), order="F")
    for one in (X, np.asarray(X), X[1:, ::-1], np.asarray(X)[:, :2]):
        samples = Samples(placement(X=X), one)
        assert samples.with_contiguous_rows() is samples
