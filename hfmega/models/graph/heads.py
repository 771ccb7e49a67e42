"""Attention, and whatever else cuts channels into blocks: heads are permuted as wholes, their channels stay inside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import fx

from hfmega.models.graph.channels import Channels, Groups, Weight
from hfmega.models.graph.nodes import arguments, layer_name, shape


@dataclass
class Heads(Groups):
    """What becomes of channels that are cut into blocks, and of tokens."""

    values: dict[fx.Node, Channels | Weight] = field(default_factory=dict)

    def of(self, argument: Any) -> Channels | Weight | None:
        """What is known of an argument of a node."""
        return self.values.get(argument)

    def inputs(self, node: fx.Node) -> list[Channels]:
        found = [self.of(argument) for argument in node.all_input_nodes]
        return [value for value in found if isinstance(value, Channels)]

    def computed(self, *weights: Any) -> bool:
        """Whether something that a layer multiplies or adds is no tensor of the file."""
        return any(isinstance(w, fx.Node) and not isinstance(self.of(w), Weight) for w in weights)

    def unknown(self, node: fx.Node, why: str) -> Channels | None:
        """Everything that goes in stays where it is; a sentence says so if something could have moved."""
        moving = [c for c in self.inputs(node) if any(self.root(s) not in self.frozen for s in c.segments)]
        if moving:
            layers = self.stuck.setdefault(why, [])
            if layer_name(node) not in layers:
                layers.append(layer_name(node))
        self.freeze(*self.inputs(node))
        return None

    def remember(self, node: fx.Node, channels: Channels) -> None:
        """Where a space can be watched: only where it is alone."""
        if len(channels.segments) == 1:
            self.nodes.setdefault(channels.segments[0], []).append((node.name, channels.dim))

    def recut(self, before: Channels, old: Sequence[int], new: Sequence[int]) -> Channels | None:
        """Channels of a view that cuts their dimension into blocks, or lays blocks one after another."""
        if len(before.segments) != 1:
            return None
        return self.cut(before, old, new) or self.laid(before, old, new)

    def cut(self, before: Channels, old: Sequence[int], new: Sequence[int]) -> Channels | None:
        """One dimension becomes several, of which the last but one counts the blocks and the last lies inside them."""
        here = prod(old[: before.dim])
        for start in range(len(new)):
            for stop in range(start + 2, len(new) + 1):
                if prod(new[:start]) == here and prod(new[start:stop]) == old[before.dim]:
                    repeat, width = prod(new[start : stop - 2]), new[stop - 1]
                    group = self.in_blocks(before.segments[0], repeat, width)
                    return None if group is None else Channels(stop - 2, (group,))
        return None

    def laid(self, before: Channels, old: Sequence[int], new: Sequence[int]) -> Channels | None:
        """Several dimensions become one. Not the first one, which counts images."""
        for start in range(1, before.dim + 1):
            for stop in range(max(before.dim + 1, start + 2), len(old) + 1):
                for place in range(len(new)):
                    if prod(new[:place]) == prod(old[:start]) and new[place] == prod(old[start:stop]):
                        repeat, width = prod(old[start : before.dim]), prod(old[before.dim + 1 : stop])
                        return Channels(place, (self.flat(before.segments[0], repeat, width),))
        return None

    def rule_scaled_dot_product_attention(self, node: fx.Node) -> Channels | None:
        """Queries, keys, values and what is added to their products move together, head by head."""
        parts = [self.of(part) for part in arguments(node)[:3]]
        heads = len(shape(node)) - 3
        known = [part for part in parts if isinstance(part, Channels) and part.dim == heads]
        if len(known) < 3 or not all(self.join(known[0], part) for part in known[1:]):
            return self.unknown(node, "its heads are not known")
        bias = node.kwargs.get("attn_mask") or (arguments(node)[3] if len(arguments(node)) > 3 else None)
        place = len(shape(bias)) - 3 if bias is not None else -1
        if place >= 0 and shape(bias)[place] != 1:
            value = self.of(bias)
            if isinstance(value, Channels) and value.dim == place and self.join(known[0], value):
                return known[0]
            if not isinstance(value, Weight) or place not in value.dims:
                return self.unknown(node, "what is added to its attention is not known")
            self.attach(value, place, known[0])
        self.remember(node, known[0])
        return known[0]

    def rule_expand(self, node: fx.Node) -> Channels | Weight | None:
        before, shift = self.of(arguments(node)[0]), len(shape(node)) - len(shape(arguments(node)[0]))
        if isinstance(before, Weight):
            return Weight(before.name, {place + shift: dim for place, dim in before.dims.items()})
        if before is None or shape(node)[before.dim + shift] == shape(arguments(node)[0])[before.dim]:
            return before and Channels(before.dim + shift, before.segments)
        return self.unknown(node, "one channel becomes several")

    def rule_select(self, node: fx.Node) -> Channels | Weight | None:
        """One position is taken, or each of several."""
        before = self.of(arguments(node)[0])
        gone = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % len(shape(arguments(node)[0]))
        if isinstance(before, Weight):
            return Weight(before.name, {e - (e > gone): d for e, d in before.dims.items() if e != gone})
        if before is not None and before.dim == gone:
            return self.unknown(node, "it takes some of the channels")
        return before and Channels(before.dim - (before.dim > gone), before.segments)

    rule_unbind = rule_select

    def rule_roll(self, node: fx.Node) -> Channels | Weight | None:
        before, dims = self.of(arguments(node)[0]), arguments(node)[2] if len(arguments(node)) > 2 else []
        if not isinstance(before, Channels) or before.dim in [d % len(shape(node)) for d in dims] or not dims:
            return self.unknown(node, "it turns channels round")
        return before

    def rule_index(self, node: fx.Node) -> Weight | None:
        """Rows of a table, by a tensor of numbers."""
        table, numbers = self.of(arguments(node)[0]), arguments(node)[1]
        if not isinstance(table, Weight) or len(numbers) != 1:
            return self.unknown(node, "it takes elements by their numbers")  # type: ignore[return-value]
        more = len(shape(numbers[0])) - 1
        return Weight(table.name, {place + more: dim for place, dim in table.dims.items() if place > 0})

    def rule_embedding(self, node: fx.Node) -> Weight | None:
        table = self.of(arguments(node)[0])
        return Weight(table.name, {len(shape(node)) - 1: table.dims[1]}) if isinstance(table, Weight) else None
