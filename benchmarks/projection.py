"""What a search would take on more workers: a model of measured steps, not a measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfmega.data.images import batches, even
from hfmega.evaluation import race
from hfmega.evaluation.processes import shared_out


@dataclass(frozen=True)
class Costs:
    """Seconds of each step. deciding: of a generation; gathering: of a phase; all but materializing else: of an image.

    rough: as what only ranks is computed. calibration_batch, batch: how many images pass at once; only whole batches
    are shared out.
    """

    materializing: float
    calibrating: float
    scoring: float
    rough_calibrating: float
    rough_scoring: float
    deciding: float
    gathering: float
    calibration_batch: int
    batch: int


@dataclass(frozen=True)
class Phase:
    """What all workers do before they gather. parts: the batches of each individual; image: seconds of one image."""

    individuals: int
    parts: Sequence[range]
    image: float
    calibrates: bool = False

    @property
    def images(self) -> int:
        return sum(map(len, self.parts))


def exact(individuals: int, images: int, calibration: int, costs: Costs) -> list[Phase]:
    """A generation of which everybody is scored exactly."""
    parts = even(range(calibration), costs.calibration_batch) if calibration else []
    scoring = Phase(individuals, batches(range(images), costs.batch), costs.scoring)
    return [*([Phase(individuals, parts, costs.calibrating, True)] if parts else []), scoring]


def raced(individuals: int, images: int, calibration: int, costs: Costs) -> list[Phase]:
    """A later generation of `Evaluator.race` beside an elite, as long as the paired test stops nobody."""
    found = []
    if calibration and race.rungs(images):
        first = even(range(calibration), costs.calibration_batch)[:1]
        found.append(Phase(individuals, first, costs.rough_calibrating, True))
    for start, stop in pairwise([0, *race.rungs(images)]):
        found.append(Phase(individuals, batches(range(start, stop), costs.batch), costs.rough_scoring))
        individuals = min(individuals, race.seats(individuals + 1, 1))
    return [*found, *exact(individuals, images, calibration, costs)]


def seconds(phase: Phase, costs: Costs, workers: int) -> float:
    """Until the slowest worker is through with its part of all batches, and everybody knows the results.

    One worker has nothing to gather.
    """
    loads = [
        sum(costs.materializing + phase.image * sum(map(len, phase.parts[item.start : item.stop])) for item in items)
        for items in shared_out([len(phase.parts)] * phase.individuals, workers)
    ]
    return max(loads) + (costs.gathering if workers > 1 else 0.0)


def generation(phases: Sequence[Phase], costs: Costs, workers: int) -> float:
    """Seconds of one generation. Deciding is done by every worker alike."""
    return costs.deciding + sum(seconds(phase, costs, workers) for phase in phases)


def calibrating(phases: Sequence[Phase], costs: Costs, workers: int) -> float:
    """Seconds of one generation in which statistics are re-estimated."""
    return sum(seconds(phase, costs, workers) for phase in phases if phase.calibrates)
