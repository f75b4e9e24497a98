"""Where the time of a training step goes: loader, teacher, student, losses, optimiser.

It is the step of kd+gda, made of the parts that training uses. To time the loss apart from the
student, the loss is differentiated with respect to the logits first, and the student from there:
the same gradients in two calls. The last row measures the step in one piece, as training runs it.
"""

from collections.abc import Iterator
from itertools import count

import torch
from rich.table import Table
from torch import nn

from gda.bench.timing import Stopwatch, Times
from gda.config.schema import Recipe
from gda.data.dataset import ImageDataset, ImageSplit
from gda.data.digits import Digits
from gda.data.loader import Batch
from gda.data.transforms import HorizontalFlip, PadCrop, Transform
from gda.distillers.distiller import Distiller
from gda.distillers.fisher_rao import FisherRao
from gda.distillers.ground_truth import Labels
from gda.distillers.kd import KD
from gda.distillers.sinkhorn import Sinkhorn
from gda.distillers.term import ModelOutput, Progress, TermInputs
from gda.models.registry import create_model
from gda.seeding import generator
from gda.tasks.classification import ClassificationTask

PARTS = (
    "data (loader)",
    "teacher forward",
    "student forward + backward",
    "losses forward + backward",
    "optimiser",
)
WHOLE = "whole step, in one piece"

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
"""Data sets that random pixels of their shape stand in for."""

WARM_UP = 5


class StepBench:
    """The components of one kd+gda run, and its step in parts and in one piece.

    Args:
        dataset: ``digits``, the real images, or a name of `CIFAR_CLASSES`: random pixels of its shape, for
            the time of a step does not depend on them.
        student: Model name.
        teacher: Model name; its weights are random.
        batch: Images in a batch.
        device: Where the step runs.
    """

    def __init__(self, dataset: str, student: str, teacher: str, batch: int, device: torch.device) -> None:
        images = _images(dataset, batch)
        classes = len(images.classes)
        transforms: dict[str, Transform] = {"crop": PadCrop(images.train.images.shape[-1] // 8)}
        if dataset != "digits":
            transforms["flip"] = HorizontalFlip()
        # As in conf/distiller/kd.yaml and conf/alignment/gda.yaml.
        terms = {"kd": (KD(4.0), 0.9), "fisher_rao": (FisherRao(), 0.02), "sinkhorn": (Sinkhorn(), 0.1)}
        self.device, self.batch = device, batch
        self.task = ClassificationTask(
            student=_model(student, classes, device),
            teacher=_model(teacher, classes, device),
            distiller=Distiller(Labels(), 0.1, terms).to(device),
            dataset=images,
            recipe=_recipe(batch),
            train_transforms=transforms,
            test_transforms={},
            seed=0,
            device=device,
            channels_last=True,
        )
        parameters = [p for module in self.task.modules.values() for p in module.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.progress = Progress(epoch=1, epochs=20, step=0, steps=self.task.steps)
        self._batches = self._endless()
        self.task.student.train()

    def parts(self, watch: Stopwatch) -> dict[str, float]:
        """Make one step; returns the milliseconds of each of `PARTS`."""
        watch.start()
        batch = next(self._batches)
        watch.lap("data (loader)")
        teacher = self.task.ask_teacher(batch.images)
        watch.lap("teacher forward")
        logits = self.task.student(batch.images)
        watch.lap("student forward + backward")
        leaf = logits.detach().requires_grad_()
        loss, _ = self.task.distiller(self._inputs(batch, leaf, teacher))
        loss.backward()
        watch.lap("losses forward + backward")
        logits.backward(leaf.grad)
        watch.lap("student forward + backward")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        watch.lap("optimiser")
        return watch.read()

    def whole(self, watch: Stopwatch) -> float:
        """Make one step as the trainer does; returns its milliseconds."""
        watch.start()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.training_step(next(self._batches), self.progress).loss.backward()
        self.optimizer.step()
        watch.lap(WHOLE)
        return watch.read()[WHOLE]

    def _inputs(self, batch: Batch, logits: torch.Tensor, teacher: ModelOutput | None) -> TermInputs:
        return TermInputs(
            images=batch.images,
            targets=self.task.distiller.targets(batch.targets, None),
            indices=batch.indices,
            student=ModelOutput(logits),
            teacher=teacher,
            progress=self.progress,
            generator=generator(0, "terms", self.progress.epoch, 0),
        )

    def _endless(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self.task.batches(epoch)


def measure(bench: StepBench, repeats: int) -> dict[str, Times]:
    """Time steps in parts and in one piece, by turns.

    Args:
        bench: What to time.
        repeats: Steps of each kind, after a few that warm up.

    Returns:
        The times of each of `PARTS` and of `WHOLE`.
    """
    watch = Stopwatch(bench.device)
    times: dict[str, list[float]] = {name: [] for name in (*PARTS, WHOLE)}
    for turn in range(WARM_UP + repeats):
        step = bench.parts(watch) | {WHOLE: bench.whole(watch)}
        if turn >= WARM_UP:
            for name, value in step.items():
                times[name].append(value)
    return {name: Times(each) for name, each in times.items()}


def step_table(times: dict[str, Times], batch: int, title: str) -> Table:
    """Lay out the times of a step; shares and images/s are those of the medians."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for heading in ("ms (median)", "ms (min)", "share", "images/s"):
        table.add_column(heading, justify="right")
    total = sum(times[name].median for name in PARTS)

    def row(name: str, median: float, minimum: float, share: float) -> None:
        speed = f"{1000 * batch / median:,.0f}"
        table.add_row(name, f"{median:.2f}", f"{minimum:.2f}", f"{share:.1%}", speed)

    for name in PARTS:
        row(name, times[name].median, times[name].minimum, times[name].median / total)
    table.add_section()
    row("sum of the parts", total, sum(times[name].minimum for name in PARTS), 1.0)
    row(WHOLE, times[WHOLE].median, times[WHOLE].minimum, times[WHOLE].median / total)
    return table


def _model(name: str, classes: int, device: torch.device) -> nn.Module:
    return create_model(name, num_classes=classes).to(device).to(memory_format=torch.channels_last)


def _images(dataset: str, batch: int) -> ImageDataset:
    if dataset == "digits":
        return Digits(name="digits", mean=(0.306,) * 3, std=(0.376,) * 3, image_size=8).load()
    classes = CIFAR_CLASSES[dataset]
    draws = generator(0, "bench")
    pixels = torch.randint(256, (8 * batch, 3, 32, 32), generator=draws, dtype=torch.uint8)
    split = ImageSplit(pixels, torch.randint(classes, (8 * batch,), generator=draws))
    names = tuple(map(str, range(classes)))
    return ImageDataset(dataset, names, split, None, split, (0.5,) * 3, (0.25,) * 3)


def _recipe(batch: int) -> Recipe:
    """A recipe of which only the batch sizes are read: the schedule and the rest play no part here."""
    return Recipe(
        name="bench",
        epochs=20,
        batch_size=batch,
        evaluation_batch_size=batch,
        drop_last=True,
        label_smoothing=0.0,
        validation=0.0,
        statistics="crd",
        lr=0.05,
        lr_by_model={},
        optimizer={},
        decay_norm_and_bias=True,
        gradient_clip=None,
        schedule={},
    )
