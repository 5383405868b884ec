"""Trainings on streams of batches, beside the same batches as arrays, and as calls of `partial_fit`."""

import signal
import warnings
import weakref

import numpy as np
import pytest
from conftest import assert_close, may_run_call_by_call

import mlp_xp
from mlp_xp import (
    Activation,
    DivergenceError,
    EarlyStopping,
    Network,
    TrainingInterruptedWarning,
    adam,
    gradient_descent,
    momentum,
    train,
)
from mlp_xp._arrays import to_host
from mlp_xp._engines import recordable
from mlp_xp._parameters import flatten

pytest.importorskip("sklearn")
MLPClassifier, MLPRegressor = mlp_xp.MLPClassifier, mlp_xp.MLPRegressor

N_ROWS, SIZE = 50, 16  # three batches of 16 rows and one of 2
SOURCE = np.random.default_rng(0)
X = SOURCE.standard_normal((N_ROWS, 3))
Y = (X[:, :1] > 0).astype(float)
WEIGHT = SOURCE.random(N_ROWS) + 0.1
LABELS = np.where(X[:, 0] > 0, "blue", "red")
NETWORK = Network((3, 6, 1), activation="tanh", loss="binary_cross_entropy", alpha=1e-2)


def parts(*arrays, size=SIZE):
    """Return batches of consecutive rows."""
    slices = [slice(start, min(start + size, N_ROWS)) for start in range(0, N_ROWS, size)]
    return [tuple(array[rows, ...] for array in arrays) for rows in slices]


class Passes:
    """Batches that each pass makes anew; it counts the passes."""

    def __init__(self, batches):
        self.batches = batches
        self.n_passes = 0

    def __iter__(self):
        self.n_passes += 1
        return iter(self.batches)


def contents(params):
    return [to_host(array).tobytes() for array in flatten(params)]


def weights(model):
    return [array.tobytes() for array in (*model.coefs_, *model.intercepts_)]


def arrays_in(library, weighted, dtype="float64"):
    given = [library.array(values, dtype) for values in (X, Y)]
    return [*given, library.array(WEIGHT, dtype)] if weighted else given


# Functions.


@pytest.mark.parametrize(
    ("dtype", "weighted", "optimizer"),
    [("float64", True, adam(0.01)), ("float32", False, momentum(0.1))],
    ids=["float64", "float32"],
)
@may_run_call_by_call
def test_a_stream_trains_as_the_same_batches_of_arrays(library, dtype, weighted, optimizer):
    given = arrays_in(library, weighted, dtype)
    params = NETWORK.init(0, like=given[0])
    settings = {"optimizer": optimizer, "epochs": 3}
    weight = given[2] if weighted else None
    expected = train(
        NETWORK, params, *given[:2], sample_weight=weight, batch_size=SIZE, shuffle=False, **settings
    )
    rtol = 1e-12 if dtype == "float64" else 1e-5
    whole, divided = parts(*given), parts(*given, size=2 * SIZE)
    for batches, batch_size in ((whole, None), (divided, SIZE)):
        found = train(NETWORK, params, Passes(batches), batch_size=batch_size, shuffle=False, **settings)
        for one, other in zip(flatten(found.params), flatten(expected.params)):
            assert_close(one, to_host(other), like=given[0], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=max(rtol, 1e-6))
        assert [record["epoch"] for record in found.history] == [1, 2, 3]
    if library.xp is np:
        assert contents(found.params) == contents(expected.params)
        assert found.history.engine == "compiled"
    elif library.name.startswith("jax"):
        assert found.history.engine == "xla"


def test_batches_are_lists_too_and_may_hold_integers():
    params = NETWORK.init(0, like=X)
    settings = {"optimizer": adam(0.1), "epochs": 2}
    integers = [np.round(10 * X).astype(dtype) for dtype in (np.int64, np.int8)]
    expected = train(NETWORK, params, parts(integers[0] + 0.0, Y), **settings)
    for one in integers:
        batches = [[*batch] for batch in parts(one, Y.astype(bool))]
        assert contents(train(NETWORK, params, batches, **settings).params) == contents(expected.params)


