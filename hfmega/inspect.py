"""`hfmega inspect`: whether merging will pay, seen on held-out images before an hour is spent. Test is not touched."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hfmega import HfmegaError, align, hub
from hfmega.compare import SIGNIFICANCE, Answers, compare
from hfmega.data import Split, load_split, normalizer, open_dataset
from hfmega.evaluate import Evaluator, processes
from hfmega.hub import Checkpoint
from hfmega.job import choose_dataset, distinct
from hfmega.output import Output
from hfmega.recipe import Recipe, source_alone
from hfmega.relation import Kinship, Relation, relate
from hfmega.run import write_atomically
from hfmega.settings import MergeSettings
from hfmega.splits import plan_splits
from hfmega.tracer import spaces_of
from hfmega.weights import check_mergeable, load_weights, mix

POINTS: Final = tuple(step / 10 for step in range(11))
FILE: Final = "inspection.json"


@dataclass(frozen=True)
class Walk:
    """Accuracy and mean loss (nats) of (1 - a) * first + a * second at the eleven POINTS a, in one of four ways."""

    align: align.Method
    calibrated: bool
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def name(self) -> str:
        ways = [word for word, so in (("aligned", self.align != "none"), ("calibrated", self.calibrated)) if so]
        return ", ".join(ways) or "as they are"

    @property
    def flags(self) -> str:
        """The flags of `hfmega merge` that go this way."""
        align = "" if self.align == "none" else f"--align {self.align} "
        return align + ("--calibrate" if self.calibrated else "--no-calibrate")

    @property
    def barrier(self) -> float:
        """How far accuracy falls below the straight line between the ends, at most (Frankle et al. 2020, section 2)."""
        start, end = self.accuracy[0], self.accuracy[-1]
        return max((1 - a) * start + a * end - seen for a, seen in zip(POINTS, self.accuracy, strict=True))


@dataclass(frozen=True)
class Prospect:
    """The best point inside a pair's walks, and its accuracy over the best single source on the same images."""

    walk: Walk
    share: float
    accuracy: float
    gain: float
    p_value: float


@dataclass(frozen=True)
class Pair:
    """The first source and another. aligned_cosine: the median cosine of the weight matrices after alignment."""

    first: str
    second: str
    kinship: Kinship
    aligned_cosine: float
    walks: tuple[Walk, ...]
    prospect: Prospect


@dataclass(frozen=True)
class SourceReport:
    """A source's accuracy on the held-out images; calibrated: None where there is nothing to calibrate."""

    name: str
    accuracy: float
    calibrated_accuracy: float | None


@dataclass(frozen=True)
class Inspection:
    """Everything that `hfmega inspect` tells. split: where the held-out images come from, `images` of them."""

    compatible: bool
    advice: str
    sources: tuple[SourceReport, ...] = ()
    pairs: tuple[Pair, ...] = ()
    ensemble_accuracy: float | None = None
    split: str = ""
    images: int = 0
    notes: tuple[str, ...] = ()

    @property
    def relation(self) -> Relation | None:
        """That of the pair which is least alike."""
        return min(self.pairs, key=lambda pair: pair.kinship.cosine).kinship.relation if self.pairs else None

    @property
    def barrier(self) -> float | None:
        """The highest barrier between the sources as they are."""
        return max((pair.walks[0].barrier for pair in self.pairs), default=None)


def inspect(settings: MergeSettings, output: Output) -> Inspection:
    """Look at the sources, the walks from the first to each other one, and their ensemble; advise in one sentence.

    Raises HfmegaError when a source or the images cannot be had; sources that do not fit are an answer, not an error.
    """
    checkpoints = pull_each(settings)
    states = [load_weights(checkpoint) for checkpoint in checkpoints]
    try:
        check_mergeable(checkpoints, states)
    except HfmegaError as error:
        return Inspection(compatible=False, advice=f"These cannot be merged: {error}")
    config, names = checkpoints[0].config, [checkpoint.name for checkpoint in checkpoints]
    dataset = open_dataset(
        choose_dataset(settings, checkpoints), settings.image_column, settings.label_column, settings.token
    )
    plan = plan_splits(dataset, [checkpoint.record for checkpoint in checkpoints], settings.splits)
    load = partial(load_split, dataset, config=config)
    images = load(plan.search_rows, name="search")
    calibration = load(plan.calibration_rows, name="calibration") if len(plan.calibration_rows) else None
    output.say(f"looking at {len(images):,} held-out images ({plan.fitness}); the test images are not touched")
    every = Evaluator(config, mix(checkpoints, states, processes().device), calibration)
    ways = (False, True) if every.can_calibrate else (False,)
    alone = {way: every.answers([source_alone(k, len(names), way) for k in range(len(names))], images) for way in ways}
    best = max((judged for way in ways for judged in alone[way]), key=lambda judged: judged.accuracy)
    look = Look(config, images, calibration, best)
    found = Inspection(
        compatible=True,
        advice="",
        sources=tuple(
            SourceReport(name, alone[False][k].accuracy, alone[True][k].accuracy if every.can_calibrate else None)
            for k, name in enumerate(names)
        ),
        pairs=tuple(
            look.pair([checkpoints[0], other], [states[0], state])
            for other, state in zip(checkpoints[1:], states[1:], strict=True)
        ),
        ensemble_accuracy=max(
            every.ensemble([source_alone(k, len(names), way) for k in range(len(names))], images).accuracy
            for way in ways
        ),
        split=plan.fitness,
        images=len(images),
        notes=(*plan.notes, *spaces_of(config).notes),
    )
    return replace(found, advice=advise(found, best))


