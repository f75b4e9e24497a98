"""What all terms share that compare maps, on real models: fitnet, at, nst, kdsvd, ofd, vid."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.at import AT
from gda.distillers.fitnet import FitNet
from gda.distillers.kdsvd import KDSVD
from gda.distillers.map_term import MapTerm
from gda.distillers.nst import NST
from gda.distillers.ofd import OFD
from gda.distillers.vid import VID
from gda.errors import UserError
from gda.models import create_model
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features

TERMS: dict[str, Callable[..., MapTerm]] = {
    "fitnet": FitNet,
    "fitnet_linear": lambda *stages: FitNet(*stages, projector="linear"),
    "at": AT,
    "nst": NST,
    "kdsvd": KDSVD,
    "ofd": OFD,
    "vid": VID,
}
all_terms = pytest.mark.parametrize("make", TERMS.values(), ids=TERMS)
token_terms = pytest.mark.parametrize(
    "make",
    [make for name, make in TERMS.items() if name != "ofd"],
    ids=[name for name in TERMS if name != "ofd"],
)
SIZE = 16
BATCH = 6


def zoo(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, num_classes=5)


def transformer(seed: int = 0) -> nn.Module:
    """Four blocks of 16 tokens and a class token, 8 wide."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    return VisionTransformer(img_size=SIZE, patch_size=4, num_classes=5, embed_dim=8, depth=4, num_heads=2)


def facts_of(term: MapTerm, student: nn.Module, teacher: nn.Module) -> RunFacts:
    """As in label-free training: there are no labels."""
    return RunFacts(
        classes=5,
        train_size=10,
        student_features=describe(student, term.student_features, SIZE),
        teacher_features=describe(teacher, term.teacher_features, SIZE),
        student=student,
        teacher=teacher,
    )


def ready(term: MapTerm, student: nn.Module, teacher: nn.Module) -> MapTerm:
    facts = facts_of(term, student, teacher)
    assert term.refusals(facts) == []
    torch.manual_seed(7)
    term.setup(facts)
    return term


def inputs_of(term: MapTerm, student: nn.Module, teacher: nn.Module) -> TermInputs:
    """One batch through both models; the teacher keeps a graph, which no term may follow."""
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    outputs = []
    for model, taps in ((student.train(), term.student_features), (teacher.eval(), term.teacher_features)):
        with features(model, taps) as tapped:
            outputs.append(ModelOutput(model(images), tapped.collect()))
    return TermInputs(
        images=images,
        targets=torch.arange(BATCH) % 5,
        indices=torch.arange(BATCH),
        student=outputs[0],
        teacher=outputs[1],
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


def changed(inputs: TermInputs, change: Callable[[Tensor], Tensor]) -> TermInputs:
    """The same batch with every tapped value changed."""
    sides = {
        side: replace(output, features={name: change(value) for name, value in output.features.items()})
        for side, output in (("student", inputs.student), ("teacher", inputs.teacher))
        if output is not None
    }
    return replace(inputs, **sides)


def gradients(modules: Mapping[str, nn.Module]) -> dict[str, Tensor | None]:
    return {f"{role} {name}": p.grad for role, m in modules.items() for name, p in m.named_parameters()}


PAIRS = {
    "narrow to wide": ("resnet8", (1, 2, 3), "resnet8x4", (1, 2, 3)),
    "larger maps to smaller": ("resnet8", (2, 3), "vgg8", (3, 4)),
    "smaller maps to larger": ("vgg8", (2, 3), "wrn_16_2", (1, 2)),
    "without a stage 1": ("mobilenetv2", (2, 3), "wrn_16_1", (2, 3)),
}


@all_terms
@pytest.mark.parametrize(
    ("student_name", "stages", "teacher_name", "teacher_stages"), PAIRS.values(), ids=PAIRS
)
def test_trains_the_student_and_its_own_parameters_but_never_the_teacher(
    make: Callable[..., MapTerm],
    student_name: str,
    stages: tuple[int, ...],
    teacher_name: str,
    teacher_stages: tuple[int, ...],
) -> None:
    student, teacher = zoo(student_name), zoo(teacher_name, seed=1)
    term = ready(make(stages, teacher_stages), student, teacher)
    value = term(inputs_of(term, student, teacher))
    value.backward()
    assert value.shape == ()
    assert value.dtype is torch.float32
    found = gradients({"student": student, "term": term, "teacher": teacher})
    assert all(g is None for name, g in found.items() if name.startswith("teacher"))
    assert all(g is not None and g.isfinite().all() for n, g in found.items() if n.startswith("term"))
    reached = [g for n, g in found.items() if n.startswith("student") and g is not None]
    assert all(g.isfinite().all() for g in reached)
    assert any(g.abs().max() > 0 for g in reached)


@token_terms
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
def test_token_maps_are_folded_into_squares(make: Callable[..., MapTerm], role: str) -> None:
    """Class tokens are no positions: changing them changes nothing."""
    student = zoo("resnet8") if role == "teacher" else transformer()
    teacher = zoo("resnet8", seed=1) if role == "student" else transformer(seed=1)
    term = ready(make((1, 2, 3)), student, teacher)
    inputs = inputs_of(term, student, teacher)
    value = term(inputs)
    value.backward()
    reached = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in reached)
    assert any(g.abs().max() > 0 for g in reached)

    def without_class_token(feature: Tensor) -> Tensor:
        return torch.cat([0 * feature[:, :1], feature[:, 1:]], dim=1) if feature.ndim == 3 else feature

    torch.testing.assert_close(term(changed(inputs, without_class_token)), value, rtol=1e-6, atol=0)


