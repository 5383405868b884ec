"""L-BFGS: SciPy's minimiser over the network's objective on all samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlp_xp._arrays import (
    Array,
    HostArray,
    Placement,
    placement,
    row_slices,
    to_host,
    without_autodiff,
)
from mlp_xp._devices import MemoryShortage, computing, room_beside
from mlp_xp._network import Network
from mlp_xp._parameters import Layer, Pair, Parameters, flatten, named, plain
from mlp_xp._processes import Processes
from mlp_xp._samples import Samples, moved_if_they_fit
from mlp_xp._training.checkpoints import CheckpointWarning
from mlp_xp._training.history import Callback, DivergenceError, History, ProgressListener
from mlp_xp._training.progress import Progress
from mlp_xp._training.recovery import release_frames, run_with_recovery
from mlp_xp._uploads import streaming
from mlp_xp._validation import as_truth
from mlp_xp._warnings import warn

if TYPE_CHECKING:
    from mlp_xp._training.checkpoint_files import Checkpoints

MAX_LOSS = 1e100
"""Upper bound of losses passed to SciPy. Its line search squares and divides them, and stops at once, as if
converged, if that overflows: after trial steps that are far too long."""

STOPPED_BY_A_LIMIT = 1
"""SciPy's status after as many iterations or evaluations as allowed."""

STOPPED_BY_CALLBACK = 99
"""SciPy's status where the callback has raised StopIteration."""

Objective: TypeAlias = Callable[[HostArray], tuple[float, HostArray]]
"""The objective and its gradient, of the flat parameters."""

_POINT = "a message of L-BFGS"


@dataclass
class Minimised:
    """What `minimise` has found.

    Attributes
    ----------
    params : tuple of Layer
    history : History
        The objective after each iteration.
    loss : float
        The objective at `params`, NaN before the first iteration.
    problem : str
        Why the minimiser stopped short of a minimum, "" if it did not.
    is_ended : bool
        Whether it stopped for another reason than the number of iterations.
    data : str
        See `Progress`.
    """

    params: Parameters
    history: History = field(default_factory=History)
    loss: float = math.nan
    problem: str = ""
    is_ended: bool = False
    data: str = ""

    def to_progress(self) -> Progress:
        """Return this as the progress of a training, to go on from."""
        return Progress(
            plain(self.params),
            (),
            None,
            history=self.history[:],
            is_ended=self.is_ended,
            loss=self.loss,
            problem=self.problem,
            data=self.data,
        )


def minimise(
    network: Network,
    params: Parameters,
    samples: Samples,
    *,
    max_iter: int,
    max_fun: int,
    tol: float,
    callback: Callback | None = None,
    on_progress: ProgressListener | None = None,
    found: Minimised | None = None,
    max_resident_bytes: float | None = None,
    checkpoints: Checkpoints | None = None,
) -> Minimised:
    """Minimise the objective on all samples; arguments are checked.

    The samples are passed over in blocks; only the flat parameters and gradients travel to the host and back,
    once for each evaluation, and samples on the host that do not fit on the device.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
        Where to start from. Never modified.
    samples : Samples
    max_iter, max_fun : int
        The most iterations, and evaluations of the objective.
    tol : float
        The largest component of the gradient at a minimum.
    callback : callable ``(history, params) -> bool or None``, optional
        Called after each iteration; true stops.
    on_progress : callable ``(history) -> None``, optional
        Called after each iteration.
    found : Minimised, optional
        Where to store what is found; it is updated in any case, also on errors. One that has iterations
        already is that of a minimisation to go on with, from its last iterate, of as many iterations in all
        as `max_iter` says. What L-BFGS knew of the curvature is lost, and a warning says so.
    max_resident_bytes : float, optional
        Samples on the host that take more on the device are streamed, others are moved there once. By default
        what is free there beside a block of rows.
    checkpoints : Checkpoints, optional
        Writes what was found to a file now and then.

    Returns
    -------
    Minimised

    References
    ----------
    R. H. Byrd, P. Lu, J. Nocedal, "A limited memory algorithm for bound constrained optimization",
    SIAM Journal on Scientific and Statistical Computing 16 (1995).
    """
    found = Minimised(params) if found is None else found
    n_done = len(found.history)
    if n_done and (found.is_ended or n_done >= max_iter):
        return found
    if n_done:
        warn(
            f"resumed after {n_done} iterations of L-BFGS, from the last iterate; what it had learnt of the "
            "curvature is lost, so that the iterations to come are others than without the interruption",
            CheckpointWarning,
        )
        params = found.params
    options = {"maxfun": max_fun, "maxiter": max_iter - n_done, "gtol": tol}
    place = samples.place
    with computing(place, network.matmul_precision), without_autodiff(place.xp), streaming():
        if samples.is_on_host:
            if max_resident_bytes is None:
                max_resident_bytes = room_beside(place, network._bytes_of_block(samples))
            samples, _ = moved_if_they_fit(max_resident_bytes, samples)
        minimisation = _Minimisation(network, params, samples, options, callback, on_progress, found.history)
        minimisation.loss, minimisation.data, minimisation.checkpoints = found.loss, found.data, checkpoints
        try:
            run_with_recovery(minimisation)
        finally:
            found.params, found.loss = minimisation.params, minimisation.loss
            found.problem, found.is_ended = minimisation.problem, minimisation.is_ended
    return found


