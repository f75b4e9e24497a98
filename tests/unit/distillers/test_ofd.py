import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.ofd import OFD, batch_norm_behind, margins, ofd
from gda.models import create_model
from gda.models.layout import layout_of
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def facts_of(term: OFD, student: nn.Module, teacher: nn.Module, size: int = 16) -> RunFacts:
    return RunFacts(
        classes=10,
        train_size=10,
        student_features=describe(student, term.student_features, size),
        teacher_features=describe(teacher, term.teacher_features, size),
        student=student,
        teacher=teacher,
    )


def with_spread_norms(name: str, seed: int = 0) -> nn.Module:
    """A model whose batch norms are not those of initialisation, so that margins differ by channel."""
    torch.manual_seed(seed)
    model = create_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def test_value_and_gradient_are_those_of_the_formula() -> None:
    student, teacher = maps(3, 4, 2, 3).requires_grad_(), maps(3, 4, 2, 3, seed=1)
    margin = torch.tensor([-0.3, -1.0, -0.05, -3.0], dtype=torch.float64)
    value = ofd(student, teacher, margin)
    value.backward()
    s, t = student.detach().numpy(), teacher.numpy()
    total, gradient = 0.0, np.zeros_like(s)
    skipped = 0
    for index in np.ndindex(*s.shape):
        target = max(t[index], margin[index[1]].item())
        if s[index] <= target <= 0:
            skipped += 1
            continue
        total += (s[index] - target) ** 2 / len(s)
        gradient[index] = 2 * (s[index] - target) / len(s)
    assert 0 < skipped < s.size
    assert value.item() == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-12)


def test_gradcheck() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1)
    margin = torch.tensor([-0.3, -1.0, -0.05], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: ofd(s, teacher, margin), (student,))


def test_a_margin_is_the_mean_of_the_negative_part() -> None:
    scale = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    shift = torch.tensor([0.0, 1.0, -4.0, 2.0, 3.0], dtype=torch.float64)
    expected = [
        stats.truncnorm(-np.inf, -mean / abs(deviation), loc=mean, scale=abs(deviation)).mean()
        for deviation, mean in zip(scale.tolist(), shift.tolist(), strict=True)
    ]
    np.testing.assert_allclose(margins(scale, shift).numpy(), expected, rtol=1e-9)


def test_margins_of_channels_that_are_hardly_ever_negative_or_constant() -> None:
    """Three standard deviations below 0 where fewer than one in a thousand values are negative."""
    scale = torch.tensor([1.0, -2.0, 0.0, 0.0, 0.0, 1e-30])
    shift = torch.tensor([3.2, 8.0, 1.0, 0.0, -2.0, -1.0])
    torch.testing.assert_close(margins(scale, shift), torch.tensor([-3.0, -6.0, 0.0, 0.0, -2.0, -1.0]))


def test_is_zero_where_the_teacher_is_reached_or_both_stay_below() -> None:
    teacher, margin = maps(2, 3, 2, 2), torch.tensor([-0.3, -1.0, -0.05], dtype=torch.float64)
    target = torch.maximum(teacher, margin.reshape(1, 3, 1, 1))
    below = torch.where(target > 0, target, target - 5)
    for student in (target, below):
        student = student.clone().requires_grad_()
        value = ofd(student, teacher, margin)
        value.backward()
        assert value.item() == 0
        assert student.grad.abs().max() == 0


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    ofd(student, teacher, torch.tensor([-0.3, -1.0, -0.05])).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_extreme_maps_have_finite_values_and_gradients() -> None:
    student = (1e4 * maps(2, 3, 4, 4)).float().requires_grad_()
    value = ofd(student, -student, torch.tensor([-0.3, -1.0, -0.05]))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "stage", "norm"),
    [
        ("resnet20", 2, "layer2.2.bn2"),
        ("cifar_resnet50", 4, "layer4.2.bn3"),
        ("wrn_16_2", 2, "block3.layer.0.bn1"),
        ("wrn_16_2", 3, "bn1"),
        ("vgg13", 3, "block2.4"),
        ("mobilenetv2", 3, "blocks.2.2.conv.7"),
    ],
)
def test_margins_come_from_the_published_batch_norms(name: str, stage: int, norm: str) -> None:
    model = create_model(name, num_classes=10)
    tap = f"stage{stage}:pre"
    assert batch_norm_behind(model, describe(model, [tap], 16)[tap]) is model.get_submodule(norm)


@pytest.mark.parametrize("name", ["vgg8", "wrn_16_1"])
def test_the_batch_norm_found_is_the_one_that_makes_the_map(name: str) -> None:
    model = with_spread_norms(name)
    taps = ("stage1:pre", "stage2:pre", "stage3:pre")
    outputs: dict[str, Tensor] = {}
    for tap, described in describe(model, taps, 16).items():
        norm = batch_norm_behind(model, described)
        assert norm is not None
        norm.register_forward_hook(lambda _, __, out, tap=tap: outputs.update({tap: out}))
    with features(model, taps) as tapped:
        model(maps(2, 3, 16, 16).float())
        for tap, feature in tapped.collect().items():
            assert torch.equal(feature, outputs[tap])


