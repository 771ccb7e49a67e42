"""What a search would take on more workers: a model of measured steps, not a measurement."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfmega.evaluation import race


@dataclass(frozen=True)
class Rung:
    """One part of a generation: so many individuals, and for each so many images to calibrate and to score."""

    individuals: int
    calibration: int
    images: int


@dataclass(frozen=True)
class Costs:
    """Seconds of each step. calibrating, scoring: of one image; deciding: of a generation; gathering: of a rung."""

    materializing: float
    calibrating: float
    scoring: float
    deciding: float
    gathering: float


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


def makespan(costs: Sequence[float], workers: int) -> float:
    """Longest processing time first: every individual goes to the worker that is free first."""
    loads = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def generation(rungs: Sequence[Rung], costs: Costs, workers: int) -> float:
    """Seconds of one generation. Deciding is done by every worker alike; one worker has nothing to gather."""
    gathering = costs.gathering if workers > 1 else 0.0

    def individual(rung: Rung) -> float:
        return costs.materializing + rung.calibration * costs.calibrating + rung.images * costs.scoring

    return costs.deciding + sum(makespan([individual(rung)] * rung.individuals, workers) + gathering for rung in rungs)
