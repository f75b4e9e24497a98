"""From a resolved config to the parts of its run: the only place where config nodes become objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from gda.config.baselines import architecture
from gda.config.loss_nodes import active_terms, optimizer_node, plugin_nodes, weight_of
from gda.config.schema import Recipe, TrainerSettings
from gda.distillers.distiller import Distiller
from gda.models.weights.checkpoints import load_checkpoint
from gda.seeding import seeded
from gda.tasks.task import Task
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.run_folder import RunFolder
from gda.training.parameter_groups import parameter_groups
from gda.training.trainer import Trainer

Config = Mapping[str, Any]


def build_trainer(
    config: Config, folder: RunFolder, weights: Path | None, title: str, mirror: MLflowMirror | None
) -> Trainer:
    """Builds data, models, loss, optimiser and the loop around them.

    Args:
        config: The resolved config, free of faults.
        folder: Where the run is written.
        weights: File of the teacher's weights, where it has one.
        title: What the progress display calls the run.
        mirror: Told after each epoch that it is safe on disk.
    """
    settings = TrainerSettings(**config["trainer"])
    recipe = Recipe(**config["recipe"])
    seed = config["seed"]
    device = _prepare_device(settings)
    dataset = instantiate(config["dataset"], _convert_="all").load()
    classes = len(dataset.classes)
    with seeded(seed, "student"):
        student = _on(device, instantiate(config["student"], num_classes=classes, _convert_="all"), settings)
    teacher = _teacher(config, classes, weights, device, settings)
    distiller = _distiller(config).to(device)
    task_node = {key: value for key, value in config["task"].items() if key != "name"}
    # Deferred, then called: Hydra would turn dataclasses among the arguments into plain dicts.
    task: Task[Any] = instantiate(task_node, _partial_=True)(
        student=student,
        teacher=teacher,
        distiller=distiller,
        dataset=dataset,
        recipe=recipe,
        train_transforms=instantiate(recipe.train_transforms, _convert_="all"),
        test_transforms=instantiate(recipe.test_transforms, _convert_="all"),
        seed=seed,
        device=device,
        channels_last=settings.channels_last,
        view_transforms=instantiate(recipe.view_transforms, _convert_="all"),
    )
    rate = recipe.learning_rate(config["student"]["name"])
    groups = parameter_groups(task.modules.values(), recipe.decay_norm_and_bias)
    optimizer = instantiate(optimizer_node(config), _convert_="all")(groups, lr=rate)
    schedule = instantiate(recipe.schedule, lr=rate, epochs=recipe.epochs, _convert_="all")
    return Trainer(
        task,
        recipe,
        settings,
        optimizer,
        schedule,
        folder,
        seed,
        device,
        title=title,
        on_checkpoint=(lambda: None) if mirror is None else mirror.notify,
    )


def _teacher(
    config: Config, classes: int, weights: Path | None, device: torch.device, settings: TrainerSettings
) -> nn.Module | None:
    node = config["teacher"]
    if node["name"] is None:
        return None
    with seeded(node["seed"], "teacher"):
        teacher = instantiate(architecture(node), num_classes=classes, _convert_="all")
    if weights is not None:
        load_checkpoint(teacher, weights, sha256=node["sha256"], weights=node["weights"])
    return _on(device, teacher, settings)


def _distiller(config: Config) -> Distiller:
    terms = {}
    # In order of names, and each term from a stream of its own: what one term draws or where it stands
    # in a file changes no other.
    for path, node in sorted(active_terms(config).items()):
        term = {key: value for key, value in node.items() if key != "weight"}
        name = path.rpartition(".")[2]
        with seeded(config["seed"], "term", name):
            terms[name] = (instantiate(term, _convert_="all"), weight_of(path, config))
    plugins = {}
    for path, node in plugin_nodes(config).items():
        name = path.rpartition(".")[2]
        with seeded(config["seed"], "plug-in", name):
            plugins[name] = instantiate(node, _convert_="all")
    ground_truth = {key: value for key, value in config["ground_truth"].items() if key != "name"}
    return Distiller(
        instantiate(ground_truth, _convert_="all"),
        config["distiller"]["ground_truth_weight"],
        terms,
        plugins,
    )


def _on(device: torch.device, model: nn.Module, settings: TrainerSettings) -> nn.Module:
    model = model.to(device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.compile:
        model.compile()
    return model


def _prepare_device(settings: TrainerSettings) -> torch.device:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)
