from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gda.distillers import Distiller, Progress, RunFacts, Term, TermInputs
from gda.distillers.dkd import DKD
from gda.distillers.functional import dkd, kd
from gda.distillers.ground_truth import Labels, TeacherTargets
from gda.distillers.kd import KD


class Probe(Term):
    """Records what it is given; its loss is its parameter times the mean student logit."""

    def __init__(self, taps: tuple[str, ...] = (), teacher: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.student_features = taps
        self.teacher_features = taps[:1]
        self.seen: list[TermInputs] = []
        self.facts: RunFacts | None = None
        self.needs_teacher = teacher  # type: ignore[misc]

    def setup(self, facts: RunFacts) -> None:
        self.facts = facts

    def forward(self, inputs: TermInputs) -> Tensor:
        self.seen.append(inputs)
        return self.scale * inputs.student.logits.mean()


Make = Callable[..., TermInputs]


def test_loss_is_the_weighted_sum_and_values_are_unweighted(logits, inputs) -> None:
    student, teacher = logits()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    distiller = Distiller(
        Labels(), 2.0, {"kd": (KD(4.0), 0.5), "dkd": (DKD(), {"value": 3.0, "warmup_epochs": 20})}
    )
    total, values = distiller(inputs(student, teacher, labels, Progress(4, 240)))
    cross_entropy = nn.functional.cross_entropy(student, labels)
    expected = {
        "ground_truth": cross_entropy,
        "kd": kd(student, teacher, 4.0),
        "dkd": dkd(student, teacher, labels, 1.0, 8.0, 4.0),
    }
    assert list(values) == list(expected)
    for name, value in expected.items():
        assert values[name].item() == value.item()
        assert not values[name].requires_grad
    weighted = 2 * expected["ground_truth"] + 0.5 * expected["kd"] + 3 * 5 / 20 * expected["dkd"]
    assert total.item() == pytest.approx(weighted.item(), rel=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(total, student)[0],
        torch.autograd.grad(weighted, student)[0],
        rtol=1e-12,
        atol=1e-15,
    )


def test_terms_of_weight_zero_are_left_out(logits, inputs) -> None:
    student, _ = logits()
    idle = Probe(("layer3",), teacher=True)
    distiller = Distiller(Labels(), 1.0, {"idle": (idle, 0.0), "kd": (KD(), {"value": 0})})
    assert not distiller.needs_teacher
    assert distiller.student_features == ()
    assert distiller.teacher_features == ()
    assert list(distiller.parameters()) == []
    distiller.setup(RunFacts(5, 10))
    _, values = distiller(inputs(student))  # without a teacher
    assert list(values) == ["ground_truth"]
    assert idle.seen == []
    assert idle.facts is None


def test_ground_truth_of_weight_zero_is_not_computed(logits, inputs) -> None:
    student, teacher = logits()
    _, values = Distiller(Labels(), 0.0, {"kd": (KD(), 1.0)})(inputs(student, teacher))
    assert list(values) == ["kd"]
    # Terms may still read the targets that the teacher makes.
    assert Distiller(TeacherTargets(), 0.0, {"probe": (Probe(), 1.0)}).needs_teacher


def test_needs_and_features_are_those_of_all_terms() -> None:
    distiller = Distiller(
        Labels(), 1.0, {"a": (Probe(("layer1", "layer2")), 1.0), "b": (Probe(("layer2", "layer3")), 0.1)}
    )
    assert distiller.student_features == ("layer1", "layer2", "layer3")
    assert distiller.teacher_features == ("layer1", "layer2")
    assert not distiller.needs_teacher
    assert Distiller(Labels(), 1.0, {"kd": (KD(), 1.0)}).needs_teacher
    assert Distiller(TeacherTargets()).needs_teacher


def test_parameters_of_terms_are_trained_and_saved(logits, inputs) -> None:
    probe = Probe()
    distiller = Distiller(Labels(), 1.0, {"probe": (probe, 0.5)})
    assert list(distiller.state_dict()) == ["terms.probe.scale"]
    student, _ = logits()
    distiller(inputs(student))[0].backward()
    assert probe.scale.grad.item() == pytest.approx(0.5 * student.mean().item(), rel=1e-6)


def test_setup_reaches_every_term() -> None:
    probe, facts = Probe(), RunFacts(5, 10)
    Distiller(Labels(), 1.0, {"probe": (probe, 1.0)}).setup(facts)
    assert probe.facts is facts


def test_label_free_training_shows_no_label_to_any_term(logits, inputs) -> None:
    student, teacher = logits(batch=6, classes=5)
    probe = Probe()
    ground_truth = TeacherTargets()
    distiller = Distiller(ground_truth, 1.0, {"dkd": (DKD(), 1.0), "probe": (probe, 1.0)})

    def run(labels: Tensor) -> Tensor:
        targets = ground_truth.targets(labels, teacher)
        return distiller(inputs(student, teacher, targets))[0]

    first, second = run(torch.zeros(6, dtype=torch.long)), run(torch.tensor([4, 3, 2, 1, 0, 4]))
    assert first.item() == second.item()
    torch.testing.assert_close(probe.seen[0].targets, teacher.softmax(1))
    # DKD's target class is then the teacher's most probable one.
    _, values = distiller(inputs(student, teacher, ground_truth.targets(None, teacher)))
    assert values["dkd"].item() == dkd(student, teacher, teacher.argmax(1), 1, 8, 4).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_see_logits_in_float32_or_better(dtype: torch.dtype, logits, inputs) -> None:
    student, teacher = logits(dtype=dtype)
    probe = Probe()
    total, _ = Distiller(Labels(), 1.0, {"probe": (probe, 1.0)})(inputs(student, teacher))
    assert probe.seen[0].student.logits.dtype is torch.float32
    assert probe.seen[0].teacher_logits.dtype is torch.float32
    assert total.dtype is torch.float32
    total.backward()
    assert student.grad.dtype is dtype


def test_a_loss_of_nothing_and_a_taken_name_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        Distiller(Labels(), 0.0, {"kd": (KD(), 0.0)})
    with pytest.raises(ValueError, match="ground_truth"):
        Distiller(Labels(), 1.0, {"ground_truth": (KD(), 1.0)})
    with pytest.raises(ValueError, match="at least 0"):
        Distiller(Labels(), -1.0)
