"""Checks of a fit's input, which become a `Task`: everything is checked before the training begins."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split

from mlp_xp._arrays import (
    Array,
    Namespace,
    Placement,
    is_sparse,
    placement,
    quiet_floating_point,
    to_host,
    without_autodiff,
)
from mlp_xp._devices import computing, is_out_of_memory
from mlp_xp._initializers import glorot_uniform
from mlp_xp._losses import LOSS_BY_OUT_ACTIVATION, Loss
from mlp_xp._network import Network
from mlp_xp._optimizers import check_adam_dtype
from mlp_xp._parameters import Parameters
from mlp_xp._processes import Processes, current_processes
from mlp_xp._samples import Samples
from mlp_xp._streams import RawBatch, RawStream, Stream, errors_in_batch
from mlp_xp._training.early_stopping import EarlyStopping
from mlp_xp._training.measure import check_targets, check_weights, measure
from mlp_xp._training.metrics import METRICS, Metric
from mlp_xp._training.progress import has_steps
from mlp_xp._validation import errors_naming
from mlp_xp.estimators._fitted import network_of, params_at
from mlp_xp.estimators._input import (
    HOST,
    check_same_place,
    check_samples,
    check_weight,
    computing_place,
    samples_at,
    storing_place,
)
from mlp_xp.estimators._interface import Estimator
from mlp_xp.estimators._resuming import move_to


class Task(NamedTuple):
    """Checked input of a fit, and where the training begins.

    Attributes
    ----------
    home : Placement
        Where X lives, and with it the attributes that users see.
    continues : bool
        Whether a fitted model trains on: `partial_fit`, or `fit` with `warm_start`.
    incremental : bool
        Whether this is `partial_fit`.
    network : Network
    params : tuple of Layer
        The parameters to begin with, in the place to compute.
    samples : Samples or Stream
    validation : Samples or None
        Both on the host or in that place.
    batch_size : int
    random : RandomState
    validation_random_state : tuple or None
        The state of the random generator that the validation part was drawn with.
    continuation : dict or None
        What the last training left to continue it, see `FittedAttributes`.
    resumed : bool
        Whether this is a fit that goes on from its checkpoint, as `continuation` has it.
    """

    home: Placement
    continues: bool
    incremental: bool
    network: Network
    params: Parameters
    samples: Samples | Stream
    batch_size: int
    validation: Samples | None
    random: np.random.RandomState
    validation_random_state: Any
    continuation: dict[str, Any] | None
    resumed: bool


def prepare_task(
    estimator: Estimator,
    X: Any,
    y: Any,
    sample_weight: Any,
    validation_data: tuple[Any, Any, Any] = (None, None, None),
    *,
    incremental: bool = False,
    classes: Any = None,
    raw: RawStream | None = None,
    resumed: bool = False,
) -> Task:
    """Check parameters and data, and learn the classes; after this only the training itself can fail.

    Of a stream, `raw`, the first batch is checked, in place of `X`, `y` and `sample_weight`. An estimator of
    a fit that is resumed is on the host, and comes to where `X` lives.
    """
    by_batches = incremental or raw is not None
    if raw is not None:
        X, y, sample_weight = raw.first
    in_batch = nullcontext if raw is None else partial(errors_in_batch, 1)
    hidden_layer_sizes = estimator._check_parameters()
    continues = hasattr(estimator, "coefs_") and (incremental or estimator.warm_start or resumed)
    with in_batch():
        X, home = check_samples(estimator, X, reset=not continues)
        if resumed:
            dtype = placement(coefs_=estimator.coefs_[0]).dtype_name
            home = home._replace(dtype=getattr(home.xp, dtype))
            move_to(estimator, home)
        elif continues:
            home = check_same_place(estimator, home, "partial_fit" if incremental else "fit")
    there = computing_place(estimator.backend, home)
    processes = current_processes()
    if processes is not None:
        _check_same_arguments(
            estimator, processes, X, home, sample_weight, validation_data, classes, incremental
        )
    if estimator.solver == "adam":
        check_adam_dtype(there.xp, there.dtype, estimator.beta_2, estimator.epsilon)
    given = y
    with in_batch(), errors_naming("y"):
        y = estimator._check_y(given, X.shape[0], home)
        if continues:
            estimator._check_learned_targets(y, complete=not by_batches)
        else:
            estimator._learn_targets(y, home, classes, is_sparse(given))
        targets = estimator._encode(y)
    network = Network(
        (X.shape[1], *hidden_layer_sizes, targets.shape[1]),
        activation=estimator._activation(len(hidden_layer_sizes)),
        loss=LOSS_BY_OUT_ACTIVATION[estimator.out_activation_],
        alpha=estimator.alpha,
        matmul_precision=estimator.matmul_precision,
    )
    if continues:
        _check_same_network(estimator, network)
    if processes is not None:
        processes.check_same("the arguments", {"y.shape[1]": targets.shape[1]})
    estimator.n_outputs_, estimator.n_layers_ = targets.shape[1], len(network.layer_sizes)
    stored = storing_place(X, there)
    with in_batch():
        weight = check_weight("sample_weight", sample_weight, X.shape[0], stored)
        check_weights(stored, weight)
    factors = estimator._class_weights(y, weight, by_batches)
    if factors is not None:
        factors = stored.from_host(factors)
        weight = factors if weight is None else weight * factors
        if not by_batches:  # a batch may have no class of positive weight
            with errors_naming("class_weight", "sample_weight"):
                check_weights(stored, weight)
    with in_batch():
        first = _samples(estimator, network, there, X, targets, weight)
    validation = _validation_samples(estimator, network, home, there, *validation_data)

    continuation = estimator._continuation if continues else None
    random = estimator._random()
    if continues:
        params: Parameters = params_at(estimator, there)
        if continuation is not None and not by_batches:
            former = continuation["progress"]["random"]
            if former is None:  # of "lbfgs"
                former = random
            elif resumed and isinstance(estimator.random_state, np.random.RandomState):
                random.set_state(former.get_state())  # where it would be in the fit that is resumed
                former = random
            random = former if random is former else copy.deepcopy(former)
    else:
        draw = glorot_uniform(2.0 if estimator._all_logistic() else 6.0)
        params = network.init(random, like=there.from_host([0.0]), weight=draw, bias=draw)
    state = None if continuation is None else continuation["validation_random_state"]
    samples: Samples | Stream
    if raw is not None:
        if estimator.early_stopping and validation is None:
            raise ValueError("`early_stopping` must come with `X_val` where `X` is a stream of batches")
        begins = not (resumed and continuation is not None and has_steps(continuation["progress"]))
        samples = _stream(estimator, network, home, there, raw, first, random if begins else None)
    else:
        samples = first.sharded(processes, estimator._shards[0])
    if isinstance(samples, Samples) and (
        estimator.early_stopping and estimator.solver != "lbfgs" and validation is None
    ):
        split_random = random
        if state is not None:  # draw the same validation part again
            split_random = np.random.RandomState()
            split_random.set_state(state)
        state = split_random.get_state()
        samples, validation = _split(estimator, samples, targets, split_random)
    if validation is not None:
        _try_scorer(estimator, network, params, validation)
    if isinstance(samples, Samples):
        batch_size = estimator._batch_size(samples.n_total)
    else:
        batch_size = sys.maxsize if estimator.batch_size == "auto" else int(estimator.batch_size)
    return Task(
        home=home,
        continues=continues,
        incremental=incremental,
        network=network,
        params=params,
        samples=samples,
        batch_size=batch_size,
        validation=validation,
        random=random,
        validation_random_state=state,
        continuation=continuation,
        resumed=resumed,
    )


def _check_same_arguments(
    estimator: Estimator,
    processes: Processes,
    X: Any,
    home: Placement,
    sample_weight: Any,
    validation_data: tuple[Any, Any, Any],
    classes: Any,
    incremental: bool,
) -> None:
    """Raise a ValueError unless all processes are to train the same network."""
    parameters = {**estimator.get_params(deep=False)}
    for name in ("verbose", "backend"):  # may differ
        parameters.pop(name, None)
    given = dict(zip(("X_val", "y_val", "sample_weight_val"), validation_data))
    processes.check_same_presence(sample_weight=sample_weight, **given)
    columns = list(vars(estimator).get("feature_names_in_", ())) or None
    fitted = None
    if hasattr(estimator, "coefs_") and (incremental or estimator.warm_start):
        fitted = [to_host(array) for array in (*estimator.coefs_, *estimator.intercepts_)]
    arguments = {
        "X.shape[1]": X.shape[1],
        "X's columns": columns,
        "X's dtype": home.dtype_name,
        "coefs_": fitted,
        "classes": None if classes is None else np.asarray(classes).tolist(),
    }
    processes.check_same("the arguments", {**parameters, **arguments})


def _check_same_network(estimator: Estimator, network: Network) -> None:
    """Check that training can continue: the network must be the fitted one."""
    fitted = network_of(estimator).layer_sizes
    if network.layer_sizes == fitted:
        return
    if network.layer_sizes[-1] != fitted[-1]:
        raise ValueError(
            f"`y` must have {fitted[-1]} columns as in the last fit, got {network.layer_sizes[-1]}"
        )
    raise ValueError(
        f"`hidden_layer_sizes` must stay {list(fitted[1:-1])} where a fitted model trains on, got "
        f"{list(network.layer_sizes[1:-1])}"
    )


def _samples(
    estimator: Estimator,
    network: Network,
    there: Placement,
    X: Any,
    targets: Any,
    weight: Array | None,
    suffix: str = "",
) -> Samples:
    """Return checked samples to compute with in a place, after a check of the targets.

    `suffix` is what the names of these arguments end in.
    """
    stored = storing_place(X, there)
    with errors_naming("X" + suffix, "X"):
        samples = Samples(there, samples_at(there, X), _floats_cast(stored, stored.transfer(targets)), weight)
    if not estimator._is_classifier:  # encoded labels always fit the loss
        with errors_naming("y" + suffix, "y"):
            check_targets(network, replace(samples, place=stored))
    return samples


def _floats_cast(place: Placement, array: Array) -> Array:
    """Return an array with floating elements in the dtype to compute in, which may not hold them."""
    with quiet_floating_point():
        return place.cast(array) if place.xp.isdtype(array.dtype, "real floating") else array


def _validation_samples(
    estimator: Estimator,
    network: Network,
    home: Placement,
    there: Placement,
    X: Any,
    y: Any,
    sample_weight: Any,
) -> Samples | None:
    """Check the validation data that the user gave; return them in the place to compute."""
    if X is None and y is None and sample_weight is None:
        return None
    if X is None or y is None:
        raise ValueError("`X_val` and `y_val` must be given together")
    if estimator.solver == "lbfgs":
        raise ValueError("`X_val` must come with `solver` 'sgd' or 'adam', got 'lbfgs'")
    samples = _further_samples(estimator, network, home, there, X, y, sample_weight, "_val")
    return samples.sharded(current_processes(), estimator._shards[1])


def _further_samples(
    estimator: Estimator,
    network: Network,
    home: Placement,
    there: Placement,
    X: Any,
    y: Any,
    sample_weight: Any,
    suffix: str = "",
) -> Samples:
    """Check data beside the first ones: validation data, or another batch of a stream.

    `suffix` is what the names of these arguments end in. Only batches get the weights of their classes.
    """
    is_batch = not suffix
    with errors_naming(f"X{suffix}", "X"):
        X, place = check_samples(estimator, X, reset=False)
    if not place.same_as(home):
        first = "that of the first batch" if is_batch else "`X`"
        raise ValueError(
            f"`X{suffix}` must live where {first} does: {first} is {home}, `X{suffix}` is {place}"
        )
    with errors_naming(f"y{suffix}", "y"):
        y = estimator._check_y(y, X.shape[0], home)
        estimator._check_learned_targets(y, complete=False)
        targets = estimator._encode(y)
    if targets.shape[1] != estimator.n_outputs_:
        first = "that of the first batch" if is_batch else "`y`"
        raise ValueError(
            f"`y{suffix}` must have {estimator.n_outputs_} columns as {first}, got {targets.shape[1]}"
        )
    stored = storing_place(X, there)
    weight = check_weight(f"sample_weight{suffix}", sample_weight, X.shape[0], stored)
    with errors_naming(f"sample_weight{suffix}", "sample_weight"):
        check_weights(stored, weight)
    if is_batch:
        factors = estimator._class_weights(y, weight, True)
        if factors is not None:
            factors = stored.from_host(factors)
            weight = factors if weight is None else weight * factors
    return _samples(estimator, network, there, X, targets, weight, suffix)


def _stream(
    estimator: Estimator,
    network: Network,
    home: Placement,
    there: Placement,
    raw: RawStream,
    first: Samples,
    random: np.random.RandomState | None,
) -> Stream:
    """Return a stream whose first batch is checked; `random` has drawn the weights, if a training begins."""

    def check(batch: RawBatch) -> Samples:
        return _further_samples(estimator, network, home, there, *batch)

    # As each call of `partial_fit` does, each batch but the first has a generator of its own.
    drawn_from = [] if random is None else [random]
    randoms = chain(drawn_from, iter(estimator._random, None)) if estimator.shuffle else None
    return Stream(raw, first, check, randoms=randoms)


def _split(
    estimator: Estimator, samples: Samples, targets: Any, random: np.random.RandomState
) -> tuple[Samples, Samples]:
    """Choose the rows to train on and those to validate on; no row is copied."""
    if not estimator.validation_fraction:
        raise ValueError("`validation_fraction` must be > 0 for `early_stopping` without `X_val`, got 0")
    by_class = estimator._is_classifier and estimator.n_outputs_ == 1
    stratify, shard = targets[:, 0] if by_class else None, samples.shard
    if shard is not None and by_class:
        stratify = shard.compute("the validation part", lambda classes: classes, stratify)
    train, validation = train_test_split(
        np.arange(samples.n_total),
        random_state=random,
        test_size=float(estimator.validation_fraction),
        stratify=stratify,
    )
    if len(validation) < 2:
        raise ValueError(
            "The validation set is too small. Increase `validation_fraction` or the size of your dataset."
        )
    trained, validated = samples.choose(train), samples.choose(validation)
    if samples.sample_weight is not None:
        weight = to_host(samples.sample_weight)
        have_weight = [bool(weight[part.rows].any()) for part in (trained, validated)]
        if shard is not None:
            have_weight = [shard.processes.any("the validation part", one) for one in have_weight]
        if not all(have_weight):
            raise ValueError(
                "`sample_weight` must not be all zero in the rows to train on, nor in the validation "
                "part that is split off (another `random_state` splits otherwise)"
            )
    return trained, validated


# Early stopping by a score.


def early_stopping_of(estimator: Estimator) -> tuple[EarlyStopping, Metric]:
    """Return the rule that the parameters ask for, and the score of the validation data."""
    metric = METRICS["accuracy" if estimator._is_classifier else "r2"]
    monitor = "loss"
    if isinstance(estimator.early_stopping, str) and estimator.early_stopping not in ("loss", "score"):
        metric = Metric(estimator.early_stopping, _Scorer(estimator), greater_is_better=True)
    if estimator.early_stopping:
        monitor = "val_loss" if estimator.early_stopping == "loss" else f"val_{metric.name}"
    adaptive = estimator.solver == "sgd" and estimator.learning_rate == "adaptive"
    rule = EarlyStopping(
        monitor,
        n_iter_no_change=estimator.n_iter_no_change,
        tol=estimator.tol,
        restore_best=bool(estimator.early_stopping),
        divide_rate=5.0 if adaptive else None,
    )
    return rule, metric


@dataclass(frozen=True)
class _Scorer:
    """A scikit-learn scorer as a metric: it scores a copy of the estimator that returns given outputs."""

    estimator: Estimator

    def __call__(
        self, xp: Namespace, loss: Loss, y: Array, predictions: Array, sample_weight: Array | None
    ) -> float:
        outputs = to_host(predictions)
        copied = self.estimator._with_fixed_outputs(outputs)
        weights = {} if sample_weight is None else {"sample_weight": to_host(sample_weight)}
        scorer = get_scorer(self.estimator.early_stopping)
        return float(scorer(copied, outputs, copied._decode(to_host(y), HOST), **weights))


def _try_scorer(estimator: Estimator, network: Network, params: Parameters, validation: Samples) -> None:
    """Compute a scikit-learn scorer once before the training, to see whether it can be computed."""
    _, metric = early_stopping_of(estimator)
    if isinstance(metric.compute, _Scorer):
        try:
            place = validation.place
            with computing(place, estimator.matmul_precision), without_autodiff(place.xp):
                measure(network, params, validation, [metric])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"`early_stopping` must name a score that can be computed on the validation data, got "
                f"{estimator.early_stopping!r} ({type(error).__name__}: {error})"
            ) from error