class _Minimisation:
    """A call of SciPy's minimiser; `run_with_recovery` runs it.

    Attributes
    ----------
    unit : str
    history : History
    flat : array of shape (n_parameters,) or None
        The parameters after the last iteration, None before the first.
    loss : float
        The objective there.
    problem : str
        See `Minimised`.
    is_ended : bool
        See `Minimised`.
    stop_iteration : StopIteration or None
        Raised by the user's callback; SciPy would end as if asked to.
    data : str
        See `Minimised`.
    checkpoints : Checkpoints or None
    """

    unit = "iteration"

    def __init__(
        self,
        network: Network,
        params: Parameters,
        samples: Samples,
        options: dict[str, Any],
        callback: Callback | None,
        on_progress: ProgressListener | None,
        history: History,
    ) -> None:
        self.network = network
        self.start = params
        self.samples = samples
        self.options = options
        self.callback = callback
        self.on_progress = on_progress
        self.history = history
        self.flat: HostArray | None = None
        self.loss = math.nan
        self.problem = ""
        self.is_ended = False
        self.stop_iteration: StopIteration | None = None
        self.data = ""
        self.checkpoints: Checkpoints | None = None

    @property
    def number(self) -> int:
        """The iteration under way, from 1."""
        return len(self.history) + 1

    @property
    def params(self) -> tuple[Layer, ...]:
        """The parameters after the last iteration."""
        return named(
            self.start if self.flat is None else _from_flat(self.flat, self.start, self.samples.place)
        )

    def run(self) -> None:
        """Minimise."""
        objective, shard = _make_objective(self.network, self.start, self.samples), self.samples.shard
        if shard is None:
            result = self._minimise(objective, self._after_iteration)
        else:
            result = self._minimise_together(shard.processes, objective)
        if self.stop_iteration is not None:
            raise self.stop_iteration
        if not (result.fun < MAX_LOSS and np.all(np.isfinite(result.x))):
            message = (
                f"training diverged in iteration {self.number}: the loss is too large or NaN. Try features "
                "of mean 0 and variance 1, or smaller initial weights; `.params` and `.history` of this "
                "error hold what was trained"
            )
            raise DivergenceError(message, self.number, self.params, self.history, float(result.fun))
        self.flat, self.loss = result.x, float(result.fun)
        self.problem = "" if result.status in (0, STOPPED_BY_CALLBACK) else str(result.message)
        self.is_ended = result.status != STOPPED_BY_A_LIMIT

    def _minimise(self, objective: Objective, callback: Callable[[Any], None]) -> Any:
        from scipy.optimize import minimize

        return minimize(
            objective,
            _to_host(_flat(self.start)),
            jac=True,
            method="L-BFGS-B",
            options=self.options,
            callback=callback,
        )

    def _minimise_together(self, processes: Processes, objective: Objective) -> Any:
        """Minimise in process 0, which tells the others when to evaluate the objective with it.

        So they cannot come to different decisions, however their processors round.
        """

        def evaluate(flat: HostArray) -> tuple[float, HostArray]:
            processes.share(_POINT, ("evaluate", flat))
            return objective(flat)

        def after_iteration(intermediate_result: Any) -> None:
            processes.share(_POINT, ("iteration", intermediate_result))
            self._after_iteration(intermediate_result)

        if processes.rank == 0:
            return processes.share(_POINT, ("result", self._minimise(evaluate, after_iteration)))[1]
        while True:
            what, value = processes.share(_POINT, None)
            if what == "result":
                return value
            if what == "evaluate":
                objective(value)
            else:
                with suppress(StopIteration):  # the next message is the result
                    self._after_iteration(value)

    def _after_iteration(self, intermediate_result: Any) -> None:
        self.flat, self.loss = intermediate_result.x.copy(), float(intermediate_result.fun)
        self.history.append({"epoch": len(self.history) + 1, "loss": self.loss})
        try:
            answer = None if self.callback is None else self.callback(self.history, self.params)
            stop = as_truth("what `callback` returns", answer)
            if self.on_progress is not None:
                self.on_progress(self.history)
        except StopIteration as error:
            self.stop_iteration = error
            raise
        if self.samples.shard is not None:
            stop = self.samples.shard.processes.any("the end of an iteration", stop)
        if self.checkpoints is not None and self.checkpoints.is_due(len(self.history)):
            found = Minimised(self.params, self.history, self.loss, data=self.data)
            self.checkpoints.write(found.to_progress())
        if stop:
            raise StopIteration

    def keep_finite_state(self) -> None:
        """Do nothing: the parameters are those of the last iteration."""

    def revert(self) -> None:
        """Do nothing: the parameters are those of the last iteration."""

    def release(self, error: BaseException) -> MemoryShortage | None:
        """Free the memory that the minimisation took; what was lacking is not known."""
        release_frames(error, self.samples.place)
        return None


