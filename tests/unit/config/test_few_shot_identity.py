"""What makes a group of few-shot runs and of their tests; groups of classification stay what they were."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gda.config.check import check
from gda.config.inputs import facts_of, identify_run, run_path
from gda.models import create_model
from gda.tracking.run_folder import RunFolder

Config = dict[str, Any]
Compose = Callable[..., Config]

# A meta-learner of convnet4 with KD and GDA, taught by a classifier of resnet8; and its test.
META = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "teacher=resnet8"),
    *("task=meta_baseline", "recipe=digits_few_shot_meta", "tracking=none"),
    *("encoder=classifier", "recipe@encoder.recipe=digits_few_shot_classifier"),
)
TEST = "task=few_shot_test"
PLAIN = ("distiller=vanilla", "alignment=none")


@pytest.fixture
def staged(compose: Compose) -> Compose:
    """Composes the meta-learner with overrides, which win."""

    def composed(*overrides: str) -> Config:
        chosen = dict(each.split("=", 1) for each in (*META, *overrides))
        if chosen["student"] != "convnet4":
            del chosen["student.image_size"]
        return compose(*(f"{key}={value}" for key, value in chosen.items()))

    return composed


@pytest.fixture
def group(staged: Compose) -> Callable[..., str]:
    return lambda *overrides: identify_run(staged(*overrides)).group


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained convnet4 for the five base classes, in a file."""
    path = tmp_path_factory.mktemp("weights") / "convnet4.pt"
    torch.manual_seed(3)
    torch.save({"model": create_model("convnet4", num_classes=5, image_size=16).state_dict()}, path)
    return path


@pytest.fixture
def begun(tmp_path: Path) -> Callable[[Config], Path]:
    """Makes the folder of a run as the run itself does, with its description; no weights are read here."""

    def begin(config: Config) -> Path:
        config = {**config, "runs": str(tmp_path)}
        identity = identify_run(config)
        folder = RunFolder(run_path(config, identity))
        folder.begin(config, facts_of(config, identity), epochs=1)
        return folder.path

    return begin


# -- classification --------------------------------------------------------------------------------------

CIFAR = ("dataset=cifar100", "recipe=crd", "teacher=resnet56", "student=resnet20")
BEFORE_FEW_SHOT = {
    (): ("bdccdab31073", "1ef03742a684", "465768ed2703"),
    (*PLAIN, "teacher=none"): ("465768ed2703", None, "465768ed2703"),
    ("distiller=kd", "plugin=lskd", "teacher.checkpoint_select=best"): (
        *("760180d22e56", "bb08afa556fe"),
        "465768ed2703",
    ),
    ("distiller=mlkd", "alignment=none"): ("b965a2ac6088", None, "465768ed2703"),
    ("distiller=dkd", "ground_truth=teacher", "trainer.ema_decay=0.99", "trainer.precision=bfloat16"): (
        *("69e5b8a7d5e9", "501484a568a7"),
        "3071f6e153c9",
    ),
    (*CIFAR, "distiller=review_kd", "alignment=none", "teacher.seed=2"): (
        *("2eedbca0d5b4", None),
        "2392eb1d8ddd",
    ),
    (*CIFAR, "alignment=fisher_rao", "recipe.gradient_clip=1.0", "recipe.label_smoothing=0.1"): (
        *("6a73b813cf46", "4825bfa3536f"),
        "b05b9ad56f0c",
    ),
    ("dataset=cifar10", "recipe=w2s", "teacher=resnet8", "student=resnet56", "distiller=aug_conf"): (
        *("64a120207d3c", "ed9a470a976f"),
        "be0cb3a76570",
    ),
}
"""Groups, and those of twin and vanilla, as the code computed them before there were few-shot runs."""


@pytest.mark.parametrize("overrides", BEFORE_FEW_SHOT, ids=" ".join)
def test_groups_of_classification_are_those_before_few_shot(
    overrides: tuple[str, ...], compose: Compose
) -> None:
    found = identify_run(compose(*overrides))
    assert (found.group, found.twin_group, found.vanilla_group) == BEFORE_FEW_SHOT[overrides]


