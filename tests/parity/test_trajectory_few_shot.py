"""Three SGD steps of Meta-Baseline with KD + GDA on episodes against the published training step.

Student and teacher are the published ResNet-12 with pooling, ``resnet12_bottle``, and the Sinkhorn term takes
the queries of all four episodes together, as published. As in ``test_trajectory.py``, float64 is compared
with golden float32 figures whose own distance from float64 is recorded per step; 2 times that distance is
asked for. The steps are those of the task itself.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_models import probe
from test_trajectory import make_input, make_weight, seeded
from torch import Tensor

from gda.config.schema import Recipe
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episode_loader import EpisodeBatch
from gda.data.few_shot.source import FewShotDataset
from gda.data.transforms import HorizontalFlip
from gda.distillers import Distiller, Progress
from gda.distillers.fisher_rao import FisherRao
from gda.distillers.ground_truth import Labels
from gda.distillers.kd import KD
from gda.distillers.sinkhorn import Sinkhorn
from gda.models import create_model
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.tasks.meta_baseline import MetaBaselineTask

RUNS = json.loads((Path(__file__).parent / "golden" / "trajectory_few_shot.json").read_text())
ENCODER = "resnet12_bottle"
EPISODES, WAY, SHOT, QUERY, PIXELS = 4, 5, 1, 15, 32
TARGETS = torch.arange(WAY).repeat_interleave(QUERY).repeat(EPISODES)
SPACING = 1.2e-7  # of float32, in which the golden figures are stored

Step = Callable[[int], tuple[Tensor, Mapping[str, Tensor], Tensor]]
"""Number of a step to its loss, the unweighted terms and the logits of the queries."""


def weights(model: MetaBaseline, recipe: str, salt: str = "") -> dict[str, Tensor]:
    """The golden weights of a meta-learner; ``temp`` is there in any case."""

    def weight(key: str, shape: tuple[int, ...]) -> Tensor:
        if shape or key.endswith("num_batches_tracked"):
            return make_weight(key, shape, recipe, salt)
        uniform = torch.rand((1,), generator=seeded(salt + key), dtype=torch.float64)
        return ((uniform + 0.5).reshape(()) * 10).float()

    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {key: weight(key, shape) for key, shape in {**shapes, "temp": ()}.items()}


def episodes() -> tuple[Tensor, Tensor]:
    """Shots ``(4, 5, 1, 3, 32, 32)`` and queries ``(4, 75, 3, 32, 32)``."""
    image = (3, PIXELS, PIXELS)
    prototypes = make_input("e2e-episode/prototype", (EPISODES, WAY, 1, *image))
    images = (prototypes + make_input("e2e-episode/noise", (EPISODES, WAY, SHOT + QUERY, *image))).double()
    return images[:, :, :SHOT], images[:, :, SHOT:].flatten(1, 2)


def loss() -> Distiller:
    return Distiller(
        Labels(),
        1.0,
        {"kd": (KD(10.0), 1.0), "fisher_rao": (FisherRao(), 0.1), "sinkhorn": (Sinkhorn(), 0.0008)},
    )


def check_digest(values: Tensor, digest: dict[str, Any], rel: float = 1e-6) -> None:
    """Compares with a recorded digest; `rel` is for the norm."""
    flat = values.detach().flatten()
    assert list(values.shape) == digest["shape"]
    assert flat.norm().item() == pytest.approx(digest["l2"], rel=rel)
    assert (flat @ probe(len(flat))).item() == pytest.approx(digest["probe_dot"], abs=2e-6 * digest["l2"])
    sample = torch.tensor(digest["sample"], dtype=torch.float64)
    assert (flat[digest["sample_index"]] - sample).abs().max() <= 1e-5 * digest["max_abs"]


def follow(name: str, student: MetaBaseline, step: Step) -> None:
    """Takes the golden steps, and holds everything that is recorded against them."""
    run = RUNS[name]["float32"]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    student.train()
    scales = RUNS[name]["float32_error_scale_by_step"]
    for number, (record, scale) in enumerate(zip(run["steps"], scales, strict=True)):
        assert torch.as_tensor(student.temp).item() == pytest.approx(record["temp_before"], rel=SPACING)
        total, terms, logits = step(number)
        check_digest(logits, record["student_logits"])
        assert (logits.argmax(1) == TARGETS).double().mean().item() == pytest.approx(record["accuracy"])
        assert total.item() == pytest.approx(record["total"], rel=2 * scale["total"]), number
        assert terms["ground_truth"].item() == pytest.approx(record["cross_entropy"], rel=1e-6), number
        # Logits of about 7 whose rows spread by 0.03: float32 knows that spread to 1e-5 at best.
        assert terms["fisher_rao"].item() == pytest.approx(record["part_fisher_rao"], rel=1e-4), number
        assert terms["sinkhorn"].item() == pytest.approx(record["part_sinkhorn"], rel=1e-4), number
        distilled = (total - terms["ground_truth"]).item()
        assert distilled == pytest.approx(record["logged"]["tlkd"], rel=1e-4), number

        optimizer.zero_grad()
        total.backward()
        slopes = [each.grad.flatten() for each in student.parameters() if each.grad is not None]
        assert torch.cat(slopes).norm().item() == pytest.approx(
            record["grad_l2"], rel=2 * scale["grad_l2"]
        ), number
        optimizer.step()
        assert torch.as_tensor(student.temp).item() == pytest.approx(record["temp_after"], rel=SPACING)
        parameters = torch.cat([each.flatten() for each in student.parameters()])
        check_digest(parameters, record["parameters_after"], rel=1e-9)  # a step changes it by 1e-6
        statistics = [each for key, each in student.named_buffers() if "num_batches" not in key]
        check_digest(torch.cat(statistics), record["running_stats_after"])

    student.eval()
    with torch.no_grad():
        logits = student(*episodes()).flatten(0, 1)
    check_digest(logits, run["eval_logits_after"])
    entropy = F.cross_entropy(logits, TARGETS).item()
    assert entropy == pytest.approx(run["eval_cross_entropy_after"], rel=1e-6)
    accuracy = (logits.argmax(1) == TARGETS).double().mean().item()
    assert accuracy == pytest.approx(run["eval_accuracy_after"])


def no_images() -> FewShotDataset:
    """As many images as an episode takes, and none that is looked at: the golden ones are no bytes."""
    count = WAY * (SHOT + QUERY)
    split = ImageSplit(
        torch.zeros(count, 3, PIXELS, PIXELS, dtype=torch.uint8),
        torch.arange(WAY).repeat_interleave(SHOT + QUERY),
    )
    names, ones = tuple("abcde"), (1.0, 1.0, 1.0)
    return FewShotDataset("none", names, (), names, split, None, None, None, split, ones, ones)


def golden_recipe() -> Recipe:
    """What the task reads of a recipe; the steps here are taken without a trainer."""
    return Recipe(
        name="golden",
        epochs=20,
        batch_size=320,
        evaluation_batch_size=320,
        drop_last=False,
        label_smoothing=0.0,
        validation=0.0,
        statistics="none",
        lr=0.001,
        lr_by_model={},
        optimizer={},
        decay_norm_and_bias=True,
        gradient_clip=None,
        schedule={},
    )


def asked_once(teacher: MetaBaseline) -> None:
    """Keeps the teacher's answer, a sixth of the work: all steps are of the same episodes."""
    answers: list[tuple[Tensor, Tensor, Tensor]] = []
    forward = teacher.forward

    def answer(shots: Tensor, queries: Tensor) -> Tensor:
        assert not teacher.training
        if not answers:
            answers.append((shots, queries, forward(shots, queries)))
        assert torch.equal(shots, answers[0][0])
        assert torch.equal(queries, answers[0][1])
        return answers[0][2]

    teacher.forward = answer  # type: ignore[method-assign]


