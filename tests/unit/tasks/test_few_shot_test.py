"""The test of a finished few-shot student: every figure by hand, and what is kept of each episode."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from gda.app import finish
from gda.config.schema import Recipe
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.few_shot.source import FewShotDataset
from gda.models import create_model
from gda.seeding import seeded
from gda.tasks.few_shot_test import FewShotTest, TestFigures

Compose = Callable[..., dict[str, Any]]

CPU = torch.device("cpu")
WAY, QUERY, PER_BATCH, BATCHES, PROBED = 3, 5, 4, 6, 2
OPTIONS: dict[str, Any] = {
    "way": WAY,
    "shots": (1, 4),
    "query": QUERY,
    "episodes_per_batch": PER_BATCH,
    "batches": BATCHES,
    "probe_batches": PROBED,
    "episode_seed": 5,
}
RECIPE = Recipe(
    name="tiny",
    epochs=1,
    batch_size=24,
    evaluation_batch_size=16,
    drop_last=False,
    label_smoothing=0.0,
    validation=0.0,
    statistics="",
    lr=0.05,
    lr_by_model={},
    optimizer={},
    decay_norm_and_bias=True,
    gradient_clip=None,
    schedule={},
)


def split_of(classes: int, per_class: int, seed: int) -> ImageSplit:
    """Noisy patterns, one a class, in a mixed order."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randperm(classes * per_class, generator=draws) % classes
    patterns = torch.randint(60, 196, (classes, 3, 16, 16), generator=draws)
    noise = torch.randint(-120, 121, (len(targets), 3, 16, 16), generator=draws)
    return ImageSplit((patterns[targets] + noise).clamp(0, 255).to(torch.uint8), targets)


def dataset_of(base_test: bool = True) -> FewShotDataset:
    return FewShotDataset(
        name="fake",
        base_classes=tuple("abcdef"),
        validation_classes=(),
        test_classes=tuple("vwxyz"),
        base=split_of(6, 12, 1),
        base_validation=None,
        base_test=split_of(6, 5, 3) if base_test else None,
        validation=None,
        test=split_of(5, 12, 5),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def student_of(name: str = "convnet4", classes: int | None = 6) -> Any:
    """A student in float64; images are converted where they enter."""
    with seeded(0, "model"):
        model: Any = create_model(
            name, classes, **({"image_size": 16} if name == "convnet4" else {})
        ).double()
    whole = hasattr(model, "classifier") and name == "convnet4"
    for entrance in {model, model.encoder if whole else model}:
        entrance.register_forward_pre_hook(to_double)
    return model


def to_double(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].double(),)


def make_test(student: Any, has_head: bool = True, base_test: bool = True, **options: Any) -> FewShotTest:
    named = {**OPTIONS, **options}
    return FewShotTest(student, has_head, dataset_of(base_test), RECIPE, {}, CPU, False, **named)


def encoder_by_hand(student: Any) -> Callable[[Tensor], Tensor]:
    """The features by a hook of our own on the last linear layer; an encoder's are its output."""
    heads = [module for module in student.modules() if isinstance(module, nn.Linear)]

    def encode(images: Tensor) -> Tensor:
        caught: list[Tensor] = []
        hooks = [
            head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
            for head in heads[-1:]
        ]
        with torch.no_grad():
            output: Tensor = student.eval()(images)
        for hook in hooks:
            hook.remove()
        return caught[0] if caught else output

    return encode


def episodes_by_hand(student: Any, way: int, shot: int, batches: int = BATCHES) -> list[Tensor]:
    """Features of each episode ``(way, shot + query, width)``, each encoded anew and on its own."""
    test, encode = dataset_of().test, encoder_by_hand(student)
    sampler = EpisodeSampler(test.targets, way, shot, QUERY, PER_BATCH, batches, 5)
    positions = torch.cat(list(sampler.batches()))
    pixels = [(test.images[each.flatten()].float() - 127.5) / 63.75 for each in positions]
    return [encode(each).unflatten(0, positions.shape[1:]) for each in pixels]


