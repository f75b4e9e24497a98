"""Models without their head, as encoders: they give the features that the head turns into logits."""

from dataclasses import replace

from torch import nn

from gda.errors import UserError
from gda.models.layout import layout_of

LEFT_OUT = "head_left_out"
"""Attribute of a model without its head: the names of the weights that the head had."""


def leave_out_head(model: nn.Module) -> nn.Module:
    """Puts nothing in the place of a model's head.

    Args:
        model: A model whose last layer is its head; it is changed.

    Returns:
        The model; it maps images ``(batch, 3, h, w)`` to features ``(batch, width)``.

    Raises:
        UserError: It is not known where its head is.
    """
    layout = layout_of(model)
    if layout.head is None:
        raise UserError(f"{type(model).__name__} has no head that could be left out; take another encoder")
    names = set(model.state_dict())
    model.set_submodule(layout.head, nn.Identity())
    model.layout = replace(layout, head=None, encoder="")  # type: ignore[assignment]
    mark(model, names - set(model.state_dict()))
    return model


def mark(model: nn.Module, head: set[str]) -> None:
    """Remembers which weights were the head's, so that a file which holds them is read all the same.

    Args:
        model: A model without its head.
        head: Names of the head's weights.
    """
    setattr(model, LEFT_OUT, head)
