"""Random streams: equal on every machine, apart from each other, and without effect on the caller."""

import torch

from gda.seeding import generator, seeded, stream_seed


def test_stream_seeds_are_frozen() -> None:
    """Changing them changes every result."""
    assert stream_seed(0, "student") == 409_236_633_090_529_362
    assert stream_seed(7, "augmentation", 3, 11) == 3_822_793_564_159_832_728


def test_streams_are_apart() -> None:
    names = [
        ("a",),
        ("b",),
        ("a", 0),
        ("a", 1),
        ("a", 0, 0),
        ("a", 0, 1),
        ("a", 1, 0),
        ("a", 11),
        ("a", 1, 1),
    ]
    seeds = {stream_seed(seed, *name) for seed in range(20) for name in names}
    assert len(seeds) == 20 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_themselves() -> None:
    one, other = (torch.rand(4, generator=generator(3, "x", 1)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, torch.rand(4, generator=generator(4, "x", 1)))


def test_a_seeded_block_leaves_the_global_stream_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(0, "student"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    with seeded(0, "student"):
        assert torch.equal(torch.rand(3), inside)
