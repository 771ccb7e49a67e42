"""The checkpoints of a merge as tensors, and `materialize`, the only way from a recipe to weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfmega import folder
from hfmega.errors import SourceError
from hfmega.models.library import outline, parameters_of, stage_of
from hfmega.models.names import in_container
from hfmega.search.recipe import Recipe, Static
from hfmega.settings import Genome
from hfmega.weights import formulas
from hfmega.weights.checkpoint import STATISTICS, Checkpoint
from hfmega.weights.fitting import expected_of
from hfmega.weights.layout import Segments, Slot, flatten, groups_of, layout_of
from hfmega.weights.noise import NOISE_CACHE_BYTES, NOISE_CACHE_BYTES_A_FLOAT, NoiseCache

COPIED: Final = 1 << 23  # floats of all sources: up to so many one call for all tensors is faster than one for each


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
    Few small sources, and all sources on another device than the CPU, are copied whole. Large or many ones on the CPU
    are used where they are, in a mapped file say, so that together they may be larger than memory; nobody may change
    them.
    evidence: what images said of the sources (`fisher`, `regmean`): `<source>/<tensor>` to float32.
    """

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        parameters: Collection[str],
        device: torch.device | str = "cpu",
        stage: Callable[[str], str] = in_container,
    ) -> None:
        self.layout = layout_of(states[0], parameters)
        self.device = torch.device(device)
        self._stage = stage
        self.integers = {name: t.clone() for name, t in states[0].items() if not t.is_floating_point()}
        self._tensors, self._parts = self._laid_out(states)
        self.evidence: Mapping[str, Tensor] = {}
        self._tied: list[tuple[Slot, Slot]] = []
        self._groups: dict[Genome, Segments] = {}
        self._scratch = torch.empty(max(part.stop - part.start for part in self._parts), device=self.device)
        limit = max(NOISE_CACHE_BYTES, NOISE_CACHE_BYTES_A_FLOAT * self.layout.size)
        self._noise = NoiseCache(self.layout, limit, self.device)

    def _laid_out(self, states: Sequence[Mapping[str, Tensor]]) -> tuple[list[Mapping[str, Tensor]], list[Part]]:
        """The float tensors of each source by name, and the parts in which sources are mixed."""
        if self.device.type != "cpu" or self.layout.size * len(states) <= COPIED:
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
        Raises SourceError when the recipe is for another number of sources.
        """
        if len(recipe.coefficients) != len(self):
            raise SourceError(f"the recipe has {len(recipe.coefficients)} coefficients for {len(self)} sources.")
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
            self._groups[genome] = groups_of(self.layout, genome, self._stage)
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

    def tie(self, twins: Mapping[str, str]) -> None:
        """Let tensors be those of another name. twins: name to that other name."""
        slots = {slot.name: slot for slot in self.layout.slots}
        self._tied = [(slots[name], slots[one]) for name, one in twins.items() if name in slots and one in slots]

    def settle(self, out: Tensor) -> None:
        """Make a flat vector what a file can hold: variances not negative, values rounded to their saved dtype."""
        for slot, one in self._tied:
            out[slot.start : slot.stop] = out[one.start : one.stop]
        for slot in self.layout.slots:
            if slot.is_variance:
                out[slot.start : slot.stop].clamp_(min=0.0)
            if slot.dtype != torch.float32:
                part = out[slot.start : slot.stop]
                part.copy_(part.to(slot.dtype))

    def state_dict(self, flat: Tensor) -> dict[str, Tensor]:
        """flat: float32 [layout.size] -> the state dict with the sources' names, shapes and dtypes, on the CPU.

        What is float32 is no copy of a flat vector that is there.
        """
        views = self.layout.views(flat.detach().cpu())
        floats = {slot.name: views[slot.name].to(slot.dtype) for slot in self.layout.slots}
        return {**floats, **self.integers}


def static_tensor(
    static: Static, name: str, models: Sequence[Tensor], base: Tensor | None, evidence: Sequence[Tensor | None]
) -> Tensor:
    """One tensor by a static method; evidence: what images said of it in each model, None where they say nothing.

    Raises SourceError for a method without what it needs.
    """
    if static.method in ("fisher", "regmean"):
        known = [part.to(models[0].device) for part in evidence if part is not None]
        if len(known) < len(models):
            return torch.stack(list(models)).mean(0)
        return (formulas.fisher if static.method == "fisher" else formulas.regmean)(models, known)
    if static.method == "slerp":
        if len(models) != 2:
            raise SourceError(f"slerp merges 2 sources, not {len(models)}.")
        return formulas.slerp(models[0], models[1])
    if base is None:
        raise SourceError(f"{static.method} needs a base.")
    deltas = [model - base for model in models]
    if static.method == "ties":
        return formulas.ties(base, deltas, static.density, static.scale)
    key = ("dare", static.seed, name)
    return formulas.dare(base, deltas, static.density, static.scale, key, elect=static.method == "dare-ties")


def mix(
    checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu"
) -> Sources:
    """The checkpoints ready to be mixed; what their network calls parameters may get noise."""
    spec = checkpoints[0].spec
    parameters = parameters_of(spec, outline(spec))  # only the names are needed
    found = Sources(states, parameters, device, stage_of(spec))
    found.tie(expected_of(spec).twins)
    return found


def rebuild(sources: Sources, recipe: Recipe, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a recipe with its re-estimated BatchNorm statistics: the weights of the merged model.

    Raises SourceError for anything else that is called statistics.
    """
    flat = torch.empty(sources.layout.size, device=sources.device)
    sources.materialize(recipe, flat)
    state = sources.state_dict(flat)
    for name, tensor in statistics.items():
        known = name.endswith(STATISTICS) and name in state and tensor.is_floating_point()
        if not known or tensor.shape != state[name].shape:
            raise SourceError(
                f"{folder.STATISTICS} has {name} of shape {tuple(tensor.shape)}: the network has no such."
            )
    return {**state, **{name: tensor.to(state[name].dtype) for name, tensor in statistics.items()}}
