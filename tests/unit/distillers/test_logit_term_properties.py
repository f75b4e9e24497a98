"""Properties that every logit loss has."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gda.distillers.functional import adapt_conf, aug_conf, dkd, fisher_rao, kd, sinkhorn

Loss = Callable[[Tensor, Tensor], Tensor]


def ids(student: Tensor) -> Tensor:
    """A target class per row that moves with the rows and the classes."""
    return student.detach().argmin(dim=1)


LOSSES: dict[str, Loss] = {
    "kd": lambda s, t: kd(s, t, 4.0),
    "dkd": lambda s, t: dkd(s, t, ids(t), 1.0, 8.0, 4.0),
    "aug_conf": lambda s, t: aug_conf(s, t, 0.3, 2.0),
    "adapt_conf": lambda s, t: adapt_conf(s, t, 0.5, 2.0, 0.7),
    "fisher_rao": fisher_rao,
    "sinkhorn": sinkhorn,
    "sinkhorn_log": lambda s, t: sinkhorn(s, t, epsilon=0.004),
    "sinkhorn_debiased": lambda s, t: sinkhorn(s, t, debias=True, reduction="mean"),
}
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@all_losses
def test_is_a_scalar_with_gradient_for_the_student_only(loss, logits) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.shape == ()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@all_losses
def test_does_not_depend_on_the_order_of_samples_or_classes(loss, logits) -> None:
    student, teacher = (x.detach() for x in logits(batch=6, classes=5))
    value = loss(student, teacher)
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(loss(student[rows], teacher[rows]), value, rtol=1e-11, atol=0)
    torch.testing.assert_close(loss(student[:, columns], teacher[:, columns]), value, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_samples_unless_it_transports_the_batch(name: str, logits) -> None:
    student, teacher = (x.detach() for x in logits(batch=6))
    paired, shuffled = LOSSES[name](student, teacher), LOSSES[name](student.roll(1, dims=0), teacher)
    assert torch.isclose(paired, shuffled, rtol=1e-9) == ("sinkhorn" in name)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "fisher_rao"])
def test_does_not_see_a_constant_added_to_a_row(name: str, logits) -> None:
    student, teacher = (x.detach() for x in logits())
    shift = torch.linspace(-3, 50, 6, dtype=torch.float64).unsqueeze(1)
    value = LOSSES[name](student, teacher)
    torch.testing.assert_close(LOSSES[name](student + shift, teacher), value, rtol=1e-10, atol=0)
    torch.testing.assert_close(LOSSES[name](student, teacher - shift), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["kd", "dkd", "fisher_rao", "sinkhorn_debiased"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_zero_with_zero_gradient_at_equality(name: str, dtype: torch.dtype, logits) -> None:
    student, _ = logits(batch=4, dtype=dtype)
    loss = LOSSES[name](student, student.detach().clone())
    loss.backward()
    roundoff = torch.finfo(dtype).eps
    # 128 = T^2 * beta is the largest factor in front of a rounded number.
    assert abs(loss.item()) <= 128 * roundoff
    if name == "sinkhorn_debiased":
        # Twenty rounds end near the fixed point, where the plan is symmetric; not on it. The biased
        # gradient is 7e-3.
        assert student.grad.abs().max() <= 1e-4
    elif name == "fisher_rao":
        assert loss.item() == 0
        assert student.grad.abs().max() == 0
    else:
        assert student.grad.abs().max() <= 128 * roundoff


@all_losses
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)
def test_is_finite_for_difficult_rows(loss, dtype: torch.dtype, logits) -> None:
    student, teacher = (x.detach() for x in logits(batch=8, classes=5))
    student[0] = teacher[0]  # equal rows
    student[1] = 0.3  # constant rows: student, teacher, both
    teacher[2] = -0.7
    student[3], teacher[3] = 0.1, 0.1
    student[4] *= 1e4  # spreads of 1e4
    teacher[5] *= 1e4
    student[6] = torch.tensor([1e4, -1e4, 0.0, 0.0, 0.0])
    teacher[6] = torch.tensor([-1e4, 1e4, 0.0, 0.0, 0.0])
    student = student.to(dtype).requires_grad_()
    value = loss(student, teacher.to(dtype))
    value.backward()
    assert value.isfinite()
    assert value.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert student.grad.dtype is dtype
    # The Sinkhorn gradient of a constant row is about 1e5, which float16 can't hold: it becomes infinite, as
    # a gradient scaler expects of a step that it must skip.
    rows = [0, 2, 4, 5, 6, 7] if dtype is torch.float16 and loss is sinkhorn else slice(None)
    assert student.grad[rows].isfinite().all()


@all_losses
def test_bfloat16_autocast_computes_in_float32(loss, logits) -> None:
    student, teacher = logits(dtype=torch.float32)
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_value = loss(student, teacher)
        (cast_gradient,) = torch.autograd.grad(cast_value, student)
    assert cast_value.dtype is torch.float32
    torch.testing.assert_close(cast_value, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(cast_gradient, gradient, rtol=1e-5, atol=1e-7)


@all_losses
@pytest.mark.parametrize("shapes", [((4, 5), (4, 6)), ((4, 5), (1, 5)), ((5,), (5,)), ((2, 4, 5), (2, 4, 5))])
def test_refuses_shapes_that_would_broadcast(loss, shapes) -> None:
    student, teacher = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
    with pytest.raises(ValueError, match="must both be"):
        kd(student, teacher, 1.0)
    with pytest.raises((ValueError, IndexError)):
        loss(student, teacher)


GRADCHECKED = {
    "kd": lambda s, t: kd(s, t, 3.0),
    "dkd": lambda s, t: dkd(s, t, torch.tensor([0, 4, 2, 2]), 1.0, 8.0, 3.0),
    "dkd_two_classes": lambda s, t: dkd(s[:, :2], t[:, :2], torch.tensor([0, 1, 1, 0]), 1.0, 8.0, 3.0),
    "aug_conf": lambda s, t: aug_conf(s, t, 0.4, 3.0),
    "fisher_rao": fisher_rao,
    "sinkhorn": sinkhorn,
    "sinkhorn_one_round": lambda s, t: sinkhorn(s, t, iterations=1),
    "sinkhorn_mean": lambda s, t: sinkhorn(s, t, reduction="mean"),
    "sinkhorn_debiased": lambda s, t: sinkhorn(s, t, iterations=3, debias=True),
    "sinkhorn_log": lambda s, t: sinkhorn(s, t, epsilon=0.005, iterations=3),
    "sinkhorn_log_debiased": lambda s, t: sinkhorn(s, t, epsilon=0.005, iterations=3, debias=True),
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradient_agrees_with_finite_differences(name: str, logits) -> None:
    student, teacher = logits(batch=4, classes=5, seed=3)
    assert torch.autograd.gradcheck(lambda s: GRADCHECKED[name](s, teacher), (student,), eps=1e-7, atol=1e-5)
