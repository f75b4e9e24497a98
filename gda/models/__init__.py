"""What is trained: the zoo by name, and every timm model."""

from gda.models.checkpoints import LoadedCheckpoint, load_checkpoint
from gda.models.registry import create_model, list_models
from gda.models.timm_models import create_timm_model

__all__ = ["LoadedCheckpoint", "create_model", "create_timm_model", "list_models", "load_checkpoint"]
