"""The few-shot path as a person uses it: one command makes every stage, once, whatever happens on the way."""

import itertools
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Child, Hook, python, run_child, until
from safetensors import safe_open

from gda.app import FinishedRun, finish
from gda.config.faults import ConfigFaults

Config = dict[str, Any]
Compose = Callable[..., Config]
Begin = Callable[..., Child]

# A classifier, a meta-learner that KD and GDA teach, and its test: two epochs and a few episodes each.
QUICK = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "teacher=resnet8"),
    *("recipe=digits_few_shot_meta", "recipe.epochs=2", "encoder=classifier"),
    *("recipe@encoder.recipe=digits_few_shot_classifier", "encoder.recipe.epochs=2"),
    *("encoder.task.batches=2", "encoder.task.evaluate_every=1"),
    *("tracking=none", "trainer.device=cpu", "trainer.threads=1"),
)
META = ("task=meta_baseline", "task.train_batches=2", "task.batches=3")
TEST = (
    *("task=few_shot_test", "task.stage.train_batches=2", "task.stage.batches=3"),
    *("task.batches=3", "task.probe_batches=1"),
)
# Parts of the paths of run folders.
META_STAGE, TEST_STAGE = "main/digits_few_shot-digits_few_shot_meta", "main/digits_few_shot-test"
STUDENTS_CLASSIFIER = "teachers/digits_few_shot-digits_few_shot_classifier-convnet4"


def line(*arguments: str) -> list[str]:
    """A command line in which later overrides win."""
    chosen = dict(each.split("=", 1) for each in (*QUICK, *arguments) if "=" in each)
    flags = [each for each in arguments if "=" not in each]
    return [*flags, *(f"{key}={value}" for key, value in chosen.items())]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begin]:
    """Starts `python launch.py` in a folder, with the quick settings below the arguments."""
    children: list[Child] = []
    logs, numbers = tmp_path_factory.mktemp("logs"), itertools.count()

    def start(folder: Path, *arguments: str, hook: Hook | None = None) -> Child:
        log = logs / f"child{next(numbers)}.log"
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run_child, args=(line(*arguments), str(folder), str(log), hook, []))
        process.start()
        children.append(Child(process, log))
        return children[-1]

    yield start
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()


