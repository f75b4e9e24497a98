import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.crd import CRD, contrast_scores, crd
from gda.errors import UserError
from gda.models.tap_descriptions import TapDescription

Array = np.ndarray
STUDENT, TEACHER = 5, 7
"""Widths of the features."""

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 0, 1, 2, 1])
"""Of a data set of twelve images; no class has as many as another."""


def facts(labels: Tensor | None = LABELS, size: int = len(LABELS)) -> RunFacts:
    described = ({"pooled": TapDescription("", (width,), None, True)} for width in (STUDENT, TEACHER))
    return RunFacts(3, size, labels, *described)


def term_for(labels: Tensor | None = LABELS, size: int = len(LABELS), seed: int = 0, **options: Any) -> CRD:
    term = CRD(**{"negatives": 6, "width": 4, **options})
    torch.manual_seed(seed)
    term.setup(facts(labels, size))
    return term


def features(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, width, generator=generator) for width in (STUDENT, TEACHER))
    return student, teacher


def inputs(
    indices: Sequence[int], student: Tensor, teacher: Tensor, seed: int = 0, targets: Tensor | None = None
) -> TermInputs:
    batch = len(indices)
    return TermInputs(
        images=torch.zeros(batch, 3, 1, 1),
        targets=torch.zeros(batch, dtype=torch.long) if targets is None else targets,
        indices=torch.tensor(indices),
        student=ModelOutput(torch.zeros(batch, 3), {"pooled": student}),
        teacher=ModelOutput(torch.zeros(batch, 3), {"pooled": teacher}),
        progress=Progress(0, 1),
        generator=torch.Generator().manual_seed(seed),
    )


class Definition:
    """The paper's estimator with every negative taken, in float64 and in probabilities, image by image."""

    def __init__(self, term: CRD, labels: Sequence[int]) -> None:
        def array(tensor: Tensor) -> Array:
            return tensor.detach().double().numpy().copy()

        self.k, self.t, self.momentum = term.negatives, term.temperature, term.momentum
        self.labels, self.n = list(labels), len(labels)
        self.layers = [
            (array(layer.weight), array(layer.bias))
            for layer in (term.student_embedding, term.teacher_embedding)
        ]
        self.banks = [array(term.student_bank), array(term.teacher_bank)]
        self.z: list[float] = []

    def embed(self, features: Sequence[Tensor]) -> list[Array]:
        rows = [
            x.detach().double().numpy() @ w.T + b for x, (w, b) in zip(features, self.layers, strict=True)
        ]
        return [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]

    def scores(self, indices: Sequence[int], anchors: Array, bank: Array) -> list[tuple[float, list[float]]]:
        """``exp(<u, m> / T)`` with the positive, and with each negative."""
        return [
            (
                math.exp(anchor @ bank[index] / self.t),
                [
                    math.exp(anchor @ bank[j] / self.t)
                    for j in range(self.n)
                    if self.labels[j] != self.labels[index]
                ],
            )
            for index, anchor in zip(indices, anchors, strict=True)
        ]

    def step(self, indices: Sequence[int], *features: Tensor) -> float:
        embedded = self.embed(features)
        scores = [
            self.scores(indices, embedded[0], self.banks[1]),
            self.scores(indices, embedded[1], self.banks[0]),
        ]
        if not self.z:
            self.z = [
                self.n
                * float(np.mean([(own + self.k * np.mean(others)) / (self.k + 1) for own, others in side]))
                for side in scores
            ]
        noise, total = self.k / self.n, 0.0
        for side, z in zip(scores, self.z, strict=True):
            for own, others in side:
                total -= math.log(own / z / (own / z + noise + 1e-7)) / len(indices)
                logs = [math.log(noise / (other / z + noise + 1e-7)) for other in others]
                total -= self.k * float(np.mean(logs)) / len(indices)
        for bank, rows in zip(self.banks, embedded, strict=True):
            for index, row in zip(indices, rows, strict=True):
                moved = self.momentum * bank[index] + (1 - self.momentum) * row
                bank[index] = moved / np.linalg.norm(moved)
        return total


