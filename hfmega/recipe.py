"""A merge is a recipe, not a tensor: coefficients over the sources plus seeded noise, and how weights come from it.

    theta(recipe) = sum_k c[k] * theta_k + sum_m w[m] * noise(seed_m, rate_m, sigma_m, unit_m)

In a genome finer than `model`, c[k] is one number for each group of elements.

`Sources.materialize` is the only way to get weights. It multiplies and adds in float32, separately and in a fixed
order, so the bits are the same on every processor.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfmega import HfmegaError, methods
from hfmega.layout import Genome, Layout, Segments, flatten, groups_of, layout_of
from hfmega.rng import normal_table, philox, raw_words

# The noise of a whole population is kept, else each individual would draw again what the last one let go: after 20
# generations of the default search that is about 72 terms on 2 % of the floats, 8.6 bytes a float of the network.
NOISE_CACHE_BYTES: Final = 32 << 20
NOISE_CACHE_BYTES_A_FLOAT: Final = 10
PIECE: Final = 1 << 16  # words of noise drawn at a time; even, so that pieces are those of one drawing
COPIED: Final = 1 << 22  # floats of a source: up to this size one call for all tensors is faster than one for each


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


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of the flat vector, and what each source has there: [stop - start] in its own dtype."""

    start: int
    stop: int
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Shares:
    """What sources are multiplied with. used: those that have any share, in order; table: float32 [segments, sources];
    bounds: int64 [segments + 1], where the segments begin and end in the flat vector.
    """

    used: tuple[int, ...]
    table: NDArray[np.float32]
    bounds: NDArray[np.int64]

    def factor(self, source: int, part: Part) -> float | Tensor:
        """Of one source in a part: a number, or a number for each element, float32 [stop - start] on the CPU."""
        first = int(np.searchsorted(self.bounds, part.start, "right")) - 1
        last = int(np.searchsorted(self.bounds, part.stop, "left"))
        column = self.table[first:last, source]
        if len(column) == 1:
            return float(column[0])
        return torch.from_numpy(np.repeat(column, np.diff(self.bounds[first : last + 1])))


