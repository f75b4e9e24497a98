"""``python -m gda.models.export RUN_FOLDER``: writes a finished run's student for use elsewhere."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gda.errors import UserError
from gda.interchange.architecture import build, describe_architecture, weights_metadata
from gda.interchange.class_names import class_names
from gda.interchange.eager_model import EagerModel
from gda.interchange.export_folder import require_free, write_model
from gda.interchange.finished_student import CHECKPOINTS, FinishedStudent, read_student
from gda.interchange.formats import FORMATS, CheckedFile, Format, FormatFailed, find_formats

FOLDER = "export"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. The last line printed is the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.models.export",
        description="Export the student of a finished run. Every file is checked against the model in eager "
        "mode before it is written; model.json says how to build the model and what it takes.",
        epilog="gda.models.load_exported(FOLDER) reads it back.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="e.g. runs/STUDY/NAME-GROUP/seed0")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help=f"default: RUN_FOLDER/{FOLDER}")
    parser.add_argument("--select", choices=tuple(CHECKPOINTS), default="last", help="epoch (default: last)")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), default="raw", help="or their moving average (default: raw)"
    )
    parser.add_argument(
        "--formats",
        default=",".join(FORMATS),
        metavar="NAMES",
        help="comma-separated; files of the others are removed from the folder (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        formats = find_formats(options.formats)
        student = read_student(options.run, options.select, options.weights)
        folder = options.to or options.run / FOLDER
        failed = export(student, folder, formats)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"The export can't be written: {error.strerror}: {error.filename}.", file=sys.stderr)
        return UserError.exit_code
    for failure in failed:
        print(f"{failure}.", file=sys.stderr)
    if len(failed) < len(formats):
        print(folder)
    return UserError.exit_code if failed else 0


def export(student: FinishedStudent, folder: Path, formats: Sequence[Format]) -> list[FormatFailed]:
    """Writes a student into a folder, in the formats that pass their check.

    Args:
        student: The student.
        folder: Where to.
        formats: What to write.

    Returns:
        The failures. Of a format that fails no file is left; nothing at all is written if all fail.

    Raises:
        UserError: The folder holds another model, or the student can't be built.
        OSError: A file can't be written.
    """
    origin = f"run {student.facts.get('id')}"
    require_free(folder, origin)
    model = student.model()
    node, input = student.config["student"], student.input
    architecture = describe_architecture(node, model, input.classes)
    metadata = weights_metadata(architecture, student.epoch, student.metrics)
    eager = EagerModel(model, lambda: build(node, input.classes), input, metadata)
    files: list[CheckedFile] = []
    failed: list[FormatFailed] = []
    for each in formats:
        try:
            files.append(each.checked(eager))
            print(_line(files[-1]))
        except FormatFailed as failure:
            failed.append(failure)
    if files:
        write_model(
            folder,
            files,
            origin=origin,
            architecture=architecture,
            class_names=class_names(student.config, input.classes),
            input=input,
            source=_source(student),
        )
    return failed


def _source(student: FinishedStudent) -> dict[str, object]:
    facts = student.facts
    git = facts.get("git") or {}
    return {
        "kind": "run",
        "run": facts.get("id"),
        **{key: facts.get(key) for key in ("study", "group", "seed", "label", "dataset", "recipe", "pair")},
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "checkpoint": student.checkpoint,
        "weights": student.weights,
        "epoch": student.epoch,
        "metrics": dict(student.metrics),
    }


def _line(file: CheckedFile) -> str:
    size = f"{len(file.data) / 1e6:8.2f} MB"
    if file.format.tolerance == 0:
        return f"{file.format.file:18}{size}  logits equal to the eager ones"
    return (
        f"{file.format.file:18}{size}  logits differ from the eager ones by at most "
        f"{file.deviation.largest:.1e}, {file.deviation.relative:.1e} of the largest "
        f"(allowed: {file.format.tolerance:.0e})"
    )


if __name__ == "__main__":
    sys.exit(main())
