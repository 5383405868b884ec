"""Kernels for CUDA: how a step is divided, that NVIDIA's compiler accepts them, and what they compute.

Here they run on the stand-in, which compiles them for the host, a block of threads as one thread.
"""

import ctypes
import sys
from importlib import util
from itertools import cycle, pairwise, product
from pathlib import Path

import cuda_stand_in
import numpy as np
import pytest
from conftest import required
from test_cuda_graph import OPTIMIZERS, assert_equal, engines, epochs_of, graphs, on, run_both

from mlp_xp import Activation, Loss, Network, Optimizer, adam, gradient_descent
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import placement
from mlp_xp._compiler import NotRecordableError
from mlp_xp._compiler.cuda import write_kernels
from mlp_xp._compiler.kernels import plan_kernels
from mlp_xp._compiler.products import move_products_into_segments
from mlp_xp._compiler.storage import plan_blocks
from mlp_xp._compiler.trace import ArraySpec, trace_function
from mlp_xp._engines.cuda_graph import CudaGraphEngine
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._engines.fused_steps import FusedStep
from mlp_xp._engines.recordable import StepSpec
from mlp_xp._losses import LOSSES
from mlp_xp._parameters import leaves, plain
from mlp_xp._samples import Samples


@pytest.fixture
def device():
    with cuda_stand_in.installed() as machine:
        yield machine


def program_of(network, optimizer, n_rows, dtype="float32", weighted=False):
    dtype, sizes = np.dtype(dtype), network.layer_sizes
    params = [[np.zeros((m, n), dtype), np.zeros(n, dtype)] for m, n in pairwise(sizes)]
    X, y = ArraySpec((n_rows, sizes[0]), dtype), ArraySpec((n_rows, sizes[-1]), dtype)
    batch = X, y, ArraySpec((n_rows,), dtype) if weighted else None
    state = params, optimizer.init(np, params)
    return write_kernels(StepSpec.of(network, optimizer, state, batch).trace())


def sized(sizes, activation, loss):
    return Network(sizes, activation=activation, loss=loss)


# How many launches, and what is in memory.


@pytest.mark.parametrize(
    ("network", "optimizer", "n_rows", "n_kernels", "n_products"),
    [
        (sized((2, 4, 1), "tanh", "binary_cross_entropy"), gradient_descent(0.5), 400, 3, 0),
        (sized((784, 256, 10), "relu", "categorical_cross_entropy"), adam(), 128, 3, 2),
        # Of 11 products, the three with the one output's weights are in kernels.
        (sized((4096, 4096, 4096, 4096, 1), "relu", "binary_cross_entropy"), adam(), 8192, 6, 8),
    ],
    ids=["planar", "mnist", "large"],
)
def test_a_step_is_a_few_launches(network, optimizer, n_rows, n_kernels, n_products):
    program = program_of(network, optimizer, n_rows)
    plan = program.plan
    assert sum(map(len, program.kernels)) == n_kernels
    assert sum(len(stage.products) for stage in plan.stages) == n_products
    assert len(plan.in_place) == len(plan.traced.updates)


def test_derivatives_are_computed_where_they_are_used():
    """Of a hidden layer of tanh its values are in memory, and not 1 - a^2."""
    plan = program_of(Network((30, 64, 3), activation="tanh", loss="squared_error"), adam(), 1000).plan
    of_layer = [
        [value.function.__name__ for value in segment.outputs if value.kind != "join"]
        for stage in plan.stages
        for segment in stage.segments
        if segment.domain == (1000, 64)
    ]
    # Activations, the loss and delta; the bias's gradient.
    assert of_layer == [["tanh", "add", "multiply"], ["add"]]


def test_memory_is_used_again_as_soon_as_it_can_be():
    """Also by a product for what the kernel before it has read last."""
    plan = program_of(sized((256, 256, 256, 256, 1), "relu", "binary_cross_entropy"), adam(), 512).plan
    n_bytes = sum(block.size * block.dtype.itemsize for block in set(plan_blocks(plan).values()))
    # Three activations and three arrays for logits and deltas; two masks, a quarter as large, and gradients.
    assert n_bytes < 6.6 * 4 * 512 * 256


