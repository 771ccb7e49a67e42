"""`lineage.json`: what a merge was made of, how, and what came out; reading, writing and replaying it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hfmega import HfmegaError, align, hub
from hfmega.compare import Verdict
from hfmega.data import DEFAULT_DATASET, Dataset, evaluation_split, open_dataset
from hfmega.hub import Checkpoint
from hfmega.recipe import Recipe, Sources, Static
from hfmega.run import WORK, write_atomically
from hfmega.search import Generation
from hfmega.settings import WITH_EVIDENCE
from hfmega.shards import INDEX
from hfmega.tensors import read_tensors
from hfmega.weights import check_mergeable, load_weights, mix, rebuild, save_weights

FORMAT_VERSION: Final = 1
OFFSETS: Final = "offsets"
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
    """A model that the merge is shown against, on the same test images."""

    name: str
    kind: Kind
    accuracy: float
    interval: Interval
    loss: float


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
class Candidate:
    """A candidate of the run-off: mean loss and accuracy on the images that it was judged on."""

    name: str
    images: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Result:
    """The merged model on the test split, and against the best reference that is one model."""

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
    p_value: float
    verdict: Verdict


@dataclass(frozen=True)
class Lineage:
    """Everything that is needed to make a merge again and to judge it. No path of a machine, no token."""

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
    __pydantic_config__: ClassVar = NUMBERS

    @property
    def aligned(self) -> bool:
        """Whether channels of the sources were permuted; the permutations lie in `recipe.safetensors`."""
        return bool(self.settings.get("align", "none") != "none")


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
    return with_offsets(lineage, path.parent / hub.RECIPE)


def check(lineage: Lineage, path: Path) -> None:
    """Raises HfmegaError for what no merge can be, though its form is right."""
    if not lineage.sources or not lineage.nodes or "test" not in lineage.data.splits:
        raise HfmegaError(f"{path} is not a lineage: it lacks sources, nodes or test images.")
    settings, environment = lineage.settings, lineage.environment
    if not isinstance(settings.get("preset"), str) or not isinstance(settings.get("calibrate", "missing"), bool | None):
        raise HfmegaError(
            f"{path} is not a lineage: its settings lack a preset, or whether statistics were re-estimated."
        )
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


@dataclass(frozen=True)
class Replay:
    """The hash of the weights that were rebuilt, and of those that the lineage promises."""

    sha256: str
    expected: str

    @property
    def equal(self) -> bool:
        return self.sha256 == self.expected


def replay(merge: str, places: Path | None = None, output: Path | None = None, token: str | None = None) -> Replay:
    """Rebuild a merge (folder or Hub id) from its lineage and its pinned sources alone, and compare the hash.

    places: where local sources lie, found by hash; output: a folder for the rebuilt weights.
    Raises HfmegaError when the lineage cannot be read or a source cannot be had.
    """
    folder = hub.pull_merge(merge, token)
    lineage = read(folder / hub.LINEAGE)
    state = rebuilt(lineage, folder, places, token).state
    with TemporaryDirectory() as scratch:
        target = Path(output or scratch)
        target.mkdir(parents=True, exist_ok=True)
        return Replay(save_weights(state, target / hub.WEIGHTS), lineage.result.sha256)


@dataclass(frozen=True)
class Rebuilt:
    """What a lineage was made of, and the weights that its recipe makes of it. sources: aligned, ready to be mixed."""

    checkpoints: list[Checkpoint]
    sources: Sources
    state: dict[str, Tensor]


def rebuilt(lineage: Lineage, folder: Path, places: Path | None, token: str | None) -> Rebuilt:
    """Make the weights of a lineage again. folder: with the tensors beside it.

    Raises HfmegaError when a source cannot be had, or when what lies in the folder does not fit.
    """
    checkpoints = [find_source(entry, folder, places, token) for entry in lineage.sources]
    states = [load_weights(checkpoint) for checkpoint in checkpoints]
    check_mergeable(checkpoints, states)
    if lineage.aligned:
        permutations = align.read(folder / hub.RECIPE, len(states))
        states = align.apply(checkpoints[0].config, states, permutations)
    sources, path = mix(checkpoints, states), folder / hub.STATISTICS
    if lineage.recipe.static and lineage.recipe.static.method in WITH_EVIDENCE:
        sources.evidence = read_evidence(folder / hub.RECIPE, lineage.recipe.static, sources)
    statistics = read_tensors(path, str(path)) if lineage.recipe.calibrate and path.exists() else {}
    return Rebuilt(checkpoints, sources, rebuild(sources, lineage.recipe, statistics))


def read_evidence(path: Path, static: Static, sources: Sources) -> dict[str, Tensor]:
    """What images said of the sources, of a `recipe.safetensors`. Raises HfmegaError for what does not fit them."""
    tensors = read_tensors(path, str(path))
    found = {key.removeprefix(f"{EVIDENCE}/"): t for key, t in tensors.items() if key.startswith(f"{EVIDENCE}/")}
    shapes = {slot.name: slot.shape for slot in sources.layout.slots if slot.parameter}
    if static.method == "regmean":
        shapes = {name: (math.prod(shape[1:]),) * 2 for name, shape in shapes.items() if shape}
    expected = {f"{leaf}/{name}": shape for leaf in range(len(sources)) for name, shape in shapes.items()}
    for key, tensor in found.items():
        if tuple(tensor.shape) != expected.get(key) or not tensor.is_floating_point():
            raise HfmegaError(f"{path} holds {EVIDENCE}/{key}, which is no {static.method} of its sources.")
    return found


def find_source(entry: SourceEntry, folder: Path, places: Path | None, token: str | None) -> Checkpoint:
    """The checkpoint of a lineage entry: from the Hub at its commit, else where it lay, else under `places` by hash."""
    if entry.repo_id:
        checkpoint = hub.pull(f"hf://{entry.repo_id}@{entry.revision}", token)  # so written, it is never a folder
        if checkpoint.sha256 != entry.sha256:
            raise HfmegaError(f"{entry.name} is not what was merged: the sha256 of its weights is another.")
        return checkpoint
    remembered = read_places(folder).get(entry.sha256)
    nearby = [path.parent for name in (hub.WEIGHTS, INDEX) for path in sorted(places.rglob(name))] if places else []
    for place in ([Path(remembered)] if remembered else []) + nearby:
        if _hash_at(place) == entry.sha256:
            return hub.pull(str(place))
    raise HfmegaError(
        f"the local source {entry.name} (sha256 {entry.sha256[:12]}) was not found: name its place with --sources DIR."
    )


def _hash_at(place: Path) -> str | None:
    """The sha256 of the weights in a folder; None where there are none."""
    try:
        return hub.sha256_of_weights(place, hub.shards_in(place, {path.name for path in place.iterdir()}))
    except (OSError, HfmegaError):
        return None


def evaluation_target(
    source: str,
    dataset: str | None,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    token: str | None,
) -> tuple[Checkpoint, Dataset, str]:
    """A checkpoint, and the dataset and slice to evaluate it on: of a merge those of its report, unless named."""
    checkpoint = hub.pull(source, token)
    folder = checkpoint.folder
    made = None
    with suppress(HfmegaError):
        made = read(hub.pull_merge(source, token) / hub.LINEAGE)
    if dataset is None:
        recorded = made.data.id if made else (checkpoint.record or {}).get("dataset", DEFAULT_DATASET)
        dataset = read_places(folder).get("dataset", recorded) if made else recorded
    opened = open_dataset(dataset, image_column, label_column, token)
    if split is None:
        split = made.data.splits["test"].slice if made and opened.id == made.data.id else evaluation_split(opened)
    return checkpoint, opened, split


def read_places(folder: Path) -> dict[str, str]:
    """Where the local sources of a merge lay on this machine: sha256 to folder."""
    path = folder / WORK / "places.json"
    return TypeAdapter(dict[str, str]).validate_json(path.read_bytes()) if path.is_file() else {}


def write_places(folder: Path, checkpoints: Sequence[Checkpoint], dataset: str | None) -> None:
    """Remember where the local sources (and a local dataset, under its own name) lie on this machine."""
    places = {c.sha256: str(c.folder) for c in checkpoints if c.repo_id is None}
    if dataset and Path(dataset).is_dir():
        places["dataset"] = str(Path(dataset).resolve())
    write_atomically(folder / WORK / "places.json", TypeAdapter(dict[str, str]).dump_json(places, indent=2))


def summary(lineage: Lineage, output: Path) -> dict[str, Any]:
    """What `hfmega merge --json` prints."""
    result = lineage.result
    return {
        "output": str(output),
        "verdict": result.verdict,
        "accuracy": result.accuracy,
        "interval": result.interval,
        "gain": result.gain,
        "gain_interval": result.gain_interval,
        "p_value": result.p_value,
        "best_reference": result.best_reference,
        "references": [{"name": r.name, "kind": r.kind, "accuracy": r.accuracy} for r in lineage.references],
        "fitness": lineage.nodes[-1].fitness,
        "chosen": result.chosen,
        "controls": [asdict(control) for control in lineage.controls],
        "forward_passes": lineage.forward_passes,
        "seconds": lineage.seconds,
        "sha256": result.sha256,
    }
