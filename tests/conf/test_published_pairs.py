"""The presets' published values of each pair, transcribed once more from the sources that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
Compose = Callable[..., dict[str, Any]]


def preset(name: str) -> Any:
    """Method, plug-in, recipe and models of a preset, without the time that composing takes."""
    own = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    chosen = {"plugin": "none"}
    for default in own.pop("defaults"):
        chosen |= {key.removeprefix("override /"): choice for key, choice in default.items()}
    files = {
        group: OmegaConf.load(CONF / group / f"{chosen[group]}.yaml")
        for group in ("distiller", "plugin", "recipe")
    }
    models = {role: {"name": chosen[role]} for role in ("teacher", "student")}
    return OmegaConf.merge(files, models, own)


PAIRS = (
    *("resnet56_resnet20", "resnet110_resnet32", "resnet32x4_resnet8x4", "wrn_40_2_wrn_16_2"),
    *("wrn_40_2_wrn_40_1", "vgg13_vgg8", "resnet32x4_shufflenetv1", "wrn_40_2_shufflenetv1"),
    *("vgg13_mobilenetv2", "cifar_resnet50_mobilenetv2", "resnet32x4_shufflenetv2"),
)
WITHOUT_SHUFFLENETV1 = tuple(pair for pair in PAIRS if not pair.endswith("v1"))


def test_dkd_has_the_published_beta_of_each_pair() -> None:
    betas = {pair: preset(f"dkd/{pair}").distiller.terms.dkd.beta for pair in PAIRS}
    assert tuple(betas.values()) == (2, 2, 8, 6, 6, 6, 8, 8, 6, 8, 8)


# Weights as the logs' names give them: KD's, the factor of DKD's alpha and beta, MLKD's.
@pytest.mark.parametrize(
    ("method", "temperatures", "weights"),
    [
        ("kd", (2, 2, 2, 2, 2, 3, 3, 3, 2), (9, 9, 9, 9, 9, 9, 9, 1, 9)),
        ("dkd", (3, 2, 2, 2, 2, 2, 3, 2, 2), (18, 15, 9, 12, 12, 15, 9, 15, 9)),
        ("mlkd", (2, 2, 2, 2, 2, 2, 2, 2, 2), (9, 9, 9, 9, 9, 6, 6, 9, 6)),
    ],
)
def test_standardised_logits_have_the_published_temperature_and_weight_of_each_pair(
    method: str, temperatures: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    presets = [preset(f"{method}_lskd/{pair}") for pair in WITHOUT_SHUFFLENETV1]
    assert tuple(each.plugin.plugins.lskd.temperature for each in presets) == temperatures
    own = [each.distiller.terms[method].weight for each in presets]
    values = [weight.value if OmegaConf.is_dict(weight) else weight for weight in own]
    products = [
        value * each.plugin.weight_factors[method] for value, each in zip(values, presets, strict=True)
    ]
    assert products == pytest.approx(list(weights))


def test_dkd_on_standardised_logits_has_the_published_betas() -> None:
    betas = [preset(f"dkd_lskd/{pair}").distiller.terms.dkd.beta for pair in WITHOUT_SHUFFLENETV1]
    assert betas == [2, 2, 8, 2, 2, 2, 2, 2, 8]


@pytest.mark.parametrize(
    ("group", "pairs", "rates", "epochs"),
    [
        (
            "mlkd",
            PAIRS,
            (0.025, 0.025, 0.025, 0.025, 0.025, 0.025, 0.01, 0.01, 0.01, 0.01, 0.01),
            (480, 480, 480, 480, 480, 480, 960, 480, 480, 480, 960),
        ),
        (
            "mlkd_lskd",
            WITHOUT_SHUFFLENETV1,
            (0.025, 0.025, 0.025, 0.025, 0.025, 0.01, 0.01, 0.01, 0.01),
            (480, 480, 480, 480, 480, 480, 480, 480, 960),
        ),
    ],
)
def test_mlkd_trains_longer_and_more_slowly(
    group: str, pairs: tuple[str, ...], rates: tuple[float, ...], epochs: tuple[int, ...]
) -> None:
    for pair, rate, length in zip(pairs, rates, epochs, strict=True):
        made = preset(f"{group}/{pair}")
        recipe, student, teacher = made.recipe, made.student.name, made.teacher.name
        assert (recipe.lr, recipe.lr_by_model.get(student, 0.05), recipe.epochs) == (None, rate, length), pair
        assert teacher not in recipe.lr_by_model, "an auto teacher keeps the recipe's rate"


@pytest.mark.parametrize(
    ("pair", "weight", "batch_size", "rate"),
    [
        ("resnet56_resnet20", 0.6, 128, 0.1),
        ("resnet110_resnet32", 1.0, 128, 0.1),
        ("resnet32x4_resnet8x4", 5.0, 64, 0.05),
        ("wrn_40_2_wrn_16_2", 5.0, 128, 0.1),
        ("wrn_40_2_wrn_40_1", 5.0, 128, 0.1),
        ("vgg13_vgg8", 5.0, 64, 0.05),
        ("resnet32x4_shufflenetv1", 5.0, 128, 0.02),
        ("wrn_40_2_shufflenetv1", 5.0, 128, 0.02),
        ("cifar_resnet50_mobilenetv2", 30.0, 64, 0.01),
        ("resnet32x4_shufflenetv2", 8.0, 128, 0.02),
    ],
)
def test_review_kd_has_the_published_weight_of_each_pair(
    pair: str, weight: float, batch_size: int, rate: float
) -> None:
    made = preset(f"review_kd/{pair}")
    rates = made.recipe.lr_by_model
    assert made.distiller.terms.review_kd.weight == {"value": weight, "warmup_epochs": 20}
    assert made.recipe.batch_size == batch_size
    assert made.recipe.optimizer.nesterov == (batch_size == 128)
    assert rates.get(made.student.name, rates.default) == rate


def test_scales_are_two_for_pairs_of_one_family_and_three_for_others() -> None:
    for name in ("kd_sdd/resnet32x4_resnet8x4", "kd_sdd/vgg13_vgg8", "dkd_sdd/vgg13_vgg8"):
        assert preset(name).plugin.plugins.sdd.scales == [1, 2]
    for name in ("kd_sdd/vgg13_mobilenetv2", "dkd_sdd/vgg13_mobilenetv2", "kd_sdd/wrn_40_2_shufflenetv1"):
        assert preset(name).plugin.plugins.sdd.scales == [1, 2, 4]


def test_single_rows_have_their_published_values() -> None:
    weak_to_strong = preset("kd/resnet20_resnet56")
    assert weak_to_strong.recipe.name == "w2s"
    assert weak_to_strong.distiller.ground_truth_weight == 1
    assert (weak_to_strong.distiller.terms.kd.weight, weak_to_strong.distiller.terms.kd.temperature) == (1, 1)
    transport = preset("wkd_l/wrn_40_2_shufflenetv1").distiller.terms.wkd_l
    assert (transport.transport_weight, transport.temperature) == (200, 6)
    beside = preset("crd_kd/resnet32x4_resnet8x4").distiller
    assert beside.ground_truth_weight == 1
    assert (beside.terms.crd.weight, beside.terms.kd.weight, beside.terms.kd.temperature) == (0.8, 1, 4)
    matching = preset("wttm_crd/vgg13_vgg8").distiller.terms
    assert (matching.wttm.weight, matching.wttm.exponent, matching.crd.weight) == (4, 0.2, 0.8)


def test_an_alignment_can_be_chosen_on_top_of_a_preset(compose: Compose) -> None:
    plain = compose("experiment=dkd/resnet56_resnet20")
    aligned = compose("experiment=dkd/resnet56_resnet20", "alignment=gda")
    assert (plain["alignment"]["name"], aligned["alignment"]["name"]) == ("none", "gda")
    assert aligned["distiller"] == plain["distiller"]


def test_a_preset_as_read_here_is_the_composed_one(compose: Compose) -> None:
    for name in ("dkd_lskd/resnet56_resnet20", "mlkd_lskd/vgg13_vgg8", "review_kd/wrn_40_2_shufflenetv1"):
        composed, read = compose(f"experiment={name}"), preset(name)
        for group in ("distiller", "plugin", "recipe"):
            assert OmegaConf.to_container(read[group]) == composed[group]
