"""Losses, deltas and links against PyTorch, SciPy and scikit-learn, out to logits of 1e4."""

import re

import numpy as np
import pytest
from conftest import assert_close

from mlp_xp import to_host
from mlp_xp._losses import LOSSES, resolve_loss

EXTREME = np.array([-1e4, -100.0, -17.0, -1.0, 0.0, 1.0, 17.0, 100.0, 1e4])


def targets(name, shape, seed=0):
    random = np.random.RandomState(seed)
    if name == "binary_cross_entropy":
        return random.randint(2, size=shape).astype(float)
    if name == "categorical_cross_entropy":
        return np.eye(shape[1])[random.randint(shape[1], size=shape[0])]
    if name == "poisson":
        return random.poisson(2.0, shape).astype(float)
    return random.standard_normal(shape)


def torch_losses(name, logits, y):
    """Per-sample losses by PyTorch's own functions."""
    import torch
    from torch.nn import functional

    if name == "binary_cross_entropy":
        return functional.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1)
    if name == "categorical_cross_entropy":
        return functional.cross_entropy(logits, y, reduction="none")
    if name == "squared_error":
        return 0.5 * functional.mse_loss(logits, y, reduction="none").mean(1)
    loss = functional.poisson_nll_loss(logits, y, log_input=True, full=False, reduction="none")
    return (loss + torch.special.xlogy(y, y) - y).sum(1)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_deltas_in_every_namespace(name, library):
    torch = pytest.importorskip("torch")
    logits = 3.0 * np.random.RandomState(1).standard_normal((20, 4))
    y = targets(name, logits.shape)
    z = torch.tensor(logits, requires_grad=True)
    losses = torch_losses(name, z, torch.tensor(y))
    (delta,) = torch.autograd.grad(losses.sum(), z)

    ours, our_delta = LOSSES[name].evaluate(library.xp, library.array(logits), library.array(y))
    per_sample = library.xp.sum(ours, axis=1)
    assert_close(per_sample, losses.detach().numpy(), library.array(logits), rtol=1e-12, atol=1e-14)
    assert_close(our_delta, delta.numpy(), library.array(logits), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_cross_entropy_of_extreme_logits(dtype, library):
    special = pytest.importorskip("scipy.special")
    logits = np.repeat(EXTREME[:, None], 3, axis=1)
    y = np.tile([0.0, 1.0, 0.25], (len(EXTREME), 1))
    losses, delta = LOSSES["binary_cross_entropy"].evaluate(
        library.xp, library.array(logits, dtype), library.array(y, dtype)
    )
    # -log(sigmoid) without cancellation, from SciPy in float64
    expected = -(y * special.log_expit(logits) + (1 - y) * special.log_expit(-logits))
    eps = np.finfo(dtype).eps
    like = library.array(logits, dtype)
    assert_close(losses, expected, like, rtol=8 * eps, atol=np.finfo(dtype).tiny)
    assert_close(delta, special.expit(logits) - y, like, rtol=0, atol=2 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_categorical_cross_entropy_of_extreme_logits(dtype, library):
    special = pytest.importorskip("scipy.special")
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [5.0, 0, -9]])
    y = np.eye(3)[[1, 0, 2, 0, 2]]
    losses, delta = LOSSES["categorical_cross_entropy"].evaluate(
        library.xp, library.array(logits, dtype), library.array(y, dtype)
    )
    like = library.array(logits, dtype)
    eps = np.finfo(dtype).eps
    expected = -np.sum(y * special.log_softmax(logits, axis=1), axis=1)
    assert_close(library.xp.sum(losses, axis=1), expected, like, rtol=4 * eps, atol=4 * eps)
    assert_close(delta, special.softmax(logits, axis=1) - y, like, rtol=0, atol=4 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_poisson_stays_finite_and_is_its_deltas_integral(dtype, library):
    loss = LOSSES["poisson"]
    logits, y = library.array(EXTREME[:, None], dtype), library.array(np.full((9, 1), 3.0), dtype)
    losses, delta = map(to_host, loss.evaluate(library.xp, logits, y))
    assert np.isfinite(losses).all()
    assert np.isfinite(delta).all()
    moderate = EXTREME < 50.0
    rate = np.exp(EXTREME[moderate])
    deviance = rate - 3.0 * EXTREME[moderate] + 3.0 * np.log(3.0) - 3.0
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(losses[moderate, 0], deviance, rtol=8 * eps, atol=8 * eps)
    # Beyond the cap the loss goes on as a straight line: its delta is its slope.
    far = library.array([[2000.0], [3000.0], [4000.0]], dtype)
    three = library.array(np.full((3, 1), 3.0), dtype)
    losses, delta = map(to_host, loss.evaluate(library.xp, far, three))
    np.testing.assert_allclose(np.diff(losses[:, 0]) / 1000.0, delta[:2, 0], rtol=1e-5)


def test_squared_error_of_extreme_logits():
    losses, delta = LOSSES["squared_error"].evaluate(
        np, np.array([[1e4, -1e4]], dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
    )
    assert losses.tolist() == [[2.5e7, 2.5e7]]
    assert delta.tolist() == [[5000.0, -5000.0]]


def test_links(library):
    special = pytest.importorskip("scipy.special")
    logits = np.array([[-1e4, -300.0, -40.0], [-1.0, 0.0, 2.0], [3.0, 40.0, 1e4]])
    like = library.array(logits)
    expected = {
        "binary_cross_entropy": special.expit(logits),
        "categorical_cross_entropy": special.softmax(logits, axis=1),
        "squared_error": logits,
    }
    for name, predictions in expected.items():
        # Small probabilities keep their digits: a relative tolerance, and nothing but it.
        assert_close(LOSSES[name].link(library.xp, like), predictions, like, rtol=2e-13)
    rates = LOSSES["poisson"].link(library.xp, library.array(logits[:2]))
    assert_close(rates, np.exp(logits[:2]), like, rtol=1e-14)


def test_decisions(library):
    probabilities = library.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    binary = LOSSES["binary_cross_entropy"].decide(library.xp, probabilities)
    assert to_host(binary).tolist() == [[False, False, False], [True, False, False]]
    categorical = LOSSES["categorical_cross_entropy"].decide(library.xp, probabilities)
    assert to_host(categorical).tolist() == [[False, True, False], [True, False, False]]
    assert LOSSES["squared_error"].decide is None
    assert LOSSES["poisson"].decide is None


@pytest.mark.parametrize(
    ("name", "y", "problem"),
    [
        ("binary_cross_entropy", [[0.0], [2.0]], "between 0 and 1, got values from 0 to 2"),
        ("binary_cross_entropy", [[-1.0], [1.0]], "between 0 and 1, got values from -1 to 1"),
        ("binary_cross_entropy", [[0.0], [0.5]], ""),
        ("categorical_cross_entropy", [[1.0], [1.0]], "at least 2; use 'binary_cross_entropy'"),
        ("categorical_cross_entropy", [[1.0, 1.0], [1.0, 0.0]], "sum to 1 .* got sums values from 1 to 2"),
        ("categorical_cross_entropy", [[2.0, -1.0], [1.0, 0.0]], "probabilities of the classes"),
        ("categorical_cross_entropy", [[0.3, 0.7], [1.0, 0.0]], ""),
        ("poisson", [[0.0], [-2.0]], "be >= 0, got values from -2 to 0"),
        ("poisson", [[0.0], [7.0]], ""),
        ("squared_error", [[-5.0], [7.0]], ""),
    ],
)
def test_targets_that_do_not_fit(name, y, problem, library):
    found = LOSSES[name].problem(library.xp, library.array(y))
    assert bool(found) == bool(problem)
    assert not problem or re.search(problem, found)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"`loss` must be one of .*'poisson'.*got 'hinge'"):
        resolve_loss("hinge")
