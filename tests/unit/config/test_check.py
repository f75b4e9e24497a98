"""The whole-config check: every fault of a config at once, each with the override that fixes it."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gda.config.check import check, resolved
from gda.config.faults import ConfigFaults
from gda.models import create_model

Faults = Callable[..., dict[str, str]]
Changed = Callable[..., dict[str, Any]]


def test_the_tiny_config_is_right(faults: Faults) -> None:
    assert faults() == {}


def test_unrelated_faults_are_all_reported(faults: Faults) -> None:
    found = faults(
        {
            "distiller.terms.kd.temperature": 0,
            "recipe.optimizer.momentun": 0.9,
            "trainer.precision": "float23",
            "dataset.train_size": 5000,
            "alignment.sinkhorn.epsilon": -1,
        }
    )
    assert set(found) == {
        "distiller.terms.kd.temperature",
        "recipe.optimizer.momentun",
        "trainer.precision",
        "dataset",
        "alignment.sinkhorn.epsilon",
    }
    assert "did you mean 'momentum'" in found["recipe.optimizer.momentun"]
    assert "one of 'float32', 'bfloat16', 'float16'" in found["trainer.precision"]
    text = str(ConfigFaults(check({"study": "x"})))
    assert text.startswith("There are ")
    assert "nothing was run" in text


@pytest.mark.parametrize(
    ("where", "value", "distiller", "expected", "fix"),
    [
        ("distiller.terms.kd.temperature", 0, "kd", "greater than 0", "=4.0"),
        ("distiller.terms.kd.temperature", -1.5, "kd", "greater than 0", "=4.0"),
        ("distiller.terms.kd.weight", -0.1, "kd", "at least 0", ""),
        ("distiller.ground_truth_weight", -1, "kd", "at least 0", ""),
        ("distiller.terms.dkd.weight.value", -1, "dkd", "at least 0", ""),
        ("distiller.terms.dkd.weight.warmup_epochs", -1, "dkd", "at least 0", ""),
        ("distiller.terms.aug_conf.alpha_max", 1.5, "aug_conf", "at most 1", "=0.5"),
        ("distiller.terms.aug_conf.alpha_max", -0.1, "aug_conf", "at least 0", "=0.5"),
        ("distiller.terms.aug_conf.ramp", 2, "aug_conf", "at most 1", "=0.3"),
        ("distiller.terms.adapt_conf.tau", 0, "adapt_conf", "greater than 0", "=0.5"),
        ("alignment.sinkhorn.epsilon", 0, "kd", "greater than 0", "=0.1"),
        ("alignment.sinkhorn.temperature", 0, "kd", "greater than 0", "=2.0"),
        ("alignment.sinkhorn.iterations", 0, "kd", "at least 1", "=20"),
        ("alignment.sinkhorn.reduction", "men", "kd", "one of 'sum', 'mean'", "=sum"),
        ("alignment.fisher_rao.weight", -0.02, "kd", "at least 0", ""),
        ("dataset.mean", [0.5, 0.5], "kd", "a list of 3 values", ""),
        ("dataset.std", [0.5, "x", 0.5], "kd", "a number", ""),
        ("dataset.validation", 1.0, "kd", "less than 1", ""),
        ("recipe.epochs", 0, "kd", "at least 1", ""),
        ("recipe.gradient_clip", 0, "kd", "greater than 0", ""),
        ("recipe.lr", 0, "kd", "greater than 0", ""),
        ("recipe.batch_size", 1, "kd", "a batch of one", "=64"),
        ("trainer.ema_decay", 1.0, "kd", "less than 1", ""),
        ("trainer.threads", 0, "kd", "at least 1", ""),
        ("trainer.device", "gpu", "kd", "not a device", "trainer.device=auto"),
        ("trainer.device", "cuda:99", "kd", "no cuda:99", "trainer.device=auto"),
        ("seed", -1, "kd", "at least 0", ""),
        ("teacher.seed", -1, "kd", "at least 0", ""),
        ("teacher.checkpoint_select", "first", "kd", "'last', 'best'", ""),
        ("tracking.enabled", "yes", "kd", "true or false", ""),
    ],
)
def test_one_wrong_value_is_one_fault(
    where: str, value: Any, distiller: str, expected: str, fix: str, faults: Faults
) -> None:
    found = faults({where: value}, f"distiller={distiller}")
    assert set(found) == {where}
    assert expected in found[where]
    assert fix in found[where]


def test_positive_standard_deviations(faults: Faults) -> None:
    found = faults({"dataset.std": [0.5, 0.0, 0.5]})
    assert set(found) == {"dataset"}
    assert "std must be positive" in found["dataset"]


def test_a_last_batch_of_one(faults: Faults) -> None:
    found = faults({"recipe.batch_size": 59})
    assert set(found) == {"recipe.batch_size"}
    assert "60 images in batches of 59" in found["recipe.batch_size"]
    assert "recipe.drop_last=true" in found["recipe.batch_size"]
    assert faults({"recipe.batch_size": 59, "recipe.drop_last": True}) == {}


def test_too_few_images_for_one_batch(faults: Faults) -> None:
    found = faults({"recipe.batch_size": 64, "recipe.drop_last": True})
    assert "do not fill one batch of 64" in found["recipe.batch_size"]
    assert "recipe.batch_size=60" in found["recipe.batch_size"]
    assert faults({"recipe.batch_size": 64}) == {}


def test_no_learning_rate_for_this_student(faults: Faults) -> None:
    found = faults({"recipe.lr": None})
    assert set(found) == {"recipe.lr"}
    assert "recipe.lr=0.05" in found["recipe.lr"]


def test_image_sizes_are_followed_through_the_transforms(faults: Faults) -> None:
    crop = {"_target_": "gda.data.transforms.CenterCrop", "size": 7}
    found = faults({"recipe.test_transforms": {"crop": crop}})
    assert "come out 8 pixels wide and test images 7" in found["recipe.test_transforms"]
    flip = {"_target_": "gda.data.transforms.HorizontalFlip"}
    found = faults({"recipe.test_transforms": {"flip": flip}})
    assert "random transform" in found["recipe.test_transforms.flip"]
    found = faults({"recipe.test_transforms": {"crop": {**crop, "size": 9}}})
    assert set(found) == {"recipe.test_transforms.crop"}


# -- the teacher ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (("distiller=kd", "alignment=none"), True),
        (("distiller=vanilla", "alignment=gda"), True),
        (("distiller=vanilla", "alignment=none", "ground_truth=teacher"), True),
        (("distiller=vanilla", "alignment=none"), False),
    ],
)
def test_a_loss_that_learns_from_a_teacher_needs_one(
    overrides: tuple[str, ...], needs: bool, faults: Faults
) -> None:
    found = faults({}, "teacher=none", *overrides)
    assert set(found) == ({"teacher"} if needs else set())
    if needs:
        assert "teacher=resnet56" in found["teacher"]
        assert "distiller=vanilla alignment=none ground_truth=labels" in found["teacher"]


def test_terms_of_weight_zero_need_no_teacher(faults: Faults) -> None:
    changes = {"alignment.fisher_rao.weight": 0.0, "alignment.sinkhorn.weight": 0}
    assert faults(changes, "teacher=none", "distiller=vanilla", "alignment=gda") == {}


def test_a_teacher_without_weights_teaches_noise(faults: Faults) -> None:
    found = faults({"teacher.checkpoint": None})
    assert set(found) == {"teacher.checkpoint"}
    assert "teacher.checkpoint=auto" in found["teacher.checkpoint"]


def test_the_best_teacher_needs_validation_images(faults: Faults) -> None:
    assert faults({"teacher.checkpoint_select": "best"}) == {}
    found = faults({"teacher.checkpoint_select": "best", "dataset.validation": 0.0})
    assert "dataset.validation=0.1" in found["teacher.checkpoint_select"]


def test_a_missing_checkpoint(faults: Faults, tmp_path: Path) -> None:
    found = faults({"teacher.checkpoint": str(tmp_path / "nothing.pt")})
    assert set(found) == {"teacher.checkpoint"}
    assert "nothing.pt" in found["teacher.checkpoint"]
    assert "teacher.checkpoint=auto" in found["teacher.checkpoint"]


def test_a_checkpoint_that_fits(faults: Faults, teacher_weights: Path) -> None:
    assert faults({"teacher.checkpoint": str(teacher_weights)}) == {}


def test_a_teacher_of_other_classes(faults: Faults, tmp_path: Path) -> None:
    path = tmp_path / "hundred.pt"
    torch.save(create_model("resnet8", num_classes=100).state_dict(), path)
    found = faults({"teacher.checkpoint": str(path)})
    assert set(found) == {"teacher.checkpoint"}
    assert "trained for 100 classes, and the data set has 10" in found["teacher.checkpoint"]


def test_a_teacher_of_another_architecture(faults: Faults, teacher_weights: Path) -> None:
    found = faults({"teacher.checkpoint": str(teacher_weights)}, "teacher=resnet20")
    assert set(found) == {"teacher.checkpoint"}
    assert "do not fit resnet20" in found["teacher.checkpoint"]
    assert "layer1.1" in found["teacher.checkpoint"]


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint(keep: float, faults: Faults, teacher_weights: Path, tmp_path: Path) -> None:
    data = teacher_weights.read_bytes()
    path = tmp_path / "short.pt"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    found = faults({"teacher.checkpoint": str(path)})
    assert set(found) == {"teacher.checkpoint"}
    assert "can't be read" in found["teacher.checkpoint"]


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_never_runs_code(form: str, faults: Faults, tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "hostile.pt"
    content = {"model": Hostile(f"touch {proof}")}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    found = faults({"teacher.checkpoint": str(path)})
    assert set(found) == {"teacher.checkpoint"}
    assert "can't be read safely" in found["teacher.checkpoint"]
    assert not proof.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert proof.exists(), "the payload itself must work, else this test proves nothing"


def test_a_file_without_weights(faults: Faults, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    found = faults({"teacher.checkpoint": str(tmp_path / "empty.pt")})
    assert "holds no weights" in found["teacher.checkpoint"]


# -- places ----------------------------------------------------------------------------------------


def test_missing_data(faults: Faults, changed: Changed, tmp_path: Path) -> None:
    config = changed()
    for target, more in (("cifar.CIFAR10", {}), ("image_folder.ImageFolder", {})):
        config["dataset"] = {
            "_target_": f"gda.data.{target}",
            "name": "x",
            "root": str(tmp_path / "nowhere"),
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            **more,
        }
        (fault,) = check(config)
        assert fault.where == "dataset"
        assert "nowhere" in fault.what
        assert "dataset.root" in fault.what


def test_a_runs_folder_below_a_file(faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = faults({"runs": str(tmp_path / "file" / "runs")})
    assert set(found) == {"runs"}
    assert "can't be written" in found["runs"]
    assert "runs=FOLDER" in found["runs"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_runs_folder_without_permission(faults: Faults, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert set(faults({"runs": str(tmp_path / "runs")})) == {"runs"}


def test_a_runs_folder_that_does_not_exist_yet(faults: Faults, tmp_path: Path) -> None:
    assert faults({"runs": str(tmp_path / "a" / "b")}) == {}
    assert not (tmp_path / "a").exists()


def test_tracking_that_leads_nowhere(faults: Faults) -> None:
    found = faults({"tracking.uri": "mlruns"}, "tracking=mlflow")
    assert set(found) == {"tracking.uri"}
    assert "tracking.uri=null" in found["tracking.uri"]


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "target", "expected"),
    [
        ("distiller.terms.kd", "gda.distillers.kd.KDD", "did you mean 'KD'"),
        ("distiller.terms.kd", "nobody.Knows", "PYTHONPATH"),
        ("student", "gda.models.create_modle", "create_model"),
        ("recipe.optimizer", "torch.optim.SDG", "SGD"),
        ("recipe.schedule", "gda.training.schedules.Cosin", "Cosine"),
        ("recipe.train_transforms.crop", "gda.data.transforms.PadCorp", "PadCrop"),
        ("recipe.view_transforms.strong.augment", "gda.data.random_augment.Randomaugment", "RandomAugment"),
    ],
)
def test_targets_that_are_not_there(path: str, target: str, expected: str, faults: Faults) -> None:
    found = faults({f"{path}._target_": target})
    assert set(found) == {f"{path}._target_"}
    assert expected in found[f"{path}._target_"]


def test_a_term_must_be_a_term(faults: Faults) -> None:
    term = {"_target_": "gda.distillers.ground_truth.TeacherTargets", "weight": 1.0}
    found = faults({"distiller.terms": {"mine": term}})
    assert "not a Term" in found["distiller.terms.mine._target_"]


def test_an_own_term_may_not_take_the_name_of_an_alignment_term(faults: Faults) -> None:
    """One of the two would be dropped without a word."""
    own = {"sinkhorn": {"_target_": "gda.distillers.kd.KD", "weight": 1.0}}
    assert faults({"distiller.terms": own}, "alignment=none") == {}
    found = faults({"distiller.terms": own}, "alignment=gda")
    assert any("sinkhorn" in text for text in found.values())


def test_a_loss_of_nothing(faults: Faults) -> None:
    changes = {"distiller.ground_truth_weight": 0}
    assert faults(changes, "distiller=kd") == {}
    found = faults(changes, "distiller=vanilla", "alignment=none")
    assert any(where.startswith("distiller") for where in found)


def test_an_unknown_model_name(faults: Faults) -> None:
    found = faults({"student.name": "resnet65"})
    assert set(found) == {"student.name"}
    assert "resnet56" in found["student.name"]


def test_taps_are_looked_up_in_the_models(
    faults: Faults, changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tapping_term.py").write_text(
        "from typing import Annotated\n"
        "from gda.distillers import Term\n"
        "from gda.ranges import Range\n"
        "class Tapping(Term):\n"
        "    def __init__(self, stage: str = 'layer3', knob: Annotated[int, Range(maximum=3)] = 1) -> None:\n"
        "        super().__init__()\n"
        "        self.student_features = self.teacher_features = (stage,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    term = {"_target_": "tapping_term.Tapping", "weight": 1.0}
    assert faults({"distiller.terms": {"mine": term}}) == {}
    found = faults({"distiller.terms": {"mine": {**term, "knob": 4}}})
    assert "at most 3" in found["distiller.terms.mine.knob"]
    both = check(changed({"distiller.terms": {"mine": {**term, "stage": "layer9"}}}, "teacher=resnet20"))
    assert [str(fault) for fault in both] == [
        f"distiller.terms.mine: {model}: the model has no module 'layer9'; "
        "did you mean 'layer3' or 'layer2' or 'layer1'?"
        for model in ("student resnet8", "teacher resnet20")
    ]


@pytest.mark.parametrize(
    ("distiller", "plugin", "where", "expected", "fix"),
    [
        ("vanilla", "lskd", "plugin", "vanilla has no such term", "distiller=kd, or plugin=none"),
        ("fitnet", "sdd", "plugin", "fitnet has no such term", "distiller=kd, or plugin=none"),
        ("mlkd", "sdd", "plugin.plugins.sdd", "means over single samples", "plugin=lskd"),
    ],
)
def test_a_plug_in_needs_a_term_that_it_can_change(
    tiny: Callable[..., dict[str, Any]], distiller: str, plugin: str, where: str, expected: str, fix: str
) -> None:
    (fault,) = check(tiny(f"distiller={distiller}", f"plugin={plugin}"))
    assert (fault.where, fault.fix) == (where, fix)
    assert expected in fault.what


def test_the_framework_sets_its_own_arguments(faults: Faults) -> None:
    assert "set by the framework" in faults({"recipe.optimizer.lr": 0.1})["recipe.optimizer.lr"]
    assert "set by the framework" in faults({"student.num_classes": 5})["student.num_classes"]


def test_unknown_and_missing_keys_of_typed_nodes(faults: Faults, changed: Changed) -> None:
    found = faults({"trainer.treads": 2, "recipe.epoch": 3, "colour": "red"})
    assert set(found) == {"trainer.treads", "recipe.epoch", "colour"}
    config = changed()
    del config["recipe"]["epochs"]
    del config["trainer"]["device"]
    assert {fault.where for fault in check(config)} == {"recipe.epochs", "trainer.device"}


def test_a_config_without_whole_nodes_is_reported_not_crashed(changed: Changed) -> None:
    for name in list(changed()):
        config = changed()
        del config[name]
        assert name in {fault.where for fault in check(config)}
    for name in ("recipe", "distiller", "student", "alignment", "trainer", "dataset"):
        assert name in {fault.where for fault in check({**changed(), name: None})}


@pytest.mark.parametrize("path", ["distiller.terms.kd", "distiller.terms.kd.weight", "recipe.optimizer"])
def test_nulls_in_the_middle_are_reported_not_crashed(path: str, faults: Faults) -> None:
    found = faults({path: None})
    assert any(where.startswith(path) for where in found)


def test_a_learning_rate_table_without_default(faults: Faults, changed: Changed) -> None:
    from gda.config.inputs import identify_run

    changes = {"recipe.lr": None, "recipe.lr_by_model": {"resnet8": 0.05}}
    assert faults(changes) == {}
    assert identify_run(changed(changes)).group == identify_run(changed({"recipe.lr": 0.05})).group


def test_all_broken_interpolations_are_named() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"a": "${nowhere}", "b": {"c": "${..also.nowhere}"}, "d": 1})
    with pytest.raises(ConfigFaults) as error:
        resolved(config)
    assert [fault.where for fault in error.value.faults] == ["a", "b.c"]
