"""Rebuild a merge from its lineage and its pinned sources, bit for bit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter
from torch import Tensor

from hfmega.errors import HfmegaError, SourceError
from hfmega.folder import LINEAGE, PLACES, RECIPE, STATISTICS, WEIGHTS, WORK, write_atomically
from hfmega.hub import pull
from hfmega.report.lineage import EVIDENCE, Lineage, SourceEntry, read
from hfmega.search.recipe import Static
from hfmega.settings import METHODS
from hfmega.weights import align
from hfmega.weights.checkpoint import Checkpoint, save_weights, sha256_of_weights, shards_in
from hfmega.weights.mergeable import open_sources
from hfmega.weights.shards import INDEX
from hfmega.weights.sources import Sources, mix, rebuild
from hfmega.weights.tensors import read_tensors


@dataclass(frozen=True)
class Replay:
    """The hash of the weights that were rebuilt, and of those that the lineage promises."""

    sha256: str
    expected: str

    @property
    def equal(self) -> bool:
        return self.sha256 == self.expected


def replay(merge: str, places: Path | None = None, output: Path | None = None) -> Replay:
    """Rebuild a merge (folder or Hub id) from its lineage and its pinned sources alone, and compare the hash.

    places: where local sources lie, found by hash; output: a folder for the rebuilt weights.
    Raises HfmegaError when the lineage cannot be read or a source cannot be had.
    """
    folder = pull.pull_merge(merge)
    lineage = read(folder / LINEAGE)
    state = rebuilt(lineage, folder, places).state
    with TemporaryDirectory() as scratch:
        target = Path(output or scratch)
        target.mkdir(parents=True, exist_ok=True)
        return Replay(save_weights(state, target / WEIGHTS), expected_of(lineage))


def expected_of(lineage: Lineage) -> str:
    """The sha256 of the weights that the recipe makes: those of the merge, or where a last mile began."""
    mile = lineage.last_mile
    return mile.start_sha256 if mile and mile.stands else lineage.result.sha256


@dataclass(frozen=True)
class Rebuilt:
    """What a lineage was made of, and the weights that its recipe makes of it. sources: aligned, ready to be mixed."""

    checkpoints: list[Checkpoint]
    sources: Sources
    state: dict[str, Tensor]


def rebuilt(lineage: Lineage, folder: Path, places: Path | None) -> Rebuilt:
    """Make the weights of a lineage again. folder: with the tensors beside it.

    Raises HfmegaError when a source cannot be had, or when what lies in the folder does not fit.
    """
    checkpoints = [find_source(entry, folder, places) for entry in lineage.sources]
    opened = open_sources(checkpoints)
    checkpoints, states = opened.checkpoints, opened.states
    if lineage.aligned:
        permutations = align.read(folder / RECIPE, len(states))
        states = align.apply(checkpoints[0].spec, states, permutations)
    sources, path = mix(checkpoints, states), folder / STATISTICS
    if lineage.recipe.static and METHODS[lineage.recipe.static.method].images:
        sources.evidence = read_evidence(folder / RECIPE, lineage.recipe.static, sources)
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


def find_source(entry: SourceEntry, folder: Path, places: Path | None) -> Checkpoint:
    """The checkpoint of a lineage entry: from the Hub at its commit, else where it lay, else under `places` by hash."""
    if entry.repo_id:
        checkpoint = pull.pull(f"hf://{entry.repo_id}@{entry.revision}")  # so written, it is never a folder
        if checkpoint.sha256 != entry.sha256:
            raise SourceError(f"{entry.name} is not what was merged: the sha256 of its weights is another.")
        return checkpoint
    remembered = read_places(folder).get(entry.sha256)
    nearby = [path.parent for name in (WEIGHTS, INDEX) for path in sorted(places.rglob(name))] if places else []
    for place in ([Path(remembered)] if remembered else []) + nearby:
        if _hash_at(place) == entry.sha256:
            return pull.pull(str(place))
    raise SourceError(
        f"the local source {entry.name} (sha256 {entry.sha256[:12]}) was not found: name its place with --sources DIR."
    )


def _hash_at(place: Path) -> str | None:
    """The sha256 of the weights in a folder; None where there are none."""
    try:
        return sha256_of_weights(place, shards_in(place, {path.name for path in place.iterdir()}))
    except (OSError, SourceError):
        return None


def read_places(folder: Path) -> dict[str, str]:
    """Where the local sources of a merge lay on this machine: sha256 to folder."""
    path = folder / WORK / PLACES
    return TypeAdapter(dict[str, str]).validate_json(path.read_bytes()) if path.is_file() else {}


def write_places(folder: Path, checkpoints: Sequence[Checkpoint], dataset: str | None) -> None:
    """Remember where the local sources (and a local dataset, under its own name) lie on this machine."""
    places = {c.sha256: str(c.folder) for c in checkpoints if c.repo_id is None}
    from hfmega.data.dataset import split_config  # only a merge needs datasets, a replay does not

    folder_, config = split_config(dataset or "")
    if dataset and Path(folder_).is_dir():
        places["dataset"] = ":".join([str(Path(folder_).resolve()), *([config] if config else [])])
    write_atomically(folder / WORK / PLACES, TypeAdapter(dict[str, str]).dump_json(places, indent=2))
