"""The table of methods: which flags each uses, whether it searches, what it needs."""

from dataclasses import dataclass
from typing import Final, Literal

Method = Literal[
    "mega",
    "cmaes",
    "random",
    "learned",
    "greedy-soup",
    "average",
    "slerp",
    "task-arithmetic",
    "ties",
    "dare-linear",
    "dare-ties",
    "fisher",
    "regmean",
]
UPDATE_BN: Final = "update-bn"  # a command of its own, recorded as a merge of one source

TREE: Final = frozenset({"tree", "order", "exact", "fitness", "population", "generations", "patience"})
GENETIC: Final = TREE | {"parents", "tournament", "mutation_rate", "mutation_sigma", "mutation_unit", "genome"}
VECTORS: Final = frozenset({"base", "scale"})


@dataclass(frozen=True)
class Facts:
    """Facts about a method.

    flags: the ones that only some methods use, and this one does. searches: it searches with a population.
    base: a common start of the sources is refused, needed, or one more input of the search. images: it needs evidence
    of the sources on images. sources: exactly so many; None: two or more.
    """

    flags: frozenset[str] = frozenset()
    searches: bool = False
    base: Literal["no", "needed", "one more input"] = "no"
    images: bool = False
    sources: int | None = None

    @property
    def genomes(self) -> bool:
        """Whether parts of the network may have coefficients of their own."""
        return "genome" in self.flags


METHODS: Final[dict[Method, Facts]] = {
    "mega": Facts(GENETIC, searches=True),
    "cmaes": Facts(TREE | {"base"}, searches=True, base="one more input"),
    "random": Facts(TREE, searches=True),
    "learned": Facts(TREE | {"base", "genome"}, searches=True, base="one more input"),
    "greedy-soup": Facts(),
    "average": Facts(),
    "slerp": Facts(sources=2),
    "task-arithmetic": Facts(VECTORS, base="needed"),
    "ties": Facts(VECTORS | {"density"}, base="needed"),
    "dare-linear": Facts(VECTORS | {"density"}, base="needed"),
    "dare-ties": Facts(VECTORS | {"density"}, base="needed"),
    "fisher": Facts(images=True),
    "regmean": Facts(images=True),
}
UPDATING: Final = Facts(sources=1)
SOME_USE: Final = frozenset[str]().union(*(facts.flags for facts in METHODS.values()))
