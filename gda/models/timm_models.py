"""Any timm model, for ``teacher=timm`` and ``student=timm``."""

from typing import Any

from torch import nn

from gda.models.registry import TIMM, create_model


def create_timm_model(name: str, num_classes: int, pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds a timm model by timm's own name.

    Args:
        name: Name with or without ``timm/``, e.g. ``resnet18.a1_in1k``.
        num_classes: Size of the output.
        pretrained: Whether timm fetches its published weights.
        **options: Passed on to ``timm.create_model``.

    Raises:
        UserError: timm has no such model, or does not take one of the options.
    """
    return create_model(TIMM + name.removeprefix(TIMM), num_classes, pretrained=pretrained, **options)
