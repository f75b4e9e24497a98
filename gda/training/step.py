"""One step of the optimiser: forward and backward passes of this process's share of a batch."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gda.config.schema import TrainerSettings
from gda.distillers.term import Progress
from gda.errors import UserError
from gda.ranks import rank, rank_count
from gda.seeding import stream_seed
from gda.tasks.task import StepOutput, Task
from gda.training.precision import Precision

# Batch statistics are averaged once an epoch instead of being copied from rank 0 at each step. Newer torch
# has another name for it.
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {
    ("forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"): False
}


class OptimizerStep:
    """Takes a batch to the next weights.

    Of several processes each computes the loss of its own images, and torch's DDP averages the gradients.
    A process with more images than another, as in an incomplete last batch, counts for more, so that the
    gradient is the mean over all images of the step.

    Args:
        task: What is trained; its modules are on ``device``.
        optimizer: Optimiser over the task's modules.
        precision: Autocast and gradient scaling.
        settings: Accumulation, and what DDP must know.
        clip: Largest allowed global gradient norm; ``None`` for none.
        seed: The run's seed.
    """

    def __init__(
        self,
        task: Task[Any],
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        settings: TrainerSettings,
        clip: float | None,
        seed: int,
    ) -> None:
        self.optimizer, self.precision, self.clip, self.seed = optimizer, precision, clip, seed
        self.accumulation = settings.accumulation
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self._loss: nn.Module = _Loss(task)
        self._unseen: DistributedDataParallel | None = None
        if rank_count() > 1:
            self._loss = DistributedDataParallel(
                self._loss,
                find_unused_parameters=settings.find_unused_parameters,
                gradient_as_bucket_view=True,
                **_OWN_BUFFERS,
            )
            self._unseen = self._loss
            self._settle_buckets()

    def __call__(self, batch: Any, progress: Progress) -> list[StepOutput]:
        """Trains on one batch.

        Args:
            batch: This process's share.
            progress: Where training stands.

        Returns:
            What each part of the batch gave, without gradient; one part without accumulation.

        Raises:
            UserError: The loss leaves parameters out, for which DDP would wait, and was not told to look.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.parts(self.accumulation) if self.accumulation > 1 else [batch]
        outputs = []
        for number, part in enumerate(parts):
            position = replace(progress, part=number, rank=rank())
            torch.manual_seed(stream_seed(self.seed, "forward", *position.stream))  # dropout and the like
            with self._synchronised(last=number == len(parts) - 1):
                with self.precision.autocast():
                    loss, supervised, distilled, output = self._loss(part, position)
                weight = 1.0
                if len(parts) > 1 or rank_count() > 1:
                    weight = len(part) * rank_count() / batch.total
                self.precision.backward(loss, supervised, distilled, self.optimizer, weight)
            outputs.append(output)
        self._require_gradients()
        self.precision.update(self.optimizer, self.parameters, self.clip)
        return outputs

    def _settle_buckets(self) -> None:
        """Lets DDP put the gradients into their final order before the first step.

        DDP sorts them anew after its first backward pass, and of more than two processes the order in which
        they are added decides the last digit. Without this, a run that was continued, whose first step comes
        later, would end differently.
        """
        self._loss().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _require_gradients(self) -> None:
        """Looks once, after the first backward pass, for parameters that DDP waits for in vain."""
        ddp, self._unseen = self._unseen, None
        if ddp is None or ddp.find_unused_parameters or self.precision.keeps_gradients_apart(self.optimizer):
            return
        names = [name for name, each in ddp.module.trained.named_parameters() if _is_left_out(each)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"The loss does not reach {', '.join(names[:3])}{more}. Several processes must be told to "
                "look for such parameters, which takes time: trainer.find_unused_parameters=true."
            )

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Lets gradients travel in the last backward pass of a step alone.

        An optimiser that wants the gradients of two losses apart averages them itself.
        """
        apart = self.precision.keeps_gradients_apart(self.optimizer)
        if isinstance(self._loss, DistributedDataParallel) and (apart or not last):
            return self._loss.no_sync()
        return nullcontext()


def _is_left_out(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.grad is None


class _Loss(nn.Module):
    """A task's step as a module: DDP sees all that is trained, and one forward pass whatever it calls."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(dict(task.modules))
        self._step = task.training_step

    def forward(self, batch: Any = None, progress: Progress | None = None) -> Any:
        if progress is None:  # all parameters, in a loss of no meaning
            return torch.stack([p.sum() for p in self.trained.parameters() if p.requires_grad]).sum()
        output = self._step(batch, progress)
        return output.loss, output.supervised, output.distilled, output.detached()
