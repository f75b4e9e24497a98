import math

import pytest

from gda.report.aggregate import aggregate
from gda.report.collect import read_study
from gda.report.spread import paired_difference, summarise, t_quantile


def tables_of(study):
    return aggregate(read_study(study.folder))


def row_of(table, label):
    return {row.label: row for row in table.rows}[label]


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157)]
)
def test_t_quantile_is_the_tabulated_one(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-7)


def test_t_quantile_is_that_of_scipy_stats():
    from scipy import stats

    assert t_quantile(6) == pytest.approx(stats.t.ppf(0.975, 6), rel=1e-12)


def test_one_value_has_no_spread_and_no_interval():
    assert summarise({0: 3.0}).std is None
    assert summarise({}).mean is None
    one = paired_difference({0: 3.0, 1: 9.0}, {0: 2.0, 5: 1.0})
    assert (one.n, one.mean, one.low, one.high, one.excludes_zero) == (1, 1.0, None, None, False)
    assert paired_difference({0: 1.0}, {1: 1.0}).mean is None


def test_five_seeds_by_hand(study):
    vanilla, kd = [90.0, 90.4, 89.8, 90.2, 90.6], [91.0, 91.8, 90.4, 91.4, 91.4]
    for seed in range(5):
        study.run("vanilla", seed, last=vanilla[seed], best=vanilla[seed] - 0.1)
        study.run("kd", seed, last=kd[seed], best=kd[seed] - 0.1 * seed)
    (table,) = tables_of(study)
    row = row_of(table, "kd")
    # kd: sum 456.0, mean 91.2; squared deviations .04 + .36 + .64 + .04 + .04 = 1.12; / 4 = 0.28
    assert row.last.mean == pytest.approx(91.2)
    assert row.last.std == pytest.approx(math.sqrt(0.28))
    # differences 1.0 1.4 0.6 1.2 0.8: mean 1.0; squares 0 + .16 + .16 + .04 + .04 = .40; / 4 = .1
    value = row.difference["vanilla", "last"]
    half = 2.776445 * math.sqrt(0.1) / math.sqrt(5)
    assert value.n == 5
    assert value.mean == pytest.approx(1.0)
    assert value.low == pytest.approx(1.0 - half, abs=1e-6)
    assert value.high == pytest.approx(1.0 + half, abs=1e-6)
    assert value.excludes_zero
    # best: differences 1.1 1.4 0.5 1.0 0.5, mean 0.9
    assert row.difference["vanilla", "best"].mean == pytest.approx(0.9)
    assert row.best.mean == pytest.approx(91.0)
    assert row.oracle.n == 0
    assert row.difference["twin", "last"] is None
    assert row_of(table, "vanilla").difference["vanilla", "last"] is None
    assert row.agreement.mean == pytest.approx(90.0)
    assert row.teacher_kl.mean is None


def test_differences_pair_equal_seeds_only(study):
    for seed, last in ((0, 90.0), (1, 91.0), (2, 99.0)):
        study.run("kd", seed, last=last)
    for seed, last in ((1, 92.5), (0, 90.5), (7, 10.0)):
        study.run("kd+gda", seed, last=last)
    (table,) = tables_of(study)
    row = row_of(table, "kd+gda")
    assert row.difference["twin", "last"].by_seed == {0: 0.5, 1: 1.5}
    # mean 1.0, std sqrt(.5), half-width 12.706205 * sqrt(.5) / sqrt(2) = 6.3531
    assert row.difference["twin", "last"].low == pytest.approx(1.0 - 6.3531025, abs=1e-5)
    assert row.difference["vanilla", "last"].mean is None
    assert row.absent == (2,)
    assert row_of(table, "kd").absent == (7,)


def test_runs_that_are_not_done_never_enter_a_mean(study):
    study.run("kd", 0, last=90.0)
    study.run("kd", 1, state="failed", epoch=2, error="out of memory\nTraceback ...")
    study.run("kd", 2, state="running", epoch=3)
    study.run("kd", 3, state="interrupted", epoch=1)
    study.run("kd", 4, last=None, curve=[])  # done, but without a figure
    study.plan([("kd", seed) for seed in range(6)] + [("dkd", 0)])
    (table,) = tables_of(study)
    row = row_of(table, "kd")
    assert (row.last.n, row.last.mean, row.last.std) == (1, 90.0, None)
    assert [(run.seed, run.error) for run in row.failed] == [(1, "out of memory")]
    assert [run.seed for run in row.unfinished] == [2, 3, 4]
    assert row.unfinished[0].progress.startswith("running at epoch 3/4")
    assert row.planned == (5,)
    dkd = row_of(table, "dkd")  # planned only: it still has its row
    assert (dkd.last.n, dkd.planned, dkd.absent) == (0, (0,), (1, 2, 3, 4, 5))


def test_recipes_tasks_datasets_and_pairs_are_never_mixed(study):
    study.run("kd", 0, last=90.0)
    study.run("kd other", 0, last=80.0, recipe="crd")
    study.run("kd third", 0, last=70.0, dataset="cifar10")
    study.run("kd fourth", 0, last=60.0, task="meta_baseline")
    study.run("kd fifth", 0, last=50.0, teacher="resnet56", pair="resnet56 -> resnet8")
    tables = tables_of(study)
    assert len(tables) == 5
    assert all(len(table.rows) == 1 for table in tables)
    assert {table.rows[0].label for table in tables} == {"kd"}


def test_the_vanilla_row_is_in_every_table_of_its_student_and_recipe_only(study):
    study.run("vanilla", 0, last=88.0)
    study.run("kd", 0, last=90.0)
    study.run("kd big", 0, last=91.0, teacher="resnet56", pair="resnet56 -> resnet8")
    study.run("kd crd", 0, last=70.0, recipe="crd")
    tables = {(table.recipe, table.pair): [row.label for row in table.rows] for table in tables_of(study)}
    assert tables == {
        ("digits", "resnet20 -> resnet8"): ["vanilla", "kd"],
        ("digits", "resnet56 -> resnet8"): ["vanilla", "kd"],
        ("crd", "resnet20 -> resnet8"): ["kd"],
    }
    # A run under another recipe has no baseline here, even though it names the same group.
    crd = next(table for table in tables_of(study) if table.recipe == "crd")
    assert crd.rows[0].difference["vanilla", "last"].mean is None


def test_only_vanilla_makes_a_table_of_its_own(study):
    study.run("vanilla", 0, last=88.0)
    (table,) = tables_of(study)
    assert (table.pair, [row.label for row in table.rows]) == ("resnet8", ["vanilla"])


def test_rows_are_vanilla_first_and_aligned_rows_after_their_twin(study):
    for name in ("kd+sinkhorn", "vanilla+gda", "kd", "dkd+gda", "kd+gda", "vanilla", "aug_conf", "rkd+gda"):
        study.run(name, 0, last=90.0)
    (table,) = tables_of(study)
    assert [row.label for row in table.rows] == [
        "vanilla", "vanilla+gda", "aug_conf", "dkd+gda", "kd", "kd+gda", "kd+sinkhorn", "rkd+gda",
    ]  # fmt: skip
