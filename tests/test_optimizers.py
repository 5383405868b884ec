"""Every optimizer step for step against PyTorch's and scikit-learn's, and down to known minima."""

import pickle

import numpy as np
import pytest
from conftest import assert_close, need

from mlp_xp import Layer, adam, decoupled_weight_decay, gradient_descent, momentum, step_decay, to_host
from mlp_xp._parameters import copy_tree, flatten
from mlp_xp._schedules import rates

N_STEPS = 9
SHAPES = [(3, 4), (4,), (4, 2), (2,)]


def draw(seed):
    random = np.random.RandomState(seed)
    return [random.standard_normal(shape) for shape in SHAPES]


START = draw(100)
GRADIENTS = [draw(step) for step in range(N_STEPS)]


def in_layers(library, arrays, dtype, kind=Layer):
    """Parameters of a training's own: in the namespace, and writable."""
    first, second, third, fourth = (library.array(array, dtype) for array in arrays)
    pairs = ((first, second), (third, fourth))
    return copy_tree(library.xp, tuple(Layer(*pair) for pair in pairs) if kind is Layer else pairs)


def walk(library, optimizer, dtype, kind=Layer):
    """Parameters and state after all steps, one step an epoch."""
    params = in_layers(library, START, dtype, kind)
    state = optimizer.init(library.xp, params)
    for rate, arrays in zip(rates(optimizer.learning_rate, N_STEPS), GRADIENTS, strict=True):
        gradients = in_layers(library, arrays, dtype, kind)
        params, state = optimizer.update(library.xp, params, gradients, state, rate)
    return params, state


def torch_walk(torch, make, schedule=None):
    params = [torch.tensor(array, requires_grad=True) for array in START]
    optimizer = make(torch.optim, params)
    scheduler = schedule(torch.optim.lr_scheduler, optimizer) if schedule else None
    for arrays in GRADIENTS:
        for parameter, array in zip(params, arrays, strict=True):
            parameter.grad = torch.tensor(array)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [parameter.detach().numpy() for parameter in params]


def sklearn_walk(make, learning_rates=None):
    optimizers = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    params = [array.copy() for array in START]
    optimizer = make(optimizers, params)
    for step, arrays in enumerate(GRADIENTS):
        if learning_rates:
            optimizer.learning_rate = learning_rates[step]
        optimizer.update_params(params, arrays)
    return params


def assert_walked_to(params, expected, library, dtype):
    tolerance = {"float32": 3e-6, "float64": 1e-14}[dtype]
    for ours, theirs in zip(flatten(params), expected, strict=True):
        assert_close(ours, theirs, library.array([1.0], dtype), rtol=tolerance, atol=tolerance)


# PyTorch's Adam adds epsilon after its correction of the bias, scikit-learn's before: the same only
# where epsilon is next to nothing.
PYTORCH = {
    "gradient_descent": (gradient_descent(0.1), lambda optim, params: optim.SGD(params, lr=0.1)),
    "momentum": (momentum(0.05), lambda optim, params: optim.SGD(params, lr=0.05, momentum=0.9)),
    "momentum 0": (momentum(0.05, 0.0), lambda optim, params: optim.SGD(params, lr=0.05)),
    "nesterov": (
        momentum(0.05, 0.8, nesterovs_momentum=True),
        lambda optim, params: optim.SGD(params, lr=0.05, momentum=0.8, nesterov=True),
    ),
    "adam": (adam(epsilon=1e-30), lambda optim, params: optim.Adam(params, eps=1e-30)),
    "adam, other means": (
        adam(0.2, 0.6, 0.95, 1e-30),
        lambda optim, params: optim.Adam(params, lr=0.2, betas=(0.6, 0.95), eps=1e-30),
    ),
}


