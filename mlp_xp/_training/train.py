"""`train`: check the arguments, then run the training loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from typing import Any

from mlp_xp._arrays import Array, placement, to_host, type_name
from mlp_xp._devices import current_device
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, check_optimizer
from mlp_xp._parameters import Parameters, all_finite, copy_tree, named
from mlp_xp._processes import alone, together
from mlp_xp._samples import Samples
from mlp_xp._streams import RawBatch, RawStream, Stream, errors_in_batch, is_stream
from mlp_xp._training.checkpoints import Checkpoint, CheckpointWarning, check_checkpoint
from mlp_xp._training.early_stopping import EarlyStopping
from mlp_xp._training.history import Callback, OutOfMemoryError, ProgressListener, Trained
from mlp_xp._training.measure import check_network, check_samples, check_values
from mlp_xp._training.metrics import UserMetric, check_weighted, resolve_metrics
from mlp_xp._validation import (
    RandomSource,
    Seed,
    check_bool,
    check_callable,
    check_integer,
    random_source,
    shown,
)


def train(
    network: Network,
    params: Parameters,
    X: Array | Iterable[Any],
    y: Array | None = None,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: Seed = None,
    sample_weight: Array | None = None,
    validation_data: tuple[Array, ...] | None = None,
    metrics: Iterable[str | UserMetric] = (),
    early_stopping: EarlyStopping | None = None,
    callback: Callback | None = None,
    on_progress: ProgressListener | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    resume: Trained | str | os.PathLike[str] | bool = False,
) -> Trained:
    """Train a network on the device where its parameters and the data live.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
        Where to start from, as `Network.init` returns it. Never modified.
    X : array of shape (n_samples, n_features), or iterable of batches
        In the namespace and on the device of `params`; cast to their dtype if it has another. Without `y` a
        stream: an iterable of batches (X, y) or (X, y, sample_weight), see Notes.
    y : array of shape (n_samples, n_outputs), optional
        Targets: 0 and 1 for "binary_cross_entropy", one-hot classes for
        "categorical_cross_entropy", values or counts otherwise.
    optimizer : Optimizer
        `gradient_descent`, `momentum`, `adam`, or one of your own.
    epochs : int
        Passes over the data.
    batch_size : int, optional
        Rows in a step; the last step of an epoch takes those that are left. All rows by default; of a stream
        all rows of a batch.
    shuffle : bool, default=True
        Take the rows in a new order in each epoch. Without mini-batches the order does not matter. Those of a
        stream stay in their batch.
    seed : int, RandomState, Generator or None
        For the orders; drawn on the host, the same in every namespace.
    sample_weight : array of shape (n_samples,), optional
        At least 0. Each step divides by the sum of its batch's weights. Those of a stream are in its batches.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Measured after each epoch, never trained on.
    metrics : list of str or callable, default=()
        "accuracy", "r2", or functions ``(y, predictions) -> float`` whose name becomes the column;
        measured after each epoch on the training data (but not of a stream), and on the validation data. With
        sample weights
        a function needs a third parameter, called `sample_weight` as in scikit-learn's metrics.
    early_stopping : EarlyStopping, optional
    callback : callable ``(history, params) -> bool or None``, optional
        Called after each epoch; true stops the training. The parameters it gets are a copy.
    on_progress : callable ``(history) -> None``, optional
        A `ProgressBar`, or another function that only observes: called when epochs are finished, after each
        one or, if epochs are short and nothing needs each of them, after some hundred. It takes next to no
        time.
    checkpoint : Checkpoint or path, optional
        A file that the progress is written to every minute, or as a `Checkpoint` says.
    resume : Trained, path or bool, default=False
        Go on with a training, from what `train` returned or the file of a checkpoint; True is the file of
        `checkpoint`, if there is one. See Notes.

    Returns
    -------
    params : tuple of Layer
        In the namespace, dtype and device of those given; the best ones if `early_stopping` says so.
    history : History
        Of all epochs, also of those before a training was resumed.

    Raises
    ------
    TypeError, ValueError
        Before any training, if an argument does not fit.
    DivergenceError
        If the loss or a parameter is not finite after an epoch. It carries the last finite
        parameters and the history.
    OutOfMemoryError
        If the training does not fit into the device's memory; raised before the training if the need can be
        computed.
    ModelFileError
        If the file to resume from is damaged; the message says which part of it.
    OSError
        If there is no such file, `checkpoint` cannot be written, exists already, or is written by another
        training; later failures are a `CheckpointWarning`.
    Exception
        Whatever else is raised on the way, by a callback, a metric, a schedule, an activation or the array
        library, is raised as it is. Its attributes `params` and `history` hold what was trained; if it has
        attributes of these names itself, its attribute `training` does.

    Warns
    -----
    EagerFallbackWarning
        If the training cannot run as captured CUDA graphs where it should; it says why.
    TrainingInterruptedWarning
        If Ctrl-C interrupts the training; what was trained until then is returned.
    CheckpointWarning
        If a checkpoint cannot be written.

    Notes
    -----
    Of a stream each batch is one step or, with `batch_size`, as many as its rows make. In each epoch it is
    iterated over anew; an iterator, such as a generator, can be iterated over once, so that `epochs` must
    be 1. The loss of an epoch is the mean over its rows. A batch is checked when it comes: one that does not
    fit raises an error that says which it is, and like any error of the iterable it carries what was
    trained. Ctrl-C takes effect before the next batch is read; a second one at once. Steps are compiled once
    for each number of rows that batches have; on CUDA they run call by call. Inside `data_parallel` each
    process has a stream of its own, and what these yield at a time is one batch together; one that has ended
    adds no rows.

    A training that is resumed ends as if it had never ended, to the bit: with the same arguments, n epochs
    and then `epochs` in all are as good as `epochs` at once. It goes on from the last whole epoch, or batch
    of a stream, with the optimizer's state, the order of the rows, the generator, the schedule and early
    stopping; `params` says where, in which library and on which device, and which dtype, but not from which
    values. Data and arguments should be those of before; a learning rate or a patience that differs takes
    effect from there on. Batches of a stream that are done are read again and dropped.
    A training that early stopping or a callback has ended, or that has done all epochs, returns at once.

    Examples
    --------
    >>> from mlp_xp import Network, gradient_descent, train
    >>> from mlp_xp.datasets import planar
    >>> data = planar()
    >>> network = Network((2, 4, 1), activation="tanh", loss="binary_cross_entropy")
    >>> params = network.init(seed=3, like=data.X)
    >>> params, history = train(
    ...     network, params, data.X, data.y[:, None], optimizer=gradient_descent(1.2), epochs=500,
    ...     metrics=["accuracy"])
    >>> history[-1]["accuracy"] > 0.85
    True

    Going on with it, 500 epochs more:

    >>> settings = {"X": data.X, "y": data.y[:, None], "optimizer": gradient_descent(1.2)}
    >>> result = train(network, params, **settings, epochs=500)
    >>> result = train(network, params, **settings, epochs=1000, resume=result)
    >>> len(result.history)
    1000

    A stream, which is never in memory as a whole:

    >>> def batches():
    ...     for start in range(0, 400, 50):
    ...         yield data.X[start : start + 50], data.y[start : start + 50, None]
    >>> params, history = train(network, params, batches(), optimizer=gradient_descent(0.1), epochs=1)
    >>> len(history)
    1
    """
    # Here, and not at the top, so that `import mlp_xp` stays quick.
    from mlp_xp._training.loop import Settings, run_training
    from mlp_xp._training.progress import start_training
    from mlp_xp._training.recovery import attach, without_frames
    from mlp_xp._training.resuming import checkpoints_of, resumed

    with current_device(X, *_arrays(params)), together("train") as processes:
        if processes is not None:
            processes.check_same_presence(y=y, validation_data=validation_data, sample_weight=sample_weight)
        epochs = check_integer("epochs", epochs, minimum=0)
        check_network(network)
        shuffle = check_bool("shuffle", shuffle)
        random = random_source(seed)
        samples: Samples | Stream
        if y is None:
            samples = _stream(network, params, X, sample_weight, epochs, random if shuffle else None)
        else:
            samples = check_samples(network, params, X, y, sample_weight)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise TypeError("`validation_data` must be a tuple (X, y) or (X, y, sample_weight)")
            here = params[0][0] if y is None else X
            placement(X=here, **{"validation_data[0]": validation_data[0]})
            try:
                validation = check_samples(network, params, *validation_data)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"in `validation_data`: {error}") from error
        check_optimizer(optimizer)
        check_callable("callback", callback, "a function of the history and the parameters", optional=True)
        check_callable("on_progress", on_progress, "a function of the history", optional=True)
        resolved_metrics = resolve_metrics(metrics, network._resolved_loss)
        if isinstance(samples, Samples):
            check_weighted(resolved_metrics, samples, validation)
        else:
            check_weighted(resolved_metrics, validation)
            if resolved_metrics and validation is None:
                raise ValueError(
                    "`metrics` must come with `validation_data` where `X` is a stream of batches"
                )
        if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"`early_stopping` must be an EarlyStopping, got {shown(early_stopping)}")
        xp = samples.place.xp
        if not all_finite(xp, params):
            raise ValueError("`params` must hold finite numbers, got NaN or infinity")
        checkpoint = check_checkpoint(checkpoint)
        progress = start_training(xp, params, optimizer, random)
        columns = ["loss", *(metric.name for metric in resolved_metrics if isinstance(samples, Samples))]
        if validation is not None:
            columns += ["val_loss", *(f"val_{metric.name}" for metric in resolved_metrics)]
        progress, source = resumed(resume, checkpoint, network, progress, samples, epochs, columns)
        if isinstance(samples, Stream) and samples.randoms is not None and progress.random is not None:
            samples.randoms = repeat(progress.random)  # of another kind than `seed`, if the first one was
        if processes is not None:
            arguments = {
                "network": network,
                **{f"params[{index}]": list(map(to_host, layer)) for index, layer in enumerate(params)},
                "optimizer": optimizer,
                "epochs": epochs,
                "batch_size": batch_size,
                "shuffle": shuffle,
                "seed": random,
                "metrics": [metric.name for metric in resolved_metrics],
                "early_stopping": early_stopping,
                "resume": len(progress.history),
            }
            processes.check_same("the arguments", arguments)
        settings = Settings(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=(samples.n_total if isinstance(samples, Samples) else sys.maxsize)
            if batch_size is None
            else check_integer("batch_size", batch_size, minimum=1),
            shuffle=shuffle,
            validation=validation,
            metrics=resolved_metrics if isinstance(samples, Samples) else (),
            validation_metrics=resolved_metrics,
            early_stopping=early_stopping,
            callback=callback,
            on_progress=on_progress,
            is_resumable=True,
        )
        try:
            with checkpoints_of(checkpoint, network, progress, source) as checkpoints:
                history = run_training(network, progress, samples, replace(settings, checkpoints=checkpoints))
        except OutOfMemoryError as error:
            del progress
            raise without_frames(error) from error.__cause__
        except CheckpointWarning as error:  # a filter makes errors of warnings
            if not hasattr(error, "history"):
                trained = named(progress.best_params)
                attach(error, "epoch", len(progress.history), trained, progress.history)
            raise
        trained = named(progress.best_params)  # those of the best epoch if early stopping restores it
        if not history:
            trained = copy_tree(xp, trained)
        return Trained(trained, history).with_progress(progress.resume_point)


def _stream(
    network: Network,
    params: Parameters,
    X: Any,
    sample_weight: Array | None,
    epochs: int,
    random: RandomSource | None,
) -> Stream:
    """Check an iterable of batches, and its first batch; return it as a stream."""
    if not is_stream(X):
        raise TypeError(
            "`y` must be given, unless `X` is an iterable of batches (X, y) or (X, y, sample_weight), got "
            f"`X` {type_name(X)}"
        )
    if sample_weight is not None:
        raise TypeError("`sample_weight` must be in the batches (X, y, sample_weight) where `X` is a stream")

    place = network._check_params(params)

    def check(batch: RawBatch) -> Samples:
        return check_values(network, network._check_samples(place, params, *batch))

    raw = RawStream(X, epochs)
    with errors_in_batch(1), alone():
        first = check(raw.first)
    return Stream(raw, first, check, randoms=None if random is None else repeat(random))


def _arrays(params: Any) -> list[Array]:
    """Return the first array of parameters that may be anything."""
    try:
        return [params[0][0]]
    except (TypeError, LookupError):
        return []
