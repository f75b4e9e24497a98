"""The temperature that a meta-learner has learned, which its weights hold beside those of its encoder."""

from pathlib import Path

from gda.models.weights.checkpoints import Weights, read_checkpoint, weights_of

TEMPERATURE = "temp"
"""Name of the parameter (:class:`gda.models.zoo.meta_baseline.MetaBaseline`)."""


def learned_temperature(path: Path, weights: Weights = "raw") -> float | None:
    """Returns the temperature in a file; ``None`` where it holds a classifier or an encoder alone.

    Args:
        path: A file in any layout that :func:`gda.models.weights.checkpoints.load_checkpoint` reads.
        weights: ``ema`` takes the moving average.

    Raises:
        UserError: The file can't be read, or holds no moving average.
    """
    state = weights_of(read_checkpoint(path), path, weights)
    found = state.get(TEMPERATURE)
    return None if found is None or found.numel() != 1 else float(found)
