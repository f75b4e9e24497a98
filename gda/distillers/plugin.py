"""What changes the logits or the temperature that the terms of a method see."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from gda.distillers.term import RunFacts, TermInputs


class Plugin(nn.Module):
    """A modifier of every term that takes plug-ins (``Term.takes_plugins``).

    It may own parameters; they are trained with the student and saved in the checkpoint.

    A subclass overrides :meth:`forward`, and declares what it needs:

    Attributes:
        student_features: Taps of the student (:mod:`gda.models.taps`).
        teacher_features: Taps of the teacher.
        needs_sample_wise: Whether it serves only terms whose loss is a mean over single samples.
        paper: arXiv number, or venue and year, for the listing.
    """

    needs_sample_wise: ClassVar[bool] = False
    paper: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.student_features: tuple[str, ...] = ()
        self.teacher_features: tuple[str, ...] = ()

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says in sentences why the plug-in can't serve this pair of models; empty when it can."""
        return []

    def setup(self, facts: RunFacts) -> None:
        """Reads facts of the run once, before training. Does nothing by default."""

    def forward(self, term: Callable[[TermInputs], Tensor], inputs: TermInputs) -> Tensor:
        """Returns the loss of a term as this plug-in has it computed.

        Args:
            term: The term; it may be asked once, or several times with different inputs.
            inputs: The batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(term, inputs)")
