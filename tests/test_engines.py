"""What engines promise the training, and that a step can be compiled."""

import numpy as np
import pytest
from conftest import need

from mlp_xp import Network, adam, gradient_descent, momentum, train
from mlp_xp.datasets import planar
from mlp_xp.engines import make_engine, make_step
from mlp_xp.parameters import flatten, plain
from mlp_xp.samples import Samples

OPTIMIZERS = {"gradient_descent": gradient_descent(0.1), "momentum": momentum(0.1), "adam": adam(0.01)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_compiled_step_gives_the_same_numbers(optimizer, request):
    jax = need("jax", request)
    optimizer = OPTIMIZERS[optimizer]
    data = planar()
    X, y = data.X, data.y[:, None].astype(float)
    network = Network((2, 5, 1), hidden="silu", loss="binary_cross_entropy", alpha=0.01)
    params = plain(network.init(0, like=X))
    expected, _ = train(network, params, X, y, optimizer=optimizer, epochs=20)

    compilations = []
    step = make_step(network, optimizer, jax.numpy)

    def traced(*arguments):
        compilations.append(1)
        return step(*arguments)

    compiled = jax.jit(traced)
    params, X, y = jax.tree.map(jax.numpy.asarray, (params, X, y))
    state = optimizer.init(jax.numpy, params)
    for _ in range(20):
        params, state, loss = compiled(params, state, X, y, None, optimizer.learning_rate)
    for ours, theirs in zip(flatten(params), flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert len(compilations) == 1


def test_an_engine_keeps_its_state_and_counts_epochs(library):
    data = planar()
    X, y = library.array(data.X), library.array(data.y[:, None].astype(float))
    network = Network((2, 3, 1), hidden="tanh", loss="binary_cross_entropy")
    params = plain(network.init(0, like=X))
    optimizer = adam(0.01)
    state = (params, optimizer.init(library.xp, params))
    order = np.random.RandomState(0).permutation(400)
    engine = make_engine(network, optimizer, Samples(library.place(), X, y), 150, state)
    engine.run([(0.01, order), (0.02, order[::-1].copy())])
    engine.run([(0.01, None)])
    assert len(engine.losses) == 3
    assert engine.state[1].steps == 9
    losses = [float(loss) for loss in engine.losses]
    assert losses[0] > losses[1] > losses[2]
