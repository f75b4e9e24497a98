"""Pictures of a table: accuracy per epoch, and paired differences seed by seed."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from gda.report.aggregate import Row, Table
from gda.report.spread import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too; black is plain training.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
PLAIN = "#000000"
ALIGNED_STYLES = ("--", ":", "-.")
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "legend.fontsize": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "text.parse_math": False,  # a label is a name; a dollar sign in it is no formula
}
LATE_SHARE = 1 / 3
"""Share of the epochs that the second panel enlarges: methods differ there by a fraction of a percent."""


Points = list[tuple[int, float, float]]
"""(epoch, mean, standard deviation), the latter two in percent."""
Panel = tuple[str, list[tuple[Row, Difference]]]
"""A title, and the rows with their differences in points."""


def curves_png(table: Table) -> bytes | None:
    """Draw the test figure (percent) per epoch: mean over finished seeds, band of one standard deviation.

    Runs that are tested on some epochs only are drawn through these.

    Returns:
        The picture, or None when no finished run has a curve, as a test has none.
    """
    if table.is_test:
        return None
    drawn = [(row, points) for row in table.rows if (points := _mean_curve(row))]
    return _draw(lambda: _curves(table, drawn)) if drawn else None


def _curves(table: Table, drawn: Sequence[tuple[Row, Points]]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(1, 2, (13.0, 5.4 + 0.22 * -(-len(drawn) // 3)), width_ratios=(1.0, 1.4))
    whole, late = axes
    colours = _appearance(table)
    last_epoch = max(points[-1][0] for _, points in drawn)
    start = last_epoch - max(2, round(last_epoch * LATE_SHARE))
    # Where few epochs are tested the late panel reaches back to the third last of them.
    start = min(start, sorted({epoch for _, points in drawn for epoch, _, _ in points})[-3:][0])
    for row, points in drawn:
        colour, style = colours[row.method.group]
        for panel, kept in ((whole, points), (late, [p for p in points if p[0] >= start])):
            epochs, means = [p[0] for p in kept], [p[1] for p in kept]
            name, marker = f"{row.label} (n={len(row.done)})", _marker(epochs)
            panel.plot(epochs, means, style, color=colour, linewidth=1.8, marker=marker, label=name)
            if len(row.done) > 1:
                low, high = [m - s for _, m, s in kept], [m + s for _, m, s in kept]
                panel.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
    for panel, title in ((whole, "all epochs"), (late, f"epochs {max(start, 1)} to {last_epoch}")):
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.set_ylabel(f"test {table.figure_text} (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{table.title}\nmean over n seeds, band: ± 1 standard deviation", fontsize=12)
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
    return figure


def differences_png(table: Table) -> bytes | None:
    """Draw the paired differences of last test figures (points): a dot per seed, mean and 95% interval.

    Returns:
        The picture, or None when no two rows share a finished seed.
    """
    panels: list[Panel] = []
    for baseline, title in (("twin", "vs the same with alignment=none"), ("vanilla", "vs vanilla")):
        compared = [(row, row.difference[baseline, "last"]) for row in table.rows]
        found = [(row, value) for row, value in compared if value is not None and value.n]
        if found:
            panels.append((title, found))
    return _draw(lambda: _differences(table, panels)) if panels else None


def _differences(table: Table, panels: Sequence[Panel]) -> Figure:
    heights = [len(found) + 0.6 for _, found in panels]
    size = (10.0, 2.2 + 0.55 * sum(heights))
    figure, axes = _figure(len(panels), 1, size, height_ratios=heights, sharex=True)
    for panel, (title, found) in zip(axes, panels, strict=True):
        _difference_panel(panel, found, _appearance(table))
        panel.set_title(title, loc="left")
    which = "test" if table.is_test else "last test"
    axes[-1].set_xlabel(f"difference in {which} {table.figure_text} (percentage points)")
    figure.suptitle(f"{table.title}\ndots: seeds, bar: mean and 95% Student-t interval", fontsize=12)
    return figure


def _difference_panel(
    panel: Axes, found: Sequence[tuple[Row, Difference]], colours: dict[str, tuple[str, str]]
) -> None:
    panel.axvline(0, color="#555555", linewidth=1)
    for position, (row, value) in enumerate(found):
        colour, _ = colours[row.method.group]
        # The seeds lie a little above their mean, so that neither hides the other.
        dots = list(value.by_seed.values())
        panel.plot(dots, [position - 0.2] * len(dots), "o", color=colour, markersize=5, alpha=0.6)
        assert value.mean is not None  # there is at least one pair
        fill: Literal["none", "full"] = "none" if value.n == 1 else "full"  # hollow: not a mean of anything
        panel.plot([value.mean], [position + 0.1], "D", color=colour, markersize=7, fillstyle=fill)
        if value.low is not None and value.high is not None:
            panel.plot([value.low, value.high], [position + 0.1] * 2, "-", color=colour, linewidth=2.2)
            for end in (value.low, value.high):
                panel.plot([end] * 2, [position, position + 0.2], "-", color=colour, linewidth=2.2)
    panel.set_yticks(range(len(found)), [f"{row.label} (n={value.n})" for row, value in found])
    panel.set_ylim(len(found) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)


def _mean_curve(row: Row) -> Points:
    """Return (epoch, mean, std) at the epochs that every finished seed has, in percent."""
    curves = [
        {
            epoch: figures[run.test_figure]
            for epoch, figures in run.curve.items()
            if run.test_figure in figures
        }
        for run in row.done
    ]
    shared = set.intersection(*map(set, curves)) if curves else set()
    points = []
    for epoch in sorted(epoch for epoch in shared if epoch > 0):
        values = [curve[epoch] for curve in curves]
        points.append((epoch, fmean(values), stdev(values) if len(values) > 1 else 0.0))
    return points


def _marker(epochs: Sequence[int]) -> str:
    """Mark a lone point, and epochs between which others were not tested."""
    if len(epochs) == 1:
        return "o"
    return "." if len(epochs) < epochs[-1] - epochs[0] + 1 else ""


def _appearance(table: Table) -> dict[str, tuple[str, str]]:
    """Give each method a colour; an aligned method has its twin's colour and a broken line."""
    groups = {row.method.group for row in table.rows}
    looks: dict[str, tuple[str, str]] = {}
    used, aligned = 0, Counter[str]()
    for row in table.rows:  # a twin comes before the rows that are aligned on it
        twin = row.method.twin_group
        if twin in groups and twin in looks:
            looks[row.method.group] = (looks[twin][0], ALIGNED_STYLES[aligned[twin] % len(ALIGNED_STYLES)])
            aligned[twin] += 1
        elif row.method.is_vanilla and PLAIN not in {colour for colour, _ in looks.values()}:
            looks[row.method.group] = (PLAIN, "-")
        else:
            looks[row.method.group] = (PALETTE[used % len(PALETTE)], "-" if used < len(PALETTE) else "-.")
            used += 1
    return looks


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    # Agg draws without a display; a bare Figure leaves the caller's pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    share = bool(options.pop("sharex", False))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, gridspec_kw=options)
    return figure, list(axes.flat)


def _draw(figure: Callable[[], Figure]) -> bytes:
    # Imported here: a table must not wait for a plotting library.
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure().savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
