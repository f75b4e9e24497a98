"""A run that a signal stops at any step, on any of its ranks, goes on to the same end, bit for bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crew import BUILD, EVALUATION, FORGETFUL, SAVE, Act, Crews, Outcome, Ranks
from test_interruptions import assert_same_run

from gda.config.stages import runs_before

pytestmark = pytest.mark.cluster  # slow: `make test-cluster`

Compose = Callable[..., dict[str, Any]]
Config = dict[str, Any]
IN_SLURM = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "1"}
STEPS = 3  # of an epoch: 41 images in batches of 16
TEACHER = "gda.tasks.classification.ClassificationTask.evaluate_teacher"

# What could be lost in the middle of an epoch: momentum, an average, sums, batch statistics, and draws.
SETTINGS = (
    "recipe.epochs=2",
    "dataset.train_size=41",
    "distiller=aug_conf",
    "alignment=gda",
    "trainer.ema_decay=0.9",
    "seed=2",
    FORGETFUL,
)
KINDS: dict[str, tuple[str, ...]] = {
    "an average and a ramp": SETTINGS,
    "memory banks": (
        *("recipe.epochs=2", "dataset.train_size=41", "distiller=crd", "alignment=none"),
        *("trainer.precision=float16", FORGETFUL),
    ),
    "parts and a learned temperature": (
        *("recipe.epochs=2", "dataset.train_size=44", "distiller=kd", "plugin=ctkd", "alignment=gda"),
        *("trainer.accumulation=2", "recipe.gradient_clip=1.0"),
    ),
    "two momenta": (
        *("recipe.epochs=2", "dataset.train_size=41", "distiller=dot", "alignment=none"),
        "recipe.last_epoch_without_augmentation=true",
    ),
}
EPISODES = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "dataset.image_size=16"),
    *("recipe=digits_few_shot_meta", "recipe.epochs=2", "encoder=classifier"),
    *("recipe@encoder.recipe=digits_few_shot_classifier", "encoder.recipe.epochs=1"),
    *("encoder.task.batches=1", "encoder.task.evaluate_every=1", "encoder.recipe.batch_size=512"),
    *("task=meta_baseline", "task.train_batches=3", "task.batches=2", "teacher=none", "distiller=vanilla"),
    "alignment=none",
)


@pytest.fixture(scope="module")
def crews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crews]:
    """Ranks that stay, as many as asked for."""
    crews = Crews(tmp_path_factory.mktemp)
    yield crews
    crews.dismiss()


@pytest.fixture(scope="module")
def command(
    tiny: Compose, compose: Compose, teacher_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """Composes a kind of run in a folder of its own."""

    def composed(kind: str = "an average and a ramp", ranks: int = 1) -> Config:
        if kind == "episodes":
            config = compose(*EPISODES, "tracking=none", "trainer.device=cpu", "trainer.threads=1")
        else:
            config = tiny(*KINDS[kind], f"teacher.checkpoint={teacher_weights}")
        if ranks == 3:
            config["recipe"]["batch_size"] = 15  # which three can share
        return {**config, "runs": str(tmp_path_factory.mktemp("runs"))}

    return composed


@pytest.fixture(scope="module")
def whole(crews: Crews, command: Callable[..., Config]) -> Callable[[str, int], Path]:
    """The folder of the same run, never stopped."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str, ranks: int) -> Path:
        if (kind, ranks) not in made:
            made[kind, ranks] = finished(crews.of(ranks).make(command(kind, ranks)))
        return made[kind, ranks]

    return folder


def finished(outcomes: list[Outcome]) -> Path:
    assert [each.kind for each in outcomes] == ["done"] * len(outcomes), outcomes
    assert len({each.weights for each in outcomes}) == 1, "all ranks have learned the same"
    (folder,) = {each.folder for each in outcomes}
    assert folder is not None
    return folder


def assert_stopped(outcomes: list[Outcome], kind: str = "RunInterrupted") -> None:
    code = {"RunInterrupted": 130, "RunPreempted": 143}[kind]
    assert {(each.kind, each.exit_code) for each in outcomes} == {(kind, code)}, outcomes


def run_folder(config: Config) -> Path:
    (folder,) = Path(config["runs"]).glob("main/*/seed*")
    return folder


