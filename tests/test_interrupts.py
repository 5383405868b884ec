"""Ctrl-C at any line: a step is finished or undone, an estimator changes as a whole or not at all."""

import os
import signal
import sys
import warnings
from contextlib import contextmanager, suppress

import numpy as np
import pytest

import mlp_xp._engines.compiled as compiled
import mlp_xp._engines.recordable as recordable
import mlp_xp._training.lbfgs as lbfgs
from mlp_xp import DivergenceError, Network, OutOfMemoryError, adam, momentum, train
from mlp_xp._arrays import placement
from mlp_xp._compiler import NotRecordableError
from mlp_xp._engines.eager import EagerEngine
from mlp_xp._interrupts import deferred_interrupts, terminations_as_interrupts
from mlp_xp._parameters import flatten, plain
from mlp_xp._samples import Samples

X = np.random.RandomState(0).standard_normal((40, 3))
Y = X[:, :1] - X[:, 1:2] ** 2
NETWORK = Network((3, 4, 1), activation="tanh", loss="squared_error")


def raise_interrupt():
    raise KeyboardInterrupt


def send_interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def at_lines(numbers, act, *parts):
    """Call `act` where the n-th line is run, for these n, of files whose names contain one of the parts."""
    count = [0]

    def local(frame, event, argument):
        if event == "line":
            count[0] += 1
            if count[0] in numbers:
                act()
        return local

    def trace(frame, event, argument):
        return local if any(part in frame.f_code.co_filename for part in parts) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


# A step.


@pytest.fixture(params=["eager", "compiled"])
def engine_name(request, monkeypatch):
    if request.param == "eager":

        def refuse(*arguments):
            raise NotRecordableError

        monkeypatch.setattr(compiled, "CompiledEngine", refuse)
    return request.param


def states(optimizer, n_epochs):
    """Yield the parameters after each step, of 10 rows."""
    params = plain(NETWORK.init(0, like=X))
    engine = EagerEngine(
        NETWORK, optimizer, Samples(placement(X=X), X, Y), 40, (params, optimizer.init(np, params))
    )
    batches = [Samples(placement(X=X), X[i : i + 10], Y[i : i + 10]).whole() for i in range(0, 40, 10)]
    yield flatten(engine.copied_state()[0])
    for _ in range(n_epochs):
        for batch in batches:
            engine.step(batch, optimizer.learning_rate)
            yield flatten(engine.copied_state()[0])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("act", [raise_interrupt, send_interrupt])
