"""Learning-rate schedules against PyTorch's and scikit-learn's own."""

import re

import numpy as np
import pytest
from conftest import need

from mlp_xp import adam, cosine, gradient_descent, inverse_scaling, momentum, step_decay
from mlp_xp._schedules import rates


def torch_rates(torch, make_scheduler, learning_rate, n_epochs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    scheduler = make_scheduler(optimizer)
    found = []
    for _ in range(n_epochs):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("every", "factor"), [(1, 0.9), (3, 0.5), (7, 0.1), (4, 1.0), (5, 1.5)])
def test_step_decay_against_pytorch(every, factor, request):
    torch = need("torch", request)
    expected = torch_rates(
        torch, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, every, factor), 0.8, 30
    )
    ours = list(rates(step_decay(0.8, every, factor), 30))
    np.testing.assert_allclose(ours, expected, rtol=1e-13)


def test_step_decay_falls_to_a_tenth_by_default(request):
    torch = need("torch", request)
    expected = torch_rates(torch, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 4), 0.8, 12)
    np.testing.assert_allclose(list(rates(step_decay(0.8, every=4), 12)), expected, rtol=1e-13)


@pytest.mark.parametrize(("epochs", "final"), [(1, 0.0), (10, 0.0), (25, 0.01), (7, 0.5)])
def test_cosine_against_pytorch(epochs, final, request):
    torch = need("torch", request)
    # PyTorch's goes up again after its end.
    expected = torch_rates(
        torch,
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=final),
        0.3,
        epochs + 1,
    )
    schedule = cosine(0.3, epochs, final)
    np.testing.assert_allclose(list(rates(schedule, epochs + 1)), expected, rtol=1e-10, atol=1e-16)
    assert schedule(0) == pytest.approx(0.3, rel=1e-15)
    assert [schedule(epochs + later) for later in (0, 1, 1000)] == pytest.approx([final] * 3, abs=1e-16)


@pytest.mark.parametrize("power_t", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("n_samples", [1, 150])
def test_inverse_scaling_against_scikit_learn(power_t, n_samples):
    optimizers = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    theirs = optimizers.SGDOptimizer(
        [np.zeros(1)], learning_rate_init=0.2, lr_schedule="invscaling", power_t=power_t
    )
    expected = []
    for epoch in range(20):
        expected.append(theirs.learning_rate)
        theirs.iteration_ends((epoch + 1) * n_samples)
    ours = list(rates(inverse_scaling(0.2, power_t, n_samples), 20))
    np.testing.assert_allclose(ours, expected, rtol=1e-14)


def test_inverse_scaling_falls_with_the_root_of_the_epochs_by_default():
    schedule = inverse_scaling(0.6)
    assert [schedule(epoch) for epoch in (0, 3, 8, 99)] == pytest.approx([0.6, 0.3, 0.2, 0.06], rel=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        gradient_descent,
        momentum,
        adam,
        inverse_scaling,
        lambda rate: step_decay(rate, every=2),
        lambda rate: cosine(rate, epochs=2),
    ],
)
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (0.0, ValueError),
        (-0.1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("fast", TypeError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([0.1], TypeError),
    ],
)
def test_bad_learning_rates(make, bad, error):
    with pytest.raises(error, match=r"^`learning_rate` must be a finite number and > 0, got "):
        make(bad)


def test_an_integer_beyond_all_floats_is_a_bad_learning_rate():
    with pytest.raises(
        (TypeError, ValueError), match=r"^`learning_rate` must be a finite number and > 0, got "
    ):
        gradient_descent(10**400)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: inverse_scaling(0.1, power_t=-0.5), "power_t"),
        (lambda: inverse_scaling(0.1, power_t=float("nan")), "power_t"),
        (lambda: inverse_scaling(0.1, power_t="half"), "power_t"),
        (lambda: inverse_scaling(0.1, n_samples=0), "n_samples"),
        (lambda: inverse_scaling(0.1, n_samples=1.5), "n_samples"),
        (lambda: step_decay(0.1, every=0), "every"),
        (lambda: step_decay(0.1, every=2.0), "every"),
        (lambda: step_decay(0.1, every=True), "every"),
        (lambda: step_decay(0.1, every=1, factor=0.0), "factor"),
        (lambda: step_decay(0.1, every=1, factor=float("inf")), "factor"),
        (lambda: cosine(0.1, epochs=0), "epochs"),
        (lambda: cosine(0.1, epochs="ten"), "epochs"),
        (lambda: cosine(0.1, epochs=10, final=-0.01), "final"),
        (lambda: cosine(0.1, epochs=10, final=None), "final"),
    ],
)
def test_bad_arguments_are_named(make, argument):
    with pytest.raises((TypeError, ValueError), match=rf"^`{argument}` must be .*, got "):
        make()


def test_rates_of_a_number_and_of_a_function():
    assert list(rates(0.25, 3)) == [0.25, 0.25, 0.25]
    asked = []

    def schedule(epoch):
        asked.append(epoch)
        return np.float32(1.0 / (1 + epoch))

    each = rates(schedule, 4)
    assert next(each) == 1.0
    assert asked == [0]
    found = [1.0, *each]
    assert asked == [0, 1, 2, 3]
    np.testing.assert_allclose(found, [1.0, 0.5, 1 / 3, 0.25], rtol=1e-7)
    # A NumPy number would turn float32 parameters into float64 ones.
    assert {type(rate) for rate in found} == {float}


def test_a_rate_may_fall_to_zero_but_not_below():
    assert list(rates(lambda epoch: 1 - epoch, 2)) == [1.0, 0.0]
    with pytest.raises(
        ValueError, match=r"^`learning_rate\(2\)` must be a finite number and >= 0, got -1\.0$"
    ):
        list(rates(lambda epoch: 1 - epoch, 3))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([0.1], TypeError),
        (1j, TypeError),
    ],
)
def test_what_a_schedule_returns_is_checked(bad, error):
    each = rates(lambda epoch: bad if epoch == 1 else 0.1, 3)
    assert next(each) == 0.1
    message = "`learning_rate(1)` must be a finite number and >= 0, got "
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        next(each)
