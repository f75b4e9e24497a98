"""Allowed ranges of numbers, written where the argument is declared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The values that a numeric argument may take; used as ``Annotated[float, Range(above=0)]``.

    The whole-config check reads these annotations from the signatures of dataclasses and
    ``_target_`` classes, the user's own included.

    Attributes:
        minimum: Smallest allowed value (inclusive).
        maximum: Largest allowed value (inclusive).
        above: Exclusive lower bound.
        below: Exclusive upper bound.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def contains(self, value: float) -> bool:
        """Says whether ``value`` lies in the range (NaN never does)."""
        return (
            value == value
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        parts = []
        if self.minimum is not None:
            parts.append(f"at least {self.minimum:g}")
        if self.above is not None:
            parts.append(f"greater than {self.above:g}")
        if self.maximum is not None:
            parts.append(f"at most {self.maximum:g}")
        if self.below is not None:
            parts.append(f"less than {self.below:g}")
        return " and ".join(parts)


Positive = Range(above=0)
NonNegative = Range(minimum=0)
Share = Range(minimum=0, maximum=1)
