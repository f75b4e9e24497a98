"""How good a model is on the test images of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from gda.data.dataset import ImageDataset
from gda.data.loader import TensorLoader
from gda.tasks.metrics import Metrics


@dataclass(frozen=True)
class MeasuredAccuracy:
    """What was measured, or why nothing was.

    Attributes:
        dataset: Name of the data set.
        recipe: Recipe whose statistics and test transforms prepared the images.
        images: Number of test images.
        top1: Accuracy in per cent.
        top5: Share in per cent of images whose class is among the five largest logits.
        loss: Cross-entropy in nats an image.
        ece: Expected calibration error, in [0, 1].
        reason: Why nothing was measured; the figures are null then.
    """

    dataset: str
    recipe: str
    images: int = 0
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    ece: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not measured: {self.reason}"
        return (
            f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % of {self.images:,} images of {self.dataset} "
            f"(recipe {self.recipe})"
        )


def measure(model: nn.Module, dataset: ImageDataset, recipe: Mapping[str, Any]) -> MeasuredAccuracy:
    """Evaluates a model as training does, on a GPU where there is one.

    Args:
        model: The model, on the CPU, where it is again afterwards; put into evaluation mode.
        dataset: Its test images are used.
        recipe: The config node with test transforms and batch size.
    """
    assert dataset.test is not None, "a data set for classification has test images"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = TensorLoader(
        dataset.test,
        recipe["evaluation_batch_size"],
        instantiate(recipe["test_transforms"], _convert_="all"),
        dataset.mean,
        dataset.std,
        device=device,
    )
    metrics = Metrics()
    model.eval().to(device)
    with torch.inference_mode():
        for batch in loader.batches():
            metrics.update(model(batch.images), batch.targets)
    model.to("cpu")
    figures = metrics.result("")
    return MeasuredAccuracy(
        dataset.name,
        recipe["name"],
        metrics.images,
        top1=figures["top1"],
        top5=figures["top5"],
        loss=figures["loss"],
        ece=figures["ece"],
    )
