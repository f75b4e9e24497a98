"""Mistyped names on the command line: all of them at once, each with the nearest name."""

from pathlib import Path

import pytest

from gda.config.overrides import answer_or_stop, scan

CONF = Path(__file__).resolve().parents[3] / "conf"


def found(*overrides: str, folders: tuple[Path, ...] = ()) -> dict[str, str]:
    return {fault.where: str(fault) for fault in scan(overrides, [CONF, *folders])}


def test_letter_o_for_zero_is_seen_through() -> None:
    (fault,) = scan(["student=resnet2O"], [CONF])
    assert fault.where == "student"
    assert fault.fix == "student=resnet20"
    assert "did you mean 'resnet20'" in fault.what


def test_all_mistyped_names_are_named_at_once() -> None:
    faults = found("student=resnet2O", "distiler=kd", "alignment=gdaa", "datset=digits", "sed=3", "seed=1")
    assert set(faults) == {"student", "distiler", "alignment", "datset", "sed"}
    assert "Try: distiller=kd" in faults["distiler"]
    assert "Try: alignment=gda" in faults["alignment"]
    assert "Try: dataset=digits" in faults["datset"]
    assert "Try: seed=3" in faults["sed"]


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("dataset=cifar-100", "dataset=cifar100"),
        ("teacher=ResNet56", "teacher=resnet56"),
        ("distiller=augconf", "distiller=aug_conf"),
        ("experiment=gda/resnet56_resnet2O", "experiment=gda/resnet56_resnet20"),
        ("recipe=w2", "recipe=w2s"),
    ],
)
def test_the_fix_is_what_to_type(override: str, fix: str) -> None:
    (fault,) = scan([override], [CONF])
    assert fault.fix == fix


def test_a_name_like_no_other_gets_the_list() -> None:
    (fault,) = scan(["ground_truth=zzz"], [CONF])
    assert "labels" in fault.what
    assert "teacher" in fault.what
    assert fault.fix == ""


def test_every_choice_of_a_sweep_is_looked_up() -> None:
    faults = scan(["distiller=kd,dkdd,vanila", "alignment=choice(none,gdda)", "seed=range(0,5)"], [CONF])
    assert [(fault.where, fault.fix) for fault in faults] == [
        ("distiller", "distiller=dkd"),
        ("distiller", "distiller=vanilla"),
        ("alignment", "alignment=gda"),
    ]


@pytest.mark.parametrize("override", ["teacher=null", "alignment=none,null"])
def test_null_is_not_a_choice(override: str) -> None:
    (fault,) = scan([override], [CONF])
    assert "null" in fault.what
    assert fault.fix == f"{override.partition('=')[0]}=none"


@pytest.mark.parametrize(
    "override",
    [
        "student=resnet20",
        "distiller=kd,dkd",
        "experiment=gda/resnet56_resnet20",
        "experiment=demo/vanilla,demo/kd",
        "+extra=1",
        "++seed=1",
        "~sweep",
        "hydra.verbose=true",
        "hydra/launcher=gda_local",
        "distiller.terms.kd.temperature=2",
        "alignment.sinkhorn.weight=0.1,0.2",
        "recipe.optimizer.momentum=0.8",
        "+recipe.train_transforms.flip._target_=gda.data.transforms.HorizontalFlip",
        "study=any-name_at.all",
    ],
)
def test_what_is_right_passes(override: str) -> None:
    assert scan([override], [CONF]) == []


def test_an_override_that_cannot_be_read_is_quoted_and_the_others_are_still_checked() -> None:
    faults = found("study=[a", "student=resnet2O")
    assert "can't be read" in faults["study=[a"]
    assert "Try: student=resnet20" in faults["student"]


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("recipe.epoch=3", "recipe.epochs=3"),
        ("distiller.terms.kd.temprature=2", "distiller.terms.kd.temperature=2"),
        ("alignment.sinkorn.weight=0.2", "alignment.sinkhorn.weight=0.2"),
        ("recipe.optimiser.momentum=0.5", "recipe.optimizer.momentum=0.5"),
    ],
)
def test_mistyped_keys_below_a_group(override: str, fix: str) -> None:
    (fault,) = scan([override], [CONF])
    assert fault.where == override.partition("=")[0]
    assert fault.fix == fix


def test_keys_are_looked_up_in_the_chosen_group() -> None:
    assert scan(["distiller=dkd", "distiller.terms.dkd.beta=2"], [CONF]) == []
    faults = found("distiller=dkd", "distiller.terms.kd.temperature=2", "recipe.epoch=1")
    assert set(faults) == {"distiller.terms.kd.temperature", "recipe.epoch"}


def test_an_argument_that_the_config_leaves_out_is_added(tmp_path: Path) -> None:
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller" / "mine.yaml").write_text(
        "name: mine\nterms: {mine: {_target_: gda.distillers.kd.KD, weight: 1.0}}\n"
    )
    chosen = ("distiller=mine", "distiller.terms.mine.temperature=2", "distiller.terms.mine.temprature=2")
    faults = {fault.where: fault for fault in scan(chosen, [CONF, tmp_path])}
    assert set(faults) == {key.partition("=")[0] for key in chosen[1:]}
    left_out = faults["distiller.terms.mine.temperature"]
    assert left_out.fix == "+distiller.terms.mine.temperature=2"
    assert "KD takes 'temperature'" in left_out.what
    assert "has no 'temprature'" in faults["distiller.terms.mine.temprature"].what


def test_choices_of_an_own_config_folder_are_known(tmp_path: Path) -> None:
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller" / "mine.yaml").write_text(
        "name: mine\nground_truth_weight: 1.0\nterms: {mine: {_target_: a.B, weight: 1.0, knob: 2}}\n"
    )
    assert scan(["distiller=mine", "distiller.terms.mine.knob=3"], [CONF, tmp_path]) == []
    (fault,) = scan(["distiller=mien"], [CONF, tmp_path])
    assert fault.fix == "distiller=mine"
    (fault,) = scan(["distiller=mine", "distiller.terms.mine.nob=3"], [CONF, tmp_path])
    assert fault.fix == "distiller.terms.mine.knob=3"
    (fault,) = scan(["distiller=mine"], [CONF])
    assert "mine" in fault.what


def test_the_command_line_stops_with_one_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        answer_or_stop(CONF, ["-m", "student=resnet2O", "distiler=kd"])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "There are 2 faults in this config; nothing was run" in printed.err
    assert "student=resnet20" in printed.err
    assert "distiller=kd" in printed.err


def test_a_right_command_line_passes_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller" / "mine.yaml").write_text("name: mine\n")
    answer_or_stop(CONF, ["--config-dir", str(tmp_path), "-m", "distiller=mine,kd", "seed=0,1"])
    assert capsys.readouterr() == ("", "")


def test_help_lists_every_group_and_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller" / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(SystemExit) as stop:
        answer_or_stop(CONF, ["--help", "--config-dir", str(tmp_path)])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    for group in ("dataset", "teacher", "student", "distiller", "alignment", "ground_truth", "recipe"):
        assert f"  {group}=" in page
        for file in (CONF / group).rglob("*.yaml"):
            assert file.stem.startswith("_") or file.stem in page
    assert "mine" in page
