"""The whole-config check: all faults at once, before anything is downloaded, allocated or submitted."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gda.config.faults import ConfigFaults, Fault
from gda.config.fit import (
    check_batches,
    check_dataset,
    check_device,
    check_loss,
    check_optimizer,
    check_place,
    check_recipe,
    check_teacher_needed,
    check_tracking,
    image_size,
)
from gda.config.models_fit import check_models
from gda.config.schema import Config
from gda.config.structure import check_structure
from gda.config.weights import weights_file
from gda.config.weights_fit import check_teacher_weights
from gda.errors import UserError


def resolved(config: DictConfig) -> dict[str, Any]:
    """Returns a composed config as plain data, interpolations resolved.

    Raises:
        ConfigFaults: Interpolations lead nowhere; all of them are named.
    """
    faults = list(_broken_interpolations(config, ""))
    if faults:
        raise ConfigFaults(faults)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    config_only = {str(key): value for key, value in plain.items() if key not in ("experiment", "sweep")}
    for node, key in ((config_only, "study"), (config_only.get("tracking"), "experiment")):
        if isinstance(node, dict) and isinstance(node.get(key), int | float):
            node[key] = str(node[key])  # a study called 2024 is a name, not a number
    return config_only


def check(config: Mapping[str, Any]) -> list[Fault]:
    """Checks a resolved config without running any of it.

    Names, types and ranges come first, from the signatures; then what the parts need of each other.

    Returns:
        All faults; empty when the config can be run on this machine.
    """
    faults = check_structure(config)
    broken = {fault.where.split(".")[0] for fault in faults}
    if any(name not in config for name in Config.__annotations__):
        return faults
    facts = None
    if "dataset" not in broken:
        problems, facts = check_dataset(config)
        faults += problems
    if not {"recipe", "student"} & broken:
        faults += check_recipe(config)
        if facts is not None:
            faults += check_batches(config["recipe"], facts)
    if not {"recipe", "distiller"} & broken:
        faults += check_optimizer(config)
    if not {"distiller", "alignment", "ground_truth"} & broken:
        faults += check_loss(config)
        if "teacher" not in broken:
            faults += check_teacher_needed(config)
    if not {"teacher", "dataset"} & broken:
        faults += check_teacher_weights(config)
    if not {"teacher", "student", "distiller", "plugin", "alignment"} & broken:
        size = None if facts is None or "recipe" in broken else image_size(config["recipe"], facts)[1]
        faults += check_models(config, None if facts is None else facts.classes, size)
    if "trainer" not in broken:
        faults += check_device(config["trainer"])
    if "tracking" not in broken:
        faults += check_tracking(config["tracking"])
    if not {"study", "runs", "tracking"} & broken:
        faults += check_place(config)
    return faults


def fetch_weights(configs: Iterable[Mapping[str, Any]]) -> list[Fault]:
    """Fetches the weights that configs without faults name; each file once.

    Returns:
        What could not be had. What was had must still be checked: :func:`check` again.
    """
    faults: dict[Fault, None] = {}
    for config in configs:
        try:
            weights_file(config)
        except UserError as error:
            faults[Fault("teacher.checkpoint", str(error))] = None
    return list(faults)


def _broken_interpolations(node: Any, path: str) -> Iterator[Fault]:
    """Finds values that lead nowhere, by their dotted path."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_missing() or node._is_none():
        return
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        where = f"{path}.{key}" if path else str(key)
        try:
            child = node._get_node(key) if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException as error:
            yield Fault(where, f"its value can't be resolved: {str(error).splitlines()[0]}")
            continue
        yield from _broken_interpolations(child, where)
