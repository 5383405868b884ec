"""Captured steps, on a stand-in for CUDA that refuses what a capture refuses, and the layouts of products."""

import gc
import warnings
from contextlib import contextmanager, nullcontext
from itertools import product

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided

from mlp_xp import (
    Activation,
    EagerFallbackWarning,
    Network,
    Optimizer,
    adam,
    decoupled_weight_decay,
    gradient_descent,
    momentum,
)
from mlp_xp.activations import ACTIVATIONS
from mlp_xp.arrays import Placement, computing_namespace, placement, quiet_floating_point
from mlp_xp.engines import cuda_graph, make_step
from mlp_xp.engines.cuda_graph import CudaGraphEngine, NotCapturableError, Number, Row
from mlp_xp.engines.eager import EagerEngine
from mlp_xp.engines.gemm import factor
from mlp_xp.losses import LOSSES
from mlp_xp.parameters import is_array, leaves, map_tree, plain
from mlp_xp.samples import Samples

# The stand-in: arrays in memory that is recycled as CUDA's is, work that is recorded while it captures.


class CudaError(RuntimeError):
    """What the driver refuses."""


class Memory:
    """A piece of a pool's memory. When nobody holds it any more, it is the next one's of that size."""

    def __init__(self, pool, nbytes):
        self.pool = pool
        free = pool.free.get(nbytes, [])
        self.bytes = free.pop() if free else np.empty(nbytes, np.uint8)
        self.bytes[:] = 255  # NaN, as floats: what was there is nobody's

    def __del__(self):
        self.bytes[:] = 255
        self.pool.free.setdefault(self.bytes.size, []).append(self.bytes)


class Pool:
    def __init__(self):
        self.free = {}


class Device:
    """Counts launches and reads; what is launched during a capture is recorded and not done."""

    def __init__(self):
        self.default_pool, self.pool = Pool(), None
        self.captured = None
        self.in_session = False
        self.n_launches = self.n_replays = self.n_reads = 0

    def launch(self, function, *views):
        if self.captured is not None:
            self.captured.append((function, views))
            return
        self.n_launches += 1
        with np.errstate(all="ignore"):
            function(*views)

    def empty(self, shape, dtype):
        if self.captured is not None and self.pool is None:
            raise CudaError("allocation from a pool whose memory the graph does not keep")
        memory = Memory(self.pool or self.default_pool, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return CudaArray(self, memory, memory.bytes.view(dtype).reshape(shape))

    def upload(self, values, dtype=None):
        array = self.empty(np.shape(values), dtype or np.asarray(values).dtype)
        array.view[...] = values
        if self.captured is not None:
            raise CudaError("a copy from the host that would be done once only")
        return array


class CudaArray(NDArrayOperatorsMixin):
    """An array of the stand-in: NumPy's rules for shapes and dtypes, and no way to the host but `get`."""

    def __init__(self, device, memory, view):
        self.cuda, self.memory, self.view = device, memory, view

    shape = property(lambda self: self.view.shape)
    ndim = property(lambda self: self.view.ndim)
    dtype = property(lambda self: self.view.dtype)
    size = property(lambda self: self.view.size)
    T = property(lambda self: CudaArray(self.cuda, self.memory, self.view.T))

    def get(self):
        if self.cuda.captured is not None:
            raise CudaError("the host reads during a capture")
        self.cuda.n_reads += 1
        return self.view.copy()

    def _read(self):
        return self.get()[()]

    def __float__(self):
        return float(self._read())

    def __bool__(self):
        return bool(self._read())

    def __array__(self, *_, **__):
        raise CudaError("an implicit copy to the host")

    def _part(self, key):
        return self.view[key if isinstance(key, tuple) or key is Ellipsis else (key, ...)]

    def __getitem__(self, key):
        view = self._part(key)
        assert np.shares_memory(view, self.view) or not view.size
        return CudaArray(self.cuda, self.memory, view)

    def __setitem__(self, key, value):
        place = self._part(key)
        if isinstance(value, CudaArray):
            self.cuda.launch(np.copyto, place, value.view)
        else:
            self.cuda.launch(lambda out: np.copyto(out, value), place)

    def __array_ufunc__(self, ufunc, method, *inputs, out=(None,), **options):
        assert (method, options) == ("__call__", {})
        if ufunc is np.matmul:
            raise CudaError("the library's products set a stream, and a stream that captures refuses")
        return run(self.cuda, ufunc, *inputs, out=out[0])


def _in_place(ufunc):
    # As in CuPy, which asks operands for the array that they stand for.
    return lambda self, other: run(self.cuda, ufunc, self, other, out=self)


for _name, _ufunc in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide}.items():
    setattr(CudaArray, f"__i{_name}__", _in_place(_ufunc))


