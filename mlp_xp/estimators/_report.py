"""Reports of a fit under way: scikit-learn's callbacks, and the losses that `verbose` prints."""

from __future__ import annotations

from typing import Any

from mlp_xp._arrays import Placement
from mlp_xp._parameters import Parameters
from mlp_xp._processes import current_processes
from mlp_xp._training.early_stopping import EarlyStoppingState
from mlp_xp._training.history import History, ProgressListener
from mlp_xp._training.progress import Progress
from mlp_xp.estimators._draft import Draft
from mlp_xp.estimators._fitted import as_lists


class FitReport:
    """Calls scikit-learn's callbacks during a fit, and prints the losses if `verbose` is set.

    Attributes
    ----------
    draft : Draft
        Of the estimator; callbacks receive the estimator itself, which some know by its identity.
    home : Placement
        Where X lives.
    progress : Progress or None
        That of the training loop; None with "lbfgs".
    context : CallbackContext or None
        scikit-learn's, None in `partial_fit`.
    tells_epochs : bool
        Whether a callback needs a task for each epoch.
    """

    def __init__(self, draft: Draft[Any], home: Placement) -> None:
        self.draft = draft
        self.estimator = draft.estimator
        self.home = home
        self.progress: Progress | None = None
        self.context: Any = None
        self.tells_epochs = False
        self.listeners: list[ProgressListener] = []

    @property
    def callback(self) -> Any:
        """The function for the training to call after each epoch, or None."""
        return self.after_epoch if self.tells_epochs or self.estimator.verbose else None

    @property
    def on_progress(self) -> ProgressListener | None:
        """The function for the training to call when its history grows, or None."""
        return self._call_listeners if self.listeners else None

    def _call_listeners(self, history: History) -> None:
        for listener in self.listeners:
            listener(history)

    def begin(self, context: Any, data: dict[str, Any]) -> None:
        """Begin the tasks of a fit and of its first epoch; `data` are the arguments of callbacks."""
        callbacks = getattr(self.estimator, "_skl_callbacks", ())
        self.listeners = [callback.on_progress for callback in callbacks if hasattr(callback, "on_progress")]
        self.data, self.context = data, context
        self.context.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        # Callbacks with `on_progress` need the history only: no task, and no copy of the weights, an epoch.
        self.tells_epochs = len(self.listeners) < len(callbacks)
        if self.tells_epochs and self.estimator.solver != "lbfgs":
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch = self.context.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def after_epoch(self, history: History, params: Parameters) -> bool:
        """Report the epoch that ended, and begin the next; return whether a callback asks to stop."""
        estimator, record = self.estimator, history[-1]
        state = None if self.progress is None else self.progress.early_stopping
        processes = current_processes()
        if estimator.verbose and (processes is None or processes.rank == 0):
            self._print(record, state)
        if not self.tells_epochs:
            return False

        def attributes() -> dict[str, Any]:
            weights = dict(zip(("coefs_", "intercepts_"), as_lists(params, self.home)))
            return self.draft.changed | dict.fromkeys(self.draft.removed) | weights

        if estimator.solver == "lbfgs":  # which does not know beforehand whether an iteration follows
            self._begin_epoch()
        stop = self.epoch.call_on_fit_task_end(
            estimator=estimator, reconstruction_attributes=attributes, **self.data
        )
        last = (
            stop
            or estimator.solver == "lbfgs"
            or (state is not None and state.stopped)
            or len(history) == estimator.max_iter
        )
        if not last:
            self._begin_epoch()
        return bool(stop)

    def end(self) -> None:
        """End the task of the fit; the estimator is fitted."""
        estimator = self.estimator
        if self.context is not None:
            attributes = {"coefs_": estimator.coefs_, "intercepts_": estimator.intercepts_}
            self.context.call_on_fit_task_end(
                estimator=estimator, reconstruction_attributes=attributes, **self.data
            )

    def _print(self, record: dict[str, Any], state: EarlyStoppingState | None) -> None:
        estimator = self.estimator
        print(f"Iteration {record['epoch']}, loss = {record['loss']:.8f}")
        for name, value in record.items():
            if name == "val_loss" and estimator.early_stopping == "loss":
                print(f"Validation loss: {value:f}")
            elif name.startswith("val_") and name != "val_loss":
                print(f"Validation score: {value:f}")
        if state is None or not state.event:
            return
        what = "Validation score" if estimator.early_stopping else "Training loss"
        if estimator.early_stopping == "loss":
            what = "Validation loss"
        then = "Stopping." if state.rule.divide_rate is None else "Learning rate too small. Stopping."
        if state.event == "divided":
            then = f"Setting learning rate to {state.rate(estimator.learning_rate_init):f}"
        print(
            f"{what} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} "
            f"consecutive epochs. {then}"
        )
