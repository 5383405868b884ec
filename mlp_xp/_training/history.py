"""What a training returns or raises: the history of its epochs, and errors that carry what was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, overload

from mlp_xp._parameters import Layer


class History(list[dict[str, Any]]):
    """Measurements after each epoch: a list of dicts of Python numbers, which JSON can hold as it is.

    Each has "epoch" (from 1) and "loss" (the mean of the epoch's objectives, each taken before its
    step); each metric under its name; and for validation data "val_loss" (without the penalty on the
    weights) and "val_" before each metric.

    Examples
    --------
    >>> from mlp_xp import History
    >>> history = History([{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.4}])
    >>> history[-1]
    {'epoch': 2, 'loss': 0.4}
    >>> history["loss"]
    [0.7, 0.4]

    Attributes
    ----------
    engine : {"", "eager", "compiled", "xla", "cuda_graph"}
        How the epochs ran: call by call, as a program of NumPy's calls, as loops compiled by JAX's XLA, or
        as captured CUDA graphs.
    n_resumed : int
        How many of the epochs ran before the training was resumed, 0 if it was not.
    """

    engine = ""
    n_resumed = 0

    @overload  # type: ignore[override]
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> History: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    def __getitem__(self, key: Any) -> Any:
        """Return an epoch's record by its index, a slice of epochs, or a column by its name."""
        if isinstance(key, str):
            return [record[key] for record in self]
        item = super().__getitem__(key)
        if not isinstance(key, slice):
            return item
        part = History(item)
        part.engine = self.engine
        return part


class Callback(Protocol):
    """What `train` calls after each epoch: ``(history, params) -> stop``.

    Examples
    --------
    >>> def stop_at_a_hundredth(history, params):
    ...     return history[-1]["loss"] < 0.01
    """

    def __call__(self, history: History, params: tuple[Layer, ...], /) -> bool | None:
        """Look at the last epoch; return true to stop the training.

        Parameters
        ----------
        history : History
            Up to and with that epoch.
        params : tuple of Layer
            A copy, which may be kept or changed.
        """


ProgressListener: TypeAlias = Callable[[History], None]
"""``(history) -> None``: called when epochs were added to the history, one or some hundred short ones."""


class TrainingError(RuntimeError):
    """Training failed by itself: it diverged, or memory ran out; carries what was trained until then.

    Errors of other origins, such as a callback, a metric or the array library, are raised as they are, with
    the same attributes.

    Attributes
    ----------
    epoch : int
        The epoch it happened in, from 1.
    params : tuple of Layer
        The parameters as they were, all of them finite.
    history : History
        The epochs finished until then.
    """

    def __init__(self, message: str, epoch: int, params: tuple[Layer, ...], history: History) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.params = params
        self.history = history

    def __reduce__(self) -> Any:
        # By default exceptions are unpickled from their message alone, without the other arguments.
        return type(self), (*self.args, self.epoch, self.params, self.history)


class DivergenceError(TrainingError, ArithmeticError, ValueError):
    """The loss or a parameter became NaN or infinite.

    It is a ValueError too, which scikit-learn raises in its place.

    Attributes
    ----------
    loss : float
        The loss of that epoch.
    """

    def __init__(
        self, message: str, epoch: int, params: tuple[Layer, ...], history: History, loss: float
    ) -> None:
        super().__init__(message, epoch, params, history)
        self.loss = loss

    def __reduce__(self) -> Any:
        return type(self), (*self.args, self.epoch, self.params, self.history, self.loss)


class OutOfMemoryError(TrainingError, MemoryError):
    """The device has too little memory for the training; the memory the training took is released.

    Attributes
    ----------
    needed : int or None
        Bytes that the training allocates; None if that is not known.
    free : int or None
        Bytes that were free; None if the device does not tell.
    batch_size : int or None
        The largest that fits; 0 if none does, None if that is not known.

    Examples
    --------
    >>> from mlp_xp import OutOfMemoryError
    >>> def fit(model, X, y):
    ...     try:
    ...         return model.fit(X, y)
    ...     except OutOfMemoryError as error:
    ...         if not error.batch_size:
    ...             raise
    ...         return model.set_params(batch_size=error.batch_size).fit(X, y)
    """

    def __init__(
        self,
        message: str,
        epoch: int,
        params: tuple[Layer, ...],
        history: History,
        needed: int | None = None,
        free: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(message, epoch, params, history)
        self.needed = needed
        self.free = free
        self.batch_size = batch_size

    def __reduce__(self) -> Any:
        shortage = self.needed, self.free, self.batch_size
        return type(self), (*self.args, self.epoch, self.params, self.history, *shortage)


class TrainingInterruptedWarning(UserWarning):
    """Ctrl-C ended a training before its last epoch."""


class _Trained(NamedTuple):
    params: tuple[Layer, ...]
    history: History


class Trained(_Trained):
    """What `train` returns: a tuple of two, which also holds what `train(..., resume=...)` goes on from.

    Attributes
    ----------
    params : tuple of Layer
    history : History
    progress : dict or None
        The optimizer's state, the order of the rows, the generator, early stopping and more, in plain dicts,
        lists and tuples of arrays. Its parameters are the arrays of `params`, unless early stopping restores
        others: who writes in them changes what is resumed.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Network, adam, train
    >>> X = np.array([[0.0], [1.0]])
    >>> network = Network((1, 1), loss="squared_error")
    >>> result = train(network, network.init(0, like=X), X, 3.0 * X, optimizer=adam(0.1), epochs=300)
    >>> result.params[0].weight.round(1), len(result.history)
    (array([[3.]]), 300)
    >>> params, history = result
    """

    _progress: Any = None

    @property
    def progress(self) -> dict[str, Any] | None:
        """What continues the training."""
        if self._progress is not None and not isinstance(self._progress, dict):
            self._progress = self._progress.to_full_dict()
        return self._progress

    def with_progress(self, progress: Any) -> Trained:
        """Return this, with a progress: an object with `to_full_dict`, or what that returns."""
        self._progress = progress
        return self

    def __repr__(self) -> str:
        return f"Trained(params={self.params!r}, history={self.history!r})"

    def __reduce__(self) -> Any:
        return Trained, tuple(self), {"_progress": self.progress}
