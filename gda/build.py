"""From a resolved config to the parts of its run: the only place where config nodes become objects."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from gda.config.baselines import architecture
from gda.config.loss_nodes import active_terms, optimizer_node, plugin_nodes, weight_of
from gda.config.schema import Recipe, TrainerSettings
from gda.config.stages import needs_of
from gda.distillers.distiller import Distiller
from gda.models.weights.checkpoints import load_checkpoint, read_checkpoint, weights_of
from gda.models.weights.meta_learner import learned_temperature
from gda.models.weights.mismatch import mismatches
from gda.ranks import rank_count
from gda.seeding import seeded
from gda.tasks.task import Task
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.run_folder import RunFolder
from gda.training.evaluation import Evaluation, Measured
from gda.training.interruption import StopRequest
from gda.training.parameter_groups import parameter_groups
from gda.training.trainer import Trainer

Config = Mapping[str, Any]


@dataclass(frozen=True)
class InputFiles:
    """Files of the weights that a run reads.

    Attributes:
        teacher: The teacher's, where it has some.
        encoder: Those that the student starts with, or that are tested.
    """

    teacher: Path | None = None
    encoder: Path | None = None


def build_run(
    config: Config,
    folder: RunFolder,
    files: InputFiles,
    title: str,
    mirror: MLflowMirror | None,
    stop: StopRequest | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Trainer | Evaluation:
    """Builds data, models, and what is done with them.

    Args:
        config: The resolved config, free of faults.
        folder: Where the run is written.
        files: The weights that it reads.
        title: What the progress display calls the run.
        mirror: Told after each epoch that it is safe on disk.
        stop: Asked after each training step whether a signal has come.
        on_step: Called after each training step.
    """
    settings = TrainerSettings(**config["trainer"])
    device = _prepare_device(settings)
    dataset = instantiate(config["dataset"], _convert_="all").load()
    on_checkpoint = (lambda: None) if mirror is None else mirror.notify
    if not needs_of(config).trains:
        task = _test(config, dataset, files, device, settings)
        return Evaluation(task, settings, folder, device, on_checkpoint)
    recipe, seed = Recipe(**config["recipe"]), config["seed"]
    trained = _task(config, dataset, files, device, settings)
    rate = recipe.learning_rate(config["student"]["name"])
    groups = parameter_groups(trained.modules.values(), recipe.decay_norm_and_bias)
    optimizer = instantiate(optimizer_node(config), _convert_="all")(groups, lr=rate)
    schedule = instantiate(recipe.schedule, lr=rate, epochs=recipe.epochs, _convert_="all")
    return Trainer(
        trained,
        recipe,
        settings,
        optimizer,
        schedule,
        folder,
        seed,
        device,
        title=title,
        on_checkpoint=on_checkpoint,
        on_step=on_step,
        stop=stop,
    )


def _task(
    config: Config, dataset: Any, files: InputFiles, device: torch.device, settings: TrainerSettings
) -> Task[Any]:
    """Builds the models and the loss, and the task that trains them."""
    recipe, seed, needs = Recipe(**config["recipe"]), config["seed"], needs_of(config)
    classes = len(dataset.classes) if needs.head else None
    with seeded(seed, "student"):
        student = instantiate(config["student"], num_classes=classes, _convert_="all")
    if settings.sync_batch_norm and rank_count() > 1:
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    if files.encoder is not None:
        node = config["encoder"]
        load_checkpoint(student, files.encoder, sha256=node["sha256"], weights=node["weights"])
    more: dict[str, Any] = {}
    if files.teacher is not None and not needs.head:
        more["teacher_temperature"] = learned_temperature(files.teacher, config["teacher"]["weights"])
    # Deferred, then called: Hydra would turn dataclasses among the arguments into plain dicts.
    task: Task[Any] = instantiate(_task_node(config), _partial_=True)(
        student=_on(device, student, settings),
        teacher=_teacher(config, classes, files.teacher, device, settings),
        distiller=_distiller(config).to(device),
        dataset=dataset,
        recipe=recipe,
        train_transforms=instantiate(recipe.train_transforms, _convert_="all"),
        test_transforms=instantiate(recipe.test_transforms, _convert_="all"),
        seed=seed,
        device=device,
        channels_last=settings.channels_last,
        view_transforms=instantiate(recipe.view_transforms, _convert_="all"),
        **more,
    )
    return task


def _test(
    config: Config, dataset: Any, files: InputFiles, device: torch.device, settings: TrainerSettings
) -> Measured:
    """Builds a student as it was trained, with its head where the weights have one, and its test."""
    assert files.encoder is not None
    recipe, node = Recipe(**config["recipe"]), config["encoder"]
    state = weights_of(read_checkpoint(files.encoder), files.encoder, node["weights"])
    student = instantiate(config["student"], num_classes=len(dataset.classes), _convert_="all")
    has_head = not mismatches(student, state)
    if not has_head:
        student = instantiate(config["student"], num_classes=None, _convert_="all")
    load_checkpoint(student, files.encoder, sha256=node["sha256"], weights=node["weights"])
    task: Measured = instantiate(_task_node(config), _partial_=True)(
        student=_on(device, student, settings),
        has_head=has_head,
        dataset=dataset,
        recipe=recipe,
        test_transforms=instantiate(recipe.test_transforms, _convert_="all"),
        device=device,
        channels_last=settings.channels_last,
    )
    return task


def _task_node(config: Config) -> dict[str, Any]:
    """Returns the task's node; the options of a tested stage are read, and call nothing."""
    node = {key: value for key, value in config["task"].items() if key != "name"}
    if "stage" in node:
        node["stage"] = {key: value for key, value in node["stage"].items() if key != "_target_"}
    return node


def _teacher(
    config: Config,
    classes: int | None,
    weights: Path | None,
    device: torch.device,
    settings: TrainerSettings,
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
    threads = settings.threads or _threads_of_job()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _threads_of_job() -> int | None:
    """Returns the CPUs that a SLURM task was given, which torch does not see; null outside of a job."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return None if given is None or "OMP_NUM_THREADS" in os.environ else int(given)
