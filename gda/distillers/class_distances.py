r"""Distances between classes, as a teacher sees them: what moving probability from one to another costs.

Two kinds, each ``(C, C)``, at least 0, symmetric and 0 on the diagonal::

    d_cd = 1 - cos(W_c, W_d)          of the rows of the teacher's classifier, (C, width)
    d_cd = 1 - CKA(X_c, X_d)          of what the teacher makes of each class's training images
    CKA(X, Y) = |X' Y|^2 / (|X' X| |Y' Y|),   Frobenius norms, columns of X and Y centred

``X_c`` ``(rows, width)`` has a row for every pixel (token) of the map of every image of class ``c``, or
one row of logits for every image. The linear kernel of CKA takes equal row numbers of two classes as a
pair: a class's first image with another's first image, pixel by pixel. As images of two classes have
nothing to do with each other, what CKA of maps finds in common is where things are in the picture.

Source: Lv, Yang, Li, NeurIPS 2024, arXiv:2412.08139, and its repository JiamingLv/WKD; CKA: Kornblith et
al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv:1905.00414.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.errors import UserError
from gda.models.layout import POOLED, layout_of
from gda.models.taps import features

MOST_VALUES = 2**30
"""Values that are kept of a teacher's features, 4 GiB."""

MOST_AT_A_TIME = 2**26
"""Values of centred features, and of their products, that are held at a time, 256 MiB each."""


def cosine_distances(prototypes: Tensor) -> Tensor:
    """Cosine distances between classes.

    Args:
        prototypes: A vector of each class, ``(classes, width)``.

    Returns:
        ``(classes, classes)``, between 0 and 2, 0 on the diagonal.
    """
    directions = F.normalize(prototypes, dim=1)
    return (1 - directions @ directions.t()).clamp(min=0).fill_diagonal_(0)


def cka_distances(values: Tensor) -> Tensor:
    """Distances between classes by linear centred kernel alignment, ``1 - CKA``.

    Args:
        values: ``(rows, classes, width)``, float32 or better; equal row numbers of two classes are taken
            as a pair.

    Returns:
        ``(classes, classes)``, between 0 and 1, 0 on the diagonal. A class whose rows are all equal, but
        for rounding, is at distance 1 from all others.
    """
    rows, classes, width = values.shape
    means = values.mean(dim=0)
    block = max(1, MOST_AT_A_TIME // (width * max(rows, width)))
    own, shared = values.new_zeros(classes), values.new_zeros(classes, classes)
    spread = torch.zeros(classes, dtype=torch.bool, device=values.device)
    rounding = 16 * torch.finfo(values.dtype).eps
    for row in range(classes):
        centred = values[:, row] - means[row]
        own[row] = (centred.t() @ centred).square_().sum().sqrt()
        spread[row] = own[row] > (rounding * values[:, row].norm()) ** 2
        for start in range(row + 1, classes, block):
            # One block at a time: a centred copy of everything may not fit into memory.
            others = slice(start, start + block)
            products = centred.t() @ (values[:, others] - means[others]).flatten(1)
            # A sum is added up pairwise; torch's norm is not, and loses a digit or more.
            shared[row, others] = products.square_().unflatten(1, (-1, width)).sum(dim=(0, 2)).sqrt()
    roots = torch.where(spread, own.sqrt(), torch.inf)
    distances = (1 - (shared / roots / roots.unsqueeze(1)).square()).clamp(min=0).triu(1)
    return distances + distances.t()


def classifier_distances(teacher: nn.Module, classes: int) -> Tensor:
    """Distances of the teacher's classes, from the rows of its classifier.

    Raises:
        UserError: It has no layer with one row of weights for each class.
    """
    head = layout_of(teacher).head
    weight = None if head is None else getattr(teacher.get_submodule(head), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or len(weight) != classes:
        raise UserError(
            f"wkd_l measures distances between classes on the rows of the teacher's classifier, and the "
            f"teacher has no layer of {classes} rows at its end; type distiller.terms.wkd_l.distances=cka"
        )
    return cosine_distances(at_least_float32(weight.detach()).flatten(1))


def map_distances(
    teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]], classes: int, images: int
) -> Tensor:
    """CKA distances of the teacher's classes, from all pixels (tokens) of the map of its last stage.

    A teacher without stages gives its pooled vectors instead, one row an image.

    Args:
        teacher: In evaluation mode.
        batches: Images ``(batch, 3, height, width)`` and their classes ``(batch,)``. Where the classes are
            ``None``, an image is of the class that the teacher finds most probable.
        classes: Number of classes.
        images: Number of all images.

    Returns:
        ``(classes, classes)``, between 0 and 1, 0 on the diagonal. Of every class as many images count as
        there are of the class that has the fewest, the first ones; classes of no or one image are left out
        of this, and are at distance 1 from all others. No class has more than ``images / classes`` (at
        least 2), or than keep the features within 4 GiB: ``4 * images * pixels * width`` bytes, 3.3 GB for
        50000 maps ``(256, 8, 8)``.
    """
    stages = layout_of(teacher).stages
    tap = f"stage{max(stages)}" if stages else POOLED
    return cka_distances(_by_class(teacher, tap, batches, classes, images))


def logit_distances(
    teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]], classes: int, images: int
) -> Tensor:
    """CKA distances of the teacher's classes, from its logits, one row an image.

    Args:
        teacher: As in :func:`map_distances`, as all others.
        batches: Likewise.
        classes: Likewise.
        images: Likewise.

    Returns:
        As :func:`map_distances`; at most ``4 * images * classes`` bytes are kept.
    """
    return cka_distances(_by_class(teacher, None, batches, classes, images))


@torch.no_grad()
def _by_class(
    teacher: nn.Module,
    tap: str | None,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    classes: int,
    images: int,
) -> Tensor:
    """Returns rows of each class, ``(rows, classes, width)``; zeros of classes of no or one image."""
    prefix = getattr(teacher, "num_prefix_tokens", 0)
    kept, counts = torch.empty(0), torch.zeros(classes, dtype=torch.long)
    with features(teacher, [] if tap is None else [tap]) as taps:
        for batch, labels in batches:
            logits = teacher(batch)
            rows = at_least_float32(_rows(logits if tap is None else taps.collect()[tap], prefix))
            if not len(kept):
                pixels, width = rows.shape[1:]
                share = min(images // classes, MOST_VALUES // (classes * pixels * width))
                kept = rows.new_zeros(max(2, share), pixels, classes, width)
                counts = counts.to(rows.device)
            ids = logits.argmax(dim=1) if labels is None else labels
            chosen = F.one_hot(ids, classes)
            places = (counts + chosen.cumsum(dim=0) - 1).gather(1, ids.unsqueeze(1)).squeeze(1)
            used = places < len(kept)
            kept[places[used], :, ids[used]] = rows[used]
            counts += chosen.sum(dim=0)
    comparable = counts >= 2
    kept[:, :, ~comparable] = 0
    fewest = int(counts[comparable].min()) if comparable.any() else 2
    return kept[:fewest].flatten(0, 1)


def _rows(feature: Tensor, prefix_tokens: int) -> Tensor:
    """Returns vectors, token maps or maps as ``(batch, pixels, width)``, without class tokens."""
    if feature.ndim == 2:
        return feature.unsqueeze(1)
    if feature.ndim == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature[:, prefix_tokens:]
