"""The page of one finished run, ``report.md`` in its folder: what it is, what came out, from where."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.report.collect import read_run
from gda.report.figures import IMAGE_FIGURES, is_few_shot
from gda.report.records import Figures, Run, finite
from gda.report.single_few_shot import few_shot_notes, few_shot_tables
from gda.report.wording import IMAGE_NOTE, UNKNOWN, number
from gda.tracking.atomic import read_json_lines, write_text_atomic

PAGE = "report.md"

SECONDS = ("train_seconds", "evaluate_seconds", "save_seconds")
FILES = (
    ("config.yaml", "the resolved config"),
    ("run.json", "identity, code, packages, machine"),
    ("metrics.jsonl", "figures of every epoch"),
    ("timing.jsonl", "seconds of every epoch"),
    ("episodes.safetensors", "figures of every episode"),
    ("last.pt", "checkpoint of the last epoch"),
    ("best.pt", "weights of the best validation epoch"),
    ("run.log", "what was said"),
)

_log = logging.getLogger("gda.report")


def write_run_report(folder: Path) -> Path | None:
    """Write the page of a run into its folder, in one step.

    Never raises: the run is finished, and whatever keeps its page from being written (a full disk, a
    file that somebody has edited) costs a warning, not the run.

    Args:
        folder: The run folder.

    Returns:
        The page; ``None`` if it could not be written.
    """
    page = folder / PAGE
    try:
        write_text_atomic(page, run_report(folder))
    except Exception as error:
        _log.warning("The run is finished, but %s can't be written: %s", page, error)
        return None
    return page


def run_report(folder: Path) -> str:
    """Describe one finished run on a page of markdown.

    Args:
        folder: The run folder.

    Raises:
        UserError: The folder holds no readable run.
    """
    run, facts = read_run(folder)
    blocks = [
        f"# {_plain(run.method.label)}: {_plain(run.method.pair)}, seed {run.seed}\n",
        _table(("what", ""), _identity(run, facts)),
        "## Figures\n",
        *_figures(run),
        "## Time\n",
        _table(("what", ""), _time(folder)),
        "## Origin\n",
        _table(("what", ""), _origin(facts)),
        "## Files\n",
        _table(("file", "what it holds"), _files(folder)),
    ]
    return "\n".join(blocks)


def _identity(run: Run, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    method = run.method
    terms = method.distiller + (f", alignment {method.alignment}" if method.alignment != "none" else "")
    return [
        ("student", method.student),
        ("teacher", method.teacher or "none"),
        ("method", f"{terms}; ground truth: {method.ground_truth}"),
        ("data set", method.dataset),
        ("recipe", method.recipe),
        ("task", method.task),
        ("seed", str(run.seed)),
        ("study", str(facts.get("study") or UNKNOWN)),
        ("group", method.group),
        ("state", run.state if run.finished else run.progress),
        *([] if run.is_test else [("epochs", UNKNOWN if run.epochs is None else str(run.epochs))]),
    ]


def _figures(run: Run) -> list[str]:
    """Tabulate what the run's task measures, and say what it is."""
    if is_few_shot(run):
        tables = [
            f"### {heading}\n\n{_table(lines[0], lines[1:])}" for heading, lines in few_shot_tables(run)
        ]
        return [*tables, "".join(f"- {note}\n" for note in few_shot_notes(run))]
    return [_image_figures(run), "".join(f"- {note}\n" for note in _notes(run))]


def _image_figures(run: Run) -> str:
    """Tabulate the figures of teacher, last and best epoch on every split that has some."""
    rows: list[tuple[str, Figures, str]] = []
    before = run.curve.get(0, {})
    for split in ("validation", "test"):
        rows.append((f"teacher, {split}", before, f"teacher_{split}_"))
        rows.append((f"last epoch, {split}", run.last, f"{split}_"))
        if run.best is not None:
            rows.append(
                (f"best validation epoch ({run.best.get('epoch', 0):.0f}), {split}", run.best, f"{split}_")
            )
    table = [
        (name, *(_figure(figures, prefix + key, digits) for key, _, digits in IMAGE_FIGURES))
        for name, figures, prefix in rows
        if prefix + "top1" in figures
    ]
    return _table(("", *(heading for _, heading, _ in IMAGE_FIGURES)), table)


def _notes(run: Run) -> list[str]:
    if run.best is not None:
        lines = ["The best epoch was chosen on validation images; the test images selected nothing."]
    else:
        lines = ["No validation images were held out, so no epoch was chosen: the last one is the result."]
        if run.oracle is not None:
            lines.append(
                f"Oracle: {number(run.oracle)} % test top-1 at epoch {run.oracle_epoch}, the highest of all "
                "epochs. It was selected on the test set and is too high as an estimate: not a result."
            )
    lines.append(IMAGE_NOTE)
    return lines


def _time(folder: Path) -> list[tuple[str, str]]:
    # An epoch that was done again after a kill has two lines: the last one counts.
    epochs = {row["epoch"]: row for row in read_json_lines(folder / "timing.jsonl") if "epoch" in row}
    spent = {key: sum(finite(row.get(key)) or 0.0 for row in epochs.values()) for key in SECONDS}
    total = sum(spent.values())
    # Images from each epoch's own speed, so that epochs of different length weigh as they should.
    images = sum(
        (finite(row.get("images_per_second")) or 0.0) * (finite(row.get("train_seconds")) or 0.0)
        for row in epochs.values()
    )
    training = spent["train_seconds"]
    parts = ", ".join(f"{key.removesuffix('_seconds')} {value:.1f} s" for key, value in spent.items())
    return [
        ("epochs timed", str(len(epochs))),
        ("seconds", f"{total:.1f} ({parts})"),
        ("training throughput", f"{images / training:,.0f} images/s" if training > 0 else UNKNOWN),
    ]


def _origin(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    git = facts.get("git") or {}
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    versions = ", ".join(
        f"{name} {version}" for name, version in (facts.get("versions") or {}).items() if version
    )
    cpu = facts.get("cpu") or {}
    gpus = ", ".join(facts.get("gpus") or ()) or "none"
    return [
        ("git commit", f"{git['commit']}{changed}" if git.get("commit") else UNKNOWN),
        ("versions", versions or UNKNOWN),
        ("python", str(facts.get("python") or UNKNOWN)),
        ("host", str(facts.get("host") or UNKNOWN)),
        ("CPU", f"{cpu.get('model') or UNKNOWN}, {cpu.get('usable') or UNKNOWN} usable"),
        ("GPUs", gpus),
        ("teacher weights", str(facts.get("teacher_weights") or "none")),
        *([("encoder weights", str(encoder))] if (encoder := facts.get("encoder_weights")) else []),
        ("created", str(facts.get("created") or UNKNOWN)),
    ]


def _files(folder: Path) -> list[tuple[str, str]]:
    there = [(name, text) for name, text in FILES if (folder / name).exists()]
    return [*there, ("in", str(folder.absolute()))]


def _figure(figures: Figures, key: str, digits: int) -> str:
    return number(figures[key], digits) if key in figures else UNKNOWN


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(_plain(cell) for cell in line)} |\n" for line in lines)


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
