"""Mixed precision: autocast of the forward passes, and loss scaling where float16 needs it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from gda.tasks.task import StepOutput
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

    def step(
        self,
        output: StepOutput,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        clip: float | None,
    ) -> None:
        """Backward pass, optional clipping of the global gradient norm, optimiser step.

        :class:`~gda.training.dot.DOT` gets the gradients of the supervised and of the distillation loss
        apart, in two backward passes; clipping then sees those of the supervised loss.
        """
        optimizer.zero_grad(set_to_none=True)
        if isinstance(optimizer, DOT) and output.supervised is not None and output.distilled is not None:
            output.distilled.backward(retain_graph=True)
            optimizer.hold()
            output.supervised.backward()
        else:
            self.scaler.scale(output.loss).backward()
        if clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()
