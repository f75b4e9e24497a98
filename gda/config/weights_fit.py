"""Checks that a teacher and an encoder have weights, and that they are their own."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from gda.config.faults import Fault
from gda.config.held_out import holds_out
from gda.config.stages import AUTO, needs_of
from gda.config.weights import WeightsSource, named_run, weights_source
from gda.errors import UserError
from gda.models.weights.checkpoints import class_counts, misfit, not_finite, read_checkpoint, weights_of
from gda.models.weights.download import cache_folder
from gda.models.weights.file_hash import require_hash, verified_hash


def check_teacher_weights(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that a teacher has weights: one without would teach noise, silently."""
    teacher = config["teacher"]
    if teacher["name"] is None:
        return []
    if teacher["checkpoint"] is None and not teacher.get("pretrained"):
        what = "a teacher without weights would teach noise"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto, or a file")]
    if teacher["checkpoint"] in (None, AUTO):
        if teacher["weights"] == "ema":
            what = "a moving average is taken from a file, and teacher.checkpoint names none"
            return [Fault("teacher.weights", what, "teacher.weights=raw")]
        if teacher["sha256"] is not None:
            what = "it is the hash of a file, and teacher.checkpoint names none"
            return [Fault("teacher.sha256", what, "teacher.sha256=null")]
    if teacher["checkpoint"] == AUTO and teacher["checkpoint_select"] == "best" and not holds_out(config):
        return [_nothing_to_choose_on("teacher")]
    source = weights_source(config)
    return [] if source is None else _source_faults(source, "teacher")


def check_encoder_weights(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that there is an encoder to start from, or to test, where the task needs one."""
    encoder, needs, task = config["encoder"], needs_of(config), config["task"]["name"]
    if not needs.encoder:
        if encoder["checkpoint"] is None:
            return []
        what = f"task={task} starts from fresh weights, not from an encoder's"
        return [Fault("encoder", what, "encoder=none")]
    if encoder["checkpoint"] is None:
        what = f"task={task} {'starts from' if needs.trains else 'tests'} an encoder that was trained before"
        return [Fault("encoder.checkpoint", what, "encoder=classifier, or encoder.checkpoint=FILE")]
    if encoder["checkpoint"] == AUTO:
        return _auto_encoder_faults(config)
    source = weights_source(config, "encoder")
    faults = [] if source is None else _source_faults(source, "encoder")
    teacher = config["teacher"]
    made = needs.trains and teacher["name"] is not None and teacher["checkpoint"] == AUTO
    if made and (encoder["recipe"] is None or encoder["task"] is None):
        what = "a teacher is trained as a classifier first, and this choice says nothing of how"
        faults.append(
            Fault("encoder", what, f"encoder=classifier encoder.checkpoint={encoder['checkpoint']}")
        )
    return faults or ([] if needs.trains else _tested_folder_faults(config))


def _nothing_to_choose_on(role: str) -> Fault:
    what = "the best epoch is chosen on held-out images, and none are held out"
    fix = f"{role}.checkpoint_select=last or dataset.validation=0.1"
    return Fault(f"{role}.checkpoint_select", what, fix)


def _auto_encoder_faults(config: Mapping[str, Any]) -> list[Fault]:
    encoder = config["encoder"]
    faults = []
    if encoder["checkpoint_select"] == "best" and not holds_out(config):
        faults.append(_nothing_to_choose_on("encoder"))
    if needs_of(config).trains and (encoder["recipe"] is None or encoder["task"] is None):
        what = "auto trains a classifier first, and this choice says nothing of how"
        faults.append(Fault("encoder", what, "encoder=classifier"))
    if encoder["weights"] == "ema" and (needs_of(config).trains or config["trainer"]["ema_decay"] is None):
        what = "the run that auto names keeps no moving average"
        faults.append(Fault("encoder.weights", what, "encoder.weights=raw"))
    if encoder["sha256"] is not None:
        what = "it is the hash of a file, and encoder.checkpoint names none"
        faults.append(Fault("encoder.sha256", what, "encoder.sha256=null"))
    return faults


def _tested_folder_faults(config: Mapping[str, Any]) -> list[Fault]:
    """A tested run folder must be finished; its test is of the same seed, so that both stay together."""
    folder = named_run(config)
    if folder is None:
        return []
    facts = folder.description()
    if not folder.is_done():
        state = folder.status().get("state", "not finished")
        what = f"the run in {folder} is {state}, and only a finished one is tested"
        return [Fault("encoder.checkpoint", f"{what}. The command that began it continues it")]
    if facts.get("seed") != config["seed"]:
        what = f"the run in {folder} has seed {facts.get('seed')}, and its test belongs beside it"
        return [Fault("seed", what, f"seed={facts.get('seed')}")]
    return []


def _source_faults(source: WeightsSource, role: str) -> list[Fault]:
    """Checks how weights are named, before any is fetched or read."""
    problem = source.problem()
    if problem is not None:
        instead = "trains this teacher" if role == "teacher" else "makes it first"
        return [Fault(f"{role}.checkpoint", problem, f"{role}.checkpoint=auto {instead}")]
    try:
        if source.sha256 is not None:
            require_hash(source.sha256)
    except UserError as error:
        return [Fault(f"{role}.sha256", str(error))]
    return []


def check_weights_fit(
    config: Mapping[str, Any], model: nn.Module, classes: int, role: str = "teacher"
) -> list[Fault]:
    """Checks weights that are at hand against the architecture that they are for.

    Args:
        config: The resolved config.
        model: The model; its weights do not matter.
        classes: Classes of the data set.
        role: The node that names the weights: ``teacher``, or ``encoder`` for those of the student.
    """
    node = config[role]
    if node["checkpoint"] is None and node.get("pretrained"):
        return _check_pretrained(node["name"], classes)
    source = weights_source(config, role)
    path = None if source is None or _source_faults(source, role) else source.at_hand()
    if source is None or path is None:
        return []
    where = f"{role}.checkpoint"
    try:
        verified_hash(path, source.sha256, str(path))
        checkpoint = read_checkpoint(path)
    except UserError as error:
        fetched = path.is_relative_to(cache_folder())
        return [Fault(where, str(error), f"fetch it again: rm {path}" if fetched else "")]
    try:
        state = weights_of(checkpoint, path, node["weights"])
    except UserError as error:
        return [Fault(f"{role}.weights", str(error), f"{role}.weights=raw")]
    counts = class_counts(model, state)
    if counts is not None:
        what = f"{path} was trained for {counts[0]} classes, and the data set has {counts[1]}"
        return [Fault(where, what, f"{where}=auto, or a file for this data set")]
    problem = misfit(model, state, checkpoint.architecture)
    if problem is not None:
        name = config["teacher" if role == "teacher" else "student"]["name"]
        return [Fault(where, f"the weights in {path} do not fit {name}: {problem}")]
    broken = not_finite(model, state)
    if broken is not None:
        return [Fault(where, f"the weights in {path} are not finite; {broken}")]
    return []


def _check_pretrained(name: str, classes: int) -> list[Fault]:
    """Refuses published weights whose head timm would silently replace by a random one."""
    from timm.models import get_pretrained_cfg

    published = get_pretrained_cfg(name.removeprefix("timm/"))
    if published is None or not published.has_weights:
        return [
            Fault("teacher.name", f"timm has no published weights for {name!r}", "teacher.checkpoint=auto")
        ]
    if published.num_classes != classes:
        what = f"{name} was published for {published.num_classes} classes, and the data set has {classes}"
        return [
            Fault("teacher.pretrained", what, "teacher.checkpoint=auto fine-tunes it once on this data set")
        ]
    return []
