"""Samples on the host for a device: moved there if they fit, else streamed, with the same bits as results."""

from contextlib import contextmanager
from importlib import import_module
from itertools import product

import cuda_stand_in
import numpy as np
import pytest
from conftest import Library, may_run_call_by_call
from test_samples import LAYOUTS, mapped

import mlp_xp._arrays as arrays_module
from mlp_xp import EarlyStopping, Network, adam, to_host
from mlp_xp._arrays import Placement, placement
from mlp_xp._devices import computing
from mlp_xp._engines import cuda_graph, make_engine
from mlp_xp._losses import identity_link
from mlp_xp._parameters import is_array, leaves, map_tree, plain
from mlp_xp._samples import Samples, moved_if_they_fit
from mlp_xp._training.footprint import Footprint
from mlp_xp._training.lbfgs import minimise
from mlp_xp._training.loop import Settings, run_training
from mlp_xp._training.metrics import METRICS
from mlp_xp._training.progress import start_training
from mlp_xp._uploads import HostRows, PinnedBuffer, _TorchTransfer, uploading

N = 101
RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(N, 5) * 60, np.eye(3)[RANDOM.randint(3, size=N)]
WEIGHT = RANDOM.uniform(0.5, 2.0, N)
ROWS = RANDOM.permutation(N)[:67]
NETWORK = Network((5, 7, 3), activation="tanh", loss="categorical_cross_entropy", alpha=0.01)


