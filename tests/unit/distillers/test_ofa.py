import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.ofa import OFA, ofa
from gda.distillers.ofa_exits import ConvolutionExit, TransformerExit
from gda.errors import UserError
from gda.models import create_model
from gda.models.layout import layout_of
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features

SIZE = 16
BATCH = 4
CLASSES = 5

Logits = Callable[..., tuple[Tensor, Tensor]]


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zoo(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, num_classes=CLASSES)


def transformer(seed: int = 0, class_token: bool = True) -> nn.Module:
    """Four blocks of 64 tokens, 8 wide."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=SIZE,
        patch_size=2,
        num_classes=CLASSES,
        embed_dim=8,
        depth=4,
        num_heads=2,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
    )


def facts_of(term: OFA, student: nn.Module, teacher: nn.Module) -> RunFacts:
    """As the check of a config: taps that a model lacks are left out."""
    have = layout_of(student).names()
    there = [tap for tap in term.student_features if tap in have or not tap.startswith("stage")]
    return RunFacts(
        CLASSES,
        10,
        None,
        describe(student, there, SIZE),
        describe(teacher, term.teacher_features, SIZE),
        student=student,
        teacher=teacher,
    )


def ready(term: OFA, student: nn.Module, teacher: nn.Module) -> OFA:
    facts = facts_of(term, student, teacher)
    assert term.refusals(facts) == []
    torch.manual_seed(7)
    term.setup(facts)
    return term


def inputs_of(term: OFA, student: nn.Module, teacher: nn.Module) -> TermInputs:
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    outputs = []
    for model, taps in ((student.train(), term.student_features), (teacher.eval(), term.teacher_features)):
        with features(model, taps) as tapped:
            outputs.append(ModelOutput(model(images), tapped.collect()))
    return TermInputs(
        images=images,
        targets=torch.arange(BATCH) % CLASSES,
        indices=torch.arange(BATCH),
        student=outputs[0],
        teacher=outputs[1],
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


@pytest.mark.parametrize(("exponent", "temperature"), [(1.0, 1.0), (1.5, 1.0), (0.7, 4.0)])
def test_value_and_gradient_are_those_of_the_formula(
    exponent: float, temperature: float, logits: Logits
) -> None:
    student, teacher = logits()
    target = [0, 4, 2, 1, 3, 3]
    value = ofa(student, teacher, torch.tensor(target), exponent, temperature)
    value.backward()
    s, t = student.detach().numpy() / temperature, teacher.numpy() / temperature
    total, gradient = 0.0, np.zeros_like(s)
    for i, y in enumerate(target):
        p, q = np.exp(s[i]) / np.exp(s[i]).sum(), np.exp(t[i]) / np.exp(t[i]).sum()
        wanted = [(q[c] + (c == y)) ** exponent - (c == y) for c in range(5)]
        total -= sum(w * math.log(p[c]) for c, w in enumerate(wanted)) / 6
        gradient[i] = (sum(wanted) * p - wanted) / temperature / 6
    assert value.item() == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)


def test_gradcheck(logits: Logits) -> None:
    student, teacher = logits()
    target = torch.tensor([0, 4, 2, 1, 3, 3])
    assert torch.autograd.gradcheck(lambda s: ofa(s, teacher, target, 1.5, 2.0), (student,))


def test_is_cross_entropy_with_the_teacher_at_exponent_1(logits: Logits) -> None:
    student, teacher = logits()
    value = ofa(student, teacher, torch.zeros(6, dtype=torch.long), 1.0)
    torch.testing.assert_close(value, nn.functional.cross_entropy(student, teacher.softmax(dim=1)))
    same = teacher.clone().requires_grad_()
    ofa(same, teacher, torch.zeros(6, dtype=torch.long), 1.0).backward()
    assert same.grad.abs().max() < 1e-15


def test_a_higher_exponent_asks_for_more_of_the_target(logits: Logits) -> None:
    _, teacher = logits()
    target = teacher.argmax(dim=1)
    pushes = []
    for exponent in (0.5, 1.0, 1.5, 2.0):
        student = teacher.clone().requires_grad_()
        ofa(student, teacher, target, exponent).backward()
        pushes.append(student.grad.gather(1, target.unsqueeze(1)).mean().item())
    assert pushes == sorted(pushes, reverse=True)


def test_shifts_and_the_order_of_classes_and_samples_do_not_matter(logits: Logits) -> None:
    student, teacher = logits()
    target = torch.tensor([0, 4, 2, 1, 3, 3])
    value = ofa(student, teacher, target, 1.5)
    shift = torch.arange(6.0, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(ofa(student + shift, teacher - 2 * shift, target, 1.5), value)
    classes, samples = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([5, 2, 0, 1, 4, 3])
    place = classes.argsort()
    turned = ofa(student[:, classes], teacher[:, classes], place[target], 1.5)
    torch.testing.assert_close(turned, value)
    torch.testing.assert_close(ofa(student[samples], teacher[samples], target[samples], 1.5), value)


def test_of_class_probabilities_the_most_probable_class_is_the_target(logits: Logits) -> None:
    student, teacher = logits()
    target = torch.tensor([0, 4, 2, 1, 3, 3])
    mixed = 0.7 * nn.functional.one_hot(target, 5) + 0.3 * nn.functional.one_hot(target.roll(1), 5)
    assert torch.equal(ofa(student, teacher, mixed, 1.5), ofa(student, teacher, target, 1.5))
    blind = ofa(student, teacher, teacher.softmax(dim=1), 1.5)
    assert torch.equal(blind, ofa(student, teacher, teacher.argmax(dim=1), 1.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_extreme_logits_have_finite_values_and_gradients(
    exponent: float, dtype: torch.dtype, logits: Logits
) -> None:
    for factor in (1.0, -1.0):
        _, teacher = logits(dtype=dtype)
        student = (1e4 * teacher).requires_grad_()
        value = ofa(student, factor * 1e4 * teacher, torch.arange(6) % 5, exponent)
        value.backward()
        assert value.isfinite()
        assert value >= 0
        assert student.grad.isfinite().all()


def test_logits_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="must both be"):
        ofa(rows(3, 4), rows(1, 4), torch.zeros(3, dtype=torch.long))


def test_the_term_sums_the_losses_of_exits_and_logits() -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(OFA([2, 3], eps=[1.2, 1.5, 0.8], temperature=2.0, exit_weight=0.3), student, teacher)
    inputs = inputs_of(term, student, teacher)
    t, y = inputs.teacher_logits, inputs.targets
    exits = [
        ofa(make(inputs.student.features[tap]), t, y, exponent, 2.0)
        for make, tap, exponent in zip(term.exits, ("stage2", "stage3"), (1.2, 1.5), strict=True)
    ]
    expected = ofa(inputs.student.logits, t, y, 0.8, 2.0) + 0.3 * (exits[0] + exits[1])
    torch.testing.assert_close(term(inputs), expected, rtol=1e-6, atol=0)
    assert OFA().eps == [1.0] * 4


@pytest.mark.parametrize("eps", [[], [1.0, 1.0], [1.0] * 5, [0.0], [1.0, 1.0, -1.0, 1.0], [math.nan]])
def test_a_wrong_number_of_exponents_or_one_not_above_0_is_refused(eps: list[float]) -> None:
    with pytest.raises(UserError, match=r"one for each of the 3 stages and a last one"):
        OFA([1, 2, 3], eps=eps)


@pytest.mark.parametrize(
    ("sides", "channels"),
    [
        ((56, 28, 14, 7), (64, 128, 256, 512)),
        ((32, 16, 8, 4), (16, 32, 64, 64)),
        ((40, 20, 10, 5), (8, 8, 8, 8)),
    ],
)
def test_a_stage_is_halved_as_often_as_published(sides: Sequence[int], channels: Sequence[int]) -> None:
    """Three, two, one times and never, with channels doubled each time but the last."""
    for stage, (side, count) in enumerate(zip(sides, channels, strict=True), start=1):
        torch.manual_seed(0)
        made = ConvolutionExit((count, side, side), width=96, classes=CLASSES)
        convolutions = [module for module in made.modules() if isinstance(module, nn.Conv2d)]
        halving = [module for module in convolutions if module.stride == (2, 2)]
        assert [module.out_channels for module in halving] == [count * 2**step for step in range(4 - stage)]
        assert all(module.groups == module.in_channels for module in halving)
        assert convolutions[-1].out_channels == made[-1].in_features == 96
        assert made.eval()(rows(2, count, side, side).float()).shape == (2, CLASSES)


def test_exits_on_maps_start_as_published() -> None:
    torch.manual_seed(0)
    made = ConvolutionExit((64, 14, 14), width=512, classes=100)
    depthwise, pointwise = made[0][0], made[0][1]
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)
    assert pointwise.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert made[-1].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert made[-1].bias.abs().max() == 0


@pytest.mark.parametrize(
    ("side", "prefix", "tokens"),
    [(14, 1, 49), (28, 0, 49), (56, 0, 49), (7, 1, 49), (16, 2, 64), (30, 0, 225), (8, 1, 64), (2, 0, 4)],
)
def test_tokens_are_merged_while_7x7_are_left(side: int, prefix: int, tokens: int) -> None:
    made = TransformerExit(side, prefix, inputs=4, width=8, blocks=1, classes=CLASSES)
    seen = []
    made.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert made(rows(2, prefix + side * side, 4).float()).shape == (2, CLASSES)
    assert seen == [(2, prefix + tokens, 8)]


def test_activations_of_merges_are_those_published() -> None:
    """One behind the first merge, none behind the last of several."""
    for side, expected in ((14, [True]), (28, [True, False]), (56, [True, True, False])):
        made = TransformerExit(side, 0, inputs=4, width=8, blocks=1, classes=CLASSES)
        assert [isinstance(merge.activation, nn.GELU) for merge in made.merge] == expected


def test_a_merge_joins_neighbours_of_the_square() -> None:
    made = TransformerExit(14, 0, inputs=1, width=4, blocks=1, classes=CLASSES)
    merge = made.merge[0]
    merge.norm, merge.reduce, merge.activation = nn.Identity(), nn.Identity(), nn.Identity()
    joined = merge(torch.arange(196.0).reshape(1, 196, 1))
    assert joined.shape == (1, 49, 4)
    assert sorted(joined[0, 0].tolist()) == [0, 1, 14, 15]
    assert sorted(joined[0, 8].tolist()) == [30, 31, 44, 45]


def test_the_class_token_speaks_where_there_is_one() -> None:
    torch.manual_seed(0)
    with_token = TransformerExit(2, 2, inputs=4, width=8, blocks=0, classes=CLASSES)
    tokens = rows(2, 6, 4).float()
    changed = torch.cat([tokens[:, :1], 0 * tokens[:, 1:]], dim=1)
    assert torch.equal(with_token(tokens), with_token(changed))
    without = TransformerExit(2, 0, inputs=4, width=8, blocks=0, classes=CLASSES)
    torch.testing.assert_close(without(tokens[:, 2:]), without(tokens[:, 2:].flip(1)))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], OFA]]] = {
    "network to network": (lambda: zoo("resnet8"), lambda: zoo("vgg8", 1), OFA),
    "transformer to network": (lambda: zoo("resnet8"), lambda: transformer(1), OFA),
    "network to transformer": (transformer, lambda: zoo("resnet8", 1), lambda: OFA([1, 2, 3, 4])),
    "without a class token": (
        lambda: transformer(class_token=False),
        lambda: zoo("resnet8", 1),
        lambda: OFA([4]),
    ),
    "without a stage 1": (lambda: zoo("mobilenetv2"), lambda: zoo("resnet8", 1), lambda: OFA([2, 3])),
    "module paths": (lambda: zoo("resnet8"), lambda: zoo("resnet8", 1), lambda: OFA(["conv1", "layer2"])),
    "transformer exits on maps": (
        lambda: zoo("resnet8"),
        lambda: zoo("resnet8", 1),
        lambda: OFA([2], projector="transformer"),
    ),
    "convolution exits on tokens": (
        transformer,
        lambda: zoo("resnet8", 1),
        lambda: OFA([2], projector="convolution"),
    ),
    "an exit on a vector": (
        lambda: zoo("resnet8"),
        lambda: zoo("resnet8", 1),
        lambda: OFA(["pooled"], projector="transformer"),
    ),
    "no exits": (lambda: zoo("resnet8"), lambda: zoo("resnet8", 1), lambda: OFA([])),
}


@pytest.mark.parametrize(("make_student", "make_teacher", "make_term"), PAIRS.values(), ids=PAIRS)
def test_trains_the_student_and_its_exits_but_never_the_teacher(
    make_student: Callable[[], nn.Module], make_teacher: Callable[[], nn.Module], make_term: Callable[[], OFA]
) -> None:
    student, teacher = make_student(), make_teacher()
    term = ready(make_term(), student, teacher)
    value = term(inputs_of(term, student, teacher))
    value.backward()
    assert value.shape == ()
    assert value.dtype is torch.float32
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_widths_are_those_published() -> None:
    """The larger of both models in front of an exit's head on maps, the student's own on tokens."""
    for student, teacher in ((zoo("resnet8"), zoo("resnet8x4")), (zoo("resnet8x4"), zoo("resnet8"))):
        term = ready(OFA(), student, teacher)
        assert [made[-1].in_features for made in term.exits] == [256] * 3
    term = ready(OFA([1, 2, 3, 4]), transformer(), zoo("resnet8x4"))
    assert [made.head.in_features for made in term.exits] == [8] * 4
    assert [len(made.blocks) for made in term.exits] == [3, 2, 1, 1]


def test_half_precision_features_give_losses_in_float32() -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(OFA(), student, teacher)
    inputs = inputs_of(term, student, teacher)
    value = term(inputs)
    halves = {name: feature.bfloat16() for name, feature in inputs.student.features.items()}
    with torch.autocast("cpu", torch.bfloat16):
        rounded = term(replace(inputs, student=replace(inputs.student, features=halves)))
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(value.item(), rel=0.02)
    rounded.backward()
    assert all(p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_features_have_finite_values_and_gradients(scale: float) -> None:
    student, teacher = transformer(), zoo("resnet8", seed=1)
    for student, stages in ((transformer(), [1, 4]), (zoo("resnet8"), [1, 3])):
        term = ready(OFA(stages), student, teacher)
        inputs = inputs_of(term, student, teacher)
        scaled = {name: scale * feature for name, feature in inputs.student.features.items()}
        value = term(replace(inputs, student=replace(inputs.student, features=scaled)))
        value.backward()
        assert value.isfinite()
        assert all(p.grad.isfinite().all() for p in (*term.parameters(), *student.parameters()))


def test_its_state_travels_in_the_checkpoint() -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    first, second = ready(OFA(), student, teacher), OFA()
    inputs = inputs_of(first, student, teacher)
    first(inputs)  # moves running statistics
    second.setup(facts_of(second, student, teacher))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(inputs), first.eval()(inputs))


def test_a_missing_stage_is_refused_with_the_stages_that_there_are() -> None:
    (sentence,) = OFA().refusals(facts_of(OFA(), zoo("mobilenetv2"), zoo("resnet8")))
    assert sentence.startswith("the student (CifarMobileNetV2) has no stage1; it has those of stages=[2,3,4]")
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    (sentence,) = OFA().refusals(facts_of(OFA(), plain, zoo("resnet8")))
    assert "it names none; module paths do as well" in sentence
    assert OFA(["0"]).refusals(facts_of(OFA(["0"]), plain, zoo("resnet8"))) == []


def test_tokens_that_fill_no_square_are_refused() -> None:
    known = {"stage1": TapDescription("blocks.0", (11, 8), 1, True, 1)}
    (sentence,) = OFA([1]).refusals(RunFacts(CLASSES, 10, None, known, {}))
    assert sentence == "stage1 of the student can't have an exit: 10 image tokens do not fill a square map"