def test_rows_are_shuffled_in_their_batch_alone():
    params = NETWORK.init(0, like=X)
    settings = {"optimizer": gradient_descent(0.1), "epochs": 2, "batch_size": 8, "seed": 3}
    found = train(NETWORK, params, parts(X, Y), **settings)
    assert contents(found.params) == contents(train(NETWORK, params, parts(X, Y), **settings).params)
    assert contents(found.params) != contents(
        train(NETWORK, params, parts(X, Y), shuffle=False, **settings).params
    )
    random, expected = np.random.RandomState(3), params
    for _ in range(2):
        for one, other in parts(X, Y):
            order = np.arange(len(one))
            if len(one) > 8:
                random.shuffle(order)
            expected, _ = train(
                NETWORK,
                expected,
                one[order],
                other[order],
                **{**settings, "shuffle": False, "epochs": 1},
            )
    assert contents(found.params) == contents(expected)


def test_a_generator_is_passed_over_once():
    params = NETWORK.init(0, like=X)
    expected = train(NETWORK, params, parts(X, Y), optimizer=adam(), epochs=1)
    found = train(NETWORK, params, (batch for batch in parts(X, Y)), optimizer=adam(), epochs=1)
    assert contents(found.params) == contents(expected.params)
    assert found.history == expected.history
    read = []
    batches = (read.append(0) or batch for batch in parts(X, Y))
    with pytest.raises(
        ValueError, match="`epochs` must be 1 where `X` is an iterator.* got 2 and a generator"
    ):
        train(NETWORK, params, batches, optimizer=adam(), epochs=2)
    assert not read


def test_a_stream_is_passed_over_once_an_epoch():
    params, batches = NETWORK.init(0, like=X), Passes(parts(X, Y))
    train(NETWORK, params, batches, optimizer=adam(), epochs=4)
    assert batches.n_passes == 4

    class Emptied(Passes):
        def __iter__(self):
            return iter([]) if self.n_passes else super().__iter__()

    with pytest.raises(ValueError, match="at least one batch in each epoch, got none") as error:
        train(NETWORK, params, Emptied(parts(X, Y)), optimizer=adam(), epochs=4)
    assert len(error.value.history) == 1
    assert "raised in epoch 2 of a training" in error.value.__notes__[0]


def test_history_callback_and_early_stopping_are_those_of_arrays():
    params = NETWORK.init(0, like=X)
    validation, seen = (X[::3], Y[::3]), []
    settings = {
        "optimizer": adam(lambda epoch: 0.1 * 0.9**epoch),
        "epochs": 40,
        "validation_data": validation,
        "metrics": ["accuracy"],
        "early_stopping": EarlyStopping("val_loss", n_iter_no_change=2, tol=0.05),
    }

    def callback(history, now):
        seen.append((history[-1]["epoch"], contents(now)))

    found = train(
        NETWORK, params, parts(X, Y), callback=callback, on_progress=lambda history: None, **settings
    )
    expected = train(NETWORK, params, X, Y, batch_size=SIZE, shuffle=False, **settings)
    assert contents(found.params) == contents(expected.params)
    assert len(found.history) == len(seen) == len(expected.history) < 40
    assert found.history["val_accuracy"] == expected.history["val_accuracy"]
    assert found.history["val_loss"] == expected.history["val_loss"]
    assert list(found.history[0]) == ["epoch", "loss", "val_loss", "val_accuracy"]
    stopped = train(
        NETWORK,
        params,
        parts(X, Y),
        optimizer=adam(),
        epochs=9,
        callback=lambda history, now: len(history) == 2,
    )
    assert len(stopped.history) == 2


def test_divergence_ends_the_epoch_and_keeps_the_last_finite_parameters():
    network = Network((3, 4, 1), activation="identity", loss="squared_error")
    params = network.init(0, like=X)
    calm, wild = parts(X, Y), [(1e160 * one, other) for one, other in parts(X, Y)]

    class Growing(Passes):
        n_read = 0

        def __iter__(self):
            self.n_passes += 1
            for batch in calm if self.n_passes == 1 else wild * 100:
                self.n_read += 1
                yield batch

    batches = Growing(None)
    with pytest.raises(DivergenceError, match="diverged in epoch 2") as error:
        train(network, params, batches, optimizer=gradient_descent(0.1), epochs=5)
    expected = train(network, params, calm, optimizer=gradient_descent(0.1), epochs=1)
    assert contents(error.value.params) == contents(expected.params)
    assert error.value.history == expected.history
    assert batches.n_read < 100


