"""Which merges happen in which order, their searches, what of them is on disk, and how an unfinished run goes on."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar, Final, Literal

import torch
from accelerate.utils import broadcast_object_list
from pydantic import TypeAdapter, ValidationError

from hfmega import HfmegaError, lineage, run
from hfmega.choose import SOUP, Chosen, calibration_pays, found_by, greedy_soup, run_off
from hfmega.evaluate import Evaluator, Score
from hfmega.job import Job
from hfmega.learned import Learned
from hfmega.output import Output
from hfmega.race import Race
from hfmega.recipe import Recipe
from hfmega.search import Generation, Searcher
from hfmega.search.cma import CMAES
from hfmega.search.ga import MeGA
from hfmega.search.random import RandomSearch

SEARCHERS: Final = {"mega": MeGA, "cmaes": CMAES, "random": RandomSearch}

# Seeds of a user lie below it, so that no two searches share one: node i of seed s draws from s + i * NODE_SEEDS.
NODE_SEEDS: Final = 2**48


@dataclass(frozen=True)
class Node:
    """One merge that is to be done: what it is called, what it merges, and the sources below it."""

    name: str
    inputs: tuple[str, ...]
    below: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """One merge that is done. fitness: accuracy of its recipe on the search images."""

    name: str
    inputs: tuple[str, ...]
    chosen: Chosen
    fitness: float
    history: tuple[Generation, ...]


@dataclass
class Progress:
    """How far a run has come: the scores of each generation of each node, the nodes that are done, and their cost."""

    scores: dict[str, list[list[Score]]] = field(default_factory=dict)
    done: dict[str, Merged] = field(default_factory=dict)
    forward_passes: int = 0
    seconds: float = 0.0
    __pydantic_config__: ClassVar = lineage.NUMBERS


PROGRESS: Final = TypeAdapter(Progress)


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
        return closest_pairs(names, distances(list(members.values()), job.evaluator))
    return names


def distances(recipes: Sequence[Recipe], evaluator: Evaluator) -> dict[tuple[int, int], float]:
    """The Euclidean distance of the parameters of each pair of recipes."""
    layout = evaluator.sources.layout
    flats = []
    for recipe in recipes:
        flat = torch.empty(layout.size, device=evaluator.sources.device)
        evaluator.sources.materialize(recipe, flat)
        flats.append(torch.cat([flat[s.start : s.stop] for s in layout.slots if s.parameter]).double())
    return {(i, j): float((flats[i] - flats[j]).norm()) for i, j in combinations(range(len(flats)), 2)}


def closest_pairs(names: Sequence[str], distance: Mapping[tuple[int, int], float]) -> list[str]:
    """The closest pair, then the closest of the rest, and so on; an odd one out comes last."""
    found: list[int] = []
    for i, j in sorted(distance, key=distance.__getitem__):
        if i not in found and j not in found:
            found += [i, j]
    return [names[k] for k in dict.fromkeys([*found, *range(len(names))])]


def grow(job: Job, output: Output) -> tuple[list[Merged], Progress]:
    """Do every merge of the tree that is not on disk yet; the last one is the result. job: with calibration decided.

    A base is one more input of every search, and nothing else: coefficients of any sign lead away from it.
    """
    record = job.settings.output / run.WORK / "progress.json"
    progress = saved_progress(record, job.evaluator)
    calibrate = bool(job.settings.calibrate)
    members = {member.name: replace(member.recipe, calibrate=calibrate) for member in job.merged}
    base = [replace(member.recipe, calibrate=calibrate) for member in job.members[len(members) :]]
    levels = plan(ordered(members, job.settings.order, job), job.settings.tree)
    numbers = {node.name: number for number, node in enumerate(node for level in levels for node in level)}
    for level in levels:
        for batch in batches(level, job.settings.search.population, job.evaluator.state.num_processes):
            known = members | {name: merged.chosen.recipe for name, merged in progress.done.items()}
            todo = {
                node: searcher_of(
                    job,
                    [*(replace(known[name], calibrate=calibrate) for name in node.inputs), *base],
                    job.settings.seed + numbers[node.name] * NODE_SEEDS,
                )
                for node in batch
            }
            search(todo, job, progress, record, output)
            for node, searcher in todo.items():
                if node.name in progress.done:  # its scores are known again, as in a run that was not interrupted
                    job.evaluator.scores([progress.done[node.name].chosen.recipe], job.search)
                    continue
                progress.done[node.name] = finished(node, searcher, job, known)
                output.say(f"{node.name} of {' and '.join(node.inputs)}: {progress.done[node.name].chosen.name} stands")
            save(progress, record, job.evaluator)
    return [progress.done[name] for name in numbers], progress


def searcher_of(job: Job, inputs: Sequence[Recipe], seed: int) -> Searcher:
    """The search that the settings name, over some recipes."""
    settings, sources = job.settings.search, job.evaluator.sources
    if job.settings.method == "learned":
        return Learned(inputs, settings, seed, job.evaluator, job.search)
    return SEARCHERS[job.settings.method](inputs, settings, seed, sources.groups(settings.genome).count)


def decided(job: Job, output: Output) -> Job:
    """The job with its calibration settled: as asked, else what pays on the search images."""
    if job.settings.calibrate is not None:
        return job
    calibrate = calibration_pays(job.evaluator, {member.name: member.recipe for member in job.members}, job.search)
    output.say(f"BatchNorm statistics: {'re-estimated inside the fitness' if calibrate else 'kept as they are'}")
    return replace(job, settings=replace(job.settings, calibrate=calibrate))


def search(todo: Mapping[Node, Searcher], job: Job, progress: Progress, record: Path, output: Output) -> None:
    """Ask, evaluate, tell, record, until done. Scores on disk are told again instead of computed again.

    Several searches go on side by side: their populations are one list for the processes to share.
    """
    evaluator = job.evaluator
    for node, searcher in todo.items():
        resume(node, searcher, job, progress, output)
    population = job.settings.search.population
    with output.progress("first generation", sum(s.generations for s in todo.values()) * population) as bar:
        bar.advance(sum(len(searcher.history) for searcher in todo.values()) * population)
        while active := {node: searcher for node, searcher in todo.items() if not searcher.done}:
            before, started = evaluator.images_seen, time.perf_counter()
            asked = {node: searcher.ask() for node, searcher in active.items()}
            first = not any(searcher.history for searcher in active.values())
            told = scores_of(list(asked.values()), job, first, bar.advance)
            for (node, searcher), scores in zip(active.items(), told, strict=True):
                searcher.tell(scores)
                progress.scores.setdefault(node.name, []).append(scores)
            images, seconds = evaluator.images_seen - before, time.perf_counter() - started
            progress.forward_passes += images
            progress.seconds += seconds
            save(progress, record, evaluator)
            for node, searcher in active.items():
                newest, rate = searcher.history[-1], images / seconds
                bar.line(
                    f"{node.name}: generation {len(searcher.history)}/{searcher.generations}: best {newest.best:.4f}, "
                    f"mean {newest.mean:.4f}, {rate:,.0f} images/s"
                    + (f", {newest.failed} failed (NaN or Inf)" if newest.failed else "")
                )


def scores_of(
    populations: Sequence[Sequence[Recipe]], job: Job, first: bool, advance: Callable[[int], None] | None = None
) -> list[list[Score]]:
    """The scores of several populations, of searches that begin or go on: each a race, or with `exact` all images."""
    if not job.settings.exact:
        return job.evaluator.race(populations, job.search, rules(first, job.settings.search.fitness), advance)
    job.evaluator.scores([recipe for population in populations for recipe in population], job.search, advance)
    return [job.evaluator.scores(population, job.search) for population in populations]


def rules(first: bool, fitness: Literal["accuracy", "loss"]) -> Race:
    return Race(halving=not first, fitness=fitness)


def resume(node: Node, searcher: Searcher, job: Job, progress: Progress, output: Output) -> None:
    """Bring a searcher to where the unfinished run stopped."""
    known = progress.scores.get(node.name, [])
    for scores in known:
        for recipe, score in zip(searcher.ask(), scores, strict=True):
            job.evaluator.remember(recipe, job.search, score)
        searcher.tell(scores)
    if known and node.name not in progress.done:
        output.say(f"resuming {node.name} after generation {len(known)} of {searcher.generations}")


def finished(node: Node, searcher: Searcher, job: Job, known: Mapping[str, Recipe]) -> Merged:
    """The run-off of one merge, and what came out. The greedy soup of all sources is in that of the last merge."""
    below = {name: known[name] for name in node.below}
    inputs = {name: known[name] for name in node.inputs if name not in node.below}
    found = inputs | found_by(searcher)
    if job.confirm and 2 < len(below) == len(job.merged):
        found[SOUP] = greedy_soup(list(below.values()), job.evaluator, job.search)
    chosen = run_off(found, job.evaluator, below, job.search, job.confirm)
    fitness = job.evaluator.scores([chosen.recipe], job.search)[0].accuracy
    return Merged(node.name, node.inputs, chosen, fitness, tuple(searcher.history))


def save(progress: Progress, record: Path, evaluator: Evaluator) -> None:
    if evaluator.state.is_main_process:
        run.write_atomically(record, PROGRESS.dump_json(progress))


def saved_progress(record: Path, evaluator: Evaluator) -> Progress:
    """How far an unfinished run came, read by the main process and given to all.

    Raises HfmegaError for a damaged file.
    """
    known: list[Progress] = [Progress()]
    if evaluator.state.is_main_process and record.exists():
        try:
            known = [PROGRESS.validate_json(record.read_bytes())]
        except ValidationError as error:
            raise HfmegaError(f"{record} is damaged and cannot be resumed: start anew with --overwrite.") from error
    if evaluator.state.num_processes > 1:
        broadcast_object_list(known)
    return known[0]
