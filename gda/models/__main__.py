"""``python -m gda.models [NAME ...]``: the zoo as a table, or everything about some models."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from gda.errors import UserError
from gda.models.registry import TIMM, zoo
from gda.models.summary import CLASSES, IMAGENET_CLASSES, ModelSummary, summarise
from gda.models.tap_descriptions import TapDescription

PIPE_WIDTH = 140

_NOTES = (
    "Stages: channels x height of a stage's last map. MACs: multiply-accumulates of one image.",
    f"Any timm model is {TIMM}<name>. python -m gda.models NAME shows what can be tapped in a model.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.models",
        description="List the models of the zoo, or show what can be tapped in some of them.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"a model of the zoo, or {TIMM}<name>; without names, the whole zoo is listed",
    )
    parser.add_argument(
        "--classes",
        type=_count,
        metavar="N",
        help=f"size of the output (default: {CLASSES}; {IMAGENET_CLASSES} for models of ImageNet)",
    )
    parser.add_argument(
        "--size",
        type=_count,
        metavar="PIXELS",
        help="height and width of the images (default: what each model was published for)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # dry passes are too short to share
    try:
        summaries, faults = _summaries(options)
    finally:
        torch.set_num_threads(threads)
    if options.json:
        print(json.dumps([dataclasses.asdict(each) for each in summaries], indent=2))
    else:
        _print(summaries, detailed=bool(options.names))
    for fault in faults:
        print(fault, file=sys.stderr)
    return UserError.exit_code if faults and options.names else 0


def _summaries(options: argparse.Namespace) -> tuple[list[ModelSummary], list[str]]:
    """Looks at the models that were asked for; returns also why some could not be."""
    summaries, faults = [], []
    for name in options.names or _by_image_size():
        try:
            summaries.append(summarise(name, options.classes, options.size))
        except UserError as error:
            faults.append(str(error))
    return summaries, faults


def _by_image_size() -> list[str]:
    """Returns the names of the zoo by image size, and within one as the families have them."""
    return sorted(zoo(), key=lambda name: zoo()[name].image_size)


def _print(summaries: Iterable[ModelSummary], detailed: bool) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)  # a pipe has no width; cut cells help nobody
    if not detailed:
        console.print(listing(summaries))
        for line in _NOTES:
            console.print(line, soft_wrap=True)
    for summary in summaries if detailed else ():
        console.print(
            f"[bold]{summary.name}[/bold]: {summary.parameters:,} parameters, {summary.macs:,} "
            f"multiply-accumulates per image of {summary.image_size}x{summary.image_size} pixels, "
            f"{summary.classes} classes",
            soft_wrap=True,
        )
        console.print(taps_table(summary))
        console.print(modules_table(summary))
        console.print()


def listing(summaries: Iterable[ModelSummary]) -> Table:
    """Returns one line per model; a line across separates image sizes."""
    table = Table(header_style="bold")
    table.add_column("model", no_wrap=True)
    for column in (
        "images",
        "classes",
        "parameters",
        "MACs",
        *(f"stage {k}" for k in (1, 2, 3, 4)),
        "pooled",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    previous: int | None = None
    for summary in summaries:
        if previous is not None and summary.image_size != previous:
            table.add_section()
        previous = summary.image_size
        stages = [summary.taps.get(f"stage{number}") for number in (1, 2, 3, 4)]
        pooled = summary.taps.get("pooled")
        table.add_row(
            summary.name,
            str(summary.image_size),
            str(summary.classes),
            f"{summary.parameters / 1e6:,.2f} M",
            f"{summary.macs / 1e6:,.1f} M",
            *("-" if stage is None else _channels_by_size(stage) for stage in stages),
            "-" if pooled is None else str(math.prod(pooled.shape)),
        )
    return table


def taps_table(summary: ModelSummary) -> Table:
    """Returns the taps that hold for every model, with where they are in this one."""
    table = Table(header_style="bold")
    for column in ("tap", "module"):
        table.add_column(column, overflow="fold")
    for column in ("shape", "stride", "activated"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, tap in summary.taps.items():
        table.add_row(
            name,
            tap.path or "(the model)",
            "x".join(map(str, tap.shape)),
            "-" if tap.stride is None else f"{tap.stride:g}",
            "yes" if tap.activated else "no",
        )
    return table


def modules_table(summary: ModelSummary) -> Table:
    """Returns the top-level modules; each path can be tapped, and so can the paths below it."""
    table = Table(header_style="bold")
    table.add_column("top-level module", overflow="fold")
    table.add_column("class")
    table.add_column("parameters", justify="right")
    for module in summary.modules:
        table.add_row(module.path, module.kind, f"{module.parameters:,}")
    return table


def _channels_by_size(tap: TapDescription) -> str:
    if len(tap.shape) == 3:
        channels, size = tap.shape[:2]
    else:
        tokens, channels = tap.shape
        size = math.isqrt(tokens - tap.prefix_tokens)
    return f"{channels}x{size}"


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
