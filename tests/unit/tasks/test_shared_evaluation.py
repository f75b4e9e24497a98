"""Three real processes train on shares and count every image of an evaluation once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from gda.config.schema import Recipe
from gda.data.dataset import ImageSplit
from gda.data.few_shot.source import FewShotDataset
from gda.data.loader import TensorLoader
from gda.distillers import Distiller, Progress
from gda.distillers.ground_truth import Labels
from gda.distillers.kd import KD
from gda.models import create_model
from gda.ranks import rank, rank_count
from gda.seeding import seeded
from gda.tasks.embeddings import embed
from gda.tasks.few_shot_classifier import FewShotClassifierTask
from gda.tasks.few_shot_test import FewShotTest
from gda.tasks.meta_baseline import MetaBaselineTask
from gda.tasks.metrics import Metrics

RANKS = 3
CPU = torch.device("cpu")
EPISODES: dict[str, Any] = {"way": 3, "shots": (1, 4), "query": 5, "episodes_per_batch": 2, "batches": 4}
RECIPE = Recipe(
    name="tiny",
    epochs=2,
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
LAST = Progress(1, 2)


def split_of(classes: int, per_class: int, seed: int) -> ImageSplit:
    """Noisy patterns, one a class, in a mixed order."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randperm(classes * per_class, generator=draws) % classes
    patterns = torch.randint(60, 196, (classes, 3, 16, 16), generator=draws)
    noise = torch.randint(-100, 101, (len(targets), 3, 16, 16), generator=draws)
    return ImageSplit((patterns[targets] + noise).clamp(0, 255).to(torch.uint8), targets)


