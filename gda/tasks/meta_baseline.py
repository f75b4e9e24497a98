"""Meta-Baseline: an encoder that a classifier has trained goes on learning on episodes.

Chen et al., arXiv 2003.04390, section 3.2; the model is :class:`gda.models.zoo.meta_baseline.MetaBaseline`.
A teacher distils the logits of the episodes' queries. Class 0 means another class in every episode, so
that terms which compare samples with each other do so within each episode, unless ``pool_episodes`` asks
for what published code does.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gda.config.schema import Recipe
from gda.config.task_needs import TaskNeeds
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episode_loader import EpisodeBatch, EpisodeLoader
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.few_shot.source import FewShotDataset, FewShotSource
from gda.data.loader import TensorLoader
from gda.data.transforms import Transform, without_augmentation
from gda.distillers.distiller import Distiller
from gda.distillers.term import ModelOutput, Progress, RunFacts
from gda.models.taps import unwrap
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.ranges import NonNegative, Positive, Range
from gda.ranks import rank, rank_count
from gda.tasks.distilled_step import distilled_step
from gda.tasks.embeddings import embed
from gda.tasks.episode_evaluation import EpisodeEvaluation, Episodes
from gda.tasks.few_shot_figure import few_shot_figure
from gda.tasks.task import Figure, StepOutput

Whole = Annotated[int, Range(minimum=1)]
Way = Annotated[int, Range(minimum=2)]


class MetaBaselineTask:
    """Episodes of the base classes to train on, and of novel classes to be judged by.

    Args:
        student: An encoder, its weights loaded; on ``device``.
        teacher: The teacher's encoder; on ``device``. It never learns.
        distiller: The loss, on the logits of the queries.
        dataset: The images.
        recipe: The number of epochs, and the batch size of evaluation.
        train_transforms: Named transforms of training images. Where none is random the teacher sees each
            image once, however many episodes it is part of.
        test_transforms: Named transforms of all other images.
        seed: The run's seed; with the epoch it decides the episodes.
        device: Where batches are made.
        channels_last: Memory format of evaluation batches.
        view_transforms: Not used: no term that asks for views can serve episodes.
        teacher_temperature: The temperature that the teacher has learned; ``None`` where it is a
            classifier, which has none: then ``temperature`` is the teacher's, too.
        train_way: Classes in a training episode.
        train_shot: Known images of each class.
        train_query: Images of each class to classify.
        train_episodes_per_batch: Episodes in a training step, of all processes together.
        train_batches: Steps in an epoch.
        metric: ``cos`` (cosine) or ``sqr`` (minus the squared distance), of student and teacher.
        temperature: Factor of the similarities at the start.
        learnable_temperature: Whether it is trained.
        freeze_batch_norm: Normalise with the statistics of the encoder's training, which stay as they are.
        pool_episodes: Let terms compare samples across episodes, as published.
        teacher_kind: Which run ``teacher.checkpoint=auto`` names: a ``classifier`` or a ``meta`` model.
        way: Classes in an episode of evaluation.
        shots: Known images of each class in evaluation; the first number chooses the best epoch.
        query: Images of each class to classify in evaluation.
        episodes_per_batch: Episodes in a batch of evaluation.
        batches: Batches in one evaluation of a split.
        episode_seed: Decides the episodes of all evaluations; not the run's seed.
    """

    needs: ClassVar[TaskNeeds] = TaskNeeds(
        source=FewShotSource,
        head=False,
        encoder=True,
        logits_only=True,
        makes="meta-learner",
        teacher_options=("teacher_kind", "pool_episodes"),
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        distiller: Distiller,
        dataset: FewShotDataset,
        recipe: Recipe,
        train_transforms: Mapping[str, Transform],
        test_transforms: Mapping[str, Transform],
        seed: int,
        device: torch.device,
        channels_last: bool = True,
        view_transforms: Mapping[str, Mapping[str, Transform]] | None = None,
        teacher_temperature: float | None = None,
        train_way: Way = 5,
        train_shot: Whole = 1,
        train_query: Whole = 15,
        train_episodes_per_batch: Whole = 4,
        train_batches: Whole = 200,
        metric: Literal["cos", "sqr"] = "cos",
        temperature: Annotated[float, Positive] = 10.0,
        learnable_temperature: bool = True,
        freeze_batch_norm: bool = False,
        pool_episodes: bool = False,
        teacher_kind: Literal["classifier", "meta"] = "classifier",
        way: Way = 5,
        shots: Sequence[Whole] = (1, 5),
        query: Whole = 15,
        episodes_per_batch: Whole = 4,
        batches: Whole = 200,
        episode_seed: Annotated[int, NonNegative] = 0,
    ) -> None:
        model = MetaBaseline(student, metric, temperature, learnable_temperature).to(device)
        self.student: nn.Module = model
        self.teacher: MetaBaseline | None = None
        if teacher is not None:
            self.teacher = MetaBaseline(
                teacher, metric, teacher_temperature or temperature, learnable_temperature=False
            )
            self.teacher.eval().requires_grad_(False)
        self.distiller = distiller
        self.modules: Mapping[str, nn.Module] = {"student": model, "distiller": distiller}
        self.seed, self.metric = seed, metric
        self.freeze_batch_norm, self.pool_episodes = freeze_batch_norm, pool_episodes
        self.figure = few_shot_figure(way, shots)
        self.steps = train_batches
        sampler = EpisodeSampler(
            dataset.base.targets,
            train_way,
            train_shot,
            train_query,
            train_episodes_per_batch,
            train_batches,
            seed,
            rank(),
            rank_count(),
            classes=dataset.base_classes,
        )

        def episode_loader(split: ImageSplit, transforms: Mapping[str, Transform | None]) -> EpisodeLoader:
            return EpisodeLoader(split, sampler, transforms, dataset.mean, dataset.std, device)

        def loader(
            split: ImageSplit, transforms: Mapping[str, Transform | None] = test_transforms
        ) -> TensorLoader:
            return TensorLoader(
                split,
                recipe.evaluation_batch_size,
                transforms,
                dataset.mean,
                dataset.std,
                device=device,
                channels_last=channels_last,
            )

        plain = without_augmentation(train_transforms, dataset.base.images.shape[-1])
        self.train_loader = episode_loader(dataset.base, train_transforms)
        base = ImageSplit(self.train_loader.images, dataset.base.targets.to(device))  # already on the device
        self._plain_epoch = None
        if recipe.last_epoch_without_augmentation and self.train_loader.pipeline.random:
            self._plain_epoch = recipe.epochs - 1
        if self._plain_epoch is not None:
            self.plain_loader = episode_loader(base, plain)
        self._base_images = None if self.train_loader.pipeline.random else loader(base, train_transforms)
        self._teacher_features: Tensor | None = None
        self.novel = EpisodeEvaluation(
            dataset, loader, Episodes(way, tuple(shots), query, episodes_per_batch, batches, episode_seed)
        )
        self._teacher_on_novel: dict[str, Tensor] | None = None
        distiller.setup(
            RunFacts(
                classes=train_way,
                train_size=len(dataset.base),
                student=unwrap(student),
                teacher=None if teacher is None else unwrap(teacher),
            ),
            seed,
        )
        distiller.to(device)

    @staticmethod
    def figure_of(options: Mapping[str, Any]) -> Figure:
        """Returns the accuracy with the first number of shots."""
        return few_shot_figure(options["way"], options["shots"])

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[EpisodeBatch]:
        """Yields the training batches of an epoch; seed and epoch decide the episodes."""
        loader = self.plain_loader if epoch == self._plain_epoch else self.train_loader
        yield from loader.batches(epoch, start_step)

    def training_step(self, batch: EpisodeBatch, progress: Progress) -> StepOutput:
        """Returns the loss of one batch of episodes, over all their queries."""
        if self.freeze_batch_norm:
            freeze_batch_norm(self.student)
        student = ModelOutput(self.student(batch.shots, batch.queries).flatten(0, 1))
        queries = batch.indices[:, :, batch.shots.shape[2] :]
        return distilled_step(
            self.distiller,
            batch.queries.flatten(0, 1),
            batch.targets.flatten(),
            queries.flatten(),
            student,
            self.ask_teacher(batch),
            progress,
            self.seed,
            episodes=1 if self.pool_episodes else len(batch.targets),
        )

    def ask_teacher(self, batch: EpisodeBatch) -> ModelOutput | None:
        """Returns the teacher's logits of the queries, or nothing where the loss does not read them."""
        if self.teacher is None or not self.distiller.needs_teacher:
            return None
        with torch.no_grad():  # not inference mode: autograd could not save its tensors for a backward pass
            if self._base_images is None:
                return ModelOutput(self.teacher(batch.shots, batch.queries).flatten(0, 1))
            if self._teacher_features is None:
                self._teacher_features = embed(self.teacher.encoder, self._base_images)
            known = self._teacher_features[batch.indices]
            shot = batch.shots.shape[2]
            logits = self.teacher.classify(known[:, :, :shot], known[:, :, shot:].flatten(1, 2))
            return ModelOutput(logits.flatten(0, 1))

    def evaluate(self, student: nn.Module, progress: Progress) -> dict[str, float]:
        """Returns accuracy, loss and fidelity of ``student`` on the episodes of each evaluation split."""
        assert isinstance(student, MetaBaseline)
        student.eval()
        features = self.novel.embed(student.encoder)
        figures = self.novel.accuracies(features, self.metric)
        known, classify = None, None
        if self.teacher is not None:
            known, classify = self._novel_features_of_teacher(self.teacher), self.teacher.classify
        figures |= self.novel.fidelity(features, student.classify, known, classify)
        learned = student.temp
        return {**figures, "temperature": float(learned.detach() if isinstance(learned, Tensor) else learned)}

    def evaluate_teacher(self) -> dict[str, float]:
        """Returns the teacher's own figures, before any training; empty without a teacher."""
        if self.teacher is None:
            return {}
        features = self._novel_features_of_teacher(self.teacher)
        figures = self.novel.accuracies(features, self.metric)
        figures |= self.novel.fidelity(features, self.teacher.classify)
        return {f"teacher_{name}": value for name, value in figures.items()}

    def _novel_features_of_teacher(self, teacher: MetaBaseline) -> dict[str, Tensor]:
        """Embeds the evaluation splits once: the teacher never changes."""
        if self._teacher_on_novel is None:
            self._teacher_on_novel = self.novel.embed(teacher.encoder)
        return self._teacher_on_novel


def freeze_batch_norm(model: nn.Module) -> None:
    """Puts batch norm into evaluation mode: it normalises with the statistics that it has, and keeps them.

    Scale and shift are trained all the same, as published.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