def failing(batches, error, after):
    yield from batches[:after]
    if isinstance(error, int):
        signal.raise_signal(error)
        yield from batches[after:]
    raise error


@may_run_call_by_call
def test_an_error_of_the_iterable_keeps_what_was_trained(library):
    given = arrays_in(library, False)
    params = NETWORK.init(0, like=given[0])
    batches = failing(parts(*given), OSError("no disk"), 2)
    with pytest.raises(OSError, match="no disk") as error:
        train(NETWORK, params, batches, optimizer=adam(0.1), epochs=1)
    expected = train(NETWORK, params, parts(*given)[:2], optimizer=adam(0.1), epochs=1).params
    assert contents(error.value.params) == contents(expected)
    assert error.value.history == []


def test_ctrl_c_trains_the_batch_that_was_read_and_reads_no_other():
    params = NETWORK.init(0, like=X)
    batches = failing(parts(X, Y), signal.SIGINT, 2)
    with pytest.warns(TrainingInterruptedWarning):
        found = train(NETWORK, params, batches, optimizer=adam(0.1), epochs=1)
    expected = train(NETWORK, params, parts(X, Y)[:3], optimizer=adam(0.1), epochs=1).params
    assert contents(found.params) == contents(expected)
    assert [len(one) for one, _ in [next(batches)]] == [2]


def test_few_batches_are_alive_at_a_time():
    alive, most = set(), []

    def batches(n_batches=12):
        for number in range(n_batches):
            most.append(len(alive))
            rows, targets = X[:SIZE] + number, Y[:SIZE].copy()
            alive.add(number)
            weakref.finalize(rows, alive.discard, number)
            yield rows, targets
            del rows, targets

    params = NETWORK.init(0, like=X)
    train(NETWORK, params, batches(), optimizer=adam(), epochs=1)
    assert max(most) <= 1
    assert not alive
    most.clear()
    MLPRegressor(hidden_layer_sizes=4, max_iter=1).fit((one, other[:, 0]) for one, other in batches())
    assert max(most) <= 2


def test_programs_are_compiled_once_for_each_number_of_rows(monkeypatch):
    traced, trace = [], recordable.StepSpec.trace
    monkeypatch.setattr(
        recordable.StepSpec, "trace", lambda step: traced.append(step.batch[0].shape[0]) or trace(step)
    )
    network = Network((3, 7, 1), activation="tanh", loss="binary_cross_entropy", alpha=0.125)
    train(network, network.init(0, like=X), parts(X, Y), optimizer=adam(), epochs=3)
    assert traced == [16, 2]


def test_jax_compiles_once_for_each_number_of_rows():
    jax = pytest.importorskip("jax")
    from jax import monitoring

    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    counts = []

    def batches(arrays):
        for batch in parts(*arrays):
            counts.append(len(compiled))
            yield batch

    network = Network((3, 9, 1), activation="tanh", loss="binary_cross_entropy", alpha=0.25)
    there = [jax.device_put(X, jax.devices("cpu")[0]), jax.device_put(Y, jax.devices("cpu")[0])]
    cut = [parts(*there) for _ in range(2)]  # slices of JAX arrays are compiled too
    params = network.init(0, like=there[0])
    counts, compiled[:] = [], []

    def one_after_the_other():
        for batch in cut[0]:
            counts.append(len(compiled))
            yield batch

    found = train(network, params, one_after_the_other(), optimizer=adam(), epochs=1)
    assert found.history.engine == "xla"
    assert counts[1] > counts[0] or counts[0] > 0
    assert counts[2] == counts[3], "a second and third batch of the same shape compile nothing"


