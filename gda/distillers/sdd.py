r"""Scale decoupled distillation: a logit loss on the logits of image regions, at several scales.

Formula, for the final maps of both models, each pooled to ``m x m`` regions for every scale ``m`` in
``M`` (``N`` regions in all), and turned into logits ``s_n``, ``t_n`` ``(B, C)`` by each model's own head;
``l`` the loss of one sample of the base method, ``y`` the target class::

    SDD[l] = 1/(N*B) sum_n sum_i w_ni * l(s_ni, t_ni, y_i)
    w_ni   = 2 where the teacher is right about one of region n and the whole image, and wrong about the
             other (complementary terms), else 1 (consistent terms)

Source: Wei, Luo, Luo, "Scale Decoupled Distillation", CVPR 2024, arXiv:2403.13512.
Defaults from its code: ``M = [1, 2, 4]``, weight 2. There the smaller scales are pooled from the 4x4
regions, which is the same for maps whose sides are multiples of 4; here every scale is pooled from the
map, so that scale 1 is the whole image for all sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.distillers.plugin import Plugin
from gda.distillers.term import ModelOutput, RunFacts, TermInputs
from gda.errors import UserError
from gda.models.layout import FINAL, layout_of
from gda.models.tap_descriptions import TapDescription
from gda.models.taps import FeatureTaps
from gda.ranges import NonNegative, Range


def region_vectors(feature_map: Tensor, scales: Sequence[int]) -> Tensor:
    """Averages a map over its regions.

    Args:
        feature_map: ``(batch, channels, height, width)``.
        scales: Regions in each direction, one number a scale.

    Returns:
        ``(regions * batch, channels)``: all images of the first region, then of the second, and so on.
    """
    pooled = [F.adaptive_avg_pool2d(feature_map, scale).flatten(2) for scale in scales]
    return torch.cat(pooled, dim=2).permute(2, 0, 1).flatten(0, 1)


class ScaleDecoupling(Plugin):
    """Computes a logit loss on the logits of regions.

    Args:
        scales: Regions in each direction, one number a scale.
        complementary_weight: Weight of the regions that say something else than the whole image.
        student_map: Tap of the student's map whose average its head takes.
        teacher_map: The same of the teacher.
    """

    paper = "2403.13512"
    needs_sample_wise = True

    def __init__(
        self,
        scales: Sequence[Annotated[int, Range(minimum=1)]] = (1, 2, 4),
        complementary_weight: Annotated[float, NonNegative] = 2.0,
        student_map: str = FINAL,
        teacher_map: str = FINAL,
    ) -> None:
        super().__init__()
        if not scales or min(scales) < 1:
            raise ValueError(f"scales must be numbers of at least 1, e.g. [1, 2, 4], not {list(scales)}")
        self.scales = tuple(scales)
        self.complementary_weight = complementary_weight
        self.student_features, self.teacher_features = (student_map,), (teacher_map,)
        self._heads: tuple[nn.Linear, ...] = ()  # a tuple: heads are parts of the models, not of this

    def refusals(self, facts: RunFacts) -> list[str]:
        """Refuses models whose head can't be applied to a region."""
        sides = (
            ("student", facts.student, facts.student_features, self.student_features[0]),
            ("teacher", facts.teacher, facts.teacher_features, self.teacher_features[0]),
        )
        return [
            f"sdd applies the {role}'s head to regions of its last map, and {what}; plugin=lskd and "
            "plugin=ctkd need no map"
            for role, model, known, name in sides
            if model is not None and (what := _misfit(model, known.get(name), name))
        ]

    def setup(self, facts: RunFacts) -> None:
        """Looks up both heads, and tries them on the mean of the maps.

        Raises:
            UserError: Something else lies between a model's map and its logits.
        """
        assert facts.student is not None
        assert facts.teacher is not None
        self._heads = (_head(facts.student), _head(facts.teacher))
        for role, model, taps, head in (
            ("student", facts.student, facts.student_features, self._heads[0]),
            ("teacher", facts.teacher, facts.teacher_features, self._heads[1]),
        ):
            name = (self.student_features if role == "student" else self.teacher_features)[0]
            if not _gives_the_logits(model, name, taps[name], head):
                raise UserError(
                    f"sdd: the {role}'s head, on the mean of {taps[name].path}, does not give its logits: "
                    f"something lies between. Another tap, plugin.plugins.sdd.{role}_map=MODULE, may fit."
                )

    def forward(self, term: Callable[[TermInputs], Tensor], inputs: TermInputs) -> Tensor:
        """Returns the term's loss over all regions; no region's loss is computed twice."""
        assert inputs.teacher is not None
        student = _logits(inputs.student.features[self.student_features[0]], self.scales, self._heads[0])
        with torch.no_grad():
            teacher = _logits(inputs.teacher.features[self.teacher_features[0]], self.scales, self._heads[1])
        count = len(teacher) // len(inputs.targets)
        target = inputs.targets.argmax(dim=1) if inputs.targets.dim() == 2 else inputs.targets
        right = teacher.argmax(dim=1) == target.repeat(count)
        right_of_image = inputs.teacher_logits.argmax(dim=1) == target
        complementary = right != right_of_image.repeat(count)
        targets = inputs.targets.repeat(count, *[1] * (inputs.targets.dim() - 1))
        indices = inputs.indices.repeat(count)
        total = student.new_zeros(())
        for rows, weight in ((~complementary, 1.0), (complementary, self.complementary_weight)):
            chosen = rows.nonzero().squeeze(1)
            if len(chosen) == 0:
                continue
            loss = term(
                replace(
                    inputs,
                    student=ModelOutput(student[chosen]),
                    teacher=ModelOutput(teacher[chosen]),
                    targets=targets[chosen],
                    indices=indices[chosen],
                )
            )
            total = total + weight * len(chosen) * loss
        return total / len(teacher)


def _logits(feature_map: Tensor, scales: Sequence[int], head: nn.Linear) -> Tensor:
    # Not head(...): taps on the head are for the whole image.
    return at_least_float32(F.linear(region_vectors(feature_map, scales), head.weight, head.bias))


def _gives_the_logits(model: nn.Module, name: str, tap: TapDescription, head: nn.Linear) -> bool:
    size = round((tap.stride or 1) * tap.shape[1])
    images = torch.randn(2, 3, size, size, device=head.weight.device, dtype=head.weight.dtype)
    training = model.training
    with torch.no_grad(), FeatureTaps(model, [name]) as taps:
        logits = model.eval()(images)
        rebuilt = _logits(taps.collect()[name], [1], head)
    model.train(training)
    return bool((rebuilt - logits).abs().max() <= 1e-3 * logits.abs().max() + 1e-6)


def _head(model: nn.Module) -> nn.Linear:
    path = layout_of(model).head
    head = dict(model.named_modules()).get(path) if path is not None else None
    if not isinstance(head, nn.Linear):
        raise ValueError("the model has no linear head")
    return head


def _misfit(model: nn.Module, tap: TapDescription | None, name: str) -> str:
    """Says why the head can't be applied to regions of a map; nothing where it can, or for unknown taps."""
    try:
        head = _head(model)
    except ValueError as error:
        return str(error)
    if tap is None:
        return (
            f"the head of {type(model).__name__} is not given the average of a map" if name == FINAL else ""
        )
    if len(tap.shape) != 3:
        return f"{tap.path} gives no map"
    if tap.shape[0] != head.in_features:
        return f"{tap.path} has {tap.shape[0]} channels where its head takes {head.in_features}"
    return ""
