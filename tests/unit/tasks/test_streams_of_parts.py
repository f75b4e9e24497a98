"""Terms and views draw anew for every part of a step and on every process; one process draws as ever."""

import pytest
import torch
from torch import Tensor, nn

from gda.config.schema import Recipe
from gda.data.dataset import ImageDataset, ImageSplit
from gda.data.pipeline import Pipeline
from gda.data.transforms import HorizontalFlip, PadCrop
from gda.distillers import Distiller, Progress, Term, TermInputs
from gda.distillers.ground_truth import Labels
from gda.seeding import generator
from gda.tasks.classification import ClassificationTask

SEED = 4
MEAN, STD = (0.5,) * 3, (0.25,) * 3
TRANSFORMS = {"crop": PadCrop(2), "flip": HorizontalFlip()}
RECIPE = Recipe(
    name="tiny",
    epochs=2,
    batch_size=12,
    evaluation_batch_size=16,
    drop_last=False,
    label_smoothing=0.0,
    validation=0.0,
    statistics="",
    lr=0.05,
    lr_by_model={},
    optimizer={},
    decay_norm_and_bias=True,
    gradient_clip=None,
    schedule={},
)
PLACES = [Progress(1, 2, 2, 4, part, rank) for part in (0, 1) for rank in (0, 1)]
"""Of one step; the first one is that of one process which takes its batch whole."""


class Drawing(Term):
    """Writes down what it draws and the view that it is given."""

    needs_teacher = False
    needs_views = ("second",)

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self.views: list[Tensor] = []

    def forward(self, inputs: TermInputs) -> Tensor:
        self.drawn.append(torch.rand(5, generator=inputs.generator))
        self.views.append(inputs.views["second"].images)
        return inputs.student.logits.mean()


@pytest.fixture
def images() -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (48, 3, 8, 8), generator=draws, dtype=torch.uint8)


@pytest.fixture
def term(images: Tensor) -> Drawing:
    """What a term has seen at each place, given the same images."""
    term = Drawing()
    split = ImageSplit(images, torch.arange(48) % 3)
    task = ClassificationTask(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
        None,
        Distiller(Labels(), 1.0, {"drawing": (term, 0.5)}),
        ImageDataset("fake", ("a", "b", "c"), split, None, split, MEAN, STD),
        RECIPE,
        TRANSFORMS,
        {},
        SEED,
        torch.device("cpu"),
        channels_last=False,
    )
    batch = list(task.batches(1))[2]
    for place in PLACES:
        task.training_step(batch, place)
    task.training_step(batch, PLACES[0])
    return term


def test_terms_draw_anew_on_every_rank_and_in_every_part(term: Drawing) -> None:
    assert torch.equal(term.drawn[0], torch.rand(5, generator=generator(SEED, "terms", 1, 2)))
    assert torch.equal(term.drawn[-1], term.drawn[0])
    assert len({tuple(drawn.tolist()) for drawn in term.drawn}) == len(PLACES)


def test_views_are_drawn_anew_in_every_part(term: Drawing, images: Tensor) -> None:
    indices = torch.randperm(48, generator=generator(SEED, "data order", 1))[24:36]
    first = Pipeline(TRANSFORMS, MEAN, STD)(images[indices], generator(SEED, "view", "second", 1, 2))
    assert torch.equal(term.views[0], first)
    assert torch.equal(term.views[-1], first)
    assert not torch.equal(term.views[2], first)  # the second part


def test_places_of_streams_differ() -> None:
    assert PLACES[0].stream == (1, 2)
    assert len({place.stream for place in PLACES}) == len(PLACES)
