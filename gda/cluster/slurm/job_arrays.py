"""How runs become jobs, and jobs become job arrays: what is submitted, and in which order."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gda.cluster.plan import Plan, PlannedRun

Item = TypeVar("Item")


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted together.

    Attributes:
        study: The study in whose sweep folder they are written down.
        jobs: The runs of each job.
        needs: Folders of unfinished runs that must be done before any of them starts.
    """

    study: Path
    jobs: tuple[tuple[PlannedRun, ...], ...]
    needs: tuple[Path, ...] = ()

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs of its jobs."""
        return [run for job in self.jobs for run in job]

    @property
    def makes_inputs(self) -> bool:
        """Whether other runs build on its runs."""
        return any(run.needed for run in self.runs)


def arrays_of(
    plan: Plan,
    runs: Sequence[PlannedRun],
    waiting: Collection[Path],
    side_by_side: int = 1,
    largest: int = 1000,
) -> list[JobArray]:
    """Divides runs into job arrays.

    Runs that wait for the same others share an array. Where several runs go side by side in a job, the
    jobs are as few as can be: what is left over of such groups shares jobs, which wait for all that any
    of their runs needs.

    Args:
        plan: The plan that the runs are part of.
        runs: The runs to submit, each behind those that it needs.
        waiting: Folders of unfinished runs that are in the queue already.
        side_by_side: Runs of one job that go on at once; a job gets so many at most.
        largest: Most jobs of one array.

    Returns:
        The arrays, each behind those that make what it needs.
    """
    unfinished = {run.folder for run in runs} | set(waiting)
    studies = plan.studies_of_runs()
    levels: dict[tuple[int, Path], list[PlannedRun]] = {}
    depths: dict[Path, int] = {}
    for run in runs:
        depths[run.folder] = max((depths[folder] + 1 for folder in run.needs if folder in depths), default=0)
        # Cells stand behind all inputs: a job of cells never holds up another.
        level = depths[run.folder] if run.needed else len(runs)
        levels.setdefault((level, studies[run.folder]), []).append(run)
    arrays = []
    for (_, study), members in sorted(levels.items(), key=lambda item: item[0][0]):
        by_needs: dict[tuple[Path, ...], list[tuple[PlannedRun, ...]]] = {}
        for job in _packed(members, unfinished, side_by_side):
            below = [folder for run in job for folder in _unfinished_needs(run, unfinished)]
            by_needs.setdefault(tuple(dict.fromkeys(below)), []).append(job)
        for needs, jobs in by_needs.items():
            arrays += [JobArray(study, part, needs) for part in _parts(jobs, largest)]
    return arrays


def _packed(
    runs: Iterable[PlannedRun], unfinished: Collection[Path], side_by_side: int
) -> list[tuple[PlannedRun, ...]]:
    groups: dict[tuple[Path, ...], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(_unfinished_needs(run, unfinished), []).append(run)
    jobs: list[tuple[PlannedRun, ...]] = []
    left: list[PlannedRun] = []
    for group in groups.values():
        whole = len(group) - len(group) % side_by_side
        jobs += _parts(group[:whole], side_by_side)
        left += group[whole:]
    return [*jobs, *_parts(left, side_by_side)]


def _unfinished_needs(run: PlannedRun, unfinished: Collection[Path]) -> tuple[Path, ...]:
    return tuple(folder for folder in run.needs if folder in unfinished)


def _parts(items: Sequence[Item], size: int) -> Iterator[tuple[Item, ...]]:
    return (tuple(items[start : start + size]) for start in range(0, len(items), size))
