r"""Logit standardisation: both models' logits are z-scored before a logit loss softens them.

Formula, for a row ``z`` of logits over ``C`` classes, its mean ``m`` and unbiased standard deviation
``sd``, and the base temperature ``T`` of the logit loss ``L``::

    z' = (z - m) / (sd + 1e-7)
    LSKD[L](s, t) = L(s', t'; T)                 (scalar; L as weighted by its method, times a factor)

Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024,
arXiv:2403.01427. Defaults from its code: ``T = 2``; KD's weight 9 instead of 0.9
and DKD's alpha and beta times 9, which are the factors of ``conf/plugin/lskd.yaml``. Per pair it uses
T 2 or 3 and KD weights from 9 to 18.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from torch import Tensor

from gda.distillers.logits import below_maximum, row_std
from gda.distillers.plugin import Plugin
from gda.distillers.term import ModelOutput, TermInputs
from gda.ranges import Positive

_EPSILON = 1e-7


def standardised(logits: Tensor) -> Tensor:
    """Brings each row to mean 0 and standard deviation 1.

    Args:
        logits: ``(batch, classes)``, at least two classes.

    Returns:
        ``(batch, classes)``; constant rows become 0.
    """
    shifted = below_maximum(logits)
    return (shifted - shifted.mean(dim=1, keepdim=True)) / (row_std(shifted) + _EPSILON)


class LogitStandardization(Plugin):
    """Shows a logit loss standardised logits, and sets its temperature.

    A temperature that another plug-in has set (CTKD) stays.

    Args:
        temperature: Base temperature.
    """

    paper = "2403.01427"

    def __init__(self, temperature: Annotated[float, Positive] = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, term: Callable[[TermInputs], Tensor], inputs: TermInputs) -> Tensor:
        """Returns the term's loss of standardised logits, those of further views included."""
        views = {
            name: replace(
                view, student=_standard(view.student), teacher=view.teacher and _standard(view.teacher)
            )
            for name, view in inputs.views.items()
        }
        return term(
            replace(
                inputs,
                student=_standard(inputs.student),
                teacher=inputs.teacher and _standard(inputs.teacher),
                views=views,
                temperature=inputs.temperature_or(self.temperature),
            )
        )


def _standard(output: ModelOutput) -> ModelOutput:
    return replace(output, logits=standardised(output.logits))