def run(device, function, *inputs, out=None, **options):
    """Launch a function of NumPy on arrays of the stand-in."""
    inputs = [x.__cupy_get_ndarray__() if isinstance(x, Number) else x for x in inputs]
    if not all(isinstance(x, (CudaArray, int, float)) for x in inputs):
        return NotImplemented
    samples = [np.ones(x.shape, x.dtype) if isinstance(x, CudaArray) else x for x in inputs]
    like = np.asarray(function(*samples, **options))
    if out is None:
        out = device.empty(like.shape, like.dtype)
    assert np.can_cast(like.dtype, out.dtype, "same_kind")
    assert like.shape == out.shape
    views = [x.view if isinstance(x, CudaArray) else x for x in inputs]
    device.launch(lambda place, *given: np.copyto(place, function(*given, **options)), out.view, *views)
    return out


class Functions:
    """The namespace of the stand-in."""

    __name__ = "cuda"

    def __init__(self, device, capturable=False):
        self.device = device
        if capturable:
            self.matmul = lambda a, b: run(device, np.matmul, a, b)

    def matmul(self, a, b):
        if self.device.captured is not None:
            raise CudaError("the library's products set a stream, and a stream that captures refuses")
        return run(self.device, np.matmul, a, b)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *inputs, **options: run(self.device, getattr(np, name), *inputs, **options)

    isdtype, finfo = staticmethod(np.isdtype), staticmethod(np.finfo)
    float32, float64, bool = np.float32, np.float64, np.bool_

    def asarray(self, values, dtype=None, device=None, copy=None):
        if isinstance(values, CudaArray):
            return run(self.device, np.positive, values)
        return self.device.upload(values, dtype)

    def zeros(self, shape, dtype=None, device=None):
        array = self.device.empty(shape, dtype)
        array[...] = 0
        return array

    def zeros_like(self, array):
        return self.zeros(array.shape, array.dtype)

    def astype(self, array, dtype):
        return run(self.device, lambda x: x.astype(dtype), array)

    def stack(self, arrays):
        return run(self.device, lambda *each: np.stack(each), *arrays)

    def take(self, array, indices, axis):
        return run(self.device, lambda x, rows: np.take(x, rows, axis=axis), array, indices)

    def reshape(self, array, shape):
        return CudaArray(self.device, array.memory, array.view.reshape(shape))


class StandIn:
    """The library's side of `mlp_xp.engines.cuda_graph.Cuda`."""

    def __init__(self, device):
        self.device, self.pool = device, Pool()
        self.kept = []

    def namespace(self, matmul_precision):
        return Functions(self.device, capturable=True)

    def scratch(self):
        return nullcontext()

    def release(self):
        pass

    @contextmanager
    def session(self):
        assert not self.device.in_session
        self.device.in_session = True
        try:
            yield
        finally:
            self.device.in_session = False

    def capture(self, function):
        device = self.device
        assert (device.in_session, device.captured) == (True, None)
        device.captured, device.pool = [], self.pool
        try:
            function()
            work = device.captured
        finally:
            device.captured = device.pool = None

        def replay():
            assert device.in_session
            device.n_replays += 1
            with np.errstate(all="ignore"):
                for call, views in work:
                    call(*views)

        return replay

    def upload(self, values, out):
        assert self.device.captured is None
        out.view[...] = values


# Trainings.

OPTIMIZERS = {
    "sgd": gradient_descent(0.1),
    "momentum": momentum(0.05),
    "nesterov": momentum(0.05, 0.9, nesterovs_momentum=True),
    "adam": adam(0.01),
    "adamw": decoupled_weight_decay(adam(0.01), 0.1),
}


@pytest.fixture
def device():
    return Device()


def on(device, tree):
    return map_tree(lambda array: device.upload(array), tree)


def to_host(tree):
    return map_tree(lambda array: array.get() if isinstance(array, CudaArray) else array, tree)


