"""A term's weight as data: a number, or a number with a linear warm-up."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from gda.distillers.term import Progress
from gda.ranges import NonNegative


@dataclass(frozen=True)
class Weight:
    """Weight of a term over training.

    ``weight(epoch) = value * min(1, (epoch + 1) / warmup_epochs)``, epochs counted from 0: the first
    epoch of a warm-up over 20 epochs has factor 1/20, the twentieth 1. This is mdistiller's count
    (DKD, ReviewKD).

    Attributes:
        value: Weight after the warm-up.
        warmup_epochs: Length of the warm-up in epochs; 0 means none.
    """

    value: Annotated[float, NonNegative] = 1.0
    warmup_epochs: Annotated[int, NonNegative] = 0

    @classmethod
    def parse(cls, weight: "float | Mapping[str, Any] | Weight") -> "Weight":
        """Reads a weight as a config spells it.

        Args:
            weight: A number, or a mapping such as ``{"value": 1.0, "warmup_epochs": 20}``.

        Raises:
            ValueError: A mapping has other keys than those, or a number is negative.
            TypeError: It is neither a number nor a mapping.
        """
        if isinstance(weight, Mapping):
            known = [field.name for field in fields(cls)]
            unknown = [str(key) for key in weight if key not in known]
            if unknown:
                raise ValueError(f"a weight has the keys {', '.join(known)}; got {', '.join(unknown)}")
            parsed = cls(**weight)
        elif isinstance(weight, cls):
            parsed = weight
        elif isinstance(weight, (int, float)) and not isinstance(weight, bool):
            parsed = cls(float(weight))
        else:
            raise TypeError(f"a weight is a number or a mapping, not {weight!r}")
        for field in fields(cls):
            number = getattr(parsed, field.name)
            if not NonNegative.contains(number):
                raise ValueError(f"{field.name} of a weight must be {NonNegative}, got {number}")
        return parsed

    def at(self, progress: Progress) -> float:
        """Weight in the current epoch."""
        if self.warmup_epochs == 0:
            return self.value
        return self.value * min(1.0, (progress.epoch + 1) / self.warmup_epochs)
