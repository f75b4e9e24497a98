"""Separate seeded random streams, so that runs of equal seed differ by the method alone.

Every source of randomness (student weights, data order, augmentation, the terms' own parameters)
draws from a stream of its own. A stream's seed is a hash of the run's seed and of the stream's name
and position, so that no method can shift another stream by drawing more or fewer numbers, and any
epoch or step can be drawn again without replaying the ones before it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """Derives the seed of one random stream.

    Args:
        seed: The run's seed.
        *names: What the stream is for and where it stands, e.g. ``"augmentation", epoch, step``.

    Returns:
        A seed in ``[0, 2**63)``, the same on every machine.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Returns a CPU generator for the stream ``names`` of run ``seed``."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Runs the block with torch's global generators set to one stream, then restores the CPU's.

    For code that draws from the global generator, such as the weight initialisation of a model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, *names))
        yield
