"""Classifier-Baseline as runs train it: base figures each epoch, episodes of novel classes every few."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.app import finish
from gda.config.schema import Recipe, TrainerSettings
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.few_shot.source import FewShotDataset
from gda.data.resample import resize
from gda.data.transforms import HorizontalFlip, PadCrop, RandomResizedCrop, Transform
from gda.distillers import Distiller, Progress, Term
from gda.distillers.fitnet import FitNet
from gda.distillers.ground_truth import Labels
from gda.distillers.kd import KD
from gda.distillers.rkd import RKDDistance
from gda.models import create_model
from gda.seeding import seeded
from gda.tasks.few_shot_classifier import FewShotClassifierTask
from gda.tracking.run_folder import RunFolder
from gda.training.trainer import Trainer

Compose = Callable[..., dict[str, Any]]

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "way": 3,
    "shots": (1, 4),
    "query": 5,
    "episodes_per_batch": 2,
    "batches": 4,
    "episode_seed": 5,
    "evaluate_every": 2,
}
SETTINGS = TrainerSettings("cpu", "float32", None, False, False, True, 1, 10)
RECIPE = Recipe(
    name="tiny",
    epochs=3,
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
BASE = {
    f"base_{split}_{name}" for split in ("validation", "test") for name in ("top1", "top5", "loss", "ece")
}
NOVEL = {
    f"{split}_{shot}shot{end}"
    for split in ("validation", "test")
    for shot in (1, 4)
    for end in ("", "_interval")
}


def split_of(classes: int, per_class: int, size: int, seed: int) -> ImageSplit:
    """Noisy patterns, one a class, in a mixed order."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randperm(classes * per_class, generator=draws) % classes
    patterns = torch.randint(60, 196, (classes, 3, size, size), generator=draws)
    noise = torch.randint(-100, 101, (len(targets), 3, size, size), generator=draws)
    return ImageSplit((patterns[targets] + noise).clamp(0, 255).to(torch.uint8), targets)


def dataset_of(base_size: int = 16, validation_classes: bool = True) -> FewShotDataset:
    names = tuple("abcdef")
    held_out = split_of(6, 9, 16, 2)
    return FewShotDataset(
        name="fake",
        base_classes=names,
        validation_classes=names[:4] if validation_classes else names,
        test_classes=names[:5],
        base=split_of(6, 12, base_size, 1),
        base_validation=held_out,
        base_test=split_of(6, 5, 16, 3),
        validation=split_of(4, 12, 16, 4) if validation_classes else held_out,
        test=split_of(5, 12, 16, 5),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def model_of(name: str, seed: int = 0) -> Any:
    """A classifier of the base classes in float64; images are converted where they enter."""
    with seeded(seed, "model"):
        model: Any = create_model(name, 6, **({"image_size": 16} if name == "convnet4" else {})).double()
    for entrance in {model, getattr(model, "encoder", model)}:
        entrance.register_forward_pre_hook(to_double)
    return model


def to_double(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].double(),)


def make(
    student: nn.Module,
    teacher: nn.Module | None = None,
    terms: dict[str, tuple[Term, float]] | None = None,
    transforms: dict[str, Transform] | None = None,
    recipe: Recipe = RECIPE,
    dataset: FewShotDataset | None = None,
    **options: Any,
) -> FewShotClassifierTask:
    return FewShotClassifierTask(
        student,
        teacher,
        Distiller(Labels(), 1.0, terms or {}),
        dataset or dataset_of(),
        recipe,
        transforms or {},
        {},
        0,
        CPU,
        channels_last=False,
        **{**OPTIONS, **options},
    )


