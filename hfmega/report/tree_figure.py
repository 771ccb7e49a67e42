"""The diagram of a merge: its sources, the merges of the tree, and the coefficients, drawn from a lineage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from hfmega.report import wording
from hfmega.report.folding import pruned
from hfmega.report.lineage import Lineage, NodeEntry, SourceEntry
from hfmega.report.style import BOX, FAINT, LOOKS, RULE, WIDTH, fitted, in_lines, sheet, shortened, write
from hfmega.report.wording import RE_ESTIMATED
from hfmega.search.recipe import Recipe


@dataclass(frozen=True)
class Box:
    """A model in the tree: where its box begins and ends, and at what height, in inches."""

    left: float
    right: float
    y: float


COEFFICIENT: Final = 0.85  # inches between a source's box and its line, for the coefficient
NODE: Final = 1.75
GAP: Final = 1.1
AVERAGES: Final = ("average", "greedy soup")  # which a run-off may keep in place of what was merged before


def tree(lineage: Lineage) -> Figure:
    """The sources with their accuracies and their coefficients in what they went into, and what was merged of them.

    Of many sources those with the largest coefficients, in the last merge.
    """
    lineage, left_out = pruned(lineage)
    order = leaf_order(lineage)
    labels = [in_lines(lineage.sources[k].name) for k in order]
    step = 0.74 if any("\n" in label for label in labels) else 0.58
    depths = node_depths(lineage)
    height = max(step * len(order), 1.5) + (0.8 if left_out else 0.4)
    figure = sheet(WIDTH + (NODE + GAP) * (max(depths.values()) - 1), height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(0, height)
    top = height / 2 + (0.2 if left_out else 0.0) + step * (len(order) - 1) / 2
    leaves = draw_sources(axes, lineage, order, labels, [top - step * row for row in range(len(order))], step)
    draw_nodes(axes, lineage, leaves, depths)
    write(axes, 0.4, 0.25, left_out, fontsize=8, color=FAINT)
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
        coefficient = coefficient_of(lineage, k)
        write(
            axes,
            right + COEFFICIENT - 0.08,
            y,
            f"\u00d7 {coefficient:.4f}" if coefficient else "left out",
            ha="right",
            color=line_style(coefficient)[0],
        )
    return {k: Box(0.25, right + COEFFICIENT, y) for k, y in zip(order, heights, strict=True)}


def taken_directly(lineage: Lineage, node: NodeEntry) -> list[int]:
    """The sources of a merge whose run-off kept an average of them, and nothing of the merges before it."""
    chosen = node.chosen or (lineage.result.chosen if node is lineage.nodes[-1] else "")
    if chosen.split(", ")[0] not in AVERAGES or all(isinstance(member, int) for member in inputs_of(lineage, node)):
        return []
    return [k for k, coefficient in enumerate(recipe_of(lineage, node).coefficients) if coefficient]


def recipe_of(lineage: Lineage, node: NodeEntry) -> Recipe:
    """The recipe of a merge; of the last one that of the lineage, which knows its own offsets."""
    return lineage.recipe if node is lineage.nodes[-1] else node.recipe


def goes_into(lineage: Lineage, leaf: int) -> NodeEntry:
    """The merge that a source goes into: of a tree that is rarely the last one."""
    averaged = [node for node in lineage.nodes if leaf in taken_directly(lineage, node)]
    given = [node for node in lineage.nodes if leaf in inputs_of(lineage, node)]
    return [lineage.nodes[-1], *reversed(given), *averaged][-1]


def coefficient_of(lineage: Lineage, leaf: int) -> float:
    """The coefficient of a source in the merge that it goes into."""
    return recipe_of(lineage, goes_into(lineage, leaf)).coefficients[leaf]


def is_left_out(lineage: Lineage, member: str, node: NodeEntry) -> bool:
    """Whether a merge kept nothing of one of its inputs that is itself a merge."""
    if taken_directly(lineage, node):
        return True
    below = next(other for other in lineage.nodes if other.name == member)
    recipe = lineage.recipe if node is lineage.nodes[-1] else node.recipe
    leaves = [k for k, coefficient in enumerate(below.recipe.coefficients) if coefficient]
    return not any(recipe.coefficients[k] for k in leaves)


def share_of(lineage: Lineage, member: str | int, node: NodeEntry) -> float | None:
    """How much of an input is in its merge; None where that is not one number, or another merge has it instead."""
    if isinstance(member, int):
        return coefficient_of(lineage, member) if goes_into(lineage, member) is node else None
    return 0.0 if is_left_out(lineage, member, node) else None


def said_of(source: SourceEntry) -> str:
    """The line below a source's name."""
    calibrated = source.calibrated_accuracy
    return f"{source.accuracy:.4f} as it is" + (f", {calibrated:.4f} {RE_ESTIMATED}" if calibrated is not None else "")


def frame(axes: Axes, box: Box, height: float, colour: str) -> None:
    """A box with round corners behind a text."""
    corner = (box.left, box.y - height / 2)
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(
            corner, box.right - box.left, height, boxstyle=style, facecolor=BOX, edgecolor=colour, zorder=0.5
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
            connect(axes, boxes[member], box, share_of(lineage, member, node))
        for leaf in taken_directly(lineage, node):
            connect(axes, boxes[leaf], box, coefficient_of(lineage, leaf))
        last = node is lineage.nodes[-1]
        lines = merged_lines(lineage) if last else [shortened(node.name, 20), f"{node.accuracy:.4f}"]
        label_node(axes, box, lines, LOOKS["merged"][0] if last else RULE)


def merged_lines(lineage: Lineage) -> list[str]:
    """What the last box says."""
    low, high = lineage.result.interval
    noise, taught = len(lineage.recipe.noise), wording.taught(lineage)
    word = "kept" if lineage.held is not None else "merged"
    lines = [f"{word}: {lineage.result.accuracy:.4f}", f"{low:.4f} to {high:.4f}"]
    lines += [f"+ {noise} noise term{'s' if noise > 1 else ''}"] if noise else []
    lines += [taught] if taught else []
    re_estimated = lineage.last_mile.calibrated if taught and lineage.last_mile else lineage.recipe.calibrate
    return lines + ([RE_ESTIMATED] if re_estimated else [])


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
