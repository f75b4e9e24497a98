"""Episodes of several splits: figures from embeddings are those of encoding every episode anew."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from gda.data.dataset import ImageSplit
from gda.data.few_shot.source import FewShotDataset
from gda.data.loader import TensorLoader
from gda.errors import UserError
from gda.models import create_model
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.seeding import seeded
from gda.tasks.episode_evaluation import EpisodeEvaluation, Episodes, accuracy_figures

MEAN, STD = (0.5,) * 3, (0.25,) * 3
EPISODES = Episodes(way=3, shots=(1, 4), query=5, episodes_per_batch=3, batches=4, seed=7)


class InDouble(nn.Module):
    """An encoder in float64, in which rounding can hardly make another class the nearest."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with seeded(seed, "encoder"):
            self.encoder = create_model("convnet4", None, image_size=16).double()
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):  # statistics that evaluation mode must use
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.encoder(images.double())


def split_of(classes: int, seed: int, per_class: int = 12) -> ImageSplit:
    """Noisy patterns, one a class, in a mixed order."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randperm(classes * per_class, generator=draws) % classes
    patterns = torch.randint(60, 196, (classes, 3, 16, 16), generator=draws)
    noise = torch.randint(-120, 121, (len(targets), 3, 16, 16), generator=draws)
    return ImageSplit((patterns[targets] + noise).clamp(0, 255).to(torch.uint8), targets)


def dataset_of(validation: bool = True) -> FewShotDataset:
    names = tuple("abcdef")
    return FewShotDataset(
        "fake",
        names[:4],
        names[:4] if validation else (),
        names[:5],
        split_of(4, 1),
        None,
        None,
        split_of(4, 2) if validation else None,
        split_of(5, 3),
        MEAN,
        STD,
    )


def loader(split: ImageSplit) -> TensorLoader:
    return TensorLoader(split, 16, {}, MEAN, STD)


def evaluation_of(dataset: FewShotDataset, episodes: Episodes = EPISODES) -> EpisodeEvaluation:
    return EpisodeEvaluation(dataset, loader, episodes)


def drawn(dataset: FewShotDataset, split: str, shot: int, episodes: Episodes = EPISODES) -> Tensor:
    """The positions of all episodes of a split, ``(episodes, way, shot + query)``."""
    sampler = episodes.sampler(images_of(dataset, split), dataset.test_classes, shot)
    return torch.cat(list(sampler.batches()))


def images_of(dataset: FewShotDataset, split: str) -> ImageSplit:
    images: ImageSplit = {"validation": dataset.validation, "test": dataset.test}[split]  # type: ignore[assignment]
    return images


def seen(dataset: FewShotDataset, split: str, positions: Tensor) -> Tensor:
    """The images of an episode as an encoder gets them, ``(way, shot + query, 3, 16, 16)``."""
    pixels = images_of(dataset, split).images[positions.flatten()].float()
    return ((pixels - 127.5) / 63.75).unflatten(0, positions.shape)


def encoded(images: Tensor, encoder: nn.Module) -> Tensor:
    """The features of one episode, encoded on its own."""
    with torch.no_grad():
        return encoder.eval()(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def share(features: Tensor, shot: int, similarity: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Counts the queries whose most similar mean shot is that of their class, one by one."""
    means = features[:, :shot].mean(dim=1)
    right = [
        int(torch.stack([similarity(query, mean) for mean in means]).argmax()) == label
        for label, queries in enumerate(features[:, shot:])
        for query in queries
    ]
    return sum(right) / len(right)


def cosine(query: Tensor, mean: Tensor) -> Tensor:
    return (query @ mean) / (query.norm() * mean.norm())


def nearness(query: Tensor, mean: Tensor) -> Tensor:
    return -((query - mean) ** 2).sum()


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    confidence, predicted = probabilities.max(dim=1)
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            right = (predicted == labels)[inside].double().mean()
            error += float((right - confidence[inside].mean()).abs() * inside.double().mean())
    return error


@pytest.mark.parametrize(("metric", "similarity"), [("cos", cosine), ("sqr", nearness)], ids=["cos", "sqr"])
def test_accuracies_are_those_of_encoding_each_episode_anew(
    metric: str, similarity: Callable[[Tensor, Tensor], Tensor]
) -> None:
    dataset, encoder = dataset_of(), InDouble(0)
    evaluation = evaluation_of(dataset)
    figures = evaluation.accuracies(evaluation.embed(encoder), metric)
    expected: dict[str, float] = {}
    for split in ("validation", "test"):
        for shot in (1, 4):
            episodes = drawn(dataset, split, shot)
            shares = [
                share(encoded(seen(dataset, split, each), encoder), shot, similarity) for each in episodes
            ]
            assert len(set(shares)) > 1  # episodes differ, and the interval is one
            assert 0.35 < sum(shares) / 12 < 0.99
            name = f"{split}_{shot}shot"
            expected[name] = 100 * sum(shares) / len(shares)
            expected[f"{name}_interval"] = 100 * stats.sem(shares) * stats.t.ppf(0.975, 11)
    assert figures == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", ["cos", "sqr"])
