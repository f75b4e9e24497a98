"""Classification: a student learns class logits from labels, a teacher, or both."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from gda.config.schema import Recipe
from gda.data.dataset import ImageDataset, ImageSplit
from gda.data.loader import Batch, TensorLoader
from gda.data.transforms import Transform
from gda.distillers.distiller import Distiller
from gda.distillers.term import DataFacts, ModelOutput, Progress, TermInputs
from gda.models.taps import features
from gda.seeding import generator
from gda.tasks.metrics import Metrics
from gda.tasks.task import StepOutput


class ClassificationTask:
    """A student, a teacher that never learns, and the loss between them.

    Args:
        student: The model that is trained; on ``device``.
        teacher: A model that guides it, or that it is compared with; on ``device``.
        distiller: The loss.
        dataset: The images.
        recipe: Batch sizes.
        train_transforms: Named transforms of training images.
        test_transforms: Named transforms of validation and test images.
        seed: The run's seed.
        device: Where batches are made.
        channels_last: Memory format of the batches.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        distiller: Distiller,
        dataset: ImageDataset,
        recipe: Recipe,
        train_transforms: Mapping[str, Transform],
        test_transforms: Mapping[str, Transform],
        seed: int,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.student, self.teacher, self.distiller = student, teacher, distiller
        self.modules: Mapping[str, nn.Module] = {"student": student, "distiller": distiller}
        self.seed = seed

        def loader(
            split: ImageSplit, batch: int, transforms: Mapping[str, Transform], train: bool
        ) -> TensorLoader:
            return TensorLoader(
                split,
                batch,
                transforms,
                dataset.mean,
                dataset.std,
                device=device,
                seed=seed,
                shuffle=train,
                drop_last=train and recipe.drop_last,
                channels_last=channels_last,
            )

        self.train_loader = loader(dataset.train, recipe.batch_size, train_transforms, True)
        held_out = {"test": dataset.test}
        if dataset.validation is not None:
            held_out = {"validation": dataset.validation, **held_out}
        size = recipe.evaluation_batch_size
        self.evaluations = {
            name: loader(split, size, test_transforms, False) for name, split in held_out.items()
        }
        self.steps = len(self.train_loader)
        self._teacher_logits: dict[str, list[Tensor]] = {}
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self._student_taps = features(student, distiller.student_features)
        self._teacher_taps = None if teacher is None else features(teacher, distiller.teacher_features)
        labels = None if distiller.is_label_free else dataset.train.targets
        distiller.setup(DataFacts(len(dataset.classes), len(dataset.train), labels))

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (see :class:`gda.data.loader.TensorLoader`)."""
        yield from self.train_loader.batches(epoch, start_step)

    def training_step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Returns the loss of one batch: teacher without gradients, student with."""
        teacher = self.ask_teacher(batch.images)
        student = ModelOutput(self.student(batch.images), self._student_taps.collect())
        targets = self.distiller.targets(batch.targets, None if teacher is None else teacher.logits)
        loss, terms = self.distiller(
            TermInputs(
                images=batch.images,
                targets=targets,
                indices=batch.indices,
                student=student,
                teacher=teacher,
                progress=progress,
                generator=generator(self.seed, "terms", progress.epoch, progress.step),
                views=self._views(batch, progress),
            )
        )
        # Means of images, not images: the guard keeps these for several steps.
        tensors = {"image means": batch.images.mean(dim=(1, 2, 3)), "student logits": student.logits.detach()}
        if teacher is not None:
            tensors["teacher logits"] = teacher.logits
        return StepOutput(loss, terms, len(batch.indices), tensors)

    def _views(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Augments the same images once more for each view that a term asks for."""
        return {
            name: self.train_loader.view(batch.indices, name, progress.epoch, progress.step)
            for name in self.distiller.needs_views
        }

    def ask_teacher(self, images: Tensor) -> ModelOutput | None:
        """Returns the teacher's outputs, or nothing where the loss does not read them."""
        if self.teacher is None or self._teacher_taps is None or not self.distiller.needs_teacher:
            return None
        with torch.no_grad():  # not inference mode: autograd could not save its tensors for a backward pass
            return ModelOutput(self.teacher(images), self._teacher_taps.collect())

    def evaluate(self, student: nn.Module) -> dict[str, float]:
        """Returns accuracy, loss, calibration and fidelity of ``student`` on each evaluation split."""
        student.eval()
        figures: dict[str, float] = {}
        for name, loader in self.evaluations.items():
            teacher_logits = self._logits_of_teacher(name)
            metrics = Metrics()
            with torch.inference_mode():
                for step, batch in enumerate(loader.batches()):
                    known = teacher_logits[step] if teacher_logits else None
                    metrics.update(student(batch.images), batch.targets, known)
            figures |= metrics.result(f"{name}_")
        return figures

    def evaluate_teacher(self) -> dict[str, float]:
        """Returns the teacher's own figures, before any training; empty without a teacher."""
        figures: dict[str, float] = {}
        for name, loader in self.evaluations.items():
            metrics = Metrics()
            for logits, batch in zip(self._logits_of_teacher(name), loader.batches(), strict=False):
                metrics.update(logits, batch.targets)
            if metrics.images:
                figures |= metrics.result(f"teacher_{name}_")
        return figures

    def _logits_of_teacher(self, split: str) -> list[Tensor]:
        """Computes the teacher's logits of an evaluation split once: they never change."""
        if self.teacher is None:
            return []
        if split not in self._teacher_logits:
            with torch.inference_mode():
                batches = self.evaluations[split].batches()
                self._teacher_logits[split] = [self.teacher(batch.images) for batch in batches]
        return self._teacher_logits[split]
