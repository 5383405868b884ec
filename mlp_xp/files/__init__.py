"""Saving and loading models as safetensors files, which cannot run code: `save_model` and `load_model`.

Saving needs safetensors: ``pip install 'mlp_xp[files]'``. `trusted_types` is for files of skops.
"""

from mlp_xp._functions import set_public_module as _set_public_module
from mlp_xp.files._models import ModelFileError, load_model, save_model, trusted_types

__all__ = ["ModelFileError", "load_model", "save_model", "trusted_types"]

_set_public_module(__name__, globals(), __all__)
