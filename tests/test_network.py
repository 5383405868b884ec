"""Gradients against finite differences and autodiff; shapes, places and errors."""

import pickle
import re
from itertools import product

import numpy as np
import pytest
from conftest import assert_close, need
from test_activations import IN_TORCH
from test_losses import targets, torch_losses

import mlp_xp
from mlp_xp import Activation, Layer, Loss, Network, leaky_relu, to_host
from mlp_xp import _arrays as arrays_module
from mlp_xp._activations import ACTIVATIONS
from mlp_xp._losses import LOSSES
from mlp_xp._parameters import flatten, unflatten_like

SIZES = (4, 5, 3, 2)
N_SAMPLES = 12


def softsign_forward(xp, z):
    scale = 1.0 / (1.0 + xp.abs(z))
    return z * scale, scale


def softsign_backward(xp, delta, scale):
    return delta * scale * scale


SOFTSIGN = Activation(softsign_forward, softsign_backward)
HIDDEN = {
    **{name: name for name in ACTIVATIONS},
    "leaky_relu(0.3)": leaky_relu(0.3),
    "user's own": SOFTSIGN,
    "one each": ("tanh", "relu"),
}


def problem(activation, loss, alpha=0.0, sizes=SIZES, seed=0):
    """A network with parameters and data whose pre-activations stay away from kinks."""
    random = np.random.RandomState(seed)
    network = Network(sizes, activation=activation, loss=loss, alpha=alpha)
    X = random.standard_normal((N_SAMPLES, sizes[0]))
    params = network.init(seed, like=X, weight="glorot_uniform", bias="normal")
    y = targets(loss, (N_SAMPLES, sizes[-1]))
    return network, params, X, y, random.uniform(0.1, 3.0, N_SAMPLES)


def central_differences(function, params, step=1e-6):
    """The derivative by every single parameter."""
    gradients = []
    for array in flatten(params):
        gradient = np.empty_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = function(params)
            array[index] = kept - step
            below = function(params)
            array[index] = kept
            gradient[index] = (above - below) / (2 * step)
        gradients.append(gradient)
    return unflatten_like(params, gradients)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("activation", "loss", "weighted", "alpha"),
    list(product(HIDDEN, LOSSES, [False, True], [0.0, 0.7])),
)
def test_gradients_by_central_differences(activation, loss, weighted, alpha):
    network, params, X, y, weight = problem(HIDDEN[activation], loss, alpha)
    sample_weight = weight if weighted else None
    _, gradients = network.loss_and_gradients(params, X, y, sample_weight)
    expected = central_differences(
        lambda p: float(network.loss_and_gradients(p, X, y, sample_weight)[0]), params
    )
    ours = np.concatenate([g.ravel() for g in flatten(gradients)])
    theirs = np.concatenate([g.ravel() for g in flatten(expected)])
    # Relative to the whole gradient: a difference quotient knows no more of its small components.
    assert np.linalg.norm(ours - theirs) < 1e-6 * np.linalg.norm(theirs)
    assert np.max(np.abs(ours - theirs)) < 1e-6 * np.max(np.abs(theirs))


def torch_objective(network, activation, loss, layers, X, y, sample_weight):
    """The objective by PyTorch's own functions, from the definition."""
    import torch

    names = activation if isinstance(activation, tuple) else (activation,) * (len(layers) - 1)
    a = X
    for (weight, bias), name in zip(layers[:-1], names, strict=True):
        a = IN_TORCH[name](torch.nn.functional, torch.nn.functional.linear(a, weight.T, bias))
    logits = torch.nn.functional.linear(a, layers[-1][0].T, layers[-1][1])
    losses = torch_losses(loss, logits, y)
    w = torch.ones_like(losses) if sample_weight is None else sample_weight
    penalty = 0.5 * network.alpha * sum((weight**2).sum() for weight, _ in layers)
    return ((w * losses).sum() + penalty) / w.sum()


