"""CMA-ES over the coefficients (Hansen 2016, arXiv 1604.00772), by the library `cmaes`."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from hfmega.search.ga import MeGA
from hfmega.search.recipe import Recipe, blend
from hfmega.settings import GASettings

SIGMA: Final = 0.3  # of the first population, in coefficients; affine ones: any sign, sum one


class CMAES(MeGA):
    """Blends with shares of any sign that sum to one: normal around the average, which moves and stretches."""

    def __init__(self, inputs: Sequence[Recipe], settings: GASettings, seed: int, groups: int = 1) -> None:
        from cmaes import CMA  # type: ignore[import-untyped]  # which imports scipy.stats: half a second of CPU

        count = len(inputs)
        self._optimizer = CMA(np.full(count, 1 / count), SIGMA, seed=seed % 2**32, population_size=settings.population)
        self._points: list[np.ndarray] = []
        super().__init__(inputs, settings, seed, groups)

    def _first(self) -> tuple[Recipe, ...]:
        self._points = [self._optimizer.ask() for _ in range(self.settings.population)]
        shares = [point + (1 - point.sum()) / len(point) for point in self._points]
        return tuple(blend(self.inputs, [float(share) for share in row]) for row in shares)

    def _breed(self, ranks: Sequence[tuple[float, ...]]) -> tuple[Recipe, ...]:
        """The optimiser minimises: it is told the place of each individual in the order of their ranks."""
        order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
        places = {individual: float(place) for place, individual in enumerate(order)}
        self._optimizer.tell([(point, places[k]) for k, point in enumerate(self._points)])
        return self._first()