@pytest.mark.parametrize("negatives", [11, 50])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "label-free"])
def test_three_steps_follow_the_definition(labels: Tensor | None, negatives: int) -> None:
    """Loss, banks and Z, where all negatives are taken; 50 is more than there are."""
    term = term_for(labels, negatives=negatives, momentum=0.3, temperature=0.2).double()
    reference = Definition(term, LABELS.tolist() if labels is not None else range(len(LABELS)))
    for step, indices in enumerate(([3, 0, 7, 10], [1, 3, 11], [2, 0, 5, 6])):
        student, teacher = (x.double() for x in features(len(indices), step))
        loss = term(inputs(indices, student, teacher))
        assert loss.item() == pytest.approx(reference.step(indices, student, teacher), rel=1e-11)
        np.testing.assert_allclose(term.student_bank.numpy(), reference.banks[0], rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(term.teacher_bank.numpy(), reference.banks[1], rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(term.normalisation.numpy(), reference.z, rtol=1e-11)


def test_gradient_follows_the_definition() -> None:
    term = term_for(negatives=50, temperature=0.3).double()
    student, teacher = (x.double() for x in features(3))
    term(inputs([1, 2, 3], student, teacher))  # sets Z
    term.eval()
    student.requires_grad_()
    term(inputs([4, 0, 7], student, teacher)).backward()

    def definition(moved: Array) -> float:
        reference = Definition(term, LABELS.tolist())
        reference.z = term.normalisation.tolist()
        return reference.step([4, 0, 7], torch.from_numpy(moved), teacher)

    expected = np.zeros_like(student.grad.numpy())
    for index in np.ndindex(expected.shape):
        step = np.zeros_like(expected)
        step[index] = 1e-6
        at = student.detach().numpy()
        expected[index] = (definition(at + step) - definition(at - step)) / 2e-6
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_gradient_agrees_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, positives, candidates = (
        torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (2, 2, 5)
    )
    allowed = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])

    def loss(u: Tensor) -> Tensor:
        return crd(*contrast_scores(u, positives, candidates, allowed, 0.5), 12.0, 4, 20)

    assert torch.autograd.gradcheck(loss, (anchors.requires_grad_(),))


def test_a_draw_gives_value_and_gradient_of_all_negatives_on_average() -> None:
    """300 draws of some of 60 images, against the loss with every negative."""
    labels = torch.arange(60) % 4
    term = term_for(labels, 60, negatives=8).double().eval()
    everything = Definition(term, labels.tolist())
    indices = [3, 17, 42]
    student, teacher = (x.double() for x in features(3))
    student.requires_grad_()
    term(inputs(indices, student, teacher))
    everything.z = term.normalisation.tolist()
    expected = everything.step(indices, student, teacher)

    losses, gradients = [], []
    for seed in range(300):
        loss = term(inputs(indices, student, teacher, seed))
        gradients.append(torch.autograd.grad(loss, student)[0])
        losses.append(loss.item())
    error = np.std(losses) / math.sqrt(len(losses))
    assert 0 < error < 0.05 * expected
    assert abs(np.mean(losses) - expected) <= 3 * error

    allowed = labels[torch.tensor(indices)].unsqueeze(1) != labels
    anchors = F.normalize(term.student_embedding(student))
    scores = contrast_scores(anchors, term.teacher_bank[indices], term.teacher_bank, allowed, 0.07)
    (exact,) = torch.autograd.grad(crd(*scores, term.normalisation[0], 8, 60), student)
    stacked = torch.stack(gradients)
    errors = stacked.std(dim=0) / math.sqrt(len(losses))
    assert ((stacked.mean(dim=0) - exact).abs() / errors).max() <= 4


def test_draws_come_from_the_given_generator_alone() -> None:
    labels = torch.arange(60) % 4
    student, teacher = features(3)

    def loss(seed: int, of_torch: int) -> float:
        term = term_for(labels, 60, negatives=8)
        torch.manual_seed(of_torch)
        return term(inputs([3, 17, 42], student, teacher, seed)).item()

    assert loss(0, 0) == loss(0, 1)
    assert loss(0, 0) != loss(1, 0)


def test_every_image_meets_enough_different_images_of_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(anchors: Tensor, positives: Tensor, candidates: Tensor, allowed: Tensor, t: float) -> Any:
        seen.append((candidates, allowed))
        return contrast_scores(anchors, positives, candidates, allowed, t)

    monkeypatch.setattr("gda.distillers.crd.contrast_scores", watched)
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 30)
    indices = [0, 25, 59]
    for seed in range(20):
        term = term_for(labels, 60, negatives=9)
        banks = {tuple(row): index for index, row in enumerate(term.teacher_bank.tolist())}
        term(inputs(indices, *features(3), seed))
        candidates, allowed = seen[-2]
        drawn = torch.tensor([banks[tuple(row)] for row in candidates.tolist()])
        assert len(drawn.unique()) == len(drawn) == 9 + 30
        for index, row in zip(indices, allowed, strict=True):
            assert torch.equal(row, labels[drawn] != labels[index])
            assert row.sum() >= 9


def test_neither_targets_nor_the_order_of_the_batch_matter() -> None:
    student, teacher = features(4)
    indices, order = [3, 0, 7, 10], [2, 0, 3, 1]
    soft = torch.full((4, 3), 1 / 3)
    value = term_for()(inputs(indices, student, teacher)).item()
    assert term_for()(inputs(indices, student, teacher, targets=soft)).item() == value
    shuffled = term_for()(inputs([indices[i] for i in order], student[order], teacher[order])).item()
    assert shuffled == pytest.approx(value, rel=1e-6)
    assert term_for()(inputs(indices, 5 * student, teacher)).item() != value  # the embedding has a bias


