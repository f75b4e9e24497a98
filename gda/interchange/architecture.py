"""From a config's model node to a model, and to the words that say how to build it again."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from gda.config.signature import HYDRA_KEYS, locate
from gda.errors import UserError
from gda.models import create_model, create_timm_model
from gda.models.registry import TIMM

# The name under which `create_model` builds what each target builds, from the name in its node.
_NAMES: dict[Callable[..., Any], Callable[[str], str]] = {
    create_model: lambda name: name,
    create_timm_model: lambda name: TIMM + name.removeprefix(TIMM),
}


def build(node: Mapping[str, Any], classes: int) -> nn.Module:
    """Builds the model that a node names, on the CPU; published weights are not fetched.

    Args:
        node: A student or teacher node without the keys that name its weights.
        classes: Size of the output.

    Raises:
        UserError: There is no such model, or it does not take these options.
    """
    plain = {**node, "pretrained": False} if "pretrained" in node else node
    try:
        model: nn.Module = instantiate(plain, num_classes=classes, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"The model can't be built: {error.__cause__ or error}") from error
    return model


def describe_architecture(node: Mapping[str, Any], model: nn.Module, classes: int) -> dict[str, Any]:
    """Says how to build a model again.

    Args:
        node: As in :func:`build`.
        model: The model.
        classes: Size of the output.

    Returns:
        ``name`` as :func:`gda.models.create_model` takes it, ``null`` for a class of one's own;
        ``target``, the class of one's own, else ``null``; ``options``; ``classes``; ``parameters``.
    """
    named = _NAMES.get(locate(node["_target_"]))
    own = {*HYDRA_KEYS, "name", "pretrained"}
    return {
        "name": None if named is None else named(node["name"]),
        "target": node["_target_"] if named is None else None,
        "options": {key: value for key, value in node.items() if key not in own},
        "classes": classes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def weights_metadata(
    architecture: Mapping[str, Any], epoch: int | None, metrics: Mapping[str, Any]
) -> dict[str, str]:
    """Returns what a safetensors file says of its weights, as the loader of checkpoints reads it.

    Args:
        architecture: What :func:`describe_architecture` says.
        epoch: Epochs that the weights were trained for, where that is known.
        metrics: Figures by name; only numbers are kept.
    """
    figures = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {
        "architecture": str(architecture["name"] or architecture["target"]),
        "metrics": json.dumps(figures),
        **({} if epoch is None else {"epoch": str(epoch)}),
    }
