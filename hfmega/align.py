"""Permutations of channels that leave a network's function as it is, found in its graph, and matching by them.

Which axes of which tensors are permuted together follows from the exported graph, not from a list of architectures:
each activation's channels are a row of segments, and every operation says what becomes of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx

from hfmega import HfmegaError
from hfmega.data import preprocessing_of
from hfmega.models import build
from hfmega.rng import permutation

Permutations = Mapping[str, Tensor]
SWEEPS: Final = 50


@dataclass(frozen=True)
class Axis:
    """Elements [offset, offset + size of the space) along a dimension of a tensor of the state dict."""

    tensor: str
    dim: int
    offset: int


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
    """All spaces of a network in the order of its graph. notes: a sentence for each layer that cannot be permuted."""

    spaces: tuple[Space, ...]
    notes: tuple[str, ...]


def spaces_of(config: dict[str, Any]) -> Spaces:
    """The permutation spaces of a network, from its timm config. What is not understood stays as it is, with a note."""
    exported = trace(config, batch=2)
    tracer = Tracer()
    names = state_names(exported)
    for node in exported.graph.nodes:
        tracer.visit(node, names)
    return tracer.spaces()


def trace(config: dict[str, Any], batch: int) -> torch.export.ExportedProgram:
    """The network as a graph of ATen operations, for a batch of images of its own size."""
    images = torch.zeros(batch, *preprocessing_of(config)["input_size"])
    return torch.export.export(build(config).eval(), (images,), strict=False)


def state_names(exported: torch.export.ExportedProgram) -> dict[str, str]:
    """Placeholder to tensor name, of parameters, buffers and constants."""
    signature = exported.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


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


ELEMENTWISE: Final = frozenset(
    "relu relu_ relu6 relu6_ gelu silu silu_ hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ sigmoid "
    "sigmoid_ tanh elu elu_ leaky_relu leaky_relu_ mish mish_ softplus dropout dropout_ feature_dropout clone "
    "contiguous to _to_copy alias detach detach_ abs neg exp sqrt rsqrt pow clamp clamp_ max_pool2d avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d getitem".split()
)
BINARY: Final = frozenset("add add_ sub sub_ mul mul_ div div_ maximum minimum".split())


@dataclass
class Tracer:
    """Walks a graph and collects which channels move together (union-find over groups of channels)."""

    values: dict[fx.Node, Channels | Weight] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    axes: dict[int, list[Axis]] = field(default_factory=dict)
    nodes: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        if rule is not None:
            return rule(node)  # type: ignore[no-any-return]
        return self.unknown(node, f"{name} is not understood")

    def same(self, node: fx.Node) -> Channels | Weight | None:
        return self.values.get(node.args[0])  # type: ignore[arg-type]

    def unknown(self, node: fx.Node, why: str) -> None:
        """Everything that goes in stays where it is; a sentence says so if something could have moved."""
        moving = [c for c in self.inputs(node) if any(self.root(s) not in self.frozen for s in c.segments)]
        if moving:
            self.notes.append(f"{layer_name(node)} cannot be permuted ({why}), so its channels stay where they are.")
        self.freeze(*self.inputs(node))

    def rule_conv2d(self, node: fx.Node) -> Channels | None:
        source, weight, bias = (*node.args, None)[:3]
        groups = node.args[6] if len(node.args) > 6 else 1
        before = self.values.get(source)  # type: ignore[arg-type]
        kernel, offset = self.values.get(weight), self.values.get(bias)  # type: ignore[arg-type]
        outputs, inputs = shape(weight)[0], shape(source)[1]
        if not isinstance(kernel, Weight) or isinstance(before, Weight):
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
        source, weight, bias = (*node.args, None)[:3]
        before = self.values.get(source)  # type: ignore[arg-type]
        kernel, offset = self.values.get(weight), self.values.get(bias)  # type: ignore[arg-type]
        last = len(shape(source)) - 1
        if not isinstance(kernel, Weight) or (isinstance(before, Channels) and before.dim != last):
            return self.unknown(node, "it mixes positions")
        self.attach(kernel, 1, before)
        return self.produce(node, kernel, offset, shape(weight)[0], dim=last)

    def rule_batch_norm(self, node: fx.Node) -> Channels | None:
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(before, Channels) or before.dim != 1:
            return None
        for argument in node.args[1:5]:
            self.attach(self.values.get(argument), 0, before)  # type: ignore[arg-type]
        self.remember(node, before)
        return before

    def rule_layer_norm(self, node: fx.Node) -> Channels | None:
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(before, Channels):
            return None
        if before.dim != len(shape(node)) - 1 or len(node.args[1]) != 1:  # type: ignore[arg-type]
            return self.unknown(node, "it normalises over positions")
        for argument in node.args[2:4]:
            self.attach(self.values.get(argument), 0, before)  # type: ignore[arg-type]
        return before

    def binary(self, node: fx.Node) -> Channels | Weight | None:
        """Channels against channels move together; against a tensor of the file, that moves with them."""
        rank = len(shape(node))
        tensors = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        if len(tensors) == 1:
            return self.values.get(tensors[0])
        lifted = [(tensor, self.values.get(tensor)) for tensor in tensors]
        channels = [(t, Channels(v.dim + rank - len(shape(t)), v.segments)) for t, v in lifted if isinstance(v, Channels)]
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
        parts = [self.values.get(part) for part in node.args[0]]  # type: ignore[union-attr, arg-type]
        dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape(node))  # type: ignore[operator]
        known = [part for part in parts if isinstance(part, Channels)]
        if len(known) < len(parts) or len({part.dim for part in known}) > 1:
            return self.unknown(node, "it joins channels with others")
        if known[0].dim == dim:
            return Channels(dim, tuple(s for part in known for s in part.segments))
        if all(self.join(known[0], part) for part in known[1:]):
            return known[0]
        return self.unknown(node, "it joins different channels")

    def rule_view(self, node: fx.Node) -> Channels | Weight | None:
        """A dimension lives on where the same number of elements lies before it and its size is the same."""
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        old, new = shape(node.args[0]), shape(node)
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
        return self.unknown(node, "channels and positions become one") if place is None else Channels(place, before.segments)

    rule_reshape = rule_flatten = rule_squeeze = rule_unsqueeze = rule__unsafe_view = rule_view

    def rule_permute(self, node: fx.Node) -> Channels | Weight | None:
        return self.moved(node, [int(d) % len(shape(node)) for d in node.args[1]])  # type: ignore[union-attr, arg-type]

    def rule_transpose(self, node: fx.Node) -> Channels | Weight | None:
        order = list(range(len(shape(node))))
        a, b = (int(d) % len(order) for d in node.args[1:3])  # type: ignore[call-overload]
        order[a], order[b] = order[b], order[a]
        return self.moved(node, order)

    def moved(self, node: fx.Node, order: list[int]) -> Channels | Weight | None:
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        if isinstance(before, Weight):
            return Weight(before.name, {e: before.dims[d] for e, d in enumerate(order) if d in before.dims})
        return before and Channels(order.index(before.dim), before.segments)

    def rule_mean(self, node: fx.Node) -> Channels | None:
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(before, Channels):
            return None
        rank = len(shape(node.args[0]))
        gone = [int(d) % rank for d in node.args[1]] if len(node.args) > 1 else list(range(rank))  # type: ignore[union-attr, arg-type]
        if before.dim in gone:
            return self.unknown(node, "it sums over channels")
        kept = len(shape(node)) == rank
        return Channels(before.dim if kept else before.dim - sum(d < before.dim for d in gone), before.segments)

    def rule_pad(self, node: fx.Node) -> Channels | None:
        """Padding of positions changes nothing; of channels it adds ones that are fixed."""
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(before, Channels):
            return None
        pads: Sequence[int] = node.args[1]  # type: ignore[assignment]
        start = 2 * (len(shape(node)) - 1 - before.dim)
        left, right = pads[start : start + 2] if len(pads) > start else (0, 0)
        return Channels(before.dim, (*self.fixed(left), *before.segments, *self.fixed(right)))

    rule_constant_pad_nd = rule_pad

    def rule_slice(self, node: fx.Node) -> Channels | None:
        before = self.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(before, Channels):
            return None
        if shape(node)[before.dim] != shape(node.args[0])[before.dim]:
            return self.unknown(node, "it takes some of the channels")
        return before

    def produce(self, node: fx.Node, kernel: Weight, bias: Any, size: int, dim: int) -> Channels:
        """New channels, which a layer's outputs are."""
        made = Channels(dim, (self.group(size),))
        self.attach(kernel, 0, made)
        self.attach(bias, 0, made)
        self.remember(node, made)
        return made

    def remember(self, node: fx.Node, channels: Channels) -> None:
        """Where a space can be watched: only where it is alone."""
        if len(channels.segments) == 1:
            self.nodes.setdefault(channels.segments[0], []).append((node.name, channels.dim))

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
            a, b = sorted((self.root(a), self.root(b)))
            self.parents[b] = a
            if b in self.frozen:
                self.frozen.add(a)
        return True

    def freeze(self, *rows: Channels) -> None:
        self.frozen |= {self.root(segment) for row in rows for segment in row.segments}

    def inputs(self, node: fx.Node) -> list[Channels]:
        found = [self.values.get(argument) for argument in node.all_input_nodes]
        return [value for value in found if isinstance(value, Channels)]

    def attach(self, weight: Any, place: int, channels: Any) -> None:
        """An axis of a tensor moves with these channels."""
        if not isinstance(weight, Weight) or not isinstance(channels, Channels):
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
        frozen = {self.root(group) for group in self.frozen}
        found = [
            Space(next(iter(axes[root])).tensor, self.sizes[root], tuple(axes[root]), tuple(nodes[root]))
            for root in axes
            if root not in frozen and axes[root] and self.sizes[root] > 1
        ]
        return Spaces(tuple(found), tuple(dict.fromkeys(self.notes)))