def test_large_arrays_are_updated_as_soon_as_possible():
    plan = program_of(sized((8, 2048, 2048, 1), "relu", "squared_error"), adam(), 64).plan
    last = {
        segment.domain: number
        for number, stage in enumerate(plan.stages)
        for segment in stage.segments
        if any(id(value) in plan.in_place for value in segment.values)
    }
    assert last[2048, 2048] < last[8, 2048] == len(plan.stages) - 1


def test_of_many_layers_the_source_is_short_and_no_kernel_has_too_many_parameters():
    many = program_of(sized((30, *[32] * 60, 1), "tanh", "squared_error"), adam(), 100)
    n_bytes = [
        [sum(4 * (1 + len(call.sizes)) + 8 * len(call.arguments) for call in kernel.calls) for kernel in some]
        for some in many.kernels
    ]
    assert max(map(len, n_bytes)) == 2  # that of all updates has more parameters than devices must accept
    assert max(map(max, filter(None, n_bytes))) <= 4096
    few = program_of(sized((30, *[32] * 6, 1), "tanh", "squared_error"), adam(), 100)
    assert many.source.count("__global__") < few.source.count("__global__") + 5


def test_of_many_small_layers_the_source_is_short():
    lengths = [
        len(program_of(sized((30, *[16] * n, 3), "gelu", "squared_error"), adam(), 100).source)
        for n in (4, 16)
    ]
    assert lengths[1] < 1.3 * lengths[0]


@pytest.mark.parametrize("operand", ["targets", "logits"])
def test_of_long_losses_the_source_does_not_grow_with_the_outputs(operand):
    def loss(xp, logits, y):
        root = y if operand == "targets" else logits
        for _ in range(60):
            root = 0.5 * (root + y / root)
        error = logits - root
        return 0.5 * error * error, error

    lengths = [
        len(program_of(sized((30, 64, n), "tanh", Loss(lambda xp, z: z, loss)), adam(), 100).source)
        for n in (3, 16)
    ]
    assert lengths[1] < 1.5 * lengths[0]


# NVIDIA's compiler, which needs no GPU.


def nvrtc(request):
    """Return NVRTC's library, from the package nvidia-cuda-nvrtc."""
    spec = util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations)
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*[0-9]")]
    if not found and "nvrtc" not in required(request.config):
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    return ctypes.CDLL(str(found[0]))


def compile_for_gpu(library, source):
    """Return the errors of NVRTC, "" if there are none."""
    program, options = ctypes.c_void_p(), (b"-arch=sm_90", b"--std=c++17", b"-DTHREADS=256", b"-DLANES=32")
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"", 0, None, None) == 0
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed else ""


COMBINATIONS = [
    (activation, loss, optimizer, dtype)
    for (activation, loss), optimizer, dtype in zip(
        # Each activation with some of the losses, as the source of the one does not depend on the other.
        [pair for number, pair in enumerate(product(ACTIVATIONS, LOSSES)) if number % 3 != 1],
        cycle(OPTIMIZERS),
        cycle(["float32", "float32", "float64"]),
    )
]


@pytest.mark.parametrize(("activation", "loss", "optimizer", "dtype"), COMBINATIONS)
def test_kernels_compile_for_gpus(activation, loss, optimizer, dtype, request):
    library = nvrtc(request)
    network = Network((30, 64, 40, 3), activation=activation, loss=loss, alpha=0.1)
    program = program_of(network, OPTIMIZERS[optimizer], 128, dtype, weighted=optimizer == "adam")
    assert compile_for_gpu(library, program.source) == ""


# Their numbers.


def programs_of(engine):
    return list(engine.step.programs.values())


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("sizes", "weighted"),
    [((3, 1, 2), True), ((3, 2, 40), False), ((3, 40, 1), True), ((3, 170, 190, 18, 2), False)],
    ids=str,
)
@pytest.mark.parametrize("loss", LOSSES)
def test_networks_of_all_shapes(loss, sizes, weighted, device):
    if loss == "categorical_cross_entropy" and sizes[-1] == 1:
        sizes = (*sizes, 2)
    network = Network(sizes, activation="tanh", loss=loss, alpha=0.01)
    for batch_size in (23, 1) if weighted else (7,):
        both = engine, other = engines(device, network, adam(), batch_size, weighted)
        run_both(both, epochs_of(5, 23, shuffled=batch_size < 23))
        assert_equal(engine, other, rtol=1e-8)
        assert None not in programs_of(engine)
    assert not engine.fell_back


