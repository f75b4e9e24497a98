"""Methods of a user's own that take their time, fail or die, for the tests of a cluster."""

import os
import signal
import time

import torch
from torch import Tensor

from gda.distillers import Term
from gda.distillers.term import TermInputs


class Paced(Term):
    """Takes `PACE` seconds a step (none where it is not set); random, from the term's own stream."""

    def forward(self, inputs: TermInputs) -> Tensor:
        time.sleep(float(os.environ.get("PACE", "0")))
        logits = inputs.student.logits
        draws = torch.rand(logits.shape, generator=inputs.generator)
        return (draws * logits).square().mean() * (1 + inputs.progress.epoch)


class _Acting(Term):
    """Does something in the second epoch, on one process or on all."""

    def __init__(self, rank: int | None = None) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, inputs: TermInputs) -> Tensor:
        progress = inputs.progress
        if progress.epoch == 1 and self.rank in (None, progress.rank):
            self.act()
        return inputs.student.logits.square().mean()

    def act(self) -> None:
        raise NotImplementedError


class Breaking(_Acting):
    """Raises."""

    def act(self) -> None:
        raise ArithmeticError("broken on purpose")


class Killed(_Acting):
    """Dies without a word, as at the hands of a kernel that is out of memory."""

    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
