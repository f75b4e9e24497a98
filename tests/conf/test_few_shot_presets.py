"""The presets of few-shot learning: complete, without faults, and with the published values."""

import pickle
from collections.abc import Callable
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gda.config.check import check
from gda.config.identity import identify
from gda.config.loss_nodes import active_terms
from gda.config.overrides import scan
from gda.config.stages import runs_before
from gda.config.stages import tested_run as run_tested_by  # pytest would take the name for a test

CONF = Path(__file__).resolve().parents[2] / "conf"
PRESETS = CONF / "experiment" / "few_shot"
Compose = Callable[..., dict[str, Any]]

MODELS = ("resnet12_bottle", "resnet18_bottle", "resnet36_bottle")
TEACHERS, STUDENT = MODELS[:2], MODELS[2]
METHODS = ("kd", "dkd", "aug_conf", "adapt_conf")
KINDS = ("classifier", "meta")

PLAIN = [f"{stage}/{model}" for stage, model in product(KINDS, MODELS)]
CLASSIFIERS = [
    f"classifier_distilled/{method}_{teacher}_{STUDENT}" for method, teacher in product(METHODS, TEACHERS)
]
META = [
    f"meta_distilled/{method}_{teacher}_{STUDENT}_{kind}_teacher"
    for method, teacher, kind in product(METHODS, TEACHERS, KINDS)
]
DISTILLED = [*CLASSIFIERS, *META]

# Transcribed from the files of config/classifier and config/meta; flags' defaults are not in here. The
# published code has no alpha_max of its own.
TERMS: dict[str, dict[str, dict[str, Any]]] = {
    "classifier": {
        "kd": {"weight": 1.0, "temperature": 1.0},
        "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 0.5, "temperature": 1.0},
        "aug_conf": {"weight": 1.0, "alpha_max": 0.5, "ramp": 0.25, "temperature": 10.0},
        "adapt_conf": {"weight": 1.0, "tau": 8.0, "ramp": 0.25, "temperature": 10.0},
    },
    "meta": {
        "kd": {"weight": 1.0, "temperature": 10.0},
        "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 0.5, "temperature": 10.0},
        "aug_conf": {"weight": 1.0, "alpha_max": 0.5, "ramp": 0.25, "temperature": 10.0},
        "adapt_conf": {"weight": 1.0, "tau": 0.25, "ramp": 0.25, "temperature": 10.0},
    },
}
FISHER_RAO = 0.1
SINKHORN = 0.0008

