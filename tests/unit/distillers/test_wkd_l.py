import math

import numpy as np
import pytest
import torch
from torch import nn

from gda.distillers import Progress, RunFacts
from gda.distillers.class_distances import classifier_distances, logit_distances, map_distances
from gda.distillers.wkd_l import WKDL, transport, wkd_l

TARGET = torch.tensor([0, 4, 2, 1, 3, 2])
OPTIONS = {"temperature": 2.0, "epsilon": 0.05, "iterations": 10}


def by_hand(student, teacher, target, distances, weight, temperature, epsilon, iterations):
    """The formula sample by sample, on the matrix of the classes other than the target."""
    total = 0.0
    for s, t, y in zip(student, teacher, target, strict=True):
        p, q = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        others = [c for c in range(len(s)) if c != y]
        left, right = np.exp(s[others] / temperature), np.exp(t[others] / temperature)
        left, right = left / left.sum(), right / right.sum()
        cost = distances[np.ix_(others, others)]
        kernel = np.exp(-cost / epsilon)
        u = np.ones(len(others)) / len(others)
        for _ in range(iterations):
            v = np.array([right[d] / (kernel[:, d] @ u + 1e-8) for d in range(len(others))])
            u = np.array([left[c] / (kernel[c] @ v + 1e-8) for c in range(len(others))])
        plan = np.diag(u) @ kernel @ np.diag(v)
        total += -q[y] * math.log(p[y]) + weight * (plan * cost).sum()
    return total / len(student)


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
def distances() -> torch.Tensor:
    """Between 0 and 1, and not symmetric: the side of each model counts."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(5, 5, generator=generator, dtype=torch.float64).fill_diagonal_(0)


@pytest.mark.parametrize("options", [OPTIONS, {"temperature": 8.0, "epsilon": 0.3, "iterations": 1}])
def test_value_and_gradient_by_hand(options: dict, distances, logits) -> None:
    student, teacher = logits()
    value = wkd_l(student, teacher, TARGET, distances, 30.0, **options)
    (gradient,) = torch.autograd.grad(value, student)
    s, t, y, cost = student.detach().numpy(), teacher.numpy(), TARGET.numpy(), distances.numpy()
    assert value.item() == pytest.approx(by_hand(s, t, y, cost, 30.0, **options), rel=1e-12)
    expected = slopes(lambda x: by_hand(x, t, y, cost, 30.0, **options), s)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_gradient_agrees_with_finite_differences(distances, logits) -> None:
    student, teacher = logits(batch=6, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: wkd_l(s, teacher, TARGET, distances, 30.0, **OPTIONS), (student,), eps=1e-7, atol=1e-5
    )


def test_no_gradient_reaches_the_teacher(distances, logits) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    wkd_l(student, teacher, TARGET, distances, 30.0, **OPTIONS).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_approaches_the_exact_distance_of_two_predictions_of_two_classes() -> None:
    """Moving a share between two classes costs that share times their distance."""
    student = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    distances = torch.tensor([[0.0, 0.9, 0.8], [0.9, 0.0, 0.5], [0.8, 0.5, 0.0]], dtype=torch.float64)
    p, q = student[0, 1:].softmax(0), teacher[0, 1:].softmax(0)
    value = transport(student, teacher, torch.tensor([0]), distances, 1.0, 0.03, 200)
    assert value.item() == pytest.approx(0.5 * (p - q).abs().max().item(), rel=1e-4)


def test_moving_to_a_similar_class_is_cheaper() -> None:
    distances = torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]], dtype=torch.float64)
    distances = nn.functional.pad(distances, (0, 1, 0, 1), value=0.9)
    target = torch.tensor([3])
    teacher, near, far = (torch.eye(4, dtype=torch.float64)[[c]] * 9 for c in (0, 1, 2))
    cheap = transport(near, teacher, target, distances, 1.0, 0.05, 10)
    dear = transport(far, teacher, target, distances, 1.0, 0.05, 10)
    assert cheap.item() == pytest.approx(0.1, rel=0.02)
    assert dear.item() == pytest.approx(0.9, rel=0.02)


def test_does_not_depend_on_the_order_of_samples_or_classes_or_on_the_level_of_a_row(
    distances, logits
) -> None:
    student, teacher = (x.detach() for x in logits())

    def value(s, t, target, cost):
        return wkd_l(s, t, target, cost, 30.0, **OPTIONS).item()

    expected = value(student, teacher, TARGET, distances)
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    moved = torch.argsort(columns)[TARGET]  # where each target's column has gone
    level = torch.linspace(-50, 50, 6, dtype=torch.float64).unsqueeze(1)
    assert value(student[rows], teacher[rows], TARGET[rows], distances) == pytest.approx(expected, rel=1e-11)
    shuffled = value(student[:, columns], teacher[:, columns], moved, distances[columns][:, columns])
    assert shuffled == pytest.approx(expected, rel=1e-11)
    assert value(student + level, teacher - level, TARGET, distances) == pytest.approx(expected, rel=1e-10)


def test_soft_targets_mean_their_most_probable_class(distances, logits) -> None:
    student, teacher = (x.detach() for x in logits())
    soft = nn.functional.one_hot(TARGET, 5) * 0.5 + 0.1
    value = wkd_l(student, teacher, soft, distances, 30.0, **OPTIONS).item()
    assert value == wkd_l(student, teacher, TARGET, distances, 30.0, **OPTIONS).item()
    assert value != wkd_l(student, teacher, (TARGET + 1) % 5, distances, 30.0, **OPTIONS).item()


def test_two_classes_leave_nothing_to_move_and_one_class_is_refused(logits) -> None:
    student, teacher = logits(classes=2)
    assert transport(student, teacher, TARGET % 2, 1 - torch.eye(2), **OPTIONS).item() == 0
    with pytest.raises(ValueError, match="two classes"):
        transport(student[:, :1], teacher[:, :1], TARGET * 0, torch.zeros(1, 1), **OPTIONS)
    with pytest.raises(ValueError, match=r"must be \(2, 2\), got \(5, 5\)"):
        transport(student, teacher, TARGET % 2, torch.zeros(5, 5), **OPTIONS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_is_finite_for_constant_rows_and_large_spreads(dtype, temperature: float, distances, logits) -> None:
    student, teacher = (x.detach() for x in logits())
    student[0] = teacher[0]
    student[1], teacher[1] = 0.3, -0.7
    student[2] *= 1e4
    teacher[3] *= 1e4
    student[4] = torch.tensor([1e4, -1e4, 0.0, 0.0, 0.0])
    teacher[4] = torch.tensor([-1e4, 1e4, 0.0, 0.0, 0.0])
    student = student.to(dtype).requires_grad_()
    options = {**OPTIONS, "temperature": temperature}
    value = wkd_l(student, teacher.to(dtype), TARGET, distances, 600.0, **options)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_bfloat16_autocast_computes_in_float32(distances, logits) -> None:
    student, teacher = logits(dtype=torch.float32)
    value = wkd_l(student, teacher, TARGET, distances, 30.0, **OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = wkd_l(student, teacher, TARGET, distances, 30.0, **OPTIONS)
    assert cast.dtype is torch.float32
    assert cast.item() == value.item()


class Teacher(nn.Module):
    """A linear classifier of the means of images; it has no stages."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5) if head is None else head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.mean(dim=(2, 3)))


