r"""Sinkhorn alignment: transport the batch of student distributions onto the teacher's.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``::

    z    = (x - mean(x)) / (std(x) + 1e-7)  per row, unbiased std           (B, C)
    p, q = softmax(z_s / T), softmax(z_t / T)                               (B, C)
    W_ij = sum_c |p_ic - q_jc|,    K = exp(-W / epsilon)                    (B, B)
    v = 1;  `iterations` times:  u = 1 / (K v),  v = 1 / (K' u)             (B,)
    P    = diag(u) K diag(v)                                                (B, B)
    S(s, t) = sum_ij P_ij W_ij                                              (scalar)

The gradient flows through all iterations. ``reduction="mean"`` divides by ``B``; ``debias=True`` is
``S(s, t) - (S(s, s) + S(t, t)) / 2``, which is 0 where both batches agree.

Sources: Cuturi, "Sinkhorn Distances", 2013, arXiv:1306.0895; as a distillation loss it is half of
Global Distribution Alignment (repository zhiweihu1103/Logit-Distillation-GDA), whose defaults these
are: T 2, epsilon 0.1, 20 iterations, sum over the batch, not debiased (published weight 0.1 for
CIFAR at 128 images per process, 0.0008 in the few-shot files). Debiasing: Feydy et al., 2019,
arXiv:1810.08278.

The published code normalises ``P`` itself, rows then columns, and lets autograd keep two ``B x B``
matrices per iteration. Scaling vectors give the same plan by matrix-vector products. Backward runs
the recurrences in reverse. With bars for gradients, ``c = K' u_k`` and ``r = K v_(k-1)``::

    c_bar = -v_bar v_k^2,   u_bar += K c_bar,   r_bar = -u_bar u_k^2,   v_bar = K' r_bar
    K_bar = u v' * W + sum_k (u_k c_bar_k' + r_bar_k v_(k-1)')

so that the sum over all iterations is one product of two ``B x 2 iterations`` matrices.

**Several processes** (ranks). With ``scope="local"``, as published, each transports the images of its own
share of the batch, and the loss is the mean of theirs. With ``scope="global"`` the logits of all are
gathered, and value and gradients are those of one process with the joint batch. The trap: a *sum* over a
share is not a share of the sum over the batch. ``reduction="sum"`` grows with the images that are
transported together, and with the episodes of a process. So with the local scope N processes, or one that
takes its batch in N parts, have a term about N times smaller than one process with the whole batch. The
published weight is for the images of one process.

For small epsilon the entries of ``K`` and the scalings leave the range of the number format (``W``
is at most 2). Then the same iteration runs on logarithms; see :func:`_fits_directly`.
"""

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gda.distillers.logits import below_maximum, logit_pair, row_std
from gda.distillers.term import Term, TermInputs
from gda.ranges import Positive, Range
from gda.ranks import gather_rows, gather_rows_with_gradient

LARGEST_COST = 2.0  # L1 distance of two probability vectors


def _fits_directly(epsilon: float, dtype: torch.dtype) -> bool:
    """Whether kernel and scalings stay representable; from epsilon and dtype alone, without a sync.

    Kernel entries go down to ``exp(-2 / epsilon)``; scalings lie between that and its inverse.
    Backward forms products of two scalings, so they must fit into half of the format's exponents:
    epsilon of at least 0.046 in float32 and 0.0057 in float64.
    """
    return LARGEST_COST / epsilon <= -0.5 * math.log(torch.finfo(dtype).tiny)


