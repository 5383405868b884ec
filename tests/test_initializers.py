"""Starting parameters: their distributions against PyTorch's, their draws against scikit-learn's."""

import pickle

import numpy as np
import pytest
from conftest import assert_close, need

from mlp_xp import Network, glorot_uniform, he_normal, normal, to_host, zeros
from mlp_xp._initializers import INITIALIZERS
from mlp_xp._parameters import flatten
from mlp_xp._validation import random_source

FAN_IN, FAN_OUT = 400, 25


def draw(initializer, seed=0):
    network = Network((FAN_IN, FAN_OUT), loss="squared_error")
    return network.init(seed, like=np.ones((1, 1)), weight=initializer)[0].weight


def same_distribution(ours, theirs):
    return pytest.importorskip("scipy.stats").ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 0.01


@pytest.fixture
def torch_draw(request):
    """Draws of PyTorch's initializers, whose weights are (fan_out, fan_in)."""
    torch = need("torch", request)

    def of(name, **options):
        tensor = torch.empty(FAN_OUT, FAN_IN, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        return getattr(torch.nn.init, name)(tensor, generator=generator, **options).numpy()

    return of


def test_glorot_uniform_is_pytorchs_xavier(torch_draw):
    ours, theirs = draw("glorot_uniform"), torch_draw("xavier_uniform_")
    assert same_distribution(ours, theirs)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=1e-3)


def test_he_normal_is_pytorchs_kaiming(torch_draw):
    ours, theirs = draw("he_normal"), torch_draw("kaiming_normal_", nonlinearity="relu")
    assert same_distribution(ours, theirs)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.03)


@pytest.mark.parametrize(("initializer", "scale"), [("normal", 0.01), (normal(), 0.01), (normal(2.5), 2.5)])
def test_normal_is_pytorchs_normal(initializer, scale, torch_draw):
    ours, theirs = draw(initializer), torch_draw("normal_", std=scale)
    assert same_distribution(ours, theirs)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.03)


@pytest.mark.parametrize("initializer", ["zeros", normal(0.0)])
def test_zeros(initializer):
    np.testing.assert_array_equal(draw(initializer), np.zeros((FAN_IN, FAN_OUT)), strict=True)


@pytest.mark.parametrize("name", ["glorot_uniform", "he_normal", "normal"])
def test_draws_by_a_generator_have_the_same_distribution(name):
    by_state, by_generator = draw(name, 0), draw(name, np.random.default_rng(0))
    assert not np.array_equal(by_state, by_generator)
    assert same_distribution(by_state, by_generator)


def test_shapes_fans_and_order_of_the_draws():
    asked = []

    def record(random, shape, fan_in, fan_out):
        asked.append((shape, fan_in, fan_out))
        return np.full(shape, float(len(asked)))

    network = Network((3, 5, 2), loss="squared_error")
    params = network.init(0, like=np.ones((1, 3)), weight=record, bias=record)
    assert asked == [((3, 5), 3, 5), ((5,), 3, 5), ((5, 2), 5, 2), ((2,), 5, 2)]
    assert [array.flat[0] for array in flatten(params)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [(), (6,), (5, 3)])
@pytest.mark.parametrize(
    ("seed", "activation", "initializer"),
    [(0, "relu", "glorot_uniform"), (7, "tanh", glorot_uniform()), (3, "logistic", glorot_uniform(2.0))],
)
def test_glorot_uniform_draws_scikit_learns_own_numbers(hidden, seed, activation, initializer, dtype):
    neural_network = pytest.importorskip("sklearn.neural_network")
    random = np.random.RandomState(1)
    X, y = random.standard_normal((10, 4)).astype(dtype), random.standard_normal((10, 2)).astype(dtype)
    theirs = neural_network.MLPRegressor(
        hidden_layer_sizes=hidden,
        activation=activation,
        solver="sgd",
        learning_rate_init=1e-300,
        random_state=seed,
    ).partial_fit(X, y)
    network = Network((4, *hidden, 2), loss="squared_error")
    params = network.init(seed, like=X, weight=initializer, bias=initializer)
    for layer, coefs, intercepts in zip(params, theirs.coefs_, theirs.intercepts_, strict=True):
        np.testing.assert_array_equal(layer.weight, coefs, strict=True)
        np.testing.assert_array_equal(layer.bias, intercepts, strict=True)


