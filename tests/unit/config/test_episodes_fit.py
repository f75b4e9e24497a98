"""Which episodes a data set has enough classes and images for, and which methods can be used on episodes."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gda.config.check import check
from gda.config.episodes_fit import check_episodes
from gda.data.few_shot.listing import FewShotFacts, SplitFacts

Config = dict[str, Any]
Compose = Callable[..., Config]

META = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "teacher=resnet8"),
    *("task=meta_baseline", "recipe=digits_few_shot_meta", "tracking=none"),
    *("encoder=classifier", "recipe@encoder.recipe=digits_few_shot_classifier"),
)
CONF = Path(__file__).resolve().parents[3] / "conf"
# Episodes that the images of `folder` are enough for, in both stages.
SMALL = (
    *("task.train_way=2", "task.train_shot=1", "task.train_query=2"),
    *(f"{stage}.{each}" for stage in ("task", "encoder.task") for each in ("way=2", "query=2", "shots=[1]")),
)


@pytest.fixture
def staged(compose: Compose) -> Compose:
    """Composes a meta-learner with overrides, which win."""

    def composed(*overrides: str) -> Config:
        chosen = dict(each.split("=", 1) for each in (*META, *overrides))
        return compose(*(f"{key}={value}" for key, value in chosen.items()))

    return composed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three base classes, two to validate on and three novel ones; one base and one novel class are small."""
    root = tmp_path_factory.mktemp("images")
    counts = {"ant": 9, "bee": 3, "cat": 9, "dog": 9, "eel": 9, "fox": 9, "gnu": 9, "hen": 4}
    for name, count in counts.items():
        (root / name).mkdir()
        for number in range(count):
            Image.new("RGB", (16, 16), (9 * number, 5, ord(name[0]))).save(root / name / f"{number}.png")
    split = {"base": ["ant", "bee", "cat"], "val": ["dog", "eel"], "novel": ["fox", "gnu", "hen"]}
    (root / "split.json").write_text(json.dumps(split))
    return root


@pytest.fixture
def faults(staged: Compose, folder: Path) -> Callable[..., dict[str, str]]:
    """The faults of a config on these images, by the place that they name."""

    def found(*overrides: str) -> dict[str, str]:
        data = ("dataset=split_folder", f"dataset.root={folder}", "dataset.image_size=16")
        every = check(staged(*data, *SMALL, *overrides))
        assert len({fault.where for fault in every}) == len(every), "\n".join(map(str, every))
        return {fault.where: str(fault) for fault in every}

    return found


def facts(
    base: Mapping[str, int], validation: Mapping[str, int] | None, test: Mapping[str, int]
) -> FewShotFacts:
    def of(counts: Mapping[str, int]) -> SplitFacts:
        return SplitFacts(len(counts), sum(counts.values()), min(counts.values()), 16, counts)

    return FewShotFacts(of(base), None, None, None if validation is None else of(validation), of(test))


def many(count: int, images: int = 100) -> dict[str, int]:
    return {f"class{number}": images for number in range(count)}


# -- classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "where", "what"),
    [
        ("task.train_way=4", "task.train_way", "4 classes can't be drawn from the 3 classes of base"),
        ("task.way=3", "task.way", "3 classes can't be drawn from the 2 classes of validation"),
        (
            "encoder.task.way=3",
            "encoder.task.way",
            "3 classes can't be drawn from the 2 classes of validation",
        ),
    ],
)
def test_too_few_classes(override: str, where: str, what: str, faults: Callable[..., dict[str, str]]) -> None:
    assert faults() == {}
    found = faults(override)
    assert list(found) == [where]
    assert what in found[where]


def test_what_to_type_instead_helps(faults: Callable[..., dict[str, str]]) -> None:
    """The advice of one fault leads to no second one."""
    for override in ("task.train_way=4", "task.way=3", "task.way=4", "task.train_query=4", "task.query=8"):
        ((_, text),) = faults(override).items()
        advice = text.rpartition("Try: ")[2]
        assert advice.partition("=")[0] == override.partition("=")[0]
        assert faults(advice) == {}, (override, advice)


def test_novel_classes_count_alone_where_there_are_none_to_validate_on(staged: Compose) -> None:
    config = staged()
    assert check_episodes(config, facts(many(5), None, many(5))) == []
    (fault,) = check_episodes(config, facts(many(5), None, many(4)))
    assert (fault.where, fault.fix) == ("task.way", "task.way=4")


