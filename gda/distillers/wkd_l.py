r"""Wasserstein distance of predictions: probability moved between similar classes costs little.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, target class ``y``
``(B,)``, temperature ``T`` and distances between classes ``D`` ``(C, C)``; ``p = softmax(s)``,
``q = softmax(t)``, and ``P``, ``Q`` the softmaxes of ``s / T`` and ``t / T`` over the classes other
than ``y``::

    target    = -1/B sum_i q_iy log p_iy
    K         = exp(-D / epsilon)                                            (C, C)
    u = 1/(C-1);  `iterations` times:  v = Q / (K' u + 1e-8),  u = P / (K v + 1e-8)     per sample
    transport = 1/B sum_i sum_(c, d != y) u_ic K_cd D_cd v_id
    WKD-L     = target + w(epoch) * transport                                (scalar)

The gradient flows through all iterations. The target class has no mass in ``P`` and ``Q``, so that
one matrix ``K`` serves all samples; the published code cuts a matrix of the other classes out for each
(``B C^2`` numbers, 1 GB for 256 images of ImageNet). Where the targets are probabilities ``y`` is the
most probable class.

Distances are ``D = 1 - exp(-sharpness * d)``, or ``d`` for sharpness 0, with one of three ``d`` of
:mod:`gda.distillers.class_distances`, measured once before training on the run's own teacher:

* ``cka``: CKA of all pixels of the last stage's maps of the training images (published for CIFAR-100);
* ``logit_cka``: CKA of their logits (published for ImageNet);
* ``classifier``: cosine distances of the rows of the teacher's classifier; needs no images (``fc`` there).

The first two take one pass of the teacher over the training images, as they are in evaluation, and are a
part of the checkpoint. In label-free training an image is of the class that the teacher finds most
probable. Published CKA matrices come from files, made once of the published teachers.

The weight of the transport falls as half a cosine from epoch ``decay_start * epochs`` on, to 0 in the
last one; the weight of the target part does not.

Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
Distillation", NeurIPS 2024, arXiv:2412.08139; repository JiamingLv/WKD. Defaults: its CIFAR-100 file for
ResNet32x4 to ResNet8x4 (transport weight 600, T 8, sharpness 1, decay from epoch 150 of 240, epsilon
0.05, 10 iterations, ``cka``).
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from gda.distillers.class_distances import classifier_distances, logit_distances, map_distances
from gda.distillers.logits import logit_pair
from gda.distillers.nkd import class_column, target_cross_entropy, without_target
from gda.distillers.term import Progress, RunFacts, Term, TermInputs
from gda.errors import UserError
from gda.ranges import NonNegative, Positive, Range, Share

SMALLEST_SUM = 1e-8

MEASURES_OF_IMAGES: dict[str, Callable[..., Tensor]] = {"cka": map_distances, "logit_cka": logit_distances}

# Half of the exponents that float32 has for small numbers.
LARGEST_EXPONENT = -0.5 * math.log(torch.finfo(torch.float32).tiny)


def transport(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    distances: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> Tensor:
    """Cost of moving the student's probabilities of the classes beside the target onto the teacher's.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the
            most probable class is taken.
        distances: Between classes, ``(classes, classes)``, at least 0. The plan loses mass between sharp
            predictions of classes farther apart than about ``20 * epsilon``.
        temperature: Softening of both distributions, above 0.
        epsilon: Strength of the entropic regularisation, above 0, in units of the distances.
        iterations: Rounds of scaling, at least 1.

    Returns:
        Non-negative scalar (batch mean), in units of the distances; 0 for two classes. Not 0 at equality:
        the regularisation spreads the mass.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    student, teacher = logit_pair(student, teacher)
    classes = student.shape[1]
    if classes < 2:
        raise ValueError("wkd_l needs at least two classes: there is nothing beside the target class")
    if distances.shape != (classes, classes):
        raise ValueError(f"distances must be ({classes}, {classes}), got {tuple(distances.shape)}")
    with torch.autocast(student.device.type, enabled=False):
        column = class_column(target)
        p = (without_target(student, column) / temperature).softmax(dim=1)
        q = (without_target(teacher, column) / temperature).softmax(dim=1)
        distances = distances.to(p.dtype)
        kernel = torch.exp(-distances / epsilon)
        u = torch.full_like(p, 1 / (classes - 1)).scatter(1, column, 0.0)
        v = u
        for _ in range(iterations):
            v = q / (u @ kernel + SMALLEST_SUM)
            u = p / (v @ kernel.t() + SMALLEST_SUM)
        return ((u @ (kernel * distances)) * v).sum(dim=1).mean()


