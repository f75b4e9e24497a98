"""The guard names the term, the epoch, the step and the batch, and lets no bad step pass."""

import math

import pytest
import torch

from gda.tasks.task import StepOutput
from gda.training.finite import FiniteGuard, NonFiniteLoss


def step(loss: float = 1.0, kd: float = 0.5, logits: tuple[float, ...] = (1.0, -3.0)) -> StepOutput:
    return StepOutput(
        loss=torch.tensor(loss, requires_grad=True),
        terms={"ground_truth": torch.tensor(0.25), "kd": torch.tensor(kd)},
        images=2,
        tensors={"student logits": torch.tensor(logits), "image means": torch.tensor([0.5])},
    )


def test_the_message_names_term_place_and_statistics() -> None:
    guard = FiniteGuard(every=1)
    guard.record(0, 0, step())
    with pytest.raises(NonFiniteLoss) as error:
        guard.record(4, 6, step(math.nan, math.inf, (2.0, math.nan, -4.0)))
    message = str(error.value)
    assert "term 'kd' in epoch 5, step 7" in message
    assert "ground_truth 0.25, kd inf" in message
    assert "student logits min -4, max 2, mean -1, 1 of 3 not finite" in message
    assert "image means min 0.5" in message
    assert "\n" not in message
    assert "recipe.lr" in message


def test_a_step_without_any_finite_logit_can_be_described() -> None:
    with pytest.raises(NonFiniteLoss, match="no finite value, 2 of 2 not finite"):
        FiniteGuard(1).record(0, 0, step(math.inf, math.nan, (math.nan, math.inf)))


def test_a_sum_that_overflows_although_its_terms_do_not() -> None:
    with pytest.raises(NonFiniteLoss, match="weighted sum of finite terms"):
        FiniteGuard(1).record(0, 0, step(math.inf))


def test_steps_in_between_are_remembered() -> None:
    guard = FiniteGuard(every=4)
    guard.record(1, 0, step())
    guard.record(1, 1, step(math.nan, math.nan))
    guard.record(1, 2, step(math.inf))
    with pytest.raises(NonFiniteLoss, match="term 'kd' in epoch 2, step 2"):
        guard.record(1, 3, step())


def test_the_look_before_a_checkpoint_takes_what_is_left() -> None:
    guard = FiniteGuard(every=100)
    guard.look()
    guard.record(0, 0, step())
    guard.look()
    guard.record(0, 1, step(math.nan))
    with pytest.raises(NonFiniteLoss, match="step 2"):
        guard.look()


def test_no_graph_is_kept() -> None:
    guard = FiniteGuard(every=10)
    output = step()
    guard.record(0, 0, output)
    assert not guard._waiting[0][2].loss.requires_grad
    assert output.loss.requires_grad
