"""Random search: every generation is new blends, drawn as the first population of MeGA is."""

from collections.abc import Sequence

from hfmega.rng import Draws
from hfmega.search.ga import MeGA
from hfmega.search.recipe import Recipe


class RandomSearch(MeGA):
    """The baseline of every search: the best of as many blends as the genetic algorithm would have scored."""

    def _breed(self, ranks: Sequence[tuple[float, ...]]) -> tuple[Recipe, ...]:
        del ranks  # nothing is learned from them
        draws = Draws(self.seed, "generation", len(self.history))
        return (self.best, *self.blends(self.settings.population - 1, draws))
