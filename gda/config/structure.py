"""Checks a config's shape: names, types and ranges, from the signatures that it calls."""

from collections.abc import Mapping
from typing import Any

from gda.config.baselines import WEIGHT_KEYS
from gda.config.faults import Fault
from gda.config.loss_nodes import ALIGNMENT_TERMS
from gda.config.schema import NESTED, Config, Weights
from gda.config.signature import TargetError, check_call, check_value, locate
from gda.distillers.schedule import Weight

# What the code adds at the call of each target; configs must not set these.
_TASK_ARGUMENTS = (
    "student",
    "teacher",
    "distiller",
    "dataset",
    "recipe",
    "train_transforms",
    "test_transforms",
    "seed",
    "device",
    "channels_last",
    "view_transforms",
    "prefix",
    "teacher_temperature",
    "has_head",
)


def check_structure(config: Mapping[str, Any]) -> list[Fault]:
    """Holds the config against the schema and every ``_target_`` against its signature; calls nothing."""
    faults = check_call("", config, Config)
    for name, schema in NESTED.items():
        if isinstance(config.get(name), Mapping):
            faults += check_call(name, config[name], schema)
    checked = {
        "dataset": ((), ()),
        "student": (("num_classes",), ()),
        "ground_truth": ((), ("name",)),
        "task": (_TASK_ARGUMENTS, ("name",)),
        "recipe.optimizer": (("params", "lr"), ()),
        "recipe.schedule": (("lr", "epochs"), ()),
    }
    nodes: list[tuple[str, Any, tuple[str, ...], tuple[str, ...]]] = [
        (path, _at(config, path), supplied, ignored) for path, (supplied, ignored) in checked.items()
    ]
    teacher = config.get("teacher")
    if isinstance(teacher, Mapping):
        faults += check_call(
            "teacher", {k: v for k, v in teacher.items() if k in Weights.__annotations__}, Weights
        )
        if teacher.get("name") is not None:
            nodes.append(("teacher", teacher, ("num_classes",), WEIGHT_KEYS))
    for path, plugin in _plugins(config):
        nodes.append((path, plugin, (), ()))
    optimizer = _at(config, "distiller.optimizer")
    if optimizer is not None:
        options = _at(config, "recipe.optimizer")
        own = optimizer if isinstance(optimizer, Mapping) else {}
        inherited = options if isinstance(options, Mapping) else {}
        known = ("params", "lr", *(key for key in inherited if key not in own))
        nodes.append(("distiller.optimizer", optimizer, known, ()))
    for path, term in _terms(config):
        if term is None and path.startswith("distiller."):
            faults.append(Fault(path, "a term can't be null", f"~{path}"))
        nodes.append((path, term, (), ("weight",)))
        if isinstance(term, Mapping):
            faults += _check_weight(f"{path}.weight", term.get("weight"))
    faults += _check_weight("distiller.ground_truth_weight", _at(config, "distiller.ground_truth_weight"))
    views = _at(config, "recipe.view_transforms")
    groups = ["recipe.train_transforms", "recipe.test_transforms"]
    groups += [f"recipe.view_transforms.{view}" for view in views] if isinstance(views, Mapping) else []
    for group in groups:
        transforms = _at(config, group)
        if isinstance(transforms, Mapping):
            nodes += [
                (f"{group}.{name}", node, (), ()) for name, node in transforms.items() if node is not None
            ]
    for path, node, supplied, ignored in nodes:
        faults += _check_target(path, node, supplied, ignored)
    # One fault for each place: what is said last says most.
    return list({fault.where: fault for fault in faults + _taken_names(config)}.values())


def _check_target(path: str, node: Any, supplied: tuple[str, ...], ignored: tuple[str, ...]) -> list[Fault]:
    if node is None:
        return []  # reported as a missing key of its parent
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return [Fault(path, "this needs a mapping with a _target_, the class or function to call")]
    try:
        target = locate(node["_target_"])
    except TargetError as error:
        return [Fault(f"{path}._target_", str(error))]
    return check_call(path, node, target, supplied=supplied, ignored=ignored)


def _check_weight(path: str, weight: Any) -> list[Fault]:
    if isinstance(weight, Mapping):
        return check_call(path, weight, Weight)
    if weight is None:
        return [
            Fault(path, "a weight is needed, a number or {value: ..., warmup_epochs: ...}", f"+{path}=1.0")
        ]
    hint = Weight.__dataclass_fields__["value"].type
    return check_value(path, weight, hint)


def _terms(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the paths and nodes of all terms, computed or not."""
    terms, alignment = _at(config, "distiller.terms"), config.get("alignment")
    nodes = []
    if isinstance(terms, Mapping):
        nodes += [(f"distiller.terms.{name}", node) for name, node in terms.items()]
    if isinstance(alignment, Mapping):
        nodes += [(f"alignment.{name}", alignment.get(name)) for name in ALIGNMENT_TERMS]
    return nodes


def _plugins(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the paths and nodes of all plug-ins."""
    plugins = _at(config, "plugin.plugins")
    return (
        [(f"plugin.plugins.{name}", node) for name, node in plugins.items()]
        if isinstance(plugins, Mapping)
        else []
    )


def _taken_names(config: Mapping[str, Any]) -> list[Fault]:
    """Refuses terms that the alignment's would replace."""
    terms, alignment = _at(config, "distiller.terms"), config.get("alignment")
    if not isinstance(terms, Mapping) or not isinstance(alignment, Mapping) or not alignment.get("enabled"):
        return []
    taken = [name for name in (*ALIGNMENT_TERMS, "ground_truth") if name in terms]
    what = "this name belongs to a term of the alignment or to the supervised term; name yours otherwise"
    return [Fault(f"distiller.terms.{name}", what, "alignment=none") for name in taken]


def _at(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
