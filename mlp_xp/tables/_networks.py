"""Training of a pipeline's network: alone, or as the average of several, each stopped at its best."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from mlp_xp._arrays import HostArray
from mlp_xp._interrupts import deferred_interrupts
from mlp_xp._processes import together
from mlp_xp._samples import Shard
from mlp_xp._training.history import History, TrainingInterruptedWarning
from mlp_xp._warnings import warn
from mlp_xp.estimators._fitted import describe
from mlp_xp.estimators._labels import class_weights, classes_of
from mlp_xp.tables._parts import all_values, compute_of_parts
from mlp_xp.tables._pipelines import PreparedData
from mlp_xp.tables._preprocessing import magnitude, mean_and_scale
from mlp_xp.tables._rows import LabelledRows, assign_folds

N_FOLDS = 5
"""Number of parts of the training rows; each of several networks leaves another part out, and stops by it."""

MIN_ROWS_TO_VALIDATE = 10
"""Minimum number of training rows of which some are left out; chosen so that a part has at least 2 rows."""

MAX_MEAN_ROUNDING_ERROR = 1e-4
"""Maximum rounding error of a target's mean, in standard deviations of the target, before float64 is used.

Undoing the scaling of the target puts its mean into the output bias. Where that dtype would round it by more
than this (a mean of 1e9 with deviation 1 in float32), parameters become float64. Chosen well below the error
of any fit.
"""

MAX_EXPONENT_IN_FLOAT32 = 60
"""Maximum absolute value of the binary exponent of a target's scale before float64 is used, as above.

