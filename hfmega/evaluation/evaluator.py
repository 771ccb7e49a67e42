"""Recipes in, answers out: scores, races, ensembles; remembered, and spread over processes by Accelerate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor

from hfmega import phases
from hfmega.data.images import Split, batches
from hfmega.evaluation.answers import Answers, answers, pool
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import Item, processes, shared_out
from hfmega.evaluation.race import Race, rungs, survivors
from hfmega.evaluation.statistics import average
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

    Processes share the batches of images, those that re-estimate statistics too. They are the same batches however many
    processes there are, so that the results are the same bit for bit.
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
        said = self._said(self.network.look, unknown, split, self._statistics(unknown))
        for recipe, parts in zip(unknown, said, strict=True):
            self.remember(recipe, split, score_of(pool(*parts)))
        return [self._scores[recipe, split.fingerprint] for recipe in recipes]

    def race(self, populations: Sequence[Sequence[Recipe]], split: Split, rules: Race) -> list[list[Score]]:
        """The scores of populations that race, each for itself; who stops early keeps its estimate, not `exact`."""
        fingerprint, seen = split.fingerprint, dict[Recipe, Answers]()
        running = [[r for r in dict.fromkeys(p) if (r, fingerprint) not in self._scores] for p in populations]
        taken = [len(set(p)) - len(runners) for p, runners in zip(populations, running, strict=True)]
        everyone = list(dict.fromkeys(recipe for runners in running for recipe in runners))
        stops = rungs(len(split))
        statistics = dict(zip(everyone, self._statistics(everyone, rough=True), strict=True)) if stops else {}
        for rung, rows in enumerate(range(*ends) for ends in pairwise([0, *stops])):
            alive = [recipe for recipe in everyone if any(recipe in runners for runners in running)]
            said = self._said(self.network.estimate, alive, split, [statistics[recipe] for recipe in alive], rows)
            for recipe, parts in zip(alive, said, strict=True):
                seen[recipe] = pool(*([seen[recipe]] if recipe in seen else []), *parts)
            running = [
                [runners[k] for k in survivors([seen[r] for r in runners], busy, rules, rung)]
                for runners, busy in zip(running, taken, strict=True)
            ]
        self.scores([recipe for runners in running for recipe in runners], split)
        return [
            [self._scores.get((r, fingerprint)) or score_of(seen[r], exact=False) for r in population]
            for population in populations
        ]

    def remember(self, recipe: Recipe, split: Split, score: Score) -> None:
        """Take a score that was computed, here or by an earlier run; an estimate is not kept."""
        if score.exact:
            self._scores[recipe, split.fingerprint] = score

    def forget(self, split: Split) -> None:
        """Know nothing of the images of a split any more, whoever labelled them."""
        self._scores = {key: score for key, score in self._scores.items() if split.fingerprint not in key[1]}
        self._answers = {key: found for key, found in self._answers.items() if split.fingerprint not in key[1]}
        self._ensembles = {key: found for key, found in self._ensembles.items() if split.fingerprint not in key[1]}

    def answers(self, recipes: Sequence[Recipe], split: Split) -> list[Answers]:
        """What each recipe says of each image; one already known is not computed again.

        A search is told their scores as well, unless it is to be told those of another precision.
        """
        unknown = [r for r in dict.fromkeys(recipes) if (r, split.fingerprint) not in self._answers]
        self._learn_statistics(unknown)
        found = self._said(self.network.answers, unknown, split, self._statistics(unknown), step="{} of {}")
        for recipe, parts in zip(unknown, found, strict=True):
            self._learn(recipe, split, pool(*parts))
        return [self._answers[recipe, split.fingerprint] for recipe in recipes]

    def ensemble(self, recipes: Sequence[Recipe], split: Split) -> Answers:
        """What the mean probability of several recipes says of each image; their own answers are known afterwards."""
        key = (tuple(recipes), split.fingerprint)
        if key not in self._ensembles:
            self._ensembles[key] = answers(self.together(recipes, split), split.labels)
        return self._ensembles[key]

    def together(self, recipes: Sequence[Recipe], split: Split) -> Tensor:
        """The logarithm of the mean probability of several recipes: float32 [images, classes], on the CPU."""
        self._learn_statistics(recipes)
        total = None
        for number, recipe in enumerate(recipes, 1):  # one after another: together they may be larger than memory
            phases.step(f"ensemble {number} of {len(recipes)}")
            found = self.log_probabilities(recipe, split)
            total = found if total is None else torch.logaddexp(total, found)
        assert total is not None
        return total - math.log(len(recipes))

    def log_probabilities(self, recipe: Recipe, split: Split) -> Tensor:
        """What a recipe says of each image, float32 [images, classes], on the CPU; its answers are known afterwards."""
        self._learn_statistics([recipe])
        (parts,) = self._said(self.network.log_probabilities, [recipe], split, self._statistics([recipe]))
        found = torch.cat(parts)
        self._learn(recipe, split, answers(found, split.labels))
        return found

    def _learn(self, recipe: Recipe, split: Split, judged: Answers) -> None:
        """Know the answers of a recipe, and its score unless a search is told those of another precision."""
        self._answers[recipe, split.fingerprint] = judged
        if self.network.in_float32:
            self._scores.setdefault((recipe, split.fingerprint), score_of(judged))

    def _said(
        self,
        work: Callable[[Split, Sequence[range]], T],
        recipes: Sequence[Recipe],
        split: Split,
        statistics: Sequence[Tensor | None],
        rows: range | None = None,
        step: str = "",
    ) -> list[list[T]]:
        """What the network says (work) of some images with each recipe, part by part.

        statistics: see `_statistics`; rows: of the split, all if None; step: in words, for a display.
        """
        row = batches(range(len(split)) if rows is None else rows, self.network.batch_size)

        def loaded(item: Item) -> T:
            if step:
                phases.step(step.format(item.recipe + 1, len(recipes)))
            self.network.load(recipes[item.recipe], statistics[item.recipe])
            return work(split, row[item.start : item.stop])

        return self._spread(loaded, [len(row)] * len(recipes))

    def _statistics(self, recipes: Sequence[Recipe], rough: bool = False) -> list[Tensor | None]:
        """The re-estimated BatchNorm statistics of each recipe, as `Network.load` takes them; None: it keeps its own.

        rough: for an estimate. Who has all batches of a recipe averages at once, or the moments of all recipes would be
        held together.
        """
        network, row = self.network, self.network.calibration_parts(rough)
        known = {} if rough else network.known
        waiting = [network.calibrates(recipe) and recipe not in known for recipe in recipes]

        def work(item: Item) -> Tensor:
            found = network.moments(recipes[item.recipe], row[item.start : item.stop], rough)
            return found if len(found) < len(row) else average(found, row)

        every = self._spread(work, [len(row) if waits else 0 for waits in waiting])
        return [
            known.get(recipe) if not parts else parts[0] if len(parts) == 1 else average(torch.cat(parts), row)
            for recipe, parts in zip(recipes, every, strict=True)
        ]

    def _learn_statistics(self, recipes: Sequence[Recipe]) -> None:
        """Let the network know the re-estimated statistics of recipes that are judged on several splits."""
        for recipe, found in zip(recipes, self._statistics(recipes), strict=True):
            if found is not None:
                self.network.known[recipe] = found

    def _spread(self, work: Callable[[Item], T], batches: Sequence[int]) -> list[list[T]]:
        """What work says of the batches of each recipe, part by part in their order; the same in all processes."""
        found: list[list[T]] = [[] for _ in batches]
        count, before = self.state.num_processes, self.network.images_seen
        if any(batches):
            mine = [(item.recipe, work(item)) for item in shared_out(batches, count)[self.state.process_index]]
            share = [(mine, self.network.images_seen - before)]
            everyone = gather_object(share) if count > 1 else share
            self.network.images_seen = before + sum(seen for _, seen in everyone)
            for recipe, result in (pair for results, _ in everyone for pair in results):
                found[recipe].append(result)
        return found
