"""Where a model's features are: its stages by spatial scale, the maps before an activation, the head.

A family's models carry a :class:`Layout` as their attribute ``layout``. Stage ``k`` halves stage
``k - 1``, and it means the same scale in every family. At a model's native image size:

==========  ======  =======  =======  =======  =======
native      models  stage 1  stage 2  stage 3  stage 4
==========  ======  =======  =======  =======  =======
32 pixels   CIFAR   32       16       8        4
80 pixels   few-    40       20       10       5
            shot
224 pixels  Image-  56       28       14       7
            Net
==========  ======  =======  =======  =======  =======

A stage is the last map of its scale. A model without maps of a scale has no such stage: a CIFAR
ResNet of three stages has no stage 4, a network whose stem halves CIFAR images has no stage 1.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

INPUT = ":input"
"""Ends the tap of what a module gets, instead of what it puts out."""

PRE_ACTIVATION = ":pre"
"""Ends the name of a stage's map before its last activation."""

FINAL = "final"
"""Names the map whose average over height and width is the pooled vector."""

POOLED = "pooled"
"""Names the vector ``(batch, width)`` that the head turns into logits."""

_PASSES_ON = (nn.Identity, nn.Flatten, nn.Dropout)


@dataclass(frozen=True)
class Layout:
    """Taps of a model by the names that hold for every model.

    Attributes:
        stages: Module path of each stage's output, by stage number.
        preactivations: Tap of the same maps before their last activation, by stage number: a module
            path, or a module path with ``:input`` for what that module gets.
        head: Module path of the layer that makes logits of the pooled vector; ``None`` where there is
            none.
        encoder: Module path of what puts out the pooled vector, where there is no head; empty for the
            model itself.
        final_map: Tap of the map whose average over height and width is the pooled vector; ``None``
            where there is none.
    """

    stages: Mapping[int, str]
    preactivations: Mapping[int, str]
    head: str | None
    encoder: str = ""
    final_map: str | None = None

    def names(self) -> dict[str, str]:
        """Returns all taps, ``stage1`` ..., ``stage1:pre`` ..., ``final`` and ``pooled``, by name."""
        pooled = self.encoder if self.head is None else self.head + INPUT
        return {
            **{f"stage{number}": path for number, path in self.stages.items()},
            **{f"stage{number}{PRE_ACTIVATION}": tap for number, tap in self.preactivations.items()},
            **({} if self.final_map is None else {FINAL: self.final_map}),
            POOLED: pooled,
        }

    def within(self, parent: str) -> "Layout":
        """Returns the same layout for a model that holds this one as its submodule ``parent``."""
        return Layout(
            {number: f"{parent}.{path}" for number, path in self.stages.items()},
            {number: f"{parent}.{tap}" for number, tap in self.preactivations.items()},
            f"{parent}.{self.head}" if self.head else self.head,
            f"{parent}.{self.encoder}" if self.encoder else parent,
            f"{parent}.{self.final_map}" if self.final_map else None,
        )


def layout_of(model: nn.Module) -> Layout:
    """Returns a model's layout: its own, what timm says of it, or only its head.

    timm lists the maps of its models with their strides; of each stride from 4 to 32 the last one is
    a stage. Where all maps have one stride, as the token maps of a ViT, the stages are the ends of the
    four quarters of its depth.

    Args:
        model: Any model, unwrapped (see :func:`gda.models.taps.unwrap`).
    """
    own = getattr(model, "layout", None)
    if isinstance(own, Layout):
        return own
    return Layout(_timm_stages(model), {}, _head(model), final_map=_timm_final_map(model))


def _timm_stages(model: nn.Module) -> dict[int, str]:
    listed = getattr(model, "feature_info", None)
    known = dict(model.named_modules())
    if not isinstance(listed, list):
        return {}
    maps = [(each["module"], each["reduction"]) for each in listed if each.get("module") in known]
    strides = {stride for _, stride in maps}
    if len(strides) == 1 and len(maps) >= 4:
        return {number: maps[number * len(maps) // 4 - 1][0] for number in (1, 2, 3, 4)}
    return {number: path for path, stride in maps for number in (1, 2, 3, 4) if stride == 2 ** (number + 1)}


def _timm_final_map(model: nn.Module) -> str | None:
    """Finds what timm's global average pooling gets, where nothing but the head follows it.

    ConvNeXt has a norm behind its pooling, MobileNetV3 a convolution: the pooled vector is no average there.
    """
    known = list(model.named_modules())
    head = _head(model)
    for place, (path, module) in enumerate(known):
        if path.rpartition(".")[2] == "global_pool" and getattr(module, "pool_type", None) == "avg":
            behind = itertools.takewhile(lambda each: each[0] != head, known[place + 1 :])
            others = [each for name, each in behind if not name.startswith(f"{path}.")]
            return path + INPUT if all(isinstance(each, _PASSES_ON) for each in others) else None
    return None


def _head(model: nn.Module) -> str | None:
    """Finds the classifier: the one timm names, else the last linear layer."""
    paths = {id(module): path for path, module in model.named_modules()}
    classifier = getattr(model, "get_classifier", None)  # timm's
    if callable(classifier):
        head = classifier()
        if isinstance(head, tuple):  # distilled models have a second one for the teacher's labels
            head = head[0]
        return paths.get(id(head)) if not isinstance(head, nn.Identity) else None
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None
