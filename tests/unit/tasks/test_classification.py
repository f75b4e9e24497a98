"""Classification as runs do it: what the teacher, the terms and the random streams see."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.app import FinishedRun, finish
from gda.data.loader import Batch
from gda.distillers import RunFacts, Term, TermInputs
from gda.tasks.classification import ClassificationTask

Compose = Callable[..., dict[str, Any]]


class ProbeTerm(Term):
    """Records what a term is given; its own parameter is trained along."""

    seen: list[TermInputs]
    facts: list[RunFacts]
    seen, facts = [], []
    needs_views = ("second",)

    def __init__(self, student_tap: str = "layer2", teacher_tap: str = "layer3") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.student_features, self.teacher_features = (student_tap,), (teacher_tap,)

    def setup(self, facts: RunFacts) -> None:
        self.facts.append(facts)

    def forward(self, inputs: TermInputs) -> Tensor:
        self.seen.append(inputs)
        student = inputs.student.features[self.student_features[0]].mean()
        assert inputs.teacher is not None
        return self.scale * (student - inputs.teacher.features[self.teacher_features[0]].mean()) ** 2


@dataclass
class Record:
    """What one run did."""

    finished: FinishedRun
    task: ClassificationTask
    initial: dict[str, Tensor]
    batches: list[Batch]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (self.finished.folder / "metrics.jsonl").read_text().splitlines()
        ]


@pytest.fixture
def record(tiny: Compose, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Record]:
    """Finishes a run and tells what its task went through; the teacher's own run is left out."""

    def make(*overrides: str, study: str, terms: dict[str, Any] | None = None) -> Record:
        config = tiny(f"runs={runs}", f"study={study}", *overrides)
        config["distiller"]["terms"] |= terms or {}
        config["recipe"]["view_transforms"]["second"] = {}  # the train transforms drawn anew
        tasks: list[ClassificationTask] = []
        initial: dict[str, Tensor] = {}
        batches: list[Batch] = []
        step = ClassificationTask.training_step

        def watched(task: ClassificationTask, batch: Batch, progress: Any) -> Any:
            if not tasks or task is not tasks[-1]:  # the teacher's run, if any, came before
                tasks.append(task)
                batches.clear()
                initial.clear()
                initial.update({key: value.clone() for key, value in task.student.state_dict().items()})
            batches.append(Batch(batch.images.clone(), batch.targets.clone(), batch.indices.clone()))
            return step(task, batch, progress)

        ProbeTerm.seen.clear()
        ProbeTerm.facts.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ClassificationTask, "training_step", watched)
            finished = finish(config)
        return Record(finished, tasks[-1], dict(initial), list(batches))

    return make


PROBE = {"probe": {"_target_": f"{__name__}.ProbeTerm", "weight": 0.5}}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def same_batches(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(one, other, strict=True)
    )


def test_runs_of_equal_seed_differ_by_the_method_alone(record: Callable[..., Record]) -> None:
    vanilla = record("distiller=vanilla", "alignment=none", "teacher=none", study="crn")
    others = [
        record("distiller=kd", "alignment=gda", study="crn"),
        record("distiller=aug_conf", "alignment=none", "ground_truth=teacher", study="crn"),
        record("distiller=kd", "alignment=none", study="crn", terms=PROBE),
    ]
    assert len(vanilla.batches) == 2 * 4
    for other in others:
        assert same_state(vanilla.initial, other.initial)
        assert same_batches(vanilla.batches, other.batches)
        assert not same_state(vanilla.task.student.state_dict(), other.task.student.state_dict())
    seed = record("distiller=vanilla", "alignment=none", "teacher=none", "seed=1", study="crn")
    assert not same_state(vanilla.initial, seed.initial)
    assert [b.indices.tolist() for b in vanilla.batches] != [b.indices.tolist() for b in seed.batches]