@pytest.mark.parametrize(
    ("activation", "loss", "weighted"),
    list(product([*ACTIVATIONS, ("tanh", "relu")], LOSSES, [False, True])),
)
def test_loss_and_gradients_by_torch_autodiff(activation, loss, weighted):
    torch = pytest.importorskip("torch")
    network, params, X, y, weight = problem(activation, loss, alpha=0.3)
    sample_weight = weight if weighted else None
    leaves = [torch.tensor(array, requires_grad=True) for array in flatten(params)]
    tensors = [None if part is None else torch.tensor(part) for part in (X, y, sample_weight)]
    expected = torch_objective(network, activation, loss, list(zip(leaves[::2], leaves[1::2])), *tensors)
    expected_gradients = torch.autograd.grad(expected, leaves)
    value, gradients = network.loss_and_gradients(params, X, y, sample_weight)
    np.testing.assert_allclose(float(value), float(expected.detach()), rtol=1e-12)
    for ours, theirs in zip(flatten(gradients), expected_gradients, strict=True):
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("activation", HIDDEN)
def test_gradients_by_jax_autodiff_of_the_forward_pass(activation, request):
    jax = need("jax", request)
    problems = {loss: problem(HIDDEN[activation], loss, alpha=0.3) for loss in LOSSES}
    networks = {loss: network for loss, (network, *_) in problems.items()}
    data = {loss: jax.tree.map(jax.numpy.asarray, tuple(rest)) for loss, (_, *rest) in problems.items()}

    @jax.jit  # one compilation for all losses
    def by_hand_and_by_jax(data):
        gradients = {}
        for loss, (params, *rest) in data.items():
            by_jax, by_hand = jax.grad(networks[loss].loss_and_gradients, has_aux=True)(params, *rest)
            gradients[loss] = by_hand, by_jax
        return gradients

    for by_hand, by_jax in by_hand_and_by_jax(data).values():
        for ours, theirs in zip(flatten(by_hand), flatten(by_jax), strict=True):
            scale = float(abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sizes", [(4, 2), (4, 1), (4, 6, 1), (4, 3, 3, 3, 2)])
def test_any_depth_by_torch_autodiff(sizes, loss):
    torch = pytest.importorskip("torch")
    if loss == "categorical_cross_entropy" and sizes[-1] == 1:
        sizes = (*sizes[:-1], 3)
    network, params, X, y, weight = problem("tanh", loss, alpha=0.1, sizes=sizes)
    leaves = [torch.tensor(array, requires_grad=True) for array in flatten(params)]
    expected = torch_objective(
        network, "tanh", loss, list(zip(leaves[::2], leaves[1::2])), *map(torch.tensor, (X, y, weight))
    )
    expected_gradients = torch.autograd.grad(expected, leaves)
    value, gradients = network.loss_and_gradients(params, X, y, weight)
    np.testing.assert_allclose(float(value), float(expected.detach()), rtol=1e-13)
    for ours, theirs in zip(flatten(gradients), expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-10, atol=1e-13)


def test_objective_is_scikit_learns():
    network_module = pytest.importorskip("sklearn.neural_network")
    random = np.random.RandomState(0)
    X, y = random.standard_normal((30, 4)), random.randint(3, size=30)
    weight = random.uniform(0.5, 2.0, 30)
    peer = network_module.MLPClassifier((6,), alpha=0.4, random_state=0, max_iter=2, solver="lbfgs")
    with pytest.warns(match="lbfgs failed to converge"):
        peer.fit(X, y, sample_weight=weight)
    network = Network((4, 6, 3), activation="relu", loss="categorical_cross_entropy", alpha=0.4)
    params = tuple(map(Layer, peer.coefs_, peer.intercepts_))
    loss, _ = network.loss_and_gradients(params, X, np.eye(3)[y], weight)
    assert float(loss) == pytest.approx(peer.loss_, rel=1e-12)
    np.testing.assert_allclose(network.predict(params, X), peer.predict_proba(X), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_in_every_namespace(loss, dtype, library):
    network, params, X, y, weight = problem(("tanh", "gelu"), loss, alpha=0.3)
    expected, expected_gradients = network.loss_and_gradients(params, X, y, weight)
    here = unflatten_like(params, [library.array(array, dtype) for array in flatten(params)])
    value, gradients = network.loss_and_gradients(here, *(library.array(a, dtype) for a in (X, y, weight)))
    like, rtol = here[0].weight, {"float32": 2e-5, "float64": 1e-12}[dtype]
    assert tuple(value.shape) == ()
    np.testing.assert_allclose(float(value), float(expected), rtol=rtol)
    assert isinstance(gradients[0], Layer)
    for ours, theirs in zip(flatten(gradients), flatten(expected_gradients), strict=True):
        assert_close(ours, theirs, like, rtol=rtol, atol=rtol)
    predictions = network.predict(here, library.array(X, dtype))
    assert_close(predictions, network.predict(params, X), like, rtol=rtol, atol=rtol)


def test_extreme_logits_leave_finite_gradients_in_float32(library):
    for name in LOSSES:
        network = Network((1, 2), loss=name)
        X = library.array([[1e4], [-1e4]], "float32")
        params = (Layer(library.array([[1.0, -1.0]], "float32"), library.array([0.0, 0.0], "float32")),)
        y = library.array([[1.0, 0.0], [1.0, 0.0]], "float32")
        loss, gradients = network.loss_and_gradients(params, X, y)
        assert np.isfinite(float(loss)), name
        assert all(np.isfinite(to_host(g)).all() for g in flatten(gradients)), name


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers_become_the_default_float(dtype, library):
    X = library.array([[1, 0], [0, 1]], dtype)
    network = Network((2, 2, 1), loss="squared_error")
    params = network.init(0, like=X)
    assert params[0].weight.dtype == library.xp.empty((0,)).dtype
    assert network.predict(params, X).dtype == params[0].weight.dtype


def test_data_are_cast_to_the_parameters_dtype(library):
    network, _, X, y, _ = problem("relu", "squared_error")
    params = network.init(0, like=library.array(X, "float32"))
    _, gradients = network.loss_and_gradients(params, library.array(X), library.array(y))
    assert all(array.dtype == library.xp.float32 for array in flatten(gradients))


def test_prediction_in_blocks_is_prediction_at_once(monkeypatch, library):
    network, params, X, _, _ = problem("relu", "squared_error")
    params = unflatten_like(params, map(library.array, flatten(params)))
    at_once = network.predict(params, library.array(X))
    monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", 5 * 5)
    blocks = list(arrays_module.row_blocks(N_SAMPLES, max(SIZES)))
    assert len(blocks) == 3
    assert_close(network.predict(params, library.array(X)), to_host(at_once), at_once, rtol=1e-14)


def test_a_loss_that_hands_out_its_targets_does_not_get_them_changed():
    own = Loss(
        link=lambda xp, logits: logits,
        evaluate=lambda xp, logits, y: (logits * y, y),
        decide=None,
        problem=lambda xp, y: "",
    )
    network = Network((4, 2), loss=own)
    X, y = np.ones((5, 4)), np.full((5, 2), 3.0)
    network.loss_and_gradients(network.init(0, like=X), X, y)
    assert (y == 3.0).all()


def test_a_batch_without_weight_counts_for_nothing():
    network, params, X, y, weight = problem("tanh", "squared_error", alpha=1.0)
    loss, gradients = network.loss_and_gradients(params, X, y, 0.0 * weight)
    assert float(loss) == 0.0
    assert not any(gradient.any() for gradient in flatten(gradients))


def test_network_is_frozen_hashable_and_picklable():
    parametrised = Network((3, 4, 2), activation=leaky_relu(0.2), loss="poisson")
    assert pickle.loads(pickle.dumps(parametrised)) == parametrised
    network = Network([3, 4, 2], activation=["tanh"], loss="poisson", alpha=0.1)
    same = Network((3, 4, 2), activation=("tanh",), loss="poisson", alpha=0.1)
    assert network == same
    assert hash(network) == hash(same)
    assert network != Network((3, 4, 2), activation=("relu",), loss="poisson", alpha=0.1)
    assert pickle.loads(pickle.dumps(network)) == network
    assert repr(network) == (
        "Network(layer_sizes=(3, 4, 2), activation=('tanh',), loss='poisson', alpha=0.1, "
        "matmul_precision='highest')"
    )
    with pytest.raises(AttributeError, match="cannot assign"):
        network.alpha = 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_sizes": (3,)}, "`layer_sizes` must have an input and an output size at least"),
        ({"layer_sizes": (3, 0, 1)}, r"`layer_sizes\[1\]` must be an integer >= 1, got 0"),
        ({"layer_sizes": (3, 2.5, 1)}, r"`layer_sizes\[1\]` must be an integer >= 1, got 2.5"),
        ({"layer_sizes": 3}, "`layer_sizes` must be a sequence of integers, got 3"),
        ({"layer_sizes": "31"}, "`layer_sizes` must be a sequence of integers"),
        ({"activation": "sigmoid"}, "`activation` must be one of .*'logistic'"),
        ({"activation": ("relu", "relu")}, "one for each of the 1 hidden layers, got 2"),
        ({"activation": (3,)}, "`activation` must be one of .*, got 3"),
        ({"loss": "mse"}, "`loss` must be one of .*'squared_error'"),
        ({"alpha": -1.0}, "`alpha` must be a finite number and >= 0, got -1.0"),
        ({"alpha": float("nan")}, "`alpha` must be a finite number"),
        ({"layer_sizes": (3, 1), "activation": "sigmoid"}, "`activation` must be one of"),
    ],
)
def test_bad_networks(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Network(**{"layer_sizes": (3, 4, 1), "loss": "squared_error", **arguments})


def changed(**parts):
    network, params, X, y, weight = problem("tanh", "squared_error")
    arguments = {"params": params, "X": X, "y": y, "sample_weight": weight, **parts}
    return network, arguments


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"X": np.ones((12, 3))}, r"`X` must have shape \(n_samples, 4\), got \(12, 3\)"),
        ({"X": np.ones(12)}, r"`X` must have shape \(n_samples, 4\), got \(12,\)"),
        ({"X": np.ones((0, 4))}, "`X` must have at least one row"),
        ({"X": [[1.0] * 4] * 12}, "`X` must be an array .* got builtins.list"),
        ({"X": np.ones((12, 4), dtype=complex)}, "`X` must hold real numbers, got dtype complex128"),
        ({"X": np.full((12, 4), "a")}, "`X` must hold real numbers"),
        ({"X": None}, "`X` must be an array .* got builtins.NoneType"),
        ({"y": None}, "`y` must be an array .* got builtins.NoneType"),
        ({"y": np.ones((12, 1))}, r"`y` must have shape .*\(12, 2\), got \(12, 1\)"),
        ({"y": np.ones(12)}, r"`y` must have shape .*\(12, 2\), got \(12,\)$"),
        ({"y": np.ones((11, 2))}, r"got \(11, 2\)"),
        ({"sample_weight": np.ones((12, 1))}, r"`sample_weight` must have shape .*\(12,\), got \(12, 1\)"),
        ({"params": ()}, "`params` must have 3 layers, got 0"),
        ({"params": [1, 2, 3]}, "`params` must be a tuple of 3 `Layer"),
    ],
)
def test_bad_data(parts, message):
    network, arguments = changed(**parts)
    with pytest.raises((TypeError, ValueError), match=message):
        network.loss_and_gradients(**arguments)


