"""What a search would take on more workers: a model of measured steps, not a measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfmega.data.images import batches, even
from hfmega.evaluation import race
from hfmega.evaluation.processes import shared_out


@dataclass(frozen=True)
class Rung:
    """One part of a generation: so many individuals, and for each so many images to calibrate and to score."""

    individuals: int
    calibration: int
    images: int


@dataclass(frozen=True)
class Costs:
    """Seconds of each step. calibrating, scoring: of one image; deciding: of a generation; gathering: of a phase.

    calibration_batch, batch: how many images pass at once; only whole batches are shared out.
    """

    materializing: float
    calibrating: float
    scoring: float
    deciding: float
    gathering: float
    calibration_batch: int
    batch: int


def exact(individuals: int, images: int, calibration: int) -> list[Rung]:
    return [Rung(individuals, calibration, images)]


def raced(individuals: int, images: int, calibration: int) -> list[Rung]:
    """The rungs of `Evaluator.race` beside an elite, as long as the paired test stops nobody."""
    found = []
    for start, stop in pairwise([0, *race.rungs(images)]):
        if start:
            individuals = min(individuals, race.seats(individuals + 1, 1))
        share = -(-calibration // round(images / stop))
        found.append(Rung(individuals, share, stop if calibration else stop - start))
    return found


def phase(individuals: int, parts: Sequence[range], image: float, costs: Costs, workers: int) -> float:
    """Seconds until the slowest worker is through with its part of all batches, and everybody knows the results.

    parts: the batches of each individual; image: seconds of one image. One worker has nothing to gather.
    """
    loads = [
        sum(costs.materializing + image * sum(map(len, parts[item.start : item.stop])) for item in items)
        for items in shared_out([len(parts)] * individuals, workers)
    ]
    return max(loads) + (costs.gathering if workers > 1 else 0.0)


def calibrating(rungs: Sequence[Rung], costs: Costs, workers: int) -> float:
    """Seconds of one generation in which statistics are re-estimated."""
    return sum(
        phase(
            rung.individuals,
            even(range(rung.calibration), costs.calibration_batch),
            costs.calibrating,
            costs,
            workers,
        )
        for rung in rungs
        if rung.calibration
    )


def generation(rungs: Sequence[Rung], costs: Costs, workers: int) -> float:
    """Seconds of one generation. Deciding is done by every worker alike."""
    scoring = sum(
        phase(rung.individuals, batches(range(rung.images), costs.batch), costs.scoring, costs, workers)
        for rung in rungs
    )
    return costs.deciding + calibrating(rungs, costs, workers) + scoring
