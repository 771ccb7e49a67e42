"""The figures of a model card, drawn from a lineage: the same lineage gives the same bytes.

Only matplotlib's object-oriented interface: no pyplot, no state that outlives a call.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from hfmega.lineage import Interval, Lineage, NodeEntry, SourceEntry
from hfmega.paper import FIGURE2

FITNESS: Final = "fitness.png"
TREE: Final = "tree.png"
COMPARISON: Final = "comparison.png"

DPI: Final = 160
WIDTH: Final = 8.0  # inches: about the column of a model page, so that 9 points stay 9 points
PAGE: Final = "#fbfbf9"  # opaque, or the dark ink would vanish on a dark page
INK: Final = "#1f2328"
FAINT: Final = "#59636e"
RULE: Final = "#d8dce1"
HEADING: Final[dict[str, Any]] = {"fontsize": 10, "color": INK, "fontweight": "bold"}
NAME_WIDTH: Final = 48  # characters in a line

# Colour and marker of a kind; the colours are Okabe and Ito's, which the colour-blind can tell apart.
LOOKS: Final = {
    "merged": ("#d55e00", "D"),
    "source": ("#6e7781", "o"),
    "calibrated source": ("#0072b2", "o"),
    "average": ("#a97800", "s"),
    "ensemble": ("#8e4585", "^"),
}


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


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the version of matplotlib in it."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def sheet(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAGE)
    FigureCanvasAgg(figure)
    return figure


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> Any:
    """Text as it is: a dollar sign starts no formula, a character that the font lacks is a question mark."""
    shown = "".join(c if c == "\n" or ord(c) in characters() else "?" for c in text)
    return axes.text(x, y, shown, parse_math=False, **{"fontsize": 9, "color": INK, "va": "center", **style})


@cache
def characters() -> frozenset[int]:
    """What the font that comes with matplotlib can write."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def fitted(axes: Axes, texts: Sequence[Any], limit: float = 3.4) -> float:
    """The width of the widest text in inches; texts that are wider than the limit shrink."""

    def widest() -> float:
        renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        return max(float(text.get_window_extent(renderer).width) for text in texts) / DPI

    shrink = min(1.0, limit / widest())
    if shrink < 1.0:
        for text in texts:
            text.set_fontsize(text.get_fontsize() * shrink)
    return widest()