def data(loss, n_samples=23, n_outputs=2, weighted=False, dtype="float64"):
    source = np.random.RandomState(0)
    X = source.standard_normal((n_samples, 3)).astype(dtype)
    y = np.eye(n_outputs)[source.randint(n_outputs, size=n_samples)].astype(dtype)
    return X, y, source.uniform(0.5, 2.0, n_samples).astype(dtype) if weighted else None


def engines(device, network, optimizer, batch_size, weighted=False, rows=None, dtype="float64"):
    """Return the engine on the stand-in, and the eager one on NumPy."""
    X, y, weight = data(network.loss, n_outputs=network.layer_sizes[-1], weighted=weighted, dtype=dtype)
    params = plain(network.init(0, like=X, bias="normal"))
    state = (params, optimizer.init(np, params))
    xp = Functions(device)
    place = Placement(xp, "cuda", np.dtype(dtype))
    there = Samples(
        place, *(None if array is None else device.upload(array) for array in (X, y, weight)), rows
    )
    here = Samples(placement(like=X), X, y, weight, rows)
    return (
        CudaGraphEngine(StandIn(device), network, optimizer, there, batch_size, on(device, state)),
        EagerEngine(network, optimizer, here, batch_size, state),
    )


def assert_equal(engine, other, rtol=1e-10):
    ours, theirs = leaves(to_host(engine.state)), leaves(other.state)
    for one, another in zip(ours, theirs, strict=True):
        assert type(one) is type(another)
        if is_array(another):
            assert (one.shape, one.dtype) == (another.shape, another.dtype)
        np.testing.assert_allclose(one, another, rtol=rtol, atol=rtol)
    losses = [float(loss) for loss in engine.losses]
    np.testing.assert_allclose(losses, other.losses, rtol=rtol)


def epochs_of(n_epochs, n_samples, shuffled, seed=0):
    source = np.random.RandomState(seed)
    return [
        (0.1 / (1 + epoch), source.permutation(n_samples) if shuffled else None) for epoch in range(n_epochs)
    ]


def run_both(both, epochs):
    with quiet_floating_point():
        for engine in both:
            engine.run(epochs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [23, 5, 8, 1])
