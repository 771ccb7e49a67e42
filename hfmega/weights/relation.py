"""What two checkpoints are to each other, told from their weights alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

import torch
from torch import Tensor

Relation = Literal["identical", "shared trunk", "independent"]
# Weight matrices of networks trained from different seeds are nearly orthogonal (cosines of some hundredths), those of
# branches of one trunk are nearly parallel, so that any threshold between the two tells them apart.
TRUNK_COSINE: Final = 0.3


@dataclass(frozen=True)
class Layer:
    """A tensor in two checkpoints: the cosine of the angle between them, and their Euclidean distance."""

    name: str
    matrix: bool
    cosine: float
    distance: float


@dataclass(frozen=True)
class Kinship:
    """relation: by the rule of `relate`. cosine: the median over the weight matrices."""

    relation: Relation
    cosine: float
    layers: tuple[Layer, ...]


def relate(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Kinship:
    """Two state dicts with equal names and shapes.

    `identical`: every tensor is equal. `shared trunk`: the median cosine of the weight matrices (tensors of two or more
    dimensions; biases and norms point the same way in any two networks) is at least TRUNK_COSINE. Else `independent`.
    """
    layers = tuple(_layer(name, first[name], second[name]) for name in sorted(first) if first[name].is_floating_point())
    cosine = median([layer.cosine for layer in layers if layer.matrix] or [layer.cosine for layer in layers])
    if all(first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first):
        return Kinship("identical", cosine, layers)
    return Kinship("shared trunk" if cosine >= TRUNK_COSINE else "independent", cosine, layers)


def _layer(name: str, first: Tensor, second: Tensor) -> Layer:
    a, b = first.double().flatten(), second.double().flatten()
    norms = float(a.norm() * b.norm())
    cosine = float(a @ b) / norms if norms else float(torch.equal(a, b))
    return Layer(name, first.dim() > 1, cosine, float((a - b).norm()))


def loosest(states: Sequence[Mapping[str, Tensor]]) -> Kinship:
    """The kinship of the first checkpoint and the one that is least like it.

    Not of all pairs, whose number grows with the square: where not all are of one trunk, one is not of the first's.
    """
    return min((relate(states[0], state) for state in states[1:]), key=lambda kinship: kinship.cosine)


def outlook(kinship: Kinship, statistics: bool) -> str:
    """One line for someone about to merge: what the weights are to each other, and what that promises.

    statistics: whether the networks have BatchNorm statistics.
    """
    best = "best source (BN re-estimated)" if statistics else "best source"
    promise = {
        "identical": "there is nothing to merge",
        "shared trunk": "their averages usually work, so a merge can pay",
        "independent": f"networks between them usually fall apart, so expect the {best} to win",
    }[kinship.relation]
    return f"relation: {kinship.relation} (median cosine {kinship.cosine:.2f}): {promise} (more: hfmega inspect)"