def test_a_step_that_cannot_be_compiled_runs_call_by_call():
    def forward(xp, z):
        z = -z if float(z[0, 0]) > 1e9 else z
        return z, z

    network = Network(
        (3, 4, 1), activation=Activation(forward, lambda xp, gradient, kept: gradient), loss="squared_error"
    )
    params = network.init(0, like=X)
    found = train(network, params, parts(X, Y), optimizer=adam(0.1), epochs=2)
    assert found.history.engine == "eager"
    expected = train(network, params, X, Y, optimizer=adam(0.1), epochs=2, batch_size=SIZE, shuffle=False)
    assert contents(found.params) == contents(expected.params)


def test_many_lengths_of_batches():
    params, ends = NETWORK.init(0, like=X), [*range(1, 25), *range(1, 25)]
    batches = [(X[:end], Y[:end]) for end in ends]
    found = train(NETWORK, params, batches, optimizer=adam(0.1), epochs=1)
    model = params
    network = Network((3, 6, 1), activation="tanh", loss="binary_cross_entropy", alpha=1e-2)
    found_by_descent = train(network, params, batches, optimizer=gradient_descent(0.1), epochs=1)
    for one, other in batches:
        model, _ = train(network, model, one, other, optimizer=gradient_descent(0.1), epochs=1)
    assert contents(found_by_descent.params) == contents(model)
    assert len(found.history) == 1


def test_large_batches_are_not_copied(monkeypatch):
    monkeypatch.setattr("mlp_xp._engines.compiled.MAX_BYTES_SHUFFLED_AT_ONCE", 0)
    params = NETWORK.init(0, like=X)
    for batch_size in (None, 7):
        found = train(
            NETWORK, params, parts(X, Y), optimizer=adam(), epochs=2, batch_size=batch_size, shuffle=False
        )
        model, _ = train(
            NETWORK, params, parts(X, Y), optimizer=adam(), epochs=2, batch_size=batch_size, shuffle=False
        )
        assert contents(found.params) == contents(model)


# Errors.


def bad(number, batch):
    """Return batches of which one is another."""
    batches = parts(X, Y)
    batches[number - 1] = batch
    return batches


ROWS, TARGETS = X[:SIZE], Y[:SIZE]

