import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from study_folders import FakeSlurm, StudyFolders, ago

from gda.cluster.state import watch as watching
from gda.cluster.state.queue import JobState
from gda.cluster.state.study_state import study_state
from gda.cluster.state.table import headline, view
from gda.status import main

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def demo(tmp_path, monkeypatch, slurm):
    return StudyFolders(tmp_path / "runs", monkeypatch)


def status(demo, *options):
    return main(["demo", "--runs", str(demo.runs), *options])


def lines(capsys):
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def mixed(demo, slurm):
    """A study with a cell of nearly every state."""
    names = ["done", "runs", "waits", "queued", "failed", "failed_too", "back"]
    demo.plan(*((name, 0) for name in names), epochs=10)
    demo.submit({"4": [demo.folder("queued")], "7": [demo.folder("back")]})
    demo.run(demo.folder("done"), "done")
    demo.run(demo.folder("runs"), epoch=5, seconds=600)
    demo.lock(demo.folder("runs"))
    demo.run(demo.folder("failed"), "failed", error="boom [bold]\nmore")
    demo.run(demo.folder("failed_too"), "failed")
    demo.run(demo.folder("back"), "preempted", job="7", seconds=600)
    slurm.says(queue={"4": JobState("PENDING", "Priority"), "7": JobState("PENDING", "BeginTime")})