def test_the_order_and_the_augmentation_change_from_epoch_to_epoch(record: Callable[..., Record]) -> None:
    run = record("distiller=vanilla", "alignment=none", "teacher=none", study="epochs")
    orders = [torch.cat([b.indices for b in run.batches[start : start + 4]]).tolist() for start in (0, 4)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert orders[0] != orders[1]
    images = [torch.cat([b.images for b in run.batches[start : start + 4]]) for start in (0, 4)]
    by_index = [x[torch.tensor(order).argsort()] for x, order in zip(images, orders, strict=True)]
    assert not torch.equal(*by_index)


def test_the_teacher_never_learns(record: Callable[..., Record]) -> None:
    modes: list[bool] = []
    gradients: list[bool] = []
    ask = ClassificationTask.ask_teacher

    def watched(task: ClassificationTask, images: Tensor) -> Any:
        assert task.teacher is not None
        modes.extend(module.training for module in task.teacher.modules())
        gradients.extend(p.requires_grad for p in task.teacher.parameters())
        output = ask(task, images)
        assert output is not None
        assert not output.logits.requires_grad
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "ask_teacher", watched)
        run = record("distiller=kd", "alignment=gda", study="teacher", terms=PROBE)
    assert len(modes) > 8
    assert not any(modes)
    assert not any(gradients)
    assert run.task.teacher is not None
    assert all(p.grad is None for p in run.task.teacher.parameters())
    facts = json.loads((run.finished.folder / "run.json").read_text())
    saved = torch.load(facts["teacher_weights"], weights_only=True)["model"]
    assert same_state(dict(run.task.teacher.state_dict()), saved)  # batch statistics included
    trained = {id(p) for module in run.task.modules.values() for p in module.parameters()}
    assert not trained & {id(p) for p in run.task.teacher.parameters()}


def test_the_teacher_is_evaluated_before_training(record: Callable[..., Record]) -> None:
    run = record("distiller=kd", "alignment=none", study="before")
    first, *rest = run.rows
    assert first["epoch"] == 0
    assert {"teacher_test_top1", "teacher_test_ece", "teacher_validation_top1"} <= first.keys()
    teacher_row = json.loads(
        next(run.finished.folder.parents[2].glob("teachers/*/seed0/metrics.jsonl"))
        .read_text()
        .splitlines()[-1]
    )
    for name in ("top1", "top5", "loss", "ece"):
        assert first[f"teacher_test_{name}"] == pytest.approx(teacher_row[f"test_{name}"], rel=1e-6)
    for row in rest:
        for split in ("validation", "test"):
            for name in ("top1", "top5", "loss", "ece", "agreement", "teacher_kl"):
                assert f"{split}_{name}" in row


def test_label_free_training_shows_no_label_to_any_term(record: Callable[..., Record]) -> None:
    run = record("distiller=dkd", "alignment=gda", "ground_truth=teacher", study="free", terms=PROBE)
    assert len(ProbeTerm.seen) == len(run.batches) == 8
    for inputs in ProbeTerm.seen:
        assert inputs.teacher is not None
        torch.testing.assert_close(inputs.targets, inputs.teacher.logits.softmax(dim=1))
    (facts,) = ProbeTerm.facts
    assert facts.labels is None
    assert (facts.classes, facts.train_size) == (10, 60)
    assert facts.training_batches is not None
    assert [labels for _, labels in facts.training_batches()] == [None] * 4


