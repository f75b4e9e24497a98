"""Meta-Baseline as runs train it: its loss, what the teacher sees, which episodes, and what comes back."""

import json
from collections.abc import Callable, Iterator, Mapping
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
from gda.data.few_shot.episode_loader import EpisodeBatch
from gda.data.few_shot.source import FewShotDataset
from gda.data.resample import resize
from gda.data.transforms import CenterCrop, HorizontalFlip, PadCrop, RandomResizedCrop, Transform
from gda.distillers import Distiller, Progress, RunFacts, Term, TermInputs
from gda.distillers.ctkd import CurriculumTemperature
from gda.distillers.fisher_rao import FisherRao, fisher_rao
from gda.distillers.ground_truth import Labels, TeacherTargets
from gda.distillers.kd import KD, kd
from gda.distillers.sinkhorn import Sinkhorn, sinkhorn
from gda.models import create_model
from gda.seeding import seeded
from gda.tasks.meta_baseline import MetaBaselineTask
from gda.tracking.run_folder import RunFolder
from gda.training.trainer import Trainer

Compose = Callable[..., dict[str, Any]]

CPU = torch.device("cpu")
EPISODES, WAY, SHOT, QUERY = 3, 4, 2, 5
OPTIONS: dict[str, Any] = {
    "train_way": WAY,
    "train_shot": SHOT,
    "train_query": QUERY,
    "train_episodes_per_batch": EPISODES,
    "train_batches": 3,
    "way": 3,
    "shots": (1, 4),
    "query": 6,
    "episodes_per_batch": 2,
    "batches": 3,
    "episode_seed": 5,
}
SETTINGS = TrainerSettings("cpu", "float32", None, False, False, True, 1, 10)
RECIPE = Recipe(
    name="tiny",
    epochs=3,
    batch_size=84,
    evaluation_batch_size=32,
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
FIRST = Progress(0, 3, 0, 3)


class InDouble(nn.Module):
    """An encoder in float64 that remembers what it was shown."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with seeded(seed, "encoder"):
            self.encoder = create_model("convnet4", None, image_size=16).double()
            for module in self.batch_norms():
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        self.seen: list[Tensor] = []

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.encoder.modules() if isinstance(module, nn.BatchNorm2d)]

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.encoder(images.double())


class Witness(Term):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[TermInputs] = []
        self.facts: list[RunFacts] = []

    def setup(self, facts: RunFacts) -> None:
        self.facts.append(facts)

    def forward(self, inputs: TermInputs) -> Tensor:
        self.seen.append(inputs)
        return inputs.student.logits.mean()


def split_of(classes: int, per_class: int, size: int, seed: int) -> ImageSplit:
    """Noisy patterns, one a class, in a mixed order."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randperm(classes * per_class, generator=draws) % classes
    patterns = torch.randint(60, 196, (classes, 3, size, size), generator=draws)
    noise = torch.randint(-100, 101, (len(targets), 3, size, size), generator=draws)
    return ImageSplit((patterns[targets] + noise).clamp(0, 255).to(torch.uint8), targets)


def dataset_of(base_size: int = 16) -> FewShotDataset:
    names = tuple("abcdef")
    base, held_out, novel = split_of(6, 15, base_size, 1), split_of(4, 12, 16, 2), split_of(5, 12, 16, 3)
    mean, std = (0.5,) * 3, (0.25,) * 3
    return FewShotDataset("fake", names, names[:4], names[:5], base, None, None, held_out, novel, mean, std)


def gda(ground_truth: Labels | TeacherTargets | None = None) -> Distiller:
    terms: dict[str, tuple[Term, float]] = {
        "kd": (KD(4.0), 0.7),
        "fisher_rao": (FisherRao(), 0.2),
        "sinkhorn": (Sinkhorn(), 0.1),
    }
    return Distiller(ground_truth or Labels(), 0.3, terms)


def make(
    distiller: Distiller | None = None,
    transforms: Mapping[str, Transform] | None = None,
    seed: int = 0,
    recipe: Recipe = RECIPE,
    base_size: int = 16,
    **options: Any,
) -> MetaBaselineTask:
    return MetaBaselineTask(
        InDouble(0),
        InDouble(1),
        distiller or gda(),
        dataset_of(base_size),
        recipe,
        transforms or {},
        {},
        seed,
        CPU,
        channels_last=False,
        **{**OPTIONS, **options},
    )


def trainer_of(task: MetaBaselineTask, folder: Path, recipe: Recipe = RECIPE, **settings: Any) -> Trainer:
    run = RunFolder(folder)
    run.begin({}, {}, recipe.epochs)
    parameters = [p for module in task.modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    trained: Any = task
    return Trainer(
        trained, recipe, replace(SETTINGS, **settings), optimizer, lambda epoch: 0.05, run, task.seed, CPU
    )


def episode_images(batch: EpisodeBatch) -> Tensor:
    return torch.cat([batch.shots.flatten(0, 2), batch.queries.flatten(0, 1)])


def logits_by_hand(encoder: Any, batch: EpisodeBatch, metric: str, temperature: float) -> Tensor:
    """Logits of all queries, ``(episodes * way * query, way)``, of features in one pass."""
    with torch.no_grad():
        features = encoder(episode_images(batch))
    shots, queries = features.split([EPISODES * WAY * SHOT, EPISODES * WAY * QUERY])
    means = shots.reshape(EPISODES, WAY, SHOT, -1).mean(dim=2)
    rows = []
    for mean, asked in zip(means, queries.reshape(EPISODES, WAY * QUERY, -1), strict=True):
        if metric == "cos":
            similarity = F.cosine_similarity(asked[:, None], mean[None], dim=2)
        else:
            similarity = -(asked[:, None] - mean[None]).square().sum(dim=2)
        rows.append(temperature * similarity)
    return torch.cat(rows)


# --- the loss


@pytest.mark.parametrize("pooled", [False, True], ids=["by_episode", "pooled"])
@pytest.mark.parametrize("metric", ["cos", "sqr"])
def test_the_loss_is_the_weighted_sum_on_the_logits_of_the_queries(metric: str, pooled: bool) -> None:
    task = make(metric=metric, pool_episodes=pooled, temperature=3.0, teacher_temperature=5.0)
    batch = next(task.batches(0))
    output = task.training_step(batch, FIRST)
    student = logits_by_hand(task.student.encoder, batch, metric, 3.0)
    teacher = logits_by_hand(task.teacher.encoder.eval(), batch, metric, 5.0)  # type: ignore[union-attr]
    targets = torch.arange(WAY).repeat_interleave(QUERY).repeat(EPISODES)
    parts = 1 if pooled else EPISODES
    expected = {
        "ground_truth": F.cross_entropy(student, targets),
        "kd": kd(student, teacher, 4.0),
        "fisher_rao": fisher_rao(student, teacher),
        "sinkhorn": sum(
            sinkhorn(s, t) for s, t in zip(student.chunk(parts), teacher.chunk(parts), strict=True)
        ),
    }
    assert {name: float(value) for name, value in output.terms.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-7
    )
    weights = {"ground_truth": 0.3, "kd": 0.7, "fisher_rao": 0.2, "sinkhorn": 0.1}
    total = sum(weights[name] * float(value) for name, value in expected.items())
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-7)
    assert output.images == EPISODES * WAY * QUERY
    if pooled:
        apart = [sinkhorn(s, t) for s, t in zip(student.chunk(3), teacher.chunk(3), strict=True)]
        assert not torch.isclose(output.terms["sinkhorn"], torch.stack(apart).sum(), rtol=1e-3)


def test_terms_see_queries_with_their_own_images_positions_and_labels() -> None:
    witness = Witness()
    task = make(Distiller(Labels(), 1.0, {"witness": (witness, 0.5)}), pool_episodes=True)
    batch = next(task.batches(1))
    task.training_step(batch, FIRST)
    (seen,) = witness.seen
    base = task.train_loader.images
    assert torch.equal(seen.images, (base[seen.indices].float() - 127.5) / 63.75)
    assert len(seen.indices) == EPISODES * WAY * QUERY
    labels = dataset_of().base.targets[seen.indices].reshape(EPISODES, WAY, QUERY)
    assert torch.equal(labels, labels[:, :, :1].expand(-1, -1, QUERY))  # each way is of one base class
    assert seen.targets.tolist() == [way for way in range(WAY) for _ in range(QUERY)] * EPISODES
    queries = seen.indices.reshape(EPISODES, -1)
    shots = batch.indices[:, :, :SHOT].flatten(1)
    assert not any(torch.isin(*each).any() for each in zip(queries, shots, strict=True))
    (facts,) = witness.facts
    assert (facts.classes, facts.train_size, facts.labels) == (WAY, 90, None)


def test_label_free_training_learns_from_the_teachers_probabilities() -> None:
    witness = Witness()
    task = make(Distiller(TeacherTargets(), 1.0, {"witness": (witness, 0.5)}), teacher_temperature=4.0)
    batch = next(task.batches(0))
    output = task.training_step(batch, FIRST)
    teacher = logits_by_hand(task.teacher.encoder.eval(), batch, "cos", 4.0)  # type: ignore[union-attr]
    student = logits_by_hand(task.student.encoder, batch, "cos", 10.0)
    targets = torch.cat([seen.targets for seen in witness.seen])
    torch.testing.assert_close(targets, teacher.softmax(dim=1), rtol=1e-9, atol=1e-12)
    expected = F.cross_entropy(student, teacher.softmax(dim=1))
    torch.testing.assert_close(output.terms["ground_truth"], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("pooled", [False, True], ids=["by_episode", "pooled"])
def test_the_order_of_an_episodes_classes_counts_only_where_episodes_are_pooled(pooled: bool) -> None:
    task = make(pool_episodes=pooled)
    batch = next(task.batches(0))
    order = torch.tensor([2, 0, 3, 1])
    shots, queries, indices = batch.shots.clone(), batch.queries.clone(), batch.indices.clone()
    shots[1] = shots[1][order]
    queries[1] = queries[1].unflatten(0, (WAY, QUERY))[order].flatten(0, 1)
    indices[1] = indices[1][order]
    permuted = EpisodeBatch(shots, queries, batch.targets, indices)
    before, after = (task.training_step(each, FIRST) for each in (batch, permuted))
    changed = {
        name
        for name, value in before.terms.items()
        if not torch.isclose(after.terms[name], value, rtol=1e-8, atol=0)
    }
    assert changed == ({"sinkhorn"} if pooled else set())


# --- the teacher


def test_a_teacher_of_embedded_images_says_what_it_says_of_the_episodes() -> None:
    task = make(teacher_temperature=6.0)
    assert task.teacher is not None
    for epoch in (0, 1):
        for batch in task.batches(epoch):
            asked = task.ask_teacher(batch)
            assert asked is not None
            with torch.no_grad():
                expected = task.teacher(batch.shots, batch.queries).flatten(0, 1)
            torch.testing.assert_close(asked.logits, expected, rtol=1e-9, atol=1e-9)
            assert float(expected.std()) > 1e-3


def test_a_teacher_embeds_each_base_image_once() -> None:
    task = make()
    teacher: Any = task.teacher
    for epoch in (0, 1):
        for batch in task.batches(epoch):
            task.training_step(batch, FIRST)
    assert sum(len(images) for images in teacher.encoder.seen) == 90


@pytest.mark.parametrize("last_plain", [False, True], ids=["augmented_throughout", "last_epoch_plain"])
@pytest.mark.parametrize(
    ("transforms", "base_size"),
    [({"shift": PadCrop(2), "flip": HorizontalFlip()}, 16), ({"crop": RandomResizedCrop(16)}, 20)],
    ids=["shift", "crop"],
)
def test_a_teacher_sees_the_very_images_of_the_student(
    transforms: dict[str, Transform], base_size: int, last_plain: bool
) -> None:
    recipe = replace(RECIPE, last_epoch_without_augmentation=last_plain)
    task = make(transforms=transforms, recipe=recipe, base_size=base_size)
    student: Any = task.student.encoder
    teacher: Any = task.teacher.encoder  # type: ignore[union-attr]
    for epoch in range(3):
        for batch in task.batches(epoch):
            task.training_step(batch, Progress(epoch, 3))
            assert torch.equal(student.seen[-1], teacher.seen[-1])
            assert torch.equal(student.seen[-1], episode_images(batch))


@pytest.mark.parametrize("last_plain", [False, True], ids=["throughout", "last_epoch_plain"])
def test_a_teacher_of_embedded_images_has_them_as_the_student_has(last_plain: bool) -> None:
    """A crop that draws nothing is no augmentation: the teacher may know the images beforehand."""
    recipe = replace(RECIPE, last_epoch_without_augmentation=last_plain)
    task = make(transforms={"crop": CenterCrop(16)}, recipe=recipe, base_size=20)
    assert task.teacher is not None
    for epoch in range(3):
        batch = next(task.batches(epoch))
        asked = task.ask_teacher(batch)
        assert asked is not None
        with torch.no_grad():
            expected = task.teacher(batch.shots, batch.queries).flatten(0, 1)
        torch.testing.assert_close(asked.logits, expected, rtol=1e-9, atol=1e-9)


def test_a_teacher_that_only_measures_is_not_asked() -> None:
    task = make(Distiller(Labels(), 1.0))
    batch = next(task.batches(0))
    assert task.ask_teacher(batch) is None
    task.training_step(batch, FIRST)
    assert task.teacher.encoder.seen == []  # type: ignore[union-attr]
    assert "test_agreement" in task.evaluate(task.student, FIRST)


def test_a_teacher_never_learns(tmp_path: Path) -> None:
    task = make(transforms={"flip": HorizontalFlip()})
    assert task.teacher is not None
    before = {key: value.clone() for key, value in task.teacher.state_dict().items()}
    trainer_of(task, tmp_path).fit()
    assert all(torch.equal(value, before[key]) for key, value in task.teacher.state_dict().items())
    assert not any(p.requires_grad for p in task.teacher.parameters())
    assert not any(module.training for module in task.teacher.modules())


# --- the temperature


@pytest.mark.parametrize(("learned", "expected"), [(None, 3.0), (7.5, 7.5)], ids=["classifier", "meta"])
def test_the_teachers_temperature(learned: float | None, expected: float) -> None:
    task = make(temperature=3.0, teacher_temperature=learned)
    assert task.teacher is not None
    assert task.teacher.temp == expected
    assert task.student.temp == 3.0
    assert isinstance(task.student.temp, nn.Parameter)
    assert "temp" not in dict(task.teacher.named_parameters())


def test_a_learned_temperature_is_trained_saved_and_reported(tmp_path: Path) -> None:
    task = make()
    last = trainer_of(task, tmp_path).fit()["last"]
    assert task.student.temp != 10.0
    assert isinstance(task.student.temp, nn.Parameter)
    assert last["temperature"] == task.student.temp.item()
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert float(saved["temp"]) == last["temperature"]


def test_a_temperature_that_is_not_learned_is_no_parameter(tmp_path: Path) -> None:
    task = make(learnable_temperature=False, temperature=3.0)
    assert "temp" not in task.student.state_dict()
    assert len(list(task.student.parameters())) == len(list(task.student.encoder.parameters()))
    assert trainer_of(task, tmp_path).fit()["last"]["temperature"] == 3.0


# --- batch norm


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_frozen_batch_norm_normalises_with_the_statistics_that_it_has(frozen: bool, tmp_path: Path) -> None:
    task = make(freeze_batch_norm=frozen)
    encoder: InDouble = task.student.encoder  # type: ignore[assignment]
    norms = encoder.batch_norms()
    before = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]
    step = task.training_step
    agrees: list[bool] = []
    gradients: list[int] = []
    for number, norm in enumerate(norms):
        norm.weight.register_hook(lambda _, number=number: gradients.append(number))

    def watched(batch: EpisodeBatch, progress: Progress) -> Any:
        assert encoder.training
        output = step(batch, progress)
        modes = [norm.training for norm in norms]
        for norm in norms:
            norm.eval()
        by_statistics = logits_by_hand(encoder, batch, "cos", float(task.student.state_dict()["temp"]))
        for norm, mode in zip(norms, modes, strict=True):
            norm.train(mode)
        agrees.append(torch.allclose(output.tensors["student logits"], by_statistics, rtol=1e-6))
        return output

    task.training_step = watched  # type: ignore[method-assign]
    trainer_of(task, tmp_path, ema_decay=0.5).fit()
    assert agrees == [frozen] * 9
    assert sorted(gradients) == sorted([*range(len(norms))] * 9)
    for norm, old in zip(norms, before, strict=True):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(norm.state_dict()[name], old[name]) == frozen
        for name in ("weight", "bias"):
            assert not torch.equal(norm.state_dict()[name], old[name])


# --- the episodes


def test_runs_of_equal_seed_see_equal_episodes_whatever_the_method() -> None:
    kinds = {
        "gda": make(),
        "plain": make(Distiller(Labels(), 1.0)),
        "label_free": make(gda(TeacherTargets()), freeze_batch_norm=True),
        "pooled": make(pool_episodes=True, learnable_temperature=False),
    }
    batches = {
        name: [batch.indices for epoch in (0, 1) for batch in task.batches(epoch)]
        for name, task in kinds.items()
    }
    for name in kinds:
        assert torch.equal(torch.stack(batches[name]), torch.stack(batches["gda"]))
    assert len({tuple(indices.flatten().tolist()) for indices in batches["gda"]}) == 6
    other = torch.stack([batch.indices for batch in make(seed=1).batches(0)])
    assert not torch.equal(other, torch.stack(batches["gda"][:3]))


def test_the_runs_seed_changes_no_episode_of_an_evaluation() -> None:
    one, other = make(seed=0), make(seed=1)
    assert one.evaluate(one.student, FIRST) == other.evaluate(other.student, FIRST)
    third = make(episode_seed=6)
    assert one.evaluate(one.student, FIRST) != third.evaluate(third.student, FIRST)


def test_an_epoch_can_be_begun_at_any_step() -> None:
    task = make(transforms={"flip": HorizontalFlip()})
    late = list(task.batches(1, start_step=2))
    assert len(late) == 1
    assert torch.equal(late[0].queries, list(task.batches(1))[2].queries)


def test_training_episodes_have_a_shape_of_their_own() -> None:
    task = make(train_way=6, train_shot=1, train_query=2, train_episodes_per_batch=1, train_batches=2)
    batches = list(task.batches(0))
    assert len(batches) == task.steps == 2
    assert batches[0].shots.shape == (1, 6, 1, 3, 16, 16)
    assert batches[0].queries.shape == (1, 12, 3, 16, 16)
    assert task.training_step(batches[0], FIRST).tensors["student logits"].shape == (12, 6)
    assert {name for name in task.evaluate(task.student, FIRST) if name.endswith("shot")} == {
        "validation_1shot",
        "validation_4shot",
        "test_1shot",
        "test_4shot",
    }


@pytest.mark.parametrize(
    ("transforms", "base_size"),
    [({"shift": PadCrop(2), "flip": HorizontalFlip()}, 16), ({"crop": RandomResizedCrop(16)}, 20)],
    ids=["shift", "crop"],
)
def test_the_last_epoch_may_do_without_augmentation(transforms: dict[str, Transform], base_size: int) -> None:
    recipe = replace(RECIPE, last_epoch_without_augmentation=True)
    task = make(transforms=transforms, recipe=recipe, base_size=base_size)
    plain = (resize(dataset_of(base_size).base.images, 16, 16).float() - 127.5) / 63.75
    for epoch, augmented in ((0, True), (1, True), (2, False)):
        for batch in task.batches(epoch):
            expected = plain[batch.indices][:, :, SHOT:].flatten(1, 2)
            assert torch.equal(batch.queries, expected) != augmented
    usual = make(transforms=transforms, base_size=base_size)
    assert not torch.equal(next(usual.batches(2)).queries, next(task.batches(2)).queries)
    assert torch.equal(next(usual.batches(2)).indices, next(task.batches(2)).indices)


# --- figures


def test_the_teachers_figures_stand_before_training_and_beside_the_students(tmp_path: Path) -> None:
    task = make(teacher_temperature=6.0)
    trainer_of(task, tmp_path, ema_decay=0.9).fit()
    first, *rest = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    figures = {
        f"{split}_{name}"
        for split in ("validation", "test")
        for name in ("1shot", "1shot_interval", "4shot", "4shot_interval", "loss", "ece")
    }
    assert set(first) == {"epoch", *(f"teacher_{name}" for name in figures)}
    assert task.teacher is not None
    own = task.novel.accuracies(task.novel.embed(task.teacher.encoder))
    assert {f"teacher_{name}": value for name, value in own.items()}.items() <= first.items()
    fidelity = {f"{s}_{name}" for s in ("validation", "test") for name in ("agreement", "teacher_kl")}
    names = figures | fidelity | {"temperature"}
    terms = {f"term/{name}" for name in ("ground_truth", "kd", "fisher_rao", "sinkhorn")}
    for row in rest:
        assert set(row) == {"epoch", "learning_rate", "train_loss"} | terms | names | {
            f"ema_{name}" for name in names
        }
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    for prefix, weights in (("", saved["model"]), ("ema_", saved["model_ema"])):
        student = make().student
        student.load_state_dict(weights)
        features = task.novel.embed(student.encoder)
        expected = task.novel.accuracies(features) | task.novel.fidelity(features, student.classify)
        assert {name: rest[-1][f"{prefix}{name}"] for name in expected} == expected
    assert rest[-1]["ema_test_loss"] != rest[-1]["test_loss"]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    def fresh() -> MetaBaselineTask:
        distiller = gda()
        distiller.plugins["ctkd"] = CurriculumTemperature(epochs=2)
        return make(distiller, {"flip": HorizontalFlip()})

    trainer_of(fresh(), tmp_path / "whole", ema_decay=0.9).fit()
    stopped = fresh()
    batches = stopped.batches

    def failing(epoch: int, start_step: int = 0) -> Iterator[EpisodeBatch]:
        for step, batch in enumerate(batches(epoch, start_step)):
            if (epoch, step) == (1, 2):
                raise KeyboardInterrupt
            yield batch

    stopped.batches = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer_of(stopped, tmp_path / "parts", ema_decay=0.9).fit()
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["epoch"] == 1
    torch.manual_seed(99)
    trainer_of(fresh(), tmp_path / "parts", ema_decay=0.9).fit()
    files = [tmp_path / name / "last.pt" for name in ("whole", "parts")]
    whole, parts = (torch.load(file, weights_only=True) for file in files)
    assert whole["metrics"] == parts["metrics"]
    assert whole["history"] == parts["history"]
    for part in ("model", "model_ema"):
        assert all(torch.equal(value, parts[part][key]) for key, value in whole[part].items())
    momenta = [each["optimizer"]["state"] for each in (whole, parts)]
    assert momenta[0].keys() == momenta[1].keys()
    for number, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][number]["momentum_buffer"])
    learned = "plugins.ctkd.raw_temperature"
    assert whole["modules"]["distiller"][learned] != 1
    assert torch.equal(whole["modules"]["distiller"][learned], parts["modules"]["distiller"][learned])


