"""scikit-learn's estimators around the network and its training: `MLPClassifier` and `MLPRegressor`."""

from mlp_xp._functions import publish as _publish
from mlp_xp.estimators._mlp import MLPClassifier, MLPRegressor
from mlp_xp.estimators._mlp import _Labels as _Labels

__all__ = ["MLPClassifier", "MLPRegressor"]

_publish(__name__, globals(), [*__all__, "_Labels"])
