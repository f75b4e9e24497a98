import numpy as np
import pytest
import torch

from gda.distillers.dist import DIST, correlation, dist, dist_parts


def by_hand(student, teacher, beta, gamma, temperature):
    """The formula, with NumPy's correlation of every row and column."""

    def soft(x):
        e = np.exp(x / temperature)
        return e / e.sum(axis=1, keepdims=True)

    def r(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a @ b) / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8)

    p, q = soft(student), soft(teacher)
    inter = 1 - np.mean([r(p[i], q[i]) for i in range(p.shape[0])])
    intra = 1 - np.mean([r(p[:, c], q[:, c]) for c in range(p.shape[1])])
    return temperature**2 * (beta * inter + gamma * intra)


def slopes(function, student, step=1e-5):
    """Central differences."""
    gradient = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("beta", "gamma", "temperature"), [(1.0, 1.0, 4.0), (1.0, 2.0, 1.0), (0.0, 1.0, 2.0)]
)
def test_value_and_gradient_by_hand(beta: float, gamma: float, temperature: float, logits) -> None:
    student, teacher = logits()
    value = dist(student, teacher, beta, gamma, temperature)
    (gradient,) = torch.autograd.grad(value, student)
    s, t = student.detach().numpy(), teacher.numpy()
    assert value.item() == pytest.approx(by_hand(s, t, beta, gamma, temperature), rel=1e-12)
    expected = slopes(lambda x: by_hand(x, t, beta, gamma, temperature), s)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_gradient_agrees_with_finite_differences(logits) -> None:
    student, teacher = logits(batch=4, seed=2)
    assert torch.autograd.gradcheck(lambda s: dist(s, teacher, 1.0, 2.0, 3.0), (student,))


def test_no_gradient_reaches_the_teacher(logits) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    dist(student, teacher, 1.0, 1.0, 4.0).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_correlation_does_not_see_scale_and_level() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    scale = torch.tensor([0.5, 2.0, 7.0, 1.0], dtype=torch.float64).unsqueeze(1)
    level = torch.tensor([-3.0, 0.0, 5.0, 1.0], dtype=torch.float64).unsqueeze(1)
    value = correlation(a, b, dim=1)
    np.testing.assert_allclose(value, [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)], rtol=1e-8)
    torch.testing.assert_close(correlation(scale * a + level, b, dim=1), value, rtol=1e-7, atol=0)
    torch.testing.assert_close(correlation(a.t(), (scale * b + level).t(), dim=0), value, rtol=1e-7, atol=0)
    torch.testing.assert_close(correlation(-a, b, dim=1), -value, rtol=1e-12, atol=0)


def test_each_part_ignores_what_the_other_one_sees() -> None:
    """Probabilities whose rows (columns) agree up to scale and level, but not their columns (rows)."""
    generator = torch.Generator().manual_seed(3)
    teacher = torch.rand(6, 4, generator=generator, dtype=torch.float64).softmax(1)
    share = torch.linspace(0.2, 0.9, 6, dtype=torch.float64).unsqueeze(1)
    rows_agree = share * teacher + (1 - share) / 4
    inter, intra = dist_parts(rows_agree.log(), teacher.log(), 1.0)
    assert inter.item() == pytest.approx(0, abs=1e-5)
    assert intra.item() > 0.01
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * 0.05  # one level for each column
    columns_agree = (teacher + wave) / (teacher + wave).sum(1, keepdim=True)
    inter, intra = dist_parts(columns_agree.log(), teacher.log(), 1.0)
    assert intra.item() == pytest.approx(0, abs=1e-5)
    assert inter.item() > 0.01


def test_is_zero_at_equality_and_at_most_twice_the_squared_temperature(logits) -> None:
    student, teacher = (x.detach() for x in logits())
    assert dist(student, student.clone(), 1.0, 1.0, 4.0).item() == pytest.approx(0, abs=1e-4)
    inter, _ = dist_parts(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]), 1.0)
    assert inter.item() == pytest.approx(2, rel=1e-6)  # two classes, opposite order
    for part in dist_parts(student, teacher, 4.0):
        assert 0 < part.item() < 32


def test_does_not_depend_on_the_order_of_samples_or_classes_or_on_the_level_of_a_row(logits) -> None:
    student, teacher = (x.detach() for x in logits())
    value = dist(student, teacher, 1.0, 2.0, 4.0).item()
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    level = torch.linspace(-50, 50, 6, dtype=torch.float64).unsqueeze(1)
    for s, t in (
        (student[rows], teacher[rows]),
        (student[:, columns], teacher[:, columns]),
        (student + level, teacher - level),
    ):
        assert dist(s, t, 1.0, 2.0, 4.0).item() == pytest.approx(value, rel=1e-11)
    assert dist(student.roll(1, 0), teacher, 1.0, 2.0, 4.0).item() != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_constant_rows_and_columns_and_large_spreads_are_finite(dtype, temperature: float, logits) -> None:
    student, teacher = (x.detach() for x in logits(batch=8, classes=5))
    student[0] = teacher[0]
    student[1] = 0.3
    teacher[2] = -0.7
    student[3], teacher[3] = 0.1, 0.1
    student[4] *= 1e4
    teacher[5] *= 1e4
    student[:, 4] = -1e4  # a class that the student never names: its column is 0 throughout
    student = student.to(dtype).requires_grad_()
    value = dist(student, teacher.to(dtype), 1.0, 1.0, temperature)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_constant_row_counts_as_uncorrelated_and_is_pulled_towards_the_teacher() -> None:
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    inter, intra = dist_parts(student, teacher, 1.0)
    assert inter.item() == 1
    assert intra.item() == 1  # one image: no column varies
    (gradient,) = torch.autograd.grad(inter, student)
    assert gradient[0, 0] < 0 < gradient[0, 2]


def test_half_precision_logits_are_computed_in_float32(logits) -> None:
    student, teacher = (x.detach().bfloat16() for x in logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = dist(student, teacher, 1.0, 1.0, 4.0)
    assert value.dtype is torch.float32
    assert value.item() == dist(student.float(), teacher.float(), 1.0, 1.0, 4.0).item()


def test_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="must both be"):
        dist(torch.zeros(4, 5), torch.zeros(1, 5), 1.0, 1.0, 4.0)


def test_term_reads_its_own_settings(logits, inputs) -> None:
    student, teacher = logits()
    value = DIST(2.0, 3.0, 5.0)(inputs(student, teacher))
    assert value.item() == dist(student, teacher, 2.0, 3.0, 5.0).item()
    assert DIST()(inputs(student, teacher)).item() == dist(student, teacher, 1.0, 1.0, 4.0).item()
