import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gda.distillers import ModelOutput, TermInputs
from gda.distillers.mlkd import MLKD, StrongGroundTruth, instance_part, mlkd, similarity_parts
from gda.distillers.term import View

FIRST, SHARED, WEAK = 4.0, (3.0, 5.0), (2.0, 6.0)


def softmax(x, temperature):
    e = np.exp(x / temperature)
    return e / e.sum(axis=1, keepdims=True)


def by_hand(weak, strong, first=FIRST, shared=SHARED, weak_only=WEAK):
    """The three levels of the formula, pair by pair of images and of classes."""

    def divergence(pair, temperature):
        p, q = softmax(pair[0], temperature), softmax(pair[1], temperature)
        return (
            temperature**2
            * sum(q[i, c] * math.log(q[i, c] / p[i, c]) for i in range(len(p)) for c in range(p.shape[1]))
            / len(p)
        )

    def similarity(p, q):
        return sum(((q[i] @ q[j]) - (p[i] @ p[j])) ** 2 for i in range(len(p)) for j in range(len(p))) / len(
            p
        )

    sure = softmax(weak[1], 1.0)
    confident, classes = sure.max(axis=1), sure.sum(axis=0)
    h = np.mean(confident <= np.percentile(confident, 50))
    g = np.mean(classes <= np.percentile(classes, 50))
    both = [first, *shared]
    instance = sum(h * divergence(weak, t) + divergence(strong, t) for t in both)
    instance += sum((h + 1) * divergence(weak, t) for t in weak_only)
    levels = [0.0, 0.0]
    for t in [*both, *weak_only]:
        p, q = softmax(weak[0], t), softmax(weak[1], t)
        levels[0] += h * similarity(p, q)
        levels[1] += g * similarity(p.T, q.T)
    return instance, *levels


def slopes(function, student, step=1e-5):
    """Central differences."""
    gradient = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.fixture
def views(logits):
    """A weak and a strong view: student with gradient, teacher."""

    def make(batch: int = 6, classes: int = 5, dtype: torch.dtype = torch.float64):
        return logits(batch, classes, 0, dtype), logits(batch, classes, 7, dtype)

    return make


@pytest.mark.parametrize(("batch", "classes"), [(6, 5), (5, 4)])  # medians at a value, and between two
def test_every_level_by_hand(batch: int, classes: int, views) -> None:
    weak, strong = views(batch, classes)
    arrays = [[x.detach().numpy() for x in pair] for pair in (weak, strong)]
    expected = by_hand(*arrays)
    instance = instance_part(weak, strong, [FIRST, *SHARED], WEAK)
    batch_level, class_level = similarity_parts(*weak, [FIRST, *SHARED, *WEAK])
    assert instance.item() == pytest.approx(expected[0], rel=1e-12)
    assert batch_level.item() == pytest.approx(expected[1], rel=1e-12)
    assert class_level.item() == pytest.approx(expected[2], rel=1e-12)
    assert mlkd(weak, strong).item() == pytest.approx(sum(expected), rel=1e-12)