def test_relax_takes_any_image_of_the_class_as_positive() -> None:
    """The loss takes as many values as the class has images: those of each image's row as positive."""
    term = term_for(negatives=50, mode="relax").eval()
    exact = term_for(negatives=50).eval()
    student, teacher = features(1)
    exact(inputs([2], student, teacher))
    for each in (term, exact):
        each.normalisation.fill_(40.0)
    possible = set()
    for index in (2, 6, 10):  # the images of class 2
        assert LABELS[index] == 2
        possible.add(round(exact(inputs([index], student, teacher)).item(), 4))
    found = {round(term(inputs([2], student, teacher, seed)).item(), 4) for seed in range(40)}
    assert found == possible
    assert len(possible) == 3


def test_relax_is_exact_in_label_free_training() -> None:
    student, teacher = features(3)
    values = [
        term_for(None, negatives=50, mode=mode)(inputs([1, 4, 9], student, teacher)).item()
        for mode in ("exact", "relax")
    ]
    assert values[0] == values[1]


def test_banks_learn_in_training_only_and_get_no_gradient() -> None:
    term = term_for()
    student, teacher = features(3)
    student.requires_grad_()
    teacher.requires_grad_()
    banks = term.student_bank.clone(), term.teacher_bank.clone()
    term.eval()(inputs([1, 4, 9], student, teacher))
    assert torch.equal(term.student_bank, banks[0])
    assert torch.equal(term.teacher_bank, banks[1])
    term.train()(inputs([1, 4, 9], student, teacher)).backward()
    changed = (term.student_bank != banks[0]).any(dim=1) & (term.teacher_bank != banks[1]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [1, 4, 9]
    assert not term.student_bank.requires_grad
    assert not term.teacher_bank.requires_grad
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    assert all(parameter.grad.abs().max() > 0 for parameter in term.parameters())


def test_of_an_image_given_twice_the_last_one_is_remembered() -> None:
    twice, once = term_for(), term_for()
    student, teacher = features(3)
    twice(inputs([4, 9, 4], student, teacher))
    once(inputs([9, 4], student[1:], teacher[1:]))
    torch.testing.assert_close(twice.student_bank, once.student_bank)
    torch.testing.assert_close(twice.teacher_bank, once.teacher_bank)


def test_a_resumed_run_goes_on_exactly() -> None:
    run, resumed = term_for(), term_for(seed=1)
    for step in range(2):
        run(inputs([step, 4, 9], *features(3, step), step))
    assert set(run.state_dict()) == {
        *(f"{role}_embedding.{part}" for role in ("student", "teacher") for part in ("weight", "bias")),
        *("student_bank", "teacher_bank", "normalisation"),
    }
    resumed.load_state_dict(run.state_dict())
    for step in (2, 3):
        losses = [term(inputs([step, 4, 10], *features(3, step), step)).item() for term in (run, resumed)]
        assert losses[0] == losses[1]
    for name, value in run.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_state_from_before_the_first_batch_can_be_loaded_later() -> None:
    run = term_for()
    start = {name: value.clone() for name, value in run.state_dict().items()}
    first, second = (run(inputs([1, 4, 9], *features(3))).item() for _ in range(2))
    assert first != second
    run.load_state_dict(start)
    assert run(inputs([1, 4, 9], *features(3))).item() == first


@pytest.mark.parametrize("factor", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("temperature", [0.07, 0.02])
def test_is_finite_in_float32_at_extreme_features(factor: float, temperature: float) -> None:
    term = term_for(temperature=temperature)
    student, teacher = (factor * x for x in features(3))
    student.requires_grad_()
    for _ in range(3):  # the banks come to agree with the embeddings
        value = term(inputs([1, 4, 9], student, teacher))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in term.parameters())


def test_half_precision_is_brought_up_also_under_autocast() -> None:
    student, teacher = (x.bfloat16() for x in features(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term_for()(inputs([1, 4, 9], student, teacher))
    assert value.dtype is torch.float32
    assert value.item() == term_for()(inputs([1, 4, 9], student.float(), teacher.float())).item()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation puts out."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_no_rows_of_a_bank_are_gathered_for_each_image() -> None:
    batch, size, negatives, width = 32, 2000, 500, 16
    labels = torch.arange(size) % 100
    term = term_for(labels, size, negatives=negatives, width=width)
    student, teacher = features(batch)
    student.requires_grad_()
    with Largest() as largest:
        term(inputs(list(range(batch)), student, teacher)).backward()
    # A bank, or the scores of the batch with all that is drawn; gathered rows would be 16 times as many.
    assert batch * negatives < largest.numbers <= max(size * width, batch * (negatives + 20))


def test_a_data_set_of_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="one class"):
        term_for(torch.zeros(12, dtype=torch.long))


def test_defaults_are_the_published_ones() -> None:
    term = CRD()
    assert (term.negatives, term.temperature, term.momentum, term.width) == (16384, 0.07, 0.5, 128)
    assert term.mode == "exact"
    assert term.student_features == term.teacher_features == ("pooled",)