PUBLISHED = {
    "classifier/resnet12_bottle": ("58.91", "77.76"),
    "meta/resnet12_bottle": ("63.17",),
    "classifier_distilled/adapt_conf_resnet12_bottle_resnet36_bottle": ("61.50", "79.52"),
    "classifier_distilled/adapt_conf_resnet18_bottle_resnet36_bottle": ("62.29", "79.96"),
    "meta_distilled/adapt_conf_resnet12_bottle_resnet36_bottle_classifier_teacher": ("65.38",),
    "meta_distilled/adapt_conf_resnet18_bottle_resnet36_bottle_classifier_teacher": ("65.74",),
    "meta_distilled/adapt_conf_resnet12_bottle_resnet36_bottle_meta_teacher": ("66.08",),
    "meta_distilled/adapt_conf_resnet18_bottle_resnet36_bottle_meta_teacher": ("65.95",),
}


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five files of miniImageNet, with black images of five classes of each kind."""
    root = tmp_path_factory.mktemp("mini-imagenet")
    parts = {"train_phase_train": 0, "train_phase_val": 0, "train_phase_test": 0, "val": 5, "test": 10}
    for part, first in parts.items():
        labels = [label for label in range(first, first + 5) for _ in range(20)]
        content = {"data": np.zeros((len(labels), 84, 84, 3), np.uint8), "labels": labels}
        (root / f"miniImageNet_category_split_{part}.pickle").write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.fixture
def preset(compose: Compose, pickles: Path) -> Compose:
    return lambda name, *more: compose(f"experiment=few_shot/{name}", f"dataset.root={pickles}", *more)


def header(name: str) -> list[str]:
    lines = (PRESETS / f"{name}.yaml").read_text().splitlines()
    return list(takewhile(lambda line: line.startswith("#"), lines))


def line_of(name: str, start: str) -> str:
    (line,) = [line for line in header(name) if line.startswith(start)]
    return line.removeprefix(start)


def weights(config: dict[str, Any]) -> dict[str, float]:
    """The alignment terms that count, with their weights."""
    terms = active_terms(config).items()
    return {
        path.removeprefix("alignment."): node["weight"]
        for path, node in terms
        if path.startswith("alignment.")
    }


def test_there_is_a_preset_for_every_published_command() -> None:
    found = {str(file.relative_to(PRESETS).with_suffix("")) for file in PRESETS.rglob("*/*.yaml")}
    assert found == {*PLAIN, *DISTILLED}


@pytest.mark.parametrize("name", [*PLAIN, *DISTILLED])
def test_a_preset_has_no_faults_and_runs_what_its_name_says(name: str, preset: Compose) -> None:
    assert scan([f"experiment=few_shot/{name}"], [CONF]) == []
    config = preset(name)
    assert check(config) == []
    folder, _, rest = name.partition("/")
    stage = folder.removesuffix("_distilled")
    method, teacher, student = (
        config["distiller"]["name"],
        config["teacher"]["name"],
        config["student"]["name"],
    )
    if folder == stage:
        assert (rest, teacher, method, weights(config)) == (student, None, "vanilla", {})
    else:
        kind = f"_{config['task']['teacher_kind']}_teacher" if stage == "meta" else ""
        assert rest == f"{method}_{teacher}_{student}{kind}"
        assert (config["teacher"]["checkpoint"], config["ground_truth"]["name"]) == ("auto", "labels")
    stages = {"classifier": "few_shot_classifier", "meta": "meta_baseline"}
    recipes = {"classifier": "few_shot_classifier", "meta": "few_shot_meta"}
    encoders = {"classifier": None, "meta": "auto"}
    assert config["dataset"]["name"] == "mini_imagenet"
    assert config["task"]["name"] == stages[stage]
    assert config["recipe"]["name"] == recipes[stage]
    assert config["encoder"]["checkpoint"] == encoders[stage]


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_preset_has_the_published_values_with_and_without_gda(name: str, preset: Compose) -> None:
    stage = name.partition("_")[0]
    aligned, plain = preset(name), preset(name, "alignment=none")
    method = aligned["distiller"]["name"]
    (term,) = aligned["distiller"]["terms"].values()
    weight = term["weight"]
    values = {key: value for key, value in term.items() if key != "_target_"}
    if isinstance(weight, dict):
        assert weight["warmup_epochs"] == 0
        values["weight"] = weight["value"]
    assert values == TERMS[stage][method]
    assert aligned["distiller"]["ground_truth_weight"] == 1
    assert weights(aligned) == {"fisher_rao": FISHER_RAO, "sinkhorn": SINKHORN}
    sinkhorn = {"temperature": 2.0, "epsilon": 0.1, "iterations": 20, "reduction": "sum", "debias": False}
    assert {key: aligned["alignment"]["sinkhorn"][key] for key in sinkhorn} == sinkhorn
    assert weights(plain) == {}
    assert {key for key in aligned if aligned[key] != plain[key]} == {"alignment"}


@pytest.mark.parametrize("name", [CLASSIFIERS[0], META[0]])
def test_an_alignment_that_leaves_a_term_out_leaves_it_out_of_a_preset(name: str, preset: Compose) -> None:
    published = {"fisher_rao": FISHER_RAO, "sinkhorn": SINKHORN}
    kept: dict[str, set[str]] = {
        **{"none": set(), "fisher_rao": {"fisher_rao"}},
        **{"sinkhorn": {"sinkhorn"}, "gda": {"fisher_rao", "sinkhorn"}},
    }
    assert set(kept) == {file.stem for file in (CONF / "alignment").glob("*.yaml")}
    for choice, terms in kept.items():
        config = preset(name, f"alignment={choice}")
        assert config["alignment"]["name"] == choice
        assert weights(config) == {term: published[term] for term in terms}
        assert check(config) == []


def test_weights_of_the_command_line_win_and_ones_own_alignment_gets_the_published_ones(
    preset: Compose,
) -> None:
    typed = preset(META[0], "alignment=fisher_rao", "alignment.sinkhorn.weight=0.05")
    assert weights(typed) == {"fisher_rao": FISHER_RAO, "sinkhorn": 0.05}
    own = preset(META[0], "alignment.name=mine")
    assert weights(own) == {"fisher_rao": FISHER_RAO, "sinkhorn": SINKHORN}


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configs are one run, made once; what is made before them is compared, too."""
    if (identify(one).group, one["seed"]) != (identify(other).group, other["seed"]):
        return False
    before, others = runs_before(one), runs_before(other)
    return before.keys() == others.keys() and all(same_run(before[role], others[role]) for role in before)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_what_a_preset_makes_first_are_the_plain_presets(teacher: str, preset: Compose) -> None:
    first = runs_before(preset(f"classifier_distilled/kd_{teacher}_{STUDENT}"))
    assert set(first) == {"teacher"}
    assert same_run(first["teacher"], preset(f"classifier/{teacher}"))
    for kind in KINDS:
        before = runs_before(preset(f"meta_distilled/kd_{teacher}_{STUDENT}_{kind}_teacher"))
        assert set(before) == {"teacher", "encoder"}
        assert same_run(before["teacher"], preset(f"{kind}/{teacher}"))
        assert same_run(before["encoder"], preset(f"classifier/{STUDENT}"))
    assert not same_run(before["teacher"], preset(f"classifier/{teacher}"))


