"""Runs that a few-shot run builds on: which they are, who shares them, where their faults are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gda.config import stages
from gda.config.check import check
from gda.config.inputs import identify_run, run_path
from gda.config.stages import encoder_run, runs_before, teacher_run

Config = dict[str, Any]
Compose = Callable[..., Config]

# A meta-learner of convnet4, taught by a classifier of resnet8.
META = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "teacher=resnet8"),
    *("task=meta_baseline", "recipe=digits_few_shot_meta", "tracking=none"),
    *("encoder=classifier", "recipe@encoder.recipe=digits_few_shot_classifier"),
)
SAME_ARCHITECTURE = ("teacher=convnet4", "teacher.image_size=16")
CLASSIFIER = ("task=few_shot_classifier", "recipe=digits_few_shot_classifier", "encoder=none", "-encoder")
TEST = ("task=few_shot_test",)
TEST_OF_A_CLASSIFIER = (*TEST, "task@task.stage=few_shot_classifier", "recipe=digits_few_shot_classifier")
PLAIN = ("distiller=vanilla", "alignment=none", "teacher=none")


@pytest.fixture
def staged(compose: Compose) -> Compose:
    """Composes the meta-learner with overrides; `-encoder` takes back what stands there for its recipe."""

    def composed(*overrides: str) -> Config:
        chosen = dict(each.split("=", 1) for each in (*META, *overrides) if "=" in each)
        if "-encoder" in overrides:
            del chosen["recipe@encoder.recipe"]
        if chosen["student"] != "convnet4":
            del chosen["student.image_size"]
        return compose(*(f"{key}={value}" for key, value in chosen.items()))

    return composed


def in_short(config: Config) -> tuple[str, str, str, str, int]:
    return (
        config["task"]["name"],
        config["student"]["name"],
        config["recipe"]["name"],
        config["study"],
        config["seed"],
    )


def place(config: Config) -> Path:
    return run_path(config, identify_run(config))


def faults(config: Config) -> dict[str, str]:
    """The faults by the place that they name, each place once."""
    found = check(config)
    assert len({fault.where for fault in found}) == len(found), "\n".join(map(str, found))
    return {fault.where: str(fault) for fault in found}


# -- which runs ------------------------------------------------------------------------------------------

OF_RESNET8 = ("few_shot_classifier", "resnet8", "digits_few_shot_classifier", "teachers", 2)
OF_CONVNET4 = ("few_shot_classifier", "convnet4", "digits_few_shot_classifier", "teachers", 3)
SEEDS = ("seed=1", "teacher.seed=2", "encoder.seed=3")


@pytest.mark.parametrize(
    ("overrides", "before"),
    [
        ((), {"teacher": OF_RESNET8, "encoder": OF_CONVNET4}),
        (
            ("task.teacher_kind=meta",),
            {
                "teacher": ("meta_baseline", "resnet8", "digits_few_shot_meta", "teachers", 2),
                "encoder": OF_CONVNET4,
            },
        ),
        (("distiller=vanilla", "alignment=none"), {"teacher": OF_RESNET8, "encoder": OF_CONVNET4}),
        (("encoder.checkpoint=file.pt",), {"teacher": OF_RESNET8}),
        (("teacher.checkpoint=file.pt",), {"encoder": OF_CONVNET4}),
        (("encoder.checkpoint=file.pt", "teacher.checkpoint=other.pt"), {}),
        (TEST, {"encoder": ("meta_baseline", "convnet4", "digits_few_shot_meta", "main", 1)}),
        ((*TEST, "encoder.checkpoint=file.pt"), {}),
        (
            TEST_OF_A_CLASSIFIER,
            {"encoder": ("few_shot_classifier", "convnet4", "digits_few_shot_classifier", "main", 1)},
        ),
    ],
    ids=[
        *("classifier teacher", "meta teacher", "plain, measured", "encoder file", "teacher file", "files"),
        *("test", "test of a file", "test of a classifier"),
    ],
)
def test_what_a_run_builds_on(
    overrides: tuple[str, ...], before: dict[str, tuple[str, str, str, str, int]], staged: Compose
) -> None:
    found = runs_before(staged(*SEEDS, *overrides))
    assert {role: in_short(config) for role, config in found.items()} == before


def test_a_run_without_teacher_builds_on_its_encoder_alone(staged: Compose) -> None:
    assert list(runs_before(staged(*PLAIN))) == ["encoder"]
    assert runs_before(staged(*CLASSIFIER, *PLAIN)) == {}


def test_a_classifier_is_taught_by_a_classifier_of_its_own_recipe_and_task(staged: Compose) -> None:
    before = runs_before(staged(*CLASSIFIER, "recipe.epochs=7", "task.batches=9"))
    assert list(before) == ["teacher"]
    assert (before["teacher"]["recipe"]["epochs"], before["teacher"]["task"]["batches"]) == (7, 9)
    assert runs_before(before["teacher"]) == {}


@pytest.mark.parametrize(
    "overrides",
    [(), ("task.teacher_kind=meta",), TEST, TEST_OF_A_CLASSIFIER],
    ids=["classifier teacher", "meta teacher", "test", "test of a classifier"],
)
def test_every_stage_can_be_run_and_the_first_build_on_nothing(
    overrides: tuple[str, ...], staged: Compose
) -> None:
    def depth(config: Config) -> int:
        assert check(config) == []
        return 1 + max((depth(before) for before in runs_before(config).values()), default=0)

    assert depth(staged(*overrides)) == (3 if overrides else 2)


def test_the_tested_run_is_the_one_that_is_started_by_hand(staged: Compose) -> None:
    options = ("distiller=dkd", "seed=4", "study=s", "encoder.seed=null", "trainer.ema_decay=0.9")
    stage = ("train_way=3", "shots=[2]", "pool_episodes=true", "teacher_kind=meta")
    by_hand = staged(*options, *(f"task.{each}" for each in stage))
    test = staged(*options, *TEST, *(f"task.stage.{each}" for each in stage))
    assert place(stages.tested_run(test)) == place(by_hand)
    asked = ("encoder.checkpoint_select=best", "encoder.weights=ema")
    best = staged(*options, *TEST, *asked, *(f"task.stage.{each}" for each in stage))
    assert place(stages.tested_run(best)) == place(by_hand), "which state is tested is no matter of the run"
    classifier = stages.tested_run(staged(*TEST_OF_A_CLASSIFIER, "distiller=fitnet"))
    assert place(classifier) == place(staged(*CLASSIFIER, "distiller=fitnet"))


# -- who shares them -------------------------------------------------------------------------------------


def test_encoder_and_classifier_teacher_of_one_architecture_and_seed_are_one_run(staged: Compose) -> None:
    both = runs_before(staged(*SAME_ARCHITECTURE, "seed=5", "trainer.ema_decay=0.9"))
    assert place(both["teacher"]) == place(both["encoder"])
    by_hand = staged(*CLASSIFIER, *PLAIN, "study=teachers")
    assert place(by_hand) == place(both["encoder"])
    other = runs_before(staged(*SAME_ARCHITECTURE, "teacher.seed=1"))
    assert identify_run(other["teacher"]) == identify_run(other["encoder"])
    assert place(other["teacher"]) != place(other["encoder"])


def test_a_label_free_student_shares_its_encoder_with_all_others(staged: Compose) -> None:
    smoothed = ("encoder.recipe.label_smoothing=0.1", "recipe.label_smoothing=0.2")
    free, labelled = (
        encoder_run(staged(*smoothed, f"ground_truth={each}")) for each in ("teacher", "labels")
    )
    assert place(free) == place(labelled)
    by_hand = staged(*CLASSIFIER, *PLAIN, "recipe.label_smoothing=0.1", "study=teachers")
    assert place(by_hand) == place(labelled)


def test_an_encoder_without_a_seed_follows_the_run(staged: Compose) -> None:
    shared = [staged(f"seed={seed}") for seed in range(3)]
    own = [staged(f"seed={seed}", "encoder.seed=null") for seed in range(3)]
    assert [encoder_run(config)["seed"] for config in shared] == [0, 0, 0]
    assert [encoder_run(config)["seed"] for config in own] == [0, 1, 2]
    assert len({place(encoder_run(config)) for config in own}) == 3
    groups = [{identify_run(config).group for config in configs} for configs in (shared, own)]
    assert [len(each) for each in groups] == [1, 1]
    assert groups[0] != groups[1], "whether seeds share an encoder is part of the experiment"


@pytest.mark.parametrize("kind", ["classifier", "meta"])
def test_a_teacher_is_the_same_for_all_who_ask(kind: str, staged: Compose) -> None:
    asked = [
        (),
        ("student=resnet20",),
        ("student=resnet8", "seed=3", "study=other"),
        ("distiller=dkd", "alignment=none", "plugin=lskd"),
        ("distiller=vanilla", "alignment=sinkhorn"),
        ("ground_truth=teacher", "recipe.label_smoothing=0"),
        ("task.pool_episodes=true", "trainer.ema_decay=0.9", "tracking=mlflow", "trainer.threads=2"),
        ("encoder.seed=7", "encoder.checkpoint_select=best"),
        ("encoder.seed=null", "seed=6"),
        ("encoder.checkpoint=some.pt", "encoder.weights=ema", f"encoder.sha256='{'0' * 64}'"),
        ("report=true",),
    ]
    option = f"task.teacher_kind={kind}"
    places = {place(teacher_run(staged(option, "teacher.seed=1", *more))) for more in asked}
    assert len(places) == 1
    stage = {
        "classifier": CLASSIFIER,
        "meta": ("encoder.seed=1",),  # of a teacher of another seed everything is another
    }[kind]
    by_hand = staged(*stage, "student=resnet8", *PLAIN, "seed=1", "study=teachers")
    assert places == {place(by_hand)}


def test_a_teacher_of_other_episodes_recipe_or_data_is_another(staged: Compose) -> None:
    def teacher(kind: str, *more: str) -> Path:
        return place(teacher_run(staged(f"task.teacher_kind={kind}", *more)))

    for kind, more in (
        ("classifier", "encoder.recipe.epochs=2"),
        ("classifier", "encoder.task.way=3"),
        ("classifier", "dataset.split_seed=1"),
        ("meta", "encoder.recipe.epochs=2"),
        ("meta", "encoder.task.way=3"),
        ("meta", "recipe.epochs=2"),
        ("meta", "task.train_way=3"),
    ):
        assert teacher(kind, more) != teacher(kind), (kind, more)
    for more in ("recipe.epochs=2", "task.train_way=3", "task.metric=sqr"):
        assert teacher("classifier", more) == teacher("classifier"), more


def test_a_meta_teacher_starts_from_its_own_architectures_encoder(staged: Compose) -> None:
    named = ("encoder.checkpoint=some.pt", "encoder.checkpoint_select=best", "encoder.weights=ema")
    teacher = teacher_run(staged("task.teacher_kind=meta", "teacher.seed=2", "encoder.seed=9", *named))
    assert teacher["encoder"]["checkpoint"] == "auto"
    (before,) = runs_before(teacher).values()
    assert in_short(before) == OF_RESNET8
    assert before["encoder"]["checkpoint"] is None


# -- where their faults are named ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (("encoder.recipe.lr=0",), "encoder.recipe.lr", "greater than 0"),
        (("encoder.recipe.batch_size=1",), "encoder.recipe.batch_size", "Try: encoder.recipe.batch_size=64"),
        (("+encoder.recipe.epocs=3",), "encoder.recipe.epocs", "did you mean 'epochs'"),
        (("encoder.recipe.optimizer.momentum=-1",), "encoder.recipe.optimizer", "momentum"),
        (("encoder.task.way=6",), "encoder.task.way", "Try: encoder.task.way=5"),
        (("encoder.task.shots=[]",), "encoder.task.shots", "Try: encoder.task.shots=[1,5]"),
        (("+encoder.task.wya=3",), "encoder.task.wya", "did you mean 'way'"),
        (("task.train_way=6",), "task.train_way", "Try: task.train_way=5"),
        ((*TEST, "task.stage.train_way=6"), "task.stage.train_way", "Try: task.stage.train_way=5"),
        ((*TEST, "task.stage.temperature=0"), "task.stage.temperature", "Try: task.stage.temperature=10.0"),
        ((*TEST, "+task.stage.wya=3"), "task.stage.wya", "did you mean 'way'"),
        ((*TEST, "encoder.recipe.lr=0"), "encoder.recipe.lr", "[in the run to be tested]"),
        ((*TEST, "encoder.task.query=60"), "encoder.task.query", "[in the run to be tested]"),
        ((*TEST, "distiller=fitnet"), "distiller.terms.fitnet", "[in the run to be tested]"),
        ((*TEST, "teacher.checkpoint=lost.pt"), "teacher.checkpoint", "[in the run to be tested]"),
        ((*TEST, "task.way=6"), "task.way", "Try: task.way=5"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("kind", ["classifier", "meta"])
def test_a_fault_of_a_stage_before_is_named_at_its_place(
    kind: str, overrides: tuple[str, ...], where: str, what: str, staged: Compose
) -> None:
    option = f"task.stage.teacher_kind={kind}" if TEST[0] in overrides else f"task.teacher_kind={kind}"
    found = faults(staged(option, *overrides))
    assert list(found) == [where]
    assert what in found[where]


def test_faults_of_all_stages_come_at_once_and_each_once(staged: Compose) -> None:
    wrong = (
        *("encoder.recipe.lr=0", "encoder.task.way=9", "recipe.optimizer.momentum=-1", "distiller=fitnet"),
        *("trainer.device=gpu", "seed=-3", "study=a/b", "tracking.experiment=x"),
    )
    named = {
        *("encoder.recipe.lr", "encoder.task.way", "recipe.optimizer", "distiller.terms.fitnet"),
        *("trainer.device", "seed", "study"),
    }
    assert set(faults(staged(*wrong, "task.train_way=9"))) == {*named, "task.train_way"}
    assert set(faults(staged(*wrong, "task.train_way=9", "task.teacher_kind=meta"))) == {
        *named,
        "task.train_way",
    }
    found = faults(staged(*wrong, *TEST, "task.stage.train_way=9", "task.query=300"))
    assert set(found) == {*named, "task.stage.train_way", "task.query"}


@pytest.mark.parametrize("overrides", [(), TEST], ids=["meta", "test"])
def test_the_wrong_kind_of_data_is_said_once(overrides: tuple[str, ...], staged: Compose) -> None:
    found = check(staged("dataset=digits", "dataset.image_size=16", *overrides))
    assert [fault.where for fault in found] == ["dataset"], "\n".join(map(str, found))
    assert "dataset=digits_few_shot" in found[0].fix


def test_classification_takes_no_base_and_novel_classes(compose: Compose) -> None:
    (fault,) = check(compose("dataset=digits_few_shot", "tracking=none"))
    assert fault.where == "dataset"
    assert "task=few_shot_classifier" in fault.fix


@pytest.mark.parametrize("kind", ["classifier", "meta"])
def test_a_fault_of_the_teachers_model_is_named_at_the_teacher(kind: str, staged: Compose) -> None:
    """In the run that trains it the teacher is the student; for the user it is the teacher all the same."""
    wrong = ("teacher=resnet12_bottle", "dataset.image_size=8", "student=resnet8")
    found = check(staged(*wrong, f"task.teacher_kind={kind}"))
    assert {fault.where.partition(".")[0] for fault in found} == {"teacher"}, "\n".join(map(str, found))
    assert len(found) == 1


def test_a_classifier_teacher_whose_head_does_not_fit_is_named_at_the_teacher(staged: Compose) -> None:
    """The meta-learner needs no head of it; the classifier that is trained first does."""
    found = check(staged("teacher=convnet4", "teacher.image_size=32"))
    assert len(found) == 1
    assert found[0].where.partition(".")[0] == "teacher", str(found[0])


def test_a_classifier_teacher_needs_no_learning_rate_of_the_meta_recipe(staged: Compose) -> None:
    rates = ("recipe.lr=null", "+recipe.lr_by_model.convnet4=0.001")
    assert check(staged(*rates)) == []
    (fault,) = check(staged(*rates, "task.teacher_kind=meta"))
    assert fault.where == "recipe.lr"
    assert "resnet8" in fault.what


def test_a_learning_rate_that_both_classifiers_lack_is_one_fault(staged: Compose) -> None:
    found = faults(staged("encoder.recipe.lr=null"))
    assert list(found) == ["encoder.recipe.lr"]


def test_a_test_is_not_tested(staged: Compose) -> None:
    """A test learns nothing: there are no weights in its folder that another could test."""
    found = check(staged(*TEST, "task@task.stage=few_shot_test"))
    assert [fault.where.startswith("task.stage") for fault in found] == [True]


def test_no_stage_trains_on_another_kind_of_data(staged: Compose) -> None:
    (fault,) = check(staged(*TEST, "task@task.stage=classification"))
    assert (fault.where, "takes one set" in fault.what) == ("dataset", True)