def shortened(text: str, width: int = NAME_WIDTH) -> str:
    """A text cut in its middle: names of checkpoints differ at both ends."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def in_lines(name: str) -> str:
    """A name in one line or two, broken behind a separator where there is one."""
    name = " ".join(name.split())
    if len(name) <= NAME_WIDTH:
        return name
    breaks = [i + 1 for i, c in enumerate(name) if c in "/-_ " and i < NAME_WIDTH and len(name) - i - 1 <= NAME_WIDTH]
    owner = name.find("/") + 1
    middle = owner if owner in breaks else breaks[-1] if breaks else min(NAME_WIDTH, len(name) // 2)
    return f"{shortened(name[:middle].rstrip())}\n{shortened(name[middle:])}"


def comparison(lineage: Lineage) -> Figure:
    """Every reference and the merged model: a dot and its interval each."""
    result = lineage.result
    rows = [Row("merged", "merged", result.accuracy, result.interval)]
    rows += [Row(r.name, r.kind, r.accuracy, r.interval) for r in lineage.references]
    names = [in_lines(row.name) for row in rows]
    step = 0.42 if any("\n" in name for name in names) else 0.3
    figure = sheet(WIDTH, step * len(rows) + 1.25)
    axes = figure.add_axes((0.5, 0.5, 0.1, 0.1))
    labels = [
        write(axes, -0.02, y, name, ha="right", transform=axes.get_yaxis_transform(), linespacing=1.05)
        for y, name in enumerate(names)
    ]
    labels[0].set_fontweight("bold")
    place(axes, left=fitted(axes, labels) + 0.4, right=0.95, top=0.55, bottom=0.7)
    low, high = visible(rows)
    style_comparison(axes, low, high, len(rows))
    for y, row in enumerate(rows):
        dot(axes, y, row, low)
    separate(axes, rows, low)
    title = f"Accuracy on {result.total:,} test images, with 95 % intervals"
    figure.text(0.25 / WIDTH, 1 - 0.3 / figure.get_figheight(), title, **HEADING)
    start = "the axis starts at 0" if low == 0 else f"the axis starts at {low:.3f}, not at 0"
    hidden = "" if all(row_is_visible(row, low) for row in rows) else "; models marked ◀ lie below it"
    axes.set_xlabel(start + hidden, fontsize=8, color=FAINT, labelpad=6)
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
    """Best, mean and spread of the fitness of each generation; one panel for each search."""
    nodes = [node for node in lineage.nodes if node.history]
    columns = min(2, len(nodes))
    rows = math.ceil(len(nodes) / columns)
    height = 3.4 * rows
    figure = sheet(WIDTH, height)
    label = "mean loss (nats)" if lineage.settings.get("fitness") == "loss" else "accuracy"
    images = f"{lineage.data.splits['search'].images:,} images"
    for position, node in enumerate(nodes):
        axes = figure.add_subplot(rows, columns, position + 1)
        generations(axes, node, label)
        heading(axes, f"Fitness on {images}" if len(nodes) == 1 else f"Fitness: {shortened(node.name, 28)}")
    figure.subplots_adjust(0.11, 0.55 / height, 0.965, 1 - 0.45 / height, wspace=0.28, hspace=0.5)
    return figure


def generations(axes: Axes, node: NodeEntry, label: str) -> None:
    """The lines of one search. A loss that is not finite leaves a gap."""
    count = range(1, len(node.history) + 1)
    best, mean, spread = (
        [value if math.isfinite(value) else math.nan for value in values]
        for values in zip(*((g.best, g.mean, g.spread) for g in node.history), strict=True)
    )
    lower, upper = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    colour, marker = LOOKS["merged"][0], "o" if len(count) <= 40 else None
    axes.fill_between(
        count, lower, upper, color=LOOKS["calibrated source"][0], alpha=0.15, linewidth=0, label="mean ± spread"
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
    axes.legend(loc="best", fontsize=8, facecolor=PAGE, edgecolor=RULE, labelcolor=INK, reverse=True)


def draw_best_fitness(runs: Mapping[tuple[str, str], Sequence[Lineage]], path: Path) -> None:
    """The paper's Figure 2: a panel for each (network, protocol), a line for each search, the paper's ends dashed."""
    columns = min(3, len(runs))
    rows = math.ceil(len(runs) / columns)
    height = 2.9 * rows
    with matplotlib.style.context("default"):
        figure = sheet(3.4 * columns, height)
        for position, ((network, protocol), searches) in enumerate(runs.items()):
            axes = figure.add_subplot(rows, columns, position + 1)
            heading(axes, f"{network}, {protocol}")
            for made in searches:
                best = [generation.best for generation in made.nodes[-1].history]
                axes.plot(range(1, len(best) + 1), best, color=LOOKS["merged"][0], marker="o", markersize=3, alpha=0.8)
            for printed in FIGURE2.get(network, ()):
                axes.axhline(printed, color=FAINT, linestyle="--", linewidth=1)
            axes.set_xlabel("generation", fontsize=9, color=FAINT)
            axes.set_ylabel("best fitness", fontsize=9, color=FAINT)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%.4f"))
            axes.grid(color=RULE, linewidth=0.6)
            plain(axes)
        figure.subplots_adjust(
            0.62 / columns / 3.4 * 1.15, 0.55 / height, 0.98, 1 - 0.45 / height, wspace=0.35, hspace=0.5
        )
        save(figure, path)


@dataclass(frozen=True)
class Box:
    """A model in the tree: where its box begins and ends, and at what height, in inches."""

    left: float
    right: float
    y: float


COEFFICIENT: Final = 0.85  # inches between a source's box and its line, for the coefficient
NODE: Final = 1.75
GAP: Final = 1.1


def tree(lineage: Lineage) -> Figure:
    """The sources with their accuracies and their coefficients in the final recipe, and what was merged of them."""
    order = leaf_order(lineage)
    labels = [in_lines(lineage.sources[k].name) for k in order]
    step = 0.74 if any("\n" in label for label in labels) else 0.58
    depths = node_depths(lineage)
    height = max(step * len(order), 1.5) + 0.4
    figure = sheet(WIDTH + (NODE + GAP) * (max(depths.values()) - 1), height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(0, height)
    top = height / 2 + step * (len(order) - 1) / 2
    leaves = draw_sources(axes, lineage, order, labels, [top - step * row for row in range(len(order))], step)
    draw_nodes(axes, lineage, leaves, depths)
    return figure


def inputs_of(lineage: Lineage, node: NodeEntry) -> list[str | int]:
    """A node's inputs: sources by their number, nodes by their name. The only node has all sources."""
    if len(lineage.nodes) == 1:
        return list(range(len(lineage.sources)))
    numbers = {source.name: k for k, source in enumerate(lineage.sources)}
    return [numbers.get(name, name) for name in node.inputs]


def leaf_order(lineage: Lineage) -> list[int]:
    """The sources from top to bottom, so that the lines of a tree do not cross."""
    nodes = {node.name: node for node in lineage.nodes}

    def below(member: str | int) -> list[int]:
        if isinstance(member, int):
            return [member]
        return [leaf for child in inputs_of(lineage, nodes[member]) for leaf in below(child)]

    return list(dict.fromkeys([*below(lineage.nodes[-1].name), *range(len(lineage.sources))]))


