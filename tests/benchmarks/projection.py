"""What a search would take on more workers: a model of measured steps, not a measurement."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One chunk of a race: so many individuals see so many more images."""

    individuals: int
    images: int


@dataclass(frozen=True)
class Costs:
    """Seconds of each step. scoring: of one image; deciding: of a rung, in one process; gathering: of a rung.

    An individual is materialized for every rung, and calibrated for every rung that it is materialized for.
    """

    materializing: float
    calibrating: float
    scoring: float
    deciding: float
    gathering: float


def rungs(shape: str, population: int, images: int) -> list[Rung]:
    """`1:0.25,0.5:0.75` is: all individuals on a quarter of the images, then half of them on the rest."""
    pairs = [part.split(":") for part in shape.split(",")]
    return [Rung(math.ceil(float(alive) * population), round(float(share) * images)) for alive, share in pairs]


def makespan(costs: Sequence[float], workers: int) -> float:
    """Longest processing time first: every individual goes to the worker that is free first."""
    loads = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def generation(race: Sequence[Rung], costs: Costs, workers: int) -> float:
    """Seconds of one generation. Deciding is done by every worker alike; one worker has nothing to gather."""
    between = costs.deciding + (costs.gathering if workers > 1 else 0.0)
    once = costs.materializing + costs.calibrating
    return sum(makespan([once + rung.images * costs.scoring] * rung.individuals, workers) + between for rung in race)
