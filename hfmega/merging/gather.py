"""The sources of a merge on this disk; merges among them expanded to their leaves."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hfmega import phases
from hfmega.errors import HubError, SourceError
from hfmega.folder import LINEAGE
from hfmega.hub import pull
from hfmega.merging.replay import find_source
from hfmega.merging.run_off import AVERAGE, CENTROID, SEARCH
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.search.recipe import Recipe, source_alone
from hfmega.settings import MergeSettings
from hfmega.weights.checkpoint import Checkpoint

NODE_NAME: Final = re.compile(r"merge(-\d+)?")


@dataclass(frozen=True)
class Member:
    """A source as the user named it: a leaf, or an earlier merge of hfmega as its recipe over the leaves.

    inputs: the names of the leaves of an earlier merge.
    """

    name: str
    recipe: Recipe
    inputs: tuple[str, ...] = ()


def gather(
    settings: MergeSettings, output: Output, state: PartialState
) -> tuple[list[Checkpoint], list[Member], list[str]]:
    """The leaves on this disk, the sources over them, and what the user should know about the expansion.

    A source that is a merge of hfmega stands for its recipe over its own leaves; if those cannot be had, it is a leaf.
    """
    leaves: dict[str, Checkpoint] = {}
    parts: list[tuple[str, list[str], Recipe]] = []
    notes = []
    pulled = pull_all(settings, output, state)
    for found in pulled:
        missing = what_is_missing(found, state) if settings.searches else None
        if missing:
            notes.append(f"{found.name} is a merge whose sources cannot be had, so it is taken as it is: {missing}")
        recipe, below = (Recipe((1.0,)), [found]) if missing or not settings.searches else expand(found)
        for leaf in below:
            taken = [c.name for c in (*leaves.values(), *pulled) if c.sha256 != leaf.sha256]
            leaves.setdefault(leaf.sha256, replace(leaf, name=distinct(leaf, taken)))
        parts.append((found.name, [leaf.sha256 for leaf in below], recipe))
    members = [
        Member(name, spread(recipe, hashes, list(leaves)), tuple(leaves[h].name for h in hashes))
        if len(hashes) > 1
        else Member(leaves[hashes[0]].name, source_alone(list(leaves).index(hashes[0]), len(leaves)))
        for name, hashes, recipe in parts
    ]
    return list(leaves.values()), members, notes


def spread(recipe: Recipe, hashes: Sequence[str], leaves: Sequence[str]) -> Recipe:
    """A recipe over some leaves as one over all of them."""
    known = dict(zip(hashes, recipe.coefficients, strict=True))
    table = np.zeros((len(recipe.offsets) // len(hashes), len(leaves)))
    if recipe.offsets:
        table[:, [leaves.index(leaf) for leaf in hashes]] = np.reshape(recipe.offsets, (-1, len(hashes)))
    coefficients = tuple(known.get(leaf, 0.0) for leaf in leaves)
    return replace(recipe, coefficients=coefficients, offsets=tuple(table.ravel().tolist()))


def what_is_missing(found: Checkpoint, state: PartialState) -> str | None:
    """Tell why the leaves of a merge cannot be had, if so: the main process tries, and all take its word."""
    reason: list[str | None] = [None]
    if state.is_main_process:
        try:
            expand(found)
        except (SourceError, HubError) as error:
            reason = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(reason)
    return reason[0]


def expand(found: Checkpoint) -> tuple[Recipe, list[Checkpoint]]:
    """The recipe of a source and the leaves that it is over: of a merge its own, of anything else itself.

    Weights that are no longer those of their lineage are a leaf; so is a merge of aligned sources, with re-estimated
    statistics, or with a last mile, which its recipe cannot say.
    """
    folder = pull.lineage_folder(found)
    if folder is None:
        return Recipe((1.0,)), [found]
    made = lineage.read(folder / LINEAGE)
    trained = made.last_mile is not None and made.last_mile.stands
    if made.recipe.calibrate or made.aligned or trained or made.result.sha256 != found.sha256:
        return Recipe((1.0,)), [found]
    return made.recipe, [find_source(entry, folder, None) for entry in made.sources]


def pull_all(settings: MergeSettings, output: Output, state: PartialState) -> list[Checkpoint]:
    """The sources on this disk, each once, each with a name of its own."""
    checkpoints: list[Checkpoint] = []
    phases.begin("sources")
    for number, source in enumerate(settings.pulled, 1):
        phases.step(f"{number} of {len(settings.pulled)}")
        output.say(f"pulling {source}")
        with state.main_process_first():
            found = pull.pull(source)
        if found.sha256 in (c.sha256 for c in checkpoints):
            raise SourceError(f"{source} has the same weights as an earlier source: name each source once.")
        checkpoints.append(replace(found, name=distinct(found, [c.name for c in checkpoints])))
    return checkpoints


def distinct(found: Checkpoint, taken: Collection[str]) -> str:
    """The name of a checkpoint, with some of its sha256 if another thing is called so."""
    if found.name in {AVERAGE, SEARCH, CENTROID, *taken} or NODE_NAME.fullmatch(found.name):
        return f"{found.name}-{found.sha256[:6]}"
    return found.name