Half of what float32 has, because the output layer's weights are multiplied by the scale.
"""


@dataclass
class Training:
    """The training of a pipeline's network on a table that is prepared.

    For the squared error it is trained on the target scaled to mean 0 and variance 1; afterwards its
    predictions are in the target's own units.

    Attributes
    ----------
    estimator : MLPClassifier or MLPRegressor
        With the parameters of each network; `run` makes it the average of those that were trained.
    data : PreparedData
    n_networks : int
        Number of networks, each with a seed of its own.
    leaves_rows_out : bool
        Whether each network stops early by a part of the training rows that it is not trained on, another
        one for each of `N_FOLDS` networks. Rows are left out only where `early_stopping` is set, there is no
        split "validation", and there are enough.
    on_begin : callable ``(number) -> None``
        Called before each network, which are numbered from 1.
    fit_arguments : callable ``(number) -> dict``, optional
        Returns further arguments of a network's `fit`: where its checkpoints are.
    networks : list of MLPClassifier or MLPRegressor
        Those trained, in turn, in the units trained in. The last one may be unfinished.
    n_begun, n_finished : int
        How many were begun, and how many are finished: the average is of these.
    is_interrupted : bool
        Whether Ctrl-C ended the training.
    shrinkage : float or None
        The factor, from 0 to 1, by which the logits of the average are shrunk towards those of a constant
        prediction, found on the rows left out. None where none are.
    """

    estimator: Any
    data: PreparedData
    n_networks: int = 1
    leaves_rows_out: bool = False
    on_begin: Callable[[int], None] | None = None
    fit_arguments: Callable[[int], dict[str, Any]] | None = None
    networks: list[Any] = field(default_factory=list)
    n_begun: int = 0
    n_finished: int = 0
    is_interrupted: bool = False
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        training = self.data.splits["training"]
        self._left_out: list[_Judged] = []
        self._scales_counts = self.leaves_rows_out and getattr(self.estimator, "loss", "") == "poisson"
        self._scaled = self.data.task == "regression" and self.estimator.loss == "squared_error"
        self._weights = {split: rows.sample_weight for split, rows in self.data.splits.items()}
        if self.leaves_rows_out:
            self._weights = {split: _weights_of_mean_1(rows) for split, rows in self.data.splits.items()}
        class_weight = getattr(self.estimator, "class_weight", None)
        self._weighs_classes = self.leaves_rows_out and class_weight is not None
        if self._weighs_classes:
            self._weigh_classes()
        self._mean, self._scale = 0.0, 1.0
        if self._scaled:
            given = training.y, training.sample_weight
            self._mean, self._scale = training.compute("the target's scale", mean_and_scale, *given)
        elif self._scales_counts:
            given = training.y, self._weights["training"]
            self._scale = training.compute("the target's scale", _mean_count, *given)
        n_in_folds = np.sum(assign_folds(training, N_FOLDS, 0) >= 0)
        self._has_enough_rows = bool(n_in_folds >= MIN_ROWS_TO_VALIDATE)

    @property
    def monitored(self) -> str | None:
        """The rows measured after each epoch: those "left out", a split's, or None.

        The test split is never measured with early stopping, which would choose the epoch by it.
        """
        if self.estimator.solver == "lbfgs":
            return None
        if not self.leaves_rows_out:
            names = ("validation",) if self.estimator.early_stopping else ("validation", "test")
            return next((name for name in names if name in self.data.splits), None)
        if "validation" in self.data.splits:
            return "validation"
        return "left out" if self.estimator.early_stopping and self._has_enough_rows else None

    @property
    def stops_early(self) -> bool:
        """Whether a network keeps the epoch that is best on rows that it is not trained on."""
        early = bool(self.estimator.early_stopping) and self.estimator.solver != "lbfgs"
        return early and not (self.leaves_rows_out and self.monitored is None)

    @property
    def target_scaling(self) -> str:
        """In words how the target is scaled in training; "" if it is not."""
        if self._scaled:
            return "target scaled to variance 1"
        return "target scaled to mean 1" if self._scales_counts else ""

    @property
    def histories(self) -> list[History]:
        """The history of each network."""
        return [network.history_ for network in self.networks]

    def run(self) -> None:
        """Train the networks.

        Raises
        ------
        ValueError, TypeError
            If a parameter or the data are wrong, before any training.
        Exception
            If training failed; the estimator is the average of the networks finished until then, or what was
            trained of the first.
        """
        try:
            # All processes learn of an error here, and publish together what was trained.
            with self._ended_by_interrupts(), together("the training of networks"):
                for index in range(self.n_networks):
                    self.n_begun = index + 1
                    if self.on_begin is not None:
                        self.on_begin(self.n_begun)
                    self._train(index)
                    if self.is_interrupted:
                        break
        finally:
            with self._ended_by_interrupts(), deferred_interrupts():
                self.publish()

    @contextmanager
    def _ended_by_interrupts(self) -> Iterator[None]:
        """Context in which Ctrl-C outside of a network's own training ends the training, if there is any."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.networks:
                raise
            self.is_interrupted = True
            warn("the training of several networks was interrupted", TrainingInterruptedWarning)

    def _rows(self, index: int) -> tuple[_Chosen, _Chosen]:
        """Return the rows that a network is trained on, and those that it is measured on."""
        training = self.data.splits["training"]
        if self.monitored != "left out":
            measured = self.data.splits.get(self.monitored or "")
            shard = None if measured is None else measured.shard
            return _Chosen(slice(None), training.shard), _Chosen(slice(None), shard)
        turn, left_out = divmod(index, N_FOLDS)
        folds = assign_folds(training, N_FOLDS, self._seed(turn))
        numbers = np.flatnonzero(folds != left_out), np.flatnonzero(folds == left_out)
        kept, held = (_Chosen(*training.choose(each)) for each in numbers)
        return kept, held

    def _seed(self, index: int) -> int:
        """Return the seed with an index; the first is the estimator's."""
        return int((self.estimator.random_state + index) % 2**32)

    def _samples(self, split: str, rows: Any) -> tuple[HostArray, HostArray, HostArray | None]:
        """Return inputs, targets as they are trained on, and weights of some rows of a split."""
        y, weight = self.data.splits[split].y[rows], self._weights[split]
        if self._scaled or self._scales_counts:
            y = (y - self._mean) / self._scale
        return self.data.X[split][rows], y, None if weight is None else weight[rows]

    def _weigh_classes(self) -> None:
        """Multiply the rows' weights by those of their classes, also of the rows that are not trained on."""
        training, given = self.data.splits["training"], self.estimator.class_weight
        classes = classes_of(training.y)
        factors = class_weights(given, classes, training.y, training.sample_weight)
        factor_of: dict[Any, float] = {}
        for found in all_values("class weights", dict(zip(training.y.tolist(), factors.tolist()))):
            factor_of |= found
        for split, rows in self.data.splits.items():
            of_rows = np.array([factor_of[label] for label in rows.y.tolist()], dtype=np.float64)
            weight = self._weights[split]
            self._weights[split] = of_rows if weight is None else of_rows * weight

    def _train(self, index: int) -> None:
        """Train the network with an index, and append it if anything was trained, also after an error."""
        network = copy.copy(self.estimator)
        network.random_state = self._seed(index)
        network.early_stopping = self.estimator.early_stopping if self.stops_early else False
        network._scores_training = self.monitored is not None  # else epochs can run several at once
        if self._weighs_classes:
            network.class_weight = None
        rows, measured = self._rows(index)
        validation: dict[str, Any] = {}
        if self.monitored is not None:
            split = "training" if self.monitored == "left out" else self.monitored
            names = ("X_val", "y_val", "sample_weight_val")
            validation = dict(zip(names, self._samples(split, measured.rows)))
        network._shards = rows.shard, measured.shard
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")  # also those that the caller ignores are looked at here
                further = {} if self.fit_arguments is None else self.fit_arguments(index + 1)
                network.fit(*self._samples("training", rows.rows), **validation, **further)
        finally:
            del network._shards
            if hasattr(network, "coefs_"):
                network._forget_progress()  # drops the optimizer's state, which a saved run cannot use
                self.networks.append(network)
        if self.monitored == "left out":
            self._left_out.append(_judge(network, *self._samples("training", measured.rows)))
        self.is_interrupted = any(issubclass(each.category, TrainingInterruptedWarning) for each in caught)
        # An interrupt may come after the last epoch.
        self.n_finished += not self.is_interrupted or network.n_iter_ >= network.max_iter
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def publish(self) -> None:
        """Make the estimator the average of the networks, in the target's own units, if there are any."""
        part = _Trained(len(self.networks), self.n_finished, self._left_out, self._sums())
        n_averaged, self.shrinkage, constant = compute_of_parts("what was trained", _summary, part)
        if not n_averaged:
            return
        average = average_of(self.networks[:n_averaged])
        if constant is not None:
            self._shrink(average, constant)
        if self._scaled:
            _undo_target_scaling(average, self._mean, self._scale)
        elif self._scales_counts:
            bias = average.intercepts_[-1]
            average.intercepts_[-1] = (bias + math.log(self._scale)).astype(bias.dtype)
        kept = {"random_state", "early_stopping", "class_weight", "_scores_training"}
        own = {name: value for name, value in vars(self.estimator).items() if name in kept}
        vars(self.estimator).update({**vars(average), **own})

    def _sums(self) -> tuple[HostArray, float] | None:
        """Return the weighted sum of the training's encoded targets, and that of the weights, if needed."""
        if not self._left_out:
            return None
        _, y, weight = self._samples("training", slice(None))
        weight = np.ones(len(y)) if weight is None else weight
        return (weight[:, None] * _encoded(self.networks[0], y)).sum(axis=0), float(weight.sum())

    def _shrink(self, average: Any, constant: HostArray) -> None:
        """Shrink the logits of an average towards those of a constant prediction."""
        assert self.shrinkage is not None
        bias = average.intercepts_[-1]
        average.coefs_[-1] = average.coefs_[-1] * bias.dtype.type(self.shrinkage)
        average.intercepts_[-1] = (self.shrinkage * bias + (1.0 - self.shrinkage) * constant).astype(
            bias.dtype
        )


