"""Parameter names as they are in files, and as they are in the model that gets them."""

from collections.abc import Mapping

from torch import Tensor, nn

from gda.models.headless import LEFT_OUT

STUDENT = "student."
"""What distillers put before the names of the network that they train."""

WRAPPERS = ("module.", "_orig_mod.", STUDENT)
"""What ``DataParallel``, ``torch.compile`` and distillers put before a model's own names."""

ENCODER = "encoder."
"""What few-shot classifiers put before the names of the network that makes features."""

OPTIONAL = "num_batches_tracked"
"""Ends the names of counters that old files lack; batch norm needs none in evaluation."""

_MOST_WRAPPERS = 8
_COUNTERS = ("n_averaged",)  # of torch's AveragedModel, beside the weights


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what wrappers have put before all names, in whatever order they were stacked.

    A distiller's checkpoint holds its student beside its teacher and what it has learned for itself:
    where some names begin with ``student.``, the others are left out.

    Args:
        state: Weights by name.
    """
    state = {key: value for key, value in state.items() if key not in _COUNTERS}
    for _ in range(_MOST_WRAPPERS):
        prefix = next((each for each in WRAPPERS if all(key.startswith(each) for key in state)), None)
        if prefix is None and any(key.startswith(STUDENT) for key in state):
            prefix = STUDENT
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def part_for(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the part of a state dictionary that a model asks for.

    That is all of it, but for an encoder: it gets the ``encoder.`` part of a few-shot learner's weights,
    and the classifier or temperature beside it is left out; so is the head of any other model.

    Args:
        model: The model; may be on the meta device.
        state: Weights by name, as :func:`unwrapped` returns them.
    """
    names = {name for name in model.state_dict() if not name.endswith(OPTIONAL)}
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    whole, part = _without_head(model, state), _without_head(model, encoder)
    # An encoder may itself have a part called encoder: the reading that knows more of its names is meant.
    return part if len(names & part.keys()) > len(names & whole.keys()) else whole


def _without_head(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    head = getattr(model, LEFT_OUT, ())
    return {key: value for key, value in state.items() if key not in head}
