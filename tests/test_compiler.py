"""Compiled steps: the results of the same calls made one by one, without allocation."""

import gc
import random
import tracemalloc
import weakref
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mlp_xp import (
    Activation,
    DivergenceError,
    Network,
    Optimizer,
    TrainingInterruptedWarning,
    adam,
    decoupled_weight_decay,
    gradient_descent,
    momentum,
    train,
)
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._arrays import placement, quiet_floating_point
from mlp_xp._compiler import (
    NotRecordableError,
    accumulate,
    codegen,
    compile_function,
    passes,
    regions,
    rows,
    write_calls,
)
from mlp_xp._compiler import program as program_module
from mlp_xp._engines import compiled, make_engine, recordable
from mlp_xp._engines.compiled import CompiledEngine
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._losses import LOSSES, Loss
from mlp_xp._parameters import flatten, is_array, leaves, plain
from mlp_xp._samples import Batch, Samples

OPTIMIZERS = [
    gradient_descent(0.05),
    momentum(0.05),
    momentum(0.05, 0.9, nesterovs_momentum=True),
    adam(0.01),
    decoupled_weight_decay(adam(0.01), 0.1),
    decoupled_weight_decay(momentum(0.05, 0.5, nesterovs_momentum=True), 0.2),
]

LIMITS = {
    "usual": {},
    "blocks": {
        "MIN_ELEMENTS_TO_BLOCK": 1,
        "MAX_BLOCK_BYTES": 64,
        "MAX_GROUP_BYTES_TO_FUSE": 0,
        "MIN_ELEMENTS_TO_KEEP_BIAS_SEPARATE": 0,
        "MIN_ELEMENTS_FOR_FILLED_ARRAYS": 1,
    },
    "blocks_of_fused": {
        "MIN_ELEMENTS_TO_BLOCK": 8,
        "MAX_BLOCK_BYTES": 8,
        "MIN_ELEMENTS_TO_EXPAND_LOGADDEXP": 1,
    },
    "large": {
        "MAX_GROUP_BYTES_TO_FUSE": 0,
        "MAX_BYTES_SHUFFLED_AT_ONCE": 0,
        "MIN_ELEMENTS_TO_EXPAND_LOGADDEXP": 1,
        "MIN_ELEMENTS_FOR_FILLED_ARRAYS": 1,
    },
    "accumulated": {
        "MIN_ELEMENTS_TO_FUSE_INTO_GEMM": 1,
        "MIN_ELEMENTS_TO_MULTIPLY_OUTER": 1,
        "MIN_ELEMENTS_TO_BLOCK": 8,
        "MAX_BYTES_SHUFFLED_AT_ONCE": 0,
    },
}
"""Thresholds of the compiler, lowered so that a few elements take the paths of large arrays."""

MODULES = (passes, accumulate, regions, program_module, codegen, compiled)


def set_limits(monkeypatch, limits):
    for name, limit in LIMITS[limits].items():
        for module in MODULES:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, limit)
    # The cache has programs that were compiled under other limits.
    monkeypatch.setattr(compiled, "compile_step", recordable.compile_step.__wrapped__)


@pytest.fixture(params=LIMITS)
def limits(request, monkeypatch):
    set_limits(monkeypatch, request.param)


# Whole trainings, compared with the eager engine.


