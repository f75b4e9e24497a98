r"""Overhaul of feature distillation: maps before their activation, where the teacher's values matter.

Formula, for the maps of stage ``l`` before their last activation, ``S_l`` ``(B, C_S, H, W)`` of the
student and ``T_l`` ``(B, C_T, H, W)`` of the teacher, and a learned connector ``r_l`` from ``C_S`` to
``C_T`` channels; ``s = r_l(S_l)`` and, with a margin ``m_lc < 0`` per channel, ``t = max(T_l, m_l)``::

    d(s, t)  = 0 where s <= t <= 0, else (s - t)^2
    OFD      = sum_l 2^(l - L) * 1/B sum over B, C_T, H, W of d(s, t)          (scalar)

for ``l = 1 ... L``: the last map has weight 1, each one before it half of the next. A value that batch
norm of scale ``g`` and shift ``b`` gives is taken to be normal, and the margin is its mean where it is
negative: with ``x = b / |g|``, density ``phi`` and distribution function ``Phi`` of the standard normal::

    m = b - |g| * phi(x) / Phi(-x)        where Phi(-x) > 0.001, else -3 |g|

Source: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
arXiv:1904.01866, section 3 (margin ReLU, partial L2 distance). Defaults: weight 1e-3 and a connector of a
1x1 convolution without bias and batch norm from mdistiller, which equals the authors' code; 1e-4 for
ResNet50 -> MobileNet on ImageNet. Both take every stage of a model; the stages here are those that all
CIFAR ResNets have. mdistiller pairs maps from the last one backwards and margins from the first one
onwards; here every margin belongs to its map.

Where a residual sum makes the map, the batch norm is that of the main branch, as published. ShuffleNetV2
joins halves of a map behind it and can't be a teacher; the published code refuses ShuffleNetV1 as well.
Connectors start as published: normal, of variance 2 over the teacher's channels.
"""

import math
from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn

from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import RunFacts, TermInputs
from gda.models.layout import INPUT, PRE_ACTIVATION, layout_of
from gda.models.tap_descriptions import TapDescription

INSTEAD = "fitnet, at, nst and vid compare maps behind their activation and work for this pair"


def margins(scale: Tensor, shift: Tensor) -> Tensor:
    """Mean of the negative part of normal variables.

    Args:
        scale: Standard deviations ``(channels,)``, of any sign: batch norm's weight.
        shift: Means ``(channels,)``: batch norm's bias.

    Returns:
        ``(channels,)``, never positive; in float32 or better, without gradient.
    """
    deviation, mean = at_least_float32(scale.detach()).abs(), at_least_float32(shift.detach())
    # A channel without spread is the limit of a small one.
    ratio = mean / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    expected = mean - deviation * density / negative.clamp_min(torch.finfo(negative.dtype).tiny)
    return torch.where(negative > 0.001, expected, -3 * deviation)


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance from the teacher's map behind a margin ReLU.

    Args:
        student: The student's map after its connector, ``(batch, channels, height, width)``.
        teacher: Map of the teacher before its activation, of the same shape; no gradient flows into it.
        margin: Smallest value of each channel that is asked for, ``(channels,)``, not above 0.

    Returns:
        Non-negative scalar, a sum over channels and positions and a mean over the batch.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    target = torch.maximum(teacher, margin.to(teacher.dtype).reshape(1, -1, 1, 1))
    # Below a target that the activation cuts off, the student's value makes no difference.
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0).square().sum() / len(student)


def batch_norm_behind(model: nn.Module, tap: TapDescription) -> nn.BatchNorm2d | None:
    """Finds the batch norm whose output a tapped map is, but for a residual sum or pooling.

    That is the tapped module itself or the last layer in it; of a tapped input, the last batch norm
    beside the module, and before it.

    Args:
        model: The model, unwrapped.
        tap: The tap of one of its maps.

    Returns:
        The batch norm, or ``None`` where there is none with scale and shift for every channel.
    """
    if len(tap.shape) != 3:
        return None
    path = tap.path.removesuffix(INPUT)
    if tap.path.endswith(INPUT):
        parent, _, name = path.rpartition(".")
        beside = dict(model.get_submodule(parent).named_children())
        before = takewhile(lambda each: each != name, beside)
        candidates = [beside[each] for each in before if isinstance(beside[each], nn.BatchNorm2d)]
    else:
        candidates = list(model.get_submodule(path).modules())
    norm = candidates[-1] if candidates else None
    if isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.num_features == tap.shape[0]:
        return norm
    return None


def _connector(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / outputs))
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class OFD(MapTerm):
    """Overhaul of feature distillation as a term, with its connectors and margins.

    Args:
        stages: Maps of the student: stage numbers, which mean maps before the last activation, or taps
            by name.
        teacher_stages: Maps of the teacher; ``None`` for the same.
    """

    paper = "1904.01866"
    suffix = PRE_ACTIVATION

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        teacher_stages: Sequence[int | str] | None = None,
    ) -> None:
        super().__init__(stages, teacher_stages)
        self.connectors = nn.ModuleList()

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says which maps before an activation, or which batch norms, a model does not have."""
        unnamed = [
            *self._unnamed("student", facts.student, self.student_features),
            *self._unnamed("teacher", facts.teacher, self.teacher_features),
        ]
        return unnamed or [*super().refusals(facts), *self._without_margins(facts)]

    def _unnamed(self, role: str, model: nn.Module | None, taps: tuple[str, ...]) -> list[str]:
        """Refuses a model that has no stage before its activation at all."""
        if model is None or layout_of(model).preactivations or not self.numbered & set(taps):
            return []
        what = f"the {role} ({type(model).__name__}) names no maps before an activation"
        if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            return [f"{what}, and has no batch norm; {INSTEAD}"]
        paths = "give module paths whose output is that of a batch norm, as in stages=[layer2.1.bn2]"
        return [f"{what}; {paths}; {INSTEAD}"]

    def _without_margins(self, facts: RunFacts) -> list[str]:
        """Refuses maps of the teacher that no batch norm makes."""
        if facts.teacher is None:
            return []
        model = type(facts.teacher).__name__
        known = facts.teacher_features
        taps = [known[name] for name in self.teacher_features if name in known]
        return [
            f"no batch norm makes {tap.path} of the teacher ({model}) channel by channel, to read margins "
            f"off; {INSTEAD}"
            for tap in taps
            if batch_norm_behind(facts.teacher, tap) is None
        ]

    def setup(self, facts: RunFacts) -> None:
        """Makes one connector per pair of maps, and reads the margins off the teacher."""
        super().setup(facts)
        self.connectors = nn.ModuleList(_connector(ours[0], theirs[0]) for ours, theirs in self.shapes)
        for number, name in enumerate(self.teacher_features):
            teacher = facts.teacher
            norm = None if teacher is None else batch_norm_behind(teacher, facts.teacher_features[name])
            if norm is None:
                raise ValueError(f"no batch norm makes {name} of the teacher, hence there is no margin")
            self.register_buffer(f"margin{number}", margins(norm.weight, norm.bias))

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        last = len(self.connectors) - 1
        losses = [
            ofd(connect(student), teacher, self.get_buffer(f"margin{number}")) / 2 ** (last - number)
            for number, (connect, (student, teacher)) in enumerate(
                zip(self.connectors, self.pairs(inputs), strict=True)
            )
        ]
        return torch.stack(losses).sum()
