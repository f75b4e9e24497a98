"""Time and peak memory of every method's loss: forward and backward, without the models.

Each method gets random logits and random features of the shapes that the pair of models gives, so
that the models' own time and memory stay out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from torch import Tensor, nn

from gda.bench.sinkhorn import peak_bytes
from gda.bench.timing import Stopwatch, Times
from gda.config.signature import construct
from gda.distillers.distiller import Distiller
from gda.distillers.ground_truth import Labels
from gda.distillers.term import ModelOutput, Progress, RunFacts, TermInputs, View
from gda.errors import UserError
from gda.models.registry import create_model, zoo
from gda.models.tap_descriptions import TapDescription, describe
from gda.seeding import generator
from gda.suggestions import did_you_mean

CONF = Path(__file__).resolve().parents[2] / "conf" / "distiller"
SIZES = tuple((batch, classes) for classes in (100, 1000) for batch in (64, 256, 1024))
"""Batch and classes."""

TRAIN_SIZE = 50_000
"""Images that memory banks are made for, as in CIFAR."""

NOTES = (
    "ms: forward + backward of the method's terms, without models and without cross entropy, "
    "min / median over the repeats.",
    "peak: most bytes that torch's allocator held at one time during forward + backward, beyond those held "
    "before (logits, features, memory banks); gradients of logits and features count.",
)


@dataclass(frozen=True)
class LossCost:
    """What one method needed at one size.

    Attributes:
        batch: Images.
        classes: Classes.
        times: Milliseconds of forward and backward.
        peak: Peak of memory beyond what was held before, in bytes.
        held: Bytes of the method's own parameters and buffers.
    """

    batch: int
    classes: int
    times: Times
    peak: int
    held: int


def method_names() -> list[str]:
    """Returns the methods that have a term to measure."""
    return [path.stem for path in sorted(CONF.glob("*.yaml")) if _node(path.stem)["terms"]]


def measure(
    method: str, pair: tuple[str, str], size: tuple[int, int], repeats: int, device: torch.device
) -> LossCost:
    """Measures one method at one size.

    Args:
        method: A choice of ``distiller=``.
        pair: Zoo names of teacher and student.
        size: Batch and classes.
        repeats: Timed turns, after one that warms up.
        device: Where to run.

    Raises:
        UserError: There is no such method, or it can't serve the pair.
    """
    if method not in method_names():
        raise UserError(f"there is no method {method!r} to measure; {did_you_mean(method, method_names())}")
    batch, classes = size
    distiller, facts = _distiller(method, pair, classes)
    distiller.to(device)
    inputs, leaves = _inputs(distiller, facts, batch, device)
    parameters = [p for p in distiller.parameters() if p.requires_grad]
    work = partial(_forward_and_backward, distiller, inputs, [*leaves, *parameters])
    watch = Stopwatch(device)
    times = []
    for turn in range(1 + repeats):
        watch.start()
        work()
        watch.lap(method)
        if turn:
            times.append(watch.read()[method])
    held = sum(value.nbytes for value in (*distiller.parameters(), *distiller.buffers()))
    return LossCost(batch, classes, Times(times), peak_bytes(work, device), held)


def losses_table(costs: Mapping[str, Sequence[LossCost]], title: str) -> Table:
    """Lays out the costs, one line a method."""
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("own state,\nMiB", justify="right", no_wrap=True)
    for cost in next(iter(costs.values())):
        heading = f"B {cost.batch}, C {cost.classes}\nms min / median, peak MiB"
        table.add_column(heading, justify="right", no_wrap=True)
    for method, each in costs.items():
        cells = [
            f"{cost.times.minimum:.1f} / {cost.times.median:.1f}, {cost.peak / 2**20:.1f}" for cost in each
        ]
        table.add_row(method, f"{each[0].held / 2**20:.1f}", *cells)
    return table


def _node(method: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CONF / f"{method}.yaml").read_text(encoding="utf-8"))
    return {"terms": {}, **loaded}


def _distiller(method: str, pair: tuple[str, str], classes: int) -> tuple[Distiller, RunFacts]:
    torch.manual_seed(0)
    terms = {
        name: (construct({key: value for key, value in node.items() if key != "weight"}), node["weight"])
        for name, node in _node(method)["terms"].items()
    }
    distiller = Distiller(Labels(), 0.0, terms)
    teacher, student = (create_model(name, classes) for name in pair)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    facts = RunFacts(
        classes,
        TRAIN_SIZE,
        torch.arange(TRAIN_SIZE) % classes,
        describe(student, distiller.student_features, zoo()[pair[1]].image_size),
        describe(teacher, distiller.teacher_features, zoo()[pair[0]].image_size),
        student,
        teacher,
        partial(_few_images, zoo()[pair[0]].image_size, classes),
    )
    refused = [what for term in distiller.terms.values() for what in term.refusals(facts)]  # type: ignore[operator]
    if refused:
        raise UserError(f"{method} can't serve {pair[0]} -> {pair[1]}: {'; '.join(refused)}")
    distiller.setup(facts)
    return distiller, facts


def _few_images(image_size: int, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Makes one small batch: what a method measures at set-up costs no step its time."""
    yield torch.randn(4, 3, image_size, image_size), torch.arange(4) % classes


def _inputs(
    distiller: Distiller, facts: RunFacts, batch: int, device: torch.device
) -> tuple[TermInputs, list[Tensor]]:
    draws = generator(0, "bench", "losses", batch, facts.classes)
    leaves: list[Tensor] = []

    def output(taps: Mapping[str, TapDescription], trained: bool) -> ModelOutput:
        logits = 3 * torch.randn(batch, facts.classes, generator=draws)
        features = {
            name: torch.randn(batch, *tap.shape, generator=draws).relu() for name, tap in taps.items()
        }
        moved = [value.to(device).requires_grad_(trained) for value in (logits, *features.values())]
        leaves.extend(moved if trained else [])
        return ModelOutput(moved[0], dict(zip(features, moved[1:], strict=True)))

    def both() -> tuple[ModelOutput, ModelOutput]:
        return output(facts.student_features, True), output(facts.teacher_features, False)

    student, teacher = both()
    inputs = TermInputs(
        images=torch.zeros(batch, 3, 1, 1, device=device),
        targets=torch.randint(facts.classes, (batch,), generator=draws).to(device),
        indices=torch.randperm(TRAIN_SIZE, generator=draws)[:batch].to(device),
        student=student,
        teacher=teacher,
        progress=Progress(30, 240),
        generator=generator(0, "bench", "terms"),
        views={
            name: View(torch.zeros(batch, 3, 1, 1, device=device), *both()) for name in distiller.needs_views
        },
    )
    return inputs, leaves


def _forward_and_backward(distiller: nn.Module, inputs: TermInputs, leaves: list[Tensor]) -> None:
    loss, _ = distiller(inputs)
    torch.autograd.grad(loss, leaves, allow_unused=True)
