"""Which images an episode is made of.

An episode is a small classification problem: ``way`` classes, ``shot`` known images of each, and
``query`` images of each to classify (Vinyals et al., arXiv 1606.04080). Here it is a tensor of positions
in a split, class by class, the shots of a class before its queries. Classes are numbered 0 to
``way - 1`` within an episode, in the order drawn.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from numpy.random import RandomState
from torch import Tensor

from gda.errors import UserError
from gda.seeding import generator


class EpisodeSampler:
    """Draws episodes in batches: classes, then images of each, uniformly and without replacement.

    Seed, epoch and step decide the episodes of a batch, and nothing else does: any batch can be drawn
    on its own, and however many processes share a batch, together they hold the same episodes.

    Args:
        targets: Class ids ``(N,)`` of the images. Ids that don't occur are no classes.
        way: Classes in an episode.
        shot: Known images of each class.
        query: Images of each class to classify.
        episodes_per_batch: Episodes in a batch, of all processes together.
        batches: Batches in an epoch.
        seed: Seed of the draws. With one seed all methods see the same episodes.
        rank: Number of this process, from 0.
        ranks: Number of processes; each takes an equal run of the batch's episodes, in rank order.
        classes: Names of the classes, for messages; a class id is a position in it.

    Raises:
        UserError: There are fewer classes than ways, a class has fewer images than an episode takes, a
            number is below 1, or the processes can't share a batch evenly.
    """

    def __init__(
        self,
        targets: Tensor,
        way: int,
        shot: int,
        query: int,
        episodes_per_batch: int = 4,
        batches: int = 200,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        classes: Sequence[str] | None = None,
    ) -> None:
        sizes = {
            "way": way,
            "shot": shot,
            "query": query,
            "episodes_per_batch": episodes_per_batch,
            "batches": batches,
        }
        small = [f"{name}={size}" for name, size in sizes.items() if size < 1]
        if small:
            raise UserError(f"episodes need numbers of at least 1, not {', '.join(small)}")
        if episodes_per_batch % ranks:
            raise UserError(
                f"{ranks} processes can't share {episodes_per_batch} episodes evenly; take a multiple of "
                f"{ranks} as episodes_per_batch"
            )
        self.targets = targets = targets.cpu()
        labels, self._counts = targets.unique(return_counts=True)
        _check_classes(labels.tolist(), self._counts.tolist(), way, shot + query, classes)
        self.way, self.shot, self.query = way, shot, query
        self.episodes_per_batch = episodes_per_batch
        self.seed = seed
        self._length = batches
        share = episodes_per_batch // ranks
        self.share = range(rank * share, (rank + 1) * share)
        self._by_class = targets.argsort(stable=True)
        self._starts = self._counts.cumsum(0) - self._counts

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._length

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the episodes but the epoch: equal digests, identical episodes."""
        settings = (self.way, self.shot, self.query, self.episodes_per_batch, self._length, self.seed)
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()[:16]

    def batch(self, epoch: int, step: int) -> Tensor:
        """Draws one batch.

        Args:
            epoch: The epoch, from 0.
            step: The batch within it, from 0.

        Returns:
            Positions in the split, ``(episodes, way, shot + query)``, int64: this process's share.
        """
        draws = generator(self.seed, "episodes", epoch, step)
        # The places of the largest of independent uniform numbers are a draw without replacement.
        # float64: two of 2**53 values are hardly ever equal, so that no place is preferred.
        keys = torch.rand(self.episodes_per_batch, len(self._counts), generator=draws, dtype=torch.float64)
        classes = keys.topk(self.way).indices
        counts = self._counts[classes][..., None]
        places = torch.arange(int(counts.max()))
        keys = torch.rand(*classes.shape, len(places), generator=draws, dtype=torch.float64)
        members = keys.masked_fill_(places >= counts, -1.0).topk(self.shot + self.query).indices
        positions = self._by_class[self._starts[classes][..., None] + members]
        return positions[self.share.start : self.share.stop]

    def batches(self, epoch: int = 0, start_step: int = 0) -> Iterator[Tensor]:
        """Draws the batches of one epoch.

        Args:
            epoch: The epoch, from 0.
            start_step: First batch to draw; the batches are the same wherever one starts.
        """
        for step in range(start_step, len(self)):
            yield self.batch(epoch, step)

    def positions(self, epoch: int = 0, epochs: int = 1) -> Tensor:
        """Returns the positions of the images that occur in some epochs, ascending, each once.

        Args:
            epoch: First epoch.
            epochs: Number of epochs, at least 1.
        """
        episodes = [each for number in range(epoch, epoch + epochs) for each in self.batches(number)]
        return torch.cat(episodes).unique()


