r"""Contrastive representation distillation: the student's view of an image is the teacher's, among many.

Formula, for unit vectors ``u`` ``(B, E)`` (linear embeddings of one model's features before the head),
the bank ``m`` ``(N, E)`` of the other model's embeddings of all ``N`` training images, temperature
``T`` and ``K`` negatives per image::

    P(u, m) = exp( <u, m> / T ) / Z,     noise = K / N
    L(u, m) = -1/B sum_i [ log P(u_i, m_i) / (P(u_i, m_i) + noise)
                           + K * mean over negatives j of  log noise / (P(u_i, m_j) + noise) ]
    CRD     = L(student, bank of teacher) + L(teacher, bank of student)         (scalar, nats)
    m_i     <- unit( momentum * m_i + (1 - momentum) * u_i )                    after each step

``Z`` is ``N`` times the mean of ``exp( <u, m> / T )`` in the first batch, kept for the rest of training. Both
embeddings are trained; no gradient reaches the teacher itself or a bank.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699,
equation 18; noise-contrastive estimation with banks from Wu et al., 2018, arXiv:1805.01978.
Defaults: weight .8, K 16384, T .07, momentum .5, E 128, mode "exact", and the 1e-7 in denominators, from
RepDistiller, which equals mdistiller.

**Negatives** are images of other classes (by the label of the data set, also where labels are mixed).
In label-free training there are no classes, and all other images are negatives. The published code
draws ``K`` of them for each image, without replacement, and gathers ``(B, K + 1, E)`` numbers per
bank. Here a batch has one draw without replacement, of ``K`` images and as many more as the largest
class has; each image is contrasted with those of other classes, at least ``K``, and the mean over them
counts ``K`` times. For each image that is a uniform draw as before, so value and gradient are the same
in expectation; a batch costs one product ``(B, E) x (E, K)``. Every rank draws its own.

Where a small data set has fewer than ``K`` negatives, all of them are taken, without a draw, and
``K`` stays what it is in the formula. (Published: a draw with replacement, whose expectation this is.)

**Memory.** Both banks are buffers: ``8 N E`` bytes, 51 MB for CIFAR-100, 1.3 GB for ImageNet. A step
keeps two matrices ``(B, K)`` and their mask, and makes two more. Measured 0.4 GiB at B = 1024,
K = 16384 and the classes of CIFAR-100 (published: 16 GiB for what is gathered alone).

Banks and ``Z`` are made of the rows of all ranks: they are those of one process with the joint batch.
"""

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.feature_vectors import directions, pooled_vectors
from gda.distillers.term import RunFacts, Term, TermInputs
from gda.errors import UserError
from gda.models.layout import POOLED
from gda.ranges import Range
from gda.ranks import gather_rows

EPSILON = 1e-7


