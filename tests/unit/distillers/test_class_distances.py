import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import class_distances
from gda.distillers.class_distances import (
    cka_distances,
    classifier_distances,
    cosine_distances,
    logit_distances,
    map_distances,
)
from gda.errors import UserError
from gda.models.layout import Layout


def cka_by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """By the definition with centred kernel matrices, which see only products of rows."""
    centre = np.eye(len(x)) - 1 / len(x)

    def hsic(a, b):
        return np.trace(centre @ a @ a.T @ centre @ b @ b.T)

    return float(hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y)))


def test_cosine_distances_by_hand() -> None:
    prototypes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = cosine_distances(prototypes)
    for c in range(5):
        for d in range(5):
            a, b = prototypes[c].numpy(), prototypes[d].numpy()
            expected = 1 - a @ b / math.sqrt((a @ a) * (b @ b))
            assert distances[c, d].item() == pytest.approx(expected, abs=1e-14)
    assert (distances.diagonal() == 0).all()
    scale = torch.tensor([[1.0], [2.0], [0.1], [9.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(cosine_distances(scale * prototypes), distances)


def test_cosine_distances_are_never_negative_and_defined_for_a_row_of_zeros() -> None:
    prototypes = torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
    prototypes[1] = prototypes[0] * 3  # the cosine is rounded to above 1 for some such pairs
    prototypes[2] = 0
    distances = cosine_distances(prototypes)
    assert distances.min() == 0
    assert distances[0, 1] < 1e-6
    assert (distances[2, 3:] == 1).all()


@pytest.mark.parametrize("values_at_a_time", [class_distances.MOST_AT_A_TIME, 54, 1])
def test_cka_distances_by_kernels(values_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # All classes at once, two, one.
    monkeypatch.setattr(class_distances, "MOST_AT_A_TIME", values_at_a_time)
    values = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    turn = torch.linalg.qr(values[:3, 0])[0]
    values[:, 1] = values[:, 0] @ turn * 2 + 5  # turned, scaled and moved
    values[:, 3] *= 1e4
    distances = cka_distances(values)
    for c in range(4):
        for d in range(4):
            expected = 1 - cka_by_kernels(values[:, c].numpy(), values[:, d].numpy())
            assert distances[c, d].item() == pytest.approx(expected, abs=1e-12)
    assert (distances.diagonal() == 0).all()
    assert distances[0, 1].item() == pytest.approx(0, abs=1e-12)
    assert 0.1 < distances[0, 2].item() <= 1


def test_cka_distances_are_exact_for_means_that_dwarf_the_spread() -> None:
    values = torch.randn(300, 3, 4, generator=torch.Generator().manual_seed(7)) + 1000
    torch.testing.assert_close(
        cka_distances(values).double(), cka_distances(values.double()), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("constant", [0.0, 0.7, 1e6])
def test_a_class_without_spread_is_far_from_all_others(constant: float) -> None:
    values = torch.randn(500, 3, 2, generator=torch.Generator().manual_seed(3))
    values[:, 1] = constant  # not 0 any more when a rounded mean is taken off
    distances = cka_distances(values)
    assert distances[1].tolist() == [1, 0, 1]
    assert distances[0, 2] < 1
    assert distances.isfinite().all()


class Backbone(nn.Module):
    """A model with a linear classifier, as a stranger may write it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3)
        self.head = head


def test_classifier_rows_are_found_by_the_models_layout() -> None:
    head = nn.Linear(6, 4)
    distances = classifier_distances(Backbone(head), classes=4)
    torch.testing.assert_close(distances, cosine_distances(head.weight.detach()))
    assert not distances.requires_grad
    assert classifier_distances(Backbone(head.bfloat16()), classes=4).dtype is torch.float32


@pytest.mark.parametrize(("head", "classes"), [(nn.Linear(6, 4), 5), (nn.Identity(), 4)])
def test_a_model_without_a_row_for_each_class_is_refused(head: nn.Module, classes: int) -> None:
    with pytest.raises(UserError, match=f"no layer of {classes} rows.*distances=cka"):
        classifier_distances(Backbone(head), classes)


class Teacher(nn.Module):
    """Maps ``(4, 2, 2)`` of images ``(3, 4, 4)``, and three logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(3, 5, 1)
        self.last = nn.Conv2d(5, 4, 2, stride=2)
        self.fc = nn.Linear(4, 3)
        self.layout = Layout({1: "first", 2: "last"}, {}, "fc")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.first(x).relu()).mean(dim=(2, 3)))


LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 0, 1, 0, 1, 2, 0])  # five, four and three images


def images() -> Tensor:
    return torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(5))


def batches(labels: Tensor | None, size: int = 5) -> Iterator[tuple[Tensor, Tensor | None]]:
    for start in range(0, 12, size):
        part = slice(start, start + size)
        yield images()[part], None if labels is None else labels[part]


