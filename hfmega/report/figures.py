"""The figures of a model card, drawn from a lineage: the same lineage gives the same bytes.

Only matplotlib's object-oriented interface: no pyplot, no state that outlives a call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from hfmega.report import folding, wording
from hfmega.report.lineage import Interval, Lineage, NodeEntry
from hfmega.report.style import (
    FAINT,
    HEADING,
    INK,
    LOOKS,
    PAGE,
    RULE,
    WIDTH,
    fitted,
    in_lines,
    save,
    sheet,
    shortened,
    write,
)
from hfmega.report.tree_figure import tree

FITNESS: Final = "fitness.png"
TREE: Final = "tree.png"
COMPARISON: Final = "comparison.png"


@dataclass(frozen=True)
class Row:
    """A model in the comparison: accuracy on test with its 95 % interval."""

    name: str
    kind: str
    accuracy: float
    interval: Interval


def draw(lineage: Lineage, folder: Path) -> None:
    """Write the figures into a folder; a merge without a search has no `fitness.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context("default"):  # not the reader's matplotlibrc
        save(comparison(lineage), folder / COMPARISON)
        save(tree(lineage), folder / TREE)
        if searched(lineage):
            save(fitness(lineage), folder / FITNESS)


def searched(lineage: Lineage) -> bool:
    """Whether there are generations to draw."""
    return any(node.history for node in lineage.nodes)


def comparison(lineage: Lineage) -> Figure:
    """Every reference and the merged model: a dot and its interval each."""
    result = lineage.result
    rows = [Row(wording.row_name(lineage), "merged", result.accuracy, result.interval)]
    references, left_out = folding.one_by_one(lineage.references)
    rows += [Row(wording.said(r), r.kind, r.accuracy, r.interval) for r in references]
    names = [in_lines(row.name) for row in rows]
    step = 0.42 if any("\n" in name for name in names) else 0.3
    figure = sheet(WIDTH, step * len(rows) + (1.4 if left_out else 1.25))
    axes = figure.add_axes((0.5, 0.5, 0.1, 0.1))
    labels = [
        write(axes, -0.02, y, name, ha="right", transform=axes.get_yaxis_transform(), linespacing=1.05)
        for y, name in enumerate(names)
    ]
    labels[0].set_fontweight("bold")
    place(axes, left=fitted(axes, labels) + 0.4, right=0.95, top=0.55, bottom=0.85 if left_out else 0.7)
    low, high = visible(rows)
    style_comparison(axes, low, high, len(rows))
    for y, row in enumerate(rows):
        dot(axes, y, row, low)
    separate(axes, rows, low)
    title = f"Accuracy on {result.total:,} test images, with 95 % intervals"
    figure.text(0.25 / WIDTH, 1 - 0.3 / figure.get_figheight(), title, **HEADING)
    start = "the axis starts at 0" if low == 0 else f"the axis starts at {low:.3f}, not at 0"
    hidden = "" if all(row_is_visible(row, low) for row in rows) else "; models marked ◀ lie below it"
    axes.set_xlabel(start + hidden + (f"\n{left_out}" if left_out else ""), fontsize=8, color=FAINT, labelpad=6)
    return figure


def separate(axes: Axes, rows: Sequence[Row], low: float) -> None:
    """Rules between the kinds, and the merged model's interval as a band through all rows."""
    for y in range(1, len(rows)):
        if rows[y].kind != rows[y - 1].kind:
            axes.axhline(y - 0.5, color=RULE, linewidth=0.8, zorder=0)
    if row_is_visible(rows[0], low):
        axes.axvspan(*rows[0].interval, color=LOOKS["merged"][0], alpha=0.09, linewidth=0, zorder=0)


def place(axes: Axes, left: float, right: float, top: float, bottom: float) -> None:
    """Give the axes the whole figure but these margins, in inches."""
    assert axes.figure is not None
    width, height = axes.figure.get_figure().get_size_inches()  # type: ignore[union-attr]
    axes.set_position((left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height))


def heading(axes: Axes, text: str) -> None:
    """A title that begins at the left end of the axes."""
    axes.set_title(text, loc="left", pad=10, parse_math=False, **HEADING)


def visible(rows: Sequence[Row]) -> Interval:
    """The ends of the axis. A model that fell far below at least half of the others does not stretch it.

    "Far" is more than twice the span of all better models and their intervals.
    """
    ordered = sorted(rows, key=lambda row: row.accuracy, reverse=True)
    low, high = min(r.interval[0] for r in ordered), max(r.interval[1] for r in ordered)
    for kept in range(max(2, math.ceil(len(ordered) / 2)), len(ordered)):
        bottom = min(r.interval[0] for r in ordered[:kept])
        if bottom - ordered[kept].interval[1] > 2 * (high - bottom):
            low = bottom
            break
    margin = max(0.06 * (high - low), 0.002)
    return max(0.0, low - margin), min(1.0, high + margin)


def row_is_visible(row: Row, low: float) -> bool:
    return row.accuracy >= low


def style_comparison(axes: Axes, low: float, high: float, rows: int) -> None:
    axes.set_xlim(low, high)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FormatStrFormatter(f"%.{max(2, math.ceil(-math.log10((high - low) / 4)))}f"))
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)


def plain(axes: Axes) -> None:
    """Axes without a frame."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=8, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(RULE)


def dot(axes: Axes, y: int, row: Row, low: float) -> None:
    """A model's dot, interval and number; an arrow at the edge if it lies below the axis."""
    colour, marker = LOOKS[row.kind]
    merged = row.kind == "merged"
    if row_is_visible(row, low):
        axes.plot(row.interval, (y, y), color=colour, linewidth=2.4 if merged else 1.6, solid_capstyle="butt")
        hollow = {"markerfacecolor": PAGE} if row.kind == "source" else {}
        size = 7.5 if merged else 6
        axes.plot([row.accuracy], [y], marker, color=colour, markersize=size, markeredgewidth=1.5, **hollow)  # type: ignore[arg-type]
    else:
        axes.plot([0.012], [y], "<", color=colour, markersize=7, transform=axes.get_yaxis_transform(), clip_on=False)
    weight = "bold" if merged else "normal"
    number = f"{row.accuracy:.4f}"
    write(axes, 1.03, y, number, transform=axes.get_yaxis_transform(), color=colour, fontweight=weight)


def fitness(lineage: Lineage) -> Figure:
    """Best, mean and spread of the fitness of each generation; one panel for each search, of many for the last ones."""
    nodes = [node for node in lineage.nodes if node.history][-folding.MOST :]
    columns = min(2, len(nodes))
    rows = math.ceil(len(nodes) / columns)
    height = 3.4 * rows + 0.3
    figure = sheet(WIDTH, height)
    labels = {"loss": "mean loss (nats)", "ensemble": "mean divergence from the ensemble (nats)"}
    label = labels.get(lineage.settings.get("fitness", ""), "accuracy")
    images = f"{lineage.data.splits['search'].images:,} images"
    for position, node in enumerate(nodes):
        axes = figure.add_subplot(rows, columns, position + 1)
        generations(axes, node, label)
        heading(axes, f"Fitness on {images}" if len(nodes) == 1 else f"Fitness: {shortened(node.name, 28)}")
    handles, names = figure.axes[0].get_legend_handles_labels()  # below all panels, where it covers no curve
    figure.legend(handles[::-1], names[::-1], loc="lower center", ncols=3, fontsize=8, frameon=False, labelcolor=INK)
    figure.subplots_adjust(0.11, 0.85 / height, 0.965, 1 - 0.45 / height, wspace=0.28, hspace=0.5)
    return figure


def generations(axes: Axes, node: NodeEntry, label: str) -> None:
    """The lines of one search. A loss that is not finite leaves a gap."""
    count = range(1, len(node.history) + 1)
    best, mean, spread = (
        [value if math.isfinite(value) else math.nan for value in values]
        for values in zip(*((g.best, g.mean, g.spread) for g in node.history), strict=True)
    )
    lower, upper = band(mean, spread, best)
    colour, marker = LOOKS["merged"][0], "o" if len(count) <= 40 else None
    axes.fill_between(
        count,
        lower,
        upper,
        color=LOOKS["calibrated source"][0],
        alpha=0.15,
        linewidth=0,
        label="mean ± spread, up to the best",
    )
    axes.plot(
        count, mean, color=LOOKS["calibrated source"][0], linewidth=1.6, marker=marker, markersize=3, label="mean"
    )
    axes.plot(count, best, color=colour, linewidth=2, marker=marker, markersize=4, label="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, len(count) + 0.5)
    axes.set_xlabel("generation", fontsize=9, color=FAINT)
    axes.set_ylabel(label, fontsize=9, color=FAINT)
    axes.grid(color=RULE, linewidth=0.6)
    axes.ticklabel_format(axis="y", useOffset=False)
    plain(axes)


def band(mean: Sequence[float], spread: Sequence[float], best: Sequence[float]) -> tuple[list[float], list[float]]:
    """The ends of mean ± spread. No individual is better than the best, so neither end is (of losses that is below)."""
    lower = [m - s if b >= m else max(m - s, b) for m, s, b in zip(mean, spread, best, strict=True)]
    upper = [min(m + s, b) if b >= m else m + s for m, s, b in zip(mean, spread, best, strict=True)]
    return lower, upper
