"""Runs of several ranks: one run, written once, that all have learned; and what becomes of a failure."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from crew import BEGIN, BUILD, CHECK, FAULTY, FORGETFUL, LOAD, WAIT, Act, Crew, Crews, Outcome, Ranks, make
from launching import LAUNCH, ROOT
from test_interruptions import assert_same, assert_same_run

from gda.app import finish
from gda.build import InputFiles
from gda.errors import UserError
from gda.tracking.run_folder import RunFolder

Compose = Callable[..., dict[str, Any]]
Config = dict[str, Any]
Command = Callable[[Path], Config]

pytestmark = pytest.mark.cluster  # slow: `make test-cluster`

# An incomplete last batch, whose shares are uneven; evaluation batches that no number of ranks divides; and
# all that ranks could have of their own: an average, augmentation, a term with dropout and batch statistics.
SETTINGS = (
    "recipe.epochs=2",
    "dataset.train_size=41",
    "recipe.evaluation_batch_size=211",
    "distiller=aug_conf",
    "alignment=gda",
    "trainer.ema_decay=0.9",
    "trainer.finite_check_every=1",
    "seed=2",
)
WRITE = (
    "gda.training.checkpoint.save",
    "gda.tracking.atomic.write_bytes_atomic",
    "gda.tracking.run_folder.append_line",
    "gda.tracking.run_folder.write_json_atomic",
    "gda.tracking.run_folder.write_text_atomic",
    "gda.attempt.write_run_report",
)


@pytest.fixture(scope="module")
def crews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crews]:
    """Ranks that stay."""
    crews = Crews(tmp_path_factory.mktemp)
    yield crews
    crews.dismiss()


@pytest.fixture
def pair(crews: Crews) -> Crew:
    """Two of them."""
    return crews.of(2)


@pytest.fixture(scope="module")
def settings(teacher_weights: Path) -> tuple[str, ...]:
    """A command line."""
    return (*SETTINGS, FAULTY, FORGETFUL, f"teacher.checkpoint={teacher_weights}")


@pytest.fixture(scope="module")
def command(tiny: Compose, settings: tuple[str, ...]) -> Command:
    """The same as a config, with a folder of runs."""
    return lambda runs: {**tiny(*settings), "runs": str(runs)}


@pytest.fixture(scope="module")
def whole(crews: Crews, command: Command, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """A run by two ranks to which nothing happens; the second one must not write anything."""
    config = command(tmp_path_factory.mktemp("whole"))
    outcomes = crews.of(2).make(config, *(Act("raises", each, rank=1, before=True) for each in WRITE))
    assert [each.kind for each in outcomes] == ["done", "done"], outcomes
    return outcomes


@pytest.fixture
def start(
    tmp_path: Path, settings: tuple[str, ...], tiny_overrides: Callable[..., list[str]]
) -> Callable[..., Ranks]:
    """Starts two commands that make the same run as `whole`, in a folder of their own."""

    def begin(*overrides: str, acts: tuple[Act, ...] = (), **environment: str) -> Ranks:
        line = tiny_overrides(*settings, *overrides)
        return Ranks(2, line, tmp_path, *acts, environment=environment)

    return begin


def folder_of(outcomes: list[Outcome]) -> Path:
    assert [each.kind for each in outcomes] == ["done"] * len(outcomes), outcomes
    (folder,) = {each.folder for each in outcomes}
    assert folder is not None
    return folder


def run_folder(runs: Path) -> Path:
    (folder,) = runs.glob("runs/main/*/seed*")
    return folder


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- a run that nothing happens to


def test_torchrun_makes_one_run_that_is_written_once(
    whole: list[Outcome],
    settings: tuple[str, ...],
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    line = tiny_overrides(*settings, "tracking=mlflow")
    paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, *torchrun, str(LAUNCH), *line],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
    folder = run_folder(tmp_path)
    assert_same_run(folder, folder_of(whole))
    assert done.stdout.count("test top-1") == 1, done.stdout
    events = [(each["attempt"], each["event"]) for each in lines(folder / "attempts.jsonl")]
    assert events == [(1, "begin"), (1, "done")]
    assert read(folder / "run.json")["ranks"] == 2
    assert [each["epoch"] for each in lines(folder / "timing.jsonl")] == [1, 2]
    assert not (folder / "run.lock").exists()
    log = (folder / "run.log").read_text()
    assert [log.count(f": epoch {epoch}/2, ") for epoch in (1, 2)] == [1, 1]
    seconds = r"\d+\.\d s"
    start = (
        rf"first training step after {seconds}: {seconds} imports, {seconds} checks, "
        rf"{seconds} data and models, {seconds} first step\n"
    )
    assert len(re.findall(start, log)) == 1
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    (mirrored,) = (each for each in runs if each.data.tags.get("seed") == "2")
    history = client.get_metric_history(mirrored.info.run_id, "train_loss")
    rows = lines(folder / "metrics.jsonl")[1:]
    assert [(each.step, each.value) for each in history] == [
        (row["epoch"], row["train_loss"]) for row in rows
    ]


def test_all_ranks_have_learned_the_same(whole: list[Outcome]) -> None:
    assert len({each.weights for each in whole}) == 1


def test_figures_are_those_that_one_process_measures(
    whole: list[Outcome], command: Command, teacher_weights: Path
) -> None:
    from hydra.utils import instantiate

    from gda.build import _task
    from gda.config.schema import TrainerSettings
    from gda.distillers.term import Progress

    folder = folder_of(whole)
    config = command(folder)
    dataset = instantiate(config["dataset"], _convert_="all").load()
    own = TrainerSettings(**config["trainer"])
    task = _task(config, dataset, InputFiles(teacher=teacher_weights), torch.device("cpu"), own)
    state = torch.load(folder / "last.pt", weights_only=True)
    row = lines(folder / "metrics.jsonl")[-1]
    for prefix, weights in (("", state["model"]), ("ema_", state["model_ema"])):
        task.student.load_state_dict(weights)
        measured = task.evaluate(task.student, Progress(1, 2))
        assert {"validation_top1", "test_agreement", "test_ece"} <= measured.keys()
        for name, value in measured.items():
            counts = name.rpartition("_")[2] in ("top1", "top5", "agreement")
            expected = value if counts else pytest.approx(value, rel=1e-12)
            assert row[f"{prefix}{name}"] == expected, name
    before = lines(folder / "metrics.jsonl")[0]
    for name, value in task.evaluate_teacher().items():
        assert before[name] == pytest.approx(value, rel=1e-12), name


def watched_run(rank: int, config: Config) -> dict[str, list[Any]]:
    """Makes a run, and tells what a rank alone can know.

    Returns:
        Its own images and those of all ranks in each evaluation; its running statistics before and after each
        average.
    """
    from gda.tasks.metrics import Metrics
    from gda.training import trainer
    from gda.training.batch_statistics import statistics_of

    seen: dict[str, list[Any]] = {"images": [], "statistics": []}
    over_ranks, average = Metrics.over_ranks, trainer.average_statistics

    def summing(metrics: Metrics) -> Metrics:
        whole = over_ranks(metrics)
        seen["images"].append((metrics.images, whole.images))
        return whole

    def averaging(modules: list[Any]) -> None:
        before = [each.numpy().copy() for each in statistics_of(modules)]
        average(modules)
        seen["statistics"].append((before, [each.numpy().copy() for each in statistics_of(modules)]))

    with (
        mock.patch.object(Metrics, "over_ranks", summing),
        mock.patch.object(trainer, "average_statistics", averaging),
    ):
        finish(config)
    return seen


@pytest.fixture(scope="module")
def watched(
    crews: Crews, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, list[Any]]], Path]:
    """What both ranks tell of a run, and its folder."""
    runs, pair = tmp_path_factory.mktemp("watched"), crews.of(2)
    told = pair.call(watched_run, pair.joint(command(runs)))
    (folder,) = runs.glob("main/*/seed*")
    return told, folder


def test_every_image_is_evaluated_once(watched: tuple[list[dict[str, list[Any]]], Path]) -> None:
    first, second = watched[0]
    # 179 images to validate on and 900 to test on, in batches of 211, which the ranks take in turn: of the
    # teacher, and in two epochs of the student and of its average
    assert first["images"] == [(179, 179), (2 * 211 + 56, 900)] * 5
    assert second["images"] == [(0, 179), (2 * 211, 900)] * 5


def test_batch_statistics_are_averaged_each_epoch_before_the_evaluation(
    watched: tuple[list[dict[str, list[Any]]], Path],
) -> None:
    (first, second), folder = watched[0], watched[1]
    assert len(first["statistics"]) == len(second["statistics"]) == 2
    for (one, mean), (other, same) in zip(first["statistics"], second["statistics"], strict=True):
        for mine, yours, averaged, equal in zip(one, other, mean, same, strict=True):
            assert (mine != yours).any(), "each rank has seen other images"
            assert (averaged == equal).all()
            assert averaged == pytest.approx((mine + yours) / 2, rel=1e-6)
    state = torch.load(folder / "last.pt", weights_only=True)
    saved = [
        value.numpy()
        for part in (state["model"], state["modules"]["distiller"], state["model_ema"])
        for name, value in part.items()
        if "running" in name
    ]
    assert len(saved) > 30
    for averaged, value in zip(first["statistics"][-1][1], saved, strict=True):
        assert (averaged == value).all()


def test_a_teacher_that_is_missing_is_made_by_all_ranks_once(
    pair: Crew, tiny: Compose, tmp_path: Path
) -> None:
    config = {**tiny("distiller=kd", "alignment=none", "recipe.epochs=1", "seed=1"), "runs": str(tmp_path)}
    student = folder_of(pair.make(config))
    (teacher,) = tmp_path.glob("teachers/*/seed*")
    for folder in (student, teacher):
        assert read(folder / "run.json")["ranks"] == 2
        assert [each["event"] for each in lines(folder / "attempts.jsonl")] == ["begin", "done"]
    assert read(student / "run.json")["teacher_weights"] == str(teacher / "last.pt")
    written = (teacher / "last.pt").stat().st_mtime_ns
    folder_of(pair.make({**config, "seed": 2}))
    assert (teacher / "last.pt").stat().st_mtime_ns == written


def test_a_run_is_of_as_many_ranks_as_it_says(
    whole: list[Outcome], pair: Crew, command: Command, tmp_path: Path
) -> None:
    from gda.config.inputs import identify_run

    alone = command(tmp_path)
    group = identify_run(alone).group
    assert group not in folder_of(whole).parent.name
    assert identify_run(pair.joint(alone)).group in folder_of(whole).parent.name
    with pytest.raises(UserError, match=r"one of 2 processes .* and 1 were started"):
        finish(pair.joint(alone))
    first, second = pair.call(make, alone, (), {})
    assert "one of 1 processes" in first.message
    assert (first.kind, first.exit_code) == ("UserError", 1)
    assert (second.kind, second.exit_code) == ("StoppedByMain", 1), "said once"
    assert list(tmp_path.iterdir()) == []


# --- faults that all ranks see


def test_faults_of_the_config_are_said_once_and_nobody_waits(
    start: Callable[..., Ranks], tmp_path: Path
) -> None:
    ranks = start("recipe.lr=-1", f"teacher.checkpoint={tmp_path / 'nowhere.pt'}")
    assert ranks.wait() == [1, 1]
    for fault in ("There are 2 faults", "recipe.lr: ", "nowhere.pt"):
        assert ranks.output.count(fault) == 1, ranks.output
    assert "Traceback" not in ranks.output
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_in_use_is_said_once_and_nobody_waits(
    whole: list[Outcome], pair: Crew, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "main" / folder_of(whole).parent.name / "seed2"
    config = command(tmp_path)
    with RunFolder(folder).owned():
        first, second = pair.make(config)
    assert (first.kind, second.kind) == ("FolderLocked", "StoppedByMain")
    assert f"{folder} is in use by" in first.message
    assert (first.exit_code, second.exit_code) == (1, 1)


def test_what_rank_0_can_not_read_is_its_own_error_alone(
    pair: Crew, command: Command, tmp_path: Path
) -> None:
    config = command(tmp_path)
    first, second = pair.make(config, Act("raises", LOAD, rank=0, before=True))
    assert "ArithmeticError: broken on purpose" in first.message
    assert (first.kind, second.kind) == ("UserError", "StoppedByMain")
    (folder,) = tmp_path.glob("main/*/seed*")
    assert read(folder / "status.json")["error"] == "ArithmeticError: broken on purpose"
    assert [each["event"] for each in lines(folder / "attempts.jsonl")] == ["begin", "failed"]


def test_a_damaged_checkpoint_is_set_aside_once(
    pair: Crew, command: Command, tmp_path: Path, whole: list[Outcome]
) -> None:
    config = command(tmp_path)
    stopped = pair.make(config, Act("SIGTERM", count=5, rank=1))
    assert [each.kind for each in stopped] == ["RunInterrupted"] * 2
    (folder,) = tmp_path.glob("main/*/seed*")
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-100])
    assert folder_of(pair.make(config)) == folder
    assert [path.name for path in folder.glob("*.damaged*")] == ["last.pt.damaged"]
    assert (folder / "run.log").read_text().count("set aside") == 1
    assert_same_run(folder, folder_of(whole))


def test_a_weight_that_no_loss_reaches_is_named_or_found(
    pair: Crew, command: Command, tmp_path: Path, whole: list[Outcome]
) -> None:
    config = command(tmp_path)
    for each in pair.make(config, environment={"FAULT": "unused"}):
        assert "terms.faulty.spare.weight" in each.message, each
        assert "trainer.find_unused_parameters=true" in each.message
    looking = {**config, "trainer": {**config["trainer"], "find_unused_parameters": True}}
    outcomes = pair.make(looking, environment={"FAULT": "unused"})
    found = torch.load(folder_of(outcomes) / "last.pt", weights_only=True)
    assert len({each.weights for each in outcomes}) == 1
    reached = torch.load(folder_of(whole) / "last.pt", weights_only=True)
    assert_same(found["model"], reached["model"])


# --- a rank that fails alone


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "process 1: ArithmeticError: broken on purpose"),
        ("nan", "process 1: NonFiniteLoss: The loss is not finite: term 'faulty' in epoch 2, step 2."),
        ("kill", "RankLost: aug_conf+gda seed 2: another process of this run ended without a word (killed, "),
    ],
)
def test_a_rank_that_fails_takes_the_others_down_with_its_own_error(
    fault: str,
    said: str,
    start: Callable[..., Ranks],
    pair: Crew,
    command: Command,
    whole: list[Outcome],
    tmp_path: Path,
) -> None:
    ranks = start(FAULT=fault)
    ended, failed = ranks.wait()
    assert failed == (-9 if fault == "kill" else 1), ranks.output
    assert ended in (1, -15), ranks.output  # its launcher's SIGTERM may come while it ends
    folder = run_folder(tmp_path)
    status = read(folder / "status.json")
    assert status["state"] == "failed"
    assert status["error"].startswith(said)
    assert "gloo" not in status["error"]
    assert status["epoch"] == 1
    events = lines(folder / "attempts.jsonl")
    assert [(each["attempt"], each["event"]) for each in events] == [(1, "begin"), (1, "failed")]
    assert events[1]["error"] == status["error"]
    log = (folder / "run.log").read_text()
    assert log.count("Traceback") == 1, log
    assert ("crew.py" in log) == (fault == "raise")
    assert "Traceback" not in ranks.output
    if ended == 1:
        assert ("without a word" if fault == "kill" else "run.log") in ranks.output
    assert (folder / "last.pt").exists()
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] == 1
    if fault == "nan":
        return
    # without the fault the same run ends like one that never had it
    assert folder_of(pair.make(command(tmp_path / "runs"))) == folder
    assert_same_run(folder, folder_of(whole))


def test_a_rank_that_fails_before_rank_0_has_begun_is_heard_all_the_same(
    start: Callable[..., Ranks], tmp_path: Path
) -> None:
    """What it writes down must not be written over by the beginning."""
    ranks = start(acts=(Act("raises", BUILD, rank=1, before=True), Act("sleeps", BEGIN, rank=0, before=True)))
    assert ranks.wait() == [1, 1], ranks.output
    folder = run_folder(tmp_path)
    assert read(folder / "status.json")["error"] == "process 1: ArithmeticError: broken on purpose"
    assert [each["event"] for each in lines(folder / "attempts.jsonl")] == ["begin", "failed"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_dies_before_the_run_begins_is_missed(
    number: int, start: Callable[..., Ranks], tmp_path: Path
) -> None:
    ranks = start(acts=(Act("SIGKILL", (CHECK, WAIT)[number], rank=number, before=True),))
    codes = ranks.wait(as_launchers_do=False)
    assert (codes[number], codes[1 - number]) == (-9, 1)
    survivor = ranks.children[1 - number].output
    assert "nother process of this run ended without a word" in survivor
    assert "Traceback" not in survivor