IMAGES = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(6))
LABELS = torch.arange(40) % 5


def facts(teacher: nn.Module | None = None, labels: torch.Tensor | None = LABELS) -> RunFacts:
    teacher = Teacher() if teacher is None else teacher
    return RunFacts(
        classes=5,
        train_size=40,
        teacher=teacher,
        training_batches=lambda: iter([(IMAGES, labels)]),
    )


def measured(option: str, teacher: nn.Module, labels: torch.Tensor | None = LABELS) -> torch.Tensor:
    """What the option stands for, by the functions that other tests check."""
    if option == "classifier":
        return classifier_distances(teacher, 5)
    measure = map_distances if option == "cka" else logit_distances
    return measure(teacher, [(IMAGES, labels)], 5, 40)


@pytest.mark.parametrize("option", ["cka", "logit_cka", "classifier"])
def test_term_measures_its_distances_on_the_teacher(option: str, logits, inputs) -> None:
    teacher = Teacher()
    student, teacher_logits = logits(dtype=torch.float32)
    term = WKDL(30.0, temperature=2.0, epsilon=0.1, iterations=3, sharpness=2.0, distances=option)
    assert term.refusals(facts(teacher)) == []
    term.setup(facts(teacher))
    expected = 1 - torch.exp(-2.0 * measured(option, teacher))
    torch.testing.assert_close(term.class_distances, expected)
    value = term(inputs(student, teacher_logits, TARGET, Progress(0, 240)))
    by_function = wkd_l(student, teacher_logits, TARGET, expected, 30.0, 2.0, 0.1, 3)
    assert value.item() == pytest.approx(by_function.item(), rel=1e-6)
    plain = WKDL(sharpness=0.0, distances=option)
    plain.setup(facts(teacher))
    torch.testing.assert_close(plain.class_distances, measured(option, teacher))


