"""Fused kernels on PyTorch's tensors, on the CPU: kernels of the stand-in, captures that are called again."""

import sys
from importlib import import_module
from itertools import cycle, product

import numpy as np
import pytest
import torch_stand_in
from test_cuda_graph import OPTIMIZERS, _growing, data, epochs_of, run_both
from test_kernels import OWN_ACTIVATIONS, UNUSUAL_OPTIMIZERS

from mlp_xp import Activation, Loss, Network, Optimizer, adam, gradient_descent
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import placement
from mlp_xp._engines.cuda_graph import CudaGraphEngine
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._engines.fused_steps import FusedStep, KernelError
from mlp_xp._losses import LOSSES
from mlp_xp._parameters import leaves, map_tree, plain
from mlp_xp._samples import Samples

torch = pytest.importorskip("torch")

NETWORK = Network((3, 4, 2), activation="tanh", loss="categorical_cross_entropy", alpha=0.1)


@pytest.fixture
def cuda():
    with torch_stand_in.installed() as stand_in:
        yield stand_in


def identity(tensor):
    return tensor


def engines(
    network, optimizer, batch_size, weighted=False, dtype="float64", epochs=10**6, layout=identity, X=None
):
    """Return the engine of CUDA graphs on PyTorch's tensors, and the eager engine on NumPy."""
    arrays = data(network.loss, n_outputs=network.layer_sizes[-1], weighted=weighted, dtype=dtype)
    arrays = arrays if X is None else (X, *arrays[1:])
    params = plain(network.init(0, like=arrays[0], bias="normal"))
    state = params, optimizer.init(np, params)
    tensors = [array if array is None else layout(torch.asarray(array)) for array in arrays]
    there = Samples(placement(X=tensors[0]), *tensors)
    here = Samples(placement(X=arrays[0]), *arrays)
    graphs = import_module("mlp_xp._engines.torch_graphs").TorchGraphs(there.place, there.xp)
    on_torch = map_tree(lambda array: torch.asarray(array.copy()), state)
    return (
        CudaGraphEngine(graphs, network, optimizer, there, batch_size, on_torch, epochs),
        EagerEngine(network, optimizer, here, batch_size, state),
    )


