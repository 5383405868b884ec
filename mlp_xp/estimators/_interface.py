"""Interface between the modules of an estimator: hyperparameters, fitted attributes, targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from mlp_xp._arrays import Array, HostArray, Placement
from mlp_xp._network import Network
from mlp_xp._samples import Shard
from mlp_xp.estimators._hyperparameters import Hyperparameters


class FittedAttributes:
    """The attributes that a fit sets; see the documentation of the estimators.

    Attributes
    ----------
    _continuation : dict or None
        What a later fit needs to continue the training, in plain dicts, lists and tuples so that pickles of
        it name no private class: under "progress" what `Progress.to_dict` returns, under
        "validation_random_state" the state of the generator that drew the validation part, under "metric"
        which score `validation_scores_` holds. None after "lbfgs", and after loading a model file.
    _score_name : str or None
        Which score was measured on validation data.
    _scores_training : bool
        Whether that score is measured on the training data too, after each epoch, for `_training_scores`,
        which model files do not keep.
    _shards : tuple of two Shard or None
        Which rows of the whole the samples of the next fit are, and those of its validation data, if they
        are some that were chosen of what several processes have.
    """

    coefs_: list[Array]
    intercepts_: list[Array]
    out_activation_: str
    n_features_in_: int
    n_layers_: int
    n_outputs_: int
    n_iter_: int
    t_: int
    loss_: float
    best_loss_: float | None
    best_validation_score_: float | None
    loss_curve_: list[float]
    val_loss_curve_: list[float] | None
    validation_scores_: list[float] | None
    feature_names_in_: HostArray
    _score_name: str | None
    _continuation: dict[str, Any] | None = None
    _scores_training: bool = False
    _training_scores: list[float] | None = None
    _shards: tuple[Shard | None, Shard | None] = (None, None)


@dataclass(eq=False, repr=False)
class Estimator(Hyperparameters, FittedAttributes, ABC):
    """An estimator without its public methods; classifier and regressor define how targets are handled."""

    _is_classifier: ClassVar[bool]

    @abstractmethod
    def _check_y(self, y: Any, n_samples: int, home: Placement) -> Any:
        """Return checked targets: labels on the host, or values."""

    @abstractmethod
    def _learn_targets(self, y: Any, home: Placement, classes: Any, sparse: bool) -> None:
        """Set what a first fit learns from its targets; `classes` are those of all later calls too."""

    @abstractmethod
    def _check_learned_targets(self, y: Any, *, complete: bool) -> None:
        """Check that targets fit what was learned; `complete` asks for every class."""

    @abstractmethod
    def _encode(self, y: Any) -> Array:
        """Return checked targets as the network takes them, of shape (n_samples, n_outputs)."""

    @abstractmethod
    def _decode(self, outputs: Array, home: Placement) -> Array:
        """Return the predictions that `predict` makes of the network's outputs."""

    def _class_weights(self, y: Any, sample_weight: Array | None, incremental: bool) -> HostArray | None:
        """Return the factor of each sample's weight that class weights make, or None."""
        return None

    def _move_labels(self, place: Placement) -> None:
        """Bring `classes_`, where there are some, to a place."""
        return

    def _label_state(self) -> dict[str, Any]:
        """Return what a model file says of the labels."""
        return {}

    def _restore_labels(self, learned: dict[str, Any], network: Network, place: Placement) -> None:
        """Set what `_label_state` returned, after checks."""
        return

    @abstractmethod
    def _outputs(self, X: Any, method: str) -> tuple[Array, Placement]:
        """Return the network's outputs for samples, and the place where they live."""

    @abstractmethod
    def _with_fixed_outputs(self, outputs: Array) -> Estimator:
        """Return a copy on the host that predicts from these outputs, for scikit-learn's scorers."""
