"""A few-shot evaluation by encoding every episode anew, and by embedding every image once.

Both see the same episodes of random pixels and give the same figures (a deviation is printed). Most of
the ratio is a matter of counting: how often an image is encoded on average.
"""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from gda.bench.timing import Stopwatch
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episode_loader import EpisodeLoader
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.loader import TensorLoader
from gda.models.registry import create_model
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.seeding import generator
from gda.tasks.embeddings import embed, evaluate_episodes

SIZES = ((100, 20),)
"""Images of a class, and classes."""

ENCODER = "convnet4"
SHOTS = (1, 5)
WAY, QUERY = 5, 15
BATCHES, EPISODES_PER_BATCH = 200, 4
IMAGE_SIZE = 32
EMBEDDED_TOGETHER = 320
"""Images in a batch of `embed`: those of a batch of 1-shot episodes."""

STATISTICS = (0.5,) * 3

NOTES = (
    f"{BATCHES * EPISODES_PER_BATCH} episodes of {WAY} ways and {QUERY} queries at each number of shots; "
    f"images of {IMAGE_SIZE} pixels; weights and pixels are random, for neither plays a part in the time.",
    "anew: images by index, encoder, accuracy; timed on the batches that --repeats says, and scaled to all "
    f"{BATCHES}.",
    "once: the encoder on every image that occurs, then features by index and accuracy; timed in full.",
    "encoded per image: images encoded anew, over images that occur. The ratio can't be much larger, so it "
    "falls with the size of the split: 12,000 images, as miniImageNet's test classes have, allow 5.4 for 800 "
    "episodes at 1 shot, 12 at 1 and 5 shots, and 53 for the published test of 8,000 at 1 shot.",
)


@dataclass(frozen=True)
class EpisodeCost:
    """What both ways need for one evaluation.

    Attributes:
        what: Which shots are evaluated.
        images: Images that occur in the episodes.
        encoded: Images encoded when every episode is encoded anew.
        anew: Seconds of it, scaled to all batches.
        once: Seconds of embedding, sampling and scoring in the other way.
        deviation: Largest difference between the accuracies of an episode, in the batches timed.
    """

    what: str
    images: int
    encoded: int
    anew: float
    once: float
    deviation: float

    @property
    def ratio(self) -> float:
        """How many times faster it is to embed once."""
        return self.anew / self.once


def measure(encoder: str, size: tuple[int, int], batches: int, device: torch.device) -> list[EpisodeCost]:
    """Measures the evaluation at either of `SHOTS`, and at both of them.

    Args:
        encoder: Zoo name.
        size: Images of a class, and classes.
        batches: Batches of episodes that are encoded anew; at most `BATCHES` are.
        device: Where to run.

    Raises:
        UserError: There is no such model, or the split is too small for the episodes.
    """
    timed = min(batches, BATCHES)
    split = _split(*size)
    samplers = [
        EpisodeSampler(split.targets, WAY, shot, QUERY, EPISODES_PER_BATCH, BATCHES) for shot in SHOTS
    ]
    model = MetaBaseline(create_model(encoder, None)).to(device).eval()
    loader = TensorLoader(split, EMBEDDED_TOGETHER, {}, STATISTICS, STATISTICS, device)
    watch = Stopwatch(device)
    with torch.no_grad():  # warm up
        model.encoder(next(loader.batches()).images)
    anew: list[tuple[float, Tensor]] = []
    for sampler in samplers:
        episodes = EpisodeLoader(split, sampler, {}, STATISTICS, STATISTICS, device)
        watch.start()
        accuracies = _encode_anew(model, episodes, timed)
        watch.lap("anew")
        anew.append((watch.read()["anew"] / 1000 * BATCHES / timed, accuracies))
    costs = []
    for chosen in ([0], [1], [0, 1]):
        watch.start()
        positions = torch.cat([samplers[each].positions() for each in chosen]).unique()
        features = embed(model.encoder, loader, positions)
        once = [evaluate_episodes(features, samplers[each]) for each in chosen]
        watch.lap("once")
        deviations = [
            (found[: len(anew[each][1])] - anew[each][1]).abs().max()
            for each, found in zip(chosen, once, strict=True)
        ]
        costs.append(
            EpisodeCost(
                what=" and ".join(f"{SHOTS[each]}-shot" for each in chosen),
                images=len(positions),
                encoded=sum(BATCHES * EPISODES_PER_BATCH * WAY * (SHOTS[each] + QUERY) for each in chosen),
                anew=sum(anew[each][0] for each in chosen),
                once=watch.read()["once"] / 1000,
                deviation=float(max(deviations)),
            )
        )
    return costs


def episodes_table(costs: list[EpisodeCost], title: str) -> Table:
    """Lays out the costs, one line an evaluation."""
    table = Table(title=title, title_justify="left")
    table.add_column("episodes")
    for heading in ("images", "encoded\nper image", "s\nanew", "s\nonce", "ratio", "accuracy\ndeviation"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in costs:
        table.add_row(
            each.what,
            f"{each.images:,}",
            f"{each.encoded / each.images:.1f}",
            f"{each.anew:.2f}",
            f"{each.once:.2f}",
            f"{each.ratio:.1f}x",
            f"{each.deviation:.0e}",
        )
    return table


def _encode_anew(model: MetaBaseline, episodes: EpisodeLoader, batches: int) -> Tensor:
    """Returns the accuracies of the first episodes, encoder and all, ``(episodes,)``."""
    found = []
    with torch.no_grad():
        for step in range(batches):
            batch = episodes.batch(0, step)
            nearest = model(batch.shots, batch.queries).argmax(dim=2)
            found.append((nearest == batch.targets).double().mean(dim=1).cpu())
    return torch.cat(found)


def _split(per_class: int, classes: int) -> ImageSplit:
    """Returns random pixels."""
    draws = generator(0, "bench")
    shape = (per_class * classes, 3, IMAGE_SIZE, IMAGE_SIZE)
    pixels = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
    return ImageSplit(pixels, torch.arange(classes).repeat_interleave(per_class))
