r"""SinKD: transport the batch of softened student predictions onto the teacher's.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, temperature ``T``::

    p, q  = softmax(s / T), softmax(t / T)                                  (B, C)
    D_ij  = sum_c |p_ic - q_jc|                                             (B, B)
    P     = exp(-D / epsilon), `iterations` times: rows to sum 1, then columns to sum 1
    SinKD = sum_ij P_ij D_ij                                                (scalar)

It is :mod:`gda.distillers.sinkhorn` without the z-score, and is solved there. Not 0 at equality.

Source: Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", 2024,
arXiv:2402.17110; repository 2018cx/SinKD. From there: the L1 cost, T 2, epsilon 0.1, 20 iterations, the
sum over the batch, and the sum with cross entropy and KD, ``(1 - 0.9) CE + 0.9 KD``. Its weight is ``0.8 *
0.0008 * 20 / 8 = 0.0016`` for batches of 16 or 32 sentences.

A choice: the paper is on language, and gives nothing for images. The config has that weight, and KD as in
:mod:`gda.distillers.kd` with temperature 4; the published KD has no factor ``T^2``.
"""

from typing import Annotated, Literal

from torch import Tensor

from gda.distillers.logits import below_maximum, logit_pair
from gda.distillers.sinkhorn import transport_cost
from gda.distillers.term import Term, TermInputs
from gda.ranges import Positive, Range


def sinkd(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Entropic optimal transport between the batches of softened predictions.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        temperature: Softening of both distributions, above 0.
        epsilon: Strength of the entropic regularisation, above 0, in units of the L1 cost.
        iterations: Rounds of row and column normalisation, at least 1.
        reduction: ``sum`` over the batch (published: the term then grows with the batch size) or
            ``mean``, the sum divided by the batch size.

    Returns:
        Non-negative scalar; finite with finite gradient for finite logits.

    Raises:
        ValueError: The shapes differ, or a parameter is out of range.
    """
    student, teacher = logit_pair(student, teacher)
    if not (temperature > 0 and epsilon > 0 and iterations >= 1):
        raise ValueError(
            f"sinkd needs temperature > 0, epsilon > 0 and iterations >= 1, "
            f"got {temperature}, {epsilon} and {iterations}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is 'sum' or 'mean', not {reduction!r}")
    p = (below_maximum(student) / temperature).softmax(dim=1)
    q = (below_maximum(teacher) / temperature).softmax(dim=1)
    value = transport_cost(p, q, epsilon, iterations)
    return value / student.shape[0] if reduction == "mean" else value


class SinKD(Term):
    """SinKD as a term.

    Args:
        temperature: Softening of both distributions.
        epsilon: Strength of the entropic regularisation.
        iterations: Rounds of row and column normalisation.
        reduction: ``sum`` over the batch, as published, or ``mean``.
    """

    kind = "transport"
    paper = "2402.17110"

    def __init__(
        self,
        temperature: Annotated[float, Positive] = 2.0,
        epsilon: Annotated[float, Positive] = 0.1,
        iterations: Annotated[int, Range(minimum=1)] = 20,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.reduction: Literal["sum", "mean"] = reduction
        self.sums_over_batch = reduction == "sum"

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return sinkd(
            inputs.student.logits,
            inputs.teacher_logits,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            reduction=self.reduction,
        )
