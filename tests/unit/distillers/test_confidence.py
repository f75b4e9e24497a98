"""AugConf and AdaptConf: their schedules and weights."""

import pytest
import torch
from torch.nn import functional as F

from gda.distillers import Progress
from gda.distillers.adapt_conf import AdaptConf, adapt_conf
from gda.distillers.aug_conf import AugConf, aug_conf
from gda.distillers.kd import KD, kd


def test_kd_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * 1.0986122886681098, 0.0]])
    # At T = 2 the teacher says (3/4, 1/4): 4 * (3/4 log 3/2 + 1/4 log 1/2).
    assert kd(student, teacher, 2.0).item() == pytest.approx(0.523248, rel=1e-5)


def test_kd_term_uses_its_temperature(logits, inputs) -> None:
    student, teacher = logits()
    assert KD(3.0)(inputs(student, teacher)).item() == kd(student, teacher, 3.0).item()


@pytest.mark.parametrize(
    ("epoch", "alpha"), [(0, 0.0), (1, 0.5 / 72), (36, 0.25), (71, 0.5 * 71 / 72), (72, 0.5), (239, 0.5)]
)
def test_aug_conf_share_rises_from_zero(epoch: int, alpha: float) -> None:
    assert AugConf().alpha(Progress(epoch, 240)) == pytest.approx(alpha, rel=1e-12)


def test_aug_conf_without_ramp_starts_at_once() -> None:
    assert AugConf(alpha_max=0.4, ramp=0.0).alpha(Progress(0, 240)) == 0.4


def test_aug_conf_mixes_both_losses(logits, inputs) -> None:
    student, teacher = logits()
    own = F.cross_entropy(student, student.argmax(1))
    expected = 0.7 * kd(student, teacher, 2.0) + 0.3 * own
    assert aug_conf(student, teacher, 0.3, 2.0).item() == pytest.approx(expected.item(), rel=1e-12)
    term = AugConf(alpha_max=0.6, ramp=0.5, temperature=2.0)
    value = term(inputs(student, teacher, progress=Progress(25, 100)))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1 / 25), (9, 10 / 25), (24, 1.0), (25, 1.0), (99, 1.0)])
def test_adapt_conf_ramp_counts_from_one(epoch: int, factor: float) -> None:
    assert AdaptConf(ramp=0.25).ramp_factor(Progress(epoch, 100)) == pytest.approx(factor, rel=1e-12)
    assert AdaptConf().ramp_factor(Progress(epoch, 100)) == 1.0


def test_adapt_conf_weight_is_half_where_both_agree_and_vanishes_where_they_do_not() -> None:
    student = torch.tensor([[3.0, 0.0, 0.0]])
    own = F.cross_entropy(student, torch.tensor([0])).item()
    agreeing, opposing = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    half = 0.5 * kd(student, agreeing, 1.0).item() + 0.5 * own
    assert adapt_conf(student, agreeing, 0.5, 1.0).item() == pytest.approx(half, rel=1e-6)
    # A tau at which exp(CE / tau) would overflow: the weight is 0, not NaN.
    assert adapt_conf(student, opposing, 1e-4, 1.0).item() == kd(student, opposing, 1.0).item()


def test_adapt_conf_weight_carries_no_gradient(logits) -> None:
    student, teacher = logits(batch=1)
    ce_own = F.cross_entropy(student, student.argmax(1))
    a = torch.sigmoid((ce_own - F.cross_entropy(student, teacher.argmax(1))) / 0.5).item()
    expected = torch.autograd.grad((1 - a) * kd(student, teacher, 2.0) + a * ce_own, student)[0]
    actual = torch.autograd.grad(adapt_conf(student, teacher, 0.5, 2.0), student)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
