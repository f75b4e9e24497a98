"""Mixed precision: autocast of the forward passes, and loss scaling where float16 needs it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn

from gda.ranks import rank_count
from gda.training.dot import DOT

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Autocast and gradient scaling of one run.

    Args:
        name: ``float32``, ``bfloat16`` or ``float16``.
        device: Where the forward passes run.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _TYPES.get(name)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of the forward passes."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def keeps_gradients_apart(self, optimizer: torch.optim.Optimizer) -> bool:
        """Says whether the optimiser wants the gradients of two losses, and not those of their sum."""
        return isinstance(optimizer, DOT)

    def backward(
        self,
        loss: Tensor,
        supervised: Tensor | None,
        distilled: Tensor | None,
        optimizer: torch.optim.Optimizer,
        weight: float = 1.0,
    ) -> None:
        """Adds the gradients of a loss to those that are there.

        :class:`~gda.training.dot.DOT` gets the gradients of the supervised and of the distillation loss
        apart, in two backward passes.

        Args:
            loss: The weighted sum of both, a scalar.
            supervised: The supervised loss; ``None`` where there is none.
            distilled: The distillation loss; ``None`` where there is none.
            optimizer: Whose gradients they become.
            weight: Factor of all losses: what the images count for in the step.
        """
        if not isinstance(optimizer, DOT):
            self.scaler.scale(weight * loss).backward()
            return
        if supervised is not None and distilled is not None:
            (weight * distilled).backward(retain_graph=True)
            average_gradients(optimizer)
            optimizer.hold()
            (weight * supervised).backward()
        else:
            self.scaler.scale(weight * loss).backward()
        average_gradients(optimizer)

    def update(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip: float | None
    ) -> None:
        """Optional clipping of the global gradient norm, then the optimiser's step.

        With :class:`~gda.training.dot.DOT`, clipping sees the gradients of the supervised loss.
        """
        if clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replaces gradients by their mean over all processes, where DDP has not done so."""
    if rank_count() == 1:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad.div_(rank_count())
