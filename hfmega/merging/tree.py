"""The searches of a tree of merges."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from hfmega import phases
from hfmega.evaluation.evaluator import Score
from hfmega.evaluation.race import Race
from hfmega.folder import PROGRESS, WORK
from hfmega.merging.learned import Learned
from hfmega.merging.pairing import NODE_SEEDS, Node, batches, ordered, plan
from hfmega.merging.prepare import Job
from hfmega.merging.progress import Merged, Progress, resume, save, saved_progress
from hfmega.merging.run_off import SOUP, calibration_pays, found_by, greedy_soup, plain_recipes, run_off
from hfmega.merging.teacher import answered
from hfmega.output import Output
from hfmega.search import Searcher
from hfmega.search.cma import CMAES
from hfmega.search.ga import MeGA
from hfmega.search.random import RandomSearch
from hfmega.search.recipe import Recipe

SEARCHERS: Final = {"mega": MeGA, "cmaes": CMAES, "random": RandomSearch}


def grow(job: Job, output: Output) -> tuple[list[Merged], Progress]:
    """Do every merge of the tree that is not on disk yet; the last one is the result. job: with calibration decided.

    A base is one more input of every search, and nothing else: coefficients of any sign lead away from it.
    """
    record = job.settings.output / WORK / PROGRESS
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
            later = len(numbers) - len(progress.done.keys() | {node.name for node in batch})
            search(todo, job, progress, record, output, later)
            for node, searcher in todo.items():
                if node.name in progress.done:  # its scores are known again, as in a run that was not interrupted
                    job.evaluator.answers([progress.done[node.name].chosen.recipe], job.search)
                    continue
                phases.begin("run-off", keep=True)
                progress.done[node.name] = finished(node, searcher, job, known)
                output.say(f"{node.name} of {' and '.join(node.inputs)}: {progress.done[node.name].chosen.name} stands")
            save(progress, record, job.evaluator)
    return [progress.done[name] for name in numbers], progress


def searcher_of(job: Job, inputs: Sequence[Recipe], seed: int) -> Searcher:
    """The search that the settings name, over some recipes."""
    settings, sources = job.settings.search, job.evaluator.network.sources
    if job.settings.method == "learned":
        return Learned(inputs, settings, seed, job.evaluator, job.steering)
    return SEARCHERS[job.settings.method](inputs, settings, seed, sources.groups(settings.genome).count)


def decided(job: Job, output: Output) -> Job:
    """The job with its calibration settled, as asked, else what pays on the search images; and the ensemble's answers
    where they are its fitness. What needs no search is judged here, once for search and run-off.
    """
    phases.begin("each source")
    if job.settings.calibrate is None:
        job = with_calibration(job, output)
    if job.settings.searches and job.confirm:  # the run-off will ask for them: the search need not
        members = {member.name: member.recipe for member in job.merged}
        job.evaluator.answers(list(plain_recipes(members, bool(job.settings.calibrate)).values()), job.search)
    if job.settings.searches and job.settings.search.fitness == "ensemble":
        job = replace(job, answered=answered(job))
        output.say(f"fitness: nearness to the ensemble's answers on {len(job.steering):,} images, without labels")
    return job


def with_calibration(job: Job, output: Output) -> Job:
    """The job, with statistics re-estimated or not."""
    calibrate = calibration_pays(job.evaluator, {member.name: member.recipe for member in job.members}, job.search)
    if job.evaluator.network.can_calibrate:
        output.say(f"BatchNorm statistics: {'re-estimated inside the fitness' if calibrate else 'kept as they are'}")
    return replace(job, settings=replace(job.settings, calibrate=calibrate))


def search(
    todo: Mapping[Node, Searcher], job: Job, progress: Progress, record: Path, output: Output, later: int = 0
) -> None:
    """Ask, evaluate, tell, record, until done. Scores on disk are told again instead of computed again.

    Several searches go on side by side: their populations are one list for the processes to share.
    later: how many searches will follow these.
    """
    evaluator = job.evaluator
    for node, searcher in todo.items():
        resume(node, searcher, job, progress, output)
        job.tracker.earlier(node.name, searcher.history)
    phases.begin("search", keep=True)
    while active := {node: searcher for node, searcher in todo.items() if not searcher.done}:
        before, started = evaluator.network.images_seen, time.perf_counter()
        asked = {node: searcher.ask() for node, searcher in active.items()}
        phases.step(generation_of(active))
        first = not any(searcher.history for searcher in active.values())
        told = scores_of(list(asked.values()), job, first)
        for (node, searcher), scores in zip(active.items(), told, strict=True):
            searcher.tell(scores)
            progress.scores.setdefault(node.name, []).append(scores)
        images, seconds = evaluator.network.images_seen - before, time.perf_counter() - started
        progress.forward_passes += images
        progress.seconds += seconds
        save(progress, record, evaluator)
        ahead = sum(s.generations - len(s.history) for s in active.values() if not s.done)
        phases.expect("search", images / len(active) * (ahead + later * job.settings.search.generations))
        for node, searcher in active.items():
            job.tracker.generation(node.name, len(searcher.history), searcher.history[-1], images / seconds)
            tell(node.name, searcher, images / seconds, job.settings.search.patience, output)


def tell(name: str, searcher: Searcher, rate: float, patience: int, output: Output) -> None:
    """Say how a generation did, and why it was the last one if it was that before its time. rate: images a second."""
    newest, count = searcher.history[-1], len(searcher.history)
    output.say(
        f"{name}: generation {count}/{searcher.generations}: best {newest.best:.4f}, mean {newest.mean:.4f}, "
        f"{rate:,.0f} images/s" + (f", {newest.failed} failed (NaN or Inf)" if newest.failed else "")
    )
    if searcher.done and count < searcher.generations:
        output.say(
            f"{name}: no higher fitness in {patience} generations: the search stops after {count} "
            f"of {searcher.generations} (--patience)"
        )


def generation_of(active: Mapping[Node, Searcher]) -> str:
    """How far the searches that go on are."""
    slowest = min(active.values(), key=lambda searcher: len(searcher.history))
    names = next(iter(active)).name if len(active) == 1 else f"{len(active)} merges"
    return f"{names} {len(slowest.history) + 1}/{slowest.generations}"


def scores_of(populations: Sequence[Sequence[Recipe]], job: Job, first: bool) -> list[list[Score]]:
    """The scores of several populations, of searches that begin or go on: each a race, or with `exact` all images."""
    if not job.settings.exact:
        return job.evaluator.race(populations, job.steering, rules(first))
    job.evaluator.scores([recipe for population in populations for recipe in population], job.steering)
    return [job.evaluator.scores(population, job.steering) for population in populations]


def rules(first: bool) -> Race:
    return Race(first=first)


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