def status(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "status.json").read_text())
    assert isinstance(content, dict)
    return content


def attempts(folder: Path) -> list[tuple[str, int, int]]:
    lines = map(json.loads, (folder / "attempts.jsonl").read_text().splitlines())
    return [(line["event"], line["epoch"], line["step"] or 0) for line in lines]


# --- every kind of run, on one rank and on several


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("an average and a ramp", 1), *((kind, 2) for kind in (*KINDS, "episodes"))],
)
def test_stopped_in_each_epoch_it_ends_as_if_never_stopped(
    kind: str,
    ranks: int,
    crews: Crews,
    command: Callable[..., Config],
    whole: Callable[[str, int], Path],
) -> None:
    crew, config = crews.of(ranks), command(kind, ranks)
    last = ranks - 1  # signals come to one rank alone
    if kind == "episodes":  # the encoder is there already: its steps do not count
        finished(crew.make(runs_before(config)["encoder"]))
    assert_stopped(crew.make(config, Act("SIGTERM", count=2, rank=last)))
    folder = run_folder(config)
    state = torch.load(folder / "last.pt", weights_only=True)
    assert (state["epoch"], state["within"]["step"], len(state["within"]["ranks"])) == (0, 2, ranks)
    # one step is left of the first epoch: stopped in the first of the next
    assert_stopped(crew.make(config, Act("SIGUSR2", count=2, rank=0)))
    expected = [
        ("begin", 0, 0),
        ("interrupted", 0, 2),
        ("begin", 0, 2),
        ("interrupted", 1, 1),
        ("begin", 1, 1),
    ]
    if kind == "an average and a ramp":  # and at once again
        assert_stopped(crew.make(config, Act("SIGINT", count=1, rank=last)))
        expected += [("interrupted", 1, 2), ("begin", 1, 2)]
    assert finished(crew.make(config)) == folder
    assert attempts(folder) == [*expected, ("done", 2, 0)]
    assert_same_run(folder, whole(kind, ranks))


def test_three_ranks_add_gradients_in_the_same_order_after_a_stop(
    crews: Crews, command: Callable[..., Config], whole: Callable[[str, int], Path]
) -> None:
    """The sum of three numbers depends on their order, which DDP chooses anew after its first step."""
    crew, config = crews.of(3), command(ranks=3)
    assert_stopped(crew.make(config, Act("SIGTERM", count=1, rank=2)))
    assert_same_run(finished(crew.make(config)), whole("an average and a ramp", 3))


# --- at any other moment


@pytest.mark.parametrize(
    ("ranks", "places"),
    [
        (1, [(0, 0), (0, STEPS), (0, STEPS)]),  # one rank stops at once
        (2, [(0, 1), (0, STEPS), (1, 1)]),  # several obey after the next step
    ],
)
def test_stopped_before_the_first_step_in_the_last_one_and_in_an_evaluation(
    ranks: int,
    places: list[tuple[int, int]],
    crews: Crews,
    command: Callable[..., Config],
    whole: Callable[[str, int], Path],
) -> None:
    crew, config, last = crews.of(ranks), command(), ranks - 1
    left = STEPS - places[0][1]
    for act, place in zip(
        (
            Act("SIGTERM", TEACHER, rank=last),
            Act("SIGTERM", count=left, rank=last),
            Act("SIGTERM", EVALUATION, rank=last),
        ),
        places,
        strict=True,
    ):
        assert_stopped(crew.make(config, act))
        folder = run_folder(config)
        state = status(folder)
        assert (state["state"], state["epoch"], state.get("step", 0)) == ("interrupted", *place)
    assert_same_run(finished(crew.make(config)), whole("an average and a ramp", ranks))
    begun = [tuple(each[1:]) for each in attempts(folder) if each[0] == "begin"]
    assert begun == [(0, 0), *places]


def test_a_stop_in_the_last_evaluation_costs_no_training(
    crews: Crews, command: Callable[..., Config], whole: Callable[[str, int], Path]
) -> None:
    crew, config = crews.of(1), command()
    batches = 3 * 2  # two evaluations of three batches an epoch, of the student and of its average
    assert_stopped(crew.make(config, Act("SIGTERM", EVALUATION, count=3 + batches + 2)))
    never = Act("raises", before=True)  # at the first step that is trained once more
    folder = finished(crew.make(config, never))
    assert attempts(folder)[-2:] == [("begin", 1, STEPS), ("done", 2, 0)]
    assert_same_run(folder, whole("an average and a ramp", 1))