class _Trained(NamedTuple):
    """What a process has of a training: numbers of networks, and what their average is shrunk by."""

    n_trained: int
    n_finished: int
    judged: Sequence[_Judged]
    sums: tuple[HostArray, float] | None


def _summary(parts: Sequence[_Trained]) -> tuple[int, float | None, HostArray | None]:
    """Return how many networks to average, the factor of shrinkage, and the logits to shrink towards.

    After an error in one of the processes they do not all have the same, and what all have counts.
    """
    n_trained, n_finished = min(part.n_trained for part in parts), min(part.n_finished for part in parts)
    n_averaged = n_finished or n_trained
    # No row is counted twice: more networks leave out the same rows in other parts.
    n_judged = min(n_averaged, N_FOLDS, *(len(part.judged) for part in parts))
    if not n_judged:
        return n_averaged, None, None
    judged = [each for index in range(n_judged) for each in (part.judged[index] for part in parts)]
    sums = [part.sums for part in parts if part.sums is not None]
    mean = np.sum([each for each, _ in sums], axis=0) / sum(weight for _, weight in sums)
    constant = _constant_logits(judged[0].out_activation, mean)
    return n_averaged, _shrinkage(judged, constant), constant


class _Chosen(NamedTuple):
    """The indices of rows of a split, or a slice, and which rows of the whole they are."""

    rows: Any
    shard: Shard | None


