"""The charts of report.html as numbers: where each mark lies, in per cent of its chart, or in pixels of the tree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hfmega.report import figures, folding, wording
from hfmega.report.lineage import Interval, Lineage, NodeEntry
from hfmega.report.style import shortened
from hfmega.report.tree_figure import inputs_of, leaf_order, node_depths, share_of, taken_directly

ROW, SOURCE, NODE, GAP, EDGE = 62, 230, 170, 120, 10  # pixels of the tree
LETTERS: Final = 29  # characters of a name in a source's box


@dataclass(frozen=True)
class Tick:
    """A line of the grid: where, in per cent, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A model in the comparison. at, low, high: its accuracy and its interval, in per cent of the axis."""

    name: str
    kind: str
    accuracy: float
    interval: Interval
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The merge and its references on one axis, which begins at `start`. hidden: what is said of those left out."""

    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    start: float
    hidden: str


@dataclass(frozen=True)
class Point:
    """One generation of a search. x, best_y, mean_y: in per cent; a y is None where its value is not finite."""

    number: int
    best: float
    mean: float
    spread: float
    failed: int
    x: float
    best_y: float | None
    mean_y: float | None


@dataclass(frozen=True)
class Search:
    """One search. best, mean, band: the points of lines and of an area, in a box of 100 by 100."""

    node: str
    points: tuple[Point, ...]
    ticks: tuple[Tick, ...]
    best: str
    mean: str
    band: str


@dataclass(frozen=True)
class Box:
    """A model in the tree, in pixels. target: the panel that says more of it; lines: its texts, the first in bold."""

    target: str
    left: float
    top: float
    width: float
    height: float
    lines: tuple[str, ...]
    last: bool = False


@dataclass(frozen=True)
class Link:
    """A curve from an input to its merge. text: the coefficient, at (x, y); width in pixels; style: a CSS class."""

    path: str
    width: float
    style: str
    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Tree:
    """Boxes and links, and the size of the drawing in pixels."""

    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    width: float
    height: float


def comparison(lineage: Lineage) -> Comparison:
    """The rows of the card's figure on an axis of per cent."""
    result = lineage.result
    rows = [figures.Row(wording.row_name(lineage), "merged", result.accuracy, result.interval)]
    references, hidden = folding.one_by_one(lineage.references)
    rows += [figures.Row(wording.said(r), r.kind, r.accuracy, r.interval) for r in references]
    low, high = figures.visible(rows)

    def at(value: float) -> float:
        return round(min(max(100 * (value - low) / (high - low), -1), 101), 2)

    marks = [Mark(r.name, r.kind, r.accuracy, r.interval, at(r.accuracy), *map(at, r.interval)) for r in rows]
    ticks = [Tick(at(value), f"{100 * value:g} %") for value in ticked(low, high, 6)]
    return Comparison(tuple(marks), tuple(ticks), low, hidden)