def dataset_of() -> FewShotDataset:
    """Evaluations of 4, 2, 3 and 4 batches: of some, the third process has none."""
    return FewShotDataset(
        name="fake",
        base_classes=tuple("abcdef"),
        validation_classes=tuple("ghij"),
        test_classes=tuple("vwxyz"),
        base=split_of(6, 10, 1),
        base_validation=split_of(6, 9, 2),
        base_test=split_of(6, 5, 3),
        validation=split_of(4, 12, 4),
        test=split_of(5, 12, 5),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


class Counted(nn.Module):
    """A model in float64 that counts the images it is shown."""

    def __init__(self, seed: int, classes: int | None = None) -> None:
        super().__init__()
        with seeded(seed, "model"):
            self.model = create_model("convnet4", classes, image_size=16).double()
        self.shown = 0

    @property
    def num_features(self) -> int:
        return self.model.num_features

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return self.model(images.double())


def classifier_task(teacher: bool = True) -> FewShotClassifierTask:
    def model_of(seed: int) -> nn.Module:
        with seeded(seed, "classifier"):
            model = create_model("convnet4", 6, image_size=16).double()
        model.encoder.register_forward_pre_hook(lambda module, images: (images[0].double(),))
        return model

    guide = model_of(1) if teacher else None
    distiller = Distiller(Labels(), 0.5, {"kd": (KD(), 0.5)} if teacher else {})
    options = {**EPISODES, "evaluate_every": 1}
    return FewShotClassifierTask(
        model_of(0), guide, distiller, dataset_of(), RECIPE, {}, {}, 0, CPU, False, **options
    )


def meta_task() -> MetaBaselineTask:
    distiller = Distiller(Labels(), 0.5, {"kd": (KD(), 0.5)})
    training = {"train_way": 3, "train_query": 4, "train_episodes_per_batch": 6, "train_batches": 2}
    return MetaBaselineTask(
        Counted(0),
        Counted(1),
        distiller,
        dataset_of(),
        RECIPE,
        {},
        {},
        0,
        CPU,
        channels_last=False,
        **training,
        **EPISODES,
    )


def few_shot_test() -> FewShotTest:
    with seeded(0, "tested"):
        student = create_model("convnet4", 6, image_size=16)
    return FewShotTest(student, True, dataset_of(), RECIPE, {}, CPU, False, **EPISODES, probe_batches=1)


def metrics_of(number: int) -> Metrics:
    """Sums of batches of 5 and 4, of 3, and of no images: the third process knows of no teacher."""
    metrics, draws = Metrics(), torch.Generator().manual_seed(number)
    for count in ((5, 4), (3,), ())[number]:
        logits = torch.randn(2, count, 7, generator=draws, dtype=torch.float64)
        metrics.update(logits[0], torch.arange(count) % 7, logits[1])
    return metrics


def found_of_process() -> dict[str, Any]:
    """All that is compared, as one process or as one of several finds it."""
    found: dict[str, Any] = {}
    task = classifier_task()
    found["classifier"] = task.evaluate(task.student, LAST)
    found["classifier again"] = task.evaluate(task.student, LAST)  # the teacher's logits are known by now
    found["classifier's teacher"] = task.evaluate_teacher()
    found["classifier's images"] = [(batch.indices, batch.total) for batch in task.batches(1)]
    alone = classifier_task(teacher=False)
    found["without teacher"] = alone.evaluate(alone.student, LAST), alone.evaluate_teacher()
    meta = meta_task()
    found["meta"] = meta.evaluate(meta.student, LAST)
    found["meta's teacher"] = meta.evaluate_teacher()
    batch = next(meta.batches(1))
    teacher = meta.ask_teacher(batch)
    assert teacher is not None
    found["meta's step"] = batch.indices, batch.total, teacher.logits
    found["test"] = few_shot_test().measure()
    encoder, loader = Counted(0), TensorLoader(split_of(6, 10, 1), 16, {}, [0.5] * 3, [0.25] * 3)
    found["features"] = embed(encoder, loader)
    found["shown"] = encoder.shown
    some = torch.tensor([3, 4, 8, 20, 33])
    found["few features"] = embed(encoder, loader, some)  # one batch: too few to share
    found["summed"] = metrics_of(rank()).over_ranks().result("") if rank_count() == RANKS else None
    return found


def work(number: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=RANKS)
    torch.save(found_of_process(), f"{results}/{number}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes found; they are started once."""
    folder: Path = tmp_path_factory.mktemp("evaluation")
    multiprocessing.spawn(work, (str(folder / "meeting"), str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(RANKS)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process found."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return found_of_process()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["classifier", "classifier again", "classifier's teacher"])
def test_figures_of_a_classifier_are_those_of_one_process(
    name: str, shared: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = alone[name]
    for each in shared:
        assert each[name] == shared[0][name]
        assert each[name].keys() == expected.keys()
        assert each[name] == pytest.approx(expected, rel=1e-12)
        counts = [key for key in expected if key.endswith(("top1", "top5", "agreement"))]
        assert [each[name][key] for key in counts] == [expected[key] for key in counts]
    assert any(key.endswith("base_test_ece") for key in expected)
    assert ("base_test_agreement" in expected) == (name != "classifier's teacher")


def test_without_a_teacher_there_is_nothing_of_one(
    shared: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    figures, nothing = alone["without teacher"]
    assert nothing == {}
    assert not any(key.endswith("agreement") for key in figures)
    for each in shared:
        assert each["without teacher"][0] == pytest.approx(figures, rel=1e-12)
        assert each["without teacher"][1] == {}


@pytest.mark.parametrize("name", ["meta", "meta's teacher"])
def test_figures_of_a_meta_learner_are_those_of_one_process(
    name: str, shared: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for each in shared:
        assert each[name] == alone[name]


def test_a_test_finds_the_same_for_every_episode(shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for each in shared:
        assert each["test"].figures == alone["test"].figures
        assert each["test"].fingerprints == alone["test"].fingerprints
        for name, values in alone["test"].episodes.items():
            assert torch.equal(each["test"].episodes[name], values)
    assert "base_test_top1" in alone["test"].figures


def test_images_are_embedded_once_and_known_to_all(
    shared: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert [each["shown"] for each in shared] == [16 + 12, 16, 16]
    assert alone["shown"] == 60
    for each in shared:
        assert torch.equal(each["features"], alone["features"])
        assert torch.equal(each["few features"].isnan(), alone["few features"].isnan())
        assert torch.equal(each["few features"].nan_to_num(), alone["few features"].nan_to_num())


def test_training_images_are_shared(shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for step, (indices, total) in enumerate(alone["classifier's images"]):
        shares = [each["classifier's images"][step] for each in shared]
        assert torch.equal(torch.cat([share for share, _ in shares]), indices)
        assert {size for _, size in shares} == {total} == {len(indices)}
    indices, total, logits = alone["meta's step"]
    assert torch.equal(torch.cat([each["meta's step"][0] for each in shared]), indices)
    assert {each["meta's step"][1] for each in shared} == {total} == {6 * 3 * 4}
    of_shares = torch.cat([each["meta's step"][2] for each in shared])
    torch.testing.assert_close(of_shares, logits, rtol=1e-12, atol=1e-12)


def test_sums_over_ranks_are_those_of_all_batches(shared: list[dict[str, Any]]) -> None:
    metrics = Metrics()
    for number in range(RANKS):
        draws = torch.Generator().manual_seed(number)
        for count in ((5, 4), (3,), ())[number]:
            logits = torch.randn(2, count, 7, generator=draws, dtype=torch.float64)
            metrics.update(logits[0], torch.arange(count) % 7, logits[1])
    assert metrics.images == 12
    expected = metrics.result("")
    assert {"agreement", "teacher_kl"} <= expected.keys()
    for each in shared:
        assert each["summed"] == pytest.approx(expected, rel=1e-14)


def test_alone_the_sums_are_ones_own() -> None:
    metrics = metrics_of(0)
    assert metrics.over_ranks().result("") == metrics.result("")
    metrics.over_ranks()._correct.add_(1)
    assert metrics.over_ranks().result("") == metrics.result("")
