"""What ``encoder.checkpoint`` may name, what is refused before anything runs, and what is fetched when."""

import functools
import http.server
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gda.app import finish, require_runnable, run
from gda.config.check import check
from gda.config.faults import ConfigFaults
from gda.config.inputs import encoder_identity, facts_of, identify_run, run_path
from gda.errors import UserError
from gda.models import create_model
from gda.models.weights.checkpoints import file_hash
from gda.tracking.run_folder import RunFolder

Config = dict[str, Any]
Compose = Callable[..., Config]

META = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "teacher=resnet8"),
    *("task=meta_baseline", "recipe=digits_few_shot_meta", "tracking=none", "trainer.threads=1"),
    *("encoder=classifier", "recipe@encoder.recipe=digits_few_shot_classifier", "trainer.device=cpu"),
)
TEST = ("task=few_shot_test",)
NO_ENCODER = ("encoder=none", "-encoder")
CLASSIFIER = ("task=few_shot_classifier", "recipe=digits_few_shot_classifier")
# A test that takes a second.
QUICK = (*TEST, "task.batches=2", "task.auc=false", "task.probe=false")


@pytest.fixture
def staged(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """Composes a meta-learner with overrides; `-encoder` takes its recipe back. The cache is fresh."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def composed(*overrides: str) -> Config:
        chosen = dict(each.split("=", 1) for each in (*META, *overrides) if "=" in each)
        if "-encoder" in overrides:
            del chosen["recipe@encoder.recipe"]
        if chosen["student"] != "convnet4":
            del chosen["student.image_size"]
        config = compose(*(f"{key}={value}" for key, value in chosen.items()))
        return {**config, "runs": str(tmp_path / "runs")}

    return composed


@pytest.fixture
def faults(staged: Compose) -> Callable[..., dict[str, str]]:
    """The faults of such a config, as text by the place that they name."""

    def found(*overrides: str) -> dict[str, str]:
        every = check(staged(*overrides))
        assert len({fault.where for fault in every}) == len(every), "\n".join(map(str, every))
        return {fault.where: str(fault) for fault in every}

    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained convnet4 for the five base classes, in a file."""
    return saved(tmp_path_factory.mktemp("weights") / "convnet4.pt", classes=5)


def saved(path: Path, classes: int | None, name: str = "convnet4", **more: Any) -> Path:
    torch.manual_seed(3)
    options = {"image_size": 16} if name == "convnet4" else {}
    torch.save({"model": create_model(name, classes, **options).state_dict(), **more}, path)
    return path


# -- whether there is one --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "verb"), [((), "starts from"), (TEST, "tests")], ids=["meta-learner", "test"]
)
def test_an_encoder_is_needed(
    overrides: tuple[str, ...], verb: str, faults: Callable[..., dict[str, str]]
) -> None:
    found = faults(*NO_ENCODER, *overrides)
    assert list(found) == ["encoder.checkpoint"]
    assert f"{verb} an encoder that was trained before" in found["encoder.checkpoint"]
    assert "Try: encoder=classifier, or encoder.checkpoint=FILE" in found["encoder.checkpoint"]


@pytest.mark.parametrize(
    "overrides",
    [CLASSIFIER, ("task=classification", "dataset=digits", "dataset.image_size=16", "recipe=digits")],
    ids=["few-shot classifier", "classification"],
)
def test_an_encoder_is_refused_where_none_is_taken(
    overrides: tuple[str, ...], faults: Callable[..., dict[str, str]], weights: Path
) -> None:
    for named in ((), (f"encoder.checkpoint={weights}",)):
        found = faults(*overrides, *named)
        assert list(found) == ["encoder"]
        assert "starts from fresh weights" in found["encoder"]
        assert found["encoder"].endswith("Try: encoder=none")
    assert faults(*overrides, *NO_ENCODER) == {}


def test_a_file_needs_no_stage_before(faults: Callable[..., dict[str, str]], weights: Path) -> None:
    named = (*NO_ENCODER, f"encoder.checkpoint={weights}")
    assert faults(*named, f"teacher.checkpoint={saved(weights.parent / 'resnet8.pt', 5, 'resnet8')}") == {}
    assert faults(*named, "teacher=none", "distiller=vanilla", "alignment=none") == {}