def test_fidelity_is_that_of_the_models_forward_pass(metric: str) -> None:
    dataset = dataset_of()
    student, teacher = (MetaBaseline(InDouble(seed), metric, 8.0 - seed).eval() for seed in (0, 1))
    evaluation = evaluation_of(dataset)
    figures = evaluation.fidelity(
        evaluation.embed(student.encoder),
        student.classify,
        evaluation.embed(teacher.encoder),
        teacher.classify,
    )
    expected: dict[str, float] = {}
    for split in ("validation", "test"):
        logits: dict[MetaBaseline, Tensor] = {}
        for model in (student, teacher):
            rows = []
            for positions in drawn(dataset, split, 1):  # the first number of shots
                episode = seen(dataset, split, positions)[None]
                with torch.no_grad():
                    rows.append(model(episode[:, :, :1], episode[:, :, 1:].flatten(1, 2))[0])
            logits[model] = torch.cat(rows)
        labels = torch.arange(3).repeat_interleave(5).repeat(12)
        predictions = {model: each.argmax(dim=1) for model, each in logits.items()}
        expected[f"{split}_loss"] = float(F.cross_entropy(logits[student], labels))
        expected[f"{split}_ece"] = calibration_error(logits[student].softmax(dim=1), labels)
        expected[f"{split}_agreement"] = 100 * float(
            (predictions[student] == predictions[teacher]).double().mean()
        )
        log_ratio = logits[teacher].log_softmax(1) - logits[student].log_softmax(1)
        expected[f"{split}_teacher_kl"] = float((logits[teacher].softmax(1) * log_ratio).sum(1).mean())
    assert figures == pytest.approx(expected, rel=1e-9)
    assert 0 < figures["test_agreement"] < 100


def test_without_a_teacher_there_is_no_fidelity_to_it() -> None:
    evaluation, student = evaluation_of(dataset_of()), MetaBaseline(InDouble(0))
    figures = evaluation.fidelity(evaluation.embed(student.encoder), student.classify)
    assert set(figures) == {"validation_loss", "validation_ece", "test_loss", "test_ece"}


def test_without_validation_images_the_test_alone_is_evaluated() -> None:
    evaluation, encoder = evaluation_of(dataset_of(validation=False)), InDouble(0)
    features = evaluation.embed(encoder)
    assert set(features) == {"test"}
    assert {name.split("_")[0] for name in evaluation.accuracies(features)} == {"test"}
    assert {name.split("_")[0] for name in evaluation.fidelity(features, MetaBaseline(encoder).classify)} == {
        "test"
    }


def test_an_image_is_encoded_once_and_only_if_an_episode_has_it() -> None:
    few = Episodes(way=2, shots=(1, 3), query=2, episodes_per_batch=2, batches=2, seed=0)
    dataset, encoder = dataset_of(), InDouble(0)
    features = evaluation_of(dataset, few).embed(encoder)
    for split in ("validation", "test"):
        wanted = torch.cat([drawn(dataset, split, shot, few).flatten() for shot in (1, 3)]).unique()
        known = ~features[split].isnan().any(dim=1)
        assert known.nonzero().flatten().tolist() == wanted.tolist()
    assert sum(encoder.sizes) == sum(int((~each.isnan().any(dim=1)).sum()) for each in features.values())
    assert sum(encoder.sizes) < 48 + 60
    assert max(encoder.sizes) <= 16


def test_the_episodes_are_the_same_whenever_it_is_asked() -> None:
    dataset, encoder = dataset_of(), InDouble(0)
    evaluation = evaluation_of(dataset)
    first = evaluation.accuracies(evaluation.embed(encoder))
    torch.manual_seed(5)
    torch.rand(3)
    assert evaluation.accuracies(evaluation.embed(encoder)) == first
    assert evaluation_of(dataset_of()).accuracies(evaluation.embed(encoder)) == first
    other = evaluation_of(dataset, Episodes(**{**vars(EPISODES), "seed": 8}))
    assert other.accuracies(other.embed(encoder)) != first


def test_the_splits_and_the_numbers_of_shots_have_episodes_of_their_own() -> None:
    dataset = dataset_of()
    assert dataset.validation is not None
    one = EPISODES.sampler(dataset.test, dataset.test_classes, 1)
    fingerprints = {
        one.fingerprint,
        EPISODES.sampler(dataset.test, dataset.test_classes, 4).fingerprint,
        EPISODES.sampler(dataset.validation, dataset.validation_classes, 1).fingerprint,
    }
    assert len(fingerprints) == 3
    assert (one.way, one.shot, one.query, len(one)) == (3, 1, 5, 4)


def test_a_student_is_put_into_evaluation_mode() -> None:
    encoder = InDouble(0).train()
    statistics = {key: value.clone() for key, value in encoder.state_dict().items()}
    evaluation_of(dataset_of()).embed(encoder)
    assert all(torch.equal(value, statistics[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_the_precision_of_the_encoder_does_not_reach_the_comparison(precision: torch.dtype) -> None:
    """The trainer evaluates within autocast: features may be coarse, their similarities must not be."""
    evaluation, student = evaluation_of(dataset_of()), MetaBaseline(InDouble(0))
    features = {split: each.float() for split, each in evaluation.embed(student.encoder).items()}
    expected = evaluation.accuracies(features) | evaluation.fidelity(features, student.classify)
    with torch.autocast("cpu", precision):
        found = evaluation.accuracies(features) | evaluation.fidelity(features, student.classify)
    assert found == expected


def test_an_interval_is_students_and_a_single_episode_has_none() -> None:
    shares = torch.tensor([0.2, 0.5, 0.9, 0.4], dtype=torch.float64)
    half = float(stats.t.ppf(0.975, 3) * shares.std() / math.sqrt(4)) * 100
    assert accuracy_figures("x", shares) == pytest.approx({"x": 50.0, "x_interval": half}, rel=1e-12)
    assert accuracy_figures("x", shares[:1]) == {"x": 20.0}


def test_features_that_are_not_finite_are_refused() -> None:
    evaluation = evaluation_of(dataset_of())
    features = evaluation.embed(InDouble(0))
    features["test"][drawn(dataset_of(), "test", 4)[-1, 0, 0]] = math.inf
    with pytest.raises(UserError, match="not finite"):
        evaluation.accuracies(features)
