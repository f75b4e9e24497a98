r"""One for all: exits on the student's stages learn the teacher's predictions, whatever the architectures.

Formula, for logits ``t`` ``(B, C)`` of the teacher, logits ``s_l`` ``(B, C)`` of an exit on the student's
stage ``l = 1 ... L`` and its own logits ``s_{L+1}``, target class ``y`` ``(B,)``, temperature ``T`` and an
exponent ``e_l`` for each; ``p = softmax(s / T)``, ``q = softmax(t / T)``, ``[c = y]`` 1 at the target::

    loss(s, t, y; e) = 1/B sum_i sum_c -( (q_ic + [c = y_i])^e - [c = y_i] ) * log p_ic
    OFA              = loss(s_{L+1}, t, y; e_{L+1}) + sum_l loss(s_l, t, y; e_l)        (scalar, nats)

At ``e = 1`` this is the cross-entropy with the teacher. Above 1 the target weighs more, the more so the
surer the teacher is of it, and the other classes weigh less. It is not 0 where both agree.

Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures
in Knowledge Distillation", NeurIPS 2023, arXiv:2310.19444, section 3. Form and
defaults from OFAKD: T 1 without a factor ``T^2``, both parts with factor 1, exponent 1 as in its code
and its command line for CIFAR-100, where it is 1.5 for ImageNet; its repository gives no values per pair.
OFAKD has exits on stages 1 to 4; the stages here are those that all CIFAR ResNets have. What an exit is
made of: :mod:`gda.distillers.ofa_exits`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.feature_maps import as_map, map_shape
from gda.distillers.logits import at_least_float32, below_maximum, logit_pair
from gda.distillers.ofa_exits import ConvolutionExit, TransformerExit
from gda.distillers.term import RunFacts, Term, TermInputs
from gda.errors import UserError
from gda.models.layout import POOLED, layout_of
from gda.models.tap_descriptions import TapDescription
from gda.ranges import NonNegative, Positive


def ofa(
    student: Tensor, teacher: Tensor, target: Tensor, exponent: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy with the teacher, the target enhanced where the teacher is sure of it.

    Args:
        student: Logits of the student, or of an exit, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the most
            probable class is taken (mixed labels; the teacher's in label-free training).
        exponent: Power of the enhanced probabilities, above 0.
        temperature: Softening of both distributions, above 0.

    Returns:
        Non-negative scalar in nats (batch mean).

    Raises:
        ValueError: The shapes differ.
    """
    student, teacher = logit_pair(student, teacher)
    if target.dim() == 2:
        target = target.argmax(dim=1)
    is_target = F.one_hot(target, student.shape[1])
    enhanced = (F.softmax(below_maximum(teacher) / temperature, dim=1) + is_target) ** exponent - is_target
    log_p = F.log_softmax(below_maximum(student) / temperature, dim=1)
    return -(enhanced * log_p).sum(dim=1).mean()


class OFA(Term):
    """One for all as a term, with its exits.

    Args:
        stages: Where the student has exits: stage numbers, or taps by name.
        eps: Exponent of all losses, or of each exit's and, last, of the student's own.
        temperature: Softening of all distributions.
        exit_weight: Factor of the exits' losses; that of the student's own is 1.
        projector: What an exit is made of: ``convolution``, ``transformer``, or ``auto``, which takes
            transformer blocks for tokens and convolutions for maps.

    Raises:
        UserError: There is neither one exponent above 0 nor one for each loss.
    """

    kind = "heterogeneous"
    paper = "2310.19444"

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        eps: Sequence[Annotated[float, Positive]] = (1.0,),
        temperature: Annotated[float, Positive] = 1.0,
        exit_weight: Annotated[float, NonNegative] = 1.0,
        projector: Literal["auto", "convolution", "transformer"] = "auto",
    ) -> None:
        super().__init__()
        if len(eps) not in (1, len(stages) + 1) or not all(each > 0 for each in eps):
            raise UserError(
                f"eps takes one exponent above 0 for all, as eps=[1.0], or one for each of the {len(stages)} "
                f"stages and a last one for the student's own logits; it is {list(eps)}"
            )
        self.stages = tuple(stages)
        self.taps = tuple(f"stage{stage}" if isinstance(stage, int) else stage for stage in stages)
        self.student_features = (*self.taps, POOLED)
        self.teacher_features = (POOLED,)
        self.eps = [float(eps[0])] * (len(stages) + 1) if len(eps) == 1 else [float(each) for each in eps]
        self.temperature, self.exit_weight, self.projector = temperature, exit_weight, projector
        self.exits = nn.ModuleList()
        self._described: list[TapDescription] = []

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says which stages the student does not have, or which tokens can't be merged."""
        sentences = []
        if facts.student is not None:
            known = layout_of(facts.student).names()
            numbered = [
                tap for tap, stage in zip(self.taps, self.stages, strict=True) if isinstance(stage, int)
            ]
            missing = [tap for tap in numbered if tap not in known]
            have = [stage for stage in (1, 2, 3, 4) if f"stage{stage}" in known]
            if missing:
                typed = ",".join(map(str, have))  # without spaces, as one types it
                instead = f"it has those of stages=[{typed}]" if have else "it names none"
                sentences.append(
                    f"the student ({type(facts.student).__name__}) has no {' and no '.join(missing)}; "
                    f"{instead}; module paths do as well, as in stages=[layer2]"
                )
        for tap in self.taps:
            try:
                if tap in facts.student_features:
                    map_shape(facts.student_features[tap])
            except ValueError as error:
                sentences.append(f"{tap} of the student can't have an exit: {error}")
        return sentences

    def setup(self, facts: RunFacts) -> None:
        """Makes one exit per stage."""
        self._described = [facts.student_features[tap] for tap in self.taps]
        ours, theirs = (
            map_shape(known[POOLED])[0] for known in (facts.student_features, facts.teacher_features)
        )
        self.exits = nn.ModuleList()
        for place, (stage, tap) in enumerate(zip(self.stages, self._described, strict=True), start=1):
            shape = map_shape(tap)
            if self._takes_tokens(tap):
                # Of a module path, its place among the exits stands for the number of its stage.
                blocks = max(4 - (stage if isinstance(stage, int) else place), 1)
                made: nn.Module = TransformerExit(
                    shape[1], tap.prefix_tokens, shape[0], ours, blocks, facts.classes
                )
            else:
                made = ConvolutionExit(shape, max(ours, theirs), facts.classes)
            self.exits.append(made)

    def _takes_tokens(self, tap: TapDescription) -> bool:
        if self.projector == "auto":
            return len(tap.shape) == 2
        return self.projector == "transformer" and len(tap.shape) > 1

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        logits = []
        for make_logits, name, tap in zip(self.exits, self.taps, self._described, strict=True):
            feature = at_least_float32(inputs.student.features[name])
            if not self._takes_tokens(tap):
                feature = as_map(feature, tap)
            elif feature.ndim == 4:
                feature = feature.flatten(2).transpose(1, 2)
            logits.append(make_logits(feature))
        *exits, own = [
            ofa(each, inputs.teacher_logits, inputs.targets, exponent, self.temperature)
            for each, exponent in zip([*logits, inputs.student.logits], self.eps, strict=True)
        ]
        return own + self.exit_weight * torch.stack(exits).sum() if exits else own
