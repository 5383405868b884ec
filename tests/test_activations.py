"""Every activation, forward and backward, against PyTorch and JAX."""

import pickle
import re

import numpy as np
import pytest
from conftest import assert_close, need

from mlp_xp import Activation, Network, elu, leaky_relu
from mlp_xp._activations import ACTIVATIONS, resolve_activation

Z = np.concatenate([np.linspace(-6.0, 6.0, 41), [-1e4, -50.0, 50.0, 1e4, 1e-30]]).reshape(2, -1)
DELTA = np.linspace(-2.0, 3.0, Z.size).reshape(Z.shape)

IN_TORCH = {
    "identity": lambda F, z: z,
    "logistic": lambda F, z: F.sigmoid(z),
    "tanh": lambda F, z: F.tanh(z),
    "relu": lambda F, z: F.relu(z),
    "leaky_relu": lambda F, z: F.leaky_relu(z, 0.01),
    "elu": lambda F, z: F.elu(z),
    "silu": lambda F, z: F.silu(z),
    "gelu": lambda F, z: F.gelu(z, approximate="tanh"),
}
IN_JAX = {
    "identity": lambda nn, z: z,
    "logistic": lambda nn, z: nn.sigmoid(z),
    "tanh": lambda nn, z: nn.tanh(z),
    "relu": lambda nn, z: nn.relu(z),
    "leaky_relu": lambda nn, z: nn.leaky_relu(z, 0.01),
    "elu": lambda nn, z: nn.elu(z),
    "silu": lambda nn, z: nn.silu(z),
    "gelu": lambda nn, z: nn.gelu(z, approximate=True),
}


@pytest.fixture(scope="module")
def expected():
    """Values and derivatives by PyTorch in float64, of every activation."""
    torch = pytest.importorskip("torch")
    results = {}
    for name, function in IN_TORCH.items():
        z = torch.tensor(Z, requires_grad=True)
        a = function(torch.nn.functional, z)
        (dz,) = torch.autograd.grad(a, z, torch.tensor(DELTA))
        results[name] = a.detach().numpy(), dz.numpy()
    return results


def test_references_cover_the_table():
    assert set(IN_TORCH) == set(IN_JAX) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_and_backward_in_every_namespace(name, dtype, library, expected):
    z, delta = library.array(Z, dtype), library.array(DELTA, dtype)
    a, kept = ACTIVATIONS[name].forward(library.xp, z)
    dz = ACTIVATIONS[name].backward(library.xp, delta, kept)
    tolerance = {"float32": 2e-6, "float64": 1e-14}[dtype]
    assert_close(a, expected[name][0], z, rtol=tolerance, atol=tolerance)
    assert_close(dz, expected[name][1], z, rtol=tolerance, atol=3 * tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_and_backward_against_jax(name, request):
    jax = need("jax", request)
    a, pullback = jax.vjp(lambda z: IN_JAX[name](jax.nn, z), jax.numpy.asarray(Z))
    (dz,) = pullback(jax.numpy.asarray(DELTA))
    ours, kept = ACTIVATIONS[name].forward(np, Z)
    np.testing.assert_allclose(ours, a, rtol=1e-13, atol=1e-14)
    backward = ACTIVATIONS[name].backward(np, DELTA, kept)
    away_from_kinks = (Z != 0.0) | (name not in ("relu", "leaky_relu"))
    np.testing.assert_allclose(backward[away_from_kinks], dz[away_from_kinks], rtol=1e-13, atol=3e-14)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.5, -0.3])
def test_leaky_relu_slope(slope):
    torch = pytest.importorskip("torch")
    z = torch.tensor(Z, requires_grad=True)
    a = torch.nn.functional.leaky_relu(z, slope)
    (dz,) = torch.autograd.grad(a, z, torch.tensor(DELTA))
    ours, kept = leaky_relu(slope).forward(np, Z)
    np.testing.assert_array_equal(ours, a.detach().numpy())
    np.testing.assert_array_equal(leaky_relu(slope).backward(np, DELTA, kept), dz.numpy())


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_elu_alpha(alpha):
    torch = pytest.importorskip("torch")
    z = torch.tensor(Z, requires_grad=True)
    a = torch.nn.functional.elu(z, alpha)
    (dz,) = torch.autograd.grad(a, z, torch.tensor(DELTA))
    ours, kept = elu(alpha).forward(np, Z)
    np.testing.assert_allclose(ours, a.detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(elu(alpha).backward(np, DELTA, kept), dz.numpy(), rtol=1e-13, atol=1e-14)


def test_parametrised_activations_are_equal_by_their_parameter():
    assert leaky_relu(0.3) == leaky_relu(0.3) == pickle.loads(pickle.dumps(leaky_relu(0.3)))
    assert hash(leaky_relu(0.3)) == hash(leaky_relu(0.3))
    assert leaky_relu(0.3) != leaky_relu(0.4)
    assert leaky_relu(0.3) != elu(0.3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_can_be_pickled(name):
    copy = pickle.loads(pickle.dumps(ACTIVATIONS[name]))
    np.testing.assert_array_equal(copy.forward(np, Z)[0], ACTIVATIONS[name].forward(np, Z)[0])


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"`activation` must be one of .*'elu'.*'tanh'.*got 'sigmoid'"):
        resolve_activation("sigmoid")
    own = Activation(lambda xp, z: (z, None), lambda xp, delta, kept: delta)
    assert resolve_activation(own) is own


@pytest.mark.parametrize("function", [leaky_relu, elu])
@pytest.mark.parametrize("several", [False, True])
def test_functions_that_are_not_called_are_told_so(function, several):
    expected = rf"^`activation` must be what `{function.__name__}\(\)` returns, got the function "
    given = [function] if several else function
    with pytest.raises(TypeError, match=expected):
        Network((2, 3, 1), activation=given, loss="squared_error")
    estimators = pytest.importorskip("mlp_xp.estimators")
    pytest.importorskip("sklearn")
    with pytest.raises(TypeError, match=expected):
        estimators.MLPRegressor(hidden_layer_sizes=(3,), activation=given).fit([[0.0], [1.0]], [0.0, 1.0])


@pytest.mark.parametrize("bad", [None, 3, 0.5])
def test_what_is_no_activation_is_told_so(bad):
    with pytest.raises(ValueError, match=r"^`activation` must be one of .*, got " + re.escape(repr(bad))):
        Network((2, 3, 1), activation=bad, loss="squared_error")


@pytest.mark.parametrize(("make", "name"), [(leaky_relu, "slope"), (elu, "alpha")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "steep"])
def test_bad_parameters(make, name, bad):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be a finite number"):
        make(bad)
