"""`hfmega inspect`: whether merging will pay, seen on held-out images before an hour is spent. Test is not touched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from hfmega import phases
from hfmega.data.dataset import open_dataset
from hfmega.data.images import Split, load_splits
from hfmega.data.splits import plan_splits
from hfmega.errors import SourceError
from hfmega.evaluation.answers import SIGNIFICANCE, Answers, compare
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.hub import pull
from hfmega.merging.gather import distinct
from hfmega.merging.prepare import choose_dataset, columns_of
from hfmega.models.graph.trace import spaces_of
from hfmega.models.library import has_statistics, normalizer
from hfmega.output import Output
from hfmega.report.inspection import POINTS, Inspection, Pair, Prospect, SourceReport, Walk
from hfmega.search.recipe import Recipe, source_alone
from hfmega.settings import MergeSettings
from hfmega.weights import align
from hfmega.weights.checkpoint import Checkpoint
from hfmega.weights.mergeable import open_sources
from hfmega.weights.relation import relate
from hfmega.weights.sources import mix

WELL_AHEAD: Final = 0.01  # in accuracy: an ensemble that has something to teach


def inspect(settings: MergeSettings, output: Output) -> Inspection:
    """Look at the sources, the walks from the first to each other one, and their ensemble; advise in one sentence.

    Raises HfmegaError when a source or the images cannot be had; sources that do not fit are an answer, not an error.
    """
    phases.begin("sources")
    checkpoints = pull_each(settings)
    try:
        opened = open_sources(checkpoints)
    except SourceError as error:
        return Inspection(compatible=False, advice=f"These cannot be merged: {error}")
    checkpoints, states = opened.checkpoints, opened.states
    spec, names = checkpoints[0].spec, [checkpoint.name for checkpoint in checkpoints]
    dataset = open_dataset(choose_dataset(settings, checkpoints), *columns_of(settings))
    plan = plan_splits(dataset, [checkpoint.record for checkpoint in checkpoints], settings.splits, tests=False)
    phases.begin("images", len(plan.search_rows) + len(plan.calibration_rows), "reads")
    reads = {purpose: rows for purpose, rows in plan.rows.items() if purpose in ("search", "calibration") and len(rows)}
    splits = load_splits(dataset, reads, spec, plan.augmented)
    images, calibration = splits["search"], splits.get("calibration")
    notes = dict.fromkeys((*opened.notes, *plan.notes, *images.notes, *(calibration.notes if calibration else ())))
    for note in notes:
        output.say(note)
    output.say(f"looking at {len(images):,} held-out images ({plan.fitness}); the test images are not touched")
    phases.plan(ahead(len(names), len(images), len(calibration or ()), has_statistics(spec)))
    every = Evaluator(Network(spec, mix(checkpoints, states, processes().device), calibration))
    ways = (False, True) if every.network.can_calibrate else (False,)
    ensemble = together(every, len(names), ways, images)  # each source is known then
    alone = {way: every.answers([source_alone(k, len(names), way) for k in range(len(names))], images) for way in ways}
    best = max((judged for way in ways for judged in alone[way]), key=lambda judged: judged.accuracy)
    look = Look(every, images, calibration, best)
    found = Inspection(
        compatible=True,
        advice="",
        sources=tuple(
            SourceReport(
                name, alone[False][k].accuracy, alone[True][k].accuracy if every.network.can_calibrate else None
            )
            for k, name in enumerate(names)
        ),
        pairs=tuple(
            look.pair([checkpoints[0], checkpoints[k]], [states[0], states[k]], k) for k in range(1, len(checkpoints))
        ),
        ensemble_accuracy=ensemble,
        split=plan.fitness,
        images=len(images),
        notes=(*notes, *spaces_of(spec).notes),
    )
    return replace(found, advice=advise(found, best))


def ahead(sources: int, images: int, calibration: int, statistics: bool) -> dict[str, float]:
    """The phases, each with the images that it will pass through networks."""
    ways = 2 if statistics and calibration else 1
    once = ways * images + (calibration if ways == 2 else 0)  # one network, with each kind of statistics
    walks = (sources - 1) * (2 * len(POINTS) - 2) * once  # the ends of those between sources as they are, are known
    return {"each source": float(sources * once), "paths": float(walks)}


def together(every: Evaluator, sources: int, ways: Sequence[bool], images: Split) -> float:
    """The accuracy of the ensemble, in the better of the ways to have its statistics."""
    phases.begin("each source")
    return max(every.ensemble([source_alone(k, sources, way) for k in range(sources)], images).accuracy for way in ways)


def pull_each(settings: MergeSettings) -> list[Checkpoint]:
    """The sources on this disk, each with a name of its own; two with the same weights may come."""
    found: list[Checkpoint] = []
    for source in settings.sources:
        checkpoint = pull.pull(source)
        name = distinct(checkpoint, [c.name for c in found])
        taken = sum(c.name == name for c in found)
        found.append(replace(checkpoint, name=f"{name}-{taken + 1}" if taken else name))
    return found


@dataclass(frozen=True)
class Look:
    """What every pair is looked at with. every: knows all sources; best: what the best one says of the images."""

    every: Evaluator
    images: Split
    calibration: Split | None
    best: Answers

    def pair(self, checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]], other: int) -> Pair:
        """How alike two sources are before and after alignment, and the walks between them. other: than the first one.

        Matched by activations, which measured better on every pair; by weights without images.
        """
        phases.begin("paths", keep=True)
        phases.step(f"from {checkpoints[0].name} to {checkpoints[1].name}")
        spec = self.every.network.spec
        images = normalizer(spec, torch.device("cpu"))(self.calibration.images) if self.calibration else None
        method: align.Method = "weights" if images is None else "activations"
        alignment = align.align(method, spec, states, images)
        turned = align.apply(spec, states, alignment.permutations)
        aligned = Evaluator(Network(spec, mix(checkpoints, turned, processes().device), self.calibration))
        prospects: dict[Walk, Prospect] = {}
        ways: list[tuple[align.Method, Evaluator, int]] = [("none", self.every, other), (method, aligned, 1)]
        for way, evaluator, end in ways:
            count = len(evaluator.network.sources)
            for calibrated in (False, True) if evaluator.network.can_calibrate else (False,):
                steps = [replace(between(a, end, count), calibrate=calibrated) for a in POINTS]
                judged = evaluator.answers(steps, self.images)
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


def between(share: float, end: int, count: int) -> Recipe:
    """A point on the line from the first of some sources to another one."""
    return Recipe(tuple(1.0 - share if k == 0 else share if k == end else 0.0 for k in range(count)))


def taught(found: Inspection, best: Answers) -> str:
    """What is left where no blend pays, if the ensemble is well ahead."""
    if (found.ensemble_accuracy or 0.0) < best.accuracy + WELL_AHEAD:
        return ""
    return " With unlabelled images `--distill` may bring one network part of the way there."


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
            f"{seen.accuracy:.4f}; {together}.{taught(found, best)}"
        )
    flags = seen.walk.flags(found.statistics)
    how = f"Merge with `{flags}`" if flags else "Merge"
    expected = "most of it" if seen.p_value < SIGNIFICANCE else "less, perhaps nothing,"
    return (
        f"{how}: {seen.share:.0%} of the way from {pair.first} to {pair.second} accuracy is "
        f"{seen.accuracy:.4f}, {100 * seen.gain:.2f} points over the best source; that point was chosen on these "
        f"images, so expect {expected} on others; {together}."
    )
