"""What the student learns from the teacher: loss terms, and their weighted sum."""

from gda.distillers.distiller import Distiller
from gda.distillers.plugin import Plugin
from gda.distillers.term import ModelOutput, Progress, RunFacts, Term, TermInputs, View

__all__ = ["Distiller", "ModelOutput", "Plugin", "Progress", "RunFacts", "Term", "TermInputs", "View"]
