"""Learning rates as pure functions of the epoch, so that resuming needs no schedule state.

Stepped once an epoch, as the published recipes do (timm 0.6's schedulers with ``t_in_epochs``;
mdistiller's ``adjust_learning_rate``).
"""

import math
from collections.abc import Sequence
from typing import Annotated

from gda.ranges import NonNegative, Positive, Share


class Steps:
    """Multiplies the learning rate by ``factor`` at each milestone.

    Args:
        lr: Learning rate before the first milestone.
        epochs: Length of training; not used.
        milestones: Epochs, counted from 0, at whose start the rate drops.
        factor: What it is multiplied with.
    """

    def __init__(
        self, lr: float, epochs: int, milestones: Sequence[int], factor: Annotated[float, Share] = 0.1
    ) -> None:
        self.lr, self.milestones, self.factor = lr, sorted(milestones), factor

    def __call__(self, epoch: int) -> float:
        """Returns the learning rate in force during ``epoch`` (counted from 0)."""
        return float(self.lr * self.factor ** sum(epoch >= milestone for milestone in self.milestones))


class Cosine:
    """Half a cosine from ``lr`` to ``minimum``, after a linear warm-up.

    The cosine counts from epoch 0, also through the warm-up, as the published code does: at the end
    of a warm-up of 10 epochs the rate is already a little below ``lr``.

    Args:
        lr: Peak learning rate.
        epochs: Length of training.
        minimum: Learning rate at the end, and past it.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate of the first warm-up epoch.
    """

    def __init__(
        self,
        lr: float,
        epochs: int,
        minimum: Annotated[float, NonNegative] = 0.0,
        warmup_epochs: Annotated[int, NonNegative] = 0,
        warmup_lr: Annotated[float, Positive] = 1e-4,
    ) -> None:
        self.lr, self.epochs, self.minimum = lr, epochs, minimum
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr

    def __call__(self, epoch: int) -> float:
        """Returns the learning rate in force during ``epoch`` (counted from 0)."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr + epoch * (self.lr - self.warmup_lr) / self.warmup_epochs
        if epoch >= self.epochs:
            return self.minimum
        return self.minimum + 0.5 * (self.lr - self.minimum) * (1 + math.cos(math.pi * epoch / self.epochs))
