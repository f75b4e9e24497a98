r"""Knowledge review: a student's deep maps join its shallow ones before these are compared.

Formula, for ``L`` levels from shallow to deep, with maps ``S_l`` ``(B, C_l, h_l, w_l)`` of the student and
``T_l`` ``(B, D_l, H_l, W_l)`` of the teacher, and ``M = min(512, C_L)`` channels in between. From the
deepest level to the shallowest, with learned convolutions ``conv``, batch norm ``BN``, and ``resize`` to the
size of what is named (nearest neighbour)::

    X_l    = BN( conv1x1(S_l) )                                                (B, M, h_l, w_l)
    a, b   = sigmoid( conv1x1( [X_l, resize(R_{l+1})] ) )                      (B, 1, h_l, w_l) each
    R_l    = resize( a * X_l + b * resize(R_{l+1}) ),   R_L = resize(X_L)      (B, M, H_l, W_l)
    F_l    = BN( conv3x3(R_l) )                                                (B, D_l, H_l, W_l)

    HCL(F, T) = sum_k c_k * mean( (pool_k(F) - pool_k(T))^2 ) / sum_k c_k
    ReviewKD  = sum_l HCL(F_l, T_l)                                            (scalar)

``pool_k`` is the whole map, with ``c = 1``, and average pooling to 4x4, 2x2 and 1x1, of these the sizes
below the map's height, with ``c`` half of the one before.

Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044,
section 3 (attention based fusion, hierarchical context loss). Defaults: weight 1 with a linear warm-up over
20 epochs, maps of all stages and the pooled vector as a map of one pixel, from mdistiller, which takes the
teacher's maps before their last activation and, on CIFAR-100, the student's behind it (before it as well on
ImageNet); the stages here are those that all CIFAR ResNets have. mdistiller has an option for the limit 512
and does not read it. The GDA code compares maps behind their activations, the stem's among them: of a CIFAR
ResNet, ``preactivation=neither`` with ``stages=[relu,1,2,3]`` does the same.

All shapes come from the models. Where one model gives more levels than the other, the levels of the
other are repeated evenly, so that deepest goes with deepest. Token maps are folded into squares.

The step takes about twice as long as KD's from ResNet32x4 to ResNet8x4 (measured on a CPU): the convolutions
``M`` channels wide, at the size of the shallow maps, have more multiplications than that student. This is
the published method.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.feature_maps import as_map
from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import RunFacts, TermInputs
from gda.models.layout import POOLED, PRE_ACTIVATION, layout_of
from gda.ranges import Range

# What follows a stage's name, student and teacher.
SUFFIXES = {
    "teacher": ("", PRE_ACTIVATION),
    "both": (PRE_ACTIVATION, PRE_ACTIVATION),
    "neither": ("", ""),
}


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: mean-squared difference of two maps and of their averages.

    Args:
        student: ``(batch, channels, height, width)``.
        teacher: The same shape; no gradient flows into it.

    Returns:
        Non-negative scalar, zero where both are equal.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    # Pooling is linear: the difference of averages is the average of differences.
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    total, weights, weight = difference.square().mean(), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            weights += weight
            total = total + weight * F.adaptive_avg_pool2d(difference, size).square().mean()
    return total / weights


def _resized(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.interpolate(feature, size, mode="nearest")


class AttentionFusion(nn.Module):
    """Joins one level's map with what the deeper levels have become.

    Args:
        inputs: Channels of the level's map.
        width: Channels in between.
        outputs: Channels of the map that is compared.
        fuses: Whether there is a deeper level.
    """

    def __init__(self, inputs: int, width: int, outputs: int, fuses: bool) -> None:
        super().__init__()
        into = nn.Conv2d(inputs, width, 1, bias=False)
        out = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        for convolution in (into, out):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.transform = nn.Sequential(into, nn.BatchNorm2d(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.output = nn.Sequential(out, nn.BatchNorm2d(outputs))

    def forward(self, feature: Tensor, size: tuple[int, int], deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the map to compare and the map to hand on, both of the size that is asked for.

        Args:
            feature: The level's map, ``(batch, inputs, height, width)``.
            size: Height and width of the results.
            deeper: What the next deeper level handed on, of any height and width; ``None`` at the deepest.
        """
        fused = self.transform(feature)
        if self.attention is not None and deeper is not None:
            # One convolution of both, without the copy that holds both; the deeper map is smaller.
            for_fused, for_deeper = self.attention.weight.split(fused.shape[1], dim=1)
            scores = F.conv2d(fused, for_fused, self.attention.bias)
            scores = scores + _resized(F.conv2d(deeper, for_deeper), fused.shape[2:])
            own, others = scores.sigmoid().split(1, dim=1)
            fused = own * fused + others * _resized(deeper, fused.shape[2:])
        fused = _resized(fused, size)
        return self.output(fused), fused