@pytest.mark.parametrize("n_rows", [1, 2, 5000])
@pytest.mark.parametrize("n_outputs", [1, 3, 70])
def test_reductions_over_few_rows_and_many(n_rows, n_outputs, device):
    source = np.random.RandomState(0)
    X, y = source.standard_normal((n_rows, 3)), source.uniform(size=(n_rows, n_outputs))
    network = Network((3, 4, n_outputs), activation="logistic", loss="binary_cross_entropy")
    params = plain(network.init(0, like=X))
    state = params, adam().init(np, params)
    there = Samples(placement(X=on(X)), on(X), on(y))
    engine = CudaGraphEngine(graphs(), network, adam(), there, n_rows, on(state))
    other = EagerEngine(network, adam(), Samples(placement(X=X), X, y), n_rows, state)
    run_both((engine, other), epochs_of(4, n_rows, shuffled=False))
    assert_equal(engine, other, rtol=1e-8)
    assert None not in programs_of(engine)


def by_columns(array):
    """Return an array of the stand-in in Fortran order."""
    return sys.modules["cupy"].ascontiguousarray(array.T).T


def every_second(array):
    cupy = sys.modules["cupy"]
    wide = cupy.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    wide[::2, ...] = array
    return wide[::2, ...]


@pytest.mark.parametrize("layout", [by_columns, every_second])
def test_full_batches_of_all_layouts(layout, device):
    network = Network((3, 4, 2), activation="tanh", loss="categorical_cross_entropy")
    engine, other = engines(device, network, adam(), 23)
    samples = engine.samples
    laid_out = Samples(samples.place, layout(samples.X), layout(samples.y))
    engine = CudaGraphEngine(graphs(), network, adam(), laid_out, 23, engine.copied_state())
    run_both((engine, other), epochs_of(6, 23, shuffled=False))
    assert_equal(engine, other)
    assert None not in programs_of(engine)


def _softsign(xp, z):
    scale = 1.0 + xp.abs(z)
    return z / scale, scale


def _squashed(xp, z):
    outputs = xp.sign(z) * xp.log1p(xp.abs(z))
    return outputs, xp.exp(-xp.abs(outputs))


def _normalised(xp, z):
    """Divide by the largest of each row, and let no gradient through it."""
    largest = xp.max(xp.abs(z), axis=1, keepdims=True)
    return z / largest, 1.0 / largest


OWN_ACTIVATIONS = {
    "softsign": Activation(_softsign, lambda xp, delta, scale: delta / (scale * scale)),
    "squashed": Activation(_squashed, lambda xp, delta, factor: delta * factor),
    "of_rows": Activation(_normalised, lambda xp, delta, factor: delta * factor),
}


@pytest.mark.parametrize("name", OWN_ACTIVATIONS)
def test_own_activations_are_fused(name, device):
    network = Network((3, 5, 4, 2), activation=OWN_ACTIVATIONS[name], loss="squared_error")
    both = engine, other = engines(device, network, gradient_descent(0.01), 8)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)
    assert None not in programs_of(engine)
    assert not engine.fell_back


def _unusual(xp, z):
    return xp.arctan2(z, 1.0 + z * z), z


def test_what_kernels_lack_is_captured_call_by_call(device):
    activation = Activation(_unusual, lambda xp, delta, z: delta / (1.0 + z * z))
    network = Network((3, 4, 2), activation=activation, loss="squared_error")
    both = engine, other = engines(device, network, adam(), 8)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)
    assert programs_of(engine) == [None, None]
    assert engine.name == "cuda_graph"