BAD_BATCHES = {
    "empty": ((X[:0], Y[:0]), ValueError, "`X` must have at least one row"),
    "another width": ((ROWS[:, :2], TARGETS), ValueError, "`X` must have shape"),
    "another number of targets": ((ROWS, TARGETS[:-1]), ValueError, "`y` must have shape"),
    "another dtype": (
        (ROWS.astype("float32"), TARGETS),
        ValueError,
        "dtype float64 as the batches before, got float32",
    ),
    "no tuple": (ROWS, TypeError, r"must be a tuple \(X, y\) or .* got numpy.ndarray"),
    "too many": ((ROWS, TARGETS, None, None), TypeError, "got a tuple of 4"),
    "text": ("ab", TypeError, "got builtins.str"),
    "no array": ((ROWS.tolist(), TARGETS), TypeError, "`X` must be an array"),
    "NaN": ((np.where(ROWS > 0, np.nan, ROWS), TARGETS), ValueError, "`X` must hold finite numbers"),
    "not a target": ((ROWS, TARGETS + 2), ValueError, "`y` must, for the loss"),
    "weights of zero": (
        (ROWS, TARGETS, np.zeros(SIZE)),
        ValueError,
        "`sample_weight` must be >= 0 and not all",
    ),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
@pytest.mark.parametrize("number", [1, 3])
def test_a_batch_that_does_not_fit_is_named(kind, number):
    batch, error_type, message = BAD_BATCHES[kind]
    if (kind, number) == ("another dtype", 1):
        batch, message = (ROWS.astype("float32"), TARGETS), "dtype float32 as the batches before, got float64"
        number_named = 2
    else:
        number_named = number
    params = NETWORK.init(0, like=X)
    with pytest.raises(error_type, match=f"in batch {number_named} of `X`: .*{message}") as error:
        train(NETWORK, params, bad(number, batch), optimizer=adam(0.1), epochs=2)
    if number == 3:
        expected = train(NETWORK, params, parts(X, Y)[:2], optimizer=adam(0.1), epochs=1)
        assert contents(error.value.params) == contents(expected.params)
    elif number_named == 1:
        assert not hasattr(error.value, "params")


def test_a_batch_of_another_library_is_named():
    strict = pytest.importorskip("array_api_strict")
    params = NETWORK.init(0, like=X)
    other = strict.asarray(ROWS), strict.asarray(TARGETS)
    with pytest.raises(ValueError, match="in batch 2 of `X`: `X` must live where `params` does"):
        train(NETWORK, params, bad(2, other), optimizer=adam(), epochs=1)
    with pytest.raises(ValueError, match="in batch 2 of `X`: `y` must live where"):
        train(NETWORK, params, bad(2, (ROWS, other[1])), optimizer=adam(), epochs=1)


@pytest.mark.parametrize("given", [X, "path.csv", {"X": X}, 3, None], ids=str)
def test_what_is_no_stream_needs_targets(given):
    with pytest.raises(TypeError, match="`y` must be given, unless `X` is an iterable of batches"):
        train(NETWORK, NETWORK.init(0, like=X), given, optimizer=adam(), epochs=1)


def test_arguments_that_do_not_fit_a_stream():
    params = NETWORK.init(0, like=X)
    settings = {"optimizer": adam(), "epochs": 1}
    with pytest.raises(ValueError, match="`X` must yield at least one batch, got none"):
        train(NETWORK, params, [], **settings)
    with pytest.raises(TypeError, match="`sample_weight` must be in the batches"):
        train(NETWORK, params, parts(X, Y), sample_weight=WEIGHT, **settings)
    with pytest.raises(ValueError, match="`metrics` must come with `validation_data`"):
        train(NETWORK, params, parts(X, Y), metrics=["accuracy"], **settings)
    with pytest.raises(ValueError, match="`early_stopping` must monitor one of"):
        train(
            NETWORK,
            params,
            parts(X, Y),
            metrics=["accuracy"],
            validation_data=(X, Y),
            early_stopping=EarlyStopping("accuracy"),
            **settings,
        )
    with pytest.raises(ValueError, match="`epochs` must be 1 where `X` is an iterator"):
        train(NETWORK, params, iter(parts(X, Y)), **{**settings, "epochs": 3})


# Estimators.

SETTINGS = [
    {},
    {"batch_size": 7},
    {"batch_size": 7, "shuffle": False},
    {"solver": "sgd", "learning_rate": "invscaling", "batch_size": 5},
    {"solver": "sgd", "momentum": 0.0},
    {"hidden_layer_sizes": (5, 4), "activation": "tanh", "alpha": 0.1, "weight_decay": 0.01},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.filterwarnings("ignore:Got `batch_size`:UserWarning")  # of `partial_fit`
def test_an_epoch_is_partial_fit_of_each_batch_bit_by_bit(kind, weighted, settings):
    y = LABELS if kind is MLPClassifier else X[:, 0] * 2
    batches = parts(X, y, WEIGHT) if weighted else parts(X, y)
    classes = {"classes": ["red", "blue"]} if kind is MLPClassifier else {}
    settings = {"max_iter": 1, "random_state": 0, **settings}
    found, expected = kind(**settings).fit(iter(batches), **classes), kind(**settings)
    losses = [expected.partial_fit(*batch, **classes).loss_ for batch in batches]
    assert weights(found) == weights(expected)
    assert (found.t_, found.n_iter_, found.n_outputs_) == (expected.t_, 1, 1)
    mean = np.average(losses, weights=[len(batch[0]) for batch in batches])
    np.testing.assert_allclose(found.loss_curve_, [mean], rtol=1e-12)
    for model in (found, expected):  # what continues the training is the same too
        model.partial_fit(*batches[0])
    assert weights(found) == weights(expected)


def test_epochs_are_passes_of_partial_fit(recwarn):
    expected = MLPRegressor(hidden_layer_sizes=6, random_state=0)
    for _ in range(3):
        for batch in parts(X, X[:, 0]):
            expected.partial_fit(*batch)
    found = MLPRegressor(hidden_layer_sizes=6, random_state=0, max_iter=3).fit(parts(X, X[:, 0]))
    assert weights(found) == weights(expected)
    assert found.n_iter_ == len(found.loss_curve_) == 3
    assert ["Maximum iterations" in str(warned.message) for warned in recwarn] == [True]
    recwarn.clear()
    warm = MLPRegressor(hidden_layer_sizes=6, random_state=0, max_iter=1, warm_start=True)
    for _ in range(3):
        warm.fit(iter(parts(X, X[:, 0])))
    assert weights(warm) == weights(expected)
    assert warm.t_ == 3 * N_ROWS
    assert not recwarn


def test_classes_must_be_known_beforehand():
    model = MLPClassifier(max_iter=1, random_state=0)
    with pytest.raises(ValueError, match="`classes` must be given where `X` is a stream"):
        model.fit(iter(parts(X, LABELS)))
    with pytest.raises(ValueError, match="in batch 2 of `X`: `y` has classes not in"):
        model.fit(
            bad(2, (ROWS, np.array(["green"] * SIZE))) and labelled(2, "green"), classes=["blue", "red"]
        )
    with pytest.raises(ValueError, match="`classes` must be None, but for a stream"):
        MLPClassifier().fit(X, LABELS, classes=["blue", "red"])
    model.fit(iter(parts(X, LABELS)), classes=["blue", "red", "green"])
    assert model.predict_proba(X).shape == (N_ROWS, 3)
    model.set_params(warm_start=True).fit(iter(parts(X, LABELS)))
    with pytest.raises(ValueError, match="`classes` must be those of the first call"):
        model.fit(iter(parts(X, LABELS)), classes=["blue"])
    weighted = MLPClassifier(max_iter=1, class_weight={"red": 2.0}, random_state=0)
    other = MLPClassifier(max_iter=1, class_weight={"red": 2.0}, random_state=0)
    weighted.fit(iter(parts(X, LABELS)), classes=["blue", "red"])
    for batch in parts(X, LABELS):
        other.partial_fit(*batch, classes=["blue", "red"])
    assert weights(weighted) == weights(other)
    with pytest.raises(ValueError, match="for partial_fit and streams, got 'balanced'"):
        MLPClassifier(max_iter=1, class_weight="balanced").fit(
            iter(parts(X, LABELS)), classes=["blue", "red"]
        )


def labelled(number, label):
    batches = parts(X, LABELS)
    batches[number - 1] = (batches[number - 1][0], np.array([label] * SIZE))
    return batches


def test_several_labels():
    labels = (X > 0).astype(int)
    model = MLPClassifier(max_iter=1, random_state=0).fit(iter(parts(X, labels)), classes=[0, 1, 2])
    other = MLPClassifier(random_state=0)
    for batch in parts(X, labels):
        other.partial_fit(*batch, classes=[0, 1, 2])
    assert weights(model) == weights(other)


def test_validation_data_and_early_stopping():
    settings = {
        "random_state": 0,
        "max_iter": 30,
        "early_stopping": "loss",
        "n_iter_no_change": 2,
        "tol": 0.1,
    }
    model = MLPRegressor(**settings).fit(parts(X, X[:, 0]), X_val=X[::2], y_val=X[::2, 0])
    assert len(model.val_loss_curve_) == model.n_iter_ < 30
    with pytest.raises(ValueError, match="`early_stopping` must come with `X_val` where `X` is a stream"):
        MLPRegressor(**settings).fit(parts(X, X[:, 0]))


def test_arguments_that_estimators_refuse_with_a_stream():
    with pytest.raises(ValueError, match="`max_iter` must be 1 where `X` is an iterator"):
        MLPRegressor().fit(iter(parts(X, X[:, 0])))
    with pytest.raises(ValueError, match="`solver` must be 'sgd' or 'adam' where `X` is a stream"):
        MLPRegressor(solver="lbfgs").fit(parts(X, X[:, 0]))
    with pytest.raises(TypeError, match="`sample_weight` must be in the batches"):
        MLPRegressor().fit(parts(X, X[:, 0]), sample_weight=WEIGHT)
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        MLPRegressor().fit(X)
    with pytest.raises(
        TypeError, match="`y` must be labels or values, got 'price': it may be a column's name"
    ):
        MLPRegressor().fit(X, "price")
    with pytest.raises(TypeError, match="in batch 1 of `X`: it must be a tuple"):
        MLPRegressor().fit([[1.0, 2.0, 3.0, 4.0]] * 3)
    with pytest.raises(TypeError, match="in batch 1 of `X`: it must be a table with the column 'price'"):
        MLPRegressor().fit(parts(X, X[:, 0]), "price")


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X[:0], X[:0, 0]), "0 sample"),
        ((ROWS[:, :2], ROWS[:, 0]), "2 features"),
        ((ROWS.astype("float32"), ROWS[:, 0]), "dtype float64 as the batches before, got float32"),
        ((np.where(ROWS > 0, np.inf, ROWS), ROWS[:, 0]), "infinity"),
        ((ROWS, ROWS[:-1, 0]), "inconsistent"),
        ((ROWS, ROWS[:, :2]), "`y` must have 1 columns as that of the first batch, got 2"),
        (ROWS, "must be a tuple"),
    ],
    ids=["empty", "width", "dtype", "infinite", "length", "outputs", "array"],
)
def test_estimators_name_a_batch_that_does_not_fit(number, batch, message):
    batches = parts(X, X[:, 0])
    batches[number - 1] = batch
    model = MLPRegressor(hidden_layer_sizes=4, random_state=0, max_iter=2)
    if number == 1 and message[0] in "2d`":
        return  # fits as the first one
    with pytest.raises((ValueError, TypeError), match=f"(?s)in batch {number} of `X`: .*{message}"):
        model.fit(batches)
    assert hasattr(model, "coefs_") == (number == 3)
    if number == 3:
        expected = MLPRegressor(hidden_layer_sizes=4, random_state=0)
        for one in batches[:2]:
            expected.partial_fit(*one)
        assert weights(model) == weights(expected)
        assert model.t_ == 2 * SIZE