def test_auto_needs_to_know_how(faults: Callable[..., dict[str, str]]) -> None:
    found = faults(*NO_ENCODER, "encoder.checkpoint=auto", "teacher.checkpoint=auto")
    assert "encoder=classifier" in found["encoder"]


@pytest.mark.parametrize("kind", ["classifier", "meta"])
def test_a_teacher_that_is_made_first_needs_to_know_how_too(
    kind: str, staged: Compose, weights: Path
) -> None:
    """With `encoder=none` nothing says how the teacher's classifier is trained."""
    found = check(staged(*NO_ENCODER, f"encoder.checkpoint={weights}", f"task.teacher_kind={kind}"))
    assert {fault.where.partition(".")[0] for fault in found} <= {"encoder", "teacher"}
    assert len(found) == 1


# -- what does not go together ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (("encoder.weights=ema",), "encoder.weights", "keeps no moving average"),
        (("encoder.weights=ema", "trainer.ema_decay=0.9"), "encoder.weights", "keeps no moving average"),
        ((*TEST, "encoder.weights=ema"), "encoder.weights", "Try: encoder.weights=raw"),
        ((f"encoder.sha256='{'0' * 64}'",), "encoder.sha256", "Try: encoder.sha256=null"),
        ((*TEST, f"encoder.sha256='{'0' * 64}'"), "encoder.sha256", "encoder.checkpoint names none"),
        (("encoder.checkpoint_select=best", "dataset.validation=0"), "encoder.checkpoint_select", "held out"),
        (
            (*TEST, "encoder.checkpoint_select=best", "dataset.validation=0"),
            *("encoder.checkpoint_select", "held out"),
        ),
        (("encoder.checkpoint=lost.pt",), "encoder.checkpoint", "there is no file lost.pt"),
        ((*TEST, "encoder.checkpoint=lost.pt"), "encoder.checkpoint", "Try: encoder.checkpoint=auto"),
        (("encoder.checkpoint=ftp://a/b.pt",), "encoder.checkpoint", "no address"),
        (("encoder.checkpoint=file:///lost.pt",), "encoder.checkpoint", "there is no file behind"),
        (("encoder.checkpoint='mlflow:not an id'",), "encoder.checkpoint", "no MLflow run id"),
        (("encoder.checkpoint_select=first",), "encoder.checkpoint_select", "'last', 'best'"),
        (("encoder.seed=-1",), "encoder.seed", "at least 0"),
    ],
    ids=[
        *("ema of auto", "ema of an averaged auto", "ema of a test", "hash of auto", "hash of a test"),
        *("best of nothing", "best of a test", "no file", "no file to test", "no scheme", "no file behind"),
        *("no id", "no state", "no seed"),
    ],
)
def test_what_auto_or_a_name_can_not_be(
    overrides: tuple[str, ...], where: str, what: str, faults: Callable[..., dict[str, str]]
) -> None:
    found = faults(*overrides)
    assert list(found) == [where]
    assert what in found[where]


def test_the_average_of_a_run_is_tested_where_it_keeps_one(faults: Callable[..., dict[str, str]]) -> None:
    assert faults(*TEST, "encoder.weights=ema", "trainer.ema_decay=0.9") == {}


