"""Checks that a teacher has weights, and that they are its own."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from gda.config.faults import Fault
from gda.config.weights import AUTO, WeightsSource, weights_source
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
    if (
        teacher["checkpoint"] == AUTO
        and teacher["checkpoint_select"] == "best"
        and not config["dataset"].get("validation")
    ):
        what = "the best epoch is chosen on held-out images, and none are held out"
        fix = "teacher.checkpoint_select=last or dataset.validation=0.1"
        return [Fault("teacher.checkpoint_select", what, fix)]
    source = weights_source(config)
    return [] if source is None else _source_faults(source)


def _source_faults(source: WeightsSource) -> list[Fault]:
    """Checks how weights are named, before any is fetched or read."""
    problem = source.problem()
    if problem is not None:
        return [Fault("teacher.checkpoint", problem, "teacher.checkpoint=auto trains this teacher")]
    try:
        if source.sha256 is not None:
            require_hash(source.sha256)
    except UserError as error:
        return [Fault("teacher.sha256", str(error))]
    return []


def check_weights_fit(config: Mapping[str, Any], model: nn.Module, classes: int) -> list[Fault]:
    """Checks the weights of the teacher that are at hand against its architecture.

    Args:
        config: The resolved config.
        model: The teacher; its weights do not matter.
        classes: Classes of the data set.
    """
    teacher = config["teacher"]
    if teacher["checkpoint"] is None and teacher.get("pretrained"):
        return _check_pretrained(teacher["name"], classes)
    source = weights_source(config)
    path = None if source is None or _source_faults(source) else source.at_hand()
    if source is None or path is None:
        return []
    try:
        verified_hash(path, source.sha256, str(path))
        checkpoint = read_checkpoint(path)
    except UserError as error:
        fetched = path.is_relative_to(cache_folder())
        return [Fault("teacher.checkpoint", str(error), f"fetch it again: rm {path}" if fetched else "")]
    try:
        state = weights_of(checkpoint, path, teacher["weights"])
    except UserError as error:
        return [Fault("teacher.weights", str(error), "teacher.weights=raw")]
    counts = class_counts(model, state)
    if counts is not None:
        what = f"{path} was trained for {counts[0]} classes, and the data set has {classes}"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto, or a file for this data set")]
    problem = misfit(model, state, checkpoint.architecture)
    if problem is not None:
        what = f"the weights in {path} do not fit {teacher['name']}: {problem}"
        return [Fault("teacher.checkpoint", what)]
    broken = not_finite(model, state)
    if broken is not None:
        return [Fault("teacher.checkpoint", f"the weights in {path} are not finite; {broken}")]
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
