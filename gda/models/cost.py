"""What a model costs: its parameters, and the work of one image."""

from dataclasses import dataclass

from torch import nn

from gda.models.dry_run import dry_run
from gda.models.taps import unwrap


@dataclass(frozen=True)
class Cost:
    """Size and work of a model.

    Attributes:
        parameters: Number of parameters, trained or not; shared ones count once, buffers do not.
        macs: Multiply-accumulate operations of the convolutions and matrix products (linear layers,
            attention) of one image; one of them is two floating-point operations.
    """

    parameters: int
    macs: int


def measure_cost(model: nn.Module, image_size: int) -> Cost:
    """Counts parameters and work by one dry forward pass, and leaves no trace (see :func:`dry_run`).

    Args:
        model: The model, on any device, ``meta`` included, wrapped or not.
        image_size: Height and width of the image in pixels.

    Raises:
        UserError: The model can't take images of this size.
    """
    inner = unwrap(model)
    parameters = sum(parameter.numel() for parameter in inner.parameters())
    return Cost(parameters, dry_run(inner, image_size, images=1))
