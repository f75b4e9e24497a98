"""Names of the classes, where finding them out costs little."""

from collections.abc import Mapping
from typing import Any

from gda.config.signature import construct
from gda.data.few_shot.source import FewShotSource
from gda.errors import UserError

_MOST_BYTES = 2**29  # half a GiB of decoded images: CIFAR takes a third of it


def class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    """Reads the class names with the data set, in the order of the logits.

    Args:
        config: A config with a ``dataset``.
        classes: How many there must be.

    Returns:
        The names; ``None`` where the data is not at hand, has changed, or is too much to read for this.
    """
    source = construct(config["dataset"])
    try:
        if isinstance(source, FewShotSource):
            names = source.base_class_names()
            return names if len(names) == classes else None
        facts = source.facts()
        images = facts.train_size + facts.validation_size + facts.test_size
        if images * 3 * facts.image_size**2 > _MOST_BYTES:
            return None
        names = source.read()[0]
    except UserError:
        return None
    return names if len(names) == classes else None
