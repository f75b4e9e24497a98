"""What makes a group: everything that changes the result, and nothing else."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from gda.config import identity as identity_module
from gda.config.baselines import without_alignment
from gda.config.identity import identify, label_of
from gda.config.inputs import data_fingerprint, facts_of, identify_run, run_path, weights_identity
from gda.config.signature import locate
from gda.config.stages import teacher_run

Compose = Callable[..., dict[str, Any]]
Changed = Callable[..., dict[str, Any]]


@pytest.fixture
def group(changed: Changed) -> Callable[..., str]:
    return lambda *arguments: identify_run(changed(*arguments)).group


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 5),
        ("study", "another"),
        ("runs", "elsewhere"),
        ("check", True),
        ("tracking", {"name": "mlflow", "enabled": True, "uri": None, "experiment": "e"}),
        ("cluster", {"name": "slurm"}),
        ("trainer.threads", 7),
        ("trainer.device", "cuda"),
        ("trainer.deterministic", True),
        ("trainer.finite_check_every", 1),
        ("recipe.evaluation_batch_size", 3),
        ("distiller.terms.kd.temperature", 4),
        ("distiller.terms.kd.temperature", 4.0),
        ("recipe.optimizer.momentum", 0.90),
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_group(
    path: str, value: Any, group: Callable[..., str]
) -> None:
    assert group({path: value}) == group()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("distiller.terms.kd.temperature", 3.0),
        ("distiller.terms.kd.weight", 0.8),
        ("distiller.ground_truth_weight", 0.2),
        ("alignment.fisher_rao.weight", 0.03),
        ("alignment.sinkhorn.epsilon", 0.2),
        ("alignment.sinkhorn.reduction", "mean"),
        ("alignment.sinkhorn.debias", True),
        ("recipe.epochs", 3),
        ("recipe.batch_size", 8),
        ("recipe.lr", 0.06),
        ("recipe.optimizer.momentum", 0.8),
        ("recipe.optimizer.nesterov", False),
        ("recipe.schedule.minimum", 0.0),
        ("recipe.train_transforms.crop.padding", 2),
        ("recipe.drop_last", True),
        ("recipe.gradient_clip", 1.0),
        ("recipe.decay_norm_and_bias", False),
        ("ground_truth.label_smoothing", 0.1),
        ("dataset.train_size", 61),
        ("dataset.validation", 0.3),
        ("dataset.split_seed", 1),
        ("dataset.image_size", 16),
        ("dataset.mean", [0.5, 0.5, 0.5]),
        ("student.name", "resnet20"),
        ("teacher.name", "resnet20"),
        ("teacher.seed", 1),
        ("teacher.checkpoint_select", "best"),
        ("trainer.precision", "bfloat16"),
        ("trainer.ema_decay", 0.9),
    ],
)
def test_what_changes_the_result_changes_the_group(path: str, value: Any, group: Callable[..., str]) -> None:
    assert group({path: value}) != group()


def test_methods_differ_from_each_other(tiny: Compose) -> None:
    groups = {
        identify_run(tiny(f"distiller={distiller}", f"alignment={alignment}", f"ground_truth={truth}")).group
        for distiller in ("vanilla", "kd", "dkd", "aug_conf", "adapt_conf")
        for alignment in ("none", "gda")
        for truth in ("labels", "teacher")
    }
    assert len(groups) == 20


def test_where_the_data_lie_is_no_part_of_the_group(compose: Compose) -> None:
    one, other = (
        identify_run(compose("dataset=cifar100", "recipe=crd", *more))
        for more in (["dataset.root=/a"], ["dataset.root=/b", "dataset.download=true"])
    )
    assert one == other


def test_what_lies_in_an_image_folder_is_part_of_the_group(compose: Compose, image_root, tmp_path) -> None:
    import shutil

    overrides = ("dataset=image_folder", "dataset.image_size=8", "recipe.batch_size=4")
    shutil.copytree(image_root, tmp_path / "copy")
    one = identify_run(compose(*overrides, f"dataset.root={image_root}"))
    assert identify_run(compose(*overrides, f"dataset.root={tmp_path / 'copy'}")) == one
    (tmp_path / "copy" / "train" / "cat" / "00.png").unlink()
    other = identify_run(compose(*overrides, f"dataset.root={tmp_path / 'copy'}"))
    assert other.group != one.group
    assert other.vanilla_group != one.vanilla_group
    assert data_fingerprint(compose()) is None


def test_a_weight_file_counts_by_its_content(
    changed: Changed, group: Callable[..., str], teacher_weights, tmp_path
) -> None:
    copy = tmp_path / "copied.pt"
    copy.write_bytes(teacher_weights.read_bytes())
    one = group({"teacher.checkpoint": str(teacher_weights)})
    assert group({"teacher.checkpoint": str(copy)}) == one
    assert group({"teacher.checkpoint": str(copy), "teacher.seed": 4}) == one
    assert one != group()
    copy.write_bytes(teacher_weights.read_bytes() + b"\0")
    assert group({"teacher.checkpoint": str(copy)}) != one


def test_terms_of_weight_zero_drop_out(changed: Changed, group: Callable[..., str]) -> None:
    more = {"_target_": "gda.distillers.dkd.DKD", "weight": 0.0, "beta": 3.0}
    assert group({"distiller.terms.dkd": more}) == group()
    assert group({"distiller.terms.dkd": {**more, "weight": 0}}) == group()
    assert group({"distiller.terms.dkd": {**more, "weight": {"value": 0.0}}}) == group()
    assert group({"distiller.terms.dkd": {**more, "weight": 0.1}}) != group()


def test_a_switched_off_alignment_drops_out_whatever_its_weights(group: Callable[..., str]) -> None:
    assert group({"alignment.sinkhorn.weight": 0.7}, "alignment=none") == group({}, "alignment=none")


def test_plain_training_ignores_the_teacher(group: Callable[..., str]) -> None:
    vanilla = ("distiller=vanilla", "alignment=none")
    one = group({}, *vanilla, "teacher=none")
    assert group({}, *vanilla) == group({}, *vanilla, "teacher=resnet20") == one
    assert group({"teacher.seed": 9, "teacher.checkpoint": None}, *vanilla) == one


@pytest.mark.parametrize("distiller", ["vanilla", "kd", "dkd"])
@pytest.mark.parametrize("truth", ["labels", "teacher"])
@pytest.mark.parametrize("alignment", ["gda", "sinkhorn"])
def test_twin_and_vanilla_groups_are_those_of_the_real_runs(
    distiller: str, truth: str, alignment: str, tiny: Compose
) -> None:
    common = [f"ground_truth={truth}", "recipe.label_smoothing=0.1"]
    ours = identify_run(tiny(f"distiller={distiller}", f"alignment={alignment}", *common))
    twin = identify_run(tiny(f"distiller={distiller}", "alignment=none", *common))
    vanilla = identify_run(
        tiny("distiller=vanilla", "alignment=none", "teacher=none", "recipe.label_smoothing=0.1")
    )
    assert ours.twin_group == twin.group
    assert ours.vanilla_group == twin.vanilla_group == vanilla.group == vanilla.vanilla_group
    assert twin.twin_group is None


def test_twin_and_vanilla_of_the_published_run(compose: Compose) -> None:
    ours = identify_run(compose("experiment=gda/resnet56_resnet20"))
    same = ("dataset=cifar100", "recipe=w2s", "student=resnet20", "alignment=none")
    assert ours.vanilla_group == identify_run(compose(*same, "distiller=vanilla", "teacher=none")).group
    assert (
        ours.twin_group == identify_run(compose("experiment=gda/resnet56_resnet20", "alignment=none")).group
    )


def test_an_auto_teacher_is_the_same_for_all_who_ask(tiny: Compose) -> None:
    askers = [
        tiny(f"distiller={distiller}", f"alignment={alignment}", f"student={student}", f"seed={seed}", *more)
        for distiller, alignment, student, seed, more in (
            ("kd", "gda", "resnet8", 0, ()),
            ("dkd", "none", "resnet20", 3, ("study=other",)),
            ("vanilla", "gda", "resnet8", 1, ("ground_truth=teacher", "tracking=mlflow")),
            ("kd", "none", "resnet32", 2, ("trainer.threads=3", "teacher.checkpoint_select=best")),
        )
    ]
    made = {identify_run(teacher_run(asker)) for asker in askers}
    assert len(made) == 1
    (teacher,) = made
    for asker in askers:
        select = asker["teacher"]["checkpoint_select"]
        assert weights_identity(asker) == f"run:{teacher.group}:seed0:{select}"
    # The same run as the one that a person would train by hand.
    by_hand = tiny("distiller=vanilla", "alignment=none", "teacher=none", "student=resnet8")
    assert identify_run(by_hand).group == teacher.group
    config = teacher_run(askers[1])
    assert config["seed"] == 0
    assert run_path(config, teacher).parts[-3] == "teachers"


def test_an_auto_teacher_takes_the_learning_rate_of_its_own_architecture(tiny: Compose) -> None:
    overrides = ("recipe.lr=null", "+recipe.lr_by_model.default=0.05", "+recipe.lr_by_model.resnet8=0.01")
    config = tiny(*overrides, "student=resnet8", "teacher=resnet20")
    assert (
        identify_run(teacher_run(config)).group
        == identify_run(
            tiny("recipe.lr=0.05", "student=resnet20", "distiller=vanilla", "alignment=none", "teacher=none")
        ).group
    )


def test_a_teacher_of_another_seed_or_recipe_is_another_teacher(tiny: Compose) -> None:
    identities = {
        weights_identity(tiny(*more))
        for more in ((), ("teacher.seed=1",), ("recipe.epochs=3",), ("dataset.train_size=70",))
    }
    assert len(identities) == 4


# -- the form of the hash --------------------------------------------------------------------------


def test_options_that_were_added_later_do_not_orphan_old_runs(changed: Changed) -> None:
    table = yaml.safe_load(
        identity_module.files("gda.config").joinpath("identity_v1.yaml").read_text(encoding="utf-8")
    )
    config = changed({"dataset.train_size": None})
    new = identify(config, "w")
    for name, defaults in table["config"].items():
        for key in defaults:
            kept = config[name].pop(key)
            assert (identify(config, "w") == new) == (kept == defaults[key]), f"{name}.{key}"
            config[name][key] = kept
    for target, defaults in table["targets"].items():
        bare = {"_target_": target, "weight": 1.0}
        without = identify(changed({"distiller.terms": {"x": bare}}), "w")
        assert identify(changed({"distiller.terms": {"x": {**bare, **defaults}}}), "w") == without, target
        signature = inspect.signature(locate(target)).parameters
        assert {key: signature[key].default for key in defaults} == defaults, target


def test_left_out_values_are_left_out_only_at_that_value(changed: Changed) -> None:
    plain = identify(changed(), "w").group
    for path, value in (("trainer.ema_decay", 0.5), ("recipe.drop_last", True)):
        assert identify(changed({path: value}), "w").group != plain


def test_names_are_readable_and_safe(changed: Changed) -> None:
    found = identify_run(changed({"dataset.name": "my images/../x"}, "ground_truth=teacher"))
    assert found.label == "kd+gda (label-free)"
    assert found.name.endswith(f"-{found.group}")
    assert "/" not in found.name
    assert " " not in found.name
    assert "resnet8-resnet8-kd+gda" in found.name


def test_labels(tiny: Compose) -> None:
    assert label_of(tiny("distiller=vanilla", "alignment=none")) == "vanilla"
    assert label_of(tiny("distiller=dkd", "alignment=sinkhorn")) == "dkd+sinkhorn"
    assert label_of(without_alignment(tiny("distiller=dkd", "alignment=gda"))) == "dkd"


def test_facts_name_the_pair_only_where_the_teacher_teaches(tiny: Compose) -> None:
    config = tiny("teacher=resnet20", "seed=4")
    facts = facts_of(config, identify_run(config))
    assert facts["pair"] == "resnet20 -> resnet8"
    assert (facts["seed"], facts["label"]) == (4, "kd+gda")
    config = tiny("teacher=resnet20", "distiller=vanilla", "alignment=none")
    assert facts_of(config, identify_run(config))["pair"] == "resnet8"


PAIR = ("teacher=resnet56", "student=resnet20")
SNAPSHOT = {
    ("experiment=gda/resnet56_resnet20",): "6185520ac444",
    ("dataset=cifar100", "recipe=crd", *PAIR, "distiller=dkd", "alignment=gda"): "ea6a4dc8e391",
    ("dataset=cifar100", "recipe=crd", *PAIR, "distiller=vanilla", "alignment=none"): "2392eb1d8ddd",
    ("dataset=cifar10", "recipe=w2s", *PAIR, "distiller=adapt_conf", "alignment=sinkhorn"): "d5e5237696e7",
    ("dataset=cifar100", "recipe=w2s", *PAIR, "distiller=aug_conf", "ground_truth=teacher"): "06ef6670a81c",
}


@pytest.mark.parametrize("overrides", SNAPSHOT, ids=" ".join)
def test_the_hash_is_frozen(overrides: tuple[str, ...], compose: Compose) -> None:
    """A change here orphans everybody's runs: it needs a line in identity_v1.yaml, or a version 2."""
    assert identify_run(compose(*overrides)).group == SNAPSHOT[overrides]
