"""The typed root of a config: every node that is not a ``_target_`` of its own.

The check holds the composed config against these dataclasses, ranges included; the code reads the
config through them, so that no key is spelled out twice. Defaults stand in ``conf/``, not here,
with one exception: fields with a default may be left out of a config.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from gda.ranges import NonNegative, Positive, Range

Node = Mapping[str, Any]
"""A node with a ``_target_``: its signature is its schema."""


@dataclass(frozen=True)
class Recipe:
    """How a student is trained; recipes are never mixed in one table.

    Attributes:
        name: The recipe's name.
        epochs: Length of training.
        batch_size: Global batch in images.
        evaluation_batch_size: Images at a time in evaluation; changes no result.
        drop_last: Whether an incomplete last batch of an epoch is left out.
        label_smoothing: Of the supervised term, with labels.
        validation: Share of the training images that is held out; ``dataset.validation`` follows it.
        statistics: Which published rounding of the data set's mean and std is used.
        lr: Peak learning rate; null takes it from ``lr_by_model``.
        lr_by_model: Learning rates by the student's zoo name, and ``default`` for all others.
        optimizer: A torch or timm optimiser, ``_partial_``, without its learning rate.
        decay_norm_and_bias: Whether weight decay reaches 1-D parameters (norms and biases).
        gradient_clip: Largest allowed global gradient norm; null for none.
        schedule: A schedule of :mod:`gda.training.schedules`.
        train_transforms: Named transforms of training images, applied in order; null leaves one out.
        test_transforms: Named transforms of validation and test images.
        view_transforms: Further views of training images that a method may ask for, by name: named
            transforms, applied after ``train_transforms``.
        last_epoch_without_augmentation: Whether the last epoch trains on images that are only resized.
    """

    name: str
    epochs: Annotated[int, Range(minimum=1)]
    batch_size: Annotated[int, Range(minimum=1)]
    evaluation_batch_size: Annotated[int, Range(minimum=1)]
    drop_last: bool
    label_smoothing: Annotated[float, Range(minimum=0, below=1)]
    validation: Annotated[float, Range(minimum=0, below=1)]
    statistics: str
    lr: Annotated[float, Positive] | None
    lr_by_model: Mapping[str, Annotated[float, Positive]]
    optimizer: Node
    decay_norm_and_bias: bool
    gradient_clip: Annotated[float, Positive] | None
    schedule: Node
    train_transforms: Mapping[str, Node | None] = field(default_factory=dict)
    test_transforms: Mapping[str, Node | None] = field(default_factory=dict)
    view_transforms: Mapping[str, Mapping[str, Node | None]] = field(default_factory=dict)
    last_epoch_without_augmentation: bool = False

    def learning_rate(self, student: str) -> float:
        """Returns the peak learning rate for a student."""
        return learning_rate(self.lr, self.lr_by_model, student)


@dataclass(frozen=True)
class TrainerSettings:
    """How the loop runs, whatever it trains.

    Attributes:
        device: ``auto`` takes the first GPU, else the CPU.
        precision: Autocast type of the forward passes; losses and alignment stay in float32.
        ema_decay: Decay of the exponential moving average of the student; null for none.
        channels_last: Memory format of images and convolutions.
        compile: Whether teacher and student are compiled with ``torch.compile``.
        deterministic: Whether CUDA kernels must be deterministic (slower); CPU runs always are.
        threads: CPU threads; null leaves torch's choice.
        finite_check_every: Steps between two looks at the losses; a GPU waits at each look.
        accumulation: Parts that a process takes its share of a batch in: memory for time. Batch statistics
            and terms that compare images see one part at a time.
        sync_batch_norm: Whether batch norm normalises with the statistics of all processes (GPUs only).
            Without it each process has its own, and running statistics are averaged once an epoch.
        find_unused_parameters: Whether DDP looks for parameters that a loss does not reach, at each step.
    """

    device: str
    precision: Literal["float32", "bfloat16", "float16"]
    ema_decay: Annotated[float, Range(above=0, below=1)] | None
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: Annotated[int, Range(minimum=1)] | None
    finite_check_every: Annotated[int, Range(minimum=1)]
    accumulation: Annotated[int, Range(minimum=1)] = 1
    sync_batch_norm: bool = False
    find_unused_parameters: bool = False


@dataclass(frozen=True)
class Weights:
    """Where a teacher's weights come from; the rest of the teacher node is its architecture.

    Attributes:
        name: Zoo name; null means no teacher.
        checkpoint: A file, a run folder, a URL, ``mlflow:<run id>``, ``auto`` (a run with the same data
            and recipe, made once and shared) or null (only with pretrained weights of the architecture
            itself).
        checkpoint_select: Which state of a run is the teacher.
        weights: Whether the trained weights are taken or their moving average, where a file holds both.
        sha256: What the file's SHA-256 must be; null takes any.
        seed: Seed of the ``auto`` run, independent of the student's.
    """

    name: str | None
    checkpoint: str | None
    checkpoint_select: Literal["last", "best"]
    weights: Literal["raw", "ema"]
    sha256: str | None
    seed: Annotated[int, NonNegative]


@dataclass(frozen=True)
class EncoderSettings:
    """Where the weights come from that a student starts with, or that are tested.

    Attributes:
        name: The choice's name.
        checkpoint: As of a teacher. ``auto`` names the stage before: a classifier of the student's own
            architecture for a meta-learner, and the run itself for its test.
        checkpoint_select: Which state of a run is taken.
        weights: Whether the trained weights are taken or their moving average, where a file holds both.
        sha256: What the file's SHA-256 must be; null takes any.
        seed: Seed of the ``auto`` classifier; null takes the run's own.
        recipe: How the ``auto`` classifier is trained; null where there is no stage before.
        task: Its task; null where there is no stage before.
    """

    name: str
    checkpoint: str | None
    checkpoint_select: Literal["last", "best"]
    weights: Literal["raw", "ema"]
    sha256: str | None
    seed: Annotated[int, NonNegative] | None
    recipe: Mapping[str, Any] | None
    task: Mapping[str, Any] | None


@dataclass(frozen=True)
class DistillerSettings:
    """The base method: a weighted supervised term and named, weighted terms.

    Attributes:
        name: The method's name.
        ground_truth_weight: Weight of the supervised term.
        terms: Named term nodes, each with a ``_target_``, a ``weight`` and the term's arguments.
        optimizer: An optimiser that takes the place of the recipe's SGD, and gets its options.
    """

    name: str
    ground_truth_weight: float | Mapping[str, Any]
    terms: Mapping[str, Node]
    optimizer: Node | None = None


@dataclass(frozen=True)
class PluginSettings:
    """What changes the logits or the temperature that the terms of a method see.

    Attributes:
        name: The choice's name.
        weight_factors: Factors on the weights of the method's terms, by name; others keep theirs.
        plugins: Named plug-in nodes; the first is the outermost.
    """

    name: str
    weight_factors: Mapping[str, Annotated[float, Positive]]
    plugins: Mapping[str, Node]


@dataclass(frozen=True)
class AlignmentSettings:
    """The GDA terms, added to any distiller; the same keys in every choice.

    Attributes:
        name: The choice's name.
        enabled: Whether the terms are added at all.
        fisher_rao: Term node of the Fisher-Rao term.
        sinkhorn: Term node of the Sinkhorn term.
    """

    name: str
    enabled: bool
    fisher_rao: Node
    sinkhorn: Node


@dataclass(frozen=True)
class Tracking:
    """Where runs are mirrored to.

    Attributes:
        name: The choice's name.
        enabled: Whether runs are mirrored into MLflow.
        uri: Tracking server; null for a SQLite database beside the runs.
        experiment: MLflow experiment.
    """

    name: str
    enabled: bool
    uri: str | None
    experiment: str


@dataclass(frozen=True)
class ClusterSettings:
    """Where runs go, and what a job of theirs asks for; the same keys in every choice.

    Attributes:
        name: The choice's name.
        nodes: Nodes of one run.
        ranks_per_node: Processes of one run on each node.
        side_by_side: Runs that go on at once: in one allocation, or on this machine.
        partition: SLURM's partition, or several with commas between; null leaves the choice to SLURM.
        account: SLURM's account.
        qos: SLURM's quality of service.
        timeout_min: Time limit of a job in minutes.
        gpus_per_node: GPUs of a job on each of its nodes.
        cpus_per_task: CPUs of each process.
        mem_gb: Memory of a job on each of its nodes, in GB.
        array_parallelism: Most jobs of one array that run at a time.
        signal_delay_s: Seconds before the time limit at which a job is told to save.
        max_requeues: How often a job that reaches its time limit comes back.
        setup: Shell lines before the job.
        sbatch: Any other flags of sbatch, without their dashes.
        wait: Whether the command stays until all is over.
        allow_changed_code: Whether a queued job runs code that has changed since it was submitted.
    """

    name: str
    nodes: Annotated[int, Range(minimum=1)]
    ranks_per_node: Annotated[int, Range(minimum=1)]
    side_by_side: Annotated[int, Range(minimum=1)]
    partition: str | int | None
    account: str | int | None
    qos: str | int | None
    timeout_min: Annotated[int, Range(minimum=1)]
    gpus_per_node: Annotated[int, NonNegative]
    cpus_per_task: Annotated[int, Range(minimum=1)]
    mem_gb: Annotated[float, Positive] | None
    array_parallelism: Annotated[int, Range(minimum=1)]
    signal_delay_s: Annotated[int, NonNegative]
    max_requeues: Annotated[int, NonNegative]
    setup: Sequence[str]
    sbatch: Mapping[str, str | int | float | bool | None] | None
    wait: bool
    allow_changed_code: bool


@dataclass(frozen=True)
class Config:
    """The root of a composed config.

    Attributes:
        study: Folder of runs that one report compares.
        seed: Seeds the student, the data order, the augmentation and the terms.
        check: Check everything, run nothing.
        runs: Folder of all run folders.
        dataset: The data set, a ``_target_`` of :mod:`gda.data`.
        teacher: Architecture and weights of the teacher.
        student: Architecture of the student.
        encoder: The weights that the student starts with.
        distiller: The base method.
        plugin: What changes the logits that it sees.
        alignment: The GDA terms.
        ground_truth: What the supervised term learns from.
        recipe: How the student is trained.
        task: What a step and an evaluation mean.
        trainer: How the loop runs.
        tracking: Where runs are mirrored to.
        cluster: Where the work runs.
        report: Whether the study's report is printed and written when the run is finished.
    """

    study: str
    seed: Annotated[int, NonNegative]
    check: bool
    report: bool
    runs: str
    dataset: Node
    teacher: Node
    student: Node
    encoder: Node
    distiller: Node
    plugin: Node
    alignment: Node
    ground_truth: Node
    recipe: Node
    task: Node
    trainer: Node
    tracking: Node
    cluster: Node


def learning_rate(lr: float | None, by_model: Mapping[str, float], student: str) -> float:
    """Returns the peak learning rate: the one given, else the table's for this student.

    Raises:
        KeyError: There is neither.
    """
    return float(lr if lr is not None else by_model[student if student in by_model else "default"])


NESTED = {
    "recipe": Recipe,
    "trainer": TrainerSettings,
    "encoder": EncoderSettings,
    "distiller": DistillerSettings,
    "plugin": PluginSettings,
    "alignment": AlignmentSettings,
    "tracking": Tracking,
    "cluster": ClusterSettings,
}
"""Nodes with a dataclass of their own."""