def test_three_steps_of_the_task() -> None:
    name, recipe = "meta-baseline kd+gda|unit_fan_in", "unit_fan_in"
    teacher = create_model(ENCODER, num_classes=None)
    of_teacher = weights(MetaBaseline(teacher), recipe, "teacher/")
    task = MetaBaselineTask(
        student=create_model(ENCODER, num_classes=None),
        teacher=teacher,
        distiller=loss(),
        dataset=no_images(),
        recipe=golden_recipe(),
        train_transforms={"flip": HorizontalFlip()},  # else the teacher looks up images that it has seen
        test_transforms={},
        seed=0,
        device=torch.device("cpu"),
        teacher_temperature=float(of_teacher.pop("temp")),
        train_batches=3,
        pool_episodes=True,
        shots=(SHOT,),
        batches=1,
    )
    assert task.teacher is not None
    task.teacher.load_state_dict(of_teacher)
    task.student.load_state_dict(weights(task.student, recipe))
    task.teacher.double()
    task.student.double()
    asked_once(task.teacher)
    batch = EpisodeBatch(
        *episodes(),
        targets=TARGETS.unflatten(0, (EPISODES, -1)),
        indices=torch.zeros(EPISODES, WAY, SHOT + QUERY, dtype=torch.int64),
    )

    def step(number: int) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
        output = task.training_step(batch, Progress(0, 20, number, 3))
        if number == 0:
            check_digest(output.tensors["teacher logits"], RUNS[name]["float32"]["teacher_logits"])
        return output.loss, output.terms, output.tensors["student logits"]

    follow(name, task.student, step)