def test_the_command_imports_nothing_heavy_and_works_in_a_pipe(demo):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"), "done")
    script = (
        "import runpy, sys\nsys.argv[1:] = sys.argv[1:]\n"
        "try: runpy.run_module('gda.status', run_name='__main__')\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'numpy', 'hydra', 'omegaconf', 'yaml', 'submitit'}\n"
        "print('heavy', sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, "demo", "--runs", str(demo.runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.stderr == ""
    said = [line.rstrip() for line in done.stdout.splitlines()]
    assert said == ["demo: 1 cell: 1 done", "", "done  a seed=0", "exit 0", "heavy []"]


def test_the_counts_come_first_then_the_cells_by_state(demo, slurm, capsys):
    mixed(demo, slurm)
    assert status(demo) == 1
    said = lines(capsys)
    assert said[0].startswith(
        "demo: 7 cells: 1 done, 1 running, 1 queued, 1 preempted, 1 waiting, 2 failed; about "
    )
    words = [line.split()[0] for line in said[2:] if line and not line.startswith((" ", "-"))]
    assert words == ["done", "running", "queued", "preempted", "waiting", "failed"]
    text = "\n".join(said)
    assert re.search(r"runs seed=0 +in epoch 6 of 10, about \d+ min left", text)
    assert "queued seed=0      job 4: other jobs come first (Priority)" in text
    assert "RuntimeError: boom [bold] (at epoch 2/10)" in text  # an error is no markup
    assert text.count("-> the same command runs it again") == 1  # once for both
    assert "--failed shows the tracebacks." in text


def test_the_table_is_readable_at_80_columns(demo, slurm):
    mixed(demo, slurm)
    demo.plan(("x" * 50, 0, "distiller=kd alignment=gda recipe.lr=0.05 dataset=cifar100 seed=0"), epochs=10)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(view(study_state(demo.study)))
    said = console.export_text().splitlines()
    assert max(map(len, said)) <= 80
    text = " ".join(" ".join(said).split())
    assert "job 7 comes back" in text
    console.file.close()


def test_many_finished_cells_are_a_number_and_many_others_are_cut(demo, capsys):
    demo.plan(*(("a", seed) for seed in range(20)), *(("b", seed) for seed in range(15)))
    for seed in range(20):
        demo.run(demo.folder("a", seed), "done", epoch=0)
    status(demo)
    said = lines(capsys)
    assert said[0] == "demo: 35 cells: 20 done, 15 waiting"
    assert [" ".join(line.split()) for line in said if "--all" in line] == [
        "done 20 cells --all lists them",
        "and 3 more --all lists them",
    ]
    status(demo, "--all")
    said = lines(capsys)
    assert sum("a seed=" in line for line in said) == 20
    assert sum("b seed=" in line for line in said) == 15


def test_the_exit_code_is_0_only_when_every_cell_is_done(demo, capsys):
    demo.plan(("a", 0))
    assert status(demo) == 1
    demo.run(demo.folder("a"), "done")
    assert status(demo) == 0
    demo.run(demo.folder("b"), "interrupted")  # in no plan, and yet not done
    assert status(demo) == 1
    assert "b seed 0 (in no plan)" in capsys.readouterr().out


def test_a_study_without_anything_is_not_done(demo, capsys):
    demo.study.mkdir(parents=True)
    assert status(demo) == 1
    assert lines(capsys) == ["demo: no runs and no sweep plans were found."]


def test_an_unknown_study_gets_a_suggestion_and_code_2(demo, tmp_path, capsys):
    demo.plan(("a", 0))
    demo.beside("other").run(demo.runs / "other" / "a" / "seed0", "done")
    (demo.runs / "no_study").mkdir()
    assert main(["Demp", "--runs", str(demo.runs)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"There is no study 'Demp' in '{demo.runs}'; did you mean 'demo'?\n"
    assert main(["zzz", "--runs", str(demo.runs)]) == 2
    assert "there are: demo, other" in capsys.readouterr().err
    assert main(["demo", "--runs", str(tmp_path / "nowhere")]) == 2
    assert "--runs DIR" in capsys.readouterr().err
    for name in (".", "..", "./"):
        assert main([name, "--runs", str(demo.runs)]) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the study"),
        (["demo", "--watch", "soon"], "--watch takes a number of seconds, not 'soon'"),
        (["demo", "--watch", "--json"], "--json looks once"),
        (["demo", "--nothing"], "--nothing"),
    ],
)
def test_a_wrong_command_has_code_2(arguments, reason, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_failed_shows_the_tracebacks_of_runs_and_the_output_of_jobs(demo, slurm, capsys):
    demo.plan(("a", 0), ("b", 0), ("c", 0), ("d", 0))
    demo.run(demo.folder("b"), "failed", job="0", error="of an earlier job")
    sweep = demo.submit(
        {"1": [demo.folder("a")], "2": [demo.folder("b")], "3": [demo.folder("c")]}, submitted=ago(-60)
    )
    demo.run(demo.folder("a"), "failed", job="1", error="the first\nline two")
    (sweep / "logs" / "2.out").write_text("starting\nImportError: no such thing\n")
    demo.run(demo.folder("d"), "interrupted")
    slurm.says(accounts={"1": ("FAILED", 3), "2": ("FAILED", 3), "3": ("NODE_FAIL", 3)})
    assert status(demo, "--failed") == 1
    text = capsys.readouterr().out
    table, _, tracebacks = text.partition(f"a seed=0, {demo.folder('a') / 'run.log'}:")
    assert "the first" in table
    assert "line two" not in table
    assert "Traceback (most recent call last):" in tracebacks
    assert "RuntimeError: the first\nline two" in tracebacks
    assert f"b seed=0, {sweep / 'logs' / '2.out'}:\nstarting\nImportError: no such thing\n" in tracebacks
    assert "There is no traceback. its node died (SLURM: NODE_FAIL)" in tracebacks
    assert "d seed=0," not in tracebacks
    assert "of an earlier job" not in tracebacks


def test_json_is_one_object_of_the_documented_keys(demo, slurm, capsys):
    mixed(demo, slurm)
    assert status(demo, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {
        "format", "study", "folder", "done", "counts", "cells", "inputs", "seconds_left", "queue_fault",
        "faults",
    }  # fmt: skip
    assert (found["format"], found["study"], found["done"]) == (1, "demo", False)
    assert found["counts"] == {
        "done": 1, "running": 1, "queued": 1, "preempted": 1, "waiting": 1, "interrupted": 0,
        "cancelled": 0, "blocked": 0, "failed": 2, "lost": 0, "unknown": 0,
    }  # fmt: skip
    by_title = {cell["title"]: cell for cell in found["cells"]}
    back = by_title["back seed=0"]
    assert back.keys() == {
        "folder", "title", "state", "detail", "advice", "error", "planned", "job", "log", "epoch", "epochs",
        "step", "updated", "attempts", "began", "seconds_left",
    }  # fmt: skip
    assert back["folder"] == str(demo.folder("back"))
    assert (back["state"], back["job"], back["epoch"], back["epochs"]) == ("preempted", "7", 2, 10)
    assert back["attempts"] == 1
    assert by_title["failed seed=0"]["error"] == "RuntimeError: boom [bold]"
    assert found["seconds_left"] > 600


def test_json_with_failed_holds_the_tracebacks(demo, capsys):
    demo.plan(("a", 0), ("b", 0))
    demo.run(demo.folder("a"), "failed")
    status(demo, "--json", "--failed")
    first, second = json.loads(capsys.readouterr().out)["cells"]
    assert first["traceback"].endswith("RuntimeError: it went wrong")
    assert second["traceback"] is None


def test_the_documented_keys_are_those_of_the_json(demo, capsys):
    import gda.status

    demo.plan(("a", 0))
    status(demo, "--json", "--failed")
    found = json.loads(capsys.readouterr().out)
    documented = set(re.findall(r"^ {4,8}(\w+)  ", gda.status.__doc__, flags=re.MULTILINE))
    assert documented == found.keys() | found["cells"][0].keys()


def test_a_queue_that_cannot_be_asked_is_one_line_above_the_table(demo, slurm, capsys):
    demo.plan(("a", 0))
    demo.submit({"1": [demo.folder("a")]})
    slurm.script("squeue", [], ending="echo no controller >&2; exit 1")
    assert status(demo) == 1
    said = lines(capsys)
    assert said[1] == (
        "SLURM could not be asked (squeue failed: no controller): what follows is from disk alone."
    )
    assert "job 1, when last heard of" in said[3]


def test_files_that_cannot_be_used_are_named(demo, capsys):
    (demo.plan(("a", 0)) / "plan.json").write_text("{")
    status(demo)
    assert "- sweeps/2026-01-01_00-00-00/plan.json: plan.json is no valid JSON" in lines(capsys)


def test_unfinished_inputs_stand_before_the_cells(demo, capsys):
    teacher = demo.runs / "teachers" / "t" / "seed0"
    demo.plan(("a", 0), inputs=(teacher,))
    demo.run(teacher, "failed")
    status(demo)
    said = lines(capsys)
    first, second = said.index("Runs that cells build on:"), said.index("Cells:")
    assert first < second
    row = " ".join(said[first + 1].split())
    assert row == "failed teacher t RuntimeError: it went wrong (at epoch 2/10)"


def test_a_long_error_is_cut_in_the_table_only(demo, capsys):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"), "failed", error="word " * 100)
    status(demo)
    assert "word ... (at epoch 2/10)" in capsys.readouterr().out
    status(demo, "--json")
    assert json.loads(capsys.readouterr().out)["cells"][0]["error"].count("word") == 100


class Clock:
    """Stands in for time.sleep: every pause is the next step of a story."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.pauses = []

    def __call__(self, seconds):
        self.pauses.append(seconds)
        step = self.steps.pop(0)
        if isinstance(step, type):
            raise step
        step()


@pytest.fixture
def clock(monkeypatch):
    def tell(*steps):
        story = Clock(*steps)
        monkeypatch.setattr(watching.time, "sleep", story)
        return story

    return tell


def test_watch_looks_until_every_cell_is_done(demo, clock, capsys):
    demo.plan(("a", 0), ("a", 1))
    story = clock(
        lambda: demo.run(demo.folder("a", 0), "done"),
        lambda: None,
        lambda: demo.run(demo.folder("a", 1), "done"),
    )
    assert status(demo, "--watch", "3") == 0
    assert story.pauses == [3.0] * 3
    said = lines(capsys)
    counts = [line.split(" ", 1)[1] for line in said if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert counts == ["demo: 2 cells: 2 waiting", "demo: 2 cells: 1 done, 1 waiting"]
    assert said[-4] == "demo: 2 cells: 2 done"


def test_ctrl_c_ends_the_watch_with_code_1(demo, clock):
    demo.plan(("a", 0))
    clock(KeyboardInterrupt)
    assert status(demo, "--watch") == 1


def test_watch_may_stand_before_the_study(demo, clock):
    demo.plan(("a", 0))
    story = clock(KeyboardInterrupt)
    assert main(["--runs", str(demo.runs), "--watch", "demo"]) == 1
    assert story.pauses == [10.0]


def test_on_a_terminal_the_table_is_renewed_in_place(demo, clock):
    demo.plan(("a", 0))
    clock(lambda: demo.run(demo.folder("a", 0), "done"))
    console = Console(force_terminal=True, width=100, record=True, legacy_windows=False)
    with console.capture() as capture:
        state = watching.watch(demo.study, 5, console)
    assert state.done
    text = capture.get()
    assert "again every 5 s" in text
    assert "\x1b[1A" in text  # up again, over what was there
    assert "1 done" in text[text.rindex("\x1b[1A") :]


def test_watch_stops_where_its_caller_says_so(demo, clock):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"), "failed")
    clock()
    console = Console(file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    assert watching.watch(demo.study, 1, console, until=lambda state: state.settled).counts == {"failed": 1}
    console.file.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (59.7, "1 min"),
        (3599, "1 h"),
        (4800, "1 h 20 min"),
        (7200, "2 h"),
        (187200, "2 days 4 h"),
    ],
)
def test_times_are_written_for_people(seconds, words):
    from gda.cluster.state.eta import in_words

    assert in_words(seconds) == words


def test_the_headline_of_one_cell_has_no_plural(demo):
    demo.plan(("a", 0))
    assert headline(study_state(demo.study)) == "demo: 1 cell: 1 waiting"
