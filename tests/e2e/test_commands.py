"""The command line as a person uses it: sweeps, faults, failures, own methods, several processes at once."""

import csv
import errno
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import LAUNCH, Child, Hook, python, until

Launch = Callable[..., Child]


def status(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "status.json").read_text())
    assert isinstance(content, dict)
    return content


def run_folders(runs: Path, study: str = "main") -> list[Path]:
    return sorted(path for path in (runs / study).glob("*/seed*") if path.is_dir())


def everything(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_a_sweep_its_report_and_the_same_command_again(
    start: Launch, tmp_path: Path, tiny_overrides: Callable[..., list[str]]
) -> None:
    grid = ("recipe.epochs=1", "study=s", "distiller=vanilla,kd", "alignment=none,gda", "seed=0,1")
    first = start("-m", *grid)
    assert first.wait() == 0, first.output
    assert "Traceback" not in first.output
    folders = run_folders(tmp_path / "runs", "s")
    assert len(folders) == 8
    assert {status(folder)["state"] for folder in folders} == {"done"}
    assert len(run_folders(tmp_path / "runs", "teachers")) == 1
    (plan,) = (tmp_path / "runs" / "s" / "sweeps").glob("*/plan.json")
    cells = json.loads(plan.read_text())["cells"]
    assert len(cells) == 8
    assert sorted(cell["folder"] for cell in cells) == sorted(f"{f.parent.name}/{f.name}" for f in folders)
    groups = {cell["group"] for cell in cells}
    assert len(groups) == 4
    for cell in cells:
        assert cell["vanilla_group"] in groups
        assert cell["twin_group"] in groups or cell["alignment"] == "none"
        run = json.loads((tmp_path / "runs" / "s" / cell["folder"] / "run.json").read_text())
        facts = cell.keys() - {"folder", "title", "epochs"}
        assert {key: run[key] for key in facts} == {key: cell[key] for key in facts}
        assert run["sweep"] == f"s/{plan.parent.name}"

    report = python("-m", "gda.report", "s", folder=tmp_path)
    assert report.returncode == 0, report.stderr
    page = Path(report.stdout.split()[-1])
    table = (tmp_path / page).read_text()
    for label in ("vanilla", "vanilla+gda", "kd", "kd+gda"):
        assert label in report.stdout
        assert label in table
    check_report_numbers(tmp_path / "runs" / "s")

    before = everything(tmp_path / "runs" / "s") | everything(tmp_path / "runs" / "teachers")
    again = python(str(LAUNCH), "-m", *tiny_overrides(*grid), folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "8 finished before, 0 to run" in again.stdout
    after = everything(tmp_path / "runs" / "s") | everything(tmp_path / "runs" / "teachers")
    assert {path: after.get(path) for path in before} == before


def check_report_numbers(study: Path) -> None:
    """Recomputes n and the mean of the report's table from the journals."""
    found: dict[str, list[float]] = {}
    for folder in (path for path in study.glob("*/seed*") if path.is_dir()):
        label = json.loads((folder / "run.json").read_text())["label"]
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        found.setdefault(label, []).append(last["test_top1"])
    tables = list((study / "report").rglob("*.csv"))
    assert tables
    seen = set()
    for file in tables:
        for row in csv.DictReader(file.open()):
            label = next((value for value in row.values() if value in found), None)
            if label is None or "n" not in row:
                continue
            seen.add(label)
            assert int(row["n"]) == len(found[label]) == 2
            mean = sum(found[label]) / 2
            assert any(_close(value, mean) for value in row.values()), (row, mean)
    assert seen == set(found)


def _close(text: str | None, value: float) -> bool:
    try:
        return abs(float(text or "") - value) < 0.005
    except ValueError:
        return False


# -- faults and failures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 0, "Nothing is wrong with this config"),
        (("recipe.batch_size=1", "dataset.train_size=9999"), 1, "There are 2 faults"),
        (("recipe.batch_size=1", "trainer.device=gpu"), 1, "There are 2 faults"),
        (("-m", "seed=0,1", "distiller=kd,dkd"), 0, "Nothing is wrong with the 4 cells"),
        (("-m", "recipe.batch_size=1,16", "seed=0,1"), 1, "in 2 of 4 cells"),
    ],
    ids=["right", "data", "two faults", "sweep", "faulty sweep"],
)
def test_a_check_runs_nothing_and_writes_nothing(
    arguments: tuple[str, ...], code: int, text: str, start: Launch, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    child = start("check=true", *arguments, folder=folder)
    assert child.wait() == code, child.output
    assert text in child.output
    assert "Traceback" not in child.output
    assert list(folder.iterdir()) == []


def test_a_sweep_with_a_fault_in_one_cell_runs_no_cell(start: Launch, tmp_path: Path) -> None:
    child = start("-m", "distiller=vanilla", "alignment=none", "recipe.batch_size=16,1", "recipe.lr=0.05,0.1")
    assert child.wait() == 1
    assert "recipe.batch_size: a batch of one" in child.output
    assert "in 2 of 4 cells" in child.output
    assert list(tmp_path.glob("runs/main/*/seed*")) == []
    assert not (tmp_path / "runs" / "teachers").exists()


def test_mistyped_names_are_all_named_by_the_command(start: Launch, tmp_path: Path) -> None:
    child = start("student=resnet2O", "recipe=didgits")
    assert child.wait() == 1
    assert "student=resnet20" in child.output
    assert "recipe=digits" in child.output
    assert "Traceback" not in child.output
    assert not (tmp_path / "runs").exists()


PLAIN = ("distiller=vanilla", "alignment=none", "teacher=none")


def test_a_run_that_diverges_fails_with_one_paragraph_and_can_be_tried_again(
    start: Launch, tmp_path: Path
) -> None:
    for attempt in (1, 2):
        child = start(*PLAIN, "recipe.lr=1e20", "trainer.finite_check_every=1")
        assert child.wait() == 1
        (message,) = (line for line in child.output.splitlines() if "not finite" in line)
        assert "term 'ground_truth' in epoch 1, step" in message
        assert "student logits" in message
        assert "Traceback" not in child.output
        (folder,) = run_folders(tmp_path / "runs")
        assert status(folder)["state"] == "failed"
        assert "NonFiniteLoss" in status(folder)["error"]
        assert status(folder)["attempt"] == attempt
        assert "Traceback" in (folder / "run.log").read_text()
        assert not (folder / "run.lock").exists()


def test_a_failed_cell_does_not_stop_the_others(start: Launch, tmp_path: Path) -> None:
    child = start("-m", *PLAIN, "recipe.lr=1e20,0.05", "seed=0,1")
    assert child.wait() == 1
    states = sorted(status(folder)["state"] for folder in run_folders(tmp_path / "runs"))
    assert states == ["done", "done", "failed", "failed"]
    assert "2 of 4 cells are finished" in child.output
    assert child.output.count("failed: ") == 2
    assert "Traceback" not in child.output


def test_an_interrupted_sweep_stops_and_goes_on_later(start: Launch, tmp_path: Path) -> None:
    command, gate = ("-m", *PLAIN, "recipe.epochs=2", "seed=0,1,2"), tmp_path / "gate"
    child = start(*command, hook=Hook("before timing.jsonl", 1, gate=gate, folder="seed1"))
    until(lambda: any("seed1" in str(path) for path in tmp_path.glob("runs/main/*/*/metrics.jsonl")))
    until(lambda: len((run_folders(tmp_path / "runs")[-1] / "metrics.jsonl").read_bytes().splitlines()) == 2)
    child.kill(signal.SIGINT)
    gate.touch()
    assert child.wait() == 130, child.output
    assert [status(f)["state"] for f in run_folders(tmp_path / "runs")] == ["done", "interrupted"]
    again = start(*command)
    assert again.wait() == 0, again.output
    assert "1 finished before, 2 to run" in again.output
    assert [status(f)["state"] for f in run_folders(tmp_path / "runs")] == ["done"] * 3


def test_a_full_disk_fails_the_run_and_keeps_its_checkpoint(start: Launch, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: this student's checkpoint does not fit."""
    (tmp_path / "filling_term.py").write_text(
        "import resource\nfrom gda.distillers import Term\n"
        "class Filling(Term):\n"
        "    needs_teacher = False\n"
        "    def forward(self, inputs):\n"
        "        if inputs.progress.epoch == 1:\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "        return inputs.student.logits.mean() * 0\n"
    )
    own = own_method(tmp_path, "filling_term.Filling")
    child = start(
        "--config-dir", str(own), "distiller=mine", "teacher=none", "alignment=none", path=(tmp_path,)
    )
    assert child.wait() == 1
    assert "could not be written" in child.output
    assert "make room" in child.output
    assert "Traceback" not in child.output
    (folder,) = run_folders(tmp_path / "runs")
    assert status(folder)["state"] == "failed"
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] == 1
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("when", ["begin", "finish"])
def test_a_disk_that_is_full_at_the_edges_of_a_run_is_no_traceback(
    when: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`OSError` must become words and an exit code: in a sweep anything else would stop all cells."""
    from omegaconf import OmegaConf

    from gda.app import run
    from gda.tracking.run_folder import RunFolder

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, when, full)
        with pytest.raises(SystemExit) as stop:
            run(OmegaConf.create(tiny(f"runs={tmp_path}", *PLAIN)))
    assert stop.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    run(OmegaConf.create(tiny(f"runs={tmp_path}", *PLAIN)))
    (folder,) = run_folders(tmp_path)
    assert status(folder)["state"] == "done"


# -- several processes -----------------------------------------------------------------------------


def test_a_second_process_in_a_run_folder_gets_a_clear_error(start: Launch, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = start(*PLAIN, hook=Hook("before timing.jsonl", 1, gate=gate))
    until(lambda: bool(list(tmp_path.glob("runs/main/*/*/metrics.jsonl"))))
    second = start(*PLAIN)
    assert second.wait() == 1
    assert "is in use by process" in second.output
    assert str(first.process.pid) in second.output
    assert "Traceback" not in second.output
    gate.touch()
    assert first.wait() == 0, first.output
    (folder,) = run_folders(tmp_path / "runs")
    assert (status(folder)["state"], status(folder)["attempt"]) == ("done", 1)


def test_a_teacher_that_two_processes_ask_for_is_trained_once(start: Launch, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = start("seed=0", hook=Hook("before timing.jsonl", 1, gate=gate, folder="teachers"))
    until(lambda: bool(list(tmp_path.glob("runs/teachers/*/*/metrics.jsonl"))))
    second = start("seed=1")
    second.until("Waiting for")
    gate.touch()
    assert first.wait() == 0, first.output
    assert second.wait() == 0, second.output
    (teacher,) = run_folders(tmp_path / "runs", "teachers")
    assert (status(teacher)["state"], status(teacher)["attempt"]) == ("done", 1)
    folders = run_folders(tmp_path / "runs")
    assert [folder.name for folder in folders] == ["seed0", "seed1"]
    weights = {json.loads((folder / "run.json").read_text())["teacher_weights"] for folder in folders}
    assert weights == {str(teacher / "last.pt")}


def test_a_killed_teacher_is_taken_over(start: Launch, tmp_path: Path) -> None:
    first = start(hook=Hook("after last.pt", 1, folder="teachers"))
    assert first.wait() == -signal.SIGKILL
    second = start()
    assert second.wait() == 0, second.output
    (teacher,) = run_folders(tmp_path / "runs", "teachers")
    assert (status(teacher)["state"], status(teacher)["attempt"]) == ("done", 2)


# -- own methods, and the less common ways -----------------------------------------------------------


def own_method(folder: Path, target: str) -> Path:
    (folder / "my_conf" / "distiller").mkdir(parents=True)
    (folder / "my_conf" / "distiller" / "mine.yaml").write_text(
        f"name: mine\nground_truth_weight: 1.0\nterms:\n  mine:\n    _target_: {target}\n    weight: 0.5\n"
    )
    return folder / "my_conf"


def test_an_own_method_without_touching_the_repository(start: Launch, tmp_path: Path) -> None:
    (tmp_path / "my_package.py").write_text(
        "from typing import Annotated\n"
        "from gda.distillers import Term\n"
        "from gda.ranges import Range\n"
        "class MyTerm(Term):\n"
        "    def __init__(self, power: Annotated[int, Range(minimum=1, maximum=4)] = 2) -> None:\n"
        "        super().__init__()\n"
        "        self.power = power\n"
        "    def forward(self, inputs):\n"
        "        gap = inputs.student.logits - inputs.teacher_logits\n"
        "        return (gap**self.power).mean()\n"
    )
    own = own_method(tmp_path, "my_package.MyTerm")
    command = ("--config-dir", str(own), "distiller=mine", "alignment=fisher_rao")
    child = start(*command, path=(tmp_path,))
    assert child.wait() == 0, child.output
    (folder,) = run_folders(tmp_path / "runs")
    assert "mine+fisher_rao" in folder.parent.name
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"term/mine", "term/fisher_rao", "term/ground_truth"} <= row.keys()
    assert row["train_loss"] == pytest.approx(
        row["term/ground_truth"] + 0.5 * row["term/mine"] + 0.02 * row["term/fisher_rao"], rel=1e-4
    )
    wrong = start(*command, "+distiller.terms.mine.power=5", path=(tmp_path,))
    assert wrong.wait() == 1
    assert "distiller.terms.mine.power: 5 must be at least 1 and at most 4" in wrong.output
    lost = start(*command)
    assert lost.wait() == 1
    assert "PYTHONPATH" in lost.output


@pytest.mark.parametrize(
    "overrides",
    [
        ("ground_truth=teacher", "distiller=dkd"),
        ("teacher=resnet8", "student=resnet20", "distiller=adapt_conf"),
        (
            *("trainer.ema_decay=0.9", "recipe.gradient_clip=1.0", "trainer.precision=bfloat16"),
            *("teacher.checkpoint_select=best", "alignment.sinkhorn.debias=true"),
        ),
        ("dataset.validation=0", "distiller=vanilla", "alignment=gda"),
    ],
    ids=["label-free", "weak-to-strong", "ema+clip+bfloat16", "nothing held out"],
)
def test_less_common_ways(overrides: tuple[str, ...], tiny: Any, tmp_path: Path) -> None:
    from gda.app import finish

    done = finish(tiny(f"runs={tmp_path}", *overrides))
    assert status(done.folder)["state"] == "done"
    last = done.result["last"]
    assert last["epoch"] == 2
    assert all(value == value and abs(value) < 1e6 for value in last.values())
    state = torch.load(done.folder / "last.pt", weights_only=True)["model"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    if "dataset.validation=0" in overrides:
        assert done.result["best"] is None
        assert not (done.folder / "best.pt").exists()
    else:
        assert done.result["best"]["epoch"] in (1, 2)
    if "trainer.ema_decay=0.9" in overrides:
        assert "ema_test_top1" in last


# -- MLflow ----------------------------------------------------------------------------------------


def test_a_run_read_back_from_mlflow(tiny: Any, tmp_path: Path, teacher_weights: Path) -> None:
    from gda.app import finish

    config = tiny(
        *(f"runs={tmp_path}", "study=told", "seed=3", "tracking=mlflow", "teacher=resnet8"),
        f"teacher.checkpoint={teacher_weights}",
    )
    done = finish(config)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("told")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    for name in {key for row in rows for key in row} - {"epoch"}:
        expected = [(row["epoch"], row[name]) for row in rows if name in row]
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((metric.step, metric.value) for metric in history) == expected, name
    tags = {
        key: run.data.tags.get(key) for key in ("study", "group", "seed", "distiller", "alignment", "pair")
    }
    assert tags == {
        "study": "told",
        "group": done.identity.group,
        "seed": "3",
        "distiller": "kd",
        "alignment": "gda",
        "pair": "resnet8 -> resnet8",
    }
    assert run.data.params["distiller.terms.kd.temperature"] == "4.0"
    assert run.data.params["recipe.epochs"] == "2"
    assert run.data.params["alignment.sinkhorn.epsilon"] == "0.1"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert "config.yaml" in artifacts
    assert run.data.metrics["result/last/test_top1"] == done.result["last"]["test_top1"]


# -- nothing heavy before work ---------------------------------------------------------------------

LIGHT = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = ("torch", "torchvision", "mlflow", "timm", "sklearn", "matplotlib", "scipy", "numpy", "pandas")
print("HEAVY", [name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--help",), "distiller="),
        (("--cfg", "job"), "ground_truth_weight: 0.1"),
        (("--cfg", "job", "--resolve", "distiller=dkd"), "beta: 8.0"),
    ],
    ids=["help", "cfg", "cfg resolved"],
)
def test_help_and_cfg_import_nothing_heavy(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = python("-c", LIGHT.format(argv=[str(LAUNCH), *arguments]), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert list(tmp_path.iterdir()) == []