# -- whose weights they are ------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), TEST], ids=["meta-learner", "test"])
def test_weights_that_do_not_fit(
    overrides: tuple[str, ...], faults: Callable[..., dict[str, str]], weights: Path, tmp_path: Path
) -> None:
    def of(path: Path, *more: str) -> str:
        found = faults(*overrides, f"encoder.checkpoint={path}", *more)
        assert list(found) in ([], ["encoder.checkpoint"], ["encoder.weights"])
        return "".join(found.values())

    assert of(weights) == ""
    assert of(weights, f"encoder.sha256='{file_hash(weights)}'") == ""
    assert file_hash(weights) in of(weights, f"encoder.sha256='{'0' * 64}'")
    assert "Try: encoder.weights=raw" in of(weights, "encoder.weights=ema")
    other = of(saved(tmp_path / "resnet8.pt", 5, "resnet8"))
    assert "do not fit convnet4" in other
    assert "these weights fit resnet8" in other
    state = torch.load(weights, weights_only=True)["model"]
    first = next(key for key in state if key.startswith("encoder."))
    damaged = {
        "lacking": {key: value for key, value in state.items() if key != first},
        "unknown": {**state, "encoder.another.weight": torch.zeros(3)},
        "infinite": {**state, first: torch.full_like(state[first], float("inf"))},
    }
    for name, content in damaged.items():
        torch.save({"model": content}, tmp_path / f"{name}.pt")
        named = {"lacking": "the file lacks", "unknown": "no: another.weight", "infinite": "not finite"}[name]
        assert named in of(tmp_path / f"{name}.pt"), name
    (tmp_path / "short.pt").write_bytes(weights.read_bytes()[:1000])
    assert "can't be read" in of(tmp_path / "short.pt")


