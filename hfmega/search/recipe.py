"""A merge is a recipe, not a tensor: coefficients over the sources plus seeded noise, and how weights come from it.

    theta(recipe) = sum_k c[k] * theta_k + sum_m w[m] * noise(seed_m, rate_m, sigma_m, unit_m)

In a genome finer than `model`, c[k] is one number for each group of elements.

`Sources.materialize` is the only way to get weights. It multiplies and adds in float32, separately and in a fixed
order, so the bits are the same on every processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hfmega.errors import HfmegaError
from hfmega.settings import Genome


@dataclass(frozen=True)
class Noise:
    """One sparse Gaussian mutation: each unit is hit with probability `rate` and gets `weight` * N(0, sigma^2).

    `unit` is `element` (MeGA, Algorithm 1, lines 29 to 33) or `tensor` (the author's program: all of a tensor or none).
    """

    seed: int
    rate: float
    sigma: float
    unit: Literal["element", "tensor"]
    weight: float = 1.0


StaticMethod = Literal["slerp", "ties", "dare-linear", "dare-ties", "fisher", "regmean"]


@dataclass(frozen=True)
class Static:
    """A method whose weights are no sum of sources. base: index of the source that task vectors start from.

    It merges the sources whose coefficient is not zero; what is no parameter (statistics) is their sum as ever.
    """

    method: StaticMethod
    base: int | None = None
    scale: float = 1.0
    density: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """An individual. coefficients: float64 [sources]; calibrate: whether BatchNorm statistics are re-estimated.

    offsets: float64 [groups, sources], row by row: what each group of the genome adds to the coefficients; none: 0.
    """

    coefficients: tuple[float, ...]
    noise: tuple[Noise, ...] = ()
    calibrate: bool = False
    static: Static | None = None
    genome: Genome = "model"
    offsets: tuple[float, ...] = ()

    def table(self, groups: int) -> NDArray[np.float64]:
        """The coefficients of each group: [groups, sources]. Raises HfmegaError for offsets of other groups."""
        if not self.offsets:
            return np.tile(self.coefficients, (groups, 1))
        if len(self.offsets) != groups * len(self.coefficients):
            raise HfmegaError(
                f"the recipe has {len(self.offsets)} offsets for {groups} groups of {len(self.coefficients)} sources."
            )
        return np.reshape(self.offsets, (groups, -1)) + self.coefficients


def source_alone(index: int, sources: int, calibrate: bool = False) -> Recipe:
    """The recipe of one source as it is."""
    return Recipe(tuple(float(k == index) for k in range(sources)), calibrate=calibrate)


def uniform_average(sources: int, calibrate: bool = False) -> Recipe:
    """The recipe of the plain average (Wortsman et al. 2022, uniform soup)."""
    return Recipe((1.0 / sources,) * sources, calibrate=calibrate)


def blend(recipes: Sequence[Recipe], shares: Sequence[float]) -> Recipe:
    """sum_i shares[i] * recipes[i]: exact arithmetic on recipes, since everything in them is linear."""
    coefficients = tuple(
        sum(share * recipe.coefficients[k] for share, recipe in zip(shares, recipes, strict=True))
        for k in range(len(recipes[0].coefficients))
    )
    weights: dict[Noise, float] = {}
    for share, recipe in zip(shares, recipes, strict=True):
        for term in recipe.noise:
            unweighted = replace(term, weight=1.0)
            weights[unweighted] = weights.get(unweighted, 0.0) + share * term.weight
    noise = tuple(replace(term, weight=weight) for term, weight in weights.items() if weight != 0.0)
    plain = Recipe(coefficients, noise, recipes[0].calibrate)
    fine = [(share, recipe) for share, recipe in zip(shares, recipes, strict=True) if recipe.offsets]
    if not fine:
        return plain
    offsets = sum(share * np.array(recipe.offsets) for share, recipe in fine)
    return replace(plain, genome=fine[0][1].genome, offsets=tuple(np.asarray(offsets).tolist()))


def blend_groups(recipes: Sequence[Recipe], shares: NDArray[np.float64], genome: Genome) -> Recipe:
    """`blend` with shares of its own in each group. shares: float64 [groups, recipes]."""
    mean = blend([replace(recipe, offsets=()) for recipe in recipes], shares.mean(0).tolist())
    tables = np.stack([recipe.table(len(shares)) for recipe in recipes], axis=1)  # [groups, recipes, sources]
    offsets = np.einsum("gr,grs->gs", shares, tables) - np.array(mean.coefficients)
    return replace(mean, genome=genome, offsets=tuple(offsets.ravel().tolist()))


def crossover(first: Recipe, second: Recipe, share: float) -> Recipe:
    """share * first + (1 - share) * second (MeGA, Algorithm 1, line 24)."""
    return blend([first, second], [share, 1.0 - share])


def mutate(recipe: Recipe, noise: Noise) -> Recipe:
    """The recipe with one more noise term (MeGA, Algorithm 1, line 31)."""
    return replace(recipe, noise=(*recipe.noise, noise))


def centroid(recipes: Sequence[Recipe]) -> Recipe:
    """The mean of several recipes."""
    return blend(recipes, [1.0 / len(recipes)] * len(recipes))
