"""Which parameters weight decay reaches."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(modules: Iterable[nn.Module], decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Splits trainable parameters into those without and those with weight decay.

    Args:
        modules: The student and whatever the terms train with it.
        decay_norm_and_bias: False takes 1-D parameters (norm layers and biases) out of weight decay,
            as timm does.

    Returns:
        Optimiser groups; group 0 has no weight decay where there are two. Empty groups are left out.
    """
    parameters = [
        parameter for module in modules for parameter in module.parameters() if parameter.requires_grad
    ]
    if decay_norm_and_bias:
        return [{"params": parameters}]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
    ]
    return [group for group in groups if group["params"]]
