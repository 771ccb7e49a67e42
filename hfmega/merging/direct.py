"""Merges without a population: one recipe for each method, and the greedy soup."""

import time
from dataclasses import replace
from typing import cast

from hfmega import phases
from hfmega.evaluation.evidence import evidence_of
from hfmega.merging.prepare import Job
from hfmega.merging.progress import Merged, Progress
from hfmega.merging.run_off import Chosen, greedy_soup
from hfmega.output import Output
from hfmega.search.recipe import Recipe, Static, StaticMethod, centroid, source_alone
from hfmega.settings import UPDATE_BN


def carry(job: Job, output: Output) -> tuple[list[Merged], Progress]:
    """The merge by a static method, as `tree.grow` gives that of a search. job: with calibration decided."""
    settings, evaluator = job.settings, job.evaluator
    phases.begin("search" if settings.method == "greedy-soup" else settings.method)
    before, started = evaluator.network.images_seen, time.perf_counter()
    members = [replace(member.recipe, calibrate=bool(settings.calibrate)) for member in job.merged]
    if settings.method == "greedy-soup":
        recipe = greedy_soup(members, evaluator, job.search)
        taken = sum(member.coefficients[k] != 0 and recipe.coefficients[k] != 0 for k, member in enumerate(members))
        output.say(f"greedy soup: {taken} of {len(members)} sources")
    else:
        if settings.facts.images:
            leaves = [
                source_alone(k, len(job.checkpoints), bool(settings.calibrate)) for k in range(len(job.checkpoints))
            ]
            evaluator.network.sources.evidence = evidence_of(settings.method, evaluator.network, leaves, job.search)
        recipe = recipe_of(job, members)
    (score,) = evaluator.scores([recipe], job.search)
    progress = Progress(forward_passes=evaluator.network.images_seen - before, seconds=time.perf_counter() - started)
    names = tuple(member.name for member in job.merged)
    return [Merged("merge", names, Chosen(settings.method, recipe), score.accuracy, ())], progress


def recipe_of(job: Job, members: list[Recipe]) -> Recipe:
    """The recipe of a method that needs no images. members: what is merged, without the base."""
    settings, average = job.settings, centroid(members)
    if settings.method in ("average", UPDATE_BN):
        return average
    base = len(average.coefficients) - 1 if settings.base else None
    if settings.method == "task-arithmetic":
        return replace(average, coefficients=task_arithmetic(len(members), settings.scale))
    return replace(
        average,
        static=Static(cast(StaticMethod, settings.method), base, settings.scale, settings.density, settings.seed),
    )


def task_arithmetic(members: int, scale: float) -> tuple[float, ...]:
    """Coefficients of base + scale * sum of the task vectors, the base last (Ilharco et al. 2023, section 2)."""
    return (*[scale] * members, 1.0 - scale * members)
