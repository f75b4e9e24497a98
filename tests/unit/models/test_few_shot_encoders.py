"""Few-shot encoders, heads and Meta-Baseline: what holds for any weights, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.errors import UserError
from gda.models import create_model, describe, features
from gda.models.zoo.heads import HEADS, LinearHead, NearestPrototypeHead
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.models.zoo.similarity import cosine, negative_squared_distance

ENCODERS: list[tuple[str, dict[str, Any]]] = [
    ("convnet4", {}),
    ("resnet12_bottle", {}),
    ("resnet18_bottle", {}),
    ("resnet12", {"pooling": True}),
]
METRICS = ["cos", "sqr"]
SCALES = [f"stage{number}{end}" for number in (1, 2, 3, 4) for end in ("", ":pre")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Flat(nn.Module):
    """An encoder that hands images on as vectors, and remembers the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x.flatten(1)


@pytest.mark.parametrize(("name", "options"), ENCODERS)
def test_stages_halve_an_image_of_80_pixels_before_and_after_the_activation(
    name: str, options: dict[str, Any]
) -> None:
    taps = describe(create_model(name, 5, **options), [*SCALES, "pooled"], image_size=80)
    for number, size in ((1, 40), (2, 20), (3, 10), (4, 5)):
        after, before = taps[f"stage{number}"], taps[f"stage{number}:pre"]
        assert after.shape[1:] == (size, size)
        assert before.shape == after.shape
        assert (before.activated, after.activated) == (False, True)
    assert taps["pooled"].shape == (create_model(name, None, **options).out_features,)


@pytest.mark.parametrize(("name", "options"), ENCODERS)
def test_a_stage_is_its_map_before_the_activation_activated(name: str, options: dict[str, Any]) -> None:
    slope = 0.0 if name == "convnet4" else 0.1
    model = create_model(name, None, **options)
    with features(model, [*SCALES, "pooled"]) as taps:
        out = model(normal(2, 3, 32, 32).float())
    maps = taps.collect()
    assert maps["pooled"] is out
    for number in (1, 2, 3, 4):
        before = maps[f"stage{number}:pre"]
        assert before.min() < 0
        assert torch.equal(maps[f"stage{number}"], nn.functional.leaky_relu(before, slope))


def test_a_resnet12_without_pooling_has_no_stages_but_layers() -> None:
    model = create_model("resnet12", None)
    with pytest.raises(UserError, match=r"the model has no stage2; .* it has final, pooled"):
        features(model, ["stage2"])
    taps = describe(model, ["layer1", "layer4", "pooled"], image_size=8)
    assert taps["layer1"].shape == (64, 8, 8)
    assert taps["layer4"].shape == (512, 8, 8)
    assert taps["pooled"].shape == (512,)


def test_the_two_resnet12_have_the_same_parameters_and_different_outputs() -> None:
    plain, pooled = create_model("resnet12", None), create_model("resnet12", None, pooling=True)
    pooled.load_state_dict(plain.state_dict())
    images = normal(1, 3, 16, 16).float()
    assert not torch.allclose(plain.eval()(images), pooled.eval()(images))


@pytest.mark.parametrize("head", HEADS)
def test_a_head_gets_the_pooled_vector(head: str) -> None:
    model = create_model("convnet4", 7, head=head, image_size=32)
    images = normal(2, 3, 32, 32).float()
    with features(model, ["pooled"]) as taps:
        logits = model(images)
    assert logits.shape == (2, 7)
    pooled = taps.collect()["pooled"]
    assert pooled.shape == (2, 256)
    assert torch.equal(model.classifier(pooled), logits)


@pytest.mark.parametrize("head", HEADS)
def test_encoder_and_head_are_trained(head: str) -> None:
    model = create_model("convnet4", 3, head=head, image_size=16)
    nn.functional.cross_entropy(model(normal(4, 3, 16, 16).float()), torch.tensor([0, 1, 2, 0])).backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.classifier.parameters())
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


