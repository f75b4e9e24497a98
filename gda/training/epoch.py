"""Figures of an epoch that is being trained, kept so that it can go on where it stopped."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gda.ranks import gather_objects, rank, sum_over_ranks
from gda.tasks.task import StepOutput
from gda.training.batch_statistics import statistics_of


class EpochSums:
    """Sums of the steps' figures, weighted by images, on the device: nothing waits for a GPU.

    Attributes:
        images: Images that this process has trained on in the epoch.
    """

    def __init__(self, sums: Mapping[str, Tensor] | None = None, images: int = 0) -> None:
        self._sums = dict(sums or {})
        self.images = images

    def add(self, output: StepOutput) -> None:
        """Adds one step, or a part of one."""
        terms = {f"term/{name}": value for name, value in output.terms.items()}
        for name, value in {"train_loss": output.loss.detach(), **terms}.items():
            weighted = value.double() * output.images
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self.images += output.images

    def means(self) -> tuple[dict[str, float], int]:
        """Returns the mean of every figure over the images of all processes, and their number."""
        values = torch.stack([*self._sums.values()]).double()
        total = sum_over_ranks(torch.cat([values, values.new_tensor([float(self.images)])]))
        images = int(total[-1].item())
        figures = dict(zip(self._sums, (total[:-1] / images).tolist(), strict=True))
        return figures, images

    def state(self, modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
        """Returns what each process has of its own in the middle of an epoch, in the order of the ranks.

        Args:
            modules: What is trained; its batch statistics differ between processes until the epoch ends.
        """
        statistics = [each.detach().cpu().clone() for each in statistics_of(modules)]
        sums = {name: value.cpu() for name, value in self._sums.items()}
        return gather_objects({"sums": sums, "images": self.images, "statistics": statistics})

    @classmethod
    def restored(
        cls, states: Sequence[Mapping[str, Any]], modules: Sequence[nn.Module], device: torch.device
    ) -> "EpochSums":
        """Takes this process's part of what :meth:`state` returned."""
        own = states[rank()]
        with torch.no_grad():
            for buffer, saved in zip(statistics_of(modules), own["statistics"], strict=True):
                buffer.copy_(saved)
        return cls({name: value.to(device) for name, value in own["sums"].items()}, own["images"])