def ticked(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two ends, at most about so many."""
    size = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(size * times for times in (1, 2, 5, 10) if size * times * count >= high - low)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def searches(lineage: Lineage) -> list[Search]:
    """One chart for each search of the tree."""
    return [search(node) for node in lineage.nodes if node.history]


def search(node: NodeEntry) -> Search:
    """Best, mean and spread of each generation."""
    history = node.history
    best, mean, spread = ([getattr(one, name) for one in history] for name in ("best", "mean", "spread"))
    lower, upper = figures.band(mean, spread, best)
    finite = [value for value in (*best, *mean, *lower, *upper) if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    low, high = (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else (low - 0.01, high + 0.01)
    width = max(len(history) - 1, 1)

    def y(value: float) -> float | None:
        return round(100 * (high - value) / (high - low), 2) if math.isfinite(value) else None

    xs = [round(3 + 94 * k / width, 2) if len(history) > 1 else 50.0 for k in range(len(history))]
    points = tuple(
        Point(k + 1, one.best, one.mean, one.spread, one.failed, x, y(one.best), y(one.mean))
        for k, (one, x) in enumerate(zip(history, xs, strict=True))
    )
    edges = [(x, y(a), y(b)) for x, a, b in zip(xs, lower, upper, strict=True) if y(a) is not None and y(b) is not None]
    return Search(
        node=node.name,
        points=points,
        ticks=tuple(Tick(float(y(value) or 0.0), f"{value:g}") for value in ticked(low, high, 5)),
        best=joined([(p.x, p.best_y) for p in points]),
        mean=joined([(p.x, p.mean_y) for p in points]),
        band=joined([(x, b) for x, _, b in edges] + [(x, a) for x, a, _ in reversed(edges)]),
    )


def joined(points: Sequence[tuple[float, float | None]]) -> str:
    """Points as SVG lists them; those without a value are left out."""
    return " ".join(f"{x:g},{y:g}" for x, y in points if y is not None)


def tree(lineage: Lineage) -> Tree:
    """The sources at the left, each merge in the middle of its inputs, the result at the right."""
    order, depths = leaf_order(lineage), node_depths(lineage)
    boxes: dict[str | int, Box] = {}
    for row, k in enumerate(order):
        one = lineage.sources[k]
        said = (shortened(one.name, LETTERS), f"{one.accuracy:.4f} on test")
        boxes[k] = Box(f"source-{k}", EDGE, EDGE + ROW * row, SOURCE, ROW - 14, said)
    links: list[Link] = []
    for number, node in enumerate(lineage.nodes):
        members = inputs_of(lineage, node)
        middles = [boxes[member].top + boxes[member].height / 2 for member in members]
        last = node is lineage.nodes[-1]
        left = EDGE + SOURCE + GAP + (depths[node.name] - 1) * (NODE + GAP)
        middle, lines = (min(middles) + max(middles)) / 2, node_lines(lineage, node)
        height = 18.0 * len(lines) + 14
        top = max(middle - height / 2, EDGE)
        boxes[node.name] = Box(f"merge-{number}", left, top, NODE, height, lines, last)
        links += [link(boxes[m], boxes[node.name], *weight_of(lineage, m, node)) for m in members]
        links += [link(boxes[k], boxes[node.name], *weight_of(lineage, k, node)) for k in taken_directly(lineage, node)]
    height = max(box.top + box.height for box in boxes.values()) + EDGE
    return Tree(tuple(boxes.values()), tuple(links), max(b.left + b.width for b in boxes.values()) + EDGE, height)


def node_lines(lineage: Lineage, node: NodeEntry) -> tuple[str, ...]:
    """What a merge's box says."""
    if node is not lineage.nodes[-1]:
        return (shortened(node.name, 20), f"{node.accuracy:.4f} on test")
    word = "kept" if lineage.held is not None else "result"
    low, high = lineage.result.interval
    taught = wording.taught(lineage)
    return (f"{word}: {lineage.result.accuracy:.4f}", f"{low:.4f} to {high:.4f}", *([taught] if taught else []))


def weight_of(lineage: Lineage, member: str | int, node: NodeEntry) -> tuple[float | None, str]:
    """How much of an input is in its merge, if that is one number; and the text beside its curve."""
    share = share_of(lineage, member, node)
    if share is None:
        return None, ""
    return share, f"\u00d7 {share:.4f}" if share else "left out"


def link(start: Box, end: Box, share: float | None, text: str) -> Link:
    """A curve as thick as a coefficient is large."""
    x0, y0 = start.left + start.width, start.top + start.height / 2
    x1, y1 = end.left, end.top + end.height / 2
    bend = (x0 + x1) / 2
    style = "plain" if share is None else "none" if share == 0 else "positive" if share > 0 else "negative"
    width = round(1 + 4 * min(abs(share or 0.0), 1.0), 2)
    return Link(f"M{x0:g} {y0:g}C{bend:g} {y0:g} {bend:g} {y1:g} {x1:g} {y1:g}", width, style, text, x0 + 8, y0 - 6)
