"""Recipes in, answers out: scores, races, ensembles; remembered, and spread over processes by Accelerate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor

from hfmega import phases
from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, answers, pool
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.evaluation.race import Race, rungs, survivors
from hfmega.search.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """What a split says of an individual: `correct` of `total` images, mean `loss` in nats (see `answers`)."""

    correct: int
    total: int
    loss: float
    exact: bool = True

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def score_of(seen: Answers, exact: bool = True) -> Score:
    """A candidate with NaN or Inf is the worst, never the best."""
    if not math.isfinite(seen.mean_loss):
        return Score(0, len(seen.correct), math.inf, exact)
    return Score(int(seen.correct.sum()), len(seen.correct), seen.mean_loss, exact)


class Evaluator:
    """Scores, races, answers and ensembles of recipes, remembered by the fingerprint of the images.

    They do not depend on how many processes share the work: each recipe is evaluated whole by one of them.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.state = processes()
        self._scores: dict[tuple[Recipe, str], Score] = {}
        self._answers: dict[tuple[Recipe, str], Answers] = {}
        self._ensembles: dict[tuple[tuple[Recipe, ...], str], Answers] = {}

    def scores(self, recipes: Sequence[Recipe], split: Split) -> list[Score]:
        """The score of each recipe; one already known is not computed again."""
        unknown = [r for r in dict.fromkeys(recipes) if (r, split.fingerprint) not in self._scores]
        for recipe, score in zip(unknown, self._spread(lambda r: self._score(r, split), unknown), strict=True):
            self.remember(recipe, split, score)
        return [self._scores[recipe, split.fingerprint] for recipe in recipes]

    def race(self, populations: Sequence[Sequence[Recipe]], split: Split, rules: Race) -> list[list[Score]]:
        """The scores of populations that race, each for itself; who stops early keeps its estimate, not `exact`.

        After each rung those who go on are spread over the processes anew. Statistics are re-estimated from a share of
        the calibration images as large as that of the images seen, so that who sees all of them is scored exactly.
        """
        fingerprint, seen = split.fingerprint, dict[Recipe, Answers]()
        running = [[r for r in dict.fromkeys(p) if (r, fingerprint) not in self._scores] for p in populations]
        taken = [len(set(p)) - len(runners) for p, runners in zip(populations, running, strict=True)]
        for start, stop in pairwise([0, *rungs(len(split), rules.halving)]):
            if start:
                running = [
                    [runners[k] for k in survivors([seen[r] for r in runners], busy, len(split) - start, rules)]
                    for runners, busy in zip(running, taken, strict=True)
                ]
            alive = list(dict.fromkeys(recipe for runners in running for recipe in runners))
            found = self._spread(partial(self.network.look, split=split, start=start, stop=stop), alive)
            for recipe, part in zip(alive, found, strict=True):
                seen[recipe] = part if len(part.correct) == stop else pool(seen[recipe], part)
        scores = {recipe: score_of(part, len(part.correct) == len(split)) for recipe, part in seen.items()}
        for recipe, score in scores.items():
            self.remember(recipe, split, score)
        return [[scores.get(r) or self._scores[r, fingerprint] for r in population] for population in populations]

    def remember(self, recipe: Recipe, split: Split, score: Score) -> None:
        """Take a score that was computed, here or by an earlier run; an estimate is not kept."""
        if score.exact:
            self._scores[recipe, split.fingerprint] = score

    def forget(self, split: Split) -> None:
        """Know no score on a split any more, whoever answered its images."""
        self._scores = {key: score for key, score in self._scores.items() if split.fingerprint not in key[1]}

    def answers(self, recipes: Sequence[Recipe], split: Split) -> list[Answers]:
        """What each recipe says of each image; one already known is not computed again."""
        unknown = [r for r in dict.fromkeys(recipes) if (r, split.fingerprint) not in self._answers]
        numbers = count(1)

        def work(recipe: Recipe) -> Answers:
            phases.step(f"{next(numbers)} of {len(unknown)}")
            return answers(self.network.predict(recipe, split), split.labels)

        found = self._spread(work, unknown)
        self._answers |= {(r, split.fingerprint): a for r, a in zip(unknown, found, strict=True)}
        return [self._answers[recipe, split.fingerprint] for recipe in recipes]

    def ensemble(self, recipes: Sequence[Recipe], split: Split) -> Answers:
        """What the mean probability of several recipes says of each image; their own answers are known afterwards."""
        key = (tuple(recipes), split.fingerprint)
        if key not in self._ensembles:
            self._ensembles[key] = answers(self.together(recipes, split), split.labels)
        return self._ensembles[key]

    def together(self, recipes: Sequence[Recipe], split: Split) -> Tensor:
        """The logarithm of the mean probability of several recipes: float32 [images, classes], on the CPU."""
        numbers = count(1)

        def work(recipe: Recipe) -> Tensor:
            phases.step(f"ensemble {next(numbers)} of {len(recipes)}")
            return self.network.predict(recipe, split)

        predictions = self._spread(work, recipes)
        self._answers |= {
            (r, split.fingerprint): answers(p, split.labels) for r, p in zip(recipes, predictions, strict=True)
        }
        return torch.stack(predictions).logsumexp(dim=0) - math.log(len(predictions))

    def _spread(self, work: Callable[[Recipe], T], recipes: Sequence[Recipe]) -> list[T]:
        """work(recipe) for each recipe, every n-th in each of n processes; the same list in all of them."""
        rank, count = self.state.process_index, self.state.num_processes
        before = self.network.images_seen
        mine = [(i, work(recipes[i])) for i in range(rank, len(recipes), count)]
        if count == 1:
            return [result for _, result in mine]
        everyone = gather_object([(mine, self.network.images_seen - before)])
        self.network.images_seen = before + sum(seen for _, seen in everyone)
        done = dict(pair for results, _ in everyone for pair in results)
        return [done[i] for i in range(len(recipes))]

    def _score(self, recipe: Recipe, split: Split) -> Score:
        return score_of(self.network.look(recipe, split, 0, len(split)))