def test_label_free_training_does_not_depend_on_the_labels(
    record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with every training label replaced the student comes out the same."""
    overrides = ("distiller=dkd", "alignment=gda", "ground_truth=teacher")
    honest = record(*overrides, study="free2")
    setup = ClassificationTask.__init__

    def lying(task: ClassificationTask, *arguments: Any, **named: Any) -> None:
        named["dataset"].train.targets.copy_(named["dataset"].train.targets.flip(0))
        setup(task, *arguments, **named)

    monkeypatch.setattr(ClassificationTask, "__init__", lying)
    other = record(*overrides, study="free3")
    assert not same_batches(honest.batches, other.batches)
    assert same_state(dict(honest.task.student.state_dict()), dict(other.task.student.state_dict()))


def test_with_labels_terms_see_the_labels(record: Callable[..., Record]) -> None:
    run = record("distiller=kd", "alignment=none", study="labels", terms=PROBE)
    (facts,) = ProbeTerm.facts
    assert facts.labels is not None
    for inputs, batch in zip(ProbeTerm.seen, run.batches, strict=True):
        assert torch.equal(inputs.targets, batch.targets)
        assert torch.equal(inputs.indices, batch.indices)
        assert torch.equal(facts.labels[batch.indices], batch.targets)


def test_terms_may_see_the_training_images_in_order_as_in_evaluation(record: Callable[..., Record]) -> None:
    run = record("distiller=kd", "alignment=none", study="images", terms=PROBE)
    (facts,) = ProbeTerm.facts
    assert facts.training_batches is not None
    once, again = list(facts.training_batches()), list(facts.training_batches())
    images = torch.cat([images for images, _ in once])
    assert torch.equal(images, torch.cat([images for images, _ in again]))
    assert torch.equal(torch.cat([labels for _, labels in once if labels is not None]), facts.labels)
    evaluation = run.task.evaluations["test"].pipeline
    expected = evaluation(run.task.train_loader.images, torch.Generator())
    torch.testing.assert_close(images, expected)
    assert not torch.allclose(images[run.batches[0].indices], run.batches[0].images)  # augmented


def test_views_taps_and_parameters_of_terms(record: Callable[..., Record]) -> None:
    run = record("distiller=kd", "alignment=none", study="views", terms=PROBE)
    for inputs, batch in zip(ProbeTerm.seen, run.batches, strict=True):
        assert set(inputs.views) == {"second"}
        assert inputs.views["second"].images.shape == batch.images.shape
        assert not torch.equal(inputs.views["second"].images, batch.images)
        assert inputs.teacher is not None
        assert set(inputs.student.features) == {"layer2"}
        assert set(inputs.teacher.features) == {"layer3"}
        assert inputs.student.features["layer2"].requires_grad
        assert not inputs.teacher.features["layer3"].requires_grad
        assert len(inputs.student.features["layer2"]) == len(batch.images)
    state = torch.load(run.finished.folder / "last.pt", weights_only=True)
    assert float(state["modules"]["distiller"]["terms.probe.scale"]) != 1.0
    assert "term/probe" in run.rows[-1]
    again = record("distiller=kd", "alignment=none", study="views2", terms=PROBE)
    assert same_state(dict(run.task.student.state_dict()), dict(again.task.student.state_dict()))


def test_draws_of_terms_come_from_a_stream_of_their_own(record: Callable[..., Record]) -> None:
    record("distiller=kd", "alignment=none", study="draws", terms=PROBE)
    draws = [float(torch.rand((), generator=inputs.generator)) for inputs in ProbeTerm.seen]
    assert len(set(draws)) == len(draws)
    record("distiller=kd", "alignment=none", study="draws2", terms=PROBE)
    assert draws == [float(torch.rand((), generator=inputs.generator)) for inputs in ProbeTerm.seen]


def test_a_teacher_of_plain_training_only_measures(record: Callable[..., Record]) -> None:
    with_teacher = record("distiller=vanilla", "alignment=none", study="plain")
    without = record("distiller=vanilla", "alignment=none", "teacher=none", study="plain2")
    assert same_state(dict(with_teacher.task.student.state_dict()), dict(without.task.student.state_dict()))
    assert "test_agreement" in with_teacher.rows[-1]
    assert "test_agreement" not in without.rows[-1]
    assert with_teacher.finished.identity.group == without.finished.identity.group


def test_the_evaluation_batch_size_changes_no_figure(record: Callable[..., Record]) -> None:
    one, other = (
        record("alignment=none", f"recipe.evaluation_batch_size={size}", study=f"size{size}").rows[-1]
        for size in (77, 512)
    )
    assert one == pytest.approx(other, rel=1e-5)
    assert one["test_top1"] == other["test_top1"]
