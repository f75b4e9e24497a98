"""What a run is in words and numbers: the content of its ``run.json``."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gda.build import InputFiles
from gda.cluster.frozen_job import SWEEP_VARIABLE
from gda.config.held_out import holds_out
from gda.config.identity import Identity
from gda.config.inputs import facts_of, identify_run, weights_identity
from gda.config.signature import locate
from gda.config.stages import needs_of, runs_before
from gda.interchange.model_input import ModelInput
from gda.tasks.classification import ClassificationTask
from gda.tasks.task import Figure
from gda.tracking.provenance import collect_provenance
from gda.tracking.run_folder import Row

Config = Mapping[str, Any]


def description_of(config: Config, identity: Identity, files: InputFiles) -> Row:
    """Returns what ``run.json`` says of a run.

    Args:
        config: The resolved config.
        identity: What it is.
        files: The weights that it reads.
    """
    known = ModelInput.from_config(config)
    trains = needs_of(config).trains
    figure = figure_of(config)
    return {
        "study": config["study"],
        **facts_of(config, identity),
        "figure": figure.name,
        "figure_text": figure.text,
        "selection": "validation" if trains and holds_out(config) else "none",
        "teacher_weights": None if files.teacher is None else str(files.teacher),
        "teacher_identity": weights_identity(config, also_unused=True) if trains else None,
        "teacher_run": _input_run(config, "teacher"),
        "encoder_weights": None if files.encoder is None else str(files.encoder),
        "encoder_run": _input_run(config, "encoder"),
        "input": None if known is None else asdict(known),
        "sweep": os.environ.get(SWEEP_VARIABLE),
        **collect_provenance(config),
    }


def _input_run(config: Config, role: str) -> Row | None:
    """Says which run weights come from, where they come from one that is made here."""
    before = runs_before(config).get(role)
    if before is None:
        return None
    group = identify_run(before).group
    return {"group": group, "seed": before["seed"], "select": config[role]["checkpoint_select"]}


def figure_of(config: Config) -> Figure:
    """Returns what a run is judged by."""
    asked = getattr(locate(config["task"]["_target_"]), "figure_of", ClassificationTask.figure_of)
    figure: Figure = asked(config["task"])
    return figure