@all_terms
def test_pairs_samples_and_does_not_depend_on_their_order(make: Callable[..., MapTerm]) -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(make(), student, teacher).double()
    inputs = changed(inputs_of(term, student, teacher), Tensor.double)
    value = term(inputs)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(term(changed(inputs, lambda x: x[order])), value, rtol=1e-10, atol=0)
    assert inputs.teacher is not None
    rolled = {name: value.roll(1, dims=0) for name, value in inputs.teacher.features.items()}
    unpaired = term(replace(inputs, teacher=replace(inputs.teacher, features=rolled)))
    assert unpaired.item() != pytest.approx(value.item(), rel=1e-6)


@all_terms
def test_reads_neither_targets_nor_logits(make: Callable[..., MapTerm]) -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(make(), student, teacher)
    inputs = inputs_of(term, student, teacher)
    nan = torch.full((BATCH, 5), float("nan"))
    assert inputs.teacher is not None
    blind = replace(
        inputs,
        targets=nan,
        student=replace(inputs.student, logits=nan),
        teacher=replace(inputs.teacher, logits=nan),
    )
    assert torch.equal(term(blind), term(inputs))


@all_terms
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_features_are_compared_in_float32(
    make: Callable[..., MapTerm], autocast: bool
) -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(make(), student, teacher)
    inputs = inputs_of(term, student, teacher)
    value = term(inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rounded = term(changed(inputs, Tensor.bfloat16))
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(value.item(), rel=0.03)
    rounded.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@all_terms
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_features_have_finite_values_and_gradients(
    make: Callable[..., MapTerm], scale: float
) -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    term = ready(make(), student, teacher)
    value = term(changed(inputs_of(term, student, teacher), lambda x: scale * x))
    value.backward()
    assert value.isfinite()
    for parameters in (student.parameters(), term.parameters()):
        assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)


@pytest.mark.parametrize("make", [AT, NST, KDSVD])
def test_a_student_like_its_teacher_has_nothing_to_learn(make: Callable[..., MapTerm]) -> None:
    model = zoo("resnet8")
    term = ready(make(), model, model)
    inputs = inputs_of(term, model, model)
    same = replace(inputs, teacher=ModelOutput(inputs.student.logits, dict(inputs.student.features)))
    value = term(same)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@all_terms
def test_its_state_travels_in_the_checkpoint(make: Callable[..., MapTerm]) -> None:
    student, teacher = zoo("resnet8"), zoo("resnet8x4", seed=1)
    inputs = inputs_of(make(), student, teacher)
    first, second = ready(make(), student, teacher), make()
    for tensor in first.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 0.2)
    second.setup(facts_of(second, student, zoo("resnet8x4", seed=2)))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(inputs), second(inputs))


@all_terms
def test_a_missing_stage_is_refused_with_the_stages_that_there_are(make: Callable[..., MapTerm]) -> None:
    term = make()
    facts = RunFacts(5, 10, student=zoo("mobilenetv2"), teacher=zoo("resnet8"))
    sentences = make((1, 2)).refusals(facts)
    assert len(sentences) == 1
    assert sentences[0].startswith("the student (CifarMobileNetV2) has no stage1")
    assert "stages=[2,3]" in sentences[0]
    assert make((2, 3)).refusals(facts) == []
    # Module paths are looked up with all other taps.
    assert not any(tap == "layer1" for tap in term.numbered)
    assert make(("blocks.1", "blocks.2"), ("layer2", "layer3")).refusals(facts) == []


def described(*shapes: tuple[int, ...], prefix: int = 0) -> dict[str, TapDescription]:
    return {f"stage{n}": TapDescription(f"m{n}", shape, 1, True, prefix) for n, shape in enumerate(shapes, 1)}


def test_tokens_that_fill_no_square_are_refused() -> None:
    facts = RunFacts(5, 10, None, described((11, 8), prefix=1), described((4, 4, 4)))
    (sentence,) = VID(stages=[1]).refusals(facts)
    assert "m1 of the student and m1 of the teacher can't be compared: 10 image tokens" in sentence


@pytest.mark.parametrize("make", [AT, NST])
def test_single_pixels_are_refused_where_positions_are_compared(make: Callable[..., MapTerm]) -> None:
    facts = RunFacts(5, 10, None, described((4, 4, 4), (8, 1, 1)), described((4, 4, 4), (8, 2, 2)))
    (sentence,) = make(stages=[1, 2]).refusals(facts)
    assert "m2 of the student and m2 of the teacher can't be compared by position" in sentence
    assert FitNet(stages=[1, 2]).refusals(facts) == []


def test_more_singular_vectors_than_a_map_is_wide_are_refused() -> None:
    facts = RunFacts(5, 10, None, described((4, 4, 4), (8, 2, 2)), described((4, 4, 4), (8, 4, 4)))
    (sentence,) = KDSVD(stages=[1, 2], k=3).refusals(facts)
    assert sentence == "a map 2 wide has no 3 singular vectors: k=2"
    assert KDSVD(stages=[1, 2], k=2).refusals(facts) == []


@pytest.mark.parametrize(("stages", "teacher_stages"), [([], None), ([1, 2], [1]), ([1], [])])
def test_maps_without_a_partner_are_refused(stages: list[int], teacher_stages: list[int] | None) -> None:
    with pytest.raises(UserError, match="one map of the teacher belongs to each map of the student"):
        AT(stages, teacher_stages)