@pytest.mark.parametrize("name", PYTORCH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_pytorch(name, dtype, library, request):
    torch = need("torch", request)
    optimizer, make = PYTORCH[name]
    params, _ = walk(library, optimizer, dtype)
    assert_walked_to(params, torch_walk(torch, make), library, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_decoupled_weight_decay_against_pytorch(solver, dtype, library, request):
    torch = need("torch", request)

    def make(optim, params):
        # Ours leaves biases alone; `params` are weight, bias, weight, bias.
        groups = [{"params": params[::2], "weight_decay": 0.3}, {"params": params[1::2], "weight_decay": 0.0}]
        if solver == "adam":
            return optim.AdamW(groups, lr=0.05, eps=1e-30)
        # SGD's own decay is a penalty: for plain SGD that is the same, p - lr (g + decay p).
        return optim.SGD(groups, lr=0.05)

    inner = adam(0.05, epsilon=1e-30) if solver == "adam" else gradient_descent(0.05)
    params, _ = walk(library, decoupled_weight_decay(inner, 0.3), dtype)
    assert_walked_to(params, torch_walk(torch, make), library, dtype)


SCIKIT_LEARN = {
    "gradient_descent": (
        gradient_descent(0.1),
        lambda module, params: module.SGDOptimizer(params, 0.1, momentum=0.0, nesterov=False),
    ),
    "momentum": (
        momentum(0.05, 0.7),
        lambda module, params: module.SGDOptimizer(params, 0.05, momentum=0.7, nesterov=False),
    ),
    "nesterov": (
        momentum(0.05, nesterovs_momentum=True),
        lambda module, params: module.SGDOptimizer(params, 0.05),
    ),
    "adam": (adam(), lambda module, params: module.AdamOptimizer(params)),
    "adam, large epsilon": (
        adam(0.3, 0.5, 0.9, 0.25),
        lambda module, params: module.AdamOptimizer(params, 0.3, 0.5, 0.9, 0.25),
    ),
}


@pytest.mark.parametrize("name", SCIKIT_LEARN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_scikit_learn(name, dtype, library):
    optimizer, make = SCIKIT_LEARN[name]
    params, _ = walk(library, optimizer, dtype)
    assert_walked_to(params, sklearn_walk(make), library, dtype)


SCHEDULE = step_decay(0.2, every=3, factor=0.5)


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        (gradient_descent(SCHEDULE), lambda optim, params: optim.SGD(params, lr=0.2)),
        (adam(SCHEDULE, epsilon=1e-30), lambda optim, params: optim.Adam(params, lr=0.2, eps=1e-30)),
    ],
    ids=["gradient_descent", "adam"],
)
def test_a_schedule_against_pytorch(optimizer, make, library, request):
    torch = need("torch", request)
    expected = torch_walk(torch, make, lambda schedulers, it: schedulers.StepLR(it, 3, 0.5))
    params, _ = walk(library, optimizer, "float64")
    assert_walked_to(params, expected, library, "float64")


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_a_schedule_against_scikit_learn(nesterov, library):
    # The velocity keeps the rates of the steps it comes from, other than PyTorch's.
    expected = sklearn_walk(
        lambda module, params: module.SGDOptimizer(params, nesterov=nesterov),
        [0.2] * 3 + [0.1] * 3 + [0.05] * 3,
    )
    params, _ = walk(library, momentum(SCHEDULE, nesterovs_momentum=nesterov), "float64")
    assert_walked_to(params, expected, library, "float64")


OPTIMIZERS = {
    "gradient_descent": gradient_descent(0.1),
    "momentum": momentum(0.1),
    "nesterov": momentum(0.1, nesterovs_momentum=True),
    "adam": adam(0.1),
}
STATE_TREES = {
    "gradient_descent": [],
    "momentum": ["velocity"],
    "nesterov": ["velocity"],
    "adam": ["mean", "square"],
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [Layer, tuple])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_structure_dtype_and_device_stay(name, kind, dtype, library):
    params, state = walk(library, OPTIMIZERS[name], dtype, kind)
    trees = [params, *(getattr(state, tree) for tree in STATE_TREES[name])]
    like = library.place(dtype)
    for tree in trees:
        assert type(tree) is tuple
        assert [type(layer) for layer in tree] == [kind, kind]
        assert [tuple(array.shape) for array in flatten(tree)] == SHAPES
        for array in flatten(tree):
            assert (array.dtype, array.device) == (like.dtype, like.device)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_pairs_and_layers_walk_the_same_way_each_time(name, library):
    layers, _ = walk(library, OPTIMIZERS[name], "float64", Layer)
    pairs, _ = walk(library, OPTIMIZERS[name], "float64", tuple)
    for one, other in zip(flatten(layers), flatten(pairs), strict=True):
        np.testing.assert_array_equal(to_host(one), to_host(other))


def test_adam_counts_its_steps(library):
    _, state = walk(library, OPTIMIZERS["adam"], "float64")
    assert state.steps == N_STEPS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_stands_still_where_the_gradient_is_zero(dtype, library):
    optimizer = adam(0.1)
    zeros = [np.zeros(shape) for shape in SHAPES]
    params = in_layers(library, START, dtype)
    state = optimizer.init(library.xp, params)
    for _ in range(3):
        params, state = optimizer.update(
            library.xp, params, in_layers(library, zeros, dtype), state, optimizer.learning_rate
        )
    for array, start in zip(flatten(params), START, strict=True):
        np.testing.assert_array_equal(to_host(array), start.astype(dtype))


# minima


def descend(optimizer, gradient, start, n_steps):
    """Follow `gradient`, a function of all numbers in one layer, and return where it leads."""
    params = (Layer(np.array(start[:-1], dtype=float)[:, None], np.array(start[-1:], dtype=float)),)
    state = optimizer.init(np, params)
    for rate in rates(optimizer.learning_rate, n_steps):
        slope = gradient(np.concatenate([params[0].weight[:, 0], params[0].bias]))
        gradients = (Layer(slope[:-1, None].copy(), slope[-1:].copy()),)
        params, state = optimizer.update(np, params, gradients, state, rate)
    return np.concatenate([params[0].weight[:, 0], params[0].bias])


@pytest.mark.parametrize(
    "optimizer",
    [
        gradient_descent(0.1),
        momentum(0.02),
        momentum(0.02, nesterovs_momentum=True),
        adam(0.1),
        adam(step_decay(0.3, every=100, factor=0.5)),
    ],
    ids=["gradient_descent", "momentum", "nesterov", "adam", "adam with a schedule"],
)
def test_down_a_parabola(optimizer):
    lowest = np.array([1.0, -2.0, 3.5])
    curvature = np.array([0.5, 1.0, 4.0])
    found = descend(optimizer, lambda point: curvature * (point - lowest), [0.0, 0.0, 0.0], 1000)
    np.testing.assert_allclose(found, lowest, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "n_steps"),
    [
        (gradient_descent(1.5e-3), 15_000),
        (momentum(5e-4), 5_000),
        (momentum(5e-4, nesterovs_momentum=True), 5_000),
        (adam(0.05), 3_000),
    ],
    ids=["gradient_descent", "momentum", "nesterov", "adam"],
)
def test_down_the_valley_of_rosenbrock(optimizer, n_steps):
    optimize = pytest.importorskip("scipy.optimize")
    found = descend(optimizer, optimize.rosen_der, [-0.5, 0.5], n_steps)
    np.testing.assert_allclose(found, [1.0, 1.0], atol=1e-3)