# --- runs


TINY = (
    "dataset=digits_few_shot",
    "student=convnet4",
    "student.image_size=16",
    "teacher=convnet4",
    "teacher.image_size=16",
    "teacher.seed=1",
    "task=meta_baseline",
    "task.train_batches=2",
    "task.batches=2",
    "recipe=digits_few_shot_meta",
    "recipe.epochs=1",
    "encoder=classifier",
    "recipe@encoder.recipe=digits_few_shot_classifier",
    "encoder.recipe.epochs=1",
    "encoder.task.batches=2",
    "encoder.seed=1",
    "tracking=none",
    "trainer.device=cpu",
    "trainer.threads=1",
    "task.temperature=4.0",
)


@pytest.mark.parametrize("kind", ["classifier", "meta"])
def test_a_run_takes_over_the_temperature_of_a_meta_teacher(
    kind: str, compose: Compose, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[MetaBaselineTask] = []
    set_up = MetaBaselineTask.__init__

    def watched(task: MetaBaselineTask, *arguments: Any, **named: Any) -> None:
        set_up(task, *arguments, **named)
        tasks.append(task)

    monkeypatch.setattr(MetaBaselineTask, "__init__", watched)
    finished = finish(compose(*TINY, f"task.teacher_kind={kind}", f"runs={runs}", f"study={kind}"))
    facts = json.loads((finished.folder / "run.json").read_text())
    weights = torch.load(facts["teacher_weights"], weights_only=True)["model"]
    teacher: Any = tasks[-1].teacher
    if kind == "meta":
        assert teacher.temp == float(weights["temp"]) != 4.0
    else:
        assert teacher.temp == 4.0
        assert "temp" not in weights
    encoder = {
        key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")
    }
    assert all(torch.equal(value, encoder[key]) for key, value in teacher.encoder.state_dict().items())
    if kind == "classifier":  # of equal architecture and seed it is the encoder that the student starts from
        assert facts["encoder_weights"] == facts["teacher_weights"]
    assert 0 < finished.result["last"]["test_1shot"] < 100
