r"""The supervised term: cross entropy with the labels, or with the teacher's soft targets.

Formula, for student logits ``s`` ``(B, C)`` and targets ``y``, ids ``(B,)`` or probabilities
``(B, C)``::

    CE = -1/B sum_i sum_c y_ic * log softmax(s_i)_c                         (scalar, nats)

With smoothing ``e`` the labels become ``(1 - e) * y + e / C`` (Szegedy et al., 2016,
arXiv:1512.00567). Label-free training puts ``y = softmax(t)`` for teacher logits ``t``.

The targets are made first and handed to every term as ``TermInputs.targets``. In label-free
training no term can therefore see a label, also none that reads targets, such as DKD.
"""

from typing import Annotated, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.distillers.term import TermInputs
from gda.ranges import Share


class Labels(nn.Module):
    """Cross entropy with the labels of the data set.

    Args:
        label_smoothing: Share of the target spread evenly over all classes.
    """

    needs_teacher: ClassVar[bool] = False

    def __init__(self, label_smoothing: Annotated[float, Share] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def targets(self, labels: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
        """Returns the labels as they are, ids ``(batch,)`` or probabilities ``(batch, classes)``."""
        return labels

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted cross entropy of this batch, a scalar in nats."""
        logits = at_least_float32(inputs.student.logits)
        targets = inputs.targets
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class TeacherTargets(nn.Module):
    """Cross entropy with the teacher's class probabilities: training without labels."""

    needs_teacher: ClassVar[bool] = True

    def targets(self, labels: Tensor | None, teacher_logits: Tensor | None) -> Tensor:
        """Returns the teacher's probabilities, ``(batch, classes)``, float32 or better, detached.

        Args:
            labels: Ignored; may be ``None``.
            teacher_logits: ``(batch, classes)``.

        Raises:
            ValueError: There is no teacher.
        """
        if teacher_logits is None:
            raise ValueError("ground_truth=teacher needs a teacher, and the run has none")
        return at_least_float32(teacher_logits.detach()).softmax(dim=1)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted cross entropy of this batch, a scalar in nats."""
        logits = at_least_float32(inputs.student.logits)
        return F.cross_entropy(logits, inputs.targets.to(logits.dtype))