# -- images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "where", "what", "fix"),
    [
        (
            "task.train_query=3",
            "task.train_query",
            r"takes 4 images .* of base .*: bee \(3\)",
            "2",
        ),
        (
            "task.train_shot=2",
            "task.train_query",
            r"takes 4 images .* of base .*: bee \(3\)",
            "1",
        ),
        ("task.query=4", "task.query", r"takes 5 images .* of test .*: hen \(4\)", "3"),
        ("task.shots=[1,3]", "task.query", r"takes 5 images .* of test .*: hen \(4\)", "1"),
        (
            "encoder.task.query=4",
            "encoder.task.query",
            r"takes 5 images .* of test .*: hen \(4\)",
            "3",
        ),
    ],
)
def test_classes_of_too_few_images_are_named(
    override: str, where: str, what: str, fix: str, faults: Callable[..., dict[str, str]]
) -> None:
    found = faults(override)
    assert list(found) == [where]
    assert re.search(what, found[where]), found[where]
    assert found[where].endswith(f"Try: {where}={fix}")


def test_many_small_classes_are_counted(staged: Compose) -> None:
    (fault,) = check_episodes(staged(), facts(many(20, 15), None, many(5)))
    assert fault.where == "task.train_query"
    assert fault.what.endswith("class9 (15) and 10 more")
    assert fault.fix == "task.train_query=14"


def test_shots_that_leave_no_query_ask_for_fewer_shots(staged: Compose) -> None:
    (fault,) = check_episodes(staged("task.train_shot=9"), facts(many(5, 9), None, many(5)))
    assert fault.fix == "a smaller shot"


def test_an_evaluation_needs_a_number_of_shots(staged: Compose) -> None:
    for overrides in ((), ("task=few_shot_test",)):
        (fault,) = check(staged("task.shots=[]", *overrides))
        assert (fault.where, fault.fix) == ("task.shots", "task.shots=[1,5]")


# -- what is asked of whom -------------------------------------------------------------------------------


def test_a_classifier_draws_no_episodes_to_train_on(staged: Compose) -> None:
    encoder = staged()["encoder"]  # its task is a classifier's
    assert check_episodes(encoder, facts(many(2, 3), many(5), many(5))) == []


def test_a_test_draws_from_the_novel_classes_alone(staged: Compose) -> None:
    """There is nothing to choose in a test: what validation has is no matter of it."""
    config = staged("task=few_shot_test", "task.query=40")
    assert check_episodes(config, facts(many(5), many(2, 30), many(5))) == []
    (fault,) = check_episodes(config, facts(many(5), many(5), many(5, 30)))
    assert fault.where == "task.query"


def test_a_test_of_more_queries_than_validation_has_images_can_be_run(staged: Compose) -> None:
    assert check(staged("task=few_shot_test", "task.query=40")) == []


@pytest.mark.parametrize("override", ["recipe.batch_size=270", "recipe.batch_size=540"])
def test_a_batch_of_images_is_no_matter_of_episodes(override: str, staged: Compose) -> None:
    """541 base images in batches of 270 leave one over; a meta-learner never takes such a batch."""
    assert check(staged(override)) == []
    stage = f"encoder.{override}"
    assert [fault.where for fault in check(staged(stage))] == ["encoder.recipe.batch_size"]


# -- methods ------------------------------------------------------------------------------------------------

OF_LOGITS = {"adapt_conf", "aug_conf", "dist", "dkd", "dot", "kd", "nkd", "sinkd", "ttm", "vanilla", "wttm"}


@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "distiller").glob("*.yaml")))
def test_methods_that_need_more_than_the_logits_of_an_episode_are_refused(
    method: str, staged: Compose
) -> None:
    """Features, views of the images, and classes that mean the same in every batch."""
    found = check(staged(f"distiller={method}"))
    if method in OF_LOGITS:
        assert found == []
        return
    terms = {f"distiller.terms.{name}" for name in staged(f"distiller={method}")["distiller"]["terms"]}
    assert found
    assert {fault.where for fault in found} <= terms, "\n".join(map(str, found))
    for fault in found:
        assert "distils the logits of episodes" in fault.what
        assert fault.fix.startswith("distiller=kd (or dkd")


@pytest.mark.parametrize("method", ["fitnet", "rkd", "wkd_l", "crd"])
def test_a_few_shot_classifier_takes_them(method: str, staged: Compose) -> None:
    classifier = ("task=few_shot_classifier", "recipe=digits_few_shot_classifier", "encoder.checkpoint=null")
    assert check(staged(f"distiller={method}", *classifier)) == []


@pytest.mark.parametrize("plugin", ["none", "lskd", "ctkd", "ctkd_lskd", "sdd"])
def test_a_plugin_that_needs_features_is_refused(plugin: str, staged: Compose) -> None:
    found = [fault.where for fault in check(staged(f"plugin={plugin}"))]
    assert found == (["plugin.plugins.sdd"] if plugin == "sdd" else [])


def test_what_to_type_instead_of_a_method_names_methods_that_are_taken(staged: Compose) -> None:
    (fault,) = check(staged("distiller=fitnet"))
    named = set(re.findall(r"\w+", fault.fix)) - {"distiller", "or", "plugin", "none"}
    assert named < OF_LOGITS
    assert len(named) == 8