# -- meta-learners ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        *("dataset.cache=/c", "dataset.max_memory_gib=1", "recipe.evaluation_batch_size=7", "report=true"),
        *("seed=4", "study=other", "runs=elsewhere", "trainer.threads=2", "trainer.device=cuda"),
        "task.teacher_kind=classifier",
    ],
)
@pytest.mark.parametrize("task", ["task=meta_baseline", TEST])
def test_what_does_not_change_a_few_shot_result(task: str, override: str, group: Callable[..., str]) -> None:
    if task == TEST:
        override = override.replace("task.", "task.stage.")
    assert group(task, override) == group(task)


@pytest.mark.parametrize(
    "override",
    [
        *("task.pool_episodes=true", "task.teacher_kind=meta", "task.freeze_batch_norm=true"),
        *("task.train_way=4", "task.train_shot=2", "task.train_query=9", "task.train_batches=7"),
        *("task.train_episodes_per_batch=2", "task.metric=sqr", "task.temperature=5"),
        *("task.learnable_temperature=false", "task.way=4", "task.shots=[1]", "task.shots=[5,1]"),
        *("task.query=9", "task.batches=7", "task.episodes_per_batch=2", "task.episode_seed=1"),
        *("encoder.seed=1", "encoder.seed=null", "encoder.checkpoint_select=best"),
        *("encoder.recipe.epochs=3", "encoder.recipe.lr=0.01", "encoder.task.batches=7"),
        *("teacher.seed=1", "teacher.checkpoint_select=best", "teacher=resnet20"),
        *("dataset.split_seed=1", "dataset.base_test=0.1", "dataset.force=true", "recipe.lr=0.01"),
        *("recipe.last_epoch_without_augmentation=true", "augmentation@recipe.train_transforms=shift"),
        *("distiller=dkd", "alignment=none", "ground_truth=teacher", "trainer.precision=bfloat16"),
    ],
)
def test_what_changes_a_meta_learner(override: str, group: Callable[..., str]) -> None:
    assert group(override) != group()
    in_stage = f"task.stage.{override[5:]}" if override.startswith("task.") else override
    assert group(TEST, in_stage) != group(TEST), "a test of another run is another test"


def test_plain_training_on_episodes_is_one_run_whatever_the_teacher(group: Callable[..., str]) -> None:
    options = [(), ("teacher=none",), ("teacher=resnet20",), ("teacher.seed=3",)]
    options += [("task.pool_episodes=true",), ("task.teacher_kind=meta",)]
    assert len({group(*PLAIN, *more) for more in options}) == 1
    assert group(*PLAIN, "task.train_way=4") != group(*PLAIN)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("task.pool_episodes=true", "task.teacher_kind=meta"),
        ("ground_truth=teacher", "encoder.seed=null"),
        ("distiller=vanilla", "trainer.ema_decay=0.9"),
    ],
    ids=["published", "pooled", "label-free", "alignment alone"],
)
def test_twin_and_vanilla_are_the_real_runs(more: tuple[str, ...], staged: Compose) -> None:
    ours, twin = (identify_run(staged(*more, f"alignment={each}")) for each in ("gda", "none"))
    kept = [each for each in more if each.startswith(("encoder.", "trainer."))]
    vanilla = identify_run(staged(*PLAIN, "teacher=none", *kept))
    assert ours.twin_group == twin.group
    assert ours.vanilla_group == twin.vanilla_group == vanilla.group
    assert len({ours.group, twin.group, vanilla.group}) == (2 if "distiller=vanilla" in more else 3)


def test_an_encoder_file_counts_by_its_content(
    group: Callable[..., str], weights: Path, tmp_path: Path
) -> None:
    moved = shutil.copy(weights, tmp_path / "moved.pt")
    one = group(f"encoder.checkpoint={weights}")
    assert one != group()
    assert group(f"encoder.checkpoint={moved}") == one
    plain = (f"encoder.checkpoint={moved}", "teacher=none", *PLAIN)
    for override in ("encoder.seed=5", "encoder.recipe.epochs=3", "encoder.task.way=3"):
        assert group(*plain, override) == group(*plain), "it says how the classifier of auto is trained"
    Path(moved).write_bytes(weights.read_bytes() + b"\0")
    assert group(f"encoder.checkpoint={moved}") != one


