"""The permutation spaces of a network, found in its exported graph and not in a list of architectures.

Each activation's channels are a row of segments, and every operation says what becomes of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from torch import fx

from hfmega.models.graph.channels import Channels, Spaces, Weight
from hfmega.models.graph.heads import Heads
from hfmega.models.graph.nodes import arguments, operation, shape
from hfmega.models.library import Spec, build


def spaces_of(spec: Spec) -> Spaces:
    """The permutation spaces of a network. What is not understood stays as it is, with a note."""
    exported = trace(spec, batch=2)
    tracer = Tracer()
    names = state_names(spec, exported)
    for node in exported.graph.nodes:
        tracer.visit(node, names)
    return tracer.spaces()


def trace(spec: Spec, batch: int) -> torch.export.ExportedProgram:
    """The network as a graph of ATen operations, for a batch of images of its own size."""
    images = torch.zeros(batch, *spec.preprocessing.input_size)
    exported = torch.export.export(build(spec).eval(), (images,), strict=False)
    exported.graph.eliminate_dead_code()  # what the answer does not depend on holds nothing in its place
    return exported


def state_names(spec: Spec, exported: torch.export.ExportedProgram) -> dict[str, str]:
    """Placeholder to tensor name in the checkpoint, of parameters, buffers and constants."""
    signature = exported.graph_signature
    found = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {placeholder: spec.names.key(name) for placeholder, name in found.items()}


ELEMENTWISE: Final = frozenset(
    [
        "relu",
        "relu_",
        "relu6",
        "relu6_",
        "gelu",
        "silu",
        "silu_",
        "hardswish",
        "hardswish_",
        "hardsigmoid",
        "hardsigmoid_",
        "hardtanh",
        "hardtanh_",
        "sigmoid",
        "sigmoid_",
        "tanh",
        "elu",
        "elu_",
        "leaky_relu",
        "leaky_relu_",
        "mish",
        "mish_",
        "softplus",
        "dropout",
        "dropout_",
        "feature_dropout",
        "clone",
        "contiguous",
        "to",
        "_to_copy",
        "alias",
        "detach",
        "detach_",
        "abs",
        "neg",
        "exp",
        "sqrt",
        "rsqrt",
        "pow",
        "clamp",
        "clamp_",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "getitem",
    ]
)
BINARY: Final = frozenset(["add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum"])


@dataclass
class Tracer(Heads):
    """Walks a graph and says of every operation what becomes of its channels."""

    def visit(self, node: fx.Node, names: Mapping[str, str]) -> None:
        """Work out what a node's channels are."""
        if node.op == "placeholder":
            if node.name in names:
                dims = range(len(node.meta["val"].shape))
                self.values[node] = Weight(names[node.name], {d: d for d in dims})
            return
        if node.op == "output":
            self.freeze(*self.inputs(node))
            return
        found = self.known(node)
        if found is not None:
            self.values[node] = found

    def known(self, node: fx.Node) -> Channels | Weight | None:
        """The value of an operation; None where its channels are fixed."""
        name = operation(node)
        rule = getattr(self, f"rule_{name}", None)
        if name in ELEMENTWISE:
            rule = self.same
        elif name in BINARY:
            rule = self.binary
        if rule is None:
            return self.unknown(node, f"{name} is not understood")
        found: Channels | Weight | None = rule(node)
        return found

    def same(self, node: fx.Node) -> Channels | Weight | None:
        return self.of(arguments(node)[0])

    def rule_conv2d(self, node: fx.Node) -> Channels | None:
        source, weight, bias = (*arguments(node), None)[:3]
        groups = arguments(node)[6] if len(arguments(node)) > 6 else 1
        before = self.of(source)
        kernel, offset = self.of(weight), self.of(bias)
        outputs, inputs = shape(weight)[0], shape(source)[1]
        if self.computed(weight, bias) or not isinstance(kernel, Weight) or isinstance(before, Weight):
            return self.unknown(node, "its weights are computed")
        if groups == 1:
            self.attach(kernel, 1, before)
            return self.produce(node, kernel, offset, outputs, dim=1)
        if groups == inputs == outputs and isinstance(before, Channels):
            self.attach(kernel, 0, before)
            self.attach(offset, 0, before)
            return before
        return self.unknown(node, f"a convolution of {groups} groups")

    def rule_linear(self, node: fx.Node) -> Channels | None:
        source, weight, bias = (*arguments(node), None)[:3]
        before = self.of(source)
        kernel, offset = self.of(weight), self.of(bias)
        last = len(shape(source)) - 1
        if self.computed(weight, bias):
            return self.unknown(node, "its weights are computed")
        if not isinstance(kernel, Weight) or (isinstance(before, Channels) and before.dim != last):
            return self.unknown(node, "it mixes positions")
        self.attach(kernel, 1, before)
        return self.produce(node, kernel, offset, shape(weight)[0], dim=last)

    def rule_batch_norm(self, node: fx.Node) -> Channels | None:
        before = self.of(arguments(node)[0])
        if not isinstance(before, Channels) or before.dim != 1:
            return None
        if self.computed(*arguments(node)[1:5]):
            return self.unknown(node, "its weights are computed")
        for argument in arguments(node)[1:5]:
            self.attach(self.of(argument), 0, before)
        self.remember(node, before)
        return before

    def rule_layer_norm(self, node: fx.Node) -> Channels | None:
        before = self.of(arguments(node)[0])
        if not isinstance(before, Channels):
            return None
        if before.dim < len(shape(node)) - len(arguments(node)[1]):  # over what lies inside a channel
            return before
        if before.dim != len(shape(node)) - 1 or len(arguments(node)[1]) != 1:
            return self.unknown(node, "it normalises over positions")
        if self.computed(*arguments(node)[2:4]):
            return self.unknown(node, "its weights are computed")
        for argument in arguments(node)[2:4]:
            self.attach(self.of(argument), 0, before)
        return before

    def binary(self, node: fx.Node) -> Channels | Weight | None:
        """Channels against channels move together; against a tensor of the file, that moves with them."""
        rank = len(shape(node))
        tensors = [argument for argument in arguments(node)[:2] if isinstance(argument, fx.Node)]
        if len(tensors) == 1:
            return self.of(tensors[0])
        lifted = [(tensor, self.of(tensor)) for tensor in tensors]
        channels = [
            (t, Channels(v.dim + rank - len(shape(t)), v.segments)) for t, v in lifted if isinstance(v, Channels)
        ]
        if not channels:
            return None
        carrier = next((c for t, c in channels if shape(t)[c.dim - rank] == shape(node)[c.dim]), channels[0][1])
        for tensor, value in lifted:
            place = carrier.dim - rank + len(shape(tensor))
            if place < 0 or shape(tensor)[place] == 1:
                continue
            if isinstance(value, Weight):
                self.attach(value, place, carrier)
            elif not (isinstance(value, Channels) and value.dim == place and self.join(value, carrier)):
                return self.unknown(node, "channels meet others that do not move with them")
        return carrier

    def rule_cat(self, node: fx.Node) -> Channels | None:
        parts = [self.of(part) for part in arguments(node)[0]]
        dim = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % len(shape(node))
        known = [part for part in parts if isinstance(part, Channels)]
        weights = [part for part in parts if isinstance(part, Weight)]
        if len(known) + len(weights) < len(parts) or len({part.dim for part in known}) != 1:
            return self.unknown(node, "it joins channels with others")
        if known[0].dim == dim and not weights:
            return Channels(dim, tuple(s for part in known for s in part.segments))
        if known[0].dim != dim and all(self.join(known[0], part) for part in known[1:]):
            for weight in weights:  # a token that was learned, beside those of the image
                self.attach(weight, known[0].dim, known[0])
            return known[0]
        return self.unknown(node, "it joins different channels")

    def rule_view(self, node: fx.Node) -> Channels | Weight | None:
        """A dimension lives on where the same number of elements lies before it and its size is the same."""
        before = self.of(arguments(node)[0])
        old, new = shape(arguments(node)[0]), shape(node)
        kept = {
            d: next((e for e in range(len(new)) if new[e] == old[d] and prod(new[:e]) == prod(old[:d])), None)
            for d in range(len(old))
            if old[d] != 1
        }
        if isinstance(before, Weight):
            dims = {e: before.dims[d] for d, e in kept.items() if e is not None and d in before.dims}
            return Weight(before.name, dims)
        if before is None:
            return None
        place = kept.get(before.dim)
        if place is not None:
            return Channels(place, before.segments)
        return self.recut(before, old, new) or self.unknown(node, "channels and positions become one")

    rule_reshape = rule_flatten = rule_squeeze = rule_unsqueeze = rule__unsafe_view = rule_view

    def rule_permute(self, node: fx.Node) -> Channels | Weight | None:
        return self.moved(node, [int(d) % len(shape(node)) for d in arguments(node)[1]])

    def rule_transpose(self, node: fx.Node) -> Channels | Weight | None:
        order = list(range(len(shape(node))))
        a, b = (int(d) % len(order) for d in arguments(node)[1:3])
        order[a], order[b] = order[b], order[a]
        return self.moved(node, order)

    def moved(self, node: fx.Node, order: list[int]) -> Channels | Weight | None:
        before = self.of(arguments(node)[0])
        if isinstance(before, Weight):
            return Weight(before.name, {e: before.dims[d] for e, d in enumerate(order) if d in before.dims})
        return before and Channels(order.index(before.dim), before.segments)

    def rule_mean(self, node: fx.Node) -> Channels | None:
        before = self.of(arguments(node)[0])
        if not isinstance(before, Channels):
            return None
        rank = len(shape(arguments(node)[0]))
        gone = [int(d) % rank for d in arguments(node)[1]] if len(arguments(node)) > 1 else list(range(rank))
        if before.dim in gone:
            return self.unknown(node, "it sums over channels")
        kept = len(shape(node)) == rank
        return Channels(before.dim if kept else before.dim - sum(d < before.dim for d in gone), before.segments)

    def rule_pad(self, node: fx.Node) -> Channels | None:
        """Padding of positions changes nothing; of channels it adds ones that are fixed."""
        before = self.of(arguments(node)[0])
        if not isinstance(before, Channels):
            return None
        pads: Sequence[int] = arguments(node)[1]
        start = 2 * (len(shape(node)) - 1 - before.dim)
        left, right = pads[start : start + 2] if len(pads) > start else (0, 0)
        return Channels(before.dim, (*self.fixed(left), *before.segments, *self.fixed(right)))

    rule_constant_pad_nd = rule_pad

    def rule_slice(self, node: fx.Node) -> Channels | None:
        before = self.of(arguments(node)[0])
        if not isinstance(before, Channels):
            return None
        if shape(node)[before.dim] != shape(arguments(node)[0])[before.dim]:
            return self.unknown(node, "it takes some of the channels")
        return before

    def produce(self, node: fx.Node, kernel: Weight, bias: Any, size: int, dim: int) -> Channels:
        """New channels, which a layer's outputs are."""
        made = Channels(dim, (self.group(size),))
        self.attach(kernel, 0, made)
        self.attach(bias, 0, made)
        self.remember(node, made)
        return made