def by_hand(teacher: nn.Module, labels: Tensor, fewest: int, classes: int, of_maps: bool) -> np.ndarray:
    """Image by image and pixel by pixel, in float64."""
    rows: list[list[np.ndarray]] = [[] for _ in range(classes)]
    with torch.no_grad():
        for image, label in zip(images(), labels.tolist(), strict=True):
            hidden = teacher.last(teacher.first(image[None]).relu())[0]
            each = [hidden[:, i, j] for i in range(2) for j in range(2)]
            each = each if of_maps else [teacher(image[None])[0]]
            if len(rows[label]) < fewest * len(each):
                rows[label] += [row.double().numpy() for row in each]
    expected = 1 - np.eye(classes)
    for c in range(classes):
        for d in range(classes):
            if c != d and len(rows[c]) == len(rows[d]) > 1:
                expected[c, d] = 1 - cka_by_kernels(np.array(rows[c]), np.array(rows[d]))
    return expected


@pytest.mark.parametrize("size", [1, 5, 12])
@pytest.mark.parametrize("of_maps", [True, False])
def test_distances_of_images_by_hand(size: int, of_maps: bool) -> None:
    """The first three images of each class, wherever they stand in the batches."""
    teacher = Teacher().eval()
    measure = map_distances if of_maps else logit_distances
    distances = measure(teacher, batches(LABELS, size), 3, 12)
    expected = by_hand(teacher, LABELS, 3, 3, of_maps)
    np.testing.assert_allclose(distances.numpy(), expected, atol=1e-5)
    assert 0.01 < distances[0, 1] < 0.999
    assert not distances.requires_grad
    assert len(teacher.last._forward_hooks) == 0


def test_without_labels_the_teacher_says_which_class_an_image_is_of() -> None:
    teacher = Teacher().eval()
    with torch.no_grad():
        teacher.fc.bias -= teacher(images()).mean(dim=0)  # no class is the most probable one throughout
        said = teacher(images()).argmax(dim=1)
    counts = said.bincount(minlength=3)
    assert counts.sort().values[1] >= 2
    distances = map_distances(teacher, batches(None), 3, 12)
    fewest = min(4, int(counts[counts >= 2].min()))
    np.testing.assert_allclose(distances.numpy(), by_hand(teacher, said, fewest, 3, True), atol=1e-5)
    assert torch.equal(distances, map_distances(teacher, batches(said), 3, 12))


def test_classes_of_no_or_one_image_are_at_distance_one_and_cut_the_others_no_shorter() -> None:
    labels = torch.where(torch.arange(12) == 2, 4, LABELS)  # class 4 has one image, class 3 none
    teacher = Teacher().eval()
    distances = map_distances(teacher, batches(labels), 5, 15)
    np.testing.assert_allclose(distances.numpy(), by_hand(teacher, labels, 3, 5, True), atol=1e-5)
    assert distances[3].tolist() == [1, 1, 1, 0, 1]
    assert distances[4].tolist() == [1, 1, 1, 1, 0]
    assert distances[0, 1] < 1


def test_where_no_class_has_two_images_all_distances_are_one() -> None:
    alone = [(images()[:3], torch.arange(3))]
    assert torch.equal(map_distances(Teacher().eval(), alone, 3, 3), 1 - torch.eye(3))


def test_features_that_do_not_fit_into_memory_are_of_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher().eval()
    monkeypatch.setattr(class_distances, "MOST_VALUES", 2 * 3 * 16)
    distances = map_distances(teacher, batches(LABELS), 3, 12)
    np.testing.assert_allclose(distances.numpy(), by_hand(teacher, LABELS, 2, 3, True), atol=1e-5)


def test_a_teacher_without_stages_gives_its_pooled_vectors_and_tokens_count_without_class_tokens() -> None:
    teacher = Teacher().eval()
    teacher.layout = Layout({}, {}, "fc")
    features = []
    with torch.no_grad():
        for image in images():
            features.append(teacher.last(teacher.first(image[None]).relu()).mean(dim=(2, 3))[0])
    first = torch.stack([torch.stack(features)[c == LABELS][:3] for c in range(3)], dim=1)
    torch.testing.assert_close(map_distances(teacher, batches(LABELS), 3, 12), cka_distances(first))

    class Tokens(nn.Module):
        num_prefix_tokens = 1
        layout = Layout({4: "blocks"}, {}, "fc")

        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.fc = nn.Identity(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.blocks(x.flatten(2).transpose(1, 2))[:, 0])

    rows = images().flatten(2).transpose(1, 2)[:, 1:]
    first = torch.stack([rows[c == LABELS][:3].flatten(0, 1) for c in range(3)], dim=1)
    torch.testing.assert_close(map_distances(Tokens(), batches(LABELS), 3, 12), cka_distances(first))