def pull_each(settings: MergeSettings) -> list[Checkpoint]:
    """The sources on this disk, each with a name of its own; two with the same weights may come."""
    found: list[Checkpoint] = []
    for source in settings.sources:
        checkpoint = hub.pull(source, settings.token)
        name = distinct(checkpoint, [c.name for c in found])
        taken = sum(c.name == name for c in found)
        found.append(replace(checkpoint, name=f"{name}-{taken + 1}" if taken else name))
    return found


@dataclass(frozen=True)
class Look:
    """What every pair is looked at with. best: what the best single source says of the images."""

    config: dict[str, Any]
    images: Split
    calibration: Split | None
    best: Answers

    def pair(self, checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]]) -> Pair:
        """How alike two sources are before and after alignment, and the walks between them.

        Matched by activations, which measured better on every pair; by weights without images.
        """
        images = normalizer(self.config, torch.device("cpu"))(self.calibration.images) if self.calibration else None
        method: align.Method = "weights" if images is None else "activations"
        alignment = align.align(method, self.config, states, images)
        turned = align.apply(self.config, states, alignment.permutations)
        prospects: dict[Walk, Prospect] = {}
        ways: list[tuple[align.Method, Sequence[dict[str, Tensor]]]] = [("none", states), (method, turned)]
        for way, ends in ways:
            evaluator = Evaluator(self.config, mix(checkpoints, ends, processes().device), self.calibration)
            for calibrated in (False, True) if evaluator.can_calibrate else (False,):
                judged = evaluator.answers([Recipe((1.0 - a, a), calibrate=calibrated) for a in POINTS], self.images)
                walk = Walk(way, calibrated, tuple(a.accuracy for a in judged), tuple(a.mean_loss for a in judged))
                prospects[walk] = self.prospect(walk, judged)
        return Pair(
            checkpoints[0].name,
            checkpoints[1].name,
            relate(states[0], states[1]),
            relate(states[0], turned[1]).cosine,
            tuple(prospects),
            max(prospects.values(), key=lambda prospect: prospect.gain),
        )

    def prospect(self, walk: Walk, judged: Sequence[Answers]) -> Prospect:
        """The best point inside a walk against the best source (McNemar on the same images)."""
        inside = range(1, len(POINTS) - 1)
        point = max(inside, key=lambda k: judged[k].accuracy)
        difference = compare(judged[point], self.best)
        return Prospect(walk, POINTS[point], judged[point].accuracy, difference.gain, difference.p_value)


def advise(found: Inspection, best: Answers) -> str:
    """One sentence: which flags and which gain to expect, or that merging will not pay."""
    if found.relation == "identical":
        return "The weights are the same: there is nothing to merge."
    pair = max(found.pairs, key=lambda pair: pair.prospect.gain)
    seen, together = (
        pair.prospect,
        f"the ensemble reaches {found.ensemble_accuracy:.4f}, at {len(found.sources)} times the cost",
    )
    if seen.gain <= 0:
        return (
            f"Merging will not pay: the best source has {best.accuracy:.4f}, the best network between two of them "
            f"{seen.accuracy:.4f}; {together}."
        )
    expected = "most of it" if seen.p_value < SIGNIFICANCE else "less, perhaps nothing,"
    return (
        f"Merge with `{seen.walk.flags}`: {seen.share:.0%} of the way from {pair.first} to {pair.second} accuracy is "
        f"{seen.accuracy:.4f}, {100 * seen.gain:.2f} points over the best source; that point was chosen on these "
        f"images, so expect {expected} on others; {together}."
    )


def summary(found: Inspection) -> dict[str, Any]:
    """What `hfmega inspect --json` prints."""
    return {
        "compatible": found.compatible,
        "relation": found.relation,
        "barrier": found.barrier,
        "ensemble_accuracy": found.ensemble_accuracy,
        "sources": [asdict(source) for source in found.sources],
        "advice": found.advice,
        "split": found.split,
        "images": found.images,
        "pairs": [
            {**asdict(pair), "barriers": {walk.name: walk.barrier for walk in pair.walks}} for pair in found.pairs
        ],
        "notes": list(found.notes),
    }


def write(found: Inspection, folder: Path) -> Path:
    """`inspection.json` and, of sources that fit, the picture of the walks; returns what a person opens first."""
    from hfmega import curves

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, (json.dumps(summary(found), indent=2) + "\n").encode())
    return curves.draw(found, folder) if found.pairs else folder / FILE


def rows(found: Inspection) -> tuple[list[str], list[list[str]]]:
    """The table of the sources, and of what lies half-way between them."""
    lines = [
        [s.name, f"{s.accuracy:.4f}", "" if s.calibrated_accuracy is None else f"{s.calibrated_accuracy:.4f}", ""]
        for s in found.sources
    ]
    for pair in found.pairs:
        for plain in (walk for walk in pair.walks if not walk.calibrated):
            after = [walk for walk in pair.walks if walk.calibrated and walk.align == plain.align]
            name = f"half-way to {pair.second}{', aligned' if plain.align != 'none' else ''}"
            barriers = " / ".join(f"{100 * walk.barrier:.1f}" for walk in (plain, *after))
            lines.append(
                [name, f"{plain.accuracy[5]:.4f}", *([f"{w.accuracy[5]:.4f}" for w in after] or [""]), barriers]
            )
    lines.append(["ensemble", "", f"{found.ensemble_accuracy:.4f}", ""])
    return ["model", "accuracy", "calibrated", "barrier (points)"], lines


def layer_rows(pair: Pair) -> tuple[list[str], list[list[str]]]:
    """Cosine and distance of every tensor."""
    lines = [[layer.name, f"{layer.cosine:.3f}", f"{layer.distance:.3f}"] for layer in pair.kinship.layers]
    return ["tensor", "cosine", "distance"], lines
