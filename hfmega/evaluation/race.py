"""Racing: who of a generation is scored exactly, and who cannot become a parent any more and stops before.

All individuals see the same images in the same order, so every comparison is paired. After each rung those go on that
are neither out of the successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943; a third goes on, as in
Hyperband) nor shown to be worse than the last one who would get a seat. What the rungs say only ranks: it is computed
roughly (`Network.estimate`), and by mean loss, since accuracy on few images is coarse. Who is left after the last rung
is scored exactly, by whatever the search maximises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from hfmega.evaluation.answers import Answers

FACTOR: Final = 3  # of the images from rung to rung, and of those who go on
LEAST_IMAGES: Final = 200  # of a rung: fewer tell too little
SEATS: Final = 2  # at least so many see all images


@dataclass(frozen=True)
class Race:
    """The rules. error_rate: how often the paired test may stop one who is as good as the last seat, each time.

    first: of a first population the first rung halves nobody. It decides where a search goes on, and its best may
    differ by less than a rung of few images tells apart; the elite keeps later ones from losing what was found.
    """

    first: bool = False
    halving: bool = True
    test: bool = True
    error_rate: float = 0.05

    def halves(self, rung: int) -> bool:
        """Whether only a third goes on after a rung, counted from 0."""
        return self.halving and not (self.first and rung == 0)


def rungs(images: int) -> list[int]:
    """How many images have been seen after each rung, the fewest first; none if the images are few."""
    return [seen for seen in (images // FACTOR**2, images // FACTOR) if seen >= LEAST_IMAGES]


def most_images(
    individuals: int, taken: int, images: int, calibration: int = 0, rough: int = 0, first: bool = False
) -> int:
    """How many images a race passes through networks when the paired test stops nobody.

    calibration, rough: how many images re-estimate statistics for a score, and for what the rungs say; first: the
    population is a first one.
    """
    passed, rules = individuals * rough if rungs(images) else 0, Race(first=first)
    for rung, (start, stop) in enumerate(pairwise([0, *rungs(images)])):
        passed += individuals * (stop - start)
        if rules.halves(rung):
            individuals = min(individuals, seats(individuals + taken, taken))
    return passed + individuals * (images + calibration)


def survivors(seen: Sequence[Answers], taken: int, race: Race, rung: int = 1) -> list[int]:
    """Which of those who ran this rung go on, in their order.

    seen: the answers of each on the images so far; taken: seats of individuals whose score is known already;
    rung: which one it was, from 0.
    """
    order = [k for k in range(len(seen)) if np.isfinite(seen[k].mean_loss)]  # NaN or Inf: a failed candidate
    order.sort(key=lambda k: seen[k].mean_loss)
    if race.halves(rung):
        order = order[: seats(len(seen) + taken, taken)]
    last = seats(0, taken)
    if race.test:
        order = [k for place, k in enumerate(order) if place < last or not worse(seen[k], seen[order[last - 1]], race)]
    return sorted(order)


def seats(running: int, taken: int) -> int:
    """How many of those who run go on, some seats being taken: a third of all, at least two, at least one is free."""
    return max(1, max(SEATS, running // FACTOR) - taken)


def worse(model: Answers, other: Answers, race: Race) -> bool:
    """Whether a model is shown to be worse than another: the paired difference of their losses, one-sided."""
    from scipy import stats  # half a second of CPU

    higher = model.loss - other.loss
    return bool(higher.mean() > stats.norm.isf(race.error_rate) * stats.sem(higher))