class Sources:
    """The checkpoints of a merge, ready to be mixed on a device.

    states: one state dict per source, with equal names, shapes and dtypes. Integer tensors come from the first.
    Small sources, and all sources on another device than the CPU, are copied whole. Large ones on the CPU are used
    where they are, in a mapped file say, so that together they may be larger than memory; nobody may change them.
    evidence: what images said of the sources (`fisher`, `regmean`): `<source>/<tensor>` to float32.
    """

    def __init__(
        self, states: Sequence[Mapping[str, Tensor]], parameters: Collection[str], device: torch.device | str = "cpu"
    ) -> None:
        self.layout = layout_of(states[0], parameters)
        self.device = torch.device(device)
        self.integers = {name: t.clone() for name, t in states[0].items() if not t.is_floating_point()}
        self._tensors, self._parts = self._laid_out(states)
        self.evidence: Mapping[str, Tensor] = {}
        self._groups: dict[Genome, Segments] = {}
        self._scratch = torch.empty(max(part.stop - part.start for part in self._parts), device=self.device)
        limit = max(NOISE_CACHE_BYTES, NOISE_CACHE_BYTES_A_FLOAT * self.layout.size)
        self._noise = NoiseCache(self.layout, limit, self.device)

    def _laid_out(self, states: Sequence[Mapping[str, Tensor]]) -> tuple[list[Mapping[str, Tensor]], list[Part]]:
        """The float tensors of each source by name, and the parts in which sources are mixed."""
        if self.device.type != "cpu" or self.layout.size <= COPIED:
            flats = [flatten(state, self.layout).to(self.device) for state in states]
            return [self.layout.views(flat) for flat in flats], [Part(0, self.layout.size, tuple(flats))]
        parts = [
            Part(slot.start, slot.stop, tuple(state[slot.name].reshape(-1) for state in states))
            for slot in self.layout.slots
            if slot.stop > slot.start
        ]
        return list(states), parts

    def __len__(self) -> int:
        return len(self._tensors)

    def materialize(self, recipe: Recipe, out: Tensor) -> None:
        """Write theta(recipe) into out: float32 [layout.size], rounded to the dtypes that are saved.

        A source with coefficient zero is left out, so that a source alone comes back bit for bit. Variances are
        never negative: coefficients outside [0, 1] could make them so.
        Raises HfmegaError when the recipe is for another number of sources.
        """
        if len(recipe.coefficients) != len(self):
            raise HfmegaError(f"the recipe has {len(recipe.coefficients)} coefficients for {len(self)} sources.")
        shares = self._shares(recipe)
        for part in self._parts:
            self._mix(part, shares, out[part.start : part.stop])
        if recipe.static:
            self._merge_static(recipe, recipe.static, out)
        for term in recipe.noise:
            index, values = self._noise.get(term)
            out.index_add_(0, index, values * float(np.float32(term.weight)))
        self.settle(out)

    def _shares(self, recipe: Recipe) -> Shares:
        if not recipe.offsets:
            used = tuple(k for k, c in enumerate(recipe.coefficients) if c != 0.0)
            return Shares(used, np.array([recipe.coefficients], np.float32), np.array([0, self.layout.size]))
        groups = self.groups(recipe.genome)
        table = recipe.table(groups.count).astype(np.float32)[groups.owners]
        used = tuple(np.flatnonzero(table.any(axis=0)).tolist())
        return Shares(used, table, np.concatenate([[0], np.cumsum(groups.sizes)]))

    def _mix(self, part: Part, shares: Shares, out: Tensor) -> None:
        """Write the sum of the sources into one part of the flat vector, each product rounded before it is added."""
        if not shares.used:
            out.zero_()
        for position, source in enumerate(shares.used):
            tensor, factor = part.tensors[source], shares.factor(source, part)
            product = self._scratch[: len(out)] if position else out
            if isinstance(factor, Tensor):
                factor = factor.to(self.device)
            if tensor.dtype == torch.float32:
                torch.mul(tensor, factor, out=product)
            else:
                product.copy_(tensor).mul_(factor)
            if position:
                out.add_(product)

    def groups(self, genome: Genome) -> Segments:
        """The groups of a genome in this layout."""
        if genome not in self._groups:
            self._groups[genome] = groups_of(self.layout, genome)
        return self._groups[genome]

    def _merge_static(self, recipe: Recipe, static: Static, out: Tensor) -> None:
        """Write the parameters of a static method into out, tensor by tensor."""
        leaves = [k for k, c in enumerate(recipe.coefficients) if c != 0.0]
        for slot in self.layout.slots:
            if slot.parameter:
                part = slice(slot.start, slot.stop)
                models = [self._tensors[k][slot.name].float() for k in leaves]
                base = None if static.base is None else self._tensors[static.base][slot.name].float()
                known = [self.evidence.get(f"{k}/{slot.name}") for k in leaves]
                out[part] = static_tensor(static, slot.name, models, base, known).flatten()

    def settle(self, out: Tensor) -> None:
        """Make a flat vector what a file can hold: variances not negative, values rounded to their saved dtype."""
        for slot in self.layout.slots:
            if slot.is_variance:
                out[slot.start : slot.stop].clamp_(min=0.0)
            if slot.dtype != torch.float32:
                part = out[slot.start : slot.stop]
                part.copy_(part.to(slot.dtype))

    def state_dict(self, flat: Tensor) -> dict[str, Tensor]:
        """flat: float32 [layout.size] -> the state dict with the sources' names, shapes and dtypes, on the CPU."""
        cpu = flat.detach().cpu()
        floats = {
            slot.name: cpu[slot.start : slot.stop].view(slot.shape).to(slot.dtype).clone() for slot in self.layout.slots
        }
        return {**floats, **self.integers}