def accuracy(features: Tensor, shot: int, metric: str = "cos") -> float:
    means, queries = features[:, :shot].mean(dim=1), features[:, shot:].flatten(0, 1)
    if metric == "cos":
        similarity = F.cosine_similarity(queries[:, None], means[None], dim=2)
    else:
        similarity = -(queries[:, None] - means[None]).square().sum(dim=2)
    right = similarity.argmax(dim=1) == torch.arange(len(means)).repeat_interleave(QUERY)
    return float(right.double().mean())


def area(features: Tensor, shot: int) -> float:
    """How well the first class's mean shot tells its queries from those of the second."""
    mean, queries = features[0, :shot].mean(dim=0), features[:, shot:].flatten(0, 1)
    scores = F.cosine_similarity(queries, mean[None], dim=1)
    return float(roc_auc_score([1] * QUERY + [0] * QUERY, scores.numpy()))


def probe(features: Tensor, shot: int) -> float:
    unit = F.normalize(features, dim=2).numpy()
    labels = np.arange(WAY)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(
        unit[:, :shot].reshape(WAY * shot, -1), labels.repeat(shot)
    )
    return float(fitted.score(unit[:, shot:].reshape(WAY * QUERY, -1), labels.repeat(QUERY)))


def half_width(values: list[float]) -> float:
    return float(100 * stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


@pytest.mark.parametrize(
    ("name", "classes"),
    [("convnet4", 6), ("convnet4", None), ("resnet8", 6), ("resnet8", None)],
    ids=["encoder_with_head", "encoder", "cifar_model", "cifar_model_without_head"],
)
def test_every_figure_is_that_of_encoding_each_episode_anew(name: str, classes: int | None) -> None:
    student = student_of(name, classes)
    found = make_test(student, has_head=classes is not None).measure()
    episodes: dict[str, list[float]] = {}
    figures: dict[str, float] = {}
    for shot in (1, 4):
        of_shot = f"test_{shot}shot"
        novel = episodes_by_hand(student, WAY, shot)
        episodes[of_shot] = [accuracy(each, shot) for each in novel]
        episodes[f"{of_shot}_auc"] = [area(each, shot) for each in episodes_by_hand(student, 2, shot)]
        episodes[f"{of_shot}_probe"] = [probe(each, shot) for each in novel[: PROBED * PER_BATCH]]
        by_batch = np.array(episodes[of_shot]).reshape(BATCHES, PER_BATCH).mean(axis=1)
        figures[f"{of_shot}_batch_interval"] = half_width(by_batch.tolist())
    for reading, shares in episodes.items():
        figures |= {reading: 100 * sum(shares) / len(shares), f"{reading}_interval": half_width(shares)}
        assert len(set(shares)) > 1
    base = dataset_of().base_test
    assert base is not None
    if classes is not None:
        with torch.no_grad():
            right = student((base.images.float() - 127.5) / 63.75).argmax(dim=1) == base.targets
        figures["base_test_top1"] = 100 * float(right.double().mean())
    assert found.figures == pytest.approx(figures, rel=1e-9)
    assert {reading: shares.tolist() for reading, shares in found.episodes.items()} == {
        reading: pytest.approx(shares, rel=1e-9) for reading, shares in episodes.items()
    }


@pytest.mark.parametrize(
    ("own", "stage", "metric"),
    [
        (None, {"metric": "sqr"}, "sqr"),
        (None, {"way": 5}, "cos"),
        (None, None, "cos"),
        ("cos", {"metric": "sqr"}, "cos"),
        ("sqr", None, "sqr"),
    ],
    ids=["of_the_stage", "of_a_classifier", "of_no_stage", "own_before_stage", "own"],
)
def test_the_metric_is_that_of_the_tested_stage_unless_it_is_given(
    own: str | None, stage: dict[str, Any] | None, metric: str
) -> None:
    student = student_of()
    found = make_test(student, metric=own, stage=stage, auc=False, probe=False).measure()
    by_metric = {
        each: [accuracy(features, 1, each) for features in episodes_by_hand(student, WAY, 1)]
        for each in ("cos", "sqr")
    }
    assert by_metric["cos"] != by_metric["sqr"]
    assert found.episodes["test_1shot"].tolist() == pytest.approx(by_metric[metric], rel=1e-9)


@pytest.mark.parametrize(("probed", "expected"), [(1, 4), (2, 8), (99, 24)])
def test_the_probe_is_fitted_to_the_first_episodes(probed: int, expected: int) -> None:
    found = make_test(student_of(), probe_batches=probed, shots=[1]).measure()
    assert found.episodes["test_1shot_probe"].shape == (expected,)
    assert found.episodes["test_1shot"].shape == found.episodes["test_1shot_auc"].shape == (24,)
    more = make_test(student_of(), probe_batches=3, shots=[1]).measure()
    common = min(expected, 12)
    assert torch.equal(
        found.episodes["test_1shot_probe"][:common], more.episodes["test_1shot_probe"][:common]
    )


def test_what_is_not_asked_for_is_not_measured() -> None:
    found = make_test(student_of(), auc=False, probe=False, shots=[4]).measure()
    assert set(found.episodes) == set(found.fingerprints) == {"test_4shot"}
    assert set(found.figures) == {
        "test_4shot",
        "test_4shot_interval",
        "test_4shot_batch_interval",
        "base_test_top1",
    }


def test_a_single_batch_has_no_interval_over_batches() -> None:
    found = make_test(student_of(), batches=1, probe=False, auc=False, shots=[1]).measure()
    assert "test_1shot_interval" in found.figures
    assert "test_1shot_batch_interval" not in found.figures


@pytest.mark.parametrize(
    ("has_head", "base_test"), [(False, True), (True, False)], ids=["no_head", "no_images"]
)
def test_there_is_a_base_accuracy_only_with_a_head_and_images(has_head: bool, base_test: bool) -> None:
    figures = make_test(student_of(), has_head, base_test).measure().figures
    assert "base_test_top1" not in figures


def test_the_students_statistics_and_mode_are_those_of_evaluation() -> None:
    student = student_of().train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    measured = make_test(student).measure()
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert measured.figures == make_test(student_of().eval()).measure().figures


def test_the_shares_of_episodes_are_float64_in_the_unit_interval() -> None:
    found = make_test(student_of()).measure()
    names = {f"test_{shot}shot{end}" for shot in (1, 4) for end in ("", "_auc", "_probe")}
    assert set(found.episodes) == set(found.fingerprints) == names
    for shares in found.episodes.values():
        assert shares.dtype == torch.float64
        assert shares.ndim == 1
        assert 0 <= float(shares.min()) <= float(shares.max()) <= 1


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"episode_seed": 6}, set()),
        ({"query": 4}, set()),
        ({"episodes_per_batch": 2}, set()),
        ({"batches": 5}, {"test_4shot_probe"}),  # its own number of batches is the same
        ({"probe_batches": 3}, {"test_4shot", "test_4shot_auc"}),
        ({"way": 4}, {"test_4shot_auc"}),  # two ways, always
        ({"shots": (4,)}, {"test_4shot", "test_4shot_auc", "test_4shot_probe"}),
        ({"metric": "sqr"}, {"test_4shot", "test_4shot_auc", "test_4shot_probe"}),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_fingerprints_are_equal_for_identical_episodes_and_no_others(
    change: dict[str, Any], same: set[str]
) -> None:
    one = make_test(student_of()).measure().fingerprints
    other = make_test(student_of("resnet8", None), has_head=False, **change).measure().fingerprints
    assert len(set(one.values())) == len(one)  # other shots, other readings: other episodes
    names = {f"test_4shot{end}" for end in ("", "_auc", "_probe")}
    assert {name for name in names if one[name] == other[name]} == same


