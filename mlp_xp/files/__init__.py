"""Trained models as files that run no code: `save_model` and `load_model` (need safetensors)."""

from mlp_xp._functions import publish as _publish
from mlp_xp.files._models import ModelFileError, load_model, save_model

__all__ = ["ModelFileError", "load_model", "save_model"]

_publish(__name__, globals(), __all__)
