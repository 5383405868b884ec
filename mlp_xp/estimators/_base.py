"""The base of the estimators: the methods that users call."""

from __future__ import annotations

import copy
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils.validation import check_is_fitted

from mlp_xp._arrays import Array, Placement, placement
from mlp_xp._devices import current_device
from mlp_xp._processes import together
from mlp_xp._training.checkpoints import Checkpoint, check_checkpoint
from mlp_xp._training.history import History, OutOfMemoryError
from mlp_xp._training.recovery import without_frames
from mlp_xp.backends import _destination
from mlp_xp.estimators._batches import open_stream
from mlp_xp.estimators._documentation import fill_docstring
from mlp_xp.estimators._draft import Draft
from mlp_xp.estimators._fitted import forget_device_copy, outputs
from mlp_xp.estimators._fitting import LAST_ENGINE_NAMES, run
from mlp_xp.estimators._input import HOST
from mlp_xp.estimators._interface import Estimator
from mlp_xp.estimators._report import FitReport
from mlp_xp.estimators._resuming import become_resumed, find_checkpoint, move_to
from mlp_xp.estimators._task import prepare_task

Self = TypeVar("Self", bound="BaseMLP")


@dataclass(eq=False, repr=False)
class BaseMLP(Estimator, CallbackSupportMixin):
    """Base of `MLPClassifier` and `MLPRegressor`.

    Input becomes a task in `_task`, the task is run in `_fitting`, and a fitted model is read in `_fitted`.
    """

    @with_callbacks
    @fill_docstring
    def fit(
        self: Self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | bool = False,
    ) -> Self:
        """Train on X and y, from the start or, with `warm_start`, from where the last fit ended.

        Parameters
        ----------
        {fit_parameters}

        {fit_results}
        """
        validation_data = X_val, y_val, sample_weight_val
        return self._fit(
            X, y, sample_weight, checkpoint=checkpoint, resume=resume, validation_data=validation_data
        )

    def _partial_fit(self: Self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        if self.early_stopping:
            raise ValueError(
                f"partial_fit does not support early_stopping=True: `early_stopping` must be False, got "
                f"{self.early_stopping!r}"
            )
        return self._fit(X, y, sample_weight, incremental=True, classes=classes)

    def _fit(
        self: Self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        incremental: bool = False,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | bool = False,
        **data: Any,
    ) -> Self:
        with together("partial_fit" if incremental else "fit"), ExitStack() as stack:
            checkpoint = check_checkpoint(checkpoint)
            source = find_checkpoint(self, resume, checkpoint)
            raw = None if incremental else open_stream(self, X, y, sample_weight)
            if raw is not None:
                X = y = sample_weight = None  # that callbacks do not read it
            stack.enter_context(current_device(X if raw is None else raw.first.X))
            draft = Draft(self)
            if source is not None:
                become_resumed(draft.copy, source)
                data["resumed"] = True
            task = prepare_task(draft.copy, X, y, sample_weight, incremental=incremental, raw=raw, **data)
            report = FitReport(draft, task.home)
            if not incremental:
                metadata = None if sample_weight is None else {"sample_weight": sample_weight}
                context = self._init_callback_context(max_subtasks=self.max_iter)
                report.begin(context, {"X": X, "y": y, "metadata": metadata})
            try:
                run(draft, task, report, checkpoint, None if source is None else source.path)
            except OutOfMemoryError as error:
                del task, report  # the error's traceback keeps this frame, and must not keep the arrays
                raise without_frames(error) from error.__cause__
            report.end()
        return self

    def predict(self, X: Any) -> Array:
        """Predict labels, or values.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            In the library and on the device of the data fitted with.

        Returns
        -------
        array of shape (n_samples,) or (n_samples, n_outputs)
            There too; labels that are text are on the host.

        Raises
        ------
        ValueError
            If X lives elsewhere; `to` moves the model.

        Warns
        -----
        RuntimeWarning
            If predictions are infinite or NaN, because X, or a rate, is too large for the dtype.
        """
        with current_device(X):
            return self._decode(*self._outputs(X, "predict"))

    def to(self: Self, target: Any) -> Self:
        """Move the fitted model to another array library or device, and return it.

        Parameters
        ----------
        target : str or device
            "numpy", "cupy", "torch", "jax", "auto", or a device of the library it is in.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
        BackendUnavailableError
            If that library cannot be used here.
        ValueError
            If there is no such library or device.

        Examples
        --------
        >>> from mlp_xp import MLPRegressor
        >>> model = MLPRegressor(solver="lbfgs", random_state=0).fit([[0.0], [1.0]], [1.0, 3.0])
        >>> type(model.to("numpy").coefs_[0]).__name__
        'ndarray'
        """
        check_is_fitted(self)
        place = _destination(target, placement(coefs_=self.coefs_[0]))
        draft = Draft(self)
        move_to(draft.copy, place)
        draft.publish()
        forget_device_copy(self)
        return self

    @property
    def history_(self) -> History:
        """`loss_curve_`, `val_loss_curve_` and `validation_scores_` as one table, a record for each epoch."""
        check_is_fitted(self)
        history = History({"epoch": epoch, "loss": loss} for epoch, loss in enumerate(self.loss_curve_, 1))
        history.engine = LAST_ENGINE_NAMES.get(self, "")
        columns = {
            f"{self._score_name}": self._training_scores,
            "val_loss": self.val_loss_curve_,
            f"val_{self._score_name}": self.validation_scores_,
        }
        for name, values in columns.items():
            # Only the last fit of a warm start may have had validation data.
            for record, value in zip(reversed(history), reversed(values or [])):
                record[name] = value
        return history

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.input_tags.sparse = True
        return tags

    def _forget_progress(self) -> None:
        """Drop what only a continued training needs: the optimizer's state and more."""
        self._continuation = None

    def _outputs(self, X: Any, method: str) -> tuple[Array, Placement]:
        """Return the network's outputs for samples, and the place where they live."""
        return outputs(self, X, method)

    def _with_fixed_outputs(self, outputs: Array) -> BaseMLP:
        """Return a copy on the host that predicts from these outputs, for scikit-learn's scorers."""
        copied = copy.copy(self)
        copied._move_labels(HOST)
        copied.__dict__["_outputs"] = lambda X, method: (outputs, HOST)  # hides the method
        return copied