def targets(source, loss, n_samples, n_outputs, dtype):
    if loss == "poisson":
        return source.poisson(2.0, (n_samples, n_outputs)).astype(dtype)
    if loss == "squared_error":
        return source.standard_normal((n_samples, n_outputs)).astype(dtype)
    return np.eye(n_outputs + 1)[source.randint(n_outputs, size=n_samples)][:, :n_outputs].astype(dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def assert_equal_states(state, other):
    ours, theirs = leaves(state), leaves(other)
    assert len(ours) == len(theirs)
    for one, another in zip(ours, theirs):
        if is_array(another):
            assert (one.shape, one.dtype) == (another.shape, another.dtype)
            np.testing.assert_allclose(one, another, rtol=1e-10, atol=1e-10)
        else:
            assert type(one) is type(another)
            assert one == (another if another is None else pytest.approx(another, rel=1e-10))


def assert_equal_engines(engine, other):
    assert_equal_states(engine.state, other.state)
    assert type(engine.state[1]) is type(other.state[1])
    np.testing.assert_allclose(engine.losses, other.losses, rtol=1e-10, atol=1e-12)


def both_engines(network, optimizer, samples, batch_size, seed=0):
    params = plain(network.init(seed, like=np.ones(1), bias="normal"))
    settings = (network, optimizer, samples, batch_size, (params, optimizer.init(np, params)))
    return CompiledEngine(*settings), EagerEngine(*settings)


def samples_of(draw, source, network, n_samples):
    n_outputs = network.layer_sizes[-1]
    dtype = draw.choice(["float64", "float32", "int32"])
    X = np.asarray(3.0 * source.standard_normal((n_samples, network.layer_sizes[0])), dtype=dtype)
    y = targets(source, network.loss, n_samples, n_outputs, draw.choice(["float64", "float32"]))
    if network.loss == "poisson":
        y = y.astype("int64")
    weight = draw.choice([None, source.uniform(0.1, 2.0, n_samples)])
    chosen = draw.choice([None, None, source.permutation(n_samples)[: (n_samples + 1) // 2]])
    X = read_only(np.array(X, order=draw.choice("CF")))
    return Samples(placement(like=np.ones(1)), X, read_only(y), weight, chosen)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("case", "limits"), [(case, list(LIMITS)[case % 5]) for case in range(90)], indirect=["limits"]
)
def test_compiled_epochs_equal_eager_ones(case, limits):
    draw, source = random.Random(case), np.random.RandomState(case)
    depth = draw.randint(0, 3)
    sizes = (draw.randint(1, 6), *(draw.randint(1, 7) for _ in range(depth)), draw.randint(1, 3))
    # Every activation and every optimizer is among the cases.
    activation = [list(ACTIVATIONS)[(case // 5 + layer * 3) % 8] for layer in range(depth)] or "relu"
    network = Network(
        sizes, activation=activation, loss=list(LOSSES)[case // 5 % 4], alpha=draw.choice([0.0, 0.1])
    )
    samples = samples_of(draw, source, network, draw.choice([1, 2, 7, 33, 120]))
    before = [array if array is None else array.copy() for array in (samples.X, samples.y)]
    n_samples = len(samples)
    batch_size = draw.choice([n_samples, (n_samples + 1) // 3 or 1, 5, 1 if n_samples < 40 else 50])
    engine, other = both_engines(network, OPTIMIZERS[case // 5 % 6], samples, batch_size, case)
    epochs = [(0.03, None), (0.02, source.permutation(n_samples)), (0.01, source.permutation(n_samples))]
    with quiet_floating_point():
        for each in (engine, other):
            each.run(epochs[:1])
            each.run(epochs[1:])
    assert len(engine.losses) == 3
    assert_equal_engines(engine, other)
    for array, original in zip((samples.X, samples.y), before):
        np.testing.assert_array_equal(array, original)


@pytest.mark.parametrize(("optimizer", "batch_size"), list(product([0, 3, 5], [40, 16])))
def test_single_precision(optimizer, batch_size):
    source = np.random.RandomState(0)
    X, y = source.standard_normal((40, 3)), source.standard_normal((40, 2))
    network = Network((3, 5, 2), activation="tanh", loss="squared_error", alpha=0.01)
    params = plain(network.init(0, like=np.ones(1, "float32")))
    optimizer = OPTIMIZERS[optimizer]
    samples = Samples(placement(like=np.ones(1, "float32")), X, y)
    settings = (network, optimizer, samples, batch_size, (params, optimizer.init(np, params)))
    engine, other = CompiledEngine(*settings), EagerEngine(*settings)
    for each in (engine, other):
        each.run([(0.01, None)] * 5)
    for one, another in zip(flatten(engine.state[0]), flatten(other.state[0]), strict=True):
        assert one.dtype == another.dtype == "float32"
        np.testing.assert_allclose(one, another, rtol=1e-4, atol=1e-5)
    assert engine.losses[-1].dtype == other.losses[-1].dtype


# Programs of single functions.


def bound(function, state, inputs=(), n_scalars=0):
    """Return a program bound to memory, and its state arrays."""
    program = compile_function(function, state, inputs, n_scalars)
    groups = [np.concatenate([array.reshape(-1) for array in group]) for group in state]
    # Results must not depend on what the memory holds before.
    pool = [np.full(nbytes, 255, np.uint8) for nbytes in program.pool_nbytes]
    arrays = []
    for group, flat in zip(state, groups):
        stops = np.cumsum([array.size for array in group])
        arrays += [part.reshape(array.shape) for part, array in zip(np.split(flat, stops[:-1]), group)]
    return program.bind(groups, pool), arrays


def assert_same(function, state=(), inputs=(), scalars=(), calls=3, rtol=1e-12):
    """Compare a program with the function itself, over several calls."""
    step, arrays = bound(function, state, inputs, len(scalars))
    plain_ones = [array.copy() for group in state for array in group]
    for _ in range(calls):
        found = [np.array(result) for result in step(*inputs, *scalars)]
        before = [array.copy() for array in plain_ones]
        updated, results = function(before, [np.array(array) for array in inputs], list(scalars))
        results = [np.array(result) for result in results]
        plain_ones = [
            old.copy() if new is None else np.array(new) for new, old in zip(updated, before, strict=True)
        ]
        for ours, theirs in zip((*arrays, *found), (*plain_ones, *results), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-14)


def assert_right_or_refused(function, state=(), inputs=(), scalars=(), **settings):
    try:
        compile_function(function, state, inputs, len(scalars))
    except NotRecordableError:
        return
    assert_same(function, state, inputs, scalars, **settings)


def arrays_of(*shapes, seed=0, dtype="float64"):
    source = np.random.RandomState(seed)
    return [source.uniform(0.1, 1.0, shape).astype(dtype) for shape in shapes]


def result_of(function):
    """Return a function with the compiler's signature that only computes a result."""
    return lambda state, inputs, scalars: ([None] * len(state), [function(*inputs, *scalars)])


def update_of(function):
    """Return a function with the compiler's signature that only updates its state arrays."""
    return lambda state, inputs, scalars: (list(function(*state)), [])


UPDATES = {
    "old_value_read_later": lambda p, v: (p - v, 0.9 * v + p),
    "each_of_both": lambda p, v: (p * v + v, p - v * p),
    "used_twice": lambda p, v: ((p + v) * (p + v), 0.5 * (p + v)),
    "one_for_both": lambda p, v: (0.5 * (p + v), 0.5 * (p + v)),
    "one_alone": lambda p, v: (None, 0.5 * v + p),
    "new_value_read": lambda p, v: (0.5 * p, 0.5 * p + v),
    "product": lambda p, v: (0.1 * (p @ v), v),
    "a_product_itself": lambda p, v: (p @ v, v * 0.1),
    "products_of_each_other": lambda p, v: (p @ v, v @ p),
    "transposed": lambda p, v: (p + p.T, 0.1 * v.T),
    "a_transposed_one_itself": lambda p, v: (v * 1.0, (0.5 * p).T),
    "reduction": lambda p, v: (p - np.sum(v, axis=0), v / np.sum(p)),
    "rows": lambda p, v: (p / np.sum(p, axis=1, keepdims=True), v - np.max(v, axis=1, keepdims=True)),
    "where": lambda p, v: (np.where(p > v, p, v), np.where(p > v, v, 0.5)),
    "zeros": lambda p, v: (np.zeros_like(p), v + p),
}


@pytest.mark.parametrize("update", UPDATES)
def test_updates(update, limits):
    state = arrays_of((4, 4), (4, 4))
    assert_right_or_refused(update_of(UPDATES[update]), [state])
    assert_right_or_refused(update_of(UPDATES[update]), [state[:1], state[1:]])


@pytest.mark.parametrize("update", ["old_value_read_later", "each_of_both", "used_twice", "product", "where"])
def test_updates_that_are_compiled(update):
    compile_function(update_of(UPDATES[update]), [arrays_of((4, 4), (4, 4))], [])


ACCUMULATED = {
    "descent": lambda p, g, r: p - r * g,
    "descent_by_a_fixed_rate": lambda p, g, r: p - 0.5 * g,
    "velocity": lambda p, g, r: 0.9 * p - r * g,
    "ascent": lambda p, g, r: g + p,
    "negative": lambda p, g, r: -(g * r) + p,
    "decay_before": lambda p, g, r: (1.0 - 0.1 * r) * p - g * r,
    "decay_after": lambda p, g, r: (p - r * g) * 0.5,
    "penalty": lambda p, g, r: p - r * (g + 0.1 * p),
    "powers": lambda p, g, r: p - r**2 * (0.5 * (r * g)),
}
OTHERWISE = {
    "used_twice": lambda p, g, r: p - r * g * g,
    "product_alone": lambda p, g, r: r * g,
    "quotient": lambda p, g, r: p / r - g,
    "root": lambda p, g, r: p - np.sqrt(g * g + r),
    "by_a_row": lambda p, g, r: p - r * g * np.sum(p, axis=0),
    "by_a_sum": lambda p, g, r: p - np.sum(p) * g,
}


@pytest.mark.parametrize("update", [*ACCUMULATED, *OTHERWISE])
@pytest.mark.parametrize("order", ["CC", "FF", "CF", "strided"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_updates_by_products(update, order, dtype, monkeypatch):
    pytest.importorskip("scipy")
    set_limits(monkeypatch, "accumulated")
    function = (ACCUMULATED | OTHERWISE)[update]

    def step(state, inputs, scalars):
        (p,), (a, b), (rate,) = state, inputs, scalars
        return [function(p, np.matmul(a.T, b), rate)], [np.sum(np.matmul(a, p))]

    state, inputs = arrays_of((3, 4), dtype=dtype), arrays_of((10, 3), (10, 4), dtype=dtype)
    inputs = (
        [np.repeat(array, 2, axis=1)[:, ::2] for array in inputs]
        if order == "strided"
        else [np.array(array, order=letter) for array, letter in zip(inputs, order)]
    )
    scalars = [0.1]
    assert_same(step, [state], inputs, scalars, rtol=1e-12 if dtype == "float64" else 1e-5)
    source = compile_function(step, [state], inputs, 1).source
    assert ("gemm(" in source.partition("def step")[2]) == (update in ACCUMULATED)
    # Without SciPy, NumPy computes the product and the update.
    monkeypatch.setattr(accumulate, "_scipy_blas", dict)
    assert "gemm(" not in compile_function(step, [state], inputs, 1).source
    assert_same(step, [state], inputs, scalars, rtol=1e-12 if dtype == "float64" else 1e-5)


def test_a_gradient_used_twice_is_computed_once(monkeypatch):
    set_limits(monkeypatch, "accumulated")

    def step(state, inputs, scalars):
        (mean, square), (a, b) = state, inputs
        gradient = np.matmul(a.T, b)
        return [0.9 * mean + 0.1 * gradient, 0.9 * square + 0.1 * gradient * gradient], []

    state, inputs = [arrays_of((3, 4), (3, 4))], arrays_of((10, 3), (10, 4))
    assert_same(step, state, inputs)
    source = compile_function(step, state, inputs).source.partition("def step")[2]
    assert (source.count("dot("), source.count("matmul("), source.count("gemm(")) == (0, 1, 0)


def test_a_product_that_reads_the_array_it_updates():
    def step(state, inputs, scalars):
        p, v = state
        return [p - 0.1 * np.matmul(p, v), v - 0.1 * np.matmul(p.T, p)], []

    with pytest.MonkeyPatch.context() as patch:
        set_limits(patch, "accumulated")
        for state in ([arrays_of((4, 4), (4, 4))], [arrays_of((4, 4)), arrays_of((4, 4), seed=1)]):
            assert_same(step, state)


def test_augmented_assignments(limits):
    def function(state, inputs, scalars):
        p, v = state
        (g,), (rate,) = inputs, scalars
        v *= 0.9
        v -= rate * g
        p += v
        return [p, v], [np.sum(p * p)]

    assert_same(function, [arrays_of((3, 5), (3, 5))], arrays_of((3, 5)), [0.1])


@pytest.mark.parametrize(
    "places", [lambda p, v: (v, p), lambda p, v: (v, v), lambda p, v: (v, 2.0 * v), lambda p, v: (v.T, v)]
)
def test_state_arrays_that_are_swapped(places, limits):
    assert_right_or_refused(update_of(places), [arrays_of((4, 4), (4, 4))])


@pytest.mark.parametrize("result", [lambda p: p, lambda p: p.T, lambda p: np.reshape(p, (-1,))])
def test_a_result_that_is_the_old_value_of_a_state_array(result, limits):
    def function(state, inputs, scalars):
        return [state[0] * 2.0], [result(state[0])]

    assert_right_or_refused(function, [arrays_of((4, 4))])


def test_an_array_of_another_shape_or_dtype_is_refused():
    state = [arrays_of((4, 3))]
    for change in (lambda p: (np.sum(p, axis=0),), lambda p: (p > 0.5,), lambda p: (1.0,), lambda p: (p.T,)):
        with pytest.raises(NotRecordableError):
            compile_function(update_of(change), state, [])
    with pytest.raises(NotRecordableError, match="dtypes"):
        compile_function(update_of(lambda p, v: (p, v)), [[np.ones(3), np.ones(3, "float32")]], [])


MAPS = {
    "powers": lambda x, y: (x**2 + y**0.5) * (x**3.5 - y**-1) + 2.0**x,
    "divisions": lambda x, y: (1.0 / x + x / 3.0) / y,
    "where": lambda x, y: np.where(x > y, x, -y),
    "where_of_numbers": lambda x, y: np.where(x > 0.5, 1.0, y) + np.where(x > y, x, 0.0),
    "extrema": lambda x, y: np.maximum(x, y) - np.minimum(x, 0.5) + np.maximum(0.4, y),
    "logaddexp": lambda x, y: np.logaddexp(x, y) + np.logaddexp(0.5, -x),
    "zeros": lambda x, y: np.logaddexp(np.zeros_like(x), -x) + np.maximum(y, np.zeros_like(y)),
    "zeros_alone": lambda x, y: np.zeros_like(x) + np.zeros_like(y),
    "zeros_themselves": lambda x, y: np.zeros_like(x),
    "where_of_zeros": lambda x, y: np.where(x > y, x, np.zeros_like(x)),
    "zeros_multiplied": lambda x, y: np.zeros_like(x).T @ y,
    "sum_of_zeros": lambda x, y: np.sum(np.zeros_like(x), axis=0),
    "a_mask_as_a_number": lambda x, y: (x > 0.5) * 0.25 + y,
    "one_less_a_mask": lambda x, y: (1 - (x > 0.5)) * y,
    "a_mask_and_a_mask": lambda x, y: ((x > 0.5) & (y > 0.5)) * x,
    "a_mask_itself": lambda x, y: x > y,
    "used_often": lambda x, y: (x + y) * (x + y) - (x + y),
    "a_number_of_all": lambda x, y: x / np.sum(x) - np.max(y) * np.min(x),
    "keepdims": lambda x, y: (x - np.max(x, axis=1, keepdims=True)) / np.sum(y, axis=0, keepdims=True),
    "keepdims_of_all": lambda x, y: x / np.sum(y, keepdims=True),
    "sums_from_the_last": lambda x, y: x * np.sum(y, axis=-1, keepdims=True) + np.sum(y, axis=-2),
    "softmax": lambda x, y: np.exp(x) / np.sum(np.exp(x), axis=1, keepdims=True) - y,
    "sums": lambda x, y: np.sum(x * y, axis=0),
    "a_number": lambda x, y: np.sum(np.sum(x, axis=0) * np.min(y, axis=0)),
    "a_sum_of_a_number": lambda x, y: np.sum(np.sum(x)),
    "product": lambda x, y: (x @ y.T) / 3.0,
    "product_of_columns": lambda x, y: np.sum(x, axis=1, keepdims=True) @ np.sum(y, axis=0, keepdims=True),
    "inner_product": lambda x, y: np.sum(x, axis=0) @ np.sum(y, axis=0),
    "transposed": lambda x, y: x.T.T + y + (x.T * 2.0).T,
    "reshaped": lambda x, y: np.reshape(x, (-1, 1)) * 2.0,
    "a_computed_one_reshaped": lambda x, y: np.reshape(x * y, (-1, 1)) * 2.0,
    "another_namespace_function": lambda x, y: np.hypot(x, y) + np.arctan2(x, 2.0),
    "input_itself": lambda x, y: x,
    "a_number_itself": lambda x, y: 3.5,
    "infinity": lambda x, y: np.minimum(x, float("inf")) + np.maximum(y, -float("inf")),
    "remainder": lambda x, y: x % 0.3 + y // 0.2,
}


@pytest.mark.parametrize("function", MAPS)
@pytest.mark.parametrize("shape", [(5, 3), (33, 1)], ids=str)
def test_maps(function, shape, limits):
    assert_right_or_refused(result_of(MAPS[function]), [], arrays_of(shape, shape), rtol=1e-10)


def test_most_maps_are_compiled():
    refused = []
    for name, function in MAPS.items():
        try:
            compile_function(result_of(function), [], arrays_of((5, 3), (5, 3)))
        except NotRecordableError:
            refused.append(name)
    assert set(refused) <= {
        "zeros_alone",
        "zeros_themselves",
        "where_of_zeros",
        "zeros_multiplied",
        "sum_of_zeros",
        "a_sum_of_a_number",
        "a_computed_one_reshaped",
    }


@pytest.mark.parametrize("scalars", [(0.5, 3), (2.0, 1), (1e-3, 7), (2, 2)], ids=str)
def test_scalar_arguments(scalars, limits):
    def function(x, rate, count):
        scale = rate * (1.0 - 0.9**count) ** 0.5 / (1.0 - 0.5**count)
        return x * scale - rate + x**count / rate + 2.0 / (x + count) + np.minimum(x, rate)

    assert_same(result_of(function), [], arrays_of((4, 3)), scalars)


def test_scalar_results_keep_their_python_types():
    def function(state, inputs, scalars):
        rate, count = scalars
        return [], [count + 1, -rate, count % 3, count // 2, abs(-count), 0.1, float("inf"), count]

    step, _ = bound(function, [], [], 2)
    results = step(0.5, 5)
    assert results == (6, -0.5, 2, 2, 5, 0.1, float("inf"), 5)
    assert [type(result) for result in results] == [int, float, int, int, int, float, float, int]


@pytest.mark.parametrize("wide", [1, 10**9], ids=["exp_and_log1p", "logaddexp"])
@pytest.mark.parametrize("limit", [1, 2**15], ids=["blocks", "whole"])
def test_logaddexp_at_hard_values(wide, limit, monkeypatch):
    monkeypatch.setattr(passes, "MIN_ELEMENTS_TO_EXPAND_LOGADDEXP", wide)
    monkeypatch.setattr(regions, "MIN_ELEMENTS_TO_BLOCK", limit)
    ends = np.array([-1e308, -1e4, -750.0, -37.0, -1.0, -1e-300, 0.0, 1e-17, 1.0, 36.5, 710.0, 1e4, 1e308])
    x, y = (np.ascontiguousarray(grid) for grid in np.meshgrid(ends, ends))
    step, _ = bound(result_of(lambda x, y: np.logaddexp(x, y)), [], [x, y])
    with np.errstate(over="ignore"):
        (found,) = step(x, y)
        np.testing.assert_allclose(found, np.logaddexp(x, y), rtol=1e-15)
        step, _ = bound(result_of(lambda x: np.logaddexp(x, -x) + np.logaddexp(0.0, x)), [], [x])
        (found,) = step(x)
        np.testing.assert_allclose(found, np.logaddexp(x, -x) + np.logaddexp(0.0, x), rtol=1e-15)


def test_a_mask_is_kept_from_forward_to_backward(limits):
    def function(state, inputs, scalars):
        weight, bias = state
        X, y = inputs
        z = X @ weight + bias
        positive = z > 0.6
        a = np.where(positive, z, 0.01 * z)
        error = a - y
        delta = np.where(positive, error, 0.01 * error) * positive
        return [weight - 0.1 * (X.T @ delta), bias - 0.1 * np.sum(delta, axis=0)], [np.sum(error * error)]

    assert_same(function, [arrays_of((3, 4), (4,))], arrays_of((7, 3), (7, 4)))


def test_a_weight_without_an_updated_bias(limits):
    def function(state, inputs, scalars):
        w, b, v, c = state
        (X,) = inputs
        h = np.tanh(X @ w + b)
        out = h @ v + c
        return [w - 0.1 * (X.T @ (out @ v.T)), None, v - 0.1 * (h.T @ out), c - 0.1 * np.sum(out, axis=0)], [
            out,
            h,
            np.sum(out * out),
        ]

    shapes = ((3, 4), (4,), (4, 2), (2,))
    assert_same(function, [arrays_of(*shapes)], arrays_of((7, 3)))
    assert_same(function, [[array] for array in arrays_of(*shapes)], [seven_rows()])


def seven_rows():
    return arrays_of((7, 3))[0]


def test_a_layer_input_that_is_an_updated_state_array(limits):
    def function(state, inputs, scalars):
        old, w, b = state
        hidden = np.tanh(old + inputs[0])
        out = hidden @ w + b
        return [hidden, w - 0.1 * (hidden.T @ out), b - 0.1 * np.sum(out, axis=0)], [np.sum(out)]

    state = arrays_of((7, 3), (3, 2), (2,))
    assert_same(function, [state[:1], state[1:]], [seven_rows()])


def mixed(x, y, rate):
    return x * rate + y * rate, rate * y, x * 0.1, y * 0.1, np.maximum(x, rate), y > rate


@pytest.mark.parametrize("place", range(6))
def test_single_and_double_precision_together(place, limits):
    inputs = [*arrays_of((4, 3), dtype="float32"), *arrays_of((4, 3), seed=1)]
    assert_right_or_refused(
        result_of(lambda x, y, rate: mixed(x, y, rate)[place]), [], inputs, [0.1], rtol=1e-12
    )
    both = result_of(lambda x, y, rate: np.sum(x * rate) + y * rate)
    assert_right_or_refused(both, [], inputs, [0.1], rtol=1e-6)
    assert_right_or_refused(
        lambda state, inputs, scalars: ([], list(mixed(*inputs, *scalars))), [], inputs, [0.1], rtol=1e-12
    )


def test_integers_meet_numbers_as_in_numpy(limits):
    counts = np.arange(6).reshape(2, 3)
    assert_right_or_refused(result_of(lambda x: x * 0.5 + 1), [], [counts])
    assert_right_or_refused(result_of(lambda x, rate: x * rate), [], [counts], [0.3])
    assert_right_or_refused(result_of(lambda x: np.maximum(x, 1.5)), [], [counts])
    assert_right_or_refused(result_of(lambda x: np.sum(x, axis=0) * 2.0), [], [counts])


def test_arrays_without_dimensions(limits):
    zero_dim = np.array(0.3)
    assert_right_or_refused(update_of(lambda p: (p * 0.5,)), [[zero_dim]])
    assert_right_or_refused(update_of(lambda p, v: (p * 0.5, v * p)), [[zero_dim, np.ones(3)]])
    assert_right_or_refused(result_of(lambda x, y: x * y), [], [zero_dim, np.ones(3)])
    assert_right_or_refused(result_of(lambda x: x), [], [zero_dim])


def test_several_groups(limits):
    def function(state, inputs, scalars):
        (w, b, m, n, free), (g, h) = state, inputs
        m, n = 0.9 * m + 0.1 * g, 0.9 * n + 0.1 * h
        return [w - 0.1 * m, b - 0.1 * n, m, n, free * 0.5], [np.sum(w)]

    first, second = arrays_of((3, 2), (2,)), arrays_of((3, 2), (2,), seed=1)
    assert_same(function, [first, second, arrays_of((2, 2))], arrays_of((3, 2), (2,), seed=2))


@pytest.mark.parametrize(
    "different",
    [
        lambda p, g: p + 0.1 * g,
        lambda p, g: p - 0.2 * g,
        lambda p, g: p - 0.1 * (g * p),
        lambda p, g: np.where(g > 0.5, p, g),
        lambda p, g: p - 0.1 * np.sum(g),
        lambda p, g: g - 0.1 * p,
        lambda p, g: p - 0.1 * np.max(g, axis=0),
        lambda p, g: None,
    ],
)
def test_a_group_where_one_array_changes_differently(different, limits):
    def function(state, inputs, scalars):
        updated = [p - 0.1 * g for p, g in zip(state, inputs)]
        updated[1] = different(state[1], inputs[1])
        return updated, [np.sum(state[1])]

    shapes = ((3, 2), (2,), (2, 2))
    assert_same(function, [arrays_of(*shapes)], arrays_of(*shapes, seed=1))


def test_alternating_updates(limits):
    def function(state, inputs, scalars):
        a, b = state
        a = a - 0.1 * (b * inputs[0])
        b = b - 0.1 * (a * inputs[0])
        return [a, b], []

    assert_same(function, [arrays_of((3, 4), (3, 4))], arrays_of((3, 4)))


def test_an_inner_product_inside_a_region(limits):
    def scaled(x):
        u = 2.0 * x
        return u * (u @ u)

    assert_same(result_of(scaled), [], arrays_of((40,)))
    assert_same(update_of(lambda p: (p - 0.1 * (p * (p @ p)),)), [arrays_of((40,))])


def test_long_chains(limits):
    def chain(x):
        for _ in range(300):
            x = 0.99 * x + 0.001
        return x

    def function(state, inputs, scalars):
        return [chain(p) for p in state], [np.sum(chain(inputs[0]))]

    assert_same(function, [arrays_of((3, 2), (2,))], arrays_of((3,)), calls=1)


# Functions that cannot be recorded run on the eager engine.


def plain_relu(backward=lambda xp, delta, a: xp.where(a > 0.0, delta, 0.0)):
    return Activation(lambda xp, z: (xp.maximum(z, 0.0),) * 2, backward)


def activation_of(forward):
    """Return a ReLU whose forward pass is written in another way."""
    return Activation(lambda xp, z: (forward(xp, z),) * 2, plain_relu().backward)


def in_place_through_a_view(xp, z):
    a = xp.maximum(z, 0.0)
    view = a.T
    view += 0.0
    return a


def by_elements(xp, z):
    a = xp.zeros_like(z)
    for index in range(z.shape[0]):
        a[index] = xp.maximum(z[index], 0.0)
    return a


REFUSED = {
    "float": lambda xp, z: xp.maximum(z, 0.0) if float(xp.max(z)) < 1e9 else z,
    "bool": lambda xp, z: xp.maximum(z, 0.0) if bool(xp.max(z) < 1e9) else z,
    "truth": lambda xp, z: xp.maximum(z, 0.0) if xp.max(z) < 1e9 else z,
    "index": lambda xp, z: xp.maximum(z[:], 0.0),
    "elements": by_elements,
    "iteration": lambda xp, z: xp.stack([xp.maximum(row, 0.0) for row in z]),
    "length": lambda xp, z: xp.maximum(z, 0.0 * len(z)),
    "plain_array": lambda xp, z: xp.maximum(z, np.zeros(z.shape)),
    "numpy_number": lambda xp, z: xp.maximum(z, np.float32(0.0)),
    "unknown_function": lambda xp, z: xp.clip(z, 0.0, None),
    "method": lambda xp, z: z.clip(0.0),
    "view": in_place_through_a_view,
    "as_an_array": lambda xp, z: np.maximum(np.asarray(z), 0.0),
    "reduction_of_a_ufunc": lambda xp, z: xp.maximum(z, 0.0 * xp.add.reduce(z)),
    "several_axes": lambda xp, z: xp.maximum(z, 0.0 * xp.sum(z, axis=(0, 1))),
    "inner_products_of_rows": lambda xp, z: xp.maximum(z, 0.0 * np.reshape(np.vecdot(z, z), (-1, 1))),
    "several_results": lambda xp, z: xp.maximum(z, 0.0 * np.modf(z)[0]),
}


def problem(activation="tanh", loss="squared_error", n_samples=23, n_outputs=2, **network):
    source = np.random.RandomState(1)
    X = source.standard_normal((n_samples, 3))
    y = np.eye(n_outputs)[source.randint(n_outputs, size=n_samples)]
    network = Network((3, 4, n_outputs), activation=activation, loss=loss, **network)
    return network, network.init(0, like=X), X, y


def engine_of(network, optimizer, params, X, y, batch_size=10, sample_weight=None):
    params = plain(params)
    samples = Samples(placement(X=X), X, y, sample_weight)
    return make_engine(network, optimizer, samples, batch_size, (params, optimizer.init(np, params)))


def assert_equal_trainings(one, other):
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], rtol=1e-10)
    for ours, theirs in zip(flatten(one.params), flatten(other.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("forward", REFUSED)
def test_functions_that_cannot_be_recorded_run_eagerly(forward):
    if forward == "inner_products_of_rows" and not hasattr(np, "vecdot"):
        pytest.skip("no such function in this NumPy")
    settings = {"optimizer": adam(0.01), "epochs": 4, "batch_size": 10, "seed": 0}
    expected = train(*problem("relu"), **settings)
    network, params, X, y = problem(activation_of(REFUSED[forward]))
    assert type(engine_of(network, adam(), params, X, y)) is EagerEngine
    assert_equal_trainings(train(network, params, X, y, **settings), expected)


def descended(params, gradients, rate):
    return [(w - rate * dw, b - rate * db) for (w, b), (dw, db) in zip(params, gradients, strict=True)]


def growing(xp, params, gradients, state, rate):
    params = descended(params, gradients, rate / (1 + len(state)))
    return params, [*state, 1.0]


def filled_in(xp, params, gradients, state, rate):
    scale = 1.0 if state[0] is None else 1.0 + state[0]
    return descended(params, gradients, rate * scale), (0.5 * np.sum(gradients[0][0]),)


def filled_in_with_an_array(xp, params, gradients, state, rate):
    scale = 1.0 if state[0] is None else 1.0 + xp.sum(state[0])
    return descended(params, gradients, rate * scale), (gradients[0][1] * gradients[0][1],)


def a_number_that_becomes_an_array(xp, params, gradients, state, rate):
    scale = 1.0 + xp.sum(state[0] * gradients[0][1])
    return descended(params, gradients, rate * scale), (0.1 * state[0] + gradients[0][1],)


def a_number_of_an_array(xp, params, gradients, state, rate):
    norm = 0.9 * state[0] + xp.sum(gradients[0][1] * gradients[0][1])
    return descended(params, gradients, rate / (1.0 + norm)), (norm,)


def flipping(xp, params, gradients, state, rate):
    return descended(params, gradients, rate if state[0] else 0.5 * rate), (not state[0],)


def a_number_of_numpy(xp, params, gradients, state, rate):
    return descended(params, gradients, rate * state[0]), (state[0] * np.float64(0.5),)


def constant_of_numpy(xp, params, gradients, state, rate):
    return descended(params, gradients, rate * state[0]), (np.float64(0.25),)


def an_array_without_dimensions(xp, params, gradients, state, rate):
    return descended(params, gradients, rate * state[0]), (state[0] * 0.5,)


def new_arrays(xp, params, gradients, state, rate):
    params = descended(params, gradients, rate * (1.0 + xp.sum(state[0])))
    return params, (np.zeros(2),)


def zeroed(xp, params, gradients, state, rate):
    params = descended(params, gradients, rate * (1.0 + xp.sum(state[0])))
    return params, (xp.zeros_like(state[0]),)


def counting(xp, params, gradients, state, rate):
    count = (state[0] + 1) % 3
    return descended(params, gradients, rate / (1 + count)), (count,)


def rooted(xp, params, gradients, state, rate):
    return descended(params, gradients, rate / xp.sqrt(1.0 + state[0])), (state[0] + 1,)


STATES = {
    "growing": (growing, []),
    "filled_in": (filled_in, (None,)),
    "filled_in_with_an_array": (filled_in_with_an_array, (None,)),
    "a_number_that_becomes_an_array": (a_number_that_becomes_an_array, (0.5,)),
    "a_number_of_an_array": (a_number_of_an_array, (0.5,)),
    "flipping": (flipping, (True,)),
    "a_number_of_numpy": (a_number_of_numpy, (np.float64(1.0),)),
    "constant_of_numpy": (constant_of_numpy, (1.0,)),
    "an_array_without_dimensions": (an_array_without_dimensions, (np.array(1.0),)),
    "new_arrays": (new_arrays, (np.ones(2),)),
    "zeroed": (zeroed, (np.ones(2),)),
    "counting": (counting, (0,)),
    "rooted": (rooted, (0,)),
}


@pytest.mark.parametrize("state", STATES)
def test_optimizers_with_states_of_all_kinds(state):
    update, start = STATES[state]
    optimizer = Optimizer(lambda xp, params: start, update, 0.1)
    network, params, X, y = problem()
    engine = engine_of(network, optimizer, params, X, y)
    samples = Samples(placement(X=X), X, y)
    other = EagerEngine(network, optimizer, samples, 10, (plain(params), start))
    for each in (engine, other):
        each.run([(0.1, None)] * 2)
        # As when a training is resumed.
        each.state = each.copied_state()
        each.run([(0.1, None)] * 2)
    assert_equal_engines(engine, other)
    again = engine_of(network, replace(optimizer, init=lambda xp, params: other.state[1]), params, X, y)
    again.state = other.copied_state()
    for each in (again, other):
        each.run([(0.1, None)])
    assert_equal_states(again.state, other.state)


def test_an_optimizer_that_swaps_arrays_of_its_state():
    def update(xp, params, gradients, state, rate):
        return descended(params, gradients, rate * (1.0 + np.sum(state[0]))), (state[1], state[0])

    optimizer = Optimizer(lambda xp, params: (np.zeros(3), np.ones(3)), update, 0.1)
    network, params, X, y = problem()
    engine = engine_of(network, optimizer, params, X, y)
    other = EagerEngine(network, optimizer, Samples(placement(X=X), X, y), 10, engine.copied_state())
    for each in (engine, other):
        each.run([(0.1, None)] * 3)
    assert_equal_engines(engine, other)


# Activations, losses and optimizers of users.


def softsign(xp, z):
    scale = 1.0 / (1.0 + xp.abs(z))
    return z * scale, scale


WRITTEN = {
    "softsign": Activation(softsign, lambda xp, delta, scale: delta * scale * scale),
    "masked": Activation(lambda xp, z: (z * (z > 0.0), z > 0.0), lambda xp, delta, mask: delta * mask),
    "leaky": Activation(
        lambda xp, z: (z * (0.9 * (z > 0.0) + 0.1), z > 0.0),
        lambda xp, delta, mask: delta * (1.0 - 0.9 * (1 - mask)),
    ),
    "clipped": Activation(
        lambda xp, z: (xp.minimum(xp.maximum(z, -0.5), 0.5), z),
        lambda xp, delta, z: xp.where(abs(z) < 0.5, delta, xp.zeros_like(delta)),
    ),
    "normalised": Activation(
        lambda xp, z: (z - xp.max(z, axis=1, keepdims=True), z), lambda xp, delta, z: delta + 0.0 * z
    ),
}


def absolute_error(xp, z, y):
    return xp.abs(z - y), xp.sign(z - y)


def by_samples(xp, z, y):
    error = z - y
    return 0.5 * xp.sum(error * error, axis=1, keepdims=True), error


def link(xp, z):
    return z


WRITTEN_LOSSES = [Loss(link, evaluate, None, lambda xp, y: "") for evaluate in (absolute_error, by_samples)]


def signs(xp, params, gradients, state, rate):
    memory, count = state
    new_memory, updated = [], []
    for (w, b), (dw, db), (mw, mb) in zip(params, gradients, memory):
        mw, mb = 0.9 * mw + 0.1 * dw, 0.9 * mb + 0.1 * db
        new_memory.append((mw, mb))
        updated.append((w - rate * xp.sign(mw), b - rate * xp.sign(mb) / (count + 1)))
    return updated, (new_memory, count + 1)


def clipped_norm(xp, params, gradients, state, rate):
    norm = sum(xp.sum(g * g) for layer in gradients for g in layer) ** 0.5
    return descended(params, gradients, rate / xp.maximum(norm, 0.1)), state


def copied(params):
    return [(0.0 * w, 0.0 * b) for w, b in params]


WRITTEN_OPTIMIZERS = [
    Optimizer(lambda xp, params: (copied(params), 0), signs, 0.1),
    Optimizer(lambda xp, params: {"nothing": None}, clipped_norm, 0.1),
]


@pytest.mark.parametrize("activation", WRITTEN)
@pytest.mark.parametrize(("loss", "optimizer"), [(0, 0), (1, 1)])
def test_functions_of_users_are_compiled(activation, loss, optimizer, limits):
    network, _, X, y = problem(WRITTEN[activation], WRITTEN_LOSSES[loss], alpha=0.01)
    samples = Samples(placement(X=X), X, y, np.linspace(0.5, 1.5, 23))
    for engine in (pair := both_engines(network, WRITTEN_OPTIMIZERS[optimizer], samples, 10)):
        engine.run([(0.05, None), (0.02, np.arange(23)[::-1])])
    assert_equal_engines(*pair)


# The engine.


def steps_counted(monkeypatch):
    counted = []

    def count(traced):
        counted.append(1)
        return write_calls(traced)

    monkeypatch.setattr(compiled, "write_calls", count)
    return counted


def test_programs_are_cached_by_their_settings(monkeypatch):
    counted = steps_counted(monkeypatch)
    settings = {"epochs": 2, "batch_size": 10, "seed": 0}
    train(*problem(), optimizer=adam(0.01), **settings)
    assert len(counted) == 2  # full batches and the last one
    train(*problem(), optimizer=adam(0.02), **settings)
    network, params, X, y = problem()
    train(network, params, np.asfortranarray(X, "float32"), y, optimizer=adam(0.01), **settings)
    assert len(counted) == 2
    train(*problem(), optimizer=adam(0.01, beta_1=0.8), **settings)
    assert len(counted) == 4
    train(*problem(alpha=0.1), optimizer=adam(0.01), **settings)
    assert len(counted) == 6


class Unhashable:
    """The forward function of a ReLU."""

    __hash__ = None

    def __call__(self, xp, z):
        return (xp.maximum(z, 0.0),) * 2


def test_an_unhashable_activation_is_compiled_each_time(monkeypatch):
    counted = steps_counted(monkeypatch)
    network, *rest = problem(Activation(Unhashable(), plain_relu().backward))
    settings = {"optimizer": momentum(0.05), "epochs": 3}
    expected = train(*problem("relu"), **settings)
    counted.clear()
    for _ in range(2):
        assert_equal_trainings(train(network, *rest, **settings), expected)
    assert len(counted) == 2


def test_an_interrupt_between_steps_keeps_finished_steps(monkeypatch):
    of_epoch = compiled._Batches.of_epoch
    epochs = []

    def interrupted(self, order):
        epochs.append(1)
        for index, part in enumerate(of_epoch(self, order)):
            if len(epochs) == 3 and index == 1:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(compiled._Batches, "of_epoch", interrupted)
    network, params, X, y = problem()
    settings = {"optimizer": adam(0.05), "batch_size": 10, "shuffle": False}
    with pytest.warns(TrainingInterruptedWarning):
        trained, history = train(network, params, X, y, epochs=50, **settings)
    assert len(history) == 2
    engine = EagerEngine(
        network, adam(), Samples(placement(X=X), X, y), 10, (plain(params), adam().init(np, params))
    )
    engine.run([(0.05, None)] * 2)
    engine.step(Batch(X[:10], y[:10], None), 0.05)
    for ours, theirs in zip(flatten(trained), flatten(engine.state[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize(("batch_size", "rate"), [(None, 5.0), (6, 1.5)])
def test_divergence_at_the_same_epoch_as_eagerly(batch_size, rate, monkeypatch):
    network, params, X, y = problem("identity")
    settings = {"optimizer": gradient_descent(rate), "epochs": 500, "batch_size": batch_size, "seed": 0}
    caught = []
    for _ in range(2):
        with pytest.raises(DivergenceError) as error:
            train(network, params, X, y, **settings)
        caught.append(error.value)
        monkeypatch.setattr(compiled, "CompiledEngine", lambda *settings: EagerEngine(*settings[:5]))
    one, other = caught
    assert one.epoch == other.epoch > 2
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], rtol=1e-8)
    for ours, theirs in zip(flatten(one.params), flatten(other.params), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_assigning_a_state_restores_it():
    network, params, X, y = problem()
    engine = engine_of(network, adam(), params, X, y)
    assert type(engine) is CompiledEngine
    engine.run([(0.01, None)] * 2)
    kept = engine.copied_state()
    arrays = [leaf.copy() if is_array(leaf) else leaf for leaf in leaves(kept)]
    engine.run([(0.01, None)] * 3)
    after = engine.copied_state()
    for one, another in zip(leaves(kept), arrays):
        np.testing.assert_array_equal(one, another)
    engine.state = kept
    assert engine.state[1].steps == 6
    engine.run([(0.01, None)] * 3)
    for one, another in zip(leaves(engine.state), leaves(after)):
        np.testing.assert_array_equal(one, another)
    for one, another in zip(leaves(kept), arrays):
        np.testing.assert_array_equal(one, another)
    assert engine.is_finite()
    engine.state[0][0][0][0, 0] = np.nan
    assert not engine.is_finite()


# Functions of rows, computed in blocks.


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 16, 17])
def test_rows_in_blocks(n_rows, loss, monkeypatch):
    monkeypatch.setattr(rows, "MIN_ELEMENTS_TO_COMPILE", 10**9)
    network, params, X, _ = problem(["gelu"], loss, n_samples=n_rows)
    X = np.asfortranarray(X, dtype=["float64", "float32"][n_rows % 2])
    expected = network.predict(params, X), network.logits(params, X)
    monkeypatch.setattr(rows, "MIN_ELEMENTS_TO_COMPILE", 0)
    monkeypatch.setattr(rows, "MAX_BLOCK_ELEMENTS", 8 * 4)
    programs = []

    def noted(*arguments):
        programs.append(compile_function(*arguments))
        return programs[-1]

    monkeypatch.setattr(rows, "compile_function", noted)
    monkeypatch.setattr(rows, "_compile_row_function", rows._compile_row_function.__wrapped__)
    found = network.predict(params, X), network.logits(params, X)
    assert len(programs) == 2
    for ours, theirs in zip(found, expected):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_rows_of_a_function_that_cannot_be_recorded(monkeypatch):
    monkeypatch.setattr(rows, "MIN_ELEMENTS_TO_COMPILE", 0)
    network, params, X, _ = problem(activation_of(REFUSED["bool"]))
    np.testing.assert_allclose(network.predict(params, X), problem("relu")[0].predict(params, X), rtol=1e-12)


def peak_of(function):
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


def test_rows_in_blocks_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(rows, "MIN_ELEMENTS_TO_COMPILE", 0)
    monkeypatch.setattr(rows, "MAX_BLOCK_ELEMENTS", 2**12)
    network = Network((4, 64, 64, 1), loss="squared_error")
    X = np.ones((5_000, 4))
    params = network.init(0, like=X)
    network.predict(params, X)
    assert peak_of(lambda: network.predict(params, X)) < 5_000 * 64 * 8 // 10


# Memory and number of calls.


@pytest.mark.parametrize("batch_size", [2000, 500])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_steps_allocate_nothing(activation, batch_size):
    source = np.random.RandomState(0)
    X = source.standard_normal((2000, 30))
    network = Network((30, 40, 2), activation=activation, loss="squared_error", alpha=0.01)
    engine = engine_of(network, adam(), network.init(0, like=X), X, X[:, :2].copy(), batch_size)
    engine.run([(0.01, None)])
    # An array of a batch's activations takes 160 kB or more, what NumPy buffers while it casts 64 kB.
    assert peak_of(lambda: engine.run([(0.01, None)] * 5)) < 100_000


def wide_problem():
    """Return a network with a weight so large that its update is fused into the product."""
    network = Network((600, 300, 1), activation="relu", loss="binary_cross_entropy")
    X = np.random.RandomState(0).standard_normal((64, 600))
    return network, plain(network.init(0, like=X)), X, (X[:, :1] > 0.0) * 1.0


def test_large_gradients_take_no_memory():
    pytest.importorskip("scipy")
    network, params, X, y = wide_problem()
    engine = engine_of(network, gradient_descent(0.1), params, X, y, 64)
    # Activations and their delta take 154 kB each, the gradient takes 1,440 kB.
    assert sum(map(len, engine.memory.pool)) < 500_000
    engine.run([(0.1, None)])
    assert peak_of(lambda: engine.run([(0.1, None)] * 3)) < 100_000


def test_memory_of_activations_is_reused():
    network = Network((20, 200, 200, 1), activation="relu", loss="squared_error")
    X = np.random.RandomState(0).standard_normal((1000, 20))
    engine = engine_of(network, gradient_descent(0.1), network.init(0, like=X), X, X[:, :1].copy(), 1000)
    # Two layers of 1,600 kB, kept for the backward pass, room for a delta, and a gradient of 320 kB.
    assert sum(map(len, engine.memory.pool)) < 3 * 1_600_000 + 320_000 + 100_000


def test_memory_is_freed_without_a_garbage_collection():
    network, params, X, y = wide_problem()
    gc.disable()
    try:
        engine = engine_of(network, adam(), params, X, y, 64)
        engine.run([(0.1, None)])
        arrays = [weakref.ref(array) for array in (*engine.memory.groups, *engine.memory.pool)]
        del engine
        assert not any(array() is not None for array in arrays)
    finally:
        gc.enable()


def test_one_call_updates_all_parameters_of_a_small_network():
    network, params, X, y = problem("tanh")
    params = plain(params)
    batch = compiled._batch_specs(Samples(placement(X=X), X, y), 23)
    step = recordable.StepSpec.of(network, adam(), (params, adam().init(np, params)), batch)
    program = write_calls(step.trace())
    assert program.source.count("sqrt(") == 1
    assert program.source.count("copyto(") == 0
    # In large groups each array is updated by itself.
    with pytest.MonkeyPatch.context() as patch:
        set_limits(patch, "large")
        program = write_calls(step.trace())
    assert program.source.count("sqrt(") == 4


def test_a_numpy_scalar_of_the_arrays_dtype_is_accepted():
    def function(state, inputs, scalars):
        return [np.sqrt(2.0 / np.pi) * state[0]], []

    (array,) = state = [np.linspace(1.0, 2.0, 5)]
    expected = np.sqrt(2.0 / np.pi) * array
    program = compile_function(function, [state], [])
    program.bind([array], [np.empty(size, np.uint8) for size in program.pool_nbytes])()
    assert np.array_equal(array, expected)
    with pytest.raises(NotRecordableError):
        compile_function(function, [[array.astype("float32")]], [])