def assert_same_training(both, rtol=1e-9):
    """Train call by call, capture, and train by replays: both engines must do the same."""
    engine, other = both
    shuffled = not engine.is_full_batch
    run_both(both, epochs_of(1, 23, shuffled))
    assert_equal(both, rtol)
    n = engine.batch_size
    lengths = (23,) * engine.n_steps if engine.is_full_batch else (n,) * (23 // n) + (23 % n,) * (23 % n > 0)
    # Here a capture runs the steps, so that the state before it must be restored.
    before = engine.copied_state(), other.copied_state()
    assert engine._graph(lengths[: engine.n_steps], 100) is not None
    for each, state in zip(both, before):
        each.state, each.losses = state, []
    run_both(both, epochs_of(engine.n_steps if engine.is_full_batch else 3, 23, shuffled, seed=1))
    assert_equal(both, rtol)
    assert engine.name == "cuda_graph"


def assert_equal(both, rtol):
    engine, other = both
    for one, another in zip(leaves(engine.copied_state()), leaves(other.state), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(another), rtol=rtol, atol=rtol)
    losses = [float(loss) for loss in engine.losses]
    np.testing.assert_allclose(losses, other.losses, rtol=rtol)


def programs_of(engine):
    return list(engine.step.programs.values())


COMBINATIONS = [
    (*one, optimizer, batch_size, dtype)
    for one, optimizer, batch_size, dtype in zip(
        product(ACTIVATIONS, LOSSES), cycle(OPTIMIZERS), cycle([23, 8]), cycle(["float64"] * 3 + ["float32"])
    )
]


@pytest.mark.parametrize(("activation", "loss", "optimizer", "batch_size", "dtype"), COMBINATIONS)
def test_fused_steps_are_those_run_call_by_call(activation, loss, optimizer, batch_size, dtype, cuda):
    network = Network((3, 5, 4, 2), activation=activation, loss=loss, alpha=0.01)
    weighted = optimizer in ("adam", "sgd")
    both = engine, _ = engines(network, OPTIMIZERS[optimizer], batch_size, weighted, dtype)
    assert_same_training(both, 1e-9 if dtype == "float64" else 1e-4)
    assert None not in programs_of(engine)
    assert cuda.bindings.counts["cuLaunchKernel"] > 0
    assert not engine.fell_back


def test_products_of_pytorch_lie_between_kernels(cuda):
    network = Network((3, 170, 190, 18, 2), activation="tanh", loss="squared_error", alpha=0.01)
    both = engine, _ = engines(network, adam(), 23)
    assert_same_training(both)
    (program,) = programs_of(engine)
    assert any(stage.products for stage in program.plan.stages)


def by_columns(tensor):
    return tensor.T.contiguous().T if tensor.ndim == 2 else tensor


def every_second(tensor):
    wide = torch.zeros((2 * tensor.shape[0], *tensor.shape[1:]), dtype=tensor.dtype)
    wide[1::2, ...] = tensor
    return wide[1::2, ...]


def with_gradient(tensor):
    return tensor.clone().requires_grad_()


@pytest.mark.parametrize("layout", [by_columns, every_second, with_gradient])
@pytest.mark.parametrize("batch_size", [23, 8])
def test_samples_of_all_layouts(layout, batch_size, cuda):
    network = Network((3, 40, 2), activation="tanh", loss="squared_error")
    both = engine, _ = engines(network, adam(), batch_size, weighted=True, layout=layout)
    with torch.no_grad():  # as `train` runs epochs
        assert_same_training(both)
    assert None not in programs_of(engine)


def test_parameters_of_all_layouts(cuda):
    both = engine, _ = engines(NETWORK, adam(), 23)
    params, optimizer_state = engine.copied_state()
    laid_out = [(every_second(by_columns(weight)), every_second(bias)) for weight, bias in params]
    engine = CudaGraphEngine(
        engine.library, NETWORK, adam(), engine.samples, 23, (tuple(laid_out), optimizer_state)
    )
    assert_same_training((engine, both[1]))
    assert None not in programs_of(engine)


@pytest.mark.parametrize("name", UNUSUAL_OPTIMIZERS)
def test_unusual_optimizers(name, cuda):
    update, init = UNUSUAL_OPTIMIZERS[name]
    network = Network((3, 4, 1), activation="tanh", loss="squared_error")
    assert_same_training(engines(network, Optimizer(init, update, 0.1), 8))


@pytest.mark.parametrize("name", OWN_ACTIVATIONS)
def test_own_activations_are_fused(name, cuda):
    network = Network((3, 5, 4, 2), activation=OWN_ACTIVATIONS[name], loss="squared_error")
    both = engine, _ = engines(network, gradient_descent(0.01), 8)
    assert_same_training(both)
    assert None not in programs_of(engine)


# What does not run as kernels.


def _unusual(xp, z):
    return xp.atan2(z, 1.0 + z * z), z


def test_what_kernels_lack_is_captured_call_by_call(cuda):
    activation = Activation(_unusual, lambda xp, delta, z: delta / (1.0 + z * z))
    both = engine, _ = engines(Network((3, 4, 2), activation=activation, loss="squared_error"), adam(), 23)
    assert_same_training(both)
    assert programs_of(engine) == [None]
    assert cuda.bindings.counts["nvrtcCompileProgram"] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_that_kernels_lack_are_captured_call_by_call(dtype, cuda):
    def layout(tensor):
        return tensor.to(getattr(torch, dtype))

    engine, _ = engines(NETWORK, gradient_descent(0.1), 23, layout=layout)
    engine.state = map_tree(layout, engine.copied_state())
    engine.run(epochs_of(1, 23, shuffled=False))
    assert programs_of(engine) == [None]
    assert engine.is_finite()


def test_few_steps_are_not_compiled(cuda):
    assert not isinstance(engines(NETWORK, adam(), 23, epochs=2000)[0].step, FusedStep)
    assert isinstance(engines(NETWORK, adam(), 8, epochs=2000)[0].step, FusedStep)


def test_without_bindings_steps_are_captured_call_by_call_and_nothing_warns(cuda, monkeypatch):
    monkeypatch.delitem(sys.modules, torch_stand_in.KERNELS)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    both = engine, _ = engines(NETWORK, adam(), 8)
    assert_same_training(both)
    assert not isinstance(engine.step, FusedStep)
    assert not engine.fell_back


@pytest.mark.parametrize(
    "function",
    ["nvrtcGetSupportedArchs", "nvrtcCompileProgram", "nvrtcGetCUBIN", "cuLibraryLoadData",
     "cuLibraryGetKernel", "cuKernelGetFunction", "cuLaunchKernel"],
)  # fmt: skip
def test_kernels_that_do_not_run_are_replaced_by_calls(function, cuda):
    cuda.bindings.refused[function] = 0
    both = engine, _ = engines(NETWORK, adam(), 8)
    assert_same_training(both)
    assert set(programs_of(engine)) == {None}


def test_an_error_after_the_first_launch_is_raised(cuda):
    """The state may be half updated."""
    cuda.bindings.refused["cuLaunchKernel"] = 2
    engine, _ = engines(NETWORK, adam(), 23)
    with pytest.raises(KernelError, match="cuLaunchKernel answers INVALID"):
        engine.run(epochs_of(1, 23, shuffled=False))


# When kernels are compiled.


def test_a_source_is_compiled_once(cuda):
    counts = cuda.bindings.counts
    for _ in range(2):
        assert_same_training(engines(NETWORK, adam(), 8))
        # For batches of 8, and for the last one of 7.
        assert (counts["nvrtcCompileProgram"], counts["cuLibraryLoadData"]) == (2, 2)
    assert "--gpu-architecture=sm_90" in cuda.bindings.options


def test_bindings_too_old_for_a_function_are_a_kernel_error(cuda):
    from mlp_xp._engines.torch_kernels import _call

    with pytest.raises(KernelError, match="cuLibraryLoadData"):
        _call(object(), "cuLibraryLoadData")


def test_for_a_newer_device_the_driver_compiles(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert_same_training(engines(NETWORK, adam(), 23))
    assert "--gpu-architecture=compute_90" in cuda.bindings.options
    assert (cuda.bindings.counts["nvrtcGetPTX"], cuda.bindings.counts["nvrtcGetCUBIN"]) == (1, 0)


def test_a_state_of_another_structure_is_compiled_before_it_is_captured(cuda):
    def update(xp, params, gradients, state, rate):
        velocity = 0.9 * state[0] + gradients[0][1] if state else gradients[0][1]
        (w, _), *rest = [(w - rate * g, b - rate * d) for (w, b), (g, d) in zip(params, gradients)]
        return ((w, params[0][1] - rate * velocity), *rest), (velocity,) if state else ()

    network = Network((3, 4, 2), activation="tanh", loss="squared_error")
    both = engine, _ = engines(network, Optimizer(lambda xp, params: (), update, 0.1), 23)
    assert_same_training(both)
    for each in both:
        params = each.copied_state()[0]
        each.state, each.losses = (params, (params[0][1] * 0.0 + 1.0,)), []
    assert_same_training(both)
    assert None not in programs_of(engine)


def test_a_state_that_grows_runs_call_by_call(cuda):
    optimizer = Optimizer(lambda xp, params: (), _growing, 0.1)
    both = engine, _ = engines(NETWORK, optimizer, 23)
    with pytest.warns(match="changes its structure"):
        run_both(both, epochs_of(4, 23, shuffled=False))
    assert_equal(both, 1e-9)


def test_nan_passes(cuda):
    X = np.array(data("squared_error")[0])
    X[3, 1] = np.nan
    both = engine, other = engines(NETWORK, gradient_descent(0.1), 23, X=X)
    run_both(both, epochs_of(1, 23, shuffled=False))
    for one, another in zip(leaves(engine.copied_state()), leaves(other.state), strict=True):
        np.testing.assert_array_equal(np.isnan(np.asarray(one)), np.isnan(another))


def _half_square(xp, logits, y):
    error = logits - y
    return 0.5 * error * error, error


def test_an_own_loss_is_fused(cuda):
    network = Network((3, 4, 2), activation="tanh", loss=Loss(lambda xp, logits: logits, _half_square))
    both = engine, _ = engines(network, adam(), 8)
    assert_same_training(both)
    assert None not in programs_of(engine)
