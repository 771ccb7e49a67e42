"""Ask/tell searchers: recipes out, scores in; no networks, no devices, no files."""

from dataclasses import dataclass
from typing import Any, Protocol

from hfmega.search.recipe import Recipe


class Scored(Protocol):
    """What a searcher may know of an individual. total: on how many images; exact: that is all of them."""

    @property
    def total(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def loss(self) -> float: ...


@dataclass(frozen=True)
class Generation:
    """How the fitness (accuracy, or mean loss in nats) of one population lay: best, mean and standard deviation.

    failed: how many had NaN or Inf in their weights or answers, and scored nothing.
    """

    best: float
    mean: float
    spread: float
    failed: int = 0


class Searcher(Protocol):
    """The whole interface: `ask` for a population, `tell` its scores, until `done`."""

    history: list[Generation]

    @property
    def generations(self) -> int: ...
    @property
    def done(self) -> bool: ...
    @property
    def best(self) -> Recipe: ...
    @property
    def population(self) -> tuple[Recipe, ...]: ...
    def ask(self) -> tuple[Recipe, ...]: ...
    def tell(self, scores: list[Any]) -> None: ...
