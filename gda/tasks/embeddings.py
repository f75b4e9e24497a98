"""Few-shot evaluation with a frozen encoder: every image is embedded once, episodes come from memory.

A test image is part of many episodes, and in evaluation mode its features are the same in all of them.
800 episodes of 5 classes with 1 + 15 images each need 64,000 passes of an image through the encoder
when each episode is encoded anew, and in this way one pass for each image that occurs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gda.data.few_shot.episodes import EpisodeSampler, split_shot_query
from gda.data.loader import TensorLoader
from gda.errors import UserError
from gda.ranks import gather_rows, rank, rank_count
from gda.tasks.episode_metrics import nearest_centroid_accuracy

Score = Callable[[Tensor, Tensor], Tensor]
"""Features of shots and queries to one figure an episode; see :mod:`gda.tasks.episode_metrics`."""


def embed(encoder: nn.Module, loader: TensorLoader, positions: Tensor | None = None) -> Tensor:
    """Maps the images of a split to their features.

    Memory holds the features and what one batch of the loader needs. The encoder is put into evaluation
    mode and left there. Several processes take the batches in turn, and every one gets all features.

    Args:
        encoder: Maps images ``(batch, 3, h, w)`` to features ``(batch, width)``.
        loader: An evaluation loader.
        positions: Positions ``(n,)`` in the split of the images that are needed, such as
            :meth:`gda.data.few_shot.episodes.EpisodeSampler.positions`; ``None`` means all.

    Returns:
        Features ``(N, width)`` in the order of the split, on the loader's device, without gradient; in the
        encoder's own precision, but at least float32. Rows of images that were not asked for are NaN.

    Raises:
        ValueError: The loader is one for training.
    """
    if loader.shuffle:
        raise ValueError("embeddings need a loader for evaluation: one without shuffling")
    encoder.eval()
    features: Tensor | None = None
    positions = torch.arange(len(loader.images)) if positions is None else positions
    chunks = positions.split(loader.batch_size)
    # Each process needs one to know the shape of features; where there are too few, all embed them all.
    is_shared = len(chunks) >= rank_count() > 1
    own = chunks[rank() :: rank_count()] if is_shared else chunks
    with torch.no_grad():
        for chunk in own:
            found = encoder(loader.view(chunk, "embedding", epoch=0, step=0))
            if features is None:
                dtype = torch.promote_types(found.dtype, torch.float32)
                features = found.new_full((len(loader.images), *found.shape[1:]), math.nan, dtype=dtype)
            features[chunk.to(found.device)] = found.to(features.dtype)
    assert features is not None, "a split has images"
    if is_shared:
        places = torch.cat(own).to(features.device)
        rows = gather_rows(features[places])
        features[gather_rows(places)] = rows
    return features


def evaluate_episodes(
    features: Tensor,
    sampler: EpisodeSampler,
    score: Score = nearest_centroid_accuracy,
    epoch: int = 0,
    epochs: int = 1,
) -> Tensor:
    """Scores the episodes of a sampler from features that are known already.

    The figures are those that encoding each episode anew gives, up to rounding, for an encoder whose
    features of an image depend on that image alone, as in evaluation mode.

    Args:
        features: ``(N, width)``, in the order of the sampler's targets.
        sampler: Draws the episodes.
        score: Gives one figure an episode.
        epoch: First epoch of the sampler.
        epochs: Number of epochs; the published test takes ten of 200 batches.

    Returns:
        Figures in the order of the episodes, ``(episodes,)``, float64, on the CPU.

    Raises:
        UserError: The features of an episode are not finite.
        ValueError: There are more or fewer features than targets.
    """
    if len(features) != len(sampler.targets):
        raise ValueError(f"{len(features)} features are not those of {len(sampler.targets)} images")
    figures = []
    for each in range(epoch, epoch + epochs):
        for indices in sampler.batches(each):
            chosen = features[indices.to(features.device)]
            if not chosen.isfinite().all():
                raise UserError(
                    "an episode has features that are not finite: the encoder has diverged, or it did not "
                    "embed all images of these episodes"
                )
            shots, queries = split_shot_query(chosen, sampler.shot)
            figures.append(score(shots, queries).double().cpu())
    return torch.cat(figures)