def test_a_signal_too_late_for_a_teacher_stops_its_student(
    crews: Crews, tiny: Compose, tmp_path: Path
) -> None:
    config = {**tiny("recipe.epochs=1", "distiller=kd", "alignment=none"), "runs": str(tmp_path)}
    saves = 2  # best and last
    assert_stopped(crews.of(1).make(config, Act("SIGTERM", SAVE, count=saves)))
    (teacher,) = tmp_path.glob("teachers/*/seed*")
    assert status(teacher)["state"] == "done"
    assert status(run_folder(config))["state"] == "interrupted"
    assert attempts(run_folder(config)) == [("begin", 0, 0), ("interrupted", 0, 1)]


# --- within a SLURM job


@pytest.mark.parametrize("ranks", [1, 2])
def test_within_a_job_a_stop_is_a_preemption_unless_a_person_asked(
    ranks: int, crews: Crews, command: Callable[..., Config], whole: Callable[[str, int], Path]
) -> None:
    crew, config, last = crews.of(ranks), command(), ranks - 1
    for act, kind, state in (
        (Act("SIGUSR2", rank=last), "RunPreempted", "preempted"),
        (Act("SIGINT", rank=last), "RunInterrupted", "interrupted"),
        # between checkpoint and journal, which belong together: it is obeyed after the next step
        (Act("SIGTERM", SAVE, count=2, rank=0), "RunPreempted", "preempted"),
    ):
        outcomes = crew.make(config, act, environment=IN_SLURM)
        assert_stopped(outcomes, kind)
        assert status(run_folder(config))["state"] == state
        assert (act.does in outcomes[0].message) == (state == "preempted")
    folder = finished(crew.make(config, environment=IN_SLURM))
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    events = ["begin", "preempted", "begin", "interrupted", "begin", "preempted", "begin", "done"]
    assert [line["event"] for line in lines] == events
    begun = [line for line in lines if line["event"] == "begin"]
    assert {(line["slurm_job"], line["restart"]) for line in begun} == {("4711", 1)}
    assert [(line["epoch"], line["step"]) for line in begun] == [(0, 0), (0, 1), (0, 2), (1, 1)]
    assert_same_run(folder, whole("an average and a ramp", ranks))


# --- as commands, which end


@pytest.mark.parametrize(
    ("acts", "place"),
    [
        # all are told in the same evaluation, at the pace of each
        ((Act("SIGTERM", EVALUATION, count=2, rank=1), Act("SIGTERM", EVALUATION, count=5, rank=0)), (1, 1)),
        # one alone is told, before there is anything to save
        ((Act("SIGTERM", BUILD, rank=1),), (0, 1)),
    ],
    ids=["all, in an evaluation", "one, before the run is built"],
)
def test_all_ranks_end_together_and_say_so_once(
    acts: tuple[Act, ...],
    place: tuple[int, int],
    crews: Crews,
    tiny_overrides: Callable[..., list[str]],
    teacher_weights: Path,
    command: Callable[..., Config],
    whole: Callable[[str, int], Path],
    tmp_path: Path,
) -> None:
    line = (*SETTINGS, f"teacher.checkpoint={teacher_weights}")
    ranks = Ranks(2, tiny_overrides(*line), tmp_path, *acts, environment=IN_SLURM)
    assert ranks.wait() == [143, 143], ranks.output
    (folder,) = tmp_path.glob("runs/main/*/seed*")
    assert status(folder)["state"] == "preempted"
    assert attempts(folder) == [("begin", 0, 0), ("preempted", *place)]
    assert ranks.output.count("goes on when its job comes back") == 1, ranks.output
    assert "Traceback" not in ranks.output
    assert not (folder / "run.lock").exists()
    assert finished(crews.of(2).make({**command(), "runs": str(tmp_path / "runs")})) == folder
    assert_same_run(folder, whole("an average and a ramp", 2))
