"""What a task needs, said where the check of a config can read it without building anything."""

from dataclasses import dataclass

from gda.data.source import ImageSource


@dataclass(frozen=True)
class TaskNeeds:
    """What a task is built from. The check of a config asks before anything is built.

    Attributes:
        source: Kind of data set that it takes.
        head: Whether its models have a head for the classes of the data set; else they are encoders.
        encoder: Whether the student starts from an encoder that was trained before.
        logits_only: Whether only terms can serve it that compare logits of one batch.
        trains: False where a finished student is measured and nothing is learned.
        makes: What it trains, where another run builds on that.
        teacher_options: Its own options that say nothing where no teacher guides the student.
    """

    source: type
    head: bool = True
    encoder: bool = False
    logits_only: bool = False
    trains: bool = True
    makes: str = "teacher"
    teacher_options: tuple[str, ...] = ()


CLASSIFICATION = TaskNeeds(source=ImageSource)
"""What classification needs, and a user's own task that says nothing else."""
