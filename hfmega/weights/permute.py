"""Permutations of channels that leave the function of a network as it is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hfmega.errors import SourceError
from hfmega.models.graph.channels import Axis, Permutations, Space, Spaces
from hfmega.rng import permutation


def permute(state: Mapping[str, Tensor], spaces: Spaces, permutations: Permutations) -> dict[str, Tensor]:
    """A state dict with its channels reordered: position i of a space holds what was at permutations[name][i].

    permutations: int64 [size] by space; a space that is not named stays as it is.
    Raises SourceError for a space that the network has not, or something that is no permutation of it.
    """
    known = {space.name: space for space in spaces.spaces}
    turned = dict(state)
    for name, order in permutations.items():
        if name not in known:
            raise SourceError(f"the network has no channels called {name} that could be permuted.")
        if not torch.equal(order.sort().values, torch.arange(known[name].size)):
            raise SourceError(f"the permutation of {name} is not one of {known[name].size} channels.")
        turn(turned, known[name], order)
    return turned


def turn(state: dict[str, Tensor], space: Space, order: Tensor) -> None:
    """Reorder one space in a state dict, without touching the tensors that were in it."""
    for axis in space.axes:
        tensor = state[axis.tensor].clone()
        part = blocks(tensor, axis, space.size)
        part.copy_(part.index_select(axis.dim, order))
        state[axis.tensor] = tensor


def blocks(tensor: Tensor, axis: Axis, size: int) -> Tensor:
    """What of a tensor moves with a space, as a view: dimension axis.dim counts its channels, the next their width."""
    part = tensor.narrow(axis.dim, axis.offset, size * axis.width)
    return part.unflatten(axis.dim, (size, axis.width)) if axis.width > 1 else part


def random_permutations(spaces: Spaces, seed: int) -> dict[str, Tensor]:
    """A random order of every space."""
    return {s.name: torch.from_numpy(permutation(s.size, seed, "permute", s.name)) for s in spaces.spaces}
