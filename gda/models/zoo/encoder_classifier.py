"""Encoders of few-shot learning, and a classifier made of one and a head (Classifier-Baseline).

Chen et al., "Meta-Baseline", arXiv 2003.04390: encoder and head are trained on the base
classes; afterwards the head is left out.
"""

from dataclasses import replace

from torch import Tensor, nn

from gda.errors import UserError
from gda.models.layout import Layout
from gda.models.zoo.heads import HEADS, Head, LinearHead
from gda.suggestions import did_you_mean


class Encoder(nn.Module):
    """Maps images ``(batch, 3, h, w)`` to features ``(batch, out_features)``.

    Attributes:
        out_features: Width of the features.
        smallest_image: Least height and width in pixels that leaves something after all poolings.
        layout: Its taps; ``pooled`` is the output.
    """

    out_features: int
    smallest_image: int
    layout: Layout

    def check_images(self, images: Tensor) -> None:
        """Refuses images that are pooled away.

        Raises:
            UserError: They are smaller than ``smallest_image``.
        """
        height, width = images.shape[-2:]
        if height < self.smallest_image or width < self.smallest_image:
            raise UserError(
                f"this encoder halves images four times, so they need {self.smallest_image} pixels or more, "
                f"not {height}x{width}; resize them (dataset.image_size=32 for the digits), or take a CIFAR "
                "model such as resnet8"
            )


class EncoderClassifier(nn.Module):
    """An encoder with a head.

    Args:
        encoder: The encoder.
        classifier: A head for features of its width.
    """

    def __init__(self, encoder: Encoder, classifier: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = classifier
        head = "classifier.linear" if isinstance(classifier, LinearHead) else "classifier"
        self.layout = replace(encoder.layout.within("encoder"), head=head)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``.

        Raises:
            UserError: The encoder's features depend on the image size, and these images are of another
                size than it was built for.
        """
        features = self.encoder(x)
        if features.shape[-1] != self.classifier.in_features:
            height, width = x.shape[-2:]
            raise UserError(
                f"the head takes {self.classifier.in_features} features, and images of {height}x{width} "
                f"pixels give {features.shape[-1]}; build the model for these images: image_size={height} "
                f"(in a config student.image_size={height}, or teacher.image_size={height})"
            )
        return self.classifier(features)


def with_head(encoder: Encoder, num_classes: int | None, head: str) -> nn.Module:
    """Puts a head on an encoder; without a number of classes, returns the encoder as it is.

    Args:
        encoder: The encoder.
        num_classes: Size of the output, or ``None``.
        head: A name of :data:`gda.models.zoo.heads.HEADS`; left out where there are no classes, so that a
            student of any head can go on as an encoder.

    Raises:
        UserError: There is no such head.
    """
    if head not in HEADS:
        raise UserError(f"there is no head {head!r}; {did_you_mean(head, HEADS)}")
    if num_classes is None:
        return encoder
    return EncoderClassifier(encoder, HEADS[head](encoder.out_features, num_classes))
