"""Parameter names as they are in files, and as they are in the model that gets them."""

from collections.abc import Collection, Mapping

from torch import Tensor

STUDENT = "student."
"""What distillers put before the names of the network that they train."""

WRAPPERS = ("module.", "_orig_mod.", STUDENT)
"""What ``DataParallel``, ``torch.compile`` and distillers put before a model's own names."""

ENCODER = "encoder."
"""What few-shot classifiers put before the names of the network that makes features."""

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


def part_for(names: Collection[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the part of a state dictionary that a model asks for.

    That is all of it, but for an encoder: it gets the ``encoder.`` part of a few-shot classifier's
    weights, and the classifier or temperature beside it is left out.

    Args:
        names: Parameter names of the model.
        state: Weights by name, as :func:`unwrapped` returns them.
    """
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    if not encoder or any(name.startswith(ENCODER) for name in names):
        return dict(state)
    return encoder