def test_without_labels_images_are_of_the_class_that_the_teacher_says() -> None:
    teacher, term = Teacher(), WKDL(sharpness=0.0)
    term.setup(facts(teacher, labels=None))
    with torch.no_grad():
        said = teacher(IMAGES).argmax(dim=1)
    torch.testing.assert_close(term.class_distances, measured("cka", teacher, said))
    assert not torch.equal(term.class_distances, measured("cka", teacher))


def test_a_resumed_run_has_the_distances_of_its_checkpoint() -> None:
    term, resumed = WKDL(), WKDL()
    term.setup(facts(Teacher()))
    resumed.setup(facts(Teacher(), labels=LABELS.flip(0)))
    assert not torch.equal(resumed.class_distances, term.class_distances)
    resumed.load_state_dict(term.state_dict())
    assert torch.equal(resumed.class_distances, term.class_distances)
    assert term.to("meta").class_distances.device.type == "meta"


def test_distances_of_the_classifier_need_no_images_and_others_do() -> None:
    bare = RunFacts(classes=5, train_size=40, teacher=Teacher())
    WKDL(distances="classifier").setup(bare)
    with pytest.raises(ValueError, match="distances=cka are measured on training images"):
        WKDL().setup(bare)


def test_a_teacher_without_a_classifier_is_refused_only_where_its_rows_are_asked_for() -> None:
    headless = facts(Teacher(nn.Identity()))
    (refusal,) = WKDL(distances="classifier").refusals(headless)
    assert "no layer of 5 rows" in refusal
    assert WKDL().refusals(headless) == []
    assert WKDL(distances="classifier").refusals(RunFacts(classes=5, train_size=9)) == []  # said elsewhere


@pytest.mark.parametrize("option", ["cka", "classifier"])
def test_the_check_needs_no_weights_and_reads_no_image(option: str) -> None:
    with torch.device("meta"):
        teacher = Teacher()
    assert WKDL(distances=option).refusals(RunFacts(classes=5, train_size=0, teacher=teacher)) == []


@pytest.mark.parametrize(
    ("distances", "epsilon", "sharpness", "refused"),
    [
        ("classifier", 0.05, 1.0, False),
        ("classifier", 0.019, 1.0, True),
        ("classifier", 0.04, 0.0, True),
        ("cka", 0.04, 0.0, False),
        ("cka", 0.02, 0.0, True),
        ("cka", 0.02, 1.0, False),
        ("cka", 0.014, 1.0, True),
    ],
)
def test_an_epsilon_that_makes_the_kernel_vanish_is_refused(
    distances: str, epsilon: float, sharpness: float, refused: bool
) -> None:
    refusals = WKDL(epsilon=epsilon, sharpness=sharpness, distances=distances).refusals(facts())
    assert len(refusals) == refused
    assert all("epsilon=0.05" in refusal for refusal in refusals)


def test_transport_decays_from_its_start_to_zero_in_the_last_epoch() -> None:
    """The published count: epoch 150 of 240, from 1, is the last one of full weight."""
    term = WKDL(decay_start=0.625)
    factor = [term.decay(Progress(epoch, 240)) for epoch in range(240)]
    assert factor[:150] == [1.0] * 150
    assert factor[150] == pytest.approx((1 + math.cos(math.pi / 90)) / 2)
    assert factor[194] == pytest.approx(0.5)
    assert factor[239] == 0
    assert factor[149:] == sorted(factor[149:], reverse=True)
    assert WKDL(decay_start=1.0).decay(Progress(239, 240)) == 1
    assert WKDL(decay_start=0.0).decay(Progress(0, 2)) == pytest.approx(0.5)


def test_only_the_transport_decays(logits, inputs) -> None:
    student, teacher = logits(dtype=torch.float32)
    term = WKDL()
    term.setup(facts())
    last = term(inputs(student, teacher, TARGET, Progress(239, 240)))
    p, q = student.detach().softmax(1), teacher.softmax(1)
    rows = torch.arange(6)
    expected = -(q[rows, TARGET] * p[rows, TARGET].log()).mean()
    assert last.item() == pytest.approx(expected.item(), rel=1e-6)
