"""Composes the part of a config that says on which images, prepared how, a model is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import gda
from gda.config.check import resolved
from gda.config.faults import ConfigFaults
from gda.config.overrides import scan
from gda.config.structure import check_structure
from gda.errors import UserError
from gda.suggestions import did_you_mean

CONF = Path(gda.__file__).resolve().parents[1] / "conf"


def compose_evaluation(
    dataset: str, recipe: str, root: str | None = None, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Composes ``conf/`` with a data set and a recipe.

    Args:
        dataset: Choice of ``conf/dataset``.
        recipe: Choice of ``conf/recipe``; it says which statistics normalise and how test images are cut.
        root: Folder of the data; the config's own if null.
        settings: More overrides, e.g. ``dataset.image_size=16``.

    Returns:
        The resolved config; ``dataset`` and ``recipe`` are free of unknown keys and wrong types.

    Raises:
        UserError: A choice, key or value is wrong, or the data set has no folder.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    if not CONF.is_dir():
        raise UserError(f"There is no folder {CONF}: run this from a checkout of the project.")
    _require_choice("dataset", "data set", dataset)
    _require_choice("recipe", "recipe", recipe)
    overrides = [f"dataset={dataset}", f"recipe={recipe}", *settings]
    faults = scan(overrides, [CONF])
    if faults:
        raise ConfigFaults(faults)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose("config", overrides=overrides)
    except HydraException as error:
        raise UserError(f"The settings do not compose: {str(error).splitlines()[0]}") from error
    _set_root(config, dataset, root)
    plain = resolved(config)
    faults = [each for each in check_structure(plain) if each.where.split(".")[0] in ("dataset", "recipe")]
    if faults:
        raise ConfigFaults(faults)
    return plain


def _require_choice(group: str, what: str, choice: str) -> None:
    choices = [path.stem for path in (CONF / group).glob("*.yaml")]
    if choice not in choices:
        raise UserError(f"There is no {what} {choice!r}; {did_you_mean(choice, choices)}")


def _set_root(config: DictConfig, dataset: str, root: str | None) -> None:
    if root is not None and "root" not in list(config.dataset):
        raise UserError(f"The data set {dataset} comes with its images and has no folder: leave out --root.")
    if root is not None:
        config.dataset.root = root
    elif OmegaConf.is_missing(config.dataset, "root"):
        raise UserError(f"Name the folder of the data set {dataset} with --root FOLDER.")
