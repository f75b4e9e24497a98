"""Episodes from embeddings have the figures of episodes that are encoded anew."""

import pytest
import torch
from torch import Tensor, nn

from gda.data.dataset import ImageSplit
from gda.data.few_shot.episode_loader import EpisodeLoader
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.loader import TensorLoader
from gda.data.transforms import HorizontalFlip, Transform
from gda.errors import UserError
from gda.models import create_model
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.seeding import seeded
from gda.tasks.embeddings import embed, evaluate_episodes
from gda.tasks.episode_metrics import (
    logistic_regression_accuracy,
    nearest_centroid_accuracy,
    single_class_auc,
)

STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}


class Double(nn.Module):
    """An encoder in float64, in which rounding can hardly make another class the nearest."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.double()
        self.largest = 0

    def forward(self, images: Tensor) -> Tensor:
        self.largest = max(self.largest, len(images))
        return self.encoder(images.double())


@pytest.fixture
def split() -> ImageSplit:
    """Six classes of noisy patterns, 12 images each, mixed."""
    draws = torch.Generator().manual_seed(0)
    targets = torch.randperm(72, generator=draws) % 6
    patterns = torch.randint(60, 196, (6, 3, 16, 16), generator=draws)
    noise = torch.randint(-60, 61, (72, 3, 16, 16), generator=draws)
    return ImageSplit((patterns[targets] + 2 * noise).clamp(0, 255).to(torch.uint8), targets)


@pytest.fixture
def encoder() -> Double:
    with seeded(0, "encoder"):
        encoder = create_model("convnet4", None, image_size=16)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that evaluation mode must use
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return Double(encoder)


def make_loader(split: ImageSplit, **options: bool) -> TensorLoader:
    return TensorLoader(split, 16, {}, **STATISTICS, **options)


@pytest.mark.parametrize("metric", ["cos", "sqr"])
def test_accuracies_equal_those_of_encoding_every_episode_anew(
    split: ImageSplit, encoder: Double, metric: str
) -> None:
    sampler = EpisodeSampler(split.targets, 5, 2, 5, episodes_per_batch=3, batches=4, seed=1)
    features = embed(encoder, make_loader(split))

    def score(shots: Tensor, queries: Tensor) -> Tensor:
        return nearest_centroid_accuracy(shots, queries, metric)

    found = evaluate_episodes(features, sampler, score, epoch=2, epochs=2)
    anew = []
    model = MetaBaseline(encoder, metric).eval()
    episodes = EpisodeLoader(split, sampler, {}, **STATISTICS)
    with torch.no_grad():
        for epoch in (2, 3):
            for batch in episodes.batches(epoch):
                nearest = model(batch.shots, batch.queries).argmax(dim=2)
                anew.append((nearest == batch.targets).double().mean(dim=1))
    assert found.shape == (24,)
    assert torch.equal(found, torch.cat(anew))
    assert 0.3 < found.mean() < 0.98


def test_features_are_those_of_each_image_alone(split: ImageSplit, encoder: Double) -> None:
    encoder.train()
    features = embed(encoder, make_loader(split))
    assert not features.requires_grad
    assert encoder.largest == 16  # no batch is larger than the loader's
    encoder.eval()
    for position in (0, 15, 16, 71):
        image = (split.images[position][None].float() / 255 - 0.5) / 0.25
        with torch.no_grad():
            torch.testing.assert_close(features[position], encoder(image)[0], atol=1e-5, rtol=1e-5)


def test_encoders_and_statistics_keep_their_values(split: ImageSplit, encoder: Double) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embed(encoder.train(), make_loader(split))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_only_the_images_that_occur_need_to_be_embedded(split: ImageSplit, encoder: Double) -> None:
    sampler = EpisodeSampler(split.targets, 3, 1, 4, episodes_per_batch=2, batches=2)
    positions = sampler.positions()
    assert 0 < len(positions) < len(split)
    whole, part = embed(encoder, make_loader(split)), embed(encoder, make_loader(split), positions)
    torch.testing.assert_close(part[positions], whole[positions], atol=1e-12, rtol=1e-12)
    others = torch.ones(len(split), dtype=torch.bool)
    others[positions] = False
    assert part[others].isnan().all()
    for score in (nearest_centroid_accuracy, logistic_regression_accuracy, single_class_auc):
        assert torch.equal(evaluate_episodes(part, sampler, score), evaluate_episodes(whole, sampler, score))
    with pytest.raises(UserError, match="not finite"):
        evaluate_episodes(part, sampler, epoch=1)


def test_half_precision_features_are_kept_in_float32(split: ImageSplit) -> None:
    encoder = create_model("convnet4", None, image_size=16).bfloat16()

    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return encoder.eval()(images.bfloat16())

    assert embed(Half(), make_loader(split)).dtype == torch.float32


def test_loaders_for_training_and_features_of_another_split_are_refused(
    split: ImageSplit, encoder: Double
) -> None:
    flip: dict[str, Transform] = {"flip": HorizontalFlip()}
    with pytest.raises(ValueError, match="without shuffling"):
        embed(encoder, TensorLoader(split, 16, flip, **STATISTICS, shuffle=True))
    with pytest.raises(ValueError, match="71 features are not those of 72 images"):
        evaluate_episodes(torch.zeros(71, 4), EpisodeSampler(split.targets, 3, 1, 4))
