"""``python -m gda.bench [step|sinkhorn]``: measure on this machine, and print what was measured."""

import argparse
import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from gda.bench import sinkhorn, step
from gda.bench.timing import machine
from gda.errors import UserError

PIPE_WIDTH = 140


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.bench",
        description="Measure a training step by its parts, and the Sinkhorn term against the published one.",
    )
    parser.add_argument(
        "what", nargs="?", choices=("step", "sinkhorn"), help="one of the two; both by default"
    )
    parser.add_argument(
        "--dataset", default="digits", choices=("digits", *step.CIFAR_CLASSES), help="step: images"
    )
    parser.add_argument("--student", default="resnet8", metavar="MODEL", help="step: student (resnet8)")
    parser.add_argument("--teacher", default="resnet8x4", metavar="MODEL", help="step: teacher (resnet8x4)")
    parser.add_argument("--batch", type=_count, default=64, metavar="N", help="step: images in a batch (64)")
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        metavar="BxC",
        help="sinkhorn: batch x classes; may be repeated",
    )
    parser.add_argument("--device", default=None, help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads; torch's choice by default")
    parser.add_argument("--repeats", type=_count, metavar="N", help="timed turns (step: 50, sinkhorn: 10)")
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
        if options.what != "sinkhorn":
            _step(options, device, console)
        if options.what != "step":
            _sinkhorn(options, device, console)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        torch.set_num_threads(before)
    return 0


def _step(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    bench = step.StepBench(options.dataset, options.student, options.teacher, options.batch, device)
    times = step.measure(bench, options.repeats or 50)
    pixels = "" if options.dataset == "digits" else " (random pixels of its shape)"
    title = (
        f"Training step of kd+gda: {options.teacher} -> {options.student}, {options.dataset}{pixels}, "
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
