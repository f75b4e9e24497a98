"""Every method trains the demo's pair: its loss falls, and a continued run ends like an unbroken one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gda.app import finish
from gda.config.check import check
from gda.tracking.run_folder import RunFolder
from gda.training.checkpoint import LAST
from gda.training.trainer import Trainer

CONF = Path(__file__).resolve().parents[2] / "conf"
Compose = Callable[..., dict[str, Any]]

METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))
PLUGINS = [
    (base, path.stem)
    for path in sorted((CONF / "plugin").glob("*.yaml"))
    for base in ("kd", "dkd", "mlkd")
    if path.stem != "none" and (base, path.stem) != ("mlkd", "sdd")  # refused: not a mean over samples
]


@pytest.fixture(scope="session")
def teacher(tiny: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the demo's teacher, trained for eight epochs: it has something to teach."""
    runs = tmp_path_factory.mktemp("teacher")
    plain = ("distiller=vanilla", "alignment=none", "teacher=none", "student=resnet8x4")
    return finish(tiny(*plain, "recipe.epochs=8", f"runs={runs}")).folder


@pytest.fixture
def method(tiny: Compose, teacher: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Composes a method on the demo's pair with GDA, its weights at full size from the first epoch."""

    def composed(
        study: str, distiller: str, plugin: str, terms: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        config = tiny(
            f"distiller={distiller}",
            f"plugin={plugin}",
            "alignment=gda",
            "teacher=resnet8x4",
            "student=resnet8",
            "recipe.lr=0.003",  # few steps an epoch: at the recipe's own rate some losses rise first
            f"teacher.checkpoint={teacher}",
            f"study={study}",
            f"runs={tmp_path}",
        )
        config["distiller"]["terms"] |= terms or {}
        for term in config["distiller"]["terms"].values():
            if isinstance(term["weight"], dict):
                term["weight"]["warmup_epochs"] = 0
            if "ramp" in term:
                term["ramp"] = 0.0
        return config

    return composed


def keep_first_epoch(monkeypatch: pytest.MonkeyPatch, runs: Path, copy: Path) -> None:
    """Copies the runs once the first epoch is safe on disk: so they would be left if it was the last one."""
    run_epoch = Trainer._run_epoch

    def copied(self: Trainer, number: int, *arguments: Any) -> None:
        run_epoch(self, number, *arguments)
        if number == 0:
            shutil.copytree(runs, copy, ignore=shutil.ignore_patterns("run.lock"))

    monkeypatch.setattr(Trainer, "_run_epoch", copied)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def trained_and_resumed(
    method: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, *choices: Any
) -> list[dict[str, Any]]:
    """Trains through, and goes on from the first epoch; returns the journal after comparing both."""
    config = method("through", *choices)
    runs = Path(config["runs"])
    copy = runs.with_name(f"{runs.name} after one epoch")
    assert check(config) == []
    with monkeypatch.context() as patch:
        keep_first_epoch(patch, runs, copy)
        through = finish(config).folder
    copied = copy / through.relative_to(runs)
    assert len(RunFolder(copied).history()) == 2
    halves = finish({**config, "runs": str(copy)}).folder
    assert halves == copied
    assert RunFolder(halves).status()["attempt"] == 2
    first, second = (
        torch.load(folder / LAST, map_location="cpu", weights_only=True) for folder in (through, halves)
    )
    assert same(first, second)
    assert (through / "metrics.jsonl").read_bytes() == (halves / "metrics.jsonl").read_bytes()
    return RunFolder(through).history()


@pytest.mark.parametrize("distiller", METHODS)
def test_a_method_trains_and_resumes_exactly(
    distiller: str, method: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, second = trained_and_resumed(method, monkeypatch, distiller, "none")
    # CRD's negatives are memories of the student: its own loss rises first, as they come alike.
    figure = "term/ground_truth" if distiller == "crd" else "train_loss"
    assert second[figure] < first[figure]


@pytest.mark.parametrize(("distiller", "plugin"), PLUGINS, ids=lambda name: name)
def test_a_plug_in_trains_and_resumes_exactly(
    distiller: str, plugin: str, method: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, second = trained_and_resumed(method, monkeypatch, distiller, plugin)
    assert second["train_loss"] < first["train_loss"]


OWN = """
import torch
from torch import Tensor, nn

from gda.distillers import RunFacts, Term, TermInputs


class Projected(Term):
    '''The teacher's pooled features, from a projection of the student's.'''

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.student_features = self.teacher_features = ("pooled",)

    def setup(self, facts: RunFacts) -> None:
        student, teacher = facts.student_features["pooled"], facts.teacher_features["pooled"]
        self.projector = nn.Linear(student.shape[0], teacher.shape[0])
        self.register_buffer("seen", torch.zeros(facts.train_size))

    def forward(self, inputs: TermInputs) -> Tensor:
        assert inputs.teacher is not None
        self.seen[inputs.indices] += 1
        projected = self.projector(inputs.student.features["pooled"])
        return self.scale * (projected - inputs.teacher.features["pooled"]).square().mean()
"""


def test_a_users_own_term_beside_built_in_ones_trains_resumes_and_is_reported(
    method: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gda.report.__main__ import main

    (tmp_path / "own_terms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {
        "mine": {
            "_target_": "own_terms.Projected",
            "weight": {"value": 0.5, "warmup_epochs": 2},
            "scale": 2.0,
        }
    }
    _, first, second = trained_and_resumed(method, monkeypatch, "kd", "lskd", own)
    assert second["term/mine"] < first["term/mine"]
    (folder,) = (tmp_path / "through").glob("*/seed0")
    state = torch.load(folder / LAST, weights_only=True)["modules"]["distiller"]
    assert (state["terms.mine.seen"] == 2).all()
    assert state["terms.mine.projector.weight"].shape == (256, 64)
    assert main(["through", "--runs", str(tmp_path)]) == 0
    assert "kd+lskd+gda" in (tmp_path / "through" / "report" / "report.md").read_text()