def test_gradient_by_hand(views) -> None:
    weak, strong = views(batch=4, classes=3)
    weak_gradient, strong_gradient = torch.autograd.grad(mlkd(weak, strong), (weak[0], strong[0]))
    (ws, wt), (ss, st) = ([x.detach().numpy() for x in pair] for pair in (weak, strong))
    expected = slopes(lambda x: sum(by_hand((x, wt), (ss, st))), ws)
    np.testing.assert_allclose(weak_gradient.numpy(), expected, rtol=1e-6, atol=1e-8)
    expected = slopes(lambda x: sum(by_hand((ws, wt), (x, st))), ss)
    np.testing.assert_allclose(strong_gradient.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_gradient_agrees_with_finite_differences(views) -> None:
    (weak, weak_teacher), (strong, strong_teacher) = views(batch=3, classes=4)
    temperature = torch.tensor([[2.0], [3.0], [4.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w, s, t: mlkd((w, weak_teacher), (s, strong_teacher), t), (weak, strong, temperature)
    )


def test_is_zero_with_zero_gradient_where_both_agree_on_both_views(views) -> None:
    (weak, _), (strong, _) = views(dtype=torch.float32)
    value = mlkd((weak, weak.detach().clone()), (strong, strong.detach().clone()))
    value.backward()
    assert abs(value.item()) < 1e-5
    assert weak.grad.abs().max() < 1e-5
    assert strong.grad.abs().max() < 1e-5


def test_no_gradient_reaches_the_teacher(views) -> None:
    weak, strong = views()
    weak[1].requires_grad_()
    strong[1].requires_grad_()
    mlkd(weak, strong).backward()
    assert weak[0].grad.abs().max() > 0
    assert strong[0].grad.abs().max() > 0
    assert weak[1].grad is None
    assert strong[1].grad is None


def test_does_not_depend_on_the_order_of_samples_or_classes_or_on_the_level_of_a_row(views) -> None:
    weak, strong = ([x.detach() for x in pair] for pair in views())
    value = mlkd(tuple(weak), tuple(strong)).item()
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    level = torch.linspace(-50, 50, 6, dtype=torch.float64).unsqueeze(1)
    for change in (lambda x: x[rows], lambda x: x[:, columns], lambda x: x + level):
        changed = mlkd(tuple(map(change, weak)), tuple(map(change, strong)))
        assert changed.item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_is_finite_for_constant_rows_and_large_spreads(dtype: torch.dtype, views) -> None:
    weak, strong = ([x.detach() for x in pair] for pair in views(batch=6))
    for student, teacher in (weak, strong):
        student[0], teacher[1] = 0.3, -0.7
        student[2] *= 1e4
        teacher[3] *= 1e4
        student[4], teacher[4] = 0.1, 0.1
        student[5] = teacher[5]
    students = [pair[0].to(dtype).requires_grad_() for pair in (weak, strong)]
    value = mlkd((students[0], weak[1].to(dtype)), (students[1], strong[1].to(dtype)))
    value.backward()
    assert value.isfinite()
    assert all(student.grad.isfinite().all() for student in students)


def test_bfloat16_autocast_computes_in_float32(views) -> None:
    weak, strong = views(dtype=torch.float32)
    value = mlkd(weak, strong)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mlkd(weak, strong)
    assert cast.dtype is torch.float32
    assert cast.item() == value.item()


@pytest.fixture
def seen(views, inputs):
    """What a term sees of both views."""

    def make(targets=None) -> TermInputs:
        weak, strong = views()
        batch = inputs(*weak, targets)
        view = View(batch.images, ModelOutput(strong[0]), ModelOutput(strong[1]))
        return replace(batch, views={"strong": view})

    return make


def test_term_reads_both_views_and_its_own_settings(seen, views) -> None:
    assert MLKD.needs_views == ("strong",)
    weak, strong = views()
    assert MLKD()(seen()).item() == mlkd(weak, strong).item()
    value = MLKD(3.5, [2.5], [1.5, 7.0])(seen()).item()
    assert value == mlkd(weak, strong, 3.5, [2.5], [1.5, 7.0]).item()
    assert MLKD(3.5, [], [])(seen()).item() == mlkd(weak, strong, 3.5, [], []).item()


def test_a_plug_ins_temperature_replaces_the_first_one(seen, views) -> None:
    weak, strong = views()
    value = MLKD()(replace(seen(), temperature=2.0)).item()
    assert value == mlkd(weak, strong, 2.0).item()
    assert value != MLKD()(seen()).item()
    learnt = torch.full((6, 1), 2.0, dtype=torch.float64, requires_grad=True)
    each = MLKD()(replace(seen(), temperature=learnt))
    assert each.item() == pytest.approx(value, rel=1e-12)
    (gradient,) = torch.autograd.grad(each, learnt)
    assert (gradient != 0).all()


@pytest.mark.parametrize("soft", [False, True])
def test_strong_view_has_a_cross_entropy_with_the_same_targets(soft: bool, seen, views) -> None:
    ids = torch.tensor([0, 1, 2, 3, 4, 0])
    _, (strong, _) = views()
    probabilities = strong.detach().softmax(1).numpy()
    if soft:
        targets = torch.full((6, 5), 0.05)  # float32 beside float64 logits
        targets[torch.arange(6), ids] = 0.8
        expected = -(targets.numpy() * np.log(probabilities)).sum(axis=1).mean()
    else:
        targets = ids
        expected = -np.log(probabilities[np.arange(6), ids.numpy()]).mean()
    value = StrongGroundTruth()(seen(targets))
    assert value.item() == pytest.approx(expected, rel=1e-7)


def test_strong_cross_entropy_needs_no_teacher(seen) -> None:
    batch = seen()
    view = replace(batch.views["strong"], teacher=None)
    assert not StrongGroundTruth.needs_teacher
    assert StrongGroundTruth()(replace(batch, teacher=None, views={"strong": view})).isfinite()


@pytest.mark.parametrize("wrong", [{"shared_temperatures": [3.0, 0.0]}, {"weak_temperatures": [-2.0]}])
def test_temperatures_of_the_lists_must_be_above_0(wrong: dict) -> None:
    with pytest.raises(ValueError, match="above 0"):
        MLKD(**wrong)
