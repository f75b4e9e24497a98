"""``python -m gda.distillers``: every method that can be chosen, with what it needs and its paper."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gda.distillers.catalogue import CONF, Method, methods

COLUMNS = {"name": "method", "kind": "kind", "needs": "needs", "defaults": "defaults", "paper": "paper"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.distillers",
        description="List the methods that distiller= and plugin= take: kind, needs, defaults, paper.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a Markdown table")
    form.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--config-dir", type=Path, default=CONF, metavar="DIR", help="list another folder")
    options = parser.parse_args(arguments)
    if not (options.config_dir / "distiller").is_dir():
        parser.error(f"{options.config_dir} holds no folder distiller/")
    found = methods(options.config_dir)
    if options.json:
        print(json.dumps([dataclasses.asdict(method) for method in found], indent=2))
    elif options.markdown:
        print(markdown(found))
    else:
        table = Table(*COLUMNS.values(), title=f"{len(found)} methods")
        for method in found:
            table.add_row(*_cells(method))
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, 200)  # a pipe has no width; cut cells help nobody
        console.print(table)
    return 0


def markdown(found: Sequence[Method]) -> str:
    """Returns the listing as a Markdown table."""
    rows = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *map(_linked, found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(method: Method) -> list[str]:
    return [str(getattr(method, key)) or "–" for key in COLUMNS]


def _linked(method: Method) -> list[str]:
    *cells, paper = _cells(method)
    return [f"`{cells[0]}`", *cells[1:], f"arXiv {paper}" if paper[:4].isdigit() else paper]


if __name__ == "__main__":
    sys.exit(main())