@pytest.fixture
def there(library):
    """The library to stream to; the stand-in for CUDA instead of NumPy, to which nothing is streamed."""
    if library.name == "numpy_read_only":
        pytest.skip("as NumPy")
    if library.name != "numpy":
        yield library
        return
    with cuda_stand_in.installed():
        cupy = import_module("array_api_compat").cupy
        yield Library("stand-in", cupy, cuda_stand_in.Device())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Let blocks of rows be so small that there are many."""
    monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", 100)


def place_of(library, dtype="float64"):
    return Placement(library.xp, library.device, getattr(library.xp, dtype))


def samples_of(library, x=X, y=Y, weight=WEIGHT, rows=None, dtype="float64"):
    """Return samples on the host, and the same samples moved."""
    streamed = Samples(place_of(library, dtype), x, y, weight, rows)
    moved, _ = moved_if_they_fit(None, streamed)
    assert streamed.is_on_host
    assert not moved.is_on_host
    return streamed, moved


def assert_same_bits(one, other):
    one, other = leaves(one), leaves(other)
    assert len(one) == len(other)
    for mine, expected in zip(one, other, strict=True):
        if is_array(expected) or isinstance(expected, np.ndarray):
            mine, expected = to_host(mine), to_host(expected)
            assert mine.dtype == expected.dtype
        np.testing.assert_array_equal(mine, expected)


# Batches.


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "kind", ["float64", "float32", "float16", ">f8", "uint8", "int32", ">i4", "longlong", "bool"]
)
def test_streamed_batches_are_those_of_moved_samples(kind, dtype, there):
    x = (X % 200).astype(kind)
    for rows, ordered, weight in product([None, ROWS], [False, True], [None, WEIGHT]):
        streamed, moved = samples_of(there, x, Y > 0.5, weight, rows, dtype)
        order = np.random.RandomState(1).permutation(len(streamed)) if ordered else None
        with computing(streamed.place):
            batches = list(zip(streamed.batches(10, order), moved.batches(10, order), strict=True))
            assert len(batches) == -(-len(streamed) // 10)
            for one, other in [*batches, (streamed.whole(), moved.whole())]:
                like = there.xp.zeros(1, dtype=getattr(there.xp, dtype), device=there.device)
                assert placement(X=one.X, y=one.y) == placement(like=like)
                assert_same_bits(tuple(one), tuple(other))
            assert_same_bits(streamed.targets(), moved.targets())


@pytest.mark.parametrize("is_map", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_of_any_layout_are_streamed(layout, is_map, there, tmp_path):
    x = LAYOUTS[layout](X)
    x = mapped(x, tmp_path) if is_map else x
    x.flags.writeable = False
    streamed, _ = samples_of(there, x, None, None)
    order = np.random.RandomState(1).permutation(N)
    for one in (None, order):
        batches = list(streamed.with_contiguous_rows().batches(10, one))
        expected = np.array(x) if one is None else np.array(x)[one]
        np.testing.assert_array_equal(np.concatenate([to_host(batch.X) for batch in batches]), expected)


def test_large_batches_are_gathered_by_several_threads(there, monkeypatch):
    monkeypatch.setattr("mlp_xp._uploads.MIN_BYTES_PER_THREAD", 64)
    monkeypatch.setattr("mlp_xp._uploads._n_cpus", lambda: 3)
    streamed, moved = samples_of(there)
    order = np.random.RandomState(1).permutation(N)
    for one, other in zip(streamed.batches(40, order), moved.batches(40, order), strict=True):
        assert_same_bits(tuple(one), tuple(other))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_error_of_reading_is_raised(n_threads, there, monkeypatch):
    monkeypatch.setattr("mlp_xp._uploads.MIN_BYTES_PER_THREAD", 64)
    monkeypatch.setattr("mlp_xp._uploads._n_cpus", lambda: n_threads)

    def gather(rows, out):
        if rows.stop > 90:
            raise OSError("the disk is gone")
        out[...] = X[rows]

    with uploading(place_of(there)) as upload, pytest.raises(OSError, match="the disk is gone"):
        upload([HostRows(X.shape, X.dtype, gather)])


def test_a_batch_is_on_its_way_while_another_one_is_computed_with():
    with cuda_stand_in.installed() as machine:
        cupy = import_module("array_api_compat").cupy
        there = Library("stand-in", cupy, cuda_stand_in.Device())
        streamed = Samples(place_of(there), X, Y, WEIGHT)
        n_pinned, batches = 3 * 2, streamed.batches(10)
        for number in range(1, 12):
            next(batches)
            # Three arrays a batch; the last one begins when all are under way.
            assert machine.counts["uploads"] == 3 * min(number + 1, 11)
        assert machine.counts["pinned"] == n_pinned
        assert machine.counts["pageable uploads"] == machine.counts["arrays from the host"] == 0
        assert machine.counts["reads"] == machine.counts["synchronisations"] == 0


def test_uploads_that_nobody_reads_are_waited_for():
    """Their memory is used again: a RaceError of the stand-in if the copies to it may go on."""
    with cuda_stand_in.installed():
        cupy = import_module("array_api_compat").cupy
        there = Library("stand-in", cupy, cuda_stand_in.Device())
        for seed in range(3):
            batches = Samples(place_of(there), X, Y, WEIGHT).batches(50)
            np.testing.assert_array_equal(next(batches).X.get(), X[:50])
            if seed:
                batches.close()
            kept = [cupy.zeros((50, 5)) + cupy.ones((50, 5)) for _ in range(9)]
            assert all((one.get() == 1.0).all() for one in kept)


def test_pinned_memory_is_not_written_while_it_is_copied():
    class Event:
        n_waits = 0

        def synchronize(self):
            self.n_waits += 1

    allocated = []

    def allocate(n_bytes):
        allocated.append(n_bytes)
        return np.zeros(n_bytes, np.uint8)

    buffer = PinnedBuffer(allocate, Event())
    first = buffer.array((4, 3), np.float32)
    assert buffer.copied.n_waits == 1
    assert first.shape == (4, 3)
    again = buffer.array((2, 2), np.float64)
    assert buffer.copied.n_waits == 2
    assert np.shares_memory(first, again)
    assert buffer.array((5, 3), np.float64).dtype == np.float64
    assert allocated == [64, 128]


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_large_arrays_are_moved_part_by_part(kind, rows, there, monkeypatch):
    x = (X % 200).astype(kind)
    streamed, moved = samples_of(there, x, Y, WEIGHT, rows)
    monkeypatch.setattr("mlp_xp._samples.MAX_BYTES_COPIED_ON_HOST", 100)
    again, _ = moved_if_they_fit(None, streamed)
    assert again.X.dtype == moved.X.dtype
    assert_same_bits(tuple(again.arrays), tuple(moved.arrays))
    with computing(streamed.place):
        assert_same_bits(tuple(streamed.whole()), tuple(moved.whole()))
        assert_same_bits(streamed.targets(), moved.targets())


def test_pinned_memory_is_small_and_given_back(monkeypatch):
    monkeypatch.setattr("mlp_xp._samples.MAX_BYTES_COPIED_ON_HOST", 1000)
    optimizer, sizes = adam(0.01), []
    allocate = import_module("mlp_xp._uploads").allocate_by_cupy
    monkeypatch.setattr(
        "mlp_xp._uploads.allocate_by_cupy", lambda n_bytes: (sizes.append(n_bytes), allocate(n_bytes))[1]
    )
    with cuda_stand_in.installed():
        cupy = import_module("array_api_compat").cupy
        there = Library("stand-in", cupy, cuda_stand_in.Device())
        for batch_size in (N, 10):
            progress = start_training(
                cupy, state_on(there, optimizer)[0], optimizer, np.random.RandomState(0)
            )
            settings = Settings(optimizer=optimizer, epochs=9, batch_size=batch_size, max_resident_bytes=1)
            run_training(NETWORK, progress, Samples(place_of(there), X, Y, WEIGHT), settings)
            assert 512 <= max(sizes) <= 1024
            sizes.clear()
            assert "transfers" not in vars(import_module("mlp_xp._uploads")._THREAD_LOCAL)


def test_a_full_batch_that_fits_counts_once():
    library = Library("strict", import_module("array_api_strict"), None)
    samples = Samples(library.place(), X, Y)
    state = state_on(library, adam())
    footprint = Footprint(NETWORK, adam(), samples, state, 10)
    moved = Footprint(NETWORK, adam(), moved_if_they_fit(None, samples)[0], state, 10)
    assert footprint.bytes_needed(N, are_moved=True) == moved.bytes_needed(N)
    assert footprint.bytes_needed(N) == moved.bytes_needed(N) + X.nbytes + Y.nbytes


# PyTorch's tensors on CUDA: its streams and events, on the CPU.


class TorchCuda:
    """The part of `torch.cuda` that uploads use; it records the calls."""

    def __init__(self, torch):
        self.calls = calls = []
        self.current = "computing"

        class Event:
            def record(self, stream):
                self.after = stream.name
                calls.append(("record", stream.name))

            def synchronize(self):
                calls.append(("host waits", getattr(self, "after", None)))

        class Stream:
            def __init__(self, name):
                self.name = name

            def wait_event(self, event):
                calls.append((self.name, "waits for", event.after))

        self.Event, self.Stream = Event, Stream
        self.computing = Stream("computing")

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before


def test_pytorchs_uploads_are_ordered_by_events(monkeypatch):
    torch = pytest.importorskip("torch")
    cuda = TorchCuda(torch)
    monkeypatch.setattr(torch.cuda, "Event", cuda.Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: cuda.Stream("copying"))
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.computing)
    copy_into = torch.Tensor.copy_

    def copy(tensor, source, non_blocking):
        assert non_blocking
        cuda.calls.append(("copy", cuda.current))
        return copy_into(tensor, source)

    def allocate(like, device):
        cuda.calls.append(("allocate", cuda.current))
        return torch.zeros_like(like)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(torch, "empty_like", allocate)
    monkeypatch.setattr("mlp_xp._uploads.allocate_by_torch", lambda n_bytes: np.empty(n_bytes, np.uint8))
    place = Placement(import_module("array_api_compat.torch"), torch.device("cpu"), torch.float64)
    monkeypatch.setattr("mlp_xp._uploads._transfer_to", _TorchTransfer)
    batches = Samples(place, X, Y > 0.5).batches(60)
    first = next(batches)
    one_upload = [
        *([("host waits", None)] * 2),
        ("record", "computing"),
        ("copying", "waits for", "computing"),
        *([("allocate", "copying"), ("copy", "copying"), ("record", "copying")] * 2),
        ("record", "copying"),
    ]
    assert cuda.calls == [*one_upload, *one_upload, ("computing", "waits for", "copying")]
    cuda.calls.clear()
    second = next(batches)
    assert cuda.calls == [("computing", "waits for", "copying")]
    for batch, some in ((first, slice(0, 60)), (second, slice(60, N))):
        np.testing.assert_array_equal(to_host(batch.X), X[some])
        np.testing.assert_array_equal(to_host(batch.y), Y[some])


# Engines and trainings.


LIMITED = {"stand-in": "cuda_graph", "cupy": "cuda_graph", "torch_cuda": "cuda_graph", "jax": "xla"}
LIMITED["jax_cuda"] = "xla"
"""The engines that run many batches at once, by the library."""


def state_on(library, optimizer, dtype="float64"):
    like = library.xp.zeros(1, dtype=getattr(library.xp, dtype), device=library.device)
    params = plain(NETWORK.init(0, like=like))
    return params, optimizer.init(library.xp, params)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("batch_size", [8, 64, 90, 200])
@pytest.mark.parametrize(("kind", "rows"), [("float64", None), ("uint8", ROWS)])
def test_epochs_on_streamed_samples_are_those_on_moved_ones(kind, batch_size, rows, there, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_STEPS_PER_GRAPH", 4)
    x = (X % 200).astype(kind)
    both = samples_of(there, x, Y, WEIGHT, rows)
    # Parts of two or more batches, of one, and of as many as there are.
    for limit in (100 * batch_size * 4, 1, np.inf) if there.name in LIMITED else [1]:
        results = []
        for samples in both:
            state = state_on(there, adam(0.01))
            with computing(samples.place):
                engine = make_engine(NETWORK, adam(0.01), samples, batch_size, state, 20, limit)
                for seed in range(3):
                    n_epochs = 1 + 3 * seed
                    source = np.random.RandomState(seed)
                    shuffled = batch_size < len(samples)
                    engine.run(
                        [
                            (0.1 / (1 + epoch), source.permutation(len(samples)) if shuffled else None)
                            for epoch in range(n_epochs)
                        ]
                    )
                results.append((map_tree(to_host, engine.state), list(map(float, engine.losses))))
            assert engine.name == LIMITED.get(there.name, "eager")
        assert_same_bits(*results)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shuffle", [False, True])
def test_trainings_move_what_fits_and_stream_the_rest(shuffle, there):
    streamed, _ = samples_of(there)
    n_bytes = sum(array.nbytes for array in (X, Y, WEIGHT))
    validation = Samples(streamed.place, X[::2] + 0.5, Y[::2], None)
    results = []
    for limit in (np.inf, n_bytes, n_bytes - 1, 1):
        optimizer = adam(0.01)
        progress = start_training(
            there.xp, state_on(there, optimizer)[0], optimizer, np.random.RandomState(0)
        )
        settings = Settings(
            optimizer=optimizer,
            epochs=9,
            batch_size=8,
            shuffle=shuffle,
            validation=validation,
            metrics=[METRICS["accuracy"]],
            validation_metrics=[METRICS["accuracy"]],
            early_stopping=EarlyStopping("val_loss", restore_best=True),
            max_resident_bytes=limit,
        )
        history = run_training(NETWORK, progress, streamed, settings)
        assert list(history[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
        results.append(
            (map_tree(to_host, progress.best_params), [list(record.values()) for record in history])
        )
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_samples_to_train_and_to_validate_on_share_what_is_moved(there):
    streamed, _ = samples_of(there)
    parts = (Samples(streamed.place, X, Y, WEIGHT, rows) for rows in (ROWS, np.arange(20)))
    needed = sum(array.nbytes for array in (X, Y, WEIGHT))
    training, validation = moved_if_they_fit(needed, *parts)
    assert not training.is_on_host
    assert training.X is validation.X
    assert training.sample_weight is validation.sample_weight
    training, validation = moved_if_they_fit(needed - 1, training, Samples(streamed.place, X, Y))
    assert not training.is_on_host
    assert not validation.is_on_host  # without the weights it fits
    assert moved_if_they_fit(needed - 1, streamed)[0] is streamed


def test_of_a_device_of_unknown_memory_large_maps_are_streamed(there, tmp_path, monkeypatch):
    monkeypatch.setattr("mlp_xp._samples.MAX_BYTES_OF_MOVED_MAP", X.nbytes - 1)
    np.save(tmp_path / "X.npy", X)
    view = np.load(tmp_path / "X.npy", mmap_mode="r")[:, :]
    assert moved_if_they_fit(None, Samples(place_of(there), view))[0].is_on_host
    assert not moved_if_they_fit(None, Samples(place_of(there), X))[0].is_on_host
    monkeypatch.setattr("mlp_xp._samples.MAX_BYTES_OF_MOVED_MAP", X.nbytes)
    assert not moved_if_they_fit(None, Samples(place_of(there), view))[0].is_on_host


def test_samples_that_do_not_fit_after_all_are_streamed(there, monkeypatch):
    def no_memory(place, array):
        raise MemoryError

    monkeypatch.setattr("mlp_xp._samples.moved", no_memory)
    streamed = Samples(place_of(there), X, Y)
    assert moved_if_they_fit(None, streamed)[0] is streamed
    monkeypatch.setattr("mlp_xp._samples.moved", lambda place, array: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        moved_if_they_fit(None, streamed)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_lbfgs_on_streamed_samples(weight, there):
    results = []
    for limit in (np.inf, 1):
        samples = Samples(place_of(there), X / 60, Y, weight)
        params = state_on(there, adam())[0]
        found = minimise(
            NETWORK, params, samples, max_iter=10, max_fun=100, tol=0.0, max_resident_bytes=limit
        )
        results.append((map_tree(to_host, plain(found.params)), found.history["loss"]))
    assert_same_bits(*results)
    assert len(results[0][1]) == 10


@pytest.mark.parametrize("sizes", [(5, 7, 3), (5, 3), (200, 4, 1)])
def test_outputs_of_streamed_samples(sizes, there):
    network = Network(sizes, activation="relu", loss="squared_error")
    x = np.random.RandomState(0).randn(57, sizes[0])
    for kind in ("float64", "int32"):
        streamed, moved = samples_of(there, (x * 9).astype(kind), None, None)
        params = plain(network.init(0, like=moved.place.from_host([0.0])))
        assert streamed.row_width(sizes) == moved.row_width(sizes)
        with computing(streamed.place):
            here = network._blockwise(streamed, params, identity_link)
            fetched = network._blockwise(streamed, params, identity_link, fetch=True)
            expected = to_host(network._blockwise(moved, params, identity_link))
        assert isinstance(fetched, np.ndarray)
        np.testing.assert_array_equal(fetched, expected)
        np.testing.assert_array_equal(to_host(here), expected)


# Estimators.


@contextmanager
def room(n_bytes, monkeypatch):
    """Let devices have room for so many bytes of samples."""
    with monkeypatch.context() as patch:
        for module in ("_training.footprint", "_training.lbfgs", "estimators._fitted"):
            patch.setattr(f"mlp_xp.{module}.room_beside", lambda place, needed: n_bytes)
        patch.setattr("mlp_xp._training.footprint.free_bytes", lambda place: 10**9)
        yield


BACKENDS = {"stand-in": "cupy", "torch_cuda": "torch", "jax_cuda": "jax"}


@may_run_call_by_call
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"early_stopping": True},
        {"early_stopping": "loss", "solver": "sgd", "batch_size": 7, "shuffle": False},
        {"solver": "lbfgs"},
        {"class_weight": "balanced"},
    ],
)
def test_estimators_stream_what_does_not_fit(settings, there, monkeypatch, tmp_path):
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPClassifier

    if there.name == "strict":
        pytest.skip("no backend")
    np.save(tmp_path / "X.npy", X.astype("float32"))
    x, y = np.load(tmp_path / "X.npy", mmap_mode="r"), np.array(["a", "b", "c"])[Y.argmax(axis=1)]
    results = []
    for n_bytes in (10**9, 1):
        with room(n_bytes, monkeypatch):
            backend = BACKENDS.get(there.name, there.name)
            model = MLPClassifier((7,), backend=backend, max_iter=6, random_state=0, **settings)
            fitted = model.fit(x, y, sample_weight=WEIGHT)
            outputs = [fitted.predict_proba(x), fitted.predict(x), np.array(fitted.score(x, y))]
            results.append([*fitted.coefs_, *fitted.intercepts_, np.array(fitted.loss_curve_), *outputs])
            results[-1].append(np.array(fitted.validation_scores_ or []))
    for one, other in zip(*results, strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_data_larger_than_the_memory_of_the_device(monkeypatch):
    pytest.importorskip("sklearn", minversion="1.9")
    from mlp_xp import MLPRegressor

    monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", 2**16)
    x = np.random.RandomState(0).randn(40_000, 50)
    settings = {"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0, "early_stopping": "loss"}
    with cuda_stand_in.installed() as machine:
        model = MLPRegressor(**settings, backend="cupy").fit(x[:500], x[:500, 0])  # the libraries are there
        machine.total = [used + x.nbytes * 3 // 4 for used in machine.used]
        before = machine.counts["uploads"]
        model.fit(x, x[:, 0])
        assert machine.counts["uploads"] - before > 50
        before = machine.counts["uploads"]
        predicted = model.predict(x)
        assert machine.counts["uploads"] - before == -(-40_000 // (2**16 // (50 // 4)))
    expected = MLPRegressor(**settings).fit(x, x[:, 0])
    np.testing.assert_allclose(model.coefs_[0], expected.coefs_[0], rtol=1e-8)
    np.testing.assert_allclose(model.val_loss_curve_, expected.val_loss_curve_, rtol=1e-8)
    np.testing.assert_allclose(predicted, expected.predict(x), rtol=1e-8, atol=1e-10)
