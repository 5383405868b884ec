"""scikit-learn's estimators around the network and its training: `MLPClassifier` and `MLPRegressor`."""

from mlp_xp.estimators._mlp import MLPClassifier, MLPRegressor, _Labels

__all__ = ["MLPClassifier", "MLPRegressor"]

for _public in (MLPClassifier, MLPRegressor, _Labels):  # the address that pickles and run folders have
    _public.__module__ = __name__
