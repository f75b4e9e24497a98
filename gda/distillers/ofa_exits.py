r"""Exits that bring a student's features, maps or tokens, to logits (see :mod:`gda.distillers.ofa`).

Both kinds are those of Hao et al., arXiv:2310.19444, section 3, in the form and with the first values of
OFAKD, which has tables of widths, sizes and stages where they are taken from the shapes here.
"""

import itertools
import math

import torch
from torch import Tensor, nn

LAST_SIDE = 7
HEADS = 4


def _first_values(module: nn.Module) -> None:
    """Starts as published; the fan-out of a depthwise convolution counts all its channels."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConvolutionExit(nn.Sequential):
    """Logits from a map, ``(batch, channels, height, width)``.

    Pairs of depthwise separable convolutions halve the map and double its channels until it is at most 7
    wide; average pooling and a linear layer follow. OFAKD counts stages instead, 3, 2, 1 and 0 pairs for
    stages 1 to 4, which is the same at the image sizes of :mod:`gda.models.layout`.

    Args:
        shape: Channels, height and width of the map.
        width: Width of the vector in front of the linear layer.
        classes: Number of logits.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, classes: int) -> None:
        channels, side = shape[0], max(shape[1:])
        widths: list[int] = []
        while side > LAST_SIDE:
            widths.append(channels * 2 ** len(widths))
            side = math.ceil(side / 2)
        halvings: list[nn.Module] = [_halving(*pair) for pair in itertools.pairwise([*widths, width])]
        super().__init__(
            *(halvings or [nn.Conv2d(channels, width, 1)]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )
        self.apply(_first_values)


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    """Returns two depthwise separable convolutions, of which the first halves the map."""

    def separable(channels: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]

    return nn.Sequential(*separable(inputs, 2), *separable(outputs, 1))


class TransformerExit(nn.Module):
    """Logits from tokens, ``(batch, prefix + side * side, inputs)``.

    2x2 tokens become one as long as 7x7 are left and the side is even; transformer blocks of 4 heads follow,
    and a linear layer on the class token or, where there is none, on the mean of all tokens.

    Args:
        side: Height and width of the square that the image's tokens fill.
        prefix: Number of class and register tokens in front.
        inputs: Width of the tokens.
        width: Width of the transformer blocks.
        blocks: Number of transformer blocks.
        classes: Number of logits.
    """

    def __init__(self, side: int, prefix: int, inputs: int, width: int, blocks: int, classes: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.prefix = prefix
        sides = []
        while side % 2 == 0 and side // 2 >= LAST_SIDE:
            sides.append(side)
            side //= 2
        self.merge = nn.Sequential(
            *(
                # Published: an activation behind the first merge, and behind all others but the last.
                _MergedPatches(each, width if place else inputs, width, not place or each != sides[-1])
                for place, each in enumerate(sides)
            )
        )
        if not sides:
            self.merge = nn.Sequential(_to_width(inputs, width))
        self.widen = _to_width(inputs, width) if prefix else nn.Identity()
        heads = math.gcd(HEADS, width)
        self.blocks = nn.Sequential(*(Block(dim=width, num_heads=heads) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)
        self.apply(_first_values)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the exit's logits, ``(batch, classes)``."""
        merged = self.merge(tokens[:, self.prefix :])
        if not self.prefix:
            return self.head(self.blocks(merged).mean(dim=1))
        prefix = self.widen(tokens[:, : self.prefix])
        return self.head(self.blocks(torch.cat([prefix, merged], dim=1))[:, 0])


def _to_width(inputs: int, width: int) -> nn.Module:
    return nn.Identity() if inputs == width else nn.Linear(inputs, width)


class _MergedPatches(nn.Module):
    """Joins the tokens of 2x2 neighbours: ``(batch, side * side, inputs)`` to a quarter as many."""

    def __init__(self, side: int, inputs: int, outputs: int, activated: bool) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * inputs)
        self.reduce = nn.Linear(4 * inputs, outputs, bias=False)
        self.activation = nn.GELU() if activated else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        half = self.side // 2
        squares = tokens.unflatten(1, (half, 2, half, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.activation(self.reduce(self.norm(squares.flatten(3).flatten(1, 2))))
