"""The stopping rule against scikit-learn's own, on scripted losses and scores."""

import math

import numpy as np
import pytest

from mlp_xp import EarlyStopping
from mlp_xp._training.early_stopping import start_early_stopping
from mlp_xp._training.metrics import METRICS

RULES = {"plain": {}, "adaptive": {"divide_rate": 5.0}}


def scikit_learns_course(values, *, of_score, adaptive, tol, n_iter_no_change, rate):
    """Learning rates of the epochs, and the epoch that stops, by scikit-learn's bookkeeping."""
    module = pytest.importorskip("sklearn.neural_network._multilayer_perceptron")
    optimizer = module.SGDOptimizer([], rate, "adaptive" if adaptive else "constant")
    scores = iter(values)
    model = module.MLPClassifier(tol=tol)
    model._score = lambda X, y, sample_weight: next(scores)
    model._no_improvement_count, model.best_loss_, model.best_validation_score_ = 0, math.inf, -math.inf
    model.loss_curve_, model.validation_scores_, model.coefs_, model.intercepts_ = [], [], [], []
    rates = []
    for value in values:
        rates.append(optimizer.learning_rate)
        model.loss_curve_.append(value)
        model._update_no_improvement_count(of_score, None, None, None)
        if model._no_improvement_count > n_iter_no_change:
            if optimizer.trigger_stopping("", verbose=False):
                return rates, model
            model._no_improvement_count = 0
    return rates, model


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("of_score", [False, True])
@pytest.mark.parametrize("tol", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_it_stops_and_slows_down_where_scikit_learn_does(seed, tol, of_score, adaptive):
    values = np.random.RandomState(seed).rand(200).round(1).tolist()
    rule = EarlyStopping(
        "val_accuracy" if of_score else "loss",
        n_iter_no_change=3,
        tol=tol,
        divide_rate=5.0 if adaptive else None,
    )
    state = start_early_stopping(rule, [], [METRICS["accuracy"]], validation=True)
    planned, rates = 0.01, []
    for epoch, value in enumerate(values):
        rates.append(state.rate(planned))
        if state.update({rule.monitor: value}, params=(epoch,), rate=rates[-1]):
            break
    expected, model = scikit_learns_course(
        values, of_score=of_score, adaptive=adaptive, tol=tol, n_iter_no_change=3, rate=planned
    )
    assert rates == expected
    assert len(rates) < len(values)
    assert state.stopped
    best = model.best_validation_score_ if of_score else -model.best_loss_
    assert state.best == best
    assert state.best_params == (values.index(abs(best)),)


def test_it_never_stops_where_no_number_of_epochs_is_too_many():
    state = start_early_stopping(EarlyStopping("loss", n_iter_no_change=math.inf), [], [], validation=False)
    assert not any(state.update({"loss": 1.0}, (), 0.1) for _ in range(1000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_iter_no_change": 0}, "`n_iter_no_change` must be an integer >= 1, got 0"),
        ({"n_iter_no_change": 2.5}, "`n_iter_no_change` must be an integer >= 1, got 2.5"),
        ({"tol": -1.0}, "`tol` must be .* >= 0, got -1.0"),
        ({"divide_rate": 1.0}, "`divide_rate` must be .* > 1, got 1.0"),
        ({"min_rate": -1e-9}, "`min_rate` must be .* >= 0, got -1e-09"),
    ],
)
def test_bad_rules(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EarlyStopping(**settings)


def test_validation_and_training_have_their_own_columns():
    with pytest.raises(ValueError, match=r"`early_stopping` must monitor one of \['loss', 'val_loss'\]"):
        start_early_stopping(EarlyStopping("val_r2"), [METRICS["r2"]][:0], [], validation=True)
    assert start_early_stopping(EarlyStopping("val_r2"), [], [METRICS["r2"]], validation=True).sign == 1.0