@pytest.mark.parametrize("size", [16, 28, 31, 32, 33, 64, 80, 84])
def test_convnet4_with_a_head_takes_images_of_the_size_it_was_built_for(size: int) -> None:
    model = create_model("convnet4", 5, image_size=size).eval()
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)


def test_convnet4_for_80_pixels_says_what_images_of_32_need() -> None:
    model = create_model("convnet4", 5)
    with pytest.raises(UserError, match=r"takes 1600 features, .*32x32 pixels give 256; .*image_size=32"):
        model(torch.zeros(2, 3, 32, 32))
    assert model.eval()(torch.zeros(2, 3, 84, 84)).shape == (2, 5)


@pytest.mark.parametrize("name", ["convnet4", "resnet12_bottle"])
def test_images_that_would_be_pooled_away_are_refused(name: str) -> None:
    model = create_model(name, 5)
    with pytest.raises(UserError, match=r"need 16 pixels or more, not 8x8"):
        model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(UserError, match=r"not 16x15"):
        model(torch.zeros(2, 3, 16, 15))
    if name == "convnet4":
        with pytest.raises(UserError, match=r"image_size=8 is too small"):
            create_model(name, 5, image_size=8)


@pytest.mark.parametrize("size", [16, 28, 33])
def test_a_pooled_resnet_takes_any_size_from_16_pixels_on(size: int) -> None:
    assert create_model("resnet12_bottle", 5)(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_unknown_heads_metrics_and_options_are_refused() -> None:
    with pytest.raises(UserError, match="no head 'cosin'; did you mean 'cosine'"):
        create_model("convnet4", 5, head="cosin")
    cosine = create_model("resnet12_bottle", None, head="cosine")
    assert cosine.state_dict().keys() == create_model("resnet12_bottle", None).state_dict().keys()
    with pytest.raises(UserError, match="no metric 'dot'"):
        NearestPrototypeHead(4, 3, metric="dot")
    with pytest.raises(UserError, match="no metric 'euclid'"):
        MetaBaseline(Flat(), metric="euclid")
    with pytest.raises(UserError, match=r"temperature .* above 0, not -1"):
        MetaBaseline(Flat(), temperature=-1)
    with pytest.raises(UserError, match=r"no option image_size\. .*It takes: head"):
        create_model("resnet12_bottle", 5, image_size=32)


def test_a_cosine_head_does_not_see_the_length_of_features_and_prototypes() -> None:
    head = NearestPrototypeHead(6, 4).double()
    images = normal(5, 6)
    logits = head(images)
    assert torch.allclose(head(images * normal(5, 1, seed=1).abs()), logits)
    head.proto.data *= normal(4, 1, seed=2).abs()
    assert torch.allclose(head(images), logits)
    assert logits.abs().max() <= head.temp


def test_an_image_at_a_prototype_is_of_its_class() -> None:
    for metric in METRICS:
        head = NearestPrototypeHead(6, 4, metric=metric)
        assert head(head.proto.detach()).argmax(1).tolist() == [0, 1, 2, 3]


def test_squared_distances_do_not_see_a_common_shift_and_keep_small_differences() -> None:
    points, prototypes, shift = normal(5, 6), normal(4, 6, seed=1), normal(6, seed=2)
    logits = negative_squared_distance(points, prototypes)
    assert torch.allclose(negative_squared_distance(points + shift, prototypes + shift), logits)
    far = torch.full((1, 3), 1000.0)
    assert negative_squared_distance(far, far + 0.25).item() == pytest.approx(-3 * 0.25**2)


def test_a_vector_of_zeros_has_finite_similarities_and_gradients() -> None:
    zeros = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    similarity = cosine(zeros, normal(4, 6))
    assert torch.equal(similarity, torch.zeros(1, 4, dtype=torch.float64))
    similarity.sum().backward()
    assert zeros.grad.isfinite().all()


def test_the_temperature_is_learned_for_cosines_only_unless_it_is_given() -> None:
    assert isinstance(NearestPrototypeHead(6, 4).temp, nn.Parameter)
    assert NearestPrototypeHead(6, 4, metric="sqr").temp == 1
    fixed = NearestPrototypeHead(6, 4, temperature=3.0).double()
    assert list(fixed.state_dict()) == ["proto"]
    assert torch.allclose(fixed(normal(2, 6)), 3 * cosine(normal(2, 6), fixed.proto))


@pytest.mark.parametrize("metric", METRICS)
def test_permuting_the_ways_permutes_the_logits(metric: str) -> None:
    model = MetaBaseline(Flat(), metric).double()
    shots, queries = normal(2, 5, 3, 1, 2, 4), normal(2, 6, 1, 2, 4, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(model(shots[:, order], queries), model(shots, queries)[..., order])


@pytest.mark.parametrize("metric", METRICS)
def test_episodes_queries_and_the_order_of_shots_do_not_mix(metric: str) -> None:
    model = MetaBaseline(Flat(), metric).double()
    shots, queries = normal(2, 5, 3, 1, 2, 4), normal(2, 6, 1, 2, 4, seed=1)
    logits = model(shots, queries)
    assert logits.shape == (2, 6, 5)
    assert torch.allclose(model(shots[1:], queries[1:, 2:4]), logits[1:, 2:4])
    assert torch.allclose(model(shots.flip(2), queries), logits)


def test_raw_features_are_averaged_before_they_are_normalised() -> None:
    shots = torch.tensor([[10.0, 0.0], [0.0, 1.0]], dtype=torch.float64).reshape(1, 1, 2, 1, 1, 2)
    query = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 1, 1, 1, 2)
    logit = MetaBaseline(Flat()).double()(shots, query)
    assert logit.item() == pytest.approx(10 * 10 / 101**0.5)


def test_shots_and_queries_are_encoded_in_one_pass() -> None:
    model = MetaBaseline(Flat())
    model(torch.rand(4, 5, 2, 3, 4, 4), torch.rand(4, 15, 3, 4, 4))
    assert model.encoder.batches == [4 * 5 * 2 + 4 * 15]


def test_known_features_are_classified_as_their_images_are() -> None:
    model = MetaBaseline(create_model("convnet4", None), learnable_temperature=False).double().eval()
    shots, queries = normal(1, 2, 3, 3, 16, 16), normal(1, 4, 3, 16, 16, seed=1)
    of_shots = model.encoder(shots.flatten(0, 2)).reshape(1, 2, 3, -1)
    of_queries = model.encoder(queries.flatten(0, 1)).reshape(1, 4, -1)
    assert torch.allclose(model.classify(of_shots, of_queries), model(shots, queries))
    assert not any(key == "temp" for key in model.state_dict())


def test_the_temperature_gets_a_gradient_and_travels_with_the_weights() -> None:
    model = MetaBaseline(Flat(), temperature=4.0)
    model(torch.rand(1, 2, 1, 1, 2, 2), torch.rand(1, 3, 1, 2, 2)).sum().backward()
    assert model.temp.grad != 0
    other = MetaBaseline(Flat())
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert other.temp.item() == 4


@pytest.mark.parametrize(
    ("shots", "queries"),
    [
        ((5, 1, 3, 8, 8), (1, 15, 3, 8, 8)),
        ((1, 5, 1, 3, 8, 8), (15, 3, 8, 8)),
        ((2, 5, 1, 3, 8, 8), (1, 15, 3, 8, 8)),
        ((1, 5, 1, 3, 8, 8), (1, 15, 3, 9, 9)),
    ],
)
def test_episodes_of_other_shapes_are_refused(shots: tuple[int, ...], queries: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"shots \(episodes, way, shot, channels, h, w\)"):
        MetaBaseline(Flat())(torch.zeros(shots), torch.zeros(queries))


def test_linear_heads_are_torch_linear_layers() -> None:
    head = LinearHead(6, 4).double()
    assert torch.allclose(head(normal(2, 6)), normal(2, 6) @ head.linear.weight.T + head.linear.bias)