def test_a_column_is_asked_for_where_a_vector_came():
    network = Network((2, 1), loss="squared_error")
    X = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"got \(3,\) \(`y\[:, None\]` makes a column\)"):
        network.loss_and_gradients(network.init(0, like=X), X, np.ones(3))


# Transformations of other libraries.


@pytest.mark.parametrize("n_rows_per_block", [None, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_jax_transforms_predictions(loss, n_rows_per_block, request, monkeypatch):
    jax = need("jax", request)
    network, host, X, _, _ = problem("tanh", loss)
    if n_rows_per_block is not None:
        monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", n_rows_per_block)
    params, samples = jax.tree.map(jax.numpy.asarray, host), jax.numpy.asarray(X)
    expected = network.predict(host, X)

    def predict(params, samples):
        return network.predict(params, samples)

    def of_row(params, row):
        return network.predict(params, row[None])[0]

    found = [jax.jit(predict)(params, samples), jax.vmap(of_row, (None, 0))(params, samples)]
    for predictions in found:
        np.testing.assert_allclose(predictions, expected, rtol=1e-12)
    # Squares, because the sum of a softmax has the derivative 0.
    gradients = jax.jit(jax.grad(lambda params: (network.predict(params, samples) ** 2).sum()))(params)
    differences = central_differences(lambda params: float((network.predict(params, X) ** 2).sum()), host)
    for gradient, difference in zip(flatten(gradients), flatten(differences)):
        np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_rows_per_block", [None, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_torch_differentiates_predictions(loss, n_rows_per_block, request, monkeypatch):
    torch, jax = need("torch", request), need("jax", request)
    network, host, X, _, _ = problem("tanh", loss)
    if n_rows_per_block is not None:
        monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", n_rows_per_block)
    params = tuple(Layer(*(torch.tensor(array, requires_grad=True) for array in layer)) for layer in host)
    samples = torch.tensor(X, requires_grad=True)
    (network.predict(params, samples) ** 2).sum().backward()
    expected = jax.grad(lambda *arguments: (network.predict(*arguments) ** 2).sum(), (0, 1))(
        jax.tree.map(jax.numpy.asarray, host), jax.numpy.asarray(X)
    )
    np.testing.assert_allclose(samples.grad, expected[1], rtol=1e-10, atol=1e-14)
    for mine, theirs in zip(flatten(params), flatten(expected[0])):
        np.testing.assert_allclose(mine.grad, theirs, rtol=1e-10, atol=1e-14)
    by_row = torch.func.vmap(lambda row: network.predict(params, row[None])[0])(torch.tensor(X))
    np.testing.assert_allclose(by_row.detach(), network.predict(host, X), rtol=1e-12)


@pytest.mark.parametrize("labels", [[0, 1, 1], [0.0, 1.0, 1.0], [False, True, True], [[0], [1], [1]]])
def test_the_hint_for_classes_leads_to_targets_that_fit(library, labels):
    labels = library.array(labels, np.asarray(labels).dtype)
    network, X = Network((2, 2), loss="categorical_cross_entropy"), library.array(np.eye(3, 2), "float32")
    params = network.init(0, like=X)
    with pytest.raises(ValueError, match="encodes classes") as caught:
        network.loss_and_gradients(params, X, labels)
    call = re.search(r"`(mlp_xp\..*\))`", str(caught.value))[1]
    y = eval(call, {"mlp_xp": mlp_xp, "y": labels, "X": X})
    assert_close(y, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], X, rtol=0.0)
    network.loss_and_gradients(params, X, y)


def test_bad_parameters_name_the_layer():
    network, params, X, y, _ = problem("tanh", "squared_error")
    bad_shape = (params[0], params[1]._replace(bias=np.ones(7)), params[2])
    with pytest.raises(ValueError, match=r"`params\[1\].bias` must have shape \(3,\), got \(7,\)"):
        network.predict(bad_shape, X)
    bad_dtype = (params[0]._replace(bias=params[0].bias.astype("float32")), *params[1:])
    with pytest.raises(
        ValueError, match=r"`params\[0\].bias` must be float64 as the others are, got float32"
    ):
        network.loss_and_gradients(bad_dtype, X, y)


def test_mixed_namespaces_and_devices_name_both():
    strict = pytest.importorskip("array_api_strict")
    network, params, X, y, _ = problem("tanh", "squared_error")
    with pytest.raises(
        ValueError, match=r"`X` must live where `params` does: `params` is NumPy on cpu, `X` is"
    ):
        network.predict(params, strict.asarray(X))
    here, there = strict.Device("device1"), strict.Device("device2")
    params = unflatten_like(params, [strict.asarray(array, device=here) for array in flatten(params)])
    with pytest.raises(
        ValueError, match=r"array_api_strict on .*device1.*, `y` is array_api_strict on .*device2"
    ):
        network.loss_and_gradients(params, strict.asarray(X, device=here), strict.asarray(y, device=there))
