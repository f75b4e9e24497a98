"""The features of an image: what a model's head turns into logits, without the head."""

from torch import Tensor, nn

from gda.models.layout import POOLED
from gda.models.taps import features, unwrap
from gda.models.zoo.encoder_classifier import Encoder, EncoderClassifier


class PooledFeatures(nn.Module):
    """Any model as an encoder.

    Args:
        model: Maps images to logits; its pooled vector can be tapped. It becomes a submodule, so that
            :meth:`eval` reaches it.

    Raises:
        UserError: The model has no pooled vector.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        features(model, (POOLED,)).remove()

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to features ``(batch, width)``."""
        with features(self.model, (POOLED,)) as taps:
            self.model(images)
            return taps.collect()[POOLED]


def encoder_of(model: nn.Module) -> nn.Module:
    """Returns what maps images to a model's features; the weights are the model's own.

    Args:
        model: An encoder, an encoder with a head, or any other model.

    Raises:
        UserError: The model has no pooled vector.
    """
    inner = unwrap(model)
    if isinstance(inner, EncoderClassifier):
        return inner.encoder
    return model if isinstance(inner, Encoder) else PooledFeatures(model)
