"""Everything before the search: sources on this disk, images in memory, a network on the device, all checks passed."""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hfmega import HfmegaError, align, hub, lineage
from hfmega.choose import AVERAGE, CENTROID, SEARCH
from hfmega.data import DEFAULT_DATASET, Dataset, Split, label_order, load_split, normalizer, open_dataset, stratified
from hfmega.evaluate import Evaluator, processes
from hfmega.hub import Checkpoint
from hfmega.output import Output
from hfmega.recipe import Recipe, source_alone
from hfmega.relation import loosest, outlook
from hfmega.settings import MergeSettings, recorded
from hfmega.splits import SplitPlan, plan_splits
from hfmega.weights import check_mergeable, load_weights, mix

NODE_NAME: Final = re.compile(r"merge(-\d+)?")


@dataclass(frozen=True)
class Member:
    """A source as the user named it: a leaf, or an earlier merge of hfmega as its recipe over the leaves.

    inputs: the names of the leaves of an earlier merge.
    """

    name: str
    recipe: Recipe
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A merge that has passed every check. checkpoints: the leaves, in the order of every recipe's coefficients."""

    settings: MergeSettings
    checkpoints: tuple[Checkpoint, ...]
    members: tuple[Member, ...]
    dataset: Dataset
    plan: SplitPlan
    search: Split
    confirm: Split | None
    calibration: Split | None
    test: Split
    evaluator: Evaluator
    alignment: align.Alignment
    notes: tuple[str, ...]

    @property
    def merged(self) -> tuple[Member, ...]:
        """What is merged: every member but the base."""
        return self.members[:-1] if self.settings.base else self.members

    @property
    def splits(self) -> dict[str, Split]:
        """Purpose to images, of those that there are."""
        every = {"search": self.search, "confirm": self.confirm, "calibration": self.calibration, "test": self.test}
        return {purpose: split for purpose, split in every.items() if split is not None}

    @property
    def fingerprint(self) -> str:
        """What an unfinished run must share with this one to be its beginning."""
        identity = [
            recorded(self.settings),
            [c.sha256 for c in self.checkpoints],
            [[member.name, repr(member.recipe)] for member in self.members if member.inputs],
            {p: s.fingerprint for p, s in self.splits.items()},
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def prepare(settings: MergeSettings, output: Output) -> Job:
    """Pull the sources, check that they can be merged, choose and decode the images.

    Raises HfmegaError for anything that stands in the way of a merge.
    """
    state = processes()
    checkpoints, members, notes = gather(settings, output, state)
    states = [load_weights(checkpoint) for checkpoint in checkpoints]
    check_mergeable(checkpoints, states)
    output.say(outlook(loosest(states)))
    config = checkpoints[0].config
    with state.main_process_first():
        dataset = open_dataset(
            choose_dataset(settings, checkpoints), settings.image_column, settings.label_column, settings.token
        )
    plan = plan_splits(dataset, [c.record for c in checkpoints], settings.splits)
    splits = {purpose: load_split(dataset, rows, config, purpose) for purpose, rows in plan.rows.items() if len(rows)}
    _, label_note = label_order(dataset.classes, config.get("label_names"))
    alignment = aligned(settings, config, states, splits.get("calibration"))
    notes += [*plan.notes, *([label_note] if label_note else []), *alignment.notes]
    for note in (*notes, *([plan.leak] if plan.leak else [])):
        output.say(note)
    output.say(f"{', '.join(f'{len(split):,} {purpose}' for purpose, split in splits.items())} images")
    output.say(
        f"processes: {state.num_processes}, device: {state.device.type}, threads: {torch.get_num_threads()} each"
    )
    turned = align.apply(config, states, alignment.permutations)
    evaluator = Evaluator(config, mix(checkpoints, turned, state.device), splits.get("calibration"), settings.precision)
    output.detail(f"{evaluator.sources.layout.size:,} floats in each source, batches of {evaluator.batch_size} images")
    output.detail(f"convolutions with the BatchNorm behind them folded in: {len(evaluator.folded or ())}")
    if settings.calibrate and not evaluator.can_calibrate:
        raise HfmegaError(
            "there are no BatchNorm statistics to re-estimate, or no images to do it with: --no-calibrate."
        )
    return Job(
        settings,
        tuple(checkpoints),
        tuple(members),
        dataset,
        plan,
        stratified(splits["search"]),
        splits.get("confirm"),
        splits.get("calibration"),
        splits["test"],
        evaluator,
        alignment,
        tuple(notes),
    )


def aligned(
    settings: MergeSettings, config: dict[str, Any], states: Sequence[dict[str, Tensor]], calibration: Split | None
) -> align.Alignment:
    """The permutations that `--align` asks for, the same in every process."""
    pixels = calibration.images[: align.IMAGES] if calibration else None
    images = normalizer(config, torch.device("cpu"))(pixels) if pixels is not None else None
    found = [align.align(settings.align, config, states, images)]
    if processes().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


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
        with state.main_process_first():
            try:
                recipe, below = expand(found, settings.token) if settings.searches else (Recipe((1.0,)), [found])
            except HfmegaError as error:
                notes.append(f"{found.name} is a merge whose sources cannot be had, so it is taken as it is: {error}")
                recipe, below = Recipe((1.0,)), [found]
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


def expand(found: Checkpoint, token: str | None) -> tuple[Recipe, list[Checkpoint]]:
    """The recipe of a source and the leaves that it is over: of a merge its own, of anything else itself.

    Weights that are no longer those of their lineage are a leaf; so is a merge of aligned sources or with re-estimated
    statistics, which its recipe cannot say.
    """
    folder = hub.lineage_folder(found, token)
    if folder is None:
        return Recipe((1.0,)), [found]
    made = lineage.read(folder / hub.LINEAGE)
    if made.recipe.calibrate or made.aligned or made.result.sha256 != found.sha256:
        return Recipe((1.0,)), [found]
    return made.recipe, [lineage.find_source(entry, folder, None, token) for entry in made.sources]


def pull_all(settings: MergeSettings, output: Output, state: PartialState) -> list[Checkpoint]:
    """The sources on this disk, each once, each with a name of its own."""
    checkpoints: list[Checkpoint] = []
    for source in settings.pulled:
        output.say(f"pulling {source}")
        with state.main_process_first():
            found = hub.pull(source, settings.token)
        if found.sha256 in (c.sha256 for c in checkpoints):
            raise HfmegaError(f"{source} has the same weights as an earlier source: name each source once.")
        checkpoints.append(replace(found, name=distinct(found, [c.name for c in checkpoints])))
    return checkpoints


def distinct(found: Checkpoint, taken: Collection[str]) -> str:
    """The name of a checkpoint, with some of its sha256 if another thing is called so."""
    if found.name in {AVERAGE, SEARCH, CENTROID, *taken} or NODE_NAME.fullmatch(found.name):
        return f"{found.name}-{found.sha256[:6]}"
    return found.name


def choose_dataset(settings: MergeSettings, checkpoints: list[Checkpoint]) -> str:
    """The dataset that the user named, else the one that the sources' records agree on, else CIFAR-10."""
    recorded_sets = {c.record["dataset"] for c in checkpoints if c.record}
    if settings.dataset:
        return settings.dataset
    if len(recorded_sets) > 1:
        raise HfmegaError(
            f"the sources were trained on {' and '.join(sorted(recorded_sets))}: name one with --dataset."
        )
    return recorded_sets.pop() if recorded_sets else DEFAULT_DATASET