def rows_of(
    task: FewShotClassifierTask, folder: Path, recipe: Recipe = RECIPE, **settings: Any
) -> list[dict[str, Any]]:
    """Trains, and returns the journal."""
    run = RunFolder(folder)
    run.begin({}, {}, recipe.epochs)
    parameters = [p for module in task.modules.values() for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    with_settings = replace(SETTINGS, **settings)
    Trainer(task, recipe, with_settings, optimizer, lambda epoch: 0.05, run, 0, CPU).fit()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def head_inputs(model: Any) -> Callable[[Tensor], Tensor]:
    """What a model's head gets, by a hook of our own on the last linear layer."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]

    def encode(images: Tensor) -> Tensor:
        caught: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
        with torch.no_grad():
            model.eval()(images)
        handle.remove()
        return caught[0]

    return encode


def accuracies_by_hand(
    images: ImageSplit, encode: Callable[[Tensor], Tensor], shot: int, options: dict[str, Any] = OPTIONS
) -> Tensor:
    """The share of right queries of each episode, each encoded anew and on its own."""
    way, query, seed = options["way"], options["query"], options["episode_seed"]
    sampler = EpisodeSampler(images.targets, way, shot, query, 2, options["batches"], seed)
    shares = []
    for positions in torch.cat(list(sampler.batches())):
        features = encode((images.images[positions.flatten()].float() - 127.5) / 63.75)
        shots, queries = features.unflatten(0, positions.shape).split([shot, query], dim=1)
        means = shots.mean(dim=1)
        similarity = F.cosine_similarity(queries.flatten(0, 1)[:, None], means[None], dim=2)
        right = similarity.argmax(dim=1) == torch.arange(way).repeat_interleave(query)
        shares.append(right.double().mean())
    return torch.stack(shares)


def novel_by_hand(dataset: FewShotDataset, model: nn.Module) -> dict[str, float]:
    figures = {}
    for split, images in (("validation", dataset.validation), ("test", dataset.test)):
        for shot in OPTIONS["shots"]:
            assert images is not None
            shares = accuracies_by_hand(images, head_inputs(model), shot)
            assert len(set(shares.tolist())) > 1
            figures[f"{split}_{shot}shot"] = 100 * float(shares.mean())
    return figures


def base_by_hand(images: ImageSplit, model: nn.Module, teacher: nn.Module | None) -> dict[str, float]:
    pixels = (images.images.float() - 127.5) / 63.75
    with torch.no_grad():
        logits = model.eval()(pixels)
        known = None if teacher is None else teacher.eval()(pixels)
    right = logits.argmax(dim=1) == images.targets
    figures = {"top1": float(right.double().mean()) * 100}
    figures["loss"] = float(F.cross_entropy(logits, images.targets))
    if known is not None:
        figures["agreement"] = 100 * float((logits.argmax(1) == known.argmax(1)).double().mean())
        ratio = known.log_softmax(1) - logits.log_softmax(1)
        figures["teacher_kl"] = float((known.softmax(1) * ratio).sum(dim=1).mean())
    return figures


@pytest.mark.parametrize("name", ["convnet4", "resnet8", "timm/test_resnet"])
def test_figures_are_those_of_encoding_every_episode_anew(name: str, tmp_path: Path) -> None:
    dataset, student, teacher = dataset_of(), model_of(name), model_of("convnet4", seed=1)
    last = rows_of(make(student, teacher, {"kd": (KD(4.0), 0.5)}, dataset=dataset), tmp_path)[-1]
    expected = novel_by_hand(dataset, student)
    for split, images in (("validation", dataset.base_validation), ("test", dataset.base_test)):
        assert images is not None
        figures = base_by_hand(images, student, teacher)
        expected |= {f"base_{split}_{figure}": value for figure, value in figures.items()}
    assert {figure: last[figure] for figure in expected} == pytest.approx(expected, rel=1e-9)
    assert set(last) >= BASE | NOVEL


@pytest.mark.parametrize(
    ("epochs", "every", "evaluated"),
    [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 5, [3]), (3, 1, [1, 2, 3])],
    ids=["5_by_2", "4_by_2", "3_by_5", "3_by_1"],
)
def test_episodes_are_evaluated_every_few_epochs_and_in_the_last(
    epochs: int, every: int, evaluated: list[int], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, epochs=epochs)
    task = make(model_of("resnet8"), recipe=recipe, evaluate_every=every)
    first, *rows = rows_of(task, tmp_path, recipe)
    assert first == {"epoch": 0}
    common = {"epoch", "learning_rate", "train_loss", "term/ground_truth"}
    for row in rows:
        assert set(row) == common | BASE | (NOVEL if row["epoch"] in evaluated else set())
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    figures = {row["epoch"]: row["validation_1shot"] for row in rows if row["epoch"] in evaluated}
    assert best["epoch"] == max(figures, key=lambda epoch: (figures[epoch], -epoch))


def test_without_validation_classes_episodes_come_from_held_out_base_images() -> None:
    dataset, student = dataset_of(validation_classes=False), model_of("resnet8")
    figures = make(student, dataset=dataset).evaluate(student, Progress(2, 3))
    assert dataset.base_validation is not None
    shares = accuracies_by_hand(dataset.base_validation, head_inputs(student), 1)
    assert figures["validation_1shot"] == pytest.approx(100 * float(shares.mean()), rel=1e-9)


def test_what_is_not_held_out_has_no_figure() -> None:
    bare = replace(dataset_of(), base_validation=None, base_test=None, validation=None)
    student = model_of("resnet8")
    figures = make(student, dataset=bare).evaluate(student, Progress(2, 3))
    assert set(figures) == {name for name in NOVEL if name.startswith("test")}
    one = replace(dataset_of(), base_validation=None)
    student = model_of("resnet8")
    figures = make(student, dataset=one).evaluate(student, Progress(2, 3))
    assert set(figures) == NOVEL | {name for name in BASE if name.startswith("base_test")}


@pytest.mark.parametrize("name", ["convnet4", "resnet8"])
def test_the_teachers_figures_stand_before_training(name: str, tmp_path: Path) -> None:
    dataset, teacher = dataset_of(), model_of(name, seed=1)
    task = make(model_of("resnet8"), teacher, dataset=dataset)
    first, *rest = rows_of(task, tmp_path)
    assert set(first) == {"epoch"} | {f"teacher_{name}" for name in BASE | NOVEL}
    expected = novel_by_hand(dataset, teacher)
    assert dataset.base_test is not None
    expected |= {f"base_test_{k}": v for k, v in base_by_hand(dataset.base_test, teacher, None).items()}
    assert {name: first[f"teacher_{name}"] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert {"base_test_agreement", "base_validation_teacher_kl"} <= rest[0].keys()


def test_the_moving_average_is_evaluated_too(tmp_path: Path) -> None:
    dataset, student = dataset_of(), model_of("resnet8")
    row = rows_of(make(student, dataset=dataset), tmp_path, ema_decay=0.7)[-1]
    average = model_of("resnet8")
    average.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True)["model_ema"])
    expected = {f"ema_{name}": value for name, value in novel_by_hand(dataset, average).items()}
    assert dataset.base_test is not None
    base = base_by_hand(dataset.base_test, average, None)
    expected |= {f"ema_base_test_{name}": value for name, value in base.items()}
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert row["ema_base_test_loss"] != pytest.approx(row["base_test_loss"], rel=1e-3)
    assert {name for name in row if name.startswith("ema_")} == {f"ema_{name}" for name in BASE | NOVEL}


FEATURE_TERMS: dict[str, Callable[[], Term]] = {
    "fitnet": lambda: FitNet(stages=[2]),
    "rkd": RKDDistance,
}


@pytest.mark.parametrize("student", ["convnet4", "resnet8"])
@pytest.mark.parametrize("term", FEATURE_TERMS.values(), ids=FEATURE_TERMS)
def test_feature_methods_see_the_base_images_and_no_evaluation(
    term: Callable[[], Term], student: str, tmp_path: Path
) -> None:
    """Figures are read through taps as well: neither may disturb the other."""
    model, teacher = model_of(student), model_of("resnet8", seed=1)
    task = make(model, teacher, {"term": (term(), 0.5)})
    task.base.distiller.double()  # a projector is made when the shapes are known
    sizes: list[int] = []
    forward = task.base.distiller.terms["term"].forward

    def watched(inputs: Any) -> Tensor:
        (features,) = {len(each) for each in inputs.student.features.values()}
        sizes.append(features - len(inputs.images))
        return forward(inputs)

    task.base.distiller.terms["term"].forward = watched
    rows = rows_of(task, tmp_path, ema_decay=0.5)
    assert sizes == [0] * 9
    assert all(0 < row["term/term"] < 1e6 for row in rows[1:])
    expected = novel_by_hand(dataset_of(), model)
    assert {name: rows[-1][name] for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("transforms", "base_size"),
    [({"shift": PadCrop(2), "flip": HorizontalFlip()}, 16), ({"crop": RandomResizedCrop(16)}, 20)],
    ids=["shift", "crop"],
)
def test_the_last_epoch_may_do_without_augmentation(transforms: dict[str, Transform], base_size: int) -> None:
    recipe, dataset = replace(RECIPE, last_epoch_without_augmentation=True), dataset_of(base_size)
    task = make(model_of("resnet8"), transforms=transforms, recipe=recipe, dataset=dataset)
    usual = make(model_of("resnet8"), transforms=transforms, dataset=dataset)
    plain = (resize(dataset.base.images, 16, 16).float() - 127.5) / 63.75
    for epoch, augmented in ((0, True), (1, True), (2, False)):
        batches = list(task.batches(epoch))
        assert len(batches) == task.steps == 3
        for batch, other in zip(batches, usual.batches(epoch), strict=True):
            assert torch.equal(batch.images, plain[batch.indices]) != augmented
            assert torch.equal(batch.indices, other.indices)
            assert torch.equal(batch.targets, dataset.base.targets[batch.indices])
            assert torch.equal(batch.images, other.images) == augmented
    (third,) = task.batches(2, start_step=2)
    assert torch.equal(third.images, list(task.batches(2))[2].images)


# --- runs


TINY = (
    "dataset=digits_few_shot",
    "task=few_shot_classifier",
    "task.batches=5",
    "task.evaluate_every=2",
    "recipe=digits_few_shot_classifier",
    "recipe.epochs=3",
    "tracking=none",
    "trainer.device=cpu",
    "trainer.threads=1",
)


def test_a_run_of_a_cifar_model_on_digits_and_its_teacher(compose: Compose, runs: Path) -> None:
    """At their native 8 pixels, which no few-shot encoder takes."""
    small = ("dataset.image_size=8", "student=resnet8", "teacher=resnet8", "distiller=rkd", "alignment=gda")
    finished = finish(compose(*TINY, *small, f"runs={runs}"))
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [("test_1shot" in row, "base_test_top1" in row) for row in rows[1:]] == [
        (False, True),
        (True, True),
        (True, True),
    ]
    facts = json.loads((finished.folder / "run.json").read_text())
    assert (facts["figure"], facts["encoder_run"], facts["encoder_weights"]) == ("1shot", None, None)
    assert "5-way 1-shot" in facts["figure_text"]
    assert set(finished.result) == {"last", "best", "test_1shot_oracle", "oracle_epoch"}
    assert finished.result["test_1shot_oracle"] == max(row["test_1shot"] for row in rows[2:])
    teacher = Path(facts["teacher_weights"])
    own = json.loads((teacher.parent / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("test_1shot", "validation_5shot", "base_test_top1"):
        assert rows[0][f"teacher_{name}"] == pytest.approx(own[name], rel=1e-9)
    assert own["base_test_top1"] > 40  # five classes: it learns


def test_a_term_that_looks_at_all_base_images_sees_them_in_the_size_of_an_evaluation(
    compose: Compose, runs: Path
) -> None:
    """WKD measures its classes before training; images to crop from are larger than what models see."""
    larger = (
        "dataset.train_image_size=32",
        "augmentation@recipe.train_transforms=resize",
        "recipe.train_transforms.crop.size=16",
        "student=convnet4",
        "student.image_size=16",
        "teacher=convnet4",
        "teacher.image_size=16",
        "distiller=wkd_l",
        "alignment=none",
        "recipe.epochs=1",
    )
    tiny = [each for each in TINY if not each.startswith("recipe.epochs")]
    finished = finish(compose(*tiny, *larger, f"runs={runs}", "study=larger"))
    assert finished.result["last"]["term/wkd_l"] > 0