@pytest.mark.parametrize("optimizer", [momentum(0.05), adam(0.05)], ids=["momentum", "adam"])
def test_an_interrupted_step_is_finished_or_undone(optimizer, act, engine_name):
    sound = list(states(optimizer, 3))
    settings = {"optimizer": optimizer, "epochs": 3, "batch_size": 10, "shuffle": False, "metrics": ["r2"]}
    files = ("_optimizers.py", "eager.py") if engine_name == "eager" else ("<step>", "compiled.py")
    start = NETWORK.init(0, like=X)
    with at_lines((), None, *files) as count:
        train(NETWORK, start, X, Y, **settings)
    reached, n_lines = set(), count[0]
    for n in range(1, n_lines, max(1, n_lines // 60)):
        with warnings.catch_warnings(), at_lines([n], act, *files):
            warnings.simplefilter("ignore")
            try:
                params, history = train(NETWORK, start, X, Y, **settings)
            except KeyboardInterrupt:  # before the first epoch
                continue
        arrays = flatten(params)
        (step,) = (
            index
            for index, state in enumerate(sound)
            if all(np.allclose(one, other, rtol=1e-9, atol=0) for one, other in zip(arrays, state))
        )
        assert 0 <= step - 4 * len(history) <= 4
        reached.add(step)
    # Ctrl-C loses no step; what raises in the middle of one loses those of an epoch.
    assert len(reached) > (8 if act is send_interrupt else 2)


def test_a_second_interrupt_ends_a_step_that_hangs():
    reached = []

    def work():
        with deferred_interrupts(limit=1):
            send_interrupt()
            reached.append(1)
            send_interrupt()
            reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_users_own_handler_receives_the_interrupts():
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with at_lines([5], send_interrupt, "<step>"):
            _, history = train(NETWORK, NETWORK.init(0, like=X), X, Y, optimizer=adam(), epochs=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (received, len(history)) == ([signal.SIGINT], 3)


# Estimators.


@pytest.fixture
def models():
    return pytest.importorskip("mlp_xp.estimators")


def contents(model):
    return {name: repr(value) for name, value in vars(model).items() if name != "_continuation"}


def fitted(models, **settings):
    labels = np.array(["a", "b", "c"])[np.arange(40) % 3]
    settings = {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0, **settings}
    return models.MLPClassifier(**settings).fit(X, labels)


def refit(model):
    """Fit on other features and classes."""
    return model.fit(X[:, :2], X[:, 0] > 0)


BUILD_ERRORS = [MemoryError("no room"), KeyboardInterrupt(), OSError("no file"), ValueError("no number")]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::mlp_xp.TrainingInterruptedWarning")
@pytest.mark.parametrize("error", BUILD_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_what_fails_before_the_first_step_leaves_a_model_alone(solver, error, models, monkeypatch):
    def fail(*arguments):
        raise error

    model, fresh = fitted(models, solver=solver), models.MLPClassifier(solver=solver)
    before = contents(model)
    monkeypatch.setattr(recordable, "state_structure", fail)
    monkeypatch.setattr(lbfgs, "_make_objective", fail)
    expected = OutOfMemoryError if isinstance(error, MemoryError) else type(error)
    if solver == "lbfgs" and expected is KeyboardInterrupt:
        refit(model)  # warns
    else:
        for one in (model, fresh):
            with pytest.raises(expected):
                refit(one)
        assert not hasattr(fresh, "coefs_")
        assert not hasattr(fresh, "n_features_in_")
    assert contents(model) == before
    assert model.predict(X).shape == (40,)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_divergence_in_the_first_epoch_leaves_a_model_alone(models):
    model = fitted(models, solver="sgd")
    before = contents(model.set_params(learning_rate_init=1e300, batch_size=5))
    with pytest.raises(DivergenceError):
        refit(model)
    assert contents(model) == before


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("second", [0, 1, 7, 25])
@pytest.mark.parametrize("act", [raise_interrupt, send_interrupt])
@pytest.mark.parametrize(
    "change", [refit, lambda model: model.to("torch"), lambda model: model.partial_fit(X, model.predict(X))]
)
def test_an_interrupt_at_any_line_leaves_a_whole_model(change, act, second, models):
    if change is not refit:
        pytest.importorskip("torch")
    files = ("mlp_xp/estimators", "mlp_xp/_training", "mlp_xp/_engines", "mlp_xp/_interrupts")
    with at_lines((), None, *files) as count:
        change(fitted(models))
    n_lines = count[0]

    for n in range(1, n_lines, max(1, n_lines // 40)):
        model = fitted(models)
        before = contents(model)
        with suppress(KeyboardInterrupt), at_lines([n, n + second], act, *files):
            change(model)
        if contents(model) != before:
            assert model.n_iter_ == len(model.loss_curve_) or change is not refit
            assert len(model.coefs_[0]) == model.n_features_in_
            assert model.coefs_[-1].shape[1] == model.n_outputs_
            types = {type(array) for array in (*model.coefs_, *model.intercepts_)}
            assert len(types) == 1
        like = model.coefs_[0]
        where = X[:, : len(like)] if isinstance(like, np.ndarray) else like.new_tensor(X)
        assert set(model.predict(where)) <= set(model.classes_)


def test_sigterm_ends_what_a_shell_has_started_with_ctrl_c_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminations_as_interrupts():
            signal.raise_signal(signal.SIGINT)  # as before
            with deferred_interrupts(deliver=False) as interrupts:
                signal.raise_signal(signal.SIGTERM)
                assert interrupts.received == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                interrupts.deliver()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