def _weights_of_mean_1(rows: LabelledRows) -> HostArray | None:
    """Return weights of any magnitude in the same proportions, with mean 1."""
    weight = rows.sample_weight
    if weight is None:
        return None
    unit, mean = rows.compute("sample weights", _magnitude_and_mean, weight)
    scaled: HostArray = weight / unit / mean
    return scaled


def _magnitude_and_mean(values: HostArray) -> tuple[float, float]:
    """Return the magnitude of values, and their mean in units of it."""
    unit = magnitude(values)
    return unit, float((values / unit).mean())


def _mean_count(y: HostArray, weight: HostArray | None) -> float:
    unit = magnitude(y)
    return unit * float(np.average(y / unit, weights=weight))


class _Judged(NamedTuple):
    """Logits of a network for rows that it was not trained on, with their encoded targets and weights."""

    evaluate: Callable[..., Any]
    logits: HostArray
    y: HostArray
    weight: HostArray
    out_activation: str = ""

    def losses(self, logits: HostArray) -> HostArray:
        """Return the loss of each row, given logits in the place of the network's."""
        losses, _ = self.evaluate(np, logits, self.y)
        return np.asarray(losses.sum(axis=1))


def _judge(network: Any, X: HostArray, y: HostArray, weight: HostArray | None) -> _Judged:
    """Return a network's logits for rows, in float64."""
    found = describe(network)
    made, params = found.network, found.params
    logits = made.logits(params, X).astype(np.float64)
    weight = np.ones(len(y)) if weight is None else weight
    y = _encoded(network, y)
    return _Judged(made._resolved_loss.evaluate, logits, y, weight, network.out_activation_)


def _encoded(network: Any, y: HostArray) -> HostArray:
    """Return targets as the network's loss takes them, of shape (n_samples, n_outputs), in float64."""
    return np.asarray(network._encode(y), dtype=np.float64).reshape(len(y), network.n_outputs_)


def _constant_logits(out_activation: str, mean: HostArray) -> HostArray:
    """Return the logits of the best constant prediction: the link takes them to the mean of the targets."""
    if out_activation != "identity":
        mean = np.maximum(mean, np.finfo(np.float64).tiny)
    if out_activation == "logistic":
        mean = np.minimum(mean, 1.0 - np.finfo(np.float64).epsneg)
    inverse_links: dict[str, Callable[[HostArray], HostArray]] = {
        "identity": lambda mean: mean,
        "exp": np.log,
        "softmax": np.log,
        "logistic": lambda mean: np.log(mean) - np.log1p(-mean),
    }
    return np.asarray(inverse_links[out_activation](mean))


def _shrinkage(judged: Sequence[_Judged], constant: HostArray) -> float:
    """Return the factor of shrinkage of logits towards constant ones, found on rows not trained on.

    It is the factor from 0 to 1 with the smallest loss, times ``max(0, 1 - 1 / t**2)``, where t is the mean
    of what is gained over the constant prediction in each row, in standard errors: as in the estimator of
    James and Stein, nearly 1 for a gain that is certain, and nothing for one that is as likely chance.
    """
    weight = np.concatenate([each.weight for each in judged])
    weight /= weight.sum()
    worst = np.concatenate([each.losses(np.tile(constant, (len(each.y), 1))) for each in judged])

    def losses(factor: float) -> HostArray:
        return np.concatenate(
            [each.losses(factor * each.logits + (1.0 - factor) * constant) for each in judged]
        )

    def loss(factor: float) -> float:
        return float(weight @ losses(factor))

    found = minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x
    factor = min((float(found), 1.0), key=loss)
    gains = worst - losses(factor)
    mean = float(weight @ gains)
    variance = float(weight**2 @ (gains - mean) ** 2)  # of the mean
    return factor * max(0.0, 1.0 - variance / mean**2) if mean > 0.0 else 0.0


