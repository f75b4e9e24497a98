"""What terms have in common that compare maps of student and teacher, pair by pair."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from gda.distillers.feature_maps import as_map, map_shape, to_smaller_size
from gda.distillers.logits import at_least_float32
from gda.distillers.term import RunFacts, Term, TermInputs
from gda.errors import UserError
from gda.models.layout import layout_of
from gda.models.tap_descriptions import TapDescription

MapShape = tuple[int, int, int]
"""Channels, height and width."""


class MapTerm(Term):
    """A term that compares maps of student and teacher, pair by pair.

    The maps of a pair are brought to one size by average pooling of the larger one; token maps are
    folded into squares first. A subclass makes projectors in :meth:`setup`, from :attr:`shapes`, and
    compares :meth:`pairs` in :meth:`forward`.

    Args:
        stages: What is tapped in the student: stage numbers, or other taps by name, e.g. module paths.
        teacher_stages: The same for the teacher, in the same order; ``None`` where it is the same.

    Attributes:
        suffix: What follows the name of a stage, e.g. ``":pre"``.
        needs_positions: Whether positions are compared, so that maps of one pixel tell nothing.
        numbered: Names of the taps that were given as stage numbers.

    Raises:
        UserError: There is no stage, or student and teacher have not as many.
    """

    kind = "feature"
    suffix: ClassVar[str] = ""
    needs_positions: ClassVar[bool] = False

    def __init__(
        self, stages: Sequence[int | str], teacher_stages: Sequence[int | str] | None = None
    ) -> None:
        super().__init__()
        teacher_stages = stages if teacher_stages is None else teacher_stages
        self.student_features, self.teacher_features = self._taps(stages), self._taps(teacher_stages)
        self.numbered = {self._tap(each) for each in (*stages, *teacher_stages) if isinstance(each, int)}
        if not stages or len(self.student_features) != len(self.teacher_features):
            raise UserError(
                f"one map of the teacher belongs to each map of the student, and there must be at least "
                f"one: {len(self.student_features)} in stages, {len(self.teacher_features)} in "
                f"teacher_stages"
            )
        self._described: list[tuple[TapDescription, TapDescription]] = []

    def _tap(self, stage: int | str) -> str:
        return f"stage{stage}{self.suffix}" if isinstance(stage, int) else stage

    def _taps(self, stages: Sequence[int | str]) -> tuple[str, ...]:
        return tuple(self._tap(stage) for stage in stages)

    @property
    def shapes(self) -> list[tuple[MapShape, MapShape]]:
        """Channels, height and width of the maps of every pair, the student's first; after set-up."""
        return [(map_shape(student), map_shape(teacher)) for student, teacher in self._described]

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says in sentences which stages a model does not have, or which maps can't be compared."""
        common = self._common_stages(facts)
        sentences = [
            *self._absent("student", facts.student, self.student_features, common),
            *self._absent("teacher", facts.teacher, self.teacher_features, common),
        ]
        for student, teacher in self._descriptions(facts):
            names = f"{student.path} of the student and {teacher.path} of the teacher"
            try:
                shapes = map_shape(student), map_shape(teacher)
            except ValueError as error:
                sentences.append(f"{names} can't be compared: {error}")
                continue
            if self.needs_positions and min(height * width for _, height, width in shapes) == 1:
                sentences.append(f"{names} can't be compared by position: one of them is a single pixel")
        return sentences

    def setup(self, facts: RunFacts) -> None:
        """Remembers what the taps give."""
        self._described = self._descriptions(facts)

    def pairs(self, inputs: TermInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the maps of every pair, of one size and in float32 or better, the student's first.

        Args:
            inputs: The batch.

        Yields:
            ``(batch, channels, height, width)`` of the student, and of the teacher without gradient.
            Channels may differ.
        """
        teacher_features = {} if inputs.teacher is None else inputs.teacher.features
        for student, teacher, taps in zip(
            self.student_features, self.teacher_features, self._described, strict=True
        ):
            yield to_smaller_size(
                at_least_float32(as_map(inputs.student.features[student], taps[0])),
                at_least_float32(as_map(teacher_features[teacher].detach(), taps[1])),
            )

    def _descriptions(self, facts: RunFacts) -> list[tuple[TapDescription, TapDescription]]:
        """What is known of every pair; the check of a config may leave out what a model lacks."""
        return [
            (facts.student_features[student], facts.teacher_features[teacher])
            for student, teacher in zip(self.student_features, self.teacher_features, strict=True)
            if student in facts.student_features and teacher in facts.teacher_features
        ]

    def _common_stages(self, facts: RunFacts) -> list[int]:
        models = [model for model in (facts.student, facts.teacher) if model is not None]
        known = [layout_of(model).names() for model in models]
        return [stage for stage in (1, 2, 3, 4) if all(self._tap(stage) in names for names in known)]

    def _absent(
        self, role: str, model: nn.Module | None, taps: Sequence[str], common: list[int]
    ) -> list[str]:
        """Says which stages a model does not have, and what to type instead."""
        if model is None:
            return []
        known = layout_of(model).names()
        missing = [tap for tap in taps if tap in self.numbered and tap not in known]
        if not missing:
            return []
        known_to_both = ",".join(map(str, common))  # without spaces, as one types it
        instead = (
            f"both models have those of stages=[{known_to_both}]" if common else "the models share no stage"
        )
        paths = "module paths do as well, as in stages=[layer2] teacher_stages=[blocks.5]"
        return [f"the {role} ({type(model).__name__}) has no {' and no '.join(missing)}; {instead}; {paths}"]