def contrast_scores(
    anchors: Tensor, positives: Tensor, candidates: Tensor, allowed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns ``<u, m> / T`` of each anchor with its positive, ``(batch,)``, and with all candidates.

    Args:
        anchors: ``(batch, width)``, rows of length 1.
        positives: The bank's row for each of them, ``(batch, width)``.
        candidates: Rows of the bank, ``(candidates, width)``.
        allowed: Which candidates are negatives of which anchor, ``(batch, candidates)``, booleans.
        temperature: Above 0.

    Returns:
        The scores of the positives, and those of the candidates, ``(batch, candidates)``, minus infinity
        where a candidate is not allowed.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        scaled = anchors / temperature
        scores = (scaled @ candidates.t()).masked_fill_(~allowed, -math.inf)
        return (scaled * positives).sum(dim=1), scores


def crd(
    positives: Tensor, candidates: Tensor, normalisation: Tensor | float, negatives: int, images: int
) -> Tensor:
    """Noise-contrastive loss of one model's embeddings against the other's bank.

    Args:
        positives: Scores of the positives, ``(batch,)``.
        candidates: Scores of the candidates, ``(batch, candidates)``, minus infinity where one is no
            negative; every row needs a negative.
        normalisation: ``Z``, above 0.
        negatives: ``K``, the number of negatives that the mean over them stands for.
        images: ``N``, the number of training images.

    Returns:
        Non-negative scalar in nats.
    """
    noise = negatives / images
    log_z = torch.as_tensor(normalisation, dtype=positives.dtype, device=positives.device).log()
    offset = log_z + math.log(noise + EPSILON)
    # log P / (P + noise) = -softplus(log noise - log P), and so on: nothing over- or underflows.
    count = candidates.isfinite().sum(dim=1)
    others = negatives * F.softplus(candidates - offset).sum(dim=1) / count
    epsilon_share = negatives * math.log1p(EPSILON / noise)
    return (F.softplus(offset - positives) + others).mean() + epsilon_share


class CRD(Term):
    """Contrastive representation distillation as a term, with embeddings and banks.

    The banks are updated in training mode only.

    Args:
        negatives: Number of negatives per image, ``K``.
        temperature: Softening of the scores; at least 0.02, or their exponentials leave float32.
        momentum: Share of a bank's row that stays when its image comes again.
        width: Width of the embeddings.
        mode: The positive of an image: ``exact`` takes its own row of the bank, ``relax`` that of a
            random image of its class (its own row in label-free training).
    """

    kind = "contrastive"
    paper = "1910.10699"

    student_bank: Tensor
    teacher_bank: Tensor
    normalisation: Tensor
    groups: Tensor
    members: Tensor
    sizes: Tensor

    def __init__(
        self,
        negatives: Annotated[int, Range(minimum=1)] = 16384,
        temperature: Annotated[float, Range(minimum=0.02)] = 0.07,
        momentum: Annotated[float, Range(minimum=0, below=1)] = 0.5,
        width: Annotated[int, Range(minimum=1)] = 128,
        mode: Literal["exact", "relax"] = "exact",
    ) -> None:
        super().__init__()
        self.student_features = self.teacher_features = (POOLED,)
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.width = width
        self.mode = mode
        self._is_normalised = False
        self.register_load_state_dict_post_hook(_look_again)

    def setup(self, facts: RunFacts) -> None:
        """Makes embeddings and banks, and sorts the images by class.

        Raises:
            UserError: All training images are of one class, so that there is no negative.
        """
        self.student_embedding = nn.Linear(math.prod(facts.student_features[POOLED].shape), self.width)
        self.teacher_embedding = nn.Linear(math.prod(facts.teacher_features[POOLED].shape), self.width)
        bound = math.sqrt(3 / self.width)  # rows of length about 1
        for bank in ("student_bank", "teacher_bank"):
            rows = torch.empty(facts.train_size, self.width).uniform_(-bound, bound)
            self.register_buffer(bank, rows)
        self.register_buffer("normalisation", torch.zeros(2))
        # Without labels every image is a class of its own.
        groups = torch.arange(facts.train_size) if facts.labels is None else facts.labels.cpu().long()
        sizes = torch.bincount(groups)
        self._largest = int(sizes.max())
        if self._largest == facts.train_size:
            raise UserError(
                "crd contrasts images of different classes, and all training images are of one class: "
                "take another method, or a data set of several classes"
            )
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("members", groups.argsort(stable=True), persistent=False)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch, and updates the banks."""
        student, teacher = pooled_vectors(inputs)
        with torch.autocast(student.device.type, enabled=False):
            student = directions(self.student_embedding(student.to(self.student_bank.dtype)))
            teacher = directions(self.teacher_embedding(teacher.to(self.teacher_bank.dtype)))
        indices = inputs.indices
        drawn = self._draw(inputs.generator).to(indices.device)
        positives = self._positives(indices, inputs.generator)
        allowed = self.groups[indices].unsqueeze(1) != self.groups[drawn]
        loss = student.new_zeros(())
        for side, (anchors, bank) in enumerate(((student, self.teacher_bank), (teacher, self.student_bank))):
            scores = contrast_scores(anchors, bank[positives], bank[drawn], allowed, self.temperature)
            loss = loss + crd(*scores, self._z(side, *scores), self.negatives, len(self.groups))
        self._is_normalised = True
        if self.training:
            everywhere = gather_rows(indices)
            self._remember(self.student_bank, everywhere, gather_rows(student))
            self._remember(self.teacher_bank, everywhere, gather_rows(teacher))
        return loss

    def _draw(self, generator: torch.Generator) -> Tensor:
        """Positions of the images that a batch is contrasted with; at least ``K`` are of other classes."""
        images = len(self.groups)
        count = self.negatives + self._largest
        return (
            torch.arange(images) if count >= images else torch.randperm(images, generator=generator)[:count]
        )

    def _positives(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Position of each image's positive, ``(batch,)``."""
        if self.mode == "exact":
            return indices
        group = self.groups[indices]
        share = torch.rand(len(indices), generator=generator, dtype=torch.float64).to(indices.device)
        first = self.sizes.cumsum(0)[group] - self.sizes[group]
        return self.members[first + (share * self.sizes[group]).long()]

    @torch.no_grad()
    def _z(self, side: int, positives: Tensor, candidates: Tensor) -> Tensor:
        """``Z`` of the student (0) or the teacher (1): set in the first batch, kept over resumptions."""
        if not self._is_normalised and not self.normalisation[side] > 0:
            others = self.negatives * candidates.exp().sum(dim=1) / candidates.isfinite().sum(dim=1)
            means = (positives.exp() + others) / (1 + self.negatives)
            self.normalisation[side] = gather_rows(means).mean() * len(self.groups)
        return self.normalisation[side]

    @torch.no_grad()
    def _remember(self, bank: Tensor, indices: Tensor, embeddings: Tensor) -> None:
        """Moves the rows of a bank towards new embeddings; of an image given twice, the last one counts."""
        position = torch.arange(len(indices), device=indices.device)
        last = indices.new_zeros(len(bank)).scatter_reduce_(0, indices, position, "amax")[indices]
        moved = self.momentum * bank[indices] + (1 - self.momentum) * embeddings[last]
        bank.index_copy_(0, indices, directions(moved))


def _look_again(term: CRD, _: Any) -> None:
    """After loading, the term looks whether it has ``Z``."""
    term._is_normalised = False
