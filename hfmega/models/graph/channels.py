"""Which channels of a network move together, and every axis that they index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Permutations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Axis:
    """Elements [offset, offset + width * size of the space) along a dimension of a tensor of the state dict.

    width: of them that move as a whole, as those of an attention head do.
    """

    tensor: str
    dim: int
    offset: int
    width: int = 1


@dataclass(frozen=True)
class Space:
    """Channels that can be permuted, and every axis that must be permuted with them. nodes: where in the graph they are
    an activation, as (name, dimension)."""

    name: str
    size: int
    axes: tuple[Axis, ...]
    nodes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Spaces:
    """All spaces of a network in the order of its graph. notes: a sentence for each reason why layers cannot move."""

    spaces: tuple[Space, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Channels:
    """An activation whose dimension `dim` is a row of segments; each is a group of channels, by its number."""

    dim: int
    segments: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A tensor of the state dict as the graph sees it. dims: dimension of the graph's tensor to that of the file's."""

    name: str
    dims: dict[int, int]


@dataclass(frozen=True)
class Blocks:
    """Channels that move in blocks of another group: channel (r * size + k) * width + j with its k, for all r and j."""

    group: int
    repeat: int
    width: int


@dataclass
class Groups:
    """Groups of channels, by number: their sizes, the axes that they index, and which of them never move.

    stuck: why layers cannot be permuted, to their names. blocks: the groups that move in blocks, by their roots.
    """

    sizes: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    axes: dict[int, list[Axis]] = field(default_factory=dict)
    nodes: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    stuck: dict[str, list[str]] = field(default_factory=dict)
    blocks: dict[int, Blocks] = field(default_factory=dict)

    def group(self, size: int) -> int:
        self.sizes.append(size)
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def fixed(self, size: int) -> tuple[int, ...]:
        """A segment of channels that never move; none if there are none."""
        if size == 0:
            return ()
        made = self.group(size)
        self.frozen.add(made)
        return (made,)

    def root(self, group: int) -> int:
        while self.parents[group] != group:
            group = self.parents[group]
        return group

    def join(self, first: Channels, second: Channels) -> bool:
        """Let two rows of segments move together; False if they are cut differently."""
        if [self.sizes[s] for s in first.segments] != [self.sizes[s] for s in second.segments]:
            return False
        for a, b in zip(first.segments, second.segments, strict=True):
            self.unite(a, b)
        return True

    def unite(self, first: int, second: int) -> None:
        """Make two groups one; what moves in blocks takes the other with it."""
        a, b = sorted((self.root(first), self.root(second)))
        if a == b:
            return
        self.parents[b] = a
        if b in self.frozen:
            self.frozen.add(a)
        inner = self.blocks.pop(b, None)
        if inner is None:
            return
        outer = self.blocks.setdefault(a, inner)
        if (outer.repeat, outer.width) == (inner.repeat, inner.width):
            self.unite(outer.group, inner.group)
        else:
            self.frozen |= {a, self.root(inner.group)}

    def in_blocks(self, group: int, repeat: int, width: int) -> int | None:
        """The group whose channels are blocks of those of another one; None if they are cut differently already."""
        root = self.root(group)
        size = self.sizes[root] // (repeat * width)
        found = self.blocks.setdefault(root, Blocks(self.group(size), repeat, width))
        return found.group if (found.repeat, found.width) == (repeat, width) else None

    def flat(self, group: int, repeat: int, width: int) -> int:
        """A new group of the blocks of another one, laid out one after another."""
        made = self.group(self.sizes[group] * repeat * width)
        self.blocks[made] = Blocks(group, repeat, width)
        return made

    def freeze(self, *rows: Channels) -> None:
        self.frozen |= {self.root(segment) for row in rows for segment in row.segments}

    def attach(self, weight: Any, place: int, channels: Any) -> None:
        """An axis of a tensor moves with these channels."""
        if not isinstance(weight, Weight) or not isinstance(channels, Channels):
            return
        if place not in weight.dims:
            self.freeze(channels)
            return
        offset = 0
        for segment in channels.segments:
            self.axes.setdefault(segment, []).append(Axis(weight.name, weight.dims[place], offset))
            offset += self.sizes[segment]

    def spaces(self) -> Spaces:
        """What was found: the spaces that may move, each with all its axes."""
        axes: dict[int, dict[Axis, None]] = {}
        nodes: dict[int, list[tuple[str, int]]] = {}
        for group in range(len(self.parents)):
            root = self.root(group)
            axes.setdefault(root, {}).update(dict.fromkeys(self.axes.get(group, [])))
            nodes.setdefault(root, []).extend(self.nodes.get(group, []))
        frozen = self.whole(axes)
        found = [
            Space(next(iter(axes[root])).tensor, self.sizes[root], tuple(axes[root]), tuple(nodes[root]))
            for root in axes
            if root not in frozen and root not in self.blocks and axes[root] and self.sizes[root] > 1
        ]
        return Spaces(tuple(found), tuple(note(why, layers) for why, layers in self.stuck.items()))

    def whole(self, axes: dict[int, dict[Axis, None]]) -> set[int]:
        """Give the axes of what moves in blocks to the group of the blocks; returns the roots that are frozen."""
        frozen = {self.root(group) for group in self.frozen}
        for fine in sorted(self.blocks, key=self.depth, reverse=True):
            inner, root = self.blocks[fine], self.root(self.blocks[fine].group)
            step = self.sizes[root] * inner.width
            axes[root] |= {
                Axis(axis.tensor, axis.dim, axis.offset + r * step * axis.width, inner.width * axis.width): None
                for axis in axes[fine]
                for r in range(inner.repeat)
            }
            if fine in frozen:
                frozen.add(root)
        return frozen

    def depth(self, root: int) -> int:
        """How many times a group is cut into blocks of blocks."""
        return 1 + self.depth(self.root(self.blocks[root].group)) if root in self.blocks else 0


def note(why: str, layers: list[str]) -> str:
    """A sentence on the layers that cannot be permuted for one reason."""
    first, *more = layers
    if more:
        return f"{len(layers)} layers ({first}, ...) cannot be permuted ({why}), so their channels stay where they are."
    return f"{first} cannot be permuted ({why}), so its channels stay where they are."
