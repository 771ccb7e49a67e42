"""Racing: who of a generation sees more images, and who cannot become a parent any more and stops.

All individuals see the same images in the same order, so every comparison is paired. After each rung those go on that
are neither out of the successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943; a third goes on, as in
Hyperband) nor shown to be worse than the last one who would get a seat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from hfmega.evaluation.answers import Answers
from hfmega.settings import Fitness

FACTOR: Final = 3  # of the images from rung to rung, and of those who go on
LEAST_IMAGES: Final = 200  # of a rung: fewer tell too little
SEATS: Final = 2  # at least so many see all images


@dataclass(frozen=True)
class Race:
    """The rules. error_rate: how often the paired test may stop one who is as good as the last seat, each time.

    halving: not for a first population. It decides where a search goes on, and its best may differ by less than a rung
    of few images tells apart; the elite keeps later ones from losing what was found.

    fitness: what the search maximises (accuracy) or minimises (mean loss, from labels or from the ensemble's answers).
    """

    halving: bool = True
    test: bool = True
    error_rate: float = 0.05
    fitness: Fitness = "accuracy"


def rungs(images: int, halving: bool = True) -> list[int]:
    """How many images have been seen after each rung; the last one is all of them. A test alone looks once."""
    shares = [images // FACTOR**k for k in ((2, 1) if halving else (2,))]
    return [*(seen for seen in shares if seen >= LEAST_IMAGES), images]


def most_images(individuals: int, taken: int, images: int, calibration: int = 0, halving: bool = True) -> int:
    """How many images a race passes through networks when the paired test stops nobody.

    calibration: how many images re-estimate statistics; then each rung begins at the first image again.
    """
    passed = 0
    for start, stop in pairwise([0, *rungs(images, halving)]):
        if start and halving:
            individuals = min(individuals, seats(individuals + taken, taken))
        passed += individuals * (stop - (-calibration // round(images / stop)) if calibration else stop - start)
    return passed


def survivors(seen: Sequence[Answers], taken: int, left: int, race: Race) -> list[int]:
    """Which of those who ran this rung go on, in their order.

    seen: the answers of each on the images so far; taken: seats of individuals whose score is known already;
    left: how many images are still to come.
    """
    order = sorted(range(len(seen)), key=lambda k: rank(seen[k], race), reverse=True)
    order = [k for k in order if np.isfinite(seen[k].mean_loss)]  # NaN or Inf: a failed candidate
    if race.halving:
        order = order[: seats(len(seen) + taken, taken)]
    last = seats(0, taken)
    if race.test:
        order = [
            k for place, k in enumerate(order) if place < last or not worse(seen[k], seen[order[last - 1]], left, race)
        ]
    return sorted(order)


def seats(running: int, taken: int) -> int:
    """How many of those who run go on, some seats being taken: a third of all, at least two, at least one is free."""
    return max(1, max(SEATS, running // FACTOR) - taken)


def rank(answers: Answers, race: Race) -> tuple[float, ...]:
    """The higher the better."""
    return (-answers.mean_loss,) if race.fitness != "accuracy" else (answers.accuracy, -answers.mean_loss)


def worse(model: Answers, other: Answers, left: int, race: Race) -> bool:
    """Whether a model is shown to be worse than another, or certain to end behind it.

    Accuracy: McNemar's exact test, one-sided; loss: the paired difference against its standard error.
    """
    from scipy import stats  # half a second of CPU

    if race.fitness != "accuracy":
        higher = model.loss - other.loss
        return bool(higher.mean() > stats.norm.isf(race.error_rate) * stats.sem(higher))
    difference = other.correct.astype(np.int64) - model.correct
    behind, ahead = int((difference > 0).sum()), int((difference < 0).sum())
    if behind - ahead > left:
        return True
    return behind > ahead and bool(stats.binom.sf(behind - 1, behind + ahead, 0.5) < race.error_rate)
