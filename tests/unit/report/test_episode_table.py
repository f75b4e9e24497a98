import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

from gda.report import write_report
from gda.report.aggregate import aggregate
from gda.report.collect import read_study
from gda.report.episode_table import episode_rows
from gda.report.episodes import mean_over_episodes, paired_over_episodes
from gda.report.records import EpisodeShares


def rows_of(study):
    (table,) = aggregate(read_study(study.folder))
    return {(row.label, row.run.seed, row.shot): row for row in episode_rows(table)}


def shares_of(values, fingerprint="same"):
    return EpisodeShares(np.array(values, dtype=np.float64), fingerprint)


def test_paired_differences_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    own, base = rng.random(50), rng.random(50)
    found = paired_over_episodes(shares_of(own), shares_of(base))
    low, high = stats.ttest_rel(100 * own, 100 * base).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.mean == pytest.approx(100 * (own - base).mean(), rel=1e-12)
    assert found.n == 50
    assert found.excludes_zero == (low > 0 or high < 0)


def test_a_mean_over_episodes_by_hand():
    found = mean_over_episodes(shares_of([0.4, 0.6, 0.5]))
    # 40, 60, 50: mean 50, std 10, t(2) = 4.302653, half 4.302653 * 10 / sqrt(3)
    assert (found.n, found.mean) == (3, pytest.approx(50.0))
    assert found.half == pytest.approx(24.841377, abs=1e-5)
    assert mean_over_episodes(shares_of([0.5])).half is None


def test_other_episodes_are_not_paired():
    assert paired_over_episodes(shares_of([0.5, 0.5]), shares_of([0.5, 0.5], "other")) is None
    assert paired_over_episodes(shares_of([0.5, 0.5]), shares_of([0.5])) is None


def test_each_run_is_compared_with_the_baselines_of_its_seed(few_shot, make_shares):
    values = {}
    for seed in range(2):
        for number, (name, mean) in enumerate((("vanilla", 0.6), ("kd", 0.61), ("kd+gda", 0.62))):
            values[name, seed] = make_shares(mean, 10 * number + seed)
            few_shot.test(f"{name} test", seed, values[name, seed])
    rows = rows_of(few_shot)
    assert len(rows) == 12
    for (label, seed, shot), row in rows.items():
        assert row.episodes == 80
        for baseline, found in (("kd", row.twin), ("vanilla", row.vanilla)):
            if label == "vanilla" or (baseline == "kd" and label == "kd"):
                assert found == "–"
                continue
            name = f"test_{shot}shot"
            expected = 100 * (values[label, seed][name] - values[baseline, seed][name]).mean()
            assert found.mean == pytest.approx(expected, abs=1e-12)
            assert found.n == 80


def test_the_page_shows_both_intervals_and_says_other_episodes(few_shot, make_shares):
    few_shot.test("vanilla test", 0, make_shares(0.6, 0))
    few_shot.test("kd test", 0, make_shares(0.7, 1))
    few_shot.test("dkd test", 0, make_shares(0.7, 2), episodes="drawn otherwise", base=71.25)
    few_shot.test("dkd test", 1, make_shares(0.7, 2))  # no vanilla run of this seed
    text = write_report(few_shot.folder).page.read_text(encoding="utf-8")
    block = text.split("### Each run on its episodes\n")[1]
    lines = [[c.strip() for c in line[1:-1].split(" | ")] for line in block.splitlines() if line[:2] == "| "]
    headings = lines[0]
    cells = {tuple(line[:3]): dict(zip(headings, line, strict=True)) for line in lines[2:]}
    run = next(r for r in read_study(few_shot.folder).runs if r.method.label == "kd")
    last = run.last
    kd = cells["kd", "0", "5"]
    assert kd["accuracy"] == f"{last['test_5shot']:.2f} ± {last['test_5shot_interval']:.2f}"
    assert kd["± over batches"] == f"{last['test_5shot_batch_interval']:.2f}"
    assert kd["AUC"] == f"{last['test_5shot_auc']:.2f} ± {last['test_5shot_auc_interval']:.2f}"
    assert kd["probe"] == f"{last['test_5shot_probe']:.2f} ± {last['test_5shot_probe_interval']:.2f}"
    assert kd["vs vanilla"].endswith("†")
    assert kd["vs alignment=none"] == "–"
    assert kd["base top-1"] == "n/a"
    assert cells["dkd", "0", "1"]["vs vanilla"] == "other episodes"
    assert cells["dkd", "0", "1"]["base top-1"] == "71.25"
    assert cells["dkd", "1", "1"]["vs vanilla"] == "n/a"
    assert "paired episode by episode" in block