# bad arguments


@pytest.mark.parametrize(
    ("make", "argument", "expected"),
    [
        (lambda bad: momentum(0.1, bad), "momentum", ">= 0 and <= 1"),
        (lambda bad: adam(beta_1=bad), "beta_1", ">= 0 and < 1"),
        (lambda bad: adam(beta_2=bad), "beta_2", ">= 0 and < 1"),
    ],
)
@pytest.mark.parametrize("bad", [-0.1, 1.0000001, 1.5, float("nan"), float("inf"), "0.9", None, True])
def test_bad_decays(make, argument, expected, bad):
    with pytest.raises(
        (TypeError, ValueError), match=rf"^`{argument}` must be a finite number.*{expected}.*, got "
    ):
        make(bad)


@pytest.mark.parametrize("bad", [0.0, -1e-8, float("nan"), float("inf"), "tiny", None, False])
def test_bad_epsilon(bad):
    with pytest.raises((TypeError, ValueError), match=r"^`epsilon` must be a finite number and > 0, got "):
        adam(epsilon=bad)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), "0.1", None])
def test_bad_weight_decay(bad):
    with pytest.raises(
        (TypeError, ValueError), match=r"^`weight_decay` must be a finite number and >= 0, got "
    ):
        decoupled_weight_decay(adam(), bad)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda rate: gradient_descent(rate), momentum(0.1, 0.9)),
        (lambda rate: momentum(rate, 0.8), momentum(0.1, 0.9)),
        (lambda rate: momentum(rate, 0.8), momentum(0.1, 0.8, nesterovs_momentum=True)),
        (lambda rate: adam(rate, epsilon=1e-6), adam(0.1, epsilon=1e-7)),
        (
            lambda rate: decoupled_weight_decay(adam(rate), 0.1),
            decoupled_weight_decay(adam(0.1, beta_1=0.8), 0.1),
        ),
    ],
)
def test_updates_are_equal_by_their_hyperparameters(make, other):
    one, same = make(0.1).update, make(0.2).update
    assert one == same == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(same)
    assert one != other.update


def test_momentum_of_0_keeps_no_velocity():
    assert momentum(0.1, 0.0, nesterovs_momentum=True) == gradient_descent(0.1)