class _TransportCost(torch.autograd.Function):
    """``sum(P * W)`` as a function of ``W``, on scaling vectors.

    Keeps ``W``, ``K`` and ``2 * iterations`` vectors for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
        with torch.autocast(cost.device.type, enabled=False):
            kernel = cost.mul(-1.0 / epsilon).exp_()
            transposed = kernel.t()
            u: list[Tensor] = []
            v = [cost.new_ones(cost.shape[1])]
            for _ in range(iterations):
                u.append(torch.mv(kernel, v[-1]).reciprocal_())
                v.append(torch.mv(transposed, u[-1]).reciprocal_())
            weighted = kernel * cost
            u_bar = torch.mv(weighted, v[-1])
            v_bar = torch.mv(weighted.t(), u[-1])
            ctx.save_for_backward(cost, kernel, u_bar, v_bar, *u, *v)
            ctx.epsilon = epsilon
            return torch.dot(u[-1], u_bar)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cost, kernel, u_bar, v_bar, *scalings = ctx.saved_tensors
        iterations = len(scalings) // 2
        u, v = scalings[:iterations], scalings[iterations:]
        with torch.autocast(cost.device.type, enabled=False):
            transposed = kernel.t()
            minus_c_bar: list[Tensor] = []
            r_bar: list[Tensor] = []
            for k in range(iterations - 1, -1, -1):
                # Twice times v, not once times v^2: v_bar * v is of order 1 whatever the scale of v.
                minus_c_bar.append(torch.mul(v_bar, v[k + 1]).mul_(v[k + 1]))
                minus_u_bar = torch.mv(kernel, minus_c_bar[-1])
                if k == iterations - 1:
                    minus_u_bar -= u_bar
                r_bar.append(minus_u_bar.mul_(u[k]).mul_(u[k]))
                v_bar = torch.mv(transposed, r_bar[-1])
            # minus K_bar without its first summand, by one product of (B, 2n) and (2n, B).
            left = torch.stack(u[::-1] + r_bar)
            right = torch.stack(minus_c_bar + v[-2::-1])
            left[iterations:].neg_()
            cost_bar = left.t() @ right
            # W_bar = P - K * K_bar / epsilon = K * (u v' + (product - u v' * W) / epsilon)
            plan = torch.outer(u[-1], v[-1])  # still without the factor K
            cost_bar.addcmul_(plan, cost, value=-1).mul_(1.0 / ctx.epsilon).add_(plan).mul_(kernel)
            return cost_bar.mul_(grad), None, None


class _LogTransportCost(torch.autograd.Function):
    """The same function of ``W`` on logarithms of the scalings, for any epsilon.

    Keeps ``W`` and ``2 * iterations`` vectors; the normalised plan of every half-iteration is made
    again in the backward pass. With ``a = log u``, ``b = log v`` and ``R_ij = exp(a_i + b_j -
    W_ij / epsilon)``, each half-iteration ``a = -logsumexp_j(b_j - W_ij / epsilon)`` has
    ``b_bar = -R' a_bar`` and ``W_bar += diag(a_bar) R / epsilon``.
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
        with torch.autocast(cost.device.type, enabled=False):
            log_kernel = cost * (-1.0 / epsilon)
            log_u: list[Tensor] = []
            log_v = [cost.new_zeros(cost.shape[1])]
            for _ in range(iterations):
                log_u.append(-torch.logsumexp(log_kernel + log_v[-1], dim=1))
                log_v.append(-torch.logsumexp(log_kernel + log_u[-1].unsqueeze(1), dim=0))
            plan = log_kernel.add_(log_u[-1].unsqueeze(1)).add_(log_v[-1]).exp_()
            ctx.save_for_backward(cost, torch.stack(log_u), torch.stack(log_v))
            ctx.epsilon = epsilon
            return plan.mul_(cost).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cost, log_u, log_v = ctx.saved_tensors
        with torch.autocast(cost.device.type, enabled=False):
            log_kernel = cost * (-1.0 / ctx.epsilon)

            def normalised(a: Tensor, b: Tensor) -> Tensor:
                return (log_kernel + a.unsqueeze(1)).add_(b).exp_()

            plan = normalised(log_u[-1], log_v[-1])
            weighted = plan * cost
            a_bar, b_bar = weighted.sum(dim=1), weighted.sum(dim=0)
            kernel_bar = weighted  # gradient with respect to log K = -W / epsilon
            for k in range(log_u.shape[0] - 1, -1, -1):
                columns = normalised(log_u[k], log_v[k + 1])  # columns sum to 1
                step = torch.mv(columns, b_bar)
                a_bar = a_bar - step if k == log_u.shape[0] - 1 else -step
                kernel_bar.sub_(columns.mul_(b_bar))
                rows = normalised(log_u[k], log_v[k])  # rows sum to 1
                b_bar = -torch.mv(rows.t(), a_bar)
                kernel_bar.sub_(rows.mul_(a_bar.unsqueeze(1)))
            return plan.sub_(kernel_bar, alpha=1.0 / ctx.epsilon).mul_(grad), None, None


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Softmax at ``temperature`` of the logits standardised per row, ``(B, C)``.

    A row of constant logits becomes the uniform distribution. Its gradient is that of the published
    z-score, finite but large: the slope is 1e7 at standard deviation 0.
    """
    # The maximum is taken off instead of the mean: softmax sees no difference.
    shifted = below_maximum(logits)
    std = row_std(shifted)
    return (shifted / ((std + 1e-7) * temperature)).softmax(dim=1)


def transport_cost(p: Tensor, q: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Transport cost summed over the batch, between the rows of ``p`` and ``q``, both ``(B, C)``."""
    cost = torch.cdist(p, q, p=1)
    function = _TransportCost if _fits_directly(epsilon, cost.dtype) else _LogTransportCost
    value: Tensor = function.apply(cost, epsilon, iterations)
    return value