def test_stages_weigh_half_of_the_next_and_margins_are_the_teachers() -> None:
    student, teacher = with_spread_norms("resnet8"), with_spread_norms("wrn_16_2", seed=1)
    term = OFD()
    torch.manual_seed(2)
    term.setup(facts_of(term, student, teacher))
    images = maps(4, 3, 16, 16).float()
    with features(student, term.student_features) as ours, features(teacher, term.teacher_features) as theirs:
        outputs = ModelOutput(student(images), ours.collect()), ModelOutput(teacher(images), theirs.collect())
    inputs = TermInputs(
        images=images,
        targets=torch.zeros(4, dtype=torch.long),
        indices=torch.arange(4),
        student=outputs[0],
        teacher=outputs[1],
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )
    norms = [teacher.block2.layer[0].bn1, teacher.block3.layer[0].bn1, teacher.bn1]
    parts = []
    for number, (connect, norm) in enumerate(zip(term.connectors, norms, strict=True)):
        tap = f"stage{number + 1}:pre"
        margin = margins(norm.weight, norm.bias)
        assert torch.equal(term.state_dict()[f"margin{number}"], margin)
        parts.append(ofd(connect(outputs[0].features[tap]), outputs[1].features[tap], margin))
    expected = parts[0] / 4 + parts[1] / 2 + parts[2]
    torch.testing.assert_close(term(inputs), expected, rtol=1e-6, atol=0)


def test_connectors_start_normal_and_without_bias() -> None:
    term = OFD(stages=[3])
    teacher = create_model("resnet8x4", num_classes=10)
    torch.manual_seed(0)
    term.setup(facts_of(term, create_model("resnet8", num_classes=10), teacher))
    convolution, norm = term.connectors[0]
    assert (tuple(convolution.weight.shape), convolution.bias) == ((256, 64, 1, 1), None)
    assert convolution.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.03)
    assert norm.num_features == 256


def refusals(student: nn.Module, teacher: nn.Module, **options: object) -> list[str]:
    """What the check of a config is told; it describes the taps that there are."""
    term = OFD(**options)

    def known(model: nn.Module, taps: tuple[str, ...]) -> dict[str, TapDescription]:
        have = layout_of(model).names()
        return describe(model, [tap for tap in taps if tap in have], 16)

    described = known(student, term.student_features), known(teacher, term.teacher_features)
    return term.refusals(RunFacts(10, 10, None, *described, student=student, teacher=teacher))


class Plain(nn.Module):
    """A network whose maps have no names."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, padding=1), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).relu().mean(dim=(2, 3))


def test_pairs_that_it_serves_are_not_refused() -> None:
    resnet = create_model("resnet8", num_classes=10)
    assert refusals(resnet, create_model("wrn_16_1", num_classes=10)) == []
    assert refusals(create_model("shufflenetv2", num_classes=10), resnet) == []


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_models_without_batch_norm_or_names_are_refused_with_methods_that_work(role: str) -> None:
    resnet = create_model("resnet8", num_classes=10)
    for norm, reason in ((nn.Identity(), "has no batch norm"), (nn.BatchNorm2d(4), "give module paths")):
        (sentence,) = refusals(**{"student": resnet, "teacher": resnet, role: Plain(norm)})
        assert sentence.startswith(f"the {role} (Plain) names no maps before an activation")
        assert reason in sentence
        assert "fitnet, at, nst and vid" in sentence


def test_maps_can_be_given_by_path() -> None:
    resnet, plain = create_model("resnet8", num_classes=10), Plain(nn.BatchNorm2d(4))
    term = OFD(stages=[3], teacher_stages=["norm"])
    facts = facts_of(term, resnet, plain)
    assert term.refusals(facts) == []
    term.setup(facts)
    assert torch.equal(term.state_dict()["margin0"], margins(plain.norm.weight, plain.norm.bias))
    term = OFD(stages=[3], teacher_stages=["convolution"])
    (sentence,) = term.refusals(facts_of(term, resnet, plain))
    assert "no batch norm makes convolution" in sentence


def test_a_teacher_whose_batch_norm_makes_half_a_map_is_refused() -> None:
    resnet = create_model("resnet8", num_classes=10)
    (sentence,) = refusals(resnet, create_model("shufflenetv2", num_classes=10), stages=[2])
    assert "no batch norm makes layer1.3.relu3:input of the teacher (CifarShuffleNetV2)" in sentence


def test_a_missing_stage_is_refused_with_the_stages_that_there_are() -> None:
    sentences = refusals(create_model("resnet8", num_classes=10), create_model("mobilenetv2", num_classes=10))
    (sentence,) = sentences
    assert (
        "the teacher (CifarMobileNetV2) has no stage1:pre; both models have those of stages=[2,3]" in sentence
    )


def test_maps_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        ofd(maps(2, 3, 2, 2), maps(2, 3, 1, 1), torch.zeros(3))
