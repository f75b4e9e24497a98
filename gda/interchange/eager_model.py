"""A model in eager mode, and what it says to random images: what every file of it is held against."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gda.errors import UserError
from gda.interchange.model_input import ModelInput

BATCH_SIZES = (1, 5)
"""Images in the two batches of a check; the graph is recorded from the second."""

_SEED = 0


@dataclass(frozen=True)
class Deviation:
    """How far the outputs of a file are from the eager ones.

    Attributes:
        largest: Largest absolute difference of any logit of any image.
        relative: The same, divided by the largest absolute logit.
    """

    largest: float
    relative: float


class EagerModel:
    """The model itself, and what it says to random images.

    Args:
        model: The model, on the CPU, in evaluation mode.
        build: Builds one of the same architecture, with any weights.
        input: The images it takes.
        metadata: Texts that go into a safetensors file beside the weights.

    Raises:
        UserError: The model can't take such images.
    """

    def __init__(
        self,
        model: nn.Module,
        build: Callable[[], nn.Module],
        input: ModelInput,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.build, self.metadata = model, build, metadata or {}
        self.batches = [input.random_images(count, _SEED) for count in BATCH_SIZES]
        try:
            self.logits = outputs(model, self.batches)
        except (RuntimeError, ValueError, AssertionError) as error:  # torch and timm raise all three
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"The model can't take images of {input.image_size} pixels: {reason}.") from error

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The recorded graph, for any number of images."""
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(self.model, (self.batches[-1],), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        return program

    def deviation(self, found: Sequence[Tensor]) -> Deviation:
        """Compares outputs for the same images; NaN counts as infinitely far."""
        differences = [
            float((ours - theirs).abs().max()) if ours.shape == theirs.shape else math.inf
            for ours, theirs in zip(self.logits, found, strict=True)
        ]
        largest = max(math.inf if math.isnan(each) else each for each in differences)
        scale = max(float(logits.abs().max()) for logits in self.logits)
        return Deviation(largest, largest / scale if scale else largest)


def outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Returns a model's logits of each batch."""
    with torch.inference_mode():
        return [model(images) for images in batches]
