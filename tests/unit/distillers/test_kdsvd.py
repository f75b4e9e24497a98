from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers.kdsvd import KDSVD, kdsvd, right_singular_vectors
from gda.errors import UserError

SHAPES = ((3, 4, 4), (4, 3, 3), (5, 2, 2))


def maps(channels: Sequence[int] = (3, 4, 5), batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, count, *shape[1:]) for count, shape in zip(channels, SHAPES, strict=True)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_hand(students: Sequence[np.ndarray], teachers: Sequence[np.ndarray], k: int) -> float:
    """The formula sample by sample, with NumPy's decomposition of the matrix itself."""
    total = 0.0
    for sample in range(len(students[0])):
        previous = None
        for s, t in zip(students, teachers, strict=True):
            width = s.shape[-1]
            _, values, rows = np.linalg.svd(t[sample].reshape(-1, width), full_matrices=False)
            candidates = np.linalg.svd(s[sample].reshape(-1, width), full_matrices=False)[2][: k + 3]
            strengths = values[:k] / np.sqrt((values[:k] ** 2).sum())
            own, other = [], []
            for row, strength in zip(rows[:k], strengths, strict=True):
                vector = row if row.sum() >= 0 else -row
                cosines = [float(candidate @ vector) for candidate in candidates]
                best = int(np.argmax(np.abs(cosines)))
                other.append(strength * vector)
                own.append(strength * np.sign(cosines[best]) * candidates[best])
            if previous is not None:
                for c in range(k):
                    for i in range(width):
                        for j in range(len(previous[0][c])):
                            student = np.exp(-((own[c][i] - previous[0][c][j]) ** 2) / 8)
                            teacher = np.exp(-((other[c][i] - previous[1][c][j]) ** 2) / 8)
                            total += (student - teacher) ** 2
            previous = (own, other)
    return total / len(students[0])


def slope(values: np.ndarray, of: Callable[[np.ndarray], float], step: float = 1e-6) -> np.ndarray:
    """Central differences of a function of one array."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(*values.shape):
        ends = []
        for sign in (1, -1):
            moved = values.copy()
            moved[index] += sign * step
            ends.append(of(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("k", [1, 2])
def test_value_and_gradient_are_those_of_the_formula(k: int) -> None:
    students, teachers = [m.requires_grad_() for m in maps()], maps((6, 2, 5), seed=1)
    value = kdsvd(students, teachers, k)
    value.backward()
    own, other = [m.detach().numpy() for m in students], [m.numpy() for m in teachers]
    assert value.item() == pytest.approx(by_hand(own, other, k), rel=1e-10)
    for stage, student in enumerate(students):

        def moved(values: np.ndarray, stage: int = stage) -> float:
            return by_hand([*own[:stage], values, *own[stage + 1 :]], other, k)

        np.testing.assert_allclose(student.grad.numpy(), slope(own[stage], moved), rtol=1e-5, atol=1e-8)


def test_gradcheck() -> None:
    students, teachers = [m.requires_grad_() for m in maps()], maps(seed=1)
    assert torch.autograd.gradcheck(lambda *s: kdsvd(s, teachers, 1), tuple(students))


def test_vectors_and_values_are_those_of_the_matrix() -> None:
    feature = maps()[0]
    vectors, values = right_singular_vectors(feature, 3)
    for sample in range(len(feature)):
        _, expected, rows = np.linalg.svd(feature[sample].reshape(-1, 4).numpy(), full_matrices=False)
        np.testing.assert_allclose(values[sample], expected[:3] / np.sqrt((expected**2).sum()), rtol=1e-10)
        cosines = np.abs(rows[:3] @ vectors[sample].numpy())
        np.testing.assert_allclose(cosines, np.eye(3), atol=1e-10)


def test_the_gradient_stays_finite_at_equal_singular_values() -> None:
    """All singular values of an identity are equal, two of the second map are."""
    equal = torch.eye(4, dtype=torch.float64).reshape(1, 1, 4, 4)
    two = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64)).reshape(1, 1, 4, 4)
    for first, second in ((equal, two), (two, equal), (equal, equal)):
        students = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        kdsvd(students, [two + 1, equal + 1], 2).backward()
        assert all(student.grad.isfinite().all() for student in students)
        # torch's own derivative is not: the case is a real one.
        theirs = first.clone().requires_grad_()
        torch.linalg.svd(theirs[0, 0])[2][0, 1].backward()
        assert not theirs.grad.isfinite().all()


def test_is_zero_where_all_maps_are_equal_up_to_scale_and_sign() -> None:
    teachers = maps()
    for students in (teachers, [1e4 * m for m in teachers], [-1e-4 * m for m in teachers]):
        students = [m.clone().requires_grad_() for m in students]
        value = kdsvd(students, teachers, 2)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-24)
        assert all(student.grad.abs().max() < 1e-6 for student in students)


def test_neither_scale_nor_order_of_channels_matters() -> None:
    students, teachers = maps(), maps(seed=1)
    value = kdsvd(students, teachers, 2)
    changed = [-1e4 * m.flip(1) for m in students]
    torch.testing.assert_close(kdsvd(changed, teachers, 2), value, rtol=1e-9, atol=0)
    changed = [1e-4 * m.flip(1) for m in teachers]
    torch.testing.assert_close(kdsvd(students, changed, 2), value, rtol=1e-9, atol=0)
    torch.testing.assert_close(kdsvd(students, [-m for m in teachers], 2), value, rtol=1e-9, atol=0)
    rows = torch.tensor([1, 0])
    swapped = kdsvd([m[rows] for m in students], [m[rows] for m in teachers], 2)
    torch.testing.assert_close(swapped, value, rtol=1e-12, atol=0)


def test_silent_maps_and_float32_have_finite_values_and_gradients() -> None:
    for own, other in ((1e4, 1.0), (1.0, 1e4), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        students = [(own * m).float().requires_grad_() for m in maps()]
        value = kdsvd(students, [(other * m).float() for m in maps(seed=1)], 2)
        value.backward()
        assert value.isfinite()
        assert all(student.grad.isfinite().all() for student in students)


def test_a_diverged_map_gives_nan_instead_of_an_error() -> None:
    students, teachers = maps(), maps(seed=1)
    students[1][0, 0, 0, 0] = float("inf")
    assert kdsvd(students, teachers).isnan()


def test_no_gradient_flows_into_the_teacher() -> None:
    students, teachers = [m.requires_grad_() for m in maps()], [m.requires_grad_() for m in maps(seed=1)]
    kdsvd(students, teachers).backward()
    assert all(student.grad is not None for student in students)
    assert all(teacher.grad is None for teacher in teachers)


def test_autocast_does_not_round_the_decomposition() -> None:
    students, teachers = [m.float() for m in maps()], [m.float() for m in maps(seed=1)]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = kdsvd(students, teachers, 2)
    torch.testing.assert_close(rounded, kdsvd(students, teachers, 2), rtol=1e-6, atol=0)


def test_one_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        kdsvd(maps()[:1], maps()[:1])
    with pytest.raises(UserError, match=r"stages=\[2,3\]"):
        KDSVD(stages=[2])