def operation(node: fx.Node) -> str:
    """`aten.conv2d.default` -> `conv2d`."""
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))


def shape(value: Any) -> tuple[int, ...]:
    """The shape of a node's tensor."""
    found = value.meta["val"]
    return tuple((found[0] if isinstance(found, (tuple, list)) else found).shape)


def layer_name(node: fx.Node) -> str:
    """The module that a node belongs to, as timm names it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (stack[-1][0].removeprefix("L['self'].") if stack else "") or node.name


def permute(state: Mapping[str, Tensor], spaces: Spaces, permutations: Permutations) -> dict[str, Tensor]:
    """A state dict with its channels reordered: position i of a space holds what was at permutations[name][i].

    permutations: int64 [size] by space; a space that is not named stays as it is.
    Raises HfmegaError for a space that the network has not, or something that is no permutation of it.
    """
    known = {space.name: space for space in spaces.spaces}
    turned = dict(state)
    for name, order in permutations.items():
        if name not in known:
            raise HfmegaError(f"the network has no channels called {name} that could be permuted.")
        if not torch.equal(order.sort().values, torch.arange(known[name].size)):
            raise HfmegaError(f"the permutation of {name} is not one of {known[name].size} channels.")
        turn(turned, known[name], order)
    return turned


def turn(state: dict[str, Tensor], space: Space, order: Tensor) -> None:
    """Reorder one space in a state dict, without touching the tensors that were in it."""
    for axis in space.axes:
        tensor = state[axis.tensor].clone()
        part = tensor.narrow(axis.dim, axis.offset, space.size)
        part.copy_(part.index_select(axis.dim, order))
        state[axis.tensor] = tensor


def random_permutations(spaces: Spaces, seed: int) -> dict[str, Tensor]:
    """A random order of every space."""
    return {s.name: torch.from_numpy(permutation(s.size, seed, "permute", s.name)) for s in spaces.spaces}


def match_weights(
    reference: Mapping[str, Tensor], state: Mapping[str, Tensor], spaces: Spaces, seed: int = 0
) -> dict[str, Tensor]:
    """The permutations that bring a state dict nearest to the reference (Ainsworth et al. 2022, algorithm 1).

    Space by space, the assignment that maximises the inner product of the weights with all other spaces as they are;
    first in the order of the graph, so that what is matched at the input is carried on, then in random orders until
    nothing changes. BatchNorm statistics move along but do not count.
    """
    current = {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}
    target = {name: reference[name].double() for name in current}
    orders = {space.name: torch.arange(space.size) for space in spaces.spaces}
    for sweep in range(SWEEPS):
        moved = False
        for space in sweep_order(spaces, seed, sweep):
            order = assignment(similarity(target, current, space))
            trial = dict(current)
            turn(trial, space, order)
            if closeness(target, trial, space) > closeness(target, current, space) * (1 + 1e-12) + 1e-12:
                current, moved = trial, True
                orders[space.name] = orders[space.name][order]
        if not moved:
            break
    return orders


def sweep_order(spaces: Spaces, seed: int, sweep: int) -> Iterator[Space]:
    """The spaces in graph order, in later sweeps in a random one."""
    count = len(spaces.spaces)
    order = range(count) if sweep == 0 else permutation(count, seed, "sweep", sweep).tolist()
    return (spaces.spaces[k] for k in order)


def counted(space: Space) -> list[Axis]:
    """The axes whose weights count: parameters, not statistics."""
    return [axis for axis in space.axes if not axis.tensor.endswith(("running_mean", "running_var"))]


def similarity(reference: Mapping[str, Tensor], state: Mapping[str, Tensor], space: Space) -> Tensor:
    """float64 [size, size]: inner products of every channel of the reference with every channel of the other."""
    total = torch.zeros(space.size, space.size, dtype=torch.float64)
    for axis in counted(space):
        a, b = (s[axis.tensor].narrow(axis.dim, axis.offset, space.size).movedim(axis.dim, 0) for s in (reference, state))
        total += a.flatten(1) @ b.flatten(1).T if a.dim() > 1 else torch.outer(a, b)
    return total


def closeness(reference: Mapping[str, Tensor], state: Mapping[str, Tensor], space: Space) -> float:
    """The inner product of all tensors that a space touches."""
    names = {axis.tensor for axis in counted(space)}
    return sum(float((reference[name] * state[name]).sum()) for name in sorted(names))


def assignment(similarity: Tensor) -> Tensor:
    """int64 [size]: for each channel of the reference the channel of the other that it gets."""
    return torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1]).long()


def match_activations(
    config: dict[str, Any],
    reference: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    spaces: Spaces,
    images: Tensor,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """The permutations that maximise the correlation of the channels' activations (Li et al. 2015; Jordan et al. 2022).

    images: float32 [n, channels, height, width], normalised; the last incomplete batch is left out. Both networks see
    the same images; a space's correlations are summed over the layers where it is an activation of its own.
    """
    batch = min(batch_size, len(images))
    exported = trace(config, batch)
    wanted = {name for space in spaces.spaces for name, _ in space.nodes}
    sums: dict[tuple[str, int], Moments] = {}
    with torch.inference_mode():
        for part in images[: len(images) // batch * batch].split(batch):
            seen = [watch(exported, network, part, wanted) for network in (reference, state)]
            for space in spaces.spaces:
                for name, dim in space.nodes:
                    rows = [s[name].movedim(dim, 0).flatten(1).double() for s in seen]
                    sums.setdefault((name, dim), Moments()).add(*rows)
    return {
        space.name: assignment(sum(sums[node].correlation() for node in space.nodes))  # type: ignore[arg-type]
        for space in spaces.spaces
        if space.nodes
    }


def watch(
    exported: torch.export.ExportedProgram, state: Mapping[str, Tensor], images: Tensor, wanted: set[str]
) -> dict[str, Tensor]:
    """The activations of some nodes of the graph, with the weights of a state dict."""
    names = state_names(exported)
    constants = {name: tensor for name, tensor in exported.constants.items() if isinstance(tensor, Tensor)}
    tensors = {**constants, **state}
    inputs = [
        tensors[names[node.name]] if node.name in names else images
        for node in exported.graph.nodes
        if node.op == "placeholder"
    ]
    recorder = Recorder(exported.graph_module, wanted)
    recorder.run(*inputs)
    return recorder.seen


class Recorder(fx.Interpreter):
    """Runs a graph and keeps what some of its nodes computed, before anything changes it in place."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted, self.seen = wanted, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted:
            self.seen[n.name] = result.clone()
        return result


@dataclass
class Moments:
    """Running sums of two sets of channels, float64."""

    count: int = 0
    first: Any = 0.0
    second: Any = 0.0
    first_square: Any = 0.0
    second_square: Any = 0.0
    product: Any = 0.0

    def add(self, first: Tensor, second: Tensor) -> None:
        """first, second: float64 [channels, samples]."""
        self.count += first.shape[1]
        self.first = self.first + first.sum(1)
        self.second = self.second + second.sum(1)
        self.first_square = self.first_square + first.square().sum(1)
        self.second_square = self.second_square + second.square().sum(1)
        self.product = self.product + first @ second.T

    def correlation(self) -> Tensor:
        """float64 [channels, channels]; a channel that never changes correlates with nothing."""
        a, b = self.first / self.count, self.second / self.count
        spread = ((self.first_square / self.count - a**2).clamp(min=0), (self.second_square / self.count - b**2).clamp(min=0))
        scale = torch.outer(spread[0].sqrt(), spread[1].sqrt())
        return ((self.product / self.count - torch.outer(a, b)) / scale.clamp(min=1e-12)).clamp(-1, 1)
