"""What the student learns from the teacher: loss terms, and their weighted sum."""

from gda.distillers.distiller import Distiller
from gda.distillers.term import DataFacts, ModelOutput, Progress, Term, TermInputs

__all__ = ["DataFacts", "Distiller", "ModelOutput", "Progress", "Term", "TermInputs"]
