"""Permutations of channels that leave a network's function as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hfmega import HfmegaError
from hfmega.rng import permutation

Permutations = Mapping[str, Tensor]


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
