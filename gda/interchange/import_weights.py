"""``python -m gda.models.import FILE --model NAME --dataset NAME``: takes in weights from elsewhere."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gda.config.signature import construct
from gda.data.dataset import ImageDataset
from gda.data.few_shot.source import FewShotDataset
from gda.errors import UserError
from gda.interchange.accuracy import MeasuredAccuracy, measure
from gda.interchange.architecture import build, describe_architecture, weights_metadata
from gda.interchange.eager_model import EagerModel
from gda.interchange.evaluation_config import compose_evaluation
from gda.interchange.export_folder import content_hash, require_free, write_model
from gda.interchange.formats import SafeTensors
from gda.interchange.model_card import CARD, model_card
from gda.interchange.model_input import ModelInput
from gda.models.weights.checkpoints import LoadedCheckpoint, Weights, load_checkpoint
from gda.tracking.atomic import write_text_atomic

OPTION = "model."
"""Begins the settings that are options of the model."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. The last line printed is the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.models.import",
        description="Convert a checkpoint of another code base to safetensors, with a model card. "
        "The accuracy is measured where the data set's images are at hand.",
        epilog="gda.models.load_exported(FOLDER) reads the result, and so does "
        "teacher.checkpoint=FOLDER/model.safetensors.",
    )
    parser.add_argument("file", metavar="FILE", help="path or URL of the checkpoint")
    parser.add_argument("--model", required=True, metavar="NAME", help="a zoo name, or timm/NAME")
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="what it was trained on: a choice of conf/dataset"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: weights/MODEL-DATASET")
    parser.add_argument("--root", metavar="FOLDER", help="folder of the data set (default: the config's)")
    parser.add_argument(
        "--recipe",
        default="crd",
        metavar="NAME",
        help="whose statistics and test transforms the weights expect (default: crd)",
    )
    parser.add_argument("--sha256", metavar="HEX", help="refuse a file of any other hash")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), default="raw", help="or their moving average (default: raw)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. dataset.image_size=16, or model.KEY=VALUE for an option of the model; may be repeated",
    )
    options = parser.parse_args(arguments)
    folder = options.to or Path("weights", re.sub(r"[^\w.+-]+", "_", f"{options.model}-{options.dataset}"))
    try:
        of_data = [each for each in options.set if not each.startswith(OPTION)]
        config = compose_evaluation(options.dataset, options.recipe, options.root, of_data)
        node = {"_target_": "gda.models.create_model", "name": options.model, **_options(options.set)}
        accuracy = import_weights(
            options.file,
            node,
            config,
            folder,
            sha256=options.sha256,
            weights=options.weights,
            settings=[
                f"dataset={options.dataset}",
                f"recipe={options.recipe}",
                *([] if options.root is None else [f"dataset.root={options.root}"]),
                *of_data,
            ],
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"The weights can't be written: {error.strerror}: {error.filename}.", file=sys.stderr)
        return UserError.exit_code
    print(accuracy)
    if accuracy.reason is not None and "download" in config["dataset"]:
        print("(here: --root FOLDER, or --set dataset.download=true)")
    print(folder)
    return 0


def import_weights(
    source: str,
    node: Mapping[str, Any],
    config: Mapping[str, Any],
    folder: Path,
    *,
    sha256: str | None = None,
    weights: Weights = "raw",
    settings: Sequence[str] = (),
) -> MeasuredAccuracy:
    """Converts a checkpoint and writes its model card.

    Args:
        source: Path or URL of the checkpoint.
        node: The model's node, as under ``student`` in a config.
        config: A resolved config with the data set and the recipe.
        folder: Where to.
        sha256: What the file's SHA-256 must be; null takes any.
        weights: ``raw``, or ``ema`` for the moving average.
        settings: The overrides that compose this config, for the card.

    Returns:
        What was measured.

    Raises:
        UserError: The file can't be read or does not fit, or the folder holds another model.
        OSError: A file can't be written.
    """
    input = _input(config)
    model = build(node, input.classes)
    loaded = load_checkpoint(model, source, sha256=sha256, weights=weights)
    origin = f"sha256 {loaded.sha256}"
    require_free(folder, origin)
    architecture = describe_architecture(node, model, input.classes)
    metadata = weights_metadata(architecture, loaded.epoch, loaded.metrics)
    eager = EagerModel(model.eval(), lambda: build(node, input.classes), input, metadata)
    file = SafeTensors().checked(eager)
    dataset = _dataset(config)
    names = (config["dataset"]["name"], config["recipe"]["name"])
    accuracy = (
        measure(model, dataset, config["recipe"])
        if isinstance(dataset, ImageDataset)
        else MeasuredAccuracy(*names, reason=dataset)
    )
    facts = _source(loaded)
    write_model(
        folder,
        [file],
        origin=origin,
        architecture=architecture,
        class_names=dataset.classes if isinstance(dataset, ImageDataset) else None,
        input=input,
        source=facts,
        more={"measured": asdict(accuracy)},
    )
    card = model_card(folder, architecture, asdict(input), facts, accuracy, content_hash(file.data), settings)
    write_text_atomic(folder / CARD, card)
    return accuracy


def _source(loaded: LoadedCheckpoint) -> dict[str, Any]:
    return {
        "kind": "file",
        "source": loaded.source,
        "format": loaded.format,
        "sha256": loaded.sha256,
        "weights": "ema" if loaded.ema else "raw",
        "epoch": loaded.epoch,
        "metrics": loaded.metrics,
    }


def _dataset(config: Mapping[str, Any]) -> ImageDataset | str:
    """Reads the data set, or says why it can't be read."""
    try:
        dataset = construct(config["dataset"]).load()
    except UserError as error:
        return str(error)
    if isinstance(dataset, FewShotDataset):
        if dataset.base_test is None:
            return "no images of the base classes are held out; --set dataset.base_test=0.1 holds some out"
        return dataset.base_classification()
    assert isinstance(dataset, ImageDataset)
    return dataset


def _input(config: Mapping[str, Any]) -> ModelInput:
    known = ModelInput.from_config(config)
    if known is None:
        problems = "; ".join(construct(config["dataset"]).problems())
        raise UserError(
            f"How many classes the data set {config['dataset']['name']} has can't be known: {problems}."
        )
    return known


def _options(settings: Sequence[str]) -> dict[str, Any]:
    """Reads the options of the model among the settings; values are YAML, as in a config.

    Raises:
        UserError: One is not of the form ``model.KEY=VALUE``, or its value is no YAML.
    """
    options = {}
    for setting in settings:
        if not setting.startswith(OPTION):
            continue
        key, equals, value = setting.removeprefix(OPTION).partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set {setting} is not of the form {OPTION}KEY=VALUE.")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting}: {value!r} is no value as YAML writes it.") from error
    return options


if __name__ == "__main__":
    sys.exit(main())