def wkd_l(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    distances: Tensor,
    transport_weight: float,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> Tensor:
    """Wasserstein distillation of logits, ``target part + transport_weight * transport``.

    Args:
        student: As in :func:`transport`, as all others but the next.
        teacher: Likewise.
        target: Likewise.
        distances: Likewise.
        transport_weight: Weight of the transport, at least 0.
        temperature: As in :func:`transport`; the target part has temperature 1.
        epsilon: Likewise.
        iterations: Likewise.

    Returns:
        Non-negative scalar (batch mean).

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    cost = transport(student, teacher, target, distances, temperature, epsilon, iterations)
    student, teacher = logit_pair(student, teacher)
    return target_cross_entropy(student, teacher, class_column(target)) + transport_weight * cost


class WKDL(Term):
    """Wasserstein distillation of logits as a term.

    Args:
        transport_weight: Weight of the transport beside the target part.
        temperature: Softening of the transported distributions.
        epsilon: Strength of the entropic regularisation, in units of the distances.
        iterations: Rounds of scaling.
        sharpness: How fast distances saturate; 0 leaves them as they are.
        decay_start: Share of training after which the transport's weight falls to 0; 1 means never.
        distances: How distances between classes are measured on the teacher, see above.

    Attributes:
        class_distances: ``(classes, classes)``, in the checkpoint; empty until :meth:`setup`.
    """

    sample_wise = True
    needs_fixed_classes = True
    kind = "transport"
    paper = "2412.08139"
    class_distances: Tensor

    def __init__(
        self,
        transport_weight: Annotated[float, NonNegative] = 600.0,
        temperature: Annotated[float, Positive] = 8.0,
        epsilon: Annotated[float, Positive] = 0.05,
        iterations: Annotated[int, Range(minimum=1)] = 10,
        sharpness: Annotated[float, NonNegative] = 1.0,
        decay_start: Annotated[float, Share] = 0.625,
        distances: Literal["cka", "logit_cka", "classifier"] = "cka",
    ) -> None:
        super().__init__()
        self.transport_weight = transport_weight
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.sharpness = sharpness
        self.decay_start = decay_start
        self.distances = distances
        self.register_buffer("class_distances", torch.empty(0, 0))

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says why there are no distances between classes, or that epsilon is too small for them."""
        largest = 1.0
        if self.distances == "classifier" and facts.teacher is not None:
            try:
                classifier_distances(facts.teacher, facts.classes)
            except UserError as error:
                return [str(error)]
            largest = 2.0
        if self.sharpness:
            largest = 1 - math.exp(-self.sharpness * largest)
        if largest / self.epsilon <= LARGEST_EXPONENT:
            return []
        return [
            f"epsilon={self.epsilon:g} is too small for distances up to {largest:.2g}: "
            f"exp(-distance / epsilon) vanishes, and with it the transport; "
            f"type distiller.terms.wkd_l.epsilon=0.05"
        ]

    def setup(self, facts: RunFacts) -> None:
        """Measures the distances between classes."""
        if facts.teacher is None:
            raise ValueError("this term needs a teacher, and the run has none")
        measure = MEASURES_OF_IMAGES.get(self.distances)
        if measure is None:
            measured = classifier_distances(facts.teacher, facts.classes)
        elif facts.training_batches is None:
            raise ValueError(
                f"distances={self.distances} are measured on training images, and there are none"
            )
        else:
            measured = measure(facts.teacher, facts.training_batches(), facts.classes, facts.train_size)
        self.class_distances = 1 - torch.exp(-self.sharpness * measured) if self.sharpness else measured

    def decay(self, progress: Progress) -> float:
        """Factor on the transport's weight in the current epoch; 0 in the last one if there is a decay."""
        start = self.decay_start * progress.epochs
        past = progress.epoch + 1 - start
        if past <= 0:
            return 1.0
        return (1 + math.cos(math.pi * past / (progress.epochs - start))) / 2

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return wkd_l(
            inputs.student.logits,
            inputs.teacher_logits,
            inputs.targets,
            self.class_distances,
            self.transport_weight * self.decay(inputs.progress),
            self.temperature,
            self.epsilon,
            self.iterations,
        )