class ReviewKD(MapTerm):
    """Knowledge review as a term, with its fusion modules.

    Args:
        stages: Maps of the student from shallow to deep: stage numbers, or taps by name.
        teacher_stages: Maps of the teacher; ``None`` for the same. There may be more or fewer.
        pooled: Whether the vectors before the heads are the deepest level, as maps of one pixel.
        preactivation: Whose stages, of those given by number, are taken before their last activation.
        max_width: Largest number of channels in between.

    Raises:
        UserError: There is no level, or only one of the models has stages.
    """

    paper = "2104.09044"

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        teacher_stages: Sequence[int | str] | None = None,
        pooled: bool = True,
        preactivation: Literal["teacher", "both", "neither"] = "teacher",
        max_width: Annotated[int, Range(minimum=1)] = 512,
    ) -> None:
        theirs = stages if teacher_stages is None else teacher_stages
        levels = max(len(stages), len(theirs))
        deepest = [POOLED] if pooled else []
        ours, theirs = [*_stretched(stages, levels), *deepest], [*_stretched(theirs, levels), *deepest]
        super().__init__(ours, theirs)
        self.preactivation = preactivation
        suffixes = SUFFIXES[preactivation]
        self.student_features, self.teacher_features = (
            tuple(f"stage{each}{suffix}" if isinstance(each, int) else each for each in taps)
            for taps, suffix in zip((ours, theirs), suffixes, strict=True)
        )
        self.numbered = {
            f"stage{each}{suffix}"
            for taps, suffix in zip((ours, theirs), suffixes, strict=True)
            for each in taps
            if isinstance(each, int)
        }
        self.max_width = max_width
        self.fusions = nn.ModuleList()

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says which stages, or which maps before an activation, a model does not have."""
        pairs = (
            ("student", facts.student, self.student_features),
            ("teacher", facts.teacher, self.teacher_features),
        )
        unnamed = {
            role: model
            for role, model, taps in pairs
            if model is not None
            and not layout_of(model).preactivations
            and any(tap in self.numbered and tap.endswith(PRE_ACTIVATION) for tap in taps)
        }
        instead = "neither" if "teacher" in unnamed else "teacher"
        return [
            f"the {role} ({type(model).__name__}) names no maps before an activation; "
            f"preactivation={instead} takes those behind it"
            for role, model in unnamed.items()
        ] or super().refusals(facts)

    def setup(self, facts: RunFacts) -> None:
        """Makes one fusion module per level."""
        super().setup(facts)
        deepest = self.shapes[-1][0]
        width = min(self.max_width, deepest[0])
        last = len(self.shapes) - 1
        self.fusions = nn.ModuleList(
            AttentionFusion(ours[0], width, theirs[0], level < last)
            for level, (ours, theirs) in enumerate(self.shapes)
        )

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        teacher_features = {} if inputs.teacher is None else inputs.teacher.features
        losses, deeper = [], None
        levels = zip(self.fusions, self.student_features, self.teacher_features, self._described, strict=True)
        for fuse, ours, theirs, (our_tap, their_tap) in reversed(list(levels)):
            student = at_least_float32(as_map(inputs.student.features[ours], our_tap))
            teacher = as_map(teacher_features[theirs].detach(), their_tap)
            output, deeper = fuse(student, teacher.shape[2:], deeper)
            losses.append(hcl(output, teacher))
        return torch.stack(losses).sum()


def _stretched(stages: Sequence[int | str], levels: int) -> list[int | str]:
    """Repeats stages evenly until there are as many as levels; none stay none."""
    return [stages[level * len(stages) // levels] for level in range(levels)] if stages else []
