"""Pictures of learning curves, decision boundaries, and networks. They need matplotlib.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; markers or line styles
distinguish the same things, for print in black and white.
"""

from mlp_xp._functions import set_public_module as _set_public_module

try:
    from mlp_xp.plotting._decision_boundary import plot_decision_boundary
    from mlp_xp.plotting._learning_curve import plot_learning_curve
    from mlp_xp.plotting._network_diagram import plot_network
except ModuleNotFoundError as error:
    raise ImportError(f"mlp_xp.plotting needs matplotlib ({error}): pip install 'mlp_xp[plot]'") from None

__all__ = ["plot_decision_boundary", "plot_learning_curve", "plot_network"]

_set_public_module(__name__, globals(), __all__)
