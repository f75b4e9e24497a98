"""What few-shot tasks are judged by: the accuracy with the first number of shots."""

from collections.abc import Sequence

from gda.tasks.task import Figure


def few_shot_figure(way: int, shots: Sequence[int]) -> Figure:
    """Returns the figure of episodes of ``way`` classes with the first number of shots."""
    shot = shots[0] if shots else 0  # an empty list is refused by the check
    return Figure(f"{shot}shot", f"{way}-way {shot}-shot accuracy on novel classes")
