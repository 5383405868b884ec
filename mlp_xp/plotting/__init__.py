"""Pictures of learning curves, decision boundaries, and networks. They need matplotlib.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; markers or line styles
distinguish the same things, for print in black and white.
"""

from mlp_xp._functions import set_public_module as _set_public_module
from mlp_xp._messages import package_needed as _package_needed

with _package_needed("mlp_xp.plotting", "matplotlib", "plot"):
    from mlp_xp.plotting._decision_boundary import plot_decision_boundary
    from mlp_xp.plotting._learning_curve import plot_learning_curve
    from mlp_xp.plotting._network_diagram import plot_network

__all__ = ["plot_decision_boundary", "plot_learning_curve", "plot_network"]

_set_public_module(__name__, globals(), __all__)