def _make_objective(network: Network, params: Parameters, samples: Samples) -> Objective:
    """Return the function of the flat parameters: the objective and its gradient, summed over blocks."""
    samples = samples.with_small_arrays_cast()
    processes = None if samples.shard is None else samples.shard.processes
    length = samples.rows_per_block(samples.row_width(network.layer_sizes))
    shares = _shares(samples, length)
    # The penalty is split evenly over the blocks with non-zero weight, of all processes.
    n_counting = sum(share > 0.0 for share in shares)
    if processes is not None:
        n_counting = processes.sum("L-BFGS", n_counting)
    block_objective = replace(network, alpha=network.alpha / n_counting)._make_objective(samples.xp)
    whole = samples.whole() if len(shares) == 1 else None
    n_params = sum(math.prod(array.shape) for array in flatten(params))

    def objective(flat: HostArray) -> tuple[float, HostArray]:
        if processes is None:
            loss, gradient = objective_of_rows(flat)
            return min(loss, MAX_LOSS), gradient
        sums, failure = np.zeros(n_params + 3), None
        with processes.stepping():
            try:
                if shares:
                    sums[0], sums[1:-2] = objective_of_rows(flat)
            except Exception as error:
                failure = error
            processes.add_up(sums, failure)
        return min(float(sums[0]), MAX_LOSS), sums[1:-2]

    def objective_of_rows(flat: HostArray) -> tuple[float, HostArray]:
        layers = plain(_from_flat(flat, params, samples.place))
        loss: Any = 0.0
        sums: Any = _flat(layers) * 0.0 if processes is not None else 0.0
        for share, batch in zip(shares, samples.batches(length) if whole is None else [whole]):
            if share > 0.0:
                block_loss, gradients = block_objective(layers, *batch)
                loss = loss + share * block_loss
                sums = sums + share * _flat(gradients)
        return float(loss), _to_host(sums)

    return objective


def _shares(samples: Samples, length: int) -> list[float]:
    """Return the part of all sample weights, of all processes, that each block of so many rows has."""
    blocks = list(row_slices(len(samples), length))
    if samples.sample_weight is None:
        return [(block.stop - block.start) / samples.n_total for block in blocks]
    weight = to_host(samples.sample_weight)
    weight = weight if samples.rows is None else weight[samples.rows]
    total = weight.sum(dtype=np.float64)
    if samples.shard is not None:
        total = samples.shard.processes.sum("L-BFGS", total)
    return [float(weight[block].sum(dtype=np.float64) / total) for block in blocks]


def _flat(params: Iterable[Pair]) -> Array:
    """Return the weights of all layers, then all biases, as one vector: in scikit-learn's order."""
    weights, biases = zip(*params)
    xp = placement(array=weights[0]).xp
    return xp.concat([xp.reshape(array, (-1,)) for array in (*weights, *biases)])


def _to_host(flat: Array) -> HostArray:
    return to_host(flat).astype(np.float64)


def _from_flat(flat: HostArray, like: Parameters, place: Placement) -> tuple[Layer, ...]:
    """Undo `_flat`: layers shaped as those of `like`."""
    there = place.from_host(flat)
    shapes = [weight.shape for weight, _ in like] + [bias.shape for _, bias in like]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    arrays = [
        place.xp.reshape(there[end - math.prod(shape) : end], shape) for shape, end in zip(shapes, ends)
    ]
    return named(zip(arrays[: len(like)], arrays[len(like) :]))
