"""L-BFGS over the objective: blocks add up, every namespace agrees, what is trained is kept."""

import numpy as np
import pytest
from conftest import assert_close

import mlp_xp._arrays as arrays_module
from mlp_xp import DivergenceError, Network, TrainingInterruptedWarning, to_host
from mlp_xp._parameters import flatten, unflatten_like
from mlp_xp._samples import Samples
from mlp_xp._training.lbfgs import minimise
from mlp_xp.datasets import planar

optimize = pytest.importorskip("scipy.optimize")

DATA = planar()
X, Y = DATA.X[::4], DATA.y[::4, None].astype(float)
WEIGHT = np.random.RandomState(0).rand(100)
WEIGHT[40:60] = 0.0
NETWORK = Network((2, 4, 1), activation="tanh", loss="binary_cross_entropy", alpha=0.1)
START = NETWORK.init(1, like=X)
LIMITS = {"max_iter": 25, "max_fun": 1000, "tol": 1e-8}


def samples_in(library, dtype="float64", weighted=True):
    weight = library.array(WEIGHT, dtype) if weighted else None
    return Samples(library.place(dtype), library.array(X, dtype), library.array(Y, dtype), weight)


def params_in(library, dtype="float64"):
    return unflatten_like(START, [library.array(array, dtype) for array in flatten(START)])


def test_it_ends_where_scipys_minimiser_does_over_the_public_objective():
    def objective(flat):
        pieces = np.split(flat, np.cumsum([array.size for array in flatten(START)])[:-1])
        params = unflatten_like(START, [p.reshape(a.shape) for p, a in zip(pieces, flatten(START))])
        loss, gradients = NETWORK.loss_and_gradients(params, X, Y, WEIGHT)
        return loss, np.concatenate([array.ravel() for array in flatten(gradients)])

    start = np.concatenate([array.ravel() for array in flatten(START)])
    expected = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 25, "gtol": 1e-8}
    )
    found = minimise(NETWORK, START, Samples(arrays_module.placement(X=X), X, Y, WEIGHT), **LIMITS)
    np.testing.assert_allclose(
        np.concatenate([array.ravel() for array in flatten(found.params)]), expected.x, rtol=1e-7, atol=1e-9
    )
    assert found.loss == pytest.approx(expected.fun, rel=1e-12)
    assert len(found.history) == expected.nit == 25
    assert found.history[-1] == {"epoch": 25, "loss": pytest.approx(expected.fun, rel=1e-12)}
    assert "ITERATIONS" in found.problem.upper()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_namespace_ends_alike(library, dtype):
    found = minimise(NETWORK, params_in(library, dtype), samples_in(library, dtype), **LIMITS)
    host = minimise(NETWORK, START, Samples(arrays_module.placement(X=X), X, Y, WEIGHT), **LIMITS)
    assert found.loss < 0.9 * found.history[0]["loss"]
    like = library.array([1.0], dtype)
    for ours, theirs in zip(flatten(found.params), flatten(host.params), strict=True):
        # In float32 the paths part; the minimum they go to is the same.
        tolerance = 1e-6 if dtype == "float64" else 0.2
        assert_close(ours, to_host(theirs), like, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_rows_add_up(monkeypatch, library, weighted):
    few = dict(LIMITS, max_iter=8)
    whole = minimise(NETWORK, params_in(library), samples_in(library, weighted=weighted), **few)
    # Blocks of 5 rows: in some of them every row weighs nothing.
    monkeypatch.setattr(arrays_module, "ELEMENTS_PER_BLOCK", 20)
    blocks = minimise(NETWORK, params_in(library), samples_in(library, weighted=weighted), **few)
    assert blocks.loss == pytest.approx(whole.loss, rel=1e-9)
    for ours, theirs in zip(flatten(blocks.params), flatten(whole.params), strict=True):
        assert_close(ours, to_host(theirs), theirs, rtol=1e-6, atol=1e-8)


def host_samples():
    return Samples(arrays_module.placement(X=X), X, Y)


def test_a_callback_sees_each_iteration_and_can_stop():
    seen = []

    def callback(history, params):
        loss, _ = NETWORK.loss_and_gradients(params, X, Y)
        assert loss == pytest.approx(history[-1]["loss"], rel=1e-12)
        seen.append(len(history))
        return len(history) == 4

    found = minimise(NETWORK, START, host_samples(), callback=callback, **LIMITS)
    assert seen == [1, 2, 3, 4]
    assert found.problem == ""
    assert NETWORK.loss_and_gradients(found.params, X, Y)[0] == pytest.approx(found.history[-1]["loss"])


def test_ctrl_c_and_errors_keep_what_was_trained():
    def interrupt(history, params):
        if len(history) == 3:
            raise KeyboardInterrupt

    with pytest.warns(TrainingInterruptedWarning, match="after 3 iterations"):
        found = minimise(NETWORK, START, host_samples(), callback=interrupt, **LIMITS)
    assert NETWORK.loss_and_gradients(found.params, X, Y)[0] == pytest.approx(found.history[-1]["loss"])

    def fail(history, params=None):
        if len(history) == 3:
            raise error

    for error in (OSError("disk full"), StopIteration("enough")):
        for name in ("callback", "on_progress"):
            with pytest.raises(type(error)) as caught:
                minimise(NETWORK, START, host_samples(), **{name: fail}, **LIMITS)
            assert caught.value is error
            assert error.epoch == 4
            for ours, theirs in zip(flatten(error.params), flatten(found.params), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_loss_that_is_not_finite_is_an_error_that_keeps_the_start():
    network = Network((2, 1), loss="squared_error")
    params = network.init(0, like=X)
    samples = Samples(arrays_module.placement(X=X), X, np.full((100, 1), 1e200))
    with pytest.raises(
        DivergenceError, match="diverged in iteration 1: the loss is too large or NaN"
    ) as caught:
        minimise(network, params, samples, **LIMITS)
    np.testing.assert_array_equal(caught.value.params[0].weight, params[0].weight)
