from dataclasses import replace

import pytest
import torch

from gda.distillers import ModelOutput
from gda.distillers.feature_vectors import as_vectors, directions, pooled_vectors, require_same_batch


def test_maps_become_vectors_in_float32_or_better() -> None:
    feature = torch.arange(24).reshape(2, 3, 2, 2)
    assert torch.equal(as_vectors(feature.bfloat16()), feature.reshape(2, 12).float())
    assert as_vectors(feature.double()).dtype is torch.float64


def test_pooled_vectors_of_the_teacher_have_no_gradient(logits, inputs) -> None:
    student, teacher = torch.ones(2, 3, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    batch = replace(
        inputs(*(x[:2] for x in logits())),
        student=ModelOutput(student, {"pooled": student}),
        teacher=ModelOutput(teacher, {"pooled": teacher}),
    )
    ours, theirs = pooled_vectors(batch)
    assert ours.requires_grad
    assert not theirs.requires_grad
    with pytest.raises(ValueError, match="needs a teacher"):
        pooled_vectors(replace(batch, teacher=None))


def test_directions_have_length_one_and_short_rows_none() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]], requires_grad=True)
    unit = directions(vectors)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))
    unit[:, 0].sum().backward()
    # Of x / |x|, across the direction: (1 - 0.36) / 5 and -0.48 / 5.
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.128, -0.096], [0.0, 0.0], [0.0, 0.0]]))


def test_one_batch_of_any_widths_is_asked_for() -> None:
    require_same_batch(torch.zeros(2, 3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="one batch"):
        require_same_batch(torch.zeros(1, 3), torch.zeros(2, 3))
