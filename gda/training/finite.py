"""Stops a run whose loss is no longer a number, and says which term, where, and on what batch."""

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gda.errors import UserError
from gda.tasks.task import StepOutput


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite."""


class FiniteGuard:
    """Looks at the losses every few steps, remembering the steps in between.

    A look makes a GPU wait for its queue, hence not every step. What is remembered is small: the
    scalars and the logits.

    Args:
        every: Steps between two looks.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._waiting: deque[tuple[int, int, StepOutput]] = deque()

    def record(self, epoch: int, step: int, output: StepOutput) -> None:
        """Remembers a step, and looks when it is time.

        Raises:
            NonFiniteLoss: A loss of one of the remembered steps is not finite.
        """
        self._waiting.append((epoch, step, output.detached()))
        if len(self._waiting) >= self.every:
            self.look()

    def look(self) -> None:
        """Checks all remembered steps; called before a checkpoint, so that none holds bad weights."""
        if not self._waiting:
            return
        losses = torch.stack([output.loss.float() for _, _, output in self._waiting])
        if not bool(torch.isfinite(losses).all()):
            for epoch, step, output in self._waiting:
                if not bool(torch.isfinite(output.loss)):
                    raise NonFiniteLoss(_describe(epoch, step, output))
        self._waiting.clear()


def require_finite_weights(modules: Mapping[str, nn.Module], epoch: int) -> None:
    """Stops before a checkpoint would hold weights or batch statistics that are not finite.

    The last step of an epoch can be too long while its loss was still a number.

    Args:
        modules: What is trained.
        epoch: The epoch that has just ended, counted from 0.

    Raises:
        NonFiniteLoss: A parameter or buffer is not finite.
    """
    tensors = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    if not bool(finite.all()):
        bad = [name for name, good in zip(tensors, finite.tolist(), strict=True) if not good]
        raise NonFiniteLoss(
            f"After the last step of epoch {epoch + 1} weights are not finite, though its losses were: "
            f"{', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}. The last good "
            "checkpoint is kept. A lower recipe.lr or recipe.gradient_clip=1 usually helps."
        )


def require_finite_figures(row: Mapping[str, float]) -> None:
    """Stops before a diverged epoch is saved: huge weights are still numbers, what they compute is not.

    Args:
        row: The epoch's figures, the losses and metrics of all splits.

    Raises:
        NonFiniteLoss: A figure is not finite.
    """
    bad = [f"{name} {value}" for name, value in row.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteLoss(
            f"Training has diverged: after epoch {row['epoch']} these figures are not finite: "
            f"{', '.join(bad[:4])}. The last good checkpoint is kept. A lower recipe.lr or "
            "recipe.gradient_clip=1 usually helps."
        )


def _describe(epoch: int, step: int, output: StepOutput) -> str:
    bad = [name for name, value in output.terms.items() if not bool(torch.isfinite(value))]
    which = f"term {' and '.join(repr(name) for name in bad)}" if bad else "weighted sum of finite terms"
    return (
        f"The loss is not finite: {which} in epoch {epoch + 1}, step {step + 1}. "
        f"Terms: {_scalars(output.terms)}. Batch: {_statistics(output.tensors)}. "
        "The last good checkpoint is kept. A lower recipe.lr, recipe.gradient_clip=1 or a smaller weight "
        "of that term usually helps; if the student's logits are already NaN, the step before was too long."
    )


def _scalars(values: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())


def _statistics(tensors: Mapping[str, Tensor]) -> str:
    parts = []
    for name, tensor in tensors.items():
        values = tensor.float()
        finite = values[torch.isfinite(values)]
        bad = values.numel() - finite.numel()
        if finite.numel():
            text = f"min {finite.min():.4g}, max {finite.max():.4g}, mean {finite.mean():.4g}"
        else:
            text = "no finite value"
        parts.append(f"{name} {text}" + (f", {bad} of {values.numel()} not finite" if bad else ""))
    return "; ".join(parts)