@pytest.mark.parametrize("name", [*PLAIN, *DISTILLED])
def test_a_preset_says_how_it_is_tested(name: str, preset: Compose) -> None:
    test = preset(name, *line_of(name, "# Test: add ").split())
    assert test["task"]["name"] == "few_shot_test"
    assert run_tested_by(test) == preset(name)


@pytest.mark.parametrize("name", [PLAIN[0], PLAIN[-1], CLASSIFIERS[0], *META[:2]])
def test_the_test_of_a_preset_has_no_faults(name: str, preset: Compose) -> None:
    assert check(preset(name, *line_of(name, "# Test: add ").split())) == []


@pytest.mark.parametrize("name", [CLASSIFIERS[0], META[0]])
def test_without_the_data_only_its_folder_is_missing(name: str, compose: Compose, tmp_path: Path) -> None:
    (fault,) = check(compose(f"experiment=few_shot/{name}", f"dataset.root={tmp_path / 'none'}"))
    assert fault.where == "dataset"
    assert "dataset.root" in fault.what


def test_a_preset_opens_with_its_source_its_commands_and_the_published_figure() -> None:
    for name in [*PLAIN, *DISTILLED]:
        lines = header(name)
        assert lines[0] == "# @package _global_", name
        assert f"# Command: python launch.py experiment=few_shot/{name}" in lines, name
        assert ("# Without GDA: add alignment=none" in lines) == (name in DISTILLED), name
        source = "zhiweihu1103/Logit-Distillation-GDA" if name in DISTILLED else "ggjy/vision_weak_to_strong"
        assert line_of(name, "# Source: repository ").startswith(source), name
        assert any(line.startswith("#   python train_") for line in lines), name
        published = line_of(name, "# Published: ")
        assert all(figure in published for figure in PUBLISHED.get(name, ("no figure",))), name
