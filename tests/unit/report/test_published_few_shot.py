import pytest

from gda.report import write_report
from gda.report.published import published_line


@pytest.mark.parametrize(
    ("teacher", "figures"),
    [
        ("resnet12_bottle", ("61.50", "79.52", "65.38", "66.08")),
        ("resnet18_bottle", ("62.29", "79.96", "65.74", "65.95")),
    ],
    ids=["resnet12", "resnet18"],
)
@pytest.mark.parametrize("recipe", ["few_shot_classifier", "few_shot_meta"])
def test_the_figures_of_a_pair_with_their_stage(teacher, figures, recipe):
    line = published_line("mini_imagenet", recipe, f"{teacher} -> resnet36_bottle")
    assert line is not None
    one, five, classifier, meta = figures
    assert f"classifier stage 1-shot {one}, AdaptConf at the classifier stage 5-shot {five}" in line
    assert f"classifier as teacher, validation 1-shot {classifier}" in line
    assert f"meta-learner as teacher, validation 1-shot {meta}" in line
    assert "(vision_weak_to_strong README)" in line
    assert "Those of the meta stage are validation figures, not test figures." in line
    assert line.startswith("Published for this data set and pair, not run here: ")


@pytest.mark.parametrize(
    ("dataset", "pair"),
    [
        ("tiered_imagenet", "resnet12_bottle -> resnet36_bottle"),
        ("mini_imagenet", "resnet12 -> resnet36_bottle"),
        ("mini_imagenet", "resnet36_bottle -> resnet12_bottle"),
        ("cifar100", "resnet12_bottle -> resnet36_bottle"),
    ],
)
def test_other_comparisons_have_none(dataset, pair):
    assert published_line(dataset, "few_shot_meta", pair) is None


def test_the_note_stands_below_the_table(few_shot):
    changes = {"teacher": "resnet12_bottle", "student": "resnet36_bottle"}
    few_shot.meta("kd", 0, 61.0, 61.5, pair="resnet12_bottle -> resnet36_bottle", **changes)
    assert "validation 1-shot 66.08" in write_report(few_shot.folder).page.read_text(encoding="utf-8")
