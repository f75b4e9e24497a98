"""Whether something is held out that the best epoch can be chosen on."""

from collections.abc import Mapping
from typing import Any

from gda.config.signature import construct
from gda.data.few_shot.listing import FewShotFacts
from gda.data.source import DatasetFacts


def holds_out(config: Mapping[str, Any]) -> bool:
    """Says whether there are validation images, or classes to draw validation episodes from.

    Args:
        config: The resolved config. Where the data set can't say yet, its share of validation images counts.
    """
    source = construct(config["dataset"])
    facts = source.known_facts() if source.problems() else source.facts()
    if isinstance(facts, FewShotFacts):
        return facts.validation is not None
    if isinstance(facts, DatasetFacts):
        return facts.validation_size > 0
    return bool(config["dataset"].get("validation"))