def test_columns_that_no_run_has_are_left_out(few_shot, make_shares):
    few_shot.test("kd test", 0, {"test_1shot": make_shares(0.6, 0)["test_1shot"]})
    text = write_report(few_shot.folder).page.read_text(encoding="utf-8").split("### Each run")[1]
    assert "| ± over batches |" in text
    for word in ("AUC", "probe", "base top-1"):
        assert word not in text


def test_tasks_that_train_have_no_such_table(few_shot):
    few_shot.meta("kd", 0, 61.0, 61.5)
    assert rows_of(few_shot) == {}
    assert "Each run on its episodes" not in write_report(few_shot.folder).page.read_text(encoding="utf-8")


def remove(path):
    path.unlink()


def tear(path):
    path.write_bytes(path.read_bytes()[:-16])


def replace_by_rubbish(path):
    path.write_bytes(b"rubbish")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def saved(change, metadata=None):
    def damage(path):
        values = change(np.full(8, 0.5))
        prints = {"test_1shot": "f"} if metadata is None else metadata
        save_file({"test_1shot": values}, path, metadata=prints)

    return damage


DAMAGE = {
    "missing": (remove, "no episodes.safetensors"),
    "torn": (tear, "episodes.safetensors is damaged"),
    "rubbish": (replace_by_rubbish, "episodes.safetensors is damaged"),
    "folder": (replace_by_folder, "episodes.safetensors cannot be read"),
    "of another run": (
        saved(lambda v: v * 0.9),
        "does not belong to this run: its test_1shot has another mean",
    ),
    "float32": (saved(lambda v: v.astype(np.float32)), "no list of float64 numbers"),
    "matrix": (saved(lambda v: v.reshape(2, 4)), "no list of float64 numbers"),
    "out of range": (saved(lambda v: v * 3), "values outside 0 to 1"),
    "nan": (saved(lambda v: v * np.nan), "values outside 0 to 1"),
    "no fingerprint": (saved(lambda v: v, {"other": "f"}), "does not say on which episodes test_1shot"),
    "no metadata": (saved(lambda v: v, {}), "does not say on which episodes test_1shot"),
    "other figure": (
        lambda path: save_file({"test_9shot_auc": np.full(8, 0.5)}, path, metadata={"test_9shot_auc": "f"}),
        "lacks test_1shot",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_missing_or_damaged_file_is_a_fault_and_no_crash(few_shot, damage):
    spoil, reason = DAMAGE[damage]
    whole = {"test_1shot": np.full(8, 0.5)}
    few_shot.test("vanilla test", 0, whole)
    spoil(few_shot.test("kd test", 0, whole) / "episodes.safetensors")
    report = write_report(few_shot.folder)
    (fault,) = report.study.faults
    assert reason in fault.reason
    assert str(fault).startswith("kd_test-")
    rows = rows_of(few_shot)
    assert (rows["kd", 0, 1].vanilla, rows["kd", 0, 1].episodes) == ("n/a", None)
    assert rows["kd", 0, 1].run.finished  # its figures count all the same
    assert "50.00" in report.page.read_text(encoding="utf-8")


def test_an_unfinished_test_needs_no_file_yet(few_shot):
    path = few_shot.test("kd test", 0, {"test_1shot": np.full(8, 0.5)})
    (path / "episodes.safetensors").unlink()
    (path / "status.json").write_text('{"state": "running", "epoch": 0, "epochs": 1}')
    assert read_study(few_shot.folder).faults == ()
