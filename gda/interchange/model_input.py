"""What goes into a model and how many classes come out, known without the data at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from gda.config.signature import construct
from gda.data.pipeline import Pipeline
from gda.errors import UserError
from gda.seeding import generator


@dataclass(frozen=True)
class ModelInput:
    """The images that a model was trained on, as the model sees them.

    Attributes:
        classes: Number of classes.
        image_size: Height and width in pixels, after the test transforms.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Asks a config's data set and test transforms; reads no image.

        Returns:
            The input; ``None`` where the data set says nothing without its files, and they are missing.

        Raises:
            UserError: A test transform can't take images of this size.
        """
        source = construct(config["dataset"])
        facts = source.known_facts() if source.problems() else source.facts()
        if facts is None:
            return None
        nodes = config["recipe"]["test_transforms"]
        transforms = {name: None if node is None else construct(node) for name, node in nodes.items()}
        size = Pipeline(transforms, source.mean, source.std).output_size(facts.evaluation_image_size)
        return cls(facts.classes, size, tuple(source.mean), tuple(source.std))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Reads what :func:`dataclasses.asdict` has made of it, from JSON.

        Raises:
            UserError: Something is missing or of another kind.
        """
        try:
            mean, std = (tuple(float(value) for value in record[key]) for key in ("mean", "std"))
            return cls(int(record["classes"]), int(record["image_size"]), mean, std)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the record of a model's input can't be read ({error!r})") from error

    def random_images(self, count: int, seed: int) -> Tensor:
        """Makes images of uniform noise, normalised as real ones are.

        Args:
            count: How many.
            seed: Fixes the pixels.

        Returns:
            ``(count, channels, image_size, image_size)``, float32.
        """
        draws = generator(seed, "random images", count)
        shape = (count, len(self.mean), self.image_size, self.image_size)
        pixels = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
        return Pipeline({}, self.mean, self.std)(pixels, draws)
