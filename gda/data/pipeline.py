"""From raw images to what a model sees: named transforms in order, then normalisation."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gda.data.transforms import Transform


class Pipeline:
    """Named transforms in order, then normalisation.

    Args:
        transforms: Transforms by name, in the order of application; ``None`` values are skipped.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    def __init__(
        self, transforms: Mapping[str, Transform | None], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.transforms = {name: each for name, each in transforms.items() if each is not None}
        self.mean = 255 * torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = 255 * torch.tensor(std, dtype=torch.float32)[:, None, None]

    @property
    def random(self) -> list[str]:
        """Names of the transforms that draw random numbers."""
        return [name for name, each in self.transforms.items() if each.random]

    def to(self, device: torch.device) -> "Pipeline":
        """Moves the normalisation constants to ``device``, in place."""
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Maps uint8 ``(batch, 3, h, w)`` to float32 of mean 0 and standard deviation 1 or so."""
        for transform in self.transforms.values():
            images = transform(images, draws)
        return images.float().sub_(self.mean).div_(self.std)

    def output_size(self, input_size: int) -> int:
        """Returns height and width that square images of ``input_size`` pixels come out with.

        Raises:
            UserError: A transform can't take the size that reaches it.
        """
        for transform in self.transforms.values():
            input_size = transform.output_size(input_size)
        return input_size
