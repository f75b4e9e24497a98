import math

import pytest
import torch

from gda.distillers.ground_truth import Labels, TeacherTargets


def test_labels_pass_through_unchanged() -> None:
    labels = torch.tensor([2, 0])
    assert Labels().targets(labels, torch.zeros(2, 3)) is labels
    assert Labels.needs_teacher is False


def test_cross_entropy_of_hard_soft_and_smoothed_labels(inputs) -> None:
    student = torch.tensor([[math.log(2.0), 0.0, 0.0]])  # probabilities (1/2, 1/4, 1/4)
    hard = Labels()(inputs(student, targets=torch.tensor([1])))
    assert hard.item() == pytest.approx(math.log(4), rel=1e-6)
    soft = Labels()(inputs(student, targets=torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)))
    assert soft.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4), rel=1e-6)
    smoothed = Labels(label_smoothing=0.3)(inputs(student, targets=torch.tensor([0])))
    assert smoothed.item() == pytest.approx(0.8 * math.log(2) + 0.2 * math.log(4), rel=1e-6)


@pytest.mark.parametrize(("dtype", "made"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_teacher_targets_are_its_probabilities(dtype, made, inputs) -> None:
    teacher = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True)
    targets = TeacherTargets().targets(None, teacher)
    assert targets.dtype is made
    assert not targets.requires_grad
    torch.testing.assert_close(targets, torch.tensor([[1.0, math.e]], dtype=made) / (1 + math.e))
    student = torch.zeros(1, 2)
    value = TeacherTargets()(inputs(student, targets=targets))
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)


def test_teacher_targets_without_teacher_say_so() -> None:
    assert TeacherTargets.needs_teacher is True
    with pytest.raises(ValueError, match="needs a teacher"):
        TeacherTargets().targets(torch.tensor([0]), None)


def test_half_precision_logits_give_a_float32_loss(inputs) -> None:
    student = torch.tensor([[3.0, -2.0, 0.5]])
    expected = Labels()(inputs(student, targets=torch.tensor([2])))
    value = Labels()(inputs(student.half(), targets=torch.tensor([2])))
    assert value.dtype is torch.float32
    assert value.item() == expected.item()
