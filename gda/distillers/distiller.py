"""The training loss of the student: supervised term plus the named terms, weighted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gda.distillers.ground_truth import Labels, TeacherTargets
from gda.distillers.logits import at_least_float32
from gda.distillers.plugin import Plugin
from gda.distillers.schedule import Weight
from gda.distillers.term import ModelOutput, RunFacts, Term, TermInputs, View
from gda.seeding import seeded

GROUND_TRUTH = "ground_truth"


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetition, first mention first."""
    return tuple(dict.fromkeys(names))


def _with_full_precision(output: ModelOutput) -> ModelOutput:
    return replace(output, logits=at_least_float32(output.logits))


def _view_with_full_precision(view: View) -> View:
    teacher = None if view.teacher is None else _with_full_precision(view.teacher)
    return replace(view, student=_with_full_precision(view.student), teacher=teacher)


def _by_episode(module: nn.Module, compute: Callable[[TermInputs], Tensor], inputs: TermInputs) -> Tensor:
    """Computes a term that compares samples within each episode alone: their classes have nothing in common.

    A mean over samples is the same mean either way, so that it takes the batch whole.
    """
    if inputs.episodes == 1 or not isinstance(module, Term) or module.sample_wise:
        return compute(inputs)
    values = torch.stack([compute(each) for each in inputs.by_episode()])
    return values.sum() if module.sums_over_batch else values.mean()


def apart(summands: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Splits weighted summands into the supervised one and the sum of all others; ``None`` if there is none.

    Args:
        summands: As from :meth:`Distiller.summands`.
    """
    others = [value for name, value in summands.items() if name != GROUND_TRUTH]
    return summands.get(GROUND_TRUTH), torch.stack(others).sum() if others else None


class Distiller(nn.Module):
    """Weighted sum of the supervised term and any number of distillation terms.

    The loss of a batch is ::

        loss = w_gt(epoch) * ground_truth + sum_k w_k(epoch) * term_k

    Nothing but its own weight scales a term. Terms whose weight is 0 throughout are left out: they
    are neither computed, nor do they ask for features, nor are they part of the checkpoint.

    Args:
        ground_truth: The supervised term, :class:`~gda.distillers.ground_truth.Labels` or
            :class:`~gda.distillers.ground_truth.TeacherTargets`, or a module of the same interface.
        ground_truth_weight: Its weight, in the form that :meth:`Weight.parse` reads.
        terms: Term and weight by name. Names appear in the logs.
        plugins: Modifiers of the terms that take plug-ins, by name; the first is the outermost.

    Attributes:
        ground_truth: The supervised term. The task calls ``ground_truth.targets`` first and puts the
            result into ``TermInputs.targets``; labels reach the terms in no other way.
        terms: The terms with weight, by name.
        weights: The weights of ``terms`` and of ``"ground_truth"``.

    Raises:
        ValueError: A weight is invalid, a term is called ``ground_truth``, or every weight is 0.
    """

    def __init__(
        self,
        ground_truth: Labels | TeacherTargets,
        ground_truth_weight: float | Mapping[str, Any] | Weight = 1.0,
        terms: Mapping[str, tuple[Term, float | Mapping[str, Any] | Weight]] | None = None,
        plugins: Mapping[str, Plugin] | None = None,
    ) -> None:
        super().__init__()
        self.ground_truth = ground_truth
        weights = {GROUND_TRUTH: Weight.parse(ground_truth_weight)}
        kept: dict[str, Term] = {}
        for name, (term, weight) in (terms or {}).items():
            if name == GROUND_TRUTH:
                raise ValueError(f"a term must not be called {GROUND_TRUTH}: that is the supervised one")
            weights[name] = Weight.parse(weight)
            kept[name] = term
        self.weights = {name: weight for name, weight in weights.items() if weight.value != 0}
        if not self.weights:
            raise ValueError("every weight of the loss is 0: there is nothing to train on")
        self.plugins = nn.ModuleDict(dict(plugins or {}))
        self.terms = nn.ModuleDict({name: term for name, term in kept.items() if name in self.weights})

    def _active(self) -> list[Term]:
        return [term for term in self.terms.values() if isinstance(term, Term)]

    def _parts(self) -> list[Term | Plugin]:
        return [*self._active(), *(each for each in self.plugins.values() if isinstance(each, Plugin))]

    @property
    def needs_teacher(self) -> bool:
        """Whether training needs a teacher's outputs, for targets or for a term."""
        # Targets are made also when the supervised weight is 0: terms may read them.
        return self.is_label_free or any(term.needs_teacher for term in self._active())

    @property
    def is_label_free(self) -> bool:
        """Whether the targets come from the teacher, so that no term sees labels."""
        return bool(self.ground_truth.needs_teacher)

    def targets(self, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Returns what all terms see as targets (see :mod:`gda.distillers.ground_truth`).

        Args:
            labels: Class ids ``(batch,)`` or class probabilities ``(batch, classes)``.
            teacher_logits: ``(batch, classes)``, where there is a teacher.
        """
        return self.ground_truth.targets(labels, teacher_logits)

    @property
    def needs_views(self) -> tuple[str, ...]:
        """Names of further augmented views that the terms ask for."""
        return _in_order(view for term in self._active() for view in term.needs_views)

    @property
    def student_features(self) -> tuple[str, ...]:
        """Taps of the student."""
        return _in_order(tap for part in self._parts() for tap in part.student_features)

    @property
    def teacher_features(self) -> tuple[str, ...]:
        """Taps of the teacher."""
        return _in_order(tap for part in self._parts() for tap in part.teacher_features)

    def setup(self, facts: RunFacts, seed: int = 0) -> None:
        """Hands facts of the run to every term, once, before training.

        Args:
            facts: The facts.
            seed: The run's seed; each term draws its parameters from a stream of its own.
        """
        for name, term in self.terms.items():
            if isinstance(term, Term):
                with seeded(seed, "term set-up", name):
                    term.setup(facts)
        for name, plugin in self.plugins.items():
            if isinstance(plugin, Plugin):
                with seeded(seed, "plug-in set-up", name):
                    plugin.setup(facts)

    def forward(self, inputs: TermInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one batch.

        Args:
            inputs: The batch. Logits in half precision are brought to float32 before any term sees
                them; features keep their precision.

        Returns:
            The weighted total, a scalar with gradient, and the unweighted value of every summand,
            detached, under ``"ground_truth"`` and the terms' names.
        """
        summands, values = self.summands(inputs)
        return torch.stack(list(summands.values())).sum(), values

    def summands(self, inputs: TermInputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Computes the loss of one batch, not summed up.

        Args:
            inputs: As in :meth:`forward`. Where the batch consists of several episodes, a term that
                compares samples with each other does so within each episode.

        Returns:
            The weighted summands, scalars with gradient, and their unweighted values, detached, both
            under ``"ground_truth"`` and the terms' names.
        """
        inputs = replace(
            inputs,
            student=_with_full_precision(inputs.student),
            teacher=None if inputs.teacher is None else _with_full_precision(inputs.teacher),
            views={name: _view_with_full_precision(view) for name, view in inputs.views.items()},
        )
        summands: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            module = self.ground_truth if name == GROUND_TRUTH else self.terms[name]
            compute: Callable[[TermInputs], Tensor] = module
            if isinstance(module, Term) and module.takes_plugins:
                for plugin in reversed(list(self.plugins.values())):
                    compute = partial(plugin, compute)
            value = at_least_float32(_by_episode(module, compute, inputs))
            values[name] = value.detach()
            summands[name] = weight.at(inputs.progress) * value
        return summands, values