def static_tensor(
    static: Static, name: str, models: Sequence[Tensor], base: Tensor | None, evidence: Sequence[Tensor | None]
) -> Tensor:
    """One tensor by a static method; evidence: what images said of it in each model, None where they say nothing.

    Raises HfmegaError for a method without what it needs.
    """
    if static.method in ("fisher", "regmean"):
        known = [part.to(models[0].device) for part in evidence if part is not None]
        if len(known) < len(models):
            return torch.stack(list(models)).mean(0)
        return (methods.fisher if static.method == "fisher" else methods.regmean)(models, known)
    if static.method == "slerp":
        if len(models) != 2:
            raise HfmegaError(f"slerp goes between two sources, not {len(models)}.")
        return methods.slerp(models[0], models[1])
    if base is None:
        raise HfmegaError(f"{static.method} needs a base.")
    deltas = [model - base for model in models]
    if static.method == "ties":
        return methods.ties(base, deltas, static.density, static.scale)
    key = ("dare", static.seed, name)
    return methods.dare(base, deltas, static.density, static.scale, key, elect=static.method == "dare-ties")


class NoiseCache:
    """Noise terms on a device, 6 bytes for each element that is hit; the oldest leave when there are too many.

    A term is kept as what decides it, (index int32 [hits], lots uint16 [hits]), since terms differ in little else.
    """

    def __init__(self, layout: Layout, limit: int, device: torch.device) -> None:
        self._layout, self._limit, self._device = layout, limit, device
        self._terms: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self._scaled: dict[float, Tensor] = {}
        self._bytes = 0

    def get(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """What `noise_values` says of a term, on the device: int32 (of huge networks int64) and float32 [hits]."""
        index, lots = self._drawn(noise)
        if noise.sigma not in self._scaled:
            table = normal_table() * np.float32(noise.sigma)
            self._scaled[noise.sigma] = torch.from_numpy(table).to(self._device)
        return index, self._scaled[noise.sigma].index_select(0, lots.int())

    def _drawn(self, noise: Noise) -> tuple[Tensor, Tensor]:
        key = (noise.seed, noise.rate, noise.unit)
        if key not in self._terms:
            index, lots = noise_lots(noise, self._layout)
            narrow = index.astype(np.int32 if self._layout.size < 2**31 else np.int64)
            self._terms[key] = torch.from_numpy(narrow).to(self._device), torch.from_numpy(lots).to(self._device)
            self._bytes += narrow.nbytes + lots.nbytes
            while self._bytes > self._limit and len(self._terms) > 1:
                _, oldest = self._terms.popitem(last=False)
                self._bytes -= sum(part.nbytes for part in oldest)
        self._terms.move_to_end(key)
        return self._terms[key]


def noise_values(noise: Noise, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The elements that a noise term (of weight 1) hits: int64 [hits] into the flat vector; their float32 [hits]."""
    index, lots = noise_lots(noise, layout)
    return index, normal_table()[lots] * np.float32(noise.sigma)


def noise_lots(noise: Noise, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """The elements that a noise term hits, int64 [hits], and which of the normal quantiles each gets, uint16 [hits].

    Each tensor draws from its own generator, keyed by (seed, tensor name): 32 bits decide whether an element (or the
    whole tensor) is hit, 16 bits pick the normal quantile of an element that is.
    """
    threshold = round(noise.rate * 2**32)
    indices, lots = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
    for slot in layout.slots:
        if not slot.parameter:
            continue
        bits = philox(noise.seed, slot.name)
        size = slot.stop - slot.start
        hit = (
            hits(bits, size, threshold) if noise.unit == "element" else np.arange(size * hits(bits, 1, threshold).size)
        )
        indices.append(hit + slot.start)
        lots.append(raw_words(bits, len(hit), "<u2").astype(np.uint16, copy=False))
    return np.concatenate(indices), np.concatenate(lots)


def hits(bits: np.random.Philox, size: int, threshold: int) -> NDArray[np.int64]:
    """Which of the next `size` 32-bit words are below a threshold: int64 [hits]. Drawn in pieces that stay in cache."""
    starts = range(0, size, PIECE)
    found = [np.flatnonzero(raw_words(bits, min(PIECE, size - n), "<u4") < threshold) + n for n in starts]
    return np.concatenate([np.empty(0, np.int64), *found])
