"""Checks that the episodes of a task can be drawn from the splits of its data set."""

from collections.abc import Mapping
from typing import Any

from gda.config.faults import Fault
from gda.config.stages import needs_of
from gda.data.few_shot.listing import FewShotFacts, SplitFacts, some


def check_episodes(config: Mapping[str, Any], facts: FewShotFacts) -> list[Fault]:
    """Holds ways, shots and queries against the classes of every split that episodes are drawn from.

    Args:
        config: The resolved config of a few-shot task.
        facts: What is known of its data set.
    """
    task = config["task"]
    if not task["shots"]:
        return [Fault("task.shots", "an evaluation needs a number of shots", "task.shots=[1,5]")]
    faults = []
    if "train_way" in task:
        wanted = (task["train_way"], task["train_shot"], task["train_query"])
        faults += _faults("base", facts.base, wanted, "train_")
    most = (task["way"], max(task["shots"]), task["query"])
    validation = facts.validation if needs_of(config).trains else None  # a test chooses nothing
    splits = [(name, each) for name, each in (("validation", validation), ("test", facts.test)) if each]
    # What fits the poorest split fits both: one fault, whose advice is enough.
    by_classes = min(splits, key=lambda split: len(split[1].counts))
    by_images = min(splits, key=lambda split: min(split[1].counts.values()))
    found = [fault for name, split in (by_classes, by_images) for fault in _faults(name, split, most, "")]
    return faults + list({fault.where: fault for fault in reversed(found)}.values())


def _faults(name: str, split: SplitFacts, wanted: tuple[int, int, int], prefix: str) -> list[Fault]:
    way, shot, query = wanted
    if len(split.counts) < way:
        what = f"an episode of {way} classes can't be drawn from the {len(split.counts)} classes of {name}"
        return [Fault(f"task.{prefix}way", what, f"task.{prefix}way={len(split.counts)}")]
    needed = shot + query
    small = [f"{each} ({count})" for each, count in split.counts.items() if count < needed]
    if not small:
        return []
    what = (
        f"an episode takes {needed} images of a class, shots and queries together; classes of {name} that "
        f"have fewer: {some(small)}"
    )
    left = min(split.counts.values()) - shot
    fix = f"task.{prefix}query={left}" if left > 0 else "a smaller shot"
    return [Fault(f"task.{prefix}query", what, fix)]
