"""The whole-config check: all faults at once, before anything is downloaded, allocated or submitted."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gda.config.episodes_fit import check_episodes
from gda.config.faults import ConfigFaults, Fault
from gda.config.fit import (
    Facts,
    check_batches,
    check_dataset,
    check_device,
    check_image_sizes,
    check_loss,
    check_optimizer,
    check_place,
    check_recipe,
    check_teacher_needed,
    check_tracking,
    image_size,
    size_of_test_images,
)
from gda.config.models_fit import check_models, check_tested_model
from gda.config.ranks_fit import check_ranks
from gda.config.schema import Config
from gda.config.stages import AUTO, needs_of, runs_before, tested_run, with_runs_before
from gda.config.structure import check_structure
from gda.config.weights import roles, weights_file
from gda.config.weights_fit import check_encoder_weights, check_teacher_weights
from gda.data.few_shot.listing import FewShotFacts
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
    if any(fault.where in ("task", "task._target_") for fault in faults):
        return faults  # what a config must have depends on its task
    facts = None
    if "dataset" not in broken:
        problems, facts = check_dataset(config)
        faults += problems
    if isinstance(facts, FewShotFacts) and "task" not in broken:
        faults += check_episodes(config, facts)
    faults += (_check_training if needs_of(config).trains else _check_test)(config, broken, facts)
    if not {"encoder", "dataset", "task"} & broken:
        faults += check_encoder_weights(config)
    if not {"trainer", "cluster"} & broken:
        faults += check_device(config)
    if "tracking" not in broken:
        faults += check_tracking(config["tracking"])
    if not {"study", "runs", "tracking"} & broken:
        faults += check_place(config)
    if not {"encoder", "dataset", "task"} & broken:
        faults += _check_stages_before(config, faults)
    return faults


def _check_training(config: Mapping[str, Any], broken: set[str], facts: Facts | None) -> list[Fault]:
    """Checks what a run that trains needs."""
    faults = []
    if not {"recipe", "student"} & broken:
        faults += check_recipe(config)
        if facts is not None:  # episodes take the place of batches
            sized = check_batches if needs_of(config).head else check_image_sizes
            faults += sized(config["recipe"], facts)
    if not {"recipe", "distiller"} & broken:
        faults += check_optimizer(config)
        if not {"cluster", "trainer", "task", "alignment", "dataset"} & broken:
            faults += check_ranks(config, facts)
    if not {"distiller", "alignment", "ground_truth"} & broken:
        faults += check_loss(config)
        if "teacher" not in broken:
            faults += check_teacher_needed(config)
    if not {"teacher", "dataset"} & broken:
        faults += check_teacher_weights(config)
    if not {"teacher", "student", "distiller", "plugin", "alignment", "encoder", "task"} & broken:
        size = None if facts is None or "recipe" in broken else image_size(config["recipe"], facts)[1]
        faults += check_models(config, None if facts is None else facts.classes, size)
    return faults


def _check_test(config: Mapping[str, Any], broken: set[str], facts: Facts | None) -> list[Fault]:
    """Checks what a run that only measures needs."""
    if {"student", "encoder", "recipe", "task"} & broken:
        return []
    if config["encoder"]["checkpoint"] == AUTO and not needs_of(tested_run(config)).trains:
        what = "a test learns nothing that could be tested"
        return [Fault("task.stage", what, "task@task.stage=meta_baseline")]
    faults, size = ([], None) if facts is None else size_of_test_images(config["recipe"], facts)
    return faults + check_tested_model(config, None if facts is None else facts.classes, size)


def _check_stages_before(config: Mapping[str, Any], known: Iterable[Fault]) -> list[Fault]:
    """Checks the runs that this one builds on, and names their faults by where they stand here.

    Plain training with the same recipe, as a classifier's teacher, has no faults of its own.
    """
    needs = needs_of(config)
    without = config["encoder"]["recipe"] is None and needs.trains
    if not needs.encoder or without or any(fault.where == "task.stage" for fault in known):
        return []
    said = {fault.where for fault in known}
    data_said = any(where.startswith("dataset") for where in said)
    faults: dict[str, Fault] = {}
    for role, before in runs_before(config).items():
        moved = _places(config, before, role)
        for fault in check(before):
            first, dot, rest = fault.where.partition(".")
            where = f"{moved.get(first, first)}{dot}{rest}"
            # All stages have the same data: what is wrong with it has been said.
            if where in said or where in faults or (first == "dataset" and data_said):
                continue
            who = "the run to be tested" if not needs.trains else f"the {role}, which is made first"
            shown = fault.what if first in moved else f"{fault.what} [in {who}]"
            faults[where] = Fault(where, shown, fault.fix.replace(fault.where, where))
    return list(faults.values())


def _places(config: Mapping[str, Any], before: Mapping[str, Any], role: str) -> dict[str, str]:
    """Says where the nodes of a stage before stand in a config."""
    if not needs_of(config).trains:
        return {"task": "task.stage"}
    places = {"student": role} if role == "teacher" else {}
    if before["task"]["name"] != config["task"]["name"]:
        places |= {"task": "encoder.task", "recipe": "encoder.recipe"}
    return places


def fetch_weights(configs: Iterable[Mapping[str, Any]]) -> list[Fault]:
    """Fetches the weights that configs without faults name; each file once.

    Returns:
        What could not be had. What was had must still be checked: :func:`check` again.
    """
    faults: dict[Fault, None] = {}
    for config in (each for asked in configs for each in with_runs_before(asked)):
        for role in roles(config):
            try:
                weights_file(config, role)
            except UserError as error:
                faults[Fault(f"{role}.checkpoint", str(error))] = None
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
