"""MeGA: a genetic algorithm over blends of trained networks (Yun 2024, arXiv 2406.04607, Algorithm 1)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Final, TypeVar

import numpy as np

from hfmega.errors import HfmegaError
from hfmega.rng import Draws, normal_table, philox, raw_words
from hfmega.search import Generation, Scored
from hfmega.search.recipe import Noise, Recipe, blend, blend_groups, centroid, crossover, mutate
from hfmega.settings import GASettings

T = TypeVar("T")
STEP: Final = 0.1  # of a mutated group, in coefficients: standard deviation


class MeGA:
    """The genetic algorithm behind ask and tell. inputs: what it blends: leaves, or recipes that earlier merges found.

    Every draw is keyed by (seed, generation), so the state is only the population and how far the search has come.
    """

    def __init__(self, inputs: Sequence[Recipe], settings: GASettings, seed: int, groups: int = 1) -> None:
        self.inputs, self.settings, self.seed, self.groups = list(inputs), settings, seed, groups
        self.history: list[Generation] = []
        self.population = self._first()
        self._best: tuple[tuple[float, ...], Recipe] | None = None
        self._stale = 0  # generations since the best fitness rose; a lower loss at the same accuracy is no rise

    @property
    def generations(self) -> int:
        """How many populations will be scored at most."""
        return self.settings.generations

    @property
    def done(self) -> bool:
        return len(self.history) == self.generations or 0 < self.settings.patience <= self._stale

    @property
    def best(self) -> Recipe:
        """The fittest individual ever told (Algorithm 1, line 38)."""
        if self._best is None:
            raise HfmegaError("no population has been scored yet.")
        return self._best[1]

    def ask(self) -> tuple[Recipe, ...]:
        """The population to score next."""
        return self.population

    def tell(self, scores: Sequence[Scored]) -> None:
        """Take the scores of the population and breed the next one, unless this was the last."""
        ranks = [self._rank(score) for score in scores]
        fittest = max(range(len(ranks)), key=ranks.__getitem__)
        risen = self._best is None or ranks[fittest][:2] > self._best[0][:2]
        self._stale = 0 if risen else self._stale + 1
        if self._best is None or ranks[fittest] > self._best[0]:
            self._best = ranks[fittest], self.population[fittest]
        self.history.append(self._summary(scores))
        if not self.done:
            self.population = self._breed(ranks)

    def _first(self) -> tuple[Recipe, ...]:
        """The average and the inputs, if they are anchors, and random blends."""
        size, inputs = self.settings.population, self.inputs
        first = [centroid(inputs), *inputs][:size] if self.settings.anchors else []
        return (*first, *self.blends(size - len(first), Draws(self.seed, "population")))

    def blends(self, count: int, draws: Draws) -> list[Recipe]:
        """Blends with shares uniform on the simplex: for two inputs a * first + (1 - a) * second (line 5)."""
        cuts = [sorted(draws.uniform() for _ in self.inputs[1:]) for _ in range(count)]
        return [blend(self.inputs, [b - a for a, b in zip([0.0, *row], [*row, 1.0], strict=True)]) for row in cuts]

    def _breed(self, ranks: Sequence[tuple[float, ...]]) -> tuple[Recipe, ...]:
        """The best individual and mutated children of tournament winners (lines 13 to 35)."""
        settings, draws = self.settings, Draws(self.seed, "generation", len(self.history))
        parents = self._select(ranks, draws)
        children: list[Recipe] = []
        while len(children) < settings.population - 1:
            if settings.redraw_parents:
                first, second = self._select(ranks, draws)[:2]
            else:
                first, second = _distinct(parents, 2, draws)
            share, seed = draws.uniform(), draws.integer() >> 16  # 48 bits: exact in every JSON reader
            bred = self._cross if settings.genome == "model" else self._cross_groups
            children.append(bred(first, second, share, seed))
        return (self.best, *children)

    def _cross(self, first: Recipe, second: Recipe, share: float, seed: int) -> Recipe:
        """One share, and a mutation of the weights (lines 24 and 29 to 33)."""
        settings, child = self.settings, crossover(first, second, share)
        if not (settings.mutation_rate and settings.mutation_sigma):
            return child
        return mutate(child, Noise(seed, settings.mutation_rate, settings.mutation_sigma, settings.mutation_unit))

    def _cross_groups(self, first: Recipe, second: Recipe, _: float, seed: int) -> Recipe:
        """A share for each group, and a step of the coefficients of some groups, whose sum stays what it was."""
        sources = len(first.coefficients)
        bits = philox("groups", seed)
        shares = raw_words(bits, self.groups, "<u4") / 2**32
        hit = raw_words(bits, self.groups, "<u4") < round(self.settings.mutation_rate * 2**32)
        steps = normal_table()[raw_words(bits, self.groups * sources, "<u2")].reshape(self.groups, sources) * STEP
        used = np.array([first.coefficients, second.coefficients]).any(axis=0)  # a base, say, is left alone
        steps = (steps - steps[:, used].mean(axis=1, keepdims=True)) * used * hit[:, None]
        child = blend_groups([first, second], np.stack([shares, 1 - shares], axis=1), self.settings.genome)
        offsets = np.array(child.offsets) + steps.astype(np.float64).ravel()
        return replace(child, offsets=tuple(offsets.tolist()))

    def _select(self, ranks: Sequence[tuple[float, ...]], draws: Draws) -> list[Recipe]:
        """K winners of tournaments among t individuals drawn without repetition (lines 13 to 20)."""
        winners = []
        for _ in range(self.settings.parents):
            drawn = _distinct(range(len(ranks)), self.settings.tournament, draws)
            winners.append(self.population[max(drawn, key=ranks.__getitem__)])
        return winners

    def _rank(self, score: Scored) -> tuple[float, ...]:
        """The higher the better: who came further in a race is before who stopped, and who failed is behind all."""
        loss = score.loss if math.isfinite(score.loss) else math.inf
        accuracy = score.accuracy if math.isfinite(score.accuracy) else 0.0
        seen = score.total if math.isfinite(score.loss) else 0
        if self.settings.fitness != "accuracy":
            return (seen, -loss)
        return (seen, accuracy, -loss) if self.settings.break_ties else (seen, accuracy)

    def _summary(self, scores: Sequence[Scored]) -> Generation:
        """The best of those that saw all images; mean and spread with the estimates of those that did not."""
        by_loss = self.settings.fitness != "accuracy"
        worst = math.inf if by_loss else 0.0
        values = [score.loss if by_loss else score.accuracy for score in scores]
        exact = [v for v, score in zip(values, scores, strict=True) if math.isfinite(v) and score.exact]
        finite = [v for v in values if math.isfinite(v)] or [worst]
        best = (min if by_loss else max)(exact or [worst])
        failed = sum(not (math.isfinite(score.loss) and math.isfinite(score.accuracy)) for score in scores)
        return Generation(best, fmean(finite), pstdev(finite) if len(finite) > 1 else 0.0, failed)


def _distinct(items: Sequence[T], count: int, draws: Draws) -> list[T]:
    """`count` items drawn without repetition."""
    left = list(items)
    return [left.pop(draws.below(len(left))) for _ in range(count)]
