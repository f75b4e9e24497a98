"""Runs near a path that is the folder of none: below it, above it, or behind a slip of the keyboard."""

from pathlib import Path

from gda.suggestions import did_you_mean, near
from gda.tracking.run_folder import RunFolder


def near_runs(path: Path) -> str | None:
    """Says, as a sentence, which runs are near a path; ``None`` where there are none.

    Args:
        path: A path that is no run folder; it may not exist.
    """
    below = sorted(found.parent for found in [*path.glob("seed*/run.json"), *path.glob("*/seed*/run.json")])
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"It holds runs; name one: {', '.join(map(str, below[:3]))}{more}."
    above = next((each for each in path.absolute().parents if (each / "run.json").is_file()), None)
    if above is not None:
        return f"Did you mean {RunFolder(above)}?"
    return None if path.exists() else _near_name(path.absolute())


def _near_name(path: Path) -> str | None:
    """Says what looks like the first part of a path that is not there."""
    parent = next((each for each in path.parents if each.is_dir()), Path("/"))
    wrong = path.relative_to(parent).parts[0]
    there = [each.name for each in parent.iterdir()]
    return f"{parent} has no {wrong!r}; {did_you_mean(wrong, there)}" if near(wrong, there) else None