@pytest.mark.parametrize("failing", ["compiling", "launching"])
def test_kernels_that_do_not_run_are_replaced_by_calls(failing, device, monkeypatch):
    def refused(*_):
        raise sys.modules["cupy"].cuda.driver.CUDADriverError("CUDA_ERROR_INVALID_VALUE")

    def get_function(module, name):
        if failing == "compiling":
            raise cuda_stand_in.CompileException
        return refused

    monkeypatch.setattr(cuda_stand_in.RawModule, "get_function", get_function)
    network = Network((3, 4, 2), activation="tanh", loss="squared_error")
    both = engine, other = engines(device, network, adam(), 8)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)
    assert programs_of(engine) == [None, None]
    assert engine.name == "cuda_graph"


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_other_dtypes_are_not_recorded(dtype):
    def largest(state, inputs, numbers):
        return state, [np.max(inputs[0])]

    with pytest.raises(NotRecordableError, match=dtype):
        plan_kernels(trace_function(largest, [], [np.ones((3, 2), dtype)]), move_products_into_segments)


def test_nan_and_infinity_pass_as_in_numpy(device):
    """Comparisons in kernels must not lose a NaN, or a divergence would go unseen."""
    for bad in (np.nan, np.inf, -np.inf):
        for activation in ("relu", "tanh", "elu", "gelu"):
            network = Network((3, 4, 2), activation=activation, loss="categorical_cross_entropy")
            both = engine, other = engines(device, network, gradient_descent(0.1), 23)
            X = np.array(other.samples.X)
            X[3, 1] = bad
            other.full_batch = other.full_batch._replace(X=X)
            engine.inputs = engine.inputs._replace(X=on(X))
            run_both(both, epochs_of(1, 23, shuffled=False))
            for one, another in zip(leaves(engine.copied_state()), leaves(other.state), strict=True):
                np.testing.assert_array_equal(np.isnan(one.get()), np.isnan(another))


# What is easy to get wrong: it is either fused and right, or left to calls one by one.


def descend(params, gradients, rate):
    return [(w - rate * g, b - rate * d) for (w, b), (g, d) in zip(params, gradients)]


def _one_value_for_two_arrays(xp, params, gradients, state, rate):
    velocity = 0.9 * state[0] - rate * gradients[0][1]
    first, *rest = descend(params, gradients, rate)
    return ((first[0], params[0][1] + velocity + 0.1 * state[1]), *rest), (velocity, velocity)


def _a_number_of_an_updated_bias(xp, params, gradients, state, rate):
    (_, number), *rest = reversed(params)
    factor = 2.0 * xp.reshape(number, ())
    (w, b), last = params
    (g, d), (g_last, d_last) = gradients
    first = w - rate * g * (1.0 + factor), b - rate * d
    return (first, (last[0] - rate * g_last * factor, last[1] - rate * (1.0 + d_last))), state


def _state_of_another_dtype(xp, params, gradients, state, rate):
    largest = xp.maximum(state[0], gradients[0][1])
    (w, b), *rest = descend(params, gradients, rate)
    return ((w, xp.where(largest > 0.0, b, params[0][1])), *rest), (largest,)


def _state_of_transposes(xp, params, gradients, state, rate):
    (w, b), *rest = descend(params, gradients, rate)
    return ((w - rate * 0.1 * state[0].T, b), *rest), (0.5 * params[0][0].T,)


def _clipped_by_norm(xp, params, gradients, state, rate):
    total = 0.0
    for g, d in gradients:
        total = total + xp.sum(g * g) + xp.sum(d * d)
    return tuple(descend(params, gradients, rate / (1.0 + total**0.5))), state


UNUSUAL_OPTIMIZERS = {
    "two arrays": (_one_value_for_two_arrays, lambda xp, p: (xp.zeros_like(p[0][1]),) * 2),
    "an updated bias": (_a_number_of_an_updated_bias, lambda xp, p: ()),
    "float64": (_state_of_another_dtype, lambda xp, p: (xp.zeros(p[0][1].shape),)),
    "transposes": (_state_of_transposes, lambda xp, p: (p[0][0].T * 1.0,)),
    "clipped": (_clipped_by_norm, lambda xp, p: ()),
}


