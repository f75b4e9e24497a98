"""``python -m gda.bench [WHAT]``: measure on this machine, and print the figures."""

import argparse
import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from gda.bench import episodes, losses, sinkhorn, step, tracking
from gda.bench.timing import machine
from gda.errors import UserError

PIPE_WIDTH = 140


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.bench",
        description="Measure a training step by its parts, the Sinkhorn term against the published one, "
        "the loss of every method, few-shot evaluation from embeddings, and whether MLflow gets all that "
        "many runs log at once.",
    )
    parser.add_argument("what", nargs="?", choices=tuple(_MEASUREMENTS), help="by default step and sinkhorn")
    parser.add_argument(
        "--method", action="append", metavar="NAME", help="losses: a choice of distiller=; may be repeated"
    )
    parser.add_argument(
        "--dataset", default="digits", choices=("digits", *step.CIFAR_CLASSES), help="step: images"
    )
    parser.add_argument(
        "--student", metavar="MODEL", help="student (step: resnet8, losses: resnet8x4, episodes: convnet4)"
    )
    parser.add_argument("--teacher", metavar="MODEL", help="teacher (step: resnet8x4, losses: resnet32x4)")
    parser.add_argument("--batch", type=_count, default=64, metavar="N", help="step: images in a batch (64)")
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        metavar="BxC",
        help="sinkhorn, losses: batch x classes; episodes: images of a class x classes; may be repeated",
    )
    parser.add_argument("--device", default=None, help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads; torch's choice by default")
    parser.add_argument("--repeats", type=_count, metavar="N", help="timed turns (step: 50, others: 10)")
    parser.add_argument(
        "--processes",
        type=_count,
        default=tracking.PROCESSES,
        metavar="N",
        help="tracking: runs that log at once (16)",
    )
    parser.add_argument("--uri", help="tracking: an MLflow store; by default a new SQLite database")
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    before = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)  # a pipe has no width; cut cells help nobody
    try:
        console.print(machine(device), highlight=False)
        for what in [options.what] if options.what else ["step", "sinkhorn"]:
            _MEASUREMENTS[what](options, device, console)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        torch.set_num_threads(before)
    return 0


def _step(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    teacher, student = options.teacher or "resnet8x4", options.student or "resnet8"
    bench = step.StepBench(options.dataset, student, teacher, options.batch, device)
    times = step.measure(bench, options.repeats or 50)
    pixels = "" if options.dataset == "digits" else " (random pixels of its shape)"
    title = (
        f"Training step of kd+gda: {teacher} -> {student}, {options.dataset}{pixels}, "
        f"batch {options.batch}, float32, channels last"
    )
    console.print()
    console.print(step.step_table(times, options.batch, title))


def _sinkhorn(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    comparisons = []
    for batch, classes in options.size or sinkhorn.SIZES:
        comparisons.append(sinkhorn.compare(batch, classes, options.repeats or 10, device))
    title = "Sinkhorn term, 20 iterations, float32: this package (gda) and the published formulation"
    console.print()
    console.print(sinkhorn.sinkhorn_table(comparisons, title))
    for note in sinkhorn.NOTES:
        console.print(f"- {note}", highlight=False, soft_wrap=not console.is_terminal)


def _losses(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    pair = options.teacher or "resnet32x4", options.student or "resnet8x4"
    costs = {
        method: [
            losses.measure(method, pair, size, options.repeats or 10, device)
            for size in options.size or losses.SIZES
        ]
        for method in options.method or losses.method_names()
    }
    console.print(losses.losses_table(costs, f"Losses on the shapes of {pair[0]} -> {pair[1]}, float32"))
    for note in losses.NOTES:
        console.print(f"- {note}", highlight=False, soft_wrap=not console.is_terminal)


def _episodes(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    encoder = options.student or episodes.ENCODER
    costs = [
        cost
        for size in options.size or episodes.SIZES
        for cost in episodes.measure(encoder, size, options.repeats or 10, device)
    ]
    console.print()
    console.print(episodes.episodes_table(costs, f"Few-shot evaluation with {encoder}, frozen, float32"))
    for note in episodes.NOTES:
        console.print(f"- {note}", highlight=False, soft_wrap=not console.is_terminal)


def _tracking(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    shipped = tracking.measure(options.processes, uri=options.uri)
    title = (
        f"{shipped.processes} runs at once, {tracking.EPOCHS} epochs of {tracking.METRICS} metrics and "
        f"4 times each, into {options.uri or 'a new SQLite database'}"
    )
    console.print()
    console.print(tracking.tracking_table(shipped, title))
    for note in tracking.NOTES:
        console.print(f"- {note}", highlight=False, soft_wrap=not console.is_terminal)


_MEASUREMENTS = {
    "step": _step,
    "sinkhorn": _sinkhorn,
    "losses": _losses,
    "episodes": _episodes,
    "tracking": _tracking,
}


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _size(text: str) -> tuple[int, int]:
    batch, _, classes = text.partition("x")
    return _count(batch), _count(classes)


if __name__ == "__main__":
    sys.exit(main())