def split_shot_query(episodes: Tensor, shot: int) -> tuple[Tensor, Tensor]:
    """Divides episodes into shots and queries.

    Args:
        episodes: Positions, images or features ``(episodes, way, shot + query, ...)``.
        shot: Shots of each class; they come first.

    Returns:
        Shots ``(episodes, way, shot, ...)`` and queries ``(episodes, way * query, ...)``, class by class.
    """
    return episodes[:, :, :shot], episodes[:, :, shot:].flatten(1, 2)


def query_targets(episodes: int, way: int, query: int) -> Tensor:
    """Returns the classes of the queries within their episode, ``(episodes, way * query)``, int64."""
    return torch.arange(way).repeat_interleave(query).repeat(episodes, 1)


def published_episodes(
    targets: Tensor,
    way: int,
    per_class: int,
    episodes_per_batch: int,
    batches: int,
    draws: RandomState,
) -> Iterator[Tensor]:
    """Draws the episodes that the published sampler of Meta-Baseline draws from NumPy's generator.

    For comparisons with published code only: a batch can't be drawn without those before it, and the
    seed has to be chosen for each epoch. Code that calls ``numpy.random.seed(s)`` and then iterates
    sees the episodes of ``RandomState(s)``.

    Args:
        targets: Class ids ``(N,)``, from 0 on without gaps.
        way: Classes in an episode.
        per_class: Images of each class, shots and queries together.
        episodes_per_batch: Episodes in a batch.
        batches: Batches in an epoch.
        draws: NumPy's legacy generator; it is advanced.

    Yields:
        Positions ``(episodes, way, per_class)``, int64.

    Raises:
        UserError: There are fewer classes than ways, or a class has fewer images than an episode takes.
    """
    counts = torch.bincount(targets).tolist()
    _check_classes(list(range(len(counts))), counts, way, per_class, None)
    members = [(targets == label).nonzero().flatten().numpy() for label in range(len(counts))]
    for _ in range(batches):
        rows = [
            draws.choice(members[label], per_class, replace=False)
            for _ in range(episodes_per_batch)
            for label in draws.choice(len(members), way, replace=False)
        ]
        yield torch.stack([torch.from_numpy(row) for row in rows]).unflatten(0, (episodes_per_batch, way))


def _check_classes(
    labels: list[int], counts: list[int], way: int, needed: int, classes: Sequence[str] | None
) -> None:
    """Refuses splits that episodes can't be drawn from."""
    if len(labels) < way:
        raise UserError(
            f"an episode of {way} classes can't be drawn from a split of {len(labels)}; way can be "
            f"{len(labels)} at most"
        )
    names = [f"class {label if classes is None else repr(classes[label])}" for label in labels]
    small = [f"{name} has {count}" for name, count in zip(names, counts, strict=True) if count < needed]
    if small:
        more = f" and {len(small) - 5} more have too few" if len(small) > 5 else ""
        raise UserError(
            f"an episode takes {needed} images of a class, shots and queries together, but "
            f"{', '.join(small[:5])}{more}; take a smaller shot or query, or leave such classes out"
        )