@pytest.fixture(scope="module")
def whole(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one command has made the whole chain, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    child = begin(folder, *TEST)
    assert child.wait() == 0, child.output
    return folder


@pytest.fixture
def done(compose: Compose, tmp_path: Path) -> Callable[..., FinishedRun]:
    """Finishes a run in this process."""
    return lambda *overrides: finish(compose(*line(f"runs={tmp_path / 'runs'}", *overrides)))


def run_folders(folder: Path, part: str = "") -> list[Path]:
    return sorted(path for path in (folder / "runs").glob("*/*/seed*") if part in str(path))


def run_folder(folder: Path, part: str) -> Path:
    (found,) = run_folders(folder, part)
    return found


def read(folder: Path, name: str) -> dict[str, Any]:
    content = json.loads((folder / f"{name}.json").read_text())
    assert isinstance(content, dict)
    return content


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict[str, torch.Tensor]:
    found = torch.load(folder / "last.pt", weights_only=True)["model"]
    assert isinstance(found, dict)
    return found


def everything(folder: Path, part: str = "") -> dict[str, int]:
    files = (path for path in (folder / "runs").rglob("*") if path.is_file() and part in str(path))
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def assert_same_runs(one: Path, other: Path) -> None:
    """Compares every run below two folders, bit for bit."""
    names = [path.relative_to(one) for path in run_folders(one)]
    assert names == [path.relative_to(other) for path in run_folders(other)]
    for name in names:
        assert (one / name / "metrics.jsonl").read_bytes() == (other / name / "metrics.jsonl").read_bytes()
        found, wanted = read(one / name, "status"), read(other / name, "status")
        assert (found["state"], found["result"]) == (wanted["state"], wanted["result"])
        for file in ("last.pt", "best.pt"):
            assert (one / name / file).exists() == (other / name / file).exists()
            if (one / name / file).exists():
                assert_equal(*(torch.load(path / name / file, weights_only=True) for path in (one, other)))
        episodes = [path / name / "episodes.safetensors" for path in (one, other)]
        assert episodes[0].exists() == episodes[1].exists() == (TEST_STAGE in f"{name}")
        if episodes[0].exists():
            assert_same_episodes(*episodes)


def assert_same_episodes(*files: Path) -> None:
    """Compares contents: the order of the metadata in a file says nothing."""
    contents = []
    for file in files:
        with safe_open(file, "pt") as content:
            tensors = {key: content.get_tensor(key) for key in sorted(content.keys())}
            contents.append({"metadata": content.metadata(), **tensors})
    assert_equal(*contents)


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


# -- one command -----------------------------------------------------------------------------------------


def test_one_command_makes_every_stage_once(whole: Path) -> None:
    teacher = run_folder(whole, "classifier-resnet8")
    classifier, meta, test = (
        run_folder(whole, part) for part in (STUDENTS_CLASSIFIER, META_STAGE, TEST_STAGE)
    )
    assert len(run_folders(whole)) == 4
    facts = {folder: read(folder, "run") for folder in run_folders(whole)}
    for folder, each in facts.items():
        assert (read(folder, "status")["state"], read(folder, "status")["attempt"]) == ("done", 1)
        assert each["figure"] == "1shot"
    names = [facts[folder]["task"] for folder in (teacher, classifier, meta, test)]
    assert names == ["few_shot_classifier", "few_shot_classifier", "meta_baseline", "few_shot_test"]

    assert facts[meta]["teacher_run"] == {"group": facts[teacher]["group"], "seed": 0, "select": "last"}
    assert facts[meta]["encoder_run"] == {"group": facts[classifier]["group"], "seed": 0, "select": "last"}
    assert facts[meta]["encoder_weights"] == str(classifier / "last.pt")
    assert facts[test]["encoder_run"] == {"group": facts[meta]["group"], "seed": 0, "select": "last"}
    assert facts[test]["encoder_weights"] == str(meta / "last.pt")
    assert (facts[test]["teacher_run"], facts[test]["teacher_weights"]) == (None, None)
    assert (facts[test]["pair"], facts[test]["label"]) == ("resnet8 -> convnet4", "kd+gda")


def test_what_one_stage_ends_with_the_next_begins_with(whole: Path) -> None:
    """Equal episodes: each stage must measure the model of the stage before as that has measured itself."""
    teacher, meta, test = (run_folder(whole, part) for part in ("classifier-resnet8", META_STAGE, TEST_STAGE))
    before, *_, last = rows(meta)
    assert [row["epoch"] for row in rows(meta)] == [0, 1, 2]
    assert len(rows(test)) == 1
    for shot in (1, 5):
        name = f"test_{shot}shot"
        assert rows(test)[0][name] == pytest.approx(last[name], abs=1e-9)
        assert rows(test)[0][f"{name}_interval"] == pytest.approx(last[f"{name}_interval"], abs=1e-9)
    # The teacher's own evaluation has other episodes than the student's, so that it is asked anew.
    assert before["teacher_test_1shot"] != before["teacher_test_5shot"]
    assert read(teacher, "status")["result"]["last"]["epoch"] == 2


def test_the_same_command_again_does_nothing(begin: Begin, whole: Path) -> None:
    before = everything(whole)
    for more in ((), ("trainer.threads=2", "recipe.evaluation_batch_size=50")):
        child = begin(whole, *TEST, *more)
        assert child.wait() == 0, child.output
        assert "test of kd+gda seed 0: finished before" in child.output
    assert everything(whole) == before


def test_its_stages_and_a_test_of_its_folder_are_finished_with_it(begin: Begin, whole: Path) -> None:
    before = everything(whole)
    stage = begin(whole, *META)
    assert stage.wait() == 0, stage.output
    assert "kd+gda seed 0: finished before" in stage.output
    named = (f"encoder.checkpoint={run_folder(whole, META_STAGE)}", "distiller=dkd", "teacher=none")
    test = begin(whole, *TEST, *named, "alignment=none")
    assert test.wait() == 0, test.output
    assert "test of kd+gda seed 0: finished before" in test.output
    assert everything(whole) == before


@pytest.mark.parametrize("lost", [(META_STAGE, TEST_STAGE), (STUDENTS_CLASSIFIER, META_STAGE, TEST_STAGE)])
def test_stages_that_are_gone_are_made_again_and_end_equal(
    lost: tuple[str, ...], begin: Begin, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    for part in lost:
        shutil.rmtree(run_folder(tmp_path, part).parent)
    child = begin(tmp_path, *TEST)
    assert child.wait() == 0, child.output
    assert_same_runs(tmp_path, whole)


def test_another_test_makes_a_tested_run_that_is_gone_again(
    begin: Begin, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    shutil.rmtree(run_folder(tmp_path, META_STAGE).parent)
    kept = run_folder(tmp_path, TEST_STAGE)
    child = begin(tmp_path, *TEST, "task.episode_seed=1")
    assert child.wait() == 0, child.output
    (other,) = (path for path in run_folders(tmp_path, TEST_STAGE) if path != kept)
    assert read(other, "status")["result"] != read(kept, "status")["result"]
    shutil.rmtree(other.parent)
    assert_same_runs(tmp_path, whole)


# -- killed, and several at once -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hook",
    [
        Hook("after last.pt", 1, folder=STUDENTS_CLASSIFIER),
        Hook("before best.pt", 1, folder=META_STAGE),
        Hook("after last.pt", 1, folder=META_STAGE),
        Hook("torn metrics.jsonl", 2, folder=META_STAGE),
        Hook("before metrics.jsonl", 1, folder=TEST_STAGE),
        Hook("after timing.jsonl", 1, folder=TEST_STAGE),
    ],
    ids=lambda hook: f"{hook.folder.rpartition('-')[2]} {hook.point}",
)
def test_a_chain_that_is_killed_ends_like_one_that_never_was(
    hook: Hook, begin: Begin, whole: Path, tmp_path: Path
) -> None:
    killed = begin(tmp_path, *TEST, hook=hook)
    assert killed.wait() == -signal.SIGKILL, killed.output
    assert read(run_folder(tmp_path, hook.folder), "status")["state"] == "running"
    again = begin(tmp_path, *TEST)
    assert again.wait() == 0, again.output
    assert_same_runs(tmp_path, whole)
    attempts = {path: read(path, "status")["attempt"] for path in run_folders(tmp_path)}
    hit = run_folder(tmp_path, hook.folder)
    assert attempts.pop(hit) == 2
    assert set(attempts.values()) == {1}


def test_two_processes_make_each_shared_stage_once(begin: Begin, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    # Before there are any weights of the first stage: whoever waits for it finds none when it asks.
    first = begin(tmp_path, *TEST, hook=Hook("before last.pt", 1, gate=gate, folder="teachers/"))
    until(lambda: bool(list(tmp_path.glob("runs/teachers/*/*/best.pt"))))
    second = begin(tmp_path, *TEST, "task.probe=false")
    second.until("Waiting for")
    gate.touch()
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    assert len(run_folders(tmp_path, TEST_STAGE)) == 2
    assert len(run_folders(tmp_path)) == 5
    attempts = {read(path, "status")["attempt"] for path in run_folders(tmp_path)}
    assert attempts == {1}
    tests = [read(path, "status")["result"]["last"] for path in run_folders(tmp_path, TEST_STAGE)]
    assert tests[0]["test_1shot"] == tests[1]["test_1shot"]


# -- sweeps ----------------------------------------------------------------------------------------------


def test_a_sweep_of_tests_and_one_table_at_its_end(begin: Begin, tmp_path: Path) -> None:
    grid = ("-m", *TEST, "alignment=none,gda", "seed=0,1", "report=true", "task.probe=false")
    child = begin(tmp_path, *grid)
    assert child.wait() == 0, child.output
    assert "Traceback" not in child.output
    assert [len(run_folders(tmp_path, part)) for part in ("teachers/", META_STAGE, TEST_STAGE)] == [2, 4, 4]
    assert child.output.count("Study main.") == 1
    assert child.output.index("Study main.") > child.output.index("4 of 4 cells are finished")
    assert child.output.splitlines()[-1] == str(tmp_path / "runs" / "main" / "report" / "report.md")
    (plan,) = (tmp_path / "runs" / "main" / "sweeps").glob("*/plan.json")
    cells = json.loads(plan.read_text())["cells"]
    assert sorted(cell["folder"] for cell in cells) == sorted(
        str(path.relative_to(tmp_path / "runs" / "main")) for path in run_folders(tmp_path, TEST_STAGE)
    )
    groups = {cell["alignment"]: cell["group"] for cell in cells}
    assert {cell["twin_group"] for cell in cells if cell["alignment"] == "gda"} == {groups["none"]}

    before = everything(tmp_path, "/seed")
    again = begin(tmp_path, *grid)
    assert again.wait() == 0, again.output
    assert "4 finished before, 0 to run" in again.output
    assert again.output.count("Study main.") == 1
    assert everything(tmp_path, "/seed") == before


def test_a_sweep_without_report_prints_none(begin: Begin, whole: Path) -> None:
    child = begin(whole, "-m", *TEST, "alignment=gda", "seed=0")
    assert child.wait() == 0, child.output
    assert "1 finished before, 0 to run" in child.output
    assert "Study main." not in child.output


@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["one run", "sweep"])
def test_weights_of_a_tested_runs_teacher_that_can_not_be_had_are_no_traceback(
    flags: tuple[str, ...], begin: Begin, tmp_path: Path
) -> None:
    child = begin(tmp_path, *flags, *TEST, "teacher.checkpoint=http://127.0.0.1:9/teacher.pt")
    assert child.wait() == 1
    assert "http://127.0.0.1:9/teacher.pt can't be fetched" in child.output
    assert "Traceback" not in child.output
    assert not (tmp_path / "runs").exists()


# -- the less common ways --------------------------------------------------------------------------------


def test_a_test_of_a_classifier_knows_its_base_classes(
    done: Callable[..., FinishedRun], tmp_path: Path
) -> None:
    stage = ("task@task.stage=few_shot_classifier", "task.stage.evaluate_every=1", "task.stage.batches=3")
    finished = done(
        *("task=few_shot_test", *stage, "task.batches=3", "task.probe=false", "task.auc=false"),
        *("recipe=digits_few_shot_classifier", "alignment=none", "encoder.checkpoint_select=best"),
    )
    (tested,) = (path for path in run_folders(tmp_path, "main/") if path != finished.folder)
    best = read(tested, "status")["result"]["best"]
    found = finished.result["last"]
    for name in ("test_1shot", "test_5shot", "base_test_top1"):
        assert found[name] == pytest.approx(best[name], abs=1e-9), name
    assert read(finished.folder, "run")["encoder_run"]["select"] == "best"


def test_label_free_on_episodes(done: Callable[..., FinishedRun]) -> None:
    free = done(*META, "ground_truth=teacher", "distiller=vanilla", "alignment=none")
    plain = done(*META, "distiller=vanilla", "alignment=none")
    assert free.identity.label == "vanilla (label-free)"
    assert free.identity.vanilla_group == plain.identity.group
    for finished in (free, plain):
        assert finished.result["last"]["term/ground_truth"] == finished.result["last"]["train_loss"]
    assert not all(torch.equal(*pair) for pair in zip(*_values(free, plain), strict=True))


def _values(*finished: FinishedRun) -> list[list[torch.Tensor]]:
    return [list(state(each.folder).values()) for each in finished]


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_the_statistics_of_the_classifier(
    frozen: bool, done: Callable[..., FinishedRun], tmp_path: Path
) -> None:
    option = f"task.freeze_batch_norm={'true' if frozen else 'false'}"
    finished = done(*META, option, "distiller=vanilla", "alignment=none", "teacher=none")
    before, after = state(run_folder(tmp_path, STUDENTS_CLASSIFIER)), state(finished.folder)
    statistics = [name for name in after if name.endswith(("running_mean", "running_var"))]
    others = [name for name in after if name.startswith("encoder.") and name.endswith(".weight")]
    assert statistics
    assert others
    # The classifier's head stands beside its encoder, and so does the meta-learner's temperature.
    assert all(torch.equal(after[name], before[name]) == frozen for name in statistics)
    assert not any(torch.equal(after[name], before[name]) for name in others)


def test_a_meta_teacher_is_measured_as_it_has_measured_itself(
    done: Callable[..., FinishedRun], tmp_path: Path
) -> None:
    finished = done(*META, "task.teacher_kind=meta", "task.metric=sqr", "task.temperature=0.05")
    made = [read(path, "run") for path in run_folders(tmp_path, "teachers/")]
    assert sorted((each["task"], each["student"]) for each in made) == [
        ("few_shot_classifier", "convnet4"),
        ("few_shot_classifier", "resnet8"),
        ("meta_baseline", "resnet8"),
    ]
    teacher = run_folder(tmp_path, "teachers/digits_few_shot-digits_few_shot_meta")
    first, last = rows(finished.folder)[0], rows(teacher)[-1]
    for name in ("test_1shot", "test_5shot", "validation_1shot", "test_loss"):
        assert first[f"teacher_{name}"] == pytest.approx(last[name], rel=1e-6), name
    assert last["temperature"] != 0.05


def test_a_folder_is_tested_as_auto_tests_it(done: Callable[..., FinishedRun], tmp_path: Path) -> None:
    """One group, one result: the folder's config says `sqr`, that of the second command says nothing."""
    plain = ("distiller=vanilla", "alignment=none", "teacher=none", "seed=1")
    by_auto = done(*TEST, *plain, "task.stage.metric=sqr", "task.stage.temperature=0.05")
    tested = run_folder(tmp_path, META_STAGE)
    try:
        by_name = done(*TEST, *plain, f"encoder.checkpoint={tested}", "study=named")
    except ConfigFaults:
        return  # to refuse it is as good
    assert by_name.folder != by_auto.folder
    same_group = by_name.identity.group == by_auto.identity.group
    assert same_group == (by_name.result == by_auto.result)


def test_precision_of_a_test_is_part_of_it(done: Callable[..., FinishedRun], whole: Path) -> None:
    named = (*TEST, f"encoder.checkpoint={run_folder(whole, META_STAGE)}")
    full = done(*named)
    half = done(*named, "trainer.precision=bfloat16", "study=half")
    assert half.result["last"] != full.result["last"]
    assert half.identity.group != full.identity.group


# -- what comes out --------------------------------------------------------------------------------------


def test_a_classifier_is_exported_and_a_meta_learner_and_a_test_say_why_not(
    whole: Path, tmp_path: Path
) -> None:
    from gda.models import load_exported

    classifier = run_folder(whole, STUDENTS_CLASSIFIER)
    to = ("--to", str(tmp_path / "exported"), "--formats", "safetensors")
    exported = python("-m", "gda.models.export", str(classifier), *to, folder=whole)
    assert exported.returncode == 0, exported.stderr
    weights = load_exported(tmp_path / "exported").state_dict()
    assert_equal(dict(weights), dict(state(classifier)))
    reasons = {META_STAGE: "it has no classes to be exported with", TEST_STAGE: "is the test of a student"}
    for part, reason in reasons.items():
        refused = python("-m", "gda.models.export", str(run_folder(whole, part)), folder=whole)
        assert refused.returncode == 1
        assert reason in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (run_folder(whole, part) / "export").exists()


def test_a_test_in_mlflow(done: Callable[..., FinishedRun], tmp_path: Path) -> None:
    finished = done(*TEST, "tracking=mlflow", "study=told", "seed=3")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    told, teachers = (client.get_experiment_by_name(name) for name in ("told", "teachers"))
    assert told is not None
    assert teachers is not None
    runs = {run.data.tags["group"]: run for run in client.search_runs([told.experiment_id])}
    assert len(runs) == 2
    assert len(client.search_runs([teachers.experiment_id])) == 2
    run = runs[finished.identity.group]
    assert (run.info.status, run.data.tags["seed"]) == ("FINISHED", "3")
    (row,) = rows(finished.folder)
    assert {"test_1shot", "test_1shot_interval", "test_5shot_auc", "test_5shot_probe"} <= row.keys()
    for name in row.keys() - {"epoch"}:
        (metric,) = client.get_metric_history(run.info.run_id, name)
        assert (metric.step, metric.value) == (1, row[name]), name
        assert run.data.metrics[f"result/last/{name}"] == row[name]
    assert run.data.params["task.stage.train_batches"] == "2"
    assert run.data.params["encoder.recipe.epochs"] == "2"
    assert "config.yaml" in {file.path for file in client.list_artifacts(run.info.run_id)}