NETWORK = Network((3, 4, 2), activation="tanh", loss="squared_error")
BOTH = {"weight": "glorot_uniform", "bias": "he_normal"}


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
def test_a_generator_is_drawn_from_and_moves_on(make):
    like, random = np.ones((1, 3)), make(5)
    first, second = (flatten(NETWORK.init(random, like=like, **BOTH)) for _ in range(2))
    again = flatten(NETWORK.init(make(5), like=like, **BOTH))
    for one, other, once_more in zip(first, second, again, strict=True):
        np.testing.assert_array_equal(one, once_more, strict=True)
        assert not np.any(one == other)


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, np.int64(5)])
def test_an_integer_seeds_numpys_random_state(seed):
    like = np.ones((1, 3))
    ours = NETWORK.init(seed, like=like, **BOTH)
    by_state = NETWORK.init(np.random.RandomState(seed), like=like, **BOTH)
    for one, other in zip(flatten(ours), flatten(by_state), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_without_a_seed_every_network_is_another():
    first, second = (flatten(NETWORK.init(like=np.ones((1, 3)), **BOTH)) for _ in range(2))
    assert not any(np.any(one == other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_namespace_starts_from_the_same_numbers(library, name, dtype):
    expected = NETWORK.init(3, like=np.ones((1, 3)), weight=name, bias=name)
    like = library.array([[1.0, 2.0, 3.0]], dtype)
    params = NETWORK.init(3, like=like, weight=name, bias=name)
    for ours, host in zip(flatten(params), flatten(expected), strict=True):
        assert_close(ours, host.astype(dtype), like, rtol=0)


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_parameters_for_integers_have_the_default_float(library, dtype):
    info = library.xp.__array_namespace_info__()
    default = info.default_dtypes(device=library.device)["real floating"]
    params = NETWORK.init(3, like=library.array([[1, 0, 1]], dtype), **BOTH)
    expected = NETWORK.init(3, like=np.ones((1, 3)), **BOTH)
    for ours, host in zip(flatten(params), flatten(expected), strict=True):
        assert ours.dtype == default
        np.testing.assert_allclose(to_host(ours), host, rtol=1e-7)


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        (-1, ValueError),
        (2**32, ValueError),
        (1.0, TypeError),
        (1.5, TypeError),
        ("zero", TypeError),
        (True, TypeError),
        ([1, 2], TypeError),
        (np.random, TypeError),
    ],
)
def test_bad_seeds(seed, error):
    with pytest.raises(error, match=r"^`seed` must be an integer (>= 0|< 2\*\*32), got "):
        NETWORK.init(seed, like=np.ones((1, 3)))


@pytest.mark.parametrize("argument", ["weight", "bias"])
@pytest.mark.parametrize("bad", ["uniform", "Zeros", None, 0.1])
def test_unknown_names_list_the_valid_ones(argument, bad):
    names = r"\['glorot_uniform', 'he_normal', 'normal', 'zeros'\]"
    with pytest.raises(ValueError, match=rf"^`{argument}` must be one of {names}, got {bad!r}$"):
        NETWORK.init(0, like=np.ones((1, 3)), **{argument: bad})


@pytest.mark.parametrize("argument", ["weight", "bias"])
@pytest.mark.parametrize("function", [normal, glorot_uniform, he_normal, zeros])
def test_functions_that_are_not_called_are_told_so(argument, function):
    expected = rf"^`{argument}` must be what `{function.__name__}\(\)` returns, got the function "
    with pytest.raises(TypeError, match=expected):
        NETWORK.init(0, like=np.ones((1, 3)), **{argument: function})


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "small", None, True])
def test_bad_scales(bad):
    with pytest.raises((TypeError, ValueError), match=r"^`scale` must be a finite number and >= 0, got "):
        normal(bad)


@pytest.mark.parametrize(
    "drawn",
    [
        None,
        "a",
        b"3",
        10**400,
        np.ones((3, 5)),
        np.ones(12),
        np.full((3, 4), np.nan),
        np.full((3, 4), np.inf),
        np.full((3, 4), 1j),
        np.full((3, 4), "NaT", "M8[s]"),
        np.ma.masked_array(np.ones((3, 4)), np.eye(3, 4)),
    ],
    ids=str,
)
def test_what_an_initializer_draws_must_be_finite_numbers_of_the_shape(drawn):
    network = Network((3, 4, 2), loss="squared_error")
    for name, shape in (("weight", (3, 4)), ("bias", (4,))):
        wrong = drawn if np.shape(drawn) != (3, 4) or name == "weight" else drawn[0]

        def draw(random, wanted, fan_in, fan_out, wrong=wrong, shape=shape):
            return wrong if wanted == shape else np.zeros(wanted)

        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            network.init(0, like=np.ones(1), **{name: draw})


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_generator_of_a_seed_is_numpys(seed):
    ours, numpys = random_source(seed), np.random.RandomState(seed)
    for one, other in zip(ours.get_state(), numpys.get_state(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(ours.standard_normal(3), numpys.standard_normal(3))
    assert b"mlp_xp" not in pickle.dumps(ours)
