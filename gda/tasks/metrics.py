"""Accuracy, calibration and fidelity, summed exactly over a split."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from gda.ranks import sum_over_ranks

_BINS = 15


@dataclass
class Metrics:
    """Running sums over an evaluation split; every image counts once.

    All arithmetic is float64 on the CPU side of the sums, so that the batch size of evaluation does
    not show in the figures.
    """

    images: int = 0
    loss: float = 0.0
    top1: int = 0
    top5: int = 0
    agreement: int = 0
    teacher_kl: float = 0.0
    has_teacher: bool = False
    _confidence: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))
    _correct: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    def update(self, logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Adds one batch.

        Args:
            logits: ``(batch, classes)``.
            targets: Class ids, ``(batch,)``.
            teacher_logits: ``(batch, classes)``; adds agreement and KL to the teacher.
        """
        log_probabilities = functional.log_softmax(logits.double(), dim=1)
        confidence, prediction = log_probabilities.max(dim=1)
        correct = prediction == targets
        most = min(5, logits.shape[1])
        self.images += len(targets)
        self.loss += float(functional.nll_loss(log_probabilities, targets, reduction="sum"))
        self.top1 += int(correct.sum())
        self.top5 += int((log_probabilities.topk(most, dim=1).indices == targets[:, None]).sum())
        confidence = confidence.exp().cpu()
        bins = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
        self._confidence.index_add_(0, bins, confidence)
        self._correct.index_add_(0, bins, correct.double().cpu())
        if teacher_logits is not None:
            self.has_teacher = True
            teacher = functional.log_softmax(teacher_logits.double(), dim=1)
            self.agreement += int((teacher.argmax(dim=1) == prediction).sum())
            divergence = functional.kl_div(log_probabilities, teacher, reduction="sum", log_target=True)
            self.teacher_kl += float(divergence)

    def over_ranks(self) -> "Metrics":
        """Returns the sums over the images of all processes, the same on each of them.

        Counts stay exact; the other sums are float64 and may differ from those of one process in their last
        digit. Every process must call it, also one that had no batch.
        """
        counts = (self.images, self.top1, self.top5, self.agreement, self.has_teacher)
        numbers = torch.tensor((*counts, self.loss, self.teacher_kl), dtype=torch.float64)
        summed = sum_over_ranks(torch.cat([numbers, self._confidence, self._correct]))
        images, top1, top5, agreement, with_teacher = (int(count) for count in summed[:5].tolist())
        loss, teacher_kl = summed[5:7].tolist()
        return Metrics(
            images=images,
            loss=loss,
            top1=top1,
            top5=top5,
            agreement=agreement,
            teacher_kl=teacher_kl,
            has_teacher=with_teacher > 0,
            _confidence=summed[7 : 7 + _BINS],
            _correct=summed[7 + _BINS :],
        )

    def result(self, prefix: str) -> dict[str, float]:
        """Returns the figures, each name starting with ``prefix``.

        ``top1``, ``top5`` and ``agreement`` (same class as the teacher) are percentages; ``loss`` is
        the cross-entropy to the labels and ``teacher_kl`` is KL(teacher || student), both in nats an
        image; ``ece`` is the expected calibration error over 15 equal bins of confidence, in [0, 1]
        (Guo et al. 2017, arXiv 1706.04599, eq. 3).
        """
        figures = {
            "top1": 100.0 * self.top1 / self.images,
            "top5": 100.0 * self.top5 / self.images,
            "loss": self.loss / self.images,
            "ece": float((self._correct - self._confidence).abs().sum()) / self.images,
        }
        if self.has_teacher:
            figures["agreement"] = 100.0 * self.agreement / self.images
            figures["teacher_kl"] = self.teacher_kl / self.images
        return {f"{prefix}{name}": value for name, value in figures.items()}
