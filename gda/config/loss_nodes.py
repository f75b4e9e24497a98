"""The nodes of a config that make up the loss: terms, plug-ins, and the method's own optimiser."""

from collections.abc import Mapping
from typing import Any

ALIGNMENT_TERMS = ("fisher_rao", "sinkhorn")
"""The terms of the alignment node; no term of a distiller may have their names."""


def uses_teacher(config: Mapping[str, Any]) -> bool:
    """Says whether the loss reads the teacher; a teacher of plain training only measures fidelity."""
    return bool(active_terms(config)) or config["ground_truth"]["name"] != "labels"


def active_terms(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the nodes of the terms that are computed, by dotted path: enabled, and of weight not 0."""
    nodes = {f"distiller.terms.{name}": node for name, node in config["distiller"]["terms"].items()}
    if config["alignment"]["enabled"]:
        nodes |= {f"alignment.{name}": config["alignment"][name] for name in ALIGNMENT_TERMS}
    return {path: node for path, node in nodes.items() if weighs(node)}


def plugin_nodes(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the nodes of the plug-ins, by dotted path."""
    return {f"plugin.plugins.{name}": node for name, node in config["plugin"]["plugins"].items()}


def optimizer_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the node of the optimiser: the recipe's, or the method's own with the recipe's options."""
    recipe, own = dict(config["recipe"]["optimizer"]), config["distiller"].get("optimizer")
    return recipe if own is None else {**recipe, **own}


def weight_of(path: str, config: Mapping[str, Any]) -> Any:
    """Returns the weight of an active term as it counts: its own, times the factor of the plug-in."""
    nodes = active_terms(config)
    weight, name = nodes[path]["weight"], path.rpartition(".")[2]
    factor = config["plugin"]["weight_factors"].get(name, 1.0)
    if factor == 1.0 or not path.startswith("distiller."):
        return weight
    if isinstance(weight, Mapping):
        return {**weight, "value": weight.get("value", 1.0) * factor}
    return weight * factor


def is_aligned(config: Mapping[str, Any]) -> bool:
    """Says whether a term of the alignment counts."""
    return any(path.startswith("alignment.") for path in active_terms(config))


def weighs(term: Mapping[str, Any]) -> bool:
    """Says whether a term node has a weight other than 0."""
    weight = term.get("weight")
    return bool((weight.get("value", 1.0) if isinstance(weight, Mapping) else weight) != 0)