def node_depths(lineage: Lineage) -> dict[str, int]:
    """The column of each node: one more than the deepest of its inputs. Nodes come after their inputs."""
    depths: dict[str | int, int] = {}
    for node in lineage.nodes:
        depths[node.name] = 1 + max(depths.get(member, 0) for member in inputs_of(lineage, node))
    return {str(name): depth for name, depth in depths.items()}


def draw_sources(
    axes: Axes, lineage: Lineage, order: Sequence[int], labels: Sequence[str], heights: Sequence[float], step: float
) -> dict[str | int, Box]:
    """A box for each source, all as wide as the widest text, and its coefficient beside it."""
    texts = []
    for k, label, y in zip(order, labels, heights, strict=True):
        texts.append(write(axes, 0.4, y + 0.1, label, linespacing=1.05))
        texts.append(
            write(
                axes, 0.4, y - (0.17 if "\n" in label else 0.11), said_of(lineage.sources[k]), fontsize=8, color=FAINT
            )
        )
    right = 0.4 + fitted(axes, texts) + 0.15
    for k, y in zip(order, heights, strict=True):
        frame(axes, Box(0.25, right, y), step - 0.12, RULE)
        coefficient = lineage.recipe.coefficients[k]
        write(
            axes,
            right + COEFFICIENT - 0.08,
            y,
            f"\u00d7 {coefficient:.4f}",
            ha="right",
            color=line_style(coefficient)[0],
        )
    return {k: Box(0.25, right + COEFFICIENT, y) for k, y in zip(order, heights, strict=True)}


def said_of(source: SourceEntry) -> str:
    """The line below a source's name."""
    calibrated = source.calibrated_accuracy
    return f"{source.accuracy:.4f} as it is" + (f", {calibrated:.4f} calibrated" if calibrated is not None else "")


def frame(axes: Axes, box: Box, height: float, colour: str) -> None:
    """A box with round corners behind a text."""
    corner = (box.left, box.y - height / 2)
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(
            corner, box.right - box.left, height, boxstyle=style, facecolor="white", edgecolor=colour, zorder=0.5
        )
    )


def draw_nodes(axes: Axes, lineage: Lineage, leaves: dict[str | int, Box], depths: dict[str, int]) -> None:
    """The merges, each in the middle of its inputs, the last one at the right end."""
    boxes = dict(leaves)
    end, deepest = axes.get_xlim()[1] - 0.25, max(depths.values())
    for node in lineage.nodes:
        members = inputs_of(lineage, node)
        heights = [boxes[member].y for member in members]
        right = end - (NODE + GAP) * (deepest - depths[node.name])
        box = boxes[node.name] = Box(right - NODE, right, (min(heights) + max(heights)) / 2)
        for member in members:
            share = lineage.recipe.coefficients[member] if isinstance(member, int) else None
            connect(axes, boxes[member], box, share)
        last = node is lineage.nodes[-1]
        lines = merged_lines(lineage) if last else [shortened(node.name, 20), f"{node.accuracy:.4f}"]
        label_node(axes, box, lines, LOOKS["merged"][0] if last else RULE)


def merged_lines(lineage: Lineage) -> list[str]:
    """What the last box says."""
    low, high = lineage.result.interval
    noise, calibrate = len(lineage.recipe.noise), lineage.recipe.calibrate
    lines = [f"merged: {lineage.result.accuracy:.4f}", f"{low:.4f} to {high:.4f}"]
    lines += [f"+ {noise} noise term{'s' if noise > 1 else ''}"] if noise else []
    return lines + (["BatchNorm re-estimated"] if calibrate else [])


def label_node(axes: Axes, box: Box, lines: Sequence[str], colour: str) -> None:
    """A box with a line in bold and faint lines below it."""
    spacing = 0.19
    frame(axes, box, spacing * len(lines) + 0.24, colour)
    for row, line in enumerate(lines):
        y = box.y + spacing * ((len(lines) - 1) / 2 - row)
        style = {"fontweight": "bold"} if row == 0 else {"fontsize": 8, "color": FAINT}
        write(axes, (box.left + box.right) / 2, y, line, ha="center", **style)


def line_style(coefficient: float) -> tuple[str, str]:
    """Colour and dashes of a coefficient: positive, negative, or left out."""
    if coefficient == 0:
        return FAINT, ":"
    return (LOOKS["calibrated source"][0], "-") if coefficient > 0 else (LOOKS["merged"][0], "--")


def connect(axes: Axes, start: Box, end: Box, coefficient: float | None) -> None:
    """A curve from an input to its merge, as thick as a source's coefficient is large."""
    colour, dashes = (FAINT, "-") if coefficient is None else line_style(coefficient)
    bend = (start.right + end.left) / 2
    points = [(start.right, start.y), (bend, start.y), (bend, end.y), (end.left, end.y)]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    width = 0.8 + 3.2 * min(abs(coefficient or 0.0), 1.0)
    axes.add_patch(
        PathPatch(curve, fill=False, edgecolor=colour, linestyle=dashes, linewidth=width, alpha=0.75, zorder=0.4)
    )
