"""What a scikit-learn fit tells while it goes on: to scikit-learn's callbacks, and in print."""

from __future__ import annotations

from typing import Any

from mlp_xp._arrays import Array, Placement
from mlp_xp._parameters import Parameters
from mlp_xp._training.early_stopping import Watch
from mlp_xp._training.loop import History, Listener, Progress


def shown(params: Parameters, home: Placement) -> tuple[list[Array], list[Array]]:
    """Return weights and biases as the lists that users see, where X lives."""
    weights, biases = zip(*params)
    return [home.bring(weight) for weight in weights], [home.bring(bias) for bias in biases]


class FitReport:
    """Tells scikit-learn's callbacks, and who set `verbose`, how a fit goes on."""

    def __init__(self, estimator: Any, home: Placement, context: Any = None, data: Any = None) -> None:
        self.estimator = estimator
        self.home = home
        callbacks = () if context is None else getattr(estimator, "_skl_callbacks", ())
        self.listeners = [callback.on_progress for callback in callbacks if hasattr(callback, "on_progress")]
        # Who only listens to the history needs no task for each epoch, and no copy of the weights.
        self.context: Any = context if len(self.listeners) < len(callbacks) else None
        self.data = data
        self.progress: Progress | None = None

    @property
    def callback(self) -> Any:
        """What a training calls after each epoch; None where nobody listens."""
        return self.after_epoch if self.context is not None or self.estimator.verbose else None

    @property
    def on_progress(self) -> Listener | None:
        """What a training tells of its history as it grows; None where nobody listens."""
        return self._tell if self.listeners else None

    def _tell(self, history: History) -> None:
        for listener in self.listeners:
            listener(history)

    def begin(self) -> None:
        """Say that the fit begins, and its first epoch with it."""
        if self.context is not None:
            self.context.call_on_fit_task_begin(estimator=self.estimator, **self.data)
            if self.estimator.solver != "lbfgs":
                self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch = self.context.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def after_epoch(self, history: History, params: Parameters) -> bool:
        """Tell of the epoch that ended, and begin the next; return whether a callback asks to stop."""
        estimator, record = self.estimator, history[-1]
        watch = None if self.progress is None else self.progress.watch
        if estimator.verbose:
            self._say(record, watch)
        if self.context is None:
            return False

        def attributes() -> dict[str, Any]:
            return dict(zip(("coefs_", "intercepts_"), shown(params, self.home)))

        if estimator.solver == "lbfgs":  # it does not say beforehand whether it goes on
            self._begin_epoch()
        stop = self.epoch.call_on_fit_task_end(
            estimator=estimator, reconstruction_attributes=attributes, **self.data
        )
        last = (
            stop
            or estimator.solver == "lbfgs"
            or (watch is not None and watch.stopped)
            or len(history) == estimator.max_iter
        )
        if not last:
            self._begin_epoch()
        return bool(stop)

    def end(self) -> None:
        """Say that the fit is over."""
        estimator = self.estimator
        if self.context is not None:
            attributes = {"coefs_": estimator.coefs_, "intercepts_": estimator.intercepts_}
            self.context.call_on_fit_task_end(
                estimator=estimator, reconstruction_attributes=attributes, **self.data
            )

    def _say(self, record: dict[str, Any], watch: Watch | None) -> None:
        estimator = self.estimator
        print(f"Iteration {record['epoch']}, loss = {record['loss']:.8f}")
        for name, value in record.items():
            if name == "val_loss" and estimator.early_stopping == "loss":
                print(f"Validation loss: {value:f}")
            elif name.startswith("val_") and name != "val_loss":
                print(f"Validation score: {value:f}")
        if watch is None or not watch.event:
            return
        what = "Validation score" if estimator.early_stopping else "Training loss"
        if estimator.early_stopping == "loss":
            what = "Validation loss"
        then = "Stopping." if watch.rule.divide_rate is None else "Learning rate too small. Stopping."
        if watch.event == "divided":
            then = f"Setting learning rate to {watch.rate(estimator.learning_rate_init):f}"
        print(
            f"{what} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} "
            f"consecutive epochs. {then}"
        )
