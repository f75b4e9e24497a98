"""What is trained: the zoo by name, and every timm model."""

from gda.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