def sinkhorn(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduction: Literal["sum", "mean"] = "sum",
    debias: bool = False,
) -> Tensor:
    """Entropic optimal transport between the batches of student and teacher distributions.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        temperature: Temperature of both softmaxes, above 0.
        epsilon: Strength of the entropic regularisation, above 0, in units of the L1 cost.
        iterations: Rounds of row and column normalisation, at least 1.
        reduction: ``sum`` over the batch (published: the term then grows with the batch size) or
            ``mean``, the sum divided by the batch size.
        debias: Subtract half of both self-transport costs, so that equal batches give 0.

    Returns:
        Scalar; finite with finite gradient for finite logits.

    Raises:
        ValueError: The shapes differ, there are fewer than two classes, or a parameter is out of
            range.
    """
    student, teacher = logit_pair(student, teacher)
    if student.shape[1] < 2:
        raise ValueError("sinkhorn needs at least two classes: one logit has no spread")
    if not (temperature > 0 and epsilon > 0 and iterations >= 1):
        raise ValueError(
            f"sinkhorn needs temperature > 0, epsilon > 0 and iterations >= 1, "
            f"got {temperature}, {epsilon} and {iterations}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is 'sum' or 'mean', not {reduction!r}")
    with torch.autocast(student.device.type, enabled=False):
        p, q = _probabilities(student, temperature), _probabilities(teacher, temperature)
        value = transport_cost(p, q, epsilon, iterations)
        if debias:
            bias = transport_cost(p, p, epsilon, iterations) + transport_cost(q, q, epsilon, iterations)
            value = value - bias / 2
        return value / student.shape[0] if reduction == "mean" else value


class Sinkhorn(Term):
    """Sinkhorn alignment of the logits as a term.

    Args:
        temperature: Temperature of both softmaxes.
        epsilon: Strength of the entropic regularisation.
        iterations: Rounds of row and column normalisation.
        reduction: ``sum`` over the batch, as published, or ``mean``.
        debias: Subtract half of both self-transport costs.
        scope: Whether each process transports its own images, ``local``, as published, or all processes
            those of the whole batch together, ``global``. One process has no others to ask.
    """

    kind = "alignment"

    def __init__(
        self,
        temperature: Annotated[float, Positive] = 2.0,
        epsilon: Annotated[float, Positive] = 0.1,
        iterations: Annotated[int, Range(minimum=1)] = 20,
        reduction: Literal["sum", "mean"] = "sum",
        debias: bool = False,
        scope: Literal["local", "global"] = "local",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.reduction: Literal["sum", "mean"] = reduction
        self.sums_over_batch = reduction == "sum"
        self.debias = debias
        self.scope: Literal["local", "global"] = scope

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch, or of those of all processes."""
        student, teacher = inputs.student.logits, inputs.teacher_logits
        if self.scope == "global":
            student, teacher = gather_rows_with_gradient(student), gather_rows(teacher)
        return sinkhorn(
            student,
            teacher,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            reduction=self.reduction,
            debias=self.debias,
        )
