"""Which merges happen in which order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from hfmega.evaluation.network import Network
from hfmega.merging.prepare import Job
from hfmega.search.recipe import Recipe

# Seeds of a user lie below it, so that no two searches share one: node i of seed s draws from s + i * NODE_SEEDS.
NODE_SEEDS: Final = 2**48


@dataclass(frozen=True)
class Node:
    """One merge that is to be done: what it is called, what it merges, and the sources below it."""

    name: str
    inputs: tuple[str, ...]
    below: tuple[str, ...]


def plan(members: Sequence[str], shape: str) -> list[list[Node]]:
    """The levels of a tree: one search over all members (`flat`), or pairs, then pairs of results (MeGA, Figure 3).

    Of an odd level the last member goes on as it is, and is the first of the next level, so that no member is passed
    over twice in a row.
    """
    if shape == "flat" or len(members) == 2:
        return [[Node("merge", tuple(members), tuple(members))]]
    below: dict[str, tuple[str, ...]] = {name: (name,) for name in members}
    levels: list[list[Node]] = []
    count = 0
    while len(members) > 1:
        level: list[Node] = []
        for first, second in zip(members[::2], members[1::2], strict=False):
            count += 1
            level.append(Node(f"merge-{count}", (first, second), below[first] + below[second]))
        below |= {node.name: node.below for node in level}
        members = [*members[len(level) * 2 :], *(node.name for node in level)]
        levels.append(level)
    return levels


def batches(level: Sequence[Node], population: int, processes: int) -> Iterator[list[Node]]:
    """Which merges of a level run side by side: all of them where that needs fewer rounds of evaluation, else none."""
    together = -(-len(level) * population // processes)
    one_by_one = len(level) * -(-population // processes)
    yield from [list(level)] if together < one_by_one else ([node] for node in level)


def ordered(members: Mapping[str, Recipe], order: str, job: Job) -> list[str]:
    """The sources in the order in which they are paired: as given, by their loss, or the most similar pairs first."""
    names = list(members)
    if order == "strongest-first":
        scores = job.evaluator.scores(list(members.values()), job.search)
        return [name for _, name in sorted(zip(scores, names, strict=True), key=lambda pair: pair[0].loss)]
    if order == "similar-first":
        return closest_pairs(names, distances(list(members.values()), job.evaluator.network))
    return names


def distances(recipes: Sequence[Recipe], network: Network) -> dict[tuple[int, int], float]:
    """The Euclidean distance of the parameters of each pair of recipes."""
    sources, found = network.sources, dict[tuple[int, int], float]()
    parameters = [slice(slot.start, slot.stop) for slot in sources.layout.slots if slot.parameter]
    one, other = (torch.empty(sources.layout.size, device=sources.device) for _ in range(2))  # never all of them
    for i in range(len(recipes) - 1):
        sources.materialize(recipes[i], one)
        for j in range(i + 1, len(recipes)):
            sources.materialize(recipes[j], other)
            squares = [(one[part].double() - other[part].double()).square().sum() for part in parameters]
            found[i, j] = float(torch.stack(squares).sum().sqrt())
    return found


def closest_pairs(names: Sequence[str], distance: Mapping[tuple[int, int], float]) -> list[str]:
    """The closest pair, then the closest of the rest, and so on; an odd one out comes last."""
    found: list[int] = []
    for i, j in sorted(distance, key=distance.__getitem__):
        if i not in found and j not in found:
            found += [i, j]
    return [names[k] for k in dict.fromkeys([*found, *range(len(names))])]
