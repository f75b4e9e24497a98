"""One line of a family's table: how a model of the zoo is built, and for which images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Builder = Callable[..., nn.Module]
"""Called with ``num_classes=`` and the model's own options."""


@dataclass(frozen=True)
class ZooEntry:
    """A model of the zoo.

    Attributes:
        build: Builds it with freshly initialised weights.
        image_size: Height and width in pixels of the images that it was published for.
        encoder: Whether it builds an encoder where ``num_classes`` is ``None``.
    """

    build: Builder
    image_size: int
    encoder: bool = False
