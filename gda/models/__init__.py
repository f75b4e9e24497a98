"""What is trained: the zoo by name, and every timm model."""

from gda.models.exported import load_exported
from gda.models.registry import create_model, list_models
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import FeatureTaps, features
from gda.models.timm_models import create_timm_model
from gda.models.weights.checkpoints import LoadedCheckpoint, load_checkpoint

__all__ = [
    "FeatureTaps",
    "LoadedCheckpoint",
    "TapDescription",
    "create_model",
    "create_timm_model",
    "describe",
    "features",
    "list_models",
    "load_checkpoint",
    "load_exported",
]