# -- tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        *("task.way=4", "task.shots=[1]", "task.query=9", "task.batches=7", "task.episodes_per_batch=2"),
        *("task.episode_seed=1", "task.metric=sqr", "task.auc=false", "task.probe=false"),
        *("task.probe_batches=3", "dataset.image_size=32", "dataset.force=true"),
        "+recipe.test_transforms.crop={_target_:gda.data.transforms.CenterCrop,size:16}",
    ],
)
@pytest.mark.parametrize("source", ["auto", "file"])
def test_what_changes_a_test(source: str, override: str, group: Callable[..., str], weights: Path) -> None:
    tested = ("encoder.checkpoint=auto",) if source == "auto" else (f"encoder.checkpoint={weights}",)
    assert group(TEST, *tested, override) != group(TEST, *tested)


def test_which_state_of_a_run_is_tested_counts(staged: Compose, begun: Callable[[Config], Path]) -> None:
    folder = begun(staged("trainer.ema_decay=0.9"))
    states = [(), ("encoder.checkpoint_select=best",), ("encoder.weights=ema",)]
    for source in ("auto", folder):
        named = (TEST, "trainer.ema_decay=0.9", f"encoder.checkpoint={source}")
        assert len({identify_run(staged(*named, *state)).group for state in states}) == 3


@pytest.mark.parametrize(
    "stage",
    [
        (),
        ("alignment=none",),
        (*PLAIN, "teacher=none"),
        ("ground_truth=teacher", "task.teacher_kind=meta", "task.pool_episodes=true"),
    ],
    ids=["aligned", "twin", "vanilla", "label-free"],
)
def test_a_folder_and_auto_are_the_same_test(
    stage: tuple[str, ...], staged: Compose, begun: Callable[[Config], Path]
) -> None:
    folder = begun(staged(*stage, "study=somewhere"))
    auto = staged(TEST, *(each.replace("task.", "task.stage.") for each in stage))
    named = staged(TEST, f"encoder.checkpoint={folder}", "distiller=dkd", "alignment=sinkhorn")
    assert identify_run(named) == identify_run(auto)
    facts = [facts_of(config, identify_run(config)) for config in (named, auto)]
    assert facts[0] == facts[1]
    assert facts[0]["task"] == "few_shot_test"
    assert facts[0]["label"] == facts_of(staged(*stage), identify_run(staged(*stage)))["label"]


