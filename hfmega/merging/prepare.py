"""Everything before the search: sources on this disk, images in memory, a network on the device, all checks passed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hfmega import phases
from hfmega.data.dataset import DEFAULT_DATASET, Dataset, Rows, open_dataset
from hfmega.data.images import Split, load_splits, stratified
from hfmega.data.splits import SplitPlan, plan_splits
from hfmega.errors import SettingsError
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.merging.gather import Member, gather
from hfmega.merging.trackers import Tracker
from hfmega.models.library import Spec, has_statistics, normalizer
from hfmega.output import Output
from hfmega.settings import UPDATE_BN, MergeSettings, recorded
from hfmega.weights import align
from hfmega.weights.checkpoint import Checkpoint
from hfmega.weights.mergeable import open_sources
from hfmega.weights.relation import loosest, outlook
from hfmega.weights.sources import mix


@dataclass(frozen=True)
class Job:
    """A merge that has passed every check. checkpoints: the leaves, in the order of every recipe's coefficients.

    search: the labelled images that steer a search; where no image chooses anything, those of the calibration.
    answered: the images that steer it instead, with the ensemble's answers (`--fitness ensemble`).
    """

    settings: MergeSettings
    checkpoints: tuple[Checkpoint, ...]
    members: tuple[Member, ...]
    dataset: Dataset
    plan: SplitPlan
    search: Split
    confirm: Split | None
    calibration: Split | None
    test: Split
    unlabelled: Split | None
    evaluator: Evaluator
    alignment: align.Alignment
    notes: tuple[str, ...]
    answered: Split | None = None
    tracker: Tracker = field(default_factory=Tracker)

    @property
    def steering(self) -> Split:
        """The images that individuals are scored on."""
        return self.answered or self.search

    @property
    def spec(self) -> Spec:
        """The network of all sources."""
        return self.checkpoints[0].spec

    @property
    def merged(self) -> tuple[Member, ...]:
        """What is merged: every member but the base."""
        return self.members[:-1] if self.settings.base else self.members

    @property
    def splits(self) -> dict[str, Split]:
        """Purpose to images, of those that there are."""
        every = {"search": self.search, "confirm": self.confirm, "calibration": self.calibration, "test": self.test}
        every |= {"distill": self.unlabelled}
        return {p: split for p, split in every.items() if split is not None and len(self.plan.rows[p])}

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
    opened = open_sources(checkpoints)
    checkpoints, states, notes = opened.checkpoints, opened.states, [*notes, *opened.notes]
    spec = checkpoints[0].spec
    statistics = has_statistics(spec)
    if len(states) > 1:
        output.say(outlook(loosest(states), statistics))
    with state.main_process_first():
        dataset = open_dataset(choose_dataset(settings, checkpoints), *columns_of(settings))
    plan = planned(dataset, checkpoints, settings)
    reads = looked_at(plan, settings, statistics)
    phases.begin("images", sum(map(len, reads.values())), "reads")
    splits = load_splits(dataset, reads, spec, plan.augmented, ordered="search")
    alignment = aligned(settings, spec, states, splits.get("calibration"))
    seen = [note for split in splits.values() for note in split.notes]
    notes += [*plan.notes, *dict.fromkeys(seen), *alignment.notes]
    for note in (*notes, *([plan.leak] if plan.leak else [])):
        output.say(note)
    output.say(f"{', '.join(f'{len(split):,} {purpose}' for purpose, split in splits.items())} images")
    output.say(
        f"processes: {state.num_processes}, device: {state.device.type}, threads: {torch.get_num_threads()} each"
    )
    turned = align.apply(spec, states, alignment.permutations)
    network = Network(spec, mix(checkpoints, turned, state.device), splits.get("calibration"), settings.precision)
    output.detail(f"{network.sources.layout.size:,} floats in each source, batches of {network.batch_size} images")
    output.detail(f"convolutions with the BatchNorm behind them folded in: {len(network.folded or ())}")
    if settings.calibrate and not network.can_calibrate:
        raise SettingsError(no_calibration(settings, spec, statistics))
    return Job(
        settings,
        tuple(checkpoints),
        tuple(members),
        dataset,
        plan,
        splits["search"] if settings.chooses else stratified(splits["calibration"]),
        splits.get("confirm"),
        splits.get("calibration"),
        splits["test"],
        splits.get("distill"),
        Evaluator(network),
        alignment,
        tuple(notes),
    )


def columns_of(settings: MergeSettings) -> tuple[str | None, str | None, bool]:
    """What the settings say of the columns of a dataset, as `open_dataset` takes it."""
    return settings.image_column, settings.label_column, settings.labels_by_number


def no_calibration(settings: MergeSettings, spec: Spec, statistics: bool) -> str:
    """Why BatchNorm statistics cannot be re-estimated. statistics: whether the network has any."""
    asked = UPDATE_BN if settings.method == UPDATE_BN else "--calibrate"
    if statistics:
        return f"{asked} needs calibration images: name them with --calibration-split."
    what = f"{asked} re-estimates BatchNorm statistics, but {spec.architecture} has none"
    return f"{what}." if settings.method == UPDATE_BN else f"{what}: remove --calibrate."


def planned(dataset: Dataset, checkpoints: Sequence[Checkpoint], settings: MergeSettings) -> SplitPlan:
    """Which images do what in a merge of these checkpoints."""
    records = [checkpoint.record for checkpoint in checkpoints]
    return plan_splits(dataset, records, settings.splits, distills=settings.unlabelled, chooses=settings.chooses)


def looked_at(plan: SplitPlan, settings: MergeSettings, statistics: bool) -> dict[str, Rows]:
    """Purpose to the rows that are decoded: calibration images only where BatchNorm or the alignment reads them."""
    calibrates = statistics or settings.align == "activations"
    return {p: rows for p, rows in plan.rows.items() if len(rows) and (calibrates or p != "calibration")}


def aligned(
    settings: MergeSettings, spec: Spec, states: Sequence[dict[str, Tensor]], calibration: Split | None
) -> align.Alignment:
    """The permutations that `--align` asks for, the same in every process."""
    pixels = calibration.images[: align.IMAGES] if calibration else None
    images = normalizer(spec, torch.device("cpu"))(pixels) if pixels is not None else None
    found = [align.align(settings.align, spec, states, images)]
    if processes().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def choose_dataset(settings: MergeSettings, checkpoints: list[Checkpoint]) -> str:
    """The dataset that the user named, else the one that the sources' records agree on, else CIFAR-10."""
    recorded_sets = {c.record["dataset"] for c in checkpoints if c.record}
    if settings.dataset:
        return settings.dataset
    if len(recorded_sets) > 1:
        raise SettingsError(
            f"the sources were trained on {' and '.join(sorted(recorded_sets))}: name one with --dataset."
        )
    return recorded_sets.pop() if recorded_sets else DEFAULT_DATASET
