r"""Multi-level logit distillation: instances, their similarities and the classes', softened in several ways.

Formula, for student and teacher logits of the weak view, ``s`` and ``t``, and of the strong view, all
``(B, C)``; ``p_T = softmax(s / T)`` and ``q_T = softmax(t / T)``, both of the weak view, ``(B, C)``::

    KD(T)    = T^2 / B sum_i KL(q_T,i || p_T,i)          of either view
    BC(T)    = 1/B sum_ij ((q_T q_T' - p_T p_T')_ij)^2   similarities of images, (B, B)
    CC(T)    = 1/C sum_cd ((q_T' q_T - p_T' p_T)_cd)^2   similarities of classes, (C, C)
    h        = share of images whose largest q_1 is at most the batch's median
    g        = share of classes whose sum of q_1 over the batch is at most the classes' median

    instance = sum over T in {T0, shared, weak} of h KD_weak(T)
             + sum over T in {T0, shared} of KD_strong(T) + sum over T in {weak} of KD_weak(T)
    batch    = sum over T in {T0, shared, weak} of h BC(T)
    class    = sum over T in {T0, shared, weak} of g CC(T)
    MLKD     = instance + batch + class                                      (scalar)

The strong view has a cross entropy of its own, :class:`StrongGroundTruth`.

Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023. The formula is that of the code,
which the repositories Jin-Ying/Multi-Level-Logit-Distillation and sunshangquan/logit-standardization-KD
share. Three of its properties are kept, although losses that it computes in vain, and lines commented
out, show that they were not meant:

* Its masks of confident images and classes multiply losses that are averages already. They only scale:
  ``h`` and ``g`` are 1/2 unless values are equal or their number is odd.
* Temperatures 2 and 6 take the weak view in place of the strong one; ``shared_temperatures=[3,5,2,6]``
  with ``weak_temperatures=[]`` takes both views at all of them.
* Similarities are those of the weak view alone.

Defaults: T0 4, shared {3, 5}, weak {2, 6}, weight 0.9 and cross entropies of weight 0.1 as in the
original. A plug-in's temperature replaces T0, as logit standardisation does (T0 2, weight 9), and its
logits stand for all of ``s`` and ``t``; the published code standardises them for KD alone.

Both models run on two views of every image, so that a step takes about twice as long as KD's.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.distillers.kd import kd
from gda.distillers.logits import at_least_float32, below_maximum, logit_pair
from gda.distillers.term import Term, TermInputs
from gda.ranges import Positive

STRONG = "strong"


def _share_below_median(values: Tensor) -> Tensor:
    """Share of the values ``(n,)`` that are at most their median (of two middle ones, the mean)."""
    return (values <= values.quantile(0.5)).to(values.dtype).mean()


def _similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two matrices of inner products of rows, divided by the number of rows."""
    return (teacher @ teacher.t() - student @ student.t()).square().sum() / len(student)


def similarity_parts(
    student: Tensor, teacher: Tensor, temperatures: Iterable[float | Tensor]
) -> tuple[Tensor, Tensor]:
    """The batch and the class level of MLKD: similarities of predictions at several temperatures.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        temperatures: Softenings, each above 0: numbers, or tensors that broadcast to ``(batch, 1)``.

    Returns:
        Sums over the temperatures, two non-negative scalars; zero where both predictions agree.

    Raises:
        ValueError: The shapes differ.
    """
    student, teacher = logit_pair(student, teacher)
    batch_level, class_level = student.new_zeros(()), student.new_zeros(())
    with torch.autocast(student.device.type, enabled=False):
        confidence = teacher.softmax(dim=1)
        for temperature in temperatures:
            p = (below_maximum(student) / temperature).softmax(dim=1)
            q = (below_maximum(teacher) / temperature).softmax(dim=1)
            batch_level = batch_level + _similarity_loss(p, q)
            class_level = class_level + _similarity_loss(p.t(), q.t())
        image_share = _share_below_median(confidence.amax(dim=1))
        class_share = _share_below_median(confidence.sum(dim=0))
        return image_share * batch_level, class_share * class_level


