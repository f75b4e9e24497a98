"""Published accuracies, printed below a table of the same comparison: CIFAR-100, and miniImageNet few-shot.

They are a line of their own and never a row: how many seeds they average and which epoch they
report is mostly not stated, and several of them are reported not to reproduce.
"""

from __future__ import annotations

from collections.abc import Sequence

REPDISTILLER = "RepDistiller README"
MDISTILLER = "mdistiller README"
TTM = "TTM README"
CTKD = "CTKD README"
LSKD = "logit-standardization-KD README"
W2S = "vision_weak_to_strong README"

_CRD_PAIRS = (
    "resnet56 -> resnet20",
    "resnet110 -> resnet32",
    "resnet32x4 -> resnet8x4",
    "wrn_40_2 -> wrn_16_2",
    "wrn_40_2 -> wrn_40_1",
    "vgg13 -> vgg8",
)
# None: the source has no figure of the pair.
_CRD_ROWS: tuple[tuple[str, str, tuple[float | None, ...]], ...] = (
    ("teacher", REPDISTILLER, (72.34, 74.31, 79.42, 75.61, 75.61, 74.64)),
    ("student", REPDISTILLER, (69.06, 71.14, 72.50, 73.26, 71.98, 70.36)),
    ("KD", REPDISTILLER, (70.66, 73.08, 73.33, 74.92, 73.54, 72.98)),
    ("CRD", REPDISTILLER, (71.16, 73.48, 75.51, 75.48, 74.14, 73.94)),
    ("DKD", MDISTILLER, (71.97, 74.11, 76.32, 76.23, 74.81, 74.68)),
    ("DIST", TTM, (71.75, 73.69, 76.31, 75.51, 74.73, 73.89)),
    ("CTKD", CTKD, (71.19, 73.52, None, 75.45, 73.93, 73.52)),
    ("CTKD", LSKD, (None, None, 73.39, None, None, None)),
    ("WTTM", TTM, (71.92, 74.13, 76.06, 76.37, 74.58, 74.44)),
    ("KD+LSKD", LSKD, (71.43, 74.17, 76.62, 76.11, 74.37, 74.36)),
    ("DKD+LSKD", LSKD, (72.32, 74.29, 77.01, 76.39, 74.89, 74.81)),
)
_MIXED_PAIRS = (
    "resnet32x4 -> shufflenetv1",
    "wrn_40_2 -> shufflenetv1",
    "vgg13 -> mobilenetv2",
    "resnet50 -> mobilenetv2",
    "resnet32x4 -> shufflenetv2",
)
_MIXED_ROWS: tuple[tuple[str, str, tuple[float | None, ...]], ...] = (
    ("teacher", REPDISTILLER, (79.42, 75.61, 74.64, 79.34, 79.42)),
    ("student", REPDISTILLER, (70.50, 70.50, 64.60, 64.60, 71.82)),
    ("KD", REPDISTILLER, (74.07, 74.83, 67.37, 67.35, 74.45)),
    ("CRD", REPDISTILLER, (75.11, 76.05, 69.73, 69.11, 75.65)),
    ("DKD", MDISTILLER, (76.45, 76.70, 69.71, 70.35, 77.07)),
    ("DIST", TTM, (76.34, 76.40, 68.50, 68.66, 77.35)),
    ("CTKD", LSKD, (None, None, 68.50, 68.67, 75.37)),
    ("WTTM", TTM, (74.37, 75.42, 69.16, 69.59, 76.55)),
    ("KD+LSKD", LSKD, (None, None, 68.61, 69.02, 75.56)),
    ("DKD+LSKD", LSKD, (None, None, 69.98, 70.45, 77.37)),
)
_W2S_METHODS = ("KD", "AugConf", "AdaptConf")
_W2S = {
    ("w2s", "resnet20 -> resnet56"): (73.81, 73.86, 74.17),
    ("w2s_v1", "vgg8 -> vgg13"): (76.41, 76.55, 76.84),
}
_CIFAR_CAUTION = (
    "Number of seeds and choice of the epoch are the sources' own; several are reported not to reproduce."
)
_FEW_SHOT_PAIRS = ("resnet12_bottle -> resnet36_bottle", "resnet18_bottle -> resnet36_bottle")
_FEW_SHOT_ROWS: tuple[tuple[str, str, tuple[float | None, ...]], ...] = (
    ("AdaptConf at the classifier stage 1-shot", W2S, (61.50, 62.29)),
    ("AdaptConf at the classifier stage 5-shot", W2S, (79.52, 79.96)),
    ("AdaptConf at the meta stage, classifier as teacher, validation 1-shot", W2S, (65.38, 65.74)),
    ("AdaptConf at the meta stage, meta-learner as teacher, validation 1-shot", W2S, (66.08, 65.95)),
)
_FEW_SHOT_CAUTION = (
    "Those of the meta stage are validation figures, not test figures. Number of seeds and choice of the "
    "epoch are the source's own."
)

Figures = list[tuple[str, str, float]]
"""(method, source, percent)."""


def published_line(dataset: str, recipe: str, pair: str) -> str | None:
    """Write the published figures of a comparison with their sources, or None without any.

    Args:
        dataset: data set name; the figures are CIFAR-100 top-1 in percent, and for ``mini_imagenet``
            5-way accuracy in percent.
        recipe: recipe name; the few-shot figures are of both stages, and stand with any.
        pair: ``teacher -> student``. The zoo's ``cifar_resnet50`` is the papers' ResNet50.
    """
    if dataset == "mini_imagenet":
        figures = _column(pair, _FEW_SHOT_PAIRS, _FEW_SHOT_ROWS)
        shared, caution = "data set", _FEW_SHOT_CAUTION
    elif dataset == "cifar100":
        figures = _of_cifar(recipe, pair.replace("cifar_resnet50", "resnet50"))
        shared, caution = "recipe", _CIFAR_CAUTION
    else:
        return None
    if not figures:
        return None
    by_source: dict[str, list[str]] = {}
    for method, source, value in figures:
        by_source.setdefault(source, []).append(f"{method} {value:.2f}")
    listed = "; ".join(f"{', '.join(values)} ({source})" for source, values in by_source.items())
    return f"Published for this {shared} and pair, not run here: {listed}. {caution}"


def _of_cifar(recipe: str, pair: str) -> Figures:
    if recipe == "crd":
        return _column(pair, _CRD_PAIRS, _CRD_ROWS) + _column(pair, _MIXED_PAIRS, _MIXED_ROWS)
    values = _W2S.get((recipe, pair), ())
    return [(method, W2S, value) for method, value in zip(_W2S_METHODS, values, strict=bool(values))]


def _column(
    pair: str, pairs: Sequence[str], rows: Sequence[tuple[str, str, tuple[float | None, ...]]]
) -> Figures:
    """Return the figures of one pair, without those that a source has not."""
    if pair not in pairs:
        return []
    column = [(method, source, values[pairs.index(pair)]) for method, source, values in rows]
    return [(method, source, value) for method, source, value in column if value is not None]
