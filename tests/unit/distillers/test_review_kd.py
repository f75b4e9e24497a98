from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.review_kd import AttentionFusion, ReviewKD, hcl
from gda.errors import UserError
from gda.models import create_model
from gda.models.layout import layout_of
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features

SIZE = 16
BATCH = 4


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zoo(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, num_classes=5)


def transformer(seed: int = 0) -> nn.Module:
    """Four blocks of 16 tokens and a class token, 8 wide."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    return VisionTransformer(img_size=SIZE, patch_size=4, num_classes=5, embed_dim=8, depth=4, num_heads=2)


def facts_of(term: ReviewKD, student: nn.Module, teacher: nn.Module) -> RunFacts:
    """As the check of a config: taps that a model lacks are left out."""

    def known(model: nn.Module, taps: tuple[str, ...]) -> dict[str, TapDescription]:
        have = layout_of(model).names()
        there = [tap for tap in taps if tap in have or not tap.startswith("stage")]
        return describe(model, there, SIZE)

    described = known(student, term.student_features), known(teacher, term.teacher_features)
    return RunFacts(5, 10, None, *described, student=student, teacher=teacher)


def ready(term: ReviewKD, student: nn.Module, teacher: nn.Module) -> ReviewKD:
    facts = facts_of(term, student, teacher)
    assert term.refusals(facts) == []
    torch.manual_seed(7)
    term.setup(facts)
    return term


def inputs_of(term: ReviewKD, student: nn.Module, teacher: nn.Module) -> TermInputs:
    """One batch through both models; the teacher keeps a graph, which the term must not follow."""
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    outputs = []
    for model, taps in ((student.train(), term.student_features), (teacher.eval(), term.teacher_features)):
        with features(model, taps) as tapped:
            outputs.append(ModelOutput(model(images), tapped.collect()))
    return given(*outputs)


def given(student: ModelOutput, teacher: ModelOutput) -> TermInputs:
    batch = len(student.logits)
    return TermInputs(
        images=torch.zeros(batch, 3, 1, 1),
        targets=torch.zeros(batch, dtype=torch.long),
        indices=torch.arange(batch),
        student=student,
        teacher=teacher,
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


def changed(inputs: TermInputs, change: Callable[[Tensor], Tensor]) -> TermInputs:
    """The same batch with every tapped value changed."""
    student, teacher = (
        replace(output, features={name: change(value) for name, value in output.features.items()})
        for output in (inputs.student, inputs.teacher)
        if output is not None
    )
    return replace(inputs, student=student, teacher=teacher)


def pooled(array: np.ndarray, size: int) -> np.ndarray:
    """Means of windows whose ends are rounded outwards."""
    height, width = array.shape[2:]
    out = np.empty((*array.shape[:2], size, size))
    for row in range(size):
        for column in range(size):
            top, bottom = row * height // size, -(-(row + 1) * height // size)
            left, right = column * width // size, -(-(column + 1) * width // size)
            out[:, :, row, column] = array[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return out


def context_loss(ours: np.ndarray, theirs: np.ndarray) -> float:
    parts = [(1.0, ((ours - theirs) ** 2).mean())]
    for size in (4, 2, 1):
        if size < ours.shape[2]:
            error = (pooled(ours, size) - pooled(theirs, size)) ** 2
            parts.append((parts[-1][0] / 2, error.mean()))
    return float(sum(c * value for c, value in parts) / sum(c for c, _ in parts))


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = [row * array.shape[2] // height for row in range(height)]
    columns = [column * array.shape[3] // width for column in range(width)]
    return array[:, :, rows][:, :, :, columns]


def convolved(array: np.ndarray, weight: np.ndarray) -> np.ndarray:
    margin = weight.shape[2] // 2
    padded = np.pad(array, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    out = np.zeros((len(array), len(weight), *array.shape[2:]))
    for row in range(array.shape[2]):
        for column in range(array.shape[3]):
            window = padded[:, :, row : row + weight.shape[2], column : column + weight.shape[3]]
            out[:, :, row, column] = np.einsum("bcij,ocij->bo", window, weight)
    return out


def normalised(array: np.ndarray, norm: nn.Module) -> np.ndarray:
    mean, variance = array.mean(axis=(0, 2, 3), keepdims=True), array.var(axis=(0, 2, 3), keepdims=True)
    weight, bias = (each.detach().numpy()[None, :, None, None] for each in (norm.weight, norm.bias))
    return weight * (array - mean) / np.sqrt(variance + norm.eps) + bias


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 7, 5), (2, 3, 4, 8), (2, 3, 2, 2), (3, 5, 1, 1)])
def test_context_loss_is_that_of_the_formula(shape: tuple[int, ...]) -> None:
    student, teacher = maps(*shape).requires_grad_(), maps(*shape, seed=1)
    value = hcl(student, teacher)
    assert value.item() == pytest.approx(context_loss(student.detach().numpy(), teacher.numpy()), rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: hcl(s, teacher), (student,))


def test_context_loss_is_zero_for_equal_maps_and_finite_for_extreme_ones() -> None:
    student = (1e4 * maps(2, 3, 8, 8)).float().requires_grad_()
    value = hcl(student, student)
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0
    value = hcl(student, -student)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_context_loss_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        hcl(maps(2, 3, 2, 2), maps(2, 3, 1, 1))


def test_the_whole_term_is_that_of_the_formula() -> None:
    """Three levels of unequal shapes: upsampled, downsampled, and one pixel."""
    ours = {"stage1": (4, 6, 6), "stage2": (5, 4, 4), "pooled": (7,)}
    theirs = {"stage1": (3, 6, 6), "stage2": (4, 2, 2), "pooled": (6,)}
    term = ReviewKD([1, 2], preactivation="neither", max_width=6)
    described = [
        {name: TapDescription(name, shape, None, True) for name, shape in each.items()}
        for each in (ours, theirs)
    ]
    term.setup(RunFacts(5, 10, None, *described))
    for parameter in term.parameters():
        nn.init.normal_(parameter, std=0.5)
    term.double().train()
    values = [
        {name: maps(3, *shape, seed=seed) for seed, (name, shape) in enumerate(each.items(), start)}
        for start, each in ((0, ours), (5, theirs))
    ]
    value = term(given(*(ModelOutput(torch.zeros(3, 5), each) for each in values)))

    def as_arrays(features: dict[str, Tensor]) -> list[np.ndarray]:
        found = [feature.numpy() for feature in features.values()]
        return [each if each.ndim == 4 else each[:, :, None, None] for each in found]

    expected, deeper = 0.0, None
    levels = list(zip(term.fusions, *map(as_arrays, values), strict=True))
    for fusion, student, teacher in reversed(levels):
        joined = normalised(
            convolved(student, fusion.transform[0].weight.detach().numpy()), fusion.transform[1]
        )
        if deeper is not None:
            deeper = nearest(deeper, *student.shape[2:])
            both = np.concatenate([joined, deeper], axis=1)
            scores = convolved(both, fusion.attention.weight.detach().numpy())
            scores += fusion.attention.bias.detach().numpy()[None, :, None, None]
            shares = 1 / (1 + np.exp(-scores))
            joined = shares[:, :1] * joined + shares[:, 1:] * deeper
        deeper = nearest(joined, *teacher.shape[2:])
        output = normalised(convolved(deeper, fusion.output[0].weight.detach().numpy()), fusion.output[1])
        expected += context_loss(output, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_published_levels_are_the_stages_and_the_pooled_vector() -> None:
    """The student's maps behind, the teacher's before their last activation; 256 channels in between."""
    term = ReviewKD()
    assert term.student_features == ("stage1", "stage2", "stage3", "pooled")
    assert term.teacher_features == ("stage1:pre", "stage2:pre", "stage3:pre", "pooled")
    ready(term, zoo("resnet8x4"), zoo("resnet8x4", seed=1))
    shapes = [
        (tuple(fusion.transform[0].weight.shape[:2]), tuple(fusion.output[0].weight.shape[:2]))
        for fusion in term.fusions
    ]
    assert shapes == [((256, c), (c, 256)) for c in (64, 128, 256, 256)]
    assert [fusion.attention is not None for fusion in term.fusions] == [True, True, True, False]
    both = ReviewKD([1, 2], [2, "layer3"], pooled=False, preactivation="both")
    assert both.student_features == ("stage1:pre", "stage2:pre")
    assert both.teacher_features == ("stage2:pre", "layer3")


def test_width_in_between_is_limited() -> None:
    student, teacher = ({"pooled": TapDescription("head", (width,), None, True)} for width in (600, 3))
    for limit, expected in ((512, 512), (64, 64), (4096, 600)):
        term = ReviewKD([], max_width=limit)
        term.setup(RunFacts(5, 10, None, student, teacher))
        assert term.fusions[0].transform[0].out_channels == expected


def test_unequal_numbers_of_levels_are_stretched_so_that_deepest_goes_with_deepest() -> None:
    more = ReviewKD([1, 2], [1, 2, 3, 4], preactivation="neither")
    assert more.teacher_features == ("stage1", "stage2", "stage3", "stage4", "pooled")
    assert more.student_features == ("stage1", "stage1", "stage2", "stage2", "pooled")
    fewer = ReviewKD([1, 2, 3], [2, 3])
    assert fewer.student_features == ("stage1", "stage2", "stage3", "pooled")
    assert fewer.teacher_features == ("stage2:pre", "stage2:pre", "stage3:pre", "pooled")
    student, teacher = zoo("resnet8"), zoo("vgg8", seed=1)
    term = ready(ReviewKD([1, 2], [1, 2, 3, 4]), student, teacher)
    assert term(inputs_of(term, student, teacher)).isfinite()


@pytest.mark.parametrize("arguments", [([], None, False), ([1], [], False), ([1], [], True)])
def test_levels_without_maps_are_refused(arguments: tuple[list[int], list[int] | None, bool]) -> None:
    with pytest.raises(UserError, match="at least one"):
        ReviewKD(*arguments)


PAIRS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], ReviewKD]] = {
    "narrow to wide": (lambda: zoo("resnet8"), lambda: zoo("resnet8x4", 1), ReviewKD()),
    "larger maps to smaller": (
        lambda: zoo("resnet8"),
        lambda: zoo("vgg8", 1),
        ReviewKD([1, 2], [2, 3], pooled=False),
    ),
    "without a stage 1": (
        lambda: zoo("mobilenetv2"),
        lambda: zoo("wrn_16_1", 1),
        ReviewKD([2, 3]),
    ),
    "transformer to network": (transformer, lambda: zoo("resnet8", 1), ReviewKD()),
    "network to transformer": (
        lambda: zoo("resnet8"),
        lambda: transformer(1),
        ReviewKD(preactivation="neither"),
    ),
}


@pytest.mark.parametrize(("make_student", "make_teacher", "term"), PAIRS.values(), ids=PAIRS)
def test_trains_the_student_and_its_own_parameters_but_never_the_teacher(
    make_student: Callable[..., nn.Module], make_teacher: Callable[..., nn.Module], term: ReviewKD
) -> None:
    student, teacher = make_student(), make_teacher()
    ready(term, student, teacher)
    value = term(inputs_of(term, student, teacher))
    value.backward()
    assert value.shape == ()
    assert value.dtype is torch.float32
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())
    reached = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in reached)
    assert any(g.abs().max() > 0 for g in reached)


def test_class_tokens_are_no_positions() -> None:
    student, teacher = transformer(), zoo("resnet8", seed=1)
    term = ready(ReviewKD(), student, teacher)
    inputs = inputs_of(term, student, teacher)

    def without_class_token(feature: Tensor) -> Tensor:
        return torch.cat([0 * feature[:, :1], feature[:, 1:]], dim=1) if feature.ndim == 3 else feature

    assert torch.equal(term(changed(inputs, without_class_token)), term(inputs))


def test_pairs_samples_and_does_not_depend_on_their_order() -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(ReviewKD(), student, teacher).double()
    inputs = changed(inputs_of(term, student, teacher), Tensor.double)
    value = term(inputs)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(term(changed(inputs, lambda x: x[order])), value, rtol=1e-10, atol=0)
    assert inputs.teacher is not None
    rolled = {name: feature.roll(1, dims=0) for name, feature in inputs.teacher.features.items()}
    unpaired = term(replace(inputs, teacher=replace(inputs.teacher, features=rolled)))
    assert unpaired.item() != pytest.approx(value.item(), rel=1e-6)


def test_half_precision_features_are_compared_in_float32() -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(ReviewKD(), student, teacher)
    inputs = inputs_of(term, student, teacher)
    value = term(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = term(changed(inputs, Tensor.bfloat16))
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(value.item(), rel=0.03)
    rounded.backward()
    assert all(p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_features_have_finite_values_and_gradients(scale: float) -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(ReviewKD(), student, teacher)
    value = term(changed(inputs_of(term, student, teacher), lambda x: scale * x))
    value.backward()
    assert value.isfinite()
    for parameters in (student.parameters(), term.parameters()):
        assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)


def test_its_state_travels_in_the_checkpoint() -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    first, second = ready(ReviewKD(), student, teacher), ReviewKD()
    inputs = inputs_of(first, student, teacher)
    first(inputs)  # moves running statistics
    second.setup(facts_of(second, student, teacher))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(inputs), first.eval()(inputs))


def test_a_teacher_that_names_no_maps_before_an_activation_is_refused_with_what_to_type() -> None:
    term = ReviewKD()
    (sentence,) = term.refusals(facts_of(term, zoo("resnet8"), transformer()))
    assert "teacher (VisionTransformer) names no maps before an activation" in sentence
    assert "preactivation=neither" in sentence
    term = ReviewKD(preactivation="both")
    (sentence,) = term.refusals(facts_of(term, transformer(), zoo("resnet8")))
    assert "student (VisionTransformer)" in sentence
    assert "preactivation=teacher" in sentence


def test_a_missing_stage_is_refused_with_the_stages_that_there_are() -> None:
    term = ReviewKD()
    (sentence,) = term.refusals(facts_of(term, zoo("mobilenetv2"), zoo("resnet8")))
    assert "the student (CifarMobileNetV2) has no stage1" in sentence
    assert "stages=[2,3]" in sentence


def test_a_level_without_a_deeper_one_has_no_attention() -> None:
    alone = AttentionFusion(4, 6, 3, fuses=False)
    out, handed_on = alone(maps(2, 4, 3, 3).float(), (6, 6), None)
    assert (tuple(out.shape), tuple(handed_on.shape)) == ((2, 3, 6, 6), (2, 6, 6, 6))
    assert not any("attention" in name for name in alone.state_dict())