@pytest.mark.parametrize("name", UNUSUAL_OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unusual_optimizers(name, dtype, device):
    update, init = UNUSUAL_OPTIMIZERS[name]
    network = Network((3, 4, 1), activation="tanh", loss="squared_error")
    both = engine, other = engines(device, network, Optimizer(init, update, 0.1), 8, dtype=dtype)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other, rtol=1e-4 if dtype == "float32" else 1e-9)
    assert engine.name == "cuda_graph"


def _chain(xp, params, gradients, state, rate):
    """Compute a number by hundreds of others."""
    (count,) = state
    number = rate
    for _ in range(700):
        number = 0.5 * number + 0.5 * rate + 0.0 * count
    return descend(params, gradients, number), (count + 1,)


@pytest.mark.parametrize("fused", [True, False])
def test_numbers_by_hundreds_of_others(fused, device):
    squashed = Activation(_squashed if fused else _unusual, lambda xp, delta, _: 0.3 * delta)
    network = Network((3, 4, 1), activation=squashed, loss="squared_error")
    both = engine, other = engines(device, network, Optimizer(lambda xp, p: (0,), _chain, 0.1), 8)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)
    assert engine.name == "cuda_graph"


def test_batches_of_both_lengths_share_the_memory_of_kernels(device):
    network = Network((3, 50, 2), activation="tanh", loss="categorical_cross_entropy")
    both = engine, other = engines(device, network, adam(), 8)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)
    longer, shorter = programs_of(engine)
    assert {len(longer.arrays), len(shorter.arrays)} != {0}
    assert len(engine.step.pool) == len(longer.pool) <= len(longer.arrays) + 2 * len(longer.launches)
    assert not shorter.unused or len(shorter.unused) < len(engine.step.pool)
    assert all(vector.size >= 7 for vector in engine.step.pool[:1])


def _reshaped_transpose(xp, z):
    return z + 0.1 * xp.reshape(z.T, z.shape), z


def _transposed_reshape(xp, z):
    return z + 0.1 * xp.reshape(z, z.shape[::-1]).T, z


def _largest_truth(xp, z):
    return xp.where(xp.max(z > 1.0, axis=1, keepdims=True), z, 0.5 * z), z


def _truth_above_half(xp, z):
    return xp.where((z > 0.0) > 0.5, z, 0.1 * z), z


def _truth_or_half(xp, z):
    return z * xp.where(z > 0.0, z > 1.0, 0.5), z


def _truths_as_numbers(xp, z):
    return z * ((z > 0.0) * (z < 1.0)) + abs(z > 0.5) * 0.5, z


def _with_false(xp, z):
    return xp.maximum(z, False), z


def _iterated(xp, z):
    number = root = 1.0 + xp.sum(z * z)
    for _ in range(25):
        root = 0.5 * (root + number / root)
    return z / root, z


UNUSUAL_ACTIVATIONS = [
    _reshaped_transpose,
    _transposed_reshape,
    _largest_truth,
    _truth_above_half,
    _truth_or_half,
    _truths_as_numbers,
    _with_false,
    _iterated,
]


@pytest.mark.parametrize("forward", UNUSUAL_ACTIVATIONS)
def test_unusual_activations(forward, device):
    activation = Activation(forward, lambda xp, delta, z: delta / (1.0 + z * z))
    network = Network((3, 5, 2), activation=activation, loss="squared_error")
    both = engine, other = engines(device, network, gradient_descent(0.1), 8)
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other)
    assert engine.name == "cuda_graph"


def _huber(xp, logits, y):
    """In float32 the losses are float64: a number times truth values is."""
    error = logits - y
    size = xp.abs(error)
    losses = (size <= 1.0) * 0.5 * (error * error) + (size > 1.0) * 1.0 * (size - 0.5)
    return losses, xp.minimum(xp.maximum(error, -1.0), 1.0)


def test_a_loss_of_another_dtype(device):
    network = Network((3, 4, 2), activation="tanh", loss=Loss(lambda xp, logits: logits, _huber))
    both = engine, other = engines(device, network, gradient_descent(0.1), 3, dtype="float32")
    run_both(both, epochs_of(4, 23, shuffled=True))
    assert_equal(engine, other, rtol=1e-4)


