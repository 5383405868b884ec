"""Layers flattened, put together again, copied and looked through."""

import numpy as np
import pytest
from conftest import assert_close, need

from mlp_xp import Layer, to_host
from mlp_xp._optimizers import AdamState
from mlp_xp._parameters import all_finite, copy_tree, flatten, unflatten_like

VALUES = [
    ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [7.0, 8.0, 9.0]),
    ([[10.0], [11.0], [12.0]], [13.0]),
]


def layers(library, dtype="float64"):
    return tuple(Layer(library.array(w, dtype), library.array(b, dtype)) for w, b in VALUES)


def pairs(library, dtype="float64"):
    return tuple((library.array(w, dtype), library.array(b, dtype)) for w, b in VALUES)


@pytest.mark.parametrize(("make", "kind"), [(layers, Layer), (pairs, tuple)])
def test_unflattening_puts_together_what_flattening_took_apart(make, kind, library):
    params = make(library)
    arrays = flatten(params)
    assert [tuple(array.shape) for array in arrays] == [(2, 3), (3,), (3, 1), (1,)]
    again = unflatten_like(params, iter(arrays))
    assert type(again) is tuple
    assert [type(layer) for layer in again] == [kind, kind]
    for (weight, bias), (weight_again, bias_again) in zip(params, again, strict=True):
        assert weight_again is weight
        assert bias_again is bias


def test_unflattening_takes_the_arrays_given():
    params = (Layer(np.zeros((1, 2)), np.zeros(2)), Layer(np.zeros((2, 1)), np.zeros(1)))
    again = unflatten_like(params, ["w1", "b1", "w2", "b2"])
    assert again == (Layer("w1", "b1"), Layer("w2", "b2"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_copies_are_copies(library, dtype):
    params = layers(library, dtype)
    copy = copy_tree(library.xp, params)
    assert [type(layer) for layer in copy] == [Layer, Layer]
    for original, copied in zip(flatten(params), flatten(copy), strict=True):
        before = to_host(original).copy()
        assert copied is not original
        assert_close(copied, before, original, rtol=0)
        copied += 1.0
        np.testing.assert_array_equal(to_host(copied), before + 1.0)
        np.testing.assert_array_equal(to_host(original), before)


def test_changing_the_original_leaves_the_copy(library):
    params = copy_tree(library.xp, layers(library))
    copy = copy_tree(library.xp, params)
    for weight, bias in params:
        weight *= 0.0
        bias *= 0.0
    for (weight, bias), (expected_weight, expected_bias) in zip(copy, VALUES, strict=True):
        np.testing.assert_array_equal(to_host(weight), expected_weight)
        np.testing.assert_array_equal(to_host(bias), expected_bias)


def test_an_optimizer_state_keeps_its_kind_and_its_numbers(library):
    copy = copy_tree(library.xp, (pairs(library), AdamState(3, layers(library), pairs(library)), (), 0.5))
    params, state, empty, number = copy
    assert type(state) is AdamState
    assert (type(state.steps), state.steps) == (int, 3)
    assert (type(number), number) == (float, 0.5)
    assert empty == ()
    assert [type(tree[0]) for tree in (params, state.mean, state.square)] == [tuple, Layer, tuple]
    assert_close(state.square[1][0], VALUES[1][0], library.array([1.0]), rtol=0)


def test_a_copy_of_tensors_that_want_gradients_stands_outside_autograd(request):
    torch = need("torch", request)
    xp = need("array_api_compat.torch", request)
    params = (Layer(torch.nn.Parameter(torch.ones(2, 1)), torch.nn.Parameter(torch.zeros(1))),)
    copy = copy_tree(xp, params)
    assert [array.requires_grad for array in flatten(copy)] == [False, False]
    copy[0].weight.add_(1.0)
    assert params[0].weight.tolist() == [[1.0], [1.0]]


PLACES = [(layer, part, index) for layer in (0, 1) for part in (0, 1) for index in (0, -1)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", PLACES)
def test_all_finite_sees_every_place(library, value, place):
    layer, part, index = place
    values = [tuple(np.array(array) for array in pair) for pair in VALUES]
    assert all_finite(library.xp, [tuple(map(library.array, pair)) for pair in values]) is True
    values[layer][part].flat[index] = value
    assert all_finite(library.xp, [tuple(map(library.array, pair)) for pair in values]) is False


def test_large_numbers_are_finite(library):
    largest = float(np.finfo(np.float32).max)
    assert all_finite(library.xp, ((library.array([[largest]], "float32"), library.array([-largest])),))
