"""Faults of a config: what is wrong, where, and the override that would put it right."""

from collections.abc import Iterable
from dataclasses import dataclass

from gda.errors import UserError


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a config.

    Attributes:
        where: The dotted path of the override, e.g. ``distiller.terms.kd.temperature``.
        what: What is wrong with it, as a sentence without a final stop.
        fix: What to type instead, e.g. ``student=resnet20``; empty when only the user can know.
    """

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        what = self.what.rstrip(".")
        line = f"{self.where}: {what}" if self.where else what
        stop = "" if line.endswith("?") else "."
        return f"{line}{stop} Try: {self.fix}" if self.fix else line


class ConfigFaults(UserError):
    """A config that can't be run, with all of its faults at once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        heading = (
            "There is 1 fault in this config" if count == 1 else f"There are {count} faults in this config"
        )
        lines = [f"  {number}. {fault}" for number, fault in enumerate(self.faults, 1)]
        super().__init__("\n".join([f"{heading}; nothing was run:", *lines]))