def test_parameters_in_fortran_order(device):
    network = Network((3, 4, 2), activation="tanh", loss="squared_error")
    engine, other = engines(device, network, gradient_descent(0.1), 23)
    params = tuple((by_columns(weight), bias) for weight, bias in engine.copied_state()[0])
    engine = CudaGraphEngine(graphs(), network, gradient_descent(0.1), engine.samples, 23, (params, ()))
    assert all(leaf.flags.c_contiguous for leaf in leaves(engine.state))
    run_both((engine, other), epochs_of(6, 23, shuffled=False))
    assert_equal(engine, other)


def test_a_state_of_another_structure_has_programs_of_its_own(device):
    def update(xp, params, gradients, state, rate):
        if not state:
            return tuple(descend(params, gradients, rate)), state
        velocity = 0.9 * state[0] + gradients[0][1]
        (w, _), *rest = descend(params, gradients, rate)
        return ((w, params[0][1] - rate * velocity), *rest), (velocity,)

    network = Network((3, 4, 2), activation="tanh", loss="squared_error")
    both = engine, other = engines(device, network, Optimizer(lambda xp, params: (), update, 0.1), 23)
    run_both(both, epochs_of(5, 23, shuffled=False))
    for each in both:
        params = each.copied_state()[0]
        each.state, each.losses = (params, (params[0][1] * 0.0 + 1.0,)), []
    run_both(both, epochs_of(5, 23, shuffled=False))
    assert_equal(engine, other)


def test_too_many_elements_to_index_are_left_alone():
    network = sized((1, 1, 4), "tanh", "categorical_cross_entropy")
    with pytest.raises(NotRecordableError, match="more elements than kernels can index"):
        program_of(network, gradient_descent(0.1), 2**27)


def test_steps_of_a_graph_may_read_their_numbers_in_other_orders(device, monkeypatch):
    """In a graph of several lengths of batches, steps are of several programs, or of calls."""
    make = FusedStep._make_program
    monkeypatch.setattr(
        FusedStep,
        "_make_program",
        lambda self, state, batch: make(self, state, batch) if len(batch.X) > 1 else None,
    )
    network = Network((3, 4, 2), activation="tanh", loss="squared_error")
    both = engine, other = engines(device, network, OPTIMIZERS["adamw"], 11)  # 23 rows: 11, 11 and 1
    run_both(both, epochs_of(6, 23, shuffled=True))
    assert_equal(engine, other)
    assert list(map(bool, programs_of(engine))) == [True, False]
    assert engine.name == "cuda_graph"


# Warps and blocks of several threads.


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("sizes", "loss", "n_rows"),
    [
        ((3, 40, 1), "binary_cross_entropy", 23),
        ((3, 300, 10), "categorical_cross_entropy", 23),
        ((20, 5, 130, 16), "squared_error", 9),
        ((40, 1), "poisson", 200),
        ((6, 2, 1), "squared_error", 1),
        ((3, 33, 33, 2), "binary_cross_entropy", 9),
        ((1, 1, 5, 130), "squared_error", 1),
        ((3, 4, 70), "categorical_cross_entropy", 70),
    ],
    ids=str,
)
def test_blocks_of_several_warps(sizes, loss, n_rows):
    with cuda_stand_in.installed(n_threads=64) as device:
        source = np.random.RandomState(0)
        X, y = source.standard_normal((n_rows, sizes[0])), source.uniform(size=(n_rows, sizes[-1]))
        weight = source.uniform(size=n_rows)
        network = Network(sizes, activation="tanh", loss=loss, alpha=0.01)
        params = plain(network.init(0, like=X))
        state = params, adam().init(np, params)
        there = Samples(placement(X=on(X)), on(X), on(y), on(weight))
        engine = CudaGraphEngine(graphs(), network, adam(), there, n_rows, on(state))
        other = EagerEngine(network, adam(), Samples(placement(X=X), X, y, weight), n_rows, state)
        run_both((engine, other), epochs_of(4, n_rows, shuffled=False))
        assert_equal(engine, other, rtol=1e-8)
        assert None not in programs_of(engine)
        assert device.counts["launches"]
