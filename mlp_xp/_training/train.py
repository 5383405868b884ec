"""`train`: check the arguments, then run the training loop."""

from __future__ import annotations

from collections.abc import Iterable

from mlp_xp._arrays import Array, placement, to_host
from mlp_xp._devices import current_device
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer, check_optimizer
from mlp_xp._parameters import Parameters, all_finite, copy_tree, named
from mlp_xp._processes import together
from mlp_xp._training.early_stopping import EarlyStopping
from mlp_xp._training.history import Callback, OutOfMemoryError, ProgressListener, Trained
from mlp_xp._training.measure import check_network, check_samples
from mlp_xp._training.metrics import UserMetric, check_weighted, resolve_metrics
from mlp_xp._validation import Seed, check_bool, check_callable, check_integer, random_source, shown


def train(
    network: Network,
    params: Parameters,
    X: Array,
    y: Array,
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
) -> Trained:
    """Train a network on the device where its parameters and the data live.

    Parameters
    ----------
    network : Network
    params : tuple of Layer
        Where to start from, as `Network.init` returns it. Never modified.
    X : array of shape (n_samples, n_features)
        In the namespace and on the device of `params`; cast to their dtype if it has another.
    y : array of shape (n_samples, n_outputs)
        Targets: 0 and 1 for "binary_cross_entropy", one-hot classes for
        "categorical_cross_entropy", values or counts otherwise.
    optimizer : Optimizer
        `gradient_descent`, `momentum`, `adam`, or one of your own.
    epochs : int
        Passes over the data.
    batch_size : int, optional
        Rows in a step; the last step of an epoch takes those that are left. All rows by default.
    shuffle : bool, default=True
        Take the rows in a new order in each epoch. Without mini-batches the order does not matter.
    seed : int, RandomState, Generator or None
        For the orders; drawn on the host, the same in every namespace.
    sample_weight : array of shape (n_samples,), optional
        At least 0. Each step divides by the sum of its batch's weights.
    validation_data : tuple (X, y) or (X, y, sample_weight), optional
        Measured after each epoch, never trained on.
    metrics : list of str or callable, default=()
        "accuracy", "r2", or functions ``(y, predictions) -> float`` whose name becomes the column;
        measured after each epoch on the training data, and on the validation data. With sample weights
        a function needs a third parameter, called `sample_weight` as in scikit-learn's metrics.
    early_stopping : EarlyStopping, optional
    callback : callable ``(history, params) -> bool or None``, optional
        Called after each epoch; true stops the training. The parameters it gets are a copy.
    on_progress : callable ``(history) -> None``, optional
        A `ProgressBar`, or another function that only observes: called when epochs are finished, after each
        one or, if epochs are short and nothing needs each of them, after some hundred. It takes next to no
        time.

    Returns
    -------
    params : tuple of Layer
        In the namespace, dtype and device of those given; the best ones if `early_stopping` says so.
    history : History

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
    """
    # Here, and not at the top, so that `import mlp_xp` stays quick.
    from mlp_xp._training.loop import Settings, run_training, start_training
    from mlp_xp._training.recovery import without_frames

    with current_device(X), together("train") as processes:
        if processes is not None:
            processes.check_same_presence(validation_data=validation_data, sample_weight=sample_weight)
        epochs = check_integer("epochs", epochs, minimum=0)
        check_network(network)
        shuffle = check_bool("shuffle", shuffle)
        samples = check_samples(network, params, X, y, sample_weight)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise TypeError("`validation_data` must be a tuple (X, y) or (X, y, sample_weight)")
            placement(X=X, **{"validation_data[0]": validation_data[0]})
            try:
                validation = check_samples(network, params, *validation_data)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"in `validation_data`: {error}") from error
        check_optimizer(optimizer)
        check_callable("callback", callback, "a function of the history and the parameters", optional=True)
        check_callable("on_progress", on_progress, "a function of the history", optional=True)
        resolved_metrics = resolve_metrics(metrics, network._resolved_loss)
        check_weighted(resolved_metrics, samples, validation)
        if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"`early_stopping` must be an EarlyStopping, got {shown(early_stopping)}")
        xp = samples.place.xp
        if not all_finite(xp, params):
            raise ValueError("`params` must hold finite numbers, got NaN or infinity")
        random = random_source(seed)
        progress = start_training(xp, params, optimizer, random)
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
            }
            processes.check_same("the arguments", arguments)
        settings = Settings(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=samples.n_total
            if batch_size is None
            else check_integer("batch_size", batch_size, minimum=1),
            shuffle=shuffle,
            validation=validation,
            metrics=resolved_metrics,
            validation_metrics=resolved_metrics,
            early_stopping=early_stopping,
            callback=callback,
            on_progress=on_progress,
        )
        try:
            history = run_training(network, progress, samples, settings)
        except OutOfMemoryError as error:
            del progress
            raise without_frames(error) from error.__cause__
        trained = named(progress.best_params)  # those of the best epoch if early stopping restores it
        return Trained(trained if history else copy_tree(xp, trained), history)
