"""Classification: a student learns class logits from labels, a teacher, or both."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gda.config.schema import Recipe
from gda.config.task_needs import CLASSIFICATION, TaskNeeds
from gda.data.dataset import ImageDataset, ImageSplit
from gda.data.loader import Batch, TensorLoader
from gda.data.pipeline import Pipeline
from gda.data.transforms import Transform, without_augmentation
from gda.distillers.distiller import Distiller
from gda.distillers.term import ModelOutput, Progress, RunFacts, View
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features, unwrap
from gda.ranks import rank, rank_count
from gda.tasks.distilled_step import distilled_step
from gda.tasks.metrics import Metrics
from gda.tasks.task import Figure, StepOutput


class ClassificationTask:
    """A student, a teacher that never learns, and the loss between them.

    Where several processes train together, each has a share of every training batch, and evaluates a share
    of the batches of an evaluation; the figures are those of all images, on every process.

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
        view_transforms: Further named transforms of each named view of training images.
        prefix: Stands before the names of the evaluation splits, e.g. ``base_``.
    """

    needs: ClassVar[TaskNeeds] = CLASSIFICATION
    figure = Figure("top1", "top-1 accuracy")

    @staticmethod
    def figure_of(options: Mapping[str, Any]) -> Figure:
        """Returns the top-1 accuracy, whatever the options."""
        return ClassificationTask.figure

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
        view_transforms: Mapping[str, Mapping[str, Transform]] | None = None,
        prefix: str = "",
    ) -> None:
        self.student, self.teacher, self.distiller = student, teacher, distiller
        self.modules: Mapping[str, nn.Module] = {"student": student, "distiller": distiller}
        self.seed = seed

        def loader(
            split: ImageSplit, batch: int, transforms: Mapping[str, Transform | None], train: bool
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
                view_transforms=view_transforms if train else None,
                rank=rank(),
                ranks=rank_count(),
            )

        self.train_loader = loader(dataset.train, recipe.batch_size, train_transforms, True)
        held_out = {"validation": dataset.validation, "test": dataset.test}
        self.evaluations = {
            f"{prefix}{name}": loader(split, recipe.evaluation_batch_size, test_transforms, False)
            for name, split in held_out.items()
            if split is not None
        }
        train = ImageSplit(self.train_loader.images, self.train_loader.targets)  # already on the device
        size = dataset.train.images.shape[-1]
        plain = without_augmentation(train_transforms, size)
        self._plain_epoch = recipe.epochs - 1 if recipe.last_epoch_without_augmentation else None
        if self._plain_epoch is not None:
            self.plain_loader = loader(train, recipe.batch_size, plain, True)
        self.steps = len(self.train_loader)
        self._teacher_logits: dict[str, dict[int, Tensor]] = {}
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self._student_taps = features(student, distiller.student_features)
        self._teacher_taps = None if teacher is None else features(teacher, distiller.teacher_features)
        # Of the recipe's batch size, not that of evaluation, which may change a measurement's last digit.
        # Few-shot data sets keep images to train on larger than those that the test transforms are for.
        seen = self.train_loader.pipeline.output_size(size)
        fits = Pipeline(test_transforms, dataset.mean, dataset.std).output_size(size) == seen
        as_tested = test_transforms if fits else plain
        in_order = partial(loader, train, recipe.batch_size, as_tested, False)
        self._set_up_terms(dataset, in_order)

    def _set_up_terms(self, dataset: ImageDataset, in_order: Callable[[], TensorLoader]) -> None:
        """Tells the terms what they may know; their new parameters join the others on the device."""
        image_size = self.train_loader.pipeline.output_size(dataset.train.images.shape[-1])

        def described(model: nn.Module | None, taps: tuple[str, ...]) -> dict[str, TapDescription]:
            return {} if model is None or not taps else describe(model, taps, image_size)

        def training_batches() -> Iterator[tuple[Tensor, Tensor | None]]:
            for batch in in_order().batches():
                yield batch.images, None if self.distiller.is_label_free else batch.targets

        facts = RunFacts(
            classes=len(dataset.classes),
            train_size=len(dataset.train),
            labels=None if self.distiller.is_label_free else dataset.train.targets,
            student_features=described(self.student, self.distiller.student_features),
            teacher_features=described(self.teacher, self.distiller.teacher_features),
            student=unwrap(self.student),
            teacher=None if self.teacher is None else unwrap(self.teacher),
            training_batches=training_batches,
        )
        self.distiller.setup(facts, self.seed)
        self.distiller.to(self.train_loader.device)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (see :class:`gda.data.loader.TensorLoader`)."""
        yield from self._loader_of(epoch).batches(epoch, start_step)

    def _loader_of(self, epoch: int) -> TensorLoader:
        return self.plain_loader if epoch == self._plain_epoch else self.train_loader

    def training_step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Returns the loss of one batch: teacher without gradients, student with."""
        teacher = self.ask_teacher(batch.images)
        student = ModelOutput(self.student(batch.images), self._student_taps.collect())
        return distilled_step(
            self.distiller,
            batch.images,
            batch.targets,
            batch.indices,
            student,
            teacher,
            progress,
            self.seed,
            self._views(batch, progress),
        )

    def _views(self, batch: Batch, progress: Progress) -> dict[str, View]:
        """Augments the same images once more for each view that a term asks for, and runs both models."""
        views = {}
        for name in self.distiller.needs_views:
            loader = self._loader_of(progress.epoch)
            images = loader.view(batch.indices, name, progress.epoch, progress.step, progress.part)
            student = ModelOutput(self.student(images), self._student_taps.collect())
            views[name] = View(images, student, self.ask_teacher(images))
        return views

    def ask_teacher(self, images: Tensor) -> ModelOutput | None:
        """Returns the teacher's outputs, or nothing where the loss does not read them."""
        if self.teacher is None or self._teacher_taps is None or not self.distiller.needs_teacher:
            return None
        with torch.no_grad():  # not inference mode: autograd could not save its tensors for a backward pass
            return ModelOutput(self.teacher(images), self._teacher_taps.collect())

    def evaluate(self, student: nn.Module, progress: Progress) -> dict[str, float]:
        """Returns accuracy, loss, calibration and fidelity of ``student`` on each evaluation split."""
        student.eval()
        figures: dict[str, float] = {}
        for name, loader in self.evaluations.items():
            teacher_logits = self._logits_of_teacher(name)
            metrics = Metrics()
            with torch.inference_mode():
                for step, batch in loader.share(rank(), rank_count()):
                    metrics.update(student(batch.images), batch.targets, teacher_logits.get(step))
            figures |= metrics.over_ranks().result(f"{name}_")
        return figures

    def evaluate_teacher(self) -> dict[str, float]:
        """Returns the teacher's own figures, before any training; empty without a teacher."""
        if self.teacher is None:
            return {}
        figures: dict[str, float] = {}
        for name, loader in self.evaluations.items():
            logits, metrics = self._logits_of_teacher(name), Metrics()
            for step, batch in loader.share(rank(), rank_count()):
                metrics.update(logits[step], batch.targets)
            figures |= metrics.over_ranks().result(f"teacher_{name}_")
        return figures

    def _logits_of_teacher(self, split: str) -> dict[int, Tensor]:
        """Computes the teacher's logits of this process's batches of a split once: they never change."""
        if self.teacher is None:
            return {}
        if split not in self._teacher_logits:
            with torch.inference_mode():
                batches = self.evaluations[split].share(rank(), rank_count())
                self._teacher_logits[split] = {step: self.teacher(batch.images) for step, batch in batches}
        return self._teacher_logits[split]
