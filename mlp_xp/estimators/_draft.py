"""Changes of an estimator's attributes that take effect all at once or not at all."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from mlp_xp.estimators._interface import Estimator

E = TypeVar("E", bound=Estimator)


class Draft(Generic[E]):
    """A copy of an estimator to change; the estimator stays as it is until `publish`.

    Attributes
    ----------
    estimator : Estimator
    copy : Estimator
    """

    def __init__(self, estimator: E) -> None:
        self.estimator = estimator
        self.before = dict(vars(estimator))
        self.copy: E = object.__new__(type(estimator))
        self.copy.__dict__.update(self.before)

    @property
    def changed(self) -> dict[str, Any]:
        """The attributes that the copy has set."""
        after = vars(self.copy).items()
        return {name: value for name, value in after if value is not self.before.get(name, self)}

    @property
    def removed(self) -> set[str]:
        """The names of the attributes that the copy has removed."""
        return self.before.keys() - vars(self.copy).keys()

    def publish(self) -> None:
        """Make the changes of the copy those of the estimator."""
        removed = self.removed
        kept = {name: value for name, value in vars(self.estimator).items() if name not in removed}
        # One assignment, which no interrupt can leave half done.
        self.estimator.__dict__ = kept | self.changed