@pytest.mark.parametrize("shuffled", [False, True])
def test_captured_epochs_are_those_run_call_by_call(optimizer, batch_size, shuffled, device, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_STEPS_PER_GRAPH", 4)
    network = Network((3, 4, 2), hidden="tanh", loss="categorical_cross_entropy", alpha=0.1)
    both = engine, other = engines(device, network, OPTIMIZERS[optimizer], batch_size)
    shuffled = shuffled and batch_size < 23
    for n_epochs in (1, 9, 4, 2):
        run_both(both, epochs_of(n_epochs, 23, shuffled, seed=n_epochs))
        assert_equal(engine, other)
    assert device.n_replays > 0
    assert not engine.refused


@pytest.mark.parametrize(("hidden", "loss"), list(product(["relu", "logistic", "gelu", "elu"], LOSSES)))
def test_all_functions_can_be_captured(hidden, loss, device):
    network = Network((3, 5, 4, 2), hidden=hidden, loss=loss, alpha=0.01)
    both = engine, other = engines(device, network, adam(), 8, weighted=True, rows=np.arange(0, 23, 2))
    for seed in range(3):
        run_both(both, epochs_of(3, 12, shuffled=True, seed=seed))
    assert_equal(engine, other)
    assert device.n_replays == 8
    assert not engine.refused


def _swapping(xp, params, gradients, state, learning_rate):
    """Let two arrays of the state change places in each step."""
    one, other = state
    (weight, bias), *rest = params
    (weight_gradient, bias_gradient), *_ = gradients
    first = weight - learning_rate * weight_gradient, bias - learning_rate * (bias_gradient + one)
    return (first, *rest), (other + bias_gradient, one)


def test_arrays_of_the_state_that_change_places(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    zeros = Optimizer(lambda xp, params: tuple(xp.zeros_like(params[0][1]) for _ in "ab"), _swapping, 0.1)
    both = engine, other = engines(device, network, zeros, 8)
    run_both(both, epochs_of(7, 23, shuffled=True))
    assert_equal(engine, other)
    assert device.n_replays == 6


def _growing(xp, params, gradients, state, learning_rate):
    """Keep the last gradients from the first step on."""
    params = tuple(
        (w - learning_rate * g, b - learning_rate * d) for (w, b), (g, d) in zip(params, gradients)
    )
    return params, (gradients[0][1] * 1.0,)


def _remembering(xp, params, gradients, state, learning_rate):
    """Keep a view of the last parameters, and go back to them a little."""
    (weight, bias), *rest = params
    (weight_gradient, _), *_ = gradients
    (before,) = state
    new = weight - learning_rate * weight_gradient + 0.1 * before
    return ((new, bias), *rest), (xp.reshape(weight, weight.shape),)


def test_a_state_of_another_structure_runs_call_by_call(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    growing = Optimizer(lambda xp, params: (), _growing, 0.1)
    both = engine, other = engines(device, network, growing, 8)
    start = engine.copied_state(), other.copied_state()
    with pytest.warns(EagerFallbackWarning, match="call by call.*structure") as caught:
        run_both(both, epochs_of(5, 23, shuffled=True))
    assert len(caught) == 1
    assert_equal(engine, other)
    for each, state in zip(both, start):
        each.state, each.losses = state, []
    run_both(both, epochs_of(5, 23, shuffled=True))
    assert_equal(engine, other)
    assert device.n_replays == 0


def test_a_state_that_is_a_view_of_the_old_one(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    remembering = Optimizer(lambda xp, params: (xp.zeros_like(params[0][0]),), _remembering, 0.1)
    both = engine, other = engines(device, network, remembering, 8)
    run_both(both, epochs_of(7, 23, shuffled=True))
    assert_equal(engine, other)
    assert device.n_replays == 6


def test_single_precision(device):
    network = Network((3, 4, 1), hidden="relu", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8, dtype="float32")
    run_both(both, epochs_of(20, 23, shuffled=True))
    assert_equal(engine, other, rtol=1e-4)


def test_a_replayed_epoch_launches_little_and_reads_nothing(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    engine, _ = engines(device, network, adam(), 2)
    engine.run(epochs_of(3, 23, shuffled=True))
    before = device.n_launches, device.n_replays, device.n_reads
    engine.run(epochs_of(5, 23, shuffled=True))
    # For twelve steps, one graph; beside it the samples are put in order, and the losses added.
    assert device.n_replays - before[1] == 5
    assert device.n_launches - before[0] <= 5 * 8
    assert device.n_reads == before[2]


def test_a_whole_batch_is_read_where_it_is(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    engine, _ = engines(device, network, adam(), 23)
    assert engine.room.X is engine.samples.X
    engine.run(epochs_of(200, 23, shuffled=False))
    # The first step runs call by call; then 64 at a time, and one by one what is left.
    assert device.n_replays == 3 + (200 - 1) % 64
    assert len(engine.losses) == 200


def test_the_room_for_samples_is_bounded(device, monkeypatch):
    monkeypatch.setattr(cuda_graph, "ROOM_BYTES", 400)
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 5)
    assert engine.room.X.shape == (10, 3)  # two batches of 5 rows of 4 numbers take 320 bytes
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)


def test_a_state_assigned_is_gone_back_to(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8)
    run_both(both, epochs_of(3, 23, shuffled=True))
    saved = engine.copied_state(), other.copied_state()
    kept = to_host(saved[0])
    run_both(both, epochs_of(3, 23, shuffled=True, seed=1))
    np.testing.assert_array_equal(leaves(to_host(saved[0]))[0], leaves(kept)[0])
    for each, state in zip(both, saved):
        each.state = state
        each.losses = []
    run_both(both, epochs_of(5, 23, shuffled=True, seed=2))
    assert_equal(engine, other)


def test_what_diverges_is_seen(device):
    network = Network((3, 4, 1), hidden="relu", loss="squared_error")
    engine, _ = engines(device, network, gradient_descent(1.0), 8)
    assert engine.is_finite()
    engine.run([(1e30, None)] * 20)
    assert not engine.is_finite()
    assert not np.isfinite(float(engine.losses[-1]))


def test_losses_are_nobody_elses_memory(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8)
    kept = []
    for seed in range(6):
        run_both(both, epochs_of(2, 23, shuffled=True, seed=seed))
        kept += engine.losses
        engine.losses = []
        gc.collect()
    np.testing.assert_allclose([float(loss) for loss in kept], other.losses, rtol=1e-10)


# What cannot be captured runs call by call, and says so once.


def reading(xp, z):
    return (z * 0.5 if float(xp.sum(z)) > 0.0 else z), z


def reading_backward(xp, delta, kept):
    return delta * 0.5 if float(xp.sum(kept)) > 0.0 else delta


def _warmed(xp, params, gradients, state, learning_rate):
    """Take short steps at first, by a decision that a graph cannot repeat."""
    count = state[0] + 1
    rate = learning_rate * (0.1 if count < 10 else 1.0)
    return tuple((w - rate * g, b - rate * d) for (w, b), (g, d) in zip(params, gradients)), (count,)


REFUSED = {
    "reads": (Activation(reading, reading_backward), gradient_descent(0.1), "the host reads"),
    "decides": ("tanh", Optimizer(lambda xp, params: (0,), _warmed, 0.1), "decides by a number"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("batch_size", [23, 8])
def test_what_is_refused_runs_call_by_call(case, batch_size, device):
    hidden, optimizer, why = REFUSED[case]
    network = Network((3, 4, 1), hidden=hidden, loss="binary_cross_entropy")
    both = engine, other = engines(device, network, optimizer, batch_size)
    with pytest.warns(EagerFallbackWarning, match=f"call by call.*{why}") as caught:
        run_both(both, epochs_of(70, 23, shuffled=batch_size < 23))
    run_both(both, epochs_of(3, 23, shuffled=batch_size < 23, seed=1))
    assert len(caught) == 1
    assert device.n_replays == 0
    assert_equal(engine, other)


def test_a_missing_library_is_one_warning(monkeypatch):
    def missing(samples):
        raise ImportError("no nvmath here; `pip install nvmath-python[cu13]`")

    monkeypatch.setattr(cuda_graph, "_cuda", missing)
    X, y, _ = data("squared_error")
    network = Network((3, 4, 2), loss="squared_error")
    params = plain(network.init(0, like=X))
    with pytest.warns(EagerFallbackWarning, match="call by call.*pip install nvmath") as caught:
        engine = cuda_graph.make_cuda_engine(
            network, gradient_descent(0.1), Samples(placement(X=X), X, y), 23, (params, ()), 100
        )
    assert type(engine) is EagerEngine
    assert len(caught) == 1


def test_the_stand_in_refuses_what_cuda_does(device):
    stand_in, array = StandIn(device), device.upload([1.0, 2.0])
    refused = [
        lambda: float(array[0]),
        lambda: stand_in.namespace("highest").asarray(1.0),
        lambda: Functions(device).matmul(array, array),
        lambda: np.asarray(array),
    ]
    with stand_in.session():
        for call in refused:
            with pytest.raises(CudaError):
                stand_in.capture(call)
        result = []
        replay = stand_in.capture(lambda: result.append(array * 2.0))
        assert np.isnan(result[0].get()).all()
        replay()
        np.testing.assert_array_equal(result[0].get(), [2.0, 4.0])
        del result[:]
        stand_in.capture(lambda: result.append(array * 3.0))
        # The pool gives the memory of what is gone to the next one.
        replay()
        np.testing.assert_array_equal(result[0].get(), [2.0, 4.0])


# Numbers.


def number_of(value, places):
    return Number(Row(places), lambda start: value)


OPERATIONS = [
    lambda n, x: n * x,
    lambda n, x: x * n,
    lambda n, x: x - n,
    lambda n, x: n - x,
    lambda n, x: x / n,
    lambda n, x: n / x,
    lambda n, x: x + (1.0 - 0.9**n) ** 0.5 / (2 * -n),
    lambda n, x: x**n,
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_numbers_are_arrays_where_they_meet_arrays(operation, module):
    xp = pytest.importorskip(module)
    x, places = xp.asarray([1.0, 2.0]), xp.ones(cuda_graph.NUMBERS_PER_STEP)
    number = number_of(3, places)
    operation(number, x)
    # What was asked for then is in its place now.
    (asked,) = number.row.numbers
    places[...] = asked.compute(())
    np.testing.assert_allclose(np.asarray(operation(number, x)), operation(3, np.asarray([1.0, 2.0])))


@pytest.mark.parametrize(("hidden", "loss"), list(product(ACTIVATIONS, LOSSES)))
def test_steps_of_pytorch_copy_nothing_from_the_host(hidden, loss, monkeypatch):
    torch = pytest.importorskip("torch")
    tensors = [torch.asarray(array) for array in data(loss, weighted=True)]
    network = Network((3, 4, 2), hidden=hidden, loss=loss, alpha=0.1)
    xp = placement(X=tensors[0]).xp

    def after_a_step(of):
        params = plain(network.init(0, like=tensors[0], bias="normal"))
        state = adam().init(xp, params)
        return lambda: make_step(network, adam(), of)(params, state, *tensors, 0.1)

    expected, step = after_a_step(xp)(), after_a_step(computing_namespace(xp, tensors[0]))

    def refused(*_, **__):
        raise CudaError("a copy from the host")

    for name in ("asarray", "tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refused)
        monkeypatch.setattr(xp, name, refused, raising=False)
    for one, another in zip(leaves(step()), leaves(expected), strict=True):
        torch.testing.assert_close(one, another)


def test_numbers_decide_nothing():
    number = number_of(3, np.zeros(8))
    for decide in (bool, float, int, lambda n: n < 4, lambda n: n == 3, range):
        with pytest.raises(NotCapturableError, match="changes from step to step"):
            decide(number)


def test_numbers_have_places_until_there_are_too_many():
    row = Row(np.zeros(cuda_graph.NUMBERS_PER_STEP))
    numbers = [Number(row, lambda start: 0.0) for _ in range(cuda_graph.NUMBERS_PER_STEP)]
    for number in [*numbers, *numbers]:
        row.place_of(number)
    with pytest.raises(NotCapturableError, match=str(cuda_graph.NUMBERS_PER_STEP)):
        row.place_of(Number(row, lambda start: 0.0))


# Layouts.


def matrix(n_rows, n_columns, layout, seed):
    """Return a matrix, and whether it must be copied first."""
    values = np.random.RandomState(seed).standard_normal((2 * n_rows + 1, 2 * n_columns + 3))
    return {
        "rows": lambda: values[:n_rows, :n_columns].copy(),
        "columns": lambda: values[:n_rows, :n_columns].copy(order="F"),
        "part_of_rows": lambda: values[:n_rows, 1 : n_columns + 1],
        "part_of_columns": lambda: values.copy(order="F")[1 : n_rows + 1, :n_columns],
        "each_other": lambda: values[: 2 * n_rows : 2, :n_columns],
        "with_gaps": lambda: values[:n_rows, : 2 * n_columns : 2],
        "backwards": lambda: values[:n_rows, :n_columns][::-1],
        "repeated": lambda: np.broadcast_to(values[:1, :n_columns], (n_rows, n_columns)),
    }[layout]()


LAYOUTS = [
    "rows",
    "columns",
    "part_of_rows",
    "part_of_columns",
    "each_other",
    "with_gaps",
    "backwards",
    "repeated",
]


def blas_reads(array, found, n_rows, n_columns):
    """Return what a BLAS that counts by columns makes of an array: its transpose or, turned, itself."""
    stored = (n_rows, n_columns) if found.transposed else (n_columns, n_rows)
    assert found.leading >= max(1, stored[0])
    by_columns = as_strided(array, stored, (array.itemsize, found.leading * array.itemsize))
    return by_columns.T if found.transposed else by_columns


@pytest.mark.parametrize(("left", "right"), list(product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize(
    "sizes", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 4, 1), (2, 2, 2)], ids=str
)
def test_products_of_all_layouts(left, right, sizes):
    m, k, n = sizes
    a, b = matrix(m, k, left, 0), matrix(k, n, right, 1)
    factors = []
    for array in (a, b):
        found = factor(array.shape, [stride // array.itemsize for stride in array.strides])
        if found is None:
            array = np.ascontiguousarray(array)
            found = factor(array.shape, (array.shape[1], 1))
        factors.append(blas_reads(array, found, *array.shape))
    # C' = B' A', written by columns: the rows of C.
    np.testing.assert_allclose((factors[1] @ factors[0]).T, a @ b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_matrices_with_gaps_are_copied(layout):
    array = matrix(3, 4, layout, 0)
    found = factor(array.shape, [stride // array.itemsize for stride in array.strides])
    assert (found is None) == (layout in ("with_gaps", "backwards", "repeated"))


def test_warnings_are_not_needed_elsewhere(device):
    network = Network((3, 4, 1), hidden="tanh", loss="binary_cross_entropy")
    engine, _ = engines(device, network, adam(), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.run(epochs_of(4, 23, shuffled=True))
    assert device.n_replays == 3
