import re
import subprocess
import sys

import pytest

from gda.report.compare import main

CONFIG = "task: {{way: 5, shots: [1, 5], query: 15, batches: {batches}, episode_seed: {seed}}}\n{dataset}"
DIGITS = "dataset: {name: digits_few_shot, root: here, validation: 0.2}\n"


def config(batches=20, seed=0, dataset=DIGITS):
    return CONFIG.format(batches=batches, seed=seed, dataset=dataset)


def refused(capsys, *folders):
    assert main([str(folder) for folder in folders]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_two_tests_are_compared_in_all_figures(few_shot, make_shares):
    own, other = make_shares(0.7, 1), make_shares(0.6, 2)
    run, baseline = few_shot.test("kd test", 0, own), few_shot.test("vanilla test", 3, other)
    command = [sys.executable, "-m", "gda.report.compare", str(run), str(baseline)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [re.split(r"\s*│\s*", line)[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    figures = {line[0]: line[1:] for line in lines}
    assert list(figures) == ["1-shot", "5-shot", "1-shot AUC", "5-shot AUC", "1-shot probe", "5-shot probe"]
    means = [f"{100 * values['test_1shot_auc'].mean():.2f}" for values in (own, other)]
    run_cell, baseline_cell, difference, episodes = figures["1-shot AUC"]
    assert [run_cell.split(" ")[0], baseline_cell.split(" ")[0]] == means
    gain = 100 * (own["test_1shot_auc"] - other["test_1shot_auc"]).mean()
    assert difference.startswith(f"{gain:+.2f} [+")
    assert difference.endswith("]†")
    assert episodes == "80"
    assert figures["5-shot probe"][3] == "40"
    assert "RUN:      kd: resnet12 -> resnet36, seed 0" in done.stdout
    assert "BASELINE: vanilla: resnet36, seed 3" in done.stdout


def test_a_run_against_itself_shows_no_difference(few_shot, make_shares, capsys):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1))
    assert main([str(run), str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count("+0.00 [+0.00, +0.00] ") == 6
    assert "†" not in out.partition("└")[0]


def test_a_probe_on_fewer_episodes_is_left_out_of_the_comparison(few_shot, make_shares, capsys):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1, probe=40))
    baseline = few_shot.test("vanilla test", 0, make_shares(0.6, 2, probe=20))
    assert main([str(run), str(baseline)]) == 0
    out = capsys.readouterr().out
    assert out.count("other episodes") == 2
    assert re.search(r"1-shot probe .* other episodes .* 40, 20", out)


def test_only_shared_shots_are_compared(few_shot, make_shares, capsys):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1))
    one = {"test_1shot": make_shares(0.6, 2)["test_1shot"]}
    baseline = few_shot.test("vanilla test", 0, one)
    assert main([str(run), str(baseline)]) == 0
    assert "5-shot" not in capsys.readouterr().out
    five = {"test_5shot": make_shares(0.6, 2)["test_5shot"]}
    text = "5-way 5-shot accuracy on novel classes"
    other = few_shot.test("dkd test", 0, five, figure="5shot", figure_text=text)
    error = refused(capsys, baseline, other)
    assert "no figure in common" in error
    assert "has 1-shot;" in error
    assert "has 5-shot." in error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "task.episode_seed=0 and 7. Repeat"),
        ({"batches": 40, "seed": 7}, "task.batches=20 and 40; task.episode_seed=0 and 7. Repeat"),
        ({"dataset": "dataset: {name: omniglot}\n"}, "dataset.name=digits_few_shot and omniglot. Repeat"),
        (
            {"dataset": DIGITS.replace("here", "there").replace("0.2", "0.1")},
            "dataset.validation=0.2 and 0.1. Repeat",
        ),
        ({"dataset": DIGITS.replace("here", "there")}, "the images or classes of the data set must differ"),
    ],
    ids=["seed", "batches", "dataset", "dataset option", "root alone"],
)
def test_other_episodes_are_refused_and_explained(few_shot, make_shares, capsys, changes, said):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1), config=config())
    baseline = few_shot.test(
        "vanilla test", 0, make_shares(0.6, 2), episodes="others", config=config(**changes)
    )
    error = refused(capsys, run, baseline)
    assert "tested on other episodes" in error
    assert said in error
    assert "root" not in error


def test_other_episodes_without_configs(few_shot, make_shares, capsys):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1), config=config())
    baseline = few_shot.test("vanilla test", 0, make_shares(0.6, 2), episodes="others")
    assert "what differs is not known" in refused(capsys, run, baseline)


def test_a_folder_that_is_not_there_names_near_ones(few_shot, make_shares, capsys, monkeypatch):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1))
    monkeypatch.chdir(few_shot.runs)
    assert f"Did you mean 'demo/{run.parent.name}/seed0'?" in refused(
        capsys, f"demo/{run.parent.name}/seed1", run
    )
    assert f"Did you mean 'demo/{run.parent.name}'?" in refused(capsys, run, "demo/kd_te/seed0")
    assert "Did you mean 'demo'?" in refused(capsys, "demi/x/seed0", run)
    error = refused(capsys, "/nothing/like/it", run)
    assert error.startswith("There is no run folder '/nothing/like/it'.")
    assert "Name one of its runs: " + str(run) in refused(capsys, run.parent, run)


def test_only_finished_tests_can_be_compared(few_shot, make_shares, capsys):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1))
    meta = few_shot.meta("kd", 0, 61.0, 61.5)
    error = refused(capsys, run, meta)
    assert "is a run of task meta_baseline, not few_shot_test" in error
    assert "task=few_shot_test task@task.stage=meta_baseline" in error
    error = refused(capsys, few_shot.run("kd images", 0, last=91.0, figure="top1"), run)
    assert "is a run of task classification, not few_shot_test" in error
    assert "task@" not in error
    (meta / "run.json").write_text("{}")
    assert "no run folder that can be read" in refused(capsys, run, meta)
    (run / "status.json").write_text('{"state": "interrupted", "epoch": 0, "epochs": 1}')
    assert "is not finished: interrupted at epoch 0/1. Repeat its command" in refused(capsys, run, run)


def test_a_damaged_file_is_an_error(few_shot, make_shares, capsys):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1))
    (run / "episodes.safetensors").write_bytes(b"rubbish")
    assert "cannot be compared: episodes.safetensors is damaged" in refused(capsys, run, run)


def test_it_needs_no_heavy_library(few_shot, make_shares):
    run = few_shot.test("kd test", 0, make_shares(0.7, 1))
    code = (
        "import sys; from gda.report.compare import main\n"
        f"assert main([{str(run)!r}] * 2) == 0\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'timm', 'hydra', 'scipy.stats'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
