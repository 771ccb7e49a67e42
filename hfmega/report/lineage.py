"""`lineage.json`: what a merge was made of, how, and what came out; reading, writing and replaying it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hfmega import __version__
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import Verdict
from hfmega.folder import RECIPE, write_atomically
from hfmega.search import Generation
from hfmega.search.recipe import Recipe, source_alone
from hfmega.settings import UPDATE_BN
from hfmega.weights.tensors import read_tensors

FORMAT_VERSION: Final = 1
CARD_VERSION: Final = 2
REPO_ID: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
OFFSETS: Final = "offsets"
FROM_BEST_SOURCE: Final = "the same last mile from the best source"
SELF_TAUGHT: Final = "the start, taught by itself"
EVIDENCE: Final = "evidence"
LARGEST: Final = float(torch.finfo(torch.float32).max)
NUMBERS: Final = {"ser_json_inf_nan": "strings"}  # a failed candidate's loss is infinite, which JSON has no number for
Interval = tuple[float, float]
Kind = Literal["source", "calibrated source", "average", "ensemble"]


@dataclass(frozen=True)
class SourceEntry:
    """A leaf. A Hub source has `repo_id` and `revision` (commit sha), a local one `path` (its folder's name)."""

    name: str
    repo_id: str | None
    path: str | None
    revision: str | None
    sha256: str
    seed: int | None
    license: str | None
    accuracy: float
    calibrated_accuracy: float | None


@dataclass(frozen=True)
class NodeEntry:
    """One merge of the tree, its recipe over the leaves. fitness: accuracy on the images that steered the search;
    accuracy: on test; chosen: who won its run-off. A source that is itself a merge is a node without a history.
    """

    name: str
    inputs: tuple[str, ...]
    recipe: Recipe
    fitness: float
    accuracy: float
    history: tuple[Generation, ...]
    chosen: str = ""


@dataclass(frozen=True)
class SplitEntry:
    """Which images had a purpose: `images` of the slice `slice`, with a fingerprint of their bytes and labels."""

    slice: str
    images: int
    fingerprint: str


@dataclass(frozen=True)
class DataEntry:
    """The dataset at a commit, and its splits: search, confirm, calibration, test."""

    id: str
    revision: str | None
    splits: dict[str, SplitEntry]


@dataclass(frozen=True)
class Reference:
    """A model that the merge is shown against, on the same test images. members: what a greedy soup is the mean of."""

    name: str
    kind: Kind
    accuracy: float
    interval: Interval
    loss: float
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Control:
    """What the best source (by its loss on the fitness images) reached alone with the merge's budget, on test.

    start: its accuracy before; gain: over that. remainder: what the merge has over the control; p_value: McNemar's.
    """

    name: str
    source: str
    accuracy: float
    interval: Interval
    start: float
    gain: float
    remainder: float
    remainder_interval: Interval
    p_value: float
    forward_passes: int


@dataclass(frozen=True)
class LastMile:
    """A short training after the merge. start: who won the run-off; its recipe is that of the lineage, start_sha256 the
    hash of its weights, accuracy_of_start that on test. teacher: the recipes of the ensemble, if there was one.

    stands: whether the trained network replaced its start: then the folder holds its weights. judged: on so many
    labelled images that it was not taught (0: on the confirm images).
    """

    distill: bool
    fine_tune: bool
    start: str
    teacher: tuple[Recipe, ...]
    images: int
    epochs: int
    batch_size: int
    learning_rate: float
    mirrored: bool
    calibrated: bool
    seed: int
    accuracy_of_start: float
    stands: bool
    start_sha256: str = ""
    shifted: bool = False
    judged: int = 0


@dataclass(frozen=True)
class Candidate:
    """A candidate of the run-off: mean loss and accuracy on the images that it was judged on."""

    name: str
    images: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Gain:
    """The merged model over another one on the same images: accuracy with its interval and McNemar's p, mean loss.

    p_value: None between a model and itself; the gain of the loss is None where a loss is not finite.
    """

    over: str
    gain: float
    gain_interval: Interval
    p_value: float | None
    loss_gain: float | None
    loss_gain_interval: Interval | None


@dataclass(frozen=True)
class ClassEntry:
    """One class on the test images: how many there are, and the accuracies of the merge and of the best source."""

    name: str
    images: int
    accuracy: float
    best_source: float


@dataclass(frozen=True)
class Result:
    """The merged model on the test split, and over the best source, as it is or with BN re-estimated (the verdict).

    over_average: over the better of uniform average and greedy soup; None if the result is one of them.
    is_source: the source (or earlier merge) that the result is, as it is or with BN re-estimated.
    disagreements: on how many images only the result is right, and on how many only the best source.
    In a lineage of an older card the best reference may be the average, and what has a default is missing.
    """

    sha256: str
    accuracy: float
    interval: Interval
    loss: float
    correct: int
    total: int
    chosen: str
    best_reference: str
    gain: float
    gain_interval: Interval
    p_value: float | None
    verdict: Verdict
    loss_gain: float | None = None
    loss_gain_interval: Interval | None = None
    over_average: Gain | None = None
    is_source: str | None = None
    per_class: tuple[ClassEntry, ...] = ()
    disagreements: tuple[int, int] | None = None


@dataclass(frozen=True)
class Lineage:
    """Everything that is needed to make a merge again and to judge it. No path of a machine, no token.

    parameters: how many the network has; repo_id: where it was published; card: which card goes with it; date: when it
    was made, in UTC.
    """

    format_version: int
    hfmega_version: str
    architecture: str
    sources: tuple[SourceEntry, ...]
    nodes: tuple[NodeEntry, ...]
    recipe: Recipe
    settings: dict[str, Any]
    data: DataEntry
    environment: dict[str, Any]
    references: tuple[Reference, ...]
    candidates: tuple[Candidate, ...]
    result: Result
    forward_passes: int
    seconds: float
    controls: tuple[Control, ...] = ()
    notes: tuple[str, ...] = ()
    leak: str | None = None
    last_mile: LastMile | None = None
    parameters: int | None = None
    repo_id: str | None = None
    card: int = 1
    date: str | None = None
    __pydantic_config__: ClassVar = NUMBERS

    @property
    def updates_bn(self) -> bool:
        """Whether this is no merge, but one source whose BatchNorm statistics were re-estimated."""
        return bool(self.settings.get("method") == UPDATE_BN)

    @property
    def aligned(self) -> bool:
        """Whether channels of the sources were permuted; the permutations lie in `recipe.safetensors`."""
        return bool(self.settings.get("align", "none") != "none")

    @property
    def current(self) -> bool:
        """Whether this hfmega makes the card of this lineage, word for word."""
        return self.card == CARD_VERSION and self.hfmega_version == __version__

    @property
    def weighted(self) -> tuple[SourceEntry, ...]:
        """The sources that have any weight in the result."""
        recipe, count = self.recipe, len(self.sources)
        if self.trained and self.last_mile and self.last_mile.distill:  # all of them taught it
            return self.sources
        base = recipe.static.base if recipe.static else None
        return tuple(
            source
            for k, source in enumerate(self.sources)
            if k == base or recipe.coefficients[k] != 0 or any(recipe.offsets[k::count])
        )

    @property
    def held(self) -> str | None:
        """The source that the result is, if its recipe is that of one source or of one earlier merge alone."""
        if self.trained:
            return None
        count, calibrate = len(self.sources), self.recipe.calibrate
        known = {source.name: source_alone(k, count, calibrate) for k, source in enumerate(self.sources)}
        known |= {n.name: replace(n.recipe, calibrate=calibrate) for n in self.nodes if is_earlier(n)}
        return next((name for name, recipe in known.items() if recipe == self.recipe), None)

    @property
    def trained(self) -> bool:
        """Whether a last mile replaced the weights that the recipe makes."""
        return self.last_mile is not None and self.last_mile.stands

    @property
    def stands(self) -> bool:
        """Whether the result is a source as it is: nothing that is not published already."""
        return self.held is not None and not self.recipe.calibrate


def is_earlier(node: NodeEntry) -> bool:
    """Whether a node is a source that is itself a merge."""
    return not node.history and not node.chosen


_SCHEMA: Final = TypeAdapter(Lineage)


def read(path: Path) -> Lineage:
    """Read a lineage. Raises HfmegaError when it is missing, malformed, or of another format version."""
    try:
        lineage = _SCHEMA.validate_json(path.read_bytes())
    except OSError as error:
        raise HfmegaError(f"{path.parent} has no readable {path.name}: it is not a merge of hfmega.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top level"
        raise HfmegaError(f"{path} is not a lineage: {first['msg']} (at {where}).") from error
    if lineage.format_version != FORMAT_VERSION:
        raise HfmegaError(f"{path} has lineage format {lineage.format_version}, this hfmega reads {FORMAT_VERSION}.")
    check(lineage, path)
    return with_offsets(lineage, path.parent / RECIPE)


def check(lineage: Lineage, path: Path) -> None:
    """Raises HfmegaError for what no merge can be, though its form is right."""
    if not lineage.sources or not lineage.nodes or "test" not in lineage.data.splits:
        raise HfmegaError(f"{path} is not a lineage: it lacks sources, nodes or test images.")
    settings, environment = lineage.settings, lineage.environment
    if not isinstance(settings.get("preset"), str) or not isinstance(settings.get("calibrate", "missing"), bool | None):
        raise HfmegaError(
            f"{path} is not a lineage: its settings lack a preset, or whether statistics were re-estimated."
        )
    if lineage.repo_id is not None and not REPO_ID.fullmatch(lineage.repo_id):
        raise HfmegaError(f"{path} is not a lineage: {lineage.repo_id!r} is not the id of a repository.")
    if not isinstance(environment.get("num_processes", 1), int):
        raise HfmegaError(f"{path} is not a lineage: its environment has a number of processes that is none.")
    count = len(lineage.sources)
    if not all(is_sound(recipe, count) for recipe in (lineage.recipe, *(node.recipe for node in lineage.nodes))):
        raise HfmegaError(f"{path} is not a lineage: its {count} sources do not fit a recipe of it.")


def is_sound(recipe: Recipe, sources: int) -> bool:
    """Whether a recipe of a file makes sense for so many sources. Its offsets lie beside the file, not in it."""
    static, coefficients = recipe.static, recipe.coefficients
    numbers = [*coefficients, *(number for term in recipe.noise for number in (term.rate, term.sigma, term.weight))]
    bases = (None, *range(sources))
    return (
        len(coefficients) == sources
        and all(abs(number) <= LARGEST for number in [*numbers, static.scale if static else 0.0])  # a NaN is not
        and all(0 <= term.rate <= 1 and term.sigma >= 0 for term in recipe.noise)
        and (static is None or (any(coefficients) and 0 < static.density <= 1 and static.base in bases))
        and not recipe.offsets
    )


def write(lineage: Lineage, path: Path) -> None:
    """Write a lineage as JSON; the offsets of its recipes lie beside it, see `offset_tensors`."""
    nodes = tuple(replace(node, recipe=replace(node.recipe, offsets=())) for node in lineage.nodes)
    bare = replace(lineage, nodes=nodes, recipe=replace(lineage.recipe, offsets=()))
    write_atomically(path, _SCHEMA.dump_json(bare, indent=2) + b"\n")


def offset_tensors(result: Recipe, nodes: Mapping[str, Recipe]) -> dict[str, Tensor]:
    """The offsets of recipes as they lie in `recipe.safetensors`: `offsets` of the result, `offsets/<node>`."""
    named = {OFFSETS: result, **{f"{OFFSETS}/{name}": recipe for name, recipe in nodes.items()}}
    return {
        key: torch.tensor(recipe.offsets, dtype=torch.float64).reshape(-1, len(recipe.coefficients))
        for key, recipe in named.items()
        if recipe.offsets
    }


def with_offsets(lineage: Lineage, path: Path) -> Lineage:
    """The lineage with the offsets that lie beside it. Raises HfmegaError when they are missing or of another shape."""
    if lineage.recipe.genome == "model" and all(node.recipe.genome == "model" for node in lineage.nodes):
        return lineage
    tensors = read_tensors(path, str(path))

    def whole(recipe: Recipe, key: str) -> Recipe:
        if recipe.genome == "model":
            return recipe
        offsets = tensors.get(key)
        if offsets is None or offsets.dim() != 2 or not len(offsets) or offsets.shape[1] != len(recipe.coefficients):
            raise HfmegaError(f"{path} lacks the coefficients of each {recipe.genome} ({key}).")
        return replace(recipe, offsets=tuple(offsets.double().flatten().tolist()))

    nodes = tuple(replace(node, recipe=whole(node.recipe, f"{OFFSETS}/{node.name}")) for node in lineage.nodes)
    return replace(lineage, nodes=nodes, recipe=whole(lineage.recipe, OFFSETS))


def summary(lineage: Lineage, output: Path, published: str | None = None) -> dict[str, Any]:
    """What `hfmega merge --json` prints. published: the URL of the commit, if there was one."""
    result = lineage.result
    return {
        "output": str(output),
        "verdict": result.verdict,
        "accuracy": result.accuracy,
        "interval": result.interval,
        "gain": result.gain,
        "gain_interval": result.gain_interval,
        "p_value": result.p_value,
        "loss_gain": result.loss_gain,
        "loss_gain_interval": result.loss_gain_interval,
        "over_average": asdict(result.over_average) if result.over_average else None,
        "is_source": result.is_source,
        "published": published,
        "best_reference": result.best_reference,
        "references": [{"name": r.name, "kind": r.kind, "accuracy": r.accuracy} for r in lineage.references],
        "fitness": lineage.nodes[-1].fitness,
        "chosen": result.chosen,
        "controls": [asdict(control) for control in lineage.controls],
        "last_mile": asdict(lineage.last_mile) if lineage.last_mile else None,
        "forward_passes": lineage.forward_passes,
        "seconds": lineage.seconds,
        "sha256": result.sha256,
    }