def test_a_folder_is_one_however_its_path_is_written(
    staged: Compose, begun: Callable[[Config], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(staged())
    torch.save({"model": create_model("convnet4", None, image_size=16).state_dict()}, folder / "last.pt")
    whole = identify_run(staged(TEST, f"encoder.checkpoint={folder}"))
    monkeypatch.chdir(folder.parent)
    assert identify_run(staged(TEST, f"encoder.checkpoint={folder.name}")) == whole
    monkeypatch.setenv("HOME", str(folder.parent))
    assert identify_run(staged(TEST, f"encoder.checkpoint='~/{folder.name}'")) == whole


@pytest.mark.parametrize("source", ["auto", "folder"])
def test_twin_and_vanilla_of_a_test_are_tests_of_twin_and_vanilla(
    source: str, staged: Compose, begun: Callable[[Config], Path]
) -> None:
    named = f"encoder.checkpoint={begun(staged()) if source == 'folder' else 'auto'}"
    ours = identify_run(staged(TEST, named))
    twin = identify_run(staged(TEST, "alignment=none"))
    vanilla = identify_run(staged(TEST, *PLAIN, "teacher=none"))
    assert (ours.twin_group, ours.vanilla_group) == (twin.group, vanilla.group)
    assert (twin.twin_group, twin.vanilla_group) == (None, vanilla.group)
    assert vanilla.vanilla_group == vanilla.group
    tested = identify_run(staged())
    assert len({ours.group, twin.group, vanilla.group, tested.group}) == 4
    more = identify_run(staged(TEST, named, "task.batches=7"))
    assert not {more.group, more.twin_group, more.vanilla_group} & {ours.group, twin.group, vanilla.group}


@pytest.mark.parametrize(
    "override",
    [
        *("distiller=dkd", "plugin=lskd", "alignment=none", "ground_truth=teacher", "teacher=none"),
        *("teacher.seed=3", "recipe.lr=0.1", "recipe.epochs=9", "encoder.recipe.epochs=9", "encoder.seed=3"),
        *("task.stage.train_way=3", "task.stage.temperature=2", "trainer.ema_decay=0.9", "seed=3"),
        *("augmentation@recipe.train_transforms=shift", "encoder.checkpoint_select=best"),
    ],
)
def test_how_a_file_was_trained_is_no_matter_of_its_test(
    override: str, group: Callable[..., str], weights: Path
) -> None:
    """The config describes a run that is not this one."""
    named = (TEST, f"encoder.checkpoint={weights}")
    assert group(*named, override) == group(*named)


def test_a_tested_file_counts_by_its_content(staged: Compose, weights: Path, tmp_path: Path) -> None:
    moved = shutil.copy(weights, tmp_path / "convnet4.pt")
    one = identify_run(staged(TEST, f"encoder.checkpoint={weights}"))
    assert identify_run(staged(TEST, f"encoder.checkpoint={moved}")) == one
    assert (one.label, one.twin_group, one.vanilla_group) == ("weights convnet4", None, None)
    Path(moved).write_bytes(weights.read_bytes() + b"\0")
    assert identify_run(staged(TEST, f"encoder.checkpoint={moved}")).group != one.group


@pytest.mark.parametrize(
    ("source", "override"),
    [
        ("file", "trainer.precision=bfloat16"),
        ("folder", "trainer.precision=bfloat16"),
        ("file", "task.stage.metric=sqr"),
    ],
)
def test_what_changes_how_a_finished_student_is_measured(
    source: str,
    override: str,
    group: Callable[..., str],
    staged: Compose,
    begun: Callable[[Config], Path],
    weights: Path,
) -> None:
    """A test reads these of its own config, also where the tested run is not that of the config."""
    named = (TEST, f"encoder.checkpoint={weights if source == 'file' else begun(staged())}")
    assert group(*named, override) != group(*named)


def test_one_file_in_two_networks_is_two_tests(group: Callable[..., str], weights: Path) -> None:
    """The same weights fit both; which network they are put into is said by the student alone."""
    named = (TEST, f"encoder.checkpoint={weights}", "student=resnet12")
    assert group(*named, "student.pooling=true") != group(*named, "student.pooling=false")


def test_a_folder_is_not_tested_as_another_network(
    staged: Compose, begun: Callable[[Config], Path], tmp_path: Path
) -> None:
    """Either the check refuses it, or it is a test of its own; never that of the run as it was trained."""
    pooled = ("student=resnet12", "student.pooling=true", "dataset.image_size=32")
    folder = RunFolder(begun(staged(*pooled)))
    folder.finish({"last": {}, "best": None})
    torch.save({"model": create_model("resnet12", None, pooling=True).state_dict()}, folder.path / "last.pt")
    named = staged(TEST, f"encoder.checkpoint={folder.path}", *pooled)
    assert check(named) == []
    other = staged(TEST, f"encoder.checkpoint={folder.path}", *pooled, "student.pooling=false")
    assert check(other) != [] or identify_run(other).group != identify_run(named).group


@pytest.mark.parametrize("kind", ["renamed", "another recipe", "another method"])
def test_one_test_of_a_file_is_one_folder(kind: str, staged: Compose, weights: Path, tmp_path: Path) -> None:
    """Two folders of one group and seed would be two runs in a table."""
    renamed = shutil.copy(weights, tmp_path / "renamed.pt")
    named = staged(TEST, f"encoder.checkpoint={weights}")
    other = {
        "renamed": staged(TEST, f"encoder.checkpoint={renamed}"),
        "another recipe": staged(TEST, f"encoder.checkpoint={weights}", "recipe=omniglot_meta"),
        "another method": staged(TEST, f"encoder.checkpoint={weights}", "distiller=dkd", "teacher=none"),
    }[kind]
    same_group = identify_run(named).group == identify_run(other).group
    assert same_group == (run_path(named, identify_run(named)) == run_path(other, identify_run(other)))
