"""The student of a finished run, from the files in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from gda.config.stages import needs_of
from gda.errors import UserError
from gda.interchange.architecture import build
from gda.interchange.model_input import ModelInput
from gda.models.weights.checkpoints import misfit
from gda.tracking.near_runs import near_runs
from gda.tracking.run_folder import RunFolder
from gda.training import checkpoint
from gda.training.evaluation import EPISODES

_KEYS = {"raw": "model", "ema": "model_ema"}
CHECKPOINTS = {"last": checkpoint.LAST, "best": checkpoint.BEST}


@dataclass(frozen=True, eq=False)
class FinishedStudent:
    """What a run has trained.

    Attributes:
        folder: The run folder.
        config: Its resolved config.
        facts: Its ``run.json``.
        checkpoint: Name of the file that the weights are from.
        weights: ``raw`` or ``ema``.
        state: The weights.
        epoch: The epoch that they are from.
        metrics: Figures of that epoch.
        input: Images and classes of the student.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    checkpoint: str
    weights: str
    state: Mapping[str, Tensor]
    epoch: int
    metrics: Mapping[str, Any]
    input: ModelInput

    def model(self) -> nn.Module:
        """Builds the student and loads its weights; on the CPU, in evaluation mode.

        Raises:
            UserError: The config's model is no longer the one that was trained.
        """
        model = build(self.config["student"], self.input.classes)
        problem = misfit(model, dict(self.state))
        if problem is not None:
            raise UserError(
                f"The student of {self.folder} does not fit the model that its config.yaml names now: "
                f"{problem}. Export it with the version of the code that trained it "
                f"(git commit {(self.facts.get('git') or {}).get('commit')})."
            )
        model.load_state_dict(self.state)
        return model.eval()


def read_student(path: Path, select: str = "last", weights: str = "raw") -> FinishedStudent:
    """Reads the student of a run.

    Args:
        path: The run folder.
        select: ``last``, or ``best`` for the best epoch on held-out validation images.
        weights: ``raw``, or ``ema`` for the moving average.

    Raises:
        UserError: There is no such run, it is not finished, it keeps no such weights, or it does not say
            which images it took.
    """
    folder = _finished_run(path)
    if not (folder.path / checkpoint.LAST).is_file() and (folder.path / EPISODES).is_file():
        raise UserError(
            f"{folder} is the test of a student and holds none. Name the folder of the tested run."
        )
    file = folder.path / CHECKPOINTS[select]
    if not file.is_file():
        why = (
            "no images were held out to choose an epoch on. Take --select last"
            if select == "best"
            else ("it was removed. To make it again, remove the folder and issue the run's command")
        )
        raise UserError(f"{folder} holds no {file.name}: {why}.")
    content = checkpoint.load(file)
    state = content.get(_KEYS[weights])
    if state is None:
        raise UserError(
            f"{file} holds no moving average: the run was made with trainer.ema_decay=null. "
            "Take --weights raw, or train with trainer.ema_decay=0.999."
        )
    config = _config(folder)
    _require_classifier(folder, config)
    facts = folder.description()
    return FinishedStudent(
        folder=folder,
        config=config,
        facts=facts,
        checkpoint=file.name,
        weights=weights,
        state=state,
        epoch=content["epoch"],
        metrics=content["metrics"],
        input=_input(folder, facts, config),
    )


def _finished_run(path: Path) -> RunFolder:
    folder = RunFolder(path.absolute())
    if not (path / "run.json").is_file():
        advice = near_runs(path) or "Name the folder of one run, e.g. runs/STUDY/NAME-GROUP/seed0."
        raise UserError(f"{path} is no run folder. {advice}")
    status = folder.status()
    state = status.get("state", "not finished")
    if state != "done":
        why = f" ({status['error']})" if status.get("error") else ""
        at = f" at epoch {status.get('epoch')} of {status.get('epochs')}" if "epochs" in status else ""
        raise UserError(
            f"The run in {folder} is {state}{at}{why}; only a finished one is exported. "
            "The command that began it continues it."
        )
    return folder


def _require_classifier(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Refuses a meta-learner: it classifies by the shots of an episode, and has no classes of its own."""
    if "task" not in config or needs_of(config).head:
        return
    name = config["student"].get("name")
    raise UserError(
        f"The student of {folder} is a meta-learner: it has no classes to be exported with. In Python its "
        f"encoder is create_model({name!r}, None), with load_checkpoint(encoder, "
        f"{str(folder.path / checkpoint.LAST)!r}), both of gda.models."
    )


def _config(folder: RunFolder) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder.path / 'config.yaml'} can't be read ({error}).") from error
    if not isinstance(config, dict) or not {"student", "dataset", "recipe"} <= config.keys():
        raise UserError(f"{folder.path / 'config.yaml'} is not the config of a run.")
    return config


def _input(folder: RunFolder, facts: Mapping[str, Any], config: Mapping[str, Any]) -> ModelInput:
    """Returns what ``run.json`` says, else (it was silent on this once) what the data set says."""
    if facts.get("input") is not None:
        return ModelInput.from_record(facts["input"])
    known = ModelInput.from_config(config)
    if known is None:
        raise UserError(
            f"{folder.path / 'run.json'} does not say which classes and images the student knows, and the "
            f"data set {config['dataset'].get('name')!r} is not where config.yaml says "
            f"({config['dataset'].get('root')}). Put it there, or correct that line, and try again."
        )
    return known
