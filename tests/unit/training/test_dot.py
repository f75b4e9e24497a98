"""DOT against its formula, written once more in NumPy, and against plain SGD."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.training.dot import DOT
from gda.training.precision import Precision

OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


class Pair(nn.Module):
    """One parameter that both losses reach, one for each loss alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in ("shared", "task_only", "distilled_only"):
            value = torch.randn(3, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))

    def losses(self, step: int) -> tuple[Tensor, Tensor]:
        target = torch.full((3,), float(step), dtype=torch.float64)
        supervised = ((self.shared - target) ** 2).sum() + (self.task_only**3).sum()
        distilled = (self.shared**2).sum() * 0.5 + (self.distilled_only**2).sum()
        return supervised, distilled


def train(model: Pair, optimizer: torch.optim.Optimizer, steps: range) -> None:
    precision = Precision("float32", torch.device("cpu"))
    for step in steps:
        supervised, distilled = model.losses(step)
        optimizer.zero_grad(set_to_none=True)
        precision.backward(supervised + distilled, supervised, distilled, optimizer)
        precision.update(optimizer, list(model.parameters()), clip=None)


def expected(steps: int, difference: float) -> dict[str, np.ndarray]:
    """The same steps in NumPy, with the gradients of both losses worked out by hand."""
    values = {name: value.detach().numpy().copy() for name, value in Pair().named_parameters()}
    lr, momentum, decay = OPTIONS["lr"], OPTIONS["momentum"], OPTIONS["weight_decay"]
    sums: dict[str, np.ndarray] = {}
    for step in range(steps):
        shared, task, distilled = values["shared"], values["task_only"], values["distilled_only"]
        moves = {
            ("shared", "task"): (2 * (shared - step) + decay * shared, momentum - difference),
            ("shared", "kd"): (shared, momentum + difference),
            ("task_only", "task"): (3 * task**2 + decay * task, momentum),
            ("distilled_only", "kd"): (2 * distilled + decay * distilled, momentum),
        }
        change = {name: np.zeros(3) for name in values}
        for (name, loss), (gradient, factor) in moves.items():
            key = f"{name}/{loss}"
            sums[key] = factor * sums[key] + gradient if key in sums else gradient
            change[name] = change[name] - lr * sums[key]
        if step == 0:
            first = change
        values = {name: value + change[name] for name, value in values.items()}
    assert first["shared"].any()
    return values


@pytest.mark.parametrize("difference", [0.0, 0.075])
def test_steps_equal_the_formula(difference: float) -> None:
    model = Pair()
    train(model, DOT(model.parameters(), **OPTIONS, momentum_difference=difference), range(6))
    for name, value in expected(6, difference).items():
        np.testing.assert_allclose(getattr(model, name).detach().numpy(), value, rtol=1e-12)


def test_without_a_difference_it_is_sgd_on_the_sum() -> None:
    ours, plain = Pair(), Pair()
    train(ours, DOT(ours.parameters(), **OPTIONS, momentum_difference=0.0), range(8))
    train(plain, torch.optim.SGD(plain.parameters(), **OPTIONS), range(8))
    for name, value in plain.named_parameters():
        torch.testing.assert_close(getattr(ours, name), value, rtol=1e-12, atol=1e-14)
    apart = Pair()
    train(apart, DOT(apart.parameters(), **OPTIONS), range(8))
    assert not torch.allclose(apart.shared, plain.shared, rtol=1e-3)


def test_both_momenta_are_in_its_state() -> None:
    through = Pair()
    train(through, DOT(through.parameters(), **OPTIONS), range(6))
    halves = Pair()
    first = DOT(halves.parameters(), **OPTIONS)
    train(halves, first, range(3))
    second = DOT(halves.parameters(), **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(halves, second, range(3, 6))
    for name, value in through.named_parameters():
        assert torch.equal(getattr(halves, name), value), name


def test_settings_that_it_can_not_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="nesterov=false"):
        DOT([nn.Parameter(torch.zeros(1))], lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="momentum_difference"):
        DOT([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.95, momentum_difference=0.075)
    with pytest.raises(ValueError, match="momentum_difference"):
        DOT([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.05)