def test_equal_episodes_are_those_of_equal_fingerprints() -> None:
    one, again = (make_test(student_of()).measure() for _ in range(2))
    assert one.fingerprints == again.fingerprints
    assert all(torch.equal(shares, again.episodes[name]) for name, shares in one.episodes.items())
    other = make_test(student_of(), episode_seed=6).measure()
    assert not any(torch.equal(shares, other.episodes[name]) for name, shares in one.episodes.items())


class Fixed(nn.Module):
    """Features in float32 whose making no autocast touches: a large common part, and small differences."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 + images.flatten(1)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_episodes_are_compared_in_full_precision(precision: torch.dtype) -> None:
    """A test runs within autocast: features may be coarse, their similarities must not be."""
    expected = make_test(Fixed(), has_head=False).measure().episodes
    with torch.autocast("cpu", precision):
        found = make_test(Fixed(), has_head=False).measure().episodes
    assert {name for name, shares in expected.items() if not torch.equal(shares, found[name])} == set()


# --- runs


TINY = (
    "dataset=digits_few_shot",
    "student=convnet4",
    "student.image_size=16",
    "teacher=none",
    "distiller=vanilla",
    "alignment=none",
    "task=few_shot_test",
    "task.batches=5",
    "task.probe_batches=2",
    "encoder=classifier",
    "recipe.epochs=1",
    "tracking=none",
    "trainer.device=cpu",
    "trainer.threads=1",
)
CLASSIFIER = (
    "task@task.stage=few_shot_classifier",
    "task.stage.batches=2",
    "recipe=digits_few_shot_classifier",
)


def test_a_run_keeps_its_figures_its_episodes_and_what_it_tested(compose: Compose, runs: Path) -> None:
    config = compose(*TINY, *CLASSIFIER, f"runs={runs}")
    finished = finish(config)
    (row,) = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert finished.result == {
        "last": row,
        "best": None,
        "test_1shot_oracle": row["test_1shot"],
        "oracle_epoch": 1,
    }
    status = json.loads((finished.folder / "status.json").read_text())
    assert (status["state"], status["result"]) == ("done", finished.result)
    assert row["epoch"] == 1
    assert 0 < row["base_test_top1"] < 100
    with safe_open(finished.folder / "episodes.safetensors", "pt") as file:
        metadata, kept = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(kept) == {f"test_{shot}shot{end}" for shot in (1, 5) for end in ("", "_auc", "_probe")}
    assert set(metadata) == set(kept)
    for name, shares in kept.items():
        assert len(shares) == (8 if name.endswith("probe") else 20)
        assert row[name] == pytest.approx(100 * float(shares.mean()), rel=1e-12)
        assert row[f"{name}_interval"] == pytest.approx(half_width(shares.tolist()), rel=1e-9)
    facts = json.loads((finished.folder / "run.json").read_text())
    assert facts["figure"] == "1shot"
    folder = Path(facts["encoder_weights"]).parent
    assert json.loads((folder / "run.json").read_text())["group"] == facts["encoder_run"]["group"]
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert not (finished.folder / "last.pt").exists()
    assert finish(config).was_done


def test_a_meta_learner_is_tested_without_a_head(compose: Compose, runs: Path) -> None:
    stage = (
        "task.stage.train_batches=2",
        "task.stage.batches=2",
        "task.stage.metric=sqr",
        "recipe=digits_few_shot_meta",
        "recipe@encoder.recipe=digits_few_shot_classifier",
        "encoder.recipe.epochs=1",
        "encoder.task.batches=2",
    )
    finished = finish(compose(*TINY, *stage, f"runs={runs}"))
    last = finished.result["last"]
    assert "base_test_top1" not in last
    facts = json.loads((finished.folder / "run.json").read_text())
    weights = torch.load(facts["encoder_weights"], weights_only=True)["model"]
    assert "temp" in weights
    assert math.isfinite(last["test_1shot_batch_interval"])


def test_a_test_that_failed_is_marked_and_measured_again(
    compose: Compose, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*TINY, *CLASSIFIER, f"runs={runs}", "study=failing", "task.probe=false")
    measure = FewShotTest.measure

    def failing(task: FewShotTest) -> TestFigures:
        measure(task)
        raise RuntimeError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(FewShotTest, "measure", failing)
        with pytest.raises(Exception, match="on fire"):
            finish(config)
    (folder,) = (
        path.parent
        for path in (runs / "failing").glob("*/seed0/run.json")
        if json.loads(path.read_text())["task"] == "few_shot_test"
    )
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "on fire" in status["error"]
    assert not (folder / "episodes.safetensors").exists()
    finished = finish(config)
    assert (finished.folder, finished.was_done) == (folder, False)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"], status["attempt"]) == ("done", None, 2)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
