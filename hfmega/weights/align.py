"""Bringing the channels of one network into the order of another's, and keeping how it was done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, fx

from hfmega.errors import SourceError, step
from hfmega.models.graph.channels import Axis, Permutations, Space, Spaces
from hfmega.models.graph.trace import spaces_of, state_names, trace
from hfmega.models.library import Spec
from hfmega.rng import permutation
from hfmega.weights.permute import blocks, permute, turn
from hfmega.weights.tensors import read_tensors

Method = Literal["none", "weights", "activations"]
SWEEPS: Final = 50
IMAGES: Final = 1000  # that activations are watched on
PREFIX: Final = "permutation"


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
        a, b = (blocks(s[axis.tensor], axis, space.size).movedim(axis.dim, 0) for s in (reference, state))
        total += a.flatten(1) @ b.flatten(1).T if a.dim() > 1 else torch.outer(a, b)
    return total


def closeness(reference: Mapping[str, Tensor], state: Mapping[str, Tensor], space: Space) -> float:
    """The inner product of all tensors that a space touches."""
    names = {axis.tensor for axis in counted(space)}
    return sum(float((reference[name] * state[name]).sum()) for name in sorted(names))


def assignment(similarity: Tensor) -> Tensor:
    """int64 [size]: for each channel of the reference the channel of the other that it gets."""
    from scipy.optimize import linear_sum_assignment  # needed by --align only

    return torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1]).long()


def match_activations(
    spec: Spec,
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
    reference, state = (in_float32(tensors) for tensors in (reference, state))
    exported = trace(spec, batch)
    wanted = {name for space in spaces.spaces for name, _ in space.nodes}
    sums: dict[tuple[str, int], Moments] = {}
    with torch.inference_mode():
        for part in images[: len(images) // batch * batch].split(batch):
            seen = [watch(spec, exported, network, part, wanted) for network in (reference, state)]
            for space in spaces.spaces:
                for name, dim in space.nodes:
                    rows = [s[name].movedim(dim, 0).flatten(1).double() for s in seen]
                    sums.setdefault((name, dim), Moments()).add(*rows)
    return {
        space.name: assignment(sum(sums[node].correlation() for node in space.nodes))  # type: ignore[arg-type]
        for space in spaces.spaces
        if space.nodes
    }


def in_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as a network computes with it, in whatever precision it is stored."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def watch(
    spec: Spec, exported: torch.export.ExportedProgram, state: Mapping[str, Tensor], images: Tensor, wanted: set[str]
) -> dict[str, Tensor]:
    """The activations of some nodes of the graph, with the weights of a state dict."""
    names = state_names(spec, exported)
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
        first = (self.first_square / self.count - a**2).clamp(min=0).sqrt()
        second = (self.second_square / self.count - b**2).clamp(min=0).sqrt()
        product: Tensor = self.product / self.count - torch.outer(a, b)
        return (product / torch.outer(first, second).clamp(min=1e-12)).clamp(-1, 1)


@dataclass(frozen=True)
class Alignment:
    """The permutations of each leaf that bring it to the first one; none for that one, and where nothing was aligned.

    notes: which layers could not be permuted.
    """

    permutations: tuple[Permutations, ...]
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """As they lie in `recipe.safetensors`: `permutation/<leaf>/<space>` to int64 [size]."""
        return {
            f"{PREFIX}/{leaf}/{space}": order
            for leaf, orders in enumerate(self.permutations)
            for space, order in orders.items()
        }


def align(method: Method, spec: Spec, states: Sequence[Mapping[str, Tensor]], images: Tensor | None) -> Alignment:
    """Match each state dict but the first to the first. images: as `match_activations` takes them.

    Raises SettingsError for `activations` without images.
    """
    if method == "none":
        return Alignment(tuple({} for _ in states))
    if method == "activations" and images is None:
        raise SourceError("--align activations needs calibration images: name them with --calibration-split.")
    spaces = spaces_of(spec)
    found: list[Permutations] = [{}]
    for number, state in enumerate(states[1:], 2):
        with step(f"--align {method} of source {number} to source 1 ({spec.architecture})"):
            if method == "weights":
                found.append(match_weights(states[0], state, spaces))
            else:
                assert images is not None
                found.append(match_activations(spec, states[0], state, spaces, images[:IMAGES]))
    return Alignment(tuple(found), spaces.notes)


def apply(
    spec: Spec, states: Sequence[dict[str, Tensor]], permutations: Sequence[Permutations]
) -> list[dict[str, Tensor]]:
    """The state dicts with their channels reordered; as they are where there is nothing to reorder."""
    if not any(permutations):
        return list(states)
    spaces = spaces_of(spec)
    return [permute(state, spaces, orders) for state, orders in zip(states, permutations, strict=True)]


def read(path: Path, leaves: int) -> tuple[Permutations, ...]:
    """The permutations in a `recipe.safetensors`. Raises SourceError for what is none."""
    found: list[dict[str, Tensor]] = [{} for _ in range(leaves)]
    for key, order in read_tensors(path, str(path)).items():
        prefix, leaf, space = (*key.split("/", 2), "", "")[:3]
        if prefix != PREFIX:
            continue
        known = leaf in map(str, range(leaves)) and order.dtype == torch.int64 and order.dim() == 1
        if not known or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise SourceError(f"{path} holds {key}, which is no permutation of one of {leaves} sources.")
        found[int(leaf)][space] = order
    return tuple(found)