def instance_part(
    weak: tuple[Tensor, Tensor],
    strong: tuple[Tensor, Tensor],
    temperatures: Sequence[float | Tensor],
    weak_temperatures: Sequence[float | Tensor],
) -> Tensor:
    """The instance level of MLKD: divergences of both views at several temperatures.

    Args:
        weak: Student and teacher logits of the weak view, each ``(batch, classes)``.
        strong: The same of the strong view.
        temperatures: Softenings for both views, each above 0: numbers, or tensors that broadcast to
            ``(batch, 1)``.
        weak_temperatures: Further softenings for the weak view, which then stands in for the strong one.

    Returns:
        Non-negative scalar in nats; zero where both predictions agree.

    Raises:
        ValueError: The shapes of a pair differ.
    """
    _, teacher = logit_pair(*weak)
    share = _share_below_median(teacher.softmax(dim=1).amax(dim=1))
    both = [share * kd(*weak, temperature) + kd(*strong, temperature) for temperature in temperatures]
    twice = [(share + 1) * kd(*weak, temperature) for temperature in weak_temperatures]
    return torch.stack([*both, *twice]).sum()


def mlkd(
    weak: tuple[Tensor, Tensor],
    strong: tuple[Tensor, Tensor],
    temperature: float | Tensor = 4.0,
    shared_temperatures: Sequence[float] = (3.0, 5.0),
    weak_temperatures: Sequence[float] = (2.0, 6.0),
) -> Tensor:
    """Multi-level logit distillation loss: instance, batch and class level.

    Args:
        weak: Student and teacher logits of the weak view, each ``(batch, classes)``; no gradient flows
            into the teacher's.
        strong: The same of the strong view.
        temperature: First softening of both views, above 0: a number, or a tensor that broadcasts to
            ``(batch, 1)`` and may have a gradient.
        shared_temperatures: Further softenings of both views.
        weak_temperatures: Softenings at which the weak view stands in for the strong one.

    Returns:
        Non-negative scalar; zero where the predictions of both views agree.

    Raises:
        ValueError: The shapes of a pair differ.
    """
    shared = [temperature, *shared_temperatures]
    instance = instance_part(weak, strong, shared, weak_temperatures)
    batch_level, class_level = similarity_parts(*weak, [*shared, *weak_temperatures])
    return instance + batch_level + class_level


class MLKD(Term):
    """Multi-level logit distillation as a term.

    Args:
        temperature: First softening of both views.
        shared_temperatures: Further softenings of both views.
        weak_temperatures: Softenings at which the weak view stands in for the strong one.

    Raises:
        ValueError: A temperature of a list is not above 0.
    """

    takes_plugins = True
    needs_views = (STRONG,)
    kind = "logit"
    paper = "CVPR 2023"

    def __init__(
        self,
        temperature: Annotated[float, Positive] = 4.0,
        shared_temperatures: Sequence[Annotated[float, Positive]] = (3.0, 5.0),
        weak_temperatures: Sequence[Annotated[float, Positive]] = (2.0, 6.0),
    ) -> None:
        super().__init__()
        further = [*shared_temperatures, *weak_temperatures]
        if further and min(further) <= 0:
            raise ValueError(f"temperatures must be above 0, e.g. [3.0, 5.0]; got {further}")
        self.temperature = temperature
        self.shared_temperatures = tuple(shared_temperatures)
        self.weak_temperatures = tuple(weak_temperatures)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        strong = inputs.views[STRONG]
        if strong.teacher is None:
            raise ValueError("this term needs a teacher, and the run has none")
        return mlkd(
            (inputs.student.logits, inputs.teacher_logits),
            (strong.student.logits, strong.teacher.logits),
            inputs.temperature_or(self.temperature),
            self.shared_temperatures,
            self.weak_temperatures,
        )


class StrongGroundTruth(Term):
    """Cross entropy of the strong view with the targets of the batch, ids or probabilities.

    In label-free training these are the teacher's probabilities of the weak view. Labels are not
    smoothed.
    """

    needs_teacher = False
    needs_views = (STRONG,)
    kind = "logit"
    paper = "CVPR 2023"

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted cross entropy of this batch, a scalar in nats."""
        logits = at_least_float32(inputs.views[STRONG].student.logits)
        targets = inputs.targets
        return F.cross_entropy(logits, targets.to(logits.dtype) if targets.is_floating_point() else targets)