def best_epoch(network: Any) -> int | None:
    """Return the epoch, from 1, that a network's weights are those of; None if it is the last one."""
    if not network.early_stopping or network.solver == "lbfgs" or not network.val_loss_curve_:
        return None
    by_loss = network.early_stopping == "loss"
    curve = np.array(network.val_loss_curve_ if by_loss else network.validation_scores_)
    if not np.isfinite(curve).any():
        return None
    return 1 + int(np.nanargmin(curve) if by_loss else np.nanargmax(curve))


def average_of(networks: Sequence[Any]) -> Any:
    """Return the network whose logits are the mean of those of several: of one, that one.

    Its hidden layers are theirs, side by side; weights between units of different networks are zero. The
    curves are the means of theirs by epoch, of those that were trained for so long.
    """
    average = copy.copy(networks[0])
    if len(networks) == 1:
        average.coefs_, average.intercepts_ = list(average.coefs_), list(average.intercepts_)
        return average
    layers = list(zip(*(network.coefs_ for network in networks)))
    biases = list(zip(*(network.intercepts_ for network in networks)))
    first, last = 0, len(layers) - 1
    average.coefs_, average.intercepts_ = [], []
    for index, (weights, bias) in enumerate(zip(layers, biases)):
        if last == 0:
            joined = sum(weights) / len(networks)
        elif index == first:
            joined = np.hstack(weights)
        elif index == last:
            joined = np.vstack(weights) / len(networks)
        else:
            joined = _block_diagonal(weights)
        average.coefs_.append(joined)
        average.intercepts_.append(sum(bias) / len(networks) if index == last else np.concatenate(bias))
    average.hidden_layer_sizes = tuple(weight.shape[1] for weight in average.coefs_[:-1])
    average.n_iter_ = max(network.n_iter_ for network in networks)
    for name in ("loss_curve_", "val_loss_curve_", "validation_scores_", "_training_scores"):
        setattr(average, name, _mean_curve([getattr(network, name) for network in networks]))
    for name in ("loss_", "best_loss_", "best_validation_score_"):
        values = [getattr(network, name) for network in networks]
        setattr(average, name, None if None in values else float(np.mean(values)))
    average.t_ = sum(network.t_ for network in networks)
    return average


def _block_diagonal(blocks: Sequence[HostArray]) -> HostArray:
    """Return a matrix with these blocks on its diagonal."""
    heights, widths = ([0, *np.cumsum([block.shape[axis] for block in blocks])] for axis in (0, 1))
    matrix = np.zeros((heights[-1], widths[-1]), dtype=blocks[0].dtype)
    for block, rows, columns in zip(blocks, pairwise(heights), pairwise(widths)):
        matrix[slice(*rows), slice(*columns)] = block
    return matrix


def _mean_curve(curves: Sequence[list[float] | None]) -> list[float] | None:
    """Return the mean of curves at each epoch, of those that have it; None if there are none."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    table = np.full((len(known), max(map(len, known))), np.nan)
    for row, curve in zip(table, known):
        row[: len(curve)] = curve
    counts = np.sum(~np.isnan(table), axis=0)
    mean: list[float] = (np.nansum(table, axis=0) / np.maximum(counts, 1)).tolist()
    return mean


def _undo_target_scaling(estimator: Any, mean: float, scale: float) -> None:
    """Fold the inverse of the target's scaling into the output layer, in float64 where that is needed."""
    weights, biases = list(estimator.coefs_), list(estimator.intercepts_)
    is_rounded = abs(mean) / scale * np.finfo(weights[0].dtype).eps > MAX_MEAN_ROUNDING_ERROR
    if is_rounded or abs(math.frexp(scale)[1]) > MAX_EXPONENT_IN_FLOAT32:
        weights, biases = ([array.astype(np.float64) for array in arrays] for arrays in (weights, biases))
    weights[-1] = weights[-1] * scale
    biases[-1] = biases[-1] * scale + mean
    estimator.coefs_, estimator.intercepts_ = weights, biases