@pytest.mark.parametrize("overrides", [(), TEST], ids=["meta-learner", "test"])
def test_a_head_of_other_classes_is_left_out_whatever_their_number(
    overrides: tuple[str, ...], faults: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    for classes in (None, 5, 64):
        path = saved(tmp_path / f"{classes}.pt", classes)
        assert faults(*overrides, f"encoder.checkpoint={path}") == {}


def test_a_classifiers_teacher_must_have_its_classes(
    faults: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    path = saved(tmp_path / "resnet8.pt", 64, "resnet8")
    assert faults(f"teacher.checkpoint={path}") == {}
    found = faults(*CLASSIFIER, *NO_ENCODER, f"teacher.checkpoint={path}")
    assert "trained for 64 classes, and the data set has 5" in found["teacher.checkpoint"]


# -- tested folders --------------------------------------------------------------------------------------


@pytest.fixture
def tested(staged: Compose, weights: Path) -> Path:
    """The folder of a finished meta-learner of seed 2, as far as its test looks at it."""
    config = staged("seed=2", "study=trained")
    identity = identify_run(config)
    folder = RunFolder(run_path(config, identity))
    folder.begin(config, facts_of(config, identity), epochs=1)
    folder.finish({"last": {}, "best": None})
    shutil.copy(weights, folder.path / "last.pt")
    return folder.path


def marked(folder: Path, state: str) -> None:
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": state}))


def test_a_tested_folder_is_tested_with_its_own_seed(
    tested: Path, faults: Callable[..., dict[str, str]]
) -> None:
    named = (*TEST, f"encoder.checkpoint={tested}")
    assert faults(*named, "seed=2") == {}
    found = faults(*named, "seed=1")
    assert list(found) == ["seed"]
    assert "has seed 2" in found["seed"]
    assert found["seed"].endswith("Try: seed=2")
    assert faults(f"encoder.checkpoint={tested}", "seed=1") == {}, "to start from it is no test"


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_only_a_finished_folder_is_tested(
    state: str, tested: Path, faults: Callable[..., dict[str, str]]
) -> None:
    marked(tested, state)
    found = faults(*TEST, f"encoder.checkpoint={tested}", "seed=2")
    assert list(found) == ["encoder.checkpoint"]
    assert f"is {state}, and only a finished one is tested" in found["encoder.checkpoint"]


@pytest.mark.parametrize("written", ["~/{}", "~/{}/"])
def test_a_tested_folder_below_the_home_folder(
    written: str, tested: Path, faults: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds for a path must hold for the same path with a tilde."""
    monkeypatch.setenv("HOME", str(tested.parent))
    named = (*TEST, f"encoder.checkpoint='{written.format(tested.name)}'")
    assert faults(*named, "seed=2") == {}
    assert list(faults(*named, "seed=1")) == ["seed"]
    marked(tested, "running")
    assert list(faults(*named, "seed=2")) == ["encoder.checkpoint"]


def test_a_folder_without_the_weights_that_are_asked_for(
    tested: Path, faults: Callable[..., dict[str, str]]
) -> None:
    found = faults(*TEST, f"encoder.checkpoint={tested}", "encoder.checkpoint_select=best", "seed=2")
    assert "holds no best.pt" in found["encoder.checkpoint"]


def test_a_folder_of_another_architecture(tested: Path, faults: Callable[..., dict[str, str]]) -> None:
    found = faults(*TEST, f"encoder.checkpoint={tested}", "seed=2", "student=resnet8")
    assert list(found) == ["encoder.checkpoint"]
    assert "do not fit resnet8" in found["encoder.checkpoint"]
    assert "these weights fit convnet4" in found["encoder.checkpoint"]


# -- what is fetched, and what is written ----------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address that an HTTP server on this machine gives it, and what was asked of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Listening(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    handler = functools.partial(Listening, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("overrides", [(), TEST], ids=["meta-learner", "test"])
def test_an_address_is_asked_when_everything_else_is_fine(
    overrides: tuple[str, ...], staged: Compose, weights: Path, served: tuple[Path, str, list[str]]
) -> None:
    folder, address, asked = served
    shutil.copy(weights, folder / "encoder.pt")
    saved(folder / "other.pt", 5, "resnet8")
    named = (*overrides, f"encoder.checkpoint={address}/encoder.pt")
    with pytest.raises(ConfigFaults, match=r"1 fault[^s]"):
        require_runnable(staged(*named, "recipe.evaluation_batch_size=0"))
    assert check(staged(*named)) == []
    assert asked == []
    require_runnable(staged(*named))
    assert asked == ["/encoder.pt"]
    require_runnable(staged(*named, "seed=3"))
    assert asked == ["/encoder.pt"], "it is at hand now"
    assert encoder_identity(staged(*named)) == f"sha256:{file_hash(weights)}"
    with pytest.raises(ConfigFaults, match="do not fit convnet4"):
        require_runnable(staged(*overrides, f"encoder.checkpoint={address}/other.pt"))
    with pytest.raises(ConfigFaults, match="404"):
        require_runnable(staged(*overrides, f"encoder.checkpoint={address}/lost.pt"))


def test_a_fetched_student_is_tested_as_its_file_is(
    staged: Compose, weights: Path, served: tuple[Path, str, list[str]]
) -> None:
    folder, address, _ = served
    shutil.copy(weights, folder / "encoder.pt")
    fetched = finish(staged(*QUICK, f"encoder.checkpoint={address}/encoder.pt", "study=fetched"))
    local = finish(staged(*QUICK, f"encoder.checkpoint=file://{weights}"))
    assert fetched.identity.group == local.identity.group
    assert fetched.result == local.result
    description = RunFolder(local.folder).description()
    assert description["encoder_weights"] == str(weights)
    assert (description["encoder_run"], description["selection"]) == (None, "none")


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the program says, line by line."""
    lines: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener = Listening(logging.INFO)
    logging.getLogger("gda").addHandler(listener)
    yield lines
    logging.getLogger("gda").removeHandler(listener)


@pytest.mark.parametrize(
    ("role", "overrides"),
    [("encoder", ()), ("encoder", TEST), ("teacher", ()), ("teacher", TEST)],
    ids=["encoder", "tested student", "teacher", "teacher of the tested run"],
)
def test_a_check_fetches_nothing_and_writes_nothing(
    role: str,
    overrides: tuple[str, ...],
    staged: Compose,
    served: tuple[Path, str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    folder, address, asked = served
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    saved(folder / "weights.pt", 5, "convnet4" if role == "encoder" else "resnet8")
    config = staged(*overrides, f"{role}.checkpoint={address}/weights.pt", "report=true")
    run(OmegaConf.create({**config, "check": True}))
    assert asked == []
    assert f"the weights will be fetched from {address}/weights.pt" in "".join(said)
    assert list(here.iterdir()) == []
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()


def test_weights_of_the_tested_run_that_can_not_be_had_are_said_before_anything_runs(
    staged: Compose, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="can't be fetched"):
        finish(staged(*TEST, "teacher.checkpoint=http://127.0.0.1:9/teacher.pt"))
    assert not (tmp_path / "runs").exists()