def test_an_error_of_the_iterable_leaves_a_fitted_model():
    model = MLPRegressor(hidden_layer_sizes=4, random_state=0, max_iter=1).fit(iter(parts(X, X[:, 0])))
    before = weights(model)
    with pytest.raises(OSError, match="no disk") as error:
        model.fit(failing(parts(X, X[:, 1]), OSError("no disk"), 2))
    assert weights(model) == before
    assert error.value.history == []
    model.set_params(warm_start=True)
    with pytest.raises(OSError, match="no disk"):
        model.fit(failing(parts(X, X[:, 1]), OSError("no disk"), 2))
    assert weights(model) != before


def test_callbacks_and_progress():
    rich = pytest.importorskip("rich")
    assert rich
    from mlp_xp import ProgressBar

    model = MLPRegressor(hidden_layer_sizes=4, random_state=0, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_callbacks(ProgressBar()).fit(parts(X, X[:, 0]))
    assert model.n_iter_ == 2


# Tables and loaders.


def columns(labels):
    return {**{f"x{index}": X[:, index] for index in range(3)}, "target": labels, "weight": WEIGHT}


def polars_tables(labels):
    polars = pytest.importorskip("polars")
    return polars.DataFrame(columns(labels)).iter_slices(SIZE)


def polars_scan(labels):
    polars = pytest.importorskip("polars")
    return polars.DataFrame(columns(labels)).lazy().collect_batches(chunk_size=SIZE, maintain_order=True)


def pandas_tables(labels):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(columns(labels))
    return (table[start : start + SIZE] for start in range(0, N_ROWS, SIZE))


def arrow_batches(labels):
    arrow = pytest.importorskip("pyarrow")
    return iter(arrow.table(columns(labels)).to_batches(SIZE))


def arrow_reader(labels):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table(columns(labels))
    return arrow.RecordBatchReader.from_batches(table.schema, table.to_batches(SIZE))


TABLES = [polars_tables, polars_scan, pandas_tables, arrow_batches, arrow_reader]


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("weighted", [False, True])
def test_streams_of_tables(tables, weighted):
    weight = {"sample_weight": "weight"} if weighted else {}
    used = (X, LABELS, WEIGHT) if weighted else (np.column_stack([X, WEIGHT]), LABELS)
    model = MLPClassifier(hidden_layer_sizes=4, max_iter=1, random_state=0)
    model.fit(tables(LABELS), "target", classes=["blue", "red"], **weight)
    other = MLPClassifier(hidden_layer_sizes=4, max_iter=1, random_state=0)
    other.fit(iter(parts(*used)), classes=["blue", "red"])
    np.testing.assert_allclose(model.coefs_[0], other.coefs_[0], rtol=1e-12)
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2"] + ["weight"] * (not weighted)
    regressor = MLPRegressor(hidden_layer_sizes=4, max_iter=1, random_state=0)
    regressor.fit(tables(X[:, 0]), "target", **weight)
    expected = MLPRegressor(hidden_layer_sizes=4, max_iter=1, random_state=0)
    expected.fit(iter(parts(used[0], X[:, 0], *used[2:])))
    np.testing.assert_allclose(regressor.coefs_[0], expected.coefs_[0], rtol=1e-12)


def test_tables_that_do_not_fit():
    polars = pytest.importorskip("polars")
    table = polars.DataFrame(columns(X[:, 0]))
    model = MLPRegressor(max_iter=1)
    with pytest.raises(
        ValueError, match="in batch 1 of `X`: it must have one column 'price', got the columns"
    ):
        model.fit(table.iter_slices(SIZE), "price")
    with pytest.raises(TypeError, match="in batch 1 of `X`: .* the argument `y` may be the name"):
        model.fit(table.iter_slices(SIZE))
    with pytest.raises(ValueError, match="(?s)in batch 2 of `X`: .*feature names"):
        model.fit(iter([table, table.rename({"x0": "x9"})]), "target")
    gap = table.with_columns(x0=polars.lit(None, polars.Float64))
    with pytest.raises(ValueError, match="(?s)in batch 2 of `X`: .*NaN"):
        model.fit(iter([table, gap]), "target")


def test_a_data_loader():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    tensors = torch.asarray(X), torch.asarray(Y)
    loader = DataLoader(TensorDataset(*tensors), batch_size=SIZE)
    params = NETWORK.init(0, like=tensors[0])
    found = train(NETWORK, params, loader, optimizer=adam(0.1), epochs=2)
    expected = train(NETWORK, params, *tensors, optimizer=adam(0.1), epochs=2, batch_size=SIZE, shuffle=False)
    assert contents(found.params) == contents(expected.params)
    model = MLPClassifier(hidden_layer_sizes=4, max_iter=1, random_state=0)
    labelled = DataLoader(TensorDataset(tensors[0], tensors[1][:, 0].to(torch.int64)), batch_size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(labelled, classes=[0, 1])
    assert type(model.coefs_[0]).__module__ == "torch"
    assert model.predict(tensors[0]).shape == (N_ROWS,)


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("batch_size", ["auto", 7])
def test_streams_of_numpy_arrays_with_a_backend(name, batch_size):
    pytest.importorskip(name)
    settings = {"hidden_layer_sizes": 4, "max_iter": 1, "random_state": 0, "batch_size": batch_size}
    validation = {"X_val": X[::2], "y_val": X[::2, 0]}
    expected = MLPRegressor(**settings).fit(iter(parts(X, X[:, 0])), **validation)
    model = MLPRegressor(backend=name, **settings).fit(iter(parts(X, X[:, 0])), **validation)
    assert isinstance(model.coefs_[0], np.ndarray)
    np.testing.assert_allclose(model.coefs_[0], expected.coefs_[0], rtol=1e-9)
    np.testing.assert_allclose(model.val_loss_curve_, expected.val_loss_curve_, rtol=1e-9)


def test_streams_of_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    batches = [(sparse.csr_matrix(one), other) for one, other in parts(X, X[:, 0])]
    model = MLPRegressor(hidden_layer_sizes=4, max_iter=1, random_state=0).fit(iter(batches))
    dense = MLPRegressor(hidden_layer_sizes=4, max_iter=1, random_state=0).fit(iter(parts(X, X[:, 0])))
    np.testing.assert_allclose(model.coefs_[0], dense.coefs_[0], rtol=1e-9)
    batches[2] = parts(X, X[:, 0])[2]
    with pytest.raises(ValueError, match="in batch 3 of `X`: `X` must be of the same kind"):
        model.fit(iter(batches))
